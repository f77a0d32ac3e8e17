/*
 * rollup.c: continuous aggregates over the windows of others, as minute → hour → day.
 *
 * A rollup's query reads the view of a continuous aggregate, or of another rollup, which is its input.  A late row
 * changes the input's finished values, so nothing can be added to a rollup's own; instead it is computed from the
 * input whenever it is read, but for windows that are settled: their rows stand in NAME_state.
 *
 * A window is final when all windows of the input in it are.  millrace._settle stores the rows of windows that became
 * final since the last time, and moves the bound (settled_to, the start of the last such window) there.  All it stores
 * is of one snapshot, and its xmin is kept as "since": whatever changes a settled window later was written by a
 * transaction from there on, and stands as such in the states of the aggregate at the bottom, which keep the greatest
 * xid that went into them.  So those windows are found by xid when the rollup is read, and read live until they are
 * settled again.  Nothing of this is done by a batch, and it does not matter when or whether windows are settled.
 *
 * NAME_final computes a window that is final but not settled from the final rows of the input, which do not change,
 * and what is stored of it later is the same.
 */
#include "aggregate.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/tableam.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "nodes/nodeFuncs.h"
#include "parser/parser.h"
#include "parser/parsetree.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_rollup_parts);
PG_FUNCTION_INFO_V1(mr_rollup_texts);
PG_FUNCTION_INFO_V1(mr_rollup_final_to);
PG_FUNCTION_INFO_V1(mr_rollup_settled_to);
PG_FUNCTION_INFO_V1(mr_rollup_open_from);
PG_FUNCTION_INFO_V1(mr_rollup_last_before);
PG_FUNCTION_INFO_V1(mr_rollup_redo);
PG_FUNCTION_INFO_V1(mr_rollup_redo_inputs);
PG_FUNCTION_INFO_V1(mr_rollup_changed);
PG_FUNCTION_INFO_V1(mr_rollup_put);
PG_FUNCTION_INFO_V1(mr_rollup_cut);
PG_FUNCTION_INFO_V1(mr_settle);
PG_FUNCTION_INFO_V1(mr_rollup_window);
PG_FUNCTION_INFO_V1(mr_federated_rollup_text);
PG_FUNCTION_INFO_V1(mr_rollup_closed);
PG_FUNCTION_INFO_V1(mr_rollup_gone);

/*
 * What a rollup reads
 */

/* A stream of the chain from a rollup down to the aggregate over a table. */
typedef struct Level
{
	Oid view; /* NAME */
	Oid final;
	Oid definition;
	Oid state;
	Oid delta;
	Oid input; /* view; of the aggregate InvalidOid */
	Oid owner;
	ArrayType *settings;
	bool has_retain;
	Interval retain;
	TimestampTz retained_from; /* DT_NOBEGIN: nothing was dropped */
	TimestampTz settled_to;	   /* DT_NOBEGIN: nothing is settled */
	FullTransactionId since;
	MrWindow window;
} Level;

static Level *
read_level(Oid state, Oid view)
{
	static Oid types[2] = {OIDOID, OIDOID};
	Datum values[2] = {ObjectIdGetDatum(state), ObjectIdGetDatum(view)};
	MemoryContext context = CurrentMemoryContext;
	Level *level = NULL;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT t.target, t.final, t.definition, t.state, t.delta, t.inputs[1], c.relowner, "
				 "t.settings, t.retain,"
				 " t.retained_from, r.settled_to, r.since FROM " MR_SCHEMA ".stream t LEFT JOIN " MR_SCHEMA
				 ".rollup r ON r.state = t.state LEFT JOIN pg_catalog.pg_class c ON c.oid = t.state"
				 " WHERE (t.state = $1 OR t.target = $2) AND t.kind IN ('aggregate', 'rollup')",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	if (SPI_processed == 1)
	{
		Datum columns[12];
		bool nulls[12];
		MemoryContext spi = MemoryContextSwitchTo(context);

		heap_deform_tuple(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, columns, nulls);
		level = palloc0(sizeof(Level));
		level->view = DatumGetObjectId(columns[0]);
		level->final = DatumGetObjectId(columns[1]);
		level->definition = DatumGetObjectId(columns[2]);
		level->state = DatumGetObjectId(columns[3]);
		level->delta = nulls[4] ? InvalidOid : DatumGetObjectId(columns[4]);
		level->input = nulls[5] ? InvalidOid : DatumGetObjectId(columns[5]);
		level->owner = nulls[6] ? InvalidOid : DatumGetObjectId(columns[6]);
		level->settings = DatumGetArrayTypePCopy(columns[7]);
		level->has_retain = !nulls[8];
		if (level->has_retain)
			level->retain = *DatumGetIntervalP(columns[8]);
		level->retained_from = nulls[9] ? DT_NOBEGIN : DatumGetTimestampTz(columns[9]);
		level->settled_to = nulls[10] ? DT_NOBEGIN : DatumGetTimestampTz(columns[10]);
		level->since = nulls[11] ? FullTransactionIdFromU64(0) : DatumGetFullTransactionId(columns[11]);
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	mr_leave(&guard);
	if (level)
		level->window = mr_definition_window(level->definition);
	return level;
}

/* The rollup itself first, the aggregate last. */
static List *
read_chain(Oid state)
{
	Level *level = read_level(state, InvalidOid);
	List *chain = NIL;

	while (level)
	{
		check_stack_depth();
		chain = lappend(chain, level);
		if (!OidIsValid(level->input))
		{
			if (list_length(chain) > 1)
				return chain;
			break;
		}
		level = read_level(InvalidOid, level->input);
	}
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("\"%s\" does not hold the rows of a rollup", get_rel_name(state)),
			 errhint("See " MR_SCHEMA ".streams.")));
}

/* Start of the window (of the slide, if it slides) after the one that starts at start. */
static TimestampTz
next_start(const MrWindow *window, TimestampTz start)
{
	TimestampTz end;

	mr_pane(window, start, &end);
	return end;
}

/* Where the window ends that starts at start. */
static TimestampTz
window_end(const MrWindow *window, TimestampTz start)
{
	TimestampTz end = start;

	for (int64 i = mr_window_panes(window); i > 0; i--)
		end = next_start(window, end);
	return end;
}

/*
 * Start of the last window of the chain's n-th stream that is final, given the time up to which the aggregate at the
 * bottom is closed.
 */
static TimestampTz
closed_by(List *chain, int n, TimestampTz closed_to)
{
	Level *level = list_nth(chain, n);

	if (n < list_length(chain) - 1)
		closed_to =
			next_start(&((Level *) list_nth(chain, n + 1))->window, closed_by(chain, n + 1, closed_to));
	return mr_last_closed(&level->window, closed_to);
}

/* The same for the active snapshot. */
static TimestampTz
final_to(List *chain, int n)
{
	Level *bottom = llast(chain);

	return closed_by(
		chain, n,
		DatumGetTimestampTz(OidFunctionCall1(mr_schema_function("_closed_to", 1, (Oid[]){REGCLASSOID}),
											 ObjectIdGetDatum(bottom->state))));
}

/*
 * Sets of times
 */

typedef struct Times
{
	TimestampTz *times;
	int64 n;
	int64 n_allocated;
	bool has_null;
} Times;

static int
compare_times(const void *a, const void *b)
{
	TimestampTz x = *(const TimestampTz *) a, y = *(const TimestampTz *) b;

	return (x > y) - (x < y);
}

static void
sort_times(Times *set)
{
	int64 n = 0;

	qsort(set->times, set->n, sizeof(TimestampTz), compare_times);
	for (int64 i = 0; i < set->n; i++)
		if (n == 0 || set->times[i] != set->times[n - 1])
			set->times[n++] = set->times[i];
	set->n = n;
}

static void
add_time(Times *set, TimestampTz time)
{
	if (set->n > 0 && set->times[set->n - 1] == time)
		return;
	if (set->n == set->n_allocated)
	{
		/* Most often the same few times come again and again. */
		if (set->n > 0)
			sort_times(set);
		if (set->n_allocated == 0)
		{
			set->n_allocated = 256;
			set->times = palloc(set->n_allocated * sizeof(TimestampTz));
		}
		else if (set->n > set->n_allocated / 2)
		{
			set->n_allocated *= 2;
			set->times = repalloc_huge(set->times, set->n_allocated * sizeof(TimestampTz));
		}
	}
	set->times[set->n++] = time;
}

static Datum
return_times(FunctionCallInfo fcinfo, Times *set)
{
	ReturnSetInfo *result = (ReturnSetInfo *) fcinfo->resultinfo;
	Datum value;
	bool isnull = false;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	sort_times(set);
	for (int64 i = 0; i < set->n; i++)
	{
		value = TimestampTzGetDatum(set->times[i]);
		tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
	}
	if (set->has_null)
	{
		isnull = true;
		value = (Datum) 0;
		tuplestore_putvalues(result->setResult, result->setDesc, &value, &isnull);
	}
	return (Datum) 0;
}

/* The starts of the windows that hold the times. */
static Times
windows_of(const MrWindow *window, Times *from)
{
	Times into = {.has_null = from->has_null};

	sort_times(from);
	for (int64 i = 0; i < from->n; i++)
	{
		TimestampTz time = from->times[i], end = time;
		TimestampTz start = mr_first_window(window, time);

		add_time(&into, start);
		while (!TIMESTAMP_NOT_FINITE(time) && (mr_pane(window, start, &end), end <= time))
		{
			CHECK_FOR_INTERRUPTS();
			add_time(&into, start = end);
		}
	}
	sort_times(&into);
	return into;
}

/*
 * What has changed
 */

static AttrNumber
state_attribute(Relation rel, const char *name, Oid type)
{
	AttrNumber column = get_attnum(RelationGetRelid(rel), name);

	if (rel->rd_rel->relkind != RELKIND_RELATION || column <= 0 ||
		TupleDescAttr(RelationGetDescr(rel), column - 1)->atttypid != type)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table of states: it has no column \"%s\"",
						RelationGetRelationName(rel), name)));
	return column;
}

/* A valid btree index whose first column is that one; NULL if there is none. */
static Relation
open_index(Relation rel, AttrNumber column)
{
	ListCell *lc;

	foreach (lc, RelationGetIndexList(rel))
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		if (form->indisvalid && index->rd_rel->relam == BTREE_AM_OID && form->indkey.values[0] == column &&
			index->rd_opcintype[0] == XID8OID && RelationGetIndexPredicate(index) == NIL &&
			(!form->indcheckxmin ||
			 TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data), TransactionXmin)))
			return index;
		index_close(index, AccessShareLock);
	}
	return NULL;
}

/*
 * Adds the window_start of all rows with since <= xid < before.  Reads the tables of states whoever asks: those who
 * may read a view over them may know which windows changed.
 */
static void
read_changed(Oid relid, FullTransactionId since, FullTransactionId before, Times *set)
{
	Relation rel = table_open(relid, AccessShareLock);
	AttrNumber xid_column = state_attribute(rel, "xid", XID8OID);
	AttrNumber window_column = state_attribute(rel, "window_start", TIMESTAMPTZOID);
	Relation index = open_index(rel, xid_column);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc index_scan = NULL;
	TableScanDesc scan = NULL;

	if (index)
	{
		ScanKeyData key;

		ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_XID8GE, FullTransactionIdGetDatum(since));
		index_scan = mr_index_beginscan(rel, index, GetActiveSnapshot(), 1);
		index_rescan(index_scan, &key, 1, NULL, 0);
	}
	else
		scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	while (index ? index_getnext_slot(index_scan, ForwardScanDirection, slot)
				 : table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool isnull;
		FullTransactionId xid = DatumGetFullTransactionId(slot_getattr(slot, xid_column, &isnull));
		Datum start;

		CHECK_FOR_INTERRUPTS();
		if (FullTransactionIdPrecedes(xid, since) || !FullTransactionIdPrecedes(xid, before))
			continue;
		start = slot_getattr(slot, window_column, &isnull);
		if (isnull)
			set->has_null = true;
		else
			add_time(set, DatumGetTimestampTz(start));
	}
	if (index)
	{
		index_endscan(index_scan);
		index_close(index, AccessShareLock);
	}
	else
		table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

/* Windows of the rollup in which transactions from since on, and before another, have changed something. */
static Times
changed_windows(List *chain, FullTransactionId since, FullTransactionId before)
{
	Level *base = llast(chain);
	Times set = {0};

	read_changed(base->state, since, before, &set);
	read_changed(base->delta, since, before, &set);
	for (int n = list_length(chain) - 1; n >= 0; n--)
	{
		Level *level = list_nth(chain, n);

		if (n < list_length(chain) - 1 || level->window.kind == MR_HOP)
			set = windows_of(&level->window, &set);
	}
	return set;
}

/*
 * A refresh of the aggregate may leave no state of a group, so that no xid tells.  It marks the windows instead, in
 * millrace.mark; marks go when the windows are settled again.
 */
enum
{
	MARK_STATE = 1,
	MARK_XID,
	MARK_FROM,
	MARK_TO
};

/* Ranges of windows of the rollup that are marked, or (taken) remove the marks of transactions before since. */
static MrRanges *
read_marks(Oid state, Snapshot snapshot, FullTransactionId since, bool take)
{
	Relation rel = table_open(mr_catalog("mark"), take ? RowExclusiveLock : AccessShareLock);
	MrRanges *ranges = mr_ranges_new();
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, MARK_STATE, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(state));
	scan = systable_beginscan(rel, mr_catalog("mark_state"), true, snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		TupleDesc desc = RelationGetDescr(rel);
		bool isnull;
		TimestampTz to = DatumGetTimestampTz(heap_getattr(tuple, MARK_TO, desc, &isnull));

		mr_ranges_add(ranges, DatumGetTimestampTz(heap_getattr(tuple, MARK_FROM, desc, &isnull)), to, to);
		if (take &&
			FullTransactionIdPrecedes(DatumGetFullTransactionId(heap_getattr(tuple, MARK_XID, desc, &isnull)),
									  since))
			CatalogTupleDelete(rel, &tuple->t_self);
	}
	systable_endscan(scan);
	table_close(rel, NoLock);
	return ranges;
}

static void
add_marked(Oid state, Times *set)
{
	MrRanges *ranges = read_marks(state, GetActiveSnapshot(), FullTransactionIdFromU64(0), false);
	Relation rel;
	AttrNumber column;
	TupleTableSlot *slot;
	TableScanDesc scan;

	if (ranges->n == 0)
		return;
	mr_ranges_join(ranges, MR_MAX_MARKS);
	rel = table_open(state, AccessShareLock);
	column = state_attribute(rel, "window_start", TIMESTAMPTZOID);
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool isnull;
		TimestampTz start = DatumGetTimestampTz(slot_getattr(slot, column, &isnull));

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < ranges->n && ranges->items[i].from <= start; i++)
			if (start <= ranges->items[i].to)
				add_time(set, start);
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
}

#define NEVER FullTransactionIdFromU64(PG_UINT64_MAX)

/* Start of the first window that has not been dropped. */
static TimestampTz
first_kept(const Level *level)
{
	return next_start(&level->window, mr_last_closed(&level->window, level->retained_from));
}

/* Settled windows whose stored rows are out of date, as far as the input still has all that is in them. */
static Times
redo_windows(List *chain)
{
	Level *self = linitial(chain);
	TimestampTz kept_from = Max(first_kept(self), first_kept(lsecond(chain)));
	Times set = {0}, changed;

	if (self->settled_to == DT_NOBEGIN)
		return set;
	changed = changed_windows(chain, self->since, NEVER);
	add_marked(self->state, &changed);
	for (int64 i = 0; i < changed.n; i++)
		if (!TIMESTAMP_NOT_FINITE(changed.times[i]) && changed.times[i] <= self->settled_to &&
			changed.times[i] >= kept_from)
			add_time(&set, changed.times[i]);
	return set;
}

/*
 * SQL functions of the views: _rollup_…(state regclass)
 */

/* Start of the last window that is final. */
Datum
mr_rollup_final_to(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(final_to(read_chain(PG_GETARG_OID(0)), 0));
}

/* _rollup_closed(state regclass, closed_to timestamptz): the same if the aggregate at the bottom were closed up to a time. */
Datum
mr_rollup_closed(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(closed_by(read_chain(PG_GETARG_OID(0)), 0, PG_GETARG_TIMESTAMPTZ(1)));
}

/* _rollup_gone(state regclass, retained_from timestamptz): start of its last window that is gone then. */
Datum
mr_rollup_gone(PG_FUNCTION_ARGS)
{
	Level *bottom = llast(read_chain(PG_GETARG_OID(0)));

	PG_RETURN_TIMESTAMPTZ(mr_last_closed(&bottom->window, PG_GETARG_TIMESTAMPTZ(1)));
}

/* Start of the last window that is settled. */
Datum
mr_rollup_settled_to(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(((Level *) linitial(read_chain(PG_GETARG_OID(0))))->settled_to);
}

/* _rollup_last_before(state regclass, time timestamptz): start of the last window that ended at or before a time. */
Datum
mr_rollup_last_before(PG_FUNCTION_ARGS)
{
	Level *self = linitial(read_chain(PG_GETARG_OID(0)));

	PG_RETURN_TIMESTAMPTZ(mr_last_closed(&self->window, PG_GETARG_TIMESTAMPTZ(1)));
}

static TimestampTz
open_from(const Level *rollup)
{
	return next_start(&rollup->window, rollup->settled_to);
}

/* Start of the first window that is not settled: rows of the input from there on are read live. */
Datum
mr_rollup_open_from(PG_FUNCTION_ARGS)
{
	PG_RETURN_TIMESTAMPTZ(open_from(linitial(read_chain(PG_GETARG_OID(0)))));
}

/* Settled windows that are read live. */
Datum
mr_rollup_redo(PG_FUNCTION_ARGS)
{
	Times set = redo_windows(read_chain(PG_GETARG_OID(0)));

	return return_times(fcinfo, &set);
}

/* The windows of the input in them. */
Datum
mr_rollup_redo_inputs(PG_FUNCTION_ARGS)
{
	List *chain = read_chain(PG_GETARG_OID(0));
	Level *self = linitial(chain), *input = lsecond(chain);
	Times windows = redo_windows(chain);
	Times set = {0};

	for (int64 i = 0; i < windows.n; i++)
	{
		TimestampTz end = window_end(&self->window, windows.times[i]), next;
		TimestampTz start = mr_pane(&input->window, windows.times[i], &next);

		for (; start < end; start = next)
		{
			CHECK_FOR_INTERRUPTS();
			next = next_start(&input->window, start);
			/* Windows that slide reach beyond the bound; what is there is read live anyway. */
			if (start >= windows.times[i] && start < open_from(self))
				add_time(&set, start);
		}
	}
	return return_times(fcinfo, &set);
}

/* _rollup_changed(state, since xid8, before xid8): windows that changed, NULL among them if that of no time did */
Datum
mr_rollup_changed(PG_FUNCTION_ARGS)
{
	Times set = changed_windows(read_chain(PG_GETARG_OID(0)), DatumGetFullTransactionId(PG_GETARG_DATUM(1)),
								DatumGetFullTransactionId(PG_GETARG_DATUM(2)));

	return return_times(fcinfo, &set);
}

/* The states of the rollups over a view: those of a role that has the rights of its owner, or all others. */
static List *
rollups_over(Oid view, bool of_others)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(view)};
	List *states = NIL;
	MemoryContext context = CurrentMemoryContext;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args(
		"SELECT s.state, c.relowner, v.relowner FROM " MR_SCHEMA
		".stream s JOIN pg_catalog.pg_class c ON c.oid = s.state JOIN pg_catalog.pg_class v ON v.oid = $1"
		" WHERE s.kind = 'rollup' AND s.inputs[1] = $1",
		SPI_OK_SELECT, true, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		MemoryContext spi;
		Oid owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
		Oid input_owner =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3, &isnull));

		if (has_privs_of_role(owner, input_owner) == of_others)
			continue;
		spi = MemoryContextSwitchTo(context);

		states = lappend_oid(
			states,
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull)));
		MemoryContextSwitchTo(spi);
	}
	SPI_finish();
	mr_leave(&guard);
	return states;
}

TimestampTz
mr_rollup_needed_from(Oid view)
{
	TimestampTz needed = DT_NOEND;
	ListCell *lc;

	/* Who may only read the view cannot keep its windows. */
	foreach (lc, rollups_over(view, false))
		needed = Min(needed, open_from(linitial(read_chain(lfirst_oid(lc)))));
	return needed;
}

/* NAME of the stream with that state. */
static Oid
view_of(Oid state)
{
	static Oid types[1] = {OIDOID};
	Datum values[1] = {ObjectIdGetDatum(state)};
	Oid view = InvalidOid;
	MrGuard guard;
	bool isnull;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("SELECT target FROM " MR_SCHEMA ".stream WHERE state = $1", SPI_OK_SELECT, true, 1, types,
				 values, NULL);
	if (SPI_processed > 0)
		view = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	return view;
}

/*
 * Rollups of those who may only read the view: all their windows are marked, because an error in their definition, which
 * they may change, must not be in the way of who owns the view.
 */
static void
mark_all_of_others(Oid view)
{
	List *views = list_make1_oid(view);
	ListCell *lc, *lc2;

	/* The list grows by the views of the rollups that are marked. */
	foreach (lc, views)
		for (int of_others = lfirst_oid(lc) != view ? 0 : 1; of_others < 2; of_others++)
			foreach (lc2, rollups_over(lfirst_oid(lc), of_others))
			{
				mr_mark(lfirst_oid(lc2), DT_NOBEGIN, DT_NOEND, "refresh");
				views = list_append_unique_oid(views, view_of(lfirst_oid(lc2)));
			}
}

void
mr_rollup_mark(Oid view, const MrWindow *window, const MrRanges *ranges)
{
	ListCell *lc;

	mark_all_of_others(view);
	foreach (lc, rollups_over(view, false))
	{
		Level *rollup = read_level(lfirst_oid(lc), InvalidOid);
		MrRanges *marked = mr_ranges_new();
		TimestampTz end;

		check_stack_depth();
		for (int i = 0; i < ranges->n; i++)
		{
			TimestampTz first = mr_first_window(window, ranges->items[i].from);
			TimestampTz last = mr_pane(window, ranges->items[i].to, &end);

			last = mr_pane(&rollup->window, last, &end);
			mr_ranges_add(marked, mr_first_window(&rollup->window, first), last, last);
		}
		mr_mark_ranges(rollup->state, marked, "refresh");
		mr_rollup_mark(rollup->view, &rollup->window, marked);
	}
}

/*
 * The catalog
 */

static void
check_state_owner(Oid state)
{
	if (get_rel_relkind(state) == '\0' || !mr_owns_relation(state, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, get_rel_name(state));
}

static void
put(Oid state, TimestampTz settled_to, FullTransactionId since, TimestampTz retained_from)
{
	static Oid types[4] = {OIDOID, TIMESTAMPTZOID, XID8OID, TIMESTAMPTZOID};
	Datum values[4] = {ObjectIdGetDatum(state), TimestampTzGetDatum(settled_to),
					   FullTransactionIdGetDatum(since), TimestampTzGetDatum(retained_from)};
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec_args("UPDATE " MR_SCHEMA ".rollup SET settled_to = $2, since = $3 WHERE state = $1",
				 SPI_OK_UPDATE, false, 3, types, values, NULL);
	if (SPI_processed == 0)
		mr_exec_args("INSERT INTO " MR_SCHEMA ".rollup (state, settled_to, since) VALUES ($1, $2, $3)",
					 SPI_OK_INSERT, false, 3, types, values, NULL);
	if (retained_from != DT_NOBEGIN)
		mr_exec_args("UPDATE " MR_SCHEMA
					 ".stream SET retained_from = $4 WHERE state = $1 AND retained_from IS DISTINCT"
					 " FROM $4",
					 SPI_OK_UPDATE, false, 4, types, values, NULL);
	SPI_finish();
	mr_leave(&guard);
}

/*
 * _rollup_put(state regclass, settled_to timestamptz, since xid8): for the owner, who holds the lock then; with NULL
 * for settled_to the row goes
 */
Datum
mr_rollup_put(PG_FUNCTION_ARGS)
{
	Oid state = PG_ARGISNULL(0) ? InvalidOid : PG_GETARG_OID(0);

	check_state_owner(state);
	(void) mr_state_lock(state, true);
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		mr_rollup_forget(state);
	else
		put(state, PG_GETARG_TIMESTAMPTZ(1), DatumGetFullTransactionId(PG_GETARG_DATUM(2)), DT_NOBEGIN);
	PG_RETURN_VOID();
}

/*
 * _rollup_cut(state regclass, input regclass, input_window name) returns timestamptz: delete the stored rows of windows
 * that the input still has, and return the start of the last window that stays settled.  As the rollup's owner: his
 * triggers, and the functions of his views, must not run as whoever replaces what he reads.
 */
Datum
mr_rollup_cut(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {TIMESTAMPTZOID};
	Oid state = PG_GETARG_OID(0), input = PG_GETARG_OID(1);
	Level *self;
	TimestampTz first, bound;
	Datum values[1];
	MrGuard guard;
	bool isnull;

	check_state_owner(state);
	self = linitial(read_chain(state));
	if (self->input != input)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("rollup \"%s\" does not read \"%s\"", get_rel_name(self->view), get_rel_name(input))));
	bound = self->settled_to;
	mr_enter(&guard, self->owner, self->settings);
	SPI_connect();
	mr_exec(psprintf("SELECT pg_catalog.min(i.%s) FROM %s i", quote_identifier(NameStr(*PG_GETARG_NAME(2))),
					 mr_relation_name(input)),
			SPI_OK_SELECT, false);
	first = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	if (!isnull && SPI_gettypeid(SPI_tuptable->tupdesc, 1) == TIMESTAMPTZOID)
		bound = Min(bound, mr_last_closed(&self->window, first));
	values[0] = TimestampTzGetDatum(bound);
	mr_exec_args(
		psprintf("DELETE FROM %s WHERE window_start OPERATOR(pg_catalog.>) $1", mr_relation_name(state)),
		SPI_OK_DELETE, false, 1, types, values, NULL);
	SPI_finish();
	mr_leave(&guard);
	PG_RETURN_TIMESTAMPTZ(bound);
}

void
mr_rollup_forget(Oid state)
{
	Relation rel = table_open(mr_catalog("rollup"), RowExclusiveLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(state));
	PushActiveSnapshot(GetLatestSnapshot());
	scan = systable_beginscan(rel, mr_catalog("rollup_pkey"), true, GetActiveSnapshot(), 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
		CatalogTupleDelete(rel, &tuple->t_self);
	systable_endscan(scan);
	PopActiveSnapshot();
	table_close(rel, NoLock);
}

/*
 * Texts
 */

typedef enum ColumnNames
{
	COLUMNS_SHOWN,	/* of NAME */
	COLUMNS_STORED, /* of NAME_state */
	COLUMNS_RENAMED /* of NAME_state, renamed to those of NAME */
} ColumnNames;

/* The columns of a rollup's query as a list, behind an alias if there is one. */
static char *
result_columns(MrDefinition *def, const char *alias, ColumnNames names)
{
	StringInfoData buf;
	ListCell *lc;

	initStringInfo(&buf);
	foreach (lc, def->query->targetList)
	{
		TargetEntry *tle = lfirst(lc);
		const char *shown = quote_identifier(tle->resname);
		const char *stored =
			tle->resno == mr_window_column(def) ? "window_start" : psprintf("c%d", tle->resno);

		if (tle->resjunk)
			continue;
		appendStringInfo(&buf, "%s%s%s%s", buf.len ? ", " : "", alias ? alias : "", alias ? "." : "",
						 names == COLUMNS_SHOWN ? shown : stored);
		if (names == COLUMNS_RENAMED)
			appendStringInfo(&buf, " AS %s", shown);
	}
	return buf.data;
}

/*
 * Settling
 */

/*
 * One statement computes, stores and tells the snapshot of it: windows that have become final, and those that were
 * settled and have changed.  Rows that NAME and NAME_final show alike are stored once, as part b.
 */
static char *
settle_sql(const Level *self)
{
	MrDefinition *def = mr_read_rollup(self->definition);
	const char *own = quote_identifier(get_attname(self->view, mr_window_column(def), false));
	const char *state = mr_relation_name(self->state);
	char *own_state = psprintf("%s::pg_catalog.regclass", quote_literal_cstr(state));
	char *shown = result_columns(def, "n", COLUMNS_SHOWN), *stored = result_columns(def, "s", COLUMNS_STORED);
	char *both = result_columns(def, "p", COLUMNS_STORED);
	char *becoming = psprintf("n.%s > (SELECT before FROM g) AND n.%s <= (SELECT upto FROM g)", own, own);
	const char *redo = "((SELECT redo FROM g)::pg_catalog.timestamptz[])";
	char *names = result_columns(def, NULL, COLUMNS_STORED);
	char *row = psprintf("ROW(%s)::pg_catalog.text", stored);
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "WITH g AS MATERIALIZED (SELECT b.b AS before, GREATEST(b.b, " MR_SCHEMA
					 "._rollup_final_to(%s)) AS "
					 "upto, pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS since, "
					 "ARRAY(SELECT " MR_SCHEMA "._rollup_redo(%s)) AS redo FROM " MR_SCHEMA
					 "._rollup_settled_to(%s) b(b)),",
					 own_state, own_state, own_state);
	appendStringInfo(
		&sql,
		" u AS (SELECT 'l' AS part, %s, %s AS row_text FROM (SELECT %s FROM %s n WHERE %s UNION ALL"
		" SELECT %s FROM %s n WHERE n.%s = ANY %s) s(%s)",
		stored, row, shown, mr_relation_name(self->view), becoming, shown, mr_relation_name(self->view), own,
		redo, names);
	appendStringInfo(
		&sql,
		" UNION ALL SELECT 'f', %s, %s FROM (SELECT %s FROM %s n WHERE %s UNION ALL SELECT %s FROM %s s"
		" WHERE s.part <> 'l' AND s.window_start = ANY %s) s(%s)),",
		stored, row, shown, mr_relation_name(self->final), becoming, stored, state, redo, names);
	appendStringInfo(
		&sql,
		" n AS (SELECT u.*, pg_catalog.row_number() OVER (PARTITION BY u.part, u.row_text) AS nth FROM u),"
		" p AS (SELECT n.*, pg_catalog.count(*) OVER (PARTITION BY n.row_text, n.nth) AS n_parts FROM n),"
		" d AS (DELETE FROM %s s WHERE s.window_start = ANY %s),",
		state, redo);
	appendStringInfo(
		&sql,
		" i AS (INSERT INTO %s (xid, part, %s) SELECT CASE WHEN p.window_start > (SELECT before FROM g)"
		" THEN '0' ELSE pg_catalog.pg_current_xact_id() END, CASE p.n_parts WHEN 2 THEN 'b' ELSE p.part "
		"END::\"char\", %s FROM p WHERE p.n_parts = 1 OR p.part = 'l' ORDER BY p.window_start RETURNING 1)"
		" SELECT g.upto, g.since, (SELECT pg_catalog.count(*) FROM i) FROM g",
		state, names, both);
	return sql.data;
}

/*
 * Drop the settled windows that ended before what retain keeps, counted from the end of the last one, and that no
 * rollup reads any more.  Returns the time before which they are gone.
 */
static TimestampTz
drop_expired(const Level *self, TimestampTz settled_to)
{
	static Oid types[1] = {TIMESTAMPTZOID};
	Datum values[1];
	TimestampTz end, limit;

	if (!self->has_retain)
		return self->retained_from;
	end = window_end(&self->window, settled_to);
	limit = mr_plus_interval(end, &self->retain, -1);
	limit = Min(limit, mr_rollup_needed_from(self->view));
	if (limit <= self->retained_from)
		return self->retained_from;
	values[0] = TimestampTzGetDatum(mr_last_closed(&self->window, limit));
	mr_exec_args(psprintf("DELETE FROM %s WHERE window_start <= $1", mr_relation_name(self->state)),
				 SPI_OK_DELETE, false, 1, types, values, NULL);
	return limit;
}

/*
 * _settle(state regclass) returns bigint: settle the windows of a rollup, for an owner of it, and drop those that are
 * kept no longer; the number of rows stored
 */
Datum
mr_settle(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64((int64) mr_rollup_settle(PG_GETARG_OID(0)));
}

uint64
mr_rollup_settle(Oid state)
{
	Level *self;
	TimestampTz settled_to, retained_from;
	FullTransactionId since;
	uint64 n_rows;
	bool isnull;
	MrGuard guard;

	/* What takes its place meanwhile settles itself. */
	if (get_rel_relkind(state) == '\0')
		return 0;
	check_state_owner(state);
	(void) mr_state_lock(state, true);
	if (get_rel_relkind(state) == '\0')
		return 0;
	PushActiveSnapshot(GetTransactionSnapshot());
	self = linitial(read_chain(state));
	PopActiveSnapshot();
	if (!has_privs_of_role(GetUserId(), self->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of rollup \"%s\"", get_rel_name(self->view))));
	/* One settles at a time, and with a snapshot of its own. */
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
				 errmsg("windows of a rollup cannot be settled in a transaction of isolation level "
						"REPEATABLE READ or "
						"higher"),
				 errhint("Use READ COMMITTED.")));
	mr_enter(&guard, self->owner, self->settings);
	/* Rows are compared as text. */
	(void) set_config_option("extra_float_digits", "1", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
							 false);
	SPI_connect();
	mr_exec(settle_sql(self), SPI_OK_SELECT, false);
	settled_to = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	since =
		DatumGetFullTransactionId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	n_rows = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 3, &isnull));
	if (settled_to != DT_NOBEGIN)
	{
		/* What it was when the lock was taken. */
		PushActiveSnapshot(GetTransactionSnapshot());
		self = read_level(self->state, InvalidOid);
		PopActiveSnapshot();
		retained_from = drop_expired(self, settled_to);
		put(self->state, settled_to, since, retained_from);
	}
	SPI_finish();
	mr_leave(&guard);
	/* What their transactions did was seen. */
	PushActiveSnapshot(GetLatestSnapshot());
	(void) read_marks(self->state, GetActiveSnapshot(), since, true);
	PopActiveSnapshot();
	return n_rows;
}

/*
 * Definitions
 */

/*
 * The definition of a rollup, checked, whose source is then the view of its input, *input; NULL if its query reads no
 * view of a continuous aggregate.
 */
static MrDefinition *
read_rollup(Oid view, Level **input, AttrNumber *window_column)
{
	MrDefinition *def = mr_read_rollup(view);
	Oid input_view = mr_rollup_view(def);

	*input = OidIsValid(input_view) ? read_level(InvalidOid, input_view) : NULL;
	if (*input == NULL)
		return NULL;
	if ((*input)->window.kind == MR_SESSION)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("sessions cannot be rolled up: \"%s\"", get_rel_name(input_view)),
				 errdetail("A late event can join sessions, so that the windows in which they began change."),
				 errhint("Query the view, or aggregate its source by another window.")));
	*window_column = mr_window_column(mr_read_rollup((*input)->definition));
	mr_check_rollup(def, *window_column);
	if (mr_window_column(def) == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("the query of a rollup must show its window"),
				 errhint("Add the window to the SELECT list.")));
	return def;
}

/*
 * _rollup_parts(definition regclass, OUT input regclass, OUT columns text): all NULL if the query is none of a rollup.
 * columns: of NAME_state
 */
Datum
mr_rollup_parts(PG_FUNCTION_ARGS)
{
	Level *input;
	AttrNumber input_column;
	MrDefinition *def = read_rollup(PG_GETARG_OID(0), &input, &input_column);
	TupleDesc desc;
	StringInfoData columns;
	Datum values[2];
	bool nulls[2] = {true, true};
	ListCell *lc;

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	if (def == NULL)
		PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
	if (pg_class_aclcheck(def->source, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_VIEW, get_rel_name(def->source));
	initStringInfo(&columns);
	appendStringInfoString(&columns, "xid pg_catalog.xid8 NOT NULL, part \"char\" NOT NULL");
	foreach (lc, def->query->targetList)
	{
		TargetEntry *tle = lfirst(lc);
		Oid collation = exprCollation((Node *) tle->expr);

		if (tle->resjunk)
			continue;
		appendStringInfo(
			&columns, ", %s %s",
			tle->resno == mr_window_column(def) ? "window_start" : psprintf("c%d", tle->resno),
			format_type_with_typemod(exprType((Node *) tle->expr), exprTypmod((Node *) tle->expr)));
		if (OidIsValid(collation) && collation != DEFAULT_COLLATION_OID)
			appendStringInfo(&columns, " COLLATE %s", generate_collation_name(collation));
	}
	values[0] = ObjectIdGetDatum(def->source);
	values[1] = CStringGetTextDatum(columns.data);
	nulls[0] = nulls[1] = false;
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* _rollup_window(definition regclass) returns int: number of the column with the window; NULL if it is not shown */
Datum
mr_rollup_window(PG_FUNCTION_ARGS)
{
	AttrNumber column = mr_window_column(mr_read_rollup(PG_GETARG_OID(0)));

	if (column == InvalidAttrNumber)
		PG_RETURN_NULL();
	PG_RETURN_INT32(column);
}

typedef struct FindTable
{
	const char *schema;
	const char *name;
	RangeVar *found;
	int n_found;
} FindTable;

static bool
find_table(Node *node, FindTable *find)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeVar))
	{
		RangeVar *table = (RangeVar *) node;

		if (table->schemaname && strcmp(table->schemaname, find->schema) == 0 &&
			strcmp(table->relname, find->name) == 0)
		{
			find->found = table;
			find->n_found++;
		}
		return false;
	}
	return raw_expression_tree_walker(node, find_table, find);
}

/* The definition's query as text, with a subquery in place of the input.  search_path must be pg_catalog. */
static char *
query_over(Oid definition, Oid input, const char *subquery)
{
	char *sql = TextDatumGetCString(DirectFunctionCall1(pg_get_viewdef, ObjectIdGetDatum(definition)));
	char *name = mr_relation_name(input);
	FindTable find = {get_namespace_name(get_rel_namespace(input)), get_rel_name(input)};
	char *end = strrchr(sql, ';');

	if (end)
		*end = '\0';
	find_table(linitial_node(RawStmt, raw_parser(sql, RAW_PARSE_DEFAULT))->stmt, &find);
	if (find.n_found != 1 || strncmp(sql + find.found->location, name, strlen(name)) != 0)
		elog(ERROR, "could not find %s in the query of the rollup: %s", name, sql);
	return psprintf("%.*s(%s)%s%s%s", find.found->location, sql, subquery, find.found->alias ? "" : " ",
					find.found->alias ? "" : quote_identifier(find.found->relname),
					sql + find.found->location + strlen(name));
}

/*
 * _rollup_texts(definition regclass, state regclass, input_final regclass, OUT live text, OUT final_text
 * text, OUT changes text): the queries of NAME, NAME_final and NAME_changes, over the input's view and its NAME_final
 */
Datum
mr_rollup_texts(PG_FUNCTION_ARGS)
{
	Oid definition = PG_GETARG_OID(0), state = PG_GETARG_OID(1), final = PG_GETARG_OID(2);
	Level *input;
	AttrNumber input_column;
	MrDefinition *def = read_rollup(definition, &input, &input_column);
	char *live;
	const char *in, *in_name, *own, *own_state, *state_name, *subquery;
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false};

	if (def == NULL)
		elog(ERROR, "\"%s\" is not the query of a rollup", get_rel_name(definition));
	in = quote_identifier(get_attname(def->source, input_column, false));
	in_name = mr_relation_name(def->source);
	own = quote_identifier(get_tle_by_resno(def->query->targetList, mr_window_column(def))->resname);
	state_name = mr_relation_name(state);
	own_state = psprintf("%s::pg_catalog.regclass", quote_literal_cstr(state_name));

	/* A bound on both sides lets the planner expect few rows, and so use an index. */
	subquery = psprintf("SELECT i.* FROM %s i WHERE i.%s >= (SELECT " MR_SCHEMA
						"._rollup_open_from(%s)) AND i.%s <= 'infinity'"
						" UNION ALL SELECT i.* FROM %s i WHERE i.%s = ANY (ARRAY(SELECT " MR_SCHEMA
						"._rollup_redo_inputs(%s) UNION ALL SELECT '-infinity'::pg_catalog.timestamptz"
						" WHERE '-infinity' < (SELECT " MR_SCHEMA "._rollup_open_from(%s)))) OR i.%s IS NULL",
						in_name, in, own_state, in, in_name, in, own_state, own_state, in);
	live = psprintf("SELECT %s, true AS final FROM %s s WHERE s.part <> 'f' AND s.window_start <> ALL "
					"(ARRAY(SELECT " MR_SCHEMA
					"._rollup_redo(%s))) UNION ALL SELECT %s, coalesce(q.%s <= (SELECT " MR_SCHEMA
					"._rollup_final_to(%s)), false) FROM (%s) q WHERE q.%s > (SELECT " MR_SCHEMA
					"._rollup_settled_to(%s)) OR q.%s = ANY (ARRAY(SELECT " MR_SCHEMA
					"._rollup_redo(%s))) OR q.%s = '-infinity' OR q.%s IS NULL",
					result_columns(def, "s", COLUMNS_RENAMED), state_name, own_state,
					result_columns(def, "q", COLUMNS_SHOWN), own, own_state,
					query_over(definition, def->source, subquery), own, own_state, own, own_state, own, own);
	values[0] = CStringGetTextDatum(live);

	subquery = psprintf("SELECT i.*, true AS final FROM %s i WHERE i.%s >= (SELECT " MR_SCHEMA
						"._rollup_open_from(%s)) AND i.%s <= "
						"'infinity' UNION ALL SELECT i.*, true AS final FROM %s i WHERE i.%s = '-infinity' "
						"AND '-infinity' < (SELECT " MR_SCHEMA "._rollup_open_from(%s))",
						mr_relation_name(final), in, own_state, in, mr_relation_name(final), in, own_state);
	values[1] = CStringGetTextDatum(psprintf(
		"SELECT %s FROM %s s WHERE s.part <> 'l' UNION ALL SELECT %s FROM (%s) q WHERE (q.%s > "
		"(SELECT " MR_SCHEMA "._rollup_settled_to(%s)) OR q.%s = '-infinity') AND q.%s <= (SELECT " MR_SCHEMA
		"._rollup_final_to(%s))",
		result_columns(def, "s", COLUMNS_RENAMED), state_name, result_columns(def, "q", COLUMNS_SHOWN),
		query_over(definition, def->source, subquery), own, own_state, own, own, own_state));

	values[2] = CStringGetTextDatum(psprintf(
		"WITH h AS MATERIALIZED (SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()) AS h),"
		" c AS MATERIALIZED (SELECT " MR_SCHEMA
		"._rollup_changed(%s, coalesce($1, '0'::pg_catalog.xid8), (SELECT h.h "
		"FROM h)) AS c UNION SELECT s.window_start FROM %s s WHERE s.xid > '0' AND s.xid >= coalesce($1, "
		"'0'::pg_catalog.xid8) AND s.xid < (SELECT h.h FROM h))"
		" SELECT (SELECT h.h FROM h) AS cursor, q.* FROM (%s) q WHERE q.%s = ANY (ARRAY(SELECT c.c FROM c))"
		" OR q.%s IS NULL AND EXISTS (SELECT FROM c WHERE c.c IS NULL)",
		own_state, state_name, live, own, own));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * _federated_rollup_text(definition regclass, state regclass, input regclass, closed text, retained text, n_nodes int) returns text:
 * the rollup's query over a federated aggregate of what it reads; closed, retained: as in _federated_text
 */
Datum
mr_federated_rollup_text(PG_FUNCTION_ARGS)
{
	Oid definition = PG_GETARG_OID(0);
	char *closed = text_to_cstring(PG_GETARG_TEXT_PP(3)), *retained = text_to_cstring(PG_GETARG_TEXT_PP(4));
	Level *input;
	AttrNumber input_column;
	MrDefinition *def = read_rollup(definition, &input, &input_column);
	const char *own, *own_state;

	if (def == NULL)
		elog(ERROR, "\"%s\" is not the query of a rollup", get_rel_name(definition));
	own = quote_identifier(get_tle_by_resno(def->query->targetList, mr_window_column(def))->resname);
	own_state = psprintf("%s::pg_catalog.regclass", quote_literal_cstr(mr_relation_name(PG_GETARG_OID(1))));
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(
		"SELECT %s, coalesce(q.%s <= (SELECT CASE pg_catalog.count(*) WHEN %d THEN " MR_SCHEMA
		"._rollup_closed(%s, pg_catalog.min(coalesce(n.closed_to, '-infinity'))) END FROM (%s) n), false) AS "
		"final FROM (%s) q WHERE (q.%s > (SELECT pg_catalog.max(" MR_SCHEMA
		"._rollup_gone(%s, n.retained_from)) FROM (%s) n)) IS NOT FALSE",
		result_columns(def, "q", COLUMNS_SHOWN), own, PG_GETARG_INT32(5), own_state, closed,
		query_over(definition, def->source,
				   psprintf("SELECT i.* FROM %s i", mr_relation_name(PG_GETARG_OID(2)))),
		own, own_state, retained)));
}
