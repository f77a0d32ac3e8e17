/*
 * Configuration.  One table of options gives the keys of the file, the flags --section.key=value, the environment
 * variables MILLRACE_SECTION_KEY and the help text; a new option is one line here and one member of Config.
 * A flag wins over the environment, the environment over the file.  All errors are reported, not only the first.
 */
#include "ingest.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef enum OptionKind
{
	OPTION_TEXT,
	OPTION_CHOICE, /* index into choices */
	OPTION_NUMBER,
	OPTION_BYTES,	/* kB, MB, GB */
	OPTION_DURATION /* milliseconds; ms, s, min, h, d */
} OptionKind;

typedef struct Option
{
	const char *name; /* section.key */
	OptionKind kind;
	size_t at;			 /* in Config */
	const char *initial; /* default, in the form of the file; NULL: none */
	int64_t least, most;
	const char *const *choices;
	const char *help;
} Option;

static const char *const source_types[] = {"directory", "file", "stdin", "kafka", NULL};
static const char *const formats[] = {"csv", "json", NULL};
static const char *const clean_policies[] = {"off", "archive", "delete", NULL};
static const char *const lost_policies[] = {"stop", "skip", NULL};
static const char *const nan_policies[] = {"refuse", "null", "text", NULL};
static const char *const unknown_policies[] = {"ignore", "jsonb", "add_column", "dead_letter", NULL};
static const char *const booleans[] = {"false", "true", NULL};
static const char *const log_formats[] = {"text", "json", NULL}; /* as LogFormat */
static const char *const log_levels[] = {"error", "warning", "info", "debug", NULL};

#define AT(member) offsetof(Config, member)
#define MAX_PARTITIONS 100000 /* in source.partitions */

static const Option options[] = {
	{"source.type", OPTION_CHOICE, AT(type), NULL, 0, 0, source_types, "Where events come from.  Required."},
	{"source.name", OPTION_TEXT, AT(name), NULL, 0, 0, NULL,
	 "Name of the stream: key of its positions in millrace.ingest_offsets.  Default: the Kafka group, the "
	 "directory, "
	 "or \"stdin\"."},
	{"source.path", OPTION_TEXT, AT(path), NULL, 0, 0, NULL, "Directory or file to read."},
	{"source.pattern", OPTION_TEXT, AT(pattern), "*", 0, 0, NULL,
	 "Files of the directory to read, as a shell pattern.  Names that begin with a dot are never read."},
	{"source.poll", OPTION_DURATION, AT(poll_ms), "1s", 10, 3600000, NULL,
	 "How often the directory is searched for new files."},
	{"source.max_files_per_batch", OPTION_NUMBER, AT(max_files_per_batch), "1", 1, 100000, NULL,
	 "Directory: so many files go together in one batch, fewer when no more are there."},
	{"source.latest_first", OPTION_CHOICE, AT(latest_first), "false", 0, 0, booleans,
	 "Directory: the file changed last is read first.  Otherwise in the order of their names."},
	{"source.max_file_age", OPTION_DURATION, AT(max_file_age_ms), "0", 0, INT64_C(31557600000000), NULL,
	 "Directory: a file last changed longer ago than this is not begun, and its position is forgotten once "
	 "it "
	 "is gone.  0: read at any age, remembered for ever."},
	{"source.min_age", OPTION_DURATION, AT(min_age_ms), "0s", 0, INT64_C(31557600000), NULL,
	 "Directory: a file is not read until it has not been changed for this long."},
	{"source.last_line_age", OPTION_DURATION, AT(last_line_age_ms), "10s", 0, INT64_C(31557600000), NULL,
	 "Directory: a last line without a line end is read when the file has not been changed for this long; "
	 "with --once at once."},
	{"source.clean_source", OPTION_CHOICE, AT(clean_source), "off", 0, 0, clean_policies,
	 "Directory: what becomes of a file that is stored to its end and has not been changed for "
	 "source.last_line_age (with --once: at once)."},
	{"source.archive", OPTION_TEXT, AT(archive), NULL, 0, 0, NULL,
	 "Directory, on the same file system, that clean_source = archive moves files into."},
	{"source.format", OPTION_CHOICE, AT(format), NULL, 0, 0, formats,
	 "One CSV record, or one JSON value a line or message.  Default: json for Kafka, otherwise csv."},
	{"source.max_record", OPTION_BYTES, AT(max_record_bytes), "16MB", 1024, 512 << 20, NULL,
	 "A record of a file that is longer becomes a dead letter."},
	{"source.brokers", OPTION_TEXT, AT(brokers), NULL, 0, 0, NULL, "Kafka: host:port[,host:port...]."},
	{"source.topic", OPTION_TEXT, AT(topic), NULL, 0, 0, NULL, "Kafka: topic."},
	{"source.group", OPTION_TEXT, AT(group), NULL, 0, 0, NULL,
	 "Kafka: consumer group; it shares out partitions and stores nothing.  Default: millrace- and the "
	 "table with its schema."},
	{"source.partitions", OPTION_TEXT, AT(partitions_text), NULL, 0, 0, NULL,
	 "Kafka: the partitions to read, as 0-3,7, whatever the group is: its other members, and partitions that "
	 "the topic gets later, change nothing.  Default: those that the group gives."},
	{"source.start", OPTION_TEXT, AT(start_text), "earliest", 0, 0, NULL,
	 "Kafka: where a topic is begun that the stream has no position of: earliest, latest, a time as "
	 "2024-03-01 "
	 "or 2024-03-01T00:00:00Z, or stored: then a partition without a position is an error."},
	{"source.on_lost", OPTION_CHOICE, AT(on_lost), "stop", 0, 0, lost_policies,
	 "Kafka: the messages at a position were deleted before they were read, or the topic was made anew.  "
	 "skip: "
	 "goes on from the oldest message, counts it and says so in the log."},
	{"source.revoke_wait", OPTION_DURATION, AT(revoke_wait_ms), "5s", 0, 600000, NULL,
	 "Kafka: how long what was read of a partition may take to be stored before it is left to the next "
	 "ingester of the group, which reads it again."},
	{"source.reconnect", OPTION_DURATION, AT(kafka_reconnect_ms), "10min", 0, INT64_C(31557600000), NULL,
	 "Kafka: how long to wait when no broker answers."},
	{"csv.header", OPTION_CHOICE, AT(csv_header), "true", 0, 0, booleans,
	 "The first record of each file names the fields.  Without one fields go by csv.columns, or in the order "
	 "of the "
	 "table's columns."},
	{"csv.columns", OPTION_TEXT, AT(csv_columns), NULL, 0, 0, NULL,
	 "Names of the fields, separated by commas, where no header has them."},
	{"csv.delimiter", OPTION_TEXT, AT(csv_delimiter), ",", 0, 0, NULL, "One character, or \\t."},
	{"csv.null", OPTION_TEXT, AT(csv_null), "", 0, 0, NULL,
	 "An unquoted field of this text is NULL.  Default: empty."},
	{"csv.quote", OPTION_TEXT, AT(csv_quote), "\"", 0, 0, NULL,
	 "One character around fields that hold delimiters or line ends.  Empty: none does that."},
	{"csv.escape", OPTION_TEXT, AT(csv_escape), NULL, 0, 0, NULL,
	 "One character that stands before a quote, or itself, in a quoted field.  Default: the quote."},
	{"json.nan", OPTION_CHOICE, AT(json_nan), "refuse", 0, 0, nan_policies,
	 "NaN, Infinity and -Infinity, which are not JSON: the message becomes a dead letter, or they are read "
	 "as "
	 "null, or as if they stood between quotes."},
	{"target.connection", OPTION_TEXT, AT(connection), "", 0, 0, NULL,
	 "Any libpq connection string or URI.  Default: the environment (PGHOST, ...)."},
	{"target.table", OPTION_TEXT, AT(table), NULL, 0, 0, NULL,
	 "Table to fill, as written in SQL.  Required."},
	{"target.time_column", OPTION_TEXT, AT(time_column), NULL, 0, 0, NULL,
	 "Column with the event time.  Default: what millrace.create_source was told."},
	{"target.timezone", OPTION_TEXT, AT(timezone), "UTC", 0, 0, NULL,
	 "TimeZone of the session: the zone of times that come without one."},
	{"target.min_time", OPTION_TEXT, AT(min_time), "1970-01-01", 0, 0, NULL,
	 "An event before this time becomes a dead letter instead of a partition."},
	{"target.max_future", OPTION_DURATION, AT(max_future_ms), "365d", 0, INT64_C(3155760000000), NULL,
	 "So does an event further ahead of now than this."},
	{"target.reconnect", OPTION_DURATION, AT(reconnect_ms), "10min", 0, INT64_C(31557600000), NULL,
	 "How long to try when the database has gone away."},
	{"target.retry", OPTION_DURATION, AT(retry_ms), "1min", 0, INT64_C(31557600000), NULL,
	 "How long to try when the server refuses a batch for a reason that is not in the data (lock, full disk, "
	 "missing "
	 "table)."},
	{"target.maintain", OPTION_DURATION, AT(maintain_ms), "1min", 0, INT64_C(31557600000), NULL,
	 "How often partitions older than the retention of the table are dropped, and millrace.maintain() is "
	 "called, "
	 "if the role may.  0: never."},
	{"target.lock_timeout", OPTION_DURATION, AT(lock_timeout_ms), "2s", 1, 3600000, NULL,
	 "How long a change of the table may wait for its lock, with other sessions waiting behind it, before it "
	 "is tried again later."},
	{"target.on_unknown_field", OPTION_CHOICE, AT(on_unknown_field), "ignore", 0, 0, unknown_policies,
	 "A field that no column takes is ignored, or kept with the others in target.unknown_column, or a column "
	 "is added for it, or the message becomes a dead letter."},
	{"target.unknown_column", OPTION_TEXT, AT(unknown_column), NULL, 0, 0, NULL,
	 "Column for on_unknown_field = jsonb; the same as COLUMN = $rest in [columns]."},
	{"batch.max_rows", OPTION_NUMBER, AT(max_rows), "0", 0, 100000000, NULL,
	 "Messages a batch.  0: 50000, and for files no limit."},
	{"batch.max_bytes", OPTION_BYTES, AT(max_bytes), "64MB", 1024, INT64_C(1) << 36, NULL,
	 "Memory a batch.  A file that needs more is read in several batches."},
	{"batch.max_age", OPTION_DURATION, AT(max_age_ms), "1s", 1, 3600000, NULL,
	 "Kafka and stdin: a batch is stored this long after its first message at the latest."},
	{"batch.drain", OPTION_DURATION, AT(drain_ms), "10s", 0, 3600000, NULL,
	 "How long a stop by SIGTERM waits until what has been read is stored."},
	{"dead_letters.limit", OPTION_NUMBER, AT(dead_limit), "0", 0, INT64_C(1) << 40, NULL,
	 "Stop with status 9 when more dead letters of the stream than this are kept in millrace.dead_letters, "
	 "and do not start before some are replayed or deleted.  0: no limit."},
	{"log.level", OPTION_CHOICE, AT(log_level), "info", 0, 0, log_levels,
	 "What is written to standard error."},
	{"log.format", OPTION_CHOICE, AT(log_format), "text", 0, 0, log_formats,
	 "How: a line of text, or a JSON object with time, level, stream and message."},
	{"metrics.listen", OPTION_TEXT, AT(metrics_listen), NULL, 0, 0, NULL,
	 "host:port, or :port for every address, where /metrics, /healthz and /readyz are served by HTTP.  "
	 "Default: not served."},
	{"metrics.interval", OPTION_DURATION, AT(metrics_interval_ms), "10s", 0, 86400000, NULL,
	 "How often the same figures are written to millrace.ingest_metrics.  0: never."},
};

#define N_OPTIONS ((int) (sizeof options / sizeof options[0]))

/* Keys of librdkafka that would break the delivery contract, and what to use instead. */
static const char *const kafka_reserved[][2] = {
	{"bootstrap.servers", "source.brokers"},
	{"metadata.broker.list", "source.brokers"},
	{"group.id", "source.group"},
	{"enable.auto.commit", "positions live in the database"},
	{"enable.auto.offset.store", "positions live in the database"},
	{"enable.partition.eof", "millrace needs it"},
	{"auto.offset.reset", "positions live in the database"},
};

/* Taken over by a stream that runs, when SIGHUP has the file read again.  All are numbers. */
static const char *const reloaded[] = {
	"batch.max_rows",	   "batch.max_bytes",
	"batch.max_age",	   "batch.drain",
	"dead_letters.limit",  "log.level",
	"metrics.interval",	   "source.last_line_age",
	"source.max_file_age", "source.max_files_per_batch",
	"source.min_age",	   "source.poll",
	"source.reconnect",	   "source.revoke_wait",
	"target.lock_timeout", "target.max_future",
	"target.reconnect",	   "target.retry",
};

/* One option as it was given; zeroed: it was not. */
typedef struct Setting
{
	char *value;
	const char *origin;
	int line;
} Setting;

static int
option_find(const char *name)
{
	for (int i = 0; i < N_OPTIONS; i++)
		if (strcmp(options[i].name, name) == 0)
			return i;
	return -1;
}

/* ---- errors ---- */

static void
report(Config *config, const char *origin, int line, const char *format, va_list args)
{
	char text[1024];

	vsnprintf(text, sizeof text, format, args);
	if (log_format == LOG_JSON && line > 0)
		log_line(LOG_ERROR, "%s:%d: %s", origin, line, text);
	else if (log_format == LOG_JSON)
		log_line(LOG_ERROR, "%s: %s", origin ? origin : config->file, text);
	else if (line > 0)
		fprintf(stderr, "%s:%d: %s\n", origin, line, text);
	else
		fprintf(stderr, "%s: %s\n", origin ? origin : config->file, text);
	config->n_errors++;
}

static void __attribute__((format(printf, 4, 5)))
report_at(Config *config, const char *origin, int line, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	report(config, origin, line, format, args);
	va_end(args);
}

void
config_error_at(Config *config, const char *option, const char *format, ...)
{
	int i = option_find(option);
	va_list args;

	Setting none = {0}, *setting = i >= 0 && config->settings ? &config->settings[i] : &none;
	va_start(args, format);
	report(config, setting->origin, setting->line, format, args);
	va_end(args);
}

void
config_error_pair(Config *config, const Pair *pair, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	report(config, pair->origin, pair->line, format, args);
	va_end(args);
}

/* ---- one setting, from anywhere ---- */

static void
pairs_put(Config *config, Pairs *pairs, const char *name, const char *value, const char *origin, int line)
{
	Pair *pair = NULL;

	for (int i = 0; i < pairs->n_pairs; i++)
		if (strcmp(pairs->list[i].name, name) == 0)
			pair = &pairs->list[i];
	if (pair != NULL)
	{
		if (line > 0)
			report_at(config, origin, line, "\"%s\" is set twice, first in line %d", name, pair->line);
		free(pair->value);
	}
	else
	{
		pairs->list = mem_grow(pairs->list, (size_t) pairs->n_pairs + 1, sizeof(Pair));
		pair = &pairs->list[pairs->n_pairs++];
		pair->name = mem_string(name);
	}
	pair->value = mem_string(value);
	pair->origin = origin;
	pair->line = line;
}

static void
report_unknown(Config *config, const char *section, const char *key, const char *origin, int line)
{
	const char *names[N_OPTIONS], *sections[] = {"source", "csv",		   "json", "columns", "target",
												 "batch",  "dead_letters", "log",  "metrics"};
	size_t n_prefix = strlen(section) + 1;
	bool is_section = strcmp(section, "columns") == 0;
	int n_names = 0;
	const char *nearest;

	for (int i = 0; i < N_OPTIONS; i++)
		if (strncmp(options[i].name, section, n_prefix - 1) == 0 && options[i].name[n_prefix - 1] == '.')
		{
			names[n_names++] = options[i].name + n_prefix;
			is_section = true;
		}
	if (!is_section)
	{
		nearest = name_nearest(section, sections, (int) (sizeof sections / sizeof sections[0]));
		report_at(config, origin, line, "unknown section [%s]%s%s%s", section,
				  nearest ? "; did you mean [" : "", nearest ? nearest : "", nearest ? "]?" : "");
		return;
	}
	nearest = name_nearest(key, names, n_names);
	report_at(config, origin, line, "unknown key \"%s\" in [%s]%s%s%s", key, section,
			  nearest ? "; did you mean \"" : "; see millrace run --help", nearest ? nearest : "",
			  nearest ? "\"?" : "");
}

static void
put(Config *config, const char *section, const char *key, const char *value, const char *origin, int line)
{
	char name[256];

	snprintf(name, sizeof name, "%s.%s", section, key);
	if (strcmp(section, "columns") == 0 && *key)
	{
		pairs_put(config, &config->columns, key, value, origin, line);
		return;
	}
	if (strcmp(section, "source") == 0 && strncmp(key, "kafka.", 6) == 0)
	{
		for (size_t i = 0; i < sizeof kafka_reserved / sizeof kafka_reserved[0]; i++)
			if (strcmp(key + 6, kafka_reserved[i][0]) == 0)
				report_at(config, origin, line, "\"%s\" cannot be set here: %s", key, kafka_reserved[i][1]);
		pairs_put(config, &config->kafka, key + 6, value, origin, line);
		return;
	}
	int i = option_find(name);
	if (i < 0)
	{
		report_unknown(config, section, key, origin, line);
		return;
	}
	Setting *setting = &config->settings[i];
	if (setting->value != NULL && line > 0 && setting->line > 0)
		report_at(config, origin, line, "\"%s\" is set twice, first in line %d", key, setting->line);
	free(setting->value);
	*setting = (Setting){mem_string(value), origin, line};
}

/* ---- the file ---- */

typedef struct Reader
{
	Config *config;
	FILE *file;
	int line;
} Reader;

/*
 * inih's limits are compile-time macros; some builds also export them as variables.  Weak: used where they exist, and a
 * line that does not fit is an error everywhere, never two lines.
 */
extern int ini_max_line __attribute__((weak));
extern int ini_initial_alloc __attribute__((weak));
extern bool ini_use_stack __attribute__((weak));
extern bool ini_allow_multiline __attribute__((weak));
extern bool ini_allow_inline_comments __attribute__((weak));

static char *
read_line(char *line, int n_bytes, void *stream)
{
	Reader *reader = stream;

	if (fgets(line, n_bytes, reader->file) == NULL)
		return NULL;
	reader->line++;
	if (strchr(line, '\n') == NULL && strlen(line) + 1 >= (size_t) n_bytes)
	{
		int c;

		report_at(reader->config, reader->config->file, reader->line, "line is longer than %d bytes",
				  n_bytes - 2);
		while ((c = fgetc(reader->file)) != EOF && c != '\n')
			;
		line[0] = '\n';
		line[1] = '\0';
	}
	/* inih tells only the first such line. */
	const char *c = line + strspn(line, " \t\r\n\f\v");
	if (reader->line == 1 && strncmp(c, "\xEF\xBB\xBF", 3) == 0)
		c += 3;
	if (*c && !strchr(";#[", *c) && c[strcspn(c, "=:")] == '\0')
	{
		report_at(reader->config, reader->config->file, reader->line, "neither [section] nor key = value");
		line[0] = '\n';
		line[1] = '\0';
	}
	return line;
}

static int
on_setting(void *user, const char *section, const char *key, const char *value)
{
	Reader *reader = user;

	put(reader->config, section, key, value, reader->config->file, reader->line);
	return 1;
}

/* False when the file cannot be read; it is reported. */
static bool
load_file(Config *config)
{
	Reader reader = {config, fopen(config->file, "r"), 0};

	if (reader.file == NULL)
	{
		report_at(config, config->file, 0, "cannot read: %s", strerror(errno));
		return false;
	}
	if (&ini_use_stack != NULL && &ini_max_line != NULL && &ini_initial_alloc != NULL)
	{
		ini_use_stack = false;
		ini_max_line = ini_initial_alloc = 16384;
	}
	if (&ini_allow_multiline != NULL)
		ini_allow_multiline = false;
	if (&ini_allow_inline_comments != NULL)
		ini_allow_inline_comments = false;
	/* The reader counts lines, so the handler knows where it is. */
	int bad_line = ini_parse_stream(read_line, &reader, on_setting, &reader);
	bool has_failed = ferror(reader.file) != 0;
	if (has_failed)
		report_at(config, config->file, 0, "cannot read it; is it a file?");
	else if (bad_line > 0)
		report_at(config, config->file, bad_line, "neither [section] nor key = value");
	else if (bad_line < 0)
		report_at(config, config->file, 0, "cannot be parsed");
	fclose(reader.file);
	return !has_failed;
}

/* ---- environment and flags ---- */

/* MILLRACE_SOURCE_KAFKA_PROPERTY, and names that are not of our sections, are no concern of this check. */
static void
check_variable(Config *config, const char *entry)
{
	static const char *const sections[] = {"SOURCE", "CSV",			 "JSON", "TARGET",
										   "BATCH",	 "DEAD_LETTERS", "LOG",	 "METRICS"};
	size_t n_bytes = strcspn(entry, "=");

	if (strncmp(entry, "MILLRACE_", 9) != 0 || strncmp(entry, "MILLRACE_SOURCE_KAFKA_", 22) == 0)
		return;
	for (size_t s = 0; s < sizeof sections / sizeof sections[0]; s++)
	{
		size_t n_section = strlen(sections[s]);
		bool is_known = false;

		if (strncmp(entry + 9, sections[s], n_section) != 0 || entry[9 + n_section] != '_')
			continue;
		for (int i = 0; i < N_OPTIONS && !is_known; i++)
		{
			const char *name = options[i].name;
			size_t n = 0;

			while (name[n] && 9 + n < n_bytes &&
				   entry[9 + n] == (name[n] == '.' ? '_' : (char) toupper((unsigned char) name[n])))
				n++;
			is_known = name[n] == '\0' && 9 + n == n_bytes;
		}
		if (!is_known)
			report_at(config, "environment", 0, "unknown variable %.*s; see millrace run --help",
					  (int) n_bytes, entry);
	}
}

static void
load_environment(Config *config)
{
	extern char **environ;

	for (int i = 0; i < N_OPTIONS; i++)
	{
		char name[128] = "MILLRACE_", section[64];
		size_t n = strlen(name);

		for (const char *c = options[i].name; *c && n + 1 < sizeof name; c++)
			name[n++] = *c == '.' ? '_' : (char) toupper((unsigned char) *c);
		name[n] = '\0';
		const char *value = getenv(name);
		if (value == NULL)
			continue;
		snprintf(section, sizeof section, "%.*s", (int) strcspn(options[i].name, "."), options[i].name);
		put(config, section, strchr(options[i].name, '.') + 1, value, "environment", 0);
	}
	for (char **entry = environ; *entry; entry++)
		check_variable(config, *entry);
	for (char **entry = environ; *entry; entry++)
	{
		static const char prefix[] = "MILLRACE_SOURCE_KAFKA_";
		char key[128] = "kafka.";
		size_t n = strlen(key);
		const char *c = *entry + sizeof prefix - 1;

		if (strncmp(*entry, prefix, sizeof prefix - 1) != 0)
			continue;
		for (; *c && *c != '=' && n + 1 < sizeof key; c++)
			key[n++] = *c == '_' ? '.' : (char) tolower((unsigned char) *c);
		key[n] = '\0';
		if (*c == '=')
			put(config, "source", key, c + 1, "environment", 0);
	}
}

static void
load_flag(Config *config, const char *flag)
{
	char section[64], key[192];
	const char *value = strchr(flag, '=');
	const char *dot = strchr(flag, '.');

	if (strncmp(flag, "--", 2) != 0 || dot == NULL || (value != NULL && dot > value))
	{
		const char *words[] = {"--once", "--progress", "--show", "--help", "--version"};
		const char *nearest = name_nearest(flag, words, 5);

		/* What stands behind the =, or alone, may be a password. */
		if (strncmp(flag, "--", 2) != 0)
			report_at(config, "command line", 0, "an argument is not an option: write --section.key=value");
		else
			report_at(config, "command line", 0, "unknown option \"%.*s\"%s%s%s", (int) strcspn(flag, "="),
					  flag, nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
		return;
	}
	if (value == NULL)
	{
		report_at(config, "command line", 0, "option \"%s\" needs a value: %s=VALUE", flag, flag);
		return;
	}
	snprintf(section, sizeof section, "%.*s", (int) (dot - flag - 2), flag + 2);
	snprintf(key, sizeof key, "%.*s", (int) (value - dot - 1), dot + 1);
	put(config, section, key, value + 1, "command line", 0);
}

/* ---- values ---- */

typedef struct Unit
{
	const char *name;
	int64_t factor;
} Unit;

static const Unit byte_units[] = {{"", 1},		   {"B", 1},		{"kB", 1024},
								  {"MB", 1 << 20}, {"GB", 1 << 30}, {NULL, 0}};
static const Unit time_units[] = {{"", 1},		  {"ms", 1},	   {"s", 1000}, {"min", 60000},
								  {"h", 3600000}, {"d", 86400000}, {NULL, 0}};
static const Unit no_units[] = {{"", 1}, {NULL, 0}};

static bool
parse_number(const char *text, const Unit *units, int64_t *number)
{
	char *end;

	errno = 0;
	int64_t value = strtoll(text, &end, 10);
	if (end == text || errno != 0)
		return false;
	while (*end == ' ')
		end++;
	for (; units->name != NULL; units++)
		if (strcmp(end, units->name) == 0)
			return !__builtin_mul_overflow(value, units->factor, number);
	return false;
}

bool
config_duration(const char *text, int64_t *ms)
{
	return parse_number(text, time_units, ms);
}

static void
parse_option(Config *config, int i)
{
	const Option *option = &options[i];
	const Setting *setting = &config->settings[i];
	const char *text = setting->value ? setting->value : option->initial;
	const char *key = strchr(option->name, '.') + 1;
	char *member = (char *) config + option->at;
	int64_t number = -1;

	if (option->kind == OPTION_TEXT)
	{
		char *copy = text ? mem_string(text) : NULL;

		memcpy(member, &copy, sizeof copy);
		return;
	}
	if (text == NULL)
	{
		memcpy(member, &number, sizeof number);
		return;
	}
	if (option->kind == OPTION_CHOICE)
	{
		for (int c = 0; option->choices[c]; c++)
			if (strcmp(option->choices[c], text) == 0)
				number = c;
		if (number < 0)
		{
			Buffer list = {0};

			for (int c = 0; option->choices[c]; c++)
				buffer_printf(&list, "%s%s", c ? ", " : "", option->choices[c]);
			report_at(config, setting->origin, setting->line, "\"%s\" is no value of \"%s\": use one of %s",
					  text, key, list.data);
			buffer_free(&list);
		}
	}
	else
	{
		const Unit *units = option->kind == OPTION_BYTES ? byte_units
			: option->kind == OPTION_DURATION			 ? time_units
														 : no_units;
		if (!parse_number(text, units, &number))
			report_at(config, setting->origin, setting->line, "\"%s\" is not a valid value of \"%s\"%s", text,
					  key,
					  option->kind == OPTION_BYTES			? ": write 1000, 64kB, 64MB or 1GB"
						  : option->kind == OPTION_DURATION ? ": write 500ms, 10s, 5min, 2h or 30d"
															: ": write a whole number");
		else if (number < option->least || number > option->most)
			report_at(config, setting->origin, setting->line,
					  "%s of \"%s\" is outside %" PRId64 " to %" PRId64, text, key, option->least,
					  option->most);
	}
	memcpy(member, &number, sizeof number);
}

static bool
is_set(const Config *config, const char *name)
{
	int i = option_find(name);

	return i >= 0 && config->settings[i].value != NULL && config->settings[i].value[0] != '\0';
}

static void
require(Config *config, const char *name, const char *reason)
{
	if (!is_set(config, name))
		config_error_at(config, name, "\"%s\" is missing in [%.*s]%s", strchr(name, '.') + 1,
						(int) strcspn(name, "."), name, reason);
}

static void
check_source(Config *config)
{
	static const char *const kafka_only[] = {"source.brokers",	 "source.topic",	 "source.group",
											 "source.start",	 "source.on_lost",	 "source.revoke_wait",
											 "source.reconnect", "source.partitions"};
	static const char *const directory_only[] = {
		"source.max_files_per_batch", "source.latest_first", "source.max_file_age", "source.min_age",
		"source.last_line_age",		  "source.clean_source", "source.archive",
	};

	switch (config->type)
	{
		case SOURCE_DIRECTORY:
		case SOURCE_FILE:
			require(config, "source.path",
					config->type == SOURCE_FILE ? ": the file to read" : ": the directory to read");
			break;
		case SOURCE_KAFKA:
			require(config, "source.brokers", ": host:port of the broker");
			require(config, "source.topic", "");
			break;
		default:
			break;
	}
	for (size_t i = 0;
		 config->type != SOURCE_DIRECTORY && i < sizeof directory_only / sizeof directory_only[0]; i++)
		if (is_set(config, directory_only[i]))
			config_error_at(config, directory_only[i], "\"%s\" belongs to type = directory",
							strchr(directory_only[i], '.') + 1);
	if (config->type == SOURCE_DIRECTORY && config->clean_source == CLEAN_ARCHIVE)
		require(config, "source.archive", ": where clean_source = archive moves files");
	if (config->type == SOURCE_KAFKA)
		return;
	for (size_t i = 0; i < sizeof kafka_only / sizeof kafka_only[0]; i++)
		if (is_set(config, kafka_only[i]))
			config_error_at(config, kafka_only[i], "\"%s\" belongs to type = kafka",
							strchr(kafka_only[i], '.') + 1);
	for (int i = 0; i < config->kafka.n_pairs; i++)
		config_error_pair(config, &config->kafka.list[i], "\"kafka.%s\" belongs to type = kafka",
						  config->kafka.list[i].name);
}

static void
check_start(Config *config)
{
	static const char *const names[] = {"earliest", "latest", "stored", NULL};
	bool has_zone;

	for (int i = 0; names[i] != NULL; i++)
		if (strcmp(config->start_text, names[i]) == 0)
		{
			config->start = (Start) i;
			return;
		}
	config->start = START_TIME;
	if (!time_parse(config->start_text, strlen(config->start_text), &config->start_us, &has_zone))
		config_error_at(config, "source.start",
						"\"%s\" is none of earliest, latest, stored, and no time: write 2024-03-01 or "
						"2024-03-01T00:00:00Z",
						config->start_text);
}

/* One number of a partition; -1: it is none. */
static int64_t
partition_number(const char **at)
{
	int64_t number = 0;

	if (!isdigit((unsigned char) **at))
		return -1;
	for (; isdigit((unsigned char) **at); (*at)++)
		if ((number = number * 10 + (**at - '0')) > INT32_MAX)
			return -1;
	return number;
}

/* source.partitions, as 0-3,7. */
static void
check_partitions(Config *config)
{
	const char *at = config->partitions_text;
	bool is_good = true;

	if (!is_set(config, "source.partitions"))
		return;
	while (is_good)
	{
		at += strspn(at, " \t");
		int64_t first = partition_number(&at), last = first;

		at += strspn(at, " \t");
		if (*at == '-')
		{
			at += 1 + strspn(at + 1, " \t");
			last = partition_number(&at);
			at += strspn(at, " \t");
		}
		is_good = first >= 0 && last >= first && last - first < MAX_PARTITIONS &&
			config->n_partitions + (last - first) < MAX_PARTITIONS && (*at == ',' || *at == '\0');
		if (!is_good)
			break;
		/* In order, so that one that is named twice is seen. */
		if (config->n_partitions > 0 && first <= config->partitions[config->n_partitions - 1])
		{
			config_error_at(config, "source.partitions", "\"%s\" is not in ascending order: write 0-3,7",
							config->partitions_text);
			return;
		}
		config->partitions =
			mem_grow(config->partitions, (size_t) (config->n_partitions + last - first + 1), sizeof(int32_t));
		for (; first <= last; first++)
			config->partitions[config->n_partitions++] = (int32_t) first;
		if (*at++ == '\0')
			return;
	}
	config_error_at(config, "source.partitions", "\"%s\" is no list of partitions: write 0-3,7",
					config->partitions_text);
}

static void
check_values(Config *config)
{
	bool has_zone;

	if (is_set(config, "source.type"))
		check_source(config);
	if (strcmp(config->csv_delimiter, "\\t") == 0 || strcmp(config->csv_delimiter, "tab") == 0)
		memcpy(config->csv_delimiter, "\t", 2);
	if (strlen(config->csv_delimiter) != 1 || strchr("\r\n", config->csv_delimiter[0]))
		config_error_at(config, "csv.delimiter", "\"delimiter\" must be one character other than a line end");
	if (config->csv_escape == NULL)
		config->csv_escape = mem_string(config->csv_quote);
	if (strlen(config->csv_quote) > 1 || strpbrk(config->csv_quote, "\r\n") != NULL)
		config_error_at(config, "csv.quote", "\"quote\" must be one character, or empty");
	if (strlen(config->csv_escape) != strlen(config->csv_quote))
		config_error_at(config, "csv.escape",
						"\"escape\" must be one character, and only where there is a quote");
	if (config->csv_quote[0] && config->csv_quote[0] == config->csv_delimiter[0])
		config_error_at(config, "csv.quote", "\"quote\" and \"delimiter\" must differ");
	if (!time_parse(config->min_time, strlen(config->min_time), &config->min_time_us, &has_zone))
		config_error_at(config, "target.min_time",
						"\"%s\" is not a time: write 1970-01-01 or 1970-01-01T00:00:00Z", config->min_time);
	check_start(config);
	check_partitions(config);
	if (config->metrics_listen != NULL && strrchr(config->metrics_listen, ':') == NULL)
		config_error_at(config, "metrics.listen", "\"%s\" is no address: write host:port or :port",
						config->metrics_listen);
	if (config->max_record_bytes > config->max_bytes)
		config->max_record_bytes = config->max_bytes;
}

/* What depends on other settings. */
static void
derive(Config *config)
{
	if (config->format < 0)
		config->format = config->type == SOURCE_KAFKA ? FORMAT_JSON : FORMAT_CSV;
	if (config->csv_header < 0)
		config->csv_header = 1;
	if (config->log_level < 0)
		config->log_level = LOG_INFO;
	if (config->log_format < 0)
		config->log_format = LOG_TEXT;
	if (config->max_rows == 0)
		config->max_rows = config->type == SOURCE_KAFKA || config->type == SOURCE_STDIN ? 50000 : INT32_MAX;
	if (config->type == SOURCE_KAFKA)
		config->csv_header = 0;
	/* Without a group the name is that of the table, which only the database knows for certain: sink_describe(). */
	if (config->name != NULL || (config->type == SOURCE_KAFKA && config->group == NULL))
		return;
	if (config->type == SOURCE_KAFKA)
		config->name = mem_string(config->group);
	else if (config->type == SOURCE_STDIN || config->path == NULL)
		config->name = mem_string("stdin");
	else
	{
		/* Two directories may hold files of one name: the full path keeps their positions apart. */
		char *path = realpath(config->path, NULL);
		char *slash = path && config->type == SOURCE_FILE ? strrchr(path, '/') : NULL;

		if (slash != NULL)
			slash[slash == path] = '\0';
		config->name = mem_string(path ? path : config->path);
		free(path);
	}
}

static void
load_shown(Config *config, const char *text)
{
	if (!parse_number(text, no_units, &config->n_shown) || config->n_shown < 1 || config->n_shown > 1000000)
		report_at(config, "command line", 0, "--show needs a number of rows: --show 10");
}

/*
 * Rows are shown to somebody who waits: those that are there, with errors only, without a port, and by a Kafka group of
 * its own, so that the partitions of those at work stay where they are.
 */
static void
only_show(Config *config)
{
	config->once = true;
	free(config->metrics_listen);
	config->metrics_listen = NULL;
	if (!config->log_level_given)
		config->log_level = LOG_WARNING;
	if (config->type == SOURCE_KAFKA)
	{
		free(config->group);
		config->group = mem_printf("millrace-show-%" PRId64 "-%d", clock_us(), (int) getpid());
	}
}

ExitCode
config_load(Config *config, const char *file, int n_flags, char **flags)
{
	config->file = file;
	config->n_flags = n_flags;
	config->flags = flags;
	config->settings = mem_alloc(sizeof(Setting) * N_OPTIONS);
	bool is_read = load_file(config);
	load_environment(config);
	for (int i = 0; i < n_flags; i++)
	{
		if (strcmp(flags[i], "--once") == 0)
			config->once = true;
		else if (strcmp(flags[i], "--progress") == 0)
			config->progress = true;
		else if (strcmp(flags[i], "--show") == 0)
			load_shown(config, i + 1 < n_flags ? flags[++i] : "");
		else if (strncmp(flags[i], "--show=", 7) == 0)
			load_shown(config, flags[i] + 7);
		else
			load_flag(config, flags[i]);
	}
	for (int i = 0; i < N_OPTIONS; i++)
		parse_option(config, i);
	config->log_level_given = is_set(config, "log.level");
	if (is_read)
	{
		require(config, "source.type", ": directory, file, stdin or kafka");
		require(config, "target.table", "");
	}
	check_values(config);
	derive(config);
	if (config->n_shown > 0)
		only_show(config);
	config->metrics = metrics_open(config->name ? config->name : "");
	return config->n_errors ? EXIT_USAGE : EXIT_DONE;
}

static void
pairs_free(Pairs *pairs)
{
	for (int i = 0; i < pairs->n_pairs; i++)
	{
		free(pairs->list[i].name);
		free(pairs->list[i].value);
	}
	free(pairs->list);
	memset(pairs, 0, sizeof *pairs);
}

void
config_free(Config *config)
{
	for (int i = 0; i < N_OPTIONS; i++)
	{
		char *member;

		if (config->settings != NULL)
			free(config->settings[i].value);
		if (options[i].kind != OPTION_TEXT)
			continue;
		memcpy(&member, (char *) config + options[i].at, sizeof member);
		free(member);
	}
	free(config->partitions);
	pairs_free(&config->columns);
	pairs_free(&config->kafka);
	metrics_close(config->metrics);
	free(config->settings);
	memset(config, 0, sizeof *config);
}

/* ---- several files, and the same file again ---- */

static bool
is_same_text(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

static const char *
option_text(const Config *config, int i)
{
	return config->settings[i].value ? config->settings[i].value : options[i].initial;
}

void
config_agree(Config *config, const Config *first)
{
	static const char *const prefixes[] = {"log.", "metrics.listen"};

	for (int i = 0; i < N_OPTIONS; i++)
		for (size_t p = 0; p < sizeof prefixes / sizeof prefixes[0]; p++)
			if (strncmp(options[i].name, prefixes[p], strlen(prefixes[p])) == 0 &&
				!is_same_text(option_text(config, i), option_text(first, i)))
				config_error_at(config, options[i].name,
								"\"%s\" is of the whole process: it is another in %s", options[i].name,
								first->file);
	if (config->type == SOURCE_STDIN && first->type == SOURCE_STDIN)
		config_error_at(config, "source.type", "standard input is read by %s", first->file);
	else
		config_names_differ(config, first);
}

bool
config_names_differ(Config *config, const Config *first)
{
	if (config->name == NULL || !is_same_text(config->name, first->name))
		return true;
	config_error_at(config, "source.name", "stream \"%s\" is read by %s: give one of them another name",
					config->name, first->file);
	return false;
}

static bool
is_reloaded(const char *name)
{
	for (size_t i = 0; i < sizeof reloaded / sizeof reloaded[0]; i++)
		if (strcmp(reloaded[i], name) == 0)
			return true;
	return false;
}

static bool
are_same_pairs(const Pairs *a, const Pairs *b)
{
	bool are_same = a->n_pairs == b->n_pairs;

	for (int i = 0; are_same && i < a->n_pairs; i++)
		are_same =
			strcmp(a->list[i].name, b->list[i].name) == 0 && strcmp(a->list[i].value, b->list[i].value) == 0;
	return are_same;
}

void
config_apply(Config *config, const Config *fresh)
{
	for (int i = 0; i < N_OPTIONS; i++)
	{
		const Option *option = &options[i];

		if (is_same_text(option_text(config, i), option_text(fresh, i)))
			continue;
		if (!is_reloaded(option->name))
		{
			log_line(LOG_WARNING, "%s: another \"%s\" is used only after a restart", config->file,
					 option->name);
			continue;
		}
		memcpy((char *) config + option->at, (const char *) fresh + option->at, sizeof(int64_t));
		free(config->settings[i].value);
		config->settings[i] = fresh->settings[i];
		if (fresh->settings[i].value != NULL)
			config->settings[i].value = mem_string(fresh->settings[i].value);
		log_line(LOG_INFO, "%s: \"%s\" is %s now", config->file, option->name, option_text(config, i));
	}
	if (!are_same_pairs(&config->columns, &fresh->columns))
		log_line(LOG_WARNING, "%s: other [columns] are used only after a restart", config->file);
	if (!are_same_pairs(&config->kafka, &fresh->kafka))
		log_line(LOG_WARNING, "%s: other \"kafka.*\" are used only after a restart", config->file);
}

/* ---- help ---- */

void
config_print_wrapped(FILE *out, const char *text)
{
	size_t column = 0;

	while (*text)
	{
		size_t blanks = strspn(text, " "), word = strcspn(text + blanks, " ");

		if (column == 0 || column + blanks + word > 92)
		{
			fprintf(out, "%s        %.*s", column ? "\n" : "", (int) word, text + blanks);
			column = word;
		}
		else
		{
			fprintf(out, "%.*s", (int) (blanks + word), text);
			column += blanks + word;
		}
		text += blanks + word;
	}
	fputc('\n', out);
}

void
config_help(FILE *out)
{
	for (int i = 0; i < N_OPTIONS; i++)
	{
		const Option *option = &options[i];

		fprintf(out, "  --%s=", option->name);
		if (option->kind == OPTION_CHOICE)
			for (int c = 0; option->choices[c]; c++)
				fprintf(out, "%s%s", c ? "|" : "", option->choices[c]);
		else
			fputs(option->kind == OPTION_TEXT			? "TEXT"
					  : option->kind == OPTION_BYTES	? "BYTES"
					  : option->kind == OPTION_DURATION ? "DURATION"
														: "NUMBER",
				  out);
		if (option->initial && option->initial[0])
			fprintf(out, "  (%s)", option->initial);
		fputc('\n', out);
		config_print_wrapped(out, option->help);
	}
	fputs("  --source.kafka.PROPERTY=VALUE\n", out);
	config_print_wrapped(out, "Any property of librdkafka, by its own name and with its own checks.");
	fputs("  --columns.COLUMN=FIELD [format:FORMAT] [default:TEXT]\n", out);
	config_print_wrapped(
		out,
		"What fills a column of the table: a field by name; for JSON a path with dots; $ (the "
		"whole message), "
		"$topic, $file, $partition, $offset, $key, $timestamp, $headers, $header.NAME, $rest (the "
		"fields that "
		"no column takes, as JSON); nothing after the = leaves the column to the server.  FORMAT "
		"reads a time: "
		"iso, epoch_s, epoch_ms, epoch_us, or a pattern such as %d.%m.%Y %H:%M:%S.%f %z.  TEXT is "
		"taken where "
		"the field is missing.  A column without a line takes the field of its own name.");
}
