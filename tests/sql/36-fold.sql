-- Merging states while batches come: random rows, some late, with keys that are equal and look different, or are null.  Not in one transaction.
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA fold_test;
SET search_path = fold_test, public;
SELECT plan(12);
\ir ../lib/streams.sql

-- Where PostgreSQL has ICU, 'a' and 'A' are one group.
DO $$ BEGIN
	CREATE COLLATION folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
EXCEPTION WHEN feature_not_supported OR invalid_parameter_value OR invalid_object_definition THEN
	CREATE COLLATION folded FROM "C";
END $$;
CREATE TABLE e (at timestamptz, n numeric, t text COLLATE folded, cash money, v numeric, i int);
-- money has no hash function.
SELECT millrace.create_continuous_aggregate('numbers', $$SELECT n, millrace.tumble(at, '1 minute') AS window_start, t, count(*) AS n_rows, avg(v) AS mean,
	var_samp(v) AS variance, min(t) AS least, max(v) FILTER (WHERE i > 5) AS most, sum(i) AS total, avg(i) AS i_mean, bool_or(i > 8) AS any_high FROM e GROUP BY 1, 2, 3$$, '2 minutes');
SELECT millrace.create_continuous_aggregate('sliding', $$SELECT millrace.hop(at, '5 minutes', '1 minute') AS window_start, n, count(v) AS n_values, avg(v) AS mean,
	stddev(i) AS deviation, max(t) AS greatest FROM e GROUP BY 1, 2$$, '2 minutes');
SELECT millrace.create_continuous_aggregate('cashed', $$SELECT cash, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n_rows, sum(v) AS total FROM e GROUP BY 1, 2$$, '2 minutes');
CREATE TABLE aggregate AS SELECT unnest(ARRAY['numbers', 'sliding', 'cashed']) AS name;

-- A function's columns have no collation but the default one: without texts
CREATE FUNCTION changes_columns(name text) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = name::regclass AND attnum > 0 AND atttypid <> 'text'::regtype
$$;
CREATE TABLE found (problem text);
CREATE TABLE folds (name text, n bigint, n_left bigint);
CREATE PROCEDURE snap(name text, since xid8) LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('DROP TABLE IF EXISTS live, final, changes; CREATE TABLE live AS TABLE %1$I; CREATE TABLE final AS TABLE %1$s_final;
		CREATE TABLE changes AS SELECT %3$s FROM %1$s_changes(%2$L)', name, since, changes_columns(name));
END $$;
CREATE FUNCTION compare(name text, since xid8, cursor xid8) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	keys text := CASE name WHEN 'numbers' THEN 'k1, k2' ELSE 'k1' END;
BEGIN
	EXECUTE format($q$INSERT INTO found
		SELECT '%1$s changed' FROM ((TABLE live EXCEPT ALL TABLE %1$I) UNION ALL (TABLE %1$I EXCEPT ALL TABLE live)) q UNION ALL
		SELECT '%1$s_final changed' FROM ((TABLE final EXCEPT ALL TABLE %1$s_final) UNION ALL (TABLE %1$s_final EXCEPT ALL TABLE final)) q UNION ALL
		SELECT '%1$s_changes differs' FROM ((TABLE changes EXCEPT ALL SELECT %2$s FROM %1$s_changes(%3$L))
			UNION ALL (SELECT %2$s FROM %1$s_changes(%3$L) EXCEPT ALL TABLE changes)) q UNION ALL
		SELECT '%1$s_changes has something new' FROM %1$s_changes(%4$L) UNION ALL
		SELECT '%1$s_state has more than b, or l and f' FROM %1$s_state GROUP BY open_from, window_start, %5$s
			HAVING count(*) <> count(DISTINCT part) OR (bool_or(part = 'b') AND count(*) > 1)$q$, name, changes_columns(name), since, cursor, keys);
END $$;
SELECT setseed(0.36);
DO $$
DECLARE
	t timestamptz := '2024-01-01';
	since xid8 := '0';
	before xid8;
	chosen text;
	n bigint;
	n_left bigint;
BEGIN
	FOR b IN 1..120 LOOP
		INSERT INTO e SELECT CASE WHEN random() < 0.98 THEN t + random() * interval '90 seconds' - CASE WHEN random() < 0.2 THEN random() * interval '9 minutes' ELSE '0' END END,
			(ARRAY[1.0, 1.00, 1, 2, NULL])[ceil(random() * 5)::int], (ARRAY['a', 'A', 'b', NULL])[ceil(random() * 4)::int],
			(ARRAY[1, 2, NULL])[ceil(random() * 3)::int]::money, CASE WHEN random() < 0.9 THEN (random() * 1000)::numeric(8, 2) END, (random() * 10)::int
			FROM generate_series(1, 1 + (random() * 12)::int);
		t := t + random() * interval '40 seconds';
		COMMIT;
		IF random() < 0.1 THEN
			since := pg_snapshot_xmin(pg_current_snapshot());
		END IF;
		FOR j IN 1..2 LOOP
			CONTINUE WHEN random() < 0.5;
			SELECT name INTO chosen FROM aggregate ORDER BY random() LIMIT 1;
			COMMIT;
			CALL snap(chosen, since);
			COMMIT;
			before := pg_snapshot_xmin(pg_current_snapshot());
			n := millrace._compact(chosen, random() < 0.5);
			COMMIT;
			PERFORM compare(chosen, since, before);
			EXECUTE format('SELECT count(*) FROM %s_delta', chosen) INTO n_left;
			INSERT INTO folds VALUES (chosen, n, n_left);
			COMMIT;
		END LOOP;
		INSERT INTO found SELECT name || ' differs from its query' FROM aggregate WHERE differences(name) > 0;
		COMMIT;
	END LOOP;
END $$;
SELECT is(string_agg(problem, '; '), NULL, 'merging does not show') FROM (SELECT DISTINCT problem FROM found ORDER BY 1 LIMIT 5) q;
SELECT cmp_ok(count(*), '>', 5::bigint, name || ' was merged') FROM folds WHERE n > 0 GROUP BY name ORDER BY name;
SELECT ok(EXISTS (SELECT FROM numbers_state WHERE part = 'f'), 'late rows came to final windows');
SELECT ok(EXISTS (SELECT FROM sliding_state WHERE open_from IS NOT NULL), 'and to panes of which some were');
SELECT millrace.compact(name) FROM aggregate;
SELECT is((SELECT count(*) FROM numbers_delta) + (SELECT count(*) FROM sliding_delta) + (SELECT count(*) FROM cashed_delta), 0::bigint, 'all is merged in the end');
SELECT millrace.compact('cashed');
SELECT is(count(*), count(DISTINCT (window_start, k1, part)), 'groups of a type without a hash function') FROM cashed_state;

-- Large values, and more than fits into the memory of one go
CREATE TABLE wide (at timestamptz, k text);
SELECT millrace.create_continuous_aggregate('widest', $$SELECT k, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, max(k) AS most FROM wide GROUP BY 1, 2$$);
SET maintenance_work_mem = '1MB';
-- No batch folds by itself here: it would be by its transaction's id whether it does.
SET default_transaction_isolation = 'repeatable read';
INSERT INTO wide SELECT '2024-01-01'::timestamptz + i * interval '10 ms', i % 3001 FROM generate_series(1, 20000) i;
INSERT INTO wide SELECT '2024-01-01'::timestamptz + i * interval '1 s', (SELECT string_agg(md5((i / 2 * 1000 + j)::text), '') FROM generate_series(1, 300) j) FROM generate_series(1, 50) i;
INSERT INTO wide SELECT '2024-01-01'::timestamptz + i * interval '10 ms', i % 3001 FROM generate_series(1, 20000) i;
RESET default_transaction_isolation;
SELECT cmp_ok(millrace.compact('widest'), '>', (SELECT count(*) FROM widest_query), 'groups come back in a later portion');
SELECT is((SELECT count(*) FROM widest_state), (SELECT count(*) FROM widest_query), 'as many rows as groups, though it took several portions');
SELECT is(differences('widest'), 0::bigint, 'all of them right');
DROP INDEX widest_state_window_start_idx;
INSERT INTO wide VALUES ('2024-01-01', 'a');
SELECT throws_ok($$SELECT millrace.compact('widest')$$, '55000', 'state table "widest_state" has no index on window_start', 'an index is gone');

SET client_min_messages = error;
DROP SCHEMA fold_test CASCADE;
SELECT * FROM finish();
