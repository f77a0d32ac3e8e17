/*
 * own.c: what a user has, in lists that may repeat it.
 *
 * The factors tell little of how often somebody buys again what he buys: they are few, and their scores go towards 1 for
 * everything that he has.  So an item that he has gets a boost on top, weight * log(1 + value).
 */
#include "model.h"

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
		boost[i] = history->value[i] > 0 ? weight * log1pf(history->value[i]) : 0;
}
