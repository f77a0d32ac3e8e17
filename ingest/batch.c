/*
 * The rows that one transaction stores, with the positions behind them.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>

int
position_find(Positions *positions, const char *topic, int32_t partition)
{
	for (int i = 0; i < positions->n_positions; i++)
		if (positions->list[i].partition == partition && strcmp(positions->list[i].topic, topic) == 0)
			return i;
	return position_add(positions, topic, partition);
}

int
position_add(Positions *positions, const char *topic, int32_t partition)
{
	positions->list = mem_grow(positions->list, (size_t) positions->n_positions + 1, sizeof(Position));
	positions->list[positions->n_positions] = (Position){.topic = mem_string(topic), .partition = partition};
	return positions->n_positions++;
}

void
positions_clear(Positions *positions)
{
	for (int i = 0; i < positions->n_positions; i++)
	{
		free(positions->list[i].topic);
		free(positions->list[i].csv_header);
	}
	free(positions->list);
	memset(positions, 0, sizeof *positions);
}

bool
position_is_touched(const Position *position)
{
	return position->is_assigned && (position->next != position->stored || position->is_changed);
}

bool
batch_is_full(const Batch *batch)
{
	return batch->n_rows >= batch->max_rows ||
		(int64_t) (batch->arena.used_bytes + sizeof(Row) * (size_t) batch->n_rows) >= batch->max_bytes;
}

void
batch_reset(Batch *batch)
{
	arena_reset(&batch->arena);
	batch->n_rows = batch->n_dropped = 0;
	batch->has_moved = false;
	batch->letters = NULL;
}

void
batch_free(Batch *batch)
{
	arena_free(&batch->arena);
	positions_clear(&batch->positions);
	free(batch->rows);
	memset(batch, 0, sizeof *batch);
}

Row *
batch_add(Batch *batch, const Message *message)
{
	if (batch->n_rows == batch->capacity)
	{
		batch->capacity = batch->capacity ? batch->capacity * 2 : 1024;
		batch->rows = mem_grow(batch->rows, (size_t) batch->capacity, sizeof(Row));
	}
	if (batch->n_rows == 0)
		batch->opened_us = monotonic_us();
	Row *row = &batch->rows[batch->n_rows++];
	*row = (Row){
		.raw = message->data ? arena_copy(&batch->arena, message->data, message->n_bytes) : NULL,
		.raw_bytes = (uint32_t) message->n_bytes,
		.key = message->key ? arena_copy(&batch->arena, message->key, message->n_key_bytes) : NULL,
		.key_bytes = (uint32_t) message->n_key_bytes,
		.headers =
			message->headers ? arena_copy(&batch->arena, message->headers, message->n_header_bytes) : NULL,
		.header_bytes = (uint32_t) message->n_header_bytes,
		.timestamp_us = message->timestamp_us,
		.offset = message->offset,
		.position = message->position,
		.leaf = LEAF_PARENT,
		.time_us = NO_TIME,
	};
	return row;
}

DeadLetter *
row_kill(Batch *batch, Row *row, const char *stage, const char *sqlstate, const char *reason)
{
	DeadLetter *dead = arena_alloc(&batch->arena, sizeof(DeadLetter));

	*dead = (DeadLetter){.stage = stage}; /* a literal; the arena's memory holds what earlier batches left */
	snprintf(dead->sqlstate, sizeof dead->sqlstate, "%s", sqlstate);
	/* A reason that was cut off may end within a character. */
	size_t n_bytes = strlen(reason), at;
	if (text_defect(reason, n_bytes, &at) != NULL)
		n_bytes = at;
	char *copy = arena_alloc(&batch->arena, n_bytes + 1);
	memcpy(copy, reason, n_bytes);
	copy[n_bytes] = '\0';
	dead->reason = copy;
	row->dead = dead;
	return dead;
}

void
batch_dead_letter(Batch *batch, const Message *message, const char *stage, const char *sqlstate,
				  const char *reason)
{
	row_kill(batch, batch_add(batch, message), stage, sqlstate, reason);
}

void
batch_drop_unassigned(Batch *batch)
{
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];

		if (!row->is_dropped && !batch->positions.list[row->position].is_assigned)
		{
			row->is_dropped = true;
			batch->n_dropped++;
		}
	}
	for (int i = 0; i < batch->positions.n_positions; i++)
		if (!batch->positions.list[i].is_assigned)
			batch->positions.list[i].next = batch->positions.list[i].stored;
}

void
batch_seal(Batch *open, Batch *sealed)
{
	Batch empty = *sealed;

	empty.max_rows = open->max_rows;
	empty.max_bytes = open->max_bytes;
	empty.number = open->number;
	empty.positions = (Positions){mem_alloc(sizeof(Position) * (size_t) (open->positions.n_positions + 1)),
								  open->positions.n_positions};
	for (int i = 0; i < open->positions.n_positions; i++)
	{
		Position *position = &empty.positions.list[i];

		*position = open->positions.list[i];
		position->topic = mem_string(position->topic);
		if (position->csv_header != NULL)
			position->csv_header = mem_string(position->csv_header);
		if (!position_is_touched(position))
			continue;
		position->stored = position->next;
		position->is_new = position->is_changed = false;
	}
	positions_clear(&sealed->positions);
	*sealed = *open;
	*open = empty;
}
