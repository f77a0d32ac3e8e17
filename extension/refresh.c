/*
 * refresh.c: corrections: windows that are marked as touched, and computing them anew.
 *
 * Batches add to states; what an UPDATE, DELETE or TRUNCATE takes away, a state cannot tell.  So these mark the windows
 * that they touch, in millrace.mark and in the same transaction, and so do batches of a stream that is stopped or has
 * failed, and partitions that come with rows.  millrace.refresh computes the marked windows from the source, and only
 * those.
 *
 * A refresh takes the aggregate's lock first, so that no compaction, retention or other refresh runs beside it, and
 * then one snapshot, with which it reads the marks, removes the states and reads the source.  Batches commit rows and
 * states together, so a batch that the snapshot shows has its rows counted and its states removed, and of any other
 * neither; its states stay, beside the new ones.  A mark that the snapshot does not show stays for the next refresh.
 */
#include "aggregate.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "nodes/parsenodes.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/partcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_refresh);
PG_FUNCTION_INFO_V1(mr_fill);
PG_FUNCTION_INFO_V1(mr_slice_marks);
PG_FUNCTION_INFO_V1(mr_stream_change);
PG_FUNCTION_INFO_V1(mr_aggregate_window_parts);

/*
 * Ranges
 */

#define MAX_UNSORTED 65536

TimestampTz
mr_plus_interval(TimestampTz ts, const Interval *interval, int sign)
{
	/* Years that a timestamp does not reach are no matter here. */
	const TimestampTz margin = INT64CONST(200) * 366 * USECS_PER_DAY;
	double approximate;

	if (TIMESTAMP_NOT_FINITE(ts))
		return ts;
	approximate = (double) ts +
		sign *
			((interval->month * 30.436875 + interval->day) * (double) USECS_PER_DAY +
			 (double) interval->time);
	if (approximate < (double) (MIN_TIMESTAMP + margin))
		return DT_NOBEGIN;
	if (approximate > (double) (END_TIMESTAMP - margin))
		return DT_NOEND;
	return DatumGetTimestampTz(
		DirectFunctionCall2(sign < 0 ? timestamptz_mi_interval : timestamptz_pl_interval,
							TimestampTzGetDatum(ts), IntervalPGetDatum(interval)));
}

MrRanges *
mr_ranges_new(void)
{
	MrRanges *ranges = palloc0(sizeof(MrRanges));

	ranges->context = CurrentMemoryContext;
	return ranges;
}

static int
compare_ranges(const void *a, const void *b)
{
	const MrRange *x = a, *y = b;

	if (x->from != y->from)
		return x->from < y->from ? -1 : 1;
	return x->to < y->to ? -1 : x->to > y->to;
}

static int
compare_gaps(const void *a, const void *b)
{
	uint64 x = *(const uint64 *) a, y = *(const uint64 *) b;

	return x < y ? -1 : x > y;
}

/* Join neighbours between which there is no more than the given time. */
static void
join_near(MrRanges *ranges, uint64 gap)
{
	int n = 0;

	for (int i = 0; i < ranges->n; i++)
	{
		MrRange *last = &ranges->items[n - 1], *range = &ranges->items[i];

		if (n > 0 && (range->from <= last->end || (uint64) range->from - (uint64) last->end <= gap))
		{
			last->to = Max(last->to, range->to);
			last->end = Max(last->end, range->end);
		}
		else
			ranges->items[n++] = *range;
	}
	ranges->n = ranges->n_sorted = n;
}

void
mr_ranges_join(MrRanges *ranges, int limit)
{
	uint64 *gaps;

	if (ranges->n > ranges->n_sorted)
		qsort(ranges->items, ranges->n, sizeof(MrRange), compare_ranges);
	join_near(ranges, 0);
	if (ranges->n <= limit)
		return;
	gaps = palloc(ranges->n * sizeof(uint64));
	for (int i = 1; i < ranges->n; i++)
		gaps[i - 1] = (uint64) ranges->items[i].from - (uint64) ranges->items[i - 1].end;
	qsort(gaps, ranges->n - 1, sizeof(uint64), compare_gaps);
	join_near(ranges, gaps[ranges->n - 1 - limit]);
	pfree(gaps);
}

void
mr_ranges_add(MrRanges *ranges, TimestampTz from, TimestampTz to, TimestampTz end)
{
	MrRange *last = ranges->n ? &ranges->items[ranges->n - 1] : NULL;

	/* Rows come in about the order of time. */
	if (last && from >= last->from && from <= last->end)
	{
		last->to = Max(last->to, to);
		last->end = Max(last->end, end);
		return;
	}
	if (ranges->n == MAX_UNSORTED)
		mr_ranges_join(ranges, MAX_UNSORTED / 2);
	if (ranges->n == ranges->n_max)
	{
		ranges->n_max = Max(64, ranges->n_max * 2);
		ranges->items = ranges->items ? repalloc(ranges->items, ranges->n_max * sizeof(MrRange))
									  : MemoryContextAlloc(ranges->context, ranges->n_max * sizeof(MrRange));
	}
	ranges->items[ranges->n++] = (MrRange){from, to, end};
}

/* From the window of one time to that of another; of sessions with a gap on both sides. */
static void
add_window_range(MrRanges *ranges, const MrWindow *window, TimestampTz first, TimestampTz last)
{
	TimestampTz from, to, end;

	if (window->kind == MR_SESSION)
	{
		from = mr_plus_interval(first, &window->size, -1);
		to = end = mr_plus_interval(last, &window->size, 1);
	}
	else
	{
		from = mr_pane(window, first, &end);
		to = mr_pane(window, last, &end);
	}
	mr_ranges_add(ranges, from, to, end);
}

/* Is the source partitioned by range of the one column that is the event time? */
static bool
is_partitioned_by(const MrScan *scan, Oid source)
{
	Relation rel = table_open(source, AccessShareLock);
	PartitionKey key = RelationGetPartitionKey(rel);
	bool result = false;

	if (key && key->strategy == PARTITION_STRATEGY_RANGE && key->partnatts == 1 && key->partattrs[0] > 0 &&
		IsA(scan->time, Var))
		result = strcmp(NameStr(TupleDescAttr(scan->desc, ((Var *) scan->time)->varattno - 1)->attname),
						NameStr(TupleDescAttr(RelationGetDescr(rel), key->partattrs[0] - 1)->attname)) == 0;
	table_close(rel, NoLock);
	return result;
}

/* The partition of the source itself in which rel lies: rel or one of its ancestors. */
static Oid
partition_below(Oid source, Oid rel)
{
	ListCell *lc;

	if (rel == source)
		return InvalidOid;
	foreach (lc, get_partition_ancestors(rel))
	{
		if (lfirst_oid(lc) == source)
			return rel;
		rel = lfirst_oid(lc);
	}
	return InvalidOid;
}

void
mr_partition_ranges(const MrScan *scan, Oid source, Oid rel, MrRanges *ranges)
{
	static Oid types[2] = {OIDOID, OIDOID};
	Datum values[2] = {ObjectIdGetDatum(source), ObjectIdGetDatum(partition_below(source, rel))};
	bool is_known = false, isnull;
	TimestampTz from = DT_NOBEGIN, to = DT_NOEND;
	MrGuard guard;

	if (OidIsValid(DatumGetObjectId(values[1])) && is_partitioned_by(scan, source))
	{
		mr_enter_catalog(&guard, "sources");
		SPI_connect();
		mr_exec_args("SELECT from_time, to_time FROM " MR_SCHEMA
					 ".partitions($1::pg_catalog.regclass) WHERE partition = $2 AND from_time IS NOT NULL",
					 SPI_OK_SELECT, false, 2, types, values, NULL);
		is_known = SPI_processed == 1;
		if (is_known)
		{
			from =
				DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
			to = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
		}
		SPI_finish();
		mr_leave(&guard);
	}
	if (is_known)
		add_window_range(ranges, &scan->window, from, TIMESTAMP_IS_NOEND(to) ? to : to - 1);
	else
	{
		mr_ranges_add(ranges, DT_NOBEGIN, DT_NOEND, DT_NOEND);
		ranges->with_null = true;
	}
}

/*
 * Marks
 */

/* Columns of millrace.mark */
enum
{
	MARK_STATE,
	MARK_XID,
	MARK_FROM,
	MARK_TO,
	MARK_REASON,
	N_MARK_COLUMNS
};

void
mr_mark(Oid state, TimestampTz from, TimestampTz to, const char *reason)
{
	Relation rel = table_open(mr_catalog("mark"), RowExclusiveLock);
	Datum values[N_MARK_COLUMNS];
	bool nulls[N_MARK_COLUMNS] = {false};
	HeapTuple tuple;

	values[MARK_STATE] = ObjectIdGetDatum(state);
	values[MARK_XID] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[MARK_FROM] = TimestampTzGetDatum(from);
	values[MARK_TO] = TimestampTzGetDatum(to);
	values[MARK_REASON] = CStringGetTextDatum(reason);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

void
mr_mark_ranges(Oid state, MrRanges *ranges, const char *reason)
{
	bool all = false;

	mr_ranges_join(ranges, MR_MAX_MARKS);
	for (int i = 0; i < ranges->n; i++)
	{
		mr_mark(state, ranges->items[i].from, ranges->items[i].to, reason);
		all = all || (ranges->items[i].from == DT_NOBEGIN && ranges->items[i].to == DT_NOEND);
	}
	if (ranges->with_null && !all)
		mr_mark(state, DT_NOEND, DT_NOBEGIN, reason);
}

/* The marks of an aggregate that the snapshot shows, removed; those outside first … last stay, and are cut. */
static void
take_marks(Oid state, Snapshot snapshot, TimestampTz first, TimestampTz last, const MrWindow *window,
		   MrRanges *ranges)
{
	ScanKeyData key;
	Relation rel = table_open(mr_catalog("mark"), RowExclusiveLock);
	SysScanDesc scan;
	HeapTuple tuple;
	bool is_all = first == DT_NOBEGIN && last == DT_NOEND, only_null = first > last;

	ScanKeyInit(&key, MARK_STATE + 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(state));
	scan = systable_beginscan(rel, mr_catalog("mark_state"), true, snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Datum values[N_MARK_COLUMNS];
		bool nulls[N_MARK_COLUMNS];
		TimestampTz from, to, end;

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		from = DatumGetTimestampTz(values[MARK_FROM]);
		to = DatumGetTimestampTz(values[MARK_TO]);
		if (only_null ? from <= to : !is_all && (from > to || from > last || to < first))
			continue;
		if (from > to || (from == DT_NOBEGIN && to == DT_NOEND && is_all))
			ranges->with_null = true;
		if (!only_null && !is_all && from < first)
			mr_mark(state, from, first - 1, TextDatumGetCString(values[MARK_REASON]));
		if (!only_null && !is_all && to > last)
			mr_mark(state, last + 1, to, TextDatumGetCString(values[MARK_REASON]));
		if (!is_all && from == DT_NOBEGIN && to == DT_NOEND)
			mr_mark(state, DT_NOEND, DT_NOBEGIN, TextDatumGetCString(values[MARK_REASON]));
		CatalogTupleDelete(rel, &tuple->t_self);
		if (from > to)
			continue;
		from = Max(from, first);
		to = Min(to, last);
		if (window->kind == MR_SESSION)
			mr_ranges_add(ranges, from, to, to);
		else
		{
			/* The first window that starts in the range, and the last. */
			TimestampTz start = mr_pane(window, from, &end);

			from = start < from ? end : from;
			to = mr_pane(window, to, &end);
			if (from <= to)
				mr_ranges_add(ranges, from, to, end);
		}
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
}

/*
 * Refreshing
 */

typedef struct Refresh
{
	char *name;
	bool is_pipe;
	bool is_scorer;
	bool is_rollup;
	bool is_history;
	Oid source;
	Oid target;
	char *command;
	Oid definition;
	Oid state;
	Oid delta;
	Oid owner;
	ArrayType *settings;
	char *status;
	char *query;
	bool has_watermark;
	Interval delay;
	TimestampTz retained_from;
	bool keeps_late; /* late rows are in the states */

	Snapshot snapshot;
	MrWindow window;
	char *time_text;
	TimestampTz closed_bound; /* as MrRefreshRange has it */
	SPIPlanPtr remove;
	SPIPlanPtr equal;
	SPIPlanPtr hull;
	SPIPlanPtr live;
	MrTimes panes; /* that were written, for alerts */
	uint64 n_written;
} Refresh;

static Datum
column(int n, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n, isnull);
}

static char *
text_column(int n)
{
	return SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, n);
}

/* The stream's row, in the current memory context. */
static void
read_stream(Refresh *refresh)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(refresh->name)}, value;
	MemoryContext context = CurrentMemoryContext, spi;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args(
		"SELECT t.kind, t.source, t.target, t.command, t.definition, t.state, t.delta,"
		" coalesce(c.relowner, t.owner), t.settings, t.status, t.query, t.watermark, t.retained_from,"
		" t.late_policy = 'update' FROM " MR_SCHEMA ".stream t LEFT JOIN pg_catalog.pg_class c ON c.oid = "
		"CASE t.kind WHEN 'scorer' THEN t.target ELSE t.state"
		" END WHERE t.name = $1",
		SPI_OK_SELECT, false, 1, types, values, NULL);
	if (SPI_processed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", refresh->name)));
	if (strcmp(text_column(1), "alert") == 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("stream \"%s\" is an alert and has nothing to refresh", refresh->name),
				 errhint("Refresh what it reads.")));
	spi = MemoryContextSwitchTo(context);
	refresh->is_pipe = strcmp(text_column(1), "pipe") == 0;
	refresh->is_scorer = strcmp(text_column(1), "scorer") == 0;
	refresh->is_rollup = strcmp(text_column(1), "rollup") == 0;
	refresh->is_history = strcmp(text_column(1), "history") == 0;
	refresh->source = DatumGetObjectId(column(2, &isnull));
	refresh->target = DatumGetObjectId(column(3, &isnull));
	refresh->command = text_column(4);
	refresh->definition = DatumGetObjectId(column(5, &isnull));
	refresh->state = DatumGetObjectId(column(6, &isnull));
	refresh->delta = DatumGetObjectId(column(7, &isnull));
	refresh->owner = DatumGetObjectId(column(8, &isnull));
	refresh->settings = DatumGetArrayTypePCopy(column(9, &isnull));
	refresh->status = text_column(10);
	refresh->query = text_column(11);
	value = column(12, &isnull);
	refresh->has_watermark = !isnull;
	if (!isnull)
		refresh->delay = *DatumGetIntervalP(value);
	refresh->retained_from = DatumGetTimestampTz(column(13, &isnull));
	if (isnull)
		refresh->retained_from = DT_NOBEGIN;
	refresh->keeps_late = DatumGetBool(column(14, &isnull));
	MemoryContextSwitchTo(spi);
	SPI_finish();
	mr_leave(&guard);
}

/* NAME_query went with a table that it named: make it again, from the text that was given. */
static void
remake_definition(Refresh *refresh)
{
	char *view = quote_qualified_identifier(get_namespace_name(get_rel_namespace(refresh->state)),
											psprintf("%s_query", refresh->name));
	char *end = refresh->query + strlen(refresh->query);
	MrGuard guard;

	while (end > refresh->query && strchr("; \n\t", end[-1]))
		*--end = '\0';
	mr_enter(&guard, refresh->owner, refresh->settings);
	SPI_connect();
	mr_exec(psprintf("CREATE VIEW %s AS %s", view, refresh->query), SPI_OK_UTILITY, false);
	mr_exec(psprintf("COMMENT ON VIEW %s IS 'Query of continuous aggregate %s, computed from the source'",
					 view, refresh->name),
			SPI_OK_UTILITY, false);
	SPI_finish();
	mr_leave(&guard);
	CommandCounterIncrement();
	refresh->definition =
		get_relname_relid(psprintf("%s_query", refresh->name), get_rel_namespace(refresh->state));
	if (mr_read_definition(refresh->definition)->source != refresh->source)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the query of continuous aggregate \"%s\" reads another source than it did",
						refresh->name),
				 errhint("Create it again with " MR_SCHEMA ".create_continuous_aggregate.")));
	mr_stream_set(refresh->name, refresh->source, NULL, NULL, refresh->definition, NULL);
}

static SPIPlanPtr
prepare(const char *sql, int n_args)
{
	static Oid types[6] = {TIMESTAMPTZOID, TIMESTAMPTZOID, BOOLOID,
						   TIMESTAMPTZOID, TIMESTAMPTZOID, TIMESTAMPTZOID};
	SPIPlanPtr plan = sql ? SPI_prepare_cursor(sql, n_args, types, CURSOR_OPT_CUSTOM_PLAN) : NULL;

	if (sql && plan == NULL)
		elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	return plan;
}

/* Runs a statement with the refresh's snapshot; returns rows. */
static uint64
run(Refresh *refresh, SPIPlanPtr plan, const MrRefreshRange *range, const MrRange *mark)
{
	Datum values[6] = {TimestampTzGetDatum(mark->from),		  TimestampTzGetDatum(mark->to),
					   BoolGetDatum(range->with_null),		  TimestampTzGetDatum(range->closed_bound),
					   TimestampTzGetDatum(range->keep_from), TimestampTzGetDatum(range->keep_to)};
	char nulls[6] = {' ', ' ', ' ', range->closed_bound == DT_NOBEGIN ? 'n' : ' ', ' ', ' '};
	int rc = SPI_execute_snapshot(plan, values, nulls, refresh->snapshot, InvalidSnapshot, false, true, 0);

	if (rc < 0)
		elog(ERROR, "unexpected result of a refresh: %s", SPI_result_code_string(rc));
	return SPI_processed;
}

/* Sessions that touch the mark may reach beyond it: widen keep_from and keep_to until they do not. */
static void
widen(Refresh *refresh, MrRefreshRange *range, const MrRange *mark)
{
	for (;;)
	{
		TimestampTz from, to;
		bool isnull;

		(void) run(refresh, refresh->hull, range, mark);
		from = DatumGetTimestampTz(column(1, &isnull));
		to = DatumGetTimestampTz(column(2, &isnull));
		if (isnull || (from >= range->keep_from && to <= range->keep_to))
			break;
		range->keep_from = Min(range->keep_from, from);
		range->keep_to = Max(range->keep_to, to);
	}
}

/* What is to be read for marks: from the first to the last of them. */
static MrRefreshRange
range_of(Refresh *refresh, const MrRange *marks, int n, bool with_null)
{
	const MrRange *last = &marks[n - 1];
	MrRefreshRange range = {.from = marks->from,
							.to = last->end,
							.with_null = with_null,
							.keep_from = marks->from,
							.keep_to = last->to,
							.only = n > 1 ? marks : NULL,
							.n_only = n > 1 ? n : 0,
							.closed_bound = refresh->closed_bound};

	if (last->to == DT_NOBEGIN)
		range.to = MIN_TIMESTAMP;
	return range;
}

static MrAggregatePlan *
plan_range(Refresh *refresh, const MrRefreshRange *range)
{
	List *depends = NIL;

	return mr_aggregate_plan_source(refresh->definition, refresh->state, range, CurrentMemoryContext,
									&depends);
}

/* Compute the windows of marks, which the source is read for once, as the stream's owner.  Sessions: of one. */
static void
refresh_range(Refresh *refresh, const MrRange *marks, int n, bool with_null)
{
	bool is_session = refresh->window.kind == MR_SESSION;
	MrRefreshRange range = range_of(refresh, marks, n, with_null);
	MrAggregateRun run_states = {.gone_bound = DT_NOBEGIN,
								 .closed = DT_NOBEGIN,
								 .part = MR_PART_BOTH,
								 .refresh = &range,
								 .panes = &refresh->panes};
	uint64 n_final = 0;

	if (is_session && marks->from <= marks->to)
		widen(refresh, &range, marks);
	if (is_session)
	{
		range.from = range.keep_from;
		range.to = TIMESTAMP_NOT_FINITE(range.keep_to) ? range.keep_to : range.keep_to + 1;
		if (range.to == DT_NOBEGIN)
			range.to = MIN_TIMESTAMP;
	}
	for (int i = 0; i < n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		n_final += run(refresh, refresh->remove, &range, &marks[i]);
	}
	if (is_session)
	{
		range.keep_from = marks->from;
		range.keep_to = marks->to;
	}
	mr_aggregate_run(plan_range(refresh, &range), InvalidOid, NULL, &run_states);
	CommandCounterIncrement();
	refresh->n_written += run_states.n_written;
	/* What was shown of sessions as final stayed where it was. */
	if (is_session && range.closed_bound != DT_NOBEGIN)
		(void) run(refresh, refresh->live, &range, marks);
	if (n_final == 0 && !(is_session && range.closed_bound != DT_NOBEGIN))
		return;
	for (int i = 0; i < n; i++)
		(void) run(refresh, refresh->equal, &range, &marks[i]);
}

static double
cost(Refresh *refresh, const MrRange *marks, int n)
{
	MrRefreshRange range = range_of(refresh, marks, n, false);

	return mr_aggregate_cost(plan_range(refresh, &range));
}

/*
 * How many of the marks, the first ones, to read the source for at once: all, if that costs no more than one by one, which
 * is so where no index helps; else half of them, and so on.  A sample tells what one costs.
 */
#define COST_SAMPLE 8
#define ASK_AGAIN 16

static int
marks_at_once(Refresh *refresh, const MrRange *marks, int n)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace costs", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	if (refresh->window.kind == MR_SESSION)
		n = 1;
	while (n > 1)
	{
		int n_sample = Min(n, COST_SAMPLE);
		double sum = 0, together;

		for (int i = 0; i < n_sample; i++)
			sum += cost(refresh, &marks[(int64) i * n / n_sample], 1);
		sum *= (double) n / n_sample;
		together = cost(refresh, marks, n);
		MemoryContextReset(context);
		if (together <= sum)
			break;
		n = sum < together / 4 ? 1 : n / 2;
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return n;
}

/* Which windows are closed for this transaction, as its batches would see it. */
static TimestampTz
closed_bound(Refresh *refresh)
{
	MrSeen *seen;
	TimestampTz closed_to;

	if (!refresh->has_watermark || strcmp(refresh->status, "filling") == 0)
		return DT_NOBEGIN;
	seen = mr_watermark_seen(refresh->state);
	closed_to = Max(mr_watermark(seen, &refresh->delay), seen->closed_to);
	if (closed_to == DT_NOBEGIN)
		return closed_to;
	if (refresh->window.kind == MR_SESSION)
		return mr_plus_interval(mr_plus_interval(closed_to, &refresh->window.size, -1), &refresh->window.size,
								-1);
	return mr_last_pane(&refresh->window, mr_last_closed(&refresh->window, closed_to));
}

/*
 * Windows that are not to be touched: their states were dropped, or rows from which they were computed are gone with a
 * partition.  What is left of the ranges.
 */
static MrRanges *
without_gone(Refresh *refresh, MrRanges *ranges, bool is_forced)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(refresh->source)};
	MrRanges *left = mr_ranges_new();
	const MrWindow *window = &refresh->window;
	TimestampTz retained =
		refresh->retained_from == DT_NOBEGIN ? DT_NOBEGIN : mr_last_closed(window, refresh->retained_from);
	TimestampTz *gone;
	int n_gone, n_skipped = 0;
	MemoryContext context = CurrentMemoryContext, spi;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT g.from_time, g.to_time FROM " MR_SCHEMA
				 ".gone_range g WHERE g.source = $1 ORDER BY 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	n_gone = is_forced ? 0 : SPI_processed;
	spi = MemoryContextSwitchTo(context);
	gone = palloc((n_gone + 1) * 2 * sizeof(TimestampTz));
	for (int i = 0; i < n_gone; i++)
		for (int j = 0; j < 2; j++)
		{
			bool isnull;

			gone[2 * i + j] = DatumGetTimestampTz(
				SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, j + 1, &isnull));
		}
	MemoryContextSwitchTo(spi);
	SPI_finish();
	mr_leave(&guard);

	left->with_null = ranges->with_null;
	for (int i = 0; i < ranges->n; i++)
	{
		MrRange range = ranges->items[i];
		TimestampTz end;

		if (retained != DT_NOBEGIN && range.from <= retained)
		{
			if (range.to <= retained)
				continue;
			if (window->kind == MR_SESSION)
				range.from = retained + 1;
			else
				(void) mr_pane(window, retained, &range.from);
		}
		for (int j = 0; j < n_gone && range.from <= range.to; j++)
		{
			TimestampTz gone_from = gone[2 * j], gone_to = gone[2 * j + 1];

			if (gone_to <= range.from || gone_from >= range.end)
				continue;
			n_skipped++;
			/* Panes that are whole before it. */
			if (range.from < gone_from)
			{
				TimestampTz start = window->kind == MR_SESSION ? gone_from : mr_pane(window, gone_from, &end);

				if (range.from < start)
					mr_ranges_add(left, range.from,
								  window->kind == MR_SESSION ? start - 1 : mr_pane(window, start - 1, &end),
								  start);
			}
			/* Those that start when it is over. */
			if (gone_to == DT_NOEND)
				range.from = DT_NOEND;
			else
			{
				TimestampTz start = window->kind == MR_SESSION ? gone_to : mr_pane(window, gone_to, &end);

				range.from = start < gone_to ? end : start;
			}
			if (range.from == DT_NOEND)
				range.to = DT_NOBEGIN;
		}
		if (range.from <= range.to)
			mr_ranges_add(left, range.from, range.to, range.end);
	}
	if (n_skipped > 0)
		ereport(NOTICE,
				(errmsg("windows of \"%s\" whose rows are gone were left as they are", refresh->name),
				 errdetail("A partition of %s that held their rows was detached or dropped.",
						   get_rel_name(refresh->source)),
				 errhint("Name a time from and to which they are to be computed all the same.")));
	return left;
}

/* The greatest event time of what was computed, if it moves the watermark. */
static void
note_max_time(Refresh *refresh, const MrRanges *ranges)
{
	static Oid types[2] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum values[2];
	TimestampTz from = DT_NOEND, end = DT_NOBEGIN, max_time;
	MrSeen *seen;
	SPIPlanPtr plan;
	bool isnull;
	MrGuard guard;

	if (!refresh->has_watermark)
		return;
	seen = mr_watermark_seen(refresh->state);
	for (int i = 0; i < ranges->n; i++)
	{
		from = Min(from, ranges->items[i].from);
		end = Max(end, Max(ranges->items[i].to, ranges->items[i].end));
	}
	if (end <= seen->max_time)
		return;
	values[0] = TimestampTzGetDatum(Max(from, seen->max_time));
	values[1] = TimestampTzGetDatum(Min(end, GetCurrentTimestamp() + mr_max_future_s * USECS_PER_SEC));
	mr_enter(&guard, refresh->owner, refresh->settings);
	SPI_connect();
	plan = SPI_prepare_cursor(
		psprintf("SELECT pg_catalog.max(%s) FROM %s WHERE %s >= $1 AND %s <= $2", refresh->time_text,
				 quote_qualified_identifier(get_namespace_name(get_rel_namespace(refresh->source)),
											get_rel_name(refresh->source)),
				 refresh->time_text, refresh->time_text),
		2, types, CURSOR_OPT_CUSTOM_PLAN);
	if (plan == NULL ||
		SPI_execute_snapshot(plan, values, NULL, refresh->snapshot, InvalidSnapshot, true, false, 0) < 0)
		elog(ERROR, "could not read the greatest event time");
	max_time = DatumGetTimestampTz(column(1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	if (!isnull && !TIMESTAMP_NOT_FINITE(max_time))
		mr_watermark_write(seen, DT_NOBEGIN, max_time);
}

static void
refresh_ranges(Refresh *refresh, MrRanges *ranges)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace refresh", ALLOCSET_DEFAULT_SIZES);
	MrRange nothing = {DT_NOEND, DT_NOBEGIN, DT_NOBEGIN};
	double told = mr_now_ms();
	int n_alone = 0;
	MrRefreshSql sql;
	MrGuard guard;

	mr_enter(&guard, refresh->owner, refresh->settings);
	SPI_connect();
	mr_refresh_sql(refresh->definition, refresh->state, refresh->delta, &sql);
	refresh->remove = prepare(sql.remove, sql.hull ? 6 : 4);
	refresh->equal = prepare(sql.equal, 2);
	refresh->hull = prepare(sql.hull, 6);
	refresh->live = prepare(sql.live, 2);
	if (ranges->n == 0 && ranges->with_null)
		refresh_range(refresh, &nothing, 1, true);
	for (int i = 0; i < ranges->n;)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		int n = n_alone > 0 ? 1 : marks_at_once(refresh, &ranges->items[i], ranges->n - i);

		CHECK_FOR_INTERRUPTS();
		refresh_range(refresh, &ranges->items[i], n, i == 0 && ranges->with_null);
		i += n;
		/* Where one is best alone, so are the next ones: asking costs as much as planning ten. */
		n_alone = n > 1 ? 0 : n_alone > 0 ? n_alone - 1 : ASK_AGAIN;
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
		if (mr_now_ms() - told < 5000)
			continue;
		told = mr_now_ms();
		ereport(NOTICE,
				(errmsg("refreshing \"%s\": %d of %d ranges of windows", refresh->name, i, ranges->n)));
	}
	SPI_finish();
	mr_leave(&guard);
	MemoryContextDelete(context);
}

static bool
is_status(const Refresh *refresh, const char *status)
{
	return strcmp(refresh->status, status) == 0;
}

static void
check_isolation(const char *name)
{
	if (IsolationUsesXactSnapshot())
		ereport(
			ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("stream \"%s\" cannot be refreshed in a transaction of isolation level REPEATABLE READ",
					name),
			 errdetail("It must see what has been committed when it has its lock."),
			 errhint("Use a transaction of isolation level READ COMMITTED.")));
}

/* Is there a window still to be filled, as this transaction leaves it? */
static bool
is_to_be_filled(Oid state)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(state)};
	bool found;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT FROM " MR_SCHEMA ".mark WHERE state = $1 AND reason = 'filling' LIMIT 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	found = SPI_processed > 0;
	SPI_finish();
	mr_leave(&guard);
	return found;
}

/* Compute the marked windows, or (forced) all from first to last. */
static uint64
refresh_aggregate(Refresh *refresh, TimestampTz first, TimestampTz last, bool is_forced)
{
	MrDefinition *def;
	MrRanges *ranges = mr_ranges_new();

	mr_times_init(&refresh->panes);
	mr_stream_lock(refresh->name);
	read_stream(refresh);
	if (get_rel_relkind(refresh->definition) == '\0')
		remake_definition(refresh);
	/* Read as its owner, for its functions may be in schemas of his. */
	def = mr_read_definition(refresh->definition);
	refresh->window = def->window;
	refresh->time_text = mr_time_text(def);
	refresh->closed_bound = closed_bound(refresh);

	CommandCounterIncrement();
	refresh->snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(refresh->snapshot);
	if (is_forced)
	{
		MrRanges *forced = mr_ranges_new();

		add_window_range(forced, &refresh->window, first, last);
		take_marks(refresh->state, refresh->snapshot, forced->items[0].from, forced->items[0].to,
				   &refresh->window, ranges);
		ranges = forced;
	}
	else
		take_marks(refresh->state, refresh->snapshot, first, last, &refresh->window, ranges);
	/* Rows that were not taken may join sessions that no mark touches. */
	if (refresh->window.kind == MR_SESSION && !refresh->keeps_late && ranges->n > 0)
		mr_ranges_add(ranges, DT_NOBEGIN, DT_NOEND, DT_NOEND);
	mr_ranges_join(ranges, INT_MAX);
	ranges = without_gone(refresh, ranges, is_forced || is_status(refresh, "filling"));
	refresh_ranges(refresh, ranges);
	if (refresh->window.kind != MR_SESSION)
		mr_rollup_mark(refresh->target, &refresh->window, ranges);
	note_max_time(refresh, ranges);
	mr_late_recomputed(refresh->name, refresh->source, refresh->owner, refresh->settings, refresh->time_text,
					   ranges);
	PopActiveSnapshot();
	UnregisterSnapshot(refresh->snapshot);
	if (((is_status(refresh, "failed") && !is_forced && first == DT_NOBEGIN && last == DT_NOEND) ||
		 is_status(refresh, "filling")) &&
		!is_to_be_filled(refresh->state))
		mr_stream_set(refresh->name, refresh->source, "running", "", InvalidOid, NULL);
	mr_alerts_changed(refresh->source, refresh->target, &refresh->panes);
	return refresh->n_written;
}

/* What a pipe or a scorer does with the rows that it did not take. */
static uint64
replay(void *arg, Oid relid, Tuplestorestate *rows)
{
	Refresh *refresh = arg;
	MrScoreCounts counts = {0};
	List *depends = NIL;

	if (refresh->is_pipe)
		return mr_run_pipe(refresh->command, refresh->target, relid, rows);
	return mr_scorer_run(
		mr_scorer_plan(refresh->command, refresh->target, relid, CurrentMemoryContext, &depends), rows,
		&counts);
}

/* refresh(name text, from_time timestamptz, to_time timestamptz) returns bigint */
Datum
mr_refresh(PG_FUNCTION_ARGS)
{
	Refresh refresh = {0};
	TimestampTz first = PG_ARGISNULL(1) ? DT_NOBEGIN : PG_GETARG_TIMESTAMPTZ(1);
	TimestampTz end = PG_ARGISNULL(2) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(2);
	bool is_forced = !PG_ARGISNULL(1) || !PG_ARGISNULL(2);

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("name of a stream must not be null")));
	refresh.name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	mr_check_stream_owner(refresh.name);
	read_stream(&refresh);
	if (is_forced && first >= end)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("from_time must be before to_time in a refresh of \"%s\"", refresh.name)));
	if (is_forced && (refresh.is_pipe || refresh.is_scorer || refresh.is_history))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" has no windows",
						refresh.is_pipe			? "pipe"
							: refresh.is_scorer ? "scorer"
												: "history",
						refresh.name),
				 errhint("Call " MR_SCHEMA ".refresh with its name only.")));
	check_isolation(refresh.name);
	if (refresh.is_history)
	{
		mr_track_refresh(refresh.name);
		PG_RETURN_INT64(0);
	}
	if (refresh.is_rollup)
	{
		/* What it reads is refreshed by its own name; this is what follows for the rollup. */
		if (is_forced)
			mr_mark(refresh.state, first, end == DT_NOEND ? end : end - 1, "refresh");
		CommandCounterIncrement();
		PG_RETURN_INT64((int64) mr_rollup_settle(refresh.state));
	}
	if (refresh.is_pipe || refresh.is_scorer)
	{
		refresh.n_written =
			mr_replay_rows(refresh.name, refresh.source, refresh.owner, refresh.settings, replay, &refresh);
		if (is_status(&refresh, "failed"))
			mr_stream_set(refresh.name, refresh.source, "running", "", InvalidOid, NULL);
		PG_RETURN_INT64((int64) refresh.n_written);
	}
	PG_RETURN_INT64((int64) refresh_aggregate(&refresh, first, end == DT_NOEND ? end : end - 1, is_forced));
}

/* _fill(name text, from_time timestamptz, to_time timestamptz) returns bigint: compute what is marked in this range */
Datum
mr_fill(PG_FUNCTION_ARGS)
{
	Refresh refresh = {.name = text_to_cstring(PG_GETARG_TEXT_PP(0))};

	mr_check_stream_owner(refresh.name);
	read_stream(&refresh);
	check_isolation(refresh.name);
	PG_RETURN_INT64(
		(int64) refresh_aggregate(&refresh, PG_GETARG_TIMESTAMPTZ(1), PG_GETARG_TIMESTAMPTZ(2), false));
}

/*
 * _slice_marks(name text, times timestamptz[]): divide the mark of an aggregate that is to be filled at these times, in
 * order; of sliding and tumbling windows at the start of the next one
 */
Datum
mr_slice_marks(PG_FUNCTION_ARGS)
{
	Refresh refresh = {.name = text_to_cstring(PG_GETARG_TEXT_PP(0))};
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(1);
	MrDefinition *def;
	TimestampTz from = DT_NOBEGIN;
	ScanKeyData key;
	Relation rel;
	SysScanDesc scan;
	HeapTuple tuple;
	Snapshot snapshot;
	Datum *times;
	int n_times;

	mr_check_stream_owner(refresh.name);
	mr_stream_lock(refresh.name);
	read_stream(&refresh);
	def = mr_read_definition(refresh.definition);
	deconstruct_array(array, TIMESTAMPTZOID, sizeof(TimestampTz), true, TYPALIGN_DOUBLE, &times, NULL,
					  &n_times);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyInit(&key, MARK_STATE + 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(refresh.state));
	rel = table_open(mr_catalog("mark"), RowExclusiveLock);
	scan = systable_beginscan(rel, mr_catalog("mark_state"), true, snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Datum values[N_MARK_COLUMNS];
		bool nulls[N_MARK_COLUMNS];

		heap_deform_tuple(tuple, RelationGetDescr(rel), values, nulls);
		if (DatumGetTimestampTz(values[MARK_FROM]) != DT_NOBEGIN ||
			DatumGetTimestampTz(values[MARK_TO]) != DT_NOEND ||
			strcmp(TextDatumGetCString(values[MARK_REASON]), "filling") != 0)
			continue;
		CatalogTupleDelete(rel, &tuple->t_self);
		for (int i = 0; i < n_times; i++)
		{
			TimestampTz at = DatumGetTimestampTz(times[i]), end;

			if (TIMESTAMP_NOT_FINITE(at))
				continue;
			if (def->window.kind != MR_SESSION)
				at = mr_pane(&def->window, at, &end);
			if (at <= from)
				continue;
			mr_mark(refresh.state, from, at - 1, "filling");
			from = at;
		}
		mr_mark(refresh.state, from, DT_NOEND, "filling");
		mr_mark(refresh.state, DT_NOEND, DT_NOBEGIN, "filling");
		break;
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	UnregisterSnapshot(snapshot);
	PG_RETURN_VOID();
}

/*
 * _stream_set(name text, status text, window_text text, fill bool): what is not NULL changes; fill: all windows are marked
 */
Datum
mr_stream_change(PG_FUNCTION_ARGS)
{
	Refresh refresh = {0};
	char *status = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char *window_text = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));

	refresh.name = PG_ARGISNULL(0) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(0));
	mr_check_stream_owner(refresh.name);
	read_stream(&refresh);
	mr_stream_set(refresh.name, refresh.source, status, status ? "" : NULL, InvalidOid, window_text);
	if (!PG_ARGISNULL(3) && PG_GETARG_BOOL(3))
		mr_mark(refresh.state, DT_NOBEGIN, DT_NOEND, "filling");
	PG_RETURN_VOID();
}

/*
 * _aggregate_window(definition regclass, OUT kind text, OUT size interval, OUT time_text text, OUT window_text text): the
 * window of a definition (size of a session: the gap), and texts over columns of its source
 */
Datum
mr_aggregate_window_parts(PG_FUNCTION_ARGS)
{
	static const char *const kinds[] = {[MR_TUMBLE] = "tumble", [MR_HOP] = "hop", [MR_SESSION] = "session"};
	MrDefinition *def = mr_read_definition(PG_GETARG_OID(0));
	TupleDesc desc;
	bool nulls[4] = {false};
	Datum values[4] = {CStringGetTextDatum(kinds[def->window.kind]), IntervalPGetDatum(&def->window.size),
					   CStringGetTextDatum(mr_time_text(def)), CStringGetTextDatum(mr_window_text(def))};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}
