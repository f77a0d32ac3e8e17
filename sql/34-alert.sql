/*
 * Alerts (alert.c).
 */
CREATE TABLE millrace.alert_row (
	alert regclass NOT NULL,
	window_start timestamptz NOT NULL,
	key_hash int NOT NULL,
	key jsonb NOT NULL,
	value jsonb NOT NULL,
	raised timestamptz NOT NULL,
	xid xid8 NOT NULL
);
CREATE INDEX alert_row_key ON millrace.alert_row (alert, window_start, key_hash);
SELECT pg_catalog.pg_extension_config_dump('millrace.alert_row', '');
GRANT SELECT ON millrace.alert_row TO @extowner@;
COMMENT ON TABLE millrace.alert_row IS 'What alerts have reported; read millrace.alerts instead';
COMMENT ON COLUMN millrace.alert_row.alert IS 'View of the alert';
COMMENT ON COLUMN millrace.alert_row.window_start IS 'Column window_start of its query';
COMMENT ON COLUMN millrace.alert_row.key_hash IS 'Hash of key, for the index';
COMMENT ON COLUMN millrace.alert_row.key IS 'Columns that are keys of a continuous aggregate';
COMMENT ON COLUMN millrace.alert_row.value IS 'The other columns, as they were when it was raised';
COMMENT ON COLUMN millrace.alert_row.raised IS 'When';
COMMENT ON COLUMN millrace.alert_row.xid IS 'Transaction that reported it; 0: restored';

CREATE TRIGGER restored BEFORE INSERT ON millrace.alert_row FOR EACH ROW EXECUTE FUNCTION millrace._restored_xid();

CREATE VIEW millrace.alerts WITH (security_barrier) AS
	SELECT DISTINCT ON (s.name, a.window_start, a.key) s.name AS alert, a.window_start, a.key, a.value, a.raised, a.xid
	FROM millrace.stream s JOIN millrace.alert_row a ON a.alert = s.target
	WHERE s.kind = 'alert' AND pg_catalog.has_table_privilege(s.target::oid, 'SELECT')
	ORDER BY s.name, a.window_start, a.key, a.xid;
GRANT SELECT ON millrace.alerts TO PUBLIC;
COMMENT ON VIEW millrace.alerts IS
'What alerts have reported, each (alert, window, key) once; of alerts whose view the reader may SELECT.  Of transactions that reported the same at the same time, the first is shown';
COMMENT ON COLUMN millrace.alerts.alert IS 'Name of the alert';
COMMENT ON COLUMN millrace.alerts.window_start IS 'Column window_start of its query';
COMMENT ON COLUMN millrace.alerts.key IS 'Columns of its query that are keys of a continuous aggregate';
COMMENT ON COLUMN millrace.alerts.value IS 'The other columns, as they were when it was raised; its view has them as they are now';
COMMENT ON COLUMN millrace.alerts.raised IS 'When';
COMMENT ON COLUMN millrace.alerts.xid IS 'Transaction that reported it';

CREATE FUNCTION millrace._alert_parts(view regclass, OUT source regclass, OUT sources regclass[], OUT inputs regclass[])
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_alert_parts';
COMMENT ON FUNCTION millrace._alert_parts(regclass) IS 'Internal: checks the query of an alert; returns the continuous aggregates that it reads and their sources';
CREATE FUNCTION millrace._alert_start(view regclass) RETURNS void
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_alert_start';
COMMENT ON FUNCTION millrace._alert_start(regclass) IS 'Internal: a new alert is not told of windows that are final already';

CREATE FUNCTION millrace._create_alert(name text, query text, schema text, path text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	view text := pg_catalog.format('%s.%I', schema, name);
	command text;
	view_rel regclass;
	parts record;
	source regclass;
BEGIN
	IF name IS NULL OR query IS NULL THEN
		RAISE EXCEPTION 'name and query of an alert must not be null' USING ERRCODE = '22004';
	END IF;
	IF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000', HINT = 'Set search_path.';
	END IF;
	IF name = '' OR pg_catalog.octet_length(name) > 55 THEN
		RAISE EXCEPTION '"%" is not a valid name of a stream', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 55 bytes.';
	END IF;
	IF EXISTS (SELECT FROM millrace.stream s WHERE s.name = _create_alert.name) THEN
		RAISE EXCEPTION 'stream "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	END IF;
	command := format('CREATE VIEW %s AS %s', view, rtrim(query, E'; \n\t'));
	PERFORM pg_catalog.set_config('search_path', path, true);
	EXECUTE command;
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	view_rel := view::regclass;
	parts := millrace._alert_parts(view_rel);
	FOREACH source IN ARRAY parts.sources LOOP
		PERFORM millrace._lock_source(source);
	END LOOP;
	EXECUTE pg_catalog.format('COMMENT ON VIEW %s IS %L', view, 'What alert ' || view || ' reports, as it is now');
	PERFORM pg_catalog.set_config('search_path', path, true);
	PERFORM millrace._stream_put(name, 'alert', parts.source, view_rel, NULL, view_rel, NULL, NULL, NULL, query, NULL, NULL, NULL, NULL, NULL,
		parts.inputs, false);
	PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
	PERFORM millrace._alert_start(view_rel);
END $$;
COMMENT ON FUNCTION millrace._create_alert(text, text, text, text) IS 'Internal: create_alert; schema, path: the first schema of the caller''s search_path, quoted, and all of it';
CREATE FUNCTION millrace.create_alert(name text, query text) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_alert($1, $2, pg_catalog.quote_ident(pg_catalog.current_schema()), pg_catalog.current_setting('search_path')) $$;
COMMENT ON FUNCTION millrace.create_alert(text, text) IS
'Creates an alert: a query over continuous aggregates, run in the transaction of each batch for the windows that it changes, and once
more when they are final.  What it returns is reported in millrace.alerts, each (window_start, key) once, and by NOTIFY millrace
with a payload like {"alert": "surge", "window_start": "…", "windows": ["…"], "more": false}, one for each alert and transaction.
query: SELECT window_start, … FROM views of continuous aggregates WHERE …; columns that are keys of one of them are the key.
It becomes view NAME, which shows what fires now, and runs with the rights of its owner, who must own the sources.
Two batches that run at the same time do not see each other: both may send a message for the same window, and what only both together
amount to is reported by the next batch of that window or when it is final (so, without a watermark, by the next batch only).
A transaction that is prepared for two-phase commit sends no message.';

CREATE FUNCTION millrace.drop_alert(name text) RETURNS void
	LANGUAGE sql STRICT AS $$ SELECT millrace._stream_drop($1, 'alert') $$;
COMMENT ON FUNCTION millrace.drop_alert(text) IS 'Drops an alert: its view, and what it has reported';

REVOKE EXECUTE ON FUNCTION millrace._alert_parts(regclass), millrace._alert_start(regclass), millrace.create_alert(text, text),
	millrace._create_alert(text, text, text, text), millrace.drop_alert(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._alert_parts(regclass), millrace._alert_start(regclass), millrace.create_alert(text, text),
	millrace._create_alert(text, text, text, text), millrace.drop_alert(text)
	TO @extowner@ WITH GRANT OPTION;
