/*
 * fold.c: moves what batches left in NAME_delta into NAME_state, merged to one row for each group.
 *
 * Folded are rows of transactions before the oldest one that still runs: nobody can come to commit below them, so a
 * folded row's xid, the greatest of those merged, tells NAME_changes as much as the rows did.  Afterwards a group has
 * one row 'b', or, where late rows came or a closed window was computed anew, 'l' with all that NAME shows and 'f'
 * with what NAME_final does.
 *
 * Rows of NAME_delta are gathered in a hash table of groups, which refers to their windows.  Then the rows of each
 * window are looked up in NAME_state by its index; those of a group that is in the table join it and are deleted, the
 * others stay as they are.  When the table fills its memory (maintenance_work_mem), it is written out and begun anew:
 * a portion.  Nobody else changes NAME_state meanwhile, because the caller holds the aggregate's lock; batches only
 * append to NAME_delta.  O(rows folded + rows of NAME_state in their windows).
 *
 * Parts of sessions have no fixed windows: a statement of definition.c folds them.
 */
#include "aggregate.h"

#include "access/genam.h"
#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_am.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "executor/tuptable.h"
#include "lib/rbtree.h"
#include "storage/lmgr.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"
#include "utils/typcache.h"
#include "utils/xid8.h"

/* A window is left alone if NAME_state has more than so many times the rows that would be folded. */
#define MAX_REWRITE 16
/* Rows of NAME_delta that are counted to choose windows, as a multiple of those that may be folded. */
#define MAX_COUNTED 16

enum
{
	XID,
	PART,
	OPEN_FROM,
	WINDOW_START,
	FIRST_KEY
};

typedef struct Window
{
	bool isnull;
	TimestampTz start;
	int64 n_rows; /* of NAME_delta, as far as they were counted */
	bool is_chosen;
	uint64 portion; /* the last one that had rows of it */
	struct StateGroup *groups;
	struct StateGroup **last;
} Window;

/* What was merged of one part of a group: nothing if values is NULL. */
typedef struct Part
{
	const Datum *values; /* states of the first row */
	const bool *nulls;
	MrMergeState *states; /* NULL: there is only that row, as it is stored */
} Part;

typedef enum PartName
{
	BOTH,
	LIVE,
	FINAL,
	N_PARTS
} PartName;

typedef struct StateGroup
{
	struct StateGroup *next; /* of the window */
	Window *window;
	uint32 hash;
	FullTransactionId xid;
	int rank; /* of the row from which the keys are */
	Datum *
		values; /* the first row that came; keys, of which equal ones may look different, those to be shown */
	bool *nulls;
	Part parts[N_PARTS];
} StateGroup;

/* Numbers values of a type that cannot be hashed. */
typedef struct NumberedValue
{
	RBTNode node;
	Datum value;
	uint32 number;
} NumberedValue;

typedef struct Key
{
	TypeCacheEntry *type;
	Oid collation;
	RBTree *numbers; /* NULL: the type can be hashed, or no value came yet */
	uint32 n_numbers;
} Key;

typedef struct Fold
{
	Relation delta;
	Relation state;
	Relation index; /* of state, by window_start */
	TupleDesc desc;
	int n_keys; /* behind window_start */
	int n_states;
	Key *keys;
	MrMergeFunctions **functions;
	Snapshot snapshot;
	FullTransactionId oldest; /* rows of it and of later transactions stay */

	MemoryContext context; /* of the whole fold */
	struct windows_hash *windows;
	Window *null_window;
	Window *last_window;

	MemoryContext memory; /* of the portion */
	MemoryContext row;	  /* of one row or group */
	struct groups_hash *groups;
	AggState *node;
	uint64 portion;
	List *portion_windows;
	ItemPointer delta_rows; /* to delete */
	ItemPointer state_rows;
	int64 n_delta_rows, max_delta_rows;
	int64 n_state_rows, max_state_rows;
} Fold;

/*
 * Hash tables
 */

static uint32
hash_time(TimestampTz time)
{
	return hash_combine(murmurhash32((uint32) time), murmurhash32((uint32) ((uint64) time >> 32)));
}

/* simplehash.h shadows its own variables. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"

typedef struct WindowEntry
{
	TimestampTz start;
	Window *window;
	char status;
} WindowEntry;

#define SH_PREFIX windows
#define SH_ELEMENT_TYPE WindowEntry
#define SH_KEY_TYPE TimestampTz
#define SH_KEY start
#define SH_HASH_KEY(table, key) hash_time(key)
#define SH_EQUAL(table, a, b) ((a) == (b))
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

typedef struct GroupEntry
{
	StateGroup *group;
	uint32 hash;
	char status;
} GroupEntry;

static bool same_group(const Fold *fold, const StateGroup *a, const StateGroup *b);

#define SH_PREFIX groups
#define SH_ELEMENT_TYPE GroupEntry
#define SH_KEY_TYPE StateGroup *
#define SH_KEY group
#define SH_HASH_KEY(table, key) ((key)->hash)
#define SH_EQUAL(table, a, b) same_group((table)->private_data, (a), (b))
#define SH_STORE_HASH
#define SH_GET_HASH(table, entry) ((entry)->hash)
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
#include "lib/simplehash.h"

#pragma GCC diagnostic pop

/* Of the same window, too: its address is part of the hash. */
static bool
same_group(const Fold *fold, const StateGroup *a, const StateGroup *b)
{
	if (a->window != b->window || a->nulls[OPEN_FROM] != b->nulls[OPEN_FROM] ||
		(!a->nulls[OPEN_FROM] && a->values[OPEN_FROM] != b->values[OPEN_FROM]))
		return false;
	for (int i = 0; i < fold->n_keys; i++)
	{
		int column = FIRST_KEY + i;

		if (a->nulls[column] != b->nulls[column])
			return false;
		if (!a->nulls[column] &&
			!DatumGetBool(FunctionCall2Coll(&fold->keys[i].type->eq_opr_finfo, fold->keys[i].collation,
											a->values[column], b->values[column])))
			return false;
	}
	return true;
}

static int
compare_numbered(const RBTNode *a, const RBTNode *b, void *arg)
{
	Key *key = arg;

	return DatumGetInt32(FunctionCall2Coll(&key->type->cmp_proc_finfo, key->collation,
										   ((const NumberedValue *) a)->value,
										   ((const NumberedValue *) b)->value));
}

static void
combine_numbered(RBTNode *existing, const RBTNode *added, void *arg)
{
}

static RBTNode *
allocate_numbered(void *arg)
{
	return palloc(sizeof(NumberedValue));
}

/* A number that equal values share, of a type without a hash function; memory is the portion's. */
static uint32
number_of(Key *key, Datum value, MemoryContext memory)
{
	MemoryContext old = MemoryContextSwitchTo(memory);
	NumberedValue probe = {.value = value}, *found;
	bool is_new;

	if (key->numbers == NULL)
		key->numbers = rbt_create(sizeof(NumberedValue), compare_numbered, combine_numbered,
								  allocate_numbered, NULL, key);
	found = (NumberedValue *) rbt_insert(key->numbers, &probe.node, &is_new);
	if (is_new)
	{
		found->value = datumCopy(value, key->type->typbyval, key->type->typlen);
		found->number = key->n_numbers++;
	}
	MemoryContextSwitchTo(old);
	return murmurhash32(found->number);
}

static uint32
hash_group(Fold *fold, const StateGroup *group)
{
	uint32 hash = hash_time((TimestampTz) (uintptr_t) group->window);

	if (!group->nulls[OPEN_FROM])
		hash = hash_combine(hash, hash_time(DatumGetTimestampTz(group->values[OPEN_FROM])));
	for (int i = 0; i < fold->n_keys; i++)
	{
		Key *key = &fold->keys[i];
		Datum value = group->values[FIRST_KEY + i];
		uint32 part = 0;

		if (!group->nulls[FIRST_KEY + i])
			part = OidIsValid(key->type->hash_proc_finfo.fn_oid)
				? DatumGetUInt32(FunctionCall1Coll(&key->type->hash_proc_finfo, key->collation, value))
				: number_of(key, value, fold->memory);
		hash = hash_combine(hash, part);
	}
	return hash;
}

/*
 * Windows
 */

static Window *
find_window(Fold *fold, bool isnull, TimestampTz start)
{
	Window *window = fold->last_window;
	WindowEntry *entry = NULL;
	bool found;

	if (window && window->isnull == isnull && window->start == start)
		return window;
	if (isnull)
		window = fold->null_window;
	else
	{
		entry = windows_insert(fold->windows, start, &found);
		window = found ? entry->window : NULL;
	}
	if (window == NULL)
	{
		window = MemoryContextAllocZero(fold->context, sizeof(Window));
		window->isnull = isnull;
		window->start = start;
		if (entry)
			entry->window = window;
		else
			fold->null_window = window;
	}
	return fold->last_window = window;
}

static Window *
window_of(Fold *fold, TupleTableSlot *slot)
{
	bool isnull = slot->tts_isnull[WINDOW_START];

	return find_window(fold, isnull, isnull ? 0 : DatumGetTimestampTz(slot->tts_values[WINDOW_START]));
}

static int
compare_windows(const ListCell *a, const ListCell *b)
{
	const Window *x = lfirst(a), *y = lfirst(b);

	if (x->isnull || y->isnull)
		return x->isnull - y->isnull;
	return (x->start > y->start) - (x->start < y->start);
}

static void
scan_window(IndexScanDesc scan, const Window *window)
{
	ScanKeyData key;

	if (window->isnull)
		ScanKeyEntryInitialize(&key, SK_ISNULL | SK_SEARCHNULL, 1, InvalidStrategy, InvalidOid, InvalidOid,
							   InvalidOid, (Datum) 0);
	else
		ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_TIMESTAMPTZ_EQ, TimestampTzGetDatum(window->start));
	index_rescan(scan, &key, 1, NULL, 0);
}

static bool
may_fold(const Fold *fold, TupleTableSlot *slot)
{
	return FullTransactionIdPrecedes(DatumGetFullTransactionId(slot->tts_values[XID]), fold->oldest);
}

/* Count the next rows of NAME_delta; false when there are no more. */
static bool
count_rows(Fold *fold, TableScanDesc scan, TupleTableSlot *slot, int64 n_rows, List **windows)
{
	while (n_rows-- > 0)
	{
		Window *window;

		CHECK_FOR_INTERRUPTS();
		if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
			return false;
		slot_getsomeattrs(slot, WINDOW_START + 1);
		if (!may_fold(fold, slot))
			continue;
		window = window_of(fold, slot);
		if (window->n_rows++ == 0)
			*windows = lappend(*windows, window);
	}
	return true;
}

/* Does NAME_state have few enough rows of it?  By the index alone, which may have some that are dead. */
static bool
is_worth_it(IndexScanDesc scan, const Window *window)
{
	int64 n_left = MAX_REWRITE * window->n_rows;

	scan_window(scan, window);
	while (n_left >= 0 && index_getnext_tid(scan, ForwardScanDirection))
	{
		CHECK_FOR_INTERRUPTS();
		n_left--;
	}
	return n_left >= 0;
}

/* Choose windows until about limit rows will be folded, the first in NAME_delta first. */
static void
choose_windows(Fold *fold, int64 limit)
{
	int64 max_rows = limit > PG_INT64_MAX / MAX_COUNTED ? PG_INT64_MAX : MAX_COUNTED * limit;
	int64 n_rows = limit, n_counted = 0, n_chosen = 0;
	TableScanDesc delta = table_beginscan(fold->delta, fold->snapshot, 0, NULL);
	TupleTableSlot *slot = table_slot_create(fold->delta, NULL);
	IndexScanDesc scan = mr_index_beginscan(fold->state, fold->index, fold->snapshot, 1);
	List *windows = NIL;
	bool more = true;
	ListCell *lc;

	/* More of them only if many wait */
	while (more && n_counted < max_rows && n_chosen < limit / 2 + 1)
	{
		more = count_rows(fold, delta, slot, n_rows, &windows);
		n_counted += n_rows;
		n_rows = Min(n_counted, max_rows - n_counted);
		n_chosen = 0;
		foreach (lc, windows)
		{
			Window *window = lfirst(lc);

			window->is_chosen = window->is_chosen || is_worth_it(scan, window);
			if (window->is_chosen)
				n_chosen += window->n_rows;
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(delta);
	index_endscan(scan);
	list_free(windows);
}

/*
 * Gathering
 */

/* One more row of a part; values and nulls (of the states) stay until the group is written. */
static void
add_states(Fold *fold, Part *part, const Datum *values, const bool *nulls)
{
	bool is_second = part->states == NULL;
	MemoryContext old;

	if (part->values == NULL)
	{
		part->values = values;
		part->nulls = nulls;
		return;
	}
	if (is_second)
		part->states = MemoryContextAlloc(fold->memory, Max(fold->n_states, 1) * sizeof(MrMergeState));
	old = MemoryContextSwitchTo(fold->row);
	for (int i = 0; i < fold->n_states; i++)
	{
		MrMergeState *state = &part->states[i];
		fmNodePtr node = (fmNodePtr) fold->node;
		MemoryContext memory = fold->node->curaggcontext->ecxt_per_tuple_memory;

		if (is_second)
		{
			mr_merge_start(state, fold->functions[i], memory);
			mr_merge_next(state, (NullableDatum){part->values[i], part->nulls[i]}, node, memory);
		}
		mr_merge_next(state, (NullableDatum){values[i], nulls[i]}, node, memory);
	}
	MemoryContextSwitchTo(old);
}

static PartName
part_name(char part)
{
	switch (part)
	{
		case MR_PART_BOTH:
			return BOTH;
		case MR_PART_LIVE:
			return LIVE;
		case MR_PART_FINAL:
			return FINAL;
		default:
			elog(ERROR, "unexpected part \"%c\" of a state", part);
	}
}

/* Make a group of the row, which it keeps. */
static StateGroup *
make_group(Fold *fold, const StateGroup *probe, TupleTableSlot *slot)
{
	MemoryContext old = MemoryContextSwitchTo(fold->memory);
	int n_columns = fold->desc->natts;
	StateGroup *group = palloc0(sizeof(StateGroup) + n_columns * (sizeof(Datum) + sizeof(bool)));
	Datum *values = (Datum *) (group + 1);
	bool *nulls = (bool *) (values + n_columns);

	group->window = probe->window;
	group->hash = probe->hash;
	group->values = values;
	group->nulls = nulls;
	heap_deform_tuple(ExecCopySlotHeapTuple(slot), fold->desc, values, nulls);
	if (group->window->portion != fold->portion)
	{
		group->window->portion = fold->portion;
		group->window->groups = NULL;
		group->window->last = &group->window->groups;
		fold->portion_windows = lappend(fold->portion_windows, group->window);
	}
	*group->window->last = group;
	group->window->last = &group->next;
	MemoryContextSwitchTo(old);
	return group;
}

/*
 * Keys that are equal may look different (numeric 1.0 and 1.00).  Those that NAME_state has go on being shown, else
 * those of a row that is not late.
 */
static void
choose_keys(Fold *fold, StateGroup *group, TupleTableSlot *slot, int rank)
{
	MemoryContext old;

	if (group->rank >= rank)
		return;
	group->rank = rank;
	old = MemoryContextSwitchTo(fold->memory);
	for (int i = FIRST_KEY; i < FIRST_KEY + fold->n_keys; i++)
	{
		Form_pg_attribute column = TupleDescAttr(fold->desc, i);

		if (!group->nulls[i] &&
			!datum_image_eq(group->values[i], slot->tts_values[i], column->attbyval, column->attlen))
			group->values[i] = datumCopy(slot->tts_values[i], column->attbyval, column->attlen);
	}
	MemoryContextSwitchTo(old);
}

/* Add the row to its group.  False if it has none and is_delta is false. */
static bool
add_row(Fold *fold, Window *window, TupleTableSlot *slot, bool is_delta)
{
	int first = FIRST_KEY + fold->n_keys;
	StateGroup probe = {.window = window};
	GroupEntry *entry;
	StateGroup *group;
	PartName name;
	Part *part;
	bool found;

	slot_getallattrs(slot);
	probe.values = slot->tts_values;
	probe.nulls = slot->tts_isnull;
	probe.hash = hash_group(fold, &probe);
	if (is_delta)
	{
		entry = groups_insert_hash(fold->groups, &probe, probe.hash, &found);
		if (!found)
			entry->group = make_group(fold, &probe, slot);
	}
	else
	{
		entry = groups_lookup_hash(fold->groups, &probe, probe.hash);
		if (entry == NULL)
			return false;
		found = true;
	}
	group = entry->group;
	if (FullTransactionIdPrecedes(group->xid, DatumGetFullTransactionId(slot->tts_values[XID])))
		group->xid = DatumGetFullTransactionId(slot->tts_values[XID]);
	name = part_name(DatumGetChar(slot->tts_values[PART]));
	choose_keys(fold, group, slot, is_delta ? name != LIVE : 2);
	part = &group->parts[name];
	if (!found)
		add_states(fold, part, group->values + first, group->nulls + first);
	else if (part->values)
	{
		add_states(fold, part, slot->tts_values + first, slot->tts_isnull + first);
		MemoryContextReset(fold->row);
	}
	else
	{
		/* The first of another part than the group's own row: kept, too. */
		MemoryContext old = MemoryContextSwitchTo(fold->memory);
		Datum *values = palloc(fold->desc->natts * sizeof(Datum));
		bool *nulls = palloc(fold->desc->natts * sizeof(bool));

		heap_deform_tuple(ExecCopySlotHeapTuple(slot), fold->desc, values, nulls);
		MemoryContextSwitchTo(old);
		add_states(fold, part, values + first, nulls + first);
	}
	return true;
}

static void
remember_row(ItemPointer *rows, int64 *n_rows, int64 *max_rows, MemoryContext memory, ItemPointer row)
{
	if (*n_rows == *max_rows)
	{
		*max_rows = Max(1024, 2 * *max_rows);
		*rows = *rows ? repalloc_huge(*rows, *max_rows * sizeof(ItemPointerData))
					  : MemoryContextAllocHuge(memory, *max_rows * sizeof(ItemPointerData));
	}
	(*rows)[(*n_rows)++] = *row;
}

/* Gather rows of NAME_delta, limit at most, while memory lasts; false when there are no more. */
static bool
gather_delta(Fold *fold, TableScanDesc scan, TupleTableSlot *slot, int64 limit, bool all)
{
	while (fold->n_delta_rows < limit)
	{
		Window *window;

		CHECK_FOR_INTERRUPTS();
		if (fold->n_delta_rows % 256 == 255 &&
			MemoryContextMemAllocated(fold->memory, true) > maintenance_work_mem * (Size) 1024)
			return true;
		if (!table_scan_getnextslot(scan, ForwardScanDirection, slot))
			return false;
		slot_getsomeattrs(slot, WINDOW_START + 1);
		if (!may_fold(fold, slot))
			continue;
		window = window_of(fold, slot);
		if (!all && !window->is_chosen)
			continue;
		(void) add_row(fold, window, slot, true);
		remember_row(&fold->delta_rows, &fold->n_delta_rows, &fold->max_delta_rows, fold->memory,
					 &slot->tts_tid);
	}
	return true;
}

/* Add what NAME_state has of the groups. */
static void
gather_state(Fold *fold)
{
	IndexScanDesc scan = mr_index_beginscan(fold->state, fold->index, GetActiveSnapshot(), 1);
	TupleTableSlot *slot = table_slot_create(fold->state, NULL);
	ListCell *lc;

	foreach (lc, fold->portion_windows)
	{
		scan_window(scan, lfirst(lc));
		while (index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			CHECK_FOR_INTERRUPTS();
			if (add_row(fold, lfirst(lc), slot, false))
				remember_row(&fold->state_rows, &fold->n_state_rows, &fold->max_state_rows, fold->memory,
							 &slot->tts_tid);
		}
	}
	ExecDropSingleTupleTableSlot(slot);
	index_endscan(scan);
}

/*
 * Writing
 */

/* The part's states as they are stored. */
static void
stored_states(Fold *fold, Part *part, Datum *values, bool *nulls)
{
	for (int i = 0; i < fold->n_states; i++)
	{
		NullableDatum stored = part->states ? mr_merge_serial(&part->states[i], (fmNodePtr) fold->node)
											: (NullableDatum){part->values[i], part->nulls[i]};

		values[i] = stored.value;
		nulls[i] = stored.isnull;
	}
}

static void
write_part(Fold *fold, MrStateWriter *writer, const StateGroup *group, char name, Part *part)
{
	int n_columns = fold->desc->natts, first = FIRST_KEY + fold->n_keys;
	Datum *values = palloc(n_columns * sizeof(Datum));
	bool *nulls = palloc(n_columns * sizeof(bool));

	memcpy(values, group->values, first * sizeof(Datum));
	memcpy(nulls, group->nulls, first * sizeof(bool));
	values[XID] = FullTransactionIdGetDatum(group->xid);
	values[PART] = CharGetDatum(name);
	stored_states(fold, part, values + first, nulls + first);
	mr_writer_put(writer, values, nulls);
}

static void
write_group(Fold *fold, MrStateWriter *writer, StateGroup *group)
{
	Part *both = &group->parts[BOTH], *live = &group->parts[LIVE], *final = &group->parts[FINAL];

	if (live->values == NULL && final->values == NULL)
	{
		write_part(fold, writer, group, MR_PART_BOTH, both);
		return;
	}
	if (both->values)
	{
		Datum *values = palloc(fold->n_states * sizeof(Datum));
		bool *nulls = palloc(fold->n_states * sizeof(bool));

		stored_states(fold, both, values, nulls);
		add_states(fold, live, values, nulls);
		add_states(fold, final, values, nulls);
	}
	if (live->values)
		write_part(fold, writer, group, MR_PART_LIVE, live);
	if (final->values)
		write_part(fold, writer, group, MR_PART_FINAL, final);
}

static void
delete_rows(Relation rel, ItemPointer rows, int64 n_rows)
{
	CommandId command = GetCurrentCommandId(true);

	for (int64 i = 0; i < n_rows; i++)
	{
		TM_FailureData failure;
		TM_Result result;

		CHECK_FOR_INTERRUPTS();
		result = table_tuple_delete(rel, &rows[i], command, GetActiveSnapshot(), InvalidSnapshot, true,
									&failure, false);
		if (result != TM_Ok)
			elog(ERROR, "unexpected result of deleting a state from \"%s\": %d", RelationGetRelationName(rel),
				 (int) result);
	}
}

/* Write a portion: windows in order, so that those of an index come together. */
static uint64
write_portion(Fold *fold)
{
	MemoryContext old = MemoryContextSwitchTo(fold->memory);
	MrStateWriter *writer;
	uint64 n_written;
	ListCell *lc;

	list_sort(fold->portion_windows, compare_windows);
	gather_state(fold);
	writer = mr_writer_open(RelationGetRelid(fold->state));
	MemoryContextSwitchTo(fold->row);
	foreach (lc, fold->portion_windows)
		for (StateGroup *group = ((Window *) lfirst(lc))->groups; group; group = group->next)
		{
			CHECK_FOR_INTERRUPTS();
			write_group(fold, writer, group);
			MemoryContextReset(fold->row);
		}
	n_written = mr_writer_close(writer);
	delete_rows(fold->state, fold->state_rows, fold->n_state_rows);
	delete_rows(fold->delta, fold->delta_rows, fold->n_delta_rows);
	MemoryContextSwitchTo(old);
	return n_written;
}

static void
begin_portion(Fold *fold)
{
	MemoryContext old = MemoryContextSwitchTo(fold->memory);

	fold->portion++;
	fold->groups = groups_create(fold->memory, 256, fold);
	fold->node = mr_make_agg_node();
	fold->row = AllocSetContextCreate(fold->memory, "millrace fold row", ALLOCSET_DEFAULT_SIZES);
	fold->portion_windows = NIL;
	fold->delta_rows = fold->state_rows = NULL;
	fold->n_delta_rows = fold->max_delta_rows = fold->n_state_rows = fold->max_state_rows = 0;
	for (int i = 0; i < fold->n_keys; i++)
		fold->keys[i].numbers = NULL;
	MemoryContextSwitchTo(old);
}

static void
end_portion(Fold *fold)
{
	FreeExprContext(fold->node->curaggcontext, true);
	MemoryContextReset(fold->memory);
}

/*
 * All of it
 */

static bool
same_columns(TupleDesc a, TupleDesc b, int n_columns)
{
	bool same = a->natts == n_columns && b->natts == n_columns;

	for (int i = 0; same && i < n_columns; i++)
		same = TupleDescAttr(a, i)->atttypid == TupleDescAttr(b, i)->atttypid &&
			TupleDescAttr(a, i)->attcollation == TupleDescAttr(b, i)->attcollation;
	return same && TupleDescAttr(a, XID)->atttypid == XID8OID &&
		TupleDescAttr(a, PART)->atttypid == CHAROID &&
		TupleDescAttr(a, OPEN_FROM)->atttypid == TIMESTAMPTZOID &&
		TupleDescAttr(a, WINDOW_START)->atttypid == TIMESTAMPTZOID;
}

static Relation
open_window_index(Relation state)
{
	ListCell *lc;

	foreach (lc, RelationGetIndexList(state))
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);

		if (index->rd_rel->relam == BTREE_AM_OID && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == WINDOW_START + 1 && RelationGetIndexPredicate(index) == NIL)
			return index;
		index_close(index, AccessShareLock);
	}
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("state table \"%s\" has no index on window_start", RelationGetRelationName(state)),
			 errhint("CREATE INDEX ON %s (window_start);", RelationGetRelationName(state))));
}

static void
prepare(Fold *fold, MrDefinition *def)
{
	ListCell *lc;

	fold->n_keys = list_length(def->keys) - 1;
	fold->n_states = list_length(def->aggs);
	fold->desc = CreateTupleDescCopy(RelationGetDescr(fold->state));
	if (!same_columns(fold->desc, RelationGetDescr(fold->delta), FIRST_KEY + fold->n_keys + fold->n_states))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("tables \"%s\" and \"%s\" do not have the columns of their continuous aggregate",
						RelationGetRelationName(fold->state), RelationGetRelationName(fold->delta)),
				 errhint("Drop the continuous aggregate and create it again.")));
	fold->index = open_window_index(fold->state);
	fold->keys = palloc0((fold->n_keys + 1) * sizeof(Key));
	for (int i = 0; i < fold->n_keys; i++)
	{
		Form_pg_attribute column = TupleDescAttr(fold->desc, FIRST_KEY + i);

		fold->keys[i].type = lookup_type_cache(
			column->atttypid, TYPECACHE_EQ_OPR_FINFO | TYPECACHE_HASH_PROC_FINFO | TYPECACHE_CMP_PROC_FINFO);
		fold->keys[i].collation = column->attcollation;
	}
	fold->functions = palloc0((fold->n_states + 1) * sizeof(MrMergeFunctions *));
	foreach (lc, def->aggs)
	{
		int i = foreach_current_index(lc);
		Form_pg_attribute column = TupleDescAttr(fold->desc, FIRST_KEY + fold->n_keys + i);

		fold->functions[i] = mr_merge_functions(lfirst_node(Aggref, lc)->aggfnoid, InvalidOid,
												column->atttypid, column->attcollation, fold->context);
	}
	fold->memory = AllocSetContextCreate(fold->context, "millrace fold portion", ALLOCSET_DEFAULT_SIZES);
	fold->windows = windows_create(fold->context, 64, NULL);
}

static uint64
fold_windows(Fold *fold, MrDefinition *def, int64 limit, bool all)
{
	TableScanDesc scan;
	TupleTableSlot *slot;
	uint64 n_written = 0;
	bool more = true;

	fold->snapshot = RegisterSnapshot(GetLatestSnapshot());
	fold->oldest = mr_oldest_running(fold->snapshot);
	PushCopiedSnapshot(fold->snapshot);
	prepare(fold, def);
	if (!all)
		choose_windows(fold, limit);

	scan = table_beginscan(fold->delta, fold->snapshot, 0, NULL);
	slot = table_slot_create(fold->delta, NULL);
	while (more && limit > 0)
	{
		begin_portion(fold);
		more = gather_delta(fold, scan, slot, limit, all);
		limit -= fold->n_delta_rows;
		if (fold->n_delta_rows > 0)
		{
			n_written += write_portion(fold);
			/* The next portion may have groups of this one. */
			CommandCounterIncrement();
			UpdateActiveSnapshotCommandId();
		}
		end_portion(fold);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);

	index_close(fold->index, NoLock);
	PopActiveSnapshot();
	UnregisterSnapshot(fold->snapshot);
	return n_written;
}

static uint64
fold_sessions(Oid definition, Oid state, Oid delta)
{
	SPIPlanPtr plan = NULL;
	uint64 n_written;
	int rc;

	SPI_connect();
	rc = SPI_execute_plan(mr_prepare(&plan, mr_fold_sessions_sql(definition, state, delta), 0, NULL), NULL,
						  NULL, false, 0);
	if (rc != SPI_OK_INSERT)
		elog(ERROR, "unexpected result of a fold: %s", SPI_result_code_string(rc));
	n_written = SPI_processed;
	SPI_freeplan(plan);
	SPI_finish();
	return n_written;
}

uint64
mr_fold(Oid definition, Oid state, Oid delta, int64 limit, bool all)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace fold", ALLOCSET_DEFAULT_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	Fold fold = {.context = context};
	MrDefinition *def;
	uint64 n_written;

	mr_check_owners(definition, state);
	LockRelationOid(definition, AccessShareLock);
	def = mr_read_definition(definition);
	fold.state = table_open(state, RowExclusiveLock);
	fold.delta = table_open(delta, RowExclusiveLock);
	n_written = def->window.kind == MR_SESSION ? fold_sessions(definition, state, delta)
											   : fold_windows(&fold, def, limit, all);
	table_close(fold.delta, NoLock);
	table_close(fold.state, NoLock);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
	return n_written;
}
