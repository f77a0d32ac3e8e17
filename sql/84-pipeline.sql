/*
 * Pipelines as SQL.  A query that calls index_of, scale or kmeans_assign stands on other models, and model_version.uses has
 * the versions that it met.  From these, and from the query, settings and parameters that each version keeps, follow the
 * statements that make all of it again.
 */
CREATE FUNCTION millrace._pipeline(model text, OUT uses jsonb, OUT is_current bool, OUT sql text)
	RETURNS SETOF record LANGUAGE sql STABLE ROWS 1 COST 1000 SET search_path = pg_catalog, pg_temp SET standard_conforming_strings = on SET DateStyle = ISO SET IntervalStyle = postgres
	SET extra_float_digits = 1 AS $pipeline$
	WITH RECURSIVE part (model, version, shown, depth, used) AS ( -- what the active version stands on, and itself; shown: the active one for one that has gone; used: when
		SELECT m.name, m.active, m.active, 0, NULL::timestamptz FROM millrace.model AS m WHERE m.name = _pipeline.model AND m.active IS NOT NULL
		UNION
		SELECT u.key, u.value::int4, coalesce(
				(SELECT k.version FROM millrace.model_version AS k WHERE k.model = u.key AND k.version = u.value::int4),
				(SELECT k.active FROM millrace.model AS k WHERE k.name = u.key)), p.depth + 1, v.created
		FROM part AS p JOIN millrace.model_version AS v ON v.model = p.model AND v.version = p.shown, LATERAL jsonb_each_text(v.uses) AS u
		-- No chain has more versions than there have been.  Active ones in the place of others may go around in circles.
		WHERE p.depth < (SELECT sum(m.last_version) FROM millrace.model AS m)
	), used AS (
		SELECT jsonb_object_agg(p.model, p.version ORDER BY p.version) AS uses,
			bool_and(m.active IS NOT NULL AND millrace._same_version(p.model, p.version, m.active, p.used)) AS is_current
		FROM part AS p LEFT JOIN millrace.model AS m ON m.name = p.model WHERE p.model <> _pipeline.model
	), step AS ( -- the versions to be made, each behind those that it stands on
		SELECT s.*, lag(s.settings) OVER (ORDER BY s.n) AS settings_before
		FROM (SELECT row_number() OVER (ORDER BY p.depth DESC, v.created, v.model, v.version) AS n, m.name, v.parameters, v.metrics, v.settings, v.query, v.views,
				CASE m.kind WHEN 'als' THEN 'train_als' WHEN 'kmeans' THEN 'train_kmeans' WHEN 'indexer' THEN 'fit_indexer' ELSE 'fit_scaler' END AS function
			FROM (SELECT p.model, p.shown, max(p.depth) AS depth FROM part AS p GROUP BY p.model, p.shown) AS p JOIN millrace.model_version AS v ON v.model = p.model AND v.version = p.shown
				JOIN millrace.model AS m ON m.name = p.model) AS s
	), made AS (
		SELECT string_agg(w.text || CASE WHEN s.settings IS DISTINCT FROM s.settings_before THEN g.text ELSE '' END ||
			CASE WHEN s.parameters ? 'imported' THEN format(E'-- %s: factors from elsewhere, by millrace.import_als\n', to_jsonb(s.name))
				ELSE format(E'SELECT millrace.%s(%L, %s%s);\n', s.function, s.name,
					CASE WHEN s.query LIKE '%$%' THEN quote_literal(s.query) ELSE '$$' || s.query || '$$' END, a.text) END, '' ORDER BY s.n) AS sql
		FROM step AS s,
			LATERAL ( -- settings that are not PostgreSQL's own, or were others in the step before; the search_path without the pg_temp that was put behind it
				SELECT coalesce(string_agg(CASE WHEN g.name = 'search_path'
					THEN format(E'SET search_path = %s;\n', coalesce(nullif(regexp_replace(regexp_replace(g.value, ',? ?pg_temp$', ''), '(?<![^ ])""(?![^,])', ''''''), ''), ''''''))
					ELSE format(E'SET %s = %L;\n', g.name, g.value) END, '' ORDER BY g.n), '')
				FROM (SELECT split_part(e, '=', 1), substr(e, strpos(e, '=') + 1), n FROM unnest(s.settings) WITH ORDINALITY AS u (e, n)) AS g (name, value, n)
					LEFT JOIN pg_settings AS b ON b.name = g.name
				WHERE g.name IN ('search_path', 'TimeZone') OR g.value IS DISTINCT FROM b.boot_val OR NOT g.name || '=' || g.value = ANY (s.settings_before)) AS g (text),
			LATERAL ( -- views that no step before has, as they are now; all names are qualified, so settings come behind them
				SELECT coalesce(string_agg(format(E'CREATE OR REPLACE VIEW %s%s AS\n%s\n', w.name, ' WITH (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid)), '' ORDER BY w.n), '')
				FROM unnest(s.views) WITH ORDINALITY AS w (name, n), pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
				WHERE format('%I.%I', n.nspname, c.relname) = w.name AND c.relkind = 'v' AND NOT EXISTS (SELECT FROM step AS e WHERE e.n < s.n AND w.name = ANY (e.views))) AS w (text),
			LATERAL ( -- arguments behind the query that are not the default
				SELECT coalesce(string_agg(format(', %I => %s', n.name,
					CASE jsonb_typeof(s.parameters->n.name) WHEN 'string' THEN quote_literal(n.value) ELSE coalesce(n.value, 'NULL') END), '' ORDER BY n.i), '')
				FROM (SELECT p.proargnames[i], s.parameters->>p.proargnames[i], pg_get_function_arg_default(p.oid, i), i
					FROM pg_proc AS p, generate_series(3, p.pronargs) AS i
					WHERE p.pronamespace = 'millrace'::regnamespace AND p.proname = s.function) AS n (name, value, given, i),
					LATERAL (SELECT substring(n.given FROM '^''?(.*?)''?(::[^'']*)?$')) AS d (value)
				WHERE s.parameters ? n.name
					-- A training chose it.
					AND NOT (n.name = 'own_history' AND s.metrics ? n.name)
					AND CASE WHEN n.value IS NULL THEN n.given NOT LIKE 'NULL%'
						WHEN d.value ~ '^-?[0-9.]+(e[-+]?[0-9]+)?$' AND jsonb_typeof(s.parameters->n.name) = 'number' THEN n.value::numeric <> d.value::numeric
						ELSE n.value IS DISTINCT FROM d.value END) AS a (text)
	)
	SELECT used.uses, coalesce(used.is_current, true),
		made.sql || CASE m.kind
			WHEN 'als' THEN format('SELECT * FROM millrace.recommend_top_k_for(%L, NULL);', m.name)
			ELSE format(E'SELECT q.*, millrace.%s(%L, %s) AS %s\nFROM (%s\n) AS q%s;', a.function, m.name, CASE m.kind WHEN 'indexer' THEN x.first ELSE x.text END, a.result, v.query, d.names)
			END || E'\n'
	FROM millrace.model AS m JOIN millrace.model_version AS v ON v.model = m.name AND v.version = m.active
			LEFT JOIN (VALUES ('kmeans', 'kmeans_assign', 'cluster'), ('scaler', 'scale', 'scaled'), ('indexer', 'index_of', 'index')) AS a (kind, function, result) ON a.kind = m.kind,
		made, used,
		LATERAL ( -- new names for all columns of the query if two have the same
			SELECT CASE WHEN count(*) > count(DISTINCT e->>'name') THEN (SELECT format(' (%s)', string_agg('c' || i, ', ' ORDER BY i)) FROM generate_series(1, max((e->>'position')::int)) AS i) END
			FROM jsonb_array_elements(v.parameters->'columns') AS e) AS d (names),
		LATERAL ( -- the features: neighbouring numbers as one array, arrays put behind it
			SELECT string_agg(r.text, ' || ' ORDER BY r.run), min(r.first)
			FROM (SELECT CASE WHEN c.is_array THEN string_agg(c.name || c.as_number, '' ORDER BY c.n)
					ELSE 'ARRAY[' || string_agg(c.name || c.as_number, ', ' ORDER BY c.n) || ']::float8[]' END, min(c.n), min(c.name || '::text') FILTER (WHERE c.n = 1)
				FROM (SELECT c.n, c.is_array, 'q.' || CASE WHEN d.names IS NULL THEN quote_ident(c.name) ELSE 'c' || c.position END,
						CASE WHEN c.type = 'boolean[]' THEN '::int[]::float8[]' WHEN c.type = 'boolean' THEN '::int' WHEN c.is_array AND c.type <> 'double precision[]' THEN '::float8[]' ELSE '' END,
						-- An array is alone; numbers belong together that have as many arrays before them.
						CASE WHEN c.is_array THEN c.n ELSE c.n - row_number() OVER (PARTITION BY c.is_array ORDER BY c.n) END
					FROM (SELECT e->>'name', e->>'type', e->>'type' LIKE '%[]', e->>'position', n FROM jsonb_array_elements(v.parameters->'columns') WITH ORDINALITY AS e (e, n)) AS c (name, type, is_array, position, n)
					) AS c (n, is_array, name, as_number, run)
				GROUP BY c.is_array, c.run) AS r (text, run, first)) AS x (text, first)
	WHERE m.name = _pipeline.model
$pipeline$;
COMMENT ON FUNCTION millrace._pipeline(text) IS 'A row of millrace.pipelines; none if the model has no active version';

CREATE VIEW millrace.pipelines AS
	SELECT m.name, m.kind, m.active AS version, p.uses, p.is_current, p.sql FROM millrace.model AS m, LATERAL millrace._pipeline(m.name) AS p;
COMMENT ON VIEW millrace.pipelines IS 'Pipelines of models as SQL, one row for each model that has an active version: statements that fit what it uses, train it and apply it to the rows of its query';
COMMENT ON COLUMN millrace.pipelines.name IS 'Name of the model';
COMMENT ON COLUMN millrace.pipelines.kind IS 'als, kmeans, indexer or scaler';
COMMENT ON COLUMN millrace.pipelines.version IS 'Its active version';
COMMENT ON COLUMN millrace.pipelines.uses IS 'Versions of the models that its query called when it was trained, and of those that theirs called, by name; NULL: none';
COMMENT ON COLUMN millrace.pipelines.is_current IS 'Whether these are the active versions now, or do the same to rows; if not, retrain brings the model up to date';
COMMENT ON COLUMN millrace.pipelines.sql IS 'The statements, in order, for psql: settings that the queries depend on, views that they read, fit_indexer, fit_scaler, train_kmeans or train_als with every argument that is not the default, and the query with the cluster, index or scaled features of each row (recommendations, of a recommender). They need the tables of the queries, and factors that were imported. What began with the centers or factors of the version before (warm_start, retrain) begins by the seed';
GRANT SELECT ON millrace.pipelines TO PUBLIC;
