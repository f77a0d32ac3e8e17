/*
 * topk.c: the exact k best items of a user.
 *
 * Scores are made in blocks of MRC_TOPK_ITEMS items (for many users by one matrix product), and each is compared
 * with the user's threshold: the worst of the k kept, at the root of a heap.  Items come in ascending order, so an
 * equal score never replaces: ties stay with the lower row.  NaN compares below all and so fills the list last.
 */
#include "core.h"

#include <math.h>
#include <string.h>

/* From so many users on a matrix product beats inner products. */
#define PRODUCT_USERS 4

/* heap[0] is the worst; sink the element at i. */
static void
sink(MrcTop *heap, int64_t n, int64_t i)
{
	MrcTop moving = heap[i];

	for (;;)
	{
		int64_t child = 2 * i + 1;

		if (child >= n)
			break;
		if (child + 1 < n && mrc_top_before(heap[child], heap[child + 1]))
			child++;
		if (!mrc_top_before(moving, heap[child]))
			break;
		heap[i] = heap[child];
		i = child;
	}
	heap[i] = moving;
}

static void
offer(MrcTop *heap, int64_t *n, int64_t k, MrcTop candidate)
{
	if (*n < k)
	{
		int64_t i = (*n)++;

		while (i > 0 && mrc_top_before(heap[(i - 1) / 2], candidate))
		{
			heap[i] = heap[(i - 1) / 2];
			i = (i - 1) / 2;
		}
		heap[i] = candidate;
	}
	else if (mrc_top_before(candidate, heap[0]))
	{
		heap[0] = candidate;
		sink(heap, k, 0);
	}
}

/* Heap to list, best first. */
static void
unheap(MrcTop *heap, int64_t n)
{
	for (int64_t last = n - 1; last > 0; last--)
	{
		MrcTop worst = heap[0];

		heap[0] = heap[last];
		heap[last] = worst;
		sink(heap, last, 0);
	}
}

/* Of the scratch, for mrc_products. */
static size_t
products_bytes(int n_users, int rank)
{
	return n_users >= PRODUCT_USERS ? mrc_products_bytes(rank) : 0;
}

size_t
mrc_topk_scratch_bytes(int n_users, int rank)
{
	return products_bytes(n_users, rank) +
		(size_t) n_users * (MRC_TOPK_ITEMS * sizeof(float) + sizeof(int64_t));
}

/* Offer items [lo, lo + n) of one user; at: how far its skip list has been walked. */
static void
offer_block(const float *scores, int64_t lo, int n, const int32_t *skip, int64_t n_skip, int64_t *at,
			MrcTop *heap, int64_t *n_heap, int64_t k)
{
	for (int i = 0; i < n; i++)
	{
		MrcTop candidate = {scores[i], (int32_t) (lo + i)};

		/* Cheap test first; a NaN threshold lets everything through to the exact one. */
		if (*n_heap == k && candidate.score <= heap[0].score)
			continue;
		while (*at < n_skip && skip[*at] < candidate.row)
			(*at)++;
		if (*at < n_skip && skip[*at] == candidate.row)
			continue;
		offer(heap, n_heap, k, candidate);
	}
}

void
mrc_topk(const float *users, int n_users, const float *items, int64_t n_items, int rank,
		 const int32_t *const *skip, const int64_t *n_skip, int64_t k, MrcTop *top, int64_t *n_top,
		 void *scratch)
{
	float *scores = (float *) scratch + products_bytes(n_users, rank) / sizeof(float);
	int64_t *at = (int64_t *) (scores + (size_t) n_users * MRC_TOPK_ITEMS);

	memset(at, 0, (size_t) n_users * sizeof(*at));
	memset(n_top, 0, (size_t) n_users * sizeof(*n_top));
	for (int64_t lo = 0; lo < n_items; lo += MRC_TOPK_ITEMS)
	{
		int n = (int) (n_items - lo < MRC_TOPK_ITEMS ? n_items - lo : MRC_TOPK_ITEMS);
		const float *block = items + lo * rank;

		if (n_users >= PRODUCT_USERS)
			mrc_products(users, n_users, block, n, rank, scores, MRC_TOPK_ITEMS, scratch);
		else
			for (int u = 0; u < n_users; u++)
				mrc_dots(users + (int64_t) u * rank, block, n, rank, scores + (int64_t) u * MRC_TOPK_ITEMS);
		for (int u = 0; u < n_users; u++)
			offer_block(scores + (int64_t) u * MRC_TOPK_ITEMS, lo, n, skip ? skip[u] : NULL,
						skip ? n_skip[u] : 0, &at[u], top + u * k, &n_top[u], k);
	}
	for (int u = 0; u < n_users; u++)
		unheap(top + u * k, n_top[u]);
}

/* ---- how good the lists are ---- */

/* Memory and time that one block of users may take. */
#define BLOCK_USERS 64
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

/* What a worker needs: listed items, factors, lists, their lengths, skip lists and their lengths, scratch of mrc_topk. */
static size_t
worker_bytes(int n_users, int rank, int64_t n_items, int64_t length)
{
	return listed_bytes(n_items) + rounded((size_t) n_users * rank * sizeof(float)) +
		rounded((size_t) n_users * length * sizeof(MrcTop)) +
		2 * rounded((size_t) n_users * sizeof(int64_t)) + rounded((size_t) n_users * sizeof(int32_t *)) +
		rounded(mrc_topk_scratch_bytes(n_users, rank));
}

size_t
mrc_ranking_scratch_bytes(int64_t n_rows, int64_t n_items, int rank, int64_t k, int n_threads)
{
	int n_users = block_users(n_items, rank, k);
	size_t n_blocks = (size_t) (n_rows / n_users + 1);

	return rounded(n_blocks * sizeof(Sums)) +
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

/* Put what the user has where it belongs in the list, which has all that is best of the rest. */
static void
insert_seen(const MrcRanking *ranking, int64_t seen_row, const float *user, int64_t length, MrcTop *list,
			int64_t *n_list)
{
	const MrcCsr *seen = &ranking->seen;

	for (int64_t e = seen->start[seen_row]; e < seen->start[seen_row + 1]; e++)
	{
		float score = mrc_dot(user, ranking->items + (int64_t) seen->index[e] * ranking->rank, ranking->rank);
		MrcTop candidate = {score + seen->value[e], seen->index[e]};
		int64_t i;

		if (*n_list == length && (length == 0 || !mrc_top_before(candidate, list[length - 1])))
			continue;
		i = *n_list < length ? (*n_list)++ : length - 1;
		for (; i > 0 && mrc_top_before(candidate, list[i - 1]); i--)
			list[i] = list[i - 1];
		list[i] = candidate;
	}
}

static void *
take(char **at, size_t n_bytes)
{
	void *taken = *at;

	*at += rounded(n_bytes);
	return taken;
}

static MrcStatus
ranking_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const MrcRanking *ranking = arg;
	int block = block_users(ranking->n_items, ranking->rank, ranking->k);
	int64_t length = least(ranking->k, ranking->n_items);
	size_t n_blocks = (size_t) (ranking->n_rows / block + 1);
	Sums *sums = (Sums *) ranking->scratch + lo / block;
	char *at = (char *) ranking->scratch + rounded(n_blocks * sizeof(Sums)) +
		(size_t) worker * worker_bytes(block, ranking->rank, ranking->n_items, length);
	unsigned char *listed = take(&at, listed_bytes(ranking->n_items));
	float *users = take(&at, (size_t) block * ranking->rank * sizeof(float));
	MrcTop *top = take(&at, (size_t) block * length * sizeof(MrcTop));
	int64_t *n_top = take(&at, (size_t) block * sizeof(int64_t));
	int64_t *n_skip = take(&at, (size_t) block * sizeof(int64_t));
	const int32_t **skip = take(&at, (size_t) block * sizeof(int32_t *));
	int n = (int) (hi - lo);

	for (int i = 0; i < n; i++)
	{
		int64_t row = ranking->seen_row ? ranking->seen_row[lo + i] : lo + i;

		memcpy(users + (int64_t) i * ranking->rank,
			   ranking->users + (int64_t) ranking->user_row[lo + i] * ranking->rank,
			   (size_t) ranking->rank * sizeof(float));
		skip[i] = ranking->seen.start ? ranking->seen.index + ranking->seen.start[row] : NULL;
		n_skip[i] = ranking->seen.start ? ranking->seen.start[row + 1] - ranking->seen.start[row] : 0;
	}
	mrc_topk(users, n, ranking->items, ranking->n_items, ranking->rank, skip, n_skip, length, top, n_top, at);
	memset(sums, 0, sizeof(*sums));
	for (int i = 0; i < n; i++)
	{
		MrcTop *list = top + i * length;

		if (ranking->seen.value)
			insert_seen(ranking, ranking->seen_row ? ranking->seen_row[lo + i] : lo + i,
						users + (int64_t) i * ranking->rank, length, list, &n_top[i]);
		judge(ranking, lo + i, list, n_top[i], sums);
		for (int64_t j = 0; j < n_top[i]; j++)
			listed[list[j].row / 8] |= (unsigned char) (1 << list[j].row % 8);
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
	const Sums *sums = ranking->scratch;
	size_t n_bytes =
		worker_bytes(block, ranking->rank, ranking->n_items, least(ranking->k, ranking->n_items));
	unsigned char *workers =
		(unsigned char *) ranking->scratch + rounded((size_t) (ranking->n_rows / block + 1) * sizeof(Sums));
	int n_workers = mrc_pool_size(ranking->pool);
	double n = (double) ranking->n_rows;
	MrcStatus status;

	for (int worker = 0; worker < n_workers; worker++)
		memset(workers + (size_t) worker * n_bytes, 0, listed_bytes(ranking->n_items));
	status = mrc_pool_run(ranking->pool, ranking->n_rows, block, ranking_task, ranking);
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
		ranking->coverage =
			(double) count_listed(workers, n_bytes, n_workers, ranking->n_items) / (double) ranking->n_items;
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
