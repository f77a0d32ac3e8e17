/*
 * Models: what is stored.  A model is a name with a kind, an owner and versions; what a version has learnt is never changed
 * once it is written, and which one is active stands in the model's row.  Written by C code as the owner of these tables; rights
 * on a model are those of its owner, a role, kept as regrole so that a dump names it, and by name, to be sure who it is.
 */
CREATE TABLE millrace.model (
	name text PRIMARY KEY CHECK (name <> ''),
	kind text NOT NULL CHECK (kind IN ('als', 'kmeans', 'indexer', 'scaler')),
	owner regrole NOT NULL,
	owner_name name NOT NULL,
	active int,
	last_version int NOT NULL,
	lists uuid NOT NULL DEFAULT gen_random_uuid()
);
COMMENT ON TABLE millrace.model IS 'Models; see the view millrace.models';
COMMENT ON COLUMN millrace.model.name IS 'Name that the functions take';
COMMENT ON COLUMN millrace.model.kind IS 'What its versions are: als, factors of users and items; kmeans, clusters; indexer, numbers for texts; scaler, scales of numbers';
COMMENT ON COLUMN millrace.model.owner IS 'Role that trained it first; its members may train, activate, prune and drop it';
COMMENT ON COLUMN millrace.model.owner_name IS 'Name of that role when it trained first. A role that has gone leaves a number, which another role may get after a restore: unless owner still has this name, the model is neither trained nor asked for what a user has, and only a superuser may activate, prune and drop it. After ALTER ROLE … RENAME a superuser sets it to the new name';
COMMENT ON COLUMN millrace.model.active IS 'Version that is served; NULL: none';
COMMENT ON COLUMN millrace.model.lists IS 'Identity of its categories and baselines for the active version, key of every cache made from them: another one whenever the version or a list changes';
COMMENT ON COLUMN millrace.model.last_version IS 'Greatest version number ever given; numbers do not come back';

-- The tables of models have no foreign keys: pg_restore -j fills tables of an extension in any order.
CREATE TABLE millrace.model_version (
	model text NOT NULL,
	version int NOT NULL,
	uuid uuid NOT NULL DEFAULT gen_random_uuid(),
	query text,
	settings text[] NOT NULL,
	parameters jsonb NOT NULL,
	metrics jsonb NOT NULL,
	users bigint,
	items bigint,
	ratings bigint,
	rows bigint,
	uses jsonb,
	views text[],
	created timestamptz NOT NULL DEFAULT clock_timestamp(),
	activated timestamptz,
	PRIMARY KEY (model, version)
);
COMMENT ON TABLE millrace.model_version IS 'Versions of models, one a training; see the view millrace.models';
COMMENT ON COLUMN millrace.model_version.model IS 'Name of the model';
COMMENT ON COLUMN millrace.model_version.version IS 'Number, from 1';
COMMENT ON COLUMN millrace.model_version.uuid IS 'Identity of what it has learnt, key of every cache made from that: a number can come back with something else after a point-in-time recovery';
COMMENT ON COLUMN millrace.model_version.query IS 'What it was trained on, as a query (of an als model the ratings); run as the owner, with these settings. NULL: imported without ratings';
COMMENT ON COLUMN millrace.model_version.settings IS 'Settings that give the query its meaning, as name=value';
COMMENT ON COLUMN millrace.model_version.parameters IS 'Arguments of the training, defaults included, and (not of als) the columns of its query';
COMMENT ON COLUMN millrace.model_version.metrics IS 'What the training measured: seconds and, by kind, loss (als), cost (kmeans) and others; with a hold-out metric (ndcg or rmse), metric_value, holdout (all that was measured, and the users it was measured on); reason: why retrain did not activate it, or had no gate';
COMMENT ON COLUMN millrace.model_version.users IS 'Distinct users; NULL for other kinds than als';
COMMENT ON COLUMN millrace.model_version.items IS 'Distinct items; NULL for other kinds than als';
COMMENT ON COLUMN millrace.model_version.ratings IS 'Distinct pairs of user and item that it was trained on; NULL for other kinds than als';
COMMENT ON COLUMN millrace.model_version.rows IS 'Rows of the query that it was trained on; NULL for als, which has ratings';
COMMENT ON COLUMN millrace.model_version.uses IS 'Other models that its query calls (index_of, scale and their like) and the version of each that was active, as {"name": version}; NULL: none';
COMMENT ON COLUMN millrace.model_version.views IS 'Views that its query reads, and those behind them, first those that others read; NULL: none';
COMMENT ON COLUMN millrace.model_version.created IS 'When it was made';
COMMENT ON COLUMN millrace.model_version.activated IS 'When it last became the active version; NULL: never';

CREATE TABLE millrace.factors (
	model text NOT NULL,
	version int NOT NULL,
	side text NOT NULL CHECK (side IN ('user', 'item', 'baseline', 'trained_on', 'usual')),
	block int NOT NULL CHECK (block >= 0),
	data bytea NOT NULL,
	PRIMARY KEY (model, version, side, block)
);
-- Floats do not compress, and uncompressed values can be read in part.
ALTER TABLE millrace.factors ALTER COLUMN data SET STORAGE EXTERNAL;
COMMENT ON TABLE millrace.factors IS 'Factor matrices in blocks of thousands of rows; format in extension/README.md';
COMMENT ON COLUMN millrace.factors.model IS 'Name of the model';
COMMENT ON COLUMN millrace.factors.version IS 'Version of the model';
COMMENT ON COLUMN millrace.factors.side IS 'user, item, or baseline (rank 1: number of users of each item), or trained_on (rank 2: fingerprint of what each user had), or usual (rank 1: mean value of each item where users have it)';
COMMENT ON COLUMN millrace.factors.block IS 'Number of the block, from 0; rows are in the order of their ids across blocks';
COMMENT ON COLUMN millrace.factors.data IS 'The block: header, ids, float4 factors, little-endian, checksummed';

CREATE TABLE millrace.training_iteration (
	model text NOT NULL,
	version int NOT NULL,
	iteration int NOT NULL,
	loss float8 NOT NULL,
	metric float8,
	seconds float8 NOT NULL,
	PRIMARY KEY (model, version, iteration)
);
COMMENT ON TABLE millrace.training_iteration IS 'History of trainings; see the view millrace.trainings';
COMMENT ON COLUMN millrace.training_iteration.model IS 'Name of the model';
COMMENT ON COLUMN millrace.training_iteration.version IS 'Version that the training made';
COMMENT ON COLUMN millrace.training_iteration.iteration IS 'Number of the iteration, from 1';
COMMENT ON COLUMN millrace.training_iteration.loss IS 'The objective after it; of a kmeans model its cost';
COMMENT ON COLUMN millrace.training_iteration.metric IS 'What it does on the hold-out, of a part of the users if there are many items: NDCG at k, or RMSE of explicit feedback; NULL: nothing was held out';
COMMENT ON COLUMN millrace.training_iteration.seconds IS 'Its duration, without measuring';

CREATE TABLE millrace.cluster (
	model text NOT NULL,
	version int NOT NULL,
	cluster int NOT NULL CHECK (cluster >= 0),
	size float8 NOT NULL,
	cost float8 NOT NULL,
	center float8[] NOT NULL,
	PRIMARY KEY (model, version, cluster)
);
COMMENT ON TABLE millrace.cluster IS 'What versions of models of kind kmeans have learnt; see millrace.cluster_centers';
COMMENT ON COLUMN millrace.cluster.model IS 'Name of the model';
COMMENT ON COLUMN millrace.cluster.version IS 'Version of the model';
COMMENT ON COLUMN millrace.cluster.cluster IS 'Number of the cluster, from 0';
COMMENT ON COLUMN millrace.cluster.size IS 'Rows that it was trained on which are in this cluster; with weights, the sum of theirs';
COMMENT ON COLUMN millrace.cluster.cost IS 'Sum of their squared distances from the center, each times its weight';
COMMENT ON COLUMN millrace.cluster.center IS 'The center, a number for each feature';

CREATE TABLE millrace.index_label (
	model text NOT NULL,
	version int NOT NULL,
	index int NOT NULL CHECK (index >= 0),
	value text NOT NULL,
	count bigint NOT NULL,
	PRIMARY KEY (model, version, index)
);
COMMENT ON TABLE millrace.index_label IS 'Values that models of kind indexer know, with their numbers';
COMMENT ON COLUMN millrace.index_label.model IS 'Name of the model';
COMMENT ON COLUMN millrace.index_label.version IS 'Version of the model';
COMMENT ON COLUMN millrace.index_label.index IS 'Number of the value, from 0: the most frequent first, equally frequent ones in bytewise order';
COMMENT ON COLUMN millrace.index_label.value IS 'The value as a text';
COMMENT ON COLUMN millrace.index_label.count IS 'Rows that had it when the indexer was fitted';

CREATE TABLE millrace.scale_column (
	model text NOT NULL,
	version int NOT NULL,
	position int NOT NULL CHECK (position >= 1),
	n bigint NOT NULL,
	mean float8 NOT NULL,
	stddev float8 NOT NULL,
	minimum float8 NOT NULL,
	maximum float8 NOT NULL,
	PRIMARY KEY (model, version, position)
);
COMMENT ON TABLE millrace.scale_column IS 'What models of kind scaler know of each feature';
COMMENT ON COLUMN millrace.scale_column.model IS 'Name of the model';
COMMENT ON COLUMN millrace.scale_column.version IS 'Version of the model';
COMMENT ON COLUMN millrace.scale_column.position IS 'Number of the feature, from 1';
COMMENT ON COLUMN millrace.scale_column.n IS 'Rows that had a number there';
COMMENT ON COLUMN millrace.scale_column.mean IS 'Their mean';
COMMENT ON COLUMN millrace.scale_column.stddev IS 'Their sample standard deviation; 0 of a single one';
COMMENT ON COLUMN millrace.scale_column.minimum IS 'The least';
COMMENT ON COLUMN millrace.scale_column.maximum IS 'The greatest';

SELECT pg_catalog.pg_extension_config_dump('millrace.model', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.model_version', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.factors', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.training_iteration', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.cluster', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.index_label', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.scale_column', '');

CREATE VIEW millrace.models AS
	SELECT m.name, m.kind, v.version, v.version IS NOT DISTINCT FROM m.active AS active, m.owner, v.parameters, v.metrics,
		v.users, v.items, v.ratings, v.query, v.created, v.activated, v.rows, v.uses
	FROM millrace.model AS m JOIN millrace.model_version AS v ON v.model = m.name;
COMMENT ON VIEW millrace.models IS 'Models, one row a version';
COMMENT ON COLUMN millrace.models.name IS 'Name that the functions take';
COMMENT ON COLUMN millrace.models.kind IS 'What its versions are: als, factors of users and items; kmeans, clusters; indexer, numbers for texts; scaler, scales of numbers';
COMMENT ON COLUMN millrace.models.version IS 'Number of the version, from 1';
COMMENT ON COLUMN millrace.models.active IS 'Whether this version is served';
COMMENT ON COLUMN millrace.models.owner IS 'Role whose members may train, activate, prune and drop the model';
COMMENT ON COLUMN millrace.models.parameters IS 'Arguments of the training, defaults included, and (not of als) the columns of its query';
COMMENT ON COLUMN millrace.models.metrics IS 'What the training measured: seconds and, by kind, loss (als), cost (kmeans) and others; with a hold-out metric (ndcg or rmse), metric_value, holdout (all that was measured, and the users it was measured on); reason: why retrain did not activate it, or had no gate';
COMMENT ON COLUMN millrace.models.users IS 'Distinct users; NULL for other kinds than als';
COMMENT ON COLUMN millrace.models.items IS 'Distinct items; NULL for other kinds than als';
COMMENT ON COLUMN millrace.models.ratings IS 'Distinct pairs of user and item that it was trained on; NULL for other kinds than als';
COMMENT ON COLUMN millrace.models.rows IS 'Rows of the query that it was trained on; NULL for als, which has ratings';
COMMENT ON COLUMN millrace.models.uses IS 'Other models that its query calls (index_of, scale and their like) and the version of each that was active, as {"name": version}; NULL: none';
COMMENT ON COLUMN millrace.models.query IS 'What it was trained on, as a query (of an als model the ratings); NULL: imported without';
COMMENT ON COLUMN millrace.models.created IS 'When it was made';
COMMENT ON COLUMN millrace.models.activated IS 'When it last became the active version; NULL: never';

CREATE FUNCTION millrace._same_version(model text, a int, b int, at timestamptz = 'infinity') RETURNS bool
	LANGUAGE sql STABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
	SELECT EXISTS (SELECT FROM millrace.model_version AS v WHERE v.model = $1 AND v.version = $2 AND v.created <= $4) AND ($2 = $3 OR NOT EXISTS (
		-- What both versions do to a row is there twice.
		SELECT FROM (
			SELECT pg_catalog.jsonb_build_array(i.index, i.value) FROM millrace.index_label AS i WHERE i.model = $1 AND i.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.to_jsonb(s) - 'version' - 'n' FROM millrace.scale_column AS s WHERE s.model = $1 AND s.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.jsonb_build_array(c.cluster, c.center) FROM millrace.cluster AS c WHERE c.model = $1 AND c.version IN ($2, $3)
			UNION ALL
			SELECT pg_catalog.jsonb_build_array(v.parameters->'on_unknown', v.parameters->'method', v.parameters->'on_null')
			FROM millrace.model_version AS v WHERE v.model = $1 AND v.version IN ($2, $3)) AS r (row)
		GROUP BY r.row HAVING pg_catalog.count(*) <> 2)) $$;
COMMENT ON FUNCTION millrace._same_version(text, int, int, timestamptz) IS 'Internal: whether two versions of a model of kind kmeans, indexer or scaler do the same to any row; false if one of them was pruned, or if a was made later than at, by a model of the same name';

CREATE VIEW millrace.trainings AS
	SELECT i.model, i.version, i.iteration, i.loss, i.metric, i.seconds FROM millrace.training_iteration AS i;
COMMENT ON VIEW millrace.trainings IS 'History of trainings, one row an iteration';
COMMENT ON COLUMN millrace.trainings.model IS 'Name of the model';
COMMENT ON COLUMN millrace.trainings.version IS 'Version that the training made';
COMMENT ON COLUMN millrace.trainings.iteration IS 'Number of the iteration, from 1';
COMMENT ON COLUMN millrace.trainings.loss IS 'The objective after it; of a kmeans model its cost';
COMMENT ON COLUMN millrace.trainings.metric IS 'What it does on the hold-out, of a part of the users if there are many items: NDCG at k, or RMSE of explicit feedback; NULL: nothing was held out';
COMMENT ON COLUMN millrace.trainings.seconds IS 'Its duration, without measuring';

GRANT SELECT ON millrace.model, millrace.model_version, millrace.factors, millrace.training_iteration, millrace.cluster,
	millrace.index_label, millrace.scale_column, millrace.models, millrace.trainings TO PUBLIC;

CREATE TYPE millrace.training AS (
	model text,
	version int,
	users bigint,
	items bigint,
	ratings bigint,
	rank int,
	iterations int,
	loss float8,
	seconds float8,
	metric text,
	metric_value float8,
	active bool,
	reason text,
	rows bigint
);
COMMENT ON TYPE millrace.training IS 'Result of a training: the version it made, distinct users, items and pairs it was trained on, rank, iterations done, the last loss, the duration, what was measured on the hold-out (ndcg or rmse) if there was one, whether the version is active, why not, and the rows it was trained on. What a kind of models does not have is NULL';
COMMENT ON COLUMN millrace.training.model IS 'Name of the model';
COMMENT ON COLUMN millrace.training.version IS 'Version that it made';
COMMENT ON COLUMN millrace.training.users IS 'Distinct users';
COMMENT ON COLUMN millrace.training.items IS 'Distinct items';
COMMENT ON COLUMN millrace.training.ratings IS 'Distinct pairs of user and item that it was trained on';
COMMENT ON COLUMN millrace.training.rank IS 'Numbers in a factor';
COMMENT ON COLUMN millrace.training.iterations IS 'Iterations done: fewer than asked for if the loss no longer fell';
COMMENT ON COLUMN millrace.training.loss IS 'The objective after the last; of a kmeans model its cost';
COMMENT ON COLUMN millrace.training.seconds IS 'Duration of the whole training';
COMMENT ON COLUMN millrace.training.metric IS 'What was measured on the hold-out: ndcg, or rmse of explicit feedback; NULL: nothing was held out';
COMMENT ON COLUMN millrace.training.metric_value IS 'Its value after the last iteration';
COMMENT ON COLUMN millrace.training.active IS 'Whether the version is served, from commit on';
COMMENT ON COLUMN millrace.training.reason IS 'Why it is not, or why retrain had no gate';
COMMENT ON COLUMN millrace.training.rows IS 'Rows of the query; NULL for als, which has ratings';

/* Not STRICT: a NULL argument is an error that names it. */
CREATE FUNCTION millrace.train_als(model text, ratings text, rank int = 64, iterations int = 15, regularization float8 = NULL,
	alpha float8 = 1, implicit bool = true, seed bigint = 1, threads int = 0, holdout float8 = 0, warm_start bool = false,
	activate bool = true, unobserved_weight float8 = 0.3, regularization_exponent float8 = NULL,
	value_transform text = 'none', nonnegative bool = false, tolerance float8 = 1e-6, k int = 10, own_history float8 = NULL,
	track_history bool = NULL)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_train_als';
COMMENT ON FUNCTION millrace.train_als(text, text, int, int, float8, float8, bool, bigint, int, float8, bool, bool, float8, float8, text, bool, float8, int, float8, bool) IS
'SELECT * FROM millrace.train_als(…): train a recommender by alternating least squares; makes a new version of the model, active at commit unless activate is false.
ratings: a table, a view or a query whose first columns are user, item (bigint, integer, smallint or text) and, if there is a third, value; values of the same pair are summed. It is stored, and later run as the model''s owner to see what a user has, and by retrain; so it must not read temporary tables.
implicit: the value is how often or how much, never negative; every pair weighs unobserved_weight, and a pair with a value above zero alpha * value more, towards 1 (Hu, Koren, Volinsky 2008, who have unobserved_weight => 1, regularization_exponent => 0). Otherwise the value is a rating to be predicted (ALS-WR, as in Spark).
value_transform: what is done to the sum of a pair: none, log1p (log(1 + value)), or binary (1 above zero, else 0). nonnegative: no factor is below zero.
The penalty of a row with n ratings is regularization * (n + unobserved_weight * rows of the other side)^regularization_exponent, without the second term when not implicit. NULL: 0.01 if implicit, 0.1 otherwise, both with exponent 1; the exponent is at most 10.
Ends before the last iteration when the loss falls by less than tolerance times itself; tolerance => 0: never.
holdout: part of the pairs that is not trained on, but measured: NDCG of the k best items that a user does not have, or RMSE if not implicit; after each iteration on so many users that it does not take long, in the end on at most 10,000. Which pairs depends on their ids and the seed only; something of each user and item stays.
own_history: how much the score of an item that a user has is raised in lists that may repeat it (recommend_top_k with exclude_seen => false): by own_history * log(1 + v), v being his value drawn towards the usual one, m * (1 + value) / (1 + m), and m about the mean value of those who have the item. 0: not at all. NULL: the least weight with about the best NDCG when the rows of some users are divided at random, lists are made from one half and compared with the other; 0 if not implicit, and where nobody does anything twice: no pair stands in more than one row, nor are the values counts (whole numbers, most often 1). parameters have the weight, metrics how it did; retrain chooses again.
warm_start: items that the active version knows start from its factors (with nonnegative, where none of them is negative), the others at random as by the seed; all of them at random if no version is active, or if it has seen pairs that are held out now.
track_history: keep what users have in a table of its own, as millrace.track_history does. NULL: where that is easy, the ratings being rows of a source; true: an error says why it cannot be done; false: it is not begun.
threads: 0 for one per processor; the result does not depend on it. Ends with an error, leaving nothing behind, when it would need more than millrace.max_memory.';

CREATE FUNCTION millrace.retrain(model text, iterations int = NULL, warm_start bool = true, holdout float8 = NULL,
	gate_tolerance float8 = 0.05, threads int = 0, seed bigint = NULL, activate bool = true)
	RETURNS millrace.training LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_retrain';
COMMENT ON FUNCTION millrace.retrain(text, int, bool, float8, float8, int, bigint, bool) IS
'SELECT * FROM millrace.retrain(…): train a model of any kind again on what its query returns now, as its owner and with the parameters of its active version (of the newest that was trained here, if the active one was not); makes a new version. iterations, holdout and seed, if not NULL, take the place of those parameters, in later retrainings of the version it makes too. warm_start, threads and activate are as in train_als.
The gate: what the new version does on its hold-out is compared with what the active version did on its own. If it is worse by more than gate_tolerance times that, the new version is stored, but not activated; a warning, the column reason of the result and metrics->>''reason'' in millrace.models say so. Without a hold-out of both, measured alike, there is no gate, and the reason says that.
Of kind kmeans: warm_start keeps the numbers of clusters, iterations is max_iterations; the gate compares what the rows that there are now cost under the new centers and under the active ones. A query that gives another number of features than before (of an indexer that has new values, say) is an error, unless warm_start is false; then there is no gate. Of kinds indexer and scaler iterations and seed mean nothing, and there is no gate; holdout means nothing of any of the three. An argument that means nothing must be NULL.
A warning names the models that were trained with what another version of this one did to rows.';

CREATE FUNCTION millrace.activate(model text, version int)
	RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_activate';
COMMENT ON FUNCTION millrace.activate(text, int) IS 'Serve this version of a model, from commit on; going back is activating an earlier one. A warning names the models that were trained with what another version of this one did to rows';

CREATE FUNCTION millrace.rollback(model text)
	RETURNS int LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_rollback';
COMMENT ON FUNCTION millrace.rollback(text) IS 'Serve the version before the active one, from commit on: the newest older one that has been active; returns its number';

CREATE FUNCTION millrace.prune(model text, keep int)
	RETURNS int LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_prune';
COMMENT ON FUNCTION millrace.prune(text, int) IS 'Remove all versions of a model but the newest `keep`, the active one, with keep above 1 the one that rollback would activate, and those that active versions of other models were trained with; returns how many were removed';

CREATE FUNCTION millrace.drop_model(model text)
	RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_drop_model';
COMMENT ON FUNCTION millrace.drop_model(text) IS 'Remove a model with all its versions and the trials of tune_als for it. A warning names the models in use that were trained with it';

CREATE FUNCTION millrace.user_factors(model text, OUT id text, OUT factor real[])
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_user_factors';
COMMENT ON FUNCTION millrace.user_factors(text) IS 'Factors of the users of a model''s active version, in the order of their ids';

CREATE FUNCTION millrace.item_factors(model text, OUT id text, OUT factor real[])
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_item_factors';
COMMENT ON FUNCTION millrace.item_factors(text) IS 'Factors of the items of a model''s active version, in the order of their ids';

REVOKE ALL ON FUNCTION millrace.train_als(text, text, int, int, float8, float8, bool, bigint, int, float8, bool, bool, float8, float8, text, bool, float8, int, float8, bool),
	millrace.retrain(text, int, bool, float8, float8, int, bigint, bool), millrace.activate(text, int),
	millrace.rollback(text), millrace.prune(text, int), millrace.drop_model(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.train_als(text, text, int, int, float8, float8, bool, bigint, int, float8, bool, bool, float8, float8, text, bool, float8, int, float8, bool),
	millrace.retrain(text, int, bool, float8, float8, int, bigint, bool), millrace.activate(text, int),
	millrace.rollback(text), millrace.prune(text, int), millrace.drop_model(text) TO @extowner@ WITH GRANT OPTION;
