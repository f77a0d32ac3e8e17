/*
 * `millrace produce`: replays CSV files or JSON lines, or simulates a shop, to Kafka, a file or standard output.
 *
 * One thread: a record is read, chosen by the sample, changed (id, event time, damage) and sent when its time has come.
 * All that is random comes from one generator, so a seed repeats a run.  Records go out with the bytes they came in,
 * except for the values that are changed.
 */
#include "ingest.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <math.h>
#include <search.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define ANSWER_MS 10000		/* how long one question to the broker may take */
#define CATCH_UP_US 1000000 /* who is further behind a rate than this does not make up for it */

/* ---- options ---- */

typedef enum TimeMode
{
	TIMES_KEEP,
	TIMES_NOW,	 /* of sending */
	TIMES_FIRST, /* shifted: the first record of each pass happens now */
	TIMES_SHIFT	 /* by a constant */
} TimeMode;

/* From least to most, both possible. */
typedef struct Range
{
	int64_t least, most;
} Range;

typedef struct Settings
{
	char **files;
	int n_files;
	bool simulates;
	int64_t n_past, past_ms;   /* simulated events of the past; -1: none */
	int format, output_format; /* Format; -1: not given */
	const char *columns;
	Config csv; /* only its csv_ members */
	Config *like;
	const char *brokers, *topic, *key, *output;
	Pairs kafka;
	bool creates_topic, as_strings, shuffles, once, progress;
	int64_t n_partitions, n_replicas, retention_ms;
	double share;		  /* of the rows that are taken; < 0: n_sample of them, or all */
	int64_t n_sample;	  /* -1: by share, or all */
	const char *stratify; /* column; NULL: none */
	uint64_t seed;
	bool has_rate, has_burst;
	double rate, jitter; /* messages a second; 0: as fast as can be */
	Range burst, pause_ms;
	int64_t n_messages, duration_ms; /* -1: no end */
	const char *id, *time;			 /* columns; NULL: none */
	bool is_uuid;
	int64_t first_id;
	TimeMode time_mode;
	int64_t shift_ms;
	double late, duplicates, bad; /* shares */
	int64_t late_ms;
} Settings;

typedef enum Flag
{
	FLAG_SIMULATE = 1, /* 0 and '?' have meanings for getopt */
	FLAG_PAST,
	FLAG_FORMAT,
	FLAG_DELIMITER,
	FLAG_NULL,
	FLAG_COLUMNS,
	FLAG_BROKERS,
	FLAG_TOPIC,
	FLAG_TO,
	FLAG_KEY,
	FLAG_CREATE,
	FLAG_PARTITIONS,
	FLAG_REPLICAS,
	FLAG_RETENTION,
	FLAG_OUTPUT,
	FLAG_OUTPUT_FORMAT,
	FLAG_STRINGS,
	FLAG_RATE,
	FLAG_JITTER,
	FLAG_BURST,
	FLAG_PAUSE,
	FLAG_ONCE,
	FLAG_COUNT,
	FLAG_DURATION,
	FLAG_SAMPLE,
	FLAG_STRATIFY,
	FLAG_SHUFFLE,
	FLAG_SEED,
	FLAG_ID,
	FLAG_FIRST_ID,
	FLAG_TIME,
	FLAG_TIMES,
	FLAG_LATE,
	FLAG_DUPLICATES,
	FLAG_BAD,
	FLAG_PROGRESS,
	FLAG_HELP,
	N_FLAGS
} Flag;

static const struct
{
	const char *name, *value, *help; /* value: what it is called in the help; NULL: there is none */
} flags[N_FLAGS] = {
	[FLAG_SIMULATE] = {"simulate", "shop",
					   "Instead of files: JSON events of a shop's visitors, who view products, put them into "
					   "the cart, purchase them; each has a number as id and the time of sending.  Products, "
					   "people and tastes are always the same."},
	[FLAG_PAST] = {"past", "NUMBER:DURATION",
				   "Of what is simulated the first so many events come at once, with times spread over so "
				   "long until now; those that follow are at a rate or in bursts."},
	[FLAG_FORMAT] =
		{"format", "csv|json",
		 "What the files hold: CSV with a header, or a JSON object a line.  Default: json where the "
		 "first byte is a { or a [."},
	[FLAG_DELIMITER] = {"delimiter", "CHARACTER", "Of CSV: one character, or \\t.  Default: a comma."},
	[FLAG_NULL] = {"null", "TEXT",
				   "An unquoted CSV field of this text is null in JSON.  Default: the empty one."},
	[FLAG_COLUMNS] = {"columns", "NAME,...", "Names of the CSV fields, for files without a header."},
	[FLAG_BROKERS] = {"brokers", "HOST:PORT,...", "Send to Kafka."},
	[FLAG_TOPIC] = {"topic", "NAME", "Topic to send to."},
	[FLAG_TO] = {"to", "FILE.ini",
				 "Send to what this file of an ingester reads: brokers, topic, format and kafka.* of its "
				 "[source]."},
	[FLAG_KEY] = {"key", "COLUMN", "Column whose value is the key of the message.  Default: no key."},
	[FLAG_CREATE] = {"create-topic", NULL, "Create the topic if it is not there."},
	[FLAG_PARTITIONS] = {"partitions", "NUMBER", "Of a created topic.  Default: 1."},
	[FLAG_REPLICAS] = {"replication", "NUMBER", "Copies of each partition of a created topic.  Default: 1."},
	[FLAG_RETENTION] = {"retention", "DURATION",
						"How long a created topic keeps messages.  Default: the broker's."},
	[FLAG_OUTPUT] = {"output", "FILE",
					 "Append to this file.  Without this and without a topic: to standard output."},
	[FLAG_OUTPUT_FORMAT] = {"output-format", "csv|json",
							"Form of the messages.  Default: json for Kafka, otherwise as the files."},
	[FLAG_STRINGS] =
		{"strings", NULL,
		 "From CSV to JSON every value becomes a string.  Default: what JSON can write as a number "
		 "is one, with its digits."},
	[FLAG_RATE] = {"rate", "NUMBER|max", "Messages a second, instead of bursts."},
	[FLAG_JITTER] = {"jitter", "SHARE",
					 "With a rate: each gap is longer or shorter by up to this share.  Default: 0."},
	[FLAG_BURST] = {"burst", "N[-N]", "Messages at a time.  Default: 1-10."},
	[FLAG_PAUSE] = {"pause", "DURATION[-DURATION]", "Time between bursts.  Default: 1s-3s."},
	[FLAG_ONCE] =
		{"once", NULL,
		 "Stop when all has been sent, of what is simulated the --past.  Without it the files are replayed "
		 "for ever, or to --count or --duration."},
	[FLAG_COUNT] = {"count", "NUMBER", "Stop after so many messages, duplicates and all."},
	[FLAG_DURATION] = {"duration", "DURATION", "Stop after this time."},
	[FLAG_SAMPLE] =
		{"sample", "N|PERCENT%",
		 "Take N rows, or a part, of the files: each row as likely as the others, in their order.  "
		 "Every replay takes others."},
	[FLAG_STRATIFY] = {"stratify", "COLUMN", "Each value of this column keeps its share in the sample."},
	[FLAG_SHUFFLE] = {"shuffle", NULL, "In random order; what is sent is held in memory."},
	[FLAG_SEED] = {"seed", "NUMBER",
				   "Repeats everything random.  Default: another one each time; it is logged."},
	[FLAG_ID] = {"id", "COLUMN[:uuid]",
				 "The column gets a new id: the next number, unique in this run, or a random UUID."},
	[FLAG_FIRST_ID] = {"first-id", "NUMBER", "First of the numbers, also of simulated events.  Default: 1."},
	[FLAG_TIME] = {"time", "COLUMN", "Column with the event time, in ISO 8601 or as s, ms or us since 1970."},
	[FLAG_TIMES] = {"times", "keep|now|shift|DURATION",
					"Event times as they are, the time of sending, moved so that the first record of each "
					"replay happens now, or moved by a duration (-2h, 365d).  Default: keep."},
	[FLAG_LATE] = {"late", "SHARE[:DURATION]",
				   "This share of the messages gets an event time up to so much earlier.  Default: 0:10min."},
	[FLAG_DUPLICATES] = {"duplicates", "SHARE", "This share of the messages is sent twice.  Default: 0."},
	[FLAG_BAD] = {"bad", "SHARE",
				  "This share of the messages is damaged so that no decoder takes it.  Default: 0."},
	[FLAG_PROGRESS] = {"progress", NULL, "Show messages and messages/s; always shown on a terminal."},
	[FLAG_HELP] = {"help", NULL, "Show this."},
};

static void
help(FILE *out)
{
	fputs("millrace produce FILE... [options]\n"
		  "millrace produce --simulate=shop [options]\n\n"
		  "Replays CSV files or JSON lines, also gzipped ones, to Kafka, a file or standard output; \"-\" is "
		  "standard input;\n"
		  "or simulates the events of a shop.\n"
		  "By default bursts of 1 to 10 messages are sent every 1 to 3 s.\n\n",
		  out);
	for (int i = 1; i < N_FLAGS; i++)
	{
		fprintf(out, "  --%s%s%s\n", flags[i].name, flags[i].value ? "=" : "",
				flags[i].value ? flags[i].value : "");
		config_print_wrapped(out, flags[i].help);
	}
	fputs("  --kafka.PROPERTY=VALUE\n", out);
	config_print_wrapped(out, "Any property of librdkafka.  The producer is idempotent.");
	fputs("\nExit codes:\n"
		  "  0  done, or stopped by a signal; all that was sent has arrived\n"
		  "  2  command line wrong\n"
		  "  3  a file, the topic or the output cannot be read or written, or a message did not arrive\n"
		  "  8  second signal: stopped at once\n",
		  out);
}

static void __attribute__((format(printf, 2, 3))) complain(int *n_errors, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	fprintf(stderr, "command line: %s\n", text);
	(*n_errors)++;
}

static bool
parse_integer(const char *text, int64_t *number)
{
	char *end;

	errno = 0;
	*number = strtoll(text, &end, 10);
	return end != text && *end == '\0' && errno == 0;
}

static bool
parse_share(const char *text, double *share)
{
	char *end;

	*share = strtod(text, &end);
	if (end != text && *end == '%' && end[1] == '\0')
		*share /= 100;
	else if (end == text || *end != '\0')
		return false;
	return *share >= 0 && *share <= 1;
}

/* "LEAST-MOST", or one for both; each read by parse. */
static bool
parse_range(const char *text, bool (*parse)(const char *, int64_t *), Range *range)
{
	const char *dash = *text ? strchr(text + 1, '-') : NULL;
	char *least = mem_printf("%.*s", dash ? (int) (dash - text) : (int) strlen(text), text);
	bool is_good = parse(least, &range->least) && parse(dash ? dash + 1 : least, &range->most) &&
		range->least >= 0 && range->least <= range->most;

	free(least);
	return is_good;
}

static bool
parse_format(const char *text, int *format)
{
	*format = strcmp(text, "csv") == 0 ? FORMAT_CSV : strcmp(text, "json") == 0 ? FORMAT_JSON : -1;
	return *format >= 0;
}

static bool
parse_sample(Settings *settings, const char *text)
{
	if (strchr(text, '%') != NULL)
		return parse_share(text, &settings->share);
	return parse_integer(text, &settings->n_sample) && settings->n_sample > 0;
}

static bool
parse_past(Settings *settings, char *text)
{
	char *colon = strchr(text, ':');

	if (colon == NULL)
		return false;
	*colon = '\0';
	bool is_good = parse_integer(text, &settings->n_past) && settings->n_past > 0 &&
		config_duration(colon + 1, &settings->past_ms) && settings->past_ms > 0;
	*colon = ':'; /* for the error */
	return is_good;
}

static bool
parse_times(Settings *settings, const char *text)
{
	settings->time_mode = strcmp(text, "keep") == 0 ? TIMES_KEEP
		: strcmp(text, "now") == 0					? TIMES_NOW
		: strcmp(text, "shift") == 0				? TIMES_FIRST
													: TIMES_SHIFT;
	return settings->time_mode != TIMES_SHIFT || config_duration(text, &settings->shift_ms);
}

static bool
parse_late(Settings *settings, char *text)
{
	char *colon = strchr(text, ':');

	if (colon != NULL)
		*colon = '\0';
	return parse_share(text, &settings->late) &&
		(colon == NULL || (config_duration(colon + 1, &settings->late_ms) && settings->late_ms > 0));
}

static bool
parse_id(Settings *settings, char *text)
{
	char *colon = strrchr(text, ':');

	settings->is_uuid = colon != NULL && strcmp(colon, ":uuid") == 0;
	if (settings->is_uuid)
		*colon = '\0';
	settings->id = text;
	return *text != '\0';
}

static bool
parse_rate(Settings *settings, const char *text)
{
	char *end;

	settings->has_rate = true;
	if (strcmp(text, "max") == 0)
		return true;
	settings->rate = strtod(text, &end);
	return end != text && *end == '\0' && isfinite(settings->rate) && settings->rate > 0;
}

static bool
parse_delimiter(Settings *settings, const char *text)
{
	settings->csv.csv_delimiter[0] = strcmp(text, "\\t") == 0 ? '\t' : text[0];
	return strcmp(text, "\\t") == 0 || (strlen(text) == 1 && !strchr("\"\r\n", text[0]));
}

/* False when the value is none for this flag. */
static bool
set_flag(Settings *settings, Flag flag, char *value)
{
	int64_t number;

	switch (flag)
	{
		case FLAG_SIMULATE:
			settings->simulates = true;
			return strcmp(value, "shop") == 0;
		case FLAG_PAST:
			return parse_past(settings, value);
		case FLAG_FORMAT:
			return parse_format(value, &settings->format);
		case FLAG_DELIMITER:
			return parse_delimiter(settings, value);
		case FLAG_NULL:
			settings->csv.csv_null = value;
			return true;
		case FLAG_COLUMNS:
			settings->columns = value;
			return *value != '\0';
		case FLAG_BROKERS:
			settings->brokers = value;
			return *value != '\0';
		case FLAG_TOPIC:
			settings->topic = value;
			return *value != '\0';
		case FLAG_TO:
			settings->like = mem_alloc(sizeof(Config));
			return config_load(settings->like, value, 0, NULL) == EXIT_DONE;
		case FLAG_KEY:
			settings->key = value;
			return *value != '\0';
		case FLAG_CREATE:
			settings->creates_topic = true;
			return true;
		case FLAG_PARTITIONS:
			return parse_integer(value, &settings->n_partitions) && settings->n_partitions >= 1 &&
				settings->n_partitions <= 100000;
		case FLAG_REPLICAS:
			return parse_integer(value, &settings->n_replicas) && settings->n_replicas >= 1 &&
				settings->n_replicas <= 1000;
		case FLAG_RETENTION:
			return config_duration(value, &settings->retention_ms) && settings->retention_ms > 0;
		case FLAG_OUTPUT:
			settings->output = value;
			return *value != '\0';
		case FLAG_OUTPUT_FORMAT:
			return parse_format(value, &settings->output_format);
		case FLAG_STRINGS:
			settings->as_strings = true;
			return true;
		case FLAG_RATE:
			return parse_rate(settings, value);
		case FLAG_JITTER:
			return parse_share(value, &settings->jitter);
		case FLAG_BURST:
			settings->has_burst = true;
			return parse_range(value, parse_integer, &settings->burst) && settings->burst.least > 0;
		case FLAG_PAUSE:
			settings->has_burst = true;
			return parse_range(value, config_duration, &settings->pause_ms);
		case FLAG_ONCE:
			settings->once = true;
			return true;
		case FLAG_COUNT:
			return parse_integer(value, &settings->n_messages) && settings->n_messages > 0;
		case FLAG_DURATION:
			return config_duration(value, &settings->duration_ms) && settings->duration_ms > 0;
		case FLAG_SAMPLE:
			return parse_sample(settings, value);
		case FLAG_STRATIFY:
			settings->stratify = value;
			return *value != '\0';
		case FLAG_SHUFFLE:
			settings->shuffles = true;
			return true;
		case FLAG_SEED:
			if (!parse_integer(value, &number))
				return false;
			settings->seed = (uint64_t) number;
			return true;
		case FLAG_ID:
			return parse_id(settings, value);
		case FLAG_FIRST_ID:
			return parse_integer(value, &settings->first_id);
		case FLAG_TIME:
			settings->time = value;
			return *value != '\0';
		case FLAG_TIMES:
			return parse_times(settings, value);
		case FLAG_LATE:
			return parse_late(settings, value);
		case FLAG_DUPLICATES:
			return parse_share(value, &settings->duplicates);
		case FLAG_BAD:
			return parse_share(value, &settings->bad);
		case FLAG_PROGRESS:
			settings->progress = true;
			return true;
		default:
			return false;
	}
}

/* --kafka.PROPERTY=VALUE is put aside; returns how many arguments are left. */
static int
take_kafka_flags(Settings *settings, int argc, char **argv, int *n_errors)
{
	int n_left = 0;

	for (int i = 0; i < argc; i++)
	{
		char *value = strchr(argv[i], '=');

		if (strncmp(argv[i], "--kafka.", 8) != 0)
		{
			argv[n_left++] = argv[i];
			continue;
		}
		if (value == NULL)
		{
			complain(n_errors, "option \"%s\" needs a value: %s=VALUE", argv[i], argv[i]);
			continue;
		}
		Pairs *pairs = &settings->kafka;
		pairs->list = mem_grow(pairs->list, (size_t) pairs->n_pairs + 1, sizeof(Pair));
		pairs->list[pairs->n_pairs++] = (Pair){
			.name = mem_printf("%.*s", (int) (value - argv[i]) - 8, argv[i] + 8),
			.value = mem_string(value + 1),
			.origin = "command line",
		};
	}
	argv[n_left] = NULL;
	return n_left;
}

static bool
is_shop_field(const char *name)
{
	for (int i = 0; i < N_SHOP_FIELDS; i++)
		if (strcmp(shop_fields[i], name) == 0)
			return true;
	return false;
}

/* The same for what is simulated. */
static void
check_simulation(Settings *settings, int *n_errors)
{
	if (settings->n_files > 0)
		complain(n_errors, "either files or --simulate");
	if (settings->format >= 0 || settings->columns != NULL || settings->n_sample >= 0 ||
		settings->share >= 0 || settings->shuffles || settings->as_strings ||
		settings->csv.csv_delimiter[0] != ',')
		complain(n_errors,
				 "--format, --delimiter, --columns, --strings, --sample and --shuffle are for files");
	if (settings->output_format == FORMAT_CSV)
		complain(n_errors, "simulated events are JSON");
	settings->output_format = FORMAT_JSON;
	if (settings->once && settings->n_past < 0)
		complain(n_errors, "--once ends with the files, or with --past=NUMBER:DURATION");
	if (settings->time_mode == TIMES_FIRST)
		complain(n_errors, "--times=shift is for files");
	const char *names[] = {settings->id, settings->time, settings->key};
	for (int i = 0; i < 3; i++)
		if (names[i] != NULL && !is_shop_field(names[i]))
			complain(n_errors, "simulated events have no \"%s\"", names[i]);
}

/* Which flags do not go together, and what follows from others. */
static void
check_settings(Settings *settings, int *n_errors)
{
	const Config *like = settings->like;

	if (settings->simulates && settings->time == NULL)
		settings->time = "event_time";
	if (settings->n_past >= 0 && !settings->simulates)
		complain(n_errors, "--past belongs to --simulate=shop");
	if (settings->n_files == 0 && !settings->simulates)
		complain(n_errors, "no file to replay: millrace produce FILE... [options]");
	for (int i = 0; i < settings->n_files; i++)
		if (strcmp(settings->files[i], "-") == 0)
		{
			if (settings->n_sample >= 0 || settings->share >= 0)
				complain(n_errors, "--sample reads its files twice: standard input cannot be one");
			settings->once = true;
		}
	if (like != NULL && like->n_errors == 0)
	{
		if (like->type != SOURCE_KAFKA)
			complain(n_errors, "--to=%s: its source is not Kafka", like->file);
		if (settings->brokers == NULL)
			settings->brokers = like->brokers;
		if (settings->topic == NULL)
			settings->topic = like->topic;
		if (settings->output_format < 0)
			settings->output_format = (int) like->format;
	}
	if ((settings->brokers == NULL) != (settings->topic == NULL))
		complain(n_errors, "--brokers and --topic belong together");
	if (settings->topic != NULL && settings->output != NULL)
		complain(n_errors, "either --topic or --output");
	if (settings->topic == NULL &&
		(settings->creates_topic || settings->key != NULL || settings->kafka.n_pairs > 0))
		complain(n_errors, "--create-topic, --key and --kafka.* belong to --topic");
	if (settings->stratify != NULL && settings->n_sample < 0 && settings->share < 0)
		complain(n_errors, "--stratify belongs to --sample");
	if (settings->time == NULL && (settings->time_mode != TIMES_KEEP || settings->late > 0))
		complain(n_errors, "--times and --late need --time=COLUMN");
	if (settings->has_rate && settings->has_burst)
		complain(n_errors, "either --rate or --burst and --pause");
	if (settings->jitter > 0 && settings->rate == 0)
		complain(n_errors, "--jitter belongs to --rate=NUMBER");
	if (settings->output_format < 0 && settings->topic != NULL)
		settings->output_format = FORMAT_JSON;
	if (settings->simulates)
		check_simulation(settings, n_errors);
}

static ExitCode
read_flags(Settings *settings, int argc, char **argv, bool *is_help)
{
	struct option long_options[N_FLAGS];
	const char *names[N_FLAGS];
	int n_errors = 0, flag, index = 0;

	for (int i = 1; i < N_FLAGS; i++)
	{
		long_options[i - 1] =
			(struct option){flags[i].name, flags[i].value ? required_argument : no_argument, NULL, i};
		names[i - 1] = flags[i].name;
	}
	long_options[N_FLAGS - 1] = (struct option){0};
	argc = take_kafka_flags(settings, argc, argv, &n_errors);
	opterr = 0;
	while ((flag = getopt_long(argc, argv, "h", long_options, &index)) != -1)
	{
		if (flag == 'h' || flag == FLAG_HELP)
		{
			help(stdout);
			*is_help = true;
			return EXIT_DONE;
		}
		if (flag == '?')
		{
			const char *word = argv[optind - 1] + strspn(argv[optind - 1], "-");
			char *name = mem_printf("%.*s", (int) strcspn(word, "="), word);
			const char *nearest = name_nearest(name, names, N_FLAGS - 1);

			if (nearest != NULL && strcmp(nearest, name) == 0)
				complain(&n_errors, "option \"--%s\": with a value or without? see millrace produce --help",
						 name);
			else
				complain(&n_errors, "unknown option \"--%s\"%s%s%s", name,
						 nearest ? "; did you mean \"--" : "; see millrace produce --help",
						 nearest ? nearest : "", nearest ? "\"?" : "");
			free(name);
			continue;
		}
		if (!set_flag(settings, (Flag) flag, optarg) && flag != FLAG_TO)
			complain(&n_errors, "\"%s\" is no value of --%s=%s", optarg, flags[flag].name, flags[flag].value);
		n_errors += flag == FLAG_TO ? settings->like->n_errors : 0;
	}
	settings->files = argv + optind;
	settings->n_files = argc - optind;
	check_settings(settings, &n_errors);
	return n_errors ? EXIT_USAGE : EXIT_DONE;
}

/* ---- producer ---- */

/* Rows of one value of the column to stratify by; one for all where there is none. */
typedef struct Stratum
{
	char *value;
	size_t n_bytes;
	int64_t n_rows, n_wanted; /* in the files; of them in the sample */
	int64_t n_seen, n_taken;  /* in this pass */
	double rest;			  /* what rounding down has taken from n_wanted */
} Stratum;

/* A column that is looked at or changed. */
typedef enum Role
{
	ROLE_ID,
	ROLE_TIME,
	ROLE_KEY,
	ROLE_STRATUM,
	N_ROLES
} Role;

/* The bytes of a value in a record, and the text that stands for it. */
typedef struct Found
{
	const char *raw;
	size_t n_raw_bytes, text_at, n_text_bytes; /* text_at: in Producer.texts */
	bool is_there, is_null, is_quoted;
} Found;

typedef struct Producer
{
	const Settings *settings;
	uint64_t chance;

	/* input */
	Records records;
	int output_format;	 /* Format */
	bool has_begun;		 /* the first record was seen */
	int column[N_ROLES]; /* CSV; -1: none */
	JsonWalker *walker;
	const char *wanted[N_ROLES]; /* column names; NULL: none */
	Found found[N_ROLES], whole;
	Buffer texts;

	/* simulation; NULL: files */
	Shop *shop;
	Buffer event;

	/* sample */
	void *by_value; /* tree of Stratum */
	Stratum **strata;
	int n_strata;
	Arena kept; /* records to shuffle */
	struct Kept
	{
		const char *data;
		size_t n_bytes;
	} * order;
	int64_t n_kept, kept_capacity;

	/* message */
	Buffer message, key, time_text;
	char id_text[40];
	int64_t next_id;
	int64_t shift_us;
	bool has_shift; /* of this pass */
	bool warned_time;

	/* pace */
	int64_t started_us, next_us;
	double next_rest_us;
	int64_t n_left_in_burst;

	/* output */
	FILE *out;
	rd_kafka_t *client;
	rd_kafka_topic_t *topic;
	bool wants_header; /* a CSV file that begins */
	int64_t n_sent, n_arrived, n_lost, n_late, n_duplicates, n_bad;
	int64_t shown_us, shown_messages;
	bool shows_progress;
	ExitCode failure; /* EXIT_DONE: none */
} Producer;

static bool
is_over(const Producer *producer)
{
	const Settings *settings = producer->settings;

	return producer->failure != EXIT_DONE || stop_requested() ||
		(settings->n_messages >= 0 && producer->n_sent >= settings->n_messages) ||
		(settings->duration_ms >= 0 && monotonic_us() - producer->started_us >= settings->duration_ms * 1000);
}

static void __attribute__((format(printf, 2, 3))) fail(Producer *producer, const char *format, ...)
{
	char text[1024];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	if (producer->failure == EXIT_DONE)
		log_line(LOG_ERROR, "%s", text);
	producer->failure = EXIT_SOURCE;
}

static bool
next_record(Producer *producer, const char **record, size_t *n_bytes)
{
	if (records_next(&producer->records, record, n_bytes))
		return true;
	if (producer->records.has_failed)
		producer->failure = EXIT_SOURCE; /* it has been logged */
	return false;
}

/* ---- what stands in a record ---- */

static void
found_at(Producer *producer, Found *found, const JsonMember *member)
{
	*found = (Found){
		.raw = member->raw,
		.n_raw_bytes = member->n_raw_bytes,
		.text_at = producer->texts.n_bytes,
		.n_text_bytes = member->n_text_bytes,
		.is_there = true,
		.is_null = member->kind == JSON_NULL,
		.is_quoted = member->kind == JSON_STRING,
	};
	buffer_add(&producer->texts, member->text, member->n_text_bytes);
}

static void
on_member(void *context, const JsonMember *member)
{
	Producer *producer = context;

	for (int i = 0; i < N_ROLES; i++)
		if (producer->wanted[i] != NULL && strcmp(producer->wanted[i], member->path) == 0)
			found_at(producer, &producer->found[i], member);
	if (member->path[0] == '\0' && member->kind == JSON_OBJECT)
		producer->whole = (Found){.raw = member->raw, .n_raw_bytes = member->n_raw_bytes, .is_there = true};
}

/* What the first record tells: format and columns. */
static void
see_first(Producer *producer)
{
	Records *records = &producer->records;

	producer->has_begun = true;
	if (producer->output_format < 0)
		producer->output_format = records->format;
	if (records->format == FORMAT_JSON && producer->output_format == FORMAT_CSV)
		fail(producer, "%s: JSON cannot be sent as CSV", records_file(records));
	for (int i = 0; i < N_ROLES && records->format == FORMAT_CSV; i++)
	{
		for (int n = 0; producer->wanted[i] != NULL && n < records->n_names; n++)
			if (strcmp(records->names[n], producer->wanted[i]) == 0)
				producer->column[i] = n;
		if (producer->wanted[i] != NULL && producer->column[i] < 0)
			fail(producer, "%s: there is no column \"%s\"", records_file(records), producer->wanted[i]);
	}
}

/* Fills found[] from the record, which is split if it is CSV; false when it cannot be taken apart. */
static bool
look(Producer *producer, const char *record, size_t n_bytes)
{
	bool is_needed = false;

	if (!producer->has_begun)
		see_first(producer);
	memset(producer->found, 0, sizeof producer->found);
	producer->whole.is_there = false;
	producer->texts.n_bytes = 0;
	for (int i = 0; i < N_ROLES; i++)
		is_needed |= producer->wanted[i] != NULL;
	if (producer->records.format == FORMAT_JSON)
		return !is_needed || (json_walk(producer->walker, record, n_bytes) && producer->whole.is_there);
	if (producer->records.n_fields != producer->records.n_names)
		return false;
	for (int i = 0; i < N_ROLES; i++)
	{
		const Value *field = &producer->records.fields[producer->column[i] >= 0 ? producer->column[i] : 0];

		if (producer->column[i] < 0)
			continue;
		producer->found[i] = (Found){
			.text_at = producer->texts.n_bytes,
			.n_text_bytes = field->n_bytes,
			.is_there = true,
			.is_null = field->kind == VALUE_NULL,
		};
		buffer_add(&producer->texts, field->data, field->n_bytes);
	}
	return true;
}

static const char *
found_text(const Producer *producer, const Found *found)
{
	return producer->texts.data + found->text_at;
}

/* ---- the sample ---- */

static int
compare_strata(const void *a, const void *b)
{
	const Stratum *x = a, *y = b;
	size_t n_bytes = x->n_bytes < y->n_bytes ? x->n_bytes : y->n_bytes;
	int order = n_bytes ? memcmp(x->value, y->value, n_bytes) : 0;

	return order ? order : (x->n_bytes > y->n_bytes) - (x->n_bytes < y->n_bytes);
}

/* The stratum of the record that look() has seen. */
static Stratum *
stratum_of(Producer *producer)
{
	const Found *found = &producer->found[ROLE_STRATUM];
	Stratum wanted = {.value = producer->texts.data + found->text_at, .n_bytes = found->n_text_bytes};
	Stratum **node = tfind(&wanted, &producer->by_value, compare_strata);

	if (node != NULL)
		return *node;
	Stratum *stratum = mem_alloc(sizeof(Stratum));
	stratum->value = mem_alloc(wanted.n_bytes + 1);
	stratum->n_bytes = wanted.n_bytes;
	if (wanted.n_bytes > 0)
		memcpy(stratum->value, wanted.value, wanted.n_bytes);
	if (tsearch(stratum, &producer->by_value, compare_strata) == NULL)
	{
		fail(producer, "out of memory");
		return stratum;
	}
	producer->strata = mem_grow(producer->strata, (size_t) producer->n_strata + 1, sizeof(Stratum *));
	producer->strata[producer->n_strata++] = stratum;
	return stratum;
}

static int
compare_rests(const void *a, const void *b)
{
	double x = (*(Stratum *const *) a)->rest, y = (*(Stratum *const *) b)->rest;

	return (x < y) - (x > y);
}

/* How many rows of each stratum are wanted: its share, whole rows going to the largest remainders. */
static void
divide_sample(Producer *producer, int64_t n_rows)
{
	const Settings *settings = producer->settings;
	int64_t n_wanted =
		settings->n_sample >= 0 ? settings->n_sample : llround(settings->share * (double) n_rows);
	int64_t n_left = n_wanted = n_wanted > n_rows ? n_rows : n_wanted;

	for (int i = 0; i < producer->n_strata; i++)
	{
		Stratum *stratum = producer->strata[i];
		double exact = (double) n_wanted * (double) stratum->n_rows / (double) n_rows;

		stratum->n_wanted = (int64_t) exact;
		stratum->rest = exact - (double) stratum->n_wanted;
		n_left -= stratum->n_wanted;
	}
	if (producer->n_strata > 0)
		qsort(producer->strata, (size_t) producer->n_strata, sizeof(Stratum *), compare_rests);
	for (int i = 0; n_left > 0 && i < producer->n_strata; i++)
		if (producer->strata[i]->n_wanted < producer->strata[i]->n_rows)
		{
			producer->strata[i]->n_wanted++;
			n_left--;
		}
	log_line(LOG_INFO, "sample: %" PRId64 " of %" PRId64 " rows", n_wanted, n_rows);
}

/* Reads all files once to know how many rows there are. */
static void
count_strata(Producer *producer)
{
	const char *record;
	size_t n_bytes;
	int64_t n_rows = 0;

	while (!stop_requested() && next_record(producer, &record, &n_bytes))
		if (look(producer, record, n_bytes))
		{
			stratum_of(producer)->n_rows++;
			n_rows++;
		}
	records_rewind(&producer->records);
	divide_sample(producer, n_rows);
}

/* Is the record that look() has seen in the sample?  Knuth's algorithm S in each stratum: exact, in one pass. */
static bool
is_chosen(Producer *producer)
{
	const Settings *settings = producer->settings;

	if (settings->n_sample < 0 && settings->share < 0)
		return true;
	Stratum *stratum = stratum_of(producer);
	int64_t n_left = stratum->n_rows - stratum->n_seen++;
	bool is_in =
		random_share(&producer->chance) * (double) n_left < (double) (stratum->n_wanted - stratum->n_taken);

	stratum->n_taken += is_in;
	return is_in;
}

/* ---- event time ---- */

typedef enum TimeForm
{
	FORM_ISO,
	FORM_S,
	FORM_MS,
	FORM_US
} TimeForm;

/* Reads ISO 8601, also with " UTC" behind it, or digits: of the size that times of 1973 to 5138 have. */
static bool
read_time(const char *text, size_t n_bytes, int64_t *time_us, TimeForm *form, bool *has_zone)
{
	char digits[24];
	int64_t number;

	*form = FORM_ISO;
	*has_zone = true;
	if (n_bytes > 4 && memcmp(text + n_bytes - 4, " UTC", 4) == 0)
	{
		bool has_other;

		return time_parse(text, n_bytes - 4, time_us, &has_other) && !has_other;
	}
	if (time_parse(text, n_bytes, time_us, has_zone))
		return true;
	if (n_bytes < 9 || n_bytes > 17)
		return false;
	snprintf(digits, sizeof digits, "%.*s", (int) n_bytes, text);
	if (!parse_integer(digits, &number))
		return false;
	*form = n_bytes <= 11 ? FORM_S : n_bytes <= 14 ? FORM_MS : FORM_US;
	*time_us = *form == FORM_S ? number * 1000000 : *form == FORM_MS ? number * 1000 : number;
	return true;
}

static void
write_time(Buffer *out, int64_t time_us, TimeForm form, bool has_zone)
{
	char text[64];

	if (form != FORM_ISO)
	{
		buffer_printf(out, "%" PRId64,
					  form == FORM_S		? time_us / 1000000
						  : form == FORM_MS ? time_us / 1000
											: time_us);
		return;
	}
	time_format(time_us, text, sizeof text);
	buffer_printf(out, "%.10sT%.15s%s", text, text + 11, has_zone ? "Z" : "");
}

/* Writes the new event time of the record into time_text; false when it stays as it is.  *form: of the old one. */
static bool
change_time(Producer *producer, TimeForm *form)
{
	const Settings *settings = producer->settings;
	const Found *found = &producer->found[ROLE_TIME];
	bool is_late = happens(&producer->chance, settings->late), has_zone = true;
	int64_t time_us = 0, now_us = clock_us();

	*form = FORM_ISO;
	if (settings->time == NULL || (settings->time_mode == TIMES_KEEP && !is_late))
		return false;
	if (!found->is_there ||
		!read_time(found_text(producer, found), found->n_text_bytes, &time_us, form, &has_zone))
	{
		if (settings->time_mode != TIMES_NOW)
		{
			if (!producer->warned_time)
				log_line(LOG_WARNING, "an event time stays as it is: \"%.*s\" is no time",
						 (int) found->n_text_bytes, found->is_there ? found_text(producer, found) : "");
			producer->warned_time = true;
			return false;
		}
	}
	if (settings->time_mode == TIMES_FIRST && !producer->has_shift)
	{
		producer->shift_us = now_us - time_us;
		producer->has_shift = true;
	}
	if (settings->time_mode == TIMES_NOW)
	{
		time_us = now_us;
		has_zone = true;
	}
	else if (settings->time_mode == TIMES_FIRST)
		time_us += producer->shift_us;
	else if (settings->time_mode == TIMES_SHIFT)
		time_us += settings->shift_ms * 1000;
	if (is_late)
	{
		time_us -= random_between(&producer->chance, 1, settings->late_ms * 1000);
		producer->n_late++;
	}
	producer->time_text.n_bytes = 0;
	write_time(&producer->time_text, time_us, *form, has_zone);
	return true;
}

/* ---- messages ---- */

static void
new_id(Producer *producer)
{
	if (!producer->settings->is_uuid)
	{
		snprintf(producer->id_text, sizeof producer->id_text, "%" PRId64, producer->next_id++);
		return;
	}
	uint64_t high = random_bits(&producer->chance), low = random_bits(&producer->chance);
	uuid_format(high, low, producer->id_text, sizeof producer->id_text);
}

/* RFC 8259: what may stand unquoted. */
static bool
is_json_number(const char *text, size_t n_bytes)
{
	const char *at = text, *end = text + n_bytes;

	if (at < end && *at == '-')
		at++;
	if (at == end || *at < '0' || *at > '9' || (*at == '0' && at + 1 < end && at[1] >= '0' && at[1] <= '9'))
		return false;
	while (at < end && *at >= '0' && *at <= '9')
		at++;
	if (at < end && *at == '.')
	{
		if (++at == end || *at < '0' || *at > '9')
			return false;
		while (at < end && *at >= '0' && *at <= '9')
			at++;
	}
	if (at < end && (*at == 'e' || *at == 'E'))
	{
		at++;
		if (at < end && (*at == '+' || *at == '-'))
			at++;
		if (at == end)
			return false;
		while (at < end && *at >= '0' && *at <= '9')
			at++;
	}
	return at == end;
}

static void
add_json_string(Buffer *out, const char *text, size_t n_bytes)
{
	buffer_add(out, "\"", 1);
	for (size_t i = 0; i < n_bytes;)
	{
		size_t n_plain = 0;

		while (i + n_plain < n_bytes && (unsigned char) text[i + n_plain] >= 0x20 &&
			   text[i + n_plain] != '"' && text[i + n_plain] != '\\')
			n_plain++;
		buffer_add(out, text + i, n_plain);
		i += n_plain;
		if (i == n_bytes)
			break;
		if (text[i] == '"' || text[i] == '\\')
			buffer_printf(out, "\\%c", text[i]);
		else if (text[i] == '\n')
			buffer_add(out, "\\n", 2);
		else if (text[i] == '\t')
			buffer_add(out, "\\t", 2);
		else
			buffer_printf(out, "\\u%04x", (unsigned char) text[i]);
		i++;
	}
	buffer_add(out, "\"", 1);
}

static void
add_csv_field(const Producer *producer, Buffer *out, const Value *field)
{
	const char *null = producer->settings->csv.csv_null;
	bool is_quoted = field->kind == VALUE_TEXT && field->n_bytes == strlen(null) &&
		memcmp(field->data, null, field->n_bytes) == 0;

	for (size_t i = 0; i < field->n_bytes; i++)
		is_quoted |= strchr("\"\r\n", field->data[i]) != NULL ||
			field->data[i] == producer->settings->csv.csv_delimiter[0];
	if (!is_quoted)
	{
		buffer_add(out, field->data, field->n_bytes);
		return;
	}
	buffer_add(out, "\"", 1);
	for (size_t i = 0; i < field->n_bytes; i++)
	{
		buffer_add(out, "\"", field->data[i] == '"');
		buffer_add(out, &field->data[i], 1);
	}
	buffer_add(out, "\"", 1);
}

/* What takes the place of a field, or the field itself. */
static Value
changed_field(const Producer *producer, int i, bool has_time)
{
	if (i == producer->column[ROLE_ID])
		return (Value){producer->id_text, (uint32_t) strlen(producer->id_text), VALUE_TEXT};
	if (i == producer->column[ROLE_TIME] && has_time)
		return (Value){producer->time_text.data, (uint32_t) producer->time_text.n_bytes, VALUE_TEXT};
	return producer->records.fields[i];
}

static void
write_from_csv(Producer *producer, const char *record, size_t n_bytes, bool has_time)
{
	bool is_json = producer->output_format == FORMAT_JSON;
	Buffer *out = &producer->message;

	if (!is_json && producer->column[ROLE_ID] < 0 && !has_time)
	{
		buffer_add(out, record, n_bytes);
		return;
	}
	for (int i = 0; i < producer->records.n_fields; i++)
	{
		Value field = changed_field(producer, i, has_time);

		if (!is_json)
		{
			buffer_add(out, producer->settings->csv.csv_delimiter, i > 0);
			add_csv_field(producer, out, &field);
			continue;
		}
		buffer_add(out, i ? ", " : "{", i ? 2 : 1);
		add_json_string(out, producer->records.names[i], strlen(producer->records.names[i]));
		buffer_add(out, ": ", 2);
		if (field.kind == VALUE_NULL)
			buffer_add(out, "null", 4);
		else if (!producer->settings->as_strings && is_json_number(field.data, field.n_bytes))
			buffer_add(out, field.data, field.n_bytes);
		else
			add_json_string(out, field.data, field.n_bytes);
	}
	buffer_add(out, "}", is_json);
}

/* Puts text in the place of a member's value; one that is not there is added at the end. */
static void
put_member(Buffer *out, const char **at, const Found *found, const Found *whole, const char *name,
		   const char *text, size_t n_bytes, bool is_string)
{
	const char *place = found->is_there ? found->raw : whole->raw + whole->n_raw_bytes - 1;

	buffer_add(out, *at, (size_t) (place - *at));
	*at = found->is_there ? found->raw + found->n_raw_bytes : place;
	if (!found->is_there)
	{
		bool is_empty = true;

		for (const char *c = whole->raw + 1; c < place && is_empty; c++)
			is_empty = strchr(" \t\r\n", *c) != NULL;
		buffer_add(out, ", ", is_empty ? 0 : 2);
		add_json_string(out, name, strlen(name));
		buffer_add(out, ": ", 2);
	}
	if (is_string)
		add_json_string(out, text, n_bytes);
	else
		buffer_add(out, text, n_bytes);
}

static void
write_from_json(Producer *producer, const char *record, size_t n_bytes, bool has_time, TimeForm form)
{
	const Settings *settings = producer->settings;
	const Found *id = &producer->found[ROLE_ID], *time = &producer->found[ROLE_TIME];
	const char *at = record;
	bool is_time_first = has_time && time->is_there && (!id->is_there || time->raw < id->raw);

	for (int step = 0; step < 2; step++)
	{
		bool is_time = (step == 0) == is_time_first;

		if (is_time && has_time)
			put_member(&producer->message, &at, time, &producer->whole, settings->time,
					   producer->time_text.data, producer->time_text.n_bytes,
					   form == FORM_ISO || time->is_quoted);
		else if (!is_time && settings->id != NULL)
			put_member(&producer->message, &at, id, &producer->whole, settings->id, producer->id_text,
					   strlen(producer->id_text), settings->is_uuid || id->is_quoted);
	}
	buffer_add(&producer->message, at, (size_t) (record + n_bytes - at));
}

/* The message's key, after the changes; false: none. */
static bool
take_key(Producer *producer, bool has_time)
{
	const Settings *settings = producer->settings;
	const Found *found = &producer->found[ROLE_KEY];

	producer->key.n_bytes = 0;
	if (settings->key == NULL)
		return false;
	if (settings->id != NULL && strcmp(settings->key, settings->id) == 0)
		buffer_add(&producer->key, producer->id_text, strlen(producer->id_text));
	else if (has_time && strcmp(settings->key, settings->time) == 0)
		buffer_add(&producer->key, producer->time_text.data, producer->time_text.n_bytes);
	else if (found->is_there && !found->is_null)
		buffer_add(&producer->key, found_text(producer, found), found->n_text_bytes);
	else
		return false;
	return true;
}

/* Damages the message so that neither a JSON nor a CSV decoder can take it, and no other line is touched. */
static void
damage(Producer *producer)
{
	Buffer *message = &producer->message;
	bool is_json = producer->output_format == FORMAT_JSON;
	int64_t kind = random_between(&producer->chance, 0, 2);

	while (is_json && message->n_bytes > 1 && strchr(" \t\r", message->data[message->n_bytes - 1]))
		message->n_bytes--;
	size_t at = (size_t) random_between(&producer->chance, 0, (int64_t) message->n_bytes - 1);
	while (!is_json && at < message->n_bytes && message->data[at] == '"')
		at++; /* without its quotes a field would reach into other lines */
	producer->n_bad++;
	if (kind == 0 && is_json)
		message->n_bytes = at > 0 ? at : 1; /* cut: an object has no end before its last brace */
	else if (kind == 1 && is_json)
		buffer_add(message, "}", 1);
	else if (!is_json && (kind == 1 || at == message->n_bytes))
		buffer_printf(message, "%c?", producer->settings->csv.csv_delimiter[0]); /* a field too many */
	else
		message->data[at] = (char) 0xFF; /* in no UTF-8 text */
}

/* ---- output ---- */

static void
on_delivery(rd_kafka_t *client, const rd_kafka_message_t *message, void *opaque)
{
	Producer *producer = opaque;

	(void) client;
	if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		producer->n_arrived++;
		return;
	}
	producer->n_lost++;
	fail(producer, "kafka: a message did not arrive: %s", rd_kafka_err2str(message->err));
}

static void
on_error(rd_kafka_t *client, int error, const char *reason, void *opaque)
{
	(void) client;
	if (error == RD_KAFKA_RESP_ERR__FATAL)
		fail(opaque, "kafka: %s", reason);
	else
		log_line(LOG_WARNING, "kafka: %s: %s", rd_kafka_err2name(error), reason);
}

static void
set_properties(Producer *producer, rd_kafka_conf_t *conf, const Pairs *pairs)
{
	char error[512];

	for (int i = 0; i < pairs->n_pairs; i++)
	{
		const char *name = pairs->list[i].name;

		if (rd_kafka_conf_set(conf, name, pairs->list[i].value, error, sizeof error) == RD_KAFKA_CONF_OK)
			continue;
		fail(producer, "%s",
			 kafka_is_secret(name) ? "librdkafka refuses the value of a secret property" : error);
		producer->failure = EXIT_USAGE;
	}
}

/* Creates the topic; one that is there stays as it is. */
static void
create_topic(Producer *producer)
{
	const Settings *settings = producer->settings;
	char text[512];
	rd_kafka_NewTopic_t *topic = rd_kafka_NewTopic_new(settings->topic, (int) settings->n_partitions,
													   (int) settings->n_replicas, text, sizeof text);

	if (topic == NULL)
	{
		fail(producer, "topic \"%s\": %s", settings->topic, text);
		return;
	}
	if (settings->retention_ms >= 0)
	{
		snprintf(text, sizeof text, "%" PRId64, settings->retention_ms);
		rd_kafka_NewTopic_set_config(topic, "retention.ms", text);
	}
	rd_kafka_queue_t *queue = rd_kafka_queue_new(producer->client);
	rd_kafka_CreateTopics(producer->client, &topic, 1, NULL, queue);
	rd_kafka_event_t *event = rd_kafka_queue_poll(queue, ANSWER_MS);
	const rd_kafka_CreateTopics_result_t *result = event ? rd_kafka_event_CreateTopics_result(event) : NULL;
	size_t n_topics = 0;
	const rd_kafka_topic_result_t **topics =
		result ? rd_kafka_CreateTopics_result_topics(result, &n_topics) : NULL;

	if (event == NULL)
		fail(producer, "topic \"%s\" is not created: no answer from %s", settings->topic, settings->brokers);
	else if (n_topics != 1)
		fail(producer, "topic \"%s\" is not created: %s", settings->topic,
			 rd_kafka_event_error_string(event));
	else if (rd_kafka_topic_result_error(topics[0]) == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS)
		log_line(LOG_INFO, "topic \"%s\" is there already", settings->topic);
	else if (rd_kafka_topic_result_error(topics[0]) != RD_KAFKA_RESP_ERR_NO_ERROR)
		fail(producer, "topic \"%s\" is not created: %s", settings->topic,
			 rd_kafka_topic_result_error_string(topics[0]));
	else
		log_line(LOG_INFO, "topic \"%s\" is created, partitions: %" PRId64, settings->topic,
				 settings->n_partitions);
	if (event != NULL)
		rd_kafka_event_destroy(event);
	rd_kafka_queue_destroy(queue);
	rd_kafka_NewTopic_destroy(topic);
}

/*
 * Does the leader of each partition know it?  A broker that has just learnt of a topic refuses the first batch of a
 * partition and may take the second; it then never takes the first one, which counts as delivered (KAFKA-15591).
 */
static rd_kafka_resp_err_t
ask_leaders(Producer *producer, const struct rd_kafka_metadata_topic *topic)
{
	rd_kafka_resp_err_t error = topic->err;

	for (int i = 0; i < topic->partition_cnt && error == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
	{
		int64_t low, high;

		error = rd_kafka_query_watermark_offsets(producer->client, topic->topic, topic->partitions[i].id,
												 &low, &high, ANSWER_MS);
	}
	return error;
}

/* Is the topic there?  A created one may need a moment. */
static void
check_topic(Producer *producer)
{
	const Settings *settings = producer->settings;
	int64_t until_us = monotonic_us() + ANSWER_MS * 1000;
	rd_kafka_resp_err_t error;

	for (;;)
	{
		const struct rd_kafka_metadata *about;

		error = rd_kafka_metadata(producer->client, 0, producer->topic, &about, ANSWER_MS);
		if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
			break;
		error = about->topic_cnt == 1 ? about->topics[0].err : RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
		if (error == RD_KAFKA_RESP_ERR_NO_ERROR && settings->creates_topic)
			error = ask_leaders(producer, &about->topics[0]);
		rd_kafka_metadata_destroy(about);
		if (error == RD_KAFKA_RESP_ERR_NO_ERROR || stop_requested())
			return;
		if (!settings->creates_topic && error != RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)
			break;
		if (monotonic_us() > until_us)
			break;
		wait_ms(50);
	}
	fail(producer, "topic \"%s\" at %s: %s%s", settings->topic, settings->brokers, rd_kafka_err2str(error),
		 error == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART ? "; --create-topic creates it" : "");
}

static void
open_kafka(Producer *producer)
{
	/* Ours, unless the user has set them. */
	static Pair our_defaults[] = {
		{.name = "client.id", .value = "millrace-produce"},
		{.name = "queue.buffering.max.kbytes", .value = "65536"},
	};
	static Pair idempotence[] = {{.name = "enable.idempotence", .value = "true"}};
	const Settings *settings = producer->settings;
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	char error[512];

	set_properties(producer, conf, &(Pairs){our_defaults, 2});
	if (settings->like != NULL)
		set_properties(producer, conf, &settings->like->kafka);
	set_properties(producer, conf, &settings->kafka);
	set_properties(producer, conf, &(Pairs){idempotence, 1});
	if (rd_kafka_conf_set(conf, "bootstrap.servers", settings->brokers, error, sizeof error) !=
		RD_KAFKA_CONF_OK)
		fail(producer, "%s", error);
	rd_kafka_conf_set_dr_msg_cb(conf, on_delivery);
	kafka_tell(conf);
	rd_kafka_conf_set_error_cb(conf, on_error);
	rd_kafka_conf_set_opaque(conf, producer);
	if (producer->failure == EXIT_DONE)
	{
		producer->client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, error, sizeof error);
		if (producer->client == NULL)
		{
			fail(producer, "%s", error);
			producer->failure = EXIT_USAGE;
		}
	}
	if (producer->client == NULL)
	{
		rd_kafka_conf_destroy(conf);
		return;
	}
	if (settings->creates_topic)
		create_topic(producer);
	producer->topic = rd_kafka_topic_new(producer->client, settings->topic, NULL);
	if (producer->topic == NULL)
		fail(producer, "topic \"%s\": %s", settings->topic, rd_kafka_err2str(rd_kafka_last_error()));
	if (producer->failure == EXIT_DONE)
		check_topic(producer);
}

static void
open_output(Producer *producer)
{
	const Settings *settings = producer->settings;

	if (settings->topic != NULL)
	{
		open_kafka(producer);
		return;
	}
	producer->out = settings->output ? fopen(settings->output, "ab") : stdout;
	if (producer->out == NULL)
	{
		fail(producer, "%s: cannot write: %s", settings->output, strerror(errno));
		return;
	}
	producer->wants_header =
		settings->output == NULL || fseek(producer->out, 0, SEEK_END) != 0 || ftell(producer->out) == 0;
}

/* What was written can be seen by who reads the file. */
static void
flush_output(Producer *producer)
{
	if (producer->client != NULL)
		rd_kafka_poll(producer->client, 0);
	else if (producer->out != NULL && (fflush(producer->out) != 0 || ferror(producer->out)))
		fail(producer, "%s: cannot write: %s",
			 producer->settings->output ? producer->settings->output : "standard output", strerror(errno));
}

static void
send_line(Producer *producer, const char *data, size_t n_bytes)
{
	fwrite(data, 1, n_bytes, producer->out);
	putc('\n', producer->out);
	if (ferror(producer->out))
		flush_output(producer);
	producer->n_arrived++;
}

static void
send_kafka(Producer *producer, const Buffer *key)
{
	/* Room in the queue is made by polling. */
	while (rd_kafka_produce(producer->topic, RD_KAFKA_PARTITION_UA, RD_KAFKA_MSG_F_COPY,
							producer->message.data, producer->message.n_bytes, key ? key->data : NULL,
							key ? key->n_bytes : 0, NULL) != 0)
	{
		if (rd_kafka_last_error() != RD_KAFKA_RESP_ERR__QUEUE_FULL)
		{
			fail(producer, "kafka: %s", rd_kafka_err2str(rd_kafka_last_error()));
			return;
		}
		rd_kafka_poll(producer->client, 100);
		if (stop_requested() || producer->failure != EXIT_DONE)
			return;
	}
	if (producer->n_sent % 256 == 0)
		rd_kafka_poll(producer->client, 0);
}

static void
show_progress(Producer *producer, bool is_final)
{
	int64_t now_us = monotonic_us(),
			since_us = now_us - (is_final ? producer->started_us : producer->shown_us);

	if (!producer->shows_progress || (!is_final && since_us < (isatty(STDERR_FILENO) ? 200000 : 1000000)))
		return;
	log_progress(is_final, "%" PRId64 " messages, %.0f/s", producer->n_arrived,
				 (double) (producer->n_arrived - (is_final ? 0 : producer->shown_messages)) * 1e6 /
					 (double) (since_us > 0 ? since_us : 1));
	producer->shown_us = now_us;
	producer->shown_messages = producer->n_arrived;
}

/* ---- pace ---- */

/* Waits until it is time for the next message; false when there is to be none. */
static bool
await_turn(Producer *producer)
{
	const Settings *settings = producer->settings;

	for (;;)
	{
		int64_t left_us = producer->next_us - monotonic_us();

		if (is_over(producer))
			return false;
		if (left_us <= 0)
			break;
		flush_output(producer);
		show_progress(producer, false);
		if (left_us > 50000)
			left_us = 50000;
		nanosleep(&(struct timespec){0, left_us * 1000}, NULL);
	}
	if (producer->n_sent % 1024 == 0)
		show_progress(producer, false);
	if (settings->rate > 0)
	{
		double gap_us =
			1e6 / settings->rate * (1 + settings->jitter * (2 * random_share(&producer->chance) - 1)) +
			producer->next_rest_us;
		int64_t behind_us = monotonic_us() - producer->next_us;

		if (behind_us > CATCH_UP_US)
			producer->next_us += behind_us;
		producer->next_us += (int64_t) gap_us;
		producer->next_rest_us = gap_us - floor(gap_us);
	}
	if (settings->has_rate)
		return true;
	if (producer->n_left_in_burst == 0)
		producer->n_left_in_burst =
			random_between(&producer->chance, settings->burst.least, settings->burst.most);
	if (--producer->n_left_in_burst == 0)
		producer->next_us = monotonic_us() +
			1000 * random_between(&producer->chance, settings->pause_ms.least, settings->pause_ms.most);
	return true;
}

/* ---- all together ---- */

static void
send_message(Producer *producer, const Buffer *key)
{
	if (producer->client != NULL)
		send_kafka(producer, key);
	else
		send_line(producer, producer->message.data, producer->message.n_bytes);
	producer->n_sent++;
}

/* Changes and sends a record whose values are in found[]. */
static void
send_record(Producer *producer, const char *record, size_t n_bytes)
{
	const Settings *settings = producer->settings;
	TimeForm form;
	bool has_time = change_time(producer, &form);
	if (settings->id != NULL)
		new_id(producer);
	producer->message.n_bytes = 0;
	if (producer->records.format == FORMAT_CSV)
		write_from_csv(producer, record, n_bytes, has_time);
	else
		write_from_json(producer, record, n_bytes, has_time, form);
	const Buffer *key = take_key(producer, has_time) ? &producer->key : NULL;
	if (producer->wants_header && producer->output_format == FORMAT_CSV &&
		producer->records.header.n_bytes > 0)
		fprintf(producer->out, "%.*s\n", (int) producer->records.header.n_bytes,
				producer->records.header.data);
	producer->wants_header = false;
	if (happens(&producer->chance, settings->bad))
	{
		damage(producer);
		send_message(producer, key);
		return;
	}
	send_message(producer, key);
	if (happens(&producer->chance, settings->duplicates) && !is_over(producer))
	{
		send_message(producer, key);
		producer->n_duplicates++;
	}
}

/* A record that look() has seen. */
static void
emit(Producer *producer, const char *record, size_t n_bytes)
{
	if (await_turn(producer))
		send_record(producer, record, n_bytes);
}

static void
keep(Producer *producer, const char *record, size_t n_bytes)
{
	if (producer->n_kept == producer->kept_capacity)
	{
		producer->kept_capacity = producer->kept_capacity ? producer->kept_capacity * 2 : 1024;
		producer->order =
			mem_grow(producer->order, (size_t) producer->kept_capacity, sizeof producer->order[0]);
	}
	producer->order[producer->n_kept].data = arena_copy(&producer->kept, record, n_bytes);
	producer->order[producer->n_kept++].n_bytes = n_bytes;
}

/* Fisher and Yates. */
static void
emit_shuffled(Producer *producer)
{
	for (int64_t i = producer->n_kept - 1; i > 0; i--)
	{
		int64_t j = random_between(&producer->chance, 0, i);
		struct Kept swapped = producer->order[i];

		producer->order[i] = producer->order[j];
		producer->order[j] = swapped;
	}
	for (int64_t i = 0; i < producer->n_kept && !is_over(producer); i++)
		if ((producer->records.format == FORMAT_JSON ||
			 records_split(&producer->records, producer->order[i].data, producer->order[i].n_bytes)) &&
			look(producer, producer->order[i].data, producer->order[i].n_bytes))
			emit(producer, producer->order[i].data, producer->order[i].n_bytes);
	producer->n_kept = 0;
	arena_reset(&producer->kept);
}

/* All files once.  Returns the number of records it took. */
static int64_t
replay(Producer *producer)
{
	int64_t n_taken = 0;
	const char *record;
	size_t n_bytes;

	producer->has_shift = false;
	for (int i = 0; i < producer->n_strata; i++)
		producer->strata[i]->n_seen = producer->strata[i]->n_taken = 0;
	while (!is_over(producer) && next_record(producer, &record, &n_bytes))
	{
		if (!look(producer, record, n_bytes))
		{
			records_skip(&producer->records,
						 producer->records.format == FORMAT_CSV ? "wrong number of fields"
																: "not a JSON object");
			continue;
		}
		if (!is_chosen(producer))
			continue;
		n_taken++;
		if (producer->settings->shuffles)
			keep(producer, record, n_bytes);
		else
			emit(producer, record, n_bytes);
	}
	records_rewind(&producer->records);
	if (producer->settings->shuffles && producer->failure == EXIT_DONE)
		emit_shuffled(producer);
	return n_taken;
}

/* What look() is for records of files. */
static void
look_at_event(Producer *producer, const ShopField *fields)
{
	memset(producer->found, 0, sizeof producer->found);
	producer->whole =
		(Found){.raw = producer->event.data, .n_raw_bytes = producer->event.n_bytes, .is_there = true};
	producer->texts.n_bytes = 0;
	for (int i = 0; i < N_ROLES; i++)
		for (int n = 0; n < N_SHOP_FIELDS && producer->wanted[i] != NULL; n++)
		{
			const ShopField *field = &fields[n];

			if (strcmp(producer->wanted[i], shop_fields[n]) != 0)
				continue;
			producer->found[i] = (Found){
				.raw = producer->event.data + field->at - field->is_quoted,
				.n_raw_bytes = field->n_bytes + 2 * field->is_quoted,
				.text_at = producer->texts.n_bytes,
				.n_text_bytes = field->n_bytes,
				.is_there = true,
				.is_null = field->is_null,
				.is_quoted = field->is_quoted,
			};
			buffer_add(&producer->texts, producer->event.data + field->at, field->n_bytes);
		}
}

static void
simulate(Producer *producer)
{
	const Settings *settings = producer->settings;
	int64_t n_past = settings->n_past > 0 ? settings->n_past : 0, now_us = clock_us();
	int64_t from_us = now_us - settings->past_ms * 1000;
	ShopField fields[N_SHOP_FIELDS];

	producer->records.format = FORMAT_JSON;
	for (int64_t i = 0; !is_over(producer) && !(settings->once && i >= n_past); i++)
	{
		if (i == n_past)
			producer->next_us = monotonic_us();
		if (i >= n_past && !await_turn(producer))
			break;
		if (i < n_past && i % 1024 == 0)
			show_progress(producer, false);
		shop_next(producer->shop,
				  i < n_past ? shop_past_us((double) i / (double) n_past, from_us, now_us) : clock_us(),
				  &producer->event, fields);
		look_at_event(producer, fields);
		send_record(producer, producer->event.data, producer->event.n_bytes);
	}
}

/* Waits until all that was sent has arrived; after a signal not for long. */
static void
drain(Producer *producer)
{
	int64_t until_us = 0;

	while (producer->client != NULL && rd_kafka_outq_len(producer->client) > 0)
	{
		rd_kafka_flush(producer->client, 200);
		show_progress(producer, false);
		if (!stop_requested() && producer->failure == EXIT_DONE)
			continue;
		if (until_us == 0)
			until_us = monotonic_us() + ANSWER_MS * 1000;
		if (monotonic_us() > until_us)
		{
			fail(producer, "kafka: %d messages have not arrived", rd_kafka_outq_len(producer->client));
			break;
		}
	}
	flush_output(producer);
}

static void
log_summary(const Producer *producer)
{
	log_line(LOG_INFO,
			 "%s: %" PRId64 " messages (%" PRId64 " late, %" PRId64 " duplicates, %" PRId64
			 " bad) in %.1f s, seed %" PRIu64,
			 producer->failure != EXIT_DONE ? "stopped by an error"
				 : stop_requested()			? "stopped by a signal"
											: "done",
			 producer->n_arrived, producer->n_late, producer->n_duplicates, producer->n_bad,
			 (double) (monotonic_us() - producer->started_us) / 1e6, producer->settings->seed);
	if (producer->records.n_skipped > 0)
		log_line(LOG_WARNING, "%" PRId64 " records could not be taken apart and were left out",
				 producer->records.n_skipped);
}

static void
produce_all(Producer *producer)
{
	const Settings *settings = producer->settings;

	open_output(producer);
	if (producer->failure == EXIT_DONE && (settings->n_sample >= 0 || settings->share >= 0))
		count_strata(producer);
	producer->started_us = producer->next_us = producer->shown_us = monotonic_us();
	if (settings->simulates)
		simulate(producer);
	while (!settings->simulates && producer->failure == EXIT_DONE && !is_over(producer))
	{
		int64_t n_taken = replay(producer);

		if (n_taken == 0 && producer->failure == EXIT_DONE && !stop_requested())
			log_line(LOG_WARNING, "there is nothing to send");
		if (settings->once || n_taken == 0)
			break;
	}
	drain(producer);
	if (producer->n_sent == 0 && producer->failure != EXIT_DONE)
		return;
	show_progress(producer, true);
	log_summary(producer);
}

static void
release(Producer *producer)
{
	if (producer->topic != NULL)
		rd_kafka_topic_destroy(producer->topic);
	if (producer->client != NULL)
	{
		rd_kafka_purge(producer->client, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
		rd_kafka_destroy(producer->client);
	}
	if (producer->out != NULL && producer->out != stdout)
		fclose(producer->out);
	records_close(&producer->records);
	json_walker_close(producer->walker);
	for (int i = 0; i < producer->n_strata; i++)
	{
		tdelete(producer->strata[i], &producer->by_value, compare_strata);
		free(producer->strata[i]->value);
		free(producer->strata[i]);
	}
	free(producer->strata);
	shop_close(producer->shop);
	buffer_free(&producer->event);
	free(producer->order);
	arena_free(&producer->kept);
	buffer_free(&producer->texts);
	buffer_free(&producer->message);
	buffer_free(&producer->key);
	buffer_free(&producer->time_text);
}

static void
settings_free(Settings *settings)
{
	for (int i = 0; i < settings->kafka.n_pairs; i++)
	{
		free(settings->kafka.list[i].name);
		free(settings->kafka.list[i].value);
	}
	free(settings->kafka.list);
	if (settings->like != NULL)
		config_free(settings->like);
	free(settings->like);
}

ExitCode
produce(int argc, char **argv)
{
	char delimiter[] = ",", null[] = "", quote[] = "\"";
	Settings settings = {
		.format = -1,
		.output_format = -1,
		.csv = {.csv_delimiter = delimiter, .csv_null = null, .csv_quote = quote, .csv_escape = quote},
		.n_partitions = 1,
		.n_replicas = 1,
		.retention_ms = -1,
		.share = -1,
		.n_sample = -1,
		.seed = (uint64_t) (clock_us() ^ (int64_t) getpid() << 40),
		.burst = {1, 10},
		.pause_ms = {1000, 3000},
		.n_past = -1,
		.n_messages = -1,
		.duration_ms = -1,
		.first_id = 1,
		.late_ms = 600000,
	};
	bool is_help = false;
	ExitCode code = read_flags(&settings, argc, argv, &is_help);

	if (code == EXIT_DONE && !is_help)
	{
		Producer producer = {
			.settings = &settings,
			.chance = settings.seed,
			.records = {.format = settings.format, .columns = settings.columns},
			.output_format = settings.output_format,
			.next_id = settings.first_id,
			.shows_progress = settings.progress || isatty(STDERR_FILENO),
			.wanted = {[ROLE_ID] = settings.id,
					   [ROLE_TIME] = settings.time,
					   [ROLE_KEY] = settings.key,
					   [ROLE_STRATUM] = settings.stratify},
		};

		for (int i = 0; i < N_ROLES; i++)
			producer.column[i] = -1;
		records_open(&producer.records, settings.files, settings.n_files, &settings.csv);
		producer.walker = json_walker_open(on_member, &producer);
		if (settings.simulates)
			producer.shop = shop_open(settings.seed, settings.first_id);
		produce_all(&producer);
		code = producer.failure;
		release(&producer);
	}
	settings_free(&settings);
	return code;
}
