/*
 * batch.c: the trigger function that turns an INSERT or COPY into a batch.
 *
 * The trigger stands on a source and on all its partitions; PostgreSQL fires only that of the table which the
 * statement names, once, with all new rows in a tuplestore.  mr_on_batch runs the streams of the source over
 * them, in order of creation and each as its owner, and counts what they did.  When the transaction commits, the
 * counts become one row of millrace.batches for each source that it wrote.
 *
 * Plans depend on the table that fired: a partition may hold the columns in another order.  So each backend keeps
 * them for each such table, a Leaf; relation-cache invalidation, which every change of a stream sends for
 * all tables of its source, makes a Leaf be built anew.  A Leaf that is out of date may still be running, so it is
 * freed at the end of the transaction.
 *
 * Streams are read with the latest snapshot: whoever creates one locks out the source's writers until it commits,
 * so a writer whose own snapshot is older must nevertheless see it.
 */
#include "millrace.h"

#include "catalog/indexing.h"
#include "common/hashfn.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/json.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_on_batch);
PG_FUNCTION_INFO_V1(mr_pipe_target);

#define MAX_LEAVES 4096
#define MIN_LEAVES 32 /* so few are kept */
/* A leaf that had no batch while its backend had so many times as many as there are leaves is forgotten. */
#define MAX_IDLE 16

typedef enum LatePolicy
{
	LATE_UPDATE,
	LATE_DROP,
	LATE_DIVERT
} LatePolicy;

typedef enum StreamKind
{
	STREAM_HISTORY,
	STREAM_PIPE,
	STREAM_AGGREGATE,
	STREAM_SCORER,
	STREAM_ALERT
} StreamKind;

static const char *const KINDS[] = {[STREAM_HISTORY] = "history",
									[STREAM_PIPE] = "pipe",
									[STREAM_AGGREGATE] = "aggregate",
									[STREAM_SCORER] = "scorer",
									[STREAM_ALERT] = "alert"};

typedef struct Stream
{
	char *name;
	StreamKind kind;
	bool is_suspended;	/* stopped or failed: it takes no rows, which are kept or marked */
	bool is_filling;	/* older rows are missing: no window can be closed */
	bool may_fail;		/* an error suspends it, and not the batch */
	const char *reason; /* of rows that it does not take */
	char *window_text; /* … of an aggregate: the range of windows of a row, should its definition be gone */
	Oid owner;
	Oid source_owner;
	ArrayType *settings;
	char *command;				/* pipe */
	Oid target;					/* … the table it fills; scorer: its table; alert: its view */
	SPIPlanPtr pipe;			/* … NULL until first used */
	Oid definition;				/* continuous aggregate: its view NAME_query */
	Oid state;					/* … its table NAME_state */
	Oid delta;					/* … its table NAME_delta */
	bool has_watermark;			/* … */
	Interval delay;				/* … of the watermark */
	LatePolicy late_policy;		/* … */
	TimestampTz retained_from;	/* … states before it were dropped; DT_NOBEGIN: none */
	bool has_retention;			/* … */
	MrAggregatePlan *aggregate; /* … NULL until first used */
	uint64 planned_at;			/* aggregate, scorer: Leaf.n_changes when it was planned */
	MrTrack *track;				/* history: NULL until first used; its tables are target and delta */
	MrScorer *scorer;			/* scorer: NULL until first used */
	MrAlert *alert;				/* alert: NULL until first used */
} Stream;

typedef struct Leaf
{
	Oid relid;
	bool valid;
	uint64 n_changes;
	uint64 used_at;		   /* n_uses when it was last needed */
	MemoryContext context; /* holds the Leaf itself */
	Oid source;			   /* InvalidOid: no source */
	List *streams;
	List *depends; /* relations whose change makes the plans stale */
	bool has_alerts;
} Leaf;

typedef struct LeafEntry
{
	Oid relid; /* hash key */
	Leaf *leaf;
} LeafEntry;

/* What this transaction did to one source, by nesting level so that a rolled-back savepoint takes its part away. */
typedef struct StreamWork
{
	char *name;
	uint64 rows;
	double ms;
	uint64 n_late;
	MrScoreCounts scores; /* of a scorer */
	/* of an aggregate */
	Oid owner;
	ArrayType *settings;
	Oid definition;
	Oid state;
	Oid delta;
	Oid history; /* the first table of a stream of that kind; delta is its second */
	bool has_retention;
	MrSeen *seen; /* NULL: no watermark */
	TimestampTz watermark;
	TimestampTz max_time;
	/* of an alert, whose watermark says how far it has looked at final windows */
	Oid alert;	   /* its view */
	MrTimes fired; /* windows reported */
} StreamWork;

typedef struct BatchWork
{
	Oid source;
	int level;
	TimestampTz started;
	uint64 rows;
	double ms;
	List *streams; /* StreamWork */
} BatchWork;

static HTAB *leaves = NULL;
static List *stale_leaves = NIL;
static uint64 n_invalidations = 0;
static List *work = NIL; /* BatchWork, in TopTransactionContext */

/*
 * The cache of leaves
 */

static void
invalidate_relation(Datum arg, Oid relid)
{
	HASH_SEQ_STATUS scan;
	LeafEntry *entry;

	n_invalidations++;
	hash_seq_init(&scan, leaves);
	while ((entry = hash_seq_search(&scan)) != NULL)
		if (entry->leaf &&
			(!OidIsValid(relid) || entry->relid == relid || list_member_oid(entry->leaf->depends, relid)))
		{
			entry->leaf->valid = false;
			entry->leaf->n_changes++;
		}
}

/* A function changed: rare enough to drop every plan. */
static void
invalidate_all(Datum arg, int cache, uint32 hash)
{
	invalidate_relation(arg, InvalidOid);
}

static void
free_stale_leaves(void)
{
	ListCell *lc, *lc2;

	foreach (lc, stale_leaves)
	{
		Leaf *leaf = lfirst(lc);

		foreach (lc2, leaf->streams)
		{
			Stream *stream = lfirst(lc2);

			if (stream->pipe)
				SPI_freeplan(stream->pipe);
			if (stream->alert)
				mr_alert_free(stream->alert);
		}
		MemoryContextDelete(leaf->context);
	}
	list_free(stale_leaves);
	stale_leaves = NIL;
}

static void
retire(LeafEntry *entry)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	stale_leaves = lappend(stale_leaves, entry->leaf);
	entry->leaf = NULL;
	MemoryContextSwitchTo(old);
}

/* Owners change: who may no longer read the source must not go on receiving its rows. */
static void
check_rights(const Stream *stream, Oid source_owner, Oid source)
{
	const char *hint = "Drop the stream and create it again as the owner of the table.";

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(stream->owner)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the owner of stream \"%s\" does not exist", stream->name), errhint("%s", hint)));
	if (!has_privs_of_role(stream->owner, source_owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("the owner of stream \"%s\", %s, is no longer an owner of its source %s",
						stream->name, GetUserNameFromId(stream->owner, false), get_rel_name(source)),
				 errhint("%s", hint)));
}

/* Columns 16 to 19 of the query below */
static void
read_status(Stream *stream, HeapTuple tuple, TupleDesc desc)
{
	const char *status = SPI_getvalue(tuple, desc, 16);
	const char *error = SPI_getvalue(tuple, desc, 18);

	stream->is_suspended = strcmp(status, "stopped") == 0 || strcmp(status, "failed") == 0;
	stream->is_filling = strcmp(status, "filling") == 0;
	stream->may_fail = strcmp(SPI_getvalue(tuple, desc, 17), "suspend") == 0;
	stream->reason = strcmp(status, "failed") == 0 && error ? error : status;
	stream->window_text = SPI_getvalue(tuple, desc, 19);
}

static StreamKind
kind_named(const char *name)
{
	for (int i = 0; i < lengthof(KINDS); i++)
		if (strcmp(KINDS[i], name) == 0)
			return (StreamKind) i;
	elog(ERROR, "streams of kind \"%s\" are not known", name);
}

static void
read_streams(Leaf *leaf)
{
	Oid types[1] = {OIDARRAYOID};
	List *ancestors = get_partition_ancestors(leaf->relid);
	int n_tables = list_length(ancestors) + 1;
	Datum *tables = palloc(n_tables * sizeof(Datum));
	Datum values[1];
	MrGuard guard;
	MemoryContext spi;

	tables[0] = ObjectIdGetDatum(leaf->relid);
	for (int i = 1; i < n_tables; i++)
		tables[i] = ObjectIdGetDatum(list_nth_oid(ancestors, i - 1));
	values[0] = PointerGetDatum(construct_array(tables, n_tables, OIDOID, sizeof(Oid), true, TYPALIGN_INT));

	mr_enter_catalog(&guard, "sources");
	PushActiveSnapshot(GetLatestSnapshot());
	SPI_connect();
	mr_exec_args(
		"SELECT s.source, t.name, t.kind, coalesce(c.relowner, t.owner), t.settings,"
		" t.command, t.target, t.definition, t.state, o.relowner, t.delta, t.watermark, t.late_policy,"
		" t.retained_from, t.retain IS NOT NULL, t.status, t.on_error, t.error, t.window_text"
		" FROM " MR_SCHEMA ".sources s JOIN pg_catalog.pg_class o ON o.oid = s.source"
		" LEFT JOIN " MR_SCHEMA
		".stream t ON t.kind <> 'rollup' AND (t.source = s.source OR t.kind = 'alert' AND EXISTS"
		" (SELECT FROM " MR_SCHEMA ".stream a WHERE a.source = s.source AND a.target = ANY (t.inputs)))"
		" LEFT JOIN pg_catalog.pg_class c ON c.oid = CASE WHEN t.kind IN ('alert', 'scorer') THEN t.target "
		"ELSE"
		" t.state END WHERE s.source = ANY ($1)"
		" ORDER BY CASE t.kind WHEN 'history' THEN 0 WHEN 'scorer' THEN 2 WHEN 'alert' THEN 3 ELSE 1 END, "
		"t.seq",
		SPI_OK_SELECT, true, 1, types, values, NULL);
	spi = MemoryContextSwitchTo(leaf->context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		Stream *stream = palloc0(sizeof(Stream));
		Datum delay;
		char *policy;
		bool isnull;

		leaf->source = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		stream->name = SPI_getvalue(tuple, desc, 2);
		if (stream->name == NULL)
			continue;
		stream->name = pstrdup(stream->name);
		stream->kind = kind_named(SPI_getvalue(tuple, desc, 3));
		stream->owner = DatumGetObjectId(SPI_getbinval(tuple, desc, 4, &isnull));
		stream->settings = DatumGetArrayTypePCopy(SPI_getbinval(tuple, desc, 5, &isnull));
		stream->command = SPI_getvalue(tuple, desc, 6);
		stream->target = DatumGetObjectId(SPI_getbinval(tuple, desc, 7, &isnull));
		stream->definition = DatumGetObjectId(SPI_getbinval(tuple, desc, 8, &isnull));
		stream->state = DatumGetObjectId(SPI_getbinval(tuple, desc, 9, &isnull));
		/* Of what users have, it is looked at when it runs: it must not keep anybody from writing. */
		stream->source_owner = DatumGetObjectId(SPI_getbinval(tuple, desc, 10, &isnull));
		if (stream->kind != STREAM_HISTORY)
			check_rights(stream, stream->source_owner, leaf->source);
		stream->delta = DatumGetObjectId(SPI_getbinval(tuple, desc, 11, &isnull));
		delay = SPI_getbinval(tuple, desc, 12, &isnull);
		stream->has_watermark = !isnull;
		if (!isnull)
			stream->delay = *DatumGetIntervalP(delay);
		policy = SPI_getvalue(tuple, desc, 13);
		stream->late_policy = policy && strcmp(policy, "drop") == 0 ? LATE_DROP
			: policy && strcmp(policy, "divert") == 0				? LATE_DIVERT
																	: LATE_UPDATE;
		stream->retained_from = DatumGetTimestampTz(SPI_getbinval(tuple, desc, 14, &isnull));
		if (isnull)
			stream->retained_from = DT_NOBEGIN;
		stream->has_retention = DatumGetBool(SPI_getbinval(tuple, desc, 15, &isnull));
		read_status(stream, tuple, desc);
		leaf->has_alerts |= stream->kind == STREAM_ALERT;
		leaf->depends =
			lappend_oid(lappend_oid(lappend_oid(leaf->depends, leaf->source), stream->target), stream->state);
		leaf->streams = lappend(leaf->streams, stream);
	}
	MemoryContextSwitchTo(spi);
	SPI_finish();
	PopActiveSnapshot();
	mr_leave(&guard);
}

/* Of a backend that lives long: partitions of times gone by. */
static void
forget_idle(uint64 n_uses)
{
	long n_leaves = hash_get_num_entries(leaves);
	HASH_SEQ_STATUS scan;
	LeafEntry *old;

	if (n_leaves < MIN_LEAVES)
		return;
	hash_seq_init(&scan, leaves);
	while ((old = hash_seq_search(&scan)) != NULL)
	{
		if (n_leaves < MAX_LEAVES && old->leaf && old->leaf->valid &&
			n_uses - old->leaf->used_at <= MAX_IDLE * (uint64) n_leaves)
			continue;
		if (old->leaf)
			retire(old);
		hash_search(leaves, &old->relid, HASH_REMOVE, NULL);
	}
}

static Leaf *
get_leaf(Oid relid)
{
	static uint64 n_uses = 0;
	LeafEntry *entry;
	Leaf *leaf;
	MemoryContext context;
	uint64 n_before;

	n_uses++;
	if (leaves == NULL)
	{
		HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(LeafEntry)};

		leaves = hash_create("millrace leaves", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, invalidate_all, (Datum) 0);
	}
	entry = hash_search(leaves, &relid, HASH_FIND, NULL);
	if (entry && entry->leaf && entry->leaf->valid)
	{
		entry->leaf->used_at = n_uses;
		return entry->leaf;
	}

	if (entry == NULL)
		forget_idle(n_uses);
	if (entry && entry->leaf)
		retire(entry);

	/* Built below the current context, so that an error takes it away; kept when complete. */
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace leaf", ALLOCSET_SMALL_SIZES);
	leaf = MemoryContextAllocZero(context, sizeof(Leaf));
	leaf->relid = relid;
	leaf->context = context;
	leaf->used_at = n_uses;
	n_before = n_invalidations;
	read_streams(leaf);
	leaf->valid = n_invalidations == n_before;
	MemoryContextSetParent(context, CacheMemoryContext);
	entry = hash_search(leaves, &relid, HASH_ENTER, NULL);
	entry->leaf = leaf;
	return leaf;
}

/*
 * Counting
 */

static BatchWork *
batch_work(Oid source)
{
	int level = GetCurrentTransactionNestLevel();
	MemoryContext old;
	BatchWork *batch;
	ListCell *lc;

	foreach (lc, work)
	{
		batch = lfirst(lc);
		if (batch->source == source && batch->level == level)
			return batch;
	}
	old = MemoryContextSwitchTo(TopTransactionContext);
	batch = palloc0(sizeof(BatchWork));
	batch->source = source;
	batch->level = level;
	batch->started = GetCurrentTimestamp();
	work = lappend(work, batch);
	MemoryContextSwitchTo(old);
	return batch;
}

static StreamWork *
stream_work(BatchWork *batch, const char *name)
{
	MemoryContext old;
	StreamWork *stream;
	ListCell *lc;

	foreach (lc, batch->streams)
		if (strcmp(((StreamWork *) lfirst(lc))->name, name) == 0)
			return lfirst(lc);
	old = MemoryContextSwitchTo(TopTransactionContext);
	stream = palloc0(sizeof(StreamWork));
	stream->name = pstrdup(name);
	stream->max_time = stream->watermark = DT_NOBEGIN;
	batch->streams = lappend(batch->streams, stream);
	MemoryContextSwitchTo(old);
	return stream;
}

static void
merge_work(BatchWork *into, const BatchWork *from)
{
	ListCell *lc;

	into->rows += from->rows;
	into->ms += from->ms;
	foreach (lc, from->streams)
	{
		StreamWork *stream = lfirst(lc);
		StreamWork *sum = stream_work(into, stream->name);
		StreamWork before = *sum;

		*sum = *stream;
		sum->rows += before.rows;
		sum->ms += before.ms;
		sum->n_late += before.n_late;
		sum->max_time = Max(sum->max_time, before.max_time);
		if (OidIsValid(before.alert))
			mr_times_merge(&sum->fired, &before.fired);
		mr_score_counts_add(&sum->scores, &before.scores);
	}
}

static void
push_string(JsonbParseState **state, JsonbIteratorToken token, const char *string)
{
	JsonbValue value;

	value.type = jbvString;
	value.val.string.val = unconstify(char *, string);
	value.val.string.len = strlen(string);
	pushJsonbValue(state, token, &value);
}

static void
push_number(JsonbParseState **state, const char *key, const char *number)
{
	JsonbValue value;

	push_string(state, WJB_KEY, key);
	value.type = jbvNumeric;
	value.val.numeric = DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(number),
															ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
	pushJsonbValue(state, WJB_VALUE, &value);
}

/* Of a scorer: the users and the means over them, as far as there are any. */
static void
push_scores(JsonbParseState **state, const MrScoreCounts *scores)
{
	if (scores->n_users == 0)
		return;
	push_number(state, "users", psprintf(UINT64_FORMAT, scores->n_users));
	if (scores->n_listed > 0)
		push_number(state, "precision_own", psprintf("%.6f", scores->own / scores->n_listed));
	if (scores->n_judged == 0)
		return;
	push_number(state, "judged", psprintf(UINT64_FORMAT, scores->n_judged));
	push_number(state, "precision_next", psprintf("%.6f", scores->next / scores->n_judged));
}

/*
 * {"purchases": {"ms": 0.4, "rows": 12}, …}; with a watermark, also "late" and "watermark"; of a scorer "users",
 * "precision_own", "judged", "precision_next"
 */
static Datum
streams_json(List *streams)
{
	JsonbParseState *state = NULL;
	ListCell *lc;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	foreach (lc, streams)
	{
		StreamWork *stream = lfirst(lc);

		push_string(&state, WJB_KEY, stream->name);
		pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
		push_number(&state, "ms", psprintf("%.3f", stream->ms));
		push_number(&state, "rows", psprintf(UINT64_FORMAT, stream->rows));
		if (stream->n_late)
			push_number(&state, "late", psprintf(UINT64_FORMAT, stream->n_late));
		push_scores(&state, &stream->scores);
		if (OidIsValid(stream->state) && stream->seen && !TIMESTAMP_NOT_FINITE(stream->watermark))
		{
			push_string(&state, WJB_KEY, "watermark");
			push_string(&state, WJB_VALUE,
						JsonEncodeDateTime(palloc(MAXDATELEN + 1), TimestampTzGetDatum(stream->watermark),
										   TIMESTAMPTZOID, NULL));
		}
		pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

/*
 * Maintenance without a cron job.  Now and then, and on average once for FOLD_ROWS states written, a transaction folds
 * what is there of an aggregate and drops what its retention lets go, unless somebody else is at it; and once in
 * PRUNE_BATCHES transactions the oldest rows of millrace.batches go.  Which one, its xid decides, so it does not matter
 * how the work is spread over sessions.  What turns were missed leave, the next ones take, up to FOLD_LIMIT rows.  Not in REPEATABLE READ, where rows that others have folded meanwhile would be
 * in the way.  A session folds for at most one part in FOLD_PAUSE of its time: under a load that leaves states faster than
 * that removes them, they wait for a quieter time or for millrace.maintain.
 */
#define FOLD_ROWS 8192
#define FOLD_LIMIT (4 * FOLD_ROWS)
#define FOLD_PAUSE 16
#define PRUNE_BATCHES 256

/* When this session may fold an aggregate again */
typedef struct FoldPause
{
	Oid state; /* hash key */
	double until_ms;
} FoldPause;

static FoldPause *
fold_pause(Oid state)
{
	static HTAB *pauses = NULL;
	FoldPause *pause;
	bool found;

	if (pauses == NULL)
	{
		HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(FoldPause)};

		pauses = hash_create("millrace fold pauses", 16, &ctl, HASH_ELEM | HASH_BLOBS);
	}
	pause = hash_search(pauses, &state, HASH_ENTER, &found);
	if (!found)
		pause->until_ms = 0;
	return pause;
}

/*
 * Whether it is this transaction's turn: once for FOLD_ROWS rows written to the table, but at most each fourth time.
 * Multiples of the golden ratio lie evenly between whole numbers, also those of every second or tenth transaction, so
 * turns come at nearly equal distances, whoever else takes transaction ids.
 */
static bool
is_turn(Oid table, uint64 n_rows)
{
	uint64 xid = U64FromFullTransactionId(GetTopFullTransactionId());
	uint64 place = (xid + hash_bytes_uint32(table)) *
		UINT64CONST(0x9E3779B97F4A7C15); /* 2^64 divided by the golden ratio */

	return n_rows > 0 && !IsolationUsesXactSnapshot() &&
		place < n_rows * (PG_UINT64_MAX / Max(FOLD_ROWS, 4 * n_rows));
}

static void
fold_now_and_then(const StreamWork *stream)
{
	Oid table = OidIsValid(stream->history) ? stream->history : stream->state;
	double start = mr_now_ms();
	FoldPause *pause;
	MrGuard guard;

	if (!OidIsValid(table) || !is_turn(table, stream->rows) ||
		get_rel_relkind(OidIsValid(stream->history) ? table : stream->definition) == '\0')
		return;
	pause = fold_pause(table);
	if (start < pause->until_ms || !mr_state_lock(table, false))
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (OidIsValid(stream->history))
		(void) mr_track_fold(table, stream->delta, FOLD_LIMIT);
	else
	{
		mr_enter(&guard, stream->owner, stream->settings);
		if (stream->has_retention)
			(void) mr_drop_expired_windows(cstring_to_text(stream->name), false);
		(void) mr_fold(stream->definition, stream->state, stream->delta, FOLD_LIMIT, false);
		mr_leave(&guard);
	}
	PopActiveSnapshot();
	if (!OidIsValid(stream->history))
		mr_watermark_prune(stream->state, false);
	pause->until_ms = mr_now_ms() + (FOLD_PAUSE - 1) * (mr_now_ms() - start);
}

/* A prepared transaction may not send messages. */
static void
finish_alert(StreamWork *stream)
{
	mr_alert_notify(stream->name, &stream->fired);
	if (stream->watermark > stream->seen->closed_to && !IsolationUsesXactSnapshot() &&
		XidFromFullTransactionId(GetTopFullTransactionId()) % PRUNE_BATCHES == 0 &&
		mr_state_lock(stream->alert, false))
		mr_watermark_prune(stream->alert, false);
}

static void
prune_now_and_then(Oid source)
{
	FullTransactionId xid = GetTopFullTransactionId();

	if (IsolationUsesXactSnapshot() ||
		hash_bytes_extended((unsigned char *) &xid, sizeof(xid), source) % PRUNE_BATCHES != 0)
		return;
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_batches_prune(source);
	PopActiveSnapshot();
}

static void
write_work(bool may_fold)
{
	Oid batches = get_relname_relid("batches", get_namespace_oid(MR_SCHEMA, true));
	Relation rel;
	ListCell *lc;

	/* The transaction may have dropped the extension. */
	if (!OidIsValid(batches))
		return;
	rel = table_open(batches, RowExclusiveLock);

	foreach (lc, work)
	{
		BatchWork *batch = lfirst(lc);
		Datum values[7];
		bool nulls[7] = {false};
		uint64 n_late = 0;
		HeapTuple tuple;
		ListCell *lc2;

		foreach (lc2, batch->streams)
		{
			StreamWork *stream = lfirst(lc2);

			n_late += stream->n_late;
			if (stream->seen)
				mr_watermark_write(stream->seen, stream->watermark, stream->max_time);
			if (may_fold)
				fold_now_and_then(stream);
			if (may_fold && OidIsValid(stream->alert))
				finish_alert(stream);
		}

		values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
		values[1] = ObjectIdGetDatum(batch->source);
		values[2] = TimestampTzGetDatum(batch->started);
		values[3] = Int64GetDatum((int64) batch->rows);
		values[4] = Float8GetDatum(batch->ms);
		values[5] = Int64GetDatum((int64) n_late);
		values[6] = streams_json(batch->streams);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);
		if (may_fold)
			prune_now_and_then(batch->source);
	}
	table_close(rel, NoLock);
}

static void
on_xact_event(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
		case XACT_EVENT_PRE_PREPARE:
			if (work != NIL)
				write_work(event == XACT_EVENT_PRE_COMMIT);
			work = NIL;
			break;
		case XACT_EVENT_COMMIT:
		case XACT_EVENT_PREPARE:
		case XACT_EVENT_ABORT:
			work = NIL;
			free_stale_leaves();
			break;
		default:
			break;
	}
}

static void
on_subxact_event(SubXactEvent event, SubTransactionId mine, SubTransactionId parent, void *arg)
{
	int level = GetCurrentTransactionNestLevel();
	ListCell *lc;

	if (event != SUBXACT_EVENT_ABORT_SUB && event != SUBXACT_EVENT_COMMIT_SUB)
		return;
	foreach (lc, work)
	{
		BatchWork *batch = lfirst(lc);
		BatchWork *below = NULL;
		ListCell *lc2;

		if (batch->level < level)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
		{
			foreach (lc2, work)
				if (((BatchWork *) lfirst(lc2))->source == batch->source &&
					((BatchWork *) lfirst(lc2))->level == level - 1)
					below = lfirst(lc2);
			if (below == NULL)
			{
				batch->level = level - 1;
				continue;
			}
			merge_work(below, batch);
		}
		work = foreach_delete_current(work, lc);
	}
}

static void
register_callbacks(void)
{
	static bool registered = false;

	if (registered)
		return;
	RegisterXactCallback(on_xact_event, NULL);
	RegisterSubXactCallback(on_subxact_event, NULL);
	registered = true;
}

/*
 * Running the streams
 */

static void
stream_error_context(void *arg)
{
	errcontext("millrace stream \"%s\"", ((Stream *) arg)->name);
}

static bool
reads_new_rows(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, RangeTblEntry))
		return ((RangeTblEntry *) node)->rtekind == RTE_NAMEDTUPLESTORE;
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, reads_new_rows, context, QTW_EXAMINE_RTES_BEFORE);
	return expression_tree_walker(node, reads_new_rows, context);
}

/* The table that the command of a pipe fills: it is one INSERT that reads new_rows, and writes nothing else. */
static Oid
pipe_target(SPIPlanPtr plan, const char *command)
{
	List *sources = SPI_plan_get_plan_sources(plan);
	Query *query = NULL;

	if (list_length(sources) == 1 && list_length(((CachedPlanSource *) linitial(sources))->query_list) == 1)
		query = linitial(((CachedPlanSource *) linitial(sources))->query_list);
	if (query == NULL || query->commandType != CMD_INSERT || query->hasModifyingCTE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("the command of a pipe must be one INSERT"),
				 errdetail("The command is: %s", command),
				 errhint("As in: INSERT INTO target SELECT … FROM " MR_NEW_ROWS
						 ".  The target must have no rules, and WITH must not change data.")));
	if (!query_tree_walker(query, reads_new_rows, NULL, QTW_EXAMINE_RTES_BEFORE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the command of a pipe must read from " MR_NEW_ROWS),
				 errhint(MR_NEW_ROWS " holds the rows of the batch, with the columns of the source.")));
	return rt_fetch(query->resultRelation, query->rtable)->relid;
}

/* A stream must leave nothing to be done at commit, when it would be done with the writer's rights. */
static void
check_constraints(Oid target)
{
	Relation rel = table_open(target, AccessShareLock);
	TriggerDesc *triggers = rel->trigdesc;

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tginitdeferred)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("table \"%s\" cannot be the target of a pipe: trigger \"%s\" is deferred",
							RelationGetRelationName(rel), triggers->triggers[i].tgname),
					 errhint("Make its constraint INITIALLY IMMEDIATE.")));
	table_close(rel, NoLock);
}

/* The plan is kept in *kept. */
static uint64
run_command(SPIPlanPtr *kept, const char *command, Oid target, Oid relid, Tuplestorestate *rows)
{
	SPIPlanPtr plan;
	uint64 n_written;
	int rc;

	SPI_connect();
	if (SPI_register_relation(mr_new_rows_relation(MR_NEW_ROWS, relid, rows)) < 0)
		elog(ERROR, "could not register the rows of the batch");
	plan = mr_prepare(kept, command, 0, NULL);
	if (pipe_target(plan, command) != target)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the command of the pipe names another table than it did"),
				 errhint("Drop the pipe and create it again.")));
	rc = SPI_execute_plan(plan, NULL, NULL, false, 0);
	if (rc != SPI_OK_INSERT && rc != SPI_OK_INSERT_RETURNING)
		elog(ERROR, "unexpected result of a pipe: %s", SPI_result_code_string(rc));
	n_written = SPI_processed;
	SPI_finish();
	return n_written;
}

static uint64
run_pipe(Stream *stream, Oid relid, Tuplestorestate *rows)
{
	return run_command(&stream->pipe, stream->command, stream->target, relid, rows);
}

uint64
mr_run_pipe(const char *command, Oid target, Oid relid, Tuplestorestate *rows)
{
	SPIPlanPtr plan = NULL;
	uint64 n_written = run_command(&plan, command, target, relid, rows);

	SPI_freeplan(plan);
	return n_written;
}

/* Which rows are late, and what becomes of them. */
static void
prepare_late(Stream *stream, StreamWork *counts, MrAggregateRun *run)
{
	const MrWindow *window = mr_aggregate_window(stream->aggregate);

	run->scan.late_bound = run->gone_bound = mr_last_closed(window, stream->retained_from);
	run->closed = DT_NOBEGIN;
	run->scan.max_time = DT_NOBEGIN;
	run->has_watermark = stream->has_watermark || run->gone_bound != DT_NOBEGIN;
	if (!stream->has_watermark)
		return;
	counts->seen = mr_watermark_seen(stream->state);
	counts->watermark = stream->is_filling ? DT_NOBEGIN : mr_watermark(counts->seen, &stream->delay);
	run->closed = mr_last_closed(window, counts->watermark);
	run->scan.late_bound = Max(run->gone_bound, run->closed);
	run->scan.max_allowed = GetCurrentTimestamp() + mr_max_future_s * USECS_PER_SEC;
	run->scan.keep_late = stream->late_policy == LATE_UPDATE;
	if (stream->late_policy == LATE_DIVERT)
		run->scan.late_rows = tuplestore_begin_heap(false, false, work_mem);
}

/* A kept plan is good if nothing has changed once its relations are locked; a new one has locked them itself. */
static void
plan_aggregate(Stream *stream, Leaf *leaf)
{
	if (stream->aggregate)
		mr_aggregate_lock(stream->aggregate);
	if (stream->aggregate == NULL || leaf->n_changes != stream->planned_at)
	{
		stream->aggregate = NULL;
		stream->planned_at = leaf->n_changes;
		stream->aggregate =
			mr_aggregate_plan(stream->definition, leaf->relid, stream->delta, leaf->context, &leaf->depends);
	}
}

static uint64
run_aggregate(Stream *stream, Leaf *leaf, StreamWork *counts, Tuplestorestate *rows, MrTimes *panes)
{
	MrAggregateRun run = {.panes = panes};

	plan_aggregate(stream, leaf);
	prepare_late(stream, counts, &run);
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_aggregate_run(stream->aggregate, leaf->relid, rows, &run);
	PopActiveSnapshot();
	CommandCounterIncrement();
	counts->n_late += run.scan.n_late;
	if (run.scan.n_late > 0 && stream->late_policy != LATE_UPDATE)
		mr_stream_late(stream->name);
	counts->max_time = Max(counts->max_time, run.scan.max_time);
	if (run.scan.late_rows)
	{
		if (run.scan.n_late > 0)
			mr_divert(stream->name, leaf->relid, run.scan.late_rows, "late");
		tuplestore_end(run.scan.late_rows);
	}
	return run.n_written;
}

static uint64
run_history(Stream *stream, Leaf *leaf, Tuplestorestate *old_rows, Tuplestorestate *new_rows)
{
	if (stream->track == NULL || leaf->n_changes != stream->planned_at)
	{
		stream->track = NULL;
		stream->planned_at = leaf->n_changes;
		stream->track =
			mr_track_plan(stream->command, stream->window_text, leaf->relid, leaf->context, &leaf->depends);
	}
	return mr_track_run(stream->track, stream->delta, old_rows, new_rows);
}

static uint64
run_scorer(Stream *stream, Leaf *leaf, StreamWork *counts, Tuplestorestate *rows)
{
	if (stream->scorer)
		mr_scorer_lock(stream->scorer);
	if (stream->scorer == NULL || leaf->n_changes != stream->planned_at)
	{
		stream->scorer = NULL;
		stream->planned_at = leaf->n_changes;
		stream->scorer =
			mr_scorer_plan(stream->command, stream->target, leaf->relid, leaf->context, &leaf->depends);
	}
	return mr_scorer_run(stream->scorer, rows, &counts->scores);
}

static bool
is_aggregate(const Stream *stream)
{
	return stream->kind == STREAM_AGGREGATE;
}

/* What was written of an aggregate, for the alerts that read it. */
typedef struct Change
{
	Oid target;
	MrTimes panes;
} Change;

static uint64
run_alert(Stream *stream, Leaf *leaf, StreamWork *counts, List *changes)
{
	MrTimes windows;
	ListCell *lc;

	if (!OidIsValid(counts->alert))
	{
		MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);

		counts->alert = stream->target;
		mr_times_init(&counts->fired);
		MemoryContextSwitchTo(old);
	}
	if (stream->alert == NULL)
		stream->alert = mr_alert_plan(stream->target, leaf->context, &leaf->depends);
	counts->seen = mr_watermark_seen(stream->target);
	mr_times_init(&windows);
	foreach (lc, changes)
	{
		Change *change = lfirst(lc);

		mr_alert_changed(stream->alert, change->target, &change->panes, &windows);
	}
	return mr_alert_run(stream->alert, &windows, counts->seen, &counts->watermark, &counts->fired);
}

/* Once for each transaction: what its end needs to know of an aggregate. */
static void
note_stream(StreamWork *counts, const Stream *stream)
{
	MemoryContext old;

	if (stream->kind == STREAM_HISTORY)
	{
		counts->history = stream->target;
		counts->delta = stream->delta;
	}
	if (!is_aggregate(stream) || OidIsValid(counts->state))
		return;
	old = MemoryContextSwitchTo(TopTransactionContext);
	counts->owner = stream->owner;
	counts->settings = DatumGetArrayTypePCopy(PointerGetDatum(stream->settings));
	counts->definition = stream->definition;
	counts->state = stream->state;
	counts->delta = stream->delta;
	counts->has_retention = stream->has_retention;
	MemoryContextSwitchTo(old);
}

/*
 * What is tried in a subtransaction.  The arguments of what is tried, and what it leaves.
 */
typedef struct Attempt
{
	Stream *stream;
	Leaf *leaf;
	StreamWork *counts;
	Tuplestorestate *rows;
	Tuplestorestate *more_rows; /* of an UPDATE */
	Tuplestorestate *old_rows;	/* history: those that have gone */
	MrRanges *ranges;
	List *changes;	/* of an alert: Change */
	MrTimes *panes; /* of an aggregate that an alert may read: those that it writes */
	const char *error;
} Attempt;

/* Errors that are not the fault of a stream, or that go away when the transaction is tried again. */
static bool
is_passing(int code)
{
	switch (ERRCODE_TO_CATEGORY(code))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
			return true;
		default:
			return code == ERRCODE_LOCK_NOT_AVAILABLE || code == ERRCODE_ASSERT_FAILURE;
	}
}

static void
handle(void *given)
{
	Attempt *arg = given;
	Stream *stream = arg->stream;
	MrGuard guard;
	uint64 n_rows = 0;

	if (stream->kind == STREAM_HISTORY)
		check_rights(stream, stream->source_owner, arg->leaf->source);
	mr_enter(&guard, stream->owner, stream->settings);
	switch (stream->kind)
	{
		case STREAM_HISTORY:
			n_rows = run_history(stream, arg->leaf, arg->old_rows, arg->rows);
			break;
		case STREAM_PIPE:
			n_rows = run_pipe(stream, arg->leaf->relid, arg->rows);
			break;
		case STREAM_AGGREGATE:
			n_rows = run_aggregate(stream, arg->leaf, arg->counts, arg->rows, arg->panes);
			break;
		case STREAM_SCORER:
			n_rows = run_scorer(stream, arg->leaf, arg->counts, arg->rows);
			break;
		case STREAM_ALERT:
			n_rows = run_alert(stream, arg->leaf, arg->counts, arg->changes);
			break;
	}
	mr_leave(&guard);
	arg->counts->rows += n_rows;
}

/* The windows of rows of an aggregate whose definition is gone. */
static void
find_windows_by_text(Attempt *arg, Tuplestorestate *rows)
{
	SPI_connect();
	if (SPI_register_relation(mr_new_rows_relation(MR_NEW_ROWS, arg->leaf->relid, rows)) < 0)
		elog(ERROR, "could not register the rows");
	mr_exec(psprintf("SELECT DISTINCT f, t FROM (SELECT %s FROM " MR_NEW_ROWS ") q(f, t)",
					 arg->stream->window_text),
			SPI_OK_SELECT, true);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool isnull;
		TimestampTz from =
			DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		TimestampTz to =
			DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));

		if (isnull)
			arg->ranges->with_null = true;
		else
			mr_ranges_add(arg->ranges, from, to, to);
	}
	SPI_finish();
}

static void
find_windows(void *given)
{
	Attempt *arg = given;
	Stream *stream = arg->stream;
	Tuplestorestate *stores[2] = {arg->rows, arg->more_rows};
	MrGuard guard;

	mr_enter(&guard, stream->owner, stream->settings);
	for (int i = 0; i < 2; i++)
		if (stores[i] && !SearchSysCacheExists1(RELOID, ObjectIdGetDatum(stream->definition)))
			find_windows_by_text(arg, stores[i]);
		else
		{
			plan_aggregate(stream, arg->leaf);
			if (stores[i])
				mr_scan_ranges(mr_aggregate_scan(stream->aggregate), stores[i], arg->ranges);
			else if (arg->rows == NULL && i == 0)
				mr_partition_ranges(mr_aggregate_scan(stream->aggregate), arg->leaf->source, arg->leaf->relid,
									arg->ranges);
		}
	mr_leave(&guard);
}

/*
 * Mark the windows of rows, or without rows those of all that the leaf can hold, as to be computed anew.  If they cannot
 * be told, all are marked: whatever is wrong with a definition, nobody is kept from changing rows.
 */
static void
mark_windows(Stream *stream, Leaf *leaf, Tuplestorestate *rows, Tuplestorestate *more_rows,
			 const char *reason)
{
	Attempt arg = {.stream = stream, .leaf = leaf, .rows = rows, .more_rows = more_rows};
	ErrorData *error;

	arg.ranges = mr_ranges_new();
	error = mr_attempt(find_windows, &arg);
	if (error && is_passing(error->sqlerrcode))
		ReThrowError(error);
	if (error)
		mr_mark(stream->state, DT_NOBEGIN, DT_NOEND, reason);
	else
		mr_mark_ranges(stream->state, arg.ranges, reason);
}

/* Rows that a suspended stream does not take. */
static void
keep_rows(Stream *stream, Leaf *leaf, Tuplestorestate *rows, const char *reason)
{
	MrGuard guard;

	/* An alert that is started again looks at what has become final since; what users have is filled anew. */
	if (stream->kind == STREAM_ALERT || stream->kind == STREAM_HISTORY)
		return;
	if (is_aggregate(stream))
	{
		mark_windows(stream, leaf, rows, NULL, reason);
		return;
	}
	mr_enter(&guard, stream->owner, stream->settings);
	mr_divert(stream->name, leaf->relid, rows, reason);
	mr_leave(&guard);
}

static void
write_failure(void *given)
{
	const Attempt *arg = given;

	mr_stream_failed(arg->stream->name, arg->leaf->source, arg->error);
}

/* One stream whose errors do not fail the batch. */
static void
try_stream(Attempt *arg)
{
	Stream *stream = arg->stream;
	ErrorData *error = mr_attempt(handle, arg);

	if (error == NULL)
		return;
	if (is_passing(error->sqlerrcode))
		ReThrowError(error);
	/* A message may quote values, and the catalog can be read by all. */
	arg->error =
		psprintf("SQLSTATE %s; the message is in the server's log", unpack_sql_state(error->sqlerrcode));
	/*
	 * Of several sessions, one writes it; that the others cannot is no harm, for they mark their windows or keep their rows.
	 * Not so where readers must know that rows are missing.
	 */
	if (stream->kind == STREAM_HISTORY)
		mr_stream_set(stream->name, arg->leaf->source, "failed", arg->error, InvalidOid, NULL);
	else
		(void) mr_attempt(write_failure, arg);
	keep_rows(stream, arg->leaf, arg->rows, arg->error);
	ereport(WARNING,
			(errcode(error->sqlerrcode), errmsg("stream \"%s\" has failed and is suspended", stream->name),
			 errdetail("%s", error->message),
			 errhint("Remove the cause, then call " MR_SCHEMA ".refresh(%s).",
					 quote_literal_cstr(stream->name))));
}

/* Run the streams of a leaf over the rows of a batch; or, if rows is NULL, its alerts for what has changed otherwise. */
static void
run_streams(Leaf *leaf, BatchWork *batch, Tuplestorestate *rows, List *changes)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace batch", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	ListCell *lc;

	foreach (lc, leaf->streams)
	{
		Stream *stream = lfirst(lc);
		ErrorContextCallback callback = {error_context_stack, stream_error_context, stream};
		double start = mr_now_ms();
		StreamWork *counts;
		Attempt arg = {.stream = stream, .leaf = leaf, .rows = rows, .changes = changes};
		double ms;

		if (rows == NULL && stream->kind != STREAM_ALERT)
			continue;
		counts = arg.counts = stream_work(batch, stream->name);
		if (leaf->has_alerts && is_aggregate(stream))
		{
			Change *change = MemoryContextAllocZero(old, sizeof(Change));

			MemoryContextSwitchTo(old);
			change->target = stream->target;
			mr_times_init(&change->panes);
			changes = lappend(changes, change);
			arg.panes = &change->panes;
			MemoryContextSwitchTo(context);
		}
		error_context_stack = &callback;
		note_stream(counts, stream);
		if (stream->is_suspended)
			keep_rows(stream, leaf, rows, stream->reason);
		else if (stream->may_fail)
			try_stream(&arg);
		else
			handle(&arg);
		error_context_stack = callback.previous;

		ms = mr_now_ms() - start;
		counts->ms += ms;
		batch->ms += ms;
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

void
mr_mark_table(Oid rel, const char *reason)
{
	Leaf *leaf;
	ListCell *lc;

	register_callbacks();
	leaf = get_leaf(rel);
	foreach (lc, leaf->streams)
		if (is_aggregate(lfirst(lc)))
			mark_windows(lfirst(lc), leaf, NULL, NULL, reason);
}

/* Of an UPDATE or DELETE the rows that have gone and come; without rows, a TRUNCATE. */
static void
change_history(Stream *stream, Leaf *leaf, Tuplestorestate *old_rows, Tuplestorestate *new_rows)
{
	ErrorContextCallback callback = {error_context_stack, stream_error_context, stream};
	StreamWork counts = {0};
	Attempt arg = {.stream = stream, .leaf = leaf, .counts = &counts, .rows = new_rows, .old_rows = old_rows};

	if (stream->is_suspended)
		return;
	error_context_stack = &callback;
	if (old_rows || new_rows)
		try_stream(&arg);
	else
		mr_track_truncated(stream->name, leaf->source, leaf->relid);
	error_context_stack = callback.previous;
}

/* UPDATE, DELETE or TRUNCATE: the windows that it touches are to be computed anew. */
static void
mark_change(TriggerData *trigger)
{
	Tuplestorestate *old_rows = trigger->tg_oldtable, *new_rows = trigger->tg_newtable;
	const char *reason = "truncate";
	Leaf *leaf;
	ListCell *lc;

	if (!TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event))
	{
		reason = TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ? "delete" : "update";
		if (old_rows == NULL || (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) && new_rows == NULL))
			ereport(ERROR,
					(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
					 errmsg(MR_SCHEMA ".on_batch() needs the transition tables of an %s", reason),
					 errhint("Let " MR_SCHEMA ".create_source create the trigger.")));
		if (tuplestore_tuple_count(old_rows) == 0 &&
			(new_rows == NULL || tuplestore_tuple_count(new_rows) == 0))
			return;
	}
	register_callbacks();
	leaf = get_leaf(RelationGetRelid(trigger->tg_relation));
	foreach (lc, leaf->streams)
		if (is_aggregate(lfirst(lc)))
			mark_windows(lfirst(lc), leaf, old_rows, new_rows, reason);
		else if (((Stream *) lfirst(lc))->kind == STREAM_HISTORY)
			change_history(lfirst(lc), leaf, old_rows, new_rows);
}

Datum
mr_on_batch(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	BatchWork *batch;
	Leaf *leaf;
	int64 n_rows;

	if (CALLED_AS_TRIGGER(fcinfo) && TRIGGER_FIRED_AFTER(trigger->tg_event) &&
		TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) && !TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
	{
		mark_change(trigger);
		return PointerGetDatum(NULL);
	}
	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) || trigger->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg(MR_SCHEMA ".on_batch() must be an AFTER INSERT statement trigger with a NEW TABLE"),
				 errhint("Let " MR_SCHEMA ".create_source create the trigger.")));
	n_rows = tuplestore_tuple_count(trigger->tg_newtable);
	if (n_rows == 0)
		return PointerGetDatum(NULL);
	register_callbacks();
	leaf = get_leaf(RelationGetRelid(trigger->tg_relation));
	if (!OidIsValid(leaf->source))
		return PointerGetDatum(NULL);
	batch = batch_work(leaf->source);
	batch->rows += n_rows;
	run_streams(leaf, batch, trigger->tg_newtable, NIL);
	return PointerGetDatum(NULL);
}

void
mr_alerts_changed(Oid source, Oid target, const MrTimes *panes)
{
	Leaf *leaf;
	Change change = {target};

	register_callbacks();
	leaf = get_leaf(source);
	if (!leaf->has_alerts)
		return;
	mr_times_init(&change.panes);
	if (panes)
		mr_times_merge(&change.panes, panes);
	run_streams(leaf, batch_work(leaf->source), NULL, list_make1(&change));
}

/*
 * _pipe_target(source regclass, command text) returns regclass: checks the command, as the caller, and returns the
 * table it fills
 */
Datum
mr_pipe_target(PG_FUNCTION_ARGS)
{
	char *command = text_to_cstring(PG_GETARG_TEXT_PP(1));
	SPIPlanPtr plan = NULL;
	Relation source = table_open(PG_GETARG_OID(0), AccessShareLock);
	volatile Oid target = InvalidOid;

	for (int i = 0; i < RelationGetDescr(source)->natts; i++)
		if (TupleDescAttr(RelationGetDescr(source), i)->attgenerated == 'v')
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("pipes over tables with virtual generated columns are not supported"),
					 errdetail("Column \"%s\" is not in the rows of a batch.",
							   NameStr(TupleDescAttr(RelationGetDescr(source), i)->attname))));
	SPI_connect();
	SPI_register_relation(mr_new_rows_relation(MR_NEW_ROWS, RelationGetRelid(source), NULL));
	mr_prepare(&plan, command, 0, NULL);
	PG_TRY();
	{
		target = pipe_target(plan, command);
	}
	PG_FINALLY();
	{
		SPI_freeplan(plan);
	}
	PG_END_TRY();
	SPI_finish();
	check_constraints(target);
	table_close(source, NoLock);
	PG_RETURN_OID(target);
}
