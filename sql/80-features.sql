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

/*
 * Scalers: features brought to comparable sizes by what their columns were like in the rows of a query, stored as a model of
 * kind scaler, and applied to other rows.
 */
CREATE FUNCTION millrace.fit_scaler(name text, query text, method text = 'standard', on_null text = 'error', activate bool = true)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_fit_scaler';
COMMENT ON FUNCTION millrace.fit_scaler(text, text, text, text, bool) IS
'SELECT * FROM millrace.fit_scaler(…): learn what the columns of a query are like; makes a new version of a model of kind scaler, active at commit unless activate is false.
query: a table, a view or a query; each column is a number or an array of numbers with the same width in all rows, one behind the other. It is stored, and run again by retrain as the model''s owner; so it must not read temporary tables.
method: what scale makes of a number x. standard: (x - mean) / stddev, with the sample standard deviation, as Spark''s StandardScaler with mean (scikit-learn has that of the population); stddev: x / stddev; minmax: (x - minimum) / (maximum - minimum), which may leave the range from 0 to 1 for rows that were not among these; none: x. A column that is the same in all rows becomes 0, but with none.
on_null: what NULL is. error; zero, the number 0; mean, not counted, and the mean when it is scaled; keep, not counted, and still NULL when it is scaled.
The columns are rows of millrace.scale_column.';

CREATE FUNCTION millrace.scale(name text, features float8[])
	RETURNS float8[] LANGUAGE c STABLE STRICT PARALLEL SAFE COST 2 AS 'MODULE_PATHNAME', 'mr_scale';
COMMENT ON FUNCTION millrace.scale(text, float8[]) IS 'Features scaled by the active version of a scaler; NULL among them as by its on_null';

CREATE FUNCTION millrace.unscale(name text, features float8[])
	RETURNS float8[] LANGUAGE c STABLE STRICT PARALLEL SAFE COST 2 AS 'MODULE_PATHNAME', 'mr_unscale';
COMMENT ON FUNCTION millrace.unscale(text, float8[]) IS 'What scale makes these features of, by the active version of a scaler; a column that was the same in all rows is its mean again';

REVOKE ALL ON FUNCTION millrace.fit_scaler(text, text, text, text, bool) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.fit_scaler(text, text, text, text, bool) TO @extowner@ WITH GRANT OPTION;
