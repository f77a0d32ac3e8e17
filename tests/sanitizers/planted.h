/* Faults that `tests/sanitizers/run --planted` puts into a copy of the sources; nothing else includes this. */
#include <pthread.h>
#include <stdlib.h>

/* A byte behind a block is written, and a branch depends on a byte that nobody has written. */
static __attribute__((noinline, unused)) void
planted_heap(void)
{
	static int n;
	if (n++ > 0)
		return;
	volatile char *volatile block = malloc(8);

	if (block[3] == 77)
		block[2] = 1;
	block[8] = 1;
	free((void *) block);
}

static __attribute__((noinline, unused)) void
planted_shift(void)
{
	static volatile int bits = 40;
	static volatile int result;

	result = 1 << bits;
	(void) result;
}

static volatile int planted_shared;

static __attribute__((noinline, unused)) void *
planted_thread(void *arg)
{
	for (int i = 0; i < 10000; i++)
		planted_shared++;
	return arg;
}

static __attribute__((noinline, unused)) void
planted_race(void)
{
	static int n;
	if (n++ > 0)
		return;
	pthread_t thread;

	pthread_create(&thread, NULL, planted_thread, NULL);
	planted_thread(NULL); /* this thread's stack has who has called */
	pthread_join(thread, NULL);
}
