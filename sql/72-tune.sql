/* Searching for parameters. */
CREATE SEQUENCE millrace.tuning_run;
COMMENT ON SEQUENCE millrace.tuning_run IS 'Numbers of the runs of tune_als';

CREATE TABLE millrace.tuning (
	run bigint NOT NULL,
	trial int NOT NULL,
	model text NOT NULL,
	started timestamptz NOT NULL DEFAULT now(),
	parameters jsonb NOT NULL,
	metrics jsonb NOT NULL,
	metric text NOT NULL,
	value float8,
	seconds float8 NOT NULL,
	best bool NOT NULL,
	error text,
	PRIMARY KEY (run, trial)
);
COMMENT ON TABLE millrace.tuning IS 'Trials of tune_als; see the view millrace.tunings';
COMMENT ON COLUMN millrace.tuning.run IS 'Number of the call of tune_als';
COMMENT ON COLUMN millrace.tuning.trial IS 'Number of the trial, from 1';
COMMENT ON COLUMN millrace.tuning.model IS 'Name of the model that was tuned for';
COMMENT ON COLUMN millrace.tuning.started IS 'Start of the call''s transaction';
COMMENT ON COLUMN millrace.tuning.parameters IS 'Arguments of the trial''s training, defaults included';
COMMENT ON COLUMN millrace.tuning.metrics IS 'All that was measured, the iterations done and the last loss';
COMMENT ON COLUMN millrace.tuning.metric IS 'What the trials were compared by';
COMMENT ON COLUMN millrace.tuning.value IS 'Its value; NULL: the trial failed';
COMMENT ON COLUMN millrace.tuning.seconds IS 'Duration of training and measuring';
COMMENT ON COLUMN millrace.tuning.best IS 'Whether the trial is the run''s best';
COMMENT ON COLUMN millrace.tuning.error IS 'Why the trial failed; NULL: it did not';

SELECT pg_catalog.pg_extension_config_dump('millrace.tuning', '');
SELECT pg_catalog.pg_extension_config_dump('millrace.tuning_run', '');

CREATE VIEW millrace.tunings AS
	SELECT t.run, t.model, t.started, t.trial, t.metric, t.value, t.best, t.parameters, t.metrics, t.seconds, t.error FROM millrace.tuning AS t;
COMMENT ON VIEW millrace.tunings IS 'Trials of tune_als, one row a trial';
COMMENT ON COLUMN millrace.tunings.run IS 'Number of the call of tune_als';
COMMENT ON COLUMN millrace.tunings.model IS 'Name of the model that was tuned for';
COMMENT ON COLUMN millrace.tunings.started IS 'Start of the call''s transaction';
COMMENT ON COLUMN millrace.tunings.trial IS 'Number of the trial, from 1';
COMMENT ON COLUMN millrace.tunings.metric IS 'What the trials were compared by';
COMMENT ON COLUMN millrace.tunings.value IS 'Its value; NULL: the trial failed';
COMMENT ON COLUMN millrace.tunings.best IS 'Whether the trial is the run''s best';
COMMENT ON COLUMN millrace.tunings.parameters IS 'Arguments of the trial''s training, defaults included';
COMMENT ON COLUMN millrace.tunings.metrics IS 'All that was measured, the iterations done and the last loss';
COMMENT ON COLUMN millrace.tunings.seconds IS 'Duration of training and measuring';
COMMENT ON COLUMN millrace.tunings.error IS 'Why the trial failed; NULL: it did not';

GRANT SELECT ON millrace.tuning, millrace.tuning_run, millrace.tunings TO PUBLIC;

CREATE FUNCTION millrace.tune_als(model text, ratings text, grid jsonb, metric text = NULL, k int = 10, holdout float8 = 0.2,
	validation text = NULL, exclude_seen bool = true, seed bigint = 1, threads int = 0, train bool = false,
	OUT run bigint, OUT trial int, OUT trials int, OUT parameters jsonb, OUT metrics jsonb, OUT metric_name text, OUT value float8,
	OUT seconds float8, OUT version int)
	RETURNS record LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'mr_tune_als';
COMMENT ON FUNCTION millrace.tune_als(text, text, jsonb, text, int, float8, text, bool, bigint, int, bool) IS
'SELECT * FROM millrace.tune_als(…): train with every combination of parameters in a grid, measure each on pairs that it was not trained on, and return the best trial. All trials are kept in millrace.tunings, and told as they end; the first of equals is the best.
grid: ''{"rank": [16, 64], "regularization": [0.003, 0.01, 0.03], "alpha": 2}'': names of arguments of train_als, each with a list of values or one value, null where train_als takes NULL. Keys count in alphabetical order, the last changes fastest; at most 10,000 combinations. What the grid does not name has train_als''s default.
metric: precision, recall, map, ndcg, hit_rate or coverage at k, as in millrace.evaluate, or rmse, for explicit feedback only and the only one of which less is better. NULL: rmse if no trial is implicit, else ndcg.
holdout: part of the pairs of ratings that is held out of all trials, chosen by a hash of the pair and the seed; each user and each item keeps one.
validation: instead of that a table, view or query like the ratings, run as the caller, for example a later time; relevant are its items with a value above zero. Pairs that are in the ratings too then count only with exclude_seen => false, which also leaves in the lists what users have, raised by own_history as in recommend_top_k: for what is bought again.
A trial fails, and the others go on, when its equations have no solution at single precision or it needs more than millrace.max_memory.
train: also train the model on all of ratings with the best parameters, as train_als does; its version is returned. Whoever may train the model may tune it.';

REVOKE ALL ON FUNCTION millrace.tune_als(text, text, jsonb, text, int, float8, text, bool, bigint, int, bool) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.tune_als(text, text, jsonb, text, int, float8, text, bool, bigint, int, bool) TO @extowner@ WITH GRANT OPTION;
