/*
 * millrace dead-letters list|replay and millrace offsets: what a stream could not store, and how far it has read.
 */
#include "ingest.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define LIST_BYTES ((int64_t) 16 << 20) /* of payloads fetched at once */
#define LIST_LETTERS 1000

static const char letters_usage[] =
	"millrace dead-letters list FILE.ini [filters] [--payload] [--section.key=value ...]\n"
	"millrace dead-letters replay FILE.ini [filters] [--section.key=value ...]\n"
	"\n"
	"list prints the dead letters of the stream of FILE.ini, one a line with tabs between: id, time, where "
	"it came\n"
	"from as TOPIC[PARTITION]@OFFSET, stage, SQLSTATE, reason; --payload adds its bytes.\n"
	"\n"
	"replay decodes them with the mapping of FILE.ini as it is now, stores the rows and takes the letters "
	"away, in one\n"
	"transaction a batch.  What is refused again stays, with its new reason.\n"
	"\n"
	"  --ids=7,20-40    only these\n"
	"  --stage=STAGE    only these: read, decode, partition or store\n"
	"  --sqlstate=CODE  only these\n"
	"  --limit=N        at most so many, the oldest first\n";

static const char offsets_usage[] =
	"millrace offsets FILE.ini [--set TOPIC:PARTITION=OFFSET ...] [--section.key=value ...]\n"
	"\n"
	"Prints the positions of the stream of FILE.ini, one a line with tabs between: topic or file, partition, "
	"next\n"
	"offset or byte, when it was moved.\n"
	"\n"
	"  --set TOPIC:PARTITION=OFFSET  sets one first: to go on behind messages that are lost, or to read some "
	"again.  An\n"
	"                                ingester that runs finds it moved: from Kafka it goes on there, from "
	"files it "
	"stops.\n"
	"                                The partition of a file is 0.\n";

/* A command line: FILE.ini, flags for config.c, and what is left for the command. */
typedef struct Arguments
{
	const char *file;
	char **flags;
	int n_flags;
	LetterFilter filter;
	char *ids;
	bool payload;
	char **sets;
	int n_sets;
	bool is_wrong;
} Arguments;

static void __attribute__((format(printf, 2, 0)))
wrong(Arguments *arguments, const char *format, const char *text)
{
	fprintf(stderr, "command line: ");
	fprintf(stderr, format, text);
	fputc('\n', stderr);
	arguments->is_wrong = true;
}

/* The value of --NAME=VALUE, or NULL when the argument is another one. */
static const char *
value_of(const char *argument, const char *name)
{
	size_t n_bytes = strlen(name);

	return strncmp(argument, name, n_bytes) == 0 && argument[n_bytes] == '=' ? argument + n_bytes + 1 : NULL;
}

/* A whole number that begins at text, no sign; returns what follows it, or NULL. */
static const char *
number_end(const char *text)
{
	size_t n_bytes = strspn(text, "0123456789");

	return n_bytes > 0 && n_bytes <= 18 ? text + n_bytes : NULL;
}

/* "7,20-40" as an int8multirange: {[7,7],[20,40]}.  NULL: it is no such list. */
static char *
parse_ids(const char *text)
{
	Buffer out = {0};

	buffer_add(&out, "{", 1);
	for (;;)
	{
		const char *first = text, *end = number_end(text);
		const char *last = end && *end == '-' ? end + 1 : first;
		const char *last_end = end && *end == '-' ? number_end(last) : end;

		if (last_end == NULL || (*last_end && *last_end != ',') ||
			strtoll(first, NULL, 10) > strtoll(last, NULL, 10))
			break;
		buffer_printf(&out, "[%.*s,%.*s]", (int) (end - first), first, (int) (last_end - last), last);
		if (*last_end == '\0')
		{
			buffer_add(&out, "}", 2);
			return out.data;
		}
		buffer_add(&out, ",", 1);
		text = last_end + 1;
	}
	buffer_free(&out);
	return NULL;
}

static void
take_filter(Arguments *arguments, char *argument)
{
	LetterFilter *filter = &arguments->filter;
	const char *value, *end;

	if ((value = value_of(argument, "--ids")) != NULL)
	{
		free(arguments->ids);
		arguments->ids = parse_ids(value);
		filter->ids = arguments->ids;
		if (filter->ids == NULL)
			wrong(arguments, "\"%s\" is no list of ids: write 7,20-40", value);
	}
	else if ((value = value_of(argument, "--stage")) != NULL)
	{
		filter->stage = value;
		if (strcmp(value, "read") && strcmp(value, "decode") && strcmp(value, "partition") &&
			strcmp(value, "store"))
			wrong(arguments, "\"%s\" is no stage: read, decode, partition or store", value);
	}
	else if ((value = value_of(argument, "--sqlstate")) != NULL)
		filter->sqlstate = value;
	else if ((value = value_of(argument, "--limit")) != NULL)
	{
		end = number_end(value);
		if (end == NULL || *end)
			wrong(arguments, "\"%s\" is no number of letters", value);
		filter->limit = strtoll(value, NULL, 10);
	}
	else if (strcmp(argument, "--payload") == 0)
		arguments->payload = true;
	else
		arguments->flags[arguments->n_flags++] = argument;
}

static Arguments
take_arguments(int argc, char **argv, bool is_offsets)
{
	Arguments arguments = {.filter = {.limit = INT64_MAX}};

	arguments.flags = mem_alloc(sizeof(char *) * (size_t) (argc + 1));
	arguments.sets = mem_alloc(sizeof(char *) * (size_t) (argc + 1));
	for (int i = 0; i < argc; i++)
	{
		if (arguments.file == NULL && argv[i][0] != '-')
			arguments.file = argv[i];
		else if (is_offsets && strcmp(argv[i], "--set") == 0 && i + 1 < argc)
			arguments.sets[arguments.n_sets++] = argv[++i];
		else if (is_offsets && value_of(argv[i], "--set") != NULL)
			arguments.sets[arguments.n_sets++] = argv[i] + strlen("--set=");
		else if (is_offsets)
			arguments.flags[arguments.n_flags++] = argv[i];
		else
			take_filter(&arguments, argv[i]);
	}
	return arguments;
}

static void
arguments_free(Arguments *arguments)
{
	free(arguments->flags);
	free(arguments->sets);
	free(arguments->ids);
}

static bool
asks_for_help(int argc, char **argv)
{
	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
			return true;
	return false;
}

/* The database behind the configuration, and the stream's name. */
static ExitCode
reach(Config *config, Sink **sink)
{
	Table table = {0};
	ExitCode code = sink_open(config, sink);

	if (code == EXIT_DONE && config->name == NULL)
	{
		code = sink_describe(*sink, config, &table);
		table_free(&table);
	}
	return code;
}

/* ---- letters ---- */

/* Text of one line without tabs; bytes that are no text as \xNN. */
static void
print_escaped(const char *data, size_t n_bytes)
{
	size_t at = 0;
	bool is_text = text_defect(data, n_bytes, &at) == NULL;

	for (size_t i = 0; i < n_bytes; i++)
	{
		unsigned char c = (unsigned char) data[i];

		if (c == '\\')
			fputs("\\\\", stdout);
		else if (c == '\n')
			fputs("\\n", stdout);
		else if (c == '\t')
			fputs("\\t", stdout);
		else if (c < 0x20 || c == 0x7f || (c >= 0x80 && !is_text))
			printf("\\x%02x", c);
		else
			putchar(c);
	}
}

typedef struct Listing
{
	int64_t last_id, n_printed;
	bool payload;
} Listing;

static void
print_letter(void *context, const Letter *letter, int number, int n_letters)
{
	Listing *listing = context;

	(void) number;
	(void) n_letters;
	printf("%" PRId64 "\t%s\t", letter->id, letter->created);
	print_escaped(letter->topic, strlen(letter->topic));
	printf("[%" PRId32 "]@%" PRId64 "\t%s\t%s\t", letter->partition, letter->message.offset, letter->stage,
		   letter->sqlstate ? letter->sqlstate : "-");
	print_escaped(letter->reason, strlen(letter->reason));
	if (listing->payload)
	{
		putchar('\t');
		print_escaped(letter->message.data ? letter->message.data : "", letter->message.n_bytes);
	}
	putchar('\n');
	listing->last_id = letter->id;
	listing->n_printed++;
}

static ExitCode
list(Config *config, const Arguments *arguments)
{
	Listing listing = {.payload = arguments->payload};
	int64_t until = 0;
	Sink *sink = NULL;
	int n_letters = 1;
	ExitCode code = reach(config, &sink);

	while (code == EXIT_DONE && n_letters > 0 && listing.n_printed < arguments->filter.limit)
	{
		int64_t n_most = arguments->filter.limit - listing.n_printed;

		if (sink_letters(sink, &arguments->filter, listing.last_id, &until,
						 n_most < LIST_LETTERS ? n_most : LIST_LETTERS, LIST_BYTES, print_letter, &listing,
						 &n_letters) != SINK_OK)
			code = EXIT_TARGET;
	}
	sink_close(sink);
	return code;
}

int
dead_letters(int argc, char **argv)
{
	static const char *const words[] = {"list", "replay"};
	const char *word = argc > 1 ? argv[1] : "";
	bool is_replay = strcmp(word, "replay") == 0;
	Config config = {0};

	if (asks_for_help(argc, argv))
	{
		fputs(letters_usage, stdout);
		return EXIT_DONE;
	}
	if (!is_replay && strcmp(word, "list") != 0)
	{
		const char *nearest = name_nearest(word, words, 2);

		fprintf(stderr, "millrace: dead-letters list or replay%s%s%s\n\n%s",
				nearest ? ": did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "",
				letters_usage);
		return EXIT_USAGE;
	}
	Arguments arguments = take_arguments(argc - 2, argv + 2, false);
	if (arguments.file == NULL)
		wrong(&arguments, "dead-letters %s needs a configuration file", word);
	ExitCode code = arguments.is_wrong
		? EXIT_USAGE
		: config_load(&config, arguments.file, arguments.n_flags, arguments.flags);
	if (code == EXIT_DONE && is_replay)
	{
		/* The ingester may be running, and what is told is told of it. */
		free(config.metrics_listen);
		config.metrics_listen = NULL;
		config.metrics_interval_ms = 0;
		config.replay = &arguments.filter;
		code = pipeline_run(&config, 1);
	}
	else if (code == EXIT_DONE)
		code = list(&config, &arguments);
	config_free(&config);
	arguments_free(&arguments);
	return code;
}

/* ---- offsets ---- */

static void
print_offset(void *context, const char *topic, const char *partition, const char *next_offset,
			 const char *updated)
{
	(void) context;
	print_escaped(topic, strlen(topic));
	printf("\t%s\t%s\t%s\n", partition, next_offset, updated);
}

/* TOPIC:PARTITION=OFFSET, cut in place; a topic or file may hold both signs.  False: it is not of this form. */
static bool
cut_set(char *text, const char **topic, const char **partition, const char **next_offset)
{
	char *equals = strrchr(text, '=');
	char *colon;

	if (equals == NULL)
		return false;
	*equals = '\0';
	colon = strrchr(text, ':');
	if (colon == NULL || colon == text)
		return false;
	*colon = '\0';
	*topic = text;
	*partition = colon + 1;
	*next_offset = equals + 1;
	const char *partition_end = number_end(*partition), *offset_end = number_end(*next_offset);
	return partition_end != NULL && *partition_end == '\0' && strlen(*partition) < 10 && offset_end != NULL &&
		*offset_end == '\0';
}

static ExitCode
set_offsets(Sink *sink, Arguments *arguments)
{
	for (int i = 0; i < arguments->n_sets; i++)
	{
		char *text = mem_string(arguments->sets[i]), *old = NULL;
		const char *topic, *partition, *next_offset;
		bool is_set = cut_set(text, &topic, &partition, &next_offset);
		ExitCode code = is_set ? EXIT_DONE : EXIT_USAGE;

		if (!is_set)
			wrong(arguments, "\"%s\" is not of the form TOPIC:PARTITION=OFFSET", arguments->sets[i]);
		else if (sink_set_offset(sink, topic, partition, next_offset, &old) != SINK_OK)
			code = EXIT_TARGET;
		else
			log_line(LOG_INFO, "%s[%s]: next offset %s, was %s", topic, partition, next_offset,
					 old ? old : "not there");
		free(text);
		free(old);
		if (code != EXIT_DONE)
			return code;
	}
	return EXIT_DONE;
}

int
offsets(int argc, char **argv)
{
	Config config = {0};
	Sink *sink = NULL;

	if (asks_for_help(argc, argv))
	{
		fputs(offsets_usage, stdout);
		return EXIT_DONE;
	}
	Arguments arguments = take_arguments(argc - 1, argv + 1, true);
	if (arguments.file == NULL)
		wrong(&arguments, "offsets needs a %s", "configuration file");
	ExitCode code = arguments.is_wrong
		? EXIT_USAGE
		: config_load(&config, arguments.file, arguments.n_flags, arguments.flags);
	if (code == EXIT_DONE)
		code = reach(&config, &sink);
	if (code == EXIT_DONE)
		code = set_offsets(sink, &arguments);
	if (code == EXIT_DONE && sink_offsets(sink, print_offset, NULL) != SINK_OK)
		code = EXIT_TARGET;
	sink_close(sink);
	config_free(&config);
	arguments_free(&arguments);
	return code;
}
