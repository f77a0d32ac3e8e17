-- Watermarks and the three readings.  Each statement is a transaction of its own; all goes with the schema at the end.
SELECT plan(59);
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA modes;
SET search_path = modes, public;
\ir ../lib/streams.sql

CREATE TABLE events (at timestamptz, action text, v int);
SELECT millrace.create_continuous_aggregate('m', $$SELECT action, millrace.tumble(at, '1 minute') AS window_start, count(*) AS n, avg(v) AS mean FROM events GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('h', $$SELECT millrace.hop(at, '30 minutes', '10 minutes') AS window_start, action, count(*) AS n, sum(v) AS total FROM events GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('s', $$SELECT action, window_start, count(*) AS n, sum(v) AS total
	FROM (SELECT *, millrace.session(at, '5 minutes') OVER (PARTITION BY action ORDER BY at) AS window_start FROM events WHERE v IS NOT NULL) q GROUP BY 1, 2$$, watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('dropping', $$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM events WHERE action <> 'ignored' GROUP BY 1$$, '1 minute', 'drop');
SELECT millrace.create_continuous_aggregate('diverting', $$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM events GROUP BY 1$$, '1 minute', 'divert');
SELECT millrace.create_continuous_aggregate('joined', $$SELECT millrace.tumble(at, '1 minute') AS window_start, a.name, count(*) AS n FROM events JOIN (VALUES ('a', 'A'), ('b', 'B')) a(id, name) ON id = action GROUP BY 1, 2$$, '1 minute', 'divert');
SELECT millrace.create_continuous_aggregate('timeless', $$SELECT millrace.tumble(at, '1 minute') AS window_start, count(*) AS n FROM events GROUP BY 1$$);

INSERT INTO events SELECT '2024-01-01 10:00'::timestamptz + i * interval '7 s', chr(97 + i % 2), i FROM generate_series(0, 99) i;
SELECT is((SELECT count(*) FROM m_final), 0::bigint, 'a batch does not close windows by its own rows');
SELECT is(bool_or(final), false, 'none is final') FROM m;
SELECT is(differences('m') + differences('h') + differences('s') + differences('dropping') + differences('diverting') + differences('joined'), 0::bigint, 'all equal their queries');

-- Greatest time 10:11:33, watermark 10:10:33 for the next batch: windows before 10:10 are closed by it
INSERT INTO events VALUES ('2024-01-01 10:12:30', 'a', 5);
SELECT is(max(window_start), '2024-01-01 10:09+00', 'the next batch closes the windows that ended by the watermark') FROM m_final;
SELECT is(count(*), 20::bigint, 'all of them') FROM m_final;
SELECT is(count(*), 20::bigint, 'column final says the same') FROM m WHERE final;
SELECT is(max(window_start), '2024-01-01 09:40+00', 'a sliding window is closed when it has ended') FROM h_final;
SELECT is((SELECT count(*) FROM s_final), 0::bigint, 'a session that may go on is not closed');
SELECT is(millrace.last_closed_window('m'), '2024-01-01 10:09+00', 'last_closed_window');
SELECT is(millrace.last_closed_window('h'), '2024-01-01 09:40+00', 'of a sliding aggregate');
SELECT is(millrace.last_closed_window('timeless'), NULL, 'without a watermark');
SELECT throws_ok($$SELECT millrace.last_closed_window('s')$$, '42809', NULL, 'not of sessions');
SELECT throws_ok($$SELECT millrace.last_closed_window('none')$$, '42704', NULL, 'unknown name');

-- Late rows: before 10:11 for the batch that now comes (watermark 10:11:30)
SELECT max(cursor) AS before FROM m_changes(NULL) \gset
INSERT INTO events VALUES ('2024-01-01 10:01:01', 'a', 1000), ('2024-01-01 10:01:02', 'ignored', 1), ('2024-01-01 10:12:59', 'b', 2);
SELECT is(differences('m') + differences('h') + differences('s') + differences('timeless'), 0::bigint, 'update: NAME has them');
SELECT results_eq($$SELECT action, n, mean FROM m WHERE window_start = '2024-01-01 10:01' ORDER BY 1$$, $$VALUES ('a', 5::bigint, 210.4), ('b', 5, 13), ('ignored', 1, 1)$$, 'with their windows');
SELECT results_eq($$SELECT action, n, mean FROM m_final WHERE window_start = '2024-01-01 10:01' ORDER BY 1$$, $$VALUES ('a', 4::bigint, 13.0), ('b', 5, 13.0)$$, 'NAME_final keeps what it has shown');
SELECT results_eq(format($$SELECT window_start, action, n, final FROM m_changes(%L) ORDER BY 1, 2$$, :'before'),
	$$VALUES ('2024-01-01 10:01+00'::timestamptz, 'a', 5::bigint, true), ('2024-01-01 10:01+00', 'ignored', 1, true), ('2024-01-01 10:12+00', 'b', 1, false)$$, 'NAME_changes has the groups that changed');
SELECT is(n, 9::bigint, 'drop: as if they had not come') FROM dropping WHERE window_start = '2024-01-01 10:01';
SELECT is(n, 9::bigint, 'divert: too') FROM diverting WHERE window_start = '2024-01-01 10:01';
SELECT is(sum(n), 9::numeric, 'also where tables are joined') FROM joined WHERE window_start = '2024-01-01 10:01';
SELECT is(string_agg(concat_ws(' ', stream, reason, "row" ->> 'at', "row" ->> 'action', "row" ->> 'v'), '; ' ORDER BY stream, "row" ->> 'v' DESC),
	'diverting late 2024-01-01T10:01:01+00:00 a 1000; diverting late 2024-01-01T10:01:02+00:00 ignored 1; joined late 2024-01-01T10:01:01+00:00 a 1000; joined late 2024-01-01T10:01:02+00:00 ignored 1', 'they are kept') FROM millrace.late_row
	WHERE stream IN ('diverting', 'joined');
SELECT is(streams -> 'dropping' ->> 'late', '1', 'millrace.batches counts those that pass WHERE') FROM millrace.batches ORDER BY xid DESC LIMIT 1;
SELECT is(streams -> 'm' ->> 'late', '2', 'for each stream') FROM millrace.batches ORDER BY xid DESC LIMIT 1;
SELECT is(streams -> 'm' ->> 'watermark', '2024-01-01T10:11:30+00:00', 'with its watermark') FROM millrace.batches ORDER BY xid DESC LIMIT 1;
SELECT is(streams -> 'timeless' ->> 'watermark', NULL, 'which an aggregate may lack') FROM millrace.batches ORDER BY xid DESC LIMIT 1;
SELECT is((SELECT count(*) FROM timeless_final), 0::bigint, 'and then nothing is final');

-- What has been shown is never changed, whatever comes
CREATE TABLE shown AS SELECT * FROM m_final;
CREATE TABLE shown_h AS SELECT * FROM h_final;
INSERT INTO events SELECT '2024-01-01 10:00'::timestamptz + (i * 7919 % 900) * interval '1 s', chr(97 + i % 3), i FROM generate_series(1, 500) i;
INSERT INTO events VALUES ('2024-01-01 10:40', 'a', 1);
INSERT INTO events VALUES ('2024-01-01 10:41', 'a', 1);
SELECT is(count(*), 0::bigint, 'rows of NAME_final stay') FROM (TABLE shown EXCEPT ALL TABLE m_final) d;
SELECT is(count(*), 0::bigint, 'those of sliding windows, too') FROM (TABLE shown_h EXCEPT ALL TABLE h_final) d;
SELECT is(count(*), 0::bigint, 'no window that it has shown gets another group') FROM m_final f WHERE window_start <= (SELECT max(window_start) FROM shown) AND NOT EXISTS (SELECT FROM shown s WHERE s.* = f.*);
SELECT is(differences('m') + differences('h') + differences('s'), 0::bigint, 'NAME has it all');
SELECT isnt((SELECT count(*) FROM s_final), 0::bigint, 'sessions close when nothing can come to them');
SELECT is((SELECT count(*) FROM s_final f JOIN s USING (action, window_start) WHERE NOT s.final), 0::bigint, 'the column final agrees');

-- Times that must not move a watermark
SELECT max(window_start) AS closed FROM m_final \gset
INSERT INTO events VALUES (now() + interval '2 days', 'a', 1), ('infinity', 'a', 1), ('-infinity', 'a', 1), (NULL, 'a', 1);
INSERT INTO events VALUES ('2024-01-01 10:41:30', 'a', 1);
INSERT INTO events VALUES ('2024-01-01 10:41:31', 'a', 1);
SELECT is(max(window_start) FILTER (WHERE isfinite(window_start)), '2024-01-01 10:14+00', 'future and infinite times do not') FROM m_final;
SELECT is(array[differences('m'), differences('h'), differences('s'), differences('timeless')], '{0,0,0,0}', 'but they are counted');
SELECT is(count(*), 1::bigint, 'a row without a time has no window') FROM m WHERE window_start IS NULL AND NOT final;
BEGIN;
INSERT INTO events VALUES ('2024-01-01 12:00', 'a', 1);
ROLLBACK;
BEGIN;
INSERT INTO events VALUES ('2024-01-01 10:42', 'a', 1);
SAVEPOINT s;
INSERT INTO events VALUES ('2024-01-01 12:00', 'a', 1);
ROLLBACK TO s;
COMMIT;
INSERT INTO events VALUES ('2024-01-01 10:42:01', 'a', 1);
INSERT INTO events VALUES ('2024-01-01 10:42:02', 'a', 1);
SELECT is(max(window_start) FILTER (WHERE isfinite(window_start)), '2024-01-01 10:40+00', 'nor do those that were rolled back') FROM m_final;
BEGIN;
INSERT INTO events VALUES ('2024-01-01 11:00', 'a', 1);
INSERT INTO events VALUES ('2024-01-01 10:45', 'a', 1);
SELECT is(n, 1::bigint, 'a transaction does not make its own rows late') FROM dropping WHERE window_start = '2024-01-01 10:45';
COMMIT;
SELECT is(watermark, '1 minute', 'the catalog has the delay') FROM millrace.stream WHERE name = 'm';

-- Folding leaves all three as they are
CREATE TABLE before_m AS SELECT * FROM m; CREATE TABLE before_f AS SELECT * FROM m_final; CREATE TABLE before_h AS SELECT * FROM h; CREATE TABLE before_hf AS SELECT * FROM h_final;
CREATE TABLE before_s AS SELECT * FROM s; CREATE TABLE before_sf AS SELECT * FROM s_final;
SELECT max(cursor) AS before FROM m_changes(NULL) \gset
CREATE TABLE before_c AS SELECT * FROM m_changes(NULL);
SELECT millrace.compact(name) FROM millrace.stream WHERE name IN ('m', 'h', 's');
SELECT is(count(*), 0::bigint, 'folding empties NAME_delta') FROM (SELECT FROM m_delta UNION ALL SELECT FROM h_delta UNION ALL SELECT FROM s_delta) d;
SELECT is(count(*), 0::bigint, 'NAME is unchanged') FROM ((TABLE m EXCEPT ALL TABLE before_m) UNION ALL (TABLE before_m EXCEPT ALL TABLE m)) d;
SELECT is(count(*), 0::bigint, 'NAME_final is') FROM ((TABLE m_final EXCEPT ALL TABLE before_f) UNION ALL (TABLE before_f EXCEPT ALL TABLE m_final)) d;
SELECT is(count(*), 0::bigint, 'sliding: NAME') FROM ((TABLE h EXCEPT ALL TABLE before_h) UNION ALL (TABLE before_h EXCEPT ALL TABLE h)) d;
SELECT is(count(*), 0::bigint, 'sliding: NAME_final') FROM ((TABLE h_final EXCEPT ALL TABLE before_hf) UNION ALL (TABLE before_hf EXCEPT ALL TABLE h_final)) d;
SELECT is(count(*), 0::bigint, 'sessions: NAME') FROM ((TABLE s EXCEPT ALL TABLE before_s) UNION ALL (TABLE before_s EXCEPT ALL TABLE s)) d;
SELECT is(count(*), 0::bigint, 'sessions: NAME_final') FROM ((TABLE s_final EXCEPT ALL TABLE before_sf) UNION ALL (TABLE before_sf EXCEPT ALL TABLE s_final)) d;
SELECT is(count(*), 0::bigint, 'NAME_changes reports nothing new') FROM m_changes(:'before');
SELECT is(count(*), 0::bigint, 'and from the start, what it did') FROM (SELECT window_start, action, n, mean FROM m_changes(NULL) EXCEPT ALL SELECT window_start, action, n, mean FROM before_c) d;
SELECT is(count(DISTINCT (window_start, k1, part)), count(*), 'each group has one row of each part') FROM m_state;
SELECT is(count(*), 0::bigint, 'b, or l and f') FROM (SELECT FROM m_state GROUP BY window_start, k1 HAVING bool_or(part = 'b') AND count(*) > 1) q;

-- A changed definition takes the place of the old one; views over it stay
CREATE VIEW dashboard AS SELECT window_start, n FROM timeless;
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('timeless', $$SELECT millrace.tumble(at, '1 hour') AS window_start, count(*) AS n FROM events WHERE action = 'a' GROUP BY 1$$)$q$, 'a new definition');
SELECT throws_like($q$SELECT millrace.create_continuous_aggregate('timeless', $$SELECT millrace.tumble(at, '1 hour') AS window_start, sum(v) AS total FROM events GROUP BY 1$$)$q$, '%depend%', 'whose columns no longer fit the views over it');
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('diverting', $$SELECT action, millrace.tumble(at, '1 hour') AS hour, sum(v) AS total FROM events GROUP BY 1, 2$$)$q$, 'other columns');
SELECT is(differences('diverting'), 0::bigint, 'are fine where nothing depends on them');
SELECT is(differences('timeless'), 0::bigint, 'it is filled');
INSERT INTO events VALUES ('2024-01-01 11:01', 'a', 12345);
SELECT is(differences('timeless'), 0::bigint, 'and goes on');
SELECT is((SELECT sum(n) FROM dashboard), (SELECT count(*) FROM events WHERE action = 'a')::numeric, 'as does the view over it');
SELECT is(count(*), 0::bigint, 'the old tables are gone') FROM pg_class WHERE relname LIKE 'old\_%' AND relnamespace = 'modes'::regnamespace;

SELECT millrace.drop_continuous_aggregate(name) FROM millrace.stream WHERE name IN ('m', 'h', 's', 'dropping', 'diverting', 'joined');
SELECT is(string_agg(relname, ' ' ORDER BY relname), NULL, 'dropped with all that was made for them') FROM pg_class WHERE relnamespace = 'modes'::regnamespace AND relname ~ '^(m|h|s|dropping|diverting|joined)(_|$)';
SET client_min_messages = error;
DROP SCHEMA modes CASCADE;
SELECT is(count(*), 0::bigint, 'DROP SCHEMA leaves no stream') FROM millrace.stream;
SELECT * FROM finish();
