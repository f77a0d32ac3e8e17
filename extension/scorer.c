/*
 * scorer.c: streams that recommend: for each row of a batch a list for its user, in the same transaction.
 */
#include "model.h"

MrScorer *
mr_scorer_plan(const char *arguments, Oid target, Oid relid, MemoryContext keep, List **depends)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("scorers are not there yet")));
}

void
mr_scorer_lock(const MrScorer *scorer)
{
}

uint64
mr_scorer_run(MrScorer *scorer, Tuplestorestate *rows, MrScoreCounts *counts)
{
	return 0;
}

void
mr_score_counts_add(MrScoreCounts *sum, const MrScoreCounts *counts)
{
	sum->n_users += counts->n_users;
	sum->own += counts->own;
	sum->n_judged += counts->n_judged;
	sum->next += counts->next;
}
