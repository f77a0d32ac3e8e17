/*
 * own.c: what users have, in lists that may repeat it.
 *
 * How an item's score is raised for who has it stands in core/own.c, and so does the measuring of weights.  Here events of
 * some users (MrRatings.events) become its input: each goes by a hash into one of two parts.  An event is a row of the
 * ratings where some pair has more than one; otherwise, if the values look like counts, it is a unit of a value.
 */
#include "model.h"

#include <float.h>
#include <math.h>

float
mr_own_weight(const MrModel *model, float weight)
{
	if (isnan(weight))
		weight = (float) model->als.own_history;
	return isnan(weight) ? 0 : weight;
}

void
mr_own_boost(const MrModel *model, float weight, const MrHistory *history, float *boost)
{
	weight = mr_own_weight(model, weight);
	for (int64 i = 0; i < history->n; i++)
		boost[i] = mrc_own_boost(weight, history->value[i], model->usual ? model->usual[history->row[i]] : 0);
}

float *
mr_own_boosts(MrBudget *budget, const MrRatings *ratings, const float *value, double weight)
{
	const MrcCsr *csr = &ratings->by_user;
	int64 n = csr->start[csr->n_rows];
	float *boost = mr_reserve(budget, n * sizeof(float) + 1);

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[row]; e < csr->start[row + 1]; e++)
			boost[e] = mrc_own_boost((float) weight, value[e], ratings->usual[csr->index[e]]);
	}
	return boost;
}

/* ---- choosing the weight ---- */

/* Weights that are compared: 0, then LEAST and as many times FACTOR. */
#define N_WEIGHTS 22
#define LEAST 0.02
#define FACTOR 1.35

#define TOLERANCE 0.005 /* of what the best weight gains */

#define MOST_K 100 /* length of the lists */

/* A value above this is divided in halves, not unit by unit. */
#define MOST_UNITS 1000

/* Two parts of what users did. */
typedef struct Parts
{
	MrcCsr
		known; /* in one part, values summed; users without any, or without something relevant, are left out */
	float *rating;	 /* of each entry of known: its value as it would be trained on */
	MrcCsr relevant; /* in the other */
} Parts;

/* Whether values are whole numbers, most often 1 and not always. */
static bool
are_counts(const MrcCsr *events)
{
	int64 n_of[33] = {0};
	int64 n = events->start[events->n_rows];
	bool any = false;

	for (int64 e = 0; e < n; e++)
	{
		float value = events->value[e];

		if (value != rintf(value) || value < 0)
			return false;
		any |= value > 1;
		if (value < lengthof(n_of))
			n_of[(int) value]++;
	}
	for (int i = 2; i < lengthof(n_of); i++)
		any &= n_of[i] <= n_of[1];
	return any;
}

/* A bit that decides to which part an event goes. */
static bool
goes_first(int64 user, int32 item, int64 n)
{
	uint64 hash =
		(uint64) user * UINT64CONST(0x9E3779B97F4A7C15) ^ (uint64) item * UINT64CONST(0xC2B2AE3D27D4EB4F);

	return mrc_hash64(&n, sizeof(n), hash) >> 63 != 0;
}

/* How much of the n-th event of an item goes to the first part. */
static double
first_part(double value, bool by_unit, int64 user, int32 item, int64 n)
{
	double first = 0;

	if (!by_unit)
		return goes_first(user, item, n) ? value : 0;
	if (value > MOST_UNITS)
		return rint(value / 2);
	for (int64 unit = 0; unit < (int64) value; unit++)
		first += goes_first(user, item, unit);
	return first;
}

static void
reserve_rows(MrBudget *budget, MrcCsr *csr, const MrcCsr *like)
{
	csr->n_rows = 0;
	csr->n_cols = like->n_cols;
	csr->start = mr_reserve(budget, (like->n_rows + 1) * sizeof(int64));
	csr->index = mr_reserve(budget, like->start[like->n_rows] * sizeof(int32) + 1);
	csr->value = NULL;
	csr->start[0] = 0;
}

static void
divide(MrBudget *budget, const MrcCsr *events, bool by_unit, MrTransform transform, Parts *parts)
{
	int64 n_known = 0;
	int64 n_relevant = 0;

	reserve_rows(budget, &parts->known, events);
	reserve_rows(budget, &parts->relevant, events);
	parts->known.value = mr_reserve(budget, events->start[events->n_rows] * sizeof(float) + 1);
	parts->rating = mr_reserve(budget, events->start[events->n_rows] * sizeof(float) + 1);
	for (int64 user = 0; user < events->n_rows; user++)
	{
		int64 before_known = n_known;
		int64 before_relevant = n_relevant;

		CHECK_FOR_INTERRUPTS();
		for (int64 e = events->start[user]; e < events->start[user + 1];)
		{
			int32 item = events->index[e];
			double first = 0;
			double all = 0;

			for (int64 n = 0; e < events->start[user + 1] && events->index[e] == item; n++, e++)
			{
				first += first_part(events->value[e], by_unit, user, item, n);
				all += events->value[e];
			}
			if (first > 0 && first <= FLT_MAX)
			{
				parts->known.index[n_known] = item;
				parts->known.value[n_known] = (float) first;
				parts->rating[n_known++] = transform == MR_TRANSFORM_BINARY ? 1
					: transform == MR_TRANSFORM_LOG1P						? (float) log1p(first)
																			: (float) first;
			}
			if (all > first)
				parts->relevant.index[n_relevant++] = item;
		}
		if (n_known == before_known || n_relevant == before_relevant)
		{
			n_known = before_known;
			n_relevant = before_relevant;
			continue;
		}
		parts->known.start[++parts->known.n_rows] = n_known;
		parts->relevant.start[++parts->relevant.n_rows] = n_relevant;
	}
}

/*
 * The least weight that gains as much as the best one, but for a little: beyond some weight lists hardly change, so that the
 * best is best by chance.
 */
static int
best_weight(const double *ndcg)
{
	double most = ndcg[0];
	int best = 0;

	for (int i = 1; i < N_WEIGHTS; i++)
		most = Max(most, ndcg[i]);
	while (ndcg[best] < most - (most - ndcg[0]) * TOLERANCE)
		best++;
	return best;
}

void
mr_own_choose(MrBudget *budget, MrcPool *pool, const MrAlsSettings *settings, const MrRatings *ratings,
			  const float *item, MrOwnChoice *chosen)
{
	const MrcCsr *events = &ratings->events;
	int rank = settings->core.rank;
	int n_threads = mrc_pool_size(pool);
	float weight[N_WEIGHTS] = {0};
	double ndcg[N_WEIGHTS];
	Parts parts;
	MrcOwn own = {.pool = pool,
				  .params = &settings->core,
				  .items = item,
				  .usual = ratings->usual,
				  .k = Min(settings->k, MOST_K),
				  .n_weights = N_WEIGHTS,
				  .weight = weight,
				  .ndcg = ndcg};
	void *fold;
	void *scratch;
	MrcStatus status;
	int best;

	*chosen = (MrOwnChoice){.ndcg = NAN, .without = NAN};
	if (!settings->core.implicit || events->start == NULL || events->n_rows == 0 ||
		!(ratings->repeats || are_counts(events)))
		return;
	divide(budget, events, !ratings->repeats, settings->transform, &parts);
	own.known = parts.known;
	own.rating = parts.rating;
	own.relevant = parts.relevant;
	for (int i = 1; i < N_WEIGHTS; i++)
		weight[i] = (float) (LEAST * pow(FACTOR, i - 1));
	fold = mr_reserve(budget, mrc_fold_shared_bytes(rank));
	scratch = mr_reserve(
		budget, Max(mrc_fold_prepare_scratch_bytes(rank, n_threads), mrc_own_scratch_bytes(&own, n_threads)));
	own.fold = fold;
	own.scratch = scratch;
	status = mrc_fold_prepare(pool, &settings->core, item, ratings->items.n, fold, scratch);
	if (status == MRC_OK && own.known.n_rows > 0)
		status = mrc_own_run(&own);
	if (status == MRC_OK && own.known.n_rows > 0)
	{
		best = best_weight(ndcg);
		*chosen = (MrOwnChoice){weight[best], own.known.n_rows, ndcg[best], ndcg[0]};
		/* The number that people would write. */
		chosen->weight = rint(chosen->weight * 1000) / 1000;
	}
	mr_release(budget, fold);
	mr_release(budget, scratch);
	mr_release(budget, parts.rating);
	mr_release(budget, parts.known.start);
	mr_release(budget, parts.known.index);
	mr_release(budget, parts.known.value);
	mr_release(budget, parts.relevant.start);
	mr_release(budget, parts.relevant.index);
}

Size
mr_own_choose_bytes(const MrAlsSettings *settings, const MrRatings *ratings, int n_threads)
{
	const MrcCsr *events = &ratings->events;
	int rank = settings->core.rank;
	MrcOwn own = {
		.params = &settings->core, .known = *events, .k = Min(settings->k, MOST_K), .n_weights = N_WEIGHTS};

	if (!settings->core.implicit || events->start == NULL)
		return 0;
	return 2 * (events->n_rows + 1) * sizeof(int64) + events->start[events->n_rows] * 4 * sizeof(float) +
		1024 + mrc_fold_shared_bytes(rank) +
		Max(mrc_fold_prepare_scratch_bytes(rank, n_threads), mrc_own_scratch_bytes(&own, n_threads));
}
