/*
 * Builds the chain from source to sink, and turns it: poll the source, give the batch to the writer when it is due.
 *
 * The main thread prepares all streams and then only watches: it ends what a signal or a failed stream wants ended,
 * reads the files again at SIGHUP, and shows the progress line.  Each stream has a reader's thread, which runs turn()
 * and owns everything in Pipeline but what is said to be the main thread's.
 */
#include "ingest.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PROGRESS_MS 200
#define IDLE_MS 200	   /* how long a poll waits when no batch is open; also how soon a signal is seen */
#define BUSY_MS 5	   /* how long it waits when the batch is due and the writer has one */
#define BLOCKED_MS 100 /* how long the reader waits for the writer at a time when the batch is full */
#define GRACE_MS 3000  /* how long after batch.drain the process ends, whatever hangs */
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
	int64_t looked_us;		  /* when lag or files were looked at */
	int64_t n_compared;		  /* reconnects after which the positions were compared */
	ExitCode code;			  /* of the reader's thread, once it is done */

	_Atomic(Config *) fresh;  /* the file as SIGHUP found it; whoever takes it out owns it */
	_Atomic int64_t drain_ms; /* config->drain_ms, for the main thread */
	atomic_bool is_done;
	/* main thread */
	pthread_t thread;
	bool is_joined;
	int64_t shown_rows;
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
	code = first_of(code, sink_open(config, &pipeline->sink));
	if (!sink_is_open(pipeline->sink))
		return code;
	ExitCode described = sink_describe(pipeline->sink, config, &pipeline->table);
	code = first_of(code, described);
	if (pipeline->table.columns == NULL)
		return code;
	code = first_of(code, mapping_build(&pipeline->mapping, config, &pipeline->table));
	int n_before = config->n_errors;
	for (int i = 0; i < pipeline->mapping.n_columns; i++)
	{
		const Mapped *mapped = &pipeline->mapping.columns[i];

		if (mapped->fallback != NULL)
			sink_check_default(pipeline->sink, config, &pipeline->table, mapped->column, mapped->rule,
							   mapped->fallback);
	}
	return config->n_errors > n_before ? first_of(code, EXIT_TARGET) : code;
}

static bool
shows_progress(const Config *config)
{
	return config->log_format == LOG_TEXT && (config->progress || isatty(STDERR_FILENO));
}

/* With a progress line only warnings: it says as much as the batches' lines do. */
static void
set_log_level(const Config *config)
{
	log_format = (LogFormat) config->log_format;
	log_level =
		shows_progress(config) && !config->log_level_given ? LOG_WARNING : (LogLevel) config->log_level;
}

static ExitCode
build(Pipeline *pipeline)
{
	Config *config = pipeline->config;

	pipeline->batch.max_rows = config->n_shown > 0 ? config->n_shown : config->max_rows;
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

/* The main thread's part, when the reader's thread has ended. */
static void
release(Pipeline *pipeline)
{
	Config *fresh = atomic_exchange(&pipeline->fresh, NULL);

	if (fresh != NULL)
	{
		config_free(fresh);
		free(fresh);
	}
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

static ExitCode add_columns(Pipeline *pipeline, const NewColumns *columns, bool *is_over);

/*
 * Once.  Errors of the table or of [columns] are told with file and line.  *is_over: the connection is lost, and it is no
 * more tried.
 */
static ExitCode
describe_again(Pipeline *pipeline, Sink *sink, Table *table, Mapping *mapping, bool *is_over)
{
	Config *config = pipeline->config;
	Retry retry = {0};
	ExitCode code, given_up;

	while ((code = sink_describe(sink, config, table)) == EXIT_CONNECTION)
	{
		table_free(table);
		if (sink_again(sink, &retry, SINK_LOST, &given_up))
			continue;
		*is_over = true;
		return given_up;
	}
	*mapping = (Mapping){.batch = &pipeline->batch};
	if (code == EXIT_DONE)
		code = mapping_build(mapping, config, table);
	if (code == EXIT_DONE)
		return EXIT_DONE;
	mapping_free(mapping);
	table_free(table);
	config->n_errors = 0;
	return code;
}

/*
 * The table's columns are read anew, and every row that is not stored is made again of its bytes.  The mapping points
 * into the table; both keep their addresses, which writer and decoder know.  When something is wrong, all stays as it is;
 * with a batch that is held it is tried again within target.retry: whoever makes the table anew may not be done.
 */
static ExitCode
reload(Pipeline *pipeline, bool *is_over)
{
	Config *config = pipeline->config;
	Sink *sink = writer_sink(pipeline->writer);
	Batch *held = writer_held(pipeline->writer);
	Mapping mapping;
	Table table = {0};
	Retry retry = {0};
	ExitCode code, given_up;

	if (sink == NULL)
		return EXIT_DONE; /* hear_writer() tells why */
	while ((code = describe_again(pipeline, sink, &table, &mapping, is_over)) != EXIT_DONE && !*is_over)
	{
		if (held == NULL)
			return code;
		if (sink_again(sink, &retry, SINK_RETRY, &given_up))
			continue;
		*is_over = given_up == EXIT_DONE; /* a stop was asked for */
		return *is_over ? EXIT_DONE : code;
	}
	if (*is_over)
		return code;
	mapping_free(&pipeline->mapping);
	table_free(&pipeline->table);
	pipeline->table = table;
	pipeline->mapping = mapping;
	pipeline->mapping.table = &pipeline->table;
	decode_again(pipeline->decoder, &pipeline->batch);
	if (held != NULL)
		decode_again(pipeline->decoder, held);
	config->metrics->n_reloads++;
	log_line(LOG_INFO, "table %s: its columns were read anew", pipeline->table.name);
	/* A column may be gone for which rows of the waiting batch have a value. */
	const NewColumns *columns = decode_wants(pipeline->decoder);
	if (columns != NULL)
		return add_columns(pipeline, columns, is_over);
	writer_resume(pipeline->writer);
	return EXIT_DONE;
}

/* Columns that on_unknown_field = add_column wants.  Rows that want them must not be stored without them. */
static ExitCode
add_columns(Pipeline *pipeline, const NewColumns *columns, bool *is_over)
{
	Sink *sink = columns ? writer_sink(pipeline->writer) : NULL;
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;

	if (sink == NULL)
		return EXIT_DONE;
	do
		status = sink_add_columns(sink, &pipeline->table, columns);
	while (sink_again(sink, &retry, status, &code));
	if (status == SINK_OK)
		return reload(pipeline, is_over);
	*is_over = true;
	return code;
}

/* After SIGHUP.  What cannot be, as the file or the table are now, is logged, and the stream goes on as before. */
static void
take_fresh(Pipeline *pipeline)
{
	Config *fresh = atomic_exchange(&pipeline->fresh, NULL), *config = pipeline->config;
	bool is_over = false;

	config_apply(config, fresh);
	config_free(fresh);
	free(fresh);
	pipeline->drain_ms = config->drain_ms;
	pipeline->batch.max_rows = config->max_rows;
	pipeline->batch.max_bytes = config->max_bytes;
	set_log_level(config);
	if (reload(pipeline, &is_over) != EXIT_DONE || is_over)
		log_line(LOG_WARNING, "table %s: its columns could not be read anew", pipeline->table.name);
}

/* Drops what was read; Kafka is read again from the database's positions. */
static ExitCode
read_again(Pipeline *pipeline)
{
	writer_forget(pipeline->writer);
	batch_reset(&pipeline->batch);
	pipeline->at_end = pipeline->must_give = false;
	return kafka_source_resync(pipeline->kafka);
}

/* Another ingester has moved a position.  Kafka's can be asked for again; a file has one reader. */
static ExitCode
resync(Pipeline *pipeline)
{
	if (pipeline->kafka == NULL || ++pipeline->n_fenced >= MOST_FENCED)
		return EXIT_FENCED;
	return read_again(pipeline);
}

/* What the writer has to say.  *is_over: the stream ends now, with EXIT_DONE when it gave up because of a stop. */
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
			return reload(pipeline, is_over);
		case WRITER_FENCED:
			return resync(pipeline);
		case WRITER_FAILED:
			break;
	}
	*is_over = true;
	return code;
}

/*
 * A server that is there again may have forgotten what it had committed: it crashed with synchronous_commit off, or a
 * standby has taken over.  What is missing is read again, also when nothing new comes.  Between batches.
 */
static ExitCode
compare_positions(Pipeline *pipeline)
{
	Sink *sink = writer_sink(pipeline->writer);
	int64_t n_reconnects = pipeline->config->metrics->n_reconnects;
	Positions in_files = {0};
	bool is_same = true;

	if (sink == NULL || !sink_is_there(sink))
		return EXIT_DONE;
	if (pipeline->files != NULL)
		file_source_positions(pipeline->files, &in_files);
	SinkStatus status =
		sink_compare(sink, pipeline->kafka ? &pipeline->batch.positions : &in_files, &is_same);
	positions_clear(&in_files);
	if (status != SINK_OK)
		return EXIT_DONE; /* the next time */
	pipeline->n_compared = n_reconnects;
	if (is_same)
		return EXIT_DONE;
	log_line(LOG_WARNING,
			 "the database does not have the positions that were stored: it has lost them, or "
			 "another ingester has moved them");
	return pipeline->kafka ? read_again(pipeline) : EXIT_FENCED;
}

/* For the metrics and the progress line. */
static void
look_around(Pipeline *pipeline)
{
	pipeline->looked_us = monotonic_us();
	if (pipeline->files != NULL)
		file_source_progress(pipeline->files);
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

/* Waits while the writer works.  False: it holds its batch. */
static bool
give(Pipeline *pipeline)
{
	writer_sink(pipeline->writer);
	take_stored(pipeline);
	return writer_give(pipeline->writer, &pipeline->batch);
}

/* Gives the open batch, waiting while the writer has one. */
static ExitCode
flush(Pipeline *pipeline)
{
	bool is_over = false;
	ExitCode code = EXIT_DONE;

	while (is_open(&pipeline->batch) && !is_over)
	{
		if (give(pipeline))
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

/* What was read and will not be stored by this process.  True when it cannot be read again. */
static bool
tell_lost(Pipeline *pipeline)
{
	const Batch *held = writer_held(pipeline->writer), *open = &pipeline->batch;
	int n_rows = open->n_rows - open->n_dropped + (held ? held->n_rows - held->n_dropped : 0);

	if (n_rows > 0 && pipeline->config->type == SOURCE_STDIN)
		log_line(LOG_ERROR, "stopped before the last %d rows of standard input could be stored", n_rows);
	else if (n_rows > 0)
		log_line(LOG_INFO, "%d rows were read and not stored; they are read again next time", n_rows);
	return n_rows > 0 && pipeline->config->type == SOURCE_STDIN;
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
		ExitCode failed = status == SOURCE_FAILED ? code : EXIT_DONE;
		if ((code = hear_writer(pipeline, &is_over)) != EXIT_DONE || is_over ||
			(code = add_columns(pipeline, decode_wants(pipeline->decoder), &is_over)) != EXIT_DONE || is_over)
			return code;
		if (failed != EXIT_DONE)
		{
			stop(); /* what was read before is stored, within batch.drain */
			drain(pipeline);
			return failed;
		}
		if (pipeline->fresh != NULL && writer_is_idle(pipeline->writer))
			take_fresh(pipeline);
		if (pipeline->n_compared != pipeline->config->metrics->n_reconnects &&
			writer_is_idle(pipeline->writer) && (code = compare_positions(pipeline)) != EXIT_DONE)
			return code;
		/* All rows of an open batch may have been dropped with their partitions. */
		if (pipeline->batch.n_rows > 0 && !is_open(&pipeline->batch))
			batch_reset(&pipeline->batch);
		if (!is_open(&pipeline->batch))
			pipeline->must_give = false;
		else if (is_due(pipeline) && writer_is_idle(pipeline->writer))
		{
			give(pipeline);
			pipeline->must_give = false;
		}
		store_offer(pipeline->sink, &pipeline->batch);
		pipeline->config->metrics->open_rows = pipeline->batch.n_rows - pipeline->batch.n_dropped;
		if (monotonic_us() - pipeline->looked_us >= PROGRESS_MS * 1000)
		{
			look_around(pipeline);
			if (writer_is_idle(pipeline->writer) && sink_is_there(pipeline->sink))
				sink_metrics(pipeline->sink, false);
		}
	}
	return drain(pipeline);
}

/* ---- --show ---- */

/* One row as COPY would get it, with what it came from before it. */
static void
show_row(const Pipeline *pipeline, const Row *row, Buffer *out)
{
	const Position *position = &pipeline->batch.positions.list[row->position];
	const CopyColumns *columns = &pipeline->mapping.copy;
	const char *at = row->copy, *end = row->copy + row->copy_bytes;

	buffer_printf(out, "%s", position->topic);
	if (pipeline->kafka != NULL)
		buffer_printf(out, "[%" PRId32 "]", position->partition);
	buffer_printf(out, " %" PRId64, row->offset);
	if (row->dead != NULL)
	{
		buffer_printf(out, "\tdead letter of stage %s: %s\n", row->dead->stage, row->dead->reason);
		return;
	}
	for (int i = 0; i < columns->n_columns; i++)
	{
		int bit = columns->default_bit[i];

		buffer_printf(out, "\t%s=", columns->columns[i]->name);
		if (bit >= 0 && (row->omitted & UINT64_C(1) << bit))
		{
			buffer_printf(out, "DEFAULT");
			continue;
		}
		const char *tab = memchr(at, '\t', (size_t) (end - at));
		buffer_add(out, at, (size_t) ((tab ? tab : end - 1) - at));
		at = tab ? tab + 1 : end;
	}
	buffer_add(out, "\n", 1);
}

/* Prints the first rows that are there; nothing is stored, and no session of it may write. */
static ExitCode
show(Pipeline *pipeline)
{
	SourceStatus status = SOURCE_MORE;
	ExitCode code = EXIT_DONE;
	Buffer out = {0};

	/* Files that wait to be stored are all that is there. */
	while (!stop_requested() && status != SOURCE_END && !batch_is_full(&pipeline->batch) &&
		   !(status == SOURCE_IDLE && pipeline->files != NULL))
	{
		status = pipeline->kafka ? kafka_source_poll(pipeline->kafka, IDLE_MS, &code)
								 : file_source_poll(pipeline->files, IDLE_MS, &code);
		if (status == SOURCE_FAILED)
			return code;
	}
	for (int i = 0; i < pipeline->batch.n_rows && i < pipeline->config->n_shown; i++)
		show_row(pipeline, &pipeline->batch.rows[i], &out);
	fwrite(out.data, 1, out.n_bytes, stdout);
	buffer_free(&out);
	return EXIT_DONE;
}

static void *
read_stream(void *argument)
{
	Pipeline *pipeline = argument;
	Metrics *metrics = pipeline->config->metrics;
	int64_t started_us = monotonic_us();

	pthread_setname_np(pthread_self(), "reader");
	log_stream(pipeline->config->name);
	ExitCode code = build(pipeline);
	bool is_built = code == EXIT_DONE, shows = pipeline->config->n_shown > 0;

	metrics->is_reading = is_built;
	if (is_built && shows)
		code = show(pipeline);
	else if (is_built)
	{
		code = turn(pipeline);
		if (code != EXIT_DONE)
			stop();					   /* also so that batch.drain runs for the writer */
		writer_sink(pipeline->writer); /* a batch that it has is finished, whatever ended the reader */
		take_stored(pipeline);
		look_around(pipeline);
		if (tell_lost(pipeline) && code == EXIT_DONE)
			code = EXIT_REFUSED;
	}
	letter_source_close(pipeline->letters);
	kafka_source_close(pipeline->kafka);
	file_source_close(pipeline->files);
	writer_close(pipeline->writer);
	if (is_built && !shows)
	{
		sink_metrics(pipeline->sink, true);
		log_line(LOG_INFO, "%s: %" PRId64 " rows and %" PRId64 " dead letters in %" PRId64 " batches, %.1f s",
				 code != EXIT_DONE		? "stopped by an error"
					 : stop_requested() ? "stopped"
										: "done",
				 metrics->n_rows, metrics->n_dead_letters, metrics->n_batches,
				 (double) (monotonic_us() - started_us) / 1e6);
	}
	pipeline->code = code;
	pipeline->is_done = true;
	wake_main();
	return NULL;
}

/* ---- the process ---- */

static void
show_progress(Pipeline *streams, int n_streams, int64_t since_us, bool is_final)
{
	Buffer line = {0};

	for (int i = 0; i < n_streams; i++)
	{
		const Config *config = streams[i].config;
		const Metrics *metrics = config->metrics;
		int64_t n_rows = metrics->n_rows, n_dead_letters = metrics->n_dead_letters;

		if (n_streams > 1)
			buffer_printf(&line, "%s%s: ", i > 0 ? "; " : "", config->name);
		buffer_printf(&line, "%" PRId64 " rows, %.0f rows/s", n_rows,
					  (double) (n_rows - (is_final ? 0 : streams[i].shown_rows)) * 1e6 /
						  (double) (since_us > 0 ? since_us : 1));
		if (config->type == SOURCE_KAFKA)
			buffer_printf(&line, ", lag %" PRId64, metrics->lag);
		else if (config->type == SOURCE_DIRECTORY)
			buffer_printf(&line, ", %" PRId64 " of %" PRId64 " files", metrics->n_files,
						  metrics->n_files_total);
		if (n_dead_letters > 0)
			buffer_printf(&line, ", %" PRId64 " dead letters", n_dead_letters);
		streams[i].shown_rows = n_rows;
	}
	log_progress(is_final, "%s", line.data);
	buffer_free(&line);
}

static void
read_files_again(Pipeline *streams, int n_streams)
{
	for (int i = 0; i < n_streams; i++)
	{
		Config *config = streams[i].config, *fresh = mem_alloc(sizeof(Config));

		if (config_load(fresh, config->file, config->n_flags, config->flags) == EXIT_DONE)
		{
			log_line(LOG_INFO, "%s was read again", config->file);
			fresh = atomic_exchange(&streams[i].fresh, fresh);
		}
		else
			log_line(LOG_WARNING, "%s has errors: the stream goes on as before", config->file);
		if (fresh == NULL)
			continue;
		config_free(fresh);
		free(fresh);
	}
}

/* Joins the threads that have ended; the first that failed ends the others.  Returns how many run. */
static int
join_ended(Pipeline *streams, int n_streams, ExitCode *code)
{
	int n_running = 0;

	for (int i = 0; i < n_streams; i++)
	{
		Pipeline *stream = &streams[i];

		if (!stream->is_done)
			n_running++;
		else if (!stream->is_joined)
		{
			pthread_join(stream->thread, NULL);
			stream->is_joined = true;
			*code = first_of(*code, stream->code);
			if (stream->code != EXIT_DONE)
				stop();
		}
	}
	return n_running;
}

/* Until every stream has ended. */
static ExitCode
watch(Pipeline *streams, int n_streams)
{
	int64_t started_us = monotonic_us(), shown_us = started_us, drained_us = 0, drain_ms = 0;
	int64_t pause_ms = isatty(STDERR_FILENO) ? PROGRESS_MS : 1000;
	bool shows = shows_progress(streams[0].config) && streams[0].config->n_shown == 0;
	ExitCode code = EXIT_DONE;

	while (join_ended(streams, n_streams, &code) > 0)
	{
		int64_t now_us = monotonic_us();

		if (stop_requested() && drained_us == 0)
		{
			for (int i = 0; i < n_streams; i++)
				if (streams[i].drain_ms > drain_ms)
					drain_ms = streams[i].drain_ms;
			drained_us = now_us + drain_ms * 1000;
			signals_end_within(drain_ms + GRACE_MS);
		}
		if (drained_us > 0 && now_us >= drained_us)
		{
			/* At each turn: between two statements there is nothing to cancel, and the next one may wait again. */
			stop_now();
			for (int i = 0; i < n_streams; i++)
				if (!streams[i].is_done)
					sink_cancel(streams[i].sink);
		}
		if (reload_requested())
			read_files_again(streams, n_streams);
		if (shows && now_us - shown_us >= pause_ms * 1000)
		{
			show_progress(streams, n_streams, now_us - shown_us, false);
			shown_us = now_us;
		}
		wait_for_wake(PROGRESS_MS);
	}
	if (shows)
		show_progress(streams, n_streams, monotonic_us() - started_us, true);
	return code;
}

static void
start(Pipeline *stream)
{
	stream->drain_ms = stream->config->drain_ms;
	if (pthread_create(&stream->thread, NULL, read_stream, stream) == 0)
		return;
	log_line(LOG_ERROR, "cannot start a thread");
	exit(EXIT_INTERNAL);
}

ExitCode
pipeline_run(Config *configs, int n_configs)
{
	Pipeline *streams = mem_alloc(sizeof(Pipeline) * (size_t) n_configs);

	signals_take_reload();
	set_log_level(&configs[0]);
	log_names_streams = n_configs > 1;
	for (int i = 0; i < n_configs; i++)
		metrics_publish(configs[i].metrics);
	ExitCode code = metrics_serve(&configs[0]);
	for (int i = 0; i < n_configs && (code == EXIT_DONE || i > 0); i++)
	{
		streams[i].config = &configs[i];
		code = first_of(code, prepare(&streams[i], false));
		/* Some have their name only now. */
		for (int j = 0; code == EXIT_DONE && j < i; j++)
			if (!config_names_differ(&configs[i], &configs[j]))
				code = EXIT_USAGE;
	}
	if (code == EXIT_DONE)
	{
		for (int i = 0; i < n_configs; i++)
			start(&streams[i]);
		Maintainer *maintainer = maintainer_start(configs, n_configs);
		code = watch(streams, n_configs);
		maintainer_stop(maintainer);
	}
	for (int i = 0; i < n_configs; i++)
		release(&streams[i]);
	free(streams);
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
