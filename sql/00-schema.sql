/* millrace--VERSION.sql is made of the numbered files in sql/, in order. */
\echo Use "CREATE EXTENSION millrace" to load this file. \quit

/*
 * Rights.  Nothing is SECURITY DEFINER.  What changes something may be called by the role that created the
 * extension, and by those to whom it grants EXECUTE; what only reads may be called by everybody who has USAGE
 * on schema millrace.  Catalog tables can be read by all of those; C code writes them as their owner.
 */
CREATE SCHEMA millrace;
COMMENT ON SCHEMA millrace IS 'Millrace: continuous aggregates, recommendations and clustering over event streams';
GRANT USAGE ON SCHEMA millrace TO @extowner@ WITH GRANT OPTION;

CREATE FUNCTION millrace.version() RETURNS text
	LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'mr_version';
COMMENT ON FUNCTION millrace.version() IS 'Version of the loaded library, as in "0.1.0"';
