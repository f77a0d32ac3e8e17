/*
 * history.c: what users have, live.
 *
 * From the tables that a stream keeps for the model's ratings (track.c), if there is one, if it runs, if what it holds is
 * what the query reads, and if the active snapshot shows the transaction that made it so.  Otherwise by the ratings query,
 * restricted to the users who are asked for, as the model's owner; many users are one query.
 *
 * The tables are read without becoming the owner and without SQL: an index scan for each user, or, of a table that is short
 * beside their number, one scan of all.  But the owner must still be one who may read the source without limits, else the
 * query answers, or its error.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "access/relscan.h"
#include "catalog/pg_class.h"
#include "nodes/nodeFuncs.h"
#include "utils/acl.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(mr_user_history);

/* What is kept with an open model; it goes with the model's context. */
typedef struct MrHistoryReader
{
	MrShape shape;
	MrPlan shape_plan; /* the query as it is */
	MrPlan one_plan;   /* … of user $1 */
	MrPlan many_plan;  /* … of users $1 */
	/* The stream; what is known of it is out of date when the cache entry of one of the relations changes. */
	bool is_checked;
	bool has_stream;
	MemoryContext context; /* of the relations; NULL: never looked */
	List *relations;
	Oid source;
	Oid target;
	Oid delta;
	TransactionId xmin;
	bool user_text;
	bool was_kept; /* the last answer came from there */
	MemoryContextCallback callback;
} MrHistoryReader;

/* One row that was read, of the model's items. */
typedef struct Entry
{
	int32 user; /* place among those who were asked for */
	int32 row;
	int64 n; /* rows of the source that it stands for; what sums to 0 is gone */
	double value;
} Entry;

/* ---- fingerprints ---- */

#define FINGERPRINT_BITS 24 /* of each of two floats, which are integers */
#define FINGERPRINT_MASK ((UINT64CONST(1) << 2 * FINGERPRINT_BITS) - 1)

/* The finalizer of MurmurHash3 (Austin Appleby, public domain). */
static inline uint64
mix(uint64 hash)
{
	hash = (hash ^ hash >> 33) * UINT64CONST(0xFF51AFD7ED558CCD);
	hash = (hash ^ hash >> 33) * UINT64CONST(0xC4CEB9FE1A85EC53);
	return hash ^ hash >> 33;
}

static inline uint64
hash_key(const MrKey *key)
{
	return key->text ? mrc_hash64(key->bytes, key->n_bytes, 0) : mix((uint64) key->value);
}

/* What an item and its value add to a fingerprint. */
static inline uint64
fingerprint_of(uint64 item_hash, float value)
{
	uint32 bits;

	memcpy(&bits, &value, sizeof(bits));
	return value == 0 ? 0 : mix(item_hash + bits * UINT64CONST(0x9E3779B97F4A7C15));
}

uint64
mr_history_hash(const MrKey *item)
{
	return hash_key(item);
}

uint64
mr_history_fingerprint(const MrHistory *history, const uint64 *item_hashes)
{
	uint64 sum = 0;

	for (int64 i = 0; i < history->n; i++)
		sum += fingerprint_of(item_hashes[history->row[i]], history->value[i]);
	return sum & FINGERPRINT_MASK;
}

float *
mr_history_fingerprints(MrBudget *budget, const MrRatings *ratings)
{
	const MrcCsr *csr = &ratings->by_user;
	float *prints = mr_reserve(budget, (csr->n_rows + 1) * 2 * sizeof(float));
	uint64 *hashes = mr_reserve(budget, (csr->n_cols + 1) * sizeof(uint64));

	for (int64 item = 0; item < csr->n_cols; item++)
	{
		MrKey key = mr_ids_key(&ratings->items, item);

		hashes[item] = hash_key(&key);
	}
	for (int64 user = 0; user < csr->n_rows; user++)
	{
		uint64 sum = 0;

		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[user]; e < csr->start[user + 1]; e++)
			sum += fingerprint_of(hashes[csr->index[e]], csr->value[e]);
		sum &= FINGERPRINT_MASK;
		prints[2 * user] = (float) (sum & ((1 << FINGERPRINT_BITS) - 1));
		prints[2 * user + 1] = (float) (sum >> FINGERPRINT_BITS);
	}
	mr_release(budget, hashes);
	return prints;
}

bool
mr_history_is_new(const MrModel *model, int64 user_row, const MrHistory *history)
{
	const float *known;

	if (history->n == 0 || user_row < 0 || model->trained_on == NULL)
		return false;
	known = model->trained_on + 2 * user_row;
	return history->fingerprint != ((uint64) known[0] | (uint64) known[1] << FINGERPRINT_BITS);
}

/* ---- finding ids ---- */

/*
 * Rows of ids.  Few are found by halving; for many there is a table in memory that goes when they have been found: by the
 * id itself where integers lie close together, else by hash.
 */
typedef struct Finder
{
	const MrIds *ids;
	int32 *direct; /* n_direct: row of id base + i, or -1; NULL: not */
	uint64 base;
	uint64 n_direct;
	int32 *slots; /* mask + 1: row, or -1; NULL: not */
	uint64 mask;
} Finder;

#define DIRECT_IDS 8 /* the table is so many times as long as there are ids, at most */
#define FEW_FINDS 16 /* with more ids than so many times what is to be found, a table does not pay */

static void
finder_init(Finder *finder, const MrIds *ids, int64 n_finds)
{
	uint64 size = 16;

	*finder = (Finder){.ids = ids};
	if (ids->n == 0 || ids->n / FEW_FINDS > n_finds)
		return;
	if (!ids->text && (uint64) ids->ints[ids->n - 1] - (uint64) ids->ints[0] < (uint64) ids->n * DIRECT_IDS)
	{
		finder->base = (uint64) ids->ints[0];
		finder->n_direct = (uint64) ids->ints[ids->n - 1] - finder->base + 1;
		finder->direct = MemoryContextAllocHuge(CurrentMemoryContext, finder->n_direct * sizeof(int32));
		memset(finder->direct, -1, finder->n_direct * sizeof(int32));
		for (int64 row = 0; row < ids->n; row++)
			finder->direct[(uint64) ids->ints[row] - finder->base] = (int32) row;
		return;
	}
	while (size < 2 * (uint64) ids->n)
		size *= 2;
	finder->mask = size - 1;
	finder->slots = MemoryContextAllocHuge(CurrentMemoryContext, size * sizeof(int32));
	memset(finder->slots, -1, size * sizeof(int32));
	for (int64 row = 0; row < ids->n; row++)
	{
		MrKey key = mr_ids_key(ids, row);
		uint64 at = hash_key(&key) & finder->mask;

		while (finder->slots[at] >= 0)
			at = (at + 1) & finder->mask;
		finder->slots[at] = (int32) row;
	}
}

/* -1: there is no such id. */
static int64
find(const Finder *finder, const MrKey *wanted)
{
	char space[MR_KEY_SPACE];
	MrKey key;

	if (finder->direct == NULL && finder->slots == NULL)
		return mr_ids_find(finder->ids, wanted);
	if (!mr_key_convert(wanted, finder->ids->text, &key, space))
		return -1;
	if (finder->direct)
	{
		uint64 at = (uint64) key.value - finder->base;

		return at < finder->n_direct ? finder->direct[at] : -1;
	}
	for (uint64 at = hash_key(&key) & finder->mask; finder->slots[at] >= 0; at = (at + 1) & finder->mask)
	{
		MrKey here = mr_ids_key(finder->ids, finder->slots[at]);

		if (mr_same_key(&here, &key))
			return finder->slots[at];
	}
	return -1;
}

/* ---- from entries to histories ---- */

static int
compare_entries(const void *a, const void *b)
{
	return mr_compare_rows(&((const Entry *) a)->row, &((const Entry *) b)->row);
}

/* By row.  What comes from a table of a stream is mostly in order: a long run, then a few that are not. */
static void
sort_entries(Entry *entries, int64 n)
{
	int64 run = 1;
	int64 n_tail;
	Entry *tail;

	while (run < n && entries[run - 1].row <= entries[run].row)
		run++;
	n_tail = n - run;
	if (n_tail == 0)
		return;
	qsort(entries + run, n_tail, sizeof(Entry), compare_entries);
	tail = MemoryContextAllocHuge(CurrentMemoryContext, n_tail * sizeof(Entry));
	memcpy(tail, entries + run, n_tail * sizeof(Entry));
	/* From behind; of equal rows those of the tail come last. */
	while (n_tail > 0)
		if (run > 0 && entries[run - 1].row > tail[n_tail - 1].row)
		{
			entries[run + n_tail - 1] = entries[run - 1];
			run--;
		}
		else
		{
			entries[run + n_tail - 1] = tail[n_tail - 1];
			n_tail--;
		}
	pfree(tail);
}

/* Entries of one user, in any order; they are used up. */
static void
make_history(const MrIds *ids, Entry *entries, int64 n, MemoryContext context, MrHistory *history)
{
	memset(history, 0, sizeof(*history));
	if (n == 0)
		return;
	sort_entries(entries, n);
	history->row = MemoryContextAllocHuge(context, n * (sizeof(int32) + sizeof(float)));
	history->value = (float *) (history->row + n);
	for (int64 i = 0, end; i < n; i = end)
	{
		double sum = 0;
		int64 n_rows = 0;
		MrKey key;

		for (end = i; end < n && entries[end].row == entries[i].row; end++)
		{
			sum += entries[end].value;
			n_rows += entries[end].n;
		}
		if (n_rows <= 0)
			continue;
		history->row[history->n] = entries[i].row;
		history->value[history->n] = (float) Min(Max(sum, -FLT_MAX), FLT_MAX);
		key = ids->text ? mr_ids_key(ids, entries[i].row) : (MrKey){.value = ids->ints[entries[i].row]};
		history->fingerprint += fingerprint_of(hash_key(&key), history->value[history->n]);
		history->n++;
	}
	history->fingerprint &= FINGERPRINT_MASK;
}

/* ---- by the ratings query ---- */

/* A DestReceiver: rows of users, items and values as entries. */
typedef struct QueryReader
{
	DestReceiver dest;
	const MrShape *shape;
	const MrKey *users; /* of the query's kind */
	int64 n_users;
	int32 *slots; /* mask + 1: place of a user, or -1 */
	uint64 mask;
	Finder items;
	Entry *entries;
	int64 n;
	int64 size;
	MemoryContext context; /* of entries */
} QueryReader;

static MrKey
key_of(Datum value, bool is_text)
{
	return is_text ? mr_key_from_text(DatumGetTextPP(value)) : (MrKey){.value = DatumGetInt64(value)};
}

/* The user's place, or where he belongs: the slot. */
static int32 *
user_slot(const QueryReader *reader, const MrKey *key)
{
	uint64 at = hash_key(key) & reader->mask;

	while (reader->slots[at] >= 0 && !mr_same_key(&reader->users[reader->slots[at]], key))
		at = (at + 1) & reader->mask;
	return &reader->slots[at];
}

static void
put_entry(QueryReader *reader, const Entry *entry)
{
	if (reader->n == reader->size)
	{
		reader->size = Max(1024, reader->size * 2);
		reader->entries = reader->entries
			? repalloc_huge(reader->entries, reader->size * sizeof(Entry))
			: MemoryContextAllocHuge(reader->context, reader->size * sizeof(Entry));
	}
	reader->entries[reader->n++] = *entry;
}

static bool
receive_row(TupleTableSlot *slot, DestReceiver *self)
{
	QueryReader *reader = (QueryReader *) self;
	Entry entry = {.n = 1, .value = 1};
	MrKey key;

	slot_getallattrs(slot);
	if (slot->tts_isnull[0] || slot->tts_isnull[1])
		return true;
	key = key_of(slot->tts_values[1], reader->shape->item_text);
	entry.row = (int32) find(&reader->items, &key);
	if (entry.row < 0)
		return true;
	key = key_of(slot->tts_values[0], reader->shape->user_text);
	entry.user = *user_slot(reader, &key);
	if (entry.user < 0)
		return true; /* equal by a collation only */
	if (reader->shape->n_columns > 2)
	{
		entry.value = slot->tts_isnull[2]
			? 0
			: mr_number_of(CurrentMemoryContext, slot->tts_values[2], reader->shape->value_type);
		/* As a training reads it. */
		entry.value = fabs(entry.value) <= FLT_MAX ? (float) entry.value : 0;
	}
	put_entry(reader, &entry);
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

/* An array of the user's own type: the executor hashes it only if what it is compared with is of the type of its elements. */
static Oid
array_type(const MrShape *shape)
{
	if (shape->user_text)
		return TEXTARRAYOID;
	return shape->user_type == INT2OID ? INT2ARRAYOID
		: shape->user_type == INT4OID  ? INT4ARRAYOID
									   : INT8ARRAYOID;
}

/*
 * The plan that reads what users have; the caller has become the model's owner.  The query's own plan comes first: it locks
 * the relations and tells whether the columns have changed.
 */
static SPIPlanPtr
query_plan(const MrModel *model, bool many)
{
	MrHistoryReader *kept = model->history;
	MrShape shape = mr_ratings_shape(mr_prepare(&kept->shape_plan.plan, model->query, 0, NULL), "ratings");
	Oid type = many ? array_type(&shape) : shape.user_text ? TEXTOID : INT8OID;
	MrPlan *plan = many ? &kept->many_plan : &kept->one_plan;
	char *columns;

	if (shape.user_type != kept->shape.user_type || shape.item_text != kept->shape.item_text ||
		shape.value_type != kept->shape.value_type || shape.n_columns != kept->shape.n_columns)
	{
		MrPlan *plans[2] = {&kept->one_plan, &kept->many_plan};

		for (int i = 0; i < 2; i++)
			if (plans[i]->plan)
			{
				SPI_freeplan(plans[i]->plan);
				plans[i]->plan = NULL;
			}
		kept->shape = shape;
	}
	columns = psprintf("q.u::pg_catalog.%s, q.i::pg_catalog.%s%s", shape.user_text ? "text" : "int8",
					   shape.item_text ? "text" : "int8", shape.n_columns > 2 ? ", q.v" : "");
	return mr_prepare(&plan->plan,
					  mr_ratings_select(&shape, columns, model->query,
										many ? "WHERE q.u OPERATOR(pg_catalog.=) ANY ($1)"
											 : "WHERE q.u OPERATOR(pg_catalog.=) $1"),
					  1, &type);
}

static Datum
key_datum(const MrKey *key)
{
	return key->text ? PointerGetDatum(cstring_to_text_with_len(key->bytes, key->n_bytes))
					 : Int64GetDatum(key->value);
}

/* Nobody is a text without bytes. */
static bool
is_askable(const MrKey *user, bool is_text)
{
	return user->text == is_text && (!is_text || user->n_bytes > 0);
}

#define HASHED_USERS 9 /* fewer constants are compared one by one (MIN_ARRAY_SIZE_FOR_HASHED_SAOP) */

/*
 * Users as an array of the type of the plan's argument; who is not of its range has no rows.  Many are planned as constants,
 * which are hashed where there is no index: a plan for any array compares each row with each user.
 */
static Datum
users_array(const QueryReader *reader, SPIPlanPtr plan, Datum *users, int64 n)
{
	Oid type = get_element_type(SPI_getargtypeid(plan, 0));
	CachedPlanSource *source = linitial(SPI_plan_get_plan_sources(plan));
	int64 limit = type == INT2OID ? INT16_MAX : type == INT4OID ? INT32_MAX : INT64_MAX;
	int64 n_kept = 0;
	int16 length;
	bool by_value;
	char align;

	if (n >= HASHED_USERS)
		source->cursor_options |= CURSOR_OPT_CUSTOM_PLAN;
	else
		source->cursor_options &= ~CURSOR_OPT_CUSTOM_PLAN;
	for (int64 i = 0; i < n; i++)
		if (reader->shape->user_text ||
			(DatumGetInt64(users[i]) <= limit && DatumGetInt64(users[i]) >= -limit - 1))
			users[n_kept++] = type == INT2OID ? Int16GetDatum((int16) DatumGetInt64(users[i]))
				: type == INT4OID			  ? Int32GetDatum((int32) DatumGetInt64(users[i]))
											  : users[i];
	get_typlenbyvalalign(type, &length, &by_value, &align);
	return PointerGetDatum(construct_array(users, (int) n_kept, type, length, by_value, align));
}

static void
run_query(QueryReader *reader, SPIPlanPtr plan, int64 n_known)
{
	SPIExecuteOptions options = {.read_only = true, .dest = &reader->dest};
	ParamListInfo params = makeParamList(1);
	Datum *values = MemoryContextAllocHuge(CurrentMemoryContext, (n_known + 1) * sizeof(Datum));
	bool is_text = reader->shape->user_text;
	int64 n = 0;

	for (int64 i = 0; i < reader->n_users; i++)
		if (is_askable(&reader->users[i], is_text))
			values[n++] = key_datum(&reader->users[i]);
	params->params[0] = (ParamExternData){.pflags = PARAM_FLAG_CONST, .ptype = SPI_getargtypeid(plan, 0)};
	if (SPI_getargtypeid(plan, 0) == (is_text ? TEXTOID : INT8OID))
		params->params[0].value = values[0];
	else
		params->params[0].value = users_array(reader, plan, values, n);
	options.params = params;
	reader->dest = (DestReceiver){receive_row, receive_start, receive_end, receive_end, DestNone};
	if (SPI_execute_plan_extended(plan, &options) < 0)
		elog(ERROR, "what users have cannot be read");
}

/* Users as the query's kind, hashed; of one who cannot be of that kind the key keeps its own.  Returns how many can be. */
static int64
convert_users(QueryReader *reader, const MrKey *users, int64 n_users)
{
	MrKey *converted = MemoryContextAllocHuge(CurrentMemoryContext, (n_users + 1) * sizeof(MrKey));
	bool is_text = reader->shape->user_text;
	uint64 size = 4;
	int64 n_known = 0;

	while (size < 2 * (uint64) n_users)
		size *= 2;
	reader->mask = size - 1;
	reader->slots = MemoryContextAllocHuge(CurrentMemoryContext, size * sizeof(int32));
	memset(reader->slots, -1, size * sizeof(int32));
	reader->users = converted;
	reader->n_users = n_users;
	for (int64 i = 0; i < n_users; i++)
	{
		char *space = users[i].text == is_text ? NULL : palloc(MR_KEY_SPACE);

		converted[i] = users[i];
		if (!mr_key_convert(&users[i], is_text, &converted[i], space) || !is_askable(&converted[i], is_text))
			continue;
		n_known++;
		*user_slot(reader, &converted[i]) = (int32) i;
	}
	return n_known;
}

/* Entries of each user side by side, then a history each. */
static void
make_histories(const MrModel *model, QueryReader *reader, MemoryContext context, MrHistory *histories)
{
	int64 *start = MemoryContextAllocHuge(CurrentMemoryContext, (reader->n_users + 2) * sizeof(int64));
	Entry *sorted = MemoryContextAllocHuge(CurrentMemoryContext, (reader->n + 1) * sizeof(Entry));

	memset(start, 0, (reader->n_users + 2) * sizeof(int64));
	for (int64 i = 0; i < reader->n; i++)
		start[reader->entries[i].user + 2]++;
	for (int64 user = 0; user < reader->n_users; user++)
		start[user + 2] += start[user + 1];
	for (int64 i = 0; i < reader->n; i++)
		sorted[start[reader->entries[i].user + 1]++] = reader->entries[i];
	for (int64 user = 0; user < reader->n_users; user++)
		make_history(&model->items.ids, sorted + start[user], start[user + 1] - start[user], context,
					 &histories[user]);
}

static void
read_error_context(void *arg)
{
	errcontext("reading what a user already has, by the ratings of model \"%s\"", ((MrModel *) arg)->name);
}

static void
read_by_query(MrModel *model, const MrKey *users, int64 n_users, MemoryContext context, MrHistory *histories)
{
	ErrorContextCallback callback = {error_context_stack, read_error_context, model};
	MrHistoryReader *kept = model->history;
	QueryReader reader = {.shape = &kept->shape};
	SPIPlanPtr plan;
	int64 n_known;
	MrGuard guard;

	error_context_stack = &callback;
	mr_model_enter(&guard, model);
	plan = query_plan(model, n_users > 1);
	n_known = convert_users(&reader, users, n_users);
	if (n_known > 0)
	{
		reader.context = CurrentMemoryContext;
		finder_init(&reader.items, &model->items.ids, n_users > 1 ? n_users * 64 : 1);
		run_query(&reader, plan, n_known);
	}
	mr_leave(&guard);
	make_histories(model, &reader, context, histories);
	error_context_stack = callback.previous;
}

/* ---- from the tables of a stream ---- */

static List *readers = NIL; /* of the models that are open */

static void
invalidate_relation(Datum arg, Oid relid)
{
	ListCell *lc;

	foreach (lc, readers)
	{
		MrHistoryReader *reader = lfirst(lc);

		if (!OidIsValid(relid) || list_member_oid(reader->relations, relid))
			reader->is_checked = false;
	}
}

/* A function changed. */
static void
invalidate_all(Datum arg, int cache, uint32 hash)
{
	invalidate_relation(arg, InvalidOid);
}

static void
forget_reader(void *arg)
{
	readers = list_delete_ptr(readers, arg);
}

static void
make_reader(MrModel *model)
{
	static bool registered = false;
	MrHistoryReader *reader = MemoryContextAllocZero(model->context, sizeof(MrHistoryReader));
	MemoryContext before;

	if (!registered)
	{
		CacheRegisterRelcacheCallback(invalidate_relation, (Datum) 0);
		CacheRegisterSyscacheCallback(PROCOID, invalidate_all, (Datum) 0);
		registered = true;
	}
	mr_plan_init(&reader->shape_plan, model->context);
	mr_plan_init(&reader->one_plan, model->context);
	mr_plan_init(&reader->many_plan, model->context);
	before = MemoryContextSwitchTo(TopMemoryContext);
	readers = lappend(readers, reader);
	MemoryContextSwitchTo(before);
	reader->callback.func = forget_reader;
	reader->callback.arg = reader;
	MemoryContextRegisterResetCallback(model->context, &reader->callback);
	model->history = reader;
}

/* Look for the model's stream, and whether its tables hold what the query reads now. */
static void
check_stream(const MrModel *model)
{
	MrHistoryReader *reader = model->history;
	MemoryContext before;
	MrHistoryStream *stream;
	MrTracked *tracked;
	const char *why;
	MrGuard guard;

	mr_model_enter(&guard, model);
	tracked = mr_track_read(model->query, &why);
	mr_leave(&guard);
	reader->relations = NIL;
	reader->has_stream = false;
	if (reader->context)
		MemoryContextReset(reader->context);
	else
		reader->context = AllocSetContextCreate(model->context, "millrace history", ALLOCSET_SMALL_SIZES);
	before = MemoryContextSwitchTo(reader->context);
	reader->relations = list_copy(tracked->relations);
	MemoryContextSwitchTo(before);
	/* From here on a change of one of them is noticed. */
	reader->is_checked = true;
	stream = why ? NULL : mr_history_stream(NULL, model->query, model->owner, model->settings);
	if (stream == NULL)
		return;
	reader->source = stream->source;
	reader->target = stream->target;
	reader->delta = stream->delta;
	reader->xmin = stream->xmin;
	reader->user_text =
		getBaseType(exprType(tracked->user)) == TEXTOID || getBaseType(exprType(tracked->user)) == VARCHAROID;
	before = MemoryContextSwitchTo(reader->context);
	reader->relations = lappend_oid(lappend_oid(reader->relations, stream->target), stream->delta);
	MemoryContextSwitchTo(before);
	reader->has_stream = strcmp(stream->status, "running") == 0 && stream->source == tracked->source &&
		mr_track_same(stream->signature, tracked->signature, true);
}

/* May the owner read all rows of the source? */
static bool
may_read(const MrModel *model)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(model->history->source));
	const char *owner = GetUserNameFromId(model->owner, true);
	Form_pg_class form;
	bool result;

	if (!HeapTupleIsValid(tuple))
		return false;
	form = (Form_pg_class) GETSTRUCT(tuple);
	result = owner && strcmp(owner, NameStr(model->owner_name)) == 0 &&
		has_privs_of_role(model->owner, form->relowner) &&
		!(form->relrowsecurity && form->relforcerowsecurity);
	ReleaseSysCache(tuple);
	return result;
}

/* Does the active snapshot show who made the stream as it is? */
static bool
is_visible(TransactionId xmin)
{
	return !TransactionIdIsNormal(xmin) || TransactionIdIsCurrentTransactionId(xmin) ||
		!XidInMVCCSnapshot(xmin, GetActiveSnapshot());
}

/* Users in the order of the index, so that one is found where the one before was. */
typedef struct Place
{
	uint64 key;
	int32 user;
} Place;

static int
compare_places(const void *a, const void *b)
{
	int64 key_a = (int64) ((const Place *) a)->key;
	int64 key_b = (int64) ((const Place *) b)->key;

	return (key_a > key_b) - (key_a < key_b);
}

/* Entries of one user from one table. */
static void
read_rows(MrTrackScan *scan, const MrKey *user, QueryReader *reader)
{
	MrPiece piece;

	mr_track_scan_user(scan, user);
	while (mr_track_scan_next(scan))
		while (mr_unpack_next(&scan->unpack, &piece))
		{
			int64 row = find(&reader->items, &piece.item);

			if (row >= 0)
				put_entry(reader, &(Entry){.row = (int32) row, .n = piece.n_rows, .value = piece.value});
		}
}

static void
read_users(const MrModel *model, MrTrackScan *scans, const MrKey *users, int64 n_users, MemoryContext context,
		   MrHistory *histories)
{
	QueryReader reader = {.context = CurrentMemoryContext};
	Place *places = MemoryContextAllocHuge(CurrentMemoryContext, n_users * sizeof(Place));
	MrKey *keys = MemoryContextAllocHuge(CurrentMemoryContext, n_users * sizeof(MrKey));

	finder_init(&reader.items, &model->items.ids, n_users > 1 ? n_users * 64 : 1);
	for (int64 i = 0; i < n_users; i++)
	{
		char *space = users[i].text == model->history->user_text ? NULL : palloc(MR_KEY_SPACE);

		/* A text without bytes is nobody. */
		if (!mr_key_convert(&users[i], model->history->user_text, &keys[i], space))
			keys[i] = (MrKey){.text = true};
		places[i] = (Place){mr_track_key(&keys[i]), (int32) i};
	}
	if (n_users > 1)
		qsort(places, n_users, sizeof(Place), compare_places);
	for (int64 i = 0; i < n_users; i++)
	{
		const MrKey *user = &keys[places[i].user];

		CHECK_FOR_INTERRUPTS();
		reader.n = 0;
		if (!user->text || user->n_bytes > 0)
			for (int j = 0; j < 2; j++)
				read_rows(&scans[j], user, &reader);
		make_history(&model->items.ids, reader.entries, reader.n, context, &histories[places[i].user]);
	}
}

/* False: the query has to be asked. */
static bool
read_by_stream(MrModel *model, const MrKey *users, int64 n_users, MemoryContext context, MrHistory *histories)
{
	MrHistoryReader *reader = model->history;
	MrTrackScan scans[2] = {0};
	bool is_open[2] = {false, false};
	bool is_good;

	/* What others have changed becomes known when the tables are locked. */
	for (int attempt = 0; attempt < 3; attempt++)
	{
		if (!reader->is_checked)
			check_stream(model);
		if (!reader->has_stream || !is_visible(reader->xmin) || !may_read(model))
			return false;
		is_open[0] = mr_track_scan_begin(&scans[0], reader->target);
		is_open[1] = is_open[0] && mr_track_scan_begin(&scans[1], reader->delta);
		is_good = reader->is_checked && is_open[1];
		if (is_good)
			read_users(model, scans, users, n_users, context, histories);
		for (int i = 0; i < 2; i++)
			if (is_open[i])
				mr_track_scan_end(&scans[i]);
		if (is_good)
			return true;
		reader->is_checked = false;
	}
	return false;
}

/* ---- reading ---- */

void
mr_history_read(MrModel *model, const MrKey *users, int64 n_users, MrHistory *histories)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext scratch;

	if (n_users == 0 || model->query == NULL)
	{
		memset(histories, 0, n_users * sizeof(MrHistory));
		return;
	}
	if (n_users > INT32_MAX)
		elog(ERROR, "too many users at once");
	if (model->history == NULL)
		make_reader(model);
	scratch = AllocSetContextCreate(CurrentMemoryContext, "millrace history", ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(scratch);
	model->history->was_kept = read_by_stream(model, users, n_users, context, histories);
	if (!model->history->was_kept)
	{
		SPI_connect();
		MemoryContextSwitchTo(scratch);
		read_by_query(model, users, n_users, context, histories);
		SPI_finish();
	}
	MemoryContextSwitchTo(context);
	MemoryContextDelete(scratch);
}

bool
mr_history_is_kept(MrModel *model)
{
	if (model->query == NULL)
		return false;
	if (model->history == NULL)
		make_reader(model);
	if (!model->history->is_checked)
		check_stream(model);
	return model->history->has_stream && is_visible(model->history->xmin) && may_read(model);
}

/* ---- SQL ---- */

/* user_history(model text, users text[]) */
Datum
mr_user_history(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	MrModel *model;
	MrHistory *histories;
	MrKey *keys;
	Datum *users;
	bool *nulls;
	int n_users = 0;
	int n = 0;

	if (!OidIsValid(mr_model_owner(name, MR_KIND_ALS)))
		mr_model_unknown(name);
	InitMaterializedSRF(fcinfo, 0);
	if (!PG_ARGISNULL(1))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(1), TEXTOID, -1, false, TYPALIGN_INT, &users, &nulls,
						  &n_users);
	keys = palloc(n_users * sizeof(MrKey) + 1);
	for (int i = 0; i < n_users; i++)
		if (!nulls[i])
			keys[n++] = mr_key_from_text(DatumGetTextPP(users[i]));
	histories = palloc(n * sizeof(MrHistory) + 1);
	SPI_connect();
	model = mr_model_open(name);
	mr_history_read(model, keys, n, histories);
	for (int i = 0; i < n; i++)
	{
		const MrHistory *history = &histories[i];
		int64 user_row = mr_model_user(model, &keys[i]);

		for (int64 j = 0; j < history->n; j++)
		{
			MrKey item = mr_ids_key(&model->items.ids, history->row[j]);
			Datum values[5] = {CStringGetTextDatum(mr_key_cstring(&keys[i])),
							   CStringGetTextDatum(mr_key_cstring(&item)), Float4GetDatum(history->value[j]),
							   BoolGetDatum(mr_history_is_new(model, user_row, history)),
							   BoolGetDatum(model->history->was_kept)};
			bool is_null[5] = {false, false, false, user_row < 0, false};

			CHECK_FOR_INTERRUPTS();
			tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, is_null);
		}
	}
	SPI_finish();
	PG_RETURN_NULL();
}
