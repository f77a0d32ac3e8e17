/*
 * ratings.c: the only reader of user tables.
 *
 * A query of ratings has the columns user, item [, value] first; what follows is ignored.  It is wrapped once, as
 *     SELECT q.u, q.i, q.v FROM (query) AS q(u, i, v, c4, …)
 * and run to its end with a receiver of our own: the executor hands over each row where it lies, and nothing is copied
 * but the numbers.  Rows are gathered into small batches, whose ids are then looked up together, so that the look-ups
 * wait for memory at the same time.  Ids get dense numbers in the order of appearance, and rows in the order of ids at
 * the end.  The triples of numbers and value, which stand in chunks that never move, then go into rows of users, which are
 * sorted by item, by threads (core/sparse.c); that leaves duplicates side by side, in the order of appearance.
 *
 * The query runs serially: sums must not depend on how workers happened to share the rows.
 */
#include "model.h"

#include <ctype.h>
#include <float.h>
#include <math.h>
#include <sys/mman.h>
#include <time.h>

#include "access/detoast.h"
#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "nodes/makefuncs.h"
#include "utils/numeric.h"
#include "utils/plancache.h"
#include "utils/varlena.h"

#define BATCH_ROWS 512
#define BATCH_TEXT_BYTES 65536
#define MAX_ID_BYTES 65536
#define ALIGN_BYTES 64
#define HUGE_PAGE_BYTES (2 * 1024 * 1024)
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

/* Whether so much more is within millrace.max_memory. */
static bool
affordable(const MrBudget *budget, Size n_bytes)
{
	Size limit_bytes = (Size) mr_max_memory_kb * 1024;

	return n_bytes <= limit_bytes && budget->used_bytes + n_bytes <= limit_bytes;
}

void
mr_reserve_check(const MrBudget *budget, Size n_bytes, const char *what)
{
	Size need_mb = ((budget->used_bytes + n_bytes) >> 20) + 1;
	Size limit_mb = (Size) mr_max_memory_kb >> 10;

	if (affordable(budget, n_bytes))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("this needs more memory than millrace.max_memory allows"),
			 what ? errdetail("%s needs %zu MB, the limit is %zu MB.", what, need_mb, limit_mb)
				  : errdetail("%zu MB are in use, the next step needs %zu MB, the limit is %zu MB.",
							  budget->used_bytes >> 20, (n_bytes >> 20) + 1, limit_mb),
			 errhint("Set millrace.max_memory to '%zuMB' or more, read fewer rows, or train a smaller model.",
					 need_mb)));
}

/*
 * Large pieces in pages of 2 MB where the kernel has them for who asks: they are reached faster in no order, and given
 * back in a hundredth of the time, which is most of what a cancelled training still takes.
 */
static void
use_huge_pages(char *memory, Size n_bytes)
{
#ifdef MADV_HUGEPAGE
	uintptr_t start = TYPEALIGN(HUGE_PAGE_BYTES, (uintptr_t) memory);
	uintptr_t end = TYPEALIGN_DOWN(HUGE_PAGE_BYTES, (uintptr_t) memory + n_bytes);

	if (end > start)
		(void) madvise((void *) start, end - start, MADV_HUGEPAGE);
#endif
}

void *
mr_reserve(MrBudget *budget, Size n_bytes)
{
	Size gross;
	char *raw;
	Piece *piece;
	uintptr_t at;

	mr_reserve_check(budget, n_bytes, NULL);
	gross = n_bytes + sizeof(Piece) + ALIGN_BYTES;
	raw = MemoryContextAllocExtended(budget->context, gross, MCXT_ALLOC_HUGE);
	at = TYPEALIGN(ALIGN_BYTES, (uintptr_t) raw + sizeof(Piece));
	piece = (Piece *) at - 1;
	piece->raw = raw;
	piece->n_bytes = n_bytes;
	budget->used_bytes += n_bytes;
	use_huge_pages((char *) at, n_bytes);
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
	if (affordable(budget, have + have / 2))
		n_bytes = Max(n_bytes, have + have / 2);
	bigger = mr_reserve(budget, n_bytes);
	if (used_bytes > 0)
		memcpy(bigger, memory, used_bytes);
	mr_release(budget, memory);
	return bigger;
}

void
mr_plan_free(MrPlan *plan)
{
	if (plan->plan)
		SPI_freeplan(plan->plan);
	plan->plan = NULL;
}

static void
free_plan(void *arg)
{
	mr_plan_free(arg);
}

void
mr_plan_init(MrPlan *plan, MemoryContext context)
{
	plan->plan = NULL;
	plan->callback.func = free_plan;
	plan->callback.arg = plan;
	MemoryContextRegisterResetCallback(context, &plan->callback);
}

void
mr_plan_query(MrPlan *plan, MemoryContext context, const char *query, const char *what, bool as_owner)
{
	mr_plan_init(plan, context);
	if (as_owner)
		(void) mr_prepare(&plan->plan, query, 0, NULL);
	else
	{
		plan->plan = SPI_prepare(query, 0, NULL);
		if (plan->plan == NULL || SPI_keepplan(plan->plan) != 0)
			elog(ERROR, "%s: %s", what, SPI_result_code_string(SPI_result));
	}
}

/* ---- ids ---- */

/* An empty id may have no address, which memcmp() must not be given. */
static int
compare_bytes(const char *a, int64 n_a, const char *b, int64 n_b)
{
	int order = Min(n_a, n_b) > 0 ? memcmp(a, b, Min(n_a, n_b)) : 0;

	return order != 0 ? order : (n_a > n_b) - (n_a < n_b);
}

int
mr_compare_rows(const void *a, const void *b)
{
	int32 row_a = *(const int32 *) a;
	int32 row_b = *(const int32 *) b;

	return (row_a > row_b) - (row_a < row_b);
}

typedef struct RowValue
{
	int32 row;
	float value;
} RowValue;

static int
compare_row_values(const void *a, const void *b)
{
	return mr_compare_rows(&((const RowValue *) a)->row, &((const RowValue *) b)->row);
}

void
mr_sort_row(int32 *rows, float *values, int64 n)
{
	RowValue *pairs;
	int64 n_ascending = 1;

	while (n_ascending < n && rows[n_ascending - 1] < rows[n_ascending])
		n_ascending++;
	if (n_ascending >= n)
		return;
	pairs = MemoryContextAllocHuge(CurrentMemoryContext, n * sizeof(RowValue));
	for (int64 i = 0; i < n; i++)
		pairs[i] = (RowValue){rows[i], values[i]};
	qsort(pairs, n, sizeof(RowValue), compare_row_values);
	for (int64 i = 0; i < n; i++)
	{
		rows[i] = pairs[i].row;
		values[i] = pairs[i].value;
	}
	pfree(pairs);
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

uint64
mr_ids_hash(const MrIds *ids, int64 row, uint64 seed)
{
	MrKey key = mr_ids_key(ids, row);
	char space[MR_KEY_SPACE];

	(void) mr_key_convert(&key, true, &key, space);
	return mrc_hash64(key.bytes, key.n_bytes, seed);
}

MrKey
mr_key_from_text(const text *value)
{
	return (MrKey){.text = true, .bytes = VARDATA_ANY(value), .n_bytes = VARSIZE_ANY_EXHDR(value)};
}

MrKey
mr_key_of(Datum value, Oid type)
{
	switch (type)
	{
		case INT2OID:
			return (MrKey){.value = DatumGetInt16(value)};
		case INT4OID:
			return (MrKey){.value = DatumGetInt32(value)};
		case INT8OID:
			return (MrKey){.value = DatumGetInt64(value)};
		default:
			return mr_key_from_text(DatumGetTextPP(value));
	}
}

char *
mr_key_cstring(const MrKey *key)
{
	return key->text ? pnstrdup(key->bytes, key->n_bytes) : psprintf(INT64_FORMAT, key->value);
}

int
mr_compare_keys(const MrKey *a, const MrKey *b)
{
	if (a->text)
		return compare_bytes(a->bytes, a->n_bytes, b->bytes, b->n_bytes);
	return (a->value > b->value) - (a->value < b->value);
}

bool
mr_same_key(const MrKey *a, const MrKey *b)
{
	if (a->text != b->text)
		return false;
	if (!a->text)
		return a->value == b->value;
	return a->n_bytes == b->n_bytes && (a->n_bytes == 0 || memcmp(a->bytes, b->bytes, a->n_bytes) == 0);
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

/* Without branches that cannot be foretold: what a step costs is a load from the cache. */
static int64
find_int(const MrIds *ids, int64 value)
{
	const int64 *at = ids->ints;

	if (ids->n == 0)
		return -1;
	for (int64 n = ids->n; n > 1;)
	{
		int64 half = n / 2;

		at += half & -(int64) (at[half - 1] < value);
		n -= half;
	}
	return *at == value ? at - ids->ints : -1;
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
	if (!ids->text)
		return find_int(ids, key.value);
	while (lo < hi)
	{
		int64 middle = lo + (hi - lo) / 2;
		MrKey at = mr_ids_key(ids, middle);
		int order = mr_compare_keys(&at, &key);

		if (order == 0)
			return middle;
		if (order < 0)
			lo = middle + 1;
		else
			hi = middle;
	}
	return -1;
}

/* An entry of an IdMap. */
typedef struct IdSlot
{
	uint64 key;	  /* bigint: the id; text: its hash; when sorted: what decides the order, or begins to */
	int32 number; /* in the order of appearance; -1: the slot is free */
} IdSlot;

/*
 * Ids as they come, and their numbers.  Integers from 0 up, as long as they are not much larger than the number of ids,
 * are found in an array, which needs a quarter of the cache; the others, and texts, in a hash table with linear
 * probing, at most three quarters full.
 */
typedef struct IdMap
{
	MrBudget *budget;
	bool text;
	int64 n;
	int32 *direct; /* n_direct: number of id i, or -1 */
	uint64 n_direct;
	IdSlot *slots; /* mask + 1, a power of two; none of them an integer below n_direct */
	uint64 mask;
	int64 n_hashed;
	char *bytes;   /* text: id i is bytes [starts[i], starts[i + 1]) */
	int64 *starts; /* text: n + 1 */
} IdMap;

#define DIRECT_IDS 8 /* the array is so many times as long as there are ids, at most */

static void
map_begin(IdMap *map, MrBudget *budget, bool is_text)
{
	memset(map, 0, sizeof(*map));
	map->budget = budget;
	map->text = is_text;
	if (is_text)
	{
		map->starts = mr_reserve(budget, BATCH_ROWS * sizeof(int64));
		map->starts[0] = 0;
	}
}

/* Where to look for a key first, before the mask. */
static uint64
spread(const IdMap *map, uint64 key)
{
	if (map->text)
		return key;

	/* The finalizer of MurmurHash3 (Austin Appleby, public domain): ids that differ in high bits only spread too. */
	key = (key ^ key >> 33) * UINT64CONST(0xFF51AFD7ED558CCD);
	key = (key ^ key >> 33) * UINT64CONST(0xC4CEB9FE1A85EC53);
	return key ^ key >> 33;
}

/* A new table of n slots with those of the old one that are not in the array. */
static void
map_rehash(IdMap *map, uint64 n)
{
	IdSlot *before = map->slots;
	uint64 n_before = before ? map->mask + 1 : 0;

	map->slots = mr_reserve(map->budget, n * sizeof(IdSlot));
	map->mask = n - 1;
	map->n_hashed = 0;
	for (uint64 i = 0; i < n; i++)
		map->slots[i].number = -1;
	for (uint64 i = 0; i < n_before; i++)
	{
		uint64 at = spread(map, before[i].key) & map->mask;

		if ((i & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (before[i].number < 0 || (!map->text && before[i].key < map->n_direct))
			continue;
		while (map->slots[at].number >= 0)
			at = (at + 1) & map->mask;
		map->slots[at] = before[i];
		map->n_hashed++;
	}
	mr_release(map->budget, before);
}

/* Make the array so long, if the budget allows. */
static void
map_lengthen(IdMap *map, uint64 n)
{
	int32 *longer;

	if (!affordable(map->budget, (n + map->mask + 1) * sizeof(IdSlot)))
		return;
	longer = mr_reserve(map->budget, n * sizeof(int32));
	memset(longer, -1, n * sizeof(int32));
	if (map->n_direct > 0)
		memcpy(longer, map->direct, map->n_direct * sizeof(int32));
	mr_release(map->budget, map->direct);
	map->direct = longer;
	map->n_direct = n;
	for (uint64 i = 0; i <= map->mask; i++)
		if (map->slots[i].number >= 0 && map->slots[i].key < n)
			longer[map->slots[i].key] = map->slots[i].number;
	map_rehash(map, map->mask + 1);
}

/* The ids of one column of a batch. */
typedef struct IdBatch
{
	uint64 key[BATCH_ROWS]; /* bigint: the id; text: its hash, from map_numbers() on */
	/* text: id i is bytes [starts[i], starts[i + 1]) */
	char *bytes;
	int64 starts[BATCH_ROWS + 1];
} IdBatch;

static bool
same_text(const IdMap *map, int32 number, const IdBatch *batch, int i)
{
	int64 n_bytes = batch->starts[i + 1] - batch->starts[i];

	return map->starts[number + 1] - map->starts[number] == n_bytes &&
		memcmp(map->bytes + map->starts[number], batch->bytes + batch->starts[i], n_bytes) == 0;
}

static int32
map_add(IdMap *map, const IdBatch *batch, int i)
{
	if (map->n == INT32_MAX)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many distinct ids")));
	if (map->text)
	{
		int64 n_bytes = batch->starts[i + 1] - batch->starts[i];
		int64 end = map->starts[map->n];

		map->bytes = grow(map->budget, map->bytes, end, end + n_bytes + 1);
		map->starts =
			grow(map->budget, map->starts, (map->n + 1) * sizeof(int64), (map->n + 2) * sizeof(int64));
		memcpy(map->bytes + end, batch->bytes + batch->starts[i], n_bytes);
		map->starts[map->n + 1] = end + n_bytes;
	}
	return (int32) map->n++;
}

/* The texts that are probably found at these slots will be compared: fetch them, and where they are, meanwhile. */
static void
prefetch_texts(const IdMap *map, int n, const uint64 *at)
{
	for (int i = 0; i < n; i++)
		if (map->slots[at[i]].number >= 0)
			__builtin_prefetch(&map->starts[map->slots[at[i]].number]);
	for (int i = 0; i < n; i++)
		if (map->slots[at[i]].number >= 0)
			__builtin_prefetch(map->bytes + map->starts[map->slots[at[i]].number]);
}

/* The numbers of those of the batch that are not in the array: n of them, at the places which. */
static void
map_hashed(IdMap *map, const IdBatch *batch, int n, const int *which, int32 *numbers)
{
	uint64 at[BATCH_ROWS];
	bool more_direct = false;

	if (map->slots == NULL)
		map_rehash(map, 2 * BATCH_ROWS);
	while ((map->n_hashed + n) * 4 > (map->mask + 1) * 3)
		map_rehash(map, 2 * (map->mask + 1));
	for (int i = 0; i < n; i++)
	{
		at[i] = spread(map, batch->key[which[i]]) & map->mask;
		__builtin_prefetch(&map->slots[at[i]]);
	}
	if (map->text)
		prefetch_texts(map, n, at);
	for (int i = 0; i < n; i++)
	{
		uint64 key = batch->key[which[i]];
		IdSlot *slot = &map->slots[at[i]];

		while (slot->number >= 0 &&
			   !(slot->key == key && (!map->text || same_text(map, slot->number, batch, which[i]))))
		{
			at[i] = (at[i] + 1) & map->mask;
			slot = &map->slots[at[i]];
		}
		if (slot->number < 0)
		{
			*slot = (IdSlot){key, map_add(map, batch, which[i])};
			map->n_hashed++;
		}
		numbers[which[i]] = slot->number;
		more_direct |= key < (uint64) map->n * DIRECT_IDS;
	}
	if (more_direct && !map->text && (uint64) map->n * DIRECT_IDS >= map->n_direct * 3 / 2)
		map_lengthen(map, map->n * DIRECT_IDS);
}

/* The numbers of n <= BATCH_ROWS ids. */
static void
map_numbers(IdMap *map, IdBatch *batch, int n, int32 *numbers)
{
	int hashed[BATCH_ROWS];
	int n_hashed = 0;

	if (map->text)
		for (int i = 0; i < n; i++)
			batch->key[i] =
				mrc_hash64(batch->bytes + batch->starts[i], batch->starts[i + 1] - batch->starts[i], 0);

	for (int i = 0; i < n; i++)
	{
		uint64 key = batch->key[i];

		if (map->text || key >= map->n_direct)
			hashed[n_hashed++] = i;
		else
		{
			if (map->direct[key] < 0)
				map->direct[key] = map_add(map, batch, i);
			numbers[i] = map->direct[key];
		}
	}
	if (n_hashed > 0)
		map_hashed(map, batch, n_hashed, hashed, numbers);
}

static int
compare_slots(const IdSlot *a, const IdSlot *b, const IdMap *map)
{
	if (a->key != b->key || !map->text)
		return (a->key > b->key) - (a->key < b->key);
	return compare_bytes(
		map->bytes + map->starts[a->number], map->starts[a->number + 1] - map->starts[a->number],
		map->bytes + map->starts[b->number], map->starts[b->number + 1] - map->starts[b->number]);
}

#define ST_SORT sort_slots
#define ST_ELEMENT_TYPE IdSlot
#define ST_COMPARE_ARG_TYPE const IdMap
#define ST_COMPARE(a, b, map) compare_slots(a, b, map)
#define ST_SCOPE static
#define ST_CHECK_FOR_INTERRUPTS
#define ST_DECLARE
#define ST_DEFINE
#include "lib/sort_template.h"

/* A number that orders as the id does, as far as its first eight bytes decide. */
static uint64
order_key(const IdMap *map, const IdSlot *slot)
{
	uint64 key = 0;

	if (!map->text)
		return slot->key ^ UINT64CONST(1) << 63;
	for (int64 i = 0; i < 8; i++)
	{
		int64 at = map->starts[slot->number] + i;

		key = key << 8 | (at < map->starts[slot->number + 1] ? (unsigned char) map->bytes[at] : 0);
	}
	return key;
}

/* All ids in their order, as slots. */
static IdSlot *
map_sort(IdMap *map)
{
	IdSlot *slots = mr_reserve(map->budget, (map->n + 1) * sizeof(IdSlot));
	int64 n = 0;

	for (uint64 i = 0; i < map->n_direct; i++)
	{
		if ((i & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (map->direct[i] >= 0)
			slots[n++] = (IdSlot){i, map->direct[i]};
	}
	for (uint64 i = 0; map->slots && i <= map->mask; i++)
	{
		if ((i & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (map->slots[i].number >= 0)
			slots[n++] = map->slots[i];
	}
	mr_release(map->budget, map->direct);
	mr_release(map->budget, map->slots);
	for (int64 i = 0; i < n; i++)
	{
		if ((i & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		slots[i].key = order_key(map, &slots[i]);
	}
	sort_slots(slots, n, map);
	return slots;
}

/* Sorts the ids into *sorted and returns the new row of each number; the map is used up. */
static int32 *
map_finish(IdMap *map, MrIds *sorted)
{
	MrBudget *budget = map->budget;
	IdSlot *slots = map_sort(map);
	int64 n = map->n;
	int32 *row_of;

	row_of = mr_reserve(budget, (n + 1) * sizeof(int32));
	*sorted = (MrIds){.text = map->text, .n = n};
	if (map->text)
	{
		sorted->bytes = mr_reserve(budget, map->starts[n] + 1);
		sorted->starts = mr_reserve(budget, (n + 1) * sizeof(int64));
		sorted->starts[0] = 0;
	}
	else
		sorted->ints = mr_reserve(budget, (n + 1) * sizeof(int64));
	for (int64 row = 0; row < n; row++)
	{
		int32 number = slots[row].number;

		if ((row & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		row_of[number] = (int32) row;
		if (map->text)
		{
			int64 n_bytes = map->starts[number + 1] - map->starts[number];

			memcpy(sorted->bytes + sorted->starts[row], map->bytes + map->starts[number], n_bytes);
			sorted->starts[row + 1] = sorted->starts[row] + n_bytes;
		}
		else
			sorted->ints[row] = (int64) (slots[row].key ^ UINT64CONST(1) << 63);
	}
	mr_release(budget, slots);
	mr_release(budget, map->bytes);
	mr_release(budget, map->starts);
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

CachedPlanSource *
mr_single_query(SPIPlanPtr plan, const char *what)
{
	CachedPlanSource *source = NULL;
	List *sources;

	if (plan == NULL)
		elog(ERROR, "%s: %s", what, SPI_result_code_string(SPI_result));
	sources = SPI_plan_get_plan_sources(plan);
	if (list_length(sources) == 1)
		source = linitial(sources);
	/* SELECT … INTO has the tag, but no result; others have a result, but are no part of a query. */
	if (source == NULL || source->commandTag != CMDTAG_SELECT || source->resultDesc == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a single query that returns rows", what),
				 errhint("Give a name, or one SELECT, VALUES or TABLE.")));
	return source;
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
	statement = mr_single_query(plan, what)->raw_parse_tree;
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
	TupleDesc desc = mr_single_query(plan, what)->resultDesc;
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
	shape.user_type = getBaseType(TupleDescAttr(desc, 0)->atttypid);
	shape.item_type = getBaseType(TupleDescAttr(desc, 1)->atttypid);
	shape.value_type = desc->natts > 2 ? getBaseType(TupleDescAttr(desc, 2)->atttypid) : InvalidOid;
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

/* Triples as they come; one piece of the budget, which the arrays follow. */
typedef struct Chunk
{
	struct Chunk *next;
	int64 n;
	int64 size; /* a multiple of BATCH_ROWS */
	int32 *user;
	int32 *item;
	float *value;
} Chunk;

#define TRIPLE_BYTES 12
#define CHUNK_HEADER_BYTES TYPEALIGN(ALIGN_BYTES, sizeof(Chunk))
#define MAX_CHUNK_ROWS (2048 * BATCH_ROWS)
#define MIN_SPARE_ROWS (MAX_CHUNK_ROWS / 2)

typedef struct Reader
{
	DestReceiver dest;
	MrBudget *budget;
	const char *what;
	bool is_live; /* MR_VALUES_LIVE */
	bool as_owner;
	bool keep_events;
	MrPlan shape_plan;
	MrPlan plan;
	MrShape shape;
	bool read_value;
	double least; /* the smallest value that is taken */
	int n_columns;
	IdMap users;
	IdMap items;
	int64 n;
	Chunk *chunks;
	Chunk *last;
	MrcPool *pool; /* touches the memory of spare, if there is one */
	Chunk *spare;  /* will be the next of the chunks */
	/* the batch; its values are at the end of the last chunk */
	int n_batch;
	bool batch_is_full; /* of text */
	IdBatch user;
	IdBatch item;
	Size user_space; /* of user.bytes */
	Size item_space;
	MemoryContext context; /* for what is detoasted; reset after each batch */
} Reader;

char *
mr_describe(TupleTableSlot *slot, int column)
{
	Oid output;
	bool is_varlena;
	char *shown;
	int n_bytes;

	slot_getallattrs(slot);
	if (slot->tts_isnull[column])
		return "NULL";
	getTypeOutputInfo(TupleDescAttr(slot->tts_tupleDescriptor, column)->atttypid, &output, &is_varlena);
	shown = OidOutputFunctionCall(output, slot->tts_values[column]);
	n_bytes = strlen(shown);
	if (n_bytes > 100)
		shown = psprintf("%.*s…", pg_mbcliplen(shown, n_bytes, 100), shown);
	return shown;
}

static void
null_column(const Reader *reader, TupleTableSlot *slot)
{
	static const char *const NAMES[] = {"user", "item", "value"};
	int column = slot->tts_isnull[0] ? 0 : slot->tts_isnull[1] ? 1 : 2;
	char *detail = column == 0 ? psprintf("The item is \"%s\".", mr_describe(slot, 1))
		: column == 1
		? psprintf("The user is \"%s\".", mr_describe(slot, 0))
		: psprintf("It belongs to user \"%s\" and item \"%s\".", mr_describe(slot, 0), mr_describe(slot, 1));

	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("%s: the %s is NULL", reader->what, NAMES[column]), errdetail_internal("%s", detail),
			 errhint("Leave such rows out with WHERE … IS NOT NULL.")));
}

static void
bad_value(const Reader *reader, TupleTableSlot *slot, double value)
{
	const char *wrong;
	const char *hint = "Leave such rows out.";
	int code = ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE;
	char *shown = psprintf("%g", value);

	if (isinf(value) && reader->shape.value_type == NUMERICOID &&
		!numeric_is_inf(DatumGetNumeric(slot->tts_values[2])))
	{
		wrong = "a value out of range";
		shown = mr_describe(slot, 2);
		hint = "Scale the values down.";
	}
	else if (isnan(value))
		wrong = "a value that is not a number";
	else if (isinf(value))
		wrong = "an infinite value";
	else if (fabs(value) > FLT_MAX)
	{
		wrong = "a value out of range";
		hint = "Scale the values down.";
	}
	else
	{
		wrong = "a negative value, which implicit feedback cannot have";
		hint = "Leave such rows out, or train with implicit => false.";
		code = ERRCODE_INVALID_PARAMETER_VALUE;
	}
	ereport(
		ERROR,
		(errcode(code), errmsg("%s: %s: %s", reader->what, wrong, shown),
		 errdetail("It belongs to user \"%s\" and item \"%s\".", mr_describe(slot, 0), mr_describe(slot, 1)),
		 errhint("%s", hint)));
}

/*
 * A numeric of at most three digits to base 10000 and with an exponent that is not large, as the nearest double
 * precision number: an integer below 2^53, times or through a power of ten below 10^23, is rounded once.  False: it is
 * not so simple.  The short form of numeric.c, which has not changed since PostgreSQL 9.1: 16 bits with 0x8000, sign,
 * scale and exponent of the first digit, then the digits, 16 bits each.
 */
static bool
simple_numeric(Datum value, double *result)
{
	static const double POWERS[] = {1, 1e4, 1e8, 1e12, 1e16, 1e20};
	const struct varlena *stored = (struct varlena *) DatumGetPointer(value);
	const char *data = VARDATA_ANY(stored);
	uint16 header;
	int64 sum = 0;
	int n_digits;
	int exponent;

	if (VARATT_IS_COMPRESSED(stored) || VARATT_IS_EXTERNAL(stored))
		return false;
	memcpy(&header, data, sizeof(header));
	n_digits = (VARSIZE_ANY_EXHDR(stored) - sizeof(header)) / sizeof(int16);
	exponent = (header & 0x3F) - (header & 0x40) - n_digits + 1;
	if ((header & 0xC000) != 0x8000 || n_digits > 3 || abs(exponent) >= lengthof(POWERS))
		return false;
	for (int i = 0; i < n_digits; i++)
	{
		int16 digit;

		memcpy(&digit, data + sizeof(header) + i * sizeof(digit), sizeof(digit));
		sum = sum * 10000 + digit;
	}
	if (header & 0x2000)
		sum = -sum;
	*result = exponent < 0 ? sum / POWERS[-exponent] : sum * POWERS[exponent];
	return true;
}

double
mr_numeric_of(MemoryContext context, Datum value)
{
	MemoryContext before;
	double result;

	if (simple_numeric(value, &result))
		return result;
	before = MemoryContextSwitchTo(context);
	/* Beyond the range of double precision infinite, no error. */
	result = DatumGetFloat8(DirectFunctionCall1(numeric_float8_no_overflow, value));
	MemoryContextSwitchTo(before);
	return result;
}

static void
long_id(const Reader *reader, TupleTableSlot *slot, int column, Size n_bytes)
{
	ereport(ERROR,
			(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
			 errmsg("%s: the id of %s has %zu bytes, more than %d", reader->what,
					column ? "an item" : "a user", n_bytes, MAX_ID_BYTES),
			 errdetail("It begins: %s", mr_describe(slot, column)),
			 errhint("Use a shorter id, or md5() of this one.")));
}

/* Append the text to the batch. */
static void
take_text(Reader *reader, TupleTableSlot *slot, int column, IdBatch *ids, Size *space)
{
	struct varlena *id = (struct varlena *) DatumGetPointer(slot->tts_values[column]);
	int64 start = ids->starts[reader->n_batch];
	Size n_bytes;

	if (VARATT_IS_COMPRESSED(id) || VARATT_IS_EXTERNAL(id))
	{
		MemoryContext before = MemoryContextSwitchTo(reader->context);

		n_bytes = toast_raw_datum_size(PointerGetDatum(id)) - VARHDRSZ;
		if (n_bytes <= MAX_ID_BYTES)
			id = pg_detoast_datum_packed(id);
		MemoryContextSwitchTo(before);
	}
	else
		n_bytes = VARSIZE_ANY_EXHDR(id);
	if (n_bytes > MAX_ID_BYTES)
		long_id(reader, slot, column, n_bytes);
	if (start + n_bytes > *space)
	{
		*space = Max(start + n_bytes, *space * 2);
		ids->bytes = grow(reader->budget, ids->bytes, start, *space);
	}
	memcpy(ids->bytes + start, VARDATA_ANY(id), n_bytes);
	ids->starts[reader->n_batch + 1] = start + n_bytes;
	if (start + n_bytes > BATCH_TEXT_BYTES)
		reader->batch_is_full = true;
}

static inline void
take_id(Reader *reader, TupleTableSlot *slot, int column, Oid type, IdBatch *ids, Size *space)
{
	Datum value = slot->tts_values[column];

	if (type == INT8OID)
		ids->key[reader->n_batch] = (uint64) DatumGetInt64(value);
	else if (type == INT4OID)
		ids->key[reader->n_batch] = (uint64) (int64) DatumGetInt32(value);
	else if (type == INT2OID)
		ids->key[reader->n_batch] = (uint64) (int64) DatumGetInt16(value);
	else
		take_text(reader, slot, column, ids, space);
}

static Size
chunk_bytes(int64 size)
{
	return CHUNK_HEADER_BYTES + size * TRIPLE_BYTES;
}

/* For when there are n rows: half as many. */
static int64
chunk_size(int64 n)
{
	return Min(Max(n / 2 / BATCH_ROWS, 1) * BATCH_ROWS, MAX_CHUNK_ROWS);
}

static Chunk *
reserve_chunk(Reader *reader)
{
	int64 size = chunk_size(reader->n);
	Chunk *chunk;

	if (!affordable(reader->budget, chunk_bytes(size)))
	{
		size = BATCH_ROWS;
		mr_reserve_check(reader->budget, chunk_bytes(size),
						 psprintf("Reading more than " INT64_FORMAT " rows with " INT64_FORMAT
								  " users and " INT64_FORMAT " items",
								  reader->n, reader->users.n, reader->items.n));
	}
	chunk = mr_reserve(reader->budget, chunk_bytes(size));
	chunk->size = size;
	return chunk;
}

/* The chunk after the last one, if it will be large: a thread has its memory cleared while the last one fills. */
static void
begin_spare(Reader *reader)
{
	int64 size = chunk_size(reader->n + reader->last->size);

	if (size < MIN_SPARE_ROWS || !affordable(reader->budget, 4 * chunk_bytes(size)))
		return;
	reader->spare = mr_reserve(reader->budget, chunk_bytes(size));
	reader->spare->size = size;
	mrc_pool_begin(reader->pool, size * TRIPLE_BYTES, size * TRIPLE_BYTES, mrc_touch,
				   (char *) reader->spare + CHUNK_HEADER_BYTES);
}

/* The spare chunk, or NULL, which may be written to from now on. */
static Chunk *
end_spare(Reader *reader)
{
	Chunk *spare = reader->spare;

	if (spare)
		(void) mrc_pool_end(reader->pool);
	reader->spare = NULL;
	return spare;
}

static void
add_chunk(Reader *reader)
{
	Chunk *chunk = end_spare(reader);

	if (chunk == NULL)
		chunk = reserve_chunk(reader);
	*chunk = (Chunk){.size = chunk->size};
	chunk->user = (int32 *) ((char *) chunk + CHUNK_HEADER_BYTES);
	chunk->item = chunk->user + chunk->size;
	chunk->value = (float *) (chunk->item + chunk->size);
	if (reader->last)
		reader->last->next = chunk;
	else
		reader->chunks = chunk;
	reader->last = chunk;
	begin_spare(reader);
}

static void
finish_batch(Reader *reader)
{
	Chunk *chunk = reader->last;

	map_numbers(&reader->users, &reader->user, reader->n_batch, chunk->user + chunk->n);
	map_numbers(&reader->items, &reader->item, reader->n_batch, chunk->item + chunk->n);
	chunk->n += reader->n_batch;
	reader->n += reader->n_batch;
	reader->n_batch = 0;
	reader->batch_is_full = false;
	MemoryContextReset(reader->context);
	if (chunk->size - chunk->n < BATCH_ROWS)
		add_chunk(reader);
}

/* Of the DestReceiver: one row. */
static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	Reader *reader = (Reader *) self;
	bool any_null;
	double value = 1;

	slot_getsomeattrs(slot, reader->n_columns);
	any_null = slot->tts_isnull[0] | slot->tts_isnull[1];
	if (reader->read_value)
		any_null |= slot->tts_isnull[2];
	if (any_null)
	{
		if (!reader->is_live)
			null_column(reader, slot);
		if (slot->tts_isnull[0] || slot->tts_isnull[1])
			return true;
		value = 0;
	}
	else if (reader->read_value)
	{
		value = mr_number_of(reader->context, slot->tts_values[2], reader->shape.value_type);
		if (!(value >= reader->least && value <= FLT_MAX))
		{
			if (!reader->is_live)
				bad_value(reader, slot, value);
			value = 0;
		}
	}
	take_id(reader, slot, 0, reader->shape.user_type, &reader->user, &reader->user_space);
	take_id(reader, slot, 1, reader->shape.item_type, &reader->item, &reader->item_space);
	reader->last->value[reader->last->n + reader->n_batch] = (float) value;
	if (++reader->n_batch == BATCH_ROWS || reader->batch_is_full)
		finish_batch(reader);
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

static void
read_all(Reader *reader, const char *query)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &reader->dest};
	int result;

	reader->dest = (DestReceiver){receive_row, receive_start, receive_end, receive_end, DestNone};
	reader->n_columns = reader->read_value ? 3 : 2;
	reader->context =
		AllocSetContextCreate(reader->budget->context, "millrace ratings batch", ALLOCSET_DEFAULT_SIZES);
	add_chunk(reader);
	reader->user.bytes = mr_reserve(reader->budget, 1);
	reader->item.bytes = mr_reserve(reader->budget, 1);
	mr_plan_query(
		&reader->plan, reader->budget->context,
		mr_ratings_select(&reader->shape, reader->read_value ? "q.u, q.i, q.v" : "q.u, q.i", query, ""),
		reader->what, reader->as_owner);
	result = SPI_execute_plan_extended(reader->plan.plan, &options);
	if (result < 0)
		elog(ERROR, "%s: %s", reader->what, SPI_result_code_string(result));
	finish_batch(reader);
	mr_release(reader->budget, end_spare(reader));
	mr_plan_free(&reader->plan);
	mr_plan_free(&reader->shape_plan);
	MemoryContextDelete(reader->context);
	mr_release(reader->budget, reader->user.bytes);
	mr_release(reader->budget, reader->item.bytes);
}

/* ---- compressed rows ---- */

Size
mr_csr_bytes(int64 n_rows, int64 n)
{
	return (n_rows + 1) * sizeof(int64) + n * (sizeof(int32) + sizeof(float));
}

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

void
mr_csr_transpose(MrBudget *budget, MrcPool *pool, const MrcCsr *csr, MrcCsr *transposed)
{
	int64 n = csr->start[csr->n_rows];
	void *scratch = mr_reserve(budget, mrc_turn_scratch_bytes(n, csr->n_cols, mrc_pool_size(pool)));

	csr_reserve(budget, transposed, csr->n_cols, csr->n_rows, n);
	if (mrc_csr_turn(pool, csr, transposed, scratch) != MRC_OK)
		elog(ERROR, "could not turn compressed rows");
	mr_release(budget, scratch);
}

/*
 * Sum the entries [e, end) of a row that have the same column, and stand side by side; they move to out.  is_live: a sum out
 * of range is the greatest there is, not an error.
 */
static int64
merge_row(MrcCsr *csr, int64 row, int64 e, int64 end, int64 out, const MrRatings *ratings, const char *what,
		  bool is_live)
{
	while (e < end)
	{
		int32 column = csr->index[e];
		double sum = 0;

		for (; e < end && csr->index[e] == column; e++)
			sum += csr->value[e];
		if (fabs(sum) > FLT_MAX && is_live)
			sum = sum > 0 ? FLT_MAX : -FLT_MAX;
		if (fabs(sum) > FLT_MAX)
		{
			MrKey user = mr_ids_key(&ratings->users, row);
			MrKey item = mr_ids_key(&ratings->items, column);

			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("%s: a sum of values is out of range", what),
					 errdetail("It belongs to user \"%s\" and item \"%s\".", mr_key_cstring(&user),
							   mr_key_cstring(&item)),
					 errhint("Scale the values down.")));
		}
		csr->index[out] = column;
		csr->value[out++] = (float) sum;
	}
	return out;
}

/* Users whose events are kept, and how many events at most. */
#define EVENT_SCORES 25165824 /* items that users are compared with, in all */
#define EVENT_USERS 1000
#define EVENT_USERS_LEAST 200
#define EVENTS_MOST 2097152

static bool
is_drawn(const MrIds *users, int64 row, double share)
{
	return share >= 1 || (double) (mr_ids_hash(users, row, 1) >> 11) * 0x1p-53 < share;
}

/* Keep what some users did.  The users' rows are as they were read, in the order of items. */
static void
keep_events(MrBudget *budget, MrRatings *ratings)
{
	const MrcCsr *csr = &ratings->by_user;
	MrcCsr *events = &ratings->events;
	int64 wanted = Min(Max(EVENT_SCORES / Max(ratings->items.n, 1), EVENT_USERS_LEAST), EVENT_USERS);
	double share = (double) wanted / (double) Max(ratings->users.n, 1);
	int32 *drawn = mr_reserve(budget, csr->n_rows * sizeof(int32) + 1);
	int64 n_drawn = 0;
	int64 n = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 length = csr->start[row + 1] - csr->start[row];

		if ((row & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (n + length > EVENTS_MOST || !is_drawn(&ratings->users, row, share))
			continue;
		drawn[n_drawn++] = (int32) row;
		n += length;
	}
	csr_reserve(budget, events, n_drawn, csr->n_cols, n);
	n = 0;
	for (int64 i = 0; i < n_drawn; i++)
	{
		int64 start = csr->start[drawn[i]];
		int64 length = csr->start[drawn[i] + 1] - start;

		events->start[i] = n;
		memcpy(events->index + n, csr->index + start, length * sizeof(int32));
		memcpy(events->value + n, csr->value + start, length * sizeof(float));
		n += length;
	}
	events->start[n_drawn] = n;
	mr_release(budget, drawn);
}

/* Users of nobody in particular, who have the mean of all items, that are counted with those of each item. */
#define USUAL_SHRINKAGE 3

/* Mean of the values above 0 of each item, drawn towards that of all items the more the fewer users have it. */
static void
find_usual(MrBudget *budget, MrRatings *ratings)
{
	const MrcCsr *csr = &ratings->by_user;
	int64 n = csr->start[csr->n_rows];
	double *sum = mr_reserve(budget, csr->n_cols * sizeof(double) + 1);
	int64 *count = mr_reserve(budget, csr->n_cols * sizeof(int64) + 1);
	double all = 0;
	int64 n_all = 0;

	memset(sum, 0, csr->n_cols * sizeof(double));
	memset(count, 0, csr->n_cols * sizeof(int64));
	for (int64 e = 0; e < n; e++)
	{
		if ((e & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (!(csr->value[e] > 0))
			continue;
		sum[csr->index[e]] += csr->value[e];
		count[csr->index[e]]++;
	}
	for (int64 item = 0; item < csr->n_cols; item++)
	{
		all += sum[item];
		n_all += count[item];
	}
	ratings->usual = mr_reserve(budget, csr->n_cols * sizeof(float) + 1);
	for (int64 item = 0; item < csr->n_cols; item++)
		ratings->usual[item] = n_all == 0 ? 0
										  : (float) ((sum[item] + USUAL_SHRINKAGE * all / (double) n_all) /
													 (double) (count[item] + USUAL_SHRINKAGE));
	mr_release(budget, sum);
	mr_release(budget, count);
}

static void
merge_duplicates(MrcCsr *csr, MrRatings *ratings, const char *what, bool is_live)
{
	int64 out = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 e = csr->start[row];
		int64 end = csr->start[row + 1];
		int64 n_same = 0;

		CHECK_FOR_INTERRUPTS();
		csr->start[row] = out;
		for (int64 i = e + 1; i < end; i++)
			n_same += csr->index[i] == csr->index[i - 1];
		ratings->repeats |= n_same > 0;
		if (n_same > 0 || out < e)
			out = merge_row(csr, row, e, end, out, ratings, what, is_live);
		else
			out = end;
	}
	csr->start[csr->n_rows] = out;
}

/* The triples as pieces, one a chunk. */
static MrcPiece *
list_pieces(const Reader *reader)
{
	int n = 0;
	MrcPiece *pieces;

	for (Chunk *chunk = reader->chunks; chunk; chunk = chunk->next)
		n++;
	pieces = mr_reserve(reader->budget, n * sizeof(MrcPiece));
	n = 0;
	for (Chunk *chunk = reader->chunks; chunk; chunk = chunk->next)
		pieces[n++] = (MrcPiece){chunk->user, chunk->size * TRIPLE_BYTES, chunk->n, chunk->user, chunk->item,
								 chunk->value};
	return pieces;
}

/* Triples into rows of users, each in the order of items. */
static void
arrange(Reader *reader, MrRatings *ratings, const int32 *user_row, const int32 *item_row)
{
	MrBudget *budget = reader->budget;
	MrcCsr *csr = &ratings->by_user;
	int64 n_users = ratings->users.n;
	int64 n_items = ratings->items.n;
	int n_threads = mrc_pool_size(reader->pool);
	Size scratch_bytes = mrc_turn_scratch_bytes(reader->n, n_users, n_threads);
	MrcTriples triples = {.n = reader->n, .user_row = user_row, .item_row = item_row};
	Size events_bytes = 0;
	MrcPiece *pieces = list_pieces(reader);
	void *scratch;

	if (reader->keep_events)
		events_bytes = mr_csr_bytes(n_users, Min(reader->n, EVENTS_MOST)) + n_users * sizeof(int32);
	mr_reserve_check(budget, mr_csr_bytes(n_users, reader->n) + Max(scratch_bytes, events_bytes),
					 psprintf("Arranging " INT64_FORMAT " rows with " INT64_FORMAT " users and " INT64_FORMAT
							  " items",
							  reader->n, n_users, n_items));
	triples.pieces = pieces;
	scratch = mr_reserve(budget, scratch_bytes);
	csr_reserve(budget, csr, n_users, n_items, reader->n);
	if (mrc_csr_gather(reader->pool, &triples, csr, scratch) != MRC_OK)
		elog(ERROR, "%s: could not be arranged", reader->what);
	mr_release(budget, scratch);
	mr_release(budget, pieces);
	for (Chunk *chunk = reader->chunks, *next; chunk; chunk = next)
	{
		next = chunk->next;
		mr_release(budget, chunk);
	}
	scratch = mr_reserve(budget, mrc_sort_scratch_bytes(csr, n_threads));
	if (mrc_csr_sort(reader->pool, csr, scratch) != MRC_OK)
		elog(ERROR, "%s: could not be sorted", reader->what);
	mr_release(budget, scratch);
	if (reader->keep_events)
		keep_events(budget, ratings);
	merge_duplicates(csr, ratings, reader->what, reader->is_live);
	if (reader->keep_events)
		find_usual(budget, ratings);
}

static MrRatings *
read_ratings(MrBudget *budget, const char *query, const char *what, bool as_owner, MrValues values,
			 bool empty_ok, bool keep, int n_threads)
{
	Reader *reader = MemoryContextAllocZero(budget->context, sizeof(Reader));
	MrRatings *ratings = MemoryContextAllocZero(budget->context, sizeof(MrRatings));
	int32 *user_row;
	int32 *item_row;
	clock_t start = clock();
	clock_t read;

	*reader = (Reader){.budget = budget,
					   .what = what,
					   .as_owner = as_owner,
					   .keep_events = keep,
					   .is_live = values == MR_VALUES_LIVE};
	reader->least = values == MR_VALUES_NOT_NEGATIVE ? 0 : -FLT_MAX;
	mr_plan_query(&reader->shape_plan, budget->context, query, what, as_owner);
	reader->shape = mr_ratings_shape(reader->shape_plan.plan, what);
	reader->read_value = reader->shape.n_columns > 2 && values != MR_VALUES_IGNORED;
	map_begin(&reader->users, budget, reader->shape.user_text);
	map_begin(&reader->items, budget, reader->shape.item_text);
	reader->pool = mr_pool_create(budget->context, mr_n_threads(n_threads));
	read_all(reader, query);
	if (reader->n == 0 && !empty_ok)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s: there are no rows", what),
				 errdetail("The query is: %s", query),
				 errhint("Check its conditions, and whether its tables have been filled.")));
	read = clock();
	user_row = map_finish(&reader->users, &ratings->users);
	item_row = map_finish(&reader->items, &ratings->items);
	arrange(reader, ratings, user_row, item_row);
	mr_pool_destroy(reader->pool);
	mr_release(budget, user_row);
	mr_release(budget, item_row);
	ereport(DEBUG1,
			(errmsg_internal("%s: " INT64_FORMAT " rows read in %.3f s and arranged in %.3f s of CPU time",
							 what, reader->n, (double) (read - start) / CLOCKS_PER_SEC,
							 (double) (clock() - read) / CLOCKS_PER_SEC)));
	return ratings;
}

MrRatings *
mr_ratings_read(MrBudget *budget, const char *query, const char *what, bool as_owner, MrValues values,
				bool empty_ok, int n_threads)
{
	return read_ratings(budget, query, what, as_owner, values, empty_ok, false, n_threads);
}

MrRatings *
mr_ratings_read_events(MrBudget *budget, const char *query, const char *what, MrValues values, int n_threads)
{
	return read_ratings(budget, query, what, true, values, false, true, n_threads);
}

/* ---- transforms ---- */

const char *const MR_TRANSFORMS[] = {
	[MR_TRANSFORM_NONE] = "none", [MR_TRANSFORM_LOG1P] = "log1p", [MR_TRANSFORM_BINARY] = "binary", NULL};

const char *
mr_transform_name(MrTransform transform)
{
	return MR_TRANSFORMS[transform];
}

MrTransform
mr_transform_named(const char *name)
{
	return (MrTransform) mr_choice("value_transform", MR_TRANSFORMS, name);
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
