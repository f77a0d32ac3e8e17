/*
 * definition.c: the query of a continuous aggregate: what it may contain, and the texts that follow from it.
 *
 * The definition is an ordinary view, NAME_query.  Everything is derived from its query tree, so that a rename of a
 * table or column, which PostgreSQL applies to the view, needs nothing here:
 *
 *   the columns of NAME_delta and NAME_state   (aggregate.h)
 *   the views NAME and NAME_final and the function NAME_changes: source replaced by the states, each aggregate by
 *       millrace.merge_state(aggregate, result type, state)
 *   the statement that folds NAME_delta into NAME_state
 *
 * A window is one of three kinds:
 *
 *   tumble(time, …)  the key is the start of the window
 *   hop(time, …)     the key of a state is a pane, a window as wide as the slide; windows merge panes when read
 *   session(time, gap) OVER (PARTITION BY keys ORDER BY time), in a subquery: a state is the part of a session that
 *       one batch saw, from its first event (window_start) to its last (window_last); parts that touch are merged
 *       when read
 */
#include "aggregate.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_class.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_proc.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "parser/parse_agg.h"
#include "parser/parse_coerce.h"
#include "parser/parsetree.h"
#include "rewrite/rewriteHandler.h"
#include "rewrite/rewriteManip.h"
#include "utils/fmgroids.h"
#include "utils/regproc.h"
#include "utils/ruleutils.h"
#include "utils/syscache.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(mr_aggregate_parts);
PG_FUNCTION_INFO_V1(mr_aggregate_states);
PG_FUNCTION_INFO_V1(mr_aggregate_texts);
PG_FUNCTION_INFO_V1(mr_last_closed_window);
PG_FUNCTION_INFO_V1(mr_aggregate_keys);
PG_FUNCTION_INFO_V1(mr_partial_text);
PG_FUNCTION_INFO_V1(mr_federated_text);

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
 * Reading a definition
 */


MrStateType
mr_state_type(Aggref *agg)
{
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg->aggfnoid));
	Form_pg_aggregate form;
	Oid arg_types[FUNC_MAX_ARGS];
	const char *name = format_procedure(agg->aggfnoid);
	MrStateType state;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", agg->aggfnoid);
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	if (agg->aggdistinct || agg->aggorder || agg->aggkind != AGGKIND_NORMAL ||
		mr_is_order_sensitive(form->aggtransfn))
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
Oid
mr_schema_function(const char *name, int n_args, const Oid *types)
{
	Oid function = GetSysCacheOid3(PROCNAMEARGSNSP, Anum_pg_proc_oid, CStringGetDatum(name),
								   PointerGetDatum(buildoidvector(types, n_args)),
								   ObjectIdGetDatum(get_namespace_oid(MR_SCHEMA, false)));

	if (!OidIsValid(function))
		elog(ERROR, "function " MR_SCHEMA ".%s does not exist", name);
	return function;
}

/* Is the node a call of the extension's window function of that kind? */
static bool
is_window_call(Node *node, MrWindowKind kind)
{
	static const Oid types[5] = {TIMESTAMPTZOID, INTERVALOID, TIMESTAMPTZOID, TEXTOID};
	static const Oid hop_types[5] = {TIMESTAMPTZOID, INTERVALOID, INTERVALOID, TIMESTAMPTZOID, TEXTOID};

	switch (kind)
	{
		case MR_TUMBLE:
			return IsA(node, FuncExpr) &&
				((FuncExpr *) node)->funcid == mr_schema_function("tumble", 4, types);
		case MR_HOP:
			return IsA(node, FuncExpr) &&
				((FuncExpr *) node)->funcid == mr_schema_function("hop", 5, hop_types);
		case MR_SESSION:
			return IsA(node, WindowFunc) &&
				((WindowFunc *) node)->winfnoid == mr_schema_function("session", 2, types);
	}
	return false;
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

/*
 * Virtual generated columns (PostgreSQL 18) are not in the rows of a batch; nor are the values of stored ones, which
 * PostgreSQL computes in the partition, if the batch comes through the partitioned table.
 */
static bool
is_missing(Oid rel, AttrNumber attno)
{
	HeapTuple tuple = SearchSysCache2(ATTNUM, ObjectIdGetDatum(rel), Int16GetDatum(attno));
	char generated = HeapTupleIsValid(tuple) ? ((Form_pg_attribute) GETSTRUCT(tuple))->attgenerated : '\0';
	bool result =
		generated == 'v' || (generated != '\0' && get_rel_relkind(rel) == RELKIND_PARTITIONED_TABLE);

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
		if (is_missing(use->source, var->varattno))
			refuse("virtual generated columns of its source, or any if it is partitioned",
				   "Write the expression of the column instead.");
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

bool
mr_depends_on_moment(Node *node)
{
	return moment_walker(node, NULL);
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
	if (query->sortClause || query->limitCount || query->limitOffset || query->rowMarks)
		refuse("ORDER BY, LIMIT or FOR UPDATE", "Use them in a query over the continuous aggregate.");
	if (query->hasWindowFuncs)
		refuse("window functions", "Use them in a query over the continuous aggregate.");
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

/* Names that the views and the function of a continuous aggregate give to columns of their own. */
static void
check_names(Query *query)
{
	static const char *const taken[] = {"final", "cursor", "after"};
	ListCell *lc;

	foreach (lc, query->targetList)
	{
		TargetEntry *tle = lfirst(lc);

		for (int i = 0; !tle->resjunk && i < lengthof(taken); i++)
			if (strcmp(tle->resname, taken[i]) == 0)
				refuse(psprintf("a column named \"%s\"", taken[i]), "Give the column another name with AS.");
	}
}

/* Set-returning functions in the target list, but for the hop itself. */
static bool
set_walker(Node *node, MrDefinition *def)
{
	if (node == NULL || equal(node, def->window_call))
		return false;
	if ((IsA(node, FuncExpr) && ((FuncExpr *) node)->funcretset) ||
		(IsA(node, OpExpr) && ((OpExpr *) node)->opretset))
		return true;
	return expression_tree_walker(node, set_walker, def);
}

/* The source is the table whose time the window function reads. */
static void
find_source(MrDefinition *def)
{
	Query *query = def->inner;
	int rti = 0;
	RangeTblEntry *rte;
	SourceUse use = {0};
	ListCell *lc;

	foreach (lc, pull_var_clause((Node *) def->time, 0))
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
	if (def->inner != def->query)
	{
		query_tree_walker(def->query, source_use_walker, &use, QTW_EXAMINE_RTES_BEFORE);
		if (use.n_found != 1)
			refuse("its source more than once", NULL);
		use.n_found = 0;
	}
	use.rti = rti;
	query_tree_walker(query, source_use_walker, &use, QTW_EXAMINE_RTES_BEFORE);
	if (use.n_found != 1)
		refuse("its source more than once", NULL);
}

/* An argument of the window function: a constant, or NULL where that is allowed. */
static Const *
constant_argument(List *args, int n, bool null_allowed)
{
	Node *node = eval_const_expressions(NULL, copyObject(list_nth(args, n)));

	if (!IsA(node, Const))
		refuse("a window whose size, slide, gap, origin or time zone is not constant", NULL);
	if (((Const *) node)->constisnull && !null_allowed)
		refuse("a window whose size, slide or gap is NULL", NULL);
	return (Const *) node;
}

/* The arguments of a window function's call, in order and with defaults filled in. */
List *
mr_call_arguments(Expr *call)
{
	FuncExpr *func;
	HeapTuple tuple;
	List *args;

	if (IsA(call, WindowFunc))
		return ((WindowFunc *) call)->args;
	func = castNode(FuncExpr, call);
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(func->funcid));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", func->funcid);
	args = expand_function_arguments(copyObject(func->args), false, func->funcresulttype, tuple);
	ReleaseSysCache(tuple);
	return args;
}

static void
read_window(MrDefinition *def, List *args)
{
	MrWindow *window = &def->window;
	int n = 1;
	Const *origin, *zone;

	def->time = (Expr *) mr_flatten_join_alias_vars(def->inner, copyObject(linitial(args)));
	window->size = *DatumGetIntervalP(constant_argument(args, n++, false)->constvalue);
	window->slide = window->size;
	if (window->kind == MR_HOP)
		window->slide = *DatumGetIntervalP(constant_argument(args, n++, false)->constvalue);
	if (window->kind == MR_SESSION)
	{
		(void) mr_window_panes(window);
		return;
	}
	origin = constant_argument(args, n++, true);
	zone = constant_argument(args, n, true);
	window->has_origin = !origin->constisnull;
	window->origin = origin->constisnull ? 0 : DatumGetTimestampTz(origin->constvalue);
	window->timezone = zone->constisnull ? NULL : DatumGetTextPP(zone->constvalue);
	(void) mr_window_panes(window); /* errors now, not with the first batch */
}

/*
 * Sessions
 */

static bool
count_window_funcs(Node *node, int *n)
{
	if (node == NULL)
		return false;
	if (IsA(node, WindowFunc))
		(*n)++;
	return expression_tree_walker(node, count_window_funcs, n);
}

/* The subquery that a grouping column comes from, if that column is a session. */
static TargetEntry *
session_column(Query *query, Node *key, Query **inner)
{
	RangeTblEntry *rte;
	TargetEntry *tle;

	if (!IsA(key, Var) || ((Var *) key)->varlevelsup != 0)
		return NULL;
	rte = rt_fetch(((Var *) key)->varno, query->rtable);
	if (rte->rtekind != RTE_SUBQUERY)
		return NULL;
	tle = get_tle_by_resno(rte->subquery->targetList, ((Var *) key)->varattno);
	if (tle == NULL || !is_window_call((Node *) tle->expr, MR_SESSION))
		return NULL;
	*inner = rte->subquery;
	return tle;
}

/* Is the expression one of those by which the session's window is partitioned? */
static bool
is_partition_key(Query *inner, WindowClause *window, Node *expr)
{
	ListCell *lc;

	foreach (lc, window->partitionClause)
		if (equal(get_sortgroupclause_expr(lfirst(lc), inner->targetList), expr))
			return true;
	return false;
}

static void
check_session(MrDefinition *def, WindowFunc *call)
{
	static const char *const form =
		"As in: SELECT user_id, window_start, count(*) FROM (SELECT *, " MR_SCHEMA
		".session(at, '30 minutes') OVER (PARTITION BY user_id ORDER BY at) AS window_start FROM events) s "
		"GROUP BY user_id, window_start";
	Query *inner = def->inner;
	WindowClause *window = list_nth_node(WindowClause, inner->windowClause, call->winref - 1);
	int n_funcs = 0;
	ListCell *lc;

	count_window_funcs((Node *) inner->targetList, &n_funcs);
	if (inner->setOperations || inner->cteList || inner->distinctClause || inner->groupClause ||
		inner->groupingSets || inner->hasAggs || inner->hasTargetSRFs || inner->sortClause ||
		inner->limitCount || inner->limitOffset || inner->rowMarks || n_funcs != 1)
		refuse("more in the subquery of a session than FROM, WHERE and the session", form);
	if (list_length(def->query->jointree->fromlist) != 1 ||
		!IsA(linitial(def->query->jointree->fromlist), RangeTblRef) || def->query->jointree->quals)
		refuse("joins or WHERE outside the subquery of a session", "Write them in the subquery.");
	if (list_length(window->orderClause) != 1 ||
		!equal(get_sortgroupclause_expr(linitial(window->orderClause), inner->targetList),
			   linitial(call->args)) ||
		linitial_node(SortGroupClause, window->orderClause)->sortop !=
			lookup_type_cache(exprType((Node *) def->time), TYPECACHE_LT_OPR)->lt_opr)
		refuse("a session that is not ordered by its time", form);
	if (list_length(window->partitionClause) != list_length(def->keys) - 1)
		refuse("a session that is not partitioned by the other columns of GROUP BY", form);
	for_each_from(lc, def->keys, 1)
	{
		Var *var = (Var *) ((TargetEntry *) lfirst(lc))->expr;

		if (!IsA(var, Var) || var->varlevelsup != 0 ||
			!is_partition_key(inner, window,
							  (Node *) get_tle_by_resno(inner->targetList, var->varattno)->expr))
			refuse("a session that is not partitioned by the other columns of GROUP BY", form);
	}
}

/* max(time), the last event of a session, as an aggregate of the outer query. */
static Aggref *
last_event(MrDefinition *def)
{
	Index rti = linitial_node(RangeTblRef, def->query->jointree->fromlist)->rtindex;
	RangeTblEntry *rte = rt_fetch(rti, def->query->rtable);
	TargetEntry *time = NULL;
	Aggref *max = makeNode(Aggref);
	ListCell *lc;

	foreach (lc, def->inner->targetList)
		if (equal(((TargetEntry *) lfirst(lc))->expr, def->time) && !((TargetEntry *) lfirst(lc))->resjunk)
			time = lfirst(lc);
	if (time == NULL)
	{
		time = makeTargetEntry(copyObject(def->time), list_length(def->inner->targetList) + 1,
							   pstrdup("millrace_time"), false);
		def->inner->targetList = lappend(def->inner->targetList, time);
		rte->eref->colnames = lappend(rte->eref->colnames, makeString(pstrdup("millrace_time")));
	}
	max->aggfnoid = F_MAX_TIMESTAMPTZ;
	max->aggtype = TIMESTAMPTZOID;
	max->aggargtypes = list_make1_oid(TIMESTAMPTZOID);
	max->args = list_make1(makeTargetEntry(
		(Expr *) makeVar(rti, time->resno, TIMESTAMPTZOID, -1, InvalidOid, 0), 1, NULL, false));
	max->aggkind = AGGKIND_NORMAL;
	max->aggsplit = AGGSPLIT_SIMPLE;
	max->aggno = max->aggtransno = -1;
	max->location = -1;
	return max;
}

/* The query of a view, its keys and its window; what it reads is not looked at. */
static MrDefinition *
read_query(Oid view)
{
	Relation rel;
	MrDefinition *def = palloc0(sizeof(MrDefinition));
	Query *query;
	ListCell *lc;
	MrGuard guard;
	Oid owner;

	if (get_rel_relkind(view) != RELKIND_VIEW)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("relation with OID %u is not a view", view)));
	rel = table_open(view, AccessShareLock);
	owner = rel->rd_rel->relowner;
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
	check_names(query);
	def->inner = query;

	foreach (lc, query->groupClause)
	{
		TargetEntry *tle = get_sortgroupclause_tle(lfirst(lc), query->targetList);
		TargetEntry *session = session_column(query, (Node *) tle->expr, &def->inner);
		Expr *call = session ? session->expr : tle->expr;
		MrWindowKind kind;

		if (session)
			kind = MR_SESSION;
		else if (is_window_call((Node *) call, MR_TUMBLE))
			kind = MR_TUMBLE;
		else if (is_window_call((Node *) call, MR_HOP))
			kind = MR_HOP;
		else
		{
			def->keys = lappend(def->keys, tle);
			continue;
		}
		if (def->window_call)
			refuse("two windows", NULL);
		def->window_call = call;
		def->window.kind = kind;
		def->keys = lcons(tle, def->keys);
	}
	if (def->window_call == NULL)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("the query of a continuous aggregate must group by a window"),
			 errhint(
				 "Add " MR_SCHEMA
				 ".tumble(time_column, '1 minute') AS window_start to the SELECT list and to GROUP BY.")));
	if (set_walker((Node *) query->targetList, def))
		refuse("set-returning functions", "Use them in a query over the continuous aggregate.");
	/* Functions in the arguments are of the view's owner, whoever reads it. */
	mr_enter(&guard, owner, NULL);
	read_window(def, mr_call_arguments(def->window_call));
	mr_leave(&guard);
	return def;
}

MrDefinition *
mr_read_definition(Oid view)
{
	MrDefinition *def = read_query(view);
	Query *query = def->query;
	ListCell *lc;

	find_source(def);
	if (def->window.kind == MR_SESSION)
		check_session(def, (WindowFunc *) def->window_call);

	foreach (lc,
			 pull_var_clause(
				 (Node *) list_make2(query->targetList, query->havingQual ? query->havingQual : (Node *) NIL),
				 PVC_INCLUDE_AGGREGATES))
		if (IsA(lfirst(lc), Aggref))
			def->aggs = list_append_unique(def->aggs, lfirst(lc));
	if (def->window.kind == MR_SESSION)
		def->aggs = lappend(def->aggs, last_event(def));
	foreach (lc, def->aggs)
		(void) mr_state_type(lfirst(lc));
	return def;
}

/*
 * Rollups
 */

MrWindow
mr_definition_window(Oid view)
{
	return read_query(view)->window;
}

AttrNumber
mr_window_column(MrDefinition *def)
{
	TargetEntry *tle = linitial(def->keys);

	return tle->resjunk ? InvalidAttrNumber : tle->resno;
}

Oid
mr_rollup_view(MrDefinition *def)
{
	ListCell *lc;

	foreach (lc, pull_var_clause((Node *) def->time, 0))
	{
		RangeTblEntry *rte = rt_fetch(lfirst_node(Var, lc)->varno, def->inner->rtable);

		if (rte->rtekind == RTE_RELATION && rte->relkind == RELKIND_VIEW)
			return rte->relid;
	}
	return InvalidOid;
}

MrDefinition *
mr_read_rollup(Oid view)
{
	return read_query(view);
}

void
mr_check_rollup(MrDefinition *def, AttrNumber window_column)
{
	Var *time = (Var *) def->time;
	RangeTblEntry *rte;
	SourceUse use = {0};

	if (def->window.kind == MR_SESSION)
		refuse("sessions of windows", "Roll up by tumble or hop.");
	if (!IsA(time, Var) || time->varlevelsup != 0 || time->varattno != window_column ||
		window_column == InvalidAttrNumber)
		refuse("a window over anything but the window of the continuous aggregate that it reads",
			   "As in: SELECT " MR_SCHEMA
			   ".tumble(window_start, '1 hour') AS window_start, sum(n) FROM per_minute GROUP BY 1");
	rte = rt_fetch(time->varno, def->query->rtable);
	if (!rte->inh)
		refuse("ONLY before the continuous aggregate that it reads", NULL);
	if (is_nullable((Node *) def->query->jointree, time->varno, false))
		refuse("the continuous aggregate that it reads on the nullable side of an outer join", NULL);
	def->source_rti = time->varno;
	def->source = rte->relid;
	use.source = def->source;
	use.rti = def->source_rti;
	query_tree_walker(def->query, source_use_walker, &use, QTW_EXAMINE_RTES_BEFORE);
	if (use.n_found != 1)
		refuse("the continuous aggregate that it reads more than once", NULL);
}

/*
 * Columns of the state tables
 */

static char *
state_column(MrDefinition *def, int index)
{
	int n_keys = list_length(def->keys);

	if (index == 0)
		return "window_start";
	if (index < n_keys)
		return psprintf("k%d", index);
	if (def->window.kind == MR_SESSION && index == n_keys + list_length(def->aggs) - 1)
		return "window_last";
	return psprintf("s%d", index - n_keys + 1);
}

static int
n_state_columns(MrDefinition *def)
{
	return list_length(def->keys) + list_length(def->aggs);
}

static void
append_column(StringInfo buf, const char *name, Oid type, int32 typmod, Oid collation)
{
	appendStringInfo(buf, ", %s %s", name, format_type_with_typemod(type, typmod));
	if (OidIsValid(collation) && collation != DEFAULT_COLLATION_OID)
		appendStringInfo(buf, " COLLATE %s", generate_collation_name(collation));
}

static char *
inner_expression(MrDefinition *def, Expr *expr)
{
	RangeTblEntry *rte = rt_fetch(def->source_rti, def->inner->rtable);
	Node *copy = copyObject((Node *) expr);

	ChangeVarNodes(copy, def->source_rti, 1, 0);
	return deparse_expression(copy, deparse_context_for(get_rel_name(rte->relid), rte->relid), false, false);
}

/*
 * _aggregate_parts(definition regclass, OUT source regclass, OUT columns text, OUT time_text text): the columns of the
 * state tables, and the event time as an expression over columns of the source
 */
Datum
mr_aggregate_parts(PG_FUNCTION_ARGS)
{
	MrDefinition *def = mr_read_definition(PG_GETARG_OID(0));
	StringInfoData columns;
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false, false, false};
	ListCell *lc;
	int n = 0;

	initStringInfo(&columns);
	appendStringInfoString(&columns,
						   "xid pg_catalog.xid8 NOT NULL, part \"char\" NOT NULL, open_from timestamptz");
	foreach (lc, def->keys)
	{
		Node *expr = (Node *) ((TargetEntry *) lfirst(lc))->expr;

		append_column(&columns, state_column(def, n++), exprType(expr), exprTypmod(expr),
					  exprCollation(expr));
	}
	foreach (lc, def->aggs)
	{
		MrStateType state = mr_state_type(lfirst(lc));

		append_column(&columns, state_column(def, n++), state.type, -1, state.collation);
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = ObjectIdGetDatum(def->source);
	values[1] = CStringGetTextDatum(columns.data);
	values[2] = CStringGetTextDatum(inner_expression(def, def->time));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * _aggregate_states(definition regclass, OUT columns name[], OUT types regtype[], OUT aggregates regprocedure[]):
 * the columns of the state tables that hold states, the types that these have on this server, and whose they are
 */
Datum
mr_aggregate_states(PG_FUNCTION_ARGS)
{
	MrDefinition *def = mr_read_definition(PG_GETARG_OID(0));
	int n = list_length(def->aggs), n_keys = list_length(def->keys);
	Datum *columns = palloc(sizeof(Datum) * n), *types = palloc(sizeof(Datum) * n);
	Datum *aggregates = palloc(sizeof(Datum) * n);
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false, false, false};

	for (int i = 0; i < n; i++)
	{
		Aggref *agg = list_nth(def->aggs, i);

		columns[i] = DirectFunctionCall1(namein, CStringGetDatum(state_column(def, n_keys + i)));
		types[i] = ObjectIdGetDatum(mr_state_type(agg).type);
		aggregates[i] = ObjectIdGetDatum(agg->aggfnoid);
	}
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = PointerGetDatum(construct_array(columns, n, NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
	values[1] = PointerGetDatum(construct_array(types, n, REGTYPEOID, sizeof(Oid), true, TYPALIGN_INT));
	values[2] =
		PointerGetDatum(construct_array(aggregates, n, REGPROCEDUREOID, sizeof(Oid), true, TYPALIGN_INT));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * The definition's expressions over states
 */

/* Replaces keys and aggregates by columns of the state table, which is alias s. */
typedef struct ToState
{
	MrDefinition *def;
	bool is_single; /* each group has one row: no merging */
	Oid merge_fn;	/* merge_state, or final_state if is_single */
} ToState;

static List *
merge_arguments(Aggref *agg, MrStateType state, AttrNumber attno)
{
	return list_make3(
		makeConst(REGPROCEDUREOID, -1, InvalidOid, sizeof(Oid), ObjectIdGetDatum(agg->aggfnoid), false, true),
		makeNullConst(agg->aggtype, -1, agg->aggcollid),
		makeVar(1, attno, state.type, -1, state.collation, 0));
}

static bool
has_final_function(Oid agg_fn)
{
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg_fn));
	bool result;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", agg_fn);
	result = OidIsValid(((Form_pg_aggregate) GETSTRUCT(tuple))->aggfinalfn);
	ReleaseSysCache(tuple);
	return result;
}

static Node *
merge_call(ToState *to, Aggref *agg, int index)
{
	MrStateType state = mr_state_type(agg);
	AttrNumber attno = MR_STATE_KEYS + list_length(to->def->keys) + index + 1;
	List *args = merge_arguments(agg, state, attno);
	Aggref *merge;

	if (to->is_single)
	{
		if (state.type == agg->aggtype && !has_final_function(agg->aggfnoid))
			return llast(args);
		return (Node *) makeFuncExpr(to->merge_fn, agg->aggtype, args, agg->aggcollid, agg->inputcollid,
									 COERCE_EXPLICIT_CALL);
	}
	merge = makeNode(Aggref);
	merge->aggfnoid = to->merge_fn;
	merge->aggtype = agg->aggtype;
	merge->aggcollid = agg->aggcollid;
	merge->inputcollid = agg->inputcollid;
	merge->aggargtypes = list_make3_oid(REGPROCEDUREOID, agg->aggtype, state.type);
	for (int i = 0; i < 3; i++)
		merge->args = lappend(merge->args, makeTargetEntry(list_nth(args, i), i + 1, NULL, false));
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
			return (Node *) makeVar(1, MR_STATE_KEYS + 1 + foreach_current_index(lc), exprType(key),
									exprTypmod(key), exprCollation(key), 0);
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

static char *
to_state_text(ToState *to, Node *node, Oid state)
{
	return deparse_expression(to_state_mutator(node, to), deparse_context_for("s", state), true, false);
}

/*
 * Texts
 */

typedef struct TextContext
{
	MrDefinition *def;
	ToState merge;
	ToState single;
	Oid state;
	const char *state_name; /* quoted */
	const char *delta_name;
	const char *window_args; /* size, slide, origin, zone as _last_closed and its like take them */
	const char *gap;
	const char *last_closed; /* scalar subquery: start of the last window that is final */
	const char
		*last_gone; /* … that retention dropped, NULL: none; of sessions the time before which they are */
	const char *first_kept; /* the same for rows that have a window: none starts earlier */
	const char *group_by;	/* s.window_start, s.k1, … */
} TextContext;

static char *
constant_text(Oid type, Datum value, bool is_null)
{
	int16 len;
	bool by_value;

	get_typlenbyval(type, &len, &by_value);
	return deparse_expression(
		(Node *) makeConst(type, -1, get_typcollation(type), len, value, is_null, by_value), NIL, false,
		false);
}

static void
start_texts(TextContext *texts, Oid definition, Oid state, Oid delta)
{
	static const Oid merge_types[3] = {REGPROCEDUREOID, ANYELEMENTOID, ANYOID};
	MrWindow *window;
	StringInfoData group_by;
	char *size, *closed_to;

	texts->def = mr_read_definition(definition);
	window = &texts->def->window;
	texts->merge.def = texts->single.def = texts->def;
	texts->merge.is_single = false;
	texts->merge.merge_fn = mr_schema_function("merge_state", 3, merge_types);
	texts->single.is_single = true;
	texts->single.merge_fn = mr_schema_function("final_state", 3, merge_types);
	texts->state = state;
	texts->state_name = mr_relation_name(state);
	texts->delta_name = mr_relation_name(delta);

	size = constant_text(INTERVALOID, IntervalPGetDatum(&window->size), false);
	texts->gap = size;
	texts->window_args =
		psprintf("%s, %s, %s, %s", size,
				 constant_text(INTERVALOID, IntervalPGetDatum(&window->slide), window->kind != MR_HOP),
				 constant_text(TIMESTAMPTZOID, TimestampTzGetDatum(window->origin), !window->has_origin),
				 constant_text(TEXTOID, PointerGetDatum(window->timezone), window->timezone == NULL));
	closed_to =
		psprintf(MR_SCHEMA "._closed_to(%s::pg_catalog.regclass)", quote_literal_cstr(texts->state_name));
	texts->last_closed = window->kind == MR_SESSION
		? psprintf("(SELECT %s)", closed_to)
		: psprintf("(SELECT " MR_SCHEMA "._last_closed(%s, %s))", closed_to, texts->window_args);
	texts->first_kept = psprintf(
		"(SELECT coalesce(pg_catalog.max(" MR_SCHEMA "._last_closed(r.retained_from, %s)) + '1 microsecond',"
		" '-infinity') FROM " MR_SCHEMA ".stream r WHERE r.state = %s::pg_catalog.regclass)",
		texts->window_args, quote_literal_cstr(texts->state_name));
	texts->last_gone =
		psprintf("(SELECT %s FROM " MR_SCHEMA ".stream r WHERE r.state = %s::pg_catalog.regclass"
				 " AND r.retained_from IS NOT NULL)",
				 window->kind == MR_SESSION
					 ? "r.retained_from"
					 : psprintf(MR_SCHEMA "._last_closed(r.retained_from, %s)", texts->window_args),
				 quote_literal_cstr(texts->state_name));

	initStringInfo(&group_by);
	for (int i = 0; i < list_length(texts->def->keys); i++)
		appendStringInfo(&group_by, "%ss.%s", i ? ", " : "", state_column(texts->def, i));
	texts->group_by = group_by.data;
}

/* Names of the state tables' columns behind an alias; window replaces window_start if it is given. */
static char *
column_list(TextContext *texts, const char *alias, const char *window)
{
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfo(&buf, "%s.xid, %s.part, %s.open_from", alias, alias, alias);
	for (int i = 0; i < n_state_columns(texts->def); i++)
		if (i == 0 && window)
			appendStringInfo(&buf, ", %s AS window_start", window);
		else
			appendStringInfo(&buf, ", %s.%s", alias, state_column(texts->def, i));
	return buf.data;
}

static void
append_targets(StringInfo buf, TextContext *texts, ToState *to)
{
	const char *separator = "";
	ListCell *lc;

	foreach (lc, texts->def->query->targetList)
	{
		TargetEntry *tle = lfirst(lc);

		if (tle->resjunk)
			continue;
		appendStringInfo(buf, "%s%s AS %s", separator, to_state_text(to, (Node *) tle->expr, texts->state),
						 quote_identifier(tle->resname));
		separator = ", ";
	}
}

/* Is the window of the group final?  Over grouped rows, or over single ones. */
static char *
final_text(TextContext *texts, bool is_grouped)
{
	if (texts->def->window.kind != MR_SESSION)
		return psprintf("s.window_start <= %s", texts->last_closed);
	return psprintf(is_grouped ? "pg_catalog.max(s.window_last) + %s + %s <= %s"
							   : "s.window_last + %s + %s <= %s",
					texts->gap, texts->gap, texts->last_closed);
}

/*
 * Has retention left the window?  Asked because a window may have panes that later ones need, and because a batch that
 * does not know yet may write into one that is gone.
 */
static char *
kept_text(TextContext *texts)
{
	if (texts->def->window.kind == MR_SESSION)
		return psprintf("(pg_catalog.max(s.window_last) + %s + %s > %s) IS NOT FALSE", texts->gap, texts->gap,
						texts->last_gone);
	return psprintf("(s.window_start > %s) IS NOT FALSE", texts->last_gone);
}

/* All rows of states but those of one part, from both tables. */
static char *
all_states(TextContext *texts, char but_part)
{
	return psprintf(
		"SELECT %s FROM %s t WHERE t.part <> '%c' UNION ALL SELECT %s FROM %s t WHERE t.part <> '%c'",
		column_list(texts, "t", NULL), texts->state_name, but_part, column_list(texts, "t", NULL),
		texts->delta_name, but_part);
}

/*
 * Those of a table that belong to one of the windows that a query returns, or to none.  Two branches, because IN alone is a
 * join, by index or hash; as part of an OR it would be compared row by row once it outgrows work_mem.
 */
static char *
states_of_windows(TextContext *texts, const char *table, char but_part, const char *windows)
{
	char *states = psprintf("SELECT %s FROM %s t WHERE t.part <> '%c' AND t.window_start",
							column_list(texts, "t", NULL), table, but_part);

	return psprintf("%s IN (%s) UNION ALL %s IS NULL", states, windows, states);
}

/*
 * FROM (…) s: states whose window_start is that of the window to which they belong, ready to be grouped.
 */
static char *
window_states(TextContext *texts, char but_part)
{
	MrDefinition *def = texts->def;
	const char *is_open = but_part == MR_PART_LIVE ? " AND (t.open_from IS NULL OR w.w > t.open_from)" : "";
	StringInfoData buf;

	initStringInfo(&buf);
	switch (def->window.kind)
	{
		case MR_TUMBLE:
			appendStringInfoString(&buf, all_states(texts, but_part));
			break;
		case MR_HOP:
			/* What is folded is found by its index, window by window; the few rows that are not are spread. */
			appendStringInfo(
				&buf,
				"SELECT %s FROM " MR_SCHEMA
				"._hop_starts(%s::pg_catalog.regclass, %s::pg_catalog.regclass, %s) AS w(w)"
				" JOIN %s t ON t.window_start >= w.w AND t.window_start <= " MR_SCHEMA "._hop_last(w.w, %s)"
				" WHERE t.part <> '%c'%s"
				" UNION ALL SELECT %s FROM %s t, LATERAL " MR_SCHEMA ".hop(t.window_start, %s) AS w(w)"
				" WHERE t.part <> '%c'%s UNION ALL SELECT %s FROM %s t WHERE t.window_start IS NULL AND "
				"t.part <> '%c'",
				column_list(texts, "t", "w.w"), quote_literal_cstr(texts->state_name),
				quote_literal_cstr(texts->delta_name), texts->window_args, texts->state_name,
				texts->window_args, but_part, is_open, column_list(texts, "t", "w.w"), texts->delta_name,
				texts->window_args, but_part, is_open, column_list(texts, "t", NULL), texts->state_name,
				but_part);
			break;
		case MR_SESSION:
		{
			StringInfoData keys;

			initStringInfo(&keys);
			for (int i = 1; i < list_length(def->keys); i++)
				appendStringInfo(&keys, "%su.%s", i > 1 ? ", " : "PARTITION BY ", state_column(def, i));
			appendStringInfo(&buf, "SELECT %s FROM (%s) u",
							 column_list(texts, "u",
										 psprintf(MR_SCHEMA "._session(u.window_start, u.window_last, %s)"
															" OVER (%s ORDER BY u.window_start)",
												  texts->gap, keys.data)),
							 all_states(texts, but_part));
			break;
		}
	}
	return buf.data;
}

/*
 * The query of view NAME (is_final false) or NAME_final.  Windows of tumbling aggregates that no row of NAME_delta
 * touches are read as they are: each group has one row.
 */
static char *
view_text(TextContext *texts, bool is_final)
{
	MrDefinition *def = texts->def;
	Node *having = def->query->havingQual;
	char but_part = is_final ? MR_PART_LIVE : MR_PART_FINAL;
	bool is_session = def->window.kind == MR_SESSION;
	/* DISTINCT: a hash of windows, not of rows, which the planner expects to fit work_mem; an anti-join is slower. */
	const char *in_delta = psprintf(
		"SELECT DISTINCT d.window_start FROM %s d WHERE d.window_start IS NOT NULL", texts->delta_name);
	StringInfoData buf;

	initStringInfo(&buf);
	if (def->window.kind == MR_TUMBLE)
	{
		appendStringInfoString(&buf, "SELECT ");
		append_targets(&buf, texts, &texts->single);
		if (!is_final)
			appendStringInfo(&buf, ", %s AS final", final_text(texts, false));
		appendStringInfo(&buf,
						 " FROM %s s WHERE s.part <> '%c' AND s.window_start NOT IN (%s)"
						 " AND (s.window_start >= %s) IS TRUE",
						 texts->state_name, but_part, in_delta, texts->first_kept);
		if (is_final)
			appendStringInfo(&buf, " AND %s", final_text(texts, false));
		if (having)
			appendStringInfo(&buf, " AND (%s)", to_state_text(&texts->single, having, texts->state));
		appendStringInfoString(&buf, " UNION ALL ");
	}
	appendStringInfoString(&buf, "SELECT ");
	append_targets(&buf, texts, &texts->merge);
	if (!is_final)
		appendStringInfo(&buf, ", coalesce(%s, false) AS final", final_text(texts, true));
	if (def->window.kind == MR_TUMBLE)
		appendStringInfo(&buf, " FROM (%s UNION ALL SELECT %s FROM %s t WHERE t.part <> '%c') s",
						 states_of_windows(texts, texts->state_name, but_part, in_delta),
						 column_list(texts, "t", NULL), texts->delta_name, but_part);
	else
		appendStringInfo(&buf, " FROM (%s) s", window_states(texts, but_part));
	appendStringInfo(&buf, " WHERE %s", is_session ? "true" : kept_text(texts));
	if (is_final && def->window.kind != MR_SESSION)
		appendStringInfo(&buf, " AND %s", final_text(texts, true));
	appendStringInfo(&buf, " GROUP BY %s", texts->group_by);
	appendStringInfo(&buf, " HAVING %s", is_session ? kept_text(texts) : "true");
	if (is_final && def->window.kind == MR_SESSION)
		appendStringInfo(&buf, " AND %s", final_text(texts, true));
	if (having)
		appendStringInfo(&buf, " AND (%s)", to_state_text(&texts->merge, having, texts->state));
	return buf.data;
}

/* The oldest transaction that still runs: what those before it did is there for good. */
#define HORIZON "(SELECT pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot()))"

static char *
since_text(const char *alias)
{
	return psprintf("%s.xid >= coalesce($1, '0'::pg_catalog.xid8) AND %s.xid < " HORIZON, alias, alias);
}

/* The body of NAME_changes(after): groups that a transaction from $1 to the horizon has changed. */
static char *
changes_text(TextContext *texts)
{
	MrDefinition *def = texts->def;
	Node *having = def->query->havingQual;
	char *changed =
		psprintf("SELECT c.window_start FROM %s c WHERE %s UNION SELECT c.window_start FROM %s c WHERE %s",
				 texts->state_name, since_text("c"), texts->delta_name, since_text("c"));
	char *states;
	StringInfoData buf;

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT " HORIZON " AS cursor, ");
	append_targets(&buf, texts, &texts->merge);
	states = def->window.kind != MR_TUMBLE
		? window_states(texts, MR_PART_FINAL)
		: psprintf("%s UNION ALL %s", states_of_windows(texts, texts->state_name, MR_PART_FINAL, changed),
				   states_of_windows(texts, texts->delta_name, MR_PART_FINAL, changed));
	appendStringInfo(&buf, ", coalesce(%s, false) AS final FROM (%s) s", final_text(texts, true), states);
	if (def->window.kind == MR_TUMBLE)
		appendStringInfo(&buf, " WHERE %s", kept_text(texts));
	else if (def->window.kind == MR_HOP)
		appendStringInfo(
			&buf,
			" WHERE %s AND (s.window_start = ANY (ARRAY(SELECT h.h FROM (%s) p, LATERAL " MR_SCHEMA
			".hop(p.window_start, %s) AS h(h))) OR s.window_start IS NULL)",
			kept_text(texts), changed, texts->window_args);
	appendStringInfo(&buf, " GROUP BY %s HAVING pg_catalog.bool_or(%s)", texts->group_by, since_text("s"));
	if (def->window.kind == MR_SESSION)
		appendStringInfo(&buf, " AND %s", kept_text(texts));
	if (having)
		appendStringInfo(&buf, " AND (%s)", to_state_text(&texts->merge, having, texts->state));
	return buf.data;
}

/*
 * _aggregate_texts(definition regclass, state regclass, delta regclass, OUT live text, OUT final text, OUT changes text):
 * the queries of NAME, NAME_final and NAME_changes
 */
Datum
mr_aggregate_texts(PG_FUNCTION_ARGS)
{
	TextContext texts;
	TupleDesc desc;
	Datum values[3];
	bool nulls[3] = {false, false, false};

	start_texts(&texts, PG_GETARG_OID(0), PG_GETARG_OID(1), PG_GETARG_OID(2));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(view_text(&texts, false));
	values[1] = CStringGetTextDatum(view_text(&texts, true));
	values[2] = CStringGetTextDatum(changes_text(&texts));
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * Federation (federate.c): states of several databases
 */

static char *folded_columns(TextContext *texts, const char *alias, const char *filter);

/* The columns behind open_from: window_start, keys and states. */
static char *
partial_columns(TextContext *texts, const char *alias, const char *window)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 0; i < n_state_columns(texts->def); i++)
		if (i == 0 && window)
			appendStringInfo(&buf, "%s AS window_start", window);
		else
			appendStringInfo(&buf, "%s%s.%s", i ? ", " : "", alias, state_column(texts->def, i));
	return buf.data;
}

/*
 * _partial_text(definition regclass, state regclass, delta regclass) returns text: the query of NAME_partial, states for
 * another database to merge: few of each group of a window, of sessions their parts.  Windows as NAME shows them.
 */
Datum
mr_partial_text(PG_FUNCTION_ARGS)
{
	TextContext context, *texts = &context;
	char *columns;

	start_texts(texts, PG_GETARG_OID(0), PG_GETARG_OID(1), PG_GETARG_OID(2));
	columns = partial_columns(texts, "s", NULL);
	if (texts->def->window.kind == MR_SESSION)
		PG_RETURN_TEXT_P(cstring_to_text(psprintf(
			"SELECT %s FROM %s s WHERE s.part <> 'f' UNION ALL SELECT %s FROM %s s WHERE s.part <> 'f'",
			columns, texts->state_name, columns, texts->delta_name)));
	if (texts->def->window.kind == MR_HOP)
		PG_RETURN_TEXT_P(cstring_to_text(psprintf(
			"SELECT %s%s FROM (%s) s WHERE %s GROUP BY %s", texts->group_by, folded_columns(texts, "s", ""),
			window_states(texts, MR_PART_FINAL), kept_text(texts), texts->group_by)));
	PG_RETURN_TEXT_P(cstring_to_text(psprintf(
		"SELECT %s FROM %s s WHERE s.part <> 'f' AND %s UNION ALL SELECT %s%s FROM %s s WHERE s.part <> "
		"'f' AND %s GROUP BY %s",
		columns, texts->state_name, kept_text(texts), texts->group_by, folded_columns(texts, "s", ""),
		texts->delta_name, kept_text(texts), texts->group_by)));
}

/*
 * _federated_text(definition regclass, state regclass, delta regclass, tables text[], closed text, retained text) returns
 * text: the query of a federated aggregate: what NAME returns, over the states here and those of the tables, which are each
 * another database's NAME_partial.  closed, retained: queries with closed_to and retained_from of all these databases.  A
 * window is final when it is everywhere, and shown while no database has dropped any of it.
 */
Datum
mr_federated_text(PG_FUNCTION_ARGS)
{
	TextContext context, *texts = &context;
	ArrayType *tables = PG_GETARG_ARRAYTYPE_P(3);
	char *closed = text_to_cstring(PG_GETARG_TEXT_PP(4)), *retained = text_to_cstring(PG_GETARG_TEXT_PP(5));
	MrDefinition *def;
	bool is_session;
	char *closed_to, *columns;
	Datum *names;
	int n_names;
	StringInfoData states, buf;

	start_texts(texts, PG_GETARG_OID(0), PG_GETARG_OID(1), PG_GETARG_OID(2));
	def = texts->def;
	is_session = def->window.kind == MR_SESSION;
	deconstruct_array(tables, TEXTOID, -1, false, TYPALIGN_INT, &names, NULL, &n_names);
	closed_to = "pg_catalog.min(coalesce(n.closed_to, '-infinity'))";
	texts->last_closed = psprintf(
		"(SELECT CASE pg_catalog.count(*) WHEN %d THEN %s END FROM (%s) n)", n_names + 1,
		is_session ? closed_to : psprintf(MR_SCHEMA "._last_closed(%s, %s)", closed_to, texts->window_args),
		closed);
	/* A session from then on was not begun by events that are gone. */
	texts->last_gone = psprintf("(SELECT %s FROM (%s) n)",
								is_session ? psprintf("pg_catalog.max(n.retained_from) - %s", texts->gap)
										   : psprintf("pg_catalog.max(" MR_SCHEMA
													  "._last_closed(n.retained_from, %s)) FILTER (WHERE "
													  "n.retained_from IS NOT NULL)",
													  texts->window_args),
								retained);

	initStringInfo(&states);
	columns = partial_columns(texts, "t", NULL);
	if (def->window.kind == MR_HOP)
		appendStringInfo(&states, "SELECT %s FROM (%s) t", columns, window_states(texts, MR_PART_FINAL));
	else
		appendStringInfo(
			&states,
			"SELECT %s FROM %s t WHERE t.part <> 'f' UNION ALL SELECT %s FROM %s t WHERE t.part <> 'f'",
			columns, texts->state_name, columns, texts->delta_name);
	for (int i = 0; i < n_names; i++)
		appendStringInfo(&states, " UNION ALL SELECT %s FROM %s t", columns, TextDatumGetCString(names[i]));

	initStringInfo(&buf);
	appendStringInfoString(&buf, "SELECT ");
	append_targets(&buf, texts, &texts->merge);
	appendStringInfo(&buf, ", coalesce(%s, false) AS final", final_text(texts, true));
	if (is_session)
	{
		StringInfoData keys;

		initStringInfo(&keys);
		for (int i = 1; i < list_length(def->keys); i++)
			appendStringInfo(&keys, "%su.%s", i > 1 ? ", " : "PARTITION BY ", state_column(def, i));
		appendStringInfo(
			&buf, " FROM (SELECT %s FROM (%s) u) s",
			partial_columns(
				texts, "u",
				psprintf(MR_SCHEMA
						 "._session(u.window_start, u.window_last, %s) OVER (%s ORDER BY u.window_start)",
						 texts->gap, keys.data)),
			states.data);
	}
	else
		appendStringInfo(&buf, " FROM (%s) s", states.data);
	appendStringInfo(&buf, " WHERE (s.window_start > %s) IS NOT FALSE GROUP BY %s", texts->last_gone,
					 texts->group_by);
	if (def->query->havingQual)
		appendStringInfo(&buf, " HAVING %s",
						 to_state_text(&texts->merge, def->query->havingQual, texts->state));
	PG_RETURN_TEXT_P(cstring_to_text(buf.data));
}

/*
 * Keys
 */

List *
mr_key_columns(MrDefinition *def)
{
	List *columns = NIL;
	ListCell *lc, *lc2;

	foreach (lc, def->query->targetList)
	{
		TargetEntry *tle = lfirst(lc);

		if (tle->resjunk)
			continue;
		for_each_from(lc2, def->keys, 1)
		{
			if (!equal(tle->expr, ((TargetEntry *) lfirst(lc2))->expr))
				continue;
			columns = lappend_int(columns, tle->resno);
			break;
		}
	}
	return columns;
}

/*
 * _aggregate_keys(definition regclass, OUT window_column name, OUT keys name[]): the output columns that hold the
 * window's start (NULL: none does) and the other keys
 */
Datum
mr_aggregate_keys(PG_FUNCTION_ARGS)
{
	MrDefinition *def = mr_read_rollup(PG_GETARG_OID(0)); /* or an aggregate */
	List *columns = mr_key_columns(def);
	AttrNumber window = mr_window_column(def);
	Datum *names = palloc0((list_length(columns) + 1) * sizeof(Datum));
	TupleDesc desc;
	Datum values[2] = {0, 0};
	bool nulls[2] = {window == 0, false};
	ListCell *lc;

	foreach (lc, columns)
		names[foreach_current_index(lc)] = DirectFunctionCall1(
			namein, CStringGetDatum(get_attname(PG_GETARG_OID(0), lfirst_int(lc), false)));
	if (window)
		values[0] =
			DirectFunctionCall1(namein, CStringGetDatum(get_attname(PG_GETARG_OID(0), window, false)));
	values[1] = PointerGetDatum(
		construct_array(names, list_length(columns), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR));
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

/*
 * Folding
 */

/* fold_state of every aggregate, behind a comma; filter is FILTER (…) or empty, prefix that of the result's name. */
static char *
folded_columns(TextContext *texts, const char *alias, const char *filter)
{
	MrDefinition *def = texts->def;
	int n_keys = list_length(def->keys);
	StringInfoData buf;
	ListCell *lc;

	initStringInfo(&buf);
	foreach (lc, def->aggs)
	{
		char *column = state_column(def, n_keys + foreach_current_index(lc));
		Oid agg_fn = lfirst_node(Aggref, lc)->aggfnoid;

		appendStringInfo(&buf, ", " MR_SCHEMA ".fold_state(%s, %s.%s)%s AS %s",
						 constant_text(REGPROCEDUREOID, ObjectIdGetDatum(agg_fn), false), alias, column,
						 filter, column);
	}
	return buf.data;
}

static char *
key_list(TextContext *texts, const char *alias, int first)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = first; i < list_length(texts->def->keys); i++)
		appendStringInfo(&buf, "%s%s.%s", i > first ? ", " : "", alias, state_column(texts->def, i));
	return buf.data;
}

/*
 * Parts of sessions that touch become one, part by part.  State rows that may touch are those of the same keys, by
 * their hash, in the span of time of the rows that are folded.
 */
char *
mr_fold_sessions_sql(Oid definition, Oid state, Oid delta)
{
	TextContext context, *texts = &context;
	char *keys, *row;

	start_texts(texts, definition, state, delta);
	keys = key_list(texts, "u", 1);
	row = psprintf("pg_catalog.hash_record(ROW(%s))", key_list(texts, "t", 1));
	return psprintf(
		"WITH d AS (DELETE FROM %s t WHERE t.xid < " HORIZON " RETURNING %s),"
		" s AS (DELETE FROM %s t WHERE ((t.window_last >= (SELECT pg_catalog.min(d.window_start) - %s FROM d)"
		" AND t.window_start <= (SELECT pg_catalog.max(d.window_last) + %s FROM d))"
		" OR (t.window_start IS NULL AND (SELECT pg_catalog.bool_or(d.window_start IS NULL) FROM d)))%s "
		"RETURNING %s),"
		" u AS (SELECT * FROM d UNION ALL SELECT * FROM s),"
		" w AS (SELECT %s FROM u)"
		" INSERT INTO %s SELECT " MR_SCHEMA
		"._max_xid(w.xid), w.part, NULL::timestamptz, %s%s FROM w GROUP BY w.part, %s",
		texts->delta_name, column_list(texts, "t", NULL), texts->state_name, texts->gap, texts->gap,
		keys[0] ? psprintf(" AND %s IN (SELECT %s FROM d t)", row, row) : "", column_list(texts, "t", NULL),
		column_list(texts, "u",
					psprintf(MR_SCHEMA "._session(u.window_start, u.window_last, %s)"
									   " OVER (PARTITION BY u.part%s%s ORDER BY u.window_start)",
							 texts->gap, keys[0] ? ", " : "", keys)),
		texts->state_name, key_list(texts, "w", 0), folded_columns(texts, "w", ""), key_list(texts, "w", 0));
}

/*
 * Computing windows anew (refresh.c)
 */

char *
mr_time_text(MrDefinition *def)
{
	return inner_expression(def, def->time);
}

char *
mr_window_text(MrDefinition *def)
{
	MrWindow *window = &def->window;
	char *time = inner_expression(def, def->time);
	char *slide = constant_text(INTERVALOID, IntervalPGetDatum(&window->slide), false);
	char *pane;

	if (window->kind == MR_SESSION)
		return psprintf("(%s) - %s, (%s) + %s", time,
						constant_text(INTERVALOID, IntervalPGetDatum(&window->size), false), time,
						constant_text(INTERVALOID, IntervalPGetDatum(&window->size), false));
	pane = psprintf(MR_SCHEMA ".tumble(%s, %s, %s, %s)", time, slide,
					constant_text(TIMESTAMPTZOID, TimestampTzGetDatum(window->origin), !window->has_origin),
					constant_text(TEXTOID, PointerGetDatum(window->timezone), window->timezone == NULL));
	return psprintf("%s, %s", pane, pane);
}

/* ROW(…)::text of keys and states */
static char *
row_text(TextContext *texts, const char *alias)
{
	StringInfoData buf;

	initStringInfo(&buf);
	for (int i = 1; i < n_state_columns(texts->def); i++)
		appendStringInfo(&buf, "%s%s.%s", i > 1 ? ", " : "", alias, state_column(texts->def, i));
	return psprintf("ROW(%s)::pg_catalog.text", buf.data);
}

static void
refresh_sessions_sql(TextContext *texts, MrRefreshSql *sql)
{
	char *keys = key_list(texts, "u", 1), *q_keys = key_list(texts, "q", 1),
		 *t_keys = key_list(texts, "t", 1);
	char *p_keys = key_list(texts, "p", 1), *l_keys = key_list(texts, "l", 1),
		 *f_keys = key_list(texts, "f", 1);
	const char *comma = keys[0] ? ", " : "";
	char *parts = psprintf("t.part <> 'f' AND t.window_last >= $5 - %s AND t.window_start <= $6 + %s",
						   texts->gap, texts->gap);
	char *session =
		psprintf(MR_SCHEMA "._session(u.window_start, u.window_last, %s) OVER (%s%s ORDER BY u.window_start)",
				 texts->gap, keys[0] ? "PARTITION BY " : "", keys);
	char *touching = psprintf(
		"SELECT pg_catalog.min(q.window_start) AS first, pg_catalog.max(q.window_last) AS last%s%s FROM"
		" (SELECT u.*, %s AS session FROM (SELECT %s%st.window_start, t.window_last FROM %s t WHERE %s"
		" UNION ALL SELECT %s%st.window_start, t.window_last FROM %s t WHERE %s) u) q GROUP BY q.session%s%s"
		" HAVING pg_catalog.max(q.window_last) >= $1 AND pg_catalog.min(q.window_start) <= $2",
		comma, q_keys, session, t_keys, comma, texts->state_name, parts, t_keys, comma, texts->delta_name,
		parts, comma, q_keys);
	char *match = keys[0]
		? psprintf(
			  "t.window_start >= p.first AND t.window_last <= p.last AND pg_catalog.hash_record(ROW(%s)) ="
			  " pg_catalog.hash_record(ROW(%s)) AND ROW(%s) IS NOT DISTINCT FROM ROW(%s)",
			  t_keys, p_keys, t_keys, p_keys)
		: "t.part <> 'f' AND t.window_start >= p.first AND t.window_last <= p.last";
	char *columns = column_list(texts, "t", NULL);

	sql->hull = psprintf("SELECT pg_catalog.min(p.first), pg_catalog.max(p.last) FROM (%s) p", touching);
	sql->remove = psprintf(
		"WITH p AS MATERIALIZED (%s), d AS (DELETE FROM %s t USING p WHERE %s RETURNING %s),"
		" s AS (DELETE FROM %s t USING p WHERE %s RETURNING %s),"
		" dn AS (DELETE FROM %s t WHERE $3 AND t.window_start IS NULL), sn AS (DELETE FROM %s t WHERE $3 AND"
		" t.window_start IS NULL), u AS (SELECT * FROM d UNION ALL SELECT * FROM s),"
		" w AS (SELECT %s FROM u WHERE u.part <> 'l')"
		" INSERT INTO %s SELECT pg_catalog.pg_current_xact_id(), 'f'::\"char\", NULL::timestamptz, %s%s FROM "
		"w GROUP BY %s"
		" HAVING pg_catalog.max(w.window_last) <= $4",
		touching, texts->delta_name, match, columns, texts->state_name, match, columns, texts->delta_name,
		texts->state_name, column_list(texts, "u", session), texts->state_name, key_list(texts, "w", 0),
		folded_columns(texts, "w", ""), key_list(texts, "w", 0));
	sql->live = psprintf(
		"UPDATE %s l SET part = 'l' WHERE l.part = 'b' AND l.window_last >= $1 AND l.window_start <= $2 AND "
		"EXISTS"
		" (SELECT FROM %s f WHERE f.part = 'f' AND f.window_last >= l.window_start - %s AND f.window_start <="
		" l.window_last + %s%s)",
		texts->state_name, texts->state_name, texts->gap, texts->gap,
		keys[0] ? psprintf(" AND pg_catalog.hash_record(ROW(%s)) = pg_catalog.hash_record(ROW(%s))", l_keys,
						   f_keys)
				: "");
}

void
mr_refresh_sql(Oid definition, Oid state, Oid delta, MrRefreshSql *sql)
{
	TextContext texts;
	char *columns, *keys;
	const char *chosen = "(t.window_start >= $1 AND t.window_start <= $2) OR ($3 AND t.window_start IS NULL)";

	start_texts(&texts, definition, state, delta);
	/* A group with several parts 'f' is left as it is. */
	sql->equal = psprintf(
		"WITH e AS (DELETE FROM %s f USING %s l WHERE f.part = 'f' AND l.part = 'l' AND f.window_start >= $1 "
		"AND"
		" f.window_start <= $2 AND l.window_start >= $1 AND l.window_start <= $2 AND f.window_start = "
		"l.window_start"
		" AND %s = %s AND NOT EXISTS (SELECT FROM %s o WHERE o.part = 'f' AND o.open_from IS NOT NULL AND"
		" o.window_start = f.window_start) RETURNING l.ctid AS other)"
		" UPDATE %s t SET part = 'b' WHERE t.ctid = ANY (ARRAY(SELECT e.other FROM e))",
		texts.state_name, texts.state_name, row_text(&texts, "f"), row_text(&texts, "l"), texts.state_name,
		texts.state_name);
	sql->hull = sql->live = NULL;
	if (texts.def->window.kind == MR_SESSION)
	{
		refresh_sessions_sql(&texts, sql);
		return;
	}
	columns = column_list(&texts, "t", NULL);
	keys = psprintf("u.open_from, %s", key_list(&texts, "u", 0));
	sql->remove = psprintf(
		"WITH d AS (DELETE FROM %s t WHERE %s RETURNING %s), s AS (DELETE FROM %s t WHERE %s RETURNING %s),"
		" u AS (SELECT * FROM d UNION ALL SELECT * FROM s) INSERT INTO %s SELECT "
		"pg_catalog.pg_current_xact_id(), 'f'::\"char\", %s%s FROM u WHERE u.part <> 'l' AND u.window_start "
		"<= $4 GROUP BY "
		"%s",
		texts.delta_name, chosen, columns, texts.state_name, chosen, columns, texts.state_name, keys,
		folded_columns(&texts, "u", ""), keys);
}

/*
 * last_closed_window(name text) returns timestamptz: start of the last window that is final for the reader; computed from
 * the watermark, so no window is read.  NULL if none is.
 */
Datum
mr_last_closed_window(PG_FUNCTION_ARGS)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {PG_GETARG_DATUM(0)};
	const char *name = TextDatumGetCString(values[0]);
	MrDefinition *def;
	TimestampTz start;
	Oid definition = InvalidOid, state = InvalidOid;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "stream");
	SPI_connect();
	mr_exec_args("SELECT definition, state FROM " MR_SCHEMA ".stream WHERE name = $1 AND kind = 'aggregate'",
				 SPI_OK_SELECT, true, 1, types, values, NULL);
	if (SPI_processed == 1)
	{
		definition =
			DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
		state = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_finish();
	mr_leave(&guard);
	if (!OidIsValid(state))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("continuous aggregate \"%s\" does not exist", name),
				 errhint("See " MR_SCHEMA ".streams.")));
	def = mr_read_definition(definition);
	if (def->window.kind == MR_SESSION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE), errmsg("the windows of \"%s\" are sessions", name),
				 errhint("Sessions end at different times; read %s_final.", name)));
	start = mr_last_closed(&def->window, mr_closed_to_for(state));
	if (start == DT_NOBEGIN)
		PG_RETURN_NULL();
	PG_RETURN_TIMESTAMPTZ(start);
}
