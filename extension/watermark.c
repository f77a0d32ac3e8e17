/*
 * watermark.c: how far the event time of an aggregate has come, and which windows are therefore final.
 *
 * Each batch of an aggregate with a watermark leaves a row of millrace.progress when it commits: the greatest event
 * time that it brought (max_time), the watermark that it saw and went by (closed_to), and a horizon.
 *
 * The watermark of a transaction is the greatest max_time that others have committed, less the delay.  It is read with
 * the latest snapshot once the transaction has its xid, and stays the same to its end, so no batch makes its own rows
 * late.  The horizon is the next xid, read after that snapshot.  Every transaction from the horizon on reads its own
 * watermark later than that, and so sees at least as much: to it, rows of windows before closed_to are late, and late
 * rows do not change NAME_final.  Hence once all transactions before the horizon have ended, which is when a reader's
 * snapshot has xmin >= horizon, nothing can change the windows before closed_to any more.  An old open transaction
 * delays finality and never breaks it.
 */
#include "millrace.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_closed_to);
PG_FUNCTION_INFO_V1(mr_max_xid);
PG_FUNCTION_INFO_V1(mr_progress_start);

/* Columns of millrace.progress */
enum
{
	STATE,
	XID,
	MAX_TIME,
	CLOSED_TO,
	HORIZON,
	ARRIVED,
	N_COLUMNS
};

static List *seen_list = NIL; /* MrSeen, in TopTransactionContext */

static void
forget_seen(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_PREPARE || event == XACT_EVENT_ABORT)
		seen_list = NIL;
}

/* Rows of one aggregate, as a snapshot shows them. */
typedef struct ProgressScan
{
	Relation rel;
	SysScanDesc scan;
	Datum values[N_COLUMNS];
	bool nulls[N_COLUMNS];
} ProgressScan;

static void
begin_scan(ProgressScan *progress, Oid state, Snapshot snapshot, LOCKMODE lock)
{
	ScanKeyData key;

	ScanKeyInit(&key, STATE + 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(state));
	progress->rel = table_open(mr_catalog("progress"), lock);
	progress->scan = systable_beginscan(progress->rel, mr_catalog("progress_state"), true, snapshot, 1, &key);
}

static HeapTuple
next_row(ProgressScan *progress)
{
	HeapTuple tuple = systable_getnext(progress->scan);

	if (tuple)
		heap_deform_tuple(tuple, RelationGetDescr(progress->rel), progress->values, progress->nulls);
	return tuple;
}

static void
end_scan(ProgressScan *progress)
{
	systable_endscan(progress->scan);
	table_close(progress->rel, NoLock);
}

static TimestampTz
time_of(const ProgressScan *progress, int column)
{
	return progress->nulls[column] ? DT_NOBEGIN : DatumGetTimestampTz(progress->values[column]);
}

MrSeen *
mr_watermark_seen(Oid state)
{
	static bool registered = false;
	ProgressScan progress;
	Snapshot snapshot;
	FullTransactionId own = GetTopFullTransactionId();
	MemoryContext old;
	MrSeen *seen;
	ListCell *lc;

	foreach (lc, seen_list)
		if (((MrSeen *) lfirst(lc))->state == state)
			return lfirst(lc);
	if (!registered)
		RegisterXactCallback(forget_seen, NULL);
	registered = true;
	old = MemoryContextSwitchTo(TopTransactionContext);
	seen = palloc0(sizeof(MrSeen));
	seen->state = state;
	seen->max_time = seen->closed_to = DT_NOBEGIN;
	seen_list = lappend(seen_list, seen);
	MemoryContextSwitchTo(old);

	snapshot = RegisterSnapshot(GetLatestSnapshot());
	seen->horizon = ReadNextFullTransactionId();
	begin_scan(&progress, state, snapshot, AccessShareLock);
	while (next_row(&progress))
	{
		if (FullTransactionIdEquals(DatumGetFullTransactionId(progress.values[XID]), own))
			continue;
		seen->max_time = Max(seen->max_time, time_of(&progress, MAX_TIME));
		seen->closed_to = Max(seen->closed_to, time_of(&progress, CLOSED_TO));
	}
	end_scan(&progress);
	UnregisterSnapshot(snapshot);
	return seen;
}

TimestampTz
mr_watermark(const MrSeen *seen, const Interval *delay)
{
	if (TIMESTAMP_NOT_FINITE(seen->max_time))
		return DT_NOBEGIN;
	return mr_plus_interval(seen->max_time, delay, -1);
}

void
mr_watermark_write(const MrSeen *seen, TimestampTz watermark, TimestampTz max_time)
{
	Datum values[N_COLUMNS];
	bool nulls[N_COLUMNS] = {false};
	Relation rel;
	HeapTuple tuple;

	nulls[MAX_TIME] = max_time <= seen->max_time;
	nulls[CLOSED_TO] = watermark <= seen->closed_to;
	if (nulls[MAX_TIME] && nulls[CLOSED_TO])
		return;
	values[STATE] = ObjectIdGetDatum(seen->state);
	values[XID] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[MAX_TIME] = TimestampTzGetDatum(max_time);
	values[CLOSED_TO] = TimestampTzGetDatum(watermark);
	values[HORIZON] = FullTransactionIdGetDatum(seen->horizon);
	values[ARRIVED] = TimestampTzGetDatum(GetCurrentTimestamp());
	rel = table_open(mr_catalog("progress"), RowExclusiveLock);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	CatalogTupleInsert(rel, tuple);
	heap_freetuple(tuple);
	table_close(rel, NoLock);
}

FullTransactionId
mr_oldest_running(Snapshot snapshot)
{
	FullTransactionId next = ReadNextFullTransactionId();
	uint32 epoch = EpochFromFullTransactionId(next);

	if (snapshot->xmin > XidFromFullTransactionId(next))
		epoch--;
	return FullTransactionIdFromEpochAndXid(epoch, snapshot->xmin);
}

TimestampTz
mr_closed_to_for(Oid state)
{
	Snapshot snapshot = RegisterSnapshot(GetActiveSnapshot());
	FullTransactionId xmin = mr_oldest_running(snapshot);
	TimestampTz closed_to = DT_NOBEGIN;
	ProgressScan progress;

	begin_scan(&progress, state, snapshot, AccessShareLock);
	while (next_row(&progress))
		if (FullTransactionIdPrecedesOrEquals(DatumGetFullTransactionId(progress.values[HORIZON]), xmin))
			closed_to = Max(closed_to, time_of(&progress, CLOSED_TO));
	end_scan(&progress);
	UnregisterSnapshot(snapshot);
	return closed_to;
}

/* _closed_to(state regclass) returns timestamptz */
Datum
mr_closed_to(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(mr_closed_to_for(PG_GETARG_OID(0)));
}

/*
 * The caller holds the aggregate's lock, so nobody else prunes.  Kept are the row with the greatest max_time, that with
 * the greatest closed_to which is final for every reader to come, and those that are not yet.
 */
void
mr_watermark_prune(Oid state, bool all)
{
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	FullTransactionId xmin = mr_oldest_running(snapshot);
	TimestampTz max_time = DT_NOBEGIN, closed_to = DT_NOBEGIN;
	ProgressScan progress;
	HeapTuple tuple;

	for (int pass = all; pass < 2; pass++)
	{
		bool kept_max = false, kept_closed = false;

		begin_scan(&progress, state, snapshot, RowExclusiveLock);
		while ((tuple = next_row(&progress)) != NULL)
		{
			TimestampTz row_max = time_of(&progress, MAX_TIME), row_closed = time_of(&progress, CLOSED_TO);
			bool is_settled =
				FullTransactionIdPrecedesOrEquals(DatumGetFullTransactionId(progress.values[HORIZON]), xmin);

			if (pass == 0)
			{
				max_time = Max(max_time, row_max);
				if (is_settled)
					closed_to = Max(closed_to, row_closed);
				continue;
			}
			if (!all)
			{
				bool keep = !is_settled && row_closed > closed_to;

				if (row_max == max_time && !kept_max)
					keep = kept_max = true;
				if (is_settled && row_closed == closed_to && closed_to != DT_NOBEGIN && !kept_closed)
					keep = kept_closed = true;
				if (keep)
					continue;
			}
			CatalogTupleDelete(progress.rel, &tuple->t_self);
		}
		end_scan(&progress);
	}
	UnregisterSnapshot(snapshot);
}

/* Transition function of _max_xid(xid8); PostgreSQL 15 has no max(xid8). */
Datum
mr_max_xid(PG_FUNCTION_ARGS)
{
	FullTransactionId a = DatumGetFullTransactionId(PG_GETARG_DATUM(0));
	FullTransactionId b = DatumGetFullTransactionId(PG_GETARG_DATUM(1));

	PG_RETURN_FULLTRANSACTIONID(FullTransactionIdPrecedes(a, b) ? b : a);
}

/*
 * _progress_start(state regclass, max_time timestamptz): the rows that an aggregate was filled with go to max_time; NULL:
 * forget all about it.  For the owner of the state table.
 */
Datum
mr_progress_start(PG_FUNCTION_ARGS)
{
	MrSeen seen = {PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0), DT_NOBEGIN, DT_NOBEGIN};

	if (get_rel_relkind(seen.state) == '\0' || !mr_owns_relation(seen.state, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(seen.state));
	if (PG_ARGISNULL(1))
		mr_watermark_prune(seen.state, true);
	else
	{
		seen.horizon = ReadNextFullTransactionId();
		mr_watermark_write(&seen, DT_NOBEGIN, PG_GETARG_TIMESTAMPTZ(1));
	}
	PG_RETURN_VOID();
}
