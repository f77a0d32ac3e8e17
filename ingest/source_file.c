/*
 * Bytes from a directory, a file or standard input.  One file is one batch unless it needs more memory than
 * batch.max_bytes.  A file's position is (its name, next byte); a file whose position is its size has been consumed.
 */
#include "ingest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES ((size_t) 1 << 18)
#define MARK "\xEF\xBB\xBF" /* byte-order mark: spreadsheets begin a file with it */

struct FileSource
{
	const Config *config;
	Writer *writer;
	Decoder *decoder;
	Batch *batch;
	/* directory */
	char **names; /* to be read, in order */
	int n_names, next_name;
	Positions known; /* by name */
	bool is_known, has_warned_short, has_warned_name;
	bool needs_bytes; /* what is in data is less than a record */
	size_t used;	  /* of data, already decoded */
	int n_done, n_total;
	/* the open file */
	int fd; /* -1: none */
	char *path;
	int32_t position;
	Buffer data;	/* read and not yet decoded */
	int64_t offset; /* of data in the file */
	bool at_end;
};

/* ---- directory ---- */

static bool
is_wanted(const Config *config, const char *name)
{
	return name[0] != '.' && fnmatch(config->pattern, name, 0) == 0;
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/* Where name stands among the known ones, or would. */
static int
known_slot(const FileSource *source, const char *name)
{
	int low = 0, high = source->known.n_positions;

	while (low < high)
	{
		int middle = low + (high - low) / 2;

		if (strcmp(source->known.list[middle].topic, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static int64_t
known_offset(const FileSource *source, const char *name)
{
	int slot = known_slot(source, name);

	if (slot < source->known.n_positions && strcmp(source->known.list[slot].topic, name) == 0)
		return source->known.list[slot].stored;
	return 0;
}

static void
known_put(FileSource *source, const char *name, int64_t offset)
{
	Positions *known = &source->known;
	int slot = known_slot(source, name);

	if (slot == known->n_positions || strcmp(known->list[slot].topic, name) != 0)
	{
		known->list = mem_grow(known->list, (size_t) known->n_positions + 1, sizeof(Position));
		memmove(&known->list[slot + 1], &known->list[slot],
				sizeof(Position) * (size_t) (known->n_positions - slot));
		known->n_positions++;
		known->list[slot] = (Position){.topic = mem_string(name)};
	}
	known->list[slot].stored = offset;
}

static void
names_clear(FileSource *source)
{
	for (int i = 0; i < source->n_names; i++)
		free(source->names[i]);
	source->n_names = source->next_name = 0;
}

/* Lists the files that have bytes not yet stored, in the order of their names. */
static ExitCode
scan(FileSource *source)
{
	DIR *directory = opendir(source->config->path);
	struct dirent *entry;

	if (directory == NULL)
	{
		log_line(LOG_ERROR, "cannot read directory \"%s\": %s", source->config->path, strerror(errno));
		return EXIT_SOURCE;
	}
	names_clear(source);
	source->n_done = 0;
	while ((errno = 0, entry = readdir(directory)) != NULL)
	{
		struct stat about;

		size_t at;

		if (!is_wanted(source->config, entry->d_name))
			continue;
		if (text_defect(entry->d_name, strlen(entry->d_name), &at) != NULL)
		{
			if (!source->has_warned_name)
				log_line(LOG_WARNING,
						 "the name of file \"%s\" is not UTF-8: it is not read, nor are others like it",
						 entry->d_name);
			source->has_warned_name = true;
			continue;
		}
		if (fstatat(dirfd(directory), entry->d_name, &about, 0) != 0 || !S_ISREG(about.st_mode) ||
			about.st_size == 0)
			continue;
		int64_t offset = known_offset(source, entry->d_name);
		if (offset > about.st_size)
		{
			/* Once, not at every search of the directory: the same position again does not warn. */
			if (!source->has_warned_short)
				log_line(LOG_WARNING,
						 "file \"%s\" is shorter than what was read from it, and is not read; give new data "
						 "a new name",
						 entry->d_name);
			source->has_warned_short = true;
		}
		if (offset >= about.st_size)
		{
			source->n_done++;
			continue;
		}
		source->names = mem_grow(source->names, (size_t) source->n_names + 1, sizeof(char *));
		source->names[source->n_names++] = mem_string(entry->d_name);
	}
	int error = errno;
	closedir(directory);
	if (error != 0)
	{
		log_line(LOG_ERROR, "cannot read directory \"%s\": %s", source->config->path, strerror(error));
		return EXIT_SOURCE;
	}
	qsort(source->names, (size_t) source->n_names, sizeof(char *), compare_names);
	source->n_total = source->n_done + source->n_names;
	return EXIT_DONE;
}

/* ---- files ---- */

/* Reads once more into the buffer.  False when reading fails; at_end is set when there is no more. */
static bool
fill(FileSource *source, int64_t wait)
{
	struct pollfd ready = {.fd = source->fd, .events = POLLIN};

	if (source->config->type == SOURCE_STDIN && poll(&ready, 1, (int) wait) <= 0)
		return true;
	char *room = buffer_room(&source->data, READ_BYTES);
	ssize_t n = read(source->fd, room, READ_BYTES);
	if (n < 0 && errno != EINTR && errno != EAGAIN)
	{
		log_line(LOG_ERROR, "cannot read \"%s\": %s", source->path, strerror(errno));
		return false;
	}
	if (n == 0)
		source->at_end = true;
	if (n > 0)
		source->data.n_bytes += (size_t) n;
	return true;
}

static void
consume(FileSource *source, size_t n_bytes)
{
	memmove(source->data.data, source->data.data + n_bytes, source->data.n_bytes - n_bytes);
	source->data.n_bytes -= n_bytes;
	source->offset += (int64_t) n_bytes;
}

/* The decoded bytes leave the buffer: once a read, however many batches it gave. */
static void
compact(FileSource *source)
{
	if (source->used > 0)
		consume(source, source->used);
	source->used = 0;
}

static void
close_file(FileSource *source)
{
	source->used = 0;
	source->needs_bytes = true;
	if (source->fd > 0)
		close(source->fd);
	source->fd = -1;
	free(source->path);
	source->path = NULL;
	source->data.n_bytes = 0;
}

/* Behind the header and what is stored already.  The batch is empty. */
static ExitCode
seek_stored(FileSource *source, int64_t n_header)
{
	Position *position = &source->batch->positions.list[source->position];

	if (position->next < n_header)
	{
		position->next = n_header;
		source->batch->has_moved = true;
	}
	if (source->config->type == SOURCE_STDIN || position->next == source->offset)
		return EXIT_DONE;
	if (position->next >= source->offset && position->next <= source->offset + (int64_t) source->data.n_bytes)
	{
		consume(source, (size_t) (position->next - source->offset));
		return EXIT_DONE;
	}
	if (lseek(source->fd, position->next, SEEK_SET) < 0)
	{
		log_line(LOG_ERROR, "cannot read \"%s\" from byte %" PRId64 ": %s", source->path, position->next,
				 strerror(errno));
		return EXIT_SOURCE;
	}
	source->data.n_bytes = 0;
	source->offset = position->next;
	source->at_end = false;
	return EXIT_DONE;
}

static ExitCode
read_header(FileSource *source)
{
	ExitCode code = EXIT_DONE;
	size_t n_header = 0;

	while (decode_wants_header(source->decoder) && !stop_requested())
	{
		n_header =
			decode_header(source->decoder, source->data.data, source->data.n_bytes, source->at_end, &code);
		if (code != EXIT_DONE || n_header > 0 || (source->at_end && source->data.n_bytes == 0))
			break;
		if (source->at_end || source->data.n_bytes >= (size_t) source->config->max_record_bytes)
		{
			log_line(LOG_ERROR, "%s: header has no end", source->path);
			return EXIT_SOURCE;
		}
		if (!fill(source, 200))
			return EXIT_SOURCE;
	}
	if (code != EXIT_DONE)
		return code;
	if (n_header > 0)
	{
		Position *position = &source->batch->positions.list[source->position];

		free(position->csv_header);
		position->csv_header = mem_printf("%.*s", (int) n_header, source->data.data);
	}
	/* Where no header was read that took it along. */
	while (n_header == 0 && source->data.n_bytes < sizeof MARK - 1 && !source->at_end && !stop_requested() &&
		   memcmp(source->data.data ? source->data.data : "", MARK, source->data.n_bytes) == 0)
		if (!fill(source, 200))
			return EXIT_SOURCE;
	if (n_header == 0 && source->data.n_bytes >= sizeof MARK - 1 &&
		memcmp(source->data.data, MARK, sizeof MARK - 1) == 0)
		n_header = sizeof MARK - 1;
	if (source->config->type == SOURCE_STDIN)
	{
		/* Positions of a stream go on counting from where the last run ended. */
		consume(source, n_header);
		source->batch->positions.list[source->position].next = source->offset;
		source->batch->has_moved |= n_header > 0;
		return EXIT_DONE;
	}
	return seek_stored(source, (int64_t) n_header);
}

/* path is taken over. */
static ExitCode
open_file(FileSource *source, char *path, const char *topic)
{
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;

	source->path = path;
	source->fd = source->config->type == SOURCE_STDIN ? STDIN_FILENO : open(path, O_RDONLY | O_CLOEXEC);
	if (source->fd < 0 && errno == ENOENT && source->config->type == SOURCE_DIRECTORY)
	{
		log_line(LOG_WARNING, "file \"%s\" is gone before it was read", path);
		close_file(source);
		return EXIT_DONE;
	}
	if (source->fd < 0)
	{
		log_line(LOG_ERROR, "cannot read \"%s\": %s", path, strerror(errno));
		return EXIT_SOURCE;
	}
	positions_clear(&source->batch->positions);
	source->position = position_find(&source->batch->positions, topic, 0);
	Position *position = &source->batch->positions.list[source->position];
	position->is_assigned = true;
	Sink *sink = writer_sink(source->writer);
	if (sink == NULL)
	{
		close_file(source); /* the pipeline sees that the writer has failed */
		return EXIT_DONE;
	}
	do
		status = sink_position(sink, position, 0);
	while (sink_again(sink, &retry, status, &code));
	if (status != SINK_OK)
		return code;
	source->data.n_bytes = source->used = 0;
	source->needs_bytes = true;
	source->offset = source->config->type == SOURCE_STDIN ? position->stored : 0;
	source->at_end = false;
	decode_start(source->decoder, path);
	log_line(LOG_DEBUG, "reading \"%s\" from byte %" PRId64, path, position->stored);
	return read_header(source);
}

ExitCode
file_source_check(Config *config)
{
	struct stat about;

	if (config->type == SOURCE_STDIN || config->path == NULL)
		return EXIT_DONE;
	if (stat(config->path, &about) != 0 || access(config->path, R_OK) != 0)
		config_error_at(config, "source.path", "cannot read \"%s\": %s", config->path, strerror(errno));
	else if (config->type == SOURCE_DIRECTORY && !S_ISDIR(about.st_mode))
		config_error_at(config, "source.path", "\"%s\" is not a directory; for one file use type = file",
						config->path);
	else if (config->type == SOURCE_FILE && S_ISDIR(about.st_mode))
		config_error_at(config, "source.path", "\"%s\" is a directory; use type = directory", config->path);
	else
		return EXIT_DONE;
	return EXIT_SOURCE;
}

FileSource *
file_source_open(const Config *config, Writer *writer, Decoder *decoder, Batch *batch)
{
	FileSource *source = mem_alloc(sizeof(FileSource));

	source->config = config;
	source->writer = writer;
	source->decoder = decoder;
	source->batch = batch;
	source->fd = -1;
	return source;
}

/* Opens what comes next; SOURCE_MORE: a file is open. */
static SourceStatus
next_file(FileSource *source, ExitCode *exit_code)
{
	const Config *config = source->config;

	if (config->type != SOURCE_DIRECTORY)
	{
		if (source->n_total++ > 0)
			return SOURCE_END;
		const char *base = config->type == SOURCE_FILE ? config->path : "-";
		const char *slash = strrchr(base, '/');
		*exit_code = open_file(source, mem_string(base), slash && slash[1] ? slash + 1 : base);
		return *exit_code == EXIT_DONE ? SOURCE_MORE : SOURCE_FAILED;
	}
	if (!source->is_known)
	{
		Retry retry = {0};
		SinkStatus status;
		Sink *sink = writer_sink(source->writer);

		if (sink == NULL)
			return SOURCE_IDLE; /* the pipeline sees that the writer has failed */
		do
			status = sink_positions(sink, &source->known);
		while (sink_again(sink, &retry, status, exit_code));
		if (status != SINK_OK)
			return SOURCE_FAILED;
		source->is_known = true;
	}
	if (source->next_name >= source->n_names)
	{
		if ((*exit_code = scan(source)) != EXIT_DONE)
			return SOURCE_FAILED;
		if (source->n_names == 0)
			return config->once ? SOURCE_END : SOURCE_IDLE;
	}
	const char *name = source->names[source->next_name++];
	*exit_code = open_file(source, mem_printf("%s/%s", config->path, name), name);
	if (*exit_code != EXIT_DONE)
		return SOURCE_FAILED;
	return source->fd >= 0 ? SOURCE_MORE : SOURCE_IDLE;
}

SourceStatus
file_source_poll(FileSource *source, int64_t wait, ExitCode *exit_code)
{
	if (source->fd < 0)
	{
		SourceStatus status = next_file(source, exit_code);

		if (status == SOURCE_IDLE && source->next_name >= source->n_names)
			wait_ms(source->config->poll_ms < wait ? source->config->poll_ms : wait);
		if (status != SOURCE_MORE)
			return status;
	}
	/* What is there is decoded before more is read: a full batch left whole records behind. */
	size_t n_before = source->data.n_bytes;
	if (!source->at_end && (source->needs_bytes || n_before == source->used))
	{
		compact(source);
		n_before = source->data.n_bytes;
		if (!fill(source, wait))
		{
			*exit_code = EXIT_SOURCE;
			return SOURCE_FAILED;
		}
	}
	bool has_read = source->data.n_bytes > n_before;
	/* Decode until the batch is full or the buffer holds no whole record. */
	int n_rows = source->batch->n_rows;
	size_t used =
		decode_bytes(source->decoder, source->data.data + source->used, source->data.n_bytes - source->used,
					 source->at_end, source->position, source->offset + (int64_t) source->used);
	source->config->metrics->n_messages += source->batch->n_rows - n_rows;
	source->used += used;
	source->needs_bytes = !batch_is_full(source->batch);
	if (source->at_end && source->data.n_bytes == source->used)
	{
		bool is_directory = source->config->type == SOURCE_DIRECTORY;

		close_file(source);
		source->n_done++;
		return is_directory ? SOURCE_FLUSH : SOURCE_END;
	}
	return has_read || used > 0 || source->config->type != SOURCE_STDIN ? SOURCE_MORE : SOURCE_IDLE;
}

void
file_source_stored(FileSource *source, const Positions *stored)
{
	for (int i = 0; source->config->type == SOURCE_DIRECTORY && i < stored->n_positions; i++)
		known_put(source, stored->list[i].topic, stored->list[i].stored);
}

void
file_source_progress(FileSource *source)
{
	source->config->metrics->n_files = source->n_done;
	source->config->metrics->n_files_total = source->n_total;
}

void
file_source_close(FileSource *source)
{
	if (source == NULL)
		return;
	close_file(source);
	names_clear(source);
	free(source->names);
	positions_clear(&source->known);
	buffer_free(&source->data);
	free(source);
}
