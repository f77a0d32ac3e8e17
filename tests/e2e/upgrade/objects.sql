/* Every object of the extension, with all that makes it what it is, one a line; oids and positions left out. */
CREATE TEMP TABLE member AS
	SELECT d.classid, d.objid FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass AND e.extname = 'millrace'
	WHERE d.deptype = 'e';
WITH acl AS (SELECT m.*, coalesce(r.relacl, p.proacl, n.nspacl, t.typacl) AS acl, coalesce(r.relowner, p.proowner, n.nspowner, t.typowner) AS owner FROM member m
	LEFT JOIN pg_class r ON m.classid = 'pg_class'::regclass AND r.oid = m.objid LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
	LEFT JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid LEFT JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid)
SELECT pg_describe_object(classid, objid, 0) || ': ' || line FROM (
	SELECT classid, objid, 'comment ' || coalesce(obj_description(objid, classid::regclass::name), '-') AS line FROM member
	UNION ALL SELECT classid, objid, concat_ws(' ', 'owner', owner::regrole, 'rights', (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(acl) a)) FROM acl
	UNION ALL SELECT classid, objid, CASE p.prokind WHEN 'a' THEN (SELECT concat_ws(' ', a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggtranstype::regtype, a.aggtransspace,
			a.aggfinalextra, a.aggfinalmodify, p.proparallel, pg_get_function_arguments(p.oid)) FROM pg_aggregate a WHERE a.aggfnoid = p.oid)
		ELSE pg_get_functiondef(p.oid) END FROM member JOIN pg_proc p ON p.oid = objid AND classid = 'pg_proc'::regclass
	UNION ALL SELECT classid, objid, pg_get_viewdef(c.oid) || coalesce(c.reloptions::text, '') FROM member JOIN pg_class c ON c.oid = objid AND classid = 'pg_class'::regclass AND c.relkind = 'v'
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END, a.attidentity,
			a.attgenerated, a.attstorage, pg_get_expr(x.adbin, x.adrelid), 'comment', col_description(a.attrelid, a.attnum), a.attacl)
		FROM member m JOIN pg_attribute a ON a.attrelid = m.objid AND m.classid = 'pg_class'::regclass AND a.attnum > 0 AND NOT a.attisdropped
		LEFT JOIN pg_attrdef x ON x.adrelid = a.attrelid AND x.adnum = a.attnum
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', 'column', a.attname, format_type(a.atttypid, a.atttypmod), 'comment', col_description(a.attrelid, a.attnum))
		FROM member m JOIN pg_type t ON t.oid = m.objid AND m.classid = 'pg_type'::regclass JOIN pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', 'constraint', c.conname, pg_get_constraintdef(c.oid)) FROM member m JOIN pg_constraint c ON c.conrelid = m.objid AND m.classid = 'pg_class'::regclass
	UNION ALL SELECT m.classid, m.objid, 'index ' || pg_get_indexdef(i.indexrelid) FROM member m JOIN pg_index i ON i.indrelid = m.objid AND m.classid = 'pg_class'::regclass
	UNION ALL SELECT m.classid, m.objid, 'trigger ' || pg_get_triggerdef(t.oid) FROM member m JOIN pg_trigger t ON t.tgrelid = m.objid AND m.classid = 'pg_class'::regclass AND NOT t.tgisinternal
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', e.evtevent, e.evtfoid::regproc, e.evtenabled, e.evttags) FROM member m JOIN pg_event_trigger e ON e.oid = m.objid AND m.classid = 'pg_event_trigger'::regclass
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', 'table', c.relkind, c.relpersistence, c.reloptions, c.relrowsecurity) FROM member m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass
	UNION ALL SELECT m.classid, m.objid, concat_ws(' ', 'sequence', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax, s.seqmin, s.seqcache, s.seqcycle)
		FROM member m JOIN pg_sequence s ON s.seqrelid = m.objid AND m.classid = 'pg_class'::regclass
	UNION ALL SELECT 'pg_class'::regclass, x.rel, 'dumped ' || x.condition FROM pg_extension e, unnest(e.extconfig, e.extcondition) x(rel, condition) WHERE e.extname = 'millrace'
	UNION ALL SELECT 'pg_extension'::regclass, e.oid, concat_ws(' ', e.extversion, e.extrelocatable, e.extnamespace::regnamespace) FROM pg_extension e WHERE e.extname = 'millrace') o
ORDER BY line, 1;
