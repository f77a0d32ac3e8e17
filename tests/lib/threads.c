/*
 * C11's thread functions as POSIX's, for the ingester built with SANITIZE=thread: librdkafka starts its threads by
 * thrd_create(), which ThreadSanitizer does not know, and dies in the first one.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <threads.h>

typedef struct Start
{
	thrd_start_t function;
	void *argument;
} Start;

static void *
run(void *argument)
{
	Start start = *(Start *) argument;

	free(argument);
	return (void *) (intptr_t) start.function(start.argument);
}

int
thrd_create(thrd_t *thread, thrd_start_t function, void *argument)
{
	Start *start = malloc(sizeof *start);

	if (start == NULL)
		return thrd_nomem;
	*start = (Start){function, argument};
	if (pthread_create((pthread_t *) thread, NULL, run, start) == 0)
		return thrd_success;
	free(start);
	return thrd_error;
}

int
thrd_join(thrd_t thread, int *result)
{
	void *value;
	int error = pthread_join((pthread_t) thread, &value);

	if (error == 0 && result != NULL)
		*result = (int) (intptr_t) value;
	return error ? thrd_error : thrd_success;
}

int
mtx_lock(mtx_t *mutex)
{
	return pthread_mutex_lock((pthread_mutex_t *) mutex) ? thrd_error : thrd_success;
}

int
mtx_unlock(mtx_t *mutex)
{
	return pthread_mutex_unlock((pthread_mutex_t *) mutex) ? thrd_error : thrd_success;
}
