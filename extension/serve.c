/*
 * serve.c: the SQL functions that list recommendations: recommend_top_k, recommend_top_k_for, recommend_from_items.
 *
 * What the caller gives as a query (candidates, users) is run as the caller.  The plan of a candidates query is kept by the
 * backend, as that of a prepared statement, and what it returned by the statement that calls.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "catalog/namespace.h"
#include "lib/qunique.h"

#define MAX_PLANS 8
#define MAX_KEY_BYTES 65536
#define RESET_ROWS 256

PG_FUNCTION_INFO_V1(mr_recommend_bigint);
PG_FUNCTION_INFO_V1(mr_recommend_text);
PG_FUNCTION_INFO_V1(mr_recommend_for);
PG_FUNCTION_INFO_V1(mr_recommend_from_items);

/* ---- ids of a query that the caller gave ---- */

/* For qsort of keys of one kind. */
static int
compare_keys(const void *a, const void *b)
{
	return mr_compare_keys(a, b);
}

/* Receives the first column of each row; NULL: it is NULL.  The key is valid until it returns. */
typedef void (*TakeKey)(void *arg, const MrKey *key);

typedef struct KeyReader
{
	DestReceiver dest;
	const char *what;
	const char *id; /* "item id" or "user id", for messages */
	Oid type;
	TakeKey take;
	void *arg;
	MemoryContext context; /* for ids that are compressed or stored apart */
	uint64 n;
} KeyReader;

/* Of the DestReceiver: the columns. */
static void
keys_start(DestReceiver *self, int operation, TupleDesc desc)
{
	KeyReader *reader = (KeyReader *) self;

	if (desc->natts > 0)
		reader->type = getBaseType(TupleDescAttr(desc, 0)->atttypid);
	if (reader->type != INT2OID && reader->type != INT4OID && reader->type != INT8OID &&
		reader->type != TEXTOID && reader->type != VARCHAROID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: the first column, %s, is neither an integer nor text%s%s", reader->what,
						reader->id, desc->natts > 0 ? " but " : "",
						desc->natts > 0 ? format_type_be(TupleDescAttr(desc, 0)->atttypid) : ""),
				 errhint("Give a table, a view or a query whose first column is an %s (bigint, integer, "
						 "smallint or text).",
						 reader->id)));
}

static void
keys_end(DestReceiver *self)
{
}

/* Of the DestReceiver: one row. */
static bool
keys_row(TupleTableSlot *slot, DestReceiver *self)
{
	KeyReader *reader = (KeyReader *) self;
	bool null;
	Datum value = slot_getattr(slot, 1, &null);
	MemoryContext before = MemoryContextSwitchTo(reader->context);

	if (null)
		reader->take(reader->arg, NULL);
	else
	{
		MrKey key = mr_key_of(value, reader->type);

		reader->take(reader->arg, &key);
	}
	MemoryContextSwitchTo(before);
	if (++reader->n % RESET_ROWS == 0)
		MemoryContextReset(reader->context);
	return true;
}

/* Give the first column of a query to take, row by row; returns how many rows there were.  what, id: for messages. */
static uint64
read_keys(SPIPlanPtr plan, const char *what, const char *id, TakeKey take, void *arg)
{
	KeyReader reader = {.what = what, .id = id, .take = take, .arg = arg};
	SPIExecuteOptions options = {.read_only = true, .dest = &reader.dest};
	int result;

	reader.dest = (DestReceiver){keys_row, keys_start, keys_end, keys_end, DestNone};
	reader.context = AllocSetContextCreate(CurrentMemoryContext, "millrace ids", ALLOCSET_DEFAULT_SIZES);
	result = SPI_execute_plan_extended(plan, &options);
	if (result < 0)
		elog(ERROR, "%s: %s", what, SPI_result_code_string(result));
	MemoryContextDelete(reader.context);
	return reader.n;
}

/* ---- candidates ---- */

typedef struct KeptPlan
{
	char *given; /* NULL: free */
	char *path;	 /* what names meant */
	Oid user;
	SPIPlanPtr plan;
	uint64 last_use;
	int n_calls; /* that are under way with it */
} KeptPlan;

typedef struct PlanUse
{
	MemoryContextCallback callback;
	KeptPlan *kept;
} PlanUse;

static void
end_use(void *arg)
{
	((PlanUse *) arg)->kept->n_calls--;
}

/* Until the current memory context goes, by an error too. */
static SPIPlanPtr
use_plan(KeptPlan *kept, uint64 now)
{
	PlanUse *use = palloc(sizeof(PlanUse));

	use->kept = kept;
	use->callback.func = end_use;
	use->callback.arg = use;
	kept->n_calls++;
	kept->last_use = now;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &use->callback);
	return kept->plan;
}

/*
 * The plan for a text, kept for the next call.  It is made again by the server when what it reads changes.  Candidates may
 * call functions that have others recommended: what a call is running stays.
 */
static SPIPlanPtr
candidates_plan(const char *given)
{
	static KeptPlan plans[MAX_PLANS];
	static uint64 clock = 0;
	KeptPlan *kept = NULL;
	SPIPlanPtr plan;

	for (int i = 0; i < MAX_PLANS; i++)
	{
		if (plans[i].given && plans[i].user == GetUserId() && strcmp(plans[i].given, given) == 0 &&
			strcmp(plans[i].path, namespace_search_path) == 0)
			return use_plan(&plans[i], ++clock);
		if (plans[i].n_calls == 0 && (kept == NULL || plans[i].last_use < kept->last_use))
			kept = &plans[i];
	}
	plan = SPI_prepare(mr_query_of(given, "candidates", "the item"), 0, NULL);
	if (plan == NULL)
		elog(ERROR, "candidates: %s", SPI_result_code_string(SPI_result));
	if (kept == NULL)
		return plan; /* which goes with the call */
	if (kept->given)
	{
		SPI_freeplan(kept->plan);
		pfree(kept->given);
		pfree(kept->path);
		kept->given = NULL;
	}
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep a plan");
	kept->path = MemoryContextStrdup(TopMemoryContext, namespace_search_path);
	kept->user = GetUserId();
	kept->plan = plan;
	kept->given = MemoryContextStrdup(TopMemoryContext, given);
	return use_plan(kept, ++clock);
}

/* Rows of the model's items: candidates. */
typedef struct Candidates
{
	const MrIds *items;
	int32 *rows; /* size */
	int64 n;
	int64 size;
	bool sorted;
	MrKey *others; /* others_size: those that are no items of the model */
	int64 n_others;
	int64 others_size;
	MemoryContext context;
} Candidates;

static void
add_other(Candidates *candidates, const MrKey *key)
{
	MrKey *other;

	if (candidates->n_others == candidates->others_size)
	{
		candidates->others_size = Max(candidates->others_size * 2, 64);
		candidates->others = candidates->others
			? repalloc_huge(candidates->others, candidates->others_size * sizeof(MrKey))
			: MemoryContextAllocHuge(candidates->context, candidates->others_size * sizeof(MrKey));
	}
	other = &candidates->others[candidates->n_others++];
	*other = *key;
	if (key->text)
		other->bytes =
			memcpy(MemoryContextAlloc(candidates->context, key->n_bytes + 1), key->bytes, key->n_bytes);
}

static void
take_candidate(void *arg, const MrKey *key)
{
	Candidates *candidates = arg;
	int64 row = key ? mr_ids_find(candidates->items, key) : -1;

	if (row < 0)
	{
		if (key)
			add_other(candidates, key);
		return;
	}
	if (candidates->n == candidates->size)
	{
		candidates->size = Max(candidates->size * 2, 1024);
		candidates->rows = candidates->rows
			? repalloc_huge(candidates->rows, candidates->size * sizeof(int32))
			: MemoryContextAllocHuge(candidates->context, candidates->size * sizeof(int32));
	}
	candidates->sorted &= candidates->n == 0 || candidates->rows[candidates->n - 1] < row;
	candidates->rows[candidates->n++] = (int32) row;
}

static void
candidates_context(void *arg)
{
	errcontext("reading the candidates");
}

/* What a function keeps while the statement runs that calls it. */
typedef struct Kept
{
	char *given;
	pg_uuid_t uuid;
	int32 *rows; /* ascending and distinct */
	int64 n;
	MrKey *others; /* in order */
	int64 n_others;
	MemoryContext context; /* of all that; NULL: nothing is kept yet */
} Kept;

static void
no_candidates(const MrModel *model, uint64 n_given)
{
	if (n_given == 0)
		ereport(NOTICE,
				(errmsg("there are no candidates: their query returned no rows"),
				 errdetail("So nothing is recommended.")));
	else
		ereport(NOTICE,
				(errmsg("model \"%s\" knows none of the candidates", model->name),
				 errdetail("Only a baseline of your own can list them.")));
}

void
mr_candidates(FunctionCallInfo fcinfo, const MrModel *model, const char *given, MrWish *wish)
{
	FmgrInfo *function = fcinfo->flinfo;
	Kept *kept = function->fn_extra;
	ErrorContextCallback callback = {error_context_stack, candidates_context, NULL};
	Candidates candidates = {.items = &model->items.ids, .sorted = true};
	uint64 n_given;

	if (kept == NULL)
		kept = function->fn_extra = MemoryContextAllocZero(function->fn_mcxt, sizeof(Kept));
	if (kept->context == NULL || strcmp(kept->given, given) != 0 ||
		memcmp(&kept->uuid, &model->uuid, sizeof(pg_uuid_t)) != 0)
	{
		error_context_stack = &callback;
		candidates.context =
			AllocSetContextCreate(function->fn_mcxt, "millrace candidates", ALLOCSET_DEFAULT_SIZES);
		n_given = read_keys(candidates_plan(given), "candidates", "item id", take_candidate, &candidates);
		error_context_stack = callback.previous;
		if (!candidates.sorted)
		{
			qsort(candidates.rows, candidates.n, sizeof(int32), mr_compare_rows);
			candidates.n = qunique(candidates.rows, candidates.n, sizeof(int32), mr_compare_rows);
		}
		if (candidates.n == 0)
			no_candidates(model, n_given);
		qsort(candidates.others, candidates.n_others, sizeof(MrKey), compare_keys);
		if (kept->context)
			MemoryContextDelete(kept->context);
		kept->context = candidates.context;
		kept->given = MemoryContextStrdup(kept->context, given);
		kept->uuid = model->uuid;
		kept->rows = candidates.rows ? candidates.rows : MemoryContextAlloc(kept->context, sizeof(int32));
		kept->n = candidates.n;
		kept->others = candidates.others;
		kept->n_others = candidates.n_others;
	}
	wish->only = kept->rows;
	wish->n_only = kept->n;
	wish->others = kept->others;
	wish->n_others = kept->n_others;
}

/* ---- arguments ---- */

bool
mr_bool_arg(FunctionCallInfo fcinfo, int n, const char *name)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be NULL", name)));
	return PG_GETARG_BOOL(n);
}

static char *
text_arg(FunctionCallInfo fcinfo, int n)
{
	return PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));
}

int64
mr_k_arg(FunctionCallInfo fcinfo, int n)
{
	if (PG_ARGISNULL(n) || PG_GETARG_INT32(n) <= 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("k must be at least 1")));
	return PG_GETARG_INT32(n);
}

static float
own_history_arg(FunctionCallInfo fcinfo, int n)
{
	double weight = PG_ARGISNULL(n) ? NAN : PG_GETARG_FLOAT8(n);

	if (!PG_ARGISNULL(n) && !(weight >= 0 && weight <= FLT_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("own_history must be 0 or more, not %g", weight),
				 errhint("It is the weight of what a user has; 0: none, NULL: the model's own.")));
	return (float) weight;
}

/* Of the open model: what limits the list besides k.  Arguments candidates, max_per_category, baseline, from n on. */
static void
limit_args(FunctionCallInfo fcinfo, int n, MrModel *model, MrWish *wish)
{
	if (!PG_ARGISNULL(n + 1))
	{
		wish->max_per_category = PG_GETARG_INT32(n + 1);
		if (wish->max_per_category < 1)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("max_per_category must be at least 1, not %d", wish->max_per_category),
					 errhint("NULL: no limit.")));
		if (mr_lists_open(model)->category == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("model \"%s\" has no categories", model->name),
					 errhint("Set the features of its items: SELECT millrace.set_item_features(%s, "
							 "'SELECT item, category FROM …').",
							 quote_literal_cstr(model->name))));
	}
	wish->baseline = text_arg(fcinfo, n + 2);
	if (!PG_ARGISNULL(n))
		mr_candidates(fcinfo, model, mr_name_arg(fcinfo, n, "candidates"), wish);
}

/* ---- rows ---- */

/* Texts are made once: of sources, and of items if there are many lists. */
typedef struct Writer
{
	ReturnSetInfo *rsinfo;
	const MrKey *users; /* of the run; NULL: one user, who is not written */
	Datum sources[MR_N_LIST_SOURCES];
	Datum *items;		   /* of rows of the model's items: text, or 0 if not made yet; NULL: not kept */
	MemoryContext context; /* of what is kept */
	MemoryContext row_context;
} Writer;

Datum
mr_key_datum(const MrKey *key)
{
	char digits[MAXINT8LEN + 1];

	if (key->text)
		return PointerGetDatum(cstring_to_text_with_len(key->bytes, key->n_bytes));
	return PointerGetDatum(cstring_to_text_with_len(digits, pg_lltoa(key->value, digits)));
}

static Datum
item_text(const Writer *writer, const MrListed *listed)
{
	if (writer->items == NULL || listed->row < 0)
		return mr_key_datum(&listed->item);
	if (writer->items[listed->row] == 0)
	{
		MemoryContext before = MemoryContextSwitchTo(writer->context);

		writer->items[listed->row] = mr_key_datum(&listed->item);
		MemoryContextSwitchTo(before);
	}
	return writer->items[listed->row];
}

/* The sink: rows (rank, item_id, item, score, source), after user_id and user if there are many. */
static void
write_list(void *arg, int64 i, const MrListed *list, int64 n, const MrHistory *history)
{
	Writer *writer = arg;
	ReturnSetInfo *rsinfo = writer->rsinfo;
	const MrKey *user = writer->users ? &writer->users[i] : NULL;
	MemoryContext before = MemoryContextSwitchTo(writer->row_context);
	Datum values[7];
	bool nulls[7] = {false};
	int c = 0;

	if (user)
	{
		nulls[0] = user->text;
		values[0] = Int64GetDatum(user->value);
		nulls[1] = user->text && user->bytes == NULL;
		values[1] = nulls[1] ? 0 : mr_key_datum(user);
		c = 2;
	}
	for (int64 j = 0; j < n; j++)
	{
		const MrListed *listed = &list[j];

		values[c] = Int32GetDatum((int32) (j + 1));
		nulls[c + 1] = listed->item.text;
		values[c + 1] = Int64GetDatum(listed->item.value);
		values[c + 2] = item_text(writer, listed);
		values[c + 3] = Float4GetDatum(listed->score);
		values[c + 4] = writer->sources[listed->source];
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	MemoryContextSwitchTo(before);
	MemoryContextReset(writer->row_context);
}

static void
writer_init(Writer *writer, FunctionCallInfo fcinfo)
{
	writer->rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	writer->context = CurrentMemoryContext;
	writer->row_context = AllocSetContextCreate(CurrentMemoryContext, "millrace row", ALLOCSET_DEFAULT_SIZES);
	for (int i = 0; i < MR_N_LIST_SOURCES; i++)
		writer->sources[i] = CStringGetTextDatum(mr_list_source_name(i));
}

/* ---- one user ---- */

static void
recommend_to(FunctionCallInfo fcinfo, const MrKey *user)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrWish wish = MR_DEFAULT_WISH;
	Writer writer = {0};
	MrModel *model;

	wish.k = mr_k_arg(fcinfo, 2);
	wish.exclude_seen = mr_bool_arg(fcinfo, 3, "exclude_seen");
	wish.own_history = own_history_arg(fcinfo, 7);
	wish.fold_in = mr_bool_arg(fcinfo, 8, "fold_in");
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	model = mr_model_open(name);
	limit_args(fcinfo, 4, model, &wish);
	writer_init(&writer, fcinfo);
	mr_recommend_many(model, &wish, user, 1, 1, write_list, &writer);
	SPI_finish();
}

Datum
mr_recommend_bigint(PG_FUNCTION_ARGS)
{
	MrKey user = {.text = PG_ARGISNULL(1)};

	if (!PG_ARGISNULL(1))
		user.value = PG_GETARG_INT64(1);
	recommend_to(fcinfo, &user);
	PG_RETURN_NULL();
}

Datum
mr_recommend_text(PG_FUNCTION_ARGS)
{
	MrKey user = {.text = true};

	if (!PG_ARGISNULL(1))
		user = mr_key_from_text(PG_GETARG_TEXT_PP(1));
	recommend_to(fcinfo, &user);
	PG_RETURN_NULL();
}

/* ---- many users ---- */

typedef struct Users
{
	MrBudget *budget;
	MrKey *keys; /* size */
	int64 n;
	int64 size;
	bool sorted; /* ascending and distinct so far */
	bool nobody;
} Users;

static void
add_user(Users *users, MrKey key)
{
	if (users->n == users->size)
	{
		int64 size = Max(users->size * 2, 1024);
		MrKey *keys = mr_reserve(users->budget, size * sizeof(MrKey));

		if (users->n > 0)
			memcpy(keys, users->keys, users->n * sizeof(MrKey));
		mr_release(users->budget, users->keys);
		users->keys = keys;
		users->size = size;
	}
	users->sorted &= users->n == 0 || compare_keys(&users->keys[users->n - 1], &key) < 0;
	users->keys[users->n++] = key;
}

static void
take_user(void *arg, const MrKey *key)
{
	Users *users = arg;
	MrKey own;

	if (key == NULL)
	{
		users->nobody = true;
		return;
	}
	own = *key;
	if (key->text)
	{
		if (key->n_bytes > MAX_KEY_BYTES)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("users: an id has " INT64_FORMAT " bytes, more than %d", key->n_bytes,
							MAX_KEY_BYTES)));
		own.bytes = memcpy(mr_reserve(users->budget, key->n_bytes + 1), key->bytes, key->n_bytes);
	}
	add_user(users, own);
}

static void
users_context(void *arg)
{
	errcontext("reading the users");
}

/* The users of the caller's query, each once, in the order of ids; if there is a NULL, nobody is the last of them. */
static void
read_users(Users *users, const char *given)
{
	ErrorContextCallback callback = {error_context_stack, users_context, NULL};
	SPIPlanPtr plan;

	error_context_stack = &callback;
	plan = SPI_prepare(mr_query_of(given, "users", "the user"), 0, NULL);
	if (plan == NULL)
		elog(ERROR, "users: %s", SPI_result_code_string(SPI_result));
	(void) read_keys(plan, "users", "user id", take_user, users);
	SPI_freeplan(plan);
	error_context_stack = callback.previous;
	if (!users->sorted)
	{
		qsort(users->keys, users->n, sizeof(MrKey), compare_keys);
		users->n = qunique(users->keys, users->n, sizeof(MrKey), compare_keys);
	}
	if (users->nobody)
		add_user(users, (MrKey){.text = true});
}

/* All users that the model knows. */
static void
known_users(Users *users, const MrModel *model)
{
	const MrIds *ids = &model->users.ids;

	users->keys = mr_reserve(users->budget, (ids->n + 1) * sizeof(MrKey));
	users->n = ids->n;
	for (int64 i = 0; i < ids->n; i++)
		users->keys[i] = mr_ids_key(ids, i);
}

Datum
mr_recommend_for(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	char *given = PG_ARGISNULL(1) ? NULL : mr_name_arg(fcinfo, 1, "users");
	MrWish wish = MR_DEFAULT_WISH;
	Writer writer = {0};
	Users users = {.sorted = true};
	MrModel *model;

	wish.k = mr_k_arg(fcinfo, 2);
	wish.exclude_seen = mr_bool_arg(fcinfo, 3, "exclude_seen");
	wish.own_history = own_history_arg(fcinfo, 7);
	wish.fold_in = mr_bool_arg(fcinfo, 8, "fold_in");
	if (PG_ARGISNULL(9) || PG_GETARG_INT32(9) < 0)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("threads must be 0 or more")));
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	users.budget = mr_budget_create("users");
	model = mr_model_open(name);
	limit_args(fcinfo, 4, model, &wish);
	if (given)
		read_users(&users, given);
	else
		known_users(&users, model);
	writer_init(&writer, fcinfo);
	writer.users = users.keys;
	writer.items = palloc0(model->items.ids.n * sizeof(Datum) + 1);
	mr_recommend_many(model, &wish, users.keys, users.n, PG_GETARG_INT32(9), write_list, &writer);
	SPI_finish();
	PG_RETURN_NULL();
}

/* ---- from items ---- */

/* One item that is given, before they are sorted. */
typedef struct Given
{
	int32 row;
	int32 number;
	double value;
} Given;

static int
compare_given(const void *a, const void *b)
{
	const Given *given_a = a;
	const Given *given_b = b;

	if (given_a->row != given_b->row)
		return given_a->row < given_b->row ? -1 : 1;
	return (given_a->number > given_b->number) - (given_a->number < given_b->number);
}

/* The weights of n items; NULL: all 1. */
static Datum *
weights_arg(FunctionCallInfo fcinfo, int argument, int n)
{
	Datum *weights;
	bool *nulls;
	int n_weights;

	if (PG_ARGISNULL(argument))
		return NULL;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(argument), FLOAT8OID, sizeof(float8), FLOAT8PASSBYVAL,
					  TYPALIGN_DOUBLE, &weights, &nulls, &n_weights);
	if (n_weights != n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("there are %d weights for %d items", n_weights, n),
				 errhint("Give one weight for each item, or NULL: all are 1.")));
	for (int i = 0; i < n; i++)
	{
		double weight = nulls[i] ? NAN : DatumGetFloat8(weights[i]);

		if (!(fabs(weight) <= FLT_MAX))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("a weight must be a finite number, not %s",
							nulls[i] ? "NULL" : psprintf("%g", weight))));
	}
	return weights;
}

/* The items of the array that the model knows, as what a user has.  Those it does not know are left out, and NULL. */
static MrHistory
given_items(FunctionCallInfo fcinfo, const MrModel *model, int items_argument, int weights_argument)
{
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(items_argument);
	bool is_text = ARR_ELEMTYPE(array) == TEXTOID;
	MrHistory history = {0};
	Datum *items;
	Datum *weights;
	Given *given;
	bool *nulls;
	int64 n_known = 0;
	int n;

	deconstruct_array(array, ARR_ELEMTYPE(array), is_text ? -1 : sizeof(int64),
					  is_text ? false : FLOAT8PASSBYVAL, is_text ? TYPALIGN_INT : TYPALIGN_DOUBLE, &items,
					  &nulls, &n);
	weights = weights_arg(fcinfo, weights_argument, n);
	given = palloc(n * sizeof(Given) + 1);
	for (int i = 0; i < n; i++)
	{
		MrKey key;
		int64 row;

		if (nulls[i])
			continue;
		key =
			is_text ? mr_key_from_text(DatumGetTextPP(items[i])) : (MrKey){.value = DatumGetInt64(items[i])};
		row = mr_ids_find(&model->items.ids, &key);
		if (row >= 0)
			given[n_known++] = (Given){(int32) row, i, weights ? DatumGetFloat8(weights[i]) : 1};
	}
	qsort(given, n_known, sizeof(Given), compare_given);
	history.row = palloc(n_known * sizeof(int32) + 1);
	history.value = palloc(n_known * sizeof(float) + 1);
	for (int64 i = 0; i < n_known;)
	{
		double sum = 0;
		int32 row = given[i].row;

		for (; i < n_known && given[i].row == row; i++)
			sum += given[i].value;
		history.row[history.n] = row;
		history.value[history.n++] = (float) sum;
	}
	return history;
}

Datum
mr_recommend_from_items(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrWish wish = MR_DEFAULT_WISH;
	Writer writer = {0};
	MrHistory history;
	MrModel *model;

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("items must not be NULL"),
				 errhint("Give an array; an empty one has the baseline recommended.")));
	wish.k = mr_k_arg(fcinfo, 2);
	wish.exclude_seen = mr_bool_arg(fcinfo, 3, "exclude_seen");
	wish.own_history = 0;
	InitMaterializedSRF(fcinfo, MAT_SRF_USE_EXPECTED_DESC);
	SPI_connect();
	model = mr_model_open(name);
	limit_args(fcinfo, 4, model, &wish);
	history = given_items(fcinfo, model, 1, 7);
	writer_init(&writer, fcinfo);
	mr_recommend_given(model, &wish, &history, write_list, &writer);
	SPI_finish();
	PG_RETURN_NULL();
}
