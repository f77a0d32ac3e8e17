-- The role that the dashboards read with.  Run by a superuser, or by the database's owner with CREATEROLE (who then sees no jobs): psql -f role.sql
-- Name and password: DASHBOARD_ROLE and DASHBOARD_PASSWORD in psql's environment, both `dashboard` by default.
SET client_min_messages = warning;
\set role dashboard
\getenv role DASHBOARD_ROLE
\set password dashboard
\getenv password DASHBOARD_PASSWORD
SELECT pg_catalog.format('CREATE ROLE %I LOGIN', :'role') WHERE pg_catalog.to_regrole(pg_catalog.quote_ident(:'role')) IS NULL \gexec
ALTER ROLE :"role" LOGIN PASSWORD :'password' CONNECTION LIMIT 50;
-- Superset reads times without a zone as UTC.
ALTER ROLE :"role" SET timezone = 'UTC';
ALTER ROLE :"role" SET default_transaction_read_only = on;
ALTER ROLE :"role" SET statement_timeout = '30s';
GRANT USAGE ON SCHEMA public, millrace TO :"role";
GRANT SELECT ON ALL TABLES IN SCHEMA public TO :"role";
-- Dead letters hold what came, word for word, so reading them is granted by name.
GRANT SELECT ON millrace.dead_letters TO :"role";
-- What the database's owner makes later, such as a scorer's table and views.
SELECT pg_catalog.format('ALTER DEFAULT PRIVILEGES FOR ROLE %I IN SCHEMA public GRANT SELECT ON TABLES TO %I', r.rolname, :'role')
FROM pg_catalog.pg_database AS d JOIN pg_catalog.pg_roles AS r ON r.oid = d.datdba
WHERE d.datname = pg_catalog.current_database() \gexec
-- pg_cron shows jobs to their owners only; a superuser can let others see them.
SELECT pg_catalog.format(statement, :'role', :'role')
FROM pg_catalog.unnest('{GRANT USAGE ON SCHEMA cron TO %I,"GRANT SELECT ON cron.job, cron.job_run_details TO %I",
	DROP POLICY IF EXISTS dashboard ON cron.job,CREATE POLICY dashboard ON cron.job FOR SELECT TO %I USING (true),
	DROP POLICY IF EXISTS dashboard ON cron.job_run_details,CREATE POLICY dashboard ON cron.job_run_details FOR SELECT TO %I USING (true)}'::text[]) AS statement
WHERE pg_catalog.to_regclass('cron.job') IS NOT NULL AND pg_catalog.current_setting('is_superuser')::bool \gexec
