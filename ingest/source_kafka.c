/*
 * Messages from a Kafka topic.  The group shares out the partitions and stores nothing: on assign the position is read
 * from the database and sought, on revoke the rows of the open batch that came from the partition are dropped (its
 * next owner reads them again).  Callbacks run inside rd_kafka_consumer_poll(), on the only thread.
 */
#include "ingest.h"

#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MS 10000 /* how long one question to the broker may take */
#define MESSAGES_A_POLL 1000
#define LAST_TIMESTAMP_MS INT64_C(253402300799999) /* year 9999 */

struct KafkaSource
{
	Config *config;
	Sink *sink;
	Decoder *decoder;
	Batch *batch;
	rd_kafka_t *client;
	bool was_assigned;
	ExitCode failure; /* set by a callback */
	bool has_failed;
};

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
	{"session.timeout.ms", "10000"}, /* a killed ingester's partitions move on after this */
	{"queued.max.messages.kbytes",
	 "16384"}, /* read ahead of the batch: bounds memory while the database is away */
};

/* Ours, whatever the user says: config.c refuses them as keys. */
static const char *const our_settings[][2] = {
	{"enable.auto.commit", "false"},
	{"enable.auto.offset.store", "false"},
	{"enable.partition.eof", "true"},
	{"auto.offset.reset", "error"},
};

static void
on_log(const rd_kafka_t *client, int level, const char *facility, const char *text)
{
	(void) client;
	log_line(level <= 4 ? LOG_WARNING : level <= 6 ? LOG_INFO : LOG_DEBUG, "kafka: %s: %s", facility, text);
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
	{
		source->has_failed = true;
		source->failure = EXIT_SOURCE;
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
	if (rd_kafka_conf_set(conf, "group.id", config->group, error, sizeof error) != RD_KAFKA_CONF_OK)
		config_error_at(config, "source.group", "%s", error);
	rd_kafka_conf_set_log_cb(conf, on_log);
	rd_kafka_conf_set_error_cb(conf, on_error);
	if (config->n_errors == n_before)
		return conf;
	rd_kafka_conf_destroy(conf);
	return NULL;
}

/* Is the broker there, and has it the topic? */
static bool
check_topic(Config *config, rd_kafka_t *client)
{
	const struct rd_kafka_metadata *about;
	rd_kafka_topic_t *topic = rd_kafka_topic_new(client, config->topic, NULL);
	bool is_good = false;

	if (topic == NULL)
	{
		config_error_at(config, "source.topic", "\"%s\": %s", config->topic,
						rd_kafka_err2str(rd_kafka_last_error()));
		return false;
	}
	rd_kafka_resp_err_t error = rd_kafka_metadata(client, 0, topic, &about, ANSWER_MS);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		config_error_at(config, "source.brokers", "no answer from %s: %s", config->brokers,
						rd_kafka_err2str(error));
	else
	{
		error = about->topic_cnt == 1 ? about->topics[0].err : RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC;
		is_good = error == RD_KAFKA_RESP_ERR_NO_ERROR || error == RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE;
		if (!is_good)
			config_error_at(config, "source.topic", "topic \"%s\": %s", config->topic,
							rd_kafka_err2str(error));
		rd_kafka_metadata_destroy(about);
	}
	rd_kafka_topic_destroy(topic);
	return is_good;
}

/* ---- partitions come and go ---- */

static void
fail(KafkaSource *source, ExitCode code)
{
	if (!source->has_failed)
		source->failure = code;
	source->has_failed = true;
}

/* Reads the stored position of one partition; first time: its oldest message. */
static bool
take_partition(KafkaSource *source, rd_kafka_topic_partition_t *partition)
{
	int64_t low, high;
	Retry retry = {0};
	SinkStatus status;
	ExitCode code;
	rd_kafka_resp_err_t error = rd_kafka_query_watermark_offsets(
		source->client, partition->topic, partition->partition, &low, &high, ANSWER_MS);

	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
	{
		log_line(LOG_ERROR, "no offsets of %s[%" PRId32 "]: %s", partition->topic, partition->partition,
				 rd_kafka_err2str(error));
		fail(source, EXIT_SOURCE);
		return false;
	}
	int index = position_find(&source->batch->positions, partition->topic, partition->partition);
	Position *position = &source->batch->positions.list[index];
	do
		status = sink_position(source->sink, position, low);
	while (sink_again(source->sink, &retry, status, &code));
	if (status != SINK_OK)
	{
		fail(source, code);
		return false;
	}
	if (position->stored < low || position->stored > high)
	{
		log_line(LOG_ERROR,
				 "%s[%" PRId32 "]: the database wants offset %" PRId64 ", the broker has %" PRId64
				 " to %" PRId64 " (%s); set millrace.ingest_offsets to go on",
				 partition->topic, partition->partition, position->stored, low, high,
				 position->stored < low ? "messages were deleted before they were read"
										: "was the topic made anew?");
		fail(source, EXIT_SOURCE);
		return false;
	}
	position->is_assigned = true;
	position->end = high;
	position->at_end = position->stored >= high;
	partition->offset = position->stored;
	log_line(LOG_INFO, "%s[%" PRId32 "]: reading from offset %" PRId64, partition->topic,
			 partition->partition, position->stored);
	return true;
}

static void
log_client_error(const char *what, rd_kafka_error_t *error)
{
	if (error == NULL)
		return;
	log_line(LOG_WARNING, "kafka: %s: %s", what, rd_kafka_error_string(error));
	rd_kafka_error_destroy(error);
}

static void
assign(KafkaSource *source, const rd_kafka_topic_partition_list_t *partitions)
{
	rd_kafka_resp_err_t error;

	if (partitions != NULL && strcmp(rd_kafka_rebalance_protocol(source->client), "COOPERATIVE") == 0)
	{
		log_client_error("assign", rd_kafka_incremental_assign(source->client, partitions));
		return;
	}
	error = rd_kafka_assign(source->client, partitions);
	if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
		log_line(LOG_WARNING, "kafka: assign: %s", rd_kafka_err2str(error));
}

static void
revoke(KafkaSource *source, const rd_kafka_topic_partition_list_t *partitions)
{
	for (int i = 0; i < partitions->cnt; i++)
	{
		const rd_kafka_topic_partition_t *partition = &partitions->elems[i];
		int position = position_find(&source->batch->positions, partition->topic, partition->partition);

		source->batch->positions.list[position].is_assigned = false;
		log_line(LOG_INFO, "%s[%" PRId32 "]: taken away", partition->topic, partition->partition);
	}
	batch_drop_unassigned(source->batch);
	source->was_assigned = false; /* nothing is known to be read until the next assignment */
	if (strcmp(rd_kafka_rebalance_protocol(source->client), "COOPERATIVE") == 0)
		log_client_error("revoke", rd_kafka_incremental_unassign(source->client, partitions));
	else
		assign(source, NULL);
}

static void
on_rebalance(rd_kafka_t *client, rd_kafka_resp_err_t event, rd_kafka_topic_partition_list_t *partitions,
			 void *opaque)
{
	KafkaSource *source = opaque;
	bool is_good = true;

	(void) client;
	source->config->metrics->n_rebalances++;
	if (event != RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS)
	{
		revoke(source, partitions);
		return;
	}
	for (int i = 0; i < partitions->cnt && is_good; i++)
		is_good = take_partition(source, &partitions->elems[i]);
	if (is_good)
		assign(source, partitions);
	else
		assign(source, NULL);
	source->was_assigned = true;
}

/* ---- life ---- */

static rd_kafka_t *
make_client(Config *config, rd_kafka_conf_t *conf)
{
	char error[512];
	rd_kafka_t *client = rd_kafka_new(RD_KAFKA_CONSUMER, conf, error, sizeof error);

	if (client == NULL)
	{
		config_error_at(config, "source.type", "%s", error);
		rd_kafka_conf_destroy(conf);
		return NULL;
	}
	if (check_topic(config, client))
		return client;
	rd_kafka_destroy(client);
	return NULL;
}

ExitCode
kafka_source_check(Config *config)
{
	rd_kafka_conf_t *conf = make_conf(config);
	rd_kafka_t *client = conf ? make_client(config, conf) : NULL;

	if (client != NULL)
		rd_kafka_destroy(client);
	return conf == NULL ? EXIT_USAGE : client == NULL ? EXIT_SOURCE : EXIT_DONE;
}

ExitCode
kafka_source_open(Config *config, Sink *sink, Decoder *decoder, Batch *batch, KafkaSource **opened)
{
	KafkaSource *source = *opened = mem_alloc(sizeof(KafkaSource));
	rd_kafka_conf_t *conf = make_conf(config);

	source->config = config;
	source->sink = sink;
	source->decoder = decoder;
	source->batch = batch;
	if (conf == NULL)
		return EXIT_USAGE;
	rd_kafka_conf_set_opaque(conf, source);
	rd_kafka_conf_set_rebalance_cb(conf, on_rebalance);
	source->client = make_client(config, conf);
	if (source->client == NULL)
		return EXIT_SOURCE;
	rd_kafka_resp_err_t error = rd_kafka_poll_set_consumer(source->client);
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

/* An event that is not a message. */
static void
on_event(KafkaSource *source, const rd_kafka_message_t *event)
{
	int index;

	switch (event->err)
	{
		case RD_KAFKA_RESP_ERR__PARTITION_EOF:
			index =
				position_find(&source->batch->positions, rd_kafka_topic_name(event->rkt), event->partition);
			source->batch->positions.list[index].at_end = true;
			return;
		case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
		case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
		case RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED:
		case RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET:
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

static void
on_message(KafkaSource *source, const rd_kafka_message_t *message)
{
	int position_index =
		position_find(&source->batch->positions, rd_kafka_topic_name(message->rkt), message->partition);
	Position *position = &source->batch->positions.list[position_index];
	rd_kafka_timestamp_type_t type;
	int64_t timestamp_ms = rd_kafka_message_timestamp(message, &type);

	/* Left over from before a rebalance. */
	if (!position->is_assigned || message->offset < position->next)
		return;
	Message event = {
		.data = message->payload ? message->payload : "",
		.n_bytes = message->payload ? message->len : 0,
		.key = message->key,
		.n_key_bytes = message->key ? message->key_len : 0,
		.position = position_index,
		.offset = message->offset,
		.timestamp_us =
			type == RD_KAFKA_TIMESTAMP_NOT_AVAILABLE || timestamp_ms < 0 || timestamp_ms > LAST_TIMESTAMP_MS
			? NO_TIME
			: timestamp_ms * 1000,
	};
	decode_message(source->decoder, &event);
	source->config->metrics->n_messages++;
	position->next = message->offset + 1;
	if (position->next >= position->end)
		position->at_end = true;
}

static bool
is_all_read(const KafkaSource *source)
{
	if (!source->was_assigned)
		return false;
	for (int i = 0; i < source->batch->positions.n_positions; i++)
		if (source->batch->positions.list[i].is_assigned && !source->batch->positions.list[i].at_end)
			return false;
	return true;
}

SourceStatus
kafka_source_poll(KafkaSource *source, int64_t wait, ExitCode *exit_code)
{
	int n_messages = 0;

	for (; n_messages < MESSAGES_A_POLL && !batch_is_full(source->batch); n_messages++)
	{
		rd_kafka_message_t *message = rd_kafka_consumer_poll(source->client, n_messages ? 0 : (int) wait);

		if (message == NULL)
			break;
		if (message->err)
			on_event(source, message);
		else
			on_message(source, message);
		rd_kafka_message_destroy(message);
		if (source->has_failed)
			break;
	}
	if (source->has_failed)
	{
		*exit_code = source->failure;
		return SOURCE_FAILED;
	}
	if (source->config->once && is_all_read(source))
		return SOURCE_END;
	return n_messages ? SOURCE_MORE : SOURCE_IDLE;
}

void
kafka_source_progress(const KafkaSource *source, Buffer *out)
{
	int64_t lag = 0;

	for (int i = 0; i < source->batch->positions.n_positions; i++)
	{
		const Position *position = &source->batch->positions.list[i];
		int64_t low, high;

		if (position->is_assigned &&
			rd_kafka_get_watermark_offsets(source->client, position->topic, position->partition, &low,
										   &high) == RD_KAFKA_RESP_ERR_NO_ERROR &&
			high > position->stored)
			lag += high - position->stored;
	}
	buffer_printf(out, ", lag %" PRId64, lag);
}

void
kafka_source_close(KafkaSource *source)
{
	if (source == NULL)
		return;
	if (source->client != NULL)
	{
		rd_kafka_resp_err_t error = rd_kafka_consumer_close(source->client);

		if (error != RD_KAFKA_RESP_ERR_NO_ERROR)
			log_line(LOG_DEBUG, "kafka: close: %s", rd_kafka_err2str(error));
		rd_kafka_destroy(source->client);
	}
	free(source);
}
