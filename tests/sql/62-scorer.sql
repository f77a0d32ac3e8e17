-- Scorers: recommendations for the users of each batch.
BEGIN;
SELECT * FROM no_plan();
SET LOCAL client_min_messages = error;
SET LOCAL timezone = 'UTC';
CREATE SCHEMA shop;
SET LOCAL search_path = shop, public;

CREATE TABLE sales (at timestamptz, customer bigint, product int, qty int) PARTITION BY RANGE (at);
SELECT millrace.create_source('sales', 'at');
SELECT millrace.ensure_partitions('sales', '2024-01-01', '2024-01-02');
INSERT INTO sales SELECT '2024-01-01'::timestamptz + n * interval '1 second', n % 60, (n * n / 7) % 67, 1 + n % 3 FROM generate_series(1, 1500) n;
SELECT millrace.train_als('m', 'SELECT customer, product, qty FROM shop.sales WHERE customer + product IS NOT NULL', rank => 6, iterations => 4);
-- Categories of nine items; products from 60 on have none.
SELECT millrace.set_item_features('m', 'SELECT i, ''c'' || i % 7 FROM generate_series(0, 59) i UNION ALL SELECT 1000, ''c1''');
SELECT millrace.create_scorer('s', 'sales', 'm', 'customer', 'product');
SELECT millrace.create_scorer('two', 'sales', 'm', 'customer', 'product', k => 8, max_per_category => 2);
SELECT millrace.create_scorer('free', 'sales', 'm', 'customer', 'product', k => 4, max_per_category => NULL);
SELECT millrace.create_scorer('unseen', 'sales', 'm', 'customer', 'product', exclude_seen => true, baseline => 'top_5');

SELECT is((SELECT array_agg(attname || ' ' || format_type(atttypid, atttypmod) ORDER BY attnum) FROM pg_attribute WHERE attrelid = 's'::regclass AND attnum > 0),
	'{"at timestamp with time zone","customer bigint","product integer","qty integer","category text","items bigint[]","scores real[]","sources text[]",'
	'"precision_own real","precision_next real","scored_at timestamp with time zone","seq bigint","is_last boolean"}', 'columns of the table');
SELECT is((SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = 's_latest'::regclass), '{at,customer,product,qty,category,items,scores,sources,precision_own,precision_next,scored_at,seq}', 'columns of NAME_latest');
SELECT is((SELECT array_agg(attname ORDER BY attnum) FROM pg_attribute WHERE attrelid = 's_hourly'::regclass), '{hour,users,precision_own,judged,precision_next}', 'columns of NAME_hourly');
SELECT is(count(*), 0::bigint, 'rows from before it was created are not scored') FROM s;

-- What a row must be answered by: the whole ranking of its user, item by item.
CREATE FUNCTION wanted(model text, customer bigint, product bigint, k int, most int, seen bool DEFAULT false) RETURNS bigint[] LANGUAGE plpgsql AS $$
DECLARE
	r record;
	used jsonb := '{}';
	list bigint[] := '{}';
BEGIN
	IF product < 60 OR product = 1000 THEN
		used := jsonb_build_object('c' || product % 7, 1);
	END IF;
	IF product = 1000 THEN
		used := '{"c1": 1}';
	END IF;
	FOR r IN SELECT t.item_id AS i, CASE WHEN t.item_id < 60 THEN 'c' || t.item_id % 7 END AS c FROM millrace.recommend_top_k(model, customer, 1000, exclude_seen => seen) t
		WHERE t.source <> 'baseline' OR customer IS NULL OR customer >= 100 ORDER BY t.rank LOOP
		EXIT WHEN cardinality(list) = k;
		CONTINUE WHEN r.i = product OR coalesce((used ->> r.c)::int, 0) >= most;
		list := list || r.i;
		used := CASE WHEN r.c IS NULL THEN used ELSE used || jsonb_build_object(r.c, coalesce((used ->> r.c)::int, 0) + 1) END;
	END LOOP;
	RETURN list;
END $$;
CREATE FUNCTION wrong(scorer text, k int, most int, seen bool DEFAULT false) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE n bigint;
BEGIN
	EXECUTE format('SELECT count(*) FROM %I t WHERE items IS DISTINCT FROM shop.wanted(''m'', customer, product, $1, $2, $3)', scorer) INTO n USING k, most, seen;
	RETURN n;
END $$;
-- Known users, a new one, nobody, no item, an unknown item with and without a category.
INSERT INTO sales SELECT '2024-01-02'::timestamptz + n * interval '1 second', n % 50, (n * 31) % 67, 1 FROM generate_series(1, 200) n;
SELECT is(count(*), 200::bigint, 'one row for each of the batch') FROM s;
SELECT is((SELECT count(*) FROM (SELECT at, customer, product, qty FROM s EXCEPT ALL SELECT * FROM sales WHERE at > '2024-01-02') q), 0::bigint, 'with its columns');
SELECT is(wrong('s', 5, 1), 0::bigint, 'the lists are those of recommend_top_k by the rule of categories');
SELECT is(wrong('two', 8, 2), 0::bigint, 'two of a category, the item bought being one');
SELECT is(wrong('free', 4, 1000), 0::bigint, 'any number: all but the item bought');
SELECT is(wrong('unseen', 5, 1, true), 0::bigint, 'without what the user has');
SELECT is(count(*), 0::bigint, 'category of the item bought') FROM s WHERE category IS DISTINCT FROM CASE WHEN product < 60 THEN 'c' || product % 7 END;
SELECT cmp_ok(count(*), '>', 0::bigint, 'some have none') FROM s WHERE category IS NULL;
SELECT is(count(*), 0::bigint, 'five items of five categories, none of them the category bought') FROM s WHERE cardinality(items) <> 5
	OR (SELECT count(DISTINCT coalesce(i % 7, i)) FROM (SELECT CASE WHEN i < 60 THEN i END AS i, i AS j FROM unnest(items) i) q(i, j) WHERE i IS NOT NULL) <> (SELECT count(*) FROM unnest(items) i WHERE i < 60)
	OR EXISTS (SELECT FROM unnest(items) i WHERE i < 60 AND 'c' || i % 7 = category);
SELECT is(count(*), 0::bigint, 'as many scores and sources') FROM s WHERE cardinality(scores) <> 5 OR cardinality(sources) <> 5;
SELECT is(count(*), 0::bigint, 'the scores are those of recommend_top_k') FROM s, unnest(items, scores, sources) AS l(item, score, source)
	WHERE NOT EXISTS (SELECT FROM millrace.recommend_top_k('m', customer, 1000, exclude_seen => false) t WHERE t.item_id = l.item AND t.score = l.score AND t.source = l.source);
SELECT is(count(*), 0::bigint, 'precision_own: what of the list the user has') FROM s
	WHERE precision_own <> (SELECT count(*) / 5.0 FROM unnest(items) i WHERE EXISTS (SELECT FROM sales WHERE sales.customer = s.customer AND sales.product = i))::real;
SELECT cmp_ok(sum(precision_own), '>', 0::real, 'he has some') FROM s;
SELECT is(count(precision_next), 0::bigint, 'no precision_next: nobody had a list') FROM s;
SELECT is((SELECT array_agg(customer ORDER BY customer) FROM s WHERE is_last), (SELECT array_agg(n ORDER BY n) FROM generate_series(0::bigint, 49) n), 'one last row for each user');
SELECT is(count(*), 0::bigint, 'which is his last') FROM s WHERE is_last <> (seq = (SELECT max(seq) FROM s l WHERE l.customer = s.customer));
SELECT is(count(*), 0::bigint, 'and his last purchase') FROM s WHERE is_last AND at <> (SELECT max(at) FROM s l WHERE l.customer = s.customer);
SELECT is(count(DISTINCT seq), 200::bigint, 'each row has a number') FROM s;

-- The next batch
CREATE TEMP TABLE before AS SELECT customer, items FROM s_latest;
SELECT is(count(*), 50::bigint, 'NAME_latest: one row for each user') FROM before;
INSERT INTO sales VALUES ('2024-01-02', 1, (SELECT items[1] FROM before WHERE customer = 1), 1), ('2024-01-02', 1, (SELECT items[2] FROM before WHERE customer = 1), 1),
	('2024-01-02', 1, (SELECT items[2] FROM before WHERE customer = 1), 1), ('2024-01-02', 2, 66, 1), ('2024-01-02', 2, (SELECT items[5] FROM before WHERE customer = 2), 1),
	('2024-01-02', 3, (SELECT i FROM generate_series(0, 66) i WHERE i <> ALL ((SELECT items FROM before WHERE customer = 3)::int[]) LIMIT 1), 1),
	('2024-01-02', 777, 5, 1), ('2024-01-02', NULL, 5, 1), ('2024-01-02', NULL, 12, 1), ('2024-01-02', 4, NULL, 1), ('2024-01-02', 5, 1000, 1), ('2024-01-02', 6, 2000, 1);
\set batch '(SELECT * FROM s WHERE scored_at = (SELECT max(scored_at) FROM s)) b'
SELECT is((SELECT array_agg(precision_next ORDER BY seq) FROM :batch WHERE customer = 1), '{0.4,0.4,0.4}', 'precision_next: two of his last list, one of them twice');
SELECT is((SELECT array_agg(precision_next ORDER BY seq) FROM :batch WHERE customer IN (2, 3)), '{0.2,0.2,0}', 'others one and none');
SELECT is((SELECT precision_next FROM :batch WHERE customer = 777), NULL, 'who is new has none');
SELECT is(items, wanted('m', customer, product, 5, 1), 'but a list of his own, of what he has just bought') FROM :batch WHERE customer = 777;
SELECT is(items, ARRAY(SELECT item_id FROM millrace.recommend_top_k('m', NULL::bigint, 6, max_per_category => 1) WHERE 'c' || item_id % 7 IS DISTINCT FROM 'c5' ORDER BY rank LIMIT 5), 'nobody gets the baseline')
	FROM :batch WHERE customer IS NULL LIMIT 1;
SELECT is((SELECT array_agg(ROW(sources[1], precision_own, precision_next, is_last)::text) FROM :batch WHERE customer IS NULL), ARRAY['(baseline,,,f)', '(baseline,,,f)'], 'without precision, and never last');
SELECT is(ROW(category, cardinality(items))::text, '(,5)', 'no item, no category') FROM :batch WHERE customer = 4;
SELECT is(category, 'c1', 'an item that the model does not know may have a category') FROM :batch WHERE customer = 5;
SELECT is((SELECT count(*) FROM :batch, unnest(items) i WHERE customer = 5 AND i < 60 AND i % 7 = 1), 0::bigint, 'which its list then lacks');
SELECT is(category, NULL, 'or none') FROM :batch WHERE customer = 6;
SELECT is(ROW(customer, precision_next)::text, '(1,0.4)', 'NAME_latest shows the newest row') FROM s_latest WHERE customer = 1;
SELECT is(count(*), 51::bigint, 'and nobody is not in it') FROM s_latest;
SELECT is((SELECT ROW(sum(users), round(sum(precision_own)::numeric, 6), sum(judged), round(sum(precision_next)::numeric, 6))::text FROM s_hourly),
	(SELECT ROW(count(*), round(avg(precision_own)::numeric, 6), count(precision_next), round(avg(precision_next)::numeric, 6))::text FROM s WHERE is_last), 'NAME_hourly: means, each user once for each batch');

-- What the batches tell: written when a transaction commits
SAVEPOINT counted;
SELECT is(kind || ' ' || target::text || ' ' || status, 'scorer s running', 'millrace.streams') FROM millrace.streams WHERE name = 's';
SELECT is((definition::jsonb) ->> 'model', 'm', 'and its arguments') FROM millrace.streams WHERE name = 's';

-- A version that is activated serves the next batch
SELECT millrace.train_als('m', 'SELECT customer, product, qty FROM shop.sales WHERE customer IS NOT NULL AND product < 40', rank => 3, iterations => 2);
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1), ('2024-01-02', 8, 50, 1);
SELECT is((SELECT count(*) FROM :batch, unnest(items) i WHERE i >= 40), 0::bigint, 'the next batch takes the version that is active');
SELECT is(items, wanted('m', customer, product, 5, 1), 'with its lists') FROM :batch WHERE customer = 7;
SELECT millrace.activate('m', 1);
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1);
SELECT is(items, wanted('m', customer, product, 5, 1), 'and the one before, activated again') FROM :batch WHERE customer = 7;

-- Rows by COPY into a partition whose columns have another order
SAVEPOINT other;
CREATE TABLE leaf (qty int, junk text, product int, at timestamptz, customer bigint);
ALTER TABLE leaf DROP COLUMN junk;
ALTER TABLE sales ATTACH PARTITION leaf FOR VALUES FROM ('2024-03-01') TO ('2024-03-02');
COPY leaf FROM stdin;
4	9	2024-03-01 10:00:00+00	11
5	10	2024-03-01 11:00:00+00	12
\.
SELECT is((SELECT array_agg(ROW(at, customer, product, qty, category)::text ORDER BY seq) FROM :batch), ARRAY['("2024-03-01 10:00:00+00",11,9,4,c2)', '("2024-03-01 11:00:00+00",12,10,5,c3)'], 'COPY into a leaf with columns in another order');
SELECT is(items, wanted('m', customer, product, 5, 1), 'with the right lists') FROM :batch WHERE customer = 11;
ROLLBACK TO other;

-- Long batches: a user of the first rows comes again
SAVEPOINT long;
CREATE TABLE many (customer bigint, product int);
SELECT millrace.create_scorer('long', 'many', 'm', 'customer', 'product', k => 2);
SET LOCAL work_mem = '64kB';
INSERT INTO many SELECT n % 30000 % 29990, n % 67 FROM generate_series(1, 70000) n;
RESET work_mem;
SELECT is(ROW(count(*), count(DISTINCT seq), count(DISTINCT customer), count(*) FILTER (WHERE is_last))::text, '(70000,70000,29990,29990)', 'a batch of 70,000 rows') FROM long;
SELECT is(count(*), 0::bigint, 'the last row is the last') FROM long l WHERE is_last AND EXISTS (SELECT FROM long o WHERE o.customer = l.customer AND o.seq > l.seq);
INSERT INTO many SELECT customer, items[1] FROM long_latest;
SELECT is(min(precision_next), 0.5::real, 'all find the list before') FROM long WHERE scored_at = (SELECT max(scored_at) FROM long);
ROLLBACK TO long;

-- Streams of the source come first, whenever they were made
SAVEPOINT ordered;
CREATE TABLE own (customer bigint, product bigint);
INSERT INTO own SELECT customer, product FROM sales WHERE product IS NOT NULL AND customer IS NOT NULL;
SELECT millrace.train_als('o', 'SELECT customer, product FROM shop.own', rank => 2, iterations => 2);
CREATE TABLE feed (customer bigint, product bigint);
SELECT millrace.create_scorer('fed', 'feed', 'o', 'customer', 'product', k => 67, max_per_category => NULL);
SELECT millrace.create_pipe('into_own', 'feed', 'INSERT INTO own SELECT * FROM new_rows');
INSERT INTO feed VALUES (9999, 3), (9999, 4);
SELECT is(array_agg(precision_own ORDER BY seq), array_agg((1 / 67.0)::real), 'a pipe that was made later has run before: the other purchase counts as his') FROM fed;
SELECT throws_ok($$ SELECT millrace.create_pipe('back', 'fed', 'INSERT INTO feed SELECT customer, items[1] FROM new_rows') $$, '42P17', 'pipe "back" would feed its own source shop.fed', 'no circles through a scorer');
ROLLBACK TO ordered;

-- Ids of type text
SAVEPOINT texts;
CREATE TABLE words (who varchar(20), what text, n smallint);
INSERT INTO words SELECT 'u' || n % 20, 'é' || n % 23, n % 3 FROM generate_series(1, 300) n;
SELECT millrace.train_als('t', 'SELECT who, what FROM shop.words WHERE who IS NOT NULL AND what IS NOT NULL', rank => 3, iterations => 3);
SELECT millrace.set_item_features('t', 'SELECT DISTINCT what, ''k'' || length(what) FROM shop.words');
SELECT millrace.create_scorer('w', 'words', 't', 'who', 'what', k => 3, max_per_category => 2);
INSERT INTO words VALUES ('u1', 'é5', 1), ('u1', 'é15', 1), ('new', 'nothing', 1), (NULL, NULL, NULL), ('', 'é1', 1);
SELECT is((SELECT array_agg(pg_typeof(items)::text) FROM (SELECT items FROM w LIMIT 1) q), '{text[]}', 'items are texts');
SELECT is((SELECT array_agg(category ORDER BY seq) FROM w WHERE who = 'u1'), '{k2,k3}', 'categories of texts');
SELECT is((SELECT array_agg((SELECT count(*) FROM unnest(items) i WHERE length(i) = length(what)) ORDER BY seq) FROM w WHERE who = 'u1'), '{1,1}', 'one other of its category');
INSERT INTO words SELECT who, items[2] FROM w_latest WHERE who IN ('u1', 'new', '');
SELECT is((SELECT array_agg(precision_next ORDER BY who) FROM w_latest), ARRAY[1 / 3.0, 1 / 3.0, 1 / 3.0]::real[], 'the list before is found');
-- Integers where the model has texts, and the other way round
CREATE TABLE digits (who int, what smallint);
INSERT INTO words SELECT n % 20, n % 23, 1 FROM generate_series(1, 300) n;
SELECT millrace.train_als('t', 'SELECT who, what FROM shop.words WHERE who IS NOT NULL AND what IS NOT NULL', rank => 3, iterations => 3);
SELECT millrace.create_scorer('d', 'digits', 't', 'who', 'what', k => 3, max_per_category => 1);
INSERT INTO digits VALUES (3, 7), (3, 12);
SELECT is((SELECT array_agg(category ORDER BY seq) FROM d), '{NULL,NULL}', 'no features for digits yet');
SELECT is((SELECT bool_or(what::text = ANY (items)) FROM d), false, 'the item bought is not in the list');
INSERT INTO digits SELECT 3, i::int FROM unnest((SELECT items FROM d_latest)) i WHERE i ~ '^\d+$' LIMIT 1;
SELECT cmp_ok((SELECT precision_next FROM d_latest), '>', 0.3::real, 'an integer is found among texts') WHERE EXISTS (SELECT FROM d, unnest(items) i WHERE i ~ '^\d+$' AND seq = 2);
ROLLBACK TO texts;

-- Its table is a table
SAVEPOINT tables;
ALTER TABLE s ADD COLUMN note text DEFAULT 'fresh', ADD CONSTRAINT small CHECK (qty < 100);
SELECT millrace.create_continuous_aggregate('per_category', 'SELECT category, millrace.tumble(scored_at, ''1 day'') AS window_start, count(*) AS n FROM s WHERE category IS NOT NULL GROUP BY 1, 2');
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1), ('2024-01-02', 7, 3, 1), ('2024-01-02', NULL, 5, 1);
SELECT is((SELECT array_agg(note) FROM :batch), '{fresh,fresh,fresh}', 'defaults of columns that were added');
SELECT is((SELECT count(*) FROM millrace.verify('per_category')), 0::bigint, 'it can be a source');
SELECT is((SELECT n FROM per_category WHERE category = 'c5' ORDER BY window_start DESC LIMIT 1), (SELECT count(*) FROM s WHERE category = 'c5'), 'whose streams run in the same batch');
SELECT is(items, wanted('m', customer, product, 5, 1), 'with the same lists') FROM :batch WHERE customer = 7 LIMIT 1;
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3, 500) $$, '23514', NULL, 'its constraints hold');
ALTER TABLE sales ADD COLUMN shop text;
ALTER TABLE s ADD COLUMN shop text;
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1, 'north');
SELECT is((SELECT shop FROM :batch), 'north', 'a column that both have by now');
ALTER TABLE sales DROP COLUMN shop;
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1);
SELECT is((SELECT ROW(qty, shop)::text FROM :batch), '(1,)', 'and one that the source has lost');
ALTER TABLE sales ADD COLUMN shop int;
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3) $$, '55000', 'column "shop" of table "s", which a scorer fills, is of type text, and in the source integer', 'another type');
ROLLBACK TO tables;
ALTER TABLE sales RENAME COLUMN customer TO client;
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3) $$, '42703', 'column "customer", the user_column of a scorer, is not in the rows of table "sales"', 'the column of users is gone');
ROLLBACK TO tables;
ALTER TABLE s DROP COLUMN scores CASCADE;
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3) $$, '55000', 'column "scores" of table "s", which a scorer fills, is gone', 'a column of its own is gone');
ROLLBACK TO tables;
DROP INDEX s_customer_seq_idx;
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3) $$, '55000', 'table "s", which a scorer fills, has lost its index', 'the index is gone');
ROLLBACK TO tables;
DROP VIEW s_hourly;
INSERT INTO sales VALUES ('2024-01-02', 7, 3);
SELECT is((SELECT count(*) FROM :batch), 1::bigint, 'without a view it goes on');
SELECT lives_ok($$ SELECT millrace.drop_scorer('s') $$, 'and can be dropped');
ROLLBACK TO tables;

-- Stop, fail, go on
SAVEPOINT stopped;
SELECT millrace.stop_stream('s');
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1), ('2024-01-02', 8, 4, 1);
SELECT is((SELECT count(*) FROM s), (SELECT count(*) FROM two) - 2, 'a stopped scorer takes no rows');
SELECT is((SELECT count(*) FROM millrace.late_row WHERE stream = 's'), 2::bigint, 'which are kept');
SELECT millrace.start_stream('s');
SELECT is((SELECT count(*) FROM :batch), 2::bigint, 'and scored when it starts');
SELECT is((SELECT count(*) FROM millrace.late_row), 0::bigint, 'once');
SELECT millrace.create_scorer('soft', 'sales', 'm', 'customer', 'product', on_error => 'suspend');
SELECT millrace.drop_scorer('s'), millrace.drop_scorer('two'), millrace.drop_scorer('free'), millrace.drop_scorer('unseen');
SELECT millrace.drop_model('m');
INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1);
SELECT is(status || ': ' || error, 'failed: SQLSTATE 42704; the message is in the server''s log', 'a scorer whose model has gone is suspended') FROM millrace.stream WHERE name = 'soft';
INSERT INTO sales VALUES ('2024-01-02', 8, 3, 1);
SELECT throws_ok($$ SELECT millrace.refresh('soft') $$, '42704', 'model "m" does not exist', 'and stays so');
SELECT throws_ok($$ SELECT millrace.refresh('soft', '2024-01-01') $$, '22023', 'scorer "soft" has no windows', 'it has no windows');
SELECT throws_ok($$ SELECT * FROM millrace.verify('soft') $$, '42809', NULL, 'nothing to verify');
SELECT millrace.train_als('m', 'SELECT customer, product, qty FROM shop.sales WHERE customer + product IS NOT NULL', rank => 6, iterations => 4, activate => false);
SELECT throws_ok($$ SELECT millrace.refresh('soft') $$, '55000', 'model "m" has no active version', 'no active version');
SELECT millrace.activate('m', 1);
SELECT is(millrace.refresh('soft'), 2::bigint, 'with a model the rows are scored');
SELECT is((SELECT array_agg(customer ORDER BY seq) FROM soft), '{7,8}', 'in their order');
SELECT is(status, 'running', 'and it runs again') FROM millrace.stream WHERE name = 'soft';
ROLLBACK TO stopped;
SELECT millrace.drop_model('m');
SELECT throws_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1) $$, '42704', 'model "m" does not exist', 'else the batch fails');
ROLLBACK TO stopped;

-- Bad arguments
CREATE TABLE odd (u uuid, f float8, i int, t text, items int, "g h" int GENERATED ALWAYS AS (i + 1) STORED);
CREATE TABLE even (i int, t text);
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'even', 'nothing', 'i', 't') $$, '42704', 'model "nothing" does not exist', 'unknown model');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'even', 'm', 'u', 't') $$, '42703', 'column "u", the user_column of a scorer, is not in the rows of table "even"', 'no such column');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'even', 'm', 'i', 'w') $$, '42703', 'column "w", the item_column of a scorer, is not in the rows of table "even"', 'no such column of items');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't') $$, '42701', 'column "items" of table shop.odd has the name of a column that scorer "x" adds', 'names that clash');
ALTER TABLE odd RENAME COLUMN items TO things;
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'u', 't') $$, '42804', 'column "u" of table "odd", the user_column of a scorer, is of type uuid', 'wrong type of users');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 'f') $$, '42804', 'column "f" of table "odd", the item_column of a scorer, is of type double precision', 'wrong type of items');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', k => 0) $$, '22023', 'k must be from 1 to the number of items of model "m", 63, not 0', 'k too small');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', k => 64) $$, '22023', 'k must be from 1 to the number of items of model "m", 63, not 64', 'k too large');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', k => NULL) $$, '22023', 'k must be from 1 to the number of items of model "m", 63, not NULL', 'no k');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', max_per_category => 0) $$, '22023', 'max_per_category must be at least 1, not 0', 'max_per_category too small');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', baseline => 'best') $$, '42704', NULL, 'unknown baseline');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', exclude_seen => NULL) $$, '22004', 'exclude_seen of "x" must not be null', 'no exclude_seen');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 't', on_error => 'never') $$, '22023', 'on_error "never" of "x" is not known', 'unknown on_error');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', NULL, 'm', 'i', 't') $$, '22004', NULL, 'no source');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 'odd', '', 'i', 't') $$, '22023', 'model must not be empty', 'empty name of a model');
SELECT throws_ok($$ SELECT millrace.create_scorer('', 'odd', 'm', 'i', 't') $$, '42602', '"" is not a valid name of a stream', 'empty name');
SELECT throws_ok($$ SELECT millrace.create_scorer(repeat('x', 56), 'odd', 'm', 'i', 't') $$, '42622', NULL, 'long name');
SELECT throws_ok($$ SELECT millrace.create_scorer('s', 'odd', 'm', 'i', 't') $$, '42710', 'stream "s" already exists', 'a name that is taken');
SELECT throws_ok($$ SELECT millrace.create_scorer('odd', 'odd', 'm', 'i', 't') $$, '42P07', 'relation "odd" already exists', 'a name that a table has');
SELECT throws_ok($$ SELECT millrace.create_scorer('x', 's_latest', 'm', 'customer', 'product') $$, '42809', NULL, 'a view is no source');
SELECT throws_ok($$ SELECT millrace.drop_scorer('nothing') $$, '42704', 'scorer "nothing" does not exist', 'dropping no scorer');
SELECT throws_ok($$ SELECT millrace.drop_pipe('s') $$, '42704', 'pipe "s" does not exist', 'nor is it a pipe');
SELECT throws_ok($$ SELECT millrace.backfill('s') $$, '42809', NULL, 'nor is it filled') WHERE false;
SAVEPOINT generated;
SELECT millrace.create_scorer('x', 'odd', 'm', 'i', 'g h', baseline => NULL, max_per_category => 3);
INSERT INTO odd (i) VALUES (1), (99999);
SELECT is((SELECT array_agg(ROW("g h", cardinality(items))::text ORDER BY seq) FROM x), ARRAY['(2,5)', '(100000,0)'], 'generated and quoted columns; without a baseline who is unknown gets nothing');
SELECT is((SELECT array_agg(precision_own IS NULL ORDER BY seq) FROM x), '{f,t}', 'which has no precision');
INSERT INTO odd (i) VALUES (99999);
SELECT is((SELECT precision_next FROM x_latest WHERE i = 99999), NULL, 'nor makes one');
ROLLBACK TO generated;

-- Rights
CREATE ROLE scorer_owner;
CREATE ROLE scorer_writer;
CREATE ROLE scorer_other;
GRANT USAGE ON SCHEMA millrace, shop TO scorer_owner, scorer_writer, scorer_other;
GRANT CREATE ON SCHEMA shop TO scorer_owner, scorer_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO scorer_owner, scorer_other;
SET LOCAL ROLE scorer_owner;
CREATE TABLE events (customer bigint, product bigint);
GRANT INSERT, SELECT ON events TO scorer_writer, scorer_other;
SELECT throws_ok($$ SELECT millrace.create_scorer('e', 'sales', 'm', 'customer', 'product') $$, '42501', 'must be owner of table sales', 'only over one''s own table');
SELECT lives_ok($$ SELECT millrace.create_scorer('e', 'events', 'm', 'customer', 'product') $$, 'with anybody''s model');
SET LOCAL ROLE scorer_other;
SELECT throws_ok($$ SELECT millrace.drop_scorer('e') $$, '42501', 'must be owner of stream "e"', 'another may not drop it');
SELECT throws_ok($$ SELECT millrace.refresh('e') $$, '42501', 'must be owner of stream "e"', 'nor refresh it');
SET LOCAL ROLE scorer_writer;
SELECT throws_ok($$ SELECT millrace.create_scorer('f', 'events', 'm', 'customer', 'product') $$, '42501', NULL, 'nor may everybody create one');
SELECT lives_ok($$ INSERT INTO events VALUES (1, 2) $$, 'a writer needs INSERT only');
SELECT throws_ok($$ SELECT * FROM e $$, '42501', NULL, 'and sees no lists');
RESET ROLE;
SELECT is((SELECT count(*) FROM e), 1::bigint, 'which are written');
SELECT is((SELECT pg_get_userbyid(relowner) FROM pg_class WHERE oid = 'e'::regclass), 'scorer_owner', 'to the owner''s table');
SELECT is((SELECT owner::text FROM millrace.streams WHERE name = 'e'), 'scorer_owner', 'the scorer''s owner');
ALTER TABLE events OWNER TO scorer_other;
SELECT throws_ok($$ INSERT INTO events VALUES (1, 2) $$, '42501', 'the owner of stream "e", scorer_owner, is no longer an owner of its source events', 'an owner who has lost the source');
ALTER TABLE events OWNER TO scorer_owner;

-- Dropped
SELECT millrace.drop_scorer('two');
SELECT is(to_regclass('two'), NULL, 'drop_scorer drops the table');
SELECT is(to_regclass('two_latest'), NULL, 'and the views');
DROP TABLE free CASCADE;
SELECT is((SELECT count(*) FROM millrace.stream WHERE name IN ('two', 'free')), 0::bigint, 'as does dropping the table');
SELECT lives_ok($$ INSERT INTO sales VALUES ('2024-01-02', 7, 3, 1) $$, 'batches go on');
DROP TABLE sales CASCADE;
SELECT is((SELECT count(*) FROM millrace.stream WHERE name IN ('s', 'unseen')), 0::bigint, 'with the source its scorers go');
SELECT is(to_regclass('s'), NULL, 'and their tables');
DROP OWNED BY scorer_owner;
SELECT is((SELECT count(*) FROM millrace.stream), 0::bigint, 'nothing is left');

SELECT * FROM finish();
ROLLBACK;
