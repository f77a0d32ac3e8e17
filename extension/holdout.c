/*
 * holdout.c: pairs that a training does not see, and how well its factors do on them.
 *
 * Which pairs are held out depends on the ids and the seed only, not on the order of rows or the machine.  A user or an
 * item keeps at least one pair, so that everything that is asked for has factors.
 */
#include "model.h"

#include <math.h>

#include "common/shortest_dec.h"

#define INTERRUPT_ROWS 0xFFFFF /* mask: look for interrupts once in a million entries */

/* ---- who is held out ---- */

/* The finalizer of MurmurHash3 (Austin Appleby, public domain). */
static uint64
mix(uint64 hash)
{
	hash = (hash ^ hash >> 33) * UINT64CONST(0xFF51AFD7ED558CCD);
	hash = (hash ^ hash >> 33) * UINT64CONST(0xC4CEB9FE1A85EC53);
	return hash ^ hash >> 33;
}

static uint64 *
hash_ids(MrBudget *budget, const MrIds *ids, uint64 seed)
{
	uint64 *hashes = mr_reserve(budget, (ids->n + 1) * sizeof(uint64));

	for (int64 row = 0; row < ids->n; row++)
	{
		if ((row & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		hashes[row] = mr_ids_hash(ids, row, seed);
	}
	return hashes;
}

/* A split in the making. */
typedef struct Split
{
	const MrcCsr *csr;
	uint64 *user; /* hashes of the ids */
	uint64 *item;
	unsigned char *out; /* bit of each entry: held out */
	int64 n_out;
} Split;

static uint64
hash_pair(const Split *split, int64 user, int64 entry)
{
	return mix(split->user[user] ^ mix(split->item[split->csr->index[entry]]));
}

static bool
is_out(const Split *split, int64 entry)
{
	return split->out[entry / 8] >> entry % 8 & 1;
}

static void
flip(Split *split, int64 entry)
{
	split->out[entry / 8] ^= (unsigned char) (1 << entry % 8);
}

/* Choose by hash; of a user who would have nothing left, the pair with the greatest hash stays. */
static void
choose(Split *split, double fraction)
{
	const MrcCsr *csr = split->csr;

	for (int64 user = 0; user < csr->n_rows; user++)
	{
		int64 n = csr->start[user + 1] - csr->start[user];
		int64 n_out = 0;
		int64 stays = -1;
		uint64 greatest = 0;

		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[user]; e < csr->start[user + 1]; e++)
		{
			uint64 hash = hash_pair(split, user, e);

			if (stays < 0 || hash > greatest)
			{
				stays = e;
				greatest = hash;
			}
			if ((double) (hash >> 11) * 0x1p-53 < fraction)
			{
				flip(split, e);
				n_out++;
			}
		}
		if (n > 0 && n_out == n)
		{
			flip(split, stays);
			n_out--;
		}
		split->n_out += n_out;
	}
}

/* Of an item that would have nothing left, the pair with the greatest hash stays. */
static void
keep_items(MrBudget *budget, Split *split)
{
	const MrcCsr *csr = split->csr;
	bool *has = mr_reserve(budget, csr->n_cols * sizeof(bool) + 1);
	int64 *stays = mr_reserve(budget, csr->n_cols * sizeof(int64) + 1);
	uint64 *greatest = mr_reserve(budget, csr->n_cols * sizeof(uint64) + 1);

	memset(has, 0, csr->n_cols * sizeof(bool));
	memset(stays, -1, csr->n_cols * sizeof(int64));
	for (int64 e = 0; e < csr->start[csr->n_rows]; e++)
	{
		if ((e & INTERRUPT_ROWS) == 0)
			CHECK_FOR_INTERRUPTS();
		if (!is_out(split, e))
			has[csr->index[e]] = true;
	}
	for (int64 user = 0; user < csr->n_rows; user++)
	{
		CHECK_FOR_INTERRUPTS();
		for (int64 e = csr->start[user]; e < csr->start[user + 1]; e++)
		{
			int32 item = csr->index[e];
			uint64 hash;

			if (has[item])
				continue;
			hash = hash_pair(split, user, e);
			if (stays[item] < 0 || hash > greatest[item])
			{
				stays[item] = e;
				greatest[item] = hash;
			}
		}
	}
	for (int64 item = 0; item < csr->n_cols; item++)
		if (stays[item] >= 0)
		{
			flip(split, stays[item]);
			split->n_out--;
		}
	mr_release(budget, has);
	mr_release(budget, stays);
	mr_release(budget, greatest);
}

/* Move the entries that are out of csr into `to`; the others close ranks. */
static void
move(MrBudget *budget, const Split *split, MrcCsr *csr, MrcCsr *to)
{
	int64 n_left = 0;
	int64 n_out = 0;
	int64 e = 0;

	to->n_rows = csr->n_rows;
	to->n_cols = csr->n_cols;
	to->start = mr_reserve(budget, (csr->n_rows + 1) * sizeof(int64));
	to->index = mr_reserve(budget, split->n_out * sizeof(int32));
	to->value = mr_reserve(budget, split->n_out * sizeof(float));
	for (int64 row = 0; row < csr->n_rows; row++)
	{
		int64 end = csr->start[row + 1];

		CHECK_FOR_INTERRUPTS();
		csr->start[row] = n_left;
		to->start[row] = n_out;
		for (; e < end; e++)
			if (is_out(split, e))
			{
				to->index[n_out] = csr->index[e];
				to->value[n_out++] = csr->value[e];
			}
			else
			{
				csr->index[n_left] = csr->index[e];
				csr->value[n_left++] = csr->value[e];
			}
	}
	csr->start[csr->n_rows] = n_left;
	to->start[csr->n_rows] = n_out;
}

void
mr_holdout_split(MrBudget *budget, MrRatings *ratings, double fraction, int64 seed, MrHoldout *holdout)
{
	MrcCsr *csr = &ratings->by_user;
	int64 n = csr->start[csr->n_rows];
	Split split = {.csr = csr};

	if (!(fraction > 0 && fraction < 1))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("holdout must be above 0 and below 1, not %g", fraction)));
	split.user = hash_ids(budget, &ratings->users, (uint64) seed);
	split.item = hash_ids(budget, &ratings->items, mix((uint64) seed + 1));
	split.out = mr_reserve(budget, n / 8 + 1);
	memset(split.out, 0, n / 8 + 1);
	choose(&split, fraction);
	keep_items(budget, &split);
	if (split.n_out == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("holdout %g: none of the " INT64_FORMAT " pairs can be held out", fraction, n),
				 errdetail("Each user and each item keeps at least one pair."),
				 errhint("Raise holdout, or do without by holdout => 0.")));
	memset(holdout, 0, sizeof(*holdout));
	move(budget, &split, csr, &holdout->by_user);
	mr_release(budget, split.user);
	mr_release(budget, split.item);
	mr_release(budget, split.out);
}

/* ---- how well factors do ---- */

/* What is relevant for a user: held-out items with a value above zero which he does not have (if that is excluded). */
static int64
relevant_items(const MrRatings *ratings, const MrHoldout *holdout, int64 user, bool exclude_seen,
			   int32 *items)
{
	const MrcCsr *out = &holdout->by_user;
	const MrcCsr *seen = &ratings->by_user;
	int64 s = seen->start[user];
	int64 seen_end = exclude_seen ? seen->start[user + 1] : s;
	int64 n = 0;

	for (int64 e = out->start[user]; e < out->start[user + 1]; e++)
	{
		int32 item = out->index[e];

		while (s < seen_end && seen->index[s] < item)
			s++;
		if (out->value[e] > 0 && !(s < seen_end && seen->index[s] == item))
			items[n++] = item;
	}
	return n;
}

/* Whether a training has learnt anything of the user. */
static bool
has_factors(const float *user, int rank)
{
	for (int i = 0; i < rank; i++)
		if (user[i] != 0)
			return true;
	return false;
}

typedef struct Drawn
{
	uint64 hash;
	int32 row;
} Drawn;

static int
compare_drawn(const void *a, const void *b)
{
	const Drawn *drawn_a = a;
	const Drawn *drawn_b = b;

	if (drawn_a->hash != drawn_b->hash)
		return drawn_a->hash < drawn_b->hash ? -1 : 1;
	return (drawn_a->row > drawn_b->row) - (drawn_a->row < drawn_b->row);
}

/* Of n rows the max_users with the least hash of their ids, in ascending order; returns their number. */
static int64
draw_users(MrBudget *budget, const MrIds *users, int32 *rows, int64 n, int64 max_users)
{
	Drawn *drawn;

	if (max_users == 0 || n <= max_users)
		return n;
	drawn = mr_reserve(budget, n * sizeof(Drawn));
	for (int64 i = 0; i < n; i++)
		drawn[i] = (Drawn){mr_ids_hash(users, rows[i], 0), rows[i]};
	qsort(drawn, n, sizeof(Drawn), compare_drawn);
	for (int64 i = 0; i < max_users; i++)
		rows[i] = drawn[i].row;
	qsort(rows, max_users, sizeof(int32), mr_compare_rows);
	mr_release(budget, drawn);
	return max_users;
}

/* Users for whom something is relevant. */
static int64
list_users(const MrRatings *ratings, const MrHoldout *holdout, int rank, const float *user, bool exclude_seen,
		   int32 *space, int32 *rows)
{
	int64 n = 0;

	for (int64 row = 0; row < ratings->users.n; row++)
	{
		CHECK_FOR_INTERRUPTS();
		if (!has_factors(user + row * rank, rank))
			continue;
		if ((holdout->n_foreign && holdout->n_foreign[row] > 0) ||
			relevant_items(ratings, holdout, row, exclude_seen, space) > 0)
			rows[n++] = (int32) row;
	}
	return n;
}

static void
score_ranking(MrBudget *budget, const MrRatings *ratings, const MrHoldout *holdout, bool exclude_seen,
			  float *boost, int64 max_users, MrcRanking *ranking)
{
	int64 n_users = ratings->users.n;
	int64 n_out = holdout->by_user.start[n_users];
	int32 *rows = mr_reserve(budget, n_users * sizeof(int32) + 1);
	int64 *n_relevant = mr_reserve(budget, n_users * sizeof(int64) + 1);
	MrcCsr *relevant = &ranking->relevant;
	int64 n = 0;

	relevant->start = mr_reserve(budget, (n_users + 1) * sizeof(int64));
	relevant->index = mr_reserve(budget, (n_out + 1) * sizeof(int32));
	ranking->n_rows =
		list_users(ratings, holdout, ranking->rank, ranking->users, exclude_seen, relevant->index, rows);
	ranking->n_rows = draw_users(budget, &ratings->users, rows, ranking->n_rows, max_users);
	relevant->n_rows = ranking->n_rows;
	relevant->n_cols = ranking->n_items;
	for (int64 i = 0; i < ranking->n_rows; i++)
	{
		int64 n_known = relevant_items(ratings, holdout, rows[i], exclude_seen, relevant->index + n);

		CHECK_FOR_INTERRUPTS();
		relevant->start[i] = n;
		n_relevant[i] = n_known + (holdout->n_foreign ? holdout->n_foreign[rows[i]] : 0);
		n += n_known;
	}
	relevant->start[ranking->n_rows] = n;
	ranking->user_row = ranking->seen_row = rows;
	ranking->n_relevant = n_relevant;
	if (exclude_seen || boost)
	{
		ranking->seen = ratings->by_user;
		ranking->seen.value = exclude_seen ? NULL : boost;
	}
	if (ranking->n_rows > 0)
	{
		ranking->scratch =
			mr_reserve(budget,
					   mrc_ranking_scratch_bytes(ranking->n_rows, ranking->n_items, ranking->rank, ranking->k,
												 mrc_pool_size(ranking->pool)));
		if (mrc_ranking_run(ranking) != MRC_OK)
			elog(ERROR, "the hold-out cannot be scored");
	}
	mr_release(budget, ranking->scratch);
	mr_release(budget, rows);
	mr_release(budget, n_relevant);
	mr_release(budget, relevant->start);
	mr_release(budget, relevant->index);
}

void
mr_holdout_score(MrBudget *budget, MrcPool *pool, const MrRatings *ratings, const MrHoldout *holdout,
				 int rank, const float *user, const float *item, bool is_explicit, int k, bool exclude_seen,
				 float *boost, int64 max_users, MrScores *scores)
{
	MrcRanking ranking = {
		.pool = pool, .users = user, .items = item, .n_items = ratings->items.n, .rank = rank, .k = k};

	if (k > 0)
		score_ranking(budget, ratings, holdout, exclude_seen, boost, max_users, &ranking);
	if (ranking.n_rows > 0)
		*scores = (MrScores){.precision = ranking.precision,
							 .recall = ranking.recall,
							 .map = ranking.map,
							 .ndcg = ranking.ndcg,
							 .hit_rate = ranking.hit_rate,
							 .coverage = ranking.coverage,
							 .rmse = NAN,
							 .n_users = ranking.n_rows};
	else
		*scores = (MrScores){NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0};
	if (is_explicit && holdout->by_user.start[ratings->users.n] > 0)
	{
		MrcError error = {
			.pool = pool, .ratings = holdout->by_user, .users = user, .items = item, .rank = rank};

		error.scratch = mr_reserve(budget, mrc_error_scratch_bytes(ratings->users.n));
		if (mrc_error_run(&error) != MRC_OK)
			elog(ERROR, "the hold-out cannot be scored");
		mr_release(budget, error.scratch);
		scores->rmse = error.rmse;
	}
}

Size
mr_holdout_score_bytes(const MrRatings *ratings, const MrHoldout *holdout, int rank, int k, int64 max_users,
					   int n_threads)
{
	int64 n_users = ratings->users.n;
	int64 n_out = holdout->by_user.start[n_users];
	int64 n_judged = max_users > 0 ? Min(max_users, n_users) : n_users;

	if (k == 0)
		return mrc_error_scratch_bytes(n_users);
	return n_users * (sizeof(int32) + 2 * sizeof(int64)) + n_out * sizeof(int32) + 64 +
		Max(n_users * sizeof(Drawn),
			mrc_ranking_scratch_bytes(n_judged, ratings->items.n, rank, k, n_threads));
}

/* The shortest text that reads back as the same number; not finite: null. */
static void
append_number(StringInfo json, const char *name, double value)
{
	char number[DOUBLE_SHORTEST_DECIMAL_LEN];

	appendStringInfo(json, "\"%s\": ", name);
	if (isfinite(value))
	{
		double_to_shortest_decimal_buf(value, number);
		appendStringInfo(json, "%s, ", number);
	}
	else
		appendStringInfoString(json, "null, ");
}

char *
mr_scores_json(const MrScores *scores, int n_iterations, double loss)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_number(&json, "precision", scores->precision);
	append_number(&json, "recall", scores->recall);
	append_number(&json, "map", scores->map);
	append_number(&json, "ndcg", scores->ndcg);
	append_number(&json, "hit_rate", scores->hit_rate);
	append_number(&json, "coverage", scores->coverage);
	append_number(&json, "rmse", scores->rmse);
	append_number(&json, "loss", loss);
	appendStringInfo(&json, "\"iterations\": %d, \"users\": " INT64_FORMAT "}", n_iterations,
					 scores->n_users);
	return json.data;
}
