/*
 * The records of files, one after the other: CSV with a header, or JSON lines, plain or gzipped.  For what reads files
 * without storing them: produce.c and suggest.c.
 */
#include "ingest.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#define READ_BYTES 65536
#define MAX_RECORD_BYTES ((size_t) 512 << 20)

static void __attribute__((format(printf, 2, 3))) fail(Records *records, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	log_line(LOG_ERROR, "%s: %s", records_file(records), text);
	records->has_failed = true;
}

const char *
records_file(const Records *records)
{
	int last =
		records->file < records->n_files ? records->file : records->n_files - 1; /* behind all: the last */
	const char *name = records->files[last];

	return strcmp(name, "-") == 0 ? "standard input" : name;
}

/* Reads more behind what is there; false at the end of the file. */
static bool
read_more(Records *records)
{
	Buffer *input = &records->input;

	if (records->at > 0)
	{
		memmove(input->data, input->data + records->at, input->n_bytes - records->at);
		input->n_bytes -= records->at;
		records->at = 0;
	}
	if (input->n_bytes > MAX_RECORD_BYTES)
	{
		fail(records, "a record is longer than 512 MB");
		return false;
	}
	/* A long record is looked at again from its beginning, so each time much more of it is there. */
	size_t room = READ_BYTES + input->n_bytes / 2;
	int n = gzread(records->stream, buffer_room(input, room), (unsigned) room);
	int code;
	const char *text = gzerror(records->stream, &code);
	if (n < 0 || (n == 0 && code == Z_BUF_ERROR))
		fail(records, "cannot read: %s",
			 code == Z_ERRNO		   ? strerror(errno)
				 : code == Z_BUF_ERROR ? "the gzipped file ends too early"
									   : text);
	if (n <= 0)
		return false;
	input->n_bytes += (size_t) n;
	return true;
}

void
records_skip(Records *records, const char *reason)
{
	if (records->n_skipped++ == 0)
		log_line(LOG_WARNING, "%s: a record is left out: %s", records_file(records), reason);
}

/* The next record without its line end; false at the end of the file.  It lives until the next call. */
static bool
read_record(Records *records, const char **record, size_t *n_bytes)
{
	Buffer *input = &records->input;

	while (!records->has_failed)
	{
		const char *data = input->data + records->at, *reason = NULL, *line_end;
		size_t n_there = input->n_bytes - records->at, used = 0;
		bool is_complete = false;

		if (n_there > 0 && records->format == FORMAT_CSV)
		{
			records->n_fields = decode_split(records->splitter, data, n_there, records->is_all, &used,
											 &records->fields, &reason);
			is_complete = records->n_fields != 0;
		}
		else if (n_there > 0)
		{
			line_end = memchr(data, '\n', n_there);
			is_complete = line_end != NULL || records->is_all;
			used = line_end ? (size_t) (line_end + 1 - data) : n_there;
		}
		if (is_complete)
		{
			records->at += used;
			*record = data;
			*n_bytes = line_bytes(data, used);
			if (reason == NULL && *n_bytes > 0)
				return true;
			if (reason != NULL)
				records_skip(records, reason);
		}
		else if (records->is_all)
			return false;
		else
			records->is_all = !read_more(records);
	}
	return false;
}

static void
add_name(Records *records, const char *name, size_t n_bytes)
{
	records->names = mem_grow(records->names, (size_t) records->n_names + 1, sizeof(char *));
	records->names[records->n_names++] = mem_printf("%.*s", (int) n_bytes, name);
}

/* Names of the CSV columns from the header, which all files share, or from --columns. */
static void
take_header(Records *records)
{
	const char *list = records->columns, *record;
	bool is_first = records->n_names == 0;
	size_t n_bytes;

	if (list == NULL)
	{
		if (!read_record(records, &record, &n_bytes))
			return;
		if (!is_first &&
			(n_bytes != records->header.n_bytes || memcmp(record, records->header.data, n_bytes) != 0))
			fail(records, "its header is not that of the file before");
		for (int i = 0; is_first && i < records->n_fields; i++)
			add_name(records, records->fields[i].data, records->fields[i].n_bytes);
		if (is_first)
			buffer_add(&records->header, record, n_bytes);
	}
	while (is_first && list != NULL && *list)
	{
		size_t n_name = strcspn(list, ",");

		add_name(records, list, n_name);
		list += n_name + (list[n_name] == ',');
	}
}

static void
decide_format(Records *records)
{
	const Buffer *input = &records->input;
	size_t at = records->at;

	while (at < input->n_bytes && strchr(" \t\r\n", input->data[at]))
		at++;
	records->format =
		at < input->n_bytes && (input->data[at] == '{' || input->data[at] == '[') ? FORMAT_JSON : FORMAT_CSV;
}

/* Takes for the delimiter what the first line has most of, outside of quotes; a comma where it has none. */
static void
find_delimiter(Records *records)
{
	static const char choices[] = ",;\t|";
	size_t counts[sizeof choices] = {0}, best = 0;
	bool is_quoted = false;

	for (size_t at = records->at; at < records->input.n_bytes; at++)
	{
		char c = records->input.data[at];
		const char *choice = strchr(choices, c);

		if (c == '\n' && !is_quoted)
			break;
		is_quoted ^= c == '"';
		if (!is_quoted && c != '\0' && choice != NULL)
			counts[choice - choices]++;
	}
	for (size_t i = 1; choices[i]; i++)
		if (counts[i] > counts[best])
			best = i;
	records->found_delimiter[0] = choices[best];
	decoder_free(records->splitter);
	records->splitter = decoder_open_split(records->csv);
}

static void
open_file(Records *records)
{
	const char *name = records->files[records->file];

	/* What zlib does not know as gzip it hands through. */
	records->stream = strcmp(name, "-") == 0 ? gzdopen(dup(STDIN_FILENO), "rb") : gzopen(name, "rb");
	records->input.n_bytes = records->at = 0;
	records->is_all = false;
	if (records->stream == NULL)
	{
		fail(records, "cannot read: %s", strerror(errno));
		return;
	}
	records->is_all = !read_more(records);
	if (records->input.n_bytes >= 3 && memcmp(records->input.data, "\xEF\xBB\xBF", 3) == 0)
		records->at = 3; /* spreadsheets write a byte-order mark */
	if (records->format < 0 && !records->has_failed)
		decide_format(records);
	if (records->format == FORMAT_CSV && !records->has_failed && records->found_delimiter != NULL)
		find_delimiter(records);
	if (records->format == FORMAT_CSV && !records->has_failed)
		take_header(records);
}

void
records_rewind(Records *records)
{
	if (records->stream != NULL)
		gzclose(records->stream);
	records->stream = NULL;
	records->file = 0;
}

bool
records_next(Records *records, const char **record, size_t *n_bytes)
{
	while (!records->has_failed && records->file < records->n_files)
	{
		if (records->stream == NULL)
			open_file(records);
		if (!records->has_failed && read_record(records, record, n_bytes))
			return true;
		if (records->stream != NULL)
			gzclose(records->stream);
		records->stream = NULL;
		records->file++;
	}
	return false;
}

bool
records_split(Records *records, const char *record, size_t n_bytes)
{
	const char *reason;
	size_t used;

	records->n_fields =
		decode_split(records->splitter, record, n_bytes, true, &used, &records->fields, &reason);
	return records->n_fields == records->n_names;
}

void
records_open(Records *records, char **files, int n_files, const Config *csv)
{
	records->files = files;
	records->n_files = n_files;
	records->csv = csv;
	records->splitter = decoder_open_split(csv);
}

void
records_close(Records *records)
{
	records_rewind(records);
	decoder_free(records->splitter);
	for (int i = 0; i < records->n_names; i++)
		free(records->names[i]);
	free(records->names);
	buffer_free(&records->input);
	buffer_free(&records->header);
}
