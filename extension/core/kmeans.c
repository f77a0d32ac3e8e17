/*
 * kmeans.c: clusters of points.
 */
#include "core.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PARTS 256		/* of the points, each with its own sums */
#define PART_ROWS 256		/* of a part, at least */
#define CHECK_NUMBERS 65536 /* between two looks whether the pool pauses */

static const double *
row_of(const MrcPoints *points, int64_t row)
{
	return points->chunk[row / points->chunk_rows] + (row % points->chunk_rows) * points->d;
}

static double
weight_of(const MrcPoints *points, int64_t row)
{
	return points->weight ? points->weight[row / points->chunk_rows][row % points->chunk_rows] : 1;
}

/* Squared distance of a and b (d), summed in an order that depends on d only; the same code for all callers. */
static __attribute__((noinline)) double
distance2(const double *a, const double *b, int d)
{
	double sum = 0;

	for (int j = 0; j < d; j++)
	{
		double x = a[j] - b[j];

		sum += x * x;
	}
	return sum;
}

int
mrc_kmeans_nearest(const double *center, int k, int d, const double *x, double *distance)
{
	double best = INFINITY;
	int nearest = 0;

	for (int c = 0; c < k; c++)
	{
		double here = distance2(x, center + (size_t) c * d, d);

		if (here < best)
		{
			best = here;
			nearest = c;
		}
	}
	if (distance)
		*distance = best;
	return nearest;
}

/* Points are cut into parts by their number and k alone; sums are kept by part and added in order. */
static int
n_parts_of(const MrcPoints *points, int k)
{
	int64_t n = points->n / (8 * (int64_t) k);

	n = n < 8 ? 8 : n > MAX_PARTS ? MAX_PARTS : n;
	return (int) (n > points->n / PART_ROWS ? points->n / PART_ROWS + 1 : n);
}

/* What the points of a part add up to. */
typedef struct Part
{
	int64_t lo;
	int64_t next; /* the first row that is not done */
	int64_t hi;
	double cost;
	int64_t n_changed;
	double *sum;		  /* k x d */
	double *size;		  /* k */
	double *cluster_cost; /* k */
	double worst;
	int64_t worst_row;
} Part;

typedef struct Work
{
	MrcKmeans *kmeans;
	bool finish;
	int n_parts;
	Part *parts;
	int *map; /* k */
} Work;

typedef struct Layout
{
	char *base;
	size_t n_bytes;
} Layout;

static void *
take(Layout *layout, size_t n_bytes)
{
	void *taken = layout->base ? layout->base + layout->n_bytes : NULL;

	layout->n_bytes += (n_bytes + 63) / 64 * 64;
	return taken;
}

static size_t
lay_out(Work *work, char *base, const MrcPoints *points, int k)
{
	Layout at = {base, 0};

	work->n_parts = n_parts_of(points, k);
	work->parts = take(&at, (size_t) work->n_parts * sizeof(Part));
	for (int p = 0; p < work->n_parts; p++)
	{
		Part part = {.lo = points->n * p / work->n_parts, .hi = points->n * (p + 1) / work->n_parts};

		part.next = part.lo;
		part.worst = -1;
		part.sum = take(&at, (size_t) k * points->d * sizeof(double));
		part.size = take(&at, (size_t) k * sizeof(double));
		part.cluster_cost = take(&at, (size_t) k * sizeof(double));
		if (base)
			work->parts[p] = part;
	}
	work->map = take(&at, (size_t) k * sizeof(int));
	take(&at, (size_t) points->n * sizeof(double));
	return at.n_bytes;
}

size_t
mrc_kmeans_scratch_bytes(const MrcPoints *points, int k, int n_starts, int n_threads)
{
	Work work;

	(void) n_starts;
	(void) n_threads;
	return lay_out(&work, NULL, points, k);
}

static MrcStatus
assign_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Work *work = arg;
	MrcKmeans *km = work->kmeans;
	int d = km->points.d;
	int64_t check = CHECK_NUMBERS / ((int64_t) km->k * d) + 1;

	(void) worker;
	(void) hi;
	Part *part = &work->parts[lo];

	if (part->next == part->lo)
	{
		memset(part->sum, 0, (size_t) km->k * d * sizeof(double));
		memset(part->size, 0, (size_t) km->k * sizeof(double));
		memset(part->cluster_cost, 0, (size_t) km->k * sizeof(double));
	}
	for (; part->next < part->hi; part->next++)
	{
		const double *x = row_of(&km->points, part->next);
		double w = weight_of(&km->points, part->next);
		double far;
		int c;

		if (part->next % check == 0 && part->next > part->lo && mrc_pool_pausing(km->pool))
			return MRC_AGAIN;
		c = mrc_kmeans_nearest(km->center, km->k, d, x, &far);
		part->n_changed += km->n_iterations == 0 || km->label[part->next] != c;
		km->label[part->next] = c;
		part->cost += w * far;
		part->size[c] += w;
		part->cluster_cost[c] += w * far;
		for (int j = 0; j < d && !work->finish; j++)
			part->sum[(size_t) c * d + j] += w * x[j];
		if (w * far > part->worst)
		{
			part->worst = w * far;
			part->worst_row = part->next;
		}
	}
	return MRC_OK;
}

/* Assigns all points, and adds the parts up into the first one. */
static MrcStatus
assign(Work *work, MrcKmeans *km, bool finish)
{
	MrcStatus status;
	Part *first;

	memset(work, 0, sizeof(*work));
	work->kmeans = km;
	work->finish = finish;
	lay_out(work, km->scratch, &km->points, km->k);
	status = mrc_pool_run(km->pool, work->n_parts, 1, assign_task, work);
	if (status != MRC_OK)
		return status;
	first = &work->parts[0];
	for (int p = 1; p < work->n_parts; p++)
	{
		Part *part = &work->parts[p];

		first->cost += part->cost;
		first->n_changed += part->n_changed;
		for (int c = 0; c < km->k; c++)
		{
			first->size[c] += part->size[c];
			first->cluster_cost[c] += part->cluster_cost[c];
		}
		for (size_t i = 0; i < (size_t) km->k * km->points.d; i++)
			first->sum[i] += part->sum[i];
	}
	km->cost = first->cost;
	km->n_changed = first->n_changed;
	memcpy(km->size, first->size, (size_t) km->k * sizeof(double));
	return isfinite(km->cost) ? MRC_OK : MRC_NOTFINITE;
}

MrcStatus
mrc_kmeans_iterate(MrcKmeans *km)
{
	int d = km->points.d;
	Work work;
	MrcStatus status = assign(&work, km, false);
	int next = 0;

	if (status != MRC_OK)
		return status;
	for (int c = 0; c < km->k; c++)
	{
		double *center = km->center + (size_t) c * d;

		for (int j = 0; j < d && km->size[c] > 0; j++)
			center[j] = work.parts[0].sum[(size_t) c * d + j] / km->size[c];
		while (km->size[c] == 0 && next < work.n_parts && !(work.parts[next].worst > 0))
			next++;
		if (km->size[c] == 0 && next < work.n_parts)
		{
			memcpy(center, row_of(&km->points, work.parts[next++].worst_row), (size_t) d * sizeof(double));
			km->n_changed++;
		}
	}
	km->n_iterations++;
	return MRC_OK;
}

MrcStatus
mrc_kmeans_finish(MrcKmeans *km)
{
	Work work;
	MrcStatus status = assign(&work, km, true);

	if (status == MRC_OK)
		memcpy(km->cluster_cost, work.parts[0].cluster_cost, (size_t) km->k * sizeof(double));
	return status;
}

static uint64_t
mix(uint64_t x)
{
	x += 0x9E3779B97F4A7C15u;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
	return x ^ (x >> 31);
}

MrcStatus
mrc_kmeans_start(MrcKmeans *km)
{
	Work work;
	double *near =
		(double *) ((char *) km->scratch + lay_out(&work, NULL, &km->points, km->k)) - km->points.n;
	int64_t n = km->points.n;
	int d = km->points.d;

	near = (double *) ((uintptr_t) near / 64 * 64);
	for (int64_t i = 0; i < n; i++)
		near[i] = INFINITY;
	for (int c = 0; c < km->k; c++)
	{
		double *center = km->center + (size_t) c * d;
		double total = 0;
		double at;
		int64_t row = 0;

		for (int64_t i = 0; i < n; i++)
			total += weight_of(&km->points, i) * (c > 0 ? near[i] : 1);
		at = (double) (mix(km->seed * 1000003 + (uint64_t) c) >> 11) / 9007199254740992.0 * total;
		for (int64_t i = 0; i < n && at >= 0; i++)
		{
			double mass = weight_of(&km->points, i) * (c > 0 ? near[i] : 1);

			at -= mass;
			row = mass > 0 ? i : row;
		}
		memcpy(center, row_of(&km->points, row), (size_t) d * sizeof(double));
		for (int64_t i = 0; i < n; i++)
		{
			double here = distance2(row_of(&km->points, i), center, d);

			near[i] = here < near[i] ? here : near[i];
		}
	}
	km->n_iterations = 0;
	return MRC_OK;
}

/* ---- order ---- */

typedef struct Ranked
{
	const MrcKmeans *kmeans;
	int cluster;
} Ranked;

static int
compare_ranked(const void *a, const void *b)
{
	const MrcKmeans *km = ((const Ranked *) a)->kmeans;
	int i = ((const Ranked *) a)->cluster;
	int j = ((const Ranked *) b)->cluster;

	if (km->size[i] != km->size[j])
		return km->size[i] > km->size[j] ? -1 : 1;
	for (int t = 0; t < km->points.d; t++)
	{
		double x = km->center[(size_t) i * km->points.d + t];
		double y = km->center[(size_t) j * km->points.d + t];

		if (x != y)
			return x < y ? -1 : 1;
	}
	return i < j ? -1 : 1;
}

typedef struct Renumber
{
	int32_t *label;
	const int32_t *number; /* k: the new number of a cluster */
} Renumber;

static MrcStatus
renumber_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Renumber *renumber = arg;

	(void) worker;
	for (; lo < hi; lo++)
		renumber->label[lo] = renumber->number[renumber->label[lo]];
	return MRC_OK;
}

/* x (k x d): row to[c] becomes what row c was; along cycles.  done: k. */
static void
permute(double *x, int k, int d, const int32_t *to, bool *done)
{
	memset(done, 0, (size_t) k * sizeof(bool));
	for (int c = 0; c < k; c++)
		for (int at = to[c]; !done[at]; at = to[at])
		{
			/* row c holds what belongs at `at` */
			done[at] = true;
			for (int j = 0; j < d && at != c; j++)
			{
				double kept = x[(size_t) at * d + j];

				x[(size_t) at * d + j] = x[(size_t) c * d + j];
				x[(size_t) c * d + j] = kept;
			}
		}
}

MrcStatus
mrc_kmeans_order(MrcKmeans *km)
{
	Layout at = {km->scratch, 0};
	Ranked *ranked = take(&at, (size_t) km->k * sizeof(Ranked));
	int32_t *number = take(&at, (size_t) km->k * sizeof(int32_t));
	bool *done = take(&at, (size_t) km->k * sizeof(bool));
	Renumber renumber = {km->label, number};

	for (int c = 0; c < km->k; c++)
		ranked[c] = (Ranked){km, c};
	qsort(ranked, (size_t) km->k, sizeof(Ranked), compare_ranked);
	for (int c = 0; c < km->k; c++)
		number[ranked[c].cluster] = c;
	permute(km->center, km->k, km->points.d, number, done);
	permute(km->size, km->k, 1, number, done);
	permute(km->cluster_cost, km->k, 1, number, done);
	km->n_iterations = 0;
	return mrc_pool_run(km->pool, km->points.n, 1 << 20, renumber_task, &renumber);
}

/* ---- distinct points ---- */

typedef struct Distinct
{
	MrcPool *pool;
	const MrcPoints *points;
	int k;
	int64_t next; /* the first row that has not been looked at */
	int n_found;
	size_t n_slots; /* a power of two */
	int64_t *slots; /* rows found, -1: free */
} Distinct;

static size_t
distinct_slots(int k)
{
	size_t n = 16;

	while (n < 2 * (size_t) k)
		n *= 2;
	return n;
}

size_t
mrc_kmeans_distinct_bytes(int k)
{
	return distinct_slots(k) * sizeof(int64_t);
}

static bool
same_point(const double *a, const double *b, int d)
{
	for (int j = 0; j < d; j++)
		if (a[j] != b[j])
			return false;
	return true;
}

static uint64_t
hash_point(const double *x, int d)
{
	uint64_t hash = 0;

	for (int j = 0; j < d; j++)
	{
		double number = x[j] + 0.0; /* -0 + 0 = 0 */
		uint64_t bits;

		memcpy(&bits, &number, sizeof(bits));
		hash = mix(hash ^ bits);
	}
	return hash;
}

/* One task that looks at all points until k are found. */
static MrcStatus
distinct_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Distinct *distinct = arg;
	const MrcPoints *points = distinct->points;
	int64_t check = CHECK_NUMBERS / points->d + 1;

	(void) worker;
	(void) lo;
	(void) hi;
	for (; distinct->next < points->n && distinct->n_found < distinct->k; distinct->next++)
	{
		const double *x = row_of(points, distinct->next);
		size_t slot;

		if (distinct->next % check == 0 && mrc_pool_pausing(distinct->pool))
			return MRC_AGAIN;
		if (!(weight_of(points, distinct->next) > 0))
			continue;
		slot = hash_point(x, points->d) & (distinct->n_slots - 1);
		while (distinct->slots[slot] >= 0 && !same_point(row_of(points, distinct->slots[slot]), x, points->d))
			slot = (slot + 1) & (distinct->n_slots - 1);
		if (distinct->slots[slot] < 0)
		{
			distinct->slots[slot] = distinct->next;
			distinct->n_found++;
		}
	}
	return MRC_OK;
}

MrcStatus
mrc_kmeans_distinct(MrcPool *pool, const MrcPoints *points, int k, int *n_distinct, void *scratch)
{
	Distinct distinct = {.pool = pool, .points = points, .k = k, .slots = scratch};
	MrcStatus status;

	distinct.n_slots = distinct_slots(k);
	memset(scratch, 0xFF, distinct.n_slots * sizeof(int64_t));
	status = mrc_pool_run(pool, 1, 1, distinct_task, &distinct);
	*n_distinct = distinct.n_found;
	return status;
}

/* ---- silhouette ---- */

/* One part of the points. */
typedef struct Shape
{
	int64_t lo;
	int64_t next; /* the first row that is not done */
	int64_t hi;
	double *sum;	/* k x d: of differences from the base, by weight */
	double *spread; /* k: of squared distances to the mean, by weight */
	double *weight; /* k */
	double total;	/* of silhouettes, by weight */
} Shape;

typedef struct Silhouette
{
	MrcPool *pool;
	const MrcPoints *points;
	const int32_t *label;
	int k;
	int step;
	int n_shapes;
	Shape *shapes;
	double *mean;	/* k x d */
	double *spread; /* k: means of squared distances to the mean */
	double *weight; /* k */
	double *apart;	/* n_threads x k: of one point, the sums of distances to the points of each cluster */
} Silhouette;

static size_t
lay_out_silhouette(Silhouette *s, char *base, const MrcPoints *points, int k, int n_threads)
{
	Layout at = {base, 0};

	s->n_shapes = n_parts_of(points, k);
	s->shapes = take(&at, (size_t) s->n_shapes * sizeof(Shape));
	s->mean = take(&at, (size_t) k * points->d * sizeof(double));
	s->spread = take(&at, (size_t) k * sizeof(double));
	s->weight = take(&at, (size_t) k * sizeof(double));
	s->apart = take(&at, (size_t) n_threads * k * sizeof(double));
	for (int p = 0; p < s->n_shapes; p++)
	{
		Shape shape = {.lo = points->n * p / s->n_shapes, .hi = points->n * (p + 1) / s->n_shapes};

		shape.next = shape.lo;
		shape.sum = take(&at, (size_t) k * points->d * sizeof(double));
		shape.spread = take(&at, (size_t) k * sizeof(double));
		shape.weight = take(&at, (size_t) k * sizeof(double));
		if (base)
			s->shapes[p] = shape;
	}
	return at.n_bytes;
}

size_t
mrc_silhouette_scratch_bytes(const MrcPoints *points, int k, int n_threads)
{
	Silhouette s;

	return lay_out_silhouette(&s, NULL, points, k, n_threads);
}

/* (b - a) / max(a, b), 0 where both are 0. */
static double
silhouette_of(double own, double other)
{
	double most = own > other ? own : other;

	return most > 0 ? (other - own) / most : 0;
}

static double
point_silhouette(const Silhouette *s, const double *x, int own)
{
	int d = s->points->d;
	double other = INFINITY;
	double n = s->weight[own];

	if (!(n > 1))
		return 0;
	for (int c = 0; c < s->k; c++)
		if (c != own && s->weight[c] > 0)
		{
			double here = distance2(x, s->mean + (size_t) c * d, d) + s->spread[c];

			other = here < other ? here : other;
		}
	return silhouette_of((distance2(x, s->mean + (size_t) own * d, d) + s->spread[own]) * (n / (n - 1)),
						 other);
}

/* Steps: 0 sums, 1 squared distances to the means, 2 silhouettes. */
static MrcStatus
shape_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Silhouette *s = arg;
	const MrcPoints *points = s->points;
	int d = points->d;
	int64_t check = CHECK_NUMBERS / ((s->step == 2 ? s->k : 1) * (int64_t) d) + 1;
	Shape *shape = &s->shapes[lo];

	(void) worker;
	(void) hi;
	for (; shape->next < shape->hi; shape->next++)
	{
		const double *x = row_of(points, shape->next);
		double w = weight_of(points, shape->next);
		int c = s->label[shape->next];

		if (shape->next % check == 0 && mrc_pool_pausing(s->pool))
			return MRC_AGAIN;
		if (s->step == 0)
		{
			shape->weight[c] += w;
			for (int j = 0; j < d; j++)
				shape->sum[(size_t) c * d + j] += w * (x[j] - s->mean[j]);
		}
		else if (s->step == 1)
			shape->spread[c] += w * distance2(x, s->mean + (size_t) c * d, d);
		else
			shape->total += w * point_silhouette(s, x, c);
	}
	return MRC_OK;
}

static MrcStatus
run_shapes(Silhouette *s, int step)
{
	s->step = step;
	for (int p = 0; p < s->n_shapes; p++)
		s->shapes[p].next = s->shapes[p].lo;
	return mrc_pool_run(s->pool, s->n_shapes, 1, shape_task, s);
}

/* Weights, means and spreads of the clusters. */
static MrcStatus
measure_clusters(Silhouette *s)
{
	size_t n_numbers = (size_t) s->k * s->points->d;
	MrcStatus status;

	memset(s->spread, 0, (size_t) s->k * sizeof(double));
	memset(s->weight, 0, (size_t) s->k * sizeof(double));
	for (int p = 0; p < s->n_shapes; p++)
	{
		memset(s->shapes[p].sum, 0, n_numbers * sizeof(double));
		memset(s->shapes[p].spread, 0, (size_t) s->k * sizeof(double));
		memset(s->shapes[p].weight, 0, (size_t) s->k * sizeof(double));
	}
	memcpy(s->mean, row_of(s->points, 0), (size_t) s->points->d * sizeof(double));
	status = run_shapes(s, 0);
	if (status != MRC_OK)
		return status;
	for (int c = s->k - 1; c >= 0; c--) /* the base stands where the first mean will */
	{
		for (int p = 0; p < s->n_shapes; p++)
			s->weight[c] += s->shapes[p].weight[c];
		for (int j = 0; j < s->points->d; j++)
		{
			double sum = 0;

			for (int p = 0; p < s->n_shapes; p++)
				sum += s->shapes[p].sum[(size_t) c * s->points->d + j];
			s->mean[(size_t) c * s->points->d + j] = s->mean[j] + (s->weight[c] > 0 ? sum / s->weight[c] : 0);
		}
	}
	status = run_shapes(s, 1);
	for (int c = 0; c < s->k && status == MRC_OK; c++)
	{
		for (int p = 0; p < s->n_shapes; p++)
			s->spread[c] += s->shapes[p].spread[c];
		s->spread[c] /= s->weight[c] > 0 ? s->weight[c] : 1;
	}
	return status;
}

/* The mean over all points. */
static double
mean_silhouette(const Silhouette *s)
{
	double total = 0;
	double weight = 0;
	int n_used = 0;

	for (int p = 0; p < s->n_shapes; p++)
		total += s->shapes[p].total;
	for (int c = 0; c < s->k; c++)
	{
		weight += s->weight[c];
		n_used += s->weight[c] > 0;
	}
	return n_used > 1 ? total / weight : NAN;
}

MrcStatus
mrc_silhouette(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k, void *scratch,
			   double *silhouette)
{
	Silhouette s = {.pool = pool, .points = points, .label = label, .k = k};
	MrcStatus status;

	lay_out_silhouette(&s, scratch, points, k, mrc_pool_size(pool));
	status = measure_clusters(&s);
	if (status == MRC_OK)
		status = run_shapes(&s, 2);
	if (status != MRC_OK)
		return status;
	*silhouette = mean_silhouette(&s);
	return isinf(*silhouette) ? MRC_NOTFINITE : MRC_OK;
}

/* The silhouette of a point from its distances to all points; apart: k, overwritten. */
static double
pair_silhouette(const Silhouette *s, int64_t row, double *apart)
{
	const double *x = row_of(s->points, row);
	int own = s->label[row];
	double other = INFINITY;

	if (!(s->weight[own] > 1))
		return 0;
	memset(apart, 0, (size_t) s->k * sizeof(double));
	for (int64_t i = 0; i < s->points->n; i++)
		apart[s->label[i]] +=
			weight_of(s->points, i) * sqrt(distance2(x, row_of(s->points, i), s->points->d));
	for (int c = 0; c < s->k; c++)
		if (c != own && s->weight[c] > 0 && apart[c] / s->weight[c] < other)
			other = apart[c] / s->weight[c];
	return silhouette_of(apart[own] / (s->weight[own] - 1), other);
}

static MrcStatus
pair_task(void *arg, int worker, int64_t lo, int64_t hi)
{
	Silhouette *s = arg;
	Shape *shape = &s->shapes[lo];

	(void) hi;
	for (; shape->next < shape->hi; shape->next++)
	{
		if (mrc_pool_pausing(s->pool))
			return MRC_AGAIN;
		shape->total += weight_of(s->points, shape->next) *
			pair_silhouette(s, shape->next, s->apart + (size_t) worker * s->k);
	}
	return MRC_OK;
}

MrcStatus
mrc_silhouette_pairs(MrcPool *pool, const MrcPoints *points, const int32_t *label, int k, void *scratch,
					 double *silhouette)
{
	Silhouette s = {.pool = pool, .points = points, .label = label, .k = k};
	MrcStatus status;

	lay_out_silhouette(&s, scratch, points, k, mrc_pool_size(pool));
	status = measure_clusters(&s);
	if (status != MRC_OK)
		return status;
	for (int p = 0; p < s.n_shapes; p++)
		s.shapes[p].next = s.shapes[p].lo;
	status = mrc_pool_run(pool, s.n_shapes, 1, pair_task, &s);
	if (status != MRC_OK)
		return status;
	*silhouette = mean_silhouette(&s);
	return isinf(*silhouette) ? MRC_NOTFINITE : MRC_OK;
}
