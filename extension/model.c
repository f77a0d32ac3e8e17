/*
 * model.c: factors at rest and in memory: blocks, and what a backend keeps of a model of kind als.
 *
 * The tables are the truth (version.c).  What serving needs of a version is in a cache (cache.c), made when it is stored to
 * be active, or else from its blocks by whoever needs it first.  A backend keeps the models it has used, keyed by the uuid
 * of the version: each call looks up the active version in its own snapshot and so notices a switch by itself.  A model in
 * use is pinned (its pins go with the memory context of who uses it, by an error too) and is freed when it is neither
 * pinned nor wanted.
 */
#include "model.h"

#include <math.h>

#include "access/genam.h"
#include "common/hashfn.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#define BLOCK_ROWS 4096
#define BLOCK_BYTES (32 * 1024 * 1024) /* a block ends at whichever comes first */
#define MAX_OPEN 8					   /* models kept by a backend */

/* Sections of a version's cache: those of a side are at SIDE_SECTION(side). */
enum
{
	SIDE_USERS,
	SIDE_ITEMS,
	SIDE_BASELINE,
	N_SIDES
};

#define TRAINED_ON_RANK 2

#define SECTION_META 0						/* VersionMeta */
#define SIDE_SECTION(side) (1 + 3 * (side)) /* ids: int64 each, or for texts n + 1 starts; */
#define SIDE_BYTES 1						/* then the bytes of texts; */
#define SIDE_FACTORS 2						/* then factors */
#define SECTION_TRAINED_ON SIDE_SECTION(N_SIDES)
#define SECTION_USUAL (SECTION_TRAINED_ON + 1)
#define SECTION_INDEX (SECTION_USUAL + 1) /* of the items, as mrc_index_build() writes it */
#define SECTION_FOLD (SECTION_INDEX + 1)  /* as mrc_fold_prepare() writes it; empty if that fails */

typedef struct VersionMeta
{
	struct
	{
		int64 n;
		int32 rank;
		bool text;
	} sides[N_SIDES];
} VersionMeta;

PG_FUNCTION_INFO_V1(mr_warm);
PG_FUNCTION_INFO_V1(mr_sweep);
PG_FUNCTION_INFO_V1(mr_user_factors);
PG_FUNCTION_INFO_V1(mr_item_factors);

static MrModel *open_models[MAX_OPEN];
static uint64 use_clock = 0;

/* ---- writing ---- */

/* End of the block that starts at row lo. */
static int64
block_end(const MrSide *side, int64 lo)
{
	int64 hi = lo;
	Size n_bytes = 0;

	while (hi < side->ids.n && hi - lo < BLOCK_ROWS && n_bytes < BLOCK_BYTES)
	{
		n_bytes += (side->ids.text ? side->ids.starts[hi + 1] - side->ids.starts[hi] + 4 : 8) +
			side->rank * sizeof(float);
		hi++;
	}
	return hi;
}

static bytea *
encode_block(const MrSide *side, int64 lo, int64 hi)
{
	const MrIds *ids = &side->ids;
	Size n_bytes =
		mrc_block_bytes(ids->text, hi - lo, side->rank, ids->text ? ids->starts[hi] - ids->starts[lo] : 0);
	bytea *block;

	if (n_bytes == 0 || n_bytes > MaxAllocSize - VARHDRSZ)
		elog(ERROR, "a block of factors is too large");
	block = palloc(n_bytes + VARHDRSZ);
	SET_VARSIZE(block, n_bytes + VARHDRSZ);
	mrc_block_encode((unsigned char *) VARDATA(block), ids->text, hi - lo, side->rank,
					 ids->text ? NULL : ids->ints + lo, ids->bytes, ids->text ? ids->starts + lo : NULL,
					 side->factors + lo * side->rank);
	return block;
}

static void
store_side(const char *name, int version, const char *side_name, const MrSide *side)
{
	Oid types[5] = {TEXTOID, INT4OID, TEXTOID, INT4OID, BYTEAOID};
	Datum values[5] = {CStringGetTextDatum(name), Int32GetDatum(version), CStringGetTextDatum(side_name)};
	int block = 0;
	int64 hi;

	for (int64 lo = 0; lo < side->ids.n; lo = hi)
	{
		bytea *data;

		CHECK_FOR_INTERRUPTS();
		hi = block_end(side, lo);
		data = encode_block(side, lo, hi);
		values[3] = Int32GetDatum(block++);
		values[4] = PointerGetDatum(data);
		mr_exec_args(
			"INSERT INTO millrace.factors (model, version, side, block, data) VALUES ($1, $2, $3, $4, $5)",
			SPI_OK_INSERT, false, 5, types, values, NULL);
		pfree(data);
	}
}

/* What the version was trained with; one that was imported has what is usual. */
static void
read_parameters(const char *name, int version, MrAlsSettings *als)
{
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};

	mr_exec_args("SELECT p.key, p.value FROM millrace.model_version AS v, "
				 "pg_catalog.jsonb_each_text(v.parameters) AS p WHERE v.model = $1 AND v.version = $2 "
				 "AND p.key <> 'imported'",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	mr_als_settings_init(als);
	for (uint64 i = 0; i < SPI_processed; i++)
		mr_als_settings_set(als, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
							SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2));
	mr_als_settings_finish(als);
}

/* What is computed from the items, for searches and folds. */
static void
compute_sections(const MrSide *items, const MrcAlsParams *params, MrSection *sections)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace sections", ALLOCSET_DEFAULT_SIZES);
	Size index_bytes = mrc_index_bytes(items->ids.n, items->rank);
	Size fold_bytes = mrc_fold_shared_bytes(items->rank);
	void *index = mr_cache_alloc(index_bytes);
	void *fold = mr_cache_alloc(fold_bytes);
	MemoryContext before = MemoryContextSwitchTo(context);
	MrcPool *pool = mr_pool_create(context, mr_n_threads(0));
	MrcStatus status = mrc_index_build(pool, items->factors, items->ids.n, items->rank, index,
									   mr_cache_alloc(mrc_index_scratch_bytes(items->ids.n)));

	if (status != MRC_OK)
		elog(ERROR, "an index of items failed with status %d", status);
	sections[SECTION_INDEX] = (MrSection){index, index_bytes};
	status =
		mrc_fold_prepare(pool, params, items->factors, items->ids.n, fold,
						 mr_cache_alloc(mrc_fold_prepare_scratch_bytes(items->rank, mrc_pool_size(pool))));
	if (status == MRC_OK)
		sections[SECTION_FOLD] = (MrSection){fold, fold_bytes};
	mr_pool_destroy(pool);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

/* The sections of a version that is in memory; what is made is in the current memory context. */
static void
make_sections(const MrSide *const *sides, const float *trained_on, const float *usual,
			  const MrcAlsParams *params, MrSection *sections)
{
	VersionMeta *meta = palloc0(sizeof(VersionMeta));

	sections[SECTION_META] = (MrSection){meta, sizeof(*meta)};
	for (int i = 0; i < N_SIDES; i++)
	{
		const MrIds *ids = &sides[i]->ids;
		MrSection *section = &sections[SIDE_SECTION(i)];

		meta->sides[i].n = ids->n;
		meta->sides[i].rank = sides[i]->rank;
		meta->sides[i].text = ids->text;
		if (ids->text)
		{
			section[0] = (MrSection){ids->starts, (ids->n + 1) * sizeof(int64)};
			section[SIDE_BYTES] = (MrSection){ids->bytes, ids->starts[ids->n]};
		}
		else
			section[0] = (MrSection){ids->ints, ids->n * sizeof(int64)};
		section[SIDE_FACTORS] = (MrSection){sides[i]->factors, ids->n * sides[i]->rank * sizeof(float)};
	}
	if (trained_on)
		sections[SECTION_TRAINED_ON] =
			(MrSection){trained_on, sides[SIDE_USERS]->ids.n * TRAINED_ON_RANK * sizeof(float)};
	if (usual)
		sections[SECTION_USUAL] = (MrSection){usual, sides[SIDE_ITEMS]->ids.n * sizeof(float)};
	compute_sections(sides[SIDE_ITEMS], params, sections);
}

/* From memory, so that who reads first has nothing to wait for. */
static void
write_cache(const MrNewModel *new_model, int version, const pg_uuid_t *uuid)
{
	MrAlsSettings als;

	const MrSide *sides[N_SIDES] = {&new_model->users, &new_model->items, &new_model->baseline};
	MrSection sections[MR_CACHE_SECTIONS] = {0};
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace version", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);

	PushActiveSnapshot(GetTransactionSnapshot());
	read_parameters(new_model->name, version, &als);
	PopActiveSnapshot();
	MemoryContextSwitchTo(context);
	als.core.rank = new_model->items.rank;
	make_sections(sides, new_model->trained_on, new_model->usual, &als.core, sections);
	mr_cache_write(uuid, MR_CACHE_VERSION, psprintf("model \"%s\"", new_model->name), sections);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

int
mr_model_store(const MrNewModel *new_model)
{
	MrNewVersion new_version = {
		.name = new_model->name,
		.kind = MR_KIND_ALS,
		.owner = new_model->owner,
		.query = new_model->query,
		.settings = new_model->settings,
		.parameters = new_model->parameters,
		.metrics = new_model->metrics,
		.uses = new_model->uses,
		.n_users = new_model->users.ids.n,
		.n_items = new_model->items.ids.n,
		.n_ratings = new_model->n_ratings,
		.n_rows = -1,
		.n_iterations = new_model->n_iterations,
		.iterations = new_model->iterations,
	};
	MrGuard guard;
	pg_uuid_t uuid;
	int version;

	mr_enter_catalog(&guard, "model");
	version = mr_version_store(&new_version, &uuid);
	store_side(new_model->name, version, "user", &new_model->users);
	store_side(new_model->name, version, "item", &new_model->items);
	store_side(new_model->name, version, "baseline", &new_model->baseline);
	if (new_model->trained_on)
	{
		MrSide side = {new_model->users.ids, TRAINED_ON_RANK, (float *) new_model->trained_on};

		store_side(new_model->name, version, "trained_on", &side);
	}
	if (new_model->usual)
	{
		MrSide side = {new_model->items.ids, 1, (float *) new_model->usual};

		store_side(new_model->name, version, "usual", &side);
	}
	if (new_model->activate)
	{
		(void) mr_version_activate(new_model->name, version);
		write_cache(new_model, version, &uuid);
	}
	mr_leave(&guard);
	return version;
}

/* ---- reading blocks ---- */

/* Who reads the blocks of a version, and where to. */
typedef struct Loader
{
	const char *name;
	int version;
	MemoryContext context;
} Loader;

static void
corrupt_block(const Loader *loader, const char *side, int block, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("block %d of side \"%s\" of model \"%s\" version %d is corrupt: %s", block, side,
					loader->name, loader->version, why),
			 errhint("Train the model again, or activate another version.")));
}

/* Append a block to a side; sizes are those of the arrays so far. */
static void
append_block(const Loader *loader, MrSide *side, const char *side_name, int number, const bytea *data,
			 Size *n_string_bytes)
{
	MrIds *ids = &side->ids;
	MrcBlock block;
	const char *why;
	int64 n;

	if (mrc_block_open(&block, (const unsigned char *) VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), &why) !=
		MRC_OK)
		corrupt_block(loader, side_name, number, why);
	if (ids->n > 0 && (block.rank != side->rank || block.text != ids->text))
		corrupt_block(loader, side_name, number, "it does not fit the blocks before it");
	if (block.n_rows > INT32_MAX - ids->n)
		corrupt_block(loader, side_name, number, "there are too many rows");
	side->rank = block.rank;
	ids->text = block.text;
	n = ids->n + block.n_rows;

	MemoryContext before = MemoryContextSwitchTo(loader->context);
	Size factor_bytes = (Size) n * side->rank * sizeof(float) + 1;

	side->factors = mr_grow(side->factors, factor_bytes);
	mrc_block_factors(&block, 0, block.n_rows, side->factors + ids->n * side->rank);
	if (ids->text)
	{
		Size wanted = *n_string_bytes + block.n_id_bytes + 1;

		ids->bytes = mr_grow(ids->bytes, wanted);
		ids->starts = mr_grow(ids->starts, (n + 1) * sizeof(int64));
		for (int64 i = 0; i < block.n_rows; i++)
		{
			size_t n_bytes;
			const char *string = mrc_block_string(&block, i, &n_bytes);

			memcpy(ids->bytes + *n_string_bytes, string, n_bytes);
			ids->starts[ids->n + i] = *n_string_bytes;
			*n_string_bytes += n_bytes;
		}
		ids->starts[n] = *n_string_bytes;
	}
	else
	{
		ids->ints = mr_grow(ids->ints, n * sizeof(int64) + 1);
		for (int64 i = 0; i < block.n_rows; i++)
			ids->ints[ids->n + i] = mrc_block_int(&block, i);
	}
	ids->n = n;
	MemoryContextSwitchTo(before);
}

/* Returns the number of its blocks. */
static int
load_side(const Loader *loader, MrSide *side, const char *side_name, bool optional)
{
	Oid types[3] = {TEXTOID, INT4OID, TEXTOID};
	Datum values[3] = {CStringGetTextDatum(loader->name), Int32GetDatum(loader->version),
					   CStringGetTextDatum(side_name)};
	Size n_string_bytes = 0;
	int number = 0;
	Portal portal = SPI_cursor_open_with_args(
		NULL,
		"SELECT block, data FROM millrace.factors WHERE model = $1 AND version = $2 "
		"AND side = $3 ORDER BY block",
		3, types, values, NULL, true, 0);

	for (;; number++)
	{
		bool null;
		Datum data;
		bytea *block;

		CHECK_FOR_INTERRUPTS();
		SPI_cursor_fetch(portal, true, 1);
		if (SPI_processed == 0)
			break;
		if (DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null)) != number)
			corrupt_block(loader, side_name, number, "it is missing");
		data = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &null);
		block = DatumGetByteaPP(data);
		append_block(loader, side, side_name, number, block, &n_string_bytes);
		if ((Pointer) block != DatumGetPointer(data))
			pfree(block);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	if (number == 0 && !optional)
		corrupt_block(loader, side_name, 0, "it is missing");
	return number;
}

/* One that has so many rows. */
static void
load_rows(const Loader *loader, MrSide *side, const char *side_name, int64 n_rows)
{
	int n_blocks = load_side(loader, side, side_name, false);

	if (side->ids.n < n_rows)
		corrupt_block(loader, side_name, n_blocks, "it is missing");
	if (side->ids.n > n_rows)
		corrupt_block(loader, side_name, n_blocks - 1, "there are too many rows");
}

void
mr_model_items(MrBudget *budget, const char *name, int version, MrSide *items)
{
	Loader loader = {name, version, budget->context};
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};
	MrGuard guard;
	int64 n_bytes;
	bool null;

	memset(items, 0, sizeof(*items));
	mr_enter_catalog(&guard, "model");
	PushActiveSnapshot(GetTransactionSnapshot());
	mr_exec_args("SELECT coalesce(sum(octet_length(data)), 0)::pg_catalog.int8 FROM millrace.factors WHERE "
				 "model = $1 AND version = $2 AND side = 'item'",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	n_bytes = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
	mr_release(budget, mr_reserve(budget, n_bytes)); /* the price */
	(void) load_side(&loader, items, "item", false);
	budget->used_bytes += n_bytes;
	PopActiveSnapshot();
	mr_leave(&guard);
}

void
mr_model_active(const char *name, bool stays, MrActive *active)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;
	HeapTuple row;
	TupleDesc desc;
	bool null;
	Datum value;

	memset(active, 0, sizeof(*active));
	mr_enter_catalog(&guard, "model");
	if (stays)
		mr_model_lock_row(name);
	mr_exec_args("SELECT v.version, EXISTS (SELECT FROM millrace.training_iteration AS i WHERE i.model = "
				 "v.model AND i.version = v.version), (v.parameters->>'seed')::pg_catalog.int8, "
				 "(v.parameters->>'holdout')::pg_catalog.float8, (v.parameters->>'k')::pg_catalog.int4, "
				 "(v.metrics->>'metric_value')::pg_catalog.float8, v.metrics->>'metric', "
				 "v.parameters->>'value_transform' "
				 "FROM millrace.model AS m JOIN millrace.model_version AS v "
				 "ON v.model = m.name AND v.version = m.active WHERE m.name = $1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 0)
		return;
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	active->version = DatumGetInt32(SPI_getbinval(row, desc, 1, &null));
	active->trained = DatumGetBool(SPI_getbinval(row, desc, 2, &null));
	value = SPI_getbinval(row, desc, 3, &null);
	active->seed = null ? 0 : DatumGetInt64(value);
	value = SPI_getbinval(row, desc, 4, &null);
	active->holdout = null ? 0 : DatumGetFloat8(value);
	value = SPI_getbinval(row, desc, 5, &null);
	active->k = null ? 0 : DatumGetInt32(value);
	value = SPI_getbinval(row, desc, 6, &null);
	if (!null)
	{
		active->metric_value = DatumGetFloat8(value);
		active->metric = SPI_getvalue(row, desc, 7);
	}
	active->transform = SPI_getvalue(row, desc, 8);
}

void
mr_model_definition(const char *name, char **query, ArrayType **settings, MrAlsSettings *als)
{
	MrRepeat repeat;
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name)};
	MrGuard guard;

	mr_model_repeat(name, &repeat);
	*query = repeat.query;
	*settings = repeat.settings;
	values[1] = Int32GetDatum(repeat.version);
	mr_enter_catalog(&guard, "model");
	/* What a training has chosen, the next one chooses again. */
	mr_exec_args("SELECT p.key, p.value FROM millrace.model_version AS v, "
				 "pg_catalog.jsonb_each_text(v.parameters) AS p WHERE v.model = $1 AND v.version = $2 "
				 "AND NOT (p.key OPERATOR(pg_catalog.=) 'own_history' AND v.metrics OPERATOR(pg_catalog.?) "
				 "'own_history')",
				 SPI_OK_SELECT, false, 2, types, values, NULL);
	mr_als_settings_init(als);
	for (uint64 i = 0; i < SPI_processed; i++)
		mr_als_settings_set(als, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
							SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2));
	mr_als_settings_finish(als);
	mr_leave(&guard);
}

/* ---- what a backend keeps ---- */

static void
forget(int slot)
{
	MrModel *model = open_models[slot];

	open_models[slot] = NULL;
	MemoryContextDelete(model->context);
}

typedef struct Pin
{
	MemoryContextCallback callback;
	int *n_pins;
} Pin;

static void
unpin(void *arg)
{
	(*((Pin *) arg)->n_pins)--;
}

void
mr_pin(int *n_pins)
{
	Pin *pin = palloc(sizeof(Pin));

	pin->callback.func = unpin;
	pin->callback.arg = pin;
	pin->n_pins = n_pins;
	(*n_pins)++;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &pin->callback);
}

/* A free slot, by forgetting what nobody uses: stale versions first, then the longest unused.  -1: all are pinned. */
static int
free_slot(void)
{
	int oldest = -1;

	for (int i = 0; i < MAX_OPEN; i++)
		if (open_models[i] && open_models[i]->stale && open_models[i]->n_pins == 0)
			forget(i);
	for (int i = 0; i < MAX_OPEN; i++)
	{
		if (open_models[i] == NULL)
			return i;
		if (open_models[i]->n_pins == 0 &&
			(oldest < 0 || open_models[i]->last_use < open_models[oldest]->last_use))
			oldest = i;
	}
	if (oldest >= 0)
		forget(oldest);
	return oldest;
}

/* A model without its factors, in a context of its own. */
static MrModel *
new_model(const char *name, const MrActiveRow *row)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace model", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	MrModel *model = palloc0(sizeof(MrModel));
	Relation rel = table_open(mr_catalog("model_version"), AccessShareLock);
	Datum value;
	bool null;

	model->context = context;
	model->name = pstrdup(name);
	model->version = row->version;
	model->uuid = row->uuid;
	value = mr_column(rel, row->tuple, "query", &null);
	model->query = null ? NULL : TextDatumGetCString(value);
	model->settings = DatumGetArrayTypePCopy(mr_column(rel, row->tuple, "settings", &null));
	table_close(rel, AccessShareLock);
	MemoryContextSwitchTo(before);
	return model;
}

/* ---- what serving needs of a version ---- */

/* Says that it takes a while; reads how many rows the sides have. */
static void
announce(const MrModel *model, int64 *n_users, int64 *n_items)
{
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(model->name), Int32GetDatum(model->version)};
	HeapTuple row;
	TupleDesc desc;
	bool null;

	mr_exec_args("SELECT v.users, v.items, (SELECT coalesce(sum(octet_length(f.data)), 0)::pg_catalog.int8 "
				 "FROM millrace.factors AS f WHERE f.model = v.model AND f.version = v.version) "
				 "FROM millrace.model_version AS v WHERE v.model = $1 AND v.version = $2",
				 SPI_OK_SELECT, true, 2, types, values, NULL);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	*n_users = DatumGetInt64(SPI_getbinval(row, desc, 1, &null));
	*n_items = DatumGetInt64(SPI_getbinval(row, desc, 2, &null));
	ereport(NOTICE,
			(errmsg("preparing model \"%s\" version %d for serving: %.1f MB", model->name, model->version,
					DatumGetInt64(SPI_getbinval(row, desc, 3, &null)) / 1048576.0),
			 errdetail("Once a machine for each version, after that all sessions share it."),
			 errhint("SELECT millrace.warm(%s) does it before somebody waits.",
					 quote_literal_cstr(model->name))));
}

/* An MrCacheBuild: from the blocks. */
static void
build_version(void *arg, MrSection *sections)
{
	MrModel *model = arg;
	Loader loader = {model->name, model->version, CurrentMemoryContext};
	MrSide users = {.rank = 1};
	MrSide items = {.rank = 1};
	MrSide baseline = {.rank = 1};
	MrSide trained_on = {.rank = 1};
	MrSide usual = {.rank = 1};
	const MrSide *sides[N_SIDES] = {&users, &items, &baseline};
	int64 n_users;
	int64 n_items;
	bool is_known;
	bool has_usual;
	MrGuard guard;

	mr_enter_catalog(&guard, "model");
	announce(model, &n_users, &n_items);
	load_rows(&loader, &users, "user", n_users);
	load_rows(&loader, &items, "item", n_items);
	if (model->query)
		(void) load_side(&loader, &baseline, "baseline", false);
	is_known = load_side(&loader, &trained_on, "trained_on", true) > 0;
	has_usual = load_side(&loader, &usual, "usual", true) > 0;
	mr_leave(&guard);
	model->als.core.rank = items.rank;
	if (users.rank != items.rank || baseline.rank != 1)
		corrupt_block(&loader, "item", 0, "its rank is not that of the other side");
	if (is_known && (trained_on.ids.n != users.ids.n || trained_on.rank != TRAINED_ON_RANK))
		corrupt_block(&loader, "trained_on", 0, "it does not fit the users");
	if (has_usual && (usual.ids.n != items.ids.n || usual.rank != 1))
		corrupt_block(&loader, "usual", 0, "it does not fit the items");
	MemoryContextSwitchTo(loader.context);
	make_sections(sides, is_known ? trained_on.factors : NULL, has_usual ? usual.factors : NULL,
				  &model->als.core, sections);
}

/* The arrays of a side are in the cache, and are only read. */
static void
open_side(const MrCache *cache, int i, MrSide *side)
{
	const VersionMeta *meta = cache->sections[SECTION_META].data;
	const MrSection *section = &cache->sections[SIDE_SECTION(i)];

	side->ids.n = meta->sides[i].n;
	side->ids.text = meta->sides[i].text;
	side->rank = meta->sides[i].rank;
	if (side->ids.text)
	{
		side->ids.starts = (int64 *) section[0].data;
		side->ids.bytes = section[SIDE_BYTES].data ? (char *) section[SIDE_BYTES].data : "";
	}
	else
		side->ids.ints = (int64 *) section[0].data;
	side->factors = (float *) section[SIDE_FACTORS].data;
}

static void
open_cache(MrModel *model)
{
	model->cache = mr_cache_open(model->context, &model->uuid, MR_CACHE_VERSION,
								 psprintf("model \"%s\"", model->name), build_version, model);
	open_side(model->cache, SIDE_USERS, &model->users);
	open_side(model->cache, SIDE_ITEMS, &model->items);
	open_side(model->cache, SIDE_BASELINE, &model->baseline);
	model->trained_on = model->cache->sections[SECTION_TRAINED_ON].data;
	model->usual = model->cache->sections[SECTION_USUAL].data;
	mrc_index_open(&model->index, model->items.factors, model->items.ids.n, model->items.rank,
				   model->cache->sections[SECTION_INDEX].data);
	model->fold = model->cache->sections[SECTION_FOLD].data;
}

/* The version among those kept; what is kept of the model's other versions becomes stale. */
static MrModel *
find_open(const char *name, const pg_uuid_t *uuid)
{
	MrModel *found = NULL;

	for (int i = 0; i < MAX_OPEN; i++)
	{
		MrModel *model = open_models[i];

		if (model == NULL)
			continue;
		if (memcmp(&model->uuid, uuid, sizeof(pg_uuid_t)) == 0)
			found = model;
		else if (strcmp(model->name, name) == 0)
			model->stale = true;
	}
	return found;
}

static MrModel *
open_version(const char *name, const MrActiveRow *row)
{
	MrModel *model = new_model(name, row);
	MrGuard guard;

	mr_enter_catalog(&guard, "model");
	read_parameters(name, row->version, &model->als);
	mr_leave(&guard);
	open_cache(model);
	model->als.core.rank = model->items.rank;
	return model;
}

MrModel *
mr_model_open(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	MrModel *model;
	bool is_kept;
	MrActiveRow row;
	int slot;

	mr_active_row(name, MR_KIND_ALS, &row);
	model = find_open(name, &row.uuid);
	is_kept = model != NULL;
	if (!is_kept)
	{
		model = open_version(name, &row);
		MemoryContextSwitchTo(context);
		slot = free_slot();
		if (slot >= 0)
		{
			MemoryContextSetParent(model->context, CacheMemoryContext);
			open_models[slot] = model;
			is_kept = true;
		}
	}
	model->owner = row.owner;
	model->owner_name = row.owner_name;
	model->lists_uuid = row.lists_uuid;
	model->stale = false;
	mr_cache_touch(model->cache);
	if (is_kept) /* else it goes with the caller's context */
	{
		model->last_use = ++use_clock;
		mr_pin(&model->n_pins);
	}
	return model;
}

int64
mr_model_user(const MrModel *model, const MrKey *user)
{
	const MrSide *users = &model->users;
	int64 row = mr_ids_find(&users->ids, user);

	for (int i = 0; row >= 0 && i < users->rank; i++)
		if (users->factors[row * users->rank + i] != 0)
			return row;
	return -1;
}

void
mr_model_enter(MrGuard *guard, const MrModel *model)
{
	if (!mr_is_owner(model->owner, &model->owner_name))
		mr_owner_gone(model->name, &model->owner_name);
	mr_enter(guard, model->owner, model->settings);
}

/* ---- warm ---- */

/* A version that cannot be served is not activated. */
void
mr_model_prepare(const char *name)
{
	PushActiveSnapshot(GetTransactionSnapshot());
	(void) mr_lists_open(mr_model_open(name));
	PopActiveSnapshot();
}

typedef struct Warming
{
	const char *name;
	int64 n_bytes;
} Warming;

static void
warm_model(void *arg)
{
	Warming *warming = arg;
	MrModel *model = mr_model_open(warming->name);

	(void) mr_lists_open(model);
	warming->n_bytes = model->cache->is_shared ? model->cache->n_bytes : 0;
}

/* error: NULL if there is none */
static void
warn_unless_cancelled(const char *name, ErrorData *error)
{
	if (error && error->sqlerrcode == ERRCODE_QUERY_CANCELED)
		ReThrowError(error);
	if (error)
		ereport(
			WARNING,
			(errcode(error->sqlerrcode), errmsg("model \"%s\" cannot be served: %s", name, error->message)));
}

void
mr_model_make_ready(const char *name)
{
	Warming warming = {name};

	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	warn_unless_cancelled(name, mr_attempt(warm_model, &warming));
	PopActiveSnapshot();
	SPI_finish();
}

/* All models that have an active version; one that fails does not keep the others from being served. */
static int64
warm_all(void)
{
	MemoryContext context = CurrentMemoryContext;
	SPITupleTable *names;
	int64 n_bytes = 0;
	MrGuard guard;

	mr_enter_catalog(&guard, "model");
	mr_exec("SELECT name FROM millrace.model WHERE kind = 'als' AND active IS NOT NULL ORDER BY name",
			SPI_OK_SELECT, true);
	mr_leave(&guard);
	names = SPI_tuptable;
	for (uint64 i = 0; i < names->numvals; i++)
	{
		MemoryContext own = AllocSetContextCreate(context, "millrace warming", ALLOCSET_DEFAULT_SIZES);
		Warming warming = {SPI_getvalue(names->vals[i], names->tupdesc, 1)};

		MemoryContextSwitchTo(own);
		warn_unless_cancelled(warming.name, mr_attempt(warm_model, &warming));
		n_bytes += warming.n_bytes;
		MemoryContextSwitchTo(context);
		MemoryContextDelete(own);
	}
	return n_bytes;
}

Datum
mr_warm(PG_FUNCTION_ARGS)
{
	Warming warming = {0};

	SPI_connect();
	if (PG_ARGISNULL(0))
		warming.n_bytes = warm_all();
	else
	{
		warming.name = mr_name_arg(fcinfo, 0, "model");
		if (mr_model_kind(warming.name) == MR_KIND_ALS) /* others need nothing */
			warm_model(&warming);
	}
	mr_cache_sweep();
	SPI_finish();
	PG_RETURN_INT64(warming.n_bytes);
}

/* _sweep_cache(): remove the cache files that nobody wants */
Datum
mr_sweep(PG_FUNCTION_ARGS)
{
	mr_cache_sweep();
	PG_RETURN_VOID();
}

/* ---- factors as rows ---- */

static void
put_side(ReturnSetInfo *rsinfo, const MrSide *side)
{
	MemoryContext row_context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace row", ALLOCSET_DEFAULT_SIZES);
	Datum *elements = palloc(side->rank * sizeof(Datum));

	for (int64 row = 0; row < side->ids.n; row++)
	{
		MemoryContext before = MemoryContextSwitchTo(row_context);
		MrKey key = mr_ids_key(&side->ids, row);
		Datum values[2];
		bool nulls[2] = {false};

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < side->rank; i++)
			elements[i] = Float4GetDatum(side->factors[row * side->rank + i]);
		values[0] = CStringGetTextDatum(mr_key_cstring(&key));
		values[1] = PointerGetDatum(
			construct_array(elements, side->rank, FLOAT4OID, sizeof(float4), true, TYPALIGN_INT));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		MemoryContextSwitchTo(before);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
}

Datum
mr_user_factors(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	put_side((ReturnSetInfo *) fcinfo->resultinfo, &mr_model_open(name)->users);
	SPI_finish();
	PG_RETURN_NULL();
}

Datum
mr_item_factors(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");

	InitMaterializedSRF(fcinfo, 0);
	SPI_connect();
	put_side((ReturnSetInfo *) fcinfo->resultinfo, &mr_model_open(name)->items);
	SPI_finish();
	PG_RETURN_NULL();
}
