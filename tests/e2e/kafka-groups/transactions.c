/*
 * transactions BROKERS TOPIC N ...: sends N messages {"id": 1 ...} in a transaction that is committed, or -N in one that is
 * aborted when they are at the broker.  Prints how many offsets that took.
 */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>

static void
check(rd_kafka_error_t *error)
{
	if (error == NULL)
		return;
	fprintf(stderr, "transactions: %s\n", rd_kafka_error_string(error));
	exit(1);
}

int
main(int argc, char **argv)
{
	char text[512];
	int id = 0;
	rd_kafka_conf_t *conf = rd_kafka_conf_new();

	if (argc < 4 || rd_kafka_conf_set(conf, "bootstrap.servers", argv[1], text, sizeof text) ||
		rd_kafka_conf_set(conf, "transactional.id", "transactions", text, sizeof text))
		return 2;
	rd_kafka_t *client = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof text);
	if (client == NULL)
		return 2;
	check(rd_kafka_init_transactions(client, 30000));
	for (int i = 3; i < argc; i++)
	{
		long n = strtol(argv[i], NULL, 10);

		check(rd_kafka_begin_transaction(client));
		for (long j = labs(n); j > 0; j--)
		{
			int n_bytes = snprintf(text, sizeof text, "{\"id\": %d}", ++id);

			if (rd_kafka_producev(client, RD_KAFKA_V_TOPIC(argv[2]), RD_KAFKA_V_PARTITION(0),
								  RD_KAFKA_V_VALUE(text, (size_t) n_bytes),
								  RD_KAFKA_V_MSGFLAGS(RD_KAFKA_MSG_F_COPY), RD_KAFKA_V_END))
				return 1;
		}
		if (rd_kafka_flush(client, 30000))
			return 1;
		check(n > 0 ? rd_kafka_commit_transaction(client, 30000) : rd_kafka_abort_transaction(client, 30000));
	}
	printf("%d\n", id + argc - 3);
	rd_kafka_destroy(client);
	return 0;
}
