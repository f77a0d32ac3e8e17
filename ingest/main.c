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
	fputs(
		"millrace: events from Kafka or files into PostgreSQL, exactly once\n"
		"\n"
		"  millrace run FILE.ini... [--once] [--progress] [--section.key=value ...]\n"
		"  millrace run FILE.ini... --show N    prints the next N rows as they would be stored, and stores "
		"none\n"
		"  millrace check FILE.ini... [--section.key=value ...]\n"
		"  millrace check --suggest-table FILE  proposes a table for a sample of CSV or JSON lines\n"
		"  millrace dead-letters list|replay FILE.ini [options]   millrace dead-letters --help\n"
		"  millrace offsets FILE.ini [--set TOPIC:PARTITION=OFFSET ...]   millrace offsets --help\n"
		"  millrace produce FILE... [options]   replays files, or simulates a shop: millrace produce --help\n"
		"  millrace --help | --version          millrace run --help lists all options\n"
		"\n"
		"run reads each file's source into its table until SIGTERM or SIGINT; SIGHUP reads the files again.\n"
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
		  "  8  second signal, or something hangs after batch.drain: stopped at once; the server rolls the "
		  "open batch back\n"
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

/*
 * Moves the files before the flags that stand before them; returns how many there are.  What follows a flag without its
 * value is not taken for a file, and so not printed: it may be a password.
 */
static int
files_first(int argc, char **argv)
{
	int n_before = 0, n_files = 0;

	while (n_before < argc && argv[n_before][0] == '-' &&
		   (strchr(argv[n_before], '=') != NULL || strcmp(argv[n_before], "--once") == 0 ||
			strcmp(argv[n_before], "--progress") == 0))
		n_before++;
	while (n_before + n_files < argc && argv[n_before + n_files][0] != '-')
		n_files++;
	for (int i = 0; i < n_files; i++)
	{
		char *file = argv[n_before + i];

		memmove(argv + i + 1, argv + i, sizeof(char *) * (size_t) n_before);
		argv[i] = file;
	}
	return n_files;
}

static ExitCode
command(bool is_run, int argc, char **argv)
{
	int n_files = 0;

	for (int i = 0; i < argc; i++)
		if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)
		{
			help(stdout);
			return EXIT_DONE;
		}
	n_files = files_first(argc, argv);
	if (n_files == 0)
	{
		fprintf(stderr, "millrace: %s needs a configuration file: millrace %s FILE.ini\n",
				is_run ? "run" : "check", is_run ? "run" : "check");
		return EXIT_USAGE;
	}
	Config *configs = mem_alloc(sizeof(Config) * (size_t) n_files);
	ExitCode code = EXIT_DONE;
	for (int i = 0; i < n_files; i++)
	{
		config_load(&configs[i], argv[i], argc - n_files, argv + n_files);
		for (int k = 0; k < i; k++)
			config_agree(&configs[i], &configs[k]);
		if (configs[i].n_errors)
			code = EXIT_USAGE;
	}
	if (is_run && code == EXIT_DONE)
		code = pipeline_run(configs, n_files);
	for (int i = 0; i < n_files && !is_run; i++)
	{
		ExitCode found = pipeline_check(&configs[i]);

		if (found == EXIT_DONE)
			printf("%s: no errors\n", argv[i]);
		if (code == EXIT_DONE)
			code = found;
	}
	for (int i = 0; i < n_files; i++)
		config_free(&configs[i]);
	free(configs);
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
	if (strcmp(word, "check") == 0 && argc > 2 && strncmp(argv[2], "--suggest-table", 15) == 0)
		return suggest_table(argc - 1, argv + 1);
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
