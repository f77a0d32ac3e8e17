/*
 * Bytes from a directory, a file or standard input.
 *
 * A file's position is the next byte (unpacked, where it is gzip) and what the file is known by: the fingerprint of what
 * was read of it, the inode and its time of birth.  Under its name, or renamed, a file is read on from its position; one
 * with other bytes before it is another file, and read from its beginning.  A file is read up to the size it had when it
 * was opened, so one that grows cannot keep the others waiting; a last line without an end waits until the file has come
 * to rest.  Known.next is how far this process has read, stored or not: the batches are stored in turn.
 *
 * A search of the directory is made when no file is open and the batch is empty, so what it finds renamed is moved by one
 * transaction, before anything is read.
 */
#include "ingest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <inttypes.h>
#include <poll.h>
#include <search.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define READ_BYTES ((size_t) 1 << 18)
#define PACKED_BYTES ((size_t) 1 << 16)
#define EDGE_BYTES ((size_t) 1024)
#define FUTURE_MS 60000		/* a file changed that far ahead of now is one whose clock is wrong */
#define FORGET_ROWS 1000	/* rows of files that are gone are deleted when there are so many, */
#define FORGET_US 60000000	/* or this long after the last time */
#define SEARCH_SHARE 5		/* searching a directory takes at most one part in so many of the time */
#define MARK "\xEF\xBB\xBF" /* byte-order mark: spreadsheets begin a file with it */

/* The first and the last bytes of what was read of a file. */
typedef struct Edges
{
	char head[EDGE_BYTES], tail[EDGE_BYTES];
	size_t n_head, n_tail;
} Edges;

/* The bytes of a file, unpacked. */
typedef struct Input
{
	int fd;			/* -1: none */
	FileMark about; /* as it was opened; inode 0: not a regular file */
	bool at_end;
	int64_t offset; /* of the next byte */
	/* gzip */
	bool is_gzip, is_in_member;
	z_stream zip;
	unsigned char *packed;
	const char *defect; /* why it ended early; NULL: it did not */
	bool is_cut;		/* it breaks off: more may come */
} Input;

/* A file that has been read, or is being read. */
typedef struct Known
{
	char *name;
	int64_t next;	  /* read up to here; its batch may be on its way */
	FileMark file;	  /* the same of position.file */
	bool is_row;	  /* the database has a row, or will have one with the batch */
	bool is_stored;	  /* the database has next and file */
	FileMark seen;	  /* how the file was when there was nothing more to read; size_bytes -1: there is more */
	bool has_rest;	  /* then a line had no end, or gzip data broke off, or it was too short */
	bool is_other;	  /* the last search found the name with another inode */
	bool is_gone;	  /* removed by clean_source */
	int64_t search;	  /* number of the search that found it last */
	int64_t round;	  /* of the batch's positions in which it has one, */
	int32_t position; /* this one */
} Known;

/* What a search has found to be read. */
typedef struct Found
{
	char *name;
	FileMark about;
} Found;

struct FileSource
{
	const Config *config;
	Writer *writer;
	Decoder *decoder;
	Batch *batch;
	void *known; /* tree of Known, by name (tsearch) */
	bool is_loaded;
	/* directory */
	Found *found; /* in order */
	int n_found, next_found;
	int64_t n_searches, searched_us, search_us, forgot_us; /* monotonic; search_us is a duration */
	int n_done, n_total, n_batch_files;
	int64_t round;	   /* how often the batch's positions were begun anew */
	int64_t lag_bytes; /* of found files, not yet read */
	bool has_warned_name, has_warned_short, has_warned_old, has_warned_clean;
	bool is_flushing; /* SOURCE_FLUSH until the batch is stored */
	ExitCode failure; /* to be returned when the batch is stored */
	/* the open file */
	Input input;
	char *path;
	Known *file;
	int32_t position;
	Edges edges;
	Buffer data;	  /* read and not yet decoded */
	size_t used;	  /* of data, already decoded */
	int64_t offset;	  /* of data in the file */
	bool is_started;  /* behind the header */
	bool needs_bytes; /* what is in data is less than a record */
};

/* ---- edges ---- */

static void
edges_add(Edges *edges, const char *data, size_t n_bytes)
{
	size_t n_head = EDGE_BYTES - edges->n_head < n_bytes ? EDGE_BYTES - edges->n_head : n_bytes;
	size_t n_tail = n_bytes < EDGE_BYTES ? n_bytes : EDGE_BYTES;
	size_t n_kept = EDGE_BYTES - n_tail < edges->n_tail ? EDGE_BYTES - n_tail : edges->n_tail;

	memcpy(edges->head + edges->n_head, data, n_head);
	edges->n_head += n_head;
	memmove(edges->tail, edges->tail + edges->n_tail - n_kept, n_kept);
	memcpy(edges->tail + n_kept, data + n_bytes - n_tail, n_tail);
	edges->n_tail = n_kept + n_tail;
}

static uint32_t
edge_crc(const char *data, size_t n_bytes)
{
	return (uint32_t) crc32(0, (const unsigned char *) data, (uInt) n_bytes);
}

static void
edges_mark(const Edges *edges, FileMark *mark)
{
	mark->has_prints = true;
	mark->head_crc = edge_crc(edges->head, edges->n_head);
	mark->tail_crc = edge_crc(edges->tail, edges->n_tail);
}

/* ---- bytes ---- */

/* Returns 0, or errno; a mark without inode for what is no regular file.  name "": the open file itself. */
static int
mark_read(int fd, const char *name, FileMark *mark)
{
	struct statx about;

	*mark = (FileMark){.size_bytes = -1};
	if (statx(fd, name, name[0] ? 0 : AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &about) != 0)
		return errno;
	if (!S_ISREG(about.stx_mode))
		return 0;
	mark->size_bytes = (int64_t) about.stx_size;
	mark->modified_us = about.stx_mtime.tv_sec * 1000000 + about.stx_mtime.tv_nsec / 1000;
	mark->inode = about.stx_ino;
	if (about.stx_mask & STATX_BTIME)
		mark->born_ns = about.stx_btime.tv_sec * INT64_C(1000000000) + about.stx_btime.tv_nsec;
	return 0;
}

static bool
is_same_inode(const FileMark *a, const FileMark *b)
{
	return a->inode == b->inode && a->born_ns == b->born_ns;
}

static bool
is_unchanged(const FileMark *a, const FileMark *b)
{
	return a->size_bytes == b->size_bytes && a->modified_us == b->modified_us && is_same_inode(a, b);
}

static void
input_close(Input *input)
{
	if (input->is_gzip)
		inflateEnd(&input->zip);
	free(input->packed);
	if (input->fd > STDIN_FILENO)
		close(input->fd);
	*input = (Input){.fd = -1};
}

/* Returns 0, or errno with nothing open. */
static int
input_open(Input *input, const char *path)
{
	unsigned char magic[2];

	*input = (Input){.fd = open(path, O_RDONLY | O_CLOEXEC)};
	int error = input->fd < 0 ? errno : mark_read(input->fd, "", &input->about);
	if (error == 0 && input->about.inode && pread(input->fd, magic, 2, 0) == 2 && magic[0] == 0x1f &&
		magic[1] == 0x8b)
	{
		input->is_gzip = inflateInit2(&input->zip, 15 + 16) == Z_OK;
		if (!input->is_gzip)
			error = ENOMEM;
		else
			input->packed = mem_alloc(PACKED_BYTES);
	}
	if (error != 0)
		input_close(input);
	return error;
}

/* Unpacks what fits; *n_bytes are there.  Returns 0 or errno. */
static int
input_unpack(Input *input, char *out, size_t room, size_t *n_bytes)
{
	z_stream *zip = &input->zip;

	zip->next_out = (unsigned char *) out;
	zip->avail_out = (uInt) room;
	while (zip->avail_out == room && !input->at_end)
	{
		if (zip->avail_in == 0)
		{
			ssize_t n = read(input->fd, input->packed, PACKED_BYTES);

			if (n < 0)
				return errno;
			zip->next_in = input->packed;
			zip->avail_in = (uInt) n;
			input->at_end = n == 0;
			input->is_cut = n == 0 && input->is_in_member;
			if (input->is_cut)
				input->defect = "it breaks off";
		}
		/* Behind a member another may follow, or zeros that fill a block. */
		while (!input->is_in_member && zip->avail_in > 0 && zip->next_in[0] == 0)
		{
			zip->next_in++;
			zip->avail_in--;
		}
		if (zip->avail_in == 0)
			continue;
		input->is_in_member = true;
		int result = inflate(zip, Z_NO_FLUSH);
		if (result == Z_STREAM_END)
		{
			input->is_in_member = false;
			inflateReset(zip);
		}
		else if (result != Z_OK && result != Z_BUF_ERROR)
		{
			input->defect = zip->msg ? zip->msg : "not valid";
			input->at_end = true;
		}
	}
	*n_bytes = room - zip->avail_out;
	return 0;
}

/* Reads what fits, or less; *n_bytes are there, 0 with at_end when there are no more.  Returns 0 or errno. */
static int
input_read(Input *input, char *out, size_t room, size_t *n_bytes)
{
	int error = 0;

	*n_bytes = 0;
	if (input->is_gzip)
		error = input_unpack(input, out, room, n_bytes);
	else
	{
		if (input->about.inode && input->about.size_bytes - input->offset < (int64_t) room)
			room = input->about.size_bytes > input->offset
				? (size_t) (input->about.size_bytes - input->offset)
				: 0;
		ssize_t n = room > 0 ? read(input->fd, out, room) : 0;
		if (n < 0)
			return errno == EINTR || errno == EAGAIN ? 0 : errno;
		input->at_end = n == 0;
		*n_bytes = (size_t) n;
	}
	input->offset += (int64_t) *n_bytes;
	return error;
}

/* The next byte read is the one at offset, or there is none.  Returns 0 or errno. */
static int
input_seek(Input *input, int64_t offset)
{
	char skipped[16384];
	size_t n;
	int error = 0;

	if (!input->is_gzip || offset < input->offset)
	{
		off_t to = input->is_gzip ? 0 : offset;

		if (input->offset != to && lseek(input->fd, to, SEEK_SET) < 0)
			return errno;
		input->offset = to;
		input->at_end = input->is_in_member = input->is_cut = false;
		input->defect = NULL;
		if (input->is_gzip)
		{
			inflateReset(&input->zip);
			input->zip.avail_in = 0;
		}
	}
	while (error == 0 && input->offset < offset && !input->at_end)
	{
		int64_t left = offset - input->offset;

		error =
			input_read(input, skipped, left < (int64_t) sizeof skipped ? (size_t) left : sizeof skipped, &n);
	}
	return error;
}

/* Reads on up to offset, or to the end. */
static int
edges_read(Edges *edges, Input *input, int64_t offset)
{
	char bytes[EDGE_BYTES];
	size_t n;
	int error = 0;

	while (error == 0 && input->offset < offset && !input->at_end)
	{
		int64_t left = offset - input->offset;

		error = input_read(input, bytes, left < (int64_t) sizeof bytes ? (size_t) left : sizeof bytes, &n);
		edges_add(edges, bytes, n);
	}
	return error;
}

typedef enum Likeness
{
	FILE_SAME,
	FILE_SHORT, /* it begins as it did, and ends before next */
	FILE_TINY,	/* it is too short to tell */
	FILE_OTHER
} Likeness;

/*
 * Whether the bytes before next are those that were read, as known has them.  edges: of these bytes, when they are.
 * Leaves the input at its beginning.  Returns 0 or errno.
 */
static int
input_compare(Input *input, int64_t next, const FileMark *known, Edges *edges, Likeness *likeness)
{
	int64_t n_edge = next < (int64_t) EDGE_BYTES ? next : (int64_t) EDGE_BYTES;
	FileMark now;

	*edges = (Edges){0};
	int error = edges_read(edges, input, n_edge);
	if (error == 0 && next - (int64_t) EDGE_BYTES > input->offset)
	{
		edges->n_tail = 0;
		error = input_seek(input, next - (int64_t) EDGE_BYTES);
	}
	if (error == 0)
		error = edges_read(edges, input, next);
	edges_mark(edges, &now);
	/* A position that somebody has set by hand comes without prints. */
	if ((int64_t) edges->n_head < n_edge)
		*likeness = known->has_prints ? FILE_TINY : FILE_SHORT;
	else if (known->has_prints && now.head_crc != known->head_crc)
		*likeness = FILE_OTHER;
	else if (input->offset < next)
		*likeness = FILE_SHORT;
	else
		*likeness = known->has_prints && now.tail_crc != known->tail_crc ? FILE_OTHER : FILE_SAME;
	return error ? error : input_seek(input, 0);
}

/* ---- what has been read ---- */

static int
compare_known(const void *a, const void *b)
{
	return strcmp(((const Known *) a)->name, ((const Known *) b)->name);
}

static Known *
known_find(const FileSource *source, const char *name)
{
	Known key = {.name = (char *) name};
	Known **slot = tfind(&key, &source->known, compare_known);

	return slot ? *slot : NULL;
}

static Known *
known_get(FileSource *source, const char *name)
{
	Known *known = known_find(source, name);

	if (known != NULL)
		return known;
	known = mem_alloc(sizeof(Known));
	known->name = mem_string(name);
	known->is_stored = true;
	known->file.size_bytes = known->seen.size_bytes = -1;
	if (tsearch(known, &source->known, compare_known) == NULL)
	{
		log_line(LOG_ERROR, "out of memory");
		exit(EXIT_INTERNAL);
	}
	return known;
}

static void
known_free(void *of)
{
	Known *known = of;

	free(known->name);
	free(known);
}

/* The positions as the database has them.  A process that moves others meanwhile is found by the compare-and-set. */
static bool
load(FileSource *source, ExitCode *exit_code)
{
	Positions stored = {0};
	Retry retry = {0};
	Sink *sink = writer_sink(source->writer);
	SinkStatus status;

	do
		status = sink_positions(sink, &stored);
	while (sink_again(sink, &retry, status, exit_code));
	for (int i = 0; i < stored.n_positions; i++)
	{
		const Position *position = &stored.list[i];
		Known *known = known_get(source, position->topic);

		known->next = position->stored;
		known->file = position->file;
		known->is_row = true;
		if (position->file.size_bytes >= 0)
			known->seen = position->file;
	}
	positions_clear(&stored);
	source->is_loaded = status == SINK_OK;
	return source->is_loaded;
}

static bool
batch_is_empty(const Batch *batch)
{
	return batch->n_rows == 0 && !batch->has_moved;
}

/* The batch is empty: it has no positions either. */
static void
begin_positions(FileSource *source)
{
	positions_clear(&source->batch->positions);
	source->n_batch_files = 0;
	source->round++;
}

/* The file's position in the open batch. */
static int32_t
position_of(FileSource *source, Known *known)
{
	Positions *positions = &source->batch->positions;

	if (known->round == source->round)
		return known->position;
	known->round = source->round;
	known->position = position_add(positions, known->name, 0);
	positions->list[known->position].is_assigned = true;
	positions->list[known->position].is_new = !known->is_row;
	positions->list[known->position].stored = positions->list[known->position].next = known->next;
	positions->list[known->position].file = known->file;
	return known->position;
}

/* The batch will store what position i is now. */
static void
moved(FileSource *source, Known *known, int32_t i)
{
	Position *position = &source->batch->positions.list[i];

	position->is_changed = true;
	source->batch->has_moved = true;
	known->next = position->next;
	known->file = position->file;
	known->is_row = true;
	known->is_stored = false;
}

/* ---- directory ---- */

/* How long a file has not been changed. */
static int64_t
rest_ms(const FileMark *mark)
{
	int64_t ms = (clock_us() - mark->modified_us) / 1000;

	return ms < -FUTURE_MS ? INT64_MAX : ms;
}

/* Nobody seems to write to it any more. */
static bool
is_at_rest(const FileSource *source, const FileMark *mark)
{
	return source->config->once || source->config->type != SOURCE_DIRECTORY || mark->inode == 0 ||
		rest_ms(mark) >= source->config->last_line_age_ms;
}

static bool
is_wanted(FileSource *source, const char *name)
{
	size_t at;

	if (name[0] == '.' || fnmatch(source->config->pattern, name, 0) != 0)
		return false;
	if (text_defect(name, strlen(name), &at) == NULL)
		return true;
	if (!source->has_warned_name)
		log_line(LOG_WARNING, "the name of file \"%s\" is not UTF-8: it is not read, nor are others like it",
				 name);
	source->has_warned_name = true;
	return false;
}

/* Moves the file into source.archive, under a name that is free.  Returns 0 or errno. */
static int
archive_file(const Config *config, const char *path, const char *name)
{
	struct stat about;
	char *to = mem_printf("%s/%s", config->archive, name);

	for (int i = 1; lstat(to, &about) == 0; i++)
	{
		free(to);
		to = mem_printf("%s/%s.%d", config->archive, name, i);
	}
	int error = rename(path, to) == 0 ? 0 : errno;
	free(to);
	return error;
}

/* The file was found as it was when its end was stored. */
static void
clean_file(FileSource *source, Known *known)
{
	const Config *config = source->config;
	char *path = mem_printf("%s/%s", config->path, known->name);
	FileMark now;

	if (mark_read(AT_FDCWD, path, &now) == 0 && is_unchanged(&now, &known->seen))
	{
		int error = config->clean_source == CLEAN_ARCHIVE ? archive_file(config, path, known->name)
			: unlink(path) == 0							  ? 0
														  : errno;

		known->is_gone = error == 0;
		if (error == 0)
			log_line(LOG_DEBUG, "file \"%s\" is %s", path,
					 config->clean_source == CLEAN_ARCHIVE ? "archived" : "deleted");
		else if (!source->has_warned_clean)
			log_line(LOG_WARNING, "cannot %s file \"%s\": %s; it stays, and so may others",
					 config->clean_source == CLEAN_ARCHIVE ? "archive" : "delete", path, strerror(error));
		source->has_warned_clean |= error != 0;
	}
	free(path);
}

/* A file of the directory: done, not yet to be read, or found. */
static void
consider(FileSource *source, const char *name, const FileMark *about, int *n_old)
{
	const Config *config = source->config;
	Known *known = known_find(source, name);
	int64_t age_ms = rest_ms(about);

	if (known != NULL)
	{
		known->is_gone = false; /* a new one */
		known->search = source->n_searches;
		known->is_other = known->file.inode && !is_same_inode(&known->file, about);
		if (is_unchanged(&known->seen, about) && !(known->has_rest && is_at_rest(source, about)))
		{
			source->n_done++;
			if (config->clean_source != CLEAN_OFF && known->is_stored && known->file.size_bytes >= 0 &&
				known->file.defect == NULL && is_at_rest(source, about) && age_ms >= config->min_age_ms)
				clean_file(source, known);
			return;
		}
	}
	if (age_ms < config->min_age_ms)
		return;
	if (config->max_file_age_ms > 0 && age_ms != INT64_MAX && age_ms > config->max_file_age_ms &&
		(known == NULL || known->next == 0))
	{
		if ((*n_old)++ == 0 && !source->has_warned_old)
			log_line(LOG_WARNING,
					 "file \"%s\" is older than source.max_file_age, and is not read, nor are others like it",
					 name);
		source->has_warned_old = true;
		return;
	}
	source->found = mem_grow(source->found, (size_t) source->n_found + 1, sizeof(Found));
	source->found[source->n_found++] = (Found){mem_string(name), *about};
}

static int
compare_names(const void *a, const void *b)
{
	return strcmp(((const Found *) a)->name, ((const Found *) b)->name);
}

static int
compare_latest(const void *a, const void *b)
{
	int64_t first = ((const Found *) a)->about.modified_us, second = ((const Found *) b)->about.modified_us;

	return first != second ? (first < second ? 1 : -1) : -compare_names(a, b);
}

static void
found_clear(FileSource *source)
{
	for (int i = 0; i < source->n_found; i++)
		free(source->found[i].name);
	source->n_found = source->next_found = 0;
}

static int64_t
bytes_left(const FileSource *source, const Found *found)
{
	const Known *known = known_find(source, found->name);
	int64_t left = found->about.size_bytes - (known ? known->next : 0);

	return left > 0 ? left : 0;
}

/* Lists the files that have bytes not yet read, in the order in which they are to be read. */
static ExitCode
search_directory(FileSource *source)
{
	int64_t begun_us = monotonic_us();
	DIR *directory = opendir(source->config->path);
	struct dirent *entry;
	FileMark about;
	int n_old = 0;

	found_clear(source);
	source->n_done = 0;
	source->n_searches++;
	while (directory != NULL && (errno = 0, entry = readdir(directory)) != NULL)
		if (is_wanted(source, entry->d_name) && mark_read(dirfd(directory), entry->d_name, &about) == 0 &&
			about.inode && about.size_bytes > 0)
			consider(source, entry->d_name, &about, &n_old);
	int error = errno;
	if (directory != NULL)
		closedir(directory);
	if (directory == NULL || error != 0)
	{
		log_line(LOG_ERROR, "cannot read directory \"%s\": %s", source->config->path, strerror(error));
		return EXIT_SOURCE;
	}
	if (source->n_found > 0)
		qsort(source->found, (size_t) source->n_found, sizeof(Found),
			  source->config->latest_first ? compare_latest : compare_names);
	source->n_total = source->n_done + source->n_found;
	source->lag_bytes = 0;
	for (int i = 0; i < source->n_found; i++)
		source->lag_bytes += bytes_left(source, &source->found[i]);
	metrics_lag(source->config->metrics, source->config->path, 0, source->lag_bytes);
	source->searched_us = monotonic_us();
	source->search_us = source->searched_us - begun_us;
	return EXIT_DONE;
}

/* The directory is searched every source.poll, and does not take all the time. */
static bool
is_search_due(const FileSource *source)
{
	int64_t pause_us = source->config->poll_ms * 1000;

	if (pause_us < source->search_us * SEARCH_SHARE)
		pause_us = source->search_us * SEARCH_SHARE;
	return source->n_searches == 0 || monotonic_us() - source->searched_us >= pause_us;
}

typedef struct Walk
{
	const FileSource *source;
	Known **list;
	int n_known;
	bool (*is_chosen)(const FileSource *source, const Known *known);
} Walk;

static void
walk_one(const void *node, VISIT visit, void *of)
{
	Walk *walk = of;
	Known *known = *(Known *const *) node;

	if ((visit != postorder && visit != leaf) || !walk->is_chosen(walk->source, known))
		return;
	walk->list = mem_grow(walk->list, (size_t) walk->n_known + 1, sizeof(Known *));
	walk->list[walk->n_known++] = known;
}

static Walk
known_choose(const FileSource *source, bool (*is_chosen)(const FileSource *source, const Known *known))
{
	Walk walk = {source, NULL, 0, is_chosen};

	twalk_r(source->known, walk_one, &walk);
	return walk;
}

/* ---- renamed files ---- */

/* Read, and no longer under its name. */
static bool
is_lost(const FileSource *source, const Known *known)
{
	return known->next > 0 && known->file.inode && !known->is_gone &&
		(known->search != source->n_searches || known->is_other);
}

static int
compare_inodes(const void *a, const void *b)
{
	const FileMark *first = &(*(Known *const *) a)->file, *second = &(*(Known *const *) b)->file;

	if (first->inode != second->inode)
		return first->inode < second->inode ? -1 : 1;
	return first->born_ns == second->born_ns ? 0 : first->born_ns < second->born_ns ? -1 : 1;
}

/* What the file was called when it was read: by its inode, or by its name without .gz when it was packed since. */
static Known *
former_name(const FileSource *source, const Walk *lost, const Found *found)
{
	Known key, *at = &key, **slot = NULL;
	size_t n_name = strlen(found->name);

	key.file = found->about;
	if (lost->n_known > 0)
		slot = bsearch(&at, lost->list, (size_t) lost->n_known, sizeof(Known *), compare_inodes);
	/* Without a time of birth an inode may have passed to another file: then the bytes must be many. */
	if (slot != NULL && strcmp((*slot)->name, found->name) != 0 &&
		(found->about.born_ns != 0 || (*slot)->next >= (int64_t) EDGE_BYTES))
		return *slot;
	if (n_name < 4 || strcmp(found->name + n_name - 3, ".gz") != 0)
		return NULL;
	char *unpacked = mem_printf("%.*s", (int) n_name - 3, found->name);
	Known *known = known_find(source, unpacked);
	free(unpacked);
	return known != NULL && is_lost(source, known) ? known : NULL;
}

static bool
is_same_file(const FileSource *source, const Found *found, const Known *known)
{
	char *path = mem_printf("%s/%s", source->config->path, found->name);
	Likeness likeness = FILE_OTHER;
	Input input;
	Edges edges;

	if (input_open(&input, path) == 0)
	{
		if (input_compare(&input, known->next, &known->file, &edges, &likeness) != 0)
			likeness = FILE_OTHER;
		input_close(&input);
	}
	free(path);
	return likeness == FILE_SAME;
}

/* A file and what it was called. */
typedef struct Rename
{
	Known *to, *from;
	Known was; /* from, before anything changed */
} Rename;

/*
 * Positions of renamed files go to their new names, all in one transaction: names may have been passed on from file to
 * file.  False: there are none.
 */
static bool
follow_renames(FileSource *source)
{
	Walk lost = known_choose(source, is_lost);
	Rename *renames = NULL;
	int n_renames = 0;

	if (lost.n_known > 0)
		qsort(lost.list, (size_t) lost.n_known, sizeof(Known *), compare_inodes);
	for (int i = 0; lost.n_known > 0 && i < source->n_found; i++)
	{
		const Found *found = &source->found[i];
		const Known *known = known_find(source, found->name);
		Known *from = NULL;

		if (known == NULL || known->next == 0 || known->is_other)
			from = former_name(source, &lost, found);
		if (from == NULL || !is_same_file(source, found, from))
			continue;
		renames = mem_grow(renames, (size_t) n_renames + 1, sizeof(Rename));
		renames[n_renames++] = (Rename){known_get(source, found->name), from, *from};
	}
	free(lost.list);
	for (int i = 0; i < n_renames; i++)
	{
		int32_t at = position_of(source, renames[i].from);
		Position *position = &source->batch->positions.list[at];

		/* The old name knows nothing any more; if it is a new one, too, that comes next. */
		position->next = 0;
		position->file = (FileMark){.size_bytes = -1};
		moved(source, renames[i].from, at);
		renames[i].from->seen.size_bytes = -1;
	}
	for (int i = 0; i < n_renames; i++)
	{
		Known *to = renames[i].to, *was = &renames[i].was;
		int32_t at = position_of(source, to);
		Position *position = &source->batch->positions.list[at];

		log_line(LOG_INFO, "file \"%s\" was \"%s\", and is read on from byte %" PRId64, to->name, was->name,
				 was->next);
		position->next = was->next;
		position->file = was->file;
		moved(source, to, at);
		to->seen = was->seen;
		to->has_rest = was->has_rest;
		to->is_other = to->is_gone = false;
	}
	free(renames);
	return n_renames > 0;
}

/* ---- rows of files that are gone ---- */

static bool
is_forgotten(const FileSource *source, const Known *known)
{
	const Config *config = source->config;

	return known->is_row && known->is_stored && (known->is_gone || known->search != source->n_searches) &&
		(known->is_gone || known->next == 0 ||
		 (config->max_file_age_ms > 0 && rest_ms(&known->file) > config->max_file_age_ms));
}

/* Deletes the rows of removed and renamed files, and of those too old to be read if they came back. */
static bool
forget(FileSource *source, ExitCode *exit_code)
{
	int64_t now_us = monotonic_us();
	Positions gone = {0};
	Retry retry = {0};
	SinkStatus status;

	Walk walk = known_choose(source, is_forgotten);
	if (walk.n_known == 0 ||
		(walk.n_known < FORGET_ROWS && !source->config->once && source->forgot_us > 0 &&
		 now_us - source->forgot_us < FORGET_US))
	{
		free(walk.list);
		return true;
	}
	Sink *sink = writer_sink(source->writer);
	if (sink == NULL)
	{
		free(walk.list);
		return true; /* the pipeline sees that the writer has failed */
	}
	gone.list = mem_alloc(sizeof(Position) * (size_t) walk.n_known);
	for (int i = 0; i < walk.n_known; i++)
		gone.list[gone.n_positions++] =
			(Position){.topic = mem_string(walk.list[i]->name), .stored = walk.list[i]->next};
	do
		status = sink_forget(sink, &gone);
	while (sink_again(sink, &retry, status, exit_code));
	positions_clear(&gone);
	source->forgot_us = now_us;
	if (status == SINK_OK)
		for (int i = 0; i < walk.n_known; i++)
		{
			tdelete(walk.list[i], &source->known, compare_known);
			known_free(walk.list[i]);
		}
	free(walk.list);
	return status == SINK_OK;
}

/* ---- the open file ---- */

static ExitCode
cannot_read(const FileSource *source, int error)
{
	log_line(LOG_ERROR, "cannot read \"%s\": %s", source->path, strerror(error));
	return EXIT_SOURCE;
}

static void
close_file(FileSource *source)
{
	input_close(&source->input);
	free(source->path);
	source->path = NULL;
	source->file = NULL;
	source->data.n_bytes = source->used = 0;
}

/* Reads once more into the buffer. */
static ExitCode
fill(FileSource *source, int64_t wait)
{
	struct pollfd ready = {.fd = source->input.fd, .events = POLLIN};
	Input *input = &source->input;
	FileMark now;
	size_t n;

	if (source->config->type == SOURCE_STDIN && poll(&ready, 1, (int) wait) <= 0)
		return EXIT_DONE;
	char *room = buffer_room(&source->data, READ_BYTES);
	int error = input_read(input, room, READ_BYTES, &n);
	/* A single file has nobody waiting behind it. */
	if (error == 0 && input->at_end && source->config->type == SOURCE_FILE && input->about.inode &&
		!input->is_gzip && mark_read(input->fd, "", &now) == 0 && now.size_bytes > input->about.size_bytes)
	{
		input->about = now;
		error = input_read(input, room, READ_BYTES, &n);
	}
	source->data.n_bytes += n;
	return error ? cannot_read(source, error) : EXIT_DONE;
}

/* The decoded bytes leave the buffer: once a read, however many batches it gave. */
static void
compact(FileSource *source)
{
	Buffer *data = &source->data;

	memmove(data->data, data->data + source->used, data->n_bytes - source->used);
	data->n_bytes -= source->used;
	source->offset += (int64_t) source->used;
	source->used = 0;
}

/* The next n_bytes are decoded, and position.next is behind them. */
static void
use(FileSource *source, size_t n_bytes)
{
	Position *position = &source->batch->positions.list[source->position];

	if (n_bytes == 0)
		return;
	edges_add(&source->edges, source->data.data + source->used, n_bytes);
	source->used += n_bytes;
	if (source->input.about.inode)
	{
		position->file = source->input.about;
		position->file.size_bytes = -1;
		edges_mark(&source->edges, &position->file);
	}
	moved(source, source->file, source->position);
}

/* Nothing more is read of the file until it changes, or, when has_rest, until it has come to rest. */
static SourceStatus
end_file(FileSource *source, bool has_rest)
{
	Position *position = &source->batch->positions.list[source->position];
	const FileMark *about = &source->input.about;
	Known *known = source->file;
	bool is_directory = source->config->type == SOURCE_DIRECTORY;

	known->seen = *about;
	known->has_rest = has_rest;
	if (about->inode && !has_rest)
	{
		const char *defect = source->input.defect;

		position->file = *about;
		position->file.defect = defect;
		edges_mark(&source->edges, &position->file);
		moved(source, known, source->position);
	}
	source->n_done++;
	source->n_batch_files++;
	close_file(source);
	if (!is_directory)
		return SOURCE_END;
	source->is_flushing = source->n_batch_files >= source->config->max_files_per_batch;
	return source->is_flushing ? SOURCE_FLUSH : SOURCE_MORE;
}

/* What was unpacked before the fault, and is no whole record, is kept; the file itself stays where it is. */
static SourceStatus
end_damaged(FileSource *source)
{
	char reason[200];
	const Position *position = &source->batch->positions.list[source->position];
	Message message = {
		.data = source->data.data + source->used,
		.n_bytes = source->data.n_bytes - source->used,
		.position = source->position,
		.offset = position->next,
		.timestamp_us = NO_TIME,
	};

	snprintf(reason, sizeof reason, "damaged gzip file: %s; nothing is read behind byte %" PRId64,
			 source->input.defect, position->next);
	batch_dead_letter(source->batch, &message, "read", "", reason);
	return end_file(source, false);
}

/* The file's bytes have ended, and what is left of them is not a whole record, or is nothing. */
static SourceStatus
end_bytes(FileSource *source)
{
	bool has_rest = source->data.n_bytes > source->used;

	if (source->input.defect == NULL)
		return end_file(source, has_rest);
	return source->input.is_cut && !is_at_rest(source, &source->input.about) ? end_file(source, true)
																			 : end_damaged(source);
}

/* The bytes that are there are all there will be: a last line without an end is a line. */
static bool
is_complete(const FileSource *source)
{
	const Input *input = &source->input;
	FileMark now;

	return input->at_end && input->defect == NULL && is_at_rest(source, &input->about) &&
		(input->about.inode == 0 ||
		 (mark_read(input->fd, "", &now) == 0 && now.size_bytes == input->about.size_bytes));
}

/* Behind a byte-order mark, the header, and what was read before.  False: bytes are missing, or *code says what. */
static bool
start_file(FileSource *source, ExitCode *code)
{
	Position *position = &source->batch->positions.list[source->position];
	const Buffer *data = &source->data;
	size_t n_header = 0, n_mark = sizeof MARK - 1;
	bool is_last = is_complete(source);

	if (decode_wants_header(source->decoder))
	{
		n_header = decode_header(source->decoder, data->data, data->n_bytes, is_last, code);
		if (*code == EXIT_DONE && n_header == 0 && decode_wants_header(source->decoder) &&
			data->n_bytes >= (size_t) source->config->max_record_bytes)
		{
			log_line(LOG_ERROR, "%s: header has no end", source->path);
			*code = EXIT_SOURCE;
		}
		if (n_header == 0)
			return false;
		free(position->csv_header);
		position->csv_header = mem_printf("%.*s", (int) n_header, data->data);
	}
	else if (data->n_bytes >= n_mark && memcmp(data->data, MARK, n_mark) == 0)
		n_header = n_mark;
	else if (data->n_bytes < n_mark && !is_last &&
			 memcmp(data->n_bytes ? data->data : "", MARK, data->n_bytes) == 0)
		return false;
	source->is_started = true;
	if (source->config->type == SOURCE_STDIN)
	{
		/* Positions of a stream go on counting from where the last run ended. */
		position->next += (int64_t) n_header;
		use(source, n_header);
		return true;
	}
	if (position->next <= (int64_t) n_header)
	{
		position->next = (int64_t) n_header;
		source->edges = (Edges){0};
		use(source, n_header);
		return true;
	}
	if (position->next <= (int64_t) data->n_bytes)
	{
		source->used = (size_t) position->next;
		return true;
	}
	int error = input_seek(&source->input, position->next);
	*code = error ? cannot_read(source, error) : EXIT_DONE;
	source->data.n_bytes = source->used = 0;
	source->offset = position->next;
	return error == 0;
}

/* Nothing is read of a file that is shorter than what was read of it, until it changes, or may have been replaced. */
static void
skip_short(FileSource *source, Known *known)
{
	bool is_resting = is_at_rest(source, &source->input.about);

	if (is_resting && !source->has_warned_short)
		log_line(LOG_WARNING,
				 "file \"%s\" is shorter than what was read from it, and is not read; give new data a new "
				 "name",
				 known->name);
	source->has_warned_short |= is_resting;
	known->seen = source->input.about;
	known->has_rest = !is_resting;
}

typedef enum Opened
{
	OPEN_READY,
	OPEN_SKIPPED, /* nothing to read now */
	OPEN_FAILED
} Opened;

/* What was read of this name before: is it this file?  Sets the position. */
static Opened
recognise(FileSource *source, Known *known, ExitCode *code)
{
	const Config *config = source->config;
	const FileMark *about = &source->input.about;
	Likeness likeness = FILE_SAME;

	source->edges = (Edges){0};
	if (known->next > 0 && about->inode)
	{
		int error = input_compare(&source->input, known->next, &known->file, &source->edges, &likeness);

		if (error != 0)
		{
			*code = cannot_read(source, error);
			return OPEN_FAILED;
		}
		/* Where files are removed once they are read, the same bytes may well come again. */
		if (config->type == SOURCE_DIRECTORY && config->clean_source != CLEAN_OFF && known->file.inode &&
			!is_same_inode(&known->file, about) && known->file.modified_us != about->modified_us)
			likeness = FILE_OTHER;
		/* One that is being written again begins so. */
		if (likeness == FILE_TINY)
			likeness = is_at_rest(source, about) ? FILE_OTHER : FILE_SHORT;
		if (likeness == FILE_SHORT)
		{
			skip_short(source, known);
			return OPEN_SKIPPED;
		}
	}
	source->position = position_of(source, known);
	if (likeness == FILE_SAME)
		return OPEN_READY;
	log_line(LOG_WARNING,
			 "file \"%s\" is another one than was read up to byte %" PRId64 ": it is read from its beginning",
			 known->name, known->next);
	source->edges = (Edges){0};
	source->batch->positions.list[source->position].next = 0;
	source->batch->positions.list[source->position].file = (FileMark){.size_bytes = -1};
	moved(source, known, source->position);
	return OPEN_READY;
}

/* path is taken over. */
static Opened
open_file(FileSource *source, char *path, const char *name, ExitCode *code)
{
	const Config *config = source->config;
	int error = 0;

	source->path = path;
	if (config->type == SOURCE_STDIN)
		source->input = (Input){.fd = STDIN_FILENO};
	else
		error = input_open(&source->input, path);
	if (error == ENOENT && config->type == SOURCE_DIRECTORY)
	{
		log_line(LOG_WARNING, "file \"%s\" is gone before it was read", path);
		close_file(source);
		return OPEN_SKIPPED;
	}
	if (error != 0)
	{
		*code = cannot_read(source, error);
		close_file(source);
		return OPEN_FAILED;
	}
	if (batch_is_empty(source->batch))
		begin_positions(source);
	source->file = known_get(source, name);
	Opened opened = recognise(source, source->file, code);
	if (opened != OPEN_READY)
	{
		close_file(source);
		return opened;
	}
	int64_t next = source->batch->positions.list[source->position].next;
	source->offset = config->type == SOURCE_STDIN ? next : 0;
	source->is_started = false;
	source->needs_bytes = true;
	decode_start(source->decoder, path);
	log_line(LOG_DEBUG, "reading \"%s\" from byte %" PRId64, path, next);
	return OPEN_READY;
}

/* ---- what comes next ---- */

/* To be removed, with its row, or only the row, when its batch is stored. */
static bool
waits_for_store(const FileSource *source, const Known *known)
{
	return !known->is_stored && (source->config->clean_source != CLEAN_OFF || known->next == 0);
}

static bool
has_to_wait(const FileSource *source)
{
	Walk walk = known_choose(source, waits_for_store);

	free(walk.list);
	return walk.n_known > 0;
}

static SourceStatus
failed(FileSource *source, ExitCode code, ExitCode *exit_code)
{
	*exit_code = code;
	if (batch_is_empty(source->batch))
		return SOURCE_FAILED;
	/* What was read before is good. */
	source->failure = code;
	source->is_flushing = true;
	return SOURCE_FLUSH;
}

/* Searches for more, when what was found is read, or might have become old. */
static SourceStatus
search(FileSource *source, ExitCode *exit_code)
{
	ExitCode code;

	if (source->next_found >= source->n_found && !source->config->once && !is_search_due(source))
		return batch_is_empty(source->batch) ? SOURCE_IDLE : SOURCE_FLUSH;
	if (!batch_is_empty(source->batch))
	{
		source->is_flushing = true;
		return SOURCE_FLUSH;
	}
	begin_positions(source);
	if ((code = search_directory(source)) != EXIT_DONE)
		return failed(source, code, exit_code);
	if (follow_renames(source))
	{
		/* What is left of them is found by the next search. */
		found_clear(source);
		source->searched_us -= source->config->poll_ms * 1000 + source->search_us * SEARCH_SHARE;
		source->is_flushing = true;
		return SOURCE_FLUSH;
	}
	if (!forget(source, exit_code))
		return SOURCE_FAILED;
	if (source->n_found > 0)
		return SOURCE_MORE;
	return source->config->once && !has_to_wait(source) ? SOURCE_END : SOURCE_IDLE;
}

/* Opens what comes next; SOURCE_MORE: a file is open, or the next one may be. */
static SourceStatus
next_file(FileSource *source, ExitCode *exit_code)
{
	const Config *config = source->config;
	SourceStatus status;

	if (!source->is_loaded && !load(source, exit_code))
		return SOURCE_FAILED;
	if (config->type != SOURCE_DIRECTORY)
	{
		if (source->n_total++ > 0)
			return SOURCE_END;
		const char *base = config->type == SOURCE_FILE ? config->path : "-";
		const char *slash = strrchr(base, '/');
		switch (open_file(source, mem_string(base), slash && slash[1] ? slash + 1 : base, exit_code))
		{
			case OPEN_READY:
				return SOURCE_MORE;
			case OPEN_FAILED:
				return SOURCE_FAILED;
			default:
				return SOURCE_END;
		}
	}
	if (source->next_found >= source->n_found || (config->latest_first && is_search_due(source)))
		if ((status = search(source, exit_code)) != SOURCE_MORE)
			return status;
	const Found *found = &source->found[source->next_found];
	if (open_file(source, mem_printf("%s/%s", config->path, found->name), found->name, exit_code) ==
		OPEN_FAILED)
		return failed(source, *exit_code, exit_code);
	source->lag_bytes -= bytes_left(source, found);
	metrics_lag(config->metrics, config->path, 0, source->lag_bytes);
	source->next_found++;
	return SOURCE_MORE;
}

/* ---- the source ---- */

ExitCode
file_source_check(Config *config)
{
	struct stat about, archive;
	int n_before = config->n_errors;
	bool cleans = config->type == SOURCE_DIRECTORY && config->clean_source != CLEAN_OFF;

	if (config->type == SOURCE_STDIN || config->path == NULL)
		return EXIT_DONE;
	if (stat(config->path, &about) != 0 || access(config->path, R_OK) != 0)
		config_error_at(config, "source.path", "cannot read \"%s\": %s", config->path, strerror(errno));
	else if (config->type == SOURCE_DIRECTORY && !S_ISDIR(about.st_mode))
		config_error_at(config, "source.path", "\"%s\" is not a directory; for one file use type = file",
						config->path);
	else if (config->type == SOURCE_FILE && S_ISDIR(about.st_mode))
		config_error_at(config, "source.path", "\"%s\" is a directory; use type = directory", config->path);
	else if (cleans && access(config->path, W_OK | X_OK) != 0)
		config_error_at(config, "source.clean_source", "no file of \"%s\" can be removed: %s", config->path,
						strerror(errno));
	else if (cleans && config->clean_source == CLEAN_ARCHIVE && config->archive != NULL)
	{
		if (stat(config->archive, &archive) != 0 || access(config->archive, W_OK | X_OK) != 0)
			config_error_at(config, "source.archive", "cannot write to \"%s\": %s", config->archive,
							strerror(errno));
		else if (!S_ISDIR(archive.st_mode))
			config_error_at(config, "source.archive", "\"%s\" is not a directory", config->archive);
		else if (archive.st_dev != about.st_dev)
			config_error_at(config, "source.archive", "\"%s\" is on another file system than \"%s\"",
							config->archive, config->path);
		else if (archive.st_ino == about.st_ino)
			config_error_at(config, "source.archive", "\"%s\" is the directory that is read",
							config->archive);
	}
	return config->n_errors > n_before ? EXIT_SOURCE : EXIT_DONE;
}

FileSource *
file_source_open(const Config *config, Writer *writer, Decoder *decoder, Batch *batch)
{
	FileSource *source = mem_alloc(sizeof(FileSource));

	source->config = config;
	source->writer = writer;
	source->decoder = decoder;
	source->batch = batch;
	source->input.fd = -1;
	return source;
}

/* Decodes until the batch is full or the buffer holds no whole record. */
static SourceStatus
decode(FileSource *source, bool has_read)
{
	Batch *batch = source->batch;
	size_t n_left = source->data.n_bytes - source->used;
	int n_rows = batch->n_rows;
	bool is_last = n_left > 0 && is_complete(source);
	size_t used = decode_bytes(source->decoder, source->data.data + source->used, n_left, is_last,
							   source->position, source->offset + (int64_t) source->used);

	source->config->metrics->n_messages += batch->n_rows - n_rows;
	use(source, used);
	source->needs_bytes = !batch_is_full(batch);
	if (source->input.at_end && (used == n_left || (source->needs_bytes && !is_last)))
		return end_bytes(source);
	return has_read || used > 0 || source->config->type != SOURCE_STDIN ? SOURCE_MORE : SOURCE_IDLE;
}

SourceStatus
file_source_poll(FileSource *source, int64_t wait, ExitCode *exit_code)
{
	SourceStatus status;
	ExitCode code = EXIT_DONE;

	if (source->is_flushing && !batch_is_empty(source->batch))
		return SOURCE_FLUSH;
	source->is_flushing = false;
	if (source->failure != EXIT_DONE)
	{
		*exit_code = source->failure;
		return SOURCE_FAILED;
	}
	if (source->path == NULL)
	{
		status = next_file(source, exit_code);
		if (status == SOURCE_IDLE)
			wait_ms(source->config->poll_ms < wait ? source->config->poll_ms : wait);
		if (status != SOURCE_MORE || source->path == NULL)
			return status;
	}
	/* What is there is decoded before more is read: a full batch left whole records behind. */
	size_t n_before = source->data.n_bytes - source->used;
	if (!source->input.at_end && (source->needs_bytes || n_before == 0))
	{
		if (source->is_started)
			compact(source);
		if ((code = fill(source, wait)) != EXIT_DONE)
			return failed(source, code, exit_code);
	}
	bool has_read = source->data.n_bytes - source->used > n_before;
	if (!source->is_started && !start_file(source, &code))
	{
		if (code != EXIT_DONE)
			return failed(source, code, exit_code);
		if (source->input.at_end)
			return end_bytes(source);
		return has_read ? SOURCE_MORE : SOURCE_IDLE;
	}
	return decode(source, has_read);
}

void
file_source_stored(FileSource *source, const Positions *stored)
{
	for (int i = 0; i < stored->n_positions; i++)
	{
		const Position *position = &stored->list[i];
		Known *known = known_find(source, position->topic);

		/* A later batch may be on its way. */
		if (known != NULL && known->next == position->next && is_unchanged(&known->file, &position->file) &&
			known->file.head_crc == position->file.head_crc &&
			known->file.tail_crc == position->file.tail_crc)
			known->is_stored = true;
	}
}

static bool
is_in_database(const FileSource *source, const Known *known)
{
	(void) source;
	return known->is_row && known->is_stored;
}

void
file_source_positions(FileSource *source, Positions *positions)
{
	Walk walk = known_choose(source, is_in_database);

	for (int i = 0; i < walk.n_known; i++)
	{
		positions->list = mem_grow(positions->list, (size_t) positions->n_positions + 1, sizeof(Position));
		positions->list[positions->n_positions++] = (Position){
			.topic = mem_string(walk.list[i]->name), .stored = walk.list[i]->next, .is_assigned = true};
	}
	free(walk.list);
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
	found_clear(source);
	free(source->found);
	tdestroy(source->known, known_free);
	buffer_free(&source->data);
	free(source);
}
