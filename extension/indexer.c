/*
 * indexer.c: millrace.fit_indexer, index_of, index_size, one_hot: numbers for the values of a column, and numbers as vectors.
 *
 * PostgreSQL counts the values of the query's first column in their text form; the most frequent is number 0, equally
 * frequent ones stand in bytewise order.  So numbers depend on the rows alone, not on their order, locale or plan.  What is
 * fitted are rows of millrace.index_label; a function that reads them keeps them as a hash table (fitted.c).
 */
#include "model.h"

#include <math.h>

#include "common/hashfn.h"
#include "mb/pg_wchar.h"
#include "tcop/utility.h"
#include "utils/json.h"

PG_FUNCTION_INFO_V1(mr_fit_indexer);
PG_FUNCTION_INFO_V1(mr_index_of);
PG_FUNCTION_INFO_V1(mr_index_size);
PG_FUNCTION_INFO_V1(mr_one_hot);

#define MAX_LABELS (INT32_MAX / 2) /* the hash table has as many slots again, and 'keep' one number more */
#define INSERT_ROWS 10000		   /* at a time, or so many bytes, whichever is less */
#define INSERT_BYTES (16 * 1024 * 1024)
#define INTERRUPT_MASK 0xFFFF /* look for interrupts once in so many values */

/* What index_of does with a value that the indexer does not know, and with NULL. */
typedef enum Unknown
{
	UNKNOWN_ERROR,
	UNKNOWN_KEEP, /* one number for all of them, behind the others */
	UNKNOWN_NULL
} Unknown;

static const char *const UNKNOWN[] = {"error", "keep", "null", NULL};

/* ---- fitting ---- */

typedef struct Fitting
{
	double start_ms;
	char *name;
	char *given; /* the argument; NULL: query is known */
	char *query;
	ArrayType *settings;
	Oid owner;
	Unknown unknown;
	bool activate;
	/* result */
	char *columns; /* of the query, as JSON */
	const MrUses *uses;
	int64 n_rows;
	int64 n_nulls;
} Fitting;

/* Values with their counts, as they come; the arrays are the budget's. */
typedef struct Labels
{
	DestReceiver dest;
	MrBudget *budget;
	int64 n;
	int64 size;	   /* of starts, less one, and of counts */
	int64 *starts; /* of each value in bytes, and where the last one ends */
	int64 *counts;
	char *bytes;
	Size n_bytes;
	int64 n_nulls;
} Labels;

/* A larger piece of the budget with the same contents. */
static void *
regrow(MrBudget *budget, void *memory, Size used, Size n_bytes)
{
	void *larger = mr_reserve(budget, n_bytes);

	if (used > 0)
		memcpy(larger, memory, used);
	if (memory)
		mr_release(budget, memory);
	return larger;
}

static void
make_room(Labels *labels, Size n_bytes)
{
	Size used = labels->n > 0 ? labels->starts[labels->n] : 0;

	if (labels->n == labels->size)
	{
		int64 size = Max(labels->size * 2, 1024);

		if (labels->n >= MAX_LABELS)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("an indexer can have at most %d values", MAX_LABELS)));
		labels->starts = regrow(labels->budget, labels->starts, labels->n ? (labels->n + 1) * 8 : 0,
								(size + 1) * sizeof(int64));
		labels->counts = regrow(labels->budget, labels->counts, labels->n * 8, size * sizeof(int64));
		labels->starts[0] = 0;
		labels->size = size;
	}
	if (used + n_bytes > labels->n_bytes)
	{
		labels->n_bytes = Max(2 * labels->n_bytes, used + n_bytes + 16384);
		labels->bytes = regrow(labels->budget, labels->bytes, used, labels->n_bytes);
	}
}

/* Of a query that returns values as text and their counts. */
static bool
receive_label(TupleTableSlot *slot, DestReceiver *self)
{
	Labels *labels = (Labels *) self;
	text *value;
	Size n_bytes;
	int64 count;

	slot_getallattrs(slot);
	count = DatumGetInt64(slot->tts_values[1]);
	if (slot->tts_isnull[0])
	{
		labels->n_nulls = count;
		return true;
	}
	value = DatumGetTextPP(slot->tts_values[0]);
	n_bytes = VARSIZE_ANY_EXHDR(value);
	make_room(labels, n_bytes);
	memcpy(labels->bytes + labels->starts[labels->n], VARDATA_ANY(value), n_bytes);
	labels->counts[labels->n] = count;
	labels->starts[labels->n + 1] = labels->starts[labels->n] + n_bytes;
	labels->n++;
	if ((Pointer) value != DatumGetPointer(slot->tts_values[0]))
		pfree(value);
	return true;
}

static void
receive_start(DestReceiver *self, int operation, TupleDesc desc)
{
}

static void
receive_end(DestReceiver *self)
{
}

/* Values of the query's first column with their counts; all columns have new names, so that none of theirs is in the way. */
static char *
counting_query(const char *query, int n_columns)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql,
					 "SELECT q.c1::pg_catalog.text COLLATE pg_catalog.\"C\", pg_catalog.count(*) FROM "
					 "(\n%s\n) AS q(c1",
					 query);
	for (int i = 2; i <= n_columns; i++)
		appendStringInfo(&sql, ", c%d", i);
	appendStringInfoString(&sql, ") GROUP BY 1 ORDER BY 2 DESC, 1");
	return sql.data;
}

/* [{"name": …, "position": …}, …]: all of them, as pipelines tell the first one by its name. */
static char *
columns_json(TupleDesc desc)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < desc->natts; i++)
	{
		appendStringInfoString(&json, i ? ", {\"name\": " : "[{\"name\": ");
		escape_json(&json, NameStr(TupleDescAttr(desc, i)->attname));
		appendStringInfo(&json, ", \"position\": %d}", i + 1);
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

static void
no_values(const char *what, const Fitting *fitting)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: there are no values", what),
		 errdetail("The query is: %s", fitting->query),
		 errhint(fitting->n_nulls > 0 ? "The first column is NULL in all rows."
									  : "Check its conditions, and whether its tables have been filled.")));
}

static void
count_values(Fitting *fitting, MrBudget *budget, Labels *labels)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &labels->dest};
	const char *what = psprintf("indexer \"%s\"", fitting->name);
	MrPlan *as_given = palloc0(sizeof(MrPlan));
	MrPlan *plan = palloc0(sizeof(MrPlan));
	TupleDesc desc;
	int n_columns;
	int result;

	mr_plan_query(as_given, budget->context, fitting->query, what, true);
	desc = mr_single_query(as_given->plan, what)->resultDesc;
	n_columns = desc->natts;
	if (n_columns == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: the query has no columns", what),
				 errhint("Its first column has the values.")));
	fitting->columns = columns_json(desc);
	fitting->uses = mr_query_uses(as_given->plan);
	mr_plan_free(as_given);
	*labels = (Labels){.dest = {receive_label, receive_start, receive_end, receive_end, DestNone},
					   .budget = budget};
	mr_plan_query(plan, budget->context, counting_query(fitting->query, n_columns), what, true);
	result = SPI_execute_plan_extended(plan->plan, &options);
	if (result < 0)
		elog(ERROR, "%s: %s", what, SPI_result_code_string(result));
	mr_plan_free(plan);
	fitting->n_nulls = fitting->n_rows = labels->n_nulls;
	for (int64 i = 0; i < labels->n; i++)
		fitting->n_rows += labels->counts[i];
	if (labels->n == 0)
		no_values(what, fitting);
}

/* Where the values end that are inserted together, from lo: one at least. */
static int64
batch_end(const Labels *labels, int64 lo)
{
	int64 most = Min(lo + INSERT_ROWS, labels->n);
	int64 hi = lo + 1;

	while (hi < most && labels->starts[hi + 1] - labels->starts[lo] <= INSERT_BYTES)
		hi++;
	return hi;
}

/* In mr_enter_catalog. */
static void
store_labels(const Fitting *fitting, int version, const Labels *labels)
{
	Oid types[5] = {TEXTOID, INT4OID, INT4OID, TEXTARRAYOID, INT8ARRAYOID};
	Datum values[5] = {CStringGetTextDatum(fitting->name), Int32GetDatum(version)};
	Datum *elements = palloc(INSERT_ROWS * sizeof(Datum));
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace labels", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);

	for (int64 lo = 0, hi; lo < labels->n; lo = hi)
	{
		int n;

		hi = batch_end(labels, lo);
		n = (int) (hi - lo);
		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < n; i++)
			elements[i] = PointerGetDatum(
				cstring_to_text_with_len(labels->bytes + labels->starts[lo + i],
										 (int) (labels->starts[lo + i + 1] - labels->starts[lo + i])));
		values[2] = Int32GetDatum((int32) lo);
		values[3] = PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false, TYPALIGN_INT));
		for (int i = 0; i < n; i++)
			elements[i] = Int64GetDatum(labels->counts[lo + i]);
		values[4] = PointerGetDatum(construct_array(elements, n, INT8OID, 8, true, TYPALIGN_DOUBLE));
		mr_exec_args("INSERT INTO millrace.index_label (model, version, index, value, count) SELECT $1, $2, "
					 "$3 + u.o::int4 - 1, u.v, u.c FROM ROWS FROM (unnest($4), unnest($5)) WITH ORDINALITY "
					 "AS u(v, c, o)",
					 SPI_OK_INSERT, false, lengthof(types), types, values, NULL);
		MemoryContextReset(context);
	}
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

static int
store(const Fitting *fitting, const Labels *labels)
{
	MrNewVersion new_version = {
		.name = fitting->name,
		.kind = MR_KIND_INDEXER,
		.owner = fitting->owner,
		.query = fitting->query,
		.settings = fitting->settings,
		.parameters = psprintf("{\"on_unknown\": \"%s\", \"columns\": %s}", UNKNOWN[fitting->unknown],
							   fitting->columns),
		.metrics = psprintf("{\"seconds\": %.3f, \"values\": " INT64_FORMAT ", \"nulls\": " INT64_FORMAT "}",
							(mr_now_ms() - fitting->start_ms) / 1e3, labels->n, fitting->n_nulls),
		.uses = fitting->uses,
		.n_users = -1,
		.n_items = -1,
		.n_ratings = -1,
		.n_rows = fitting->n_rows,
	};
	MrGuard guard;
	int version;

	mr_enter_catalog(&guard, "model");
	version = mr_version_store(&new_version, NULL);
	store_labels(fitting, version, labels);
	if (fitting->activate)
		(void) mr_version_activate(fitting->name, version);
	mr_leave(&guard);
	return version;
}

/* From a definition to a stored version.  The model is locked; SPI is connected, and ends here; the name is not SPI's. */
static Datum
fit(FunctionCallInfo fcinfo, Fitting *fitting)
{
	MrBudget *budget = mr_budget_create("millrace indexer");
	Labels labels;
	MrGuard guard;
	int version;

	mr_enter(&guard, fitting->owner, fitting->settings);
	if (fitting->query == NULL)
		fitting->query = mr_query_of(fitting->given, "query", "the values");
	count_values(fitting, budget, &labels);
	mr_leave(&guard);
	version = store(fitting, &labels);
	MemoryContextDelete(budget->context);
	SPI_finish();
	return mr_fitted_row(fcinfo, fitting->name, version, fitting->n_rows, fitting->start_ms,
						 fitting->activate);
}

Datum
mr_fit_indexer(PG_FUNCTION_ARGS)
{
	Fitting fitting = {.start_ms = mr_now_ms(),
					   .name = mr_name_arg(fcinfo, 0, "name"),
					   .given = mr_name_arg(fcinfo, 1, "query")};

	PreventCommandIfReadOnly("millrace.fit_indexer()");
	fitting.unknown = mr_choice("on_unknown", UNKNOWN, mr_name_arg(fcinfo, 2, "on_unknown"));
	fitting.activate = mr_bool_arg(fcinfo, 3, "activate");
	fitting.owner = mr_model_lock_kind(fitting.name, MR_KIND_INDEXER);
	fitting.settings = mr_current_settings();
	SPI_connect();
	return fit(fcinfo, &fitting);
}

Datum
mr_indexer_retrain(FunctionCallInfo fcinfo)
{
	Fitting fitting = {.start_ms = mr_now_ms(),
					   .name = mr_name_arg(fcinfo, 0, "model"),
					   .activate = mr_bool_arg(fcinfo, 7, "activate")};
	MrRepeat repeat;

	fitting.owner = mr_model_lock_kind(fitting.name, MR_KIND_INDEXER);
	SPI_connect();
	mr_model_repeat(fitting.name, &repeat);
	fitting.query = repeat.query;
	fitting.settings = repeat.settings;
	fitting.unknown = mr_choice("on_unknown", UNKNOWN, mr_json_field(repeat.parameters, "on_unknown"));
	return fit(fcinfo, &fitting);
}

/* ---- what a backend keeps ---- */

typedef struct Slot
{
	uint32 hash;
	int32 index; /* -1: empty */
} Slot;

/* A hash table with open addressing. */
typedef struct Indexer
{
	Unknown unknown;
	int32 n;
	/* while it is read: room, and columns */
	int32 size;
	AttrNumber index_column;
	AttrNumber value_column;
	int64 *starts; /* of each value in bytes, and where the last one ends */
	char *bytes;
	Size n_bytes;
	uint32 mask;
	Slot *slots;
} Indexer;

static void
load_row(void *arg, Relation rel, HeapTuple tuple)
{
	Indexer *indexer = arg;
	TupleDesc desc = RelationGetDescr(rel);
	int32 index;
	Datum datum;
	text *value;
	Size n_bytes;
	Size used;
	bool null;

	if (indexer->n == 0)
	{
		indexer->index_column = get_attnum(RelationGetRelid(rel), "index");
		indexer->value_column = get_attnum(RelationGetRelid(rel), "value");
	}
	index = DatumGetInt32(heap_getattr(tuple, indexer->index_column, desc, &null));
	datum = heap_getattr(tuple, indexer->value_column, desc, &null);
	value = DatumGetTextPP(datum);
	n_bytes = VARSIZE_ANY_EXHDR(value);
	if (index != indexer->n || index >= MAX_LABELS)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a value is missing in millrace.index_label: index %d instead of %d", index,
						indexer->n)));
	if (indexer->n == indexer->size)
	{
		indexer->size = Max(indexer->size * 2, 16);
		indexer->starts = mr_grow(indexer->starts, (indexer->size + 1) * sizeof(int64));
		indexer->starts[0] = 0;
	}
	used = indexer->starts[indexer->n];
	if (used + n_bytes > indexer->n_bytes)
	{
		indexer->n_bytes = Max(2 * indexer->n_bytes, used + n_bytes + 64);
		indexer->bytes = mr_grow(indexer->bytes, indexer->n_bytes);
	}
	memcpy(indexer->bytes + used, VARDATA_ANY(value), n_bytes);
	indexer->starts[++indexer->n] = used + n_bytes;
	if ((Pointer) value != DatumGetPointer(datum))
		pfree(value);
}

/* Where a value stands, or would. */
static Slot *
find_slot(const Indexer *indexer, const char *bytes, Size n_bytes, uint32 hash)
{
	for (uint32 at = hash & indexer->mask;; at = (at + 1) & indexer->mask)
	{
		Slot *slot = &indexer->slots[at];
		const int64 *start;

		if (slot->index < 0)
			return slot;
		start = &indexer->starts[slot->index];
		if (slot->hash == hash && start[1] - start[0] == n_bytes &&
			memcmp(indexer->bytes + start[0], bytes, n_bytes) == 0)
			return slot;
	}
}

static void *
load(const char *name, int version, const char *parameters)
{
	Indexer *indexer = palloc0(sizeof(Indexer));
	uint32 n_slots = 16;

	indexer->unknown = mr_choice("on_unknown", UNKNOWN, mr_json_field(parameters, "on_unknown"));
	mr_version_rows("index_label", name, version, load_row, indexer);
	while (n_slots < 2 * (uint32) indexer->n)
		n_slots *= 2;
	indexer->mask = n_slots - 1;
	indexer->slots = MemoryContextAllocHuge(CurrentMemoryContext, n_slots * sizeof(Slot));
	for (uint32 i = 0; i < n_slots; i++)
		indexer->slots[i].index = -1;
	for (int32 i = 0; i < indexer->n; i++)
	{
		const char *bytes = indexer->bytes + indexer->starts[i];
		Size n_bytes = indexer->starts[i + 1] - indexer->starts[i];
		uint32 hash = hash_bytes((const unsigned char *) bytes, (int) n_bytes);

		if ((i & INTERRUPT_MASK) == 0)
			CHECK_FOR_INTERRUPTS();
		*find_slot(indexer, bytes, n_bytes, hash) = (Slot){hash, i};
	}
	return indexer;
}

/* ---- applying ---- */

static text *
text_arg(FunctionCallInfo fcinfo, int n, const char *argument)
{
	if (PG_ARGISNULL(n))
		mr_null_value(argument);
	return PG_GETARG_TEXT_PP(n);
}

static void
unknown_value(const MrFitted *fitted, const text *value)
{
	const char *bytes = value ? VARDATA_ANY(value) : NULL;
	int n_bytes = value ? (int) VARSIZE_ANY_EXHDR(value) : 0;

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 value ? errmsg("indexer \"%s\" does not know the value \"%.*s\"", fitted->name,
							pg_mbcliplen(bytes, n_bytes, 100), bytes)
				   : errmsg("indexer \"%s\" has no number for NULL", fitted->name),
			 errhint("Fit it with rows that have the value, or with on_unknown => 'keep' or 'null'.")));
}

Datum
mr_index_of(PG_FUNCTION_ARGS)
{
	const MrFitted *fitted = mr_fitted_open(fcinfo, text_arg(fcinfo, 0, "name"), MR_KIND_INDEXER, load);
	const Indexer *indexer = fitted->data;
	text *value = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);

	if (value)
	{
		const char *bytes = VARDATA_ANY(value);
		Size n_bytes = VARSIZE_ANY_EXHDR(value);
		const Slot *slot =
			find_slot(indexer, bytes, n_bytes, hash_bytes((const unsigned char *) bytes, (int) n_bytes));

		if (slot->index >= 0)
			PG_RETURN_INT32(slot->index);
	}
	if (indexer->unknown == UNKNOWN_ERROR)
		unknown_value(fitted, value);
	if (indexer->unknown == UNKNOWN_NULL)
		PG_RETURN_NULL();
	PG_RETURN_INT32(indexer->n);
}

Datum
mr_index_size(PG_FUNCTION_ARGS)
{
	const Indexer *indexer = mr_fitted_open(fcinfo, text_arg(fcinfo, 0, "name"), MR_KIND_INDEXER, load)->data;

	PG_RETURN_INT32(indexer->n + (indexer->unknown == UNKNOWN_KEEP));
}

Datum
mr_one_hot(PG_FUNCTION_ARGS)
{
	int32 index = PG_GETARG_INT32(0);
	int32 n = PG_GETARG_INT32(1);
	int32 width = PG_GETARG_BOOL(2) ? n - 1 : n;
	Size n_bytes = ARR_OVERHEAD_NONULLS(1) + (Size) Max(width, 0) * sizeof(float8);
	ArrayType *array;

	if (n < 1)
		mr_bad_value("n", "at least 1", psprintf("%d", n));
	if (index < 0 || index >= n)
		mr_bad_value("index", psprintf("between 0 and %d", n - 1), psprintf("%d", index));
	if (width == 0)
		PG_RETURN_ARRAYTYPE_P(construct_empty_array(FLOAT8OID));
	if (!AllocSizeIsValid(n_bytes))
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("an array of %d numbers is too large", width)));
	array = palloc0(n_bytes);
	SET_VARSIZE(array, n_bytes);
	array->ndim = 1;
	array->elemtype = FLOAT8OID;
	ARR_DIMS(array)[0] = width;
	ARR_LBOUND(array)[0] = 1;
	if (index < width)
		((float8 *) ARR_DATA_PTR(array))[index] = 1;
	PG_RETURN_ARRAYTYPE_P(array);
}
