/*
 * What is counted of a stream.
 */
#include "ingest.h"

void
metrics_batch(Metrics *metrics, int64_t n_rows, int64_t n_bytes, int64_t us)
{
	(void) us;
	metrics->n_rows += n_rows;
	metrics->n_bytes += n_bytes;
	metrics->n_batches++;
}

void
metrics_lag(Metrics *metrics, const char *topic, int32_t partition, int64_t lag)
{
	(void) metrics, (void) topic, (void) partition, (void) lag;
}
