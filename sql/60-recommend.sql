/* Recommendations for one user, for many, and for somebody who has some items. */
CREATE FUNCTION millrace.recommend_top_k(model text, user_id bigint, k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', own_history float8 = NULL, fold_in bool = true,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_bigint';
COMMENT ON FUNCTION millrace.recommend_top_k(text, bigint, int, bool, text, int, text, float8, bool) IS
'The k items that the model''s active version scores highest for a user, best first, equal scores in the order of the items'' ids; all items if k is above their number. Exact.
What the user has is read at this moment, in the caller''s transaction, as the model''s owner. exclude_seen: without the items that the user has. Otherwise what he has is raised, as people buy again, by own_history times log(1 + value); NULL: the weight that the training chose, 0: not at all.
candidates: only these items: a table, view or query whose first column is the item, run as the caller (once for each statement). If it has no rows, or the model knows none of them, there is nothing to recommend, and a notice says so.
max_per_category: at most so many items of one category (set_item_features), an item without one not being limited; if the list ends before k for that, it goes on with the baseline, by the same rules.
baseline: for a user whom the model does not know: top (the items of the most users), random, top_5 and the like, or what set_baseline gave; NULL: nothing.
fold_in: a user whom the model does not know, or who has other rows now than it was trained on, gets factors from the rows he has now, as a training would give him.
item_id is NULL where item ids are text; item is always set. source: model; fold_in; history: an item that the user has, raised; or baseline, whose score is its own (of top the number of users): for a user of whom nothing is known (NULL too, and a user all of whose values are 0), and to fill the list; no rows of it if the model was imported without ratings.';

CREATE FUNCTION millrace.recommend_top_k(model text, user_id text, k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', own_history float8 = NULL, fold_in bool = true,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_text';
COMMENT ON FUNCTION millrace.recommend_top_k(text, text, int, bool, text, int, text, float8, bool) IS
'The same for user ids of type text; an id that is written as an integer also finds that user in a model with integer ids, and the other way round';

CREATE FUNCTION millrace.recommend_top_k_for(model text, users text, k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', own_history float8 = NULL, fold_in bool = true,
	threads int = 0,
	OUT user_id bigint, OUT "user" text, OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10000 COST 1000000 AS 'MODULE_PATHNAME', 'mr_recommend_for';
COMMENT ON FUNCTION millrace.recommend_top_k_for(text, text, int, bool, text, int, text, float8, bool, int) IS
'What recommend_top_k lists, row by row the same, for many users at once: blocks of users are scored on threads.
users: a table, view or query whose first column is the user (bigint, integer, smallint or text), run as the caller; NULL: all users that the model knows. Each user comes once, in the order of ids; a NULL among them is somebody of whom nothing is known, and comes last.
user_id is NULL where user ids are text; "user" is always set. threads: 0 for one per processor. Rows beyond work_mem go to disk as they come, so memory does not grow with the number of users, but for their ids.';

CREATE FUNCTION millrace.recommend_from_items(model text, items bigint[], k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', weights float8[] = NULL,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_from_items';
COMMENT ON FUNCTION millrace.recommend_from_items(text, bigint[], int, bool, text, int, text, float8[]) IS
'What recommend_top_k lists for somebody who has these items, and nothing else: a basket, or what was looked at.
weights: the value of each item, as in the ratings; NULL: all 1. The same item twice has the sum. exclude_seen: without the items given. Items that the model does not know, and NULL, are left out; if none is left, the list is the baseline. The other arguments are as in recommend_top_k.';

CREATE FUNCTION millrace.recommend_from_items(model text, items text[], k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', weights float8[] = NULL,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_from_items';
COMMENT ON FUNCTION millrace.recommend_from_items(text, text[], int, bool, text, int, text, float8[]) IS
'The same for item ids of type text';
