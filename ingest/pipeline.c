/*
 * Builds the chain from source to sink, and turns it: poll the source, give the batch to the writer when it is due.
 */
#include "ingest.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define IDLE_MS 200	   /* how long a poll waits when no batch is open; also how soon a signal is seen */
#define BUSY_MS 5	   /* how long it waits when the batch is due and the writer has one */
#define BLOCKED_MS 100 /* how long the reader waits for the writer at a time when the batch is full */
#define MOST_FENCED 3  /* so many times in a row without a stored batch: somebody else reads this stream */

typedef struct Pipeline
{
	Config *config;
	Sink *sink;
	Table table;
	Mapping mapping;
	Decoder *decoder;
	Batch batch; /* the open one */
	Writer *writer;
	FileSource *files;
	KafkaSource *kafka;
	LetterSource *letters;
	bool must_give;			  /* the source has come to a good place to end the batch */
	bool at_end;			  /* it has nothing more */
	int64_t blocked_since_us; /* 0: the reader does not wait for the writer */
	int n_fenced;			  /* since a batch was stored */
	bool shows_progress;
	int64_t started_us, shown_us, shown_rows;
} Pipeline;

static ExitCode
first_of(ExitCode a, ExitCode b)
{
	return a != EXIT_DONE ? a : b;
}

/* Everything that can be wrong before the first message is read, reported at once. */
static ExitCode
prepare(Pipeline *pipeline, bool checks_broker)
{
	Config *config = pipeline->config;
	ExitCode code = config->n_errors ? EXIT_USAGE : EXIT_DONE;

	if (config->replay != NULL)
		; /* what was read once need not be there any more */
	else if (config->type == SOURCE_DIRECTORY || config->type == SOURCE_FILE)
		code = first_of(code, file_source_check(config));
	else if (config->type == SOURCE_KAFKA && checks_broker && config->topic && config->brokers)
		code = first_of(code, kafka_source_check(config));
	if (config->table == NULL || config->table[0] == '\0')
		return code;
	ExitCode opened = sink_open(config, &pipeline->sink);
	if (opened != EXIT_DONE)
		return first_of(code, opened);
	ExitCode described = sink_describe(pipeline->sink, config, &pipeline->table);
	code = first_of(code, described);
	if (pipeline->table.columns == NULL)
		return code;
	return first_of(code, mapping_build(&pipeline->mapping, config, &pipeline->table));
}

static ExitCode
build(Pipeline *pipeline)
{
	Config *config = pipeline->config;

	pipeline->batch.max_rows = config->max_rows;
	pipeline->batch.max_bytes = config->max_bytes;
	pipeline->mapping.batch = &pipeline->batch;
	pipeline->writer = writer_open(config, pipeline->sink, &pipeline->table, &pipeline->mapping.copy);
	pipeline->decoder = decoder_open(config, &pipeline->mapping);
	if (config->replay != NULL)
	{
		pipeline->letters = letter_source_open(config, pipeline->writer, pipeline->decoder, &pipeline->batch);
		return EXIT_DONE;
	}
	if (config->type == SOURCE_KAFKA)
		return kafka_source_open(config, pipeline->writer, pipeline->decoder, &pipeline->batch,
								 &pipeline->kafka);
	pipeline->files = file_source_open(config, pipeline->writer, pipeline->decoder, &pipeline->batch);
	return EXIT_DONE;
}

static void
release(Pipeline *pipeline)
{
	letter_source_close(pipeline->letters);
	kafka_source_close(pipeline->kafka);
	file_source_close(pipeline->files);
	writer_close(pipeline->writer);
	decoder_free(pipeline->decoder);
	mapping_free(&pipeline->mapping);
	table_free(&pipeline->table);
	batch_free(&pipeline->batch);
	sink_close(pipeline->sink);
}

static bool
is_open(const Batch *batch)
{
	return batch->n_rows > batch->n_dropped || batch->has_moved;
}

/* ---- the writer's answers ---- */

static void
take_stored(Pipeline *pipeline)
{
	Positions stored = {0};

	if (!writer_stored(pipeline->writer, &stored))
		return;
	pipeline->n_fenced = 0;
	if (pipeline->files != NULL)
		file_source_stored(pipeline->files, &stored);
	else if (pipeline->kafka != NULL)
		kafka_source_stored(pipeline->kafka, &stored);
	positions_clear(&stored);
}

/*
 * The table's columns are read anew, and every row that is not stored is made again of its bytes.  The mapping points
 * into the table; both keep their addresses, which writer and decoder know.
 */
static ExitCode
reload(Pipeline *pipeline)
{
	Config *config = pipeline->config;
	Sink *sink = writer_sink(pipeline->writer);
	Batch *held = writer_held(pipeline->writer);
	Table table = {0};
	Retry retry = {0};
	ExitCode code, given_up;

	if (sink == NULL)
		return EXIT_DONE; /* it has failed: turn() sees it */
	while ((code = sink_describe(sink, config, &table)) == EXIT_CONNECTION &&
		   sink_again(sink, &retry, SINK_LOST, &given_up))
		table_free(&table);
	if (code != EXIT_DONE)
	{
		table_free(&table);
		return code == EXIT_CONNECTION ? given_up : code;
	}
	mapping_free(&pipeline->mapping);
	table_free(&pipeline->table);
	pipeline->table = table;
	if ((code = mapping_build(&pipeline->mapping, config, &pipeline->table)) != EXIT_DONE)
		return code;
	if (held != NULL)
		decode_again(pipeline->decoder, held);
	decode_again(pipeline->decoder, &pipeline->batch);
	pipeline->config->metrics->n_reloads++;
	log_line(LOG_INFO, "table %s: its columns are read anew", pipeline->table.name);
	writer_resume(pipeline->writer);
	return EXIT_DONE;
}

/* Another ingester has moved a position.  Kafka's can be asked for again; a file has one reader. */
static ExitCode
resync(Pipeline *pipeline)
{
	if (pipeline->kafka == NULL || ++pipeline->n_fenced >= MOST_FENCED)
		return EXIT_FENCED;
	writer_forget(pipeline->writer);
	batch_reset(&pipeline->batch);
	pipeline->at_end = pipeline->must_give = false;
	return kafka_source_resync(pipeline->kafka);
}

/* What the writer has to say; EXIT_DONE with *is_over: it gave up because a stop was asked for. */
static ExitCode
hear_writer(Pipeline *pipeline, bool *is_over)
{
	ExitCode code;

	*is_over = false;
	take_stored(pipeline);
	switch (writer_state(pipeline->writer, &code))
	{
		case WRITER_GOOD:
			return EXIT_DONE;
		case WRITER_CHANGED:
			return reload(pipeline);
		case WRITER_FENCED:
			return resync(pipeline);
		case WRITER_FAILED:
			break;
	}
	*is_over = true;
	return code;
}

static void
show_progress(Pipeline *pipeline, bool final)
{
	const Metrics *metrics = pipeline->config->metrics;
	int64_t now_us = monotonic_us(), since_us = now_us - (final ? pipeline->started_us : pipeline->shown_us);
	int64_t n_rows = metrics->n_rows, n_dead_letters = metrics->n_dead_letters;
	Buffer more = {0};

	if (!pipeline->shows_progress || (!final && since_us < (isatty(STDERR_FILENO) ? 200000 : 1000000)))
		return;
	buffer_printf(&more, "%s", "");
	if (pipeline->files != NULL)
		file_source_progress(pipeline->files);
	if (pipeline->kafka != NULL)
		buffer_printf(&more, ", lag %" PRId64, metrics->lag);
	else if (pipeline->config->type == SOURCE_DIRECTORY)
		buffer_printf(&more, ", %" PRId64 " of %" PRId64 " files", metrics->n_files, metrics->n_files_total);
	if (n_dead_letters > 0)
		buffer_printf(&more, ", %" PRId64 " dead letters", n_dead_letters);
	log_progress(final, "%" PRId64 " rows, %.0f rows/s%s", n_rows,
				 (double) (n_rows - (final ? 0 : pipeline->shown_rows)) * 1e6 /
					 (double) (since_us > 0 ? since_us : 1),
				 more.data);
	buffer_free(&more);
	pipeline->shown_us = now_us;
	pipeline->shown_rows = n_rows;
}

static bool
is_due(const Pipeline *pipeline)
{
	const Batch *batch = &pipeline->batch;
	bool ages = pipeline->config->type == SOURCE_KAFKA || pipeline->config->type == SOURCE_STDIN;

	if (!is_open(batch))
		return false;
	return pipeline->must_give || batch_is_full(batch) ||
		(ages && monotonic_us() - batch->opened_us >= pipeline->config->max_age_ms * 1000);
}

static int64_t
poll_wait(const Pipeline *pipeline)
{
	int64_t left = pipeline->config->max_age_ms - (monotonic_us() - pipeline->batch.opened_us) / 1000;

	if (pipeline->batch.n_rows == 0 || left > IDLE_MS)
		return IDLE_MS;
	return left > 0 ? left : BUSY_MS;
}

/*
 * The batch is full, or the file has ended, and the writer is not done with the last one: memory is bounded.  Kafka wants
 * to be asked all the same.
 */
static SourceStatus
wait_for_writer(Pipeline *pipeline, ExitCode *code)
{
	int64_t now_us = monotonic_us();

	if (pipeline->blocked_since_us == 0)
		pipeline->blocked_since_us = now_us;
	if (writer_wait(pipeline->writer, BLOCKED_MS) || pipeline->kafka == NULL)
		return SOURCE_MORE;
	return kafka_source_blocked(pipeline->kafka, (now_us - pipeline->blocked_since_us) / 1000, code);
}

/* Gives the open batch, waiting while the writer has one. */
static ExitCode
flush(Pipeline *pipeline)
{
	bool is_over = false;
	ExitCode code = EXIT_DONE;

	while (is_open(&pipeline->batch) && !is_over)
	{
		if (writer_give(pipeline->writer, &pipeline->batch))
			return EXIT_DONE;
		if ((code = hear_writer(pipeline, &is_over)) != EXIT_DONE)
			return code;
	}
	return EXIT_DONE;
}

/* The last batches are stored; batch.drain bounds it when a stop was asked for. */
static ExitCode
drain(Pipeline *pipeline)
{
	bool is_over = false;
	ExitCode code = flush(pipeline);

	while (code == EXIT_DONE && !is_over && !writer_is_idle(pipeline->writer))
	{
		writer_sink(pipeline->writer); /* waits while it works */
		code = hear_writer(pipeline, &is_over);
	}
	take_stored(pipeline);
	return code;
}

static bool
is_all_stored(Pipeline *pipeline)
{
	return !is_open(&pipeline->batch) && writer_is_idle(pipeline->writer);
}

static ExitCode
turn(Pipeline *pipeline)
{
	SourceStatus status = SOURCE_MORE;
	ExitCode code = EXIT_DONE;
	bool is_over = false;

	while (!stop_requested() && !(pipeline->at_end && is_all_stored(pipeline)))
	{
		if (pipeline->must_give || pipeline->at_end || batch_is_full(&pipeline->batch))
			status = wait_for_writer(pipeline, &code);
		else
		{
			int64_t wait = poll_wait(pipeline);

			pipeline->blocked_since_us = 0;
			status = pipeline->kafka ? kafka_source_poll(pipeline->kafka, wait, &code)
				: pipeline->files	 ? file_source_poll(pipeline->files, wait, &code)
									 : letter_source_poll(pipeline->letters, &code);
			pipeline->at_end = status == SOURCE_END;
			pipeline->must_give = status == SOURCE_FLUSH || status == SOURCE_END;
		}
		if (status == SOURCE_FAILED)
			return code;
		if ((code = hear_writer(pipeline, &is_over)) != EXIT_DONE || is_over)
			return code;
		/* All rows of an open batch may have been dropped with their partitions. */
		if (pipeline->batch.n_rows > 0 && !is_open(&pipeline->batch))
			batch_reset(&pipeline->batch);
		if (!is_open(&pipeline->batch))
			pipeline->must_give = false;
		else if (is_due(pipeline) && writer_is_idle(pipeline->writer))
		{
			writer_give(pipeline->writer, &pipeline->batch);
			pipeline->must_give = false;
		}
		sink_offer(pipeline->sink, &pipeline->batch);
		pipeline->config->metrics->is_reading = true;
		pipeline->config->metrics->open_rows = pipeline->batch.n_rows - pipeline->batch.n_dropped;
		if (writer_is_idle(pipeline->writer))
			sink_metrics(pipeline->sink, false);
		show_progress(pipeline, false);
	}
	if (stop_requested())
		stop_now();
	return drain(pipeline);
}

ExitCode
pipeline_run(Config *config)
{
	Pipeline pipeline = {.config = config};
	ExitCode code;

	pipeline.shows_progress = config->progress || isatty(STDERR_FILENO);
	log_level = (LogLevel) config->log_level;
	if (pipeline.shows_progress && !config->log_level_given)
		log_level = LOG_WARNING; /* the line says as much as the batches' lines do */
	metrics_publish(config->metrics);
	code = metrics_serve(config);
	if (code == EXIT_DONE)
		code = prepare(&pipeline, false);
	if (code == EXIT_DONE)
		code = build(&pipeline);
	if (code == EXIT_DONE)
	{
		pipeline.started_us = pipeline.shown_us = monotonic_us();
		code = turn(&pipeline);
		sink_metrics(pipeline.sink, true);
		show_progress(&pipeline, true);
		const Metrics *metrics = config->metrics;
		log_line(LOG_INFO, "%s: %" PRId64 " rows and %" PRId64 " dead letters in %" PRId64 " batches, %.1f s",
				 code != EXIT_DONE		? "stopped by an error"
					 : stop_requested() ? "stopped by a signal"
										: "done",
				 metrics->n_rows, metrics->n_dead_letters, metrics->n_batches,
				 (double) (monotonic_us() - pipeline.started_us) / 1e6);
	}
	release(&pipeline);
	metrics_stop();
	return code;
}

ExitCode
pipeline_check(Config *config)
{
	Pipeline pipeline = {.config = config};

	log_level = LOG_WARNING;
	ExitCode code = prepare(&pipeline, true);
	release(&pipeline);
	return code;
}
