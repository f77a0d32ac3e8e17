/*
 * window.c: windows of time in any query (tumble, hop, session, window_counts), and those of streams (MrWindow).
 *
 * Panes are the windows of tumble, or those that hop would have if its size were its slide.  They are contiguous:
 * each ends where the next one starts, also where the clocks of a time zone are changed.  So a window of n panes
 * ends where the n-th pane after its first one starts, and once a pane has ended no later time is in it.
 */
#include "millrace.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "catalog/index.h"
#include "catalog/namespace.h"
#include "catalog/pg_am.h"
#include "catalog/pg_index.h"
#include "common/int.h"
#include "nodes/supportnodes.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "windowapi.h"

PG_FUNCTION_INFO_V1(mr_tumble);
PG_FUNCTION_INFO_V1(mr_hop);
PG_FUNCTION_INFO_V1(mr_hop_support);
PG_FUNCTION_INFO_V1(mr_session);
PG_FUNCTION_INFO_V1(mr_session_parts);
PG_FUNCTION_INFO_V1(mr_last_closed_start);
PG_FUNCTION_INFO_V1(mr_hop_last);
PG_FUNCTION_INFO_V1(mr_hop_starts);
PG_FUNCTION_INFO_V1(mr_window_counts);

/* Monday 2000-01-03 00:00; months are counted from 2000-01-01, which is PostgreSQL's time zero. */
#define DEFAULT_ORIGIN_US (2 * USECS_PER_DAY)
#define DEFAULT_MONTH_ORIGIN_US INT64CONST(0)

#define MAX_PANES 1000000
#define MAX_YEAR 294276
#define MAX_ZONES 1024

/* Index entries that take about as long as a search in the index. */
#define PANE_SKIPS 100

/* Later than any time, and an offset from UTC can still be added to it. */
#define FAR_FUTURE (END_TIMESTAMP + 2 * USECS_PER_DAY)

static char *
interval_text(const Interval *interval)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(interval)));
}

static void __attribute__((noreturn)) out_of_range(void)
{
	ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
}

static int64
floor_div(int64 a, int64 b)
{
	return a / b - (a % b < 0);
}

/*
 * Arguments
 */

/* Days, of 24 hours, and smaller units. */
static inline int64
interval_us(const Interval *interval, const char *what)
{
	int64 us;

	if (pg_mul_s64_overflow(interval->day, USECS_PER_DAY, &us) ||
		pg_add_s64_overflow(us, interval->time, &us))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s \"%s\" is out of range", what, interval_text(interval))));
	return us;
}

/* A window size is a positive number of months, or of microseconds with 24-hour days. */
typedef struct WindowSize
{
	int32 months;
	int64 us;
} WindowSize;

static inline WindowSize
window_size(const Interval *interval, const char *what)
{
	WindowSize size = {interval->month, 0};

	if (interval->month != 0 && (interval->day != 0 || interval->time != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" mixes months with smaller units", what, interval_text(interval)),
				 errhint("Use months and years, or days and smaller units.")));
	size.us = interval_us(interval, what);
	if (size.months < 0 || size.us < 0 || (size.months == 0 && size.us == 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" must be positive", what, interval_text(interval))));
	return size;
}

/* Panes in a window, whose size must be a multiple of its slide. */
static int64
count_panes(const Interval *size_arg, const Interval *slide_arg)
{
	WindowSize size = window_size(size_arg, "window size");
	WindowSize slide = window_size(slide_arg, "window slide");
	int64 n_panes;

	if ((size.months == 0) != (slide.months == 0) ||
		(size.months ? size.months % slide.months : size.us % slide.us) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("window size \"%s\" is not a multiple of its slide \"%s\"", interval_text(size_arg),
						interval_text(slide_arg)),
				 errhint("Use a slide that divides the size, and months only with months.")));
	n_panes = size.months ? size.months / slide.months : size.us / slide.us;
	if (n_panes > MAX_PANES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("each event would be in " INT64_FORMAT " windows, more than %d", n_panes, MAX_PANES),
				 errhint("Use a longer slide.")));
	return n_panes;
}

/* Months are refused: with them the time until which an event keeps its session open would not grow with its time. */
static int64
gap_us(const Interval *gap)
{
	int64 us;

	if (gap->month != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("session gap \"%s\" has months, which differ in length", interval_text(gap)),
				 errhint("Use days and smaller units.")));
	us = interval_us(gap, "session gap");
	if (us <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("session gap \"%s\" must be positive", interval_text(gap))));
	return us;
}

/*
 * Time zones
 *
 * A span is a time during which the zone's offset from UTC does not change.  A zone keeps the spans of the 400 years
 * around the time that was last asked for, and of two years more on both sides: a neighbour is always there.
 */
typedef struct Span
{
	TimestampTz start; /* ends where the next one starts */
	int64 offset_us;   /* local time minus UTC */
	Timestamp reached; /* greatest local time that was shown before start */
} Span;

typedef struct Zone
{
	char name[TZ_STRLEN_MAX + 1]; /* hash key */
	pg_tz *tz;					  /* NULL: offset_us at all times */
	int64 offset_us;
	bool is_abbreviation; /* what it means in tz depends on the time */
	TimestampTz from, to; /* times that the spans answer for: from <= ts < to */
	int n_spans;
	int n_allocated;
	int last_used; /* index in spans */
	Span *spans;
} Zone;

#define SECONDS_OF_400_YEARS (INT64CONST(146097) * SECS_PER_DAY)
#define UNIX_SECONDS_OF_2000 ((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * INT64CONST(86400))

static HTAB *zones = NULL;

/* From a moment on, in Unix seconds, the zone has an offset in seconds. */
static void
add_span(Zone *zone, pg_time_t at, long offset)
{
	Span span = {(at - UNIX_SECONDS_OF_2000) * USECS_PER_SEC, offset * USECS_PER_SEC, PG_INT64_MIN};
	int is_dst;

	if (zone->is_abbreviation)
		span.offset_us =
			-USECS_PER_SEC * DetermineTimeZoneAbbrevOffsetTS(span.start, zone->name, zone->tz, &is_dst);
	if (zone->n_spans > 0)
	{
		const Span *last = &zone->spans[zone->n_spans - 1];

		if (last->offset_us == span.offset_us)
			return;
		span.reached = Max(last->reached, span.start + last->offset_us - 1);
	}
	if (zone->n_spans == zone->n_allocated)
	{
		zone->n_allocated *= 2;
		zone->spans = repalloc(zone->spans, zone->n_allocated * sizeof(Span));
	}
	zone->spans[zone->n_spans++] = span;
}

static void
read_spans(Zone *zone, TimestampTz ts)
{
	const int64 margin = 2 * 366 * SECS_PER_DAY;
	const int64 least = MIN_TIMESTAMP / USECS_PER_SEC - 10 * SECS_PER_DAY;
	const int64 most = END_TIMESTAMP / USECS_PER_SEC + 3 * SECS_PER_DAY;
	int64 half = SECONDS_OF_400_YEARS / 2;
	int64 from =
		floor_div(floor_div(ts, USECS_PER_SEC) + half, SECONDS_OF_400_YEARS) * SECONDS_OF_400_YEARS - half;
	int64 to = from + SECONDS_OF_400_YEARS;
	pg_time_t at = Max(from - margin, least) + UNIX_SECONDS_OF_2000;
	pg_time_t change;
	long before, after;
	int before_dst, after_dst, found;

	zone->from = zone->to = 0; /* none, should it fail */
	zone->n_spans = zone->last_used = 0;
	if (zone->spans == NULL)
	{
		zone->n_allocated = zone->tz ? 1024 : 1;
		zone->spans = MemoryContextAlloc(CacheMemoryContext, zone->n_allocated * sizeof(Span));
	}
	if (zone->tz == NULL)
		add_span(zone, at, zone->offset_us / USECS_PER_SEC);
	else
	{
		found = pg_next_dst_boundary(&at, &before, &before_dst, &change, &after, &after_dst, zone->tz);
		add_span(zone, at, before);
		while (found == 1 && change - UNIX_SECONDS_OF_2000 <= Min(to + margin, most))
		{
			add_span(zone, change, after);
			/* One second on, because at the very last change of its table PostgreSQL sees no other to come. */
			at = change + 1;
			found = pg_next_dst_boundary(&at, &before, &before_dst, &change, &after, &after_dst, zone->tz);
		}
		if (found < 0)
			elog(ERROR, "could not read the offsets of time zone \"%s\"", zone->name);
	}
	zone->from = Max(from, least) * USECS_PER_SEC;
	zone->to = Min(to, most) * USECS_PER_SEC;
}

static void
forget_zones(void)
{
	HASH_SEQ_STATUS scan;
	Zone *zone;

	hash_seq_init(&scan, zones);
	while ((zone = hash_seq_search(&scan)) != NULL)
	{
		if (zone->spans)
			pfree(zone->spans);
		hash_search(zones, zone->name, HASH_REMOVE, NULL);
	}
}

/* The zone of a name, as AT TIME ZONE takes it; error 22023 if there is none. */
static Zone *
get_zone(const text *arg)
{
	static Zone *last = NULL;
	size_t len = VARSIZE_ANY_EXHDR(arg);
	char name[TZ_STRLEN_MAX + 1];
	pg_tz *tz = NULL;
	int64 offset_us;
	bool is_abbreviation, exists;
	Zone *zone;

	if (last && len <= TZ_STRLEN_MAX && memcmp(last->name, VARDATA_ANY(arg), len) == 0 &&
		last->name[len] == '\0')
		return last;
	if (zones == NULL)
	{
		HASHCTL ctl = {.keysize = TZ_STRLEN_MAX + 1, .entrysize = sizeof(Zone)};

		zones = hash_create("millrace time zones", 16, &ctl, HASH_ELEM | HASH_STRINGS);
	}
	text_to_cstring_buffer(arg, name, sizeof(name));
	zone = hash_search(zones, name, HASH_FIND, NULL);
	if (zone == NULL)
	{
		is_abbreviation = mr_timezone(name, &offset_us, &tz);
		last = NULL;
		if (hash_get_num_entries(zones) >= MAX_ZONES)
			forget_zones();
		zone = hash_search(zones, name, HASH_ENTER, &exists);
		zone->tz = tz;
		zone->offset_us = offset_us;
		zone->is_abbreviation = is_abbreviation;
		zone->from = zone->to = 0;
		zone->spans = NULL;
	}
	last = zone;
	return zone;
}

/* Index of the span that holds an instant.  (Or a local time: then only nearly so.) */
static int
span_at(Zone *zone, TimestampTz ts)
{
	int low, high;

	if (ts < zone->from || ts >= zone->to)
		read_spans(zone, ts);
	low = zone->last_used;
	high = zone->n_spans - 1;
	if (zone->spans[low].start <= ts && (low == high || ts < zone->spans[low + 1].start))
		return low;
	low = 0;
	while (low < high)
	{
		int middle = (low + high + 1) / 2;

		if (zone->spans[middle].start <= ts)
			low = middle;
		else
			high = middle - 1;
	}
	zone->last_used = low;
	return low;
}

/* The first instant at which the zone's clocks show a local time, or, as they may skip it, a later one. */
static TimestampTz
first_shown(Zone *zone, Timestamp local)
{
	int i = span_at(zone, local);

	/* No offset is three days. */
	while (i > 0 && zone->spans[i].start > local - 3 * USECS_PER_DAY)
		i--;
	for (;; i++)
	{
		TimestampTz instant = Max(zone->spans[i].start, local - zone->spans[i].offset_us);

		if (i == zone->n_spans - 1 || instant < zone->spans[i + 1].start)
			return instant;
	}
}

/*
 * Panes
 */
typedef struct Calendar
{
	WindowSize size;
	Timestamp origin; /* a local time */
	Zone *zone;		  /* NULL: UTC */
} Calendar;

static Calendar
make_calendar(const Interval *slide, const char *what, const TimestampTz *origin, const text *timezone)
{
	Calendar calendar = {window_size(slide, what)};

	calendar.zone = timezone ? get_zone(timezone) : NULL;
	calendar.origin = calendar.size.months ? DEFAULT_MONTH_ORIGIN_US : DEFAULT_ORIGIN_US;
	if (origin)
	{
		if (TIMESTAMP_NOT_FINITE(*origin))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("window origin must be finite")));
		calendar.origin = *origin;
		if (calendar.zone)
		{
			int i = span_at(calendar.zone, *origin);

			calendar.origin += calendar.zone->spans[i].offset_us;
		}
	}
	return calendar;
}

/* Months since year 0, of a time or of the time some months later, whose day is the month's last at most. */
static int64
month_number(Timestamp ts)
{
	int year, month, day;

	j2date((int) floor_div(ts, USECS_PER_DAY) + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	return (int64) year * MONTHS_PER_YEAR + month - 1;
}

static Timestamp
add_months(Timestamp ts, int64 n_months)
{
	int64 n_days = floor_div(ts, USECS_PER_DAY);
	int year, month, day, last_day;
	int64 number, years;

	j2date((int) n_days + POSTGRES_EPOCH_JDATE, &year, &month, &day);
	number = (int64) year * MONTHS_PER_YEAR + month - 1 + n_months;
	years = floor_div(number, MONTHS_PER_YEAR);
	if (years < JULIAN_MINYEAR - 1)
		return PG_INT64_MIN;
	if (years > MAX_YEAR)
		return FAR_FUTURE;
	month = (int) (number - years * MONTHS_PER_YEAR);
	last_day = day_tab[isleap(years)][month];
	return (date2j((int) years, month + 1, Min(day, last_day)) - POSTGRES_EPOCH_JDATE) * USECS_PER_DAY +
		(ts - n_days * USECS_PER_DAY);
}

/* Start of the bin that holds a local time, PG_INT64_MIN if it is far too early; *next: start of the next one. */
static inline Timestamp
bin(const Calendar *calendar, Timestamp local, Timestamp *next)
{
	WindowSize size = calendar->size;
	Timestamp start;
	int64 n;

	if (size.months == 0)
	{
		if (pg_sub_s64_overflow(local, calendar->origin, &n))
			out_of_range();
		n %= size.us;
		if (n < 0)
			n += size.us;
		if (pg_add_s64_overflow(local, size.us - n, next) || *next > FAR_FUTURE)
			*next = FAR_FUTURE;
		return pg_sub_s64_overflow(local, n, &start) ? PG_INT64_MIN : start;
	}
	n = month_number(local) - month_number(calendar->origin);
	n = floor_div(n, size.months) * size.months;
	start = add_months(calendar->origin, n);
	if (start <= local)
	{
		*next = add_months(calendar->origin, n + size.months);
		return start;
	}
	*next = start;
	return add_months(calendar->origin, n - size.months);
}

/*
 * In a zone, panes of up to an hour start whenever its clocks show the start of a bin, so if clocks are put back
 * and show it twice there are two panes.
 */
static TimestampTz
short_pane(const Calendar *calendar, TimestampTz ts, TimestampTz *end)
{
	Zone *zone = calendar->zone;
	int at = span_at(zone, ts);
	const Span *span = &zone->spans[at];
	const Span *last = &zone->spans[zone->n_spans - 1];
	Timestamp next;
	TimestampTz start = bin(calendar, ts + span->offset_us, &next) - span->offset_us;

	*end = next - span->offset_us;
	while (span < last && *end >= span[1].start)
	{
		span++;
		bin(calendar, span->start + span->offset_us - 1, &next);
		*end = next - span->offset_us;
	}
	for (span = &zone->spans[at]; span > zone->spans && start < span->start; span--)
		start = bin(calendar, span->start - 1 + span[-1].offset_us, &next) - span[-1].offset_us;
	return start;
}

/*
 * The pane that holds ts: start <= ts < *end.  False if it starts before all times.
 *
 * Longer panes in a zone start when its clocks show the start of a bin for the first time, or would show it if they
 * did not skip it: a day on which they are put back or forward is one pane.
 */
static bool
find_pane(const Calendar *calendar, TimestampTz ts, TimestampTz *start, TimestampTz *end)
{
	Zone *zone = calendar->zone;

	if (zone == NULL)
		*start = bin(calendar, ts, end);
	else if (calendar->size.months == 0 && calendar->size.us <= USECS_PER_HOUR)
		*start = short_pane(calendar, ts, end);
	else
	{
		int at = span_at(zone, ts);
		const Span *span = &zone->spans[at];
		Timestamp local, next;

		local = bin(calendar, Max(ts + span->offset_us, span->reached), &next);
		if (local < MIN_TIMESTAMP - 2 * USECS_PER_DAY)
			return false;
		*start = first_shown(zone, local);
		*end = next < FAR_FUTURE ? first_shown(zone, next) : FAR_FUTURE;
	}
	*end = Min(*end, END_TIMESTAMP);
	return *start >= MIN_TIMESTAMP;
}

static TimestampTz
pane_start(const Calendar *calendar, TimestampTz ts, TimestampTz *end)
{
	TimestampTz start;

	if (!find_pane(calendar, ts, &start, end))
		out_of_range();
	return start;
}

/*
 * Start of the pane n before the one that starts at start, but of none at or before limit.  False if that is
 * before all times.
 */
static bool
go_back(const Calendar *calendar, TimestampTz *start, int64 n, TimestampTz limit)
{
	TimestampTz previous, end;
	int64 us;

	if (calendar->zone == NULL && calendar->size.months == 0)
	{
		if (limit != DT_NOBEGIN)
			n = Min(n, (*start - limit - 1) / calendar->size.us);
		return !pg_mul_s64_overflow(n, calendar->size.us, &us) && !pg_sub_s64_overflow(*start, us, start) &&
			*start >= MIN_TIMESTAMP;
	}
	for (; n > 0; n--)
	{
		CHECK_FOR_INTERRUPTS();
		if (!find_pane(calendar, *start - 1, &previous, &end))
			return false;
		if (previous <= limit)
			break;
		*start = previous;
	}
	return true;
}

/* Greatest start of a window of n panes that ended at or before a time, DT_NOBEGIN if none did. */
static TimestampTz
last_closed(const Calendar *calendar, int64 n_panes, TimestampTz closed_to)
{
	TimestampTz start, end;

	if (TIMESTAMP_NOT_FINITE(closed_to))
		return closed_to;
	if (!find_pane(calendar, closed_to, &start, &end) || !go_back(calendar, &start, n_panes, DT_NOBEGIN))
		return DT_NOBEGIN;
	return start;
}

static Calendar
window_calendar(const MrWindow *window)
{
	return make_calendar(&window->slide, "window slide", window->has_origin ? &window->origin : NULL,
						 window->timezone);
}

int64
mr_window_panes(const MrWindow *window)
{
	int64 n_panes = 0;

	if (window->kind == MR_SESSION)
	{
		gap_us(&window->size);
		return 0;
	}
	n_panes = count_panes(&window->size, &window->slide);
	window_calendar(window);
	return n_panes;
}

TimestampTz
mr_pane(const MrWindow *window, TimestampTz ts, TimestampTz *end)
{
	Calendar calendar;

	if (TIMESTAMP_NOT_FINITE(ts) || window->kind == MR_SESSION)
		return *end = ts;
	calendar = window_calendar(window);
	return pane_start(&calendar, ts, end);
}

TimestampTz
mr_last_closed(const MrWindow *window, TimestampTz closed_to)
{
	Calendar calendar;
	TimestampTz bound;

	if (TIMESTAMP_NOT_FINITE(closed_to))
		return closed_to;
	if (window->kind == MR_SESSION)
		return pg_sub_s64_overflow(closed_to, gap_us(&window->size), &bound) || bound < MIN_TIMESTAMP
			? DT_NOBEGIN
			: bound;
	calendar = window_calendar(window);
	return last_closed(&calendar, count_panes(&window->size, &window->slide), closed_to);
}

TimestampTz
mr_first_window(const MrWindow *window, TimestampTz ts)
{
	Calendar calendar;
	TimestampTz start, end;

	if (TIMESTAMP_NOT_FINITE(ts))
		return ts;
	calendar = window_calendar(window);
	start = pane_start(&calendar, ts, &end);
	if (!go_back(&calendar, &start, count_panes(&window->size, &window->slide) - 1, DT_NOBEGIN))
		out_of_range();
	return start;
}

/*
 * SQL functions
 */

/* Arguments origin and timezone of a function. */
static Calendar
argument_calendar(FunctionCallInfo fcinfo, const Interval *slide, const char *what, int origin_arg)
{
	TimestampTz origin = 0;

	if (!PG_ARGISNULL(origin_arg))
		origin = PG_GETARG_TIMESTAMPTZ(origin_arg);
	return make_calendar(slide, what, PG_ARGISNULL(origin_arg) ? NULL : &origin,
						 PG_ARGISNULL(origin_arg + 1) ? NULL : PG_GETARG_TEXT_PP(origin_arg + 1));
}

Datum
mr_tumble(PG_FUNCTION_ARGS)
{
	TimestampTz ts, end;
	Calendar calendar;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ts = PG_GETARG_TIMESTAMPTZ(0);
	calendar = argument_calendar(fcinfo, PG_GETARG_INTERVAL_P(1), "window size", 2);
	if (TIMESTAMP_NOT_FINITE(ts))
		PG_RETURN_TIMESTAMPTZ(ts);
	PG_RETURN_TIMESTAMPTZ(pane_start(&calendar, ts, &end));
}

static void
check_size_and_slide(FunctionCallInfo fcinfo, int size_arg, int slide_arg, const char *function)
{
	if (PG_ARGISNULL(size_arg) || PG_ARGISNULL(slide_arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("size and slide of %s must not be null", function)));
}

typedef struct Hop
{
	Calendar calendar;
	TimestampTz next; /* start of the next window */
	TimestampTz last; /* start of the last one */
	bool done;
} Hop;

/* hop(ts, size, slide, origin, timezone) returns setof timestamptz */
Datum
mr_hop(PG_FUNCTION_ARGS)
{
	FuncCallContext *call;
	TimestampTz start, end;
	Hop *hop;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;
		int64 n_panes;

		call = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(call->multi_call_memory_ctx);
		call->user_fctx = hop = palloc0(sizeof(Hop));
		check_size_and_slide(fcinfo, 1, 2, "hop");
		n_panes = count_panes(PG_GETARG_INTERVAL_P(1), PG_GETARG_INTERVAL_P(2));
		hop->calendar = argument_calendar(fcinfo, PG_GETARG_INTERVAL_P(2), "window slide", 3);
		MemoryContextSwitchTo(old);
		if (PG_ARGISNULL(0))
		{
			/* One row, as tumble gives, so that GROUP BY keeps the row. */
			hop->done = true;
			SRF_RETURN_NEXT_NULL(call);
		}
		hop->next = hop->last = PG_GETARG_TIMESTAMPTZ(0);
		if (!TIMESTAMP_NOT_FINITE(hop->last))
		{
			hop->next = hop->last = pane_start(&hop->calendar, hop->last, &end);
			if (!go_back(&hop->calendar, &hop->next, n_panes - 1, DT_NOBEGIN))
				out_of_range();
		}
	}
	call = SRF_PERCALL_SETUP();
	hop = call->user_fctx;
	if (hop->done)
		SRF_RETURN_DONE(call);
	start = hop->next;
	hop->done = start == hop->last;
	if (!hop->done)
	{
		pane_start(&hop->calendar, start, &end);
		hop->next = end;
	}
	SRF_RETURN_NEXT(call, TimestampTzGetDatum(start));
}

static double
interval_estimate(Node *node)
{
	Interval *interval;

	if (!IsA(node, Const) || ((Const *) node)->constisnull)
		return 0;
	interval = DatumGetIntervalP(((Const *) node)->constvalue);
	return (interval->month * (double) DAYS_PER_MONTH + interval->day) * USECS_PER_DAY + interval->time;
}

/* Tells the planner how many rows hop returns. */
Datum
mr_hop_support(PG_FUNCTION_ARGS)
{
	SupportRequestRows *request = (SupportRequestRows *) PG_GETARG_POINTER(0);
	double size, slide;

	if (!IsA(request, SupportRequestRows) || !IsA(request->node, FuncExpr))
		PG_RETURN_POINTER(NULL);
	size = interval_estimate(lsecond(((FuncExpr *) request->node)->args));
	slide = interval_estimate(lthird(((FuncExpr *) request->node)->args));
	if (size <= 0 || slide <= 0)
		PG_RETURN_POINTER(NULL);
	request->rows = Min(Max(size / slide, 1), MAX_PANES);
	PG_RETURN_POINTER(request);
}

/* _last_closed(closed_to, size, slide, origin, timezone) returns timestamptz */
Datum
mr_last_closed_start(PG_FUNCTION_ARGS)
{
	int slide_arg = PG_ARGISNULL(2) ? 1 : 2;
	Calendar calendar;
	int64 n_panes;

	check_size_and_slide(fcinfo, 1, slide_arg, "_last_closed");
	n_panes = count_panes(PG_GETARG_INTERVAL_P(1), PG_GETARG_INTERVAL_P(slide_arg));
	calendar = argument_calendar(fcinfo, PG_GETARG_INTERVAL_P(slide_arg), "window slide", 3);
	if (PG_ARGISNULL(0))
		PG_RETURN_TIMESTAMPTZ(DT_NOBEGIN);
	PG_RETURN_TIMESTAMPTZ(last_closed(&calendar, n_panes, PG_GETARG_TIMESTAMPTZ(0)));
}

static TimestampTz
last_pane(const Calendar *calendar, int64 n_panes, TimestampTz pane)
{
	TimestampTz start, end;

	for (int64 i = 1; i < n_panes && find_pane(calendar, pane, &start, &end); i++)
		pane = end;
	return pane;
}

TimestampTz
mr_last_pane(const MrWindow *window, TimestampTz window_start)
{
	Calendar calendar;

	if (TIMESTAMP_NOT_FINITE(window_start) || window->kind != MR_HOP)
		return window_start;
	calendar = window_calendar(window);
	return last_pane(&calendar, count_panes(&window->size, &window->slide), window_start);
}

/* _hop_last(window_start, size, slide, origin, timezone) returns timestamptz: start of the last pane of a window */
Datum
mr_hop_last(PG_FUNCTION_ARGS)
{
	int slide_arg = PG_ARGISNULL(2) ? 1 : 2;
	Calendar calendar;

	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(0)))
		PG_RETURN_TIMESTAMPTZ(PG_GETARG_TIMESTAMPTZ(0));
	check_size_and_slide(fcinfo, 1, slide_arg, "_hop_last");
	calendar = argument_calendar(fcinfo, PG_GETARG_INTERVAL_P(slide_arg), "window slide", 3);
	PG_RETURN_TIMESTAMPTZ(last_pane(&calendar,
									count_panes(PG_GETARG_INTERVAL_P(1), PG_GETARG_INTERVAL_P(slide_arg)),
									PG_GETARG_TIMESTAMPTZ(0)));
}

/*
 * Sessions: one pass over a partition in order of time.
 */
typedef struct Session
{
	bool has_previous, is_open;
	TimestampTz previous; /* time of the row before */
	TimestampTz start;	  /* of the open session */
	TimestampTz last;	  /* its greatest time */
} Session;

/* first and last: the row's times, the same for an event; NULL in, NULL out. */
static Datum
session_start(FunctionCallInfo fcinfo, int n_times)
{
	WindowObject window = PG_WINDOW_OBJECT();
	Session *session = WinGetPartitionLocalMemory(window, sizeof(Session));
	bool first_null, last_null, gap_null;
	TimestampTz first = DatumGetTimestampTz(WinGetFuncArgCurrent(window, 0, &first_null));
	TimestampTz last = DatumGetTimestampTz(WinGetFuncArgCurrent(window, n_times - 1, &last_null));
	Datum gap_arg = WinGetFuncArgCurrent(window, n_times, &gap_null);
	TimestampTz limit;
	int64 gap;

	if (gap_null)
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("session gap must not be null")));
	gap = gap_us(DatumGetIntervalP(gap_arg));
	if (first_null || last_null)
		PG_RETURN_NULL();
	if (session->has_previous && first < session->previous)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the rows of session must be ordered by its time"),
				 errdetail("Time %s comes after %s.", timestamptz_to_str(first),
						   pstrdup(timestamptz_to_str(session->previous))),
				 errhint("Use session(time, gap) OVER (PARTITION BY … ORDER BY time).")));
	session->has_previous = true;
	session->previous = first;
	if (TIMESTAMP_NOT_FINITE(first))
		PG_RETURN_TIMESTAMPTZ(first);
	if (!session->is_open || (!pg_add_s64_overflow(session->last, gap, &limit) && first > limit))
	{
		session->is_open = true;
		session->start = first;
		session->last = last;
	}
	session->last = Max(session->last, Max(first, last));
	PG_RETURN_TIMESTAMPTZ(session->start);
}

Datum
mr_session(PG_FUNCTION_ARGS)
{
	return session_start(fcinfo, 1);
}

Datum
mr_session_parts(PG_FUNCTION_ARGS)
{
	return session_start(fcinfo, 2);
}

/*
 * Window starts from the panes that tables hold (_hop_starts)
 */

/* Panes of a table without an index: distinct and in order when pack_panes has been called. */
typedef struct PaneList
{
	TimestampTz *panes;
	int64 n;
	int64 n_allocated;
} PaneList;

static int
compare_times(const void *a, const void *b)
{
	TimestampTz x = *(const TimestampTz *) a, y = *(const TimestampTz *) b;

	return (x > y) - (x < y);
}

static void
pack_panes(PaneList *list)
{
	int64 n = 0;

	qsort(list->panes, list->n, sizeof(TimestampTz), compare_times);
	for (int64 i = 0; i < list->n; i++)
		if (n == 0 || list->panes[i] != list->panes[n - 1])
			list->panes[n++] = list->panes[i];
	list->n = n;
}

static void
add_pane(PaneList *list, TimestampTz pane)
{
	if (list->n > 0 && list->panes[list->n - 1] == pane)
		return;
	if (list->n == list->n_allocated)
	{
		if (list->n > 0)
			pack_panes(list);
		if (list->n_allocated == 0)
		{
			list->n_allocated = 1024;
			list->panes = palloc(list->n_allocated * sizeof(TimestampTz));
		}
		else if (list->n > list->n_allocated / 2)
		{
			list->n_allocated *= 2;
			list->panes = repalloc_huge(list->panes, list->n_allocated * sizeof(TimestampTz));
		}
	}
	list->panes[list->n++] = pane;
}

static AttrNumber
pane_column(Relation rel)
{
	AttrNumber column = get_attnum(RelationGetRelid(rel), "window_start");

	if (column <= 0 || TupleDescAttr(RelationGetDescr(rel), column - 1)->atttypid != TIMESTAMPTZOID)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("relation \"%s\" has no column \"window_start\" of type timestamptz",
						RelationGetRelationName(rel))));
	return column;
}

/*
 * A function in a view runs as the view's reader, who need not be allowed to read the tables behind it: it is enough if he
 * may read the continuous aggregate, its states as they are shared, or a federated aggregate of it.
 */
static bool
may_read_view(Oid state)
{
	static Oid types[2] = {OIDOID, OIDOID};
	Datum values[2] = {ObjectIdGetDatum(state), ObjectIdGetDatum(GetUserId())};
	MrGuard guard;
	bool may;
	/* Not before ALTER EXTENSION millrace UPDATE */
	bool has_shared = OidIsValid(get_relname_relid("shared", get_namespace_oid(MR_SCHEMA, false)));

	mr_enter_catalog(&guard, "stream");
	SPI_connect();
	mr_exec_args(
		has_shared
			? "SELECT FROM " MR_SCHEMA ".stream s WHERE (state = $1 OR delta = $1)"
			  " AND (has_table_privilege($2, target, 'SELECT') OR has_table_privilege($2, final, 'SELECT')"
			  " OR EXISTS (SELECT FROM " MR_SCHEMA
			  ".shared h WHERE h.name = s.name AND has_table_privilege($2, h.partial, 'SELECT'))"
			  " OR EXISTS (SELECT FROM " MR_SCHEMA
			  ".federated f WHERE f.aggregate = s.name AND has_table_privilege($2, f.view, 'SELECT')))"
			: "SELECT FROM " MR_SCHEMA ".stream WHERE (state = $1 OR delta = $1)"
			  " AND (has_table_privilege($2, target, 'SELECT') OR has_table_privilege($2, final, 'SELECT'))",
		SPI_OK_SELECT, true, 2, types, values, NULL);
	may = SPI_processed > 0;
	SPI_finish();
	mr_leave(&guard);
	return may;
}

/* A table that the current user may read whole. */
static Relation
open_panes(Oid relid)
{
	Relation rel = table_open(relid, AccessShareLock);

	if (rel->rd_rel->relkind != RELKIND_RELATION)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not an ordinary table", RelationGetRelationName(rel))));
	if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK && !may_read_view(relid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, RelationGetRelationName(rel));
	if (check_enable_rls(relid, InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("row-level security of table \"%s\" is not supported here",
						RelationGetRelationName(rel))));
	return rel;
}

/* Adds all panes of the table; returns whether there are NULLs. */
static bool
read_panes(Relation rel, PaneList *list)
{
	AttrNumber column = pane_column(rel);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	bool has_null = false;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool isnull;
		Datum pane = slot_getattr(slot, column, &isnull);

		CHECK_FOR_INTERRUPTS();
		if (isnull)
			has_null = true;
		else
			add_pane(list, DatumGetTimestampTz(pane));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	return has_null;
}

/* Reads the distinct panes of a table from its index, in order. */
typedef struct PaneScan
{
	Relation index; /* NULL: the table has none that serves */
	IndexScanDesc scan;
	TupleTableSlot *slot;
	AttrNumber column;
	bool started;
} PaneScan;

/* A valid btree index over all rows, ascending by the column first; NULL if there is none. */
static Relation
open_pane_index(Relation rel, AttrNumber column)
{
	List *indexes = RelationGetIndexList(rel);
	ListCell *lc;

	foreach (lc, indexes)
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;

		if (form->indisvalid && index->rd_rel->relam == BTREE_AM_OID && form->indkey.values[0] == column &&
			index->rd_opcintype[0] == TIMESTAMPTZOID && !(index->rd_indoption[0] & INDOPTION_DESC) &&
			RelationGetIndexPredicate(index) == NIL &&
			(!form->indcheckxmin ||
			 TransactionIdPrecedes(HeapTupleHeaderGetXmin(index->rd_indextuple->t_data), TransactionXmin)))
			return index;
		index_close(index, AccessShareLock);
	}
	return NULL;
}

/* The first pane at or after from, which grows from call to call, of a row that is visible. */
static bool
next_pane(PaneScan *panes, TimestampTz from, TimestampTz *pane)
{
	IndexScanDesc scan = panes->scan;

	/* Going on in the index is cheap, rows are looked at for new panes only.  Over many rows, search. */
	for (int n_skipped = 0;; n_skipped++)
	{
		bool isnull;

		if (!panes->started || (n_skipped == PANE_SKIPS && *pane < from))
		{
			ScanKeyData key;

			ScanKeyInit(&key, 1, BTGreaterEqualStrategyNumber, F_TIMESTAMPTZ_GE, TimestampTzGetDatum(from));
			index_rescan(scan, &key, 1, NULL, 0);
			panes->started = true;
		}
		CHECK_FOR_INTERRUPTS();
		if (index_getnext_tid(scan, ForwardScanDirection) == NULL)
			return false;
		*pane = DatumGetTimestampTz(index_getattr(scan->xs_itup, 1, scan->xs_itupdesc, &isnull));
		if (*pane >= from && index_fetch_heap(scan, panes->slot))
			return true;
	}
}

static bool
has_null_pane(PaneScan *panes)
{
	ScanKeyData key;

	ScanKeyEntryInitialize(&key, SK_ISNULL | SK_SEARCHNULL, 1, InvalidStrategy, InvalidOid, InvalidOid,
						   InvalidOid, (Datum) 0);
	index_rescan(panes->scan, &key, 1, NULL, 0);
	return index_getnext_slot(panes->scan, ForwardScanDirection, panes->slot);
}

static void
put_start(ReturnSetInfo *rsinfo, TimestampTz start, bool isnull)
{
	Datum value = TimestampTzGetDatum(start);

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, &value, &isnull);
}

/* Puts the starts of the windows that hold a pane, but those up to *last, which have been put; advances *last. */
static void
put_windows(ReturnSetInfo *rsinfo, const Calendar *calendar, int64 n_panes, TimestampTz pane,
			TimestampTz *last, TimestampTz *end)
{
	TimestampTz start;

	*end = pane == DT_NOEND ? pane : pane + 1;
	if (TIMESTAMP_NOT_FINITE(pane))
	{
		put_start(rsinfo, pane, false);
		return;
	}
	pane = start = pane_start(calendar, pane, end);
	if (!go_back(calendar, &start, n_panes - 1, *last))
		out_of_range();
	*last = pane;
	put_start(rsinfo, start, false);
	while (start < pane)
	{
		CHECK_FOR_INTERRUPTS();
		pane_start(calendar, start, end);
		start = *end;
		put_start(rsinfo, start, false);
	}
	pane_start(calendar, pane, end);
}

/* _hop_starts(state, delta, size, slide, origin, timezone) returns setof timestamptz */
Datum
mr_hop_starts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	PaneScan panes = {0};
	PaneList list = {0};
	Relation state, delta;
	Calendar calendar;
	TimestampTz pane = 0, last = DT_NOBEGIN, from = DT_NOBEGIN;
	int64 n_panes, i = 0;
	bool has_null = false, has_pane;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("state of _hop_starts must not be null")));
	check_size_and_slide(fcinfo, 2, 3, "_hop_starts");
	n_panes = count_panes(PG_GETARG_INTERVAL_P(2), PG_GETARG_INTERVAL_P(3));
	calendar = argument_calendar(fcinfo, PG_GETARG_INTERVAL_P(3), "window slide", 4);
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);

	state = open_panes(PG_GETARG_OID(0));
	if (!PG_ARGISNULL(1))
	{
		delta = open_panes(PG_GETARG_OID(1));
		has_null = read_panes(delta, &list);
		table_close(delta, NoLock);
	}
	panes.column = pane_column(state);
	panes.index = open_pane_index(state, panes.column);
	if (panes.index)
	{
		panes.slot = table_slot_create(state, NULL);
		panes.scan = mr_index_beginscan(state, panes.index, GetActiveSnapshot(), 1);
		panes.scan->xs_want_itup = true;
	}
	else
		has_null |= read_panes(state, &list);
	pack_panes(&list);

	has_pane = panes.index && next_pane(&panes, from, &pane);
	while (has_pane || i < list.n)
	{
		TimestampTz least = has_pane ? pane : list.panes[i];

		CHECK_FOR_INTERRUPTS();
		if (i < list.n)
			least = Min(least, list.panes[i]);
		put_windows(rsinfo, &calendar, n_panes, least, &last, &from);
		while (i < list.n && (list.panes[i] < from || list.panes[i] == least))
			i++;
		if (has_pane && (pane < from || pane == least))
			has_pane = from != DT_NOEND || pane != DT_NOEND ? next_pane(&panes, from, &pane) : false;
	}
	if (panes.index)
	{
		has_null |= has_null_pane(&panes);
		index_endscan(panes.scan);
		ExecDropSingleTupleTableSlot(panes.slot);
		index_close(panes.index, NoLock);
	}
	table_close(state, NoLock);
	if (has_null)
		put_start(rsinfo, 0, true);
	return (Datum) 0;
}

/* Column of a relation by name; error 42703 when there is none. */
static AttrNumber
column_of(Oid rel, const char *name)
{
	AttrNumber attno = get_attnum(rel, name);

	if (attno <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of relation \"%s\" does not exist", name, get_rel_name(rel))));
	return attno;
}

/*
 * The query behind window_counts.  Counts are taken once per pane (window of the size of the slide) and key; a
 * sliding window is the sum of its panes.  $1 size, $2 slide, both without days, so that no time zone matters.
 */
static char *
window_counts_sql(Oid source, const char *time_column, Datum *by, int n_by, int64 n_panes)
{
	StringInfoData sql, keys, columns, object;

	initStringInfo(&sql);
	initStringInfo(&keys);
	initStringInfo(&columns);
	initStringInfo(&object);
	for (int i = 0; i < n_by; i++)
	{
		const char *name = NameStr(*DatumGetName(by[i]));

		column_of(source, name);
		appendStringInfo(&columns, ", t.%s AS k%d", quote_identifier(name), i);
		appendStringInfo(&keys, ", k%d", i);
		appendStringInfo(&object, "%s%s, k%d", i ? ", " : "", quote_literal_cstr(name), i);
	}
	appendStringInfo(
		&sql,
		"WITH panes AS MATERIALIZED (SELECT w%s, pg_catalog.count(*) AS n FROM"
		" (SELECT " MR_SCHEMA ".tumble(t.%s::pg_catalog.timestamptz, $2) AS w%s FROM %s.%s t"
		" WHERE pg_catalog.isfinite(t.%s)) q GROUP BY w%s)"
		" SELECT w, w OPERATOR(pg_catalog.+) $1, pg_catalog.jsonb_build_object(%s), n::bigint FROM ",
		keys.data, quote_identifier(time_column), columns.data,
		quote_identifier(get_namespace_name(get_rel_namespace(source))),
		quote_identifier(get_rel_name(source)), quote_identifier(time_column), keys.data, object.data);
	if (n_panes == 1)
		appendStringInfoString(&sql, "panes");
	else
		appendStringInfo(&sql,
						 "(SELECT p.w OPERATOR(pg_catalog.-) (i.i OPERATOR(pg_catalog.*) $2) AS w%s,"
						 " pg_catalog.sum(n) AS n FROM panes p, pg_catalog.generate_series(0, " INT64_FORMAT
						 "::int) AS i(i) GROUP BY 1%s) windows",
						 keys.data, n_panes - 1, keys.data);
	appendStringInfoString(&sql, " ORDER BY 1, 3");
	return sql.data;
}

Datum
mr_window_counts(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	Oid source, column_type, types[2] = {INTERVALOID, INTERVALOID};
	WindowSize size, slide;
	Interval widths[2] = {0};
	Datum *by, values[2];
	int n_by;
	int64 n_panes;
	Portal portal;
	char *sql;

	for (int i = 0; i < 5; i++)
		if (i != 3 && PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("source, time_column, size and by of window_counts must not be null")));
	source = PG_GETARG_OID(0);
	if (get_rel_name(source) == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", source)));
	column_type = get_atttype(source, column_of(source, NameStr(*PG_GETARG_NAME(1))));
	if (column_type != TIMESTAMPTZOID && column_type != TIMESTAMPOID && column_type != DATEOID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of relation \"%s\" has type %s, which is not a time",
						NameStr(*PG_GETARG_NAME(1)), get_rel_name(source), format_type_be(column_type)),
				 errhint("Use a column of type timestamptz, timestamp or date.")));
	size = window_size(PG_GETARG_INTERVAL_P(2), "window size");
	slide = PG_ARGISNULL(3) ? size : window_size(PG_GETARG_INTERVAL_P(3), "window slide");
	n_panes = count_panes(PG_GETARG_INTERVAL_P(2), PG_GETARG_INTERVAL_P(PG_ARGISNULL(3) ? 2 : 3));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(4), NAMEOID, NAMEDATALEN, false, TYPALIGN_CHAR, &by, NULL, &n_by);

	widths[0].month = size.months;
	widths[0].time = size.us;
	widths[1].month = slide.months;
	widths[1].time = slide.us;
	for (int i = 0; i < 2; i++)
		values[i] = IntervalPGetDatum(&widths[i]);

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	sql = window_counts_sql(source, NameStr(*PG_GETARG_NAME(1)), by, n_by, n_panes);
	portal = SPI_cursor_open_with_args(NULL, sql, 2, types, values, NULL, true, CURSOR_OPT_NO_SCROLL);
	do
	{
		SPI_cursor_fetch(portal, true, 1000);
		for (uint64 i = 0; i < SPI_processed; i++)
		{
			Datum row[4];
			bool nulls[4];

			heap_deform_tuple(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, row, nulls);
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, row, nulls);
		}
		SPI_freetuptable(SPI_tuptable);
	} while (SPI_processed > 0);
	SPI_cursor_close(portal);
	SPI_finish();
	return (Datum) 0;
}
