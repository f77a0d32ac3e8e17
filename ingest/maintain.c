/*
 * The thread that keeps the database in order beside the streams: retention, and what millrace.maintain() does.
 */
#include "ingest.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

struct Maintainer
{
	Config *configs;
	int n_configs;
	int64_t *due_us; /* monotonic; INT64_MAX: never */
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t has_changed; /* quits */
	bool quits;
	Sink *sink; /* at work; under the lock */
};

/* False when it is to quit. */
static bool
set_sink(Maintainer *maintainer, Sink *sink)
{
	pthread_mutex_lock(&maintainer->lock);
	maintainer->sink = sink;
	bool goes_on = !maintainer->quits;
	pthread_mutex_unlock(&maintainer->lock);
	return goes_on;
}

static void
maintain(Maintainer *maintainer, Config *config)
{
	Sink *sink = NULL;

	/* The writer tries already, and says so. */
	if (config->metrics->is_database_lost)
		return;
	log_stream(config->name);
	if (sink_open(config, &sink) == EXIT_DONE && set_sink(maintainer, sink))
		sink_maintain(sink);
	set_sink(maintainer, NULL);
	sink_close(sink);
	log_stream(NULL);
}

/* Which stream is next. */
static int
next_due(const Maintainer *maintainer)
{
	int next = 0;

	for (int i = 1; i < maintainer->n_configs; i++)
		if (maintainer->due_us[i] < maintainer->due_us[next])
			next = i;
	return next;
}

static void *
work(void *argument)
{
	Maintainer *maintainer = argument;

	pthread_mutex_lock(&maintainer->lock);
	while (!maintainer->quits)
	{
		int next = next_due(maintainer);
		int64_t due_us = maintainer->due_us[next];
		struct timespec until = {(time_t) (due_us / 1000000), (long) (due_us % 1000000) * 1000};

		if (due_us == INT64_MAX)
		{
			pthread_cond_wait(&maintainer->has_changed, &maintainer->lock);
			continue;
		}
		if (monotonic_us() < due_us)
		{
			pthread_cond_timedwait(&maintainer->has_changed, &maintainer->lock, &until);
			continue;
		}
		pthread_mutex_unlock(&maintainer->lock);
		maintain(maintainer, &maintainer->configs[next]);
		pthread_mutex_lock(&maintainer->lock);
		maintainer->due_us[next] = monotonic_us() + maintainer->configs[next].maintain_ms * 1000;
	}
	pthread_mutex_unlock(&maintainer->lock);
	return NULL;
}

Maintainer *
maintainer_start(Config *configs, int n_configs)
{
	Maintainer *maintainer = mem_alloc(sizeof(Maintainer));
	pthread_condattr_t attributes;

	maintainer->configs = configs;
	maintainer->n_configs = n_configs;
	maintainer->due_us = mem_alloc(sizeof(int64_t) * (size_t) n_configs);
	for (int i = 0; i < n_configs; i++)
		maintainer->due_us[i] =
			configs[i].maintain_ms > 0 ? monotonic_us() + configs[i].maintain_ms * 1000 : INT64_MAX;
	pthread_mutex_init(&maintainer->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&maintainer->has_changed, &attributes);
	pthread_condattr_destroy(&attributes);
	if (pthread_create(&maintainer->thread, NULL, work, maintainer) != 0)
	{
		log_line(LOG_ERROR, "cannot start a thread");
		exit(EXIT_INTERNAL);
	}
	return maintainer;
}

void
maintainer_stop(Maintainer *maintainer)
{
	struct timespec until;

	pthread_mutex_lock(&maintainer->lock);
	maintainer->quits = true;
	pthread_cond_broadcast(&maintainer->has_changed);
	pthread_mutex_unlock(&maintainer->lock);
	/* Again and again: a cancel that comes between two statements stops none. */
	do
	{
		pthread_mutex_lock(&maintainer->lock);
		if (maintainer->sink != NULL)
			sink_cancel(maintainer->sink);
		pthread_mutex_unlock(&maintainer->lock);
		int64_t until_us = clock_us() + 100000;
		until = (struct timespec){(time_t) (until_us / 1000000), (long) (until_us % 1000000) * 1000};
	} while (pthread_timedjoin_np(maintainer->thread, NULL, &until) != 0);
	pthread_cond_destroy(&maintainer->has_changed);
	pthread_mutex_destroy(&maintainer->lock);
	free(maintainer->due_us);
	free(maintainer);
}
