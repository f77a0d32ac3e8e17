-- Rows that came too late: millrace.late_rows and replay_late; windows that changed after they were final: millrace.revisions.
-- Watermarks come from committed batches, so this file commits and cleans up after itself.
SET client_min_messages = warning;
SET timezone = 'UTC';
CREATE SCHEMA mr_late;
SET search_path = mr_late, public;
\ir ../lib/streams.sql
SELECT plan(45);

/* Every kind of value that must come back as it was. */
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE DOMAIN words AS text[];
CREATE TYPE mood AS ENUM ('sad', 'l’été');
CREATE TABLE e (
	gone int,
	at timestamptz NOT NULL,
	a text,
	n numeric,
	f float8,
	f4 float4,
	i bigint,
	b bytea,
	ts timestamptz,
	d date,
	span interval,
	arr int[],
	txt text[],
	p pair,
	ps pair[],
	s small,
	w words,
	m mood,
	r tstzrange,
	j jsonb,
	c "char"
) PARTITION BY RANGE (at);
ALTER TABLE e DROP COLUMN gone;
CREATE TABLE e_1 PARTITION OF e FOR VALUES FROM ('2024-01-01') TO ('2024-01-02');
CREATE TABLE e_2 (c "char", i bigint, dropped text, at timestamptz NOT NULL, a text, n numeric, f float8, f4 float4, b bytea, ts timestamptz, d date,
	span interval, arr int[], txt text[], p pair, ps pair[], s small, w words, m mood, r tstzrange, j jsonb);
ALTER TABLE e_2 DROP COLUMN dropped;
ALTER TABLE e ATTACH PARTITION e_2 FOR VALUES FROM ('2024-01-02') TO ('2024-01-03');
SET IntervalStyle = 'sql_standard';
SET extra_float_digits = 0;
SET DateStyle = 'German';
SELECT millrace.create_continuous_aggregate('kept', $$
	SELECT millrace.tumble(at, '1 minute') AS window_start, a, n, f, f4, i, b, ts, d, span, arr, txt, p, ps, s, w, m, r, j, c, count(*)
	FROM e GROUP BY 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20$$, watermark => '0', late_policy => 'divert');
SELECT millrace.create_continuous_aggregate('sums', $$
	SELECT millrace.tumble(at, '1 minute') AS window_start, a, count(*), sum(i), max(f) FROM e WHERE a <> 'skip' GROUP BY 1, 2$$,
	watermark => '1 minute', late_policy => 'divert');
RESET IntervalStyle;
RESET extra_float_digits;
RESET DateStyle;

INSERT INTO e (at, a) VALUES ('2024-01-02 12:00', 'first');
SELECT is(count(*), 0::bigint, 'a batch''s own rows are never late') FROM millrace.late_rows;
INSERT INTO e (at, a, n, f, f4, i, b, ts, d, span, arr, txt, p, ps, s, w, m, r, j, c) VALUES
	('2024-01-01 00:00:30', E'l''été\n"\\ \t\U0001F600', 'NaN', 1.7976931348623157e308, 3.4028235e38, 9223372036854775807, '\x00ff5c22', 'infinity', '-infinity',
		'-1 year 3 days -04:05:06.789012', '{1,NULL,3}', ARRAY['a,b', '"', NULL, 'NULL', ''], '(1,"a ""b"", c")', ARRAY['(1,x)', NULL, '(,)']::pair[], 999,
		ARRAY['x', NULL]::words, 'l’été', '["2024-01-01 00:00:00.000001+00",infinity)', '{"a": [1.00, null, "\u00e9"]}', 'x'),
	('2024-01-01 00:00:30', '', 'Infinity', '-Infinity', 'NaN', -9223372036854775808, '', '4714-11-24 00:00:00+00 BC', '5874897-12-31', '178000000 years',
		'[0:2]={7,8,9}', '{}', '(,)', '{}', -1, '{}', 'sad', 'empty', '"text"', ''),
	('2024-01-01 00:00:30', 'x', 123456789012345678901234567890.12345678901234567890, 5e-324, 1e-45, 0, NULL, '294276-12-31 23:59:59.999999+00', '0044-03-15 BC',
		'00:00:00.000001', '{{1,2},{3,4}}', NULL, NULL, NULL, NULL, NULL, NULL, NULL, '{}', NULL),
	('2024-01-01 00:00:30', NULL, 0.10, 0.1, 0.1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO e_2 (at, a, i, s, arr) VALUES ('2024-01-02 11:00', 'direct', 5, 6, '{4}'), ('2024-01-02 12:01', 'on time', 5, 6, '{4}'), ('2024-01-02 11:00', 'skip', 5, 6, '{4}');
SELECT results_eq($$SELECT stream, reason, count(*) FROM millrace.late_rows GROUP BY 1, 2 ORDER BY 1$$,
	$$VALUES ('kept', 'late', 6::bigint), ('sums', 'late', 4)$$, 'late rows are kept: not those that the WHERE drops');
SELECT is(count(*), 2::bigint, 'and not counted') FROM kept;
SELECT is("row" ->> 'a', E'l''été\n"\\ \t\U0001F600', 'rows are readable') FROM millrace.late_rows WHERE stream = 'sums' AND "row" ->> 'n' = 'NaN';
SELECT isnt((SELECT sum(late_rows) FROM millrace.batches WHERE source = 'e'::regclass), 0::numeric, 'counted in batches');
DELETE FROM millrace.batches;
SELECT is(string_agg(DISTINCT reason, ', '), 'late rows dropped', 'verify knows of them when batches are forgotten, too') FROM millrace.verify('sums');

SELECT is(millrace.replay_late('kept'), 6::bigint, 'replay_late tells how many rows it merged');
SELECT is(differences('kept'), 0::bigint, 'every value came back as it was');
SELECT is(count(*), 8::bigint, 'all groups are there') FROM kept;
SELECT is(count(*), 8::bigint, 'the source has its rows once') FROM e;
SELECT is(count(*), 4::bigint, 'rows of others stay') FROM millrace.late_rows;
SELECT is(millrace.replay_late('kept'), 0::bigint, 'nothing is merged twice');
SELECT is(differences('kept'), 0::bigint, 'nothing was');
SELECT is(string_agg(DISTINCT part::text, ''), 'l', 'late rows of closed windows count in NAME only') FROM kept_delta
	WHERE window_start < '2024-01-02 12:00';
SELECT is(count(*), 0::bigint, 'rows that were kept for another reason are left alone') FROM millrace.late_rows WHERE stream = 'kept';

-- Columns that came, went or were renamed meanwhile
ALTER TABLE e ADD COLUMN more text DEFAULT 'x';
ALTER TABLE e RENAME COLUMN f TO weight;
BEGIN;
SAVEPOINT s;
SELECT is(millrace.replay_late('sums'), 4::bigint, 'replayed after a column was renamed');
SELECT is((SELECT max(max) FROM sums WHERE window_start < '2024-01-02'), NULL, 'a renamed column is NULL');
ROLLBACK TO s;
SELECT is(count(*), 4::bigint, 'rolled back: the rows are still there') FROM millrace.late_rows;
SELECT is(count(*), 2::bigint, 'and not merged') FROM sums;
COMMIT;
ALTER TABLE e RENAME COLUMN weight TO f;
SELECT is(millrace.replay_late('sums'), 4::bigint, 'and again');
SELECT is(differences('sums'), 0::bigint, 'equal to its query');

-- Generated columns: NULL in the rows of a batch through a partitioned table, so refused there
CREATE TABLE g (at timestamptz, a text, gen int GENERATED ALWAYS AS (length(a)) STORED, more int GENERATED BY DEFAULT AS IDENTITY);
SELECT millrace.create_continuous_aggregate('generated', $$SELECT millrace.tumble(at, '1 minute') AS window_start, gen, more, count(*) FROM g GROUP BY 1, 2, 3$$,
	watermark => '0', late_policy => 'divert');
INSERT INTO g (at, a) VALUES ('2024-01-01 12:00', 'x');
INSERT INTO g (at, a) VALUES ('2024-01-01 10:00', 'late');
SELECT is(millrace.replay_late('generated') + differences('generated'), 1::bigint, 'generated and identity columns');
ALTER TABLE e ADD COLUMN gen int GENERATED ALWAYS AS (length(a)) STORED;
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), sum(gen) FROM e GROUP BY 1'), '^0A000 .*generated columns', 'refused where they are missing');

-- revisions
CREATE TABLE r (at timestamptz, a text, x int);
SELECT millrace.create_continuous_aggregate('upd', $$SELECT a, count(*) AS n, millrace.tumble(at, '1 minute') AS start, sum(x), upper(a) AS loud FROM r GROUP BY 1, 3$$, watermark => '0');
SELECT millrace.create_continuous_aggregate('hopped', $$SELECT millrace.hop(at, '3 minutes', '1 minute') AS start, a, count(*) FROM r GROUP BY 1, 2$$, watermark => '0');
SELECT millrace.create_continuous_aggregate('visits', $$SELECT a, window_start, count(*) FROM (SELECT *, millrace.session(at, '1 minute') OVER (PARTITION BY a ORDER BY at) AS window_start FROM r) s GROUP BY 1, 2$$, watermark => '0');
INSERT INTO r VALUES ('2024-01-01 10:00:10', 'a', 1), ('2024-01-01 10:00:20', NULL, 5), ('2024-01-01 10:01:55', 'a', 3), ('2024-01-01 12:00', 'a', 3);
INSERT INTO r VALUES ('2024-01-01 12:00', 'a', 1);
INSERT INTO r VALUES ('2024-01-01 12:00', 'a', 1);
SELECT is(count(*), 0::bigint, 'no late row, no revision') FROM millrace.revisions WHERE stream IN ('upd', 'hopped', 'visits');
INSERT INTO r VALUES ('2024-01-01 10:00:59', 'a', 10), ('2024-01-01 10:00:30', 'new', 7), ('2024-01-01 12:30', 'a', 1);
SELECT results_eq($$SELECT window_start, key, final, current FROM millrace.revisions WHERE stream = 'upd' ORDER BY key$$, $$VALUES
	('2024-01-01 10:00+00'::timestamptz, '{"a": "a"}'::jsonb, '{"n": 1, "sum": 1, "loud": "A"}'::jsonb, '{"n": 2, "sum": 11, "loud": "A"}'::jsonb),
	('2024-01-01 10:00+00', '{"a": "new"}', NULL, '{"n": 1, "sum": 7, "loud": "NEW"}')$$, 'revisions of tumbling windows, with both values');
SELECT results_eq($$SELECT window_start, key, final, current FROM millrace.revisions WHERE stream = 'hopped' AND key ->> 'a' = 'a' ORDER BY 1$$, $$VALUES
	('2024-01-01 09:58+00'::timestamptz, '{"a": "a"}'::jsonb, '{"count": 1}'::jsonb, '{"count": 2}'::jsonb), ('2024-01-01 09:59+00', '{"a": "a"}', '{"count": 2}', '{"count": 3}'),
	('2024-01-01 10:00+00', '{"a": "a"}', '{"count": 2}', '{"count": 3}')$$, 'of sliding windows: all that hold the row');
SELECT results_eq($$SELECT window_start, key, final, current FROM millrace.revisions WHERE stream = 'visits' ORDER BY 1$$, $$VALUES
	('2024-01-01 10:00:10+00'::timestamptz, '{"a": "a"}'::jsonb, '{"count": 1}'::jsonb, '{"count": 3}'::jsonb), ('2024-01-01 10:00:30+00', '{"a": "new"}', NULL, '{"count": 1}'),
	('2024-01-01 10:01:55+00', '{"a": "a"}', '{"count": 1}', NULL)$$, 'of sessions: one that a late row has joined to another is gone');
SELECT is((SELECT count(*) FROM upd_final WHERE a = 'a' AND start = '2024-01-01 10:00' AND n = 1), 1::bigint, 'NAME_final keeps what it has shown');
SELECT is(differences('upd') + differences('hopped') + differences('visits'), 0::bigint, 'NAME has all rows');
/* Once folded, too. */
DO $$ BEGIN FOR i IN 1 .. 40 LOOP INSERT INTO r SELECT '2024-01-01 12:40', 'b' || g, 1 FROM generate_series(1, 3000) g; COMMIT; END LOOP; END $$;
SELECT is(count(*), 11::bigint, 'the same revisions after folding') FROM millrace.revisions WHERE stream IN ('upd', 'hopped', 'visits');
SELECT is(count(*), 6::bigint, 'replayed rows of closed windows are revisions, too') FROM millrace.revisions WHERE stream = 'kept' AND final IS NULL;
ALTER VIEW upd RENAME COLUMN n TO number;
ALTER VIEW upd_final RENAME COLUMN a TO aa;
SELECT results_eq($$SELECT final -> 'number', current -> 'number' FROM millrace.revisions WHERE stream = 'upd' AND key = '{"a": "a"}'$$,
	$$VALUES ('1'::jsonb, '2'::jsonb)$$, 'of renamed columns');
CREATE ROLE mr_late_reader;
GRANT USAGE ON SCHEMA mr_late, millrace TO mr_late_reader;
GRANT SELECT ON upd, upd_final, hopped TO mr_late_reader;
SET ROLE mr_late_reader;
SELECT is(string_agg(DISTINCT stream, ','), 'upd', 'revisions of what the reader may SELECT, both NAME and NAME_final') FROM millrace.revisions;
SELECT throws_ok($$SELECT * FROM millrace._revised('hopped')$$, '42501', NULL, 'also by the function');
SELECT throws_ok($$SELECT * FROM upd_state$$, '42501', NULL, 'who may not read the states');
RESET ROLE;

-- Rights and bad input
INSERT INTO e (at, a) VALUES ('2024-01-01 00:00', 'late again');
SET ROLE mr_late_reader;
SELECT is(count(*), 0::bigint, 'late rows of sources that the reader may not SELECT are hidden') FROM millrace.late_rows;
SELECT throws_ok($$SELECT * FROM millrace.late_row$$, '42501', NULL, 'also in the table');
SELECT throws_ok($$SELECT millrace.replay_late('sums')$$, '42501', NULL, 'who may not replay');
RESET ROLE;
GRANT EXECUTE ON FUNCTION millrace.replay_late(text) TO mr_late_reader;
GRANT SELECT ON e TO mr_late_reader;
SET ROLE mr_late_reader;
SELECT is(count(*), 2::bigint, 'and shown once he may') FROM millrace.late_rows;
SELECT throws_ok($$SELECT millrace.replay_late('sums')$$, '42501', 'must be owner of stream "sums"', 'only the owner replays');
RESET ROLE;
SELECT throws_ok($$SELECT millrace.replay_late('nothing')$$, '42704', 'stream "nothing" does not exist', 'unknown stream');
SELECT millrace.create_pipe('piped', 'e', 'INSERT INTO r SELECT at, a FROM new_rows WHERE a = ''none''');
SELECT throws_ok($$SELECT millrace.replay_late('piped')$$, '42809', 'stream "piped" is not a continuous aggregate', 'a pipe');
SELECT is(millrace.replay_late(NULL), NULL, 'NULL');

-- Rows of a stream that is gone are gone, as are those of one that is filled anew
SELECT millrace.create_continuous_aggregate('sums', $$
	SELECT millrace.tumble(at, '1 minute') AS window_start, a, count(*), sum(i), max(f) FROM e WHERE a <> 'skip' GROUP BY 1, 2$$, watermark => '1 minute', late_policy => 'divert');
SELECT is((SELECT count(*) FROM millrace.late_row WHERE stream = 'sums') + differences('sums'), 0::bigint, 'replaced, it has the rows, and replay_late nothing to do');
SELECT millrace.drop_continuous_aggregate('kept');
SELECT is(count(*), 0::bigint, 'nothing is left of a dropped one') FROM millrace.late_row;

SELECT * FROM finish();
DROP SCHEMA mr_late CASCADE;
DROP OWNED BY mr_late_reader;
DROP ROLE mr_late_reader;
