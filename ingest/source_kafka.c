/*
 * Messages from a Kafka topic.  The group shares out the partitions and stores nothing: when one is given, its position
 * is read from the database and sought; before one goes, what was read of it is stored if that does not take too long,
 * and dropped otherwise (its next owner reads it again).
 *
 * Callbacks run on the reader's thread, inside the calls that fetch messages, and only note what has happened: the
 * answer is given between two such calls, in settle().  So the messages that one call returns never belong to two
 * assignments, and the reader can go on waiting for the writer meanwhile.
 */
#include "ingest.h"

#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_gen.h>

#define ANSWER_MS 10000 /* how long one question to the broker may take */
#define MESSAGES_A_POLL 1000
#define LAST_TIMESTAMP_MS INT64_C(253402300799999) /* year 9999 */
#define PAUSE_AFTER_MS 1000	   /* the database holds the reader up for longer: no message is fetched */
#define SHORT_MS 500		   /* so long where the reader has better things to do */
#define WATCH_US 1000000	   /* how often lag and brokers are looked at */
#define PAUSED_LAG_US 10000000 /* how often the broker is asked for the lag of partitions that are paused */
#define UNKNOWN_US 10000000	   /* a broker that has just started may not know its topics yet */
#define DOUBT_US 3000000	   /* nor all of their messages */
#define AGAIN_US 500000		   /* from one failed question to the next, and up to as much again */

/* What the reader knows of a partition; batch->positions has the rest. */
typedef struct Partition
{
	int32_t position; /* in batch->positions; -1: never given */
	int64_t stored;	  /* next offset as the database has it */
	int64_t end;	  /* high watermark when it was given: where --once stops */
	int64_t high;	  /* newest one known */
	bool at_end;	  /* everything before `end` is read */
	FileMark mark;	  /* of the message before the position, as the database has it */
	bool is_unproven; /* that message is about to be read, and is looked at */
	bool is_other;	  /* it is another one: the topic was made anew */
} Partition;

struct KafkaSource
{
	Config *config;
	Writer *writer;
	Decoder *decoder;
	Batch *batch;
	rd_kafka_t *client;
	rd_kafka_queue_t *queue;
	yajl_gen headers;
	Partition *partitions; /* by Kafka's number */
	int n_partitions;
	/* Messages and events that librdkafka has handed over and nobody has looked at: at_held .. n_held. */
	rd_kafka_message_t *held[2 * MESSAGES_A_POLL];
	int at_held, n_held;
	/* What callbacks have noted; NULL: nothing. */
	rd_kafka_topic_partition_list_t *taken, *given;
	bool is_lost;	  /* `taken` belongs to somebody else already */
	int64_t until_us; /* when `taken` is answered at the latest */
	bool must_resync; /* the positions are to be read again */
	int64_t since_us; /* a question about `given` or must_resync failed for the first time; 0: none did */
	int64_t again_us; /* not to be asked again before */
	int64_t doubt_since_us; /* a position lies behind the end; 0: none does */
	bool was_assigned;		/* it is known what there is to read */
	bool has_started;		/* source.start was applied */
	bool is_paused, is_closing;
	bool was_topic_lost;
	bool may_cooperate;					   /* so it is configured */
	bool was_given;						   /* partitions, or none of them, at any time */
	int64_t unsettled_us;				   /* since when something is to be answered; 0: nothing is */
	int64_t broker_lost_us, topic_lost_us; /* since when; 0: they are there */
	int64_t watched_us, asked_lag_us;
	int n_known;			  /* source.partitions: so many has the topic, as was told */
	int64_t looked_unread_us; /* when it was asked */
	int64_t refresh_ms;		  /* how often it is; -1: never, as librdkafka has it */
	/* To keep librdkafka fetching. */
	int64_t queue_bytes, queue_messages; /* its limits */
	int64_t mean_bytes;					 /* of a message */
	int64_t heartbeat_ms;
	size_t peak; /* most messages in its queue since it was woken */
	ExitCode failure;
	bool has_failed;
};

/* ---- state ---- */

static void
fail(KafkaSource *source, ExitCode code)
{
	if (!source->has_failed)
		source->failure = code;
	source->has_failed = true;
}

/* The broker says that it does not know the topic, or a partition of it. */
static void
lose_topic(KafkaSource *source)
{
	source->was_topic_lost = true;
	if (source->topic_lost_us == 0)
		source->topic_lost_us = monotonic_us();
}

static Partition *
partition_of(KafkaSource *source, int32_t number)
{
	if (number >= source->n_partitions)
	{
		source->partitions = mem_grow(source->partitions, (size_t) number + 1, sizeof(Partition));
		for (int i = source->n_partitions; i <= number; i++)
			source->partitions[i] = (Partition){.position = -1};
		source->n_partitions = number + 1;
	}
	return &source->partitions[number];
}

/* Its place in the open batch; NULL: it was never given. */
static Position *
position_of(const KafkaSource *source, const Partition *partition)
{
	return partition->position < 0 ? NULL : &source->batch->positions.list[partition->position];
}

static bool
is_assigned(const KafkaSource *source, const Partition *partition)
{
	return partition->position >= 0 && position_of(source, partition)->is_assigned;
}

static bool
is_open(const Batch *batch)
{
	return batch->n_rows > batch->n_dropped || batch->has_moved;
}

/* The position moves over offsets that have no message, and that alone is worth a transaction. */
static void
move_position(Batch *batch, Position *position, int64_t next)
{
	if (!is_open(batch))
		batch->opened_us = monotonic_us();
	batch->has_moved = true;
	position->next = next;
	position->file.has_prints = false;
}

static void
tell_unread(const KafkaSource *source, LogLevel level)
{
	log_line(level, "topic \"%s\" has %d partitions, of which source.partitions = %s reads %d",
			 source->config->topic, source->n_known, source->config->partitions_text,
			 source->config->n_partitions);
}

/* The partitions that are assigned now; the caller destroys the list. */
static rd_kafka_topic_partition_list_t *
assigned_list(const KafkaSource *source)
{
	rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(source->n_partitions);

	for (int i = 0; i < source->n_partitions; i++)
		if (is_assigned(source, &source->partitions[i]))
			rd_kafka_topic_partition_list_add(list, source->config->topic, i);
	return list;
}

static void
list_free(rd_kafka_topic_partition_list_t **list)
{
	if (*list != NULL)
		rd_kafka_topic_partition_list_destroy(*list);
	*list = NULL;
}

/* Messages nobody has looked at: those of partitions that are not assigned go, or all. */
static void
drop_held(KafkaSource *source, bool all)
{
	int n_kept = 0;

	for (int i = source->at_held; i < source->n_held; i++)
	{
		rd_kafka_message_t *message = source->held[i];
		bool is_kept = !all && message->rkt != NULL && message->partition >= 0 &&
			is_assigned(source, partition_of(source, message->partition));

		if (is_kept)
			source->held[n_kept++] = message;
		else
			rd_kafka_message_destroy(message);
	}
	source->at_held = 0;
	source->n_held = n_kept;
}

/* ---- configuration ---- */

bool
kafka_is_secret(const char *property)
{
	return strstr(property, "password") || strstr(property, "secret") || strstr(property, "pem") ||
		strstr(property, "jaas") || strstr(property, "oauthbearer.config");
}

/* Ours, unless the user has set them. */
static const char *const our_defaults[][2] = {
	{"client.id", "millrace"},
	{"session.timeout.ms", "10000"},				 /* a killed ingester's partitions move on after this */
	{"queued.max.messages.kbytes", "16384"},		 /* read ahead of the batch: bounds memory */
	{"fetch.max.bytes", "16777216"},				 /* and so does this */
	{"topic.metadata.refresh.interval.ms", "60000"}, /* new partitions are seen after this */
};

/* Ours, whatever the user says: config.c refuses them as keys. */
static const char *const our_settings[][2] = {
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"enable.partition.eof", "true"},
	{"auto.offset.reset", "error"},
};

static void
kafka_log(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
	(void) client;
	log_line(level <= 4 ? LOG_WARNING : level <= 6 ? LOG_INFO : LOG_DEBUG, "kafka: %s: %s", facility, text);
}

/*
 * Why OpenSSL refuses a broker's certificate: librdkafka itself tells only that it does.  error: X509_V_ERR_… of OpenSSL.
 * Called for each certificate of a chain, with 0 if it is right, which is also what it returns true for.
 */
static int
on_certificate(rd_kafka_t *client, const char *broker, int32_t broker_id, int *error, int depth,
			   const char *certificate, size_t n_bytes, char *why, size_t n_why, void *opaque)
{
	static const struct
	{
		int error;
		const char *why;
	} reasons[] = {
		{9, "it is not valid yet"},
		{10, "it has expired"},
		{18, "it is self-signed, and not in ssl.ca.location"},
		{19, "its authority is not in ssl.ca.location"},
		{20, "its authority is not in ssl.ca.location"},
		{21, "its authority is not in ssl.ca.location"},
		{23, "it has been revoked"},
		{62, "it is for another host"},
		{64, "it is for another address"},
	};

	(void) client, (void) broker_id, (void) depth, (void) certificate, (void) n_bytes, (void) opaque;
	if (*error == 0)
		return 1;
	for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
		if (*error == reasons[i].error)
		{
			snprintf(why, n_why, "certificate of %s refused: %s", broker, reasons[i].why);
			return 0;
		}
	snprintf(why, n_why, "certificate of %s refused: OpenSSL verification error %d", broker, *error);
	return 0;
}

void
kafka_tell(rd_kafka_conf_t *conf)
{
	rd_kafka_conf_set_log_cb(conf, kafka_log);
	(void) rd_kafka_conf_set_ssl_cert_verify_cb(conf, on_certificate);
}

static void
on_error(rd_kafka_t *client, int error, const char *reason, void *opaque)
{
	KafkaSource *source = opaque;

	(void) client;
	log_line(LOG_WARNING, "kafka: %s: %s", rd_kafka_err2name(error), reason);
	if (source != NULL)
		source->config->metrics->n_kafka_errors++;
	if (error == RD_KAFKA_RESP_ERR__FATAL && source != NULL)
		fail(source, EXIT_SOURCE);
	if ((error == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION || error == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC ||
		 error == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) &&
		source != NULL)
		lose_topic(source);
	if (error == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN && source != NULL && source->broker_lost_us == 0)
	{
		source->broker_lost_us = monotonic_us();
		source->config->metrics->is_broker_lost = true;
	}
}

/* NULL when a property is wrong; each is reported in librdkafka's own words. */
static rd_kafka_conf_t *
make_conf(Config *config)
{
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	int n_before = config->n_errors;
	char error[512];

	for (size_t i = 0; i < sizeof our_defaults / sizeof our_defaults[0]; i++)
		if (rd_kafka_conf_set(conf, our_defaults[i][0], our_defaults[i][1], error, sizeof error) !=
			RD_KAFKA_CONF_OK)
			config_error_at(config, "source.type", "librdkafka: %s", error);
	for (int i = 0; i < config->kafka.n_pairs; i++)
	{
		const Pair *pair = &config->kafka.list[i];

		if (rd_kafka_conf_set(conf, pair->name, pair->value, error, sizeof error) != RD_KAFKA_CONF_OK)
			config_error_pair(
				config, pair, "%s",
				kafka_is_secret(pair->name) ? "librdkafka refuses the value of a secret property" : error);
	}
	for (size_t i = 0; i < sizeof our_settings / sizeof our_settings[0]; i++)
		if (rd_kafka_conf_set(conf, our_settings[i][0], our_settings[i][1], error, sizeof error) !=
			RD_KAFKA_CONF_OK)
			config_error_at(config, "source.type", "librdkafka: %s", error);
	if (rd_kafka_conf_set(conf, "bootstrap.servers", config->brokers, error, sizeof error) !=
		RD_KAFKA_CONF_OK)
		config_error_at(config, "source.brokers", "%s", error);
	if (rd_kafka_conf_set(conf, "group.id", config->group ? config->group : "millrace", error,
						  sizeof error) != RD_KAFKA_CONF_OK)
		config_error_at(config, "source.group", "%s", error);
	kafka_tell(conf);
	rd_kafka_conf_set_error_cb(conf, on_error);
	if (config->n_errors == n_before)
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}

/* ---- questions to the broker ---- */

/*
 * offsets[i] of the i-th partition: the first at or after a time in milliseconds since 1970, or the end for
 * RD_KAFKA_OFFSET_END, the oldest for RD_KAFKA_OFFSET_BEGINNING; -1: none at that time or later.
 */
static rd_kafka_resp_err_t
ask_offsets(const KafkaSource *source, const rd_kafka_topic_partition_list_t *partitions, int64_t time_ms,
			int64_t *offsets, int within_ms)
{
	rd_kafka_topic_partition_list_t *asked = rd_kafka_topic_partition_list_copy(partitions);

	for (int i = 0; i < asked->cnt; i++)
		asked->elems[i].offset = time_ms;
	rd_kafka_resp_err_t error = rd_kafka_offsets_for_times(source->client, asked, within_ms);
	for (int i = 0; i < asked->cnt && error == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
	{
		error = asked->elems[i].err;
		offsets[i] = asked->elems[i].offset;
	}
	rd_kafka_topic_partition_list_destroy(asked);
	return error;
}

/* RD_KAFKA_RESP_ERR_NO_ERROR with the number of partitions, or why the broker does not tell it. */
static rd_kafka_resp_err_t
ask_topic(rd_kafka_t *client, const char *name, int within_ms, int *n_partitions)
{
	const struct rd_kafka_metadata *about;
	rd_kafka_topic_t *topic = rd_kafka_topic_new(client, name, NULL);

	if (topic == NULL)
		return rd_kafka_last_error();
	rd_kafka_resp_err_t error = rd_kafka_metadata(client, 0, topic, &about, within_ms);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		error = about->topic_cnt == 1 ? about->topics[0].err : RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
		*n_partitions = about->topic_cnt == 1 ? about->topics[0].partition_cnt : 0;
		rd_kafka_metadata_destroy(about);
	}
	rd_kafka_topic_destroy(topic);
	return error;
}

/*
 * A question failed.  It is asked again a little later, for source.reconnect; a random part keeps many ingesters apart.
 */
static bool
ask_again(KafkaSource *source, const char *what, rd_kafka_resp_err_t error)
{
	int64_t now_us = monotonic_us();

	if (source->since_us == 0)
		source->since_us = now_us;
	source->again_us = now_us + AGAIN_US + random() % AGAIN_US;
	bool is_over = now_us - source->since_us > source->config->kafka_reconnect_ms * 1000;
	log_line(is_over ? LOG_ERROR : LOG_WARNING, "kafka: %s of topic \"%s\": %s", what, source->config->topic,
			 rd_kafka_err2str(error));
	if (is_over)
		fail(source, EXIT_SOURCE);
	return false;
}

/* ---- partitions come and go ---- */

/* The first time a stream sees its topic: where each partition begins.  Later partitions are read from their oldest message. */
static bool
start_stream(KafkaSource *source, Sink *sink)
{
	const Config *config = source->config;
	int64_t time_ms = config->start == START_LATEST ? RD_KAFKA_OFFSET_END : (config->start_us + 999) / 1000;
	int n_partitions = 0;
	rd_kafka_topic_partition_list_t *all;
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;

	if (source->has_started || (config->start != START_LATEST && config->start != START_TIME))
		return true;
	rd_kafka_resp_err_t error = ask_topic(source->client, config->topic, ANSWER_MS, &n_partitions);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		return ask_again(source, "no partitions", error);
	int n = config->n_partitions > 0 ? config->n_partitions : n_partitions;
	int64_t *ends = mem_alloc((sizeof(int64_t) * 2 + sizeof(int32_t)) * (size_t) n), *firsts = ends + n;
	int32_t *numbers = (int32_t *) (firsts + n);
	all = rd_kafka_topic_partition_list_new(n);
	for (int i = 0; i < n; i++)
	{
		numbers[i] = config->n_partitions > 0 ? config->partitions[i] : i;
		rd_kafka_topic_partition_list_add(all, config->topic, numbers[i]);
	}
	error = ask_offsets(source, all, RD_KAFKA_OFFSET_END, ends, ANSWER_MS);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		error = ask_offsets(source, all, time_ms, firsts, ANSWER_MS);
	rd_kafka_topic_partition_list_destroy(all);
	for (int i = 0; i < n && error == RD_KAFKA_RESP_ERR_NO_ERROR; i++)
		if (firsts[i] < 0)
			firsts[i] = ends[i];
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		do
			status = sink_first_positions(sink, config->topic, n, numbers, firsts);
		while (sink_again(sink, &retry, status, &code));
		if (status != SINK_OK)
			fail(source, code);
		source->has_started = status == SINK_OK;
	}
	free(ends);
	return error == RD_KAFKA_RESP_ERR_NO_ERROR ? source->has_started
											   : ask_again(source, "no first offsets", error);
}

/* What take() learns of a partition. */
typedef struct Taken
{
	int index; /* in the batch's positions */
	int64_t low, high;
} Taken;

/* The position is not among the messages that the broker has: goes to the oldest one, if that is allowed. */
static bool
jump(KafkaSource *source, const Taken *taken)
{
	Position *position = &source->batch->positions.list[taken->index];
	bool may_skip = source->config->on_lost == LOST_SKIP;

	log_line(may_skip ? LOG_WARNING : LOG_ERROR,
			 "%s[%" PRId32 "]: the database wants offset %" PRId64 ", the broker has %" PRId64 " to %" PRId64
			 " (%s); %s",
			 position->topic, position->partition, position->stored, taken->low, taken->high,
			 position->stored < taken->low ? "messages were deleted before they were read"
										   : "was the topic made anew?",
			 may_skip ? "going on from its oldest message"
					  : "set millrace.ingest_offsets, or source.on_lost = skip, to go on");
	if (!may_skip)
	{
		fail(source, EXIT_SOURCE);
		return false;
	}
	source->config->metrics->n_skipped += position->stored < taken->low ? taken->low - position->stored : 1;
	move_position(source->batch, position, taken->low);
	return true;
}

/* Reads the stored position of one partition. */
static bool
read_position(KafkaSource *source, Sink *sink, const rd_kafka_topic_partition_t *about, Taken *taken)
{
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;

	taken->index = position_find(&source->batch->positions, about->topic, about->partition);
	Position *position = &source->batch->positions.list[taken->index];
	do
		status =
			sink_position(sink, position, source->config->start == START_STORED ? NO_OFFSET : taken->low);
	while (sink_again(sink, &retry, status, &code));
	if (status != SINK_OK)
	{
		fail(source, code);
		return false;
	}
	if (position->stored != NO_OFFSET)
		return true;
	log_line(LOG_ERROR, "%s[%" PRId32 "]: no position of stream \"%s\" is stored, and source.start = stored",
			 position->topic, position->partition, source->config->name);
	fail(source, EXIT_SOURCE);
	return false;
}

/* A broker that has just started may not know its newest messages yet: positions behind the end are doubted for a while. */
static bool
is_in_doubt(KafkaSource *source, const Taken *taken, int n_taken)
{
	bool is_behind_end = false;

	for (int i = 0; i < n_taken; i++)
		is_behind_end |= source->batch->positions.list[taken[i].index].stored > taken[i].high;
	if (!is_behind_end)
		source->doubt_since_us = 0;
	else if (source->doubt_since_us == 0)
		source->doubt_since_us = monotonic_us();
	return is_behind_end && monotonic_us() - source->doubt_since_us < DOUBT_US;
}

static bool
settle_position(KafkaSource *source, rd_kafka_topic_partition_t *about, const Taken *taken)
{
	Partition *partition = partition_of(source, about->partition);
	Position *position = &source->batch->positions.list[taken->index];

	if ((position->stored < taken->low || position->stored > taken->high || partition->is_other) &&
		!jump(source, taken))
		return false;
	partition->is_other = false;
	partition->mark = position->file;
	partition->is_unproven = position->file.has_prints && position->stored > taken->low;
	partition->position = taken->index;
	partition->stored = position->stored;
	partition->end = partition->high = taken->high;
	partition->at_end = position->next >= taken->high && !partition->is_unproven;
	position->is_assigned = true;
	about->offset = position->next - (partition->is_unproven ? 1 : 0);
	log_line(LOG_INFO, "%s[%" PRId32 "]: reading from offset %" PRId64, position->topic, position->partition,
			 position->next);
	return true;
}

/* Positions from the database, checked with the broker's.  False: not now; is asked again, or has failed. */
static bool
take(KafkaSource *source, rd_kafka_topic_partition_list_t *list)
{
	Sink *sink = writer_sink(source->writer);
	Taken *taken = mem_alloc(sizeof(Taken) * (size_t) (list->cnt + 1));
	int64_t *low = mem_alloc(sizeof(int64_t) * (size_t) (list->cnt + 1) * 2), *high = low + list->cnt;
	rd_kafka_resp_err_t error = RD_KAFKA_RESP_ERR_NO_ERROR;
	bool is_good = sink != NULL && start_stream(source, sink);

	if (is_good && list->cnt > 0)
		error = ask_offsets(source, list, RD_KAFKA_OFFSET_BEGINNING, low, ANSWER_MS);
	if (is_good && list->cnt > 0 && error == RD_KAFKA_RESP_ERR_NO_ERROR)
		error = ask_offsets(source, list, RD_KAFKA_OFFSET_END, high, ANSWER_MS);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		is_good = ask_again(source, "no offsets", error);
	for (int i = 0; i < list->cnt && is_good; i++)
	{
		taken[i].low = low[i];
		taken[i].high = high[i];
		is_good = read_position(source, sink, &list->elems[i], &taken[i]);
	}
	if (is_good && is_in_doubt(source, taken, list->cnt))
		is_good =
			ask_again(source, "not all messages before the position", RD_KAFKA_RESP_ERR_OFFSET_NOT_AVAILABLE);
	for (int i = 0; i < list->cnt && is_good; i++)
		is_good = settle_position(source, &list->elems[i], &taken[i]);
	free(low);
	free(taken);
	if (is_good)
		source->since_us = 0;
	return is_good;
}

static bool
is_cooperative(const KafkaSource *source)
{
	return strcmp(rd_kafka_rebalance_protocol(source->client), "COOPERATIVE") == 0;
}

static void
log_client_error(const char *what, rd_kafka_error_t *error)
{
	if (error == NULL)
		return;
	log_line(LOG_WARNING, "kafka: %s: %s", what, rd_kafka_error_string(error));
	rd_kafka_error_destroy(error);
}

/* Fetching stops, and what was fetched and not looked at is fetched again later; or it goes on. */
static void
set_paused(KafkaSource *source, bool is_paused)
{
	if (source->is_paused == is_paused)
		return;
	rd_kafka_topic_partition_list_t *list = assigned_list(source);
	rd_kafka_resp_err_t error = is_paused ? rd_kafka_pause_partitions(source->client, list)
										  : rd_kafka_resume_partitions(source->client, list);
	rd_kafka_topic_partition_list_destroy(list);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		log_line(LOG_WARNING, "kafka: %s: %s", is_paused ? "pause" : "resume", rd_kafka_err2str(error));
	source->is_paused = source->config->metrics->is_paused = is_paused;
}

static void
assign(KafkaSource *source, const rd_kafka_topic_partition_list_t *list)
{
	rd_kafka_resp_err_t error;

	if (is_cooperative(source))
		log_client_error("assign", rd_kafka_incremental_assign(source->client, list));
	else if ((error = rd_kafka_assign(source->client, list)) != RD_KAFKA_RESP_ERR_NO_ERROR)
		log_line(LOG_WARNING, "kafka: assign: %s", rd_kafka_err2str(error));
}

/* A partition that is given or taken while it is paused would stay so. */
static void
answer_given(KafkaSource *source)
{
	set_paused(source, false);
	assign(source, source->given);
	source->was_assigned = true;
	list_free(&source->given);
}

/* When the end has come: nothing of it is read. */
static void
refuse_given(KafkaSource *source)
{
	if (is_cooperative(source))
		log_client_error("assign", rd_kafka_incremental_assign(source->client, source->given));
	else
		rd_kafka_assign(source->client, NULL);
	list_free(&source->given);
}

/* What the open batch still has of the partitions is dropped. */
static void
answer_taken(KafkaSource *source)
{
	set_paused(source, false);
	for (int i = 0; i < source->taken->cnt; i++)
	{
		const rd_kafka_topic_partition_t *about = &source->taken->elems[i];
		Position *position = position_of(source, partition_of(source, about->partition));

		if (position == NULL)
			continue;
		position->is_assigned = false;
		metrics_lag(source->config->metrics, position->topic, position->partition, -1);
		log_line(LOG_INFO, "%s[%" PRId32 "]: taken away", position->topic, position->partition);
	}
	batch_drop_unassigned(source->batch);
	drop_held(source, false);
	source->was_assigned = false; /* nothing is known to be read until the next assignment */
	if (is_cooperative(source))
		log_client_error("revoke", rd_kafka_incremental_unassign(source->client, source->taken));
	else
		rd_kafka_assign(source->client, NULL);
	list_free(&source->taken);
}

static void
on_rebalance(rd_kafka_t *client, rd_kafka_resp_err_t event, rd_kafka_topic_partition_list_t *partitions,
			 void *opaque)
{
	KafkaSource *source = opaque;

	source->config->metrics->n_rebalances++;
	list_free(&source->given); /* one that was not answered is over */
	if (event == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS)
	{
		source->given = rd_kafka_topic_partition_list_copy(partitions);
		source->was_given = true;
		source->since_us = source->again_us = 0;
		if (source->is_closing)
			refuse_given(source);
	}
	else
	{
		list_free(&source->taken);
		source->taken = rd_kafka_topic_partition_list_copy(partitions);
		source->is_lost = rd_kafka_assignment_lost(client);
		source->until_us = monotonic_us() + source->config->revoke_wait_ms * 1000;
		if (source->is_closing)
			answer_taken(source);
	}
	rd_kafka_yield(client);
}

static bool
hold(KafkaSource *source, int64_t wait)
{
	rd_kafka_message_t *message = rd_kafka_consumer_poll(source->client, (int) wait);

	if (message != NULL)
		source->held[source->n_held++] = message;
	return message != NULL;
}

/* The group must hear of this member although it reads nothing, and this member of the group. */
static void
stay_alive(KafkaSource *source, int64_t wait)
{
	set_paused(source, true);
	while (source->n_held < (int) (sizeof source->held / sizeof source->held[0]) && hold(source, wait))
		wait = 0;
}

/*
 * Reads all positions again and goes on from there: others have moved them, or the broker has lost what they stand for.
 * The partitions are assigned anew: one whose offset was out of range cannot be sought.
 */
static bool
read_positions_again(KafkaSource *source)
{
	rd_kafka_topic_partition_list_t *list = assigned_list(source);
	bool is_good = take(source, list);

	set_paused(source, false);
	drop_held(source, true);
	if (is_good && list->cnt > 0)
	{
		if (is_cooperative(source))
			log_client_error("revoke", rd_kafka_incremental_unassign(source->client, list));
		assign(source, list);
	}
	rd_kafka_topic_partition_list_destroy(list);
	source->must_resync = !is_good;
	return is_good;
}

/*
 * Answers what the callbacks have noted.  True: nothing is left to do, and messages may be read.  False: *status is for
 * the pipeline.
 */
static bool
settle(KafkaSource *source, int64_t wait, SourceStatus *status)
{
	int64_t now_us = monotonic_us(), left_ms = (source->until_us - now_us) / 1000;

	*status = SOURCE_IDLE;
	if (source->taken != NULL && !source->is_lost && left_ms > 0)
	{
		*status = is_open(source->batch) ? SOURCE_FLUSH : SOURCE_IDLE;
		if (is_open(source->batch) || !writer_wait(source->writer, left_ms < wait ? left_ms : wait))
			return false;
	}
	if (source->taken != NULL)
		answer_taken(source);
	if (source->given == NULL && !source->must_resync)
		return true;
	/* What was read by a position counts before the position is read again. */
	if (source->must_resync && is_open(source->batch))
	{
		*status = SOURCE_FLUSH;
		return false;
	}
	if (now_us < source->again_us)
	{
		int64_t pause_ms = (source->again_us - now_us) / 1000 + 1;

		stay_alive(source, pause_ms < wait ? pause_ms : wait);
		return false;
	}
	if (!writer_wait(source->writer, wait))
		return false;
	if (source->must_resync && !read_positions_again(source))
		return false;
	if (source->given != NULL && take(source, source->given))
		answer_given(source);
	return source->given == NULL;
}

/* ---- life ---- */

/* Is the broker there, and has it the topic, and the partitions of source.partitions? */
static bool
check_topic(Config *config, rd_kafka_t *client, int *n_found)
{
	int n_partitions = 0;
	rd_kafka_resp_err_t error = ask_topic(client, config->topic, ANSWER_MS, &n_partitions);

	*n_found = n_partitions;

	if (error == RD_KAFKA_RESP_ERR_NO_ERROR && config->n_partitions > 0 &&
		config->partitions[config->n_partitions - 1] >= n_partitions)
	{
		int i = 0;

		while (config->partitions[i] < n_partitions)
			i++;
		config_error_at(config, "source.partitions",
						"topic \"%s\" has no partition %" PRId32 ": it has 0 to %d", config->topic,
						config->partitions[i], n_partitions - 1);
		return false;
	}
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR || error == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE)
		return true;
	if (error == RD_KAFKA_RESP_ERR__TRANSPORT || error == RD_KAFKA_RESP_ERR__TIMED_OUT ||
		error == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN)
		config_error_at(config, "source.brokers", "no answer from %s: %s", config->brokers,
						rd_kafka_err2str(error));
	else
		config_error_at(config, "source.topic", "topic \"%s\": %s", config->topic, rd_kafka_err2str(error));
	return false;
}

static rd_kafka_t *
make_client(Config *config, rd_kafka_conf_t *conf, int *n_partitions)
{
	char error[512];
	rd_kafka_t *client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);

	if (client == NULL)
	{
		config_error_at(config, "source.type", "%s", error);
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	if (check_topic(config, client, n_partitions))
		return client;
	rd_kafka_destroy(client);
	return NULL;
}

ExitCode
kafka_source_check(Config *config)
{
	rd_kafka_conf_t *conf = make_conf(config);
	int n_partitions;
	rd_kafka_t *client = conf ? make_client(config, conf, &n_partitions) : NULL;

	if (client != NULL)
		rd_kafka_destroy(client);
	return conf == NULL ? EXIT_USAGE : client == NULL ? EXIT_SOURCE : EXIT_DONE;
}

/* What librdkafka was told of itself. */
static void
read_conf(KafkaSource *source, const rd_kafka_conf_t *conf)
{
	static const char *const names[] = {"queued.max.messages.kbytes", "queued.min.messages",
										"heartbeat.interval.ms", "partition.assignment.strategy",
										"topic.metadata.refresh.interval.ms"};
	char texts[5][256] = {""};

	for (int i = 0; i < 5; i++)
	{
		size_t n_bytes = sizeof texts[i];

		rd_kafka_conf_get(conf, names[i], texts[i], &n_bytes);
	}
	source->queue_bytes = strtoll(texts[0], NULL, 10) * 1024;
	source->queue_messages = strtoll(texts[1], NULL, 10);
	source->heartbeat_ms = strtoll(texts[2], NULL, 10);
	source->may_cooperate = strstr(texts[3], "cooperative") != NULL;
	source->refresh_ms = strtoll(texts[4], NULL, 10);
}

ExitCode
kafka_source_open(Config *config, Writer *writer, Decoder *decoder, Batch *batch, KafkaSource **opened)
{
	KafkaSource *source = *opened = mem_alloc(sizeof(KafkaSource));
	rd_kafka_conf_t *conf = make_conf(config);

	source->config = config;
	source->writer = writer;
	source->decoder = decoder;
	source->batch = batch;
	if (conf == NULL)
		return EXIT_USAGE;
	rd_kafka_conf_set_opaque(conf, source);
	read_conf(source, conf);
	rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
	source->client = make_client(config, conf, &source->n_known);
	if (source->client == NULL)
		return EXIT_SOURCE;
	source->queue = rd_kafka_queue_get_consumer(source->client);
	source->headers = yajl_gen_alloc(NULL);
	rd_kafka_resp_err_t error = rd_kafka_poll_set_consumer(source->client);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR && config->n_partitions > 0)
	{
		/* No group is joined: these are given once, and never taken. */
		source->given = rd_kafka_topic_partition_list_new(config->n_partitions);
		for (int i = 0; i < config->n_partitions; i++)
			rd_kafka_topic_partition_list_add(source->given, config->topic, config->partitions[i]);
		source->was_given = true;
		source->looked_unread_us = monotonic_us();
		tell_unread(source, LOG_INFO);
		return EXIT_DONE;
	}
	rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
	rd_kafka_topic_partition_list_add(topics, config->topic, RD_KAFKA_PARTITION_UA);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		error = rd_kafka_subscribe(source->client, topics);
	rd_kafka_topic_partition_list_destroy(topics);
	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
		return EXIT_DONE;
	log_line(LOG_ERROR, "cannot subscribe to topic \"%s\": %s", config->topic, rd_kafka_err2str(error));
	return EXIT_SOURCE;
}

/* ---- messages ---- */

typedef struct Header
{
	const char *name;
	const void *value;
	size_t n_bytes, number;
} Header;

static int
by_name(const void *a, const void *b)
{
	const Header *left = a, *right = b;
	int order = strcmp(left->name, right->name);

	return order ? order : left->number < right->number ? -1 : 1;
}

/* Bytes that are no text stand as PostgreSQL prints them. */
static void
header_text(yajl_gen json, const char *bytes, size_t n_bytes)
{
	size_t at;
	Buffer hex = {0};

	if (text_defect(bytes, n_bytes, &at) == NULL)
	{
		yajl_gen_string(json, (const unsigned char *) bytes, n_bytes);
		return;
	}
	buffer_add(&hex, "\\x", 2);
	for (size_t i = 0; i < n_bytes; i++)
		buffer_printf(&hex, "%02x", (unsigned char) bytes[i]);
	yajl_gen_string(json, (const unsigned char *) hex.data, hex.n_bytes);
	buffer_free(&hex);
}

static void
header_value(yajl_gen json, const Header *header)
{
	if (header->value == NULL)
		yajl_gen_null(json);
	else
		header_text(json, header->value, header->n_bytes);
}

/* The headers as one JSON object, good until the next call; a name that comes again has an array.  NULL: none. */
static const char *
headers_json(KafkaSource *source, const rd_kafka_message_t *message, size_t *n_bytes)
{
	rd_kafka_headers_t *all;
	yajl_gen json = source->headers;
	const unsigned char *text;

	if (rd_kafka_message_headers(message, &all) != RD_KAFKA_RESP_ERR_NO_ERROR)
		return NULL;
	size_t n_headers = rd_kafka_header_cnt(all);
	if (n_headers == 0)
		return NULL;
	Header *list = mem_alloc(sizeof(Header) * n_headers);
	for (size_t i = 0; i < n_headers; i++)
	{
		rd_kafka_header_get_all(all, i, &list[i].name, &list[i].value, &list[i].n_bytes);
		list[i].number = i;
	}
	qsort(list, n_headers, sizeof(Header), by_name);
	yajl_gen_reset(json, NULL);
	yajl_gen_clear(json);
	yajl_gen_map_open(json);
	for (size_t i = 0, after; i < n_headers; i = after)
	{
		for (after = i + 1; after < n_headers && strcmp(list[i].name, list[after].name) == 0;)
			after++;
		header_text(json, list[i].name, strlen(list[i].name));
		if (after - i > 1)
			yajl_gen_array_open(json);
		for (size_t j = i; j < after; j++)
			header_value(json, &list[j]);
		if (after - i > 1)
			yajl_gen_array_close(json);
	}
	yajl_gen_map_close(json);
	yajl_gen_get_buf(json, &text, n_bytes);
	free(list);
	return (const char *) text;
}

/* An event that is not a message. */
static void
on_event(KafkaSource *source, const rd_kafka_message_t *event)
{
	switch (event->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
		{
			Partition *partition = partition_of(source, event->partition);
			Position *position = position_of(source, partition);

			if (!is_assigned(source, partition))
				return;
			partition->at_end = true;
			/* Behind the last message are offsets of aborted transactions, or of the end of one. */
			if (event->offset > position->next)
				move_position(source->batch, position, event->offset);
			return;
		}
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
			log_line(LOG_WARNING, "kafka: topic \"%s\": %s", source->config->topic,
					 rd_kafka_message_errstr(event));
			lose_topic(source);
			return;
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
		case RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE:
			log_line(LOG_WARNING, "kafka: topic \"%s\": %s", source->config->topic,
					 rd_kafka_message_errstr(event));
			source->was_topic_lost = source->must_resync = true;
			return;
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR__FATAL:
			log_line(LOG_ERROR, "kafka: topic \"%s\": %s", source->config->topic,
					 rd_kafka_message_errstr(event));
			fail(source, EXIT_SOURCE);
			return;
		default:
			log_line(LOG_WARNING, "kafka: %s: %s", rd_kafka_err2name(event->err),
					 rd_kafka_message_errstr(event));
	}
}

/* Time and size of the message before the position: a topic that was made anew hardly has the same there. */
static void
mark_message(FileMark *mark, const rd_kafka_message_t *message, int64_t timestamp_ms)
{
	mark->has_prints = true;
	mark->head_crc = (uint32_t) timestamp_ms;
	mark->tail_crc = (uint32_t) (timestamp_ms >> 32) ^ (uint32_t) (message->len << 8);
}

/* A message before the position, read only to see whether it is the one that was stored. */
static void
prove(KafkaSource *source, Partition *partition, const rd_kafka_message_t *message, int64_t timestamp_ms)
{
	FileMark found = {0};

	if (!partition->is_unproven || message->offset != position_of(source, partition)->next - 1)
		return;
	mark_message(&found, message, timestamp_ms);
	partition->is_unproven = false;
	partition->at_end |= message->offset + 1 >= partition->end;
	partition->is_other =
		found.head_crc != partition->mark.head_crc || found.tail_crc != partition->mark.tail_crc;
	source->must_resync |= partition->is_other;
}

static void
on_message(KafkaSource *source, const rd_kafka_message_t *message)
{
	Partition *partition = partition_of(source, message->partition);
	rd_kafka_timestamp_type_t type;
	int64_t timestamp_ms = rd_kafka_message_timestamp(message, &type);

	if (!is_assigned(source, partition))
		return;
	if (message->offset < position_of(source, partition)->next)
	{
		prove(source, partition, message, timestamp_ms);
		return;
	}
	Message event = {
		.data = message->payload,
		.n_bytes = message->payload ? message->len : 0,
		.key = message->key,
		.n_key_bytes = message->key ? message->key_len : 0,
		.position = partition->position,
		.offset = message->offset,
		.timestamp_us =
			type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE || timestamp_ms < 0 || timestamp_ms > LAST_TIMESTAMP_MS
			? NO_TIME
			: timestamp_ms * 1000,
	};
	event.headers = headers_json(source, message, &event.n_header_bytes);
	decode_message(source->decoder, &event);
	source->config->metrics->n_messages++;
	position_of(source, partition)->next = message->offset + 1;
	mark_message(&position_of(source, partition)->file, message, timestamp_ms);
	if (message->offset + 1 >= partition->end)
		partition->at_end = true;
}

/*
 * Once its queue is full, librdkafka 2.0 fetches nothing for up to a second, so no more than a queue a second would come
 * in.  Any question to the brokers wakes it; nobody waits for the answer.
 */
static void
keep_fetching(KafkaSource *source)
{
	size_t n_messages = rd_kafka_queue_length(source->queue);

	if (n_messages > source->peak)
		source->peak = n_messages;
	if (n_messages > source->peak / 2 ||
		((int64_t) source->peak < source->queue_messages / 4 &&
		 (int64_t) source->peak * source->mean_bytes < source->queue_bytes / 4))
		return;
	rd_kafka_topic_partition_list_t *list = assigned_list(source);
	int64_t *ends = mem_alloc(sizeof(int64_t) * (size_t) (list->cnt + 1));
	if (list->cnt > 0)
		ask_offsets(source, list, RD_KAFKA_OFFSET_END, ends, 0);
	free(ends);
	rd_kafka_topic_partition_list_destroy(list);
	source->peak = n_messages;
}

/* Waits for a message, then takes what else is there: half the work for each of one message at a time. */
static void
receive(KafkaSource *source, int64_t wait)
{
	int64_t n_bytes = 0;

	source->at_held = source->n_held = 0;
	if (!hold(source, wait) || source->taken != NULL || source->given != NULL)
		return;
	ssize_t n_more = rd_kafka_consume_batch_queue(source->queue, 0, source->held + 1, MESSAGES_A_POLL - 1);
	if (n_more > 0)
		source->n_held += (int) n_more;
	for (int i = 0; i < source->n_held; i++)
		n_bytes += source->held[i]->err ? 0 : (int64_t) source->held[i]->len;
	source->mean_bytes += (n_bytes / source->n_held - source->mean_bytes) / 8;
	keep_fetching(source);
}

static void
read_held(KafkaSource *source)
{
	while (source->at_held < source->n_held && !batch_is_full(source->batch) && !source->has_failed &&
		   !source->must_resync)
	{
		rd_kafka_message_t *message = source->held[source->at_held++];

		if (message->err)
			on_event(source, message);
		else
			on_message(source, message);
		rd_kafka_message_destroy(message);
	}
}

static bool
is_all_read(const KafkaSource *source)
{
	if (!source->was_assigned || source->at_held < source->n_held)
		return false;
	for (int i = 0; i < source->n_partitions; i++)
		if (is_assigned(source, &source->partitions[i]) && !source->partitions[i].at_end)
			return false;
	return true;
}

/* ---- watching ---- */

static void
update_lag(KafkaSource *source)
{
	Metrics *metrics = source->config->metrics;
	int64_t now_us = monotonic_us(), sum = 0;
	rd_kafka_topic_partition_list_t *list = assigned_list(source);
	int64_t *ends = mem_alloc(sizeof(int64_t) * (size_t) (list->cnt + 1));
	bool asks = source->is_paused && source->broker_lost_us == 0 && list->cnt > 0 &&
		now_us - source->asked_lag_us >= PAUSED_LAG_US;

	/* The ends come with the messages, but none do while nothing is fetched. */
	if (asks)
	{
		source->asked_lag_us = now_us;
		asks = ask_offsets(source, list, RD_KAFKA_OFFSET_END, ends, SHORT_MS) == RD_KAFKA_RESP_ERR_NO_ERROR;
	}
	for (int i = 0; i < list->cnt; i++)
	{
		Partition *partition = partition_of(source, list->elems[i].partition);
		int64_t low, high = asks ? ends[i] : partition->high;

		if (!asks)
			rd_kafka_get_watermark_offsets(source->client, list->elems[i].topic, list->elems[i].partition,
										   &low, &high);
		if (high > partition->high)
			partition->high = high;
		int64_t lag = partition->high > partition->stored ? partition->high - partition->stored : 0;
		metrics_lag(metrics, list->elems[i].topic, list->elems[i].partition, lag);
		sum += lag;
	}
	metrics->lag = sum;
	free(ends);
	rd_kafka_topic_partition_list_destroy(list);
}

/* No broker has answered for a while: are they back? */
static void
look_for_broker(KafkaSource *source)
{
	const struct rd_kafka_metadata *about;

	if (rd_kafka_metadata(source->client, 0, NULL, &about, SHORT_MS) == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		rd_kafka_metadata_destroy(about);
		source->broker_lost_us = 0;
		source->config->metrics->is_broker_lost = false;
		source->config->metrics->n_kafka_reconnects++;
		log_line(LOG_WARNING, "kafka: connected again");
	}
	else if (monotonic_us() - source->broker_lost_us > source->config->kafka_reconnect_ms * 1000)
	{
		log_line(LOG_ERROR, "kafka: no broker of %s answers within source.reconnect",
				 source->config->brokers);
		fail(source, EXIT_SOURCE);
	}
}

/* The broker did not know the topic: one that has just started may not, or it was deleted, and perhaps made anew. */
static void
look_for_topic(KafkaSource *source)
{
	int n_partitions;
	rd_kafka_resp_err_t error = ask_topic(source->client, source->config->topic, SHORT_MS, &n_partitions);

	if (error == RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		source->topic_lost_us = 0;
		source->must_resync = true;
	}
	else if (monotonic_us() - source->topic_lost_us > UNKNOWN_US && source->broker_lost_us == 0)
	{
		log_line(LOG_ERROR, "kafka: topic \"%s\": %s", source->config->topic, rd_kafka_err2str(error));
		fail(source, EXIT_SOURCE);
	}
}

/* With source.partitions the topic may get others, which nobody reads then. */
static void
look_for_unread(KafkaSource *source)
{
	int n_partitions;

	source->looked_unread_us = source->watched_us;
	if (ask_topic(source->client, source->config->topic, SHORT_MS, &n_partitions) !=
			RD_KAFKA_RESP_ERR_NO_ERROR ||
		n_partitions <= source->n_known)
		return;
	source->n_known = n_partitions;
	tell_unread(source, LOG_WARNING);
}

static void
watch(KafkaSource *source)
{
	int64_t now_us = monotonic_us();

	if (now_us - source->watched_us < WATCH_US)
		return;
	source->watched_us = now_us;
	update_lag(source);
	if (source->broker_lost_us != 0)
		look_for_broker(source);
	if (source->topic_lost_us != 0)
		look_for_topic(source);
	if (source->config->n_partitions > 0 && source->refresh_ms > 0 && source->broker_lost_us == 0 &&
		now_us - source->looked_unread_us > source->refresh_ms * 1000)
		look_for_unread(source);
}

/* ---- for the pipeline ---- */

SourceStatus
kafka_source_poll(KafkaSource *source, int64_t wait, ExitCode *exit_code)
{
	SourceStatus status;
	bool was_settled = settle(source, wait, &status);

	if (was_settled)
	{
		source->unsettled_us = 0;
		set_paused(source, false);
		if (source->at_held == source->n_held)
			receive(source, wait);
		status = source->n_held > 0 ? SOURCE_MORE : SOURCE_IDLE;
		if (source->taken == NULL && source->given == NULL)
			read_held(source);
	}
	else if (source->unsettled_us == 0)
		source->unsettled_us = monotonic_us();
	else if (monotonic_us() - source->unsettled_us > PAUSE_AFTER_MS * 1000)
		stay_alive(source, 0);
	watch(source);
	if (source->has_failed)
	{
		*exit_code = source->failure;
		return SOURCE_FAILED;
	}
	if (was_settled && source->config->once && is_all_read(source))
		return SOURCE_END;
	return status;
}

SourceStatus
kafka_source_blocked(KafkaSource *source, int64_t for_ms, ExitCode *exit_code)
{
	if (source->taken != NULL && (source->is_lost || monotonic_us() >= source->until_us))
		answer_taken(source);
	if (for_ms >= PAUSE_AFTER_MS)
		stay_alive(source, 0);
	watch(source);
	*exit_code = source->failure;
	return source->has_failed ? SOURCE_FAILED : SOURCE_IDLE;
}

void
kafka_source_stored(KafkaSource *source, const Positions *stored)
{
	for (int i = 0; i < stored->n_positions; i++)
		if (stored->list[i].is_assigned)
			partition_of(source, stored->list[i].partition)->stored = stored->list[i].stored;
}

ExitCode
kafka_source_resync(KafkaSource *source)
{
	drop_held(source, true);
	source->must_resync = true;
	/* Who was stopped and has woken up learns with the next heartbeat that the partitions are no longer his. */
	source->again_us = monotonic_us() + source->heartbeat_ms * 1000 + AGAIN_US;
	return EXIT_DONE;
}

void
kafka_source_close(KafkaSource *source)
{
	if (source == NULL)
		return;
	if (source->client != NULL)
	{
		source->is_closing = true;
		drop_held(source, true);
		if (source->taken != NULL)
			answer_taken(source);
		if (source->given != NULL)
			refuse_given(source);
		if (source->queue != NULL)
			rd_kafka_queue_destroy(source->queue);
		rd_kafka_resp_err_t error = rd_kafka_consumer_close(source->client);

		if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
			log_line(LOG_DEBUG, "kafka: close: %s", rd_kafka_err2str(error));
		/*
		 * librdkafka 2.0 aborts in rd_kafka_destroy() where a member of a cooperative group was never given anything, and
		 * never returns from it where the topic was deleted.  It has left the group by now, and the process ends.
		 */
		if ((source->was_given || !source->may_cooperate) && !source->was_topic_lost)
			rd_kafka_destroy(source->client);
	}
	list_free(&source->given);
	if (source->headers != NULL)
		yajl_gen_free(source->headers);
	free(source->partitions);
	free(source);
}
