/*
 * scorer.c: streams that recommend: for each row of a batch, a purchase, a list for its user, in the same transaction.
 *
 * The rows are read twice.  The first time to see who buys what: the users, each once, get a list by mr_recommend_many,
 * and the list that each had before the batch is found by the index of the scorer's table.  The second time each row is
 * written to that table with its user's list.
 *
 * The list of a row must not hold the item bought, and of that item's category one less than of others.  A list that is
 * one longer than wanted tells all such lists: at most one of its entries has to go.  For if the item bought is in it, and
 * goes, then at most max_per_category - 1 others of its category are left; if it is not, only the last of max_per_category
 * entries of that category has to go.
 *
 * Rows are appended and no other is changed, so two batches that bring the same user wait for nobody; the latest row of a
 * user is the one with the greatest seq.
 */
#include "model.h"

#include <math.h>

#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "catalog/dependency.h"
#include "catalog/pg_am.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "common/hashfn.h"
#include "executor/executor.h"
#include "storage/lmgr.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

#include "aggregate.h"

PG_FUNCTION_INFO_V1(mr_scorer_check);

/* With fewer users threads are not worth their start. */
#define MIN_USERS_OF_THREADS 64
/* So many rows are taken at a time. */
#define MAX_ROWS 65536

/* The columns that a scorer adds to those of its source. */
typedef enum Own
{
	OWN_CATEGORY,
	OWN_ITEMS,
	OWN_SCORES,
	OWN_SOURCES,
	OWN_PRECISION_OWN,
	OWN_PRECISION_NEXT,
	OWN_SCORED_AT,
	OWN_SEQ,
	OWN_IS_LAST,
	N_OWN
} Own;

static const struct
{
	const char *name;
	Oid type; /* InvalidOid: bigint[] or text[] */
} OWN[N_OWN] = {[OWN_CATEGORY] = {"category", TEXTOID},
				[OWN_ITEMS] = {"items", InvalidOid},
				[OWN_SCORES] = {"scores", FLOAT4ARRAYOID},
				[OWN_SOURCES] = {"sources", TEXTARRAYOID},
				[OWN_PRECISION_OWN] = {"precision_own", FLOAT4OID},
				[OWN_PRECISION_NEXT] = {"precision_next", FLOAT4OID},
				[OWN_SCORED_AT] = {"scored_at", TIMESTAMPTZOID},
				[OWN_SEQ] = {"seq", INT8OID},
				[OWN_IS_LAST] = {"is_last", BOOLOID}};

struct MrScorer
{
	char *model;
	int k;
	int max_per_category; /* 0: any number */
	char *baseline;		  /* NULL: none */
	bool exclude_seen;
	Oid target;
	Oid index;			   /* of the target: user, seq DESC */
	Oid sequence;		   /* of its column seq */
	int64 seq_step;		   /* its increment */
	bool text_ids;		   /* its column items is of type text[] */
	bool is_simple;		   /* rows may be put into it directly; else by INSERT */
	TupleDesc desc;		   /* of the table with the rows; not reference-counted */
	AttrNumber user, item; /* its columns, and their types below any domain */
	Oid user_type, item_type;
	AttrNumber own[N_OWN]; /* columns of the target */
	int n_columns;		   /* of the target, and for each the column of the row; 0: none */
	AttrNumber *from;
};

/*
 * Plans
 */

/* 0 if there is none, or it is in no batch. */
static AttrNumber
find_column(TupleDesc desc, const char *name)
{
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);

		if (!att->attisdropped && strcmp(NameStr(att->attname), name) == 0)
			return att->attgenerated == 'v' ? 0 : att->attnum;
	}
	return 0;
}

/* The column with users or items, argument being user_column or item_column; *type: below any domain. */
static AttrNumber
id_column(Relation rel, const char *argument, const char *name, Oid *type)
{
	AttrNumber column = find_column(RelationGetDescr(rel), name);
	Oid declared;

	if (column == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\", the %s of a scorer, is not in the rows of table \"%s\"", name,
						argument, RelationGetRelationName(rel))));
	declared = TupleDescAttr(RelationGetDescr(rel), column - 1)->atttypid;
	*type = getBaseType(declared);
	if (*type != INT2OID && *type != INT4OID && *type != INT8OID && *type != TEXTOID && *type != VARCHAROID)
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("column \"%s\" of table \"%s\", the %s of a scorer, is of type %s", name,
						RelationGetRelationName(rel), argument, format_type_be(declared)),
				 errhint("It must be bigint, integer, smallint, text or varchar.")));
	return column;
}

/* An argument of the scorer as text; NULL if it is null. */
static char *
argument(const Jsonb *arguments, const char *name)
{
	JsonbValue space,
		*value =
			getKeyJsonValueFromContainer((JsonbContainer *) &arguments->root, name, strlen(name), &space);

	if (value && value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value && value->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	if (value && value->type == jbvBool)
		return pstrdup(value->val.boolean ? "true" : "false");
	if (value && value->type == jbvNull)
		return NULL;
	elog(ERROR, "a scorer has no argument %s", name);
}

static void
bad_table(Relation target, const char *column, const char *wrong)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("column \"%s\" of table \"%s\", which a scorer fills, %s", column,
					RelationGetRelationName(target), wrong),
			 errhint("Make it what it was, or drop the scorer and create it again.")));
}

/* Where each column of the target comes from. */
static void
map_columns(MrScorer *scorer, Relation target)
{
	TupleDesc desc = RelationGetDescr(target);

	for (int i = 0; i < N_OWN; i++)
	{
		AttrNumber column = scorer->own[i] = find_column(desc, OWN[i].name);
		Oid type = column ? TupleDescAttr(desc, column - 1)->atttypid : InvalidOid;

		if (column == 0)
			bad_table(target, OWN[i].name, "is gone");
		if (i == OWN_ITEMS ? type != INT8ARRAYOID && type != TEXTARRAYOID : type != OWN[i].type)
			bad_table(target, OWN[i].name, psprintf("is of type %s", format_type_be(type)));
		if (i == OWN_ITEMS)
			scorer->text_ids = type == TEXTARRAYOID;
	}
	scorer->n_columns = desc->natts;
	scorer->from = palloc0(desc->natts * sizeof(AttrNumber));
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool is_own = false;

		for (int j = 0; j < N_OWN; j++)
			is_own |= scorer->own[j] == att->attnum;
		if (att->attisdropped || is_own)
			continue;
		scorer->from[i] = find_column(scorer->desc, NameStr(att->attname));
		if (scorer->from[i] && TupleDescAttr(scorer->desc, scorer->from[i] - 1)->atttypid != att->atttypid)
			bad_table(target, NameStr(att->attname),
					  psprintf("is of type %s, and in the source %s", format_type_be(att->atttypid),
							   format_type_be(TupleDescAttr(scorer->desc, scorer->from[i] - 1)->atttypid)));
	}
}

/* Is nothing to be done for a row but to store it, and to put it into indexes? */
static bool
is_simple(const MrScorer *scorer, Relation target)
{
	TupleDesc desc = RelationGetDescr(target);
	TriggerDesc *triggers = target->trigdesc;

	for (int i = 0; triggers && i < triggers->numtriggers; i++)
		if (triggers->triggers[i].tginitdeferred)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("table \"%s\" cannot be filled by a scorer: trigger \"%s\" is deferred",
							RelationGetRelationName(target), triggers->triggers[i].tgname),
					 errhint("Make its constraint INITIALLY IMMEDIATE.")));
	if (target->rd_rel->relispartition || target->rd_rel->relforcerowsecurity ||
		(triggers &&
		 (triggers->trig_insert_before_row || triggers->trig_insert_after_row ||
		  triggers->trig_insert_before_statement || triggers->trig_insert_after_statement)) ||
		(desc->constr && (desc->constr->num_check > 0 || desc->constr->has_generated_stored)))
		return false;
	for (int i = 0; i < desc->natts; i++)
	{
		Form_pg_attribute att = TupleDescAttr(desc, i);
		bool is_seq = att->attnum == scorer->own[OWN_SEQ];

		if (!att->attisdropped && !is_seq &&
			(att->attnotnull || get_typtype(att->atttypid) == TYPTYPE_DOMAIN ||
			 ((att->atthasdef || att->attidentity) && scorer->from[i] == 0)))
			return false;
	}
	return true;
}

/* The index by which the latest row of a user is found. */
static Oid
find_index(const MrScorer *scorer, Relation target, const char *user_name)
{
	AttrNumber user = find_column(RelationGetDescr(target), user_name);
	ListCell *lc;

	if (user == 0)
		bad_table(target, user_name, "is gone");
	foreach (lc, RelationGetIndexList(target))
	{
		Relation index = index_open(lfirst_oid(lc), AccessShareLock);
		Form_pg_index form = index->rd_index;
		List *predicate = RelationGetIndexPredicate(index);
		bool fits = form->indisvalid && index->rd_rel->relam == BTREE_AM_OID && form->indnkeyatts >= 2 &&
			form->indkey.values[0] == user && form->indkey.values[1] == scorer->own[OWN_SEQ] &&
			(index->rd_indoption[1] & INDOPTION_DESC) != 0 &&
			(predicate == NIL ||
			 (list_length(predicate) == 1 && IsA(linitial(predicate), Var) &&
			  linitial_node(Var, predicate)->varattno == scorer->own[OWN_IS_LAST]));
		Oid found = RelationGetRelid(index);

		index_close(index, NoLock);
		if (fits)
			return found;
	}
	ereport(
		ERROR,
		(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
		 errmsg("table \"%s\", which a scorer fills, has lost its index", RelationGetRelationName(target)),
		 errhint("CREATE INDEX ON %s (%s, seq DESC) WHERE is_last",
				 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
											RelationGetRelationName(target)),
				 quote_identifier(user_name))));
}

static int64
sequence_increment(Oid sequence)
{
	HeapTuple tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));
	int64 increment;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", sequence);
	increment = ((Form_pg_sequence) GETSTRUCT(tuple))->seqincrement;
	ReleaseSysCache(tuple);
	return increment;
}

MrScorer *
mr_scorer_plan(const char *arguments, Oid target_id, Oid relid, MemoryContext keep, List **depends)
{
	Jsonb *json = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(arguments)));
	Relation target = table_open(target_id, RowExclusiveLock);
	Relation rel = table_open(relid, AccessShareLock);
	MemoryContext old = MemoryContextSwitchTo(keep);
	MrScorer *scorer = palloc0(sizeof(MrScorer));
	char *user_name = argument(json, "user_column");
	char *limit = argument(json, "max_per_category");

	scorer->model = argument(json, "model");
	scorer->k = pg_strtoint32(argument(json, "k"));
	scorer->max_per_category = limit ? pg_strtoint32(limit) : 0;
	scorer->baseline = argument(json, "baseline");
	scorer->exclude_seen = strcmp(argument(json, "exclude_seen"), "true") == 0;
	scorer->target = target_id;
	scorer->desc = CreateTupleDescCopy(RelationGetDescr(rel));
	scorer->user = id_column(rel, "user_column", user_name, &scorer->user_type);
	scorer->item = id_column(rel, "item_column", argument(json, "item_column"), &scorer->item_type);
	map_columns(scorer, target);
	scorer->is_simple = is_simple(scorer, target);
	scorer->index = find_index(scorer, target, user_name);
	scorer->sequence = mr_identity_sequence(target, scorer->own[OWN_SEQ]);
	if (!OidIsValid(scorer->sequence))
		bad_table(target, OWN[OWN_SEQ].name, "is no identity column");
	scorer->seq_step = Max(sequence_increment(scorer->sequence), 1);
	*depends = lappend_oid(lappend_oid(lappend_oid(*depends, target_id), relid), scorer->index);
	MemoryContextSwitchTo(old);
	table_close(rel, NoLock);
	table_close(target, NoLock);
	return scorer;
}

void
mr_scorer_lock(const MrScorer *scorer)
{
	LockRelationOid(scorer->target, RowExclusiveLock);
}

/*
 * _scorer_check(source regclass, model text, user_column name, item_column name, k int, max_per_category int, baseline text)
 * returns regtype
 */
Datum
mr_scorer_check(PG_FUNCTION_ARGS)
{
	Relation source;
	char *name;
	MrModel *model;
	Oid type;

	for (int i = 0; i < 4; i++)
		if (PG_ARGISNULL(i))
			ereport(
				ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("arguments of a scorer must not be null")));
	source = table_open(PG_GETARG_OID(0), AccessShareLock);
	for (int i = 0; i < RelationGetDescr(source)->natts; i++)
		if (TupleDescAttr(RelationGetDescr(source), i)->attgenerated == 'v')
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("scorers over tables with virtual generated columns are not supported"),
					 errdetail("Column \"%s\" is not in the rows of a batch.",
							   NameStr(TupleDescAttr(RelationGetDescr(source), i)->attname))));
	(void) id_column(source, "user_column", NameStr(*PG_GETARG_NAME(2)), &type);
	(void) id_column(source, "item_column", NameStr(*PG_GETARG_NAME(3)), &type);
	table_close(source, NoLock);
	name = mr_name_arg(fcinfo, 1, "model");
	SPI_connect();
	model = mr_model_open(name);
	if (PG_ARGISNULL(4) || PG_GETARG_INT32(4) < 1 || PG_GETARG_INT32(4) > model->items.ids.n)
		ereport(
			ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("k must be from 1 to the number of items of model \"%s\", " INT64_FORMAT ", not %s", name,
					model->items.ids.n, PG_ARGISNULL(4) ? "NULL" : psprintf("%d", PG_GETARG_INT32(4)))));
	if (!PG_ARGISNULL(5) && PG_GETARG_INT32(5) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_per_category must be at least 1, not %d", PG_GETARG_INT32(5)),
				 errhint("NULL: any number.")));
	if (!PG_ARGISNULL(6))
		(void) mr_baseline_open(model, mr_name_arg(fcinfo, 6, "baseline"));
	type = model->items.ids.text ? TEXTOID : INT8OID;
	SPI_finish();
	PG_RETURN_OID(type);
}

/*
 * One batch
 */

/* Numbers of ids, from 0 */
typedef struct Numbered
{
	MrKey key;
	int32 number;
	uint32 hash;
	char status;
} Numbered;

static inline uint32
hash_key(const MrKey *key)
{
	return key->text ? hash_bytes((const unsigned char *) key->bytes, (int) key->n_bytes)
					 : (uint32) (((uint64) key->value * UINT64CONST(0x9E3779B97F4A7C15)) >> 32);
}

static inline bool
same_key(const MrKey *a, const MrKey *b)
{
	if (a->text != b->text)
		return false;
	return a->text ? a->n_bytes == b->n_bytes && memcmp(a->bytes, b->bytes, a->n_bytes) == 0
				   : a->value == b->value;
}

#define SH_PREFIX numbers
#define SH_ELEMENT_TYPE Numbered
#define SH_KEY_TYPE MrKey
#define SH_KEY key
#define SH_HASH_KEY(table, k) hash_key(&(k))
#define SH_EQUAL(table, a, b) same_key(&(a), &(b))
#define SH_STORE_HASH
#define SH_GET_HASH(table, element) (element)->hash
#define SH_SCOPE static inline
#define SH_DECLARE
#define SH_DEFINE
/* Before PostgreSQL 16 one of its variables hides another. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include "lib/simplehash.h"
#pragma GCC diagnostic pop

typedef struct Event
{
	int32 user;
	int32 item; /* -1: none */
	int64 next; /* of the same user; -1: none */
} Event;

typedef struct Bought
{
	int32 row;		/* of the model's items; -1: unknown to it */
	int32 category; /* -1: none */
	MrKey key;
} Bought;

typedef struct User
{
	MrKey key; /* text without bytes: nobody */
	Datum value;
	int64 first, last; /* event */
	int64 cursor;	   /* the first that is not written yet; -1: all are */
	bool had_list;
	float next; /* part, of k, of the list before that he buys now */
} User;

/* One entry of a list. */
typedef struct Entry
{
	int32 row;
	int32 category;
	float score;
	MrListSource source;
	bool is_owned; /* does the user have it? */
	MrKey key;	   /* of the kind of the target's column items */
	char space[MR_KEY_SPACE];
} Entry;

/* A list as it is written, without the entry that has to go. */
typedef struct Variant
{
	bool is_made;
	int n;
	Datum items;
	Datum scores;
	Datum sources;
	float own; /* part, of k, that the user has */
} Variant;

typedef struct Run
{
	MrScorer *scorer;
	MrModel *model;
	const MrLists *lists;
	MemoryContext context; /* all that is kept until the end */
	numbers_hash *user_numbers, *item_numbers;
	User *users;
	int32 n_users, size_users;
	int32 nobody; /* user; -1: all rows have one */
	Bought *items;
	int32 n_items, size_items;
	Event *events;
	int64 n_events;
	Datum *categories; /* names; 0: not made yet */
	Datum source_names[MR_N_LIST_SOURCES];
	TimestampTz now;
	int64 seq, seq_end; /* numbers that are drawn */
	MrScoreCounts counts;
	/* of the events [lo, hi) */
	int64 lo, hi;
	MinimalTuple *rows;
	int32 *listed; /* their users */
	/* of one user */
	MemoryContext user_context;
	Entry *list; /* k + 1 */
	int n_list;
	Variant *variants; /* k + 1: without the entry of that number; the last: the first k */
	/* of one row */
	TupleTableSlot *slot;
	Datum *values;
	bool *nulls;
	MrStateWriter *writer; /* or */
	Tuplestorestate *store;
	TupleDesc store_desc;
} Run;

/* A key that does not depend on memory of the current row. */
static MrKey
keep_key(Run *run, MrKey key)
{
	if (key.text)
	{
		char *bytes = MemoryContextAlloc(run->context, key.n_bytes + 1);

		memcpy(bytes, key.bytes, key.n_bytes);
		key.bytes = bytes;
	}
	return key;
}

static Datum
text_datum(const MrKey *key)
{
	return PointerGetDatum(cstring_to_text_with_len(key->bytes, (int) key->n_bytes));
}

static int32
add_user(Run *run, MrKey key, Datum value)
{
	if (run->n_users == INT32_MAX / 2)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED), errmsg("too many users in a batch")));
	if (run->n_users == run->size_users)
	{
		run->size_users *= 2;
		run->users = repalloc_huge(run->users, run->size_users * sizeof(User));
	}
	run->users[run->n_users] = (User){.key = key, .value = value, .first = -1, .last = -1};
	return run->n_users++;
}

/* A user of the batch; the first time he is added. */
static int32
user_number(Run *run, Datum value, bool isnull)
{
	MrKey key;
	Numbered *entry;
	bool found;

	if (isnull)
	{
		if (run->nobody < 0)
			run->nobody = add_user(run, (MrKey){.text = true}, 0);
		return run->nobody;
	}
	key = mr_key_of(value, run->scorer->user_type);
	entry = numbers_insert(run->user_numbers, key, &found);
	if (!found)
	{
		entry->key = keep_key(run, key);
		entry->number = add_user(run, entry->key, key.text ? text_datum(&key) : value);
	}
	return entry->number;
}

static int32
category_of(const Run *run, int32 row, const MrKey *key)
{
	if (run->lists->category == NULL)
		return -1;
	return row >= 0 ? run->lists->category[row] : mr_lists_category(run->lists, run->model, key);
}

static int32
item_number(Run *run, Datum value)
{
	MrKey given = mr_key_of(value, run->scorer->item_type), key;
	char space[MR_KEY_SPACE];
	Numbered *entry;
	bool found;

	/* One that cannot be converted is in no list. */
	if (!mr_key_convert(&given, run->scorer->text_ids, &key, space))
		key = given;
	entry = numbers_insert(run->item_numbers, key, &found);
	if (!found)
	{
		Bought *item;

		if (run->n_items == run->size_items)
		{
			run->size_items *= 2;
			run->items = repalloc_huge(run->items, run->size_items * sizeof(Bought));
		}
		entry->key = keep_key(run, key);
		entry->number = run->n_items++;
		item = &run->items[entry->number];
		item->key = entry->key;
		item->row = (int32) mr_ids_find(&run->model->items.ids, &key);
		item->category = category_of(run, item->row, &key);
	}
	return entry->number;
}

/* Who buys what. */
static void
read_events(Run *run, Tuplestorestate *rows)
{
	const MrScorer *scorer = run->scorer;
	TupleTableSlot *slot = MakeSingleTupleTableSlot(scorer->desc, &TTSOpsMinimalTuple);

	run->events = MemoryContextAllocHuge(run->context, tuplestore_tuple_count(rows) * sizeof(Event) + 1);
	run->size_users = run->size_items = 256;
	run->users = palloc(run->size_users * sizeof(User));
	run->items = palloc(run->size_items * sizeof(Bought));
	run->user_numbers = numbers_create(run->context, 1024, NULL);
	run->item_numbers = numbers_create(run->context, 1024, NULL);
	run->nobody = -1;
	tuplestore_rescan(rows);
	while (tuplestore_gettupleslot(rows, true, false, slot))
	{
		Event *event = &run->events[run->n_events];
		bool isnull;
		Datum value = slot_getattr(slot, scorer->user, &isnull);
		User *user;

		CHECK_FOR_INTERRUPTS();
		event->user = user_number(run, value, isnull);
		value = slot_getattr(slot, scorer->item, &isnull);
		event->item = isnull ? -1 : item_number(run, value);
		event->next = -1;
		user = &run->users[event->user];
		if (user->last < 0)
			user->first = user->cursor = run->n_events;
		else
			run->events[user->last].next = run->n_events;
		user->last = run->n_events++;
	}
	ExecDropSingleTupleTableSlot(slot);
}

/* How many of the items of an array the user buys in the batch; *n: how many they are. */
static int
count_bought(const Run *run, const User *user, ArrayType *list, int *n)
{
	bool is_text = run->scorer->text_ids;
	Datum *values;
	bool *nulls;
	int n_bought = 0;

	deconstruct_array(list, is_text ? TEXTOID : INT8OID, is_text ? -1 : sizeof(int64),
					  is_text ? false : FLOAT8PASSBYVAL, is_text ? TYPALIGN_INT : TYPALIGN_DOUBLE, &values,
					  &nulls, n);
	for (int i = 0; i < *n; i++)
	{
		const Numbered *item = nulls[i]
			? NULL
			: numbers_lookup(run->item_numbers, mr_key_of(values[i], is_text ? TEXTOID : INT8OID));
		int64 event = item ? user->first : -1;

		while (event >= 0 && run->events[event].item != item->number)
			event = run->events[event].next;
		n_bought += event >= 0;
	}
	return n_bought;
}

/* The lists that users had before the batch. */
static void
read_previous(Run *run)
{
	const MrScorer *scorer = run->scorer;
	Relation target = table_open(scorer->target, AccessShareLock);
	Relation index = index_open(scorer->index, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(target, NULL);
	IndexScanDesc scan = mr_index_beginscan(target, index, GetActiveSnapshot(), 1);
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace lists before", ALLOCSET_SMALL_SIZES);
	Oid type = index->rd_opcintype[0];
	Oid equal = get_opcode(get_opfamily_member(index->rd_opfamily[0], type, type, BTEqualStrategyNumber));

	for (int32 i = 0; i < run->n_users; i++)
	{
		User *user = &run->users[i];
		ScanKeyData key;

		CHECK_FOR_INTERRUPTS();
		if (i == run->nobody)
			continue;
		ScanKeyEntryInitialize(&key, 0, 1, BTEqualStrategyNumber, type, index->rd_indcollation[0], equal,
							   user->value);
		index_rescan(scan, &key, 1, NULL, 0);
		if (index_getnext_slot(scan, ForwardScanDirection, slot))
		{
			/* Not around the scan, which keeps what it allocates. */
			MemoryContext old = MemoryContextSwitchTo(context);
			bool isnull;
			Datum items = slot_getattr(slot, scorer->own[OWN_ITEMS], &isnull);
			int n = 0;
			int n_bought = isnull ? 0 : count_bought(run, user, DatumGetArrayTypeP(items), &n);

			user->had_list = n > 0;
			user->next = (float) n_bought / (float) scorer->k;
			MemoryContextSwitchTo(old);
			MemoryContextReset(context);
		}
		ExecClearTuple(slot);
	}
	MemoryContextDelete(context);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(target, NoLock);
}

/* The entry of the list that has to go for the item bought; k: the first k stay. */
static int
entry_to_go(const Run *run, const Bought *item)
{
	int k = run->scorer->k, limit = run->scorer->max_per_category;
	int n_same = 0, last = k;

	for (int i = 0; item && i < run->n_list; i++)
	{
		const Entry *entry = &run->list[i];

		if (entry->row == item->row && (entry->row >= 0 || same_key(&entry->key, &item->key)))
			return i;
		if (limit > 0 && item->category >= 0 && entry->category == item->category)
		{
			n_same++;
			last = i;
		}
	}
	return n_same >= limit ? last : k;
}

static Datum
array_of(Datum *values, int n, Oid type)
{
	int16 length;
	bool by_value;
	char align;

	get_typlenbyvalalign(type, &length, &by_value, &align);
	return PointerGetDatum(construct_array(values, n, type, length, by_value, align));
}

static const Variant *
variant_of(Run *run, int gone)
{
	int k = run->scorer->k, n_own = 0;
	Variant *variant = &run->variants[gone];
	Datum *items, *scores, *sources;

	if (variant->is_made)
		return variant;
	items = palloc(3 * k * sizeof(Datum));
	scores = items + k;
	sources = scores + k;
	variant->n = 0;
	for (int i = 0; i < run->n_list && variant->n < k; i++)
	{
		const Entry *entry = &run->list[i];

		if (i == gone)
			continue;
		items[variant->n] = entry->key.text ? text_datum(&entry->key) : Int64GetDatum(entry->key.value);
		scores[variant->n] = Float4GetDatum(entry->score);
		sources[variant->n] = run->source_names[entry->source];
		variant->n++;
		n_own += entry->is_owned;
	}
	variant->items = array_of(items, variant->n, run->scorer->text_ids ? TEXTOID : INT8OID);
	variant->scores = array_of(scores, variant->n, FLOAT4OID);
	variant->sources = array_of(sources, variant->n, TEXTOID);
	variant->own = (float) n_own / (float) k;
	variant->is_made = true;
	return variant;
}

static Datum
category_name(Run *run, int32 category)
{
	MemoryContext old = MemoryContextSwitchTo(run->context);

	if (run->categories == NULL)
		run->categories = palloc0(run->lists->n_categories * sizeof(Datum));
	if (run->categories[category] == 0)
		run->categories[category] = PointerGetDatum(mr_lists_category_name(run->lists, category));
	MemoryContextSwitchTo(old);
	return run->categories[category];
}

/* Each draw from the sequence gives as many numbers as its increment. */
static int64
next_seq(Run *run)
{
	if (run->seq == run->seq_end)
	{
		run->seq = nextval_internal(run->scorer->sequence, false);
		run->seq_end = run->seq + run->scorer->seq_step;
	}
	return run->seq++;
}

/* The own columns of a row. */
static void
fill_own(Run *run, const User *user, const Bought *item, bool is_last)
{
	const AttrNumber *own = run->scorer->own;
	Datum *values = run->values;
	bool *nulls = run->nulls;
	const Variant *variant = variant_of(run, entry_to_go(run, item));
	bool is_user = !user->key.text || user->key.bytes != NULL;
	bool has_own = is_user && variant->n > 0;

	for (int i = 0; i < N_OWN; i++)
		nulls[own[i] - 1] = false;
	nulls[own[OWN_CATEGORY] - 1] = item == NULL || item->category < 0;
	if (!nulls[own[OWN_CATEGORY] - 1])
		values[own[OWN_CATEGORY] - 1] = category_name(run, item->category);
	values[own[OWN_ITEMS] - 1] = variant->items;
	values[own[OWN_SCORES] - 1] = variant->scores;
	values[own[OWN_SOURCES] - 1] = variant->sources;
	values[own[OWN_PRECISION_OWN] - 1] = Float4GetDatum(variant->own);
	nulls[own[OWN_PRECISION_OWN] - 1] = !has_own;
	values[own[OWN_PRECISION_NEXT] - 1] = Float4GetDatum(user->next);
	nulls[own[OWN_PRECISION_NEXT] - 1] = !user->had_list;
	values[own[OWN_SCORED_AT] - 1] = TimestampTzGetDatum(run->now);
	values[own[OWN_SEQ] - 1] = Int64GetDatum(next_seq(run));
	values[own[OWN_IS_LAST] - 1] = BoolGetDatum(is_last && is_user);
	if (!is_last || !is_user)
		return;
	run->counts.n_users++;
	run->counts.n_listed += has_own;
	run->counts.own += has_own ? variant->own : 0;
	run->counts.n_judged += user->had_list;
	run->counts.next += user->had_list ? user->next : 0;
}

static void
write_row(Run *run, const User *user, int64 event)
{
	const MrScorer *scorer = run->scorer;
	int32 item = run->events[event].item;

	ExecStoreMinimalTuple(run->rows[event - run->lo], run->slot, false);
	slot_getallattrs(run->slot);
	for (int i = 0; i < scorer->n_columns; i++)
		if (scorer->from[i] > 0)
		{
			run->values[i] = run->slot->tts_values[scorer->from[i] - 1];
			run->nulls[i] = run->slot->tts_isnull[scorer->from[i] - 1];
		}
	fill_own(run, user, item >= 0 ? &run->items[item] : NULL, event == user->last);
	if (run->writer)
		mr_writer_put(run->writer, run->values, run->nulls);
	else
		tuplestore_putvalues(run->store, run->store_desc, run->values, run->nulls);
}

static bool
has_row(const MrHistory *history, int32 row)
{
	return history && history->n > 0 && row >= 0 &&
		bsearch(&row, history->row, history->n, sizeof(int32), mr_compare_rows) != NULL;
}

/* The list of a user, from mr_recommend_many: write his rows.  Threads may be at the lists of others. */
static void
take_list(void *arg, int64 i, const MrListed *list, int64 n, const MrHistory *history)
{
	Run *run = arg;
	User *user = &run->users[run->listed[i]];
	MemoryContext old = MemoryContextSwitchTo(run->user_context);

	CHECK_FOR_INTERRUPTS();
	run->n_list = (int) n;
	for (int64 j = 0; j < n; j++)
	{
		Entry *entry = &run->list[j];

		entry->row = list[j].row;
		entry->score = list[j].score;
		entry->source = list[j].source;
		entry->category = category_of(run, list[j].row, &list[j].item);
		entry->is_owned = has_row(history, list[j].row);
		if (!mr_key_convert(&list[j].item, run->scorer->text_ids, &entry->key, entry->space))
			ereport(
				ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("item \"%s\" of model \"%s\" is no bigint, as column items of table \"%s\" is",
						mr_key_cstring(&list[j].item), run->model->name, get_rel_name(run->scorer->target)),
				 errhint("Drop the scorer and create it again.")));
	}
	for (int v = 0; v <= run->scorer->k; v++)
		run->variants[v].is_made = false;
	for (; user->cursor >= 0 && user->cursor < run->hi; user->cursor = run->events[user->cursor].next)
		write_row(run, user, user->cursor);
	MemoryContextSwitchTo(old);
	MemoryContextReset(run->user_context);
}

/* The next MAX_ROWS rows. */
static void
fetch_rows(Run *run, Tuplestorestate *rows)
{
	bool stay = tuplestore_in_memory(rows);

	for (run->hi = run->lo; run->hi < run->n_events && run->hi < run->lo + MAX_ROWS; run->hi++)
	{
		bool ours;

		if (!tuplestore_gettupleslot(rows, true, false, run->slot))
			elog(ERROR, "a batch has lost rows");
		run->rows[run->hi - run->lo] =
			stay ? ExecFetchSlotMinimalTuple(run->slot, &ours) : ExecCopySlotMinimalTuple(run->slot);
	}
	ExecClearTuple(run->slot);
}

/* Lists for the users of those rows, and with each of them his rows. */
static void
score_rows(Run *run)
{
	const MrScorer *scorer = run->scorer;
	MrWish wish = MR_DEFAULT_WISH;
	int64 n = 0;
	MrKey *keys;

	for (int64 e = run->lo; e < run->hi; e++)
		if (run->users[run->events[e].user].cursor == e)
			run->listed[n++] = run->events[e].user;
	keys = palloc(n * sizeof(MrKey) + 1);
	for (int64 i = 0; i < n; i++)
		keys[i] = run->users[run->listed[i]].key;
	wish.k = scorer->k + 1;
	wish.exclude_seen = scorer->exclude_seen;
	wish.max_per_category = scorer->max_per_category;
	wish.baseline = scorer->baseline;
	wish.with_history = true;
	mr_recommend_many(run->model, &wish, keys, n, n < MIN_USERS_OF_THREADS ? 1 : 0, take_list, run);
}

/* Of a batch of more than MAX_ROWS a user may be listed more than once, from the same history. */
static void
write_rows(Run *run, Tuplestorestate *rows)
{
	const MrScorer *scorer = run->scorer;
	int64 n_rows = Min(run->n_events, MAX_ROWS);
	MemoryContext context =
		AllocSetContextCreate(run->context, "millrace scored rows", ALLOCSET_DEFAULT_SIZES);

	run->slot = MakeSingleTupleTableSlot(scorer->desc, &TTSOpsMinimalTuple);
	run->rows = palloc(n_rows * sizeof(MinimalTuple) + 1);
	run->listed = palloc(n_rows * sizeof(int32) + 1);
	run->list = palloc((scorer->k + 1) * sizeof(Entry));
	run->variants = palloc0((scorer->k + 1) * sizeof(Variant));
	run->values = palloc0(scorer->n_columns * sizeof(Datum));
	run->nulls = palloc(scorer->n_columns * sizeof(bool));
	memset(run->nulls, true, scorer->n_columns * sizeof(bool));
	run->user_context = AllocSetContextCreate(run->context, "millrace scored user", ALLOCSET_DEFAULT_SIZES);
	tuplestore_rescan(rows);
	for (run->lo = 0; run->lo < run->n_events; run->lo = run->hi)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		fetch_rows(run, rows);
		score_rows(run);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	ExecDropSingleTupleTableSlot(run->slot);
}

/* INSERT INTO target (columns) SELECT columns FROM rows: fires triggers, checks constraints. */
static uint64
insert_rows(const MrScorer *scorer, Tuplestorestate *rows)
{
	Relation target = table_open(scorer->target, NoLock);
	StringInfoData columns;
	uint64 n_rows;

	initStringInfo(&columns);
	for (int i = 0; i < scorer->n_columns; i++)
	{
		Form_pg_attribute att = TupleDescAttr(RelationGetDescr(target), i);
		bool is_filled = scorer->from[i] > 0;

		for (int j = 0; j < N_OWN; j++)
			is_filled |= scorer->own[j] == att->attnum;
		if (is_filled && !att->attgenerated)
			appendStringInfo(&columns, "%s%s", columns.len ? ", " : "",
							 quote_identifier(NameStr(att->attname)));
	}
	if (SPI_register_relation(mr_new_rows_relation("millrace_scored", scorer->target, rows)) < 0)
		elog(ERROR, "could not register the rows of a scorer");
	mr_exec(psprintf("INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM millrace_scored",
					 quote_qualified_identifier(get_namespace_name(RelationGetNamespace(target)),
												RelationGetRelationName(target)),
					 columns.data, columns.data),
			SPI_OK_INSERT, false);
	n_rows = SPI_processed;
	SPI_unregister_relation("millrace_scored");
	table_close(target, NoLock);
	return n_rows;
}

uint64
mr_scorer_run(MrScorer *scorer, Tuplestorestate *rows, MrScoreCounts *counts)
{
	Run run = {.scorer = scorer, .now = GetCurrentTimestamp()};
	Relation target;
	uint64 n_rows;

	SPI_connect();
	run.context = CurrentMemoryContext;
	/* What the batch has inserted counts as bought, whoever reads it. */
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	run.model = mr_model_open(scorer->model);
	run.lists = mr_lists_open(run.model);
	for (int i = 0; i < MR_N_LIST_SOURCES; i++)
		run.source_names[i] = CStringGetTextDatum(mr_list_source_name((MrListSource) i));
	target = table_open(scorer->target, NoLock);
	run.store_desc = RelationGetDescr(target);
	if (scorer->is_simple)
		run.writer = mr_writer_open(scorer->target);
	else
		run.store = tuplestore_begin_heap(false, false, work_mem);
	read_events(&run, rows);
	read_previous(&run);
	write_rows(&run, rows);
	n_rows = run.writer ? mr_writer_close(run.writer) : insert_rows(scorer, run.store);
	if (run.store)
		tuplestore_end(run.store);
	table_close(target, NoLock);
	PopActiveSnapshot();
	CommandCounterIncrement();
	SPI_finish();
	mr_score_counts_add(counts, &run.counts);
	return n_rows;
}

void
mr_score_counts_add(MrScoreCounts *sum, const MrScoreCounts *counts)
{
	sum->n_users += counts->n_users;
	sum->n_listed += counts->n_listed;
	sum->own += counts->own;
	sum->n_judged += counts->n_judged;
	sum->next += counts->next;
}
