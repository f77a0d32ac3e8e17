/*
 * recommend.c: millrace.recommend_top_k.
 *
 * Scores every item for the user and keeps the best k (core/topk.c); a user whom the model does not know gets the
 * baseline by the same code: factors of rank 1 times 1.  What the user already has is read live, as the model's owner,
 * by the model's own ratings query restricted to the user; that plan is kept with the open model.
 */
#include "model.h"

PG_FUNCTION_INFO_V1(mr_recommend_bigint);
PG_FUNCTION_INFO_V1(mr_recommend_text);

typedef struct Rows
{
	int32 *rows;
	int64 n;
} Rows;

/*
 * The plan that reads the items of user $1; the caller has become the model's owner.  The query's own plan comes first:
 * it locks the relations and tells whether the columns have changed.
 */
static SPIPlanPtr
seen_plan(MrModel *model)
{
	MrShape shape = mr_ratings_shape(mr_prepare(&model->shape_plan.plan, model->query, 0, NULL), "ratings");
	Oid type = shape.user_text ? TEXTOID : INT8OID;

	if (model->seen_plan.plan &&
		(shape.user_text != model->seen_shape.user_text || shape.item_text != model->seen_shape.item_text ||
		 shape.n_columns != model->seen_shape.n_columns))
	{
		SPI_freeplan(model->seen_plan.plan);
		model->seen_plan.plan = NULL;
	}
	model->seen_shape = shape;
	return mr_prepare(&model->seen_plan.plan,
					  mr_ratings_select(&shape,
										shape.item_text ? "q.i::pg_catalog.text" : "q.i::pg_catalog.int8",
										model->query, "WHERE q.u OPERATOR(pg_catalog.=) $1"),
					  1, &type);
}

/* Items of the current SPI result as rows of a list, ascending; those that the list does not have are left out. */
static Rows
rows_of_result(const MrIds *ids)
{
	Rows seen = {MemoryContextAllocHuge(CurrentMemoryContext, SPI_processed * sizeof(int32) + 1), 0};
	TupleDesc desc = SPI_tuptable->tupdesc;
	bool is_text = TupleDescAttr(desc, 0)->atttypid == TEXTOID;

	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool null;
		Datum item = SPI_getbinval(SPI_tuptable->vals[i], desc, 1, &null);
		MrKey key;
		int64 row;

		if (null)
			continue;
		key = is_text ? mr_key_from_text(DatumGetTextPP(item)) : (MrKey){.value = DatumGetInt64(item)};
		row = mr_ids_find(ids, &key);
		if (row >= 0)
			seen.rows[seen.n++] = (int32) row;
	}
	qsort(seen.rows, seen.n, sizeof(int32), mr_compare_rows);
	return seen;
}

static void
seen_context(void *arg)
{
	errcontext("reading what a user already has, by the ratings of model \"%s\"", ((MrModel *) arg)->name);
}

/* Rows of ids that the user already has. */
static Rows
read_seen(MrModel *model, const MrKey *user, const MrIds *ids)
{
	ErrorContextCallback callback = {error_context_stack, seen_context, model};
	char space[MR_KEY_SPACE];
	SPIPlanPtr plan;
	MrKey key;
	Rows seen = {NULL, 0};
	MrGuard guard;

	error_context_stack = &callback;
	mr_model_enter(&guard, model);
	plan = seen_plan(model);
	if (mr_key_convert(user, SPI_getargtypeid(plan, 0) == TEXTOID, &key, space))
	{
		Datum value = key.text ? PointerGetDatum(cstring_to_text_with_len(key.bytes, key.n_bytes))
							   : Int64GetDatum(key.value);

		if (SPI_execute_plan(plan, &value, NULL, true, 0) != SPI_OK_SELECT)
			elog(ERROR, "the items of a user cannot be read");
		seen = rows_of_result(ids);
		SPI_freetuptable(SPI_tuptable);
	}
	mr_leave(&guard);
	error_context_stack = callback.previous;
	return seen;
}

static void
put_rows(ReturnSetInfo *rsinfo, const MrIds *ids, const MrcTop *top, int64 n_top, const char *source)
{
	MemoryContext row_context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace row", ALLOCSET_DEFAULT_SIZES);
	Datum source_text = CStringGetTextDatum(source);

	for (int64 i = 0; i < n_top; i++)
	{
		MemoryContext before = MemoryContextSwitchTo(row_context);
		MrKey key = mr_ids_key(ids, top[i].row);
		Datum values[5] = {Int32GetDatum((int32) (i + 1)), Int64GetDatum(key.value),
						   CStringGetTextDatum(mr_key_cstring(&key)), Float4GetDatum(top[i].score),
						   source_text};
		bool nulls[5] = {false, ids->text, false, false, false};

		CHECK_FOR_INTERRUPTS();
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		MemoryContextSwitchTo(before);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
}

static void
recommend(ReturnSetInfo *rsinfo, MrModel *model, const MrKey *user, int64 k, bool exclude_seen)
{
	static const float one = 1;
	int64 user_row = user ? mr_model_user(model, user) : -1;
	bool known = user_row >= 0;
	const MrSide *list = known ? &model->items : &model->baseline;
	const float *factors = known ? model->users.factors + user_row * model->users.rank : &one;
	Rows seen = {NULL, 0};
	const int32 *skip;
	MrcTop *top;
	int64 n_top;

	if (exclude_seen && user && model->query)
		seen = read_seen(model, user, &list->ids);
	skip = seen.rows;
	k = Min(k, list->ids.n);
	if (k == 0)
		return;
	top = MemoryContextAllocHuge(CurrentMemoryContext, k * sizeof(MrcTop));
	mrc_topk(factors, 1, list->factors, list->ids.n, list->rank, &skip, &seen.n, k, top, &n_top,
			 palloc(mrc_topk_scratch_bytes(1, list->rank)));
	put_rows(rsinfo, &list->ids, top, n_top, known ? "model" : "baseline");
}

/* user: NULL for nobody, who gets the baseline. */
static void
recommend_to(FunctionCallInfo fcinfo, const MrKey *user)
{
	char *name = mr_name_arg(fcinfo, 0, "model");

	if (PG_ARGISNULL(2) || PG_GETARG_INT32(2) <= 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("k must be at least 1")));
	if (PG_ARGISNULL(3))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("exclude_seen must not be NULL")));
	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	recommend((ReturnSetInfo *) fcinfo->resultinfo, mr_model_open(name), user, PG_GETARG_INT32(2),
			  PG_GETARG_BOOL(3));
	SPI_finish();
}

Datum
mr_recommend_bigint(PG_FUNCTION_ARGS)
{
	MrKey user = {.text = false};

	if (!PG_ARGISNULL(1))
		user.value = PG_GETARG_INT64(1);
	recommend_to(fcinfo, PG_ARGISNULL(1) ? NULL : &user);
	PG_RETURN_NULL();
}

Datum
mr_recommend_text(PG_FUNCTION_ARGS)
{
	MrKey user = {.text = true};

	if (!PG_ARGISNULL(1))
		user = mr_key_from_text(PG_GETARG_TEXT_PP(1));
	recommend_to(fcinfo, PG_ARGISNULL(1) ? NULL : &user);
	PG_RETURN_NULL();
}
