/*
 * train.c: millrace.train_als and retrain, and the threads and BLAS that computing needs.
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
#include "utils/json.h"

PG_FUNCTION_INFO_V1(mr_train_als);
PG_FUNCTION_INFO_V1(mr_retrain);

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
static void *
load_blas(void)
{
	void *library;
	sigset_t all;
	sigset_t before;

	(void) setenv("OPENBLAS_NUM_THREADS", "1", 1);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	library = dlopen("libopenblas.so.0", RTLD_NOW | RTLD_LOCAL);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return library;
}

/* What OpenBLAS should be told to use, unless somebody has said it; or NULL. */
static const char *
better_kernels(void *library)
{
	char *(*name)(void) = (char *(*) (void) ) dlsym(library, "openblas_get_corename");

	return name && getenv("OPENBLAS_CORETYPE") == NULL ? mrc_blas_kernels(name()) : NULL;
}

const MrcBlas *
mr_blas(void)
{
	static MrcBlas blas;
	static bool tried = false;
	void *library;
	const char *kernels;
	void (*set_threads)(int);

	if (tried)
		return &blas;
	tried = true;
	library = load_blas();
	kernels = library ? better_kernels(library) : NULL;
	if (kernels)
	{
		(void) setenv("OPENBLAS_CORETYPE", kernels, 1);
		(void) dlclose(library);
		library = load_blas();
	}
	if (library == NULL)
	{
		ereport(DEBUG1,
				(errmsg("no BLAS: %s", dlerror()), errhint("Install the package libopenblas0-serial.")));
		return &blas;
	}
	set_threads = (void (*)(int)) dlsym(library, "openblas_set_num_threads");
	if (set_threads)
		set_threads(1);
	*(void **) &blas.dsyevd = dlsym(library, "dsyevd_");
	return &blas;
}

/* ---- settings ---- */

/*
 * Usual values.  Implicit: precision@5 on half of Online Retail's pairs (rank 64, 15 iterations, values = rows) is 0.286
 * with Hu-Koren-Volinsky at 0.1, 0.300 with it at its best (30), and 0.308 with unobserved weight 0.3 and 0.01 times the
 * frequencies, which also suits Complete Journey and, being relative to the data's size, small data.  Explicit: Spark's.
 */
#define IMPLICIT_REGULARIZATION 0.01
#define IMPLICIT_EXPONENT 1
#define EXPLICIT_REGULARIZATION 0.1
#define EXPLICIT_EXPONENT 1

static const MrSetting SETTINGS[] = {
	{"rank", MR_SETTING_INT, 2, offsetof(MrAlsSettings, core.rank), 1, MRC_MAX_RANK},
	{"iterations", MR_SETTING_INT, 3, offsetof(MrAlsSettings, n_iterations), 1, 10000},
	{"regularization", MR_SETTING_FLOAT, 4, offsetof(MrAlsSettings, core.regularization), 0, FLT_MAX, true},
	{"alpha", MR_SETTING_FLOAT, 5, offsetof(MrAlsSettings, core.alpha), 0, FLT_MAX},
	{"implicit", MR_SETTING_BOOL, 6, offsetof(MrAlsSettings, core.implicit)},
	{"seed", MR_SETTING_INT64, 7, offsetof(MrAlsSettings, seed)},
	{"holdout", MR_SETTING_FLOAT, 9, offsetof(MrAlsSettings, holdout), 0, 0.99},
	{"unobserved_weight", MR_SETTING_FLOAT, 12, offsetof(MrAlsSettings, core.unobserved), 0, FLT_MAX},
	{"regularization_exponent", MR_SETTING_FLOAT, 13, offsetof(MrAlsSettings, core.exponent), 0, 10, true},
	{"value_transform", MR_SETTING_CHOICE, 14, offsetof(MrAlsSettings, transform), .choices = MR_TRANSFORMS},
	{"nonnegative", MR_SETTING_BOOL, 15, offsetof(MrAlsSettings, core.nonnegative)},
	{"tolerance", MR_SETTING_FLOAT, 16, offsetof(MrAlsSettings, tolerance), 0, 1},
	{"k", MR_SETTING_INT, 17, offsetof(MrAlsSettings, k), 1, 10000},
	{"own_history", MR_SETTING_FLOAT, 18, offsetof(MrAlsSettings, own_history), 0, FLT_MAX, true},
};

void
mr_als_settings_init(MrAlsSettings *settings)
{
	*settings = (MrAlsSettings){
		.core = {.rank = 64,
				 .implicit = true,
				 .alpha = 1,
				 .unobserved = 0.3,
				 .regularization = NAN,
				 .exponent = NAN},
		.n_iterations = 15,
		.seed = 1,
		.tolerance = 1e-6,
		.k = 10,
		.own_history = NAN,
	};
}

void
mr_als_settings_set(MrAlsSettings *settings, const char *key, const char *value)
{
	mr_setting_text(SETTINGS, lengthof(SETTINGS), key, value, settings);
}

void
mr_als_settings_finish(MrAlsSettings *settings)
{
	MrcAlsParams *core = &settings->core;

	if (isnan(core->regularization))
		core->regularization = core->implicit ? IMPLICIT_REGULARIZATION : EXPLICIT_REGULARIZATION;
	if (isnan(core->exponent))
		core->exponent = core->implicit ? IMPLICIT_EXPONENT : EXPLICIT_EXPONENT;
}

char *
mr_als_settings_json(const MrAlsSettings *settings)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	mr_settings_json(SETTINGS, lengthof(SETTINGS), settings, &json);
	appendStringInfoChar(&json, '}');
	return json.data;
}

const char *
mr_als_metric_name(const MrAlsSettings *settings)
{
	return settings->core.implicit ? "ndcg" : "rmse";
}

double
mr_als_metric(const MrAlsSettings *settings, const MrScores *scores)
{
	return settings->core.implicit ? scores->ndcg : scores->rmse;
}

/* ---- iterations ---- */

/*
 * Users that a training is measured on: at most these in the end, and after an iteration at most so many that they are
 * compared with so many items in all, lest measuring takes longer than training.  (2 ns for each on one core; 1,000 users
 * of Complete Journey, 2,500 of MovieLens-20M.)
 */
#define MEASURED_USERS 10000
#define MEASURED_LEAST 500
#define MEASURED_SCORES 67108864

/* What one training in memory goes by. */
typedef struct Run
{
	MrBudget *budget;
	const MrAlsSettings *settings;
	const MrRatings *ratings;
	const MrHoldout *holdout;
	const char *notice;
	MrcAls als;
	MrFit *fit;
	double start_ms;
} Run;

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

/*
 * Items that are known keep their factors, unless a training would not get away from there: of 0, and of negative ones if
 * all are to be nonnegative.
 */
static void
start_warm(MrcAls *als, const MrIds *items, const MrSide *warm)
{
	int rank = als->params.rank;

	if (warm->rank != rank)
		elog(ERROR, "a start of rank %d for a training of rank %d", warm->rank, rank);
	for (int64 i = 0; i < items->n; i++)
	{
		MrKey key = mr_ids_key(items, i);
		int64 row = mr_ids_find(&warm->ids, &key);
		const float *factors = warm->factors + Max(row, 0) * rank;
		bool some = false;
		bool negative = false;

		CHECK_FOR_INTERRUPTS();
		for (int f = 0; row >= 0 && f < rank; f++)
		{
			some |= factors[f] != 0;
			negative |= factors[f] < 0;
		}
		if (some && !(negative && als->params.nonnegative))
			memcpy(als->item + i * rank, factors, rank * sizeof(float));
	}
}

/* All memory, and where the iterations start. */
static void
prepare(Run *run, const MrSide *warm)
{
	const MrAlsSettings *settings = run->settings;
	const MrRatings *ratings = run->ratings;
	MrBudget *budget = run->budget;
	MrcAls *als = &run->als;
	MrFit *fit = run->fit;
	int n_threads = mr_n_threads(settings->n_threads);
	Size rank_bytes = settings->core.rank * sizeof(float);
	int64 n_ratings = ratings->by_user.start[ratings->users.n];
	Size scratch_bytes =
		mrc_als_scratch_bytes(&settings->core, ratings->users.n, ratings->items.n, n_threads);
	Size score_bytes = 0;
	Size own_bytes = 0;

	if (run->holdout)
		score_bytes = mr_holdout_score_bytes(ratings, run->holdout, settings->core.rank, settings->k,
											 MEASURED_USERS, n_threads);
	if (isnan(settings->own_history))
		own_bytes = mr_own_choose_bytes(settings, ratings, n_threads);
	mr_reserve_check(budget,
					 settings->n_iterations * sizeof(MrIteration) +
						 (ratings->users.n + ratings->items.n) * rank_bytes +
						 ratings->items.n * sizeof(float) + scratch_bytes + score_bytes + own_bytes +
						 mr_csr_bytes(ratings->items.n, n_ratings) +
						 mrc_turn_scratch_bytes(n_ratings, ratings->items.n, n_threads),
					 psprintf("A model of rank %d of " INT64_FORMAT " ratings with " INT64_FORMAT
							  " users and " INT64_FORMAT " items",
							  settings->core.rank, n_ratings, ratings->users.n, ratings->items.n));
	als->params = settings->core;
	als->blas = mr_blas();
	als->by_user = ratings->by_user;
	fit->history = mr_reserve(budget, settings->n_iterations * sizeof(MrIteration));
	fit->user = als->user = mr_reserve(budget, ratings->users.n * rank_bytes);
	fit->item = als->item = mr_reserve(budget, ratings->items.n * rank_bytes);
	fit->baseline = mr_reserve(budget, ratings->items.n * sizeof(float));
	als->scratch = mr_reserve(budget, scratch_bytes);
	als->pool = mr_pool_create(budget->context, n_threads);
	mr_csr_transpose(budget, als->pool, &ratings->by_user, &als->by_item);
	if (mrc_als_start(als, (uint64) settings->seed,
					  als->params.implicit ? 1 : sqrt(size_of_values(&als->by_user))) != MRC_OK)
		elog(ERROR, "training could not start");
	if (warm)
		start_warm(als, &ratings->items, warm);
}

/* Tell how iteration i went; seconds_left counts the measuring of those to come. */
static void
report(const Run *run, int i)
{
	const MrAlsSettings *settings = run->settings;
	const MrIteration *iteration = &run->fit->history[i];
	double seconds_left = (mr_now_ms() - run->start_ms) / 1e3 / (i + 1) * (settings->n_iterations - i - 1);
	char *metric = isnan(iteration->metric)
		? ""
		: psprintf(", %s %.4g", mr_als_metric_name(settings), iteration->metric);

	if (run->notice)
		ereport(NOTICE,
				(errmsg("%s: iteration %d of %d: loss %.6g%s, %.2f s, %.1f s left", run->notice, i + 1,
						settings->n_iterations, iteration->loss, metric, iteration->seconds, seconds_left)));
}

/* k 0: only the root mean squared error. */
static void
measure(Run *run, int k, int64 n_users)
{
	const MrAlsSettings *settings = run->settings;

	mr_holdout_score(run->budget, run->als.pool, run->ratings, run->holdout, settings->core.rank,
					 run->als.user, run->als.item, !settings->core.implicit, k, true, NULL, n_users,
					 &run->fit->scores);
}

static void
iterate_once(Run *run, MrIteration *iteration)
{
	const MrAlsSettings *settings = run->settings;
	MrcAls *als = &run->als;
	double before_ms = mr_now_ms();
	MrcStatus status;

	CHECK_FOR_INTERRUPTS();
	status = mrc_als_iterate(als);
	if (status != MRC_OK)
		als_error(als, run->ratings, status);
	if (!isfinite(als->loss))
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE), errmsg("the loss is not finite"),
				 errhint("Scale the values or alpha down, or raise regularization.")));
	iteration->loss = als->loss;
	iteration->seconds = (mr_now_ms() - before_ms) / 1e3;
	iteration->metric = NAN;
	if (run->holdout)
	{
		int64 n_users = MEASURED_SCORES / run->ratings->items.n;

		measure(run, settings->core.implicit ? settings->k : 0,
				Min(Max(n_users, MEASURED_LEAST), MEASURED_USERS));
		iteration->metric = mr_als_metric(settings, &run->fit->scores);
	}
}

static void
iterate(Run *run)
{
	const MrAlsSettings *settings = run->settings;
	MrIteration *history = run->fit->history;
	int i;

	run->start_ms = mr_now_ms();
	for (i = 0; i < settings->n_iterations; i++)
	{
		iterate_once(run, &history[i]);
		report(run, i);
		if (i > 0 &&
			history[i - 1].loss - history[i].loss < settings->tolerance * fabs(history[i - 1].loss) &&
			settings->tolerance > 0 && i + 1 < settings->n_iterations)
		{
			if (run->notice)
				ereport(NOTICE,
						(errmsg("%s: the loss no longer falls: ended after %d of %d iterations", run->notice,
								i + 1, settings->n_iterations)));
			i++;
			break;
		}
	}
	run->fit->n_iterations = i;
	if (run->holdout)
		measure(run, settings->k, MEASURED_USERS);
}

/* Popularity: how many users have the item; of implicit feedback, 0 times is not. */
static void
count_users(const MrcCsr *by_item, bool implicit, float *count)
{
	for (int64 item = 0; item < by_item->n_rows; item++)
	{
		int64 n = by_item->start[item + 1] - by_item->start[item];

		CHECK_FOR_INTERRUPTS();
		for (int64 e = by_item->start[item]; e < by_item->start[item + 1] && implicit; e++)
			n -= !(by_item->value[e] > 0);
		count[item] = (float) n;
	}
}

void
mr_als_fit(MrBudget *budget, const MrAlsSettings *settings, const MrRatings *ratings,
		   const MrHoldout *holdout, const MrSide *warm, const char *notice, MrFit *fit)
{
	Run run = {.budget = budget,
			   .settings = settings,
			   .ratings = ratings,
			   .holdout = holdout,
			   .notice = notice,
			   .fit = fit};

	memset(fit, 0, sizeof(*fit));
	prepare(&run, warm);
	iterate(&run);
	fit->own = (MrOwnChoice){.weight = settings->own_history, .n_users = -1};
	if (isnan(settings->own_history))
		mr_own_choose(budget, run.als.pool, settings, ratings, fit->item, &fit->own);
	mr_pool_destroy(run.als.pool);
	mr_release(budget, run.als.scratch);
	count_users(&run.als.by_item, settings->core.implicit, fit->baseline);
	mr_csr_release(budget, &run.als.by_item);
	fit->n_ratings = ratings->by_user.start[ratings->by_user.n_rows];
}

/* ---- train_als and retrain ---- */

/* Whether what users have is to be kept (track.c). */
typedef enum Track
{
	TRACK_IF_EASY,
	TRACK,
	TRACK_NOT
} Track;

typedef struct Training
{
	double start_ms;
	MrBudget *budget;
	char *name;
	char *ratings; /* the argument of train_als */
	MrAlsSettings als;
	bool warm_start;
	bool activate;
	Track track;
	double gate_tolerance; /* below 0: no gate */
	Oid owner;
	char *query; /* NULL until ratings has been understood */
	const MrUses *uses;
	ArrayType *settings;
	MrActive active; /* before */
	MrHoldout holdout;
	float *trained_on;
	int64 n_users;
	int64 n_items;
	MrFit fit;
	double seconds;
	bool activated;
	char *reason; /* why it is not active, or why no gate was passed; NULL: none to give */
} Training;

static void
train_als_arguments(FunctionCallInfo fcinfo, Training *training)
{
	MrAlsSettings *als = &training->als;

	training->name = mr_name_arg(fcinfo, 0, "model");
	training->ratings = mr_name_arg(fcinfo, 1, "ratings");
	mr_als_settings_init(als);
	mr_settings_args(SETTINGS, lengthof(SETTINGS), fcinfo, als);
	mr_als_settings_finish(als);
	als->n_threads = mr_threads_arg(fcinfo, 8);
	training->warm_start = mr_bool_arg(fcinfo, 10, "warm_start");
	training->activate = mr_bool_arg(fcinfo, 11, "activate");
	training->track = PG_ARGISNULL(19) ? TRACK_IF_EASY : PG_GETARG_BOOL(19) ? TRACK : TRACK_NOT;
	training->gate_tolerance = -1;
}

static void
retrain_arguments(FunctionCallInfo fcinfo, Training *training)
{
	const MrSetting tolerance = {"gate_tolerance", .least = 0, .most = FLT_MAX};

	training->name = mr_name_arg(fcinfo, 0, "model");
	training->warm_start = mr_bool_arg(fcinfo, 2, "warm_start");
	if (PG_ARGISNULL(4))
		mr_null_value(tolerance.name);
	training->gate_tolerance = PG_GETARG_FLOAT8(4);
	mr_check_range(&tolerance, training->gate_tolerance);
	training->activate = mr_bool_arg(fcinfo, 7, "activate");
}

/* What retrain changes in the definition that it repeats. */
static void
retrain_settings(FunctionCallInfo fcinfo, MrAlsSettings *als)
{
	static const struct
	{
		const char *name;
		int arg;
	} given[] = {{"iterations", 1}, {"holdout", 3}, {"seed", 6}};

	for (int i = 0; i < lengthof(SETTINGS); i++)
		for (int j = 0; j < lengthof(given); j++)
			if (strcmp(SETTINGS[i].name, given[j].name) == 0 && !PG_ARGISNULL(given[j].arg))
				mr_setting_datum(&SETTINGS[i], PG_GETARG_DATUM(given[j].arg), als);
	als->n_threads = mr_threads_arg(fcinfo, 5);
}

/*
 * Items of the active version to start from; false to start at random: if there is none, or if it has seen pairs that this
 * training holds out, which would flatter it.
 */
static bool
find_warm_start(const Training *training, MrBudget *budget, MrSide *items)
{
	const MrActive *active = &training->active;
	const MrAlsSettings *als = &training->als;

	if (active->version == 0)
		return false;
	if (als->holdout > 0 && (!active->trained || active->seed != als->seed || active->holdout < als->holdout))
	{
		ereport(
			NOTICE,
			(errmsg("model \"%s\": starts at random, not from version %d", training->name, active->version),
			 errdetail("That version may have seen what is held out now.")));
		return false;
	}
	mr_model_items(budget, training->name, active->version, items);
	if (items->rank != als->core.rank)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rank must be %d to start from version %d of model \"%s\", not %d", items->rank,
						active->version, training->name, als->core.rank),
				 errhint("Train with warm_start => false, or with the same rank.")));
	return true;
}

/* Ratings as they are trained on.  As the owner: who trains another's model, a superuser say, lends no rights to it. */
static MrRatings *
read_ratings(Training *training, MrBudget *budget)
{
	const MrAlsSettings *als = &training->als;
	MrPlan *plan = palloc0(sizeof(MrPlan));
	MrRatings *ratings;
	MrGuard guard;

	mr_enter(&guard, training->owner, training->settings);
	if (training->query == NULL)
		training->query = mr_ratings_query(training->ratings, "ratings");
	mr_plan_query(plan, CurrentMemoryContext, training->query, "ratings", true);
	training->uses = mr_query_uses(plan->plan);
	mr_plan_free(plan);
	ratings =
		mr_ratings_read_events(budget, training->query, "ratings",
							   als->core.implicit ? MR_VALUES_NOT_NEGATIVE : MR_VALUES_ANY, als->n_threads);
	mr_leave(&guard);
	training->trained_on = mr_history_fingerprints(budget, ratings);
	mr_ratings_transform(ratings, als->transform, "ratings");
	if (als->holdout > 0)
		mr_holdout_split(budget, ratings, als->holdout, als->seed, &training->holdout);
	training->n_users = ratings->users.n;
	training->n_items = ratings->items.n;
	return ratings;
}

/* Whether the new version becomes active, by comparison with what is active now; sets the reason. */
static bool
passes(Training *training)
{
	MrActive *active = &training->active;
	const MrAlsSettings *als = &training->als;
	double now = mr_als_metric(als, &training->fit.scores);
	const char *metric = mr_als_metric_name(als);
	double limit;

	if (!training->activate)
	{
		training->reason = "activate is false";
		return false;
	}
	if (training->gate_tolerance < 0)
		return true;
	mr_model_active(training->name, true, active);
	if (active->version == 0)
		training->reason = "no gate: no version was active";
	else if (als->holdout == 0)
		training->reason = "no gate: nothing was held out";
	else if (active->metric == NULL)
		training->reason = psprintf("no gate: nothing was held out of version %d", active->version);
	else if (strcmp(active->metric, metric) != 0 || (als->core.implicit && active->k != als->k))
		training->reason = psprintf("no gate: version %d was measured by %s at %d", active->version,
									active->metric, active->k);
	else if (!als->core.implicit &&
			 (active->transform == NULL || strcmp(active->transform, mr_transform_name(als->transform)) != 0))
		training->reason = psprintf("no gate: version %d has another value_transform", active->version);
	else if (active->holdout != als->holdout)
		training->reason = psprintf("no gate: another part was held out of version %d", active->version);
	if (training->reason)
		return true;
	if (isnan(now))
	{
		training->reason = psprintf("%s cannot be measured: nobody has anything relevant", metric);
		return false;
	}
	limit = active->metric_value *
		(1 + (als->core.implicit ? -training->gate_tolerance : training->gate_tolerance));
	if (als->core.implicit ? now >= limit : now <= limit)
		return true;
	training->reason = psprintf("%s %.4g is worse than the %.4g of version %d by more than %g %%", metric,
								now, active->metric_value, active->version, training->gate_tolerance * 100);
	return false;
}

/* What the training measured, as JSON. */
static char *
metrics_json(const Training *training)
{
	const MrFit *fit = &training->fit;
	const MrScores *scores = &fit->scores;
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"loss\": %s, \"seconds\": %.3f",
					 mr_json_number(fit->history[fit->n_iterations - 1].loss), training->seconds);
	if (training->als.holdout > 0)
	{
		appendStringInfo(&json, ", \"metric\": \"%s\", \"metric_value\": %s",
						 mr_als_metric_name(&training->als),
						 mr_json_number(mr_als_metric(&training->als, scores)));
		appendStringInfo(&json,
						 ", \"holdout\": {\"precision\": %s, \"recall\": %s, \"map\": %s, \"ndcg\": %s",
						 mr_json_number(scores->precision), mr_json_number(scores->recall),
						 mr_json_number(scores->map), mr_json_number(scores->ndcg));
		appendStringInfo(&json,
						 ", \"hit_rate\": %s, \"coverage\": %s, \"rmse\": %s, \"users\": " INT64_FORMAT "}",
						 mr_json_number(scores->hit_rate), mr_json_number(scores->coverage),
						 mr_json_number(scores->rmse), scores->n_users);
	}
	if (fit->own.n_users >= 0)
		appendStringInfo(&json,
						 ", \"own_history\": {\"weight\": %s, \"users\": " INT64_FORMAT
						 ", \"ndcg\": %s, \"ndcg_without\": %s}",
						 mr_json_number(fit->own.weight), fit->own.n_users, mr_json_number(fit->own.ndcg),
						 mr_json_number(fit->own.without));
	if (training->reason)
	{
		appendStringInfoString(&json, ", \"reason\": ");
		escape_json(&json, training->reason);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

static int
store(const Training *training, const MrRatings *ratings, bool activate)
{
	const MrFit *fit = &training->fit;
	MrAlsSettings als = training->als;
	int rank = als.core.rank;
	MrNewModel new_model = {
		.name = training->name,
		.owner = training->owner,
		.query = training->query,
		.settings = training->settings,
		.metrics = metrics_json(training),
		.uses = training->uses,
		.n_ratings = fit->n_ratings,
		.activate = activate,
		.n_iterations = fit->n_iterations,
		.iterations = fit->history,
		.users = {ratings->users, rank, fit->user},
		.items = {ratings->items, rank, fit->item},
		.baseline = {ratings->items, 1, fit->baseline},
		.trained_on = training->trained_on,
		.usual = ratings->usual,
	};

	als.own_history = fit->own.weight;
	new_model.parameters = mr_als_settings_json(&als);
	return mr_model_store(&new_model);
}

static Datum
result_row(FunctionCallInfo fcinfo, const Training *training, int version, bool activated)
{
	const MrFit *fit = &training->fit;
	double metric = training->als.holdout > 0 ? mr_als_metric(&training->als, &fit->scores) : NAN;
	MrTrainingRow row = {
		.name = training->name,
		.version = version,
		.n_users = training->n_users,
		.n_items = training->n_items,
		.n_ratings = fit->n_ratings,
		.n_rows = -1,
		.rank = training->als.core.rank,
		.n_iterations = fit->n_iterations,
		.loss = fit->history[fit->n_iterations - 1].loss,
		.seconds = training->seconds,
		.metric = isnan(metric) ? NULL : mr_als_metric_name(&training->als),
		.metric_value = metric,
		.active = activated,
		.reason = training->reason,
	};

	return mr_training_row(fcinfo, &row);
}

/* From a definition to a stored version.  The model is locked; SPI is connected, and ends here. */
static Datum
train(FunctionCallInfo fcinfo, Training *training)
{
	MrBudget *budget = training->budget;
	MemoryContext before;
	MrSide warm;
	bool is_warm;
	bool activated;
	MrRatings *ratings;
	Datum result;
	int version;

	mr_model_active(training->name, false, &training->active);
	is_warm = training->warm_start && find_warm_start(training, budget, &warm);
	ratings = read_ratings(training, budget);
	mr_als_fit(budget, &training->als, ratings, training->als.holdout > 0 ? &training->holdout : NULL,
			   is_warm ? &warm : NULL, psprintf("model \"%s\"", training->name), &training->fit);
	training->activated = activated = passes(training);
	training->seconds = (mr_now_ms() - training->start_ms) / 1e3;
	version = store(training, ratings, activated);
	if (training->track != TRACK_NOT)
		mr_track_model(training->name, training->query, training->owner, training->settings,
					   training->fit.n_ratings, training->track == TRACK);
	if (training->activate && !activated)
		mr_not_activated(training->name, version, training->reason);
	training->seconds = (mr_now_ms() - training->start_ms) / 1e3;
	before = MemoryContextSwitchTo(MemoryContextGetParent(budget->context)); /* the caller's */
	result = result_row(fcinfo, training, version, activated);
	MemoryContextSwitchTo(before);
	SPI_finish();
	MemoryContextDelete(budget->context);
	return result;
}

Datum
mr_train_als(PG_FUNCTION_ARGS)
{
	Training training = {.start_ms = mr_now_ms()};
	Datum result;

	PreventCommandIfReadOnly("millrace.train_als()");
	train_als_arguments(fcinfo, &training);
	training.owner = mr_model_lock_kind(training.name, MR_KIND_ALS);
	training.settings = mr_current_settings();
	training.budget = mr_budget_create("millrace training");
	SPI_connect();
	result = train(fcinfo, &training);
	if (training.activated)
		mr_model_make_ready(training.name);
	PG_RETURN_DATUM(result);
}

static Datum
retrain_als(FunctionCallInfo fcinfo)
{
	Training training = {.start_ms = mr_now_ms()};
	Datum result;

	retrain_arguments(fcinfo, &training);
	/* The ratings stay the same, and so does what is kept of them. */
	training.track = TRACK_NOT;
	training.owner = mr_model_lock_kind(training.name, MR_KIND_ALS);
	training.budget = mr_budget_create("millrace training");
	SPI_connect();
	mr_model_definition(training.name, &training.query, &training.settings, &training.als);
	retrain_settings(fcinfo, &training.als);
	result = train(fcinfo, &training);
	mr_lists_retrained(training.name, training.owner);
	if (training.activated)
		mr_model_make_ready(training.name);
	return result;
}

/* Arguments of retrain that mean nothing for a kind of models must be NULL. */
static void
refuse_arguments(FunctionCallInfo fcinfo, const char *name, MrKind kind)
{
	static const struct
	{
		const char *name;
		int arg;
		bool of_kmeans;
	} given[] = {{"iterations", 1, true}, {"holdout", 3, false}, {"seed", 6, true}};

	for (int i = 0; i < lengthof(given); i++)
		if (!PG_ARGISNULL(given[i].arg) && !(kind == MR_KIND_KMEANS && given[i].of_kmeans))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s means nothing for model \"%s\", which is of kind %s", given[i].name, name,
							mr_kind_name(kind)),
					 errhint("Leave it out.")));
}

Datum
mr_retrain(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	MrKind kind;

	PreventCommandIfReadOnly("millrace.retrain()");
	kind = mr_model_lock(name, false);
	if (kind == MR_KIND_ALS)
		return retrain_als(fcinfo);
	refuse_arguments(fcinfo, name, kind);
	switch (kind)
	{
		case MR_KIND_KMEANS:
			return mr_kmeans_retrain(fcinfo);
		case MR_KIND_INDEXER:
			return mr_indexer_retrain(fcinfo);
		default:
			return mr_scaler_retrain(fcinfo);
	}
}
