/*
 * cluster.c: millrace.train_kmeans and its retrain, kmeans_assign and kmeans_distance of one row, and what judges a
 * clustering: kmeans_cost, silhouette, cluster_centers.
 *
 * A training reads the query as the model's owner (features.c), computes on the threads of core/kmeans.c, and stores what it
 * has learnt as rows of millrace.cluster.  Only the last writes, so whatever ends a training earlier leaves nothing behind.
 * While threads run, this process waits and looks for interrupts, as in train.c.
 */
#include "model.h"

#include <float.h>
#include <math.h>

#include "common/pg_prng.h"
#include "tcop/utility.h"
#include "utils/json.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(mr_train_kmeans);
PG_FUNCTION_INFO_V1(mr_kmeans_assign);
PG_FUNCTION_INFO_V1(mr_kmeans_distance);
PG_FUNCTION_INFO_V1(mr_cluster_centers);
PG_FUNCTION_INFO_V1(mr_kmeans_cost);
PG_FUNCTION_INFO_V1(mr_silhouette);

#define DRAW_INTERRUPT_MASK 0xFFFFF /* look for interrupts once in so many rows drawn from */

/* ---- what a version has learnt ---- */

typedef struct Clusters
{
	int k;
	int d;
	double *center; /* k x d */
	double *size;
	double *cost;
	char *weight; /* of the training: name of a column; NULL: none */
} Clusters;

/* A version whose rows are read. */
typedef struct Loader
{
	const char *name;
	int version;
	Clusters *clusters;
} Loader;

static void
corrupt_cluster(const Loader *loader, int cluster, const char *why)
{
	ereport(ERROR,
			(errcode(ERRCODE_DATA_CORRUPTED),
			 errmsg("cluster %d of model \"%s\" version %d is corrupt: %s", cluster, loader->name,
					loader->version, why),
			 errhint("Train the model again, or activate another version.")));
}

/* An MrVersionRow: the next cluster by number. */
static void
append_cluster(void *arg, Relation rel, HeapTuple row)
{
	const Loader *loader = arg;
	Clusters *clusters = loader->clusters;
	int cluster = clusters->k;
	bool null;
	Datum stored = mr_column(rel, row, "center", &null);
	ArrayType *center = DatumGetArrayTypeP(stored);
	int d = ArrayGetNItems(ARR_NDIM(center), ARR_DIMS(center));
	double *to;

	if (DatumGetInt32(mr_column(rel, row, "cluster", &null)) != cluster)
		corrupt_cluster(loader, cluster, "it is missing");
	if (d < 1 || d > MRC_MAX_FEATURES || ARR_HASNULL(center))
		corrupt_cluster(loader, cluster, "its center is no array of numbers");
	if (cluster > 0 && d != clusters->d)
		corrupt_cluster(loader, cluster, "its center has another width");
	if (cluster >= MRC_MAX_CLUSTERS)
		corrupt_cluster(loader, cluster, "there are too many");
	clusters->d = d;
	clusters->k++;
	clusters->center = mr_grow(clusters->center, (Size) clusters->k * d * sizeof(double));
	clusters->size = mr_grow(clusters->size, clusters->k * sizeof(double));
	clusters->cost = mr_grow(clusters->cost, clusters->k * sizeof(double));
	to = clusters->center + (Size) cluster * d;
	memcpy(to, ARR_DATA_PTR(center), d * sizeof(double));
	for (int i = 0; i < d; i++)
		if (!isfinite(to[i]))
			corrupt_cluster(loader, cluster, "its center is not finite");
	if ((Pointer) center != DatumGetPointer(stored))
		pfree(center);
	clusters->size[cluster] = DatumGetFloat8(mr_column(rel, row, "size", &null));
	clusters->cost[cluster] = DatumGetFloat8(mr_column(rel, row, "cost", &null));
}

/* The clusters of a version, for the active snapshot, in the current memory context; k is 0 if there is no such version. */
static Clusters *
read_clusters(const char *name, int version)
{
	Clusters *clusters = palloc0(sizeof(Clusters));
	Loader loader = {name, version, clusters};

	mr_version_rows("cluster", name, version, append_cluster, &loader);
	return clusters;
}

/* An MrFittedLoad */
static void *
load_clusters(const char *name, int version, const char *parameters)
{
	Clusters *clusters = read_clusters(name, version);
	const char *k = mr_json_field(parameters, "k");

	if (clusters->k == 0 || (k && clusters->k < pg_strtoint32(k)))
		corrupt_cluster(&(Loader){name, version}, clusters->k, "it is missing");
	clusters->weight = mr_json_field(parameters, "weight");
	return clusters;
}

/* ---- one row ---- */

/* Why the distance of these features is not finite, or what else is wrong with them. */
static const double *
unusual_features(FunctionCallInfo fcinfo, const Clusters *clusters)
{
	double *x = palloc(clusters->d * sizeof(double));

	mr_features_arg(PG_GETARG_ARRAYTYPE_P(1), clusters->d,
					psprintf("model \"%s\"", text_to_cstring(PG_GETARG_TEXT_PP(0))), x);
	return x;
}

/* The cluster of the row of features that is the second argument; *distance2: the square of its distance. */
static int
nearest_cluster(FunctionCallInfo fcinfo, double *distance2)
{
	const Clusters *clusters =
		mr_fitted_open(fcinfo, PG_GETARG_TEXT_PP(0), MR_KIND_KMEANS, load_clusters)->data;
	ArrayType *array = PG_GETARG_ARRAYTYPE_P(1);
	const double *x = (const double *) ARR_DATA_PTR(array);
	int cluster;

	if (ARR_NDIM(array) != 1 || ARR_DIMS(array)[0] != clusters->d || ARR_HASNULL(array))
		x = unusual_features(fcinfo, clusters);
	cluster = mrc_kmeans_nearest(clusters->center, clusters->k, clusters->d, x, distance2);
	if (unlikely(!isfinite(*distance2)))
	{
		(void) unusual_features(fcinfo, clusters);
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("the distance to the clusters of model \"%s\" is out of range",
						text_to_cstring(PG_GETARG_TEXT_PP(0)))));
	}
	return cluster;
}

Datum
mr_kmeans_assign(PG_FUNCTION_ARGS)
{
	double distance2;

	PG_RETURN_INT32(nearest_cluster(fcinfo, &distance2));
}

Datum
mr_kmeans_distance(PG_FUNCTION_ARGS)
{
	double distance2;

	(void) nearest_cluster(fcinfo, &distance2);
	PG_RETURN_FLOAT8(sqrt(distance2));
}

/* ---- computing ---- */

static void
check_status(MrcStatus status)
{
	if (status == MRC_OK)
		return;
	if (status == MRC_NOTFINITE)
		ereport(ERROR,
				(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
				 errmsg("the squares of the features are out of range"),
				 errhint("Scale the features down.")));
	elog(ERROR, "clustering failed with status %d", status);
}

/* The memory of a clustering of these points; n_starts as in MrcKmeans. */
static Size
clustering_bytes(const MrcPoints *points, int k, int n_starts, int n_threads)
{
	return mrc_kmeans_scratch_bytes(points, k, n_starts, n_threads) + (Size) k * points->d * sizeof(double) +
		(Size) points->n * sizeof(int32) + 2 * k * sizeof(double);
}

static void
clustering_reserve(MrBudget *budget, MrcPool *pool, const MrcPoints *points, int k, int n_starts,
				   MrcKmeans *kmeans)
{
	memset(kmeans, 0, sizeof(*kmeans));
	kmeans->pool = pool;
	kmeans->points = *points;
	kmeans->k = k;
	kmeans->n_starts = n_starts;
	kmeans->scratch = mr_reserve(budget, mrc_kmeans_scratch_bytes(points, k, n_starts, mrc_pool_size(pool)));
	kmeans->center = mr_reserve(budget, (Size) k * points->d * sizeof(double));
	kmeans->label = mr_reserve(budget, points->n * sizeof(int32));
	kmeans->size = mr_reserve(budget, k * sizeof(double));
	kmeans->cluster_cost = mr_reserve(budget, k * sizeof(double));
}

static void
clustering_release(MrBudget *budget, MrcKmeans *kmeans)
{
	mr_release(budget, kmeans->scratch);
	mr_release(budget, kmeans->center);
	mr_release(budget, kmeans->label);
	mr_release(budget, kmeans->size);
	mr_release(budget, kmeans->cluster_cost);
}

/* For the message when memory is short. */
static char *
sizes(const MrcPoints *points, int k)
{
	return psprintf("A clustering of " INT64_FORMAT " points with %d features into %d clusters", points->n,
					points->d, k);
}

/* Labels, cost and sizes of points under clusters that are known. */
static void
assign_points(MrBudget *budget, MrcPool *pool, const MrcPoints *points, const Clusters *clusters,
			  MrcKmeans *kmeans)
{
	clustering_reserve(budget, pool, points, clusters->k, 0, kmeans);
	memcpy(kmeans->center, clusters->center, (Size) clusters->k * clusters->d * sizeof(double));
	check_status(mrc_kmeans_finish(kmeans));
}

/* ---- training: settings ---- */

typedef struct Settings
{
	int k;
	int64 seed;
	int max_iterations;
	int n_starts;
	double tolerance;
	char *weight;
} Settings;

static const MrSetting SETTINGS[] = {
	{"k", MR_SETTING_INT, 2, offsetof(Settings, k), 1, MRC_MAX_CLUSTERS},
	{"seed", MR_SETTING_INT64, 3, offsetof(Settings, seed)},
	{"max_iterations", MR_SETTING_INT, 4, offsetof(Settings, max_iterations), 1, 10000},
	{"starts", MR_SETTING_INT, 5, offsetof(Settings, n_starts), 1, 1000},
	{"tolerance", MR_SETTING_FLOAT, 6, offsetof(Settings, tolerance), 0, 1},
	{"weight", MR_SETTING_NAME, 7, offsetof(Settings, weight), .null_ok = true},
};

typedef struct Training
{
	double start_ms;
	MrBudget *budget;
	char *name;
	char *given; /* the argument query of train_kmeans */
	Settings kmeans;
	int n_threads;
	bool warm_start;
	bool activate;
	double gate_tolerance; /* below 0: no gate */
	Oid owner;
	char *query; /* NULL until given has been understood */
	ArrayType *settings;
	MrRepeat repeated; /* of a retraining */
	Clusters *warm;	   /* to start from; NULL: from the seed */
	MrPoints *points;
	MrcPool *pool;
	MrcKmeans run;
	int n_iterations;
	MrIteration *history;
	double seconds;
	char *reason; /* why it is not active, or why no gate was passed; NULL: none to give */
} Training;

static void
train_arguments(FunctionCallInfo fcinfo, Training *training)
{
	training->name = mr_name_arg(fcinfo, 0, "model");
	training->given = mr_name_arg(fcinfo, 1, "query");
	mr_settings_args(SETTINGS, lengthof(SETTINGS), fcinfo, &training->kmeans);
	training->warm_start = mr_bool_arg(fcinfo, 8, "warm_start");
	training->activate = mr_bool_arg(fcinfo, 9, "activate");
	training->n_threads = mr_threads_arg(fcinfo, 10);
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
	training->n_threads = mr_threads_arg(fcinfo, 5);
	training->activate = mr_bool_arg(fcinfo, 7, "activate");
}

/* What is repeated, and what of it the arguments of retrain change.  SPI is connected. */
static void
repeat_training(FunctionCallInfo fcinfo, Training *training)
{
	const MrSetting *const settings = SETTINGS;
	Settings *kmeans = &training->kmeans;

	mr_model_repeat(training->name, &training->repeated);
	training->query = training->repeated.query;
	training->settings = training->repeated.settings;
	for (int i = 0; i < lengthof(SETTINGS); i++)
		mr_setting_text(settings, lengthof(SETTINGS), settings[i].name,
						mr_json_field(training->repeated.parameters, settings[i].name), kmeans);
	if (!PG_ARGISNULL(1))
		mr_check_range(&(MrSetting){"iterations", .least = 1, .most = 10000}, PG_GETARG_INT32(1));
	if (!PG_ARGISNULL(1))
		kmeans->max_iterations = PG_GETARG_INT32(1);
	if (!PG_ARGISNULL(6))
		kmeans->seed = PG_GETARG_INT64(6);
}

/* As JSON: what a retraining repeats, and the columns. */
static char *
parameters_json(const Training *training)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	mr_settings_json(SETTINGS, lengthof(SETTINGS), &training->kmeans, &json);
	appendStringInfo(&json, ", \"columns\": %s}", training->points->columns_json);
	return json.data;
}

static char *
metrics_json(const Training *training)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json,
					 "{\"cost\": %s, \"seconds\": %.3f, \"rows\": " INT64_FORMAT ", \"points\": " INT64_FORMAT
					 ", \"iterations\": %d",
					 mr_json_number(training->run.cost), training->seconds, training->points->n_rows,
					 training->points->core.n, training->n_iterations);
	if (training->reason)
	{
		appendStringInfoString(&json, ", \"reason\": ");
		escape_json(&json, training->reason);
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

/* ---- training: from points to centers ---- */

/* The clusters of a version, with a new snapshot. */
static Clusters *
clusters_of_version(const char *name, int version)
{
	Clusters *clusters;
	MrGuard guard;

	mr_enter_catalog(&guard, "cluster");
	PushActiveSnapshot(GetTransactionSnapshot());
	clusters = read_clusters(name, version);
	PopActiveSnapshot();
	mr_leave(&guard);
	return clusters;
}

/* The version that is active now; 0: none is. */
static int
active_version(const char *name, bool stays)
{
	Oid types[1] = {TEXTOID};
	Datum values[1] = {CStringGetTextDatum(name)};
	MrGuard guard;
	bool null = true;
	int version = 0;

	mr_enter_catalog(&guard, "model");
	if (stays)
		mr_model_lock_row(name);
	mr_exec_args("SELECT active FROM millrace.model WHERE name = $1", SPI_OK_SELECT, false, 1, types, values,
				 NULL);
	mr_leave(&guard);
	if (SPI_processed == 1)
		version = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &null));
	return null ? 0 : version;
}

/* What a training starts from. */
static void
find_start(Training *training)
{
	int version =
		training->repeated.version > 0 ? training->repeated.active : active_version(training->name, false);

	if (!training->warm_start || version == 0)
		return;
	training->warm = clusters_of_version(training->name, version);
	if (training->warm->k != training->kmeans.k)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("k must be %d to start from version %d of model \"%s\", not %d", training->warm->k,
						version, training->name, training->kmeans.k),
				 errhint("Train with warm_start => false, or with the same k.")));
}

/* As the owner: who trains another's model, a superuser say, lends no rights to it. */
static void
read_points(Training *training)
{
	MrGuard guard;
	int d;

	mr_enter(&guard, training->owner, training->settings);
	if (training->query == NULL)
		training->query = mr_features_query(training->given, "query");
	training->points = mr_points_read(training->budget, training->query, training->kmeans.weight, "query",
									  true, MR_NULLS_ERROR);
	mr_leave(&guard);
	d = training->points->core.d;
	if (training->warm && d != training->warm->d)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("query: the number of features is %d, but that of model \"%s\" is %d", d,
						training->name, training->warm->d),
				 training->given
					 ? errhint("Train with warm_start => false.")
					 : errhint("What the query calls may have been fitted anew, with more values. SELECT "
							   "millrace.retrain(%s, warm_start => false) starts anew.",
							   quote_literal_cstr(training->name))));
}

static void
check_distinct(const Training *training)
{
	int k = training->kmeans.k;
	void *scratch = mr_reserve(training->budget, mrc_kmeans_distinct_bytes(k));
	int n_distinct;

	check_status(mrc_kmeans_distinct(training->pool, &training->points->core, k, &n_distinct, scratch));
	mr_release(training->budget, scratch);
	if (n_distinct < k)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("k must be at most %d, the number of distinct rows, not %d", n_distinct, k)));
}

/* All memory, and where the iterations start. */
static void
prepare(Training *training)
{
	MrBudget *budget = training->budget;
	const MrcPoints *points = &training->points->core;
	const Settings *kmeans = &training->kmeans;
	MrcKmeans *run = &training->run;
	double start_ms = mr_now_ms();
	int n_threads = mr_n_threads(training->n_threads);
	int n_starts = training->warm ? 0 : kmeans->n_starts;

	/* Besides, centers to start from, and of the active version to be compared with. */
	mr_reserve_check(budget,
					 kmeans->max_iterations * sizeof(MrIteration) + mrc_kmeans_distinct_bytes(kmeans->k) +
						 (Size) 2 * kmeans->k * points->d * sizeof(double) +
						 clustering_bytes(points, kmeans->k, n_starts, n_threads),
					 sizes(points, kmeans->k));
	training->pool = mr_pool_create(budget->context, n_threads);
	training->history = mr_reserve(budget, kmeans->max_iterations * sizeof(MrIteration));
	check_distinct(training);
	clustering_reserve(budget, training->pool, points, kmeans->k, n_starts, run);
	run->seed = (uint64) kmeans->seed;
	if (training->warm)
		memcpy(run->center, training->warm->center, (Size) run->k * points->d * sizeof(double));
	else
		check_status(mrc_kmeans_start(run));
	ereport(DEBUG1,
			(errmsg_internal("model \"%s\": " INT64_FORMAT " points read in %.3f s, started in %.3f s",
							 training->name, points->n, (start_ms - training->start_ms) / 1e3,
							 (mr_now_ms() - start_ms) / 1e3)));
}

/* The cost that iteration i has left is known now, after n of them in so many milliseconds. */
static void
report(Training *training, int i, int n, double elapsed_ms)
{
	MrIteration *iteration = &training->history[i];
	int n_most = training->kmeans.max_iterations;

	iteration->loss = training->run.cost;
	iteration->metric = NAN;
	ereport(NOTICE,
			(errmsg("model \"%s\": iteration %d of %d: cost %.6g, %.2f s, %.1f s left", training->name, i + 1,
					n_most, iteration->loss, iteration->seconds, elapsed_ms / 1e3 / n * (n_most - n))));
}

/* Whether there is nothing left to do after n iterations, the last of which has found the cost of the one before. */
static bool
has_converged(const Training *training, int n)
{
	const MrIteration *history = training->history;
	double before = n > 2 ? history[n - 3].loss : INFINITY;

	if (training->run.n_changed == 0)
		return true;
	return n > 2 && training->kmeans.tolerance > 0 &&
		before - history[n - 2].loss < training->kmeans.tolerance * before;
}

/* An iteration finds the cost of what the one before has left, so that it is reported one later, the last one's in the end. */
static void
iterate(Training *training)
{
	int n_most = training->kmeans.max_iterations;
	double start_ms = mr_now_ms();
	int n = 0;
	bool is_done = false;

	while (n < n_most && !is_done)
	{
		double before_ms = mr_now_ms();

		CHECK_FOR_INTERRUPTS();
		check_status(mrc_kmeans_iterate(&training->run));
		training->history[n++].seconds = (mr_now_ms() - before_ms) / 1e3;
		if (n > 1)
			report(training, n - 2, n, mr_now_ms() - start_ms);
		is_done = has_converged(training, n);
	}
	check_status(mrc_kmeans_finish(&training->run));
	report(training, n - 1, n, mr_now_ms() - start_ms);
	if (n < n_most)
		ereport(NOTICE,
				(errmsg("model \"%s\": the cost no longer falls: ended after %d of %d iterations",
						training->name, n, n_most)));
	training->n_iterations = n;
	if (training->warm == NULL)
		check_status(mrc_kmeans_order(&training->run));
}

/* ---- training: the gate, and storing ---- */

/* Compares the costs of today's rows under the new centers and under those of the active version; sets the reason. */
static bool
passes_gate(Training *training)
{
	int version = active_version(training->name, true);
	Clusters *active;
	MrcKmeans before;
	double cost;

	if (version == 0)
	{
		training->reason = "no gate: no version was active";
		return true;
	}
	active = clusters_of_version(training->name, version);
	if (active->d != training->points->core.d)
	{
		training->reason = psprintf("no gate: version %d has other features", version);
		return true;
	}
	mr_release(training->budget, training->run.scratch);
	training->run.scratch = NULL;
	assign_points(training->budget, training->pool, &training->points->core, active, &before);
	cost = before.cost;
	clustering_release(training->budget, &before);
	if (training->run.cost <= cost * (1 + training->gate_tolerance))
		return true;
	training->reason =
		psprintf("cost %.6g is above the %.6g of the same rows under version %d by more than %g %%",
				 training->run.cost, cost, version, training->gate_tolerance * 100);
	return false;
}

static bool
passes(Training *training)
{
	if (!training->activate)
		training->reason = "activate is false";
	if (!training->activate || training->gate_tolerance < 0)
		return training->activate;
	return passes_gate(training);
}

static void
store_clusters(const Training *training, int version)
{
	const MrcKmeans *run = &training->run;
	int d = run->points.d;
	Datum *elements = palloc(d * sizeof(Datum));
	Oid types[6] = {TEXTOID, INT4OID, INT4OID, FLOAT8OID, FLOAT8OID, FLOAT8ARRAYOID};
	Datum values[6] = {CStringGetTextDatum(training->name), Int32GetDatum(version)};

	for (int cluster = 0; cluster < run->k; cluster++)
	{
		ArrayType *center;

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < d; i++)
			elements[i] = Float8GetDatum(run->center[(Size) cluster * d + i]);
		center = construct_array(elements, d, FLOAT8OID, sizeof(float8), FLOAT8PASSBYVAL, TYPALIGN_DOUBLE);
		values[2] = Int32GetDatum(cluster);
		values[3] = Float8GetDatum(run->size[cluster]);
		values[4] = Float8GetDatum(run->cluster_cost[cluster]);
		values[5] = PointerGetDatum(center);
		mr_exec_args("INSERT INTO millrace.cluster (model, version, cluster, size, cost, center) VALUES ($1, "
					 "$2, $3, $4, $5, $6)",
					 SPI_OK_INSERT, false, 6, types, values, NULL);
		pfree(center);
	}
}

static int
store(const Training *training, bool activate)
{
	MrNewVersion new_version = {
		.name = training->name,
		.kind = MR_KIND_KMEANS,
		.owner = training->owner,
		.query = training->query,
		.settings = training->settings,
		.parameters = parameters_json(training),
		.metrics = metrics_json(training),
		.uses = training->points->uses,
		.n_users = -1,
		.n_items = -1,
		.n_ratings = -1,
		.n_rows = training->points->n_rows,
		.n_iterations = training->n_iterations,
		.iterations = training->history,
	};
	MrGuard guard;
	int version;

	mr_enter_catalog(&guard, "model");
	version = mr_version_store(&new_version, NULL);
	store_clusters(training, version);
	if (activate)
		(void) mr_version_activate(training->name, version);
	mr_leave(&guard);
	return version;
}

static Datum
result_row(FunctionCallInfo fcinfo, const Training *training, int version, bool activated)
{
	MrTrainingRow row = {
		.name = training->name,
		.version = version,
		.n_users = -1,
		.n_items = -1,
		.n_ratings = -1,
		.n_rows = training->points->n_rows,
		.rank = -1,
		.n_iterations = training->n_iterations,
		.loss = training->run.cost,
		.seconds = (mr_now_ms() - training->start_ms) / 1e3,
		.metric_value = NAN,
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
	bool activated;
	Datum result;
	int version;

	find_start(training);
	read_points(training);
	prepare(training);
	iterate(training);
	activated = passes(training);
	mr_pool_destroy(training->pool);
	training->seconds = (mr_now_ms() - training->start_ms) / 1e3;
	version = store(training, activated);
	if (training->activate && !activated)
		mr_not_activated(training->name, version, training->reason);
	before = MemoryContextSwitchTo(MemoryContextGetParent(budget->context)); /* the caller's */
	result = result_row(fcinfo, training, version, activated);
	MemoryContextSwitchTo(before);
	SPI_finish();
	MemoryContextDelete(budget->context);
	return result;
}

Datum
mr_train_kmeans(PG_FUNCTION_ARGS)
{
	Training training = {.start_ms = mr_now_ms()};

	PreventCommandIfReadOnly("millrace.train_kmeans()");
	train_arguments(fcinfo, &training);
	training.owner = mr_model_lock_kind(training.name, MR_KIND_KMEANS);
	training.settings = mr_current_settings();
	training.budget = mr_budget_create("millrace training");
	SPI_connect();
	PG_RETURN_DATUM(train(fcinfo, &training));
}

Datum
mr_kmeans_retrain(FunctionCallInfo fcinfo)
{
	Training training = {.start_ms = mr_now_ms()};

	retrain_arguments(fcinfo, &training);
	training.owner = mr_model_lock_kind(training.name, MR_KIND_KMEANS);
	training.budget = mr_budget_create("millrace training");
	SPI_connect();
	repeat_training(fcinfo, &training);
	return train(fcinfo, &training);
}

/* ---- judging ---- */

/* Rows of a query under the active version of a model. */
typedef struct Judged
{
	MrBudget *budget;
	char *name;
	const Clusters *clusters;
	MrPoints *points;
	MrcPool *pool;
	MrcKmeans assigned;
} Judged;

/* Opens the model, runs the query as the caller, and assigns all its rows.  SPI is connected. */
static void
judge(FunctionCallInfo fcinfo, char *query, Judged *judged)
{
	const MrcPoints *points;

	judged->clusters =
		mr_fitted_open(fcinfo, cstring_to_text(judged->name), MR_KIND_KMEANS, load_clusters)->data;
	judged->points = mr_points_read(judged->budget, mr_features_query(query, "query"),
									judged->clusters->weight, "query", false, MR_NULLS_ERROR);
	points = &judged->points->core;
	if (points->d != judged->clusters->d)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("query: the number of features is %d, but that of model \"%s\" is %d", points->d,
						judged->name, judged->clusters->d)));
	mr_reserve_check(judged->budget, clustering_bytes(points, judged->clusters->k, 0, mr_n_threads(0)),
					 sizes(points, judged->clusters->k));
	judged->pool = mr_pool_create(judged->budget->context, mr_n_threads(0));
	assign_points(judged->budget, judged->pool, points, judged->clusters, &judged->assigned);
}

Datum
mr_kmeans_cost(PG_FUNCTION_ARGS)
{
	Judged judged = {.name = mr_name_arg(fcinfo, 0, "model")};
	char *query = mr_name_arg(fcinfo, 1, "query");
	double cost;

	judged.budget = mr_budget_create("millrace clusters");
	SPI_connect();
	judge(fcinfo, query, &judged);
	cost = judged.assigned.cost;
	SPI_finish();
	MemoryContextDelete(judged.budget->context);
	PG_RETURN_FLOAT8(cost);
}

/* ---- silhouette ---- */

/* Points drawn from others, as rows: a point of weight w may be drawn up to w times; with weights of the user's once. */
typedef struct Sample
{
	MrcPoints points;
	double *chunk[1];
	double *weight[1];
	int32 *label;
} Sample;

/* Equal rows that a point stands for, as far as drawing goes. */
static int64
n_equal(const MrcPoints *points, int64 i, bool weighted)
{
	if (points->weight == NULL || weighted)
		return 1;
	return (int64) points->weight[i / points->chunk_rows][i % points->chunk_rows];
}

static void
sample_add(Sample *sample, const MrcPoints *points, int64 i, double weight, int32 label)
{
	int d = points->d;
	int64 at = sample->points.n++;

	memcpy(sample->chunk[0] + at * d, points->chunk[i / points->chunk_rows] + i % points->chunk_rows * d,
		   d * sizeof(double));
	sample->weight[0][at] = weight;
	sample->label[at] = label;
}

/* How many of the next n rows are drawn, n_wanted of n_left being so (Knuth's selection sampling: without replacement). */
static int64
draw(pg_prng_state *random, int64 n, int64 n_wanted, int64 n_left)
{
	int64 n_drawn = 0;

	for (int64 row = 0; row < n && n_drawn < n_wanted; row++)
	{
		if ((row & DRAW_INTERRUPT_MASK) == DRAW_INTERRUPT_MASK)
			CHECK_FOR_INTERRUPTS();
		n_drawn += pg_prng_double(random) * (n_left - row) < n_wanted - n_drawn;
	}
	return n_drawn;
}

/* So many rows, or all if there are no more. */
static void
draw_sample(const Judged *judged, int64 n_wanted, int64 seed, Sample *sample)
{
	const MrcPoints *points = &judged->points->core;
	bool weighted = judged->clusters->weight != NULL;
	int64 n_left = weighted ? points->n : 0;
	int64 n_most;
	pg_prng_state random;

	for (int64 i = 0; i < points->n && !weighted; i++)
		n_left += n_equal(points, i, false);
	n_wanted = Min(n_wanted, n_left);
	n_most = Min(n_wanted, points->n);
	sample->points =
		(MrcPoints){.d = points->d, .chunk_rows = n_most, .chunk = sample->chunk, .weight = sample->weight};
	sample->chunk[0] = mr_reserve(judged->budget, n_most * points->d * sizeof(double));
	sample->weight[0] = mr_reserve(judged->budget, n_most * sizeof(double));
	sample->label = mr_reserve(judged->budget, n_most * sizeof(int32));
	pg_prng_seed(&random, (uint64) seed);
	for (int64 i = 0; i < points->n && n_wanted > 0; i++)
	{
		int64 n = n_equal(points, i, weighted);
		int64 n_drawn = draw(&random, n, n_wanted, n_left);
		double weight = weighted && points->weight
			? points->weight[i / points->chunk_rows][i % points->chunk_rows]
			: n_drawn;

		if (i % 65536 == 0)
			CHECK_FOR_INTERRUPTS();
		if (n_drawn > 0)
			sample_add(sample, points, i, weight, judged->assigned.label[i]);
		n_left -= n;
		n_wanted -= n_drawn;
	}
}

static double
silhouette_of(const Judged *judged, const MrcPoints *points, const int32 *label, bool is_squared)
{
	int k = judged->clusters->k;
	void *scratch =
		mr_reserve(judged->budget, mrc_silhouette_scratch_bytes(points, k, mrc_pool_size(judged->pool)));
	double silhouette;

	if (is_squared)
		check_status(mrc_silhouette(judged->pool, points, label, k, scratch, &silhouette));
	else
		check_status(mrc_silhouette_pairs(judged->pool, points, label, k, scratch, &silhouette));
	if (isnan(silhouette))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("query: all rows are in one cluster of model \"%s\"", judged->name),
				 errdetail("A silhouette compares the clusters of rows, of which it needs two.")));
	return silhouette;
}

Datum
mr_silhouette(PG_FUNCTION_ARGS)
{
	static const char *const metrics[] = {"squared_euclidean", "euclidean", NULL};
	Judged judged = {.name = mr_name_arg(fcinfo, 0, "model")};
	char *query = mr_name_arg(fcinfo, 1, "query");
	bool is_squared = mr_choice("metric", metrics, mr_name_arg(fcinfo, 2, "metric")) == 0;
	double silhouette;

	if (PG_ARGISNULL(3))
		mr_null_value("sample");
	mr_check_range(&(MrSetting){"sample", .least = 2, .most = 1000000}, PG_GETARG_INT32(3));
	if (PG_ARGISNULL(4))
		mr_null_value("seed");
	judged.budget = mr_budget_create("millrace clusters");
	SPI_connect();
	judge(fcinfo, query, &judged);
	if (is_squared)
		silhouette = silhouette_of(&judged, &judged.points->core, judged.assigned.label, true);
	else
	{
		Sample sample;

		draw_sample(&judged, PG_GETARG_INT32(3), PG_GETARG_INT64(4), &sample);
		silhouette = silhouette_of(&judged, &sample.points, sample.label, false);
	}
	SPI_finish();
	MemoryContextDelete(judged.budget->context);
	PG_RETURN_FLOAT8(silhouette);
}

/* ---- centers as rows ---- */

static const Clusters *
clusters_argument(FunctionCallInfo fcinfo, const char *name)
{
	const Clusters *clusters;

	if (PG_ARGISNULL(1))
		return mr_fitted_open(fcinfo, cstring_to_text(name), MR_KIND_KMEANS, load_clusters)->data;
	clusters = read_clusters(name, PG_GETARG_INT32(1));
	if (clusters->k == 0)
		mr_version_unknown(name, MR_KIND_KMEANS, PG_GETARG_INT32(1));
	return clusters;
}

Datum
mr_cluster_centers(PG_FUNCTION_ARGS)
{
	char *name = mr_name_arg(fcinfo, 0, "model");
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	const Clusters *clusters;
	Datum *elements;

	InitMaterializedSRF(fcinfo, 0);
	clusters = clusters_argument(fcinfo, name);
	elements = palloc(clusters->d * sizeof(Datum));
	for (int cluster = 0; cluster < clusters->k; cluster++)
	{
		bool nulls[4] = {false};
		Datum values[4] = {Int32GetDatum(cluster), Float8GetDatum(clusters->size[cluster]),
						   Float8GetDatum(clusters->cost[cluster])};

		CHECK_FOR_INTERRUPTS();
		for (int i = 0; i < clusters->d; i++)
			elements[i] = Float8GetDatum(clusters->center[(Size) cluster * clusters->d + i]);
		values[3] = PointerGetDatum(construct_array(elements, clusters->d, FLOAT8OID, sizeof(float8),
													FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
		pfree(DatumGetPointer(values[3]));
	}
	PG_RETURN_NULL();
}
