/*
 * bulk.c: what all users have, in one pass over the ratings.
 *
 * For lists for a great part of the users, where the ratings are not kept by user: reading them once and arranging them on
 * threads costs a fraction of looking each user up.  Their items become the model's in place.
 */
#include "model.h"

#define BYTES_PER_ROW 40 /* at most, while they are arranged */

struct MrEverybody
{
	MemoryContext context; /* of all this */
	MrRatings *ratings;	   /* items as rows of the model's, ascending; unknown ones are gone */
	uint64 *item_hashes;
};

/* The rows that the planner expects of the model's ratings; the caller has become its owner. */
static double
expected_rows(MrPlan *plan, const char *query)
{
	SPIPlanPtr prepared = mr_prepare(&plan->plan, query, 0, NULL);
	CachedPlan *cached = SPI_plan_get_cached_plan(prepared);
	double n;

	if (cached == NULL)
		elog(ERROR, "the ratings cannot be planned");
	n = linitial_node(PlannedStmt, cached->stmt_list)->planTree->plan_rows;
	ReleaseCachedPlan(cached, CurrentResourceOwner);
	return n;
}

/* Number the items as the model does, and close the gaps of those it does not know. */
static void
renumber(MrRatings *ratings, const MrIds *items)
{
	MrcCsr *csr = &ratings->by_user;
	int32 *row_of = MemoryContextAllocHuge(CurrentMemoryContext, (ratings->items.n + 1) * sizeof(int32));
	int64 out = 0;

	for (int64 i = 0; i < ratings->items.n; i++)
	{
		MrKey key = mr_ids_key(&ratings->items, i);

		row_of[i] = (int32) mr_ids_find(items, &key);
	}
	for (int64 user = 0; user < csr->n_rows; user++)
	{
		int64 start = out;

		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[user]; e < csr->start[user + 1]; e++)
		{
			int32 row = row_of[csr->index[e]];

			if (row < 0)
				continue;
			csr->index[out] = row;
			csr->value[out++] = csr->value[e];
		}
		csr->start[user] = start;
		mr_sort_row(csr->index + start, csr->value + start, out - start);
	}
	csr->start[csr->n_rows] = out;
	pfree(row_of);
}

MrEverybody *
mr_everybody_read(MrModel *model, int n_threads)
{
	MrBudget *budget = mr_budget_create("what users have");
	MrEverybody *everybody = MemoryContextAllocZero(budget->context, sizeof(MrEverybody));
	MrPlan *plan = MemoryContextAllocZero(budget->context, sizeof(MrPlan));
	int64 n_items = model->items.ids.n;
	MrGuard guard;
	bool is_good;

	mr_plan_init(plan, budget->context);
	everybody->context = budget->context;
	mr_model_enter(&guard, model);
	is_good = expected_rows(plan, model->query) * BYTES_PER_ROW < (double) mr_max_memory_kb * 1024;
	if (is_good)
		everybody->ratings =
			mr_ratings_read(budget, model->query, "ratings", true, MR_VALUES_LIVE, true, n_threads);
	mr_leave(&guard);
	if (!is_good)
	{
		MemoryContextDelete(budget->context);
		return NULL;
	}
	renumber(everybody->ratings, &model->items.ids);
	everybody->item_hashes = mr_reserve(budget, (n_items + 1) * sizeof(uint64));
	for (int64 i = 0; i < n_items; i++)
	{
		MrKey key = mr_ids_key(&model->items.ids, i);

		everybody->item_hashes[i] = mr_history_hash(&key);
	}
	return everybody;
}

MemoryContext
mr_everybody_context(const MrEverybody *everybody)
{
	return everybody->context;
}

void
mr_everybody_get(const MrEverybody *everybody, const MrKey *user, MrHistory *history)
{
	const MrcCsr *csr = &everybody->ratings->by_user;
	/* A text without bytes is nobody. */
	int64 row = user->text && user->n_bytes == 0 ? -1 : mr_ids_find(&everybody->ratings->users, user);

	*history = (MrHistory){0};
	if (row < 0)
		return;
	history->row = csr->index + csr->start[row];
	history->value = csr->value + csr->start[row];
	history->n = csr->start[row + 1] - csr->start[row];
	history->fingerprint = mr_history_fingerprint(history, everybody->item_hashes);
}
