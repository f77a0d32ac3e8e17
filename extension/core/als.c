/*
 * als.c: alternating least squares, exact.
 *
 * For a row with ratings r_j of the factors y_j the minimum of the objective (core.h) solves A x = b with
 *   implicit   A = u G + sum alpha r_j y_j y_j^T + p I,   b = sum (u + alpha r_j) y_j  (r_j > 0)
 *   explicit   A = sum y_j y_j^T + p I,                   b = sum r_j y_j
 * where G = Y^T Y is the Gramian of the whole other side, u the unobserved weight and p the row's penalty (Hu,
 * Koren, Volinsky 2008, eq. 4).  G is taken once per half-step.
 *
 * Long rows.  The y_j, scaled by the root of their weights, are gathered into a panel that fits the first-level
 * cache, and A gets the panel's symmetric update by the tiles of kernel.h; then Cholesky.
 *
 * Short rows, n < k.  Let Q diagonalise G, and z_j = Q^T y_j.  Then Q^T A Q = E + Z^T S^2 Z with E = u Lambda + p I
 * diagonal, whatever the row's p, and S the roots of the weights.  With P = S Z E^(-1/2), n x k, and g = S^-1 c, where
 * c are the weights of b, the system of n equations
 *   (I + P P^T) v = g   gives   x = Q E^(-1/2) P^T v                            (Woodbury)
 * Q and all z_j are computed once per half-step, if enough rows are short; explicit feedback needs no Q.
 *
 * Non-negative rows.  The minimum over x >= 0 solves A x - b = y, x >= 0, y >= 0, x_i y_i = 0: a row's coordinates are
 * divided in free ones (y_i = 0) and those at zero, and exchanged in blocks until all signs are right (block principal
 * pivoting: Portugal, Judice, Vicente 1994; Kim, Park 2011).
 *
 * The loss needs no pass over the pairs: at the minimum of a row its part of the objective follows from b and x.
 *
 * Work is cut into chunks of rows of about equal cost by the input alone; sums over rows are kept per chunk, those
 * of Gramians per slot, and added in order: so nothing depends on who did what when.
 */
#include "core.h"
#include "scratch.h"

#include <float.h>
#include <math.h>
#include <string.h>
#include <strings.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define PANEL_FLOATS 4096 /* 16 kB, a third of a first-level cache */
#define GRAM_SLOTS 16	  /* partial Gramians, added in order */
#define MAX_CHUNKS 4096	  /* of a half-step */
#define CHUNK_MACS 8e6	  /* multiplications of one, well under a millisecond */
#define DUAL_RANK 256	  /* up to this the eigenvectors of G take a few ms, and no cancel waits for them */
#define DUAL_SPREAD 1e-5  /* the least E by the greatest, of a system that is not too ill-conditioned for P */
#define DUAL_LEAST 1e-5	  /* the least pivot of I + P P^T, by its diagonal */
#define TINY_ROWS 8		  /* a system of so many equations is not worth blocks of 16 */
#define ROTATE_SHARE 4	  /* what a short row saves by them is k / 4 rotations, at least */
#define SIGN_STEPS 4	  /* of the pivoting, at most so many times the rank */
#define SIGN_LEAST 1e-5f  /* smaller, by the largest, than this a number has no sign */
#define AHEAD 128		  /* ratings between the fetch of a factor into the cache and its use */
#define CANCELS 64		  /* a difference of which less than this part is left is inexact */
#define ROTATE_ROWS 256	  /* of a task of the rotation */
#define START_FLOATS 65536 /* of a task of the random start, about 2 ms */

/*
 * Factors that will be needed, n of them.  The tiles of one syrk share the fetching: each fetches the cache line at
 * `line` of every (mask + 1)-th factor, so that few are on their way at any time.
 */
typedef struct Ahead
{
	const int32_t *index;
	uintptr_t line;
	size_t stride; /* bytes between factors */
	int n_lines;
	int mask;
	int phase; /* of those factors; beyond mask: all is done */
} Ahead;

/* For the next tile. */
static inline void
ahead_next(Ahead *ahead)
{
	if (ahead->n_lines == 0 || ++ahead->phase <= ahead->mask)
		return;
	ahead->line += 64;
	ahead->phase = --ahead->n_lines > 0 ? 0 : ahead->mask + 1;
}

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
	void (*syrk)(float *a, const float *from, const float *p, int ld, int n, const Ahead *ahead);
	void (*weigh)(const float *value, int n, bool implicit, float alpha, float unobserved, float *root,
				  float *linear);
	int64_t (*positive)(const float *value, int64_t n, double *sum);
	void (*gather)(float *panel, const float *basis, size_t stride, const int32_t *index, const float *root,
				   const float *linear, double *b, const float *scale, int n, int rank, int ld);
	void (*linear)(float *x, const float *p, const float *c, int ld, int n);
	double (*finish)(float *x, const float *scale, const float *y, const double *b, int ld);
	void (*dots)(const float *x, const float *y, int64_t n, int rank, float *out);
	bool (*solve)(float *a, float *b, int ld, const float *least, float *w);
	bool (*tiny)(const float *p, int ld, int n, const float *g, float least, float *v);
	void (*turn)(float *to, const float *from, int rows, int cols);
	void (*rotate)(float *out, int64_t stride, const float *y, const float *q, int64_t n, int rank, int ld);
	void (*scale)(float *scale, const float *diagonal, float penalty, int rank, int ld);
} Kernels;

#define KERNELS(suffix)                                                                            \
	((Kernels){syrk_##suffix, weigh_##suffix, positive_##suffix, gather_##suffix, linear_##suffix, \
			   finish_##suffix, dots_##suffix, solve_##suffix, tiny_##suffix, turn_##suffix,       \
			   rotate_##suffix, scale_##suffix})

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

/* One thread's. */
typedef struct Desk
{
	float *panel;  /* desk_rows x ld */
	float *turned; /* ld x desk_rows: P^T */
	float *root;   /* desk_rows: of the weights of the panel's rows in A */
	float *linear; /* desk_rows: their weights in b, by root */
	float *a;	   /* ld x ld, with room for doubles */
	float *kept;   /* ld x ld, ld: A and b while they are solved; nonnegative only */
	float *x;	   /* ld: b, then the solution */
	float *y;	   /* ld */
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
	const float *basis; /* what the rows are made of: other, or that rotated, Z */
	size_t stride;		/* floats between its rows: rank, or ld */
	bool rotated;
	bool want_loss;
	int64_t n_other;
	int rank;
	int ld;
	int panel_rows;
	int dual_rows;	 /* rows with up to so many ratings are solved by I + P P^T; 0: none */
	double row_cost; /* of a row without ratings, in ratings */
	int64_t n_chunks;
	int64_t slot_rows;
	float *slots;		/* GRAM_SLOTS x ld x ld */
	float *gram;		/* ld x ld, unobserved * G of the other side */
	float *diagonal;	/* ld: unobserved * Lambda, or zeros */
	float *q;			/* ld x ld: the eigenvectors are its columns */
	float *q_turned;	/* ld x ld */
	float *z;			/* n_other x ld */
	double *eigen;		/* workspace of eigenvectors() */
	double *penalties;	/* dual_rows: of rows with 1 … ratings that count */
	float *scales;		/* dual_rows x ld: their E^(-1/2) */
	double *chunk_loss; /* MAX_CHUNKS: of the chunk's rows: the objective (want_loss) or the penalty */
	Desk *desks;
	MrcTask task; /* of half_task() */
} Half;

static size_t
padded(size_t n)
{
	return (n + 15) / 16 * 16;
}

static int
panel_rows_of(int ld)
{
	return ld * 16 > PANEL_FLOATS ? 16 : PANEL_FLOATS / ld;
}

/* I + P P^T takes less time than A up to about this length of row. */
static int
dual_rows_of(const MrcAlsParams *params)
{
	return params->rank > DUAL_RANK || params->nonnegative ? 0 : params->rank * 3 / 4 / 16 * 16;
}

/* The dual system of implicit feedback needs the eigenvectors. */
static bool
may_rotate(const MrcAlsParams *params)
{
	return params->implicit && params->unobserved > 0 && dual_rows_of(params) > 0;
}

static size_t
desk_rows_of(const MrcAlsParams *params)
{
	size_t panel_rows = padded((size_t) panel_rows_of((int) padded((size_t) params->rank)));
	size_t dual_rows = (size_t) dual_rows_of(params);

	return panel_rows > dual_rows ? panel_rows : dual_rows;
}

static Desk
lay_out_desk(Layout *at, const MrcAlsParams *params)
{
	size_t ld = padded((size_t) params->rank);
	size_t desk_rows = desk_rows_of(params);
	Desk desk = {.bad_row = -1, .paused_chunk = -1};

	desk.panel = take_floats(at, desk_rows * ld);
	if (dual_rows_of(params) > 0)
		desk.turned = take_floats(at, desk_rows * ld);
	desk.root = take_floats(at, desk_rows);
	desk.linear = take_floats(at, desk_rows);
	desk.a = take(at, ld * ld * sizeof(double));
	if (params->nonnegative)
		desk.kept = take_floats(at, ld * ld + ld);
	desk.x = take_floats(at, ld);
	desk.y = take_floats(at, ld);
	desk.least = take_floats(at, ld);
	desk.w = take_floats(at, ld * 16);
	desk.b = take(at, ld * sizeof(double));
	return desk;
}

/* Lay out the scratch from base on, every piece at a multiple of 64 bytes; the number of bytes. */
static size_t
lay_out(Half *half, char *base, const MrcAlsParams *params, int64_t longest, int n_threads)
{
	Layout at = {base, 0};
	size_t ld = padded((size_t) params->rank);
	size_t dual_rows = (size_t) dual_rows_of(params);

	half->slots = take_floats(&at, GRAM_SLOTS * ld * ld);
	half->gram = take_floats(&at, ld * ld);
	half->diagonal = take_floats(&at, ld);
	if (may_rotate(params))
	{
		half->q = take_floats(&at, ld * ld);
		half->q_turned = take_floats(&at, ld * ld);
		half->z = take_floats(&at, (size_t) longest * ld);
		half->eigen = take(&at, (3 * ld * ld + 16 * ld + 16) * sizeof(double));
	}
	half->penalties = take(&at, dual_rows * sizeof(double));
	half->scales = take_floats(&at, dual_rows * ld);
	half->chunk_loss = take(&at, MAX_CHUNKS * sizeof(double));
	half->desks = take(&at, (size_t) n_threads * sizeof(Desk));
	for (int i = 0; i < n_threads; i++)
	{
		Desk desk = lay_out_desk(&at, params);

		if (base)
			half->desks[i] = desk;
	}
	return at.n_bytes;
}

size_t
mrc_als_scratch_bytes(const MrcAlsParams *params, int64_t n_users, int64_t n_items, int n_threads)
{
	Half half;

	return lay_out(&half, NULL, params, n_users > n_items ? n_users : n_items, n_threads);
}

static void
half_begin(Half *half, const MrcAls *als, bool user_side)
{
	int64_t n_users = als->by_user.n_rows;
	int64_t n_items = als->by_user.n_cols;

	memset(half, 0, sizeof(*half));
	half->als = als;
	half->kernels = kernels(als->lanes);
	half->csr = user_side ? &als->by_user : &als->by_item;
	half->own = user_side ? als->user : als->item;
	half->other = user_side ? als->item : als->user;
	half->n_other = half->csr->n_cols;
	half->rank = als->params.rank;
	half->ld = (int) padded((size_t) half->rank);
	half->panel_rows = panel_rows_of(half->ld);
	half->basis = half->other;
	half->stride = (size_t) half->rank;
	(void) lay_out(half, als->scratch, &als->params, n_users > n_items ? n_users : n_items,
				   mrc_pool_size(als->pool));
	memset(half->diagonal, 0, (size_t) half->ld * sizeof(float));
}

/* A half-step without a pool is a fold, which is over before a pause is due. */
static bool
pausing(const Half *half)
{
	return half->als->pool && mrc_pool_pausing(half->als->pool);
}

/*
 * Columns of factors that say nothing fall towards 0 by a constant factor in each iteration.  Their products soon are
 * smaller than float can hold exactly, which a processor handles a hundred times slower than other numbers.  So in here
 * they are 0.  What was is returned, for exact_again().
 */
static uint64_t
small_is_zero(void)
{
	uint64_t was = 0;
#if defined(__x86_64__)
	was = _mm_getcsr();
	_mm_setcsr((unsigned int) was | 0x8040); /* results and operands */
#elif defined(__aarch64__)
	__asm__ volatile("mrs %0, fpcr" : "=r"(was));
	__asm__ volatile("msr fpcr, %0" : : "r"(was | UINT64_C(1) << 24) : "memory");
#endif
	return was;
}

static void
exact_again(uint64_t was)
{
#if defined(__x86_64__)
	_mm_setcsr((unsigned int) was);
#elif defined(__aarch64__)
	__asm__ volatile("msr fpcr, %0" : : "r"(was) : "memory");
#else
	(void) was;
#endif
}

static MrcStatus
half_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Half *half = arg;
	uint64_t was = small_is_zero();
	MrcStatus status = half->task(half, worker, lo, hi);

	exact_again(was);
	return status;
}

/* As mrc_pool_run(). */
static MrcStatus
run_half(Half *half, int64_t n, int64_t chunk, MrcTask task)
{
	half->task = task;
	return mrc_pool_run(half->als->pool, n, chunk, half_task, half);
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

			if (pausing(half))
				return MRC_AGAIN;
			for (int t = 0; t < n; t++)
			{
				float *to = desk->panel + (size_t) t * half->ld;

				memcpy(to, half->other + (row + t) * half->rank, (size_t) half->rank * sizeof(float));
				memset(to + half->rank, 0, (size_t) (half->ld - half->rank) * sizeof(float));
			}
			half->kernels.syrk(sum, sum, desk->panel, half->ld, n, NULL);
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
	status = run_half(half, n_slots, 1, gram_task);
	for (size_t i = 0; i < size && status == MRC_OK; i++)
	{
		double sum = 0;

		for (int64_t slot = 0; slot < n_slots; slot++)
			sum += half->slots[(size_t) slot * size + i];
		gram[i] = (float) (weight * sum);
	}
	return status;
}

/* ---- the basis of the eigenvectors ---- */

/*
 * Eigenvalues of gram, clamped at 0, to diagonal, its eigenvectors to q_turned (rows) and q.  False if LAPACK is not
 * there or gives up.
 */
static bool
eigenvectors(Half *half)
{
	const MrcBlas *blas = half->als->blas;
	int n = half->rank;
	int n_work = 1 + 6 * n + 2 * n * n;
	int n_iwork = 3 + 5 * n;
	int info = -1;
	size_t ld = (size_t) half->ld;
	double *matrix = half->eigen;
	double *values = matrix + (size_t) n * (size_t) n;
	double *work = values + n;
	int *iwork = (int *) (work + n_work);
	double trace = 0;

	for (int i = 0; i < n; i++)
	{
		trace += half->gram[(size_t) i * ld + (size_t) i];
		for (int j = i; j < n; j++) /* the upper triangle of rows is the lower one of columns */
			matrix[(size_t) i * (size_t) n + (size_t) j] = half->gram[(size_t) i * ld + (size_t) j];
	}
	if (blas == NULL || blas->dsyevd == NULL || !(trace <= FLT_MAX))
		return false;
	blas->dsyevd("V", "L", &n, matrix, &n, values, work, &n_work, iwork, &n_iwork, &info);
	if (info != 0)
		return false;
	memset(half->q, 0, ld * ld * sizeof(float));
	memset(half->q_turned, 0, ld * ld * sizeof(float));
	for (int i = 0; i < n; i++)
	{
		half->diagonal[i] = values[i] > 0 ? (float) values[i] : 0;
		for (int j = 0; j < n; j++)
			half->q[(size_t) j * ld + (size_t) i] = half->q_turned[(size_t) i * ld + (size_t) j] =
				(float) matrix[(size_t) i * (size_t) n + (size_t) j];
	}
	return true;
}

static MrcStatus
rotate_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Half *half = arg;

	(void) worker;
	half->kernels.rotate(half->z + lo * half->ld, half->ld, half->other + lo * half->rank, half->q, hi - lo,
						 half->rank, half->ld);
	return MRC_OK;
}

/* Penalty of a row with n ratings that count. */
static double
penalty_of(const Half *half, int64_t n)
{
	const MrcAlsParams *params = &half->als->params;
	double base = (double) n + (params->implicit ? params->unobserved * (double) half->n_other : 0);

	return params->regularization * (params->exponent == 0 ? 1 : pow(base, params->exponent));
}

/* The penalty of rows with n ratings, up to dual_rows, and their E^(-1/2). */
static void
prepare_length(Half *half, int n)
{
	half->penalties[n - 1] = penalty_of(half, n);
	half->kernels.scale(half->scales + (size_t) (n - 1) * half->ld, half->diagonal,
						(float) half->penalties[n - 1], half->rank, half->ld);
}

/*
 * Decide how short rows are solved.  Where they are few beside what is to be rotated for them, or the least eigenvalue with its penalty is nothing beside the
 * greatest, all are solved like long rows, whose pivots show a singular system.
 */
static MrcStatus
choose_basis(Half *half)
{
	const MrcAlsParams *params = &half->als->params;
	const MrcCsr *csr = half->csr;
	int dual_rows = dual_rows_of(params);
	double penalty = fmin(penalty_of(half, 1), penalty_of(half, half->n_other));
	int64_t n_short = 0;
	MrcStatus status;

	for (int64_t row = 0; row < csr->n_rows && dual_rows > 0; row++)
		n_short += csr->start[row + 1] - csr->start[row] <= dual_rows;
	if (n_short == 0)
		return MRC_OK;
	if (params->implicit && params->unobserved > 0)
	{
		if (n_short * params->rank <= half->n_other * ROTATE_SHARE)
			return MRC_OK;
		if (!eigenvectors(half) ||
			!(half->diagonal[0] + penalty > DUAL_SPREAD * half->diagonal[half->rank - 1]))
		{
			memset(half->diagonal, 0, (size_t) half->ld * sizeof(float));
			return MRC_OK;
		}
		status = run_half(half, half->n_other, ROTATE_ROWS, rotate_task);
		if (status != MRC_OK)
			return status;
		half->rotated = true;
		half->basis = half->z;
		half->stride = (size_t) half->ld;
	}
	for (int n = 1; n <= dual_rows; n++)
		prepare_length(half, n);
	half->dual_rows = dual_rows;
	return MRC_OK;
}

/* ---- rows ---- */

/* Ratings of the row that count: all, but under implicit feedback only those above zero, whose values are summed. */
static int64_t
n_counted(const Half *half, int64_t row, double *sum)
{
	const MrcCsr *csr = half->csr;
	int64_t n = csr->start[row + 1] - csr->start[row];

	return half->als->params.implicit ? half->kernels.positive(csr->value + csr->start[row], n, sum) : n;
}

/* Weights of n ratings from entry e on, the panel of their factors (by scale, unless NULL), and what that adds to b. */
static void
gather(const Half *half, Desk *desk, int64_t e, int n, const float *scale)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;

	half->kernels.weigh(csr->value + e, n, params->implicit, (float) params->alpha,
						(float) params->unobserved, desk->root, desk->linear);
	half->kernels.gather(desk->panel, half->basis, half->stride, csr->index + e, desk->root, desk->linear,
						 desk->b, scale, n, half->rank, half->ld);
}

/* A and b of a row.  MRC_AGAIN when the pool wants a pause, MRC_NOTFINITE when A is out of range. */
static MrcStatus
build_system(const Half *half, Desk *desk, int64_t row, double penalty)
{
	const MrcCsr *csr = half->csr;
	int64_t end = csr->start[row + 1];
	int64_t n_panels = (end - csr->start[row] + half->panel_rows - 1) / half->panel_rows;
	int ld = half->ld;
	const float *from = half->als->params.implicit && !half->rotated ? half->gram : NULL;

	memset(desk->b, 0, (size_t) ld * sizeof(double));
	for (int64_t e = csr->start[row]; e < end; n_panels--)
	{
		int n = (int) ((end - e + n_panels - 1) / n_panels);
		Ahead ahead = {csr->index + e + AHEAD, (uintptr_t) half->basis, half->stride * sizeof(float),
					   (half->rank + 15) / 16, half->ld >= 64,			0};

		if (pausing(half) && end - csr->start[row] > half->panel_rows)
			return MRC_AGAIN;
		gather(half, desk, e, n, NULL);
		half->kernels.syrk(desk->a, from, desk->panel, ld, n,
						   e + AHEAD + n <= csr->start[csr->n_rows] ? &ahead : NULL);
		from = desk->a;
		e += n;
	}
	for (int i = 0; i < ld; i++)
	{
		float *diagonal = &desk->a[(size_t) i * ld + i];

		*diagonal = i < half->rank ? *diagonal + half->diagonal[i] + (float) penalty : 1;
		if (!(*diagonal <= FLT_MAX))
			return MRC_NOTFINITE;
		desk->least[i] = *diagonal * FLT_EPSILON;
		desk->x[i] = (float) desk->b[i];
	}
	return MRC_OK;
}

/* x = q x, from the basis of the eigenvectors to that of the factors. */
static void
rotate_back(const Half *half, Desk *desk)
{
	if (!half->rotated)
		return;
	half->kernels.linear(desk->y, half->q_turned, desk->x, half->ld, half->rank);
	memcpy(desk->x, desk->y, (size_t) half->ld * sizeof(float));
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

/* The objective of x = 0 of a row; n ratings count, and the sum of their values under implicit feedback. */
static double
row_loss_of_zero(const Half *half, int64_t row, int64_t n, double value_sum)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	double sum = 0;

	if (params->implicit)
		return params->unobserved * (double) n + params->alpha * value_sum;
	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		sum += (double) csr->value[e] * csr->value[e];
	return sum;
}

/*
 * The row's part of the objective, C - 2 x.b + x.(A x), where C (all) is that of x = 0.  With A x = b it is C - product,
 * which is x.b.  Where little is left of the difference, it is too inexact and the objective is computed itself.
 */
static double
row_loss(const Half *half, int64_t row, double penalty, double all, double product)
{
	return all - product > all / CANCELS ? all - product : row_loss_direct(half, row, penalty);
}

/* What the rating of entry e weighs in b. */
static double
weight_of(const Half *half, int64_t e)
{
	const MrcAlsParams *params = &half->als->params;
	double value = half->csr->value[e];

	if (!params->implicit)
		return value;
	return value > 0 ? params->unobserved + params->alpha * value : 0;
}

/*
 * A and b of a row in doubles: A in desk->a, upper triangle, and desk->b.  fixed, unless NULL: coordinates that stay 0.
 * Plain loops; few data need this.
 */
static MrcStatus
build_in_double(const Half *half, Desk *desk, int64_t row, double penalty, const bool *fixed)
{
	const MrcCsr *csr = half->csr;
	const MrcAlsParams *params = &half->als->params;
	int rank = half->rank;
	size_t ld = (size_t) half->ld;
	double *a = (double *) (void *) desk->a;
	double *b = desk->b;

	for (size_t i = 0; i < ld * ld; i++)
		a[i] = params->implicit ? half->gram[i] : 0;
	memset(b, 0, ld * sizeof(double));
	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
	{
		const float *y = half->other + (int64_t) csr->index[e] * rank;
		double weight = weight_of(half, e);
		double square = params->implicit ? (weight > 0 ? params->alpha * csr->value[e] : 0) : 1;

		if (e % 16 == 0 && pausing(half))
			return MRC_AGAIN;
		for (int i = 0; i < rank; i++)
		{
			double left = square * y[i];

			b[i] += weight * y[i];
			for (int j = i; j < rank; j++)
				a[i * ld + j] += left * y[j];
		}
	}
	for (int i = 0; i < rank; i++)
	{
		a[i * ld + i] += penalty;
		for (int j = i; j < rank && fixed; j++)
			if (fixed[i] || fixed[j])
				a[i * ld + j] = i == j ? 1 : 0;
		if (fixed && fixed[i])
			b[i] = 0;
		desk->least[i] = (float) (a[i * ld + i] * rank * DBL_EPSILON);
	}
	return MRC_OK;
}

/* Solve A x = b as build_in_double() left them; both are used up, and b becomes x. */
static MrcStatus
solve_doubles(const Half *half, Desk *desk)
{
	int rank = half->rank;
	size_t ld = (size_t) half->ld;
	double *a = (double *) (void *) desk->a;
	double *b = desk->b;

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
	}
	return MRC_OK;
}

/*
 * A row with explicit ratings that is singular at single precision, from the start in doubles: values of 1e5 make A that
 * much larger than the penalty that keeps it regular.
 */
static MrcStatus
solve_in_double(const Half *half, Desk *desk, int64_t row, double penalty, const bool *fixed)
{
	MrcStatus status = build_in_double(half, desk, row, penalty, fixed);

	if (status == MRC_OK)
		status = solve_doubles(half, desk);
	for (int i = 0; i < half->rank && status == MRC_OK; i++)
		desk->x[i] = (float) desk->b[i];
	return status;
}

/* Solve (I + P P^T) v = g by blocks, for the panel of n ratings; v to desk->x. */
static bool
solve_blocked(const Half *half, Desk *desk, int n)
{
	int ld = half->ld;
	int ldn = (int) padded((size_t) n);

	memset(desk->panel + (size_t) n * ld, 0, (size_t) (ldn - n) * ld * sizeof(float));
	half->kernels.turn(desk->turned, desk->panel, ldn, ld);
	half->kernels.syrk(desk->a, NULL, desk->turned, ldn, ld, NULL);
	for (int t = 0; t < ldn; t++)
	{
		float *diagonal = &desk->a[(size_t) t * ldn + t];

		*diagonal += 1;
		desk->least[t] = (float) DUAL_LEAST * *diagonal;
	}
	memcpy(desk->x, desk->linear, (size_t) n * sizeof(float));
	memset(desk->x + n, 0, (size_t) (ldn - n) * sizeof(float));
	return half->kernels.solve(desk->a, desk->x, ldn, desk->least, desk->w);
}

/*
 * Short rows, by I + P P^T.  scale: E^(-1/2).  product: x.b, as (P^T v).(P^T g).  False if the system is too
 * ill-conditioned for it.
 */
static bool
solve_dual(const Half *half, Desk *desk, int64_t row, const float *scale, double *product)
{
	const MrcCsr *csr = half->csr;
	int n = (int) (csr->start[row + 1] - csr->start[row]);
	int ld = half->ld;

	memset(desk->b, 0, (size_t) ld * sizeof(double));
	gather(half, desk, csr->start[row], n, scale);
	if (!(n <= TINY_ROWS ? half->kernels.tiny(desk->panel, ld, n, desk->linear, (float) DUAL_LEAST, desk->x)
						 : solve_blocked(half, desk, n)))
		return false;
	half->kernels.linear(desk->y, desk->panel, desk->x, ld, n);
	*product = half->kernels.finish(desk->x, scale, desk->y, desk->b, ld);
	return true;
}

/* Long rows, by A. */
static MrcStatus
solve_primal(const Half *half, Desk *desk, int64_t row, double penalty, double *product)
{
	MrcStatus status = build_system(half, desk, row, penalty);

	if (status != MRC_OK)
		return status;
	if (!half->kernels.solve(desk->a, desk->x, half->ld, desk->least, desk->w))
		return MRC_NOTPD;
	*product = 0;
	for (int i = 0; i < half->rank && half->want_loss; i++)
		*product += desk->x[i] * desk->b[i];
	return MRC_OK;
}

static float
product_of(const Half *half, const float *a, const float *b, int n)
{
	float product;

	half->kernels.dots(a, b, 1, n, &product);
	return product;
}

/* A and b with the fixed coordinates taken out, to be solved. */
static void
take_free(const Half *half, Desk *desk, const bool *fixed)
{
	size_t ld = (size_t) half->ld;
	const float *b = desk->kept + ld * ld;

	for (size_t i = 0; i < ld; i++)
	{
		const float *from = desk->kept + i * ld;
		float *to = desk->a + i * ld;

		for (size_t j = i; j < ld; j++)
			to[j] = fixed[i] || fixed[j] ? (float) (i == j) : from[j];
		for (size_t j = i / 16 * 16; j < i; j++)
			to[j] = 0;
		desk->x[i] = fixed[i] ? 0 : b[i];
		desk->least[i] = to[i] * FLT_EPSILON;
	}
}

/*
 * One step of the pivoting: the minimum over the free coordinates to x, and to y = A x - b what would change the fixed
 * ones; wrong: those with the wrong sign.
 */
static MrcStatus
solve_free(const Half *half, Desk *desk, int64_t row, double penalty, const bool *fixed, bool *wrong)
{
	int rank = half->rank;
	size_t ld = (size_t) half->ld;
	const float *b = desk->kept + ld * ld;
	float most_x = 0;
	float most_b = 0;

	take_free(half, desk, fixed);
	if (!half->kernels.solve(desk->a, desk->x, half->ld, desk->least, desk->w))
	{
		MrcStatus status =
			half->als->params.implicit ? MRC_NOTPD : solve_in_double(half, desk, row, penalty, fixed);

		if (status != MRC_OK)
			return status;
	}
	for (int i = 0; i < rank; i++)
	{
		desk->y[i] = -b[i];
		most_x = fmaxf(most_x, fabsf(desk->x[i]));
		most_b = fmaxf(most_b, fabsf(b[i]));
	}
	for (int i = 0; i < rank; i++)
	{
		const float *above = desk->kept + (size_t) i * ld;

		for (int j = i + 1; j < rank; j++)
			desk->y[j] += above[j] * desk->x[i];
		desk->y[i] += product_of(half, above + i, desk->x + i, rank - i);
	}
	for (int i = 0; i < rank; i++)
	{
		wrong[i] = fixed[i] ? desk->y[i] < -SIGN_LEAST * most_b : desk->x[i] < -SIGN_LEAST * most_x;
		if (!wrong[i])
			desk->x[i] = fmaxf(desk->x[i], 0);
	}
	return MRC_OK;
}

/*
 * The minimum over x >= 0.  All wrong coordinates change sides at once while their number falls, or for three more
 * steps; then only the last one does, which cannot go round in circles (Murty).
 */
static MrcStatus
solve_nonnegative(const Half *half, Desk *desk, int64_t row, double penalty, double *product)
{
	bool fixed[MRC_MAX_RANK] = {false};
	bool wrong[MRC_MAX_RANK];
	int rank = half->rank;
	size_t ld = (size_t) half->ld;
	const float *b = desk->kept + ld * ld;
	int fewest = rank + 1;
	int patience = 3;
	int n_wrong = rank;
	MrcStatus status = build_system(half, desk, row, penalty);

	memcpy(desk->kept, desk->a, ld * ld * sizeof(float));
	memcpy(desk->kept + ld * ld, desk->x, ld * sizeof(float));
	for (int step = 0; step < SIGN_STEPS * rank + 16 && n_wrong > 0 && status == MRC_OK; step++)
	{
		int last = 0;

		status = pausing(half) ? MRC_AGAIN : solve_free(half, desk, row, penalty, fixed, wrong);
		if (status != MRC_OK)
			break;
		n_wrong = 0;
		for (int i = 0; i < rank; i++)
			if (wrong[i])
			{
				n_wrong++;
				last = i;
			}
		patience = n_wrong < fewest ? 3 : patience - 1;
		fewest = n_wrong < fewest ? n_wrong : fewest;
		for (int i = 0; i < rank; i++)
			if (wrong[i] && (patience >= 0 || i == last))
				fixed[i] = !fixed[i];
	}
	*product = 0;
	for (int i = 0; i < rank; i++)
	{
		desk->x[i] = fmaxf(desk->x[i], 0);
		*product += (double) desk->x[i] * b[i];
	}
	if (n_wrong > 0)
		*product = DBL_MAX; /* rounding decided signs: not quite the minimum */
	return status;
}

/* loss: the row's part of the objective if the half-step wants it, else its penalty. */
static MrcStatus
solve_row(Half *half, Desk *desk, int64_t row, double *loss)
{
	float *own = half->own + row * half->rank;
	bool is_short = half->csr->start[row + 1] - half->csr->start[row] <= half->dual_rows;
	double value_sum = 0;
	int64_t n = n_counted(half, row, &value_sum);
	float square;
	double product = 0;
	double penalty;
	MrcStatus status = MRC_OK;

	*loss = 0;
	if (n == 0)
	{
		memset(own, 0, (size_t) half->rank * sizeof(float));
		return MRC_OK;
	}
	penalty = is_short ? half->penalties[n - 1] : penalty_of(half, n);
	if (half->als->params.nonnegative)
		status = solve_nonnegative(half, desk, row, penalty, &product);
	else if (!is_short || !(penalty > 0) ||
			 !solve_dual(half, desk, row, half->scales + (size_t) (n - 1) * half->ld, &product))
		status = solve_primal(half, desk, row, penalty, &product);
	if (status == MRC_OK)
		rotate_back(half, desk);
	else if (status == MRC_NOTPD && !half->als->params.implicit && !half->als->params.nonnegative)
	{
		status = solve_in_double(half, desk, row, penalty, NULL);
		product = DBL_MAX; /* nothing is known */
	}
	if (status != MRC_OK)
		return status;
	half->kernels.dots(desk->x, desk->x, 1, half->rank, &square);
	if (!(square <= FLT_MAX))
		return MRC_NOTFINITE;
	memcpy(own, desk->x, (size_t) half->rank * sizeof(float));
	*loss = half->want_loss ? row_loss(half, row, penalty, row_loss_of_zero(half, row, n, value_sum), product)
							: penalty * square;
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
			MrcStatus status = pausing(half) ? MRC_AGAIN : solve_row(half, desk, row, &loss);

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

	half->row_cost = k * 0.8 + 8;
	macs =
		((double) half->csr->start[half->csr->n_rows] + half->row_cost * (double) half->csr->n_rows) * k * k;
	half->n_chunks = macs / CHUNK_MACS < MAX_CHUNKS ? (int64_t) (macs / CHUNK_MACS) + 1 : MAX_CHUNKS;
	if (als->params.implicit)
		status = gramian(half, half->gram, als->params.unobserved);
	if (status == MRC_OK)
		status = choose_basis(half);
	if (status == MRC_OK)
		status = run_half(half, half->n_chunks, 1, rows_task);
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

/* ---- folds: one user from his own ratings ---- */

/* The memory of a fold, from base on; the number of bytes. */
static size_t
lay_out_fold(Half *half, Desk *desk, char *base, const MrcAlsParams *params)
{
	Layout at = {base, 0};
	size_t ld = padded((size_t) params->rank);
	size_t dual_rows = (size_t) dual_rows_of(params);

	half->diagonal = take_floats(&at, ld);
	half->penalties = take(&at, dual_rows * sizeof(double));
	half->scales = take_floats(&at, dual_rows * ld);
	*desk = lay_out_desk(&at, params);
	return at.n_bytes;
}

/* The slots and panels of a Gramian. */
static size_t
lay_out_gramian(Half *half, char *base, int rank, int n_threads)
{
	Layout at = {base, 0};
	size_t ld = padded((size_t) rank);

	half->slots = take_floats(&at, GRAM_SLOTS * ld * ld);
	half->desks = take(&at, (size_t) n_threads * sizeof(Desk));
	for (int i = 0; i < n_threads; i++)
	{
		float *panel = take_floats(&at, padded((size_t) panel_rows_of((int) ld)) * ld);

		if (base)
			half->desks[i].panel = panel;
	}
	return at.n_bytes;
}

size_t
mrc_fold_shared_bytes(int rank)
{
	return padded((size_t) rank) * padded((size_t) rank) * sizeof(float);
}

size_t
mrc_fold_prepare_scratch_bytes(int rank, int n_threads)
{
	Half half;

	return lay_out_gramian(&half, NULL, rank, n_threads);
}

static void
fold_begin(Half *half, const MrcAls *als, const MrcCsr *csr, const float *item, int64_t n_items)
{
	memset(half, 0, sizeof(*half));
	half->als = als;
	half->kernels = kernels(als->lanes);
	half->csr = csr;
	half->other = half->basis = item;
	half->n_other = n_items;
	half->rank = als->params.rank;
	half->ld = (int) padded((size_t) half->rank);
	half->stride = (size_t) half->rank;
	half->panel_rows = panel_rows_of(half->ld);
}

MrcStatus
mrc_fold_prepare(MrcPool *pool, const MrcAlsParams *params, const float *item, int64_t n_items, void *shared,
				 void *scratch)
{
	MrcAls als = {.params = *params, .pool = pool};
	Half half;

	memset(shared, 0, mrc_fold_shared_bytes(params->rank));
	if (!params->implicit)
		return MRC_OK;
	fold_begin(&half, &als, NULL, item, n_items);
	(void) lay_out_gramian(&half, scratch, params->rank, mrc_pool_size(pool));
	return gramian(&half, shared, params->unobserved);
}

size_t
mrc_fold_scratch_bytes(const MrcAlsParams *params)
{
	Half half;
	Desk desk;

	return lay_out_fold(&half, &desk, NULL, params);
}

/* The row of a fold, to user. */
static MrcStatus
fold_row(Half *half, Desk *desk, const MrcAls *als, const void *shared, float *user, void *scratch)
{
	const MrcAlsParams *params = &als->params;
	int64_t n = half->csr->start[1];
	double loss;
	uint64_t was = small_is_zero();
	MrcStatus status;

	(void) lay_out_fold(half, desk, scratch, params);
	memset(half->diagonal, 0, (size_t) half->ld * sizeof(float));
	half->gram = (float *) (uintptr_t) shared; /* it is only read */
	half->own = user;
	if (!params->implicit && n > 0 && n <= dual_rows_of(params))
	{
		half->dual_rows = dual_rows_of(params);
		prepare_length(half, (int) n);
	}
	status = solve_row(half, desk, 0, &loss);
	exact_again(was);
	return status;
}

MrcStatus
mrc_fold(const MrcAlsParams *params, const void *shared, const float *item, int64_t n_items,
		 const int32_t *index, const float *value, int64_t n, float *user, void *scratch)
{
	MrcAls als = {.params = *params};
	int64_t start[2] = {0, n};
	MrcCsr csr = {1, n_items, start, (int32_t *) (uintptr_t) index, (float *) (uintptr_t) value};
	Half half;
	Desk desk;

	fold_begin(&half, &als, &csr, item, n_items);
	return fold_row(&half, &desk, &als, shared, user, scratch);
}

/* With x = A^-1 sum w_j y_j, row `wanted` scores sum w_j (A^-1 y_wanted).y_j. */
MrcStatus
mrc_fold_explain(const MrcAlsParams *params, const void *shared, const float *item, int64_t n_items,
				 const int32_t *index, const float *value, int64_t n, int32_t wanted, float *contribution,
				 void *scratch)
{
	MrcAls als = {.params = *params};
	int64_t start[2] = {0, n};
	MrcCsr csr = {1, n_items, start, (int32_t *) (uintptr_t) index, (float *) (uintptr_t) value};
	int rank = params->rank;
	double unused;
	int64_t n_that_count;
	float user[MRC_MAX_RANK];
	bool fixed[MRC_MAX_RANK];
	Half half;
	Desk desk;
	MrcStatus status;

	fold_begin(&half, &als, &csr, item, n_items);
	status = fold_row(&half, &desk, &als, shared, user, scratch);
	n_that_count = n_counted(&half, 0, &unused);
	if (status != MRC_OK || n_that_count == 0)
	{
		memset(contribution, 0, (size_t) n * sizeof(float));
		return status;
	}
	for (int i = 0; i < rank; i++)
		fixed[i] = params->nonnegative && !(user[i] > 0);
	status = build_in_double(&half, &desk, 0, penalty_of(&half, n_that_count), fixed);
	for (int i = 0; i < rank; i++)
		desk.b[i] = fixed[i] ? 0 : item[(int64_t) wanted * rank + i];
	if (status == MRC_OK)
		status = solve_doubles(&half, &desk);
	for (int64_t e = 0; e < n && status == MRC_OK; e++)
	{
		double product = 0;

		for (int i = 0; i < rank; i++)
			product += desk.b[i] * item[(int64_t) index[e] * rank + i];
		contribution[e] = (float) (weight_of(&half, e) * product);
	}
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

		double normal = radius * cos(2 * 3.14159265358979323846 * uniform(base + 2 * (uint64_t) i + 1));

		start->als->item[i] =
			(float) (start->scale * (start->als->params.nonnegative ? fabs(normal) : normal));
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

MrcDots
mrc_dots_at(int lanes)
{
	return kernels(lanes).dots;
}

const char *
mrc_blas_kernels(const char *name)
{
#if defined(__x86_64__)
	if (strcasecmp(name, "Prescott") != 0)
		return NULL;
	if (mrc_lanes(0) == 16)
		return "SkylakeX";
	if (mrc_lanes(0) == 8)
		return "Haswell";
#else
	(void) name;
#endif
	return NULL;
}
