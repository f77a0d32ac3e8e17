/*
 * sparse.c: compressed rows from triples, and turned, by threads.
 *
 * Both are one stable counting sort by column.  The entries are divided into lanes, one stretch for each thread; a lane
 * counts its columns, then the counts of all lanes become places (of a column, those of the first lane come first), then
 * each lane puts its entries into its places.  So the result does not depend on how many lanes there are.  A lane keeps
 * where it is, and goes on from there when its task gave way to a pause.
 *
 * Rows of triples are then sorted where they stand, each by itself, by bytes of the column from the lowest.
 */
#include "core.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define STEP 32768 /* entries between two looks for a pause: less than a millisecond */
/* The same in the first step, when most pages of the result are still to be cleared, 5 ms each on a bad day. */
#define FIRST_STEP 8
#define LANE_ENTRIES 65536
#define SHORT_ROW 32 /* entries that are sorted by insertion */
#define ALIGNED(n_bytes) (((n_bytes) + 63) / 64 * 64)

typedef struct Lane
{
	int64_t lo;
	int64_t hi;
	int64_t at;		 /* entries before are done */
	int64_t row;	 /* of entry `at`, or an earlier one; of triples: its piece */
	int64_t first;	 /* of triples: the first entry of that piece */
	int64_t n_clear; /* columns whose count has begun, at 0 */
	int64_t *next;	 /* of each column: the count, then the place of the next entry */
} Lane;

typedef struct Turn
{
	MrcPool *pool;
	const MrcCsr *from; /* NULL: the triples */
	const MrcTriples *triples;
	MrcCsr *to;
	Lane *lanes;
	int n_lanes;
	bool placing; /* or still counting */
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
		lane->next[triples->user_row[piece->user[e]]]++;
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
		int64_t at = lane->next[triples->user_row[piece->user[e]]]++;

		to->index[at] = triples->item_row[piece->item[e]];
		to->value[at] = piece->value[e];
	}
}

/* ---- tasks ---- */

/* Where the next step of a lane ends. */
static int64_t
step_end(const Turn *turn, Lane *lane)
{
	int64_t step = lane->at - lane->lo < STEP ? FIRST_STEP : STEP;
	int64_t end = lane->hi - lane->at > step ? lane->at + step : lane->hi;

	if (turn->from)
		return end;
	while (lane->at >= lane->first + turn->triples->pieces[lane->row].n)
		lane->first += turn->triples->pieces[lane->row++].n;
	if (end > lane->first + turn->triples->pieces[lane->row].n)
		end = lane->first + turn->triples->pieces[lane->row].n;
	return end;
}

/*
 * The memory of a piece that a lane has read from its beginning to its end, so that it serves for the rows.  Whole pages of
 * the system's own size: it rounds a length up, and would take what follows.
 */
static void
give_back(const MrcTriples *triples, const Lane *lane)
{
	const MrcPiece *piece = &triples->pieces[lane->row];
	uintptr_t page_bytes = (uintptr_t) sysconf(_SC_PAGESIZE);
	uintptr_t lo = ((uintptr_t) piece->memory + page_bytes - 1) / page_bytes * page_bytes;
	uintptr_t hi = ((uintptr_t) piece->memory + piece->n_bytes) / page_bytes * page_bytes;

	if (lane->first >= lane->lo && lane->at == lane->first + piece->n && hi > lo)
		(void) madvise((void *) lo, hi - lo, MADV_DONTNEED);
}

/* Count the entries of a lane, or put them into their places. */
static MrcStatus
walk(const Turn *turn, Lane *lane)
{
	while (lane->at < lane->hi)
	{
		int64_t e = lane->at;
		int64_t end = step_end(turn, lane);

		if (mrc_pool_pausing(turn->pool))
			return MRC_AGAIN;
		if (!turn->placing && turn->from)
			count_csr(turn->from, lane->next, e, end);
		else if (!turn->placing)
			count_triples(turn->triples, lane, e, end);
		else if (turn->from)
			place_csr(turn->from, lane, e, end, turn->to);
		else
			place_triples(turn->triples, lane, e, end, turn->to);
		lane->at = end;
		if (turn->placing && !turn->from)
			give_back(turn->triples, lane);
	}
	return MRC_OK;
}

/* One lane. */
static MrcStatus
count(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Turn *turn = arg;
	Lane *lane = &turn->lanes[lo];

	(void) worker;
	(void) hi;
	while (lane->n_clear < turn->to->n_rows)
	{
		int64_t left = turn->to->n_rows - lane->n_clear;
		int64_t n = left < STEP ? left : STEP;

		if (mrc_pool_pausing(turn->pool))
			return MRC_AGAIN;
		memset(lane->next + lane->n_clear, 0, n * sizeof(int64_t));
		lane->n_clear += n;
	}
	return walk(turn, lane);
}

static MrcStatus
place(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Turn *turn = arg;

	(void) worker;
	(void) hi;
	return walk(turn, &turn->lanes[lo]);
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
	turn->placing = true;
	if (status == MRC_OK)
		status = mrc_pool_run(turn->pool, turn->n_lanes, 1, place, turn);
	return status;
}

MrcStatus
mrc_csr_gather(MrcPool *pool, const MrcTriples *triples, MrcCsr *by_user, void *scratch)
{
	Turn turn = {.pool = pool, .triples = triples, .to = by_user};

	return run(&turn, triples->n, scratch);
}

MrcStatus
mrc_csr_turn(MrcPool *pool, const MrcCsr *csr, MrcCsr *turned, void *scratch)
{
	Turn turn = {.pool = pool, .from = csr, .to = turned};

	return run(&turn, csr->start[csr->n_rows], scratch);
}

/* ---- rows in the order of columns ---- */

#define LONG_ROW 65536

typedef struct Sort
{
	MrcPool *pool;
	MrcCsr *csr;
	uint64_t *space; /* of each thread its room, for rows that are not long; for long ones all */
	int64_t room;
	int64_t most; /* entries of a row that is not long */
	bool of_long;
} Sort;

static int64_t
longest_row(const MrcCsr *csr)
{
	int64_t longest = 0;

	for (int64_t row = 0; row < csr->n_rows; row++)
		if (csr->start[row + 1] - csr->start[row] > longest)
			longest = csr->start[row + 1] - csr->start[row];
	return longest;
}

/*
 * A row of more is long: these are sorted one at a time, lest each thread needs room for one.  Nor do all threads together
 * need more than there are entries: few rows are longer than a thread's share.
 */
static int64_t
not_long(const MrcCsr *csr, int64_t longest, int n_threads)
{
	int64_t most = csr->start[csr->n_rows] / n_threads;

	if (most < SHORT_ROW)
		most = SHORT_ROW;
	if (most > LONG_ROW)
		most = LONG_ROW;
	return longest < most ? longest : most;
}

size_t
mrc_sort_scratch_bytes(const MrcCsr *csr, int n_threads)
{
	int64_t longest = longest_row(csr);
	int64_t of_all = not_long(csr, longest, n_threads) * n_threads;

	return 2 * sizeof(uint64_t) * (of_all > longest ? of_all : longest);
}

static bool
is_sorted(const int32_t *index, int64_t n)
{
	for (int64_t e = 1; e < n; e++)
		if (index[e - 1] > index[e])
			return false;
	return true;
}

static void
insert(int32_t *index, float *value, int64_t n)
{
	for (int64_t e = 1; e < n; e++)
	{
		int32_t column = index[e];
		float moved = value[e];
		int64_t at = e;

		for (; at > 0 && index[at - 1] > column; at--)
		{
			index[at] = index[at - 1];
			value[at] = value[at - 1];
		}
		index[at] = column;
		value[at] = moved;
	}
}

/* Stable, by the byte of the column that begins at this bit; entries are the column and, below, the value. */
static void
sort_by_byte(const uint64_t *from, uint64_t *to, int64_t n, int shift)
{
	int64_t at[256] = {0};
	int64_t sum = 0;

	for (int64_t e = 0; e < n; e++)
		at[from[e] >> shift & 0xFF]++;
	for (int byte = 0; byte < 256; byte++)
	{
		int64_t n_here = at[byte];

		at[byte] = sum;
		sum += n_here;
	}
	for (int64_t e = 0; e < n; e++)
		to[at[from[e] >> shift & 0xFF]++] = from[e];
}

/* The row stays as it was until all is done, so that it can give way. */
static MrcStatus
sort_row(const Sort *sort, int32_t *index, float *value, int64_t n, uint64_t *entries, bool may_pause)
{
	uint64_t *other = entries + n;

	if (n <= SHORT_ROW)
	{
		insert(index, value, n);
		return MRC_OK;
	}
	for (int64_t e = 0; e < n; e++)
	{
		uint32_t bits;

		memcpy(&bits, &value[e], sizeof(bits));
		entries[e] = (uint64_t) index[e] << 32 | bits;
	}
	for (int shift = 32; (sort->csr->n_cols - 1) >> (shift - 32) > 0; shift += 8)
	{
		uint64_t *swap = entries;

		if (may_pause && mrc_pool_pausing(sort->pool))
			return MRC_AGAIN;
		sort_by_byte(entries, other, n, shift);
		entries = other;
		other = swap;
	}
	for (int64_t e = 0; e < n; e++)
	{
		uint32_t bits = (uint32_t) entries[e];

		index[e] = (int32_t) (entries[e] >> 32);
		memcpy(&value[e], &bits, sizeof(bits));
	}
	return MRC_OK;
}

/*
 * Rows that are long, or those that are not.  Sorted ones stay so when the task is called again.  Each call sorts one at
 * least, unless that would take long, so that pauses that come faster than the rows can be looked at do not stop it for good.
 */
static MrcStatus
sort_rows(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Sort *sort = arg;
	const MrcCsr *csr = sort->csr;
	uint64_t *space = sort->space + (sort->of_long ? 0 : worker * sort->room);
	bool progressed = false;

	for (int64_t row = lo; row < hi; row++)
	{
		int64_t start = csr->start[row];
		int64_t n = csr->start[row + 1] - start;

		if ((n > sort->most) != sort->of_long)
			continue;
		if (is_sorted(csr->index + start, n))
			continue;
		if (sort_row(sort, csr->index + start, csr->value + start, n, space, progressed || n > LONG_ROW) !=
			MRC_OK)
			return MRC_AGAIN;
		progressed = true;
	}
	return MRC_OK;
}

MrcStatus
mrc_csr_sort(MrcPool *pool, MrcCsr *csr, void *scratch)
{
	int64_t longest = longest_row(csr);
	int64_t most = not_long(csr, longest, mrc_pool_size(pool));
	Sort sort = {pool, csr, scratch, 2 * most, most, false};
	int64_t chunk = csr->n_rows / (16 * mrc_pool_size(pool)) + 1;
	MrcStatus status = mrc_pool_run(pool, csr->n_rows, chunk < 1024 ? chunk : 1024, sort_rows, &sort);

	sort.of_long = true;
	if (status == MRC_OK && longest > most)
		status = mrc_pool_run(pool, csr->n_rows, csr->n_rows, sort_rows, &sort);
	return status;
}
