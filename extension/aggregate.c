/*
 * aggregate.c: continuous aggregates, kept as partial states.
 *
 * The definition is an ordinary view, NAME_query.  Three things are derived from its query tree, so that a rename
 * of a table or column, which PostgreSQL applies to the view, needs nothing here:
 *
 *   the state table's columns   xid, window_start, k1 … (other keys), s1 … (one state for each distinct aggregate)
 *   the plan of a batch         source replaced by the transition table, target list by keys and bare aggregates,
 *                               planned by PostgreSQL, and its Agg node told to stop after the transition phase:
 *                               what a parallel worker does (AGGSPLIT_INITIAL_SERIAL)
 *   the text of the view NAME   source replaced by the state table, each aggregate by
 *                               millrace.merge_state(aggregate, result type, state)
 *
 * So every aggregate that PostgreSQL can split between workers is supported, with FILTER, expressions, joins and
 * its own hash table and spilling.  A state is a plain value where the aggregate's transition type is an SQL type
 * (count: bigint), and the bytea of its serialisation function where it is internal.
 *
 * A batch appends states and never updates a row, so writers never wait for each other; merge_state combines
 * what the batches left.
 */
#include "millrace.h"

#include "access/heapam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "commands/tablecmds.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/optimizer.h"
#include "optimizer/planner.h"
#include "parser/parse_agg.h"
#include "parser/parse_coerce.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "storage/lmgr.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/regproc.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_aggregate_parts);
PG_FUNCTION_INFO_V1(mr_aggregate_view);
PG_FUNCTION_INFO_V1(mr_aggregate_backfill);
PG_FUNCTION_INFO_V1(mr_merge_state_trans);
PG_FUNCTION_INFO_V1(mr_merge_state_final);

/* A definition, checked. */
typedef struct Definition
{
	Query *query;
	Index source_rti;
	Oid source;
	List *keys; /* TargetEntry of each GROUP BY expression, the window first */
	List *aggs; /* distinct Aggref */
} Definition;

/* How one aggregate keeps its state. */
typedef struct StateType
{
	Oid trans_type; /* type of the transition value, resolved if polymorphic */
	Oid type;		/* type of the stored state: trans_type, or bytea for internal */
	Oid collation;
} StateType;

static void refuse(const char *what, const char *hint) __attribute__((noreturn));

static void
refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the query of a continuous aggregate must not contain %s", what),
			 hint ? errhint("%s", hint) : 0));
}

/*
 * Definitions
 */

/* Aggregates whose result depends on the order of their input; newer servers can split them, too. */
static bool
is_order_sensitive(Oid trans_fn)
{
	switch (trans_fn)
	{
		case F_ARRAY_AGG_TRANSFN:
		case F_ARRAY_AGG_ARRAY_TRANSFN:
		case F_STRING_AGG_TRANSFN:
		case F_BYTEA_STRING_AGG_TRANSFN:
			return true;
		default:
			return false;
	}
}

static StateType
state_type(Aggref *agg)
{
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg->aggfnoid));
	Form_pg_aggregate form;
	Oid arg_types[FUNC_MAX_ARGS];
	const char *name = format_procedure(agg->aggfnoid);
	StateType state;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", agg->aggfnoid);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	if (agg->aggdistinct || agg->aggorder || agg->aggkind != AGGKIND_NORMAL ||
		is_order_sensitive(form->aggtransfn))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("aggregate %s%s cannot be kept continuously", name,
						agg->aggdistinct ? " with DISTINCT" : ""),
				 errdetail(
					 "Its result depends on all its input values or on their order, not on partial states."),
				 errhint("Use an aggregate of partial states, such as count, sum or an approximate distinct "
						 "count.")));
	if (!OidIsValid(form->aggcombinefn) ||
		(form->aggtranstype == INTERNALOID &&
		 (!OidIsValid(form->aggserialfn) || !OidIsValid(form->aggdeserialfn))))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("aggregate %s cannot be kept continuously", name),
				 errdetail("It has no combine function, or no functions to store its state."),
				 errhint("Any aggregate that PostgreSQL can compute in parallel may be used.")));
	if (form->aggtranstype == INTERNALOID && IsPolymorphicType(get_func_rettype(agg->aggfnoid)))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("aggregate %s cannot be kept continuously", name),
				 errdetail("Its result type depends on its arguments, and its stored state does not say "
						   "which they were.")));
	state.trans_type = resolve_aggregate_transtype(agg->aggfnoid, form->aggtranstype, arg_types,
												   get_aggregate_argtypes(agg, arg_types));
	ReleaseSysCache(tuple);
	state.type = state.trans_type == INTERNALOID ? BYTEAOID : state.trans_type;
	state.collation = get_typcollation(state.type);
	if (OidIsValid(state.collation) && OidIsValid(agg->inputcollid))
		state.collation = agg->inputcollid;
	return state;
}

/* A function of the extension; by the catalog, because the current user may lack USAGE on its schema. */
static Oid
schema_function(const char *name, int n_args, const Oid *types)
{
	Oid function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
								   PointerGetDatum(buildoidvector(types, n_args)),
								   ObjectIdGetDatum(get_namespace_oid(MR_SCHEMA, false)));

	if (!OidIsValid(function))
		elog(ERROR, "function " MR_SCHEMA ".%s does not exist", name);
	return function;
}

static bool
is_tumble(Node *node)
{
	static const Oid types[4] = {TIMESTAMPTZOID, INTERVALOID, TIMESTAMPTZOID, TEXTOID};

	return IsA(node, FuncExpr) && ((FuncExpr *) node)->funcid == schema_function("tumble", 4, types);
}

/* Is the range table entry below an outer join's nullable side? */
static bool
is_nullable(Node *jointree, Index rti, bool nullable)
{
	if (IsA(jointree, RangeTblRef))
		return nullable && ((RangeTblRef *) jointree)->rtindex == rti;
	if (IsA(jointree, FromExpr))
	{
		ListCell *lc;

		foreach (lc, ((FromExpr *) jointree)->fromlist)
			if (is_nullable(lfirst(lc), rti, nullable))
				return true;
		return false;
	}
	else
	{
		JoinExpr *join = castNode(JoinExpr, jointree);

		return is_nullable(join->larg, rti,
						   nullable || join->jointype == JOIN_RIGHT || join->jointype == JOIN_FULL) ||
			is_nullable(join->rarg, rti,
						nullable || join->jointype == JOIN_LEFT || join->jointype == JOIN_FULL);
	}
}

/* Virtual generated columns (PostgreSQL 18) are not in the rows of a batch. */
static bool
is_virtual(Oid rel, AttrNumber attno)
{
	HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(rel), Int16GetDatum(attno));
	bool result = HeapTupleIsValid(tuple) && ((Form_pg_attribute) GETSTRUCT(tuple))->attgenerated == 'v';

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return result;
}

/* Walks a query for uses of the source that a batch of rows cannot answer. */
typedef struct SourceUse
{
	Oid source;
	Index rti; /* of the source in the query itself; 0 inside views */
	int level;
	int n_found;
} SourceUse;

static bool source_use_walker(Node *node, SourceUse *use);

/* Is the relation the source, one of its partitions, or a view that reads it? */
static void
count_source(Oid relid, char relkind, SourceUse *use)
{
	if (relid == use->source)
		use->n_found++;
	else if (relkind == RELKIND_VIEW)
	{
		Relation view = table_open(relid, AccessShareLock);
		SourceUse inside = {use->source};

		check_stack_depth();
		query_tree_walker(get_view_query(view), source_use_walker, &inside, QTW_EXAMINE_RTES_BEFORE);
		use->n_found += inside.n_found;
		table_close(view, NoLock);
	}
	else if (get_rel_relispartition(relid) && list_member_oid(get_partition_ancestors(relid), use->source))
		use->n_found++;
}

static bool
source_use_walker(Node *node, SourceUse *use)
{
	if (node == NULL)
		return false;
	if (IsA(node, Var))
	{
		Var *var = (Var *) node;

		if (use->rti == 0 || var->varno != use->rti || var->varlevelsup != use->level)
			return false;
		if (var->varattno <= 0)
			refuse(var->varattno == 0 ? "a whole row of its source" : "system columns of its source", NULL);
		if (is_virtual(use->source, var->varattno))
			refuse("virtual generated columns of its source", "Write the expression of the column instead.");
		return false;
	}
	if (IsA(node, RangeTblEntry))
	{
		RangeTblEntry *rte = (RangeTblEntry *) node;

		/* Before PostgreSQL 16 views carry entries for themselves that are not in FROM. */
		if (rte->rtekind == RTE_RELATION && rte->inFromCl)
			count_source(rte->relid, rte->relkind, use);
		return false;
	}
	if (IsA(node, Query))
	{
		bool result;

		use->level++;
		result = query_tree_walker((Query *) node, source_use_walker, use, QTW_EXAMINE_RTES_BEFORE);
		use->level--;
		return result;
	}
	return expression_tree_walker(node, source_use_walker, use);
}

/* Functions whose value depends on when they are called. */
static bool
is_moment_function(Oid function, void *context)
{
	return func_volatile(function) == PROVOLATILE_VOLATILE || function == F_NOW ||
		function == F_TRANSACTION_TIMESTAMP || function == F_STATEMENT_TIMESTAMP;
}

static bool
moment_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, SQLValueFunction) || check_functions_in_node(node, is_moment_function, context))
		return true;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, moment_walker, context, 0);
	return expression_tree_walker(node, moment_walker, context);
}

static void
check_shape(Query *query)
{
	if (query->setOperations)
		refuse("UNION, INTERSECT or EXCEPT", "Create one continuous aggregate for each part.");
	if (query->cteList)
		refuse("WITH", "Write the query as one SELECT.");
	if (query->distinctClause)
		refuse("DISTINCT", NULL);
	if (query->groupingSets)
		refuse("grouping sets", "Create one continuous aggregate for each set.");
	if (query->hasWindowFuncs || query->hasTargetSRFs)
		refuse("window or set-returning functions", "Use them in a query over the continuous aggregate.");
	if (query->sortClause || query->limitCount || query->limitOffset || query->rowMarks)
		refuse("ORDER BY, LIMIT or FOR UPDATE", "Use them in a query over the continuous aggregate.");
	if (query->groupClause == NIL || !query->hasAggs)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("the query of a continuous aggregate must have aggregates and a GROUP BY"),
				 errhint("As in: SELECT " MR_SCHEMA
						 ".tumble(ts, '1 minute') AS window_start, count(*) FROM events GROUP BY 1")));
	if (query_tree_walker(query, moment_walker, NULL, 0))
		refuse("volatile functions, now(), current_date and their like",
			   "Its rows must be the same whenever they are computed.");
}

/* The source is the table whose time the window function reads. */
static void
find_source(Definition *def, Node *window)
{
	Query *query = def->query;
	Node *time;
	int rti = 0;
	RangeTblEntry *rte;
	SourceUse use = {0};
	ListCell *lc;

#if PG_VERSION_NUM >= 160000
	time = flatten_join_alias_vars(NULL, query, linitial(((FuncExpr *) window)->args));
#else
	time = flatten_join_alias_vars(query, linitial(((FuncExpr *) window)->args));
#endif
	foreach (lc, pull_var_clause(time, 0))
	{
		if (rti != 0 && rti != lfirst_node(Var, lc)->varno)
			refuse("a window over columns of several tables", "The window's time is a column of the source.");
		rti = lfirst_node(Var, lc)->varno;
	}
	if (rti == 0)
		refuse("a window over no column", "The window's time is a column of the source.");
	rte = rt_fetch(rti, query->rtable);
	if (rte->rtekind != RTE_RELATION ||
		(rte->relkind != RELKIND_RELATION && rte->relkind != RELKIND_PARTITIONED_TABLE) || rte->tablesample)
		refuse("a source that is not a table",
			   "The window's time must be a column of an ordinary or partitioned table.");
	if (!rte->inh)
		refuse("ONLY before its source", NULL);
	def->source_rti = rti;
	def->source = rte->relid;
	if (is_nullable((Node *) query->jointree, rti, false))
		refuse("its source on the nullable side of an outer join", NULL);
	use.source = def->source;
	use.rti = rti;
	query_tree_walker(query, source_use_walker, &use, QTW_EXAMINE_RTES_BEFORE);
	if (use.n_found != 1)
		refuse("its source more than once", NULL);
}

static Definition *
read_definition(Oid view)
{
	Relation rel;
	Definition *def = palloc0(sizeof(Definition));
	Query *query;
	ListCell *lc;

	if (get_rel_relkind(view) != RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("relation with OID %u is not a view", view)));
	rel = table_open(view, AccessShareLock);
	query = def->query = copyObject(get_view_query(rel));
	table_close(rel, NoLock);
#if MR_HAS_GROUP_RTE
	if (query->hasGroupRTE)
	{
		query->targetList = (List *) flatten_group_exprs(NULL, query, (Node *) query->targetList);
		query->havingQual = flatten_group_exprs(NULL, query, query->havingQual);
		query->rtable = list_delete_last(query->rtable);
		query->hasGroupRTE = false;
	}
#endif
	check_shape(query);

	foreach (lc, query->groupClause)
	{
		TargetEntry *tle = get_sortgroupclause_tle(lfirst(lc), query->targetList);

		if (!is_tumble((Node *) tle->expr))
			def->keys = lappend(def->keys, tle);
		else if (OidIsValid(def->source))
			refuse("two windows", NULL);
		else
		{
			find_source(def, (Node *) tle->expr);
			def->keys = lcons(tle, def->keys);
		}
	}
	if (!OidIsValid(def->source))
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the query of a continuous aggregate must group by a window"),
			 errhint(
				 "Add " MR_SCHEMA
				 ".tumble(time_column, '1 minute') AS window_start to the SELECT list and to GROUP BY.")));

	foreach (lc,
			 pull_var_clause(
				 (Node *) list_make2(query->targetList, query->havingQual ? query->havingQual : (Node *) NIL),
				 PVC_INCLUDE_AGGREGATES))
		if (IsA(lfirst(lc), Aggref))
			def->aggs = list_append_unique(def->aggs, lfirst(lc));
	foreach (lc, def->aggs)
		(void) state_type(lfirst(lc));
	return def;
}

/*
 * What CREATE TABLE and CREATE VIEW are told
 */

static void
append_column(StringInfo buf, const char *name, Oid type, int32 typmod, Oid collation)
{
	appendStringInfo(buf, ", %s %s", name, format_type_with_typemod(type, typmod));
	if (OidIsValid(collation) && collation != DEFAULT_COLLATION_OID)
		appendStringInfo(buf, " COLLATE %s", generate_collation_name(collation));
}

/* _aggregate_parts(definition regclass, OUT source regclass, OUT columns text) */
Datum
mr_aggregate_parts(PG_FUNCTION_ARGS)
{
	Definition *def = read_definition(PG_GETARG_OID(0));
	StringInfoData columns;
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false, false};
	ListCell *lc;
	int n = 0;

	initStringInfo(&columns);
	appendStringInfoString(&columns, "xid pg_catalog.xid8 NOT NULL");
	foreach (lc, def->keys)
	{
		Node *expr = (Node *) ((TargetEntry *) lfirst(lc))->expr;

		append_column(&columns, n == 0 ? "window_start" : psprintf("k%d", n), exprType(expr),
					  exprTypmod(expr), exprCollation(expr));
		n++;
	}
	n = 0;
	foreach (lc, def->aggs)
	{
		StateType state = state_type(lfirst(lc));

		append_column(&columns, psprintf("s%d", ++n), state.type, -1, state.collation);
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = ObjectIdGetDatum(def->source);
	values[1] = CStringGetTextDatum(columns.data);
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/* Replaces keys and aggregates by columns of the state table. */
typedef struct ToState
{
	Definition *def;
	Oid merge_fn;
} ToState;

static Node *
merge_call(ToState *to, Aggref *agg, int index)
{
	StateType state = state_type(agg);
	AttrNumber attno = 2 + list_length(to->def->keys) + index;
	Aggref *merge = makeNode(Aggref);
	Expr *args[3] = {(Expr *) makeConst(REGPROCEDUREOID, -1, InvalidOid, sizeof(Oid),
										ObjectIdGetDatum(agg->aggfnoid), false, true),
					 (Expr *) makeNullConst(agg->aggtype, -1, agg->aggcollid),
					 (Expr *) makeVar(1, attno, state.type, -1, state.collation, 0)};

	merge->aggfnoid = to->merge_fn;
	merge->aggtype = agg->aggtype;
	merge->aggcollid = agg->aggcollid;
	merge->inputcollid = agg->inputcollid;
	merge->aggargtypes = list_make3_oid(REGPROCEDUREOID, agg->aggtype, state.type);
	for (int i = 0; i < 3; i++)
		merge->args = lappend(merge->args, makeTargetEntry(args[i], i + 1, NULL, false));
	merge->aggkind = AGGKIND_NORMAL;
	merge->aggsplit = AGGSPLIT_SIMPLE;
	merge->aggno = merge->aggtransno = -1;
	merge->location = -1;
	return (Node *) merge;
}

static Node *
to_state_mutator(Node *node, ToState *to)
{
	ListCell *lc;

	if (node == NULL)
		return NULL;
	foreach (lc, to->def->keys)
	{
		Node *key = (Node *) ((TargetEntry *) lfirst(lc))->expr;

		if (equal(node, key))
			return (Node *) makeVar(1, 2 + foreach_current_index(lc), exprType(key), exprTypmod(key),
									exprCollation(key), 0);
	}
	if (IsA(node, Aggref))
		foreach (lc, to->def->aggs)
			if (equal(node, lfirst(lc)))
				return merge_call(to, (Aggref *) node, foreach_current_index(lc));
	if (IsA(node, Var))
		refuse("columns outside aggregates that are not in GROUP BY", "Add the column to GROUP BY.");
	if (IsA(node, SubLink))
		refuse("subqueries in its SELECT list or HAVING",
			   "Join the table in FROM, or in a query over the continuous aggregate.");
	return expression_tree_mutator(node, to_state_mutator, to);
}

/* _aggregate_view(definition regclass, state regclass): text of the query of view NAME */
Datum
mr_aggregate_view(PG_FUNCTION_ARGS)
{
	static const Oid merge_types[3] = {REGPROCEDUREOID, ANYELEMENTOID, ANYOID};
	Definition *def = read_definition(PG_GETARG_OID(0));
	Oid state = PG_GETARG_OID(1);
	ToState to = {def, schema_function("merge_state", 3, merge_types)};
	Query *query = makeNode(Query);
	RangeTblEntry *rte = makeNode(RangeTblEntry);
	RangeTblRef *ref = makeNode(RangeTblRef);
	Relation rel = table_open(state, AccessShareLock);

	rte->rtekind = RTE_RELATION;
	rte->relid = state;
	rte->relkind = RELKIND_RELATION;
	rte->rellockmode = AccessShareLock;
	rte->eref = makeAlias(RelationGetRelationName(rel), NIL);
	rte->inh = true;
	rte->inFromCl = true;
	for (int i = 0; i < RelationGetDescr(rel)->natts; i++)
		rte->eref->colnames =
			lappend(rte->eref->colnames,
					makeString(pstrdup(NameStr(TupleDescAttr(RelationGetDescr(rel), i)->attname))));
	table_close(rel, NoLock);

	ref->rtindex = 1;
	query->commandType = CMD_SELECT;
	query->querySource = QSRC_ORIGINAL;
	query->canSetTag = true;
	query->hasAggs = true;
	query->rtable = list_make1(rte);
	query->jointree = makeFromExpr(list_make1(ref), NULL);
	query->groupClause = def->query->groupClause;
	query->targetList = (List *) to_state_mutator((Node *) def->query->targetList, &to);
	query->havingQual = to_state_mutator(def->query->havingQual, &to);
	PG_RETURN_TEXT_P(cstring_to_text(pg_get_querydef(query, true)));
}

/*
 * Plans
 */

struct MrAggregatePlan
{
	PlannedStmt *stmt;
	Oid state;
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
#if PG_VERSION_NUM >= 160000
	rte->perminfoindex = 0;
#else
	rte->requiredPerms = 0;
#endif
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
	bool same = rel->rd_rel->relkind == RELKIND_RELATION && desc->natts == 1 + list_length(target_list) &&
		TupleDescAttr(desc, 0)->atttypid == XID8OID;
	ListCell *lc;

	foreach (lc, target_list)
		same = same &&
			TupleDescAttr(desc, 1 + foreach_current_index(lc))->atttypid ==
				exprType((Node *) ((TargetEntry *) lfirst(lc))->expr);
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("state table \"%s\" does not have the columns of its continuous aggregate",
						RelationGetRelationName(rel)),
				 errhint("Drop the continuous aggregate and create it again.")));
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
static void
check_owners(Oid definition, Oid state)
{
	Oid owner = owner_of(definition);

	if (owner != owner_of(state) || !has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("view \"%s\" and table \"%s\" of a continuous aggregate must belong to the same role",
						get_rel_name(definition), get_rel_name(state)),
				 errhint("Use REASSIGN OWNED, or ALTER … OWNER TO for both.")));
}

MrAggregatePlan *
mr_aggregate_plan(Oid definition, Oid leaf, Oid state, MemoryContext keep, List **depends)
{
	MemoryContext scratch =
		AllocSetContextCreate(CurrentMemoryContext, "millrace plan", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(scratch);
	Definition *def;
	MrAggregatePlan *plan;
	PlannedStmt *stmt;
	Query *query;
	List *targets = NIL;
	ListCell *lc;
	int gucs;

	check_owners(definition, state);
	def = read_definition(definition);
	query = copyObject(def->query);
	foreach (lc, def->keys)
	{
		TargetEntry *key = copyObject(lfirst_node(TargetEntry, lc));

		key->resno = list_length(targets) + 1;
		key->resjunk = false;
		targets = lappend(targets, key);
	}
	foreach (lc, def->aggs)
		targets =
			lappend(targets, makeTargetEntry(copyObject(lfirst(lc)), list_length(targets) + 1, NULL, false));
	query->targetList = targets;
	query->havingQual = NULL;

	AcquireRewriteLocks(query, true, false);
	if (OidIsValid(leaf))
	{
		Relation source_rel = table_open(def->source, AccessShareLock);
		Relation leaf_rel = table_open(leaf, AccessShareLock);

		query = read_new_rows(query, def->source_rti, source_rel, leaf_rel);
		table_close(leaf_rel, NoLock);
		table_close(source_rel, NoLock);
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
	check_state_table(state, stmt->planTree->targetlist);

	MemoryContextSwitchTo(keep);
	plan = palloc0(sizeof(MrAggregatePlan));
	plan->state = state;
	plan->stmt = copyObject(stmt);
	*depends = list_concat(*depends, plan->stmt->relationOids);
	*depends = lappend_oid(lappend_oid(lappend_oid(*depends, definition), state), def->source);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(scratch);
	return plan;
}

void
mr_aggregate_lock(const MrAggregatePlan *plan)
{
	ListCell *lc;

	foreach (lc, plan->stmt->rtable)
	{
		RangeTblEntry *rte = lfirst_node(RangeTblEntry, lc);

		if (rte->rtekind == RTE_RELATION && rte->rellockmode != NoLock)
			LockRelationOid(rte->relid, rte->rellockmode);
	}
	LockRelationOid(plan->state, RowExclusiveLock);
}

/*
 * Running a plan: a DestReceiver that appends to the state table, a thousand rows at a time
 */
#define STATE_ROWS 1000

typedef struct StateWriter
{
	DestReceiver dest;
	Relation rel;
	EState *estate;
	ResultRelInfo *rri;
	BulkInsertState bulk;
	TupleTableSlot *slots[STATE_ROWS];
	int n_slots;
	uint64 n_written;
} StateWriter;

static void
writer_flush(StateWriter *writer)
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

static bool
writer_receive(TupleTableSlot *row, DestReceiver *dest)
{
	StateWriter *writer = (StateWriter *) dest;
	TupleTableSlot *slot = writer->slots[writer->n_slots];
	int n_columns = row->tts_tupleDescriptor->natts;

	if (slot == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(writer->estate->es_query_cxt);

		slot = writer->slots[writer->n_slots] =
			table_slot_create(writer->rel, &writer->estate->es_tupleTable);
		MemoryContextSwitchTo(old);
	}
	slot_getallattrs(row);
	ExecClearTuple(slot);
	slot->tts_values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	slot->tts_isnull[0] = false;
	memcpy(slot->tts_values + 1, row->tts_values, n_columns * sizeof(Datum));
	memcpy(slot->tts_isnull + 1, row->tts_isnull, n_columns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	ExecMaterializeSlot(slot);
	if (++writer->n_slots == STATE_ROWS)
		writer_flush(writer);
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

uint64
mr_aggregate_run(MrAggregatePlan *plan, QueryEnvironment *env)
{
	StateWriter *writer = palloc0(sizeof(StateWriter));
	QueryDesc *query;
	uint64 n_written;

	writer->dest.receiveSlot = writer_receive;
	writer->dest.rStartup = writer_startup;
	writer->dest.rShutdown = writer_nothing;
	writer->dest.rDestroy = writer_nothing;
	writer->dest.mydest = DestNone;
	writer->rel = table_open(plan->state, RowExclusiveLock);
	writer->estate = CreateExecutorState();
	writer->rri = makeNode(ResultRelInfo);
	InitResultRelInfo(writer->rri, writer->rel, 0, NULL, 0);
	ExecOpenIndices(writer->rri, false);
	writer->bulk = GetBulkInsertState();

	query =
		CreateQueryDesc(plan->stmt, "", GetActiveSnapshot(), InvalidSnapshot, &writer->dest, NULL, env, 0);
	ExecutorStart(query, 0);
#if PG_VERSION_NUM >= 180000
	ExecutorRun(query, ForwardScanDirection, 0);
#else
	ExecutorRun(query, ForwardScanDirection, 0, true);
#endif
	writer_flush(writer);
	ExecutorFinish(query);
	ExecutorEnd(query);
	FreeQueryDesc(query);

	ExecResetTupleTable(writer->estate->es_tupleTable, false);
	FreeBulkInsertState(writer->bulk);
	table_finish_bulk_insert(writer->rel, 0);
	ExecCloseIndices(writer->rri);
	FreeExecutorState(writer->estate);
	table_close(writer->rel, NoLock);
	n_written = writer->n_written;
	pfree(writer);
	return n_written;
}

/* _aggregate_backfill(definition regclass, state regclass): states of all rows that the source has, as the caller */
Datum
mr_aggregate_backfill(PG_FUNCTION_ARGS)
{
	List *depends = NIL;
	MrAggregatePlan *plan =
		mr_aggregate_plan(PG_GETARG_OID(0), InvalidOid, PG_GETARG_OID(1), CurrentMemoryContext, &depends);
	uint64 n_written;

	/* The latest snapshot, also in a REPEATABLE READ transaction: the caller holds off writers. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetLatestSnapshot());
	n_written = mr_aggregate_run(plan, NULL);
	PopActiveSnapshot();
	PG_RETURN_INT64((int64) n_written);
}

/*
 * merge_state(aggregate regprocedure, result anyelement, state "any") returns anyelement: the aggregate that
 * combines stored states and returns the final value, as the leader of a parallel query does.
 */
typedef struct MergeState
{
	FmgrInfo combine_fn;
	FmgrInfo deserial_fn;
	FmgrInfo final_fn;
	bool is_internal;
	bool has_final;
	int n_final_args;
	Oid collation;
	int16 len;
	bool by_value;
	Datum value;
	bool is_null;
	bool
		is_empty; /* no initial value, and nothing combined yet: a strict function starts from the first state */
} MergeState;

/*
 * Are the types of the state and of the result those that the aggregate has?  Anybody may call merge_state with
 * anything, and a value taken for one of another type would crash the server.
 */
static bool
types_fit(Oid agg_fn, Form_pg_aggregate form, Oid state, Oid result)
{
	Oid declared[2] = {form->aggtranstype, get_func_rettype(agg_fn)};
	Oid actual[2] = {state, result};

	if (form->aggtranstype == INTERNALOID)
		return state == BYTEAOID && result == declared[1];
	if (!IsPolymorphicType(declared[0]))
		return state == declared[0] && result == declared[1];
	if (IsPolymorphicTypeFamily2(declared[0]) || IsPolymorphicTypeFamily2(declared[1]))
		return false;
	if (!IsPolymorphicType(declared[1]))
		return result == declared[1] && check_generic_type_consistency(actual, declared, 1);
	return check_generic_type_consistency(actual, declared, 2);
}

/* The final function, with the types of the aggregate's arguments if it is declared to see them. */
static void
merge_final_function(MergeState *merge, Oid agg_fn, Form_pg_aggregate form, Oid trans_type, Oid result_type)
{
	Oid input_types[FUNC_MAX_ARGS];
	Oid *arg_types;
	int n_args;
	Expr *expr;

	(void) get_func_signature(agg_fn, &arg_types, &n_args);
	for (int i = 0; i < n_args; i++)
	{
		input_types[i] = arg_types[i];
		if (arg_types[i] == form->aggtranstype)
			input_types[i] = trans_type;
		else if (arg_types[i] == get_func_rettype(agg_fn))
			input_types[i] = result_type;
		else if (IsPolymorphicType(arg_types[i]) && form->aggfinalextra)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("states of aggregate %s cannot be merged", format_procedure(agg_fn))));
	}
	merge->n_final_args = form->aggfinalextra ? n_args + 1 : 1;
	fmgr_info(form->aggfinalfn, &merge->final_fn);
	build_aggregate_finalfn_expr(input_types, merge->n_final_args, trans_type, result_type, merge->collation,
								 form->aggfinalfn, &expr);
	fmgr_info_set_expr((Node *) expr, &merge->final_fn);
}

/* Function lookups and the initial value, in the aggregate's memory. */
static MergeState *
merge_begin(FunctionCallInfo fcinfo, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	MergeState *merge = palloc0(sizeof(MergeState));
	Oid agg_fn = PG_GETARG_OID(1);
	Oid result_type = get_fn_expr_argtype(fcinfo->flinfo, 2);
	Oid state_type = get_fn_expr_argtype(fcinfo->flinfo, 3);
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg_fn));
	Form_pg_aggregate form;
	Oid trans_type, combine_types[2];
	Datum initial;
	Expr *expr;

	if (!HeapTupleIsValid(tuple))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION), errmsg("aggregate with OID %u does not exist", agg_fn)));
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	merge->is_internal = form->aggtranstype == INTERNALOID;
	trans_type = merge->is_internal ? INTERNALOID : state_type;
	if (form->aggkind != AGGKIND_NORMAL || !OidIsValid(form->aggcombinefn) ||
		is_order_sensitive(form->aggtransfn) || (merge->is_internal && !OidIsValid(form->aggdeserialfn)) ||
		!types_fit(agg_fn, form, state_type, result_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("a value of type %s is not a state of aggregate %s with result type %s",
						format_type_be(state_type), format_procedure(agg_fn), format_type_be(result_type))));
	merge->collation = PG_GET_COLLATION();
	fmgr_info(form->aggcombinefn, &merge->combine_fn);
	combine_types[0] = combine_types[1] = trans_type;
	build_aggregate_transfn_expr(combine_types, 2, 0, false, trans_type, merge->collation, form->aggcombinefn,
								 InvalidOid, &expr, NULL);
	fmgr_info_set_expr((Node *) expr, &merge->combine_fn);
	if (merge->is_internal)
	{
		if (merge->combine_fn.fn_strict)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("combine function of aggregate %s must not be strict", format_procedure(agg_fn))));
		fmgr_info(form->aggdeserialfn, &merge->deserial_fn);
		build_aggregate_deserialfn_expr(form->aggdeserialfn, &expr);
		fmgr_info_set_expr((Node *) expr, &merge->deserial_fn);
	}
	merge->has_final = OidIsValid(form->aggfinalfn);
	if (merge->has_final)
		merge_final_function(merge, agg_fn, form, trans_type, result_type);
	get_typlenbyval(trans_type, &merge->len, &merge->by_value);

	initial = SysCacheGetAttr(AGGFNOID, tuple, Anum_pg_aggregate_agginitval, &merge->is_null);
	if (!merge->is_null && !merge->is_internal)
	{
		Oid input, io_param;

		getTypeInputInfo(trans_type, &input, &io_param);
		merge->value = OidInputFunctionCall(input, TextDatumGetCString(initial), io_param, -1);
	}
	else
		merge->is_null = true;
	merge->is_empty = merge->is_null;
	ReleaseSysCache(tuple);
	MemoryContextSwitchTo(old);
	return merge;
}

/* Calls the combine function as advance_combine_function of nodeAgg.c does. */
Datum
mr_merge_state_trans(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(call, 2);
	MemoryContext context;
	MergeState *merge;
	Datum result;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "merge_state called in non-aggregate context");
	if (PG_ARGISNULL(1))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("aggregate of merge_state must not be null")));
	merge = PG_ARGISNULL(0) ? merge_begin(fcinfo, context) : (MergeState *) PG_GETARG_POINTER(0);
	call->args[1].value = PG_GETARG_DATUM(3);
	call->args[1].isnull = PG_ARGISNULL(3);
	if (merge->is_internal && !(PG_ARGISNULL(3) && merge->deserial_fn.fn_strict))
	{
		LOCAL_FCINFO(deserial, 2);

		InitFunctionCallInfoData(*deserial, &merge->deserial_fn, 2, InvalidOid, fcinfo->context, NULL);
		deserial->args[0] = call->args[1];
		deserial->args[1].value = (Datum) 0;
		deserial->args[1].isnull = false;
		call->args[1].value = FunctionCallInvoke(deserial);
		call->args[1].isnull = deserial->isnull;
	}
	if (merge->combine_fn.fn_strict)
	{
		if (call->args[1].isnull)
			PG_RETURN_POINTER(merge);
		if (merge->is_empty)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			merge->value = datumCopy(call->args[1].value, merge->by_value, merge->len);
			merge->is_null = merge->is_empty = false;
			MemoryContextSwitchTo(old);
			PG_RETURN_POINTER(merge);
		}
		if (merge->is_null)
			PG_RETURN_POINTER(merge);
	}
	merge->is_empty = false;
	InitFunctionCallInfoData(*call, &merge->combine_fn, 2, merge->collation, fcinfo->context, NULL);
	call->args[0].value = merge->value;
	call->args[0].isnull = merge->is_null;
	result = FunctionCallInvoke(call);
	if (!merge->by_value && !call->isnull &&
		(merge->is_null || DatumGetPointer(result) != DatumGetPointer(merge->value)))
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		result = datumCopy(result, false, merge->len);
		MemoryContextSwitchTo(old);
		if (!merge->is_null)
			pfree(DatumGetPointer(merge->value));
	}
	merge->value = result;
	merge->is_null = call->isnull;
	PG_RETURN_POINTER(merge);
}

Datum
mr_merge_state_final(PG_FUNCTION_ARGS)
{
	LOCAL_FCINFO(call, FUNC_MAX_ARGS);
	MergeState *merge;
	Datum result;

	if (!AggCheckCallContext(fcinfo, NULL))
		elog(ERROR, "merge_state called in non-aggregate context");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	merge = (MergeState *) PG_GETARG_POINTER(0);
	if (!merge->has_final)
	{
		if (merge->is_null)
			PG_RETURN_NULL();
		PG_RETURN_DATUM(merge->value);
	}
	if (merge->is_null && merge->final_fn.fn_strict)
		PG_RETURN_NULL();
	InitFunctionCallInfoData(*call, &merge->final_fn, merge->n_final_args, merge->collation, fcinfo->context,
							 NULL);
	call->args[0].value = merge->value;
	call->args[0].isnull = merge->is_null;
	for (int i = 1; i < merge->n_final_args; i++)
	{
		call->args[i].value = (Datum) 0;
		call->args[i].isnull = true;
	}
	if (merge->final_fn.fn_strict && merge->n_final_args > 1)
		PG_RETURN_NULL();
	result = FunctionCallInvoke(call);
	if (call->isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}
