/*
 * own.c: what a user's own history is worth in lists that may repeat it.
 *
 * Factors tell little of how often somebody buys again what he buys: they are few, and their scores go towards 1 for all
 * that he has.  So the score of what he has is raised by the logarithm of how often he may be expected to do it.  If rates
 * of who has an item are distributed as Gamma(1, 1 / usual), usual being their mean, and what he does is Poisson, then the
 * posterior mean of his rate is usual * (1 + value) / (1 + usual): one purchase of what people buy weekly says more than
 * one of what they buy once.
 *
 * The weight is measured: lists are made for each of some weights from one part of what users did, and compared with the
 * other part.  The items that a user does not have are ranked once for all weights, since these do not touch them.
 */
#include "core.h"

#include <math.h>
#include <string.h>

/* Users of a block: of a task, and of a matrix product. */
#define BLOCK_USERS 32

float
mrc_own_boost(float weight, float value, float usual)
{
	if (!(value > 0))
		return 0;
	return weight * log1pf(usual > 0 ? usual / (1 + usual) * (1 + value) : value);
}

static size_t
rounded(size_t n_bytes)
{
	return (n_bytes + 63) / 64 * 64;
}

static int64_t
n_blocks(const MrcOwn *own)
{
	return own->known.n_rows / BLOCK_USERS + 1;
}

static int64_t
list_length(const MrcOwn *own)
{
	return own->k < own->known.n_cols ? own->k : own->known.n_cols;
}

/* What a worker needs: factors, the best that users do not have, one list, searches, scratch. */
static size_t
worker_bytes(const MrcOwn *own)
{
	size_t length = (size_t) list_length(own);
	const MrcIndex index = {.rank = own->params->rank};

	return rounded(BLOCK_USERS * (size_t) own->params->rank * sizeof(float)) +
		rounded((BLOCK_USERS + 1) * length * sizeof(MrcTop)) + rounded(BLOCK_USERS * sizeof(MrcSearch)) +
		rounded(mrc_search_many_scratch_bytes(&index, (int64_t) length, 1)) +
		rounded(mrc_fold_scratch_bytes(own->params));
}

static size_t
index_bytes(const MrcOwn *own)
{
	return rounded(mrc_index_for_bytes(own->known.n_cols, own->params->rank, own->known.n_rows));
}

size_t
mrc_own_scratch_bytes(const MrcOwn *own, int n_threads)
{
	return index_bytes(own) + rounded((size_t) n_blocks(own) * (size_t) own->n_weights * sizeof(double)) +
		rounded((size_t) own->known.start[own->known.n_rows] * 2 * sizeof(float)) +
		(size_t) n_threads * worker_bytes(own);
}

static void *
take(char **at, size_t n_bytes)
{
	void *taken = *at;

	*at += rounded(n_bytes);
	return taken;
}

/* Put the candidate where it belongs in a list of at most k, best first. */
static void
insert(MrcTop *list, int64_t *n, int64_t k, MrcTop candidate)
{
	int64_t i;

	if (*n == k && !mrc_top_before(candidate, list[k - 1]))
		return;
	i = *n < k ? (*n)++ : k - 1;
	for (; i > 0 && mrc_top_before(candidate, list[i - 1]); i--)
		list[i] = list[i - 1];
	list[i] = candidate;
}

static bool
is_relevant(const MrcOwn *own, int64_t user, int32_t row)
{
	int64_t lo = own->relevant.start[user];
	int64_t hi = own->relevant.start[user + 1];

	while (lo < hi)
	{
		int64_t middle = lo + (hi - lo) / 2;

		if (own->relevant.index[middle] == row)
			return true;
		if (own->relevant.index[middle] < row)
			lo = middle + 1;
		else
			hi = middle;
	}
	return false;
}

static double
ndcg(const MrcOwn *own, int64_t user, const MrcTop *list, int64_t n)
{
	int64_t n_relevant = own->relevant.start[user + 1] - own->relevant.start[user];
	double gain = 0;
	double ideal = 0;

	for (int64_t i = 0; i < n; i++)
		if (is_relevant(own, user, list[i].row))
			gain += 1 / log2((double) i + 2);
	for (int64_t i = 0; i < n_relevant && i < own->k; i++)
		ideal += 1 / log2((double) i + 2);
	return gain / ideal;
}

/* Add what each weight does for one user.  best: of what he does not have; score, raise: of what he has, by weight 1. */
static void
try_weights(const MrcOwn *own, int64_t user, const MrcTop *best, int64_t n_best, const float *score,
			const float *raise, MrcTop *list, double *sums)
{
	int64_t k = list_length(own);

	for (int w = 0; w < own->n_weights; w++)
	{
		int64_t n = n_best;

		memcpy(list, best, (size_t) n * sizeof(MrcTop));
		for (int64_t e = own->known.start[user]; e < own->known.start[user + 1]; e++)
			insert(list, &n, k, (MrcTop){score[e] + own->weight[w] * raise[e], own->known.index[e]});
		sums[w] += ndcg(own, user, list, n);
	}
}

typedef struct Run
{
	const MrcOwn *own;
	MrcIndex index;
} Run;

static MrcStatus
own_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const Run *run = arg;
	const MrcOwn *own = run->own;
	const MrcCsr *known = &own->known;
	int rank = own->params->rank;
	int64_t k = list_length(own);
	int64_t n_entries = known->start[known->n_rows];
	char *at = (char *) own->scratch + index_bytes(own);
	double *sums = (double *) take(&at, (size_t) n_blocks(own) * (size_t) own->n_weights * sizeof(double)) +
		lo / BLOCK_USERS * own->n_weights;
	float *score = take(&at, (size_t) n_entries * 2 * sizeof(float));
	float *raise = score + n_entries;
	int n = (int) (hi - lo);

	at += (size_t) worker * worker_bytes(own);

	float *users = take(&at, BLOCK_USERS * (size_t) rank * sizeof(float));
	MrcTop *best = take(&at, (size_t) (BLOCK_USERS + 1) * (size_t) k * sizeof(MrcTop));
	MrcSearch *searches = take(&at, BLOCK_USERS * sizeof(MrcSearch));
	const MrcIndex *index = &run->index;
	void *search_scratch = take(&at, mrc_search_many_scratch_bytes(index, k, 1));

	for (int i = 0; i < n; i++)
	{
		int64_t start = known->start[lo + i];
		float *user = users + (int64_t) i * rank;
		MrcSearch *search = &searches[i];

		*search = (MrcSearch){.user = user,
							  .k = k,
							  .skip = known->index + start,
							  .n_skip = known->start[lo + i + 1] - start,
							  .top = best + i * k};
		/* Of somebody whose equations have no solution only the boosts count. */
		if (mrc_fold(own->params, own->fold, own->items, known->n_cols, search->skip, own->rating + start,
					 search->n_skip, user, at) != MRC_OK)
			memset(user, 0, (size_t) rank * sizeof(float));
		for (int64_t e = start; e < start + search->n_skip; e++)
		{
			score[e] = mrc_dot(user, own->items + (int64_t) known->index[e] * rank, rank);
			raise[e] = mrc_own_boost(1, known->value[e], own->usual[known->index[e]]);
		}
	}
	mrc_search_group(index, searches, n, search_scratch);
	memset(sums, 0, (size_t) own->n_weights * sizeof(double));
	for (int i = 0; i < n; i++)
		try_weights(own, lo + i, best + (int64_t) i * k, searches[i].n_top, score, raise,
					best + BLOCK_USERS * k, sums);
	return MRC_OK;
}

MrcStatus
mrc_own_run(MrcOwn *own)
{
	const double *sums = (const double *) (const void *) ((const char *) own->scratch + index_bytes(own));
	int64_t n = own->known.n_rows;
	Run run = {.own = own};
	MrcStatus status = mrc_index_for(own->pool, &run.index, own->items, own->known.n_cols, own->params->rank,
									 n, own->scratch);

	if (status == MRC_OK)
		status = mrc_pool_run(own->pool, n, BLOCK_USERS, own_task, &run);

	for (int w = 0; w < own->n_weights; w++)
	{
		own->ndcg[w] = 0;
		for (int64_t i = 0; i * BLOCK_USERS < n && status == MRC_OK; i++)
			own->ndcg[w] += sums[i * own->n_weights + w] / (double) n;
	}
	return status;
}
