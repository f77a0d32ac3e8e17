/*
 * kmeans_core.c: how good and how fast the clustering of extension/core is, without a server.
 *
 *     make -C tests/bench -f als_core.mk
 *     tests/bench/bin/kmeans_core normal|blobs|heavy N D K THREADS [SEEDS [LANES]]
 *     tar xf tests/data/retail-by-day.tar.xz -C DIRECTORY && tests/bench/bin/kmeans_core DIRECTORY/by-day K THREADS [SEEDS [LANES]]
 *
 * The second form clusters the sales before 2011-07-01 by (UnitPrice, Quantity, day of week), duplicates merged.  For each
 * seed a line tells the cost after the start, and after Lloyd until the cost falls by less than 1e-4; then come the
 * distribution of the last, and seconds of the start, of the first iteration and of the mean of those that follow, wall and
 * CPU of all threads.  GFLOP/s are those of the plain algorithm, 2 n k d an iteration, whatever was really computed, and
 * GB/s those of reading the points once.
 */
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core.h"

#define FEATURES 7

static double
clock_of(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double) ts.tv_sec + (double) ts.tv_nsec * 1e-9;
}

static void *
allocate(size_t n_bytes)
{
	void *memory = aligned_alloc(64, (n_bytes + 64) / 64 * 64);

	if (memory == NULL)
		exit(2);
	memset(memory, 0, n_bytes);
	return memory;
}

static bool
never(void *arg)
{
	(void) arg;
	return false;
}

static uint64_t random_state = 88172645463325252u;

static double
uniform(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (double) (random_state >> 11) / 9007199254740992.0;
}

static double
normal(void)
{
	return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static double *
generate(const char *shape, int64_t n, int d, int k)
{
	double *x = allocate((size_t) n * d * sizeof(double));
	double *center = allocate((size_t) k * d * sizeof(double));

	for (int64_t i = 0; i < (int64_t) k * d; i++)
		center[i] = 10 * normal();
	for (int64_t i = 0; i < n; i++)
	{
		int of = (int) (uniform() * k);
		double size = strcmp(shape, "heavy") == 0 ? pow(1 - uniform(), -1) : 1;

		for (int j = 0; j < d; j++)
			x[i * d + j] = size * normal() + (strcmp(shape, "blobs") == 0 ? center[of * d + j] : 0);
	}
	free(center);
	return x;
}

/* ---- retail ---- */

/* The text of column number `want` of a line; false when there is none. */
static bool
column(const char *line, int want, char *out, size_t size)
{
	bool quoted = false;
	size_t n = 0;
	int at = 0;

	for (; *line != '\0' && *line != '\n' && *line != '\r'; line++)
	{
		if (*line == '"')
			quoted = !quoted;
		else if (*line == ',' && !quoted)
			at++;
		else if (at == want && n + 1 < size)
			out[n++] = *line;
	}
	out[n] = '\0';
	return at >= want;
}

/* 0 Sunday … 6 Saturday. */
static int
weekday(const char *date)
{
	struct tm tm = {.tm_mday = (int) strtol(date + 8, NULL, 10),
					.tm_mon = (int) strtol(date + 5, NULL, 10) - 1,
					.tm_year = (int) strtol(date, NULL, 10) - 1900,
					.tm_hour = 12};

	timegm(&tm);
	return tm.tm_wday;
}

static int
compare_rows(const void *a, const void *b)
{
	const double *x = a;
	const double *y = b;

	for (int j = 0; j < FEATURES; j++)
		if (x[j] != y[j])
			return x[j] < y[j] ? -1 : 1;
	return 0;
}

/* The rows of all files of a directory; *n of them. */
static double *
read_sales(const char *directory, int64_t *n)
{
	/* by frequency: Thursday, Tuesday, Monday, Wednesday, Friday, Sunday (the last is dropped) */
	static const int place[7] = {-1, 2, 1, 3, 0, 4, -1};
	double *x = allocate((size_t) 600000 * FEATURES * sizeof(double));
	DIR *dir = opendir(directory);
	struct dirent *entry;
	char line[4096];
	char text[64];

	*n = 0;
	while (dir && (entry = readdir(dir)) != NULL)
	{
		FILE *file;

		if (strstr(entry->d_name, ".csv") == NULL || strcmp(entry->d_name, "2011-07-01") >= 0)
			continue;
		snprintf(line, sizeof(line), "%s/%s", directory, entry->d_name);
		file = fopen(line, "r");
		if (file == NULL || fgets(line, sizeof(line), file) == NULL)
			exit(2);
		while (fgets(line, sizeof(line), file) && *n < 600000)
		{
			double *row = x + (*n)++ * FEATURES;

			if (column(line, 5, text, sizeof(text)))
				row[0] = strtod(text, NULL);
			if (column(line, 3, text, sizeof(text)))
				row[1] = strtod(text, NULL);
			if (column(line, 4, text, sizeof(text)) && place[weekday(text)] >= 0)
				row[2 + place[weekday(text)]] = 1;
		}
		fclose(file);
	}
	if (dir)
		closedir(dir);
	return x;
}

/* Merges equal rows; the number left. */
static int64_t
merge(double *x, int64_t n, double *weight)
{
	int64_t n_left = 0;

	qsort(x, (size_t) n, FEATURES * sizeof(double), compare_rows);
	for (int64_t i = 0; i < n; i++)
	{
		if (i == 0 || compare_rows(x + (n_left - 1) * FEATURES, x + i * FEATURES) != 0)
		{
			memmove(x + n_left * FEATURES, x + i * FEATURES, FEATURES * sizeof(double));
			weight[n_left++] = 0;
		}
		weight[n_left - 1]++;
	}
	return n_left;
}

/* ---- main ---- */

static int
compare_doubles(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static long
number(int argc, char **argv, int i, long otherwise)
{
	return argc > i ? strtol(argv[i], NULL, 10) : otherwise;
}

enum
{
	START,
	FIRST,
	NEXT,
	FINISH,
	N_WHAT
};

static double wall[N_WHAT];
static double cpu[N_WHAT];
static int64_t n_times[N_WHAT];

static void
timed(MrcKmeans *km, MrcStatus (*what)(MrcKmeans *), int as)
{
	double wall_begin = clock_of(CLOCK_MONOTONIC);
	double cpu_begin = clock_of(CLOCK_PROCESS_CPUTIME_ID);

	if (what(km) != MRC_OK)
		exit(1);
	wall[as] += clock_of(CLOCK_MONOTONIC) - wall_begin;
	cpu[as] += clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu_begin;
	n_times[as]++;
}

int
main(int argc, char **argv)
{
	static const char *const names[] = {"start", "first iteration", "other iterations", "finish"};
	const MrcHost host = {never, never, NULL};
	bool made = argc > 1 &&
		(strcmp(argv[1], "normal") == 0 || strcmp(argv[1], "blobs") == 0 || strcmp(argv[1], "heavy") == 0);
	int at = made ? 4 : 2;
	int n_threads = (int) number(argc, argv, at + 1, 0);
	int n_seeds = (int) number(argc, argv, at + 2, 1);
	MrcKmeans km = {.points = {.n = number(argc, argv, 2, 0), .d = (int) number(argc, argv, 3, 0)},
					.k = (int) number(argc, argv, at, 0),
					.n_starts = MRC_KMEANS_STARTS,
					.lanes = (int) number(argc, argv, at + 3, 0)};
	double *costs = allocate((size_t) (n_seeds + 1) * sizeof(double));
	double *x;
	double *weight = NULL;
	double numbers;

	if (km.k < 1 || n_threads < 1 || n_threads > 256 || n_seeds < 1 ||
		(made && (km.points.n < 1 || km.points.d < 1)))
	{
		fprintf(stderr,
				"usage: kmeans_core normal|blobs|heavy N D K THREADS [SEEDS [LANES]]\n"
				"       kmeans_core DIRECTORY K THREADS [SEEDS [LANES]]\n");
		return 2;
	}
	if (made)
		x = generate(argv[1], km.points.n, km.points.d, km.k);
	else
	{
		int64_t n_rows;

		x = read_sales(argv[1], &n_rows);
		weight = allocate((size_t) n_rows * sizeof(double));
		km.points.d = FEATURES;
		km.points.n = merge(x, n_rows, weight);
		km.points.weight = &weight;
		printf("%ld rows, %ld distinct\n", (long) n_rows, (long) km.points.n);
	}
	km.points.chunk = &x;
	km.points.chunk_rows = km.points.n;
	km.scratch = allocate(mrc_kmeans_scratch_bytes(&km.points, km.k, km.n_starts, n_threads));
	km.center = allocate((size_t) km.k * km.points.d * sizeof(double));
	km.label = allocate((size_t) km.points.n * sizeof(int32_t));
	km.size = allocate((size_t) km.k * sizeof(double));
	km.cluster_cost = allocate((size_t) km.k * sizeof(double));
	if (mrc_pool_start(&km.pool, allocate(mrc_pool_bytes(n_threads)), n_threads, &host) != MRC_OK)
		return 2;
	printf("scratch %.1f MB, points %.1f MB\n",
		   (double) mrc_kmeans_scratch_bytes(&km.points, km.k, km.n_starts, n_threads) / 1e6,
		   (double) km.points.n * km.points.d * 8e-6);

	for (int seed = 0; seed < n_seeds; seed++)
	{
		double first = 0;
		double before = INFINITY;
		int n = 0;

		km.seed = (uint64_t) seed + 1;
		timed(&km, mrc_kmeans_start, START);
		do
		{
			before = n == 0 ? INFINITY : km.cost;
			timed(&km, mrc_kmeans_iterate, n == 0 ? FIRST : NEXT);
			first = n == 0 ? km.cost : first;
			n++;
			if (getenv("VERBOSE"))
				printf("  %d: cost %.10g, %ld changed, wall %.4f\n", n, km.cost, (long) km.n_changed,
					   wall[NEXT]);
		} while (n < 20 && km.n_changed > 0 && km.cost < before * (1 - MRC_KMEANS_TOLERANCE));
		timed(&km, mrc_kmeans_finish, FINISH);
		costs[seed] = km.cost;
		printf("seed %d: cost %.8g after the start, %.8g after %d iterations\n", seed + 1, first, km.cost, n);
	}
	qsort(costs, (size_t) n_seeds, sizeof(double), compare_doubles);
	printf("cost: least %.8g, median %.8g, 95 %% %.8g, most %.8g\n", costs[0], costs[n_seeds / 2],
		   costs[n_seeds * 95 / 100], costs[n_seeds - 1]);
	numbers = (double) km.points.n * km.points.d;
	for (int i = 0; i < N_WHAT; i++)
		if (n_times[i] > 0)
			printf("%-16s %9.3f ms wall, %9.3f ms CPU, %7.1f GFLOP/s, %6.1f GB/s\n", names[i],
				   wall[i] / (double) n_times[i] * 1e3, cpu[i] / (double) n_times[i] * 1e3,
				   2 * numbers * km.k / (wall[i] / (double) n_times[i]) / 1e9,
				   8 * numbers / (wall[i] / (double) n_times[i]) / 1e9);
	return 0;
}
