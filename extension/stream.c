/*
 * stream.c: the catalog of sources and streams.  Every write of millrace.sources and millrace.stream is here.
 *
 * The SQL functions that users call check and create objects with the caller's rights; these functions check
 * ownership and write the catalog as its owner.  Whoever changes what a batch of a source must do locks out the
 * writers of the source and of all its partitions first (a writer may name a partition only), and invalidates
 * their relation-cache entries, upon which every backend reads the streams anew (batch.c).
 *
 * A stream runs with the rights of its owner.  So a stream is created only by an owner of the source, and of all
 * relations of a continuous aggregate; batch.c and aggregate.c look again before they run it, because owners
 * change.
 */
#include "millrace.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/genam.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_subscription_rel.h"
#include "catalog/pg_trigger.h"
#include "commands/event_trigger.h"
#include "commands/extension.h"
#include "storage/lmgr.h"
#include "tcop/deparse_utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(mr_source_put);
PG_FUNCTION_INFO_V1(mr_lock_source);
PG_FUNCTION_INFO_V1(mr_lock_partitions);
PG_FUNCTION_INFO_V1(mr_as_owner);
PG_FUNCTION_INFO_V1(mr_stream_put);
PG_FUNCTION_INFO_V1(mr_stream_drop);
PG_FUNCTION_INFO_V1(mr_lock_stream);
PG_FUNCTION_INFO_V1(mr_stream_lift);
PG_FUNCTION_INFO_V1(mr_stream_tie);
PG_FUNCTION_INFO_V1(mr_on_drop);
PG_FUNCTION_INFO_V1(mr_on_ddl);

#define PARTITION_LOCK_CLASS 6 /* of advisory locks: 1 and 2 are SQL's own */

/*
 * Checks
 */

/* Until AtEOXact_GUC: statements of ours mean what they say, whatever operators there are in the caller's schemas. */
static int
own_path(void)
{
	int gucs = NewGUCNestLevel();

	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return gucs;
}

static void
check_owner(Oid rel)
{
	char relkind = get_rel_relkind(rel);

	if (relkind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", rel)));
	if (!mr_owns_relation(rel, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(relkind), get_rel_name(rel));
}

/*
 * _lock_partitions(source regclass): until the transaction ends, nobody else makes partitions of it.  Not a lock that SQL gives
 * to everybody, or anybody could keep the ingester from its work.
 */
Datum
mr_lock_partitions(PG_FUNCTION_ARGS)
{
	LOCKTAG tag;

	check_owner(PG_GETARG_OID(0));
	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, PG_GETARG_OID(0), 0, PARTITION_LOCK_CLASS);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	AcceptInvalidationMessages();
	PG_RETURN_VOID();
}

/*
 * _as_owner(rel regclass, command text, argument jsonb) returns setof jsonb: runs a command with the rights of a relation's owner,
 * for a member of that role.  What the owner wrote (functions in views, indexes, constraints) must not run with the rights of
 * a superuser who only called a function of ours.
 */
Datum
mr_as_owner(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	static Oid types[1] = {JSONBOID};
	Datum argument;
	char argument_null;
	Oid owner;
	MrGuard guard;
	HeapTuple tuple;
	int rc;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("relation and command of _as_owner must not be null")));
	check_owner(PG_GETARG_OID(0));
	tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(PG_GETARG_OID(0)));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %u", PG_GETARG_OID(0));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	argument_null = PG_ARGISNULL(2) ? 'n' : ' ';
	argument = PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2);

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	mr_enter(&guard, owner, NULL);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	rc = SPI_execute_with_args(text_to_cstring(PG_GETARG_TEXT_PP(1)), 1, types, &argument, &argument_null,
							   false, 0);
	if (rc < 0)
		elog(ERROR, "could not run a command: %s", SPI_result_code_string(rc));
	for (uint64 i = 0; rc == SPI_OK_SELECT && i < SPI_processed; i++)
	{
		bool isnull;
		Datum value;

		if (SPI_gettypeid(SPI_tuptable->tupdesc, 1) != JSONBOID)
			elog(ERROR, "command of _as_owner does not return jsonb");
		value = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
	}
	SPI_finish();
	mr_leave(&guard);
	return (Datum) 0;
}

/* Has the relation children by INHERITS?  (Partitions are something else.) */
static bool
has_inheritance(Oid rel)
{
	return get_rel_relkind(rel) == RELKIND_RELATION &&
		(find_inheritance_children(rel, NoLock) != NIL || has_superclass(rel));
}

static bool
is_subscribed(Oid rel)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(rel)};
	MrGuard guard;
	bool found;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT FROM pg_catalog.pg_subscription_rel WHERE srrelid = $1", SPI_OK_SELECT, true, 1,
				 types, values, NULL);
	found = SPI_processed > 0;
	SPI_finish();
	mr_leave(&guard);
	return found;
}

/* A table whose inserts all come by statements that name it or one of its partitions. */
static void
check_source(Oid source)
{
	const char *why = NULL;
	const char *hint = "A source is an ordinary or a partitioned table.";
	char relkind;

	check_owner(source);
	relkind = get_rel_relkind(source);
	if (relkind != RELKIND_RELATION && relkind != RELKIND_PARTITIONED_TABLE)
		why = "is not a table";
	else if (get_rel_relispartition(source))
	{
		why = "is a partition";
		hint = "Name the partitioned table, not one of its partitions.";
	}
	else if (get_rel_persistence(source) == RELPERSISTENCE_TEMP)
	{
		why = "is a temporary table";
		hint = "A source must be visible to all sessions.";
	}
	else if (has_inheritance(source))
	{
		why = "inherits or is inherited from";
		hint = "Use declarative partitioning.";
	}
	else if (is_subscribed(source))
	{
		why = "is filled by a subscription";
		hint = "Logical replication fires no statement triggers, so its rows would be missed.";
	}
	if (why)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" %s and cannot be a source", get_rel_name(source), why), errhint("%s", hint)));
}

static void
invalidate_tree(Oid source, LOCKMODE lock)
{
	ListCell *lc;

	/* The parent first, as whoever inserts into it does; find_all_inheritors locks only what is below. */
	if (lock != NoLock)
		LockRelationOid(source, lock);
	foreach (lc, find_all_inheritors(source, lock, NULL))
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

/* _lock_source(source regclass): also checks that it can be a source, for all that creates something over it */
Datum
mr_lock_source(PG_FUNCTION_ARGS)
{
	check_source(PG_GETARG_OID(0));
	invalidate_tree(PG_GETARG_OID(0), ShareRowExclusiveLock);
	PG_RETURN_VOID();
}

/*
 * Writing the catalog
 */

static uint64
catalog_exec(const char *sql, int expected, int n_args, Oid *types, Datum *values, const char *nulls)
{
	MrGuard guard;
	uint64 n_rows;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args(sql, expected, false, n_args, types, values, nulls);
	n_rows = SPI_processed;
	SPI_finish();
	mr_leave(&guard);
	return n_rows;
}

/*
 * Keep the list of the partitions of a source.  attached: one that has come with rows; InvalidOid: some may have come
 * without; the source itself: look at all, also at the bounds of those that are known.
 */
static void
note_partitions(Oid source, Oid attached)
{
	static Oid types[2] = {REGCLASSOID, REGCLASSOID};
	Datum values[2] = {ObjectIdGetDatum(source), ObjectIdGetDatum(attached)};
	char nulls[2] = {' ', OidIsValid(attached) ? ' ' : 'n'};

	catalog_exec("SELECT " MR_SCHEMA "._note_partitions($1, $2)", SPI_OK_SELECT, 2, types, values, nulls);
}

/* _source_put(source regclass, time_column name, partition_interval interval, retention interval) */
Datum
mr_source_put(PG_FUNCTION_ARGS)
{
	static Oid types[4] = {REGCLASSOID, NAMEOID, INTERVALOID, INTERVALOID};
	Datum values[4];
	char nulls[4];

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("source must not be null")));
	check_source(PG_GETARG_OID(0));
	for (int i = 0; i < 4; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	/* A stream over a table that is no source yet registers it without a time column, and changes no other. */
	catalog_exec("INSERT INTO " MR_SCHEMA
				 ".sources AS s VALUES ($1, $2, $3, $4) ON CONFLICT (source) DO UPDATE SET"
				 " time_column = excluded.time_column, partition_interval = excluded.partition_interval,"
				 " retention = excluded.retention WHERE excluded.time_column IS NOT NULL",
				 SPI_OK_INSERT, 4, types, values, nulls);
	note_partitions(PG_GETARG_OID(0), PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

static void
check_name(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	/* The longest name derived from it, NAME_changes, must fit an identifier. */
	if (name[0] == '\0' || strlen(name) >= NAMEDATALEN - strlen("_changes"))
		ereport(ERROR,
				(errcode(name[0] ? ERRCODE_NAME_TOO_LONG : ERRCODE_INVALID_NAME),
				 errmsg("\"%s\" is not a valid name of a stream", name),
				 errhint("A name has 1 to %d bytes.", (int) (NAMEDATALEN - strlen("_changes") - 1))));
	if (catalog_exec("SELECT FROM " MR_SCHEMA ".stream WHERE name = $1", SPI_OK_SELECT, 1, types, values,
					 NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT), errmsg("stream \"%s\" already exists", name),
				 errhint("See " MR_SCHEMA ".streams.")));
}

/* 42501 unless the current user has the rights of the stream's owner, 42704 if there is none of that name. */
void
mr_check_stream_owner(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Oid owner = InvalidOid;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args(
		"SELECT coalesce(c.relowner, t.owner) FROM " MR_SCHEMA
		".stream t LEFT JOIN pg_catalog.pg_class c ON c.oid = CASE WHEN t.kind IN ('alert', 'scorer')"
		" THEN t.target ELSE t.state END WHERE t.name = $1",
		SPI_OK_SELECT, false, 1, types, values, NULL);
	if (SPI_processed == 1)
		owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", name),
				 errhint("See " MR_SCHEMA ".streams.")));
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of stream \"%s\"", name)));
}

static Oid
state_of(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Oid state = InvalidOid;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT state FROM " MR_SCHEMA ".stream WHERE name = $1", SPI_OK_SELECT, false, 1, types,
				 values, NULL);
	if (SPI_processed == 1)
		state = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	return state;
}

/*
 * For its owner, the lock of the state that a stream has now, which another may have given it while this one waited.
 * Taken before a lock of its source, by all, and until the transaction ends: whoever has it works on relations that
 * nobody else replaces or drops.
 */
void
mr_stream_lock(const char *name)
{
	Oid state, locked = InvalidOid;

	mr_check_stream_owner(name);
	while ((state = state_of(name)) != locked && OidIsValid(state))
	{
		(void) mr_state_lock(state, true);
		locked = state;
	}
}

/* _stream_lock(name text) */
Datum
mr_lock_stream(PG_FUNCTION_ARGS)
{
	mr_stream_lock(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	PG_RETURN_VOID();
}

/* An alert runs in the batches of all that it reads. */
static void
check_inputs(Datum inputs)
{
	static Oid types[1] = {REGCLASSARRAYOID};
	MemoryContext context = CurrentMemoryContext;
	List *sources = NIL;
	MrGuard guard;
	ListCell *lc;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT DISTINCT source FROM " MR_SCHEMA ".stream WHERE target = ANY ($1)", SPI_OK_SELECT,
				 false, 1, types, &inputs, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);
		bool isnull;

		sources = lappend_oid(
			sources,
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	mr_leave(&guard);
	foreach (lc, sources)
		check_owner(lfirst_oid(lc));
}

/* The relations of a stream are of the kinds that they are dropped, read and written as. */
static void
check_kind(Oid rel, char relkind)
{
	if (get_rel_relkind(rel) != relkind)
		ereport(
			ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("\"%s\" is not a %s", get_rel_name(rel), relkind == RELKIND_VIEW ? "view" : "table")));
}

void
mr_tie_to_extension(Oid rel)
{
	ObjectAddress extension, relation;

	if (!OidIsValid(rel) || get_rel_relkind(rel) == '\0')
		return;
	ObjectAddressSet(extension, ExtensionRelationId, get_extension_oid("millrace", false));
	ObjectAddressSet(relation, RelationRelationId, rel);
	recordDependencyOn(&relation, &extension, DEPENDENCY_NORMAL);
}

/* The library may be newer than the catalog: between its installation and ALTER EXTENSION UPDATE. */
static bool
knows_late(void)
{
	Oid stream = get_relname_relid("stream", get_namespace_oid(MR_SCHEMA, false));

	return OidIsValid(stream) && get_attnum(stream, "late_since") != InvalidAttrNumber;
}

/*
 * _stream_put(name, kind, source, target, command, definition, state, delta, final, query, watermark, late_policy,
 *             retain, idle_after, on_error, inputs, replace bool): writes millrace.stream, with the caller as owner; a
 *             row that is replaced keeps its place in the order
 */
Datum
mr_stream_put(PG_FUNCTION_ARGS)
{
	static Oid types[18] = {TEXTOID,		  TEXTOID,	   REGCLASSOID, REGCLASSOID, TEXTOID,
							REGCLASSOID,	  REGCLASSOID, REGCLASSOID, REGCLASSOID, TEXTOID,
							INTERVALOID,	  TEXTOID,	   INTERVALOID, INTERVALOID, TEXTOID,
							REGCLASSARRAYOID, REGROLEOID,  TEXTARRAYOID};
	Datum values[18];
	char nulls[18];
	bool replace = !PG_ARGISNULL(16) && PG_GETARG_BOOL(16);
	const char *kind;
	bool is_pipe, is_rollup, is_scorer;

	for (int i = 0; i < 16; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	kind = PG_ARGISNULL(1) ? "" : TextDatumGetCString(values[1]);
	is_pipe = strcmp(kind, "pipe") == 0;
	is_rollup = strcmp(kind, "rollup") == 0;
	is_scorer = strcmp(kind, "scorer") == 0;
	for (int i = 0; i < 10; i++)
		if (PG_ARGISNULL(i) &&
			(i < 4 || ((is_pipe || is_scorer) && i == 4) || (is_scorer && i == 8) ||
			 (is_pipe ? false : i == 5 || (i > 5 && strcmp(kind, "aggregate") == 0))))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument %d of a stream must not be null", i + 1)));
	if (!replace)
		check_name(TextDatumGetCString(values[0]));
	/* A rollup reads a view, and no batch runs it. */
	if (!is_rollup)
		check_source(PG_GETARG_OID(2));
	for (int i = 5; i < 9; i++)
		if (!PG_ARGISNULL(i))
		{
			check_owner(PG_GETARG_OID(i));
			check_kind(PG_GETARG_OID(i), i == 5 || i == 8 ? RELKIND_VIEW : RELKIND_RELATION);
		}
	if (!is_pipe)
	{
		check_owner(PG_GETARG_OID(3));
		check_kind(PG_GETARG_OID(3), is_scorer ? RELKIND_RELATION : RELKIND_VIEW);
	}
	if (strcmp(kind, "alert") == 0 && !PG_ARGISNULL(15))
		check_inputs(values[15]);
	if (!is_rollup)
		invalidate_tree(PG_GETARG_OID(2), ShareRowExclusiveLock);
	values[16] = ObjectIdGetDatum(GetUserId());
	values[17] = PointerGetDatum(mr_current_settings());
	nulls[16] = nulls[17] = ' ';
	if (replace)
	{
		mr_check_stream_owner(TextDatumGetCString(values[0]));
		mr_late_forget(TextDatumGetCString(values[0]));
		if (knows_late())
			catalog_exec("UPDATE " MR_SCHEMA ".stream SET late_since = NULL WHERE name = $1", SPI_OK_UPDATE,
						 1, types, values, NULL);
	}
	catalog_exec(
		"INSERT INTO " MR_SCHEMA
		".stream (name, kind, source, target, command, definition, state, delta, final,"
		" query, watermark, late_policy, retain, idle_after, on_error, inputs, owner, settings)"
		" VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, coalesce($12, 'update'), $13, $14,"
		" coalesce($15, 'fail'), $16, $17, $18) ON CONFLICT (name) DO UPDATE SET source = excluded.source,"
		" target = excluded.target, command = excluded.command, definition = excluded.definition,"
		" state = excluded.state, delta = excluded.delta, final = excluded.final, query = excluded.query,"
		" watermark = excluded.watermark, late_policy = excluded.late_policy, retain = excluded.retain,"
		" retained_from = NULL, idle_after = excluded.idle_after, on_error = excluded.on_error,"
		" inputs = excluded.inputs, owner = excluded.owner, settings = excluded.settings, status = 'running',"
		" error = NULL",
		SPI_OK_INSERT, 18, types, values, nulls);
	if (strcmp(kind, "aggregate") == 0 || is_rollup)
	{
		/* Its definition, its states; what else there is of it reads these. */
		for (int i = 5; i < 8; i++)
			if (!PG_ARGISNULL(i))
				mr_tie_to_extension(PG_GETARG_OID(i));
	}
	PG_RETURN_VOID();
}

/* _tie(name text): the same for a continuous aggregate that was restored from a dump, or made by an older version */
Datum
mr_stream_tie(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {PG_GETARG_DATUM(0)};
	Oid *rels;
	int n_rels;

	mr_check_stream_owner(TextDatumGetCString(values[0]));
	SPI_connect();
	mr_exec_args(
		psprintf("SELECT c.oid FROM " MR_SCHEMA
				 ".stream s, LATERAL (VALUES (s.definition), (s.state), (s.delta)%s) r(rel) JOIN"
				 " pg_catalog.pg_class c ON c.oid = r.rel"
				 " WHERE s.name = $1 AND s.kind IN ('aggregate', 'rollup') AND NOT EXISTS (SELECT FROM"
				 " pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid"
				 " WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid"
				 " AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass"
				 " AND e.extname = 'millrace')",
				 mr_knows_federated() ? " UNION ALL SELECT h.partial FROM " MR_SCHEMA
										".shared h WHERE h.name = s.name UNION ALL SELECT pg_catalog.unnest("
										"pg_catalog.array_prepend(f.view, f.tables)) FROM " MR_SCHEMA
										".federated f WHERE f.aggregate = s.name"
									  : ""),
		SPI_OK_SELECT, false, 1, types, values, NULL);
	n_rels = (int) SPI_processed;
	rels = SPI_palloc((n_rels + 1) * sizeof(Oid));
	for (int i = 0; i < n_rels; i++)
	{
		bool isnull;

		rels[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
	}
	SPI_finish();
	for (int i = 0; i < n_rels; i++)
		mr_tie_to_extension(rels[i]);
	PG_RETURN_VOID();
}

void
mr_stream_set(const char *name, Oid source, const char *status, const char *error, Oid definition,
			  const char *window_text)
{
	static Oid types[5] = {TEXTOID, TEXTOID, TEXTOID, REGCLASSOID, TEXTOID};
	Datum values[5] = {CStringGetTextDatum(name)};
	char nulls[5] = {' ', 'n', 'n', 'n', 'n'};
	const char *texts[5] = {NULL, status, error, NULL, window_text};

	for (int i = 1; i < 5; i++)
		if (texts[i])
		{
			values[i] = CStringGetTextDatum(texts[i]);
			nulls[i] = ' ';
		}
	if (OidIsValid(definition))
	{
		values[3] = ObjectIdGetDatum(definition);
		nulls[3] = ' ';
	}
	catalog_exec(
		"UPDATE " MR_SCHEMA
		".stream SET status = coalesce($2, status), error = nullif(coalesce($3, error), ''), definition ="
		" coalesce($4, definition), window_text = coalesce($5, window_text) WHERE name = $1",
		SPI_OK_UPDATE, 5, types, values, nulls);
	invalidate_tree(source, NoLock);
}

void
mr_stream_failed(const char *name, Oid source, const char *error)
{
	static Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2] = {CStringGetTextDatum(name), CStringGetTextDatum(error)};

	/* Writers fail at the same time: none of them waits for another. */
	if (catalog_exec("UPDATE " MR_SCHEMA ".stream SET status = 'failed', error = $2 WHERE name ="
					 " (SELECT s.name FROM " MR_SCHEMA
					 ".stream s WHERE s.name = $1 AND s.status <> 'failed' FOR UPDATE SKIP LOCKED)",
					 SPI_OK_UPDATE, 2, types, values, NULL) > 0)
		invalidate_tree(source, NoLock);
}

void
mr_stream_late(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	if (!knows_late())
		return;
	catalog_exec("UPDATE " MR_SCHEMA ".stream SET late_since = pg_catalog.now() WHERE name ="
				 " (SELECT s.name FROM " MR_SCHEMA
				 ".stream s WHERE s.name = $1 AND s.late_since IS NULL FOR UPDATE SKIP LOCKED)",
				 SPI_OK_UPDATE, 1, types, values, NULL);
}

/*
 * Removing streams
 */

/* A row of millrace.stream, as far as it matters here; columns in the order of sql/30-stream.sql. */
typedef struct StreamRow
{
	char *name;
	char *kind;
	Oid source;
	Oid target;
	Oid definition;
	Oid state;
	Oid delta;
	Oid final;
	Oid owner;
} StreamRow;

static StreamRow *
stream_row(HeapTuple tuple, TupleDesc desc)
{
	StreamRow *row = palloc0(sizeof(StreamRow));
	Datum values[32];
	bool nulls[32];

	if (desc->natts > lengthof(values))
		elog(ERROR, "unexpected columns of " MR_SCHEMA ".stream");
	heap_deform_tuple(tuple, desc, values, nulls);
	row->name = TextDatumGetCString(values[0]);
	row->kind = TextDatumGetCString(values[2]);
	row->source = DatumGetObjectId(values[3]);
	row->target = DatumGetObjectId(values[4]);
	row->definition = nulls[6] ? InvalidOid : DatumGetObjectId(values[6]);
	row->state = nulls[7] ? InvalidOid : DatumGetObjectId(values[7]);
	row->delta = nulls[8] ? InvalidOid : DatumGetObjectId(values[8]);
	row->final = nulls[9] ? InvalidOid : DatumGetObjectId(values[9]);
	row->owner = DatumGetObjectId(values[10]);
	return row;
}

static bool
exists(Oid rel)
{
	return SearchSysCacheExists1(RELOID, ObjectIdGetDatum(rel));
}

static bool
is_kind(const StreamRow *row, const char *kind)
{
	return strcmp(row->kind, kind) == 0;
}

/* The views of a scorer show what its table holds: without them it goes on. */
static bool
is_orphan(const StreamRow *row)
{
	if (is_kind(row, "scorer"))
		return !exists(row->source) || !exists(row->target);
	return !exists(row->source) || !exists(row->target) ||
		(OidIsValid(row->definition) && !exists(row->definition)) ||
		(OidIsValid(row->state) && !exists(row->state)) || (OidIsValid(row->delta) && !exists(row->delta)) ||
		(OidIsValid(row->final) && !exists(row->final));
}

/*
 * Delete catalog rows: of streams, the one of that name, or if name is NULL those that lack a relation; then of
 * sources that are gone.  Seen with the latest snapshot, also in a REPEATABLE READ transaction.  Returns the
 * StreamRows that were deleted.
 */
static List *
delete_rows(const char *name)
{
	List *deleted = NIL;
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ListCell *lc;

	for (int catalog = 0; catalog < (name ? 1 : 2); catalog++)
	{
		Relation rel = table_open(mr_catalog(catalog == 0 ? "stream" : "sources"), RowExclusiveLock);
		TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
		HeapTuple tuple;

		while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
		{
			if (catalog == 0)
			{
				StreamRow *row = stream_row(tuple, RelationGetDescr(rel));

				if (name ? strcmp(row->name, name) != 0 : !is_orphan(row))
					continue;
				deleted = lappend(deleted, row);
			}
			else
			{
				bool isnull;

				if (exists(DatumGetObjectId(heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull))))
					continue;
			}
			CatalogTupleDelete(rel, &tuple->t_self);
		}
		table_endscan(scan);
		table_close(rel, NoLock);
	}
	UnregisterSnapshot(snapshot);
	foreach (lc, deleted)
	{
		StreamRow *row = lfirst(lc);

		mr_late_forget(row->name);
		if (is_kind(row, "alert"))
			mr_alert_forget(row->target);
	}
	CommandCounterIncrement();
	return deleted;
}

/* DROP VIEW, TABLE or FOREIGN TABLE of a relation, if it exists and, unless as the caller, belongs to the stream's owner. */
void
mr_drop_relation(Oid rel, const char *kind, Oid owner, const char *behavior)
{
	char *name;

	if (!OidIsValid(rel) || !exists(rel) || (OidIsValid(owner) && !mr_owns_relation(rel, owner)))
		return;
	name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(rel)), get_rel_name(rel));
	SPI_connect();
	mr_exec(psprintf("DROP %s %s %s", kind, name, behavior), SPI_OK_UTILITY, false);
	SPI_finish();
}

/* The function NAME_changes is the one over the states that takes an xid8, whatever its name is now. */
static void
drop_changes(Oid state, Oid owner, const char *behavior)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(state)};
	char *drop = NULL;
	bool isnull;
	int gucs = own_path();

	SPI_connect();
	mr_exec_args("SELECT pg_catalog.format('DROP FUNCTION %s ', p.oid::pg_catalog.regprocedure), p.proowner"
				 " FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_proc p ON p.oid = d.objid"
				 " WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass"
				 " AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid = $1"
				 " AND p.proargtypes[0] = 'pg_catalog.xid8'::pg_catalog.regtype AND p.pronargs = 1 LIMIT 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	if (SPI_processed > 0 &&
		(!OidIsValid(owner) ||
		 has_privs_of_role(
			 owner,
			 DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull)))))
		drop = psprintf("%s%s", SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1), behavior);
	if (drop)
		mr_exec(drop, SPI_OK_UTILITY, false);
	SPI_finish();
	AtEOXact_GUC(false, gucs);
}

/*
 * _stream_lift(name text): for the stream's owner, who is about to replace it: drops NAME_changes, and takes the catalog row
 * off the relations, so that dropping one of them does not drop the stream
 */
Datum
mr_stream_lift(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {PG_GETARG_DATUM(0)};
	Oid state;
	bool isnull;
	int gucs;

	mr_check_stream_owner(TextDatumGetCString(values[0]));
	gucs = own_path();
	SPI_connect();
	mr_exec_args("SELECT state FROM " MR_SCHEMA ".stream WHERE name = $1", SPI_OK_SELECT, false, 1, types,
				 values, NULL);
	state = SPI_processed
		? DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull))
		: InvalidOid;
	SPI_finish();
	AtEOXact_GUC(false, gucs);
	drop_changes(state, InvalidOid, "RESTRICT");
	catalog_exec("UPDATE " MR_SCHEMA
				 ".stream SET target = source, definition = NULL, state = NULL, delta = NULL,"
				 " final = NULL WHERE name = $1",
				 SPI_OK_UPDATE, 1, types, values, NULL);
	PG_RETURN_VOID();
}

/* Drop what was made for a stream: nothing for a pipe. */
static void
drop_made(const StreamRow *row, Oid owner, const char *behavior)
{
	MrGuard guard;

	if (is_kind(row, "pipe"))
		return;
	if (is_kind(row, "history"))
	{
		/* They belong to the owner of the catalog. */
		mr_enter_catalog(&guard, "sources");
		mr_drop_relation(row->target, "TABLE", InvalidOid, "CASCADE");
		mr_drop_relation(row->delta, "TABLE", InvalidOid, "CASCADE");
		mr_leave(&guard);
		return;
	}
	if (is_kind(row, "scorer"))
	{
		mr_drop_relation(row->final, "VIEW", owner, behavior);
		mr_drop_relation(row->definition, "VIEW", owner, behavior);
		mr_drop_relation(row->target, "TABLE", owner, behavior);
		return;
	}
	if (OidIsValid(row->state))
		drop_changes(row->state, owner, behavior);
	mr_drop_relation(row->final, "VIEW", owner, behavior);
	mr_drop_relation(row->target, "VIEW", owner, behavior);
	mr_drop_relation(row->definition, "VIEW", owner, behavior);
	mr_drop_relation(row->delta, "TABLE", owner, behavior);
	mr_drop_relation(row->state, "TABLE", owner, behavior);
	if (!OidIsValid(row->state))
		return;
	mr_watermark_prune(row->state, true);
	mr_rollup_forget(row->state);
}

/* _stream_drop(name text, kind text): with the relations that were made for it, as the caller, who must own them */
Datum
mr_stream_drop(PG_FUNCTION_ARGS)
{
	static Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	char *name = TextDatumGetCString(values[0]);
	char *kind = TextDatumGetCString(values[1]);
	bool is_pipe = strcmp(kind, "pipe") == 0;
	Oid source, owner;
	bool is_rollup;
	bool isnull;
	StreamRow *row;
	List *deleted;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT t.source, t.owner, t.kind = 'rollup', (SELECT pg_catalog.string_agg("
				 "pg_catalog.format('\"%s\"', r.name), ', ' ORDER BY r.seq) FROM " MR_SCHEMA
				 ".stream r WHERE r.kind = 'rollup' AND t.target = ANY (r.inputs)) FROM " MR_SCHEMA
				 ".stream t WHERE t.name = $1 AND (t.kind = $2 OR $2 = 'aggregate' AND t.kind = 'rollup')",
				 SPI_OK_SELECT, false, 2, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s \"%s\" does not exist",
						strcmp(kind, "aggregate") == 0 ? "continuous aggregate" : kind, name),
				 errhint("See " MR_SCHEMA ".streams.")));
	source = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	is_rollup = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull));
	if (SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4))
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("continuous aggregate \"%s\" is read by %s", name,
						SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 4)),
				 errhint("Drop what reads it first.")));
	SPI_finish();
	mr_leave(&guard);
	/* The source's owner may drop what hangs on his table; a continuous aggregate's relations belong to its owner. */
	if (!has_privs_of_role(GetUserId(), owner) && !(is_pipe && mr_owns_relation(source, GetUserId())))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of stream \"%s\"", name)));
	if (OidIsValid(state_of(name)) && has_privs_of_role(GetUserId(), owner))
		mr_stream_lock(name);
	if (!is_rollup)
		invalidate_tree(source, ShareRowExclusiveLock);
	deleted = delete_rows(name);
	if (deleted == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" was dropped meanwhile", name),
				 errhint("See " MR_SCHEMA ".streams.")));
	row = linitial(deleted);
	mr_federated_forget(name);
	mr_drop_relation(mr_shared_forget(name), "VIEW", InvalidOid, "RESTRICT");
	drop_made(row, InvalidOid, "RESTRICT");
	PG_RETURN_VOID();
}

/*
 * Streams of kind 'history'
 */

/* A row as one; NULL if it is of another kind. */
static MrHistoryStream *
history_row(HeapTuple tuple, TupleDesc desc)
{
	StreamRow *row = stream_row(tuple, desc);
	MrHistoryStream *stream = palloc0(sizeof(MrHistoryStream));
	Datum values[32];
	bool nulls[32];

	if (!is_kind(row, "history"))
		return NULL;
	heap_deform_tuple(tuple, desc, values, nulls);
	stream->name = row->name;
	stream->source = row->source;
	stream->target = row->target;
	stream->delta = row->delta;
	stream->owner = row->owner;
	stream->command = TextDatumGetCString(values[5]);
	stream->settings = DatumGetArrayTypePCopy(values[11]);
	stream->status = TextDatumGetCString(values[14]);
	stream->signature = nulls[23] ? NULL : TextDatumGetCString(values[23]);
	stream->xmin = HeapTupleHeaderGetXmin(tuple->t_data);
	return stream;
}

/* All, or those of a source.  A scan without a snapshot takes a new one, in a parallel operation, too. */
List *
mr_history_streams(Oid source)
{
	List *streams = NIL;
	Relation rel = table_open(mr_catalog("stream"), AccessShareLock);
	SysScanDesc scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple tuple;

	while ((tuple = systable_getnext(scan)) != NULL)
	{
		MrHistoryStream *stream = history_row(tuple, RelationGetDescr(rel));

		if (stream && (!OidIsValid(source) || stream->source == source))
			streams = lappend(streams, stream);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	return streams;
}

MrHistoryStream *
mr_history_stream(const char *name, const char *command, Oid owner, ArrayType *settings)
{
	ListCell *lc;

	foreach (lc, mr_history_streams(InvalidOid))
	{
		MrHistoryStream *stream = lfirst(lc);

		if (name ? strcmp(stream->name, name) == 0
				 : stream->owner == owner && strcmp(stream->command, command) == 0 &&
					VARSIZE(stream->settings) == VARSIZE(settings) &&
					memcmp(stream->settings, settings, VARSIZE(settings)) == 0)
			return stream;
	}
	return NULL;
}

void
mr_history_put(const MrHistoryStream *stream)
{
	static Oid types[8] = {TEXTOID,		REGCLASSOID, REGCLASSOID,  TEXTOID,
						   REGCLASSOID, REGROLEOID,	 TEXTARRAYOID, TEXTOID};
	Datum values[8] = {CStringGetTextDatum(stream->name), ObjectIdGetDatum(stream->source),
					   ObjectIdGetDatum(stream->target),  CStringGetTextDatum(stream->command),
					   ObjectIdGetDatum(stream->delta),	  ObjectIdGetDatum(stream->owner),
					   PointerGetDatum(stream->settings), CStringGetTextDatum(stream->signature)};

	catalog_exec("INSERT INTO " MR_SCHEMA ".sources AS s VALUES ($1) ON CONFLICT (source) DO NOTHING",
				 SPI_OK_INSERT, 1, types + 1, values + 1, NULL);
	note_partitions(stream->source, stream->source);
	catalog_exec("INSERT INTO " MR_SCHEMA
				 ".stream (name, kind, source, target, command, delta, owner, settings, window_text, status,"
				 " on_error) VALUES ($1, 'history', $2, $3, $4, $5, $6, $7, $8, 'filling', 'suspend')",
				 SPI_OK_INSERT, 8, types, values, NULL);
	catalog_exec("SELECT " MR_SCHEMA "._install_triggers($1)", SPI_OK_SELECT, 1, types + 1, values + 1, NULL);
	invalidate_tree(stream->source, NoLock);
}

void
mr_history_sweep(void)
{
	List *unused = NIL;
	MemoryContext context = CurrentMemoryContext;
	ListCell *lc;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec("SELECT t.name FROM " MR_SCHEMA
			".stream t WHERE t.kind = 'history' AND NOT EXISTS (SELECT FROM " MR_SCHEMA
			".model_version v JOIN " MR_SCHEMA ".model m ON m.name = v.model WHERE m.kind = 'als' AND "
			"v.query = t.command AND v.settings = t.settings AND m.owner ="
			" t.owner)",
			SPI_OK_SELECT, false);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		MemoryContext spi = MemoryContextSwitchTo(context);

		unused = lappend(unused, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	mr_leave(&guard);
	foreach (lc, unused)
	{
		MrHistoryStream *stream = mr_history_stream(lfirst(lc), NULL, InvalidOid, NULL);
		List *deleted;

		if (stream == NULL)
			continue;
		(void) mr_state_lock(stream->target, true);
		invalidate_tree(stream->source, ShareRowExclusiveLock);
		deleted = delete_rows(stream->name);
		if (deleted != NIL)
			drop_made(linitial(deleted), InvalidOid, "CASCADE");
	}
}

/*
 * Event triggers.  They run for whoever issues DDL, so all they do is done as the catalog's owner.
 */
static void
check_event(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), errmsg("not called as an event trigger")));
}

/*
 * sql_drop: forget the streams and sources whose relations are gone, and drop what is left of a continuous
 * aggregate.  Dropping that fires this trigger again, so what hangs on it goes the same way.
 */
Datum
mr_on_drop(PG_FUNCTION_ARGS)
{
	List *deleted;
	ListCell *lc;
	MrGuard guard;

	check_event(fcinfo);
	catalog_exec("SELECT " MR_SCHEMA "._forget_dropped()", SPI_OK_SELECT, 0, NULL, NULL, NULL);
	mr_federated_sweep();
	deleted = delete_rows(NULL);
	foreach (lc, deleted)
	{
		StreamRow *row = lfirst(lc);
		Oid partial;

		if (exists(row->source))
			invalidate_tree(row->source, NoLock);
		partial = mr_shared_forget(row->name);
		mr_enter_catalog(&guard, "sources");
		mr_drop_relation(partial, "VIEW", row->owner, "CASCADE");
		drop_made(row, row->owner, "CASCADE");
		mr_leave(&guard);
		mr_federated_forget(row->name);
	}
	return (Datum) 0;
}

/* A table, and what it was or is a partition of: the root. */
typedef struct Child
{
	Oid rel;
	Oid root;
} Child;

static Oid
root_of(Oid rel)
{
	List *ancestors = get_rel_relispartition(rel) ? get_partition_ancestors(rel) : NIL;

	return ancestors ? llast_oid(ancestors) : rel;
}

/*
 * The tables that a command may have made a partition, or a child; those that it did make one, by creating or attaching it
 * (added); those it detached (Child); and those of which it changed the type of a column (retyped).
 */
static List *
new_children(List **added, List **detached, List **retyped)
{
	List *children = NIL;
	int gucs = own_path(); /* only for this statement: below names are those of the command */

	SPI_connect();
	mr_exec("SELECT objid, command FROM pg_catalog.pg_event_trigger_ddl_commands()"
			" WHERE classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND objsubid = 0",
			SPI_OK_SELECT, true);
	AtEOXact_GUC(false, gucs);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		Oid rel = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		Datum datum = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull);
		CollectedCommand *command = isnull ? NULL : (CollectedCommand *) DatumGetPointer(datum);
		MemoryContext spi = MemoryContextSwitchTo(CurTransactionContext);
		ListCell *lc;

		if (command && command->type == SCT_AlterTable)
		{
			foreach (lc, command->d.alterTable.subcmds)
			{
				CollectedATSubcmd *sub = lfirst(lc);
				AlterTableCmd *alter = castNode(AlterTableCmd, sub->parsetree);

				/* PostgreSQL 15 does not give the address of what it attached. */
				if (alter->subtype == AT_AttachPartition && IsA(alter->def, PartitionCmd))
				{
					children = lappend_oid(
						children, RangeVarGetRelid(((PartitionCmd *) alter->def)->name, NoLock, false));
					*added = lappend_oid(*added, llast_oid(children));
				}
				else if ((alter->subtype == AT_DetachPartition ||
						  alter->subtype == AT_DetachPartitionFinalize) &&
						 IsA(alter->def, PartitionCmd))
				{
					Child *child = palloc(sizeof(Child));

					child->rel = RangeVarGetRelid(((PartitionCmd *) alter->def)->name, NoLock, true);
					child->root = root_of(rel);
					*detached = lappend(*detached, child);
				}
				else if (alter->subtype == AT_AddInherit)
					children = lappend_oid(children, rel);
				else if (alter->subtype == AT_AlterColumnType)
					*retyped = list_append_unique_oid(*retyped, rel);
			}
		}
		else
		{
			children = lappend_oid(children, rel);
			if (command && command->type == SCT_Simple && command->parsetree &&
				IsA(command->parsetree, CreateStmt))
				*added = lappend_oid(*added, rel);
		}
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	return children;
}

bool
mr_is_source(Oid rel)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(rel)};

	return catalog_exec("SELECT FROM " MR_SCHEMA ".sources WHERE source = $1", SPI_OK_SELECT, 1, types,
						values, NULL) > 0;
}

/* The triggers of on_batch on one table, whoever owns it. */
static void
drop_triggers(Oid rel)
{
	Oid on_batch = mr_schema_function("on_batch", 0, NULL);
	Relation triggers = table_open(TriggerRelationId, RowExclusiveLock);
	ObjectAddresses *objects = new_object_addresses();
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, Anum_pg_trigger_tgrelid, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(rel));
	scan = systable_beginscan(triggers, TriggerRelidNameIndexId, true, NULL, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
		ObjectAddress object = {TriggerRelationId, trigger->oid, 0};

		if (trigger->tgfoid == on_batch)
			add_exact_object_address(&object, objects);
	}
	systable_endscan(scan);
	table_close(triggers, NoLock);
	performMultipleDeletions(objects, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
	free_object_addresses(objects);
	CommandCounterIncrement();
}

static bool
has_rows(Oid rel)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	bool found = false;
	ListCell *lc;

	foreach (lc, find_all_inheritors(rel, NoLock, NULL))
	{
		Relation leaf;
		TableScanDesc scan;
		TupleTableSlot *slot;

		if (get_rel_relkind(lfirst_oid(lc)) != RELKIND_RELATION)
			continue;
		leaf = table_open(lfirst_oid(lc), AccessShareLock);
		slot = table_slot_create(leaf, NULL);
		scan = table_beginscan(leaf, snapshot, 0, NULL);
		found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
		table_endscan(scan);
		ExecDropSingleTupleTableSlot(slot);
		table_close(leaf, NoLock);
		if (found)
			break;
	}
	UnregisterSnapshot(snapshot);
	return found;
}

/* A partition that is none any more takes no batches.  Its windows stay: note that their rows are gone. */
static void
on_detach(Oid rel, Oid root)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(rel)};
	Oid source = InvalidOid;
	bool isnull;
	MrGuard guard;
	ListCell *lc;

	if (!OidIsValid(rel) || get_rel_relispartition(rel) || mr_is_source(rel))
		return;
	if (mr_is_source(root))
		mr_track_partition(root, rel, -1);
	foreach (lc, find_all_inheritors(rel, NoLock, NULL))
		drop_triggers(lfirst_oid(lc));
	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT source FROM " MR_SCHEMA ".known_partition WHERE partition = $1", SPI_OK_SELECT,
				 false, 1, types, values, NULL);
	if (SPI_processed == 1)
		source = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	if (OidIsValid(source))
		note_partitions(source, source);
}

/*
 * ddl_command_end: put the trigger on new partitions of sources.  Looks at the command's own tables only.  A source
 * must not become somebody's partition or parent, because inserts would pass its trigger by.
 */
Datum
mr_on_ddl(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {OIDOID};
	List *children, *added = NIL, *detached = NIL, *retyped = NIL;
	ListCell *lc;
	MrGuard guard;

	check_event(fcinfo);
	children = new_children(&added, &detached, &retyped);
	foreach (lc, retyped)
		mr_track_retyped(root_of(lfirst_oid(lc)));
	foreach (lc, detached)
		on_detach(((Child *) lfirst(lc))->rel, ((Child *) lfirst(lc))->root);
	foreach (lc, children)
	{
		Oid rel = lfirst_oid(lc);
		List *parents = NIL;
		Datum values[1];

		if (get_rel_relispartition(rel))
			parents = get_partition_ancestors(rel);
		else if (get_rel_relkind(rel) == RELKIND_RELATION && has_superclass(rel))
		{
			if (catalog_exec("SELECT FROM " MR_SCHEMA ".sources s, pg_catalog.pg_inherits i"
							 " WHERE (i.inhrelid = $1 AND s.source = i.inhparent) OR s.source = $1 LIMIT 1",
							 SPI_OK_SELECT, 1, types, (values[0] = ObjectIdGetDatum(rel), values), NULL) > 0)
				ereport(ERROR,
						(errcode(ERRCODE_WRONG_OBJECT_TYPE),
						 errmsg("\"%s\" cannot inherit: it or its parent is a source", get_rel_name(rel)),
						 errhint("Use declarative partitioning.")));
		}
		if (parents == NIL)
			continue;
		if (mr_is_source(rel))
			ereport(ERROR,
					(errcode(ERRCODE_WRONG_OBJECT_TYPE),
					 errmsg("\"%s\" is a source and cannot become a partition", get_rel_name(rel)),
					 errhint("Drop its streams, then create them over the partitioned table.")));
		if (!mr_is_source(llast_oid(parents)))
			continue;
		values[0] = ObjectIdGetDatum(rel);
		mr_enter_catalog(&guard, "sources");
		SPI_connect();
		mr_exec_args("SELECT " MR_SCHEMA "._install_triggers($1::pg_catalog.regclass)", SPI_OK_SELECT, false,
					 1, types, values, NULL);
		SPI_finish();
		mr_leave(&guard);
		if (has_rows(rel))
		{
			note_partitions(llast_oid(parents), rel);
			mr_mark_table(rel, "attach");
		}
		else
			note_partitions(llast_oid(parents), InvalidOid);
		if (list_member_oid(added, rel))
			mr_track_partition(llast_oid(parents), rel, 1);
	}
	return (Datum) 0;
}
