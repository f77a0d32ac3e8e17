/*
 * Which partition a row goes to, and making the ones that are missing.  Rows go straight to the leaf, because COPY
 * into a partitioned parent loses multi-insert when a trigger has a transition table.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>

int
router_find(Router *router, int64_t time_us)
{
	const Leaf *list = router->leaves.list;
	int low = 0, high = router->leaves.n_leaves - 1;

	if (!router->table->is_routed || time_us == NO_TIME)
		return LEAF_PARENT;
	if (router->last < router->leaves.n_leaves && time_us >= list[router->last].from_us &&
		time_us < list[router->last].to_us)
		return router->last;
	while (low <= high)
	{
		int middle = low + (high - low) / 2;

		if (time_us < list[middle].from_us)
			high = middle - 1;
		else if (time_us >= list[middle].to_us)
			low = middle + 1;
		else
			return router->last = middle;
	}
	return LEAF_WANTED;
}

void
router_route(Router *router, Batch *batch, Row *row)
{
	int leaf = router_find(router, row->time_us);

	/* A leaf that exists takes its rows whatever their age, as does the table; only a new leaf needs a sane time. */
	if (leaf == LEAF_WANTED)
	{
		char when[64], reason[160];

		if (row->time_us < router->min_us)
		{
			time_format(row->time_us, when, sizeof when);
			snprintf(reason, sizeof reason, "event time %s is before target.min_time", when);
			row_kill(batch, row, "partition", "", reason);
		}
		else if (router->table->retention_us > 0 && row->time_us < clock_us() - router->table->retention_us)
		{
			time_format(row->time_us, when, sizeof when);
			snprintf(reason, sizeof reason, "event time %s is older than the retention of the table", when);
			row_kill(batch, row, "partition", "", reason);
		}
		else if (row->time_us > clock_us() + router->max_future_us)
		{
			time_format(row->time_us, when, sizeof when);
			snprintf(reason, sizeof reason, "event time %s is further in the future than target.max_future",
					 when);
			row_kill(batch, row, "partition", "", reason);
		}
	}
	row->leaf = leaf;
}

void
router_route_all(Router *router, Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		if (row->dead == NULL && !row->is_dropped)
			router_route(router, batch, row);
	}
}

/* A row that no leaf takes yet, or NULL. */
static Row *
wanting_row(const Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		if (row->leaf == LEAF_WANTED && row->dead == NULL && !row->is_dropped)
			return row;
	}
	return NULL;
}

/* Leaves are known by their place in the list, so a new list means new places for all rows. */
SinkStatus
router_reload(Router *router, Batch *batch)
{
	SinkStatus status = sink_leaves(router->sink, router->table, &router->leaves);

	router->last = 0;
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		/* A leaf that refuses its rows again and again is not what its range says: let PostgreSQL choose. */
		if (row->n_moved > 1)
			row->leaf = LEAF_PARENT;
		else if (row->dead == NULL && !row->is_dropped)
			router_route(router, batch, row);
	}
	return status;
}

/* ---- times that only the server can read ---- */

static uint64_t
text_hash(const char *text, size_t n_bytes)
{
	uint64_t hash = UINT64_C(14695981039346656037); /* FNV-1a */

	for (size_t i = 0; i < n_bytes; i++)
		hash = (hash ^ (unsigned char) text[i]) * UINT64_C(1099511628211);
	return hash;
}

typedef struct Texts
{
	const char **texts;
	uint32_t *n_bytes;
	int *of_row; /* row number -> text, -1: none */
	int n_texts;
} Texts;

/* The distinct texts of the batch; the DEFAULT counts as one. */
static void
collect_texts(const Batch *batch, Texts *found)
{
	size_t n_slots = 16, mask;
	int *slots, default_text = -1;

	while (n_slots < (size_t) batch->n_rows * 2)
		n_slots *= 2;
	mask = n_slots - 1;
	slots = mem_alloc(n_slots * sizeof(int)); /* text + 1 */
	found->texts = mem_alloc(sizeof(char *) * (size_t) batch->n_rows);
	found->n_bytes = mem_alloc(sizeof(uint32_t) * (size_t) batch->n_rows);
	found->of_row = mem_alloc(sizeof(int) * (size_t) batch->n_rows);
	for (int i = 0; i < batch->n_rows; i++)
	{
		const Row *row = &batch->rows[i];

		found->of_row[i] = -1;
		if (row->dead != NULL || row->is_dropped || row->time_us != NO_TIME)
			continue;
		if (row->is_defaulted)
		{
			if (default_text < 0)
				default_text = found->n_texts++;
			found->of_row[i] = default_text;
			continue;
		}
		if (row->time_text == NULL)
			continue;
		size_t slot = text_hash(row->time_text, row->time_bytes) & mask;
		int text;
		while ((text = slots[slot] - 1) >= 0 &&
			   (found->n_bytes[text] != row->time_bytes ||
				memcmp(found->texts[text], row->time_text, row->time_bytes) != 0))
			slot = (slot + 1) & mask;
		if (text < 0)
		{
			text = found->n_texts++;
			slots[slot] = text + 1;
			found->texts[text] = row->time_text;
			found->n_bytes[text] = row->time_bytes;
		}
		found->of_row[i] = text;
	}
	free(slots);
}

static bool
has_unread_time(const Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
		if (batch->rows[i].time_us == NO_TIME &&
			(batch->rows[i].time_text != NULL || batch->rows[i].is_defaulted))
			return true;
	return false;
}

/* Asks the server once a text; rows that it cannot read either stay with the parent, and COPY decides. */
static SinkStatus
read_times(Router *router, Batch *batch)
{
	Texts found = {0};
	SinkStatus status = SINK_OK;

	if (!router->table->is_routed || !has_unread_time(batch))
		return SINK_OK;
	collect_texts(batch, &found);
	int64_t *times_us = mem_alloc(sizeof(int64_t) * (size_t) (found.n_texts + 1));
	if (found.n_texts > 0)
		status =
			sink_read_times(router->sink, router->table, found.n_texts, found.texts, found.n_bytes, times_us);
	for (int i = 0; status == SINK_OK && i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		if (found.of_row[i] < 0)
			continue;
		row->time_us = times_us[found.of_row[i]];
		row->time_text = NULL;
		if (row->n_moved < 2)
			router_route(router, batch, row);
	}
	free(times_us);
	free(found.texts);
	free(found.n_bytes);
	free(found.of_row);
	return status;
}

/* The value of a DEFAULT is known only when COPY stores it: the parent finds its leaf, which exists by then. */
static void
leave_defaults(Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
		if (batch->rows[i].is_defaulted)
		{
			batch->rows[i].time_us = NO_TIME;
			batch->rows[i].leaf = LEAF_PARENT;
		}
}

SinkStatus
router_prepare(Router *router, Batch *batch)
{
	Row *row;
	SinkStatus read = read_times(router, batch);

	if (read != SINK_OK)
		return read;
	/* One partition a turn: events far apart must not make all the partitions between them. */
	while ((row = wanting_row(batch)) != NULL)
	{
		SinkStatus status = sink_ensure_partitions(router->sink, router->table, row->time_us, row->time_us);

		if (status != SINK_OK || (status = router_reload(router, batch)) != SINK_OK)
			return status;
		if (row->leaf != LEAF_WANTED)
			continue;
		/* The database makes none for this day: it decides where such rows go. */
		int64_t day = start_of_day(row->time_us);
		for (int i = 0; i < batch->n_rows; i++)
		{
			Row *other = &batch->rows[i];

			if (other->leaf == LEAF_WANTED &&
				(!router->table->makes_partitions || start_of_day(other->time_us) == day))
			{
				other->time_us = NO_TIME;
				other->leaf = LEAF_PARENT;
			}
		}
	}
	leave_defaults(batch);
	return SINK_OK;
}

void
router_free(Router *router)
{
	leaves_free(&router->leaves);
}
