/*
 * model.c: models at rest and in memory: versions, blocks, rights, and what a backend keeps of a model.
 *
 * The tables are the truth.  A version's factors are written once and never changed; what is active stands in the
 * model's own row, so a switch is one update and readers see the old version until it commits.  All writes are done
 * as the owner of the tables, after this file has checked that the caller may.
 *
 * A backend keeps the models it has used, keyed by the uuid of the version: each call looks up the active version in
 * its own snapshot and so notices a switch by itself.  A model in use is pinned (its pins go with the memory context of
 * who uses it, by an error too) and is freed when it is neither pinned nor wanted.
 */
#include "model.h"

#include <math.h>

#include "common/hashfn.h"
#include "storage/lock.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/snapmgr.h"

#define BLOCK_ROWS 4096
#define BLOCK_BYTES (32 * 1024 * 1024) /* a block ends at whichever comes first */
#define MAX_OPEN 8					   /* models kept by a backend */
#define LOCK_CLASS 3				   /* of advisory locks: 1 and 2 are SQL's own */

PG_FUNCTION_INFO_V1(mr_activate);
PG_FUNCTION_INFO_V1(mr_rollback);
PG_FUNCTION_INFO_V1(mr_prune);
PG_FUNCTION_INFO_V1(mr_drop_model);
PG_FUNCTION_INFO_V1(mr_user_factors);
PG_FUNCTION_INFO_V1(mr_item_factors);

static MrModel *open_models[MAX_OPEN];
static uint64 use_clock = 0;

char *
mr_name_arg(FunctionCallInfo fcinfo, int n, const char *argument)
{
	char *name = PG_ARGISNULL(n) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(n));

	if (name == NULL || name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be %s", argument, name ? "empty" : "NULL")));
	return name;
}

void
mr_model_unknown(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("model \"%s\" does not exist", name),
			 errhint("SELECT name, version, active FROM millrace.models lists the models.")));
}

/* ---- rights and locks ---- */

/*
 * Whether the role is there and has the name it had.  Without the name, the number that a dropped role leaves behind
 * could mean another role after a restore.
 */
static bool
is_owner(Oid owner, const NameData *owner_name)
{
	char *name = GetUserNameFromId(owner, true);

	return name && strcmp(name, NameStr(*owner_name)) == 0;
}

static void
owner_gone(const char *name, const NameData *owner_name)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_UNDEFINED_OBJECT),
		 errmsg("owner \"%s\" of model \"%s\" does not exist or was renamed", NameStr(*owner_name), name),
		 errhint("A superuser may drop the model, to be trained again, or, if the role was renamed: UPDATE "
				 "millrace.model SET owner_name = pg_get_userbyid(owner) WHERE name = %s.",
				 quote_literal_cstr(name))));
}

/* The caller may change the model; returns its owner, read with a new snapshot, or InvalidOid if there is no model. */
static Oid
check_owner(const char *name, bool gone_ok)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Oid owner = InvalidOid;
	NameData owner_name;
	bool null;
	MrGuard guard;

	SPI_connect();
	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT owner, owner_name FROM millrace.model WHERE name = $1", SPI_OK_SELECT, false, 1,
				 types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 1)
	{
		owner = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
		owner_name = *DatumGetName(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &null));
	}
	SPI_finish();
	if (!OidIsValid(owner))
		return owner;
	if (!is_owner(owner, &owner_name))
	{
		if (!gone_ok || !superuser())
			owner_gone(name, &owner_name);
	}
	else if (!has_privs_of_role(GetUserId(), owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of model \"%s\"", name)));
	return owner;
}

Oid
mr_model_owner(const char *name)
{
	return check_owner(name, false);
}

Oid
mr_model_lock(const char *name, bool gone_ok)
{
	uint64 key = hash_bytes_extended((const unsigned char *) name, strlen(name), 0);
	LOCKTAG tag;

	SET_LOCKTAG_ADVISORY(tag, MyDatabaseId, (uint32) (key >> 32), (uint32) key, LOCK_CLASS);
	if (LockAcquire(&tag, ExclusiveLock, false, true) == LOCKACQUIRE_NOT_AVAIL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("model \"%s\" is being changed by another session", name),
				 errdetail("Another transaction trains, prunes or drops it."),
				 errhint("Try again when that transaction has ended.")));
	return check_owner(name, gone_ok);
}

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

/* Take the next version number, creating the model's row if it is new. */
static int
next_version(const MrNewModel *new_model)
{
	Oid types[2] = {TEXTOID, REGROLEOID};
	Datum values[2] = {CStringGetTextDatum(new_model->name), ObjectIdGetDatum(new_model->owner)};
	bool null;

	mr_exec_args("INSERT INTO millrace.model AS m (name, kind, owner, owner_name, last_version) VALUES ($1, "
				 "'als', $2, pg_get_userbyid($2), 1) "
				 "ON CONFLICT (name) DO UPDATE SET last_version = m.last_version + 1 RETURNING last_version",
				 SPI_OK_INSERT_RETURNING, false, 2, types, values, NULL);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
}

static void
store_version(const MrNewModel *new_model, int version)
{
	Oid types[9] = {TEXTOID, INT4OID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID, INT8OID, INT8OID, INT8OID};
	Datum values[9] = {CStringGetTextDatum(new_model->name),
					   Int32GetDatum(version),
					   CStringGetTextDatum(new_model->query ? new_model->query : ""),
					   PointerGetDatum(new_model->settings),
					   CStringGetTextDatum(new_model->parameters),
					   CStringGetTextDatum(new_model->metrics),
					   Int64GetDatum(new_model->users.ids.n),
					   Int64GetDatum(new_model->items.ids.n),
					   Int64GetDatum(new_model->n_ratings)};

	mr_exec_args("INSERT INTO millrace.model_version (model, version, query, settings, parameters, metrics, "
				 "users, items, "
				 "ratings) VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb, $7, $8, $9)",
				 SPI_OK_INSERT, false, 9, types, values, new_model->query ? NULL : "  n      ");
}

static void
store_iterations(const MrNewModel *new_model, int version)
{
	Oid types[6] = {TEXTOID, INT4OID, INT4OID, FLOAT8OID, FLOAT8OID, FLOAT8OID};
	Datum values[6] = {CStringGetTextDatum(new_model->name), Int32GetDatum(version)};

	for (int i = 0; i < new_model->n_iterations; i++)
	{
		const MrIteration *iteration = &new_model->iterations[i];

		CHECK_FOR_INTERRUPTS();
		values[2] = Int32GetDatum(i + 1);
		values[3] = Float8GetDatum(iteration->loss);
		values[4] = Float8GetDatum(iteration->metric);
		values[5] = Float8GetDatum(iteration->seconds);
		mr_exec_args(
			"INSERT INTO millrace.training_iteration (model, version, iteration, loss, metric, seconds) "
			"VALUES ($1, $2, $3, $4, $5, $6)",
			SPI_OK_INSERT, false, 6, types, values, isnan(iteration->metric) ? "    n " : NULL);
	}
}

/* Catalog writes by name and version; the caller has entered the catalog. */
static void
exec_for_version(const char *sql, int expected, const char *name, int version)
{
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};

	mr_exec_args(sql, expected, false, 2, types, values, NULL);
}

/* False if there is no such version. */
static bool
set_active(const char *name, int version)
{
	exec_for_version("UPDATE millrace.model_version SET activated = clock_timestamp() WHERE model = $1 AND "
					 "version = $2",
					 SPI_OK_UPDATE, name, version);
	if (SPI_processed == 0)
		return false;
	exec_for_version("UPDATE millrace.model SET active = $2, lists = gen_random_uuid() WHERE name = $1",
					 SPI_OK_UPDATE, name, version);
	return true;
}

int
mr_model_store(const MrNewModel *new_model)
{
	MrGuard guard;
	int version;

	mr_enter_catalog(&guard, "model");
	version = next_version(new_model);
	store_version(new_model, version);
	store_side(new_model->name, version, "user", &new_model->users);
	store_side(new_model->name, version, "item", &new_model->items);
	store_side(new_model->name, version, "baseline", &new_model->baseline);
	store_iterations(new_model, version);
	if (new_model->activate)
		(void) set_active(new_model->name, version);
	mr_leave(&guard);
	return version;
}

/* Keeps what is active, and the versions that may become so, from changing until the transaction ends. */
static void
lock_row(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	mr_exec_args("SELECT FROM millrace.model WHERE name = $1 FOR UPDATE", SPI_OK_SELECT, false, 1, types,
				 values, NULL);
}

Datum
mr_activate(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrGuard guard;
	bool found;

	PreventCommandIfReadOnly("millrace.activate()");
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("version must not be NULL")));
	if (!OidIsValid(check_owner(name, true)))
		mr_model_unknown(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	lock_row(name);
	found = set_active(name, PG_GETARG_INT32(1));
	mr_leave(&guard);
	SPI_finish();
	if (!found)
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("model \"%s\" has no version %d", name, PG_GETARG_INT32(1)),
			 errhint(
				 "SELECT version, active, created FROM millrace.models WHERE name = %s lists its versions.",
				 quote_literal_cstr(name))));
	PG_RETURN_VOID();
}

/*
 * The version before the active one: the one with the greatest number below that was active at some time, so that it is
 * none that a gate refused.
 */
#define EARLIER_VERSION                                                                               \
	"(SELECT max(e.version) FROM millrace.model_version AS e WHERE e.model = m.name AND e.version < " \
	"m.active "                                                                                       \
	"AND e.activated IS NOT NULL)"

Datum
mr_rollback(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;
	int version;
	bool none;

	PreventCommandIfReadOnly("millrace.rollback()");
	if (!OidIsValid(check_owner(name, true)))
		mr_model_unknown(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	lock_row(name);
	mr_exec_args("SELECT " EARLIER_VERSION " FROM millrace.model AS m WHERE m.name = $1", SPI_OK_SELECT,
				 false, 1, types, values, NULL);
	if (SPI_processed == 0) /* dropped just now */
		mr_model_unknown(name);
	version = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &none));
	if (none)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no earlier version to go back to", name),
				 errhint("SELECT version, active, activated FROM millrace.models WHERE name = %s lists its "
						 "versions.",
						 quote_literal_cstr(name))));
	(void) set_active(name, version);
	mr_leave(&guard);
	SPI_finish();
	PG_RETURN_INT32(version);
}

Datum
mr_prune(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrGuard guard;
	uint64 n_removed;

	PreventCommandIfReadOnly("millrace.prune()");
	if (PG_ARGISNULL(1) || PG_GETARG_INT32(1) < 1)
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("keep must be at least 1")));
	if (!OidIsValid(mr_model_lock(name, true)))
		mr_model_unknown(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	lock_row(name);
	exec_for_version("DELETE FROM millrace.model_version AS v USING millrace.model AS m WHERE v.model = $1 "
					 "AND m.name = $1 AND v.version IS DISTINCT FROM m.active "
					 "AND NOT ($2 > 1 AND v.version IS NOT DISTINCT FROM " EARLIER_VERSION ") "
					 "AND v.version NOT IN (SELECT version FROM millrace.model_version WHERE model = $1 "
					 "ORDER BY version DESC LIMIT $2)",
					 SPI_OK_DELETE, name, PG_GETARG_INT32(1));
	n_removed = SPI_processed;
	mr_leave(&guard);
	SPI_finish();
	PG_RETURN_INT32((int32) n_removed);
}

Datum
mr_drop_model(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;

	PreventCommandIfReadOnly("millrace.drop_model()");
	if (!OidIsValid(mr_model_lock(name, true)))
		mr_model_unknown(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	mr_exec_args("DELETE FROM millrace.model WHERE name = $1", SPI_OK_DELETE, false, 1, types, values, NULL);
	mr_exec_args("DELETE FROM millrace.tuning WHERE model = $1", SPI_OK_DELETE, false, 1, types, values,
				 NULL);
	mr_leave(&guard);
	SPI_finish();
	PG_RETURN_VOID();
}

/* ---- reading ---- */

static void
corrupt_block(const MrModel *model, const char *side, int block, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("block %d of side \"%s\" of model \"%s\" version %d is corrupt: %s", block, side,
					model->name, model->version, why),
			 errhint("Train the model again, or activate another version.")));
}

/* Append a block to a side; sizes are those of the arrays so far. */
static void
append_block(MrModel *model, MrSide *side, const char *side_name, int number, const bytea *data,
			 Size *n_string_bytes)
{
	MrIds *ids = &side->ids;
	MrcBlock block;
	const char *why;
	int64 n;

	if (mrc_block_open(&block, (const unsigned char *) VARDATA_ANY(data), VARSIZE_ANY_EXHDR(data), &why) !=
		MRC_OK)
		corrupt_block(model, side_name, number, why);
	if (ids->n > 0 && (block.rank != side->rank || block.text != ids->text))
		corrupt_block(model, side_name, number, "it does not fit the blocks before it");
	if (block.n_rows > INT32_MAX - ids->n)
		corrupt_block(model, side_name, number, "there are too many rows");
	side->rank = block.rank;
	ids->text = block.text;
	n = ids->n + block.n_rows;

	MemoryContext before = MemoryContextSwitchTo(model->context);
	Size factor_bytes = (Size) n * side->rank * sizeof(float) + 1;

	side->factors = side->factors ? repalloc_huge(side->factors, factor_bytes)
								  : MemoryContextAllocHuge(model->context, factor_bytes);
	mrc_block_factors(&block, 0, block.n_rows, side->factors + ids->n * side->rank);
	if (ids->text)
	{
		Size wanted = *n_string_bytes + block.n_id_bytes + 1;

		ids->bytes =
			ids->bytes ? repalloc_huge(ids->bytes, wanted) : MemoryContextAllocHuge(model->context, wanted);
		ids->starts = ids->starts ? repalloc_huge(ids->starts, (n + 1) * sizeof(int64))
								  : MemoryContextAllocHuge(model->context, (n + 1) * sizeof(int64));
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
		ids->ints = ids->ints ? repalloc_huge(ids->ints, n * sizeof(int64) + 1)
							  : MemoryContextAllocHuge(model->context, n * sizeof(int64) + 1);
		for (int64 i = 0; i < block.n_rows; i++)
			ids->ints[ids->n + i] = mrc_block_int(&block, i);
	}
	ids->n = n;
	MemoryContextSwitchTo(before);
}

static void
load_side(MrModel *model, MrSide *side, const char *side_name)
{
	Oid types[3] = {TEXTOID, INT4OID, TEXTOID};
	Datum values[3] = {CStringGetTextDatum(model->name), Int32GetDatum(model->version),
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
			corrupt_block(model, side_name, number, "it is missing");
		data = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 2, &null);
		block = DatumGetByteaPP(data);
		append_block(model, side, side_name, number, block, &n_string_bytes);
		if ((Pointer) block != DatumGetPointer(data))
			pfree(block);
		SPI_freetuptable(SPI_tuptable);
	}
	SPI_cursor_close(portal);
	if (number == 0)
		corrupt_block(model, side_name, 0, "it is missing");
}

void
mr_model_items(MrBudget *budget, const char *name, int version, MrSide *items)
{
	MrModel model = {.name = (char *) name, .version = version, .context = budget->context};
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
	load_side(&model, items, "item");
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
		lock_row(name);
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
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name)};
	MrGuard guard;
	HeapTuple row;
	TupleDesc desc;
	bool null;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT v.version, v.query, v.settings FROM millrace.model_version AS v "
				 "JOIN millrace.model AS m ON m.name = v.model WHERE v.model = $1 "
				 "AND EXISTS (SELECT FROM millrace.training_iteration AS i WHERE i.model = v.model AND "
				 "i.version = v.version) ORDER BY v.version IS NOT DISTINCT FROM m.active DESC, v.version "
				 "DESC LIMIT 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no training to repeat", name),
				 errdetail("None of its versions was trained here."),
				 errhint("Train it with millrace.train_als().")));
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	values[1] = SPI_getbinval(row, desc, 1, &null);
	*query = SPI_getvalue(row, desc, 2);
	*settings = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 3, &null));
	mr_exec_args("SELECT p.key, p.value FROM millrace.model_version AS v, "
				 "pg_catalog.jsonb_each_text(v.parameters) AS p WHERE v.model = $1 AND v.version = $2",
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
	MrModel *model;
} Pin;

static void
unpin(void *arg)
{
	((Pin *) arg)->model->n_pins--;
}

static MrModel *
pin(MrModel *model)
{
	Pin *new_pin = palloc(sizeof(Pin));

	new_pin->callback.func = unpin;
	new_pin->callback.arg = new_pin;
	new_pin->model = model;
	model->n_pins++;
	model->last_use = ++use_clock;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, &new_pin->callback);
	return model;
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

/* Read the definition of the active version; the model it returns has no factors yet and lives in its own context. */
static MrModel *
read_definition(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MemoryContext context;
	MemoryContext before;
	MrModel *model;
	HeapTuple row;
	TupleDesc desc;
	bool null;

	mr_exec_args(
		"SELECT m.owner, v.version, v.uuid, v.query, v.settings, m.owner_name, m.lists FROM millrace.model "
		"AS m LEFT JOIN "
		"millrace.model_version AS v ON v.model = m.name AND v.version = m.active WHERE m.name = $1",
		SPI_OK_SELECT, true, 1, types, values, NULL);
	if (SPI_processed == 0)
		mr_model_unknown(name);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	(void) SPI_getbinval(row, desc, 2, &null);
	if (null)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no active version", name),
				 errhint("Train it, or activate a version with millrace.activate(model, version).")));
	context = AllocSetContextCreate(CurrentMemoryContext, "millrace model", ALLOCSET_DEFAULT_SIZES);
	before = MemoryContextSwitchTo(context);
	model = palloc0(sizeof(MrModel));
	model->context = context;
	mr_plan_init(&model->shape_plan, context);
	mr_plan_init(&model->seen_plan, context);
	model->name = pstrdup(name);
	model->owner = DatumGetObjectId(SPI_getbinval(row, desc, 1, &null));
	model->version = DatumGetInt32(SPI_getbinval(row, desc, 2, &null));
	model->uuid = *DatumGetUUIDP(SPI_getbinval(row, desc, 3, &null));
	model->query = SPI_getvalue(row, desc, 4);
	model->settings = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 5, &null));
	model->owner_name = *DatumGetName(SPI_getbinval(row, desc, 6, &null));
	model->lists_uuid = *DatumGetUUIDP(SPI_getbinval(row, desc, 7, &null));
	MemoryContextSwitchTo(before);
	SPI_freetuptable(SPI_tuptable);
	return model;
}

/* The version among those kept; what is kept of the model's other versions becomes stale. */
static MrModel *
find_open(const MrModel *wanted)
{
	MrModel *found = NULL;

	for (int i = 0; i < MAX_OPEN; i++)
	{
		MrModel *model = open_models[i];

		if (model == NULL)
			continue;
		if (memcmp(&model->uuid, &wanted->uuid, sizeof(pg_uuid_t)) == 0)
			found = model;
		else if (strcmp(model->name, wanted->name) == 0)
			model->stale = true;
	}
	return found;
}

MrModel *
mr_model_open(const char *name)
{
	MrGuard guard;
	MrModel *model;
	MrModel *found;
	int slot;

	mr_enter_catalog(&guard, "model");
	model = read_definition(name);
	found = find_open(model);
	if (found)
	{
		found->owner = model->owner;
		found->owner_name = model->owner_name;
		found->lists_uuid = model->lists_uuid;
		found->stale = false;
		MemoryContextDelete(model->context);
		mr_leave(&guard);
		return pin(found);
	}
	load_side(model, &model->users, "user");
	load_side(model, &model->items, "item");
	if (model->query)
		load_side(model, &model->baseline, "baseline");
	else
		model->baseline.rank = 1;
	if (model->users.rank != model->items.rank || model->baseline.rank != 1)
		corrupt_block(model, "item", 0, "its rank is not that of the other side");
	mr_leave(&guard);
	slot = free_slot();
	if (slot < 0)
		return model; /* goes with the caller's context */
	MemoryContextSetParent(model->context, CacheMemoryContext);
	open_models[slot] = model;
	return pin(model);
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
	if (!is_owner(model->owner, &model->owner_name))
		owner_gone(model->name, &model->owner_name);
	mr_enter(guard, model->owner, model->settings);
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
