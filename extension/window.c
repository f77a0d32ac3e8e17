/*
 * window.c: windows of time in any query: tumble and window_counts.
 */
#include "millrace.h"

#include "common/int.h"
#include "utils/datetime.h"

PG_FUNCTION_INFO_V1(mr_tumble);
PG_FUNCTION_INFO_V1(mr_window_counts);

/* Monday 2000-01-03 00:00; months are counted from 2000-01-01, which is PostgreSQL's time zero. */
#define DEFAULT_ORIGIN_US (2 * USECS_PER_DAY)
#define DEFAULT_MONTH_ORIGIN_US INT64CONST(0)

static char *
interval_text(const Interval *interval)
{
	return DatumGetCString(DirectFunctionCall1(interval_out, IntervalPGetDatum(interval)));
}

/* A window size is a positive number of months, or of microseconds with 24-hour days. */
typedef struct WindowSize
{
	int32 months;
	int64 us;
} WindowSize;

static WindowSize
window_size(const Interval *interval, const char *what)
{
	WindowSize size = {interval->month, 0};

	if (interval->month != 0 && (interval->day != 0 || interval->time != 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" mixes months with smaller units", what, interval_text(interval)),
				 errhint("Use months and years, or days and smaller units.")));
	if (pg_mul_s64_overflow(interval->day, USECS_PER_DAY, &size.us) ||
		pg_add_s64_overflow(size.us, interval->time, &size.us))
		ereport(ERROR,
				(errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE),
				 errmsg("%s \"%s\" is out of range", what, interval_text(interval))));
	if (size.months < 0 || size.us < 0 || (size.months == 0 && size.us == 0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s \"%s\" must be positive", what, interval_text(interval))));
	return size;
}

static Timestamp
add_months(Timestamp ts, int64 n_months)
{
	Interval step = {0};

	if (n_months != (int32) n_months)
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	step.month = (int32) n_months;
	return DatumGetTimestamp(
		DirectFunctionCall2(timestamp_pl_interval, TimestampGetDatum(ts), IntervalPGetDatum(&step)));
}

static int64
month_number(Timestamp ts)
{
	struct pg_tm tm;
	fsec_t fsec;

	if (timestamp2tm(ts, NULL, &tm, &fsec, NULL, NULL) != 0)
		ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
	return (int64) tm.tm_year * MONTHS_PER_YEAR + tm.tm_mon - 1;
}

/* Start of the window that holds ts, both in one calendar. */
static Timestamp
bin(Timestamp ts, WindowSize size, Timestamp origin)
{
	int64 delta;
	Timestamp start;

	if (size.months == 0)
	{
		if (pg_sub_s64_overflow(ts, origin, &delta))
			ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
		delta %= size.us;
		start = ts - (delta < 0 ? delta + size.us : delta);
		if (!IS_VALID_TIMESTAMP(start))
			ereport(ERROR, (errcode(ERRCODE_DATETIME_VALUE_OUT_OF_RANGE), errmsg("timestamp out of range")));
		return start;
	}
	delta = month_number(ts) - month_number(origin);
	delta -= delta % size.months < 0 ? delta % size.months + size.months : delta % size.months;
	start = add_months(origin, delta);
	return start > ts ? add_months(origin, delta - size.months) : start;
}

/*
 * The instant at which a clock in the zone shows the start of a window that holds ts.  Clocks that are put back show
 * some times twice.  Windows of up to an hour are then two, and ts, by its own offset from UTC, is in the first or
 * the second; longer ones are one, and start when their time is shown first.
 */
static TimestampTz
local_to_instant(Datum zone, Timestamp start, TimestampTz ts, Timestamp local, WindowSize size)
{
	static const int64 put_back_us[] = {USECS_PER_HOUR, USECS_PER_HOUR / 2};
	TimestampTz instant =
		DatumGetTimestampTz(DirectFunctionCall2(timestamp_zone, zone, TimestampGetDatum(start)));

	if (size.months == 0 && size.us <= USECS_PER_HOUR)
		return instant <= ts ? instant : start - (local - ts);
	for (int i = 0; i < lengthof(put_back_us); i++)
		if (DatumGetTimestamp(DirectFunctionCall2(timestamptz_zone, zone,
												  TimestampTzGetDatum(instant - put_back_us[i]))) == start)
			return instant - put_back_us[i];
	return instant;
}

Datum
mr_tumble(PG_FUNCTION_ARGS)
{
	TimestampTz ts;
	WindowSize size;
	Timestamp origin, local, start;
	Datum zone;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	ts = PG_GETARG_TIMESTAMPTZ(0);
	size = window_size(PG_GETARG_INTERVAL_P(1), "window size");
	if (TIMESTAMP_NOT_FINITE(ts))
		PG_RETURN_TIMESTAMPTZ(ts);
	origin = size.months ? DEFAULT_MONTH_ORIGIN_US : DEFAULT_ORIGIN_US;
	if (!PG_ARGISNULL(2))
	{
		origin = PG_GETARG_TIMESTAMPTZ(2);
		if (TIMESTAMP_NOT_FINITE(origin))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("window origin must be finite")));
	}
	if (PG_ARGISNULL(3))
		PG_RETURN_TIMESTAMPTZ(bin(ts, size, origin));

	zone = PG_GETARG_DATUM(3);
	local = DatumGetTimestamp(DirectFunctionCall2(timestamptz_zone, zone, TimestampTzGetDatum(ts)));
	if (!PG_ARGISNULL(2))
		origin = DatumGetTimestamp(DirectFunctionCall2(timestamptz_zone, zone, TimestampTzGetDatum(origin)));
	start = bin(local, size, origin);
	PG_RETURN_TIMESTAMPTZ(local_to_instant(zone, start, ts, local, size));
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
	if ((size.months == 0) != (slide.months == 0) ||
		(size.months ? size.months % slide.months : size.us % slide.us) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("window size \"%s\" is not a multiple of its slide \"%s\"",
						interval_text(PG_GETARG_INTERVAL_P(2)), interval_text(PG_GETARG_INTERVAL_P(3)))));
	n_panes = size.months ? size.months / slide.months : size.us / slide.us;
	if (n_panes > 1000000)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("each event would be in " INT64_FORMAT " windows, more than 1000000", n_panes)));
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
