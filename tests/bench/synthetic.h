/*
 * synthetic.h: ratings with the shapes of real ones, and what the programs here share.  Everything is static; a program
 * includes it once.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "core.h"

typedef struct Shape
{
	const char *name;
	int64_t n_users;
	int64_t n_items;
	int64_t n_pairs;
	double shortest; /* ratings of a user: shortest + a log-normal part */
	double sigma;
	double zipf_shift; /* weight of item i: 1 / (i + shift)^exponent */
	double zipf_exponent;
} Shape;

static const Shape shapes[] = {
	{"movielens", 138493, 26744, 20000000, 20, 1.35, 50, 1},
	{"steep", 138493, 26744, 20000000, 20, 1.35, 224,
	 2}, /* half of the items below 25 ratings, as MovieLens' own */
	{"journey", 2469, 68260, 863378, 5, 0.8, 10000, 3.1}, /* half of the items below 3 ratings */
	{"small", 6000, 3000, 600000, 20, 1.35, 50, 1},
};

static uint64_t random_state = 88172645463325252u;

static double
uniform(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return (double) (random_state >> 11) * 0x1p-53;
}

static double
clock_of(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return (double) ts.tv_sec + 1e-9 * (double) ts.tv_nsec;
}

static void *
allocate(size_t n_bytes)
{
	void *memory = aligned_alloc(2 << 20, (n_bytes + (2 << 20)) >> 21 << 21);
	madvise(memory, (n_bytes + (2 << 20)) >> 21 << 21, MADV_HUGEPAGE);

	if (memory == NULL)
		exit(2);
	return memory;
}

static int
compare(const void *a, const void *b)
{
	return *(const int32_t *) a < *(const int32_t *) b ? -1 : 1;
}

/* Distinct items per user drawn by their weight; values are 0.5 … 5 by halves, as MovieLens'. */
static MrcCsr
synthesize(const Shape *shape)
{
	MrcCsr csr = {shape->n_users, shape->n_items, NULL, NULL, NULL};
	double *until = allocate((size_t) shape->n_items * sizeof(double));
	double *length = allocate((size_t) shape->n_users * sizeof(double));
	int64_t *taken_by = calloc((size_t) shape->n_items, sizeof(int64_t));
	int32_t *item_of = allocate((size_t) shape->n_items * sizeof(int32_t));
	double sum = 0;
	double total = 0;

	csr.start = allocate((size_t) (shape->n_users + 1) * sizeof(int64_t));
	for (int64_t i = 0; i < shape->n_items; i++)
	{
		until[i] = total += pow((double) i + shape->zipf_shift, -shape->zipf_exponent);
		item_of[i] = (int32_t) i;
	}
	for (int64_t i = shape->n_items - 1; i > 0; i--) /* the popular ones are anywhere */
	{
		int64_t j = (int64_t) (uniform() * (double) (i + 1));
		int32_t kept = item_of[i];

		item_of[i] = item_of[j];
		item_of[j] = kept;
	}
	for (int64_t u = 0; u < shape->n_users; u++)
		sum += length[u] = exp(shape->sigma * sqrt(-2 * log(1 - uniform())) * cos(6.283185307 * uniform()));
	csr.start[0] = 0;
	for (int64_t u = 0; u < shape->n_users; u++)
	{
		double extra = (double) shape->n_pairs - shape->shortest * (double) shape->n_users;
		int64_t n = (int64_t) (shape->shortest + length[u] / sum * extra + 0.5);

		csr.start[u + 1] = csr.start[u] + (n < shape->n_items / 4 ? n : shape->n_items / 4);
	}
	csr.index = allocate((size_t) csr.start[shape->n_users] * sizeof(int32_t));
	csr.value = allocate((size_t) csr.start[shape->n_users] * sizeof(float));
	for (int64_t u = 0; u < shape->n_users; u++)
	{
		for (int64_t e = csr.start[u]; e < csr.start[u + 1];)
		{
			double want = uniform() * total;
			int64_t lo = 0;
			int64_t hi = shape->n_items - 1;

			while (lo < hi)
			{
				int64_t middle = (lo + hi) / 2;

				if (until[middle] < want)
					lo = middle + 1;
				else
					hi = middle;
			}
			if (taken_by[lo] == u + 1)
				continue;
			taken_by[lo] = u + 1;
			csr.value[e] = (float) (int) (1 + uniform() * 10) / 2;
			csr.index[e++] = item_of[lo];
		}
		qsort(csr.index + csr.start[u], (size_t) (csr.start[u + 1] - csr.start[u]), sizeof(int32_t), compare);
	}
	free(until);
	free(length);
	free(taken_by);
	free(item_of);
	return csr;
}

static MrcCsr
transpose(const MrcCsr *csr)
{
	int64_t n = csr->start[csr->n_rows];
	MrcCsr t = {csr->n_cols, csr->n_rows, calloc((size_t) csr->n_cols + 2, sizeof(int64_t)),
				allocate((size_t) n * sizeof(int32_t)), allocate((size_t) n * sizeof(float))};

	for (int64_t e = 0; e < n; e++)
		t.start[csr->index[e] + 2]++;
	for (int64_t i = 0; i < t.n_rows; i++)
		t.start[i + 2] += t.start[i + 1];
	for (int64_t row = 0; row < csr->n_rows; row++)
		for (int64_t e = csr->start[row]; e < csr->start[row + 1]; e++)
		{
			int64_t at = t.start[csr->index[e] + 1]++;

			t.index[at] = (int32_t) row;
			t.value[at] = csr->value[e];
		}
	return t;
}
