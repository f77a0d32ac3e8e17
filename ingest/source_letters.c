/*
 * Dead letters as a source: millrace dead-letters replay.  Each chunk is read between two batches, decoded by the mapping
 * of today, and is one batch.  Its transaction stores the rows and takes their letters from the table; a letter that is
 * refused again stays, with its new reason.
 */
#include "ingest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct LetterSource
{
	const Config *config;
	Writer *writer;
	Decoder *decoder;
	Batch *batch;
	int64_t after, until; /* ids: read so far; the last there was at the start */
	int64_t n_left;		  /* of the filter's limit */
	char *csv_header;	  /* the decoder knows; NULL: none */
	bool is_readable;	  /* it has a field for every column that wants one */
	int64_t n_pieces, n_headless;
};

LetterSource *
letter_source_open(const Config *config, Writer *writer, Decoder *decoder, Batch *batch)
{
	LetterSource *source = mem_alloc(sizeof(LetterSource));

	source->config = config;
	source->writer = writer;
	source->decoder = decoder;
	source->batch = batch;
	source->n_left = config->replay->limit;
	return source;
}

/* The names of the fields that the letter's record has; false: they are not known, or do not fit the columns. */
static bool
take_header(LetterSource *source, const Letter *letter)
{
	const Config *config = source->config;
	ExitCode code;

	if (config->format != FORMAT_CSV || !config->csv_header)
		return true;
	if (letter->csv_header == NULL)
		return false;
	if (source->csv_header != NULL && strcmp(source->csv_header, letter->csv_header) == 0)
		return source->is_readable;
	free(source->csv_header);
	source->csv_header = mem_string(letter->csv_header);
	decode_start(source->decoder, letter->topic);
	source->is_readable =
		decode_header(source->decoder, source->csv_header, strlen(source->csv_header), true, &code) > 0 &&
		code == EXIT_DONE;
	return source->is_readable;
}

static void
take_letter(void *context, const Letter *letter, int number, int n_letters)
{
	LetterSource *source = context;
	Batch *batch = source->batch;
	Message message = letter->message;
	int before = batch->n_rows;

	source->after = letter->id;
	source->n_left--;
	if (number == 0)
		batch->letters = arena_alloc(&batch->arena, sizeof(int64_t) * (size_t) n_letters);
	if (strcmp(letter->stage, "read") == 0)
	{
		source->n_pieces++;
		return;
	}
	if (!take_header(source, letter))
	{
		source->n_headless++;
		return;
	}
	message.position = position_find(&batch->positions, letter->topic, letter->partition);
	Position *position = &batch->positions.list[message.position];
	position->is_assigned = true;
	if (letter->csv_header != NULL && position->csv_header == NULL)
		position->csv_header = mem_string(letter->csv_header);
	if (message.data == NULL)
		message.data = "";
	decode_message(source->decoder, &message);
	if (batch->n_rows > before)
		batch->letters[before] = letter->id;
}

SourceStatus
letter_source_poll(LetterSource *source, ExitCode *exit_code)
{
	const Config *config = source->config;
	int64_t n_most = source->n_left < config->max_rows ? source->n_left : config->max_rows;
	Sink *sink = writer_sink(source->writer);
	int n_letters = 0;
	Retry retry = {0};
	SinkStatus status;

	/* The last batch is not stored yet, or never will be. */
	if (sink == NULL || source->batch->n_rows > 0)
		return SOURCE_FLUSH;
	do
		status = n_most > 0 ? sink_letters(sink, config->replay, source->after, &source->until, n_most,
										   config->max_bytes / 4, take_letter, source, &n_letters)
							: SINK_OK;
	while (sink_again(sink, &retry, status, exit_code));
	if (status != SINK_OK)
		return SOURCE_FAILED;
	return n_letters == 0 ? SOURCE_END : SOURCE_FLUSH;
}

void
letter_source_close(LetterSource *source)
{
	if (source == NULL)
		return;
	if (source->n_pieces > 0)
		log_line(LOG_WARNING, "%" PRId64 " letters are pieces of records, which cannot be replayed",
				 source->n_pieces);
	if (source->n_headless > 0)
		log_line(LOG_WARNING,
				 "%" PRId64 " letters have no CSV header that fits the columns: replay them with "
				 "--csv.header=false --csv.columns=...",
				 source->n_headless);
	free(source->csv_header);
	free(source);
}
