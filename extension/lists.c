/*
 * lists.c: how a model gets categories of items and baselines: set_item_features, set_baseline, refresh_lists.
 *
 * Each stores a query and what it gives, as text; refresh_lists and retrain run it again.  millrace.model.lists names what
 * all lists of a model are together, and changes with each.  Serving does not read these tables but what image.c makes of
 * them.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "tcop/utility.h"
#include "utils/plancache.h"
#include "utils/snapmgr.h"

#define FETCH_ROWS 1000
#define MAX_ID_BYTES 65536

PG_FUNCTION_INFO_V1(mr_set_item_features);
PG_FUNCTION_INFO_V1(mr_set_baseline);
PG_FUNCTION_INFO_V1(mr_refresh_lists);

/* ---- what a query gives ---- */

/* Texts and scores, in the current memory context of collect(). */
typedef struct Rows
{
	int64 n;
	int64 room;
	text **item;
	text **category; /* of features; NULL: they are a baseline */
	float *score;	 /* of a baseline */
} Rows;

/* A list as it is defined. */
typedef struct Definition
{
	const char *model;
	const char *name; /* of a baseline; NULL: the features */
	char *query;
	ArrayType *settings;
} Definition;

#define FEATURE_COLUMNS "item and category"
#define BASELINE_COLUMNS "item and, if there is one, score"

static const char *
what_of(const Definition *definition)
{
	return definition->name ? "baseline" : "item features";
}

static void
bad_columns(const Definition *definition, const char *wrong)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: %s", what_of(definition), wrong),
		 errhint("The first columns must be item (bigint, integer, smallint or text) and %s. Cast them in "
				 "a query.",
				 definition->name ? "if there is one, score (a number)" : "category")));
}

static bool
is_integer(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID;
}

static bool
is_number(Oid type)
{
	return is_integer(type) || type == FLOAT4OID || type == FLOAT8OID || type == NUMERICOID;
}

/* The query that reads a definition's item, and category or score, after a look at its columns. */
static char *
reading_query(const Definition *definition, SPIPlanPtr plan, bool *has_score)
{
	TupleDesc desc = ((CachedPlanSource *) linitial(SPI_plan_get_plan_sources(plan)))->resultDesc;
	Oid item = desc->natts > 0 ? getBaseType(TupleDescAttr(desc, 0)->atttypid) : InvalidOid;
	Oid second = desc->natts > 1 ? getBaseType(TupleDescAttr(desc, 1)->atttypid) : InvalidOid;
	StringInfoData sql;

	*has_score = definition->name && desc->natts > 1;
	if (desc->natts < (definition->name ? 1 : 2))
		bad_columns(definition,
					definition->name ? "there are no columns"
									 : psprintf("expected two columns, found %d", desc->natts));
	if (!is_integer(item) && item != TEXTOID && item != VARCHAROID)
		bad_columns(
			definition,
			psprintf("the first column, item, is neither an integer nor text but %s", format_type_be(item)));
	if (*has_score && !is_number(second))
		bad_columns(definition,
					psprintf("the second column, score, is not a number but %s", format_type_be(second)));
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT q.i::pg_catalog.text%s FROM (\n%s\n) AS q(i",
					 *has_score				? ", q.c::pg_catalog.float8"
						 : definition->name ? ""
											: ", q.c::pg_catalog.text",
					 definition->query);
	for (int i = 2; i <= desc->natts; i++)
		appendStringInfo(&sql, i == 2 ? ", c" : ", c%d", i);
	appendStringInfoChar(&sql, ')');
	if (*has_score)
		appendStringInfo(
			&sql,
			" ORDER BY q.c::pg_catalog.float8 USING OPERATOR(pg_catalog.>) NULLS FIRST, q.i::pg_catalog.%s "
			"USING OPERATOR(pg_catalog.<)",
			is_integer(item) ? "int8" : "text COLLATE pg_catalog.\"C\"");
	return sql.data;
}

static void
make_room(const Definition *definition, Rows *rows)
{
	int64 n = Max(FETCH_ROWS, rows->room * 2);

	if (rows->n < rows->room)
		return;
	if (rows->n > INT32_MAX - 1)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s: there are too many rows", what_of(definition))));
	rows->item = mr_grow(rows->item, n * sizeof(text *));
	if (definition->name)
		rows->score = mr_grow(rows->score, n * sizeof(float));
	else
		rows->category = mr_grow(rows->category, n * sizeof(text *));
	rows->room = n;
}

static float
score_of(const Definition *definition, HeapTuple tuple, TupleDesc desc, const text *item)
{
	bool null;
	double score = DatumGetFloat8(SPI_getbinval(tuple, desc, 2, &null));

	if (null || !(fabs(score) <= FLT_MAX))
		ereport(ERROR,
				(errcode(null ? ERRCODE_INVALID_PARAMETER_VALUE : ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s: the score of item \"%s\" is %s", what_of(definition), text_to_cstring(item),
						null ? "NULL" : psprintf("%g", score)),
				 errhint("Leave such rows out.")));
	return (float) score;
}

/* Adds a row; returns the bytes that it takes. */
static Size
add_row(const Definition *definition, Rows *rows, HeapTuple tuple, TupleDesc desc, bool has_score)
{
	bool null;
	Datum item = SPI_getbinval(tuple, desc, 1, &null);
	Datum category = 0;
	bool no_category = false;

	if (null)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: an item is NULL", what_of(definition)),
				 errhint("Leave such rows out with WHERE … IS NOT NULL.")));
	if (!definition->name)
		category = SPI_getbinval(tuple, desc, 2, &no_category);
	make_room(definition, rows);
	rows->item[rows->n] = DatumGetTextPCopy(item);
	if (VARSIZE_ANY_EXHDR(rows->item[rows->n]) > MAX_ID_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s: an item has %zu bytes, more than %d", what_of(definition),
						(Size) VARSIZE_ANY_EXHDR(rows->item[rows->n]), MAX_ID_BYTES)));
	if (rows->category)
		rows->category[rows->n] = no_category ? NULL : DatumGetTextPCopy(category);
	else
		rows->score[rows->n] = has_score ? score_of(definition, tuple, desc, rows->item[rows->n])
										 : (float) (1.0 / (double) (rows->n + 1));
	rows->n++;
	return VARSIZE(rows->item[rows->n - 1]) + 64 +
		(rows->category && rows->category[rows->n - 1] ? VARSIZE(rows->category[rows->n - 1]) : 0);
}

static int
compare_texts(const text *a, const text *b)
{
	MrKey x = mr_key_from_text(a);
	MrKey y = mr_key_from_text(b);

	return mr_compare_keys(&x, &y);
}

static int
compare_items(const void *a, const void *b, void *rows)
{
	text **item = ((Rows *) rows)->item;

	return compare_texts(item[*(const int32 *) a], item[*(const int32 *) b]);
}

/* By category, none last, then item. */
static int
compare_features(const void *a, const void *b, void *arg)
{
	const Rows *rows = arg;
	const text *x = rows->category[*(const int32 *) a];
	const text *y = rows->category[*(const int32 *) b];
	int order = x && y ? compare_texts(x, y) : (x == NULL) - (y == NULL);

	return order != 0 ? order : compare_items(a, b, arg);
}

static int32 *
numbers(int64 n)
{
	int32 *result = MemoryContextAllocHuge(CurrentMemoryContext, n * sizeof(int32) + 1);

	for (int64 i = 0; i < n; i++)
		result[i] = (int32) i;
	return result;
}

static void
check_distinct(const Definition *definition, Rows *rows)
{
	int32 *order = numbers(rows->n);

	qsort_arg(order, rows->n, sizeof(int32), compare_items, rows);
	for (int64 i = 1; i < rows->n; i++)
		if (compare_items(&order[i - 1], &order[i], rows) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s: item \"%s\" is there more than once", what_of(definition),
							text_to_cstring(rows->item[order[i]])),
					 errhint("Each item must have at most one row.")));
	pfree(order);
}

/* In the order of compare_features, without items that have no category. */
static void
arrange_features(Rows *rows)
{
	int32 *order = numbers(rows->n);
	text **item = MemoryContextAllocHuge(CurrentMemoryContext, rows->n * sizeof(text *) + 1);
	text **category = MemoryContextAllocHuge(CurrentMemoryContext, rows->n * sizeof(text *) + 1);

	qsort_arg(order, rows->n, sizeof(int32), compare_features, rows);
	for (int64 i = 0; i < rows->n; i++)
	{
		item[i] = rows->item[order[i]];
		category[i] = rows->category[order[i]];
	}
	while (rows->n > 0 && category[rows->n - 1] == NULL)
		rows->n--;
	rows->item = item;
	rows->category = category;
}

static void
collect_context(void *arg)
{
	const Definition *definition = arg;

	if (definition->name)
		errcontext("reading baseline \"%s\" of model \"%s\"", definition->name, definition->model);
	else
		errcontext("reading item features of model \"%s\"", definition->model);
}

/*
 * Run a definition's query, or, if it has none yet, that which the user gave, as the owner, by the latest snapshot.  Memory
 * is that of the budget.
 */
static Rows
collect(MrBudget *budget, Definition *definition, const char *given, Oid owner)
{
	ErrorContextCallback callback = {error_context_stack, collect_context, definition};
	MrPlan *plans = MemoryContextAllocZero(budget->context, 2 * sizeof(MrPlan));
	Rows rows = {0};
	MrGuard guard;
	Portal portal;
	bool has_score;

	error_context_stack = &callback;
	mr_plan_init(&plans[0], budget->context);
	mr_plan_init(&plans[1], budget->context);
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_enter(&guard, owner, definition->settings);
	if (definition->query == NULL)
		definition->query =
			mr_query_of(given, what_of(definition), definition->name ? BASELINE_COLUMNS : FEATURE_COLUMNS);
	(void) mr_prepare(&plans[0].plan, definition->query, 0, NULL);
	(void) mr_prepare(&plans[1].plan, reading_query(definition, plans[0].plan, &has_score), 0, NULL);
	portal = SPI_cursor_open(NULL, plans[1].plan, NULL, NULL, true);
	for (;;)
	{
		MemoryContext before;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		before = MemoryContextSwitchTo(budget->context);
		for (uint64 i = 0; i < SPI_processed; i++)
			budget->used_bytes +=
				add_row(definition, &rows, SPI_tuptable->vals[i], SPI_tuptable->tupdesc, has_score);
		MemoryContextSwitchTo(before);
		mr_reserve_check(budget, 0, NULL);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	mr_leave(&guard);
	PopActiveSnapshot();

	MemoryContext before = MemoryContextSwitchTo(budget->context);

	check_distinct(definition, &rows);
	if (rows.category)
		arrange_features(&rows);
	MemoryContextSwitchTo(before);
	error_context_stack = callback.previous;
	return rows;
}

/* ---- storing ---- */

static ArrayType *
text_array(text **values, int64 n)
{
	return construct_array((Datum *) values, n, TEXTOID, -1, false, TYPALIGN_INT);
}

static ArrayType *
score_array(const float *scores, int64 n)
{
	Datum *values = palloc(n * sizeof(Datum));

	for (int64 i = 0; i < n; i++)
		values[i] = Float4GetDatum(scores[i]);
	return construct_array(values, n, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT);
}

/* The rows in blocks; the caller has entered the catalog. */
static void
store_blocks(const Definition *definition, const Rows *rows)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace block", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);

	for (int64 lo = 0; lo < rows->n; lo += FETCH_ROWS)
	{
		int64 n = Min(FETCH_ROWS, rows->n - lo);
		Datum model = CStringGetTextDatum(definition->model);
		Datum block = Int32GetDatum((int32) (lo / FETCH_ROWS));
		Datum items = PointerGetDatum(text_array(rows->item + lo, n));

		CHECK_FOR_INTERRUPTS();
		if (definition->name)
		{
			Oid types[5] = {TEXTOID, TEXTOID, INT4OID, TEXTARRAYOID, FLOAT4ARRAYOID};
			Datum values[5] = {model, CStringGetTextDatum(definition->name), block, items,
							   PointerGetDatum(score_array(rows->score + lo, n))};

			mr_exec_args("INSERT INTO millrace.custom_baseline_block (model, name, block, items, scores) "
						 "VALUES ($1, $2, $3, $4, $5)",
						 SPI_OK_INSERT, false, 5, types, values, NULL);
		}
		else
		{
			Oid types[4] = {TEXTOID, INT4OID, TEXTARRAYOID, TEXTARRAYOID};
			Datum values[4] = {model, block, items, PointerGetDatum(text_array(rows->category + lo, n))};

			mr_exec_args("INSERT INTO millrace.item_features_block (model, block, items, categories) "
						 "VALUES ($1, $2, $3, $4)",
						 SPI_OK_INSERT, false, 4, types, values, NULL);
		}
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

/* Removes a list with its blocks; false if there is none.  The caller has entered the catalog. */
static bool
remove_list(const char *model, const char *name)
{
	Oid types[2] = {TEXTOID, TEXTOID};
	Datum values[2] = {CStringGetTextDatum(model), CStringGetTextDatum(name ? name : "")};

	mr_exec_args(name ? "DELETE FROM millrace.custom_baseline_block WHERE model = $1 AND name = $2"
					  : "DELETE FROM millrace.item_features_block WHERE model = $1",
				 SPI_OK_DELETE, false, name ? 2 : 1, types, values, NULL);
	mr_exec_args(name ? "DELETE FROM millrace.custom_baseline WHERE model = $1 AND name = $2"
					  : "DELETE FROM millrace.item_features WHERE model = $1",
				 SPI_OK_DELETE, false, name ? 2 : 1, types, values, NULL);
	return SPI_processed > 0;
}

static int32
count_categories(const Rows *rows)
{
	int32 n = 0;

	for (int64 i = 0; i < rows->n; i++)
		n += i == 0 || compare_texts(rows->category[i - 1], rows->category[i]) != 0;
	return n;
}

/*
 * Readers see that there are other lists when this commits.  It follows at once on what it stands for: a query that runs
 * in between may read the model's lists, and would make them known under an identity that they do not have.
 */
static void
lists_changed(const char *model)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(model)};
	MrGuard guard;
	bool null;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT lists FROM millrace.model WHERE name = $1", SPI_OK_SELECT, false, 1, types, values,
				 NULL);
	mr_cache_forget(DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null)));
	mr_exec_args("UPDATE millrace.model SET lists = gen_random_uuid() WHERE name = $1", SPI_OK_UPDATE, false,
				 1, types, values, NULL);
	mr_leave(&guard);
}

/* In the place of a list of that name. */
static void
store_list(const Definition *definition, const Rows *rows)
{
	MrGuard guard;

	mr_enter_catalog(&guard, "item_features");
	(void) remove_list(definition->model, definition->name);
	if (definition->name)
	{
		Oid types[5] = {TEXTOID, TEXTOID, TEXTOID, TEXTARRAYOID, INT8OID};
		Datum values[5] = {CStringGetTextDatum(definition->model), CStringGetTextDatum(definition->name),
						   CStringGetTextDatum(definition->query), PointerGetDatum(definition->settings),
						   Int64GetDatum(rows->n)};

		mr_exec_args("INSERT INTO millrace.custom_baseline (model, name, query, settings, items) "
					 "VALUES ($1, $2, $3, $4, $5)",
					 SPI_OK_INSERT, false, 5, types, values, NULL);
	}
	else
	{
		Oid types[5] = {TEXTOID, TEXTOID, TEXTARRAYOID, INT8OID, INT4OID};
		Datum values[5] = {CStringGetTextDatum(definition->model), CStringGetTextDatum(definition->query),
						   PointerGetDatum(definition->settings), Int64GetDatum(rows->n),
						   Int32GetDatum(count_categories(rows))};

		mr_exec_args("INSERT INTO millrace.item_features (model, query, settings, items, categories) "
					 "VALUES ($1, $2, $3, $4, $5)",
					 SPI_OK_INSERT, false, 5, types, values, NULL);
	}
	store_blocks(definition, rows);
	mr_leave(&guard);
	lists_changed(definition->model);
}

/* Whoever changes lists of a model waits here for others who do, and for a switch of its version. */
static void
lock_lists(const char *model)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(model)};
	MrGuard guard;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT FROM millrace.model WHERE name = $1 FOR NO KEY UPDATE", SPI_OK_SELECT, false, 1,
				 types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 0)
		mr_model_unknown(model);
}

/* What serves the lists is made now, so that none of their readers waits for it. */
static void
make_ready(const char *model)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(model)};
	MrGuard guard;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT FROM millrace.model WHERE name = $1 AND active IS NOT NULL", SPI_OK_SELECT, false, 1,
				 types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed > 0)
		mr_model_make_ready(model);
}

/* The model's owner; the caller has his rights. */
static Oid
owner_of(const char *model)
{
	Oid owner = mr_model_owner(model, MR_KIND_ALS);

	if (!OidIsValid(owner))
		mr_model_unknown(model);
	return owner;
}

/* Sets a list, or removes it if given is NULL. */
static Rows
set_list(Definition *definition, const char *given)
{
	Oid owner = owner_of(definition->model);
	Rows rows = {0};
	MrGuard guard;
	bool found;

	SPI_connect();
	lock_lists(definition->model);
	if (given)
	{
		MrBudget *budget = mr_budget_create("millrace lists");

		definition->settings = mr_current_settings();
		rows = collect(budget, definition, given, owner);
		if (rows.n == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s: there are no rows", what_of(definition)),
					 errdetail("The query is: %s", definition->query)));
		store_list(definition, &rows);
	}
	else
	{
		mr_enter_catalog(&guard, "item_features");
		found = remove_list(definition->model, definition->name);
		mr_leave(&guard);
		if (!found && definition->name)
			mr_baseline_unknown(definition->model, definition->name);
		lists_changed(definition->model);
	}
	make_ready(definition->model);
	return rows;
}

Datum
mr_set_item_features(PG_FUNCTION_ARGS)
{
	Definition definition = {.model = mr_name_arg(fcinfo, 0, "model")};
	char *given = PG_ARGISNULL(1) ? NULL : mr_name_arg(fcinfo, 1, "query");
	TupleDesc desc;
	Datum values[2];
	bool nulls[2] = {false};
	Rows rows;

	PreventCommandIfReadOnly("millrace.set_item_features()");
	rows = set_list(&definition, given);
	values[0] = Int64GetDatum(rows.n);
	values[1] = Int32GetDatum(count_categories(&rows));
	SPI_finish();
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PG_RETURN_DATUM(HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls)));
}

Datum
mr_set_baseline(PG_FUNCTION_ARGS)
{
	Definition definition = {.model = mr_name_arg(fcinfo, 0, "model"),
							 .name = mr_name_arg(fcinfo, 2, "name")};
	char *given = PG_ARGISNULL(1) ? NULL : mr_name_arg(fcinfo, 1, "query");
	Rows rows;
	int64 n;

	PreventCommandIfReadOnly("millrace.set_baseline()");
	if (mr_baseline_built_in(definition.name, &n))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("baseline \"%s\" is built in", definition.name), errhint("Choose another name.")));
	rows = set_list(&definition, given);
	SPI_finish();
	PG_RETURN_INT64(rows.n);
}

/* ---- running the queries again ---- */

/* The definitions of a model's lists, features first; the caller has an SPI connection. */
static Definition *
read_definitions(const char *model, int *n)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(model)};
	Definition *definitions;
	MrGuard guard;

	mr_enter_catalog(&guard, "item_features");
	mr_exec_args("SELECT NULL::pg_catalog.text AS name, query, settings FROM millrace.item_features WHERE "
				 "model = $1 UNION ALL (SELECT name, query, settings FROM millrace.custom_baseline WHERE "
				 "model = $1 ORDER BY name)",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	mr_leave(&guard);
	*n = (int) SPI_processed;
	definitions = palloc0((*n + 1) * sizeof(Definition));
	for (int i = 0; i < *n; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;
		bool null;

		definitions[i].model = model;
		definitions[i].name = SPI_getvalue(row, desc, 1);
		definitions[i].query = SPI_getvalue(row, desc, 2);
		definitions[i].settings = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 3, &null));
	}
	return definitions;
}

static void
refresh_list(Definition *definition, Oid owner)
{
	MrBudget *budget = mr_budget_create("millrace lists");
	Rows rows = collect(budget, definition, NULL, owner);

	if (rows.n > 0)
		store_list(definition, &rows);
	else if (definition->name)
		ereport(WARNING,
				(errmsg("baseline \"%s\" of model \"%s\" stays as it is: its query gives no rows",
						definition->name, definition->model)));
	else
		ereport(WARNING,
				(errmsg("item features of model \"%s\" stay as they are: their query gives no rows",
						definition->model)));
	MemoryContextDelete(budget->context);
}

Datum
mr_refresh_lists(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	Definition *definitions;
	Oid owner;
	int n;

	PreventCommandIfReadOnly("millrace.refresh_lists()");
	owner = owner_of(name);
	SPI_connect();
	lock_lists(name);
	definitions = read_definitions(name, &n);
	for (int i = 0; i < n; i++)
		refresh_list(&definitions[i], owner);
	if (n > 0)
		make_ready(name);
	SPI_finish();
	PG_RETURN_INT32(n);
}

typedef struct Attempt
{
	Definition *definition;
	Oid owner;
} Attempt;

static void
attempt_refresh(void *arg)
{
	Attempt *attempt = arg;

	refresh_list(attempt->definition, attempt->owner);
}

void
mr_lists_retrained(const char *name, Oid owner)
{
	Definition *definitions;
	int n;

	SPI_connect();
	lock_lists(name);
	definitions = read_definitions(name, &n);
	for (int i = 0; i < n; i++)
	{
		Attempt attempt = {&definitions[i], owner};
		ErrorData *error = mr_attempt(attempt_refresh, &attempt);

		if (error == NULL)
			continue;
		if (error->sqlerrcode == ERRCODE_QUERY_CANCELED || error->sqlerrcode == ERRCODE_ADMIN_SHUTDOWN)
			ReThrowError(error);
		ereport(
			WARNING,
			(errcode(error->sqlerrcode),
			 errmsg("%s of model \"%s\" could not be read again: %s",
					definitions[i].name ? psprintf("baseline \"%s\"", definitions[i].name) : "item features",
					name, error->message),
			 errdetail("What was read before is still used."),
			 errhint("SELECT millrace.refresh_lists(%s) tries again.", quote_literal_cstr(name))));
	}
	if (n > 0)
		make_ready(name);
	SPI_finish();
}
