/*
 * aggregate.h: what definition.c reads from the query of a continuous aggregate, for aggregate.c and state.c.
 */
#ifndef MILLRACE_AGGREGATE_H
#define MILLRACE_AGGREGATE_H

#include "millrace.h"

#include "nodes/execnodes.h"
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
/* Volatile functions, now(), current_date and their like? */
extern bool mr_depends_on_moment(Node *node);
extern MrStateType mr_state_type(Aggref *agg);
extern List *mr_call_arguments(Expr *call);

/* Numbers of the columns with keys other than the window, in the view's result. */
extern List *mr_key_columns(MrDefinition *def);
/* Statement that folds what batches left of sessions into NAME_state, all of it. */
extern char *mr_fold_sessions_sql(Oid definition, Oid state, Oid delta);

/* aggregate.c.  Error if the current user may not act for the owner of both. */
extern void mr_check_owners(Oid definition, Oid state);
/* Error if the current user does not see all rows of a source. */
extern void mr_check_row_security(Oid source, const char *what);

/* Appending rows to NAME_delta or NAME_state, many at a time. */
typedef struct MrStateWriter MrStateWriter;

extern MrStateWriter *mr_writer_open(Oid target);
extern void mr_writer_put(MrStateWriter *writer, const Datum *values, const bool *nulls); /* copies the row */
extern uint64 mr_writer_close(MrStateWriter *writer);									  /* rows written */

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

/* Does what this function reads end with a seal?  Then states are stored with it. */
extern bool mr_is_sealed(Oid deserial_fn);
extern Datum mr_seal_state(Oid deserial_fn, Datum state);

/* Combining stored states of one aggregate. */
typedef struct MrMergeFunctions MrMergeFunctions;

typedef struct MrMergeState
{
	MrMergeFunctions *fn;
	NullableDatum state;
	/* No initial value, and nothing combined yet: a strict function starts from the first state. */
	bool is_empty;
} MrMergeState;

/*
 * Function lookups and the initial value, in the given memory.  result_type is InvalidOid if states are to be folded.
 */
extern MrMergeFunctions *
mr_merge_functions(Oid agg_fn, Oid result_type, Oid state_type, Oid collation, MemoryContext context);

/* node passes for the Agg node; memory is its memory, where the merged state lives. */
extern void mr_merge_start(MrMergeState *merge, MrMergeFunctions *fn, MemoryContext memory);
extern void mr_merge_next(MrMergeState *merge, NullableDatum stored, fmNodePtr node, MemoryContext memory);

/* The merged state as it is stored */
extern NullableDatum mr_merge_serial(MrMergeState *merge, fmNodePtr node);

/* What passes for an Agg node with functions that want to be called by one. */
extern AggState *mr_make_agg_node(void);

#endif
