/*
 * millrace.c: module start, settings, and the few things that every other file needs.
 */
#include "millrace.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include "catalog/namespace.h"
#include "nodes/nodeFuncs.h"
#include "parser/parse_type.h"
#include "storage/lmgr.h"
#include "tcop/tcopprot.h"
#include "utils/guc.h"
#include "utils/plancache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"
#include "catalog/pg_class.h"

PG_MODULE_MAGIC;

int mr_max_memory_kb = 2 * 1024 * 1024;
int mr_threads = 0;
int mr_max_future_s = 3600;
int mr_keep_batches = 10000;

/* The settings that decide what the text of a query means; stored with every stream and model. */
static const char *const MEANING[] = {"search_path",
									  "TimeZone",
									  "DateStyle",
									  "IntervalStyle",
									  "extra_float_digits",
									  "bytea_output",
									  "standard_conforming_strings",
									  "transform_null_equals",
									  "array_nulls",
									  "default_text_search_config"};

PGDLLEXPORT void _PG_init(void);
PG_FUNCTION_INFO_V1(mr_version);

void
_PG_init(void)
{
	DefineCustomIntVariable("millrace.max_memory", "Most memory that one training may allocate.",
							"A training that would need more is refused before it starts.", &mr_max_memory_kb,
							2 * 1024 * 1024, 1024, INT_MAX, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.threads", "Threads of one training or batch scoring.",
							"0 means one per processor.", &mr_threads, 0, 0, 1024, PGC_SUSET, 0, NULL, NULL,
							NULL);
	DefineCustomIntVariable(
		"millrace.cache_size", "How much disk space the cache files of a database may take.",
		"Files used longest ago give way; a model that does not fit is kept in each session's own memory.",
		&mr_cache_size_kb, 4 * 1024 * 1024, 0, INT_MAX, PGC_SUSET, GUC_UNIT_KB, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.max_future",
							"How far ahead of the clock an event time may be and still move a watermark.",
							"Later ones are counted in their windows, but close no others.", &mr_max_future_s,
							3600, 0, INT_MAX, PGC_SUSET, GUC_UNIT_S, NULL, NULL, NULL);
	DefineCustomIntVariable("millrace.keep_batches",
							"How many rows of millrace.batches are kept for each source, the newest.", NULL,
							&mr_keep_batches, 10000, 0, INT_MAX, PGC_SUSET, 0, NULL, NULL, NULL);
	MarkGUCPrefixReserved("millrace");
}

Datum
mr_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(MILLRACE_VERSION));
}

/*
 * A search_path in which temporary tables come last: where a name is found elsewhere, a caller's temporary table
 * cannot take its place.  (Where it is found nowhere else mr_prepare refuses it.)
 */
static char *
path_without_temp(const char *path)
{
	StringInfoData out;
	List *schemas;
	ListCell *lc;

	if (!SplitIdentifierString(pstrdup(path), ',', &schemas))
		elog(ERROR, "malformed search_path \"%s\"", path);
	initStringInfo(&out);
	foreach (lc, schemas)
		if (strcmp(lfirst(lc), "pg_temp") != 0 && strncmp(lfirst(lc), "pg_temp_", 8) != 0)
			appendStringInfo(&out, "%s, ", quote_identifier(lfirst(lc)));
	appendStringInfoString(&out, "pg_temp");
	return out.data;
}

ArrayType *
mr_current_settings(void)
{
	Datum pairs[lengthof(MEANING)];

	for (int i = 0; i < lengthof(MEANING); i++)
	{
		const char *value = GetConfigOption(MEANING[i], false, false);

		if (i == 0)
			value = path_without_temp(value);
		pairs[i] = CStringGetTextDatum(psprintf("%s=%s", MEANING[i], value));
	}
	return construct_array(pairs, lengthof(MEANING), TEXTOID, -1, false, TYPALIGN_INT);
}

void
mr_enter(MrGuard *guard, Oid owner, ArrayType *settings)
{
	GetUserIdAndSecContext(&guard->user, &guard->security);
	SetUserIdAndSecContext(owner,
						   guard->security | SECURITY_LOCAL_USERID_CHANGE | SECURITY_RESTRICTED_OPERATION);
	guard->gucs = NewGUCNestLevel();
	if (settings)
	{
		Datum *pairs;
		int n;

		deconstruct_array(settings, TEXTOID, -1, false, TYPALIGN_INT, &pairs, NULL, &n);
		for (int i = 0; i < n; i++)
		{
			char *name = TextDatumGetCString(pairs[i]);
			char *value = strchr(name, '=');
			const char *now;

			if (value == NULL)
				elog(ERROR, "malformed setting \"%s\"", name);
			*value++ = '\0';
			now = GetConfigOption(name, true, false);
			if (now == NULL || strcmp(now, value) != 0)
				(void) set_config_option(name, value, PGC_USERSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0,
										 false);
		}
	}
}

/* Plans that were replaced.  An outer call may still be running one, so they go when the transaction ends. */
static List *replaced_plans = NIL;

static void
free_replaced_plans(XactEvent event, void *arg)
{
	ListCell *lc;

	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT && event != XACT_EVENT_PREPARE)
		return;
	foreach (lc, replaced_plans)
		SPI_freeplan(lfirst(lc));
	list_free(replaced_plans);
	replaced_plans = NIL;
}

void
mr_plan_discard(SPIPlanPtr *kept)
{
	static bool registered = false;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);

	if (!registered)
		RegisterXactCallback(free_replaced_plans, NULL);
	registered = true;
	replaced_plans = lappend(replaced_plans, *kept);
	*kept = NULL;
	MemoryContextSwitchTo(old);
}

static void
refuse_temporary(const char *kind, const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("temporary %s \"%s\" cannot be used", kind, name),
			 errdetail("What is stored and runs later as its owner must not depend on a session."),
			 errhint("Use permanent objects.")));
}

/* Before a text is analysed: a literal of a type is read then, and a caller's domain would check it with his function. */
static bool
temporary_type_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	if (IsA(node, TypeName))
	{
		Type type = LookupTypeName(NULL, (TypeName *) node, NULL, true);

		if (type)
		{
			Form_pg_type form = (Form_pg_type) GETSTRUCT(type);

			if (isAnyTempNamespace(form->typnamespace))
				refuse_temporary("type", NameStr(form->typname));
			ReleaseSysCache(type);
		}
	}
	return raw_expression_tree_walker(node, temporary_type_walker, context);
}

SPIPlanPtr
mr_prepare(SPIPlanPtr *kept, const char *sql, int n_args, Oid *types)
{
	ListCell *lc, *lc2;
	SPIPlanPtr plan;

	if (*kept)
	{
		/* Locked, nothing that it names can be renamed or dropped, so it cannot come to mean another relation. */
		foreach (lc, SPI_plan_get_plan_sources(*kept))
			foreach (lc2, ((CachedPlanSource *) lfirst(lc))->relationOids)
				LockRelationOid(lfirst_oid(lc2), AccessShareLock);
		if (SPI_plan_is_valid(*kept))
			return *kept;
		mr_plan_discard(kept);
	}
	foreach (lc, pg_parse_query(sql))
	{
		Node *stmt = lfirst_node(RawStmt, lc)->stmt;

		if (IsA(stmt, SelectStmt) || IsA(stmt, InsertStmt))
			temporary_type_walker(stmt, NULL);
	}
	plan = SPI_prepare(sql, n_args, types);
	if (plan == NULL)
		elog(ERROR, "could not prepare: %s", SPI_result_code_string(SPI_result));
	foreach (lc, SPI_plan_get_plan_sources(plan))
		foreach (lc2, ((CachedPlanSource *) lfirst(lc))->relationOids)
			if (isAnyTempNamespace(get_rel_namespace(lfirst_oid(lc2))))
				refuse_temporary("relation", get_rel_name(lfirst_oid(lc2)));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "could not keep a plan");
	return *kept = plan;
}

void
mr_leave(MrGuard *guard)
{
	AtEOXact_GUC(false, guard->gucs);
	SetUserIdAndSecContext(guard->user, guard->security);
}

Oid
mr_catalog(const char *name)
{
	Oid rel = get_relname_relid(name, get_namespace_oid(MR_SCHEMA, false));

	if (!OidIsValid(rel))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("relation \"%s.%s\" does not exist", MR_SCHEMA, name),
				 errhint("Run CREATE EXTENSION millrace, or ALTER EXTENSION millrace UPDATE.")));
	return rel;
}

char *
mr_relation_name(Oid rel)
{
	char *name = get_rel_name(rel);
	char *schema = name ? get_namespace_name(get_rel_namespace(rel)) : NULL;

	if (schema == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE), errmsg("relation with OID %u does not exist", rel)));
	return quote_qualified_identifier(schema, name);
}

void
mr_enter_catalog(MrGuard *guard, const char *name)
{
	HeapTuple tuple = SearchSysCache1(RELOID, ObjectIdGetDatum(mr_catalog(name)));
	Oid owner;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for relation %s", name);
	owner = ((Form_pg_class) GETSTRUCT(tuple))->relowner;
	ReleaseSysCache(tuple);
	mr_enter(guard, owner, NULL);
	(void) set_config_option("search_path", "pg_catalog, pg_temp", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
mr_exec_args(const char *sql, int expected, bool read_only, int n_args, Oid *types, Datum *values,
			 const char *nulls)
{
	int rc = SPI_execute_with_args(sql, n_args, types, values, nulls, read_only, 0);

	if (rc != expected)
		elog(ERROR, "%s instead of %s from: %s", SPI_result_code_string(rc), SPI_result_code_string(expected),
			 sql);
}

void
mr_exec(const char *sql, int expected, bool read_only)
{
	mr_exec_args(sql, expected, read_only, 0, NULL, NULL, NULL);
}

ErrorData *
mr_attempt(void (*function)(void *arg), void *arg)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		function(arg);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	return error;
}

int
mr_n_threads(int requested)
{
	cpu_set_t cpus;
	int limit = mr_threads;

	if (limit == 0)
		limit =
			sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? CPU_COUNT(&cpus) : sysconf(_SC_NPROCESSORS_ONLN);
	limit = Max(limit, 1);
	return requested > 0 ? Min(requested, limit) : limit;
}

double
mr_now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1e3 + ts.tv_nsec / 1e6;
}
