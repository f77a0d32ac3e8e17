/*
 * kmeans.c: clusters of points.
 *
 * An iteration (Lloyd 1982) takes each point to its nearest centre.  Most points are not looked at: each has an upper
 * bound of the distance to its centre and a lower bound of that to all others, which go with the centres' moves, and
 * while the first is below the second nothing can change (Hamerly 2010).  Those left are scored in tiles by the kernels
 * of kmeans_kernel.h, in single precision, by |x - c|^2 = |x|^2 + 2 (|c|^2 / 2 - x . c) around a point in the middle of
 * the data.  Where rounding might change who is nearest, the point is scored again in double precision.  So labels are
 * those of double precision.
 *
 * Rounding.  With u = 2^-24 and g = (d + 8) u a score s has an error of at most g (|c|^2 / 2 + |x| |c|), the rounding of
 * x and c included.  If |c| <= 4 |x| that is below 12 g |x|^2, else s >= |c|^2 / 4 and it is below 4 g s: in each case at
 * most max(16 g |x|^2, 4 g |s|), which is what bounds() takes, with room for the rounding of |x|^2.  s less that does not
 * fall with s, so that of the second least score bounds all others.  A score that overflows is that of a centre more than
 * FARTHEST away, if |x| is below that (bounds() says nothing of others); what is nearer than `nearest` is told by double
 * precision, as it tells it, with squares that may underflow.
 *
 * Sums of clusters are kept between iterations, as differences from where the centres were in the first, and points that
 * change are moved between them; the cost follows from the sums.  When what is left is too little against what was taken
 * away, they are made anew.  Points are cut into parts by their number and k alone, each with its own sums, which are added
 * in order: so nothing depends on who did what when.
 *
 * The start.  Points, or a sample of them by weight and by squared distance from the middle (a lightweight coreset:
 * Bachem, Lucic, Krause 2018), go through n_starts starts, each on one thread, and the best is taken:
 *   k-means++, the best of several draws for each centre (Arthur, Vassilvitskii 2007)
 *   swaps: a point drawn likewise takes the place of the centre that is missed least (Lattanzi, Sohler 2019)
 *   Lloyd
 *   breathing: m centres are added in the clusters that cost most, Lloyd, the m that are missed least go, Lloyd; with a
 *   smaller m where that does not help (Fritzke 2020)
 */
#include "core.h"
#include "scratch.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define TILE 64					  /* points that are scored together */
#define MAX_PARTS 256			  /* of the points, each with its own sums */
#define PART_ROWS 256			  /* of a part, at least */
#define MEASURE_ROWS 4096		  /* that say where the middle is, at most, */
#define MEASURE_NUMBERS (1 << 20) /* or so many numbers */
#define DENSE 2 /* the next points are fetched while those of a tile are scored, if one of so many is used */
#define TRY_ROWS 256   /* of a part, whose distance to their centre is computed first to see if that helps: */
#define TRY_CENTERS 50 /* it takes as long as scores of so many centres */
#define LOOK_ROWS 4096 /* between two looks whether the pool pauses, of points that are skipped */
#define BLOCK_ROWS 1024	 /* of a task of sampling */
#define SAMPLE_ALL 65536 /* points, at most, need no sample, if they are not too wide; of more a sample has */
#define SAMPLE_LEAST 32768						/* points, */
#define SAMPLE_SHARE 32							/* one of so many, */
#define SAMPLE_CENTERS 64						/* so many for each centre: which is most, but */
#define SAMPLE_NUMBERS (1 << 24)				/* of a sample, at most */
#define MAX_DRAWS 16							/* of a centre, at least 2 + log(MRC_MAX_CLUSTERS) */
#define SWAPS 25								/* that are tried */
#define BREATH 5								/* centres, at first */
#define START_ROUNDS 20							/* of Lloyd, at a time */
#define START_TOLERANCE 1e-3					/* its relative progress, at least */
#define START_SHARE 2							/* all starts take as long as so many iterations, */
#define START_WORK 4e9							/* or so many differences of numbers */
#define SLOPE(d) ((float) ((d) + 8) * 0x1p-24f) /* g of the head of this file */
#define FARTHEST 1e18f							/* a lower bound is not more: squares overflow */
#define NEAREST 1e-18f							/* an upper bound is not less: squares underflow */
#define FILL_MOST 16							/* clusters without points that get one in an iteration */
#define CANCELS 0x1p20		/* sums that so much larger ones were taken from are made anew */
#define SAMPLE_MOST 1e12	/* a number of the sample is not larger, so that squares do not overflow */
#define CHECK_NUMBERS 65536 /* between two looks whether the pool pauses */

#if defined(__x86_64__)
#define KERNEL(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define LANES 16
#define GROUP 6
#define WIDE 4
#define LEAST(a, b) ((VEC) _mm512_min_ps((__m512) (a), (__m512) (b)))
#define MOST(a, b) ((VEC) _mm512_max_ps((__m512) (a), (__m512) (b)))
#define LESS(a, b) _mm512_cmp_ps_mask((__m512) (a), (__m512) (b), _CMP_LT_OQ)
#define CHOOSE_INT(mask, a, b) ((INTS) _mm512_mask_mov_epi32((__m512i) (b), mask, (__m512i) (a)))
#include "kmeans_kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef GROUP
#undef WIDE
#undef LEAST
#undef MOST
#undef LESS
#undef CHOOSE_INT
#define KERNEL(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define GROUP 4
#define WIDE 2
#define LEAST(a, b) ((VEC) _mm256_min_ps((__m256) (a), (__m256) (b)))
#define MOST(a, b) ((VEC) _mm256_max_ps((__m256) (a), (__m256) (b)))
#define LESS(a, b) _mm256_cmp_ps((__m256) (a), (__m256) (b), _CMP_LT_OQ)
#define CHOOSE_INT(mask, a, b) ((INTS) _mm256_blendv_ps((__m256) (b), (__m256) (a), mask))
#include "kmeans_kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef GROUP
#undef WIDE
#undef LEAST
#undef MOST
#undef LESS
#undef CHOOSE_INT
#endif
#define KERNEL(name) name##_plain
#define TARGET
#define LANES 4
#define GROUP 4
#define WIDE 2
#define LEAST(a, b) ((VEC) (((INTS) (a) & ((a) < (b))) | ((INTS) (b) & ~((a) < (b)))))
#define MOST(a, b) ((VEC) (((INTS) (a) & ((a) > (b))) | ((INTS) (b) & ~((a) > (b)))))
#define LESS(a, b) ((a) < (b))
#define CHOOSE_INT(mask, a, b) (((a) & (mask)) | ((b) & ~(mask)))
#include "kmeans_kernel.h"

typedef struct Kernels
{
	void (*scores)(const float *x, int d, const float *center, const float *bias, int k, float *best,
				   float *second, int32_t *label, uintptr_t ahead, int n_lines);
	void (*closer)(const float *x, int d, const float *center, int lo, int hi, float *best, float *second,
				   int32_t *label, int32_t *label2);
	double (*with)(const float *x, int d, const float *center, const float *best, const float *weight);
	double (*instead)(const float *x, int d, const float *center, const float *best, const float *second,
					  const float *weight, const int32_t *label, double *loss);
	void (*turn)(float *to, const float *from, int rows, int cols);
	void (*narrow)(const double *x, const double *shift, double scale, int d, float *out);
	void (*bounds)(const float *x, int d, const float *best, const float *second, float *upper, float *lower);
	float (*away)(const float *a, const float *b, int d);
	void (*gather)(double *sum, double *square, const double *x, const double *base, double weight, int d);
	int (*exact)(const double *x, int d, const double *turned, int k, int ld, double *least, double *second);
} Kernels;

#define KERNELS(suffix)                                                                          \
	((Kernels){scores_##suffix, closer_##suffix, with_##suffix, instead_##suffix, turn_##suffix, \
			   narrow_##suffix, bounds_##suffix, away_##suffix, gather_##suffix, exact_##suffix})

/* lanes: as in MrcAls. */
static Kernels
kernels(int lanes)
{
	lanes = mrc_lanes(lanes);
#if defined(__x86_64__)
	if (lanes == 16)
		return KERNELS(avx512);
	if (lanes == 8)
		return KERNELS(avx2);
#endif
	return KERNELS(plain);
}

static const double *
row_of(const MrcPoints *points, int64_t row)
{
	return points->chunk[row / points->chunk_rows] + (row % points->chunk_rows) * points->d;
}

/* Where rows are, for one who goes through them in order. */
typedef struct Cursor
{
	int64_t lo; /* rows of the chunk */
	int64_t hi;
	const double *chunk;
} Cursor;

static inline const double *
row_at(const MrcPoints *points, Cursor *cursor, int64_t row)
{
	if (row < cursor->lo || row >= cursor->hi)
	{
		int64_t chunk = row / points->chunk_rows;

		cursor->lo = chunk * points->chunk_rows;
		cursor->hi = cursor->lo + points->chunk_rows;
		cursor->chunk = points->chunk[chunk];
	}
	return cursor->chunk + (row - cursor->lo) * points->d;
}

static double
weight_of(const MrcPoints *points, int64_t row)
{
	return points->weight ? points->weight[row / points->chunk_rows][row % points->chunk_rows] : 1;
}

typedef double Eight __attribute__((vector_size(64), aligned(8), may_alias));

/* Squared distance of a and b (d), summed in an order that depends on d only; the same code for all callers. */
static __attribute__((noinline)) double
distance2(const double *a, const double *b, int d)
{
	Eight sums = {0};
	double sum = 0;
	int j = 0;

	for (; j + 8 <= d; j += 8)
	{
		Eight x = *(const Eight *) (a + j) - *(const Eight *) (b + j);

		sums += x * x;
	}
	for (; j < d; j++)
	{
		double x = a[j] - b[j];

		sum += x * x;
	}
	if (d >= 8)
		sum += ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
	return sum;
}

int
mrc_kmeans_nearest(const double *center, int k, int d, const double *x, double *distance)
{
	double best = INFINITY;
	int nearest = 0;

	for (int c = 0; c < k; c++)
	{
		double here = distance2(x, center + (size_t) c * d, d);

		if (here < best)
		{
			best = here;
			nearest = c;
		}
	}
	if (distance)
		*distance = best;
	return nearest;
}

static uint64_t
mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15u;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
	return x ^ (x >> 31);
}

/* The next of a sequence, uniform in [0, 1). */
static double
uniform(uint64_t *state)
{
	*state += 0x9E3779B97F4A7C15u;
	return (double) (mix(*state) >> 11) / 9007199254740992.0;
}

/* Points are cut into parts by their number and k alone; sums are kept by part and added in order. */
static int
n_parts_of(const MrcPoints *points, int k)
{
	int64_t n = points->n / (8 * (int64_t) k);

	n = n < 8 ? 8 : n > MAX_PARTS ? MAX_PARTS : n;
	return (int) (n > points->n / PART_ROWS ? points->n / PART_ROWS + 1 : n);
}

/* What the points of a part add up to. */
typedef struct Part
{
	int64_t lo;
	int64_t next; /* the first row that is not done */
	int64_t hi;
	int64_t n_changed;
	int64_t
		n_tried; /* points whose distance to their centre was computed first, and for which that was enough */
	int64_t n_spared;
	bool stale;			  /* what is left in a sum is little against what was taken from it */
	double cost;		  /* finish */
	double *square;		  /* d: of weight * (x - base of its cluster)^2 */
	double *sum;		  /* k x d: of weight * (x - base) */
	double *size;		  /* k: of weights */
	int64_t *n_points;	  /* k: of points that have weight */
	double *cluster_cost; /* k: finish */
} Part;

/* One start of a thread: centres among the sample's points, while they get better. */
typedef struct Start
{
	int64_t number; /* -1: none yet */
	int phase;
	int after; /* the phase that follows Lloyd */
	int pass;  /* over the sample, that is not done */
	int64_t pass_tile;
	int lost; /* of the pass: the centre that is not what it was */
	int last; /* of the pass: the number that becomes lost's; -1: none */
	int k;	  /* centres now */
	int n_done;
	int breath;
	double work; /* done so far */
	double total;
	double before; /* the total a round of Lloyd ago */
	double kept_total;
	double best_total; /* of the starts of this thread */
	int64_t best_number;
	uint64_t random;
	float *best; /* by point: the least squared distances and their centres */
	float *second;
	int32_t *label;
	int32_t *label2;
	int32_t *summed; /* the cluster in whose sum the point is, -1: none */
	double *mass;	 /* by tile: sum of weight * best */
	float *center;	 /* (k + BREATH) x d */
	float *kept;	 /* k x d */
	float *found;	 /* k x d: the best of the starts of this thread */
	float *point;	 /* MAX_DRAWS x d */
	double *sum;	 /* (k + BREATH) x d */
	double *size;	 /* k + BREATH */
	int64_t *n_points;
	double *value; /* k + BREATH */
} Start;

/* One thread's. */
typedef struct Desk
{
	float *row;	 /* TILE x ld: points of a tile */
	float *tile; /* ld x TILE */
	float *best;
	float *second;
	int32_t *label;
	int32_t *label2;
	int64_t *number; /* TILE: which points they are */
	const double **from;
	float *upper; /* TILE */
	float *lower; /* TILE: below upper where the scores do not tell who is nearest */
	int n;
	Cursor cursor;
	Start start;
} Desk;

/* What the scratch begins with. */
typedef struct State
{
	double scale; /* a power of two that takes most numbers into [-1, 1] */
	double drift; /* the longest move of a centre in the last iteration, scaled; not below it */
	double drift2;
	int drifted;   /* the centre that moved so far */
	float nearest; /* upper bounds are not less, scaled */
	double square; /* the greatest sum of weight * (x - base)^2 since the bases were set */
} State;

typedef struct Work
{
	MrcKmeans *kmeans;
	Kernels kernels;
	bool finish;
	bool fresh; /* there are no bounds yet */
	int d;
	int k;
	int ld;		   /* d, up to a multiple of 16 */
	int turned_ld; /* k, up to a multiple of 32 */
	float slope;   /* g of the head of this file */
	int n_parts;
	Part *parts;
	State *state;
	double *shift;	/* d */
	double *grid;	/* d: a power of two, about a millionth of the numbers' size */
	double *base;	/* k x d: where the centres were when the sums began, in few digits */
	float *center;	/* k x d: (center - shift) * scale */
	float *bias;	/* k: half their squared lengths */
	float *length;	/* k: their lengths, not below */
	double *turned; /* d x turned_ld: center */
	float *drift;	/* k: how far each centre has moved, scaled, not below */
	float *half;	/* k: half the distance to the nearest other centre, scaled, not above */
	float *upper;	/* n: of the distance to the centre, scaled */
	float *lower;	/* n: of the distance to any other */
	Desk *desks;
	/* the start */
	int64_t n_sample;
	int64_t n_tiles;
	int64_t n_blocks;
	float *sample;		  /* n_tiles tiles of d x TILE */
	float *sample_weight; /* n_tiles x TILE, 0 beyond n_sample */
	double *block_weight; /* n_blocks, then the sum of those before */
	double *block_square;
	double total_weight;
	double total_square;
	double offset; /* of the positions of the sample, in [0, 1) */
	double *far;   /* MAX_PARTS: a part's point that costs most */
	int64_t *far_row;
	int n_filled;
	const double *filled[FILL_MOST];
} Work;

static int64_t
n_sample_of(const MrcPoints *points, int k)
{
	int64_t n = points->n / SAMPLE_SHARE;

	n = n > SAMPLE_LEAST ? n : SAMPLE_LEAST;
	n = n > SAMPLE_CENTERS * (int64_t) k ? n : SAMPLE_CENTERS * (int64_t) k;
	n = n < SAMPLE_NUMBERS / points->d ? n : SAMPLE_NUMBERS / points->d;
	n = n > 4 * (int64_t) k ? n : 4 * (int64_t) k;
	return n < points->n && (points->n > SAMPLE_ALL || points->n > SAMPLE_NUMBERS / points->d) ? n
																							   : points->n;
}

static void
lay_out_start(Layout *at, Start *start, const Work *work)
{
	size_t n = (size_t) work->n_tiles * TILE;
	size_t k = (size_t) work->k + BREATH;

	start->best = take_floats(at, n);
	start->second = take_floats(at, n);
	start->label = take(at, n * sizeof(int32_t));
	start->label2 = take(at, n * sizeof(int32_t));
	start->summed = take(at, n * sizeof(int32_t));
	start->mass = take_doubles(at, (size_t) work->n_tiles);
	start->center = take_floats(at, k * work->d);
	start->kept = take_floats(at, (size_t) work->k * work->d);
	start->found = take_floats(at, (size_t) work->k * work->d);
	start->point = take_floats(at, MAX_DRAWS * (size_t) work->d);
	start->sum = take_doubles(at, k * work->d);
	start->size = take_doubles(at, k);
	start->n_points = take(at, k * sizeof(int64_t));
	start->value = take_doubles(at, k);
}

static Desk
lay_out_desk(Layout *at, const Work *work, bool starts)
{
	Desk desk = {.n = 0};

	desk.row = take_floats(at, (size_t) work->ld * TILE);
	desk.tile = take_floats(at, (size_t) work->ld * TILE);
	desk.best = take_floats(at, TILE);
	desk.second = take_floats(at, TILE);
	desk.label = take(at, TILE * sizeof(int32_t));
	desk.label2 = take(at, TILE * sizeof(int32_t));
	desk.number = take(at, TILE * sizeof(int64_t));
	desk.from = take(at, TILE * sizeof(double *));
	desk.upper = take_floats(at, TILE);
	desk.lower = take_floats(at, TILE);
	if (starts)
		lay_out_start(at, &desk.start, work);
	return desk;
}

static void
lay_out_parts(Layout *at, Work *work, const MrcPoints *points)
{
	size_t k = (size_t) work->k;

	work->n_parts = n_parts_of(points, work->k);
	work->parts = take(at, (size_t) work->n_parts * sizeof(Part));
	work->far = take_doubles(at, (size_t) work->n_parts);
	work->far_row = take(at, (size_t) work->n_parts * sizeof(int64_t));
	for (int p = 0; p < work->n_parts; p++)
	{
		Part part = {.lo = points->n * p / work->n_parts, .hi = points->n * (p + 1) / work->n_parts};

		part.sum = take_doubles(at, k * work->d);
		part.square = take_doubles(at, (size_t) work->d);
		part.size = take_doubles(at, k);
		part.n_points = take(at, k * sizeof(int64_t));
		part.cluster_cost = take_doubles(at, k);
		if (at->base)
		{
			work->parts[p] = part;
		}
	}
}

/* Lay out the scratch from base (NULL: to measure), every piece at a multiple of 64 bytes; the number of bytes. */
static size_t
lay_out(Work *work, char *base, const MrcPoints *points, int k, int n_starts, int n_threads)
{
	Layout at = {base, 0};

	memset(work, 0, sizeof(*work));
	work->d = points->d;
	work->k = k;
	work->ld = (points->d + 15) / 16 * 16;
	work->turned_ld = (k + 31) / 32 * 32;
	work->state = take(&at, sizeof(State));
	work->shift = take_doubles(&at, (size_t) work->d);
	work->grid = take_doubles(&at, (size_t) work->d);
	work->base = take_doubles(&at, (size_t) k * work->d);
	work->center = take_floats(&at, (size_t) k * work->d);
	work->bias = take_floats(&at, (size_t) k);
	work->length = take_floats(&at, (size_t) k);
	work->turned = take_doubles(&at, (size_t) work->d * work->turned_ld);
	work->drift = take_floats(&at, (size_t) k);
	work->half = take_floats(&at, (size_t) k);
	work->upper = take_floats(&at, (size_t) points->n);
	work->lower = take_floats(&at, (size_t) points->n);
	lay_out_parts(&at, work, points);
	if (n_starts > 0)
	{
		work->n_sample = n_sample_of(points, k);
		work->n_tiles = (work->n_sample + TILE - 1) / TILE;
		work->n_blocks = (points->n + BLOCK_ROWS - 1) / BLOCK_ROWS;
		work->sample = take_floats(&at, (size_t) work->n_tiles * TILE * work->d);
		work->sample_weight = take_floats(&at, (size_t) work->n_tiles * TILE);
		work->block_weight = take_doubles(&at, (size_t) work->n_blocks);
		work->block_square = take_doubles(&at, (size_t) work->n_blocks);
	}
	work->desks = take(&at, (size_t) n_threads * sizeof(Desk));
	for (int i = 0; i < n_threads; i++)
	{
		Desk desk = lay_out_desk(&at, work, n_starts > 0);

		if (base)
			work->desks[i] = desk;
	}
	return at.n_bytes;
}

size_t
mrc_kmeans_scratch_bytes(const MrcPoints *points, int k, int n_starts, int n_threads)
{
	Work work;

	return lay_out(&work, NULL, points, k, n_starts, n_threads);
}

/*
 * The middle and the size of the numbers, from some rows: shift is about the mean, scale about the inverse of the greatest
 * distance from it.  shift has few digits, so that what is taken from numbers with few digits leaves such.
 */
static void
measure(Work *work, const MrcPoints *points)
{
	int64_t n = MEASURE_NUMBERS / work->d;
	const double *first = row_of(points, 0);
	double *sum = work->turned; /* not used yet; it has room for 32 numbers a coordinate */
	double *square = work->turned + work->d;
	double most = 0;
	int exponent = 0;

	n = n < 16 ? 16 : n > MEASURE_ROWS ? MEASURE_ROWS : n;
	n = n < points->n ? n : points->n;
	memset(sum, 0, 2 * (size_t) work->d * sizeof(double));
	for (int64_t i = 0; i < n; i++)
	{
		const double *x = row_of(points, points->n * i / n);

		for (int j = 0; j < work->d; j++)
		{
			sum[j] += x[j] - first[j];
			square[j] += (x[j] - first[j]) * (x[j] - first[j]);
		}
	}
	for (int j = 0; j < work->d; j++)
	{
		double mean = sum[j] / (double) n;
		double variance = square[j] / (double) n - mean * mean;

		work->shift[j] = first[j] + mean;
		frexp(variance > 0 ? sqrt(variance) : 0, &exponent);
		if (variance > 0 && isfinite(variance))
			work->shift[j] = ldexp(rint(ldexp(work->shift[j], -exponent)), exponent);
		work->grid[j] = ldexp(1, exponent > -900 && exponent < 1000 ? exponent - 20 : 0);
		if (!isfinite(work->shift[j]))
			work->shift[j] = 0;
	}
	for (int64_t i = 0; i < n; i++)
	{
		const double *x = row_of(points, points->n * i / n);

		for (int j = 0; j < work->d; j++)
			most = fmax(most, fabs(x[j] - work->shift[j]));
	}
	frexp(most, &exponent);
	work->state->scale = most > 0 && exponent > -1000 && exponent < 1000 ? ldexp(1, -exponent) : 1;
	work->state->nearest = NEAREST + (float) (work->state->scale * 0x1p-480);
}

static void
work_begin(Work *work, MrcKmeans *km)
{
	lay_out(work, km->scratch, &km->points, km->k, km->n_starts, mrc_pool_size(km->pool));
	work->kmeans = km;
	work->kernels = kernels(km->lanes);
	work->slope = SLOPE(km->points.d);
	if (!km->measured)
		measure(work, &km->points);
	km->measured = true;
}

/* The centres as kernels take them. */
static void
take_centers(Work *work)
{
	const MrcKmeans *km = work->kmeans;

	memset(work->turned, 0, (size_t) work->d * work->turned_ld * sizeof(double));
	for (int c = 0; c < work->k; c++)
	{
		double square = 0;

		for (int j = 0; j < work->d; j++)
		{
			double x = km->center[(size_t) c * work->d + j];
			double at = (x - work->shift[j]) * work->state->scale;

			work->turned[(size_t) j * work->turned_ld + c] = x;
			work->center[(size_t) c * work->d + j] = (float) at;
			square += at * at;
		}
		work->bias[c] = (float) (square / 2);
		work->length[c] = (float) sqrt(square) * (1 + 0x1p-20f);
	}
}

/* half of centres [lo, hi). */
static MrcStatus
half_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const double *center = work->kmeans->center;

	(void) worker;
	for (; lo < hi; lo++)
	{
		double least = INFINITY;

		for (int c = 0; c < work->k; c++)
			if (c != lo)
			{
				double here =
					distance2(center + (size_t) lo * work->d, center + (size_t) c * work->d, work->d);

				least = here < least ? here : least;
			}
		work->half[lo] = (float) (sqrt(least) * work->state->scale / 2 * (1 - 0x1p-20));
		if (mrc_pool_pausing(work->kmeans->pool))
			return MRC_AGAIN;
	}
	return MRC_OK;
}

/* A point comes into the sums of a cluster. */
static void
take_in(const Work *work, Part *part, const double *x, double weight, int label)
{
	size_t to = (size_t) label * work->d;

	work->kernels.gather(part->sum + to, part->square, x, work->base + to, weight, work->d);
	part->size[label] += weight;
	part->n_points[label] += weight > 0;
}

/* A point's label is known. */
static void
settle(Work *work, Part *part, int64_t row, const double *x, int label)
{
	MrcKmeans *km = work->kmeans;
	double weight = weight_of(&km->points, row);
	int before = km->label[row];
	size_t from;

	if (!work->fresh && before == label)
		return;
	km->label[row] = label;
	part->n_changed++;
	if (work->finish)
		return;
	take_in(work, part, x, weight, label);
	if (work->fresh)
		return;
	from = (size_t) before * work->d;
	work->kernels.gather(part->sum + from, part->square, x, work->base + from, -weight, work->d);
	part->size[before] -= weight;
	part->n_points[before] -= weight > 0;
	if (weight > 0 && part->n_points[before] > 0 &&
		!(weight * (1 + work->state->scale * sqrt(distance2(x, work->base + from, work->d))) <=
		  CANCELS * part->size[before]))
		part->stale = true;
	if (part->n_points[before] == 0)
	{
		memset(part->sum + from, 0, (size_t) work->d * sizeof(double));
		part->size[before] = 0;
	}
}

/* Scores the desk's points, and settles them; if the pool pauses, not all: part->next is the first that is not. */
static void
flush(Work *work, Part *part, Desk *desk)
{
	MrcKmeans *km = work->kmeans;

	int n_lines = 0;

	if (desk->n == 0)
		return;
	if (desk->number[desk->n - 1] - desk->number[0] < DENSE * TILE && part->next + TILE < desk->cursor.hi &&
		part->next + TILE < part->hi)
		n_lines = TILE * work->d / 8;
	work->kernels.turn(desk->tile, desk->row, TILE, work->ld);
	work->kernels.scores(
		desk->tile, work->d, work->center, work->bias, work->k, desk->best, desk->second, desk->label,
		(uintptr_t) desk->cursor.chunk + (size_t) (part->next - desk->cursor.lo) * work->d * sizeof(double),
		n_lines);
	work->kernels.bounds(desk->tile, work->d, desk->best, desk->second, desk->upper, desk->lower);
	for (int i = 0; i < desk->n; i++)
	{
		int64_t row = desk->number[i];
		int label = desk->label[i];
		float upper = desk->upper[i] + work->state->nearest;
		float lower = desk->lower[i];
		const double *from = desk->from[i];

		if (!(upper < lower))
		{
			double best;
			double second;

			if (i > 0 && mrc_pool_pausing(km->pool))
			{
				part->next = row;
				break;
			}
			label =
				work->kernels.exact(from, work->d, work->turned, work->k, work->turned_ld, &best, &second);
			if (work->finish)
				label = mrc_kmeans_nearest(km->center, work->k, work->d, from, NULL);
			upper = (float) (sqrt(best) * work->state->scale) * (1 + 0x1p-20f) + work->state->nearest;
			lower = (float) (sqrt(second) * work->state->scale) * (1 - 0x1p-20f);
		}
		work->upper[row] = upper;
		work->lower[row] = fminf(lower, FARTHEST);
		settle(work, part, row, from, label);
	}
	desk->n = 0;
}

/*
 * The bounds of a point after the centres' moves: true if it stays where it is.  Else limit is what its distance to its
 * centre must be below.
 */
static bool
stays(Work *work, int64_t row, float *limit)
{
	int label = work->kmeans->label[row];
	float upper = (work->upper[row] + work->drift[label]) * (1 + 0x1p-22f);
	float lower =
		work->lower[row] - (float) (label == work->state->drifted ? work->state->drift2 : work->state->drift);

	lower -= fabsf(lower) * 0x1p-22f;
	work->upper[row] = upper;
	work->lower[row] = lower;
	*limit = lower > work->half[label] ? lower : work->half[label];
	return upper < *limit;
}

/* Takes a point onto the desk, unless it is seen to be near enough to its centre. */
static void
take_point(Work *work, Part *part, Desk *desk, int64_t row, float limit)
{
	const MrcKmeans *km = work->kmeans;
	const double *from = row_at(&km->points, &desk->cursor, row);
	float *x = desk->row + (size_t) desk->n * work->ld;

	work->kernels.narrow(from, work->shift, work->state->scale, work->d, x);
	if (!work->fresh && (part->n_tried < TRY_ROWS || part->n_spared * work->k > TRY_CENTERS * part->n_tried))
	{
		int label = km->label[row];
		float away = sqrtf(work->kernels.away(x, work->center + (size_t) label * work->d, work->d));

		away = away * (1 + work->slope) + work->length[label] * 0x1p-20f /* |x| <= |c| + |x - c| */
			+ work->state->nearest;
		work->upper[row] = away < work->upper[row] ? away : work->upper[row];
		part->n_tried++;
		part->n_spared += away < limit;
		if (away < limit)
			return;
	}
	desk->from[desk->n] = from;
	desk->number[desk->n++] = row;
	if (desk->n == TILE)
		flush(work, part, desk);
}

/* What the points of a part cost, each by mrc_kmeans_nearest(). */
static void
add_up(Work *work, Part *part, int64_t lo, int64_t hi)
{
	const MrcKmeans *km = work->kmeans;

	for (int64_t row = lo; row < hi; row++)
	{
		double weight = weight_of(&km->points, row);
		int label = km->label[row];
		double cost =
			weight * distance2(row_of(&km->points, row), km->center + (size_t) label * work->d, work->d);

		part->size[label] += weight;
		part->cluster_cost[label] += cost;
		part->cost += cost;
	}
}

static MrcStatus
assign_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	Desk *desk = &work->desks[worker];
	Part *part = &work->parts[lo];
	int64_t done = part->next;

	(void) hi;
	desk->n = 0;
	desk->cursor = (Cursor){0, 0, NULL};
	while (part->next < part->hi)
	{
		int64_t row = part->next++;
		float limit = 0;

		if (work->fresh || !stays(work, row, &limit))
			take_point(work, part, desk, row, limit);
		if (part->next - done < LOOK_ROWS && (desk->n > 0 || !mrc_pool_pausing(work->kmeans->pool)))
			continue;
		flush(work, part, desk);
		if (work->finish)
			add_up(work, part, done, part->next);
		done = part->next;
		if (mrc_pool_pausing(work->kmeans->pool))
			return MRC_AGAIN;
	}
	flush(work, part, desk);
	if (work->finish)
		add_up(work, part, done, part->next);
	return part->next < part->hi ? MRC_AGAIN : MRC_OK;
}

/* No point is in a sum of a part. */
static void
empty_sums(const Work *work, Part *part)
{
	size_t k = (size_t) work->k;

	memset(part->square, 0, (size_t) work->d * sizeof(double));
	memset(part->sum, 0, k * work->d * sizeof(double));
	memset(part->size, 0, k * sizeof(double));
	memset(part->n_points, 0, k * sizeof(int64_t));
}

/* Sums begin, from where the centres are: at first in few digits, which leaves few to the sums. */
static void
begin_sums(Work *work)
{
	for (size_t i = 0; i < (size_t) work->k * work->d; i++)
	{
		double center = work->kmeans->center[i];
		double base = rint(center / work->grid[i % work->d]) * work->grid[i % work->d];

		work->base[i] = work->fresh && isfinite(base) ? base : center;
	}
	work->state->square = 0;
	for (int p = 0; p < work->n_parts; p++)
		empty_sums(work, &work->parts[p]);
}

/* The sums of part lo from its labels. */
static MrcStatus
sum_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const MrcKmeans *km = work->kmeans;
	Part *part = &work->parts[lo];
	int64_t check = CHECK_NUMBERS / work->d + 1;

	(void) worker;
	(void) hi;
	empty_sums(work, part);
	for (int64_t row = part->lo; row < part->hi; row++)
	{
		if (row % check == 0 && mrc_pool_pausing(km->pool))
			return MRC_AGAIN;
		take_in(work, part, row_of(&km->points, row), weight_of(&km->points, row), km->label[row]);
	}
	return MRC_OK;
}

/* Assigns all points; each part has the sums of its own. */
static MrcStatus
assign(Work *work, bool finish)
{
	MrcKmeans *km = work->kmeans;
	size_t k = (size_t) work->k;
	MrcStatus status = MRC_OK;

	work->finish = finish;
	work->fresh = km->n_iterations == 0;
	take_centers(work);
	if (work->fresh && !finish)
		begin_sums(work);
	memset(work->half, 0, k * sizeof(float));
	if (!work->fresh && (int64_t) k < km->points.n / 16)
		status = mrc_pool_run(km->pool, work->k, 16, half_task, work);
	if (status != MRC_OK)
		return status;
	for (int p = 0; p < work->n_parts; p++)
	{
		Part *part = &work->parts[p];

		part->next = part->lo;
		if (!finish)
			continue;
		memset(part->size, 0, k * sizeof(double));
		memset(part->cluster_cost, 0, k * sizeof(double));
	}
	return mrc_pool_run(km->pool, work->n_parts, 1, assign_task, work);
}

/* The sums of all parts for cluster c into sum (d). */
static void
cluster_sum(const Work *work, int c, double *sum, double *size)
{
	memset(sum, 0, (size_t) work->d * sizeof(double));
	*size = 0;
	for (int p = 0; p < work->n_parts; p++)
	{
		const Part *part = &work->parts[p];

		if (part->n_points[c] == 0)
			continue;
		*size += part->size[c];
		for (int j = 0; j < work->d; j++)
			sum[j] += part->sum[(size_t) c * work->d + j];
	}
}

/* Centre c goes to where it should; its move. */
static void
move_center(Work *work, int c, const double *to)
{
	double *center = work->kmeans->center + (size_t) c * work->d;
	double moved = sqrt(distance2(center, to, work->d)) * work->state->scale * (1 + 0x1p-20);
	State *state = work->state;

	memcpy(center, to, (size_t) work->d * sizeof(double));
	work->drift[c] = (float) (moved * (1 + 0x1p-20)) + FLT_MIN * (moved > 0);
	moved = work->drift[c];
	if (moved > state->drift)
	{
		state->drift2 = state->drift;
		state->drift = moved;
		state->drifted = c;
	}
	else if (moved > state->drift2)
		state->drift2 = moved;
}

/* Of each part, the point that costs most under the centres its points have, and those filled in this iteration. */
static MrcStatus
far_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const MrcKmeans *km = work->kmeans;
	Part *part = &work->parts[lo];
	int64_t check = CHECK_NUMBERS / work->d + 1;

	(void) worker;
	(void) hi;
	for (; part->next < part->hi; part->next++)
	{
		const double *x = row_of(&km->points, part->next);
		double far = distance2(x, km->center + (size_t) km->label[part->next] * work->d, work->d);

		if (part->next % check == 0 && mrc_pool_pausing(km->pool))
			return MRC_AGAIN;
		for (int i = 0; i < work->n_filled; i++)
			far = fmin(far, distance2(x, work->filled[i], work->d));
		far *= weight_of(&km->points, part->next);
		if (far > work->far[lo])
		{
			work->far[lo] = far;
			work->far_row[lo] = part->next;
		}
	}
	return MRC_OK;
}

/* Cluster c has no points with weight: its centre becomes the point that costs most, if one costs anything. */
static MrcStatus
fill(Work *work, int c)
{
	MrcKmeans *km = work->kmeans;
	int best = 0;
	MrcStatus status;

	for (int p = 0; p < work->n_parts; p++)
	{
		work->parts[p].next = work->parts[p].lo;
		work->far[p] = 0;
	}
	status = mrc_pool_run(km->pool, work->n_parts, 1, far_task, work);
	for (int p = 1; p < work->n_parts && status == MRC_OK; p++)
		best = work->far[p] > work->far[best] ? p : best;
	if (status != MRC_OK || !(work->far[best] > 0))
		return status;
	work->filled[work->n_filled] = row_of(&km->points, work->far_row[best]);
	move_center(work, c, work->filled[work->n_filled++]);
	km->n_changed++;
	return MRC_OK;
}

/*
 * The sums of all parts into sum (k x d), size, and cost; false if they must be made anew, as too many of their digits are
 * gone.
 */
static bool
add_parts(const Work *work, double *sum)
{
	MrcKmeans *km = work->kmeans;
	bool is_stale = false;
	double square = 0;

	for (int p = 0; p < work->n_parts; p++)
	{
		is_stale = is_stale || work->parts[p].stale;
		for (int j = 0; j < work->d; j++)
			square += work->parts[p].square[j];
	}
	km->cost = square;
	for (int c = 0; c < km->k; c++)
	{
		size_t at = (size_t) c * work->d;

		cluster_sum(work, c, sum + at, &km->size[c]);
		for (int j = 0; j < work->d && km->size[c] > 0; j++)
		{
			double moved = km->center[at + j] - work->base[at + j];

			km->cost += moved * (km->size[c] * moved - 2 * sum[at + j]);
		}
	}
	if (!(square < work->state->square))
		work->state->square = square;
	return !is_stale && km->cost >= work->state->square / CANCELS;
}

/* All centres to the means of their points; the number of clusters without weight. */
static int
move_centers(Work *work, double *sum)
{
	MrcKmeans *km = work->kmeans;
	int n_empty = 0;

	work->state->drift = work->state->drift2 = 0;
	work->state->drifted = -1;
	for (int c = 0; c < km->k; c++)
	{
		size_t at = (size_t) c * work->d;

		work->drift[c] = 0;
		n_empty += km->size[c] == 0;
		for (int j = 0; j < work->d && km->size[c] > 0; j++)
			sum[at + j] = work->base[at + j] + sum[at + j] / km->size[c];
		if (km->size[c] > 0)
			move_center(work, c, sum + at);
	}
	return n_empty;
}

MrcStatus
mrc_kmeans_iterate(MrcKmeans *km)
{
	Work work;
	double *sum;
	MrcStatus status;
	int n_empty;

	work_begin(&work, km);
	sum = work.turned; /* at least k x d numbers, and not used any more when they are */
	status = assign(&work, false);
	if (status == MRC_OK && !add_parts(&work, sum))
	{
		begin_sums(&work);
		status = mrc_pool_run(km->pool, work.n_parts, 1, sum_task, &work);
		add_parts(&work, sum);
	}
	if (status != MRC_OK)
		return status;
	km->cost = km->cost < 0 ? 0 : km->cost;
	km->n_changed = 0;
	for (int p = 0; p < work.n_parts; p++)
		km->n_changed += work.parts[p].n_changed;
	n_empty = move_centers(&work, sum);
	for (int c = 0; c < km->k && n_empty > 0 && work.n_filled < FILL_MOST && status == MRC_OK; c++)
		if (km->size[c] == 0)
			status = fill(&work, c);
	km->n_iterations++;
	return status != MRC_OK ? status : isfinite(km->cost) ? MRC_OK : MRC_NOTFINITE;
}

MrcStatus
mrc_kmeans_finish(MrcKmeans *km)
{
	Work work;
	MrcStatus status;

	work_begin(&work, km);
	status = assign(&work, true);
	if (status != MRC_OK)
		return status;
	km->cost = 0;
	km->n_iterations = 0;
	memset(km->size, 0, (size_t) km->k * sizeof(double));
	memset(km->cluster_cost, 0, (size_t) km->k * sizeof(double));
	for (int p = 0; p < work.n_parts; p++)
	{
		km->cost += work.parts[p].cost;
		for (int c = 0; c < km->k; c++)
		{
			km->size[c] += work.parts[p].size[c];
			km->cluster_cost[c] += work.parts[p].cluster_cost[c];
		}
	}
	return isfinite(km->cost) ? MRC_OK : MRC_NOTFINITE;
}

/* ---- the start: a sample ---- */

/* The sums of blocks [lo, hi) of rows. */
static MrcStatus
block_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const MrcPoints *points = &work->kmeans->points;

	(void) worker;
	for (; lo < hi; lo++)
	{
		double weights = 0;
		double squares = 0;

		for (int64_t row = lo * BLOCK_ROWS; row < (lo + 1) * BLOCK_ROWS && row < points->n; row++)
		{
			double weight = weight_of(points, row);

			weights += weight;
			squares += weight * distance2(row_of(points, row), work->shift, work->d);
		}
		work->block_weight[lo] = weights;
		work->block_square[lo] = squares;
	}
	return MRC_OK;
}

/* Where a sum of weights and one of squares stand, in shares of the whole. */
static double
share_of(const Work *work, double weight, double square)
{
	if (!(work->total_square > 0))
		return work->total_weight > 0 ? weight / work->total_weight : 0;
	return weight / work->total_weight / 2 + square / work->total_square / 2;
}

static void
put(Work *work, int64_t slot, const double *x, double weight)
{
	float *to = work->sample + (size_t) (slot / TILE) * work->d * TILE + slot % TILE;

	for (int j = 0; j < work->d; j++)
	{
		double at = (x[j] - work->shift[j]) * work->state->scale;

		to[(size_t) j * TILE] = (float) fmax(-SAMPLE_MOST, fmin(at, SAMPLE_MOST));
	}
	work->sample_weight[slot] = (float) weight;
}

/*
 * The rows of blocks [lo, hi) that are in the sample: slot i is the row at (i + offset) / n_sample of the whole.  Its weight
 * is what it stands for, in units of the mean weight of a slot.
 */
static MrcStatus
sample_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const MrcPoints *points = &work->kmeans->points;
	double n = (double) work->n_sample;

	(void) worker;
	for (; lo < hi; lo++)
	{
		double at = share_of(work, work->block_weight[lo], work->block_square[lo]);
		double end = lo + 1 < work->n_blocks
			? share_of(work, work->block_weight[lo + 1], work->block_square[lo + 1])
			: 2;
		int64_t slot = lo == 0 ? 0 : (int64_t) ceil(at * n - work->offset);
		int64_t last = (int64_t) ceil(end * n - work->offset);

		last = last > work->n_sample ? work->n_sample : last;
		for (int64_t row = lo * BLOCK_ROWS; row < (lo + 1) * BLOCK_ROWS && row < points->n; row++)
		{
			const double *x = row_of(points, row);
			double weight = weight_of(points, row);
			double share = share_of(work, weight, weight * distance2(x, work->shift, work->d));
			bool is_last = row + 1 == (lo + 1) * BLOCK_ROWS || row + 1 == points->n;

			at += share;
			for (; slot < last && (((double) slot + work->offset) / n < at || is_last); slot++)
				put(work, slot, x, share > 0 ? weight / work->total_weight / share : 0);
		}
	}
	return MRC_OK;
}

/* All rows of blocks [lo, hi). */
static MrcStatus
copy_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	const MrcPoints *points = &work->kmeans->points;
	double unit = work->total_weight > 0 ? (double) points->n / work->total_weight : 1;

	(void) worker;
	hi = hi * BLOCK_ROWS < points->n ? hi * BLOCK_ROWS : points->n;
	for (int64_t row = lo * BLOCK_ROWS; row < hi; row++)
		put(work, row, row_of(points, row), weight_of(points, row) * unit);
	return MRC_OK;
}

static MrcStatus
draw_sample(Work *work, uint64_t *random)
{
	MrcPool *pool = work->kmeans->pool;
	int64_t padded = work->n_tiles * TILE;
	MrcStatus status = mrc_pool_run(pool, work->n_blocks, 1, block_task, work);

	if (status != MRC_OK)
		return status;
	for (int64_t i = 0; i < work->n_blocks; i++)
	{
		double weight = work->block_weight[i];
		double square = work->block_square[i];

		work->block_weight[i] = work->total_weight;
		work->block_square[i] = work->total_square;
		work->total_weight += weight;
		work->total_square += square;
	}
	if (!isfinite(work->total_weight) || !isfinite(work->total_square))
		return MRC_NOTFINITE;
	for (int64_t slot = work->n_sample; slot < padded; slot++)
		put(work, slot, work->shift, 0);
	work->offset = uniform(random);
	return mrc_pool_run(pool, work->n_blocks, 1,
						work->n_sample < work->kmeans->points.n ? sample_task : copy_task, work);
}

/* ---- the start: among the sample ---- */

enum
{
	SEED,
	SWAP,
	LLOYD,
	INHALE,
	EXHALE,
	JUDGE,
	DONE
};

enum
{
	NONE,
	ASSIGN, /* all points to the centres anew */
	MEND	/* what had to do with centre `lost` */
};

static const float *
tile_of(const Work *work, int64_t tile)
{
	return work->sample + (size_t) tile * work->d * TILE;
}

/* mass and total. */
static void
tally(const Work *work, Start *start)
{
	start->total = 0;
	for (int64_t tile = 0; tile < work->n_tiles; tile++)
	{
		double sum = 0;

		for (int64_t i = tile * TILE; i < (tile + 1) * TILE; i++)
			sum += work->sample_weight[i] * start->best[i];
		start->mass[tile] = sum;
		start->total += sum;
	}
}

/* A point with the probability of its weight * best, into out (d). */
static void
draw_point(const Work *work, Start *start, float *out)
{
	double at = uniform(&start->random) * start->total;
	int64_t tile = 0;
	int64_t drawn = (int64_t) (uniform(&start->random) * (double) work->n_sample);

	while (tile + 1 < work->n_tiles && at >= start->mass[tile])
		at -= start->mass[tile++];
	for (int64_t i = tile * TILE; i < (tile + 1) * TILE && at >= 0; i++)
	{
		double mass = work->sample_weight[i] * start->best[i];

		drawn = mass > 0 ? i : drawn;
		at -= mass;
	}
	for (int j = 0; j < work->d; j++)
		out[j] = tile_of(work, drawn / TILE)[(size_t) j * TILE + drawn % TILE];
}

/* A point of cluster c likewise; mass: their sum. */
static void
draw_of_cluster(const Work *work, Start *start, int c, double mass, float *out)
{
	double at = uniform(&start->random) * mass;
	int64_t drawn = -1;

	for (int64_t i = 0; i < work->n_sample && at >= 0; i++)
		if (start->label[i] == c && work->sample_weight[i] * start->best[i] > 0)
		{
			drawn = i;
			at -= work->sample_weight[i] * start->best[i];
		}
	for (int j = 0; j < work->d; j++)
		out[j] = drawn < 0 ? start->center[(size_t) c * work->d + j]
						   : tile_of(work, drawn / TILE)[(size_t) j * TILE + drawn % TILE];
}

/* The last centre is new. */
static void
add_center(const Work *work, Start *start)
{
	start->k++;
	for (int64_t tile = 0; tile < work->n_tiles; tile++)
	{
		int64_t at = tile * TILE;

		for (int64_t i = at; i < at + TILE && start->k == 1; i++)
		{
			start->best[i] = start->second[i] = FLT_MAX;
			start->label[i] = start->label2[i] = 0;
		}
		work->kernels.closer(tile_of(work, tile), work->d, start->center, start->k - 1, start->k,
							 start->best + at, start->second + at, start->label + at, start->label2 + at);
	}
	tally(work, start);
}

/* One more centre: of some points drawn that which helps most. */
static void
seed(const Work *work, Start *start)
{
	size_t d = (size_t) work->d;
	int n_draws = start->k == 0 ? 1 : 2 + (int) log(work->k);
	double total[MAX_DRAWS] = {0};
	int best = 0;

	for (int draw = 0; draw < n_draws; draw++)
		draw_point(work, start, start->point + (size_t) draw * d);
	for (int64_t tile = 0; tile < work->n_tiles && n_draws > 1; tile++)
		for (int draw = 0; draw < n_draws; draw++)
			total[draw] += work->kernels.with(tile_of(work, tile), work->d, start->point + (size_t) draw * d,
											  start->best + tile * TILE, work->sample_weight + tile * TILE);
	for (int draw = 1; draw < n_draws; draw++)
		best = total[draw] < total[best] ? draw : best;
	memcpy(start->center + (size_t) start->k * d, start->point + (size_t) best * d, d * sizeof(float));
	add_center(work, start);
	start->work += (double) work->n_sample * work->d * (n_draws + 1);
}

/* A point drawn takes the place of a centre, if that helps. */
static void
swap(const Work *work, Start *start)
{
	double total = 0;
	int lost = 0;

	draw_point(work, start, start->point);
	memset(start->value, 0, (size_t) start->k * sizeof(double));
	for (int64_t tile = 0; tile < work->n_tiles; tile++)
	{
		int64_t at = tile * TILE;

		total += work->kernels.instead(tile_of(work, tile), work->d, start->point, start->best + at,
									   start->second + at, work->sample_weight + at, start->label + at,
									   start->value);
	}
	start->work += 2.0 * (double) work->n_sample * work->d;
	for (int c = 1; c < start->k; c++)
		lost = start->value[c] < start->value[lost] ? c : lost;
	if (!(total + start->value[lost] < start->total * (1 - 1e-6)))
		return;
	memcpy(start->center + (size_t) lost * work->d, start->point, (size_t) work->d * sizeof(float));
	start->lost = lost;
	start->last = -1;
	start->pass = MEND;
}

/* No point is in a sum. */
static void
forget_sums(const Work *work, Start *start)
{
	size_t k = (size_t) work->k + BREATH;

	memset(start->sum, 0, k * work->d * sizeof(double));
	memset(start->size, 0, k * sizeof(double));
	memset(start->n_points, 0, k * sizeof(int64_t));
	memset(start->summed, 0xFF, (size_t) work->n_tiles * TILE * sizeof(int32_t));
}

/* Sums follow the labels; false if what is left in one is little against what was taken from it. */
static bool
follow(const Work *work, Start *start)
{
	size_t d = (size_t) work->d;
	bool good = true;

	for (int64_t i = 0; i < work->n_sample; i++)
	{
		const float *x = tile_of(work, i / TILE) + i % TILE;
		double weight = work->sample_weight[i];
		int from = start->summed[i];
		int to = start->label[i];

		if (from == to || !(weight > 0))
			continue;
		start->summed[i] = to;
		start->size[to] += weight;
		start->n_points[to]++;
		for (size_t j = 0; j < d; j++)
			start->sum[(size_t) to * d + j] += weight * x[j * TILE];
		if (from < 0)
			continue;
		start->size[from] -= weight;
		start->n_points[from]--;
		good = good && (start->n_points[from] == 0 || weight <= CANCELS * start->size[from]);
		for (size_t j = 0; j < d; j++)
			start->sum[(size_t) from * d + j] -= weight * x[j * TILE];
	}
	return good;
}

/* Centres are the means of their points. */
static void
means(const Work *work, Start *start)
{
	size_t d = (size_t) work->d;

	if (!follow(work, start))
	{
		forget_sums(work, start);
		follow(work, start);
	}
	for (int c = 0; c < start->k; c++)
		for (size_t j = 0; j < d && start->n_points[c] > 0; j++)
			start->center[(size_t) c * d + j] = (float) (start->sum[(size_t) c * d + j] / start->size[c]);
}

/* Centres are added where most is to be gained. */
static void
inhale(const Work *work, Start *start)
{
	size_t d = (size_t) work->d;

	memcpy(start->kept, start->center, (size_t) work->k * d * sizeof(float));
	start->kept_total = start->total;
	memset(start->value, 0, (size_t) start->k * sizeof(double));
	for (int64_t i = 0; i < work->n_sample; i++)
		start->value[start->label[i]] += work->sample_weight[i] * start->best[i];
	for (int n = 0; n < start->breath; n++)
	{
		int most = 0;

		for (int c = 1; c < work->k; c++)
			most = start->value[c] > start->value[most] ? c : most;
		draw_of_cluster(work, start, most, start->value[most], start->center + (size_t) (work->k + n) * d);
		start->value[most] = -1;
	}
	for (int n = 0; n < start->breath; n++)
		add_center(work, start);
	start->work += (double) work->n_sample * work->d * start->breath;
}

/* The centre that is missed least goes; the last one takes its number. */
static void
exhale(const Work *work, Start *start)
{
	size_t d = (size_t) work->d;
	int last = start->k - 1;
	int lost = 0;

	memset(start->value, 0, (size_t) start->k * sizeof(double));
	for (int64_t i = 0; i < work->n_sample; i++)
		start->value[start->label[i]] += work->sample_weight[i] * (start->second[i] - start->best[i]);
	for (int c = 1; c < start->k; c++)
		lost = start->value[c] < start->value[lost] ? c : lost;
	memcpy(start->center + (size_t) lost * d, start->center + (size_t) last * d, d * sizeof(float));
	memcpy(start->sum + (size_t) lost * d, start->sum + (size_t) last * d, d * sizeof(double));
	start->size[lost] = start->size[last];
	start->n_points[lost] = start->n_points[last];
	memset(start->sum + (size_t) last * d, 0, d * sizeof(double));
	start->size[last] = 0;
	start->n_points[last] = 0;
	start->k = last;
	start->lost = lost;
	start->last = last;
	start->pass = MEND;
}

/* The points of the desk are scored anew. */
static void
mend(const Work *work, Start *start, Desk *desk)
{
	for (int i = 0; i < TILE; i++)
	{
		desk->best[i] = desk->second[i] = FLT_MAX;
		desk->label[i] = desk->label2[i] = 0;
	}
	work->kernels.closer(desk->tile, work->d, start->center, 0, start->k, desk->best, desk->second,
						 desk->label, desk->label2);
	for (int i = 0; i < desk->n; i++)
	{
		int64_t to = desk->number[i];

		start->best[to] = desk->best[i];
		start->second[to] = desk->second[i];
		start->label[to] = desk->label[i];
		start->label2[to] = desk->label2[i];
	}
	start->work += (double) desk->n * work->d * start->k;
	desk->n = 0;
}

/* The pass MEND over a tile. */
static void
mend_tile(const Work *work, Start *start, Desk *desk, int64_t tile)
{
	int64_t at = tile * TILE;
	int lanes[TILE];
	int n = 0;

	for (int i = 0; i < TILE; i++)
	{
		if (start->label[at + i] == start->lost || start->label2[at + i] == start->lost)
			lanes[n++] = i;
		if (start->last < 0)
			continue;
		if (start->summed[at + i] == start->lost)
			start->summed[at + i] = -1;
		if (start->label[at + i] == start->last)
			start->label[at + i] = start->lost;
		if (start->label2[at + i] == start->last)
			start->label2[at + i] = start->lost;
		if (start->summed[at + i] == start->last)
			start->summed[at + i] = start->lost;
	}
	if (start->last < 0)
		work->kernels.closer(tile_of(work, tile), work->d, start->center, start->lost, start->lost + 1,
							 start->best + at, start->second + at, start->label + at, start->label2 + at);
	for (int i = 0; i < n; i++)
	{
		for (int j = 0; j < work->d; j++)
			desk->tile[(size_t) j * TILE + desk->n] = tile_of(work, tile)[(size_t) j * TILE + lanes[i]];
		desk->number[desk->n++] = at + lanes[i];
		if (desk->n == TILE)
			mend(work, start, desk);
	}
}

/* Goes on with the pass over the sample; false when the pool pauses before its end. */
static bool
run_pass(const Work *work, Start *start, Desk *desk)
{
	desk->n = 0;
	for (; start->pass_tile < work->n_tiles; start->pass_tile++)
	{
		int64_t at = start->pass_tile * TILE;

		if (mrc_pool_pausing(work->kmeans->pool))
			break;
		if (start->pass == MEND)
		{
			mend_tile(work, start, desk, start->pass_tile);
			continue;
		}
		for (int64_t i = at; i < at + TILE; i++)
		{
			start->best[i] = start->second[i] = FLT_MAX;
			start->label[i] = start->label2[i] = 0;
		}
		work->kernels.closer(tile_of(work, start->pass_tile), work->d, start->center, 0, start->k,
							 start->best + at, start->second + at, start->label + at, start->label2 + at);
		start->work += (double) TILE * work->d * start->k;
	}
	if (desk->n > 0)
		mend(work, start, desk);
	if (start->pass_tile < work->n_tiles)
		return false;
	start->pass_tile = 0;
	start->pass = NONE;
	tally(work, start);
	return true;
}

/* All starts together may do so much. */
static double
work_of(const Work *work)
{
	double most = START_SHARE * (double) work->kmeans->points.n * work->k * work->d;

	return (most > START_WORK ? most : START_WORK) / work->kmeans->n_starts;
}

static void
begin_lloyd(Start *start, int after)
{
	start->phase = LLOYD;
	start->after = after;
	start->n_done = 0;
	start->before = INFINITY;
}

/* One step of a start: something short, and maybe a pass to be run. */
static void
step(const Work *work, Start *start)
{
	bool tired = start->work > work_of(work);

	switch (start->phase)
	{
		case SEED:
			if (start->k < work->k)
				seed(work, start);
			else
				start->phase = SWAP;
			break;
		case SWAP:
			if (start->n_done++ < SWAPS && !tired)
				swap(work, start);
			else
				begin_lloyd(start, INHALE);
			break;
		case LLOYD:
			if (start->total <= start->before * (1 - START_TOLERANCE) && start->n_done++ < START_ROUNDS &&
				!tired)
			{
				start->before = start->total;
				means(work, start);
				start->pass = ASSIGN;
			}
			else
				start->phase = start->after;
			break;
		case INHALE:
			if (start->breath > 0 && !tired && start->total > 0)
			{
				inhale(work, start);
				begin_lloyd(start, EXHALE);
			}
			else
				start->phase = DONE;
			break;
		case EXHALE:
			if (start->k > work->k)
				exhale(work, start);
			else
				begin_lloyd(start, JUDGE);
			break;
		case JUDGE:
			if (!(start->total < start->kept_total * (1 - 1e-4)))
				start->breath--;
			if (start->total > start->kept_total)
			{
				memcpy(start->center, start->kept, (size_t) work->k * work->d * sizeof(float));
				start->pass = ASSIGN;
			}
			start->phase = INHALE;
			break;
	}
}

static void
begin_start(const Work *work, Start *start, int64_t number)
{
	start->number = number;
	start->random = mix(work->kmeans->seed + mix((uint64_t) number + 1));
	start->phase = SEED;
	start->pass = NONE;
	start->pass_tile = 0;
	start->k = 0;
	start->n_done = 0;
	start->breath = work->k < BREATH ? work->k : BREATH;
	start->work = 0;
	forget_sums(work, start);
	for (int64_t i = 0; i < work->n_tiles * TILE; i++)
		start->best[i] = 1;
	tally(work, start);
}

static MrcStatus
start_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	Desk *desk = &work->desks[worker];
	Start *start = &desk->start;

	(void) hi;
	if (start->number != lo)
		begin_start(work, start, lo);
	while (start->phase != DONE || start->pass != NONE)
	{
		if (mrc_pool_pausing(work->kmeans->pool))
			return MRC_AGAIN;
		if (start->pass == NONE)
			step(work, start);
		else if (!run_pass(work, start, desk))
			return MRC_AGAIN;
	}
	if (start->total < start->best_total)
	{
		start->best_total = start->total;
		start->best_number = lo;
		memcpy(start->found, start->center, (size_t) work->k * work->d * sizeof(float));
	}
	return MRC_OK;
}

MrcStatus
mrc_kmeans_start(MrcKmeans *km)
{
	uint64_t random = mix(km->seed);
	const Start *best;
	Work work;
	MrcStatus status;

	work_begin(&work, km);
	km->n_iterations = 0;
	status = draw_sample(&work, &random);
	for (int i = 0; i < mrc_pool_size(km->pool); i++)
	{
		work.desks[i].start.number = -1;
		work.desks[i].start.best_total = INFINITY;
	}
	if (status == MRC_OK)
		status = mrc_pool_run(km->pool, km->n_starts, 1, start_task, &work);
	if (status != MRC_OK)
		return status;
	best = &work.desks[0].start;
	for (int i = 1; i < mrc_pool_size(km->pool); i++)
	{
		const Start *other = &work.desks[i].start;

		if (other->best_total < best->best_total ||
			(other->best_total == best->best_total && other->best_number < best->best_number))
			best = other;
	}
	if (!isfinite(best->best_total))
		return MRC_NOTFINITE;
	for (int c = 0; c < km->k; c++)
		for (int j = 0; j < work.d; j++)
			km->center[(size_t) c * work.d + j] =
				work.shift[j] + best->found[(size_t) c * work.d + j] / work.state->scale;
	return MRC_OK;
}

/* ---- order ---- */

typedef struct Ranked
{
	const MrcKmeans *kmeans;
	int cluster;
} Ranked;

static int
compare_ranked(const void *a, const void *b)
{
	const MrcKmeans *km = ((const Ranked *) a)->kmeans;
	int i = ((const Ranked *) a)->cluster;
	int j = ((const Ranked *) b)->cluster;

	if (km->size[i] != km->size[j])
		return km->size[i] > km->size[j] ? -1 : 1;
	for (int t = 0; t < km->points.d; t++)
	{
		double x = km->center[(size_t) i * km->points.d + t];
		double y = km->center[(size_t) j * km->points.d + t];

		if (x != y)
			return x < y ? -1 : 1;
	}
	return i < j ? -1 : 1;
}

typedef struct Renumber
{
	int32_t *label;
	const int32_t *number; /* k: the new number of a cluster */
} Renumber;

static MrcStatus
renumber_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Renumber *renumber = arg;

	(void) worker;
	for (; lo < hi; lo++)
		renumber->label[lo] = renumber->number[renumber->label[lo]];
	return MRC_OK;
}

/* x (k x d): row to[c] becomes what row c was; along cycles.  done: k. */
static void
permute(double *x, int k, int d, const int32_t *to, bool *done)
{
	memset(done, 0, (size_t) k * sizeof(bool));
	for (int c = 0; c < k; c++)
		for (int at = to[c]; !done[at]; at = to[at])
		{
			/* row c holds what belongs at `at` */
			done[at] = true;
			for (int j = 0; j < d && at != c; j++)
			{
				double kept = x[(size_t) at * d + j];

				x[(size_t) at * d + j] = x[(size_t) c * d + j];
				x[(size_t) c * d + j] = kept;
			}
		}
}

MrcStatus
mrc_kmeans_order(MrcKmeans *km)
{
	Layout at = {km->scratch, 0};
	Ranked *ranked = take(&at, (size_t) km->k * sizeof(Ranked));
	int32_t *number = take(&at, (size_t) km->k * sizeof(int32_t));
	bool *done = take(&at, (size_t) km->k * sizeof(bool));
	Renumber renumber = {km->label, number};

	for (int c = 0; c < km->k; c++)
		ranked[c] = (Ranked){km, c};
	qsort(ranked, (size_t) km->k, sizeof(Ranked), compare_ranked);
	for (int c = 0; c < km->k; c++)
		number[ranked[c].cluster] = c;
	permute(km->center, km->k, km->points.d, number, done);
	permute(km->size, km->k, 1, number, done);
	permute(km->cluster_cost, km->k, 1, number, done);
	km->n_iterations = 0;
	km->measured = false;
	return mrc_pool_run(km->pool, km->points.n, 1 << 20, renumber_task, &renumber);
}

/* ---- distinct points ---- */

typedef struct Distinct
{
	MrcPool *pool;
	const MrcPoints *points;
	int k;
	int64_t next; /* the first row that has not been looked at */
	int n_found;
	size_t n_slots; /* a power of two */
	int64_t *slots; /* rows found, -1: free */
} Distinct;

static size_t
distinct_slots(int k)
{
	size_t n = 16;

	while (n < 2 * (size_t) k)
		n *= 2;
	return n;
}

size_t
mrc_kmeans_distinct_bytes(int k)
{
	return distinct_slots(k) * sizeof(int64_t);
}

static bool
same_point(const double *a, const double *b, int d)
{
	for (int j = 0; j < d; j++)
		if (a[j] != b[j])
			return false;
	return true;
}

static uint64_t
hash_point(const double *x, int d)
{
	uint64_t hash = 0;

	for (int j = 0; j < d; j++)
	{
		double number = x[j] + 0.0; /* -0 + 0 = 0 */
		uint64_t bits;

		memcpy(&bits, &number, sizeof(bits));
		hash = mix(hash ^ bits);
	}
	return hash;
}

/* One task that looks at all points until k are found. */
static MrcStatus
distinct_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Distinct *distinct = arg;
	const MrcPoints *points = distinct->points;
	int64_t check = CHECK_NUMBERS / points->d + 1;

	(void) worker;
	(void) lo;
	(void) hi;
	for (; distinct->next < points->n && distinct->n_found < distinct->k; distinct->next++)
	{
		const double *x = row_of(points, distinct->next);
		size_t slot;

		if (distinct->next % check == 0 && mrc_pool_pausing(distinct->pool))
			return MRC_AGAIN;
		if (!(weight_of(points, distinct->next) > 0))
			continue;
		slot = hash_point(x, points->d) & (distinct->n_slots - 1);
		while (distinct->slots[slot] >= 0 && !same_point(row_of(points, distinct->slots[slot]), x, points->d))
			slot = (slot + 1) & (distinct->n_slots - 1);
		if (distinct->slots[slot] < 0)
		{
			distinct->slots[slot] = distinct->next;
			distinct->n_found++;
		}
	}
	return MRC_OK;
}

MrcStatus
mrc_kmeans_distinct(MrcPool *pool, const MrcPoints *points, int k, int *n_distinct, void *scratch)
{
	Distinct distinct = {.pool = pool, .points = points, .k = k, .slots = scratch};
	MrcStatus status;

	distinct.n_slots = distinct_slots(k);
	memset(scratch, 0xFF, distinct.n_slots * sizeof(int64_t));
	status = mrc_pool_run(pool, 1, 1, distinct_task, &distinct);
	*n_distinct = distinct.n_found;
	return status;
}

/* ---- silhouette ---- */

/* One part of the points. */
typedef struct Shape
{
	int64_t lo;
	int64_t next; /* the first row that is not done */
	int64_t hi;
	double *sum;	/* k x d: of differences from the base, by weight */
	double *spread; /* k: of squared distances to the mean, by weight */
	double *weight; /* k */
	double total;	/* of silhouettes, by weight */
} Shape;

typedef struct Silhouette
{
	MrcPool *pool;
	const MrcPoints *points;
	const int32_t *label;
	int k;
	int step;
	int n_shapes;
	Shape *shapes;
	double *mean;	/* k x d */
	double *spread; /* k: means of squared distances to the mean */
	double *weight; /* k */
	double *apart;	/* n_threads x k: of one point, the sums of distances to the points of each cluster */
} Silhouette;

static size_t
lay_out_silhouette(Silhouette *s, char *base, const MrcPoints *points, int k, int n_threads)
{
	Layout at = {base, 0};

	s->n_shapes = n_parts_of(points, k);
	s->shapes = take(&at, (size_t) s->n_shapes * sizeof(Shape));
	s->mean = take(&at, (size_t) k * points->d * sizeof(double));
	s->spread = take(&at, (size_t) k * sizeof(double));
	s->weight = take(&at, (size_t) k * sizeof(double));
	s->apart = take(&at, (size_t) n_threads * k * sizeof(double));
	for (int p = 0; p < s->n_shapes; p++)
	{
		Shape shape = {.lo = points->n * p / s->n_shapes, .hi = points->n * (p + 1) / s->n_shapes};

		shape.next = shape.lo;
		shape.sum = take(&at, (size_t) k * points->d * sizeof(double));
		shape.spread = take(&at, (size_t) k * sizeof(double));
		shape.weight = take(&at, (size_t) k * sizeof(double));
		if (base)
			s->shapes[p] = shape;
	}
	return at.n_bytes;
}

size_t
mrc_silhouette_scratch_bytes(const MrcPoints *points, int k, int n_threads)
{
	Silhouette s;

	return lay_out_silhouette(&s, NULL, points, k, n_threads);
}

/* (b - a) / max(a, b), 0 where both are 0. */
static double
silhouette_of(double own, double other)
{
	double most = own > other ? own : other;

	return most > 0 ? (other - own) / most : 0;
}

static double
point_silhouette(const Silhouette *s, const double *x, int own)
{
	int d = s->points->d;
	double other = INFINITY;
	double n = s->weight[own];

	if (!(n > 1))
		return 0;
	for (int c = 0; c < s->k; c++)
		if (c != own && s->weight[c] > 0)
		{
			double here = distance2(x, s->mean + (size_t) c * d, d) + s->spread[c];

			other = here < other ? here : other;
		}
	return silhouette_of((distance2(x, s->mean + (size_t) own * d, d) + s->spread[own]) * (n / (n - 1)),
						 other);
}

/* Steps: 0 sums, 1 squared distances to the means, 2 silhouettes. */
static MrcStatus
shape_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Silhouette *s = arg;
	const MrcPoints *points = s->points;
	int d = points->d;
	int64_t check = CHECK_NUMBERS / ((s->step == 2 ? s->k : 1) * (int64_t) d) + 1;
	Shape *shape = &s->shapes[lo];

	(void) worker;
	(void) hi;
	for (; shape->next < shape->hi; shape->next++)
	{
		const double *x = row_of(points, shape->next);
		double w = weight_of(points, shape->next);
		int c = s->label[shape->next];

		if (shape->next % check == 0 && mrc_pool_pausing(s->pool))
			return MRC_AGAIN;
		if (s->step == 0)
		{
			shape->weight[c] += w;
			for (int j = 0; j < d; j++)
				shape->sum[(size_t) c * d + j] += w * (x[j] - s->mean[j]);
		}
		else if (s->step == 1)
			shape->spread[c] += w * distance2(x, s->mean + (size_t) c * d, d);
		else
			shape->total += w * point_silhouette(s, x, c);
	}
	return MRC_OK;
}

static MrcStatus
run_shapes(Silhouette *s, int step)
{
	s->step = step;
	for (int p = 0; p < s->n_shapes; p++)
		s->shapes[p].next = s->shapes[p].lo;
	return mrc_pool_run(s->pool, s->n_shapes, 1, shape_task, s);
}

/* Weights, means and spreads of the clusters. */
static MrcStatus
measure_clusters(Silhouette *s)
{
	size_t n_numbers = (size_t) s->k * s->points->d;
	MrcStatus status;

	memset(s->spread, 0, (size_t) s->k * sizeof(double));
	memset(s->weight, 0, (size_t) s->k * sizeof(double));
	for (int p = 0; p < s->n_shapes; p++)
	{
		memset(s->shapes[p].sum, 0, n_numbers * sizeof(double));
		memset(s->shapes[p].spread, 0, (size_t) s->k * sizeof(double));
		memset(s->shapes[p].weight, 0, (size_t) s->k * sizeof(double));
	}
	memcpy(s->mean, row_of(s->points, 0), (size_t) s->points->d * sizeof(double));
	status = run_shapes(s, 0);
	if (status != MRC_OK)
		return status;
	for (int c = s->k - 1; c >= 0; c--) /* the base stands where the first mean will */
	{
		for (int p = 0; p < s->n_shapes; p++)
			s->weight[c] += s->shapes[p].weight[c];
		for (int j = 0; j < s->points->d; j++)
		{
			double sum = 0;

			for (int p = 0; p < s->n_shapes; p++)
				sum += s->shapes[p].sum[(size_t) c * s->points->d + j];
			s->mean[(size_t) c * s->points->d + j] = s->mean[j] + (s->weight[c] > 0 ? sum / s->weight[c] : 0);
		}
	}
	status = run_shapes(s, 1);
	for (int c = 0; c < s->k && status == MRC_OK; c++)
	{
		for (int p = 0; p < s->n_shapes; p++)
			s->spread[c] += s->shapes[p].spread[c];
		s->spread[c] /= s->weight[c] > 0 ? s->weight[c] : 1;
	}
	return status;
}

/* The mean over all points; NaN if fewer than two clusters have some. */
static MrcStatus
mean_silhouette(const Silhouette *s, double *silhouette)
{
	double total = 0;
	double weight = 0;
	int n_used = 0;

	for (int p = 0; p < s->n_shapes; p++)
		total += s->shapes[p].total;
	for (int c = 0; c < s->k; c++)
	{
		weight += s->weight[c];
		n_used += s->weight[c] > 0;
	}
	*silhouette = n_used > 1 ? total / weight : NAN;
	return n_used > 1 && !isfinite(*silhouette) ? MRC_NOTFINITE : MRC_OK;
}

MrcStatus
mrc_silhouette(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k, void *scratch,
			   double *silhouette)
{
	Silhouette s = {.pool = pool, .points = points, .label = label, .k = k};
	MrcStatus status;

	lay_out_silhouette(&s, scratch, points, k, mrc_pool_size(pool));
	status = measure_clusters(&s);
	if (status == MRC_OK)
		status = run_shapes(&s, 2);
	return status == MRC_OK ? mean_silhouette(&s, silhouette) : status;
}

/* Adds to *total that of a point, from its distances to all points; false if the pool pauses.  apart: k, overwritten. */
static bool
add_pairs(const Silhouette *s, int64_t row, double *apart, double *total)
{
	int64_t check = CHECK_NUMBERS / s->points->d + 1;
	const double *x = row_of(s->points, row);
	int own = s->label[row];
	double other = INFINITY;

	if (!(s->weight[own] > 1))
		return true;
	memset(apart, 0, (size_t) s->k * sizeof(double));
	for (int64_t i = 0; i < s->points->n; i++)
	{
		if (i % check == 0 && mrc_pool_pausing(s->pool))
			return false;
		apart[s->label[i]] +=
			weight_of(s->points, i) * sqrt(distance2(x, row_of(s->points, i), s->points->d));
	}
	for (int c = 0; c < s->k; c++)
		if (c != own && s->weight[c] > 0 && apart[c] / s->weight[c] < other)
			other = apart[c] / s->weight[c];
	*total += weight_of(s->points, row) * silhouette_of(apart[own] / (s->weight[own] - 1), other);
	return true;
}

static MrcStatus
pair_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Silhouette *s = arg;
	Shape *shape = &s->shapes[lo];

	(void) hi;
	for (; shape->next < shape->hi; shape->next++)
		if (!add_pairs(s, shape->next, s->apart + (size_t) worker * s->k, &shape->total))
			return MRC_AGAIN;
	return MRC_OK;
}

MrcStatus
mrc_silhouette_pairs(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k, void *scratch,
					 double *silhouette)
{
	Silhouette s = {.pool = pool, .points = points, .label = label, .k = k};
	MrcStatus status;

	lay_out_silhouette(&s, scratch, points, k, mrc_pool_size(pool));
	status = measure_clusters(&s);
	if (status != MRC_OK)
		return status;
	for (int p = 0; p < s.n_shapes; p++)
		s.shapes[p].next = s.shapes[p].lo;
	status = mrc_pool_run(pool, s.n_shapes, 1, pair_task, &s);
	return status == MRC_OK ? mean_silhouette(&s, silhouette) : status;
}
