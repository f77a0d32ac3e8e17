/*
 * alert.c: alerts: queries over continuous aggregates that are run for the windows that a batch has changed or closed.
 *
 * An alert is a view.  When the aggregates that it reads have taken in a batch, its rows for the windows that the batch
 * wrote become rows of millrace.alert_row, unless they are there: (window, key) is reported once, the key being the
 * columns that are keys of an aggregate.
 *
 * Two transactions that run at the same time do not see each other's states, and so may both miss what they amount to
 * together.  So an alert looks once more at each window when it has become final: then every transaction that wrote it
 * has ended and is seen.  How far it has looked, each transaction that looks further notes in millrace.progress, under
 * the alert's view, as watermarks are.
 *
 * Nobody waits for anybody: there is no unique index, a row is written unless one is committed or our own.  Two
 * transactions may both report; the view millrace.alerts shows one row, and NOTIFY is sent by both.
 */
#include "aggregate.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "commands/async.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_alert_parts);
PG_FUNCTION_INFO_V1(mr_alert_start);

/*
 * Sets of windows
 */

/* So many windows are looked at one by one; more are a range of time. */
#define MAX_TIMES 8192

void
mr_times_init(MrTimes *times)
{
	memset(times, 0, sizeof(MrTimes));
	times->context = CurrentMemoryContext;
	times->first = DT_NOEND;
	times->last = DT_NOBEGIN;
}

static int
compare_times(const void *a, const void *b)
{
	TimestampTz left = *(const TimestampTz *) a, right = *(const TimestampTz *) b;

	return left < right ? -1 : left > right;
}

static void
sort_times(MrTimes *times)
{
	int n = 0;

	if (times->n < 2)
		return;
	qsort(times->values, times->n, sizeof(TimestampTz), compare_times);
	for (int i = 1; i < times->n; i++)
		if (times->values[i] != times->values[n])
			times->values[++n] = times->values[i];
	times->n = n + 1;
}

void
mr_times_add(MrTimes *times, TimestampTz time)
{
	if (times->n > 0 && times->values[times->n - 1] == time)
		return;
	times->first = Min(times->first, time);
	times->last = Max(times->last, time);
	if (times->is_range)
		return;
	if (times->n == times->size && times->size == 2 * MAX_TIMES)
	{
		sort_times(times);
		if (times->n > MAX_TIMES)
		{
			times->is_range = true;
			times->n = 0;
			return;
		}
	}
	else if (times->n == times->size)
	{
		times->size = times->size ? 2 * times->size : 64;
		if (times->values == NULL)
			times->values = MemoryContextAlloc(times->context, times->size * sizeof(TimestampTz));
		else
			times->values = repalloc(times->values, times->size * sizeof(TimestampTz));
	}
	times->values[times->n++] = time;
}

void
mr_times_add_range(MrTimes *times, TimestampTz first, TimestampTz last)
{
	times->first = Min(times->first, first);
	times->last = Max(times->last, last);
	times->is_range = true;
	times->n = 0;
}

bool
mr_times_is_empty(const MrTimes *times)
{
	return times->n == 0 && !times->is_range;
}

ArrayType *
mr_times_array(MrTimes *times)
{
	Datum *values;

	sort_times(times);
	values = palloc((times->n + 1) * sizeof(Datum));
	for (int i = 0; i < times->n; i++)
		values[i] = TimestampTzGetDatum(times->values[i]);
	return construct_array(values, times->n, TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL,
						   TYPALIGN_DOUBLE);
}

/* A session that a state belongs to may have begun at any time before it. */
void
mr_times_add_windows(MrTimes *windows, const MrWindow *window, MrTimes *panes)
{
	int64 n_panes = window->kind == MR_HOP ? mr_window_panes(window) : 1;

	if (mr_times_is_empty(panes))
		return;
	if (window->kind == MR_SESSION)
	{
		mr_times_add_range(windows, DT_NOBEGIN, panes->last);
		return;
	}
	sort_times(panes);
	if (panes->is_range || panes->n * n_panes > MAX_TIMES)
	{
		TimestampTz end, first = panes->first;

		for (int64 i = 1; i < n_panes && !TIMESTAMP_NOT_FINITE(first); i++)
			first = mr_pane(window, first - 1, &end);
		mr_times_add_range(windows, first, panes->last);
		return;
	}
	for (int i = 0; i < panes->n; i++)
	{
		TimestampTz start = panes->values[i], end;

		mr_times_add(windows, start);
		for (int64 j = 1; j < n_panes && !TIMESTAMP_NOT_FINITE(start); j++)
			mr_times_add(windows, start = mr_pane(window, start - 1, &end));
	}
}

void
mr_times_merge(MrTimes *into, const MrTimes *from)
{
	if (from->is_range)
		mr_times_add_range(into, from->first, from->last);
	for (int i = 0; i < from->n; i++)
		mr_times_add(into, from->values[i]);
}

/*
 * What an alert reads
 */

/* A continuous aggregate that an alert may read. */
typedef struct Input
{
	Oid target;
	Oid final;
	Oid definition;
	Oid state;
	Oid source;
	Oid below; /* of a rollup: the view that it reads */
	bool has_watermark;
	List *keys;		 /* numbers of columns; known once it is needed */
	MrWindow window; /* the same */
	bool is_needed;
	bool is_read; /* by the alert itself, not by a rollup that it reads */
} Input;

static List *
read_inputs(void)
{
	MemoryContext context = CurrentMemoryContext, spi;
	List *inputs = NIL;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	mr_exec("SELECT target, final, definition, state, source, watermark IS NOT NULL,"
			" CASE kind WHEN 'rollup' THEN inputs[1] END FROM " MR_SCHEMA
			".stream WHERE kind IN ('aggregate', 'rollup') ORDER BY seq",
			SPI_OK_SELECT, true);
	spi = MemoryContextSwitchTo(context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		Input *input = palloc0(sizeof(Input));
		Datum values[7];
		bool nulls[7];

		heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, values, nulls);
		if (nulls[2] || nulls[3])
			continue;
		input->target = DatumGetObjectId(values[0]);
		input->final = nulls[1] ? InvalidOid : DatumGetObjectId(values[1]);
		input->definition = DatumGetObjectId(values[2]);
		input->state = DatumGetObjectId(values[3]);
		input->source = DatumGetObjectId(values[4]);
		input->has_watermark = DatumGetBool(values[5]);
		input->below = nulls[6] ? InvalidOid : DatumGetObjectId(values[6]);
		inputs = lappend(inputs, input);
	}
	MemoryContextSwitchTo(spi);
	SPI_finish();
	PopActiveSnapshot();
	mr_leave(&guard);
	return inputs;
}

static Input *
find_input(List *inputs, Oid rel)
{
	ListCell *lc;

	foreach (lc, inputs)
	{
		Input *input = lfirst(lc);

		if (input->target == rel || input->final == rel)
			return input;
	}
	return NULL;
}

/* The aggregate or rollup of that name, which is wanted, with all that is below it. */
static Input *
need_input(List *inputs, Oid rel)
{
	Input *input = find_input(inputs, rel);

	if (input == NULL || input->is_needed)
		return input;
	check_stack_depth();
	MrDefinition *def =
		OidIsValid(input->below) ? mr_read_rollup(input->definition) : mr_read_definition(input->definition);

	input->is_needed = true;
	input->keys = mr_key_columns(def);
	input->window = def->window;
	if (OidIsValid(input->below))
		(void) need_input(inputs, input->below);
	return input;
}

static Query *
view_query(Oid view)
{
	Relation rel = table_open(view, AccessShareLock);
	Query *query;

	if (rel->rd_rel->relkind != RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a view", RelationGetRelationName(rel))));
	query = copyObject(get_view_query(rel));
	table_close(rel, NoLock);
	return query;
}

/* Marks the aggregates that a query reads, also through plain views. */
static bool
input_walker(Node *node, List *inputs)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		/* Before PostgreSQL 16 views carry entries for themselves that are not in FROM. */
		if (rte->rtekind == RTE_RELATION && rte->inFromCl && rte->relkind == RELKIND_VIEW)
		{
			Input *input = need_input(inputs, rte->relid);

			check_stack_depth();
			if (input)
				input->is_read = true;
			else
				query_tree_walker(view_query(rte->relid), input_walker, inputs, QTW_EXAMINE_RTES_BEFORE);
		}
		return false;
	}
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, input_walker, inputs, QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, input_walker, inputs);
}

/*
 * Is an expression of a query's SELECT list a key of an aggregate, as it is?  queries: the query, then those around it.
 */
static bool
is_key(List *queries, Node *node, List *inputs)
{
	Query *query = linitial_node(Query, queries);
	RangeTblEntry *rte;
	Var *var;
	Query *inner = NULL;
	TargetEntry *tle;
	ListCell *lc;

	check_stack_depth();
	while (node && IsA(node, RelabelType))
		node = (Node *) ((RelabelType *) node)->arg;
	if (node == NULL || !IsA(node, Var) || ((Var *) node)->varlevelsup != 0 || ((Var *) node)->varattno <= 0)
		return false;
	var = (Var *) node;
	rte = rt_fetch(var->varno, query->rtable);
	switch (rte->rtekind)
	{
		case RTE_RELATION:
		{
			Input *input = find_input(inputs, rte->relid);

			if (input && input->is_read)
				return list_member_int(input->keys, var->varattno);
			if (rte->relkind == RELKIND_VIEW)
			{
				inner = view_query(rte->relid);
				queries = NIL;
			}
			break;
		}
		case RTE_SUBQUERY:
			inner = rte->subquery;
			break;
		case RTE_JOIN:
			return is_key(queries, list_nth(rte->joinaliasvars, var->varattno - 1), inputs);
#if MR_HAS_GROUP_RTE
		case RTE_GROUP:
			return is_key(queries, list_nth(rte->groupexprs, var->varattno - 1), inputs);
#endif
		case RTE_CTE:
			queries = list_copy_tail(queries, rte->ctelevelsup);
			foreach (lc, queries ? linitial_node(Query, queries)->cteList : NIL)
				if (strcmp(lfirst_node(CommonTableExpr, lc)->ctename, rte->ctename) == 0)
					inner = (Query *) lfirst_node(CommonTableExpr, lc)->ctequery;
			break;
		default:
			break;
	}
	if (inner == NULL || inner->commandType != CMD_SELECT)
		return false;
	tle = get_tle_by_resno(inner->targetList, var->varattno);
	return tle && is_key(lcons(inner, list_copy(queries)), (Node *) tle->expr, inputs);
}

/*
 * _alert_parts(view regclass, OUT source regclass, OUT sources regclass[], OUT inputs regclass[]): the aggregates that it
 * reads and the tables behind them; 42703 if it has no column window_start, 42809 if it reads no aggregate
 */
Datum
mr_alert_parts(PG_FUNCTION_ARGS)
{
	Oid view = PG_GETARG_OID(0);
	AttrNumber attno = get_attnum(view, "window_start");
	List *inputs = read_inputs(), *sources = NIL;
	Oid first = InvalidOid;
	Datum *oids = palloc((list_length(inputs) + 1) * sizeof(Datum));
	Datum values[3];
	bool nulls[3] = {false, false, false};
	TupleDesc desc;
	int n = 0;
	ListCell *lc;

	if (get_rel_relkind(view) != RELKIND_VIEW || get_rel_persistence(view) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("alert \"%s\" must not read temporary tables", get_rel_name(view)),
				 errdetail("Batches of other sessions run it.")));
	if (attno == InvalidAttrNumber)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("the query of alert \"%s\" has no column window_start", get_rel_name(view)),
				 errhint("As in: SELECT window_start, action, count FROM per_minute WHERE count > 100")));
	if (get_atttype(view, attno) != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column window_start of alert \"%s\" is of type %s", get_rel_name(view),
						format_type_be(get_atttype(view, attno))),
				 errhint("It must be the start of a window, of type timestamp with time zone.")));
	query_tree_walker(view_query(view), input_walker, inputs, QTW_EXAMINE_RTES_BEFORE);
	foreach (lc, inputs)
	{
		Input *input = lfirst(lc);

		if (!input->is_read)
			continue;
		oids[n++] = ObjectIdGetDatum(input->target);
		sources = list_append_unique_oid(sources, input->source);
		if (!OidIsValid(first))
			first = input->source;
	}
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("the query of alert \"%s\" reads no continuous aggregate", get_rel_name(view)),
				 errhint("An alert is a query over views that " MR_SCHEMA
						 ".create_continuous_aggregate has made.")));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = ObjectIdGetDatum(first);
	values[2] = PointerGetDatum(construct_array(oids, n, REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT));
	n = 0;
	list_sort(sources, list_oid_cmp);
	foreach (lc, sources)
		oids[n++] = ObjectIdGetDatum(lfirst_oid(lc));
	values[1] = PointerGetDatum(construct_array(oids, n, REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * Plans
 */

struct MrAlert
{
	Oid view;
	List *inputs;	 /* Input */
	SPIPlanPtr plan; /* for few windows */
};

MrAlert *
mr_alert_plan(Oid view, MemoryContext keep, List **depends)
{
	MemoryContext scratch =
		AllocSetContextCreate(CurrentMemoryContext, "millrace plan", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	List *inputs = read_inputs();
	MrAlert *alert;
	ListCell *lc;

	query_tree_walker(view_query(view), input_walker, inputs, QTW_EXAMINE_RTES_BEFORE);
	MemoryContextSwitchTo(keep);
	alert = palloc0(sizeof(MrAlert));
	alert->view = view;
	foreach (lc, inputs)
	{
		Input *input = palloc(sizeof(Input));

		memcpy(input, lfirst(lc), sizeof(Input));
		if (!input->is_needed)
			continue;
		if (input->window.timezone)
			input->window.timezone = DatumGetTextPCopy(PointerGetDatum(input->window.timezone));
		input->keys = list_copy(input->keys);
		alert->inputs = lappend(alert->inputs, input);
		*depends = lappend_oid(
			lappend_oid(lappend_oid(lappend_oid(*depends, input->target), input->definition), input->state),
			input->source);
	}
	*depends = lappend_oid(*depends, view);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return alert;
}

void
mr_alert_free(MrAlert *alert)
{
	if (alert->plan)
		SPI_freeplan(alert->plan);
}

/*
 * Up to so many windows are looked at one by one, so that the condition reaches all aggregates that a query joins by
 * their windows; which for many is more than to compute one side of the join as a whole.
 */
#define FEW_TIMES 20

typedef enum Form
{
	FEW,  /* $1: array of windows, one by one */
	MANY, /* $1 the same, all at once */
	RANGE /* $1 and $2: first and last window */
} Form;

/* Rows of the alert: window_start, key and value. */
static char *
rows_sql(MrAlert *alert, Form form)
{
	Relation rel = table_open(alert->view, AccessShareLock);
	Query *query = copyObject(get_view_query(rel));
	StringInfoData key, hidden, rows;
	ListCell *lc;

	initStringInfo(&key);
	initStringInfo(&hidden);
	initStringInfo(&rows);
	foreach (lc, query->targetList)
	{
		TargetEntry *tle = lfirst(lc);
		const char *name;

		if (tle->resjunk)
			continue;
		name = NameStr(TupleDescAttr(RelationGetDescr(rel), tle->resno - 1)->attname);
		if (strcmp(name, "window_start") == 0 ||
			!is_key(list_make1(query), (Node *) tle->expr, alert->inputs))
			continue;
		appendStringInfo(&key, " OPERATOR(pg_catalog.||) pg_catalog.jsonb_build_object(%s, v.%s)",
						 quote_literal_cstr(name), quote_identifier(name));
		appendStringInfo(&hidden, ", %s", quote_literal_cstr(name));
	}
	appendStringInfo(&rows,
					 "SELECT v.window_start, '{}'::pg_catalog.jsonb%s AS key, pg_catalog.to_jsonb(v) "
					 "OPERATOR(pg_catalog.-)"
					 " ARRAY['window_start'%s]::pg_catalog.text[] AS value FROM %s v WHERE v.window_start",
					 key.data, hidden.data,
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												RelationGetRelationName(rel)));
	table_close(rel, NoLock);
	switch (form)
	{
		case FEW:
			appendStringInfoString(&rows, " OPERATOR(pg_catalog.=) w.w OFFSET 0");
			return psprintf("SELECT r.* FROM pg_catalog.unnest($1) AS w(w), LATERAL (%s) r", rows.data);
		case MANY:
			appendStringInfoString(&rows, " OPERATOR(pg_catalog.=) ANY ($1)");
			break;
		case RANGE:
			appendStringInfoString(
				&rows, " OPERATOR(pg_catalog.>=) $1 AND v.window_start OPERATOR(pg_catalog.<=) $2");
			break;
	}
	return rows.data;
}

/* Run it for the windows, as the current user; the rows are in SPI_tuptable. */
static void
select_rows(MrAlert *alert, MrTimes *windows)
{
	static Oid array_types[1] = {TIMESTAMPTZARRAYOID};
	static Oid range_types[2] = {TIMESTAMPTZOID, TIMESTAMPTZOID};
	Datum args[2] = {TimestampTzGetDatum(windows->first), TimestampTzGetDatum(windows->last)};
	const char *sql;
	int rc;

	/* Locked, the view does not change, and a kept plan that is valid stays so. */
	LockRelationOid(alert->view, AccessShareLock);
	if (windows->is_range)
	{
		mr_exec_args(rows_sql(alert, RANGE), SPI_OK_SELECT, false, 2, range_types, args, NULL);
		return;
	}
	args[0] = PointerGetDatum(mr_times_array(windows));
	if (windows->n > FEW_TIMES)
	{
		mr_exec_args(rows_sql(alert, MANY), SPI_OK_SELECT, false, 1, array_types, args, NULL);
		return;
	}
	sql = alert->plan && SPI_plan_is_valid(alert->plan) ? "" : rows_sql(alert, FEW);
	rc = SPI_execute_plan(mr_prepare(&alert->plan, sql, 1, array_types), args, NULL, false, 0);
	if (rc != SPI_OK_SELECT)
		elog(ERROR, "unexpected result of an alert: %s", SPI_result_code_string(rc));
}

/*
 * Reporting
 */

/* Columns of millrace.alert_row */
enum
{
	ALERT,
	WINDOW_START,
	KEY_HASH,
	KEY,
	VALUE,
	RAISED,
	XID,
	N_COLUMNS
};

/* Has somebody who has committed, or this transaction, reported it? */
static bool
is_reported(Relation rel, Oid index, Datum *values)
{
	ScanKeyData keys[3];
	SysScanDesc scan;
	HeapTuple tuple;
	bool found = false;

	ScanKeyInit(&keys[0], ALERT + 1, BTEqualStrategyNumber, F_OIDEQ, values[ALERT]);
	ScanKeyInit(&keys[1], WINDOW_START + 1, BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ, values[WINDOW_START]);
	ScanKeyInit(&keys[2], KEY_HASH + 1, BTEqualStrategyNumber, F_INT4EQ, values[KEY_HASH]);
	scan = systable_beginscan(rel, index, true, SnapshotSelf, 3, keys);
	while (!found && (tuple = systable_getnext(scan)) != NULL)
	{
		bool isnull;

		found = DatumGetBool(DirectFunctionCall2(
			jsonb_eq, heap_getattr(tuple, KEY + 1, RelationGetDescr(rel), &isnull), values[KEY]));
	}
	systable_endscan(scan);
	return found;
}

/* Write the rows of SPI_tuptable that are new. */
static uint64
report_rows(MrAlert *alert, MrTimes *fired)
{
	Relation rel = table_open(mr_catalog("alert_row"), RowExclusiveLock);
	Oid index = mr_catalog("alert_row_key");
	Datum values[N_COLUMNS];
	bool nulls[N_COLUMNS] = {false};
	uint64 n_reported = 0;

	values[ALERT] = ObjectIdGetDatum(alert->view);
	values[RAISED] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[XID] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i], tuple;
		bool isnull;

		CHECK_FOR_INTERRUPTS();
		values[WINDOW_START] = SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &isnull);
		values[KEY] = SPI_getbinval(row, SPI_tuptable->tupdesc, 2, &isnull);
		values[VALUE] = SPI_getbinval(row, SPI_tuptable->tupdesc, 3, &isnull);
		values[KEY_HASH] = DirectFunctionCall1(jsonb_hash, values[KEY]);
		if (is_reported(rel, index, values))
			continue;
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);
		mr_times_add(fired, DatumGetTimestampTz(values[WINDOW_START]));
		n_reported++;
	}
	table_close(rel, NoLock);
	return n_reported;
}

/* Up to which time the windows of an input are final for this transaction; DT_NOEND if it has no watermark. */
static TimestampTz
input_final_to(const MrAlert *alert, const Input *input)
{
	TimestampTz start, end;
	Input *below;

	if (!OidIsValid(input->below))
		return input->has_watermark
			? DatumGetTimestampTz(DirectFunctionCall1(mr_closed_to, ObjectIdGetDatum(input->state)))
			: DT_NOEND;
	/* A window of a rollup is final when all windows in it are. */
	below = find_input(alert->inputs, input->below);
	if (below == NULL)
		return DT_NOEND;
	end = input_final_to(alert, below);
	if (TIMESTAMP_NOT_FINITE(end))
		return end;
	start = mr_last_closed(&below->window, end);
	(void) mr_pane(&below->window, start, &end);
	return end;
}

/* Up to which time all windows that the alert reads are final; DT_NOBEGIN if none has a watermark. */
static TimestampTz
final_to(const MrAlert *alert)
{
	TimestampTz result = DT_NOEND;
	ListCell *lc;

	PushActiveSnapshot(GetTransactionSnapshot());
	foreach (lc, alert->inputs)
		if (((Input *) lfirst(lc))->is_read)
			result = Min(result, input_final_to(alert, lfirst(lc)));
	PopActiveSnapshot();
	return result == DT_NOEND ? DT_NOBEGIN : result;
}

/* Add the windows that ended after from, and at or before to. */
static void
add_closed(const MrAlert *alert, TimestampTz from, TimestampTz to, MrTimes *windows)
{
	ListCell *lc;

	foreach (lc, alert->inputs)
	{
		const Input *input = lfirst(lc);
		const MrWindow *window = &input->window;
		TimestampTz first = mr_last_closed(window, from), end;
		TimestampTz start = mr_last_closed(window, to);

		if (!input->is_read || start <= first)
			continue;
		if (window->kind == MR_SESSION)
			mr_times_add_range(windows, DT_NOBEGIN, start);
		for (int n = 0; start > first && !windows->is_range; n++)
		{
			if (n == MAX_TIMES || TIMESTAMP_NOT_FINITE(start))
				mr_times_add_range(windows, first, start);
			else
				mr_times_add(windows, start);
			if (!TIMESTAMP_NOT_FINITE(start))
				start = mr_pane(window, start - 1, &end);
		}
		if (windows->is_range && start > first)
			mr_times_add_range(windows, first, start);
	}
}

/* Add the windows of an input that panes of an aggregate change, itself or one below. */
static void
add_changed(const MrAlert *alert, const Input *input, Oid target, MrTimes *panes, MrTimes *windows)
{
	Input *below = find_input(alert->inputs, input->below);
	MrTimes times, own;
	TimestampTz end;

	if (input->target == target)
	{
		mr_times_add_windows(windows, &input->window, panes);
		return;
	}
	if (!OidIsValid(input->below) || below == NULL)
		return;
	mr_times_init(&times);
	mr_times_init(&own);
	add_changed(alert, below, target, panes, &times);
	if (mr_times_is_empty(&times))
		return;
	if (times.is_range)
		mr_times_add_range(&own, mr_pane(&input->window, times.first, &end),
						   mr_pane(&input->window, times.last, &end));
	for (int i = 0; i < times.n; i++)
		mr_times_add(&own, mr_pane(&input->window, times.values[i], &end));
	mr_times_add_windows(windows, &input->window, &own);
}

void
mr_alert_changed(const MrAlert *alert, Oid target, MrTimes *panes, MrTimes *windows)
{
	ListCell *lc;

	foreach (lc, alert->inputs)
		if (((Input *) lfirst(lc))->is_read)
			add_changed(alert, lfirst(lc), target, panes, windows);
}

uint64
mr_alert_run(MrAlert *alert, MrTimes *windows, MrSeen *seen, TimestampTz *looked_to, MrTimes *fired)
{
	TimestampTz from = Max(seen->closed_to, *looked_to);
	TimestampTz to = final_to(alert);
	MrTimes closed;
	MrTimes *sets[2] = {windows, &closed};
	uint64 n_reported = 0;
	int gucs = NewGUCNestLevel();

	/* Compiling takes longer than what it would save: the query looks at few rows. */
	(void) set_config_option("jit", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);

	mr_times_init(&closed);
	if (to > from)
	{
		add_closed(alert, from, to, &closed);
		*looked_to = to;
	}
	/* Two ranges must not become one that holds more. */
	if (!windows->is_range && !closed.is_range)
	{
		mr_times_merge(windows, &closed);
		mr_times_init(&closed);
	}
	for (int i = 0; i < 2; i++)
	{
		if (mr_times_is_empty(sets[i]))
			continue;
		SPI_connect();
		select_rows(alert, sets[i]);
		n_reported += report_rows(alert, fired);
		SPI_finish();
	}
	AtEOXact_GUC(false, gucs);
	return n_reported;
}

/* So many windows are named in one message, which must have less than 8000 bytes. */
#define NOTIFIED_TIMES 100

void
mr_alert_notify(const char *name, MrTimes *fired)
{
	StringInfoData buf;
	char time[MAXDATELEN + 1];
	int utc = 0; /* whatever the time zone of the writer */

	if (mr_times_is_empty(fired))
		return;
	sort_times(fired);
	initStringInfo(&buf);
	appendStringInfoString(&buf, "{\"alert\": ");
	escape_json(&buf, name);
	JsonEncodeDateTime(time, TimestampTzGetDatum(fired->first), TIMESTAMPTZOID, &utc);
	appendStringInfo(&buf, ", \"window_start\": \"%s\", \"windows\": [", time);
	for (int i = 0; i < Min(fired->n, NOTIFIED_TIMES); i++)
	{
		JsonEncodeDateTime(time, TimestampTzGetDatum(fired->values[i]), TIMESTAMPTZOID, &utc);
		appendStringInfo(&buf, "%s\"%s\"", i ? ", " : "", time);
	}
	appendStringInfo(&buf, "], \"more\": %s}",
					 fired->is_range || fired->n > NOTIFIED_TIMES ? "true" : "false");
	Async_Notify("millrace", buf.data);
	pfree(buf.data);
}

/* Forget what an alert that is dropped has reported. */
void
mr_alert_forget(Oid view)
{
	Relation rel = table_open(mr_catalog("alert_row"), RowExclusiveLock);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyInit(&key, ALERT + 1, BTEqualStrategyNumber, F_OIDEQ, ObjectIdGetDatum(view));
	scan = systable_beginscan(rel, mr_catalog("alert_row_key"), true, snapshot, 1, &key);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		simple_heap_delete(rel, &tuple->t_self);
	}
	systable_endscan(scan);
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	mr_watermark_prune(view, true);
}

/* _alert_start(view regclass): windows that are final already are of no interest */
Datum
mr_alert_start(PG_FUNCTION_ARGS)
{
	Oid view = PG_GETARG_OID(0);
	List *depends = NIL;
	MrSeen seen = {view, DT_NOBEGIN, DT_NOBEGIN};
	TimestampTz to;

	if (!mr_owns_relation(view, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_VIEW, get_rel_name(view));
	to = final_to(mr_alert_plan(view, CurrentMemoryContext, &depends));
	seen.horizon = ReadNextFullTransactionId();
	mr_watermark_write(&seen, to, DT_NOBEGIN);
	PG_RETURN_VOID();
}
