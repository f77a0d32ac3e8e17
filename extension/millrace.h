/*
 * millrace.h: what the server side of the extension shares.
 *
 * All conditionals on PG_VERSION_NUM live here.  Nothing in this header may be used on a thread: only
 * extension/core/ runs on threads, and it knows nothing of the server.
 */
#ifndef MILLRACE_H
#define MILLRACE_H

/* All symbols are hidden but those that the server looks up; PostgreSQL 15 does not mark these by itself. */
#define PGDLLEXPORT __attribute__((visibility("default")))

#include "postgres.h"

#include "access/attmap.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "access/transam.h"
#include "parser/scansup.h"
#include "pgtime.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/datetime.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

#if PG_VERSION_NUM < 150000
#error "millrace needs PostgreSQL 15 or newer"
#endif

#if PG_VERSION_NUM < 160000
#undef PG_FUNCTION_INFO_V1
#define PG_FUNCTION_INFO_V1(name)                                    \
	extern PGDLLEXPORT Datum name(PG_FUNCTION_ARGS);                 \
	extern PGDLLEXPORT const Pg_finfo_record *pg_finfo_##name(void); \
	const Pg_finfo_record *pg_finfo_##name(void)                     \
	{                                                                \
		static const Pg_finfo_record info = {1};                     \
		return &info;                                                \
	}                                                                \
	extern int no_such_variable
#endif

/* PostgreSQL 18 keeps GROUP BY expressions in a range table entry of their own. */
#if PG_VERSION_NUM >= 180000
#define MR_HAS_GROUP_RTE 1
#else
#define MR_HAS_GROUP_RTE 0
#endif

#define MR_SCHEMA "millrace"

#if PG_VERSION_NUM >= 160000
#define mr_flatten_join_alias_vars(query, node) flatten_join_alias_vars(NULL, (query), (node))
#define mr_owns_relation(rel, user) object_ownercheck(RelationRelationId, (rel), (user))
#define mr_function_aclcheck(function, user) \
	object_aclcheck(ProcedureRelationId, (function), (user), ACL_EXECUTE)
#define mr_attrmap_by_name(in, out) build_attrmap_by_name((in), (out), false)
#define mr_insert_index_tuples(rri, slot, estate) \
	ExecInsertIndexTuples((rri), (slot), (estate), false, false, NULL, NIL, false)
#define mr_rte_clear_permissions(rte) ((rte)->perminfoindex = 0)
#else
#define mr_flatten_join_alias_vars(query, node) flatten_join_alias_vars((query), (node))
#define mr_owns_relation(rel, user) pg_class_ownercheck((rel), (user))
#define mr_function_aclcheck(function, user) pg_proc_aclcheck((function), (user), ACL_EXECUTE)
#define mr_attrmap_by_name(in, out) build_attrmap_by_name((in), (out))
#define mr_insert_index_tuples(rri, slot, estate) \
	ExecInsertIndexTuples((rri), (slot), (estate), false, false, NULL, NIL)
#define mr_rte_clear_permissions(rte) ((rte)->requiredPerms = 0)
#endif

/* The sequence of an identity column; InvalidOid if it is none. */
#if PG_VERSION_NUM >= 170000
#define mr_identity_sequence(rel, column) getIdentitySequence((rel), (column), true)
#else
#define mr_identity_sequence(rel, column) getIdentitySequence(RelationGetRelid(rel), (column), true)
#endif

/* Runs a query to its end.  Before PostgreSQL 18 one says that it is run only once. */
#if PG_VERSION_NUM >= 180000
#define mr_executor_run(query) ExecutorRun((query), ForwardScanDirection, 0)
#else
#define mr_executor_run(query) ExecutorRun((query), ForwardScanDirection, 0, true)
#endif

/* From PostgreSQL 18 on, an index scan can be given a place to count its work. */
#if PG_VERSION_NUM >= 180000
#define mr_index_beginscan(heap, index, snapshot, n_keys) \
	index_beginscan((heap), (index), (snapshot), NULL, (n_keys), 0)
#else
#define mr_index_beginscan(heap, index, snapshot, n_keys) \
	index_beginscan((heap), (index), (snapshot), (n_keys), 0)
#endif

/*
 * What the name of a time zone means to AT TIME ZONE: *tz, or if that is NULL an offset (local time minus UTC).
 * True for an abbreviation whose offset depends on the time.  22023 if there is no such zone.
 */
static inline bool
mr_timezone(const char *name, int64 *offset_us, pg_tz **tz)
{
	int offset = 0;
#if PG_VERSION_NUM >= 160000
	int type = DecodeTimezoneName(name, &offset, tz);

	if (type == TZNAME_FIXED_OFFSET)
		*tz = NULL;
	*offset_us = offset * USECS_PER_SEC;
	return type == TZNAME_DYNTZ;
#else
	int type = DecodeTimezoneAbbrev(0, downcase_truncate_identifier(name, strlen(name), false), &offset, tz);

	if (type == TZ || type == DTZ)
		*tz = NULL;
	else if (type != DYNTZ && (*tz = pg_tzset(name)) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("time zone \"%s\" not recognized", name)));
	*offset_us = offset * USECS_PER_SEC;
	return type == DYNTZ;
#endif
}

/* settings (millrace.c) */
extern int mr_max_memory_kb; /* millrace.max_memory: the most that one training may allocate, in kB */
extern int
	mr_cache_size_kb; /* millrace.cache_size (cache.c): the most that all cache files of a database may take, in kB */
extern int mr_threads; /* millrace.threads: threads of one training or batch scoring; 0 = one per core */

/*
 * Run as somebody else: the owner of a stream or model, with the settings that were in force when it was
 * created, and forbidden to leave anything behind (security-restricted operation).  An error needs no
 * leave: the server restores user and settings when it aborts the (sub)transaction.
 */
typedef struct MrGuard
{
	Oid user;
	int security;
	int gucs;
} MrGuard;

extern void mr_enter(MrGuard *guard, Oid owner, ArrayType *settings);
extern void mr_leave(MrGuard *guard);

/* Calls the function in a subtransaction.  NULL if it succeeds, else its error, and all that it did is undone. */
extern ErrorData *mr_attempt(void (*function)(void *arg), void *arg);

/* The settings that give a query its meaning (search_path, TimeZone, …), as "name=value" text[]. */
extern ArrayType *mr_current_settings(void);

/* Oid of a table or index of schema millrace; error if the extension is not installed. */
extern Oid mr_catalog(const char *name);

/* Its name, qualified and quoted; error if there is no such relation. */
extern char *mr_relation_name(Oid rel);

/* As mr_enter for the extension's own catalogs: become the owner of table millrace.NAME. */
extern void mr_enter_catalog(MrGuard *guard, const char *name);

/* SPI that reports the query on failure; arguments as for SPI_execute_with_args. */
extern void mr_exec(const char *sql, int expected, bool read_only);
extern void mr_exec_args(const char *sql, int expected, bool read_only, int n_args, Oid *types, Datum *values,
						 const char *nulls);

/* window.c: the window of a definition, its arguments constant. */
typedef enum MrWindowKind
{
	MR_TUMBLE,
	MR_HOP,
	MR_SESSION
} MrWindowKind;

typedef struct MrWindow
{
	MrWindowKind kind;
	Interval size;	/* session: the gap */
	Interval slide; /* tumble: the size again; session: unused */
	bool has_origin;
	TimestampTz origin;
	text *timezone; /* NULL: UTC */
} MrWindow;

/*
 * Check the arguments, with the errors of tumble, hop and session.  Returns how many panes a window has: windows
 * start with a pane and end where the n-th pane after it starts.  0 for sessions.
 */
extern int64 mr_window_panes(const MrWindow *window);

/*
 * Start of the pane (window of the size of the slide) that holds ts, as tumble(ts, slide, origin, timezone).
 * *end: where the next pane starts.  An infinite ts, and any of a session, is its own pane, with *end = ts.
 */
extern TimestampTz mr_pane(const MrWindow *window, TimestampTz ts, TimestampTz *end);

/*
 * Greatest start of a window that ended at or before closed_to, DT_NOBEGIN if none did; for sessions closed_to -
 * gap, the time of the latest event that is late.  An infinite closed_to is returned.
 */
extern TimestampTz mr_last_closed(const MrWindow *window, TimestampTz closed_to);

/* Start of the first window (tumble or hop) that holds ts. */
extern TimestampTz mr_first_window(const MrWindow *window, TimestampTz ts);

/* Start of the last pane of a window; the window's own start if it does not slide. */
extern TimestampTz mr_last_pane(const MrWindow *window, TimestampTz window_start);

/*
 * Streams.  A batch is the rows of one INSERT or COPY statement on a source, in the trigger's transition table;
 * handlers see it under this name.
 */
#define MR_NEW_ROWS "new_rows"

/* The rows of a batch, or others like them, as a table that a query may name. */
extern EphemeralNamedRelation mr_new_rows_relation(const char *name, Oid relid, Tuplestorestate *rows);

/*
 * scan.c: one pass over the rows of a batch
 */
typedef struct MrScan /* all in one memory context; made at plan time */
{
	MrWindow window;
	TupleDesc desc; /* of the table that fired; not reference-counted */
	Expr *time;		/* event time, timestamptz; Vars have varno 1 and the attribute numbers of desc */
	List *quals;	/* WHERE as implicit AND, those over the source only */
	bool is_simple; /* no joins, no subqueries, tumble or hop: mr_scan_aggregate can do it all */
	List *keys;		/* if simple: Expr of GROUP BY, [0] is the window function's FuncExpr (ignored) */
	List *aggs;		/* if simple: distinct Aggref, Vars as above, plain AGGSPLIT_SIMPLE */
	struct MrScanPlan *plan; /* of scan.c: made by the first run; NULL before */
} MrScan;

typedef struct MrScanRun
{
	/* Rows whose pane starts at or before it are late; DT_NOBEGIN: none are.  (Sessions: event time at or before it.) */
	TimestampTz late_bound;
	TimestampTz max_allowed;	/* later event times, and infinite ones, do not count for max_time */
	bool keep_late;				/* late rows are aggregated apart, as part 'l'; else given to late_rows */
	Tuplestorestate *late_rows; /* if !keep_late and not NULL: late rows are put here (slots of desc) */
	/* results */
	TimestampTz max_time; /* greatest event time of all rows, DT_NOBEGIN if none */
	uint64 n_late;		  /* late rows that pass quals */
} MrScanRun;

/* Receives the groups: part, then values of window_start, keys…, serialised states…; valid until it returns. */
typedef void (*MrGroupSink)(void *arg, char part, Datum *values, bool *nulls);

/*
 * Aggregate all rows of the store (a simple scan), as the current user, with an active snapshot.  Each group is given
 * to sink once, or more than once: when memory (work_mem) is short all groups are handed out and begun anew, and keys
 * that are equal but not the same bytes (numeric 1.0 and 1.00, 'a' and 'A' in some collations) are groups of their own.
 * Readers merge the states of a group anyway.  O(rows + groups).
 */
extern void
mr_scan_aggregate(MrScan *scan, MrScanRun *run, Tuplestorestate *rows, MrGroupSink sink, void *arg);

/*
 * Only look at times (any scan): max_time and n_late; returns whether any row is late.  If so and on_time is not NULL,
 * the rows are divided into *on_time and *late (new tuplestores of desc, in the current memory context).  A late row
 * that fails the quals is not in *late, but in *on_time, where the query will drop it.
 */
extern bool mr_scan_split(MrScan *scan, MrScanRun *run, Tuplestorestate *rows, Tuplestorestate **on_time,
						  Tuplestorestate **late);

/*
 * refresh.c: ranges of windows (for sessions: of event times) that were touched.  Kept sorted and joined; when there
 * are more than a limit the nearest are joined, so that a range may hold windows that were not touched.
 */
typedef struct MrRange
{
	TimestampTz from; /* start of the first window (pane) */
	TimestampTz to;	  /* start of the last one */
	TimestampTz end;  /* where that one ends; of a session to */
} MrRange;

typedef struct MrRanges
{
	MemoryContext context;
	int n;
	int n_sorted; /* the first so many are in order */
	int n_max;
	MrRange *items;
	bool with_null; /* also rows without an event time */
} MrRanges;

#define MR_MAX_MARKS 1000 /* of one statement and aggregate */

extern MrRanges *mr_ranges_new(void);
extern void mr_ranges_add(MrRanges *ranges, TimestampTz from, TimestampTz to, TimestampTz end);
extern void mr_ranges_join(MrRanges *ranges, int limit);

/* ts + sign * interval; the ends of time are not left. */
extern TimestampTz mr_plus_interval(TimestampTz ts, const Interval *interval, int sign);

/*
 * Mark the windows of an aggregate that start from from to to, both inclusive, as to be computed anew by
 * millrace.refresh; -infinity to infinity: all, with the one of rows without an event time, which alone is DT_NOEND to
 * DT_NOBEGIN.
 */
extern void mr_mark(Oid state, TimestampTz from, TimestampTz to, const char *reason);
extern void mr_mark_ranges(Oid state, MrRanges *ranges, const char *reason);

/* The windows of all rows that a table of the source can hold: of its range, if it is a partition by that time. */
extern void mr_partition_ranges(const MrScan *scan, Oid source, Oid rel, MrRanges *ranges);

/* batch.c: mark the windows of all that a table of a source can hold, for each aggregate of the source. */
extern void mr_mark_table(Oid rel, const char *reason);

/* late.c: see there */
extern void mr_late_recomputed(const char *name, Oid source, Oid owner, ArrayType *settings,
							   const char *time_text, const MrRanges *ranges);
/* Rows that a pipe or a scorer did not take, of one transaction after the other, like those of table relid; returns rows written. */
typedef uint64 (*MrRowsHandler)(void *arg, Oid relid, Tuplestorestate *rows);
extern uint64 mr_replay_rows(const char *name, Oid source, Oid owner, ArrayType *settings,
							 MrRowsHandler handler, void *arg);

/* stream.c: 42704 unless there is such a stream, 42501 unless the current user has the rights of its owner. */
extern void mr_check_stream_owner(const char *name);
/* DROP EXTENSION … CASCADE takes the relation along. */
extern void mr_tie_to_extension(Oid rel);
extern void mr_stream_lock(const char *name);
/* DROP KIND of a relation, unless it is gone or, if there is an owner, not his. */
extern void mr_drop_relation(Oid rel, const char *kind, Oid owner, const char *behavior);

/*
 * federate.c.  A continuous aggregate is shared no more: the view of its states, which remains to be dropped, or
 * InvalidOid.  It is federated no more: what another of its name may be is not in millrace.federated.  After a DROP: rows
 * of views that are gone go, and the foreign tables of such a federated aggregate, if they still belong to who made it.
 */
extern Oid mr_shared_forget(const char *name);
extern void mr_federated_forget(const char *name);
extern void mr_federated_sweep(void);
/* Whether there are its tables: not before ALTER EXTENSION millrace UPDATE. */
extern bool mr_knows_federated(void);

/* stream.c: change the row of a stream; NULL: leave as it is; an empty error: none.  Writers see it when it commits. */
extern void mr_stream_set(const char *name, Oid source, const char *status, const char *error, Oid definition,
						  const char *window_text);

/* batch.c: run the command of a pipe over rows like those of a table, as the current user; returns rows written. */
extern uint64 mr_run_pipe(const char *command, Oid target, Oid relid, Tuplestorestate *rows);

/* stream.c: write that a stream has failed, unless somebody else holds its row. */
extern void mr_stream_failed(const char *name, Oid source, const char *error);

/* stream.c: write that a stream has not taken a row because it was late, unless that is known or somebody else holds its row. */
extern void mr_stream_late(const char *name);

/* scan.c: the windows of the rows, added to ranges; of sessions event times with a gap on both sides. */
extern void mr_scan_ranges(MrScan *scan, Tuplestorestate *rows, MrRanges *ranges);

/*
 * aggregate.c: continuous aggregates.  A plan turns rows into group keys and partial states; running it appends them
 * to a table.
 */
typedef struct MrAggregatePlan MrAggregatePlan;

typedef struct MrAggregateRun
{
	MrScanRun scan;
	bool has_watermark; /* fill scan's results, and look for late rows */
	TimestampTz
		gone_bound;		/* late windows that start at or before it are given up: their states were dropped */
	TimestampTz closed; /* start of the last closed window; DT_NOBEGIN: none */
	char part;			/* over the source: of the states */
	const struct MrRefreshRange *refresh; /* over the source: what is computed anew, or NULL */
	struct MrTimes *panes;				  /* if not NULL, the panes that were written are added to it */
	uint64 n_written;					  /* result */
} MrAggregateRun;

/* Windows to compute from the source, and which of them are closed. */
typedef struct MrRefreshRange
{
	TimestampTz from; /* event times of the rows to read, from <= time < to; DT_NOEND: to the end */
	TimestampTz to;
	bool with_null; /* also rows without an event time */
	/* Sessions are written if they touch this; else the same as from and to. */
	TimestampTz keep_from;
	TimestampTz keep_to;
	/* Only windows that start in one of these are written, unless there are none. */
	const MrRange *only;
	int n_only;
	/* Windows that start, sessions that end at or before it are closed: part 'l'. */
	TimestampTz closed_bound;
} MrRefreshRange;

/*
 * Plan the definition (a view) over the batches of one leaf, or over the whole source if leaf is InvalidOid; states
 * go to target.  Allocated in keep, and so is *depends, to which the relations are added whose change makes the plan
 * stale.
 */
extern MrAggregatePlan *
mr_aggregate_plan(Oid definition, Oid leaf, Oid target, MemoryContext keep, List **depends);
/* Plan it over the rows of the source in a range; NULL: all. */
extern MrAggregatePlan *mr_aggregate_plan_source(Oid definition, Oid target, const MrRefreshRange *range,
												 MemoryContext keep, List **depends);
/* What the planner thinks it costs. */
extern double mr_aggregate_cost(const MrAggregatePlan *plan);
/* Of a plan over a leaf: its pass over the rows. */
extern MrScan *mr_aggregate_scan(const MrAggregatePlan *plan);
extern const MrWindow *mr_aggregate_window(const MrAggregatePlan *plan);

/* Lock the relations of a kept plan, as planning does. */
extern void mr_aggregate_lock(const MrAggregatePlan *plan);

/* Run it, as the current user; rows is NULL for the whole source. */
extern void mr_aggregate_run(MrAggregatePlan *plan, Oid leaf, Tuplestorestate *rows, MrAggregateRun *run);

/*
 * Compaction, refresh and retention of one aggregate exclude each other: an advisory lock until the transaction ends,
 * to be taken before the snapshot.  False if it must not wait and somebody has it.
 */
#define MR_STREAM_LOCK_CLASS 4
extern bool mr_state_lock(Oid state, bool wait);

/*
 * fold.c: fold up to limit rows of NAME_delta (all, of sessions) into NAME_state, as the current user, who holds the
 * lock; returns rows written.  Windows of which NAME_state has much more rows than would be folded wait, unless all.
 */
extern uint64 mr_fold(Oid definition, Oid state, Oid delta, int64 limit, bool all);

/* definition.c: a function of the extension; by the catalog, because the current user may lack USAGE on its schema. */
extern Oid mr_schema_function(const char *name, int n_args, const Oid *types);

/*
 * watermark.c
 */
extern int
	mr_max_future_s; /* millrace.max_future: event times further ahead do not move a watermark, in seconds */

/* What a transaction, once it has its xid, saw of an aggregate's progress; the same to its end. */
typedef struct MrSeen
{
	Oid state;
	TimestampTz max_time;	   /* greatest event time that others have committed; DT_NOBEGIN: none */
	TimestampTz closed_to;	   /* greatest one that is recorded as closed */
	FullTransactionId horizon; /* every transaction from here on has seen as much */
} MrSeen;

extern MrSeen *mr_watermark_seen(Oid state);
extern Datum mr_closed_to(PG_FUNCTION_ARGS); /* of a state table, for the active snapshot */

/* The watermark: what was seen, less the delay.  DT_NOBEGIN if nothing was. */
extern TimestampTz mr_watermark(const MrSeen *seen, const Interval *delay);

/* Up to which event time the windows are final for the active snapshot; DT_NOBEGIN: none are. */
extern TimestampTz mr_closed_to_for(Oid state);

/* Record, at commit, what a transaction brought and what it saw. */
extern void mr_watermark_write(const MrSeen *seen, TimestampTz watermark, TimestampTz max_time);

/* xmin of a snapshot, with its epoch */
extern FullTransactionId mr_oldest_running(Snapshot snapshot);

/* Remove the rows of progress that say nothing more, or all. */
extern void mr_watermark_prune(Oid state, bool all);

/*
 * rollup.c
 */

/* Windows of a view were computed anew, with the given starts (of a sliding window: of panes): look at them again. */
extern void mr_rollup_mark(Oid view, const MrWindow *window, const struct MrRanges *ranges);
/* Settle the windows of the rollup with that NAME_state, for its owner; returns rows stored. */
extern uint64 mr_rollup_settle(Oid state);
/* The catalog forgets a rollup whose stored rows are gone. */
extern void mr_rollup_forget(Oid state);
/* Start of the first window of a view that a rollup over it must still read: retention keeps those; DT_NOEND: none. */
extern TimestampTz mr_rollup_needed_from(Oid view);

/*
 * maintain.c
 */
extern int mr_keep_batches; /* millrace.keep_batches: rows of millrace.batches for each source */

/* Drop the states that retain lets go, for an owner of the stream; 0 if it must not wait and somebody is at it. */
extern uint64 mr_drop_expired_windows(text *name, bool wait);

/* Delete the rows of millrace.batches of a source that are too many, unless somebody else is at it. */
extern void mr_batches_prune(Oid source);

/*
 * late.c: keep rows of a leaf that a stream does not take, as the current user, for millrace.replay_late.
 */
extern void mr_divert(const char *stream, Oid leaf, Tuplestorestate *rows, const char *reason);

/* Forget the rows of a stream that is dropped, or filled anew from its source. */
extern void mr_late_forget(const char *stream);

/*
 * alert.c: a set of windows (or panes), by their starts: each of them, or if they are many the range of time that
 * holds them.  In the memory context of mr_times_init.
 */
typedef struct MrTimes
{
	MemoryContext context;
	TimestampTz *values;
	int n, size;
	bool is_range;
	TimestampTz first, last; /* of all */
} MrTimes;

extern void mr_times_init(MrTimes *times);
extern void mr_times_add(MrTimes *times, TimestampTz time);
extern void mr_times_add_range(MrTimes *times, TimestampTz first, TimestampTz last);
extern bool mr_times_is_empty(const MrTimes *times);

/* Add the windows to which the panes belong. */
extern void mr_times_add_windows(MrTimes *windows, const MrWindow *window, MrTimes *panes);

/* timestamptz[], sorted and distinct */
extern ArrayType *mr_times_array(MrTimes *times);
extern void mr_times_merge(MrTimes *into, const MrTimes *from);

/*
 * An alert, planned for the batches of this backend; what mr_aggregate_plan says of keep and depends holds for it, but
 * its SPI plans want mr_alert_free.
 */
typedef struct MrAlert MrAlert;
extern MrAlert *mr_alert_plan(Oid view, MemoryContext keep, List **depends);
extern void mr_alert_free(MrAlert *alert);

/* Add the windows to which the panes of an aggregate (its view NAME) belong, if the alert reads it. */
extern void mr_alert_changed(const MrAlert *alert, Oid target, MrTimes *panes, MrTimes *windows);

/*
 * Report what the alert finds in the windows, and in those that have become final; as the current user.  seen: of its
 * view; *looked_to: how far this transaction has looked at final windows, DT_NOBEGIN at first; the windows that were
 * reported are added to fired.  Returns rows reported.
 */
extern uint64
mr_alert_run(MrAlert *alert, MrTimes *windows, struct MrSeen *seen, TimestampTz *looked_to, MrTimes *fired);
extern void mr_alert_notify(const char *name, MrTimes *fired);
extern void mr_alert_forget(Oid view);

/*
 * stream.c: a stream of kind 'history', which keeps what users have by the ratings of a model (track.c).
 */
typedef struct MrHistoryStream
{
	char *name;
	Oid source;
	Oid target;	   /* its table of folded rows */
	Oid delta;	   /* its table of rows that batches append */
	char *command; /* the ratings query, to be run as owner with settings */
	Oid owner;
	ArrayType *settings;
	const char *status;
	char *signature; /* of what the tables hold (track.c) */
	TransactionId
		xmin; /* that wrote this; a snapshot that does not show it may not show what is in the tables */
} MrHistoryStream;

/*
 * By the latest snapshot, in the current memory context; NULL: there is none.  By its name, or, if that is NULL, the one of
 * a query.
 */
extern MrHistoryStream *
mr_history_stream(const char *name, const char *command, Oid owner, ArrayType *settings);
extern List *mr_history_streams(Oid source);
/* A new one, status filling, for who has locked the source (mr_lock_source); its table becomes a source if it is none. */
extern void mr_history_put(const MrHistoryStream *stream);
/* Drop those that no version of a model has any more. */
extern void mr_history_sweep(void);
extern bool mr_is_source(Oid rel);
extern Datum mr_lock_source(PG_FUNCTION_ARGS);

/*
 * track.c: such a stream at work, as the current user, who is its owner.  Planned for the batches of one table; keep and
 * depends as for mr_aggregate_plan.
 */
typedef struct MrTrack MrTrack;
extern MrTrack *
mr_track_plan(const char *query, const char *signature, Oid leaf, MemoryContext keep, List **depends);
/* Rows that have gone and rows that have come, each may be NULL; returns rows written. */
extern uint64
mr_track_run(const MrTrack *track, Oid delta, Tuplestorestate *old_rows, Tuplestorestate *new_rows);
extern void mr_track_truncated(const char *name, Oid source, Oid rel);
/* For all such streams of a source: a partition has come with its rows (n_rows 1), or gone with them (-1). */
extern void mr_track_partition(Oid source, Oid rel, int n_rows);
/* The type of a column has changed, perhaps with the values: what was kept goes, and is filled anew. */
extern void mr_track_retyped(Oid source);
/* For who holds the lock of target: fold up to so many rows; returns how many. */
extern uint64 mr_track_fold(Oid target, Oid delta, int64 limit);
/* Fill it anew unless it is up to date, for its owner. */
extern void mr_track_refresh(const char *name);

/*
 * scorer.c: recommendations for the users of a batch.  A scorer planned for the batches of one table; keep and depends as
 * for mr_aggregate_plan.  arguments: those of create_scorer as JSON.
 */
typedef struct MrScorer MrScorer;

/* How well the lists of a scorer do; each statement counts a user once. */
typedef struct MrScoreCounts
{
	uint64 n_users;
	uint64 n_listed; /* those whose list is not empty */
	double own;		 /* sum of precision_own of the last list of each */
	uint64 n_judged; /* those who had a list before */
	double next;	 /* sum of their precision_next */
} MrScoreCounts;

extern MrScorer *
mr_scorer_plan(const char *arguments, Oid target, Oid relid, MemoryContext keep, List **depends);
/* Lock the table of a kept plan, as planning does. */
extern void mr_scorer_lock(const MrScorer *scorer);
/* Score rows like those of the table, as the current user; returns rows written, and adds to counts. */
extern uint64 mr_scorer_run(MrScorer *scorer, Tuplestorestate *rows, MrScoreCounts *counts);
extern void mr_score_counts_add(MrScoreCounts *sum, const MrScoreCounts *counts);

/*
 * batch.c: run the alerts over an aggregate (its view target) of a source for panes that were changed by other means than
 * a batch, and for windows that have become final since; panes may be NULL.
 */
extern void mr_alerts_changed(Oid source, Oid target, const MrTimes *panes);

/*
 * The plan for a stored text, as the current user: *kept if it is still good, else a new one that takes its place
 * (*kept is NULL before the first call).  The relations that it reads are locked until the transaction ends.
 * 22023 if one of them is temporary: a caller's view would run its functions as the owner.
 */
extern SPIPlanPtr mr_prepare(SPIPlanPtr *kept, const char *sql, int n_args, Oid *types);
/* Free a kept plan, which an outer call may still be running, when the transaction ends. */
extern void mr_plan_discard(SPIPlanPtr *kept);


/* Number of processors that this process may use, or the setting millrace.threads. */
extern int mr_n_threads(int requested);

/* Milliseconds since an arbitrary start, monotonic. */
extern double mr_now_ms(void);

#endif
