-- Rollups.  Windows become final when transactions end, so this file commits, and drops what it made.
SELECT plan(47);
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA rolling;
SET search_path = rolling, public;
\ir ../lib/streams.sql

CREATE TABLE events (at timestamptz, action text, amount numeric);
SELECT millrace.create_continuous_aggregate('per_minute',
	'SELECT action, millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n, sum(amount) AS amount FROM events GROUP BY 1, 2', watermark => '2 minutes');
SELECT millrace.create_continuous_aggregate('sliding',
	'SELECT millrace.hop(at, ''15 minutes'', ''5 minutes'') AS w, count(*) AS n FROM events GROUP BY 1', watermark => '2 minutes');
INSERT INTO events SELECT at, 'Open', 1 FROM unnest('{2024-01-01 00:00,NULL,-infinity,infinity}'::timestamptz[]) at, generate_series(1, 2);

CREATE TABLE names (action text PRIMARY KEY, title text);
INSERT INTO names VALUES ('Open', 'opened'), ('Close', 'closed');
-- Any aggregate, other tables, HAVING; rollups of rollups, windows that slide over windows, and over windows that slide.
SELECT millrace.create_continuous_aggregate('per_hour', $$
	SELECT p.action, millrace.tumble(p.window_start, '1 hour') AS window_start, sum(p.n) AS n, avg(p.n) AS mean, max(p.n) AS most, count(DISTINCT p.n) AS kinds,
		percentile_cont(0.5) WITHIN GROUP (ORDER BY p.n) AS median, string_agg(p.n::text, ',' ORDER BY p.window_start) AS list, min(t.title) AS "the title"
	FROM per_minute p LEFT JOIN names t USING (action) WHERE p.n > 0 GROUP BY 1, 2 HAVING sum(p.n) > 1$$);
SELECT millrace.create_continuous_aggregate('per_day',
	'SELECT millrace.tumble(h.window_start, ''1 day'', timezone => ''Europe/Paris'') AS day, sum(n) AS n, max(mean) AS mean, json_agg(coalesce(action, ''-'') || n ORDER BY window_start, action) AS list FROM per_hour h GROUP BY 1');
SELECT millrace.create_continuous_aggregate('last_three', 'SELECT millrace.hop(window_start, ''3 hours'', ''1 hour''), sum(n) AS n, bool_and(final) AS all_final FROM per_hour GROUP BY 1');
SELECT millrace.create_continuous_aggregate('of_sliding', 'SELECT millrace.tumble(w, ''1 hour'') AS w, max(n) AS n, avg(n) AS mean FROM sliding GROUP BY 1');
CREATE TABLE rollups AS SELECT name FROM unnest('{per_hour,per_day,last_three,of_sliding}'::text[]) name;

-- Rows that a rollup and its query over the input differ in; rows of NAME_final that are gone or new in windows shown before
CREATE TABLE seen (name text, row_text text, n int);
CREATE FUNCTION state(what text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r text;
	wrong text := '';
	n bigint;
BEGIN
	FOR r IN SELECT name FROM rollups LOOP
		EXECUTE format('WITH a AS (SELECT (%1$s)::text AS x FROM %2$I), b AS (SELECT (%1$s)::text AS x FROM %3$I)
			SELECT count(*) FROM ((TABLE a EXCEPT ALL TABLE b) UNION ALL (TABLE b EXCEPT ALL TABLE a)) d',
			(SELECT 'ROW(' || string_agg(quote_ident(attname), ', ' ORDER BY attnum) || ')' FROM pg_attribute WHERE attrelid = (r || '_query')::regclass AND attnum > 0 AND attname <> 'all_final'), r, r || '_query') INTO n;
		wrong := wrong || CASE WHEN n > 0 THEN format('%s: %s of %s; ', what, n, r) ELSE '' END;
		EXECUTE format('WITH f AS (SELECT f::text AS x FROM %1$I f) SELECT count(*) FROM (SELECT row_text FROM seen WHERE name = %2$L EXCEPT ALL TABLE f) d', r || '_final', r) INTO n;
		wrong := wrong || CASE WHEN n > 0 THEN format('%s: %s final of %s; ', what, n, r) ELSE '' END;
		DELETE FROM seen WHERE name = r;
		EXECUTE format('INSERT INTO seen SELECT %2$L, f::text FROM %1$I f', r || '_final', r);
	END LOOP;
	RETURN wrong;
END $$;

-- A copy that is kept by what NAME_changes tells.
CREATE TABLE copy (LIKE per_hour);
CREATE TABLE position (cursor xid8);
INSERT INTO position VALUES (NULL);
CREATE FUNCTION follow() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	at xid8 := (SELECT cursor FROM position);
BEGIN
	CREATE TEMP TABLE news ON COMMIT DROP AS SELECT * FROM per_hour_changes(at);
	DELETE FROM copy c USING news n WHERE (c.action, c.window_start) IS NOT DISTINCT FROM (n.action, n.window_start);
	INSERT INTO copy SELECT action, window_start, n, mean, most, kinds, median, list, "the title", final FROM news;
	UPDATE position SET cursor = pg_snapshot_xmin(pg_current_snapshot());
	DROP TABLE news;
END $$;

CREATE TABLE wrong (what text);
CREATE PROCEDURE stress(seed float8, steps int) LANGUAGE plpgsql AS $$
DECLARE
	clock timestamptz := '2024-01-01 00:00';
	r text;
BEGIN
	PERFORM setseed(seed);
	FOR i IN 1 .. steps LOOP
		clock := clock + random() * interval '40 minutes';
		INSERT INTO events SELECT
			CASE WHEN random() < 0.002 THEN NULL WHEN random() < 0.1 THEN clock - random() ^ 3 * interval '4 days' ELSE clock - random() * interval '90 seconds' END,
			(ARRAY['Open', 'Close', NULL])[1 + (random() * 2)::int], (random() * 100)::int
			FROM generate_series(1, (random() * 30)::int);
		COMMIT;
		IF random() < 0.1 THEN
			BEGIN
				INSERT INTO events VALUES (clock - interval '5 hours', 'Open', 1);
				RAISE EXCEPTION 'undone';
			EXCEPTION WHEN raise_exception THEN
				NULL;
			END;
		END IF;
		IF random() < 0.2 THEN
			PERFORM follow();
			COMMIT;
		END IF;
		INSERT INTO wrong SELECT 'step ' || i || ' ' || s FROM state('batch') s WHERE s <> '';
		COMMIT;
		FOR r IN SELECT name FROM rollups WHERE random() < 0.15 ORDER BY random() LOOP
			PERFORM millrace.compact(r);
			COMMIT;
			INSERT INTO wrong SELECT 'step ' || i || ' ' || s FROM state('settled ' || r) s WHERE s <> '';
			COMMIT;
		END LOOP;
	END LOOP;
END $$;
CALL stress(0.25, 100);
SELECT is(count(*), 0::bigint, 'rollups equal their queries after every step, and final rows stay: ' || coalesce(min(what), '')) FROM wrong;
SELECT cmp_ok(count(*), '>', 100::bigint, 'windows are settled') FROM per_hour_state;
SELECT cmp_ok(count(*), '>', 3::bigint, 'days are, too') FROM per_day_state;
SELECT cmp_ok(count(*), '>', 100::bigint, 'and windows that slide') FROM last_three_state;
SELECT cmp_ok(count(*), '>', 100::bigint, 'and those over windows that slide') FROM of_sliding_state;
SELECT cmp_ok(count(*), '>', 10::bigint, 'late rows changed settled windows') FROM per_hour_state WHERE part = 'f';
SELECT cmp_ok(count(*), '>', 100::bigint, 'there are final windows') FROM seen WHERE name = 'per_hour';
SELECT follow();
SELECT is(count(*), 0::bigint, 'NAME_changes tells all that changes') FROM (
	(SELECT action, window_start, n, mean, list FROM copy EXCEPT ALL SELECT action, window_start, n, mean, list FROM per_hour)
	UNION ALL (SELECT action, window_start, n, mean, list FROM per_hour EXCEPT ALL SELECT action, window_start, n, mean, list FROM copy)) d;
SELECT is(count(*), 0::bigint, 'and nothing after it has') FROM per_hour_changes((SELECT cursor FROM position));
SELECT is(array_agg(DISTINCT final), '{t}', 'windows without end are final, and others that have ended') FROM per_hour WHERE window_start < (SELECT max(at) - interval '2 hours' FROM events WHERE at < 'infinity');
SELECT is(final, false, 'the last one is not') FROM per_hour WHERE isfinite(window_start) ORDER BY window_start DESC LIMIT 1;
SELECT is(count(*), 3::bigint, 'windows of no time and of infinite times are there') FROM per_day WHERE day IS NULL OR NOT isfinite(day);

-- What reading costs
SELECT millrace.compact(name) FROM rollups;
CREATE FUNCTION plan_of(query text) RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query; END $$;
