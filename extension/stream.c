/*
 * stream.c: the catalog of sources and streams.  Every write of millrace.sources and millrace.stream is here.
 *
 * The SQL functions that users call check and create objects with the caller's rights; these functions check
 * ownership and write the catalog as its owner.  Whoever changes what a batch of a source must do locks out the
 * writers of the source and of all its partitions first (a writer may name a partition only), and invalidates
 * their relation-cache entries, upon which every backend reads the streams anew (batch.c).
 */
#include "millrace.h"

#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "commands/event_trigger.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(mr_source_put);
PG_FUNCTION_INFO_V1(mr_lock_source);
PG_FUNCTION_INFO_V1(mr_stream_put);
PG_FUNCTION_INFO_V1(mr_stream_drop);
PG_FUNCTION_INFO_V1(mr_on_drop);
PG_FUNCTION_INFO_V1(mr_on_ddl);

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

static void
lock_source(Oid source)
{
	ListCell *lc;

	foreach (lc, find_all_inheritors(source, ShareRowExclusiveLock, NULL))
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

/* _lock_source(source regclass) */
Datum
mr_lock_source(PG_FUNCTION_ARGS)
{
	check_owner(PG_GETARG_OID(0));
	lock_source(PG_GETARG_OID(0));
	PG_RETURN_VOID();
}

/* Writes a catalog row as the owner of the catalog. */
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

/* _source_put(source regclass, time_column name, partition_interval interval, retention interval) */
Datum
mr_source_put(PG_FUNCTION_ARGS)
{
	static Oid types[4] = {REGCLASSOID, NAMEOID, INTERVALOID, INTERVALOID};
	Datum values[4];
	char nulls[4];

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("source must not be null")));
	check_owner(PG_GETARG_OID(0));
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

/*
 * _stream_put(name text, kind text, source regclass, target regclass, command text, definition regclass,
 *             state regclass)
 */
Datum
mr_stream_put(PG_FUNCTION_ARGS)
{
	static Oid types[9] = {TEXTOID,		TEXTOID,	 REGCLASSOID, REGCLASSOID, TEXTOID,
						   REGCLASSOID, REGCLASSOID, REGROLEOID,  TEXTARRAYOID};
	Datum values[9];
	char nulls[9];

	for (int i = 0; i < 7; i++)
	{
		if (PG_ARGISNULL(i) && i < 4)
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("name and source of a stream must not be null")));
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	check_name(TextDatumGetCString(values[0]));
	check_owner(PG_GETARG_OID(2));
	for (int i = 5; i < 7; i++)
		if (!PG_ARGISNULL(i))
			check_owner(PG_GETARG_OID(i));
	lock_source(PG_GETARG_OID(2));
	values[7] = ObjectIdGetDatum(GetUserId());
	values[8] = PointerGetDatum(mr_current_settings());
	nulls[7] = nulls[8] = ' ';
	catalog_exec("INSERT INTO " MR_SCHEMA
				 ".stream (name, kind, source, target, command, definition, state, owner, settings)"
				 " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
				 SPI_OK_INSERT, 9, types, values, nulls);
	PG_RETURN_VOID();
}

static void
drop_relation(Oid rel)
{
	ObjectAddress address = {RelationRelationId, rel, 0};

	if (get_rel_relkind(rel) != '\0')
		performDeletion(&address, DROP_CASCADE, 0);
}

/*
 * Delete the streams that a query of (name, source, kind, target, definition, state) finds, with the relations made for
 * them; writers must be locked out where the source still exists.
 */
static uint64
drop_streams(const char *where, int n_args, Oid *types, Datum *values)
{
	MrGuard guard;
	uint64 n_rows;
	SPITupleTable *rows;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	PushActiveSnapshot(GetLatestSnapshot());
	mr_exec_args(psprintf("DELETE FROM " MR_SCHEMA
						  ".stream t WHERE %s RETURNING kind = 'aggregate', target, definition, state",
						  where),
				 SPI_OK_DELETE_RETURNING, false, n_args, types, values, NULL);
	PopActiveSnapshot();
	n_rows = SPI_processed;
	rows = SPI_tuptable;
	for (uint64 i = 0; i < n_rows; i++)
	{
		bool isnull;

		if (!DatumGetBool(SPI_getbinval(rows->vals[i], rows->tupdesc, 1, &isnull)))
			continue;
		for (int column = 2; column <= 4; column++)
			drop_relation(DatumGetObjectId(SPI_getbinval(rows->vals[i], rows->tupdesc, column, &isnull)));
	}
	SPI_finish();
	mr_leave(&guard);
	return n_rows;
}

/* _stream_drop(name text, kind text) */
Datum
mr_stream_drop(PG_FUNCTION_ARGS)
{
	static Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2] = {PG_GETARG_DATUM(0), PG_GETARG_DATUM(1)};
	char *name = TextDatumGetCString(values[0]);
	Oid source, owner;
	bool isnull;

	SPI_connect();
	mr_exec_args("SELECT source, owner FROM " MR_SCHEMA ".stream WHERE name = $1 AND kind = $2",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("%s \"%s\" does not exist",
						strcmp(TextDatumGetCString(values[1]), "pipe") == 0 ? "pipe" : "continuous aggregate",
						name),
				 errhint("See " MR_SCHEMA ".streams.")));
	source = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	SPI_finish();
	if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of stream \"%s\"", name)));
	lock_source(source);
	drop_streams("name = $1 AND kind = $2", 2, types, values);
	PG_RETURN_VOID();
}

/*
 * Event triggers.  They run for whoever creates or drops a table, so all they do is done as the catalog's owner.
 */
static void
check_event(FunctionCallInfo fcinfo)
{
	if (!CALLED_AS_EVENT_TRIGGER(fcinfo))
		ereport(
			ERROR,
			(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED), errmsg("not called as an event trigger")));
}

/* sql_drop: forget the streams and sources whose relations are gone. */
Datum
mr_on_drop(PG_FUNCTION_ARGS)
{
#define GONE(column) "NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = t." column ")"
	check_event(fcinfo);
	drop_streams(GONE("source") " OR " GONE("target") " OR (kind = 'aggregate' AND (" GONE(
					 "definition") " OR " GONE("state") "))",
				 0, NULL, NULL);
	catalog_exec("DELETE FROM " MR_SCHEMA ".sources t WHERE " GONE("source"), SPI_OK_DELETE, 0, NULL, NULL,
				 NULL);
	return (Datum) 0;
}

/* ddl_command_end: put the trigger on partitions that lack it. */
Datum
mr_on_ddl(PG_FUNCTION_ARGS)
{
	check_event(fcinfo);
	catalog_exec("SELECT " MR_SCHEMA "._install_triggers(s.source) FROM " MR_SCHEMA ".sources s"
				 " WHERE EXISTS (SELECT FROM pg_catalog.pg_partition_tree(s.source) t WHERE NOT EXISTS"
				 " (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgrelid = t.relid AND g.tgfoid = '" MR_SCHEMA
				 ".on_batch()'::pg_catalog.regprocedure))",
				 SPI_OK_SELECT, 0, NULL, NULL, NULL);
	return (Datum) 0;
}
