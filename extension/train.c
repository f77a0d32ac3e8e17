/*
 * train.c: millrace.train_als, and the threads and BLAS that computing needs.
 *
 * A training runs in four phases: read the ratings (as the model's owner), turn them both ways, iterate on the
 * threads of core, store the result as a new version.  Only the last writes, so whatever ends a training earlier
 * leaves nothing behind.  While threads run, this process does nothing but wait and look for interrupts; one is
 * served when all threads have paused (see MrcHost), so an error never unwinds under a running thread.
 */
#include "model.h"

#include <dlfcn.h>
#include <float.h>
#include <math.h>
#include <signal.h>

#include "tcop/utility.h"
#include "utils/float.h"

PG_FUNCTION_INFO_V1(mr_train_als);

/* ---- threads ---- */

typedef struct PoolOwner
{
	MemoryContextCallback callback;
	MrcPool *pool; /* NULL once stopped */
} PoolOwner;

static bool
interrupt_pending(void *arg)
{
	return InterruptPending;
}

static bool
serve_interrupt(void *arg)
{
	CHECK_FOR_INTERRUPTS();
	return true;
}

static void
stop_pool(void *arg)
{
	PoolOwner *owner = arg;

	if (owner->pool)
		mrc_pool_stop(owner->pool);
	owner->pool = NULL;
}

/* The PoolOwner stands before the pool's memory. */
#define POOL_OWNER_BYTES TYPEALIGN(64, sizeof(PoolOwner))

MrcPool *
mr_pool_create(MemoryContext context, int n_threads)
{
	const MrcHost host = {interrupt_pending, serve_interrupt, NULL};
	char *memory = MemoryContextAllocZero(context, POOL_OWNER_BYTES + mrc_pool_bytes(n_threads));
	PoolOwner *owner = (PoolOwner *) memory;

	owner->callback.func = stop_pool;
	owner->callback.arg = owner;
	MemoryContextRegisterResetCallback(context, &owner->callback);
	if (mrc_pool_start(&owner->pool, memory + POOL_OWNER_BYTES, n_threads, &host) != MRC_OK)
		ereport(ERROR, (errcode(ERRCODE_INSUFFICIENT_RESOURCES), errmsg("could not start a thread")));
	return owner->pool;
}

void
mr_pool_destroy(MrcPool *pool)
{
	stop_pool((char *) pool - POOL_OWNER_BYTES);
}

/* ---- BLAS ---- */

/*
 * Loaded when first needed, not linked: loading costs 2 ms (serial OpenBLAS 0.3.21), and most backends only run
 * triggers.  A threaded OpenBLAS starts its threads while it loads; it is told to have one, and should it start
 * others they inherit a mask that keeps the server's signals from them.
 */
const MrcBlas *
mr_blas(void)
{
	static MrcBlas blas;
	static bool tried = false;
	void *library;
	void (*set_threads)(int);
	sigset_t all;
	sigset_t before;

	if (tried)
		return &blas;
	tried = true;
	(void) setenv("OPENBLAS_NUM_THREADS", "1", 1);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (library == NULL)
	{
		ereport(DEBUG1,
				(errmsg("no BLAS: %s", dlerror()), errhint("Install the package libopenblas0-serial.")));
		return &blas;
	}
	set_threads = (void (*)(int)) dlsym(library, "openblas_set_num_threads");
	if (set_threads)
		set_threads(1);
	*(void **) &blas.sgemm = dlsym(library, "cblas_sgemm");
	return &blas;
}

/* ---- arguments ---- */

typedef struct Training
{
	char *name;
	char *ratings;
	MrcAlsParams params;
	int n_iterations;
	int64 seed;
	int n_threads;
	Oid owner;
	char *query;
	ArrayType *settings;
	MrBudget *budget;
	MrIteration *history; /* n_iterations */
	MrSide users;
	MrSide items;
	MrSide baseline;
	int64 n_ratings;
	double seconds;
} Training;

static void
null_argument(const char *argument)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be NULL", argument)));
}

static int
int_arg(FunctionCallInfo fcinfo, int n, const char *argument, int least, int most)
{
	int value;

	if (PG_ARGISNULL(n))
		null_argument(argument);
	value = PG_GETARG_INT32(n);
	if (value < least || value > most)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between %d and %d, not %d", argument, least, most, value)));
	return value;
}

/* Finite and not negative. */
static double
float_arg(FunctionCallInfo fcinfo, int n, const char *argument)
{
	double value;

	if (PG_ARGISNULL(n))
		null_argument(argument);
	value = PG_GETARG_FLOAT8(n);
	if (!(value >= 0 && value <= FLT_MAX))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be a finite number that is not negative, not %g", argument, value)));
	return value;
}

/* A float argument, or what is usual for this kind of feedback. */
static double
float_arg_or(FunctionCallInfo fcinfo, int n, const char *argument, double usual)
{
	return PG_ARGISNULL(n) ? usual : float_arg(fcinfo, n, argument);
}

/*
 * Usual values.  Implicit: precision@5 on half of Online Retail's pairs (rank 64, 15 iterations, values = rows) is 0.286
 * with Hu-Koren-Volinsky at 0.1, 0.300 with it at its best (30), and 0.308 with unobserved weight 0.3 and 0.01 times the
 * frequencies, which also suits Complete Journey and, being relative to the data's size, small data.  Explicit: Spark's.
 */
#define IMPLICIT_REGULARIZATION 0.01
#define IMPLICIT_EXPONENT 1
#define EXPLICIT_REGULARIZATION 0.1
#define EXPLICIT_EXPONENT 1
#define MAX_EXPONENT 10

static void
read_arguments(FunctionCallInfo fcinfo, Training *training)
{
	MrcAlsParams *params = &training->params;
	bool implicit;

	training->name = mr_name_arg(fcinfo, 0, "model");
	training->ratings = mr_name_arg(fcinfo, 1, "ratings");
	params->rank = int_arg(fcinfo, 2, "rank", 1, MRC_MAX_RANK);
	training->n_iterations = int_arg(fcinfo, 3, "iterations", 1, 10000);
	if (PG_ARGISNULL(6))
		null_argument("implicit");
	implicit = params->implicit = PG_GETARG_BOOL(6);
	params->regularization = float_arg_or(fcinfo, 4, "regularization",
										  implicit ? IMPLICIT_REGULARIZATION : EXPLICIT_REGULARIZATION);
	params->alpha = float_arg(fcinfo, 5, "alpha");
	if (PG_ARGISNULL(7))
		null_argument("seed");
	training->seed = PG_GETARG_INT64(7);
	training->n_threads = int_arg(fcinfo, 8, "threads", 0, 1024);
	params->unobserved = float_arg(fcinfo, 9, "unobserved_weight");
	params->exponent =
		float_arg_or(fcinfo, 10, "regularization_exponent", implicit ? IMPLICIT_EXPONENT : EXPLICIT_EXPONENT);
	if (params->exponent > MAX_EXPONENT)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("regularization_exponent must be between 0 and %d, not %g", MAX_EXPONENT,
						params->exponent)));
}

/* ---- phases ---- */

static void
als_error(const MrcAls *als, const MrRatings *ratings, MrcStatus status)
{
	MrKey key;
	char *who;

	if (als->bad_row < 0)
		elog(ERROR, "training failed with status %d", status);
	key = mr_ids_key(als->bad_user ? &ratings->users : &ratings->items, als->bad_row);
	who = psprintf("%s \"%s\"", als->bad_user ? "user" : "item", mr_key_cstring(&key));
	if (status == MRC_NOTPD)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("the equations of %s have no unique solution", who),
				 errhint("Raise regularization, or lower rank.")));
	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("the factors of %s are out of range", who),
			 errhint("Scale the values or alpha down, or raise regularization.")));
}

static void
iterate(Training *training, MrcAls *als, const MrRatings *ratings)
{
	double start_ms = mr_now_ms();

	for (int i = 0; i < training->n_iterations; i++)
	{
		MrIteration *iteration = &training->history[i];
		double before_ms = mr_now_ms();
		MrcStatus status;
		double now_ms;

		CHECK_FOR_INTERRUPTS();
		status = mrc_als_iterate(als);
		if (status != MRC_OK)
			als_error(als, ratings, status);
		if (!isfinite(als->loss))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("the loss is not finite"),
					 errhint("Scale the values or alpha down, or raise regularization.")));
		now_ms = mr_now_ms();
		iteration->loss = als->loss;
		iteration->seconds = (now_ms - before_ms) / 1e3;
		ereport(NOTICE,
				(errmsg("model \"%s\": iteration %d of %d: loss %.6g, %.2f s, %.1f s left", training->name,
						i + 1, training->n_iterations, als->loss, iteration->seconds,
						(now_ms - start_ms) / 1e3 / (i + 1) * (training->n_iterations - i - 1))));
	}
}

/* Root mean square of the values, or 1 where that is 0. */
static double
size_of_values(const MrcCsr *csr)
{
	double sum = 0;

	for (int64 row = 0; row < csr->n_rows; row++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[row]; e < csr->start[row + 1]; e++)
			sum += (double) csr->value[e] * csr->value[e];
	}
	return sum > 0 ? sqrt(sum / csr->start[csr->n_rows]) : 1;
}

static void
factorize(Training *training, MrRatings *ratings)
{
	MrBudget *budget = training->budget;
	MrcAls als = {.params = training->params, .blas = mr_blas(), .by_user = ratings->by_user};
	int rank = training->params.rank;
	int n_threads = mr_n_threads(training->n_threads);

	mr_csr_transpose(budget, &ratings->by_user, &als.by_item);
	als.user = mr_reserve(budget, ratings->users.n * rank * sizeof(float));
	als.item = mr_reserve(budget, ratings->items.n * rank * sizeof(float));
	als.scratch =
		mr_reserve(budget, mrc_als_scratch_bytes(&als.params, ratings->users.n, ratings->items.n, n_threads));
	als.pool = mr_pool_create(budget->context, n_threads);
	if (mrc_als_start(&als, (uint64) training->seed,
					  als.params.implicit ? 1 : sqrt(size_of_values(&als.by_user))) != MRC_OK)
		elog(ERROR, "training could not start");
	iterate(training, &als, ratings);
	mr_pool_destroy(als.pool);
	mr_release(budget, als.scratch);
	training->users = (MrSide){ratings->users, rank, als.user};
	training->items = (MrSide){ratings->items, rank, als.item};

	/* Popularity: how many users have the item; 0 times is not. */
	training->baseline = (MrSide){ratings->items, 1, mr_reserve(budget, ratings->items.n * sizeof(float))};
	for (int64 i = 0; i < ratings->items.n; i++)
	{
		int64 n = als.by_item.start[i + 1] - als.by_item.start[i];

		CHECK_FOR_INTERRUPTS();
		for (int64 e = als.by_item.start[i]; e < als.by_item.start[i + 1] && als.params.implicit; e++)
			n -= !(als.by_item.value[e] > 0);
		training->baseline.factors[i] = (float) n;
	}
	training->n_ratings = als.by_item.start[als.by_item.n_rows];
}

static int
store(const Training *training)
{
	const MrcAlsParams *params = &training->params;
	double loss = training->history[training->n_iterations - 1].loss;
	MrNewModel new_model = {
		.name = training->name,
		.owner = training->owner,
		.query = training->query,
		.settings = training->settings,
		.parameters =
			psprintf("{\"rank\": %d, \"iterations\": %d, \"regularization\": %s, \"alpha\": %s, "
					 "\"implicit\": %s, \"seed\": " INT64_FORMAT ", \"unobserved_weight\": %s, "
					 "\"regularization_exponent\": %s}",
					 params->rank, training->n_iterations, float8out_internal(params->regularization),
					 float8out_internal(params->alpha), params->implicit ? "true" : "false", training->seed,
					 float8out_internal(params->unobserved), float8out_internal(params->exponent)),
		.metrics = psprintf("{\"loss\": %s, \"seconds\": %.3f}", float8out_internal(loss), training->seconds),
		.n_ratings = training->n_ratings,
		.n_iterations = training->n_iterations,
		.iterations = training->history,
		.users = training->users,
		.items = training->items,
		.baseline = training->baseline,
	};

	return mr_model_store(&new_model);
}

static Datum
result_row(FunctionCallInfo fcinfo, const Training *training, int version)
{
	TupleDesc desc;
	Datum values[9];
	bool nulls[9] = {false};

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = CStringGetTextDatum(training->name);
	values[1] = Int32GetDatum(version);
	values[2] = Int64GetDatum(training->users.ids.n);
	values[3] = Int64GetDatum(training->items.ids.n);
	values[4] = Int64GetDatum(training->n_ratings);
	values[5] = Int32GetDatum(training->params.rank);
	values[6] = Int32GetDatum(training->n_iterations);
	values[7] = Float8GetDatum(training->history[training->n_iterations - 1].loss);
	values[8] = Float8GetDatum(training->seconds);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}

Datum
mr_train_als(PG_FUNCTION_ARGS)
{
	Training training = {0};
	double start_ms = mr_now_ms();
	MrRatings *ratings;
	MrGuard guard;
	Datum result;
	int version;

	PreventCommandIfReadOnly("millrace.train_als()");
	read_arguments(fcinfo, &training);
	training.owner = mr_model_lock(training.name, false);
	if (!OidIsValid(training.owner))
		training.owner = GetUserId();
	training.settings = mr_current_settings();
	training.budget = mr_budget_create("millrace training");
	training.history = mr_reserve(training.budget, training.n_iterations * sizeof(MrIteration));
	SPI_connect();

	/* As the owner: who retrains another's model, a superuser say, must not lend his rights to its query. */
	mr_enter(&guard, training.owner, training.settings);
	training.query = mr_ratings_query(training.ratings, "ratings");
	ratings = mr_ratings_read(training.budget, training.query, "ratings", true,
							  training.params.implicit ? MR_VALUES_NOT_NEGATIVE : MR_VALUES_ANY, false);
	mr_leave(&guard);

	factorize(&training, ratings);
	training.seconds = (mr_now_ms() - start_ms) / 1e3;
	version = store(&training);
	SPI_finish();
	training.seconds = (mr_now_ms() - start_ms) / 1e3;
	result = result_row(fcinfo, &training, version);
	MemoryContextDelete(training.budget->context);
	PG_RETURN_DATUM(result);
}
