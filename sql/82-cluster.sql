/* Clusters of rows: training, assigning, judging.  What versions have learnt stands in millrace.cluster. */

/* Not STRICT: a NULL argument is an error that names it. */
CREATE FUNCTION millrace.train_kmeans(model text, query text, k int, seed bigint = 1, max_iterations int = 20, starts int = 4,
	tolerance float8 = 1e-4, weight name = NULL, warm_start bool = false, activate bool = true, threads int = 0)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_train_kmeans';
COMMENT ON FUNCTION millrace.train_kmeans(text, text, int, bigint, int, int, float8, name, bool, bool, int) IS
'SELECT * FROM millrace.train_kmeans(…): divide rows into k clusters around centers, so that the cost, the sum of squared distances of the rows to their centers, is small; makes a new version of the model, active at commit unless activate is false.
query: a table, a view or a query whose columns are the features: numbers or boolean, or arrays of numbers, which have one length in all rows; put one behind the other they are what kmeans_assign is given; all columns count, so leave ids out, and scale what is not in one unit (millrace.scale). It is stored, and run again by retrain as the model''s owner; so it must not read temporary tables. No value may be NULL: coalesce(value, 0) makes it 0.
weight: name of the column that says how much a row counts, at least 0; it is no feature.
seed decides where the centers start; starts: how many beginnings are tried, of which the best goes on. The same rows in the same order give the same centers, on one machine, whatever threads are (0: one per processor).
Ends after max_iterations, or before when the cost falls by less than tolerance times itself (tolerance => 0: only when no row changes its cluster).
Clusters are numbered from 0, the largest first. warm_start: starts from the centers of the active version, whose clusters keep their numbers; from the seed if no version is active.
metrics in millrace.models have cost, seconds, rows, points (rows, equal ones being one where that pays) and iterations; millrace.trainings the cost after each iteration.
Ends with an error, leaving nothing behind, when it would need more than millrace.max_memory.';

CREATE FUNCTION millrace.kmeans_assign(model text, features float8[])
	RETURNS int LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_kmeans_assign';
COMMENT ON FUNCTION millrace.kmeans_assign(text, float8[]) IS 'Number of the cluster of a model''s active version whose center is nearest to these features (of two as near, the lower number): all columns of the training''s query, put one behind the other';

CREATE FUNCTION millrace.kmeans_distance(model text, features float8[])
	RETURNS float8 LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_kmeans_distance';
COMMENT ON FUNCTION millrace.kmeans_distance(text, float8[]) IS 'Distance (Euclidean) of these features to the center that is nearest; rows far from all centers are unlike what the model was trained on';

CREATE FUNCTION millrace.cluster_centers(model text, version int = NULL, OUT cluster int, OUT size float8, OUT cost float8,
	OUT center float8[])
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED ROWS 20 AS 'MODULE_PATHNAME', 'mr_cluster_centers';
COMMENT ON FUNCTION millrace.cluster_centers(text, int) IS 'Clusters of a version of a model (NULL: of the active one), by number: rows that it was trained on (with weights, the sum of theirs), the sum of their squared distances to the center, and the center';

CREATE FUNCTION millrace.kmeans_cost(model text, query text)
	RETURNS float8 LANGUAGE c STABLE PARALLEL UNSAFE COST 100000 AS 'MODULE_PATHNAME', 'mr_kmeans_cost';
COMMENT ON FUNCTION millrace.kmeans_cost(text, text) IS 'Cost of the rows of a query under a model''s active version: the sum of the squared distances to the nearest center. The query has the columns of the training''s, the weight too if there is one; it runs as the caller';

CREATE FUNCTION millrace.silhouette(model text, query text, metric text = 'squared_euclidean', sample int = 10000, seed bigint = 1)
	RETURNS float8 LANGUAGE c STABLE PARALLEL UNSAFE COST 100000 AS 'MODULE_PATHNAME', 'mr_silhouette';
COMMENT ON FUNCTION millrace.silhouette(text, text, text, int, bigint) IS
'How well a model''s active version separates the rows of a query, from -1 to 1: the mean over the rows of (b - a) / max(a, b), where a is the mean distance to the other rows of the same cluster, b the least mean distance to the rows of another; 0 for a row that is alone in its cluster. The query is as for kmeans_cost; a row of weight w counts as w rows.
metric: squared_euclidean, exact, of all rows, as Spark''s ClusteringEvaluator has it; or euclidean, as scikit-learn has it, of a sample of so many rows (with weights: distinct rows), drawn by the seed, or of all if they are no more.
The rows must be in two clusters at least.';

REVOKE ALL ON FUNCTION millrace.train_kmeans(text, text, int, bigint, int, int, float8, name, bool, bool, int) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.train_kmeans(text, text, int, bigint, int, int, float8, name, bool, bool, int) TO @extowner@ WITH GRANT OPTION;
