/*
 * version.c: models of every kind in the catalog: names, owners, rights, versions, and which one is active.
 *
 * A model is a name with a kind; what its versions have learnt stands in tables of the kind (factors, cluster,
 * index_label, scale_column), written once and never changed.  What is active stands in the model's own row, so a switch
 * is one update and readers see the old version until it commits.  All writes are done as the owner of the tables, after
 * this file has checked that the caller may.
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

#define LOCK_CLASS 3 /* of advisory locks: 1 and 2 are SQL's own */

PG_FUNCTION_INFO_V1(mr_activate);
PG_FUNCTION_INFO_V1(mr_rollback);
PG_FUNCTION_INFO_V1(mr_prune);
PG_FUNCTION_INFO_V1(mr_drop_model);

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

/* ---- kinds ---- */

typedef struct Kind
{
	const char *name;
	const char *training;  /* the function that makes a version */
	const char *functions; /* others that take models of the kind */
} Kind;

static const Kind KINDS[] = {
	[MR_KIND_ALS] = {"als", "train_als",
					 "recommend_top_k, recommend_top_k_for, similar_items, predict, evaluate"},
	[MR_KIND_KMEANS] = {"kmeans", "train_kmeans",
						"kmeans_assign, kmeans_distance, cluster_centers, silhouette"},
	[MR_KIND_INDEXER] = {"indexer", "fit_indexer", "index_of, index_size"},
	[MR_KIND_SCALER] = {"scaler", "fit_scaler", "scale, unscale"},
};

const char *
mr_kind_name(MrKind kind)
{
	return KINDS[kind].name;
}

static MrKind
kind_named(const char *name)
{
	for (int i = 0; i < lengthof(KINDS); i++)
		if (strcmp(KINDS[i].name, name) == 0)
			return (MrKind) i;
	elog(ERROR, "unknown kind of model \"%s\"", name);
}

static void
check_kind(const char *name, MrKind kind, MrKind wanted)
{
	if (kind == wanted)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_WRONG_OBJECT_TYPE),
			 errmsg("model \"%s\" is of kind %s, not %s", name, KINDS[kind].name, KINDS[wanted].name),
			 errhint("Functions for a model of kind %s are %s, %s.", KINDS[kind].name, KINDS[kind].training,
					 KINDS[kind].functions)));
}

static void
no_such_version(const char *name, int version)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_UNDEFINED_OBJECT), errmsg("model \"%s\" has no version %d", name, version),
		 errhint("SELECT version, active, created FROM millrace.models WHERE name = %s lists its versions.",
				 quote_literal_cstr(name))));
}

/* ---- rights and locks ---- */

bool
mr_is_owner(Oid owner, const NameData *owner_name)
{
	char *name = GetUserNameFromId(owner, true);

	return name && strcmp(name, NameStr(*owner_name)) == 0;
}

void
mr_owner_gone(const char *name, const NameData *owner_name)
{
	ereport(
		ERROR,
		(errcode(ERRCODE_UNDEFINED_OBJECT),
		 errmsg("owner \"%s\" of model \"%s\" does not exist or was renamed", NameStr(*owner_name), name),
		 errhint("A superuser may drop the model, to be trained again, or, if the role was renamed: UPDATE "
				 "millrace.model SET owner_name = pg_get_userbyid(owner) WHERE name = %s.",
				 quote_literal_cstr(name))));
}

/* A row of millrace.model, as far as rights go by it. */
typedef struct Holder
{
	Oid owner; /* InvalidOid: there is no such model */
	NameData owner_name;
	MrKind kind;
} Holder;

/* With a new snapshot. */
static Holder
find_holder(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Holder holder = {InvalidOid};
	bool null;
	MrGuard guard;

	SPI_connect();
	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT owner, owner_name, kind FROM millrace.model WHERE name = $1", SPI_OK_SELECT, false,
				 1, types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 1)
	{
		HeapTuple row = SPI_tuptable->vals[0];
		TupleDesc desc = SPI_tuptable->tupdesc;

		holder.owner = DatumGetObjectId(SPI_getbinval(row, desc, 1, &null));
		holder.owner_name = *DatumGetName(SPI_getbinval(row, desc, 2, &null));
		holder.kind = kind_named(SPI_getvalue(row, desc, 3));
	}
	SPI_finish();
	return holder;
}

void
mr_version_unknown(const char *name, MrKind kind, int version)
{
	Holder holder = find_holder(name);

	if (!OidIsValid(holder.owner))
		mr_model_unknown(name);
	check_kind(name, holder.kind, kind);
	no_such_version(name, version);
}

/* The caller may change the model. */
static void
check_holder(const char *name, const Holder *holder, bool gone_ok)
{
	if (!mr_is_owner(holder->owner, &holder->owner_name))
	{
		if (!gone_ok || !superuser())
			mr_owner_gone(name, &holder->owner_name);
	}
	else if (!has_privs_of_role(GetUserId(), holder->owner))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be owner of model \"%s\"", name)));
}

Oid
mr_model_owner(const char *name, MrKind kind)
{
	Holder holder = find_holder(name);

	if (OidIsValid(holder.owner))
	{
		check_kind(name, holder.kind, kind);
		check_holder(name, &holder, false);
	}
	return holder.owner;
}

static void
lock_name(const char *name)
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
}

Oid
mr_model_lock_kind(const char *name, MrKind kind)
{
	Holder holder;

	lock_name(name);
	holder = find_holder(name);
	if (!OidIsValid(holder.owner))
		return GetUserId();
	check_kind(name, holder.kind, kind);
	check_holder(name, &holder, false);
	return holder.owner;
}

MrKind
mr_model_lock(const char *name, bool gone_ok)
{
	Holder holder;

	lock_name(name);
	holder = find_holder(name);
	if (!OidIsValid(holder.owner))
		mr_model_unknown(name);
	check_holder(name, &holder, gone_ok);
	return holder.kind;
}

/* ---- storing ---- */

/* Take the next version number, creating the model's row if it is new. */
static int
next_version(const MrNewVersion *version)
{
	Oid types[3] = {TEXTOID, REGROLEOID, TEXTOID};
	Datum values[3] = {CStringGetTextDatum(version->name), ObjectIdGetDatum(version->owner),
					   CStringGetTextDatum(mr_kind_name(version->kind))};
	HeapTuple row;
	bool null;

	mr_exec_args("INSERT INTO millrace.model AS m (name, kind, owner, owner_name, last_version) VALUES ($1, "
				 "$3, $2, pg_get_userbyid($2), 1) ON CONFLICT (name) DO UPDATE SET last_version = "
				 "m.last_version + 1 RETURNING last_version, kind",
				 SPI_OK_INSERT_RETURNING, false, 3, types, values, NULL);
	row = SPI_tuptable->vals[0];
	check_kind(version->name, kind_named(SPI_getvalue(row, SPI_tuptable->tupdesc, 2)), version->kind);
	return DatumGetInt32(SPI_getbinval(row, SPI_tuptable->tupdesc, 1, &null));
}

static pg_uuid_t
store_version(const MrNewVersion *new_version, int version)
{
	Oid types[] = {TEXTOID, INT4OID, TEXTOID, TEXTARRAYOID, TEXTOID, TEXTOID,
				   INT8OID, INT8OID, INT8OID, INT8OID,		TEXTOID, TEXTARRAYOID};
	const char *query = new_version->query;
	const char *uses = new_version->uses ? new_version->uses->models : NULL;
	ArrayType *views = new_version->uses ? new_version->uses->views : NULL;
	Datum values[] = {CStringGetTextDatum(new_version->name),		Int32GetDatum(version),
					  CStringGetTextDatum(query ? query : ""),		PointerGetDatum(new_version->settings),
					  CStringGetTextDatum(new_version->parameters), CStringGetTextDatum(new_version->metrics),
					  Int64GetDatum(new_version->n_users),			Int64GetDatum(new_version->n_items),
					  Int64GetDatum(new_version->n_ratings),		Int64GetDatum(new_version->n_rows),
					  CStringGetTextDatum(uses ? uses : ""),		PointerGetDatum(views)};
	char nulls[] = "            ";
	bool null;

	nulls[2] = query ? ' ' : 'n';
	nulls[6] = new_version->n_users >= 0 ? ' ' : 'n';
	nulls[7] = new_version->n_items >= 0 ? ' ' : 'n';
	nulls[8] = new_version->n_ratings >= 0 ? ' ' : 'n';
	nulls[9] = new_version->n_rows >= 0 ? ' ' : 'n';
	nulls[10] = uses ? ' ' : 'n';
	nulls[11] = views ? ' ' : 'n';
	mr_exec_args(
		"INSERT INTO millrace.model_version (model, version, query, settings, parameters, metrics, "
		"users, items, ratings, rows, uses, views) VALUES ($1, $2, $3, $4, $5::jsonb, $6::jsonb, $7, $8, "
		"$9, $10, $11::jsonb, $12) RETURNING uuid",
		SPI_OK_INSERT_RETURNING, false, lengthof(types), types, values, nulls);
	return *DatumGetUUIDP(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
}

static void
store_iterations(const MrNewVersion *new_version, int version)
{
	Oid types[6] = {TEXTOID, INT4OID, INT4OID, FLOAT8OID, FLOAT8OID, FLOAT8OID};
	Datum values[6] = {CStringGetTextDatum(new_version->name), Int32GetDatum(version)};

	for (int i = 0; i < new_version->n_iterations; i++)
	{
		const MrIteration *iteration = &new_version->iterations[i];

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

int
mr_version_store(const MrNewVersion *new_version, pg_uuid_t *uuid)
{
	int version = next_version(new_version);
	pg_uuid_t stored = store_version(new_version, version);

	store_iterations(new_version, version);
	if (uuid)
		*uuid = stored;
	return version;
}

static Datum
count_datum(int64 count, bool *null)
{
	*null = count < 0;
	return Int64GetDatum(count);
}

static Datum
float_datum(double value, bool *null)
{
	*null = isnan(value);
	return Float8GetDatum(value);
}

static Datum
text_datum(const char *value, bool *null)
{
	*null = value == NULL;
	return value ? CStringGetTextDatum(value) : 0;
}

Datum
mr_training_row(FunctionCallInfo fcinfo, const MrTrainingRow *row)
{
	TupleDesc desc;
	Datum values[14];
	bool nulls[14] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE || desc->natts != lengthof(values))
		elog(ERROR, "return type must be millrace.training");
	values[0] = CStringGetTextDatum(row->name);
	values[1] = Int32GetDatum(row->version);
	values[2] = count_datum(row->n_users, &nulls[2]);
	values[3] = count_datum(row->n_items, &nulls[3]);
	values[4] = count_datum(row->n_ratings, &nulls[4]);
	values[5] = Int32GetDatum(row->rank);
	nulls[5] = row->rank < 0;
	values[6] = Int32GetDatum(row->n_iterations);
	nulls[6] = row->n_iterations < 0;
	values[7] = float_datum(row->loss, &nulls[7]);
	values[8] = Float8GetDatum(row->seconds);
	values[9] = text_datum(row->metric, &nulls[9]);
	values[10] = float_datum(row->metric_value, &nulls[10]);
	values[11] = BoolGetDatum(row->active);
	values[12] = text_datum(row->reason, &nulls[12]);
	values[13] = count_datum(row->n_rows, &nulls[13]);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

Datum
mr_fitted_row(FunctionCallInfo fcinfo, const char *name, int version, int64 n_rows, double start_ms,
			  bool active)
{
	MrTrainingRow row = {
		.name = name,
		.version = version,
		.n_users = -1,
		.n_items = -1,
		.n_ratings = -1,
		.n_rows = n_rows,
		.rank = -1,
		.n_iterations = -1,
		.loss = NAN,
		.seconds = (mr_now_ms() - start_ms) / 1e3,
		.metric_value = NAN,
		.active = active,
		.reason = active ? NULL : "activate is false",
	};

	return mr_training_row(fcinfo, &row);
}

void
mr_not_activated(const char *name, int version, const char *reason)
{
	ereport(WARNING,
			(errmsg("version %d of model \"%s\" was not activated: %s", version, name, reason),
			 errhint("Look at millrace.models; SELECT millrace.activate(%s, %d) activates it all the same.",
					 quote_literal_cstr(name), version)));
}

/* ---- what retrain repeats ---- */

void
mr_model_repeat(const char *name, MrRepeat *definition)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;
	HeapTuple row;
	TupleDesc desc;
	bool null;

	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT m.kind, m.active, v.version, v.query, v.settings, v.parameters FROM millrace.model "
				 "AS m LEFT JOIN millrace.model_version AS v ON v.model = m.name AND (m.kind <> 'als' OR "
				 "EXISTS (SELECT FROM millrace.training_iteration AS i WHERE i.model = v.model AND "
				 "i.version = v.version)) WHERE m.name = $1 "
				 "ORDER BY v.version IS NOT DISTINCT FROM m.active DESC, v.version DESC NULLS LAST LIMIT 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	mr_leave(&guard);
	if (SPI_processed == 0)
		mr_model_unknown(name);
	row = SPI_tuptable->vals[0];
	desc = SPI_tuptable->tupdesc;
	definition->kind = kind_named(SPI_getvalue(row, desc, 1));
	definition->active = DatumGetInt32(SPI_getbinval(row, desc, 2, &null));
	if (null)
		definition->active = 0;
	definition->version = DatumGetInt32(SPI_getbinval(row, desc, 3, &null));
	if (null)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no training to repeat", name),
				 errdetail("None of its versions was trained here."),
				 errhint("Train it with millrace.%s().", KINDS[definition->kind].training)));
	definition->query = SPI_getvalue(row, desc, 4);
	definition->settings = DatumGetArrayTypePCopy(SPI_getbinval(row, desc, 5, &null));
	definition->parameters = SPI_getvalue(row, desc, 6);
}

char *
mr_json_field(const char *json, const char *key)
{
	Jsonb *object = DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json)));
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, key, strlen(key), NULL);

	if (value == NULL || value->type == jbvNull)
		return NULL;
	return value->type == jbvString ? pnstrdup(value->val.string.val, value->val.string.len)
									: JsonbToCString(NULL, &JsonbValueToJsonb(value)->root, 0);
}

/* ---- activating, pruning, dropping ---- */

/* What versions have learnt, and how. */
static const char *const VERSION_TABLES[] = {"factors", "training_iteration", "cluster", "index_label",
											 "scale_column"};

/* Catalog writes by name and version; the caller has entered the catalog. */
static void
exec_for_version(const char *sql, int expected, const char *name, int version)
{
	Oid types[2] = {TEXTOID, INT4OID};
	Datum values[2] = {CStringGetTextDatum(name), Int32GetDatum(version)};

	mr_exec_args(sql, expected, false, 2, types, values, NULL);
}

/* The files of the uuids in the current SPI result go when the transaction commits. */
static void
forget_caches(void)
{
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		bool null;
		Datum uuid = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &null);

		if (!null)
			mr_cache_forget(DatumGetUUIDP(uuid));
	}
}

/*
 * Tells of models in use that were trained with another version of this one than is active now, or this one with others;
 * not where both versions do the same to rows.
 */
static void
warn_of_uses(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	TupleDesc desc;

	mr_exec_args("SELECT m.name, u.value, k.kind, k.name, k.active FROM millrace.model AS m JOIN "
				 "millrace.model_version AS v ON v.model = m.name AND v.version = m.active, "
				 "jsonb_each_text(v.uses) AS u JOIN millrace.model AS k ON k.name = u.key "
				 "WHERE (m.name = $1 OR k.name = $1) AND k.name <> m.name AND k.active IS NOT NULL AND NOT "
				 "millrace._same_version(k.name, u.value::int4, k.active, v.created) ORDER BY m.name, k.name",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	desc = SPI_tuptable->tupdesc;
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		char *user = SPI_getvalue(row, desc, 1);
		char *version = SPI_getvalue(row, desc, 2);
		char *now = SPI_getvalue(row, desc, 5);

		ereport(WARNING,
				(errmsg("model \"%s\" was trained with version %s of %s \"%s\"; now %s is active", user,
						version, SPI_getvalue(row, desc, 3), SPI_getvalue(row, desc, 4),
						strcmp(version, now) == 0 ? "another of that number" : now),
				 errhint("SELECT millrace.retrain(%s) trains it with what is active now.",
						 quote_literal_cstr(user))));
	}
}

/* Tells of other models in use that were trained with one that goes. */
static void
warn_of_users(const char *name, MrKind kind)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	mr_exec_args("SELECT m.name, v.uses->>$1 FROM millrace.model AS m JOIN millrace.model_version AS v ON "
				 "v.model = m.name AND v.version = m.active WHERE v.uses ? $1 AND m.name <> $1 ORDER BY 1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple row = SPI_tuptable->vals[i];
		TupleDesc desc = SPI_tuptable->tupdesc;

		ereport(WARNING,
				(errmsg("model \"%s\" was trained with version %s of %s \"%s\", which is dropped",
						SPI_getvalue(row, desc, 1), SPI_getvalue(row, desc, 2), mr_kind_name(kind), name),
				 errhint("Its query needs another model of this name.")));
	}
}

bool
mr_version_activate(const char *name, int version)
{
	exec_for_version("UPDATE millrace.model_version SET activated = clock_timestamp() WHERE model = $1 AND "
					 "version = $2",
					 SPI_OK_UPDATE, name, version);
	if (SPI_processed == 0)
		return false;
	exec_for_version("SELECT lists FROM millrace.model WHERE name = $1", SPI_OK_SELECT, name, version);
	forget_caches();
	exec_for_version("UPDATE millrace.model SET active = $2, lists = gen_random_uuid() WHERE name = $1",
					 SPI_OK_UPDATE, name, version);
	warn_of_uses(name);
	return true;
}

/* Keeps what is active, and the versions that may become so, from changing until the transaction ends. */
void
mr_model_lock_row(const char *name)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	mr_exec_args("SELECT FROM millrace.model WHERE name = $1 FOR UPDATE", SPI_OK_SELECT, false, 1, types,
				 values, NULL);
}

/* Who may change the model may also choose its version; returns its kind. */
static MrKind
check_may_choose(const char *name)
{
	Holder holder = find_holder(name);

	if (!OidIsValid(holder.owner))
		mr_model_unknown(name);
	check_holder(name, &holder, true);
	return holder.kind;
}

Datum
mr_activate(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrGuard guard;
	MrKind kind;
	bool found;

	PreventCommandIfReadOnly("millrace.activate()");
	if (PG_ARGISNULL(1))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("version must not be NULL")));
	kind = check_may_choose(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	mr_model_lock_row(name);
	found = mr_version_activate(name, PG_GETARG_INT32(1));
	mr_leave(&guard);
	if (!found)
		no_such_version(name, PG_GETARG_INT32(1));
	if (kind == MR_KIND_ALS)
		mr_model_prepare(name);
	SPI_finish();
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
	MrKind kind;
	int version;
	bool none;

	PreventCommandIfReadOnly("millrace.rollback()");
	kind = check_may_choose(name);
	SPI_connect();
	mr_enter_catalog(&guard, "model");
	mr_model_lock_row(name);
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
	(void) mr_version_activate(name, version);
	mr_leave(&guard);
	if (kind == MR_KIND_ALS)
		mr_model_prepare(name);
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
	(void) mr_model_lock(name, true);
	SPI_connect();
	mr_cache_sweep();
	mr_enter_catalog(&guard, "model");
	mr_model_lock_row(name);
	exec_for_version("DELETE FROM millrace.model_version AS v USING millrace.model AS m WHERE v.model = $1 "
					 "AND m.name = $1 AND v.version IS DISTINCT FROM m.active "
					 "AND NOT ($2 > 1 AND v.version IS NOT DISTINCT FROM " EARLIER_VERSION ") "
					 "AND NOT EXISTS (SELECT FROM millrace.model AS k JOIN millrace.model_version AS u ON "
					 "u.model = k.name AND u.version = k.active WHERE k.name <> $1 AND "
					 "(u.uses->>$1)::int4 = v.version) "
					 "AND v.version NOT IN (SELECT version FROM millrace.model_version WHERE model = $1 "
					 "ORDER BY version DESC LIMIT $2) RETURNING v.uuid",
					 SPI_OK_DELETE_RETURNING, name, PG_GETARG_INT32(1));
	n_removed = SPI_processed;
	forget_caches();
	for (int i = 0; i < lengthof(VERSION_TABLES); i++)
		exec_for_version(psprintf("DELETE FROM millrace.%s WHERE model = $1 AND version NOT IN (SELECT "
								  "version FROM millrace.model_version WHERE model = $1)",
								  VERSION_TABLES[i]),
						 SPI_OK_DELETE, name, 0);
	mr_leave(&guard);
	mr_history_sweep();
	SPI_finish();
	PG_RETURN_INT32((int32) n_removed);
}

Datum
mr_drop_model(PG_FUNCTION_ARGS)
{
	static const char *const tables[] = {"model_version",		"item_features",		 "custom_baseline",
										 "item_features_block", "custom_baseline_block", "tuning"};
	char *name = mr_name_arg(fcinfo, 0, "model");
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;
	MrKind kind;

	PreventCommandIfReadOnly("millrace.drop_model()");
	kind = mr_model_lock(name, true);
	SPI_connect();
	mr_cache_sweep();
	mr_enter_catalog(&guard, "model");
	mr_exec_args("SELECT uuid FROM millrace.model_version WHERE model = $1 UNION ALL SELECT lists FROM "
				 "millrace.model WHERE name = $1",
				 SPI_OK_SELECT, false, 1, types, values, NULL);
	forget_caches();
	warn_of_users(name, kind);
	/* First the row that others lock who change the model. */
	mr_exec_args("DELETE FROM millrace.model WHERE name = $1", SPI_OK_DELETE, false, 1, types, values, NULL);
	for (int i = 0; i < lengthof(tables) + lengthof(VERSION_TABLES); i++)
		mr_exec_args(psprintf("DELETE FROM millrace.%s WHERE model = $1",
							  i < lengthof(tables) ? tables[i] : VERSION_TABLES[i - lengthof(tables)]),
					 SPI_OK_DELETE, false, 1, types, values, NULL);
	mr_leave(&guard);
	mr_history_sweep();
	SPI_finish();
	PG_RETURN_VOID();
}

/* ---- the active version ---- */

/* The row of a table by the first columns of its primary key, for the active snapshot; a copy, or NULL. */
static HeapTuple
find_row(Relation rel, const char *key_name, const char *model, int version)
{
	int n_keys = version ? 2 : 1;
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   TupleDescAttr(RelationGetDescr(rel), 0)->attcollation, F_TEXTEQ,
						   CStringGetTextDatum(model));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(version));
	scan = systable_beginscan(rel, mr_catalog(key_name), true, GetActiveSnapshot(), n_keys, keys);
	tuple = systable_getnext(scan);
	if (tuple)
		tuple = heap_copytuple(tuple);
	systable_endscan(scan);
	return tuple;
}

Datum
mr_column(Relation rel, HeapTuple tuple, const char *name, bool *null)
{
	return heap_getattr(tuple, get_attnum(RelationGetRelid(rel), name), RelationGetDescr(rel), null);
}

MrKind
mr_model_kind(const char *name)
{
	Relation rel = table_open(mr_catalog("model"), AccessShareLock);
	HeapTuple tuple = find_row(rel, "model_pkey", name, 0);
	MrKind kind;
	bool null;

	if (tuple == NULL)
		mr_model_unknown(name);
	kind = kind_named(TextDatumGetCString(mr_column(rel, tuple, "kind", &null)));
	table_close(rel, AccessShareLock);
	return kind;
}

/*
 * By the indexes themselves: this is done at every call, and neither planning nor becoming the tables' owner is for free.
 * (10 us for all of a call that finds nothing to recommend, against 150 by SQL.)
 */
void
mr_active_row(const char *name, MrKind kind, MrActiveRow *row)
{
	Relation rel = table_open(mr_catalog("model"), AccessShareLock);
	HeapTuple tuple = find_row(rel, "model_pkey", name, 0);
	Datum value;
	bool null;

	if (tuple == NULL)
		mr_model_unknown(name);
	check_kind(name, kind_named(TextDatumGetCString(mr_column(rel, tuple, "kind", &null))), kind);
	row->owner = DatumGetObjectId(mr_column(rel, tuple, "owner", &null));
	row->owner_name = *DatumGetName(mr_column(rel, tuple, "owner_name", &null));
	memset(&row->lists_uuid, 0, sizeof(pg_uuid_t));
	value = mr_column(rel, tuple, "lists", &null);
	if (!null)
		row->lists_uuid = *DatumGetUUIDP(value);
	row->version = DatumGetInt32(mr_column(rel, tuple, "active", &null));
	table_close(rel, AccessShareLock);
	row->tuple = NULL;
	if (!null)
	{
		rel = table_open(mr_catalog("model_version"), AccessShareLock);
		row->tuple = find_row(rel, "model_version_pkey", name, row->version);
		if (row->tuple)
			row->uuid = *DatumGetUUIDP(mr_column(rel, row->tuple, "uuid", &null));
		table_close(rel, AccessShareLock);
	}
	if (row->tuple == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("model \"%s\" has no active version", name),
				 errhint("Train it, or activate a version with millrace.activate(model, version).")));
}
