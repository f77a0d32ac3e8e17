/*
 * kmeans_kernel.h: the inner loops of kmeans.c, written once for every width of vector.  kmeans.c includes it several
 * times with KERNEL(name), TARGET and LANES as in kernel.h, and
 *   GROUP         centres of a tile
 *   WIDE          vectors of points of a tile: GROUP x WIDE accumulators, WIDE vectors and two more fit the registers
 *   LEAST(a, b)   the lesser of two vectors of floats
 *   MOST(a, b)    the greater
 *   LESS(a, b)    a mask, where a < b
 *   CHOOSE(mask, a, b), CHOOSE_INT   a where the mask is set, else b
 * No include guard, and nothing here may be called without the check in kernels() of kmeans.c.
 *
 * A tile is TILE points turned round: d rows of TILE floats, aligned to 64.
 */

#include "vector.h"

typedef int32_t KERNEL(LooseInts) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define LOAD_INTS(p) ((INTS) * (const KERNEL(LooseInts) *) (p))
#define STORE_INTS(p, v) (*(KERNEL(LooseInts) *) (p) = (KERNEL(LooseInts))(v))

/*
 * Scores of centres c … c + group - 1 for WIDE vectors of points, taken into the two least of each point.
 * A score is bias[c] - x . center, or, if direct, |x - center|^2.
 */
INLINE void
KERNEL(near_group)(const float *x, int d, const float *center, const float *bias, int c, float *best,
				   float *second, int32_t *label, int32_t *label2, const int group, const bool direct,
				   uintptr_t ahead, int lines)
{
	VEC acc[GROUP][WIDE];

#pragma GCC unroll 8
	for (int r = 0; r < group; r++)
#pragma GCC unroll 4
		for (int v = 0; v < WIDE; v++)
			acc[r][v] = (direct ? 0 : bias[c + r]) + (VEC){0};
	for (int t = 0; t < d; t++)
	{
		VEC point[WIDE];

		if (!direct && t < lines)
			__builtin_prefetch((const void *) (ahead + (size_t) t * 64), 0, 3);
#pragma GCC unroll 4
		for (int v = 0; v < WIDE; v++)
			point[v] = LOAD(x + (size_t) t * TILE + v * LANES);
#pragma GCC unroll 8
		for (int r = 0; r < group; r++)
		{
			float at = center[(size_t) (c + r) * d + t];

#pragma GCC unroll 4
			for (int v = 0; v < WIDE; v++)
				if (direct)
				{
					VEC apart = point[v] - at;

					acc[r][v] += apart * apart;
				}
				else
					acc[r][v] -= at * point[v];
		}
	}
#pragma GCC unroll 4
	for (int v = 0; v < WIDE; v++)
	{
		VEC first = LOAD(best + v * LANES);
		VEC next = LOAD(second + v * LANES);
		INTS one = LOAD_INTS(label + v * LANES);
		INTS two = direct ? LOAD_INTS(label2 + v * LANES) : one;

#pragma GCC unroll 8
		for (int r = 0; r < group; r++)
		{
			INTS number = c + r + (INTS){0};

			if (direct)
			{
				two = CHOOSE_INT(LESS(acc[r][v], next), number, two);
				two = CHOOSE_INT(LESS(acc[r][v], first), one, two);
			}
			one = CHOOSE_INT(LESS(acc[r][v], first), number, one);
			next = LEAST(next, MOST(first, acc[r][v]));
			first = LEAST(first, acc[r][v]);
		}
		STORE(best + v * LANES, first);
		STORE(second + v * LANES, next);
		STORE_INTS(label + v * LANES, one);
		if (direct)
			STORE_INTS(label2 + v * LANES, two);
	}
}

/* Lines from ahead on are fetched into the cache meanwhile, by each group so many that none is left. */
INLINE void
KERNEL(near)(const float *x, int d, const float *center, const float *bias, int lo, int hi, float *best,
			 float *second, int32_t *label, int32_t *label2, const bool direct, uintptr_t ahead, int n_lines)
{
	int n_groups = TILE / (WIDE * LANES) * ((hi - lo + GROUP - 1) / GROUP);
	int lines = (n_lines + n_groups - 1) / n_groups;

	for (int i = 0; i < TILE; i += WIDE * LANES)
		for (int c = lo; c < hi; c += GROUP, ahead += (size_t) lines * 64)
			switch (hi - c)
			{
#define REST(n)                                                                                        \
	KERNEL(near_group)                                                                                 \
	(x + i, d, center, bias, c, best + i, second + i, label + i, label2 + i, n, direct, ahead, lines); \
	break
				case 1:
					REST(1);
				case 2:
					REST(2);
				case 3:
					REST(3);
#if GROUP > 4
				case 4:
					REST(4);
				case 5:
					REST(5);
#endif
				default:
					REST(GROUP);
#undef REST
			}
}

/*
 * The two least scores bias - x . center of each point of a tile, and the centre that has the least.  Meanwhile so many
 * lines from `ahead` on are fetched into the cache.
 */
TARGET static void
KERNEL(scores)(const float *x, int d, const float *center, const float *bias, int k, float *best,
			   float *second, int32_t *label, uintptr_t ahead, int n_lines)
{
	for (int i = 0; i < TILE; i++)
	{
		best[i] = second[i] = FLT_MAX;
		label[i] = 0;
	}
	KERNEL(near)(x, d, center, bias, 0, k, best, second, label, label, false, ahead, n_lines);
}

/* Takes centres [lo, hi) into the least two squared distances of each point of a tile, and whose they are. */
TARGET static void
KERNEL(closer)(const float *x, int d, const float *center, int lo, int hi, float *best, float *second,
			   int32_t *label, int32_t *label2)
{
	KERNEL(near)(x, d, center, NULL, lo, hi, best, second, label, label2, true, 0, 0);
}

/* Squared distances of a tile's points from a centre. */
INLINE void
KERNEL(apart)(const float *x, int d, const float *center, float *out)
{
	VEC acc[TILE / LANES];

#pragma GCC unroll 16
	for (int v = 0; v < TILE / LANES; v++)
		acc[v] = (VEC){0};
	for (int t = 0; t < d; t++)
#pragma GCC unroll 16
		for (int v = 0; v < TILE / LANES; v++)
		{
			VEC apart = LOAD(x + (size_t) t * TILE + v * LANES) - center[t];

			acc[v] += apart * apart;
		}
#pragma GCC unroll 16
	for (int v = 0; v < TILE / LANES; v++)
		STORE(out + v * LANES, acc[v]);
}

/* The sum over a tile's points of weight * min(best, squared distance from center). */
TARGET static double
KERNEL(with)(const float *x, int d, const float *center, const float *best, const float *weight)
{
	float out[TILE];
	VEC sums = {0};

	KERNEL(apart)(x, d, center, out);
	for (int i = 0; i < TILE; i += LANES)
		sums += LOAD(weight + i) * LEAST(LOAD(best + i), LOAD(out + i));
	return KERNEL(sum)(sums);
}

/*
 * The same, where loss[c] += what would be added to it without centre c, for its points.
 */
TARGET static double
KERNEL(instead)(const float *x, int d, const float *center, const float *best, const float *second,
				const float *weight, const int32_t *label, double *loss)
{
	float out[TILE];
	float more[TILE];
	VEC sums = {0};

	KERNEL(apart)(x, d, center, out);
	for (int i = 0; i < TILE; i += LANES)
	{
		VEC here = LOAD(out + i);
		VEC least = LEAST(LOAD(best + i), here);

		sums += LOAD(weight + i) * least;
		STORE(more + i, LOAD(weight + i) * (LEAST(LOAD(second + i), here) - least));
	}
	for (int i = 0; i < TILE; i++)
		loss[label[i]] += more[i];
	return KERNEL(sum)(sums);
}

/* out (d) = (x - shift) * scale in single precision. */
TARGET static void
KERNEL(narrow)(const double *x, const double *shift, double scale, int d, float *out)
{
	typedef double Doubles __attribute__((vector_size(LANES * 4), aligned(8), may_alias));
	typedef float Floats __attribute__((vector_size(LANES * 2), aligned(4), may_alias));
	int t = 0;

	for (; t + LANES / 2 <= d; t += LANES / 2)
	{
		Doubles v = (*(const Doubles *) (x + t) - *(const Doubles *) (shift + t)) * scale;

		*(Floats *) (out + t) = __builtin_convertvector(v, Floats);
	}
	for (; t < d; t++)
		out[t] = (float) ((x[t] - shift[t]) * scale);
}

/*
 * From the two least scores of a tile's points: upper and lower bounds of their distances to the centre that has the least
 * and to all others; that is 0 where the point is too far away for single precision.
 */
TARGET static void
KERNEL(bounds)(const float *x, int d, const float *best, const float *second, float *upper, float *lower)
{
	float slope = SLOPE(d);
	float norm[TILE] = {0};

	for (int t = 0; t < d; t++)
		for (int i = 0; i < TILE; i++)
			norm[i] += x[(size_t) t * TILE + i] * x[(size_t) t * TILE + i];
	for (int i = 0; i < TILE; i++)
	{
		float by_norm = 16 * slope * norm[i] + 1e-30f; /* and what is too small for single precision */
		float by_best = 4 * slope * fabsf(best[i]);
		float by_second = 4 * slope * fabsf(second[i]);
		float most = norm[i] + 2 * (best[i] + (by_norm > by_best ? by_norm : by_best));
		float least = norm[i] + 2 * (second[i] - (by_norm > by_second ? by_norm : by_second));

		upper[i] = sqrtf(most > 0 ? most : 0) * (1 + 0x1p-20f);
		lower[i] = norm[i] < FARTHEST * FARTHEST ? sqrtf(least > 0 ? least : 0) * (1 - 0x1p-20f) : 0;
	}
}

/* The squared distance of a and b (d). */
TARGET static float
KERNEL(away)(const float *a, const float *b, int d)
{
	VEC sums = {0};
	float sum = 0;
	int t = 0;

	for (; t + LANES <= d; t += LANES)
	{
		VEC apart = LOAD(a + t) - LOAD(b + t);

		sums += apart * apart;
	}
	for (; t < d; t++)
		sum += (a[t] - b[t]) * (a[t] - b[t]);
	return sum + KERNEL(sum)(sums);
}

/* sum (d) += weight * (x - base), and square (d) += weight * (x - base)^2, by coordinates. */
TARGET static void
KERNEL(gather)(double *sum, double *square, const double *x, const double *base, double weight, int d)
{
	typedef double Doubles __attribute__((vector_size(LANES * 4), aligned(8), may_alias));
	int t = 0;

	for (; t + LANES / 2 <= d; t += LANES / 2)
	{
		Doubles v = *(const Doubles *) (x + t) - *(const Doubles *) (base + t);

		*(Doubles *) (sum + t) += weight * v;
		*(Doubles *) (square + t) += weight * v * v;
	}
	for (; t < d; t++)
	{
		double v = x[t] - base[t];

		sum[t] += weight * v;
		square[t] += weight * v * v;
	}
}

/*
 * Squared distances, in double precision, of x (d) from k centres turned round (d x ld, ld a multiple of 32): the least
 * two, and the first centre that has the least.
 */
TARGET static int
KERNEL(exact)(const double *x, int d, const double *turned, int k, int ld, double *least, double *second)
{
	typedef double Doubles __attribute__((vector_size(LANES * 4), aligned(8), may_alias));
	enum
	{
		N = 32 / (LANES / 2)
	};
	double best = INFINITY;
	double next = INFINITY;
	int label = 0;

	for (int c = 0; c < ld; c += 32)
	{
		Doubles acc[N];
		double out[32];

#pragma GCC unroll 16
		for (int i = 0; i < N; i++)
			acc[i] = (Doubles){0};
		for (int t = 0; t < d; t++)
#pragma GCC unroll 16
			for (int i = 0; i < N; i++)
			{
				Doubles apart = x[t] - *(const Doubles *) (turned + (size_t) t * ld + c + i * (LANES / 2));

				acc[i] += apart * apart;
			}
#pragma GCC unroll 16
		for (int i = 0; i < N; i++)
			*(Doubles *) (out + i * (LANES / 2)) = acc[i];
		for (int i = 0; i < 32 && c + i < k; i++)
			if (out[i] < best)
			{
				next = best;
				best = out[i];
				label = c + i;
			}
			else if (out[i] < next)
				next = out[i];
	}
	*least = best;
	*second = next;
	return label;
}

#undef LOAD_INTS
#undef STORE_INTS
