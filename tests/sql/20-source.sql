BEGIN;
SELECT plan(43);
SET LOCAL client_min_messages = warning;

CREATE TABLE plain (at timestamp, v int);
CREATE TABLE days (id int GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, v int DEFAULT 7 CHECK (v > 0)) PARTITION BY RANGE (at);
CREATE INDEX ON days (v);
CREATE TABLE dates (d date NOT NULL, v int) PARTITION BY RANGE (d);
CREATE TABLE lists (at timestamptz, k text) PARTITION BY LIST (k);

-- create_source
SELECT lives_ok($$SELECT millrace.create_source('plain', 'at')$$, 'an ordinary table');
SELECT lives_ok($$SELECT millrace.create_source('days', 'at')$$, 'a partitioned table');
SELECT lives_ok($$SELECT millrace.create_source('dates', 'd', '1 month', '1 year')$$, 'a table partitioned by date');
SELECT is(string_agg(concat_ws(' ', source, time_column, partition_interval, retention), '; ' ORDER BY source::text COLLATE "C"),
	'dates d 1 mon 1 year; days at 1 day; plain at', 'sources are listed') FROM millrace.sources;
SELECT lives_ok($$SELECT millrace.create_source('days', 'at', '1 day', '30 days')$$, 'calling it again changes settings');
SELECT is(retention, '30 days', 'the new setting') FROM millrace.sources WHERE source = 'days'::regclass;
SELECT has_trigger('plain', 'millrace_on_insert', 'trigger');
SELECT throws_ok($$SELECT millrace.create_source('nowhere', 'at')$$, '42P01', NULL, 'unknown table');
SELECT throws_ok($$SELECT millrace.create_source('plain', 'when')$$, '42703', 'column "when" of table public.plain does not exist', 'unknown column');
SELECT throws_ok($$SELECT millrace.create_source('plain', 'v')$$, '42804', 'column "v" of table public.plain has type integer, which is not a time', 'column that is no time');
SELECT throws_ok($$SELECT millrace.create_source('lists', 'at')$$, '42P16', 'table public.lists is not partitioned by range of column "at"', 'partitioned otherwise');
SELECT throws_ok($$SELECT millrace.create_source('pg_catalog.pg_tables', 'x')$$, '42809', NULL, 'a view');
SELECT throws_ok($$SELECT millrace.create_source(NULL, 'at')$$, '22004', NULL, 'NULL');
SELECT throws_ok($$SELECT millrace.create_source('days', 'at', '0')$$, '22023', NULL, 'interval of zero');

-- ensure_partitions
SELECT is(millrace.ensure_partitions('days', '2024-02-27 13:00+00', '2024-03-01 00:00+00'), 4, 'four days');
SELECT is(millrace.ensure_partitions('days', '2024-02-27 13:00+00', '2024-03-01 00:00+00'), 0, 'they are there');
SELECT is(string_agg(concat_ws(' ', partition, from_time, to_time), '; ' ORDER BY from_time),
	'days_20240227 2024-02-27 00:00:00+00 2024-02-28 00:00:00+00; days_20240228 2024-02-28 00:00:00+00 2024-02-29 00:00:00+00; '
	'days_20240229 2024-02-29 00:00:00+00 2024-03-01 00:00:00+00; days_20240301 2024-03-01 00:00:00+00 2024-03-02 00:00:00+00', 'their bounds')
	FROM millrace.partitions('days');
SELECT has_trigger('days_20240229', 'millrace_on_insert', 'a new partition has the trigger');
SELECT has_check('days_20240229', 'and the constraint');
INSERT INTO days_20240229 (at) VALUES ('2024-02-29 12:00+00');
SELECT is(v, 7, 'and the default') FROM days;
INSERT INTO days (at) VALUES ('2024-02-28 12:00+00');
INSERT INTO days_20240228 (at) VALUES ('2024-02-28 12:00+00');
SELECT results_eq('SELECT id FROM days ORDER BY id', 'VALUES (1), (2), (3)', 'and shares the identity column');
CREATE TABLE odd PARTITION OF days FOR VALUES FROM ('2024-03-05 06:00+00') TO ('2024-03-06 18:00+00');
SELECT is(millrace.ensure_partitions('days', '2024-03-05 00:00+00', '2024-03-06 20:00+00'), 2, 'gaps around a partition with other bounds');
SELECT results_eq($$SELECT from_time, to_time FROM millrace.partitions('days') WHERE from_time >= '2024-03-05+00'$$,
	$$VALUES ('2024-03-05 00:00+00'::timestamptz, '2024-03-05 06:00+00'::timestamptz), ('2024-03-05 06:00+00', '2024-03-06 18:00+00'), ('2024-03-06 18:00+00', '2024-03-07 00:00+00')$$, 'they are filled');
SELECT has_trigger('odd', 'millrace_on_insert', 'a partition made by hand has the trigger');
CREATE TABLE later (LIKE days INCLUDING ALL EXCLUDING IDENTITY);
ALTER TABLE days ATTACH PARTITION later FOR VALUES FROM ('2025-01-01 00:00+00') TO ('2026-01-01 00:00+00');
SELECT has_trigger('later', 'millrace_on_insert', 'so has an attached one');
SELECT is(millrace.ensure_partitions('dates', '2024-01-31', '2024-02-01'), 2, 'months of a date column');
INSERT INTO dates VALUES ('2024-01-31', 1), ('2024-02-01', 2);
SELECT is(millrace.ensure_partitions('plain', '2024-01-31', '2024-02-01'), 0, 'none for an ordinary table');
SELECT throws_ok($$SELECT millrace.ensure_partitions('lists', now(), now())$$, '42704', 'table public.lists is not a source', 'not a source');
SELECT throws_ok($$SELECT millrace.ensure_partitions('days', '1000-01-01', '9999-01-01')$$, '54000', NULL, 'millions of partitions');
SELECT throws_ok($$SELECT millrace.ensure_partitions('days', '2024-01-01', 'infinity')$$, '22023', NULL, 'infinite');
SELECT throws_ok($$SELECT millrace.ensure_partitions('days', '2024-01-02', '2024-01-01')$$, '22023', NULL, 'backwards');

-- retention
CREATE TABLE kept (at timestamptz) PARTITION BY RANGE (at);
SELECT millrace.create_source('kept', 'at', retention => '3 days');
SELECT millrace.ensure_partitions('kept', now() - interval '9 days', now());
CREATE TABLE kept_old PARTITION OF kept FOR VALUES FROM (MINVALUE) TO ('2000-01-01');
CREATE TABLE kept_rest PARTITION OF kept DEFAULT;
INSERT INTO kept SELECT now() - g * interval '1 day' FROM generate_series(0, 9) g UNION ALL SELECT NULL;
SELECT is((SELECT count(*) FROM millrace.expired_partitions('kept')), 7::bigint, 'partitions that are wholly older than the retention are expired');
UPDATE millrace.sources SET retention = NULL WHERE source <> 'kept'::regclass;
SELECT is(millrace.drop_expired_partitions('kept'), 7, 'they are dropped');
SELECT is((SELECT count(*) FROM kept), 5::bigint, 'the others are there, and the default partition');
SELECT is((SELECT min(to_time) > now() - interval '3 days' FROM millrace.partitions('kept')), true, 'and none that is younger is gone');
SELECT is(millrace.drop_expired_partitions(), 0, 'nothing is left to be done');
SELECT millrace.create_source('kept', 'at', retention => '1 day');
SELECT is(millrace.drop_expired_partitions(), 2, 'a new retention, for all sources');
SELECT millrace.create_source('kept', 'at');
SELECT is(millrace.drop_expired_partitions('kept'), 0, 'none without a retention');
SELECT throws_ok($$SELECT millrace.drop_expired_partitions('lists')$$, '42704', 'table public.lists is not a source', 'not a source');

-- rights and hostile names
CREATE TABLE "Odd ""name"" of a table, which is as long as an identifier can be" (at timestamptz NOT NULL) PARTITION BY RANGE (at);
SELECT millrace.create_source('"Odd ""name"" of a table, which is as long as an identifier can be"', 'at');
SELECT is(millrace.ensure_partitions('"Odd ""name"" of a table, which is as long as an identifier can be"', '2024-01-01', '2024-01-01'), 1, 'a name of 63 bytes with quotes');
CREATE ROLE mr_writer;
GRANT INSERT ON days TO mr_writer;
SELECT millrace.ensure_partitions('days', '2024-06-01', '2024-06-01');
SELECT table_privs_are('public', 'days_20240601', 'mr_writer', ARRAY['INSERT'], 'a partition gets the rights of its parent');
GRANT USAGE ON SCHEMA millrace TO mr_writer;
SET LOCAL ROLE mr_writer;
SELECT throws_ok($$SELECT millrace.create_source('days', 'at')$$, '42501', NULL, 'a role that was not granted it cannot create sources');
SELECT throws_ok($$SELECT millrace.drop_expired_partitions('days')$$, '42501', NULL, 'nor drop partitions');
SELECT * FROM finish();
ROLLBACK;
