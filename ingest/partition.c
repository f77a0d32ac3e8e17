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

	/* A leaf that exists takes its rows whatever their age; only a new one needs a sane time. */
	if (leaf == LEAF_WANTED || (leaf == LEAF_PARENT && row->time_us != NO_TIME))
	{
		char when[64], reason[160];

		if (row->time_us < router->min_us)
		{
			time_format(row->time_us, when, sizeof when);
			snprintf(reason, sizeof reason, "event time %s is before target.min_time", when);
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
		if (batch->rows[i].dead == NULL)
			batch->rows[i].leaf = router_find(router, batch->rows[i].time_us);
	return status;
}

SinkStatus
router_prepare(Router *router, Batch *batch)
{
	Row *row;

	/* One partition a turn: events far apart must not make all the partitions between them. */
	while ((row = wanting_row(batch)) != NULL)
	{
		SinkStatus status = sink_ensure_partitions(router->sink, router->table, row->time_us, row->time_us);

		if (status != SINK_OK || (status = router_reload(router, batch)) != SINK_OK)
			return status;
		if (row->leaf != LEAF_WANTED)
			continue;
		/* The database makes none for this time: it decides where the row goes. */
		row->time_us = NO_TIME;
		row->leaf = LEAF_PARENT;
	}
	return SINK_OK;
}

void
router_free(Router *router)
{
	leaves_free(&router->leaves);
}
