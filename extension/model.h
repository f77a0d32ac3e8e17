/*
 * model.h: what the files of the model side share: ratings.c, features.c, holdout.c, settings.c, train.c, cache.c, version.c,
 * model.c, history.c, lists.c, image.c, recommend.c, serve.c, similar.c, scorer.c, evaluate.c, import.c, tune.c, fitted.c,
 * indexer.c, scale.c, cluster.c.
 */
#ifndef MILLRACE_MODEL_H
#define MILLRACE_MODEL_H

#include "millrace.h"

#include "lib/stringinfo.h"
#include "utils/uuid.h"

#include "core/core.h"

/* ---- ratings.c: memory with a price, ids, ratings ---- */

/*
 * Memory of one run (a training, an evaluation).  Each piece is priced against millrace.max_memory before it is
 * allocated, and is aligned to 64 bytes.  All goes with the context.
 */
typedef struct MrBudget
{
	MemoryContext context;
	Size used_bytes;
} MrBudget;

extern MrBudget *mr_budget_create(const char *name);
extern void *mr_reserve(MrBudget *budget, Size n_bytes);
extern void mr_release(MrBudget *budget, void *memory);
/*
 * Refuse at once what is going to take so much more memory: 54000.  what begins a sentence, "… needs … MB", and says
 * the sizes on which that depends; NULL: the next step.
 */
extern void mr_reserve_check(const MrBudget *budget, Size n_bytes, const char *what);

/* Memory that grows; a new piece of the current context if it is NULL. */
static inline void *
mr_grow(void *memory, Size n_bytes)
{
	return memory ? repalloc_huge(memory, n_bytes) : MemoryContextAllocHuge(CurrentMemoryContext, n_bytes);
}

/* A plan that mr_prepare keeps and that is freed when the context goes, by an error too; it may not move. */
typedef struct MrPlan
{
	MemoryContextCallback callback;
	SPIPlanPtr plan;
} MrPlan;

extern void mr_plan_init(MrPlan *plan, MemoryContext context);
/* Plan a query without arguments, as the current user; as_owner as in mr_ratings_read.  Needs an SPI connection. */
extern void
mr_plan_query(MrPlan *plan, MemoryContext context, const char *query, const char *what, bool as_owner);
extern void mr_plan_free(MrPlan *plan);
/* The only statement of a plan; 22023 unless it is one that returns rows. */
extern struct CachedPlanSource *mr_single_query(SPIPlanPtr plan, const char *what);

/* A numeric as the nearest double precision number; infinite beyond the range.  context: for what is detoasted. */
extern double mr_numeric_of(MemoryContext context, Datum value);

/* A value of one of the types of numbers that are read (below any domain); boolean is 0 or 1. */
static inline double
mr_number_of(MemoryContext context, Datum value, Oid type)
{
	switch (type)
	{
		case FLOAT4OID:
			return DatumGetFloat4(value);
		case FLOAT8OID:
			return DatumGetFloat8(value);
		case INT2OID:
			return DatumGetInt16(value);
		case INT4OID:
			return DatumGetInt32(value);
		case INT8OID:
			return DatumGetInt64(value);
		case BOOLOID:
			return DatumGetBool(value);
		default:
			return mr_numeric_of(context, value);
	}
}

/* The text of a column (from 0) of a row, at most about 100 bytes of it, for a message. */
extern char *mr_describe(TupleTableSlot *slot, int column);

/* Distinct ids in ascending order (text: bytewise), so that the order of rows is the order of ids. */
typedef struct MrIds
{
	bool text;
	int64 n;
	int64 *ints;   /* bigint: n */
	char *bytes;   /* text: id i is bytes [starts[i], starts[i + 1]) */
	int64 *starts; /* text: n + 1 */
} MrIds;

/* One id from outside.  bytes is not terminated. */
typedef struct MrKey
{
	bool text;
	int64 value;
	const char *bytes;
	int64 n_bytes;
} MrKey;

/* The row of an id, or -1.  A key of the other kind is converted: 42 finds '42' and the other way round. */
extern int64 mr_ids_find(const MrIds *ids, const MrKey *key);
#define MR_KEY_SPACE 24
/* A key as text or bigint; false if a text is no integer in its plain form.  space: MR_KEY_SPACE bytes it may point to. */
extern bool mr_key_convert(const MrKey *key, bool is_text, MrKey *converted, char *space);
/* XXH64 of the id's text form, so that 42 and '42' are the same. */
extern uint64 mr_ids_hash(const MrIds *ids, int64 row, uint64 seed);
/* For qsort of int32 rows. */
extern int mr_compare_rows(const void *a, const void *b);
/* Entries of one row in the order of rows, for ids of another kind, which come in another order; nothing if they are. */
extern void mr_sort_row(int32 *rows, float *values, int64 n);
/* The order of ids of one kind. */
extern int mr_compare_keys(const MrKey *a, const MrKey *b);
extern bool mr_same_key(const MrKey *a, const MrKey *b);
extern MrKey mr_ids_key(const MrIds *ids, int64 row);
extern MrKey mr_key_from_text(const text *value);
/* Of a value of type smallint, integer, bigint, text or varchar (below any domain). */
extern MrKey mr_key_of(Datum value, Oid type);
extern char *mr_key_cstring(const MrKey *key);

/*
 * The text of a query for what the user gave: the name of a table or view that exists, or a query.  what: "ratings"
 * or "test", for messages.
 */
extern char *mr_ratings_query(const char *ratings, const char *what);
/* The same for a query with other columns, listed for messages. */
extern char *mr_query_of(const char *given, const char *what, const char *columns);

/* Columns of a query of ratings: kinds of the first two, and the value if there are more. */
typedef struct MrShape
{
	bool user_text;
	bool item_text;
	Oid user_type; /* below any domain */
	Oid item_type;
	Oid value_type; /* InvalidOid without one */
	int n_columns;
} MrShape;

/* Checks the columns of the query's plan; the error lists what was found. */
extern MrShape mr_ratings_shape(SPIPlanPtr plan, const char *what);

/* SELECT columns FROM (query) AS q(u, i, v, …) where: whatever the query's own names, all columns have these. */
extern char *
mr_ratings_select(const MrShape *shape, const char *columns, const char *query, const char *where);

typedef enum MrValues
{
	MR_VALUES_IGNORED, /* not read: all 1 */
	MR_VALUES_ANY,	   /* finite */
	MR_VALUES_NOT_NEGATIVE,
	MR_VALUES_LIVE /* as mr_history_read: rows without user or item are left out, a value that is none is 0 */
} MrValues;

typedef struct MrRatings
{
	MrIds users;
	MrIds items;
	MrcCsr by_user; /* duplicates summed */
	MrcCsr
		events; /* if asked for, of some users: before that, duplicates side by side; else no rows, and start NULL */
	bool repeats; /* there were duplicates, of these or other users */
	float *usual; /* with them: of each item, what mr_own_boost() wants to know; else NULL */
} MrRatings;

/*
 * Read all ratings of a query, in one pass, as the current user.  as_owner: that is the model's owner and not the
 * caller, whose temporary relations are refused then.  An empty result is an error unless empty_ok.  Memory from the
 * budget; what was only needed to read is released.  n_threads: 0 for one a processor.
 */
extern MrRatings *mr_ratings_read(MrBudget *budget, const char *query, const char *what, bool as_owner,
								  MrValues values, bool empty_ok, int n_threads);
/*
 * The same for a training, as the model's owner, with the events of users who are drawn by a hash of their ids: of so
 * many that they can be compared with all items in little time.
 */
extern MrRatings *
mr_ratings_read_events(MrBudget *budget, const char *query, const char *what, MrValues values, int n_threads);
/* The result's rows are ascending in their columns, whatever the order within a row of csr.  The pool is idle. */
extern void mr_csr_transpose(MrBudget *budget, MrcPool *pool, const MrcCsr *csr, MrcCsr *transposed);
/* Bytes of compressed rows, mr_csr_transpose()'s result for one. */
extern Size mr_csr_bytes(int64 n_rows, int64 n);
extern void mr_csr_release(MrBudget *budget, MrcCsr *csr);

/* What is done to the values before training: nothing; log(1 + value); 1 if the value is above 0, else 0. */
typedef enum MrTransform
{
	MR_TRANSFORM_NONE,
	MR_TRANSFORM_LOG1P,
	MR_TRANSFORM_BINARY
} MrTransform;

/* In place, of the sums of duplicates.  MR_TRANSFORM_LOG1P: 22023 for a value below 0, naming user and item. */
extern void mr_ratings_transform(MrRatings *ratings, MrTransform transform, const char *what);
/* The names, ended by NULL. */
extern const char *const MR_TRANSFORMS[];
/* 22023 with the names there are. */
extern MrTransform mr_transform_named(const char *name);
extern const char *mr_transform_name(MrTransform transform);

/* ---- features.c: the numbers of a query's rows ---- */

/* What a query stands on, in the memory context of who asked. */
typedef struct MrUses
{
	char *models; /* JSON {"name": version, …}, in the order of names: models that it calls; NULL: none */
	ArrayType *views; /* text: names of the views that it reads, those behind views first; NULL: none */
} MrUses;

/*
 * The models that functions of fitted models are called with by a constant name, views included, with the versions that are active for the
 * active snapshot; and the views, without those of extensions and PostgreSQL's own.  Needs an SPI connection.
 */
extern const MrUses *mr_query_uses(SPIPlanPtr plan);

/*
 * Rows of a query as points.  Each column is a number (smallint … numeric, boolean as 0 or 1) or an array of numbers with
 * one dimension, of the same width in all rows; they stand one behind the other, in the order of columns.
 */
typedef struct MrPoints
{
	MrcPoints core; /* no -0; core.weight is NULL where all are 1 */
	int64 n_rows;	/* of the query, those of weight 0 included, which are no points */
	int n_columns;	/* features; the weight is none */
	char **names;
	int *widths; /* a number has width 1; their sum is core.d */
	char *columns_json; /* [{"name": …, "type": …, "width": …}, …]; types below domains, as SQL writes them */
	const MrUses *uses;
} MrPoints;

typedef enum MrNulls
{
	MR_NULLS_ERROR,
	MR_NULLS_ZERO,
	MR_NULLS_KEEP /* as NaN */
} MrNulls;

/*
 * Read all rows, in one pass, serially and from the start of each table, as the current user (as_owner: as in
 * mr_ratings_read).  weight: name of the column that is the weight of each row, a number not below 0; NULL: 1.  what begins
 * messages ("features").  Equal rows become one point with the sum of their weights as long as that pays; if it does to the end, points are in ascending order, whatever that of the rows.
 * Errors name the column and show the row: 22023 for no columns, other types, arrays without elements or of different
 * width, NULL (an array that is NULL is an error in any case, because its width is not known), a weight below 0, no rows;
 * 22003 for NaN and infinity.  All memory is the budget's, priced.  Needs an SPI connection.
 */
extern MrPoints *mr_points_read(MrBudget *budget, const char *query, const char *weight, const char *what,
								bool as_owner, MrNulls nulls);

/* Receives one row: points->core.d numbers, which it may change, and a weight above 0. */
typedef void (*MrPointSink)(void *arg, const MrPoints *points, double *x, double weight);

/* The same without keeping anything: each row goes to the sink as it comes.  Of points->core only d is set. */
extern MrPoints *mr_points_scan(MrBudget *budget, const char *query, const char *weight, const char *what,
								bool as_owner, MrNulls nulls, MrPointSink sink, void *arg);

/* As mr_ratings_query, for a query of features. */
extern char *mr_features_query(const char *given, const char *what);

/* 22023 unless a float8[] has this width and one dimension.  what names who takes it: "model \"m\"". */
extern void mr_features_width(const ArrayType *array, int width, const char *what);
/*
 * The features of one row from a float8[]: out has width numbers.  what as before.  22023 for
 * another width, NULL, more than one dimension; 22003 for NaN and infinity.
 */
extern void mr_features_arg(ArrayType *array, int width, const char *what, double *out);

/* ---- holdout.c ---- */

/* One side of a model: users, items, or the baseline (rank 1: the score of each item for everybody). */
typedef struct MrSide
{
	MrIds ids;
	int rank;
	float *factors; /* ids.n x rank */
} MrSide;

/* Pairs that a training does not see, to measure it on. */
typedef struct MrHoldout
{
	MrcCsr by_user;	  /* users x items in the training's numbering, values as in the ratings */
	int64 *n_foreign; /* of each user: relevant items that the ratings do not have; NULL: none */
} MrHoldout;

/*
 * Moves about `fraction` of the pairs (above 0, below 1) out of the ratings: by a hash of user id, item id and seed, the
 * same on every machine, so that a pair that is held out of one training is held out of the next.  Of a user or an item
 * that would have nothing left a pair stays.  22023 if nothing can be held out.
 */
extern void
mr_holdout_split(MrBudget *budget, MrRatings *ratings, double fraction, int64 seed, MrHoldout *holdout);

/* Means over users, as MrcRanking and MrcError in core.h; NaN where there is nothing to measure. */
typedef struct MrScores
{
	double precision;
	double recall;
	double map;
	double ndcg;
	double hit_rate;
	double coverage;
	double rmse; /* explicit feedback only */
	int64 n_users;
} MrScores;

/*
 * How well factors (n_users x rank, n_items x rank) do on what was held out.  The k best items of each user, with
 * exclude_seen without those he has in the ratings, otherwise these raised by boost (one for each rating; NULL: not), of which held-out items with a value above zero are relevant (and are
 * not, if he has them); for at most max_users users taken by a hash of their ids (0: all); k 0: not measured.  And, of
 * explicit feedback, the root mean squared error over all held-out pairs.  The pool is idle.
 */
extern void
mr_holdout_score(MrBudget *budget, MrcPool *pool, const MrRatings *ratings, const MrHoldout *holdout,
				 int rank, const float *user, const float *item, bool is_explicit, int k, bool exclude_seen,
				 float *boost, int64 max_users, MrScores *scores);
/* Bytes that it reserves while it runs, to be priced beforehand. */
extern Size mr_holdout_score_bytes(const MrRatings *ratings, const MrHoldout *holdout, int rank, int k,
								   int64 max_users, int n_threads);

/* As a JSON object, with the iterations done and the last loss. */
extern char *mr_scores_json(const MrScores *scores, int n_iterations, double loss);

/* ---- version.c: models of every kind in the catalog ---- */

typedef enum MrKind
{
	MR_KIND_ALS,
	MR_KIND_KMEANS,
	MR_KIND_INDEXER,
	MR_KIND_SCALER
} MrKind;

/* As in millrace.model.kind. */
extern const char *mr_kind_name(MrKind kind);

/* The name that an argument holds; 22023 if it is NULL or empty. */
extern char *mr_name_arg(FunctionCallInfo fcinfo, int n, const char *argument);
/* 42704, as for any function that is given an unknown name. */
extern void mr_model_unknown(const char *name);
/* Why there is no such version of that kind: 42704, 42809. */
extern void mr_version_unknown(const char *name, MrKind kind, int version);

/*
 * Lock the model against other trainings, prunings and drops until the transaction ends (55006 if another has it), and
 * return its owner, who is the caller if there is no such model yet.  42809 if it is of another kind; 42501 unless the
 * caller is a member of the owner; 42704 if the owner has gone.
 */
extern Oid mr_model_lock_kind(const char *name, MrKind kind);
/*
 * The same for a model of any kind, which there must be (42704); returns the kind.  gone_ok: a superuser may have it though
 * the owner has gone.
 */
extern MrKind mr_model_lock(const char *name, bool gone_ok);
/* As mr_model_lock_kind, without the lock; the owner must be there. */
extern Oid mr_model_owner(const char *name, MrKind kind);
/* Whether the role is there and has the name it had: a dropped role's number could mean another role after a restore. */
extern bool mr_is_owner(Oid owner, const NameData *owner_name);
/* 42704 */
extern void mr_owner_gone(const char *name, const NameData *owner_name);
/* Keeps what is active, and the versions that may become so, from changing until the transaction ends.  In mr_enter_catalog. */
extern void mr_model_lock_row(const char *name);

typedef struct MrIteration
{
	double loss;   /* of k-means its cost */
	double metric; /* on the hold-out; NaN if there is none */
	double seconds;
} MrIteration;

/* A version that is not yet stored, of any kind: its row of model_version. */
typedef struct MrNewVersion
{
	const char *name;
	MrKind kind;
	Oid owner;				/* of the model, if that is new */
	const char *query;		/* NULL: there is none */
	ArrayType *settings;	/* that the query is run with */
	const char *parameters; /* JSON */
	const char *metrics;	/* JSON */
	const MrUses *uses;		/* of the query; NULL: nothing */
	int64 n_users;			/* -1 for these four: NULL */
	int64 n_items;
	int64 n_ratings;
	int64 n_rows; /* of the query */
	int n_iterations;
	const MrIteration *iterations;
} MrNewVersion;

/*
 * Insert a version, and the model if it is new; returns the version's number.  What the kind has learnt is to be inserted
 * after it, in the same mr_enter_catalog (which the caller has done, with an SPI connection), and then it may be activated.
 * uuid may be NULL.
 */
extern int mr_version_store(const MrNewVersion *version, pg_uuid_t *uuid);
/*
 * Make it the active version, served from commit on; false: there is no such version.  A WARNING if active models were
 * trained with another version of this one that does something else to rows, or this one with such a version of others.
 * In mr_enter_catalog.
 */
extern bool mr_version_activate(const char *name, int version);

/* A row of millrace.training.  Counts and rank below 0, NaN and NULL: NULL. */
typedef struct MrTrainingRow
{
	const char *name;
	int version;
	int64 n_users;
	int64 n_items;
	int64 n_ratings;
	int64 n_rows;
	int rank;
	int n_iterations;
	double loss;
	double seconds;
	const char *metric;
	double metric_value;
	bool active;
	const char *reason;
} MrTrainingRow;

/* In the current memory context. */
extern Datum mr_training_row(FunctionCallInfo fcinfo, const MrTrainingRow *row);
/* That of an indexer or a scaler, which has no iterations; started at start_ms. */
extern Datum mr_fitted_row(FunctionCallInfo fcinfo, const char *name, int version, int64 n_rows,
						   double start_ms, bool active);
/* The WARNING for a version that was to be activated. */
extern void mr_not_activated(const char *name, int version, const char *reason);

/*
 * What retrain repeats: the active version, or the newest that was trained here if that one was not (an import).  In the
 * current memory context, which is SPI's own if it is connected there.
 */
typedef struct MrRepeat
{
	MrKind kind;
	int version;
	char *query;
	ArrayType *settings;
	char *parameters; /* JSON */
	int active;		  /* version; 0: none */
} MrRepeat;

/* By a new snapshot; for who holds the model's lock.  42704, 55000.  Needs an SPI connection. */
extern void mr_model_repeat(const char *name, MrRepeat *definition);

/* What a call must know of a model: its active version, for the active snapshot. */
typedef struct MrActiveRow
{
	Oid owner;
	NameData owner_name;
	pg_uuid_t lists_uuid; /* model.lists */
	int version;
	pg_uuid_t uuid;
	HeapTuple tuple; /* of model_version */
} MrActiveRow;

/*
 * Without SPI; 42704 no such model, 42809 another kind, 55000 no active version.  In the current memory context.
 */
extern void mr_active_row(const char *name, MrKind kind, MrActiveRow *row);
/* The kind of a model, for the active snapshot.  Without SPI; 42704. */
extern MrKind mr_model_kind(const char *name);
/* A column of a row of a catalog table, by name. */
extern Datum mr_column(Relation rel, HeapTuple tuple, const char *name, bool *null);
/* A field of a JSON object as text, in the current memory context; NULL: there is none, or it is null. */
extern char *mr_json_field(const char *json, const char *key);

/* ---- settings.c: what a training goes by ---- */

typedef enum MrSettingKind
{
	MR_SETTING_INT,	   /* int */
	MR_SETTING_INT64,  /* int64, any */
	MR_SETTING_FLOAT,  /* double */
	MR_SETTING_BOOL,   /* bool */
	MR_SETTING_CHOICE, /* int: number of a name; the argument is text */
	MR_SETTING_NAME	   /* char *; the argument is of type name */
} MrSettingKind;

/* A setting of some kind of training, which stands at an offset in a struct of that kind. */
typedef struct MrSetting
{
	const char *name; /* of the argument, and the key of the parameter */
	MrSettingKind kind;
	int arg; /* its number among the arguments of the function that trains */
	size_t offset;
	double least;
	double most;				/* FLT_MAX: any finite number */
	bool null_ok;				/* NULL is NaN, of a name NULL */
	const char *const *choices; /* ended by NULL */
} MrSetting;

/* All from the arguments of a function.  22023 naming the setting, here and in the following. */
extern void mr_settings_args(const MrSetting *settings, int n, FunctionCallInfo fcinfo, void *to);
/* One from an argument of its own type: int, bigint, float8, bool, text or name. */
extern void mr_setting_datum(const MrSetting *setting, Datum value, void *to);
/* The one of that name from text, or NULL; an unknown name is an error that lists those there are. */
extern void mr_setting_text(const MrSetting *settings, int n, const char *key, const char *value, void *to);
/* Appends "name": value, …, without braces. */
extern void mr_settings_json(const MrSetting *settings, int n, const void *from, StringInfo json);
/* The shortest text that reads back as the same number; not finite: null. */
extern char *mr_json_number(double value);
/* Number of the choice of that name. */
extern int mr_choice(const char *name, const char *const *choices, const char *value);
/* Looks at name, least and most only. */
extern void mr_check_range(const MrSetting *setting, double value);
/* "NAME must be EXPECTED, not VALUE" */
extern _Noreturn void mr_bad_value(const char *name, const char *expected, const char *value);
/* "NAME must not be NULL" */
extern _Noreturn void mr_null_value(const char *name);
/* An argument threads, 0 to 1024; 0: one a processor. */
extern int mr_threads_arg(FunctionCallInfo fcinfo, int n);

/* ---- train.c: threads and BLAS ---- */

/* A pool that stops when the context goes, by an error too.  Interrupts are served while it runs. */
extern MrcPool *mr_pool_create(MemoryContext context, int n_threads);
extern void mr_pool_destroy(MrcPool *pool);

/* Loaded at the first call of the session; its functions are NULL where there is none. */
extern const MrcBlas *mr_blas(void);

/* ---- train.c: training ---- */

/* What is stored of a training as its parameters, and its threads. */
typedef struct MrAlsSettings
{
	MrcAlsParams core;
	int n_iterations;
	int64 seed;
	MrTransform transform;
	double tolerance;	/* ends early when the loss falls by less than this part of itself; 0: never */
	double holdout;		/* part of the pairs to hold out */
	int k;				/* what is held out is measured on the k best items */
	double own_history; /* weight of what a user has in the lists that may repeat it; NaN: to be chosen */
	int n_threads;		/* 0: one a processor; not stored */
} MrAlsSettings;

/*
 * Defaults, then each setting by its name in train_als and its value as text, then finish, which fills in what depends
 * on the kind of feedback.  22023 naming key and value for an unknown key or a bad value; value may be NULL, which is
 * only good for regularization and regularization_exponent.
 */
extern void mr_als_settings_init(MrAlsSettings *settings);
extern void mr_als_settings_set(MrAlsSettings *settings, const char *key, const char *value);
extern void mr_als_settings_finish(MrAlsSettings *settings);
/* All but the threads as a JSON object, with the keys of mr_als_settings_set. */
extern char *mr_als_settings_json(const MrAlsSettings *settings);

/* The metric that a training is judged by: "ndcg", or "rmse" of explicit feedback, where less is better. */
extern const char *mr_als_metric_name(const MrAlsSettings *settings);
extern double mr_als_metric(const MrAlsSettings *settings, const MrScores *scores);

/* The weight of what a user has: see own.c. */
typedef struct MrOwnChoice
{
	double weight;
	int64 n_users;	/* that it was measured on */
	double ndcg;	/* of lists with that weight */
	double without; /* with weight 0 */
} MrOwnChoice;

/* A trained model in memory of the budget. */
typedef struct MrFit
{
	int n_iterations;	  /* done */
	MrIteration *history; /* n_iterations */
	float *user;		  /* n_users x rank */
	float *item;		  /* n_items x rank */
	float *baseline;	  /* n_items: users of the item; of implicit feedback those with a value above 0 */
	int64 n_ratings;
	MrScores scores; /* after the last iteration, if something is held out */
	MrOwnChoice own; /* of own_history; n_users is -1 if that was not to be chosen */
} MrFit;

/*
 * Train on ratings that are already transformed and split (they stay as they are).  holdout may be NULL; warm: items of
 * any ids with factors of the same rank to start from, or NULL; notice: what the NOTICE of each iteration begins with, or
 * NULL for silence.  All memory is priced before the first iteration.  settings->holdout and ->transform are not looked at.
 */
extern void mr_als_fit(MrBudget *budget, const MrAlsSettings *settings, const MrRatings *ratings,
					   const MrHoldout *holdout, const MrSide *warm, const char *notice, MrFit *fit);

/*
 * What retrain does of the other kinds (cluster.c, indexer.c, scale.c), with its arguments; the model is locked, the caller
 * may train it, and arguments that mean nothing for the kind are NULL.  SPI is not connected.
 */
extern Datum mr_kmeans_retrain(FunctionCallInfo fcinfo);
extern Datum mr_indexer_retrain(FunctionCallInfo fcinfo);
extern Datum mr_scaler_retrain(FunctionCallInfo fcinfo);

/* ---- cache.c: what is derived from a stored model, once a machine ---- */

/* What a cache holds: each has sections of its own, whose meaning its maker alone knows. */
typedef enum MrCacheKind
{
	MR_CACHE_VERSION =
		1, /* model.c: a version's factors and what is made of them; the uuid is model_version.uuid */
	MR_CACHE_LISTS = 2 /* image.c: a model's item features and baselines; the uuid is model.lists */
} MrCacheKind;

#define MR_CACHE_SECTIONS 24

typedef struct MrSection
{
	const void *data; /* aligned to 64 in a file; NULL: there is none */
	Size n_bytes;
} MrSection;

typedef struct MrCache
{
	pg_uuid_t uuid;
	MrSection sections[MR_CACHE_SECTIONS];
	Size n_bytes;	/* of all */
	bool is_shared; /* mapped from the file; else private memory, because there could be no file */
	/* cache.c */
	void *map;
	TimestampTz touched_us;
	MemoryContextCallback callback;
} MrCache;

/*
 * Sets the sections (all are empty before) to what it makes in the current memory context (which SPI calls leave), where
 * mr_cache_alloc() aligns as the file does.  It may raise errors, and is called once a machine or, where there can be no file, once a session;
 * it should say so with a NOTICE if it takes long.
 */
typedef void (*MrCacheBuild)(void *arg, MrSection *sections);

/*
 * The sections under a uuid, from the file that all sessions share, which is made if it is missing, damaged or of
 * another version; or in memory of this session, with a warning once a session, if there can be no file.  Read-only; valid
 * as long as context, of which it is a child.  what: "model \"m\"", for messages.  A uuid names the same contents for ever.
 * Each session checks every byte when it opens it, so that one is kept open (MrModel's context is there for it).
 * Needs an active snapshot; works on a standby.
 */
extern MrCache *mr_cache_open(MemoryContext context, const pg_uuid_t *uuid, MrCacheKind kind,
							  const char *what, MrCacheBuild build, void *arg);
/*
 * Write the file from memory, so that who reads first after commit finds it.  The row with the uuid is inserted before or
 * after, in this transaction; if it aborts, the file is swept.  No file: the warning, and no error.
 */
extern void
mr_cache_write(const pg_uuid_t *uuid, MrCacheKind kind, const char *what, const MrSection *sections);
extern void *mr_cache_alloc(Size n_bytes);
/* It is in use: the files used longest ago give way to others (millrace.cache_size).  Costs next to nothing. */
extern void mr_cache_touch(MrCache *cache);
/* The file goes when the transaction commits: its row is deleted, or has another uuid now. */
extern void mr_cache_forget(const pg_uuid_t *uuid);
/* Remove the files of this database that no row stands for (model_version.uuid, model.lists). */
extern void mr_cache_sweep(void);

/* ---- model.c ---- */

typedef struct MrModel
{
	char *name;
	int version;
	pg_uuid_t uuid; /* of the version: the key of everything derived from it */
	Oid owner;
	NameData owner_name; /* what he was called; see mr_model_enter */
	char *query; /* the ratings, to be run as owner with settings; NULL: imported without, nor a baseline */
	ArrayType *settings;
	MrAlsSettings
		als; /* what it was trained with, the rank as it is; of an import what is usual, and how it is stored */
	/* In the cache, read-only: */
	MrSide users;
	MrSide items;
	MrSide baseline;
	const float
		*trained_on; /* users.ids.n x 2: fingerprint of each user's ratings (history.c); NULL: not known */
	MrcIndex index;	 /* of the items */
	const void *
		fold; /* mrc_fold()'s shared, of als.core; NULL: nobody can be folded in, the factors are too large */
	const float *usual; /* items.ids.n: mean of the values above 0 that users have of each; NULL: not known */
	struct MrHistoryReader *history; /* history.c */
	MrCache *cache;
	pg_uuid_t lists_uuid; /* model.lists, as of the last mr_model_open (image.c) */
	/* model.c */
	MemoryContext context;
	int n_pins;
	bool stale;
	uint64 last_use;
} MrModel;

/*
 * The active version of a model, for the active snapshot; valid until CurrentMemoryContext is reset.  This is the one
 * place that decides where hot data comes from: the cache of the version, which is made from its blocks if there is none.
 * Errors: 42704 no such model, 55000 no active version, XX001 a block fails its check.  Needs an SPI connection.
 */
extern MrModel *mr_model_open(const char *name);
/* Counts one more until CurrentMemoryContext is reset; the counter is there as long as it is not 0. */
extern void mr_pin(int *n_pins);

/* ---- history.c: what users have, live ---- */

/* What one user has of the items that the model knows. */
typedef struct MrHistory
{
	int64 n;
	int32 *row; /* of model->items; ascending, distinct */
	float
		*value; /* summed; finite, below 0 if the source says so; 0 where the values are NULL or no numbers */
	uint64 fingerprint; /* of the items whose value is not 0, 48 bits; 0: there are none */
} MrHistory;

/*
 * What these users have now: as the active snapshot shows it, so who asks in the statement that has inserted it must count
 * the command and push a newer one (CommandCounterIncrement, PushActiveSnapshot(GetTransactionSnapshot())).  histories:
 * n_users, in the order of the users (distinct ones; a text without bytes is nobody); empty for whom nothing is known, and if model->query is NULL.  In
 * CurrentMemoryContext: 8 bytes an item, and while it runs 24, so ask for thousands of users at once, not for millions.
 */
extern void mr_history_read(MrModel *model, const MrKey *users, int64 n_users, MrHistory *histories);

/* Whether a user of the model has something else now than the version was trained on; false if that is not known or n is 0. */
extern bool mr_history_is_new(const MrModel *model, int64 user_row, const MrHistory *history);
/* Are they read from where they are kept by user, and not by the ratings query? */
extern bool mr_history_is_kept(MrModel *model);
/* Its fingerprint; item_hashes: of the model's items, mr_history_hash() each. */
extern uint64 mr_history_fingerprint(const MrHistory *history, const uint64 *item_hashes);
extern uint64 mr_history_hash(const MrKey *item);

/* For MrNewModel.trained_on: the fingerprints of ratings as they are read, before transform and hold-out; in the budget. */
extern float *mr_history_fingerprints(MrBudget *budget, const MrRatings *ratings);

/* ---- track.c: what users have, kept from the batches of a source ---- */

/* A query of ratings that reads one table row by row, as expressions over that table: varno 1. */
typedef struct MrTracked
{
	Oid source;
	Node *user;
	Node *item;
	Node *value;	 /* NULL: 1 */
	Node *filter;	 /* the value is 0 where it does not hold; NULL: everywhere */
	List *quals;	 /* of the rows */
	List *exprs;	 /* all of these */
	bool is_sum;	 /* SQL sums the values of a pair, so that they are not rounded one by one */
	List *relations; /* that the query names, and those behind views */
	char *signature; /* what it means, and the partitions of the source */
} MrTracked;

/* As the current user, with the query's settings.  *why: in words, why it is no such query, so that all but relations is missing. */
extern MrTracked *mr_track_read(const char *query, const char **why);
/* Is what was stored the same as now?  In a restored database, by names only. */
extern bool mr_track_same(const char *stored, const char *now, bool with_partitions);

/*
 * After a training, for who may act for the owner: keep what users have by these ratings from the batches of their source.
 * is_wanted: an error says why that cannot be; else it is done where it is easy, and a NOTICE says if it nearly was.
 */
extern void mr_track_model(const char *model, const char *query, Oid owner, ArrayType *settings,
						   int64 n_ratings, bool is_wanted);

/* Columns of its tables */
enum
{
	TRACK_KEY,	 /* the user's id, or if it is a text a hash */
	TRACK_USER,	 /* NULL, or the text */
	TRACK_ITEMS, /* packed */
	N_TRACK_COLUMNS
};

extern uint64 mr_track_key(const MrKey *user);

/* What a row of one of its tables says of an item. */
typedef struct MrPiece
{
	MrKey item;
	int64 n_rows; /* of the source; below 0: so many fewer */
	double value; /* their sum */
	int64 next;	  /* track.c */
} MrPiece;

/* Unpacks a row; all 0 before the first.  XX001 if it is corrupt. */
typedef struct MrUnpack
{
	const unsigned char *at;
	const unsigned char *end;
	bool is_text;
	bool is_first;
	int64 n_left;
	uint64 last;
	StringInfoData text; /* the last item */
} MrUnpack;

extern void mr_unpack_start(MrUnpack *in, const bytea *packed);
/* The items ascend; a text is valid until the next one.  False: there are no more. */
extern bool mr_unpack_next(MrUnpack *in, MrPiece *piece);

/* The rows of users in one of its tables, as the active snapshot shows them; all 0 before the first.  It lives in one context. */
typedef struct MrTrackScan
{
	Relation rel;
	Relation index;
	struct IndexScanDescData *scan;
	TupleTableSlot *slot;
	MrKey user;
	bytea *copy;	 /* of the row that is found, if it does not stand in its page */
	MrUnpack unpack; /* … */
} MrTrackScan;

/* False: there is no such table any more. */
extern bool mr_track_scan_begin(MrTrackScan *scan, Oid table);
extern void mr_track_scan_user(MrTrackScan *scan, const MrKey *user);
extern bool mr_track_scan_next(MrTrackScan *scan);
extern void mr_track_scan_end(MrTrackScan *scan);

/*
 * Make what serving needs of a model's active version, for who has stored that in this transaction: whoever comes first
 * then has nothing to wait for.  A warning if that fails.
 */
extern void mr_model_make_ready(const char *name);
/* The same, with an error if it fails.  Needs an SPI connection. */
extern void mr_model_prepare(const char *name);

/* Row of a user, or -1 if the model does not know him or has learnt nothing of him: all his values were 0. */
extern int64 mr_model_user(const MrModel *model, const MrKey *user);

/*
 * Become the model's owner with the settings that its ratings query was stored with.  42704 if the owner does not exist
 * or has another name than stored.
 */
extern void mr_model_enter(MrGuard *guard, const MrModel *model);

/* A model that is not yet stored. */
typedef struct MrNewModel
{
	const char *name;
	Oid owner;
	const char *query; /* NULL: nobody has anything, and there is no baseline */
	ArrayType *settings;
	const char *parameters; /* JSON */
	const char *metrics;	/* JSON */
	const MrUses *uses;		/* as in MrNewVersion */
	int64 n_ratings;
	bool activate;
	int n_iterations; /* 0: it was not trained here */
	const MrIteration *iterations;
	MrSide users;
	MrSide items;
	MrSide baseline;
	const float *trained_on; /* as in MrModel; each a whole number below 2^24; NULL: not known */
	const float *usual;		 /* as in MrModel */
} MrNewModel;

/* The active version, for a training that starts from it or is compared with it. */
typedef struct MrActive
{
	int version;	/* 0: none is active */
	bool trained;	/* here, so that the next two are known */
	int64 seed;		/* of what was held out of it */
	double holdout; /* which part that was */
	int k;
	char *transform; /* NULL: unknown */
	char *metric;	 /* NULL: not measured */
	double metric_value;
} MrActive;

/* By a new snapshot; for who holds mr_model_lock.  stays: until the transaction ends.  Both need an SPI connection. */
extern void mr_model_active(const char *name, bool stays, MrActive *active);
/* The items of a version, in the budget. */
extern void mr_model_items(MrBudget *budget, const char *name, int version, MrSide *items);

/*
 * What the active version was trained with (the newest that was trained here, if that one was not), by a new snapshot; in
 * the current memory context.  55000 if none was.  Needs an SPI connection.
 */
extern void mr_model_definition(const char *name, char **query, ArrayType **settings, MrAlsSettings *als);

/* Store it as the model's next version, served from commit on if activate; returns the version.  Needs an SPI connection. */
extern int mr_model_store(const MrNewModel *new_model);

/* ---- image.c: categories of items, and baselines, to be read ---- */

/*
 * The categories of a model's items (set_item_features).  Category numbers count from 0 in the bytewise order of their
 * names, and hold for one opening only: another may have others.
 */
typedef struct MrLists
{
	const int32 *category; /* of each row of model->items, -1: none; NULL: the model has no features */
	int32 n_categories;
	const struct MrListsImage *image;
} MrLists;

/* Valid until CurrentMemoryContext is reset.  Needs an SPI connection. */
extern const MrLists *mr_lists_open(MrModel *model);
/* The category of any item that has features, whether the model knows it or not; -1: none. */
extern int32 mr_lists_category(const MrLists *lists, const MrModel *model, const MrKey *item);
extern text *mr_lists_category_name(const MrLists *lists, int32 category);

/*
 * A list for everybody, best first.  'top': the items of the most users (none if the model was imported without
 * ratings); 'random': all items that the model knows, in an order that the version's seed and number decide;
 * 'top_5', 'random_5': the first five of five different categories, an item without one being its own (fewer if there are
 * no more categories); any other name: what set_baseline gave.
 */
typedef struct MrBaseline
{
	int64 n;
	const int32 *row;	   /* of model->items; -1: the model does not know the item */
	const float *score;	   /* never ascending */
	const int32 *category; /* of MrLists; -1: none; NULL: the model has no features */
	const struct MrListsImage *image;
	const struct MrListsBaseline *entry;
	const int32 *position; /* of each in the entry; NULL: the same */
} MrBaseline;

/* As mr_lists_open.  42704 if the model has no baseline of that name. */
extern const MrBaseline *mr_baseline_open(MrModel *model, const char *name);
/* The id of the i-th: a bigint if the model's are and it looks like one, else a text. */
extern MrKey mr_baseline_key(const MrModel *model, const MrBaseline *baseline, int64 i);
/* The kind of a built-in baseline, 't' or 'r', 0 if the name is another; *n: its number, 0 for none, -1 for a bad one. */
extern char mr_baseline_built_in(const char *name, int64 *n);
/* 42704 */
extern void mr_baseline_unknown(const char *model, const char *name);

/* ---- lists.c: setting them ---- */

/* After a retraining: evaluates the model's lists again, for its owner.  A list that fails stays as it is, with a warning. */
extern void mr_lists_retrained(const char *name, Oid owner);

/* ---- own.c: what users have, in lists that may repeat it ---- */

/*
 * boost: history->n, what is added to the score of each item that a user has, by mrc_own_boost().  weight NaN: the model's,
 * which a training has chosen or was given; 0: none.
 */
extern void mr_own_boost(const MrModel *model, float weight, const MrHistory *history, float *boost);
/*
 * Chooses the weight for items that have been trained, settings->own_history not being one: the least with about the best NDCG at k, at
 * most 100, when the events of users are divided at random, lists are made from one half, and compared with the other.  0 of
 * explicit feedback, and where nobody does anything twice: no pair was read more than once, nor are the values counts.
 * chosen->n_users: how many it was measured on, 0: none.  The pool is idle.
 */
extern void mr_own_choose(MrBudget *budget, MrcPool *pool, const MrAlsSettings *settings,
						  const MrRatings *ratings, const float *item, MrOwnChoice *chosen);
/* Bytes that it reserves while it runs, to be priced beforehand. */
extern Size mr_own_choose_bytes(const MrAlsSettings *settings, const MrRatings *ratings, int n_threads);
/* Of each rating, what is added to its item's score.  value: of each as it was read.  In the budget. */
extern float *mr_own_boosts(MrBudget *budget, const MrRatings *ratings, const float *value, double weight);
/* The weight that this stands for. */
extern float mr_own_weight(const MrModel *model, float weight);

/* ---- bulk.c: what all users have, in one pass ---- */

typedef struct MrEverybody MrEverybody;

/*
 * The whole of a model's ratings, as its owner, in CurrentMemoryContext; NULL if they are too many for millrace.max_memory.
 * n_threads: 0 for one a processor.
 */
extern MrEverybody *mr_everybody_read(MrModel *model, int n_threads);
/* Theirs, a child of the one they were read in.  A pool whose threads use them belongs into it. */
extern MemoryContext mr_everybody_context(const MrEverybody *everybody);
/* As mr_history_read, out of these; valid as long as they. */
extern void mr_everybody_get(const MrEverybody *everybody, const MrKey *user, MrHistory *history);

/* ---- recommend.c ---- */

/* Where a row of a list comes from. */
typedef enum MrListSource
{
	MR_SOURCE_MODEL,
	MR_SOURCE_FOLD_IN,
	MR_SOURCE_HISTORY, /* an item that the user has, raised by that */
	MR_SOURCE_BASELINE
} MrListSource;

#define MR_N_LIST_SOURCES (MR_SOURCE_BASELINE + 1)

/* model, fold_in, history, baseline */
extern const char *mr_list_source_name(MrListSource source);

/* What lists are wanted; MR_DEFAULT_WISH is what recommend_top_k does if it is not told otherwise (wants math.h). */
typedef struct MrWish
{
	int64 k;
	bool exclude_seen;
	const int32 *only; /* candidates: rows of model->items, ascending and distinct; NULL: all items */
	int64 n_only;
	const MrKey
		*others; /* candidates that the model does not know, of one kind, in the order of mr_compare_keys */
	int64 n_others;
	int max_per_category; /* 0, or the model has no item features: no limit */
	const char *baseline; /* NULL: nothing is listed from one */
	float own_history; /* weight of what the user has, if that is not excluded; NaN: the model's; 0: none */
	bool fold_in;
	bool with_history; /* read what users have even if no list needs it, for the sink */
} MrWish;

#define MR_DEFAULT_WISH \
	((MrWish){.k = 10, .exclude_seen = true, .baseline = "top", .own_history = NAN, .fold_in = true})

typedef struct MrListed
{
	MrKey item;
	int32 row; /* of model->items; -1: an item of the baseline that the model does not know */
	float score;
	MrListSource source;
} MrListed;

/*
 * Receives the list of users[i], best first, at most k rows, and what that user has (n 0 if it was not read).  All of it is
 * valid until it returns.  Called by the backend, while threads may be at work: it may not open models nor leave by
 * anything but an error.
 */
typedef void (*MrListSink)(void *arg, int64 i, const MrListed *list, int64 n, const MrHistory *history);

/*
 * Lists for users, in their order.  A key of text without bytes is nobody, who gets the baseline.  What users have is read
 * live, as the model's owner; a user whom the model does not know, or has newer rows of, is folded in.  One thread: all is done
 * here; more, or 0 for one a processor: threads compute while the sink takes the lists before.  Memory does not grow with n.
 * Needs an SPI connection.
 */
extern void mr_recommend_many(MrModel *model, const MrWish *wish, const MrKey *users, int64 n, int n_threads,
							  MrListSink sink, void *arg);
/*
 * Factors for a user as he is now, from his rows if fold_in and the model does not know him or the rows are newer; NULL and
 * MR_SOURCE_BASELINE: nothing is known of him.  history: what he has, if it was read.  In CurrentMemoryContext.
 */
extern const float *
mr_user_factor(MrModel *model, const MrKey *user, bool fold_in, MrListSource *source, MrHistory *history);
/* Of what somebody has, what counts when he is folded in, with the values as the training transformed them. */
extern void mr_history_ratings(const MrModel *model, const MrHistory *history, MrHistory *ratings);
/* The list of somebody who has this, and of whom nothing else is known. */
extern void
mr_recommend_given(MrModel *model, const MrWish *wish, const MrHistory *history, MrListSink sink, void *arg);

/* ---- serve.c ---- */

/*
 * The items that may be listed, by what was given as candidates, run as the current user; sets only and others.  One
 * statement has it run once, as it sees the same rows each time.  They belong to the function that is called.
 */
extern void mr_candidates(FunctionCallInfo fcinfo, const MrModel *model, const char *given, MrWish *wish);
/* Arguments; 22023 naming them if they are NULL, k if it is below 1. */
extern bool mr_bool_arg(FunctionCallInfo fcinfo, int n, const char *name);
extern int64 mr_k_arg(FunctionCallInfo fcinfo, int n);
/* A key as a text datum. */
extern Datum mr_key_datum(const MrKey *key);

/* ---- fitted.c: what a backend keeps of models that are small, for functions called once a row ---- */

typedef struct MrFitted
{
	MrKind kind;
	char *name;
	int version;
	pg_uuid_t uuid;	  /* of the version: what it has learnt never changes */
	const void *data; /* the kind's own, as MrFittedLoad made it */
	/* fitted.c */
	MemoryContext context;
	Size n_bytes;
	int n_pins;
	uint64 last_use;
} MrFitted;

/*
 * Make a kind's data of a version, in the current memory context, which lives as long as they are kept.  parameters: JSON, those of
 * the version.  mr_version_rows() reads what it has learnt; no SPI.
 */
typedef void *(*MrFittedLoad)(const char *name, int version, const char *parameters);

/*
 * The active version of a model, as the active snapshot shows it, for a function called once a row; a call that repeats
 * name and snapshot costs a comparison (flinfo->fn_extra, which is this file's).  Valid until the function returns.
 * 42704 no such model, 42809 another kind, 55000 no active version.  No SPI: parallel workers and standbys may call it too.
 */
extern const MrFitted *mr_fitted_open(FunctionCallInfo fcinfo, text *name, MrKind kind, MrFittedLoad load);

/* Receives a row of one of the tables of what versions have learnt; valid until it returns. */
typedef void (*MrVersionRow)(void *arg, Relation rel, HeapTuple tuple);
/* The rows of a version in a table with primary key (model, version, number), in the order of that, for the active snapshot. */
extern void mr_version_rows(const char *table, const char *name, int version, MrVersionRow row, void *arg);

#endif
