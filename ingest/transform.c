/*
 * From decoded fields to a row of the table: which field fills which column, and the COPY text of the row.
 */
#include "ingest.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MAX_DEFAULT_BITS 64
#define BYTEA_OID 17
#define DATE_OID 1082
#define TIME_OID 1083
#define TIMESTAMP_OID 1114
#define MAX_ROW_BYTES ((size_t) 1 << 30) /* PostgreSQL's own limit of a line of COPY */

/* ---- mapping ---- */

static const char *const field_names[] = {
	[FIELD_WHOLE] = "$",		  [FIELD_TOPIC] = "$topic", [FIELD_PARTITION] = "$partition",
	[FIELD_OFFSET] = "$offset",	  [FIELD_KEY] = "$key",		[FIELD_TIMESTAMP] = "$timestamp",
	[FIELD_HEADERS] = "$headers", [FIELD_REST] = "$rest",
};

static FieldKind
field_kind(const char *field)
{
	if (strcmp(field, "$file") == 0)
		return FIELD_TOPIC;
	if (strncmp(field, "$header.", 8) == 0 && field[8])
		return FIELD_HEADER;
	for (size_t i = 0; i < sizeof field_names / sizeof field_names[0]; i++)
		if (field_names[i] != NULL && strcmp(field_names[i], field) == 0)
			return (FieldKind) i;
	return FIELD_NAMED;
}

static const Pair *
rule_of(const Config *config, const char *column)
{
	for (int i = 0; i < config->columns.n_pairs; i++)
		if (strcmp(config->columns.list[i].name, column) == 0)
			return &config->columns.list[i];
	return NULL;
}

/* Letters of a pattern that strptime() reads without a locale or a zone of its own, and %f. */
#define PATTERN_LETTERS "YmdHMSfzIpbBhaAyjeDFTRtn%"

static bool
pattern_is_good(const char *pattern)
{
	int n_fractions = 0;

	if (strchr(pattern, '%') == NULL)
		return false;
	for (; (pattern = strchr(pattern, '%')) != NULL; pattern += 2)
	{
		if (pattern[1] == '\0' || strchr(PATTERN_LETTERS, pattern[1]) == NULL)
			return false;
		n_fractions += pattern[1] == 'f';
	}
	return n_fractions <= 1;
}

static void
map_format(Mapped *mapped, Config *config, const char *format)
{
	if (strcmp(format, "iso") == 0)
		mapped->format = FORMAT_ISO;
	else if (strncmp(format, "epoch_", 6) == 0)
	{
		mapped->format = FORMAT_EPOCH;
		mapped->unit_us = strcmp(format + 6, "s") == 0 ? 1000000
			: strcmp(format + 6, "ms") == 0			   ? 1000
			: strcmp(format + 6, "us") == 0			   ? 1
													   : 0;
	}
	else
	{
		mapped->format = FORMAT_PATTERN;
		mapped->pattern = mem_string(format);
	}
	if ((mapped->format == FORMAT_EPOCH && mapped->unit_us == 0) ||
		(mapped->format == FORMAT_PATTERN && !pattern_is_good(format)))
		config_error_pair(config, mapped->rule,
						  "\"%s\" is no format: use iso, epoch_s, epoch_ms, epoch_us or a pattern of %%%s",
						  format, "Y %m %d %H %M %S %f %z %I %p %b %a %y %j %e %D %F %T %R %%");
}

/* Cuts " word:REST" off text and returns REST, or NULL. */
static char *
cut_option(char *text, const char *word)
{
	char *at = strstr(text, word), *rest;

	if (at == NULL)
		return NULL;
	rest = at + strlen(word);
	while (at > text && at[-1] == ' ')
		at--;
	*at = '\0';
	return rest;
}

static bool
takes_rest(const Config *config, const Column *column)
{
	return config->on_unknown_field == UNKNOWN_JSONB && config->unknown_column != NULL &&
		strcmp(config->unknown_column, column->name) == 0;
}

static void
map_column(Mapping *mapping, Config *config, const Column *column)
{
	const Pair *rule = rule_of(config, column->name);
	Mapped *mapped = &mapping->columns[mapping->n_columns];
	char *field = mem_string(rule ? rule->value : takes_rest(config, column) ? "$rest" : column->name);
	const char *fallback = rule ? cut_option(field, " default:") : NULL;
	const char *format = rule ? cut_option(field, " format:") : NULL;

	if (rule != NULL && field[0] == '\0')
	{
		free(field); /* "column =": left to the server */
		return;
	}
	memset(mapped, 0, sizeof *mapped);
	mapped->column = column;
	mapped->rule = rule;
	mapped->field = field;
	mapped->fallback = fallback ? mem_string(fallback) : NULL;
	mapped->kind = rule || takes_rest(config, column) ? field_kind(field) : FIELD_NAMED;
	mapped->drops_zone =
		column->type_oid == TIMESTAMP_OID || column->type_oid == DATE_OID || column->type_oid == TIME_OID;
	if (format != NULL)
		map_format(mapped, config, format);
	if (rule && field[0] == '$' && mapped->kind == FIELD_NAMED)
		config_error_pair(config, rule,
						  "\"%s\" is unknown: use $, $topic, $file, $partition, $offset, $key, $timestamp, "
						  "$headers, $header.NAME or $rest",
						  field);
	if (rule && mapped->kind != FIELD_REST && takes_rest(config, column))
		config_error_pair(config, rule, "target.unknown_column has \"%s\" filled with $rest", column->name);
	mapping->n_columns++;
}

/* on_unknown_field, and who takes what it asks for. */
static void
check_growth(Mapping *mapping, Config *config, const Table *table)
{
	const char *option = "target.on_unknown_field";
	int n_rests = 0;

	for (int i = 0; i < mapping->n_columns; i++)
		n_rests += mapping->columns[i].kind == FIELD_REST;
	if (n_rests > 1)
		config_error_at(config, "target.unknown_column", "$rest fills %d columns, one is possible", n_rests);
	if (n_rests > 0 && config->on_unknown_field > UNKNOWN_JSONB)
		config_error_at(config, option, "nothing is unknown when $rest fills a column: use jsonb");
	if (config->unknown_column != NULL && config->on_unknown_field != UNKNOWN_JSONB)
		config_error_at(config, "target.unknown_column", "\"unknown_column\" needs on_unknown_field = jsonb");
	else if (config->on_unknown_field == UNKNOWN_JSONB && n_rests == 0)
		config_error_at(config, option,
						config->unknown_column ? "table %s has no column \"%s\" that can be written"
											   : "%s: \"unknown_column\" says which column takes them",
						table->name, config->unknown_column);
}

static void
check_rules(Config *config, const Table *table)
{
	const char **names = mem_alloc(sizeof(char *) * (size_t) (table->n_columns + 1));

	for (int i = 0; i < table->n_columns; i++)
		names[i] = table->columns[i].name;
	for (int i = 0; i < config->columns.n_pairs; i++)
	{
		const Pair *rule = &config->columns.list[i];
		bool found = false;

		for (int c = 0; c < table->n_columns; c++)
			found |= strcmp(names[c], rule->name) == 0;
		if (found)
			continue;
		const char *nearest = name_nearest(rule->name, names, table->n_columns);
		config_error_pair(config, rule, "table %s has no column \"%s\" that can be written%s%s%s",
						  table->name, rule->name, nearest ? "; did you mean \"" : "", nearest ? nearest : "",
						  nearest ? "\"?" : "");
	}
	free(names);
}

/* Is the field among csv.columns, or the table's columns where they stand for these? */
static bool
is_source_field(const Config *config, const Table *table, const char *field)
{
	size_t n_field = strlen(field);
	const char *list = config->csv_columns;

	for (int i = 0; list == NULL && i < table->n_columns; i++)
		if (strcasecmp(table->columns[i].name, field) == 0)
			return true;
	while (list != NULL && *list)
	{
		size_t n_bytes = strcspn(list, ","), n_blanks = strspn(list, " ");
		size_t n_name = n_bytes;

		while (n_name > n_blanks && list[n_name - 1] == ' ')
			n_name--;
		if (n_name >= n_blanks && n_name - n_blanks == n_field &&
			strncasecmp(list + n_blanks, field, n_field) == 0)
			return true;
		list += n_bytes + (list[n_bytes] == ',');
	}
	return false;
}

/* Without a header it is known now which fields there are. */
static void
check_fields(const Mapping *mapping, Config *config, const Table *table)
{
	if (config->format != FORMAT_CSV || config->csv_header)
		return;
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];

		if (mapped->kind == FIELD_NAMED && mapped->rule != NULL && mapped->field[0] != '$' &&
			mapped->fallback == NULL && !is_source_field(config, table, mapped->field))
			config_error_pair(config, mapped->rule, "there is no field \"%s\": without a header %s",
							  mapped->field,
							  config->csv_columns ? "csv.columns names them"
												  : "they have the names of the table's columns");
	}
}

ExitCode
mapping_build(Mapping *mapping, Config *config, const Table *table)
{
	static _Atomic int64_t n_built;
	int n_before = config->n_errors, n_bits = 0;

	mapping->table = table;
	check_rules(config, table);
	mapping->columns = mem_alloc(sizeof(Mapped) * (size_t) (table->n_columns + 1));
	for (int i = 0; i < table->n_columns; i++)
		map_column(mapping, config, &table->columns[i]);
	check_fields(mapping, config, table);
	check_growth(mapping, config, table);
	mapping->values = mem_alloc(sizeof(Value) * (size_t) (mapping->n_columns + 1));
	mapping->texts = mem_alloc(VALUE_ROOM * (size_t) (mapping->n_columns + 1));
	mapping->copy.columns = mem_alloc(sizeof(Column *) * (size_t) (mapping->n_columns + 1));
	mapping->copy.default_bit = mem_alloc(sizeof(int) * (size_t) (mapping->n_columns + 1));
	mapping->copy.n_columns = mapping->n_columns;
	mapping->time_index = mapping->rest_index = -1;
	mapping->is_utc = strcasecmp(config->timezone, "UTC") == 0;
	mapping->is_named = true;
	mapping->has_headers = false;
	mapping->number = ++n_built;
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];

		mapping->copy.columns[i] = mapped->column;
		mapping->copy.default_bit[i] =
			mapped->column->has_default && mapped->fallback == NULL ? n_bits++ : -1;
		if (mapped->kind == FIELD_REST)
			mapping->rest_index = i;
		mapping->has_headers |= mapped->kind == FIELD_HEADER;
		mapping->is_named &= (mapped->kind == FIELD_NAMED || mapped->kind == FIELD_HEADER) &&
			mapped->fallback == NULL && mapped->format == FORMAT_NONE;
		if (table->time_column == NULL || strcmp(table->time_column, mapped->column->name) != 0)
			continue;
		mapping->time_index = i;
		mapping->ignores_zone =
			mapped->column->type_oid == TIMESTAMP_OID || mapped->column->type_oid == DATE_OID;
		mapping->is_date = mapped->column->type_oid == DATE_OID;
	}
	if (n_bits > MAX_DEFAULT_BITS)
		config_error_at(config, "target.table",
						"%s has %d filled columns with a DEFAULT, at most %d are possible: leave some to the "
						"server with \"column =\" in [columns]",
						table->name, n_bits, MAX_DEFAULT_BITS);
	if (mapping->n_columns == 0 && table->n_columns > 0)
		config_error_at(config, "target.table", "no column of %s is filled", table->name);
	return config->n_errors > n_before ? EXIT_TARGET : EXIT_DONE;
}

void
mapping_free(Mapping *mapping)
{
	for (int i = 0; i < mapping->n_columns; i++)
	{
		free(mapping->columns[i].field);
		free(mapping->columns[i].fallback);
		free(mapping->columns[i].pattern);
	}
	free(mapping->columns);
	free(mapping->values);
	free(mapping->texts);
	free(mapping->copy.columns);
	free(mapping->copy.default_bit);
	*mapping = (Mapping){.table = mapping->table, .batch = mapping->batch};
}

/* ---- growth ---- */

#define MOST_COLUMNS \
	1000 /* of a table to which columns are added; PostgreSQL has room for 1600, dropped ones too */
#define MOST_NAME_BYTES 63 /* PostgreSQL cuts off the rest */

static NewColumn *
new_column_find(const NewColumns *columns, const char *name)
{
	for (int i = 0; i < columns->n_columns; i++)
		if (strcmp(columns->list[i].name, name) == 0)
			return &columns->list[i];
	return NULL;
}

static void
new_columns_clear(NewColumns *columns)
{
	for (int i = 0; i < columns->n_columns; i++)
		free(columns->list[i].name);
	free(columns->list);
	*columns = (NewColumns){NULL, 0};
}

/* A type for values of both types. */
static const char *
common_type(const char *a, const char *b)
{
	if (strcmp(a, b) == 0)
		return a;
	return strcmp(a, "jsonb") == 0 || strcmp(b, "jsonb") == 0 ? "jsonb" : "text";
}

/* Why no column can be added for the field, or NULL. */
static const char *
growth_obstacle(const Growth *growth, const char *name, size_t n_bytes)
{
	static const char *const system_names[] = {"tableoid", "ctid", "xmin", "cmin", "xmax", "cmax"};

	if (n_bytes == 0 || n_bytes > MOST_NAME_BYTES)
		return "its name is empty, too long, or no text";
	for (size_t i = 0; i < sizeof system_names / sizeof system_names[0]; i++)
		if (strcmp(system_names[i], name) == 0)
			return "it has the name of a system column";
	if (new_column_find(&growth->asked, name) != NULL)
		return "one was asked for before";
	if (growth->table->n_columns + growth->wanted.n_columns >= MOST_COLUMNS)
		return "the table has too many";
	return NULL;
}

void
growth_field(Growth *growth, const char *name, size_t n_bytes, const char *type, char *reason,
			 size_t reason_bytes)
{
	char text[MOST_NAME_BYTES + 1];

	if (growth->config->on_unknown_field < UNKNOWN_ADD_COLUMN)
		return;
	snprintf(text, sizeof text, "%.*s", (int) n_bytes, name);
	if (growth->config->on_unknown_field == UNKNOWN_DEAD_LETTER)
	{
		snprintf(reason, reason_bytes, "unknown field \"%s\"", text);
		return;
	}
	/* What the table has, and [columns] fills with something else, is left out on purpose. */
	for (int i = 0; i < growth->table->n_columns; i++)
		if (strcmp(growth->table->columns[i].name, text) == 0)
			return;
	if (type == NULL)
		return;
	NewColumn *known = new_column_find(&growth->wanted, text);
	const char *obstacle = known ? NULL : growth_obstacle(growth, text, n_bytes);
	/* Should the row have to be stored before the column is there, nothing of it is lost. */
	snprintf(reason, reason_bytes, "no column for field \"%s\": %s", text,
			 obstacle ? obstacle : "it is to be added");
	if (known != NULL)
		known->type = common_type(known->type, type);
	if (known != NULL || obstacle != NULL)
		return;
	growth->wanted.list =
		mem_grow(growth->wanted.list, (size_t) growth->wanted.n_columns + 1, sizeof(NewColumn));
	growth->wanted.list[growth->wanted.n_columns++] = (NewColumn){mem_string(text), type};
}

const NewColumns *
growth_take(Growth *growth)
{
	int n_before = growth->asked.n_columns, n_new = growth->wanted.n_columns;

	if (n_new == 0)
		return NULL;
	/* What is handed out is the end of the list of all that ever was. */
	growth->asked.list = mem_grow(growth->asked.list, (size_t) (n_before + n_new), sizeof(NewColumn));
	memcpy(growth->asked.list + n_before, growth->wanted.list, sizeof(NewColumn) * (size_t) n_new);
	growth->asked.n_columns += n_new;
	free(growth->wanted.list);
	growth->wanted = (NewColumns){NULL, 0};
	growth->given = (NewColumns){growth->asked.list + n_before, n_new};
	return &growth->given;
}

void
growth_free(Growth *growth)
{
	new_columns_clear(&growth->wanted);
	new_columns_clear(&growth->asked);
}

/* ---- COPY text ---- */

#define EVERY_BYTE(x) (UINT64_C(0x0101010101010101) * (x))

/* True when one of eight bytes is below 32 or a backslash; may also be true for others, never false for these. */
static bool
needs_escape(uint64_t word)
{
	uint64_t slash = word ^ EVERY_BYTE('\\');

	return (((word - EVERY_BYTE(0x20)) & ~word) | ((slash - EVERY_BYTE(0x01)) & ~slash)) & EVERY_BYTE(0x80);
}

/* Any text; eight bytes at a time as long as none of them needs a backslash. */
static char *
escape_slowly(char *out, const char *text, size_t n_bytes)
{
	size_t i = 0;

	while (i < n_bytes)
	{
		if (n_bytes - i >= 8)
		{
			uint64_t word;

			memcpy(&word, text + i, 8);
			if (!needs_escape(word))
			{
				memcpy(out, &word, 8);
				out += 8;
				i += 8;
				continue;
			}
		}
		size_t stop = n_bytes - i >= 8 ? i + 8 : n_bytes;
		for (; i < stop; i++)
		{
			char c = text[i];

			if (c == '\\' || c == '\n' || c == '\r' || c == '\t')
			{
				*out++ = '\\';
				c = c == '\n' ? 'n' : c == '\r' ? 'r' : c == '\t' ? 't' : c;
			}
			*out++ = c;
		}
	}
	return out;
}

/* Most values need no backslash and are short: they go in words, the last of which overlaps the one before. */
char *
copy_escape(char *out, const char *text, size_t n_bytes)
{
	uint64_t word;

	if (n_bytes < 4)
		return escape_slowly(out, text, n_bytes);
	if (n_bytes < 8)
	{
		uint32_t first, last;

		memcpy(&first, text, 4);
		memcpy(&last, text + n_bytes - 4, 4);
		if (needs_escape((uint64_t) last << 32 | first))
			return escape_slowly(out, text, n_bytes);
		memcpy(out, &first, 4);
		memcpy(out + n_bytes - 4, &last, 4);
		return out + n_bytes;
	}
	for (size_t i = 0; i < n_bytes - 7; i += 8)
	{
		memcpy(&word, text + i, 8);
		if (needs_escape(word))
			return escape_slowly(out + i, text + i, n_bytes - i);
		memcpy(out + i, &word, 8);
	}
	memcpy(&word, text + n_bytes - 8, 8);
	if (needs_escape(word))
		return escape_slowly(out + n_bytes / 8 * 8, text + n_bytes / 8 * 8, n_bytes % 8);
	memcpy(out + n_bytes - 8, &word, 8);
	return out + n_bytes;
}

/* ---- values ---- */

static Value
text_value(const char *text, size_t n_bytes)
{
	return (Value){text, (uint32_t) n_bytes, VALUE_TEXT};
}

/* text: room of VALUE_ROOM; the digits stand at its end. */
static Value
number_value(int64_t number, char *text)
{
	uint64_t rest = number < 0 ? -(uint64_t) number : (uint64_t) number;
	char *end = text + VALUE_ROOM, *at = end;

	do
		*--at = (char) ('0' + rest % 10);
	while ((rest /= 10) > 0);
	if (number < 0)
		*--at = '-';
	return text_value(at, (size_t) (end - at));
}

/* As bytea reads it. */
static Value
bytes_value(Arena *arena, const char *data, size_t n_bytes)
{
	static const char digits[] = "0123456789abcdef";
	char *text = arena_reserve(arena, 2 * n_bytes + 2), *out = text;

	*out++ = '\\';
	*out++ = 'x';
	for (size_t i = 0; i < n_bytes; i++)
	{
		*out++ = digits[(unsigned char) data[i] >> 4];
		*out++ = digits[(unsigned char) data[i] & 15];
	}
	arena_take(arena, (size_t) (out - text));
	return text_value(text, (size_t) (out - text));
}

/* False when the key cannot be stored in that column. */
static bool
key_value(const Mapping *mapping, const Mapped *mapped, const Message *message, Value *value)
{
	size_t at;

	*value = (Value){NULL, 0, VALUE_NULL};
	if (message->key == NULL)
		return true;
	*value = text_value(message->key, message->n_key_bytes);
	if (mapped->column->type_oid == BYTEA_OID)
		*value = bytes_value(&mapping->batch->arena, message->key, message->n_key_bytes);
	else
		return text_defect(message->key, message->n_key_bytes, &at) == NULL;
	return true;
}

/* Fields that come with the message instead of in it.  Returns what is wrong with one, or NULL. */
static const char *
metadata(const Mapping *mapping, const Mapped *mapped, const Message *message, char *text, Value *value)
{
	const Position *position = &mapping->batch->positions.list[message->position];

	switch (mapped->kind)
	{
		case FIELD_WHOLE:
			/* A column of type json has it already where something in it was replaced. */
			if (value->kind == VALUE_MISSING)
				*value = text_value(message->data, message->n_bytes);
			break;
		case FIELD_TOPIC:
			*value = text_value(position->topic, strlen(position->topic));
			break;
		case FIELD_KEY:
			return key_value(mapping, mapped, message, value) ? NULL : "key is not valid UTF-8";
		case FIELD_PARTITION:
			*value = number_value(position->partition, text);
			break;
		case FIELD_OFFSET:
			*value = number_value(message->offset, text);
			break;
		case FIELD_TIMESTAMP:
			*value = (Value){NULL, 0, VALUE_NULL};
			if (message->timestamp_us == NO_TIME)
				break;
			time_format(message->timestamp_us, text, VALUE_ROOM);
			*value = text_value(text, strlen(text));
			break;
		case FIELD_HEADERS:
			*value = message->headers ? text_value(message->headers, message->n_header_bytes)
									  : (Value){NULL, 0, VALUE_NULL};
			break;
		case FIELD_NAMED:
		case FIELD_HEADER:
		case FIELD_REST:
			break;
	}
	return NULL;
}

#define MOST_TIME_US INT64_C(9000000000000000000)

/* A count of units since 1970, as a number or as text. */
static bool
epoch_parse(const char *text, int64_t unit_us, int64_t *time_us)
{
	size_t n_digits = strspn(text + (text[0] == '-'), "0123456789");
	char *end;

	if (n_digits > 0 && n_digits <= 18 && text[n_digits + (text[0] == '-')] == '\0')
		return !__builtin_mul_overflow(strtoll(text, NULL, 10), unit_us, time_us) &&
			*time_us > -MOST_TIME_US && *time_us < MOST_TIME_US;
	if (text[strspn(text, "0123456789+-.eE")] != '\0' || text[0] == '\0')
		return false;
	double number = strtod(text, &end) * (double) unit_us;
	if (*end != '\0' || !(fabs(number) < (double) MOST_TIME_US))
		return false;
	*time_us = llround(number);
	return true;
}

/* text becomes the time in ISO form, with the zone that pattern reads, if it reads one. */
static bool
pattern_parse(const char *pattern, char text[VALUE_ROOM])
{
	struct tm parts = {.tm_year = 70, .tm_mday = 1};
	char reduced[256], fraction[10] = "0";
	const char *at = strstr(pattern, "%f"), *end;

	if (strlen(pattern) >= sizeof reduced)
		return false;
	snprintf(reduced, sizeof reduced, "%s", pattern);
	if (at != NULL)
	{
		/* What stands before the fraction tells where it is; then it is left out of both. */
		size_t n_before = (size_t) (at - pattern), n_digits;

		reduced[n_before] = '\0';
		char *digits = strptime(text, reduced, &parts);
		if (digits == NULL || (n_digits = strspn(digits, "0123456789")) == 0 || n_digits > 9)
			return false;
		snprintf(fraction, sizeof fraction, "%.*s", (int) n_digits, digits);
		memmove(digits, digits + n_digits, strlen(digits + n_digits) + 1);
		snprintf(reduced + n_before, sizeof reduced - n_before, "%s", at + 2);
		parts = (struct tm){.tm_year = 70, .tm_mday = 1};
	}
	end = strptime(text, reduced, &parts);
	if (end == NULL || *end != '\0' || parts.tm_year < -1899 || parts.tm_year > 8099)
		return false;
	int written =
		snprintf(text, VALUE_ROOM, "%04d-%02d-%02d %02d:%02d:%02d.%s", parts.tm_year + 1900, parts.tm_mon + 1,
				 parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, fraction);
	long offset = parts.tm_gmtoff;
	if (strstr(pattern, "%z") != NULL)
		snprintf(text + written, VALUE_ROOM - (size_t) written, "%c%02ld:%02ld", offset < 0 ? '-' : '+',
				 labs(offset) / 3600, labs(offset) / 60 % 60);
	return true;
}

/* The value as its format reads it; false when it does not fit. */
static bool
format_value(const Mapped *mapped, char *text, Value *value)
{
	int64_t time_us;
	bool has_zone = true;

	if (mapped->format == FORMAT_ISO)
		return time_parse(value->data, value->n_bytes, &time_us, &has_zone);
	if (value->n_bytes >= VALUE_ROOM)
		return false;
	memmove(text, value->data, value->n_bytes);
	text[value->n_bytes] = '\0';
	if (mapped->format == FORMAT_EPOCH && !epoch_parse(text, mapped->unit_us, &time_us))
		return false;
	if (mapped->format == FORMAT_PATTERN &&
		(!pattern_parse(mapped->pattern, text) || !time_parse(text, strlen(text), &time_us, &has_zone)))
		return false;
	if (has_zone)
		time_format(time_us, text, VALUE_ROOM);
	char *zone = has_zone && mapped->drops_zone ? strstr(text, "+00") : NULL;
	if (zone != NULL)
		memmove(zone, zone + 3, strlen(zone + 3) + 1);
	*value = text_value(text, strlen(text));
	return true;
}

/* What decode.c cannot know: returns what is wrong with the message, or NULL. */
static const char *
complete(Mapping *mapping, const Message *message, char *reason, size_t reason_bytes)
{
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];
		Value *value = &mapping->values[i];
		const char *fault = metadata(mapping, mapped, message, mapping->texts[i], value);

		if (fault != NULL)
			return fault;
		if (value->kind == VALUE_MISSING && mapped->fallback != NULL)
			*value = text_value(mapped->fallback, strlen(mapped->fallback));
		else if (value->kind == VALUE_TEXT && mapped->format != FORMAT_NONE &&
				 !format_value(mapped, mapping->texts[i], value))
		{
			const char *rest = mapped->rule->value + strlen(mapped->field);
			snprintf(reason, reason_bytes, "field \"%s\" does not fit %s", mapped->field,
					 rest + strspn(rest, " "));
			return reason;
		}
	}
	return NULL;
}

/* ---- rows ---- */

static Row *
row_begin(Mapping *mapping, const Message *message)
{
	Row *row = mapping->again;

	if (row == NULL)
		return batch_add(mapping->batch, message);
	*row = (Row){
		.raw = row->raw,
		.raw_bytes = row->raw_bytes,
		.key = row->key,
		.key_bytes = row->key_bytes,
		.headers = row->headers,
		.header_bytes = row->header_bytes,
		.timestamp_us = row->timestamp_us,
		.offset = row->offset,
		.position = row->position,
		.leaf = LEAF_PARENT,
		.time_us = NO_TIME,
	};
	return row;
}

Row *
transform_refuse(Mapping *mapping, const Message *message, const char *reason)
{
	Row *row = row_begin(mapping, message);

	row_kill(mapping->batch, row, "decode", "", reason);
	return row;
}

/* Event time of the row, or NO_TIME when only the server can read it. */
static int64_t
event_time(const Mapping *mapping, const Value *value)
{
	int64_t time_us;
	bool has_zone;

	if (value->kind != VALUE_TEXT || !time_parse(value->data, value->n_bytes, &time_us, &has_zone))
		return NO_TIME;
	if (mapping->ignores_zone)
		/* The parser has applied the zone that PostgreSQL ignores: the server is asked. */
		return has_zone ? NO_TIME : mapping->is_date ? start_of_day(time_us) : time_us;
	return has_zone || mapping->is_utc ? time_us : NO_TIME;
}

/* As the server reads it.  A stream that has seen such a time takes everything behind it for late. */
static bool
is_infinite(const Value *time)
{
	if (time->kind != VALUE_TEXT)
		return false;
	const char *at = time->data, *end = at + time->n_bytes;
	while (at < end && (*at == ' ' || *at == '-' || *at == '+'))
		at++;
	return end - at >= 8 && strncasecmp(at, "infinity", 8) == 0;
}

/* The row's event time, or the text of it that the server is to read. */
static void
row_time(Mapping *mapping, Row *row)
{
	const Value *time = &mapping->values[mapping->time_index];

	row->time_us = event_time(mapping, time);
	if (row->time_us != NO_TIME)
		return;
	if (is_infinite(time))
	{
		row_kill(mapping->batch, row, "partition", "", "event time is infinite");
		return;
	}
	if (!mapping->table->is_routed)
		return;
	row->is_defaulted = time->kind == VALUE_MISSING && mapping->copy.default_bit[mapping->time_index] >= 0;
	if (time->kind == VALUE_TEXT)
	{
		row->time_text = arena_copy(&mapping->batch->arena, time->data, time->n_bytes);
		row->time_bytes = time->n_bytes;
	}
}

void
transform_row(Mapping *mapping, const Message *message)
{
	const Value *values = mapping->values;
	char reason[200];
	const char *fault = mapping->is_named ? NULL : complete(mapping, message, reason, sizeof reason);
	size_t room = 1;
	int n_sent = 0;

	for (int i = 0; i < mapping->n_columns; i++)
		room += 3 + 2 * (size_t) (values[i].kind == VALUE_TEXT ? values[i].n_bytes : 0);
	if (fault == NULL && room > MAX_ROW_BYTES)
		fault = "the row is longer than 1 GB";
	if (fault != NULL)
	{
		transform_refuse(mapping, message, fault);
		return;
	}
	Row *row = row_begin(mapping, message);
	if (mapping->time_index >= 0)
		row_time(mapping, row);
	char *start = arena_reserve(&mapping->batch->arena, room), *out = start;
	for (int i = 0; i < mapping->n_columns; i++)
	{
		int bit = mapping->copy.default_bit[i];

		if (values[i].kind == VALUE_MISSING && bit >= 0)
		{
			row->omitted |= UINT64_C(1) << bit;
			continue;
		}
		if (n_sent++ > 0)
			*out++ = '\t';
		if (values[i].kind == VALUE_TEXT)
			out = copy_escape(out, values[i].data, values[i].n_bytes);
		else
		{
			*out++ = '\\';
			*out++ = 'N';
		}
	}
	*out++ = '\n';
	arena_take(&mapping->batch->arena, (size_t) (out - start));
	row->copy = start;
	row->copy_bytes = (uint32_t) (out - start);
	if (n_sent == 0)
		row_kill(mapping->batch, row, "decode", "", "the message has no field that a column takes");
}
