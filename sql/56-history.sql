/* What users have, live (history.c). */
CREATE FUNCTION millrace.user_history(model text, users text[], OUT "user" text, OUT item text, OUT value real, OUT is_new bool, OUT is_kept bool)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED COST 1000 AS 'MODULE_PATHNAME', 'mr_user_history';
COMMENT ON FUNCTION millrace.user_history(text, text[]) IS
'What these users have now of the items that the model''s active version knows, by the model''s ratings; for members of the model''s owner. Values of the same pair are summed.
is_new: whether a user of the model has something else than when it was trained, so that recommend_top_k computes his factors anew; NULL for a user whom the model does not know. is_kept: whether it was read from the table of a stream (millrace.track_history), not by the ratings query.';

CREATE FUNCTION millrace.track_history(model text) RETURNS text
	LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_track_history';
COMMENT ON FUNCTION millrace.track_history(text) IS
'Keep what each user has by the ratings of the model''s active version in a table of its own, so that reading it costs the same on any number of partitions; returns the name of the stream that keeps it up to date, in the transaction of every change of the table that the ratings read (which becomes a source). Models with the same ratings share one; it goes with the last of them. train_als does this by itself where that table is a source already.
For ratings that are the rows of one table of the model''s owner, perhaps with conditions and through views, or sum or count of them by user and item; others are read by the ratings query. Writers of the table wait while it is read once. Called again, it fills the table anew if it is not up to date.';

CREATE FUNCTION millrace._maintain_history(name text) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_maintain_history';
COMMENT ON FUNCTION millrace._maintain_history(text) IS 'Internal: a step of millrace.maintain: fills a stream of kind history that is not up to date, and folds what batches have left';

REVOKE EXECUTE ON FUNCTION millrace.user_history(text, text[]), millrace.track_history(text), millrace._maintain_history(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.user_history(text, text[]), millrace.track_history(text), millrace._maintain_history(text) TO @extowner@ WITH GRANT OPTION;
