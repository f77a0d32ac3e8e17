/*
 * CSV records and JSON values to fields.  What is not well-formed becomes a dead letter with its bytes unchanged.
 *
 * CSV is RFC 4180 with a choice of delimiter, quote and escape.  A record with a fault in its quoting costs the line it
 * begins on, so a stray quote cannot swallow the lines behind it.  Nothing is allocated per record: fields point into the
 * caller's bytes, or into one scratch buffer.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yajl/yajl_gen.h>

#define MAX_UNKNOWN_FIELDS (1 << 14) /* of a record whose number of fields is not known before */

struct Decoder
{
	const Config *config;
	Mapping *mapping;
	int64_t mapped; /* number of the mapping that the fields were last looked up for */
	Growth growth;
	JsonReader *json; /* also for the headers of CSV messages; NULL: not needed */
	Buffer scratch;	  /* unescaped CSV fields of one record */

	/* CSV */
	char delimiter, quote, escape; /* quote NUL: fields are never quoted */
	Value *fields;
	int n_fields; /* of the record just read; those behind n_expected are counted only */
	int n_expected;
	int *field_of; /* per mapped column: index into fields, -1: none */
	bool needs_header, is_skipping;
	bool is_bare; /* the record is read without its line end, so a \r at its end is data */
	char *file_name;
	Buffer header;	/* the header record of the file being read */
	Value *unknown; /* per field: its name when no column takes it, else data NULL */
	Buffer unknown_names;
	bool has_unknown;
	bool has_looked;		  /* the first JSON object had its names compared */
	char unknown_reason[160]; /* why no record of this header can be stored; "": they can */
	yajl_gen rest;
};

/* ---- CSV ---- */

typedef enum CsvResult
{
	CSV_MORE, /* the record goes on behind these bytes */
	CSV_RECORD,
	CSV_FAULT
} CsvResult;

static void
csv_field(Decoder *decoder, const char *data, size_t n_bytes, bool is_quoted)
{
	const char *null = decoder->config->csv_null;
	int i = decoder->n_fields++;

	if (i >= decoder->n_expected)
		return;
	Value *field = &decoder->fields[i];
	field->data = data;
	field->n_bytes = (uint32_t) n_bytes;
	field->kind =
		!is_quoted && n_bytes == strlen(null) && memcmp(data, null, n_bytes) == 0 ? VALUE_NULL : VALUE_TEXT;
}

/* The first quote or escape in at .. end, or NULL. */
static const char *
csv_next_quote(const Decoder *decoder, const char *at, const char *end)
{
	const char *quote = memchr(at, decoder->quote, (size_t) (end - at));

	if (decoder->escape == decoder->quote)
		return quote;
	const char *escape = memchr(at, decoder->escape, (size_t) ((quote ? quote : end) - at));
	return escape ? escape : quote;
}

/*
 * The quoted field whose opening quote is at[-1].  Returns what follows the closing quote, or NULL when the bytes end
 * before it.
 */
static const char *
csv_quoted(Decoder *decoder, const char *at, const char *end)
{
	const char *start = at, *quote = csv_next_quote(decoder, at, end);
	char *out = NULL, *out_start = NULL;

	while (quote != NULL)
	{
		bool is_escaped = *quote == decoder->escape && quote + 1 < end &&
			(quote[1] == decoder->quote || quote[1] == decoder->escape);

		if (!is_escaped && *quote == decoder->quote)
			break;
		if (!is_escaped)
		{
			/* An escape before something else stands for itself. */
			quote = csv_next_quote(decoder, quote + 1, end);
			continue;
		}
		/* From here on the field lives in the scratch buffer, which has room for the whole record. */
		size_t n_bytes = (size_t) (quote - at);

		if (out == NULL)
			out = out_start = decoder->scratch.data + decoder->scratch.n_bytes;
		memcpy(out, at, n_bytes);
		out += n_bytes;
		*out++ = quote[1];
		at = quote + 2;
		quote = csv_next_quote(decoder, at, end);
	}
	if (quote == NULL)
		return NULL;
	if (out == NULL)
	{
		csv_field(decoder, start, (size_t) (quote - start), true);
		return quote + 1;
	}
	memcpy(out, at, (size_t) (quote - at));
	out += quote - at;
	decoder->scratch.n_bytes = (size_t) (out - decoder->scratch.data);
	csv_field(decoder, out_start, (size_t) (out - out_start), true);
	return quote + 1;
}

static CsvResult
csv_fault(const char *data, size_t n_bytes, bool at_end, size_t *used, const char **reason, const char *what)
{
	const char *line_end = memchr(data, '\n', n_bytes);

	if (line_end == NULL && !at_end)
		return CSV_MORE;
	*used = line_end ? (size_t) (line_end + 1 - data) : n_bytes;
	*reason = what;
	return CSV_FAULT;
}

/* One record with its line end.  *used: its bytes.  The scratch buffer has room for n_bytes. */
static CsvResult
csv_record(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, size_t *used, const char **reason)
{
	const char *at = data, *end = data + n_bytes;
	char delimiter = decoder->delimiter;

	decoder->n_fields = 0;
	decoder->scratch.n_bytes = 0;
	for (;;)
	{
		if (at < end && *at == decoder->quote && decoder->quote != '\0')
		{
			at = csv_quoted(decoder, at + 1, end);
			if (at == NULL && at_end)
				return csv_fault(data, n_bytes, at_end, used, reason, "quoted field has no closing quote");
			if (at == NULL || (at == end && !at_end))
				return CSV_MORE;
			if (at + 1 < end && at[0] == '\r' && at[1] == '\n')
				at++;
			else if (at + 1 == end && at[0] == '\r' && !decoder->is_bare)
			{
				if (!at_end)
					return CSV_MORE;
				at++;
			}
			if (at < end && *at != delimiter && *at != '\n')
				return csv_fault(data, n_bytes, at_end, used, reason,
								 "text behind the closing quote of a field");
		}
		else
		{
			const char *start = at;

			while (at < end && *at != delimiter && *at != '\n')
				at++;
			if (at == end && !at_end)
				return CSV_MORE;
			bool has_return = (at == end ? !decoder->is_bare : *at == '\n') && at > start && at[-1] == '\r';
			csv_field(decoder, start, (size_t) (at - start) - has_return, false);
		}
		if (at == end || *at == '\n')
		{
			*used = (size_t) (at - data) + (at < end);
			return CSV_RECORD;
		}
		at++; /* the delimiter; a field follows, be it empty */
	}
}

/* Which fields no column takes. */
static void
csv_find_unknown(Decoder *decoder, const Value *names, int n_names)
{
	const Mapping *mapping = decoder->mapping;
	size_t n_bytes = 0;

	decoder->has_unknown = false;
	decoder->unknown_reason[0] = '\0';
	decoder->unknown = mem_grow(decoder->unknown, (size_t) n_names + 1, sizeof(Value));
	decoder->unknown_names.n_bytes = 0;
	for (int f = 0; f < n_names; f++)
		n_bytes += names[f].n_bytes + 1;
	buffer_room(&decoder->unknown_names, n_bytes);
	for (int f = 0; f < n_names; f++)
	{
		bool is_taken = false;

		for (int i = 0; i < mapping->n_columns; i++)
			is_taken |= decoder->field_of[i] == f;
		decoder->unknown[f] = (Value){NULL, 0, VALUE_MISSING};
		if (is_taken)
			continue;
		decoder->has_unknown = true;
		/* The names may stand in the scratch buffer, which is used for the records. */
		decoder->unknown[f].data = decoder->unknown_names.data + decoder->unknown_names.n_bytes;
		decoder->unknown[f].n_bytes = names[f].n_bytes;
		buffer_add(&decoder->unknown_names, names[f].data, names[f].n_bytes);
		growth_field(&decoder->growth, names[f].data, names[f].n_bytes, "text", decoder->unknown_reason,
					 sizeof decoder->unknown_reason);
	}
}

/* The names are in fields[].  Sets field_of; *missing is a column whose [columns] line names a field that is not there. */
static bool
csv_resolve(Decoder *decoder, const Value *names, int n_names, const Mapped **missing)
{
	const Mapping *mapping = decoder->mapping;
	bool found_any = false;

	*missing = NULL;
	decoder->field_of = mem_grow(decoder->field_of, (size_t) mapping->n_columns + 1, sizeof(int));
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];
		size_t n_bytes = strlen(mapped->field);
		int exact = -1, loose = -1;

		decoder->field_of[i] = -1;
		if (mapped->kind != FIELD_NAMED)
		{
			found_any = true;
			continue;
		}
		for (int f = 0; f < n_names; f++)
		{
			if (names[f].n_bytes != n_bytes || strncasecmp(names[f].data, mapped->field, n_bytes) != 0)
				continue;
			loose = loose < 0 ? f : loose;
			if (memcmp(names[f].data, mapped->field, n_bytes) == 0)
				exact = f;
		}
		decoder->field_of[i] = exact >= 0 ? exact : loose;
		if (decoder->field_of[i] >= 0)
			found_any = true;
		else if (mapped->rule != NULL && mapped->fallback == NULL && *missing == NULL)
			*missing = mapped;
	}
	csv_find_unknown(decoder, names, n_names);
	return found_any;
}

static void
csv_expect(Decoder *decoder, int n_fields)
{
	decoder->fields = mem_grow(decoder->fields, (size_t) n_fields + 1, sizeof(Value));
	decoder->n_expected = n_fields;
}

/* Field names where there is no header: csv.columns, or the table's columns in their order. */
static void
csv_without_header(Decoder *decoder)
{
	const Table *table = decoder->mapping->table;
	const char *list = decoder->config->csv_columns;
	const Mapped *missing;
	Value *names = NULL;
	int n_names = 0;

	while (list != NULL && *list)
	{
		size_t n_bytes = strcspn(list, ","), n_blanks = strspn(list, " ");
		size_t n_name = n_bytes - (n_blanks < n_bytes ? n_blanks : n_bytes);

		names = mem_grow(names, (size_t) n_names + 1, sizeof(Value));
		while (n_name > 0 && list[n_blanks + n_name - 1] == ' ')
			n_name--;
		names[n_names++] = (Value){list + n_blanks, (uint32_t) n_name, VALUE_TEXT};
		list += n_bytes + (list[n_bytes] == ',');
	}
	for (int i = 0; decoder->config->csv_columns == NULL && i < table->n_columns; i++)
	{
		names = mem_grow(names, (size_t) n_names + 1, sizeof(Value));
		names[n_names++] =
			(Value){table->columns[i].name, (uint32_t) strlen(table->columns[i].name), VALUE_TEXT};
	}
	csv_resolve(decoder, names, n_names, &missing);
	csv_expect(decoder, n_names);
	free(names);
}

/* Looks up the names of a header record.  False when it is none, or a field is missing: logged. */
static bool
csv_read_header(Decoder *decoder, const char *data, size_t n_bytes)
{
	const Mapped *missing;
	const char *reason = NULL;
	size_t used = 0, at;

	if (n_bytes >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0)
	{
		data += 3; /* spreadsheets write a byte-order mark */
		n_bytes -= 3;
	}
	csv_expect(decoder, MAX_UNKNOWN_FIELDS);
	buffer_room(&decoder->scratch, n_bytes);
	CsvResult result = csv_record(decoder, data, n_bytes, true, &used, &reason);
	if (result == CSV_FAULT || text_defect(data, n_bytes, &at) != NULL ||
		decoder->n_fields > decoder->n_expected)
	{
		log_line(LOG_ERROR, "%s: header cannot be read: %s", decoder->file_name,
				 reason ? reason : "not UTF-8, or too many fields");
		return false;
	}
	bool found_any = csv_resolve(decoder, decoder->fields, decoder->n_fields, &missing);
	if (missing != NULL)
		log_line(LOG_ERROR, "%s: header has no field \"%s\" for column \"%s\"", decoder->file_name,
				 missing->field, missing->column->name);
	else if (!found_any)
		log_line(LOG_ERROR, "%s: no field of the header has the name of a column; is it a header at all?",
				 decoder->file_name);
	csv_expect(decoder, decoder->n_fields);
	return missing == NULL && found_any;
}

size_t
decode_header(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, ExitCode *status)
{
	const char *reason = NULL;
	size_t used = 0, skip = 0;

	*status = EXIT_DONE;
	if (!decoder->needs_header || (n_bytes < 3 && !at_end) || n_bytes == 0)
		return 0;
	if (n_bytes >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0)
		skip = 3;
	if (n_bytes == skip && at_end)
		return skip; /* nothing behind the mark: an empty file */
	csv_expect(decoder, 0);
	buffer_room(&decoder->scratch, n_bytes);
	CsvResult result = csv_record(decoder, data + skip, n_bytes - skip, at_end, &used, &reason);
	if (result == CSV_MORE)
		return 0;
	decoder->header.n_bytes = 0;
	buffer_add(&decoder->header, data, skip + used);
	if (!csv_read_header(decoder, decoder->header.data, skip + used))
		*status = EXIT_SOURCE;
	decoder->needs_header = false;
	return *status == EXIT_DONE ? skip + used : 0;
}

/* Members of $rest: the fields that no column takes, as a JSON object. */
static void
csv_rest(Decoder *decoder)
{
	const unsigned char *text;
	size_t n_bytes;

	if (decoder->rest == NULL && (decoder->rest = yajl_gen_alloc(NULL)) == NULL)
	{
		fprintf(stderr, "millrace: out of memory\n");
		exit(EXIT_INTERNAL);
	}
	yajl_gen_clear(decoder->rest);
	yajl_gen_reset(decoder->rest, NULL);
	yajl_gen_map_open(decoder->rest);
	for (int f = 0; f < decoder->n_expected; f++)
	{
		const Value *name = &decoder->unknown[f], *field = &decoder->fields[f];

		if (name->data == NULL)
			continue;
		yajl_gen_string(decoder->rest, (const unsigned char *) name->data, name->n_bytes);
		if (field->kind == VALUE_TEXT)
			yajl_gen_string(decoder->rest, (const unsigned char *) field->data, field->n_bytes);
		else
			yajl_gen_null(decoder->rest);
	}
	yajl_gen_map_close(decoder->rest);
	yajl_gen_get_buf(decoder->rest, &text, &n_bytes);
	decoder->mapping->values[decoder->mapping->rest_index] =
		(Value){(const char *) text, (uint32_t) n_bytes, VALUE_TEXT};
}

/* Kafka's null value means that the key is deleted. */
static const char *
empty_reason(const Message *message)
{
	return message->data == NULL ? "tombstone: no value" : "empty message";
}

/* Returns false, and does nothing, when the record spans several lines and has the wrong number of fields. */
static bool
csv_row(Decoder *decoder, const Message *message, bool may_split)
{
	Mapping *mapping = decoder->mapping;
	char reason[200];
	size_t at = 0;
	const char *defect = text_defect(message->data, message->n_bytes, &at), *fault = NULL;

	if (defect != NULL)
	{
		snprintf(reason, sizeof reason, "%s at byte %zu", defect, at);
		transform_refuse(mapping, message, reason);
		return true;
	}
	if (decoder->n_fields != decoder->n_expected)
	{
		/* Two stray quotes make one record of many lines; only the first is known to be wrong. */
		if (may_split && memchr(message->data, '\n', message->n_bytes) != NULL)
			return false;
		snprintf(reason, sizeof reason, "%d fields where %d are expected", decoder->n_fields,
				 decoder->n_expected);
		transform_refuse(mapping, message, reason);
		return true;
	}
	for (int i = 0; i < mapping->n_columns; i++)
	{
		int field = decoder->field_of[i];

		mapping->values[i] = field >= 0 ? decoder->fields[field] : (Value){NULL, 0, VALUE_MISSING};
	}
	if (decoder->has_unknown && decoder->unknown_reason[0] != '\0')
		fault = decoder->unknown_reason;
	else if (mapping->has_headers)
		fault = decode_json_headers(decoder->json, message, reason, sizeof reason);
	if (fault != NULL)
	{
		transform_refuse(mapping, message, fault);
		return true;
	}
	if (decoder->has_unknown && mapping->rest_index >= 0)
		csv_rest(decoder);
	transform_row(mapping, message);
	return true;
}

/* ---- JSON ---- */

/* Once: somebody who has never seen a row does not see that names differ. */
static void
warn_of_names(Decoder *decoder)
{
	const Mapping *mapping = decoder->mapping;
	int n_named = 0, n_found = 0;

	decoder->has_looked = true;
	for (int i = 0; i < mapping->n_columns; i++)
		if (mapping->columns[i].kind == FIELD_NAMED)
		{
			n_named++;
			n_found += mapping->values[i].kind != VALUE_MISSING;
		}
	if (n_named > 0 && n_found == 0)
		log_line(LOG_WARNING,
				 "the first message has no field that a column takes: upper and lower case are told "
				 "apart, and [columns] can name the fields");
}

static void
json_row(Decoder *decoder, const Message *message)
{
	Mapping *mapping = decoder->mapping;
	char reason[200];
	size_t at = 0;
	const char *fault = text_defect(message->data, message->n_bytes, &at);

	memset(mapping->values, 0, sizeof(Value) * (size_t) mapping->n_columns);
	if (fault != NULL)
	{
		snprintf(reason, sizeof reason, "%s at byte %zu", fault, at);
		fault = reason;
	}
	else if (message->n_bytes == 0)
		fault = empty_reason(message);
	else if (mapping->has_headers)
		fault = decode_json_headers(decoder->json, message, reason, sizeof reason);
	if (fault == NULL)
		fault = decode_json_read(decoder->json, message, reason, sizeof reason);
	if (fault == NULL && !decoder->has_looked)
		warn_of_names(decoder);
	if (fault != NULL)
		transform_refuse(mapping, message, fault);
	else
		transform_row(mapping, message);
}

/* ---- both ---- */

/* After mapping_build(): which field is whose. */
static void
decoder_remap(Decoder *decoder)
{
	const Config *config = decoder->config;

	decoder->mapped = decoder->mapping->number;
	decoder->growth.table = decoder->mapping->table;
	if (config->format == FORMAT_JSON || decoder->mapping->has_headers)
	{
		if (decoder->json == NULL)
			decoder->json = decode_json_open(config, decoder->mapping, &decoder->growth);
		else
			decode_json_remap(decoder->json);
	}
	if (config->format == FORMAT_CSV && !config->csv_header)
		csv_without_header(decoder);
}

Decoder *
decoder_open(const Config *config, Mapping *mapping)
{
	Decoder *decoder = mem_alloc(sizeof(Decoder));

	decoder->config = config;
	decoder->mapping = mapping;
	decoder->growth.config = config;
	decoder->delimiter = config->csv_delimiter[0];
	decoder->quote = config->csv_quote[0];
	decoder->escape = config->csv_escape[0];
	decoder_remap(decoder);
	return decoder;
}

Decoder *
decoder_open_split(const Config *config)
{
	Decoder *decoder = mem_alloc(sizeof(Decoder));

	decoder->config = config;
	decoder->delimiter = config->csv_delimiter[0];
	decoder->quote = config->csv_quote[0];
	decoder->escape = config->csv_escape[0];
	csv_expect(decoder, MAX_UNKNOWN_FIELDS);
	return decoder;
}

int
decode_split(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, size_t *used,
			 const Value **fields, const char **reason)
{
	decoder->scratch.n_bytes = 0;
	buffer_room(&decoder->scratch, n_bytes);
	CsvResult result = csv_record(decoder, data, n_bytes, at_end, used, reason);
	*fields = decoder->fields;
	if (result == CSV_RECORD && decoder->n_fields > decoder->n_expected)
	{
		*reason = "too many fields";
		return -1;
	}
	return result == CSV_RECORD ? decoder->n_fields : result == CSV_MORE ? 0 : -1;
}

void
decoder_free(Decoder *decoder)
{
	if (decoder == NULL)
		return;
	decode_json_close(decoder->json);
	growth_free(&decoder->growth);
	if (decoder->rest != NULL)
		yajl_gen_free(decoder->rest);
	buffer_free(&decoder->scratch);
	buffer_free(&decoder->header);
	buffer_free(&decoder->unknown_names);
	free(decoder->fields);
	free(decoder->unknown);
	free(decoder->field_of);
	free(decoder->file_name);
	free(decoder);
}

/* A message that is one CSV record, or a record that was read before. */
static void
csv_message(Decoder *decoder, const Message *message)
{
	size_t used;
	const char *reason;

	buffer_room(&decoder->scratch, message->n_bytes);
	if (message->n_bytes == 0)
		transform_refuse(decoder->mapping, message, empty_reason(message));
	else if (csv_record(decoder, message->data, message->n_bytes, true, &used, &reason) == CSV_FAULT)
		transform_refuse(decoder->mapping, message, reason);
	else if (used < message->n_bytes)
		transform_refuse(decoder->mapping, message, "more than one CSV record");
	else
		csv_row(decoder, message, false);
}

void
decode_message(Decoder *decoder, const Message *message)
{
	if (decoder->config->format == FORMAT_JSON)
		json_row(decoder, message);
	else
		csv_message(decoder, message);
}

void
decode_start(Decoder *decoder, const char *file_name)
{
	free(decoder->file_name);
	decoder->file_name = mem_string(file_name);
	decoder->is_skipping = false;
	decoder->needs_header = decoder->config->format == FORMAT_CSV && decoder->config->csv_header;
}

bool
decode_wants_header(const Decoder *decoder)
{
	return decoder->needs_header;
}

/* A piece of a line that is too long: none of it is lost, and the next line is read as usual. */
static size_t
skip_long(Decoder *decoder, Message *message, const char *data, size_t n_bytes)
{
	const char *line_end = memchr(data, '\n', n_bytes);
	size_t used = line_end ? (size_t) (line_end + 1 - data) : n_bytes;

	message->n_bytes = line_bytes(data, used);
	batch_dead_letter(decoder->mapping->batch, message, "read", "",
					  decoder->is_skipping ? "rest of a record longer than source.max_record"
										   : "record longer than source.max_record");
	decoder->is_skipping = line_end == NULL;
	return used;
}

/* One record at data; returns its bytes, or 0 when it goes on behind n_bytes. */
static size_t
decode_record(Decoder *decoder, Message *message, const char *data, size_t n_bytes, bool at_end)
{
	bool is_csv = decoder->config->format == FORMAT_CSV;
	const char *reason = NULL, *line_end;
	size_t used = 0;
	CsvResult result;

	if (decoder->is_skipping)
		return skip_long(decoder, message, data, n_bytes);
	if (is_csv)
		result = csv_record(decoder, data, n_bytes, at_end, &used, &reason);
	else
	{
		line_end = memchr(data, '\n', n_bytes);
		used = line_end ? (size_t) (line_end + 1 - data) : n_bytes;
		result = line_end || at_end ? CSV_RECORD : CSV_MORE;
	}
	if ((result == CSV_MORE ? n_bytes : used) >= (size_t) decoder->config->max_record_bytes)
		return skip_long(decoder, message, data, n_bytes);
	if (result == CSV_MORE)
		return 0;
	message->n_bytes = line_bytes(data, used);
	if (result == CSV_FAULT)
		transform_refuse(decoder->mapping, message, reason);
	else if (message->n_bytes == 0 && (!is_csv || decoder->n_expected != 1))
		decoder->mapping->batch->has_moved = true; /* a blank line */
	else if (is_csv && !csv_row(decoder, message, true))
	{
		char text[120];

		line_end = memchr(data, '\n', used);
		used = (size_t) (line_end + 1 - data);
		message->n_bytes = line_bytes(data, used);
		snprintf(text, sizeof text, "%d fields where %d are expected, in a record of several lines",
				 decoder->n_fields, decoder->n_expected);
		transform_refuse(decoder->mapping, message, text);
	}
	else if (!is_csv)
		json_row(decoder, message);
	return used;
}

size_t
decode_bytes(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, int32_t position,
			 int64_t offset)
{
	size_t used = 0;

	buffer_room(&decoder->scratch, n_bytes);
	while (used < n_bytes && !batch_is_full(decoder->mapping->batch))
	{
		Message message = {
			.data = data + used,
			.position = position,
			.offset = offset + (int64_t) used,
			.timestamp_us = NO_TIME,
		};
		size_t n = decode_record(decoder, &message, data + used, n_bytes - used, at_end);

		if (n == 0)
			break;
		used += n;
		decoder->mapping->batch->positions.list[position].next = offset + (int64_t) used;
	}
	return used;
}

const NewColumns *
decode_wants(Decoder *decoder)
{
	return growth_take(&decoder->growth);
}

static void
decode_row_again(Decoder *decoder, Row *row)
{
	Message message = {
		.data = row->raw,
		.n_bytes = row->raw_bytes,
		.key = row->key,
		.n_key_bytes = row->key_bytes,
		.headers = row->headers,
		.n_header_bytes = row->header_bytes,
		.position = row->position,
		.offset = row->offset,
		.timestamp_us = row->timestamp_us,
	};

	decoder->mapping->again = row;
	decoder->is_bare = decoder->config->type != SOURCE_KAFKA;
	decode_message(decoder, &message);
	decoder->is_bare = false;
	decoder->mapping->again = NULL;
}

void
decode_again(Decoder *decoder, Batch *batch)
{
	Mapping *mapping = decoder->mapping;
	Batch *open = mapping->batch;
	bool has_headers = decoder->config->format == FORMAT_CSV && decoder->config->csv_header;
	int in_use = -1; /* the position whose header was read last */

	if (decoder->mapped != mapping->number)
		decoder_remap(decoder);
	mapping->batch = batch;
	for (int i = 0; i < batch->n_rows; i++)
	{
		Row *row = &batch->rows[i];
		const char *header = batch->positions.list[row->position].csv_header;

		/* A piece of a record has no fields. */
		if (row->is_dropped || (row->dead != NULL && strcmp(row->dead->stage, "read") == 0))
			continue;
		if (has_headers && header != NULL && row->position != in_use)
			csv_read_header(decoder, header, strlen(header));
		in_use = row->position;
		decode_row_again(decoder, row);
	}
	mapping->batch = open;
	if (has_headers && decoder->header.n_bytes > 0)
		csv_read_header(decoder, decoder->header.data, decoder->header.n_bytes);
}
