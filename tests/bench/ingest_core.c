/*
 * CPU of decoding a message, and of encoding it as a line of COPY, without a broker and a server.
 *   bin/ingest_core FILE.ini EVENTS.json     prints both in nanoseconds a message: medians of ROUNDS rounds (default 5)
 * The columns are those of the events in ingest.py.  A round decodes all messages with transform_row() and without it; the
 * linker puts the function below in its place.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ingest.h"

#define BATCH_ROWS 50000
#define MOST_ROUNDS 100

static bool encodes;
void __real_transform_row(Mapping *mapping, const Message *message);
void __wrap_transform_row(Mapping *mapping, const Message *message);

void
__wrap_transform_row(Mapping *mapping, const Message *message)
{
	if (encodes)
		__real_transform_row(mapping, message);
}

static Column columns[] = {
	{.name = "id", .quoted = "id", .type_oid = 20},
	{.name = "event_time", .quoted = "event_time", .type_oid = 1184},
	{.name = "event_type", .quoted = "event_type", .type_oid = 25},
	{.name = "product_id", .quoted = "product_id", .type_oid = 20},
	{.name = "category_id", .quoted = "category_id", .type_oid = 20},
	{.name = "category_code", .quoted = "category_code", .type_oid = 25},
	{.name = "brand", .quoted = "brand", .type_oid = 25},
	{.name = "price", .quoted = "price", .type_oid = 1700},
	{.name = "user_id", .quoted = "user_id", .type_oid = 20},
	{.name = "user_session", .quoted = "user_session", .type_oid = 25},
};
static Table table = {.name = "events",
					  .relation = "events",
					  .columns = columns,
					  .n_columns = 10,
					  .time_column = "event_time",
					  .is_routed = true};

static char *
read_file(const char *path, size_t *n_bytes)
{
	FILE *file = fopen(path, "rb");
	Buffer text = {0};
	size_t n;

	if (file == NULL)
	{
		perror(path);
		exit(1);
	}
	while ((n = fread(buffer_room(&text, 1 << 20), 1, 1 << 20, file)) > 0)
		text.n_bytes += n;
	fclose(file);
	*n_bytes = text.n_bytes;
	return text.data;
}

static double
thread_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
	return (double) now.tv_sec * 1e9 + (double) now.tv_nsec;
}

/* Nanoseconds a message. */
static double
pass(Decoder *decoder, Batch *batch, const char *text, size_t n_bytes)
{
	const char *at = text, *end = text + n_bytes, *line_end;
	int64_t n_messages = 0;
	double start = thread_ns();

	for (; at < end && (line_end = memchr(at, '\n', (size_t) (end - at))) != NULL; at = line_end + 1)
	{
		Message message = {
			.data = at, .n_bytes = (size_t) (line_end - at), .offset = n_messages++, .timestamp_us = NO_TIME};

		decode_message(decoder, &message);
		if (batch->n_rows >= BATCH_ROWS || n_messages % BATCH_ROWS == 0)
			batch_reset(batch);
	}
	double took = thread_ns() - start;
	batch_reset(batch);
	return took / (double) (n_messages ? n_messages : 1);
}

static int
compare(const void *a, const void *b)
{
	double x = *(const double *) a, y = *(const double *) b;

	return (x > y) - (x < y);
}

int
main(int argc, char **argv)
{
	Config config = {0};
	Mapping mapping = {0};
	Batch batch = {.max_rows = BATCH_ROWS, .max_bytes = 1 << 30};
	double decode[MOST_ROUNDS], both[MOST_ROUNDS];
	const char *wanted = getenv("ROUNDS");
	int n_rounds = wanted ? (int) strtol(wanted, NULL, 10) : 5;
	size_t n_bytes;

	if (argc != 3 || n_rounds < 1 || n_rounds > MOST_ROUNDS)
	{
		fprintf(stderr, "ingest_core FILE.ini EVENTS.json\n");
		return 2;
	}
	char *text = read_file(argv[2], &n_bytes);
	mapping.batch = &batch;
	if (config_load(&config, argv[1], 0, NULL) != EXIT_DONE ||
		mapping_build(&mapping, &config, &table) != EXIT_DONE)
		return 2;
	Decoder *decoder = decoder_open(&config, &mapping);
	position_find(&batch.positions, "events", 0);
	for (int i = -1; i < n_rounds; i++) /* one to warm up */
	{
		encodes = false;
		decode[i < 0 ? 0 : i] = pass(decoder, &batch, text, n_bytes);
		encodes = true;
		both[i < 0 ? 0 : i] = pass(decoder, &batch, text, n_bytes);
	}
	qsort(decode, (size_t) n_rounds, sizeof(double), compare);
	qsort(both, (size_t) n_rounds, sizeof(double), compare);
	printf("%.0f %.0f\n", decode[n_rounds / 2], both[n_rounds / 2] - decode[n_rounds / 2]);
	decoder_free(decoder);
	mapping_free(&mapping);
	batch_free(&batch);
	config_free(&config);
	free(text);
	return 0;
}
