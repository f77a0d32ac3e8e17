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

#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/partition.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

PG_FUNCTION_INFO_V1(mr_on_batch);
PG_FUNCTION_INFO_V1(mr_pipe_target);

#define MAX_LEAVES 4096

typedef struct Stream
{
	char *name;
	bool is_pipe;
	Oid owner;
	ArrayType *settings;
	char *command;				/* pipe */
	Oid target;					/* … the table it fills */
	SPIPlanPtr pipe;			/* … NULL until first used */
	Oid definition;				/* continuous aggregate: its view NAME_query */
	Oid state;					/* … its state table */
	MrAggregatePlan *aggregate; /* … NULL until first used */
	uint64 planned_at;			/* … Leaf.n_changes when it was planned */
} Stream;

typedef struct Leaf
{
	Oid relid;
	bool valid;
	uint64 n_changes;
	MemoryContext context; /* holds the Leaf itself */
	Oid source;			   /* InvalidOid: no source */
	List *streams;
	List *depends; /* relations whose change makes the plans stale */
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
			if (((Stream *) lfirst(lc2))->pipe)
				SPI_freeplan(((Stream *) lfirst(lc2))->pipe);
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
	mr_exec_args("SELECT s.source, t.name, t.kind = 'pipe', coalesce(c.relowner, t.owner), t.settings, "
				 "t.command, t.target,"
				 " t.definition, t.state, o.relowner"
				 " FROM " MR_SCHEMA ".sources s JOIN pg_catalog.pg_class o ON o.oid = s.source"
				 " LEFT JOIN " MR_SCHEMA
				 ".stream t ON t.source = s.source LEFT JOIN pg_catalog.pg_class c ON c.oid = t.state"
				 " WHERE s.source = ANY ($1) ORDER BY t.seq",
				 SPI_OK_SELECT, true, 1, types, values, NULL);
	spi = MemoryContextSwitchTo(leaf->context);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		Stream *stream = palloc0(sizeof(Stream));
		bool isnull;

		leaf->source = DatumGetObjectId(SPI_getbinval(tuple, desc, 1, &isnull));
		stream->name = SPI_getvalue(tuple, desc, 2);
		if (stream->name == NULL)
			continue;
		stream->name = pstrdup(stream->name);
		stream->is_pipe = DatumGetBool(SPI_getbinval(tuple, desc, 3, &isnull));
		stream->owner = DatumGetObjectId(SPI_getbinval(tuple, desc, 4, &isnull));
		stream->settings = DatumGetArrayTypePCopy(SPI_getbinval(tuple, desc, 5, &isnull));
		stream->command = SPI_getvalue(tuple, desc, 6);
		stream->target = DatumGetObjectId(SPI_getbinval(tuple, desc, 7, &isnull));
		stream->definition = DatumGetObjectId(SPI_getbinval(tuple, desc, 8, &isnull));
		stream->state = DatumGetObjectId(SPI_getbinval(tuple, desc, 9, &isnull));
		check_rights(stream, DatumGetObjectId(SPI_getbinval(tuple, desc, 10, &isnull)), leaf->source);
		leaf->depends =
			lappend_oid(lappend_oid(lappend_oid(leaf->depends, leaf->source), stream->target), stream->state);
		leaf->streams = lappend(leaf->streams, stream);
	}
	MemoryContextSwitchTo(spi);
	SPI_finish();
	PopActiveSnapshot();
	mr_leave(&guard);
}

static Leaf *
get_leaf(Oid relid)
{
	LeafEntry *entry;
	Leaf *leaf;
	MemoryContext context;
	uint64 n_before;

	if (leaves == NULL)
	{
		HASHCTL ctl = {.keysize = sizeof(Oid), .entrysize = sizeof(LeafEntry)};

		leaves = hash_create("millrace leaves", 64, &ctl, HASH_ELEM | HASH_BLOBS);
		CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, invalidate_all, (Datum) 0);
	}
	entry = hash_search(leaves, &relid, HASH_FIND, NULL);
	if (entry && entry->leaf && entry->leaf->valid)
		return entry->leaf;

	if (entry == NULL && hash_get_num_entries(leaves) >= MAX_LEAVES)
	{
		HASH_SEQ_STATUS scan;
		LeafEntry *old;

		hash_seq_init(&scan, leaves);
		while ((old = hash_seq_search(&scan)) != NULL)
		{
			if (old->leaf)
				retire(old);
			hash_search(leaves, &old->relid, HASH_REMOVE, NULL);
		}
	}
	if (entry && entry->leaf)
		retire(entry);

	/* Built below the current context, so that an error takes it away; kept when complete. */
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace leaf", ALLOCSET_SMALL_SIZES);
	leaf = MemoryContextAllocZero(context, sizeof(Leaf));
	leaf->relid = relid;
	leaf->context = context;
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

static void
count_stream(BatchWork *batch, const char *name, uint64 rows, double ms)
{
	MemoryContext old = MemoryContextSwitchTo(TopTransactionContext);
	StreamWork *stream = NULL;
	ListCell *lc;

	foreach (lc, batch->streams)
		if (strcmp(((StreamWork *) lfirst(lc))->name, name) == 0)
			stream = lfirst(lc);
	if (stream == NULL)
	{
		stream = palloc0(sizeof(StreamWork));
		stream->name = pstrdup(name);
		batch->streams = lappend(batch->streams, stream);
	}
	stream->rows += rows;
	stream->ms += ms;
	MemoryContextSwitchTo(old);
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

		count_stream(into, stream->name, stream->rows, stream->ms);
	}
}

/* {"purchases": {"rows": 12, "ms": 0.4}, …} */
static Datum
streams_json(List *streams)
{
	JsonbParseState *state = NULL;
	JsonbValue value;
	ListCell *lc;

	pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	foreach (lc, streams)
	{
		StreamWork *stream = lfirst(lc);

		value.type = jbvString;
		value.val.string.val = stream->name;
		value.val.string.len = strlen(stream->name);
		pushJsonbValue(&state, WJB_KEY, &value);
		pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
		value.val.string.val = "ms";
		value.val.string.len = 2;
		pushJsonbValue(&state, WJB_KEY, &value);
		value.type = jbvNumeric;
		value.val.numeric =
			DatumGetNumeric(DirectFunctionCall3(numeric_in, CStringGetDatum(psprintf("%.3f", stream->ms)),
												ObjectIdGetDatum(InvalidOid), Int32GetDatum(-1)));
		pushJsonbValue(&state, WJB_VALUE, &value);
		value.type = jbvString;
		value.val.string.val = "rows";
		value.val.string.len = 4;
		pushJsonbValue(&state, WJB_KEY, &value);
		value.type = jbvNumeric;
		value.val.numeric = int64_to_numeric((int64) stream->rows);
		pushJsonbValue(&state, WJB_VALUE, &value);
		pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	}
	return JsonbPGetDatum(JsonbValueToJsonb(pushJsonbValue(&state, WJB_END_OBJECT, NULL)));
}

static void
write_work(void)
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
		Datum values[6];
		bool nulls[6] = {false};
		HeapTuple tuple;

		values[0] = FullTransactionIdGetDatum(GetTopFullTransactionId());
		values[1] = ObjectIdGetDatum(batch->source);
		values[2] = TimestampTzGetDatum(batch->started);
		values[3] = Int64GetDatum((int64) batch->rows);
		values[4] = Float8GetDatum(batch->ms);
		values[5] = streams_json(batch->streams);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);
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
				write_work();
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

/*
 * Running the streams
 */

static void
stream_error_context(void *arg)
{
	errcontext("millrace stream \"%s\"", ((Stream *) arg)->name);
}

static EphemeralNamedRelation
new_rows_relation(Oid relid, Tuplestorestate *rows)
{
	EphemeralNamedRelation enr = palloc0(sizeof(EphemeralNamedRelationData));

	enr->md.name = MR_NEW_ROWS;
	enr->md.reliddesc = relid;
	enr->md.enrtype = ENR_NAMED_TUPLESTORE;
	enr->md.enrtuples = rows ? tuplestore_tuple_count(rows) : 0;
	enr->reldata = rows;
	return enr;
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

static uint64
run_pipe(Stream *stream, Oid relid, Tuplestorestate *rows)
{
	SPIPlanPtr plan;
	uint64 n_written;
	int rc;

	SPI_connect();
	if (SPI_register_relation(new_rows_relation(relid, rows)) < 0)
		elog(ERROR, "could not register the rows of the batch");
	plan = mr_prepare(&stream->pipe, stream->command, 0, NULL);
	if (pipe_target(plan, stream->command) != stream->target)
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
run_aggregate(Stream *stream, Leaf *leaf, Tuplestorestate *rows)
{
	QueryEnvironment *env = create_queryEnv();
	uint64 n_written;

	/* A kept plan is good if nothing has changed once its relations are locked; a new one has locked them itself. */
	if (stream->aggregate)
		mr_aggregate_lock(stream->aggregate);
	if (stream->aggregate == NULL || leaf->n_changes != stream->planned_at)
	{
		stream->aggregate = NULL;
		stream->planned_at = leaf->n_changes;
		stream->aggregate =
			mr_aggregate_plan(stream->definition, leaf->relid, stream->state, leaf->context, &leaf->depends);
	}
	register_ENR(env, new_rows_relation(leaf->relid, rows));
	PushActiveSnapshot(GetTransactionSnapshot());
	n_written = mr_aggregate_run(stream->aggregate, env);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return n_written;
}

static void
run_streams(Leaf *leaf, BatchWork *batch, Tuplestorestate *rows)
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
		double ms;
		uint64 n_written;
		MrGuard guard;

		error_context_stack = &callback;
		mr_enter(&guard, stream->owner, stream->settings);
		n_written = stream->is_pipe ? run_pipe(stream, leaf->relid, rows) : run_aggregate(stream, leaf, rows);
		mr_leave(&guard);
		error_context_stack = callback.previous;

		ms = mr_now_ms() - start;
		count_stream(batch, stream->name, n_written, ms);
		batch->ms += ms;
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}

Datum
mr_on_batch(PG_FUNCTION_ARGS)
{
	static bool registered = false;
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	BatchWork *batch;
	Leaf *leaf;
	int64 n_rows;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) || !TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		trigger->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg(MR_SCHEMA ".on_batch() must be an AFTER INSERT statement trigger with a NEW TABLE"),
				 errhint("Let " MR_SCHEMA ".create_source create the trigger.")));
	n_rows = tuplestore_tuple_count(trigger->tg_newtable);
	if (n_rows == 0)
		return PointerGetDatum(NULL);
	if (!registered)
	{
		RegisterXactCallback(on_xact_event, NULL);
		RegisterSubXactCallback(on_subxact_event, NULL);
		registered = true;
	}
	leaf = get_leaf(RelationGetRelid(trigger->tg_relation));
	if (!OidIsValid(leaf->source))
		return PointerGetDatum(NULL);
	batch = batch_work(leaf->source);
	batch->rows += n_rows;
	run_streams(leaf, batch, trigger->tg_newtable);
	return PointerGetDatum(NULL);
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
	SPI_register_relation(new_rows_relation(RelationGetRelid(source), NULL));
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
