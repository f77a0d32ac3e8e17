/* Recommendations for one user, for many, and for somebody who has some items. */
CREATE FUNCTION millrace.recommend_top_k(model text, user_id bigint, k int = 10, exclude_seen bool = true,
	candidates text = NULL, max_per_category int = NULL, baseline text = 'top', own_history float8 = NULL, fold_in bool = true,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_bigint';
COMMENT ON FUNCTION millrace.recommend_top_k(text, bigint, int, bool, text, int, text, float8, bool) IS
'The k items that the model''s active version scores highest for a user, best first, equal scores in the order of the items'' ids; all items if k is above their number. Exact.
What the user has is read at this moment, in the caller''s transaction, as the model''s owner. exclude_seen: without the items that the user has. Otherwise the score of what he has is raised, as people buy again, by own_history * log(1 + usual / (1 + usual) * (1 + value)), usual being what those have who have the item; own_history NULL: the weight that the training chose, 0: not at all.
candidates: only these items: a table, view or query whose first column is the item, run as the caller (once for each statement). If it has no rows, or the model knows none of them, a notice says so and nothing is recommended, but from a baseline that has them.
max_per_category: at most so many items of one category (set_item_features), an item without one not being limited; when categories run out, it is filled from the baseline: with what the limit allows, then with what it does not (source tells).
baseline: for a user whom the model does not know: top (the items of the most users), random, top_5 and the like, or what set_baseline gave; NULL: nothing.
fold_in: a user whom the model does not know, or who has other rows now than it was trained on, gets factors from the rows he has now, as a training would give him.
item_id is NULL where item ids are text; item is always set. source: model; fold_in; history: an item that the user has, raised; or baseline, whose score is its own (of top the number of users): for a user of whom nothing is known (NULL too, and a user all of whose values are 0), and to fill the list; no rows of it if the model was imported without ratings.
A caller who may not read the ratings learns from lists whether a user has an item (source history, or what exclude_seen leaves out); revoke EXECUTE from whom that is not for, of recommend_top_k_for, too.';

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

CREATE FUNCTION millrace.similar_items(model text, item_id bigint, k int = 10, candidates text = NULL,
	OUT rank int, OUT neighbor_id bigint, OUT neighbor text, OUT score real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_similar_items';
COMMENT ON FUNCTION millrace.similar_items(text, bigint, int, text) IS
'The k items that are most like an item, by the cosine of their factors, best first, equal ones in the order of ids; the item itself is left out. No rows if the model does not know the item (NULL too).
candidates: only these items, as in recommend_top_k. neighbor_id is NULL where item ids are text; neighbor is always set.';

CREATE FUNCTION millrace.similar_items(model text, item_id text, k int = 10, candidates text = NULL,
	OUT rank int, OUT neighbor_id bigint, OUT neighbor text, OUT score real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_similar_items';
COMMENT ON FUNCTION millrace.similar_items(text, text, int, text) IS
'The same for item ids of type text; an id that is written as an integer also finds that item in a model with integer ids, and the other way round';

CREATE FUNCTION millrace.similar_users(model text, user_id bigint, k int = 10, fold_in bool = true,
	OUT rank int, OUT neighbor_id bigint, OUT neighbor text, OUT score real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_similar_users';
COMMENT ON FUNCTION millrace.similar_users(text, bigint, int, bool) IS
'The k users that the model knows who are most like a user, by the cosine of their factors, best first, equal ones in the order of ids; the user himself is left out. fold_in: as in recommend_top_k, so that a new user with rows has similar ones, too. No rows if nothing is known of the user.
neighbor_id is NULL where user ids are text; neighbor is always set.';

CREATE FUNCTION millrace.similar_users(model text, user_id text, k int = 10, fold_in bool = true,
	OUT rank int, OUT neighbor_id bigint, OUT neighbor text, OUT score real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_similar_users';
COMMENT ON FUNCTION millrace.similar_users(text, text, int, bool) IS
'The same for user ids of type text';

CREATE FUNCTION millrace.predict(model text, user_id bigint, item_id bigint, fold_in bool = true)
	RETURNS real LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_predict';
COMMENT ON FUNCTION millrace.predict(text, bigint, bigint, bool) IS
'What the model predicts for a user and an item: the score that recommend_top_k lists, without what own history adds. Of a model of explicit feedback that is the rating (as value_transform made it). fold_in: as in recommend_top_k. NULL if the model does not know the item, or nothing is known of the user.';

CREATE FUNCTION millrace.predict(model text, user_id bigint, item_id text, fold_in bool = true)
	RETURNS real LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_predict';
COMMENT ON FUNCTION millrace.predict(text, bigint, text, bool) IS
'The same for ids of these types';

CREATE FUNCTION millrace.predict(model text, user_id text, item_id bigint, fold_in bool = true)
	RETURNS real LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_predict';
COMMENT ON FUNCTION millrace.predict(text, text, bigint, bool) IS
'The same for ids of these types';

CREATE FUNCTION millrace.predict(model text, user_id text, item_id text, fold_in bool = true)
	RETURNS real LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_predict';
COMMENT ON FUNCTION millrace.predict(text, text, text, bool) IS
'The same for ids of these types';

CREATE FUNCTION millrace.explain(model text, user_id bigint, item_id bigint,
	OUT rank int, OUT because_id bigint, OUT because text, OUT value real, OUT contribution real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 COST 1000 AS 'MODULE_PATHNAME', 'mr_explain';
COMMENT ON FUNCTION millrace.explain(text, bigint, bigint) IS
'Why an item scores as it does for a user: what each of the items that he has now contributes, the greatest first. The contributions sum to the score that folding him in gives: to what predict says of a user who is folded in; for a user whose factors are those of the training, they are close to it.
because_id, because: an item that the user has; the first is NULL where item ids are text. value: its own, as value_transform makes it. Items that the model does not know, and values that do not count, are left out. No rows if the model does not know the item, or the user has nothing.
It shows what a user has to a caller who may not read the ratings; who may call it must be granted EXECUTE.';

CREATE FUNCTION millrace.explain(model text, user_id bigint, item_id text,
	OUT rank int, OUT because_id bigint, OUT because text, OUT value real, OUT contribution real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 COST 1000 AS 'MODULE_PATHNAME', 'mr_explain';
COMMENT ON FUNCTION millrace.explain(text, bigint, text) IS
'The same for ids of these types';

CREATE FUNCTION millrace.explain(model text, user_id text, item_id bigint,
	OUT rank int, OUT because_id bigint, OUT because text, OUT value real, OUT contribution real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 COST 1000 AS 'MODULE_PATHNAME', 'mr_explain';
COMMENT ON FUNCTION millrace.explain(text, text, bigint) IS
'The same for ids of these types';

CREATE FUNCTION millrace.explain(model text, user_id text, item_id text,
	OUT rank int, OUT because_id bigint, OUT because text, OUT value real, OUT contribution real)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 100 COST 1000 AS 'MODULE_PATHNAME', 'mr_explain';
COMMENT ON FUNCTION millrace.explain(text, text, text) IS
'The same for ids of these types';

REVOKE ALL ON FUNCTION millrace.explain(text, bigint, bigint), millrace.explain(text, bigint, text), millrace.explain(text, text, bigint), millrace.explain(text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.explain(text, bigint, bigint), millrace.explain(text, bigint, text), millrace.explain(text, text, bigint), millrace.explain(text, text, text) TO @extowner@ WITH GRANT OPTION;
