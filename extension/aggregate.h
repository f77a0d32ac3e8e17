/*
 * aggregate.h: what definition.c reads from the query of a continuous aggregate, for aggregate.c and state.c.
 */
#ifndef MILLRACE_AGGREGATE_H
#define MILLRACE_AGGREGATE_H

#include "millrace.h"

#include "nodes/parsenodes.h"
#include "nodes/primnodes.h"

/* The query of a continuous aggregate, checked. */
typedef struct MrDefinition
{
	Query *query;
	Query *inner;	  /* what has the source in FROM: the query itself, or the subquery of a session */
	Index source_rti; /* in inner */
	Oid source;
	MrWindow window;
	Expr *window_call; /* tumble(…) or hop(…): the key; session(…) OVER (…) */
	Expr *time;		   /* event time, over columns of the source in inner */
	List *keys;		   /* TargetEntry of each GROUP BY expression, the window first */
	List *aggs;		   /* distinct Aggref; of a session the last one is the time of its last event */
} MrDefinition;

/* How one aggregate keeps its state. */
typedef struct MrStateType
{
	Oid trans_type; /* type of the transition value, resolved if polymorphic */
	Oid type;		/* type of the stored state: trans_type, or bytea for internal */
	Oid collation;
} MrStateType;

/*
 * Columns of NAME_delta and NAME_state: xid, part, open_from, window_start, k1 …, s1 …; of a session s1 … end with
 * window_last.
 * part: 'b' counts in NAME and NAME_final, 'l' in NAME only, 'f' in NAME_final only.
 * open_from: of a pane, when some of its windows were closed already: in NAME_final it counts in windows that start later.
 */
#define MR_STATE_KEYS 3 /* columns before window_start */
#define MR_PART_BOTH 'b'
#define MR_PART_LIVE 'l'
#define MR_PART_FINAL 'f'

/* definition.c.  Errors say what a query must not contain. */
extern MrDefinition *mr_read_definition(Oid view);

/* The same of a rollup, a query over the view of a continuous aggregate (rollup.c), not checked yet. */
extern MrDefinition *mr_read_rollup(Oid view);
/* The view whose column its window reads; InvalidOid if it reads no view's. */
extern Oid mr_rollup_view(MrDefinition *def);
/* Check it, given the number of that view's column with the window. */
extern void mr_check_rollup(MrDefinition *def, AttrNumber window_column);
/* Number of the column with the window in the view's result; 0 if it is not shown. */
extern AttrNumber mr_window_column(MrDefinition *def);
extern MrWindow mr_definition_window(Oid view);
extern MrStateType mr_state_type(Aggref *agg);
extern List *mr_call_arguments(Expr *call);

/* Output column with the window's start, NULL if there is none; *keys: those with the other keys. */
extern char *mr_definition_keys(MrDefinition *def, List **keys);
/* Statement that folds what batches left into NAME_state; $1 bigint: about so many rows of NAME_delta
 * at most; $2 bool: also where that rewrites much more than it removes. */
extern char *mr_fold_sql(Oid definition, Oid state, Oid delta);

/*
 * Statements that compute windows anew; NAME_state takes what they keep.
 *
 * remove: takes the states of $1 to $2 (of sessions, those that touch it) and ($3) of rows without a time from both
 * tables, and puts back as part 'f' what NAME_final shows of those that are closed: $4, the start of the last closed
 * window or pane, of sessions up to which they ended.  Sessions: $5 and $6 are the hull.
 * equal: of groups in $1 to $2 whose parts 'f' and 'l' are the same, makes one 'b'.
 * hull (sessions): from when to when the sessions reach that touch $1 to $2, as far as states from $3 to $4 tell.
 * live (sessions): makes those of part 'b' in $1 to $2 that touch one of part 'f' part 'l'.
 */
typedef struct MrRefreshSql
{
	char *remove;
	char *equal;
	char *hull;
	char *live;
} MrRefreshSql;
extern void mr_refresh_sql(Oid definition, Oid state, Oid delta, MrRefreshSql *sql);

/* The event time of a row of the source, and the range of windows it marks, as texts over the source's columns. */
extern char *mr_time_text(MrDefinition *def);
extern char *mr_window_text(MrDefinition *def);

/* state.c: does the result of an aggregate depend on the order of its input, though newer servers split it? */
extern bool mr_is_order_sensitive(Oid trans_fn);

#endif
