/*
 * settings.c: what a training goes by: from the arguments of a function, from stored parameters, and as JSON.
 *
 * A kind of training has a table of its settings (MrSetting): names, ranges, and where they stand in its own struct, the
 * arguments `to` and `from` here.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "common/shortest_dec.h"
#include "utils/json.h"

void
mr_bad_value(const char *name, const char *expected, const char *value)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must be %s, not %s", name, expected, value)));
}

void
mr_null_value(const char *name)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be NULL", name)));
}

void
mr_check_range(const MrSetting *setting, double value)
{
	if (value >= setting->least && value <= setting->most)
		return;
	mr_bad_value(setting->name,
				 setting->most == FLT_MAX
					 ? "a finite number that is not negative"
					 : psprintf("between %.15g and %.15g", setting->least, setting->most),
				 isnan(value)		? "NaN"
					 : isinf(value) ? (value > 0 ? "Infinity" : "-Infinity")
									: psprintf("%.15g", value));
}

int
mr_choice(const char *name, const char *const *choices, const char *value)
{
	StringInfoData list;

	for (int i = 0; choices[i]; i++)
		if (strcmp(value, choices[i]) == 0)
			return i;
	initStringInfo(&list);
	for (int i = 0; choices[i]; i++)
		appendStringInfo(&list, "%s%s", i == 0 ? "" : choices[i + 1] ? ", " : " or ", choices[i]);
	mr_bad_value(name, list.data, psprintf("\"%s\"", value));
}

static void
set_float(const MrSetting *setting, double value, void *to)
{
	mr_check_range(setting, value);
	*(double *) ((char *) to + setting->offset) = value;
}

static void
set_int(const MrSetting *setting, int value, void *to)
{
	mr_check_range(setting, value);
	*(int *) ((char *) to + setting->offset) = value;
}

void
mr_setting_datum(const MrSetting *setting, Datum value, void *to)
{
	char *field = (char *) to + setting->offset;

	switch (setting->kind)
	{
		case MR_SETTING_INT:
			set_int(setting, DatumGetInt32(value), to);
			break;
		case MR_SETTING_INT64:
			*(int64 *) field = DatumGetInt64(value);
			break;
		case MR_SETTING_FLOAT:
			set_float(setting, DatumGetFloat8(value), to);
			break;
		case MR_SETTING_BOOL:
			*(bool *) field = DatumGetBool(value);
			break;
		case MR_SETTING_CHOICE:
			*(int *) field = mr_choice(setting->name, setting->choices, TextDatumGetCString(value));
			break;
		case MR_SETTING_NAME:
			*(char **) field = pstrdup(NameStr(*DatumGetName(value)));
			break;
	}
}

/* NULL: NaN, or no name. */
static void
set_null(const MrSetting *setting, void *to)
{
	if (!setting->null_ok)
		mr_null_value(setting->name);
	if (setting->kind == MR_SETTING_NAME)
		*(char **) ((char *) to + setting->offset) = NULL;
	else
		*(double *) ((char *) to + setting->offset) = NAN;
}

void
mr_settings_args(const MrSetting *settings, int n, FunctionCallInfo fcinfo, void *to)
{
	for (int i = 0; i < n; i++)
		if (PG_ARGISNULL(settings[i].arg))
			set_null(&settings[i], to);
		else
			mr_setting_datum(&settings[i], PG_GETARG_DATUM(settings[i].arg), to);
}

static void
set_text(const MrSetting *setting, const char *value, void *to)
{
	char *field = (char *) to + setting->offset;
	char *end;
	double number;

	errno = 0;
	switch (setting->kind)
	{
		case MR_SETTING_INT:
			number = strtod(value, &end);
			if (end == value || *end != '\0' || (isfinite(number) && number != rint(number)))
				mr_bad_value(setting->name, "an integer", psprintf("\"%s\"", value));
			mr_check_range(setting, number);
			set_int(setting, (int) number, to);
			break;
		case MR_SETTING_INT64:
			*(int64 *) field = strtoll(value, &end, 10);
			if (end == value || *end != '\0' || errno != 0)
				mr_bad_value(setting->name, "an integer", psprintf("\"%s\"", value));
			break;
		case MR_SETTING_FLOAT:
			number = strtod(value, &end);
			if (end == value || *end != '\0')
				mr_bad_value(setting->name, "a number", psprintf("\"%s\"", value));
			set_float(setting, number, to);
			break;
		case MR_SETTING_BOOL:
			if (!parse_bool(value, (bool *) field))
				mr_bad_value(setting->name, "true or false", psprintf("\"%s\"", value));
			break;
		case MR_SETTING_CHOICE:
			*(int *) field = mr_choice(setting->name, setting->choices, value);
			break;
		case MR_SETTING_NAME:
			*(char **) field = pstrdup(value);
			break;
	}
}

void
mr_setting_text(const MrSetting *settings, int n, const char *key, const char *value, void *to)
{
	StringInfoData names;

	for (int i = 0; i < n; i++)
	{
		if (strcmp(settings[i].name, key) != 0)
			continue;
		if (value)
			set_text(&settings[i], value, to);
		else
			set_null(&settings[i], to);
		return;
	}
	initStringInfo(&names);
	for (int i = 0; i < n; i++)
		appendStringInfo(&names, "%s%s", i ? ", " : "", settings[i].name);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a training has no parameter \"%s\"", key),
			 errhint("The parameters are: %s.", names.data)));
}

char *
mr_json_number(double value)
{
	char *number = palloc(DOUBLE_SHORTEST_DECIMAL_LEN);

	if (!isfinite(value))
		return "null";
	double_to_shortest_decimal_buf(value, number);
	return number;
}

static void
append_value(StringInfo json, const MrSetting *setting, const void *from)
{
	const char *field = (const char *) from + setting->offset;

	switch (setting->kind)
	{
		case MR_SETTING_INT:
			appendStringInfo(json, "%d", *(const int *) field);
			break;
		case MR_SETTING_INT64:
			appendStringInfo(json, INT64_FORMAT, *(const int64 *) field);
			break;
		case MR_SETTING_FLOAT:
			appendStringInfoString(json, mr_json_number(*(const double *) field));
			break;
		case MR_SETTING_BOOL:
			appendStringInfoString(json, *(const bool *) field ? "true" : "false");
			break;
		case MR_SETTING_CHOICE:
			escape_json(json, setting->choices[*(const int *) field]);
			break;
		case MR_SETTING_NAME:
			if (*(char *const *) field)
				escape_json(json, *(char *const *) field);
			else
				appendStringInfoString(json, "null");
			break;
	}
}

void
mr_settings_json(const MrSetting *settings, int n, const void *from, StringInfo json)
{
	for (int i = 0; i < n; i++)
	{
		appendStringInfo(json, "%s\"%s\": ", i ? ", " : "", settings[i].name);
		append_value(json, &settings[i], from);
	}
}

int
mr_threads_arg(FunctionCallInfo fcinfo, int n)
{
	const MrSetting threads = {"threads", .least = 0, .most = 1024};

	if (PG_ARGISNULL(n))
		mr_null_value(threads.name);
	mr_check_range(&threads, PG_GETARG_INT32(n));
	return PG_GETARG_INT32(n);
}
