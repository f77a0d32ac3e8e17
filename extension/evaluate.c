/*
 * evaluate.c: millrace.evaluate and millrace.split.
 *
 * The test query is the caller's and runs with his rights; what users have already is read by the model's ratings
 * query as the model's owner.  Both become compressed rows in the model's numbering, and core ranks all users at once
 * on threads.
 */
#include "model.h"

#include <float.h>
#include <math.h>

PG_FUNCTION_INFO_V1(mr_evaluate);
PG_FUNCTION_INFO_V1(mr_split);

typedef struct Evaluation
{
	MrBudget *budget;
	MrModel *model;
	const MrSide *list; /* items or baseline */
	int32 *row_of_user; /* users of the model: row of the evaluation, or -1 */
	MrcRanking ranking;
	MrcError error; /* of explicit feedback */
	bool with_rmse;
	int64 n_unknown_users;
	int64 n_unknown_items;
} Evaluation;

/* Rows in `to` of all ids of `from`, -1 for those it does not have. */
static int32 *
map_ids(MrBudget *budget, const MrIds *from, const MrIds *to, int64 *n_unknown)
{
	int32 *rows = mr_reserve(budget, (from->n + 1) * sizeof(int32));

	*n_unknown = 0;
	for (int64 i = 0; i < from->n; i++)
	{
		MrKey key = mr_ids_key(from, i);

		CHECK_FOR_INTERRUPTS();
		rows[i] = (int32) mr_ids_find(to, &key);
		*n_unknown += rows[i] < 0;
	}
	return rows;
}

/*
 * Items that the list does not have, but the test has, are numbered after those of the list: they cannot be recommended,
 * but are relevant unless the user has them already.  items: the test's, -1 where the list does not have them.
 */
static void
number_foreign(const Evaluation *evaluation, int32 *items, int64 n_items)
{
	if (evaluation->list->ids.n + n_items > INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many distinct ids")));
	for (int64 i = 0; i < n_items; i++)
		if (items[i] < 0)
			items[i] = (int32) (evaluation->list->ids.n + i);
}

/*
 * Ratings in the evaluation's numbering.  user_row: row of each of their users in the result, or -1; item_row likewise.
 * Rows of the result come out ascending.
 */
static void
renumber(Evaluation *evaluation, const MrRatings *ratings, const int32 *user_row, const int32 *item_row,
		 int64 n_rows, MrcCsr *result)
{
	const MrcCsr *csr = &ratings->by_user;
	int64 *length = mr_reserve(evaluation->budget, (n_rows + 1) * sizeof(int64));
	int64 sum = 0;

	memset(length, 0, (n_rows + 1) * sizeof(int64));
	for (int64 user = 0; user < csr->n_rows; user++)
		if (user_row[user] >= 0)
			length[user_row[user]] += csr->start[user + 1] - csr->start[user];
	result->n_rows = n_rows;
	result->n_cols = evaluation->list->ids.n;
	result->start = mr_reserve(evaluation->budget, (n_rows + 1) * sizeof(int64));
	for (int64 row = 0; row < n_rows; row++)
	{
		result->start[row] = sum;
		sum += length[row];
	}
	result->start[n_rows] = sum;
	result->index = mr_reserve(evaluation->budget, sum * sizeof(int32));
	memset(length, 0, (n_rows + 1) * sizeof(int64));
	for (int64 user = 0; user < csr->n_rows; user++)
	{
		int32 row = user_row[user];

		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[user]; e < csr->start[user + 1] && row >= 0; e++)
		{
			int32 item = item_row[csr->index[e]];

			if (csr->value[e] > 0 && item >= 0)
				result->index[result->start[row] + length[row]++] = item;
		}
	}

	/* Sort (foreign items break the order of ids) and close the gaps. */
	int64 out = 0;

	for (int64 row = 0; row < n_rows; row++)
	{
		int32 *items = result->index + result->start[row];

		CHECK_FOR_INTERRUPTS();
		qsort(items, length[row], sizeof(int32), mr_compare_rows);
		memmove(result->index + out, items, length[row] * sizeof(int32));
		result->start[row] = out;
		out += length[row];
	}
	result->start[n_rows] = out;
	mr_release(evaluation->budget, length);
}

/* Drop from `relevant` what is in `seen`, count what is left into n_relevant, and drop foreign items from both. */
static void
subtract_seen(MrcCsr *relevant, MrcCsr *seen, int64 *n_relevant)
{
	int64 n_items = relevant->n_cols;
	int64 out = 0;
	int64 seen_out = 0;

	for (int64 row = 0; row < relevant->n_rows; row++)
	{
		int64 e = relevant->start[row];
		int64 s = seen->start[row];
		int64 seen_end = seen->start[row + 1];

		CHECK_FOR_INTERRUPTS();
		relevant->start[row] = out;
		seen->start[row] = seen_out;
		n_relevant[row] = 0;
		for (; e < relevant->start[row + 1]; e++)
		{
			int32 item = relevant->index[e];

			for (; s < seen_end && seen->index[s] < item; s++)
				if (seen->index[s] < n_items)
					seen->index[seen_out++] = seen->index[s];
			if (s < seen_end && seen->index[s] == item)
				continue;
			n_relevant[row]++;
			if (item < n_items)
				relevant->index[out++] = item;
		}
		for (; s < seen_end; s++)
			if (seen->index[s] < n_items)
				seen->index[seen_out++] = seen->index[s];
	}
	relevant->start[relevant->n_rows] = out;
	seen->start[relevant->n_rows] = seen_out;
}

/* Keep only rows in which something is relevant. */
static void
drop_empty_rows(MrcRanking *ranking, int32 *user_row, int64 *n_relevant)
{
	MrcCsr *relevant = &ranking->relevant;
	MrcCsr *seen = &ranking->seen;
	int64 n = 0;
	int64 n_relevant_entries = 0;
	int64 n_seen_entries = 0;

	for (int64 row = 0; row < ranking->n_rows; row++)
	{
		int64 start = relevant->start[row];
		int64 n_entries = relevant->start[row + 1] - start;
		int64 seen_start = seen->start[row];
		int64 n_seen = seen->start[row + 1] - seen_start;

		if (n_relevant[row] == 0)
			continue;
		memmove(relevant->index + n_relevant_entries, relevant->index + start, n_entries * sizeof(int32));
		memmove(seen->index + n_seen_entries, seen->index + seen_start, n_seen * sizeof(int32));
		relevant->start[n] = n_relevant_entries;
		seen->start[n] = n_seen_entries;
		n_relevant_entries += n_entries;
		n_seen_entries += n_seen;
		user_row[n] = user_row[row];
		n_relevant[n] = n_relevant[row];
		n++;
	}
	relevant->start[n] = n_relevant_entries;
	seen->start[n] = n_seen_entries;
	ranking->n_rows = relevant->n_rows = seen->n_rows = n;
}

/* Number the users that are both in the test and in the model; returns each test user's row, or -1. */
static int32 *
number_users(Evaluation *evaluation, const MrIds *test_users, int32 **user_row)
{
	const MrIds *users = &evaluation->model->users.ids;
	int32 *rows = mr_reserve(evaluation->budget, (test_users->n + 1) * sizeof(int32));
	int64 n = 0;

	*user_row = mr_reserve(evaluation->budget, (test_users->n + 1) * sizeof(int32));
	evaluation->row_of_user = mr_reserve(evaluation->budget, (users->n + 1) * sizeof(int32));
	memset(evaluation->row_of_user, -1, (users->n + 1) * sizeof(int32));
	for (int64 i = 0; i < test_users->n; i++)
	{
		MrKey key = mr_ids_key(test_users, i);

		CHECK_FOR_INTERRUPTS();
		rows[i] = (int32) mr_model_user(evaluation->model, &key);
		if (rows[i] < 0)
		{
			evaluation->n_unknown_users++;
			continue;
		}
		evaluation->row_of_user[rows[i]] = (int32) n;
		(*user_row)[n] = rows[i];
		rows[i] = (int32) n++;
	}
	evaluation->ranking.n_rows = n;
	return rows;
}

/* What the users of the evaluation already have.  test_items, test_item: the test's items and their numbers. */
static void
read_seen(Evaluation *evaluation, const MrIds *test_items, const int32 *test_item, MrcCsr *seen)
{
	MrModel *model = evaluation->model;
	MrRatings *ratings;
	int32 *users;
	int32 *items;
	int64 n_unknown;
	MrGuard guard;

	mr_model_enter(&guard, model);
	ratings = mr_ratings_read(evaluation->budget, model->query, "ratings", true, MR_VALUES_IGNORED, true, 0);
	mr_leave(&guard);
	users = map_ids(evaluation->budget, &ratings->users, &model->users.ids, &n_unknown);
	for (int64 i = 0; i < ratings->users.n; i++)
		if (users[i] >= 0)
			users[i] = evaluation->row_of_user[users[i]];
	items = map_ids(evaluation->budget, &ratings->items, &evaluation->list->ids, &n_unknown);
	for (int64 i = 0; i < ratings->items.n; i++)
		if (items[i] < 0)
		{
			MrKey key = mr_ids_key(&ratings->items, i);
			int64 row = mr_ids_find(test_items, &key);

			CHECK_FOR_INTERRUPTS();
			if (row >= 0)
				items[i] = test_item[row];
		}
	renumber(evaluation, ratings, users, items, evaluation->ranking.n_rows, seen);
	mr_csr_release(evaluation->budget, &ratings->by_user);
}

/* What the ratings' users have of the model's items, and in place of the values what these raise the scores by. */
static void
raise_own(const MrModel *model, float weight, const int32 *items, MrcCsr *csr)
{
	int64 n = 0;
	int64 e = 0;

	csr->n_cols = model->items.ids.n;
	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 start = n;
		int64 end = csr->start[row + 1];
		MrHistory own;

		CHECK_FOR_INTERRUPTS();
		for (; e < end; e++)
			if (items[csr->index[e]] >= 0)
			{
				csr->value[n] = csr->value[e];
				csr->index[n++] = items[csr->index[e]];
			}
		csr->start[row] = start;
		mr_sort_row(csr->index + start, csr->value + start, n - start);
		own = (MrHistory){.n = n - start, .row = csr->index + start, .value = csr->value + start};
		mr_own_boost(model, weight, &own, own.value);
	}
	csr->start[csr->n_rows] = n;
}

/* Raise what the users of the evaluation have, as lists that may repeat it do. */
static void
read_own(Evaluation *evaluation, float weight)
{
	MrBudget *budget = evaluation->budget;
	MrModel *model = evaluation->model;
	MrcRanking *ranking = &evaluation->ranking;
	int32 *seen_row = mr_reserve(budget, (ranking->n_rows + 1) * sizeof(int32));
	MrRatings *ratings;
	MrcCsr *csr;
	int32 *users;
	int64 n_unknown;
	MrGuard guard;

	mr_model_enter(&guard, model);
	ratings = mr_ratings_read(budget, model->query, "ratings", true, MR_VALUES_ANY, true, 0);
	mr_leave(&guard);
	csr = &ratings->by_user;
	raise_own(model, weight, map_ids(budget, &ratings->items, &model->items.ids, &n_unknown), csr);
	users = map_ids(budget, &ratings->users, &model->users.ids, &n_unknown);
	memset(evaluation->row_of_user, -1, (model->users.ids.n + 1) * sizeof(int32));
	for (int64 i = 0; i < ratings->users.n; i++)
		if (users[i] >= 0)
			evaluation->row_of_user[users[i]] = (int32) i;
	ranking->seen = *csr;
	/* Who has nothing any more: a row without entries. */
	ranking->seen.start = mr_reserve(budget, (csr->n_rows + 2) * sizeof(int64));
	memcpy(ranking->seen.start, csr->start, (csr->n_rows + 1) * sizeof(int64));
	ranking->seen.start[csr->n_rows + 1] = csr->start[csr->n_rows];
	for (int64 i = 0; i < ranking->n_rows; i++)
	{
		int32 row = evaluation->row_of_user[ranking->user_row[i]];

		seen_row[i] = row >= 0 ? row : (int32) csr->n_rows;
	}
	ranking->seen_row = seen_row;
}

/* Whether the model was trained on explicit feedback, whose values it predicts as the transform made them. */
static bool
is_explicit(const MrModel *model, MrTransform *transform)
{
	Oid types[1] = {UUIDOID};
	Datum values[1] = {UUIDPGetDatum(&model->uuid)};
	MrGuard guard;
	bool found;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT coalesce(parameters->>'value_transform', 'none') FROM millrace.model_version WHERE "
				 "uuid = $1 AND parameters @> '{\"implicit\": false}'",
				 SPI_OK_SELECT, true, 1, types, values, NULL);
	found = SPI_processed > 0;
	if (found)
		*transform = mr_transform_named(SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1));
	mr_leave(&guard);
	return found;
}

/*
 * Leave in the ratings, in place, the pairs whose user and item the model knows, items in its numbering: what RMSE is of.
 * items: the test's, numbers above those of the model's are foreign.
 */
static void
prepare_error(Evaluation *evaluation, MrRatings *ratings, const int32 *items)
{
	const MrModel *model = evaluation->model;
	MrcCsr *csr = &ratings->by_user;
	int64 n_unknown;
	int32 *users = map_ids(evaluation->budget, &ratings->users, &model->users.ids, &n_unknown);
	int64 n = 0;
	int64 e = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 end = csr->start[row + 1];

		CHECK_FOR_INTERRUPTS();
		csr->start[row] = n;
		for (; e < end; e++)
			if (users[row] >= 0 && items[csr->index[e]] < model->items.ids.n)
			{
				csr->value[n] = csr->value[e];
				csr->index[n++] = items[csr->index[e]];
			}
	}
	csr->start[csr->n_rows] = n;
	evaluation->error =
		(MrcError){.ratings = *csr,
				   .user_row = users,
				   .users = model->users.factors,
				   .items = model->items.factors,
				   .rank = model->items.rank,
				   .scratch = mr_reserve(evaluation->budget, mrc_error_scratch_bytes(csr->n_rows))};
	evaluation->with_rmse = n > 0;
}

static void
prepare(Evaluation *evaluation, const char *test, bool exclude_seen, float own_history)
{
	MrcRanking *ranking = &evaluation->ranking;
	MrRatings *ratings = mr_ratings_read(evaluation->budget, mr_ratings_query(test, "test"), "test", false,
										 MR_VALUES_ANY, false, 0);
	MrTransform transform;
	int32 *user_row;
	int32 *rows = number_users(evaluation, &ratings->users, &user_row);
	int32 *items =
		map_ids(evaluation->budget, &ratings->items, &evaluation->list->ids, &evaluation->n_unknown_items);
	int64 n_rows = ranking->n_rows;
	int64 *n_relevant = mr_reserve(evaluation->budget, (n_rows + 1) * sizeof(int64));

	number_foreign(evaluation, items, ratings->items.n);
	renumber(evaluation, ratings, rows, items, n_rows, &ranking->relevant);
	if (evaluation->list == &evaluation->model->items && is_explicit(evaluation->model, &transform))
	{
		mr_ratings_transform(ratings, transform, "test");
		prepare_error(evaluation, ratings, items);
	}
	else
		mr_csr_release(evaluation->budget, &ratings->by_user);
	if (exclude_seen && evaluation->model->query)
		read_seen(evaluation, &ratings->items, items, &ranking->seen);
	else
	{
		ranking->seen.start = mr_reserve(evaluation->budget, (n_rows + 1) * sizeof(int64));
		memset(ranking->seen.start, 0, (n_rows + 1) * sizeof(int64));
		ranking->seen.index = mr_reserve(evaluation->budget, sizeof(int32));
	}
	subtract_seen(&ranking->relevant, &ranking->seen, n_relevant);
	drop_empty_rows(ranking, user_row, n_relevant);
	ranking->user_row = user_row;
	ranking->n_relevant = n_relevant;
	if (evaluation->list == &evaluation->model->baseline)
		memset(user_row, 0, ranking->n_rows * sizeof(int32));
	else if (!exclude_seen && evaluation->model->query && mr_own_weight(evaluation->model, own_history) > 0)
		read_own(evaluation, own_history);
}

static void
rank_all(Evaluation *evaluation, MrcPool *pool, int k)
{
	static const float one = 1;
	MrcRanking *ranking = &evaluation->ranking;
	const MrSide *list = evaluation->list;

	ranking->users = list == &evaluation->model->baseline ? &one : evaluation->model->users.factors;
	ranking->items = list->factors;
	ranking->n_items = list->ids.n;
	ranking->rank = list->rank;
	ranking->k = k;
	ranking->scratch = mr_reserve(
		evaluation->budget,
		mrc_ranking_scratch_bytes(ranking->n_rows, ranking->n_items, ranking->rank, k, mrc_pool_size(pool)));
	ranking->pool = pool;
	if (mrc_ranking_run(ranking) != MRC_OK)
		elog(ERROR, "evaluation failed");
}

static void
run(Evaluation *evaluation, int k)
{
	MrcPool *pool = mr_pool_create(evaluation->budget->context, mr_n_threads(0));

	if (evaluation->ranking.n_rows > 0)
		rank_all(evaluation, pool, k);
	evaluation->error.pool = pool;
	if (evaluation->with_rmse && mrc_error_run(&evaluation->error) != MRC_OK)
		elog(ERROR, "evaluation failed");
	mr_pool_destroy(pool);
}

static void
put_metric(ReturnSetInfo *rsinfo, const char *metric, double value, bool null)
{
	Datum values[2] = {CStringGetTextDatum(metric), Float8GetDatum(value)};
	bool nulls[2] = {false, null};

	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

Datum
mr_evaluate(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	char *name = mr_name_arg(fcinfo, 0, "model");
	char *test = mr_name_arg(fcinfo, 1, "test");
	char *method = mr_name_arg(fcinfo, 4, "method");
	Evaluation evaluation = {0};
	MrcRanking *ranking = &evaluation.ranking;
	bool baseline = strcmp(method, "baseline") == 0;
	double own_history = NAN;
	bool nobody;

	if (PG_ARGISNULL(2) || PG_GETARG_INT32(2) <= 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("k must be at least 1")));
	if (PG_ARGISNULL(3))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("exclude_seen must not be NULL")));
	if (!baseline && strcmp(method, "model") != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("method must be 'model' or 'baseline', not '%s'", method)));
	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	evaluation.budget = mr_budget_create("evaluation");
	evaluation.model = mr_model_open(name);
	if (baseline && evaluation.model->query == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no baseline", name),
				 errdetail("It was imported without ratings.")));
	evaluation.list = baseline ? &evaluation.model->baseline : &evaluation.model->items;
	if (!PG_ARGISNULL(5))
	{
		own_history = PG_GETARG_FLOAT8(5);
		if (!(own_history >= 0 && own_history <= FLT_MAX))
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("own_history must be a finite number that is not negative, not %g", own_history)));
	}
	prepare(&evaluation, test, PG_GETARG_BOOL(3), (float) own_history);
	run(&evaluation, PG_GETARG_INT32(2));
	nobody = ranking->n_rows == 0;
	put_metric(rsinfo, "precision", ranking->precision, nobody);
	put_metric(rsinfo, "recall", ranking->recall, nobody);
	put_metric(rsinfo, "map", ranking->map, nobody);
	put_metric(rsinfo, "ndcg", ranking->ndcg, nobody);
	put_metric(rsinfo, "hit_rate", ranking->hit_rate, nobody);
	put_metric(rsinfo, "coverage", ranking->coverage, nobody);
	put_metric(rsinfo, "rmse", evaluation.error.rmse, !evaluation.with_rmse);
	put_metric(rsinfo, "users", ranking->n_rows, false);
	put_metric(rsinfo, "unknown_users", evaluation.n_unknown_users, false);
	put_metric(rsinfo, "unknown_items", evaluation.n_unknown_items, false);
	MemoryContextDelete(evaluation.budget->context);
	SPI_finish();
	PG_RETURN_NULL();
}

/* Types whose text form is the same in every session. */
static bool
has_fixed_text(Oid type)
{
	switch (getBaseType(type))
	{
		case BOOLOID:
		case INT2OID:
		case INT4OID:
		case INT8OID:
		case NUMERICOID:
		case OIDOID:
		case CHAROID:
		case NAMEOID:
		case TEXTOID:
		case VARCHAROID:
		case BPCHAROID:
		case UUIDOID:
			return true;
		default:
			return false;
	}
}

static FmgrInfo *
split_output(FunctionCallInfo fcinfo)
{
	Oid type = get_fn_expr_argtype(fcinfo->flinfo, 0);
	FmgrInfo *output;
	Oid function;
	bool varlena;

	if (!OidIsValid(type))
		elog(ERROR, "the type of the key is unknown");
	if (!has_fixed_text(type))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the key may not be of type %s", format_type_be(type)),
				 errdetail("Its text form can depend on settings."),
				 errhint("Cast it to what is meant: text, bigint, numeric or uuid.")));
	getTypeOutputInfo(type, &function, &varlena);
	output = MemoryContextAlloc(fcinfo->flinfo->fn_mcxt, sizeof(FmgrInfo));
	fmgr_info_cxt(function, output, fcinfo->flinfo->fn_mcxt);
	return output;
}

/*
 * XXH64 of the key's text form, seeded, as a number in [0, 1) below fraction.  The same on every machine: it depends
 * on the bytes of the text only.
 */
Datum
mr_split(PG_FUNCTION_ARGS)
{
	double fraction = PG_GETARG_FLOAT8(1);
	uint64 seed = (uint64) PG_GETARG_INT64(2);
	uint64 hash;
	char *key;

	if (!(fraction >= 0 && fraction <= 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("fraction must be between 0 and 1, not %g", fraction)));
	if (fcinfo->flinfo->fn_extra == NULL)
		fcinfo->flinfo->fn_extra = split_output(fcinfo);
	key = OutputFunctionCall(fcinfo->flinfo->fn_extra, PG_GETARG_DATUM(0));
	hash = mrc_hash64(key, strlen(key), seed);
	PG_RETURN_BOOL((double) (hash >> 11) * 0x1p-53 < fraction);
}
