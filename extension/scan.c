/*
 * scan.c: one pass over the rows of a batch, in C.
 *
 * The rows are those of a trigger's transition table.  mr_scan_aggregate groups them by window and keys and gives
 * each group's partial states to a sink; mr_scan_split only tells late rows from others, for definitions that the
 * executor must run.  What PostgreSQL's own Agg node over a tuplestore takes 180 ns a row for is done in a fifth:
 *
 *   columns     are read from the tuple in place where they are at constant offsets; only real expressions are
 *               evaluated
 *   windows     the last pane's bounds are compared first; others are found in a small direct-mapped cache
 *   keys        are hashed and compared as bytes, whatever their type.  Equal keys of different bytes (numeric 1.0
 *               and 1.00) become two groups, which is all right, because every reader merges states by the keys'
 *               own equality; so no hash or equality function is called
 *   aggregates  call the transition function as nodeAgg.c does, with the same rules for strict functions, values
 *               passed by reference and expanded objects.  There is no list of known aggregates
 *
 * All that does not depend on the rows is in MrScanPlan, made by the first run and kept below the MrScan's memory.
 * While it runs the plan belongs to the running call: an error takes it away with the batch's memory, and a run inside
 * a run (a function in the query that inserts into the source) makes its own.
 */
#include "millrace.h"
#include "aggregate.h"

#include "access/tupmacs.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_proc.h"
#include "common/pg_prng.h"
#include "executor/executor.h"
#include "executor/nodeAgg.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "parser/parse_agg.h"
#include "parser/parse_coerce.h"
#include "port/pg_bitutils.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/expandeddatum.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

/* Rows between looks at interrupts and memory. */
#define CHECK_ROWS 1024
/* New groups between looks at memory. */
#define CHECK_GROUPS 64
#define MAX_GROUPS (UINT32_C(1) << 27)
#define N_PANES 1024

/* Where a value of a row comes from: a column, a constant, or an expression to evaluate. */
typedef struct Input
{
	ExprState *state;  /* expression, or NULL */
	AttrNumber column; /* column, or 0 */
	int offset;		   /* of the column in a row without NULLs before it, or -1 if not constant */
	int16 len;
	bool by_value;
	NullableDatum constant;
} Input;

/* A transition state, kept for each group; aggregates with the same inputs share it (sum and avg). */
typedef struct Transition
{
	Aggref *agg;
	Oid function_oid;
	Oid serial_oid;
	Oid sealed_for; /* what will read it, if it is stored with a seal */
	Oid type;
	FmgrInfo function;
	FunctionCallInfo call; /* args[0] is the state */
	FmgrInfo serial;
	FunctionCallInfo serial_call; /* NULL: the state is stored as it is */
	ExprState *filter;
	Input *args;
	int n_args;
	int16 len;
	bool by_value;
	NullableDatum initial;
	AggStatePerTransData info; /* for functions that ask for their Aggref */
} Transition;

typedef struct Pane
{
	TimestampTz start;
	TimestampTz end;
} Pane;

typedef struct Bucket
{
	uint32 hash;
	uint32 group; /* number + 1; 0: empty */
} Bucket;

typedef struct MrScanPlan
{
	MemoryContext context;
	Oid user; /* whose rights were checked */
	const MrWindow *window;

	/* reading */
	TupleTableSlot *slot;
	int n_columns;	  /* columns up to the last that is needed as it is */
	uint8 not_null;	  /* their bits in a tuple's NULL bitmap, or 0 if some is not at a constant offset */
	const char *data; /* the current row's columns if at constant offsets, else they are in slot */
	EState *estate;
	ExprContext *row; /* its memory lasts for one row */
	Input time;
	ExprState *quals;

	/* the current row's window_start and keys */
	int n_keys; /* with window_start */
	Input *keys;
	Datum *values;
	bool *nulls;
	uint64 seed;
	Pane *pane;
	int pane_shift;
	Pane *panes; /* N_PANES, while the plan is in use */

	/* aggregates */
	int n_transitions;
	Transition *transitions;
	int n_aggs;
	int *agg_transition; /* which of the transitions is an aggregate's */
	AggState *agg_state;
	Datum *out_values;
	bool *out_nulls;

	/*
	 * Groups: window_start, keys and states (Datum), then their NULL flags, then for each state whether it is still
	 * without a value.  All in the memory of group_context, which is the transition functions' aggregate context.
	 */
	ExprContext *group_context;
	Size memory_limit;
	Size stride;
	char *groups;
	uint32 n_groups;
	uint32 max_groups;
	uint32 n_expected; /* groups of the last run */
	Bucket *buckets;
	uint32 mask;
	char *arena; /* free rest of a chunk for keys */
	Size arena_bytes;
} MrScanPlan;

/*
 * Plans
 */

/* Offset of a column in a tuple without NULLs before it, or -1: behind a column of variable length it is not constant. */
static int
column_offset(TupleDesc desc, AttrNumber column)
{
	int offset = 0;

	for (int i = 0;; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		int aligned = att_align_nominal(offset, att->attalign);

		if (i == column - 1)
			return att->attlen > 0 || (att->attlen == -1 && aligned == offset) ? aligned : -1;
		if (att->attlen <= 0)
			return -1;
		offset = aligned + att->attlen;
	}
}

static void
make_input(MrScanPlan *plan, Input *input, Expr *expr, TupleDesc desc)
{
	get_typlenbyval(exprType((Node *) expr), &input->len, &input->by_value);
	if (input->len < -1)
		elog(ERROR, "unexpected type %u of a stored value", exprType((Node *) expr));
	expr = expression_planner(expr);
	while (IsA(expr, RelabelType))
		expr = ((RelabelType *) expr)->arg;
	if (IsA(expr, Var))
	{
		Var *var = (Var *) expr;

		if (var->varno != 1 || var->varattno <= 0 || var->varattno > desc->natts || var->varlevelsup != 0 ||
			TupleDescAttr(desc, var->varattno - 1)->atttypid != var->vartype)
			elog(ERROR, "unexpected column %d of table %d in the scan of a batch", var->varattno, var->varno);
		input->column = var->varattno;
		input->offset = column_offset(desc, var->varattno);
		plan->n_columns = Max(plan->n_columns, input->column);
		if (input->offset < 0)
			plan->not_null = 0;
	}
	else if (IsA(expr, Const))
	{
		input->constant.value = ((Const *) expr)->constvalue;
		input->constant.isnull = ((Const *) expr)->constisnull;
	}
	else
		input->state = ExecInitExpr(expr, NULL);
}

static void
check_execute(Oid function, Oid user, ObjectType type)
{
	AclResult result = mr_function_aclcheck(function, user);

	if (result != ACLCHECK_OK)
		aclcheck_error(result, type, get_func_name(function));
	InvokeFunctionExecuteHook(function);
}

static Oid
function_owner(Oid function)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	owner = ((Form_pg_proc) GETSTRUCT(tuple))->proowner;
	ReleaseSysCache(tuple);
	return owner;
}

static void
make_functions(MrScanPlan *plan, Transition *trans, Oid *arg_types, int n_args)
{
	Aggref *agg = trans->agg;
	Expr *expr;

	fmgr_info(trans->function_oid, &trans->function);
	build_aggregate_transfn_expr(arg_types, n_args, 0, agg->aggvariadic, trans->type, agg->inputcollid,
								 trans->function_oid, InvalidOid, &expr, NULL);
	fmgr_info_set_expr((Node *) expr, &trans->function);
	trans->call = palloc0(SizeForFunctionCallInfo(n_args + 1));
	InitFunctionCallInfoData(*trans->call, &trans->function, n_args + 1, agg->inputcollid,
							 (Node *) plan->agg_state, NULL);
	/* A strict function without an initial value starts from its first input. */
	if (trans->function.fn_strict && trans->initial.isnull &&
		(n_args == 0 || !IsBinaryCoercible(arg_types[0], trans->type)))
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
			 errmsg("aggregate %u needs to have compatible input type and transition type", agg->aggfnoid)));
	if (!OidIsValid(trans->serial_oid))
		return;
	fmgr_info(trans->serial_oid, &trans->serial);
	build_aggregate_serialfn_expr(trans->serial_oid, &expr);
	fmgr_info_set_expr((Node *) expr, &trans->serial);
	trans->serial_call = palloc0(SizeForFunctionCallInfo(1));
	InitFunctionCallInfoData(*trans->serial_call, &trans->serial, 1, InvalidOid, (Node *) plan->agg_state,
							 NULL);
}

static bool
same_transition(const Transition *a, const Transition *b)
{
	return a->function_oid == b->function_oid && a->serial_oid == b->serial_oid && a->type == b->type &&
		a->agg->inputcollid == b->agg->inputcollid && a->agg->aggvariadic == b->agg->aggvariadic &&
		equal(a->agg->args, b->agg->args) && equal(a->agg->aggfilter, b->agg->aggfilter) &&
		a->initial.isnull == b->initial.isnull &&
		(a->initial.isnull || datumIsEqual(a->initial.value, b->initial.value, a->by_value, a->len));
}

/* Adds an aggregate: what ExecInitAgg does for AGGSPLIT_INITIAL_SERIAL. */
static void
make_transition(MrScanPlan *plan, Aggref *agg, TupleDesc desc)
{
	Transition *trans = &plan->transitions[plan->n_transitions];
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg->aggfnoid));
	Form_pg_aggregate form;
	Oid arg_types[FUNC_MAX_ARGS];
	int n_arg_types = get_aggregate_argtypes(agg, arg_types);
	Oid owner = function_owner(agg->aggfnoid);
	Datum initial;
	ListCell *lc;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", agg->aggfnoid);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	check_execute(agg->aggfnoid, plan->user, OBJECT_AGGREGATE);
	trans->agg = agg;
	trans->function_oid = form->aggtransfn;
	trans->type = resolve_aggregate_transtype(agg->aggfnoid, form->aggtranstype, arg_types, n_arg_types);
	trans->serial_oid = trans->type == INTERNALOID ? form->aggserialfn : InvalidOid;
	trans->sealed_for =
		trans->type == INTERNALOID && mr_is_sealed(form->aggdeserialfn) ? form->aggdeserialfn : InvalidOid;
	if (agg->aggkind != AGGKIND_NORMAL || agg->aggorder || agg->aggdistinct ||
		(trans->type == INTERNALOID && !OidIsValid(trans->serial_oid)))
		elog(ERROR, "aggregate %u has no partial states", agg->aggfnoid);
	check_execute(trans->function_oid, owner, OBJECT_FUNCTION);
	if (OidIsValid(trans->serial_oid))
		check_execute(trans->serial_oid, owner, OBJECT_FUNCTION);
	get_typlenbyval(trans->type, &trans->len, &trans->by_value);
	initial = SysCacheGetAttr(AGGFNOID, tuple, Anum_pg_aggregate_agginitval, &trans->initial.isnull);
	if (!trans->initial.isnull)
	{
		Oid input, io_param;

		getTypeInputInfo(trans->type, &input, &io_param);
		trans->initial.value = OidInputFunctionCall(input, TextDatumGetCString(initial), io_param, -1);
	}
	ReleaseSysCache(tuple);

	for (int i = 0; i < plan->n_transitions; i++)
		if (same_transition(&plan->transitions[i], trans))
		{
			plan->transitions[i].info.aggshared = true;
			plan->agg_transition[plan->n_aggs++] = i;
			memset(trans, 0, sizeof(Transition));
			return;
		}
	plan->agg_transition[plan->n_aggs++] = plan->n_transitions++;
	trans->info.aggref = agg;
	make_functions(plan, trans, arg_types, n_arg_types);
	if (agg->aggfilter)
		trans->filter = ExecPrepareQual(list_make1(agg->aggfilter), plan->estate);
	trans->n_args = n_arg_types;
	trans->args = palloc0((n_arg_types + 1) * sizeof(Input));
	foreach (lc, agg->args)
		make_input(plan, &trans->args[foreach_current_index(lc)], lfirst_node(TargetEntry, lc)->expr, desc);
}

static void
make_groups(MrScanPlan *plan, MrScan *scan)
{
	int n_values = list_length(scan->keys) + list_length(scan->aggs);
	ListCell *lc;

	plan->n_keys = list_length(scan->keys);
	plan->keys = palloc0(n_values * sizeof(Input));
	plan->values = palloc0(n_values * sizeof(Datum));
	plan->nulls = palloc0(n_values * sizeof(bool));
	plan->out_values = palloc0(n_values * sizeof(Datum));
	plan->out_nulls = palloc0(n_values * sizeof(bool));
	plan->keys[0].len = sizeof(TimestampTz);
	plan->keys[0].by_value = true;
	for_each_from(lc, scan->keys, 1)
		make_input(plan, &plan->keys[foreach_current_index(lc)], lfirst(lc), scan->desc);

	plan->group_context = CreateWorkExprContext(plan->estate);
	plan->agg_state = makeNode(AggState);
	plan->agg_state->ss.ps.state = plan->estate;
	plan->agg_state->tmpcontext = plan->row;
	plan->agg_state->curaggcontext = plan->group_context;
	plan->transitions = palloc0(list_length(scan->aggs) * sizeof(Transition));
	plan->agg_transition = palloc0(list_length(scan->aggs) * sizeof(int));
	foreach (lc, scan->aggs)
		make_transition(plan, lfirst_node(Aggref, lc), scan->desc);
	n_values = plan->n_keys + plan->n_transitions;
	plan->stride = MAXALIGN(n_values * sizeof(Datum) + (n_values + plan->n_transitions) * sizeof(bool));
	plan->seed = pg_prng_uint64(&pg_global_prng_state);
}

static MrScanPlan *
make_plan(MrScan *scan)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace scan", ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	MrScanPlan *plan = palloc0(sizeof(MrScanPlan));
	const Interval *slide = &scan->window.slide;

	plan->context = context;
	plan->user = GetUserId();
	plan->window = &scan->window;
	plan->slot = MakeSingleTupleTableSlot(scan->desc, &TTSOpsMinimalTuple);
	plan->estate = CreateExecutorState();
	plan->row = CreateExprContext(plan->estate);
	plan->row->ecxt_scantuple = plan->slot;
	plan->quals = ExecPrepareQual(scan->quals, plan->estate);
	plan->not_null = 0xff;
	make_input(plan, &plan->time, scan->time, scan->desc);
	if (scan->window.kind != MR_SESSION)
	{
		/* A cache entry is for a quarter to half of a pane, so that not many have to hold two. */
		uint64 us = slide->time + (uint64) slide->day * USECS_PER_DAY +
			(uint64) slide->month * DAYS_PER_MONTH * USECS_PER_DAY;

		plan->pane_shift = Max(pg_leftmost_one_pos64(us | 1) - 1, 0);
	}
	if (scan->is_simple)
		make_groups(plan, scan);
	/* The NULL bitmap is looked at for eight columns; behind them rows are read in the general way. */
	plan->not_null = plan->n_columns > 8 ? 0 : plan->not_null & (0xff >> (8 - plan->n_columns));
	MemoryContextSwitchTo(old);
	return plan;
}

/* The scan's plan, which the caller has to himself until release_plan. */
static MrScanPlan *
acquire_plan(MrScan *scan)
{
	MrScanPlan *plan = scan->plan;

	if (plan && plan->user != GetUserId())
	{
		MemoryContextDelete(plan->context);
		plan = NULL;
	}
	scan->plan = NULL;
	if (plan)
		MemoryContextSetParent(plan->context, CurrentMemoryContext);
	else
		plan = make_plan(scan);
	plan->memory_limit = get_hash_memory_limit();
	/* Not kept: a backend may have plans for thousands of partitions. */
	plan->pane = plan->panes = palloc0(N_PANES * sizeof(Pane));
	return plan;
}

static void
release_plan(MrScan *scan, MrScanPlan *plan)
{
	ExecClearTuple(plan->slot);
	ResetExprContext(plan->row);
	pfree(plan->panes);
	plan->pane = plan->panes = NULL;
	if (scan->plan)
		MemoryContextDelete(plan->context);
	else
	{
		MemoryContextSetParent(plan->context, GetMemoryChunkContext(scan));
		scan->plan = plan;
	}
}

/*
 * Rows
 */

/* A read pointer of our own: others may be reading the same rows. */
static void
begin_rows(Tuplestorestate *rows)
{
	tuplestore_select_read_pointer(rows, tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND));
	tuplestore_rescan(rows);
}

static void
end_rows(Tuplestorestate *rows)
{
	tuplestore_select_read_pointer(rows, 0);
}

static inline bool
next_row(MrScanPlan *plan, Tuplestorestate *rows)
{
	HeapTupleHeader tuple;

	if (!tuplestore_gettupleslot(rows, true, false, plan->slot))
		return false;
	tuple = ((MinimalTupleTableSlot *) plan->slot)->minhdr.t_data;
	if (plan->not_null && HeapTupleHeaderGetNatts(tuple) >= plan->n_columns &&
		(!(tuple->t_infomask & HEAP_HASNULL) || (tuple->t_bits[0] & plan->not_null) == plan->not_null))
		plan->data = (char *) tuple + tuple->t_hoff;
	else
	{
		plan->data = NULL;
		slot_getsomeattrs(plan->slot, plan->n_columns);
	}
	return true;
}

/* Free what the row left; mostly nothing, and this runs for every row. */
static inline void
end_row(MrScanPlan *plan)
{
	MemoryContext memory = plan->row->ecxt_per_tuple_memory;

	if (!memory->isReset || memory->firstchild)
		MemoryContextReset(memory);
}

static inline Datum
input_value(MrScanPlan *plan, const Input *input, bool *is_null)
{
	if (input->column && plan->data)
	{
		*is_null = false;
		return fetch_att(plan->data + input->offset, input->by_value, input->len);
	}
	if (input->column)
	{
		*is_null = plan->slot->tts_isnull[input->column - 1];
		return plan->slot->tts_values[input->column - 1];
	}
	if (input->state)
		return ExecEvalExpr(input->state, plan->row, is_null);
	*is_null = input->constant.isnull;
	return input->constant.value;
}

static TimestampTz pg_noinline
other_pane(MrScanPlan *plan, TimestampTz ts)
{
	Pane *pane = &plan->panes[((uint64) ts >> plan->pane_shift) % N_PANES];

	if (ts < pane->start || ts >= pane->end)
	{
		TimestampTz end;

		pane->start = mr_pane(plan->window, ts, &end);
		pane->end = end;
	}
	plan->pane = pane;
	return pane->start;
}

static inline TimestampTz
pane_start(MrScanPlan *plan, TimestampTz ts)
{
	return ts >= plan->pane->start && ts < plan->pane->end ? plan->pane->start : other_pane(plan, ts);
}

/* The current row's event time; false if it is NULL. */
static inline bool
event_time(MrScanPlan *plan, MrScanRun *run, TimestampTz *ts)
{
	bool is_null;

	*ts = DatumGetTimestampTz(input_value(plan, &plan->time, &is_null));
	if (is_null)
		return false;
	if (*ts > run->max_time && *ts <= run->max_allowed && *ts != DT_NOEND)
		run->max_time = *ts;
	return true;
}

bool
mr_scan_split(MrScan *scan, MrScanRun *run, Tuplestorestate *rows, Tuplestorestate **on_time,
			  Tuplestorestate **late)
{
	MrScanPlan *plan = acquire_plan(scan);
	MemoryContext old = CurrentMemoryContext;
	int n_passes = 1;

	run->max_time = DT_NOBEGIN;
	run->n_late = 0;
	for (int pass = 0; pass < n_passes; pass++)
	{
		uint64 n_rows = 0;

		begin_rows(rows);
		while (next_row(plan, rows))
		{
			TimestampTz ts;
			bool is_late;

			MemoryContextSwitchTo(plan->row->ecxt_per_tuple_memory);
			is_late = event_time(plan, run, &ts) && run->late_bound != DT_NOBEGIN &&
				(plan->window->kind == MR_SESSION ? ts : pane_start(plan, ts)) <= run->late_bound &&
				ExecQual(plan->quals, plan->row);
			if (pass == 0)
				run->n_late += is_late;
			else
				tuplestore_puttupleslot(is_late ? *late : *on_time, plan->slot);
			MemoryContextSwitchTo(old);
			end_row(plan);
			if (++n_rows % CHECK_ROWS == 0)
				CHECK_FOR_INTERRUPTS();
		}
		end_rows(rows);
		if (pass == 0 && run->n_late > 0 && on_time)
		{
			*on_time = tuplestore_begin_heap(false, false, work_mem);
			*late = tuplestore_begin_heap(false, false, work_mem);
			n_passes = 2;
		}
	}
	release_plan(scan, plan);
	return run->n_late > 0;
}

void
mr_scan_ranges(MrScan *scan, Tuplestorestate *rows, MrRanges *ranges)
{
	MrScanPlan *plan = acquire_plan(scan);
	MrScanRun run = {.max_allowed = DT_NOBEGIN};
	MemoryContext old = CurrentMemoryContext;
	uint64 n_rows = 0;

	begin_rows(rows);
	while (next_row(plan, rows))
	{
		TimestampTz ts, start, end;

		MemoryContextSwitchTo(plan->row->ecxt_per_tuple_memory);
		if (!event_time(plan, &run, &ts))
			ranges->with_null = true;
		else if (plan->window->kind == MR_SESSION)
		{
			/* A session that it belongs to has an event no further than the gap, or is itself. */
			start = mr_plus_interval(ts, &plan->window->size, -1);
			end = mr_plus_interval(ts, &plan->window->size, 1);
			mr_ranges_add(ranges, start, end, end);
		}
		else
		{
			start = pane_start(plan, ts);
			mr_ranges_add(ranges, start, start, plan->pane->end);
		}
		MemoryContextSwitchTo(old);
		ResetExprContext(plan->row);
		if (++n_rows % CHECK_ROWS == 0)
			CHECK_FOR_INTERRUPTS();
	}
	end_rows(rows);
	release_plan(scan, plan);
}

/*
 * Groups
 */

static inline Datum *
group_values(char *group)
{
	return (Datum *) group;
}

static inline bool *
group_nulls(const MrScanPlan *plan, char *group)
{
	return (bool *) (group + (plan->n_keys + plan->n_transitions) * sizeof(Datum));
}

static void
begin_groups(MrScanPlan *plan)
{
	MemoryContext old = MemoryContextSwitchTo(plan->group_context->ecxt_per_tuple_memory);
	Size max = plan->memory_limit / 4 / (plan->stride + 2 * sizeof(Bucket));

	plan->max_groups = 64;
	while (plan->max_groups < plan->n_expected && plan->max_groups * 2 <= max)
		plan->max_groups *= 2;
	plan->n_groups = 0;
	plan->mask = plan->max_groups * 2 - 1;
	plan->groups = palloc_extended(plan->max_groups * plan->stride, MCXT_ALLOC_HUGE);
	plan->buckets = palloc_extended((plan->mask + 1) * sizeof(Bucket), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	plan->arena_bytes = 0;
	MemoryContextSwitchTo(old);
}

static void
grow_groups(MrScanPlan *plan)
{
	uint32 mask = plan->mask * 2 + 1;
	Bucket *buckets =
		MemoryContextAllocExtended(plan->group_context->ecxt_per_tuple_memory,
								   ((Size) mask + 1) * sizeof(Bucket), MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);

	for (uint32 i = 0; i <= plan->mask; i++)
		if (plan->buckets[i].group)
		{
			uint32 place = plan->buckets[i].hash & mask;

			while (buckets[place].group)
				place = (place + 1) & mask;
			buckets[place] = plan->buckets[i];
		}
	pfree(plan->buckets);
	plan->buckets = buckets;
	plan->mask = mask;
	plan->max_groups *= 2;
	plan->groups = repalloc_huge(plan->groups, plan->max_groups * plan->stride);
}

/* A copy of a key that lasts as long as the groups; many small ones share a chunk. */
static Datum
copy_key(MrScanPlan *plan, const Input *key, Datum value)
{
	const char *from = DatumGetPointer(value);
	Size bytes = key->len == -1 ? VARSIZE_ANY(from) : key->len;
	Size aligned = MAXALIGN(bytes);
	char *to;

	if (aligned > plan->arena_bytes)
	{
		plan->arena_bytes = Max(aligned, ALLOCSET_DEFAULT_INITSIZE / 2);
		plan->arena = MemoryContextAllocHuge(plan->group_context->ecxt_per_tuple_memory, plan->arena_bytes);
	}
	to = plan->arena;
	plan->arena += aligned;
	plan->arena_bytes -= aligned;
	memcpy(to, from, bytes);
	return PointerGetDatum(to);
}

static char *
add_group(MrScanPlan *plan)
{
	char *group = plan->groups + plan->n_groups++ * plan->stride;
	Datum *values = group_values(group);
	bool *nulls = group_nulls(plan, group);
	bool *empty = nulls + plan->n_keys + plan->n_transitions;

	for (int i = 0; i < plan->n_keys; i++)
	{
		nulls[i] = plan->nulls[i];
		values[i] = nulls[i] || plan->keys[i].by_value ? plan->values[i]
													   : copy_key(plan, &plan->keys[i], plan->values[i]);
	}
	for (int i = 0; i < plan->n_transitions; i++)
	{
		const Transition *trans = &plan->transitions[i];

		nulls[plan->n_keys + i] = empty[i] = trans->initial.isnull;
		values[plan->n_keys + i] = trans->initial.value;
		if (!trans->initial.isnull && !trans->by_value)
		{
			MemoryContext old = MemoryContextSwitchTo(plan->group_context->ecxt_per_tuple_memory);

			values[plan->n_keys + i] = datumCopy(trans->initial.value, false, trans->len);
			MemoryContextSwitchTo(old);
		}
	}
	return group;
}

static inline bool
same_key(const Input *key, Datum a, Datum b)
{
	const char *x = DatumGetPointer(a);
	const char *y = DatumGetPointer(b);

	if (key->by_value)
		return a == b;
	if (key->len > 0)
		return memcmp(x, y, key->len) == 0;
	return VARSIZE_ANY_EXHDR(x) == VARSIZE_ANY_EXHDR(y) &&
		memcmp(VARDATA_ANY(x), VARDATA_ANY(y), VARSIZE_ANY_EXHDR(x)) == 0;
}

static inline bool
same_group(const MrScanPlan *plan, char *group)
{
	const Datum *values = group_values(group);
	const bool *nulls = group_nulls(plan, group);

	for (int i = 0; i < plan->n_keys; i++)
		if (nulls[i] != plan->nulls[i] ||
			(!nulls[i] && !same_key(&plan->keys[i], values[i], plan->values[i])))
			return false;
	return true;
}

/* The group of the current row, new if there is none. */
static inline char *
find_group(MrScanPlan *plan, uint32 hash)
{
	uint32 place = hash & plan->mask;
	char *group;

	for (; plan->buckets[place].group; place = (place + 1) & plan->mask)
		if (plan->buckets[place].hash == hash)
		{
			group = plan->groups + (plan->buckets[place].group - 1) * plan->stride;
			if (same_group(plan, group))
				return group;
		}
	if (plan->n_groups == plan->max_groups)
	{
		grow_groups(plan);
		place = hash & plan->mask;
		while (plan->buckets[place].group)
			place = (place + 1) & plan->mask;
	}
	group = add_group(plan);
	plan->buckets[place].hash = hash;
	plan->buckets[place].group = plan->n_groups;
	return group;
}

/*
 * Hashing: xor, multiply and shift for each word of eight bytes.  The seed is random, so that nobody can prepare
 * keys that all fall together.
 */
static inline uint64
hash_word(uint64 hash, uint64 word)
{
	hash = (hash ^ word) * UINT64CONST(0x9E3779B97F4A7C15);
	return hash ^ (hash >> 32);
}

static inline uint64
hash_bytes_at(uint64 hash, const char *bytes, Size n)
{
	uint64 word;
	uint32 low, high;

	hash = hash_word(hash, n);
	for (; n > 8; n -= 8, bytes += 8)
	{
		memcpy(&word, bytes, 8);
		hash = hash_word(hash, word);
	}
	if (n >= 4)
	{
		memcpy(&low, bytes, 4);
		memcpy(&high, bytes + n - 4, 4);
		return hash_word(hash, low | (uint64) high << 32);
	}
	if (n > 0)
		return hash_word(hash,
						 (uint8) bytes[0] | (uint32) (uint8) bytes[n / 2] << 8 |
							 (uint32) (uint8) bytes[n - 1] << 16);
	return hash;
}

/* Reads the keys behind the window into plan->values; returns the hash of all. */
static inline uint32
read_keys(MrScanPlan *plan)
{
	uint64 hash = hash_word(plan->seed, plan->nulls[0] ? 1 : (uint64) plan->values[0]);

	for (int i = 1; i < plan->n_keys; i++)
	{
		const Input *key = &plan->keys[i];
		Datum value = input_value(plan, key, &plan->nulls[i]);

		if (plan->nulls[i])
			hash = hash_word(hash, PG_UINT64_MAX);
		else if (key->by_value)
			hash = hash_word(hash, (uint64) value);
		else if (key->len > 0)
			hash = hash_bytes_at(hash, DatumGetPointer(value), key->len);
		else
		{
			struct varlena *packed = pg_detoast_datum_packed((struct varlena *) DatumGetPointer(value));

			value = PointerGetDatum(packed);
			hash = hash_bytes_at(hash, VARDATA_ANY(packed), VARSIZE_ANY_EXHDR(packed));
		}
		plan->values[i] = value;
	}
	return (uint32) (hash ^ (hash >> 29));
}

/*
 * Transitions: advance_transition_function and its kin in nodeAgg.c and execExprInterp.c
 */

/* Let a by-reference result outlive the row, in the groups' memory, and free the value it takes the place of. */
static Datum
keep_result(MrScanPlan *plan, const Transition *trans, Datum result, bool result_is_null, Datum before,
			bool before_is_null)
{
	MemoryContext groups = plan->group_context->ecxt_per_tuple_memory;

	if (result_is_null)
		result = (Datum) 0;
	else if (!DatumIsReadWriteExpandedObject(result, false, trans->len) ||
			 MemoryContextGetParent(DatumGetEOHP(result)->eoh_context) != groups)
	{
		MemoryContext old = MemoryContextSwitchTo(groups);

		result = datumCopy(result, false, trans->len);
		MemoryContextSwitchTo(old);
	}
	if (before_is_null)
		return result;
	if (DatumIsReadWriteExpandedObject(before, false, trans->len))
		DeleteExpandedObject(before);
	else
		pfree(DatumGetPointer(before));
	return result;
}

static inline void
advance(MrScanPlan *plan, Transition *trans, Datum *value, bool *is_null, bool *is_empty)
{
	FunctionCallInfo call = trans->call;
	Datum result;

	if (trans->filter && !ExecQual(trans->filter, plan->row))
		return;
	for (int i = 0; i < trans->n_args; i++)
		call->args[i + 1].value = input_value(plan, &trans->args[i], &call->args[i + 1].isnull);
	if (trans->function.fn_strict)
	{
		for (int i = 1; i <= trans->n_args; i++)
			if (call->args[i].isnull)
				return;
		if (*is_empty)
		{
			MemoryContext old = MemoryContextSwitchTo(plan->group_context->ecxt_per_tuple_memory);

			*value = datumCopy(call->args[1].value, trans->by_value, trans->len);
			*is_null = *is_empty = false;
			MemoryContextSwitchTo(old);
			return;
		}
		if (*is_null)
			return;
	}
	plan->agg_state->curpertrans = &trans->info;
	call->args[0].value = *value;
	call->args[0].isnull = *is_null;
	call->isnull = false;
	result = FunctionCallInvoke(call);
	if (!trans->by_value && DatumGetPointer(result) != DatumGetPointer(*value))
		result = keep_result(plan, trans, result, call->isnull, *value, *is_null);
	*value = result;
	*is_null = call->isnull;
	*is_empty = false;
}

static inline void
advance_all(MrScanPlan *plan, char *group)
{
	Datum *values = group_values(group) + plan->n_keys;
	bool *nulls = group_nulls(plan, group) + plan->n_keys;
	bool *empty = nulls + plan->n_transitions;

	for (int i = 0; i < plan->n_transitions; i++)
		advance(plan, &plan->transitions[i], &values[i], &nulls[i], &empty[i]);
}

/* The state as it is stored: finalize_partialaggregate in nodeAgg.c. */
static Datum
stored_state(MrScanPlan *plan, Transition *trans, Datum value, bool *is_null)
{
	if (!trans->by_value)
		value = MakeExpandedObjectReadOnly(value, *is_null, trans->len);
	if (trans->serial_call == NULL)
		return value;
	if (*is_null && trans->serial.fn_strict)
		return (Datum) 0;
	plan->agg_state->curpertrans = &trans->info;
	trans->serial_call->args[0].value = value;
	trans->serial_call->args[0].isnull = *is_null;
	trans->serial_call->isnull = false;
	value = FunctionCallInvoke(trans->serial_call);
	*is_null = trans->serial_call->isnull;
	return OidIsValid(trans->sealed_for) && !*is_null ? mr_seal_state(trans->sealed_for, value) : value;
}

/* Give all groups to the sink, and forget them. */
static void
emit_groups(MrScanPlan *plan, const MrScanRun *run, MrGroupSink sink, void *arg)
{
	MemoryContext old = CurrentMemoryContext;

	for (uint32 i = 0; i < plan->n_groups; i++)
	{
		char *group = plan->groups + i * plan->stride;
		Datum *values = group_values(group);
		bool *nulls = group_nulls(plan, group);
		bool is_late =
			run->late_bound != DT_NOBEGIN && !nulls[0] && DatumGetTimestampTz(values[0]) <= run->late_bound;

		MemoryContextSwitchTo(plan->row->ecxt_per_tuple_memory);
		for (int j = 0; j < plan->n_transitions; j++)
			values[plan->n_keys + j] =
				stored_state(plan, &plan->transitions[j], values[plan->n_keys + j], &nulls[plan->n_keys + j]);
		MemoryContextSwitchTo(old);
		memcpy(plan->out_values, values, plan->n_keys * sizeof(Datum));
		memcpy(plan->out_nulls, nulls, plan->n_keys * sizeof(bool));
		for (int j = 0; j < plan->n_aggs; j++)
		{
			plan->out_values[plan->n_keys + j] = values[plan->n_keys + plan->agg_transition[j]];
			plan->out_nulls[plan->n_keys + j] = nulls[plan->n_keys + plan->agg_transition[j]];
		}
		sink(arg, is_late ? 'l' : 'b', plan->out_values, plan->out_nulls);
		end_row(plan);
		if (i % CHECK_ROWS == 0)
			CHECK_FOR_INTERRUPTS();
	}
	plan->n_expected = plan->n_groups;
	ReScanExprContext(plan->group_context);
}

/* Aggregates the current row. */
static inline void
aggregate_row(MrScanPlan *plan, MrScanRun *run)
{
	TimestampTz ts;

	plan->nulls[0] = !event_time(plan, run, &ts);
	if (plan->quals && !ExecQual(plan->quals, plan->row))
		return;
	plan->values[0] = (Datum) 0;
	if (!plan->nulls[0])
	{
		TimestampTz pane = pane_start(plan, ts);

		plan->values[0] = TimestampTzGetDatum(pane);
		if (pane <= run->late_bound && run->late_bound != DT_NOBEGIN)
		{
			run->n_late++;
			if (!run->keep_late)
			{
				if (run->late_rows)
					tuplestore_puttupleslot(run->late_rows, plan->slot);
				return;
			}
		}
	}
	advance_all(plan, find_group(plan, read_keys(plan)));
}

void
mr_scan_aggregate(MrScan *scan, MrScanRun *run, Tuplestorestate *rows, MrGroupSink sink, void *arg)
{
	MrScanPlan *plan = acquire_plan(scan);
	MemoryContext old = CurrentMemoryContext;
	uint32 n_rows = 0;
	uint32 n_groups = 0;

	Assert(scan->is_simple && scan->window.kind != MR_SESSION);
	run->max_time = DT_NOBEGIN;
	run->n_late = 0;
	begin_groups(plan);
	begin_rows(rows);
	while (next_row(plan, rows))
	{
		MemoryContextSwitchTo(plan->row->ecxt_per_tuple_memory);
		aggregate_row(plan, run);
		MemoryContextSwitchTo(old);
		end_row(plan);
		if (++n_rows % CHECK_ROWS != 0 && plan->n_groups < n_groups + CHECK_GROUPS)
			continue;
		CHECK_FOR_INTERRUPTS();
		n_groups = plan->n_groups;
		if (n_groups >= MAX_GROUPS ||
			MemoryContextMemAllocated(plan->group_context->ecxt_per_tuple_memory, true) > plan->memory_limit)
		{
			emit_groups(plan, run, sink, arg);
			begin_groups(plan);
			n_groups = 0;
		}
	}
	end_rows(rows);
	emit_groups(plan, run, sink, arg);
	release_plan(scan, plan);
}
