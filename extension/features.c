/*
 * features.c: the only reader of feature queries.
 *
 * Each column of the query is a number or an array of numbers, one behind the other; the query is run to its end with a
 * receiver of our own, which writes the numbers of each row into one vector and hands that to a sink.  Points go into
 * chunks that never move once there is more than one.
 *
 * The query runs serially, and sequential scans begin where the table does: what is learnt from the rows may depend on
 * their order, but then only on that.
 */
#include "model.h"

#include <math.h>

#include "catalog/dependency.h"
#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "nodes/nodeFuncs.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/plancache.h"

#define CHUNK_BYTES (8 * 1024 * 1024)
#define FIRST_CHUNK_BYTES 65536
#define LEAST_CHUNK_ROWS 64
#define SHOWN_COLUMNS 10
#define INTERRUPT_MASK 0xFFFF /* look for interrupts once in so many points */

/* ---- the columns ---- */

typedef struct Column
{
	Oid type; /* of the number, or the elements; below any domain */
	bool is_array;
	int attribute; /* from 0 */
	int width;	   /* 0: not yet known */
} Column;

typedef struct Reader
{
	DestReceiver dest;
	MrBudget *budget;
	MrPoints *points;
	const char *what;
	MrNulls nulls;
	MrPointSink sink;
	void *arg;
	TupleDesc desc; /* of the query: what the executor hands over may have no names */
	int n_columns;	/* of points */
	Column *columns;
	Column weight; /* attribute -1: none */
	int n_attributes;
	double *x;
	MemoryContext context; /* for what is detoasted; reset after each row */
} Reader;

static bool
is_number(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID || type == FLOAT4OID || type == FLOAT8OID ||
		type == NUMERICOID || type == BOOLOID;
}

/* What a column of this type is; the type is InvalidOid if it is neither a number nor an array of numbers. */
static Column
column_of(int attribute, Oid type)
{
	Column column = {.attribute = attribute, .type = getBaseType(type)};
	Oid element = get_element_type(column.type);

	if (OidIsValid(element))
	{
		column.is_array = true;
		column.type = getBaseType(element);
	}
	else
		column.width = 1;
	if (!is_number(column.type))
		column.type = InvalidOid;
	return column;
}

static void
set_weight(Reader *reader, TupleDesc desc, const char *name)
{
	const char *what = reader->what;
	int found = -1;

	for (int i = 0; i < desc->natts; i++)
	{
		if (strcmp(NameStr(TupleDescAttr(desc, i)->attname), name) != 0)
			continue;
		if (found >= 0)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: more than one column is called \"%s\", which is to be the weight", what, name)));
		found = i;
	}
	if (found < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: there is no column \"%s\", which is to be the weight", what, name),
				 errhint("The weight is a column of the query, and no feature then.")));
	reader->weight = column_of(found, TupleDescAttr(desc, found)->atttypid);
	if (!OidIsValid(reader->weight.type) || reader->weight.is_array || reader->weight.type == BOOLOID)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: the weight \"%s\" is of type %s, not a number", what, name,
						format_type_be(TupleDescAttr(desc, found)->atttypid))));
}

static void
set_columns(Reader *reader, TupleDesc desc, const char *weight)
{
	MrPoints *points = reader->points;

	reader->desc = CreateTupleDescCopy(desc);
	reader->n_attributes = desc->natts;
	reader->weight.attribute = -1;
	if (weight)
		set_weight(reader, desc, weight);
	reader->columns = palloc0(desc->natts * sizeof(Column) + 1);
	points->names = palloc0(desc->natts * sizeof(char *) + 1);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute attribute = TupleDescAttr(desc, i);
		Column column = column_of(i, attribute->atttypid);

		if (i == reader->weight.attribute)
			continue;
		if (!OidIsValid(column.type))
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: column \"%s\" is of type %s, not a number or an array of numbers", reader->what,
						NameStr(attribute->attname), format_type_be(attribute->atttypid)),
				 errhint("Cast it, leave it out, or make numbers of it with millrace.fit_indexer, index_of "
						 "and one_hot.")));
		points->names[reader->n_columns] = pstrdup(NameStr(attribute->attname));
		reader->columns[reader->n_columns++] = column;
	}
	points->n_columns = reader->n_columns;
	points->widths = palloc0(reader->n_columns * sizeof(int) + 1);
	if (reader->n_columns == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: the query has no columns%s", reader->what, weight ? " but the weight" : ""),
				 errhint("Each column is a feature, a number, or some, an array of numbers.")));
}

/* ---- errors ---- */

/* The row as a detail. */
static char *
row_detail(const Reader *reader, TupleTableSlot *slot)
{
	TupleDesc desc = reader->desc;
	StringInfoData row;

	initStringInfo(&row);
	appendStringInfo(&row, "Row " INT64_FORMAT " has", reader->points->n_rows + 1);
	for (int i = 0; i < Min(desc->natts, SHOWN_COLUMNS); i++)
		appendStringInfo(&row, "%s %s = %s", i ? "," : "", NameStr(TupleDescAttr(desc, i)->attname),
						 mr_describe(slot, i));
	appendStringInfoString(&row, desc->natts > SHOWN_COLUMNS ? ", …" : ".");
	return row.data;
}

/* element: from 1; 0: the whole column */
static char *
name_element(const Reader *reader, const Column *column, int element)
{
	const char *name = NameStr(TupleDescAttr(reader->desc, column->attribute)->attname);

	return element > 0 ? psprintf("element %d of column \"%s\"", element, name)
					   : psprintf("column \"%s\"", name);
}

static void
null_error(const Reader *reader, TupleTableSlot *slot, const Column *column, int element)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s: %s is NULL", reader->what, name_element(reader, column, element)),
			 errdetail_internal("%s", row_detail(reader, slot)),
			 errhint("Give it a value with coalesce(), or leave such rows out with WHERE … IS NOT NULL.")));
}

static void
value_error(const Reader *reader, TupleTableSlot *slot, const Column *column, int element, double value)
{
	bool is_large = isinf(value) && column->type == NUMERICOID;

	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("%s: %s is %s", reader->what, name_element(reader, column, element),
					isnan(value)   ? "not a number"
						: is_large ? "infinite, or too large for double precision"
								   : "infinite"),
			 errdetail_internal("%s", row_detail(reader, slot)), errhint("Leave such rows out.")));
}

static void
width_error(const Reader *reader, TupleTableSlot *slot, const Column *column, int width)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s: %s has %d elements, and %d in the rows before", reader->what,
					name_element(reader, column, 0), width, column->width),
			 errdetail_internal("%s", row_detail(reader, slot)),
			 errhint("An array of features has the same number of elements in all rows.")));
}

/* ---- one row ---- */

/* The array of a column that is not NULL, of one dimension and the width of the column, which the first row sets. */
static ArrayType *
open_array(const Reader *reader, TupleTableSlot *slot, Column *column)
{
	MemoryContext before = MemoryContextSwitchTo(reader->context);
	ArrayType *array = DatumGetArrayTypeP(slot->tts_values[column->attribute]);
	int width;

	MemoryContextSwitchTo(before);
	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: %s has %d dimensions, not one", reader->what, name_element(reader, column, 0),
						ARR_NDIM(array)),
				 errdetail_internal("%s", row_detail(reader, slot))));
	width = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];
	if (width == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: %s is an empty array", reader->what, name_element(reader, column, 0)),
				 errdetail_internal("%s", row_detail(reader, slot))));
	if (column->width == 0)
		column->width = width;
	if (width != column->width)
		width_error(reader, slot, column, width);
	return array;
}

/* Elements of an array that has no NULL. */
static void
take_elements(MemoryContext context, const ArrayType *array, Oid type, int n, double *out)
{
	const char *data = ARR_DATA_PTR(array);

	switch (type)
	{
		case FLOAT8OID:
			memcpy(out, data, n * sizeof(double));
			return;
		case FLOAT4OID:
			for (int i = 0; i < n; i++)
				out[i] = ((const float4 *) data)[i];
			return;
		case INT4OID:
			for (int i = 0; i < n; i++)
				out[i] = ((const int32 *) data)[i];
			return;
		case INT2OID:
			for (int i = 0; i < n; i++)
				out[i] = ((const int16 *) data)[i];
			return;
		case INT8OID:
			for (int i = 0; i < n; i++)
				out[i] = (double) ((const int64 *) data)[i];
			return;
		case BOOLOID:
			for (int i = 0; i < n; i++)
				out[i] = ((const bool *) data)[i];
			return;
		default:
			for (int i = 0; i < n; i++)
			{
				data = (const char *) att_align_pointer(data, TYPALIGN_INT, -1, data);
				out[i] = mr_numeric_of(context, PointerGetDatum(data));
				data = att_addlength_pointer(data, -1, data);
			}
	}
}

/* Elements of an array that has NULL. */
static void
take_nulls(const Reader *reader, TupleTableSlot *slot, const Column *column, ArrayType *array, double *out)
{
	MemoryContext before = MemoryContextSwitchTo(reader->context);
	int16 length;
	bool by_value;
	char align;
	Datum *values;
	bool *nulls;
	int n;

	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &align);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, align, &values, &nulls, &n);
	MemoryContextSwitchTo(before);
	for (int i = 0; i < n; i++)
	{
		if (nulls[i] && reader->nulls == MR_NULLS_ERROR)
			null_error(reader, slot, column, i + 1);
		if (nulls[i])
			out[i] = reader->nulls == MR_NULLS_KEEP ? NAN : 0;
		else if (!isfinite(out[i] = mr_number_of(reader->context, values[i], column->type)))
			value_error(reader, slot, column, i + 1, out[i]);
	}
}

/* Whether all are finite; turns -0 into 0. */
static bool
check_finite(double *x, int n)
{
	uint64 bad = 0;

	for (int i = 0; i < n; i++)
	{
		uint64 bits;

		x[i] += 0.0;
		memcpy(&bits, &x[i], sizeof(bits));
		/* An exponent of all ones carries over into the sign. */
		bad |= (bits & UINT64CONST(0x7FF0000000000000)) + UINT64CONST(0x0010000000000000);
	}
	return bad >> 63 == 0;
}

/*
 * A small float8[] as tables have it, with a header of one byte and so not aligned, is not copied first.  False: it is not
 * that, or not as wide as the column.
 */
static bool
take_short(const struct varlena *stored, const Column *column, double *out)
{
	const char *body = VARDATA_SHORT(stored);
	const Size header_bytes = ARR_OVERHEAD_NONULLS(1) - VARHDRSZ;
	const Size data_bytes = column->width * sizeof(double);
	int32 header[2]; /* dimensions, offset of the data or 0 */

	if (!VARATT_IS_SHORT(stored) || column->type != FLOAT8OID ||
		VARSIZE_SHORT(stored) - VARHDRSZ_SHORT != header_bytes + data_bytes)
		return false;
	memcpy(header, body, sizeof(header));
	if (header[0] != 1 || header[1] != 0)
		return false;
	memcpy(out, body + header_bytes, data_bytes);
	return true;
}

static void
take_array(const Reader *reader, TupleTableSlot *slot, Column *column, double *out)
{
	ArrayType *array;

	if (take_short((struct varlena *) DatumGetPointer(slot->tts_values[column->attribute]), column, out) &&
		check_finite(out, column->width))
		return;
	array = open_array(reader, slot, column);
	if (ARR_HASNULL(array) && array_contains_nulls(array))
	{
		take_nulls(reader, slot, column, array, out);
		return;
	}
	take_elements(reader->context, array, column->type, column->width, out);
	if (check_finite(out, column->width))
		return;
	for (int i = 0; i < column->width; i++)
		if (!isfinite(out[i]))
			value_error(reader, slot, column, i + 1, out[i]);
}

static void
take_number(const Reader *reader, TupleTableSlot *slot, const Column *column, double *out)
{
	*out = mr_number_of(reader->context, slot->tts_values[column->attribute], column->type) + 0.0;
	if (!isfinite(*out))
		value_error(reader, slot, column, 0, *out);
}

/* The weight of a row. */
static double
take_weight(const Reader *reader, TupleTableSlot *slot)
{
	const Column *column = &reader->weight;
	double weight;

	if (column->attribute < 0)
		return 1;
	if (slot->tts_isnull[column->attribute])
		null_error(reader, slot, column, 0);
	take_number(reader, slot, column, &weight);
	if (weight < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s: the weight is below 0: %g", reader->what, weight),
				 errdetail_internal("%s", row_detail(reader, slot))));
	return weight;
}

/* The first row has the widths of arrays. */
static void
learn_widths(Reader *reader, TupleTableSlot *slot)
{
	MrPoints *points = reader->points;
	int64 width = 0;

	for (int i = 0; i < reader->n_columns; i++)
	{
		Column *column = &reader->columns[i];

		if (column->is_array && slot->tts_isnull[column->attribute])
			null_error(reader, slot, column, 0);
		if (column->is_array)
			(void) open_array(reader, slot, column);
		points->widths[i] = column->width;
		width += column->width;
	}
	if (width > MRC_MAX_FEATURES)
		ereport(
			ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("%s: " INT64_FORMAT " features, more than %d", reader->what, width, MRC_MAX_FEATURES)));
	points->core.d = (int) width;
	reader->x = MemoryContextAlloc(reader->budget->context, width * sizeof(double));
}

/* Of the DestReceiver: one row. */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	Reader *reader = (Reader *) self;
	double *x;
	double weight;

	slot_getallattrs(slot);
	if (reader->x == NULL)
		learn_widths(reader, slot);
	x = reader->x;
	for (int i = 0; i < reader->n_columns; i++)
	{
		Column *column = &reader->columns[i];

		if (!slot->tts_isnull[column->attribute])
		{
			if (column->is_array)
				take_array(reader, slot, column, x);
			else
				take_number(reader, slot, column, x);
		}
		else if (column->is_array || reader->nulls == MR_NULLS_ERROR)
			null_error(reader, slot, column, 0);
		else
			*x = reader->nulls == MR_NULLS_KEEP ? NAN : 0;
		x += column->width;
	}
	weight = take_weight(reader, slot);
	if (weight > 0)
		reader->sink(reader->arg, reader->points, reader->x, weight);
	reader->points->n_rows++;
	MemoryContextReset(reader->context);
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

/* ---- the query ---- */

static char *
columns_json(const Reader *reader)
{
	const MrPoints *points = reader->points;
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '[');
	for (int i = 0; i < points->n_columns; i++)
	{
		appendStringInfoString(&json, i ? ", {\"name\": " : "{\"name\": ");
		escape_json(&json, points->names[i]);
		appendStringInfo(&json, ", \"type\": \"%s%s\", \"width\": %d, \"position\": %d}",
						 format_type_be(reader->columns[i].type), reader->columns[i].is_array ? "[]" : "",
						 points->widths[i], reader->columns[i].attribute + 1);
	}
	appendStringInfoChar(&json, ']');
	return json.data;
}

/* Run the plan to its end. */
static void
run(Reader *reader, SPIPlanPtr plan)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &reader->dest};
	int gucs = NewGUCNestLevel();
	int result;

	(void) set_config_option("synchronize_seqscans", "off", PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true,
							 0, false);
	reader->dest = (DestReceiver){receive_row, receive_start, receive_end, receive_end, DestNone};
	result = SPI_execute_plan_extended(plan, &options);
	if (result < 0)
		elog(ERROR, "%s: %s", reader->what, SPI_result_code_string(result));
	AtEOXact_GUC(false, gucs);
}

MrPoints *
mr_points_scan(MrBudget *budget, const char *query, const char *weight, const char *what, bool as_owner,
			   MrNulls nulls, MrPointSink sink, void *arg)
{
	MemoryContext before = MemoryContextSwitchTo(budget->context);
	MrPoints *points = palloc0(sizeof(MrPoints));
	Reader reader = {
		.budget = budget, .points = points, .what = what, .nulls = nulls, .sink = sink, .arg = arg};
	MrPlan *plan = palloc0(sizeof(MrPlan));

	mr_plan_query(plan, budget->context, query, what, as_owner);
	set_columns(&reader, mr_single_query(plan->plan, what)->resultDesc, weight);
	points->uses = mr_query_uses(plan->plan);
	reader.context = AllocSetContextCreate(budget->context, "millrace features row", ALLOCSET_DEFAULT_SIZES);
	run(&reader, plan->plan);
	mr_plan_free(plan);
	MemoryContextDelete(reader.context);
	if (points->n_rows == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: there are no rows", what),
				 errdetail("The query is: %s", query),
				 errhint("Check its conditions, and whether its tables have been filled.")));
	points->columns_json = columns_json(&reader);
	MemoryContextSwitchTo(before);
	return points;
}

/* ---- points ---- */

/* An entry of the table of points; free if number is 0. */
typedef struct Slot
{
	uint32 hash;
	uint32 number; /* of the point, from 1 */
} Slot;

#define FIRST_SLOTS 1024
#define FIRST_CHECK 65536 /* a multiple of BATCH_ROWS */
#define BATCH_ROWS 32
#define MOST_MERGED (INT64CONST(1) << 30)

typedef struct Gatherer
{
	MrBudget *budget;
	const char *what;
	bool has_weights; /* a column has them */
	MrcPoints core;	  /* so far */
	int n_chunks;
	int max_chunks; /* room in the arrays */
	double **chunk;
	double **weight;  /* NULL: all 1 */
	double *ones;	  /* the weights of all chunks that came after merging was given up; NULL: not needed */
	bool is_weighted; /* a weight is not 1 */
	/* Merging: a hash table with linear probing, at most three quarters full; NULL: given up */
	Slot *slots;
	uint32 mask;
	int64 n_rows;	  /* that have been merged */
	int64 next_check; /* after so many rows it is asked again whether merging pays */
	int64 n_checked;  /* points at the last check */
	/* rows that are merged together, so that they wait for memory at the same time */
	int n_batch;
	double *batch; /* BATCH_ROWS x d */
	double batch_weight[BATCH_ROWS];
} Gatherer;


static Size
chunk_bytes(const MrcPoints *core, int64 n_rows)
{
	return n_rows * core->d * sizeof(double);
}

/* Rows of a chunk of about so many bytes, a power of two. */
static int64
chunk_rows(const MrcPoints *core, Size n_bytes)
{
	int64 n_rows = LEAST_CHUNK_ROWS;

	while (chunk_bytes(core, 2 * n_rows) <= n_bytes)
		n_rows *= 2;
	return n_rows;
}

static double *
point_at(const Gatherer *gatherer, int64 point)
{
	const MrcPoints *core = &gatherer->core;

	return gatherer->chunk[point / core->chunk_rows] + (point & (core->chunk_rows - 1)) * core->d;
}

static double *
weight_at(const Gatherer *gatherer, int64 point)
{
	const MrcPoints *core = &gatherer->core;

	return gatherer->weight[point / core->chunk_rows] + (point & (core->chunk_rows - 1));
}

/* The weights of a new chunk; NULL where they would be 1, as they are in all chunks. */
static double *
reserve_weights(Gatherer *gatherer)
{
	Size n_bytes = gatherer->core.chunk_rows * sizeof(double);

	if (gatherer->slots || gatherer->has_weights || gatherer->n_chunks == 0)
		return mr_reserve(gatherer->budget, n_bytes);
	if (gatherer->ones == NULL && gatherer->is_weighted)
	{
		gatherer->ones = mr_reserve(gatherer->budget, n_bytes);
		for (int64 i = 0; i < gatherer->core.chunk_rows; i++)
			gatherer->ones[i] = 1;
	}
	return gatherer->ones;
}

static void
reserve_chunk(Gatherer *gatherer)
{
	const MrcPoints *core = &gatherer->core;
	Size n_bytes = chunk_bytes(core, core->chunk_rows);
	int i = gatherer->n_chunks;

	if (i == gatherer->max_chunks)
	{
		gatherer->max_chunks = Max(2 * i, 16);
		gatherer->chunk = mr_grow(gatherer->chunk, gatherer->max_chunks * sizeof(double *));
		gatherer->weight = mr_grow(gatherer->weight, gatherer->max_chunks * sizeof(double *));
	}
	mr_reserve_check(gatherer->budget, n_bytes + core->chunk_rows * sizeof(double),
					 psprintf("Reading more than " INT64_FORMAT " points of %d features", core->n, core->d));
	gatherer->chunk[i] = mr_reserve(gatherer->budget, n_bytes);
	gatherer->weight[i] = reserve_weights(gatherer);
	gatherer->n_chunks++;
}

/* The first chunk begins small, and moves until it has the size of all. */
static void
double_chunk(Gatherer *gatherer)
{
	MrcPoints *core = &gatherer->core;
	double *chunk = gatherer->chunk[0];
	double *weight = gatherer->weight[0];

	core->chunk_rows *= 2;
	gatherer->n_chunks = 0;
	reserve_chunk(gatherer);
	memcpy(gatherer->chunk[0], chunk, chunk_bytes(core, core->n));
	memcpy(gatherer->weight[0], weight, core->n * sizeof(double));
	mr_release(gatherer->budget, chunk);
	mr_release(gatherer->budget, weight);
}

/* Room for one more point. */
static void
make_room(Gatherer *gatherer)
{
	MrcPoints *core = &gatherer->core;
	MemoryContext before = MemoryContextSwitchTo(gatherer->budget->context);

	if (gatherer->n_chunks == 0)
		core->chunk_rows = chunk_rows(core, FIRST_CHUNK_BYTES);
	if (gatherer->n_chunks == 1 && core->chunk_rows < chunk_rows(core, CHUNK_BYTES))
		double_chunk(gatherer);
	else
		reserve_chunk(gatherer);
	MemoryContextSwitchTo(before);
}

static void
add_point(Gatherer *gatherer, const double *x, double weight)
{
	MrcPoints *core = &gatherer->core;
	double *weights;

	if (core->n == gatherer->n_chunks * core->chunk_rows)
		make_room(gatherer);
	memcpy(point_at(gatherer, core->n), x, core->d * sizeof(double));
	weights = gatherer->weight[gatherer->n_chunks - 1];
	if (weights != gatherer->ones)
		weights[core->n & (core->chunk_rows - 1)] = weight;
	gatherer->is_weighted |= weight != 1;
	core->n++;
}

/* A table of n slots, a power of two, with those of the old one. */
static void
rehash(Gatherer *gatherer, int64 n)
{
	Slot *before = gatherer->slots;
	int64 n_before = before ? (int64) gatherer->mask + 1 : 0;

	mr_reserve_check(gatherer->budget, n * sizeof(Slot),
					 psprintf("Merging more than " INT64_FORMAT " points", gatherer->core.n));
	gatherer->slots = mr_reserve(gatherer->budget, n * sizeof(Slot));
	gatherer->mask = (uint32) (n - 1);
	memset(gatherer->slots, 0, n * sizeof(Slot));
	for (int64 i = 0; i < n_before; i++)
	{
		uint32 at = before[i].hash & gatherer->mask;

		if ((i & INTERRUPT_MASK) == 0)
			CHECK_FOR_INTERRUPTS();
		if (before[i].number == 0)
			continue;
		while (gatherer->slots[at].number != 0)
			at = (at + 1) & gatherer->mask;
		gatherer->slots[at] = before[i];
	}
	mr_release(gatherer->budget, before);
}

/* Add the weight to the point that x is, or make it one. */
static void
merge_point(Gatherer *gatherer, const double *x, double weight, uint32 hash)
{
	MrcPoints *core = &gatherer->core;
	Size n_bytes = core->d * sizeof(double);
	uint32 at = hash & gatherer->mask;
	double *sum;

	for (; gatherer->slots[at].number != 0; at = (at + 1) & gatherer->mask)
		if (gatherer->slots[at].hash == hash &&
			memcmp(point_at(gatherer, gatherer->slots[at].number - 1), x, n_bytes) == 0)
			break;
	if (gatherer->slots[at].number == 0)
	{
		add_point(gatherer, x, weight);
		gatherer->slots[at] = (Slot){hash, (uint32) core->n};
		if (core->n * 4 > (int64) gatherer->mask * 3)
			rehash(gatherer, ((int64) gatherer->mask + 1) * 2);
		return;
	}
	sum = weight_at(gatherer, gatherer->slots[at].number - 1);
	*sum += weight;
	if (isinf(*sum))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("%s: a sum of weights is out of range", gatherer->what)));
	gatherer->is_weighted = true;
}

static void
stop_merging(Gatherer *gatherer)
{
	mr_release(gatherer->budget, gatherer->slots);
	mr_release(gatherer->budget, gatherer->batch);
	gatherer->slots = NULL;
}

/* Merging is given up when more than seven of eight rows since the last time were new points. */
static void
check_merging(Gatherer *gatherer)
{
	int64 n_new = gatherer->core.n - gatherer->n_checked;
	int64 n_rows = gatherer->next_check == FIRST_CHECK ? FIRST_CHECK : gatherer->next_check / 2;

	gatherer->n_checked = gatherer->core.n;
	gatherer->next_check *= 2;
	if (n_new > n_rows / 8 * 7 || gatherer->core.n > MOST_MERGED)
		stop_merging(gatherer);
}

static void
merge_batch(Gatherer *gatherer)
{
	int d = gatherer->core.d;
	uint32 hash[BATCH_ROWS];
	int n = gatherer->n_batch;

	for (int i = 0; i < n; i++)
	{
		hash[i] = (uint32) mrc_hash64(gatherer->batch + (Size) i * d, d * sizeof(double), 0);
		__builtin_prefetch(&gatherer->slots[hash[i] & gatherer->mask]);
	}
	for (int i = 0; i < n; i++)
	{
		uint32 number = gatherer->slots[hash[i] & gatherer->mask].number;

		if (number != 0)
		{
			__builtin_prefetch(point_at(gatherer, number - 1));
			__builtin_prefetch(weight_at(gatherer, number - 1));
		}
	}
	for (int i = 0; i < n; i++)
		merge_point(gatherer, gatherer->batch + (Size) i * d, gatherer->batch_weight[i], hash[i]);
	gatherer->n_batch = 0;
	gatherer->n_rows += n;
	if (gatherer->n_rows == gatherer->next_check)
		check_merging(gatherer);
}

static void
begin_merging(Gatherer *gatherer, int d)
{
	gatherer->core.d = d;
	gatherer->batch = mr_reserve(gatherer->budget, (Size) BATCH_ROWS * d * sizeof(double));
	rehash(gatherer, FIRST_SLOTS);
}

/* MrPointSink */
static void
gather(void *arg, const MrPoints *points, double *x, double weight)
{
	Gatherer *gatherer = arg;

	if (gatherer->core.d == 0)
		begin_merging(gatherer, points->core.d);
	if (gatherer->slots == NULL)
	{
		add_point(gatherer, x, weight);
		return;
	}
	memcpy(gatherer->batch + (Size) gatherer->n_batch * points->core.d, x, points->core.d * sizeof(double));
	gatherer->batch_weight[gatherer->n_batch++] = weight;
	if (gatherer->n_batch == BATCH_ROWS)
		merge_batch(gatherer);
}

/* ---- the order of points ---- */

typedef struct Place
{
	uint64 key;	  /* orders as a number of the point does */
	int64 number; /* of the point */
} Place;

#define ST_SORT sort_places
#define ST_ELEMENT_TYPE Place
#define ST_COMPARE(a, b) ((a)->key < (b)->key ? -1 : (a)->key > (b)->key)
#define ST_SCOPE static
#define ST_CHECK_FOR_INTERRUPTS
#define ST_DECLARE
#define ST_DEFINE
#include "lib/sort_template.h"

static uint64
order_key(double x)
{
	uint64 bits;

	memcpy(&bits, &x, sizeof(bits));
	return bits >> 63 ? ~bits : bits | UINT64CONST(1) << 63;
}

/* Where the run of equal keys that begins at lo ends. */
static int64
run_end(const Place *places, int64 lo, int64 hi)
{
	int64 end = lo + 1;

	while (end < hi && places[end].key == places[lo].key)
		end++;
	return end;
}

/* Sort places [lo, hi), whose points are equal in all numbers before this one. */
static void
sort_from(const Gatherer *gatherer, Place *places, int64 lo, int64 hi, int column)
{
	for (; column < gatherer->core.d && hi - lo > 1; column++)
	{
		int64 longest = lo;
		int64 longest_end = lo;

		for (int64 i = lo; i < hi; i++)
		{
			if ((i & INTERRUPT_MASK) == 0)
				CHECK_FOR_INTERRUPTS();
			places[i].key = order_key(point_at(gatherer, places[i].number)[column]);
		}
		sort_places(places + lo, hi - lo);
		/* The longest run goes on here, so that the depth is a logarithm. */
		for (int64 i = lo, end; i < hi; i = end)
		{
			end = run_end(places, i, hi);
			if (end - i > longest_end - longest)
			{
				longest = i;
				longest_end = end;
			}
		}
		for (int64 i = lo, end; i < hi; i = end)
		{
			end = run_end(places, i, hi);
			if (i != longest)
				sort_from(gatherer, places, i, end, column + 1);
		}
		lo = longest;
		hi = longest_end;
	}
}

/* Move points to their places, by cycles. */
static void
move_points(const Gatherer *gatherer, Place *places)
{
	Size n_bytes = gatherer->core.d * sizeof(double);
	double *held = palloc(n_bytes);
	int64 n_moved = 0;

	for (int64 i = 0; i < gatherer->core.n; i++)
	{
		double weight = *weight_at(gatherer, i);
		int64 to = i;

		if (places[i].number == i)
			continue;
		memcpy(held, point_at(gatherer, i), n_bytes);
		for (int64 from = places[to].number; from != i; from = places[to].number)
		{
			memcpy(point_at(gatherer, to), point_at(gatherer, from), n_bytes);
			*weight_at(gatherer, to) = *weight_at(gatherer, from);
			places[to].number = to;
			to = from;
			if ((++n_moved & INTERRUPT_MASK) == 0)
				CHECK_FOR_INTERRUPTS();
		}
		memcpy(point_at(gatherer, to), held, n_bytes);
		*weight_at(gatherer, to) = weight;
		places[to].number = to;
	}
	pfree(held);
}

static void
sort_points(Gatherer *gatherer)
{
	int64 n = gatherer->core.n;
	Place *places;

	mr_reserve_check(gatherer->budget, n * sizeof(Place), psprintf("Sorting " INT64_FORMAT " points", n));
	places = mr_reserve(gatherer->budget, n * sizeof(Place));
	for (int64 i = 0; i < n; i++)
		places[i].number = i;
	sort_from(gatherer, places, 0, n, 0);
	move_points(gatherer, places);
	mr_release(gatherer->budget, places);
}

MrPoints *
mr_points_read(MrBudget *budget, const char *query, const char *weight, const char *what, bool as_owner,
			   MrNulls nulls)
{
	Gatherer gatherer = {
		.budget = budget, .what = what, .has_weights = weight != NULL, .next_check = FIRST_CHECK};
	MrPoints *points = mr_points_scan(budget, query, weight, what, as_owner, nulls, gather, &gatherer);

	if (gatherer.core.d == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: all weights are 0", what),
				 errdetail("The query is: %s", query)));
	if (gatherer.slots)
		merge_batch(&gatherer);
	if (gatherer.slots)
	{
		stop_merging(&gatherer);
		sort_points(&gatherer);
	}
	points->core = gatherer.core;
	points->core.chunk = gatherer.chunk;
	if (gatherer.is_weighted)
		points->core.weight = gatherer.weight;
	return points;
}

char *
mr_features_query(const char *given, const char *what)
{
	return mr_query_of(given, what, "features, numbers or arrays of numbers");
}

/* ---- what a query stands on ---- */

static bool
is_fitted_function(Oid function)
{
	static const char *const NAMES[] = {"index_of", "index_size",	 "scale",
										"unscale",	"kmeans_assign", "kmeans_distance"};
	char *name;

	if (get_func_namespace(function) != get_namespace_oid(MR_SCHEMA, true))
		return false;
	name = get_func_name(function);
	for (int i = 0; name && i < lengthof(NAMES); i++)
		if (strcmp(name, NAMES[i]) == 0)
			return true;
	return false;
}

/* The name of the model that a call has as its first argument, if that is a constant. */
static void
add_used(const FuncExpr *call, List **names)
{
	ListCell *lc;

	foreach (lc, call->args)
	{
		Node *argument = lfirst(lc);

		if (IsA(argument, NamedArgExpr) && ((NamedArgExpr *) argument)->argnumber == 0)
			argument = (Node *) ((NamedArgExpr *) argument)->arg;
		else if (IsA(argument, NamedArgExpr) || lc != list_head(call->args))
			continue;
		argument = strip_implicit_coercions(argument);
		if (IsA(argument, Const) && ((Const *) argument)->consttype == TEXTOID &&
			!((Const *) argument)->constisnull)
			*names = lappend(*names, DatumGetTextPP(((Const *) argument)->constvalue));
	}
}

static bool
used_walker(Node *node, List **names)
{
	if (node == NULL)
		return false;
	if (IsA(node, FuncExpr) && is_fitted_function(((FuncExpr *) node)->funcid))
		add_used((FuncExpr *) node, names);
	if (IsA(node, Query))
		return query_tree_walker((Query *) node, used_walker, names, 0);
	return expression_tree_walker(node, used_walker, names);
}

/* JSON of their active versions; NULL: none is active. */
static char *
models_used(SPIPlanPtr plan)
{
	MemoryContext context = CurrentMemoryContext;
	List *names = NIL;
	char *json = NULL;
	ListCell *lc, *lc2;
	MrGuard guard;
	Datum *values;
	int n = 0;
	Oid types[1] = {TEXTARRAYOID};
	Datum array[1];

	foreach (lc, SPI_plan_get_plan_sources(plan))
		foreach (lc2, ((CachedPlanSource *) lfirst(lc))->query_list)
			(void) used_walker(lfirst(lc2), &names);
	if (names == NIL)
		return NULL;
	values = palloc(list_length(names) * sizeof(Datum));
	foreach (lc, names)
		values[n++] = PointerGetDatum(lfirst(lc));
	array[0] = PointerGetDatum(construct_array(values, n, TEXTOID, -1, false, TYPALIGN_INT));
	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT json_object_agg(name, active ORDER BY name COLLATE \"C\")::text FROM millrace.model "
				 "WHERE name = ANY ($1) AND active IS NOT NULL",
				 SPI_OK_SELECT, true, 1, types, array, NULL);
	mr_leave(&guard);
	if (SPI_processed == 1)
		json = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	SPI_freetuptable(SPI_tuptable);
	return json ? MemoryContextStrdup(context, json) : NULL;
}

/*
 * A plan depends on the views that were expanded in it.  In the order of their numbers, because a view is made after those
 * that it reads (unless it was replaced).
 */
static ArrayType *
views_read(SPIPlanPtr plan)
{
	List *relations = NIL;
	ListCell *lc;
	Datum *names;
	int n = 0;

	foreach (lc, SPI_plan_get_plan_sources(plan))
		relations = list_concat_unique_oid(relations, ((CachedPlanSource *) lfirst(lc))->relationOids);
	list_sort(relations, list_oid_cmp);
	names = palloc(list_length(relations) * sizeof(Datum) + 1);
	foreach (lc, relations)
	{
		Oid relation = lfirst_oid(lc);

		if (relation >= FirstNormalObjectId && get_rel_relkind(relation) == RELKIND_VIEW &&
			!OidIsValid(getExtensionOfObject(RelationRelationId, relation)))
			names[n++] = CStringGetTextDatum(quote_qualified_identifier(
				get_namespace_name(get_rel_namespace(relation)), get_rel_name(relation)));
	}
	return n > 0 ? construct_array(names, n, TEXTOID, -1, false, TYPALIGN_INT) : NULL;
}

const MrUses *
mr_query_uses(SPIPlanPtr plan)
{
	MrUses *uses = palloc(sizeof(MrUses));

	*uses = (MrUses){.models = models_used(plan), .views = views_read(plan)};
	return uses;
}

/* ---- one row from an array ---- */

void
mr_features_width(const ArrayType *array, int width, const char *what)
{
	int n = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];

	if (ARR_NDIM(array) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("features of %s have %d dimensions, not one", what, ARR_NDIM(array))));
	if (n != width)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg_plural("%s takes %d feature, not %d", "%s takes %d features, not %d", width, what,
							   width, n),
				 errhint("Give the columns of its query, in their order.")));
}

void
mr_features_arg(ArrayType *array, int width, const char *what, double *out)
{
	mr_features_width(array, width, what);
	if (ARR_HASNULL(array) && array_contains_nulls(array))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("a feature of %s is NULL", what),
				 errhint("Give it a value with coalesce().")));
	memcpy(out, ARR_DATA_PTR(array), width * sizeof(double));
	if (check_finite(out, width))
		return;
	for (int i = 0; i < width; i++)
		if (!isfinite(out[i]))
			ereport(
				ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("feature %d of %s is %s", i + 1, what, isnan(out[i]) ? "not a number" : "infinite")));
}
