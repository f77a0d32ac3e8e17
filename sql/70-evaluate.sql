/* How good a model is, and dividing rows for it. */
CREATE FUNCTION millrace.evaluate(model text, test text, k int = 10, exclude_seen bool = true, method text = 'model',
	own_history float8 = NULL, OUT metric text, OUT value float8)
	RETURNS SETOF record LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10 COST 100000 AS 'MODULE_PATHNAME', 'mr_evaluate';
COMMENT ON FUNCTION millrace.evaluate(text, text, int, bool, text, float8) IS
'Compare the k best items of each user with what the user has in the test: a table, view or query like the ratings of train_als, run as the caller, that the model was not trained on.
Relevant for a user are the test''s items with a value above zero (or no value), whether the model knows them or not. exclude_seen: without what the user has by the model''s ratings query, both in the lists and among the relevant. Otherwise lists are those of recommend_top_k with exclude_seen => false: what the user has by that query is raised by own_history (NULL: the model''s). Users are those that the model knows and for whom something is relevant; each counts once:
precision: mean of hits / k. recall: mean of hits / relevant. map: mean of the average precision, the sum over the hits of (hits down to its rank) / rank, divided by min(k, relevant). ndcg: mean of DCG / ideal DCG, a hit at rank r being worth 1 / log2(r + 1) and the ideal list having min(k, relevant) hits in front. hit_rate: share of the users with a hit. All as in Spark''s RankingMetrics. coverage: share of the model''s items that stand in the list of any of these users.
rmse: of a model of explicit feedback, the root mean square of value - prediction over the test''s pairs whose user and item the model knows (value: 1 if there is none; of the same pair summed; then as the model''s value_transform makes it); NULL otherwise.
users: the number of users. unknown_users, unknown_items: users and items of the test that the model does not know.
method: model, or baseline, which ranks the same users'' items by popularity. Metrics of lists are NULL when there are no users.';

CREATE FUNCTION millrace.split(key anyelement, fraction float8, seed bigint = 1)
	RETURNS bool LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_split';
COMMENT ON FUNCTION millrace.split(anyelement, float8, bigint) IS
'Whether a key belongs to this fraction: deterministic, by a hash of the key''s text form and the seed, the same on every machine. Growing the fraction only adds keys. NULL for a NULL key. The key is an integer, numeric, text, varchar, char, name, uuid, oid or bool; types whose text form can depend on settings are refused and must be cast.';
