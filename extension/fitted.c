/*
 * fitted.c: what a backend keeps of models that are small: clusters, labels, scales.
 *
 * Functions like index_of are called once a row, from any plan, from parallel workers, in triggers.  Which version is active is for the
 * snapshot to say, so it is looked up (two index scans, some microseconds) when a call sees another snapshot than
 * the one before, that is once a statement.  What a version has learnt is read from its table once a backend,
 * and kept by the uuid of the version, which stands for the same contents for ever.  A version in use by a function's
 * fn_extra is pinned; the others go, longest unused first, when they are too many or too large.
 */
#include "model.h"

#include "access/genam.h"
#include "access/xact.h"
#include "utils/fmgroids.h"
#include "utils/snapmgr.h"

#define MAX_KEPT 32
#define MAX_KEPT_BYTES (64 * 1024 * 1024)

static List *kept = NIL; /* of MrFitted */
static uint64 use_clock = 0;

/*
 * Counts the ends of transactions and the aborts of subtransactions of this backend.
 *
 * Two snapshots that a backend takes between two counts with the same xmin, xmax, numbers of running transactions, and
 * command show the same.  A transaction below xmax had its xid when the first was taken, so one that runs in the
 * second ran in the first: what runs in the second is a part of what ran in the first, and as many, hence the same.  Of
 * the backend's own transaction, which is not among them, a snapshot shows what commands before its own did; the numbers of commands
 * never go back, and what was done is undone only by an abort, which counts.
 */
static uint64 n_ends = 0;

typedef struct Moment
{
	uint64 n_ends;
	TransactionId xmin;
	TransactionId xmax;
	uint32 n_running;
	int32 n_running_sub; /* on a standby, which has all of them there */
	CommandId command;
} Moment;

/* What a function remembers from call to call, in fn_extra. */
typedef struct Memory
{
	MemoryContextCallback callback;
	Moment moment;
	MrFitted *fitted; /* pinned; NULL: none */
} Memory;

static void
count_end(XactEvent event, void *arg)
{
	n_ends++;
}

static void
count_sub_end(SubXactEvent event, SubTransactionId sub, SubTransactionId parent, void *arg)
{
	if (event == SUBXACT_EVENT_ABORT_SUB)
		n_ends++;
}

static void
forget_fitted(void *arg)
{
	Memory *memory = arg;

	if (memory->fitted)
		memory->fitted->n_pins--;
	memory->fitted = NULL;
}

static Memory *
new_memory(FunctionCallInfo fcinfo)
{
	static bool registered = false;
	Memory *memory = MemoryContextAllocZero(fcinfo->flinfo->fn_mcxt, sizeof(Memory));

	if (!registered)
	{
		RegisterXactCallback(count_end, NULL);
		RegisterSubXactCallback(count_sub_end, NULL);
		registered = true;
	}
	memory->callback.func = forget_fitted;
	memory->callback.arg = memory;
	MemoryContextRegisterResetCallback(fcinfo->flinfo->fn_mcxt, &memory->callback);
	return fcinfo->flinfo->fn_extra = memory;
}

static bool
is_moment(const Moment *moment, const SnapshotData *snapshot)
{
	return moment->n_ends == n_ends && moment->xmin == snapshot->xmin && moment->xmax == snapshot->xmax &&
		moment->n_running == snapshot->xcnt && moment->n_running_sub == snapshot->subxcnt &&
		moment->command == snapshot->curcid;
}

static bool
is_name(const MrFitted *fitted, const text *name)
{
	size_t n_bytes = VARSIZE_ANY_EXHDR(name);

	return strncmp(fitted->name, VARDATA_ANY(name), n_bytes) == 0 && fitted->name[n_bytes] == '\0';
}

/* ---- what is kept ---- */

static MrFitted *
find_kept(const pg_uuid_t *uuid)
{
	ListCell *lc;

	foreach (lc, kept)
	{
		MrFitted *fitted = lfirst(lc);

		if (memcmp(&fitted->uuid, uuid, sizeof(pg_uuid_t)) == 0)
			return fitted;
	}
	return NULL;
}

/* Makes room by what is longest unused. */
static void
forget_oldest(void)
{
	for (;;)
	{
		MrFitted *oldest = NULL;
		Size n_bytes = 0;
		ListCell *lc;

		foreach (lc, kept)
		{
			MrFitted *fitted = lfirst(lc);

			n_bytes += fitted->n_bytes;
			if (fitted->n_pins == 0 && (oldest == NULL || fitted->last_use < oldest->last_use))
				oldest = fitted;
		}
		if (oldest == NULL || (list_length(kept) <= MAX_KEPT && n_bytes <= MAX_KEPT_BYTES))
			return;
		kept = list_delete_ptr(kept, oldest);
		MemoryContextDelete(oldest->context);
	}
}

static char *
parameters_of(const MrActiveRow *row)
{
	Relation rel = table_open(mr_catalog("model_version"), AccessShareLock);
	bool null;
	Jsonb *parameters = DatumGetJsonbP(mr_column(rel, row->tuple, "parameters", &null));

	table_close(rel, AccessShareLock);
	return JsonbToCString(NULL, &parameters->root, VARSIZE(parameters));
}

static MrFitted *
load_version(const char *name, MrKind kind, const MrActiveRow *row, MrFittedLoad load)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace fitted", ALLOCSET_SMALL_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	MrFitted *fitted = palloc0(sizeof(MrFitted));

	fitted->kind = kind;
	fitted->name = pstrdup(name);
	fitted->version = row->version;
	fitted->uuid = row->uuid;
	fitted->context = context;
	fitted->data = load(fitted->name, fitted->version, parameters_of(row));
	fitted->n_bytes = MemoryContextMemAllocated(context, true);
	MemoryContextSwitchTo(CacheMemoryContext);
	kept = lappend(kept, fitted);
	MemoryContextSetParent(context, CacheMemoryContext);
	MemoryContextSwitchTo(before);
	return fitted;
}

/* By the catalog; memory's moment is this one's afterwards, unless there is an error. */
static void
look_up(Memory *memory, const SnapshotData *snapshot, text *name, MrKind kind, MrFittedLoad load)
{
	char *string = text_to_cstring(name);
	MrActiveRow row;
	MrFitted *fitted;

	forget_fitted(memory);
	mr_active_row(string, kind, &row);
	fitted = find_kept(&row.uuid);
	if (fitted == NULL)
		fitted = load_version(string, kind, &row, load);
	fitted->last_use = ++use_clock;
	fitted->n_pins++;
	memory->fitted = fitted;
	memory->moment = (Moment){
		n_ends, snapshot->xmin, snapshot->xmax, snapshot->xcnt, snapshot->subxcnt, snapshot->curcid,
	};
	forget_oldest();
	pfree(string);
}

const MrFitted *
mr_fitted_open(FunctionCallInfo fcinfo, text *name, MrKind kind, MrFittedLoad load)
{
	Memory *memory = fcinfo->flinfo->fn_extra;
	const SnapshotData *snapshot = GetActiveSnapshot();

	if (memory == NULL)
		memory = new_memory(fcinfo);
	if (memory->fitted == NULL || !is_moment(&memory->moment, snapshot) || !is_name(memory->fitted, name))
		look_up(memory, snapshot, name, kind, load);
	return memory->fitted;
}

void
mr_version_rows(const char *table, const char *name, int version, MrVersionRow row, void *arg)
{
	Relation rel = table_open(mr_catalog(table), AccessShareLock);
	Relation index = index_open(mr_catalog(psprintf("%s_pkey", table)), AccessShareLock);
	ScanKeyData keys[2];
	SysScanDesc scan;
	HeapTuple tuple;

	ScanKeyEntryInitialize(&keys[0], 0, 1, BTEqualStrategyNumber, InvalidOid,
						   TupleDescAttr(RelationGetDescr(rel), 0)->attcollation, F_TEXTEQ,
						   CStringGetTextDatum(name));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT4EQ, Int32GetDatum(version));
	scan = systable_beginscan_ordered(rel, index, GetActiveSnapshot(), lengthof(keys), keys);
	while ((tuple = systable_getnext_ordered(scan, ForwardScanDirection)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		row(arg, rel, tuple);
	}
	systable_endscan_ordered(scan);
	index_close(index, AccessShareLock);
	table_close(rel, AccessShareLock);
}
