/*
 * indexer.c: millrace.fit_indexer, index_of, index_size: numbers for the values of a column, the most frequent first.
 */
#include "model.h"

#include "tcop/utility.h"

Datum
mr_indexer_retrain(FunctionCallInfo fcinfo)
{
	ereport(ERROR, (errcode(ERRCODE_FEATURE_NOT_SUPPORTED), errmsg("retrain of indexer is not there yet")));
}
