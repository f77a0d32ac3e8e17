-- Rollups.  Windows become final when transactions end, so this file commits, and drops what it made.
SELECT plan(59);
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
CALL stress(0.25, 80);
SELECT is(count(*), 0::bigint, 'rollups equal their queries after every step, and final rows stay: ' || coalesce(min(what), '')) FROM wrong;
SELECT cmp_ok(count(*), '>', 50::bigint, 'windows are settled') FROM per_hour_state;
SELECT cmp_ok(count(*), '>', 1::bigint, 'days are, too') FROM per_day_final;
SELECT cmp_ok(count(*), '>', 30::bigint, 'and windows that slide') FROM last_three_state;
SELECT cmp_ok(count(*), '>', 30::bigint, 'and those over windows that slide') FROM of_sliding_state;
SELECT cmp_ok(count(*), '>', 10::bigint, 'late rows changed settled windows') FROM per_hour_state WHERE part = 'f';
SELECT cmp_ok(count(*), '>', 50::bigint, 'there are final windows') FROM seen WHERE name = 'per_hour';
SELECT follow();
SELECT is(count(*), 0::bigint, 'NAME_changes tells all that changes') FROM (
	(SELECT action, window_start, n, mean, list FROM copy EXCEPT ALL SELECT action, window_start, n, mean, list FROM per_hour)
	UNION ALL (SELECT action, window_start, n, mean, list FROM per_hour EXCEPT ALL SELECT action, window_start, n, mean, list FROM copy)) d;
SELECT is(count(*), 0::bigint, 'and nothing after it has') FROM per_hour_changes((SELECT cursor FROM position));
SELECT is(array_agg(DISTINCT final), '{t}', 'windows without end are final, and others that have ended') FROM per_hour WHERE window_start < (SELECT max(at) - interval '2 hours' FROM events WHERE at < 'infinity');
SELECT is(final, false, 'the last one is not') FROM per_hour WHERE isfinite(window_start) ORDER BY window_start DESC LIMIT 1;
SELECT is(count(*), 3::bigint, 'windows of no time and of infinite times are there') FROM per_day WHERE day IS NULL OR NOT isfinite(day);

-- maintain and compact settle; what is settled is not read from the input
CALL millrace.maintain();
SELECT is(count(*), 0::bigint, 'maintain settles what has changed') FROM rollups r JOIN millrace.stream s USING (name), millrace._rollup_redo(s.state);
SELECT is(millrace.compact('per_hour'), 0::bigint, 'compact finds nothing more');
SELECT is(state('maintained'), '', 'nothing shown has changed');
CREATE FUNCTION rows_read(query text) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
	line text;
	n bigint := 0;
BEGIN
	FOR line IN EXECUTE 'EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) ' || query LOOP
		n := n + coalesce((regexp_match(line, 'Scan.* on per_minute_state.*rows=(\d+)'))[1]::bigint, 0) + coalesce((regexp_match(line, 'Removed by.*: (\d+)'))[1]::bigint, 0);
	END LOOP;
	RETURN n;
END $$;
SELECT millrace.compact('per_minute');
ANALYZE per_minute_state, per_hour_state;
SET enable_seqscan = off;
SELECT cmp_ok(rows_read('SELECT * FROM per_hour'), '<', (SELECT count(*) / 3 FROM per_minute), 'reading a rollup reads the open windows of its input only');
SELECT cmp_ok(rows_read('SELECT * FROM per_hour_query'), '>', (SELECT count(*) / 2 FROM per_minute), 'its query reads all');
RESET enable_seqscan;

-- Corrections: what a refresh of the aggregate changes, or takes away, is seen in settled windows
CREATE TABLE gone AS SELECT window_start FROM per_hour_state WHERE part = 'b' GROUP BY 1 ORDER BY 1 LIMIT 1;
SELECT is(count(*) > 0, true, 'there is a settled window with rows') FROM per_hour, gone WHERE per_hour.window_start = gone.window_start;
DELETE FROM events USING gone WHERE at >= window_start AND at < window_start + interval '1 hour';
SELECT millrace.refresh('per_minute');
SELECT is(state('refreshed'), '', 'after a refresh');
SELECT is(count(*), 0::bigint, 'the rows are gone') FROM per_hour, gone WHERE per_hour.window_start = gone.window_start;
SELECT is(count(*) > 0, true, 'but not those that were final') FROM per_hour_final f, gone WHERE f.window_start = gone.window_start;
CALL millrace.maintain();
SELECT is(state('settled'), '', 'settled again');
SELECT is(count(*), 0::bigint, 'no window is read live any more') FROM rollups r JOIN millrace.stream s USING (name), millrace._rollup_redo(s.state);
SELECT millrace.refresh('per_hour', '2024-01-01', '2024-01-02');
SELECT is(state('refreshed itself'), '', 'a refresh of the rollup computes windows anew');

-- Retention: the input lets windows go, but not before they are settled; the rollup keeps them
SELECT millrace.create_continuous_aggregate('per_minute',
	'SELECT action, millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n, sum(amount) AS amount FROM events GROUP BY 1, 2', watermark => '2 minutes', retain => '5 hours');
DELETE FROM seen;
SELECT is(state('redefined'), '', 'an input that is replaced: all is computed anew');
CREATE TABLE before AS SELECT * FROM per_hour_query;
INSERT INTO events SELECT max(at) + interval '20 minutes', 'Open', 1 FROM events WHERE at < 'infinity';
CALL millrace.maintain('per_minute');
SELECT is(count(*), (SELECT count(*) FROM before), 'nothing goes that is not settled') FROM per_hour WHERE window_start <= (SELECT max(window_start) FROM before WHERE window_start < 'infinity') OR window_start IS NULL OR window_start = 'infinity';
CALL millrace.maintain();
INSERT INTO events SELECT max(at) + interval '30 minutes', 'Open', 1 FROM events WHERE at < 'infinity';
CALL millrace.maintain();
CALL millrace.maintain();
SELECT cmp_ok(min(window_start), '>', (SELECT max(at) - interval '8 hours' FROM events WHERE at < 'infinity'), 'the input has dropped its old windows') FROM per_minute WHERE window_start > '-infinity';
SELECT is(count(*), 0::bigint, 'the rollup has them all') FROM (SELECT action, window_start, n, mean, list FROM before WHERE window_start > '-infinity' AND window_start < (SELECT max(window_start) FROM before WHERE window_start < 'infinity')
	EXCEPT ALL SELECT action, window_start, n, mean, list FROM per_hour) d;
CREATE TABLE kept AS SELECT * FROM per_hour;
INSERT INTO events VALUES ('2024-01-01 00:00', 'Open', 5);
SELECT is(count(*), 0::bigint, 'a row for a window that is gone changes nothing') FROM (TABLE kept EXCEPT ALL TABLE per_hour) d;
SELECT is(millrace.compact('per_hour'), 0::bigint, 'nor when it is settled');
CREATE TABLE partly AS SELECT window_start AS minute, millrace.tumble(window_start, '1 hour') AS hour FROM per_minute WHERE window_start > '-infinity' ORDER BY 1 LIMIT 1;
SELECT cmp_ok(minute, '>', hour, 'an hour of which the input has a part') FROM partly;
INSERT INTO events SELECT minute, 'Open', 1 FROM partly;
SELECT is(count(*), 0::bigint, 'is not computed from that part') FROM (SELECT kept.* FROM kept, partly WHERE window_start = hour EXCEPT ALL TABLE per_hour) d;
SELECT millrace.create_continuous_aggregate('short', 'SELECT millrace.tumble(window_start, ''10 minutes'') AS ten, count(*) AS n FROM per_minute GROUP BY 1', retain => '1 hour');
SELECT millrace.compact('short');
INSERT INTO events SELECT max(at) + interval '70 minutes', 'Open', 1 FROM events WHERE at < 'infinity';
INSERT INTO events SELECT max(at) + interval '3 minutes', 'Open', 1 FROM events WHERE at < 'infinity';
SELECT millrace.compact('short');
SELECT cmp_ok(min(ten), '>=', (SELECT max(at) - interval '80 minutes' FROM events WHERE at < 'infinity'), 'a rollup''s own retention') FROM short WHERE ten > '-infinity';
SELECT is(count(*), (SELECT count(*) FROM short_query q WHERE q.ten >= (SELECT min(ten) FROM short WHERE ten > '-infinity')), 'keeps the others') FROM short WHERE ten > '-infinity';

-- Replacing
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('short', 'SELECT millrace.tumble(at, ''10 minutes'') AS ten, count(*) AS n FROM events GROUP BY 1')$$,
	'42710', 'continuous aggregate "short" reads another, its new query a table', 'by an aggregate over a table');
SELECT lives_ok($$SELECT millrace.create_continuous_aggregate('short', 'SELECT action, millrace.tumble(window_start, ''20 minutes'') AS twenty, sum(n) AS n FROM per_minute GROUP BY 1, 2')$$, 'by another rollup');
SELECT is(differences('short'), 0::bigint, 'which equals its query');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('per_minute', 'SELECT millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n FROM events GROUP BY 1')$$, '2BP01', NULL, 'an input whose columns change');

-- Refused queries
SELECT matches(refused('SELECT millrace.tumble(a.window_start, ''1 hour''), count(*) FROM per_minute a JOIN per_minute b USING (n) GROUP BY 1'), '^0A000.* more than once', 'the input twice');
SELECT matches(refused('SELECT millrace.tumble(max, ''1 hour''), count(*) FROM (SELECT max(window_start) FROM per_minute) s GROUP BY 1'), '^0A000.*not a table', 'a subquery');
SELECT matches(refused('SELECT millrace.tumble(window_start + ''1 hour'', ''1 hour''), count(*) FROM per_minute GROUP BY 1'), '^0A000.*anything but the window', 'a window over something else');
SELECT matches(refused('SELECT action, count(*) FROM per_minute GROUP BY 1'), '^0A000.*group by a window', 'no window');
SELECT matches(refused('SELECT count(*) FROM per_minute GROUP BY millrace.tumble(window_start, ''1 hour'')'), '^0A000.*show its window', 'a window that is not shown');
SELECT matches(refused('SELECT millrace.tumble(window_start, ''1 hour''), count(*) FROM names n LEFT JOIN per_minute p USING (action) GROUP BY 1'), '^0A000.*nullable side', 'the input on the nullable side');
SELECT millrace.create_continuous_aggregate('visits', 'SELECT action, window_start, count(*) AS n FROM (SELECT *, millrace.session(at, ''5 minutes'') OVER (PARTITION BY action ORDER BY at) AS window_start FROM events) s GROUP BY 1, 2');
SELECT matches(refused('SELECT millrace.tumble(window_start, ''1 hour''), count(*) FROM visits GROUP BY 1'), '^0A000 sessions cannot be rolled up', 'sessions');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('r', 'SELECT millrace.tumble(window_start, ''1 hour''), count(*) FROM per_minute GROUP BY 1', watermark => '1 hour')$$, '22023', NULL, 'a watermark of its own');

-- Rights: who may read NAME needs nothing else; the owner must be able to read the input
CREATE ROLE mr_reader;
CREATE ROLE mr_analyst;
GRANT USAGE ON SCHEMA rolling, millrace TO mr_reader, mr_analyst;
GRANT CREATE ON SCHEMA rolling TO mr_analyst;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_analyst;
GRANT SELECT ON per_hour, per_hour_final TO mr_reader;
SET ROLE mr_reader;
SELECT lives_ok('SELECT * FROM per_hour, per_hour_final', 'a reader');
SET ROLE mr_analyst;
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('mine', 'SELECT millrace.tumble(window_start, ''1 day'') AS day, count(*) AS n FROM per_hour GROUP BY 1')$$, '42501', NULL, 'an owner without rights on the input');
SELECT throws_ok($$SELECT millrace.compact('per_hour')$$, '42501', NULL, 'or on a rollup');
RESET ROLE;
GRANT SELECT ON per_hour, per_hour_final TO mr_analyst;
SET ROLE mr_analyst;
SELECT lives_ok($$SELECT millrace.create_continuous_aggregate('mine', 'SELECT millrace.tumble(window_start, ''1 day'') AS day, count(*) AS n FROM per_hour GROUP BY 1')$$, 'an owner with them, who does not own the source');
RESET ROLE;
CALL millrace.maintain('mine');
SELECT is(differences('mine'), 0::bigint, 'has a rollup');

-- Renaming, dropping
ALTER VIEW per_hour RENAME TO hourly;
ALTER VIEW hourly RENAME COLUMN n TO number;
SELECT lives_ok('SELECT * FROM per_day, mine', 'an input may be renamed');
SELECT is(differences('mine'), 0::bigint, 'and goes on');
ALTER VIEW hourly RENAME COLUMN number TO n;
ALTER VIEW hourly RENAME TO per_hour;
SELECT throws_ok($$SELECT millrace.drop_continuous_aggregate('per_hour')$$, '2BP01', 'continuous aggregate "per_hour" is read by "per_day", "last_three", "mine"', 'an input is not dropped');
SELECT millrace.drop_continuous_aggregate(n) FROM unnest('{mine,last_three,per_day}'::text[]) n;
SELECT lives_ok($$SELECT millrace.drop_continuous_aggregate('per_hour')$$, 'before what reads it');
SELECT is(count(*), 0::bigint, 'nothing of it is left') FROM pg_class WHERE relname LIKE 'per\_hour%';
DROP VIEW short;
SELECT is(count(*), 1::bigint, 'DROP VIEW drops a rollup') FROM millrace.rollup r LEFT JOIN pg_class c ON c.oid = r.state;
SELECT lives_ok('DROP TABLE events CASCADE', 'DROP TABLE of the source');
SELECT is(count(*), 0::bigint, 'takes rollups with it') FROM millrace.stream s FULL JOIN millrace.rollup r USING (state);
RESET search_path;
DROP SCHEMA rolling CASCADE;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA millrace FROM mr_analyst;
DROP OWNED BY mr_reader, mr_analyst;
DROP ROLE mr_reader, mr_analyst;
SELECT * FROM finish();
