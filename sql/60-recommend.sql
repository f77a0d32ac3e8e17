/* Recommendations for one user. */
CREATE FUNCTION millrace.recommend_top_k(model text, user_id bigint, k int = 10, exclude_seen bool = true,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_bigint';
COMMENT ON FUNCTION millrace.recommend_top_k(text, bigint, int, bool) IS
'The k items that the model''s active version scores highest for a user, best first, equal scores in the order of the items'' ids; all items if k is above their number.
exclude_seen: without the items that the user has by the model''s ratings query at this moment (read as the model''s owner).
item_id is NULL where item ids are text; item is always set. source: model, or baseline for a user whom the model does not know (NULL too, and a user all of whose values are 0): the items of the most users, score being their number; no rows for such a user if the model was imported without ratings.';

CREATE FUNCTION millrace.recommend_top_k(model text, user_id text, k int = 10, exclude_seen bool = true,
	OUT rank int, OUT item_id bigint, OUT item text, OUT score real, OUT source text)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 10 COST 1000 AS 'MODULE_PATHNAME', 'mr_recommend_text';
COMMENT ON FUNCTION millrace.recommend_top_k(text, text, int, bool) IS
'The same for user ids of type text; an id that is written as an integer also finds that user in a model with integer ids, and the other way round';
