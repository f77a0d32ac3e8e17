/*
 * CSV records and JSON values to fields.  What is not well-formed becomes a dead letter with its bytes unchanged.
 *
 * CSV is RFC 4180 with a choice of delimiter.  A record with a fault in its quoting costs the line it begins on, so a
 * stray quote cannot swallow the lines behind it.  JSON is read by yajl (SAX); numbers and nested values keep their
 * text.  Nothing is allocated per record: fields point into the caller's bytes, or into one scratch buffer.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yajl/yajl_parse.h>

#define MAX_JSON_DEPTH 1000
#define MAX_UNKNOWN_FIELDS (1 << 14) /* of a record whose number of fields is not known before */

/* A key on the way to a mapped field; "a.b" is node a with child b. */
typedef struct Node
{
	char *name;
	size_t n_bytes;
	struct Node *child, *sibling;
	int *columns; /* in the mapping, that take this value */
	int n_columns;
} Node;

typedef struct Level
{
	Node *node;	   /* whose children the keys of this object are; NULL: nobody looks */
	Node *capture; /* takes the text of this object or array; NULL: nobody */
	size_t start;  /* of that text */
} Level;

struct Decoder
{
	const Config *config;
	Mapping *mapping;
	Batch *batch;
	Value *values;	/* of the mapping */
	Buffer scratch; /* unescaped fields of one record */

	/* CSV */
	Value *fields;
	int n_fields; /* of the record just read; those behind n_expected are counted only */
	int n_expected;
	int *field_of; /* per mapped column: index into fields, -1: none */
	bool needs_header, is_skipping;
	char *file_name;

	/* JSON */
	yajl_handle parser;
	Node root;
	Level levels[MAX_JSON_DEPTH + 2];
	int depth, n_values;
	Node *pending;	  /* node of the key just read */
	size_t token_end; /* of the key just read */
	const char *json; /* the message */
	size_t n_json_bytes;
	const char *fault; /* why a callback stopped the parser */
	bool is_object;
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

/*
 * The quoted field whose opening quote is at[-1].  Returns what follows the closing quote, or NULL when the bytes end
 * before it.
 */
static const char *
csv_quoted(Decoder *decoder, const char *at, const char *end)
{
	const char *start = at, *quote = memchr(at, '"', (size_t) (end - at));
	char *out = NULL, *out_start = NULL;

	while (quote != NULL && quote + 1 < end && quote[1] == '"')
	{
		/* A doubled quote: from here on the field lives in the scratch buffer, which has room for the whole record. */
		size_t n_bytes = (size_t) (quote + 1 - at);

		if (out == NULL)
			out = out_start = decoder->scratch.data + decoder->scratch.n_bytes;
		memcpy(out, at, n_bytes);
		out += n_bytes;
		at = quote + 2;
		quote = memchr(at, '"', (size_t) (end - at));
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
	char delimiter = decoder->config->csv_delimiter[0];

	decoder->n_fields = 0;
	decoder->scratch.n_bytes = 0;
	for (;;)
	{
		if (at < end && *at == '"')
		{
			at = csv_quoted(decoder, at + 1, end);
			if (at == NULL && at_end)
				return csv_fault(data, n_bytes, at_end, used, reason, "quoted field has no closing quote");
			if (at == NULL || (at == end && !at_end))
				return CSV_MORE;
			if (at + 1 < end && at[0] == '\r' && at[1] == '\n')
				at++;
			else if (at + 1 == end && at[0] == '\r')
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
			bool has_return = (at == end || *at == '\n') && at > start && at[-1] == '\r';
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

/* The names are in fields[].  Sets field_of; *missing is a column whose [columns] line names a field that is not there. */
static bool
csv_resolve(Decoder *decoder, const Value *names, int n_names, const Mapped **missing)
{
	const Mapping *mapping = decoder->mapping;
	bool found_any = false;

	*missing = NULL;
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

size_t
decode_header(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, ExitCode *status)
{
	const Mapped *missing;
	const char *reason = NULL;
	size_t used = 0, at, skip = 0;

	*status = EXIT_DONE;
	if (!decoder->needs_header || (n_bytes < 3 && !at_end) || n_bytes == 0)
		return 0;
	if (n_bytes >= 3 && memcmp(data, "\xEF\xBB\xBF", 3) == 0)
		skip = 3; /* spreadsheets write a byte-order mark */
	if (n_bytes == skip && at_end)
		return skip; /* nothing behind the mark: an empty file */
	csv_expect(decoder, MAX_UNKNOWN_FIELDS);
	buffer_room(&decoder->scratch, n_bytes);
	CsvResult result = csv_record(decoder, data + skip, n_bytes - skip, at_end, &used, &reason);
	if (result == CSV_MORE)
		return 0;
	if (result == CSV_FAULT || text_defect(data, skip + used, &at) != NULL ||
		decoder->n_fields > decoder->n_expected)
	{
		log_line(LOG_ERROR, "%s: header cannot be read: %s", decoder->file_name,
				 reason ? reason : "not UTF-8, or too many fields");
		*status = EXIT_SOURCE;
		return 0;
	}
	bool found_any = csv_resolve(decoder, decoder->fields, decoder->n_fields, &missing);
	if (missing != NULL)
		log_line(LOG_ERROR, "%s: header has no field \"%s\" for column \"%s\"", decoder->file_name,
				 missing->field, missing->column->name);
	else if (!found_any)
		log_line(LOG_ERROR, "%s: no field of the header has the name of a column; is it a header at all?",
				 decoder->file_name);
	if (missing != NULL || !found_any)
		*status = EXIT_SOURCE;
	csv_expect(decoder, decoder->n_fields);
	decoder->needs_header = false;
	return skip + used;
}

/* Returns false, and does nothing, when the record spans several lines and has the wrong number of fields. */
static bool
csv_row(Decoder *decoder, const Message *message, bool may_split)
{
	char reason[120];
	size_t at = 0;
	const char *defect = text_defect(message->data, message->n_bytes, &at);

	if (defect != NULL)
	{
		snprintf(reason, sizeof reason, "%s at byte %zu", defect, at);
		batch_dead_letter(decoder->batch, message, "decode", "", reason);
		return true;
	}
	if (decoder->n_fields != decoder->n_expected)
	{
		/* Two stray quotes make one record of many lines; only the first is known to be wrong. */
		if (may_split && memchr(message->data, '\n', message->n_bytes) != NULL)
			return false;
		snprintf(reason, sizeof reason, "%d fields where %d are expected", decoder->n_fields,
				 decoder->n_expected);
		batch_dead_letter(decoder->batch, message, "decode", "", reason);
		return true;
	}
	for (int i = 0; i < decoder->mapping->n_columns; i++)
	{
		int field = decoder->field_of[i];

		decoder->values[i] = field >= 0 ? decoder->fields[field] : (Value){NULL, 0, VALUE_MISSING};
	}
	transform_row(decoder->mapping, message, decoder->values);
	return true;
}

/* ---- JSON ---- */

static Node *
node_find(const Node *parent, const char *name, size_t n_bytes)
{
	for (Node *node = parent->child; node != NULL; node = node->sibling)
		if (node->n_bytes == n_bytes && memcmp(node->name, name, n_bytes) == 0)
			return node;
	return NULL;
}

/* The path's node, made with those before it.  Without splits the path is one name, dots and all. */
static Node *
node_make(Node *root, const char *path, bool splits)
{
	Node *node = root;

	for (;;)
	{
		size_t n_bytes = splits ? strcspn(path, ".") : strlen(path);
		Node *next = node_find(node, path, n_bytes);

		if (next == NULL)
		{
			Node **link = &node->child;

			next = mem_alloc(sizeof(Node));
			next->name = mem_alloc(n_bytes + 1);
			memcpy(next->name, path, n_bytes);
			next->n_bytes = n_bytes;
			while (*link != NULL)
				link = &(*link)->sibling;
			*link = next;
		}
		node = next;
		if (path[n_bytes] == '\0')
			return node;
		path += n_bytes + 1;
	}
}

static void
node_free(Node *node)
{
	while (node != NULL)
	{
		Node *sibling = node->sibling;

		node_free(node->child);
		free(node->name);
		free(node->columns);
		free(node);
		node = sibling;
	}
}

/* text: the value as a text column takes it; raw: as it stands in the message. */
static void
node_assign(Decoder *decoder, const Node *node, Value text, Value raw)
{
	for (int i = 0; i < node->n_columns; i++)
	{
		int column = node->columns[i];

		decoder->values[column] = decoder->mapping->columns[column].column->is_json ? raw : text;
	}
}

/* A value begins: whose is it? */
static Node *
json_target(Decoder *decoder)
{
	Node *node = decoder->pending;

	decoder->pending = NULL;
	if (decoder->depth == 0)
		decoder->n_values++;
	return node && node->n_columns > 0 ? node : NULL;
}

static int
json_scalar(Decoder *decoder, const char *data, size_t n_bytes)
{
	Node *node = json_target(decoder);
	Value value = {data, (uint32_t) n_bytes, VALUE_TEXT};

	if (node != NULL)
		node_assign(decoder, node, value, value);
	return 1;
}

static int
on_null(void *context)
{
	Node *node = json_target(context);
	Value null = {NULL, 0, VALUE_NULL};

	if (node != NULL)
		node_assign(context, node, null, null);
	return 1;
}

static int
on_boolean(void *context, int value)
{
	return json_scalar(context, value ? "true" : "false", value ? 4 : 5);
}

static int
on_number(void *context, const char *text, size_t n_bytes)
{
	return json_scalar(context, text, n_bytes);
}

static unsigned
hex4(const char *text)
{
	unsigned value = 0;

	for (int i = 0; i < 4; i++)
	{
		unsigned char c = (unsigned char) text[i];

		value = value * 16 + (c <= '9' ? c - '0' : (c | 0x20) - 'a' + 10);
	}
	return value;
}

/* yajl turns lone surrogates into question marks; here they are a fault.  raw: a JSON string with valid escapes. */
static const char *
escape_defect(const char *raw, size_t n_bytes)
{
	const char *end = raw + n_bytes;

	while ((raw = memchr(raw, '\\', (size_t) (end - raw))) != NULL)
	{
		unsigned code = end - raw >= 6 && raw[1] == 'u' ? hex4(raw + 2) : 1;

		if (code == 0)
			return "\\u0000 cannot be stored in text";
		if (code >= 0xD800 && code <= 0xDBFF && end - raw >= 12 && raw[6] == '\\' && raw[7] == 'u')
		{
			unsigned low = hex4(raw + 8);

			if (low < 0xDC00 || low > 0xDFFF)
				return "lone surrogate in a string";
			raw += 12;
			continue;
		}
		if (code >= 0xD800 && code <= 0xDFFF)
			return "lone surrogate in a string";
		raw += 2;
	}
	return NULL;
}

static int
on_string(void *context, const unsigned char *data, size_t n_bytes)
{
	Decoder *decoder = context;
	Node *node = json_target(decoder);
	Value text = {(const char *) data, (uint32_t) n_bytes, VALUE_TEXT};
	size_t end = yajl_get_bytes_consumed(decoder->parser), start = decoder->token_end;
	bool is_escaped = text.data < decoder->json || text.data >= decoder->json + decoder->n_json_bytes;

	if (node == NULL || end > decoder->n_json_bytes)
		return 1;
	while (start < end && decoder->json[start] != '"')
		start++;
	Value raw = {decoder->json + start, (uint32_t) (end - start), VALUE_TEXT};
	if (is_escaped)
	{
		bool is_all_raw = true;

		for (int i = 0; i < node->n_columns; i++)
			is_all_raw &= decoder->mapping->columns[node->columns[i]].column->is_json;
		if (!is_all_raw && (decoder->fault = escape_defect(raw.data, raw.n_bytes)) != NULL)
			return 0;
		/* yajl's buffer is used again for the next string; what is unescaped is never longer than the message. */
		char *copy = decoder->scratch.data + decoder->scratch.n_bytes;
		if (n_bytes > decoder->scratch.capacity - decoder->scratch.n_bytes)
			return 0;
		memcpy(copy, data, n_bytes);
		decoder->scratch.n_bytes += n_bytes;
		text.data = copy;
	}
	node_assign(decoder, node, text, raw);
	return 1;
}

static int
json_open(Decoder *decoder, bool is_object)
{
	Node *node = decoder->depth == 0 ? &decoder->root : decoder->pending;
	Node *capture = json_target(decoder);

	if (decoder->depth == 0)
		decoder->is_object = is_object;
	if (decoder->depth >= MAX_JSON_DEPTH)
	{
		decoder->fault = "nested too deep";
		return 0;
	}
	decoder->levels[decoder->depth++] = (Level){
		.node = is_object && node && node->child ? node : NULL,
		.capture = capture,
		.start = capture ? yajl_get_bytes_consumed(decoder->parser) - 1 : 0,
	};
	return 1;
}

static int
on_map_start(void *context)
{
	return json_open(context, true);
}

static int
on_array_start(void *context)
{
	return json_open(context, false);
}

static int
on_key(void *context, const unsigned char *name, size_t n_bytes)
{
	Decoder *decoder = context;
	Node *node = decoder->levels[decoder->depth - 1].node;

	decoder->pending = node ? node_find(node, (const char *) name, n_bytes) : NULL;
	decoder->token_end = yajl_get_bytes_consumed(decoder->parser);
	return 1;
}

static int
on_end(void *context)
{
	Decoder *decoder = context;
	Level *level = &decoder->levels[--decoder->depth];

	decoder->pending = NULL;
	if (level->capture != NULL)
	{
		size_t end = yajl_get_bytes_consumed(decoder->parser);
		Value value = {decoder->json + level->start, (uint32_t) (end - level->start), VALUE_TEXT};

		node_assign(decoder, level->capture, value, value);
	}
	return 1;
}

static const yajl_callbacks callbacks = {on_null,	on_boolean,		NULL,		  NULL,
										 on_number, on_string,		on_map_start, on_key,
										 on_end,	on_array_start, on_end};

/* One parser serves all messages; after a fault its state is unknown, so it is made anew. */
static void
json_parser(Decoder *decoder)
{
	if (decoder->parser != NULL)
		yajl_free(decoder->parser);
	decoder->parser = yajl_alloc(&callbacks, NULL, decoder);
	if (decoder->parser == NULL || !yajl_config(decoder->parser, yajl_allow_multiple_values, 1) ||
		!yajl_config(decoder->parser, yajl_dont_validate_strings, 1))
	{
		fprintf(stderr, "millrace: cannot make a JSON parser\n");
		exit(EXIT_INTERNAL);
	}
}

/* Parses the message into values[]; returns what is wrong with it, or NULL. */
static const char *
json_parse(Decoder *decoder, const Message *message, char *text, size_t text_bytes)
{
	size_t at = 0;
	const char *defect = text_defect(message->data, message->n_bytes, &at);

	if (message->n_bytes == 0)
		return "empty message";
	if (defect != NULL)
	{
		snprintf(text, text_bytes, "%s at byte %zu", defect, at);
		return text;
	}
	decoder->json = message->data;
	decoder->n_json_bytes = message->n_bytes;
	decoder->depth = decoder->n_values = 0;
	decoder->pending = NULL;
	decoder->fault = NULL;
	decoder->is_object = false;
	decoder->scratch.n_bytes = 0;
	buffer_room(&decoder->scratch, message->n_bytes);
	yajl_status status = yajl_parse(decoder->parser, (const unsigned char *) message->data, message->n_bytes);
	/* A bare number ends only where something follows. */
	if (status == yajl_status_ok && decoder->n_values == 0)
		status = yajl_parse(decoder->parser, (const unsigned char *) "\n", 1);
	if (status == yajl_status_ok && decoder->n_values == 1 && decoder->depth == 0)
	{
		/* Text may hang behind the value that yajl takes for the beginning of a next one. */
		status = yajl_parse(decoder->parser, (const unsigned char *) "\n", 1);
		if (status == yajl_status_ok && decoder->n_values == 1)
			return NULL;
	}
	if (decoder->fault != NULL)
		snprintf(text, text_bytes, "%s", decoder->fault);
	else if (decoder->n_values > 1)
		snprintf(text, text_bytes, "not JSON: more than one value");
	else if (status == yajl_status_ok)
		snprintf(text, text_bytes, "not JSON: it ends too early");
	else
	{
		unsigned char *why = yajl_get_error(decoder->parser, 0, NULL, 0);

		snprintf(text, text_bytes, "not JSON: %.*s", (int) strcspn((char *) why, "\n"), (char *) why);
		yajl_free_error(decoder->parser, why);
	}
	json_parser(decoder);
	return text;
}

static void
json_row(Decoder *decoder, const Message *message)
{
	char reason[200];

	for (int i = 0; i < decoder->mapping->n_columns; i++)
		decoder->values[i] = (Value){NULL, 0, VALUE_MISSING};
	const char *fault = json_parse(decoder, message, reason, sizeof reason);
	if (fault == NULL && !decoder->is_object && decoder->root.child != NULL)
		fault = "not a JSON object";
	if (fault != NULL)
		batch_dead_letter(decoder->batch, message, "decode", "", fault);
	else
		transform_row(decoder->mapping, message, decoder->values);
}

/* ---- both ---- */

Decoder *
decoder_open(const Config *config, Mapping *mapping)
{
	Decoder *decoder = mem_alloc(sizeof(Decoder));

	decoder->config = config;
	decoder->mapping = mapping;
	decoder->batch = mapping->batch;
	decoder->values = mapping->values;
	decoder->field_of = mem_alloc(sizeof(int) * (size_t) (mapping->n_columns + 1));
	if (config->format == FORMAT_CSV)
	{
		if (!config->csv_header)
			csv_without_header(decoder);
		return decoder;
	}
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];

		if (mapped->kind != FIELD_NAMED)
			continue;
		Node *node = node_make(&decoder->root, mapped->field, mapped->rule != NULL);
		node->columns = mem_grow(node->columns, (size_t) node->n_columns + 1, sizeof(int));
		node->columns[node->n_columns++] = i;
	}
	json_parser(decoder);
	return decoder;
}

Decoder *
decoder_open_split(const Config *config)
{
	Decoder *decoder = mem_alloc(sizeof(Decoder));

	decoder->config = config;
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
	if (decoder->parser != NULL)
		yajl_free(decoder->parser);
	node_free(decoder->root.child);
	buffer_free(&decoder->scratch);
	free(decoder->fields);
	free(decoder->field_of);
	free(decoder->file_name);
	free(decoder);
}

void
decode_message(Decoder *decoder, const Message *message)
{
	size_t used;
	const char *reason;

	if (decoder->config->format == FORMAT_JSON)
	{
		json_row(decoder, message);
		return;
	}
	buffer_room(&decoder->scratch, message->n_bytes);
	if (message->n_bytes == 0)
		batch_dead_letter(decoder->batch, message, "decode", "", "empty message");
	else if (csv_record(decoder, message->data, message->n_bytes, true, &used, &reason) == CSV_FAULT)
		batch_dead_letter(decoder->batch, message, "decode", "", reason);
	else if (used < message->n_bytes)
		batch_dead_letter(decoder->batch, message, "decode", "", "more than one CSV record");
	else
		csv_row(decoder, message, false);
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

/* Bytes of the record without its line end. */
static size_t
without_line_end(const char *data, size_t n_bytes)
{
	if (n_bytes > 0 && data[n_bytes - 1] == '\n')
		n_bytes--;
	if (n_bytes > 0 && data[n_bytes - 1] == '\r')
		n_bytes--;
	return n_bytes;
}

/* A piece of a line that is too long: none of it is lost, and the next line is read as usual. */
static size_t
skip_long(Decoder *decoder, Message *message, const char *data, size_t n_bytes)
{
	const char *line_end = memchr(data, '\n', n_bytes);
	size_t used = line_end ? (size_t) (line_end + 1 - data) : n_bytes;

	message->n_bytes = without_line_end(data, used);
	batch_dead_letter(decoder->batch, message, "read", "",
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
	message->n_bytes = without_line_end(data, used);
	if (result == CSV_FAULT)
		batch_dead_letter(decoder->batch, message, "decode", "", reason);
	else if (message->n_bytes == 0 && (!is_csv || decoder->n_expected != 1))
		decoder->batch->has_moved = true; /* a blank line */
	else if (is_csv && !csv_row(decoder, message, true))
	{
		char text[120];

		line_end = memchr(data, '\n', used);
		used = (size_t) (line_end + 1 - data);
		message->n_bytes = without_line_end(data, used);
		snprintf(text, sizeof text, "%d fields where %d are expected, in a record of several lines",
				 decoder->n_fields, decoder->n_expected);
		batch_dead_letter(decoder->batch, message, "decode", "", text);
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
	while (used < n_bytes && !batch_is_full(decoder->batch))
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
		decoder->batch->positions.list[position].next = offset + (int64_t) used;
	}
	return used;
}

const NewColumns *
decode_wants(const Decoder *decoder)
{
	(void) decoder;
	return NULL;
}

void
decode_again(Decoder *decoder, Batch *batch)
{
	(void) decoder;
	(void) batch;
}
