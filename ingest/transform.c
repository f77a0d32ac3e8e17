/*
 * From decoded fields to a row of the table: which field fills which column, and the COPY text of the row.
 */
#include "ingest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEFAULT_BITS 64
#define TIMESTAMP_OID 1114
#define DATE_OID 1082
#define MAX_ROW_BYTES ((size_t) 1 << 30) /* PostgreSQL's own limit of a line of COPY */

/* ---- mapping ---- */

static FieldKind
field_kind(const char *field)
{
	static const struct
	{
		const char *name;
		FieldKind kind;
	} kinds[] = {{"$", FIELD_WHOLE},
				 {"$topic", FIELD_TOPIC},
				 {"$file", FIELD_TOPIC},
				 {"$partition", FIELD_PARTITION},
				 {"$offset", FIELD_OFFSET},
				 {"$key", FIELD_KEY},
				 {"$timestamp", FIELD_TIMESTAMP}};

	for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
		if (strcmp(kinds[i].name, field) == 0)
			return kinds[i].kind;
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

static void
map_column(Mapping *mapping, Config *config, const Column *column)
{
	const Pair *rule = rule_of(config, column->name);
	Mapped *mapped = &mapping->columns[mapping->n_columns];
	char *field = mem_string(rule ? rule->value : column->name);
	char *fallback = rule ? strstr(field, "default:") : NULL;

	memset(mapped, 0, sizeof *mapped);
	if (fallback != NULL && fallback > field && fallback[-1] == ' ')
	{
		mapped->fallback = mem_string(fallback + strlen("default:"));
		do
			*fallback-- = '\0';
		while (fallback >= field && *fallback == ' ');
	}
	if (rule != NULL && field[0] == '\0')
	{
		free(field); /* "column =": left to the server */
		free(mapped->fallback);
		return;
	}
	mapped->column = column;
	mapped->rule = rule;
	mapped->field = field;
	mapped->kind = rule ? field_kind(field) : FIELD_NAMED;
	if (rule && field[0] == '$' && mapped->kind == FIELD_NAMED)
		config_error_pair(config, rule,
						  "\"%s\" is unknown: use $, $topic, $file, $partition, $offset, $key or $timestamp",
						  field);
	mapping->n_columns++;
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
	int n_before = config->n_errors, n_bits = 0;

	mapping->table = table;
	check_rules(config, table);
	mapping->columns = mem_alloc(sizeof(Mapped) * (size_t) (table->n_columns + 1));
	for (int i = 0; i < table->n_columns; i++)
		map_column(mapping, config, &table->columns[i]);
	check_fields(mapping, config, table);
	mapping->values = mem_alloc(sizeof(Value) * (size_t) (mapping->n_columns + 1));
	mapping->copy.columns = mem_alloc(sizeof(Column *) * (size_t) (mapping->n_columns + 1));
	mapping->copy.default_bit = mem_alloc(sizeof(int) * (size_t) (mapping->n_columns + 1));
	mapping->copy.n_columns = mapping->n_columns;
	mapping->time_index = -1;
	mapping->is_utc = strcasecmp(config->timezone, "UTC") == 0;
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];

		mapping->copy.columns[i] = mapped->column;
		mapping->copy.default_bit[i] =
			mapped->column->has_default && mapped->fallback == NULL ? n_bits++ : -1;
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
	}
	free(mapping->columns);
	free(mapping->values);
	free(mapping->copy.columns);
	free(mapping->copy.default_bit);
	mapping->columns = NULL;
	mapping->values = NULL;
	mapping->copy = (CopyColumns){0};
	mapping->n_columns = 0;
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

char *
copy_escape(char *out, const char *text, size_t n_bytes)
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

/* ---- rows ---- */

/* Fields that come with the message instead of in it.  text: room for a number or a time. */
static Value
metadata(const Mapping *mapping, FieldKind kind, const Message *message, char text[64])
{
	const Position *position = &mapping->batch->positions.list[message->position];
	Value value = {text, 0, VALUE_TEXT};

	switch (kind)
	{
		case FIELD_WHOLE:
			return (Value){message->data, (uint32_t) message->n_bytes, VALUE_TEXT};
		case FIELD_TOPIC:
			return (Value){position->topic, (uint32_t) strlen(position->topic), VALUE_TEXT};
		case FIELD_KEY:
			if (message->key == NULL)
				return (Value){NULL, 0, VALUE_NULL};
			return (Value){message->key, (uint32_t) message->n_key_bytes, VALUE_TEXT};
		case FIELD_PARTITION:
			snprintf(text, 64, "%" PRId32, position->partition);
			break;
		case FIELD_OFFSET:
			snprintf(text, 64, "%" PRId64, message->offset);
			break;
		case FIELD_TIMESTAMP:
			if (message->timestamp_us == NO_TIME)
				return (Value){NULL, 0, VALUE_NULL};
			time_format(message->timestamp_us, text, 64);
			break;
		default:
			return (Value){NULL, 0, VALUE_MISSING};
	}
	value.n_bytes = (uint32_t) strlen(text);
	return value;
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

void
transform_row(Mapping *mapping, const Message *message, const Value *values)
{
	char texts[3][64]; /* $partition, $offset, $timestamp */
	size_t at, room = 1;
	Value *all = mapping->values, time = {NULL, 0, VALUE_NULL};
	int n_sent = 0;

	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];
		Value value = values[i];

		if (mapped->kind != FIELD_NAMED)
		{
			char *text = texts[mapped->kind == FIELD_PARTITION ? 0 : mapped->kind == FIELD_OFFSET ? 1 : 2];

			value = metadata(mapping, mapped->kind, message, text);
			if (mapped->kind == FIELD_KEY && value.kind == VALUE_TEXT &&
				text_defect(value.data, value.n_bytes, &at) != NULL)
			{
				batch_dead_letter(mapping->batch, message, "decode", "", "key is not valid UTF-8");
				return;
			}
		}
		if (value.kind == VALUE_MISSING && mapped->fallback != NULL)
			value = (Value){mapped->fallback, (uint32_t) strlen(mapped->fallback), VALUE_TEXT};
		all[i] = value;
		room += 3 + 2 * (size_t) (value.kind == VALUE_TEXT ? value.n_bytes : 0);
	}
	if (room > MAX_ROW_BYTES)
	{
		batch_dead_letter(mapping->batch, message, "decode", "", "the row is longer than 1 GB");
		return;
	}
	if (mapping->time_index >= 0)
		time = all[mapping->time_index];

	Row *row = batch_add(mapping->batch, message);
	row->time_us = mapping->time_index >= 0 ? event_time(mapping, &time) : NO_TIME;
	if (row->time_us == NO_TIME && mapping->time_index >= 0 && mapping->table->is_routed)
	{
		row->is_defaulted = time.kind == VALUE_MISSING && mapping->copy.default_bit[mapping->time_index] >= 0;
		if (time.kind == VALUE_TEXT)
		{
			row->time_text = arena_copy(&mapping->batch->arena, time.data, time.n_bytes);
			row->time_bytes = time.n_bytes;
		}
	}
	row->omitted = 0;
	char *start = arena_reserve(&mapping->batch->arena, room), *out = start;
	for (int i = 0; i < mapping->n_columns; i++)
	{
		int bit = mapping->copy.default_bit[i];

		if (all[i].kind == VALUE_MISSING && bit >= 0)
		{
			row->omitted |= UINT64_C(1) << bit;
			continue;
		}
		if (n_sent++ > 0)
			*out++ = '\t';
		if (all[i].kind == VALUE_TEXT)
			out = copy_escape(out, all[i].data, all[i].n_bytes);
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
