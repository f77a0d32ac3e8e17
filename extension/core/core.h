/*
 * core.h: the computing core.  Plain C11 on threads: no server, no I/O, no globals.  Memory, clock, seed and
 * BLAS come from the caller; every function returns a status and never prints.  Matrices are row-major.
 *
 * Threads.  A pool belongs to one calling thread, which alone starts, runs and stops it.  Functions marked
 * "pool" are called by that thread and spread their work; functions marked "any thread" touch only what they
 * are given.  Results do not depend on the number of threads, bit by bit: every output element is computed by
 * one task in an order that only the input decides.
 */
#ifndef MRC_CORE_H
#define MRC_CORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum MrcStatus
{
	MRC_OK,
	MRC_CANCELLED, /* the host's interrupt() said so */
	MRC_AGAIN,	   /* a task gave way to a pause: it is called again with the same range */
	MRC_NOTPD,	   /* a row's system is singular at single precision */
	MRC_NOTFINITE, /* a result is NaN or infinite */
	MRC_NOTHREAD,  /* no thread could be started */
	MRC_CORRUPT	   /* a block fails a check */
} MrcStatus;

/* ---- pool.c ---- */

/*
 * Who waits for the pool.  pending() is asked by the calling thread every few milliseconds while tasks run, and
 * at the end of each job; when it says true the tasks pause and interrupt() is called with no task running, so that it may leave by
 * longjmp (the pool must then be stopped, and may be).  It returns false to cancel, true to go on.
 */
typedef struct MrcHost
{
	bool (*pending)(void *arg);
	bool (*interrupt)(void *arg);
	void *arg;
} MrcHost;

typedef struct MrcPool MrcPool;

/*
 * One task, on a thread of the pool: indexes [lo, hi), worker in [0, n_threads).  A status other than MRC_OK
 * ends the job, except MRC_AGAIN, which a long task may return when mrc_pool_pausing() (its work is redone).
 */
typedef MrcStatus (*MrcTask)(void *arg, int worker, int64_t lo, int64_t hi);

extern size_t mrc_pool_bytes(int n_threads);
/* memory: mrc_pool_bytes(n_threads) bytes that outlive the pool.  Starts fewer threads if it must. */
extern MrcStatus mrc_pool_start(MrcPool **pool, void *memory, int n_threads, const MrcHost *host);
extern int mrc_pool_size(const MrcPool *pool);
extern bool mrc_pool_pausing(const MrcPool *pool);
/* Run task over [0, n) in chunks handed out in order to whoever is free; returns when all is done. */
extern MrcStatus mrc_pool_run(MrcPool *pool, int64_t n, int64_t chunk, MrcTask task, void *arg);
/*
 * The same in two: begin returns at once, and the caller does what it likes, but not use the pool, until it calls end, which
 * waits.  In between the host is not asked.
 */
extern void mrc_pool_begin(MrcPool *pool, int64_t n, int64_t chunk, MrcTask task, void *arg);
extern MrcStatus mrc_pool_end(MrcPool *pool);
/*
 * A task on n bytes of memory with nothing in it yet, arg: writes to each page, so that the kernel has cleared it when the
 * caller comes to use it.  Bytes are left as they come.
 */
extern MrcStatus mrc_touch(void *arg, int worker, int64_t lo, int64_t hi);
/* Joins the threads; a task that runs is let finish its chunk.  Safe after a longjmp out of interrupt(). */
extern void mrc_pool_stop(MrcPool *pool);

/*
 * How many floats the widest vectors hold that the processor has and most allows: 16, 8 or 4.  most: 0 for any; 16, 8
 * or 4 for so many if it has them (tests).
 */
extern int mrc_lanes(int most);

/* ---- sparse.c: compressed rows ---- */

/* Compressed sparse rows: row r holds entries [start[r], start[r + 1]), columns ascending and distinct. */
typedef struct MrcCsr
{
	int64_t n_rows;
	int64_t n_cols;
	int64_t *start; /* n_rows + 1 */
	int32_t *index; /* column of each entry */
	float *value;	/* finite; not negative for implicit feedback */
} MrcCsr;

/* Triples as they were read: users and items have numbers, which become rows.  The arrays are in memory. */
typedef struct MrcPiece
{
	void *memory;
	size_t n_bytes;
	int64_t n;
	const int32_t *user;
	const int32_t *item;
	const float *value;
} MrcPiece;

typedef struct MrcTriples
{
	int64_t n;				/* of all pieces */
	const MrcPiece *pieces; /* one after the other */
	const int32_t *user_row;
	const int32_t *item_row;
} MrcTriples;

/* For n entries and so many columns (users, of triples); n_threads as in mrc_pool_size(). */
extern size_t mrc_turn_scratch_bytes(int64_t n, int64_t n_cols, int n_threads);
/*
 * The transpose.  turned: n_rows, n_cols and the memory are set.  Within a row, entries come in the order of csr's rows,
 * and those of one row of csr in their order there: columns ascend, whatever their order in csr, and equal ones (if csr
 * had some) stand side by side as they came.  scratch: mrc_turn_scratch_bytes(), aligned to 64.  Pool.
 */
extern MrcStatus mrc_csr_turn(MrcPool *pool, const MrcCsr *csr, MrcCsr *turned, void *scratch);
/*
 * Triples into rows of users, each in the order in which they were read.  Otherwise as mrc_csr_turn().  Memory of the
 * pieces is given back to the system as it is read, where pages are used for nothing else: its contents are lost.
 */
extern MrcStatus mrc_csr_gather(MrcPool *pool, const MrcTriples *triples, MrcCsr *by_user, void *scratch);
extern size_t mrc_sort_scratch_bytes(const MrcCsr *csr, int n_threads);
/* Each row in the order of columns, equal ones as they were.  scratch: mrc_sort_scratch_bytes().  Pool. */
extern MrcStatus mrc_csr_sort(MrcPool *pool, MrcCsr *csr, void *scratch);

/* ---- als.c: products ---- */

/*
 * LAPACK's dsyevd, with 32-bit integers, for the eigenvectors of a symmetric matrix; NULL to do without.  Called by one
 * thread at a time: an OpenBLAS built without threads (Debian's libopenblas0-serial) has buffers without a lock, and
 * gives wrong results to two at once.
 */
typedef struct MrcBlas
{
	void (*dsyevd)(const char *job, const char *triangle, const int *n, double *a, const int *lda,
				   double *values, double *work, const int *n_work, int *iwork, const int *n_iwork,
				   int *info);
} MrcBlas;

/*
 * The kernels that OpenBLAS should be told to use (OPENBLAS_CORETYPE) when it took those of this name.  Where it does not
 * know the processor, which is younger than the library, it takes a Pentium 4's, a quarter as fast.  NULL: it knows best.
 */
extern const char *mrc_blas_kernels(const char *name);

/* The inner product, summed in an order that depends on n only.  Any thread. */
extern float mrc_dot(const float *a, const float *b, int n);
/*
 * out[i] = inner product of x with row i of y (n x rank).  lanes: as MrcAls.lanes; 0: what mrc_dot() gives, bit by bit.
 * Any thread.
 */
typedef void (*MrcDots)(const float *x, const float *y, int64_t n, int rank, float *out);
extern MrcDots mrc_dots_at(int lanes);

/* ---- als.c: alternating least squares ---- */

/*
 * The objective, with x and y the factors of users and items, n the ratings of a row (implicit: those above
 * zero), m the length of the other side:
 *   explicit   sum over ratings (r - x.y)^2                                          + sum of penalties
 *   implicit   sum over all pairs c (p - x.y)^2, c = unobserved + alpha r, p = r > 0 + sum of penalties
 *   penalty of a row   regularization * (n + u m)^exponent * |row|^2,   u = unobserved if implicit, else 0
 * explicit with exponent 1 is ALS-WR (Zhou 2008) as Spark has it; implicit with unobserved 1 and exponent 0 is
 * Hu, Koren, Volinsky 2008; the unobserved weight and the exponent are Rendle et al. 2021.
 */
typedef struct MrcAlsParams
{
	int rank; /* 1 … MRC_MAX_RANK */
	bool implicit;
	double alpha;
	double unobserved;
	double regularization;
	double exponent;
	bool nonnegative; /* all factors at least 0 */
} MrcAlsParams;

#define MRC_MAX_RANK 1024

/* One training.  The caller fills the first part, and initialises item (mrc_als_start); user may be anything. */
typedef struct MrcAls
{
	MrcAlsParams params;
	MrcPool *pool;
	const MrcBlas *blas; /* may be NULL */
	MrcCsr by_user;		 /* users x items */
	MrcCsr by_item;		 /* the transpose */
	float *user;		 /* n_users x rank, out */
	float *item;		 /* n_items x rank, in and out */
	void *scratch;		 /* mrc_als_scratch_bytes(), aligned to 64 */
	int lanes;			 /* of its vectors, for mrc_lanes() */
	/* results */
	double loss;	 /* the objective after the last iteration */
	bool bad_user;	 /* where MRC_NOTPD or MRC_NOTFINITE came from */
	int64_t bad_row; /* the same */
} MrcAls;

/* Bytes of scratch; n_threads as in mrc_pool_size(). */
extern size_t
mrc_als_scratch_bytes(const MrcAlsParams *params, int64_t n_users, int64_t n_items, int n_threads);
/*
 * Random start of item: normal with standard deviation scale / sqrt(rank), a function of seed, row and column only;
 * its absolute value if nonnegative.
 * Explicit feedback wants sqrt(size of the values) as scale, so that both sides begin at the size they will have: from
 * a start that is too small the other side's systems are singular at single precision.  Pool.
 */
extern MrcStatus mrc_als_start(MrcAls *als, uint64_t seed, double scale);
/* One iteration: solves all users, then all items, then sets loss.  Pool. */
extern MrcStatus mrc_als_iterate(MrcAls *als);
/* Solve one side from the other: users if user_side, else items.  Pool; a seam for tests and fold-in. */
extern MrcStatus mrc_als_half_step(MrcAls *als, bool user_side);

/* ---- als.c: one user from his own ratings ---- */

/* Bytes of what all folds share: it depends on the items and params only, and may be kept. */
extern size_t mrc_fold_shared_bytes(int rank);
extern size_t mrc_fold_prepare_scratch_bytes(int rank, int n_threads);
/* shared, aligned to 64: all bytes are written.  item: n_items x rank.  Pool. */
extern MrcStatus mrc_fold_prepare(MrcPool *pool, const MrcAlsParams *params, const float *item,
								  int64_t n_items, void *shared, void *scratch);
extern size_t mrc_fold_scratch_bytes(const MrcAlsParams *params);
/*
 * The factors of a user with n ratings: row index[i] of item has value[i]; no row twice.  user: rank, what
 * mrc_als_half_step(user side) computes for such a row, but for rounding; zeros when nothing counts (implicit feedback:
 * no value above 0).  MRC_NOTPD, MRC_NOTFINITE: user is not set.  shared: as mrc_fold_prepare() left it.  scratch:
 * mrc_fold_scratch_bytes(), aligned to 64.  Any thread.
 */
extern MrcStatus mrc_fold(const MrcAlsParams *params, const void *shared, const float *item, int64_t n_items,
						  const int32_t *index, const float *value, int64_t n, float *user, void *scratch);
/*
 * What each rating contributes to the score of row `wanted` for that user: the factors are linear in the weights of the
 * ratings (among the coordinates that are not at 0, if nonnegative), so contribution (n) sums to the score.  As mrc_fold().
 */
extern MrcStatus mrc_fold_explain(const MrcAlsParams *params, const void *shared, const float *item,
								  int64_t n_items, const int32_t *index, const float *value, int64_t n,
								  int32_t wanted, float *contribution, void *scratch);

/* ---- index.c: the best items ---- */

typedef struct MrcTop
{
	float score;
	int32_t row;
} MrcTop;

/* Better: the higher score; at equal scores the lower row; NaN is below everything. */
extern bool mrc_top_before(MrcTop a, MrcTop b);

typedef struct MrcBound MrcBound;

/* Items as they are searched.  The memory belongs to the caller. */
typedef struct MrcIndex
{
	const float *items; /* n_items x rank */
	int64_t n_items;
	int rank;
	int lanes; /* as in MrcAls */
	/* of the memory; NULL when there is none: every item is scored */
	int64_t n_odd;			/* the first positions: factors or norms that are not finite */
	int64_t n_blocks;		/* of the other positions */
	double norm;			/* the greatest of these, rounded up */
	const int32_t *row;		/* n_items: of each position */
	const MrcBound *bounds; /* n_blocks */
	const uint8_t *codes;
} MrcIndex;

/* Bytes of an index.  What is written depends on the items only and holds no address: it may be kept in a file. */
extern size_t mrc_index_bytes(int64_t n_items, int rank);
extern size_t mrc_index_scratch_bytes(int64_t n_items);
/* memory: mrc_index_bytes(), aligned to 64, fully written; scratch: mrc_index_scratch_bytes(), aligned to 8.  Pool. */
extern MrcStatus
mrc_index_build(MrcPool *pool, const float *items, int64_t n_items, int rank, void *memory, void *scratch);
/* memory: as mrc_index_build() left it, aligned to 64; NULL: there is no index, and every item is scored. */
extern void
mrc_index_open(MrcIndex *index, const float *items, int64_t n_items, int rank, const void *memory);

/* Bytes of memory, and of scratch, of an index for so many searches only. */
extern size_t mrc_index_for_bytes(int64_t n_items, int rank, int64_t n_searches);
/* Build and open it, or, where that would take more time than the searches without it, open none.  memory: aligned to 64.  Pool. */
extern MrcStatus mrc_index_for(MrcPool *pool, MrcIndex *index, const float *items, int64_t n_items, int rank,
							   int64_t n_searches, void *memory);

/*
 * The k best items of one user, in the order of mrc_top_before().  The score of a row is mrc_dot(user, item), plus its
 * boost if it has one (one addition).  Lists of rows ascend and have none twice; a list may be NULL when its n is 0.
 */
typedef struct MrcSearch
{
	const float *user;	 /* rank */
	int64_t k;			 /* at least 1 */
	const int32_t *skip; /* rows that are not listed */
	int64_t n_skip;
	const int32_t *boosted; /* rows whose score has boost added */
	const float *boost;
	int64_t n_boosted;
	const int32_t *only; /* the only rows that may be listed; NULL: all */
	int64_t n_only;
	const int32_t *category; /* n_items: of each row, -1: none, not limited; NULL: no limit */
	int max_per_category;	 /* rows of one category in the list; 0: no limit */
	int32_t used_category;	 /* n_used (0: none) rows of this category are elsewhere, and count */
	int n_used;
	MrcTop *top;   /* k: the result, best first */
	int64_t n_top; /* so many */
} MrcSearch;

/* k: the longest of the searches. */
extern size_t mrc_search_scratch_bytes(const MrcIndex *index, int64_t k);
/* Exact.  scratch: mrc_search_scratch_bytes(), aligned to 64.  Any thread. */
extern void mrc_search(const MrcIndex *index, MrcSearch *search, void *scratch);
/*
 * The same with the cosine of user and item as score: inner product of user / |user|, in single precision, with the item,
 * by the item's norm in double precision; 0 where a norm is 0.  No boosts.
 */
extern void mrc_similar(const MrcIndex *index, MrcSearch *search, void *scratch);
/* n searches on the calling thread, each as mrc_search() does it, bit by bit.  scratch: as mrc_search_many() for one. */
extern void mrc_search_group(const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch);
extern size_t mrc_search_many_scratch_bytes(const MrcIndex *index, int64_t k, int n_threads);
/* n searches, each as mrc_search() does it, bit by bit.  scratch: mrc_search_many_scratch_bytes(), aligned to 64.  Pool. */
extern MrcStatus
mrc_search_many(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch);
/* The same in two, as mrc_pool_begin() and mrc_pool_end(). */
extern void
mrc_search_begin(MrcPool *pool, const MrcIndex *index, MrcSearch *searches, int64_t n, void *scratch);
extern MrcStatus mrc_search_end(MrcPool *pool);

/* ---- topk.c ---- */

/*
 * How good lists of k are, over n_rows users with something relevant each.  Means over the users of:
 *   precision   hits / k
 *   recall      hits / relevant
 *   map         sum over hits of (hits up to its rank / its rank), divided by the most hits possible, min(k, relevant)
 *   ndcg        DCG / ideal DCG, where a hit at rank r is worth 1 / log2(r + 1) and the ideal list has all relevant
 *               first, up to k
 *   hit_rate    1 if there is a hit, else 0
 * as Spark's RankingMetrics has them (meanAveragePrecisionAt, binary NDCG).  coverage: the share of all items that stand
 * in the list of at least one of the users.
 */
typedef struct MrcRanking
{
	MrcPool *pool;
	const float *users;
	const float *items; /* n_items x rank */
	int64_t n_items;
	int rank;
	int64_t k;
	int64_t n_rows;
	const int32_t *user_row;   /* n_rows: the row of users that scores for this one */
	const int64_t *n_relevant; /* n_rows, each > 0; may exceed what is among the items */
	MrcCsr relevant;		   /* n_rows x n_items; no values */
	/* … x n_items, not to be recommended; with values: raised by them instead; start NULL: nothing */
	MrcCsr seen;
	const int32_t *seen_row; /* n_rows: the row of seen that is this user's; NULL: the same row */
	void *scratch;			 /* mrc_ranking_scratch_bytes(), aligned to 64 */
	/* results */
	double precision;
	double recall;
	double map;
	double ndcg;
	double hit_rate;
	double coverage;
} MrcRanking;

extern size_t mrc_ranking_scratch_bytes(int64_t n_rows, int64_t n_items, int rank, int64_t k, int n_threads);
/* Pool.  The results do not depend on the number of threads. */
extern MrcStatus mrc_ranking_run(MrcRanking *ranking);

/* ---- own.c: what users have, in lists that may repeat it ---- */

/*
 * What is added to the score of an item that a user has by a value above 0 (else 0): weight * log(1 + v), where v is the
 * value drawn towards the item's usual one, usual * (1 + value) / (1 + usual).  usual: the mean of the values above 0 of
 * who has the item; not above 0: not known, v is the value.
 */
extern float mrc_own_boost(float weight, float value, float usual);

/*
 * How good lists of k are for each of n_weights weights of mrc_own_boost() for what a user has.  A user has what is in `known`, and nothing else is known of him: he is folded in from it.
 */
typedef struct MrcOwn
{
	MrcPool *pool;
	const MrcAlsParams *params;
	const void *fold;	 /* as mrc_fold_prepare() left it */
	const float *items;	 /* n_items x rank */
	MrcCsr known;		 /* n_rows x n_items */
	const float *rating; /* of each entry of known, what he is folded in from; above 0 */
	const float *usual;	 /* n_items */
	MrcCsr relevant;	 /* n_rows x n_items; no values; no row is empty */
	int64_t k;
	int n_weights;
	const float *weight;
	void *scratch; /* mrc_own_scratch_bytes(), aligned to 64 */
	double *ndcg;  /* n_weights, out: means over the users, as in MrcRanking */
} MrcOwn;

extern size_t mrc_own_scratch_bytes(const MrcOwn *own, int n_threads);
/* Pool.  The results do not depend on the number of threads. */
extern MrcStatus mrc_own_run(MrcOwn *own);

/* How far inner products are from values. */
typedef struct MrcError
{
	MrcPool *pool;
	MrcCsr ratings;			 /* n_rows x n_items */
	const int32_t *user_row; /* n_rows: the row of users of this row, if it has ratings; NULL: the same row */
	const float *users;		 /* … x rank */
	const float *items;		 /* n_items x rank */
	int rank;
	void *scratch; /* mrc_error_scratch_bytes() */
	/* result */
	double rmse; /* root of the mean square; NaN when there are no ratings */
} MrcError;

extern size_t mrc_error_scratch_bytes(int64_t n_rows);
/* Pool.  The result does not depend on the number of threads. */
extern MrcStatus mrc_error_run(MrcError *error);

/* ---- kmeans.c: clusters ---- */

/* Points: rows of d numbers, all finite, in chunks of chunk_rows rows each; the last chunk may have fewer. */
typedef struct MrcPoints
{
	int64_t n;
	int d;
	int64_t chunk_rows;
	double *const *chunk;  /* each chunk_rows x d */
	double *const *weight; /* each chunk_rows, finite, at least 0; NULL: all 1 */
} MrcPoints;

/* The starts and the tolerance (relative fall of the cost in an iteration) that a training has unless told otherwise. */
#define MRC_KMEANS_STARTS 4
#define MRC_KMEANS_TOLERANCE 1e-4
/* The most clusters, and the most numbers of a point. */
#define MRC_MAX_CLUSTERS 65536
#define MRC_MAX_FEATURES 16384

/*
 * One clustering: centres that make cost, the sum over points of weight * |point - nearest centre|^2, small.  The caller
 * fills the first part and puts zeros in all the rest.  Then a training is
 *   mrc_kmeans_start()            or centres from elsewhere (a warm start), all finite
 *   mrc_kmeans_iterate() …        n_changed == 0: more iterations change nothing
 *   mrc_kmeans_finish()
 *   mrc_kmeans_order()            after a cold start, so that numbers of clusters mean something
 * and mrc_kmeans_finish() alone says what given centres cost.  After mrc_kmeans_start(), and when the caller changes
 * center between iterations, n_iterations must be 0.  There should be at least k distinct points (mrc_kmeans_distinct):
 * with fewer, some centres are equal, and only the first of equals has points.  Functions return MRC_NOTFINITE where
 * squares of the numbers are too large for a double, else what the pool returns.
 */
typedef struct MrcKmeans
{
	MrcPool *pool;
	MrcPoints points; /* at least one */
	int k;			  /* 1 … MRC_MAX_CLUSTERS */
	uint64_t seed;
	int n_starts;	/* of mrc_kmeans_start(), at least 1; 0: it is not called, and the scratch is smaller */
	int lanes;		/* as in MrcAls */
	void *scratch;	/* mrc_kmeans_scratch_bytes(), aligned to 64; kept between the calls */
	double *center; /* k x d, in and out */
	int32_t *label; /* n: out, the cluster of each point */
	double *size;	/* k: out, sum of weights of each cluster */
	double *cluster_cost; /* k: out, its part of the cost; only by mrc_kmeans_finish() */
	/* results */
	double cost;	   /* iterate: of label under the centres before it; finish: under the centres */
	int64_t n_changed; /* iterate: points whose cluster changed, or was found for the first time */
	/* kept for the next call */
	int64_t n_iterations; /* since the centres were set */
	bool measured;		  /* the points have been measured */
} MrcKmeans;

/* Bytes of scratch; n_threads as in mrc_pool_size(). */
extern size_t mrc_kmeans_scratch_bytes(const MrcPoints *points, int k, int n_starts, int n_threads);
/*
 * Sets center from the points and the seed: the best of n_starts starts.  Takes about as long as a few iterations.  Pool.
 */
extern MrcStatus mrc_kmeans_start(MrcKmeans *kmeans);
/*
 * One iteration of Lloyd: each point goes to its nearest centre (label, size, cost, n_changed), each centre to the mean of
 * its points.  A cluster without weight takes the point that costs most, up to 16 of them in an iteration.  Pool.
 */
extern MrcStatus mrc_kmeans_iterate(MrcKmeans *kmeans);
/* label, size, cluster_cost and cost of the centres as they are, as mrc_kmeans_nearest() has them, bit by bit.  Pool. */
extern MrcStatus mrc_kmeans_finish(MrcKmeans *kmeans);
/*
 * After mrc_kmeans_finish(): renumbers clusters (center, label, size, cluster_cost) by size, the largest first, those of
 * equal size by their centres.  Pool.
 */
extern MrcStatus mrc_kmeans_order(MrcKmeans *kmeans);
/*
 * The number of the centre (k x d) nearest to x (d), the lowest among equals; *distance2 (may be NULL): the square of
 * their distance.  O(k d).  Any thread.
 */
extern int mrc_kmeans_nearest(const double *center, int k, int d, const double *x, double *distance2);

extern size_t mrc_kmeans_distinct_bytes(int k);
/*
 * *n_distinct = the number of distinct points that have weight, or k if there are more (0 and -0 are equal).  scratch:
 * mrc_kmeans_distinct_bytes(), aligned to 8.  Pool.
 */
extern MrcStatus
mrc_kmeans_distinct(MrcPool *pool, const MrcPoints *points, int k, int *n_distinct, void *scratch);

extern size_t mrc_silhouette_scratch_bytes(const MrcPoints *points, int k, int n_threads);
/*
 * The mean silhouette with the squared Euclidean distance, as Spark's ClusteringEvaluator has it.  label: n, each in
 * [0, k), any clustering; weights are numbers of equal points.  For a point of cluster a, with N_a points, a mean m_a and a
 * mean square V_a of the distance to it, the mean distance to the points of cluster c is |x - m_c|^2 + V_c, to the others of
 * its own that times N_a / (N_a - 1); a point alone in its cluster has silhouette 0.  NaN when fewer than two clusters have
 * points.  O(n k d).  scratch: mrc_silhouette_scratch_bytes(), aligned to 64.  Pool.
 */
extern MrcStatus mrc_silhouette(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k,
								void *scratch, double *silhouette);
/* The same with the Euclidean distance, from all pairs of points: O(n^2 d).  The same scratch.  Pool. */
extern MrcStatus mrc_silhouette_pairs(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k,
									  void *scratch, double *silhouette);

/* ---- block.c: factors at rest ---- */

/* XXH64 (Yann Collet; the algorithm's specification is public), the same on every machine. */
extern uint64_t mrc_hash64(const void *data, size_t n_bytes, uint64_t seed);

#define MRC_SEAL_BYTES 16 /* of a seal, and of a key */

/*
 * SipHash-2-4 of 128 bits (Aumasson, Bernstein 2012): who does not know the key cannot tell the seal of any data, nor the key
 * from seals.
 */
extern void mrc_seal(const unsigned char *key, const void *data, size_t n_bytes, unsigned char *seal);

#define MRC_BLOCK_VERSION 1
#define MRC_BLOCK_HEADER_BYTES 64

/*
 * A block of a factor matrix.  All numbers little-endian, sections without gaps:
 *     0  char[4]  "MRFB"
 *     4  uint16   format version, 1
 *     6  uint8    kind of ids: 1 bigint, 2 text
 *     7  uint8    0
 *     8  uint32   n_rows
 *    12  uint32   rank
 *    16  uint64   n_id_bytes, a multiple of 8
 *    24  uint64   n_factor_bytes = n_rows * rank * 4
 *    32  uint64   checksum: XXH64 of bytes [64, end) seeded with XXH64 of bytes [0, 32), seed 0
 *    40  byte[24] 0
 *    64  ids: bigint: int64[n_rows]; text: uint32 end[n_rows], the strings one after the other, zeros
 *     …  factors: float4[n_rows][rank]
 */
typedef struct MrcBlock
{
	bool text;
	int64_t n_rows;
	int rank;
	const unsigned char *ids;	  /* the section, inside the buffer given to mrc_block_open */
	const unsigned char *factors; /* the same; not aligned */
	size_t n_id_bytes;
} MrcBlock;

/* Size of an encoded block, 0 when it does not fit the format.  n_string_bytes: sum of the ids' lengths. */
extern size_t mrc_block_bytes(bool text, int64_t n_rows, int rank, size_t n_string_bytes);
/*
 * Encode.  ints (bigint) or strings with starts[0 … n_rows] (text; id i is [starts[i], starts[i + 1])).
 * out: mrc_block_bytes() bytes, fully written.
 */
extern void mrc_block_encode(unsigned char *out, bool text, int64_t n_rows, int rank, const int64_t *ints,
							 const char *strings, const int64_t *starts, const float *factors);
/* Check everything, checksum and text offsets included; MRC_CORRUPT with *why set.  Never reads beyond n_bytes. */
extern MrcStatus mrc_block_open(MrcBlock *block, const unsigned char *data, size_t n_bytes, const char **why);
extern int64_t mrc_block_int(const MrcBlock *block, int64_t row);
extern const char *mrc_block_string(const MrcBlock *block, int64_t row, size_t *n_bytes);
/* Copy rows [lo, hi) of the factors: out is (hi - lo) x rank. */
extern void mrc_block_factors(const MrcBlock *block, int64_t lo, int64_t hi, float *out);

#endif
