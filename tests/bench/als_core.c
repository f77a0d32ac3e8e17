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

#include "synthetic.h"

#define GEMM_N 1536

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
	int rank = argc > 2 ? (int) strtol(argv[2], NULL, 10) : 0;
	int n_threads = argc > 3 ? (int) strtol(argv[3], NULL, 10) : 0;
	int n_rounds = argc > 4 ? (int) strtol(argv[4], NULL, 10) : 5;
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
