-- The role that the dashboards read with.  Run by the database's owner: psql -f role.sql
-- Name and password: DASHBOARD_ROLE and DASHBOARD_PASSWORD in psql's environment, both `dashboard` by default.
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
-- What is made later, such as a scorer's table and views.
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO :"role";
