/*
 * late.c: rows that a stream did not take: too late for it, or come while it was stopped or had failed.  They are kept
 * as jsonb in millrace.late_row, in the transaction that inserted them into the source.
 */
#include "millrace.h"

#include "access/xact.h"
#include "catalog/indexing.h"
#include "utils/snapmgr.h"
#include "utils/xid8.h"

/*
 * The rows as jsonb, by the current user, since types may bring casts to json of their own; then the catalog's row is
 * written directly.
 */
void
mr_divert(const char *stream, Oid leaf, Tuplestorestate *rows, const char *reason)
{
	Relation rel;
	Datum values[5];
	bool nulls[5] = {false};

	SPI_connect();
	if (SPI_register_relation(mr_new_rows_relation(MR_NEW_ROWS, leaf, rows)) < 0)
		elog(ERROR, "could not register the late rows");
	mr_exec("SELECT pg_catalog.to_jsonb(r) FROM " MR_NEW_ROWS " r", SPI_OK_SELECT, true);
	rel = table_open(mr_catalog("late_row"), RowExclusiveLock);
	values[0] = CStringGetTextDatum(stream);
	values[1] = FullTransactionIdGetDatum(GetTopFullTransactionId());
	values[2] = TimestampTzGetDatum(GetCurrentTransactionStartTimestamp());
	values[3] = CStringGetTextDatum(reason);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		HeapTuple tuple;

		values[4] = SPI_getbinval(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1, &nulls[4]);
		tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
		CatalogTupleInsert(rel, tuple);
		heap_freetuple(tuple);
	}
	table_close(rel, NoLock);
	SPI_finish();
}
