/*
 * The ingester's parts that need no server: decoders, time, COPY text, routing, configuration.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ingest.h"

#define DAY_US INT64_C(86400000000)

/* ---- a chain from decoder to batch over a table made up here ---- */

static Column columns[] = {
	{.name = "id", .quoted = "id", .type_oid = 23},
	{.name = "name", .quoted = "name", .type_oid = 25},
	{.name = "at", .quoted = "at", .type_oid = 1184},
	{.name = "note", .quoted = "note", .type_oid = 25, .has_default = true},
	{.name = "doc", .quoted = "doc", .type_oid = 3802, .is_json = true},
};
static Table table = {
	.name = "public.t", .relation = "t", .columns = columns, .n_columns = 5, .time_column = "at"};

typedef struct Chain
{
	Config config;
	Mapping mapping;
	Batch batch;
	Decoder *decoder;
} Chain;

static Chain *
chain_open(Format format, int n_rules, Pair *rules)
{
	Chain *chain = mem_alloc(sizeof(Chain));

	chain->config.format = format;
	chain->config.csv_delimiter = ",";
	chain->config.csv_null = "";
	chain->config.csv_quote = chain->config.csv_escape = "\"";
	chain->config.csv_header = 1;
	chain->config.timezone = "UTC";
	chain->config.max_record_bytes = 4096;
	chain->config.columns.list = rules;
	chain->config.columns.n_pairs = n_rules;
	chain->config.file = "test.ini";
	chain->batch.max_rows = 1000;
	chain->batch.max_bytes = 1 << 20;
	chain->mapping.batch = &chain->batch;
	assert_int_equal(mapping_build(&chain->mapping, &chain->config, &table), EXIT_DONE);
	chain->decoder = decoder_open(&chain->config, &chain->mapping);
	decode_start(chain->decoder, "test.csv");
	position_find(&chain->batch.positions, "topic", 3);
	return chain;
}

static void
chain_close(Chain *chain)
{
	decoder_free(chain->decoder);
	mapping_free(&chain->mapping);
	batch_free(&chain->batch);
	free(chain);
}

/* A whole file, in pieces of n_step bytes more each time, as a slow reader would see it. */
static void
feed(Chain *chain, const char *text, size_t n_bytes, size_t n_step)
{
	ExitCode status;
	size_t have = 0, done = 0;

	while (done < n_bytes || have < n_bytes)
	{
		have = have + n_step > n_bytes ? n_bytes : have + n_step;
		bool at_end = have == n_bytes;
		/* Copied, so that a read behind the end is seen by a sanitizer. */
		char *piece = malloc(have - done + 1);
		memcpy(piece, text + done, have - done);
		if (decode_wants_header(chain->decoder))
			done += decode_header(chain->decoder, piece, have - done, at_end, &status);
		else
			done += decode_bytes(chain->decoder, piece, have - done, at_end, 0, (int64_t) done);
		free(piece);
	}
}

/* "ROW|ROW|..." of COPY text, dead letters as !REASON!payload. */
static char *
result(const Chain *chain)
{
	Buffer out = {0};

	buffer_printf(&out, "%s", "");
	for (int i = 0; i < chain->batch.n_rows; i++)
	{
		const Row *row = &chain->batch.rows[i];

		if (i > 0)
			buffer_printf(&out, "|");
		if (row->dead != NULL)
			buffer_printf(&out, "!%s!%.*s", row->dead->reason, (int) row->raw_bytes, row->raw);
		else
			buffer_printf(&out, "%.*s", (int) row->copy_bytes - 1, row->copy);
	}
	return out.data;
}

static void
expect(Chain *chain, const char *text, size_t n_bytes, const char *wanted)
{
	const size_t steps[] = {1, 2, 3, 7, 1000000};

	for (size_t i = 0; i < sizeof steps / sizeof steps[0]; i++)
	{
		batch_reset(&chain->batch);
		decode_start(chain->decoder, "test.csv");
		feed(chain, text, n_bytes, steps[i]);
		char *got = result(chain);
		assert_string_equal(got, wanted);
		free(got);
	}
	chain_close(chain);
}

static void
csv(const char *text, const char *wanted)
{
	expect(chain_open(FORMAT_CSV, 0, NULL), text, strlen(text), wanted);
}

static void
json(const char *text, const char *wanted)
{
	expect(chain_open(FORMAT_JSON, 0, NULL), text, strlen(text), wanted);
}

/* ---- CSV ---- */

static void
test_csv_plain(void **state)
{
	(void) state;
	csv("id,name\n1,a\n2,b\n", "1\ta\t\\N\t\\N|2\tb\t\\N\t\\N");
	csv("id,name\r\n1,a\r\n2,b", "1\ta\t\\N\t\\N|2\tb\t\\N\t\\N");
	csv("name,id\n\xC3\xA9,1\n", "1\t\xC3\xA9\t\\N\t\\N");
	csv("ID,Name,other\n1,a,zzz\n", "1\ta\t\\N\t\\N");
	csv("\xEF\xBB\xBFid,name\n1,a\n", "1\ta\t\\N\t\\N");
	csv("id,name\n", "");
	csv("", "");
	csv("id,name\n\n1,a\n\r\n2,b\n", "1\ta\t\\N\t\\N|2\tb\t\\N\t\\N");
	csv("id,name\n1,a\rb\n", "1\ta\\rb\t\\N\t\\N");
}

static void
test_csv_quotes(void **state)
{
	(void) state;
	csv("id,name\n1,\"a,b\"\n", "1\ta,b\t\\N\t\\N");
	csv("\"id\",\"name\"\n\"1\",\"say \"\"hi\"\"\"\n", "1\tsay \"hi\"\t\\N\t\\N");
	csv("id,name\n1,\"two\nlines\"\n2,\"\r\n\"\r\n", "1\ttwo\\nlines\t\\N\t\\N|2\t\\r\\n\t\\N\t\\N");
	csv("id,name\n1,\"\"\n2,\n", "1\t\t\\N\t\\N|2\t\\N\t\\N\t\\N");
	csv("id,name\n1,\"\"\"\"\n", "1\t\"\t\\N\t\\N");
	csv("id,name\n1,5\" nail\n", "1\t5\" nail\t\\N\t\\N");
	csv("id,name\n\"1\",\"a\"", "1\ta\t\\N\t\\N");
}

/* What is decoded again has no line end, and may end like one. */
static void
test_csv_again(void **state)
{
	const char *text = "\xEF\xBB\xBFid,name\r\n1,a\r\r\n2,\"b\"\r\r\n3,\"c\"\r\n";
	const char *wanted =
		"1\ta\\r\t\\N\t\\N|!text behind the closing quote of a field!2,\"b\"\r|3\tc\t\\N\t\\N";
	Chain *chain = chain_open(FORMAT_CSV, 0, NULL);

	(void) state;
	feed(chain, text, strlen(text), 5);
	char *got = result(chain);
	assert_string_equal(got, wanted);
	free(got);
	decode_again(chain->decoder, &chain->batch);
	got = result(chain);
	assert_string_equal(got, wanted);
	free(got);
	chain_close(chain);
}

static void
test_csv_faults(void **state)
{
	(void) state;
	csv("id,name\n1\n2,b\n", "!1 fields where 2 are expected!1|2\tb\t\\N\t\\N");
	csv("id,name\n1,a,x\n2,b\n", "!3 fields where 2 are expected!1,a,x|2\tb\t\\N\t\\N");
	csv("id,name\n1,\"a\"x\n2,b\n", "!text behind the closing quote of a field!1,\"a\"x|2\tb\t\\N\t\\N");
	csv("id,name\n1,\"a\n2,b\n3,c\n",
		"!quoted field has no closing quote!1,\"a|2\tb\t\\N\t\\N|3\tc\t\\N\t\\N");
	csv("id,name\n1,\xFF\n2,b\n", "!invalid UTF-8 at byte 2!1,\xFF|2\tb\t\\N\t\\N");
}

static void
test_csv_nul(void **state)
{
	Chain *chain = chain_open(FORMAT_CSV, 0, NULL);

	(void) state;
	feed(chain, "id,name\n1,a\0b\n2,b\n", 18, 100);
	assert_int_equal(chain->batch.n_rows, 2);
	assert_string_equal(chain->batch.rows[0].dead->reason, "NUL character at byte 3");
	assert_int_equal(chain->batch.rows[0].raw_bytes, 5);
	assert_null(chain->batch.rows[1].dead);
	assert_int_equal(chain->batch.rows[1].offset, 14);
	assert_int_equal(chain->batch.positions.list[0].next, 18);
	chain_close(chain);
}

static void
test_csv_long_record(void **state)
{
	Chain *chain = chain_open(FORMAT_CSV, 0, NULL);
	Buffer text = {0};
	size_t n_dead = 0;

	(void) state;
	buffer_printf(&text, "id,name\n1,\"%*s\n2,b\n", 9000, "x");
	feed(chain, text.data, text.n_bytes, 500);
	/* Every byte of the long line is in a dead letter, and the next line is a row. */
	for (int i = 0; i < chain->batch.n_rows - 1; i++)
	{
		assert_non_null(chain->batch.rows[i].dead);
		n_dead += chain->batch.rows[i].raw_bytes;
	}
	assert_int_equal(n_dead, 9003);
	assert_memory_equal(chain->batch.rows[chain->batch.n_rows - 1].copy, "2\tb\t", 4);
	buffer_free(&text);
	chain_close(chain);
}

/* The batch limit stops the decoder between records, and it goes on there. */
static void
test_batch_limit(void **state)
{
	Chain *chain = chain_open(FORMAT_CSV, 0, NULL);
	const char *text = "1,a\n2,b\n3,c\n";
	ExitCode status;

	(void) state;
	decode_header(chain->decoder, "id,name\n", 8, false, &status);
	chain->batch.max_rows = 2;
	assert_int_equal(decode_bytes(chain->decoder, text, 12, true, 0, 8), 8);
	assert_int_equal(chain->batch.positions.list[0].next, 16);
	batch_reset(&chain->batch);
	assert_int_equal(decode_bytes(chain->decoder, text + 8, 4, true, 0, 16), 4);
	assert_int_equal(chain->batch.n_rows, 1);
	chain_close(chain);
}

/* ---- JSON ---- */

static void
test_json_values(void **state)
{
	(void) state;
	json("{\"id\": 1, \"name\": \"a\"}\n", "1\ta\t\\N\t\\N");
	json("{\"name\":\"a\\tb\\\\\\u00e9\\ud83d\\ude00\",\"id\":-1.50e3}\r\n",
		 "-1.50e3\ta\\tb\\\\\xC3\xA9\xF0\x9F\x98\x80\t\\N\t\\N");
	json("{\"id\":null,\"name\":true}\n\n{\"id\":2}", "\\N\ttrue\t\\N\t\\N|2\t\\N\t\\N\t\\N");
	json("{\"id\":1,\"doc\":{\"a\":[1,2,{\"id\":9}]},\"name\":[1, 2]}\n",
		 "1\t[1, 2]\t\\N\t{\"a\":[1,2,{\"id\":9}]}");
	json("{\"doc\" : \"x\\ny\"}\n", "\\N\t\\N\t\\N\t\"x\\\\ny\"");
	json("{\"doc\":\"x\",\"id\":12345678901234567890123}", "12345678901234567890123\t\\N\t\\N\t\"x\"");
	json("{\"x\":{\"id\":5},\"id\":6}", "6\t\\N\t\\N\t\\N");
	json("{\"note\":\"n\",\"id\":1}", "1\t\\N\t\\N\tn\t\\N");
}

static void
test_json_faults(void **state)
{
	(void) state;
	json("{\"id\":NaN}", "!not JSON: lexical error: invalid char in json text.!{\"id\":NaN}");
	json("{\"id\":1} x", "!not JSON: lexical error: invalid char in json text.!{\"id\":1} x");
	json("{\"id\":1}{}", "!not JSON: more than one value!{\"id\":1}{}");
	json("{\"id\":1", "!not JSON: it ends too early!{\"id\":1");
	json("[1]\n5\n\"x\"\n", "!not a JSON object![1]|!not a JSON object!5|!not a JSON object!\"x\"");
	json("{\"name\":\"\\u0000\"}", "!\\u0000 cannot be stored in text!{\"name\":\"\\u0000\"}");
	json("{\"name\":\"\\ud800\"}", "!lone surrogate in a string!{\"name\":\"\\ud800\"}");
	json("{\"name\":\"\\ud800\\u0041\"}", "!lone surrogate in a string!{\"name\":\"\\ud800\\u0041\"}");
	json("{\"name\":\"\\udc00\"}", "!lone surrogate in a string!{\"name\":\"\\udc00\"}");
	json("{\"name\":\"\\\\ud800\"}", "\\N\t\\\\ud800\t\\N\t\\N");
	json("\xEF\xBB\xBF{\"id\":1}",
		 "!not JSON: lexical error: invalid char in json text.!\xEF\xBB\xBF{\"id\":1}");
	json("{\"name\":\"\xED\xA0\x80\"}", "!invalid UTF-8 at byte 9!{\"name\":\"\xED\xA0\x80\"}");
	json("{\"id\":01}",
		 "!not JSON: parse error: after key and value, inside map, I expect ',' or '}'!{\"id\":01}");
	json("{}\n{\"id\":1}", "\\N\t\\N\t\\N\t\\N|1\t\\N\t\\N\t\\N");
}

static void
test_json_deep(void **state)
{
	Chain *chain = chain_open(FORMAT_JSON, 0, NULL);
	const int n = 100000;
	char *text = malloc(n);

	(void) state;
	memset(text, '[', n);
	Message message = {.data = text, .n_bytes = n};
	decode_message(chain->decoder, &message);
	assert_string_equal(chain->batch.rows[0].dead->reason, "nested too deep");
	message = (Message){.data = "{\"id\":7}", .n_bytes = 8};
	decode_message(chain->decoder, &message);
	assert_memory_equal(chain->batch.rows[1].copy, "7\t", 2);
	message = (Message){.data = "", .n_bytes = 0};
	decode_message(chain->decoder, &message);
	assert_string_equal(chain->batch.rows[2].dead->reason, "empty message");
	free(text);
	chain_close(chain);
}

static void
test_mapping(void **state)
{
	Pair rules[] = {
		{"id", "a.b.c", "test.ini", 1}, {"name", "$topic", "test.ini", 2},
		{"at", "", "test.ini", 3},		{"note", "n default:none given", "test.ini", 4},
		{"doc", "$", "test.ini", 5},
	};
	Chain *chain = chain_open(FORMAT_JSON, 5, rules);

	(void) state;
	expect(chain, "{\"a\":{\"b\":{\"c\":4,\"d\":{}}}}\n{\"n\":\"y\",\"a\":[]}", 43,
		   "4\ttopic\tnone given\t{\"a\":{\"b\":{\"c\":4,\"d\":{}}}}|\\N\ttopic\ty\t{\"n\":\"y\",\"a\":[]}");
}

static void
test_mapping_errors(void **state)
{
	Pair rules[] = {{"nam", "x", "test.ini", 1}, {"id", "$oops", "test.ini", 2}};
	Config config = {.timezone = "UTC", .columns = {rules, 2}, .file = "test.ini"};
	Mapping mapping = {0};

	(void) state;
	fprintf(stderr, "# two errors are expected here:\n");
	assert_int_equal(mapping_build(&mapping, &config, &table), EXIT_TARGET);
	assert_int_equal(config.n_errors, 2);
	mapping_free(&mapping);
}

/* One message through a chain of its own; "" for wanted: it is stored somehow. */
static void
message(Chain *chain, const char *text, const char *headers, const char *wanted)
{
	Message sent = {
		.data = text,
		.n_bytes = strlen(text),
		.headers = headers,
		.n_header_bytes = headers ? strlen(headers) : 0,
		.timestamp_us = NO_TIME,
	};

	decode_message(chain->decoder, &sent);
	char *got = result(chain);
	assert_string_equal(got, wanted);
	free(got);
	/* Decoded again it is the same. */
	decode_again(chain->decoder, &chain->batch);
	got = result(chain);
	assert_string_equal(got, wanted);
	free(got);
	batch_reset(&chain->batch);
}

static void
test_arrays(void **state)
{
	Chain *chain;

	(void) state;
	columns[1].array_delimiter = ',';
	chain = chain_open(FORMAT_JSON, 0, NULL);
	message(chain, "{\"name\": [1, \"a\\\"b\", null, \"\\\\\", true, [], {\"k\": [\"v\"]}]}", NULL,
			"\\N\t{1,\"a\\\\\"b\",NULL,\"\\\\\\\\\",true,{},\"{\\\\\"k\\\\\": [\\\\\"v\\\\\"]}\"}\t\\N\t\\N");
	message(chain, "{\"name\": \"{x}\"}", NULL, "\\N\t{x}\t\\N\t\\N");
	message(chain, "{\"name\": [[[[[[7]]]]]]}", NULL, "\\N\t{{{{{{7}}}}}}\t\\N\t\\N");
	message(chain, "{\"name\": [[[[[[[7]]]]]]]}", NULL,
			"!array of more than 6 dimensions!{\"name\": [[[[[[[7]]]]]]]}");
	chain_close(chain);
	columns[1].is_json_array = true;
	chain = chain_open(FORMAT_JSON, 0, NULL);
	message(chain, "{\"name\": [\"\", 1, [2, {}], null]}", NULL,
			"\\N\t{\"\\\\\"\\\\\"\",1,\"[2, {}]\",NULL}\t\\N\t\\N");
	chain_close(chain);
	columns[1].is_json_array = false;
	columns[1].array_delimiter = 0;
}

static void
test_headers(void **state)
{
	Pair rules[] = {{"name", "$header.a.b default:none", "test.ini", 1}, {"doc", "$headers", "test.ini", 2}};
	Chain *chain = chain_open(FORMAT_JSON, 2, rules);

	(void) state;
	message(chain, "{\"id\": 1, \"a\": {\"b\": 5}}", "{\"a.b\": \"x\\ty\", \"c\": null}",
			"1\tx\\ty\t\\N\t{\"a.b\": \"x\\\\ty\", \"c\": null}");
	message(chain, "{\"id\": 1}", NULL, "1\tnone\t\\N\t\\N");
	message(chain, "{\"id\": 1}", "{\"a.b\": null}", "1\t\\N\t\\N\t{\"a.b\": null}");
	message(chain, "{\"id\": 1}", "{\"a.b\": [\"x\", null]}",
			"1\t[\"x\", null]\t\\N\t{\"a.b\": [\"x\", null]}");
	chain_close(chain);
}

static void
test_nan(void **state)
{
	Chain *chain = chain_open(FORMAT_JSON, 0, NULL);

	(void) state;
	chain->config.json_nan = NAN_TEXT;
	message(chain, "{\"id\":NaN,\"name\":\"\\\"NaN\",\"doc\":[ -Infinity ]}", NULL,
			"NaN\t\"NaN\t\\N\t[ \"-Infinity\" ]");
	message(chain, "{\"id\":-NaN}", NULL,
			"!not JSON: lexical error: malformed number, a digit is required after the minus "
			"sign.!{\"id\":-NaN}");
	chain->config.json_nan = NAN_NULL;
	message(chain, "{\"id\":Infinity,\"name\":\"Infinity\"}", NULL, "\\N\tInfinity\t\\N\t\\N");
	chain_close(chain);
}

/* A value as a rule of the time column reads it. */
static void
formatted(const char *rule, const char *value, const char *wanted)
{
	Pair rules[] = {{"at", (char *) rule, "test.ini", 1}};
	Chain *chain = chain_open(FORMAT_JSON, 1, rules);
	char *text = mem_printf("{\"at\": %s}", value), *all;

	all = wanted ? mem_printf("\\N\t\\N\t%s\t\\N", wanted)
				 : mem_printf("!field \"at\" does not fit %s!%s", rule + 2 + strspn(rule + 2, " "), text);
	message(chain, text, NULL, all);
	free(text);
	free(all);
	chain_close(chain);
}

static void
test_formats(void **state)
{
	(void) state;
	formatted("at format:epoch_s", "1323338706", "2011-12-08 10:05:06.000000+00");
	formatted("at format:epoch_s", "\"-0.5\"", "1969-12-31 23:59:59.500000+00");
	formatted("at format:epoch_s", "1.323338706123456e9", "2011-12-08 10:05:06.123456+00");
	formatted("at format:epoch_s", "-62167219200", "0001-01-01 00:00:00.000000+00 BC");
	formatted("at format:epoch_ms", "1323338706123", "2011-12-08 10:05:06.123000+00");
	formatted("at format:epoch_ms", "\"\"", NULL);
	formatted("at format:epoch_ms", "\"1 \"", NULL);
	formatted("at format:epoch_ms", "true", NULL);
	formatted("at format:epoch_ms", "9223372036854775807", NULL);
	formatted("at format:epoch_us", "-1", "1969-12-31 23:59:59.999999+00");
	formatted("at format:iso", "\"2011-12-08T10:05Z\"", "2011-12-08T10:05Z");
	formatted("at format:iso", "\"now\"", NULL);
	formatted("at format:%d/%m/%Y %H:%M", "\"8/12/2011 10:05\"", "2011-12-08 10:05:00.0");
	formatted("at format:%d/%m/%Y %H:%M", "\"30/2/2011 10:05\"", NULL);
	formatted("at format:%d/%m/%Y %H:%M", "\"8/12/2011 10:05:06\"", NULL);
	formatted("at format:%I.%M,%f %p %Y-%m-%d", "\"10.05,250 PM 2011-12-08\"", "2011-12-08 22:05:00.250");
}

static void
test_growth(void **state)
{
	Chain *chain = chain_open(FORMAT_JSON, 0, NULL);
	const NewColumns *wanted;

	(void) state;
	chain->config.on_unknown_field = UNKNOWN_ADD_COLUMN;
	message(chain, "{\"id\": 1, \"x\": 1, \"y\": {\"id\": 2}, \"z\": null, \"doc\": {\"x\": 1}}", NULL,
			"!no column for field \"y\": it is to be added!"
			"{\"id\": 1, \"x\": 1, \"y\": {\"id\": 2}, \"z\": null, \"doc\": {\"x\": 1}}");
	message(chain, "{\"x\": \"1\"}", NULL, "!no column for field \"x\": it is to be added!{\"x\": \"1\"}");
	wanted = decode_wants(chain->decoder);
	assert_int_equal(wanted->n_columns, 2);
	assert_string_equal(wanted->list[0].name, "x");
	assert_string_equal(wanted->list[0].type, "text");
	assert_string_equal(wanted->list[1].name, "y");
	assert_string_equal(wanted->list[1].type, "jsonb");
	assert_null(decode_wants(chain->decoder));
	message(chain, "{\"x\": \"1\"}", NULL,
			"!no column for field \"x\": one was asked for before!{\"x\": \"1\"}");
	assert_null(decode_wants(chain->decoder));
	chain_close(chain);
}

/* ---- time, text, COPY ---- */

static void
test_time(void **state)
{
	static const struct
	{
		const char *text;
		int64_t time_us; /* NO_TIME: not parsed */
		bool has_zone;
	} cases[] = {
		{"1970-01-01", 0, false},
		{"1970-01-02 00:00:01", DAY_US + 1000000, false},
		{"2011-12-08 10:05:06.5", INT64_C(1323338706500000), false},
		{"2011-12-08T10:05", INT64_C(1323338700000000), false},
		{"2011-12-08T10:05:06Z", INT64_C(1323338706000000), true},
		{"2011-12-08 10:05:06.123456+02", INT64_C(1323331506123456), true},
		{"2011-12-08 10:05:06-05:30", INT64_C(1323358506000000), true},
		{"2011-12-08 10:05:06 +0100", INT64_C(1323335106000000), true},
		{"2000-02-29", INT64_C(951782400000000), false},
		{"1969-12-31 23:59:59.999999", -1, false},
		{"0001-01-01", INT64_C(-62135596800000000), false},
		{"9999-12-31 23:59:59", INT64_C(253402300799000000), false},
		{"2011-12-08 10:05:06.1234565", INT64_C(1323338706123457), false},
		{"2001-02-29", NO_TIME, false},
		{"1900-02-29", NO_TIME, false},
		{"2011-13-01", NO_TIME, false},
		{"2011-12-08 24:00:00", NO_TIME, false},
		{"2011-12-08 10:05:60", NO_TIME, false},
		{"2011-12-08 10:05:06+16", NO_TIME, false},
		{"2011-12-08 10:05:06 CET", NO_TIME, false},
		{"2011-12-08 10", NO_TIME, false},
		{"2011-12-08x", NO_TIME, false},
		{"8.12.2011", NO_TIME, false},
		{"infinity", NO_TIME, false},
		{"now", NO_TIME, false},
		{"", NO_TIME, false},
		{"57971-01-01", NO_TIME, false},
		{"1323338706", NO_TIME, false},
	};

	(void) state;
	for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
	{
		int64_t time_us = NO_TIME;
		bool has_zone, is_parsed;
		/* No NUL behind it: a read too far is seen by a sanitizer. */
		size_t n_bytes = strlen(cases[i].text);
		char *text = malloc(n_bytes ? n_bytes : 1);

		memcpy(text, cases[i].text, n_bytes);
		is_parsed = time_parse(text, n_bytes, &time_us, &has_zone);
		free(text);
		if (is_parsed != (cases[i].time_us != NO_TIME) || (is_parsed && time_us != cases[i].time_us))
			fail_msg("%s: got %lld", cases[i].text, is_parsed ? (long long) time_us : -1LL);
		if (is_parsed)
			assert_int_equal(has_zone, cases[i].has_zone);
	}
}

static void
test_time_format(void **state)
{
	char text[64];

	(void) state;
	time_format(INT64_C(1323338706000007), text, sizeof text);
	assert_string_equal(text, "2011-12-08 10:05:06.000007+00");
	time_format(-1, text, sizeof text);
	assert_string_equal(text, "1969-12-31 23:59:59.999999+00");
}

static void
test_copy_escape(void **state)
{
	char text[300], out[600], wanted[600];
	uint64_t seed = 42;

	(void) state;
	*copy_escape(out, "a\tb\nc\rd\\e\\N", 11) = '\0';
	assert_string_equal(out, "a\\tb\\nc\\rd\\\\e\\\\N");
	*copy_escape(out, "\\.", 2) = '\0';
	assert_string_equal(out, "\\\\.");
	/* Against the obvious way, for all lengths and bytes. */
	for (int round = 0; round < 20000; round++)
	{
		size_t n_bytes = round % 300;
		char *to = wanted;

		for (size_t i = 0; i < n_bytes; i++)
		{
			seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
			text[i] = seed >> 60 == 0 ? "\t\n\r\\"[seed >> 40 & 3] : (char) (seed >> 32);
			if (strchr("\t\n\r\\", text[i]) && text[i])
			{
				*to++ = '\\';
				*to++ = text[i] == '\t' ? 't' : text[i] == '\n' ? 'n' : text[i] == '\r' ? 'r' : '\\';
			}
			else
				*to++ = text[i];
		}
		size_t n_out = (size_t) (copy_escape(out, text, n_bytes) - out);
		assert_int_equal(n_out, to - wanted);
		assert_memory_equal(out, wanted, n_out);
	}
}

static void
test_text_defect(void **state)
{
	size_t at = 0;

	(void) state;
	assert_null(text_defect("plain ascii text", 16, &at));
	assert_null(
		text_defect("\xC2\x80\xDF\xBF\xE0\xA0\x80\xED\x9F\xBF\xF0\x90\x80\x80\xF4\x8F\xBF\xBF", 18, &at));
	const char *bad[] = {"\xC1\xBF",
						 "\xE0\x9F\xBF",
						 "\xED\xA0\x80",
						 "\xF0\x8F\xBF\xBF",
						 "\xF4\x90\x80\x80",
						 "\xF5\x80\x80\x80",
						 "\xC3",
						 "\xE2\x82",
						 "\x80",
						 "\xC3("};
	for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
		assert_string_equal(text_defect(bad[i], strlen(bad[i]), &at), "invalid UTF-8");
	assert_string_equal(text_defect("12345678\0", 9, &at), "NUL character");
	assert_int_equal(at, 8);
}

static void
test_copy_context(void **state)
{
	(void) state;
	assert_int_equal(copy_context_line("COPY t, line 5, column id: \"x\"", "t"), 5);
	assert_int_equal(copy_context_line("COPY t, line 12", "t"), 12);
	assert_int_equal(copy_context_line("COPY t, Zeile 7, Spalte id: \xC2\xBBx\xC2\xAB", "t"), 7);
	assert_int_equal(copy_context_line("PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 9: \"1\"", "t"),
					 9);
	assert_int_equal(copy_context_line("PL/pgSQL function f() line 3 at RAISE", "t"), 0);
	assert_int_equal(copy_context_line("COPY other, line 5", "t"), 0);
	assert_int_equal(copy_context_line("COPY a, line 3, line 8, column x", "a, line 3"), 8);
	assert_int_equal(copy_context_line("", "t"), 0);
	assert_true(copy_context_is_plain("COPY t, line 5, column id: \"PL/pgSQL function f()\"", "t"));
	assert_true(copy_context_has_column("COPY t, line 5, column id: \"x\"", "t"));
	assert_true(copy_context_has_column("COPY t, Zeile 12, Spalte id: \xC2\xBBx\xC2\xAB", "t"));
	assert_true(copy_context_has_column("COPY a, line 3, line 8, column x", "a, line 3"));
	assert_false(copy_context_has_column("COPY t, line 5: \"1,column 2\"", "t"));
	assert_false(copy_context_has_column("COPY t, line 5", "t"));
	assert_false(copy_context_has_column("SQL function \"f\"\nCOPY t, line 5, column id: \"x\"", "t"));
	assert_false(copy_context_is_plain("PL/pgSQL function f() line 3 at RAISE\nCOPY t, line 9: \"1\"", "t"));
	assert_false(copy_context_is_plain("millrace stream \"s\"", "t"));
	assert_false(copy_context_is_plain("COPY other, line 5", "t"));
	assert_false(copy_context_is_plain("", "t"));
}

/* ---- routing ---- */

static void
test_routing(void **state)
{
	Leaf list[] = {
		{.from_us = INT64_MIN, .to_us = 0},
		{.from_us = 0, .to_us = DAY_US},
		{.from_us = DAY_US, .to_us = 2 * DAY_US},
		{.from_us = 5 * DAY_US, .to_us = 6 * DAY_US},
	};
	Table routed = {.is_routed = true, .name = "t"};
	Router router = {.table = &routed, .leaves = {list, 4}, .max_future_us = 365 * DAY_US};

	(void) state;
	assert_int_equal(router_find(&router, -1), 0);
	assert_int_equal(router_find(&router, 0), 1);
	assert_int_equal(router_find(&router, DAY_US - 1), 1);
	assert_int_equal(router_find(&router, DAY_US), 2);
	assert_int_equal(router_find(&router, 3 * DAY_US), LEAF_WANTED);
	assert_int_equal(router_find(&router, 6 * DAY_US), LEAF_WANTED);
	assert_int_equal(router_find(&router, 5 * DAY_US + 1), 3);
	assert_int_equal(router_find(&router, NO_TIME), LEAF_PARENT);
	routed.is_routed = false;
	assert_int_equal(router_find(&router, 0), LEAF_PARENT);
}

static void
test_sane_range(void **state)
{
	Batch batch = {0};
	Table routed = {.is_routed = true, .name = "t"};
	Router router = {.table = &routed, .max_future_us = 365 * DAY_US};
	Message message = {.data = "x", .n_bytes = 1};

	(void) state;
	Row *row = batch_add(&batch, &message);
	row->time_us = clock_us() + 366 * DAY_US;
	router_route(&router, &batch, row);
	assert_non_null(row->dead);
	assert_string_equal(row->dead->stage, "partition");
	row = batch_add(&batch, &message);
	row->time_us = -1;
	router_route(&router, &batch, row);
	assert_non_null(row->dead);
	row = batch_add(&batch, &message);
	row->time_us = clock_us() + 364 * DAY_US;
	router_route(&router, &batch, row);
	assert_null(row->dead);
	assert_int_equal(row->leaf, LEAF_WANTED);
	/* Where no partition would have to be made, any time will do. */
	routed.is_routed = false;
	row = batch_add(&batch, &message);
	row->time_us = -1;
	router_route(&router, &batch, row);
	assert_null(row->dead);
	batch_free(&batch);
	assert_int_equal(start_of_day(-1), -DAY_US);
	assert_int_equal(start_of_day(-DAY_US), -DAY_US);
	assert_int_equal(start_of_day(DAY_US + 1), DAY_US);
}

/* infinity and the like must not make a partition: only the server can read them. */
static void
test_infinity(void **state)
{
	const char *text =
		"{\"id\":1,\"at\":\"infinity\"}\n{\"id\":2,\"at\":\"now\"}\n{\"id\":3,\"at\":1323338706}\n";
	Chain *chain = chain_open(FORMAT_JSON, 0, NULL);
	Router router = {.table = &table};

	(void) state;
	table.is_routed = true;
	feed(chain, text, strlen(text), 1000);
	router_route_all(&router, &chain->batch);
	table.is_routed = false;
	assert_int_equal(chain->batch.n_rows, 3);
	for (int i = 0; i < 3; i++)
		assert_int_equal(chain->batch.rows[i].leaf, LEAF_PARENT);
	assert_string_equal(chain->batch.rows[0].dead->reason, "event time is infinite");
	assert_null(chain->batch.rows[1].dead);
	chain_close(chain);
}

/* ---- arena, names, configuration ---- */

static void
test_arena(void **state)
{
	Arena arena = {0};

	(void) state;
	for (int round = 0; round < 3; round++)
	{
		char *small = arena_copy(&arena, "abc", 3);
		char *large = arena_reserve(&arena, 5 << 20);
		memset(large, 'x', 5 << 20);
		arena_take(&arena, 5 << 20);
		uint64_t *aligned = arena_alloc(&arena, 16);
		assert_int_equal((uintptr_t) aligned & 7, 0);
		for (int i = 0; i < 3000; i++)
			memset(arena_alloc(&arena, 1000), i, 1000);
		assert_memory_equal(small, "abc", 3);
		assert_int_equal(large[(5 << 20) - 1], 'x');
		assert_true(arena.used_bytes > 8000000);
		arena_reset(&arena);
		assert_int_equal(arena.used_bytes, 0);
	}
	/* Large pieces that alternate with small ones must not use up a chunk each. */
	struct ArenaChunk *second = NULL;
	for (int i = 0; i < 100; i++)
	{
		arena_copy(&arena, "abc", 3);
		arena_reserve(&arena, 2 << 20);
		arena_take(&arena, 100);
		second = second ? second : arena.current;
		assert_ptr_equal(arena.current, second);
	}
	arena_free(&arena);
}

static void
test_nearest(void **state)
{
	const char *names[] = {"max_rows", "max_bytes", "max_age"};

	(void) state;
	assert_string_equal(name_nearest("max_row", names, 3), "max_rows");
	assert_string_equal(name_nearest("maxage", names, 3), "max_age");
	assert_null(name_nearest("colour", names, 3));
}

/* Loads a configuration text; returns what was written to standard error. */
static char *
load(const char *text, Config *config, int n_flags, char **flags)
{
	static char path[32]; /* the configuration keeps it as the place of its settings */
	snprintf(path, sizeof path, "/tmp/ingest_test.XXXXXX");
	int file = mkstemp(path), saved = dup(STDERR_FILENO), pipe_ends[2];
	static char errors[8192];

	assert_true(write(file, text, strlen(text)) == (ssize_t) strlen(text));
	close(file);
	fflush(stderr);
	assert_int_equal(pipe(pipe_ends), 0);
	dup2(pipe_ends[1], STDERR_FILENO);
	close(pipe_ends[1]);
	config_load(config, path, n_flags, flags);
	fflush(stderr);
	dup2(saved, STDERR_FILENO);
	close(saved);
	ssize_t n = config->n_errors ? read(pipe_ends[0], errors, sizeof errors - 1) : 0;
	close(pipe_ends[0]);
	errors[n > 0 ? n : 0] = '\0';
	unlink(path);
	return errors;
}

/* A dead letter of decode or partition is nobody's suspicion, whatever an earlier batch left in the arena. */
static void
test_dead_letter_is_final(void **state)
{
	Batch batch = {.max_rows = 10, .max_bytes = 1 << 20};
	Message message = {.data = "oops", .n_bytes = 4};

	(void) state;
	memset(arena_alloc(&batch.arena, 10000), 1, 10000);
	batch_reset(&batch);
	batch_dead_letter(&batch, &message, "decode", "", "not JSON");
	assert_false(batch.rows[0].dead->is_suspect);
	batch_free(&batch);
}

static void
test_config_errors(void **state)
{
	Config config = {0};
	const char *errors =
		load("[source]\ntype = directori\npaht = /x\n[batch]\nmax_row = 5\nmax_age = soon\n[colums]\na = b\n"
			 "nonsense\n[source]\nkafka.enable.auto.commit = true\n",
			 &config, 0, NULL);

	(void) state;
	assert_non_null(strstr(
		errors, ":2: \"directori\" is no value of \"type\": use one of directory, file, stdin, kafka"));
	assert_non_null(strstr(errors, ":3: unknown key \"paht\" in [source]; did you mean \"path\"?"));
	assert_non_null(strstr(errors, ":5: unknown key \"max_row\" in [batch]; did you mean \"max_rows\"?"));
	assert_non_null(strstr(errors, ":6: \"soon\" is not a valid value of \"max_age\""));
	assert_non_null(strstr(errors, ":8: unknown section [colums]; did you mean [columns]?"));
	assert_non_null(strstr(errors, ":9: neither [section] nor key = value"));
	assert_non_null(strstr(errors, ":11: \"kafka.enable.auto.commit\" cannot be set here"));
	assert_non_null(strstr(errors, "\"table\" is missing in [target]"));
	config_free(&config);
}

static void
test_config_precedence(void **state)
{
	Config config = {0};
	char *flags[] = {"--batch.max_rows=7", "--once", "--columns.a=$", "--source.kafka.client.id=x"};
	Buffer text = {0};

	(void) state;
	/* A connection string longer than inih's own limit of a line. */
	buffer_printf(
		&text,
		"[source]\ntype = kafka\ntopic = t\nbrokers = h:1\n[target]\ntable = t\nconnection = host=/x "
		"options='%*s' dbname=last\n[batch]\nmax_rows = 5\nmax_bytes = 2MB\nmax_age = 2s\n",
		900, "-c a=b");
	setenv("MILLRACE_BATCH_MAX_BYTES", "3MB", 1);
	setenv("MILLRACE_SOURCE_KAFKA_FETCH_WAIT_MAX_MS", "5", 1);
	char *errors = load(text.data, &config, 4, flags);
	unsetenv("MILLRACE_BATCH_MAX_BYTES");
	unsetenv("MILLRACE_SOURCE_KAFKA_FETCH_WAIT_MAX_MS");
	assert_string_equal(errors, "");
	assert_int_equal(config.max_rows, 7);
	assert_int_equal(config.max_bytes, 3 << 20);
	assert_int_equal(config.max_age_ms, 2000);
	assert_true(config.once);
	assert_string_equal(config.columns.list[0].value, "$");
	assert_int_equal(config.kafka.n_pairs, 2);
	assert_string_equal(config.kafka.list[0].name, "fetch.wait.max.ms");
	assert_null(config.group); /* the database knows the table's name */
	assert_null(config.name);
	assert_int_equal(config.format, FORMAT_JSON);
	assert_non_null(strstr(config.connection, "dbname=last"));
	buffer_free(&text);
	config_free(&config);
}

/* What SIGHUP takes over, and what two files of one process cannot have both. */
static void
test_config_again(void **state)
{
	const char *first = "[source]\ntype = stdin\n[target]\ntable = t\nretry = 1s\n[batch]\nmax_rows = 5\n";
	const char *second = "[source]\ntype = stdin\n[target]\ntable = u\nretry = 9s\n[batch]\nmax_rows = "
						 "7\n[log]\nlevel = debug\n";
	Config config = {0}, fresh = {0};
	LogLevel level = log_level;

	(void) state;
	assert_string_equal(load(first, &config, 0, NULL), "");
	assert_string_equal(load(second, &fresh, 0, NULL), "");
	log_level = LOG_ERROR;
	config_apply(&config, &fresh);
	log_level = level;
	assert_int_equal(config.max_rows, 7);
	assert_int_equal(config.retry_ms, 9000);
	assert_string_equal(config.table, "t");
	config_agree(&fresh, &config);
	assert_int_equal(fresh.n_errors, 1); /* log.level was taken over, too: only standard input is left */
	config_free(&config);
	config_free(&fresh);
}

/* The open batch goes on where the sealed one ends, at the same places, and neither frees what is the other's. */
static void
test_seal(void **state)
{
	Batch open = {.max_rows = 10, .max_bytes = 1 << 20, .number = 4}, sealed = {0};

	(void) state;
	for (int round = 0; round < 3; round++)
	{
		Message message = {.data = "abc", .n_bytes = 3, .offset = 7 + round, .timestamp_us = NO_TIME};
		int touched = position_find(&open.positions, "t", 1), other = position_find(&open.positions, "t", 2);

		assert_int_equal(touched, 0);
		assert_int_equal(other, 1);
		Position *position = &open.positions.list[touched];
		if (round == 0)
		{
			position->is_assigned = position->is_new = true;
			position->stored = 7;
			position->csv_header = mem_string("a,b");
			open.positions.list[other].is_assigned = open.positions.list[other].is_new = true;
		}
		position->next = 8 + round;
		batch_add(&open, &message);
		batch_seal(&open, &sealed);
		assert_int_equal(sealed.n_rows, 1);
		assert_int_equal(sealed.rows[0].offset, 7 + round);
		assert_memory_equal(sealed.rows[0].raw, "abc", 3);
		assert_int_equal(sealed.positions.list[0].stored, 7 + round);
		assert_int_equal(sealed.positions.list[0].next, 8 + round);
		assert_int_equal(sealed.positions.list[0].is_new, round == 0);
		assert_int_equal(open.n_rows, 0);
		assert_int_equal(open.max_rows, 10);
		assert_int_equal(open.number, 4);
		assert_int_equal(open.positions.list[0].stored, 8 + round);
		assert_false(open.positions.list[0].is_new);
		assert_string_equal(open.positions.list[0].csv_header, "a,b");
		assert_true(open.positions.list[1].is_new); /* nothing of it is in the sealed one */
		batch_reset(&sealed);
	}
	batch_free(&open);
	batch_free(&sealed);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_csv_again),		  cmocka_unit_test(test_arrays),
		cmocka_unit_test(test_headers),			  cmocka_unit_test(test_nan),
		cmocka_unit_test(test_formats),			  cmocka_unit_test(test_growth),
		cmocka_unit_test(test_csv_plain),		  cmocka_unit_test(test_csv_quotes),
		cmocka_unit_test(test_csv_faults),		  cmocka_unit_test(test_csv_nul),
		cmocka_unit_test(test_csv_long_record),	  cmocka_unit_test(test_batch_limit),
		cmocka_unit_test(test_json_values),		  cmocka_unit_test(test_json_faults),
		cmocka_unit_test(test_json_deep),		  cmocka_unit_test(test_mapping),
		cmocka_unit_test(test_mapping_errors),	  cmocka_unit_test(test_time),
		cmocka_unit_test(test_time_format),		  cmocka_unit_test(test_copy_escape),
		cmocka_unit_test(test_text_defect),		  cmocka_unit_test(test_copy_context),
		cmocka_unit_test(test_routing),			  cmocka_unit_test(test_sane_range),
		cmocka_unit_test(test_infinity),		  cmocka_unit_test(test_arena),
		cmocka_unit_test(test_nearest),			  cmocka_unit_test(test_config_errors),
		cmocka_unit_test(test_config_precedence), cmocka_unit_test(test_dead_letter_is_final),
		cmocka_unit_test(test_config_again),	  cmocka_unit_test(test_seal),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
