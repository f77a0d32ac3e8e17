/* What users have, live (history.c). */
CREATE FUNCTION millrace.user_history(model text, users text[], OUT "user" text, OUT item text, OUT value real, OUT is_new bool)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_user_history';
COMMENT ON FUNCTION millrace.user_history(text, text[]) IS
'What these users have now of the items that the model''s active version knows, by the model''s ratings; for members of the model''s owner. Values of the same pair are summed.
is_new: whether a user of the model has something else than when it was trained, so that recommend_top_k computes his factors anew; NULL for a user whom the model does not know.';
