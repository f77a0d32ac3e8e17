/*
 * topk.c: how good lists and predictions are.
 */
#include "core.h"

#include <math.h>
#include <string.h>

/* ---- how good the lists are ---- */

/* Memory and time that one block of users may take. */
#define BLOCK_USERS 96
#define BLOCK_TOPS (1 << 20)
#define BLOCK_MACS 1000000000

typedef struct Sums
{
	double precision;
	double recall;
	double map;
	double ndcg;
	double hit_rate;
} Sums;

static int64_t
least(int64_t a, int64_t b)
{
	return a < b ? a : b;
}

/* Users of a block. */
static int
block_users(int64_t n_items, int rank, int64_t k)
{
	int64_t n = least(BLOCK_USERS, BLOCK_TOPS / (least(k, n_items) + 1));

	n = least(n, BLOCK_MACS / (n_items * rank + 1));
	return n < 1 ? 1 : (int) n;
}

static size_t
rounded(size_t n_bytes)
{
	return (n_bytes + 63) / 64 * 64;
}

/* Bits of the items that stand in a list. */
static size_t
listed_bytes(int64_t n_items)
{
	return rounded((size_t) (n_items + 7) / 8);
}

/* What a worker needs: listed items, lists, searches and their scratch. */
static size_t
worker_bytes(int n_users, int rank, int64_t n_items, int64_t length)
{
	const MrcIndex index = {.rank = rank};

	return listed_bytes(n_items) + rounded((size_t) n_users * (size_t) length * sizeof(MrcTop)) +
		rounded((size_t) n_users * sizeof(MrcSearch)) +
		rounded(mrc_search_many_scratch_bytes(&index, length, 1));
}

/* What comes before that: sums, and the index. */
static size_t
shared_bytes(int64_t n_rows, int64_t n_items, int rank, int n_users)
{
	return rounded((size_t) (n_rows / n_users + 1) * sizeof(Sums)) +
		rounded(mrc_index_for_bytes(n_items, rank, n_rows));
}

size_t
mrc_ranking_scratch_bytes(int64_t n_rows, int64_t n_items, int rank, int64_t k, int n_threads)
{
	int n_users = block_users(n_items, rank, k);

	return shared_bytes(n_rows, n_items, rank, n_users) +
		(size_t) n_threads * worker_bytes(n_users, rank, n_items, least(k, n_items));
}

static bool
contains(const int32_t *sorted, int64_t n, int32_t wanted)
{
	int64_t lo = 0;

	while (lo < n)
	{
		int64_t middle = lo + (n - lo) / 2;

		if (sorted[middle] == wanted)
			return true;
		if (sorted[middle] < wanted)
			lo = middle + 1;
		else
			n = middle;
	}
	return false;
}

static void
judge(const MrcRanking *ranking, int64_t row, const MrcTop *top, int64_t n_top, Sums *sums)
{
	int64_t start = ranking->relevant.start[row];
	int64_t n_known = ranking->relevant.start[row + 1] - start;
	int64_t most_hits = least(ranking->k, ranking->n_relevant[row]);
	int64_t n_hits = 0;
	double precisions = 0;
	double gain = 0;
	double ideal = 0;

	for (int64_t i = 0; i < n_top; i++)
		if (contains(ranking->relevant.index + start, n_known, top[i].row))
		{
			n_hits++;
			precisions += (double) n_hits / (double) (i + 1);
			gain += 1 / log2((double) i + 2);
		}
	for (int64_t i = 0; i < most_hits; i++)
		ideal += 1 / log2((double) i + 2);
	sums->precision += (double) n_hits / (double) ranking->k;
	sums->recall += (double) n_hits / (double) ranking->n_relevant[row];
	sums->map += precisions / (double) most_hits;
	sums->ndcg += gain / ideal;
	sums->hit_rate += n_hits > 0;
}

static void *
take(char **at, size_t n_bytes)
{
	void *taken = *at;

	*at += rounded(n_bytes);
	return taken;
}

/* A run. */
typedef struct Run
{
	const MrcRanking *ranking;
	MrcIndex index;
	int block; /* users of a task */
	int64_t length;
	Sums *sums; /* of each task */
	char *workers;
	size_t worker_bytes;
} Run;

/* What the row is searched for, but for where the list is to go. */
static MrcSearch
search_of(const MrcRanking *ranking, int64_t row)
{
	MrcSearch search = {.user = ranking->users + (int64_t) ranking->user_row[row] * ranking->rank,
						.k = least(ranking->k, ranking->n_items)};
	const MrcCsr *seen = &ranking->seen;
	int64_t seen_row = ranking->seen_row ? ranking->seen_row[row] : row;

	if (seen->start == NULL)
		return search;
	search.skip = seen->index + seen->start[seen_row];
	search.n_skip = seen->start[seen_row + 1] - seen->start[seen_row];
	if (seen->value)
	{
		search.boosted = search.skip;
		search.boost = seen->value + seen->start[seen_row];
		search.n_boosted = search.n_skip;
		search.n_skip = 0;
	}
	return search;
}

static MrcStatus
ranking_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Run *run = arg;
	const MrcRanking *ranking = run->ranking;
	Sums *sums = run->sums + lo / run->block;
	char *at = run->workers + (size_t) worker * run->worker_bytes;
	unsigned char *listed = take(&at, listed_bytes(ranking->n_items));
	MrcTop *top = take(&at, (size_t) run->block * (size_t) run->length * sizeof(MrcTop));
	MrcSearch *searches = take(&at, (size_t) run->block * sizeof(MrcSearch));
	int n = (int) (hi - lo);

	for (int i = 0; i < n; i++)
	{
		searches[i] = search_of(ranking, lo + i);
		searches[i].top = top + i * run->length;
	}
	mrc_search_group(&run->index, searches, n, at);
	memset(sums, 0, sizeof(*sums));
	for (int i = 0; i < n; i++)
	{
		judge(ranking, lo + i, searches[i].top, searches[i].n_top, sums);
		for (int64_t j = 0; j < searches[i].n_top; j++)
			listed[searches[i].top[j].row / 8] |= (unsigned char) (1 << searches[i].top[j].row % 8);
	}
	return MRC_OK;
}

/* Items that stand in the list of any user.  workers: their scratch, apart by n_bytes. */
static int64_t
count_listed(const unsigned char *workers, size_t n_bytes, int n_workers, int64_t n_items)
{
	int64_t n = 0;

	for (int64_t i = 0; i < (n_items + 7) / 8; i++)
	{
		unsigned bits = 0;

		for (int worker = 0; worker < n_workers; worker++)
			bits |= workers[(size_t) worker * n_bytes + (size_t) i];
		n += __builtin_popcount(bits);
	}
	return n;
}

MrcStatus
mrc_ranking_run(MrcRanking *ranking)
{
	int block = block_users(ranking->n_items, ranking->rank, ranking->k);
	int n_workers = mrc_pool_size(ranking->pool);
	int64_t length = least(ranking->k, ranking->n_items);
	double n = (double) ranking->n_rows;
	char *at = ranking->scratch;
	Run run = {.ranking = ranking,
			   .block = block,
			   .length = length,
			   .sums = take(&at, (size_t) (ranking->n_rows / block + 1) * sizeof(Sums)),
			   .worker_bytes = worker_bytes(block, ranking->rank, ranking->n_items, length)};
	const Sums *sums = run.sums;
	MrcStatus status = mrc_index_for(
		ranking->pool, &run.index, ranking->items, ranking->n_items, ranking->rank, ranking->n_rows,
		take(&at, mrc_index_for_bytes(ranking->n_items, ranking->rank, ranking->n_rows)));

	run.workers = at;
	for (int worker = 0; worker < n_workers; worker++)
		memset(run.workers + (size_t) worker * run.worker_bytes, 0, listed_bytes(ranking->n_items));
	if (status == MRC_OK)
		status = mrc_pool_run(ranking->pool, ranking->n_rows, block, ranking_task, &run);
	ranking->precision = ranking->recall = ranking->map = ranking->ndcg = ranking->hit_rate = 0;
	ranking->coverage = 0;
	if (status != MRC_OK)
		return status;
	for (int64_t i = 0; i * block < ranking->n_rows; i++)
	{
		ranking->precision += sums[i].precision / n;
		ranking->recall += sums[i].recall / n;
		ranking->map += sums[i].map / n;
		ranking->ndcg += sums[i].ndcg / n;
		ranking->hit_rate += sums[i].hit_rate / n;
	}
	if (ranking->n_items > 0)
		ranking->coverage = (double) count_listed((unsigned char *) run.workers, run.worker_bytes, n_workers,
												  ranking->n_items) /
			(double) ranking->n_items;
	return MRC_OK;
}

/* ---- how well values are predicted ---- */

/* Rows of a sum. */
#define ERROR_ROWS 256

size_t
mrc_error_scratch_bytes(int64_t n_rows)
{
	return (size_t) (n_rows / ERROR_ROWS + 1) * sizeof(double);
}

static MrcStatus
error_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const MrcError *error = arg;
	const MrcCsr *csr = &error->ratings;
	double sum = 0;

	(void) worker;
	for (int64_t row = lo; row < hi; row++)
		for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			int64_t user = error->user_row ? error->user_row[row] : row;
			double difference = (double) csr->value[e] -
				(double) mrc_dot(error->users + user * error->rank,
								 error->items + (int64_t) csr->index[e] * error->rank, error->rank);

			sum += difference * difference;
		}
	((double *) error->scratch)[lo / ERROR_ROWS] = sum;
	return MRC_OK;
}

MrcStatus
mrc_error_run(MrcError *error)
{
	const double *sums = error->scratch;
	int64_t n_rows = error->ratings.n_rows;
	MrcStatus status = mrc_pool_run(error->pool, n_rows, ERROR_ROWS, error_task, error);
	double sum = 0;

	for (int64_t i = 0; i * ERROR_ROWS < n_rows && status == MRC_OK; i++)
		sum += sums[i];
	error->rmse = status == MRC_OK ? sqrt(sum / (double) error->ratings.start[n_rows]) : NAN;
	return status;
}
