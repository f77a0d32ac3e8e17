/*
 * The transaction of a batch.
 *
 * store_batch() is one transaction: a lock on the table, COPY per leaf, dead letters, and the compare-and-set of the
 * positions last.  Each COPY but the first stands behind a savepoint (several do where there are very many).  When the server refuses a
 * row for its data, the rows of that COPY are sifted: see sift().  A constraint that fails only at COMMIT is found in a
 * second try of the transaction, with constraints checked at once.  What a trigger, pipe or aggregate refuses becomes a
 * dead letter only when it is seen to accept another row: see judge_suspects().
 *
 * Connection lost before COMMIT was sent: the server has rolled back, the batch is stored again.  Lost after: the
 * position tells whether it was stored (a backend that is still committing holds its row's lock, and FOR UPDATE waits).
 */
#include "sink.h"

#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define SEND_BYTES ((size_t) 65536)
#define PROBED_ROWS 64
#define MOST_IN_TURN 16 /* rows that handlers refuse, with none accepted between them: it is not the rows */
#define WITNESS_BYTES 65536 /* a longer row is none */
#define VAIN_FACTOR \
	4 /* so many times the rows of a group are sent in vain before they are sent in small pieces */
#define MOST_SAVEPOINTS 32 /* with 64 others see the transaction as a large one */

/* ---- rows ---- */

static Group *
group_of(Sink *sink, int leaf, uint64_t omitted)
{
	int *link = &sink->leaf_groups[leaf + 1];

	while (*link >= 0)
	{
		Group *group = &sink->groups[*link];

		if (group->omitted == omitted)
			return group;
		link = &group->same_leaf;
	}
	*link = sink->n_groups;
	if (sink->n_groups == sink->group_capacity)
	{
		int capacity = sink->group_capacity ? sink->group_capacity * 2 : 64;
		/* link may point into the array that moves: it is set already. */
		sink->groups = mem_grow(sink->groups, (size_t) capacity, sizeof(Group));
		sink->group_capacity = capacity;
	}
	Group *group = &sink->groups[sink->n_groups++];
	*group = (Group){.leaf = leaf, .omitted = omitted, .first = -1, .last = -1, .same_leaf = -1};
	return group;
}

static void
group_append(Sink *sink, Group *group, int first, int last, int n_rows)
{
	if (group->last >= 0)
		sink->batch->rows[group->last].next = first;
	else
		group->first = first;
	sink->batch->rows[last].next = -1;
	group->last = last;
	group->n_rows += n_rows;
}

/* Which COPY takes which rows; small groups go together through the parent.  Returns the number of rows. */
static int
group_rows(Sink *sink)
{
	Batch *batch = sink->batch;
	int n_rows = 0;

	sink->n_groups = 0;
	sink->leaf_groups = mem_grow(sink->leaf_groups, (size_t) sink->leaves->n_leaves + 1, sizeof(int));
	for (int i = 0; i <= sink->leaves->n_leaves; i++)
		sink->leaf_groups[i] = -1;
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		if (row->dead != NULL || row->is_dropped)
			continue;
		group_append(sink, group_of(sink, row->leaf, row->omitted), i, i, 1);
		n_rows++;
	}
	int n_leaf_groups = sink->n_groups;
	for (int i = 0; n_leaf_groups > 1 && i < n_leaf_groups; i++)
	{
		Group small = sink->groups[i];

		if (small.leaf == LEAF_PARENT || small.n_rows >= PARENT_BELOW_ROWS)
			continue;
		sink->groups[i].n_rows = 0;
		Group *parent = group_of(sink, LEAF_PARENT, small.omitted);
		group_append(sink, parent, small.first, small.last, small.n_rows);
	}
	sink->order = mem_grow(sink->order, (size_t) n_rows + 1, sizeof(int));
	return n_rows;
}

/* ---- savepoints ---- */

/*
 * What has to run ahead of the next COPY of the transaction.  is_new: what is stored so far is kept whatever becomes of
 * that COPY; otherwise it goes back as far as the savepoint that there is.
 */
static const char *
savepoint_text(Sink *sink, bool is_new)
{
	switch (sink->savepoint)
	{
		case SAVEPOINT_NONE:
			sink->savepoint = SAVEPOINT_START;
			return "";
		case SAVEPOINT_START_FAILED:
			sink->savepoint = SAVEPOINT_START;
			return sink->begin.data;
		case SAVEPOINT_FAILED:
			sink->savepoint = SAVEPOINT_SET;
			return "ROLLBACK TO SAVEPOINT millrace_rows; ";
		case SAVEPOINT_START:
			if (is_new)
				sink->savepoint = SAVEPOINT_SET;
			return is_new ? "SAVEPOINT millrace_rows; " : "";
		case SAVEPOINT_SET:
			break;
	}
	return is_new ? "RELEASE SAVEPOINT millrace_rows; SAVEPOINT millrace_rows; " : "";
}

/* What came behind the last savepoint failed, or is not wanted. */
static void
savepoint_fail(Sink *sink)
{
	if (sink->savepoint == SAVEPOINT_START)
		sink->savepoint = SAVEPOINT_START_FAILED;
	else if (sink->savepoint == SAVEPOINT_SET)
		sink->savepoint = SAVEPOINT_FAILED;
}

/* After a COPY that failed the transaction takes no other statement. */
static SinkStatus
savepoint_settle(Sink *sink)
{
	if (sink->savepoint != SAVEPOINT_FAILED && sink->savepoint != SAVEPOINT_START_FAILED)
		return SINK_OK;
	return sink_run(sink, savepoint_text(sink, false), 0, NULL, NULL);
}

/* ---- COPY ---- */

static void
copy_statement(Sink *sink, const Group *group, bool is_new)
{
	bool is_first = true;

	sink->sql.n_bytes = 0;
	buffer_printf(&sink->sql, "%sCOPY %s (", savepoint_text(sink, is_new),
				  group->leaf >= 0 ? sink->leaves->list[group->leaf].name : sink->table->name);
	for (int i = 0; i < sink->columns->n_columns; i++)
	{
		int bit = sink->columns->default_bit[i];

		if (bit >= 0 && (group->omitted >> bit & 1))
			continue;
		buffer_printf(&sink->sql, "%s%s", is_first ? "" : ", ", sink->columns->columns[i]->quoted);
		is_first = false;
	}
	buffer_printf(&sink->sql, ") FROM STDIN");
}

/* Takes the remaining results of a COPY.  The first error counts. */
static SinkStatus
copy_results(Sink *sink, bool *is_data)
{
	SinkStatus status = SINK_OK;
	PGresult *result;

	while ((result = PQgetResult(sink->connection)) != NULL)
	{
		ExecStatusType kind = PQresultStatus(result);

		if (kind != PGRES_COMMAND_OK && status == SINK_OK)
			status = sink_judge(sink, result, is_data);
		PQclear(result);
		if (kind == PGRES_COPY_IN) /* cannot be; would never end */
			return SINK_LOST;
	}
	if (status == SINK_OK && PQstatus(sink->connection) != CONNECTION_OK)
		return SINK_LOST;
	return status;
}

static bool
send_flush(Sink *sink)
{
	bool is_sent = sink->send.n_bytes == 0 ||
		PQputCopyData(sink->connection, sink->send.data, (int) sink->send.n_bytes) == 1;

	sink->send.n_bytes = 0;
	return is_sent;
}

/* Starts a COPY; what follows are bytes, then copy_end(). */
static SinkStatus
copy_begin(Sink *sink, const char *sql, bool *is_data)
{
	PGresult *result = PQexec(sink->connection, sql);
	SinkStatus status = SINK_OK;

	if (PQresultStatus(result) != PGRES_COPY_IN)
		status = sink_judge(sink, result, is_data);
	sink->send.n_bytes = 0;
	PQclear(result);
	return status;
}

static SinkStatus
copy_end(Sink *sink, bool is_sent, bool *is_data)
{
	if (!is_sent || !send_flush(sink) || PQputCopyEnd(sink->connection, NULL) != 1)
	{
		SinkStatus status = copy_results(sink, is_data);

		return status == SINK_OK ? SINK_LOST : status;
	}
	return copy_results(sink, is_data);
}

static const char *
group_relation(const Sink *sink, const Group *group)
{
	return group->leaf >= 0 ? sink->leaves->list[group->leaf].relation : sink->table->relation;
}

static void
rows_moved(Sink *sink, const int *order, int n_rows)
{
	for (int i = 0; i < n_rows; i++)
		if (sink->batch->rows[order[i]].n_moved < UINT8_MAX)
			sink->batch->rows[order[i]].n_moved++;
}

/* The row that the last data error names, as an index into order, or -1. */
static int
named_row(const Sink *sink, const Group *group, int n_rows)
{
	const char *relation = group_relation(sink, group);
	int64_t line = copy_context_line(sink->context, relation);

	/* The encoding is checked block by block, ahead of the lines: the number is of another one. */
	if (strcmp(sink->sqlstate, "22021") == 0 || strcmp(sink->sqlstate, "22P05") == 0)
		return -1;
	/* So are the sizes, but of a single value. */
	if (strncmp(sink->sqlstate, "54", 2) == 0 && !copy_context_has_column(sink->context, relation))
		return -1;
	return line >= 1 && line <= n_rows ? (int) line - 1 : -1;
}

/* A data error that a range of partitions explains is not the row's fault until the ranges were read again. */
static bool
has_moved(Sink *sink, const Group *group, const int *order, int n_rows)
{
	if (!sink->is_unnamed_check)
		return false;
	/* The leaf's range is not what it was. */
	if (group->leaf >= 0)
	{
		rows_moved(sink, order, n_rows);
		return true;
	}
	/* The table has no partition for a row that had one a moment ago. */
	int named = sink->table->is_routed ? named_row(sink, group, n_rows) : -1;
	Row *row = named >= 0 ? &sink->batch->rows[order[named]] : NULL;

	if (row == NULL || row->n_moved >= 2 || (row->time_us == NO_TIME && !row->is_defaulted))
		return false;
	row->n_moved++;
	return true;
}

static SinkStatus
send_rows(Sink *sink, const Group *group, const int *order, int n_rows, bool *is_data)
{
	bool is_sent = true;
	SinkStatus status = copy_begin(sink, sink->sql.data, is_data);

	if (status != SINK_OK)
	{
		/* The leaf may be gone since its range was read. */
		if (status == SINK_RETRY && group->leaf >= 0 && !*is_data)
		{
			rows_moved(sink, order, n_rows);
			return SINK_MOVED;
		}
		return status;
	}
	for (int i = 0; i < n_rows && is_sent; i++)
	{
		const Row *row = &sink->batch->rows[order[i]];

		if (row->copy_bytes >= SEND_BYTES)
			is_sent =
				send_flush(sink) && PQputCopyData(sink->connection, row->copy, (int) row->copy_bytes) == 1;
		else
		{
			buffer_add(&sink->send, row->copy, row->copy_bytes);
			if (sink->send.n_bytes >= SEND_BYTES)
				is_sent = send_flush(sink);
		}
	}
	status = copy_end(sink, is_sent, is_data);
	if (*is_data && has_moved(sink, group, order, n_rows))
	{
		*is_data = false;
		return SINK_MOVED;
	}
	return status;
}

/* One COPY of the rows order[0 .. n_rows) of a group.  is_new: see savepoint_text(). */
static SinkStatus
copy_rows(Sink *sink, const Group *group, const int *order, int n_rows, bool is_new, bool *is_data)
{
	*is_data = false;
	copy_statement(sink, group, is_new);
	sink->copying = group_relation(sink, group);
	SinkStatus status = send_rows(sink, group, order, n_rows, is_data);
	sink->copying = NULL;
	if (status == SINK_OK)
		return SINK_OK;
	savepoint_fail(sink);
	/* A statement that takes too long: the next try has smaller ones. */
	if (status == SINK_RETRY && !*is_data && strcmp(sink->sqlstate, "57014") == 0 && n_rows > 1)
		sink->most_rows = n_rows / 2;
	return status;
}

/* ---- whose fault it is ---- */

static bool
is_target(const Sink *sink)
{
	const Leaves *leaves = sink->leaves;

	if (strcmp(sink->schema, sink->table->schema) == 0 && strcmp(sink->relation, sink->table->relation) == 0)
		return true;
	for (int i = 0; i < leaves->n_leaves; i++)
		if (strcmp(sink->relation, leaves->list[i].relation) == 0 &&
			strcmp(sink->schema, leaves->list[i].schema) == 0)
			return true;
	return false;
}

/*
 * Is the last data error certainly the row's?  COPY's own errors have nothing but COPY's line in their context: those of a
 * value name the column, a constraint has a class of its own.  What fails without either is an expression of the table (a
 * CHECK, a DEFAULT), and may fail for every row.  A constraint of the target names the table, also where it is checked
 * after COPY (a foreign key).  Everything else comes from a trigger, a pipe or an aggregate: a handler.
 */
static bool
is_rows_fault(const Sink *sink, const Group *group)
{
	const char *relation = group_relation(sink, group);
	bool is_constraint = strncmp(sink->sqlstate, "23", 2) == 0;

	if (copy_context_is_plain(sink->context, relation))
		return is_constraint || copy_context_has_column(sink->context, relation) ||
			strncmp(sink->sqlstate, "54", 2) == 0 || strcmp(sink->sqlstate, "22021") == 0 ||
			strcmp(sink->sqlstate, "22P05") == 0;
	return is_constraint && is_target(sink);
}

/* Does a foreign key of the table point to the table itself?  Asked once. */
static SinkStatus
is_self_referencing(Sink *sink, bool *answer)
{
	char oid[16];
	const char *params[] = {oid};
	PGresult *result;

	if (sink->self_reference == ANSWER_UNKNOWN)
	{
		SinkStatus status = savepoint_settle(sink);

		if (status != SINK_OK)
			return status;
		snprintf(oid, sizeof oid, "%" PRIu32, sink->table->oid);
		status =
			sink_run(sink,
					 "SELECT 1 FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conrelid = $1::oid"
					 " AND confrelid IN (conrelid, pg_catalog.pg_partition_root($1::oid::regclass)) LIMIT 1",
					 1, params, &result);
		if (status != SINK_OK)
			return status;
		sink->self_reference = PQntuples(result) == 1 ? ANSWER_YES : ANSWER_NO;
		PQclear(result);
	}
	*answer = sink->self_reference == ANSWER_YES;
	return SINK_OK;
}

static SinkStatus
not_the_data(Sink *sink)
{
	sink->wants_offer = true;
	log_line(LOG_ERROR, "every row is refused, so the fault is not in the data: %s", sink->suspicion);
	return SINK_BROKEN;
}

/*
 * A handler has refused two rows of a large group and accepted none: rows from all over the group tell whether it accepts
 * any.  Other rows every time, so that a handler which accepts few is found out when the batch is tried again.
 */
static SinkStatus
probe(Sink *sink, Group *group, const int *order, int n_rows)
{
	int n_probes = n_rows < PROBED_ROWS ? n_rows : PROBED_ROWS, n_refused = 0;

	for (int i = 0; i < n_probes; i++)
	{
		bool is_data;
		int64_t at = ((int64_t) i * n_rows + random() % n_rows) / n_probes;
		SinkStatus status = copy_rows(sink, group, &order[at], 1, true, &is_data);

		if (status != SINK_OK && !is_data)
			return status;
		savepoint_fail(sink); /* its turn comes later */
		group->is_accepting = status == SINK_OK;
		if (group->is_accepting)
			return SINK_OK;
		n_refused += !is_rows_fault(sink, group);
	}
	return n_refused > 0 ? not_the_data(sink) : SINK_OK;
}

/* The last data error is of this row.  order: what is left of the group. */
static SinkStatus
refuse_row(Sink *sink, Group *group, int number, const int *order, int n_rows)
{
	Row *row = &sink->batch->rows[number];
	bool is_own = is_rows_fault(sink, group), may_wait = false;

	log_line(LOG_DEBUG, "batch %" PRId64 ": row refused: %s (SQLSTATE %s)", sink->batch->number, sink->reason,
			 sink->sqlstate);
	DeadLetter *dead = row_kill(sink->batch, row, "store", sink->sqlstate, sink->reason);
	if (is_own)
	{
		/* What it refers to may be a row that another statement of this batch stores. */
		SinkStatus status =
			strcmp(sink->sqlstate, "23503") == 0 ? is_self_referencing(sink, &may_wait) : SINK_OK;
		dead->is_aside = dead->is_suspect = may_wait;
		return status;
	}
	dead->is_suspect = true;
	free(sink->suspicion);
	sink->suspicion = mem_printf("%s (SQLSTATE %s)%s%s", sink->reason, sink->sqlstate,
								 sink->context[0] ? "; context: " : "", sink->context);
	if (++group->n_suspects != 2 || group->is_accepting || n_rows <= MOST_IN_TURN)
		return SINK_OK;
	return probe(sink, group, order, n_rows);
}

/* The handlers' answer to a row that was accepted once.  A row that the table itself refuses says nothing. */
static SinkStatus
ask_witness(Sink *sink, const Witness *witness, Answer *answer)
{
	Group group = {.leaf = LEAF_PARENT, .omitted = witness->omitted};
	bool is_data = false;

	*answer = ANSWER_UNKNOWN;
	if (witness->line.n_bytes == 0)
		return SINK_OK;
	copy_statement(sink, &group, true);
	sink->copying = sink->table->relation;
	SinkStatus status = copy_begin(sink, sink->sql.data, &is_data);
	if (status == SINK_OK)
	{
		buffer_add(&sink->send, witness->line.data, witness->line.n_bytes);
		status = copy_end(sink, true, &is_data);
	}
	sink->copying = NULL;
	savepoint_fail(sink);
	if (status != SINK_OK && !is_data)
		return status;
	*answer = status == SINK_OK ? ANSWER_YES : is_rows_fault(sink, &group) ? ANSWER_UNKNOWN : ANSWER_NO;
	return SINK_OK;
}

/* A row that came later: the handlers accept what is new. */
static SinkStatus
ask_offered(Sink *sink, Answer *answer)
{
	Witness offered;

	pthread_mutex_lock(&sink->offer_lock);
	offered = sink->offered;
	sink->offered = (Witness){0};
	pthread_mutex_unlock(&sink->offer_lock);
	SinkStatus status = ask_witness(sink, &offered, answer);
	buffer_free(&offered.line);
	return status;
}

/*
 * Nothing becomes a dead letter because of a handler that accepts no row.  Where it has accepted none of a group, the
 * last row that was stored, or one of the rest of the batch, must show that it accepts any; and that is believed for a few
 * rows in turn only.
 */
static SinkStatus
judge_suspects(Sink *sink, const Group *group)
{
	Answer answer = sink->n_accepted > 0 ? ANSWER_YES : ANSWER_UNKNOWN;
	SinkStatus status = SINK_OK;

	if (group->n_suspects == 0 || group->is_accepting)
		return SINK_OK;
	if (sink->n_in_turn + group->n_suspects > MOST_IN_TURN)
		answer = ANSWER_NO;
	else if (answer == ANSWER_UNKNOWN)
		status = ask_witness(sink, &sink->witness, &answer);
	if (status == SINK_OK && answer != ANSWER_YES)
		status = ask_offered(sink, &answer);
	if (status != SINK_OK)
		return status;
	return answer == ANSWER_YES ? SINK_OK : not_the_data(sink);
}

/* ---- rows, group by group ---- */

/*
 * Stores the rows order[0 .. n_rows) of a group but for those that are refused; order is used up.  is_refused: one COPY of
 * all of them has just failed for its data.
 *
 * Where the error names a row, the rows before it are stored, and those behind it are the next to be tried.  Where it does
 * not, the rows are halved: what is accepted stays, and one row that is refused alone is the one; behind it, all are tried
 * together again.  So a bad row costs two COPYs, or the binary logarithm of the rows.  What was sent in vain is bounded:
 * where bad rows are dense, no more rows are tried together than lie between two of them.
 */
static SinkStatus
sift(Sink *sink, Group *group, int *order, int n_rows, bool is_refused)
{
	int64_t n_vain = 0, most_vain = (int64_t) n_rows * VAIN_FACTOR;
	int n_try = n_rows < sink->most_rows ? n_rows : sink->most_rows;
	int n_guilty = 0;	 /* one of the first so many is refused; 0: none is known to be */
	int n_since = 0;	 /* accepted since the last that was refused */
	int n_gap = INT_MAX; /* tried together */

	while (n_rows > 0)
	{
		bool is_data = is_refused;
		SinkStatus status = is_refused ? SINK_RETRY : copy_rows(sink, group, order, n_try, true, &is_data);

		if (status != SINK_OK && !is_data)
			return status;
		is_refused = false;
		if (status == SINK_OK)
		{
			sink->n_accepted += n_try;
			group->is_accepting = true;
			order += n_try;
			n_rows -= n_try;
			n_since += n_try;
			n_guilty = n_guilty > n_try ? n_guilty - n_try : 0;
			if (n_try >= n_gap)
				n_gap = n_gap > INT_MAX / 2 ? INT_MAX : n_gap * 2;
			n_try = n_guilty > 0 ? (n_guilty + 1) / 2 : n_rows;
		}
		else
		{
			int named = n_try == 1 ? 0 : named_row(sink, group, n_try);

			n_vain += n_try;
			if (named < 0)
			{
				n_guilty = n_try;
				n_try /= 2;
				continue;
			}
			int bad = order[named];
			memmove(order + 1, order, sizeof(int) * (size_t) named);
			order++;
			n_rows--;
			if ((status = refuse_row(sink, group, bad, order, n_rows)) != SINK_OK)
				return status;
			n_since += named;
			n_gap = n_vain <= most_vain ? INT_MAX : n_since > 0 && n_since < INT_MAX / 2 ? 2 * n_since : 1;
			n_since = -named; /* they are yet to be stored */
			n_guilty = 0;
			/* Rows that refer to each other are best stored by one statement. */
			n_try = named > 0 && sink->self_reference != ANSWER_YES ? named : n_rows;
		}
		if (n_try > n_gap)
			n_try = n_gap;
		if (n_try > sink->most_rows)
			n_try = sink->most_rows;
	}
	return SINK_OK;
}

/* The rows of a group, into order. */
static int
group_order(const Sink *sink, const Group *group, int *order)
{
	int n_rows = 0;

	for (int row = group->n_rows ? group->first : -1; row >= 0; row = sink->batch->rows[row].next)
		order[n_rows++] = row;
	return n_rows;
}

/* A group that was refused as a whole, or is too large for one statement. */
static SinkStatus
store_group(Sink *sink, Group *group, bool is_refused)
{
	int n_rows = group_order(sink, group, sink->order);
	SinkStatus status = SINK_OK;
	bool has_changed, is_tree;

	if (is_refused && !sink->is_checked)
	{
		/* A column that is new or has another type makes good rows bad. */
		sink->is_checked = true;
		status = savepoint_settle(sink);
		if (status == SINK_OK)
			status = sink_has_changed(sink, sink->table, &has_changed);
		if (status == SINK_OK && has_changed)
			status = SINK_CHANGED;
	}
	if (status == SINK_OK)
		status = is_self_referencing(sink, &is_tree);
	return status == SINK_OK ? sift(sink, group, sink->order, n_rows, is_refused) : status;
}

/* Groups lo .. hi again, which were accepted before. */
static SinkStatus
copy_again(Sink *sink, int lo, int hi)
{
	SinkStatus status = SINK_OK;
	bool is_data = false;

	for (int g = lo; g < hi && status == SINK_OK; g++)
	{
		int n_rows = group_order(sink, &sink->groups[g], sink->order);

		if (n_rows > 0)
			status = copy_rows(sink, &sink->groups[g], sink->order, n_rows, false, &is_data);
	}
	if (is_data)
		log_line(LOG_WARNING, "server refuses: %s (SQLSTATE %s)", sink->reason, sink->sqlstate);
	return status;
}

/*
 * Rows that refer to others of the table which were not there: all together, and then those that are still refused as long
 * as any is accepted.  In turn from the front and from the back, since each may refer to the next.
 */
static SinkStatus
store_aside(Sink *sink)
{
	Batch *batch = sink->batch;

	for (int n_before = -1, turn = 0;; turn++)
	{
		int n_aside = 0;

		for (int i = 0; i < batch->n_rows; i++)
		{
			const Row *row = &batch->rows[turn % 2 ? batch->n_rows - 1 - i : i];

			if (row->dead != NULL && row->dead->is_aside && !row->is_dropped)
				sink->order[n_aside++] = (int) (row - batch->rows);
		}
		if (n_aside == 0 || n_aside == n_before)
			return SINK_OK;
		n_before = n_aside;
		for (int n = 0, *order = sink->order; n_aside > 0; order += n, n_aside -= n)
		{
			Group group = {.leaf = LEAF_PARENT, .omitted = batch->rows[order[0]].omitted};

			/* Those that fill the same columns to the front; the others keep their order. */
			n = 0;
			for (int i = 0; i < n_aside; i++)
				if (batch->rows[order[i]].omitted == group.omitted)
				{
					int number = order[i];

					memmove(order + n + 1, order + n, sizeof(int) * (size_t) (i - n));
					order[n++] = number;
					batch->rows[number].dead = NULL;
				}
			SinkStatus status = sift(sink, &group, order, n, false);
			if (status == SINK_OK)
				status = judge_suspects(sink, &group);
			if (status != SINK_OK)
				return status;
		}
	}
}

/* All groups.  A savepoint each; where there are very many, one for several. */
static SinkStatus
store_rows(Sink *sink)
{
	int n_together = sink->n_groups / MOST_SAVEPOINTS + 1, kept = 0;
	bool must_keep = true; /* what came before this group */
	SinkStatus status = SINK_OK;

	for (int g = 0; g < sink->n_groups && status == SINK_OK; g++)
	{
		Group *group = &sink->groups[g];
		bool is_data = false;

		if (group->n_rows == 0)
			continue;
		must_keep |= g - kept >= n_together;
		if (must_keep)
			kept = g;
		if (group->n_rows > sink->most_rows)
			status = store_group(sink, group, false);
		else
		{
			int n_rows = group_order(sink, group, sink->order);

			status = copy_rows(sink, group, sink->order, n_rows, must_keep, &is_data);
			if (status == SINK_OK)
			{
				sink->n_accepted += n_rows;
				group->is_accepting = true;
				must_keep = false;
				continue;
			}
			if (!is_data)
				break;
			/* Those that went with it first; the error stays in the sink. */
			status = copy_again(sink, kept, g);
			if (status == SINK_OK)
				status = store_group(sink, group, true);
		}
		must_keep = true;
	}
	if (status == SINK_OK)
		status = store_aside(sink);
	for (int g = 0; g < sink->n_groups && status == SINK_OK; g++)
		status = judge_suspects(sink, &sink->groups[g]);
	return status == SINK_OK ? savepoint_settle(sink) : status;
}

/* The batch is not stored: what a handler refused may be accepted next time. */
static void
revive_suspects(Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
		if (batch->rows[i].dead != NULL && batch->rows[i].dead->is_suspect)
			batch->rows[i].dead = NULL;
}

/* ---- dead letters and positions ---- */

/* COPY's binary format: the bytes of a payload travel as they are. */
static const char letters_head[] =
	"PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0"; /* with its own NUL: two numbers of 0 */
static const char letters_tail[] = "\377\377";
#define EPOCH_2000_US INT64_C(946684800000000)

static void
add_number(Buffer *out, int64_t value, int n_bytes)
{
	char *to = buffer_room(out, (size_t) n_bytes);

	for (int i = 0; i < n_bytes; i++)
		to[i] = (char) (value >> 8 * (n_bytes - 1 - i));
	out->n_bytes += (size_t) n_bytes;
}

/* NULL for no data. */
static bool
add_field(Sink *sink, const char *data, size_t n_bytes)
{
	add_number(&sink->send, data ? (int64_t) n_bytes : -1, 4);
	if (data == NULL)
		return true;
	if (n_bytes >= SEND_BYTES)
		return send_flush(sink) && PQputCopyData(sink->connection, data, (int) n_bytes) == 1;
	buffer_add(&sink->send, data, n_bytes);
	return sink->send.n_bytes < SEND_BYTES || send_flush(sink);
}

static bool
add_text(Sink *sink, const char *text)
{
	return add_field(sink, text, text ? strlen(text) : 0);
}

/* The caller frees it.  is_plain: only what is ASCII. */
static char *
plain_reason(const DeadLetter *dead, bool is_plain)
{
	char *reason = mem_string(dead->reason);

	for (char *c = reason; is_plain && *c; c++)
		if ((unsigned char) *c >= 0x80)
			*c = '?';
	return reason;
}

/*
 * One row of millrace.dead_letters.  is_plain: the database has refused what was said about them before, so only ASCII of
 * the reason is kept, and neither headers nor the names of CSV fields.
 */
static bool
add_letter(Sink *sink, const Row *row, bool is_plain)
{
	const Position *position = &sink->batch->positions.list[row->position];
	const DeadLetter *dead = row->dead;
	Buffer *out = &sink->send;

	add_number(out, 12, 2);
	bool is_sent = add_text(sink, sink->config->name) && add_text(sink, position->topic);
	add_number(out, 4, 4);
	add_number(out, position->partition, 4);
	add_number(out, 8, 4);
	add_number(out, row->offset, 8);
	is_sent =
		is_sent && add_field(sink, row->key, row->key_bytes) && add_field(sink, row->raw, row->raw_bytes);
	bool has_headers = row->headers != NULL && !is_plain;
	add_number(out, has_headers ? (int64_t) row->header_bytes + 1 : -1, 4);
	if (has_headers)
	{
		buffer_add(out, "\1", 1); /* version of jsonb's format */
		buffer_add(out, row->headers, row->header_bytes);
	}
	bool has_time = row->timestamp_us != NO_TIME;
	add_number(out, has_time ? 8 : -1, 4);
	if (has_time)
		add_number(out, row->timestamp_us - EPOCH_2000_US, 8);
	is_sent = is_sent && add_text(sink, is_plain ? NULL : position->csv_header) &&
		add_text(sink, dead->stage) && add_text(sink, dead->sqlstate[0] ? dead->sqlstate : NULL);
	char *reason = plain_reason(dead, is_plain);
	is_sent = is_sent && add_text(sink, reason);
	free(reason);
	return is_sent;
}

static SinkStatus
copy_letters(Sink *sink, bool is_plain, bool *is_data)
{
	const Batch *batch = sink->batch;
	bool is_sent = true;
	SinkStatus status =
		copy_begin(sink,
				   "COPY millrace.dead_letters (source, topic, partition, \"offset\", key, payload, headers,"
				   " message_time, csv_header, stage, sqlstate, reason) FROM STDIN (FORMAT binary)",
				   is_data);

	if (status != SINK_OK)
		return status;
	buffer_add(&sink->send, letters_head, sizeof letters_head);
	for (int i = 0; i < batch->n_rows && is_sent; i++)
		if (batch->rows[i].dead != NULL && !batch->rows[i].is_dropped)
			is_sent = add_letter(sink, &batch->rows[i], is_plain);
	buffer_add(&sink->send, letters_tail, 2);
	return copy_end(sink, is_sent, is_data);
}

/* The ids of the letters that are stored now, or that are still dead, as an array literal.  Returns their number. */
static int
letter_ids(const Batch *batch, bool is_dead, Buffer *ids)
{
	int n_ids = 0;

	buffer_add(ids, "{", 1);
	for (int i = 0; i < batch->n_rows; i++)
		if ((batch->rows[i].dead != NULL) == is_dead)
		{
			array_number(ids, batch->letters[i]);
			n_ids++;
		}
	buffer_add(ids, "}", 2);
	return n_ids;
}

static SinkStatus
letters_taken(const Sink *sink)
{
	log_line(
		LOG_ERROR,
		"dead letters of stream \"%s\" were taken away by somebody else; nothing of this batch was stored",
		sink->config->name);
	return SINK_FENCED;
}

/* What is still dead stays, with its new reason. */
static SinkStatus
update_letters(Sink *sink, bool is_plain, bool *is_data)
{
	const Batch *batch = sink->batch;
	Buffer arrays[4] = {0};
	PGresult *result;

	int n_ids = letter_ids(batch, true, &arrays[0]);
	for (int a = 1; a < 4; a++)
		buffer_add(&arrays[a], "{", 1);
	for (int i = 0; i < batch->n_rows; i++)
	{
		const DeadLetter *dead = batch->rows[i].dead;

		if (dead == NULL)
			continue;
		array_text_or_null(&arrays[1], dead->stage);
		array_text_or_null(&arrays[2], dead->sqlstate[0] ? dead->sqlstate : NULL);
		char *reason = plain_reason(dead, is_plain);
		array_text_or_null(&arrays[3], reason);
		free(reason);
	}
	for (int a = 1; a < 4; a++)
		buffer_add(&arrays[a], "}", 2);
	const char *params[] = {arrays[0].data, arrays[1].data, arrays[2].data, arrays[3].data};
	SinkStatus status = sink_run_judged(
		sink,
		"UPDATE millrace.dead_letters d SET stage = n.stage, sqlstate = n.sqlstate, reason = n.reason"
		" FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[]) n(id, stage, sqlstate, reason)"
		" WHERE d.id = n.id",
		4, params, &result, is_data);
	for (int a = 0; a < 4; a++)
		buffer_free(&arrays[a]);
	if (status != SINK_OK)
		return status;
	if (strtol(PQcmdTuples(result), NULL, 10) != n_ids)
		status = letters_taken(sink);
	PQclear(result);
	return status;
}

/* Those that are stored now go, which is the compare-and-set of a replay. */
static SinkStatus
delete_letters(Sink *sink)
{
	Buffer ids = {0};
	PGresult *result;
	int n_ids = letter_ids(sink->batch, false, &ids);
	const char *params[] = {ids.data};
	SinkStatus status =
		sink_run(sink, "DELETE FROM millrace.dead_letters WHERE id = ANY ($1::bigint[])", 1, params, &result);

	buffer_free(&ids);
	if (status != SINK_OK)
		return status;
	if (strtol(PQcmdTuples(result), NULL, 10) != n_ids)
		status = letters_taken(sink);
	PQclear(result);
	return status;
}

static SinkStatus
store_dead_letters(Sink *sink)
{
	Batch *batch = sink->batch;
	const Row *first = NULL;
	bool is_data = false;
	int n_dead = 0;

	for (int i = 0; i < batch->n_rows; i++)
		if (batch->rows[i].dead != NULL && !batch->rows[i].is_dropped && n_dead++ == 0)
			first = &batch->rows[i];
	if (n_dead == 0)
		return SINK_OK;
	SinkStatus status = SINK_OK;
	for (int is_plain = 0; is_plain <= 1; is_plain++)
	{
		status =
			sink_run(sink, is_plain ? "ROLLBACK TO SAVEPOINT millrace_letters" : "SAVEPOINT millrace_letters",
					 0, NULL, NULL);
		if (status == SINK_OK)
			status = batch->letters != NULL ? update_letters(sink, is_plain, &is_data)
											: copy_letters(sink, is_plain, &is_data);
		if (!is_data)
			break;
		log_line(LOG_WARNING, "millrace.dead_letters refuses: %s (SQLSTATE %s)", sink->reason,
				 sink->sqlstate);
	}
	if (status == SINK_OK)
		log_line(LOG_WARNING,
				 "batch %" PRId64 ": %d dead letter%s; the first is %s[%" PRId32 "] offset %" PRId64 ": %s",
				 batch->number, n_dead, n_dead == 1 ? "" : "s", batch->positions.list[first->position].topic,
				 batch->positions.list[first->position].partition, first->offset, first->dead->reason);
	return status;
}

enum
{
	ARRAY_TOPIC,
	ARRAY_PARTITION,
	ARRAY_STORED,
	ARRAY_NEXT,
	ARRAY_LEAF,
	ARRAY_NEW,
	ARRAY_ID,
	ARRAY_SIZE,
	ARRAY_MODIFIED,
	ARRAY_FINGERPRINT,
	ARRAY_DEFECT,
	N_ARRAYS
};

static void
mark_arrays(Buffer arrays[N_ARRAYS], const FileMark *mark, int64_t next)
{
	char modified[40] = "", id[48] = "", prints[48] = "";

	if (mark->inode != 0)
	{
		time_format(mark->modified_us, modified, sizeof modified);
		snprintf(id, sizeof id, "%" PRIu64 "/%" PRId64, mark->inode, mark->born_ns);
	}
	if (mark->has_prints)
		snprintf(prints, sizeof prints, "%" PRId64 ":%08" PRIx32 ":%08" PRIx32, next, mark->head_crc,
				 mark->tail_crc);
	array_text_or_null(&arrays[ARRAY_ID], id[0] ? id : NULL);
	if (mark->inode != 0 && mark->size_bytes >= 0)
		array_number(&arrays[ARRAY_SIZE], mark->size_bytes);
	else
		array_text_or_null(&arrays[ARRAY_SIZE], NULL);
	array_text_or_null(&arrays[ARRAY_MODIFIED], modified[0] ? modified : NULL);
	array_text_or_null(&arrays[ARRAY_FINGERPRINT], prints[0] ? prints : NULL);
	array_text_or_null(&arrays[ARRAY_DEFECT], mark->defect);
}

/* The touched positions and used leaves as array literals.  Returns the number of positions. */
static int
position_arrays(Sink *sink, Buffer arrays[N_ARRAYS], int *n_leaves)
{
	int n_positions = 0;

	*n_leaves = 0;
	for (int i = 0; i < N_ARRAYS; i++)
		buffer_add(&arrays[i], "{", 1);
	for (int i = 0; i < sink->batch->positions.n_positions; i++)
	{
		const Position *position = &sink->batch->positions.list[i];

		if (!position_is_touched(position))
			continue;
		array_text(&arrays[ARRAY_TOPIC], position->topic, strlen(position->topic));
		array_number(&arrays[ARRAY_PARTITION], position->partition);
		array_number(&arrays[ARRAY_STORED], position->stored);
		array_number(&arrays[ARRAY_NEXT], position->next);
		array_number(&arrays[ARRAY_NEW], position->is_new);
		mark_arrays(arrays, &position->file, position->next);
		n_positions++;
	}
	for (int g = 0; g < sink->n_groups; g++)
	{
		const Group *group = &sink->groups[g];

		/* Two groups of one leaf differ in the defaults they leave out; the leaf counts once. */
		if (group->leaf < 0 || group->n_rows == 0 || sink->leaf_groups[group->leaf + 1] < 0)
			continue;
		sink->leaf_groups[group->leaf + 1] = -1;
		array_number(&arrays[ARRAY_LEAF], sink->leaves->list[group->leaf].oid);
		(*n_leaves)++;
	}
	for (int i = 0; i < N_ARRAYS; i++)
		buffer_add(&arrays[i], "}", 2);
	return n_positions;
}

/*
 * Compare-and-set of all positions.  The leaves were locked by COPY, so whether they are still attached is decided now:
 * rows in a detached one would be lost to the table.
 */
static SinkStatus
move_positions(Sink *sink)
{
	Buffer arrays[N_ARRAYS] = {0};
	int n_leaves, n_positions = position_arrays(sink, arrays, &n_leaves);
	const char *params[N_ARRAYS + 1] = {sink->config->name};
	PGresult *result;

	for (int i = 0; i < N_ARRAYS; i++)
		params[i + 1] = arrays[i].data;
	SinkStatus status = sink_run(
		sink,
		"WITH p AS (SELECT * FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[], $7::int[],"
		" $8::text[], $9::bigint[], $10::timestamptz[], $11::text[], $12::text[])"
		" AS p(topic, partition, stored, next, is_new, id, size, modified, fingerprint, defect)),"
		" moved AS (UPDATE millrace.ingest_offsets o SET next_offset = p.next, updated = now(), file_id = "
		"p.id,"
		" file_size = p.size, file_modified = p.modified, file_fingerprint = p.fingerprint,"
		" file_defect = p.defect FROM p"
		" WHERE o.source = $1 AND o.topic = p.topic AND o.partition = p.partition"
		" AND o.next_offset = p.stored AND p.is_new = 0 RETURNING 1),"
		" added AS (INSERT INTO millrace.ingest_offsets (source, topic, partition, next_offset, file_id,"
		" file_size, file_modified, file_fingerprint, file_defect)"
		" SELECT $1, topic, partition, next, id, size, modified, fingerprint, defect FROM p WHERE is_new = 1"
		" ON CONFLICT DO NOTHING RETURNING 1)"
		" SELECT (SELECT count(*) FROM moved) + (SELECT count(*) FROM added),"
		" (SELECT count(*) FROM pg_catalog.pg_inherits"
		" WHERE inhrelid = ANY ($6::oid[]) AND NOT inhdetachpending)",
		N_ARRAYS + 1, params, &result);

	for (int i = 0; i < N_ARRAYS; i++)
		buffer_free(&arrays[i]);
	if (status != SINK_OK)
		return status;
	if (strtol(PQgetvalue(result, 0, 0), NULL, 10) != n_positions)
	{
		log_line(LOG_ERROR,
				 "another ingester has moved the position of stream \"%s\"; nothing of this batch was stored",
				 sink->config->name);
		status = SINK_FENCED;
	}
	else if (strtol(PQgetvalue(result, 0, 1), NULL, 10) != n_leaves)
		status = SINK_MOVED;
	PQclear(result);
	return status;
}

static bool
mark_is_same(const FileMark *a, const FileMark *b)
{
	return a->inode == b->inode && a->born_ns == b->born_ns && a->head_crc == b->head_crc &&
		a->tail_crc == b->tail_crc &&
		(a->inode == 0 || (a->size_bytes == b->size_bytes && a->modified_us == b->modified_us));
}

/* The same for a replay: letters that are gone were stored. */
static SinkStatus
settle_replay(Sink *sink, bool *is_stored)
{
	Buffer ids = {0};
	PGresult *result;
	int n_ids = letter_ids(sink->batch, false, &ids);
	const char *params[] = {ids.data};
	SinkStatus status =
		sink_run(sink, "SELECT id FROM millrace.dead_letters WHERE id = ANY ($1::bigint[]) FOR UPDATE", 1,
				 params, &result);

	buffer_free(&ids);
	if (status != SINK_OK)
		return status;
	int n_left = PQntuples(result);
	PQclear(result);
	/* Where none is stored it does no harm to say again why. */
	*is_stored = n_ids > 0 && n_left == 0;
	return n_left == 0 || n_left == n_ids ? SINK_OK : letters_taken(sink);
}

static SinkStatus
settle_positions(Sink *sink, bool *is_stored)
{
	int n_stored = 0, n_touched = 0;

	for (int i = 0; i < sink->batch->positions.n_positions; i++)
	{
		Position *position = &sink->batch->positions.list[i], found = *position;

		if (!position_is_touched(position))
			continue;
		SinkStatus status = sink_position(sink, &found, position->stored);
		if (status != SINK_OK)
			return status;
		n_touched++;
		position->is_new = false; /* there is a row now */
		if (found.stored == position->next && mark_is_same(&found.file, &position->file))
			n_stored++;
		else if (found.stored != position->stored)
		{
			log_line(LOG_ERROR, "another ingester has moved the position of stream \"%s\"",
					 sink->config->name);
			return SINK_FENCED;
		}
	}
	if (n_stored != 0 && n_stored != n_touched)
	{
		log_line(LOG_ERROR, "positions of stream \"%s\" were moved one by one by somebody else",
				 sink->config->name);
		return SINK_FENCED;
	}
	*is_stored = n_stored > 0;
	return SINK_OK;
}

/* COMMIT was sent and not answered: did it happen?  *is_stored says. */
static SinkStatus
settle_commit(Sink *sink, bool *is_stored)
{
	SinkStatus status =
		sink->batch->letters != NULL ? settle_replay(sink, is_stored) : settle_positions(sink, is_stored);

	if (status == SINK_OK || status == SINK_FENCED)
		sink->is_commit_unknown = false; /* a batch that is fenced is given up */
	if (status != SINK_OK)
		return status;
	log_line(LOG_WARNING, "batch %" PRId64 ": the answer to COMMIT was lost; the batch was %s",
			 sink->batch->number, *is_stored ? "stored" : "not stored");
	return SINK_OK;
}

/* ---- one transaction ---- */

static SinkStatus
commit(Sink *sink, bool *is_data)
{
	PGresult *result = PQexec(sink->connection, "COMMIT");
	SinkStatus status = SINK_OK;

	*is_data = false;
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
	{
		status = sink_judge(sink, result, is_data);
		sink->is_commit_unknown = status == SINK_LOST;
		sink->config->metrics->n_unanswered += sink->is_commit_unknown;
	}
	else if (strcmp(PQcmdStatus(result), "COMMIT") != 0)
		status = SINK_RETRY;
	PQclear(result);
	return status;
}

/*
 * How the transaction begins, also a second time.  The table is locked before its leaves, if there are several: who creates
 * a stream locks the table and then its leaves, and would otherwise hold one that this transaction still needs while it
 * waits for one that this has.
 */
static void
begin_text(Sink *sink)
{
	int n_groups = 0;

	for (int g = 0; g < sink->n_groups; g++)
		n_groups += sink->groups[g].n_rows > 0;
	sink->begin.n_bytes = 0;
	buffer_printf(&sink->begin, "ROLLBACK; BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; ");
	if (sink->is_careful)
		buffer_printf(&sink->begin, "SET CONSTRAINTS ALL IMMEDIATE; ");
	if (n_groups > 1 && sink->table->is_routed && sink->table->may_lock)
		buffer_printf(&sink->begin, "LOCK TABLE ONLY %s IN ROW EXCLUSIVE MODE; ", sink->table->name);
}

/* One try.  *is_data: a constraint failed at COMMIT. */
static SinkStatus
store_once(Sink *sink, bool *is_data)
{
	begin_text(sink);
	sink->savepoint = SAVEPOINT_NONE;
	*is_data = false;
	SinkStatus status = sink_run(sink, sink->begin.data + strlen("ROLLBACK; "), 0, NULL, NULL);
	if (status == SINK_OK)
		status = store_rows(sink);
	if (status == SINK_OK)
		status = store_dead_letters(sink);
	if (status == SINK_OK)
		status = move_positions(sink);
	if (status == SINK_OK && sink->batch->letters != NULL)
		status = delete_letters(sink);
	if (status == SINK_OK)
		status = commit(sink, is_data);
	if (status != SINK_OK && status != SINK_LOST && sink_run(sink, "ROLLBACK", 0, NULL, NULL) == SINK_LOST)
		status = status == SINK_FENCED || status == SINK_BROKEN || status == SINK_DENIED ? status : SINK_LOST;
	return status;
}

/* The last row that is short enough. */
static bool
take_witness(const Batch *batch, Witness *witness)
{
	for (int i = batch->n_rows - 1; i >= 0; i--)
	{
		const Row *row = &batch->rows[i];

		if (row->dead != NULL || row->is_dropped || row->copy == NULL || row->copy_bytes > WITNESS_BYTES)
			continue;
		witness->line.n_bytes = 0;
		buffer_add(&witness->line, row->copy, row->copy_bytes);
		witness->omitted = row->omitted;
		return true;
	}
	return false;
}

void
store_offer(Sink *sink, const Batch *open)
{
	if (!sink->wants_offer || open->n_rows == 0)
		return;
	pthread_mutex_lock(&sink->offer_lock);
	if (take_witness(open, &sink->offered))
		sink->wants_offer = false;
	pthread_mutex_unlock(&sink->offer_lock);
}

static void
stored(Sink *sink, int64_t begun_us)
{
	Batch *batch = sink->batch;
	Metrics *metrics = sink->config->metrics;
	int64_t n_bytes = 0;
	int n_rows = 0, n_dead = 0, n_suspects = 0;

	for (int i = 0; i < batch->n_rows; i++)
	{
		const Row *row = &batch->rows[i];

		if (row->is_dropped)
			continue;
		*(row->dead ? &n_dead : &n_rows) += 1;
		n_suspects += row->dead != NULL && row->dead->is_suspect;
		n_bytes += row->raw_bytes;
	}
	for (int i = 0; i < batch->positions.n_positions; i++)
	{
		Position *position = &batch->positions.list[i];

		if (!position->is_assigned)
			continue;
		position->stored = position->next;
		position->is_new = position->is_changed = false;
	}
	sink->is_counted &= n_dead == 0;
	sink->n_in_turn = n_rows > 0 ? 0 : sink->n_in_turn + n_suspects;
	sink->most_rows = sink->most_rows < INT_MAX / 2 ? sink->most_rows * 2 : INT_MAX;
	take_witness(batch, &sink->witness);
	sink->wants_offer = false;
	metrics_batch(metrics, n_rows, n_bytes, monotonic_us() - begun_us);
	metrics->n_dead_letters += n_dead;
	log_line(LOG_INFO, "batch %" PRId64 ": committed %d rows", batch->number, n_rows);
}

/* SINK_LIMIT when more dead letters of the stream are kept than there may be. */
static SinkStatus
check_limit(Sink *sink)
{
	char most[24];
	const char *params[] = {sink->config->name, most};
	PGresult *result;

	if (sink->config->dead_limit == 0 || sink->batch->letters != NULL || sink->is_counted)
		return SINK_OK;
	snprintf(most, sizeof most, "%" PRId64, sink->config->dead_limit + 1);
	SinkStatus status =
		sink_run(sink,
				 "SELECT count(*) FROM (SELECT source FROM millrace.dead_letters WHERE source = "
				 "$1 LIMIT $2::bigint) x",
				 2, params, &result);
	if (status != SINK_OK)
		return status;
	sink->is_counted = strtoll(PQgetvalue(result, 0, 0), NULL, 10) <= sink->config->dead_limit;
	PQclear(result);
	if (sink->is_counted)
		return SINK_OK;
	log_line(LOG_ERROR,
			 "more than %" PRId64
			 " dead letters of stream \"%s\" are kept (dead_letters.limit): see millrace "
			 "dead-letters",
			 sink->config->dead_limit, sink->config->name);
	return SINK_LIMIT;
}

SinkStatus
store_batch(Sink *sink, const Table *table, const Leaves *leaves, const CopyColumns *columns, Batch *batch)
{
	bool is_data, is_stored = false;
	SinkStatus status = SINK_RETRY;
	int64_t begun_us = monotonic_us();

	sink->table = table;
	sink->leaves = leaves;
	sink->columns = columns;
	sink->batch = batch;
	sink->is_careful = sink->is_checked = false;
	if (sink->is_commit_unknown)
	{
		if ((status = settle_commit(sink, &is_stored)) != SINK_OK)
			return status;
		if (!is_stored)
			revive_suspects(batch);
	}
	if (!is_stored && (status = check_limit(sink)) != SINK_OK)
		return status;
	while (!is_stored)
	{
		int n_rows = group_rows(sink);

		if (!sink->is_careful)
			log_line(LOG_INFO, "batch %" PRId64 ": copying %d rows", batch->number, n_rows);
		sink->n_accepted = 0;
		status = store_once(sink, &is_data);
		if (status == SINK_OK)
			break;
		/* With COMMIT unanswered the dead letters may be stored: they stay until it is known. */
		if (!sink->is_commit_unknown)
			revive_suspects(batch);
		if (!is_data || sink->is_careful)
			return status;
		sink->is_careful = true;
	}
	stored(sink, begun_us);
	/* It is stored, whatever comes of this. */
	if (check_limit(sink) != SINK_LIMIT)
		return SINK_OK;
	batch_reset(batch);
	return SINK_LIMIT;
}
