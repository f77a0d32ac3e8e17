/* Federated aggregates: states of several databases, merged when they are read (federate.c). */
CREATE TABLE millrace.shared (
	name text PRIMARY KEY,
	partial regclass NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.shared', '');
GRANT SELECT ON millrace.shared TO PUBLIC;
COMMENT ON TABLE millrace.shared IS 'Continuous aggregates whose states other databases may read; see millrace.shared_aggregates';
COMMENT ON COLUMN millrace.shared.name IS 'Name of the continuous aggregate';
COMMENT ON COLUMN millrace.shared.partial IS 'View NAME_partial of its states';

CREATE TABLE millrace.federated (
	name text PRIMARY KEY,
	view regclass NOT NULL,
	aggregate text NOT NULL,
	servers name[] NOT NULL,
	tables regclass[] NOT NULL,
	owner regrole NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.federated', '');
GRANT SELECT ON millrace.federated TO PUBLIC;
COMMENT ON TABLE millrace.federated IS 'Federated aggregates; see millrace.federated_aggregates';
COMMENT ON COLUMN millrace.federated.name IS 'Its name';
COMMENT ON COLUMN millrace.federated.view IS 'View that merges the states of all nodes and of this database';
COMMENT ON COLUMN millrace.federated.aggregate IS 'Name of the continuous aggregate, here and on all nodes; of a rollup, here';
COMMENT ON COLUMN millrace.federated.servers IS 'Foreign servers of the nodes';
COMMENT ON COLUMN millrace.federated.tables IS 'Foreign tables over the states of the nodes, then over how far these have come; of a rollup none';
COMMENT ON COLUMN millrace.federated.owner IS 'Who made it, and whose the foreign tables are that go with the view';

CREATE FUNCTION millrace._partial_text(definition regclass, state regclass, delta regclass) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_partial_text';
COMMENT ON FUNCTION millrace._partial_text(regclass, regclass, regclass) IS 'Internal: query of NAME_partial';
CREATE FUNCTION millrace._federated_text(definition regclass, state regclass, delta regclass, tables text[], closed text, retained text) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_federated_text';
COMMENT ON FUNCTION millrace._federated_text(regclass, regclass, regclass, text[], text, text) IS 'Internal: query of a federated aggregate';
CREATE FUNCTION millrace._federated_rollup_text(definition regclass, state regclass, input regclass, closed text, retained text, n_nodes int) RETURNS text
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_federated_rollup_text';
COMMENT ON FUNCTION millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int) IS 'Internal: query of a federated rollup';
CREATE FUNCTION millrace._rollup_closed(state regclass, closed_to timestamptz) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_closed';
COMMENT ON FUNCTION millrace._rollup_closed(regclass, timestamptz) IS 'Internal: start of the last window of a rollup that is final if the aggregate at the bottom is closed up to a time';
CREATE FUNCTION millrace._rollup_gone(state regclass, retained_from timestamptz) RETURNS timestamptz
	LANGUAGE c STABLE STRICT PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'mr_rollup_gone';
COMMENT ON FUNCTION millrace._rollup_gone(regclass, timestamptz) IS 'Internal: start of the last window of the aggregate at the bottom of a rollup that ended at or before a time';
CREATE FUNCTION millrace._shared_put(name text, partial regclass) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_shared_put';
COMMENT ON FUNCTION millrace._shared_put(text, regclass) IS 'Internal: writes millrace.shared';
CREATE FUNCTION millrace._federated_put(name text, view regclass, aggregate text, servers name[], tables regclass[]) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_federated_put';
COMMENT ON FUNCTION millrace._federated_put(text, regclass, text, name[], regclass[]) IS 'Internal: writes millrace.federated';

CREATE VIEW millrace.state_key_hashes AS SELECT pg_catalog.encode(pg_catalog.sha256(k.key), 'hex') AS hash, k.own FROM millrace.state_key k;
GRANT SELECT ON millrace.state_key_hashes TO PUBLIC;
COMMENT ON VIEW millrace.state_key_hashes IS 'By what the keys in millrace.state_key can be told apart';
COMMENT ON COLUMN millrace.state_key_hashes.hash IS 'SHA-256 of a key';
COMMENT ON COLUMN millrace.state_key_hashes.own IS 'Whether this database seals with it';

/* Texts by which two databases compare: no setting of the session has a part in them. */
CREATE FUNCTION millrace._definition_text(definition regclass) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET timezone = 'UTC' SET datestyle = 'ISO, MDY' SET intervalstyle = 'postgres'
	SET extra_float_digits = 1 SET bytea_output = 'hex' SET lc_monetary = 'C' SET quote_all_identifiers = off
	AS $$ SELECT pg_get_viewdef(definition) $$;
COMMENT ON FUNCTION millrace._definition_text(regclass) IS 'Internal: query of a view, the same in every session';
CREATE FUNCTION millrace._columns_text(rel regclass, first int) RETURNS text
	LANGUAGE sql STABLE STRICT SET search_path = pg_catalog, pg_temp SET quote_all_identifiers = off
	AS $$
		SELECT string_agg(format('%I %s', a.attname, format_type(a.atttypid, a.atttypmod))
				|| CASE WHEN a.attcollation NOT IN (0, 100) THEN ' COLLATE ' || a.attcollation::regcollation ELSE '' END, ', ' ORDER BY a.attnum)
			FROM pg_attribute a WHERE a.attrelid = rel AND a.attnum >= first AND NOT a.attisdropped
	$$;
COMMENT ON FUNCTION millrace._columns_text(regclass, int) IS 'Internal: columns of a relation from one on, the same in every session';

/* What a database that reads the states has to know of an aggregate, and how far it has come. */
CREATE VIEW millrace.shared_aggregates AS
	SELECT h.name, n.nspname AS schema, c.relname AS partial, millrace.version() AS version,
		pg_catalog.current_setting('server_version_num')::int / 10000 AS server,
		millrace._definition_text(s.definition) AS query,
		millrace._columns_text(h.partial, 1) AS columns,
		ARRAY(SELECT k.hash FROM millrace.state_key_hashes k WHERE k.own) AS keys,
		millrace._closed_to(s.state) AS closed_to, s.retained_from
	FROM millrace.shared h JOIN millrace.stream s ON s.name = h.name AND s.kind = 'aggregate' JOIN pg_catalog.pg_class c ON c.oid = h.partial
		JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace;
GRANT SELECT ON millrace.shared_aggregates TO PUBLIC;
COMMENT ON VIEW millrace.shared_aggregates IS 'Continuous aggregates whose states other databases may read; what these go by';
COMMENT ON COLUMN millrace.shared_aggregates.name IS 'Name of the continuous aggregate';
COMMENT ON COLUMN millrace.shared_aggregates.schema IS 'Schema of NAME_partial';
COMMENT ON COLUMN millrace.shared_aggregates.partial IS 'View NAME_partial: the states';
COMMENT ON COLUMN millrace.shared_aggregates.version IS 'Version of the library';
COMMENT ON COLUMN millrace.shared_aggregates.server IS 'Major version of PostgreSQL, on which the form of serialised states depends';
COMMENT ON COLUMN millrace.shared_aggregates.query IS 'Its query';
COMMENT ON COLUMN millrace.shared_aggregates.columns IS 'Columns of NAME_partial';
COMMENT ON COLUMN millrace.shared_aggregates.keys IS 'Hashes of this database''s own keys in millrace.state_key';
COMMENT ON COLUMN millrace.shared_aggregates.closed_to IS 'Windows that ended at or before this time are final here';
COMMENT ON COLUMN millrace.shared_aggregates.retained_from IS 'Windows that ended before this time have been dropped; NULL: none has';

CREATE FUNCTION millrace.share_aggregate(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
	partial text;
BEGIN
	IF name IS NULL THEN
		RAISE EXCEPTION 'name of the continuous aggregate must not be null' USING ERRCODE = '22004';
	END IF;
	SELECT * INTO s FROM millrace.stream t WHERE t.name = share_aggregate.name;
	IF s.kind IS NULL OR s.kind NOT IN ('aggregate', 'rollup') THEN
		RAISE EXCEPTION 'continuous aggregate "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	ELSIF s.kind = 'rollup' THEN
		RAISE EXCEPTION '"%" is a rollup, which has no states to share', name USING ERRCODE = '42809',
			HINT = format('Share what it reads, %s: a federated rollup is computed where it is read.', s.inputs[1]);
	END IF;
	PERFORM millrace._stream_lock(name);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = share_aggregate.name;
	IF EXISTS (SELECT FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = share_aggregate.name) THEN
		RETURN;
	END IF;
	SELECT format('%I.%I', n.nspname, share_aggregate.name || '_partial') INTO partial
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = s.target;
	EXECUTE format('CREATE VIEW %s AS %s', partial, millrace._partial_text(s.definition, s.state, s.delta));
	EXECUTE format('COMMENT ON VIEW %s IS %L', partial, 'States of continuous aggregate ' || s.target || ', for databases that federate it');
	PERFORM millrace._shared_put(name, partial::regclass);
END $$;
COMMENT ON FUNCTION millrace.share_aggregate(text) IS
'Makes view NAME_partial: the states of a continuous aggregate, for other databases to merge with theirs (create_federated_aggregate).
GRANT SELECT on it to the role by which they come.  Shared already: nothing happens.';

CREATE FUNCTION millrace.unshare_aggregate(name text) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	partial regclass := (SELECT h.partial FROM millrace.shared h JOIN pg_class c ON c.oid = h.partial WHERE h.name = unshare_aggregate.name);
BEGIN
	IF partial IS NULL THEN
		RAISE EXCEPTION 'continuous aggregate "%" is not shared', name USING ERRCODE = '42704', HINT = 'See millrace.shared_aggregates.';
	END IF;
	PERFORM millrace._stream_lock(name);
	EXECUTE 'DROP VIEW ' || partial;
	PERFORM millrace._shared_put(name, NULL);
END $$;
COMMENT ON FUNCTION millrace.unshare_aggregate(text) IS 'Drops view NAME_partial, the states of a continuous aggregate for other databases';

CREATE VIEW millrace.federated_aggregates AS
	SELECT f.name, f.view, f.aggregate, f.servers, c.relowner::regrole AS owner
	FROM millrace.federated f JOIN pg_catalog.pg_class c ON c.oid = f.view;
GRANT SELECT ON millrace.federated_aggregates TO PUBLIC;
COMMENT ON VIEW millrace.federated_aggregates IS 'Federated aggregates: continuous aggregates over the rows of several databases';
COMMENT ON COLUMN millrace.federated_aggregates.name IS 'Its name';
COMMENT ON COLUMN millrace.federated_aggregates.view IS 'View that merges the states of all nodes and of this database';
COMMENT ON COLUMN millrace.federated_aggregates.aggregate IS 'Name of the continuous aggregate, here and on all nodes; of a rollup, here';
COMMENT ON COLUMN millrace.federated_aggregates.servers IS 'Foreign servers of the nodes';
COMMENT ON COLUMN millrace.federated_aggregates.owner IS 'Owner of the view, by whose user mappings the nodes are read';

/* Errors unless the node has the same aggregate as this database. */
CREATE FUNCTION millrace._check_node(server name, info text, aggregate text, columns text, query text, is_sealed bool, OUT partial_schema name, OUT partial_name name)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	node record;
	state text;
	message text;
	major int := current_setting('server_version_num')::int / 10000;
BEGIN
	BEGIN
		EXECUTE format('SELECT * FROM %s WHERE name = %L', info, aggregate) INTO node;
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
		RAISE EXCEPTION 'node "%" cannot be read: %', server, message USING ERRCODE = state,
			HINT = CASE WHEN message LIKE '%user mapping%' THEN format('CREATE USER MAPPING FOR %I SERVER %I OPTIONS (user …, password …)', current_user, server)
				WHEN state IN ('42P01', '3F000', '42703') THEN 'It needs this version of extension millrace.'
				ELSE 'See the options of the server and of the user mapping.' END;
	END;
	IF node.name IS NULL THEN
		RAISE EXCEPTION 'node "%" does not share continuous aggregate "%"', server, aggregate USING ERRCODE = '42704',
			HINT = format('There: SELECT millrace.share_aggregate(%L), and GRANT SELECT on %I', aggregate, aggregate || '_partial');
	END IF;
	IF node.version <> millrace.version() THEN
		RAISE EXCEPTION 'node "%" has version % of millrace, this database %', server, node.version, millrace.version() USING ERRCODE = '55000',
			HINT = 'All nodes need the same version.';
	ELSIF node.columns <> columns THEN
		RAISE EXCEPTION 'node "%" keeps other states of continuous aggregate "%"', server, aggregate USING ERRCODE = '42804',
			DETAIL = format('There: %s.  Here: %s.', node.columns, columns), HINT = 'Source, types and server must be the same everywhere.';
	ELSIF node.query <> query THEN
		RAISE EXCEPTION 'node "%" has another query of continuous aggregate "%"', server, aggregate USING ERRCODE = '42804',
			DETAIL = format(E'There:\n%s\nHere:\n%s', node.query, query), HINT = 'Create it by the same text everywhere, over a source of the same name.';
	ELSIF node.server <> major AND columns ~ '\ms[0-9]+ bytea' THEN
		RAISE EXCEPTION 'node "%" is PostgreSQL %, this server %', server, node.server, major USING ERRCODE = '55000',
			DETAIL = format('Serialised states of continuous aggregate "%s" may have another form there.', aggregate), HINT = 'All nodes need the same major version.';
	ELSIF is_sealed AND NOT node.keys <@ ARRAY(SELECT k.hash FROM millrace.state_key_hashes k) THEN
		RAISE EXCEPTION 'node "%" seals the states of continuous aggregate "%" with another key', server, aggregate USING ERRCODE = '55000',
			DETAIL = 'The functions of another extension trust the states that they are given, so this server gives them only what is sealed with a key that it knows.',
			HINT = 'Who trusts the node adds its own keys to those here: INSERT INTO millrace.state_key (key) VALUES (…)';
	END IF;
	partial_schema := node.schema;
	partial_name := node.partial;
END $$;
COMMENT ON FUNCTION millrace._check_node(name, text, text, text, text, bool) IS 'Internal: errors unless a node has the same aggregate';

CREATE FUNCTION millrace._federated_of(target regclass, servers name[]) RETURNS millrace.federated
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT f FROM millrace.federated f JOIN pg_class c ON c.oid = f.view JOIN millrace.stream t ON t.name = f.aggregate
		WHERE t.target = _federated_of.target AND f.servers @> _federated_of.servers AND f.servers <@ _federated_of.servers AND pg_has_role(c.relowner, 'USAGE') ORDER BY f.name LIMIT 1
$$;
COMMENT ON FUNCTION millrace._federated_of(regclass, name[]) IS 'Internal: a federated aggregate of a continuous aggregate over these servers, of the caller''s';

CREATE FUNCTION millrace._create_federated_aggregate(name text, aggregate text, servers name[], schema text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
	bottom millrace.stream;
	input millrace.federated;
	base millrace.federated;
	server name;
	wrapper name;
	view text;
	columns text;
	query text;
	is_sealed bool;
	node record;
	closed text[];
	retained text[];
	states text[] := '{}';
	infos text[] := '{}';
	state text;
	info text;
BEGIN
	IF name IS NULL OR aggregate IS NULL OR servers IS NULL OR array_position(servers, NULL) IS NOT NULL THEN
		RAISE EXCEPTION 'name, aggregate and servers of a federated aggregate must not be null' USING ERRCODE = '22004';
	ELSIF schema IS NULL THEN
		RAISE EXCEPTION 'no schema has been selected to create "%" in', name USING ERRCODE = '3F000', HINT = 'Set search_path.';
	ELSIF name = '' OR octet_length(name) > 63 THEN
		RAISE EXCEPTION '"%" is not a valid name of a federated aggregate', name USING ERRCODE = CASE name WHEN '' THEN '42602' ELSE '42622' END,
			HINT = 'A name has 1 to 63 bytes.';
	ELSIF cardinality(servers) = 0 THEN
		RAISE EXCEPTION 'federated aggregate "%" needs a server', name USING ERRCODE = '22023';
	ELSIF EXISTS (SELECT FROM unnest(servers) u GROUP BY u HAVING count(*) > 1) THEN
		RAISE EXCEPTION 'servers of federated aggregate "%" are named twice', name USING ERRCODE = '22023', HINT = 'Its rows would count twice.';
	ELSIF EXISTS (SELECT FROM millrace.federated_aggregates f WHERE f.name = _create_federated_aggregate.name) THEN
		RAISE EXCEPTION 'federated aggregate "%" already exists', name USING ERRCODE = '42710', HINT = 'See millrace.federated_aggregates.';
	END IF;
	SELECT * INTO s FROM millrace.stream t WHERE t.name = aggregate;
	IF s.kind IS NULL OR s.kind NOT IN ('aggregate', 'rollup') THEN
		RAISE EXCEPTION 'continuous aggregate "%" does not exist here', aggregate USING ERRCODE = '42704',
			HINT = 'Create it here as on the nodes; its source may stay empty.';
	END IF;
	PERFORM millrace._stream_lock(aggregate);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = aggregate;
	FOREACH server IN ARRAY servers LOOP
		SELECT w.fdwname INTO wrapper FROM pg_foreign_server f JOIN pg_foreign_data_wrapper w ON w.oid = f.srvfdw WHERE f.srvname = server;
		IF NOT FOUND THEN
			RAISE EXCEPTION 'server "%" does not exist', server USING ERRCODE = '42704', HINT = concat(
				CASE WHEN NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'postgres_fdw') THEN 'CREATE EXTENSION postgres_fdw, then ' END,
				format('CREATE SERVER %I FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host …, port …, dbname …), and a user mapping', server));
		ELSIF wrapper <> 'postgres_fdw' THEN
			RAISE EXCEPTION 'server "%" is one of %', server, wrapper USING ERRCODE = '42809', HINT = 'Nodes are servers of postgres_fdw.';
		END IF;
	END LOOP;
	view := format('%s.%I', schema, name);

	IF s.kind = 'rollup' THEN
		input := millrace._federated_of(s.inputs[1], servers);
		IF input.name IS NULL THEN
			RAISE EXCEPTION 'rollup "%" reads %, of which there is no federated aggregate of yours over these servers', aggregate, s.inputs[1]
				USING ERRCODE = '55000', HINT = 'Create that first.';
		END IF;
		/* How far the nodes have come, the aggregate at the bottom tells. */
		SELECT * INTO bottom FROM millrace.stream t WHERE t.target = s.inputs[1];
		base := input;
		WHILE bottom.kind = 'rollup' LOOP
			SELECT * INTO bottom FROM millrace.stream t WHERE t.target = bottom.inputs[1];
			base := millrace._federated_of(bottom.target, servers);
			IF base.name IS NULL THEN
				RAISE EXCEPTION 'rollup "%" is computed from %, of which there is no federated aggregate of yours over these servers', aggregate, bottom.target
					USING ERRCODE = '55000', HINT = 'Create that first.';
			END IF;
		END LOOP;
		infos := base.tables[cardinality(servers) + 1:]::text[];
	ELSE
		bottom := s;
		columns := millrace._columns_text(s.state, 4);
		query := millrace._definition_text(s.definition);
		is_sealed := EXISTS (SELECT FROM unnest((millrace._aggregate_states(s.definition)).aggregates) u JOIN pg_aggregate a ON a.aggfnoid = u::oid WHERE a.aggdeserialfn::oid >= 16384);
		FOREACH server IN ARRAY servers LOOP
			IF octet_length(name) + octet_length(server) > 55 THEN
				RAISE EXCEPTION 'the names "%" and "%" are too long for a foreign table', name, server USING ERRCODE = '42622',
					HINT = 'Together they may have 55 bytes.';
			END IF;
			state := format('%s.%I', schema, name || '_states_' || server);
			info := format('%s.%I', schema, name || '_info_' || server);
			EXECUTE format('CREATE FOREIGN TABLE %s (name text, schema name, partial name, version text, server int, query text, columns text, keys text[],
				closed_to timestamptz, retained_from timestamptz) SERVER %I OPTIONS (schema_name ''millrace'', table_name ''shared_aggregates'', async_capable ''true'')',
				info, server);
			SELECT * INTO node FROM millrace._check_node(server, info, aggregate, columns, query, is_sealed);
			EXECUTE format('CREATE FOREIGN TABLE %s (%s) SERVER %I OPTIONS (schema_name %L, table_name %L, async_capable ''true'', fetch_size ''10000'')',
				state, columns, server, node.partial_schema, node.partial_name);
			EXECUTE format('COMMENT ON FOREIGN TABLE %s IS %L', info, format('Node %s of federated aggregate %s: how far it has come', server, view));
			EXECUTE format('COMMENT ON FOREIGN TABLE %s IS %L', state, format('Node %s of federated aggregate %s: its states', server, view));
			states := states || state;
			infos := infos || info;
		END LOOP;
	END IF;
	/* This database holds nothing back until a batch has come here. */
	closed := ARRAY(SELECT format('SELECT i.closed_to FROM %s i WHERE i.name = %L', u, bottom.name) FROM unnest(infos) u)
		|| format('SELECT CASE WHEN EXISTS (SELECT FROM millrace.progress p WHERE p.state = %1$L::pg_catalog.regclass) THEN millrace._closed_to(%1$L::pg_catalog.regclass) ELSE ''infinity'' END', bottom.state);
	retained := ARRAY(SELECT format('SELECT i.retained_from FROM %s i WHERE i.name = %L', u, bottom.name) FROM unnest(infos) u)
		|| format('SELECT r.retained_from FROM millrace.stream r WHERE r.state = %L::pg_catalog.regclass', bottom.state);
	EXECUTE format('CREATE VIEW %s AS %s', view, CASE s.kind
		WHEN 'rollup' THEN millrace._federated_rollup_text(s.definition, s.state, input.view, array_to_string(closed, ' UNION ALL '), array_to_string(retained, ' UNION ALL '), cardinality(closed))
		ELSE millrace._federated_text(s.definition, s.state, s.delta, states, array_to_string(closed, ' UNION ALL '), array_to_string(retained, ' UNION ALL ')) END);
	EXECUTE format('COMMENT ON VIEW %s IS %L', view, format('Continuous aggregate %s of this database and of %s', s.target, array_to_string(servers, ', ')));
	PERFORM millrace._federated_put(name, view::regclass, aggregate, servers, CASE s.kind WHEN 'rollup' THEN '{}' ELSE (states || infos)::regclass[] END);
END $$;
COMMENT ON FUNCTION millrace._create_federated_aggregate(text, text, name[], text) IS 'Internal: create_federated_aggregate; schema: the first of the caller''s search_path, quoted';
CREATE FUNCTION millrace.create_federated_aggregate(name text, aggregate text, servers name[]) RETURNS void
	LANGUAGE sql AS $$ SELECT millrace._create_federated_aggregate($1, $2, $3, pg_catalog.quote_ident(pg_catalog.current_schema())) $$;
COMMENT ON FUNCTION millrace.create_federated_aggregate(text, text, name[]) IS
'Creates view NAME: what a continuous aggregate of this database would hold if it had the rows of all nodes as well.
aggregate: its name, here and on all nodes, where millrace.share_aggregate has been called for it; rows here count, too.
servers: those of postgres_fdw, with user mappings for the owner, by whose rights the view reads.
Windows are final when they are on every node (and here, once a batch has come); final or not, they are as NAME shows them.  A rollup is computed over the federated
aggregate of what it reads, which is created first.  A node that does not answer is an error: there is no partial answer.';

CREATE FUNCTION millrace.drop_federated_aggregate(name text) RETURNS void
LANGUAGE plpgsql STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	f millrace.federated;
	r regclass;
BEGIN
	SELECT g.* INTO f FROM millrace.federated g JOIN pg_class c ON c.oid = g.view WHERE g.name = drop_federated_aggregate.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'federated aggregate "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.federated_aggregates.';
	END IF;
	/* Before the view, which would take the tables along, with what others have made of them. */
	PERFORM millrace._federated_put(name, NULL, NULL, NULL, NULL);
	EXECUTE 'DROP VIEW ' || f.view;
	FOREACH r IN ARRAY f.tables LOOP
		EXECUTE 'DROP FOREIGN TABLE ' || r;
	END LOOP;
END $$;
COMMENT ON FUNCTION millrace.drop_federated_aggregate(text) IS 'Drops a federated aggregate: its view and its foreign tables; the nodes keep what they have';

REVOKE EXECUTE ON FUNCTION millrace._partial_text(regclass, regclass, regclass), millrace._federated_text(regclass, regclass, regclass, text[], text, text),
	millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int), millrace._shared_put(text, regclass),
	millrace._federated_put(text, regclass, text, name[], regclass[]), millrace.share_aggregate(text), millrace.unshare_aggregate(text),
	millrace._check_node(name, text, text, text, text, bool), millrace._create_federated_aggregate(text, text, name[], text),
	millrace.create_federated_aggregate(text, text, name[]), millrace.drop_federated_aggregate(text)
	FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace._partial_text(regclass, regclass, regclass), millrace._federated_text(regclass, regclass, regclass, text[], text, text),
	millrace._federated_rollup_text(regclass, regclass, regclass, text, text, int), millrace._shared_put(text, regclass),
	millrace._federated_put(text, regclass, text, name[], regclass[]), millrace.share_aggregate(text), millrace.unshare_aggregate(text),
	millrace._check_node(name, text, text, text, text, bool), millrace._create_federated_aggregate(text, text, name[], text),
	millrace.create_federated_aggregate(text, text, name[]), millrace.drop_federated_aggregate(text)
	TO @extowner@ WITH GRANT OPTION;
