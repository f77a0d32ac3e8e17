/*
 * client.c: an application that is no bottleneck: one connection, one prepared statement, one parameter.
 *
 *     make -C tests/bench -f client.mk
 *     client STATEMENT FILE [FIRST]     the connection is the environment's (PGHOST, PGPORT, …)
 *     client --bandwidth MB ROUNDS      GB/s at which one core reads so much memory, the best of so many rounds: of wall-clock and of CPU time
 *
 * FILE holds the values of $1, one a line; FIRST is the line to begin with.  After "pid N", the server's process, it does what the
 * lines of its standard input say and answers each with a line:
 *     run SECONDS      calls the statement for the next lines of FILE, round and round: calls, seconds, median and 99th percentile in us
 *     answers PATH     calls it once for each line, and writes line, tab, first column of its rows with commas: rows
 * An error of the server ends it, with a line that begins with "error".
 */
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <libpq-fe.h>

typedef struct Values
{
	char **lines;
	size_t n;
	size_t next;
} Values;

static double
seconds_of(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static double
now(void)
{
	return seconds_of(CLOCK_MONOTONIC);
}

static void
die(const char *what)
{
	printf("error: %.*s\n", (int) strcspn(what, "\n"), what);
	exit(1);
}

static void *
allocate(void *old, size_t n_bytes)
{
	void *memory = realloc(old, n_bytes);

	if (!memory)
		die("out of memory");
	return memory;
}

static Values
read_values(const char *path)
{
	Values values = {NULL, 0, 0};
	FILE *file = fopen(path, "r");
	char line[256];

	if (!file)
		die("the file of values cannot be opened");
	while (fgets(line, sizeof(line), file))
	{
		line[strcspn(line, "\n")] = 0;
		values.lines = allocate(values.lines, (values.n + 1) * sizeof(char *));
		values.lines[values.n++] = strdup(line);
	}
	fclose(file);
	if (values.n == 0)
		die("the file of values is empty");
	return values;
}

static PGresult *
call(PGconn *connection, Values *values)
{
	const char *value = values->lines[values->next++ % values->n];
	PGresult *result = PQexecPrepared(connection, "call", 1, &value, NULL, NULL, 0);

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		die(PQerrorMessage(connection));
	return result;
}

static int
compare_doubles(const void *a, const void *b)
{
	double x = *(const double *) a;
	double y = *(const double *) b;

	return (x > y) - (x < y);
}

static void
run(PGconn *connection, Values *values, double seconds)
{
	double *took = NULL;
	size_t n = 0;
	size_t space = 0;
	double began = now();
	double last = began;

	while (last - began < seconds)
	{
		double ended;

		PQclear(call(connection, values));
		ended = now();
		if (n == space)
			took = allocate(took, (space = space * 2 + 1024) * sizeof(double));
		took[n++] = (ended - last) * 1e6;
		last = ended;
	}
	qsort(took, n, sizeof(double), compare_doubles);
	printf("%zu %.6f %.1f %.1f\n", n, last - began, n ? took[n / 2] : 0, n ? took[n * 99 / 100] : 0);
	free(took);
}

static void
answers(PGconn *connection, Values *values, const char *path)
{
	FILE *file = fopen(path, "w");
	size_t n = 0;

	if (!file)
		die("the file of answers cannot be written");
	for (values->next = 0; values->next < values->n;)
	{
		const char *value = values->lines[values->next];
		PGresult *result = call(connection, values);

		fprintf(file, "%s\t", value);
		for (int i = 0; i < PQntuples(result); i++)
			fprintf(file, "%s%s", i ? "," : "", PQgetvalue(result, i, 0));
		fputc('\n', file);
		n += PQntuples(result);
		PQclear(result);
	}
	if (fclose(file) != 0)
		die("the file of answers cannot be written");
	printf("%zu\n", n);
}

/* Eight sums side by side, so that the additions do not wait for each other; it asks for memory 4 kB ahead. */
__attribute__((target("avx"))) static float
sum(const float *values, size_t n)
{
	__m256 sums[8];
	float out[8];

	for (int i = 0; i < 8; i++)
		sums[i] = _mm256_setzero_ps();
	for (size_t at = 0; at + 64 <= n; at += 64)
	{
#pragma GCC unroll 8
		for (int i = 0; i < 8; i++)
		{
			sums[i] = _mm256_add_ps(sums[i], _mm256_load_ps(values + at + 8 * i));
			if (i % 2 == 0)
				_mm_prefetch((const char *) (values + at + 8 * i) + 4096, _MM_HINT_T0);
		}
	}
	for (int i = 1; i < 8; i++)
		sums[0] = _mm256_add_ps(sums[0], sums[i]);
	_mm256_storeu_ps(out, sums[0]);
	return out[0] + out[1] + out[2] + out[3] + out[4] + out[5] + out[6] + out[7];
}

static void
bandwidth(size_t n_bytes, int rounds)
{
	float *values = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	double best[2] = {0, 0};
	volatile float kept = 0;

	if (values == MAP_FAILED)
		die("out of memory");
	madvise(values, n_bytes, MADV_HUGEPAGE);
	for (size_t i = 0; i < n_bytes / sizeof(float); i++)
		values[i] = (float) (i % 17);
	for (int i = 0; i < rounds; i++)
	{
		double began[2] = {now(), seconds_of(CLOCK_PROCESS_CPUTIME_ID)};
		double ended[2];

		kept += sum(values, n_bytes / sizeof(float));
		ended[0] = now();
		ended[1] = seconds_of(CLOCK_PROCESS_CPUTIME_ID);
		for (int clock = 0; clock < 2; clock++)
		{
			double rate = n_bytes / (ended[clock] - began[clock]) / 1e9;

			best[clock] = rate > best[clock] ? rate : best[clock];
		}
	}
	printf("%.3f %.3f\n", best[0], best[1]);
}

int
main(int argc, char **argv)
{
	PGconn *connection;
	PGresult *result;
	Values values;
	char line[1024];

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 4 && strcmp(argv[1], "--bandwidth") == 0)
	{
		bandwidth((size_t) strtoul(argv[2], NULL, 10) << 20, (int) strtol(argv[3], NULL, 10));
		return 0;
	}
	if (argc < 3)
		die("usage: client STATEMENT FILE [FIRST]");
	values = read_values(argv[2]);
	values.next = argc > 3 ? strtoul(argv[3], NULL, 10) : 0;
	connection = PQconnectdb("");
	if (PQstatus(connection) != CONNECTION_OK)
		die(PQerrorMessage(connection));
	result = PQprepare(connection, "call", argv[1], 0, NULL);
	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		die(PQerrorMessage(connection));
	PQclear(result);
	printf("pid %d\n", PQbackendPID(connection));
	while (fgets(line, sizeof(line), stdin))
	{
		line[strcspn(line, "\n")] = 0;
		if (strncmp(line, "run ", 4) == 0)
			run(connection, &values, strtod(line + 4, NULL));
		else if (strncmp(line, "answers ", 8) == 0)
			answers(connection, &values, line + 8);
		else
			die("no such command");
	}
	PQfinish(connection);
	return 0;
}
