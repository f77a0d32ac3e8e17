/*
 * index.c: the exact k best items of a user.
 */
#include "core.h"

#include <math.h>
#include <string.h>

#define SCORED_ROWS 256 /* at once, where every item is scored */
#define GATHER_SHARE \
	32 /* candidates are looked up one by one where they are less than such a part of the items */

bool
mrc_top_before(MrcTop a, MrcTop b)
{
	bool nan_a = isnan(a.score);
	bool nan_b = isnan(b.score);

	if (nan_a != nan_b)
		return nan_b;
	if (!nan_a && a.score != b.score)
		return a.score > b.score;
	return a.row < b.row;
}

/* ---- the kept ---- */

/* A search under way. */
typedef struct Seeker
{
	const MrcIndex *index;
	MrcSearch *search;
	MrcDots dots;
	const float *user; /* search->user, or that by its norm */
	bool cosine;
	bool limited;		 /* by categories */
	int32_t *categories; /* of the kept, if limited */
	int64_t n;	   /* kept: in search->top, as a heap whose root is the worst, or in any order if limited */
	int64_t worst; /* limited, n = k: where it is */
} Seeker;

/* Sink the element at i. */
static void
sink(MrcTop *heap, int64_t n, int64_t i)
{
	MrcTop moving = heap[i];

	for (;;)
	{
		int64_t child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && mrc_top_before(heap[child], heap[child + 1]))
			child++;
		if (!mrc_top_before(moving, heap[child]))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

static void
keep_best(Seeker *seeker, MrcTop candidate)
{
	MrcTop *heap = seeker->search->top;

	if (seeker->n < seeker->search->k)
	{
		int64_t i = seeker->n++;

		while (i > 0 && mrc_top_before(heap[(i - 1) / 2], candidate))
		{
			heap[i] = heap[(i - 1) / 2];
			i = (i - 1) / 2;
		}
		heap[i] = candidate;
	}
	else if (mrc_top_before(candidate, heap[0]))
	{
		heap[0] = candidate;
		sink(heap, seeker->n, 0);
	}
}

/*
 * With a limit per category the kept are at any time the best that may stand together of all that came (the independent
 * sets of a partition matroid, cut off at k): what comes to a full category takes the place of the worst of it, or of
 * none; what comes to a full list takes the place of the worst of all, or of none.  So one pass is exact.
 */
static void
keep_limited(Seeker *seeker, MrcTop candidate)
{
	const MrcSearch *search = seeker->search;
	MrcTop *top = search->top;
	int32_t category = search->category[candidate.row];
	int64_t limit = search->max_per_category - (category == search->used_category ? search->n_used : 0);
	int64_t n_same = 0;
	int64_t at = seeker->n;

	if (category >= 0)
	{
		for (int64_t i = 0; i < seeker->n; i++)
			if (seeker->categories[i] == category)
				at = n_same++ == 0 || mrc_top_before(top[at], top[i]) ? i : at;
		if (limit <= 0)
			return;
	}
	if (category < 0 || n_same < limit)
		at = seeker->n < search->k ? seeker->n : seeker->worst;
	if (at == seeker->n)
		seeker->n++;
	else if (!mrc_top_before(candidate, top[at]))
		return;
	top[at] = candidate;
	seeker->categories[at] = category;
	if (seeker->n < search->k)
		return;
	seeker->worst = 0;
	for (int64_t i = 1; i < seeker->n; i++)
		if (mrc_top_before(top[seeker->worst], top[i]))
			seeker->worst = i;
}

static void
keep(Seeker *seeker, float score, int32_t row)
{
	if (seeker->limited)
		keep_limited(seeker, (MrcTop){score, row});
	else
		keep_best(seeker, (MrcTop){score, row});
}

/* No row with a score below this can be kept; NaN: any may. */
static float
threshold(const Seeker *seeker)
{
	if (seeker->n < seeker->search->k)
		return -INFINITY;
	return seeker->search->top[seeker->limited ? seeker->worst : 0].score;
}

/* The kept as a list, best first. */
static void
finish(Seeker *seeker)
{
	MrcTop *top = seeker->search->top;

	if (seeker->limited)
		for (int64_t i = seeker->n / 2 - 1; i >= 0; i--)
			sink(top, seeker->n, i);
	for (int64_t last = seeker->n - 1; last > 0; last--)
	{
		MrcTop worst = top[0];

		top[0] = top[last];
		top[last] = worst;
		sink(top, last, 0);
	}
	seeker->search->n_top = seeker->n;
}

/* ---- which rows ---- */

static bool
contains(const int32_t *sorted, int64_t n, int32_t wanted)
{
	if (n == 0)
		return false;
	while (n > 1)
	{
		int64_t half = n / 2;

		sorted += sorted[half] <= wanted ? half : 0;
		n -= half;
	}
	return *sorted == wanted;
}

/* Whether the row may be listed, with no boost. */
static bool
is_open(const MrcSearch *search, int32_t row)
{
	return !contains(search->skip, search->n_skip, row) &&
		!contains(search->boosted, search->n_boosted, row) &&
		(search->only == NULL || contains(search->only, search->n_only, row));
}

/* ---- scores ---- */

static double
norm_of(const float *x, int rank)
{
	double sum = 0;

	for (int i = 0; i < rank; i++)
		sum += (double) x[i] * x[i];
	return sqrt(sum);
}

/* The score from the inner product. */
static float
score_of(const Seeker *seeker, float product, int32_t row)
{
	double norm;

	if (!seeker->cosine)
		return product;
	norm = norm_of(seeker->index->items + (int64_t) row * seeker->index->rank, seeker->index->rank);
	return norm == 0 ? 0 : (float) (product / norm);
}

static void
score_row(Seeker *seeker, int32_t row)
{
	const MrcIndex *index = seeker->index;
	float product;

	seeker->dots(seeker->user, index->items + (int64_t) row * index->rank, 1, index->rank, &product);
	keep(seeker, score_of(seeker, product, row), row);
}

/* Those that have a boost, or may be listed at all, are few: one by one. */
static void
score_boosted(Seeker *seeker)
{
	const MrcSearch *search = seeker->search;
	const MrcIndex *index = seeker->index;

	for (int64_t i = 0; i < search->n_boosted; i++)
	{
		int32_t row = search->boosted[i];
		float product;

		if (contains(search->skip, search->n_skip, row) ||
			(search->only && !contains(search->only, search->n_only, row)))
			continue;
		seeker->dots(seeker->user, index->items + (int64_t) row * index->rank, 1, index->rank, &product);
		keep(seeker, product + search->boost[i], row);
	}
}

static void
score_only(Seeker *seeker)
{
	const MrcSearch *search = seeker->search;

	for (int64_t i = 0; i < search->n_only; i++)
		if (is_open(search, search->only[i]))
			score_row(seeker, search->only[i]);
}

static void
score_all(Seeker *seeker)
{
	const MrcIndex *index = seeker->index;
	float products[SCORED_ROWS];

	for (int64_t lo = 0; lo < index->n_items; lo += SCORED_ROWS)
	{
		int n = (int) (index->n_items - lo < SCORED_ROWS ? index->n_items - lo : SCORED_ROWS);

		seeker->dots(seeker->user, index->items + lo * index->rank, n, index->rank, products);
		for (int i = 0; i < n; i++)
		{
			int32_t row = (int32_t) (lo + i);
			float score = score_of(seeker, products[i], row);

			if (!(score < threshold(seeker)) && is_open(seeker->search, row))
				keep(seeker, score, row);
		}
	}
}

/* ---- searches ---- */

static void
begin(Seeker *seeker, const MrcIndex *index, MrcSearch *search, void *scratch)
{
	*seeker = (Seeker){.index = index,
					   .search = search,
					   .dots = mrc_dots_at(index->lanes),
					   .user = search->user,
					   .limited = search->category && search->max_per_category > 0,
					   .categories = scratch};
}

static size_t
rounded(size_t n_bytes)
{
	return (n_bytes + 63) / 64 * 64;
}

size_t
mrc_search_scratch_bytes(const MrcIndex *index, int64_t k)
{
	return rounded((size_t) k * sizeof(int32_t)) + rounded((size_t) index->rank * sizeof(float));
}

static void
run(Seeker *seeker)
{
	const MrcSearch *search = seeker->search;

	score_boosted(seeker);
	if (search->only && search->n_only < seeker->index->n_items / GATHER_SHARE)
		score_only(seeker);
	else
		score_all(seeker);
	finish(seeker);
}

void
mrc_search(const MrcIndex *index, MrcSearch *search, void *scratch)
{
	Seeker seeker;

	begin(&seeker, index, search, scratch);
	run(&seeker);
}

void
mrc_similar(const MrcIndex *index, MrcSearch *search, void *scratch)
{
	float *user = (float *) ((char *) scratch + rounded((size_t) search->k * sizeof(int32_t)));
	double norm = norm_of(search->user, index->rank);
	Seeker seeker;

	for (int i = 0; i < index->rank; i++)
		user[i] = norm == 0 ? 0 : (float) (search->user[i] / norm);
	begin(&seeker, index, search, scratch);
	seeker.user = user;
	seeker.cosine = true;
	run(&seeker);
}

typedef struct Many
{
	const MrcIndex *index;
	MrcSearch *searches;
	char *workers;
	size_t worker_bytes;
} Many;

static MrcStatus
many_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Many *many = arg;

	for (; lo < hi; lo++)
		mrc_search(many->index, &many->searches[lo], many->workers + (size_t) worker * many->worker_bytes);
	return MRC_OK;
}

size_t
mrc_search_many_scratch_bytes(const MrcIndex *index, int64_t k, int n_threads)
{
	return rounded(sizeof(Many)) + (size_t) n_threads * mrc_search_scratch_bytes(index, k);
}

void
mrc_search_begin(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch)
{
	Many *many = scratch;
	int64_t k = 0;

	for (int64_t i = 0; i < n; i++)
		k = searches[i].k > k ? searches[i].k : k;
	*many =
		(Many){index, searches, (char *) scratch + rounded(sizeof(Many)), mrc_search_scratch_bytes(index, k)};
	mrc_pool_begin(pool, n, 1, many_task, many);
}

MrcStatus
mrc_search_end(MrcPool *pool)
{
	return mrc_pool_end(pool);
}

MrcStatus
mrc_search_many(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch)
{
	mrc_search_begin(pool, index, searches, n, scratch);
	return mrc_search_end(pool);
}

/* ---- the index ---- */

size_t
mrc_index_bytes(int64_t n_items, int rank)
{
	(void) n_items;
	(void) rank;
	return 64;
}

size_t
mrc_index_scratch_bytes(int64_t n_items)
{
	(void) n_items;
	return 64;
}

MrcStatus
mrc_index_build(MrcPool *pool, const float *items, int64_t n_items, int rank, void *memory, void *scratch)
{
	(void) pool;
	(void) items;
	(void) scratch;
	memset(memory, 0, mrc_index_bytes(n_items, rank));
	return MRC_OK;
}

void
mrc_index_open(MrcIndex *index, const float *items, int64_t n_items, int rank, const void *memory)
{
	(void) memory;
	*index = (MrcIndex){.items = items, .n_items = n_items, .rank = rank};
}
