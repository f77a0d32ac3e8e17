/*
 * tune.c: millrace.tune_als, which trains with every combination of a grid and tells which did best.
 *
 * Ratings are read and split once.  Each trial trains in memory of its own, which goes before the next begins, and is
 * measured on what was held out, all users of it.  Nothing but the trials' table is written; a trial whose numbers leave
 * the range of its arithmetic, or that would need too much memory, counts as failed and the others go on.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "executor/spi.h"
#include "tcop/utility.h"
#include "utils/jsonb.h"

PG_FUNCTION_INFO_V1(mr_tune_als);

#define MAX_TRIALS 10000

/* ---- the grid ---- */

/* One parameter and its values, as text; a NULL is a JSON null. */
typedef struct Axis
{
	char *key;
	int n;
	char **values;
} Axis;

typedef struct Grid
{
	int n_axes;
	Axis *axes; /* in the order of their keys' bytes */
	int n_trials;
} Grid;

static void
bad_grid(const char *message, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg_internal("%s", message),
			 errhint("%s",
					 hint ? hint
						  : "A grid is an object of lists of values, such as '{\"rank\": [16, 64], "
							"\"regularization\": [0.01, 0.1]}'.")));
}

/* Arguments of tune_als are the same for all trials. */
static void
check_key(const char *key)
{
	static const char *const outside[] = {"k", "holdout", "seed", "threads"};

	for (int i = 0; i < lengthof(outside); i++)
		if (strcmp(key, outside[i]) == 0)
			bad_grid(psprintf("grid: \"%s\" is the same for all trials", key),
					 psprintf("Give it as an argument: millrace.tune_als(…, %s => …).", key));
}

static void
add_value(Grid *grid, const char *key, const char *type, char *value)
{
	Axis *axis = grid->n_axes > 0 ? &grid->axes[grid->n_axes - 1] : NULL;

	if (axis == NULL || strcmp(axis->key, key) != 0)
	{
		check_key(key);
		grid->axes =
			grid->axes ? repalloc(grid->axes, (grid->n_axes + 1) * sizeof(Axis)) : palloc(sizeof(Axis));
		axis = &grid->axes[grid->n_axes++];
		*axis = (Axis){.key = pstrdup(key), .values = palloc(0)};
	}
	if (type == NULL)
		bad_grid(psprintf("grid: there are no values of \"%s\"", key), NULL);
	if (strcmp(type, "object") == 0 || strcmp(type, "array") == 0)
		bad_grid(psprintf("grid: a value of \"%s\" is an %s", key, type), NULL);
	if (axis->n == MAX_TRIALS)
		bad_grid(psprintf("grid: there are more than %d values of \"%s\"", MAX_TRIALS, key), NULL);
	axis->values = repalloc(axis->values, (axis->n + 1) * sizeof(char *));
	axis->values[axis->n++] = value ? pstrdup(value) : NULL;
}

/* Set what trial i (from 0) has: the first parameter's value changes slowest. */
static void
set_trial(const Grid *grid, int i, MrAlsSettings *settings)
{
	for (int a = grid->n_axes - 1; a >= 0; a--)
	{
		mr_als_settings_set(settings, grid->axes[a].key, grid->axes[a].values[i % grid->axes[a].n]);
		i /= grid->axes[a].n;
	}
	mr_als_settings_finish(settings);
}

/* What trial i has, as words. */
static char *
describe_trial(const Grid *grid, int i)
{
	StringInfoData words;
	int n = grid->n_trials;

	initStringInfo(&words);
	for (int a = 0; a < grid->n_axes; a++)
	{
		const Axis *axis = &grid->axes[a];
		char *value;

		n /= axis->n;
		value = axis->values[i / n % axis->n];
		appendStringInfo(&words, "%s%s %s", a ? ", " : "", axis->key, value ? value : "null");
	}
	return grid->n_axes ? words.data : "defaults";
}

static void
grid_context(void *arg)
{
	errcontext("the grid of millrace.tune_als");
}

/* Read and check everything: all keys, all values, the number of trials.  Needs an SPI connection. */
static Grid
read_grid(Datum json)
{
	ErrorContextCallback callback = {error_context_stack, grid_context, NULL};
	Oid types[1] = {JSONBOID};
	Grid grid = {.n_trials = 1};
	int64 n_trials = 1;

	error_context_stack = &callback;
	if (!JB_ROOT_IS_OBJECT(DatumGetJsonbP(json)))
		bad_grid("grid is not a JSON object", NULL);
	mr_exec_args("SELECT g.key, pg_catalog.jsonb_typeof(e.value), e.value OPERATOR(pg_catalog.#>>) '{}' "
				 "FROM pg_catalog.jsonb_each($1) AS g LEFT JOIN LATERAL pg_catalog.jsonb_array_elements("
				 "CASE WHEN pg_catalog.jsonb_typeof(g.value) OPERATOR(pg_catalog.=) 'array' THEN g.value "
				 "ELSE pg_catalog.jsonb_build_array(g.value) END) WITH ORDINALITY AS e ON true "
				 "ORDER BY g.key COLLATE pg_catalog.\"C\" USING OPERATOR(pg_catalog.<), "
				 "e.ordinality USING OPERATOR(pg_catalog.<)",
				 SPI_OK_SELECT, true, 1, types, &json, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
		add_value(&grid, SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1),
				  SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2),
				  SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3));
	SPI_freetuptable(SPI_tuptable);
	for (int a = 0; a < grid.n_axes; a++)
	{
		const Axis *axis = &grid.axes[a];
		MrAlsSettings settings;

		mr_als_settings_init(&settings);
		for (int i = 0; i < axis->n; i++)
			mr_als_settings_set(&settings, axis->key, axis->values[i]);
		n_trials *= axis->n;
		if (n_trials > MAX_TRIALS)
			bad_grid(psprintf("grid: there are more than %d combinations", MAX_TRIALS),
					 "Tune some of the parameters first, with the others fixed.");
	}
	grid.n_trials = (int) n_trials;
	error_context_stack = callback.previous;
	return grid;
}

/* ---- metrics ---- */

static const struct
{
	const char *name;
	size_t offset;
	bool less_is_better;
} METRICS[] = {
	{"precision", offsetof(MrScores, precision)},
	{"recall", offsetof(MrScores, recall)},
	{"map", offsetof(MrScores, map)},
	{"ndcg", offsetof(MrScores, ndcg)},
	{"hit_rate", offsetof(MrScores, hit_rate)},
	{"coverage", offsetof(MrScores, coverage)},
	{"rmse", offsetof(MrScores, rmse), true},
};

/* Number of a metric; 22023 with the names there are. */
static int
metric_named(const char *name)
{
	StringInfoData names;

	initStringInfo(&names);
	for (int i = 0; i < lengthof(METRICS); i++)
	{
		if (strcmp(METRICS[i].name, name) == 0)
			return i;
		appendStringInfo(&names, "%s%s", i ? ", " : "", METRICS[i].name);
	}
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("there is no metric \"%s\"", name),
			 errhint("The metrics are: %s.", names.data)));
}

/* ---- a run ---- */

typedef struct Trial
{
	MrAlsSettings settings;
	MrScores scores;
	double value; /* of the metric */
	double loss;
	int n_iterations;
	double seconds;
	char *error; /* why it failed, or NULL */
} Trial;

typedef struct Tuning
{
	char *model;
	char *given; /* the ratings */
	char *validation;
	Oid owner;
	int metric;
	double fraction; /* held out */
	bool exclude_seen;
	MrAlsSettings base;
	bool train;
	Grid grid;
	Trial *trials;
	int best; /* -1: none yet */
	double start_ms;
	MrBudget *budget;
	MrRatings *ratings;
	MrHoldout holdout;
	float *values;			 /* of the ratings, where trials transform them differently; else NULL */
	MrTransform transformed; /* how the ratings are */
	Trial *current;
	MemoryContext trial_context;
} Tuning;

static void
make_trials(Tuning *tuning)
{
	Size n_bytes = tuning->grid.n_trials * sizeof(Trial);

	tuning->trials = mr_reserve(tuning->budget, n_bytes);
	memset(tuning->trials, 0, n_bytes);
	for (int i = 0; i < tuning->grid.n_trials; i++)
	{
		tuning->trials[i].settings = tuning->base;
		set_trial(&tuning->grid, i, &tuning->trials[i].settings);
	}
}

/*
 * The metric, if the caller named none; and what trials may not differ in.  RMSE of values on different scales cannot be
 * compared, nor has implicit feedback one.
 */
static void
check_trials(Tuning *tuning, const char *metric)
{
	bool any_implicit = false;
	bool same_transform = true;

	for (int i = 0; i < tuning->grid.n_trials; i++)
	{
		const MrAlsSettings *settings = &tuning->trials[i].settings;

		any_implicit |= settings->core.implicit;
		same_transform &= settings->transform == tuning->trials[0].settings.transform;
	}
	tuning->metric = metric_named(metric ? metric : any_implicit ? "ndcg" : "rmse");
	if (METRICS[tuning->metric].less_is_better && any_implicit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("implicit feedback has no rmse"),
				 errhint("Choose another metric, or put \"implicit\": false into the grid.")));
	if (METRICS[tuning->metric].less_is_better && !same_transform)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("rmse cannot compare trials of different value_transform"),
				 errhint("Choose another metric, or tune each value_transform by itself.")));
}

/* The validation's pairs in the numbering of the ratings; items that these do not have are counted. */
static void
number_validation(Tuning *tuning, const MrRatings *validation)
{
	MrBudget *budget = tuning->budget;
	const MrRatings *ratings = tuning->ratings;
	const MrcCsr *from = &validation->by_user;
	int64 n = from->start[from->n_rows];
	int64 *n_foreign = mr_reserve(budget, ratings->users.n * sizeof(int64) + 1);
	int64 *length = mr_reserve(budget, (ratings->users.n + 1) * sizeof(int64));
	int32 *items = mr_reserve(budget, validation->items.n * sizeof(int32) + 1);
	int32 *users = mr_reserve(budget, validation->users.n * sizeof(int32) + 1);
	MrcCsr csr = {.n_rows = ratings->users.n,
				  .n_cols = ratings->items.n,
				  .start = mr_reserve(budget, (ratings->users.n + 1) * sizeof(int64)),
				  .index = mr_reserve(budget, n * sizeof(int32) + 1),
				  .value = mr_reserve(budget, n * sizeof(float) + 1)};
	MrcCsr turned;
	MrcPool *pool;
	int64 n_known = 0;
	int64 sum = 0;

	memset(n_foreign, 0, ratings->users.n * sizeof(int64));
	memset(length, 0, (ratings->users.n + 1) * sizeof(int64));
	for (int64 i = 0; i < validation->items.n; i++)
	{
		MrKey key = mr_ids_key(&validation->items, i);

		CHECK_FOR_INTERRUPTS();
		items[i] = (int32) mr_ids_find(&ratings->items, &key);
	}
	for (int64 u = 0; u < validation->users.n; u++)
	{
		MrKey key = mr_ids_key(&validation->users, u);

		CHECK_FOR_INTERRUPTS();
		users[u] = (int32) mr_ids_find(&ratings->users, &key);
		n_known += users[u] >= 0;
		for (int64 e = from->start[u]; e < from->start[u + 1] && users[u] >= 0; e++)
			if (items[from->index[e]] >= 0)
				length[users[u]]++;
			else
				n_foreign[users[u]] += from->value[e] > 0;
	}
	if (n_known == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("validation: none of its users has ratings"),
				 errhint("Both must have the same ids, of the same users.")));
	for (int64 u = 0; u <= ratings->users.n; u++)
	{
		csr.start[u] = sum;
		sum += length[u];
		length[u] = csr.start[u];
	}
	for (int64 u = 0; u < validation->users.n; u++)
		for (int64 e = from->start[u]; e < from->start[u + 1] && users[u] >= 0; e++)
			if (items[from->index[e]] >= 0)
			{
				csr.index[length[users[u]]] = items[from->index[e]];
				csr.value[length[users[u]]++] = from->value[e];
			}

	/* Ids of another kind come in another order; turned twice, rows are ascending. */
	pool = mr_pool_create(budget->context, mr_n_threads(tuning->base.n_threads));
	mr_csr_transpose(budget, pool, &csr, &turned);
	mr_csr_release(budget, &csr);
	mr_csr_transpose(budget, pool, &turned, &tuning->holdout.by_user);
	mr_pool_destroy(pool);
	mr_csr_release(budget, &turned);
	mr_release(budget, length);
	mr_release(budget, items);
	mr_release(budget, users);
	tuning->holdout.n_foreign = n_foreign;
}

/* Read what all trials work on.  The ratings as the owner, as train_als does; the validation as the caller. */
static void
read_pairs(Tuning *tuning)
{
	const Trial *trials = tuning->trials;
	bool not_negative = false;
	bool differ = false;
	MrRatings *validation;
	MrGuard guard;
	int64 n;

	for (int i = 0; i < tuning->grid.n_trials; i++)
	{
		not_negative |= trials[i].settings.core.implicit;
		differ |= trials[i].settings.transform != trials[0].settings.transform;
	}
	/* Boosts are of the values as they are read. */
	differ |= !tuning->exclude_seen && !METRICS[tuning->metric].less_is_better;
	tuning->transformed = differ ? MR_TRANSFORM_NONE : trials[0].settings.transform;
	mr_enter(&guard, tuning->owner, mr_current_settings());
	tuning->ratings =
		mr_ratings_read_events(tuning->budget, mr_ratings_query(tuning->given, "ratings"), "ratings",
							   not_negative ? MR_VALUES_NOT_NEGATIVE : MR_VALUES_ANY, tuning->base.n_threads);
	mr_leave(&guard);
	mr_ratings_transform(tuning->ratings, tuning->transformed, "ratings");
	if (tuning->validation)
	{
		validation = mr_ratings_read(tuning->budget, mr_ratings_query(tuning->validation, "validation"),
									 "validation", false, MR_VALUES_ANY, false, tuning->base.n_threads);
		if (METRICS[tuning->metric].less_is_better)
			mr_ratings_transform(validation, tuning->transformed, "validation");
		number_validation(tuning, validation);
		mr_csr_release(tuning->budget, &validation->by_user);
	}
	else
		mr_holdout_split(tuning->budget, tuning->ratings, tuning->fraction, tuning->base.seed,
						 &tuning->holdout);
	if (!differ)
		return;
	n = tuning->ratings->by_user.start[tuning->ratings->users.n];
	tuning->values = mr_reserve(tuning->budget, n * sizeof(float));
	memcpy(tuning->values, tuning->ratings->by_user.value, n * sizeof(float));
}

/* Give the ratings the values of this trial. */
static void
transform(Tuning *tuning, MrTransform wanted)
{
	MrcCsr *csr = &tuning->ratings->by_user;

	if (wanted == tuning->transformed)
		return;
	memcpy(csr->value, tuning->values, csr->start[csr->n_rows] * sizeof(float));
	mr_ratings_transform(tuning->ratings, wanted, "ratings");
	tuning->transformed = wanted;
}

/* Train and measure the current trial, in memory of its own. */
static void
try_one(void *arg)
{
	Tuning *tuning = arg;
	Trial *trial = tuning->current;
	const MrAlsSettings *settings = &trial->settings;
	MrBudget *budget;
	float *boost = NULL;
	MrFit fit;

	MemoryContextSwitchTo(tuning->trial_context);
	budget = mr_budget_create("millrace trial");
	budget->used_bytes = tuning->budget->used_bytes;
	mr_als_fit(budget, settings, tuning->ratings, NULL, NULL, NULL, &fit);
	if (!tuning->exclude_seen && tuning->values && fit.own.weight > 0)
		boost = mr_own_boosts(budget, tuning->ratings, tuning->values, fit.own.weight);
	trial->n_iterations = fit.n_iterations;
	trial->loss = fit.history[fit.n_iterations - 1].loss;
	mr_holdout_score(budget, mr_pool_create(budget->context, mr_n_threads(settings->n_threads)),
					 tuning->ratings, &tuning->holdout, settings->core.rank, fit.user, fit.item,
					 !settings->core.implicit, settings->k, tuning->exclude_seen, boost, 0, &trial->scores);
	trial->value = *(const double *) ((const char *) &trial->scores + METRICS[tuning->metric].offset);
}

static bool
is_better(const Tuning *tuning, double value)
{
	double best;

	if (isnan(value))
		return false;
	if (tuning->best < 0)
		return true;
	best = tuning->trials[tuning->best].value;
	return METRICS[tuning->metric].less_is_better ? value < best : value > best;
}

static void
report(const Tuning *tuning, int i)
{
	const Trial *trial = &tuning->trials[i];
	int n = tuning->grid.n_trials;
	const char *metric = METRICS[tuning->metric].name;
	char *best = tuning->best < 0
		? ""
		: psprintf("; best %.4g (trial %d)", tuning->trials[tuning->best].value, tuning->best + 1);

	ereport(NOTICE,
			(errmsg("model \"%s\": trial %d of %d: %s: %s, %.2f s%s, %.1f s left", tuning->model, i + 1, n,
					describe_trial(&tuning->grid, i),
					trial->error ? psprintf("failed: %s", trial->error)
								 : psprintf("%s %.4g", metric, trial->value),
					trial->seconds, best, (mr_now_ms() - tuning->start_ms) / 1e3 / (i + 1) * (n - i - 1))));
}

static void
try_all(Tuning *tuning)
{
	tuning->start_ms = mr_now_ms();
	for (int i = 0; i < tuning->grid.n_trials; i++)
	{
		Trial *trial = &tuning->trials[i];
		double before_ms = mr_now_ms();
		ErrorData *error;

		CHECK_FOR_INTERRUPTS();
		transform(tuning, trial->settings.transform);
		tuning->current = trial;
		tuning->trial_context =
			AllocSetContextCreate(CurrentMemoryContext, "millrace trial", ALLOCSET_DEFAULT_SIZES);
		error = mr_attempt(try_one, tuning);
		if (error && error->sqlerrcode != ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE &&
			error->sqlerrcode != ERRCODE_PROGRAM_LIMIT_EXCEEDED)
			ReThrowError(error); /* not the fault of the trial's parameters */
		if (error)
			trial->error = error->message;
		else if (isnan(trial->value))
			trial->error = "nothing to measure: nobody has anything relevant";
		if (trial->error)
			trial->value = NAN;
		trial->seconds = (mr_now_ms() - before_ms) / 1e3;
		if (is_better(tuning, trial->value))
			tuning->best = i;
		report(tuning, i);
		MemoryContextDelete(tuning->trial_context);
	}
	if (tuning->best < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("none of the %d trials could be measured", tuning->grid.n_trials),
				 errdetail("The last one: %s.", tuning->trials[tuning->grid.n_trials - 1].error)));
}

/* ---- what is kept ---- */

/* Store all trials; returns the run's number. */
static int64
store(const Tuning *tuning)
{
	Oid types[10] = {INT8OID, TEXTOID,	 INT4OID,	TEXTOID, TEXTOID,
					 TEXTOID, FLOAT8OID, FLOAT8OID, BOOLOID, TEXTOID};
	Datum values[10];
	MrGuard guard;
	int64 run;
	bool null;

	mr_enter_catalog(&guard, "tuning");
	mr_exec("SELECT pg_catalog.nextval('millrace.tuning_run')", SPI_OK_SELECT, false);
	run = DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
	values[0] = Int64GetDatum(run);
	values[1] = CStringGetTextDatum(tuning->model);
	values[5] = CStringGetTextDatum(METRICS[tuning->metric].name);
	for (int i = 0; i < tuning->grid.n_trials; i++)
	{
		const Trial *trial = &tuning->trials[i];
		const char *metrics =
			trial->error ? "{}" : mr_scores_json(&trial->scores, trial->n_iterations, trial->loss);

		CHECK_FOR_INTERRUPTS();
		values[2] = Int32GetDatum(i + 1);
		values[3] = CStringGetTextDatum(mr_als_settings_json(&trial->settings));
		values[4] = CStringGetTextDatum(metrics);
		values[6] = Float8GetDatum(trial->value);
		values[7] = Float8GetDatum(trial->seconds);
		values[8] = BoolGetDatum(i == tuning->best);
		values[9] = CStringGetTextDatum(trial->error ? trial->error : "");
		mr_exec_args(
			"INSERT INTO millrace.tuning (run, model, trial, parameters, metrics, metric, value, seconds, "
			"best, error) VALUES ($1, $2, $3, $4::jsonb, $5::jsonb, $6, $7, $8, $9, $10)",
			SPI_OK_INSERT, false, 10, types, values, trial->error ? "      n   " : "         n");
	}
	mr_leave(&guard);
	return run;
}

/* Train on all ratings with the best trial's parameters, as the caller would; returns the version. */
static int
train_best(const Tuning *tuning, const Trial *best)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(mr_als_settings_json(&best->settings))};
	StringInfoData sql;
	bool null;

	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT (millrace.train_als(%s, %s, threads => %d, holdout => 0",
					 quote_literal_cstr(tuning->model), quote_literal_cstr(tuning->given),
					 tuning->base.n_threads);
	mr_exec_args(
		"SELECT p.key, p.value FROM pg_catalog.jsonb_each_text($1::pg_catalog.jsonb) AS p WHERE p.key "
		"OPERATOR(pg_catalog.<>) 'holdout'",
		SPI_OK_SELECT, true, 1, types, values, NULL);
	for (uint64 i = 0; i < SPI_processed; i++)
	{
		char *key = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 1);
		char *value = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2);

		appendStringInfo(&sql, ", %s => %s", key, value ? quote_literal_cstr(value) : "NULL");
	}
	appendStringInfoString(&sql, ")).version");
	mr_exec(sql.data, SPI_OK_SELECT, false);
	return DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
}

/* ---- the function ---- */

static void
null_argument(FunctionCallInfo fcinfo, int n, const char *argument)
{
	if (PG_ARGISNULL(n))
		ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s must not be NULL", argument)));
}

static void
read_arguments(FunctionCallInfo fcinfo, Tuning *tuning)
{
	static const char *const arguments[] = {
		[2] = "grid", [4] = "k",	   [5] = "holdout", [7] = "exclude_seen",
		[8] = "seed", [9] = "threads", [10] = "train"};
	int n_threads;

	tuning->model = mr_name_arg(fcinfo, 0, "model");
	tuning->given = mr_name_arg(fcinfo, 1, "ratings");
	for (int i = 0; i < lengthof(arguments); i++)
		if (arguments[i])
			null_argument(fcinfo, i, arguments[i]);
	mr_als_settings_init(&tuning->base);
	mr_als_settings_set(&tuning->base, "k", psprintf("%d", PG_GETARG_INT32(4)));
	tuning->validation = PG_ARGISNULL(6) ? NULL : mr_name_arg(fcinfo, 6, "validation");
	tuning->fraction = PG_GETARG_FLOAT8(5);
	if (tuning->validation == NULL)
	{
		if (!(tuning->fraction > 0 && tuning->fraction < 1))
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("holdout must be above 0 and below 1, not %g", tuning->fraction)));
		tuning->base.holdout = tuning->fraction;
	}
	tuning->exclude_seen = PG_GETARG_BOOL(7);
	tuning->base.seed = PG_GETARG_INT64(8);
	n_threads = PG_GETARG_INT32(9);
	if (n_threads < 0 || n_threads > 1024)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("threads must be between 0 and 1024, not %d", n_threads)));
	tuning->base.n_threads = n_threads;
	tuning->train = PG_GETARG_BOOL(10);
}

Datum
mr_tune_als(PG_FUNCTION_ARGS)
{
	MemoryContext before = CurrentMemoryContext;
	Tuning tuning = {.best = -1};
	Trial best;
	TupleDesc desc;
	Datum values[9];
	bool nulls[9] = {false};
	Datum result;

	PreventCommandIfReadOnly("millrace.tune_als()");
	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	read_arguments(fcinfo, &tuning);
	tuning.owner = mr_model_owner(tuning.model, MR_KIND_ALS);
	if (!OidIsValid(tuning.owner))
		tuning.owner = GetUserId();
	tuning.budget = mr_budget_create("millrace tuning");
	SPI_connect();
	tuning.grid = read_grid(PG_GETARG_DATUM(2));
	make_trials(&tuning);
	check_trials(&tuning, PG_ARGISNULL(3) ? NULL : mr_name_arg(fcinfo, 3, "metric"));
	read_pairs(&tuning);
	try_all(&tuning);
	best = tuning.trials[tuning.best];
	values[0] = Int64GetDatum(store(&tuning));
	MemoryContextDelete(tuning.budget->context); /* a training needs the memory */
	values[8] = Int32GetDatum(tuning.train ? train_best(&tuning, &best) : 0);
	nulls[8] = !tuning.train;
	MemoryContextSwitchTo(before);
	values[1] = Int32GetDatum(tuning.best + 1);
	values[2] = Int32GetDatum(tuning.grid.n_trials);
	values[3] = DirectFunctionCall1(jsonb_in, CStringGetDatum(mr_als_settings_json(&best.settings)));
	values[4] = DirectFunctionCall1(
		jsonb_in, CStringGetDatum(mr_scores_json(&best.scores, best.n_iterations, best.loss)));
	values[5] = CStringGetTextDatum(METRICS[tuning.metric].name);
	values[6] = Float8GetDatum(best.value);
	values[7] = Float8GetDatum(best.seconds);
	result = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
	SPI_finish();
	PG_RETURN_DATUM(result);
}
