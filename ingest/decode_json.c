/*
 * One JSON value to the fields that columns want: read by yajl (SAX); numbers and nested values keep their text.
 *
 * Nothing is allocated per message: fields point into the message, or into one scratch buffer.  The fields of an object
 * mostly come in the order of the message before, so each node remembers who followed it.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#define MAX_JSON_DEPTH 1000
#define MAX_ARRAY_DIMENSIONS 6 /* PostgreSQL's */

/* A key on the way to a mapped field; "a.b" is node a with child b. */
typedef struct Node
{
	char *name;
	size_t n_bytes;
	struct Node *child, *sibling;
	struct Node *first, *after; /* guesses: its first known key, and the known key behind it */
	int *columns;				/* in the mapping, that take this value */
	int n_columns;
	int only;		 /* the column, where there is one and it takes any value as text; else -1 */
	bool wants_text; /* some column takes it unescaped */
} Node;

typedef struct Level
{
	Node *node;	   /* whose children the keys of this object are; NULL: nobody looks */
	Node **guess;  /* where the next key is expected */
	Node *capture; /* takes the text of this object or array; NULL: nobody */
	size_t start;  /* of that text */
	bool is_taken; /* by this capture, or one further out */
} Level;

/* Writes a JSON array as PostgreSQL's array literal. */
typedef struct ArrayWriter
{
	yajl_handle parser;
	const char *text;
	size_t n_bytes;
	char *out;
	size_t start;		/* of the element that is taken as JSON text */
	int depth, n_inner; /* dimensions open; levels open in that element */
	char delimiter;
	bool is_json, needs_delimiter, is_too_deep;
} ArrayWriter;

struct JsonReader
{
	const Config *config;
	Mapping *mapping;
	Value *values; /* of the mapping */
	Growth *growth;
	Node root, header_root;
	yajl_handle parser;
	Level levels[MAX_JSON_DEPTH + 2];
	int depth, n_values;
	Node *top;		  /* root or header_root */
	Node *pending;	  /* node of the key just read */
	const char *text; /* what is read */
	size_t n_bytes;
	size_t end;		   /* of the last outermost object or array */
	const char *fault; /* why a callback stopped the parser */
	bool is_object;
	Buffer scratch;	 /* unescaped strings of one message; its size is fixed before the first */
	Buffer standard; /* the message with its NaNs replaced */
	ArrayWriter writer;

	/* Fields that no column takes: looked for only when somebody wants them. */
	bool tracks, is_unknown;
	const char *name; /* of the outermost field being read: in the message, or in the copy */
	size_t n_name_bytes;
	size_t key_end; /* behind its closing quote */
	bool is_name_escaped;
	Buffer name_copy;
	Buffer rest; /* members of $rest */
	char unknown_reason[160];
};

/* ---- nodes ---- */

static bool
node_is(const Node *node, const char *name, size_t n_bytes)
{
	return node->n_bytes == n_bytes && memcmp(node->name, name, n_bytes) == 0;
}

static Node *
node_find(const Node *parent, const char *name, size_t n_bytes)
{
	for (Node *node = parent->child; node != NULL; node = node->sibling)
		if (node_is(node, name, n_bytes))
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

static void
node_add_column(Node *node, int i, const Column *column)
{
	node->columns = mem_grow(node->columns, (size_t) node->n_columns + 1, sizeof(int));
	node->columns[node->n_columns++] = i;
	node->wants_text |= !column->is_json;
	node->only = node->n_columns == 1 && !column->is_json && column->array_delimiter == 0 ? i : -1;
}

/* ---- arrays ---- */

static void
array_quoted(ArrayWriter *writer, const char *data, size_t n_bytes)
{
	char *out = writer->out;

	*out++ = '"';
	for (size_t i = 0; i < n_bytes; i++)
	{
		if (data[i] == '"' || data[i] == '\\')
			*out++ = '\\';
		*out++ = data[i];
	}
	*out++ = '"';
	writer->out = out;
}

/* An element begins.  False when it is part of one that is taken as JSON text. */
static bool
array_element(ArrayWriter *writer)
{
	if (writer->n_inner > 0)
		return false;
	if (writer->needs_delimiter)
		*writer->out++ = writer->delimiter;
	writer->needs_delimiter = true;
	return true;
}

static void
array_plain(ArrayWriter *writer, const char *data, size_t n_bytes)
{
	if (!array_element(writer))
		return;
	memcpy(writer->out, data, n_bytes);
	writer->out += n_bytes;
}

static int
array_null(void *context)
{
	array_plain(context, "NULL", 4);
	return 1;
}

static int
array_boolean(void *context, int value)
{
	array_plain(context, value ? "true" : "false", value ? 4 : 5);
	return 1;
}

static int
array_number(void *context, const char *text, size_t n_bytes)
{
	array_plain(context, text, n_bytes);
	return 1;
}

/* The opening quote of the string that ends behind end[-1].  Quotes inside stand behind a backslash, this one does not. */
static const char *
string_start(const char *text, const char *end)
{
	const char *at = end - 2;

	while (at > text && (*at != '"' || at[-1] == '\\'))
		at--;
	return at;
}

static int
array_string(void *context, const unsigned char *data, size_t n_bytes)
{
	ArrayWriter *writer = context;

	if (!array_element(writer))
		return 1;
	if (writer->is_json)
	{
		const char *end = writer->text + yajl_get_bytes_consumed(writer->parser);
		const char *start = string_start(writer->text, end);

		array_quoted(writer, start, (size_t) (end - start));
	}
	else
		array_quoted(writer, (const char *) data, n_bytes);
	return 1;
}

static int
array_inner_start(void *context)
{
	ArrayWriter *writer = context;

	if (array_element(writer))
		writer->start = yajl_get_bytes_consumed(writer->parser) - 1;
	writer->n_inner++;
	return 1;
}

static int
array_key(void *context, const unsigned char *name, size_t n_bytes)
{
	(void) context;
	(void) name;
	(void) n_bytes;
	return 1;
}

static int
array_inner_end(void *context)
{
	ArrayWriter *writer = context;

	if (--writer->n_inner == 0)
		array_quoted(writer, writer->text + writer->start,
					 yajl_get_bytes_consumed(writer->parser) - writer->start);
	return 1;
}

static int
array_start(void *context)
{
	ArrayWriter *writer = context;

	if (writer->n_inner > 0 || (writer->is_json && writer->depth > 0))
		return array_inner_start(context);
	if (writer->depth == MAX_ARRAY_DIMENSIONS)
	{
		writer->is_too_deep = true;
		return 0;
	}
	array_element(writer);
	*writer->out++ = '{';
	writer->needs_delimiter = false;
	writer->depth++;
	return 1;
}

static int
array_end(void *context)
{
	ArrayWriter *writer = context;

	if (writer->n_inner > 0)
		return array_inner_end(context);
	*writer->out++ = '}';
	writer->needs_delimiter = true;
	writer->depth--;
	return 1;
}

static const yajl_callbacks array_callbacks = {
	array_null, array_boolean,	 NULL,		  NULL,		 array_number, array_string, array_inner_start,
	array_key,	array_inner_end, array_start, array_end,
};

static yajl_handle
parser_make(const yajl_callbacks *callbacks, void *context)
{
	yajl_handle parser = yajl_alloc(callbacks, NULL, context);

	if (parser == NULL || !yajl_config(parser, yajl_allow_multiple_values, 1) ||
		!yajl_config(parser, yajl_dont_validate_strings, 1))
	{
		fprintf(stderr, "millrace: cannot make a JSON parser\n");
		exit(EXIT_INTERNAL);
	}
	return parser;
}

/* raw: a well-formed JSON array.  The literal lives in the batch's arena. */
static const char *
array_literal(JsonReader *json, const Column *column, Value raw, Value *literal)
{
	ArrayWriter *writer = &json->writer;
	Arena *arena = &json->mapping->batch->arena;
	/* Each byte may need a backslash, and an element of two bytes or more two quotes. */
	char *room = arena_reserve(arena, 3 * (size_t) raw.n_bytes + 2);
	yajl_handle parser = writer->parser ? writer->parser : parser_make(&array_callbacks, writer);

	*writer = (ArrayWriter){
		.parser = parser,
		.text = raw.data,
		.n_bytes = raw.n_bytes,
		.out = room,
		.delimiter = column->array_delimiter,
		.is_json = column->is_json_array,
	};
	yajl_status status = yajl_parse(parser, (const unsigned char *) raw.data, raw.n_bytes);
	*literal = (Value){room, (uint32_t) (writer->out - room), VALUE_TEXT};
	arena_take(arena, literal->n_bytes);
	if (status == yajl_status_ok)
		return NULL;
	yajl_free(parser);
	writer->parser = NULL;
	return writer->is_too_deep ? "array of more than 6 dimensions" : "array cannot be read";
}

/* ---- values ---- */

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

/* yajl turns lone surrogates into question marks; here they are a fault.  raw: JSON text with valid escapes. */
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

/* A header that comes once, for a column of arrays. */
static Value
array_of_one(JsonReader *json, Value raw)
{
	Arena *arena = &json->mapping->batch->arena;
	char *text = arena_reserve(arena, (size_t) raw.n_bytes + 2);

	text[0] = '[';
	memcpy(text + 1, raw.data, raw.n_bytes);
	text[raw.n_bytes + 1] = ']';
	arena_take(arena, (size_t) raw.n_bytes + 2);
	return (Value){text, raw.n_bytes + 2, VALUE_TEXT};
}

/* text: the value as a text column takes it; raw: as it stands in the message. */
static int
node_assign(JsonReader *json, const Node *node, Value text, Value raw)
{
	if (node->only >= 0)
	{
		json->values[node->only] = text;
		return 1;
	}
	for (int i = 0; i < node->n_columns; i++)
	{
		const Column *column = json->mapping->columns[node->columns[i]].column;
		Value *value = &json->values[node->columns[i]];

		*value = column->is_json ? raw : text;
		if (column->array_delimiter == 0 || raw.kind != VALUE_TEXT)
			continue;
		Value array = raw;
		if (raw.data[0] != '[' && json->top == &json->header_root)
			array = array_of_one(json, raw);
		else if (raw.data[0] != '[')
			continue;
		json->fault = escape_defect(array.data, array.n_bytes);
		if (json->fault == NULL)
			json->fault = array_literal(json, column, array, value);
		if (json->fault != NULL)
			return 0;
	}
	return 1;
}

/* A string without escapes stands in the message, one with them in yajl's buffer, which is used again for the next. */
static bool
is_in_text(const JsonReader *json, const char *data)
{
	return data >= json->text && data < json->text + json->n_bytes;
}

/* An outermost field that no column takes is read to its end. */
static void
field_unknown(JsonReader *json, const char *type)
{
	const char *key_end = json->text + json->key_end;
	const char *start = json->is_name_escaped ? string_start(json->text, key_end) : json->name - 1;

	json->is_unknown = false;
	if (json->mapping->rest_index >= 0)
	{
		buffer_add(&json->rest, json->rest.n_bytes ? "," : "{", 1);
		buffer_add(&json->rest, start, (size_t) (json->text + yajl_get_bytes_consumed(json->parser) - start));
	}
	/* yajl has put question marks where no text can be: that is no name of a column. */
	bool is_name = !json->is_name_escaped || escape_defect(start, (size_t) (key_end - start)) == NULL;
	growth_field(json->growth, json->name, is_name ? json->n_name_bytes : 0, type, json->unknown_reason,
				 sizeof json->unknown_reason);
}

/* A value begins: whose is it? */
static Node *
json_target(JsonReader *json)
{
	Node *node = json->pending;

	json->pending = NULL;
	if (json->depth == 0)
		json->n_values++;
	return node && node->n_columns > 0 ? node : NULL;
}

static void
mark_unknown(JsonReader *json)
{
	if (json->is_object && json->depth > 0 && !json->levels[json->depth - 1].is_taken)
		json->is_unknown = true;
}

/* type: of a column for this field; NULL: it tells nothing. */
static int
json_scalar(JsonReader *json, Value text, Value raw, const char *type)
{
	Node *node = json_target(json);

	if (node != NULL && !node_assign(json, node, text, raw))
		return 0;
	if (!json->tracks)
		return 1;
	if (node == NULL)
		mark_unknown(json);
	if (json->is_unknown && json->depth == 1)
		field_unknown(json, type);
	return 1;
}

static int
on_null(void *context)
{
	Value null = {NULL, 0, VALUE_NULL};

	return json_scalar(context, null, null, NULL);
}

static int
on_boolean(void *context, int value)
{
	Value text = {value ? "true" : "false", value ? 4 : 5, VALUE_TEXT};

	return json_scalar(context, text, text, "boolean");
}

static int
on_number(void *context, const char *data, size_t n_bytes)
{
	Value text = {data, (uint32_t) n_bytes, VALUE_TEXT};

	return json_scalar(context, text, text, "numeric");
}

static int
on_string(void *context, const unsigned char *data, size_t n_bytes)
{
	JsonReader *json = context;
	const Node *node = json->pending;
	Value text = {(const char *) data, (uint32_t) n_bytes, VALUE_TEXT};
	Value raw = {text.data - 1, (uint32_t) n_bytes + 2, VALUE_TEXT};

	if (node != NULL && node->n_columns > 0 && !is_in_text(json, text.data))
	{
		const char *end = json->text + yajl_get_bytes_consumed(json->parser);

		raw.data = string_start(json->text, end);
		raw.n_bytes = (uint32_t) (end - raw.data);
		if (node->wants_text && (json->fault = escape_defect(raw.data, raw.n_bytes)) != NULL)
			return 0;
		/* What is unescaped is never longer than the message. */
		char *copy = json->scratch.data + json->scratch.n_bytes;
		if (n_bytes > json->scratch.capacity - json->scratch.n_bytes)
			return 0;
		memcpy(copy, data, n_bytes);
		json->scratch.n_bytes += n_bytes;
		text.data = copy;
	}
	return json_scalar(json, text, raw, "text");
}

static int
json_open_level(JsonReader *json, bool is_object)
{
	Node *node = json->depth == 0 ? json->top : json->pending;
	Node *capture = json_target(json);

	if (json->depth == 0)
		json->is_object = is_object;
	if (json->depth >= MAX_JSON_DEPTH)
	{
		json->fault = "nested too deep";
		return 0;
	}
	node = is_object && node != NULL && node->child != NULL ? node : NULL;
	if (json->tracks && capture == NULL && node == NULL)
		mark_unknown(json);
	json->levels[json->depth] = (Level){
		.node = node,
		.guess = node ? &node->first : NULL,
		.capture = capture,
		.start = capture ? yajl_get_bytes_consumed(json->parser) - 1 : 0,
		.is_taken = capture != NULL || (json->depth > 0 && json->levels[json->depth - 1].is_taken),
	};
	json->depth++;
	return 1;
}

static int
on_map_start(void *context)
{
	return json_open_level(context, true);
}

static int
on_array_start(void *context)
{
	return json_open_level(context, false);
}

/* The name of an outermost field is kept until its value is read. */
static void
field_start(JsonReader *json, const char *name, size_t n_bytes)
{
	json->key_end = yajl_get_bytes_consumed(json->parser);
	json->name = name;
	json->n_name_bytes = n_bytes;
	json->is_name_escaped = !is_in_text(json, name);
	if (!json->is_name_escaped)
		return;
	json->name_copy.n_bytes = 0;
	buffer_add(&json->name_copy, name, n_bytes);
	json->name = json->name_copy.data;
}

static int
on_key(void *context, const unsigned char *data, size_t n_bytes)
{
	JsonReader *json = context;
	Level *level = &json->levels[json->depth - 1];
	const char *name = (const char *) data;

	if (json->tracks && json->depth == 1)
		field_start(json, name, n_bytes);
	json->pending = NULL;
	if (level->node == NULL)
		return 1;
	Node *node = *level->guess;
	if (node == NULL || !node_is(node, name, n_bytes))
	{
		node = node_find(level->node, name, n_bytes);
		if (node == NULL)
			return 1;
		*level->guess = node;
	}
	level->guess = &node->after;
	json->pending = node;
	return 1;
}

static int
on_end(void *context)
{
	JsonReader *json = context;
	Level *level = &json->levels[--json->depth];

	json->pending = NULL;
	if (json->depth == 0)
		json->end = yajl_get_bytes_consumed(json->parser);
	if (level->capture != NULL)
	{
		size_t end = yajl_get_bytes_consumed(json->parser);
		Value value = {json->text + level->start, (uint32_t) (end - level->start), VALUE_TEXT};

		if (!node_assign(json, level->capture, value, value))
			return 0;
	}
	if (json->is_unknown && json->depth == 1)
		field_unknown(json, "jsonb");
	return 1;
}

static const yajl_callbacks callbacks = {on_null,	on_boolean,		NULL,		  NULL,
										 on_number, on_string,		on_map_start, on_key,
										 on_end,	on_array_start, on_end};

/* ---- messages ---- */

/* Reads one value below top; returns what is wrong with it, or NULL. */
static const char *
json_parse(JsonReader *json, Node *top, const char *text, size_t n_bytes, char *reason, size_t reason_bytes)
{
	json->top = top;
	json->text = text;
	json->n_bytes = n_bytes;
	json->depth = json->n_values = 0;
	json->end = 0;
	json->pending = NULL;
	json->fault = NULL;
	json->is_object = json->is_unknown = false;
	yajl_status status = yajl_parse(json->parser, (const unsigned char *) text, n_bytes);
	if (status == yajl_status_ok && json->end == n_bytes && json->n_values == 1)
		return NULL;
	/* A bare number ends only where something follows. */
	if (status == yajl_status_ok && json->n_values == 0)
		status = yajl_parse(json->parser, (const unsigned char *) "\n", 1);
	if (status == yajl_status_ok && json->n_values == 1 && json->depth == 0)
	{
		/* Text may hang behind the value that yajl takes for the beginning of a next one. */
		status = yajl_parse(json->parser, (const unsigned char *) "\n", 1);
		if (status == yajl_status_ok && json->n_values == 1)
			return NULL;
	}
	if (json->fault != NULL)
		snprintf(reason, reason_bytes, "%s", json->fault);
	else if (json->n_values > 1)
		snprintf(reason, reason_bytes, "not JSON: more than one value");
	else if (status == yajl_status_ok)
		snprintf(reason, reason_bytes, "not JSON: it ends too early");
	else
	{
		unsigned char *why = yajl_get_error(json->parser, 0, NULL, 0);

		snprintf(reason, reason_bytes, "not JSON: %.*s", (int) strcspn((char *) why, "\n"), (char *) why);
		yajl_free_error(json->parser, why);
	}
	/* After a fault the parser's state is unknown, so it is made anew. */
	yajl_free(json->parser);
	json->parser = parser_make(&callbacks, json);
	return reason;
}

/* The text with each NaN outside of strings as json.nan has it.  The text holds no NUL. */
static void
nan_replace(JsonReader *json, const char *text, size_t n_bytes)
{
	const char *at, *end = text + n_bytes, *copied = text;
	Buffer *out = &json->standard;
	size_t n_word;

	out->n_bytes = 0;
	for (const char *next = text; (at = json_next_nan(text, next, end, &n_word)) != NULL;
		 next = copied = at + n_word)
	{
		buffer_add(out, copied, (size_t) (at - copied));
		if (json->config->json_nan == NAN_NULL)
			buffer_add(out, "null", 4);
		else
			buffer_printf(out, "\"%.*s\"", (int) n_word, at);
	}
	buffer_add(out, copied, (size_t) (end - copied));
}

const char *
decode_json_headers(JsonReader *json, const Message *message, char *reason, size_t reason_bytes)
{
	if (message->headers == NULL || json->header_root.child == NULL)
		return NULL;
	json->tracks = false;
	json->scratch.n_bytes = 0;
	buffer_room(&json->scratch, message->n_header_bytes + message->n_bytes);
	return json_parse(json, &json->header_root, message->headers, message->n_header_bytes, reason,
					  reason_bytes);
}

const char *
decode_json_read(JsonReader *json, const Message *message, char *reason, size_t reason_bytes)
{
	Mapping *mapping = json->mapping;
	const char *text = message->data;
	size_t n_bytes = message->n_bytes;

	if (json->config->json_nan != NAN_REFUSE && json_has_nan(text, n_bytes))
	{
		nan_replace(json, text, n_bytes);
		text = json->standard.data;
		n_bytes = json->standard.n_bytes;
	}
	if (message->headers == NULL || json->header_root.child == NULL)
	{
		json->scratch.n_bytes = 0;
		buffer_room(&json->scratch, n_bytes);
	}
	json->tracks = mapping->rest_index >= 0 || json->config->on_unknown_field > UNKNOWN_JSONB;
	json->rest.n_bytes = 0;
	json->unknown_reason[0] = '\0';
	if (json_parse(json, &json->root, text, n_bytes, reason, reason_bytes) != NULL)
		return reason;
	if (!json->is_object && json->root.child != NULL)
		return "not a JSON object";
	if (json->unknown_reason[0] != '\0')
		return json->unknown_reason;
	if (json->rest.n_bytes > 0)
	{
		buffer_add(&json->rest, "}", 1);
		mapping->values[mapping->rest_index] =
			(Value){json->rest.data, (uint32_t) json->rest.n_bytes, VALUE_TEXT};
	}
	for (int i = 0; text != message->data && i < mapping->n_columns; i++)
		if (mapping->columns[i].kind == FIELD_WHOLE && mapping->columns[i].column->is_json)
			mapping->values[i] = (Value){text, (uint32_t) n_bytes, VALUE_TEXT};
	return NULL;
}

void
decode_json_remap(JsonReader *json)
{
	const Mapping *mapping = json->mapping;

	json->values = mapping->values;
	node_free(json->root.child);
	node_free(json->header_root.child);
	memset(&json->root, 0, sizeof json->root);
	memset(&json->header_root, 0, sizeof json->header_root);
	for (int i = 0; i < mapping->n_columns; i++)
	{
		const Mapped *mapped = &mapping->columns[i];

		if (mapped->kind == FIELD_NAMED)
			node_add_column(node_make(&json->root, mapped->field, mapped->rule != NULL), i, mapped->column);
		else if (mapped->kind == FIELD_HEADER)
			node_add_column(node_make(&json->header_root, mapped->field + strlen("$header."), false), i,
							mapped->column);
	}
}

JsonReader *
decode_json_open(const Config *config, Mapping *mapping, Growth *growth)
{
	JsonReader *json = mem_alloc(sizeof(JsonReader));

	json->config = config;
	json->mapping = mapping;
	json->growth = growth;
	json->parser = parser_make(&callbacks, json);
	decode_json_remap(json);
	return json;
}

void
decode_json_close(JsonReader *json)
{
	if (json == NULL)
		return;
	yajl_free(json->parser);
	if (json->writer.parser != NULL)
		yajl_free(json->writer.parser);
	node_free(json->root.child);
	node_free(json->header_root.child);
	buffer_free(&json->scratch);
	buffer_free(&json->standard);
	buffer_free(&json->name_copy);
	buffer_free(&json->rest);
	free(json);
}
