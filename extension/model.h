/*
 * model.h: what the files of the model side share: ratings.c, train.c, model.c, recommend.c, evaluate.c.
 */
#ifndef MILLRACE_MODEL_H
#define MILLRACE_MODEL_H

#include "millrace.h"

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

/* A plan that mr_prepare keeps and that is freed when the context goes, by an error too; it may not move. */
typedef struct MrPlan
{
	MemoryContextCallback callback;
	SPIPlanPtr plan;
} MrPlan;

extern void mr_plan_init(MrPlan *plan, MemoryContext context);

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
/* For qsort of int32 rows. */
extern int mr_compare_rows(const void *a, const void *b);
extern MrKey mr_ids_key(const MrIds *ids, int64 row);
extern MrKey mr_key_from_text(const text *value);
extern char *mr_key_cstring(const MrKey *key);

/*
 * The text of a query for what the user gave: the name of a table or view that exists, or a query.  what: "ratings"
 * or "test", for messages.
 */
extern char *mr_ratings_query(const char *ratings, const char *what);

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
	MR_VALUES_NOT_NEGATIVE
} MrValues;

typedef struct MrRatings
{
	MrIds users;
	MrIds items;
	MrcCsr by_user; /* duplicates summed */
} MrRatings;

/*
 * Read all ratings of a query, in one pass, as the current user.  as_owner: that is the model's owner and not the
 * caller, whose temporary relations are refused then.  An empty result is an error unless empty_ok.  Memory from the
 * budget; what was only needed to read is released.
 */
extern MrRatings *mr_ratings_read(MrBudget *budget, const char *query, const char *what, bool as_owner,
								  MrValues values, bool empty_ok);
extern void mr_csr_transpose(MrBudget *budget, const MrcCsr *csr, MrcCsr *transposed);
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
/* 22023 with the names there are. */
extern MrTransform mr_transform_named(const char *name);
extern const char *mr_transform_name(MrTransform transform);

/* ---- train.c: threads and BLAS ---- */

/* A pool that stops when the context goes, by an error too.  Interrupts are served while it runs. */
extern MrcPool *mr_pool_create(MemoryContext context, int n_threads);
extern void mr_pool_destroy(MrcPool *pool);

/* Single-threaded BLAS, loaded at the first call of the session; its sgemm is NULL where there is none. */
extern const MrcBlas *mr_blas(void);

/* ---- model.c ---- */

/* One side of a model: users, items, or the baseline (rank 1: the score of each item for everybody). */
typedef struct MrSide
{
	MrIds ids;
	int rank;
	float *factors; /* ids.n x rank */
} MrSide;

typedef struct MrModel
{
	char *name;
	int version;
	pg_uuid_t uuid; /* of the version: the key of everything derived from it */
	Oid owner;
	NameData owner_name; /* what he was called; see mr_model_enter */
	char *query;		 /* the ratings, to be run as owner with settings */
	ArrayType *settings;
	MrSide users;
	MrSide items;
	MrSide baseline;
	/* recommend.c */
	MrPlan shape_plan; /* the query */
	MrPlan seen_plan;  /* items of user $1 */
	MrShape seen_shape;
	/* model.c */
	MemoryContext context;
	int n_pins;
	bool stale;
	uint64 last_use;
} MrModel;

/*
 * The active version of a model, all of it in memory; valid until CurrentMemoryContext is reset.  This is the one
 * place that decides where hot data comes from.  Errors: 42704 no such model, 55000 no active version, XX001 a
 * block fails its check.  Needs an SPI connection.
 */
extern MrModel *mr_model_open(const char *name);

/* Row of a user, or -1 if the model does not know him or has learnt nothing of him: all his values were 0. */
extern int64 mr_model_user(const MrModel *model, const MrKey *user);

/*
 * Become the model's owner with the settings that its ratings query was stored with.  42704 if the owner does not exist
 * or has another name than stored.
 */
extern void mr_model_enter(MrGuard *guard, const MrModel *model);

/*
 * Lock the model against other trainings, prunings and drops until the transaction ends (55006 if another has it), and
 * return its owner: InvalidOid if there is no such model.  42501 unless the caller is a member of the owner; 42704 if the
 * owner has gone, unless gone_ok and the caller is a superuser.
 */
extern Oid mr_model_lock(const char *name, bool gone_ok);

typedef struct MrIteration
{
	double loss;
	double seconds;
} MrIteration;

/* A trained model that is not yet stored. */
typedef struct MrNewModel
{
	const char *name;
	Oid owner;
	const char *query;
	ArrayType *settings;
	const char *parameters; /* JSON */
	const char *metrics;	/* JSON */
	int64 n_ratings;
	int n_iterations;
	const MrIteration *iterations;
	MrSide users;
	MrSide items;
	MrSide baseline;
} MrNewModel;

/* Store it as the model's next version, active at commit; returns the version.  Needs an SPI connection. */
extern int mr_model_store(const MrNewModel *new_model);

/* The name that an argument holds; 22023 if it is NULL or empty. */
extern char *mr_name_arg(FunctionCallInfo fcinfo, int n, const char *argument);

#endif
