BEGIN;
SELECT no_plan();
SET LOCAL client_min_messages = error;

-- What belongs to a model goes without foreign keys, which pg_restore -j would not respect
SELECT is_empty($$ SELECT conrelid::regclass, conname FROM pg_constraint WHERE contype = 'f' AND connamespace = 'millrace'::regnamespace $$, 'tables of the extension can be filled in any order');
CREATE FUNCTION pg_temp.rows(OUT name text, OUT n bigint) RETURNS SETOF record LANGUAGE plpgsql AS $$
BEGIN
	FOR name IN SELECT t.name FROM unnest('{model,model_version,factors,training_iteration,item_features,item_features_block,custom_baseline,custom_baseline_block}'::text[]) AS t(name) LOOP
		EXECUTE format('SELECT count(*) FROM millrace.%I', name) INTO n;
		RETURN NEXT;
	END LOOP;
END $$;
CREATE TABLE r AS SELECT u, i FROM generate_series(1, 9) AS u, generate_series(1, 9) AS i WHERE (u + i) % 2 = 0;
CREATE TEMP TABLE done AS SELECT millrace.train_als(m, 'r', rank => 2, iterations => 3) FROM unnest('{a,a,a,b}'::text[]) AS m;
CREATE TEMP TABLE lists AS SELECT millrace.set_item_features(m, 'SELECT DISTINCT i, i % 2 FROM r')::text, millrace.set_baseline(m, 'SELECT DISTINCT i FROM r', 'own')::text AS b FROM unnest('{a,a,b}'::text[]) AS m;
CREATE TEMP TABLE before AS SELECT * FROM pg_temp.rows();
SELECT is(string_agg(name || ' ' || n, ', '), 'item_features 2, item_features_block 2, custom_baseline 2, custom_baseline_block 2', 'lists set again') FROM before WHERE name ~ 'item_features|baseline';
SELECT is(millrace.prune('a', 1), 2, 'two versions pruned');
SELECT is(b.n - a.n, CASE WHEN a.name = 'model_version' THEN 2 WHEN a.name = 'training_iteration' THEN 6 WHEN a.name = 'factors' THEN b.n / 2 ELSE 0 END, a.name) FROM pg_temp.rows() AS a JOIN before AS b USING (name);
SELECT millrace.drop_model('a');
SELECT results_eq('SELECT name, n FROM pg_temp.rows() ORDER BY 1', 'SELECT name, CASE name WHEN ''model_version'' THEN 1 WHEN ''training_iteration'' THEN 3 WHEN ''factors'' THEN n / 4 ELSE n / 2 END FROM before ORDER BY 1', 'a model dropped');
SELECT millrace.drop_model('b');
SELECT is(sum(n), 0::numeric, 'and the other') FROM pg_temp.rows();
SELECT * FROM finish();
ROLLBACK;
