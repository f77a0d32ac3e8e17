/*
 * The ingester: events from Kafka, a directory, a file or stdin into a PostgreSQL table, exactly once.
 *
 * A message travels main -> config -> pipeline -> source_* -> decode -> transform -> writer -> partition -> store -> sink, and a
 * file calls only files further down this list (batch, metrics and util serve all).  Each FILE.ini is a stream with two
 * threads.  The reader polls the source and decodes into the open Batch; the writer routes the rows of the batch it was
 * given, and store_batch() writes rows, dead letters and positions in one transaction.  So one batch is sent while the
 * next one fills.  The position in the database is the only one there is.
 *
 * What belongs to whom: source, decoder, mapping and the open batch to the reader; the batch given, the router and, while
 * it has a batch, the sink to the writer.  Config, Table and CopyColumns change only on the reader, and only while the
 * writer has no batch or holds it for the reader.  Both count in Metrics.
 */
#ifndef INGEST_H
#define INGEST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

struct rd_kafka_s; /* rd_kafka_t */

#define NO_TIME INT64_MIN /* no timestamp, or one that only the server can read */

/* Exit codes: a contract, listed in --help and README.md. */
typedef enum ExitCode
{
	EXIT_DONE = 0,		 /* all read (--once), or stopped by a signal; nothing half-written */
	EXIT_INTERNAL = 1,	 /* out of memory, or a defect */
	EXIT_USAGE = 2,		 /* command line or configuration wrong */
	EXIT_SOURCE = 3,	 /* directory, file or topic missing or unreadable, broker error */
	EXIT_CONNECTION = 4, /* no connection to the database within the budget */
	EXIT_TARGET = 5,	 /* table or column unknown, extension missing */
	EXIT_FENCED = 6,	 /* another ingester has moved the position of this stream */
	EXIT_REFUSED = 7,	 /* the server refuses for a reason that is not in the data */
	EXIT_FORCED = 8,	 /* second signal: stopped at once; the open batch is rolled back by the server */
	EXIT_LIMIT = 9		 /* more dead letters than dead_letters.limit */
} ExitCode;

/* ---- util.c ---- */

typedef enum LogLevel
{
	LOG_ERROR,
	LOG_WARNING,
	LOG_INFO,
	LOG_DEBUG
} LogLevel;

typedef enum LogFormat
{
	LOG_TEXT,
	LOG_JSON /* an object a line: time, level, stream, message */
} LogFormat;

/* Of the process. */
extern _Atomic LogLevel log_level;
extern _Atomic LogFormat log_format;
extern bool log_names_streams; /* in text, too; set while one thread runs */
/* What the calling thread logs from now on is about this stream; NULL: about the process.  The text is kept by the caller. */
void log_stream(const char *stream);
void log_line(LogLevel level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A line that is written over by the next one on a terminal. */
void log_progress(bool final, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Allocation that ends the process with EXIT_INTERNAL instead of returning NULL. */
void *mem_alloc(size_t n_bytes);
void *mem_grow(void *old, size_t n_items, size_t item_bytes);
char *mem_string(const char *text);
char *mem_printf(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Memory of one batch: grows by chunks, is given back all at once, and keeps its ordinary chunks for the next batch. */
typedef struct Arena
{
	struct ArenaChunk *first, *current;
	struct ArenaChunk *large;	 /* one for each piece that fits no ordinary chunk; freed at reset */
	struct ArenaChunk *reserved; /* where arena_reserve() found room */
	size_t used_bytes;			 /* handed out since the last reset */
} Arena;

void *arena_alloc(Arena *arena, size_t n_bytes);   /* aligned to 8 */
char *arena_reserve(Arena *arena, size_t n_bytes); /* room that arena_take() then cuts; unaligned */
void arena_take(Arena *arena, size_t n_bytes);
char *arena_copy(Arena *arena, const void *data, size_t n_bytes);
void arena_reset(Arena *arena);
void arena_free(Arena *arena);

typedef struct Buffer
{
	char *data;
	size_t n_bytes, capacity;
} Buffer;

char *buffer_room(Buffer *buffer, size_t n_bytes); /* makes room behind the end and returns it */
void buffer_add(Buffer *buffer, const void *data, size_t n_bytes);
void buffer_printf(Buffer *buffer, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_free(Buffer *buffer);

int64_t clock_us(void);		/* wall clock, microseconds since 1970 UTC */
int64_t monotonic_us(void); /* never goes back */
void wait_ms(int64_t ms);	/* ends early when stop_requested() */
/*
 * A signal or a failed stream asks for the end.  On a thread that has called stop_after_drain() it is true only once
 * stop_now() was called, because batch.drain is over.
 */
bool stop_requested(void);
void stop_after_drain(void);
void stop(void);	 /* as SIGTERM does */
void stop_now(void); /* nobody tries again from now on */
void signals_install(void);
void signals_end_within(int64_t ms); /* the process ends then with EXIT_FORCED, whatever it does */
void signals_take_reload(void);		 /* from now on SIGHUP no longer ends the process */
bool reload_requested(void);		 /* SIGHUP came since the last call */
void wait_for_wake(int64_t ms);		 /* main thread: ends early at a signal, and at wake_main() */
void wake_main(void);
size_t name_distance(const char *a, const char *b);
/* The choice nearest to name, or NULL when none is near enough to suggest. */
const char *name_nearest(const char *name, const char *const *choices, int n_choices);
/* Bytes of a line without its end, \n or \r\n. */
size_t line_bytes(const char *data, size_t n_bytes);
/* NULL for well-formed UTF-8 without NUL as PostgreSQL accepts it, else what is wrong; *at is set to the byte. */
const char *text_defect(const char *text, size_t n_bytes, size_t *at);
/*
 * Date or time in ISO form (2011-12-08, 2011-12-08 10:05[:06[.7]], T for the blank, Z or +hh[:mm[:ss]] or +hhmm).  False
 * for everything else, also for what no calendar has: the server decides about those.  *has_zone: a zone was given and
 * is applied; otherwise the time is read as UTC.
 */
bool time_parse(const char *text, size_t n_bytes, int64_t *time_us, bool *has_zone);
int64_t start_of_day(int64_t time_us); /* UTC; rounds down, also before 1970 */
void
time_format(int64_t time_us, char *out, size_t out_bytes); /* "2011-12-08 10:05:06.000007+00", or "... BC" */
uint64_t random_bits(uint64_t *state);					   /* 64 a step; every seed is good */
double random_share(uint64_t *state);					   /* 0 <= share < 1 */
int64_t
random_between(uint64_t *state, int64_t least, int64_t most); /* both possible; far less than 2^53 apart */
bool happens(uint64_t *state, double share);
void
uuid_format(uint64_t high, uint64_t low, char *out, size_t out_bytes); /* of random bits, a UUID; 37 bytes */

/* ---- config.c ---- */

typedef enum SourceType
{
	SOURCE_DIRECTORY,
	SOURCE_FILE,
	SOURCE_STDIN,
	SOURCE_KAFKA
} SourceType;

typedef enum Format
{
	FORMAT_CSV,
	FORMAT_JSON
} Format;

/* What becomes of a file of the directory when it is stored to its end. */
typedef enum CleanSource
{
	CLEAN_OFF,
	CLEAN_ARCHIVE,
	CLEAN_DELETE
} CleanSource;

/* Where a stream begins that has no position yet. */
typedef enum Start
{
	START_EARLIEST,
	START_LATEST,
	START_STORED, /* nowhere: it is an error */
	START_TIME
} Start;

/* Positions whose messages the broker no longer has. */
typedef enum LostPolicy
{
	LOST_STOP,
	LOST_SKIP
} LostPolicy;

/* NaN, Infinity and -Infinity in JSON, as some producers write them. */
typedef enum NanPolicy
{
	NAN_REFUSE,
	NAN_NULL,
	NAN_TEXT /* as if they stood between quotes */
} NanPolicy;

/* A field of a message that no column takes. */
typedef enum UnknownPolicy
{
	UNKNOWN_IGNORE,
	UNKNOWN_JSONB,
	UNKNOWN_ADD_COLUMN,
	UNKNOWN_DEAD_LETTER
} UnknownPolicy;

/* A key whose name the user chooses: a [columns] line, or a librdkafka property. */
typedef struct Pair
{
	char *name, *value;
	const char *origin; /* file, flag or environment */
	int line;			/* 0: not from a file */
} Pair;

typedef struct Pairs
{
	Pair *list;
	int n_pairs;
} Pairs;

/* Which dead letters of the stream: millrace dead-letters. */
typedef struct LetterFilter
{
	const char *ids;			  /* int8multirange; NULL: any */
	const char *stage, *sqlstate; /* NULL: any */
	int64_t limit;
} LetterFilter;

typedef struct Config
{
	int64_t type, format;
	char *path, *pattern, *topic, *brokers, *group, *name;
	int64_t poll_ms, max_record_bytes;
	int64_t max_files_per_batch, latest_first, max_file_age_ms, min_age_ms, last_line_age_ms, clean_source;
	char *archive; /* directory for CLEAN_ARCHIVE */

	char *partitions_text;
	int32_t *partitions; /* of the topic that are read, in order; NULL: those that the group gives */
	int n_partitions;
	char *start_text;
	Start start;
	int64_t start_us; /* of START_TIME */
	int64_t on_lost, revoke_wait_ms, kafka_reconnect_ms;
	int64_t csv_header;
	char *csv_delimiter, *csv_null, *csv_columns, *csv_quote, *csv_escape;
	int64_t json_nan;
	char *connection, *table, *time_column, *timezone;
	int64_t reconnect_ms, retry_ms, lock_timeout_ms;
	int64_t maintain_ms;
	int64_t on_unknown_field;
	char *unknown_column; /* takes $rest; NULL: a [columns] line says which */
	char *min_time;
	int64_t max_future_ms;
	int64_t min_time_us; /* parsed from min_time */
	int64_t max_rows, max_bytes, max_age_ms, drain_ms;
	int64_t log_level, log_format;
	bool log_level_given;
	char *metrics_listen; /* host:port; NULL: off */
	int64_t metrics_interval_ms;
	Pairs columns, kafka;
	int64_t dead_limit;
	/* command line only */
	const LetterFilter *replay; /* these are the source; NULL: the source is */
	const char *file;
	int n_flags;
	char **flags;
	bool once, progress;
	int64_t n_shown;		  /* rows to print instead of storing any; 0: none */
	struct Setting *settings; /* where each option was set */
	int n_errors;			  /* reported so far */
	struct Metrics *metrics;  /* of the stream; config_load() makes them, config_free() frees them */
} Config;

/* Reads FILE.ini, then the environment, then the flags; reports every error it finds and returns EXIT_USAGE if any. */
ExitCode config_load(Config *config, const char *file, int n_flags, char **flags);
/* An error at the place where the option "section.key" was set. */
void config_error_at(Config *config, const char *option, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
void config_error_pair(Config *config, const Pair *pair, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* False, and an error, when two streams have one name; a name that is not known yet is none. */
bool config_names_differ(Config *config, const Config *first);
/* Reports what two files that run in one process cannot have both; at config's place. */
void config_agree(Config *config, const Config *first);
/* Takes over what can change while the stream runs, and logs the names of the rest.  fresh stays the caller's. */
void config_apply(Config *config, const Config *fresh);
void config_help(FILE *out);
void config_print_wrapped(FILE *out, const char *text); /* with an indent, at most 100 columns wide */
bool config_duration(const char *text, int64_t *ms);	/* "500ms", "10s", "-2h"; false: it is none */
void config_free(Config *config);

/* ---- metrics.c ---- */

#define N_BATCH_BUCKETS 14 /* upper limits are in metrics.c; the last is infinity */

/*
 * What a stream has done since the process started, and what it is doing.  Whoever knows adds to a counter, from any
 * thread: `config->metrics->n_rows += n`.
 */
typedef struct Metrics
{
	const char *stream;
	_Atomic int64_t n_messages;					/* read from the source, bad ones included */
	_Atomic int64_t n_rows;						/* stored in the table */
	_Atomic int64_t n_bytes;					/* of the stored messages, as they came */
	_Atomic int64_t n_batches;					/* committed */
	_Atomic int64_t n_dead_letters;				/* stored in millrace.dead_letters */
	_Atomic int64_t n_retries;					/* refused by the server, and tried again */
	_Atomic int64_t n_unanswered;				/* COMMITs whose answer was lost */
	_Atomic int64_t n_reconnects;				/* to the database */
	_Atomic int64_t n_fenced;					/* batches given up because the position had been moved */
	_Atomic int64_t n_partitions;				/* of the table, made */
	_Atomic int64_t n_expired;					/* partitions of the table, dropped */
	_Atomic int64_t n_rebalances;				/* Kafka partitions given or taken away: events */
	_Atomic int64_t n_kafka_errors;				/* reported by librdkafka */
	_Atomic int64_t n_kafka_reconnects;			/* brokers were away, and are back */
	_Atomic int64_t n_skipped;					/* offsets that the broker has lost, jumped over */
	_Atomic int64_t n_reloads;					/* of the table's columns */
	_Atomic int64_t lag;						/* Kafka: messages not yet stored, of all partitions */
	_Atomic int64_t n_files, n_files_total;		/* of the directory: read, and there */
	_Atomic int64_t open_rows;					/* in the batch that fills */
	_Atomic int64_t stored_us;					/* wall clock of the last commit; 0: none */
	_Atomic bool is_reading;					/* set up */
	_Atomic bool is_database_lost;				/* no connection, or the server refuses for now */
	_Atomic bool is_broker_lost;				/* Kafka: no broker answers */
	_Atomic bool is_paused;						/* Kafka: not read, because the database is slower */
	_Atomic int64_t batch_us;					/* sum of the times to store a batch */
	_Atomic int64_t of_bucket[N_BATCH_BUCKETS]; /* batches by that time */
	struct Lags *lags;
	struct Metrics *next; /* of the process */
} Metrics;

/* The stream's name is copied. */
Metrics *metrics_open(const char *stream);
/* The stream has another name; the text is copied. */
void metrics_rename(Metrics *metrics, const char *stream);
void metrics_close(Metrics *metrics);
/* From now on they are served, until metrics_close(). */
void metrics_publish(Metrics *metrics);
/* A batch is committed; n_bytes as the messages came, us from the first try to COMMIT's answer. */
void metrics_batch(Metrics *metrics, int64_t n_rows, int64_t n_bytes, int64_t us);
/* Messages of a Kafka partition that are not stored yet.  Negative: it is no longer this process's. */
void metrics_lag(Metrics *metrics, const char *topic, int32_t partition, int64_t lag);

typedef struct Sample
{
	const char *name;  /* without the prefix millrace_ */
	const char *bound; /* of a histogram's bucket; NULL: none */
	const char *topic; /* NULL: none */
	int32_t partition;
	double value;
} Sample;

typedef void SampleSeen(const Sample *sample, void *to);
/* Every sample of a stream. */
void metrics_each(Metrics *metrics, SampleSeen *seen, void *to);

/* Serves /metrics, /healthz and /readyz on config->metrics_listen, on a thread of its own; nothing when that is NULL.  Once a process. */
ExitCode metrics_serve(Config *config);
void metrics_stop(void);

/* ---- pipeline.c ---- */

/* Runs the streams until all have ended; the code of the first that fails, which ends the others. */
ExitCode pipeline_run(Config *configs, int n_configs);
ExitCode pipeline_check(Config *config);

/* ---- maintain.c ---- */

typedef struct Maintainer Maintainer;

/* A thread that does sink_maintain() for each stream every target.maintain, over a connection that is open no longer. */
Maintainer *maintainer_start(Config *configs, int n_configs);
void maintainer_stop(Maintainer *maintainer);

/* ---- batch.c ---- */

/* What tells a file from another one of its name, and itself under another name; zeroed for everything else. */
typedef struct FileMark
{
	uint64_t inode;				 /* 0: not a regular file */
	int64_t born_ns;			 /* its birth; 0: the file system does not know */
	int64_t modified_us;		 /* as it was opened */
	int64_t size_bytes;			 /* on disk, when its end was reached; -1: not yet */
	uint32_t head_crc, tail_crc; /* CRC-32 of its first KiB, and of the last KiB before the position */
	bool has_prints;			 /* these are known */
	const char *defect;			 /* why it cannot be read on: lives as long as the process; NULL: it can */
} FileMark;

/* How far a stream has read one file or Kafka partition. */
typedef struct Position
{
	char *topic;
	char *csv_header; /* record of a CSV file that names the fields, as it came; NULL: none */
	int32_t partition;
	bool is_assigned;
	bool is_new;	 /* the database has no row for it yet: the batch's transaction makes it */
	bool is_changed; /* file is not what the database has */
	FileMark file;
	int64_t stored; /* next offset as the database has it */
	int64_t next;	/* next offset once the open batch is stored */
} Position;

typedef struct Positions
{
	Position *list;
	int n_positions;
} Positions;

int position_find(Positions *positions, const char *topic, int32_t partition); /* adds it when new */
int position_add(Positions *positions, const char *topic, int32_t partition);
void positions_clear(Positions *positions);
/* The batch moves it. */
bool position_is_touched(const Position *position);

typedef struct Message
{
	const char *data, *key; /* NULL: none; without data it is a tombstone */
	const char *headers;	/* one JSON object, valid UTF-8; NULL: none */
	size_t n_bytes, n_key_bytes, n_header_bytes;
	int32_t position;
	int64_t offset, next_offset;
	int64_t timestamp_us; /* NO_TIME: none */
} Message;

typedef struct DeadLetter
{
	const char *stage, *reason; /* read, decode, partition, store */
	char sqlstate[6];			/* "" when no server was asked */
	bool is_suspect;			/* what is true of it may change: forgotten when the batch is not stored */
	bool is_aside;				/* tried again when all other rows are stored */
} DeadLetter;

#define LEAF_PARENT (-1) /* through the table itself: PostgreSQL routes */
#define LEAF_WANTED (-2) /* no leaf holds time_us yet */

/* One message.  raw, key, headers, copy and dead live in the batch's arena. */
typedef struct Row
{
	const char *raw, *key, *headers; /* as in Message */
	const char *copy; /* one line of COPY text with its \n; NULL for a dead letter of decode or partition */
	const char *time_text; /* event time that only the server can read; NULL: none */
	DeadLetter *dead;
	int64_t offset, time_us;
	int64_t timestamp_us; /* of the message; NO_TIME: none */
	uint64_t omitted;	  /* bit i: the i-th column with a default is left to the server */
	uint32_t raw_bytes, key_bytes, header_bytes, copy_bytes, time_bytes;
	int32_t position, leaf, next;
	bool is_dropped;   /* its Kafka partition was taken away */
	bool is_defaulted; /* its event time is the column's DEFAULT */
	uint8_t n_moved;   /* how often no partition took it although the partitions were just read */
} Row;

typedef struct Batch
{
	Arena arena;
	Row *rows;
	int n_rows, capacity;
	int n_dropped;
	int64_t number;	   /* of the batch in this run, from 1 */
	int64_t opened_us; /* monotonic time of the first row */
	int64_t max_rows, max_bytes;
	bool has_moved;	  /* a position moved even without a row: a header, a blank line */
	int64_t *letters; /* replay: the dead letter that rows[i] was, in the arena; NULL: none was one */
	Positions positions;
} Batch;

bool batch_is_full(const Batch *batch);
void batch_reset(Batch *batch);
void batch_free(Batch *batch);
/*
 * Puts what open holds into sealed, which is empty, and leaves an empty batch in open whose positions go on where those
 * of the sealed one end.  Places in the list of positions stay the same.
 */
void batch_seal(Batch *open, Batch *sealed);
/* Adds a row with a copy of the message; the caller sets copy and time. */
Row *batch_add(Batch *batch, const Message *message);
void batch_dead_letter(Batch *batch, const Message *message, const char *stage, const char *sqlstate,
					   const char *reason);
DeadLetter *row_kill(Batch *batch, Row *row, const char *stage, const char *sqlstate, const char *reason);
/* Rows of positions that are no longer assigned leave the batch. */
void batch_drop_unassigned(Batch *batch);

/* ---- sink.c ---- */

typedef struct Column
{
	char *name, *quoted;
	uint32_t type_oid;
	bool is_json, has_default;
	bool is_json_array;	  /* an array of json or jsonb */
	char array_delimiter; /* of an array's literal; 0: no array */
	char *expression;	  /* of the DEFAULT; NULL: none */
} Column;

typedef struct Table
{
	char *name;				 /* schema-qualified and quoted */
	char *schema, *relation; /* bare names, as errors and COPY's context have them */
	uint32_t oid;
	bool makes_partitions; /* millrace.ensure_partitions does something for it */
	bool is_routed;		   /* partitioned by time and registered: rows go straight to the leaves */
	bool may_lock;		   /* INSERT on the table, not only on some of its columns */
	char *signature;	   /* of oid and columns */
	char *time_column;	   /* NULL: none */
	int64_t retention_us;  /* no partition is made for what is older; 0: none */
	Column *columns;
	int n_columns;
} Table;

typedef struct Leaf
{
	char *name, *schema, *relation;
	uint32_t oid;
	int64_t from_us, to_us; /* from_us <= time < to_us */
} Leaf;

typedef struct Leaves
{
	Leaf *list; /* by from_us */
	int n_leaves;
} Leaves;

typedef enum SinkStatus
{
	SINK_OK,
	SINK_LOST,	  /* connection gone: reconnect, then again */
	SINK_RETRY,	  /* refused for a passing reason, perhaps: again later */
	SINK_MOVED,	  /* a leaf is gone or detached: read the partitions anew, then again */
	SINK_CHANGED, /* the table has other columns than the rows were made for */
	SINK_DENIED,  /* a privilege is missing */
	SINK_FENCED,  /* the position is not what this process last saw */
	SINK_BROKEN,  /* every row is refused, so the fault is not in the rows */
	SINK_LIMIT /* more dead letters than dead_letters.limit; what was given is stored, and the batch empty, or not touched */
} SinkStatus;

/* Budgets of one operation; zero it before the first try. */
typedef struct Retry
{
	int64_t lost_since_us, refused_since_us;
	int64_t pause_ms;
	int n_moved;
} Retry;

/* What the rows of a batch look like to COPY; made by transform.c. */
typedef struct CopyColumns
{
	const Column **columns;
	int *default_bit; /* -1: always in the row */
	int n_columns;
} CopyColumns;

typedef struct Sink Sink;

/* With an error of the configuration the connection may be there all the same, for more to be checked. */
ExitCode sink_open(Config *config, Sink **sink);
bool sink_is_open(const Sink *sink);
void sink_close(Sink *sink);
/* Table, columns, time column.  Adds errors to config instead of stopping at the first. */
ExitCode sink_describe(Sink *sink, Config *config, Table *table);
/* Reports at rule the default: of a column that its type cannot take. */
void sink_check_default(Sink *sink, Config *config, const Table *table, const Column *column,
						const Pair *rule, const char *text);
void table_free(Table *table);
/* Has the table, asked for by its name, other columns or another oid than when it was described? */
SinkStatus sink_has_changed(Sink *sink, const Table *table, bool *has_changed);
/* Makes a statement that is running fail.  Any thread. */
void sink_cancel(Sink *sink);
/* Columns to be added to the table: on_unknown_field = add_column. */
typedef struct NewColumn
{
	char *name;
	const char *type; /* as in SQL; a literal */
} NewColumn;

typedef struct NewColumns
{
	NewColumn *list;
	int n_columns;
} NewColumns;

/*
 * Adds the columns in a transaction of its own, under target.lock_timeout; one that somebody else has added meanwhile is
 * left as it is.  To be tried again like any other operation: sink_again().
 */
SinkStatus sink_add_columns(Sink *sink, const Table *table, const NewColumns *columns);
SinkStatus sink_leaves(Sink *sink, const Table *table, Leaves *leaves);
void leaves_free(Leaves *leaves);
/* SINK_OK also when the default partition holds rows of that time: then none is made. */
SinkStatus sink_ensure_partitions(Sink *sink, const Table *table, int64_t from_us, int64_t to_us);
/*
 * Event times as the server reads them: texts[i] of n_bytes[i] bytes, or the DEFAULT of the time column for a NULL
 * text.  times_us[i] becomes NO_TIME for what is no time, and for infinity.
 */
SinkStatus sink_read_times(Sink *sink, const Table *table, int n_texts, const char *const *texts,
						   const uint32_t *n_bytes, int64_t *times_us);
#define NO_OFFSET (-1)
/*
 * Next offset of one position; a new one starts at first, or is NO_OFFSET if that is first.  Waits for a transaction that
 * is about to move it.
 */
SinkStatus sink_position(Sink *sink, Position *position, int64_t first);
/* Stores firsts[i] for partitions[i] of the topic, unless the stream has a position of any of them. */
SinkStatus sink_first_positions(Sink *sink, const char *topic, int n_partitions, const int32_t *partitions,
								const int64_t *firsts);
/* Every stored position of this stream, of partition 0, with its file: for the file source. */
SinkStatus sink_positions(Sink *sink, Positions *positions);
/* Whether the database has every assigned position as stored. */
SinkStatus sink_compare(Sink *sink, const Positions *positions, bool *is_same);
/* Between batches: is the server connected?  Where it is not, tries to connect, once in 5 s. */
bool sink_is_there(Sink *sink);
/* Forgets positions of files that are gone: their rows are deleted, where they still are as stored here. */
SinkStatus sink_forget(Sink *sink, const Positions *positions);
/* One transaction: rows, dead letters, positions.  leaves[row->leaf] is the table a row goes to. */
SinkStatus
store_batch(Sink *sink, const Table *table, const Leaves *leaves, const CopyColumns *columns, Batch *batch);
/* After a status: false when there is nothing to try again or the budget is used up (then *exit_code says which). */
bool sink_again(Sink *sink, Retry *retry, SinkStatus status, ExitCode *exit_code);
/* Line number in the context of a COPY error, or 0.  relation: the table's bare name. */
int64_t copy_context_line(const char *context, const char *relation);
/* True when nothing stands in the context before COPY's own line: no trigger, function or stream was at work. */
bool copy_context_is_plain(const char *context, const char *relation);
/* True when COPY's own line is the first, and names a column: the input of a value failed. */
bool copy_context_has_column(const char *context, const char *relation);
/*
 * While a handler refuses a whole batch: a row of the open one may show that it does not refuse every row.  Reader's thread,
 * at any time.
 */
void store_offer(Sink *sink, const Batch *open);

/* A dead letter as it is kept; everything lives as long as the result it comes from. */
typedef struct Letter
{
	int64_t id;
	Message message; /* without position */
	const char *topic;
	int32_t partition;
	const char *csv_header; /* NULL: none */
	const char *stage, *sqlstate, *reason, *created;
} Letter;

typedef void (*LetterCall)(void *context, const Letter *letter, int number, int n_letters);

/*
 * Letters of the stream with after < id <= *until, by id, at most n_most and with payloads of some max_bytes; *until 0: set
 * to the last there is.  *n_letters 0: there are no more.
 */
SinkStatus sink_letters(Sink *sink, const LetterFilter *filter, int64_t after, int64_t *until, int64_t n_most,
						int64_t max_bytes, LetterCall call, void *context, int *n_letters);

typedef void (*OffsetCall)(void *context, const char *topic, const char *partition, const char *next_offset,
						   const char *updated);
/* Every position of the stream, by topic and partition. */
SinkStatus sink_offsets(Sink *sink, OffsetCall call, void *context);
/* Sets one; *old, which the caller frees, is what it was, NULL: there was none. */
SinkStatus
sink_set_offset(Sink *sink, const char *topic, const char *partition, const char *next_offset, char **old);
/* Blocks of fewer rows than this go together through the parent: a COPY of their own costs more than routing. */
#define PARENT_BELOW_ROWS 1000

/*
 * Writes the stream's metrics to millrace.ingest_metrics when the last time is metrics.interval ago, or for the last
 * time.  Between batches only.  A failure is logged; a connection that is lost is found by the next statement.
 */
void sink_metrics(Sink *sink, bool is_last);

/*
 * What is to be done from time to time: millrace.maintain(), and dropping the partitions that are older than the table's
 * retention; each if the role may, and if no other process is at it.  Takes as long as others hold locks; sink_cancel()
 * ends it.  What goes wrong is logged, and done the next time.
 */
void sink_maintain(Sink *sink);

/* ---- partition.c: on the writer's thread ---- */

typedef struct Router
{
	Sink *sink;
	const Table *table;
	Leaves leaves;
	int last; /* leaf of the last row: the next one mostly follows it */
	int64_t min_us, max_future_us;
} Router;

int router_find(Router *router, int64_t time_us); /* leaf, LEAF_PARENT or LEAF_WANTED */
/* Sets the row's leaf from its time, or makes it a dead letter when the time is outside the sane range. */
void router_route(Router *router, Batch *batch, Row *row);
/* Every row of a batch that was just given to the writer. */
void router_route_all(Router *router, Batch *batch);
/* Makes the partitions that rows of the batch want.  After it no row is LEAF_WANTED. */
SinkStatus router_prepare(Router *router, Batch *batch);
SinkStatus router_reload(Router *router, Batch *batch);
void router_free(Router *router);

/* ---- writer.c ---- */

typedef struct Writer Writer;

typedef enum WriterState
{
	WRITER_GOOD,
	WRITER_CHANGED, /* the table's columns no longer fit the batch, which is held for the reader */
	WRITER_FENCED,	/* the position is not what it was; the batch is held until writer_forget() */
	WRITER_FAILED	/* for good */
} WriterState;

/*
 * The writer of a stream.  Everything given must outlive it; it does not own the sink.  All functions below are for the
 * reader's thread.
 */
Writer *writer_open(const Config *config, Sink *sink, const Table *table, const CopyColumns *columns);
/* Has batch.drain's time for the batch it has, if a stop was asked for; otherwise until the batch is stored. */
void writer_close(Writer *writer);
/*
 * Takes the batch as batch_seal() does; batch is empty then.  Waits while the writer works: ask writer_is_idle() first.
 * False: nothing was taken, the writer holds its last batch.
 */
bool writer_give(Writer *writer, Batch *batch);
bool writer_is_idle(Writer *writer); /* has no batch */
/* Until it is idle.  False: not within that time, a stop was asked for, or it holds its batch: see writer_state(). */
bool writer_wait(Writer *writer, int64_t within_ms);
/*
 * Waits while the writer works.  The caller may use the sink until its next writer_give(), writer_resume() or
 * writer_forget().  NULL: the writer has failed.
 */
Sink *writer_sink(Writer *writer);
WriterState writer_state(Writer *writer, ExitCode *code); /* *code: of WRITER_FENCED and WRITER_FAILED */
/*
 * The positions of the batch that was stored since the last call, once; false: none was.  The caller clears *out, and
 * asks before it gives the next batch.
 */
bool writer_stored(Writer *writer, Positions *out);
Batch *writer_held(Writer *writer); /* the batch of WRITER_CHANGED and WRITER_FENCED, or NULL */
/* Table and columns were read anew: partitions are, too, and a batch that is held is stored. */
void writer_resume(Writer *writer);
/* Drops the batch that is held. */
void writer_forget(Writer *writer);
/* ---- transform.c ---- */

typedef enum ValueKind
{
	VALUE_MISSING,
	VALUE_NULL,
	VALUE_TEXT
} ValueKind;

typedef struct Value
{
	const char *data;
	uint32_t n_bytes;
	ValueKind kind;
} Value;

typedef enum FieldKind
{
	FIELD_NAMED,
	FIELD_WHOLE,
	FIELD_TOPIC,
	FIELD_PARTITION,
	FIELD_OFFSET,
	FIELD_KEY,
	FIELD_TIMESTAMP,
	FIELD_HEADER,  /* one, by name */
	FIELD_HEADERS, /* all, as a JSON object */
	FIELD_REST	   /* fields that no column takes, as a JSON object */
} FieldKind;

typedef enum TimeFormat
{
	FORMAT_NONE,  /* the server reads it */
	FORMAT_ISO,	  /* ISO 8601 and nothing else */
	FORMAT_EPOCH, /* a number, of unit_us */
	FORMAT_PATTERN
} TimeFormat;

/* One target column: what fills it. */
typedef struct Mapped
{
	const Column *column;
	FieldKind kind;
	char *field;	  /* name or path, or $ and what follows */
	char *fallback;	  /* for a missing field; NULL: none */
	const Pair *rule; /* the [columns] line; NULL: implicit, by name */
	TimeFormat format;
	char *pattern;	 /* for FORMAT_PATTERN */
	int64_t unit_us; /* for FORMAT_EPOCH */
	bool drops_zone; /* the column has none, so what format gives has none, either: it is UTC */
} Mapped;

#define VALUE_ROOM 64 /* for a number or a time that is made here */

typedef struct Mapping
{
	Mapped *columns;
	int n_columns;
	int time_index;	   /* -1: no time column among them */
	int rest_index;	   /* of FIELD_REST; -1: none */
	bool has_headers;  /* some FIELD_HEADER */
	bool is_named;	   /* every column takes its field as it is */
	bool is_utc;	   /* a time without a zone is UTC */
	bool ignores_zone; /* time column without time zone: PostgreSQL drops the zone */
	bool is_date;
	CopyColumns copy;
	const Table *table;
	Batch *batch;
	Value *values; /* of one message, one per column; filled by decode.c, changed by transform_row() */
	char (*texts)[VALUE_ROOM]; /* made values, one per column */
	Row *again;				   /* the row that is decoded again; NULL: rows are added */
	int64_t number;			   /* of the mapping_build(), in this process */
} Mapping;

/* Reports every wrong [columns] line. */
ExitCode mapping_build(Mapping *mapping, Config *config, const Table *table);
void mapping_free(Mapping *mapping); /* the batch stays, for the next mapping_build() */
/*
 * Makes a row, or a dead letter, of mapping->values.  values[i] belongs to columns[i]; the bytes must be valid UTF-8
 * without NUL.  The leaf is the writer's: here only time_us, or time_text where the server has to read it.
 */
void transform_row(Mapping *mapping, const Message *message);
/* The message becomes a dead letter of stage decode. */
Row *transform_refuse(Mapping *mapping, const Message *message, const char *reason);
/* COPY text of a value; out has room for 2 * n_bytes.  Returns the end. */
char *copy_escape(char *out, const char *text, size_t n_bytes);

/* Fields that no column takes, under on_unknown_field = add_column or dead_letter.  Zeroed but for the first two. */
typedef struct Growth
{
	const Config *config;
	const Table *table;
	NewColumns wanted; /* not yet handed out */
	NewColumns asked;  /* handed out before */
	NewColumns given;  /* the end of asked: what was handed out last */
} Growth;

/*
 * Such a field, and the type of a column for it; NULL: it tells nothing.  Writes why the message cannot be stored, if it
 * cannot, or not yet, to reason: it is a dead letter until it is decoded again.
 */
void growth_field(Growth *growth, const char *name, size_t n_bytes, const char *type, char *reason,
				  size_t reason_bytes);
/* What is wanted, once; NULL: nothing.  Valid until the next call. */
const NewColumns *growth_take(Growth *growth);
void growth_free(Growth *growth);

/* ---- decode_json.c ---- */

typedef struct JsonReader JsonReader;

JsonReader *decode_json_open(const Config *config, Mapping *mapping, Growth *growth);
void decode_json_close(JsonReader *json);
/* After mapping_build(). */
void decode_json_remap(JsonReader *json);
/*
 * Both fill mapping->values, which begin as missing; return what is wrong with the message, or NULL.  Headers come
 * first.  The message must be valid UTF-8 without NUL.
 */
const char *decode_json_headers(JsonReader *json, const Message *message, char *reason, size_t reason_bytes);
const char *decode_json_read(JsonReader *json, const Message *message, char *reason, size_t reason_bytes);

/* ---- decode.c ---- */

typedef struct Decoder Decoder;

Decoder *decoder_open(const Config *config, Mapping *mapping);
void decoder_free(Decoder *decoder);
/* One Kafka message. */
void decode_message(Decoder *decoder, const Message *message);
/* A new file or stream of bytes; a header is to be read first when decode_wants_header() says so. */
void decode_start(Decoder *decoder, const char *file_name);
bool decode_wants_header(const Decoder *decoder);
/* data: the beginning of the file.  Returns the header's bytes, 0: it goes on behind them, or *status is not EXIT_DONE. */
size_t decode_header(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, ExitCode *status);
/*
 * As many whole records as fit into the batch; moves the position.  offset: of data[0] in the file.  at_end: no bytes
 * follow.  Returns the bytes used.
 */
size_t decode_bytes(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, int32_t position,
					int64_t offset);

/*
 * Columns that rows of the open batch want (on_unknown_field = add_column), or NULL; valid until the next call.  To be
 * asked after each poll and each decode_again(), before a batch is sealed.  The caller adds them, describes the table and
 * builds the mapping anew, and decodes the rows again.  No name is given twice.
 */
const NewColumns *decode_wants(Decoder *decoder);
/*
 * After mapping_free() and mapping_build() of the decoder's mapping: each row of the batch (the open one, or one that
 * waits) that is not dropped is decoded anew from its raw bytes, whatever became of it before, CSV by the header it was
 * read under.  To be called for the open batch at least, even when it is empty.
 */
void decode_again(Decoder *decoder, Batch *batch);

/*
 * A decoder that only takes CSV records apart, by the csv.* of config: decode_split() is all it can do.  Returns the
 * number of fields of the record at data, with *used bytes and its line end; 0: it goes on behind n_bytes; -1: *reason
 * says what is wrong with it.  The fields live until the next call.
 */
Decoder *decoder_open_split(const Config *config);
int decode_split(Decoder *decoder, const char *data, size_t n_bytes, bool at_end, size_t *used,
				 const Value **fields, const char **reason);

/* ---- json.c ---- */

typedef enum JsonKind
{
	JSON_NULL,
	JSON_BOOLEAN,
	JSON_NUMBER,
	JSON_STRING,
	JSON_OBJECT,
	JSON_ARRAY
} JsonKind;

/* A value that does not stand in an array.  Objects come behind their members. */
typedef struct JsonMember
{
	const char *path; /* names with dots between them; "" for the whole */
	JsonKind kind;
	const char *raw, *text; /* as it stands in the text; a string without quotes and escapes, else the same */
	size_t n_raw_bytes, n_text_bytes;
} JsonMember;

typedef void (*JsonVisit)(void *context, const JsonMember *member);
typedef struct JsonWalker JsonWalker;

JsonWalker *json_walker_open(JsonVisit visit, void *context);
void json_walker_close(JsonWalker *walker);
/* Calls visit for every member; false when json is not one JSON value.  What visit gets lives as long as the call. */
bool json_walk(JsonWalker *walker, const char *json, size_t n_bytes);
/* The next NaN, Infinity or -Infinity at or behind at, outside of strings and where a value may stand; NULL: none. */
const char *json_next_nan(const char *text, const char *at, const char *end, size_t *n_bytes);
bool json_has_nan(const char *text, size_t n_bytes); /* false: certainly none; quick */

/* ---- dead_letters.c ---- */

/* millrace dead-letters and millrace offsets; argv[0] is that word.  Returns the exit status. */
int dead_letters(int argc, char **argv);
int offsets(int argc, char **argv);

/* ---- source_file.c, source_kafka.c ---- */

typedef enum SourceStatus
{
	SOURCE_MORE,  /* read on */
	SOURCE_FLUSH, /* a good place to end the batch: end of a file */
	SOURCE_IDLE,  /* nothing came within the time given */
	SOURCE_END,	  /* everything is read; store what is open and stop */
	SOURCE_FAILED /* *exit_code says why; logged */
} SourceStatus;

typedef struct FileSource FileSource;
typedef struct KafkaSource KafkaSource;
typedef struct LetterSource LetterSource;

/* Dead letters are the source: each chunk of them is a batch, which takes them from the table as it is stored. */
LetterSource *letter_source_open(const Config *config, Writer *writer, Decoder *decoder, Batch *batch);
SourceStatus letter_source_poll(LetterSource *source, ExitCode *exit_code);
void letter_source_close(LetterSource *source); /* says what was left out */

ExitCode file_source_check(Config *config);
FileSource *file_source_open(const Config *config, Writer *writer, Decoder *decoder, Batch *batch);
SourceStatus file_source_poll(FileSource *source, int64_t wait, ExitCode *exit_code);
/* A batch with these positions is committed. */
void file_source_stored(FileSource *source, const Positions *stored);
/* Adds the position of every file that the database has to what must be compared with it. */
void file_source_positions(FileSource *source, Positions *positions);
/* Brings n_files and n_files_total of the metrics up to date. */
void file_source_progress(FileSource *source);
void file_source_close(FileSource *source);

/* librdkafka's log becomes ours; any thread. */
struct rd_kafka_conf_s;
void kafka_tell(struct rd_kafka_conf_s *conf); /* what librdkafka logs, and why a certificate is refused */
bool kafka_is_secret(const char *property);	   /* its value must not be written anywhere */
ExitCode kafka_source_check(Config *config);
ExitCode
kafka_source_open(Config *config, Writer *writer, Decoder *decoder, Batch *batch, KafkaSource **source);
SourceStatus kafka_source_poll(KafkaSource *source, int64_t wait, ExitCode *exit_code);
/*
 * Instead of kafka_source_poll() while the open batch is full and the writer has one, since for_ms milliseconds; called
 * about every 100 ms.  Adds no row.
 */
SourceStatus kafka_source_blocked(KafkaSource *source, int64_t for_ms, ExitCode *exit_code);
/* A batch with these positions is committed. */
void kafka_source_stored(KafkaSource *source, const Positions *stored);
/*
 * After WRITER_FENCED; the open batch and the writer's are dropped.  Reads the positions of the assigned partitions again
 * and seeks.
 */
ExitCode kafka_source_resync(KafkaSource *source);
void kafka_source_close(KafkaSource *source);

/* ---- records.c ---- */

/* The records of files, one after the other.  The first three are set by who wants other than the default. */
typedef struct Records
{
	int format;			 /* Format; -1: by the first byte of the first file */
	const char *columns; /* names of CSV fields, separated by commas; NULL: the files have a header */
	char **files;		 /* "-": standard input */
	int n_files, file;	 /* file: the one being read */
	struct gzFile_s *stream;
	Buffer input;
	size_t at; /* in input */
	bool is_all, has_failed;
	Decoder *splitter;
	const Config *csv;
	char *found_delimiter; /* that of csv, to be found out from the first line; NULL: it is known */
	char **names;		   /* CSV, known with the first record */
	int n_names;
	Buffer header;		 /* CSV, without its line end; empty: none */
	const Value *fields; /* CSV, of the record that was split last */
	int n_fields;
	int64_t n_skipped;
} Records;

/* files and the csv_ members of csv must live as long. */
void records_open(Records *records, char **files, int n_files, const Config *csv);
void records_close(Records *records);
/* The next record without its line end, split if it is CSV; false behind the last, or has_failed (logged). */
bool records_next(Records *records, const char **record, size_t *n_bytes);
void records_rewind(Records *records);
/* Sets fields; false when they are not as many as names. */
bool records_split(Records *records, const char *record, size_t n_bytes);
void records_skip(Records *records, const char *reason); /* counts a record that cannot be used */
const char *records_file(const Records *records);

/* ---- suggest.c ---- */

/* `millrace check --suggest-table FILE`; argv[0] is the command's name. */
ExitCode suggest_table(int argc, char **argv);

/* ---- simulate.c ---- */

#define N_SHOP_FIELDS 10

/* A value in the JSON of an event: its bytes, without quotes. */
typedef struct ShopField
{
	size_t at, n_bytes;
	bool is_null, is_quoted;
} ShopField;

typedef struct Shop Shop;

extern const char *const shop_fields[N_SHOP_FIELDS]; /* names */
/* What happens is drawn from seed; ids are numbers from first_id on.  The shop itself is always the same. */
Shop *shop_open(uint64_t seed, int64_t first_id);
void shop_close(Shop *shop);
/* Replaces what *out holds by the next event, as JSON, at this time. */
void shop_next(Shop *shop, int64_t time_us, Buffer *out, ShopField fields[N_SHOP_FIELDS]);
/* When so large a share of what happens in the time between two has happened: more by day, less by night. */
int64_t shop_past_us(double share, int64_t from_us, int64_t to_us);

/* ---- produce.c ---- */

/* `millrace produce`; argv[0] is the command's name. */
ExitCode produce(int argc, char **argv);

#endif
