BEGIN;
SELECT plan(92);
SET LOCAL client_min_messages = warning;

-- Item i has 41 - i users, so that the order is known; items 1 and 101 tie.
CREATE TABLE r AS SELECT u, i FROM generate_series(1, 40) AS i, generate_series(1, 41 - i) AS u UNION ALL SELECT u, 101 FROM generate_series(1, 40) AS u;
SELECT millrace.train_als('m', 'r', rank => 4, iterations => 2);

-- Without categories
SELECT is(ARRAY(SELECT (rank, item_id, item, score, category)::text FROM millrace.baseline('m', 'top') WHERE rank <= 4 ORDER BY rank),
	'{"(1,1,1,40,)","(2,101,101,40,)","(3,2,2,39,)","(4,3,3,38,)"}', 'top: by users, ties by id');
SELECT is((SELECT count(*) FROM millrace.baseline('m', 'top')), 41::bigint, 'all items');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m') ORDER BY rank), '{1,101,2,3,4}', 'top_5 is the default; without categories the first five');
SELECT is((SELECT count(*) FROM millrace.baseline('m', 'top_100')), 41::bigint, 'no more than there are');
SELECT is((SELECT count(*) FROM millrace.baseline('m', 'top_99999999999999999999')), 41::bigint, 'however many');
CREATE TEMP TABLE random AS SELECT * FROM millrace.baseline('m', 'random');
SELECT is(ARRAY(SELECT item_id FROM random ORDER BY item_id), ARRAY(SELECT DISTINCT i::bigint FROM r ORDER BY 1), 'random: every item once');
SELECT isnt(ARRAY(SELECT item_id FROM random ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY item_id), 'in another order');
SELECT ok(min(score) >= 0 AND max(score) < 1 AND bool_and(score <= coalesce(last, 1)), 'by a number between 0 and 1') FROM (SELECT score, lag(score) OVER (ORDER BY rank) AS last FROM random) AS x;
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'random_5') ORDER BY rank), ARRAY(SELECT item_id FROM random WHERE rank <= 5 ORDER BY rank), 'random_5: its first five');
SELECT millrace.train_als('again', 'r', rank => 4, iterations => 2);
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('again', 'random') ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY rank), 'the same for the same seed and version');
SELECT millrace.train_als('again', 'r', rank => 4, iterations => 2);
SELECT isnt(ARRAY(SELECT item_id FROM millrace.baseline('again', 'random') ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY rank), 'another for another version');
SELECT millrace.rollback('again');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('again', 'random') ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY rank), 'rollback brings the first back');
SELECT millrace.train_als('seed', 'r', rank => 4, iterations => 2, seed => 2);
SELECT isnt(ARRAY(SELECT item_id FROM millrace.baseline('seed', 'random') ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY rank), 'another for another seed');

-- With categories: of tens, none for 31 to 40, of 200 too, which nobody has
CREATE TABLE f AS SELECT i, 'c' || (i - 1) / 10 AS c, 'd' AS ignored FROM generate_series(1, 30) AS i UNION ALL VALUES (101, 'c0', 'd'), (200, 'c9', 'd'), (31, NULL, 'd');
SELECT is((SELECT (items, categories)::text FROM millrace.set_item_features('m', 'f')), '(32,4)', 'set_item_features: items with a category, categories');
SELECT is(ARRAY(SELECT (item_id, score, category)::text FROM millrace.baseline('m', 'top_5') ORDER BY rank),
	'{"(1,40,c0)","(11,30,c1)","(21,20,c2)","(31,10,)","(32,9,)"}', 'top_5: five different categories, an item without one being its own');
SELECT is((SELECT count(*) FROM millrace.baseline('m', 'top_1000')), 13::bigint, 'three categories and ten items without');
SELECT is((SELECT count(DISTINCT coalesce(category, item)) FROM millrace.baseline('m', 'random_7')), 7::bigint, 'random_7 too');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'random') ORDER BY rank), ARRAY(SELECT item_id FROM random ORDER BY rank), 'the order of random stays');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'random_13') ORDER BY rank), ARRAY(
	SELECT item_id FROM (SELECT rank, item_id, row_number() OVER (PARTITION BY coalesce(c, item) ORDER BY rank) AS n FROM random LEFT JOIN f ON f.i = item_id) AS x WHERE n = 1 ORDER BY rank), 'the first of each category, in that order');
SELECT is((SELECT category FROM millrace.baseline('m', 'top') WHERE item_id = 2), 'c0', 'category of an item');
SELECT is((SELECT (query, items, categories)::text FROM millrace.item_features WHERE model = 'm'), '("TABLE public.f",32,4)', 'what is stored');
SELECT is((SELECT (items, categories)::text FROM millrace.set_item_features('m', 'SELECT i::smallint, i % 2 = 0 FROM f WHERE i < 3')), '(2,2)', 'a category of another type; in the place of the others');
SELECT is(ARRAY(SELECT (item_id, category)::text FROM millrace.baseline('m', 'top') WHERE rank <= 4 ORDER BY rank), '{"(1,false)","(101,)","(2,true)","(3,)"}', 'as text');
SELECT is((SELECT (items, categories)::text FROM millrace.set_item_features('m', NULL)), '(0,0)', 'NULL: none any more');
SELECT is(ARRAY(SELECT (item_id, category)::text FROM millrace.baseline('m', 'top_3') ORDER BY rank), '{"(1,)","(101,)","(2,)"}', 'which shows');
SELECT is((SELECT count(*) FROM millrace.item_features_block), 0::bigint, 'and leaves nothing');

-- Baselines of the user's own
SELECT is(millrace.set_baseline('m', 'VALUES (7), (3), (555), (5)'), 4::bigint, 'set_baseline');
SELECT is(ARRAY(SELECT (rank, item_id, item, score)::text FROM millrace.baseline('m', 'custom') ORDER BY rank), '{"(1,7,7,1)","(2,3,3,0.5)","(3,555,555,0.33333334)","(4,5,5,0.25)"}',
	'in the order of the query; items that the model does not know too');
SELECT is(millrace.set_baseline('m', 'SELECT i::text, -abs(i - 10) FROM f WHERE i < 20', 'near ten'), 19::bigint, 'another name');
SELECT is(ARRAY(SELECT (item_id, score)::text FROM millrace.baseline('m', 'near ten') WHERE rank <= 3 ORDER BY rank), '{"(10,0)","(11,-1)","(9,-1)"}', 'by score, ties by id, which is a text here');
SELECT is((SELECT count(*) FROM millrace.baseline('m', 'custom')), 4::bigint, 'the other stays');
SELECT millrace.set_item_features('m', 'f');
SELECT is(ARRAY(SELECT (item_id, category)::text FROM millrace.baseline('m', 'custom') ORDER BY rank), '{"(7,c0)","(3,c0)","(555,)","(5,c0)"}', 'with categories');
SELECT is(millrace.set_baseline('m', 'VALUES (200, 1.5), (1, 2)'), 2::bigint, 'in its place');
SELECT is(ARRAY(SELECT (item_id, score, category)::text FROM millrace.baseline('m', 'custom') ORDER BY rank), '{"(1,2,c0)","(200,1.5,c9)"}', 'the category of an item that the model does not know');
SELECT is(millrace.set_baseline('m', $$ VALUES ('abc'), ('1'), ('0200') $$, 'texts'), 3::bigint, 'texts for a model with integer ids');
SELECT is(ARRAY(SELECT (item_id, item)::text FROM millrace.baseline('m', 'texts') ORDER BY rank), '{"(,abc)","(1,1)","(,0200)"}', 'are found in their plain form');
SELECT is(millrace.set_baseline('m', NULL, 'texts'), 0::bigint, 'NULL removes it');
SELECT throws_ok($$ SELECT * FROM millrace.baseline('m', 'texts') $$, '42704', 'model "m" has no baseline "texts"', 'which shows');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', NULL, 'texts') $$, '42704', 'model "m" has no baseline "texts"', 'once');
SELECT is((SELECT array_agg(item_id) FROM millrace.baseline('again', 'top_2')), '{1,101}', 'another model''s lists are its own');

-- More rows than fit a block, and texts
SELECT millrace.train_als('text', $$ SELECT u, 'ü' || i FROM r $$, rank => 2, iterations => 1);
SELECT is(millrace.set_baseline('text', $$ SELECT 'ü' || i, i FROM generate_series(1, 2500) AS i $$), 2500::bigint, 'three blocks');
SELECT is((SELECT count(*) FROM millrace.baseline('text', 'custom') WHERE score = 2501 - rank AND item = 'ü' || 2501 - rank AND item_id IS NULL), 2500::bigint, 'all of them');
SELECT is((SELECT (items, categories)::text FROM millrace.set_item_features('text', $$ SELECT 'ü' || i, i % 1200 FROM generate_series(1, 2500) AS i $$)), '(2500,1200)', 'categories in several blocks');
SELECT is((SELECT count(*) FROM millrace.baseline('text', 'custom') WHERE category = ((2501 - rank) % 1200)::text), 2500::bigint, 'all of them');

-- Refreshing
INSERT INTO f VALUES (32, 'c0');
CREATE TABLE b AS SELECT 5 AS i;
SELECT millrace.set_baseline('m', 'b');
TRUNCATE b;
INSERT INTO b VALUES (6), (4);
SELECT is((SELECT category FROM millrace.baseline('m', 'top') WHERE item_id = 32), NULL, 'a list is as it was read');
SELECT is(millrace.refresh_lists('m'), 3, 'refresh_lists: the features and two baselines');
SELECT is((SELECT category FROM millrace.baseline('m', 'top') WHERE item_id = 32), 'c0', 'are read again');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'custom') ORDER BY rank), '{6,4}', 'baselines too');
INSERT INTO f VALUES (33, 'c0');
INSERT INTO r VALUES (1, 33), (41, 101);
SELECT active FROM millrace.retrain('m');
SELECT is((SELECT category FROM millrace.baseline('m', 'top') WHERE item_id = 33), 'c0', 'by retrain');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'top') WHERE rank < 3 ORDER BY rank), '{101,1}', 'which counts users anew');
SET LOCAL client_min_messages = error;
TRUNCATE b;
SELECT is(millrace.refresh_lists('m'), 3, 'a query that gives nothing');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'custom') ORDER BY rank), '{6,4}', 'leaves the list as it was');
ALTER TABLE f RENAME TO renamed;
SELECT throws_ok($$ SELECT millrace.refresh_lists('m') $$, '42P01', 'relation "public.f" does not exist', 'a query that fails');
INSERT INTO b VALUES (9);
SELECT is((SELECT version FROM millrace.retrain('m')), 3, 'does not keep a model from being retrained');
SELECT is((SELECT category FROM millrace.baseline('m', 'top') WHERE item_id = 33), 'c0', 'its list stays');
SELECT is(ARRAY(SELECT item_id FROM millrace.baseline('m', 'custom')), '{9}', 'the others are read');
SET LOCAL client_min_messages = warning;
SELECT is(millrace.refresh_lists('again'), 0, 'none to refresh');

-- Subtransactions
CREATE FUNCTION undone() RETURNS text LANGUAGE plpgsql AS $$ DECLARE seen text; BEGIN
	BEGIN PERFORM millrace.set_baseline('m', 'VALUES (1)'); SELECT string_agg(item, ',') INTO seen FROM millrace.baseline('m', 'custom'); RAISE EXCEPTION 'undo'; EXCEPTION WHEN raise_exception THEN NULL; END;
	RETURN seen || ' ' || (SELECT string_agg(item, ',') FROM millrace.baseline('m', 'custom')); END $$;
SELECT is(undone(), '1 9', 'what is undone is undone for readers');

-- Bad input
CREATE TABLE no_columns ();
SELECT throws_ok($$ SELECT millrace.set_baseline('m', 'no_columns') $$, '22023', 'baseline: there are no columns', 'a baseline without columns');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', 'SELECT FROM r') $$, '22023', 'baseline: there are no columns', 'by a query');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'no_columns') $$, '22023', 'item features: expected two columns, found 0', 'features without columns');
SELECT throws_ok($$ SELECT * FROM millrace.baseline('nope') $$, '42704', 'model "nope" does not exist', 'unknown model');
SELECT throws_ok($$ SELECT * FROM millrace.baseline('m', 'top_x') $$, '42704', 'model "m" has no baseline "top_x"', 'unknown baseline');
SELECT throws_ok($$ SELECT * FROM millrace.baseline('m', 'top_0') $$, '22023', 'baseline "top_0" of model "m" would be empty', 'none of them');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', 'b', 'random_5') $$, '22023', 'baseline "random_5" is built in', 'a name that is taken');
SELECT throws_ok($$ SELECT millrace.set_item_features('nope', 'b') $$, '42704', 'model "nope" does not exist', 'features of an unknown model');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'b') $$, '22023', 'item features: expected two columns, found 1', 'too few columns');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'SELECT 1.5, 2') $$, '22023', 'item features: the first column, item, is neither an integer nor text but numeric', 'a wrong type');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', $q$ SELECT 1, 'x'::text $q$) $$, '22023', 'baseline: the second column, score, is not a number but text', 'a score that is none');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'VALUES (1, 2), (8, 3), (1, 4)') $$, '22023', 'item features: item "1" is there more than once', 'an item twice');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'VALUES (1, 2), (NULL, 3)') $$, '22023', 'item features: an item is NULL', 'a NULL item');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', 'VALUES (1, 2), (8, NULL)') $$, '22023', 'baseline: the score of item "8" is NULL', 'a NULL score');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', $q$ SELECT 8, 'NaN'::numeric $q$) $$, '22003', 'baseline: the score of item "8" is NaN', 'a score that is not a number');
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'SELECT 1, 2 WHERE false') $$, '22023', 'item features: there are no rows', 'no rows');

-- Rights
CREATE ROLE mr_owner;
CREATE ROLE mr_other;
GRANT USAGE ON SCHEMA millrace TO mr_owner, mr_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_owner, mr_other;
CREATE SCHEMA private AUTHORIZATION mr_owner;
CREATE TABLE not_his AS SELECT 1 AS i, 2 AS c;
GRANT SELECT ON r TO mr_owner;
SET LOCAL ROLE mr_owner;
CREATE TABLE private.f AS SELECT i, i % 2 AS c FROM generate_series(1, 40) AS i;
SET LOCAL search_path = private, public;
SELECT millrace.train_als('owned', 'r', rank => 2, iterations => 1), millrace.set_item_features('owned', 'SELECT i, c, current_user FROM f'),
	millrace.set_baseline('owned', 'SELECT i, length(current_user) FROM f');
SET LOCAL search_path = public;
SELECT is(score, 8::real, 'run as the owner') FROM millrace.baseline('owned', 'custom') WHERE rank = 1;
SET LOCAL ROLE mr_other;
SELECT is(ARRAY(SELECT (item_id, category)::text FROM millrace.baseline('owned', 'top_2') ORDER BY rank), '{"(101,)","(1,1)"}', 'who has no right on the table may read the lists');
SELECT throws_ok($$ SELECT millrace.set_item_features('owned', 'VALUES (1, 2)') $$, '42501', 'must be owner of model "owned"', 'but not set them');
SELECT throws_ok($$ SELECT millrace.set_baseline('owned', 'VALUES (1)') $$, '42501', 'must be owner of model "owned"', 'nor baselines');
SELECT throws_ok($$ SELECT millrace.refresh_lists('owned') $$, '42501', 'must be owner of model "owned"', 'nor refresh them');
SELECT throws_ok($$ DELETE FROM millrace.item_features $$, '42501', NULL, 'nor write the tables');
RESET ROLE;
SELECT throws_ok($$ SELECT millrace.set_item_features('owned', 'not_his') $$, '42501', 'permission denied for table not_his', 'a superuser lends no rights');
SELECT is(millrace.refresh_lists('owned'), 2, 'but may refresh');
SELECT is(score, 8::real, 'as the owner, by his search_path') FROM millrace.baseline('owned', 'custom') WHERE rank = 1;
CREATE TEMP TABLE passing AS SELECT 1 AS i, 2 AS c;
SELECT throws_ok($$ SELECT millrace.set_item_features('m', 'SELECT i, c FROM passing') $$, '22023', 'temporary relation "passing" cannot be used', 'no temporary tables');
SELECT throws_ok($$ SELECT millrace.set_baseline('m', 'passing') $$, '22023', 'temporary relation "passing" cannot be used', 'for baselines neither');
CREATE ROLE mr_nobody;
GRANT USAGE ON SCHEMA millrace TO mr_nobody;
SET LOCAL ROLE mr_nobody;
SELECT throws_ok($$ SELECT millrace.set_baseline('owned', 'VALUES (1)') $$, '42501', 'permission denied for function set_baseline', 'setting is not for everybody');
SELECT isnt_empty($$ SELECT * FROM millrace.baseline('owned') $$, 'reading is');
RESET ROLE;
SELECT millrace.drop_model('owned');

-- A model that was imported: its ratings have an item that its factors have not
CREATE TABLE factors AS SELECT i, ARRAY[1, i]::real[] AS f FROM generate_series(1, 5) AS i;
SELECT millrace.import_als('bare', 'factors', 'factors');
SELECT is((SELECT count(*) FROM millrace.baseline('bare', 'top')), 0::bigint, 'nothing is known of the users of its items');
SELECT is((SELECT count(*) FROM millrace.baseline('bare', 'random')), 5::bigint, 'its items are');
SELECT millrace.import_als('with', 'factors', 'factors', 'VALUES (1, 9), (2, 9), (1, 3), (3, 8)');
SELECT millrace.set_item_features('with', 'VALUES (9, 1), (3, 1), (7, 2)');
SELECT is(ARRAY(SELECT (item_id, score, category)::text FROM millrace.baseline('with', 'top') ORDER BY rank), '{"(9,2,1)","(3,1,1)","(8,1,)"}', 'items that only the ratings have');
SELECT is(ARRAY(SELECT (item_id, score, category)::text FROM millrace.baseline('with', 'top_3') ORDER BY rank), '{"(9,2,1)","(8,1,)"}', 'of different categories');
SELECT millrace.drop_model('bare'), millrace.drop_model('with');

-- Nothing stays
SELECT millrace.drop_model('m'), millrace.drop_model('text');
SELECT is((SELECT count(*) FROM millrace.item_features) + (SELECT count(*) FROM millrace.item_features_block) + (SELECT count(*) FROM millrace.custom_baseline) + (SELECT count(*) FROM millrace.custom_baseline_block), 0::bigint, 'drop_model removes all');

SELECT * FROM finish();
ROLLBACK;
