BEGIN;
SELECT plan(72);
SET LOCAL client_min_messages = warning;
SET LOCAL timezone = 'UTC';

CREATE TABLE events (at timestamptz NOT NULL, action text, amount numeric, f float8, u int) PARTITION BY RANGE (at);
SELECT millrace.create_source('events', 'at');
SELECT millrace.ensure_partitions('events', '2024-01-01', '2024-01-03');
CREATE FUNCTION fill(seed int, n int) RETURNS void LANGUAGE sql AS $$
	SELECT setseed(seed / 100.0);
	INSERT INTO events SELECT '2024-01-01'::timestamptz + random() * interval '3 days', (ARRAY['Open', 'Close', NULL])[1 + (random() * 2)::int],
		(random() * 1000)::int / 8.0, (random() * 1000)::int / 8.0, (random() * 100)::int FROM generate_series(1, n)
$$;
SELECT fill(1, 500);

\ir ../lib/streams.sql

-- Continuous aggregates: every kind of state equals the query after batches of all kinds
SELECT millrace.create_continuous_aggregate('per_hour', $$
	SELECT action, millrace.tumble(at, '1 hour') AS window_start, count(*), count(amount) AS n, count(*) FILTER (WHERE u > 50) AS many,
		sum(amount), avg(amount) AS mean, min(amount), max(amount), min(action) AS first_action, sum(u) AS users, avg(u) AS user_mean,
		var_samp(amount) AS variance, stddev_pop(u) AS deviation, sum(f) AS fsum, bool_and(u > 3) AS all_high, bit_or(u) AS bits
	FROM events GROUP BY 1, 2$$);
SELECT is(differences('per_hour'), 0::bigint, 'rows from before are included');
SELECT isnt((SELECT count(*) FROM per_hour), 0::bigint, 'there are some');
SELECT fill(2, 5000);
SELECT is(differences('per_hour'), 0::bigint, 'a batch through the parent');
INSERT INTO events_20240102 VALUES ('2024-01-02 03:00', 'Open', 1, 1, 1), ('2024-01-02 03:30', NULL, NULL, NULL, NULL);
SELECT is(differences('per_hour'), 0::bigint, 'a batch straight into a partition, with NULLs');
INSERT INTO events VALUES ('2024-01-02 03:00', 'Open', 'NaN', 'NaN', NULL), ('2024-01-02 04:00', 'Open', 'infinity', '-infinity', 1);
SELECT is(differences('per_hour'), 0::bigint, 'NaN and infinity');
INSERT INTO events SELECT * FROM events LIMIT 0;
SELECT is(differences('per_hour'), 0::bigint, 'an empty batch');
SELECT is((SELECT count(*) FROM (SELECT FROM per_hour_state UNION ALL SELECT FROM per_hour_delta) s) > (SELECT count(*) FROM per_hour), true, 'states are appended, the view merges them');

-- Savepoints, and one row of millrace.batches for a transaction (this one has not committed)
SAVEPOINT s;
INSERT INTO events VALUES ('2024-01-02 05:00', 'Gone', 1, 1, 1);
SELECT is(count(*), 1::bigint, 'visible at once') FROM per_hour WHERE action = 'Gone';
ROLLBACK TO s;
SELECT is(count(*), 0::bigint, 'and gone with its savepoint') FROM per_hour WHERE action = 'Gone';

-- Shapes of queries
CREATE TABLE users (id int PRIMARY KEY, country text);
INSERT INTO users SELECT i, CASE WHEN i % 2 = 0 THEN 'FR' ELSE 'DE' END FROM generate_series(0, 99) i;
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('per_country', $$
	SELECT millrace.tumble(e.at, '1 day') AS day, c.country, date_part('hour', e.at) AS hour, count(*) AS n, round(avg(e.amount), 2) + 1 AS mean
	FROM events e LEFT JOIN users c ON c.id = e.u WHERE e.action IS NOT NULL GROUP BY 1, 2, 3 HAVING count(*) > 2$$)$q$,
	'outer join with a dimension, WHERE, HAVING, expressions over keys and aggregates');
SELECT fill(3, 1000);
SELECT is(differences('per_country'), 0::bigint, 'equals its query');
SELECT lives_ok($q$SELECT millrace.create_continuous_aggregate('Per "day"', $$
	SELECT millrace.tumble(at, '1 day', timezone => 'Europe/Paris'), sum(amount * u) AS "Total; ""quoted""" FROM public.events GROUP BY millrace.tumble(at, '1 day', timezone => 'Europe/Paris');
	$$)$q$, 'hostile names, a zone, a trailing semicolon');
SELECT fill(4, 1000);
SELECT is(differences('Per "day"'), 0::bigint, 'equals its query');

-- A partition with other column order and dropped columns
CREATE TABLE shuffled (u int, gone int, f float8, amount numeric, action text, at timestamptz NOT NULL);
ALTER TABLE shuffled DROP COLUMN gone;
ALTER TABLE events ATTACH PARTITION shuffled FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
CREATE TABLE by_pipe (action text, amount numeric, u int);
SELECT millrace.create_pipe('copy', 'events', 'INSERT INTO by_pipe SELECT action, amount, u FROM new_rows WHERE u > 0');
INSERT INTO events VALUES ('2024-02-01 10:00', 'Open', 1.5, 2.5, 3), ('2024-01-01 10:00', 'Open', 1.5, 2.5, 3);
INSERT INTO shuffled (at, action, amount, f, u) VALUES ('2024-02-01 10:00', 'Close', 10.5, 20.5, 30);
INSERT INTO events_20240101 VALUES ('2024-01-01 10:00', 'Close', 10.5, 20.5, 31);
SELECT is(differences('per_hour') + differences('per_country') + differences('Per "day"'), 0::bigint, 'a partition with columns in another order');
SELECT results_eq('SELECT action, amount, u FROM by_pipe ORDER BY u, action', $$VALUES ('Open', 1.5, 3), ('Open', 1.5, 3), ('Close', 10.5, 30), ('Close', 10.5, 31)$$, 'a pipe sees them by name');

SELECT millrace.create_continuous_aggregate('constants', $$SELECT millrace.tumble(at, '6 hours', timezone => 'Europe/Paris') AS window_start, avg(extract(minute FROM at)) AS mean, max(action || ' of a rather long text') AS text
	FROM events WHERE action <> 'something that no action is' GROUP BY 1$$);
INSERT INTO shuffled (at, action, amount, f, u) SELECT '2024-02-01 10:00'::timestamptz + i * interval '1 minute', 'Close', 10.5, 20.5, 30 FROM generate_series(1, 500) i;
INSERT INTO shuffled (at, action, amount, f, u) SELECT '2024-02-01 10:00'::timestamptz + i * interval '1 minute', 'Open', 10.5, 20.5, 30 FROM generate_series(1, 500) i;
SELECT is(differences('constants'), 0::bigint, 'constants outlive the planning');
SELECT millrace.drop_continuous_aggregate('constants');

-- Renames and added columns
ALTER TABLE events RENAME COLUMN f TO weight;
ALTER TABLE events ADD COLUMN note text;
INSERT INTO events (at, action, amount, u) VALUES ('2024-01-02 10:00', 'Open', 5, 1);
ALTER TABLE users RENAME TO customers;
INSERT INTO events (at, action, amount, u) VALUES ('2024-01-02 10:00', 'Open', 6, 1);
SELECT is(differences('per_hour') + differences('per_country') + differences('Per "day"'), 0::bigint, 'renamed columns and tables');

-- Pipes chain, and feed aggregates
CREATE TABLE purchases (at timestamptz, amount numeric);
SELECT millrace.create_pipe('purchases', 'events', 'INSERT INTO purchases SELECT at, amount FROM new_rows WHERE amount > 10');
SELECT millrace.create_continuous_aggregate('spent', 'SELECT millrace.tumble(at, ''1 day'') AS day, sum(amount) FROM purchases GROUP BY 1');
SELECT fill(5, 100);
SELECT is((SELECT sum(sum) FROM spent), (SELECT sum(amount) FROM purchases), 'a pipe''s target is a source itself');
SELECT isnt((SELECT sum(sum) FROM spent), NULL, 'with rows');
SELECT is(string_agg(concat_ws(' ', name, kind, source, target), '; ' ORDER BY name COLLATE "C"),
	'Per "day" aggregate events "Per ""day"""; copy pipe events by_pipe; per_country aggregate events per_country; '
	'per_hour aggregate events per_hour; purchases pipe events purchases; spent aggregate purchases spent', 'streams are listed') FROM millrace.streams;

-- Refused queries
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(DISTINCT u) FROM events GROUP BY 1'), '^0A000 aggregate count.*DISTINCT cannot be kept', 'DISTINCT');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), array_agg(u) FROM events GROUP BY 1'), '^0A000 aggregate array_agg.* cannot be kept', 'array_agg');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), string_agg(action, '','') FROM events GROUP BY 1'), '^0A000 aggregate string_agg', 'string_agg');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), percentile_cont(0.5) WITHIN GROUP (ORDER BY u) FROM events GROUP BY 1'), '^0A000 aggregate percentile_cont', 'ordered-set aggregate');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), jsonb_agg(u) FROM events GROUP BY 1'), '^0A000 aggregate jsonb_agg', 'no combine function');
SELECT matches(refused('SELECT action, count(*) FROM events GROUP BY 1'), '^0A000 .*must group by a window', 'no window');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), u FROM events'), '^0A000 .*must have aggregates and a GROUP BY', 'no aggregates');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day'') a, millrace.tumble(at, ''1 hour'') b, count(*) FROM events GROUP BY 1, 2'), 'must not contain two windows', 'two windows');
SELECT matches(refused('SELECT millrace.tumble(timestamptz ''2024-01-01'', ''1 day''), count(*) FROM events GROUP BY 1'), 'a window over no column', 'window over no column');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM spent_query, purchases GROUP BY 1 ORDER BY 1'), 'ORDER BY', 'ORDER BY');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM events GROUP BY 1 LIMIT 1'), 'LIMIT', 'LIMIT');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), random(), count(*) FROM events GROUP BY 1'), 'volatile', 'volatile function');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) OVER () AS n, count(*) FROM events GROUP BY 1'), 'must not contain window functions', 'window function');
SELECT matches(refused('SELECT millrace.tumble(a.at, ''1 day''), count(*) FROM events a JOIN events b USING (u) GROUP BY 1'), 'source more than once', 'self join');
SELECT matches(refused('SELECT millrace.tumble(e.at, ''1 day''), count(*) FROM customers LEFT JOIN events e ON e.u = id GROUP BY 1'), 'nullable side', 'source on the nullable side');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*), max(tableoid) FROM events GROUP BY 1'), 'system columns', 'system column');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(e) FROM events e GROUP BY 1'), 'whole row', 'whole row');
SELECT matches(refused('WITH e AS (SELECT * FROM events) SELECT millrace.tumble(at, ''1 day''), count(*) FROM e GROUP BY 1'), 'must not contain WITH', 'WITH');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM spent_query, pg_tables GROUP BY 1'), '^42703', 'unknown column');
SELECT matches(refused('SELECT millrace.tumble(at, ''1 day''), count(*) FROM nowhere GROUP BY 1'), '^42P01', 'unknown table');
SELECT matches(refused('nonsense'), '^42601', 'not SQL');
SELECT matches(refused('SELECT millrace.hop(at, ''1 hour'', ''25 minutes''), count(*) FROM events GROUP BY 1'), '^22023 .*not a multiple of its slide', 'a slide that does not divide the size');
SELECT matches(refused('SELECT millrace.tumble(at, ''0''), count(*) FROM events GROUP BY 1'), '^22023 .*must be positive', 'no size');
SELECT is(count(*), 0::bigint, 'refused queries leave nothing behind') FROM pg_class WHERE relname LIKE 'refused%';
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('copy', 'SELECT 1')$$, '42710', 'stream "copy" already exists and is a pipe', 'name taken');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('', 'SELECT 1')$$, '42602', NULL, 'empty name');
SELECT throws_ok(format($$SELECT millrace.create_continuous_aggregate(%L, 'SELECT 1')$$, repeat('x', 56)), '42622', NULL, 'name too long');
SELECT throws_ok($$SELECT millrace.create_continuous_aggregate('x', NULL)$$, '22004', NULL, 'NULL query');

-- Refused pipes
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'SELECT * FROM new_rows')$$, '22023', 'the command of a pipe must be one INSERT', 'not an INSERT');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'INSERT INTO by_pipe VALUES (1)')$$, '22023', 'the command of a pipe must read from new_rows', 'does not read the batch');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'INSERT INTO by_pipe SELECT 1 FROM new_rows; DROP TABLE events')$$, '22023', NULL, 'two commands');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'INSERT INTO nowhere SELECT * FROM new_rows')$$, '42P01', NULL, 'unknown target');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'INSERT INTO by_pipe SELECT missing FROM new_rows')$$, '42703', NULL, 'unknown column');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'events', 'INSERT INTO events SELECT * FROM new_rows')$$, '42P17', NULL, 'into its own source');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'purchases', 'INSERT INTO events_20240101 (at, amount) SELECT * FROM new_rows')$$, '42P17', NULL, 'into its own source, over another');
SELECT throws_ok($$SELECT millrace.create_pipe('copy', 'events', 'INSERT INTO by_pipe SELECT action, amount, u FROM new_rows')$$, '42710', 'stream "copy" already exists', 'name taken');
SELECT throws_ok($$SELECT millrace.create_pipe('p', 'nowhere', 'INSERT INTO by_pipe SELECT * FROM new_rows')$$, '42P01', NULL, 'unknown source');

-- A failing handler fails the batch, and says which it was
ALTER TABLE by_pipe ADD CONSTRAINT small CHECK (amount < 100000);
SELECT throws_ok($$INSERT INTO events (at, action, amount, u) VALUES ('2024-01-01', 'x', 100001, 1)$$, '23514', NULL, 'a pipe whose target refuses the row fails the batch');
SELECT is(count(*), 0::bigint, 'of which nothing is stored') FROM events WHERE action = 'x';
SELECT is(differences('per_hour'), 0::bigint, 'or counted');

-- Rights: a writer needs INSERT only; handlers run as their owner
CREATE ROLE mr_writer;
GRANT INSERT ON events TO mr_writer;
SET LOCAL ROLE mr_writer;
SELECT lives_ok($$INSERT INTO events (at, action, amount, u) VALUES ('2024-01-01', 'writer', 11, 1)$$, 'a role with INSERT only');
SELECT throws_ok($$SELECT * FROM per_hour$$, '42501', NULL, 'which cannot read the aggregate');
RESET ROLE;
SELECT is(count, 1::bigint, 'the aggregate has its row') FROM per_hour WHERE action = 'writer';
GRANT USAGE ON SCHEMA millrace TO mr_writer;
SET LOCAL ROLE mr_writer;
SELECT throws_ok($$SELECT millrace.drop_pipe('copy')$$, '42501', NULL, 'it cannot drop a stream');
SELECT throws_ok($$INSERT INTO millrace.stream (name) VALUES ('x')$$, '42501', NULL, 'or write the catalog');
RESET ROLE;

-- The search_path of the creator holds, also against a writer's temporary table
CREATE TEMP TABLE purchases (at timestamptz, amount numeric);
INSERT INTO events (at, action, amount, u) VALUES ('2024-01-01', 'temp', 12, 1);
SELECT is(count(*), 0::bigint, 'a temporary table of a target''s name stays empty') FROM pg_temp.purchases;
DROP TABLE pg_temp.purchases;

-- Dropping
SELECT lives_ok($$SELECT millrace.drop_pipe('copy')$$, 'drop a pipe');
SELECT lives_ok($$SELECT millrace.drop_continuous_aggregate('per_hour')$$, 'drop a continuous aggregate');
SELECT is(count(*), 0::bigint, 'with its views and states') FROM pg_class WHERE relname LIKE 'per_hour%';
SELECT throws_ok($$SELECT millrace.drop_pipe('spent')$$, '42704', 'pipe "spent" does not exist', 'another kind');
DROP VIEW per_country;
SELECT is(count(*), 0::bigint, 'DROP VIEW drops its stream') FROM millrace.streams WHERE name = 'per_country';
DROP TABLE events CASCADE;
SELECT is(string_agg(name, ' '), 'spent', 'DROP TABLE CASCADE drops the streams of the table') FROM millrace.streams;
SELECT * FROM finish();
ROLLBACK;
