-- Names that look like SQL, everywhere: quotes, spaces, %, $$, backslashes, newlines, upper case, 55 and 63 bytes, a schema off the path.
SET client_min_messages = error;
SELECT plan(11);
create schema "S '""%s $$ \n; --";
set search_path = public;
\set S '"S \'""%s $$ \\n; --"'
\set t '"T \'""%I $q$ \\\\'
create table :S."T '""%I $q$ \
line" (
 "At '""%L $$" timestamptz not null, "K %s""'" text, "V
n" numeric, "User ' " bigint, "Item "" $1" bigint) partition by range ("At '""%L $$");
select c.oid::regclass as t, c.oid from pg_class c where relname like 'T ''%' \gset
select millrace.create_source(:'t', 'At ''"%L $$', '1 day', '1000 days');
select millrace.ensure_partitions(:'t', '2024-11-20', '2024-11-22');
CREATE ROLE "Role '""%s $$ \x";
ALTER TABLE :t OWNER TO "Role '""%s $$ \x";
GRANT ALL ON SCHEMA :S TO "Role '""%s $$ \x";
GRANT INSERT ON :t TO PUBLIC;
create table :S."target $$ '" ("a""t" timestamptz, k text);
-- pipe 
select millrace.create_pipe('p ''"%s $$ \', :'t', format('insert into %s select "At ''""%%L $$", "K %%s""''" from new_rows', (select c.oid::regclass from pg_class c where relname like 'target%')));
-- aggregates: name of 55 bytes
set search_path = :S, public;
\set m 'm \'"%s $$ \\ Ü 3456789 123456789 123456789 123456789 55'
SELECT is(octet_length(:'m'), 55, 'a name of 55 bytes');
select millrace.create_continuous_aggregate(:'m', format($q$select "K %%s""'" as "key '%%s", millrace.tumble("At '""%%L $$", '1 hour') as "win ""dow", sum("V
n") as "su'm $$", count(*) as "n%%" from %s group by 1, 2$q$, :'t'), watermark => '1 hour', late_policy => 'divert', retain => '900 days', on_error => 'suspend');
select millrace.create_continuous_aggregate(:'m', format($q$select "K %%s""'" as "key '%%s", millrace.tumble("At '""%%L $$", '1 hour') as "win ""dow", sum("V
n") as "su'm $$", count(*) as "n%%", max("V
n") as "m""" from %s group by 1, 2$q$, :'t'), watermark => '1 hour', late_policy => 'divert', retain => '900 days');
select millrace.create_continuous_aggregate('roll ''"%s', format($q$select "key '%%s", millrace.tumble("win ""dow", '1 day') as window_start, sum("n%%") as "N %%" from %s group by 1, 2$q$, quote_ident(:'m')));
select millrace.create_continuous_aggregate('sess ''"%s', format($q$select "User ' ", "win d", count(*) as n from (select *, millrace.session("At '""%%L $$", '5 minutes') over (partition by "User ' " order by "At '""%%L $$") as "win d" from %s) s group by 1, 2$q$, :'t'), watermark => '1 minute');
select millrace.create_continuous_aggregate('hop ''"%s', format($q$select "K %%s""'", millrace.hop("At '""%%L $$", '10 minutes', '5 minutes') as "win d", count(*) as n from %s group by 1, 2$q$, :'t'), with_data => false);
select millrace.create_alert('alert ''"%s $$', format($q$select "key '%%s", "win ""dow" as window_start, "n%%" from %s where "n%%" > 1$q$, quote_ident(:'m')));
insert into :t select '2024-11-20'::timestamptz + g * interval '7 minutes', 'k' || g % 3, g, g % 5, g % 7 from generate_series(1, 200) g;
call millrace.backfill('hop ''"%s');
select millrace.train_als('model ''"%s $$ \', format('select "User '' ", "Item "" $1" from %s', :'t'), rank => 2, iterations => 2, track_history => true);
select millrace.retrain('model ''"%s $$ \');
select millrace.set_item_features('model ''"%s $$ \', format('select distinct "Item "" $1", "K %%s""''" from (select distinct on ("Item "" $1") * from %s) q', :'t'));
select millrace.set_baseline('model ''"%s $$ \', format('select "Item "" $1", count(*) from %s group by 1', :'t'), 'base ''"$$ %s');
select millrace.refresh_lists('model ''"%s $$ \');
select millrace.create_scorer('sc ''"%s $$ \', :'t', 'model ''"%s $$ \', 'User '' ', 'Item " $1', baseline => 'base ''"$$ %s');
insert into :t values ('2024-11-22', 'z''"', 1, 3, 4), ('2024-11-20', 'late', 2, 3, 5);
update :t set "K %s""'" = 'changed' where "User ' " = 3;
SELECT c.oid::regclass AS a FROM pg_class c WHERE relname LIKE 'alert ''%' \gset
call millrace.maintain();
call millrace.maintain(:'m');
SELECT is_empty($$SELECT name, v.* FROM millrace.streams s, millrace.verify(s.name) v WHERE s.kind IN ('aggregate', 'rollup')$$, 'all aggregates are right');
select stream, count(*) from millrace.late_rows group by 1; select millrace.replay_late(:'m'); select count(*) from millrace.revisions; select alert, count(*) from millrace.alerts group by 1;
select millrace.stop_stream(name) from millrace.streams where kind in ('pipe','aggregate','scorer','history');
insert into :t values ('2024-11-22', 'z''"', 1, 3, 4);
select millrace.start_stream(name) from millrace.streams where kind in ('pipe','aggregate','scorer','history');
SELECT is_empty($$SELECT name, v.* FROM millrace.streams s, millrace.verify(s.name) v WHERE s.kind IN ('aggregate', 'rollup')$$, 'stopped and started, too');
SELECT is((SELECT count(*) FROM :S."target $$ '"), (SELECT count(*) FROM :t), 'the pipe passed all rows on');
SELECT results_eq('SELECT kind, status, count(*) FROM millrace.streams GROUP BY 1, 2 ORDER BY 1', $$VALUES ('aggregate', 'running', 3::bigint), ('alert', 'running', 1), ('history', 'running', 1), ('pipe', 'running', 1), ('rollup', 'running', 1), ('scorer', 'running', 1)$$, 'every kind of stream');
SELECT is((SELECT count(*) FROM :S."sc '""%s $$ \"), (SELECT count(*) - 200 FROM :t), 'the scorer has answered') FROM (SELECT 1) q;
select millrace.fit_indexer('ix ''"%s $$ \', format('select "K %%s""''" from %s', :'t'));
select millrace.train_kmeans('km ''"%s $$ \', format('select millrace.index_of(''ix ''''"%%s $$ \'', "K %%s""''") as "f $$ ''", "V
n" from %s', :'t'), 2);
select sql from millrace.pipelines where name ~ '^km' \gset
\o /dev/null
:sql
\o
SELECT is((SELECT max(version) FROM millrace.models WHERE name ~ '^km'), 2, 'millrace.pipelines writes statements that run');
select count(*) from millrace.recommend_top_k('model ''"%s $$ \', 3); select count(*) from millrace.window_counts(:'t', 'At ''"%L $$', '1 day', by => '{"K %s\"''"}');
SELECT is((SELECT count(*) FROM millrace.partitions(:'t')), 3::bigint, 'partitions');
select millrace.refresh(:'m', '-infinity', 'infinity'); select millrace.compact(:'m'); select millrace.last_closed_window(:'m');
alter table :t detach partition :S."T '""%I $q$ \
line_20241120";
alter table :t attach partition :S."T '""%I $q$ \
line_20241120" for values from ('2024-11-20') to ('2024-11-21');
select millrace.create_source(:'t', 'At ''"%L $$', '1 day', '1 second');
SELECT is_empty(format($$SELECT * FROM %s v WHERE NOT EXISTS (SELECT FROM millrace.alerts a WHERE a.window_start = v.window_start AND a.key ->> 'key ''%%s' = v."key '%%s")$$, :'a'), 'alerts');
SELECT is(millrace.drop_expired_partitions(), 3, 'retention');
select millrace.drop_alert('alert ''"%s $$'), millrace.drop_scorer('sc ''"%s $$ \'), millrace.drop_continuous_aggregate('roll ''"%s'),  millrace.drop_continuous_aggregate('sess ''"%s'),  millrace.drop_continuous_aggregate('hop ''"%s'), millrace.drop_continuous_aggregate(:'m'), millrace.drop_pipe('p ''"%s $$ \'), millrace.drop_model('model ''"%s $$ \');
DROP TABLE :t CASCADE;
SELECT is((SELECT count(*) FROM millrace.streams), 0::bigint, 'and all of it goes');
SELECT millrace.drop_model(name) FROM millrace.model;
RESET search_path;
DROP SCHEMA :S CASCADE;
DROP OWNED BY "Role '""%s $$ \x";
DROP ROLE "Role '""%s $$ \x";
SELECT * FROM finish();
