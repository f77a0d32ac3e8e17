/*
 * topk_core.c: how fast the searches of extension/core are, and what a reading of the factors costs beside them.
 *
 *     make -C tests/bench -f als_core.mk && tests/bench/bin/topk_core SHAPE RANK THREADS [K]
 *
 * SHAPE: one of als_core's, trained for three iterations; or gaussian (138,493 x 26,744) or million (1,000 x 1,000,000),
 * whose factors are random with equal norms, the worst for a search.  Prints, in CPU seconds:
 *     read     what reading the factors of all items once takes
 *     one      a search for one user, his own items skipped: median and 99th percentile over users
 *     many     users per second and thread, all of them, their own items skipped
 *     fold     one user with 150 ratings
 *     build    the index
 */
#include "synthetic.h"

#include <string.h>

typedef struct Bench
{
	MrcPool *pool;
	int n_threads;
	int64_t n_users;
	int64_t n_items;
	int rank;
	int64_t k;
	float *users;
	float *items;
	MrcCsr seen;
	MrcIndex index;
} Bench;

static bool
never(void *arg)
{
	(void) arg;
	return false;
}

static double
cpu(void)
{
	return clock_of(CLOCK_PROCESS_CPUTIME_ID);
}

static int
ascending(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
train(Bench *bench, const Shape *shape)
{
	MrcAls als = {.params = {bench->rank, true, 1, 0.3, 0.01, 1, false}, .pool = bench->pool};

	als.by_user = bench->seen = synthesize(shape);
	als.by_item = transpose(&als.by_user);
	als.user = bench->users;
	als.item = bench->items;
	als.scratch =
		allocate(mrc_als_scratch_bytes(&als.params, bench->n_users, bench->n_items, bench->n_threads));
	if (mrc_als_start(&als, 1, 1) != MRC_OK)
		exit(1);
	for (int i = 0; i < 3; i++)
		if (mrc_als_iterate(&als) != MRC_OK)
			exit(1);
}

static void
randomize(Bench *bench)
{
	for (int64_t i = 0; i < (bench->n_users + bench->n_items) * bench->rank; i++)
	{
		float value = (float) (sqrt(-2 * log(1 - uniform())) * cos(6.283185307 * uniform()));

		*(i < bench->n_users * bench->rank ? bench->users + i
										   : bench->items + i - bench->n_users * bench->rank) = value;
	}
	bench->seen.start = calloc((size_t) bench->n_users + 1, sizeof(int64_t));
	bench->seen.index = calloc(1, sizeof(int32_t));
	bench->seen.value = calloc(1, sizeof(float));
}

static MrcSearch
search_of(const Bench *bench, int64_t user, MrcTop *top)
{
	return (MrcSearch){.user = bench->users + user * bench->rank,
					   .k = bench->k,
					   .skip = bench->seen.index + bench->seen.start[user],
					   .n_skip = bench->seen.start[user + 1] - bench->seen.start[user],
					   .top = top};
}

/* Reading with four sums, so that memory is what it waits for. */
static double
time_reading(const Bench *bench)
{
	double fastest = 1e9;
	volatile float used;

	for (int round = 0; round < 5; round++)
	{
		typedef float Vec __attribute__((vector_size(64)));
		const Vec *at = (const Vec *) (const void *) bench->items;
		int64_t n = bench->n_items * bench->rank / 16 / 4;
		Vec sum[4] = {{0}};
		double start = cpu();

		for (int64_t i = 0; i < n; i++, at += 4)
			for (int j = 0; j < 4; j++)
				sum[j] += at[j];
		sum[0] += sum[1] + sum[2] + sum[3];
		used = sum[0][0];
		(void) used;
		fastest = fmin(fastest, cpu() - start);
	}
	return fastest;
}

static void
time_one(const Bench *bench, double read)
{
	enum
	{
		N = 500
	};
	double seconds[N];
	MrcTop *top = allocate((size_t) bench->k * sizeof(MrcTop));
	void *scratch = allocate(mrc_search_scratch_bytes(&bench->index, bench->k));

	for (int i = 0; i < N; i++)
	{
		MrcSearch search = search_of(bench, i * (bench->n_users / N), top);
		double start = cpu();

		mrc_search(&bench->index, &search, scratch);
		seconds[i] = cpu() - start;
	}
	qsort(seconds, N, sizeof(double), ascending);
	printf("read %.3f ms; one: median %.4f ms (%.2f of it), p99 %.4f ms\n", read * 1e3, seconds[N / 2] * 1e3,
		   seconds[N / 2] / read, seconds[N * 99 / 100] * 1e3);
}

static void
time_many(const Bench *bench)
{
	enum
	{
		BLOCK = 16384
	};
	MrcSearch *searches = allocate(BLOCK * sizeof(MrcSearch));
	MrcTop *tops = allocate((size_t) BLOCK * (size_t) bench->k * sizeof(MrcTop));
	void *scratch = allocate(mrc_search_many_scratch_bytes(&bench->index, bench->k, bench->n_threads));
	double begin = cpu();
	double wall = clock_of(CLOCK_MONOTONIC);
	double sum = 0;

	for (int64_t user = 0; user < bench->n_users; user += BLOCK)
	{
		int64_t n = bench->n_users - user < BLOCK ? bench->n_users - user : BLOCK;

		for (int64_t i = 0; i < n; i++)
			searches[i] = search_of(bench, user + i, tops + i * bench->k);
		if (mrc_search_many(bench->pool, &bench->index, searches, n, scratch) != MRC_OK)
			exit(1);
		for (int64_t i = 0; i < n; i++)
			sum += tops[i * bench->k].score;
	}
	printf("many: %.2f s CPU, %.2f s wall, %.0f users per CPU second (%g)\n", cpu() - begin,
		   clock_of(CLOCK_MONOTONIC) - wall, (double) bench->n_users / (cpu() - begin), sum);
}

static void
time_fold(const Bench *bench)
{
	enum
	{
		N = 200,
		N_RATINGS = 150
	};
	MrcAlsParams params = {bench->rank, true, 1, 0.3, 0.01, 1, false};
	void *shared = allocate(mrc_fold_shared_bytes(bench->rank));
	void *scratch = allocate(mrc_fold_scratch_bytes(&params));
	int32_t index[N_RATINGS];
	float value[N_RATINGS];
	float user[MRC_MAX_RANK];
	double seconds[N];

	if (mrc_fold_prepare(bench->pool, &params, bench->items, bench->n_items, shared,
						 allocate(mrc_fold_prepare_scratch_bytes(bench->rank, bench->n_threads))) != MRC_OK)
		exit(1);
	for (int round = 0; round < N; round++)
	{
		double start;

		for (int i = 0; i < N_RATINGS; i++)
		{
			index[i] = (int32_t) ((i + uniform()) * (double) bench->n_items / N_RATINGS);
			value[i] = 1;
		}
		start = cpu();
		if (mrc_fold(&params, shared, bench->items, bench->n_items, index, value, N_RATINGS, user, scratch) !=
			MRC_OK)
			exit(1);
		seconds[round] = cpu() - start;
	}
	qsort(seconds, N, sizeof(double), ascending);
	printf("fold: median %.1f us\n", seconds[N / 2] * 1e6);
}

int
main(int argc, char **argv)
{
	const MrcHost host = {never, never, NULL};
	Bench bench = {.rank = argc > 2 ? (int) strtol(argv[2], NULL, 10) : 0,
				   .n_threads = argc > 3 ? (int) strtol(argv[3], NULL, 10) : 0,
				   .k = argc > 4 ? (int) strtol(argv[4], NULL, 10) : 10};
	const Shape *shape = NULL;
	void *memory;
	void *scratch;
	double start;

	for (size_t i = 0; argc > 1 && i < sizeof(shapes) / sizeof(shapes[0]); i++)
		if (strcmp(argv[1], shapes[i].name) == 0)
			shape = &shapes[i];
	if (bench.rank < 1 || bench.n_threads < 1 ||
		(shape == NULL && strcmp(argv[1], "gaussian") != 0 && strcmp(argv[1], "million") != 0))
	{
		fprintf(stderr, "usage: topk_core movielens|steep|journey|small|gaussian|million RANK THREADS [K]\n");
		return 2;
	}
	bench.n_users = shape ? shape->n_users : argv[1][0] == 'g' ? 138493 : 1000;
	bench.n_items = shape ? shape->n_items : argv[1][0] == 'g' ? 26744 : 1000000;
	bench.users = allocate((size_t) bench.n_users * (size_t) bench.rank * sizeof(float));
	bench.items = allocate((size_t) bench.n_items * (size_t) bench.rank * sizeof(float));
	if (mrc_pool_start(&bench.pool, allocate(mrc_pool_bytes(bench.n_threads)), bench.n_threads, &host) !=
		MRC_OK)
		return 2;
	if (shape)
		train(&bench, shape);
	else
		randomize(&bench);
	memory = allocate(mrc_index_bytes(bench.n_items, bench.rank));
	scratch = allocate(mrc_index_scratch_bytes(bench.n_items));
	memset(memory, 0, mrc_index_bytes(bench.n_items, bench.rank));
	memset(scratch, 0, mrc_index_scratch_bytes(bench.n_items));
	start = cpu();
	if (mrc_index_build(bench.pool, bench.items, bench.n_items, bench.rank, memory, scratch) != MRC_OK)
		return 1;
	printf("build: %.1f ms\n", (cpu() - start) * 1e3);
	mrc_index_open(&bench.index, bench.items, bench.n_items, bench.rank, memory);
	time_one(&bench, time_reading(&bench));
	time_many(&bench);
	time_fold(&bench);
	return 0;
}
