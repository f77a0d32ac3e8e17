/*
 * federate.c: continuous aggregates whose states lie in several databases.
 *
 * A node shares an aggregate by a view of its states, NAME_partial.  The database that reads them all has the same
 * aggregate, foreign tables over the views of the nodes, and a view that merges these states with its own, as NAME does
 * (texts: definition.c, rollup.c).  Here are the writes of the catalog: millrace.shared and millrace.federated.
 */
#include "millrace.h"

#include "catalog/namespace.h"
#include "catalog/pg_class.h"
#include "utils/acl.h"

PG_FUNCTION_INFO_V1(mr_shared_put);
PG_FUNCTION_INFO_V1(mr_federated_put);

static void
check_owner(Oid rel, char relkind)
{
	char found = get_rel_relkind(rel);

	if (found != relkind)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("relation with OID %u is not a %s", rel,
						relkind == RELKIND_VIEW ? "view" : "foreign table")));
	if (!mr_owns_relation(rel, GetUserId()))
		aclcheck_error(ACLCHECK_NOT_OWNER, get_relkind_objtype(found), get_rel_name(rel));
}

static void
catalog_exec(const char *sql, int expected, int n_args, Oid *types, Datum *values)
{
	MrGuard guard;

	mr_enter_catalog(&guard, "shared");
	SPI_connect();
	mr_exec_args(sql, expected, false, n_args, types, values, NULL);
	SPI_finish();
	mr_leave(&guard);
}

/* _shared_put(name text, partial regclass): for the owner of the aggregate and the view; NULL: it is shared no more */
Datum
mr_shared_put(PG_FUNCTION_ARGS)
{
	static Oid types[2] = {TEXTOID, REGCLASSOID};
	Datum values[2];

	if (PG_ARGISNULL(0))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED), errmsg("name must not be null")));
	values[0] = PG_GETARG_DATUM(0);
	mr_check_stream_owner(TextDatumGetCString(values[0]));
	if (PG_ARGISNULL(1))
	{
		catalog_exec("DELETE FROM " MR_SCHEMA ".shared WHERE name = $1", SPI_OK_DELETE, 1, types, values);
		PG_RETURN_VOID();
	}
	check_owner(PG_GETARG_OID(1), RELKIND_VIEW);
	mr_tie_to_extension(PG_GETARG_OID(1));
	values[1] = PG_GETARG_DATUM(1);
	catalog_exec("INSERT INTO " MR_SCHEMA
				 ".shared (name, partial) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET partial = "
				 "excluded.partial",
				 SPI_OK_INSERT, 2, types, values);
	PG_RETURN_VOID();
}

bool
mr_knows_federated(void)
{
	return OidIsValid(get_relname_relid("federated", get_namespace_oid(MR_SCHEMA, false)));
}

Oid
mr_shared_forget(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	Oid partial = InvalidOid;
	bool isnull;
	MrGuard guard;

	if (!mr_knows_federated())
		return InvalidOid;
	mr_enter_catalog(&guard, "shared");
	SPI_connect();
	mr_exec_args("DELETE FROM " MR_SCHEMA ".shared WHERE name = $1 RETURNING partial",
				 SPI_OK_DELETE_RETURNING, false, 1, types, values, NULL);
	if (SPI_processed > 0)
		partial = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	return partial;
}

void
mr_federated_forget(const char *name)
{
	static Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};

	if (mr_knows_federated())
		catalog_exec("DELETE FROM " MR_SCHEMA ".federated WHERE aggregate = $1", SPI_OK_DELETE, 1, types,
					 values);
}

void
mr_federated_sweep(void)
{
	Oid *rels, *owners;
	uint64 n_rels;
	bool isnull;
	MrGuard guard;
	MemoryContext context = CurrentMemoryContext;

	if (!mr_knows_federated())
		return;
	catalog_exec("DELETE FROM " MR_SCHEMA
				 ".shared s WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = s.partial)",
				 SPI_OK_DELETE, 0, NULL, NULL);
	mr_enter_catalog(&guard, "shared");
	SPI_connect();
	mr_exec("WITH gone AS (DELETE FROM " MR_SCHEMA
			".federated f WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = f.view)"
			" RETURNING f.owner, f.tables) SELECT c.oid, g.owner FROM gone g JOIN pg_catalog.pg_class c"
			" ON c.oid = ANY (g.tables::pg_catalog.oid[]) AND c.relkind = 'f'",
			SPI_OK_SELECT, false);
	n_rels = SPI_processed;
	rels = MemoryContextAlloc(context, (n_rels + 1) * 2 * sizeof(Oid));
	owners = rels + n_rels;
	for (uint64 i = 0; i < n_rels; i++)
	{
		rels[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &isnull));
		owners[i] = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2, &isnull));
	}
	SPI_finish();
	for (uint64 i = 0; i < n_rels; i++)
		mr_drop_relation(rels[i], "FOREIGN TABLE", owners[i], "CASCADE");
	mr_leave(&guard);
}

static void
remove_federated(Datum name)
{
	static Oid types[1] = {TEXTOID};
	Oid view = InvalidOid;
	bool isnull;
	MrGuard guard;

	mr_enter_catalog(&guard, "shared");
	SPI_connect();
	mr_exec_args("DELETE FROM " MR_SCHEMA ".federated WHERE name = $1 RETURNING view",
				 SPI_OK_DELETE_RETURNING, false, 1, types, &name, NULL);
	if (SPI_processed > 0)
		view = DatumGetObjectId(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
	SPI_finish();
	mr_leave(&guard);
	if (OidIsValid(view))
		check_owner(view, RELKIND_VIEW);
}

/*
 * _federated_put(name text, view regclass, aggregate text, servers name[], tables regclass[]): for the owner of all, the
 * aggregate included; a row whose view is gone makes room; with NULL for view the row goes, for the owner of the view
 */
Datum
mr_federated_put(PG_FUNCTION_ARGS)
{
	static Oid types[6] = {TEXTOID, REGCLASSOID, TEXTOID, NAMEARRAYOID, REGCLASSARRAYOID, REGROLEOID};
	Datum values[6];
	Datum *tables;
	int n_tables;

	if (!PG_ARGISNULL(0) && PG_ARGISNULL(1))
	{
		remove_federated(PG_GETARG_DATUM(0));
		PG_RETURN_VOID();
	}
	for (int i = 0; i < 5; i++)
	{
		if (PG_ARGISNULL(i))
			ereport(ERROR,
					(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
					 errmsg("argument %d of a federated aggregate must not be null", i + 1)));
		values[i] = PG_GETARG_DATUM(i);
	}
	values[5] = ObjectIdGetDatum(GetUserId());
	/* Whoever may read the view may learn the windows of the aggregate's states (window.c). */
	mr_check_stream_owner(TextDatumGetCString(values[2]));
	check_owner(PG_GETARG_OID(1), RELKIND_VIEW);
	mr_tie_to_extension(PG_GETARG_OID(1));
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(4), REGCLASSOID, sizeof(Oid), true, TYPALIGN_INT, &tables, NULL,
					  &n_tables);
	for (int i = 0; i < n_tables; i++)
	{
		check_owner(DatumGetObjectId(tables[i]), RELKIND_FOREIGN_TABLE);
		mr_tie_to_extension(DatumGetObjectId(tables[i]));
	}
	/* Where event triggers were off. */
	mr_federated_sweep();
	catalog_exec("INSERT INTO " MR_SCHEMA
				 ".federated (name, view, aggregate, servers, tables, owner) VALUES ($1, $2, $3, $4, $5, $6)",
				 SPI_OK_INSERT, 6, types, values);
	PG_RETURN_VOID();
}
