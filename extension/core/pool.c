/*
 * pool.c: the processor: threads that share the chunks of a job, and how wide its vectors are.
 *
 * One mutex protects everything in MrcPool but the atomics.  A job is a generation number: workers sleep until
 * it changes, then draw chunks from `next` until it passes n.  A pause (the host has an interrupt to serve) and
 * the end of the pool are the same flag to them: they stop drawing, and report themselves idle.  A chunk that
 * was given back (MRC_AGAIN) stays in its worker's `redo` and is taken first when the job goes on.
 *
 * Workers block all signals: a signal meant for the server's process must never run its handler on a thread.
 */
#include "core.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define POLL_NS (10 * 1000 * 1000)
#define STACK_BYTES (1024 * 1024)
#define PAGE_BYTES 4096 /* or larger */

typedef struct MrcWorker
{
	MrcPool *pool;
	pthread_t thread;
	int number;
	int64_t redo_lo;
	int64_t redo_hi; /* an empty range when nothing was given back */
} MrcWorker;

struct MrcPool
{
	MrcHost host;
	pthread_mutex_t mutex;
	pthread_cond_t work; /* workers wait: a new generation, or quit */
	pthread_cond_t idle; /* the caller waits: n_busy fell to 0 */
	uint64_t generation;
	int n_busy;
	bool quit;
	MrcStatus status;
	MrcTask task;
	void *arg;
	int64_t n;
	int64_t chunk;
	_Atomic int64_t next;
	atomic_bool stop; /* pause, failure or end: draw no more */
	int n_workers;
	MrcWorker workers[];
};

int
mrc_lanes(int most)
{
#if defined(__x86_64__)
	if ((most == 0 || most == 16) && __builtin_cpu_supports("avx512f") &&
		__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
		__builtin_cpu_supports("avx512vl"))
		return 16;
	if (most != 4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return 8;
#else
	(void) most;
#endif
	return 4;
}

size_t
mrc_pool_bytes(int n_threads)
{
	return sizeof(MrcPool) + (size_t) n_threads * sizeof(MrcWorker);
}

int
mrc_pool_size(const MrcPool *pool)
{
	return pool->n_workers;
}

bool
mrc_pool_pausing(const MrcPool *pool)
{
	return atomic_load_explicit(&((MrcPool *) pool)->stop, memory_order_relaxed);
}

static bool
draw(MrcWorker *worker, int64_t *lo, int64_t *hi)
{
	MrcPool *pool = worker->pool;

	if (atomic_load(&pool->stop))
		return false;
	if (worker->redo_lo < worker->redo_hi)
	{
		*lo = worker->redo_lo;
		*hi = worker->redo_hi;
		worker->redo_lo = worker->redo_hi = 0;
		return true;
	}
	*lo = atomic_fetch_add(&pool->next, pool->chunk);
	if (*lo >= pool->n)
		return false;
	*hi = pool->n - *lo > pool->chunk ? *lo + pool->chunk : pool->n;
	return true;
}

/* Draw and run chunks until there are none, or the job stops. */
static MrcStatus
work_on(MrcWorker *worker)
{
	MrcPool *pool = worker->pool;
	int64_t lo;
	int64_t hi;

	while (draw(worker, &lo, &hi))
	{
		MrcStatus status = pool->task(pool->arg, worker->number, lo, hi);

		if (status == MRC_AGAIN)
		{
			worker->redo_lo = lo;
			worker->redo_hi = hi;
		}
		else if (status != MRC_OK)
			return status;
	}
	return MRC_OK;
}

static void *
worker_main(void *arg)
{
	MrcWorker *worker = arg;
	MrcPool *pool = worker->pool;
	uint64_t seen = 0;

	pthread_mutex_lock(&pool->mutex);
	for (;;)
	{
		while (pool->generation == seen && !pool->quit)
			pthread_cond_wait(&pool->work, &pool->mutex);
		if (pool->quit)
			break;
		seen = pool->generation;
		pthread_mutex_unlock(&pool->mutex);

		MrcStatus status = work_on(worker);

		pthread_mutex_lock(&pool->mutex);
		if (status != MRC_OK)
		{
			if (pool->status == MRC_OK)
				pool->status = status;
			atomic_store(&pool->stop, true);
		}
		if (--pool->n_busy == 0)
			pthread_cond_signal(&pool->idle);
	}
	pthread_mutex_unlock(&pool->mutex);
	return NULL;
}

MrcStatus
mrc_pool_start(MrcPool **out, void *memory, int n_threads, const MrcHost *host)
{
	MrcPool *pool = memory;
	pthread_condattr_t cond_attr;
	pthread_attr_t attr;
	sigset_t all;
	sigset_t before;

	memset(pool, 0, sizeof(*pool));
	pool->host = *host;
	atomic_init(&pool->next, 0);
	atomic_init(&pool->stop, false);
	pthread_mutex_init(&pool->mutex, NULL);
	pthread_cond_init(&pool->work, NULL);
	pthread_condattr_init(&cond_attr);
	pthread_condattr_setclock(&cond_attr, CLOCK_MONOTONIC);
	pthread_cond_init(&pool->idle, &cond_attr);
	pthread_condattr_destroy(&cond_attr);

	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	for (int i = 0; i < n_threads; i++)
	{
		MrcWorker *worker = &pool->workers[i];

		memset(worker, 0, sizeof(*worker));
		worker->pool = pool;
		worker->number = i;
		if (pthread_create(&worker->thread, &attr, worker_main, worker) != 0)
			break;
		pool->n_workers++;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attr);
	if (pool->n_workers == 0)
	{
		mrc_pool_stop(pool);
		return MRC_NOTHREAD;
	}
	*out = pool;
	return MRC_OK;
}

/* Wait, with the mutex held, until no worker is busy; ask the host meanwhile.  True if it wants a pause. */
static bool
wait_idle(MrcPool *pool)
{
	bool wanted = false;

	while (pool->n_busy > 0)
	{
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += POLL_NS;
		if (until.tv_nsec >= 1000000000)
		{
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
		pthread_cond_timedwait(&pool->idle, &pool->mutex, &until);
		if (pool->n_busy > 0 && !wanted && pool->host.pending(pool->host.arg))
		{
			wanted = true;
			atomic_store(&pool->stop, true);
		}
	}
	return wanted;
}

static bool
job_done(const MrcPool *pool)
{
	for (int i = 0; i < pool->n_workers; i++)
		if (pool->workers[i].redo_lo < pool->workers[i].redo_hi)
			return false;
	return atomic_load(&((MrcPool *) pool)->next) >= pool->n;
}

/* Let the workers draw. */
static void
wake(MrcPool *pool)
{
	pthread_mutex_lock(&pool->mutex);
	atomic_store(&pool->stop, false);
	pool->n_busy = pool->n_workers;
	pool->generation++;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->mutex);
}

void
mrc_pool_begin(MrcPool *pool, int64_t n, int64_t chunk, MrcTask task, void *arg)
{
	pool->status = MRC_OK;
	pool->task = task;
	pool->arg = arg;
	pool->n = n;
	pool->chunk = chunk;
	atomic_store(&pool->next, 0);
	for (int i = 0; i < pool->n_workers; i++)
		pool->workers[i].redo_lo = pool->workers[i].redo_hi = 0;
	if (n > 0)
		wake(pool);
}

MrcStatus
mrc_pool_end(MrcPool *pool)
{
	for (;;)
	{
		bool wanted;

		pthread_mutex_lock(&pool->mutex);
		wanted = wait_idle(pool);
		pthread_mutex_unlock(&pool->mutex);
		/* At the end, too: short jobs of which nobody waits for one add up. */
		wanted = wanted || pool->host.pending(pool->host.arg);
		if (wanted && !pool->host.interrupt(pool->host.arg))
			return MRC_CANCELLED;
		if (pool->status != MRC_OK || job_done(pool))
			return pool->status;
		wake(pool);
	}
}

MrcStatus
mrc_pool_run(MrcPool *pool, int64_t n, int64_t chunk, MrcTask task, void *arg)
{
	mrc_pool_begin(pool, n, chunk, task, arg);
	return mrc_pool_end(pool);
}

MrcStatus
mrc_touch(void *arg, int worker, int64_t lo, int64_t hi)
{
	volatile char *memory = arg;

	(void) worker;
	for (; lo < hi; lo += PAGE_BYTES)
		memory[lo] = 0;
	return MRC_OK;
}

void
mrc_pool_stop(MrcPool *pool)
{
	pthread_mutex_lock(&pool->mutex);
	atomic_store(&pool->stop, true);
	pool->quit = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->mutex);
	for (int i = 0; i < pool->n_workers; i++)
		pthread_join(pool->workers[i].thread, NULL);
	pthread_mutex_destroy(&pool->mutex);
	pthread_cond_destroy(&pool->work);
	pthread_cond_destroy(&pool->idle);
}
