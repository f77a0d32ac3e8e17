/*
 * late.c: rows that a stream did not take: too late for it, or come while it was stopped or had failed.  They are kept
 * as jsonb in millrace.late_row, in the transaction that inserted them into the source.
 *
 * A kept row must come back as it was.  Values whose types jsonb holds without loss are stored as such, all others
 * (arrays, composites, ranges, types of extensions) as the text that their output function writes, which their input
 * function reads; and the settings on which those texts depend are the same both ways.
 */
#include "aggregate.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "executor/tstoreReceiver.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_replay_late);
PG_FUNCTION_INFO_V1(mr_revised);

/*
 * Keeping rows
 */

/* Until AtEOXact_GUC: texts of values that any other session reads the same way. */
static int
portable_texts(void)
{
	static const char *const settings[][2] = {{"extra_float_digits", "1"},	 {"DateStyle", "ISO, YMD"},
											  {"IntervalStyle", "postgres"}, {"bytea_output", "hex"},
											  {"xmloption", "content"},		 {"lc_monetary", "C"}};
	int gucs = NewGUCNestLevel();

	for (int i = 0; i < lengthof(settings); i++)
		(void) set_config_option(settings[i][0], settings[i][1], PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	return gucs;
}

/* Does jsonb_populate_record make of to_jsonb(value) the same value?  Else it is kept as text. */
static bool
survives_jsonb(Oid type)
{
	char category;
	bool preferred;

	type = getBaseType(type);
	get_type_category_preferred(type, &category, &preferred);
	return type < FirstNormalObjectId && get_typtype(type) == TYPTYPE_BASE && category != TYPCATEGORY_ARRAY &&
		type != INT2VECTOROID && type != OIDVECTOROID;
}

/* The rows of new_rows as jsonb objects, by names of columns. */
static char *
rows_query(TupleDesc desc)
{
	StringInfoData buf;
	const char *separator = "";

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT pg_catalog.to_jsonb(q) FROM (SELECT ");
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		const char *name = quote_identifier(NameStr(att->attname));

		if (att->attisdropped || att->attgenerated == 'v')
			continue;
		if (survives_jsonb(att->atttypid))
			appendStringInfo(&buf, "%sr.%s", separator, name);
		else
			appendStringInfo(
				&buf,
				"%sCASE WHEN pg_catalog.num_nulls(r.%s) = 0 THEN pg_catalog.format('%%s', r.%s) END AS %s",
				separator, name, name, name);
		separator = ", ";
	}
	appendStringInfoString(&buf, " FROM " MR_NEW_ROWS " r) q");
	return buf.data;
}

/*
 * The rows as jsonb, by the current user, since types may bring casts to json of their own; then the catalog's row is
 * written directly.
 */
void
mr_divert(const char *stream, Oid leaf, Tuplestorestate *rows, const char *reason)
{
	Relation rel = table_open(leaf, AccessShareLock);
	char *query = rows_query(RelationGetDescr(rel));
	Datum values[5];
	bool nulls[5] = {false};
	int gucs = portable_texts();

	table_close(rel, NoLock);
	SPI_connect();
	if (SPI_register_relation(mr_new_rows_relation(MR_NEW_ROWS, leaf, rows)) < 0)
		elog(ERROR, "could not register the late rows");
	mr_exec(query, SPI_OK_SELECT, true);
	rel = table_open(mr_catalog("late_row"), RowExclusiveLock);
	values[0] = CStringGetTextDatum(stream);
	values[1] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[2] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[3] = CStringGetTextDatum(reason);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple;

		values[4] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &nulls[4]);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);
	}
	table_close(rel, NoLock);
	SPI_finish();
	AtEOXact_GUC(false, gucs);
}

/*
 * Forget the rows of a stream, with the latest snapshot: it is dropped, or filled anew from its source, which has them.
 */
void
mr_late_forget(const char *stream)
{
	Relation rel = table_open(mr_catalog("late_row"), RowExclusiveLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, InvalidOid, DEFAULT_COLLATION_OID, F_TEXTEQ,
						   CStringGetTextDatum(stream));
	scan = systable_beginscan(rel, mr_catalog("late_row_stream"), true, snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		simple_heap_delete(rel, &tuple->t_self);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
}

/*
 * Replaying them
 */

/* A continuous aggregate, as the catalog has it now. */
typedef struct Aggregate
{
	char *name;
	Oid source;
	Oid target;
	Oid final;
	Oid definition;
	Oid state;
	Oid delta;
	Oid owner;
	ArrayType *settings;
	bool has_watermark;
	Interval delay;
	TimestampTz retained_from;
} Aggregate;

/* 42704 if there is no stream of that name, 42809 if it is something else. */
static Aggregate *
read_aggregate(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum args[1] = {CStringGetTextDatum(name)};
	Aggregate *agg = palloc0(sizeof(Aggregate));
	MemoryContext context = CurrentMemoryContext, spi;
	Datum values[12];
	bool nulls[12];
	MrGuard guard;
	HeapTuple tuple;

	mr_enter_catalog(&guard, "sources");
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	mr_exec_args("SELECT t.kind, t.source, t.target, t.final, t.definition, t.state, t.delta,"
				 " coalesce(c.relowner, t.owner), t.settings, t.watermark, t.retained_from FROM " MR_SCHEMA
				 ".stream t LEFT JOIN pg_catalog.pg_class c ON c.oid = t.state WHERE t.name = $1",
				 SPI_OK_SELECT, true, 1, types, args, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", name),
				 errhint("See " MR_SCHEMA ".streams.")));
	tuple = SPI_tuptable->vals[0];
	heap_deform_tuple(tuple, SPI_tuptable->tupdesc, values, nulls);
	if (strcmp(TextDatumGetCString(values[0]), "aggregate") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("stream \"%s\" is not a continuous aggregate", name),
				 errdetail("It is of kind %s.", TextDatumGetCString(values[0]))));
	spi = MemoryContextSwitchTo(context);
	agg->name = pstrdup(name);
	agg->source = DatumGetObjectId(values[1]);
	agg->target = DatumGetObjectId(values[2]);
	agg->final = DatumGetObjectId(values[3]);
	agg->definition = DatumGetObjectId(values[4]);
	agg->state = DatumGetObjectId(values[5]);
	agg->delta = DatumGetObjectId(values[6]);
	agg->owner = DatumGetObjectId(values[7]);
	agg->settings = DatumGetArrayTypePCopy(values[8]);
	agg->has_watermark = !nulls[9];
	if (!nulls[9])
		agg->delay = *DatumGetIntervalP(values[9]);
	agg->retained_from = nulls[10] ? DT_NOBEGIN : DatumGetTimestampTz(values[10]);
	MemoryContextSwitchTo(spi);
	SPI_finish();
	PopActiveSnapshot();
	mr_leave(&guard);
	return agg;
}

/* Run a statement whose rows go to a tuplestore. */
static Tuplestorestate *
run_into(const char *sql, bool read_only, int n_args, Oid *types, Datum *values)
{
	Tuplestorestate *rows = tuplestore_begin_heap(false, false, work_mem);
	DestReceiver *dest = CreateDestReceiver(DestTuplestore);
	SPIExecuteOptions options = {.read_only = read_only, .dest = dest};
	SPIPlanPtr plan = SPI_prepare(sql, n_args, types);
	ParamListInfo params = makeParamList(n_args);

	if (plan == NULL)
		elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	for (int i = 0; i < n_args; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = false;
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = types[i];
	}
	SetTuplestoreDestReceiverParams(dest, rows, CurrentMemoryContext, false, NULL, NULL);
	options.params = params;
	if (SPI_execute_plan_extended(plan, &options) < 0)
		elog(ERROR, "could not execute: %s", SPI_result_code_string(SPI_result));
	dest->rDestroy(dest);
	return rows;
}

/* Take the late rows away: each is given to one of those who would replay it. */
static Tuplestorestate *
take_rows(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Tuplestorestate *rows;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	rows =
		run_into("DELETE FROM " MR_SCHEMA ".late_row WHERE stream = $1 AND reason = 'late' RETURNING \"row\"",
				 false, 1, types, values);
	mr_leave(&guard);
	return rows;
}

/* Rows of jsonb as rows of the source: a column that one does not have is NULL. */
static Tuplestorestate *
as_source_rows(Oid source, Tuplestorestate *stored)
{
	Tuplestorestate *composites, *rows = tuplestore_begin_heap(false, false, work_mem);
	EphemeralNamedRelation enr = mr_new_rows_relation("stored", InvalidOid, stored);
	TupleDesc desc = CreateTemplateTupleDesc(1);
	TupleDesc row_desc = CreateTemplateTupleDesc(1);
	TupleTableSlot *slot;
	int gucs = portable_texts();

	TupleDescInitEntry(desc, 1, "row", JSONBOID, -1, 0);
	TupleDescInitEntry(row_desc, 1, "row", get_rel_type_id(source), -1, 0);
	enr->md.tupdesc = desc;
	if (SPI_register_relation(enr) < 0)
		elog(ERROR, "could not register the late rows");
	composites =
		run_into(psprintf("SELECT pg_catalog.jsonb_populate_record(NULL::%s, s.\"row\") FROM stored s",
						  quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
													 get_rel_name(source))),
				 true, 0, NULL, NULL);
	AtEOXact_GUC(false, gucs);

	slot = MakeSingleTupleTableSlot(row_desc, &TTSOpsMinimalTuple);
	while (tuplestore_gettupleslot(composites, true, false, slot))
	{
		bool isnull;
		HeapTupleHeader header;
		HeapTupleData tuple;

		CHECK_FOR_INTERRUPTS();
		header = DatumGetHeapTupleHeader(slot_getattr(slot, 1, &isnull));
		tuple.t_len = HeapTupleHeaderGetDatumLength(header);
		ItemPointerSetInvalid(&tuple.t_self);
		tuple.t_tableOid = source;
		tuple.t_data = header;
		tuplestore_puttuple(rows, &tuple);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(composites);
	return rows;
}

/* Their states: those of closed windows count in NAME only. */
static uint64
merge_rows(Aggregate *agg, Tuplestorestate *rows, MrTimes *panes)
{
	List *depends = NIL;
	MrAggregatePlan *plan =
		mr_aggregate_plan(agg->definition, agg->source, agg->delta, CurrentMemoryContext, &depends);
	const MrWindow *window = mr_aggregate_window(plan);
	MrAggregateRun run = {.has_watermark = true, .closed = DT_NOBEGIN, .panes = panes};

	run.gone_bound = run.scan.late_bound = mr_last_closed(window, agg->retained_from);
	run.scan.max_time = run.scan.max_allowed = DT_NOBEGIN;
	run.scan.keep_late = true;
	if (agg->has_watermark)
		run.closed = mr_last_closed(window, mr_watermark(mr_watermark_seen(agg->state), &agg->delay));
	run.scan.late_bound = Max(run.gone_bound, run.closed);
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_aggregate_run(plan, agg->source, rows, &run);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return run.n_written;
}

/* replay_late(name text) returns bigint: how many rows were merged */
Datum
mr_replay_late(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Aggregate *agg = read_aggregate(name);
	Tuplestorestate *stored, *rows;
	MrTimes panes;
	int64 n_rows;
	MrGuard guard;
	Oid source = agg->source;

	if (!has_privs_of_role(GetUserId(), agg->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of stream \"%s\"", name)));
	/* A refresh counts these rows, too, and forgets them. */
	mr_stream_lock(name);
	/* As a writer of the source: whoever changes its streams locks these out. */
	LockRelationOid(source, RowExclusiveLock);
	agg = read_aggregate(name);
	if (agg->source != source || !has_privs_of_role(GetUserId(), agg->owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE), errmsg("stream \"%s\" was replaced meanwhile", name),
				 errhint("Try again.")));

	SPI_connect();
	stored = take_rows(name);
	n_rows = tuplestore_tuple_count(stored);
	if (n_rows > 0)
	{
		mr_enter(&guard, agg->owner, agg->settings);
		rows = as_source_rows(agg->source, stored);
		tuplestore_end(stored);
		mr_times_init(&panes);
		(void) merge_rows(agg, rows, &panes);
		tuplestore_end(rows);
		mr_leave(&guard);
		mr_alerts_changed(agg->source, agg->target, &panes);
	}
	SPI_finish();
	PG_RETURN_INT64(n_rows);
}

/*
 * A refresh has computed windows from the source, where the late rows are: forget those that it counted, so that nobody
 * replays them.  As its snapshot, which is active, shows them.  time_text: event time over columns of the source.
 */
void
mr_late_recomputed(const char *name, Oid source, Oid owner, ArrayType *settings, const char *time_text,
				   const MrRanges *ranges)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	TupleDesc desc = CreateTemplateTupleDesc(2);
	EphemeralNamedRelation enr;
	Tuplestorestate *stored;
	Relation rel;
	MrGuard guard;
	int gucs;

	SPI_connect();
	mr_enter_catalog(&guard, "sources");
	stored =
		run_into("SELECT ctid, \"row\" FROM " MR_SCHEMA ".late_row WHERE stream = $1 AND reason = 'late'",
				 true, 1, types, values);
	mr_leave(&guard);
	if (tuplestore_tuple_count(stored) == 0)
	{
		SPI_finish();
		return;
	}
	TupleDescInitEntry(desc, 1, "tid", TIDOID, -1, 0);
	TupleDescInitEntry(desc, 2, "row", JSONBOID, -1, 0);
	mr_enter(&guard, owner, settings);
	enr = mr_new_rows_relation("stored", InvalidOid, stored);
	enr->md.tupdesc = desc;
	if (SPI_register_relation(enr) < 0)
		elog(ERROR, "could not register the late rows");
	gucs = portable_texts();
	mr_exec(psprintf("SELECT s.tid, (SELECT %s FROM pg_catalog.jsonb_populate_record(NULL::%s, s.\"row\") q)"
					 " FROM stored s",
					 time_text,
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(source)),
												get_rel_name(source))),
			SPI_OK_SELECT, true);
	AtEOXact_GUC(false, gucs);
	mr_leave(&guard);
	rel = table_open(mr_catalog("late_row"), RowExclusiveLock);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		Datum tid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull);
		TimestampTz time =
			DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));

		CHECK_FOR_INTERRUPTS();
		for (int j = 0; j < ranges->n && !isnull; j++)
			if (time >= ranges->items[j].from && (time < ranges->items[j].end || time <= ranges->items[j].to))
			{
				simple_heap_delete(rel, (ItemPointer) DatumGetPointer(tid));
				break;
			}
	}
	table_close(rel, NoLock);
	SPI_finish();
}

/*
 * Pipes that were stopped or had failed
 */

/* The transactions that left rows for a stream, in order. */
static List *
kept_transactions(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MemoryContext context = CurrentMemoryContext, spi;
	List *xids = NIL;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT xid FROM " MR_SCHEMA ".late_row WHERE stream = $1 GROUP BY xid ORDER BY"
				 " pg_catalog.min(arrived), xid",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	spi = MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		FullTransactionId *xid = palloc(sizeof(FullTransactionId));
		bool isnull;

		*xid = DatumGetFullTransactionId(
			SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		xids = lappend(xids, xid);
	}
	MemoryContextSwitchTo(spi);
	SPI_finish();
	mr_leave(&guard);
	return xids;
}

/* A handler, run as the owner over the rows of each transaction that a stream did not take, in order. */
uint64
mr_replay_rows(const char *name, Oid source, Oid owner, ArrayType *settings, MrRowsHandler handler, void *arg)
{
	Oid types[2] = {TEXTOID, XID8OID};
	Datum values[2] = {CStringGetTextDatum(name)};
	uint64 n_written = 0;
	ListCell *lc;

	foreach (lc, kept_transactions(name))
	{
		Tuplestorestate *stored, *rows;
		MrGuard guard;

		CHECK_FOR_INTERRUPTS();
		values[1] = FullTransactionIdGetDatum(*(FullTransactionId *) lfirst(lc));
		SPI_connect();
		mr_enter_catalog(&guard, "sources");
		stored =
			run_into("WITH d AS (DELETE FROM " MR_SCHEMA ".late_row WHERE stream = $1 AND xid = $2 RETURNING"
					 " ctid AS tid, \"row\") SELECT d.\"row\" FROM d ORDER BY d.tid",
					 false, 2, types, values);
		mr_leave(&guard);
		mr_enter(&guard, owner, settings);
		rows = as_source_rows(source, stored);
		n_written += handler(arg, source, rows);
		mr_leave(&guard);
		tuplestore_end(rows);
		tuplestore_end(stored);
		SPI_finish();
	}
	return n_written;
}

/*
 * Revisions
 */

/* Windows of which NAME_state or NAME_delta has rows that only one of NAME and NAME_final shows, as the owner. */
static void
revised_windows(Aggregate *agg, const MrWindow *window, MrTimes *windows)
{
	MrTimes panes;
	Oid rels[2] = {agg->state, agg->delta};
	bool isnull;

	mr_times_init(&panes);
	mr_times_init(windows);
	for (int i = 0; i < 2; i++)
	{
		mr_exec(psprintf("SELECT DISTINCT window_start FROM %s WHERE (part OPERATOR(pg_catalog.<>) '%c' OR "
						 "open_from IS NOT NULL) AND "
						 "window_start IS NOT NULL",
						 quote_qualified_identifier(get_namespace_name(get_rel_namespace(rels[i])),
													get_rel_name(rels[i])),
						 MR_PART_BOTH),
				SPI_OK_SELECT, true);
		for (uint64 j = 0; j < SPI_processed; j++)
			mr_times_add(
				&panes,
				DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[j], SPI_tuptable->tupdesc, 1, &isnull)));
		SPI_freetuptable(SPI_tuptable);
	}
	mr_times_add_windows(windows, window, &panes);
}

/*
 * One side of the comparison: window, keys, key and value as jsonb, and whether the window is final.  Both have the names
 * of NAME's columns, whatever those of NAME_final are by now.
 */
static void
append_side(StringInfo buf, Aggregate *agg, MrDefinition *def, bool is_final, const char *condition)
{
	Oid view = is_final ? agg->final : agg->target;
	AttrNumber window = mr_window_column(def);
	Relation rel = table_open(agg->final, AccessShareLock);
	int n_columns = RelationGetNumberOfAttributes(rel);
	StringInfoData key, others;
	ListCell *lc;

	table_close(rel, NoLock);
	initStringInfo(&key);
	initStringInfo(&others);
	if (window)
		appendStringInfo(buf, "SELECT v.%s AS w", quote_identifier(get_attname(agg->target, window, false)));
	else
		appendStringInfoString(buf, "SELECT NULL::pg_catalog.timestamptz AS w");
	foreach (lc, mr_key_columns(def))
	{
		char *name = get_attname(agg->target, lfirst_int(lc), false);

		appendStringInfo(buf, ", v.%s AS k%d", quote_identifier(name), foreach_current_index(lc) + 1);
		appendStringInfo(&key, " || pg_catalog.jsonb_build_object(%s, v.%s)", quote_literal_cstr(name),
						 quote_identifier(name));
		appendStringInfo(&others, ", %s", quote_literal_cstr(name));
	}
	if (window)
		appendStringInfo(&others, ", %s", quote_literal_cstr(get_attname(agg->target, window, false)));
	appendStringInfo(buf,
					 ", '{}'::pg_catalog.jsonb%s AS key, pg_catalog.to_jsonb(v) -"
					 " ARRAY['final'%s]::pg_catalog.text[] AS value, %s AS is_final FROM (SELECT ",
					 key.data, others.data, is_final ? "true" : "v.final");
	for (int i = 1; i <= n_columns; i++)
		appendStringInfo(buf, "%sn.%s AS %s", i > 1 ? ", " : "",
						 quote_identifier(get_attname(view, i, false)),
						 quote_identifier(get_attname(agg->target, i, false)));
	if (!is_final)
		appendStringInfo(buf, ", n.%s AS final", quote_identifier(get_attname(view, n_columns + 1, false)));
	appendStringInfo(
		buf, " FROM %s n) v WHERE %s",
		quote_qualified_identifier(get_namespace_name(get_rel_namespace(view)), get_rel_name(view)),
		condition);
}

static char *
revisions_query(Aggregate *agg, MrDefinition *def, const MrTimes *windows)
{
	AttrNumber column = mr_window_column(def);
	const char *condition = "$1 IS NOT NULL AND $2 IS NOT NULL AND $3 IS NOT NULL";
	StringInfoData buf;

	if (column && def->window.kind != MR_SESSION)
		condition = psprintf(windows->is_range ? "v.%s BETWEEN $2 AND $3 AND $1 IS NOT NULL"
											   : "v.%s = ANY ($1) AND $2 IS NOT NULL AND $3 IS NOT NULL",
							 quote_identifier(get_attname(agg->target, column, false)));
	initStringInfo(&buf);
	appendStringInfoString(
		&buf,
		"SELECT w, key, CASE WHEN n_final > 1 THEN final ELSE final -> 0 END,"
		" CASE WHEN n_current > 1 THEN current ELSE current -> 0 END FROM (SELECT q.w, "
		"pg_catalog.jsonb_agg(q.key) -> 0 AS key,"
		" pg_catalog.count(*) FILTER (WHERE q.side = 0) AS n_final, pg_catalog.count(*) FILTER (WHERE q.side "
		"= 1) AS n_current,"
		" pg_catalog.jsonb_agg(q.value ORDER BY q.value) FILTER (WHERE q.side = 0) AS final,"
		" pg_catalog.jsonb_agg(q.value ORDER BY q.value) FILTER (WHERE q.side = 1) AS current,"
		" pg_catalog.bool_or(q.is_final) AS is_final FROM (SELECT 0 AS side, f.* FROM (");
	append_side(&buf, agg, def, true, condition);
	appendStringInfoString(&buf, ") f UNION ALL SELECT 1, c.* FROM (");
	append_side(&buf, agg, def, false, condition);
	appendStringInfoString(&buf, ") c) q GROUP BY q.w");
	for (int i = 1; i <= list_length(mr_key_columns(def)); i++)
		appendStringInfo(&buf, ", q.k%d", i);
	appendStringInfoString(&buf, ") r WHERE is_final AND final IS DISTINCT FROM current ORDER BY w, key");
	return buf.data;
}

typedef struct Revised
{
	Aggregate *agg;
	ReturnSetInfo *rsinfo;
} Revised;

static void
put_revised(void *arg)
{
	static Oid types[3] = {TIMESTAMPTZARRAYOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	Revised *revised = arg;
	Aggregate *agg = revised->agg;
	MrDefinition *def;
	MrTimes windows;
	MrGuard guard;

	mr_enter(&guard, agg->owner, agg->settings);
	/* All names are qualified. */
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	SPI_connect();
	def = mr_read_definition(agg->definition);
	revised_windows(agg, &def->window, &windows);
	if (!mr_times_is_empty(&windows))
	{
		Datum args[3] = {PointerGetDatum(mr_times_array(&windows)), TimestampTzGetDatum(windows.first),
						 TimestampTzGetDatum(windows.last)};

		mr_exec_args(revisions_query(agg, def, &windows), SPI_OK_SELECT, true, 3, types, args, NULL);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			Datum values[4];
			bool nulls[4];

			heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, values, nulls);
			tuplestore_putvalues(revised->rsinfo->setResult, revised->rsinfo->setDesc, values, nulls);
		}
	}
	SPI_finish();
	mr_leave(&guard);
}

/*
 * _revised(stream text) returns setof (window_start, key, final, current).  Run as the owner, since the caller may not
 * read the states, nor should he run functions of a view that he did not choose to read.  Whoever breaks his views does not
 * break millrace.revisions for others.
 */
Datum
mr_revised(PG_FUNCTION_ARGS)
{
	char *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	Revised revised = {read_aggregate(name), (ReturnSetInfo *) fcinfo->resultinfo};
	Oid views[2] = {revised.agg->target, revised.agg->final};
	ErrorData *error;

	for (int i = 0; i < 2; i++)
	{
		AclResult acl = pg_class_aclcheck(views[i], GetUserId(), ACL_SELECT);

		if (acl != ACLCHECK_OK)
			aclcheck_error(acl, OBJECT_VIEW, get_rel_name(views[i]));
	}
	InitMaterializedSRF(fcinfo, 0);
	/* It has failed: what its query read was dropped. */
	if (!OidIsValid(revised.agg->definition))
		return (Datum) 0;
	error = mr_attempt(put_revised, &revised);
	if (error && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	if (error)
		ereport(WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("could not look for revisions of \"%s\": %s", name, error->message)));
	return (Datum) 0;
}
