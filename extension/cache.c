/*
 * cache.c: what is derived from stored models, once a machine.
 *
 * A cache is a handful of sections of bytes under a random uuid that names their contents for ever: the tables hold the
 * truth, and the uuid, and whoever needs the sections and finds no file makes it.  All backends map the file read-only,
 * so the page cache holds it once.
 *
 * The file.  <database directory>/pgsql_tmp_millrace.<uuid>: base backups, pg_rewind and checksum checks skip that name,
 * and it goes with the database.  It is written whole under a name with the writer's pid, which holds a lock (flock) on it,
 * and then renamed: a file with the proper name is complete, and it is never changed or truncated, only replaced or
 * removed.  A backend that maps it keeps what it has mapped.  Nothing is flushed to disk: each backend reads all of it
 * and compares checksums before it maps it (by read(), where a bad disk is an error and no signal), and a file
 * that is not as it should be is made anew.  Without a file (the directory cannot be written, the disk is full, the file
 * would exceed millrace.cache_size) the backend keeps the sections in memory of its own, and says so once a session.
 *
 * Who makes a file holds an advisory lock on the uuid, so that a second backend waits and then maps it.  A training that
 * writes the file of a version that it has not committed holds it to its end.
 *
 * The sweep removes files that nobody wants: those whose uuid no row has, unless somebody holds its lock, and those of
 * writers who are gone.  It looks with the latest snapshot, and once more after it has the lock.  A file that is wanted and
 * removed all the same, by the bound or by hand, is made again when it is needed.
 */
#include "model.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utime.h>

#include "common/file_perm.h"
#include "common/hashfn.h"
#include "storage/fd.h"
#include "storage/lock.h"
#include "utils/snapmgr.h"

#define FILE_PREFIX "pgsql_tmp_millrace."
#define FILE_MAGIC UINT64CONST(0x6568636163524d1a) /* "\x1aMRcache" where the first byte is the lowest */
#define FILE_FORMAT 1							   /* of this file's header, and of what the sections mean */
#define UUID_CHARS 36
#define CHUNK_BYTES (256 * 1024) /* is read, written and hashed at once */
#define SECTION_ALIGN 64
#define LOCK_CLASS 5				  /* of advisory locks */
#define COLD_BYTES (16 * 1024 * 1024) /* to be read from disk: takes a while */
#define TOUCH_US (60 * USECS_PER_SEC)

typedef struct FileSection
{
	uint64 offset;
	uint64 n_bytes;
	uint64 checksum; /* hash_chunk() over its chunks, one after the other, from 0 */
} FileSection;

typedef struct FileHeader
{
	uint64 magic;
	uint32 format;
	uint32 kind;
	pg_uuid_t uuid;
	char release[16]; /* of Millrace: another one may read another meaning into the sections */
	uint64 n_bytes;	  /* of the file */
	FileSection sections[MR_CACHE_SECTIONS];
	uint64 checksum; /* of the bytes before it */
} FileHeader;

int mr_cache_size_kb = 4 * 1024 * 1024;

static bool has_warned = false;

/* ---- names ---- */

/* out: UUID_CHARS + 1 */
static void
uuid_text(const pg_uuid_t *uuid, char *out)
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < UUID_LEN; i++)
	{
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*out++ = '-';
		*out++ = digits[uuid->data[i] >> 4];
		*out++ = digits[uuid->data[i] & 15];
	}
	*out = '\0';
}

static char *
path_of(const char *name)
{
	return psprintf("%s/" FILE_PREFIX "%s", DatabasePath, name);
}

static char *
path_of_uuid(const pg_uuid_t *uuid)
{
	char name[UUID_CHARS + 1];

	uuid_text(uuid, name);
	return path_of(name);
}

static LOCKTAG
lock_of(const char *uuid)
{
	uint64 key = hash_bytes_extended((const unsigned char *) uuid, UUID_CHARS, 0);
	LOCKTAG tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (key >> 32), (uint32) key, LOCK_CLASS);
	return tag;
}

static LOCKTAG
lock_of_uuid(const pg_uuid_t *uuid)
{
	char name[UUID_CHARS + 1];

	uuid_text(uuid, name);
	return lock_of(name);
}

/* ---- reading ---- */

static uint64
hash_chunk(const void *data, Size n_bytes, uint64 before)
{
	return mrc_hash64(data, n_bytes, before);
}

/* Exactly n_bytes; false with errno, which is 0 at the end of the file. */
static bool
read_all(int fd, void *data, Size n_bytes)
{
	while (n_bytes > 0)
	{
		ssize_t n = read(fd, data, n_bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = 0;
			return false;
		}
		data = (char *) data + n;
		n_bytes -= n;
	}
	return true;
}

/* What is wrong with a file of that size, or NULL. */
static const char *
check_header(const FileHeader *header, const pg_uuid_t *uuid, MrCacheKind kind, uint64 n_bytes)
{
	uint64 end = sizeof(FileHeader);

	if (header->magic != FILE_MAGIC || header->format != FILE_FORMAT ||
		strncmp(header->release, MILLRACE_VERSION, sizeof(header->release)) != 0)
		return "it is of another version";
	if (header->checksum != mrc_hash64(header, offsetof(FileHeader, checksum), 0))
		return "its header fails its checksum";
	if (header->kind != kind || memcmp(&header->uuid, uuid, sizeof(*uuid)) != 0)
		return "it is another file";
	if (header->n_bytes != n_bytes)
		return "it has another size";
	for (int i = 0; i < MR_CACHE_SECTIONS; i++)
	{
		const FileSection *section = &header->sections[i];

		if (section->n_bytes == 0)
			continue;
		if (section->offset != TYPEALIGN64(SECTION_ALIGN, end) || section->n_bytes > n_bytes ||
			section->offset + section->n_bytes > n_bytes)
			return "its sections are not in order";
		end = section->offset + section->n_bytes;
	}
	return NULL;
}

/* The same for the contents of its sections; buffer: CHUNK_BYTES. */
static const char *
check_sections(int fd, const FileHeader *header, char *buffer)
{
	for (int i = 0; i < MR_CACHE_SECTIONS; i++)
	{
		const FileSection *section = &header->sections[i];
		uint64 checksum = 0;

		if (section->n_bytes == 0)
			continue;
		if (lseek(fd, section->offset, SEEK_SET) < 0)
			return "it cannot be read";
		for (uint64 done = 0; done < section->n_bytes; done += CHUNK_BYTES)
		{
			Size n = Min(CHUNK_BYTES, section->n_bytes - done);

			CHECK_FOR_INTERRUPTS();
			if (!read_all(fd, buffer, n))
				return errno ? strerror(errno) : "it ends too early";
			checksum = hash_chunk(buffer, n, checksum);
		}
		if (checksum != section->checksum)
			return psprintf("section %d fails its checksum", i);
	}
	return NULL;
}

static void
unmap(void *arg)
{
	MrCache *cache = arg;

	if (cache->map)
		munmap(cache->map, cache->n_bytes);
	cache->map = NULL;
	cache->n_bytes = 0;
}

/* Whether much of a file that is mapped would have to come from the disk. */
static bool
is_cold(void *map, Size n_bytes)
{
	Size page_bytes = sysconf(_SC_PAGESIZE);
	Size n_pages = (n_bytes + page_bytes - 1) / page_bytes;
	Size n_absent = 0;
	unsigned char *pages;

	if (n_bytes < COLD_BYTES)
		return false;
	pages = MemoryContextAllocHuge(CurrentMemoryContext, n_pages);
	if (mincore(map, n_bytes, pages) == 0)
		for (Size i = 0; i < n_pages; i++)
			n_absent += !(pages[i] & 1);
	pfree(pages);
	return n_absent * page_bytes >= COLD_BYTES;
}

/* What is wrong with the open file, or NULL: it is mapped. */
static const char *
map_open_file(MrCache *cache, MrCacheKind kind, const char *what, int fd)
{
	FileHeader header;
	struct stat st;
	const char *why;
	char *buffer;
	char *map;

	if (fstat(fd, &st) != 0 || !read_all(fd, &header, sizeof(header)))
		return errno ? strerror(errno) : "it ends too early";
	why = check_header(&header, &cache->uuid, kind, st.st_size);
	if (why)
		return why;
	map = mmap(NULL, header.n_bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return strerror(errno);
	cache->map = map; /* goes with the cache, also by an error */
	cache->n_bytes = header.n_bytes;
	if (is_cold(map, header.n_bytes))
		ereport(NOTICE,
				(errmsg("reading %s for serving: %.1f MB", what, header.n_bytes / 1048576.0),
				 errdetail("It is not in this machine's memory; after that all sessions share it.")));
	buffer = palloc(CHUNK_BYTES);
	why = check_sections(fd, &header, buffer);
	pfree(buffer);
	if (why)
	{
		unmap(cache);
		return why;
	}
	cache->is_shared = true;
	for (int i = 0; i < MR_CACHE_SECTIONS; i++)
	{
		cache->sections[i].n_bytes = header.sections[i].n_bytes;
		cache->sections[i].data = header.sections[i].n_bytes ? map + header.sections[i].offset : NULL;
	}
	return NULL;
}

/* False if there is no good file; a bad one is told to the server's log. */
static bool
map_file(MrCache *cache, MrCacheKind kind, const char *what)
{
	char *path = path_of_uuid(&cache->uuid);
	int fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);
	const char *why = NULL;

	if (fd >= 0)
		why = map_open_file(cache, kind, what, fd);
	else if (errno != ENOENT)
		why = strerror(errno);
	if (fd >= 0)
		CloseTransientFile(fd);
	if (why)
		ereport(LOG, (errmsg("cache file \"%s\" is not used: %s", path, why)));
	if (cache->map)
		mr_cache_touch(cache);
	pfree(path);
	return cache->map != NULL;
}

void
mr_cache_touch(MrCache *cache)
{
	TimestampTz now = GetCurrentStatementStartTimestamp();
	char *path;

	if (!cache->is_shared || now - cache->touched_us < TOUCH_US)
		return;
	cache->touched_us = now;
	path = path_of_uuid(&cache->uuid);
	(void) utime(path, NULL); /* which file goes first is all that depends on it */
	pfree(path);
}

/* ---- writing ---- */

/* Serving goes on; who has not done what it takes for the file is told once. */
static void
warn_private(const char *what, const char *why, const char *hint)
{
	if (has_warned)
		return;
	has_warned = true;
	ereport(WARNING,
			(errcode(ERRCODE_IO_ERROR), errmsg("%s cannot be kept for all sessions: %s", what, why),
			 errdetail("This session keeps it in memory of its own, and so does every other."),
			 errhint("%s", hint)));
}

static bool
write_all(int fd, const void *data, Size n_bytes)
{
	while (n_bytes > 0)
	{
		ssize_t n = write(fd, data, n_bytes);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
		{
			if (n == 0)
				errno = ENOSPC;
			return false;
		}
		data = (const char *) data + n;
		n_bytes -= n;
	}
	return true;
}

/* All of the file, the header last; false with errno. */
static bool
write_sections(int fd, FileHeader *header, const MrSection *sections)
{
	for (int i = 0; i < MR_CACHE_SECTIONS; i++)
	{
		FileSection *section = &header->sections[i];

		if (section->n_bytes == 0)
			continue;
		if (lseek(fd, section->offset, SEEK_SET) < 0)
			return false;
		for (uint64 done = 0; done < section->n_bytes; done += CHUNK_BYTES)
		{
			const char *chunk = (const char *) sections[i].data + done;
			Size n = Min(CHUNK_BYTES, section->n_bytes - done);

			CHECK_FOR_INTERRUPTS();
			section->checksum = hash_chunk(chunk, n, section->checksum);
			if (!write_all(fd, chunk, n))
				return false;
		}
	}
	header->checksum = mrc_hash64(header, offsetof(FileHeader, checksum), 0);
	return lseek(fd, 0, SEEK_SET) == 0 && write_all(fd, header, sizeof(*header));
}

static void
lay_out(FileHeader *header, const pg_uuid_t *uuid, MrCacheKind kind, const MrSection *sections)
{
	memset(header, 0, sizeof(*header));
	header->magic = FILE_MAGIC;
	header->format = FILE_FORMAT;
	header->kind = kind;
	header->uuid = *uuid;
	strncpy(header->release, MILLRACE_VERSION, sizeof(header->release) - 1);
	header->n_bytes = sizeof(FileHeader);
	for (int i = 0; i < MR_CACHE_SECTIONS; i++)
	{
		if (sections[i].n_bytes == 0)
			continue;
		header->sections[i].offset = TYPEALIGN64(SECTION_ALIGN, header->n_bytes);
		header->sections[i].n_bytes = sections[i].n_bytes;
		header->n_bytes = header->sections[i].offset + sections[i].n_bytes;
	}
}

/* A new file, locked, so that no sweep takes it for one whose writer has gone; below 0 with errno. */
static int
create_locked(const char *path)
{
	for (;;)
	{
		struct stat st;
		int fd;

		(void) unlink(path); /* of an earlier process of that number */
		fd = OpenTransientFile(path, O_WRONLY | O_CREAT | O_EXCL | PG_BINARY);
		if (fd < 0 || flock(fd, LOCK_EX) != 0 || fstat(fd, &st) != 0 || st.st_nlink > 0)
			return fd;
		CloseTransientFile(fd); /* a sweep came in between */
	}
}

/* False with errno; then there is no file. */
static bool
write_file(FileHeader *header, const MrSection *sections, const char *path)
{
	char *temporary = psprintf("%s.%d", path, MyProcPid);
	bool written = false;
	int error;
	int fd;

	fd = create_locked(temporary);
	if (fd < 0)
		return false;
	PG_TRY();
	{
		written = write_sections(fd, header, sections) && rename(temporary, path) == 0;
		error = errno;
	}
	PG_CATCH();
	{
		(void) unlink(temporary);
		PG_RE_THROW();
	}
	PG_END_TRY();
	if (!written)
		(void) unlink(temporary);
	if (CloseTransientFile(fd) != 0 && written)
	{
		error = errno;
		(void) unlink(path);
		written = false;
	}
	pfree(temporary);
	errno = error;
	return written;
}

/* ---- all files of the database ---- */

typedef struct Found
{
	char name[UUID_CHARS + 1]; /* a uuid */
	char *rest;				   /* of a writer: ".pid"; else empty */
	off_t n_bytes;
	time_t used;
} Found;

static bool
is_uuid(const char *name)
{
	return strspn(name, "0123456789abcdef-") == UUID_CHARS;
}

static List *
find_files(void)
{
	DIR *dir = AllocateDir(DatabasePath);
	struct dirent *entry;
	List *found = NIL;

	while ((entry = ReadDirExtended(dir, DatabasePath, LOG)) != NULL)
	{
		const char *name = entry->d_name + strlen(FILE_PREFIX);
		struct stat st;
		Found *file;
		char *path;

		if (strncmp(entry->d_name, FILE_PREFIX, strlen(FILE_PREFIX)) != 0 || !is_uuid(name) ||
			(name[UUID_CHARS] != '\0' && name[UUID_CHARS] != '.'))
			continue;
		path = path_of(name);
		if (stat(path, &st) == 0)
		{
			file = palloc(sizeof(Found));
			memcpy(file->name, name, UUID_CHARS);
			file->name[UUID_CHARS] = '\0';
			file->rest = pstrdup(name + UUID_CHARS);
			file->n_bytes = st.st_size;
			file->used = st.st_mtime;
			found = lappend(found, file);
		}
		pfree(path);
	}
	FreeDir(dir);
	return found;
}

/* Removes the files used longest ago until so many bytes are free; false if they cannot become free. */
static bool
make_room(uint64 n_bytes, const pg_uuid_t *uuid)
{
	uint64 most_bytes = (uint64) mr_cache_size_kb * 1024;
	List *files = find_files();
	char own[UUID_CHARS + 1];
	uint64 used_bytes = 0;
	ListCell *lc;

	uuid_text(uuid, own);
	if (n_bytes > most_bytes)
		return false;
	foreach (lc, files)
		used_bytes += ((Found *) lfirst(lc))->n_bytes;
	while (used_bytes + n_bytes > most_bytes)
	{
		Found *oldest = NULL;
		char *path;

		foreach (lc, files)
		{
			Found *file = lfirst(lc);

			if (file->rest[0] == '\0' && (oldest == NULL || file->used < oldest->used))
				oldest = file;
		}
		if (oldest == NULL)
			break; /* what others are writing counts when it is there */
		path = path_of(oldest->name);
		if (strcmp(oldest->name, own) != 0)
		{
			ereport(DEBUG1, (errmsg("cache file \"%s\" gives way", path)));
			(void) unlink(path);
		}
		pfree(path);
		used_bytes -= oldest->n_bytes;
		files = list_delete_ptr(files, oldest);
	}
	return true;
}

/* Those of the uuids (text) that no row has, by the latest snapshot. */
static List *
strays_of(List *names)
{
	Oid types[1] = {TEXTARRAYOID};
	Datum *elements = palloc(list_length(names) * sizeof(Datum));
	MemoryContext context = CurrentMemoryContext;
	List *strays = NIL;
	Datum values[1];
	MrGuard guard;
	ListCell *lc;
	int n = 0;

	foreach (lc, names)
		elements[n++] = CStringGetTextDatum(lfirst(lc));
	values[0] = PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	PushActiveSnapshot(GetLatestSnapshot());
	mr_exec_args(
		"SELECT s FROM unnest($1) AS s WHERE s NOT IN (SELECT uuid::text FROM millrace.model_version "
		"UNION ALL SELECT lists::text FROM millrace.model WHERE lists IS NOT NULL)",
		SPI_OK_SELECT, true, 1, types, values, NULL);
	PopActiveSnapshot();
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char *name = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		MemoryContext before = MemoryContextSwitchTo(context);

		strays = lappend(strays, pstrdup(name));
		MemoryContextSwitchTo(before);
	}
	mr_leave(&guard);
	SPI_finish();
	return strays;
}

static void
remove_stray(const char *name)
{
	LOCKTAG tag = lock_of(name);
	char *path;

	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		return; /* of a version that is being written */
	if (strays_of(list_make1((char *) name)) != NIL)
	{
		path = path_of(name);
		(void) unlink(path);
		pfree(path);
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
}

/* What a writer leaves whose lock is gone. */
static void
remove_unfinished(const Found *file)
{
	char *path = path_of(psprintf("%s%s", file->name, file->rest));
	int fd = OpenTransientFile(path, O_RDONLY | PG_BINARY);

	if (fd < 0)
		return;
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		(void) unlink(path);
	CloseTransientFile(fd);
	pfree(path);
}

void
mr_cache_sweep(void)
{
	MemoryContext context;
	MemoryContext before;
	List *names = NIL;
	ListCell *lc;

	if (IsInParallelMode())
		return; /* there is no later snapshot than the query's; another time */
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace sweep", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(context);
	foreach (lc, find_files())
	{
		Found *file = lfirst(lc);

		if (file->rest[0] == '\0')
			names = lappend(names, file->name);
		else
			remove_unfinished(file);
	}
	if (names != NIL)
		foreach (lc, strays_of(names))
			remove_stray(lfirst(lc));
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

/* ---- files that go with a transaction ---- */

typedef struct Doomed
{
	char *path;
	SubTransactionId subtransaction;
} Doomed;

static List *doomed_files = NIL;

static void
end_of_transaction(XactEvent event, void *arg)
{
	ListCell *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	foreach (lc, doomed_files)
	{
		Doomed *doomed = lfirst(lc);

		if (event == XACT_EVENT_COMMIT)
			(void) unlink(doomed->path);
		pfree(doomed->path);
	}
	list_free_deep(doomed_files);
	doomed_files = NIL;
}

static void
end_of_subtransaction(SubXactEvent event, SubTransactionId subtransaction, SubTransactionId parent, void *arg)
{
	ListCell *lc;

	if (event != SUBXACT_EVENT_ABORT_SUB)
		return;
	foreach (lc, doomed_files)
	{
		Doomed *doomed = lfirst(lc);

		if (doomed->subtransaction < subtransaction)
			continue;
		/* Its own, or of one inside it that was released. */
		doomed_files = foreach_delete_current(doomed_files, lc);
		pfree(doomed->path);
		pfree(doomed);
	}
}

void
mr_cache_forget(const pg_uuid_t *uuid)
{
	static bool registered = false;
	MemoryContext before = MemoryContextSwitchTo(TopMemoryContext);
	Doomed *doomed = palloc(sizeof(Doomed));

	if (!registered)
	{
		RegisterXactCallback(end_of_transaction, NULL);
		RegisterSubXactCallback(end_of_subtransaction, NULL);
	}
	registered = true;
	doomed->path = path_of_uuid(uuid);
	doomed->subtransaction = GetCurrentSubTransactionId();
	doomed_files = lappend(doomed_files, doomed);
	MemoryContextSwitchTo(before);
}

/* ---- making ---- */

void *
mr_cache_alloc(Size n_bytes)
{
	char *memory = MemoryContextAllocHuge(CurrentMemoryContext, n_bytes + SECTION_ALIGN);

	return (void *) TYPEALIGN(SECTION_ALIGN, memory);
}

/* Write the file of the sections; false if there is none, of which the session has been told. */
static bool
publish(const pg_uuid_t *uuid, MrCacheKind kind, const char *what, const MrSection *sections)
{
	char *path = path_of_uuid(uuid);
	FileHeader *header = palloc(sizeof(FileHeader));
	bool written = false;

	lay_out(header, uuid, kind, sections);
	if (!make_room(header->n_bytes, uuid))
		warn_private(what,
					 psprintf("it takes %.1f MB, more than millrace.cache_size", header->n_bytes / 1048576.0),
					 "Raise millrace.cache_size, which is for all models of a database.");
	else
	{
		written = write_file(header, sections, path);
		if (!written)
			warn_private(what, psprintf("could not write file \"%s\": %s", path, strerror(errno)),
						 "Make room on the disk, or the directory writable for the server, and start new "
						 "sessions.");
	}
	pfree(header);
	pfree(path);
	return written;
}

void
mr_cache_write(const pg_uuid_t *uuid, MrCacheKind kind, const char *what, const MrSection *sections)
{
	LOCKTAG tag = lock_of_uuid(uuid);

	(void) LockAcquire(&tag, ExclusiveLock, false, false); /* to the end of the transaction */
	(void) publish(uuid, kind, what, sections);
	mr_cache_sweep();
}

MrCache *
mr_cache_open(MemoryContext context, const pg_uuid_t *uuid, MrCacheKind kind, const char *what,
			  MrCacheBuild build, void *arg)
{
	MemoryContext own = AllocSetContextCreate(CurrentMemoryContext, "millrace cache", ALLOCSET_SMALL_SIZES);
	MrCache *cache = MemoryContextAllocZero(own, sizeof(MrCache));
	MemoryContext before;
	MemoryContext image;
	LOCKTAG tag;

	cache->uuid = *uuid;
	cache->callback.func = unmap;
	cache->callback.arg = cache;
	MemoryContextRegisterResetCallback(own, &cache->callback);
	if (map_file(cache, kind, what))
	{
		MemoryContextSetParent(own, context);
		return cache;
	}
	tag = lock_of_uuid(uuid);
	(void) LockAcquire(&tag, ExclusiveLock, false, false);
	if (!map_file(cache, kind, what))
	{
		image = AllocSetContextCreate(own, "millrace cache image", ALLOCSET_DEFAULT_SIZES);
		before = MemoryContextSwitchTo(image);
		build(arg, cache->sections);
		if (publish(uuid, kind, what, cache->sections) && map_file(cache, kind, what))
		{
			MemoryContextSwitchTo(before);
			MemoryContextDelete(image);
		}
		else
		{
			MemoryContextSwitchTo(before);
			for (int i = 0; i < MR_CACHE_SECTIONS; i++)
				cache->n_bytes += cache->sections[i].n_bytes;
		}
		mr_cache_sweep();
	}
	(void) LockRelease(&tag, ExclusiveLock, false);
	MemoryContextSetParent(own, context);
	return cache;
}
