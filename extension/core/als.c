/*
 * als.c: alternating least squares, exact.
 *
 * For a row with ratings r_j of the factors y_j the minimum of the objective (core.h) solves A x = b with
 *   implicit   A = u G + sum alpha r_j y_j y_j^T + p I,   b = sum (u + alpha r_j) y_j  (r_j > 0)
 *   explicit   A = sum y_j y_j^T + p I,                   b = sum r_j y_j
 * where G = Y^T Y is the Gramian of the whole other side, u the unobserved weight and p the row's penalty (Hu,
 * Koren, Volinsky 2008, eq. 4).  G is taken once per half-step.  The y_j, scaled by the root of their weights, are
 * gathered into a panel that fits the first-level cache, and A gets the panel's symmetric update by the tiles of
 * kernel.h; then Cholesky.
 *
 * The loss needs no pass over all pairs: sum over all pairs of (x.y)^2 is the sum of the products of the elements
 * of both Gramians, and what the ratings change in it is summed while the items are solved.
 *
 * Work is cut into chunks of rows of about equal cost by the input alone; sums over rows are kept per chunk, those
 * of Gramians per slot, and added in order: so nothing depends on who did what when.
 */
#include "core.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define PANEL_FLOATS 8192	/* 32 kB, most of a first-level cache */
#define GRAM_SLOTS 16		/* partial Gramians, added in order */
#define MAX_CHUNKS 4096		/* of a half-step */
#define CHUNK_MACS 8e6		/* multiplications of one, well under a millisecond */
#define PREFETCH 4			/* ratings ahead */
#define START_FLOATS 65536	/* of a task of the random start, about 2 ms */
#define CBLAS_ROW_MAJOR 101 /* CBLAS' enumerations: there is no header at run time */
#define CBLAS_NO_TRANS 111
#define CBLAS_TRANS 112

#if defined(__x86_64__)
#define KERNEL(name) name##_avx512
#define TARGET __attribute__((target("avx512f,fma")))
#define LANES 16
#define COLS 4
#include "kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef COLS
#define KERNEL(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define COLS 3
#include "kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef COLS
#define COLS 2 /* 16 registers */
#else
#define COLS 4
#endif
#define KERNEL(name) name##_plain
#define TARGET
#define LANES 4
#include "kernel.h"

typedef struct Kernels
{
	void (*syrk)(float *a, const float *p, int ld, int n, int lo, float sign);
	void (*gather)(float *to, const float *from, int rank, int ld, float scale, float *sum, float weight);
	void (*dots)(const float *x, const float *y, int64_t n, int rank, float *out);
	bool (*solve)(float *a, float *b, int ld, int rank, const float *least);
} Kernels;

static Kernels
kernels(void)
{
#if defined(__x86_64__)
	if (__builtin_cpu_supports("avx512f"))
		return (Kernels){syrk_avx512, gather_avx512, dots_avx512, solve_avx512};
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return (Kernels){syrk_avx2, gather_avx2, dots_avx2, solve_avx2};
#endif
	return (Kernels){syrk_plain, gather_plain, dots_plain, solve_plain};
}

/* One thread's. */
typedef struct Desk
{
	float *panel;  /* panel_rows x ld */
	float *a;	   /* ld x ld, with room for doubles */
	float *b;	   /* ld */
	float *least;  /* ld: the smallest pivot that counts */
	double *exact; /* ld: b of solve_in_double */
	int64_t bad_row;
	int64_t paused_chunk; /* -1, or the chunk that gave way to a pause; this desk gets it again */
	int64_t paused_row;	  /* its first row that is not done */
} Desk;

/* One half-step: rows of `own` from `other`. */
typedef struct Half
{
	const MrcAls *als;
	Kernels kernels;
	const MrcCsr *csr; /* own x other */
	float *own;
	const float *other;
	int64_t n_other;
	int rank;
	int ld;
	int panel_rows;
	bool want_loss;
	double row_cost; /* of a row without ratings, in ratings */
	int64_t n_chunks;
	int64_t slot_rows;
	float *slots;		   /* GRAM_SLOTS x ld x ld */
	float *gram;		   /* ld x ld, unobserved * G of the other side */
	double *chunk_loss;	   /* MAX_CHUNKS: what the ratings of the chunk's rows add to the loss */
	double *chunk_penalty; /* MAX_CHUNKS */
	Desk *desks;
} Half;

static int
padded(int rank)
{
	return (rank + 15) / 16 * 16;
}

static int
panel_rows_of(int ld)
{
	return ld * 16 > PANEL_FLOATS ? 16 : PANEL_FLOATS / ld;
}

static size_t
desk_floats(int ld)
{
	return (size_t) panel_rows_of(ld) * ld + 2 * (size_t) ld * ld + 4 * (size_t) ld;
}

size_t
mrc_als_scratch_bytes(const MrcAlsParams *params, int64_t n_users, int64_t n_items, int n_threads)
{
	size_t ld = (size_t) padded(params->rank);
	size_t floats = (GRAM_SLOTS + 2) * ld * ld + (size_t) n_threads * desk_floats((int) ld);
	size_t desks = ((size_t) n_threads * sizeof(Desk) + 63) / 64 * 64;

	(void) n_users;
	(void) n_items;
	return floats * sizeof(float) + 2 * MAX_CHUNKS * sizeof(double) + desks;
}

static inline float *
take(char **at, size_t n_bytes)
{
	char *taken = *at;

	*at += n_bytes;
	return (float *) (void *) taken;
}

/* Lay out the scratch; every piece is a multiple of 64 bytes. */
static void
half_begin(Half *half, const MrcAls *als, bool user_side)
{
	char *at = als->scratch;
	int n_threads = mrc_pool_size(als->pool);
	size_t ld = (size_t) padded(als->params.rank);

	memset(half, 0, sizeof(*half));
	half->als = als;
	half->kernels = kernels();
	half->csr = user_side ? &als->by_user : &als->by_item;
	half->own = user_side ? als->user : als->item;
	half->other = user_side ? als->item : als->user;
	half->n_other = half->csr->n_cols;
	half->rank = als->params.rank;
	half->ld = (int) ld;
	half->panel_rows = panel_rows_of(half->ld);
	half->slots = take(&at, GRAM_SLOTS * ld * ld * sizeof(float));
	half->gram = take(&at, ld * ld * sizeof(float));
	(void) take(&at, ld * ld * sizeof(float));
	half->chunk_loss = (double *) (void *) take(&at, MAX_CHUNKS * sizeof(double));
	half->chunk_penalty = (double *) (void *) take(&at, MAX_CHUNKS * sizeof(double));
	half->desks = (Desk *) (void *) take(&at, ((size_t) n_threads * sizeof(Desk) + 63) / 64 * 64);
	for (int i = 0; i < n_threads; i++)
	{
		Desk *desk = &half->desks[i];

		desk->panel = take(&at, (size_t) half->panel_rows * ld * sizeof(float));
		desk->a = take(&at, ld * ld * sizeof(double));
		desk->b = take(&at, ld * sizeof(float));
		desk->least = take(&at, ld * sizeof(float));
		desk->exact = (double *) (void *) take(&at, ld * sizeof(double));
		desk->bad_row = -1;
		desk->paused_chunk = -1;
	}
}

/* ---- Gramian ---- */

static MrcStatus
gram_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Half *half = arg;
	Desk *desk = &half->desks[worker];
	size_t size = (size_t) half->ld * half->ld;

	for (int64_t slot = lo; slot < hi; slot++)
	{
		float *sum = half->slots + (size_t) slot * size;
		int64_t row = slot * half->slot_rows;
		int64_t end = row + half->slot_rows < half->n_other ? row + half->slot_rows : half->n_other;

		memset(sum, 0, size * sizeof(float));
		while (row < end)
		{
			int n = (int) (end - row < half->panel_rows ? end - row : half->panel_rows);

			if (mrc_pool_pausing(half->als->pool))
				return MRC_AGAIN;
			for (int t = 0; t < n; t++)
				half->kernels.gather(desk->panel + (size_t) t * half->ld,
									 half->other + (row + t) * half->rank, half->rank, half->ld, 1, desk->b,
									 0);
			half->kernels.syrk(sum, desk->panel, half->ld, n, 0, 1);
			row += n;
		}
	}
	return MRC_OK;
}

/* gram = weight * other^T other, upper triangle and what the tiles cover below it. */
static MrcStatus
gramian(Half *half, float *gram, double weight)
{
	size_t size = (size_t) half->ld * half->ld;
	int64_t n_slots;
	MrcStatus status;

	half->slot_rows = (half->n_other + GRAM_SLOTS - 1) / GRAM_SLOTS;
	if (half->slot_rows < half->panel_rows)
		half->slot_rows = half->panel_rows;
	n_slots = (half->n_other + half->slot_rows - 1) / half->slot_rows;
	status = mrc_pool_run(half->als->pool, n_slots, 1, gram_task, half);
	for (size_t i = 0; i < size && status == MRC_OK; i++)
	{
		double sum = 0;

		for (int64_t slot = 0; slot < n_slots; slot++)
			sum += half->slots[(size_t) slot * size + i];
		gram[i] = (float) (weight * sum);
	}
	return status;
}

/* ---- rows ---- */

/* Ratings of the row that count: all, but under implicit feedback only those above zero. */
static int64_t
n_counted(const Half *half, int64_t row)
{
	const MrcCsr *csr = half->csr;
	int64_t n = csr->start[row + 1] - csr->start[row];

	if (half->als->params.implicit)
		for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
			n -= !(csr->value[e] > 0);
	return n;
}

/* Penalty of a row with n ratings that count. */
static double
penalty_of(const Half *half, int64_t n)
{
	const MrcAlsParams *params = &half->als->params;
	double base = (double) n + (params->implicit ? params->unobserved * (double) half->n_other : 0);

	return params->regularization * (params->exponent == 0 ? 1 : pow(base, params->exponent));
}

/* Weight of y y^T in A, and of y in b. */
static inline void
weights(const MrcAlsParams *params, float value, float *square, float *linear)
{
	if (!params->implicit)
	{
		*square = 1;
		*linear = value;
	}
	else
	{
		*square = (float) (params->alpha * value);
		*linear = value > 0 ? (float) (params->unobserved + params->alpha * value) : 0;
	}
}

/* A and b of a row.  MRC_AGAIN when the pool wants a pause, MRC_NOTFINITE when A is out of range. */
static MrcStatus
build_system(const Half *half, Desk *desk, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	int64_t end = csr->start[row + 1];
	int ld = half->ld;

	memset(desk->b, 0, (size_t) ld * sizeof(float));
	if (params->implicit)
		memcpy(desk->a, half->gram, (size_t) ld * ld * sizeof(float));
	else
		memset(desk->a, 0, (size_t) ld * ld * sizeof(float));
	for (int64_t e = csr->start[row]; e < end;)
	{
		int n = (int) (end - e < half->panel_rows ? end - e : half->panel_rows);

		if (mrc_pool_pausing(half->als->pool) && end - csr->start[row] > half->panel_rows)
			return MRC_AGAIN;
		for (int t = 0; t < n; t++, e++)
		{
			float square;
			float linear;

			if (e + PREFETCH < end)
				__builtin_prefetch(half->other + (int64_t) csr->index[e + PREFETCH] * half->rank);
			weights(params, csr->value[e], &square, &linear);
			half->kernels.gather(desk->panel + (size_t) t * ld,
								 half->other + (int64_t) csr->index[e] * half->rank, half->rank, ld,
								 sqrtf(square), desk->b, linear);
		}
		half->kernels.syrk(desk->a, desk->panel, ld, n, 0, 1);
	}
	for (int i = 0; i < half->rank; i++)
	{
		float *diagonal = &desk->a[(size_t) i * ld + i];

		*diagonal += (float) penalty;
		if (!(*diagonal <= FLT_MAX))
			return MRC_NOTFINITE;
		desk->least[i] = *diagonal * FLT_EPSILON;
	}
	return MRC_OK;
}

/* What the row's ratings add to the loss, beyond the unobserved weight of all pairs. */
static double
rating_loss(const Half *half, int64_t row)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	double sum = 0;

	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
	{
		float predicted;
		double miss;

		half->kernels.dots(half->own + row * half->rank, half->other + (int64_t) csr->index[e] * half->rank,
						   1, half->rank, &predicted);
		if (!params->implicit)
		{
			miss = csr->value[e] - (double) predicted;
			sum += miss * miss;
		}
		else if (csr->value[e] > 0)
		{
			miss = 1 - (double) predicted;
			sum += (params->unobserved + params->alpha * csr->value[e]) * miss * miss -
				params->unobserved * (double) predicted * predicted;
		}
	}
	return sum;
}

/*
 * The system of a row with explicit ratings that is singular at single precision, from the start in doubles: values of
 * 1e5 make A that much larger than the penalty that keeps it regular.  Plain loops; few data need this.
 */
static MrcStatus
solve_in_double(const Half *half, Desk *desk, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	int rank = half->rank;
	size_t ld = (size_t) half->ld;
	double *a = (double *) (void *) desk->a;
	double *b = desk->exact;

	memset(a, 0, ld * ld * sizeof(double));
	memset(b, 0, ld * sizeof(double));
	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
	{
		const float *y = half->other + (int64_t) csr->index[e] * rank;

		if (e % 16 == 0 && mrc_pool_pausing(half->als->pool))
			return MRC_AGAIN;
		for (int i = 0; i < rank; i++)
		{
			b[i] += (double) csr->value[e] * y[i];
			for (int j = i; j < rank; j++)
				a[i * ld + j] += (double) y[i] * y[j];
		}
	}
	for (int i = 0; i < rank; i++)
	{
		a[i * ld + i] += penalty;
		desk->least[i] = (float) (a[i * ld + i] * rank * DBL_EPSILON);
	}
	for (int i = 0; i < rank; i++)
	{
		double *pivot = a + i * ld;
		double inverse;

		if (!(pivot[i] > desk->least[i]))
			return MRC_NOTPD;
		inverse = 1 / sqrt(pivot[i]);
		for (int j = i; j < rank; j++)
			pivot[j] *= inverse;
		for (int r = i + 1; r < rank; r++)
			for (int j = r; j < rank; j++)
				a[r * ld + j] -= pivot[r] * pivot[j];
	}
	for (int i = 0; i < rank; i++)
	{
		b[i] /= a[i * ld + i];
		for (int j = i + 1; j < rank; j++)
			b[j] -= b[i] * a[i * ld + j];
	}
	for (int i = rank - 1; i >= 0; i--)
	{
		for (int j = i + 1; j < rank; j++)
			b[i] -= a[i * ld + j] * b[j];
		b[i] /= a[i * ld + i];
		desk->b[i] = (float) b[i];
	}
	return MRC_OK;
}

static MrcStatus
solve_row(Half *half, Desk *desk, int64_t row, double *penalty)
{
	float *own = half->own + row * half->rank;
	int64_t n = n_counted(half, row);
	double square = 0;
	MrcStatus status;

	*penalty = 0;
	if (n == 0)
	{
		memset(own, 0, (size_t) half->rank * sizeof(float));
		return MRC_OK;
	}
	*penalty = penalty_of(half, n);
	status = build_system(half, desk, row, *penalty);
	if (status != MRC_OK)
		return status;
	if (!half->kernels.solve(desk->a, desk->b, half->ld, half->rank, desk->least))
		status = half->als->params.implicit ? MRC_NOTPD : solve_in_double(half, desk, row, *penalty);
	if (status != MRC_OK)
		return status;
	for (int i = 0; i < half->rank; i++)
		square += (double) desk->b[i] * desk->b[i];
	if (!(square <= FLT_MAX))
		return MRC_NOTFINITE;
	memcpy(own, desk->b, (size_t) half->rank * sizeof(float));
	*penalty *= square;
	return MRC_OK;
}

/* First row of a chunk: rows are worth their ratings and row_cost each. */
static int64_t
chunk_row(const Half *half, int64_t chunk)
{
	const MrcCsr *csr = half->csr;
	double total = (double) csr->start[csr->n_rows] + half->row_cost * (double) csr->n_rows;
	double want = total * (double) chunk / (double) half->n_chunks;
	int64_t lo = 0;
	int64_t hi = csr->n_rows;

	if (chunk >= half->n_chunks)
		return csr->n_rows;
	while (lo < hi)
	{
		int64_t middle = lo + (hi - lo) / 2;

		if ((double) csr->start[middle] + half->row_cost * (double) middle < want)
			lo = middle + 1;
		else
			hi = middle;
	}
	return lo;
}

static MrcStatus
rows_task(void *arg, int worker, int64_t chunk, int64_t chunk_end)
{
	Half *half = arg;
	Desk *desk = &half->desks[worker];

	for (; chunk < chunk_end; chunk++)
	{
		int64_t row = chunk_row(half, chunk);
		int64_t end = chunk_row(half, chunk + 1);

		if (chunk == desk->paused_chunk)
			row = desk->paused_row;
		else
			half->chunk_loss[chunk] = half->chunk_penalty[chunk] = 0;
		desk->paused_chunk = -1;
		for (; row < end; row++)
		{
			double penalty;
			MrcStatus status =
				mrc_pool_pausing(half->als->pool) ? MRC_AGAIN : solve_row(half, desk, row, &penalty);

			if (status == MRC_AGAIN)
			{
				desk->paused_chunk = chunk;
				desk->paused_row = row;
				return status;
			}
			if (status != MRC_OK)
			{
				desk->bad_row = row;
				return status;
			}
			half->chunk_penalty[chunk] += penalty;
			if (half->want_loss)
				half->chunk_loss[chunk] += rating_loss(half, row);
		}
	}
	return MRC_OK;
}

/* Gramian of the other side if the objective has one, then the rows. */
static MrcStatus
solve_side(Half *half)
{
	const MrcAls *als = half->als;
	double k = half->rank;
	double macs;
	MrcStatus status = MRC_OK;

	half->row_cost = k / 3 + 8;
	macs =
		((double) half->csr->start[half->csr->n_rows] + half->row_cost * (double) half->csr->n_rows) * k * k;
	half->n_chunks = macs / CHUNK_MACS < MAX_CHUNKS ? (int64_t) (macs / CHUNK_MACS) + 1 : MAX_CHUNKS;
	if (als->params.implicit)
		status = gramian(half, half->gram, als->params.unobserved);
	if (status == MRC_OK)
		status = mrc_pool_run(als->pool, half->n_chunks, 1, rows_task, half);
	return status;
}

static void
report_bad_row(MrcAls *als, const Half *half, bool user_side)
{
	als->bad_user = user_side;
	als->bad_row = -1;
	for (int i = 0; i < mrc_pool_size(als->pool); i++)
	{
		int64_t row = half->desks[i].bad_row;

		if (row >= 0 && (als->bad_row < 0 || row < als->bad_row))
			als->bad_row = row;
	}
}

MrcStatus
mrc_als_half_step(MrcAls *als, bool user_side)
{
	Half half;
	MrcStatus status;

	half_begin(&half, als, user_side);
	status = solve_side(&half);
	if (status != MRC_OK)
		report_bad_row(als, &half, user_side);
	return status;
}

static double
sum_chunks(const Half *half, const double *values)
{
	double sum = 0;

	for (int64_t chunk = 0; chunk < half->n_chunks; chunk++)
		sum += values[chunk];
	return sum;
}

/* Sum over all pairs of (x.y)^2 times the unobserved weight, from the two upper triangles. */
static MrcStatus
all_pairs_loss(Half *items, MrcAls *als, double *loss)
{
	Half users;
	float *gram = items->gram + (size_t) items->ld * items->ld;
	MrcStatus status;

	*loss = 0;
	half_begin(&users, als, true);
	status = gramian(&users, gram, 1);
	for (int i = 0; i < items->rank && status == MRC_OK; i++)
		for (int j = i; j < items->rank; j++)
		{
			size_t at = (size_t) i * items->ld + j;

			*loss += (i == j ? 1 : 2) * (double) items->gram[at] * gram[at];
		}
	return status;
}

MrcStatus
mrc_als_iterate(MrcAls *als)
{
	Half half;
	MrcStatus status;
	double loss;
	double pairs = 0;

	half_begin(&half, als, true);
	status = solve_side(&half);
	if (status != MRC_OK)
	{
		report_bad_row(als, &half, true);
		return status;
	}
	loss = sum_chunks(&half, half.chunk_penalty);

	half_begin(&half, als, false);
	half.want_loss = true;
	status = solve_side(&half);
	if (status != MRC_OK)
	{
		report_bad_row(als, &half, false);
		return status;
	}
	loss += sum_chunks(&half, half.chunk_penalty) + sum_chunks(&half, half.chunk_loss);
	if (als->params.implicit)
		status = all_pairs_loss(&half, als, &pairs);
	als->loss = loss + pairs;
	return status;
}

/* ---- start, products ---- */

/* splitmix64 (Steele, Lea, Flood 2014) as a function of a counter. */
static uint64_t
mix(uint64_t x)
{
	x += UINT64_C(0x9E3779B97F4A7C15);
	x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
	x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
	return x ^ x >> 31;
}

/* In (0, 1]. */
static double
uniform(uint64_t x)
{
	return (double) ((mix(x) >> 11) + 1) * 0x1p-53;
}

typedef struct Start
{
	MrcAls *als;
	uint64_t seed;
	double scale;
} Start;

static MrcStatus
start_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Start *start = arg;
	int rank = start->als->params.rank;
	uint64_t base = mix(start->seed);

	(void) worker;
	for (int64_t i = lo * rank; i < hi * rank; i++)
	{
		double radius = sqrt(-2 * log(uniform(base + 2 * (uint64_t) i)));

		start->als->item[i] =
			(float) (start->scale * radius *
					 cos(2 * 3.14159265358979323846 * uniform(base + 2 * (uint64_t) i + 1)));
	}
	return MRC_OK;
}

MrcStatus
mrc_als_start(MrcAls *als, uint64_t seed, double scale)
{
	int rank = als->params.rank;
	Start start = {als, seed, scale / sqrt(rank)};

	return mrc_pool_run(als->pool, als->by_user.n_cols, (START_FLOATS + rank - 1) / rank, start_task, &start);
}

float
mrc_dot(const float *a, const float *b, int n)
{
	float product;

	kernels().dots(a, b, 1, n, &product);
	return product;
}

void
mrc_dots(const float *x, const float *y, int64_t n, int rank, float *out)
{
	kernels().dots(x, y, n, rank, out);
}

void
mrc_gemm_nt(const MrcBlas *blas, int m, int n, int k, const float *a, const float *b, float *c)
{
	if (blas && blas->sgemm)
		blas->sgemm(CBLAS_ROW_MAJOR, CBLAS_NO_TRANS, CBLAS_TRANS, m, n, k, 1, a, k, b, k, 0, c, n);
	else
		for (int i = 0; i < m; i++)
			mrc_dots(a + (int64_t) i * k, b, n, k, c + (int64_t) i * n);
}
