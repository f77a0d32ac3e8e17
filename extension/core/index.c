/*
 * index.c: the exact k best items of a user.
 *
 * Items stand in blocks of 64, by descending norm, as codes of 8 bits.  With v an item, q its codes, s the scale of its
 * block and d = v - s q what the codes leave out, and likewise u, c, t and e for the user:
 *     u.v = t s c.q + t c.d + e.v <= t s c.q + t |c| |d| + |e| |v|                                      (Cauchy, Schwarz)
 * So a row that is to beat the worst of the kept, its score w, must have c.q >= (w - t |c| |d| - |e| |v|) / (t s), where |d|
 * and |v| are the block's greatest: one whole number for 64 items.  Those that reach it, few, are scored by mrc_dot()
 * in their full precision; and where |u| |v| < w for a block, all that follow it may be left.  Whole numbers are summed
 * exactly, so every processor finds the same, and the bounds are rounded so that nothing that counts is lost:
 *     mrc_dot() is off by less than ROUNDING (rank + 8) |u| |v| + TINY (Higham, Accuracy and Stability, 3.1),
 * which |e| |v| is increased by; what is computed in doubles here is off by far less than that.
 *
 * Rows with boosts, and those whose factors or norms are not finite, are scored one by one; so are all for a user whose
 * factors are so large that a product could leave the range of float.
 *
 * Codes of a block: of the first four columns, those of item 0, then of item 1 …; then of the next four.  A code is
 * q + 128, 1 … 255, so that instructions can multiply it with a signed code of the user; 128 sum c is what that adds.
 */
#include "core.h"

#include <math.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BLOCK_ITEMS 64
#define STEP_BYTES (4 * BLOCK_ITEMS) /* codes of four columns */
#define CODE_ZERO 128
#define ROUNDING 0x1p-23
#define TINY 0x1p-130  /* products of float that are too small to be exact */
#define WIDER 1.000001 /* what is computed in double is smaller than with so much more */
#define MOST 1e37	   /* a product of norms, far enough from where float ends */
#define TILE_USERS 6   /* of which a block is read once */
#define AT_ONCE 96	   /* users of a task of many, a multiple of TILE_USERS */
#define LONG_LIST 4096
#define BUILD_BLOCKS 8 /* of a task of the building */
#define BUILD_ROWS 1024

#define FEW_SEARCHES 32 /* score every item in the time that an index takes */
#define SCORED_ROWS 256 /* at once, where every item is scored */
#define GATHER_SHARE \
	32 /* candidates are looked up one by one where they are less than such a part of the items */

/* What holds for the items of a block, rounded up. */
struct MrcBound
{
	double inverse;	   /* 1 / s */
	double error;	   /* |d| / s, the greatest */
	double norm;	   /* |v|, the greatest; descends from block to block */
	double least_norm; /* the least, rounded down */
};

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
	/* the user's codes, and all by t */
	int8_t *codes;	  /* four by step */
	double inverse;	  /* 1 / t */
	double code_norm; /* |c| */
	double error;	  /* |e| and what mrc_dot() may be off by, |v| = 1 */
	double reach;	  /* the most that mrc_dot() may be, |v| = 1 */
	double zero;	  /* what CODE_ZERO adds to c.q */
	int64_t n;	   /* kept: in search->top, as a heap whose root is the worst, or in any order if limited */
	int64_t worst; /* limited, n > 0: where it is */
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

/* No more rows of the category may be kept than are. */
static bool
is_full(const Seeker *seeker, int32_t category)
{
	const MrcSearch *search = seeker->search;
	int64_t limit = search->max_per_category - (category == search->used_category ? search->n_used : 0);
	int64_t n_same = 0;

	if (category < 0)
		return false;
	for (int64_t i = 0; i < seeker->n; i++)
		n_same += seeker->categories[i] == category;
	return n_same >= limit;
}

/* Where the worst of the kept of the category is; -1: there is none. */
static int64_t
worst_of(const Seeker *seeker, int32_t category)
{
	const MrcTop *top = seeker->search->top;
	int64_t at = -1;

	for (int64_t i = 0; i < seeker->n; i++)
		if (seeker->categories[i] == category && (at < 0 || mrc_top_before(top[at], top[i])))
			at = i;
	return at;
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
	int64_t at = seeker->n < search->k ? seeker->n : seeker->worst;

	if (is_full(seeker, category))
	{
		at = worst_of(seeker, category);
		if (at < 0)
			return;
	}
	if (at < seeker->n && !mrc_top_before(candidate, top[at]))
		return;
	top[at] = candidate;
	seeker->categories[at] = category;
	if (at == seeker->n)
	{
		if (seeker->n++ == 0 || mrc_top_before(top[seeker->worst], candidate))
			seeker->worst = at;
		return;
	}
	if (at != seeker->worst)
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

/* Categories that are not full may add to the list whatever they have. */
static bool
is_filling(const Seeker *seeker)
{
	return seeker->limited && seeker->n < seeker->search->k;
}

/* No row with a score below this can be kept, but of categories that are not full where is_filling(); NaN: any may. */
static float
threshold(const Seeker *seeker)
{
	if (seeker->n == 0 || (seeker->n < seeker->search->k && !seeker->limited))
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
	double sum[4] = {0};
	int i = 0;

	for (; i + 4 <= rank; i += 4)
		for (int j = 0; j < 4; j++)
			sum[j] += (double) x[i + j] * x[i + j];
	for (; i < rank; i++)
		sum[0] += (double) x[i] * x[i];
	return sqrt(sum[0] + sum[1] + sum[2] + sum[3]);
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

			if ((is_filling(seeker) || !(score < threshold(seeker))) && is_open(seeker->search, row))
				keep(seeker, score, row);
		}
	}
}

/* ---- codes ---- */

/*
 * Bit i of mask[u] is set where item i of the block has c.(q + 128) >= least[u].  codes: of n users, their first columns
 * stride apart, 4 * steps each.
 */
typedef void (*Scan)(const uint8_t *block, int steps, const int8_t *codes, size_t stride, int n,
					 const int32_t *least, uint64_t *mask);

typedef struct Scanner
{
	Scan scan;
	int most; /* the greatest code of a user */
} Scanner;

#if defined(__x86_64__)
#define VNNI __attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni")))
#define AVX2 __attribute__((target("avx2")))

/* One user's four columns in every lane. */
VNNI static inline __attribute__((always_inline)) __m512i
lanes_of(const int8_t *codes)
{
	int32_t four;

	memcpy(&four, codes, 4);
	return _mm512_set1_epi32(four);
}

/* n users and one block: 4 n sums, 4 vectors of codes and one of a user's are all the registers there are. */
VNNI static inline __attribute__((always_inline)) void
tile_vnni(const uint8_t *block, int steps, const int8_t *codes, size_t stride, const int n,
		  const int32_t *least, uint64_t *mask)
{
	typedef int32_t Sums __attribute__((vector_size(64))); /* with __m512i compilers keep copies in memory */
	Sums sum[TILE_USERS][4];

#pragma GCC unroll 6
	for (int u = 0; u < n; u++)
#pragma GCC unroll 4
		for (int i = 0; i < 4; i++)
			sum[u][i] = (Sums){0};
	for (int step = 0; step < steps; step++, block += STEP_BYTES, codes += 4)
	{
		__m512i items[4];

#pragma GCC unroll 4
		for (int i = 0; i < 4; i++)
			items[i] = _mm512_loadu_si512(block + i * 64);
#pragma GCC unroll 6
		for (int u = 0; u < n; u++)
		{
			__m512i code = lanes_of(codes + (size_t) u * stride);

#pragma GCC unroll 4
			for (int i = 0; i < 4; i++)
				sum[u][i] = (Sums) _mm512_dpbusd_epi32((__m512i) sum[u][i], items[i], code);
		}
	}
#pragma GCC unroll 6
	for (int u = 0; u < n; u++)
	{
		__m512i wanted = _mm512_set1_epi32(least[u]);

		mask[u] = 0;
#pragma GCC unroll 4
		for (int i = 0; i < 4; i++)
			mask[u] |= (uint64_t) _mm512_cmpge_epi32_mask((__m512i) sum[u][i], wanted) << 16 * i;
	}
}

VNNI static void
scan_vnni(const uint8_t *block, int steps, const int8_t *codes, size_t stride, int n, const int32_t *least,
		  uint64_t *mask)
{
	for (; n >= TILE_USERS; n -= TILE_USERS, codes += TILE_USERS * stride, least += TILE_USERS)
	{
		tile_vnni(block, steps, codes, stride, TILE_USERS, least, mask);
		mask += TILE_USERS;
	}
	switch (n)
	{
		case 5:
			tile_vnni(block, steps, codes, stride, 5, least, mask);
			break;
		case 4:
			tile_vnni(block, steps, codes, stride, 4, least, mask);
			break;
		case 3:
			tile_vnni(block, steps, codes, stride, 3, least, mask);
			break;
		case 2:
			tile_vnni(block, steps, codes, stride, 2, least, mask);
			break;
		case 1:
			tile_vnni(block, steps, codes, stride, 1, least, mask);
			break;
	}
}

/* Sums of two products must fit 16 bits: 2 * 255 * 63 does. */
AVX2 static void
scan_avx2(const uint8_t *block, int steps, const int8_t *codes, size_t stride, int n, const int32_t *least,
		  uint64_t *mask)
{
	const __m256i ones = _mm256_set1_epi16(1);

	for (int u = 0; u < n; u++, codes += stride)
	{
		__m256i below = _mm256_set1_epi32(least[u]);
		__m256i sum[8];

		mask[u] = 0;
#pragma GCC unroll 8
		for (int i = 0; i < 8; i++)
			sum[i] = _mm256_setzero_si256();
		for (int step = 0; step < steps; step++)
		{
			__m256i code;
			int32_t four;

			memcpy(&four, codes + 4 * (size_t) step, 4);
			code = _mm256_set1_epi32(four);
#pragma GCC unroll 8
			for (int i = 0; i < 8; i++)
			{
				__m256i items = _mm256_loadu_si256(
					(const __m256i *) (const void *) (block + (size_t) step * STEP_BYTES + 32 * i));

				sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(items, code), ones));
			}
		}
#pragma GCC unroll 8
		for (int i = 0; i < 8; i++)
			mask[u] |= (uint64_t) (uint8_t) ~_mm256_movemask_ps(
						   _mm256_castsi256_ps(_mm256_cmpgt_epi32(below, sum[i])))
				<< 8 * i;
	}
}
#endif

static void
scan_plain(const uint8_t *block, int steps, const int8_t *codes, size_t stride, int n, const int32_t *least,
		   uint64_t *mask)
{
	for (int u = 0; u < n; u++, codes += stride)
	{
		int32_t sum[BLOCK_ITEMS] = {0};

		for (int step = 0; step < steps; step++)
		{
			const uint8_t *items = block + (size_t) step * STEP_BYTES;
			const int8_t *code = codes + 4 * (size_t) step;

			for (int i = 0; i < BLOCK_ITEMS; i++)
				sum[i] += items[4 * i] * code[0] + items[4 * i + 1] * code[1] + items[4 * i + 2] * code[2] +
					items[4 * i + 3] * code[3];
		}
		mask[u] = 0;
		for (int i = 0; i < BLOCK_ITEMS; i++)
			mask[u] |= (uint64_t) (sum[i] >= least[u]) << i;
	}
}

/* lanes: as in MrcAls. */
static Scanner
scanner_of(int lanes)
{
	lanes = mrc_lanes(lanes);
#if defined(__x86_64__)
	if (lanes == 16 && __builtin_cpu_supports("avx512vnni"))
		return (Scanner){scan_vnni, 127};
	if (lanes >= 8)
		return (Scanner){scan_avx2, 63};
#endif
	return (Scanner){scan_plain, 127};
}

static int
steps_of(int rank)
{
	return (rank + 3) / 4;
}

/* The user's codes, 4 * steps. */
static void
encode_user(Seeker *seeker, int most, double norm)
{
	int rank = seeker->index->rank;
	double greatest = 0;
	double scale;
	double left = 0;
	int64_t sum = 0;
	int64_t squares = 0;

	for (int i = 0; i < rank; i++)
		greatest = fmax(greatest, fabsf(seeker->user[i]));
	scale = greatest > 0 ? greatest / most : 1;
	seeker->inverse = 1 / scale;
	for (int i = 0; i < rank; i++)
	{
		int code = (int) (seeker->user[i] * seeker->inverse + (most + 0.5)) - most;
		double error = seeker->user[i] - scale * code;

		seeker->codes[i] = (int8_t) code;
		sum += code;
		squares += code * code;
		left += error * error;
	}
	for (int i = rank; i < 4 * steps_of(rank); i++)
		seeker->codes[i] = 0;
	seeker->code_norm = sqrt((double) squares) * WIDER;
	seeker->error = (sqrt(left) + ROUNDING * (rank + 8) * norm) * seeker->inverse * WIDER;
	seeker->zero = (double) (CODE_ZERO * sum);
	seeker->reach = (1 + ROUNDING * (rank + 8)) * norm * seeker->inverse * WIDER;
}

/* The score that an item must reach to be kept, by t; it may be a NaN, for which all is kept. */
static double
wanted_by(const Seeker *seeker, double score)
{
	return (score - TINY) * seeker->inverse;
}

/* What the codes of an item of the block must reach to be kept. */
static inline int32_t
least_of(const MrcBound *bound, double wanted, double error, double code_norm, double zero)
{
	double least = (wanted - error * bound->norm) * bound->inverse - code_norm * bound->error + zero;

	least = least > INT32_MIN ? least : INT32_MIN; /* a NaN, too */
	return (int32_t) (least < INT32_MAX ? least : INT32_MAX);
}

/* Bits of the items of the block that may be kept whatever their score. */
static uint64_t
filling_mask(const Seeker *seeker, int64_t block)
{
	const MrcIndex *index = seeker->index;
	const int32_t *row = index->row + index->n_odd + block * BLOCK_ITEMS;
	int64_t n = index->n_items - index->n_odd - block * BLOCK_ITEMS;
	uint64_t mask = 0;

	if (!is_filling(seeker))
		return 0;
	for (int i = 0; i < BLOCK_ITEMS && i < n; i++)
		mask |= (uint64_t) !is_full(seeker, seeker->search->category[row[i]]) << i;
	return mask;
}

/* Items of the block: bits of mask. */
static void
score_block(Seeker *seeker, int64_t block, uint64_t mask)
{
	const MrcIndex *index = seeker->index;
	const int32_t *row = index->row + index->n_odd + block * BLOCK_ITEMS;
	int64_t n = index->n_items - index->n_odd - block * BLOCK_ITEMS;

	if (n < BLOCK_ITEMS)
		mask &= ((uint64_t) 1 << n) - 1;
	for (; mask != 0; mask &= mask - 1)
	{
		int32_t candidate = row[__builtin_ctzll(mask)];

		if (is_open(seeker->search, candidate))
			score_row(seeker, candidate);
	}
}

static void
score_odd(Seeker *seeker)
{
	const MrcIndex *index = seeker->index;

	for (int64_t i = 0; i < index->n_odd; i++)
		if (is_open(seeker->search, index->row[i]))
			score_row(seeker, index->row[i]);
}

static const uint8_t *
block_codes(const MrcIndex *index, int64_t block)
{
	return index->codes + (size_t) block * (size_t) steps_of(index->rank) * STEP_BYTES;
}

static void
search_codes(Seeker *seeker, Scan scan)
{
	const MrcIndex *index = seeker->index;
	int steps = steps_of(index->rank);

	for (int64_t block = 0; block < index->n_blocks; block++)
	{
		const MrcBound *bound = &index->bounds[block];
		double score = threshold(seeker);
		int32_t least;
		uint64_t mask;

		if (seeker->cosine)
			score *= score > 0 ? bound->least_norm : bound->norm;
		else if (!is_filling(seeker) && seeker->reach * bound->norm < wanted_by(seeker, score))
			break;
		least = least_of(bound, wanted_by(seeker, score), seeker->error, seeker->code_norm, seeker->zero);
		scan(block_codes(index, block), steps, seeker->codes, 0, 1, &least, &mask);
		mask |= filling_mask(seeker, block);
		if (mask != 0)
			score_block(seeker, block, mask);
	}
}

/* ---- searches ---- */

static size_t
rounded(size_t n_bytes)
{
	return (n_bytes + 63) / 64 * 64;
}

static size_t
codes_bytes(int rank)
{
	return 4 * (size_t) steps_of(rank);
}

static size_t
categories_bytes(int64_t k)
{
	return rounded((size_t) k * sizeof(int32_t));
}

size_t
mrc_search_scratch_bytes(const MrcIndex *index, int64_t k)
{
	return categories_bytes(k) + rounded(codes_bytes(index->rank)) +
		rounded((size_t) index->rank * sizeof(float));
}

/* The part of a search that comes before the codes; true if these are to be searched, else it is done. */
static bool
begin(Seeker *seeker, const MrcIndex *index, MrcSearch *search, const Scanner *scanner, bool cosine,
	  const float *user, int32_t *categories, int8_t *codes)
{
	double norm;

	*seeker = (Seeker){.index = index,
					   .search = search,
					   .dots = mrc_dots_at(index->lanes),
					   .user = user,
					   .cosine = cosine,
					   .limited = search->category && search->max_per_category > 0,
					   .categories = categories,
					   .codes = codes};
	score_boosted(seeker);
	norm = norm_of(user, index->rank);
	if (search->only && search->n_only < index->n_items / GATHER_SHARE)
		score_only(seeker);
	else if (index->row == NULL || !(norm * index->norm <= MOST))
		score_all(seeker);
	else
	{
		encode_user(seeker, scanner->most, norm);
		score_odd(seeker);
		return true;
	}
	finish(seeker);
	return false;
}

static void
search_one(const MrcIndex *index, MrcSearch *search, bool cosine, const float *user, char *scratch)
{
	Scanner scanner = scanner_of(index->lanes);
	Seeker seeker;

	if (!begin(&seeker, index, search, &scanner, cosine, user, (int32_t *) (void *) scratch,
			   (int8_t *) scratch + categories_bytes(search->k)))
		return;
	search_codes(&seeker, scanner.scan);
	finish(&seeker);
}

void
mrc_search(const MrcIndex *index, MrcSearch *search, void *scratch)
{
	search_one(index, search, false, search->user, scratch);
}

void
mrc_similar(const MrcIndex *index, MrcSearch *search, void *scratch)
{
	char *at = (char *) scratch + categories_bytes(search->k) + rounded(codes_bytes(index->rank));
	float *user = (float *) (void *) at;
	double norm = norm_of(search->user, index->rank);

	for (int i = 0; i < index->rank; i++)
		user[i] = norm == 0 ? 0 : (float) (search->user[i] / norm);
	search_one(index, search, true, user, scratch);
}

/* ---- many searches ---- */

/* Users of a task who still read blocks.  The numbers are those of Seeker. */
typedef struct Group
{
	Seeker seekers[AT_ONCE];
	int n;
	double wanted[AT_ONCE];
	double error[AT_ONCE];
	double code_norm[AT_ONCE];
	double reach[AT_ONCE];
	double zero[AT_ONCE];
	int32_t least[AT_ONCE];
	uint64_t mask[AT_ONCE];
} Group;

typedef struct Many
{
	MrcPool *pool; /* NULL: on the calling thread, without pauses */
	const MrcIndex *index;
	MrcSearch *searches;
	int64_t k; /* the greatest */
	char *workers;
	size_t worker_bytes;
} Many;

/* Users of a task: fewer for long lists, for the memory that these take. */
static int
at_once(int64_t k)
{
	return k <= LONG_LIST ? AT_ONCE : k < LONG_LIST * AT_ONCE ? (int) (LONG_LIST * AT_ONCE / k) : 1;
}

/* At least the categories of at_once(j) lists of j rows, for every j up to k. */
static size_t
lists_bytes(int64_t k)
{
	return AT_ONCE * categories_bytes(k < LONG_LIST ? k : LONG_LIST) +
		(k > LONG_LIST ? categories_bytes(k) : 0);
}

static size_t
many_worker_bytes(const MrcIndex *index, int64_t k)
{
	return rounded(sizeof(Group)) + lists_bytes(k) + rounded(AT_ONCE * codes_bytes(index->rank));
}

size_t
mrc_search_many_scratch_bytes(const MrcIndex *index, int64_t k, int n_threads)
{
	return rounded(sizeof(Many)) + (size_t) n_threads * many_worker_bytes(index, k);
}

/* The numbers of user i as his seeker has them. */
static void
place_user(Group *group, int i)
{
	const Seeker *seeker = &group->seekers[i];

	group->wanted[i] = wanted_by(seeker, threshold(seeker));
	group->error[i] = seeker->error;
	group->code_norm[i] = seeker->code_norm;
	group->reach[i] = is_filling(seeker) ? INFINITY : seeker->reach;
	group->zero[i] = seeker->zero;
}

/* User i is done, and gives his place to the last. */
static void
leave_group(Group *group, int i, size_t stride)
{
	int8_t *codes = group->seekers[i].codes;
	int last = --group->n;

	finish(&group->seekers[i]);
	if (i == last)
		return;
	memcpy(codes, group->seekers[last].codes, stride);
	group->seekers[i] = group->seekers[last];
	group->seekers[i].codes = codes;
	place_user(group, i);
}

/* What each must reach in the block, without those for whom neither it nor one that follows has anything. */
static void
begin_block(Group *group, const MrcBound *bound, size_t stride)
{
	int n_over = 0;

	for (int i = 0; i < group->n; i++)
		n_over += group->reach[i] * bound->norm < group->wanted[i];
	for (int i = 0; i < group->n && n_over > 0; i++)
		while (i < group->n && group->reach[i] * bound->norm < group->wanted[i])
			leave_group(group, i, stride);
	for (int i = 0; i < group->n; i++)
		group->least[i] =
			least_of(bound, group->wanted[i], group->error[i], group->code_norm[i], group->zero[i]);
}

static MrcStatus
many_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Many *many = arg;
	const MrcIndex *index = many->index;
	Scanner scanner = scanner_of(index->lanes);
	char *at = many->workers + (size_t) worker * many->worker_bytes;
	Group *group = (Group *) (void *) at;
	char *categories = at + rounded(sizeof(Group));
	int8_t *codes = (int8_t *) categories + (size_t) at_once(many->k) * categories_bytes(many->k);
	size_t stride = codes_bytes(index->rank);
	int steps = steps_of(index->rank);

	group->n = 0;
	for (int64_t i = lo; i < hi; i++)
	{
		MrcSearch *search = &many->searches[i];

		if (begin(&group->seekers[group->n], index, search, &scanner, false, search->user,
				  (int32_t *) (void *) (categories + (size_t) (i - lo) * categories_bytes(many->k)),
				  codes + (size_t) group->n * stride))
			place_user(group, group->n++);
	}
	for (int64_t block = 0; block < index->n_blocks && group->n > 0; block++)
	{
		const MrcBound *bound = &index->bounds[block];

		if (many->pool && mrc_pool_pausing(many->pool))
			return MRC_AGAIN;
		begin_block(group, bound, stride);
		scanner.scan(block_codes(index, block), steps, codes, stride, group->n, group->least, group->mask);
		for (int i = 0; i < group->n; i++)
		{
			uint64_t mask = group->mask[i] | filling_mask(&group->seekers[i], block);

			if (mask == 0)
				continue;
			score_block(&group->seekers[i], block, mask);
			place_user(group, i);
		}
	}
	while (group->n > 0)
		leave_group(group, group->n - 1, stride);
	return MRC_OK;
}

/* scratch: what begins with it is set. */
static Many *
many_of(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch)
{
	Many *many = scratch;
	int64_t k = 1;

	for (int64_t i = 0; i < n; i++)
		k = searches[i].k > k ? searches[i].k : k;
	*many = (Many){
		pool, index, searches, k, (char *) scratch + rounded(sizeof(Many)), many_worker_bytes(index, k)};
	return many;
}

void
mrc_search_group(const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch)
{
	Many *many = many_of(NULL, index, searches, n, scratch);
	int chunk = at_once(many->k);

	for (int64_t lo = 0; lo < n; lo += chunk)
		(void) many_task(many, 0, lo, n - lo < chunk ? n : lo + chunk);
}

void
mrc_search_begin(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch)
{
	Many *many = many_of(pool, index, searches, n, scratch);
	int64_t each = (n + mrc_pool_size(pool) - 1) / mrc_pool_size(pool);

	mrc_pool_begin(pool, n, each < at_once(many->k) ? each : at_once(many->k), many_task, many);
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

/* What the memory of an index begins with; then the bounds, the rows and the codes follow, at multiples of 64. */
typedef struct Head
{
	int64_t n_odd;
	double norm;
	int64_t unused[6];
} Head;

/* Where they are. */
typedef struct Parts
{
	size_t bounds;
	size_t row;
	size_t codes;
	size_t n_bytes;
} Parts;

static Parts
parts_of(int64_t n_items, int rank)
{
	size_t n_blocks = (size_t) (n_items + BLOCK_ITEMS - 1) / BLOCK_ITEMS;
	Parts parts = {.bounds = sizeof(Head)};

	parts.row = parts.bounds + rounded(n_blocks * sizeof(MrcBound));
	parts.codes = parts.row + rounded((size_t) n_items * sizeof(int32_t));
	parts.n_bytes = parts.codes + n_blocks * (size_t) steps_of(rank) * STEP_BYTES;
	return parts;
}

size_t
mrc_index_bytes(int64_t n_items, int rank)
{
	return parts_of(n_items, rank).n_bytes;
}

/* An item on its way to its position. */
typedef struct Place
{
	uint32_t key; /* ascends as norms descend */
	int32_t row;
} Place;

size_t
mrc_index_scratch_bytes(int64_t n_items)
{
	return 2 * (size_t) n_items * sizeof(Place) + sizeof(Place);
}

typedef struct Build
{
	const float *items;
	int64_t n_items;
	int rank;
	Head *head;
	MrcBound *bounds;
	int32_t *row;
	uint8_t *codes;
	Place *places;
	Place *spare;
} Build;

/* The bits of norms of float, not negative, ascend with them; 0 for what is not finite. */
static uint32_t
key_of_norm(double norm)
{
	float single = (float) norm;
	uint32_t bits;

	if (!(single <= 3.4028235e38f))
		return 0;
	memcpy(&bits, &single, sizeof(bits));
	return UINT32_MAX - bits;
}

static double
norm_of_key(uint32_t key)
{
	uint32_t bits = UINT32_MAX - key;
	float single;

	memcpy(&single, &bits, sizeof(single));
	return single;
}

static MrcStatus
norms_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Build *build = arg;

	(void) worker;
	for (; lo < hi; lo++)
		build->places[lo] =
			(Place){key_of_norm(norm_of(build->items + lo * build->rank, build->rank)), (int32_t) lo};
	return MRC_OK;
}

/* By key, equal ones as they were: four rounds, by a byte each. */
static MrcStatus
sort_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Build *build = arg;
	Place *from = build->places;
	Place *to = build->spare;

	(void) worker;
	(void) lo;
	(void) hi;
	for (int shift = 0; shift < 32; shift += 8)
	{
		int64_t start[257] = {0};
		Place *turned = from;

		for (int64_t i = 0; i < build->n_items; i++)
			start[(from[i].key >> shift & 255) + 1]++;
		for (int i = 0; i < 256; i++)
			start[i + 1] += start[i];
		for (int64_t i = 0; i < build->n_items; i++)
			to[start[from[i].key >> shift & 255]++] = from[i];
		from = to;
		to = turned;
	}
	return MRC_OK;
}

static void
build_block(const Build *build, int64_t block)
{
	int rank = build->rank;
	int64_t first = build->head->n_odd + block * BLOCK_ITEMS;
	int n = (int) (build->n_items - first < BLOCK_ITEMS ? build->n_items - first : BLOCK_ITEMS);
	uint8_t *codes = build->codes + (size_t) block * (size_t) steps_of(rank) * STEP_BYTES;
	double greatest = 0;
	double error = 0;
	double scale;
	double inverse;

	for (int item = 0; item < n; item++)
	{
		const float *v = build->items + (int64_t) build->places[first + item].row * rank;

		build->row[first + item] = build->places[first + item].row;
		for (int i = 0; i < rank; i++)
			greatest = fmax(greatest, fabsf(v[i]));
	}
	scale = greatest > 0 ? greatest / 127 : 1;
	inverse = 1 / scale;
	memset(codes, CODE_ZERO, (size_t) steps_of(rank) * STEP_BYTES);
	for (int item = 0; item < n; item++)
	{
		const float *v = build->items + (int64_t) build->places[first + item].row * rank;
		double left = 0;

		for (int i = 0; i < rank; i++)
		{
			int code = (int) (v[i] * inverse + (CODE_ZERO + 0.5));
			double off = v[i] - scale * (code - CODE_ZERO);

			codes[(size_t) (i / 4) * STEP_BYTES + (size_t) item * 4 + (size_t) (i % 4)] = (uint8_t) code;
			left += off * off;
		}
		error = fmax(error, left);
	}
	/* Keys are norms rounded to float, or denormal. */
	build->bounds[block] = (MrcBound){
		.inverse = inverse,
		.error = sqrt(error) * inverse * WIDER,
		.norm = norm_of_key(build->places[first].key) * WIDER + TINY,
		.least_norm = fmax(0, norm_of_key(build->places[first + n - 1].key) / WIDER - TINY),
	};
}

static MrcStatus
blocks_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	(void) worker;
	for (; lo < hi; lo++)
		build_block(arg, lo);
	return MRC_OK;
}

/* Blocks of the positions from n_odd on. */
static int64_t
n_blocks_of(int64_t n_items, int64_t n_odd)
{
	return (n_items - n_odd + BLOCK_ITEMS - 1) / BLOCK_ITEMS;
}

MrcStatus
mrc_index_build(MrcPool *pool, const float *items, int64_t n_items, int rank, void *memory, void *scratch)
{
	Parts parts = parts_of(n_items, rank);
	char *at = memory;
	size_t block_bytes = (size_t) steps_of(rank) * STEP_BYTES;
	Head *head = memory;
	Build build = {.items = items,
				   .n_items = n_items,
				   .rank = rank,
				   .head = head,
				   .bounds = (MrcBound *) (void *) (at + parts.bounds),
				   .row = (int32_t *) (void *) (at + parts.row),
				   .codes = (uint8_t *) at + parts.codes,
				   .places = scratch,
				   .spare = (Place *) scratch + n_items};
	MrcStatus status;
	int64_t n_blocks;

	memset(memory, 0, parts.codes);
	status = mrc_pool_run(pool, n_items, BUILD_ROWS, norms_task, &build);
	if (status == MRC_OK)
		status = mrc_pool_run(pool, 1, 1, sort_task, &build);
	if (status != MRC_OK)
		return status;
	for (; head->n_odd < n_items && build.places[head->n_odd].key == 0; head->n_odd++)
		build.row[head->n_odd] = build.places[head->n_odd].row;
	n_blocks = n_blocks_of(n_items, head->n_odd);
	memset(build.codes + (size_t) n_blocks * block_bytes, 0,
		   parts.n_bytes - parts.codes - (size_t) n_blocks * block_bytes);
	status = mrc_pool_run(pool, n_blocks, BUILD_BLOCKS, blocks_task, &build);
	if (n_blocks > 0)
		head->norm = build.bounds[0].norm;
	return status;
}

void
mrc_index_open(MrcIndex *index, const float *items, int64_t n_items, int rank, const void *memory)
{
	Parts parts = parts_of(n_items, rank);
	const char *at = memory;
	const Head *head = memory;

	*index = (MrcIndex){.items = items, .n_items = n_items, .rank = rank};
	if (memory == NULL)
		return;
	index->n_odd = head->n_odd;
	index->n_blocks = n_blocks_of(n_items, head->n_odd);
	index->norm = head->norm;
	index->row = (const int32_t *) (const void *) (at + parts.row);
	index->bounds = (const MrcBound *) (const void *) (at + parts.bounds);
	index->codes = (const uint8_t *) at + parts.codes;
}

size_t
mrc_index_for_bytes(int64_t n_items, int rank, int64_t n_searches)
{
	return n_searches < FEW_SEARCHES
		? 0
		: rounded(mrc_index_bytes(n_items, rank)) + mrc_index_scratch_bytes(n_items);
}

MrcStatus
mrc_index_for(MrcPool *pool, MrcIndex *index, const float *items, int64_t n_items, int rank,
			  int64_t n_searches, void *memory)
{
	MrcStatus status = MRC_OK;

	if (n_searches >= FEW_SEARCHES)
		status = mrc_index_build(pool, items, n_items, rank, memory,
								 (char *) memory + rounded(mrc_index_bytes(n_items, rank)));
	mrc_index_open(index, items, n_items, rank, n_searches >= FEW_SEARCHES ? memory : NULL);
	return status;
}
