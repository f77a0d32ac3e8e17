/*
 * import.c: millrace.import_als, which makes a version of a model out of factors that were trained elsewhere.
 *
 * The rows of both sides are read in the order of their ids, as a version keeps them: PostgreSQL sorts (text bytewise),
 * so equal ids come one after the other.  They are read as the caller, the ratings as the model's owner, who will read
 * them when the model is served.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/plancache.h"

PG_FUNCTION_INFO_V1(mr_import_als);

#define FETCH_ROWS 1000
#define MAX_ID_BYTES 65536
#define COLUMNS "id and factor (real[] or double precision[])"

/* ---- one side ---- */

typedef struct Import
{
	MrBudget *budget;
	const char *what; /* users or items */
	MrSide side;
	int64 n_string_bytes;
	int64 room_rows;  /* of ids and factors */
	int64 room_bytes; /* of the strings of ids */
} Import;

/* A bigger piece with what the old one (or NULL) held. */
static void *
enlarge(MrBudget *budget, void *memory, Size used_bytes, Size n_bytes)
{
	void *bigger = mr_reserve(budget, n_bytes);

	if (memory)
		memcpy(bigger, memory, used_bytes);
	mr_release(budget, memory);
	return bigger;
}

/* Room for one more row with an id of n_bytes. */
static void
make_room(Import *import, int64 n_bytes)
{
	MrSide *side = &import->side;
	MrIds *ids = &side->ids;
	Size row_bytes = side->rank * sizeof(float);

	if (ids->n == INT32_MAX)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("%s: there are too many ids", import->what)));
	if (ids->n == import->room_rows)
	{
		int64 n = import->room_rows = Max(FETCH_ROWS, ids->n + ids->n / 2);

		side->factors = enlarge(import->budget, side->factors, ids->n * row_bytes, n * row_bytes);
		if (ids->text)
		{
			ids->starts =
				enlarge(import->budget, ids->starts, (ids->n + 1) * sizeof(int64), (n + 1) * sizeof(int64));
			ids->starts[0] = 0;
		}
		else
			ids->ints = enlarge(import->budget, ids->ints, ids->n * sizeof(int64), n * sizeof(int64));
	}
	if (ids->text && import->n_string_bytes + n_bytes > import->room_bytes)
	{
		import->room_bytes += import->room_bytes / 2 + n_bytes + FETCH_ROWS;
		ids->bytes = enlarge(import->budget, ids->bytes, import->n_string_bytes, import->room_bytes);
	}
}

/* Ids come in ascending order, so that only the last can be the same. */
static void
append_id(Import *import, const MrKey *key)
{
	MrIds *ids = &import->side.ids;

	if (ids->n > 0)
	{
		MrKey last = mr_ids_key(ids, ids->n - 1);

		if (key->text ? last.n_bytes == key->n_bytes && memcmp(last.bytes, key->bytes, key->n_bytes) == 0
					  : last.value == key->value)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s: id \"%s\" is there more than once", import->what, mr_key_cstring(key)),
					 errhint("Each id must have one row.")));
	}
	if (ids->text)
	{
		memcpy(ids->bytes + import->n_string_bytes, key->bytes, key->n_bytes);
		ids->starts[ids->n + 1] = import->n_string_bytes += key->n_bytes;
	}
	else
		ids->ints[ids->n] = key->value;
	ids->n++;
}

static void
bad_factor(const Import *import, const MrKey *key, int code, const char *wrong)
{
	ereport(ERROR,
			(errcode(code),
			 errmsg("%s: the factor of id \"%s\" %s", import->what, mr_key_cstring(key), wrong),
			 errhint("A factor is an array of one dimension, 1 to %d finite numbers, as many in every row.",
					 MRC_MAX_RANK)));
}

/* The array's length, after looking at its shape. */
static int
factor_length(const Import *import, const MrKey *key, ArrayType *array)
{
	int n = ARR_NDIM(array) == 1 ? ARR_DIMS(array)[0] : 0;

	if (ARR_NDIM(array) > 1)
		bad_factor(import, key, ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("has %d dimensions", ARR_NDIM(array)));
	if (n == 0)
		bad_factor(import, key, ERRCODE_INVALID_PARAMETER_VALUE, "is empty");
	if (n > MRC_MAX_RANK)
		bad_factor(import, key, ERRCODE_INVALID_PARAMETER_VALUE, psprintf("has %d numbers", n));
	if (import->side.rank > 0 && n != import->side.rank)
		bad_factor(import, key, ERRCODE_INVALID_PARAMETER_VALUE,
				   psprintf("has %d numbers, another has %d", n, import->side.rank));
	if (array_contains_nulls(array))
		bad_factor(import, key, ERRCODE_INVALID_PARAMETER_VALUE, "contains NULL");
	return n;
}

static void
copy_factor(const Import *import, const MrKey *key, const ArrayType *array, float *row)
{
	bool is_double = ARR_ELEMTYPE(array) == FLOAT8OID;
	const char *data = ARR_DATA_PTR(array);

	for (int i = 0; i < import->side.rank; i++)
	{
		double value = is_double ? ((const double *) data)[i] : ((const float *) data)[i];

		if (!(fabs(value) <= FLT_MAX))
			bad_factor(import, key, ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
					   isnan(value)		  ? "contains NaN"
						   : isinf(value) ? "contains an infinite number"
										  : psprintf("contains a number out of range: %g", value));
		row[i] = (float) value;
	}
}

static void
read_row(Import *import, HeapTuple tuple, TupleDesc desc)
{
	bool null;
	Datum id = heap_getattr(tuple, 1, desc, &null);
	MrSide *side = &import->side;
	ArrayType *array;
	Datum factor;
	MrKey key;

	if (null)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: an id is NULL", import->what),
				 errhint("Leave such rows out with WHERE … IS NOT NULL.")));
	key = side->ids.text ? mr_key_from_text(DatumGetTextPP(id)) : (MrKey){.value = DatumGetInt64(id)};
	if (key.text && key.n_bytes > MAX_ID_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s: an id has " INT64_FORMAT " bytes, more than %d", import->what, key.n_bytes,
						MAX_ID_BYTES)));
	factor = heap_getattr(tuple, 2, desc, &null);
	if (null)
		bad_factor(import, &key, ERRCODE_INVALID_PARAMETER_VALUE, "is NULL");
	array = DatumGetArrayTypeP(factor);
	side->rank = factor_length(import, &key, array);
	make_room(import, key.text ? key.n_bytes : 0);
	copy_factor(import, &key, array, side->factors + side->ids.n * side->rank);
	append_id(import, &key);
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

static void
bad_columns(const Import *import, const char *wrong)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: %s", import->what, wrong),
			 errhint("The first columns must be id (bigint, integer, smallint or text) and factor (real[] or "
					 "double precision[]). Cast them in a query.")));
}

/* Check the columns of the query and write the one that reads them; kind: see import_side. */
static char *
side_query(Import *import, SPIPlanPtr plan, const char *query, char kind)
{
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	TupleDesc desc = source->resultDesc;
	StringInfoData sql;
	Oid id;
	Oid factor;

	if (desc->natts < 2)
		bad_columns(import, psprintf("expected two columns, found %d", desc->natts));
	id = getBaseType(TupleDescAttr(desc, 0)->atttypid);
	factor = getBaseType(TupleDescAttr(desc, 1)->atttypid);
	if (!is_integer(id) && id != TEXTOID && id != VARCHAROID)
		bad_columns(
			import,
			psprintf("the first column, id, is neither an integer nor text but %s", format_type_be(id)));
	if (factor != FLOAT4ARRAYOID && factor != FLOAT8ARRAYOID)
		bad_columns(import,
					psprintf("the second column, factor, is neither real[] nor double precision[] but %s",
							 format_type_be(factor)));
	import->side.ids.text = kind ? kind == 't' : !is_integer(id);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT q.i::pg_catalog.%s, q.f::pg_catalog.%s FROM (\n%s\n) AS q(i, f",
					 import->side.ids.text ? "text" : "int8",
					 factor == FLOAT4ARRAYOID ? "_float4" : "_float8", query);
	for (int i = 3; i <= desc->natts; i++)
		appendStringInfo(&sql, ", c%d", i);
	appendStringInfo(&sql, ") ORDER BY q.i::pg_catalog.%s USING OPERATOR(pg_catalog.<) NULLS FIRST",
					 import->side.ids.text ? "text COLLATE pg_catalog.\"C\"" : "int8");
	return sql.data;
}

/* Plan a query as the current user into a plan that lives no longer than the budget. */
static void
plan_query(const Import *import, MrPlan *plan, const char *sql)
{
	mr_plan_init(plan, import->budget->context);
	plan->plan = SPI_prepare(sql, 0, NULL);
	if (plan->plan == NULL || SPI_keepplan(plan->plan) != 0)
		elog(ERROR, "%s: %s", import->what, SPI_result_code_string(SPI_result));
}

static void
import_context(void *arg)
{
	errcontext("reading the %s of a model", ((const Import *) arg)->what);
}

/* Read one side.  given: a table or a query; kind of the ids: 'i' integer, 't' text, 0 as they come. */
static MrSide
import_side(MrBudget *budget, const char *what, const char *given, char kind)
{
	Import *import = MemoryContextAllocZero(budget->context, sizeof(Import));
	MrPlan *plans = MemoryContextAllocZero(budget->context, 2 * sizeof(MrPlan));
	MemoryContext batch =
		AllocSetContextCreate(budget->context, "millrace import batch", ALLOCSET_DEFAULT_SIZES);
	ErrorContextCallback callback = {error_context_stack, import_context, import};
	char *query = mr_query_of(given, what, COLUMNS);
	Portal portal;

	import->budget = budget;
	import->what = what;
	error_context_stack = &callback;
	plan_query(import, &plans[0], query);
	plan_query(import, &plans[1], side_query(import, plans[0].plan, query, kind));
	portal = SPI_cursor_open(NULL, plans[1].plan, NULL, NULL, true);
	for (;;)
	{
		MemoryContext before;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		before = MemoryContextSwitchTo(batch);
		for (uint64 i = 0; i < SPI_processed; i++)
			read_row(import, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		MemoryContextSwitchTo(before);
		MemoryContextReset(batch);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	if (import->side.ids.n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: there are no rows", what),
				 errdetail("The query is: %s", query)));
	error_context_stack = callback.previous;
	return import->side;
}

/* ---- the model ---- */

/* How many users have each item; of implicit feedback, with a value above zero. */
static MrSide
count_users(MrBudget *budget, const MrRatings *ratings, bool implicit)
{
	const MrcCsr *csr = &ratings->by_user;
	MrSide baseline = {ratings->items, 1, mr_reserve(budget, ratings->items.n * sizeof(float))};

	memset(baseline.factors, 0, ratings->items.n * sizeof(float));
	for (int64 row = 0; row < csr->n_rows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[row]; e < csr->start[row + 1]; e++)
			baseline.factors[csr->index[e]] += !implicit || csr->value[e] > 0;
	}
	return baseline;
}

/* Read the ratings as the owner: the query that is stored, the number of pairs, the baseline. */
static MrRatings *
read_ratings(MrBudget *budget, MrNewModel *new_model, const char *given, bool implicit)
{
	MrRatings *ratings;
	MrGuard guard;
	char *query;

	mr_enter(&guard, new_model->owner, new_model->settings);
	query = mr_ratings_query(given, "ratings");
	ratings = mr_ratings_read(budget, query, "ratings", true,
							  implicit ? MR_VALUES_NOT_NEGATIVE : MR_VALUES_ANY, false, 0);
	mr_leave(&guard);
	new_model->query = query;
	new_model->n_ratings = ratings->by_user.start[ratings->by_user.n_rows];
	new_model->baseline = count_users(budget, ratings, implicit);
	mr_csr_release(budget, &ratings->by_user);
	return ratings;
}

static Datum
result_row(FunctionCallInfo fcinfo, const MrNewModel *new_model, int version, double seconds)
{
	MrTrainingRow row = {
		.name = new_model->name,
		.version = version,
		.n_users = new_model->users.ids.n,
		.n_items = new_model->items.ids.n,
		.n_ratings = new_model->n_ratings,
		.n_rows = -1,
		.rank = new_model->users.rank,
		.loss = NAN,
		.seconds = seconds,
		.metric_value = NAN,
		.active = new_model->activate,
		.reason = new_model->activate ? NULL : "activate is false",
	};

	return mr_training_row(fcinfo, &row);
}

static bool
bool_arg(FunctionCallInfo fcinfo, int n, const char *argument)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be NULL", argument)));
	return PG_GETARG_BOOL(n);
}

Datum
mr_import_als(PG_FUNCTION_ARGS)
{
	double start_ms = mr_now_ms();
	MrNewModel new_model = {.name = mr_name_arg(fcinfo, 0, "model")};
	char *users = mr_name_arg(fcinfo, 1, "users");
	char *items = mr_name_arg(fcinfo, 2, "items");
	char *given = PG_ARGISNULL(3) ? NULL : mr_name_arg(fcinfo, 3, "ratings");
	bool implicit = bool_arg(fcinfo, 4, "implicit");
	MrRatings *ratings = NULL;
	MrBudget *budget;
	Datum result;
	int version;

	PreventCommandIfReadOnly("millrace.import_als()");
	new_model.activate = bool_arg(fcinfo, 5, "activate");
	new_model.owner = mr_model_lock_kind(new_model.name, MR_KIND_ALS);
	new_model.settings = mr_current_settings();
	budget = mr_budget_create("millrace import");
	SPI_connect();
	if (given)
		ratings = read_ratings(budget, &new_model, given, implicit);

	/* Ids are kept in the kind that the ratings have, so that all lists of the model are in one order. */
	new_model.users = import_side(budget, "users", users, !given ? 0 : ratings->users.text ? 't' : 'i');
	new_model.items = import_side(budget, "items", items, !given ? 0 : ratings->items.text ? 't' : 'i');
	if (new_model.users.rank != new_model.items.rank)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the factors of users have %d numbers, those of items %d", new_model.users.rank,
						new_model.items.rank),
				 errhint("Both sides must come from the same training.")));
	new_model.parameters = psprintf("{\"imported\": true, \"rank\": %d, \"implicit\": %s}",
									new_model.users.rank, implicit ? "true" : "false");
	new_model.metrics = psprintf("{\"seconds\": %.3f}", (mr_now_ms() - start_ms) / 1e3);
	version = mr_model_store(&new_model);
	SPI_finish();
	if (new_model.activate)
		mr_model_make_ready(new_model.name);
	result = result_row(fcinfo, &new_model, version, (mr_now_ms() - start_ms) / 1e3);
	MemoryContextDelete(budget->context);
	PG_RETURN_DATUM(result);
}
