/*
 * Command line.
 */
#include "ingest.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void
usage(FILE *out)
{
	fputs("millrace: events from Kafka or files into PostgreSQL, exactly once\n"
		  "\n"
		  "  millrace run FILE.ini [--once] [--progress] [--section.key=value ...]\n"
		  "  millrace check FILE.ini [--section.key=value ...]\n"
		  "  millrace dead-letters list|replay FILE.ini [options]   millrace dead-letters --help\n"
		  "  millrace offsets FILE.ini [--set TOPIC:PARTITION=OFFSET ...]   millrace offsets --help\n"
		  "  millrace produce FILE... [options]   replays files to Kafka: millrace produce --help\n"
		  "  millrace --help | --version          millrace run --help lists all options\n"
		  "\n"
		  "run reads the source into the table until it is stopped by SIGTERM or SIGINT.\n"
		  "check validates the file, the source, the database, the table and the columns, and reads no "
		  "message.\n"
		  "\n"
		  "  --once      stop when everything that is there has been read\n"
		  "  --progress  show rows, rows/s and files or lag; always shown on a terminal\n",
		  out);
}

static void
exit_codes(FILE *out)
{
	fputs("\nExit codes:\n"
		  "  0  done, or stopped by a signal; nothing is half-written\n"
		  "  1  out of memory, or a defect of the program\n"
		  "  2  command line or configuration wrong\n"
		  "  3  directory, file or topic missing or unreadable, broker error\n"
		  "  4  no connection to the database within target.reconnect\n"
		  "  5  extension, table, column or privilege missing in the database\n"
		  "  6  another ingester has moved the position of this stream\n"
		  "  7  the server refuses for a reason that is not in the data, for longer than target.retry\n"
		  "  8  second signal: stopped at once; the server rolls the open batch back\n"
		  "  9  more dead letters than dead_letters.limit\n",
		  out);
}

static void
help(FILE *out)
{
	usage(out);
	fputs("\nOptions: as flags here, as keys of [section] in the file, or as MILLRACE_SECTION_KEY in the "
		  "environment;\n"
		  "a flag wins over the environment, the environment over the file.\n\n",
		  out);
	config_help(out);
	exit_codes(out);
}

static ExitCode
command(bool is_run, int argc, char **argv)
{
	Config config = {0};

	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
		{
			help(stdout);
			return EXIT_DONE;
		}
	if (argc < 1 || argv[0][0] == '-')
	{
		fprintf(stderr, "millrace: %s needs a configuration file: millrace %s FILE.ini\n",
				is_run ? "run" : "check", is_run ? "run" : "check");
		return EXIT_USAGE;
	}
	config_load(&config, argv[0], argc - 1, argv + 1);
	ExitCode code = is_run && config.n_errors ? EXIT_USAGE
		: is_run							  ? pipeline_run(&config)
											  : pipeline_check(&config);
	if (!is_run && code == EXIT_DONE)
		printf("%s: no errors\n", argv[0]);
	config_free(&config);
	return code;
}

int
main(int argc, char **argv)
{
	static const char *const words[] = {"run",	   "check",	 "dead-letters", "offsets",
										"produce", "--help", "--version"};
	const char *word = argc > 1 ? argv[1] : "";

	signals_install();
	srandom((unsigned) time(NULL) ^ (unsigned) getpid());
	if (strcmp(word, "run") == 0 || strcmp(word, "check") == 0)
		return command(strcmp(word, "run") == 0, argc - 2, argv + 2);
	if (strcmp(word, "produce") == 0)
		return produce(argc - 1, argv + 1);
	if (strcmp(word, "dead-letters") == 0)
		return dead_letters(argc - 1, argv + 1);
	if (strcmp(word, "offsets") == 0)
		return offsets(argc - 1, argv + 1);
	if (strcmp(word, "--version") == 0)
	{
		puts("millrace " MILLRACE_VERSION);
		return EXIT_DONE;
	}
	if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0)
	{
		usage(stdout);
		exit_codes(stdout);
		return EXIT_DONE;
	}
	if (*word)
	{
		const char *nearest = name_nearest(word, words, sizeof words / sizeof words[0]);

		fprintf(stderr, "millrace: unknown command \"%s\"%s%s%s\n\n", word,
				nearest ? "; did you mean \"" : "", nearest ? nearest : "", nearest ? "\"?" : "");
	}
	usage(stderr);
	return EXIT_USAGE;
}
