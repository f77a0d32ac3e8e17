/*
 * Corrections: windows whose rows were changed are marked, and computed anew by millrace.refresh.
 */
CREATE TABLE millrace.mark (
	state regclass NOT NULL,
	xid xid8 NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL,
	reason text NOT NULL
);
CREATE INDEX mark_state ON millrace.mark (state);
SELECT pg_catalog.pg_extension_config_dump('millrace.mark', '');
GRANT SELECT ON millrace.mark TO PUBLIC;
COMMENT ON TABLE millrace.mark IS 'Windows of continuous aggregates that millrace.refresh has to compute anew';
COMMENT ON COLUMN millrace.mark.state IS 'NAME_state of the continuous aggregate';
COMMENT ON COLUMN millrace.mark.xid IS 'Transaction that touched them';
COMMENT ON COLUMN millrace.mark.from_time IS 'Start of the first window (of a sliding one: of the slide); for sessions a range of event times';
COMMENT ON COLUMN millrace.mark.to_time IS 'Start of the last one.  -infinity to infinity: all windows; infinity to -infinity: that of rows without a time';
COMMENT ON COLUMN millrace.mark.reason IS 'update, delete, truncate, attach, filling, stopped, or the error with which the stream failed';

CREATE FUNCTION millrace._restored_mark() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	NEW.xid := '0';
	RETURN NEW;
END $$;
COMMENT ON FUNCTION millrace._restored_mark() IS 'Internal: a restored row of millrace.mark loses its transaction id (C code, which writes them, fires no triggers)';
CREATE TRIGGER restored BEFORE INSERT ON millrace.mark FOR EACH ROW EXECUTE FUNCTION millrace._restored_mark();

/*
 * Partitions of sources, to know when one is gone; and the ranges of time whose rows went with one, of which the windows
 * are kept as they are.
 */
CREATE TABLE millrace.known_partition (
	source regclass NOT NULL,
	partition regclass NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL,
	PRIMARY KEY (partition)
);
SELECT pg_catalog.pg_extension_config_dump('millrace.known_partition', '');
GRANT SELECT ON millrace.known_partition TO PUBLIC;
COMMENT ON TABLE millrace.known_partition IS 'Partitions of sources that are partitioned by time, as they were last seen';
COMMENT ON COLUMN millrace.known_partition.source IS 'The source';
COMMENT ON COLUMN millrace.known_partition.partition IS 'Its partition';
COMMENT ON COLUMN millrace.known_partition.from_time IS 'Start of the range of time that it holds';
COMMENT ON COLUMN millrace.known_partition.to_time IS 'End of the range';
CREATE TABLE millrace.gone_range (
	source regclass NOT NULL,
	from_time timestamptz NOT NULL,
	to_time timestamptz NOT NULL
);
SELECT pg_catalog.pg_extension_config_dump('millrace.gone_range', '');
GRANT SELECT ON millrace.gone_range TO PUBLIC;
COMMENT ON TABLE millrace.gone_range IS 'Ranges of time whose rows were detached or dropped with a partition; refresh and verify leave their windows alone';
COMMENT ON COLUMN millrace.gone_range.source IS 'The source';
COMMENT ON COLUMN millrace.gone_range.from_time IS 'Start of the range';
COMMENT ON COLUMN millrace.gone_range.to_time IS 'End of the range';

/* attached: a partition that has come with rows, so that those of its range are there again. */
CREATE FUNCTION millrace._note_partitions(source regclass, attached regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	part millrace.known_partition;
	fresh regclass[];
BEGIN
	IF NOT EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
		WHERE p.partrelid = source AND p.partstrat = 'r' AND p.partnatts = 1 AND a.atttypid = 'timestamptz'::regtype) THEN
		RETURN;
	END IF;
	/* One that comes when there are thousands is looked at alone. */
	IF attached IS DISTINCT FROM source THEN
		fresh := ARRAY(SELECT i.inhrelid FROM pg_inherits i WHERE i.inhparent = source
			AND (i.inhrelid = attached OR NOT EXISTS (SELECT FROM millrace.known_partition k WHERE k.partition = i.inhrelid AND k.source = i.inhparent)));
	END IF;
	INSERT INTO millrace.known_partition AS k
		SELECT source, p.partition, p.from_time, p.to_time FROM millrace._partitions(source, fresh) p WHERE p.from_time IS NOT NULL
		ON CONFLICT (partition) DO UPDATE SET source = excluded.source, from_time = excluded.from_time, to_time = excluded.to_time
		WHERE k.source <> excluded.source OR k.from_time <> excluded.from_time OR k.to_time <> excluded.to_time;
	WITH gone AS (
		DELETE FROM millrace.known_partition k WHERE k.source = _note_partitions.source AND NOT EXISTS (
			SELECT FROM pg_inherits i WHERE i.inhrelid = k.partition AND i.inhparent = k.source AND NOT i.inhdetachpending)
		RETURNING k.*)
	INSERT INTO millrace.gone_range SELECT g.source, g.from_time, g.to_time FROM gone g;
	SELECT * INTO part FROM millrace.known_partition k WHERE k.partition = attached;
	IF FOUND THEN
		WITH cut AS (
			DELETE FROM millrace.gone_range g WHERE g.source = part.source AND g.from_time < part.to_time AND g.to_time > part.from_time
			RETURNING g.*)
		INSERT INTO millrace.gone_range SELECT c.source, lower(r.r), upper(r.r)
			FROM cut c, unnest(tstzmultirange(tstzrange(c.from_time, c.to_time)) - tstzmultirange(tstzrange(part.from_time, part.to_time))) r(r);
	END IF;
END $$;
COMMENT ON FUNCTION millrace._note_partitions(regclass, regclass) IS 'Internal: keeps millrace.known_partition and gone_range; attached: a partition that came with rows, NULL: none did, the source: look at the bounds of all';

CREATE FUNCTION millrace._forget_dropped() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
	WITH gone AS (
		DELETE FROM millrace.known_partition k WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = k.partition)
			OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = k.source) RETURNING k.*)
	INSERT INTO millrace.gone_range SELECT g.source, g.from_time, g.to_time FROM gone g JOIN pg_class c ON c.oid = g.source;
	DELETE FROM millrace.gone_range g WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = g.source);
	/* The query went with a table that it reads; all else of the aggregate is there. */
	UPDATE millrace.stream s SET definition = NULL, status = 'failed', error = 'what its query reads was dropped'
		WHERE s.on_error = 'suspend' AND s.kind = 'aggregate' AND NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.definition)
		AND s.definition IS NOT NULL AND (SELECT count(*) FROM pg_class c WHERE c.oid IN (s.source, s.target, s.state, s.delta, s.final)) = 5;
	DELETE FROM millrace.mark m WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = m.state);
END $$;
COMMENT ON FUNCTION millrace._forget_dropped() IS 'Internal: notes partitions that were dropped, and removes what is kept of tables that are gone';

CREATE FUNCTION millrace.refresh(name text, from_time timestamptz DEFAULT NULL, to_time timestamptz DEFAULT NULL) RETURNS bigint
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_refresh';
COMMENT ON FUNCTION millrace.refresh(text, timestamptz, timestamptz) IS
'Computes anew, from the rows of the source, the windows of a continuous aggregate that were touched by UPDATE, DELETE or TRUNCATE,
came with a partition, or had rows while it was stopped or had failed; a stream that has failed then runs again.  Of a pipe: passes the rows
that it did not take through its command; of a scorer: scores them.  Of a history: reads the source again
if what it keeps is not up to date.  Returns the number of states (of a pipe or scorer: rows) written.  Writers are not kept out.
from_time, to_time: compute the windows of event times from_time <= time < to_time, whether touched or not, also where partitions are gone.
A final window keeps in NAME_final what it has shown.';
CREATE FUNCTION millrace._fill(name text, from_time timestamptz, to_time timestamptz) RETURNS bigint
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_fill';
COMMENT ON FUNCTION millrace._fill(text, timestamptz, timestamptz) IS 'Internal: computes the marked windows of a range';
CREATE FUNCTION millrace._slice_marks(name text, times timestamptz[]) RETURNS void
	LANGUAGE c STRICT AS 'MODULE_PATHNAME', 'mr_slice_marks';
COMMENT ON FUNCTION millrace._slice_marks(text, timestamptz[]) IS 'Internal: divides what is to be filled at some times';
CREATE FUNCTION millrace._stream_set(name text, status text, window_text text, fill bool) RETURNS void
	LANGUAGE c AS 'MODULE_PATHNAME', 'mr_stream_change';
COMMENT ON FUNCTION millrace._stream_set(text, text, text, bool) IS 'Internal: changes the row of a stream for its owner';
CREATE FUNCTION millrace._aggregate_window(definition regclass, OUT kind text, OUT size interval, OUT time_text text, OUT window_text text)
	LANGUAGE c STABLE STRICT AS 'MODULE_PATHNAME', 'mr_aggregate_window_parts';
COMMENT ON FUNCTION millrace._aggregate_window(regclass) IS 'Internal: the window of a definition, and texts over the columns of its source';

/* Times at which to divide the source: where its partitions start, or evenly where an index finds the rows of a slice. */
CREATE FUNCTION millrace._slices(source regclass, time_text text) RETURNS timestamptz[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	times timestamptz[];
	first timestamptz;
	last timestamptz;
	n int;
BEGIN
	IF EXISTS (SELECT FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
		WHERE p.partrelid = source AND p.partstrat = 'r' AND p.partnatts = 1 AND quote_ident(a.attname) = time_text AND a.atttypid = 'timestamptz'::regtype) THEN
		SELECT array_agg(DISTINCT t ORDER BY t) INTO times FROM millrace.partitions(source) p, unnest(ARRAY[p.from_time, p.to_time]) t(t) WHERE isfinite(t);
	ELSIF EXISTS (SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
		WHERE i.indrelid = source AND i.indpred IS NULL AND i.indisvalid AND quote_ident(a.attname) = time_text) THEN
		SELECT least(200, greatest(1, c.reltuples / 200000))::int INTO n FROM pg_class c WHERE c.oid = source;
		EXECUTE format('SELECT (SELECT min(%1$s) FROM %2$s WHERE %1$s > ''-infinity''), (SELECT max(%1$s) FROM %2$s WHERE %1$s < ''infinity'')', time_text, source) INTO first, last;
		SELECT array_agg(first + (last - first) * (i::float8 / n) ORDER BY i) INTO times FROM generate_series(0, n) i WHERE first IS NOT NULL;
	END IF;
	RETURN coalesce(times, '{}');
END $$;
COMMENT ON FUNCTION millrace._slices(regclass, text) IS 'Internal: times at which the filling of a continuous aggregate is divided';

CREATE FUNCTION millrace._backfill_begin(name text) RETURNS bool
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = _backfill_begin.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.kind = 'history' THEN
		PERFORM millrace.refresh(name);
		RETURN false;
	END IF;
	IF s.status <> 'filling' THEN
		RAISE EXCEPTION 'stream "%" is %, and not to be filled', name, s.status USING ERRCODE = '55000',
			HINT = 'Only a continuous aggregate that was created with with_data => false is filled; millrace.refresh computes windows anew.';
	END IF;
	PERFORM millrace._slice_marks(name, millrace._slices(s.source, (millrace._aggregate_window(s.definition)).time_text));
	RETURN true;
END $$;
COMMENT ON FUNCTION millrace._backfill_begin(text) IS 'Internal: divides what backfill has to fill; false: nothing is left to do';

CREATE FUNCTION millrace._backfill_left(name text) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT count(*) FROM millrace.stream s JOIN millrace.mark m USING (state)
	WHERE s.name = _backfill_left.name AND m.reason = 'filling' AND m.from_time <= m.to_time
$$;
COMMENT ON FUNCTION millrace._backfill_left(text) IS 'Internal: slices that backfill has not filled';

CREATE FUNCTION millrace._backfill_next(name text) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	slice record;
BEGIN
	/* The newest first: they are asked for most. */
	SELECT m.from_time, m.to_time INTO slice FROM millrace.stream s JOIN millrace.mark m USING (state)
		WHERE s.name = _backfill_next.name AND m.reason = 'filling' ORDER BY m.from_time > m.to_time, m.from_time DESC LIMIT 1;
	IF FOUND THEN
		RETURN millrace._fill(name, slice.from_time, slice.to_time);
	END IF;
	IF (SELECT t.status FROM millrace.stream t WHERE t.name = _backfill_next.name) = 'filling' THEN
		PERFORM millrace._fill(name, '-infinity', 'infinity');
	END IF;
	RETURN NULL;
END $$;
COMMENT ON FUNCTION millrace._backfill_next(text) IS 'Internal: fills a slice, and returns the states written; NULL: it was the last step';

CREATE FUNCTION millrace._backfill_tell(name text, n_slices bigint, n_states bigint, began timestamptz) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	n_left bigint := millrace._backfill_left(name);
BEGIN
	RAISE NOTICE 'backfill of "%": % of % slices done (% %%), % states written, about % s left', name, n_slices - n_left, n_slices,
		100 * (n_slices - n_left) / greatest(n_slices, 1), n_states,
		round((extract(epoch FROM clock_timestamp() - began) * n_left / greatest(n_slices - n_left, 1))::numeric);
END $$;
COMMENT ON FUNCTION millrace._backfill_tell(text, bigint, bigint, timestamptz) IS 'Internal: how far backfill has come';

/* A procedure that commits cannot have a search_path of its own: here only what means the same with any. */
CREATE PROCEDURE millrace.backfill(name text)
LANGUAGE plpgsql AS $$
DECLARE
	n_slices pg_catalog.int8;
	n_more pg_catalog.int8;
	n_states pg_catalog.int8 := 0;
	began pg_catalog.timestamptz := pg_catalog.clock_timestamp();
BEGIN
	IF millrace._backfill_begin(name) THEN
		COMMIT;
		n_slices := millrace._backfill_left(name);
		LOOP
			n_more := millrace._backfill_next(name);
			EXIT WHEN n_more IS NULL;
			COMMIT;
			n_states := pg_catalog.int8pl(n_states, n_more);
			PERFORM millrace._backfill_tell(name, n_slices, n_states, began);
		END LOOP;
	END IF;
END $$;
COMMENT ON PROCEDURE millrace.backfill(text) IS
'Fills a continuous aggregate that was created with with_data => false from the rows that its source has, while writers go on.
Works through partitions, or slices of time if there is an index on it, the newest first, each in a transaction of its own; tells how far it has come.
May be cancelled, and called again to go on.  No window is final before it is done.';

/* Equal but for the last digits of floats?  Numbers, or arrays of them. */
CREATE FUNCTION millrace._nearly_equal(a jsonb, b jsonb, tolerance float8) RETURNS bool
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	x numeric;
	y numeric;
BEGIN
	IF a = b THEN
		RETURN true;
	ELSIF jsonb_typeof(a) = 'number' AND jsonb_typeof(b) = 'number' THEN
		x := a::numeric;
		y := b::numeric;
		RETURN abs(x - y) <= tolerance::numeric * greatest(abs(x), abs(y));
	ELSIF jsonb_typeof(a) = 'array' AND jsonb_typeof(b) = 'array' AND jsonb_array_length(a) = jsonb_array_length(b) THEN
		RETURN (SELECT coalesce(bool_and(millrace._nearly_equal(p.x, q.y, tolerance)), true)
			FROM jsonb_array_elements(a) WITH ORDINALITY p(x, i) JOIN jsonb_array_elements(b) WITH ORDINALITY q(y, i) USING (i));
	END IF;
	RETURN false;
END $$;
COMMENT ON FUNCTION millrace._nearly_equal(jsonb, jsonb, float8) IS 'Internal: are two values equal but for a relative error of numbers?';

CREATE FUNCTION millrace._differ(stored jsonb, expected jsonb, tolerances jsonb) RETURNS bool
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
	SELECT stored IS NULL OR expected IS NULL OR EXISTS (
		SELECT FROM jsonb_each(stored) s JOIN jsonb_each(expected) e USING (key)
		WHERE s.value <> e.value AND (NOT tolerances ? key OR NOT millrace._nearly_equal(s.value, e.value, (tolerances ->> key)::float8)))
$$;
COMMENT ON FUNCTION millrace._differ(jsonb, jsonb, jsonb) IS 'Internal: do two rows differ in more than the last digits of floats?';

CREATE FUNCTION millrace.verify(name text) RETURNS TABLE (window_start timestamptz, key jsonb, stored jsonb, expected jsonb, reason text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET extra_float_digits = 1 SET row_security = off AS $$
#variable_conflict use_column
DECLARE
	s millrace.stream;
	keys record;
	win record;
	win_size interval := '0';
	win_kind text := 'rollup';
	columns text;
	key_columns text;
	tolerances jsonb;
	longest interval := '0';
	closed_to timestamptz;
	has_late bool;
	has_join bool;
	is_owner bool;
	command text;
	diffs refcursor;
	found_diff jsonb;
	diff record;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = verify.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.state IS NULL THEN
		RAISE EXCEPTION 'stream "%" is a %, which cannot be verified', name, s.kind USING ERRCODE = '42809', HINT = 'Name a continuous aggregate.';
	END IF;
	IF s.definition IS NULL OR NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = s.definition) THEN
		RAISE EXCEPTION 'the query of continuous aggregate "%" is gone', name USING ERRCODE = '55000', DETAIL = s.error,
			HINT = format('Restore what it reads, then call millrace.refresh(%L).', name);
	END IF;
	keys := millrace._aggregate_keys(s.definition);
	IF s.kind = 'aggregate' THEN
		win := millrace._aggregate_window(s.definition);
		win_size := win.size;
		win_kind := win.kind;
		closed_to := millrace._closed_to(s.state);
	END IF;
	IF win_kind = 'session' THEN
		SELECT (a #>> '{}')::interval INTO longest FROM millrace._as_owner(s.state, format('SELECT to_jsonb(coalesce(max(q.window_last - q.window_start), ''0'')) FROM (SELECT window_start, window_last FROM %s
			UNION ALL SELECT window_start, window_last FROM %s) q WHERE isfinite(q.window_start) AND isfinite(q.window_last)', s.state, s.delta)) a;
	END IF;
	/* Everything that is neither the window nor a key is compared. */
	SELECT string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname <> ALL (keys.keys) AND a.attname IS DISTINCT FROM keys.window_column),
		string_agg('r.' || quote_ident(a.attname), ', ' ORDER BY a.attnum) FILTER (WHERE a.attname = ANY (keys.keys)),
		coalesce(jsonb_object_agg(a.attname, CASE WHEN e.oid = 'float4'::regtype THEN 1e-5 ELSE 1e-9 END)
			FILTER (WHERE e.oid IN ('float4'::regtype, 'float8'::regtype)), '{}')
		INTO columns, key_columns, tolerances
		FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
		LEFT JOIN pg_type e ON e.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END
		WHERE a.attrelid = s.definition AND a.attnum > 0 AND NOT a.attisdropped;
	has_late := s.late_policy <> 'update' AND s.late_since IS NOT NULL;
	has_join := s.kind = 'aggregate' AND EXISTS (SELECT FROM pg_rewrite w JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = w.oid
		WHERE w.ev_class = s.definition AND d.refclassid = 'pg_class'::regclass AND d.refobjid NOT IN (s.definition, s.source));
	/* As the owner: a view may call functions of his. */
	IF (SELECT count(DISTINCT c.relowner) FROM pg_class c WHERE c.oid IN (s.target, s.definition, s.state)) > 1 THEN
		RAISE EXCEPTION 'the views and the table % of "%" belong to different roles', s.state, name USING ERRCODE = '42501', HINT = 'Use ALTER TABLE … OWNER TO.';
	END IF;
	is_owner := (SELECT pg_has_role(c.relowner, 'USAGE') FROM pg_class c WHERE c.oid = s.state);
	command := format($q$
		WITH s AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %4$s r) q),
		e AS MATERIALIZED (
			SELECT q.w, q.k, q.v, row_number() OVER (PARTITION BY q.w, q.k ORDER BY q.v) AS i, jsonb_build_array(q.w, q.k) AS id
			FROM (SELECT %1$s AS w, %2$s AS k, %3$s AS v FROM %5$s r) q)
		SELECT jsonb_build_object('w', coalesce(s.w, e.w), 'k', coalesce(s.k, e.k), 'stored', s.v, 'expected', e.v)
		FROM s FULL JOIN e ON s.id = e.id AND s.i = e.i
		WHERE s.v IS DISTINCT FROM e.v
		ORDER BY coalesce(s.w, e.w), coalesce(s.k, e.k)$q$,
		CASE WHEN keys.window_column IS NULL THEN 'NULL::timestamptz' ELSE 'r.' || quote_ident(keys.window_column) END,
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || key_columns || ') x)', '''{}''::jsonb'),
		coalesce('(SELECT to_jsonb(x) FROM (SELECT ' || columns || ') x)', '''{}''::jsonb'), s.target, s.definition);
	IF is_owner THEN
		OPEN diffs FOR SELECT a FROM millrace._as_owner(s.state, command) a;
	ELSE
		OPEN diffs FOR EXECUTE command;
	END IF;
	LOOP
		FETCH diffs INTO found_diff;
		EXIT WHEN NOT FOUND;
		SELECT (found_diff ->> 'w')::timestamptz AS w, nullif(found_diff -> 'k', 'null') AS k, nullif(found_diff -> 'stored', 'null') AS stored,
			nullif(found_diff -> 'expected', 'null') AS expected INTO diff;
		CONTINUE WHEN NOT millrace._differ(diff.stored, diff.expected, tolerances);
		/* Its rows, or its states, are gone. */
		CONTINUE WHEN s.kind = 'aggregate' AND (EXISTS (SELECT FROM millrace.gone_range g WHERE g.source = s.source
				AND g.from_time < diff.w + win_size + longest AND g.to_time > CASE win_kind WHEN 'session' THEN diff.w - win_size - longest ELSE diff.w END)
			OR diff.w + CASE win_kind WHEN 'session' THEN '0' ELSE win_size END <= s.retained_from);
		window_start := diff.w;
		key := diff.k;
		stored := diff.stored;
		expected := diff.expected;
		SELECT format('marked (%s), not refreshed', string_agg(DISTINCT m.reason, ', ')) INTO reason FROM millrace.mark m
			WHERE m.state = s.state AND CASE WHEN m.from_time = '-infinity' AND m.to_time = 'infinity' THEN true
				WHEN diff.w IS NULL THEN m.from_time > m.to_time OR keys.window_column IS NULL
				WHEN win_kind = 'session' THEN m.to_time >= diff.w AND m.from_time <= diff.w + longest + win_size
				ELSE m.to_time >= diff.w AND m.from_time < diff.w + win_size OR m.from_time = diff.w END
			HAVING count(*) > 0;
		IF reason IS NULL AND s.kind = 'rollup' AND EXISTS (SELECT FROM millrace.stream i JOIN millrace.mark m USING (state) WHERE i.target = ANY (s.inputs)) THEN
			reason := 'windows that it reads are marked, not refreshed';
		ELSIF reason IS NULL AND has_late AND diff.w + win_size <= closed_to THEN
			reason := 'late rows dropped';
		ELSIF reason IS NULL AND has_join THEN
			reason := 'a joined table may have changed';
		END IF;
		reason := coalesce(reason, 'defect');
		RETURN NEXT;
	END LOOP;
	CLOSE diffs;
END $$;
COMMENT ON FUNCTION millrace.verify(text) IS
'Computes a continuous aggregate anew from its source, and returns the rows in which it differs; none if it is right.
window_start; key: the other columns of GROUP BY; stored: what NAME shows; expected: what its query returns, NULL where it has no such row.
float8 values may differ by 1e-9 of their size (float4: 1e-5).  Windows whose rows went with a partition, and those that were dropped, are skipped.
reason: marked (why), not refreshed (call millrace.refresh); late rows dropped (late_policy drop or divert; refresh would count them);
a joined table may have changed; defect (rows were changed where triggers do not fire, as with session_replication_role = replica,
or the software is at fault; millrace.refresh(name, ''-infinity'', ''infinity'') computes all anew).';

CREATE FUNCTION millrace.stop_stream(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = stop_stream.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	PERFORM millrace._lock_source(s.source);
	SELECT * INTO s FROM millrace.stream t WHERE t.name = stop_stream.name;
	IF s.kind NOT IN ('history', 'pipe', 'aggregate', 'scorer') THEN
		RAISE EXCEPTION 'stream "%" is a %, which cannot be stopped', name, s.kind USING ERRCODE = '42809', HINT = 'Stop what it reads.';
	END IF;
	IF s.status = 'filling' THEN
		RAISE EXCEPTION 'stream "%" is being filled', name USING ERRCODE = '55000', HINT = 'Let CALL millrace.backfill finish first.';
	ELSIF s.status <> 'running' THEN
		RAISE EXCEPTION 'stream "%" does not run: it is %', name, s.status USING ERRCODE = '55000',
			HINT = pg_catalog.format('millrace.start_stream(%L) starts it.', name);
	END IF;
	PERFORM millrace._stream_set(name, 'stopped', NULL, false);
END $$;
COMMENT ON FUNCTION millrace.stop_stream(text) IS
'Stops a pipe, continuous aggregate, scorer or history: batches go on without it.  The windows of their rows are marked, the rows for a pipe or scorer kept,
and start_stream makes up for them.';

CREATE FUNCTION millrace.start_stream(name text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
	s millrace.stream;
BEGIN
	SELECT * INTO s FROM millrace.stream t WHERE t.name = start_stream.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION 'stream "%" does not exist', name USING ERRCODE = '42704', HINT = 'See millrace.streams.';
	END IF;
	IF s.status = 'running' THEN
		RAISE EXCEPTION 'stream "%" is running', name USING ERRCODE = '42710', HINT = 'See millrace.streams.';
	ELSIF s.status = 'filling' THEN
		RAISE EXCEPTION 'stream "%" is being filled', name USING ERRCODE = '55000', HINT = 'CALL millrace.backfill goes on with that.';
	END IF;
	/* Most of the work while writers go on; the rest is done when they are kept out. */
	PERFORM millrace.refresh(name);
	PERFORM millrace._lock_source(s.source);
	PERFORM millrace.refresh(name);
	PERFORM millrace._stream_set(name, 'running', NULL, false);
END $$;
COMMENT ON FUNCTION millrace.start_stream(text) IS
'Starts a pipe, continuous aggregate, scorer or history that was stopped or has failed, after it has made up for the batches that it missed: as millrace.refresh.';

REVOKE EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz), millrace._note_partitions(regclass, regclass),
	millrace._forget_dropped(), millrace._fill(text, timestamptz, timestamptz), millrace._slice_marks(text, timestamptz[]),
	millrace._stream_set(text, text, text, bool), millrace._aggregate_window(regclass), millrace._slices(regclass, text),
	millrace.verify(text), millrace.stop_stream(text), millrace.start_stream(text),
	millrace._backfill_begin(text), millrace._backfill_next(text) FROM PUBLIC;
REVOKE EXECUTE ON PROCEDURE millrace.backfill(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION millrace.refresh(text, timestamptz, timestamptz), millrace._note_partitions(regclass, regclass),
	millrace._forget_dropped(), millrace._fill(text, timestamptz, timestamptz), millrace._slice_marks(text, timestamptz[]),
	millrace._stream_set(text, text, text, bool), millrace._aggregate_window(regclass), millrace._slices(regclass, text),
	millrace.verify(text), millrace.stop_stream(text), millrace.start_stream(text),
	millrace._backfill_begin(text), millrace._backfill_next(text) TO @extowner@ WITH GRANT OPTION;
GRANT EXECUTE ON PROCEDURE millrace.backfill(text) TO @extowner@ WITH GRANT OPTION;
