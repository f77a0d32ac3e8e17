/* Factors that were trained elsewhere. */
CREATE FUNCTION millrace.import_als(model text, users text, items text, ratings text = NULL, implicit bool = true, activate bool = true)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_import_als';
COMMENT ON FUNCTION millrace.import_als(text, text, text, text, bool, bool) IS
'SELECT * FROM millrace.import_als(…): make a new version of a model out of factors that were trained elsewhere (Spark, implicit, millrace.user_factors and item_factors of another database), to be served like one that was trained here.
users, items: a table, a view or a query, run as the caller, whose first columns are id (bigint, integer, smallint or text), once each, and factor (real[] or double precision[]): one dimension, 1 to 1024 finite numbers, as many in every row of both sides. The score of an item for a user is the inner product of their factors.
ratings: as for train_als; stored, and later run as the model''s owner to see what a user has; it also gives the baseline, what most users have, and the type in which ids are kept. NULL: nothing is excluded, an unknown user gets no rows, and ids are kept in the type they come in.
implicit: what the factors were trained on; evaluate tells the RMSE of a model that is not. activate: serve this version from commit on.';

REVOKE ALL ON FUNCTION millrace.import_als(text, text, text, text, bool, bool) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.import_als(text, text, text, text, bool, bool) TO @extowner@ WITH GRANT OPTION;
