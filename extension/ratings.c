/*
 * ratings.c: the only reader of user tables.
 *
 * A query of ratings has the columns user, item [, value] first; what follows is ignored.  It is wrapped once, as
 *     SELECT q.u::bigint, q.i::text, q.v::float8 FROM (query) AS q(u, i, v, c4, …)
 * so that the executor does all casts and this file sees three types only.  Rows stream through an SPI cursor; ids
 * are hashed to dense numbers in the order of appearance and renumbered at the end in the order of ids.  The triples
 * are then sorted by two counting sorts (by item, then by user), which leaves duplicates side by side.
 */
#include "model.h"

#include <ctype.h>
#include <float.h>
#include <math.h>

#include "catalog/namespace.h"
#include "common/hashfn.h"
#include "nodes/makefuncs.h"
#include "utils/plancache.h"
#include "utils/varlena.h"

#define FETCH_ROWS 10000
#define MAX_ID_BYTES 65536
#define ALIGN_BYTES 64
#define INTERRUPT_ROWS 0xFFFFF /* mask: look for interrupts once in a million entries */

/* ---- memory ---- */

/* Stands before each piece of a budget. */
typedef struct Piece
{
	void *raw;
	Size n_bytes;
} Piece;

MrBudget *
mr_budget_create(const char *name)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace run", ALLOCSET_DEFAULT_SIZES);
	MrBudget *budget = MemoryContextAllocZero(context, sizeof(MrBudget));

	MemoryContextSetIdentifier(context, name);
	budget->context = context;
	return budget;
}

void *
mr_reserve(MrBudget *budget, Size n_bytes)
{
	Size limit_bytes = (Size) mr_max_memory_kb * 1024;
	Size gross;
	char *raw;
	Piece *piece;
	uintptr_t at;

	if (n_bytes > limit_bytes || budget->used_bytes + n_bytes > limit_bytes)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("this needs more memory than millrace.max_memory allows"),
				 errdetail("%zu MB are in use, the next step needs %zu MB, the limit is %zu MB.",
						   budget->used_bytes >> 20, (n_bytes >> 20) + 1, limit_bytes >> 20),
				 errhint("Raise millrace.max_memory, read fewer rows, or train with a lower rank.")));
	gross = n_bytes + sizeof(Piece) + ALIGN_BYTES;
	raw = MemoryContextAllocExtended(budget->context, gross, MCXT_ALLOC_HUGE);
	at = TYPEALIGN(ALIGN_BYTES, (uintptr_t) raw + sizeof(Piece));
	piece = (Piece *) at - 1;
	piece->raw = raw;
	piece->n_bytes = n_bytes;
	budget->used_bytes += n_bytes;
	return (void *) at;
}

void
mr_release(MrBudget *budget, void *memory)
{
	Piece *piece;

	if (memory == NULL)
		return;
	piece = (Piece *) memory - 1;
	budget->used_bytes -= piece->n_bytes;
	pfree(piece->raw);
}

/* Make room for n_bytes in a piece (or NULL) that holds used_bytes, growing by half at least if the budget allows. */
static void *
grow(MrBudget *budget, void *memory, Size used_bytes, Size n_bytes)
{
	Size have = memory ? ((Piece *) memory - 1)->n_bytes : 0;
	void *bigger;

	if (n_bytes <= have)
		return memory;
	if (budget->used_bytes + have + have / 2 <= (Size) mr_max_memory_kb * 1024)
		n_bytes = Max(n_bytes, have + have / 2);
	bigger = mr_reserve(budget, n_bytes);
	if (used_bytes > 0)
		memcpy(bigger, memory, used_bytes);
	mr_release(budget, memory);
	return bigger;
}

static void
free_plan(void *arg)
{
	MrPlan *plan = arg;

	if (plan->plan)
		SPI_freeplan(plan->plan);
	plan->plan = NULL;
}

void
mr_plan_init(MrPlan *plan, MemoryContext context)
{
	plan->plan = NULL;
	plan->callback.func = free_plan;
	plan->callback.arg = plan;
	MemoryContextRegisterResetCallback(context, &plan->callback);
}

/* ---- ids ---- */

static int
compare_bytes(const char *a, int64 n_a, const char *b, int64 n_b)
{
	int order = memcmp(a, b, Min(n_a, n_b));

	return order != 0 ? order : (n_a > n_b) - (n_a < n_b);
}

int
mr_compare_rows(const void *a, const void *b)
{
	int32 row_a = *(const int32 *) a;
	int32 row_b = *(const int32 *) b;

	return (row_a > row_b) - (row_a < row_b);
}

MrKey
mr_ids_key(const MrIds *ids, int64 row)
{
	MrKey key = {.text = ids->text};

	if (ids->text)
	{
		key.bytes = ids->bytes + ids->starts[row];
		key.n_bytes = ids->starts[row + 1] - ids->starts[row];
	}
	else
		key.value = ids->ints[row];
	return key;
}

MrKey
mr_key_from_text(const text *value)
{
	return (MrKey){.text = true, .bytes = VARDATA_ANY(value), .n_bytes = VARSIZE_ANY_EXHDR(value)};
}

char *
mr_key_cstring(const MrKey *key)
{
	return key->text ? pnstrdup(key->bytes, key->n_bytes) : psprintf(INT64_FORMAT, key->value);
}

static int
compare_keys(const MrKey *a, const MrKey *b)
{
	if (a->text)
		return compare_bytes(a->bytes, a->n_bytes, b->bytes, b->n_bytes);
	return (a->value > b->value) - (a->value < b->value);
}

bool
mr_key_convert(const MrKey *key, bool is_text, MrKey *converted, char *space)
{
	if (key->text == is_text)
	{
		*converted = *key;
		return true;
	}
	if (!key->text)
	{
		snprintf(space, MR_KEY_SPACE, INT64_FORMAT, key->value);
		*converted = (MrKey){.text = true, .bytes = space, .n_bytes = strlen(space)};
		return true;
	}
	if (key->n_bytes == 0 || key->n_bytes > 20)
		return false;
	memcpy(space, key->bytes, key->n_bytes);
	space[key->n_bytes] = '\0';
	errno = 0;
	*converted = (MrKey){.value = strtoll(space, NULL, 10)};
	if (errno != 0)
		return false;

	/* Only the form that prints the same: not " 42", "042" or "42x". */
	char again[MR_KEY_SPACE];

	snprintf(again, sizeof(again), INT64_FORMAT, converted->value);
	return strcmp(again, space) == 0;
}

int64
mr_ids_find(const MrIds *ids, const MrKey *wanted)
{
	MrKey key;
	char space[MR_KEY_SPACE];
	int64 lo = 0;
	int64 hi = ids->n;

	if (!mr_key_convert(wanted, ids->text, &key, space))
		return -1;
	while (lo < hi)
	{
		int64 middle = lo + (hi - lo) / 2;
		MrKey at = mr_ids_key(ids, middle);
		int order = compare_keys(&at, &key);

		if (order == 0)
			return middle;
		if (order < 0)
			lo = middle + 1;
		else
			hi = middle;
	}
	return -1;
}

/* Ids as they come: number of an id in the order of appearance. */
typedef struct IdMap
{
	MrBudget *budget;
	MrIds ids; /* not sorted */
	int32 *slots;
	uint64 mask;
} IdMap;

static void
map_begin(IdMap *map, MrBudget *budget, bool is_text)
{
	memset(map, 0, sizeof(*map));
	map->budget = budget;
	map->ids.text = is_text;
	map->mask = 1023;
	map->slots = mr_reserve(budget, (map->mask + 1) * sizeof(int32));
	memset(map->slots, -1, (map->mask + 1) * sizeof(int32));
	if (is_text)
	{
		map->ids.starts = mr_reserve(budget, 1024 * sizeof(int64));
		map->ids.starts[0] = 0;
	}
}

static uint64
hash_key(const MrKey *key)
{
	uint64 hash;

	if (key->text)
		return hash_bytes_extended((const unsigned char *) key->bytes, key->n_bytes, 0);

	/* The finalizer of MurmurHash3 (Austin Appleby, public domain): ids that differ in high bits only spread too. */
	hash = (uint64) key->value;
	hash = (hash ^ hash >> 33) * UINT64CONST(0xFF51AFD7ED558CCD);
	hash = (hash ^ hash >> 33) * UINT64CONST(0xC4CEB9FE1A85EC53);
	return hash ^ hash >> 33;
}

static void
map_rehash(IdMap *map)
{
	mr_release(map->budget, map->slots);
	map->mask = map->mask * 2 + 1;
	map->slots = mr_reserve(map->budget, (map->mask + 1) * sizeof(int32));
	memset(map->slots, -1, (map->mask + 1) * sizeof(int32));
	for (int64 i = 0; i < map->ids.n; i++)
	{
		MrKey key = mr_ids_key(&map->ids, i);
		uint64 at = hash_key(&key) & map->mask;

		if ((i & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		while (map->slots[at] >= 0)
			at = (at + 1) & map->mask;
		map->slots[at] = (int32) i;
	}
}

static void
map_append(IdMap *map, const MrKey *key)
{
	MrIds *ids = &map->ids;

	if (ids->n == INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many distinct ids")));
	if (!key->text)
	{
		ids->ints = grow(map->budget, ids->ints, ids->n * sizeof(int64), (ids->n + 1) * sizeof(int64));
		ids->ints[ids->n++] = key->value;
		return;
	}
	if (key->n_bytes > MAX_ID_BYTES)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("an id has " INT64_FORMAT " bytes, more than %d", key->n_bytes, MAX_ID_BYTES)));

	int64 end = ids->starts[ids->n];

	ids->bytes = grow(map->budget, ids->bytes, end, end + key->n_bytes + 1);
	ids->starts = grow(map->budget, ids->starts, (ids->n + 1) * sizeof(int64), (ids->n + 2) * sizeof(int64));
	memcpy(ids->bytes + end, key->bytes, key->n_bytes);
	ids->starts[++ids->n] = end + key->n_bytes;
}

static int32
map_number(IdMap *map, const MrKey *key)
{
	uint64 at = hash_key(key) & map->mask;

	for (; map->slots[at] >= 0; at = (at + 1) & map->mask)
	{
		MrKey have = mr_ids_key(&map->ids, map->slots[at]);

		if (compare_keys(&have, key) == 0)
			return map->slots[at];
	}
	map_append(map, key);
	map->slots[at] = (int32) (map->ids.n - 1);
	if ((uint64) map->ids.n * 2 > map->mask)
		map_rehash(map);
	return (int32) (map->ids.n - 1);
}

static int
compare_numbers(const void *a, const void *b, void *arg)
{
	const MrIds *ids = arg;
	MrKey key_a = mr_ids_key(ids, *(const int32 *) a);
	MrKey key_b = mr_ids_key(ids, *(const int32 *) b);

	CHECK_FOR_INTERRUPTS();
	return compare_keys(&key_a, &key_b);
}

/* Sorts the ids into *sorted and returns the new row of each number; the map is used up. */
static int32 *
map_finish(IdMap *map, MrIds *sorted)
{
	MrIds *ids = &map->ids;
	MrBudget *budget = map->budget;
	int64 n = ids->n;
	int32 *order;
	int32 *row_of;

	mr_release(budget, map->slots);
	order = mr_reserve(budget, (n + 1) * sizeof(int32));
	row_of = mr_reserve(budget, (n + 1) * sizeof(int32));
	for (int64 i = 0; i < n; i++)
		order[i] = (int32) i;
	qsort_arg(order, n, sizeof(int32), compare_numbers, ids);

	*sorted = (MrIds){.text = ids->text, .n = n};
	if (ids->text)
	{
		sorted->bytes = mr_reserve(budget, ids->starts[n] + 1);
		sorted->starts = mr_reserve(budget, (n + 1) * sizeof(int64));
		sorted->starts[0] = 0;
	}
	else
		sorted->ints = mr_reserve(budget, (n + 1) * sizeof(int64));
	for (int64 row = 0; row < n; row++)
	{
		MrKey key = mr_ids_key(ids, order[row]);

		if ((row & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		row_of[order[row]] = (int32) row;
		if (ids->text)
		{
			memcpy(sorted->bytes + sorted->starts[row], key.bytes, key.n_bytes);
			sorted->starts[row + 1] = sorted->starts[row] + key.n_bytes;
		}
		else
			sorted->ints[row] = key.value;
	}
	mr_release(budget, order);
	mr_release(budget, ids->ints);
	mr_release(budget, ids->bytes);
	mr_release(budget, ids->starts);
	return row_of;
}

/* ---- the query ---- */

/* A blank or a parenthesis outside of double quotes: no name looks like that. */
static bool
looks_like_query(const char *ratings)
{
	bool quoted = false;

	for (const char *c = ratings; *c; c++)
	{
		if (*c == '"')
			quoted = !quoted;
		else if (!quoted && (isspace((unsigned char) *c) || *c == '('))
			return true;
	}
	return false;
}

/* Oid of the relation that the text names, InvalidOid if it is no name or names nothing. */
static Oid
named_relation(const char *ratings)
{
	char *copy = pstrdup(ratings);
	List *names;
	ListCell *lc;

	if (!SplitIdentifierString(copy, '.', &names) || names == NIL || list_length(names) > 3)
		return InvalidOid;

	List *values = NIL;

	foreach (lc, names)
		values = lappend(values, makeString(lfirst(lc)));
	return RangeVarGetRelid(makeRangeVarFromNameList(values), NoLock, true);
}

/* The only statement of a plan, which must return rows. */
static CachedPlanSource *
single_query(SPIPlanPtr plan, const char *what)
{
	List *sources;

	if (plan == NULL)
		elog(ERROR, "%s: %s", what, SPI_result_code_string(SPI_result));
	sources = SPI_plan_get_plan_sources(plan);
	if (list_length(sources) != 1 || ((CachedPlanSource *) linitial(sources))->resultDesc == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a single query that returns rows", what)));
	return linitial(sources);
}

/*
 * The rule: a name (qualified and quoted as need be) of a table or view that exists is that one; otherwise a text with
 * a blank or parenthesis is a query; otherwise the name is unknown.  A name is stored qualified, a
 * query without the semicolon that ends it and what follows.
 */
char *
mr_query_of(const char *given, const char *what, const char *columns)
{
	Oid relation = named_relation(given);
	SPIPlanPtr plan;
	RawStmt *statement;

	if (OidIsValid(relation))
		return psprintf("TABLE %s",
						quote_qualified_identifier(get_namespace_name(get_rel_namespace(relation)),
												   get_rel_name(relation)));
	if (!looks_like_query(given))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation \"%s\" does not exist", given),
			 errhint("Give the name of a table or view, or a query whose first columns are %s.", columns)));
	plan = SPI_prepare(given, 0, NULL); /* analysed, not run */
	statement = single_query(plan, what)->raw_parse_tree;
	given += Max(statement->stmt_location, 0);
	given = statement->stmt_len > 0 ? pnstrdup(given, statement->stmt_len) : pstrdup(given);
	SPI_freeplan(plan);
	return (char *) given;
}

char *
mr_ratings_query(const char *ratings, const char *what)
{
	return mr_query_of(ratings, what, "user, item and, if there is one, value");
}

static char *
list_columns(TupleDesc desc)
{
	StringInfoData list;

	initStringInfo(&list);
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute column = TupleDescAttr(desc, i);

		appendStringInfo(&list, "%s%s %s", i ? ", " : "", NameStr(column->attname),
						 format_type_be(column->atttypid));
	}
	return list.data;
}

static bool
is_number(Oid type)
{
	return type == INT2OID || type == INT4OID || type == INT8OID || type == FLOAT4OID || type == FLOAT8OID ||
		type == NUMERICOID;
}

/* Kind of an id column: 0 none, 'i' integer, 't' text. */
static char
id_kind(Oid type)
{
	if (type == INT2OID || type == INT4OID || type == INT8OID)
		return 'i';
	return type == TEXTOID || type == VARCHAROID ? 't' : 0;
}

static void
bad_columns(TupleDesc desc, const char *what, const char *wrong)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: %s", what, wrong),
		 errdetail("The columns are: %s.", list_columns(desc)),
		 errhint("The first columns must be user and item (bigint, integer, smallint or text) and, if there "
				 "is one, value (a number). Cast them in a query.")));
}

MrShape
mr_ratings_shape(SPIPlanPtr plan, const char *what)
{
	MrShape shape = {false};
	TupleDesc desc = single_query(plan, what)->resultDesc;
	char user;
	char item;

	if (desc->natts < 2)
		bad_columns(desc, what, psprintf("expected two or three columns, found %d", desc->natts));
	user = id_kind(getBaseType(TupleDescAttr(desc, 0)->atttypid));
	item = id_kind(getBaseType(TupleDescAttr(desc, 1)->atttypid));
	if (user == 0)
		bad_columns(desc, what, "the first column, user, is neither an integer nor text");
	if (item == 0)
		bad_columns(desc, what, "the second column, item, is neither an integer nor text");
	if (desc->natts > 2 && !is_number(getBaseType(TupleDescAttr(desc, 2)->atttypid)))
		bad_columns(desc, what, "the third column, value, is not a number");
	shape.user_text = user == 't';
	shape.item_text = item == 't';
	shape.n_columns = desc->natts;
	return shape;
}

char *
mr_ratings_select(const MrShape *shape, const char *columns, const char *query, const char *where)
{
	StringInfoData sql;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT %s FROM (\n%s\n) AS q(u, i", columns, query);
	for (int i = 3; i <= shape->n_columns; i++)
		appendStringInfo(&sql, i == 3 ? ", v" : ", c%d", i);
	appendStringInfo(&sql, ") %s", where);
	return sql.data;
}

/* ---- reading ---- */

typedef struct Reader
{
	MrBudget *budget;
	const char *what;
	bool as_owner;
	MrPlan shape_plan;
	MrPlan plan;
	MrShape shape;
	MrValues values;
	bool read_value;
	IdMap users;
	IdMap items;
	int64 n;
	int32 *user;  /* n */
	int32 *item;  /* n */
	float *value; /* n */
} Reader;

static MrKey
key_of(Datum value, bool is_text)
{
	return is_text ? mr_key_from_text(DatumGetTextPP(value)) : (MrKey){.value = DatumGetInt64(value)};
}

static float
checked_value(const Reader *reader, double value, const MrKey *user, const MrKey *item)
{
	const char *wrong = NULL;
	int code = ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE;

	if (isnan(value))
		wrong = "a value that is not a number";
	else if (isinf(value))
		wrong = "an infinite value";
	else if (fabs(value) > FLT_MAX)
		wrong = "a value out of range";
	else if (value < 0 && reader->values == MR_VALUES_NOT_NEGATIVE)
	{
		wrong = "a negative value, which implicit feedback cannot have";
		code = ERRCODE_INVALID_PARAMETER_VALUE;
	}
	if (wrong)
		ereport(ERROR,
				(errcode(code), errmsg("%s: %s: %g", reader->what, wrong, value),
				 errdetail("It belongs to user \"%s\" and item \"%s\".", mr_key_cstring(user),
						   mr_key_cstring(item)),
				 value < 0 && !isinf(value) ? errhint("Leave such rows out, or train with implicit => false.")
											: 0));
	return (float) value;
}

static void
null_column(const Reader *reader, const char *column, const char *detail)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: %s is NULL", reader->what, column),
			 errdetail_internal("%s", detail), errhint("Leave such rows out with WHERE … IS NOT NULL.")));
}

/* Make room for n_more triples. */
static void
reserve_triples(Reader *reader, int64 n_more)
{
	Size used = reader->n * sizeof(int32);
	Size wanted = (reader->n + n_more) * sizeof(int32);

	reader->user = grow(reader->budget, reader->user, used, wanted);
	reader->item = grow(reader->budget, reader->item, used, wanted);
	reader->value = grow(reader->budget, reader->value, used, wanted);
}

static void
read_row(Reader *reader, HeapTuple tuple, TupleDesc desc)
{
	bool user_null;
	bool item_null;
	bool value_null = false;
	Datum user = heap_getattr(tuple, 1, desc, &user_null);
	Datum item = heap_getattr(tuple, 2, desc, &item_null);
	Datum value = reader->read_value ? heap_getattr(tuple, 3, desc, &value_null) : Float8GetDatum(1);

	if (user_null)
		null_column(reader, "the user",
					item_null ? "" : psprintf("The item is \"%s\".", SPI_getvalue(tuple, desc, 2)));
	if (item_null)
		null_column(reader, "the item", psprintf("The user is \"%s\".", SPI_getvalue(tuple, desc, 1)));
	if (value_null)
		null_column(reader, "the value",
					psprintf("It belongs to user \"%s\" and item \"%s\".", SPI_getvalue(tuple, desc, 1),
							 SPI_getvalue(tuple, desc, 2)));

	MrKey user_key = key_of(user, reader->shape.user_text);
	MrKey item_key = key_of(item, reader->shape.item_text);

	reader->value[reader->n] = checked_value(reader, DatumGetFloat8(value), &user_key, &item_key);
	reader->user[reader->n] = map_number(&reader->users, &user_key);
	reader->item[reader->n] = map_number(&reader->items, &item_key);
	reader->n++;
}

/* Plan a query into a plan that lives no longer than the budget. */
static void
prepare(Reader *reader, MrPlan *plan, const char *sql)
{
	mr_plan_init(plan, reader->budget->context);
	if (reader->as_owner)
		(void) mr_prepare(&plan->plan, sql, 0, NULL);
	else
	{
		plan->plan = SPI_prepare(sql, 0, NULL);
		if (plan->plan == NULL || SPI_keepplan(plan->plan) != 0)
			elog(ERROR, "%s: %s", reader->what, SPI_result_code_string(SPI_result));
	}
}

static void
read_all(Reader *reader, const char *query)
{
	char *columns = psprintf(
		"q.u::pg_catalog.%s, q.i::pg_catalog.%s%s", reader->shape.user_text ? "text" : "int8",
		reader->shape.item_text ? "text" : "int8", reader->read_value ? ", q.v::pg_catalog.float8" : "");
	MemoryContext batch =
		AllocSetContextCreate(reader->budget->context, "millrace ratings batch", ALLOCSET_DEFAULT_SIZES);
	Portal portal;

	prepare(reader, &reader->plan, mr_ratings_select(&reader->shape, columns, query, ""));
	portal = SPI_cursor_open(NULL, reader->plan.plan, NULL, NULL, true);
	for (;;)
	{
		MemoryContext before;

		SPI_cursor_fetch(portal, true, FETCH_ROWS);
		if (SPI_processed == 0)
			break;
		reserve_triples(reader, SPI_processed);
		before = MemoryContextSwitchTo(batch);
		for (uint64 i = 0; i < SPI_processed; i++)
			read_row(reader, SPI_tuptable->vals[i], SPI_tuptable->tupdesc);
		MemoryContextSwitchTo(before);
		MemoryContextReset(batch);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	free_plan(&reader->plan);
	free_plan(&reader->shape_plan);
	MemoryContextDelete(batch);
}

/* ---- compressed rows ---- */

static void
csr_reserve(MrBudget *budget, MrcCsr *csr, int64 n_rows, int64 n_cols, int64 n)
{
	csr->n_rows = n_rows;
	csr->n_cols = n_cols;
	csr->start = mr_reserve(budget, (n_rows + 1) * sizeof(int64));
	csr->index = mr_reserve(budget, n * sizeof(int32));
	csr->value = mr_reserve(budget, n * sizeof(float));
}

void
mr_csr_release(MrBudget *budget, MrcCsr *csr)
{
	mr_release(budget, csr->start);
	mr_release(budget, csr->index);
	mr_release(budget, csr->value);
	memset(csr, 0, sizeof(*csr));
}

/* Turn counts in start[0 … n_rows) into the start of each row; the total goes into start[n_rows]. */
static void
counts_to_starts(MrcCsr *csr)
{
	int64 sum = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 n = csr->start[row];

		csr->start[row] = sum;
		sum += n;
	}
	csr->start[csr->n_rows] = sum;
}

/* After each start was moved to the end of its row by filling: move them back. */
static void
restore_starts(MrcCsr *csr)
{
	memmove(csr->start + 1, csr->start, csr->n_rows * sizeof(int64));
	csr->start[0] = 0;
}

/* Rows of the result are ascending in their columns, whatever the input's order within a row. */
void
mr_csr_transpose(MrBudget *budget, const MrcCsr *csr, MrcCsr *transposed)
{
	int64 n = csr->start[csr->n_rows];

	csr_reserve(budget, transposed, csr->n_cols, csr->n_rows, n);
	memset(transposed->start, 0, (csr->n_cols + 1) * sizeof(int64));
	for (int64 e = 0; e < n; e++)
	{
		if ((e & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		transposed->start[csr->index[e]]++;
	}
	counts_to_starts(transposed);
	for (int64 row = 0; row < csr->n_rows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			int64 at = transposed->start[csr->index[e]]++;

			transposed->index[at] = (int32) row;
			transposed->value[at] = csr->value[e];
		}
	}
	restore_starts(transposed);
}

/* Sum entries of the same column, which stand side by side. */
static void
merge_duplicates(MrcCsr *csr, const MrRatings *ratings, const char *what)
{
	int64 out = 0;
	int64 e = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 end = csr->start[row + 1];

		CHECK_FOR_INTERRUPTS();
		csr->start[row] = out;
		while (e < end)
		{
			int32 column = csr->index[e];
			double sum = 0;

			for (; e < end && csr->index[e] == column; e++)
				sum += csr->value[e];
			if (fabs(sum) > FLT_MAX)
			{
				MrKey user = mr_ids_key(&ratings->users, row);
				MrKey item = mr_ids_key(&ratings->items, column);

				ereport(ERROR,
						(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
						 errmsg("%s: a sum of values is out of range", what),
						 errdetail("It belongs to user \"%s\" and item \"%s\".", mr_key_cstring(&user),
								   mr_key_cstring(&item))));
			}
			csr->index[out] = column;
			csr->value[out++] = (float) sum;
		}
	}
	csr->start[csr->n_rows] = out;
}

/* Triples into rows of items, by item first and then by user; the triples are released on the way. */
static void
sort_triples(Reader *reader, MrRatings *ratings, const int32 *user_row, const int32 *item_row)
{
	MrBudget *budget = reader->budget;
	MrcCsr by_item;

	csr_reserve(budget, &by_item, ratings->items.n, ratings->users.n, reader->n);
	memset(by_item.start, 0, (by_item.n_rows + 1) * sizeof(int64));
	for (int64 e = 0; e < reader->n; e++)
	{
		if ((e & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		reader->item[e] = item_row[reader->item[e]];
		by_item.start[reader->item[e]]++;
	}
	counts_to_starts(&by_item);
	for (int64 e = 0; e < reader->n; e++)
	{
		int64 at = by_item.start[reader->item[e]]++;

		if ((e & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		by_item.index[at] = user_row[reader->user[e]];
		by_item.value[at] = reader->value[e];
	}
	restore_starts(&by_item);
	mr_release(budget, reader->user);
	mr_release(budget, reader->item);
	mr_release(budget, reader->value);
	mr_csr_transpose(budget, &by_item, &ratings->by_user);
	mr_csr_release(budget, &by_item);
	merge_duplicates(&ratings->by_user, ratings, reader->what);
}

MrRatings *
mr_ratings_read(MrBudget *budget, const char *query, const char *what, bool as_owner, MrValues values,
				bool empty_ok)
{
	Reader *reader = MemoryContextAllocZero(budget->context, sizeof(Reader));
	MrRatings *ratings = MemoryContextAllocZero(budget->context, sizeof(MrRatings));
	int32 *user_row;
	int32 *item_row;

	*reader = (Reader){.budget = budget, .what = what, .as_owner = as_owner, .values = values};
	prepare(reader, &reader->shape_plan, query);
	reader->shape = mr_ratings_shape(reader->shape_plan.plan, what);
	reader->read_value = reader->shape.n_columns > 2 && values != MR_VALUES_IGNORED;
	map_begin(&reader->users, budget, reader->shape.user_text);
	map_begin(&reader->items, budget, reader->shape.item_text);
	reserve_triples(reader, FETCH_ROWS);
	read_all(reader, query);
	if (reader->n == 0 && !empty_ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: there are no rows", what),
				 errdetail("The query is: %s", query)));
	user_row = map_finish(&reader->users, &ratings->users);
	item_row = map_finish(&reader->items, &ratings->items);
	sort_triples(reader, ratings, user_row, item_row);
	mr_release(budget, user_row);
	mr_release(budget, item_row);
	return ratings;
}

/* ---- transforms ---- */

static const char *const TRANSFORMS[] = {
	[MR_TRANSFORM_NONE] = "none", [MR_TRANSFORM_LOG1P] = "log1p", [MR_TRANSFORM_BINARY] = "binary"};

const char *
mr_transform_name(MrTransform transform)
{
	return TRANSFORMS[transform];
}

MrTransform
mr_transform_named(const char *name)
{
	for (int i = 0; i < lengthof(TRANSFORMS); i++)
		if (strcmp(name, TRANSFORMS[i]) == 0)
			return (MrTransform) i;
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("value_transform must be none, log1p or binary, not \"%s\"", name)));
}

static void
negative_logarithm(const MrRatings *ratings, int64 row, int64 e, const char *what)
{
	MrKey user = mr_ids_key(&ratings->users, row);
	MrKey item = mr_ids_key(&ratings->items, ratings->by_user.index[e]);

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s: a negative value, of which value_transform log1p takes no logarithm: %g", what,
					ratings->by_user.value[e]),
			 errdetail("It belongs to user \"%s\" and item \"%s\".", mr_key_cstring(&user),
					   mr_key_cstring(&item)),
			 errhint("Leave such rows out, or train with value_transform => 'none'.")));
}

void
mr_ratings_transform(MrRatings *ratings, MrTransform transform, const char *what)
{
	const MrcCsr *csr = &ratings->by_user;

	if (transform == MR_TRANSFORM_NONE)
		return;
	for (int64 row = 0; row < csr->n_rows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			float *value = &csr->value[e];

			if (transform == MR_TRANSFORM_BINARY)
				*value = *value > 0;
			else if (*value < 0)
				negative_logarithm(ratings, row, e, what);
			else
				*value = log1pf(*value);
		}
	}
}
