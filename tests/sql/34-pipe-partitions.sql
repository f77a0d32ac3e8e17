-- Partitions of what pipes fill are made beside those of their source.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;
SET LOCAL timezone = 'Asia/Tokyo';
CREATE TABLE raw (at timestamptz, v int) PARTITION BY RANGE (at);
CREATE TABLE clean (LIKE raw) PARTITION BY RANGE (at);
CREATE TABLE last (LIKE raw) PARTITION BY RANGE (at);
CREATE FUNCTION days(rel regclass) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(to_char(from_time AT TIME ZONE 'UTC', 'MMDD'), ' ' ORDER BY from_time) FROM millrace.partitions(rel) WHERE from_time IS NOT NULL $$;
SELECT millrace.create_source('raw', 'at');
SELECT millrace.ensure_partitions('raw', '2024-01-01', '2024-01-02 12:00+00');
SELECT millrace.ensure_partitions('raw', '2024-01-05 12:00+00', '2024-01-05 12:00+00');
SELECT millrace.create_source('clean', 'at');
SELECT is(days('clean'), NULL, 'none before there is a pipe');
SELECT millrace.create_pipe('one', 'raw', 'INSERT INTO clean SELECT * FROM new_rows');
SELECT is(days('clean'), days('raw'), 'create_pipe makes those of the source');
SELECT is(days('clean'), '1231 0101 0102 0105', 'with its gaps');
SELECT millrace.create_pipe('two', 'clean', 'INSERT INTO last SELECT * FROM new_rows');
SELECT is(days('last'), NULL, 'none for a table that is no source');
SELECT millrace.create_source('last', 'at', '2 days');
SELECT is((SELECT count(*) FROM millrace.partitions('last') p WHERE to_time - from_time = '2 days'), 3::bigint, 'create_source makes them when the pipe is there, in its own width');
INSERT INTO raw VALUES ('2024-01-05 15:00+00', 1);
SELECT is((SELECT count(*) FROM last), 1::bigint, 'a row passes through both');

SELECT is(millrace.ensure_partitions('raw', '2024-02-01 00:00+00', '2024-02-01 23:00+00'), 3, 'ensure_partitions makes them all');
SELECT is(millrace.ensure_partitions('raw', '2024-02-01 00:00+00', '2024-02-01 23:00+00'), 0, 'once');
INSERT INTO raw VALUES ('2024-02-01 15:00+00', 1);
SELECT is((SELECT count(*) FROM last), 2::bigint, 'and rows pass');
SELECT millrace.create_pipe('also', 'raw', 'INSERT INTO last SELECT * FROM new_rows');
SELECT is(millrace.ensure_partitions('raw', '2024-02-03 00:00+00', '2024-02-03 00:00+00'), 3, 'a table that is reached twice');
SELECT millrace.drop_pipe('also'), millrace.drop_pipe('two');

-- A default partition that has rows of that time takes what comes.
CREATE TABLE clean_rest PARTITION OF clean DEFAULT;
INSERT INTO clean_rest VALUES ('2024-03-01 12:00+00', 7);
SELECT is(millrace.ensure_partitions('raw', '2024-03-01 00:00+00', '2024-03-01 00:00+00'), 1, 'the source has its partition');
INSERT INTO raw VALUES ('2024-03-01 13:00+00', 8);
SELECT is((SELECT count(*) FROM clean_rest), 2::bigint, 'and the row is in the default partition');
ALTER TABLE clean DETACH PARTITION clean_rest;

-- Partitions far narrower than those of the source would be too many; those of the source are made all the same.
CREATE TABLE narrow (LIKE raw) PARTITION BY RANGE (at);
SELECT millrace.create_source('narrow', 'at', '1 second');
SELECT millrace.create_pipe('seconds', 'raw', 'INSERT INTO narrow SELECT * FROM new_rows');
SELECT is(millrace.ensure_partitions('raw', '2024-03-05 00:00+00', '2024-03-05 23:00+00'), 2, 'the source and the other target have theirs');
SELECT is((SELECT count(*) FROM millrace.partitions('narrow')), 0::bigint, 'the narrow one has none');
SELECT millrace.drop_pipe('seconds');

-- Whoever may not use the rights of the target's owner makes those of the source.
CREATE ROLE mr_pipe_ingester;
CREATE ROLE mr_pipe_owner;
GRANT mr_pipe_owner TO mr_pipe_ingester;
ALTER TABLE raw OWNER TO mr_pipe_owner;
GRANT CREATE ON SCHEMA public TO mr_pipe_owner;
GRANT USAGE ON SCHEMA millrace TO mr_pipe_ingester;
GRANT EXECUTE ON FUNCTION millrace.ensure_partitions(regclass, timestamptz, timestamptz) TO mr_pipe_ingester;
SET ROLE mr_pipe_ingester;
SELECT is(millrace.ensure_partitions('raw', '2024-04-01 00:00+00', '2024-04-01 00:00+00'), 1, 'a role that cannot alter the target');
RESET ROLE;
ALTER TABLE clean OWNER TO mr_pipe_owner;
SET ROLE mr_pipe_ingester;
SELECT is(millrace.ensure_partitions('raw', '2024-04-02 00:00+00', '2024-04-02 00:00+00'), 2, 'one that can, with nothing else granted');
RESET ROLE;
SELECT * FROM finish();
ROLLBACK;
