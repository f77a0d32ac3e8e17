/*
 * The session with the database, as sink.c keeps it and store.c uses it.
 */
#ifndef SINK_H
#define SINK_H

#include "ingest.h"

#include <libpq-fe.h>
#include <pthread.h>

/* Rows that one COPY takes. */
typedef struct Group
{
	int leaf;
	uint64_t omitted;
	int first, last, n_rows; /* rows are chained by Row.next */
	int same_leaf;			 /* next group of this leaf, or -1 */
	int n_suspects;			 /* rows that a handler refused */
	bool is_accepting;		 /* one was accepted, or would be */
} Group;

/* How far back a COPY that fails takes the transaction. */
typedef enum Savepoint
{
	SAVEPOINT_NONE, /* nothing was copied yet */
	SAVEPOINT_START,
	SAVEPOINT_START_FAILED,
	SAVEPOINT_SET,
	SAVEPOINT_FAILED /* what came behind it failed, or is not wanted */
} Savepoint;

typedef enum Answer
{
	ANSWER_UNKNOWN,
	ANSWER_YES,
	ANSWER_NO
} Answer;

/* A row that was accepted once: a line of COPY text. */
typedef struct Witness
{
	Buffer line; /* empty: none */
	uint64_t omitted;
} Witness;

struct Sink
{
	Config *config;
	PGconn *connection;
	pthread_mutex_t cancel_lock;
	PGcancel *cancel;		/* of the connection; under cancel_lock */
	char *session[2];		/* process id and start of the server's side of it; NULL: none was made */
	bool is_commit_unknown; /* COMMIT was sent and not answered */
	int64_t try_us;			/* monotonic time of the next sink_is_there() that connects */
	int64_t metrics_us;		/* monotonic time of the next sink_metrics() that writes */
	Buffer send, sql, begin;
	/* of the batch being stored */
	const Table *table;
	const Leaves *leaves;
	const CopyColumns *columns;
	Batch *batch;
	Group *groups;
	int n_groups, group_capacity;
	int *leaf_groups; /* by leaf + 1: its first group */
	int *order;		  /* row numbers, group by group */
	bool is_careful;  /* constraints are checked at once */
	bool is_checked;  /* the table's columns are known to be what they were */
	Savepoint savepoint;
	const char *copying; /* the relation whose rows are being sent; NULL: none */
	int n_accepted;
	/* of all batches */
	int most_rows;	 /* of one statement; fewer after one took too long */
	int n_in_turn;	 /* dead letters of handlers since the last row that was accepted */
	Witness witness; /* the last row that was stored */
	pthread_mutex_t offer_lock;
	_Atomic bool wants_offer;
	Witness offered; /* a row of the open batch; under offer_lock */
	bool is_counted; /* the dead letters are known to be within dead_letters.limit */
	Answer self_reference;
	/* the last data error */
	char sqlstate[6];
	bool is_unnamed_check; /* 23514 without a constraint's name: a partition's range */
	char *reason, *context, *schema, *relation;
	char *suspicion; /* the last error of a handler */
	bool has_warned_default;
};

/* What a failed result means.  A data error is kept in sink->sqlstate, reason and context; others are logged. */
SinkStatus sink_judge(Sink *sink, const PGresult *result, bool *is_data);
/* Runs a statement.  *result is NULL unless SINK_OK; the caller clears it.  A data error is told only by *is_data. */
SinkStatus sink_run_judged(Sink *sink, const char *sql, int n_params, const char *const *params,
						   PGresult **result, bool *is_data);
/* The same for a statement whose failure is nobody's data. */
SinkStatus sink_run(Sink *sink, const char *sql, int n_params, const char *const *params, PGresult **result);
/* An element of an array literal, quoted. */
void array_text(Buffer *out, const char *text, size_t n_bytes);
void array_text_or_null(Buffer *out, const char *text);
void array_number(Buffer *out, int64_t number);

#endif
