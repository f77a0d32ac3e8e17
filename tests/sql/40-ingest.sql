BEGIN;
SELECT plan(9);
SET LOCAL client_min_messages = warning;

SELECT is(string_agg(c.oid::regclass || '.' || coalesce(a.attname, ''), ' '), NULL, 'every table and column of the ingester has a comment')
	FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
	WHERE c.oid IN ('millrace.ingest_offsets'::regclass, 'millrace.dead_letters'::regclass, 'millrace.ingest_metrics'::regclass)
	AND (obj_description(c.oid, 'pg_class') IS NULL OR col_description(c.oid, a.attnum) IS NULL);
SELECT col_type_is('millrace'::name, 'dead_letters'::name, 'payload'::name, 'bytea', 'a dead letter keeps bytes');
SELECT col_type_is('millrace'::name, 'dead_letters'::name, 'headers'::name, 'jsonb', 'headers as JSON');
SELECT col_type_is('millrace'::name, 'dead_letters'::name, 'message_time'::name, 'timestamp with time zone', 'and the time of the message');
SELECT set_eq($$SELECT unnest(extconfig)::regclass::text FROM pg_extension WHERE extname = 'millrace' AND extconfig && ARRAY['millrace.dead_letters'::regclass::oid]
	INTERSECT VALUES ('millrace.ingest_offsets'), ('millrace.dead_letters'), ('millrace.dead_letters_id_seq')$$,
	'VALUES (''millrace.ingest_offsets''), (''millrace.dead_letters''), (''millrace.dead_letters_id_seq'')', 'positions, letters and their numbers are dumped');
SELECT throws_ok($$INSERT INTO millrace.ingest_offsets VALUES ('s', 't', 0, -1)$$, '23514', NULL, 'no negative position');
INSERT INTO millrace.dead_letters (source, topic, partition, "offset", payload, stage, reason) VALUES ('s', 't', 0, 1, '\x00', 'decode', 'why'), ('s', 't', 0, 2, NULL, 'decode', 'why');
SELECT is((SELECT count(DISTINCT id) FROM millrace.dead_letters WHERE source = 's'), 2::bigint, 'letters are numbered');
CREATE ROLE reader;
SELECT ok(has_table_privilege('reader', 'millrace.ingest_offsets', 'SELECT'), 'positions may be seen by all');
SELECT ok(NOT has_table_privilege('reader', 'millrace.dead_letters', 'SELECT') AND NOT has_any_column_privilege('reader', 'millrace.dead_letters', 'SELECT'), 'payloads may not');
SELECT * FROM finish();
ROLLBACK;
