/*
 * alert.c: alerts: queries over continuous aggregates that are run for the windows that a batch has changed or closed.
 */
#include "millrace.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/xact.h"
#include "catalog/indexing.h"
#include "catalog/pg_class.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

/*
 * Sets of windows
 */

/* So many windows are looked at one by one; more are a range of time. */
#define MAX_TIMES 8192

void
mr_times_init(MrTimes *times)
{
	memset(times, 0, sizeof(MrTimes));
	times->context = CurrentMemoryContext;
	times->first = DT_NOEND;
	times->last = DT_NOBEGIN;
}

static int
compare_times(const void *a, const void *b)
{
	TimestampTz left = *(const TimestampTz *) a, right = *(const TimestampTz *) b;

	return left < right ? -1 : left > right;
}

static void
sort_times(MrTimes *times)
{
	int n = 0;

	if (times->n < 2)
		return;
	qsort(times->values, times->n, sizeof(TimestampTz), compare_times);
	for (int i = 1; i < times->n; i++)
		if (times->values[i] != times->values[n])
			times->values[++n] = times->values[i];
	times->n = n + 1;
}

void
mr_times_add(MrTimes *times, TimestampTz time)
{
	if (times->n > 0 && times->values[times->n - 1] == time)
		return;
	times->first = Min(times->first, time);
	times->last = Max(times->last, time);
	if (times->is_range)
		return;
	if (times->n == times->size && times->size == 2 * MAX_TIMES)
	{
		sort_times(times);
		if (times->n > MAX_TIMES)
		{
			times->is_range = true;
			times->n = 0;
			return;
		}
	}
	else if (times->n == times->size)
	{
		times->size = times->size ? 2 * times->size : 64;
		if (times->values == NULL)
			times->values = MemoryContextAlloc(times->context, times->size * sizeof(TimestampTz));
		else
			times->values = repalloc(times->values, times->size * sizeof(TimestampTz));
	}
	times->values[times->n++] = time;
}

void
mr_times_add_range(MrTimes *times, TimestampTz first, TimestampTz last)
{
	times->first = Min(times->first, first);
	times->last = Max(times->last, last);
	times->is_range = true;
	times->n = 0;
}

bool
mr_times_is_empty(const MrTimes *times)
{
	return times->n == 0 && !times->is_range;
}

ArrayType *
mr_times_array(MrTimes *times)
{
	Datum *values;

	sort_times(times);
	values = palloc((times->n + 1) * sizeof(Datum));
	for (int i = 0; i < times->n; i++)
		values[i] = TimestampTzGetDatum(times->values[i]);
	return construct_array(values, times->n, TIMESTAMPTZOID, sizeof(TimestampTz), FLOAT8PASSBYVAL,
						   TYPALIGN_DOUBLE);
}

/* A session that a state belongs to may have begun at any time before it. */
void
mr_times_add_windows(MrTimes *windows, const MrWindow *window, MrTimes *panes)
{
	int64 n_panes = window->kind == MR_HOP ? mr_window_panes(window) : 1;

	if (mr_times_is_empty(panes))
		return;
	if (window->kind == MR_SESSION)
	{
		mr_times_add_range(windows, DT_NOBEGIN, panes->last);
		return;
	}
	sort_times(panes);
	if (panes->is_range || panes->n * n_panes > MAX_TIMES)
	{
		TimestampTz end, first = panes->first;

		for (int64 i = 1; i < n_panes && !TIMESTAMP_NOT_FINITE(first); i++)
			first = mr_pane(window, first - 1, &end);
		mr_times_add_range(windows, first, panes->last);
		return;
	}
	for (int i = 0; i < panes->n; i++)
	{
		TimestampTz start = panes->values[i], end;

		mr_times_add(windows, start);
		for (int64 j = 1; j < n_panes && !TIMESTAMP_NOT_FINITE(start); j++)
			mr_times_add(windows, start = mr_pane(window, start - 1, &end));
	}
}
