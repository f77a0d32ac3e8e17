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
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_inherits.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/partcache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

/*
 * Ranges
 */

#define MAX_UNSORTED 65536

TimestampTz
mr_plus_interval(TimestampTz ts, const Interval *interval, int sign)
{
	/* Years that a timestamp does not reach are no matter here. */
	const TimestampTz margin = INT64CONST(200) * 366 * USECS_PER_DAY;

	if (TIMESTAMP_NOT_FINITE(ts))
		return ts;
	if (sign < 0)
		return ts < MIN_TIMESTAMP + margin
			? DT_NOBEGIN
			: DatumGetTimestampTz(DirectFunctionCall2(timestamptz_mi_interval, TimestampTzGetDatum(ts),
													  IntervalPGetDatum(interval)));
	return ts > END_TIMESTAMP - margin
		? DT_NOEND
		: DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval, TimestampTzGetDatum(ts),
												  IntervalPGetDatum(interval)));
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
					 SPI_OK_SELECT, true, 2, types, values, NULL);
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
