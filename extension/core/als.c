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
 * The loss needs no pass over the pairs: at the minimum of a row its part of the objective follows from b and x.
 *
 * Work is cut into chunks of rows of about equal cost by the input alone; sums over rows are kept per chunk, those
 * of Gramians per slot, and added in order: so nothing depends on who did what when.
 */
#include "core.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define PANEL_FLOATS 6144	/* 24 kB, half a first-level cache */
#define GRAM_SLOTS 16		/* partial Gramians, added in order */
#define MAX_CHUNKS 4096		/* of a half-step */
#define CHUNK_MACS 8e6		/* multiplications of one, well under a millisecond */
#define AHEAD 256			/* ratings between the fetch of a factor into the cache and its use */
#define CANCELS 64			/* a difference of which less than this part is left is inexact */
#define START_FLOATS 65536	/* of a task of the random start, about 2 ms */
#define CBLAS_ROW_MAJOR 101 /* CBLAS' enumerations: there is no header at run time */
#define CBLAS_NO_TRANS 111
#define CBLAS_TRANS 112

/* Factors that will be needed: of each the cache line at `line` + index * stride is fetched, until `last`. */
typedef struct Ahead
{
	const int32_t *index;
	uintptr_t line;
	uintptr_t last;
	size_t stride;
} Ahead;

#if defined(__x86_64__)
#define KERNEL(name) name##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")))
#define LANES 16
#define COLS 4
#define ROWS(cols) ((cols) == 4 ? 4 : (cols) == 1 ? 16 : 8)
#include "kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef COLS
#undef ROWS
#define KERNEL(name) name##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define COLS 3
#define ROWS(cols) ((cols) == 1 ? 8 : 4)
#include "kernel.h"
#undef KERNEL
#undef TARGET
#undef LANES
#undef COLS
#undef ROWS
#define COLS 2 /* 16 registers */
#else
#define COLS 4
#endif
#define KERNEL(name) name##_plain
#define TARGET
#define LANES 4
#define ROWS(cols) 4
#include "kernel.h"

typedef struct Kernels
{
	void (*syrk)(float *a, const float *p, int ld, int n, const Ahead *ahead);
	void (*gather)(float *to, const float *from, int rank, int ld, float scale);
	void (*linear)(double *b, const float *p, const float *c, int ld, int n);
	void (*dots)(const float *x, const float *y, int64_t n, int rank, float *out);
	bool (*solve)(float *a, float *b, int ld, const float *least, float *w);
} Kernels;

/* The widest the processor has, up to so many lanes if not 0. */
static Kernels
kernels(int lanes)
{
#if defined(__x86_64__)
	if ((lanes == 0 || lanes == 16) && __builtin_cpu_supports("avx512f") &&
		__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
		__builtin_cpu_supports("avx512vl"))
		return (Kernels){syrk_avx512, gather_avx512, linear_avx512, dots_avx512, solve_avx512};
	if (lanes != 4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return (Kernels){syrk_avx2, gather_avx2, linear_avx2, dots_avx2, solve_avx2};
#else
	(void) lanes;
#endif
	return (Kernels){syrk_plain, gather_plain, linear_plain, dots_plain, solve_plain};
}

/* One thread's. */
typedef struct Desk
{
	float *panel;  /* panel_rows x ld */
	float *a;	   /* ld x ld, with room for doubles */
	float *linear; /* panel_rows: weights of the panel's rows in b */
	float *x;	   /* ld: b, then the solution */
	float *least;  /* ld: the smallest pivot that counts */
	float *w;	   /* ld x 16, of Kernels.solve */
	double *b;	   /* ld */
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
	float *slots;		/* GRAM_SLOTS x ld x ld */
	float *gram;		/* ld x ld, unobserved * G of the other side */
	double *chunk_loss; /* MAX_CHUNKS: of the chunk's rows: the objective (want_loss) or the penalty */
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
	return (size_t) (panel_rows_of(ld) + 15) / 16 * 16 + (size_t) panel_rows_of(ld) * ld +
		2 * (size_t) ld * ld + 20 * (size_t) ld;
}

size_t
mrc_als_scratch_bytes(const MrcAlsParams *params, int64_t n_users, int64_t n_items, int n_threads)
{
	size_t ld = (size_t) padded(params->rank);
	size_t floats = (GRAM_SLOTS + 1) * ld * ld + (size_t) n_threads * desk_floats((int) ld);
	size_t desks = ((size_t) n_threads * sizeof(Desk) + 63) / 64 * 64;

	(void) n_users;
	(void) n_items;
	return floats * sizeof(float) + MAX_CHUNKS * sizeof(double) + desks;
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
	half->kernels = kernels(als->lanes);
	half->csr = user_side ? &als->by_user : &als->by_item;
	half->own = user_side ? als->user : als->item;
	half->other = user_side ? als->item : als->user;
	half->n_other = half->csr->n_cols;
	half->rank = als->params.rank;
	half->ld = (int) ld;
	half->panel_rows = panel_rows_of(half->ld);
	half->slots = take(&at, GRAM_SLOTS * ld * ld * sizeof(float));
	half->gram = take(&at, ld * ld * sizeof(float));
	half->chunk_loss = (double *) (void *) take(&at, MAX_CHUNKS * sizeof(double));
	half->desks = (Desk *) (void *) take(&at, ((size_t) n_threads * sizeof(Desk) + 63) / 64 * 64);
	for (int i = 0; i < n_threads; i++)
	{
		Desk *desk = &half->desks[i];

		desk->panel = take(&at, (size_t) half->panel_rows * ld * sizeof(float));
		desk->linear = take(&at, ((size_t) half->panel_rows + 15) / 16 * 16 * sizeof(float));
		desk->a = take(&at, ld * ld * sizeof(double));
		desk->x = take(&at, ld * sizeof(float));
		desk->least = take(&at, ld * sizeof(float));
		desk->w = take(&at, ld * 16 * sizeof(float));
		desk->b = (double *) (void *) take(&at, ld * sizeof(double));
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
									 half->other + (row + t) * half->rank, half->rank, half->ld, 1);
			half->kernels.syrk(sum, desk->panel, half->ld, n, NULL);
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

/* A panel of n ratings from entry e on, and what they add to A and b. */
static void
add_panel(const Half *half, Desk *desk, int64_t e, int n)
{
	const MrcCsr *csr = half->csr;
	int rank = half->rank;
	int ld = half->ld;
	Ahead ahead = {csr->index + e + AHEAD, (uintptr_t) half->other,
				   (uintptr_t) half->other + (size_t) rank * sizeof(float) - 1,
				   (size_t) rank * sizeof(float)};

	for (int t = 0; t < n; t++)
	{
		const float *y = half->other + (int64_t) csr->index[e + t] * rank;
		float square;
		float linear;
		float root;

		weights(&half->als->params, csr->value[e + t], &square, &linear);
		root = sqrtf(square);
		half->kernels.gather(desk->panel + (size_t) t * ld, y, rank, ld, root);
		desk->linear[t] = root > 0 ? linear / root : 0;
		if (root == 0 && linear != 0)
			for (int i = 0; i < rank; i++)
				desk->b[i] += (double) linear * y[i];
	}
	half->kernels.linear(desk->b, desk->panel, desk->linear, ld, n);
	half->kernels.syrk(desk->a, desk->panel, ld, n, e + AHEAD + n <= csr->start[csr->n_rows] ? &ahead : NULL);
}

/* A and b of a row.  MRC_AGAIN when the pool wants a pause, MRC_NOTFINITE when A is out of range. */
static MrcStatus
build_system(const Half *half, Desk *desk, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	int64_t end = csr->start[row + 1];
	int64_t n_panels = (end - csr->start[row] + half->panel_rows - 1) / half->panel_rows;
	int ld = half->ld;

	memset(desk->b, 0, (size_t) ld * sizeof(double));
	if (half->als->params.implicit)
		memcpy(desk->a, half->gram, (size_t) ld * ld * sizeof(float));
	else
		memset(desk->a, 0, (size_t) ld * ld * sizeof(float));
	for (int64_t e = csr->start[row]; e < end; n_panels--)
	{
		int n = (int) ((end - e + n_panels - 1) / n_panels);

		if (mrc_pool_pausing(half->als->pool) && end - csr->start[row] > half->panel_rows)
			return MRC_AGAIN;
		add_panel(half, desk, e, n);
		e += n;
	}
	for (int i = 0; i < ld; i++)
	{
		float *diagonal = &desk->a[(size_t) i * ld + i];

		*diagonal = i < half->rank ? *diagonal + (float) penalty : 1;
		if (!(*diagonal <= FLT_MAX))
			return MRC_NOTFINITE;
		desk->least[i] = *diagonal * FLT_EPSILON;
		desk->x[i] = (float) desk->b[i];
	}
	return MRC_OK;
}

/* The row's part of the objective, from the objective itself: all pairs of the row, and its penalty. */
static double
row_loss_direct(const Half *half, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	const float *x = half->own + row * half->rank;
	double sum = 0;

	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
	{
		float predicted;
		double miss;

		half->kernels.dots(x, half->other + (int64_t) csr->index[e] * half->rank, 1, half->rank, &predicted);
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
	for (int i = 0; i < half->rank; i++)
	{
		sum += penalty * x[i] * x[i];
		for (int j = i; j < half->rank && params->implicit; j++)
			sum += (i == j ? 1.0 : 2.0) * x[i] * x[j] * half->gram[(size_t) i * half->ld + j];
	}
	return sum;
}

/*
 * The row's part of the objective, C - 2 x.b + x.(A x), where C is the objective of x = 0.  With A x = b that is
 * C - x.b.  Where little is left of the difference, it is too inexact and the objective is computed itself.
 */
static double
row_loss(const Half *half, const Desk *desk, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	double all = 0;
	double product = 0;

	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
	{
		double value = csr->value[e];

		all += !params->implicit ? value * value : value > 0 ? params->unobserved + params->alpha * value : 0;
	}
	for (int i = 0; i < half->rank; i++)
		product += half->own[row * half->rank + i] * desk->b[i];
	return all - product > all / CANCELS ? all - product : row_loss_direct(half, row, penalty);
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
	double *b = desk->b;

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
		desk->x[i] = (float) b[i];
	}
	return MRC_OK;
}

/* loss: the row's part of the objective if the half-step wants it, else its penalty. */
static MrcStatus
solve_row(Half *half, Desk *desk, int64_t row, double *loss)
{
	float *own = half->own + row * half->rank;
	int64_t n = n_counted(half, row);
	double square = 0;
	double penalty;
	bool exact = true;
	MrcStatus status;

	*loss = 0;
	if (n == 0)
	{
		memset(own, 0, (size_t) half->rank * sizeof(float));
		return MRC_OK;
	}
	penalty = penalty_of(half, n);
	status = build_system(half, desk, row, penalty);
	if (status != MRC_OK)
		return status;
	if (!half->kernels.solve(desk->a, desk->x, half->ld, desk->least, desk->w))
	{
		status = half->als->params.implicit ? MRC_NOTPD : solve_in_double(half, desk, row, penalty);
		exact = false;
	}
	if (status != MRC_OK)
		return status;
	for (int i = 0; i < half->rank; i++)
		square += (double) desk->x[i] * desk->x[i];
	if (!(square <= FLT_MAX))
		return MRC_NOTFINITE;
	memcpy(own, desk->x, (size_t) half->rank * sizeof(float));
	if (!half->want_loss)
		*loss = penalty * square;
	else
		*loss = exact ? row_loss(half, desk, row, penalty) : row_loss_direct(half, row, penalty);
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
			half->chunk_loss[chunk] = 0;
		desk->paused_chunk = -1;
		for (; row < end; row++)
		{
			double loss;
			MrcStatus status =
				mrc_pool_pausing(half->als->pool) ? MRC_AGAIN : solve_row(half, desk, row, &loss);

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
			half->chunk_loss[chunk] += loss;
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
sum_chunks(const Half *half)
{
	double sum = 0;

	for (int64_t chunk = 0; chunk < half->n_chunks; chunk++)
		sum += half->chunk_loss[chunk];
	return sum;
}

MrcStatus
mrc_als_iterate(MrcAls *als)
{
	Half half;
	MrcStatus status;
	double loss = 0;

	for (int side = 0; side < 2; side++)
	{
		half_begin(&half, als, side == 0);
		half.want_loss = side == 1;
		status = solve_side(&half);
		if (status != MRC_OK)
		{
			report_bad_row(als, &half, side == 0);
			return status;
		}
		loss += sum_chunks(&half);
	}
	als->loss = loss;
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

	kernels(0).dots(a, b, 1, n, &product);
	return product;
}

void
mrc_dots(const float *x, const float *y, int64_t n, int rank, float *out)
{
	kernels(0).dots(x, y, n, rank, out);
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
