/*
 * Indexers: numbers for the values of a column, fitted on rows, stored as a model of kind indexer, and applied to other rows.
 */
CREATE FUNCTION millrace.fit_indexer(name text, query text, on_unknown text = 'error', activate bool = true)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_fit_indexer';
COMMENT ON FUNCTION millrace.fit_indexer(text, text, text, bool) IS
'SELECT * FROM millrace.fit_indexer(…): number the values of a column from 0, the most frequent first, equally frequent ones in bytewise order; makes a new version of a model of kind indexer, active at commit unless activate is false.
query: a table, a view or a query, whose first column has the values; their text form is what counts. It is stored, and run again by retrain as the model''s owner; so it must not read temporary tables. NULLs are left out, and counted in metrics.
on_unknown: what index_of does with a value that is none of these, and with NULL: error; keep, all have one number behind the others; null, they have none.
The values are rows of millrace.index_label.';

CREATE FUNCTION millrace.index_of(name text, value text)
	RETURNS int LANGUAGE c STABLE PARALLEL SAFE COST 2 AS 'MODULE_PATHNAME', 'mr_index_of';
COMMENT ON FUNCTION millrace.index_of(text, text) IS 'Number of a value by the active version of an indexer, from 0; a value that it does not know, and NULL, as by its on_unknown: an error, the number behind all others, or NULL';

CREATE FUNCTION millrace.index_size(name text)
	RETURNS int LANGUAGE c STABLE PARALLEL SAFE COST 2 AS 'MODULE_PATHNAME', 'mr_index_size';
COMMENT ON FUNCTION millrace.index_size(text) IS 'How many numbers the active version of an indexer gives: one for each value it knows, and with on_unknown keep one more';

CREATE FUNCTION millrace.one_hot(index int, n int, drop_last bool = true)
	RETURNS float8[] LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_one_hot';
COMMENT ON FUNCTION millrace.one_hot(int, int, bool) IS 'A number from 0 to n - 1 as n numbers, all 0 but a 1 in its place; with drop_last without the last place, so that the last number is all 0';

REVOKE ALL ON FUNCTION millrace.fit_indexer(text, text, text, bool) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.fit_indexer(text, text, text, bool) TO @extowner@ WITH GRANT OPTION;
