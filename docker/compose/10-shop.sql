-- Run by psql as superuser when the database "shop" is made: who owns it, who fills it, who reads it.
\set shop_password shop
\getenv shop_password SHOP_PASSWORD
\set ingester_password ingester
\getenv ingester_password INGESTER_PASSWORD

-- The owner is no superuser: Millrace is a trusted extension.
CREATE ROLE shop LOGIN PASSWORD :'shop_password';
ALTER DATABASE shop OWNER TO shop;
GRANT USAGE ON SCHEMA cron TO shop;
CREATE ROLE ingester LOGIN PASSWORD :'ingester_password';

SET ROLE shop;
\i /shop/schema.sql
RESET ROLE;

-- What ingest/README.md says under "Privileges".
GRANT USAGE ON SCHEMA millrace TO ingester;
GRANT SELECT ON millrace.sources TO ingester;
GRANT SELECT, INSERT, UPDATE, DELETE ON millrace.ingest_offsets TO ingester;
GRANT INSERT ON millrace.dead_letters TO ingester;
GRANT SELECT, INSERT, UPDATE, DELETE ON millrace.ingest_metrics TO ingester;
GRANT USAGE ON SEQUENCE millrace.dead_letters_id_seq TO ingester;
GRANT INSERT ON operations_raw TO ingester;
GRANT EXECUTE ON FUNCTION millrace.ensure_partitions(regclass, timestamptz, timestamptz) TO ingester;
-- Only an owner can make a partition.
GRANT shop TO ingester;

-- Who reads the dashboards, jobs too.
\i /superset/role.sql
