-- Refresh and final windows: these need transactions of their own.
SET client_min_messages = error;
SET timezone = 'UTC';
\ir ../lib/streams.sql
SELECT * FROM no_plan();
CREATE TABLE fin (at timestamptz, a text, v int);
SELECT millrace.create_continuous_aggregate('fm', 'SELECT a, millrace.tumble(at, ''1 minute'') AS window_start, count(*) AS n, sum(v) FROM fin GROUP BY 1, 2', watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('fh', 'SELECT a, millrace.hop(at, ''1 hour'', ''10 minutes'') AS window_start, count(*) AS n, sum(v) FROM fin GROUP BY 1, 2', watermark => '1 minute');
SELECT millrace.create_continuous_aggregate('fs', 'SELECT a, window_start, count(*) AS n, sum(v) FROM (SELECT *, millrace.session(at, ''1 minute'') OVER (PARTITION BY a ORDER BY at) AS window_start FROM fin) q GROUP BY 1, 2', watermark => '1 minute');
INSERT INTO fin SELECT '2024-01-01 10:00'::timestamptz + i * interval '7 s', 'a' || i % 13, i FROM generate_series(1, 2000) i;
INSERT INTO fin VALUES ('2024-01-01 20:00', 'a1', 1);
INSERT INTO fin VALUES ('2024-01-01 20:00', 'a1', 1);
CREATE TABLE fm_was AS TABLE fm_final;
CREATE TABLE fh_was AS TABLE fh_final;
CREATE TABLE fs_was AS TABLE fs_final;
CREATE FUNCTION final_changes() RETURNS bigint LANGUAGE sql AS $$
	SELECT count(*) FROM ((TABLE fm_was EXCEPT TABLE fm_final) UNION ALL (TABLE fm_final EXCEPT TABLE fm_was)
		UNION ALL (TABLE fh_was EXCEPT TABLE fh_final) UNION ALL (TABLE fh_final EXCEPT TABLE fh_was)
		UNION ALL (TABLE fs_was EXCEPT TABLE fs_final) UNION ALL (TABLE fs_final EXCEPT TABLE fs_was)) q
$$;
SELECT isnt(count(*), 0::bigint, 'windows are final') FROM fm_was;
UPDATE fin SET v = v;
SELECT millrace.refresh('fm'), millrace.refresh('fh'), millrace.refresh('fs');
SELECT is((SELECT count(*) FROM fm_state WHERE part <> 'b') + (SELECT count(*) FROM fs_state WHERE part <> 'b'), 0::bigint, 'where nothing differs, nothing is revised');
UPDATE fin SET v = v + 1, at = at + interval '30 minutes' WHERE v % 5 = 0;
DELETE FROM fin WHERE v % 11 = 0;
SELECT millrace.refresh('fm'), millrace.refresh('fh'), millrace.refresh('fs');
SELECT is(concat_ws(' ', differences('fm'), differences('fh'), differences('fs')), '0 0 0', 'corrections show in NAME');
SELECT is(final_changes(), 0::bigint, 'but not in NAME_final');
SELECT isnt(count(*), 0::bigint, 'they are kept apart') FROM fm_state WHERE part = 'f';
INSERT INTO fin VALUES ('2024-01-01 10:30', 'a1', 100);
SELECT is(concat_ws(' ', differences('fm'), differences('fh'), differences('fs')), '0 0 0', 'late rows come on top');
UPDATE fin SET v = v - 1 WHERE v % 3 = 0;
SELECT millrace.refresh('fm'), millrace.refresh('fh'), millrace.refresh('fs');
SELECT is(concat_ws(' ', differences('fm'), differences('fh'), differences('fs')), '0 0 0', 'and again');
SELECT is(final_changes(), 0::bigint, 'NAME_final stays');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT throws_ok($$SELECT millrace.refresh('fm')$$, '25001', NULL, 'REPEATABLE READ is refused');
COMMIT;
SELECT * FROM finish();
DROP TABLE fin CASCADE;
DROP TABLE fm_was, fh_was, fs_was;
DROP FUNCTION final_changes(), columns(text), differences(text), refused(text);
