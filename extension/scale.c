/*
 * scale.c: millrace.fit_scaler, scale, unscale: features brought to comparable sizes, by what their columns were like.
 *
 * One pass over the rows gives number, mean, standard deviation, least and greatest value of each feature.  The sum of
 * squares minus the square of the sum would lose all digits where the mean is large, so rows are summed in blocks, as
 * differences from the first number, which may have fewer digits, and from the mean of the blocks before, and a block's
 * mean and sum of squared deviations are joined to those of all blocks before (Chan, Golub, LeVeque 1983, "Algorithms for
 * computing the sample variance", eq. 2.1 and section 3).  Blocks begin with one row and become longer, so that a block does not weigh much more than what its
 * number comes from.  What is fitted are rows of millrace.scale_column; functions that
 * read them keep, of each feature, what is subtracted and what is divided by (fitted.c).
 */
#include "model.h"

#include <math.h>

#include "tcop/utility.h"

PG_FUNCTION_INFO_V1(mr_fit_scaler);
PG_FUNCTION_INFO_V1(mr_scale);
PG_FUNCTION_INFO_V1(mr_unscale);

#define BLOCK_ROWS 1024

typedef enum Method
{
	METHOD_STANDARD, /* (x - mean) / stddev */
	METHOD_STDDEV,	 /* x / stddev */
	METHOD_MINMAX,	 /* (x - minimum) / (maximum - minimum) */
	METHOD_NONE		 /* x */
} Method;

/* What NULL is, when it is fitted and when it is scaled. */
typedef enum OnNull
{
	ON_NULL_ERROR,
	ON_NULL_ZERO, /* 0 */
	ON_NULL_MEAN, /* not counted; then the mean */
	ON_NULL_KEEP  /* not counted; then NULL */
} OnNull;

static const char *const METHODS[] = {"standard", "stddev", "minmax", "none", NULL};
static const char *const ON_NULL[] = {"error", "zero", "mean", "keep", NULL};

/* ---- fitting ---- */

/* What is known of one feature. */
typedef struct Moments
{
	int64 n;
	double base; /* its first number */
	double mean; /* less the base */
	double m2;	 /* sum of squared deviations from the mean */
	double minimum;
	double maximum;
	/* the block */
	double shift; /* less the base */
	double sum;	  /* of x - base - shift */
	double square;
	int n_block;
} Moments;

typedef struct Fitting
{
	double start_ms;
	char *name;
	char *given; /* the argument; NULL: query is known */
	char *query;
	ArrayType *settings;
	Oid owner;
	Method method;
	OnNull on_null;
	bool activate;
	MrBudget *budget;
	/* result */
	MrPoints *points;
	Moments *features; /* points->core.d */
	int64 n_nulls;
	int n_block; /* rows of the block */
	int block_rows;
} Fitting;

/* Join the block to those before. */
static void
end_block(Moments *feature)
{
	double n = (double) feature->n_block;
	double mean = feature->shift + feature->sum / n;
	double m2 = Max(feature->square - feature->sum * feature->sum / n, 0);
	double delta = mean - feature->mean;
	double total = (double) feature->n + n;

	if (feature->n_block == 0)
		return;
	feature->mean = feature->n == 0 ? mean : feature->mean + delta * (n / total);
	feature->m2 += m2 + (feature->n == 0 ? 0 : delta * delta * ((double) feature->n * n / total));
	feature->n += feature->n_block;
	feature->shift = feature->mean;
	feature->sum = feature->square = 0;
	feature->n_block = 0;
}

static void
end_blocks(Fitting *fitting, int width)
{
	for (int i = 0; i < width; i++)
		end_block(&fitting->features[i]);
	fitting->n_block = 0;
	fitting->block_rows = Min(2 * fitting->block_rows, BLOCK_ROWS);
}

static inline void
add_number(Moments *feature, double x)
{
	double from = x - feature->base - feature->shift;

	feature->sum += from;
	feature->square += from * from;
	feature->minimum = Min(feature->minimum, x);
	feature->maximum = Max(feature->maximum, x);
	feature->n_block++;
}

static void
begin(Moments *feature, double x)
{
	*feature = (Moments){.base = x, .minimum = x, .maximum = x};
}

/* MrPointSink */
static void
add_row(void *arg, const MrPoints *points, double *x, double weight)
{
	Fitting *fitting = arg;
	int width = points->core.d;

	if (fitting->features == NULL)
	{
		fitting->features = mr_reserve(fitting->budget, width * sizeof(Moments));
		for (int i = 0; i < width; i++)
			begin(&fitting->features[i], x[i]);
		fitting->block_rows = 1;
	}
	for (int i = 0; i < width; i++)
	{
		if (isnan(x[i]))
			fitting->n_nulls++;
		else
		{
			if (isnan(fitting->features[i].base))
				begin(&fitting->features[i], x[i]);
			add_number(&fitting->features[i], x[i]);
		}
	}
	if (++fitting->n_block == fitting->block_rows)
		end_blocks(fitting, width);
}

/* The feature as its column calls it. */
static char *
name_feature(const MrPoints *points, int feature)
{
	int column = 0;

	while (feature >= points->widths[column])
		feature -= points->widths[column++];
	return points->widths[column] == 1
		? psprintf("column \"%s\"", points->names[column])
		: psprintf("element %d of column \"%s\"", feature + 1, points->names[column]);
}

static double
stddev_of(const Moments *feature)
{
	return feature->n > 1 && feature->minimum < feature->maximum
		? sqrt(feature->m2 / (double) (feature->n - 1))
		: 0;
}

static void
check_features(const Fitting *fitting, const char *what)
{
	for (int i = 0; i < fitting->points->core.d; i++)
	{
		const Moments *feature = &fitting->features[i];

		if (feature->n == 0)
			ereport(ERROR,
					(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
					 errmsg("%s: %s is NULL in all rows", what, name_feature(fitting->points, i)),
					 errhint("Leave it out, or use on_null => 'zero'.")));
		if (!isfinite(feature->mean) || !isfinite(feature->m2) ||
			!isfinite(feature->maximum - feature->minimum))
			ereport(ERROR,
					(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
					 errmsg("%s: the numbers of %s are too large: their variance is out of range", what,
							name_feature(fitting->points, i)),
					 errdetail("They go from %g to %g.", feature->minimum, feature->maximum)));
	}
}

static void
read_rows(Fitting *fitting)
{
	const char *what = psprintf("scaler \"%s\"", fitting->name);
	MrNulls nulls = fitting->on_null == ON_NULL_ERROR ? MR_NULLS_ERROR
		: fitting->on_null == ON_NULL_ZERO			  ? MR_NULLS_ZERO
													  : MR_NULLS_KEEP;

	fitting->points =
		mr_points_scan(fitting->budget, fitting->query, NULL, what, true, nulls, add_row, fitting);
	end_blocks(fitting, fitting->points->core.d);
	check_features(fitting, what);
}

/* In mr_enter_catalog. */
static void
store_features(const Fitting *fitting, int version)
{
	Oid types[7] = {TEXTOID,		INT4OID,		INT8ARRAYOID,  FLOAT8ARRAYOID,
					FLOAT8ARRAYOID, FLOAT8ARRAYOID, FLOAT8ARRAYOID};
	Datum values[7] = {CStringGetTextDatum(fitting->name), Int32GetDatum(version)};
	int width = fitting->points->core.d;
	Datum *elements = palloc(width * sizeof(Datum));

	for (int i = 0; i < width; i++)
		elements[i] = Int64GetDatum(fitting->features[i].n);
	values[2] = PointerGetDatum(construct_array(elements, width, INT8OID, 8, true, TYPALIGN_DOUBLE));
	for (int column = 3; column < 7; column++)
	{
		for (int i = 0; i < width; i++)
		{
			const Moments *feature = &fitting->features[i];

			elements[i] = Float8GetDatum(column == 3	   ? feature->base + feature->mean
											 : column == 4 ? stddev_of(feature)
											 : column == 5 ? feature->minimum
														   : feature->maximum);
		}
		values[column] =
			PointerGetDatum(construct_array(elements, width, FLOAT8OID, 8, true, TYPALIGN_DOUBLE));
	}
	mr_exec_args(
		"INSERT INTO millrace.scale_column (model, version, position, n, mean, stddev, minimum, maximum) "
		"SELECT $1, $2, u.o, u.n, u.mean, u.stddev, u.minimum, u.maximum FROM ROWS FROM (unnest($3), "
		"unnest($4), unnest($5), unnest($6), unnest($7)) WITH ORDINALITY AS u(n, mean, stddev, minimum, "
		"maximum, o)",
		SPI_OK_INSERT, false, lengthof(types), types, values, NULL);
}

static int
store(const Fitting *fitting)
{
	const MrPoints *points = fitting->points;
	MrNewVersion new_version = {
		.name = fitting->name,
		.kind = MR_KIND_SCALER,
		.owner = fitting->owner,
		.query = fitting->query,
		.settings = fitting->settings,
		.parameters = psprintf("{\"method\": \"%s\", \"on_null\": \"%s\", \"columns\": %s}",
							   METHODS[fitting->method], ON_NULL[fitting->on_null], points->columns_json),
		.metrics = psprintf("{\"seconds\": %.3f, \"nulls\": " INT64_FORMAT "}",
							(mr_now_ms() - fitting->start_ms) / 1e3, fitting->n_nulls),
		.uses = points->uses,
		.n_users = -1,
		.n_items = -1,
		.n_ratings = -1,
		.n_rows = points->n_rows,
	};
	MrGuard guard;
	int version;

	mr_enter_catalog(&guard, "model");
	version = mr_version_store(&new_version, NULL);
	store_features(fitting, version);
	if (fitting->activate)
		(void) mr_version_activate(fitting->name, version);
	mr_leave(&guard);
	return version;
}

/* From a definition to a stored version.  The model is locked; SPI is connected, and ends here. */
static Datum
fit(FunctionCallInfo fcinfo, Fitting *fitting)
{
	MrGuard guard;
	int64 n_rows;
	int version;

	fitting->budget = mr_budget_create("millrace scaler");
	mr_enter(&guard, fitting->owner, fitting->settings);
	if (fitting->query == NULL)
		fitting->query = mr_features_query(fitting->given, "query");
	read_rows(fitting);
	mr_leave(&guard);
	version = store(fitting);
	n_rows = fitting->points->n_rows;
	MemoryContextDelete(fitting->budget->context);
	SPI_finish();
	return mr_fitted_row(fcinfo, fitting->name, version, n_rows, fitting->start_ms, fitting->activate);
}

Datum
mr_fit_scaler(PG_FUNCTION_ARGS)
{
	Fitting fitting = {.start_ms = mr_now_ms(),
					   .name = mr_name_arg(fcinfo, 0, "name"),
					   .given = mr_name_arg(fcinfo, 1, "query")};

	PreventCommandIfReadOnly("millrace.fit_scaler()");
	fitting.method = mr_choice("method", METHODS, mr_name_arg(fcinfo, 2, "method"));
	fitting.on_null = mr_choice("on_null", ON_NULL, mr_name_arg(fcinfo, 3, "on_null"));
	fitting.activate = mr_bool_arg(fcinfo, 4, "activate");
	fitting.owner = mr_model_lock_kind(fitting.name, MR_KIND_SCALER);
	fitting.settings = mr_current_settings();
	SPI_connect();
	return fit(fcinfo, &fitting);
}

Datum
mr_scaler_retrain(FunctionCallInfo fcinfo)
{
	Fitting fitting = {.start_ms = mr_now_ms(),
					   .name = mr_name_arg(fcinfo, 0, "model"),
					   .activate = mr_bool_arg(fcinfo, 7, "activate")};
	MrRepeat repeat;

	fitting.owner = mr_model_lock_kind(fitting.name, MR_KIND_SCALER);
	SPI_connect();
	mr_model_repeat(fitting.name, &repeat);
	fitting.query = repeat.query;
	fitting.settings = repeat.settings;
	fitting.method = mr_choice("method", METHODS, mr_json_field(repeat.parameters, "method"));
	fitting.on_null = mr_choice("on_null", ON_NULL, mr_json_field(repeat.parameters, "on_null"));
	return fit(fcinfo, &fitting);
}

/* ---- applying ---- */

/* x is scaled to (x - shift) / divisor. */
typedef struct Scale
{
	double shift;
	double divisor; /* 0: the feature was the same in all rows, and is 0 */
	double mean;
} Scale;

typedef struct Scaler
{
	Method method;
	OnNull on_null;
	int width;
	int room; /* of features */
	Scale *features;
} Scaler;

static double
number_column(Relation rel, HeapTuple tuple, const char *name)
{
	bool null;

	return DatumGetFloat8(mr_column(rel, tuple, name, &null));
}

/* MrVersionRow */
static void
load_row(void *arg, Relation rel, HeapTuple tuple)
{
	Scaler *scaler = arg;
	bool null;
	int position = DatumGetInt32(mr_column(rel, tuple, "position", &null));
	double minimum = number_column(rel, tuple, "minimum");
	Scale scale = {.mean = number_column(rel, tuple, "mean"), .divisor = 1};

	if (position != scaler->width + 1)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("a feature is missing in millrace.scale_column: position %d instead of %d", position,
						scaler->width + 1)));
	if (scaler->width == scaler->room)
	{
		scaler->room = Max(2 * scaler->room, 16);
		scaler->features = mr_grow(scaler->features, scaler->room * sizeof(Scale));
	}
	if (scaler->method == METHOD_STANDARD || scaler->method == METHOD_STDDEV)
		scale.divisor = number_column(rel, tuple, "stddev");
	if (scaler->method == METHOD_STANDARD)
		scale.shift = scale.mean;
	if (scaler->method == METHOD_MINMAX)
	{
		scale.shift = minimum;
		scale.divisor = number_column(rel, tuple, "maximum") - minimum;
	}
	scaler->features[scaler->width++] = scale;
}

/* MrFittedLoad */
static void *
load(const char *name, int version, const char *parameters)
{
	Scaler *scaler = palloc0(sizeof(Scaler));

	scaler->method = mr_choice("method", METHODS, mr_json_field(parameters, "method"));
	scaler->on_null = mr_choice("on_null", ON_NULL, mr_json_field(parameters, "on_null"));
	mr_version_rows("scale_column", name, version, load_row, scaler);
	return scaler;
}

static double
scale_number(const Scale *scale, double x)
{
	return scale->divisor == 0 ? 0 : (x - scale->shift) / scale->divisor;
}

static double
unscale_number(const Scale *scale, double x)
{
	return scale->divisor == 0 ? scale->mean : x * scale->divisor + scale->shift;
}

/* A number of the array, or its result, is not finite: which, and why. */
static void
not_finite(const MrFitted *fitted, int feature, double x)
{
	ereport(ERROR,
			(errcode(ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE),
			 errmsg("feature %d of model \"%s\" is %s", feature + 1, fitted->name,
					isnan(x)	   ? "not a number"
						: isinf(x) ? "infinite"
								   : "too large: the result is out of range")));
}

/* What stands for a NULL: a number to be scaled, or NaN, which is NULL again. */
static double
number_for_null(const MrFitted *fitted, int feature, bool inverse)
{
	const Scaler *scaler = fitted->data;

	if (scaler->on_null == ON_NULL_KEEP)
		return NAN;
	if (inverse || scaler->on_null == ON_NULL_ERROR)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("feature %d of model \"%s\" is NULL", feature + 1, fitted->name),
				 errhint("Give it a value with coalesce(), or fit the scaler with on_null => 'keep'%s.",
						 inverse ? "" : ", 'zero' or 'mean'")));
	return scaler->on_null == ON_NULL_MEAN ? scaler->features[feature].mean : 0;
}

/* The result for an array that has NULLs. */
static ArrayType *
apply_nulls(const MrFitted *fitted, ArrayType *array, bool inverse)
{
	const Scaler *scaler = fitted->data;
	Datum *values;
	bool *nulls;
	int n;
	int lower = 1;

	deconstruct_array(array, FLOAT8OID, 8, true, TYPALIGN_DOUBLE, &values, &nulls, &n);
	for (int i = 0; i < n; i++)
	{
		double x = nulls[i] ? number_for_null(fitted, i, inverse) : DatumGetFloat8(values[i]);
		double result =
			inverse ? unscale_number(&scaler->features[i], x) : scale_number(&scaler->features[i], x);

		nulls[i] = nulls[i] && isnan(x);
		if (!nulls[i] && !(isfinite(x) && isfinite(result)))
			not_finite(fitted, i, x);
		values[i] = Float8GetDatum(result);
	}
	return construct_md_array(values, nulls, 1, &n, &lower, FLOAT8OID, 8, true, TYPALIGN_DOUBLE);
}

static ArrayType *
apply(const MrFitted *fitted, ArrayType *array, bool inverse)
{
	const Scaler *scaler = fitted->data;
	Size n_bytes = ARR_OVERHEAD_NONULLS(1) + scaler->width * sizeof(double);
	const double *x = (const double *) ARR_DATA_PTR(array);
	ArrayType *result;
	double *out;

	if (ARR_NDIM(array) != 1 || ARR_DIMS(array)[0] != scaler->width)
		mr_features_width(array, scaler->width, psprintf("model \"%s\"", fitted->name));
	if (ARR_HASNULL(array) && array_contains_nulls(array))
		return apply_nulls(fitted, array, inverse);
	result = palloc(n_bytes);
	SET_VARSIZE(result, n_bytes);
	result->ndim = 1;
	result->dataoffset = 0;
	result->elemtype = FLOAT8OID;
	ARR_DIMS(result)[0] = scaler->width;
	ARR_LBOUND(result)[0] = 1;
	out = (double *) ARR_DATA_PTR(result);
	for (int i = 0; i < scaler->width; i++)
	{
		out[i] =
			inverse ? unscale_number(&scaler->features[i], x[i]) : scale_number(&scaler->features[i], x[i]);
		if (!(isfinite(x[i]) && isfinite(out[i])))
			not_finite(fitted, i, x[i]);
	}
	return result;
}

Datum
mr_scale(PG_FUNCTION_ARGS)
{
	const MrFitted *fitted = mr_fitted_open(fcinfo, PG_GETARG_TEXT_PP(0), MR_KIND_SCALER, load);

	PG_RETURN_ARRAYTYPE_P(apply(fitted, PG_GETARG_ARRAYTYPE_P(1), false));
}

Datum
mr_unscale(PG_FUNCTION_ARGS)
{
	const MrFitted *fitted = mr_fitted_open(fcinfo, PG_GETARG_TEXT_PP(0), MR_KIND_SCALER, load);

	PG_RETURN_ARRAYTYPE_P(apply(fitted, PG_GETARG_ARRAYTYPE_P(1), true));
}
