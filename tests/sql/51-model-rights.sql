BEGIN;
SELECT plan(42);
SET LOCAL client_min_messages = warning;

CREATE ROLE mr_reader;
CREATE ROLE mr_trainer;
CREATE ROLE mr_other;
CREATE ROLE mr_member IN ROLE mr_trainer;
CREATE SCHEMA private AUTHORIZATION mr_trainer;
GRANT USAGE ON SCHEMA millrace TO mr_reader, mr_trainer, mr_other;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_trainer, mr_other;
GRANT CREATE ON SCHEMA public TO mr_other, mr_trainer;

SET LOCAL ROLE mr_trainer;
CREATE TABLE private.ratings AS SELECT i % 10 AS u, i % 7 AS i FROM generate_series(1, 70) AS i;
SELECT lives_ok($$ SELECT millrace.train_als('m', 'private.ratings', rank => 2, iterations => 2) $$, 'who has EXECUTE and SELECT trains');
SELECT is(owner, 'mr_trainer', 'and owns the model') FROM millrace.models WHERE name = 'm';

SET LOCAL ROLE mr_reader;
SELECT throws_ok($$ SELECT millrace.train_als('x', 'VALUES (1, 1)') $$, '42501', 'permission denied for function train_als', 'training is not for everybody');
SELECT throws_ok($$ SELECT millrace.activate('m', 1) $$, '42501', 'permission denied for function activate', 'nor activate');
SELECT throws_ok($$ SELECT millrace.prune('m', 1) $$, '42501', 'permission denied for function prune', 'nor prune');
SELECT throws_ok($$ SELECT millrace.drop_model('m') $$, '42501', 'permission denied for function drop_model', 'nor drop_model');
SELECT throws_ok($$ SELECT * FROM private.ratings $$, '42501', NULL, 'a reader has no right on the ratings');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 3, 100, exclude_seen => false)), 7::bigint, 'but may ask for recommendations');
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('m', 3, 100)), 0::bigint, 'what a user has is read as the owner');
SELECT is((SELECT count(*) FROM millrace.models WHERE name = 'm'), 1::bigint, 'may read the views');
SELECT throws_ok($$ DELETE FROM millrace.model $$, '42501', NULL, 'may not write the tables');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('m', 'private.ratings') $$, '42501', NULL, 'the test of evaluate is read as the caller');
SELECT lives_ok($$ SELECT * FROM millrace.evaluate('m', 'VALUES (1, 1)') $$, 'who may bring his own');

SET LOCAL ROLE mr_other;
SELECT throws_ok($$ SELECT millrace.train_als('m', 'VALUES (1, 1)') $$, '42501', 'must be owner of model "m"', 'another trainer may not replace the model');
SELECT throws_ok($$ SELECT millrace.activate('m', 1) $$, '42501', 'must be owner of model "m"', 'nor activate');
SELECT throws_ok($$ SELECT millrace.prune('m', 1) $$, '42501', 'must be owner of model "m"', 'nor prune');
SELECT throws_ok($$ SELECT millrace.drop_model('m') $$, '42501', 'must be owner of model "m"', 'nor drop');
SELECT throws_ok($$ SELECT millrace.train_als('other', 'SELECT u, i FROM private.ratings') $$, '42501', NULL, 'nor read what he may not select');
CREATE FUNCTION public.spy(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF current_user <> 'mr_other' THEN RAISE 'called by %', current_user; END IF; RETURN $1; END $$;
GRANT EXECUTE ON FUNCTION public.spy(int) TO PUBLIC;
SELECT lives_ok($$ SELECT millrace.train_als('trap', 'SELECT public.spy(u), u FROM generate_series(1, 3) AS u', rank => 2, iterations => 1) $$, 'a query that calls the owner''s function');

RESET ROLE;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('trap', 1)), 2::bigint, 'a superuser who asks runs it as its owner');
SELECT millrace.train_als('trap', 'SELECT public.spy(u), current_user::text FROM generate_series(1, 3) AS u', rank => 2, iterations => 1);
SELECT is((SELECT id FROM millrace.item_factors('trap')), 'mr_other', 'a superuser who retrains it runs it as its owner');
SELECT is(owner, 'mr_other', 'who stays the owner') FROM millrace.models WHERE name = 'trap' AND version = 2;

-- Temporary relations of the caller are not the owner's
SET LOCAL ROLE mr_trainer;
CREATE TABLE public.shadowed AS SELECT i % 10 AS u, i % 7 AS i FROM generate_series(1, 70) AS i;
SELECT millrace.train_als('shadow', 'SELECT u, i FROM shadowed', rank => 2, iterations => 1);
SET LOCAL ROLE mr_other;
CREATE TEMP VIEW shadowed AS SELECT public.spy(3) AS u, 1 AS i;
SELECT is((SELECT count(*) FROM millrace.recommend_top_k('shadow', 3, 100)), 0::bigint, 'a temporary view does not come before the table');
RESET ROLE;
ALTER TABLE public.shadowed RENAME TO renamed;
SET LOCAL ROLE mr_other;
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('shadow', 3) $$, '22023', 'temporary relation "shadowed" cannot be used', 'nor takes its place after a rename, by a kept plan');
SELECT throws_ok($$ SELECT * FROM millrace.evaluate('shadow', 'VALUES (3, 1)') $$, '22023', 'temporary relation "shadowed" cannot be used', 'nor in evaluate');
RESET ROLE;
DROP TABLE public.renamed;
SET LOCAL ROLE mr_other;
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('shadow', 3) $$, '22023', 'temporary relation "shadowed" cannot be used', 'nor after a drop');
RESET ROLE;
SELECT throws_ok($$ SELECT millrace.train_als('shadow', 'SELECT u, i FROM shadowed') $$, '22023', 'temporary relation "shadowed" cannot be used', 'nor when a superuser trains it again');
SET LOCAL ROLE mr_other;
CREATE TEMP TABLE passing AS SELECT 1 AS u, 2 AS i;
SELECT throws_ok($$ SELECT millrace.train_als('passing', 'passing') $$, '22023', 'temporary relation "passing" cannot be used', 'no training from a temporary table');
SELECT throws_ok($$ SELECT millrace.train_als('passing', 'SELECT u, i FROM passing') $$, '22023', 'temporary relation "passing" cannot be used', 'nor from a query of one');
SELECT lives_ok($$ SELECT * FROM millrace.evaluate('m', 'passing') $$, 'the test of evaluate may be one');

SET LOCAL ROLE mr_member;
SELECT lives_ok($$ SELECT millrace.prune('m', 1), millrace.drop_model('m') $$, 'a member of the owner may');

-- An owner who is gone, or is not who he was
RESET ROLE;
CREATE ROLE mr_gone;
GRANT USAGE ON SCHEMA millrace TO mr_gone;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA millrace TO mr_gone;
SET LOCAL ROLE mr_gone;
SELECT millrace.train_als('gone', 'VALUES (1, 1), (2, 2)', rank => 2, iterations => 1);
RESET ROLE;
ALTER ROLE mr_gone RENAME TO mr_renamed;
CREATE ROLE mr_gone;
CREATE FUNCTION hint_of(command text) RETURNS text LANGUAGE plpgsql AS $$ DECLARE hint text;
BEGIN EXECUTE command; EXCEPTION WHEN undefined_object THEN GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT; RETURN hint; END $$;
PREPARE train AS SELECT millrace.train_als('gone', 'VALUES (1, 1)', rank => 2, iterations => 1);
SELECT throws_ok('EXECUTE train', '42704', 'owner "mr_gone" of model "gone" does not exist or was renamed', 'renamed: no training');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('gone', 1) $$, '42704', 'owner "mr_gone" of model "gone" does not exist or was renamed', 'no ratings are read');
SELECT isnt_empty($$ SELECT * FROM millrace.recommend_top_k('gone', 1, exclude_seen => false, own_history => 0, fold_in => false) $$, 'it is served without them');
SET LOCAL ROLE mr_renamed;
SELECT throws_ok($$ SELECT millrace.drop_model('gone') $$, '42704', 'owner "mr_gone" of model "gone" does not exist or was renamed', 'not his model any more');
RESET ROLE;
SELECT matches(hint_of('EXECUTE train'), 'UPDATE millrace.model SET owner_name', 'the hint says what to do');
DO $$ BEGIN EXECUTE substring(hint_of('EXECUTE train') FROM 'UPDATE [^.]*[.][^.]*'); END $$;
SELECT lives_ok('EXECUTE train', 'which helps');
DROP OWNED BY mr_renamed;
DROP ROLE mr_renamed;
SELECT throws_ok('EXECUTE train', '42704', 'owner "mr_renamed" of model "gone" does not exist or was renamed', 'dropped: no training');
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('gone', 1) $$, '42704', 'owner "mr_renamed" of model "gone" does not exist or was renamed', 'no ratings are read');
UPDATE millrace.model SET owner = (SELECT oid FROM pg_roles WHERE rolname = 'mr_other') WHERE name = 'gone'; -- as after a restore
SELECT throws_ok($$ SELECT * FROM millrace.recommend_top_k('gone', 1) $$, '42704', 'owner "mr_renamed" of model "gone" does not exist or was renamed', 'nor as another who has the number');
SET LOCAL ROLE mr_other;
SELECT throws_ok($$ SELECT millrace.drop_model('gone') $$, '42704', 'owner "mr_renamed" of model "gone" does not exist or was renamed', 'who has no right on it');
RESET ROLE;
SELECT lives_ok($$ SELECT millrace.drop_model('gone') $$, 'a superuser may drop it');

SELECT * FROM finish();
ROLLBACK;
