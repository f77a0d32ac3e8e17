/*
 * track.c: what users have by the ratings of a model, kept from the batches of its source.
 *
 * A stream of kind 'history' keeps two tables.  Each batch appends to the second one row for each of its users: his
 * items, each with the number of rows and the sum of their values.  Folding moves such rows into the first table, which has
 * one row a user.  What is deleted is appended with the opposite sign, and an update is both, so that nobody ever reads the
 * source again nor waits for another writer, whatever his isolation level: every change of the source has its rows in the
 * same transaction, and a snapshot that shows one shows the other.  An item of which no rows are left is gone.
 *
 * It is for ratings that are read from one table row by row: expressions over the columns of a row, for rows that pass
 * conditions, perhaps through views; or their sum or count by GROUP BY.  Those expressions are evaluated over rows of a batch
 * as over rows of a partition that comes or goes.
 *
 * The query is a text, which may come to mean something else: columns are renamed, a view is replaced.  So the stream's
 * signature says what the text meant when the tables were filled, and which partitions the source had then.  Whoever reads or
 * writes the tables reads the query again whenever something about its relations has changed; a reader who finds another
 * signature asks the ratings query itself (history.c), and maintain fills the tables anew.
 */
#include "aggregate.h"
#include "model.h"

#include <float.h>
#include <math.h>

#include "access/heapam.h"
#include "access/heaptoast.h"
#include "access/genam.h"
#include "access/relscan.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_am.h"
#include "catalog/pg_class.h"
#include "catalog/namespace.h"
#include "catalog/pg_inherits.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "lib/stringinfo.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "optimizer/clauses.h"
#include "optimizer/optimizer.h"
#include "parser/parsetree.h"
#include "storage/lmgr.h"
#include "tcop/utility.h"
#include "rewrite/rewriteManip.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/plancache.h"
#include "utils/ruleutils.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(mr_track_history);
PG_FUNCTION_INFO_V1(mr_maintain_history);

/* ---- packed rows ---- */

/*
 * A byte, 'i' or 't', the kind of the items; their number; then the items in ascending order: an integer as its difference to
 * the one before, a text as the number of bytes that it has in common with the one before, the number of the others, and
 * those.  After each: the number of rows times 4 and how the value follows: 0, it is that number, 1, as an integer, 2 as a
 * float, 3 as a double, little-endian.  Numbers are of 7 bits a byte, the lowest first; with a sign, it is the lowest bit.
 */
enum
{
	VALUE_IS_COUNT,
	VALUE_INTEGER,
	VALUE_FLOAT,
	VALUE_DOUBLE
};

static void
put_number(StringInfo out, uint64 number)
{
	char bytes[10];
	int n = 0;

	for (; number >= 0x80; number >>= 7)
		bytes[n++] = (char) (number | 0x80);
	bytes[n++] = (char) number;
	appendBinaryStringInfo(out, bytes, n);
}

static uint64
fold_sign(int64 number)
{
	return (uint64) number << 1 ^ (uint64) (number >> 63);
}

static void
put_little(StringInfo out, uint64 bits, int n_bytes)
{
	char bytes[8];

	for (int i = 0; i < n_bytes; i++)
		bytes[i] = (char) (bits >> 8 * i);
	appendBinaryStringInfo(out, bytes, n_bytes);
}

static void
put_value(StringInfo out, int64 n_rows, double value)
{
	uint64 count = fold_sign(n_rows) << 2;
	float single = (float) value;
	uint64 bits;

	if (value == (double) n_rows)
		put_number(out, count | VALUE_IS_COUNT);
	else if (fabs(value) < 0x1p31 && value == rint(value))
	{
		put_number(out, count | VALUE_INTEGER);
		put_number(out, fold_sign((int64) value));
	}
	else if ((double) single == value)
	{
		uint32 single_bits;

		memcpy(&single_bits, &single, sizeof(single_bits));
		put_number(out, count | VALUE_FLOAT);
		put_little(out, single_bits, 4);
	}
	else
	{
		memcpy(&bits, &value, sizeof(bits));
		put_number(out, count | VALUE_DOUBLE);
		put_little(out, bits, 8);
	}
}

static void
put_item(StringInfo out, const MrPiece *piece, const MrPiece *before)
{
	int64 n_same = 0;

	if (!piece->item.text)
	{
		if (before)
			put_number(out, (uint64) piece->item.value - (uint64) before->item.value);
		else
			put_number(out, fold_sign(piece->item.value));
		return;
	}
	while (before && n_same < piece->item.n_bytes && n_same < before->item.n_bytes &&
		   piece->item.bytes[n_same] == before->item.bytes[n_same])
		n_same++;
	put_number(out, n_same);
	put_number(out, piece->item.n_bytes - n_same);
	appendBinaryStringInfo(out, piece->item.bytes + n_same, piece->item.n_bytes - n_same);
}

/* Pieces in ascending order of distinct items, as a bytea. */
static bytea *
pack(const MrPiece *pieces, int64 n, bool is_text)
{
	StringInfoData out;

	initStringInfo(&out);
	out.len = VARHDRSZ;
	appendStringInfoChar(&out, is_text ? 't' : 'i');
	put_number(&out, n);
	for (int64 i = 0; i < n; i++)
	{
		put_item(&out, &pieces[i], i > 0 ? &pieces[i - 1] : NULL);
		put_value(&out, pieces[i].n_rows, pieces[i].value);
	}
	SET_VARSIZE(out.data, out.len);
	return (bytea *) out.data;
}

static void
corrupt(void)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_DATA_CORRUPTED), errmsg("a row of what users have is corrupt"),
		 errhint(
			 "millrace.stop_stream(name), then millrace.start_stream(name) fill the tables of a stream of "
			 "kind history anew; see millrace.streams.")));
}

static inline uint64
get_number(MrUnpack *in)
{
	uint64 number = 0;

	for (int shift = 0; shift < 64; shift += 7)
	{
		unsigned char byte;

		if (in->at == in->end)
			corrupt();
		byte = *in->at++;
		number |= (uint64) (byte & 0x7F) << shift;
		if (byte < 0x80)
			return number;
	}
	corrupt();
	return 0;
}

static inline int64
get_signed(MrUnpack *in)
{
	uint64 number = get_number(in);

	return (int64) (number >> 1 ^ -(number & 1));
}

static uint64
get_little(MrUnpack *in, int n_bytes)
{
	uint64 bits = 0;

	if (in->end - in->at < n_bytes)
		corrupt();
	for (int i = 0; i < n_bytes; i++)
		bits |= (uint64) *in->at++ << 8 * i;
	return bits;
}

void
mr_unpack_start(MrUnpack *in, const bytea *packed)
{
	memset(in, 0, offsetof(MrUnpack, text));
	in->at = (const unsigned char *) VARDATA_ANY(packed);
	in->end = in->at + VARSIZE_ANY_EXHDR(packed);
	if (in->at == in->end || (*in->at != 'i' && *in->at != 't'))
		corrupt();
	in->is_text = *in->at++ == 't';
	in->is_first = true;
	in->n_left = (int64) get_number(in);
	if (in->n_left < 0 || in->n_left > in->end - in->at)
		corrupt();
	if (in->is_text && in->text.data == NULL)
		initStringInfo(&in->text);
}

static void
get_text(MrUnpack *in)
{
	uint64 n_same = get_number(in);
	uint64 n_others = get_number(in);

	if (n_same > (uint64) (in->is_first ? 0 : in->text.len) || n_others > (uint64) (in->end - in->at))
		corrupt();
	in->text.len = (int) n_same;
	appendBinaryStringInfo(&in->text, (const char *) in->at, (int) n_others);
	in->at += n_others;
}

bool
mr_unpack_next(MrUnpack *in, MrPiece *piece)
{
	uint64 count;
	uint32 single_bits;
	uint64 bits;
	float single;

	if (in->n_left-- == 0)
	{
		if (in->at != in->end)
			corrupt();
		return false;
	}
	if (in->is_text)
	{
		get_text(in);
		piece->item = (MrKey){.text = true, .bytes = in->text.data, .n_bytes = in->text.len};
	}
	else
	{
		in->last = in->is_first ? (uint64) get_signed(in) : in->last + get_number(in);
		piece->item = (MrKey){.value = (int64) in->last};
	}
	in->is_first = false;
	count = get_number(in);
	piece->n_rows = (int64) (count >> 3 ^ -(count >> 2 & 1));
	switch (count & 3)
	{
		case VALUE_IS_COUNT:
			piece->value = (double) piece->n_rows;
			break;
		case VALUE_INTEGER:
			piece->value = (double) get_signed(in);
			break;
		case VALUE_FLOAT:
			single_bits = (uint32) get_little(in, 4);
			memcpy(&single, &single_bits, sizeof(single));
			piece->value = single;
			break;
		default:
			bits = get_little(in, 8);
			memcpy(&piece->value, &bits, sizeof(bits));
	}
	return true;
}

uint64
mr_track_key(const MrKey *user)
{
	return user->text ? mrc_hash64(user->bytes, user->n_bytes, 0) : (uint64) user->value;
}

/* ---- gathering rows by user ---- */

typedef struct Person
{
	uint64 key;
	MrKey id;
	int64 first; /* of his pieces; they are linked */
	int64 n;
} Person;

/* Pieces of users, in memory that goes with the context. */
typedef struct Pile
{
	MemoryContext context;
	bool item_text; /* of the last piece; all are alike */
	Person *people;
	int64 n_people;
	int64 max_people;
	int32 *slots; /* mask + 1: number of a person, or -1 */
	uint64 mask;
	MrPiece *pieces;
	int64 n_pieces;
	int64 max_pieces;
} Pile;

#define MAX_PIECES (512 * 1024) /* … before what has been gathered is written */

static void
pile_begin(Pile *pile, MemoryContext parent)
{
	memset(pile, 0, sizeof(*pile));
	pile->context = AllocSetContextCreate(parent, "millrace history rows", ALLOCSET_DEFAULT_SIZES);
}

/* Forget what was gathered. */
static void
pile_reset(Pile *pile)
{
	MemoryContext context = pile->context;

	MemoryContextReset(context);
	memset(pile, 0, sizeof(*pile));
	pile->context = context;
}

/* Murmur's finalizer: integers that are close together spread. */
static inline uint64
spread(uint64 key)
{
	key = (key ^ key >> 33) * UINT64CONST(0xFF51AFD7ED558CCD);
	return key ^ key >> 33;
}

static void
more_slots(Pile *pile)
{
	uint64 size = pile->slots ? 2 * (pile->mask + 1) : 1024;

	if (pile->slots)
		pfree(pile->slots);
	pile->slots = MemoryContextAllocHuge(pile->context, size * sizeof(int32));
	memset(pile->slots, -1, size * sizeof(int32));
	pile->mask = size - 1;
	for (int64 i = 0; i < pile->n_people; i++)
	{
		uint64 at = spread(pile->people[i].key) & pile->mask;

		while (pile->slots[at] >= 0)
			at = (at + 1) & pile->mask;
		pile->slots[at] = (int32) i;
	}
}

static MrKey
keep_key(const Pile *pile, const MrKey *key)
{
	MrKey kept = *key;

	if (key->text)
	{
		char *bytes = MemoryContextAlloc(pile->context, key->n_bytes + 1);

		memcpy(bytes, key->bytes, key->n_bytes);
		kept.bytes = bytes;
	}
	return kept;
}

static Person *
person_of(Pile *pile, const MrKey *id)
{
	uint64 key = mr_track_key(id);
	uint64 at;

	if (pile->slots == NULL || 2 * (uint64) pile->n_people > pile->mask)
		more_slots(pile);
	for (at = spread(key) & pile->mask; pile->slots[at] >= 0; at = (at + 1) & pile->mask)
	{
		Person *person = &pile->people[pile->slots[at]];

		if (person->key == key && mr_same_key(&person->id, id))
			return person;
	}
	if (pile->n_people == pile->max_people)
	{
		pile->max_people = Max(512, 2 * pile->max_people);
		pile->people = pile->people
			? repalloc_huge(pile->people, pile->max_people * sizeof(Person))
			: MemoryContextAllocHuge(pile->context, pile->max_people * sizeof(Person));
	}
	pile->slots[at] = (int32) pile->n_people;
	pile->people[pile->n_people] = (Person){.key = key, .id = keep_key(pile, id), .first = -1};
	return &pile->people[pile->n_people++];
}

static void
add_piece(Pile *pile, Person *person, const MrPiece *piece)
{
	MrPiece *kept;

	if (pile->n_pieces == pile->max_pieces)
	{
		pile->max_pieces = Max(1024, 2 * pile->max_pieces);
		pile->pieces = pile->pieces
			? repalloc_huge(pile->pieces, pile->max_pieces * sizeof(MrPiece))
			: MemoryContextAllocHuge(pile->context, pile->max_pieces * sizeof(MrPiece));
	}
	kept = &pile->pieces[pile->n_pieces];
	*kept = *piece;
	kept->item = keep_key(pile, &piece->item);
	kept->next = person->first;
	pile->item_text = piece->item.text;
	person->first = pile->n_pieces++;
	person->n++;
}

/* Merge the runs [0, middle) and [middle, n) into out; of equal items those of the first come first. */
static void
merge_runs(const MrPiece *pieces, int64 middle, int64 n, MrPiece *out)
{
	int64 a = 0;
	int64 b = middle;

	while (a < middle && b < n)
		*out++ = mr_compare_keys(&pieces[a].item, &pieces[b].item) <= 0 ? pieces[a++] : pieces[b++];
	memcpy(out, pieces + a, (middle - a) * sizeof(MrPiece));
	memcpy(out + (middle - a), pieces + b, (n - b) * sizeof(MrPiece));
}

static int64
run_end(const MrPiece *pieces, int64 start, int64 n)
{
	int64 end = Min(start + 1, n);

	while (end < n && mr_compare_keys(&pieces[end - 1].item, &pieces[end].item) <= 0)
		end++;
	return end;
}

/*
 * By item; equal ones in the order in which they came, so that sums do not depend on chance.  Two by two ascending runs are
 * merged, for what is folded is a few long ones.  Returns which of the two rooms of n holds the result.
 */
static MrPiece *
sort_pieces(MrPiece *pieces, MrPiece *room, int64 n)
{
	while (run_end(pieces, 0, n) < n)
	{
		MrPiece *sorted = room;

		for (int64 start = 0, middle, end; start < n; start = end)
		{
			middle = run_end(pieces, start, n);
			end = middle < n ? run_end(pieces, middle, n) : n;
			merge_runs(pieces + start, middle - start, end - start, sorted + start);
		}
		room = pieces;
		pieces = sorted;
	}
	return pieces;
}

/*
 * A person's pieces side by side, each item once, ascending, in a part of room (twice as many as he has).  One that adds
 * nothing is gone; one that adds a value to no rows is an update, or waits for it.
 */
static MrPiece *
merge_pieces(const Pile *pile, const Person *person, MrPiece *room, int64 *n_merged)
{
	int64 n = person->n;
	int64 at = n;
	int64 out = 0;
	MrPiece *pieces;

	for (int64 i = person->first; i >= 0; i = pile->pieces[i].next)
		room[--at] = pile->pieces[i];
	pieces = sort_pieces(room, room + n, n);
	for (int64 i = 0, end; i < n; i = end)
	{
		MrPiece sum = pieces[i];

		for (end = i + 1; end < n && mr_compare_keys(&pieces[end].item, &sum.item) == 0; end++)
		{
			sum.n_rows += pieces[end].n_rows;
			sum.value += pieces[end].value;
		}
		if (sum.n_rows != 0 || sum.value != 0)
			pieces[out++] = sum;
	}
	*n_merged = out;
	return pieces;
}

static int
compare_people(const void *a, const void *b)
{
	const Person *person_a = a;
	const Person *person_b = b;

	if (person_a->key != person_b->key)
		return (int64) person_a->key < (int64) person_b->key ? -1 : 1;
	return mr_compare_keys(&person_a->id, &person_b->id);
}

/* In the order of the index; person_of() finds nobody any more. */
static int64
sort_people(Pile *pile)
{
	int64 most = 0;

	qsort(pile->people, pile->n_people, sizeof(Person), compare_people);
	for (int64 i = 0; i < pile->n_people; i++)
		most = Max(most, pile->people[i].n);
	return most;
}

static void
row_values(const Person *person, bytea *packed, Datum *values, bool *nulls)
{
	values[TRACK_KEY] = Int64GetDatum((int64) person->key);
	nulls[TRACK_KEY] = nulls[TRACK_ITEMS] = false;
	nulls[TRACK_USER] = !person->id.text;
	values[TRACK_USER] = person->id.text
		? PointerGetDatum(cstring_to_text_with_len(person->id.bytes, person->id.n_bytes))
		: (Datum) 0;
	values[TRACK_ITEMS] = PointerGetDatum(packed);
}

/* Append a row for each person, and forget them; returns rows written. */
static uint64
write_people(Pile *pile, MrStateWriter *writer)
{
	MemoryContext row = AllocSetContextCreate(pile->context, "millrace history row", ALLOCSET_DEFAULT_SIZES);
	MrPiece *room = MemoryContextAllocHuge(pile->context, (2 * sort_people(pile) + 1) * sizeof(MrPiece));
	uint64 n_written = 0;

	for (int64 i = 0; i < pile->n_people; i++)
	{
		MemoryContext before = MemoryContextSwitchTo(row);
		int64 n;
		MrPiece *pieces = merge_pieces(pile, &pile->people[i], room, &n);
		Datum values[N_TRACK_COLUMNS];
		bool nulls[N_TRACK_COLUMNS];

		CHECK_FOR_INTERRUPTS();
		if (n > 0)
		{
			row_values(&pile->people[i], pack(pieces, n, pile->item_text), values, nulls);
			mr_writer_put(writer, values, nulls);
			n_written++;
		}
		MemoryContextSwitchTo(before);
		MemoryContextReset(row);
	}
	pile_reset(pile);
	return n_written;
}

/* ---- what a query of ratings reads ---- */

/* A query that reads one table row by row, as expressions over that table: varno 1. */
typedef struct Reduced
{
	Oid source;
	List *columns; /* Expr */
	List *quals;
} Reduced;

typedef struct MapVars
{
	Index rti;
	const List *columns; /* NULL: only renumbered */
	const char *why;
} MapVars;

static Node *
map_vars(Node *node, MapVars *map)
{
	Var *var = (Var *) node;

	if (node == NULL)
		return NULL;
	if (!IsA(node, Var))
		return expression_tree_mutator(node, map_vars, map);
	if (var->varlevelsup != 0 || var->varno != map->rti || var->varattno <= 0)
	{
		map->why = "it uses whole rows or system columns";
		return node;
	}
	if (map->columns)
		return copyObject(list_nth(map->columns, var->varattno - 1));
	var = copyObject(var);
	var->varno = 1;
	/* No other name for a message. */
	var->varnosyn = 0;
	var->varattnosyn = 0;
	return (Node *) var;
}

static const char *reduce(Query *query, bool is_top, Reduced *reduced);

static const char *
check_table(const RangeTblEntry *rte)
{
	if (rte->relkind != RELKIND_RELATION && rte->relkind != RELKIND_PARTITIONED_TABLE)
		return "it reads something that is no table";
	if (!rte->inh)
		return "it reads ONLY a table";
	if (rte->tablesample)
		return "it reads a sample of a table";
	if (rte->securityQuals)
		return "its table has row security";
	return NULL;
}

/* Why a level of the query is more than rows and conditions; NULL: it is not. */
static const char *
check_level(const Query *query, bool is_top)
{
	if (query->commandType != CMD_SELECT || query->setOperations || query->cteList || query->hasWindowFuncs ||
		query->limitCount || query->limitOffset || query->rowMarks || query->distinctClause)
		return "it is more than SELECT … FROM one table WHERE … GROUP BY …";
	if (query->groupingSets || query->havingQual || (!is_top && (query->groupClause || query->hasAggs)))
		return "it groups by more than GROUP BY user and item";
	if (query->hasTargetSRFs)
		return "it makes several rows of one";
	if (query->hasSubLinks)
		return "it has subqueries in expressions";
	if (list_length(query->jointree->fromlist) != 1 || !IsA(linitial(query->jointree->fromlist), RangeTblRef))
		return "it joins tables, or reads none";
	return NULL;
}

/* Returns why it cannot be done, or NULL. */
static const char *
reduce(Query *query, bool is_top, Reduced *reduced)
{
	const char *why = check_level(query, is_top);
	MapVars map = {0};
	Reduced inner = {0};
	RangeTblEntry *rte;
	List *quals;
	ListCell *lc;

	if (why)
		return why;
	map.rti = linitial_node(RangeTblRef, query->jointree->fromlist)->rtindex;
	rte = rt_fetch(map.rti, query->rtable);
	if (rte->rtekind == RTE_RELATION)
	{
		why = check_table(rte);
		inner.source = rte->relid;
	}
	else if (rte->rtekind == RTE_SUBQUERY && !rte->lateral)
	{
		why = reduce(rte->subquery, false, &inner);
		map.columns = inner.columns;
	}
	else
		why = "it reads something that is no table";
	if (why)
		return why;
	reduced->source = inner.source;
	foreach (lc, query->targetList)
		if (!lfirst_node(TargetEntry, lc)->resjunk)
			reduced->columns =
				lappend(reduced->columns, map_vars((Node *) lfirst_node(TargetEntry, lc)->expr, &map));
	quals = make_ands_implicit((Expr *) map_vars(copyObject(query->jointree->quals), &map));
	reduced->quals = list_concat(inner.quals, quals);
	return map.why;
}

/* What one row adds to a sum or count, and when: *filter.  NULL: it is no such thing, or it is rounded. */
static Node *
added_by_row(Node *value, Node **filter)
{
	Aggref *agg;
	Node *arg;

	/* sum(…)::float8 and the like: the number is the same. */
	while (IsA(value, FuncExpr) && list_length(((FuncExpr *) value)->args) == 1 &&
		   (((FuncExpr *) value)->funcresulttype == FLOAT8OID ||
			((FuncExpr *) value)->funcresulttype == NUMERICOID) &&
		   ((FuncExpr *) value)->funcformat != COERCE_EXPLICIT_CALL)
		value = linitial(((FuncExpr *) value)->args);
	agg = (Aggref *) value;
	if (!IsA(value, Aggref) || agg->aggdistinct || agg->aggkind != AGGKIND_NORMAL)
		return NULL;
	*filter = (Node *) agg->aggfilter;
	if (agg->aggfnoid == F_COUNT_)
		return (Node *) makeConst(INT4OID, -1, InvalidOid, sizeof(int32), Int32GetDatum(1), false, true);
	arg = (Node *) linitial_node(TargetEntry, agg->args)->expr;
	switch (agg->aggfnoid)
	{
		case F_SUM_INT2:
		case F_SUM_INT4:
		case F_SUM_INT8:
		case F_SUM_FLOAT4:
		case F_SUM_FLOAT8:
		case F_SUM_NUMERIC:
			return arg;
		case F_COUNT_ANY:
		{
			NullTest *test = makeNode(NullTest);

			test->arg = (Expr *) arg;
			test->nulltesttype = IS_NOT_NULL;
			test->location = -1;
			*filter = *filter ? (Node *) make_andclause(list_make2(*filter, test)) : (Node *) test;
			return (Node *) makeConst(INT4OID, -1, InvalidOid, sizeof(int32), Int32GetDatum(1), false, true);
		}
		default:
			return NULL;
	}
}

static bool
is_known_type(Oid type, bool is_value)
{
	type = getBaseType(type);
	if (type == INT2OID || type == INT4OID || type == INT8OID)
		return true;
	return is_value ? type == FLOAT4OID || type == FLOAT8OID || type == NUMERICOID
					: type == TEXTOID || type == VARCHAROID;
}

/* Is a column of the source not in the rows of a batch? */
static bool
is_generated(Relation source, AttrNumber column)
{
	char generated = TupleDescAttr(RelationGetDescr(source), column - 1)->attgenerated;

	return generated == 'v' || (generated != '\0' && source->rd_rel->relkind == RELKIND_PARTITIONED_TABLE);
}

static const char *
check_columns(const MrTracked *tracked, Relation source)
{
	ListCell *lc;

	if (source->rd_rel->relpersistence == RELPERSISTENCE_TEMP || source->rd_rel->relispartition)
		return "its table is temporary or a partition";
	if (source->rd_rel->relrowsecurity && source->rd_rel->relforcerowsecurity)
		return "its table has row security";
	foreach (lc, find_all_inheritors(tracked->source, NoLock, NULL))
		if (get_rel_relkind(lfirst_oid(lc)) == RELKIND_FOREIGN_TABLE)
			return "its table has a foreign partition";
	foreach (lc, pull_var_clause((Node *) tracked->exprs, 0))
		if (is_generated(source, lfirst_node(Var, lc)->varattno))
			return "it uses a generated column";
	return NULL;
}

/* Is it of those that the server does not bring, and STABLE? */
static bool
may_read_database(Oid function, void *context)
{
	return function >= FirstUnpinnedObjectId && func_volatile(function) != PROVOLATILE_IMMUTABLE;
}

static bool
reads_database_walker(Node *node, void *context)
{
	return node &&
		(check_functions_in_node(node, may_read_database, context) ||
		 expression_tree_walker(node, reads_database_walker, context));
}

/* Sets user, item, value and the rest; returns why not, or NULL. */
static const char *
take_columns(MrTracked *tracked, const Query *query, Reduced *reduced)
{
	Node *filter = NULL;

	if (list_length(reduced->columns) < 2)
		return "it has no column with the item";
	tracked->source = reduced->source;
	tracked->user = linitial(reduced->columns);
	tracked->item = lsecond(reduced->columns);
	tracked->value = list_length(reduced->columns) > 2 ? lthird(reduced->columns) : NULL;
	tracked->quals = reduced->quals;
	if (query->hasAggs || query->groupClause)
	{
		if (contain_agg_clause((Node *) list_make2(tracked->user, tracked->item)))
			return "its user or item is an aggregate";
		if (tracked->value == NULL)
			return "it groups, but has no value";
		tracked->value = added_by_row(tracked->value, &filter);
		if (tracked->value == NULL)
			return "its value is neither a sum nor a count, or is rounded";
		tracked->filter = filter;
		tracked->is_sum = true;
	}
	tracked->exprs =
		list_make4(list_make3(tracked->user, tracked->item, tracked->value), tracked->quals, filter, NULL);
	if (!is_known_type(exprType(tracked->user), false) || !is_known_type(exprType(tracked->item), false) ||
		(tracked->value && !is_known_type(exprType(tracked->value), true)))
		return "its columns are of other types than a training reads";
	if (mr_depends_on_moment((Node *) tracked->exprs))
		return "it calls volatile functions, now(), current_date or their like";
	if (expression_tree_walker((Node *) tracked->exprs, reads_database_walker, NULL))
		return "it calls functions that may read the database";
	return NULL;
}

/*
 * What a table adds to the hash of a signature; a sum, so that partitions come and go one by one.  By name, which means the
 * same in a restored database.
 */
static uint64
relation_hash(Oid rel)
{
	char *name = quote_qualified_identifier(get_namespace_name(get_rel_namespace(rel)), get_rel_name(rel));

	return mrc_hash64(name, strlen(name), 0);
}

static uint64
partitions_hash(Oid source)
{
	uint64 sum = 0;
	ListCell *lc;

	foreach (lc, find_all_inheritors(source, NoLock, NULL))
		sum += relation_hash(lfirst_oid(lc));
	return sum;
}

/*
 * Number of the source; a hash of its partitions; the columns that are used, by number; then the expressions by name.  The
 * numbers mean nothing in a restored database, where the source has another.
 */
static char *
make_signature(const MrTracked *tracked)
{
	List *context = deparse_context_for(get_rel_name(tracked->source), tracked->source);
	StringInfoData signature;
	ListCell *lc;

	initStringInfo(&signature);
	appendStringInfo(&signature, "%u " UINT64_FORMAT " ", tracked->source, partitions_hash(tracked->source));
	foreach (lc, pull_var_clause((Node *) tracked->exprs, 0))
		appendStringInfo(&signature, "%s%d", foreach_current_index(lc) ? "," : "",
						 lfirst_node(Var, lc)->varattno);
	appendStringInfo(&signature, " %s %s(", tracked->is_sum ? "sum" : "rows",
					 quote_qualified_identifier(get_namespace_name(get_rel_namespace(tracked->source)),
												get_rel_name(tracked->source)));
	foreach (lc, tracked->exprs)
		if (lfirst(lc))
			appendStringInfo(&signature, "%s%s", foreach_current_index(lc) ? "; " : "",
							 deparse_expression(lfirst(lc), context, false, true));
	appendStringInfoChar(&signature, ')');
	return signature.data;
}

/* After n blanks; the end if there are not so many. */
static const char *
after_blanks(const char *words, int n)
{
	while (n-- > 0 && *words)
		words += strcspn(words, " ") + (words[strcspn(words, " ")] == ' ');
	return words;
}

bool
mr_track_same(const char *stored, const char *now, bool with_partitions)
{
	if (stored == NULL ||
		(with_partitions &&
		 strtoull(after_blanks(stored, 1), NULL, 10) != strtoull(after_blanks(now, 1), NULL, 10)))
		return false;
	if (strtoul(stored, NULL, 10) != strtoul(now, NULL, 10))
		return strcmp(after_blanks(stored, 3), after_blanks(now, 3)) == 0;
	return strcmp(after_blanks(stored, 2), after_blanks(now, 2)) == 0;
}

MrTracked *
mr_track_read(const char *command, const char **why)
{
	MrTracked *tracked = palloc0(sizeof(MrTracked));
	Reduced reduced = {0};
	SPIPlanPtr plan = NULL;
	List *sources;
	Query *query;
	Relation source;
	MemoryContext context = CurrentMemoryContext;

	SPI_connect();
	/* Refuses temporary relations and types. */
	sources = SPI_plan_get_plan_sources(mr_prepare(&plan, command, 0, NULL));
	MemoryContextSwitchTo(context);
	tracked->relations = list_copy(((CachedPlanSource *) linitial(sources))->relationOids);
	query =
		list_length(sources) == 1 && list_length(((CachedPlanSource *) linitial(sources))->query_list) == 1
		? copyObject(linitial(((CachedPlanSource *) linitial(sources))->query_list))
		: NULL;
	SPI_freeplan(plan);
	SPI_finish();
	MemoryContextSwitchTo(context);
	*why = "it is not one query";
	if (query == NULL)
		return tracked;
#if MR_HAS_GROUP_RTE
	if (query->hasGroupRTE)
	{
		query->targetList = (List *) flatten_group_exprs(NULL, query, (Node *) query->targetList);
		query->rtable = list_delete_last(query->rtable);
		query->hasGroupRTE = false;
	}
#endif
	if ((*why = reduce(query, true, &reduced)) != NULL ||
		(*why = take_columns(tracked, query, &reduced)) != NULL)
		return tracked;
	source = table_open(tracked->source, AccessShareLock);
	*why = check_columns(tracked, source);
	table_close(source, NoLock);
	if (*why == NULL)
		tracked->signature = make_signature(tracked);
	return tracked;
}

/* ---- rows of a batch ---- */

struct MrTrack
{
	TupleDesc desc; /* of the table that fired; not reference-counted */
	ExprState *user;
	ExprState *item;
	ExprState *value;  /* NULL: 1 */
	ExprState *filter; /* of the value; NULL: every row */
	ExprState *quals;
	Oid user_type; /* below any domain */
	Oid item_type;
	Oid value_type;
	bool is_sum;
};

/* An expression over the source as one over rows of the leaf, ready to run. */
static ExprState *
compile(Node *expr, AttrMap *map)
{
	bool whole_row;

	if (expr == NULL)
		return NULL;
	expr = copyObject(expr);
	if (map)
		expr = map_variable_attnos(expr, 1, 0, map, InvalidOid, &whole_row);
	return IsA(expr, List) ? ExecInitQual((List *) expression_planner((Expr *) expr), NULL)
						   : ExecInitExpr(expression_planner((Expr *) expr), NULL);
}

static MrTrack *
make_track(const MrTracked *tracked, Oid leaf, MemoryContext keep)
{
	MemoryContext before = MemoryContextSwitchTo(keep);
	MrTrack *track = palloc0(sizeof(MrTrack));
	Relation source_rel = table_open(tracked->source, AccessShareLock);
	Relation leaf_rel = table_open(leaf, AccessShareLock);
	AttrMap *map = leaf == tracked->source
		? NULL
		: mr_attrmap_by_name(RelationGetDescr(leaf_rel), RelationGetDescr(source_rel));

	track->desc = CreateTupleDescCopy(RelationGetDescr(leaf_rel));
	track->user = compile(tracked->user, map);
	track->item = compile(tracked->item, map);
	track->value = compile(tracked->value, map);
	track->filter = compile(tracked->filter, map);
	track->quals = compile((Node *) tracked->quals, map);
	track->user_type = getBaseType(exprType(tracked->user));
	track->item_type = getBaseType(exprType(tracked->item));
	track->value_type = tracked->value ? getBaseType(exprType(tracked->value)) : InvalidOid;
	track->is_sum = tracked->is_sum;
	table_close(leaf_rel, NoLock);
	table_close(source_rel, NoLock);
	MemoryContextSwitchTo(before);
	return track;
}

MrTrack *
mr_track_plan(const char *query, const char *signature, Oid leaf, MemoryContext keep, List **depends)
{
	MemoryContext scratch =
		AllocSetContextCreate(CurrentMemoryContext, "millrace history plan", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(scratch);
	const char *why;
	MrTracked *tracked = mr_track_read(query, &why);
	MrTrack *track;

	if (why || !mr_track_same(signature, tracked->signature, false))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the ratings mean something else than when this stream was made"),
				 errdetail("The query is: %s", query),
				 errhint("Columns were renamed, or a view was replaced.  Train the model again.")));
	track = make_track(tracked, leaf, keep);
	MemoryContextSwitchTo(keep);
	*depends = list_concat_unique_oid(*depends, tracked->relations);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(scratch);
	return track;
}

static MrKey
key_of(Datum value, Oid type)
{
	switch (type)
	{
		case INT8OID:
			return (MrKey){.value = DatumGetInt64(value)};
		case INT4OID:
			return (MrKey){.value = DatumGetInt32(value)};
		case INT2OID:
			return (MrKey){.value = DatumGetInt16(value)};
		default:
			return mr_key_from_text(DatumGetTextPP(value));
	}
}

/* As a training reads it: a float, unless SQL sums; 0 where there is none. */
static double
row_value(const MrTrack *track, ExprContext *econtext)
{
	bool isnull;
	Datum datum;
	double value;

	if (track->value == NULL)
		return 1;
	if (track->filter)
	{
		datum = ExecEvalExprSwitchContext(track->filter, econtext, &isnull);
		if (isnull || !DatumGetBool(datum))
			return 0;
	}
	datum = ExecEvalExprSwitchContext(track->value, econtext, &isnull);
	if (isnull)
		return 0;
	value = mr_number_of(CurrentMemoryContext, datum, track->value_type);
	if (!(fabs(value) <= FLT_MAX))
		return 0;
	return track->is_sum ? value : (float) value;
}

/* Add one row, in econtext's slot, n_rows times: 1 or -1. */
static void
gather_row(Pile *pile, const MrTrack *track, ExprContext *econtext, int n_rows)
{
	MemoryContext before = MemoryContextSwitchTo(econtext->ecxt_per_tuple_memory);
	MrPiece piece = {.n_rows = n_rows};
	bool isnull;
	Datum user;
	Datum item;

	if (ExecQual(track->quals, econtext))
	{
		user = ExecEvalExpr(track->user, econtext, &isnull);
		item = isnull ? (Datum) 0 : ExecEvalExpr(track->item, econtext, &isnull);
		if (!isnull)
		{
			MrKey id = key_of(user, track->user_type);

			piece.item = key_of(item, track->item_type);
			piece.value = n_rows * row_value(track, econtext);
			/* A text without bytes is nobody. */
			if (!id.text || id.n_bytes > 0)
				add_piece(pile, person_of(pile, &id), &piece);
		}
	}
	MemoryContextSwitchTo(before);
	ResetExprContext(econtext);
}

/* Where gathered rows go. */
typedef struct Appender
{
	Pile pile;
	EState *estate;
	ExprContext *econtext;
	MrStateWriter *writer;
	uint64 n_written;
} Appender;

static void
appender_begin(Appender *appender, Oid target)
{
	pile_begin(&appender->pile, CurrentMemoryContext);
	appender->estate = CreateExecutorState();
	appender->econtext = CreateExprContext(appender->estate);
	appender->writer = mr_writer_open(target);
	appender->n_written = 0;
}

static void
appender_row(Appender *appender, const MrTrack *track, TupleTableSlot *slot, int n_rows)
{
	appender->econtext->ecxt_scantuple = slot;
	gather_row(&appender->pile, track, appender->econtext, n_rows);
	if (appender->pile.n_pieces >= MAX_PIECES)
		appender->n_written += write_people(&appender->pile, appender->writer);
}

static uint64
appender_end(Appender *appender)
{
	appender->n_written += write_people(&appender->pile, appender->writer);
	(void) mr_writer_close(appender->writer);
	FreeExecutorState(appender->estate);
	MemoryContextDelete(appender->pile.context);
	return appender->n_written;
}

static void
append_store(Appender *appender, const MrTrack *track, Tuplestorestate *rows, int n_rows)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(track->desc, &TTSOpsMinimalTuple);

	tuplestore_rescan(rows);
	while (tuplestore_gettupleslot(rows, true, false, slot))
		appender_row(appender, track, slot, n_rows);
	ExecDropSingleTupleTableSlot(slot);
}

uint64
mr_track_run(const MrTrack *track, Oid delta, Tuplestorestate *old_rows, Tuplestorestate *new_rows)
{
	Appender appender;
	uint64 n_written;

	PushActiveSnapshot(GetTransactionSnapshot());
	appender_begin(&appender, delta);
	if (old_rows)
		append_store(&appender, track, old_rows, -1);
	if (new_rows)
		append_store(&appender, track, new_rows, 1);
	n_written = appender_end(&appender);
	PopActiveSnapshot();
	CommandCounterIncrement();
	return n_written;
}

/* Rows that a table of the source has come or gone with; the table and what is below it. */
static void
append_table(Appender *appender, const MrTracked *tracked, Oid rel, int n_rows, Snapshot snapshot)
{
	ListCell *lc;

	foreach (lc, find_all_inheritors(rel, AccessShareLock, NULL))
	{
		Relation leaf = table_open(lfirst_oid(lc), NoLock);
		TableScanDesc scan;
		TupleTableSlot *slot;
		MrTrack *track;

		if (leaf->rd_rel->relkind == RELKIND_RELATION)
		{
			track = make_track(tracked, RelationGetRelid(leaf), CurrentMemoryContext);
			slot = table_slot_create(leaf, NULL);
			scan = table_beginscan(leaf, snapshot, 0, NULL);
			while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
			{
				CHECK_FOR_INTERRUPTS();
				appender_row(appender, track, slot, n_rows);
			}
			table_endscan(scan);
			ExecDropSingleTupleTableSlot(slot);
		}
		table_close(leaf, NoLock);
	}
}

/* ---- tables ---- */

static Relation
open_index(Relation rel)
{
	Relation index = NULL;
	ListCell *lc;

	foreach (lc, RelationGetIndexList(rel))
	{
		index = index_open(lfirst_oid(lc), AccessShareLock);
		if (index->rd_rel->relam == BTREE_AM_OID && index->rd_index->indisvalid &&
			index->rd_index->indkey.values[0] == TRACK_KEY + 1 && RelationGetIndexPredicate(index) == NIL)
			return index;
		index_close(index, AccessShareLock);
	}
	return NULL;
}

bool
mr_track_scan_begin(MrTrackScan *scan, Oid table)
{
	memset(scan, 0, offsetof(MrTrackScan, unpack));
	scan->rel = try_table_open(table, AccessShareLock);
	if (scan->rel == NULL)
		return false;
	scan->index = open_index(scan->rel);
	if (scan->index == NULL || RelationGetDescr(scan->rel)->natts != N_TRACK_COLUMNS)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"%s\" is not as its stream of kind history made it", get_rel_name(table)),
				 errhint("Drop it, and call millrace.track_history(model).")));
	scan->scan = mr_index_beginscan(scan->rel, scan->index, GetActiveSnapshot(), 1);
	scan->slot = table_slot_create(scan->rel, NULL);
	return true;
}

void
mr_track_scan_end(MrTrackScan *scan)
{
	ExecDropSingleTupleTableSlot(scan->slot);
	index_endscan(scan->scan);
	index_close(scan->index, NoLock);
	table_close(scan->rel, NoLock);
}

void
mr_track_scan_user(MrTrackScan *scan, const MrKey *user)
{
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum((int64) mr_track_key(user)));
	index_rescan(scan->scan, &key, 1, NULL, 0);
	scan->user = *user;
}

/* Of another user with the same hash? */
static bool
is_other(TupleTableSlot *slot, const MrKey *user)
{
	MrKey id;

	if (slot->tts_isnull[TRACK_USER])
		return user->text;
	id = mr_key_from_text(DatumGetTextPP(slot->tts_values[TRACK_USER]));
	return !user->text || !mr_same_key(&id, user);
}

bool
mr_track_scan_next(MrTrackScan *scan)
{
	while (index_getnext_slot(scan->scan, ForwardScanDirection, scan->slot))
	{
		bytea *stored;
		bytea *packed;

		slot_getallattrs(scan->slot);
		if (is_other(scan->slot, &scan->user))
			continue;
		stored = (bytea *) DatumGetPointer(scan->slot->tts_values[TRACK_ITEMS]);
		packed = pg_detoast_datum_packed(stored);
		if (scan->copy)
			pfree(scan->copy);
		scan->copy = packed != stored ? packed : NULL;
		mr_unpack_start(&scan->unpack, packed);
		return true;
	}
	return false;
}

/* ---- folding ---- */

#define FOLD_PORTION 16384 /* rows gathered at once */

static void
delete_row(Relation rel, ItemPointer tid)
{
	TM_FailureData failure;
	TM_Result result = table_tuple_delete(rel, tid, GetCurrentCommandId(true), GetActiveSnapshot(),
										  InvalidSnapshot, true, &failure, false);

	if (result != TM_Ok)
		elog(ERROR, "unexpected result of deleting a row of \"%s\": %d", RelationGetRelationName(rel),
			 (int) result);
}

/* Delete the rows that the active snapshot shows; returns their number. */
static uint64
delete_rows(Oid table)
{
	Relation rel = table_open(table, RowExclusiveLock);
	TableScanDesc scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	uint64 n = 0;

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		delete_row(rel, &slot->tts_tid);
		n++;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	table_close(rel, NoLock);
	return n;
}

static void
gather_pieces(Pile *pile, const MrKey *user, MrUnpack *unpack)
{
	Person *person = person_of(pile, user);
	MrPiece piece;

	while (mr_unpack_next(unpack, &piece))
		add_piece(pile, person, &piece);
}

static MrKey
row_user(TupleTableSlot *slot)
{
	if (slot->tts_isnull[TRACK_USER])
		return (MrKey){.value = DatumGetInt64(slot->tts_values[TRACK_KEY])};
	return mr_key_from_text(DatumGetTextPP(slot->tts_values[TRACK_USER]));
}

/* Take up to limit rows that batches have left; returns how many.  *more: false at the end, where a scan would begin anew. */
static int64
take_delta(Pile *pile, Relation delta, TableScanDesc scan, int64 limit, bool *more)
{
	TupleTableSlot *slot = table_slot_create(delta, NULL);
	MrUnpack unpack = {0};
	int64 n = 0;

	while (n < limit && pile->n_pieces < MAX_PIECES &&
		   (*more = table_scan_getnextslot(scan, ForwardScanDirection, slot)))
	{
		MrKey user;

		CHECK_FOR_INTERRUPTS();
		slot_getallattrs(slot);
		user = row_user(slot);
		mr_unpack_start(&unpack, DatumGetByteaPP(slot->tts_values[TRACK_ITEMS]));
		gather_pieces(pile, &user, &unpack);
		delete_row(delta, &slot->tts_tid);
		n++;
	}
	ExecDropSingleTupleTableSlot(slot);
	return n;
}

/* Replace what the first table has of a person by that and what has been gathered. */
static void
replace_row(Pile *pile, MrTrackScan *state, Person *person, MrStateWriter *writer, MemoryContext row)
{
	MemoryContext before;
	MrPiece piece;
	MrPiece *pieces;
	int64 n;
	Datum values[N_TRACK_COLUMNS];
	bool nulls[N_TRACK_COLUMNS];

	/* Not in the memory of the row: the scan keeps some of its own from one user to the next. */
	mr_track_scan_user(state, &person->id);
	while (mr_track_scan_next(state))
	{
		while (mr_unpack_next(&state->unpack, &piece))
			add_piece(pile, person, &piece);
		delete_row(state->rel, &state->slot->tts_tid);
	}
	before = MemoryContextSwitchTo(row);
	pieces =
		merge_pieces(pile, person, MemoryContextAllocHuge(row, (2 * person->n + 1) * sizeof(MrPiece)), &n);
	if (n > 0)
	{
		row_values(person, pack(pieces, n, pile->item_text), values, nulls);
		mr_writer_put(writer, values, nulls);
	}
	MemoryContextSwitchTo(before);
	MemoryContextReset(row);
}

static void
fold_portion(Pile *pile, Oid state)
{
	MrTrackScan scan = {0};
	MrStateWriter *writer = mr_writer_open(state);
	MemoryContext row = AllocSetContextCreate(pile->context, "millrace history row", ALLOCSET_DEFAULT_SIZES);

	if (!mr_track_scan_begin(&scan, state))
		elog(ERROR, "table %u does not exist", state);
	(void) sort_people(pile);
	for (int64 i = 0; i < pile->n_people; i++)
	{
		CHECK_FOR_INTERRUPTS();
		replace_row(pile, &scan, &pile->people[i], writer, row);
	}
	mr_track_scan_end(&scan);
	(void) mr_writer_close(writer);
	pile_reset(pile);
}

uint64
mr_track_fold(Oid state, Oid delta, int64 limit)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace history fold", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	Snapshot snapshot = RegisterSnapshot(GetLatestSnapshot());
	Relation rel = table_open(delta, RowExclusiveLock);
	TableScanDesc scan;
	Pile pile;
	uint64 n_folded = 0;
	bool more = true;
	int64 n;

	PushCopiedSnapshot(snapshot);
	pile_begin(&pile, context);
	scan = table_beginscan(rel, snapshot, 0, NULL);
	while (more && (int64) n_folded < limit)
	{
		n = take_delta(&pile, rel, scan, Min(limit - (int64) n_folded, FOLD_PORTION), &more);
		n_folded += n;
		if (n == 0)
			continue;
		fold_portion(&pile, state);
		/* The next portion may have users of this one. */
		CommandCounterIncrement();
		UpdateActiveSnapshotCommandId();
	}
	table_endscan(scan);
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	table_close(rel, NoLock);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
	return n_folded;
}

/* ---- filling ---- */

/* To the first table if all of it can be gathered; else to the second, for then users have several rows: false. */
static bool
fill_rows(const MrHistoryStream *stream, const MrTracked *tracked, Snapshot snapshot)
{
	Appender appender;
	bool in_one;

	appender_begin(&appender, stream->delta);
	append_table(&appender, tracked, tracked->source, 1, snapshot);
	in_one = appender.n_written == 0;
	if (in_one)
	{
		(void) mr_writer_close(appender.writer);
		appender.writer = mr_writer_open(stream->target);
	}
	(void) appender_end(&appender);
	return in_one;
}

/* A snapshot that is older than what is read and written here would show rows before and after it. */
static void
check_isolation(void)
{
	if (IsolationUsesXactSnapshot())
		ereport(
			ERROR,
			(errcode(ERRCODE_ACTIVE_SQL_TRANSACTION),
			 errmsg("what users have cannot be gathered in a transaction of isolation level REPEATABLE READ"),
			 errdetail("It must be seen what has been committed when the source is locked."),
			 errhint("Use a transaction of isolation level READ COMMITTED.")));
}

/*
 * Fill the tables from the source, for who holds the stream's lock.  One snapshot says which rows of the tables go and
 * which of the source are counted: a transaction that it shows has its rows in both, one that it does not show appends its
 * own, because every writer knows the stream (for that the source is locked where it did not run).
 */
static void
fill(const MrHistoryStream *stream)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace history fill", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	const char *why;
	MrTracked *tracked;
	Snapshot snapshot;
	MrGuard guard;
	bool in_one;

	check_isolation();
	if (strcmp(stream->status, "running") != 0 && strcmp(stream->status, "filling") != 0)
	{
		LockRelationOid(stream->source, ShareRowExclusiveLock);
		(void) find_all_inheritors(stream->source, ShareRowExclusiveLock, NULL);
	}
	mr_enter(&guard, stream->owner, stream->settings);
	tracked = mr_track_read(stream->command, &why);
	if (why || tracked->source != stream->source || !mr_owns_relation(tracked->source, GetUserId()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("stream \"%s\" cannot keep what users have: %s", stream->name,
						why ? why : "its query reads another table"),
				 errhint("Train the model again.")));
	mr_check_row_security(tracked->source, "what users have");
	CommandCounterIncrement();
	snapshot = RegisterSnapshot(GetLatestSnapshot());
	PushActiveSnapshot(snapshot);
	(void) delete_rows(stream->target);
	(void) delete_rows(stream->delta);
	in_one = fill_rows(stream, tracked, snapshot);
	PopActiveSnapshot();
	UnregisterSnapshot(snapshot);
	CommandCounterIncrement();
	if (!in_one)
		(void) mr_track_fold(stream->target, stream->delta, PG_INT64_MAX);
	mr_leave(&guard);
	mr_stream_set(stream->name, stream->source, "running", "", InvalidOid, tracked->signature);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

/* Is what the tables hold what the query reads?  False, too, if the query fails. */
static bool
is_current(const MrHistoryStream *stream)
{
	const char *why;
	MrTracked *tracked;
	MrGuard guard;

	mr_enter(&guard, stream->owner, stream->settings);
	tracked = mr_track_read(stream->command, &why);
	mr_leave(&guard);
	return why == NULL && mr_track_same(stream->signature, tracked->signature, true);
}

/* The stream by its name, under its lock; 42704 if there is none, 42501 for who is no member of its owner. */
static MrHistoryStream *
lock_stream(const char *name)
{
	MrHistoryStream *stream;

	mr_check_stream_owner(name);
	stream = mr_history_stream(name, NULL, InvalidOid, NULL);
	if (stream)
	{
		(void) mr_state_lock(stream->target, true);
		stream = mr_history_stream(name, NULL, InvalidOid, NULL);
	}
	if (stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("stream \"%s\" does not exist", name),
				 errhint("See " MR_SCHEMA ".streams.")));
	return stream;
}

void
mr_track_refresh(const char *name)
{
	MrHistoryStream *stream = lock_stream(name);

	if (strcmp(stream->status, "running") != 0 || !is_current(stream))
		fill(stream);
}

/* _maintain_history(name text): fill what has to be filled anew, and fold */
Datum
mr_maintain_history(PG_FUNCTION_ARGS)
{
	MrHistoryStream *stream;
	bool is_running;
	uint64 n;

	check_isolation();
	stream = lock_stream(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	is_running = strcmp(stream->status, "running") == 0;
	if (strcmp(stream->status, "filling") == 0 || (is_running && !is_current(stream)))
		fill(stream);
	PushActiveSnapshot(GetTransactionSnapshot());
	n = mr_track_fold(stream->target, stream->delta, PG_INT64_MAX);
	PopActiveSnapshot();
	PG_RETURN_INT64((int64) n);
}

/* ---- what is no INSERT ---- */

/* Does the active snapshot show no row? */
static bool
is_empty(Oid table)
{
	Relation rel = table_open(table, AccessShareLock);
	TableScanDesc scan = table_beginscan(rel, GetActiveSnapshot(), 0, NULL);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	bool found = table_scan_getnextslot(scan, ForwardScanDirection, slot);

	ExecDropSingleTupleTableSlot(slot);
	table_endscan(scan);
	table_close(rel, NoLock);
	return !found;
}

void
mr_track_truncated(const char *name, Oid source, Oid rel)
{
	MrHistoryStream *stream = mr_history_stream(name, NULL, InvalidOid, NULL);
	bool is_left;

	if (stream == NULL)
		return;
	/* Nobody else has rows that are not committed: all are locked out of the table. */
	if (rel == source && mr_state_lock(stream->target, false))
	{
		PushActiveSnapshot(GetLatestSnapshot());
		(void) delete_rows(stream->target);
		(void) delete_rows(stream->delta);
		PopActiveSnapshot();
		CommandCounterIncrement();
		return;
	}
	/* A partition: of that of which all was truncated nothing is left to be wrong. */
	PushActiveSnapshot(GetLatestSnapshot());
	is_left = !is_empty(stream->target) || !is_empty(stream->delta);
	PopActiveSnapshot();
	if (is_left && strcmp(stream->status, "running") == 0)
		mr_stream_set(name, source, "filling", NULL, InvalidOid, NULL);
}

void
mr_track_retyped(Oid source)
{
	ListCell *lc;

	foreach (lc, mr_history_streams(source))
	{
		MrHistoryStream *stream = lfirst(lc);

		mr_track_truncated(stream->name, source, source);
		if (strcmp(stream->status, "running") == 0)
			mr_stream_set(stream->name, source, "filling", NULL, InvalidOid, NULL);
	}
}

/* A partition with what is below it. */
typedef struct Partition
{
	MrHistoryStream *stream;
	Oid rel;
	int n_rows;		 /* 1: has come with its rows; -1: has gone with them */
	char *signature; /* result; NULL: the tables are not up to date, and stay so */
} Partition;

static void
append_partition(void *arg)
{
	Partition *partition = arg;
	MrHistoryStream *stream = partition->stream;
	const char *why;
	MrTracked *tracked;
	Appender appender;
	Snapshot snapshot;
	MrGuard guard;
	uint64 hash;
	ListCell *lc;

	mr_enter(&guard, stream->owner, stream->settings);
	tracked = mr_track_read(stream->command, &why);
	if (why == NULL && mr_track_same(stream->signature, tracked->signature, false))
	{
		snapshot = RegisterSnapshot(GetLatestSnapshot());
		PushActiveSnapshot(snapshot);
		appender_begin(&appender, stream->delta);
		append_table(&appender, tracked, partition->rel, partition->n_rows, snapshot);
		(void) appender_end(&appender);
		PopActiveSnapshot();
		UnregisterSnapshot(snapshot);
		CommandCounterIncrement();
		hash = strtoull(after_blanks(stream->signature, 1), NULL, 10);
		foreach (lc, find_all_inheritors(partition->rel, NoLock, NULL))
			hash += partition->n_rows * relation_hash(lfirst_oid(lc));
		partition->signature = psprintf("%lu " UINT64_FORMAT " %s", strtoul(stream->signature, NULL, 10),
										hash, after_blanks(stream->signature, 2));
	}
	mr_leave(&guard);
}

void
mr_track_partition(Oid source, Oid rel, int n_rows)
{
	ListCell *lc;

	foreach (lc, mr_history_streams(source))
	{
		Partition partition = {lfirst(lc), rel, n_rows, NULL};
		MrHistoryStream *stream = partition.stream;
		ErrorData *error;

		if (strcmp(stream->status, "running") != 0 && strcmp(stream->status, "filling") != 0)
			continue;
		error = mr_attempt(append_partition, &partition);
		if (error)
			ereport(
				WARNING,
				(errcode(error->sqlerrcode),
				 errmsg("stream \"%s\" does not have the rows of \"%s\"", stream->name, get_rel_name(rel)),
				 errdetail("%s", error->message), errhint("CALL millrace.maintain() fills it anew.")));
		else if (partition.signature)
			mr_stream_set(stream->name, source, NULL, NULL, InvalidOid, partition.signature);
	}
}

/* ---- making and dropping ---- */

#define FILL_AT_ONCE 3000000 /* ratings; a source with more is not locked by the way, as a training ends */
#define LOCK_TIMEOUT "5s"

/* What is to be tracked, and how it ended. */
typedef struct Start
{
	const char *model;
	const char *query;
	Oid owner;
	ArrayType *settings;
	int64 n_ratings; /* -1: any number */
	bool is_wanted;	 /* else only where it is easy */
	const char *why; /* result: it was not done; NULL: it was, or is */
	char *name;		 /* result: of the stream */
} Start;

static void
create_tables(const char *name, MrHistoryStream *stream)
{
	static const char *const comments[2] = {
		"What each user has by the ratings of a model, folded; see millrace.streams",
		"What batches have left of what users have, not folded yet; see millrace.streams"};
	static const char *const columns[N_TRACK_COLUMNS][2] = {
		[TRACK_KEY] = {"key", "Id of the user; of a text its hash"},
		[TRACK_USER] = {"\"user\"", "Id of the user if it is a text"},
		[TRACK_ITEMS] = {"items",
						 "His items, each with a number of rows and the sum of their values, packed"}};
	Oid namespace = get_namespace_oid(MR_SCHEMA, false);
	char *dumper;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	/* As the catalog's tables: who has created the extension dumps the database. */
	mr_exec("SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid(extowner)) FROM pg_catalog.pg_extension"
			" WHERE extname = 'millrace'",
			SPI_OK_SELECT, true);
	dumper = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1);
	for (int i = 0; i < 2; i++)
	{
		char *table = psprintf("%s%s", name, i == 0 ? "" : "_delta");

		/* Packed rows do not compress, and are read whole: they stay in their page as long as they fit. */
		mr_exec(psprintf("CREATE TABLE " MR_SCHEMA
						 ".%s (key pg_catalog.int8 NOT NULL, \"user\" pg_catalog.text,"
						 " items pg_catalog.bytea NOT NULL) WITH (toast_tuple_target = %d)",
						 table, (int) TOAST_TUPLE_TARGET_MAIN),
				SPI_OK_UTILITY, false);
		mr_exec(psprintf("ALTER TABLE " MR_SCHEMA ".%s ALTER COLUMN items SET STORAGE EXTERNAL", table),
				SPI_OK_UTILITY, false);
		mr_exec(psprintf("CREATE INDEX ON " MR_SCHEMA ".%s (key)", table), SPI_OK_UTILITY, false);
		mr_exec(psprintf("COMMENT ON TABLE " MR_SCHEMA ".%s IS '%s'", table, comments[i]), SPI_OK_UTILITY,
				false);
		for (int c = 0; c < N_TRACK_COLUMNS; c++)
			mr_exec(psprintf("COMMENT ON COLUMN " MR_SCHEMA ".%s.%s IS '%s'", table, columns[c][0],
							 columns[c][1]),
					SPI_OK_UTILITY, false);
		mr_exec(psprintf("GRANT SELECT ON " MR_SCHEMA ".%s TO %s", table, dumper), SPI_OK_UTILITY, false);
		*(i == 0 ? &stream->target : &stream->delta) = get_relname_relid(table, namespace);
	}
	SPI_finish();
	mr_leave(&guard);
}

static int64
next_number(void)
{
	int64 number;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "sources");
	SPI_connect();
	mr_exec("SELECT pg_catalog.nextval('" MR_SCHEMA ".stream_seq_seq')", SPI_OK_SELECT, false);
	number = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	return number;
}

/* As the owner, who has locked the source: a new stream, its tables not filled. */
static void
create_stream(Start *start, const MrTracked *tracked)
{
	MrHistoryStream stream = {.source = tracked->source,
							  .command = (char *) start->query,
							  .owner = start->owner,
							  .settings = start->settings,
							  .signature = tracked->signature};

	stream.name = psprintf("history_" INT64_FORMAT, next_number());
	create_tables(stream.name, &stream);
	mr_history_put(&stream);
}

static void
start_tracking(void *arg)
{
	Start *start = arg;
	MrTracked *tracked;
	MrHistoryStream *stream;
	MrGuard guard;

	mr_enter(&guard, start->owner, start->settings);
	if (!start->is_wanted)
		(void) set_config_option("lock_timeout", LOCK_TIMEOUT, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE,
								 true, 0, false);
	tracked = mr_track_read(start->query, &start->why);
	if (start->why == NULL && !mr_owns_relation(tracked->source, start->owner))
		start->why = "its owner does not own the table";
	if (start->why == NULL && !start->is_wanted && !mr_is_source(tracked->source))
		start->why = "its table is no source";
	if (start->why == NULL && !start->is_wanted && start->n_ratings > FILL_AT_ONCE)
		start->why = "it has too many rows to be done by the way";
	if (start->why == NULL)
	{
		stream = mr_history_stream(NULL, start->query, start->owner, start->settings);
		if (stream == NULL)
		{
			/* Checks the table, and that it is his.  Who had it locked may have made the stream. */
			DirectFunctionCall1(mr_lock_source, ObjectIdGetDatum(tracked->source));
			stream = mr_history_stream(NULL, start->query, start->owner, start->settings);
		}
		if (stream == NULL)
		{
			create_stream(start, tracked);
			CommandCounterIncrement();
			stream = mr_history_stream(NULL, start->query, start->owner, start->settings);
		}
		start->name = stream->name;
		(void) mr_state_lock(stream->target, true);
		if (strcmp(stream->status, "running") != 0 ||
			!mr_track_same(stream->signature, tracked->signature, true))
			fill(stream);
	}
	mr_leave(&guard);
}

/* The caller may act for the owner, and the ratings are those of one of his models. */
static char *
track(Start *start)
{
	ErrorData *error = NULL;

	if (start->is_wanted)
		start_tracking(start);
	else
		error = mr_attempt(start_tracking, start);
	if (error)
	{
		ereport(
			NOTICE,
			(errmsg("what users have is not kept for model \"%s\": %s", start->model, error->message),
			 errdetail("It is read by the model's ratings query."),
			 errhint("SELECT millrace.track_history(%s) tries again.", quote_literal_cstr(start->model))));
		return NULL;
	}
	if (start->why && start->is_wanted)
		ereport(
			ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("what users have cannot be kept for model \"%s\": %s", start->model, start->why),
			 errdetail("The query is: %s", start->query),
			 errhint(
				 "The ratings must be rows of one table of the model's owner, perhaps with conditions, or "
				 "their sum or count by user and item.  Any others are read by the query itself.")));
	if (start->why && start->n_ratings > FILL_AT_ONCE)
		ereport(NOTICE,
				(errmsg("what users have is not kept for model \"%s\": %s", start->model, start->why),
				 errhint("SELECT millrace.track_history(%s) does it; writers wait meanwhile.",
						 quote_literal_cstr(start->model))));
	return start->why ? NULL : start->name;
}

void
mr_track_model(const char *model, const char *query, Oid owner, ArrayType *settings, int64 n_ratings,
			   bool is_wanted)
{
	Start start = {.model = model,
				   .query = query,
				   .owner = owner,
				   .settings = settings,
				   .n_ratings = n_ratings,
				   .is_wanted = is_wanted};

	(void) track(&start);
}

/* track_history(model text) returns text: the stream's name */
Datum
mr_track_history(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	Start start = {
		.model = name, .owner = mr_model_owner(name, MR_KIND_ALS), .n_ratings = -1, .is_wanted = true};
	MrModel *model;

	PreventCommandIfReadOnly("millrace.track_history()");
	if (!OidIsValid(start.owner))
		mr_model_unknown(name);
	SPI_connect();
	model = mr_model_open(name);
	if (model->query == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" was imported without ratings", name),
				 errhint("Import it with ratings, or train it.")));
	start.query = model->query;
	start.settings = model->settings;
	name = track(&start);
	SPI_finish();
	PG_RETURN_TEXT_P(cstring_to_text(name));
}
