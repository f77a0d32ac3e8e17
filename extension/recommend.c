/*
 * recommend.c: lists of recommendations, for one user and for many.
 *
 * A user is one of these: known to the model, with nothing new (the model's factors); folded in from what he has now (the
 * model does not know him, or his rows are newer than the model); or nobody (the baseline).  Users go through in blocks.
 * A block is prepared by the backend, which reads what its users have; computed by threads, if there are any, which fold
 * in and search (core/); and emitted by the backend while the threads compute the next one.  The memory that threads use
 * is in parents of the pool's context, so that an error stops the threads before anything is freed.
 */
#include "model.h"

#include <math.h>

#define BLOCK_USERS 4096
/* Fewer users are several blocks, too, so that reading, computing and emitting go on at the same time. */
#define MIN_BLOCK_USERS 256
#define MIN_BLOCKS 4
#define MANY_USERS 1000
#define BLOCK_BYTES (16 * 1024 * 1024) /* of lists; a block has at least one user */

/* One user of a block. */
typedef struct Person
{
	const float *factor; /* NULL: nothing is known of him */
	MrListSource source;
	int64 search; /* of the block's; -1: none */
} Person;

/* Somebody whose factors are made from what he has. */
typedef struct Fold
{
	int64 person;	   /* of the block */
	MrHistory ratings; /* what counts of what he has, as a training would see it */
	float *factor;	   /* rank */
	bool done;		   /* else his ratings do not determine any */
} Fold;

typedef struct UserBlock
{
	MemoryContext context;
	int64 lo; /* users [lo, lo + n) of the run */
	int64 n;
	MrHistory *histories; /* n */
	Person *people;		  /* n */
	Fold *folds;		  /* n_folds <= n */
	int64 n_folds;
	struct FoldTask *task; /* of them, while they are computed */
	MrcSearch *searches;   /* n_searches <= n */
	int64 n_searches;
} UserBlock;

typedef struct Run
{
	MrModel *model;
	const MrWish *wish;
	const MrKey *users;
	int64 n;
	const MrHistory *given; /* what each has, if that is not to be read; or NULL */
	bool reads;				/* what users have */
	MrEverybody *everybody; /* what all have, if it was read at once; or NULL */
	MrListSink sink;
	void *arg;
	int64 k;		   /* at most all there is */
	int64 block_users; /* of a full block */
	float own_history; /* weight */
	const int32 *only; /* wish->n_only */
	const MrLists *lists;
	const MrBaseline *baseline; /* NULL: none */
	const int32 *category;		/* of items; NULL: no limit */
	MrListed *list;				/* k */
	int32 *n_of_category;		/* all 0 between users; NULL: no limit */
	int64 *refused;				/* k: of the baseline, what the limit does not allow */
	MrcPool *pool;				/* NULL: no threads */
	void *scratch;				/* of searches */
	MrPlan *plans;				/* 2: the ratings query, and has_other()'s; NULL: not needed yet */
	MemoryContext look;			/* of one has_other(); with plans */
	MemoryContext context;		/* of all this */
	UserBlock blocks[2];
} Run;

const char *
mr_list_source_name(MrListSource source)
{
	static const char *const NAMES[] = {[MR_SOURCE_MODEL] = "model",
										[MR_SOURCE_FOLD_IN] = "fold_in",
										[MR_SOURCE_HISTORY] = "history",
										[MR_SOURCE_BASELINE] = "baseline"};

	return NAMES[source];
}

static bool
is_nobody(const MrKey *user)
{
	return user->text && user->bytes == NULL;
}

static bool
contains(const int32 *rows, int64 n, int32 row)
{
	return n > 0 && bsearch(&row, rows, n, sizeof(int32), mr_compare_rows) != NULL;
}

/* In the current memory context. */
static void *
aligned(Size n_bytes)
{
	return (void *) TYPEALIGN(64, (uintptr_t) MemoryContextAllocHuge(CurrentMemoryContext, n_bytes + 64));
}

/* ---- preparing ---- */

static MrHistory *
read_histories(const Run *run, const UserBlock *block)
{
	MrHistory *histories = palloc0(block->n * sizeof(MrHistory));

	if (run->given)
		memcpy(histories, run->given + block->lo, block->n * sizeof(MrHistory));
	else if (run->everybody)
		for (int64 i = 0; i < block->n; i++)
			mr_everybody_get(run->everybody, &run->users[block->lo + i], &histories[i]);
	else if (run->reads)
		mr_history_read(run->model, run->users + block->lo, block->n, histories);
	return histories;
}

/* Row of a user, or -1. */
static int64
row_of(const MrModel *model, const MrKey *user)
{
	return is_nobody(user) ? -1 : mr_model_user(model, user);
}

void
mr_history_ratings(const MrModel *model, const MrHistory *history, MrHistory *ratings)
{
	const MrAlsSettings *als = &model->als;

	*ratings = (MrHistory){.row = palloc(history->n * sizeof(int32) + 1),
						   .value = palloc(history->n * sizeof(float) + 1)};
	for (int64 i = 0; i < history->n; i++)
	{
		float value = history->value[i];

		if (als->transform == MR_TRANSFORM_BINARY)
			value = value > 0;
		else if (als->transform == MR_TRANSFORM_LOG1P)
			value = value >= 0 ? log1pf(value) : NAN;
		if (!isfinite(value) || (als->core.implicit && value <= 0))
			continue;
		ratings->row[ratings->n] = history->row[i];
		ratings->value[ratings->n++] = value;
	}
}

/* What is known of a user decides where his list comes from.  Returns whether he is to be folded in from the ratings. */
static bool
meet(const MrModel *model, const MrKey *user, bool fold_in, const MrHistory *history, Person *person,
	 MrHistory *ratings)
{
	int64 row = row_of(model, user);

	*person = (Person){.source = row >= 0 ? MR_SOURCE_MODEL : MR_SOURCE_BASELINE, .search = -1};
	if (row >= 0)
		person->factor = model->users.factors + row * model->users.rank;
	if (!fold_in || model->fold == NULL || history->n == 0 ||
		(row >= 0 && !mr_history_is_new(model, row, history)))
		return false;
	mr_history_ratings(model, history, ratings);
	return ratings->n > 0;
}

/* Any thread. */
static void
fold(const MrModel *model, Fold *fold, void *scratch)
{
	fold->done =
		mrc_fold(&model->als.core, model->fold, model->items.factors, model->items.ids.n, fold->ratings.row,
				 fold->ratings.value, fold->ratings.n, fold->factor, scratch) == MRC_OK;
}

typedef struct FoldTask
{
	const MrModel *model;
	Fold *folds;
	char *scratch;
	Size scratch_bytes; /* of each worker */
} FoldTask;

/* Folds [lo, hi) of a block.  Any thread. */
static MrcStatus
fold_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	const FoldTask *task = arg;

	for (int64 i = lo; i < hi; i++)
		fold(task->model, &task->folds[i], task->scratch + worker * task->scratch_bytes);
	return MRC_OK;
}

/* The pool is idle. */
static void
begin_folds(Run *run, UserBlock *block)
{
	MemoryContext before = MemoryContextSwitchTo(block->context);
	FoldTask *task = block->task = palloc(sizeof(FoldTask));

	*task = (FoldTask){.model = run->model, .folds = block->folds};
	task->scratch_bytes = TYPEALIGN(64, mrc_fold_scratch_bytes(&run->model->als.core));
	if (block->n_folds > 0)
		task->scratch = aligned((run->pool ? mrc_pool_size(run->pool) : 1) * task->scratch_bytes);
	MemoryContextSwitchTo(before);
	if (run->pool && block->n_folds > 0)
		mrc_pool_begin(run->pool, block->n_folds, 1, fold_task, task);
}

static void
end_folds(Run *run, UserBlock *block)
{
	if (block->n_folds == 0)
		return;
	if (run->pool)
	{
		if (mrc_pool_end(run->pool) != MRC_OK)
			elog(ERROR, "users could not be folded in");
	}
	else
		for (int64 i = 0; i < block->n_folds; i++)
		{
			CHECK_FOR_INTERRUPTS();
			(void) fold_task(block->task, 0, i, i + 1);
		}
	for (int64 i = 0; i < block->n_folds; i++)
	{
		const Fold *folded = &block->folds[i];
		Person *person = &block->people[folded->person];

		if (!folded->done)
			continue;
		person->factor = folded->factor;
		person->source = MR_SOURCE_FOLD_IN;
	}
}

/* Raise the items that the user has. */
static void
boost(const Run *run, const MrHistory *history, MrcSearch *search)
{
	int32 *rows = palloc(history->n * sizeof(int32) + 1);
	float *boosts = palloc(history->n * sizeof(float) + 1);
	int64 n = 0;

	mr_own_boost(run->model, run->own_history, history, boosts);
	for (int64 i = 0; i < history->n; i++)
	{
		if (!(boosts[i] > 0))
			continue;
		rows[n] = history->row[i];
		boosts[n++] = boosts[i];
	}
	search->boosted = rows;
	search->boost = boosts;
	search->n_boosted = n;
}

static void
prepare_search(const Run *run, const Person *person, const MrHistory *history, MrcSearch *search)
{
	const MrWish *wish = run->wish;

	*search = (MrcSearch){.user = person->factor,
						  .k = Min(run->k, run->model->items.ids.n),
						  .only = run->only,
						  .n_only = wish->n_only,
						  .category = run->category,
						  .max_per_category = wish->max_per_category,
						  .used_category = -1};
	search->top = palloc(search->k * sizeof(MrcTop) + 1);
	if (wish->exclude_seen)
	{
		search->skip = history->row;
		search->n_skip = history->n;
	}
	else if (run->own_history > 0 && history->n > 0)
		boost(run, history, search);
}

/* Read who the users of a block are and what they have; threads may be at work on the other block. */
static void
prepare_block(const Run *run, UserBlock *block, int64 lo)
{
	int rank = run->model->items.rank;
	MemoryContext before;

	MemoryContextResetOnly(block->context);
	before = MemoryContextSwitchTo(block->context);
	block->lo = lo;
	block->n = Min(run->block_users, run->n - lo);
	block->people = palloc(block->n * sizeof(Person));
	block->folds = palloc(block->n * sizeof(Fold));
	block->n_folds = 0;
	block->histories = read_histories(run, block);
	for (int64 i = 0; i < block->n; i++)
	{
		Fold *new_fold = &block->folds[block->n_folds];

		if (!meet(run->model, &run->users[lo + i], run->wish->fold_in, &block->histories[i],
				  &block->people[i], &new_fold->ratings))
			continue;
		new_fold->person = i;
		new_fold->factor = palloc(rank * sizeof(float));
		block->n_folds++;
	}
	MemoryContextSwitchTo(before);
}

/* ---- computing ---- */

/* After begin_folds. */
static void
begin_searches(Run *run, UserBlock *block)
{
	MemoryContext before = MemoryContextSwitchTo(block->context);

	end_folds(run, block);
	block->searches = palloc(block->n * sizeof(MrcSearch));
	block->n_searches = 0;
	for (int64 i = 0; i < block->n; i++)
	{
		Person *person = &block->people[i];

		if (person->factor == NULL || Min(run->k, run->model->items.ids.n) == 0)
			continue;
		person->search = block->n_searches++;
		prepare_search(run, person, &block->histories[i], &block->searches[person->search]);
	}
	MemoryContextSwitchTo(before);
	if (run->pool)
	{
		mrc_search_begin(run->pool, &run->model->index, block->searches, block->n_searches, run->scratch);
		return;
	}
	for (int64 i = 0; i < block->n_searches; i++)
	{
		CHECK_FOR_INTERRUPTS();
		mrc_search(&run->model->index, &block->searches[i], run->scratch);
	}
}

static void
end_searches(Run *run)
{
	if (run->pool && mrc_search_end(run->pool) != MRC_OK)
		elog(ERROR, "lists could not be made");
}

/* ---- emitting ---- */

/* Whether another item of this category may be listed, and if so it is. */
static bool
take_category(const Run *run, int32 category)
{
	if (run->n_of_category == NULL || category < 0)
		return true;
	if (run->n_of_category[category] >= run->wish->max_per_category)
		return false;
	run->n_of_category[category]++;
	return true;
}

/* The rows of what is listed, ascending. */
static int32 *
listed_rows(const Run *run, int64 n)
{
	int32 *rows = palloc(n * sizeof(int32) + 1);

	for (int64 i = 0; i < n; i++)
		rows[i] = run->list[i].row;
	qsort(rows, n, sizeof(int32), mr_compare_rows);
	return rows;
}

/*
 * Whether the user has an item of a baseline that the model does not know, and so no history tells: by the ratings query.
 * This is rare.
 */
static bool
has_other(Run *run, const MrKey *user, const MrKey *item)
{
	const MrModel *model = run->model;
	MemoryContext before = MemoryContextSwitchTo(run->context);
	char user_space[MR_KEY_SPACE];
	char item_space[MR_KEY_SPACE];
	bool has = false;
	MrGuard guard;
	MrShape shape;
	MrKey keys[2];
	Oid types[2];
	SPIPlanPtr plan;

	if (run->plans == NULL)
	{
		run->plans = palloc(2 * sizeof(MrPlan));
		mr_plan_init(&run->plans[0], run->context);
		mr_plan_init(&run->plans[1], run->context);
		run->look = AllocSetContextCreate(run->context, "millrace look", ALLOCSET_SMALL_SIZES);
	}
	MemoryContextSwitchTo(run->look);
	mr_model_enter(&guard, model);
	shape = mr_ratings_shape(mr_prepare(&run->plans[0].plan, model->query, 0, NULL), "ratings");
	types[0] = shape.user_text ? TEXTOID : INT8OID;
	types[1] = shape.item_text ? TEXTOID : INT8OID;
	plan = mr_prepare(
		&run->plans[1].plan,
		mr_ratings_select(&shape, "", model->query,
						  "WHERE q.u OPERATOR(pg_catalog.=) $1 AND q.i OPERATOR(pg_catalog.=) $2 LIMIT 1"),
		2, types);
	if (mr_key_convert(user, shape.user_text, &keys[0], user_space) &&
		mr_key_convert(item, shape.item_text, &keys[1], item_space))
	{
		Datum values[2];

		for (int i = 0; i < 2; i++)
			values[i] = keys[i].text ? mr_key_datum(&keys[i]) : Int64GetDatum(keys[i].value);
		if (SPI_execute_plan(plan, values, NULL, true, 1) != SPI_OK_SELECT)
			elog(ERROR, "what a user has cannot be read");
		has = SPI_processed > 0;
		SPI_freetuptable(SPI_tuptable);
	}
	mr_leave(&guard);
	MemoryContextSwitchTo(before);
	MemoryContextReset(run->look);
	return has;
}

/* Whether an item of the baseline that the model does not know is a candidate. */
static bool
is_candidate(const MrWish *wish, const MrKey *item)
{
	char space[MR_KEY_SPACE];
	int64 lo = 0;
	int64 hi = wish->n_others;
	MrKey key;

	if (hi == 0 || !mr_key_convert(item, wish->others[0].text, &key, space))
		return false;
	while (lo < hi)
	{
		int64 middle = lo + (hi - lo) / 2;
		int order = mr_compare_keys(&wish->others[middle], &key);

		if (order == 0)
			return true;
		if (order < 0)
			lo = middle + 1;
		else
			hi = middle;
	}
	return false;
}

/* Whether the i-th of the baseline may be listed, but for the limit of its category. */
static bool
may_list(Run *run, const MrKey *user, const MrHistory *history, int64 i)
{
	const MrWish *wish = run->wish;
	int32 row = run->baseline->row[i];
	MrKey item;

	if (row >= 0)
		return !(wish->exclude_seen && contains(history->row, history->n, row)) &&
			(wish->only == NULL || contains(wish->only, wish->n_only, row));
	item = mr_baseline_key(run->model, run->baseline, i);
	if (wish->only && !is_candidate(wish, &item))
		return false;
	return !(wish->exclude_seen && run->reads && !is_nobody(user) && has_other(run, user, &item));
}

static MrListed
of_baseline(const Run *run, int64 i)
{
	return (MrListed){mr_baseline_key(run->model, run->baseline, i), run->baseline->row[i],
					  run->baseline->score[i], MR_SOURCE_BASELINE};
}

/*
 * Append from the baseline to the n that are listed, and return how many there are then: first what the limit of
 * categories allows, then, when categories have run out, what it does not.
 */
static int64
fill(Run *run, const MrKey *user, const MrHistory *history, int64 n)
{
	const MrBaseline *baseline = run->baseline;
	int64 n_ranked = n;
	int32 *ranked = listed_rows(run, n_ranked);
	int64 n_refused = 0;

	for (int64 i = 0; i < n_ranked; i++)
		(void) take_category(run, run->category ? run->category[run->list[i].row] : -1);
	for (int64 i = 0; i < baseline->n && n < run->k; i++)
	{
		if (contains(ranked, n_ranked, baseline->row[i]) || !may_list(run, user, history, i))
			continue;
		if (take_category(run, baseline->category ? baseline->category[i] : -1))
			run->list[n++] = of_baseline(run, i);
		else if (n_refused < run->k)
			run->refused[n_refused++] = i;
	}
	for (int64 i = 0; i < n_refused && n < run->k; i++)
		run->list[n++] = of_baseline(run, run->refused[i]);
	if (run->n_of_category)
		memset(run->n_of_category, 0, run->lists->n_categories * sizeof(int32));
	pfree(ranked);
	return n;
}

static void
emit_user(Run *run, const UserBlock *block, int64 i)
{
	const Person *person = &block->people[i];
	int64 n = 0;

	if (person->search >= 0)
	{
		const MrcSearch *search = &block->searches[person->search];

		for (; n < search->n_top; n++)
		{
			int32 row = search->top[n].row;

			run->list[n] = (MrListed){mr_ids_key(&run->model->items.ids, row), row, search->top[n].score,
									  contains(search->boosted, search->n_boosted, row) ? MR_SOURCE_HISTORY
																						: person->source};
		}
	}
	if (n < run->k && run->baseline && (person->search < 0 || run->category))
		n = fill(run, &run->users[block->lo + i], &block->histories[i], n);
	run->sink(run->arg, block->lo + i, run->list, n, &block->histories[i]);
}

static void
emit_block(Run *run, const UserBlock *block)
{
	for (int64 i = 0; i < block->n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		emit_user(run, block, i);
	}
}

/* ---- running ---- */

static void
go(Run *run)
{
	UserBlock *block = &run->blocks[0];

	prepare_block(run, block, 0);
	begin_folds(run, block);
	begin_searches(run, block);
	for (int64 lo = block->n; lo < run->n;)
	{
		UserBlock *next = block == &run->blocks[0] ? &run->blocks[1] : &run->blocks[0];

		prepare_block(run, next, lo);
		end_searches(run);
		begin_folds(run, next);
		emit_block(run, block);
		begin_searches(run, next);
		block = next;
		lo += block->n;
	}
	end_searches(run);
	emit_block(run, block);
}

/*
 * Contexts inside each other, so that what is made last goes first, and with it the pool: whatever ends the session, no
 * thread is left with memory that has gone.  What the caller lends can go earlier, so threads get a copy.  As many threads as
 * there is work for, not one.
 */
static void
make_room(Run *run, int n_threads)
{
	MemoryContext context = run->everybody ? mr_everybody_context(run->everybody) : CurrentMemoryContext;
	int64 k = Max(run->k, 1);
	int32 *only;

	run->block_users = Min(BLOCK_USERS, Max(MIN_BLOCK_USERS, (run->n + MIN_BLOCKS - 1) / MIN_BLOCKS));
	run->block_users = Max(1, Min(run->block_users, BLOCK_BYTES / ((int64) sizeof(MrcTop) * k)));
	if (n_threads != 1)
		n_threads = mr_n_threads(n_threads);
	n_threads = Min(n_threads, run->n);
	run->only = run->wish->only;
	if (n_threads > 1 && run->only)
	{
		only = MemoryContextAllocHuge(CurrentMemoryContext, run->wish->n_only * sizeof(int32) + 1);
		memcpy(only, run->only, run->wish->n_only * sizeof(int32));
		run->only = only;
	}
	run->scratch = aligned(n_threads > 1 ? mrc_search_many_scratch_bytes(&run->model->index, k, n_threads)
										 : mrc_search_scratch_bytes(&run->model->index, k));
	for (int i = 0; i < lengthof(run->blocks); i++)
	{
		context = AllocSetContextCreate(context, "millrace block of users", ALLOCSET_DEFAULT_SIZES);
		run->blocks[i].context = context;
	}
	if (n_threads > 1)
		run->pool = mr_pool_create(
			AllocSetContextCreate(context, "millrace pool of threads", ALLOCSET_SMALL_SIZES), n_threads);
}

/*
 * Read what all users have at once if most of them are asked for.  That pays from a third on; and not where what users
 * have is kept by user.
 */
static void
read_everybody(Run *run, int n_threads)
{
	if (!run->reads || run->n < MANY_USERS || run->n < run->model->users.ids.n / 3 ||
		mr_history_is_kept(run->model))
		return;
	run->everybody = mr_everybody_read(run->model, n_threads);
}

static void
open_lists(Run *run)
{
	const MrWish *wish = run->wish;
	const MrModel *model = run->model;
	int64 n = model->items.ids.n;

	if (wish->baseline)
	{
		run->baseline = mr_baseline_open(run->model, wish->baseline);
		n += run->baseline->n;
	}
	run->k = Min(wish->k, n);
	run->list = MemoryContextAllocHuge(CurrentMemoryContext, run->k * sizeof(MrListed) + 1);
	if (wish->max_per_category <= 0)
		return;
	run->lists = mr_lists_open(run->model);
	run->category = run->lists->category;
	if (run->category == NULL)
		return;
	run->n_of_category = palloc0(run->lists->n_categories * sizeof(int32) + 1);
	run->refused = MemoryContextAllocHuge(CurrentMemoryContext, run->k * sizeof(int64) + 1);
}

/* As mr_recommend_many; given: n, what each has, if that shall not be read. */
static void
recommend(MrModel *model, const MrWish *wish, const MrKey *users, const MrHistory *given, int64 n,
		  int n_threads, MrListSink sink, void *arg)
{
	MemoryContext context =
		AllocSetContextCreate(CurrentMemoryContext, "millrace recommendations", ALLOCSET_DEFAULT_SIZES);
	MemoryContext before = MemoryContextSwitchTo(context);
	Run run = {.model = model,
			   .wish = wish,
			   .users = users,
			   .given = given,
			   .n = n,
			   .sink = sink,
			   .arg = arg,
			   .own_history = wish->exclude_seen ? 0 : mr_own_weight(model, wish->own_history)};

	run.reads =
		model->query && (wish->exclude_seen || wish->fold_in || run.own_history > 0 || wish->with_history);
	run.context = context;
	open_lists(&run);
	read_everybody(&run, n_threads);
	make_room(&run, n_threads);
	if (n > 0)
		go(&run);
	MemoryContextSwitchTo(before);
	MemoryContextDelete(context);
}

void
mr_recommend_many(MrModel *model, const MrWish *wish, const MrKey *users, int64 n, int n_threads,
				  MrListSink sink, void *arg)
{
	recommend(model, wish, users, NULL, n, n_threads, sink, arg);
}

const float *
mr_user_factor(MrModel *model, const MrKey *user, bool fold_in, MrListSource *source, MrHistory *history)
{
	Fold folded;
	Person person;

	*history = (MrHistory){0};
	if (fold_in && model->query && !is_nobody(user))
		mr_history_read(model, user, 1, history);
	if (meet(model, user, fold_in, history, &person, &folded.ratings))
	{
		folded.factor = palloc(model->items.rank * sizeof(float));
		fold(model, &folded, aligned(mrc_fold_scratch_bytes(&model->als.core)));
		if (folded.done)
		{
			*source = MR_SOURCE_FOLD_IN;
			return folded.factor;
		}
	}
	*source = person.source;
	return person.factor;
}

void
mr_recommend_given(MrModel *model, const MrWish *wish, const MrHistory *given, MrListSink sink, void *arg)
{
	MrKey nobody = {.text = true};

	recommend(model, wish, &nobody, given, 1, 1, sink, arg);
}
