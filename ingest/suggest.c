/*
 * `millrace check --suggest-table FILE`: a CREATE TABLE for a sample of CSV or JSON lines, with the lines of [columns]
 * that go with it.  Types are chosen so that what follows the sample fits, too: bigint, numeric, timestamptz, text.
 */
#include "ingest.h"

#include <ctype.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SAMPLE_RECORDS 100000
#define MAX_FIELDS 500
#define MAX_MEMBERS 50	  /* an object with more different names is kept whole */
#define MAX_NAME_BYTES 60 /* PostgreSQL's are up to 63; three serve to tell two apart */

/* Forms that a text can have; a field has those that all of its values have. */
enum
{
	FORM_BOOLEAN = 1,
	FORM_BIGINT = 2,
	FORM_NUMERIC = 4,
	FORM_FLOAT = 8, /* with an exponent */
	FORM_TIME = 16, /* ISO 8601 with hours */
	FORM_DATE = 32,
	FORM_UUID = 64,
	FORM_SECONDS = 128, /* since 1970, in the years 2001 to 2065 */
	FORM_MS = 256,
	FORM_US = 512,
	FORM_JSON = 1024, /* object or array */
	FORM_ALL = 2047
};

typedef struct Field
{
	char *path;
	char *name; /* of the column */
	unsigned forms;
	int64_t n_values, n_nulls;
	int n_members;			   /* fields below it */
	bool is_object, is_hidden; /* hidden: a part of a field that is kept whole, or the whole of parts */
} Field;

typedef struct Suggestion
{
	Field *fields;
	int n_fields, next; /* next: the field expected to come */
	int64_t n_records;
	bool is_json, has_too_many;
	const char *table; /* as it was given; NULL: by the file */
	Config csv;		   /* only its csv_ members */
} Suggestion;

/* ---- forms ---- */

static size_t
count_digits(const char *text, size_t n_bytes)
{
	size_t n = 0;

	while (n < n_bytes && text[n] >= '0' && text[n] <= '9')
		n++;
	return n;
}

/* Digits with a point or exponent; what begins with a needless 0 is a code, not a number. */
static unsigned
number_forms(const char *text, size_t n_bytes)
{
	size_t at = n_bytes > 0 && text[0] == '-', n = count_digits(text + at, n_bytes - at);
	unsigned forms = FORM_NUMERIC | FORM_FLOAT;

	if (n == 0 || (n > 1 && text[at] == '0'))
		return 0;
	if (at + n == n_bytes)
	{
		if (n <= 18)
			forms |= FORM_BIGINT;
		if (at == 0 && n == 10 && text[0] < '3')
			forms |= FORM_SECONDS;
		if (at == 0 && n == 13 && text[0] < '3')
			forms |= FORM_MS;
		if (at == 0 && n == 16 && text[0] < '3')
			forms |= FORM_US;
		return forms;
	}
	at += n;
	if (text[at] == '.')
	{
		n = count_digits(text + at + 1, n_bytes - at - 1);
		at += 1 + n;
		if (n == 0)
			return 0;
	}
	if (at < n_bytes && (text[at] == 'e' || text[at] == 'E'))
	{
		forms = FORM_FLOAT;
		at++;
		if (at < n_bytes && (text[at] == '+' || text[at] == '-'))
			at++;
		n = count_digits(text + at, n_bytes - at);
		at += n;
		if (n == 0)
			return 0;
	}
	return at == n_bytes ? forms : 0;
}

static bool
is_uuid(const char *text, size_t n_bytes)
{
	if (n_bytes != 36)
		return false;
	for (size_t i = 0; i < n_bytes; i++)
		if (i == 8 || i == 13 || i == 18 || i == 23 ? text[i] != '-' : !isxdigit((unsigned char) text[i]))
			return false;
	return true;
}

static unsigned
text_forms(const char *text, size_t n_bytes)
{
	unsigned forms = number_forms(text, n_bytes);
	int64_t time_us;
	bool has_zone;

	if ((n_bytes == 4 && strncasecmp(text, "true", 4) == 0) ||
		(n_bytes == 5 && strncasecmp(text, "false", 5) == 0))
		forms |= FORM_BOOLEAN;
	if (n_bytes > 14 && memcmp(text + n_bytes - 4, " UTC", 4) == 0)
		n_bytes -= 4;
	if (time_parse(text, n_bytes, &time_us, &has_zone))
		forms |= n_bytes == 10 ? FORM_DATE | FORM_TIME : FORM_TIME;
	if (is_uuid(text, n_bytes))
		forms |= FORM_UUID;
	return forms;
}

/* ---- what the sample holds ---- */

static Field *
field_of(Suggestion *suggestion, const char *path)
{
	/* They mostly come in the order of the record before. */
	for (int n = 0; n < suggestion->n_fields; n++)
	{
		int i = (suggestion->next + n) % suggestion->n_fields;

		if (strcmp(suggestion->fields[i].path, path) != 0)
			continue;
		suggestion->next = i + 1;
		return &suggestion->fields[i];
	}
	if (suggestion->n_fields == MAX_FIELDS)
	{
		suggestion->has_too_many = true;
		return NULL;
	}
	suggestion->fields = mem_grow(suggestion->fields, (size_t) suggestion->n_fields + 1, sizeof(Field));
	Field *field = &suggestion->fields[suggestion->n_fields++];
	*field = (Field){.path = mem_string(path), .forms = FORM_ALL};
	return field;
}

static void
see(Field *field, bool is_null, unsigned forms)
{
	if (field == NULL)
		return;
	field->n_nulls += is_null;
	if (is_null)
		return;
	field->n_values++;
	field->forms &= forms;
}

static void
on_member(void *context, const JsonMember *member)
{
	Suggestion *suggestion = context;

	if (member->path[0] == '\0')
		return;
	Field *field = field_of(suggestion, member->path);
	/* What the sender writes as a string is no number, however it looks. */
	see(field, member->kind == JSON_NULL,
		member->kind == JSON_OBJECT || member->kind == JSON_ARRAY
			? FORM_JSON
			: text_forms(member->text, member->n_text_bytes) &
				(member->kind == JSON_STRING ? FORM_TIME | FORM_DATE | FORM_UUID : FORM_ALL));
	if (field != NULL && member->kind == JSON_OBJECT)
		field->is_object = true;
}

static bool
header_is_text(const Records *records)
{
	size_t at;

	for (int i = 0; i < records->n_names; i++)
		if (text_defect(records->names[i], strlen(records->names[i]), &at) != NULL)
			return false;
	return true;
}

static bool
read_sample(Suggestion *suggestion, Records *records)
{
	JsonWalker *walker = json_walker_open(on_member, suggestion);
	const char *record;
	size_t n_bytes, at;

	while (suggestion->n_records < SAMPLE_RECORDS && records_next(records, &record, &n_bytes))
	{
		suggestion->is_json = records->format == FORMAT_JSON;
		suggestion->next = 0;
		if (!header_is_text(records))
		{
			log_line(LOG_ERROR, "%s: its header is not UTF-8 text", records_file(records));
			records->has_failed = true;
			break;
		}
		if (text_defect(record, n_bytes, &at) != NULL)
		{
			records_skip(records, "not UTF-8 text");
			continue;
		}
		if (suggestion->is_json ? !json_walk(walker, record, n_bytes) || record[strspn(record, " \t")] != '{'
								: records->n_fields != records->n_names)
		{
			records_skip(records,
						 suggestion->is_json ? "not a JSON object on one line" : "wrong number of fields");
			continue;
		}
		suggestion->n_records++;
		for (int i = 0; !suggestion->is_json && i < records->n_names; i++)
			see(field_of(suggestion, records->names[i]), records->fields[i].kind == VALUE_NULL,
				text_forms(records->fields[i].data, records->fields[i].n_bytes));
	}
	json_walker_close(walker);
	return !records->has_failed;
}

/* An object becomes columns of its members, or stays whole when they are too many or it is not always one. */
static void
choose_parts(Suggestion *suggestion)
{
	for (int i = 0; suggestion->is_json && i < suggestion->n_fields; i++)
	{
		Field *whole = &suggestion->fields[i];
		size_t n_path = strlen(whole->path);
		bool splits;

		if (!whole->is_object)
			continue;
		for (int f = 0; f < suggestion->n_fields; f++)
			whole->n_members += strncmp(suggestion->fields[f].path, whole->path, n_path) == 0 &&
				suggestion->fields[f].path[n_path] == '.';
		splits = whole->forms == FORM_JSON && whole->n_members > 0 && whole->n_members <= MAX_MEMBERS &&
			!whole->is_hidden;
		for (int f = 0; !splits && f < suggestion->n_fields; f++)
			if (strncmp(suggestion->fields[f].path, whole->path, n_path) == 0 &&
				suggestion->fields[f].path[n_path] == '.')
				suggestion->fields[f].is_hidden = true;
		whole->is_hidden |= splits;
	}
}

/* No line of [columns] can name it. */
static bool
is_unnameable(const char *path)
{
	size_t n_bytes = strlen(path);

	return n_bytes == 0 || path[0] == '$' || path[0] == ' ' || path[n_bytes - 1] == ' ' ||
		strstr(path, " default:") != NULL || strstr(path, " format:") != NULL ||
		strpbrk(path, "\r\n") != NULL;
}

/* ---- names ---- */

/* "CustomerID", "user.id", "Unit Price" -> customer_id, user_id, unit_price. */
static char *
snake_case(const char *text)
{
	Buffer name = {0};

	for (const char *c = text; *c && name.n_bytes < MAX_NAME_BYTES; c++)
	{
		bool is_word = isalnum((unsigned char) *c) || (unsigned char) *c >= 0x80;
		bool begins = isupper((unsigned char) *c) && c > text &&
			(islower((unsigned char) c[-1]) || isdigit((unsigned char) c[-1]));

		if ((!is_word || begins) && name.n_bytes > 0 && name.data[name.n_bytes - 1] != '_')
			buffer_add(&name, "_", 1);
		if (is_word)
			buffer_printf(&name, "%c", tolower((unsigned char) *c));
	}
	while (name.n_bytes > 0 && name.data[name.n_bytes - 1] == '_')
		name.n_bytes--;
	/* A character is not cut in two. */
	size_t at;
	while (name.n_bytes > 0 && text_defect(name.data, name.n_bytes, &at) != NULL)
		name.n_bytes--;
	char *result = name.n_bytes == 0			? mem_string("field")
		: isdigit((unsigned char) name.data[0]) ? mem_printf("_%.*s", (int) name.n_bytes, name.data)
												: mem_printf("%.*s", (int) name.n_bytes, name.data);
	buffer_free(&name);
	return result;
}

static void
choose_names(Suggestion *suggestion)
{
	for (int i = 0; i < suggestion->n_fields; i++)
	{
		char *base = snake_case(suggestion->fields[i].path), *name = mem_string(base);
		bool is_taken = !suggestion->fields[i].is_hidden;

		for (int n = 2; is_taken; n++)
		{
			is_taken = false;
			for (int f = 0; f < i; f++)
				is_taken |= !suggestion->fields[f].is_hidden && strcmp(suggestion->fields[f].name, name) == 0;
			if (!is_taken)
				break;
			free(name);
			name = mem_printf("%s_%d", base, n);
		}
		free(base);
		suggestion->fields[i].name = name;
	}
}

static int
compare_words(const void *a, const void *b)
{
	return strcmp(*(const char *const *) a, *(const char *const *) b);
}

/* Adds text between two quotes, those in it doubled. */
static void
add_quoted(Buffer *out, char quote, const char *text)
{
	buffer_add(out, &quote, 1);
	for (; *text; text++)
	{
		buffer_add(out, &quote, *text == quote);
		buffer_add(out, text, 1);
	}
	buffer_add(out, &quote, 1);
}

/* A name as SQL takes it: quoted where it is not all of lower case, or a reserved word. */
static void
add_name(Buffer *out, const char *name)
{
	static const char *const reserved[] = {"all",		   "analyse",
										   "analyze",	   "and",
										   "any",		   "array",
										   "as",		   "asc",
										   "asymmetric",   "both",
										   "case",		   "cast",
										   "check",		   "collate",
										   "column",	   "constraint",
										   "create",	   "current_catalog",
										   "current_date", "current_role",
										   "current_time", "current_timestamp",
										   "current_user", "default",
										   "deferrable",   "desc",
										   "distinct",	   "do",
										   "else",		   "end",
										   "except",	   "false",
										   "fetch",		   "for",
										   "foreign",	   "from",
										   "grant",		   "group",
										   "having",	   "in",
										   "initially",	   "intersect",
										   "into",		   "lateral",
										   "leading",	   "limit",
										   "localtime",	   "localtimestamp",
										   "not",		   "null",
										   "offset",	   "on",
										   "only",		   "or",
										   "order",		   "placing",
										   "primary",	   "references",
										   "returning",	   "select",
										   "session_user", "some",
										   "symmetric",	   "system_user",
										   "table",		   "then",
										   "to",		   "trailing",
										   "true",		   "union",
										   "unique",	   "user",
										   "using",		   "variadic",
										   "when",		   "where",
										   "window",	   "with"};
	bool is_plain = bsearch(&name, reserved, sizeof reserved / sizeof reserved[0], sizeof reserved[0],
							compare_words) == NULL;

	for (const char *c = name; *c; c++)
		is_plain &= islower((unsigned char) *c) || *c == '_' || (c > name && isdigit((unsigned char) *c));
	if (is_plain)
		buffer_add(out, name, strlen(name));
	else
		add_quoted(out, '"', name);
}

/* ---- types ---- */

/* Numbers are taken for times only where the name says so. */
static bool
is_named_time(const Field *field)
{
	static const char *const ends[] = {"time", "timestamp", "_at", "_ts", "date", "_on"};
	size_t n_name = strlen(field->name);

	for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
		if (n_name >= strlen(ends[i]) && strcmp(field->name + n_name - strlen(ends[i]), ends[i]) == 0)
			return true;
	return strcmp(field->name, "ts") == 0 || strcmp(field->name, "at") == 0;
}

/* What goes behind format: in [columns], or NULL. */
static const char *
epoch_of(const Field *field)
{
	if (field->n_values == 0 || !is_named_time(field))
		return NULL;
	return field->forms & FORM_SECONDS ? "epoch_s"
		: field->forms & FORM_MS	   ? "epoch_ms"
		: field->forms & FORM_US	   ? "epoch_us"
									   : NULL;
}

static const char *
type_of(const Field *field)
{
	static const struct
	{
		unsigned form;
		const char *type;
	} types[] = {{FORM_BOOLEAN, "boolean"}, {FORM_BIGINT, "bigint"},
				 {FORM_NUMERIC, "numeric"}, {FORM_FLOAT, "double precision"},
				 {FORM_DATE, "date"},		{FORM_TIME, "timestamptz"},
				 {FORM_UUID, "uuid"},		{FORM_JSON, "jsonb"}};

	if (field->is_object)
		return "jsonb";
	if (epoch_of(field) != NULL)
		return "timestamptz";
	for (size_t i = 0; field->n_values > 0 && i < sizeof types / sizeof types[0]; i++)
		if (field->forms & types[i].form)
			return types[i].type;
	return "text";
}

/* The column that holds the event time, or NULL: it is in every record; one named so, else the first. */
static const Field *
time_field(const Suggestion *suggestion)
{
	static const char *const types[] = {"timestamptz", "date"};
	const Field *best = NULL;

	for (int t = 0; t < 2 && best == NULL; t++)
		for (int i = 0; i < suggestion->n_fields; i++)
		{
			const Field *field = &suggestion->fields[i];

			if (field->is_hidden || strcmp(type_of(field), types[t]) != 0 ||
				field->n_values < suggestion->n_records)
				continue;
			if (best == NULL ||
				(strncmp(field->name, "event", 5) == 0 && strncmp(best->name, "event", 5) != 0))
				best = field;
		}
	return best;
}

/* ---- the answer ---- */

/* Does the column take this field without a line in [columns]? */
static bool
is_found_by_name(const Suggestion *suggestion, const Field *field)
{
	return suggestion->is_json ? strcmp(field->name, field->path) == 0
							   : strcasecmp(field->name, field->path) == 0;
}

static void
add_mapping(const Suggestion *suggestion, const Records *records, Buffer *out)
{
	char delimiter = records->csv->csv_delimiter[0];
	size_t n_before = out->n_bytes;
	bool is_first = true;

	buffer_printf(out, "\n-- In the ingester's file:\n");
	size_t n_head = out->n_bytes;
	if (suggestion->is_json)
		buffer_printf(out, "-- [source]\n-- format = json\n");
	else if (delimiter != ',')
		buffer_printf(out, "-- [csv]\n-- delimiter = %.*s\n", delimiter == '\t' ? 2 : 1,
					  delimiter == '\t' ? "\\t" : &delimiter);
	for (int i = 0; i < suggestion->n_fields; i++)
	{
		const Field *field = &suggestion->fields[i];
		const char *epoch = epoch_of(field);

		if (field->is_hidden || (is_found_by_name(suggestion, field) && epoch == NULL))
			continue;
		buffer_printf(out, "%s-- %s = %s%s%s\n", is_first ? "-- [columns]\n" : "", field->name, field->path,
					  epoch ? " format:" : "", epoch ? epoch : "");
		is_first = false;
	}
	if (out->n_bytes == n_head)
		out->n_bytes = n_before;
}

static void
add_table(const Suggestion *suggestion, const char *table, Buffer *out)
{
	const Field *time = time_field(suggestion);
	Buffer name = {0};
	int n_columns = 0;

	if (suggestion->table != NULL)
		buffer_printf(&name, "%s", table);
	else
		add_name(&name, table);
	buffer_printf(&name, "%s", "");
	buffer_printf(out, "CREATE TABLE %s (", name.data);
	for (int i = 0; i < suggestion->n_fields; i++)
	{
		const Field *field = &suggestion->fields[i];

		if (field->is_hidden)
			continue;
		buffer_printf(out, "%s\n\t", n_columns++ ? "," : "");
		add_name(out, field->name);
		buffer_printf(out, " %s%s", type_of(field), field == time ? " NOT NULL" : "");
	}
	buffer_printf(out, "\n)");
	if (time != NULL)
	{
		buffer_printf(out, " PARTITION BY RANGE (");
		add_name(out, time->name);
		buffer_printf(out, ");\nSELECT millrace.create_source(");
		add_quoted(out, '\'', name.data);
		buffer_printf(out, ", ");
		add_quoted(out, '\'', time->name);
		buffer_printf(out, ")");
	}
	buffer_printf(out, ";\n");
	buffer_free(&name);
}

static void
print_suggestion(const Suggestion *suggestion, const char *table, const Records *records)
{
	Buffer out = {0};

	buffer_printf(&out, "-- Proposed by millrace from %" PRId64 " records of %s", suggestion->n_records,
				  records_file(records));
	if (records->n_skipped > 0)
		buffer_printf(&out, "; %" PRId64 " could not be read", records->n_skipped);
	buffer_printf(&out, ".\n");
	add_table(suggestion, table, &out);
	if (suggestion->has_too_many)
		buffer_printf(&out, "-- There are more than %d fields; the others are left out.\n", MAX_FIELDS);
	for (int i = 0; i < suggestion->n_fields; i++)
		if (is_unnameable(suggestion->fields[i].path))
		{
			buffer_printf(&out, "-- Left out, because no line of [columns] can name it: ");
			add_quoted(&out, '"', suggestion->fields[i].path);
			buffer_printf(&out, "\n");
		}
	add_mapping(suggestion, records, &out);
	fwrite(out.data, 1, out.n_bytes, stdout);
	buffer_free(&out);
}

static void
help(FILE *out)
{
	fputs(
		"millrace check --suggest-table FILE [--table=NAME] [--format=csv|json] [--delimiter=CHARACTER] "
		"[--null=TEXT]\n\n"
		"Proposes a table for CSV with a header or JSON lines, from the first 100,000 records, and the lines "
		"of [columns]\n"
		"that go with it.  Nothing is asked of a database.  NAME is written as in SQL.  Without --delimiter "
		"the first line\ntells: comma, semicolon, tab or bar.\n",
		out);
}

/* File's name without folder and endings. */
static char *
table_of(const char *file)
{
	const char *slash = strrchr(file, '/'), *name = slash ? slash + 1 : file;
	char *stem = mem_printf("%.*s", (int) strcspn(name, "."), name);
	char *table = snake_case(*stem && strcmp(stem, "-") != 0 ? stem : "events");

	free(stem);
	return table;
}

ExitCode
suggest_table(int argc, char **argv)
{
	static const struct option options[] = {{"suggest-table", required_argument, NULL, 's'},
											{"table", required_argument, NULL, 't'},
											{"format", required_argument, NULL, 'f'},
											{"delimiter", required_argument, NULL, 'd'},
											{"null", required_argument, NULL, 'n'},
											{"help", no_argument, NULL, 'h'},
											{0}};
	char delimiter[] = ",", null[] = "", quote[] = "\"";
	Config csv = {.csv_delimiter = delimiter, .csv_null = null, .csv_quote = quote, .csv_escape = quote};
	Suggestion suggestion = {0};
	Records records = {.format = -1, .found_delimiter = delimiter};
	ExitCode code = EXIT_DONE;
	char *file = NULL;
	int option;

	while ((option = getopt_long(argc, argv, "h", options, NULL)) != -1)
		switch (option)
		{
			case 's':
				file = optarg;
				break;
			case 't':
				suggestion.table = optarg;
				break;
			case 'f':
				records.format = strcmp(optarg, "csv") == 0 ? FORMAT_CSV
					: strcmp(optarg, "json") == 0			? FORMAT_JSON
															: -1;
				if (records.format < 0)
					code = EXIT_USAGE;
				break;
			case 'd':
				delimiter[0] = strcmp(optarg, "\\t") == 0 ? '\t' : optarg[0];
				records.found_delimiter = NULL;
				break;
			case 'n':
				csv.csv_null = optarg;
				break;
			case 'h':
				help(stdout);
				return EXIT_DONE;
			default:
				code = EXIT_USAGE;
		}
	if (file != NULL && strcmp(file, "--help") == 0)
	{
		help(stdout);
		return EXIT_DONE;
	}
	if (code != EXIT_DONE || file == NULL || optind != argc || delimiter[0] == '\0')
	{
		help(stderr);
		return EXIT_USAGE;
	}
	char *table = suggestion.table ? mem_string(suggestion.table) : table_of(file);
	records_open(&records, &file, 1, &csv);
	if (!read_sample(&suggestion, &records))
		code = EXIT_SOURCE;
	else if (suggestion.n_records == 0)
	{
		log_line(LOG_ERROR, "%s: there is no record", records_file(&records));
		code = EXIT_SOURCE;
	}
	else
	{
		choose_parts(&suggestion);
		for (int i = 0; i < suggestion.n_fields; i++)
			suggestion.fields[i].is_hidden |= is_unnameable(suggestion.fields[i].path);
		choose_names(&suggestion);
		print_suggestion(&suggestion, table, &records);
	}
	records_close(&records);
	for (int i = 0; i < suggestion.n_fields; i++)
	{
		free(suggestion.fields[i].path);
		free(suggestion.fields[i].name);
	}
	free(suggestion.fields);
	free(table);
	return code;
}
