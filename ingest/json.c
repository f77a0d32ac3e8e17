/*
 * A JSON text taken apart into its members, each with its path and the bytes it stands in; read by yajl (SAX).  For what
 * looks at messages without storing them: produce.c and suggest.c.  NaN, Infinity and -Infinity, which are not JSON but what
 * Python writes, are taken for null; where they stand, decode_json.c wants to know, too.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

/* One open object or array. */
typedef struct Open
{
	size_t start;		 /* of its text */
	size_t n_path_bytes; /* of its path */
	bool is_object;
} Open;

struct JsonWalker
{
	JsonVisit visit;
	void *context;
	yajl_handle parser;
	const char *json;
	Buffer standard; /* the same with numbers for NaNs, as long as these */
	Buffer path;	 /* of the value that comes next, NUL-terminated */
	Open *open;
	int n_open, capacity;
	int n_arrays;	/* open ones: what stands in them has no path */
	int n_values;	/* at the top */
	size_t key_end; /* behind the last key, or the beginning */
};

/* Where the value begins whose callback runs; only for members of objects, and at the top. */
static size_t
value_start(const JsonWalker *walker)
{
	size_t at = walker->key_end;

	return at + strspn(walker->json + at, " \t\r\n:");
}

static void
visit(JsonWalker *walker, JsonKind kind, size_t start, size_t end, const char *text, size_t n_text_bytes)
{
	JsonMember member = {
		.path = walker->path.data,
		.kind = kind,
		.raw = walker->json + start,
		.n_raw_bytes = end - start,
		.text = text ? text : walker->json + start,
		.n_text_bytes = text ? n_text_bytes : end - start,
	};

	if (walker->n_arrays == 0)
		walker->visit(walker->context, &member);
	if (walker->n_open == 0)
		walker->n_values++;
}

static int
scalar(JsonWalker *walker, JsonKind kind, size_t n_bytes)
{
	size_t start = value_start(walker);

	visit(walker, kind, start, start + n_bytes, NULL, 0);
	return 1;
}

static int
on_null(void *context)
{
	return scalar(context, JSON_NULL, strlen("null"));
}

static int
on_boolean(void *context, int value)
{
	return scalar(context, JSON_BOOLEAN, value ? strlen("true") : strlen("false"));
}

static int
on_number(void *context, const char *text, size_t n_bytes)
{
	JsonWalker *walker = context;
	const char *word = walker->json + value_start(walker);
	bool is_nan = walker->n_arrays == 0 && memchr("NI", word[*word == '-'], 2) != NULL;

	(void) text;
	return scalar(walker, is_nan ? JSON_NULL : JSON_NUMBER, n_bytes);
}

static int
on_string(void *context, const unsigned char *text, size_t n_bytes)
{
	JsonWalker *walker = context;

	visit(walker, JSON_STRING, value_start(walker), yajl_get_bytes_consumed(walker->parser),
		  (const char *) text, n_bytes);
	return 1;
}

static int
begin(JsonWalker *walker, bool is_object)
{
	if (walker->n_open == walker->capacity)
	{
		walker->capacity = walker->capacity ? walker->capacity * 2 : 16;
		walker->open = mem_grow(walker->open, (size_t) walker->capacity, sizeof(Open));
	}
	walker->open[walker->n_open++] = (Open){value_start(walker), walker->path.n_bytes, is_object};
	walker->n_arrays += !is_object;
	return 1;
}

static int
on_map_start(void *context)
{
	return begin(context, true);
}

static int
on_array_start(void *context)
{
	return begin(context, false);
}

static void
set_path(JsonWalker *walker, size_t n_bytes)
{
	walker->path.n_bytes = n_bytes;
	*buffer_room(&walker->path, 1) = '\0';
}

static int
on_key(void *context, const unsigned char *name, size_t n_bytes)
{
	JsonWalker *walker = context;

	walker->key_end = yajl_get_bytes_consumed(walker->parser);
	if (walker->n_arrays > 0)
		return 1;
	set_path(walker, walker->open[walker->n_open - 1].n_path_bytes);
	if (walker->path.n_bytes > 0)
		buffer_add(&walker->path, ".", 1);
	buffer_add(&walker->path, name, n_bytes);
	set_path(walker, walker->path.n_bytes);
	return 1;
}

static int
on_end(void *context)
{
	JsonWalker *walker = context;
	const Open *open = &walker->open[--walker->n_open];

	walker->n_arrays -= !open->is_object;
	set_path(walker, open->n_path_bytes);
	visit(walker, open->is_object ? JSON_OBJECT : JSON_ARRAY, open->start,
		  yajl_get_bytes_consumed(walker->parser), NULL, 0);
	return 1;
}

static const yajl_callbacks callbacks = {on_null,	on_boolean,		NULL,		  NULL,
										 on_number, on_string,		on_map_start, on_key,
										 on_end,	on_array_start, on_end};

JsonWalker *
json_walker_open(JsonVisit called, void *context)
{
	JsonWalker *walker = mem_alloc(sizeof(JsonWalker));

	walker->visit = called;
	walker->context = context;
	return walker;
}

void
json_walker_close(JsonWalker *walker)
{
	if (walker == NULL)
		return;
	buffer_free(&walker->standard);
	buffer_free(&walker->path);
	free(walker->open);
	free(walker);
}

/* Bytes of NaN, Infinity or -Infinity at at, standing where a value may stand; 0: none. */
static size_t
nan_at(const char *text, const char *at, const char *end)
{
	static const char *const words[] = {"NaN", "Infinity", "-Infinity"};

	for (size_t i = 0; i < sizeof words / sizeof words[0]; i++)
	{
		size_t n_bytes = strlen(words[i]);
		const char *before = at, *behind = at + n_bytes;

		if ((size_t) (end - at) < n_bytes || memcmp(at, words[i], n_bytes) != 0)
			continue;
		while (before > text && strchr(" \t\r\n", before[-1]))
			before--;
		while (behind < end && strchr(" \t\r\n", *behind))
			behind++;
		if ((before == text || strchr(":,[", before[-1])) && (behind == end || strchr(",]}", *behind)))
			return n_bytes;
	}
	return 0;
}

const char *
json_next_nan(const char *text, const char *at, const char *end, size_t *n_bytes)
{
	while (at < end)
	{
		*n_bytes = *at == 'N' || *at == 'I' || *at == '-' ? nan_at(text, at, end) : 0;
		if (*n_bytes > 0)
			return at;
		if (*at++ != '"')
			continue;
		while (at < end && *at != '"')
			at += *at == '\\' && at + 1 < end ? 2 : 1;
		at += at < end;
	}
	return NULL;
}

bool
json_has_nan(const char *text, size_t n_bytes)
{
	return memmem(text, n_bytes, "NaN", 3) != NULL || memmem(text, n_bytes, "Infinity", 8) != NULL;
}

/* The text with a number of the same length for each NaN. */
static const char *
without_nan(JsonWalker *walker, const char *json, size_t n_bytes)
{
	const char *end = json + n_bytes, *at = json;
	size_t n_word;

	walker->standard.n_bytes = 0;
	buffer_add(&walker->standard, json, n_bytes);
	for (; (at = json_next_nan(json, at, end, &n_word)) != NULL; at += n_word)
	{
		size_t n_sign = *at == '-';

		memset(walker->standard.data + (at - json) + n_sign, '1', n_word - n_sign);
	}
	return walker->standard.data;
}

bool
json_walk(JsonWalker *walker, const char *json, size_t n_bytes)
{
	walker->parser = yajl_alloc(&callbacks, NULL, walker);
	if (walker->parser == NULL || !yajl_config(walker->parser, yajl_dont_validate_strings, 1))
		return false;
	walker->json = json;
	walker->n_open = walker->n_arrays = walker->n_values = 0;
	walker->key_end = 0;
	set_path(walker, 0);
	if (json_has_nan(json, n_bytes))
		json = without_nan(walker, json, n_bytes);
	bool is_good = yajl_parse(walker->parser, (const unsigned char *) json, n_bytes) == yajl_status_ok &&
		yajl_complete_parse(walker->parser) == yajl_status_ok;
	yajl_free(walker->parser);
	return is_good && walker->n_values == 1;
}
