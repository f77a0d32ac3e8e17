/*
 * als_core.c: how fast the solver of extension/core is, beside the machine's sgemm in the same run.
 *
 *     make -C tests/bench -f als_core.mk && tests/bench/bin/als_core SHAPE RANK THREADS [ROUNDS [OPTION …]]
 *
 * SHAPE: movielens (138,493 x 26,744, 20 M pairs), journey (2,469 x 68,260, 863,378 pairs), or small (for a quick look).
 * OPTION: explicit, nonnegative.
 * An iteration of ALS and a round of sgemm (a thread per core, each multiplying its own 1536 x 1536 matrices) take
 * turns ROUNDS times; the best of each is printed.  Seconds are CPU seconds of the process divided by the threads, so
 * that other programs on the machine do not count; wall-clock seconds are beside them.  The flops are those of the
 * primal exact algorithm, 2 nnz k (k + 1) + (users + items) k^3 / 3 an iteration, whatever was really computed.
 */
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "core.h"

#define GEMM_N 1536

typedef struct Shape
{
	const char *name;
	int64_t n_users;
	int64_t n_items;
	int64_t n_pairs;
	double shortest; /* ratings of a user: shortest + a log-normal part */
	double sigma;
	double zipf_shift; /* weight of item i: 1 / (i + shift)^exponent */
	double zipf_exponent;
} Shape;

static const Shape shapes[] = {
	{"movielens", 138493, 26744, 20000000, 20, 1.35, 50, 1},
	{"steep", 138493, 26744, 20000000, 20, 1.35, 224,
	 2}, /* half of the items below 25 ratings, as MovieLens' own */
	{"journey", 2469, 68260, 863378, 5, 0.8, 10000, 3.1}, /* half of the items below 3 ratings */
	{"small", 6000, 3000, 600000, 20, 1.35, 50, 1},
};

static uint64_t random_state = 88172645463325252u;

static double
uniform(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (double) (random_state >> 11) * 0x1p-53;
}

static double
clock_of(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

static void *
allocate(size_t n_bytes)
{
	void *memory = aligned_alloc(2 << 20, (n_bytes + (2 << 20)) >> 21 << 21);
	madvise(memory, (n_bytes + (2 << 20)) >> 21 << 21, MADV_HUGEPAGE);

	if (memory == NULL)
		exit(2);
	return memory;
}

static int
compare(const void *a, const void *b)
{
	return *(const int32_t *) a < *(const int32_t *) b ? -1 : 1;
}

/* Distinct items per user drawn by their weight; values are 0.5 … 5 by halves, as MovieLens'. */
static MrcCsr
synthesize(const Shape *shape)
{
	MrcCsr csr = {shape->n_users, shape->n_items, NULL, NULL, NULL};
	double *until = allocate((size_t) shape->n_items * sizeof(double));
	double *length = allocate((size_t) shape->n_users * sizeof(double));
	int64_t *taken_by = calloc((size_t) shape->n_items, sizeof(int64_t));
	int32_t *item_of = allocate((size_t) shape->n_items * sizeof(int32_t));
	double sum = 0;
	double total = 0;

	csr.start = allocate((size_t) (shape->n_users + 1) * sizeof(int64_t));
	for (int64_t i = 0; i < shape->n_items; i++)
	{
		until[i] = total += pow((double) i + shape->zipf_shift, -shape->zipf_exponent);
		item_of[i] = (int32_t) i;
	}
	for (int64_t i = shape->n_items - 1; i > 0; i--) /* the popular ones are anywhere */
	{
		int64_t j = (int64_t) (uniform() * (double) (i + 1));
		int32_t kept = item_of[i];

		item_of[i] = item_of[j];
		item_of[j] = kept;
	}
	for (int64_t u = 0; u < shape->n_users; u++)
		sum += length[u] = exp(shape->sigma * sqrt(-2 * log(1 - uniform())) * cos(6.283185307 * uniform()));
	csr.start[0] = 0;
	for (int64_t u = 0; u < shape->n_users; u++)
	{
		double extra = (double) shape->n_pairs - shape->shortest * (double) shape->n_users;
		int64_t n = (int64_t) (shape->shortest + length[u] / sum * extra + 0.5);

		csr.start[u + 1] = csr.start[u] + (n < shape->n_items / 4 ? n : shape->n_items / 4);
	}
	csr.index = allocate((size_t) csr.start[shape->n_users] * sizeof(int32_t));
	csr.value = allocate((size_t) csr.start[shape->n_users] * sizeof(float));
	for (int64_t u = 0; u < shape->n_users; u++)
	{
		for (int64_t e = csr.start[u]; e < csr.start[u + 1];)
		{
			double want = uniform() * total;
			int64_t lo = 0;
			int64_t hi = shape->n_items - 1;

			while (lo < hi)
			{
				int64_t middle = (lo + hi) / 2;

				if (until[middle] < want)
					lo = middle + 1;
				else
					hi = middle;
			}
			if (taken_by[lo] == u + 1)
				continue;
			taken_by[lo] = u + 1;
			csr.value[e] = (float) (int) (1 + uniform() * 10) / 2;
			csr.index[e++] = item_of[lo];
		}
		qsort(csr.index + csr.start[u], (size_t) (csr.start[u + 1] - csr.start[u]), sizeof(int32_t), compare);
	}
	free(until);
	free(length);
	free(taken_by);
	free(item_of);
	return csr;
}

static MrcCsr
transpose(const MrcCsr *csr)
{
	int64_t n = csr->start[csr->n_rows];
	MrcCsr t = {csr->n_cols, csr->n_rows, calloc((size_t) csr->n_cols + 2, sizeof(int64_t)),
				allocate((size_t) n * sizeof(int32_t)), allocate((size_t) n * sizeof(float))};

	for (int64_t e = 0; e < n; e++)
		t.start[csr->index[e] + 2]++;
	for (int64_t i = 0; i < t.n_rows; i++)
		t.start[i + 2] += t.start[i + 1];
	for (int64_t row = 0; row < csr->n_rows; row++)
		for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			int64_t at = t.start[csr->index[e] + 1]++;

			t.index[at] = (int32_t) row;
			t.value[at] = csr->value[e];
		}
	return t;
}

/* ---- sgemm ---- */

typedef struct Blas
{
	MrcBlas als;
	void (*sgemm)(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float *a,
				  int lda, const float *b, int ldb, float beta, float *c, int ldc);
} Blas;

static Blas
load_blas(void)
{
	Blas blas = {{NULL}, NULL};
	const char *kernels = NULL;
	char *(*name)(void);
	void *library;

	setenv("OPENBLAS_NUM_THREADS", "1", 1);
	library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
	*(void **) &name = library ? dlsym(library, "openblas_get_corename") : NULL;
	if (name && getenv("OPENBLAS_CORETYPE") == NULL)
		kernels = mrc_blas_kernels(name());
	if (kernels)
	{
		setenv("OPENBLAS_CORETYPE", kernels, 1);
		dlclose(library);
		library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
	}
	if (library)
	{
		*(void **) &blas.sgemm = dlsym(library, "cblas_sgemm");
		*(void **) &blas.als.dsyevd = dlsym(library, "dsyevd_");
	}
	return blas;
}

typedef struct Gemm
{
	const Blas *blas;
	float *a[3];
	double cpu_seconds;
} Gemm;

/* The products are not used: two callers of an OpenBLAS that was built without threads may spoil each other's. */
static void *
gemm_main(void *arg)
{
	Gemm *gemm = arg;
	double begin = 0;

	for (int i = 0; i < 4; i++)
	{
		if (i == 1) /* the first one warms up */
			begin = clock_of(CLOCK_THREAD_CPUTIME_ID);
		gemm->blas->sgemm(101, 111, 112, GEMM_N, GEMM_N, GEMM_N, 1, gemm->a[0], GEMM_N, gemm->a[1], GEMM_N, 0,
						  gemm->a[2], GEMM_N);
	}
	gemm->cpu_seconds = (clock_of(CLOCK_THREAD_CPUTIME_ID) - begin) / 3;
	return NULL;
}

/* flop/s of all threads together */
static double
gemm_rate(Gemm *gemms, int n_threads)
{
	pthread_t threads[256];
	double rate = 0;

	for (int i = 0; i < n_threads; i++)
		if (pthread_create(&threads[i], NULL, gemm_main, &gemms[i]) != 0)
			exit(2);
	for (int i = 0; i < n_threads; i++)
	{
		pthread_join(threads[i], NULL);
		rate += 2.0 * GEMM_N * GEMM_N * GEMM_N / gemms[i].cpu_seconds;
	}
	return rate;
}

/* ---- main ---- */

static bool
never(void *arg)
{
	(void) arg;
	return false;
}

static double
best(double a, double b)
{
	return a == 0 || b < a ? b : a;
}

int
main(int argc, char **argv)
{
	const MrcHost host = {never, never, NULL};
	const Shape *shape = NULL;
	int rank = argc > 2 ? atoi(argv[2]) : 0;
	int n_threads = argc > 3 ? atoi(argv[3]) : 0;
	int n_rounds = argc > 4 ? atoi(argv[4]) : 5;
	MrcAls als = {.params = {rank, true, 1, 0.3, 0.01, 1, false}};
	Blas blas = load_blas();
	Gemm gemms[256];
	double cpu[3] = {0};
	double wall[3] = {0};
	double rate = 0;
	double flops;
	double nnz;

	for (size_t i = 0; argc > 1 && i < sizeof(shapes) / sizeof(shapes[0]); i++)
		if (strcmp(argv[1], shapes[i].name) == 0)
			shape = &shapes[i];
	if (shape == NULL || rank < 1 || n_threads < 1 || n_threads > 256 || blas.sgemm == NULL)
	{
		fprintf(
			stderr,
			"usage: als_core movielens|steep|journey|small RANK THREADS [ROUNDS [explicit] [nonnegative]]\n"
			"needs libopenblas.so.0\n");
		return 2;
	}
	for (int i = 5; i < argc; i++)
	{
		if (strcmp(argv[i], "explicit") == 0)
			als.params.implicit = false;
		if (strcmp(argv[i], "nonnegative") == 0)
			als.params.nonnegative = true;
	}
	als.by_user = synthesize(shape);
	als.by_item = transpose(&als.by_user);
	als.user = allocate((size_t) shape->n_users * rank * sizeof(float));
	als.item = allocate((size_t) shape->n_items * rank * sizeof(float));
	als.blas = &blas.als;
	als.scratch = allocate(mrc_als_scratch_bytes(&als.params, shape->n_users, shape->n_items, n_threads));
	if (mrc_pool_start(&als.pool, allocate(mrc_pool_bytes(n_threads)), n_threads, &host) != MRC_OK ||
		mrc_als_start(&als, 1, 1) != MRC_OK)
		return 2;
	for (int i = 0; i < n_threads; i++)
	{
		gemms[i].blas = &blas;
		for (int j = 0; j < 3; j++)
		{
			gemms[i].a[j] = allocate(GEMM_N * GEMM_N * sizeof(float));
			for (int e = 0; e < GEMM_N * GEMM_N; e++)
				gemms[i].a[j][e] = (float) uniform();
		}
	}
	nnz = (double) als.by_user.start[shape->n_users];
	flops = 2 * nnz * rank * (rank + 1) + (double) (shape->n_users + shape->n_items) * pow(rank, 3) / 3;

	for (int round = 0; round < n_rounds; round++)
	{
		double now_rate = gemm_rate(gemms, n_threads);

		rate = now_rate > rate ? now_rate : rate;
		for (int what = 0; what < 3; what++) /* whole iteration, users only, items only */
		{
			double cpu_begin = clock_of(CLOCK_PROCESS_CPUTIME_ID);
			double wall_begin = clock_of(CLOCK_MONOTONIC);
			MrcStatus status = what == 0 ? mrc_als_iterate(&als) : mrc_als_half_step(&als, what == 1);

			if (status != MRC_OK)
			{
				fprintf(stderr, "als_core: status %d at row %ld\n", (int) status, (long) als.bad_row);
				return 1;
			}
			cpu[what] = best(cpu[what], (clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_begin) / n_threads);
			wall[what] = best(wall[what], clock_of(CLOCK_MONOTONIC) - wall_begin);
		}
	}
	printf("%s %ld x %ld, %.0f pairs, rank %d, %d threads: %.3f s an iteration (wall %.3f; users %.3f, items "
		   "%.3f), "
		   "%.1f GFLOP/s = %.1f %% of sgemm's %.1f; loss %.8g\n",
		   shape->name, (long) shape->n_users, (long) shape->n_items, nnz, rank, n_threads, cpu[0], wall[0],
		   cpu[1], cpu[2], flops / cpu[0] / 1e9, 100 * flops / cpu[0] / rate, rate / 1e9, als.loss);
	return 0;
}
