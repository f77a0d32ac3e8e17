/*
 * similar.c: what is like what, and why: similar_items, similar_users, predict, explain.
 *
 * A user is taken as recommend_top_k takes him: folded in from the rows he has now if the model does not know him or if
 * they are newer.
 */
#include "model.h"

#include "catalog/pg_proc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(mr_similar_items);
PG_FUNCTION_INFO_V1(mr_similar_users);
PG_FUNCTION_INFO_V1(mr_predict);
PG_FUNCTION_INFO_V1(mr_explain);

static Oid
declared_type(Oid function, int n)
{
	HeapTuple tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Oid type;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	type = ((Form_pg_proc) GETSTRUCT(tuple))->proargtypes.values[n];
	ReleaseSysCache(tuple);
	return type;
}

/* An id, of the type that the function is declared with; false: it is NULL. */
static bool
key_arg(FunctionCallInfo fcinfo, int n, MrKey *key)
{
	if (PG_ARGISNULL(n))
		return false;
	if (declared_type(fcinfo->flinfo->fn_oid, n) == INT8OID)
		*key = (MrKey){.value = PG_GETARG_INT64(n)};
	else
		*key = mr_key_from_text(PG_GETARG_TEXT_PP(n));
	return true;
}

static void *
aligned(Size n_bytes)
{
	return (void *) TYPEALIGN(64, (uintptr_t) MemoryContextAllocHuge(CurrentMemoryContext, n_bytes + 64));
}

/* ---- similar ---- */

/* The k rows whose cosine with the factor is greatest, but for the row itself (-1: it is not among them). */
static void
put_similar(ReturnSetInfo *rsinfo, const MrcIndex *index, const MrIds *ids, const float *factor, int64 row,
			int64 k, const int32 *only, int64 n_only)
{
	int32 skip = (int32) row;
	MrcSearch search = {.user = factor,
						.k = Min(k, index->n_items),
						.skip = &skip,
						.n_skip = row >= 0,
						.only = only,
						.n_only = n_only};

	if (search.k == 0)
		return;
	search.top = MemoryContextAllocHuge(CurrentMemoryContext, search.k * sizeof(MrcTop));
	mrc_similar(index, &search, aligned(mrc_search_scratch_bytes(index, search.k)));
	for (int64 i = 0; i < search.n_top; i++)
	{
		MrKey key = mr_ids_key(ids, search.top[i].row);
		Datum values[4] = {Int32GetDatum((int32) (i + 1)), Int64GetDatum(key.value), mr_key_datum(&key),
						   Float4GetDatum(search.top[i].score)};
		bool nulls[4] = {false, key.text, false, false};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

Datum
mr_similar_items(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	int64 k = mr_k_arg(fcinfo, 2);
	MrWish wish = {0};
	MrModel *model;
	MrKey item;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	model = mr_model_open(name);
	if (!PG_ARGISNULL(3))
		mr_candidates(fcinfo, model, mr_name_arg(fcinfo, 3, "candidates"), &wish);
	if (key_arg(fcinfo, 1, &item))
	{
		int64 row = mr_ids_find(&model->items.ids, &item);

		if (row >= 0)
			put_similar((ReturnSetInfo *) fcinfo->resultinfo, &model->index, &model->items.ids,
						model->items.factors + row * model->items.rank, row, k, wish.only, wish.n_only);
	}
	SPI_finish();
	PG_RETURN_NULL();
}

Datum
mr_similar_users(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	int64 k = mr_k_arg(fcinfo, 2);
	bool fold_in = mr_bool_arg(fcinfo, 3, "fold_in");
	MrModel *model;
	MrKey user;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	model = mr_model_open(name);
	if (key_arg(fcinfo, 1, &user))
	{
		const MrSide *users = &model->users;
		MrListSource source;
		MrHistory history;
		const float *factor = mr_user_factor(model, &user, fold_in, &source, &history);
		MrcIndex index;

		/* Nobody asks for this a thousand times a second: all users are looked at. */
		mrc_index_open(&index, users->factors, users->ids.n, users->rank, NULL);
		if (factor)
			put_similar((ReturnSetInfo *) fcinfo->resultinfo, &index, &users->ids, factor,
						mr_ids_find(&users->ids, &user), k, NULL, 0);
	}
	SPI_finish();
	PG_RETURN_NULL();
}

/* ---- one pair ---- */

Datum
mr_predict(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	bool fold_in = mr_bool_arg(fcinfo, 3, "fold_in");
	bool known = false;
	float score = 0;
	MrModel *model;
	MrKey user;
	MrKey item;

	SPI_connect();
	model = mr_model_open(name);
	if (key_arg(fcinfo, 1, &user) && key_arg(fcinfo, 2, &item))
	{
		int64 row = mr_ids_find(&model->items.ids, &item);
		MrListSource source;
		MrHistory history;
		const float *factor = row < 0 ? NULL : mr_user_factor(model, &user, fold_in, &source, &history);

		known = factor != NULL;
		if (known)
			score = mrc_dot(factor, model->items.factors + row * model->items.rank, model->items.rank);
	}
	SPI_finish();
	if (!known)
		PG_RETURN_NULL();
	PG_RETURN_FLOAT4(score);
}

/* What one of a user's items does for a score. */
typedef struct Part
{
	int32 row;
	float value;
	float contribution;
} Part;

/* The greatest contribution first; equal ones in the order of items. */
static int
compare_parts(const void *a, const void *b)
{
	const Part *part_a = a;
	const Part *part_b = b;

	if (part_a->contribution != part_b->contribution)
		return part_a->contribution > part_b->contribution ? -1 : 1;
	return (part_a->row > part_b->row) - (part_a->row < part_b->row);
}

static void
put_parts(ReturnSetInfo *rsinfo, const MrIds *ids, const Part *parts, int64 n)
{
	for (int64 i = 0; i < n; i++)
	{
		MrKey key = mr_ids_key(ids, parts[i].row);
		Datum values[5] = {Int32GetDatum((int32) (i + 1)), Int64GetDatum(key.value), mr_key_datum(&key),
						   Float4GetDatum(parts[i].value), Float4GetDatum(parts[i].contribution)};
		bool nulls[5] = {false, key.text, false, false, false};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
}

/* The contributions of what a user has to the score of an item, which they sum to. */
static void
explain(ReturnSetInfo *rsinfo, MrModel *model, const MrKey *user, int64 item)
{
	const MrcAlsParams *params = &model->als.core;
	MrHistory history;
	MrHistory ratings;
	float *contributions;
	Part *parts;

	mr_history_read(model, user, 1, &history);
	mr_history_ratings(model, &history, &ratings);
	if (ratings.n == 0)
		return;
	contributions = palloc(ratings.n * sizeof(float));
	if (mrc_fold_explain(params, model->fold, model->items.factors, model->items.ids.n, ratings.row,
						 ratings.value, ratings.n, (int32) item, contributions,
						 aligned(mrc_fold_scratch_bytes(params))) != MRC_OK)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("what user \"%s\" has determines no factors", mr_key_cstring(user)),
				 errhint("Train model \"%s\" with a greater regularization.", model->name)));
	parts = palloc(ratings.n * sizeof(Part));
	for (int64 i = 0; i < ratings.n; i++)
		parts[i] = (Part){ratings.row[i], ratings.value[i], contributions[i]};
	qsort(parts, ratings.n, sizeof(Part), compare_parts);
	put_parts(rsinfo, &model->items.ids, parts, ratings.n);
}

Datum
mr_explain(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrModel *model;
	MrKey user;
	MrKey item;

	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	model = mr_model_open(name);
	if (model->query == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no ratings to explain a score by", name),
				 errdetail("It was imported without ratings.")));
	if (model->fold == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("nobody can be folded into model \"%s\"", name),
				 errdetail("Its factors are too large.")));
	if (key_arg(fcinfo, 1, &user) && key_arg(fcinfo, 2, &item))
	{
		int64 row = mr_ids_find(&model->items.ids, &item);

		if (row >= 0)
			explain((ReturnSetInfo *) fcinfo->resultinfo, model, &user, row);
	}
	SPI_finish();
	PG_RETURN_NULL();
}
