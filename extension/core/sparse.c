/*
 * sparse.c: compressed rows from triples, and turned, by threads.
 *
 * Both are one stable counting sort by column.  The entries are divided into lanes, one stretch for each thread; a lane
 * counts its columns, then the counts of all lanes become places (of a column, those of the first lane come first), then
 * each lane puts its entries into its places.  So the result does not depend on how many lanes there are.  A lane keeps
 * where it is, and goes on from there when its task gave way to a pause.
 */
#include "core.h"

#include <string.h>

#define STEP 32768 /* entries between two looks for a pause: less than a millisecond */
#define LANE_ENTRIES 65536
#define ALIGNED(n_bytes) (((n_bytes) + 63) / 64 * 64)

typedef struct Lane
{
	int64_t lo;
	int64_t hi;
	int64_t at;	   /* entries before are done */
	int64_t row;   /* of entry `at`, or an earlier one; of triples: its piece */
	int64_t first; /* of triples: the first entry of that piece */
	int64_t *next; /* of each column: the count, then the place of the next entry */
} Lane;

typedef struct Turn
{
	MrcPool *pool;
	const MrcCsr *from; /* NULL: the triples */
	const MrcTriples *triples;
	MrcCsr *to;
	Lane *lanes;
	int n_lanes;
	/* the column whose places are next, and where they begin */
	int64_t column;
	int64_t sum;
} Turn;

/* As many as there are threads, unless they had little to do or their counts took more than two bytes an entry. */
static int
lanes_of(int64_t n, int64_t n_cols, int n_threads)
{
	int64_t most = n / (n_cols * 4 > LANE_ENTRIES ? n_cols * 4 : LANE_ENTRIES);

	return most < 1 ? 1 : most < n_threads ? (int) most : n_threads;
}

size_t
mrc_turn_scratch_bytes(int64_t n, int64_t n_cols, int n_threads)
{
	return lanes_of(n, n_cols, n_threads) * (ALIGNED(sizeof(Lane)) + ALIGNED(n_cols * sizeof(int64_t)));
}

/* ---- a step: entries [e, end) of a lane, those of triples all in one piece ---- */

static void
count_csr(const MrcCsr *csr, int64_t *next, int64_t e, int64_t end)
{
	for (; e < end; e++)
		next[csr->index[e]]++;
}

static void
count_triples(const MrcTriples *triples, const Lane *lane, int64_t e, int64_t end)
{
	const MrcPiece *piece = &triples->pieces[lane->row];

	for (e -= lane->first, end -= lane->first; e < end; e++)
		lane->next[triples->item_row[piece->item[e]]]++;
}

static void
place_csr(const MrcCsr *csr, Lane *lane, int64_t e, int64_t end, MrcCsr *to)
{
	while (e < end)
	{
		int64_t row_end;

		while (csr->start[lane->row + 1] <= e)
			lane->row++;
		row_end = csr->start[lane->row + 1] < end ? csr->start[lane->row + 1] : end;
		for (; e < row_end; e++)
		{
			int64_t at = lane->next[csr->index[e]]++;

			to->index[at] = (int32_t) lane->row;
			to->value[at] = csr->value[e];
		}
	}
}

static void
place_triples(const MrcTriples *triples, const Lane *lane, int64_t e, int64_t end, MrcCsr *to)
{
	const MrcPiece *piece = &triples->pieces[lane->row];

	for (e -= lane->first, end -= lane->first; e < end; e++)
	{
		int64_t at = lane->next[triples->item_row[piece->item[e]]]++;

		to->index[at] = triples->user_row[piece->user[e]];
		to->value[at] = piece->value[e];
	}
}

/* ---- tasks ---- */

/* Where the next step of a lane ends. */
static int64_t
step_end(const Turn *turn, Lane *lane)
{
	int64_t end = lane->hi - lane->at > STEP ? lane->at + STEP : lane->hi;

	if (turn->from)
		return end;
	while (lane->at >= lane->first + turn->triples->pieces[lane->row].n)
		lane->first += turn->triples->pieces[lane->row++].n;
	if (end > lane->first + turn->triples->pieces[lane->row].n)
		end = lane->first + turn->triples->pieces[lane->row].n;
	return end;
}

/* One lane. */
static MrcStatus
count(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Turn *turn = arg;
	Lane *lane = &turn->lanes[lo];

	(void) worker;
	(void) hi;
	if (lane->at == lane->lo)
		memset(lane->next, 0, turn->to->n_rows * sizeof(int64_t));
	while (lane->at < lane->hi)
	{
		int64_t end = step_end(turn, lane);

		if (mrc_pool_pausing(turn->pool))
			return MRC_AGAIN;
		if (turn->from)
			count_csr(turn->from, lane->next, lane->at, end);
		else
			count_triples(turn->triples, lane, lane->at, end);
		lane->at = end;
	}
	return MRC_OK;
}

static MrcStatus
place(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Turn *turn = arg;
	Lane *lane = &turn->lanes[lo];

	(void) worker;
	(void) hi;
	while (lane->at < lane->hi)
	{
		int64_t end = step_end(turn, lane);

		if (mrc_pool_pausing(turn->pool))
			return MRC_AGAIN;
		if (turn->from)
			place_csr(turn->from, lane, lane->at, end, turn->to);
		else
			place_triples(turn->triples, lane, lane->at, end, turn->to);
		lane->at = end;
	}
	return MRC_OK;
}

/* Counts into places, and these into the starts of the rows.  A single task. */
static MrcStatus
add_up(void *arg, int worker, int64_t lo, int64_t hi)
{
	Turn *turn = arg;

	(void) worker;
	(void) lo;
	(void) hi;
	for (; turn->column < turn->to->n_rows; turn->column++)
	{
		if (turn->column % STEP == 0 && mrc_pool_pausing(turn->pool))
			return MRC_AGAIN;
		turn->to->start[turn->column] = turn->sum;
		for (int i = 0; i < turn->n_lanes; i++)
		{
			int64_t n = turn->lanes[i].next[turn->column];

			turn->lanes[i].next[turn->column] = turn->sum;
			turn->sum += n;
		}
	}
	turn->to->start[turn->column] = turn->sum;
	return MRC_OK;
}

/* ---- the whole ---- */

/* Divide n entries into lanes. */
static void
divide(Turn *turn, int64_t n, void *scratch)
{
	char *space = scratch;
	int n_lanes = turn->n_lanes = lanes_of(n, turn->to->n_rows, mrc_pool_size(turn->pool));
	size_t next_bytes = ALIGNED(turn->to->n_rows * sizeof(int64_t));

	turn->lanes = scratch;
	space += n_lanes * ALIGNED(sizeof(Lane));
	for (int i = 0; i < n_lanes; i++)
		turn->lanes[i] = (Lane){.lo = n / n_lanes * i,
								.hi = i + 1 < n_lanes ? n / n_lanes * (i + 1) : n,
								.next = (int64_t *) (space + i * next_bytes)};
}

/* The row of an entry. */
static int64_t
row_of(const MrcCsr *csr, int64_t entry)
{
	int64_t lo = 0;
	int64_t hi = csr->n_rows;

	while (hi - lo > 1)
	{
		int64_t middle = lo + (hi - lo) / 2;

		if (csr->start[middle] <= entry)
			lo = middle;
		else
			hi = middle;
	}
	return lo;
}

static void
rewind_lanes(Turn *turn)
{
	for (int i = 0; i < turn->n_lanes; i++)
	{
		Lane *lane = &turn->lanes[i];

		lane->at = lane->lo;
		lane->first = 0;
		lane->row = turn->from ? row_of(turn->from, lane->lo) : 0;
	}
}

static MrcStatus
run(Turn *turn, int64_t n, void *scratch)
{
	MrcStatus status;

	divide(turn, n, scratch);
	rewind_lanes(turn);
	status = mrc_pool_run(turn->pool, turn->n_lanes, 1, count, turn);
	if (status == MRC_OK)
		status = mrc_pool_run(turn->pool, 1, 1, add_up, turn);
	rewind_lanes(turn);
	if (status == MRC_OK)
		status = mrc_pool_run(turn->pool, turn->n_lanes, 1, place, turn);
	return status;
}

MrcStatus
mrc_csr_gather(MrcPool *pool, const MrcTriples *triples, MrcCsr *by_item, void *scratch)
{
	Turn turn = {.pool = pool, .triples = triples, .to = by_item};

	return run(&turn, triples->n, scratch);
}

MrcStatus
mrc_csr_turn(MrcPool *pool, const MrcCsr *csr, MrcCsr *turned, void *scratch)
{
	Turn turn = {.pool = pool, .from = csr, .to = turned};

	return run(&turn, csr->start[csr->n_rows], scratch);
}
