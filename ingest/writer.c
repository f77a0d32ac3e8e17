/*
 * The thread that stores batches.
 *
 * The reader gives a batch and goes on with an empty one.  `phase` says whose the batch and the sink are: the writer's
 * while it is GIVEN, the reader's otherwise.  A batch that cannot be stored as it is stays HELD until the reader has
 * either made its rows anew (the table has other columns) or drops it (the position is not what it was).
 */
#include "ingest.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#define SLICE_MS 50 /* how soon one who waits sees that a stop was asked for */

typedef enum Phase
{
	PHASE_IDLE,
	PHASE_GIVEN,
	PHASE_HELD
} Phase;

struct Writer
{
	const Config *config;
	Sink *sink;
	const CopyColumns *columns;
	Router router;
	bool needs_leaves; /* the partitions are to be read before the next batch */
	Batch batch;
	bool has_stored; /* the batch's positions are stored, and nobody has asked yet */

	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t has_changed; /* phase or quits */
	Phase phase;
	bool quits;
	WriterState state;
	ExitCode code;
};

/* ---- the writer's thread ---- */

/* A status that may come from columns that were added, dropped or altered.  SINK_CHANGED when they were. */
static SinkStatus
look_for_change(Writer *writer, SinkStatus status)
{
	bool has_changed = false;

	if (status != SINK_RETRY && status != SINK_MOVED && status != SINK_DENIED && status != SINK_BROKEN)
		return status;
	SinkStatus asked = sink_has_changed(writer->sink, writer->router.table, &has_changed);

	return asked == SINK_LOST ? SINK_LOST : has_changed ? SINK_CHANGED : status;
}

/* One try. */
static SinkStatus
store_once(Writer *writer, bool *is_routed)
{
	Batch *batch = &writer->batch;
	SinkStatus status = SINK_OK;

	if (writer->needs_leaves)
	{
		status = router_reload(&writer->router, batch);
		writer->needs_leaves = status != SINK_OK;
	}
	if (status == SINK_OK && !*is_routed)
	{
		router_route_all(&writer->router, batch);
		*is_routed = true;
	}
	if (status == SINK_OK)
		status = router_prepare(&writer->router, batch);
	if (status == SINK_OK)
		status =
			store_batch(writer->sink, writer->router.table, &writer->router.leaves, writer->columns, batch);
	writer->needs_leaves |= status == SINK_MOVED;
	return look_for_change(writer, status);
}

/* Stores the batch, however often it takes. */
static WriterState
store(Writer *writer, ExitCode *code)
{
	bool is_routed = false;
	SinkStatus status;
	Retry retry = {0};

	do
		status = store_once(writer, &is_routed);
	while (status != SINK_CHANGED && sink_again(writer->sink, &retry, status, code));
	if (status == SINK_OK)
		return WRITER_GOOD;
	if (status == SINK_CHANGED)
		return WRITER_CHANGED;
	if (status == SINK_FENCED)
		return WRITER_FENCED;
	/* A stop was asked for.  What came from standard input is gone; everything else can be read again. */
	if (*code == EXIT_DONE && writer->config->type == SOURCE_STDIN)
		*code = status == SINK_LOST ? EXIT_CONNECTION : EXIT_REFUSED;
	return WRITER_FAILED;
}

static void *
work(void *argument)
{
	Writer *writer = argument;

	pthread_setname_np(pthread_self(), "writer");
	stop_after_drain();
	log_stream(writer->config->name);
	pthread_mutex_lock(&writer->lock);
	for (;;)
	{
		ExitCode code = EXIT_DONE;

		while (writer->phase != PHASE_GIVEN && !writer->quits)
			pthread_cond_wait(&writer->has_changed, &writer->lock);
		if (writer->phase != PHASE_GIVEN)
			break;
		pthread_mutex_unlock(&writer->lock);
		WriterState state = store(writer, &code);
		if (state == WRITER_GOOD)
		{
			batch_reset(&writer->batch);
			sink_metrics(writer->sink, false);
		}
		pthread_mutex_lock(&writer->lock);
		writer->has_stored = state == WRITER_GOOD;
		writer->phase = state == WRITER_GOOD ? PHASE_IDLE : PHASE_HELD;
		writer->state = state;
		writer->code = code;
		pthread_cond_broadcast(&writer->has_changed);
	}
	pthread_mutex_unlock(&writer->lock);
	return NULL;
}

/* ---- for the reader's thread ---- */

Writer *
writer_open(const Config *config, Sink *sink, const Table *table, const CopyColumns *columns)
{
	Writer *writer = mem_alloc(sizeof(Writer));
	pthread_condattr_t attributes;

	writer->config = config;
	writer->sink = sink;
	writer->columns = columns;
	writer->router.sink = sink;
	writer->router.table = table;
	writer->router.min_us = config->min_time_us;
	writer->router.max_future_us = config->max_future_ms * 1000;
	writer->needs_leaves = true;
	pthread_mutex_init(&writer->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&writer->has_changed, &attributes);
	pthread_condattr_destroy(&attributes);
	if (pthread_create(&writer->thread, NULL, work, writer) != 0)
	{
		log_line(LOG_ERROR, "cannot start a thread");
		exit(EXIT_INTERNAL);
	}
	return writer;
}

void
writer_close(Writer *writer)
{
	if (writer == NULL)
		return;
	pthread_mutex_lock(&writer->lock);
	writer->quits = true;
	pthread_cond_broadcast(&writer->has_changed);
	pthread_mutex_unlock(&writer->lock);
	pthread_join(writer->thread, NULL);
	pthread_cond_destroy(&writer->has_changed);
	pthread_mutex_destroy(&writer->lock);
	router_free(&writer->router);
	batch_free(&writer->batch);
	free(writer);
}

/* Holds the lock when it returns. */
static void
lock_when_not_given(Writer *writer)
{
	pthread_mutex_lock(&writer->lock);
	while (writer->phase == PHASE_GIVEN)
		pthread_cond_wait(&writer->has_changed, &writer->lock);
}

bool
writer_give(Writer *writer, Batch *batch)
{
	lock_when_not_given(writer);
	bool is_taken = writer->phase == PHASE_IDLE;
	if (is_taken)
	{
		batch->number++;
		batch_seal(batch, &writer->batch);
		writer->has_stored = false;
		writer->phase = PHASE_GIVEN;
		pthread_cond_broadcast(&writer->has_changed);
	}
	pthread_mutex_unlock(&writer->lock);
	return is_taken;
}

static Phase
phase_now(Writer *writer)
{
	pthread_mutex_lock(&writer->lock);
	Phase phase = writer->phase;
	pthread_mutex_unlock(&writer->lock);
	return phase;
}

bool
writer_is_idle(Writer *writer)
{
	return phase_now(writer) == PHASE_IDLE;
}

bool
writer_wait(Writer *writer, int64_t within_ms)
{
	int64_t until_us = monotonic_us() + within_ms * 1000;

	pthread_mutex_lock(&writer->lock);
	while (writer->phase == PHASE_GIVEN && !stop_requested())
	{
		int64_t now_us = monotonic_us(), slice_us = now_us + SLICE_MS * 1000;

		if (now_us >= until_us)
			break;
		if (slice_us > until_us)
			slice_us = until_us;
		struct timespec until = {(time_t) (slice_us / 1000000), (long) (slice_us % 1000000) * 1000};
		pthread_cond_timedwait(&writer->has_changed, &writer->lock, &until);
	}
	bool is_idle = writer->phase == PHASE_IDLE;
	pthread_mutex_unlock(&writer->lock);
	return is_idle;
}

Sink *
writer_sink(Writer *writer)
{
	lock_when_not_given(writer);
	bool is_good = writer->state != WRITER_FAILED;
	pthread_mutex_unlock(&writer->lock);
	return is_good ? writer->sink : NULL;
}

WriterState
writer_state(Writer *writer, ExitCode *code)
{
	pthread_mutex_lock(&writer->lock);
	WriterState state = writer->state;
	*code = writer->code;
	pthread_mutex_unlock(&writer->lock);
	return state;
}

bool
writer_stored(Writer *writer, Positions *out)
{
	pthread_mutex_lock(&writer->lock);
	bool has_stored = writer->has_stored;
	writer->has_stored = false;
	pthread_mutex_unlock(&writer->lock);
	if (!has_stored)
		return false;
	*out = writer->batch.positions;
	writer->batch.positions = (Positions){0};
	return true;
}

Batch *
writer_held(Writer *writer)
{
	return phase_now(writer) == PHASE_HELD ? &writer->batch : NULL;
}

void
writer_resume(Writer *writer)
{
	lock_when_not_given(writer);
	writer->needs_leaves = true;
	writer->router.max_future_us = writer->config->max_future_ms * 1000;
	writer->state = WRITER_GOOD;
	if (writer->phase == PHASE_HELD)
		writer->phase = PHASE_GIVEN;
	pthread_cond_broadcast(&writer->has_changed);
	pthread_mutex_unlock(&writer->lock);
}

void
writer_forget(Writer *writer)
{
	lock_when_not_given(writer);
	batch_reset(&writer->batch);
	writer->state = WRITER_GOOD;
	writer->phase = PHASE_IDLE;
	pthread_mutex_unlock(&writer->lock);
}
