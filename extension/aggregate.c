/*
 * aggregate.c: continuous aggregates at work: plans over the rows of a batch, and the states they leave.
 *
 * A batch appends states to NAME_delta and never updates a row, so writers never wait for each other.  There are two
 * ways to make them.  A definition over its source alone is aggregated by scan.c, in one pass over the transition
 * table.  Any other is planned by PostgreSQL, with the source replaced by the transition table and the Agg node told
 * to stop after the transition phase: what a parallel worker does (AGGSPLIT_INITIAL_SERIAL).  So every aggregate that
 * PostgreSQL can split between workers is supported, with FILTER, expressions, joins and its own hash table and
 * spilling.  A state is a plain value where the aggregate's transition type is an SQL type (count: bigint), and the
 * bytea of its serialisation function where it is internal.
 */
#include "aggregate.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_class.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "parser/parse_agg.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_aggregate_backfill);

/*
 * Plans
 */

struct MrAggregatePlan
{
	MrWindow window;
	MrScan *scan;	   /* NULL: over the whole source */
	PlannedStmt *stmt; /* NULL: scan is simple */
	Oid target;		   /* table that takes the states */
	bool is_state;	   /* it is NAME_state: groups come once, so all are whole */
	/* By column of what stmt makes: which function reads it, if it is stored with a seal.  NULL: none is. */
	Oid *sealed_for;
};

/* Let the source's range table entry read the transition table of a leaf, whose columns may stand in another order. */
static Query *
read_new_rows(Query *query, Index rti, Relation source, Relation leaf)
{
	TupleDesc desc = RelationGetDescr(leaf);
	RangeTblEntry *rte;
	bool whole_row;

	if (RelationGetRelid(source) != RelationGetRelid(leaf))
	{
		AttrMap *map = mr_attrmap_by_name(desc, RelationGetDescr(source));

		query = (Query *) map_variable_attnos((Node *) query, rti, 0, map, InvalidOid, &whole_row);
		free_attrmap(map);
	}
	rte = rt_fetch(rti, query->rtable);
	rte->rtekind = RTE_NAMEDTUPLESTORE;
	rte->relid = RelationGetRelid(leaf);
	rte->relkind = 0;
	rte->rellockmode = 0;
	rte->inh = false;
	mr_rte_clear_permissions(rte);
	rte->enrname = MR_NEW_ROWS;
	rte->enrtuples = 10000;
	rte->eref = makeAlias(MR_NEW_ROWS, NIL);
	rte->alias = NULL;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		Oid type = att->attisdropped ? InvalidOid : att->atttypid;

		rte->coltypes = lappend_oid(rte->coltypes, type);
		rte->coltypmods = lappend_int(rte->coltypmods, att->atttypmod);
		rte->colcollations = lappend_oid(rte->colcollations, att->attcollation);
		rte->eref->colnames =
			lappend(rte->eref->colnames, makeString(att->attisdropped ? "" : pstrdup(NameStr(att->attname))));
	}
	return query;
}

static bool
mark_partial_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, Aggref))
	{
		mark_partial_aggref((Aggref *) node, AGGSPLIT_INITIAL_SERIAL);
		return false;
	}
	return expression_tree_walker(node, mark_partial_walker, context);
}

static void
check_state_table(Oid state, List *target_list)
{
	Relation rel = table_open(state, AccessShareLock);
	TupleDesc desc = RelationGetDescr(rel);
	bool same = rel->rd_rel->relkind == RELKIND_RELATION &&
		desc->natts == MR_STATE_KEYS + list_length(target_list) &&
		TupleDescAttr(desc, 0)->atttypid == XID8OID && TupleDescAttr(desc, 1)->atttypid == CHAROID;
	ListCell *lc;

	foreach (lc, target_list)
		same = same &&
			TupleDescAttr(desc, MR_STATE_KEYS + foreach_current_index(lc))->atttypid ==
				exprType((Node *) ((TargetEntry *) lfirst(lc))->expr);
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("state table \"%s\" does not have the columns of its continuous aggregate",
						RelationGetRelationName(rel)),
				 errhint("After an upgrade of the server CALL " MR_SCHEMA
						 ".maintain() once; otherwise drop the continuous aggregate and create it again.")));
	table_close(rel, NoLock);
}

static Oid
owner_of(Oid rel)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(rel));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", rel)));
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	return owner;
}

/*
 * The query of the definition runs as the current user, and what it reads becomes readable in the state table: both
 * must belong to the same role, and the current user must have its rights.
 */
void
mr_check_owners(Oid definition, Oid state)
{
	Oid owner = owner_of(definition);

	if (owner != owner_of(state) || !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("view \"%s\" and table \"%s\" of a continuous aggregate must belong to the same role",
						get_rel_name(definition), get_rel_name(state)),
				 errhint("Use REASSIGN OWNED, or ALTER … OWNER TO for both.")));
}

/* An expression over the source as one over the rows of the leaf, of varno 1, ready to run. */
static Expr *
over_leaf(Node *expr, Index rti, AttrMap *map)
{
	bool whole_row;

	/* Copied in any case: what maps the numbers leaves constants where they were. */
	expr = copyObject(expr);
	if (map)
		expr = map_variable_attnos(expr, rti, 0, map, InvalidOid, &whole_row);
	ChangeVarNodes(expr, rti, 1, 0);
	return expression_planner((Expr *) expr);
}

/* Does the expression read the source alone? */
static bool
reads_only(Node *expr, Index rti)
{
	ListCell *lc;

	if (contain_subplans(expr))
		return false;
	foreach (lc, pull_var_clause(expr, PVC_RECURSE_AGGREGATES))
		if (lfirst_node(Var, lc)->varno != rti || lfirst_node(Var, lc)->varlevelsup != 0)
			return false;
	return true;
}

/* What one pass over the rows of a batch computes; all of it if the definition reads nothing but its source. */
static MrScan *
make_scan(MrDefinition *def, Relation source, Relation leaf)
{
	MrScan *scan = palloc0(sizeof(MrScan));
	Query *query = def->inner;
	AttrMap *map = RelationGetRelid(source) == RelationGetRelid(leaf)
		? NULL
		: mr_attrmap_by_name(RelationGetDescr(leaf), RelationGetDescr(source));
	ListCell *lc;

	scan->window = def->window;
	if (scan->window.timezone)
		scan->window.timezone = DatumGetTextPCopy(PointerGetDatum(scan->window.timezone));
	scan->desc = CreateTupleDescCopy(RelationGetDescr(leaf));
	scan->time = over_leaf((Node *) def->time, def->source_rti, map);
	foreach (
		lc,
		make_ands_implicit((Expr *) mr_flatten_join_alias_vars(query, copyObject(query->jointree->quals))))
		if (reads_only(lfirst(lc), def->source_rti))
			scan->quals = lappend(scan->quals, over_leaf(lfirst(lc), def->source_rti, map));

	scan->is_simple = def->window.kind != MR_SESSION && list_length(query->jointree->fromlist) == 1 &&
		IsA(linitial(query->jointree->fromlist), RangeTblRef) && !query->hasSubLinks;
	if (!scan->is_simple)
		return scan;
	foreach (lc, def->keys)
		scan->keys =
			lappend(scan->keys, over_leaf((Node *) ((TargetEntry *) lfirst(lc))->expr, def->source_rti, map));
	foreach (lc, def->aggs)
		scan->aggs = lappend(scan->aggs, over_leaf(lfirst(lc), def->source_rti, map));
	return scan;
}

/* The pane of a sliding window: tumble(time, slide, origin, timezone) in the place of hop(time, size, slide, …). */
static Expr *
pane_call(FuncExpr *hop)
{
	static const Oid types[4] = {TIMESTAMPTZOID, INTERVALOID, TIMESTAMPTZOID, TEXTOID};
	List *args = list_delete_nth_cell(mr_call_arguments((Expr *) hop), 1);

	return (Expr *) makeFuncExpr(mr_schema_function("tumble", 4, types), TIMESTAMPTZOID, args, InvalidOid,
								 hop->inputcollid, COERCE_EXPLICIT_CALL);
}

static Node *
comparison(const char *operator, Node * left, Oid type, Datum value)
{
	Oid op = OpernameGetOprid(list_make2(makeString("pg_catalog"), makeString(unconstify(char *, operator))),
							  type, type);
	int16 len;
	bool by_value;
	Expr *expr;

	get_typlenbyval(type, &len, &by_value);
	expr = make_opclause(op, BOOLOID, false, copyObject((Expr *) left),
						 (Expr *) makeConst(type, -1, InvalidOid, len, value, false, by_value), InvalidOid,
						 InvalidOid);
	set_opfuncid((OpExpr *) expr);
	return (Node *) expr;
}

/*
 * A column without a time zone from which the event time is made: it differs from it by less than a day, so bounds a
 * day further out let an index on it, or its partitions, be used.
 */
static Node *
raw_time_column(Expr *time)
{
	FuncExpr *func = (FuncExpr *) time;
	Node *arg;

	if (!IsA(time, FuncExpr) ||
		(func->funcid != F_TIMESTAMPTZ_TIMESTAMP && func->funcid != F_TIMESTAMPTZ_DATE &&
		 func->funcid != F_TIMEZONE_TEXT_TIMESTAMP && func->funcid != F_TIMEZONE_INTERVAL_TIMESTAMP))
		return NULL;
	arg = llast(func->args);
	return IsA(arg, Var) ? arg : NULL;
}

/* A bound on the event time as one on that column. */
static Node *
raw_bound(const char *operator, Node * column, TimestampTz bound, int64 margin_us)
{
	Oid type = exprType(column);
	Datum value = TimestampGetDatum((Timestamp) bound + margin_us);

	if (TIMESTAMP_NOT_FINITE(bound) || !IS_VALID_TIMESTAMP((Timestamp) bound + margin_us) ||
		(type != TIMESTAMPOID && type != DATEOID))
		return NULL;
	return comparison(operator, column, type,
					  type == DATEOID ? DirectFunctionCall1(timestamp_date, value) : value);
}

/* Let the query read only rows whose event time is in the range. */
static void
add_range(MrDefinition *def, const MrRefreshRange *range)
{
	Query *query = def->inner;
	Node *column = raw_time_column(def->time);
	List *quals = NIL;
	Node *qual = NULL, *raw;

	if (range->from == DT_NOBEGIN && range->to == DT_NOEND && range->with_null)
		return;
	if (range->from <= range->to)
	{
		quals = list_make1(
			comparison(">=", (Node *) def->time, TIMESTAMPTZOID, TimestampTzGetDatum(range->from)));
		if (range->to != DT_NOEND)
			quals = lappend(
				quals, comparison("<", (Node *) def->time, TIMESTAMPTZOID, TimestampTzGetDatum(range->to)));
		if (column && (raw = raw_bound(">=", column, range->from, -2 * USECS_PER_DAY)) != NULL)
			quals = lappend(quals, raw);
		if (column && (raw = raw_bound("<=", column, range->to, 2 * USECS_PER_DAY)) != NULL)
			quals = lappend(quals, raw);
		qual = (Node *) make_ands_explicit(quals);
	}
	if (range->with_null)
	{
		NullTest *test = makeNode(NullTest);

		test->arg = copyObject(def->time);
		test->nulltesttype = IS_NULL;
		test->location = -1;
		qual = qual ? (Node *) make_orclause(list_make2(qual, test)) : (Node *) test;
	}
	query->jointree->quals = make_and_qual(query->jointree->quals, qual);
}

/* The definition with keys and bare aggregates as its target list, planned to stop before the final functions. */
static PlannedStmt *
plan_states(MrDefinition *def, Relation source, Relation leaf, Oid target, const MrRefreshRange *range)
{
	Query *query = def->query;
	PlannedStmt *stmt;
	List *targets = NIL;
	ListCell *lc;
	int gucs;

	foreach (lc, def->keys)
	{
		TargetEntry *key = copyObject(lfirst_node(TargetEntry, lc));

		key->resno = list_length(targets) + 1;
		key->resjunk = false;
		if (def->window.kind == MR_HOP && equal(key->expr, def->window_call))
			key->expr = pane_call((FuncExpr *) key->expr);
		targets = lappend(targets, key);
	}
	foreach (lc, def->aggs)
		targets =
			lappend(targets, makeTargetEntry(copyObject(lfirst(lc)), list_length(targets) + 1, NULL, false));
	query->targetList = targets;
	query->hasTargetSRFs = false;
	query->havingQual = NULL;

	if (range)
		add_range(def, range);
	AcquireRewriteLocks(query, true, false);
	if (leaf)
	{
		Query *inner = read_new_rows(def->inner, def->source_rti, source, leaf);

		if (def->inner == query)
			query = inner;
		else
			rt_fetch(linitial_node(RangeTblRef, query->jointree->fromlist)->rtindex, query->rtable)
				->subquery = inner;
	}
	query = linitial_node(Query, pg_rewrite_query(query));

	gucs = NewGUCNestLevel();
	(void) set_config_option("enable_partitionwise_aggregate", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	PushActiveSnapshot(GetTransactionSnapshot());
	stmt = pg_plan_query(query, "", 0, NULL);
	PopActiveSnapshot();
	AtEOXact_GUC(false, gucs);

	if (!IsA(stmt->planTree, Agg) || ((Agg *) stmt->planTree)->aggsplit != AGGSPLIT_SIMPLE)
		elog(ERROR, "unexpected plan for a continuous aggregate: node %d", (int) nodeTag(stmt->planTree));
	((Agg *) stmt->planTree)->aggsplit = AGGSPLIT_INITIAL_SERIAL;
	mark_partial_walker((Node *) stmt->planTree->targetlist, NULL);
	check_state_table(target, stmt->planTree->targetlist);
	return stmt;
}

/*
 * Batches count all rows that were inserted.  What is computed from the source must too, or a refresh would silently give up
 * windows whose rows a policy hides.
 */
void
mr_check_row_security(Oid source, const char *what)
{
	if (check_enable_rls(source, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be computed from \"%s\": row security hides rows from role \"%s\"", what,
						get_rel_name(source), GetUserNameFromId(GetUserId(), false)),
				 errhint("Use ALTER TABLE … NO FORCE ROW LEVEL SECURITY, or an owner with BYPASSRLS.")));
}

static Oid *
seals(const MrDefinition *def)
{
	int n_keys = list_length(def->keys);
	Oid *sealed_for = palloc0((n_keys + list_length(def->aggs)) * sizeof(Oid));
	bool has_seal = false;
	ListCell *lc;

	foreach (lc, def->aggs)
	{
		HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(lfirst_node(Aggref, lc)->aggfnoid));
		Form_pg_aggregate form;

		if (!HeapTupleIsValid(tuple))
			elog(ERROR, "cache lookup failed for aggregate %u", lfirst_node(Aggref, lc)->aggfnoid);
		form = (Form_pg_aggregate) GETSTRUCT(tuple);
		if (form->aggtranstype == INTERNALOID && mr_is_sealed(form->aggdeserialfn))
		{
			sealed_for[n_keys + foreach_current_index(lc)] = form->aggdeserialfn;
			has_seal = true;
		}
		ReleaseSysCache(tuple);
	}
	return has_seal ? sealed_for : NULL;
}

static MrAggregatePlan *
make_aggregate_plan(Oid definition, Oid leaf, Oid target, const MrRefreshRange *range, MemoryContext keep,
					List **depends)
{
	MemoryContext scratch =
		AllocSetContextCreate(CurrentMemoryContext, "millrace plan", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	MrDefinition *def;
	MrAggregatePlan *plan;
	PlannedStmt *stmt;
	Relation source_rel, leaf_rel = NULL;

	mr_check_owners(definition, target);
	def = mr_read_definition(definition);
	source_rel = table_open(def->source, AccessShareLock);
	if (!OidIsValid(leaf))
		mr_check_row_security(def->source, "a continuous aggregate");

	MemoryContextSwitchTo(keep);
	plan = palloc0(sizeof(MrAggregatePlan));
	plan->target = target;
	plan->window = def->window;
	if (OidIsValid(leaf))
	{
		leaf_rel = table_open(leaf, AccessShareLock);
		plan->scan = make_scan(def, source_rel, leaf_rel);
		plan->window = plan->scan->window;
	}
	MemoryContextSwitchTo(scratch);
	/* Planned in any case: it checks what scan.c relies on. */
	stmt = plan_states(def, source_rel, leaf_rel, target, range);
	MemoryContextSwitchTo(keep);
	if (plan->scan == NULL || !plan->scan->is_simple)
	{
		plan->stmt = copyObject(stmt);
		plan->sealed_for = seals(def);
	}
	*depends = list_concat(*depends, list_copy(stmt->relationOids));
	*depends = lappend_oid(lappend_oid(lappend_oid(*depends, definition), target), def->source);
	if (leaf_rel)
		table_close(leaf_rel, NoLock);
	table_close(source_rel, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return plan;
}

MrAggregatePlan *
mr_aggregate_plan(Oid definition, Oid leaf, Oid target, MemoryContext keep, List **depends)
{
	return make_aggregate_plan(definition, leaf, target, NULL, keep, depends);
}

MrAggregatePlan *
mr_aggregate_plan_source(Oid definition, Oid target, const MrRefreshRange *range, MemoryContext keep,
						 List **depends)
{
	return make_aggregate_plan(definition, InvalidOid, target, range, keep, depends);
}

double
mr_aggregate_cost(const MrAggregatePlan *plan)
{
	return plan->stmt->planTree->total_cost;
}

MrScan *
mr_aggregate_scan(const MrAggregatePlan *plan)
{
	return plan->scan;
}

void
mr_aggregate_lock(const MrAggregatePlan *plan)
{
	ListCell *lc;

	foreach (lc, plan->stmt ? plan->stmt->rtable : NIL)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_RELATION && rte->rellockmode != NoLock)
			LockRelationOid(rte->relid, rte->rellockmode);
	}
	LockRelationOid(plan->target, RowExclusiveLock);
}

/*
 * Writing states: STATE_ROWS rows at a time.  A DestReceiver where a plan makes them.
 */
#define STATE_ROWS 128

struct MrStateWriter
{
	DestReceiver dest;
	char part;					   /* of what a plan makes */
	TimestampTz gone_bound;		   /* late groups that start at or before it are given up */
	TimestampTz closed;			   /* start of the last closed window, if it slides, else DT_NOBEGIN */
	TimestampTz closed_pane;	   /* its last pane */
	const MrRefreshRange *refresh; /* what a plan makes, is of these windows; or NULL */
	bool is_session;
	const Oid *sealed_for; /* as in MrAggregatePlan */
	MrTimes *panes;		   /* NULL, or those that are written */
	Relation rel;
	EState *estate;
	ResultRelInfo *rri;
	BulkInsertState bulk;
	TupleDesc
		desc; /* a copy that is not reference-counted: a slot costs as much as a row if its descriptor is */
	Datum *values;
	bool *nulls;
	TupleTableSlot *slots[STATE_ROWS];
	int n_slots;
	uint64 n_written;
};

static void
writer_flush(MrStateWriter *writer)
{
	if (writer->n_slots == 0)
		return;
	table_multi_insert(writer->rel, writer->slots, writer->n_slots, GetCurrentCommandId(true), 0,
					   writer->bulk);
	for (int i = 0; i < writer->n_slots; i++)
	{
		if (writer->rri->ri_NumIndices > 0)
			list_free(mr_insert_index_tuples(writer->rri, writer->slots[i], writer->estate));
		ExecClearTuple(writer->slots[i]);
	}
	ResetPerTupleExprContext(writer->estate);
	writer->n_written += writer->n_slots;
	writer->n_slots = 0;
}

void
mr_writer_put(MrStateWriter *writer, const Datum *values, const bool *nulls)
{
	MemoryContext old = MemoryContextSwitchTo(writer->estate->es_query_cxt);
	TupleTableSlot *slot = writer->slots[writer->n_slots];

	if (slot == NULL)
		slot = writer->slots[writer->n_slots] = MakeSingleTupleTableSlot(writer->desc, &TTSOpsHeapTuple);
	ExecStoreHeapTuple(heap_form_tuple(writer->desc, unconstify(Datum *, values), unconstify(bool *, nulls)),
					   slot, true);
	slot->tts_tableOid = RelationGetRelid(writer->rel);
	MemoryContextSwitchTo(old);
	if (++writer->n_slots == STATE_ROWS)
		writer_flush(writer);
}

/* values: window_start, other keys, states */
static void
put_group(void *arg, char part, Datum *values, bool *nulls)
{
	MrStateWriter *writer = arg;
	int n_columns = RelationGetDescr(writer->rel)->natts - MR_STATE_KEYS;

	if (part == MR_PART_LIVE && !nulls[0] && writer->gone_bound != DT_NOBEGIN &&
		DatumGetTimestampTz(values[0]) <= writer->gone_bound)
		return;
	if (writer->panes && !nulls[0])
		mr_times_add(writer->panes, DatumGetTimestampTz(values[0]));
	memcpy(writer->nulls + MR_STATE_KEYS, nulls, n_columns * sizeof(bool));
	memcpy(writer->values + MR_STATE_KEYS, values, n_columns * sizeof(Datum));
	writer->values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	writer->values[1] = CharGetDatum(part);
	writer->values[2] = TimestampTzGetDatum(writer->closed);
	writer->nulls[2] =
		part != MR_PART_BOTH || nulls[0] || DatumGetTimestampTz(values[0]) > writer->closed_pane;
	mr_writer_put(writer, writer->values, writer->nulls);
}

static bool
in_ranges(const MrRange *ranges, int n, TimestampTz start)
{
	int low = 0;

	/* The first that does not end before it. */
	while (n > 0)
	{
		int half = n / 2;

		if (ranges[low + half].to < start)
		{
			low += half + 1;
			n -= half + 1;
		}
		else
			n = half;
	}
	return ranges[low].from <= start && start <= ranges[low].to;
}

static bool
writer_receive(TupleTableSlot *row, DestReceiver *dest)
{
	MrStateWriter *writer = (MrStateWriter *) dest;
	const MrRefreshRange *refresh = writer->refresh;
	char part = writer->part;

	slot_getallattrs(row);
	if (refresh && !row->tts_isnull[0])
	{
		TimestampTz start = DatumGetTimestampTz(row->tts_values[0]), last = start;

		if (writer->is_session)
		{
			last = DatumGetTimestampTz(row->tts_values[row->tts_tupleDescriptor->natts - 1]);
			if (last < refresh->keep_from || start > refresh->keep_to)
				return true;
		}
		else if (refresh->n_only > 0 && !in_ranges(refresh->only, refresh->n_only, start))
			return true;
		if (last <= refresh->closed_bound && refresh->closed_bound != DT_NOBEGIN)
			part = MR_PART_LIVE;
	}
	if (writer->sealed_for)
	{
		int n_columns = row->tts_tupleDescriptor->natts;
		Datum *values = palloc(n_columns * sizeof(Datum));

		for (int i = 0; i < n_columns; i++)
			values[i] = OidIsValid(writer->sealed_for[i]) && !row->tts_isnull[i]
				? mr_seal_state(writer->sealed_for[i], row->tts_values[i])
				: row->tts_values[i];
		put_group(writer, part, values, row->tts_isnull);
		for (int i = 0; i < n_columns; i++)
			if (OidIsValid(writer->sealed_for[i]) && !row->tts_isnull[i])
				pfree(DatumGetPointer(values[i]));
		pfree(values);
		return true;
	}
	put_group(writer, part, row->tts_values, row->tts_isnull);
	return true;
}

static void
writer_startup(DestReceiver *dest, int operation, TupleDesc desc)
{
}

static void
writer_nothing(DestReceiver *dest)
{
}

MrStateWriter *
mr_writer_open(Oid target)
{
	MrStateWriter *writer = palloc0(sizeof(MrStateWriter));

	writer->dest.receiveSlot = writer_receive;
	writer->dest.rStartup = writer_startup;
	writer->dest.rShutdown = writer_nothing;
	writer->dest.rDestroy = writer_nothing;
	writer->dest.mydest = DestNone;
	writer->gone_bound = writer->closed = writer->closed_pane = DT_NOBEGIN;
	writer->rel = table_open(target, RowExclusiveLock);
	writer->estate = CreateExecutorState();
	writer->rri = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->rri, writer->rel, 0, NULL, 0);
	ExecOpenIndices(writer->rri, false);
	writer->bulk = GetBulkInsertState();
	writer->desc = CreateTupleDescCopy(RelationGetDescr(writer->rel));
	writer->values = palloc0(writer->desc->natts * sizeof(Datum));
	writer->nulls = palloc0(writer->desc->natts * sizeof(bool));
	return writer;
}

uint64
mr_writer_close(MrStateWriter *writer)
{
	uint64 n_written;

	writer_flush(writer);
	FreeBulkInsertState(writer->bulk);
	table_finish_bulk_insert(writer->rel, 0);
	ExecCloseIndices(writer->rri);
	FreeExecutorState(writer->estate);
	table_close(writer->rel, NoLock);
	n_written = writer->n_written;
	pfree(writer);
	return n_written;
}

/*
 * Running
 */

EphemeralNamedRelation
mr_new_rows_relation(const char *name, Oid relid, Tuplestorestate *rows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));

	enr->md.name = pstrdup(name);
	enr->md.reliddesc = relid;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = rows ? tuplestore_tuple_count(rows) : 0;
	enr->reldata = rows;
	return enr;
}

/* Let PostgreSQL's plan make the states, of the rows of a batch or (rows NULL) of the whole source. */
static void
run_statement(MrAggregatePlan *plan, Oid leaf, Tuplestorestate *rows, MrStateWriter *writer, char part)
{
	QueryEnvironment *env = NULL;
	QueryDesc *query;

	if (rows)
	{
		env = create_queryEnv();
		register_ENR(env, mr_new_rows_relation(MR_NEW_ROWS, leaf, rows));
	}
	writer->part = part;
	writer->sealed_for = plan->sealed_for;
	query =
		CreateQueryDesc(plan->stmt, "", GetActiveSnapshot(), InvalidSnapshot, &writer->dest, NULL, env, 0);
	ExecutorStart(query, 0);
	mr_executor_run(query);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);
}

static void
move_rows(Tuplestorestate *from, Tuplestorestate *into, TupleDesc desc)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

	tuplestore_rescan(from);
	while (tuplestore_gettupleslot(from, true, false, slot))
		tuplestore_puttupleslot(into, slot);
	ExecDropSingleTupleTableSlot(slot);
}

const MrWindow *
mr_aggregate_window(const MrAggregatePlan *plan)
{
	return &plan->window;
}

void
mr_aggregate_run(MrAggregatePlan *plan, Oid leaf, Tuplestorestate *rows, MrAggregateRun *run)
{
	MrStateWriter *writer = mr_writer_open(plan->target);

	writer->gone_bound = run->gone_bound;
	writer->refresh = run->refresh;
	writer->is_session = plan->window.kind == MR_SESSION;
	writer->closed = plan->window.kind == MR_HOP ? run->closed : DT_NOBEGIN;
	writer->closed_pane = mr_last_pane(&plan->window, writer->closed);
	writer->panes = run->panes;
	if (rows == NULL)
		run_statement(plan, leaf, NULL, writer, run->part);
	else if (plan->scan->is_simple)
		mr_scan_aggregate(plan->scan, &run->scan, rows, put_group, writer);
	else
	{
		Tuplestorestate *on_time = rows, *late = NULL;

		if (run->has_watermark && mr_scan_split(plan->scan, &run->scan, rows, &on_time, &late))
		{
			run_statement(plan, leaf, on_time, writer, MR_PART_BOTH);
			if (run->scan.keep_late)
				run_statement(plan, leaf, late, writer, MR_PART_LIVE);
			else if (run->scan.late_rows)
				move_rows(late, run->scan.late_rows, plan->scan->desc);
			tuplestore_end(on_time);
			tuplestore_end(late);
		}
		else
			run_statement(plan, leaf, rows, writer, MR_PART_BOTH);
	}
	run->n_written = mr_writer_close(writer);
}

/* _aggregate_backfill(definition regclass, state regclass): states of all rows that the source has, as the caller */
Datum
mr_aggregate_backfill(PG_FUNCTION_ARGS)
{
	List *depends = NIL;
	MrAggregateRun run = {.gone_bound = DT_NOBEGIN, .closed = DT_NOBEGIN, .part = MR_PART_BOTH};
	MrAggregatePlan *plan =
		mr_aggregate_plan(PG_GETARG_OID(0), InvalidOid, PG_GETARG_OID(1), CurrentMemoryContext, &depends);

	/* The latest snapshot, also in a REPEATABLE READ transaction: the caller holds off writers. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	mr_aggregate_run(plan, InvalidOid, NULL, &run);
	PopActiveSnapshot();
	PG_RETURN_INT64((int64) run.n_written);
}

bool
mr_state_lock(Oid state, bool wait)
{
	LOCKTAG tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, state, 0, MR_STREAM_LOCK_CLASS);
	if (LockAcquire(&tag, ExclusiveLock, false, !wait) == LOCKACQUIRE_NOT_AVAIL)
		return false;
	/* What others did who had it, as with the lock of a relation. */
	AcceptInvalidationMessages();
	return true;
}
