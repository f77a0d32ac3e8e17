/*
 * maintain.c: what millrace.maintain() and millrace.compact() do for a continuous aggregate when nobody writes.
 *
 * All of it may run beside writers and readers.  Whoever changes NAME_state holds the aggregate's lock
 * (mr_state_lock), taken before the snapshot; batches only append to NAME_delta.  on_batch does bounded shares of the
 * same, so a database without a cron job keeps its size, too.
 */
#include "aggregate.h"

#include "access/xact.h"
#include "catalog/pg_inherits.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_compact);
PG_FUNCTION_INFO_V1(mr_convert_states);
PG_FUNCTION_INFO_V1(mr_close_windows);
PG_FUNCTION_INFO_V1(mr_advance_idle);
PG_FUNCTION_INFO_V1(mr_drop_expired);
PG_FUNCTION_INFO_V1(mr_prune_batches);
PG_FUNCTION_INFO_V1(mr_check_maintain);

/* A continuous aggregate, as its row of millrace.stream has it now. */
typedef struct Maintained
{
	char *name;
	Oid source;
	Oid owner;
	ArrayType *settings;
	Oid target;
	Oid definition;
	Oid state;
	Oid delta;
	bool is_running;
	Interval *watermark;  /* NULL: none */
	Interval *idle_after; /* NULL: the watermark does not follow the clock */
} Maintained;

/* In a transaction with one snapshot, rows that others have merged meanwhile would be in the way. */
static void
check_isolation(const char *what)
{
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg(MR_SCHEMA ".%s cannot run in a transaction of isolation level %s", what,
						XactIsoLevel == XACT_SERIALIZABLE ? "SERIALIZABLE" : "REPEATABLE READ"),
				 errhint("Use READ COMMITTED.")));
}

/* Column i of the only row that SPI returned; NULL if it is null, copied into the given memory otherwise. */
static void *
result_pointer(int i, MemoryContext context)
{
	bool isnull;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i, &isnull);
	MemoryContext old = MemoryContextSwitchTo(context);
	void *copy = NULL;

	if (!isnull)
		copy = DatumGetPointer(datumCopy(datum, false, get_typlen(SPI_gettypeid(SPI_tuptable->tupdesc, i))));
	MemoryContextSwitchTo(old);
	return copy;
}

static Oid
result_oid(int i)
{
	bool isnull;
	Datum datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i, &isnull);

	return isnull ? InvalidOid : DatumGetObjectId(datum);
}

/* 42704 if there is none of that name, 42501 unless the current user has its owner's rights. */
static Maintained *
read_stream(text *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {PointerGetDatum(name)};
	Maintained *stream = palloc0(sizeof(Maintained));
	MemoryContext context = CurrentMemoryContext;
	MrGuard guard;
	bool isnull;

	stream->name = text_to_cstring(name);
	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args(
		"SELECT t.source, c.relowner, t.settings, t.definition, t.state, t.delta, t.status = 'running',"
		" t.watermark, t.idle_after, t.target FROM " MR_SCHEMA
		".stream t JOIN pg_catalog.pg_class c ON c.oid = t.state WHERE t.name = $1 AND t.kind = 'aggregate'",
		SPI_OK_SELECT, false, 1, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("continuous aggregate \"%s\" does not exist", stream->name),
				 errhint("See " MR_SCHEMA ".streams.")));
	stream->source = result_oid(1);
	stream->owner = result_oid(2);
	stream->settings = result_pointer(3, context);
	stream->definition = result_oid(4);
	stream->state = result_oid(5);
	stream->delta = result_oid(6);
	stream->is_running =
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 7, &isnull));
	stream->watermark = result_pointer(8, context);
	stream->idle_after = result_pointer(9, context);
	stream->target = result_oid(10);
	SPI_finish();
	mr_leave(&guard);
	if (!has_privs_of_role(GetUserId(), stream->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of stream \"%s\"", stream->name)));
	return stream;
}

/*
 * Compaction
 */

/*
 * A restored state carries the transaction id of another server.  One that this server has not given out yet would
 * keep the row from being merged, and out of NAME_changes, until it has; so it becomes a change of this transaction.
 */
static void
adopt_restored(Oid table)
{
	mr_exec(psprintf("UPDATE %s SET xid = pg_catalog.pg_current_xact_id() WHERE xid >="
					 " (SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot()))",
					 mr_relation_name(table)),
			SPI_OK_UPDATE, false);
}

/*
 * _convert_states(name text) returns bool: after an upgrade of the server, which may keep the states of an aggregate in
 * another type than before.  As the owner: the tables are his, and may have checks that call functions.
 */
Datum
mr_convert_states(PG_FUNCTION_ARGS)
{
	static Oid types[3] = {REGCLASSOID, REGCLASSOID, REGCLASSOID};
	Datum values[3];
	Maintained *stream;
	MrGuard guard;
	bool isnull, differ;

	(void) read_stream(PG_GETARG_TEXT_PP(0));
	mr_stream_lock(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	stream = read_stream(PG_GETARG_TEXT_PP(0));
	if (!OidIsValid(stream->definition))
		PG_RETURN_BOOL(false);
	values[0] = ObjectIdGetDatum(stream->definition);
	values[1] = ObjectIdGetDatum(stream->state);
	values[2] = ObjectIdGetDatum(stream->delta);
	mr_enter(&guard, stream->owner, stream->settings);
	SPI_connect();
	mr_exec_args("SELECT " MR_SCHEMA "._states_differ($1, $2, $3)", SPI_OK_SELECT, true, 3, types, values,
				 NULL);
	differ = DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (differ)
		mr_exec_args("SELECT " MR_SCHEMA "._rewrite_states($1, $2, $3)", SPI_OK_SELECT, false, 3, types,
					 values, NULL);
	SPI_finish();
	mr_leave(&guard);
	PG_RETURN_BOOL(differ);
}

/* compact(name text, all bool) returns bigint: merge the states of each group into one; how many were written */
Datum
mr_compact(PG_FUNCTION_ARGS)
{
	Maintained *stream;
	MrGuard guard;
	uint64 n_written;

	check_isolation("compact");
	(void) read_stream(PG_GETARG_TEXT_PP(0));
	mr_stream_lock(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	stream = read_stream(PG_GETARG_TEXT_PP(0));
	mr_enter(&guard, stream->owner, stream->settings);
	SPI_connect();
	adopt_restored(stream->state);
	adopt_restored(stream->delta);
	SPI_finish();
	n_written = mr_fold(stream->definition, stream->state, stream->delta, PG_INT64_MAX, PG_GETARG_BOOL(1));
	mr_leave(&guard);
	mr_watermark_prune(stream->state, false);
	PG_RETURN_INT64((int64) n_written);
}

/*
 * Closing
 */

/*
 * _close_windows(name text) returns timestamptz: record the watermark, as a batch does that brings no rows, and return
 * it; NULL if the aggregate has none or does not run
 */
Datum
mr_close_windows(PG_FUNCTION_ARGS)
{
	Maintained *stream = read_stream(PG_GETARG_TEXT_PP(0));
	MrSeen *seen;
	TimestampTz watermark;

	if (stream->watermark == NULL || !stream->is_running)
		PG_RETURN_NULL();
	seen = mr_watermark_seen(stream->state);
	watermark = mr_watermark(seen, stream->watermark);
	if (watermark == DT_NOBEGIN)
		PG_RETURN_NULL();
	mr_watermark_write(seen, watermark, DT_NOBEGIN);
	PG_RETURN_TIMESTAMPTZ(watermark);
}

/*
 * _advance_idle(name text) returns timestamptz: if nothing has come for idle_after, let the greatest event time go on
 * by the time since the last batch, and return it; else NULL
 */
Datum
mr_advance_idle(PG_FUNCTION_ARGS)
{
	static Oid types[3] = {REGCLASSOID, REGCLASSOID, INTERVALOID};
	Maintained *stream = read_stream(PG_GETARG_TEXT_PP(0));
	MrSeen before = {stream->state, DT_NOBEGIN, DT_NOBEGIN};
	Datum values[3] = {ObjectIdGetDatum(stream->state), ObjectIdGetDatum(stream->source),
					   IntervalPGetDatum(stream->idle_after)};
	TimestampTz max_time = DT_NOBEGIN;
	MrGuard guard;
	bool isnull;

	if (stream->idle_after == NULL || !stream->is_running)
		PG_RETURN_NULL();
	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	/* Batches that bring no later event time leave no row of progress, but they have come. */
	mr_exec_args("SELECT p.max_time + (pg_catalog.clock_timestamp() - p.since) FROM"
				 " (SELECT max_time, GREATEST(arrived, (SELECT b.started FROM " MR_SCHEMA
				 ".batches b WHERE b.source = $2 ORDER BY b.xid DESC LIMIT 1)) AS since FROM " MR_SCHEMA
				 ".progress WHERE state = $1 AND max_time IS NOT NULL ORDER BY max_time DESC LIMIT 1) p"
				 " WHERE p.since <= pg_catalog.clock_timestamp() - $3",
				 SPI_OK_SELECT, false, 3, types, values, NULL);
	if (SPI_processed > 0)
		max_time =
			DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	if (max_time == DT_NOBEGIN)
		PG_RETURN_NULL();
	(void) GetTopFullTransactionId();
	before.horizon = ReadNextFullTransactionId();
	mr_watermark_write(&before, DT_NOBEGIN, max_time);
	PG_RETURN_TIMESTAMPTZ(max_time);
}

/*
 * Retention
 */

/* Batches of every session read the streams anew (batch.c). */
static void
invalidate_source(Oid source)
{
	ListCell *lc;

	foreach (lc, find_all_inheritors(source, NoLock, NULL))
		CacheInvalidateRelcacheByRelid(lfirst_oid(lc));
}

/*
 * Greatest time of the states, DT_NOBEGIN if there are none: that of an event to within a window's size.  Times that
 * would not move a watermark do not count.
 */
static TimestampTz
greatest_time(const Maintained *stream, const MrWindow *window)
{
	static Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1] = {TimestampTzGetDatum(GetCurrentTimestamp() + (int64) mr_max_future_s * USECS_PER_SEC)};
	const char *column = window->kind == MR_SESSION ? "window_last" : "window_start";
	TimestampTz result;
	bool isnull;

	mr_exec_args(psprintf("SELECT GREATEST((SELECT pg_catalog.max(%s) FROM %s WHERE %s <= $1),"
						  " (SELECT pg_catalog.max(%s) FROM %s WHERE %s <= $1))",
						  column, mr_relation_name(stream->state), column, column,
						  mr_relation_name(stream->delta), column),
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	result = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	return isnull || TIMESTAMP_NOT_FINITE(result) ? DT_NOBEGIN : result;
}

/*
 * Time before which the aggregate's windows go: later than what the catalog says only if that lets a window go, and if
 * nobody else is changing the row, for whom a batch must not wait.  DT_NOBEGIN: all stay.
 */
static TimestampTz
move_retention(const Maintained *stream, const MrWindow *window)
{
	static Oid types[3] = {TEXTOID, TIMESTAMPTZOID, INTERVALOID};
	Datum values[3] = {CStringGetTextDatum(stream->name)};
	TimestampTz before = DT_NOBEGIN, after = DT_NOBEGIN, greatest;
	Interval *retain;
	Datum datum;
	MrGuard guard;
	bool isnull;

	greatest = greatest_time(stream, window);
	mr_enter_catalog(&guard, "sources");
	mr_exec_args("SELECT retain, retained_from FROM " MR_SCHEMA ".stream WHERE name = $1", SPI_OK_SELECT,
				 false, 1, types, values, NULL);
	if (SPI_processed == 0)
		elog(ERROR, "stream \"%s\" is gone", stream->name);
	retain = result_pointer(1, CurrentMemoryContext);
	datum = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull);
	if (!isnull)
		before = after = DatumGetTimestampTz(datum);
	if (retain && greatest != DT_NOBEGIN)
	{
		after = mr_plus_interval(greatest, retain, -1);
		after = Min(after, mr_rollup_needed_from(stream->target));
		/* Sessions end at any time: every gap is often enough. */
		if (mr_last_closed(window, after) <=
			(window->kind == MR_SESSION && before != DT_NOBEGIN ? before : mr_last_closed(window, before)))
			after = before;
	}
	if (after != before)
	{
		values[1] = TimestampTzGetDatum(after);
		mr_exec_args("UPDATE " MR_SCHEMA ".stream s SET retained_from = $2 FROM (SELECT name FROM " MR_SCHEMA
					 ".stream WHERE name = $1 FOR UPDATE SKIP LOCKED) l WHERE s.name = l.name",
					 SPI_OK_UPDATE, false, 2, types, values, NULL);
		if (SPI_processed == 0)
			after = before;
		else
			invalidate_source(stream->source);
	}
	mr_leave(&guard);
	return after;
}

/* Windows that started at or before last, and the panes that only they need. */
static uint64
delete_panes(const Maintained *stream, TimestampTz last)
{
	static Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1] = {TimestampTzGetDatum(last)};
	uint64 n_deleted = 0;

	for (int i = 0; i < 2; i++)
	{
		mr_exec_args(psprintf("DELETE FROM %s WHERE window_start <= $1",
							  mr_relation_name(i == 0 ? stream->state : stream->delta)),
					 SPI_OK_DELETE, false, 1, types, values, NULL);
		n_deleted += SPI_processed;
	}
	return n_deleted;
}

/*
 * Sessions of which every part, in both tables, ended more than two gaps before the time.  A later part can touch
 * them only through one that starts at most a gap before it.
 */
static uint64
delete_sessions(const Maintained *stream, const MrDefinition *def, TimestampTz before)
{
	static Oid types[2] = {TIMESTAMPTZOID, INTERVALOID};
	Datum values[2] = {TimestampTzGetDatum(before), IntervalPGetDatum(&def->window.size)};
	const char *tables[2] = {mr_relation_name(stream->state), mr_relation_name(stream->delta)};
	char *gone[2];
	StringInfoData keys, sql;
	uint64 n_deleted;

	initStringInfo(&keys);
	for (int i = 1; i < list_length(def->keys); i++)
		appendStringInfo(&keys, ", k%d", i);
	initStringInfo(&sql);
	appendStringInfoString(&sql, "WITH a AS (");
	for (int i = 0; i < 2; i++)
		appendStringInfo(&sql,
						 "%sSELECT %d AS t, ctid AS tid, window_start, window_last%s FROM %s"
						 " WHERE window_start <= $1 - $2",
						 i ? " UNION ALL " : "", i, keys.data, tables[i]);
	appendStringInfo(
		&sql,
		"), s AS (SELECT *, " MR_SCHEMA
		"._session(window_start, window_last, $2) OVER (PARTITION BY true%s ORDER BY window_start)"
		" AS session FROM a), g AS (SELECT t, tid, pg_catalog.max(window_last) OVER"
		" (PARTITION BY session%s) AS last FROM s)",
		keys.data, keys.data);
	for (int i = 0; i < 2; i++)
		gone[i] = psprintf("DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT tid FROM g WHERE t = %d AND"
						   " last <= $1 - $2 - $2))",
						   tables[i], i);
	appendStringInfo(&sql, ", d AS (%s RETURNING true) %s", gone[1], gone[0]);
	mr_exec_args(sql.data, SPI_OK_DELETE, false, 2, types, values, NULL);
	n_deleted = SPI_processed;
	return n_deleted;
}

uint64
mr_drop_expired_windows(text *name, bool wait)
{
	Maintained *stream;
	MrDefinition *def;
	TimestampTz before;
	uint64 n_deleted = 0;
	MrGuard guard;

	if (wait)
		mr_stream_lock(text_to_cstring(name));
	stream = read_stream(name);
	if (!wait && !mr_state_lock(stream->state, false))
		return 0;
	mr_enter(&guard, stream->owner, stream->settings);
	def = mr_read_definition(stream->definition);
	SPI_connect();
	before = move_retention(stream, &def->window);
	if (before != DT_NOBEGIN)
		n_deleted = def->window.kind == MR_SESSION
			? delete_sessions(stream, def, before)
			: delete_panes(stream, mr_last_closed(&def->window, before));
	SPI_finish();
	mr_leave(&guard);
	return n_deleted;
}

/* _drop_expired(name text) returns bigint: drop the states that retain lets go; how many */
Datum
mr_drop_expired(PG_FUNCTION_ARGS)
{
	check_isolation("maintain");
	PG_RETURN_INT64((int64) mr_drop_expired_windows(PG_GETARG_TEXT_PP(0), true));
}

/*
 * Rows of millrace.batches
 */
void
mr_batches_prune(Oid source)
{
	static Oid types[2] = {OIDOID, INT4OID};
	Datum values[2] = {ObjectIdGetDatum(source), Int32GetDatum(mr_keep_batches)};
	MrGuard guard;

	if (!mr_state_lock(mr_catalog("batches"), false))
		return;
	mr_enter_catalog(&guard, "batches");
	SPI_connect();
	mr_exec_args("DELETE FROM " MR_SCHEMA
				 ".batches b WHERE b.source = $1 AND b.xid <= (SELECT n.xid FROM " MR_SCHEMA
				 ".batches n WHERE n.source = $1 ORDER BY n.xid DESC OFFSET $2 LIMIT 1)",
				 SPI_OK_DELETE, false, 2, types, values, NULL);
	SPI_finish();
	mr_leave(&guard);
}

/* _prune_batches(): the newest rows of each source stay, and none of a source that is gone */
Datum
mr_prune_batches(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {INT4OID};
	Datum values[1] = {Int32GetDatum(mr_keep_batches)};
	MrGuard guard;

	check_isolation("maintain");
	if (!mr_state_lock(mr_catalog("batches"), false))
		PG_RETURN_VOID();
	mr_enter_catalog(&guard, "batches");
	SPI_connect();
	mr_exec_args("DELETE FROM " MR_SCHEMA
				 ".batches b USING (SELECT xid, source, pg_catalog.row_number() OVER (PARTITION BY source"
				 " ORDER BY xid DESC) AS n FROM " MR_SCHEMA
				 ".batches) r WHERE r.xid = b.xid AND r.source = b.source AND (r.n > $1"
				 " OR NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = b.source))",
				 SPI_OK_DELETE, false, 1, types, values, NULL);
	SPI_finish();
	mr_leave(&guard);
	PG_RETURN_VOID();
}

/* _check_maintain(): maintain commits after each step, and merges what it has a new snapshot for */
Datum
mr_check_maintain(PG_FUNCTION_ARGS)
{
	check_isolation("maintain");
	if (IsTransactionBlock())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg(MR_SCHEMA ".maintain cannot run inside a transaction block"),
				 errhint("It commits after each step.  CALL it alone.")));
	PG_RETURN_VOID();
}
