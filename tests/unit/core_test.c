/*
 * core_test.c: the computing core without a server.  ALS against float64 answers of an independent implementation
 * (tests/data/als_golden.py), top-k and rankings against the definition, blocks against every kind of damage.
 */
#include <dlfcn.h>
#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#include "core.h"

#include "als_golden.h"

#define SEED 7 /* of every random input here */

/* ---- helpers ---- */

static bool
never(void *arg)
{
	(void) arg;
	return false;
}

/* The machine's BLAS and LAPACK; without them the solver has no dual system for implicit feedback. */
static const MrcBlas *
the_blas(void)
{
	static MrcBlas blas;
	void *library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);

	if (library)
		*(void **) &blas.dsyevd = dlsym(library, "dsyevd_");
	return &blas;
}

static void *
aligned(size_t n_bytes)
{
	void *memory = aligned_alloc(64, (n_bytes + 64) / 64 * 64);

	assert_non_null(memory);
	memset(memory, 0xA5, n_bytes); /* whoever reads what he has not written will see */
	return memory;
}

static MrcPool *
pool_of(int n_threads)
{
	const MrcHost host = {never, never, NULL};
	MrcPool *pool = NULL;

	assert_int_equal(mrc_pool_start(&pool, malloc(mrc_pool_bytes(n_threads)), n_threads, &host), MRC_OK);
	assert_int_equal(mrc_pool_size(pool), n_threads);
	return pool;
}

static void
pool_free(MrcPool *pool)
{
	mrc_pool_stop(pool);
	free(pool);
}

static double
uniform(void)
{
	return rand() / (RAND_MAX + 1.0);
}

/* Dense rows x cols, zeros left out (every n-th row empty if skip_rows), to compressed rows; transposed if asked. */
static MrcCsr
csr_of(const float *dense, int n_rows, int n_cols, bool transpose)
{
	MrcCsr csr = {transpose ? n_cols : n_rows, transpose ? n_rows : n_cols, NULL, NULL, NULL};
	int64_t n = 0;

	csr.start = malloc((size_t) (csr.n_rows + 1) * sizeof(int64_t));
	csr.index = malloc((size_t) n_rows * n_cols * sizeof(int32_t) + 1);
	csr.value = malloc((size_t) n_rows * n_cols * sizeof(float) + 1);
	for (int row = 0; row < csr.n_rows; row++)
	{
		csr.start[row] = n;
		for (int col = 0; col < csr.n_cols; col++)
		{
			float value = transpose ? dense[col * n_cols + row] : dense[row * n_cols + col];

			if (value == 0)
				continue;
			csr.index[n] = col;
			csr.value[n++] = value;
		}
	}
	csr.start[csr.n_rows] = n;
	return csr;
}

static void
csr_free(MrcCsr *csr)
{
	free(csr->start);
	free(csr->index);
	free(csr->value);
}

static MrcAls
als_of(const float *dense, int n_users, int n_items, MrcAlsParams params, int n_threads)
{
	MrcAls als = {.params = params, .pool = pool_of(n_threads), .blas = the_blas()};

	als.by_user = csr_of(dense, n_users, n_items, false);
	als.by_item = csr_of(dense, n_users, n_items, true);
	als.user = malloc((size_t) n_users * params.rank * sizeof(float));
	als.item = malloc((size_t) n_items * params.rank * sizeof(float));
	als.scratch = aligned(mrc_als_scratch_bytes(&params, als.by_user.n_rows, als.by_user.n_cols, n_threads));
	return als;
}

static void
als_free(MrcAls *als)
{
	pool_free(als->pool);
	csr_free(&als->by_user);
	csr_free(&als->by_item);
	free(als->user);
	free(als->item);
	free(als->scratch);
}

/* Largest difference, relative to the largest element. */
static double
difference(const float *have, const double *want, int n)
{
	double most = 0;
	double size = 0;

	for (int i = 0; i < n; i++)
	{
		most = fmax(most, isfinite(have[i]) ? fabs(have[i] - want[i]) : INFINITY);
		size = fmax(size, fabs(want[i]));
	}
	return most / size;
}

/* ---- pool ---- */

typedef struct Job
{
	MrcPool *pool;
	_Atomic int *done; /* times each index was finished */
	_Atomic int n_again;
	int fail_at;
	bool slow;
	int n_pauses;
	int64_t last_us;
} Job;

static int64_t
time_us(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

static int64_t
clock_us(void)
{
	return time_us(CLOCK_MONOTONIC);
}

/* What all threads have worked: the same on a machine that is busy with other things. */
static int64_t
work_us(void)
{
	return time_us(CLOCK_PROCESS_CPUTIME_ID);
}

static void
nap_us(long us)
{
	nanosleep(&(struct timespec){0, us * 1000}, NULL);
}

static MrcStatus
count_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Job *job = arg;

	assert_in_range(worker, 0, 7);
	if (job->slow)
		for (int i = 0; i < 20; i++)
		{
			nap_us(500);
			if (mrc_pool_pausing(job->pool))
			{
				atomic_fetch_add(&job->n_again, 1);
				return MRC_AGAIN;
			}
		}
	for (; lo < hi; lo++)
	{
		if (lo == job->fail_at)
			return MRC_NOTPD;
		atomic_fetch_add(&job->done[lo], 1);
	}
	return MRC_OK;
}

static void
test_pool_runs_each_index_once(void **state)
{
	(void) state;
	for (int n_threads = 1; n_threads <= 8; n_threads *= 2)
	{
		MrcPool *pool = pool_of(n_threads);

		for (int n = 0; n < 2000; n = n * 3 + 1)
		{
			Job job = {.pool = pool, .done = calloc((size_t) n + 1, sizeof(*job.done)), .fail_at = -1};

			assert_int_equal(mrc_pool_run(pool, n, 7, count_task, &job), MRC_OK);
			for (int i = 0; i < n; i++)
				assert_int_equal(job.done[i], 1);
			free((void *) job.done);
		}
		pool_free(pool);
	}
}

static void
test_pool_reports_failure_and_goes_on(void **state)
{
	MrcPool *pool = pool_of(3);
	Job job = {.pool = pool, .done = calloc(1000, sizeof(*job.done)), .fail_at = 500};

	(void) state;
	assert_int_equal(mrc_pool_run(pool, 1000, 1, count_task, &job), MRC_NOTPD);
	job.fail_at = -1;
	memset((void *) job.done, 0, 1000 * sizeof(*job.done));
	assert_int_equal(mrc_pool_run(pool, 1000, 1, count_task, &job), MRC_OK);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(job.done[i], 1);
	free((void *) job.done);
	pool_free(pool);
}

/* An interrupt every time it is asked, five times. */
static bool
often(void *arg)
{
	return ((Job *) arg)->n_pauses < 5;
}

static bool
serve(void *arg)
{
	((Job *) arg)->n_pauses++;
	return true;
}

static void
test_pool_pauses_and_resumes(void **state)
{
	Job job = {.done = calloc(40, sizeof(*job.done)), .fail_at = -1, .slow = true};
	const MrcHost host = {often, serve, &job};
	MrcPool *pool = NULL;

	(void) state;
	assert_int_equal(mrc_pool_start(&pool, malloc(mrc_pool_bytes(4)), 4, &host), MRC_OK);
	job.pool = pool;
	assert_int_equal(mrc_pool_run(pool, 40, 1, count_task, &job), MRC_OK);
	assert_int_equal(job.n_pauses, 5);
	assert_true(job.n_again > 0);
	for (int i = 0; i < 40; i++)
		assert_int_equal(job.done[i], 1);
	free((void *) job.done);
	pool_free(pool);
}

static bool
refuse(void *arg)
{
	((Job *) arg)->n_pauses++;
	return false;
}

static bool
soon(void *arg)
{
	return clock_us() - ((Job *) arg)->last_us > 30000;
}

static void
test_pool_cancels_in_time(void **state)
{
	Job job = {.done = calloc(100000, sizeof(*job.done)), .fail_at = -1, .slow = true, .last_us = clock_us()};
	const MrcHost host = {soon, refuse, &job};
	MrcPool *pool = NULL;

	(void) state;
	assert_int_equal(mrc_pool_start(&pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
	job.pool = pool;
	assert_int_equal(mrc_pool_run(pool, 100000, 1, count_task, &job), MRC_CANCELLED);
	assert_in_range(clock_us() - job.last_us, 30000, 130000);
	/* A job that is over before anybody asks, too: many of them are as long as a long one. */
	job.slow = false;
	assert_int_equal(mrc_pool_run(pool, 1, 1, count_task, &job), MRC_CANCELLED);
	free((void *) job.done);
	pool_free(pool);
}

static jmp_buf out;

static bool
leap(void *arg)
{
	(void) arg;
	longjmp(out, 1);
}

static bool
always(void *arg)
{
	(void) arg;
	return true;
}

static void
test_pool_survives_longjmp(void **state)
{
	static Job job;
	static MrcPool *pool;
	const MrcHost host = {always, leap, NULL};

	(void) state;
	job = (Job){.done = calloc(1000, sizeof(*job.done)), .fail_at = -1, .slow = true};
	assert_int_equal(mrc_pool_start(&pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
	job.pool = pool;
	if (setjmp(out) == 0)
	{
		(void) mrc_pool_run(pool, 1000, 1, count_task, &job);
		fail_msg("the interrupt was not served");
	}
	pool_free(pool);
	free((void *) job.done);
}

/* ---- compressed rows ---- */

static MrcCsr
csr_room(int64_t n_rows, int64_t n_cols, int64_t n)
{
	return (MrcCsr){n_rows, n_cols, aligned((n_rows + 1) * sizeof(int64_t)), aligned(n * sizeof(int32_t)),
					aligned(n * sizeof(float))};
}

/* Each entry's value is its number in the triples, so it tells where it came from. */
static void
check_rows(const MrcCsr *csr, int64_t n, const int32_t *row_of, const int32_t *column_of, bool ascending)
{
	assert_int_equal(csr->start[0], 0);
	assert_int_equal(csr->start[csr->n_rows], n);
	for (int64_t row = 0; row < csr->n_rows; row++)
	{
		assert_true(csr->start[row] <= csr->start[row + 1]);
		for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			int64_t number = (int64_t) csr->value[e];

			assert_in_range(number, 0, n - 1);
			assert_int_equal(row_of[number], row);
			assert_int_equal(column_of[number], csr->index[e]);
			if (e == csr->start[row])
				continue;
			assert_true(!ascending || csr->index[e - 1] <= csr->index[e]);
			if (!ascending || csr->index[e - 1] == csr->index[e])
				assert_true(csr->value[e - 1] < csr->value[e]);
		}
	}
}

static void
turn(MrcPool *pool, const MrcCsr *csr, MrcCsr *turned)
{
	void *scratch =
		aligned(mrc_turn_scratch_bytes(csr->start[csr->n_rows], csr->n_cols, mrc_pool_size(pool)));

	assert_int_equal(mrc_csr_turn(pool, csr, turned, scratch), MRC_OK);
	free(scratch);
}

/* Triples of so many users and items, read in pieces, into rows of users, and of items. */
static void
gather_and_turn(MrcPool *pool, int64_t n, int n_users, int n_items)
{
	size_t n_bytes = n * sizeof(int32_t) + 1;
	int32_t *user = malloc(n_bytes);
	int32_t *item = malloc(n_bytes);
	float *value = malloc(n_bytes);
	int32_t *user_of = malloc(n_bytes);
	int32_t *item_of = malloc(n_bytes);
	int32_t *user_row = malloc((n_users + 1) * sizeof(int32_t));
	int32_t *item_row = malloc((n_items + 1) * sizeof(int32_t));
	MrcPiece pieces[] = {
		{user, 0, n / 5, user, item, value},
		{NULL, 0, 0, NULL, NULL, NULL},
		{user + n / 5, (n - n / 5) * sizeof(int32_t), n - n / 5, user + n / 5, item + n / 5, value + n / 5}};
	MrcTriples triples = {n, pieces, user_row, item_row};
	MrcCsr by_item = csr_room(n_items, n_users, n);
	MrcCsr by_user = csr_room(n_users, n_items, n);
	void *scratch = aligned(mrc_turn_scratch_bytes(n, n_users, mrc_pool_size(pool)));

	for (int i = 0; i < n_users; i++)
		user_row[i] = n_users - 1 - i;
	for (int i = 0; i < n_items; i++)
		item_row[i] = (i + 3) % n_items;
	for (int64_t e = 0; e < n; e++)
	{
		user[e] = (int32_t) (uniform() * uniform() * n_users);
		item[e] = (int32_t) (uniform() * n_items);
		user_of[e] = user_row[user[e]];
		item_of[e] = item_row[item[e]];
		value[e] = (float) e;
	}
	assert_int_equal(mrc_csr_gather(pool, &triples, &by_user, scratch), MRC_OK);
	free(scratch);
	check_rows(&by_user, n, user_of, item_of, false);
	assert_in_range(mrc_sort_scratch_bytes(&by_user, 1024), 0, 16 * (n > 32 * 1024 ? n : 32 * 1024));
	scratch = aligned(mrc_sort_scratch_bytes(&by_user, mrc_pool_size(pool)));
	assert_int_equal(mrc_csr_sort(pool, &by_user, scratch), MRC_OK);
	free(scratch);
	check_rows(&by_user, n, user_of, item_of, true);
	turn(pool, &by_user, &by_item);
	check_rows(&by_item, n, item_of, user_of, true);
	free(user);
	free(item);
	free(value);
	free(user_of);
	free(item_of);
	free(user_row);
	free(item_row);
	csr_free(&by_item);
	csr_free(&by_user);
}

static void
test_csr_from_triples(void **state)
{
	(void) state;
	srand(SEED);
	for (int n_threads = 1; n_threads <= 5; n_threads += 2)
	{
		MrcPool *pool = pool_of(n_threads);

		gather_and_turn(pool, 0, 0, 0);
		gather_and_turn(pool, 1, 1, 1);
		gather_and_turn(pool, 4, 1, 3);
		gather_and_turn(pool, 5000, 70, 9);
		gather_and_turn(pool, 400000, 700, 300);  /* often the same pair */
		gather_and_turn(pool, 400000, 3, 70000);  /* long rows */
		gather_and_turn(pool, 3000, 2, 700);	  /* longer than a thread's share */
		gather_and_turn(pool, 400000, 70000, 10); /* of users, fewer lanes than of items */
		pool_free(pool);
	}
}

/* A system with pages of 64 kB, as on ARM: it gives back all pages that the range touches. */
#define LARGE_PAGE 65536

static bool large_pages;
static int n_given_back;
extern long __real_sysconf(int name);
extern int __real_madvise(void *memory, size_t n_bytes, int advice);
extern long __wrap_sysconf(int name);
extern int __wrap_madvise(void *memory, size_t n_bytes, int advice);

long
__wrap_sysconf(int name)
{
	return large_pages && name == _SC_PAGESIZE ? LARGE_PAGE : __real_sysconf(name);
}

int
__wrap_madvise(void *memory, size_t n_bytes, int advice)
{
	if (!large_pages)
		return __real_madvise(memory, n_bytes, advice);
	if ((uintptr_t) memory % LARGE_PAGE != 0)
		return -1;
	memset(memory, 0, (n_bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE);
	n_given_back++;
	return 0;
}

/* Pieces side by side that are no multiple of a page: what is given back of one is nothing of the next. */
static void
test_csr_gives_back_its_own(void **state)
{
	enum
	{
		N = 20480, /* 3.75 large pages a piece */
		N_PIECES = 3,
		N_IDS = 8
	};
	char *memory = aligned_alloc(LARGE_PAGE, 12 * LARGE_PAGE);
	int32_t *id_of = malloc(N_PIECES * N * sizeof(int32_t));
	int32_t row[N_IDS] = {0, 1, 2, 3, 4, 5, 6, 7};
	MrcPiece pieces[N_PIECES];
	MrcTriples triples = {N_PIECES * N, pieces, row, row};
	MrcCsr by_user = csr_room(N_IDS, N_IDS, N_PIECES * N);
	MrcPool *pool = pool_of(2);
	void *scratch = aligned(mrc_turn_scratch_bytes(N_PIECES * N, N_IDS, 2));

	(void) state;
	for (int p = 0; p < N_PIECES; p++)
	{
		int32_t *user = (int32_t *) (memory + (size_t) p * N * 12);
		float *value = (float *) (user + 2 * N);

		pieces[p] = (MrcPiece){user, N * 12, N, user, user + N, value};
		for (int e = 0; e < N; e++)
		{
			user[e] = user[N + e] = id_of[p * N + e] = 1 + e % (N_IDS - 1);
			value[e] = (float) (p * N + e);
		}
	}
	large_pages = true;
	assert_int_equal(mrc_csr_gather(pool, &triples, &by_user, scratch), MRC_OK);
	large_pages = false;
	check_rows(&by_user, N_PIECES * N, id_of, id_of, false);
	assert_int_equal(n_given_back, N_PIECES);
	free(scratch);
	pool_free(pool);
	csr_free(&by_user);
	free(id_of);
	free(memory);
}

static bool
go_on(void *arg)
{
	++*(int *) arg;
	return true;
}

static void
test_csr_pauses(void **state)
{
	int n_pauses = 0;
	const MrcHost host = {always, go_on, &n_pauses};
	MrcPool *pool = NULL;

	(void) state;
	srand(SEED);
	assert_int_equal(mrc_pool_start(&pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
	for (int tries = 0; n_pauses < 5 && tries < 20; tries++)
		gather_and_turn(pool, 4000000, 30000, 20000);
	assert_in_range(n_pauses, 5, 100000);
	pool_free(pool);
}

/* ---- ALS ---- */

static void
check_golden(MrcAlsParams params, const double *first, const double *users, const double *items, double loss)
{
	for (int n_threads = 1; n_threads <= 4; n_threads += 3)
	{
		MrcAls als = als_of(golden_values, GOLDEN_USERS, GOLDEN_ITEMS, params, n_threads);

		memcpy(als.item, golden_start, sizeof(golden_start));
		assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
		assert_true(difference(als.user, first, GOLDEN_USERS * GOLDEN_RANK) < 1e-4);
		memcpy(als.item, golden_start, sizeof(golden_start));
		for (int i = 0; i < GOLDEN_ITERATIONS; i++)
			assert_int_equal(mrc_als_iterate(&als), MRC_OK);
		assert_true(difference(als.user, users, GOLDEN_USERS * GOLDEN_RANK) < 1e-3);
		assert_true(difference(als.item, items, GOLDEN_ITEMS * GOLDEN_RANK) < 1e-3);
		assert_true(fabs(als.loss - loss) < 1e-5 * loss);
		als_free(&als);
	}
}

static void
test_als_hkv(void **state)
{
	(void) state;
	check_golden((MrcAlsParams){GOLDEN_RANK, true, 2, 1, 0.5, 0, false}, golden_hkv_first_users,
				 golden_hkv_users, golden_hkv_items, golden_hkv_loss[0]);
}

static void
test_als_rendle(void **state)
{
	(void) state;
	check_golden((MrcAlsParams){GOLDEN_RANK, true, 1, 0.3, 0.02, 1, false}, golden_rendle_first_users,
				 golden_rendle_users, golden_rendle_items, golden_rendle_loss[0]);
}

static void
test_als_explicit(void **state)
{
	(void) state;
	check_golden((MrcAlsParams){GOLDEN_RANK, false, 1, 0, 0.1, 1, false}, golden_wr_first_users,
				 golden_wr_users, golden_wr_items, golden_wr_loss[0]);
}

/*
 * How far each user of a half-step is from the minimum: the gradient A x - b in float64, straight from the objective,
 * beside the sum of the sizes of its terms.  With a sign constraint: what of it would lower the objective.
 */
static double
distance(const MrcAls *als, const float *dense)
{
	int k = als->params.rank;
	int n_items = (int) als->by_user.n_cols;
	double most = 0;
	double *gradient = malloc((size_t) k * sizeof(double));
	double *size = malloc((size_t) k * sizeof(double));

	for (int u = 0; u < als->by_user.n_rows; u++)
	{
		const float *x = als->user + u * k;
		double base = als->params.implicit ? als->params.unobserved * n_items : 0;
		double penalty;
		int n = 0;

		for (int i = 0; i < n_items; i++)
			n += als->params.implicit ? dense[u * n_items + i] > 0 : dense[u * n_items + i] != 0;
		penalty = als->params.regularization * pow(n + base, als->params.exponent);
		for (int j = 0; j < k; j++)
		{
			gradient[j] = penalty * x[j];
			size[j] = fabs(gradient[j]);
		}
		for (int i = 0; i < n_items && n > 0; i++)
		{
			const float *y = als->item + i * k;
			double value = dense[u * n_items + i];
			double weight =
				als->params.implicit ? als->params.unobserved + als->params.alpha * value : value != 0;
			double target = als->params.implicit ? value > 0 : value;
			double predicted = 0;
			double magnitude = fabs(target);

			for (int j = 0; j < k; j++)
			{
				predicted += (double) x[j] * y[j];
				magnitude += fabs((double) x[j] * y[j]);
			}
			for (int j = 0; j < k; j++)
			{
				gradient[j] += weight * (predicted - target) * y[j];
				size[j] += fabs(weight * magnitude * y[j]);
			}
		}
		for (int j = 0; j < k; j++)
		{
			double wrong = fabs(gradient[j]);

			if (als->params.nonnegative && x[j] == 0)
				wrong = -gradient[j];
			if (als->params.nonnegative && x[j] < 0)
				wrong = INFINITY;
			if (!isfinite(x[j]) || (n == 0 && x[j] != 0))
				wrong = INFINITY;
			most = fmax(most, size[j] > 0 ? wrong / size[j] : wrong);
		}
	}
	free(gradient);
	free(size);
	return most;
}

/* Users with 0 … n_users / 2 ratings, and as many with lengths up to all items. */
static float *
dense_of_all_lengths(int n_users, int n_items)
{
	float *dense = calloc((size_t) n_users * n_items, sizeof(float));

	for (int u = 0; u < n_users; u++)
	{
		int n = u < n_users / 2 ? u : (2 * u - n_users + 2) * n_items / n_users;

		for (int i = 0; i < n && i < n_items; i++)
			dense[u * n_items + (i * 7 + u) % n_items] = (float) (1 + rand() % 4);
	}
	return dense;
}

static void
check_half_step(const float *dense, int n_users, int n_items, MrcAlsParams params, int lanes)
{
	MrcAls als = als_of(dense, n_users, n_items, params, 2);
	size_t n = (size_t) n_users * params.rank;
	double *dual = malloc(n * sizeof(double));

	als.lanes = lanes;
	for (int i = 0; i < n_items * params.rank; i++)
		als.item[i] = (float) (params.nonnegative ? uniform() * (uniform() < 0.7) : uniform() - 0.5);
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	if (!(distance(&als, dense) < 1e-5))
		fail_msg("rank %d, lanes %d: %g from the minimum", params.rank, lanes, distance(&als, dense));
	for (size_t i = 0; i < n; i++)
		dual[i] = als.user[i];
	als.blas = NULL; /* no eigenvectors: all rows by A */
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	if (!(difference(als.user, dual, (int) n) < 1e-4))
		fail_msg("rank %d, lanes %d: %g apart", params.rank, lanes, difference(als.user, dual, (int) n));
	free(dual);
	als_free(&als);
}

/* Ranks of every width of vector, tile, panel and block, rows of every length, by every set of instructions. */
static void
test_als_every_rank(void **state)
{
	enum
	{
		N = 80,
		M = 210
	};
	static const int lanes[] = {16, 8, 4};
	float *dense;

	(void) state;
	srand(SEED);
	dense = dense_of_all_lengths(N, M);
	for (int k = 1; k <= 130; k++)
		for (int l = 0; l < (k % 16 <= 1 || k % 16 == 15 ? 3 : 1); l++)
		{
			int n_lanes = lanes[(k + l) % 3];

			check_half_step(dense, N, M, (MrcAlsParams){k, true, 1.5, 1, 2, 0, false}, n_lanes);
			check_half_step(dense, N, M, (MrcAlsParams){k, false, 1, 0, 0.3, 1, false}, n_lanes);
			if (k % 3 == 0)
				check_half_step(dense, N, M, (MrcAlsParams){k, true, 1.5, 0.3, 0.02, 1, true}, n_lanes);
			if (k % 5 == 0)
				check_half_step(dense, N, M, (MrcAlsParams){k, false, 1, 0, 0.3, 1, true}, n_lanes);
		}
	check_half_step(dense, N, M, (MrcAlsParams){257, true, 1.5, 1, 2, 0, false}, 0);
	free(dense);
}

/* Weights and penalties over many orders of magnitude: solved, or refused as singular, never wrong. */
static void
test_als_extreme_parameters(void **state)
{
	enum
	{
		N = 70,
		M = 90,
		K = 64
	};
	float *dense;
	int n_solved = 0;

	(void) state;
	srand(SEED);
	dense = dense_of_all_lengths(N, M);
	for (int a = -6; a <= 6; a += 3)
		for (int r = -9; r <= 3; r += 3)
			for (int u = -6; u <= 3; u += 3)
				for (int small = 0; small < 2; small++)
				{
					MrcAlsParams params = {K, true, pow(10, a), pow(10, u), pow(10, r), small, false};
					MrcAls als = als_of(dense, N, M, params, 2);
					MrcStatus status;

					assert_int_equal(mrc_als_start(&als, SEED, small ? 1e-3 : 1), MRC_OK);
					status = mrc_als_half_step(&als, true);
					assert_true(status == MRC_OK || status == MRC_NOTPD);
					n_solved += status == MRC_OK;
					if (status == MRC_OK && !(distance(&als, dense) < 1e-4))
						fail_msg("alpha 1e%d, regularization 1e%d, unobserved 1e%d: %g", a, r, u,
								 distance(&als, dense));
					als_free(&als);
				}
	assert_true(n_solved > 150);
	free(dense);
}

/* ---- an independent ALS in float64: the weights in full, each row by elimination ---- */

static void
oracle_side(const float *dense, int n_rows, int n_cols, bool turned, MrcAlsParams params, double *own,
			const double *other)
{
	int k = params.rank;
	double *a = malloc((size_t) k * (k + 1) * sizeof(double));

	for (int row = 0; row < n_rows; row++)
	{
		int n = 0;
		double penalty;

		memset(a, 0, (size_t) k * (k + 1) * sizeof(double));
		for (int col = 0; col < n_cols; col++)
		{
			double value = turned ? dense[col * n_rows + row] : dense[row * n_cols + col];
			double weight = params.implicit ? params.unobserved + params.alpha * value : value != 0;
			double target = params.implicit ? value > 0 : value;

			n += value != 0;
			for (int i = 0; i < k; i++)
			{
				for (int j = 0; j < k; j++)
					a[i * (k + 1) + j] += weight * other[col * k + i] * other[col * k + j];
				a[i * (k + 1) + k] += weight * target * other[col * k + i];
			}
		}
		penalty = params.regularization *
			pow(n + (params.implicit ? params.unobserved * n_cols : 0), params.exponent);
		for (int i = 0; i < k; i++)
			a[i * (k + 1) + i] += penalty;
		for (int i = 0; i < k; i++)
			for (int r = 0; r < k; r++)
			{
				double factor = a[r * (k + 1) + i] / a[i * (k + 1) + i];

				for (int j = i; j <= k && r != i; j++)
					a[r * (k + 1) + j] -= factor * a[i * (k + 1) + j];
			}
		for (int i = 0; i < k; i++)
			own[row * k + i] = n ? a[i * (k + 1) + k] / a[i * (k + 1) + i] : 0;
	}
	free(a);
}

static double
oracle_loss(const float *dense, int n_users, int n_items, MrcAlsParams params, const double *user,
			const double *item)
{
	int k = params.rank;
	double u = params.implicit ? params.unobserved : 0;
	double loss = 0;

	for (int row = 0; row < n_users + n_items; row++)
	{
		bool is_user = row < n_users;
		int at = is_user ? row : row - n_users;
		int n = 0;
		double square = 0;

		for (int i = 0; i < (is_user ? n_items : n_users); i++)
			n += (is_user ? dense[at * n_items + i] : dense[i * n_items + at]) != 0;
		for (int j = 0; j < k; j++)
			square += (is_user ? user : item)[at * k + j] * (is_user ? user : item)[at * k + j];
		loss += square * params.regularization * pow(n + u * (is_user ? n_items : n_users), params.exponent);
	}
	for (int row = 0; row < n_users; row++)
		for (int col = 0; col < n_items; col++)
		{
			double value = dense[row * n_items + col];
			double predicted = 0;

			for (int j = 0; j < k; j++)
				predicted += user[row * k + j] * item[col * k + j];
			loss += params.implicit ? (u + params.alpha * value) * pow((value > 0) - predicted, 2)
				: value != 0		? pow(value - predicted, 2)
									: 0;
		}
	return loss;
}

/* The loss after 15 iterations, with most rows short; and where the fit is so good that the loss nearly cancels. */
static void
test_als_loss_after_15(void **state)
{
	enum
	{
		N = 110,
		M = 90,
		K = 48
	};
	static const MrcAlsParams all[] = {{K, true, 1, 1, 0.1, 0, false},
									   {K, true, 2, 0.3, 0.01, 1, false},
									   {K, false, 1, 0, 0.05, 1, false},
									   {K, false, 1, 0, 1e-4, 0, false},
									   {K, true, 40, 0.01, 1e-3, 0, false}};
	float *dense = calloc(N * M, sizeof(float));
	double *user = malloc(N * K * sizeof(double));
	double *item = malloc(M * K * sizeof(double));

	(void) state;
	srand(SEED);
	for (int i = 0; i < N * M; i++)
		dense[i] = uniform() < (i % M < 10 ? 0.8 : 0.12) ? (float) (1 + rand() % 5) : 0;
	for (size_t p = 0; p < sizeof(all) / sizeof(all[0]); p++)
	{
		MrcAls als = als_of(dense, N, M, all[p], 2);
		double want;

		assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
		for (int i = 0; i < M * K; i++)
			item[i] = als.item[i];
		for (int i = 0; i < 15; i++)
		{
			assert_int_equal(mrc_als_iterate(&als), MRC_OK);
			oracle_side(dense, N, M, false, all[p], user, item);
			oracle_side(dense, M, N, true, all[p], item, user);
		}
		want = oracle_loss(dense, N, M, all[p], user, item);
		if (!(fabs(als.loss - want) < 1e-3 * want))
			fail_msg("case %zu: loss %.9g after 15 iterations, float64 has %.9g", p, als.loss, want);
		/* what is said of the factors that came out is nearer */
		for (int i = 0; i < N * K; i++)
			user[i] = als.user[i];
		for (int i = 0; i < M * K; i++)
			item[i] = als.item[i];
		want = oracle_loss(dense, N, M, all[p], user, item);
		if (!(fabs(als.loss - want) < 1e-5 * want))
			fail_msg("case %zu: loss %.9g, the factors' is %.9g", p, als.loss, want);
		als_free(&als);
	}
	free(dense);
	free(user);
	free(item);
}

/* The start is the absolute value of the other one, all factors stay at least 0, and the loss falls. */
static void
test_als_nonnegative(void **state)
{
	MrcAlsParams params = {12, false, 1, 0, 0.1, 1, true};

	(void) state;
	for (int implicit = 0; implicit < 2; implicit++)
	{
		MrcAls als;
		double before = INFINITY;

		params.implicit = implicit;
		params.unobserved = implicit;
		als = als_of(golden_values, GOLDEN_USERS, GOLDEN_ITEMS, params, 2);
		assert_int_equal(mrc_als_start(&als, SEED, 2), MRC_OK);
		for (int i = 0; i < 12; i++)
		{
			assert_int_equal(mrc_als_iterate(&als), MRC_OK);
			assert_true(als.loss <= before * (1 + 1e-6));
			before = als.loss;
			for (int j = 0; j < GOLDEN_USERS * 12; j++)
				assert_true(als.user[j] >= 0);
			for (int j = 0; j < GOLDEN_ITEMS * 12; j++)
				assert_true(als.item[j] >= 0);
		}
		als_free(&als);
	}
}

/* The same bits with 1, 2, 3 and 5 threads, at a size that makes many chunks and panels. */
static void
test_als_threads_agree(void **state)
{
	enum
	{
		N = 900,
		M = 700,
		K = 48
	};
	static const MrcAlsParams all[] = {
		{K, true, 1, 1, 0.1, 0, false}, {K, false, 1, 0, 0.1, 1, false}, {K, true, 1, 1, 0.1, 0, true}};
	float *dense = calloc(N * M, sizeof(float));
	float *users = malloc(N * K * sizeof(float));
	float *items = malloc(M * K * sizeof(float));
	double loss = 0;

	(void) state;
	srand(SEED);
	for (int i = 0; i < N * M; i++)
		dense[i] = uniform() < 0.06 || i / M == 5 ? 1 : 0;
	for (int run = 0; run < 12; run++)
	{
		static const int n_all[] = {1, 2, 3, 5};
		int n_threads = n_all[run % 4];
		MrcAls als = als_of(dense, N, M, all[run / 4], n_threads);

		assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
		for (int i = 0; i < 2; i++)
			assert_int_equal(mrc_als_iterate(&als), MRC_OK);
		if (n_threads == 1) /* the others follow it */
		{
			memcpy(users, als.user, N * K * sizeof(float));
			memcpy(items, als.item, M * K * sizeof(float));
			loss = als.loss;
		}
		assert_memory_equal(users, als.user, N * K * sizeof(float));
		assert_memory_equal(items, als.item, M * K * sizeof(float));
		assert_true(loss == als.loss);
		als_free(&als);
	}
	free(dense);
	free(users);
	free(items);
}

static void
test_als_loss_falls(void **state)
{
	MrcAls als =
		als_of(golden_values, GOLDEN_USERS, GOLDEN_ITEMS, (MrcAlsParams){20, true, 1, 1, 0.1, 0, false}, 2);
	double before = INFINITY;

	(void) state;
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	for (int i = 0; i < 10; i++)
	{
		assert_int_equal(mrc_als_iterate(&als), MRC_OK);
		assert_true(als.loss <= before * (1 + 1e-6));
		before = als.loss;
	}
	als_free(&als);
}

static void
test_als_small_and_singular(void **state)
{
	const float one = 3;
	MrcAls als = als_of(&one, 1, 1, (MrcAlsParams){8, true, 1, 1, 0.1, 0, false}, 2);

	(void) state;
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	for (int i = 0; i < 20; i++)
		assert_int_equal(mrc_als_iterate(&als), MRC_OK);
	assert_true(mrc_dot(als.user, als.item, 8) > 0.8);
	als.params.regularization = 0; /* rank 8 from one item */
	assert_int_equal(mrc_als_iterate(&als), MRC_NOTPD);
	assert_true(als.bad_user);
	assert_int_equal(als.bad_row, 0);
	als_free(&als);

	/* All items on one line: what is left of the second pivot is rounding. */
	const float three[] = {1, 2, 3};
	const float line[] = {0.7f, 0.7f / 3, 1.1f, 1.1f / 3, -1.3f, -1.3f / 3};

	als = als_of(three, 1, 3, (MrcAlsParams){2, true, 1.7, 1, 0, 0, false}, 1);
	memcpy(als.item, line, sizeof(line));
	assert_int_equal(mrc_als_half_step(&als, true), MRC_NOTPD);
	als_free(&als);

	/* A row without ratings becomes zero, and the others do not mind. */
	const float two[] = {0, 0, 1, 1};

	als = als_of(two, 2, 2, (MrcAlsParams){3, true, 1, 1, 0.1, 0, false}, 2);
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	assert_int_equal(mrc_als_iterate(&als), MRC_OK);
	for (int j = 0; j < 3; j++)
		assert_true(als.user[j] == 0);
	als_free(&als);

	/* Neither does one whose ratings are 0, which implicit feedback does not count, without any other weight. */
	als = als_of(two, 2, 2, (MrcAlsParams){1, true, 1, 0, 0.1, 1, false}, 2);
	als.by_user.start[1] = 1; /* rows 0: (1), 1: (0) */
	als.by_user.value[0] = 1;
	als.by_user.value[1] = 0;
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	assert_true(als.user[0] != 0 && als.user[1] == 0);

	/* A penalty out of range is not a singular system. */
	als.params.regularization = 1e39;
	assert_int_equal(mrc_als_half_step(&als, true), MRC_NOTFINITE);
	als_free(&als);
}

#if defined(__x86_64__) || defined(__aarch64__)
/* What is too small to be an exact float is 0, in a training and in a fold, and nowhere else. */
static void
test_als_smallest(void **state)
{
	const float value = 1e-20f;
	const int32_t index = 0;
	MrcAls als = als_of(&value, 1, 1, (MrcAlsParams){1, false, 0, 0, 1, 0, false}, 2);
	void *shared = aligned(mrc_fold_shared_bytes(1));
	void *scratch = aligned(mrc_fold_scratch_bytes(&als.params));
	volatile float small = 1e-20f;
	float user = 1;

	(void) state;
	*als.item = 1e-19f;
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	assert_true(*als.user == 0);
	memset(shared, 0, mrc_fold_shared_bytes(1));
	assert_int_equal(mrc_fold(&als.params, shared, als.item, 1, &index, &value, 1, &user, scratch), MRC_OK);
	assert_true(user == 0);
	assert_true(small * 1e-19f != 0);
	als.by_user.value[0] = 1; /* 1e-19 / (1 + 1e-38) */
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	assert_true(*als.user > 0.9e-19f);
	als_free(&als);
	free(shared);
	free(scratch);
}
#endif

/* An interrupt as often as it is asked, for a while. */
static bool
often_for_a_while(void *arg)
{
	return *(int *) arg < 20;
}

static bool
count_interrupt(void *arg)
{
	++*(int *) arg;
	return true;
}

/* Pauses in the middle of a chunk of rows lose nothing and change nothing. */
static void
test_als_pauses(void **state)
{
	enum
	{
		N = 60,
		M = 3000,
		K = 256
	};
	static const MrcAlsParams all[] = {
		{K, false, 1, 1, 0.1, 1, false}, {K, true, 1, 1, 0.1, 0, false}, {64, true, 1, 1, 0.1, 0, true}};
	float *dense = malloc(N * M * sizeof(float));

	(void) state;
	for (int i = 0; i < N * M; i++)
		dense[i] = (float) (1 + i % 7);
	for (int p = 0; p < 3; p++)
	{
		int n_interrupts = 0;
		const MrcHost host = {often_for_a_while, count_interrupt, &n_interrupts};
		MrcAls als = als_of(dense, N, M, all[p], 2);
		MrcAls paused = als_of(dense, N, M, all[p], 2);

		pool_free(paused.pool);
		assert_int_equal(mrc_pool_start(&paused.pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
		assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
		assert_int_equal(mrc_als_start(&paused, SEED, 1), MRC_OK);
		assert_int_equal(mrc_als_iterate(&als), MRC_OK);
		assert_int_equal(mrc_als_iterate(&paused), MRC_OK);
		assert_true(n_interrupts > 0);
		assert_memory_equal(als.user, paused.user, N * all[p].rank * sizeof(float));
		assert_memory_equal(als.item, paused.item, M * all[p].rank * sizeof(float));
		assert_true(als.loss == paused.loss);
		als_free(&als);
		als_free(&paused);
	}
	free(dense);
}

static void
test_als_start_is_normal(void **state)
{
	enum
	{
		N = 5000,
		K = 16
	};
	float *factors = malloc(N * K * sizeof(float));
	float *again = malloc(N * K * sizeof(float));
	MrcAls als = {.params.rank = K, .by_user.n_cols = N, .item = factors, .pool = pool_of(1)};
	double sum = 0;
	double squares = 0;

	(void) state;
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	pool_free(als.pool);
	als.pool = pool_of(3);
	als.item = again;
	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	assert_memory_equal(factors, again, N * K * sizeof(float));
	assert_int_equal(mrc_als_start(&als, SEED + 1, 1), MRC_OK);
	assert_memory_not_equal(factors, again, N * K * sizeof(float));
	assert_int_equal(mrc_als_start(&als, SEED, 2), MRC_OK);
	assert_true(again[7] == 2 * factors[7]);
	pool_free(als.pool);
	for (int i = 0; i < N * K; i++)
	{
		sum += factors[i];
		squares += (double) factors[i] * factors[i];
	}
	assert_true(fabs(sum / (N * K)) < 0.01);
	assert_true(fabs(sqrt(squares / (N * K)) * sqrt(K) - 1) < 0.02);
	free(factors);
	free(again);
}

/* ---- searches ---- */

static int
compare_tops(const void *a, const void *b)
{
	return mrc_top_before(*(const MrcTop *) a, *(const MrcTop *) b) ? -1 : 1;
}

/* What an index is searched for: the kinds of factors. */
typedef enum Kind
{
	NORMAL,
	WHOLE, /* small whole numbers: many ties */
	SAME,  /* few different items */
	NORMS, /* as popular items have them, from 1 to 1 / 100 */
	WIDE,  /* norms from 1e-44 to 1e30 */
	TINY,  /* denormal */
	HUGE_ONES,
	ODD, /* some NaN, some infinite */
	ZEROS,
	PARALLEL, /* to one vector, which is a user's: products reach the product of the norms */
	TURNED, /* the same elements in any order, for users whose elements are equal: products differ by rounding only */
	N_KINDS
} Kind;

static float
normal(void)
{
	return (float) (sqrt(-2 * log(1 - uniform())) * cos(6.283185307 * uniform()));
}

static void
fill_factors(float *factors, int64_t n, int rank, Kind kind, bool users)
{
	for (int64_t row = 0; row < n; row++)
	{
		float *to = factors + row * rank;
		float size = 1;

		if (kind == NORMS && !users)
			size = (float) pow(0.01, uniform());
		if (kind == WIDE)
			size = (float) pow(10, uniform() * 74 - 44);
		if (kind == TINY)
			size = users ? 1 : 1e-44f;
		if (kind == HUGE_ONES)
			size = users ? 1e3f : 1e35f;
		for (int i = 0; i < rank; i++)
			to[i] = kind == WHOLE ? (float) (rand() % 5 - 2) : kind == ZEROS ? 0 : size * normal();
		for (int i = 0; i < rank && kind == PARALLEL; i++)
			to[i] = (users ? 1 : 1 + (float) (rand() % 64) / 4096) * sinf((float) i + 1);
		for (int i = 0; i < rank && kind == TURNED; i++)
			to[i] = users ? 12.7f : 0.1f * (float) ((i * 37 + rank) % 255 - 127);
		for (int i = rank - 1; i > 0 && kind == TURNED; i--)
		{
			int j = rand() % (i + 1);
			float kept = to[i];

			to[i] = to[j];
			to[j] = kept;
		}
		if (kind == SAME && row > 3 && !users)
			memcpy(to, factors + rand() % 4 * rank, (size_t) rank * sizeof(float));
		if (kind == ODD && rand() % 10 == 0)
			to[rand() % rank] = rand() % 3 == 0 ? NAN : rand() % 2 == 0 ? INFINITY : -INFINITY;
		if (kind != HUGE_ONES && rand() % 20 == 0)
			memset(to, 0, (size_t) rank * sizeof(float));
	}
}

/* Each of n rows with this probability, ascending. */
static int64_t
some_rows(int32_t *rows, int64_t n, double share)
{
	int64_t n_rows = 0;

	for (int64_t i = 0; i < n; i++)
		if (uniform() < share)
			rows[n_rows++] = (int32_t) i;
	return n_rows;
}

static int
compare_rows(const void *a, const void *b)
{
	return *(const int32_t *) a - *(const int32_t *) b;
}

static bool
has_row(const int32_t *rows, int64_t n, int32_t row, int64_t *at)
{
	const int32_t *found = n == 0 ? NULL : bsearch(&row, rows, (size_t) n, sizeof(int32_t), compare_rows);

	*at = found ? found - rows : -1;
	return found != NULL;
}

/* The norm, summed by every fourth element: rounding is part of what a cosine is. */
static double
norm_by_fours(const float *x, int rank)
{
	double sum[4] = {0};

	for (int i = 0; i < rank; i++)
		sum[i < rank / 4 * 4 ? i % 4 : 0] += (double) x[i] * x[i];
	return sqrt(sum[0] + sum[1] + sum[2] + sum[3]);
}

/* By definition: everything that may be listed, sorted, then taken while the categories allow. */
static int64_t
search_by_definition(const MrcIndex *index, const MrcSearch *search, bool cosine, MrcTop *all, MrcTop *top)
{
	int64_t n = 0;
	int64_t n_top = 0;
	int64_t at;
	int *taken = calloc((size_t) index->n_items + 4, sizeof(int)); /* random_case() has so many categories */
	float *user = malloc((size_t) index->rank * sizeof(float));
	double user_norm = 0;

	if (search->n_used > 0)
		taken[search->used_category] = search->n_used;
	for (int i = 0; i < index->rank; i++)
		user_norm += (double) search->user[i] * search->user[i];
	for (int i = 0; i < index->rank; i++)
		user[i] = !cosine	 ? search->user[i]
			: user_norm == 0 ? 0
							 : (float) (search->user[i] / sqrt(user_norm));
	for (int32_t row = 0; row < index->n_items; row++)
	{
		const float *item = index->items + (int64_t) row * index->rank;
		MrcTop one = {0, row};

		if (has_row(search->skip, search->n_skip, row, &at) ||
			(search->only && !has_row(search->only, search->n_only, row, &at)))
			continue;
		mrc_dots_at(index->lanes)(user, item, 1, index->rank, &one.score);
		if (cosine)
		{
			double norm = norm_by_fours(item, index->rank);

			one.score = norm == 0 ? 0 : (float) (one.score / norm);
		}
		if (has_row(search->boosted, search->n_boosted, row, &at))
			one.score += search->boost[at];
		all[n++] = one;
	}
	qsort(all, (size_t) n, sizeof(MrcTop), compare_tops);
	for (int64_t i = 0; i < n && n_top < search->k; i++)
	{
		int32_t category = search->category ? search->category[all[i].row] : -1;

		if (category >= 0 && search->max_per_category > 0 && taken[category]++ >= search->max_per_category)
			continue;
		top[n_top++] = all[i];
	}
	free(taken);
	free(user);
	return n_top;
}

static void
same_list(const MrcTop *have, int64_t n_have, const MrcTop *want, int64_t n_want)
{
	assert_int_equal(n_have, n_want);
	for (int64_t i = 0; i < n_want; i++)
	{
		assert_int_equal(have[i].row, want[i].row);
		assert_true(have[i].score == want[i].score || (isnan(have[i].score) && isnan(want[i].score)));
	}
}

typedef struct Case
{
	MrcSearch search;
	int32_t *skip;
	int32_t *boosted;
	float *boost;
	int32_t *only;
	int32_t *category;
	MrcTop *top;
} Case;

/* With everything that a search may be given, by chance. */
static Case
random_case(const float *user, int64_t n_items, int64_t k)
{
	size_t n = (size_t) n_items * sizeof(int32_t) + 1;
	Case one = {{.user = user, .k = k}, malloc(n), malloc(n), malloc(n), malloc(n), malloc(n), NULL};
	int n_categories = rand() % 2 == 0 ? 3 : 1 + (int) (n_items / 3);
	static const double shares[] = {0, 0.01, 0.2, 0.9, 1};
	MrcSearch *search = &one.search;

	one.top = malloc((size_t) k * sizeof(MrcTop));
	search->top = one.top;
	search->skip = one.skip;
	search->n_skip = some_rows(one.skip, n_items, shares[rand() % 3 + (rand() % 8 == 0) * 2]);
	search->boosted = one.boosted;
	search->boost = one.boost;
	search->n_boosted = rand() % 2 == 0 ? 0 : some_rows(one.boosted, n_items, shares[rand() % 5]);
	for (int64_t i = 0; i < search->n_boosted; i++)
		one.boost[i] = rand() % 40 == 0 ? INFINITY : rand() % 40 == 0 ? NAN : (float) (rand() % 3) - 1;
	if (rand() % 3 == 0)
	{
		search->only = one.only;
		search->n_only = some_rows(one.only, n_items, shares[rand() % 5]);
	}
	for (int64_t i = 0; i < n_items; i++)
		one.category[i] = rand() % n_categories - (rand() % 5 == 0 && n_categories > 3);
	if (rand() % 2 == 0)
	{
		search->category = one.category;
		search->max_per_category = rand() % 4;
		search->used_category = rand() % n_categories - 1;
		search->n_used = search->used_category < 0 ? 0 : rand() % 3;
	}
	return one;
}

static void
case_free(Case *one)
{
	free(one->skip);
	free(one->boosted);
	free(one->boost);
	free(one->only);
	free(one->category);
	free(one->top);
}

static void *
index_of(const float *items, int64_t n_items, int rank, int n_threads)
{
	void *memory = aligned(mrc_index_bytes(n_items, rank));
	void *scratch = aligned(mrc_index_scratch_bytes(n_items));
	MrcPool *pool = pool_of(n_threads);

	assert_int_equal(mrc_index_build(pool, items, n_items, rank, memory, scratch), MRC_OK);
	pool_free(pool);
	free(scratch);
	return memory;
}

static void
check_search(int n_users, int64_t n_items, int rank, Kind kind)
{
	float *users = malloc((size_t) n_users * rank * sizeof(float));
	float *items = malloc((size_t) n_items * rank * sizeof(float) + 1);
	MrcTop *all = malloc((size_t) n_items * sizeof(MrcTop) + 1);
	MrcTop *want = malloc((size_t) (2 * n_items + 2) * sizeof(MrcTop));
	Case *cases = malloc((size_t) n_users * sizeof(Case));
	MrcSearch *searches = malloc((size_t) n_users * sizeof(MrcSearch));
	static const int lanes[] = {0, 16, 8, 4};
	void *memory[2];
	int64_t most_k = 1;

	fill_factors(items, n_items, rank, kind, false);
	fill_factors(users, n_users, rank, rand() % 4 == 0 ? NORMAL : kind, true);
	memory[0] = index_of(items, n_items, rank, 1);
	memory[1] = index_of(items, n_items, rank, 3);
	assert_memory_equal(memory[0], memory[1], mrc_index_bytes(n_items, rank));
	for (int u = 0; u < n_users; u++)
	{
		int64_t k = rand() % 3 == 0 ? 1 + rand() % (int) (2 * n_items + 1) : 1 + rand() % 12;

		most_k = k > most_k ? k : most_k;
		cases[u] = random_case(users + u * rank, n_items, k);
	}
	for (int way = 0; way < 5; way++)
	{
		MrcIndex index;

		mrc_index_open(&index, items, n_items, rank, way < 4 ? memory[0] : NULL);
		index.lanes = lanes[way % 4];
		for (int n_threads = 1; n_threads <= 3; n_threads += 2)
		{
			MrcPool *pool = pool_of(n_threads);
			void *scratch = aligned(mrc_search_many_scratch_bytes(&index, most_k, n_threads));

			for (int u = 0; u < n_users; u++)
			{
				searches[u] = cases[u].search;
				searches[u].n_top = -1;
				memset(searches[u].top, 0xA5, (size_t) searches[u].k * sizeof(MrcTop));
			}
			if (n_threads == 1 && way % 2 == 0)
				mrc_search_group(&index, searches, n_users, scratch);
			else if (way % 2 == 0)
				assert_int_equal(mrc_search_many(pool, &index, searches, n_users, scratch), MRC_OK);
			else
			{
				mrc_search_begin(pool, &index, searches, n_users, scratch);
				assert_int_equal(mrc_search_end(pool), MRC_OK);
			}
			for (int u = 0; u < n_users; u++)
				same_list(searches[u].top, searches[u].n_top, want,
						  search_by_definition(&index, &cases[u].search, false, all, want));
			free(scratch);
			pool_free(pool);
		}
		for (int u = 0; u < n_users; u++)
		{
			void *scratch = aligned(mrc_search_scratch_bytes(&index, cases[u].search.k));
			MrcSearch *search = &cases[u].search;

			mrc_search(&index, search, scratch);
			same_list(search->top, search->n_top, want,
					  search_by_definition(&index, search, false, all, want));
			search->n_boosted = 0;
			mrc_similar(&index, search, scratch);
			same_list(search->top, search->n_top, want,
					  search_by_definition(&index, search, true, all, want));
			search->n_boosted = searches[u].n_boosted;
			free(scratch);
		}
	}
	for (int u = 0; u < n_users; u++)
		case_free(&cases[u]);
	free(users);
	free(items);
	free(all);
	free(want);
	free(cases);
	free(searches);
	free(memory[0]);
	free(memory[1]);
}

static void
test_search_by_definition(void **state)
{
	static const int ranks[] = {1, 2, 3, 4, 5, 8, 15, 17, 31, 64, 65, 130, 1024};

	(void) state;
	srand(SEED);
	for (int kind = 0; kind < N_KINDS; kind++)
	{
		for (size_t i = 0; i < sizeof(ranks) / sizeof(ranks[0]); i++)
			check_search(7, ranks[i] > 200 ? 130 : 1 + rand() % 700, ranks[i], (Kind) kind);
		for (int n_items = 0; n_items < 4; n_items++)
			check_search(3, n_items, 7, (Kind) kind);
		for (int64_t n_items = 63; n_items < 66; n_items++)
			check_search(9, n_items, 6, (Kind) kind);
		check_search(200, 300, 12, (Kind) kind); /* more than go together */
		check_search(2, 5000, 10, (Kind) kind);
	}
}

/* Long lists need memory for few users at once. */
static void
test_search_many_memory(void **state)
{
	const MrcIndex index = {.rank = 64};

	(void) state;
	assert_true(mrc_search_many_scratch_bytes(&index, 1000000, 2) < 16 << 20);
}

/* ---- folds ---- */

/* Every row of a half-step, folded alone; and what its ratings contribute to the score of an item. */
static void
check_fold(MrcAlsParams params, int n_users, int n_items, double share)
{
	int rank = params.rank;
	float *dense = calloc((size_t) n_users * n_items, sizeof(float));
	float *user = malloc((size_t) rank * sizeof(float));
	float *contribution = malloc((size_t) n_items * sizeof(float));
	void *shared = aligned(mrc_fold_shared_bytes(rank));
	void *again = aligned(mrc_fold_shared_bytes(rank));
	void *scratch = aligned(mrc_fold_scratch_bytes(&params));

	for (int i = 0; i < n_users * n_items; i++)
		if (uniform() < share * (1 + i / n_items % 10))
			dense[i] = (float) (rand() % 5 + (params.implicit ? 0 : 1)); /* 0 does not count */
	MrcAls als = als_of(dense, n_users, n_items, params, 2);

	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	for (int i = 0; i < 2; i++)
		assert_int_equal(mrc_als_iterate(&als), MRC_OK);
	assert_int_equal(mrc_als_half_step(&als, true), MRC_OK);
	for (int n_threads = 1; n_threads < 4; n_threads += 2)
	{
		MrcPool *pool = pool_of(n_threads);
		void *prepare = aligned(mrc_fold_prepare_scratch_bytes(rank, n_threads));

		assert_int_equal(
			mrc_fold_prepare(pool, &params, als.item, n_items, n_threads == 1 ? shared : again, prepare),
			MRC_OK);
		free(prepare);
		pool_free(pool);
	}
	assert_memory_equal(shared, again, mrc_fold_shared_bytes(rank));
	for (int row = 0; row < n_users; row++)
	{
		int64_t start = als.by_user.start[row];
		int64_t n = als.by_user.start[row + 1] - start;
		const int32_t *index = als.by_user.index + start;
		const float *value = als.by_user.value + start;
		const float *wanted = als.user + (size_t) row * rank;
		double most = 0;
		double off = 0;

		assert_int_equal(mrc_fold(&params, shared, als.item, n_items, index, value, n, user, scratch),
						 MRC_OK);
		for (int i = 0; i < rank; i++)
		{
			most = fmax(most, fabsf(wanted[i]));
			off = fmax(off, fabsf(wanted[i] - user[i]));
		}
		assert_true(off <= 1e-3 * most);
		for (int32_t item = 0; item < n_items; item += n_items / 3)
		{
			double sum = 0;
			double size = 1e-3;
			double score = 0;

			assert_int_equal(mrc_fold_explain(&params, shared, als.item, n_items, index, value, n, item,
											  contribution, scratch),
							 MRC_OK);
			for (int64_t e = 0; e < n; e++)
			{
				sum += contribution[e];
				size += fabsf(contribution[e]);
				assert_true(!params.implicit || value[e] > 0 || contribution[e] == 0);
			}
			for (int i = 0; i < rank; i++)
				score += (double) user[i] * als.item[(size_t) item * rank + i];
			assert_true(fabs(sum - score) < 1e-3 * size);
		}
	}
	als_free(&als);
	free(dense);
	free(user);
	free(contribution);
	free(shared);
	free(again);
	free(scratch);
}

static void
test_folds_are_rows(void **state)
{
	static const int ranks[] = {1, 5, 16, 33, 64};

	(void) state;
	srand(SEED);
	for (size_t i = 0; i < sizeof(ranks) / sizeof(ranks[0]); i++)
	{
		check_fold((MrcAlsParams){ranks[i], true, 2, 0.1, 0.05, 1, false}, 60, 200, 0.03);
		check_fold((MrcAlsParams){ranks[i], true, 2, 1, 0.5, 0, true}, 60, 200, 0.03);
		check_fold((MrcAlsParams){ranks[i], false, 0, 0, 0.1, 1, false}, 60, 200, 0.03);
		check_fold((MrcAlsParams){ranks[i], false, 0, 0, 0.1, 1, true}, 60, 200, 0.03);
	}
	check_fold((MrcAlsParams){300, true, 2, 0.1, 0.05, 1, false}, 10, 400, 0.05);
}

/* What cannot be solved says so. */
static void
test_folds_that_fail(void **state)
{
	MrcAlsParams params = {4, false, 0, 0, 0, 0, false};
	float item[8 * 4] = {0};
	const int32_t index[] = {1, 3, 4, 5, 6};
	const float value[] = {1, 1, 1, 1, 1};
	float user[4];
	void *shared = aligned(mrc_fold_shared_bytes(4));
	void *scratch = aligned(mrc_fold_scratch_bytes(&params));

	(void) state;
	memset(shared, 0, mrc_fold_shared_bytes(4));
	assert_int_equal(mrc_fold(&params, shared, item, 8, index, value, 5, user, scratch), MRC_NOTPD);
	item[4] = INFINITY;
	assert_int_not_equal(mrc_fold(&params, shared, item, 8, index, value, 5, user, scratch), MRC_OK);
	assert_int_equal(mrc_fold(&params, shared, item, 8, index, value, 0, user, scratch), MRC_OK);
	for (int i = 0; i < 4; i++)
		assert_true(user[i] == 0);
	free(shared);
	free(scratch);
}

/* ---- own history ---- */

/* The NDCG of one user by the definition. */
static double
ndcg_of(const MrcOwn *own, int64_t row, const float *user, float weight)
{
	int64_t n_items = own->known.n_cols;
	MrcTop *all = malloc((size_t) n_items * sizeof(MrcTop));
	double gain = 0;
	double ideal = 0;

	for (int32_t item = 0; item < n_items; item++)
		all[item] =
			(MrcTop){mrc_dot(user, own->items + (size_t) item * own->params->rank, own->params->rank), item};
	for (int64_t e = own->known.start[row]; e < own->known.start[row + 1]; e++)
		all[own->known.index[e]].score +=
			mrc_own_boost(weight, own->known.value[e], own->usual[own->known.index[e]]);
	qsort(all, (size_t) n_items, sizeof(MrcTop), compare_tops);
	for (int64_t i = 0; i < own->k && i < n_items; i++)
		for (int64_t e = own->relevant.start[row]; e < own->relevant.start[row + 1]; e++)
			if (own->relevant.index[e] == all[i].row)
				gain += 1 / log2((double) i + 2);
	for (int64_t i = 0; i < own->k && i < own->relevant.start[row + 1] - own->relevant.start[row]; i++)
		ideal += 1 / log2((double) i + 2);
	free(all);
	return gain / ideal;
}

static void
test_own_history(void **state)
{
	enum
	{
		N_USERS = 150,
		N_ITEMS = 90,
		RANK = 7
	};
	MrcAlsParams params = {RANK, true, 1, 0.3, 0.05, 1, false};
	float *dense = calloc(N_USERS * N_ITEMS, sizeof(float));
	float usual[N_ITEMS];
	const float weight[] = {0, 0.1, 1, 20};
	void *shared = aligned(mrc_fold_shared_bytes(RANK));
	void *fold_scratch = aligned(mrc_fold_scratch_bytes(&params));
	int64_t start[N_USERS + 1] = {0};
	int32_t *index = malloc(N_USERS * N_ITEMS * sizeof(int32_t));
	double wanted[4] = {0};
	double ndcg[4];

	(void) state;
	assert_true(mrc_own_boost(2, 0, 1) == 0 && mrc_own_boost(2, -1, 1) == 0 && mrc_own_boost(2, NAN, 1) == 0);
	assert_true(fabs(mrc_own_boost(2, 3, 0) - 2 * log(4)) < 1e-6);
	assert_true(fabs(mrc_own_boost(2, 3, 1.5f) - 2 * log(1 + 0.6 * 4)) < 1e-6);
	srand(SEED);
	for (int i = 0; i < N_USERS * N_ITEMS; i++)
		if (uniform() < 0.15 || i % N_ITEMS == i / N_ITEMS % N_ITEMS)
			dense[i] = (float) (1 + rand() % 5);
	for (int i = 0; i < N_ITEMS; i++)
		usual[i] = (float) (rand() % 4);
	for (int row = 0; row < N_USERS; row++) /* what is relevant: some of what he has, and something else */
	{
		int64_t n = start[row];

		for (int32_t item = 0; item < N_ITEMS; item++)
			if (item == (row + 1) % N_ITEMS || (dense[row * N_ITEMS + item] > 0 && uniform() < 0.4))
				index[n++] = item;
		start[row + 1] = n;
	}

	MrcAls als = als_of(dense, N_USERS, N_ITEMS, params, 2);

	assert_int_equal(mrc_als_start(&als, SEED, 1), MRC_OK);
	assert_int_equal(mrc_als_iterate(&als), MRC_OK);
	for (int n_threads = 1; n_threads < 4; n_threads += 2)
	{
		MrcPool *pool = pool_of(n_threads);
		void *prepare = aligned(mrc_fold_prepare_scratch_bytes(RANK, n_threads));
		double again[4];
		MrcOwn own = {.pool = pool,
					  .params = &params,
					  .fold = shared,
					  .items = als.item,
					  .known = als.by_user,
					  .rating = als.by_user.value,
					  .usual = usual,
					  .relevant = {N_USERS, N_ITEMS, start, index, NULL},
					  .k = 6,
					  .n_weights = 4,
					  .weight = weight,
					  .ndcg = n_threads == 1 ? ndcg : again};

		assert_int_equal(mrc_fold_prepare(pool, &params, als.item, N_ITEMS, shared, prepare), MRC_OK);
		own.scratch = aligned(mrc_own_scratch_bytes(&own, n_threads));
		assert_int_equal(mrc_own_run(&own), MRC_OK);
		if (n_threads > 1)
			assert_memory_equal(ndcg, again, sizeof(ndcg));
		for (int row = 0; row < N_USERS && n_threads == 1; row++)
		{
			float user[RANK];
			int64_t at = als.by_user.start[row];

			assert_int_equal(mrc_fold(&params, shared, als.item, N_ITEMS, als.by_user.index + at,
									  als.by_user.value + at, als.by_user.start[row + 1] - at, user,
									  fold_scratch),
							 MRC_OK);
			for (int w = 0; w < 4; w++)
				wanted[w] += ndcg_of(&own, row, user, weight[w]) / N_USERS;
		}
		free(own.scratch);
		free(prepare);
		pool_free(pool);
	}
	for (int w = 0; w < 4; w++)
		assert_true(fabs(ndcg[w] - wanted[w]) < 1e-6);
	assert_true(ndcg[0] != ndcg[2]);
	als_free(&als);
	free(dense);
	free(index);
	free(shared);
	free(fold_scratch);
}

/* ---- top-k ---- */

static void
test_top_order(void **state)
{
	(void) state;
	assert_true(mrc_top_before((MrcTop){2, 5}, (MrcTop){1, 0}));
	assert_true(mrc_top_before((MrcTop){1, 0}, (MrcTop){1, 5}));
	assert_false(mrc_top_before((MrcTop){1, 5}, (MrcTop){1, 0}));
	assert_true(mrc_top_before((MrcTop){-INFINITY, 5}, (MrcTop){NAN, 0}));
	assert_false(mrc_top_before((MrcTop){NAN, 0}, (MrcTop){-INFINITY, 5}));
	assert_true(mrc_top_before((MrcTop){NAN, 0}, (MrcTop){NAN, 5}));
}

/* A case that can be done by hand. */
static void
test_ranking_by_hand(void **state)
{
	const float users[] = {1};
	const float items[] = {5, 4, 3, 2, 1};
	const int32_t user_row[] = {0, 0};
	const int64_t n_relevant[] = {2, 3}; /* the second has one that is no item */
	int64_t relevant_start[] = {0, 2, 4};
	int32_t relevant[] = {0, 2, 1, 4};
	int64_t seen_start[] = {0, 0, 1};
	int32_t seen[] = {0};
	MrcRanking ranking = {.pool = pool_of(2),
						  .users = users,
						  .items = items,
						  .n_items = 5,
						  .rank = 1,
						  .k = 3,
						  .n_rows = 2,
						  .user_row = user_row,
						  .n_relevant = n_relevant,
						  .relevant = {2, 5, relevant_start, relevant, NULL},
						  .seen = {2, 5, seen_start, seen, NULL}};

	(void) state;
	ranking.scratch = aligned(mrc_ranking_scratch_bytes(2, 5, 1, 3, 2));
	assert_int_equal(mrc_ranking_run(&ranking), MRC_OK);
	/* lists: 0 1 2 with hits at 1 and 3; 1 2 3 with a hit at 1 */
	double ideal2 = 1 + 1 / log2(3);
	double ideal3 = ideal2 + 0.5;

	assert_true(fabs(ranking.precision - (2.0 / 3 + 1.0 / 3) / 2) < 1e-12);
	assert_true(fabs(ranking.recall - (1 + 1.0 / 3) / 2) < 1e-12);
	assert_true(fabs(ranking.ndcg - ((1 + 0.5) / ideal2 + 1 / ideal3) / 2) < 1e-12);
	assert_true(fabs(ranking.map - ((1 + 2.0 / 3) / 2 + 1.0 / 3) / 2) < 1e-12);
	assert_true(ranking.hit_rate == 1);
	assert_true(fabs(ranking.coverage - 4.0 / 5) < 1e-12);
	free(ranking.scratch);
	ranking.k = 1000; /* longer than the list: hits / k */
	ranking.scratch = aligned(mrc_ranking_scratch_bytes(2, 5, 1, 1000, 2));
	assert_int_equal(mrc_ranking_run(&ranking), MRC_OK);
	assert_true(fabs(ranking.precision - (2.0 / 1000 + 2.0 / 1000) / 2) < 1e-12);
	free(ranking.scratch);
	pool_free(ranking.pool);
}

/* Sums of what the definitions say about one user's list; any of its items that is relevant: is_relevant. */
static void
add_by_definition(MrcRanking *sums, const MrcTop *list, int n_list, int k, int n_relevant,
				  const bool *is_relevant)
{
	int most = k < n_relevant ? k : n_relevant;
	int n_hits = 0;
	double precisions = 0;
	double gain = 0;
	double ideal = 0;

	for (int r = 1; r <= k; r++)
	{
		if (r <= n_list && is_relevant[list[r - 1].row])
		{
			precisions += (double) ++n_hits / r;
			gain += 1 / log2(r + 1);
		}
		if (r <= most)
			ideal += 1 / log2(r + 1);
	}
	sums->precision += (double) n_hits / k;
	sums->recall += (double) n_hits / n_relevant;
	sums->map += precisions / most;
	sums->ndcg += gain / ideal;
	sums->hit_rate += n_hits > 0;
}

/* Entries of a random CSR, each with this probability; index has room for all. */
static MrcCsr
random_csr(int n_rows, int n_cols, double share)
{
	MrcCsr csr = {n_rows, n_cols, malloc((size_t) (n_rows + 1) * sizeof(int64_t)),
				  malloc((size_t) n_rows * n_cols * sizeof(int32_t)), NULL};
	int64_t n = 0;

	for (int row = 0; row < n_rows; row++)
	{
		csr.start[row] = n;
		for (int column = 0; column < n_cols; column++)
			if (uniform() < share || (row == column && share > 0))
				csr.index[n++] = column;
	}
	csr.start[n_rows] = n;
	return csr;
}

static bool
csr_has(const MrcCsr *csr, int row, int column)
{
	for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		if (csr->index[e] == column)
			return true;
	return false;
}

/* N_ROWS of the N_USERS are judged, in turned order: user_row and seen_row say who is who. */
static void
check_ranking(int k, bool ties, bool with_seen, bool with_boosts)
{
	enum
	{
		N_USERS = 150,
		N_ROWS = 130,
		N_ITEMS = 140,
		K = 5
	};
	float users[N_USERS * K];
	float items[N_ITEMS * K];
	int32_t user_row[N_ROWS];
	int64_t n_relevant[N_ROWS];
	bool listed[N_ITEMS] = {false};
	int n_listed = 0;
	MrcRanking expected = {.k = 0};
	MrcRanking ranking = {.users = users,
						  .items = items,
						  .n_items = N_ITEMS,
						  .rank = K,
						  .k = k,
						  .n_rows = N_ROWS,
						  .user_row = user_row,
						  .n_relevant = n_relevant,
						  .relevant = random_csr(N_ROWS, N_ITEMS, 0.05),
						  .seen_row = user_row};
	MrcCsr seen = random_csr(N_USERS, N_ITEMS, 0.2);
	float *boosts = malloc((size_t) seen.start[N_USERS] * sizeof(float));

	for (int i = 0; i < N_USERS * K; i++)
		users[i] = ties ? (float) (rand() % 3) : (float) (uniform() - 0.5);
	for (int i = 0; i < N_ITEMS * K; i++)
		items[i] = ties ? (float) (rand() % 2) : (float) (uniform() - 0.5);
	for (int row = 0; row < N_ROWS; row++)
	{
		user_row[row] = N_USERS - 1 - row;
		n_relevant[row] = ranking.relevant.start[row + 1] - ranking.relevant.start[row] + row % 3;
		n_relevant[row] += n_relevant[row] == 0;
	}
	if (with_seen || with_boosts)
		ranking.seen = seen;
	if (with_boosts)
	{
		ranking.seen.value = boosts;
		for (int64_t e = 0; e < seen.start[N_USERS]; e++)
			boosts[e] = (float) (rand() % 3);
	}
	for (int row = 0; row < N_ROWS; row++)
	{
		MrcTop all[N_ITEMS];
		bool is_relevant[N_ITEMS];
		int n = 0;

		for (int i = 0; i < N_ITEMS; i++)
		{
			is_relevant[i] = csr_has(&ranking.relevant, row, i);
			if (with_boosts || !with_seen || !csr_has(&seen, user_row[row], i))
				all[n++] = (MrcTop){mrc_dot(users + user_row[row] * K, items + i * K, K), i};
			for (int64_t e = seen.start[user_row[row]]; with_boosts && e < seen.start[user_row[row] + 1]; e++)
				if (seen.index[e] == i)
					all[n - 1].score += boosts[e];
		}
		qsort(all, (size_t) n, sizeof(MrcTop), compare_tops);
		for (int i = 0; i < n && i < k; i++)
		{
			n_listed += !listed[all[i].row];
			listed[all[i].row] = true;
		}
		add_by_definition(&expected, all, n, k, (int) n_relevant[row], is_relevant);
	}
	for (int n_threads = 1; n_threads <= 3; n_threads += 2)
	{
		MrcRanking before = ranking;

		ranking.pool = pool_of(n_threads);
		ranking.scratch = aligned(mrc_ranking_scratch_bytes(N_ROWS, N_ITEMS, K, k, n_threads));
		assert_int_equal(mrc_ranking_run(&ranking), MRC_OK);
		assert_true(fabs(ranking.precision - expected.precision / N_ROWS) < 1e-12);
		assert_true(fabs(ranking.recall - expected.recall / N_ROWS) < 1e-12);
		assert_true(fabs(ranking.map - expected.map / N_ROWS) < 1e-12);
		assert_true(fabs(ranking.ndcg - expected.ndcg / N_ROWS) < 1e-12);
		assert_true(fabs(ranking.hit_rate - expected.hit_rate / N_ROWS) < 1e-12);
		assert_true(fabs(ranking.coverage - (double) n_listed / N_ITEMS) < 1e-12);
		assert_true(ranking.precision > 0);
		if (n_threads > 1)
			assert_true(ranking.precision == before.precision && ranking.recall == before.recall &&
						ranking.map == before.map && ranking.ndcg == before.ndcg &&
						ranking.hit_rate == before.hit_rate && ranking.coverage == before.coverage);
		free(ranking.scratch);
		pool_free(ranking.pool);
	}
	free(ranking.relevant.start);
	free(ranking.relevant.index);
	free(seen.start);
	free(boosts);
	free(seen.index);
}

static void
test_ranking_against_definition(void **state)
{
	static const int lengths[] = {1, 3, 10, 139, 140, 1000};

	(void) state;
	srand(SEED);
	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
		for (int which = 0; which < 6; which++)
			check_ranking(lengths[i], which % 2, which / 2 == 1, which / 2 == 2);
}

/* Threads that score at the same time get what one alone gets: Debian's libopenblas0-serial did not, once in thirty blocks. */
static void
test_ranking_repeats(void **state)
{
	enum
	{
		N_ROWS = 512,
		N_ITEMS = 1500,
		K = 40,
		N_THREADS = 4
	};
	float *users = malloc(N_ROWS * K * sizeof(float));
	float *items = malloc(N_ITEMS * K * sizeof(float));
	int32_t user_row[N_ROWS];
	int64_t n_relevant[N_ROWS];
	double first = 0;
	MrcRanking ranking = {.users = users,
						  .items = items,
						  .n_items = N_ITEMS,
						  .rank = K,
						  .k = 20,
						  .n_rows = N_ROWS,
						  .user_row = user_row,
						  .n_relevant = n_relevant,
						  .relevant = random_csr(N_ROWS, N_ITEMS, 0.05)};

	(void) state;
	for (int i = 0; i < N_ROWS * K; i++)
		users[i] = (float) (uniform() - 0.5);
	for (int i = 0; i < N_ITEMS * K; i++)
		items[i] = (float) (uniform() - 0.5);
	for (int row = 0; row < N_ROWS; row++)
	{
		user_row[row] = row;
		n_relevant[row] = ranking.relevant.start[row + 1] - ranking.relevant.start[row];
	}
	for (int n = 0; n < 400; n++)
	{
		ranking.pool = pool_of(n == 0 ? 1 : N_THREADS);
		ranking.scratch =
			aligned(mrc_ranking_scratch_bytes(N_ROWS, N_ITEMS, K, ranking.k, n == 0 ? 1 : N_THREADS));
		assert_int_equal(mrc_ranking_run(&ranking), MRC_OK);
		if (n == 0)
			first = ranking.ndcg;
		assert_true(ranking.ndcg == first);
		free(ranking.scratch);
		pool_free(ranking.pool);
	}
	free(ranking.relevant.start);
	free(ranking.relevant.index);
	free(users);
	free(items);
}

static void
test_rmse_against_definition(void **state)
{
	enum
	{
		N_USERS = 600,
		N_ITEMS = 40,
		K = 7
	};
	float users[N_USERS * K];
	float items[N_ITEMS * K];
	double sum = 0;
	double once = 0;
	MrcError error = {
		.ratings = random_csr(N_USERS, N_ITEMS, 0.1), .users = users, .items = items, .rank = K};
	int64_t n = error.ratings.start[N_USERS];

	(void) state;
	error.ratings.value = malloc((size_t) n * sizeof(float));
	error.scratch = malloc(mrc_error_scratch_bytes(N_USERS));
	for (int i = 0; i < N_USERS * K; i++)
		users[i] = (float) uniform();
	for (int i = 0; i < N_ITEMS * K; i++)
		items[i] = (float) uniform();
	for (int user = 0; user < N_USERS; user++)
		for (int64_t e = error.ratings.start[user]; e < error.ratings.start[user + 1]; e++)
		{
			double product = 0;

			error.ratings.value[e] = (float) (5 * uniform());
			for (int i = 0; i < K; i++)
				product += (double) users[user * K + i] * items[error.ratings.index[e] * K + i];
			sum += pow(error.ratings.value[e] - product, 2);
		}
	for (int n_threads = 1; n_threads <= 3; n_threads += 2)
	{
		error.pool = pool_of(n_threads);
		assert_int_equal(mrc_error_run(&error), MRC_OK);
		assert_true(fabs(error.rmse - sqrt(sum / (double) n)) < 1e-6);
		if (n_threads == 1) /* the others follow it */
			once = error.rmse;
		assert_true(error.rmse == once);
		pool_free(error.pool);
	}
	memset(error.ratings.start, 0, (N_USERS + 1) * sizeof(int64_t));
	error.pool = pool_of(2);
	assert_int_equal(mrc_error_run(&error), MRC_OK);
	assert_true(isnan(error.rmse));
	pool_free(error.pool);
	free(error.ratings.start);
	free(error.ratings.index);
	free(error.ratings.value);
	free(error.scratch);
}

/* ---- clusters ---- */

typedef struct Clusters
{
	MrcKmeans km;
	double *x;
	double *weight;
	double *chunks[64];
	double *weight_chunks[64];
} Clusters;

/* n x d points and weights (NULL: 1), in chunks of chunk_rows; lanes 0. */
static void
clusters_open(Clusters *c, const double *x, const double *weight, int64_t n, int d, int k, int n_threads,
			  int64_t chunk_rows)
{
	memset(c, 0, sizeof(*c));
	c->x = malloc((size_t) n * d * sizeof(double));
	memcpy(c->x, x, (size_t) n * d * sizeof(double));
	if (weight)
	{
		c->weight = malloc((size_t) n * sizeof(double));
		memcpy(c->weight, weight, (size_t) n * sizeof(double));
	}
	assert_true((n + chunk_rows - 1) / chunk_rows <= 64);
	for (int64_t i = 0; i * chunk_rows < n; i++)
	{
		c->chunks[i] = c->x + i * chunk_rows * d;
		c->weight_chunks[i] = c->weight + i * chunk_rows;
	}
	c->km.points = (MrcPoints){n, d, chunk_rows, c->chunks, weight ? c->weight_chunks : NULL};
	c->km.pool = pool_of(n_threads);
	c->km.k = k;
	c->km.seed = SEED;
	c->km.n_starts = 3;
	c->km.scratch = aligned(mrc_kmeans_scratch_bytes(&c->km.points, k, 3, n_threads));
	c->km.center = malloc((size_t) k * d * sizeof(double));
	c->km.label = aligned((size_t) n * sizeof(int32_t));
	c->km.size = aligned((size_t) k * sizeof(double));
	c->km.cluster_cost = aligned((size_t) k * sizeof(double));
}

static void
clusters_close(Clusters *c)
{
	pool_free(c->km.pool);
	free(c->x);
	free(c->weight);
	free(c->km.scratch);
	free(c->km.center);
	free(c->km.label);
	free(c->km.size);
	free(c->km.cluster_cost);
}

/* n x d: blobs of unit size around n_blobs points, apart by `apart`, all of it moved by offset. */
static double *
blobs(int64_t n, int d, int n_blobs, double apart, double offset)
{
	double *x = malloc((size_t) n * d * sizeof(double));
	double *middle = malloc((size_t) n_blobs * d * sizeof(double));

	srand(SEED);
	for (int i = 0; i < n_blobs * d; i++)
		middle[i] = apart * uniform();
	for (int64_t i = 0; i < n; i++)
	{
		int of = (int) (uniform() * n_blobs);

		for (int j = 0; j < d; j++)
			x[i * d + j] = offset + middle[of * d + j] + uniform() + uniform() - 1;
	}
	free(middle);
	return x;
}

static double
squared(const double *a, const double *b, int d)
{
	double sum = 0;

	for (int j = 0; j < d; j++)
		sum += (a[j] - b[j]) * (a[j] - b[j]);
	return sum;
}

/* One iteration by definition: labels and cost of center, then center is the means.  No cluster may be empty. */
static double
lloyd(const double *x, const double *weight, int64_t n, int d, int k, double *center, int32_t *label)
{
	double *sum = calloc((size_t) k * d, sizeof(double));
	double *size = calloc((size_t) k, sizeof(double));
	double cost = 0;

	for (int64_t i = 0; i < n; i++)
	{
		double w = weight ? weight[i] : 1;
		int best = 0;

		for (int c = 1; c < k; c++)
			if (squared(x + i * d, center + c * d, d) < squared(x + i * d, center + best * d, d))
				best = c;
		cost += w * squared(x + i * d, center + best * d, d);
		label[i] = best;
		size[best] += w;
		for (int j = 0; j < d; j++)
			sum[best * d + j] += w * x[i * d + j];
	}
	for (int c = 0; c < k; c++)
		for (int j = 0; j < d && size[c] > 0; j++)
			center[c * d + j] = sum[c * d + j] / size[c];
	free(sum);
	free(size);
	return cost;
}

static const int all_lanes[] = {0, 16, 8, 4};

/* Each iteration has the labels and the cost of the definition, at every width of vector, near the origin and far from it. */
static void
test_kmeans_is_lloyd(void **state)
{
	static const struct
	{
		int64_t n;
		int d;
		int k;
		double apart;
		double offset;
		int n_blobs; /* 0: as many as centres */
	} all[] = {{700, 1, 5, 10, 0, 0},	   {3000, 2, 7, 5, 0, 0},		  {2000, 7, 20, 3, 1e6, 0},
			   {900, 33, 65, 1, -3e4, 0},  {300, 1000, 9, 1, 5, 0},		  {5000, 16, 100, 1e5, 0, 0},
			   {4000, 3, 1, 2, 0, 0},	   {100, 5, 100, 2, 1e9, 0},	  {9000, 4, 40, 0, 0, 0},
			   {3000, 3, 30, 1, 1e-20, 0}, {2000, 8, 10, 1e140, 0, 2000}, {4000, 12, 40, 1e5, 0, 3},
			   {4000, 5, 40, 1e6, 0, 2}};

	(void) state;
	for (size_t a = 0; a < sizeof(all) / sizeof(all[0]); a++)
		for (int l = 0; l < 4; l++)
		{
			int64_t n = all[a].n;
			int d = all[a].d;
			int k = all[a].k;
			double *x = blobs(n, d, all[a].n_blobs > 0 ? all[a].n_blobs : k, all[a].apart, all[a].offset);
			double *weight = malloc((size_t) n * sizeof(double));
			double *center = malloc((size_t) k * d * sizeof(double));
			int32_t *label = malloc((size_t) n * sizeof(int32_t));
			Clusters c;

			for (int64_t i = 0; i < n; i++)
				weight[i] = (double) (i % 5) + 0.25;
			clusters_open(&c, x, a % 2 ? weight : NULL, n, d, k, 2, n / 3 + 1);
			c.km.lanes = all_lanes[l];
			memcpy(c.km.center, x, (size_t) k * d * sizeof(double)); /* no cluster is empty */
			memcpy(center, x, (size_t) k * d * sizeof(double));
			for (int i = 0; i < 12; i++)
			{
				double cost = lloyd(x, a % 2 ? weight : NULL, n, d, k, center, label);

				assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_OK);
				assert_memory_equal(c.km.label, label, (size_t) n * sizeof(int32_t));
				assert_true(fabs(c.km.cost - cost) <=
							1e-9 * cost + 1e-18 * all[a].offset * all[a].offset * n * d);
				for (int j = 0; j < k * d; j++)
					assert_true(fabs(c.km.center[j] - center[j]) <=
								1e-12 * fabs(center[j]) + 1e-9 * all[a].apart + 1e-14);
				memcpy(center, c.km.center,
					   (size_t) k * d * sizeof(double)); /* so that rounding does not add up */
			}
			assert_int_equal(mrc_kmeans_finish(&c.km), MRC_OK);
			for (int64_t i = 0; i < n; i++)
				assert_int_equal(c.km.label[i], mrc_kmeans_nearest(c.km.center, k, d, x + i * d, NULL));
			clusters_close(&c);
			free(x);
			free(weight);
			free(center);
			free(label);
		}
}

/* As far from x as the nearest of the centres, but for rounding in double precision. */
static bool
is_nearest(const MrcKmeans *km, const double *center, const double *x, int label)
{
	double least;
	double far = squared(x, center + label * km->points.d, km->points.d);

	mrc_kmeans_nearest(center, km->k, km->points.d, x, &least);
	return far <= least * (1 + 1e-12);
}

/*
 * Labels are those of double precision where single precision overflows and underflows: `few` of the numbers are of one
 * size, the others of another; few of the centres are among the first.
 */
static void
test_kmeans_extremes(void **state)
{
	enum
	{
		N = 10000,
		K = 12
	};
	static const struct
	{
		double few;
		double others;
	} all[] = {{1e-300, 1e-300}, {1e-200, 1e-200}, {1e-160, 1e-160}, {1e-30, 1e-30}, {1e19, 1},	 {1e25, 1},
			   {1e38, 1},		 {1e60, 1e-60},	   {1, 1e-19},		 {1, 1e-25},	 {1, 1e-33}, {1, 1e-60},
			   {1e150, 1e-150},	 {1e150, 1e150},   {1e9, 1e-9},		 {1e19, 1e19},	 {1e300, 0}};

	(void) state;
	for (size_t a = 0; a < sizeof(all) / sizeof(all[0]); a++)
		for (int l = 0; l < 4; l++)
		{
			int d = 1 + (int) (a % 3);
			double *x = malloc((size_t) N * d * sizeof(double));
			double before[K * 3];
			Clusters c;

			srand(SEED);
			for (int i = 0; i < N * d; i++)
				x[i] = all[a].others * (uniform() - 0.3);
			for (int i = 0; i < 300; i++) /* not where the numbers are measured */
				x[(33 * i + 1) * d] = all[a].few * (i % 2 ? 1 : -1) * (1 + uniform());
			clusters_open(&c, x, NULL, N, d, K, 2, N);
			c.km.lanes = all_lanes[l];
			for (int i = 0; i < K; i++)
				memcpy(c.km.center + i * d, x + (33 * i + i % 3) * d, d * sizeof(double));
			for (int i = 0; i < 8; i++)
			{
				memcpy(before, c.km.center, K * d * sizeof(double));
				if (mrc_kmeans_iterate(&c.km) != MRC_OK)
					assert_true(all[a].few == 1e300);
				for (int row = 0; row < N; row++)
					assert_true(is_nearest(&c.km, before, x + row * d, c.km.label[row]) ||
								all[a].few == 1e300);
			}
			if (mrc_kmeans_finish(&c.km) == MRC_OK)
				for (int row = 0; row < N; row++)
					assert_int_equal(c.km.label[row],
									 mrc_kmeans_nearest(c.km.center, K, d, x + row * d, NULL));
			clusters_close(&c);
			free(x);
		}
}

/* What leaves a cluster takes all its digits along, by weight or by size; the others' centre and cost are theirs. */
static void
test_kmeans_cancellation(void **state)
{
	static const struct
	{
		double heavy;
		double light;
		double size;
	} all[] = {{1, 1, 1}, {1e12, 1e-12, 1}, {1e100, 1e-100, 1}, {1, 1, 1e9}, {1, 1, 1e14}};

	(void) state;
	for (size_t a = 0; a < sizeof(all) / sizeof(all[0]); a++)
	{
		double s = all[a].size;
		double h = all[a].heavy;
		double l = all[a].light;
		double x[] = {-s, s, 0.3, 0.2, 0.25, -1.15 * s, 1.15 * s, 0.1, -1.16 * s, 1.16 * s};
		double weight[] = {h, h, l, l, l, h, h, l, h, h};
		double cost;
		Clusters c;

		if (h > 1) /* the heavy ones leave, the light ones stay */
			weight[5] = weight[6] = weight[8] = weight[9] = l;
		clusters_open(&c, x, weight, 10, 1, 3, 1, 10);
		memcpy(c.km.center, (const double[]){0, -2.2 * s, 2.2 * s}, 3 * sizeof(double));
		for (int i = 0; i < 6; i++)
			assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_OK);
		assert_true(fabs(c.km.center[0] - 0.2125) < 1e-9 * s);
		assert_true(fabs(c.km.size[0] - 4 * l) <= 1e-9 * l);
		cost = c.km.cost;
		assert_int_equal(mrc_kmeans_finish(&c.km), MRC_OK);
		assert_true(fabs(c.km.cost - cost) <= 1e-9 * cost);
		clusters_close(&c);
	}
}

/* One number far from all others, which is not among those measured: the start gets along, and costs keep their digits. */
static void
test_kmeans_outlier(void **state)
{
	enum
	{
		N = 10000,
		K = 6
	};
	static const double all[] = {1e3, 1e12, 1e18, 1e30, 1e60, 1e120};

	(void) state;
	for (size_t a = 0; a < sizeof(all) / sizeof(all[0]); a++)
	{
		double *x = blobs(N, 2, 5, 1000, 0);
		Clusters c;
		double cost;

		x[2] = all[a];
		clusters_open(&c, x, NULL, N, 2, K, 2, N);
		assert_int_equal(mrc_kmeans_start(&c.km), MRC_OK);
		for (int i = 0; i < 20; i++)
			assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_OK);
		cost = c.km.cost;
		assert_int_equal(mrc_kmeans_finish(&c.km), MRC_OK);
		assert_true(c.km.cost < N * 2 * 0.2 || all[a] > 1e20);
		assert_true(fabs(c.km.cost - cost) < 1e-6 * cost);
		clusters_close(&c);
		free(x);
	}
}

/* A whole training; the last word is mrc_kmeans_order()'s. */
static void
train(MrcKmeans *km)
{
	assert_int_equal(mrc_kmeans_start(km), MRC_OK);
	for (int i = 0; i < 10; i++)
		assert_int_equal(mrc_kmeans_iterate(km), MRC_OK);
	assert_int_equal(mrc_kmeans_finish(km), MRC_OK);
	assert_int_equal(mrc_kmeans_order(km), MRC_OK);
}

static void
same_clusters(const MrcKmeans *a, const MrcKmeans *b)
{
	size_t k = (size_t) a->k;

	assert_memory_equal(a->center, b->center, k * a->points.d * sizeof(double));
	assert_memory_equal(a->label, b->label, (size_t) a->points.n * sizeof(int32_t));
	assert_memory_equal(a->size, b->size, k * sizeof(double));
	assert_memory_equal(a->cluster_cost, b->cluster_cost, k * sizeof(double));
	assert_true(a->cost == b->cost);
}

/* Any number of threads and any chunks give the same; so do pauses; another seed gives something else. */
static void
test_kmeans_threads_agree(void **state)
{
	static const int64_t all[] = {9000, 90000}; /* all points, and a sample, in the start */

	(void) state;
	for (int a = 0; a < 2; a++)
	{
		int64_t n = all[a];
		double *x = blobs(n, 6, 50, 4, 100);
		int n_interrupts = 0;
		const MrcHost host = {often_for_a_while, count_interrupt, &n_interrupts};
		Clusters one;
		Clusters other;

		clusters_open(&one, x, NULL, n, 6, 12, 1, n);
		clusters_open(&other, x, NULL, n, 6, 12, 4, n / 11);
		train(&one.km);
		train(&other.km);
		same_clusters(&one.km, &other.km);
		clusters_close(&other);

		clusters_open(&other, x, NULL, n, 6, 12, 2, n);
		pool_free(other.km.pool);
		assert_int_equal(mrc_pool_start(&other.km.pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
		train(&other.km);
		assert_true(n_interrupts > 0);
		same_clusters(&one.km, &other.km);
		other.km.seed++;
		train(&other.km);
		assert_true(memcmp(one.km.center, other.km.center, 12 * 6 * sizeof(double)) != 0);
		clusters_close(&one);
		clusters_close(&other);
		free(x);
	}
}

/* Pauses among points that only double precision can tell apart change nothing. */
static void
test_kmeans_pauses(void **state)
{
	enum
	{
		N = 12000,
		D = 100,
		K = 200
	};
	double *x = malloc((size_t) N * D * sizeof(double));
	int n_interrupts = 0;
	const MrcHost host = {often_for_a_while, count_interrupt, &n_interrupts};
	Clusters one;
	Clusters other;

	(void) state;
	srand(SEED);
	for (int i = 0; i < N * D; i++)
		x[i] = 1e6 * (i / D % 7) + (int) (3 * uniform());
	clusters_open(&one, x, NULL, N, D, K, 2, N);
	clusters_open(&other, x, NULL, N, D, K, 2, N);
	pool_free(other.km.pool);
	assert_int_equal(mrc_pool_start(&other.km.pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
	memcpy(one.km.center, x, K * D * sizeof(double));
	memcpy(other.km.center, x, K * D * sizeof(double));
	for (int i = 0; i < 4; i++)
	{
		assert_int_equal(mrc_kmeans_iterate(&one.km), MRC_OK);
		n_interrupts = 0;
		assert_int_equal(mrc_kmeans_iterate(&other.km), MRC_OK);
		assert_true(one.km.n_changed == other.km.n_changed);
		assert_memory_equal(one.km.center, other.km.center, K * D * sizeof(double));
	}
	n_interrupts = 0;
	assert_int_equal(mrc_kmeans_finish(&one.km), MRC_OK);
	assert_int_equal(mrc_kmeans_finish(&other.km), MRC_OK);
	assert_true(n_interrupts > 0);
	same_clusters(&one.km, &other.km);
	clusters_close(&one);
	clusters_close(&other);
	free(x);
}

/* Points with weights are as so many points; a point without weight has a cluster, and makes none. */
static void
test_kmeans_weights(void **state)
{
	enum
	{
		N = 2000,
		D = 3,
		K = 6
	};
	double *x = blobs(N, D, K, 8, 0);
	double *many = malloc((size_t) 3 * N * D * sizeof(double));
	double weight[N];
	int64_t n = 0;
	Clusters merged;
	Clusters repeated;

	(void) state;
	for (int i = 0; i < N; i++)
	{
		weight[i] = i % 4;
		for (int t = 0; t < i % 4; t++)
			memcpy(many + n++ * D, x + i * D, D * sizeof(double));
	}
	clusters_open(&merged, x, weight, N, D, K, 2, N);
	clusters_open(&repeated, many, NULL, n, D, K, 2, n);
	memcpy(merged.km.center, x + D, K * D * sizeof(double));
	memcpy(repeated.km.center, x + D, K * D * sizeof(double));
	for (int i = 0; i < 8; i++)
	{
		assert_int_equal(mrc_kmeans_iterate(&merged.km), MRC_OK);
		assert_int_equal(mrc_kmeans_iterate(&repeated.km), MRC_OK);
	}
	assert_int_equal(mrc_kmeans_finish(&merged.km), MRC_OK);
	assert_int_equal(mrc_kmeans_finish(&repeated.km), MRC_OK);
	assert_true(fabs(merged.km.cost - repeated.km.cost) < 1e-10 * repeated.km.cost);
	for (int c = 0; c < K; c++)
		assert_true(merged.km.size[c] == repeated.km.size[c]);
	for (int i = 0; i < K * D; i++)
		assert_true(fabs(merged.km.center[i] - repeated.km.center[i]) < 1e-10);
	for (int i = 0; i < N; i++)
		assert_in_range(merged.km.label[i], 0, K - 1);
	clusters_close(&merged);
	clusters_close(&repeated);

	/* A few points far away, which are nothing: no centre goes there. */
	for (int i = 0; i < 10; i++)
	{
		weight[i] = 0;
		x[i * D] = 1e5;
	}
	clusters_open(&merged, x, weight, N, D, K, 2, N);
	train(&merged.km);
	for (int c = 0; c < K; c++)
		assert_true(merged.km.center[c * D] < 1e3);
	clusters_close(&merged);
	free(x);
	free(many);
}

/* The start finds clusters that are there; one per distinct point; empty clusters get points. */
static void
test_kmeans_start(void **state)
{
	double *x = blobs(20000, 8, 30, 100, 0);
	double repeated[500];
	Clusters c;

	(void) state;
	clusters_open(&c, x, NULL, 20000, 8, 30, 2, 20000);
	train(&c.km);
	assert_true(c.km.cost < 20000 * 8 * 0.2); /* the variance of a coordinate is 1 / 6 */
	for (int i = 1; i < 30; i++)
		assert_true(c.km.size[i - 1] >= c.km.size[i]);
	clusters_close(&c);
	free(x);

	for (int i = 0; i < 500; i++)
		repeated[i] = i * 7 % 40;
	clusters_open(&c, repeated, NULL, 500, 1, 40, 2, 500);
	train(&c.km);
	assert_true(c.km.cost == 0);
	clusters_close(&c);

	/* All centres alike: a cluster each for the points that are farthest. */
	clusters_open(&c, repeated, NULL, 500, 1, 5, 2, 500);
	for (int i = 0; i < 5; i++)
		c.km.center[i] = 3;
	for (int i = 0; i < 2; i++)
		assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_OK);
	for (int i = 0; i < 5; i++)
		assert_true(c.km.size[i] > 0);
	clusters_close(&c);

	/* Fewer distinct points than centres, and numbers whose squares overflow. */
	clusters_open(&c, (const double[]){1, 1, 2, 2}, NULL, 4, 1, 3, 1, 4);
	train(&c.km);
	assert_true(c.km.cost == 0 && c.km.size[0] == 2 && c.km.size[1] == 2 && c.km.size[2] == 0);
	clusters_close(&c);
	clusters_open(&c, (const double[]){1e200, -1e200, 0, 1}, NULL, 4, 1, 2, 1, 4);
	assert_int_equal(mrc_kmeans_start(&c.km), MRC_NOTFINITE);
	memcpy(c.km.center, (const double[]){0, 1}, 2 * sizeof(double));
	assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_NOTFINITE);
	c.km.n_iterations = 0;
	assert_int_equal(mrc_kmeans_finish(&c.km), MRC_NOTFINITE);
	clusters_close(&c);
}

/* While points are pruned for many iterations, what finish says is what the definition says; ties go to the lowest. */
static void
test_kmeans_finish(void **state)
{
	enum
	{
		N = 3000,
		K = 25
	};
	double x[N * 2];
	Clusters c;
	double cost = 0;

	(void) state;
	for (int i = 0; i < N; i++) /* a grid, where many points are as far from two centres */
	{
		x[2 * i] = i % 60 * 0.1;
		x[2 * i + 1] = i / 60 * 0.1;
	}
	clusters_open(&c, x, NULL, N, 2, K, 2, N);
	for (int i = 0; i < K; i++)
	{
		c.km.center[2 * i] = 0.5 + i % 5;
		c.km.center[2 * i + 1] = 0.5 + i / 5;
	}
	assert_int_equal(mrc_kmeans_finish(&c.km), MRC_OK);
	for (int i = 0; i < N; i++)
	{
		double far;
		int nearest = mrc_kmeans_nearest(c.km.center, K, 2, x + 2 * i, &far);
		int first = 0;

		for (int k = 1; k < K; k++)
			if (squared(x + 2 * i, c.km.center + 2 * k, 2) < squared(x + 2 * i, c.km.center + 2 * first, 2))
				first = k;
		assert_int_equal(nearest, first);
		assert_int_equal(c.km.label[i], nearest);
		cost += far;
	}
	assert_true(fabs(cost - c.km.cost) <= 1e-12 * cost);
	for (int i = 0; i < 40; i++)
		assert_int_equal(mrc_kmeans_iterate(&c.km), MRC_OK);
	assert_int_equal(mrc_kmeans_finish(&c.km), MRC_OK);
	for (int i = 0; i < N; i++)
		assert_int_equal(c.km.label[i], mrc_kmeans_nearest(c.km.center, K, 2, x + 2 * i, NULL));
	clusters_close(&c);
}

static bool
soon_in_work(void *arg)
{
	return work_us() - ((Job *) arg)->last_us > 30000;
}

/* All steps of a long training end soon when they are told to. */
static void
test_kmeans_cancels_in_time(void **state)
{
	enum
	{
		N = 60000,
		D = 20,
		K = 900
	};
	double *x = blobs(N, D, N, 1, 0);

	(void) state;
	for (int what = 0; what < 5; what++)
	{
		Job job = {.last_us = work_us()};
		const MrcHost host = {soon_in_work, refuse, &job};
		MrcStatus status = MRC_OK;
		Clusters c;

		clusters_open(&c, x, NULL, N, D, K, 2, N);
		pool_free(c.km.pool);
		assert_int_equal(mrc_pool_start(&c.km.pool, malloc(mrc_pool_bytes(2)), 2, &host), MRC_OK);
		memcpy(c.km.center, x, K * D * sizeof(double));
		for (int i = 0; i < N; i++)
			c.km.label[i] = i % K;
		job.last_us = work_us();
		for (int i = 0; i < 100000 && status == MRC_OK; i++)
		{
			double silhouette;
			void *scratch = NULL;

			c.km.n_iterations = 0; /* else iterations get so short that nobody waits for them */
			if (what >= 3)
				scratch = aligned(mrc_silhouette_scratch_bytes(&c.km.points, K, 2));
			status = what == 0 ? mrc_kmeans_start(&c.km)
				: what == 1	   ? mrc_kmeans_iterate(&c.km)
				: what == 2	   ? mrc_kmeans_finish(&c.km)
				: what == 3
				? mrc_silhouette(c.km.pool, &c.km.points, c.km.label, K, scratch, &silhouette)
				: mrc_silhouette_pairs(c.km.pool, &c.km.points, c.km.label, K, scratch, &silhouette);
			free(scratch);
		}
		assert_int_equal(status, MRC_CANCELLED);
		assert_in_range(work_us() - job.last_us, 30000, 130000);
		clusters_close(&c);
	}
	free(x);
}

static void
test_kmeans_distinct(void **state)
{
	double x[3000];
	double weight[1500];
	void *scratch = aligned(mrc_kmeans_distinct_bytes(1000));
	MrcPool *pool = pool_of(2);
	int n;

	(void) state;
	for (int i = 0; i < 1500; i++)
	{
		x[2 * i] = i % 100;
		x[2 * i + 1] = i % 200 < 100 ? 0.0 : -0.0;
		weight[i] = i % 100 != 17;
	}
	double *chunk[] = {x, x + 2 * 750};
	double *weights[] = {weight, weight + 750};
	MrcPoints points = {1500, 2, 750, chunk, NULL};

	assert_int_equal(mrc_kmeans_distinct(pool, &points, 1000, &n, scratch), MRC_OK);
	assert_int_equal(n, 100);
	assert_int_equal(mrc_kmeans_distinct(pool, &points, 7, &n, scratch), MRC_OK);
	assert_int_equal(n, 7);
	points.weight = weights;
	assert_int_equal(mrc_kmeans_distinct(pool, &points, 1000, &n, scratch), MRC_OK);
	assert_int_equal(n, 99);
	pool_free(pool);
	free(scratch);
}

/* The silhouette by definition: means over all other points. */
static double
silhouette_by_definition(const double *x, const double *weight, const int32_t *label, int n, int d, int k,
						 bool squares)
{
	double total = 0;
	double all = 0;

	for (int i = 0; i < n; i++)
	{
		double *sum = calloc((size_t) k, sizeof(double));
		double *count = calloc((size_t) k, sizeof(double));
		double other = INFINITY;
		double own;

		for (int j = 0; j < n; j++)
		{
			double far = squared(x + i * d, x + j * d, d);

			sum[label[j]] += (weight ? weight[j] : 1) * (squares ? far : sqrt(far));
			count[label[j]] += weight ? weight[j] : 1;
		}
		for (int c = 0; c < k; c++)
			if (c != label[i] && count[c] > 0)
				other = fmin(other, sum[c] / count[c]);
		own = sum[label[i]] / (count[label[i]] - 1);
		if (count[label[i]] > 1 && fmax(own, other) > 0)
			total += (weight ? weight[i] : 1) * (other - own) / fmax(own, other);
		all += weight ? weight[i] : 1;
		free(sum);
		free(count);
	}
	return total / all;
}

static void
test_silhouette(void **state)
{
	enum
	{
		N = 900,
		D = 5,
		K = 8
	};
	static const double offsets[] = {0, 1e6};

	(void) state;
	for (int a = 0; a < 4; a++)
	{
		double *x = blobs(N, D, K, 2, offsets[a % 2]);
		double weight[N];
		double have[2];
		Clusters c;
		Clusters other;
		void *scratch;

		for (int i = 0; i < N; i++)
			weight[i] = 1 + i % 3;
		clusters_open(&c, x, a / 2 ? weight : NULL, N, D, K + 2, 3, 100);
		clusters_open(&other, x, a / 2 ? weight : NULL, N, D, K + 2, 1, N);
		scratch = aligned(mrc_silhouette_scratch_bytes(&c.km.points, K + 2, 3));
		for (int i = 0; i < N; i++)
			c.km.label[i] =
				i == 3 ? 7 : (i * 31 + i / 7) % 7 + (i % 7 == 0); /* 7 has one point or more; 8 and 9 none */
		for (int squares = 0; squares < 2; squares++)
		{
			double want =
				silhouette_by_definition(x, a / 2 ? weight : NULL, c.km.label, N, D, K + 2, squares);

			for (int t = 0; t < 2; t++)
				assert_int_equal((squares ? mrc_silhouette : mrc_silhouette_pairs)(
									 t ? other.km.pool : c.km.pool, t ? &other.km.points : &c.km.points,
									 c.km.label, K + 2, scratch, &have[t]),
								 MRC_OK);
			assert_true(have[0] == have[1]);
			assert_true(fabs(have[0] - want) < 1e-9);
		}
		/* One cluster, and points that are all alike. */
		for (int i = 0; i < N; i++)
			c.km.label[i] = 3;
		assert_int_equal(mrc_silhouette(c.km.pool, &c.km.points, c.km.label, K, scratch, have), MRC_OK);
		assert_true(isnan(have[0]));
		for (int i = 0; i < N; i++)
		{
			c.km.label[i] = i % 2;
			memcpy(c.x + i * D, x, D * sizeof(double));
		}
		assert_int_equal(mrc_silhouette(c.km.pool, &c.km.points, c.km.label, K, scratch, have), MRC_OK);
		assert_true(have[0] == 0);
		assert_int_equal(mrc_silhouette_pairs(c.km.pool, &c.km.points, c.km.label, K, scratch, have), MRC_OK);
		assert_true(have[0] == 0);
		for (int i = 0; i < N; i++) /* squares that overflow */
			c.x[i * D] = i * 1e200;
		assert_int_equal(mrc_silhouette(c.km.pool, &c.km.points, c.km.label, K, scratch, have),
						 MRC_NOTFINITE);
		assert_int_equal(mrc_silhouette_pairs(c.km.pool, &c.km.points, c.km.label, K, scratch, have),
						 MRC_NOTFINITE);
		free(scratch);
		clusters_close(&c);
		clusters_close(&other);
		free(x);
	}
}

/* ---- blocks ---- */

/* Reference values from the xxHash project's specification test. */
static void
test_hash(void **state)
{
	(void) state;
	assert_true(mrc_hash64("", 0, 0) == UINT64_C(0xEF46DB3751D8E999));
	assert_true(mrc_hash64("a", 1, 0) == UINT64_C(0xD24EC4F1A98C6E5B));
	assert_true(mrc_hash64("abc", 3, 0) == UINT64_C(0x44BC2CF5AD770999));
	assert_true(mrc_hash64("Nobody inspects the spammish repetition", 39, 0) == UINT64_C(0xFBCEA83C8A378BF1));
}

/* The authors' vectors: the key and the data are 0, 1, 2 … */
static void
test_seal(void **state)
{
	static const struct
	{
		size_t n;
		unsigned char seal[MRC_SEAL_BYTES];
	} vectors[] = {
		{0, {0xa3, 0x81, 0x7f, 0x04, 0xba, 0x25, 0xa8, 0xe6, 0x6d, 0xf6, 0x72, 0x14, 0xc7, 0x55, 0x02, 0x93}},
		{1,
		 {0xda, 0x87, 0xc1, 0xd8, 0x6b, 0x99, 0xaf, 0x44, 0x34, 0x76, 0x59, 0x11, 0x9b, 0x22, 0xfc, 0x45}}};
	unsigned char key[MRC_SEAL_BYTES];
	unsigned char data[64];
	unsigned char seal[MRC_SEAL_BYTES];
	unsigned char other[MRC_SEAL_BYTES];

	(void) state;
	for (unsigned char i = 0; i < sizeof(data); i++)
		data[i] = i;
	memcpy(key, data, sizeof(key));
	for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++)
	{
		mrc_seal(key, data, vectors[i].n, seal);
		assert_memory_equal(seal, vectors[i].seal, sizeof(seal));
	}
	/* Each bit of data and key counts, and so does the length. */
	mrc_seal(key, data, 43, seal);
	mrc_seal(key, data, 42, other);
	assert_memory_not_equal(seal, other, sizeof(seal));
	for (int bit = 0; bit < 8 * (43 + (int) sizeof(key)); bit++)
	{
		unsigned char *at = bit < 8 * 43 ? &data[bit / 8] : &key[bit / 8 - 43];

		*at ^= (unsigned char) (1 << bit % 8);
		mrc_seal(key, data, 43, other);
		assert_memory_not_equal(seal, other, sizeof(seal));
		*at ^= (unsigned char) (1 << bit % 8);
	}
}

static unsigned char *
block_of(bool text, int n_rows, int rank, size_t *n_bytes)
{
	int64_t *ints = malloc((size_t) (n_rows + 1) * sizeof(int64_t));
	int64_t *starts = malloc((size_t) (n_rows + 1) * sizeof(int64_t));
	char *strings = malloc((size_t) n_rows * 10 + 1);
	float *factors = malloc((size_t) n_rows * rank * sizeof(float) + 1);
	unsigned char *block;

	for (int i = 0; i <= n_rows; i++)
	{
		ints[i] = (int64_t) i * INT64_C(1000000007) - 5;
		starts[i] =
			i == 0 ? 3 : starts[i - 1] + i % 4; /* some are empty, and the first does not start at 0 */
	}
	for (int i = 0; i < n_rows * 10; i++)
		strings[i] = (char) ('a' + i % 26);
	for (int i = 0; i < n_rows * rank; i++)
		factors[i] = (float) i / 3;
	*n_bytes = mrc_block_bytes(text, n_rows, rank, (size_t) (starts[n_rows] - starts[0]));
	block = malloc(*n_bytes);
	mrc_block_encode(block, text, n_rows, rank, ints, strings, starts, factors);
	free(ints);
	free(starts);
	free(strings);
	free(factors);
	return block;
}

static void
test_block_round_trip(void **state)
{
	(void) state;
	for (int text = 0; text < 2; text++)
		for (int n_rows = 0; n_rows < 50; n_rows += 7)
		{
			size_t n_bytes;
			unsigned char *data = block_of(text, n_rows, 3, &n_bytes);
			const char *why;
			MrcBlock block;
			float factor[3];
			int64_t start = 3;

			assert_int_equal(mrc_block_open(&block, data, n_bytes, &why), MRC_OK);
			assert_int_equal(block.n_rows, n_rows);
			assert_int_equal(block.rank, 3);
			assert_int_equal(block.text, text);
			for (int i = 0; i < n_rows; i++)
			{
				mrc_block_factors(&block, i, i + 1, factor);
				assert_true(factor[2] == (float) (3 * i + 2) / 3);
				if (!text)
					assert_true(mrc_block_int(&block, i) == (int64_t) i * INT64_C(1000000007) - 5);
				else
				{
					size_t length;
					const char *string = mrc_block_string(&block, i, &length);

					assert_int_equal(length, (i + 1) % 4);
					if (length > 0)
						assert_int_equal(string[0], 'a' + start % 26);
					start += (int64_t) length;
				}
			}
			free(data);
		}
}

/* The bytes of a small block, so that the format cannot change unnoticed. */
static void
test_block_bytes_are_fixed(void **state)
{
	const int64_t id = 42;
	const float factors[] = {1, -2};
	unsigned char data[80];

	(void) state;
	assert_int_equal(mrc_block_bytes(false, 1, 2, 0), 80);
	mrc_block_encode(data, false, 1, 2, &id, NULL, NULL, factors);
	assert_memory_equal(data, "MRFB\1\0\1\0\1\0\0\0\2\0\0\0\10\0\0\0\0\0\0\0\10\0\0\0\0\0\0\0", 32);
	assert_memory_equal(data + 64, "\52\0\0\0\0\0\0\0\0\0\200\77\0\0\0\300", 16);
	assert_true(mrc_hash64(data + 64, 16, mrc_hash64(data, 32, 0)) ==
				((uint64_t) data[32] | (uint64_t) data[33] << 8 | (uint64_t) data[34] << 16 |
				 (uint64_t) data[35] << 24 | (uint64_t) data[36] << 32 | (uint64_t) data[37] << 40 |
				 (uint64_t) data[38] << 48 | (uint64_t) data[39] << 56));
}

/* No flipped bit, no cut, no made-up header gets through, and none is read beyond its end. */
static void
test_block_damage(void **state)
{
	(void) state;
	for (int text = 0; text < 2; text++)
	{
		size_t n_bytes;
		unsigned char *data = block_of(text, 20, 2, &n_bytes);
		const char *why;
		MrcBlock block;

		for (size_t bit = 0; bit < n_bytes * 8; bit++)
		{
			data[bit / 8] ^= (unsigned char) (1 << bit % 8);
			assert_int_equal(mrc_block_open(&block, data, n_bytes, &why), MRC_CORRUPT);
			assert_non_null(why);
			data[bit / 8] ^= (unsigned char) (1 << bit % 8);
		}
		for (size_t cut = 0; cut < n_bytes; cut++)
		{
			unsigned char *part = malloc(cut + 1);

			memcpy(part, data, cut);
			part = realloc(part, cut ? cut : 1);
			assert_int_equal(mrc_block_open(&block, part, cut, &why), MRC_CORRUPT);
			free(part);
		}
		free(data);
	}
}

/* A header that lies, with a checksum that is right. */
static void
forge(unsigned char *data, size_t n_bytes, int at, uint64_t value, int width)
{
	uint64_t sum;

	memcpy(data + at, &value, (size_t) width);
	sum = mrc_hash64(data + 64, n_bytes - 64, mrc_hash64(data, 32, 0));
	memcpy(data + 32, &sum, 8);
}

static void
test_block_forged(void **state)
{
	static const uint64_t lies[] = {
		0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, UINT64_MAX, UINT64_MAX - 63, UINT64_MAX / 2};
	const int fields[][2] = {{8, 4}, {12, 4}, {16, 8}, {24, 8}};

	(void) state;
	for (int text = 0; text < 2; text++)
		for (int f = 0; f < 4; f++)
			for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
			{
				size_t n_bytes;
				unsigned char *data = block_of(text, 20, 2, &n_bytes);
				const char *why;
				MrcBlock block;

				forge(data, n_bytes, fields[f][0], lies[i], fields[f][1]);
				assert_int_equal(mrc_block_open(&block, data, n_bytes, &why), MRC_CORRUPT);
				free(data);
			}

	/* Another format version, another kind of ids, something in the reserved bytes. */
	for (int i = 0; i < 4; i++)
	{
		static const int at[] = {4, 6, 7, 50};
		size_t size;
		unsigned char *damaged = block_of(false, 20, 2, &size);
		const char *reason;
		MrcBlock opened;

		forge(damaged, size, at[i], 9, 1);
		assert_int_equal(mrc_block_open(&opened, damaged, size, &reason), MRC_CORRUPT);
		free(damaged);
	}

	/* Text offsets that fall, or leave the section. */
	size_t n_bytes;
	unsigned char *data = block_of(true, 20, 2, &n_bytes);
	const char *why;
	MrcBlock block;

	forge(data, n_bytes, 64 + 4 * 5, 0, 4);
	assert_int_equal(mrc_block_open(&block, data, n_bytes, &why), MRC_CORRUPT);
	forge(data, n_bytes, 64 + 4 * 19, 100000, 4);
	assert_int_equal(mrc_block_open(&block, data, n_bytes, &why), MRC_CORRUPT);
	free(data);
}

static void
test_block_limits(void **state)
{
	(void) state;
	assert_int_equal(mrc_block_bytes(false, 1, 0, 0), 0);
	assert_int_equal(mrc_block_bytes(false, 1, MRC_MAX_RANK + 1, 0), 0);
	assert_int_equal(mrc_block_bytes(false, -1, 1, 0), 0);
	assert_int_equal(mrc_block_bytes(true, 1, 1, (size_t) UINT32_MAX + 1), 0);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pool_runs_each_index_once),
		cmocka_unit_test(test_pool_reports_failure_and_goes_on),
		cmocka_unit_test(test_pool_pauses_and_resumes),
		cmocka_unit_test(test_pool_cancels_in_time),
		cmocka_unit_test(test_pool_survives_longjmp),
		cmocka_unit_test(test_csr_from_triples),
		cmocka_unit_test(test_csr_gives_back_its_own),
		cmocka_unit_test(test_csr_pauses),
		cmocka_unit_test(test_als_hkv),
		cmocka_unit_test(test_als_rendle),
		cmocka_unit_test(test_als_explicit),
		cmocka_unit_test(test_als_every_rank),
		cmocka_unit_test(test_als_extreme_parameters),
		cmocka_unit_test(test_als_loss_after_15),
		cmocka_unit_test(test_als_nonnegative),
		cmocka_unit_test(test_als_threads_agree),
		cmocka_unit_test(test_als_loss_falls),
		cmocka_unit_test(test_als_small_and_singular),
#if defined(__x86_64__) || defined(__aarch64__)
		cmocka_unit_test(test_als_smallest),
#endif
		cmocka_unit_test(test_als_pauses),
		cmocka_unit_test(test_als_start_is_normal),
		cmocka_unit_test(test_search_by_definition),
		cmocka_unit_test(test_search_many_memory),
		cmocka_unit_test(test_folds_are_rows),
		cmocka_unit_test(test_folds_that_fail),
		cmocka_unit_test(test_top_order),
		cmocka_unit_test(test_own_history),
		cmocka_unit_test(test_ranking_by_hand),
		cmocka_unit_test(test_ranking_against_definition),
		cmocka_unit_test(test_ranking_repeats),
		cmocka_unit_test(test_rmse_against_definition),
		cmocka_unit_test(test_kmeans_is_lloyd),
		cmocka_unit_test(test_kmeans_extremes),
		cmocka_unit_test(test_kmeans_cancellation),
		cmocka_unit_test(test_kmeans_outlier),
		cmocka_unit_test(test_kmeans_threads_agree),
		cmocka_unit_test(test_kmeans_pauses),
		cmocka_unit_test(test_kmeans_weights),
		cmocka_unit_test(test_kmeans_start),
		cmocka_unit_test(test_kmeans_finish),
		cmocka_unit_test(test_kmeans_cancels_in_time),
		cmocka_unit_test(test_kmeans_distinct),
		cmocka_unit_test(test_silhouette),
		cmocka_unit_test(test_hash),
		cmocka_unit_test(test_seal),
		cmocka_unit_test(test_block_round_trip),
		cmocka_unit_test(test_block_bytes_are_fixed),
		cmocka_unit_test(test_block_damage),
		cmocka_unit_test(test_block_forged),
		cmocka_unit_test(test_block_limits),
	};

	print_message("seed %d\n", SEED);
	cmocka_set_test_filter(getenv("TEST")); /* NULL: all; else a pattern with * and ? */
	return cmocka_run_group_tests_name("core", tests, NULL, NULL);
}
