/*
 * Builds the chain from source to sink, and turns it: poll the source, store the batch when it is due.
 */
#include "ingest.h"

#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define IDLE_MS 200 /* how long a poll waits when no batch is open; also how soon a signal is seen */

typedef struct Pipeline
{
	Config *config;
	Sink *sink;
	Table table;
	Router router;
	Mapping mapping;
	Decoder *decoder;
	Batch batch;
	FileSource *files;
	KafkaSource *kafka;
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

	if (config->type == SOURCE_DIRECTORY || config->type == SOURCE_FILE)
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
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;

	pipeline->batch.max_rows = config->max_rows;
	pipeline->batch.max_bytes = config->max_bytes;
	pipeline->router.sink = pipeline->sink;
	pipeline->router.table = &pipeline->table;
	pipeline->router.min_us = config->min_time_us;
	pipeline->router.max_future_us = config->max_future_ms * 1000;
	pipeline->mapping.router = &pipeline->router;
	pipeline->mapping.batch = &pipeline->batch;
	do
		status = sink_leaves(pipeline->sink, &pipeline->table, &pipeline->router.leaves);
	while (sink_again(pipeline->sink, &retry, status, &code));
	if (status != SINK_OK)
		return code;
	pipeline->decoder = decoder_open(config, &pipeline->mapping);
	if (config->type == SOURCE_KAFKA)
		return kafka_source_open(config, pipeline->sink, pipeline->decoder, &pipeline->batch,
								 &pipeline->kafka);
	pipeline->files = file_source_open(config, pipeline->sink, pipeline->decoder, &pipeline->batch);
	return EXIT_DONE;
}

static void
release(Pipeline *pipeline)
{
	kafka_source_close(pipeline->kafka);
	file_source_close(pipeline->files);
	decoder_free(pipeline->decoder);
	mapping_free(&pipeline->mapping);
	router_free(&pipeline->router);
	table_free(&pipeline->table);
	batch_free(&pipeline->batch);
	sink_close(pipeline->sink);
}

static bool
is_open(const Batch *batch)
{
	return batch->n_rows > batch->n_dropped || batch->has_moved;
}

/* Stores the open batch, however often it takes. */
static ExitCode
flush(Pipeline *pipeline)
{
	Batch *batch = &pipeline->batch;
	SinkStatus status = SINK_OK;
	Retry retry = {0};
	ExitCode code;

	batch->number++;
	do
	{
		if (status == SINK_MOVED)
			status = router_reload(&pipeline->router, batch);
		else
			status = SINK_OK;
		if (status == SINK_OK)
			status = router_prepare(&pipeline->router, batch);
		if (status == SINK_OK)
			status = sink_store(pipeline->sink, &pipeline->table, &pipeline->router.leaves,
								&pipeline->mapping.copy, batch);
	} while (sink_again(pipeline->sink, &retry, status, &code));
	if (status != SINK_OK)
	{
		/* A stop was asked for.  What came from standard input is gone; everything else can be read again. */
		if (code == EXIT_DONE && pipeline->config->type == SOURCE_STDIN)
		{
			code = status == SINK_LOST ? EXIT_CONNECTION : EXIT_REFUSED;
			log_line(LOG_ERROR, "stopped before the last %d rows of standard input could be stored",
					 batch->n_rows);
		}
		return code;
	}
	if (pipeline->files != NULL)
		file_source_stored(pipeline->files);
	batch_reset(batch);
	return EXIT_DONE;
}

static void
show_progress(Pipeline *pipeline, bool final)
{
	const Metrics *metrics = pipeline->config->metrics;
	int64_t now_us = monotonic_us(), since_us = now_us - (final ? pipeline->started_us : pipeline->shown_us);
	Buffer more = {0};

	if (!pipeline->shows_progress || (!final && since_us < (isatty(STDERR_FILENO) ? 200000 : 1000000)))
		return;
	buffer_printf(&more, "%s", "");
	if (pipeline->files != NULL)
		file_source_progress(pipeline->files, &more);
	else
		kafka_source_progress(pipeline->kafka, &more);
	int64_t n_rows = metrics->n_rows, n_dead_letters = metrics->n_dead_letters;
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
is_due(const Pipeline *pipeline, SourceStatus status)
{
	const Batch *batch = &pipeline->batch;
	bool ages = pipeline->config->type == SOURCE_KAFKA || pipeline->config->type == SOURCE_STDIN;

	if (!is_open(batch))
		return false;
	return status == SOURCE_FLUSH || status == SOURCE_END || batch_is_full(batch) ||
		(ages && monotonic_us() - batch->opened_us >= pipeline->config->max_age_ms * 1000);
}

static int64_t
poll_wait(const Pipeline *pipeline)
{
	int64_t left = pipeline->config->max_age_ms - (monotonic_us() - pipeline->batch.opened_us) / 1000;

	if (pipeline->batch.n_rows == 0 || left > IDLE_MS)
		return IDLE_MS;
	return left > 1 ? left : 1;
}

static ExitCode
turn(Pipeline *pipeline)
{
	SourceStatus status = SOURCE_MORE;
	ExitCode code = EXIT_DONE;

	while (!stop_requested() && status != SOURCE_END)
	{
		int64_t wait = poll_wait(pipeline);

		status = pipeline->kafka ? kafka_source_poll(pipeline->kafka, wait, &code)
								 : file_source_poll(pipeline->files, wait, &code);
		if (status == SOURCE_FAILED)
			return code;
		/* All rows of an open batch may have been dropped with their partitions. */
		if (pipeline->batch.n_rows > 0 && !is_open(&pipeline->batch))
			batch_reset(&pipeline->batch);
		if (is_due(pipeline, status) && (code = flush(pipeline)) != EXIT_DONE)
			return code;
		pipeline->config->metrics->is_reading = true;
		pipeline->config->metrics->open_rows = pipeline->batch.n_rows - pipeline->batch.n_dropped;
		sink_metrics(pipeline->sink, false);
		show_progress(pipeline, false);
	}
	if (!is_open(&pipeline->batch))
		return EXIT_DONE;
	/* Everything but standard input can be read again. */
	if (pipeline->config->type == SOURCE_STDIN)
		return flush(pipeline);
	log_line(LOG_INFO, "the open batch of %d rows is dropped; they are read again next time",
			 pipeline->batch.n_rows);
	return EXIT_DONE;
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
