/*
 * state.c: stored partial states: merging them, and showing the value of one.
 *
 * merge_state combines states and returns the aggregate's value, as the leader of a parallel query does; fold_state
 * combines them into one state; final_state returns the value of one.  The aggregate's combine, serialisation and
 * final functions do the work; they want to be called by an Agg node, so for final_state one is made up.
 */
#include "aggregate.h"
#include "core/core.h"

#include "access/genam.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_aggregate.h"
#include "catalog/pg_proc.h"
#include "executor/executor.h"
#include "nodes/execnodes.h"
#include "nodes/makefuncs.h"
#include "parser/parse_agg.h"
#include "parser/parse_coerce.h"
#include "utils/acl.h"
#include "utils/datum.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(mr_merge_state_trans);
PG_FUNCTION_INFO_V1(mr_merge_state_final);
PG_FUNCTION_INFO_V1(mr_fold_state_final);
PG_FUNCTION_INFO_V1(mr_final_state);
PG_FUNCTION_INFO_V1(mr_sealed);

bool
mr_is_order_sensitive(Oid trans_fn)
{
	switch (trans_fn)
	{
		case F_ARRAY_AGG_TRANSFN:
		case F_ARRAY_AGG_ARRAY_TRANSFN:
		case F_STRING_AGG_TRANSFN:
		case F_BYTEA_STRING_AGG_TRANSFN:
			return true;
		default:
			return false;
	}
}

/*
 * merge_state(aggregate regprocedure, result anyelement, state "any") returns anyelement: the aggregate that
 * combines stored states and returns the final value, as the leader of a parallel query does.
 */
struct MrMergeFunctions
{
	Oid agg_fn;
	FmgrInfo combine_fn;
	FmgrInfo deserial_fn;
	FmgrInfo serial_fn;
	FmgrInfo final_fn;
	bool is_internal;
	bool is_sealed;
	const char *layout; /* of a serialised state, where PostgreSQL's own function reads it; or NULL */
	bool has_final;
	int n_final_args;
	Oid collation;
	int16 len;
	bool by_value;
	NullableDatum initial;
};

/*
 * Are the types of the state and of the result those that the aggregate has?  Anybody may call merge_state with
 * anything, and a value taken for one of another type would crash the server.
 */
static bool
types_fit(Oid agg_fn, Form_pg_aggregate form, Oid state, Oid result)
{
	Oid declared[2] = {form->aggtranstype, get_func_rettype(agg_fn)};
	Oid actual[2] = {state, result};

	if (form->aggtranstype == INTERNALOID)
		return state == BYTEAOID && (!OidIsValid(result) || result == declared[1]);
	if (!OidIsValid(result))
		return IsPolymorphicType(declared[0]) ? check_generic_type_consistency(actual, declared, 1)
											  : state == declared[0];
	if (!IsPolymorphicType(declared[0]))
		return state == declared[0] && result == declared[1];
	if (IsPolymorphicTypeFamily2(declared[0]) || IsPolymorphicTypeFamily2(declared[1]))
		return false;
	if (!IsPolymorphicType(declared[1]))
		return result == declared[1] && check_generic_type_consistency(actual, declared, 1);
	return check_generic_type_consistency(actual, declared, 2);
}

/* The final function, with the types of the aggregate's arguments if it is declared to see them. */
static void
merge_final_function(MrMergeFunctions *merge, Oid agg_fn, Form_pg_aggregate form, Oid trans_type,
					 Oid result_type)
{
	Oid input_types[FUNC_MAX_ARGS];
	Oid *arg_types;
	int n_args;
	Expr *expr;

	(void) get_func_signature(agg_fn, &arg_types, &n_args);
	for (int i = 0; i < n_args; i++)
	{
		input_types[i] = arg_types[i];
		if (arg_types[i] == form->aggtranstype)
			input_types[i] = trans_type;
		else if (arg_types[i] == get_func_rettype(agg_fn))
			input_types[i] = result_type;
		else if (IsPolymorphicType(arg_types[i]) && form->aggfinalextra)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("states of aggregate %s cannot be merged", format_procedure(agg_fn))));
	}
	merge->n_final_args = form->aggfinalextra ? n_args + 1 : 1;
	fmgr_info(form->aggfinalfn, &merge->final_fn);
	build_aggregate_finalfn_expr(input_types, merge->n_final_args, trans_type, result_type, merge->collation,
								 form->aggfinalfn, &expr);
	fmgr_info_set_expr((Node *) expr, &merge->final_fn);
}

/* What PostgreSQL's own serialised states are made of.  n: a count; v: a numeric; s: a scale.  NULL: a function that is not PostgreSQL's. */
static const char *
serial_layout(Oid deserial_fn)
{
	switch (deserial_fn)
	{
		case F_INT8_AVG_DESERIALIZE:
			return "nv";
		case F_NUMERIC_POLY_DESERIALIZE:
			return "nvv";
		case F_NUMERIC_AVG_DESERIALIZE:
			return "nvsnnnn";
		case F_NUMERIC_DESERIALIZE:
			return "nvvsnnnn";
		default:
			return NULL;
	}
}

MrMergeFunctions *
mr_merge_functions(Oid agg_fn, Oid result_type, Oid state_type, Oid collation, MemoryContext context)
{
	MemoryContext old = MemoryContextSwitchTo(context);
	MrMergeFunctions *merge = palloc0(sizeof(MrMergeFunctions));
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(agg_fn));
	Form_pg_aggregate form;
	Oid trans_type, combine_types[2];
	Datum initial;
	Expr *expr;

	if (!HeapTupleIsValid(tuple))
		ereport(
			ERROR,
			(errcode(ERRCODE_UNDEFINED_FUNCTION), errmsg("aggregate with OID %u does not exist", agg_fn)));
	if (mr_function_aclcheck(agg_fn, GetUserId()) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_AGGREGATE, get_func_name(agg_fn));
	form = (Form_pg_aggregate) GETSTRUCT(tuple);
	merge->agg_fn = agg_fn;
	merge->is_internal = form->aggtranstype == INTERNALOID;
	trans_type = merge->is_internal ? INTERNALOID : state_type;
	if (form->aggkind != AGGKIND_NORMAL || !OidIsValid(form->aggcombinefn) ||
		mr_is_order_sensitive(form->aggtransfn) ||
		(merge->is_internal && (!OidIsValid(form->aggserialfn) || !OidIsValid(form->aggdeserialfn))) ||
		!types_fit(agg_fn, form, state_type, result_type))
		ereport(ERROR,
				(errcode(ERRCODE_DATATYPE_MISMATCH),
				 errmsg("a value of type %s is not a state of aggregate %s%s%s", format_type_be(state_type),
						format_procedure(agg_fn), OidIsValid(result_type) ? " with result type " : "",
						OidIsValid(result_type) ? format_type_be(result_type) : ""),
				 errhint("After an upgrade of the server CALL " MR_SCHEMA ".maintain() once.")));
	merge->collation = collation;
	fmgr_info(form->aggcombinefn, &merge->combine_fn);
	combine_types[0] = combine_types[1] = trans_type;
	build_aggregate_transfn_expr(combine_types, 2, 0, false, trans_type, merge->collation, form->aggcombinefn,
								 InvalidOid, &expr, NULL);
	fmgr_info_set_expr((Node *) expr, &merge->combine_fn);
	if (merge->is_internal)
	{
		if (merge->combine_fn.fn_strict)
			ereport(
				ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("combine function of aggregate %s must not be strict", format_procedure(agg_fn))));
		merge->layout = serial_layout(form->aggdeserialfn);
		merge->is_sealed = mr_is_sealed(form->aggdeserialfn);
		fmgr_info(form->aggdeserialfn, &merge->deserial_fn);
		build_aggregate_deserialfn_expr(form->aggdeserialfn, &expr);
		fmgr_info_set_expr((Node *) expr, &merge->deserial_fn);
		fmgr_info(form->aggserialfn, &merge->serial_fn);
		build_aggregate_serialfn_expr(form->aggserialfn, &expr);
		fmgr_info_set_expr((Node *) expr, &merge->serial_fn);
	}
	merge->has_final = OidIsValid(result_type) && OidIsValid(form->aggfinalfn);
	if (merge->has_final)
		merge_final_function(merge, agg_fn, form, trans_type, result_type);
	get_typlenbyval(trans_type, &merge->len, &merge->by_value);

	initial = SysCacheGetAttr(AGGFNOID, tuple, Anum_pg_aggregate_agginitval, &merge->initial.isnull);
	if (!merge->initial.isnull && !merge->is_internal)
	{
		Oid input, io_param;

		getTypeInputInfo(trans_type, &input, &io_param);
		merge->initial.value = OidInputFunctionCall(input, TextDatumGetCString(initial), io_param, -1);
	}
	else
		merge->initial.isnull = true;
	ReleaseSysCache(tuple);
	MemoryContextSwitchTo(old);
	return merge;
}

/*
 * Serialised states
 *
 * Deserialisation functions trust their input, as in a parallel query it comes from their own server: a made-up weight of a
 * digit, or length, has them write where they must not.  But anybody may call merge_state with anything.  So what PostgreSQL's
 * own functions are given is checked first.
 */

/* One unsigned number, most significant byte first. */
static bool
read_number(const unsigned char **at, const unsigned char *end, int n_bytes, uint64 *number)
{
	if (end - *at < n_bytes)
		return false;
	for (*number = 0; n_bytes > 0; n_bytes--)
		*number = *number << 8 | *(*at)++;
	return true;
}

/* numericvar_serialize: number of digits, weight of the first, sign, digits after the point, then the digits, base 10,000. */
static bool
skip_numeric(const unsigned char **at, const unsigned char *end)
{
	uint64 n_digits, weight, sign, scale, digit;

	if (!read_number(at, end, 4, &n_digits) || !read_number(at, end, 4, &weight) ||
		!read_number(at, end, 4, &sign) || !read_number(at, end, 4, &scale))
		return false;
	/* A sum of 2^63 numbers, or of their squares, is at most so much longer than they may be. */
	if (n_digits > (uint64) (end - *at) / 2 || (int32) weight > 2 * PG_INT16_MAX + 16 ||
		(int32) weight < -2 * PG_INT16_MAX || (sign != 0 && sign != 0x4000) || scale > 2 * PG_INT16_MAX)
		return false;
	while (n_digits-- > 0)
		if (!read_number(at, end, 2, &digit) || digit > 9999)
			return false;
	return true;
}

/*
 * Of other extensions' functions nothing is known but that they trust their input, too: some copy it into memory as it is.  So
 * their states end with a seal, a keyed hash, which only our own code can make: the keys, in millrace.state_key, are for nobody.
 * The own one seals, after a restore that of the dump; all are tried where a state is read.  Each function that reads states has
 * a key of its own, the seal of its name by one of these.
 */
#define KEY_BYTES 32 /* of which the first MRC_SEAL_BYTES are used */
#define MAX_KEYS 64
#define MAX_READERS 8
#define OWN_KEY_HINT                                                                                \
	"Insert the row that a dump of this database has, or for states to come INSERT INTO " MR_SCHEMA \
	".state_key VALUES (KEY, true), KEY of 32 random bytes."

typedef struct Reader
{
	Oid fn;
	uint8 keys[MAX_KEYS][MRC_SEAL_BYTES];
} Reader;

static uint8 keys[MAX_KEYS][KEY_BYTES];
static int n_keys = 0;
static bool has_own_key = false; /* the first */
static Oid keys_of = InvalidOid; /* the table that they are from; InvalidOid: there are none */
static Reader readers[MAX_READERS];
static int n_readers = 0;
static int next_reader = 0; /* who takes the place of the oldest */

/* The name of a function may be another now. */
static void
forget_readers(Datum arg, int cache, uint32 hash)
{
	(void) arg;
	(void) cache;
	(void) hash;
	n_readers = next_reader = 0;
}

static void
read_keys(void)
{
	Oid relid = mr_catalog("state_key");
	Relation rel;
	SysScanDesc scan;
	HeapTuple tuple;

	rel = table_open(relid, AccessShareLock);
	keys_of = InvalidOid;
	n_keys = n_readers = next_reader = 0;
	has_own_key = false;
	scan = systable_beginscan(rel, InvalidOid, false, NULL, 0, NULL);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		bool isnull;
		bytea *key = DatumGetByteaPP(heap_getattr(tuple, 1, RelationGetDescr(rel), &isnull));

		if (VARSIZE_ANY_EXHDR(key) != KEY_BYTES)
			elog(ERROR, "a key in " MR_SCHEMA ".state_key has not %d bytes", KEY_BYTES);
		if (n_keys == MAX_KEYS)
			ereport(ERROR,
					(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
					 errmsg("table " MR_SCHEMA ".state_key has more than %d keys", MAX_KEYS),
					 errhint("Delete those of nodes that are read no more.")));
		memcpy(keys[n_keys++], VARDATA_ANY(key), KEY_BYTES);
		if (DatumGetBool(heap_getattr(tuple, 2, RelationGetDescr(rel), &isnull)))
		{
			memcpy(keys[n_keys - 1], keys[0], KEY_BYTES);
			memcpy(keys[0], VARDATA_ANY(key), KEY_BYTES);
			has_own_key = true;
		}
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	if (n_keys == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table " MR_SCHEMA ".state_key has no key"), errhint(OWN_KEY_HINT)));
	keys_of = relid;
}

/* read_keys() has been called. */
static const Reader *
reader_of(Oid deserial_fn)
{
	static bool is_registered = false;
	Reader *reader;
	char *name;

	for (int i = 0; i < n_readers; i++)
		if (readers[i].fn == deserial_fn)
			return &readers[i];
	if (!is_registered)
	{
		CacheRegisterSyscacheCallback(PROCOID, forget_readers, (Datum) 0);
		CacheRegisterSyscacheCallback(NAMESPACEOID, forget_readers, (Datum) 0);
		CacheRegisterSyscacheCallback(TYPEOID, forget_readers, (Datum) 0);
		is_registered = true;
	}
	name = format_procedure_qualified(deserial_fn);
	reader = &readers[next_reader];
	next_reader = (next_reader + 1) % MAX_READERS;
	n_readers = Min(n_readers + 1, MAX_READERS);
	reader->fn = deserial_fn;
	for (int i = 0; i < n_keys; i++)
		mrc_seal(keys[i], name, strlen(name) + 1, reader->keys[i]);
	pfree(name);
	return reader;
}

/* Not before ALTER EXTENSION millrace UPDATE has made the table, which seals what is there. */
bool
mr_is_sealed(Oid deserial_fn)
{
	return deserial_fn >= FirstNormalObjectId &&
		OidIsValid(get_relname_relid("state_key", get_namespace_oid(MR_SCHEMA, false)));
}

Datum
mr_seal_state(Oid deserial_fn, Datum state)
{
	bytea *plain = DatumGetByteaPP(state);
	size_t n_bytes = VARSIZE_ANY_EXHDR(plain);
	bytea *sealed = palloc(VARHDRSZ + n_bytes + MRC_SEAL_BYTES);

	if (keys_of != mr_catalog("state_key") || !has_own_key)
		read_keys();
	if (!has_own_key)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table " MR_SCHEMA ".state_key has no key of this database's own"),
				 errhint(OWN_KEY_HINT)));
	SET_VARSIZE(sealed, VARHDRSZ + n_bytes + MRC_SEAL_BYTES);
	memcpy(VARDATA(sealed), VARDATA_ANY(plain), n_bytes);
	mrc_seal(reader_of(deserial_fn)->keys[0], VARDATA_ANY(plain), n_bytes,
			 (uint8 *) VARDATA(sealed) + n_bytes);
	return PointerGetDatum(sealed);
}

/* The state without its seal; NULL: it is not the right one. */
static bytea *
unsealed(Oid deserial_fn, bytea *sealed)
{
	int n_bytes = (int) VARSIZE_ANY_EXHDR(sealed) - MRC_SEAL_BYTES;
	uint8 seal[MRC_SEAL_BYTES];
	bytea *plain;

	if (n_bytes < 0)
		return NULL;
	for (int attempt = 0; attempt < 2; attempt++)
	{
		if (attempt > 0 || keys_of != mr_catalog("state_key"))
			read_keys();
		for (int i = 0; i < n_keys; i++)
		{
			mrc_seal(reader_of(deserial_fn)->keys[i], VARDATA_ANY(sealed), n_bytes, seal);
			if (memcmp(seal, VARDATA_ANY(sealed) + n_bytes, MRC_SEAL_BYTES) != 0)
				continue;
			plain = palloc(VARHDRSZ + n_bytes);
			SET_VARSIZE(plain, VARHDRSZ + n_bytes);
			memcpy(VARDATA(plain), VARDATA_ANY(sealed), n_bytes);
			return plain;
		}
	}
	return NULL;
}

/* _sealed(aggregate regprocedure, state bytea): only while the update from 0.1.0 runs, for states that had no seal. */
Datum
mr_sealed(PG_FUNCTION_ARGS)
{
	HeapTuple tuple = SearchSysCache1(AGGFNOID, ObjectIdGetDatum(PG_GETARG_OID(0)));
	Oid deserial_fn;

	if (!superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE), errmsg("must be superuser to seal a state")));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for aggregate %u", PG_GETARG_OID(0));
	deserial_fn = ((Form_pg_aggregate) GETSTRUCT(tuple))->aggdeserialfn;
	ReleaseSysCache(tuple);
	if (!mr_is_sealed(deserial_fn) || unsealed(deserial_fn, PG_GETARG_BYTEA_PP(1)))
		PG_RETURN_DATUM(PG_GETARG_DATUM(1));
	PG_RETURN_DATUM(mr_seal_state(deserial_fn, PG_GETARG_DATUM(1)));
}

static void
check_serialised(const MrMergeFunctions *fn, bytea *stored)
{
	const unsigned char *at = (const unsigned char *) VARDATA_ANY(stored);
	const unsigned char *end = at + VARSIZE_ANY_EXHDR(stored);
	bool fits = true;
	uint64 number;

	for (const char *part = fn->layout; *part && fits; part++)
		if (*part == 'v')
			fits = skip_numeric(&at, end);
		else
			fits = read_number(&at, end, *part == 's' ? 4 : 8, &number) &&
				(*part != 's' || number <= 2 * PG_INT16_MAX);
	if (!fits || at != end)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
				 errmsg("malformed state of aggregate %s", format_procedure(fn->agg_fn))));
}

/* The value of a stored state, NULL or not: deserialised where the aggregate works on something internal. */
static NullableDatum
stored_value(MrMergeFunctions *fn, NullableDatum stored, fmNodePtr context)
{
	LOCAL_FCINFO(call, 2);

	if (!fn->is_internal || (stored.isnull && fn->deserial_fn.fn_strict))
		return stored;
	if (fn->layout && !stored.isnull)
	{
		bytea *plain = DatumGetByteaPP(stored.value);

		check_serialised(fn, plain);
		stored.value = PointerGetDatum(plain);
	}
	else if (!stored.isnull && fn->is_sealed)
	{
		bytea *plain = unsealed(fn->deserial_fn.fn_oid, DatumGetByteaPP(stored.value));

		if (plain == NULL)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_BINARY_REPRESENTATION),
					 errmsg("malformed state of aggregate %s", format_procedure(fn->agg_fn)),
					 errdetail("It is not sealed with a key in " MR_SCHEMA ".state_key."),
					 errhint("If it comes from another database, that database's own key belongs there.")));
		stored.value = PointerGetDatum(plain);
	}
	InitFunctionCallInfoData(*call, &fn->deserial_fn, 2, InvalidOid, context, NULL);
	call->args[0] = stored;
	call->args[1].value = (Datum) 0;
	call->args[1].isnull = false;
	stored.value = FunctionCallInvoke(call);
	stored.isnull = call->isnull;
	return stored;
}

void
mr_merge_start(MrMergeState *merge, MrMergeFunctions *fn, MemoryContext memory)
{
	merge->fn = fn;
	merge->state = fn->initial;
	merge->is_empty = fn->initial.isnull;
	if (!fn->initial.isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(memory);

		merge->state.value = datumCopy(fn->initial.value, fn->by_value, fn->len);
		MemoryContextSwitchTo(old);
	}
}

/* As advance_combine_function of nodeAgg.c */
void
mr_merge_next(MrMergeState *merge, NullableDatum stored, fmNodePtr context, MemoryContext memory)
{
	LOCAL_FCINFO(call, 2);
	MrMergeFunctions *fn = merge->fn;
	MemoryContext old;
	Datum result;

	call->args[1] = stored_value(fn, stored, context);
	if (fn->combine_fn.fn_strict)
	{
		if (call->args[1].isnull)
			return;
		if (merge->is_empty)
		{
			old = MemoryContextSwitchTo(memory);
			merge->state.value = datumCopy(call->args[1].value, fn->by_value, fn->len);
			merge->state.isnull = merge->is_empty = false;
			MemoryContextSwitchTo(old);
			return;
		}
		if (merge->state.isnull)
			return;
	}
	merge->is_empty = false;
	InitFunctionCallInfoData(*call, &fn->combine_fn, 2, fn->collation, context, NULL);
	call->args[0] = merge->state;
	result = FunctionCallInvoke(call);
	if (!fn->by_value && !call->isnull &&
		(merge->state.isnull || DatumGetPointer(result) != DatumGetPointer(merge->state.value)))
	{
		old = MemoryContextSwitchTo(memory);
		result = datumCopy(result, false, fn->len);
		MemoryContextSwitchTo(old);
		if (!merge->state.isnull)
			pfree(DatumGetPointer(merge->state.value));
	}
	merge->state.value = result;
	merge->state.isnull = call->isnull;
}

/* Transition function of merge_state(aggregate, result, state) and fold_state(aggregate, state) */
Datum
mr_merge_state_trans(PG_FUNCTION_ARGS)
{
	int n_state = PG_NARGS() - 1; /* the state is the last argument */
	MemoryContext memory;
	MrMergeState *merge;

	if (!AggCheckCallContext(fcinfo, &memory))
		elog(ERROR, "merge_state called in non-aggregate context");
	if (PG_ARGISNULL(1))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("aggregate of merge_state must not be null")));
	if (PG_ARGISNULL(0))
	{
		MrMergeFunctions *fn = fcinfo->flinfo->fn_extra;

		/* Looked up once for all groups */
		if (fn == NULL || fn->agg_fn != PG_GETARG_OID(1))
			fn = fcinfo->flinfo->fn_extra = mr_merge_functions(
				PG_GETARG_OID(1), n_state == 3 ? get_fn_expr_argtype(fcinfo->flinfo, 2) : InvalidOid,
				get_fn_expr_argtype(fcinfo->flinfo, n_state), PG_GET_COLLATION(), fcinfo->flinfo->fn_mcxt);
		merge = MemoryContextAlloc(memory, sizeof(MrMergeState));
		mr_merge_start(merge, fn, memory);
	}
	else
		merge = (MrMergeState *) PG_GETARG_POINTER(0);
	mr_merge_next(merge, fcinfo->args[n_state], fcinfo->context, memory);
	PG_RETURN_POINTER(merge);
}

/* The aggregate's value of a transition value. */
static Datum
final_value(MrMergeFunctions *fn, NullableDatum state, FunctionCallInfo fcinfo, fmNodePtr context)
{
	LOCAL_FCINFO(call, FUNC_MAX_ARGS);
	Datum result;

	if (!fn->has_final)
	{
		if (state.isnull)
			PG_RETURN_NULL();
		PG_RETURN_DATUM(state.value);
	}
	if (fn->final_fn.fn_strict && (state.isnull || fn->n_final_args > 1))
		PG_RETURN_NULL();
	InitFunctionCallInfoData(*call, &fn->final_fn, fn->n_final_args, fn->collation, context, NULL);
	call->args[0] = state;
	for (int i = 1; i < fn->n_final_args; i++)
	{
		call->args[i].value = (Datum) 0;
		call->args[i].isnull = true;
	}
	result = FunctionCallInvoke(call);
	if (call->isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result);
}

Datum
mr_merge_state_final(PG_FUNCTION_ARGS)
{
	MrMergeState *merge;

	if (!AggCheckCallContext(fcinfo, NULL))
		elog(ERROR, "merge_state called in non-aggregate context");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	merge = (MrMergeState *) PG_GETARG_POINTER(0);
	return final_value(merge->fn, merge->state, fcinfo, fcinfo->context);
}

NullableDatum
mr_merge_serial(MrMergeState *merge, fmNodePtr context)
{
	LOCAL_FCINFO(call, 1);
	MrMergeFunctions *fn = merge->fn;
	NullableDatum result = merge->state;

	if (!fn->is_internal || (result.isnull && fn->serial_fn.fn_strict))
		return result;
	InitFunctionCallInfoData(*call, &fn->serial_fn, 1, InvalidOid, context, NULL);
	call->args[0] = result;
	result.value = FunctionCallInvoke(call);
	result.isnull = call->isnull;
	if (!result.isnull && fn->is_sealed)
		result.value = mr_seal_state(fn->deserial_fn.fn_oid, result.value);
	return result;
}

/* fold_state(aggregate regprocedure, state anyelement) returns anyelement: one state for many */
Datum
mr_fold_state_final(PG_FUNCTION_ARGS)
{
	NullableDatum result;

	if (!AggCheckCallContext(fcinfo, NULL))
		elog(ERROR, "fold_state called in non-aggregate context");
	if (PG_ARGISNULL(0))
		PG_RETURN_NULL();
	result = mr_merge_serial((MrMergeState *) PG_GETARG_POINTER(0), fcinfo->context);
	if (result.isnull)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(result.value);
}

/* final_state(aggregate regprocedure, result anyelement, state "any") returns anyelement: the value of one state */
typedef struct FinalState
{
	MrMergeFunctions *fn;
	AggState *agg;
} FinalState;

AggState *
mr_make_agg_node(void)
{
	AggState *agg = makeNode(AggState);

	agg->curaggcontext = CreateStandaloneExprContext();
	return agg;
}

Datum
mr_final_state(PG_FUNCTION_ARGS)
{
	FinalState *final = fcinfo->flinfo->fn_extra;
	NullableDatum state;

	if (PG_ARGISNULL(0))
		ereport(
			ERROR,
			(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("aggregate of final_state must not be null")));
	if (final == NULL || final->fn->agg_fn != PG_GETARG_OID(0))
	{
		MemoryContext old = MemoryContextSwitchTo(fcinfo->flinfo->fn_mcxt);

		final = palloc(sizeof(FinalState));
		final->agg = mr_make_agg_node();
		final->fn = mr_merge_functions(PG_GETARG_OID(0), get_fn_expr_argtype(fcinfo->flinfo, 1),
									   get_fn_expr_argtype(fcinfo->flinfo, 2), PG_GET_COLLATION(),
									   CurrentMemoryContext);
		fcinfo->flinfo->fn_extra = final;
		MemoryContextSwitchTo(old);
	}
	/* A value that the function returns may lie in the Agg node's memory; it lives until the next call. */
	ResetExprContext(final->agg->curaggcontext);
	state = stored_value(final->fn, fcinfo->args[2], (fmNodePtr) final->agg);
	return final_value(final->fn, state, fcinfo, (fmNodePtr) final->agg);
}
