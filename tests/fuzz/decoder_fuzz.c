/*
 * Any bytes as messages, files and headers through the decoders and the mapping, under ASan and UBSan.  The first four
 * bytes choose the configuration.  Beyond memory errors it looks for
 *   rows whose COPY text is not one line of the right number of fields, in UTF-8
 *   another result when a file comes in pieces, or is decoded again
 *   bytes of a file that are in no row, or in two.
 * The arena gives each piece a block of its own here, so that a byte too far is seen.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>

#define MOST_BLOCKS 65536

/* ---- the arena ---- */

void *__wrap_arena_alloc(Arena *arena, size_t n_bytes);
char *__wrap_arena_reserve(Arena *arena, size_t n_bytes);
void __wrap_arena_take(Arena *arena, size_t n_bytes);
char *__wrap_arena_copy(Arena *arena, const void *data, size_t n_bytes);
void __wrap_arena_reset(Arena *arena);
void __wrap_arena_free(Arena *arena);

static char *blocks[MOST_BLOCKS];
static int n_blocks;

char *
__wrap_arena_reserve(Arena *arena, size_t n_bytes)
{
	(void) arena;
	if (n_blocks == MOST_BLOCKS)
		abort();
	return blocks[n_blocks++] = malloc(n_bytes + (n_bytes == 0));
}

void
__wrap_arena_take(Arena *arena, size_t n_bytes)
{
	arena->used_bytes += n_bytes;
}

void *
__wrap_arena_alloc(Arena *arena, size_t n_bytes)
{
	void *block = __wrap_arena_reserve(arena, n_bytes);

	arena->used_bytes += n_bytes;
	return block;
}

char *
__wrap_arena_copy(Arena *arena, const void *data, size_t n_bytes)
{
	char *copy = __wrap_arena_alloc(arena, n_bytes);

	if (n_bytes > 0)
		memcpy(copy, data, n_bytes);
	return copy;
}

void
__wrap_arena_reset(Arena *arena)
{
	while (n_blocks > 0)
		free(blocks[--n_blocks]);
	arena->used_bytes = 0;
}

void
__wrap_arena_free(Arena *arena)
{
	__wrap_arena_reset(arena);
}

void __wrap_log_line(LogLevel level, const char *format, ...);
void __wrap_config_error_pair(Config *config, const Pair *pair, const char *format, ...);

void
__wrap_log_line(LogLevel level, const char *format, ...)
{
	(void) level;
	(void) format;
}

void
__wrap_config_error_pair(Config *config, const Pair *pair, const char *format, ...)
{
	(void) pair;
	(void) format;
	config->n_errors++;
}

/* ---- a table with a column of each kind ---- */

static Column columns[] = {
	{.name = "id", .quoted = "id", .type_oid = 23},
	{.name = "name", .quoted = "name", .type_oid = 25},
	{.name = "at", .quoted = "at", .type_oid = 1184},
	{.name = "note", .quoted = "note", .type_oid = 25, .has_default = true},
	{.name = "doc", .quoted = "doc", .type_oid = 3802, .is_json = true},
	{.name = "tags", .quoted = "tags", .type_oid = 1009, .array_delimiter = ','},
	{.name = "docs", .quoted = "docs", .type_oid = 3807, .array_delimiter = ',', .is_json_array = true},
	{.name = "rest", .quoted = "rest", .type_oid = 3802, .is_json = true, .has_default = true},
	{.name = "h", .quoted = "h", .type_oid = 25},
	{.name = "hs", .quoted = "hs", .type_oid = 1009, .array_delimiter = ','},
	{.name = "key", .quoted = "key", .type_oid = 17},
	{.name = "whole", .quoted = "whole", .type_oid = 114, .is_json = true},
};
static Table table = {.name = "t",
					  .relation = "t",
					  .columns = columns,
					  .n_columns = 12,
					  .time_column = "at",
					  .is_routed = true};

static char *const time_rules[] = {"at",
								   "at format:iso",
								   "at format:epoch_s",
								   "at format:epoch_ms default:5",
								   "at format:epoch_us",
								   "at format:%d.%m.%Y %H:%M:%S.%f%z",
								   "at format:%y %j %I %p %b %%",
								   "$timestamp"};

typedef struct Chain
{
	Config config;
	Mapping mapping;
	Batch batch;
	Decoder *decoder;
	Pair rules[9];
	bool is_file;
} Chain;

static void
rule(Chain *chain, char *name, char *value)
{
	chain->rules[chain->config.columns.n_pairs++] = (Pair){name, value, "fuzz", 1};
}

static void
chain_open(Chain *chain, const uint8_t choice[4])
{
	static char *const quotes[][2] = {{"\"", "\""}, {"'", "\\"}, {"", ""}, {"\"", "'"}};
	Config *config = &chain->config;

	memset(chain, 0, sizeof *chain);
	config->format = choice[0] & 1 ? FORMAT_CSV : FORMAT_JSON;
	chain->is_file = choice[0] & 2;
	config->type = chain->is_file ? SOURCE_FILE : SOURCE_KAFKA;
	config->csv_header = choice[0] & 4 && chain->is_file;
	config->json_nan = (choice[0] >> 3) % 3;
	config->csv_delimiter = choice[0] & 32 ? "|" : ",";
	config->csv_quote = quotes[choice[0] >> 6][0];
	config->csv_escape = quotes[choice[0] >> 6][1];
	config->csv_null = choice[1] & 1 ? "NULL" : "";
	config->csv_columns = choice[1] & 2 ? "id, name,more" : NULL;
	config->timezone = choice[1] & 4 ? "UTC" : "Europe/Berlin";
	config->on_unknown_field = choice[1] >> 3 & 3;
	config->max_record_bytes = choice[1] & 32 ? 64 : 1 << 20;
	config->columns.list = chain->rules;
	config->file = "fuzz";
	rule(chain, "at", time_rules[choice[2] & 7]);
	rule(chain, "rest", config->on_unknown_field > UNKNOWN_JSONB ? "" : "$rest");
	rule(chain, "h", choice[2] & 8 ? "$header.a" : "");
	rule(chain, "hs", choice[2] & 8 ? "$header.b" : "$topic");
	rule(chain, "key", choice[2] & 16 ? "$key" : "$offset");
	rule(chain, "whole", choice[2] & 32 ? "$" : "");
	rule(chain, "name", choice[2] & 64 && config->format == FORMAT_JSON ? "a.b" : "name");
	table.columns[2].type_oid = choice[2] & 128 ? 1114 : 1184;
	chain->batch.max_rows = 1000;
	chain->batch.max_bytes = 1 << 26;
	chain->mapping.batch = &chain->batch;
	if (mapping_build(&chain->mapping, config, &table) != EXIT_DONE)
		return;
	chain->decoder = decoder_open(config, &chain->mapping);
	decode_start(chain->decoder, "fuzz.csv");
	position_find(&chain->batch.positions, "topic", 3);
}

static void
chain_close(Chain *chain)
{
	free(chain->batch.positions.list[0].csv_header);
	chain->batch.positions.list[0].csv_header = NULL;
	decoder_free(chain->decoder);
	mapping_free(&chain->mapping);
	batch_free(&chain->batch);
}

/* ---- what goes in ---- */

/* A file in pieces of n_step bytes more each time; false when its header is refused. */
static bool
feed_file(Chain *chain, const char *data, size_t n_bytes, size_t n_step)
{
	ExitCode status = EXIT_DONE;
	size_t have = 0, done = 0;
	bool at_end = false;

	while (!at_end)
	{
		have = n_bytes - have < n_step ? n_bytes : have + n_step;
		at_end = have == n_bytes;
		/* As long as something is used, there may be more. */
		for (size_t used = 1; used > 0 && done < have;)
		{
			bool is_header = decode_wants_header(chain->decoder);
			char *piece = malloc(have - done);

			memcpy(piece, data + done, have - done);
			used = is_header ? decode_header(chain->decoder, piece, have - done, at_end, &status)
							 : decode_bytes(chain->decoder, piece, have - done, at_end, 0, (int64_t) done);
			if (is_header && used > 0 && status == EXIT_DONE)
				chain->batch.positions.list[0].csv_header = mem_printf("%.*s", (int) used, piece);
			free(piece);
			if (status != EXIT_DONE)
				return false;
			done += used;
			if (batch_is_full(&chain->batch))
				return true;
		}
	}
	return true;
}

/* key NUL headers NUL message; headers count only when they are a JSON object in UTF-8, as the source makes them. */
static void
feed_message(Chain *chain, const char *data, size_t n_bytes)
{
	Message message = {.data = data, .n_bytes = n_bytes, .timestamp_us = (int64_t) n_bytes * 1000000007};
	const char *end = memchr(data, '\0', n_bytes);
	size_t at;

	if (end != NULL)
	{
		message.key = data;
		message.n_key_bytes = (size_t) (end - data);
		message.data = end + 1;
		message.n_bytes = n_bytes - message.n_key_bytes - 1;
		end = memchr(message.data, '\0', message.n_bytes);
		if (end != NULL && message.data[0] == '{' &&
			text_defect(message.data, (size_t) (end - message.data), &at) == NULL)
		{
			message.headers = message.data;
			message.n_header_bytes = (size_t) (end - message.data);
			message.data = end + 1;
			message.n_bytes -= message.n_header_bytes + 1;
		}
	}
	decode_message(chain->decoder, &message);
}

/* ---- what comes out ---- */

static void
check_row(const Chain *chain, const Row *row)
{
	int n_fields = 1, n_omitted = __builtin_popcountll(row->omitted);
	size_t at;

	if (row->dead != NULL && text_defect(row->dead->reason, strlen(row->dead->reason), &at) != NULL)
		abort();
	if (row->copy == NULL)
	{
		if (row->dead == NULL)
			abort();
		return;
	}
	if (row->copy[row->copy_bytes - 1] != '\n' || text_defect(row->copy, row->copy_bytes, &at) != NULL)
		abort();
	for (uint32_t i = 0; i + 1 < row->copy_bytes; i++)
	{
		if (row->copy[i] == '\n' || row->copy[i] == '\r')
			abort();
		n_fields += row->copy[i] == '\t';
		i += row->copy[i] == '\\';
	}
	if (n_fields + n_omitted != chain->mapping.n_columns && row->copy_bytes > 1)
		abort();
}

/* The raw bytes of a file's rows follow each other. */
static void
check_coverage(const Chain *chain, const char *data, size_t n_bytes)
{
	int64_t done = 0;

	for (int i = 0; i < chain->batch.n_rows; i++)
	{
		const Row *row = &chain->batch.rows[i];

		if (row->offset < done || row->offset + row->raw_bytes > (int64_t) n_bytes ||
			memcmp(row->raw, data + row->offset, row->raw_bytes) != 0)
			abort();
		/* Between them there is nothing but line ends, but for the header before the first. */
		for (int64_t at = done; i > 0 && at < row->offset; at++)
			if (data[at] != '\n' && data[at] != '\r')
				abort();
		done = row->offset + row->raw_bytes;
	}
}

/* A dead letter's reason may be another one when the line is decoded alone. */
static char *
result(const Batch *batch, bool with_reasons)
{
	Buffer out = {0};

	buffer_printf(&out, "%d", batch->n_rows);
	for (int i = 0; i < batch->n_rows; i++)
	{
		const Row *row = &batch->rows[i];

		buffer_printf(&out, "|%lld %u %s %lld %.*s ", (long long) row->offset, row->raw_bytes,
					  row->dead == NULL	 ? ""
						  : with_reasons ? row->dead->reason
										 : "dead",
					  (long long) row->time_us, (int) row->time_bytes, row->time_text ? row->time_text : "");
		if (row->dead == NULL)
			buffer_add(&out, row->copy, row->copy_bytes);
	}
	buffer_add(&out, "", 1);
	return out.data;
}

static void
compare(const char *what, const char *a, const char *b)
{
	if (strcmp(a, b) == 0)
		return;
	fprintf(stderr, "another result %s:\n%s\n%s\n", what, a, b);
	abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes)
{
	const size_t steps[] = {SIZE_MAX, n_bytes > 4 ? data[3] % 16 + 1 : 1};
	char *results[2] = {NULL, NULL};

	if (n_bytes < 4)
		return 0;
	for (int round = 0; round < 2; round++)
	{
		Chain chain;

		chain_open(&chain, data);
		if (chain.decoder == NULL)
		{
			/* A combination that is refused at the start. */
			mapping_free(&chain.mapping);
			return 0;
		}
		const char *text = (const char *) data + 4;
		bool is_good = true;
		/* A long record is cut where the pieces end. */
		bool is_same = chain.is_file && chain.config.max_record_bytes > (int64_t) n_bytes;
		if (chain.is_file)
			is_good = feed_file(&chain, text, n_bytes - 4, steps[round]);
		else
			feed_message(&chain, text, n_bytes - 4);
		for (int i = 0; i < chain.batch.n_rows; i++)
			check_row(&chain, &chain.batch.rows[i]);
		if (chain.is_file)
			check_coverage(&chain, text, n_bytes - 4);
		if (is_same)
			results[round] = result(&chain.batch, true);
		char *before = result(&chain.batch, false);
		/* A column that was wanted is not there, so the reason is another one. */
		bool is_stable = is_good && decode_wants(chain.decoder) == NULL;
		decode_again(chain.decoder, &chain.batch);
		char *after = result(&chain.batch, false);
		if (is_stable)
			compare("decoded again", before, after);
		for (int i = 0; i < chain.batch.n_rows; i++)
			check_row(&chain, &chain.batch.rows[i]);
		free(before);
		free(after);
		chain_close(&chain);
	}
	if (results[0] != NULL && results[1] != NULL)
		compare("in pieces", results[0], results[1]);
	free(results[0]);
	free(results[1]);
	return 0;
}
