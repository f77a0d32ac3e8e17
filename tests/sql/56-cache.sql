-- The files that sessions share: one a version, made, found, bounded and swept.
\set ON_ERROR_STOP 1
SET client_min_messages = warning;
SELECT plan(58);

CREATE SCHEMA cache_test;
SET search_path = cache_test, public;
CREATE TABLE r AS SELECT DISTINCT n % 97 AS u, (n * n / 7) % 83 AS i FROM generate_series(1, 3000) AS n;
CREATE FUNCTION folder() RETURNS text LANGUAGE sql AS
	$$ SELECT regexp_replace(pg_relation_filepath('pg_class'), '/[^/]*$', '') || '/' $$;
-- name: uuid, and .pid of one that is being written; not those of lists
CREATE VIEW files AS SELECT substr(f, 20) AS name, folder() || f AS path, (pg_stat_file(folder() || f)).size AS n_bytes
	FROM pg_ls_dir(folder()) AS f WHERE f LIKE 'pgsql\_tmp\_millrace.%' AND NOT EXISTS (SELECT FROM millrace.model WHERE lists::text = substr(f, 20));
CREATE VIEW versions AS SELECT v.model || ' ' || v.version AS version, f.* FROM files AS f JOIN millrace.model_version AS v ON v.uuid::text = f.name;
CREATE FUNCTION at_server(command text) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN EXECUTE format('COPY (SELECT) TO PROGRAM %L', 'cat >/dev/null; cd ' || quote_literal(current_setting('data_directory')) || ' && ' || command); END $$;
-- Forgets what this session has open: eight others are.
CREATE FUNCTION forget() RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN FOR i IN 1..8 LOOP
		PERFORM millrace.import_als('other' || i, 'SELECT 1 AS id, ARRAY[1]::real[]', 'SELECT 1 AS id, ARRAY[1]::real[]');
		PERFORM count(*) FROM millrace.item_factors('other' || i);
		PERFORM count(*) FROM millrace.baseline('other' || i);
	END LOOP; END $$;
SELECT millrace.warm();

-- Strays: of tests that rolled back, of a writer who is gone, and what only looks like one
SELECT at_server('touch ' || folder() || 'pgsql_tmp_millrace.00000000-0000-4000-8000-000000000001 ' ||
	folder() || 'pgsql_tmp_millrace.00000000-0000-4000-8000-000000000002.12345 ' || folder() || 'pgsql_tmp_millrace.mine');
SELECT millrace._sweep_cache();
SELECT is((SELECT array_agg(name) FROM files AS f WHERE NOT EXISTS (SELECT FROM versions AS v WHERE v.name = f.name)), '{mine}', 'what no row stands for is swept; other names are left alone');
SELECT at_server('rm ' || folder() || 'pgsql_tmp_millrace.mine');

-- Made with the version, if that is to be served
SELECT millrace.train_als('m', 'r', rank => 8, iterations => 2);
SELECT is(array_agg(version), '{m 1}', 'a training that activates writes the file of its version') FROM versions WHERE version ~ '^m ';
SELECT millrace.train_als('m', 'r', rank => 8, iterations => 3, activate => false);
SELECT is(array_agg(version), '{m 1}', 'one that does not writes none') FROM versions WHERE version ~ '^m ';
CREATE TABLE answer AS SELECT * FROM millrace.recommend_top_k('m', 5, 1000, false);
SELECT is(millrace.warm('m'), n_bytes, 'warm tells what sessions share') FROM versions WHERE version = 'm 1';
SELECT is(millrace.warm(), sum(n_bytes)::bigint, 'of all models, without an argument') FROM versions AS v
	WHERE EXISTS (SELECT FROM millrace.models AS m WHERE m.active AND m.name || ' ' || m.version = v.version);
SELECT millrace.activate('m', 2);
SELECT is(array_agg(version ORDER BY version), '{m 1,m 2}', 'activate makes what is not there') FROM versions WHERE version ~ '^m ';
SELECT isnt((SELECT array_agg(score ORDER BY rank) FROM millrace.recommend_top_k('m', 5, 1000, false)), (SELECT array_agg(score ORDER BY rank) FROM answer), 'and its version is served');
SELECT millrace.rollback('m');
SELECT is((SELECT array_agg(t ORDER BY rank) FROM millrace.recommend_top_k('m', 5, 1000, false) AS t)::text, (SELECT array_agg(t ORDER BY rank) FROM answer AS t)::text, 'rollback goes back to the same');
SELECT is(mode.octal, '600', 'nobody else may read it') FROM
	(SELECT 1) AS one, LATERAL (SELECT at_server('stat -c %a ' || (SELECT path FROM versions WHERE version = 'm 1') || ' > mode')) AS x(y),
	LATERAL (SELECT trim(pg_read_file('mode'), E'\n ') AS octal WHERE x.y IS NOT NULL) AS mode;

-- Made again
SELECT at_server('rm ' || path) FROM versions WHERE version = 'm 1';
SELECT is((SELECT array_agg(t ORDER BY rank) FROM millrace.recommend_top_k('m', 5, 1000, false) AS t)::text, (SELECT array_agg(t ORDER BY rank) FROM answer AS t)::text, 'who has it open goes on without the file');
SELECT is(count(*), 0::bigint, 'and does not make it') FROM versions WHERE version = 'm 1';
SELECT forget();
SELECT is((SELECT array_agg(t ORDER BY rank) FROM millrace.recommend_top_k('m', 5, 1000, false) AS t)::text, (SELECT array_agg(t ORDER BY rank) FROM answer AS t)::text, 'one that is missing: the answer is the same');
SELECT is(array_agg(version ORDER BY version), '{m 1,m 2}', 'and the file is there again') FROM versions WHERE version ~ '^m ';
SELECT forget();
SELECT at_server('rm ' || path) FROM versions WHERE version = 'm 1';
SET min_parallel_table_scan_size = 0;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
ALTER TABLE r SET (parallel_workers = 1);
CREATE TABLE from_parallel AS SELECT count(*) AS n FROM (SELECT u FROM r WHERE i >= 0) AS r, millrace.recommend_top_k('m', u, 3, false);
SELECT is(n, (SELECT count(*) * 3 FROM r), 'it can be made while a parallel query runs') FROM from_parallel;
RESET min_parallel_table_scan_size;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
-- Damaged: each kind of harm, and whether the file is whole afterwards
CREATE TABLE whole AS SELECT pg_read_binary_file(path) AS bytes, path, n_bytes FROM versions WHERE version = 'm 1';
CREATE TABLE harm (harm text, command text);
INSERT INTO harm VALUES
	('a byte of its header is wrong', 'printf X | dd of=%s bs=1 seek=540 conv=notrunc status=none'),
	('it is of another version', 'printf X | dd of=%s bs=1 seek=8 conv=notrunc status=none'),
	('a byte of a section is wrong', 'printf X | dd of=%s bs=1 seek=1000 conv=notrunc status=none'),
	('its last byte is wrong', 'printf X | dd of=%1$s bs=1 seek=$(($(stat -c %%s %1$s) - 1)) conv=notrunc status=none'),
	('it ends too early', 'truncate -s -1 %s'),
	('it is longer', 'printf X >> %s'),
	('it is empty', 'truncate -s 0 %s'),
	('it is all zeros', 'dd if=/dev/zero of=%1$s bs=$(stat -c %%s %1$s) count=1 conv=notrunc status=none'),
	('it is another version''s', 'cp OTHER %s'),
	('it is a folder', 'rm %1$s && mkdir %1$s');
CREATE FUNCTION answer_after(command text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE result text;
BEGIN
	PERFORM forget();
	PERFORM at_server(format(replace(command, 'OTHER', (SELECT path FROM versions WHERE version = 'm 2')), (SELECT path FROM whole)));
	SELECT array_agg(t ORDER BY rank)::text INTO result FROM millrace.recommend_top_k('m', 5, 1000, false) AS t;
	RETURN result;
END $$;
SELECT is(answer_after(command), (SELECT array_agg(t ORDER BY rank) FROM answer AS t)::text, harm || ': the answer is the same') ||
	E'\n' || is(pg_read_binary_file(path), bytes, harm || ': the file is whole again') FROM harm, whole WHERE harm <> 'it is a folder' ORDER BY harm;
SET client_min_messages = error;
SELECT is(answer_after(command), (SELECT array_agg(t ORDER BY rank) FROM answer AS t)::text, 'a file that cannot be: the answer is the same') FROM harm WHERE harm = 'it is a folder';
SELECT forget();
SELECT is(millrace.warm('m'), 0::bigint, 'and warm tells that nothing is shared');
SET client_min_messages = warning;
SELECT at_server('rmdir ' || path) FROM whole;
SELECT forget();
SELECT is(millrace.warm('m'), n_bytes, 'until it can be again') FROM whole;

-- A block that is corrupt
SELECT millrace.train_als('n', 'r', rank => 4, iterations => 1, activate => false);
UPDATE millrace.factors SET data = set_byte(data, 200, 255 - get_byte(data, 200)) WHERE model = 'n' AND side = 'item';
SELECT throws_ok($$SELECT millrace.activate('n', 1)$$, 'XX001', 'block 0 of side "item" of model "n" version 1 is corrupt: its checksum is wrong', 'a corrupt block is named, and its version not activated');
UPDATE millrace.model SET active = 1 WHERE name = 'n';
SELECT throws_ok($$SELECT millrace.recommend_top_k('n', 5)$$, 'XX001', NULL, 'nor served');
SELECT throws_ok($$SELECT millrace.warm('n')$$, 'XX001', NULL, 'nor warmed');
SET client_min_messages = error;
SELECT is(millrace.warm(), (SELECT sum(n_bytes)::bigint FROM versions AS v WHERE EXISTS (SELECT FROM millrace.models AS m WHERE m.active AND m.name || ' ' || m.version = v.version)), 'the other models are');
SET client_min_messages = warning;
SELECT is(count(*), 0::bigint, 'no file is made of it') FROM versions WHERE version ~ '^n ';
SELECT throws_ok($$SELECT millrace.warm('none')$$, '42704', 'model "none" does not exist', 'warm: a model that does not exist');
SELECT millrace.drop_model('n');

-- A block that is missing
SELECT millrace.import_als('n', 'SELECT g AS id, ARRAY[1]::real[] FROM generate_series(1, 5000) AS g', 'SELECT g AS id, ARRAY[1]::real[] FROM generate_series(1, 5000) AS g', activate => false);
BEGIN;
DELETE FROM millrace.factors WHERE model = 'n' AND side = 'item' AND block = 1;
SELECT throws_ok($$SELECT millrace.activate('n', 1)$$, 'XX001', 'block 1 of side "item" of model "n" version 1 is corrupt: it is missing', 'the last block is missing');
ROLLBACK;
BEGIN;
DELETE FROM millrace.factors WHERE model = 'n' AND side = 'user' AND block = 1;
SELECT throws_ok($$SELECT millrace.activate('n', 1)$$, 'XX001', 'block 1 of side "user" of model "n" version 1 is corrupt: it is missing', 'of users');
ROLLBACK;
SELECT lives_ok($$SELECT millrace.activate('n', 1)$$, 'none is');
SELECT millrace.drop_model('n');

-- Lists: a query of one that reads another, which is being changed, does not make that known before it is committed
CREATE FUNCTION remove_lists() RETURNS void LANGUAGE sql AS
	$$ SELECT forget(); SELECT at_server('rm -f ' || folder() || 'pgsql_tmp_millrace.' || lists) FROM millrace.model WHERE name = 'm' $$;
CREATE FUNCTION categories() RETURNS text LANGUAGE sql AS $$ SELECT string_agg(DISTINCT category, ',') FROM millrace.baseline('m', 'top_3') $$;
CREATE TABLE f AS SELECT i, i % 3 AS c FROM generate_series(0, 82) AS i;
SELECT millrace.set_item_features('m', 'f');
SELECT millrace.set_baseline('m', $$SELECT item_id FROM millrace.baseline('m', 'top_3')$$);
UPDATE f SET c = 7;
SELECT remove_lists();
BEGIN;
SELECT millrace.refresh_lists('m');
ROLLBACK;
SELECT is(categories(), '0,1,2', 'what is undone was never seen');
SELECT remove_lists();
SELECT millrace.refresh_lists('m');
SELECT forget();
SELECT is(categories(), '7', 'what is committed is');
-- Older lists, whose files have gone, are not kept
CREATE FUNCTION gone() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM regexp_matches(pg_read_file('/proc/self/maps'), 'pgsql_tmp_millrace[^\n]* .deleted', 'g') $$;
CREATE TABLE gone_before AS SELECT gone() AS n;
SELECT millrace.refresh_lists('m');
SELECT categories();
SELECT millrace.refresh_lists('m');
SELECT categories();
SELECT is(gone() - n, 0::bigint, 'a session lets go of lists that are no more') FROM gone_before;
SELECT is((SELECT proparallel FROM pg_proc WHERE proname = 'warm'), 'u', 'warm needs subtransactions, which a parallel query must not have');

-- The bound: who was used longest ago goes
SELECT millrace.drop_model(name) FROM (SELECT DISTINCT name FROM millrace.models WHERE name ~ '^other') AS m;
SELECT at_server('touch -d "1 hour ago" ' || path) FROM versions WHERE version = 'm 1';
SELECT set_config('millrace.cache_size', ((SELECT sum((pg_stat_file(folder() || f)).size) FROM pg_ls_dir(folder()) AS f WHERE f LIKE 'pgsql\_tmp\_millrace.%') / 1024 + 1)::text || 'kB', false);
SELECT millrace.train_als('b', 'r', rank => 4, iterations => 1);
SELECT is(array_agg(version ORDER BY version), '{b 1,m 2}', 'the file that was used longest ago gives way') FROM versions;
SET millrace.cache_size = 0;
SET client_min_messages = error;
SELECT millrace.train_als('c', 'r', rank => 4, iterations => 1);
SELECT is(array_agg(version ORDER BY version), '{b 1,m 2}', 'one that does not fit makes no other go') FROM versions;
SELECT is(count(*), 10::bigint, 'and is served all the same') FROM millrace.recommend_top_k('c', 5);
RESET millrace.cache_size;
SET client_min_messages = warning;

-- They go with what they were made of, at commit
CREATE TABLE file_of_b AS SELECT name FROM versions WHERE version = 'b 1';
BEGIN;
SELECT millrace.drop_model('b');
SELECT is(count(*), 1::bigint, 'a model that is dropped keeps its file to the end of the transaction') FROM files JOIN file_of_b USING (name);
ROLLBACK;
SELECT is(array_agg(version), '{b 1}', 'and longer when that is rolled back') FROM versions WHERE version ~ '^b ';
BEGIN;
SAVEPOINT s;
SELECT millrace.drop_model('b');
ROLLBACK TO s;
COMMIT;
SELECT is(array_agg(version), '{b 1}', 'to a savepoint, too') FROM versions WHERE version ~ '^b ';
BEGIN;
SAVEPOINT s;
SELECT millrace.drop_model('b');
RELEASE s;
COMMIT;
SELECT is(count(*), (SELECT count(*) FROM versions), 'and has none any more when it is dropped') FROM files;
SELECT millrace.train_als('m', 'r', rank => 4, iterations => 1), millrace.train_als('m', 'r', rank => 4, iterations => 1);
SELECT millrace.prune('m', 1);
SELECT is(array_agg(version), '{m 4}', 'prune takes the files of its versions along') FROM versions;

SELECT millrace.drop_model(name) FROM (SELECT DISTINCT name FROM millrace.models WHERE name ~ '^(m|n|b|c|other.)$') AS m;
CREATE ROLE mr_cache_user;
GRANT USAGE ON SCHEMA millrace TO mr_cache_user;
SET ROLE mr_cache_user;
SELECT throws_ok('SET millrace.cache_size = 0', '42501', NULL, 'the bound is set by superusers');
SELECT throws_ok('SELECT millrace._sweep_cache()', '42501', NULL, 'the sweep is a step of maintain');
RESET ROLE;
REVOKE ALL ON SCHEMA millrace FROM mr_cache_user;
DROP ROLE mr_cache_user;
SET client_min_messages = error;
DROP SCHEMA cache_test CASCADE;
SELECT * FROM finish();
