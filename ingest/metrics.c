/*
 * What the streams of the process have done and are doing: counters that any thread adds to, and the HTTP server that
 * shows them.  A reader takes each counter by itself; two of them may be a batch apart.
 */
#include "ingest.h"

#include <inttypes.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 32
#define REQUEST_SECONDS 10

typedef struct Lag
{
	char *topic;
	int32_t partition;
	int64_t n_messages;
} Lag;

typedef struct Lags
{
	Lag *list;
	int n_lags;
} Lags;

/* Of all streams: what is not a counter changes once a second or less. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Metrics *published;
static struct MHD_Daemon *server;

/* Upper limits of the histogram of batch_seconds. */
static const char *const bounds[N_BATCH_BUCKETS] = {"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5",
													"1",	 "2.5",	 "5",	  "10",	  "30",	 "60",	 "+Inf"};
static const int64_t bounds_us[N_BATCH_BUCKETS - 1] = {5000,	 10000,	   25000,	50000,	 100000,
													   250000,	 500000,   1000000, 2500000, 5000000,
													   10000000, 30000000, 60000000};

/* ---- counting ---- */

Metrics *
metrics_open(const char *stream)
{
	Metrics *metrics = mem_alloc(sizeof(Metrics));

	metrics->stream = mem_string(stream);
	metrics->lags = mem_alloc(sizeof(Lags));
	return metrics;
}

void
metrics_close(Metrics *metrics)
{
	if (metrics == NULL)
		return;
	pthread_mutex_lock(&lock);
	for (Metrics **link = &published; *link != NULL; link = &(*link)->next)
		if (*link == metrics)
		{
			*link = metrics->next;
			break;
		}
	pthread_mutex_unlock(&lock);
	for (int i = 0; i < metrics->lags->n_lags; i++)
		free(metrics->lags->list[i].topic);
	free(metrics->lags->list);
	free(metrics->lags);
	free((char *) metrics->stream);
	free(metrics);
}

void
metrics_rename(Metrics *metrics, const char *stream)
{
	pthread_mutex_lock(&lock);
	free((char *) metrics->stream);
	metrics->stream = mem_string(stream);
	pthread_mutex_unlock(&lock);
}

void
metrics_publish(Metrics *metrics)
{
	Metrics **link = &published;

	pthread_mutex_lock(&lock);
	while (*link != NULL)
		link = &(*link)->next;
	*link = metrics;
	pthread_mutex_unlock(&lock);
}

void
metrics_batch(Metrics *metrics, int64_t n_rows, int64_t n_bytes, int64_t us)
{
	int bucket = 0;

	while (bucket < N_BATCH_BUCKETS - 1 && us > bounds_us[bucket])
		bucket++;
	metrics->of_bucket[bucket]++;
	metrics->batch_us += us;
	metrics->n_rows += n_rows;
	metrics->n_bytes += n_bytes;
	metrics->n_batches++;
	metrics->stored_us = clock_us();
}

void
metrics_lag(Metrics *metrics, const char *topic, int32_t partition, int64_t lag)
{
	Lags *lags = metrics->lags;
	int i = 0;

	pthread_mutex_lock(&lock);
	while (i < lags->n_lags &&
		   (lags->list[i].partition != partition || strcmp(lags->list[i].topic, topic) != 0))
		i++;
	if (lag < 0 && i < lags->n_lags)
	{
		free(lags->list[i].topic);
		lags->list[i] = lags->list[--lags->n_lags];
	}
	else if (lag >= 0)
	{
		if (i == lags->n_lags)
		{
			lags->list = mem_grow(lags->list, (size_t) lags->n_lags + 1, sizeof(Lag));
			lags->list[lags->n_lags++] = (Lag){.topic = mem_string(topic), .partition = partition};
		}
		lags->list[i].n_messages = lag;
	}
	pthread_mutex_unlock(&lock);
}

/* ---- samples ---- */

typedef enum FamilyKind
{
	FAMILY_NUMBER,	/* an int64_t of Metrics */
	FAMILY_BOOL,	/* a bool of Metrics */
	FAMILY_SECONDS, /* a wall clock in microseconds, shown as seconds since 1970 */
	FAMILY_LAG,
	FAMILY_BATCHES /* the histogram */
} FamilyKind;

typedef struct Family
{
	const char *name, *type, *help;
	FamilyKind kind;
	size_t at; /* in Metrics */
} Family;

#define AT(member) offsetof(Metrics, member)

static const Family families[] = {
	{"messages_total", "counter", "Messages or records read, bad ones included.", FAMILY_NUMBER,
	 AT(n_messages)},
	{"rows_total", "counter", "Rows stored in the table.", FAMILY_NUMBER, AT(n_rows)},
	{"bytes_total", "counter", "Bytes of the stored messages, as they came.", FAMILY_NUMBER, AT(n_bytes)},
	{"batches_total", "counter", "Batches committed.", FAMILY_NUMBER, AT(n_batches)},
	{"batch_seconds", "histogram", "Time to store a batch, from the first try to the answer to COMMIT.",
	 FAMILY_BATCHES, 0},
	{"dead_letters_total", "counter", "Messages stored in millrace.dead_letters.", FAMILY_NUMBER,
	 AT(n_dead_letters)},
	{"retries_total", "counter", "Times that the server refused for a reason that is not in the data.",
	 FAMILY_NUMBER, AT(n_retries)},
	{"unanswered_commits_total", "counter", "COMMITs whose answer was lost.", FAMILY_NUMBER,
	 AT(n_unanswered)},
	{"reconnects_total", "counter", "Connections to the database made anew.", FAMILY_NUMBER,
	 AT(n_reconnects)},
	{"fenced_total", "counter", "Batches given up because another ingester had moved the position.",
	 FAMILY_NUMBER, AT(n_fenced)},
	{"partitions_made_total", "counter", "Partitions of the table made.", FAMILY_NUMBER, AT(n_partitions)},
	{"partitions_dropped_total", "counter", "Partitions of the table dropped because they were expired.",
	 FAMILY_NUMBER, AT(n_expired)},
	{"kafka_rebalances_total", "counter", "Times that Kafka partitions were given or taken away.",
	 FAMILY_NUMBER, AT(n_rebalances)},
	{"kafka_errors_total", "counter", "Errors reported by librdkafka.", FAMILY_NUMBER, AT(n_kafka_errors)},
	{"kafka_reconnects_total", "counter", "Times that all brokers were away and came back.", FAMILY_NUMBER,
	 AT(n_kafka_reconnects)},
	{"skipped_offsets_total", "counter", "Offsets jumped over because the broker had lost them.",
	 FAMILY_NUMBER, AT(n_skipped)},
	{"lag", "gauge", "Messages of a Kafka partition that are not stored yet.", FAMILY_LAG, 0},
	{"reloads_total", "counter", "Times that the columns of the table were read anew.", FAMILY_NUMBER,
	 AT(n_reloads)},
	{"files_read", "gauge", "Files of the directory that have been read.", FAMILY_NUMBER, AT(n_files)},
	{"files", "gauge", "Files of the directory.", FAMILY_NUMBER, AT(n_files_total)},
	{"open_rows", "gauge", "Rows in the batch that fills.", FAMILY_NUMBER, AT(open_rows)},
	{"last_commit_timestamp_seconds", "gauge", "When the last batch was committed; 0: none yet.",
	 FAMILY_SECONDS, AT(stored_us)},
	{"reading", "gauge", "1 once the stream is set up.", FAMILY_BOOL, AT(is_reading)},
	{"database_lost", "gauge", "1 while the database is away or refuses every batch.", FAMILY_BOOL,
	 AT(is_database_lost)},
	{"broker_lost", "gauge", "1 while no Kafka broker answers.", FAMILY_BOOL, AT(is_broker_lost)},
	{"paused", "gauge", "1 while Kafka is not read because the database is slower.", FAMILY_BOOL,
	 AT(is_paused)},
};

#define N_FAMILIES (sizeof families / sizeof families[0])

static void
each_bucket(const Metrics *metrics, SampleSeen *seen, void *to)
{
	int64_t n_batches = 0;

	for (int i = 0; i < N_BATCH_BUCKETS; i++)
	{
		n_batches += metrics->of_bucket[i];
		seen(&(Sample){.name = "batch_seconds_bucket", .bound = bounds[i], .value = (double) n_batches}, to);
	}
	seen(&(Sample){.name = "batch_seconds_sum", .value = (double) metrics->batch_us / 1e6}, to);
	seen(&(Sample){.name = "batch_seconds_count", .value = (double) n_batches}, to);
}

static void
each_lag(const Metrics *metrics, SampleSeen *seen, void *to)
{
	for (int i = 0; i < metrics->lags->n_lags; i++)
	{
		const Lag *lag = &metrics->lags->list[i];

		seen(&(Sample){.name = "lag",
					   .topic = lag->topic,
					   .partition = lag->partition,
					   .value = (double) lag->n_messages},
			 to);
	}
}

/* The samples of one family; under the lock. */
static void
each_of(const Family *family, const Metrics *metrics, SampleSeen *seen, void *to)
{
	const char *member = (const char *) metrics + family->at;
	double value;

	switch (family->kind)
	{
		case FAMILY_LAG:
			each_lag(metrics, seen, to);
			return;
		case FAMILY_BATCHES:
			each_bucket(metrics, seen, to);
			return;
		case FAMILY_BOOL:
			value = *(const _Atomic bool *) member;
			break;
		case FAMILY_SECONDS:
			value = (double) *(const _Atomic int64_t *) member / 1e6;
			break;
		default:
			value = (double) *(const _Atomic int64_t *) member;
	}
	seen(&(Sample){.name = family->name, .value = value}, to);
}

void
metrics_each(Metrics *metrics, SampleSeen *seen, void *to)
{
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < N_FAMILIES; i++)
		each_of(&families[i], metrics, seen, to);
	pthread_mutex_unlock(&lock);
}

/* ---- as Prometheus reads them ---- */

typedef struct Page
{
	Buffer text;
	const char *stream;
} Page;

static void
label(Buffer *out, char before, const char *name, const char *value)
{
	buffer_printf(out, "%c%s=\"", before, name);
	for (; *value; value++)
		if (*value == '\n')
			buffer_add(out, "\\n", 2);
		else
		{
			if (*value == '"' || *value == '\\')
				buffer_add(out, "\\", 1);
			buffer_add(out, value, 1);
		}
	buffer_add(out, "\"", 1);
}

static void
print_sample(const Sample *sample, void *to)
{
	Page *page = to;
	Buffer *out = &page->text;

	buffer_printf(out, "millrace_%s", sample->name);
	label(out, '{', "stream", page->stream);
	if (sample->topic != NULL)
	{
		label(out, ',', "topic", sample->topic);
		buffer_printf(out, ",partition=\"%" PRId32 "\"", sample->partition);
	}
	if (sample->bound != NULL)
		label(out, ',', "le", sample->bound);
	buffer_printf(out, "} %.17g\n", sample->value);
}

static void
head(Buffer *out, const char *name, const char *type, const char *help)
{
	buffer_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

/* Of the process, by the names that Prometheus' own libraries give them. */
static void
print_process(Buffer *out)
{
	struct rusage usage;
	long n_pages = 0;
	FILE *file = fopen("/proc/self/statm", "r");

	if (file != NULL)
	{
		if (fscanf(file, "%*d %ld", &n_pages) != 1)
			n_pages = 0;
		fclose(file);
	}
	head(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
	buffer_printf(out, "process_resident_memory_bytes %" PRId64 "\n",
				  (int64_t) n_pages * (int64_t) sysconf(_SC_PAGESIZE));
	getrusage(RUSAGE_SELF, &usage);
	head(out, "process_cpu_seconds_total", "counter", "User and system CPU time.");
	buffer_printf(out, "process_cpu_seconds_total %.6f\n",
				  (double) (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
					  (double) (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
}

static void
print_metrics(Buffer *out)
{
	Page page = {0};

	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < N_FAMILIES; i++)
	{
		char name[64];

		snprintf(name, sizeof name, "millrace_%s", families[i].name);
		head(&page.text, name, families[i].type, families[i].help);
		for (const Metrics *metrics = published; metrics != NULL; metrics = metrics->next)
		{
			page.stream = metrics->stream;
			each_of(&families[i], metrics, print_sample, &page);
		}
	}
	pthread_mutex_unlock(&lock);
	print_process(&page.text);
	*out = page.text;
}

/* A line for each stream; true when all are ready. */
static bool
print_ready(Buffer *out)
{
	bool is_ready = true;

	pthread_mutex_lock(&lock);
	for (const Metrics *metrics = published; metrics != NULL; metrics = metrics->next)
	{
		const char *state = stop_requested() ? "stopping"
			: metrics->is_database_lost		 ? "waiting for the database"
			: metrics->is_broker_lost		 ? "waiting for Kafka"
			: !metrics->is_reading			 ? "starting"
											 : "ready";

		is_ready = is_ready && strcmp(state, "ready") == 0;
		buffer_printf(out, "%s: %s\n", metrics->stream, state);
	}
	pthread_mutex_unlock(&lock);
	return is_ready;
}

/* ---- HTTP ---- */

static enum MHD_Result
answer(struct MHD_Connection *connection, unsigned status, const char *type, Buffer *text)
{
	struct MHD_Response *response =
		MHD_create_response_from_buffer(text->n_bytes, text->data, MHD_RESPMEM_MUST_FREE);

	if (response == NULL)
	{
		buffer_free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type);
	enum MHD_Result result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

static enum MHD_Result
on_request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
		   const char *version, const char *upload, size_t *n_upload, void **state)
{
	static const char plain[] = "text/plain; charset=utf-8";
	Buffer text = {0};

	(void) context;
	(void) version;
	(void) upload;
	(void) state;
	/* What is sent along is taken and forgotten. */
	if (*n_upload > 0)
	{
		*n_upload = 0;
		return MHD_YES;
	}
	if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
	{
		buffer_printf(&text, "only GET\n");
		return answer(connection, MHD_HTTP_METHOD_NOT_ALLOWED, plain, &text);
	}
	if (strcmp(url, "/metrics") == 0)
	{
		print_metrics(&text);
		return answer(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &text);
	}
	if (strcmp(url, "/healthz") == 0)
	{
		buffer_printf(&text, "ok\n");
		return answer(connection, MHD_HTTP_OK, plain, &text);
	}
	if (strcmp(url, "/readyz") == 0)
	{
		bool is_ready = print_ready(&text);

		return answer(connection, is_ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, plain, &text);
	}
	buffer_printf(&text, "/metrics /healthz /readyz\n");
	return answer(connection, MHD_HTTP_NOT_FOUND, plain, &text);
}

ExitCode
metrics_serve(Config *config)
{
	const struct addrinfo wanted = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM};
	struct addrinfo *found;
	const char *text = config->metrics_listen, *colon = text ? strrchr(text, ':') : NULL;
	char host[256];

	if (colon == NULL)
		return EXIT_DONE;
	/* An IPv6 address stands in brackets. */
	bool is_bracketed = text[0] == '[' && colon[-1] == ']';
	snprintf(host, sizeof host, "%.*s", (int) (colon - text) - 2 * is_bracketed, text + is_bracketed);
	int error = getaddrinfo(host[0] ? host : NULL, colon + 1, &wanted, &found);
	if (error != 0)
	{
		config_error_at(config, "metrics.listen", "\"%s\": %s", text, gai_strerror(error));
		return EXIT_USAGE;
	}
	server = MHD_start_daemon(
		MHD_USE_INTERNAL_POLLING_THREAD | (found->ai_family == AF_INET6 ? MHD_USE_IPv6 : MHD_NO_FLAG), 0,
		NULL, NULL, on_request, NULL, MHD_OPTION_SOCK_ADDR, found->ai_addr, MHD_OPTION_CONNECTION_LIMIT,
		(unsigned) CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned) REQUEST_SECONDS, MHD_OPTION_END);
	freeaddrinfo(found);
	if (server != NULL)
	{
		/* Port 0 stands for any that is free. */
		const union MHD_DaemonInfo *about = MHD_get_daemon_info(server, MHD_DAEMON_INFO_BIND_PORT);

		log_line(LOG_INFO, "/metrics, /healthz and /readyz are served on port %d", about ? about->port : 0);
		return EXIT_DONE;
	}
	config_error_at(config, "metrics.listen", "cannot listen on \"%s\"", text);
	return EXIT_USAGE;
}

void
metrics_stop(void)
{
	if (server != NULL)
		MHD_stop_daemon(server);
	server = NULL;
}
