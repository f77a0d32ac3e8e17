/*
 * kernel.h: the inner loops, written once for every width of vector.  als.c includes it several times with
 *   KERNEL(name)  the name with the instruction set's suffix
 *   TARGET        the function attribute that allows the instructions
 *   LANES         floats of a vector: 4, 8 or 16 (these three are vector.h's, too)
 *   COLS          vectors of the widest tile
 *   ROWS(cols)    rows of a tile of so many vectors, a divisor of LANES: rows x cols accumulators, cols vectors and
 *                 one more must fit the registers, and eight accumulators hide the latency of a multiply-add
 * No include guard, and nothing here may be called without the check in kernels() of als.c.
 *
 * Matrices of a row's system are padded to ld columns, a multiple of 16; only the upper triangle counts, and what is
 * below it in the blocks of 16 x 16 on the diagonal is anything finite.
 */

#include "vector.h"

/*
 * a[i … i + rows - 1][j … j + cols * LANES - 1] = from (NULL: 0) + sign * sum over t < n of p[t][i …] p[t][j …].
 * Meanwhile one line of each of the factors that come n ratings later is fetched, if ahead.
 */
INLINE void
KERNEL(tile)(float *a, const float *from, const float *p, int ld, int n, int i, int j, float sign,
			 const int rows, const int cols, const Ahead *ahead)
{
	VEC acc[16][COLS];
	const float *left = p + i;
	const float *right = p + j;

#pragma GCC unroll 16
	for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
			acc[r][c] = (VEC){0};
	for (int t = 0; t < n; t++, left += ld, right += ld)
	{
		VEC y[COLS];

		if (ahead && (t & ahead->mask) == ahead->phase)
			__builtin_prefetch((const void *) (ahead->line + (size_t) ahead->index[t] * ahead->stride), 0, 2);
#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
			y[c] = LOAD(right + c * LANES);
#pragma GCC unroll 16
		for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
			for (int c = 0; c < cols; c++)
				acc[r][c] += left[r] * y[c];
	}
	a += (size_t) i * ld + j;
	if (from)
		from += (size_t) i * ld + j;
#pragma GCC unroll 16
	for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
		{
			size_t at = (size_t) r * ld + c * LANES;

			STORE(a + at, from ? LOAD(from + at) + sign * acc[r][c] : sign * acc[r][c]);
		}
}

/* Rows i … i + LANES - 1, from the diagonal on, of a = from + sign * p^T p, p being n x ld.  i: a multiple of LANES. */
INLINE void
KERNEL(stripe)(float *a, const float *from, const float *p, int ld, int n, int i, float sign, Ahead *ahead)
{
	for (int j = i, cols; j < ld; j += cols * LANES)
	{
		int left = (ld - j) / LANES;

		cols = left <= COLS ? left : left < 2 * COLS ? (left + 1) / 2 : COLS;
#define TILES(c)                                                            \
	for (int r = 0; r < LANES; r += ROWS(c))                                \
	{                                                                       \
		KERNEL(tile)(a, from, p, ld, n, i + r, j, sign, ROWS(c), c, ahead); \
		if (ahead)                                                          \
			ahead_next(ahead);                                              \
	}                                                                       \
	break
		switch (cols)
		{
#if COLS > 3
			case 4:
				TILES(4);
#endif
#if COLS > 2
			case 3:
				TILES(3);
#endif
			case 2:
				TILES(2);
			default:
				TILES(1);
		}
#undef TILES
	}
}

/* Upper triangle of a (ld x ld) = from (a, NULL: 0) + p^T p, p being n x ld; ahead: n factors to fetch, or NULL. */
TARGET static void
KERNEL(syrk)(float *a, const float *from, const float *p, int ld, int n, const Ahead *ahead)
{
	if (ahead)
	{
		Ahead at = *ahead;

		for (int i = 0; i < ld; i += LANES)
			KERNEL(stripe)(a, from, p, ld, n, i, 1, &at);
	}
	else
		for (int i = 0; i < ld; i += LANES)
			KERNEL(stripe)(a, from, p, ld, n, i, 1, NULL);
}

/*
 * Weights of n ratings: root^2 is that of y y^T in A, root * linear that of y in b.  The least weight of a rating that
 * counts is not 0, for linear's sake, but nothing beside any other part of A.
 */
TARGET static void
KERNEL(weigh)(const float *value, int n, bool implicit, float alpha, float unobserved, float *root,
			  float *linear)
{
	if (!implicit)
		for (int t = 0; t < n; t++)
		{
			root[t] = 1;
			linear[t] = value[t];
		}
	else
		for (int t = 0; t < n; t++)
		{
			float square = alpha * value[t];
			float some = sqrtf(square > 1e-30f ? square : 1e-30f);
			float weight = (unobserved + square) / some;

			root[t] = value[t] > 0 ? some : 0;
			linear[t] = value[t] > 0 ? weight : 0;
		}
}

/* How many of n values are above zero, and their sum. */
TARGET static int64_t
KERNEL(positive)(const float *value, int64_t n, double *sum)
{
	typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
	typedef double Doubles __attribute__((vector_size(LANES * 8)));
	union
	{
		VEC floats;
		Ints bits;
	} v;
	Ints n_lanes = {0};
	Doubles sums = {0};
	int64_t n_positive = 0;
	int64_t t = 0;

	for (; t + LANES <= n; t += LANES)
	{
		Ints above;

		v.floats = LOAD(value + t);
		above = v.floats > 0;
		n_lanes -= above;
		v.bits &= above;
		sums += __builtin_convertvector(v.floats, Doubles);
	}
	*sum = 0;
	for (int i = 0; i < LANES && t > 0; i++)
	{
		n_positive += n_lanes[i];
		*sum += sums[i];
	}
	for (; t < n; t++)
	{
		n_positive += value[t] > 0;
		*sum += value[t] > 0 ? value[t] : 0;
	}
	return n_positive;
}

/* b (doubles) += the lanes of n vectors. */
INLINE void
KERNEL(add)(double *b, const VEC *v, const int n)
{
	float part[4 * LANES];

#pragma GCC unroll 4
	for (int c = 0; c < n; c++)
		STORE(part + c * LANES, v[c]);
	for (int i = 0; i < n * LANES; i++)
		b[i] += part[i];
}

/*
 * panel[t][0 … rank) = root[t] * row index[t] of basis, zeros up to ld; t < n.  With scale, column i of the panel is
 * multiplied by scale[i].  b (ld doubles) += panel^T linear.
 */
INLINE void
KERNEL(gather_columns)(float *panel, const float *basis, size_t stride, const int32_t *index,
					   const float *root, const float *linear, double *b, const float *scale, int n, int ld,
					   const int cols)
{
	VEC acc[4];
	VEC factor[4];

#pragma GCC unroll 4
	for (int c = 0; c < cols; c++)
	{
		acc[c] = (VEC){0};
		if (scale)
			factor[c] = LOAD(scale + c * LANES);
	}
	for (int t = 0; t < n; t++)
	{
		const float *from = basis + (size_t) index[t] * stride;

#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
		{
			VEC y = root[t] * LOAD(from + c * LANES);

			if (scale)
				y *= factor[c];
			acc[c] += linear[t] * y;
			STORE(panel + (size_t) t * ld + c * LANES, y);
		}
	}
	KERNEL(add)(b, acc, cols);
}

/* The last columns, fewer than a vector, from j on; and zeros behind them. */
INLINE void
KERNEL(gather_rest)(float *panel, const float *basis, size_t stride, const int32_t *index, const float *root,
					const float *linear, double *b, const float *scale, int n, int rank, int ld, int j)
{
	for (int t = 0; t < n; t++)
		for (int i = j; i < ld; i += LANES)
			STORE(panel + (size_t) t * ld + i, (VEC){0});
#define GATHER_PART(width)                                                                 \
	if (j + (width) <= rank)                                                               \
	{                                                                                      \
		typedef float Part __attribute__((vector_size(4 * (width))));                      \
		typedef float At __attribute__((vector_size(4 * (width)), aligned(4), may_alias)); \
		Part acc = {0};                                                                    \
		Part factor = acc + 1;                                                             \
                                                                                           \
		if (scale)                                                                         \
			factor = (Part) * (const At *) (scale + j);                                    \
		for (int t = 0; t < n; t++)                                                        \
		{                                                                                  \
			const float *from = basis + (size_t) index[t] * stride + j;                    \
			Part y = root[t] * (Part) * (const At *) from * factor;                        \
                                                                                           \
			acc += linear[t] * y;                                                          \
			*(At *) (panel + (size_t) t * ld + j) = (At) y;                                \
		}                                                                                  \
		for (int i = 0; i < (width); i++)                                                  \
			b[j + i] += acc[i];                                                            \
		j += (width);                                                                      \
	}
#if LANES > 8
	GATHER_PART(8)
#endif
#if LANES > 4
	GATHER_PART(4)
#endif
#undef GATHER_PART
	for (; j < rank; j++)
	{
		float factor = scale ? scale[j] : 1;
		double sum = 0;

		for (int t = 0; t < n; t++)
		{
			float y = root[t] * basis[(size_t) index[t] * stride + j] * factor;

			sum += (double) linear[t] * y;
			panel[(size_t) t * ld + j] = y;
		}
		b[j] += sum;
	}
}

TARGET static void
KERNEL(gather)(float *panel, const float *basis, size_t stride, const int32_t *index, const float *root,
			   const float *linear, double *b, const float *scale, int n, int rank, int ld)
{
	int j = 0;

	for (int cols; j + LANES <= rank; j += cols * LANES)
	{
		cols = j + 4 * LANES <= rank ? 4 : 1;
		if (cols == 4 && scale)
			KERNEL(gather_columns)
		(panel + j, basis + j, stride, index, root, linear, b + j, scale + j, n, ld, 4);
		else if (cols == 4)
			KERNEL(gather_columns)(panel + j, basis + j, stride, index, root, linear, b + j, NULL, n, ld, 4);
		else if (scale) KERNEL(gather_columns)(panel + j, basis + j, stride, index, root, linear, b + j,
											   scale + j, n, ld, 1);
		else KERNEL(gather_columns)(panel + j, basis + j, stride, index, root, linear, b + j, NULL, n, ld, 1);
	}
	if (j < ld)
		KERNEL(gather_rest)(panel, basis, stride, index, root, linear, b, scale, n, rank, ld, j);
}

/* out (n x ld, its rows stride apart) = y (n x rank) * q (rank x ld). */
TARGET static void
KERNEL(rotate)(float *out, int64_t stride, const float *y, const float *q, int64_t n, int rank, int ld)
{
	for (int64_t i = 0; i < n; i += 4)
	{
		const float *row[4];
		int rows = n - i < 4 ? (int) (n - i) : 4;

		for (int r = 0; r < 4; r++)
			row[r] = y + (i + (r < rows ? r : 0)) * rank;
		for (int j = 0; j < ld; j += 2 * LANES)
		{
			VEC acc[4][2] = {{{0}}};
			int second = j + LANES < ld ? LANES : 0;

			for (int t = 0; t < rank; t++)
#pragma GCC unroll 4
				for (int r = 0; r < 4; r++)
				{
					acc[r][0] += row[r][t] * LOAD(q + (size_t) t * ld + j);
					acc[r][1] += row[r][t] * LOAD(q + (size_t) t * ld + j + second);
				}
			for (int r = 0; r < rows; r++)
			{
				STORE(out + (i + r) * stride + j, acc[r][0]);
				if (second)
					STORE(out + (i + r) * stride + j + second, acc[r][1]);
			}
		}
	}
}

/* scale[i] = 1 / sqrt(diagonal[i] + penalty), 0 from rank to ld. */
TARGET static void
KERNEL(scale)(float *scale, const float *diagonal, float penalty, int rank, int ld)
{
	for (int i = 0; i < rank; i++)
		scale[i] = 1 / sqrtf(diagonal[i] + penalty);
	for (int i = rank; i < ld; i++)
		scale[i] = 0;
}

/* x (ld) = p^T c, p being n x ld. */
INLINE void
KERNEL(linear_columns)(float *x, const float *p, const float *c, int ld, int n, const int cols)
{
	VEC acc[2][4] = {{{0}}};
	int t = 0;

	for (; t + 2 <= n; t += 2, p += 2 * (size_t) ld)
#pragma GCC unroll 4
		for (int q = 0; q < cols; q++)
		{
			acc[0][q] += c[t] * LOAD(p + q * LANES);
			acc[1][q] += c[t + 1] * LOAD(p + ld + q * LANES);
		}
#pragma GCC unroll 4
	for (int q = 0; q < cols; q++)
	{
		if (t < n)
			acc[0][q] += c[t] * LOAD(p + q * LANES);
		STORE(x + q * LANES, acc[0][q] + acc[1][q]);
	}
}

TARGET static void
KERNEL(linear)(float *x, const float *p, const float *c, int ld, int n)
{
	int j = 0;

	for (; j + 4 * LANES <= ld; j += 4 * LANES)
		KERNEL(linear_columns)(x + j, p + j, c, ld, n, 4);
	for (; j < ld; j += LANES)
		KERNEL(linear_columns)(x + j, p + j, c, ld, n, 1);
}

/* x = scale y by elements; the inner product of b and y. */
TARGET static double
KERNEL(finish)(float *x, const float *scale, const float *y, const double *b, int ld)
{
	typedef double Doubles __attribute__((vector_size(LANES * 8)));
	typedef double LooseDoubles __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
	Doubles sums = {0};
	double sum = 0;

	for (int i = 0; i < ld; i += LANES)
	{
		VEC v = LOAD(y + i);

		STORE(x + i, LOAD(scale + i) * v);
		sums += (Doubles) * (const LooseDoubles *) (b + i) * __builtin_convertvector(v, Doubles);
	}
	for (int i = 0; i < LANES; i++)
		sum += sums[i];
	return sum;
}

INLINE float
KERNEL(dot)(const float *a, const float *b, int n)
{
	VEC acc[2] = {{0}, {0}};
	float sum;
	int j = 0;

	for (; j + 2 * LANES <= n; j += 2 * LANES)
	{
		acc[0] += LOAD(a + j) * LOAD(b + j);
		acc[1] += LOAD(a + j + LANES) * LOAD(b + j + LANES);
	}
	if (j + LANES <= n)
	{
		acc[0] += LOAD(a + j) * LOAD(b + j);
		j += LANES;
	}
	sum = KERNEL(sum)(acc[0] + acc[1]);
	for (; j < n; j++)
		sum += a[j] * b[j];
	return sum;
}

/* The sums of LANES vectors, in order; they are used up. */
INLINE VEC
KERNEL(sums)(VEC *v)
{
#pragma GCC unroll 4
	for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
		for (int i = 0; i < half; i++)
			v[i] = ZIP_LOW(v[i], v[i + half]) + ZIP_HIGH(v[i], v[i + half]);
	return v[0];
}

/* The inner products of rows i <= j of p (n x ld, n <= TINY_ROWS), a[i][j]; as many at once as a vector has lanes. */
INLINE void
KERNEL(products)(float a[TINY_ROWS][TINY_ROWS], const float *p, int ld, int n)
{
	float sum[TINY_ROWS * (TINY_ROWS + 1) / 2 + LANES];
	VEC v[LANES] = {{0}};
	const float *next = sum;
	int n_sums = 0;
	int at = 0;

	for (int i = 0; i < n; i++)
		for (int j = i; j < n; j++)
		{
			VEC acc = {0};

			for (int c = 0; c < ld; c += LANES)
				acc += LOAD(p + (size_t) i * ld + c) * LOAD(p + (size_t) j * ld + c);
			v[at++] = acc;
			if (at == LANES || (i == n - 1 && j == n - 1))
			{
				STORE(sum + n_sums, KERNEL(sums)(v));
				n_sums += LANES;
				at = 0;
			}
		}
	for (int i = 0; i < n; i++)
		for (int j = i; j < n; j++)
			a[i][j] = *next++;
}

/* Solve (I + P P^T) v = g for n <= TINY_ROWS rows P (n x ld).  False where a pivot is not above least, by its diagonal. */
TARGET static bool
KERNEL(tiny)(const float *p, int ld, int n, const float *g, float least, float *v)
{
	float a[TINY_ROWS][TINY_ROWS];
	float u[TINY_ROWS][TINY_ROWS]; /* unit upper: a + I = U^T D U */
	float inverse[TINY_ROWS];

	if (n > 2)
		KERNEL(products)(a, p, ld, n);
	else
		for (int j = 0; j < n; j++)
			for (int i = 0; i <= j; i++)
				a[i][j] = KERNEL(dot)(p + (size_t) i * ld, p + (size_t) j * ld, ld);
	for (int i = 0; i < n; i++)
	{
		v[i] = g[i];
		for (int j = i; j < n; j++)
			u[i][j] = a[i][j];
		u[i][i] += 1;
	}
	for (int i = 0; i < n; i++)
	{
		if (!(u[i][i] > least * (1 + a[i][i])) || !(u[i][i] <= FLT_MAX))
			return false;
		inverse[i] = 1 / u[i][i];
		for (int q = i + 1; q < n; q++)
		{
			float factor = u[i][q] * inverse[i];

			for (int j = q; j < n; j++)
				u[q][j] -= factor * u[i][j];
			v[q] -= factor * v[i];
		}
	}
	for (int i = n - 1; i >= 0; i--)
	{
		for (int j = i + 1; j < n; j++)
			v[i] -= u[i][j] * v[j];
		v[i] *= inverse[i];
	}
	return true;
}

/* out[i] = inner product of x with row i of y (n x rank). */
TARGET static void
KERNEL(dots)(const float *x, const float *y, int64_t n, int rank, float *out)
{
	for (int64_t i = 0; i < n; i++)
		out[i] = KERNEL(dot)(x, y + i * rank, rank);
}

/*
 * Factorise the block of 16 x 16 at a, U^T U, leave U^-T in w (16 x 16, lower), and put z = U^-T z.  Gaussian
 * elimination first, whose longest chain has a division and no root: the rows become D^1/2 U.  False where a pivot is
 * not above least[i].
 */
INLINE bool
KERNEL(block)(const float *a, int ld, const float *least, float *w, float *z)
{
	enum
	{
		PARTS = 16 / LANES
	};
	float row[16][16]; /* unit upper: row i of U / U[i][i] */
	float pivot[16];
	float root[16];
	VEC v[16][PARTS];
	VEC b[PARTS];
	bool good = true;

#pragma GCC unroll 4
	for (int c = 0; c < PARTS; c++)
		b[c] = LOAD(z + c * LANES);

#pragma GCC unroll 16
	for (int i = 0; i < 16; i++)
#pragma GCC unroll 4
		for (int c = 0; c < PARTS; c++)
			v[i][c] = LOAD(a + (size_t) i * ld + c * LANES);
	pivot[0] = v[0][0][0];
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++)
	{
		float inverse;

		inverse = 1 / pivot[i];
		if (i < 15) /* the next pivot need not wait for its row */
		{
			float right = v[i][(i + 1) / LANES][(i + 1) % LANES];

			pivot[i + 1] = v[i + 1][(i + 1) / LANES][(i + 1) % LANES] - right * inverse * right;
		}
		z[i] = b[i / LANES][i % LANES];
#pragma GCC unroll 4
		for (int c = 0; c < PARTS; c++)
			b[c] -= (z[i] * inverse) * v[i][c];
#pragma GCC unroll 4
		for (int c = 0; c < PARTS; c++)
			STORE(row[i] + c * LANES, v[i][c] * inverse);
		__asm__("" : "+m"(row[i])); /* keep it there: a factor costs nothing as an operand in memory */
#pragma GCC unroll 16
		for (int q = i + 1; q < 16; q++)
		{
			float factor = row[i][q];

#pragma GCC unroll 4
			for (int c = 0; c < PARTS; c++)
				v[q][c] -= factor * v[i][c];
		}
	}
	for (int i = 0; i < 16; i++)
	{
		good &= pivot[i] > least[i] && pivot[i] <= FLT_MAX;
		root[i] = 1 / sqrtf(pivot[i]);
		z[i] *= root[i];
	}
	if (!good)
		return false;

		/* Forward substitution of the identity: row i of w = (e_i - sum over q < i of row[q][i] w_q). */
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++)
	{
#pragma GCC unroll 4
		for (int c = 0; c < PARTS; c++)
		{
			v[i][c] = (VEC){0};
			if (i / LANES == c)
				v[i][c][i % LANES] = 1;
#pragma GCC unroll 16
			for (int q = 0; q < i; q++)
				v[i][c] -= row[q][i] * v[q][c];
		}
	}
#pragma GCC unroll 16
	for (int i = 0; i < 16; i++)
	{
#pragma GCC unroll 4
		for (int c = 0; c < PARTS; c++)
			STORE(w + i * 16 + c * LANES, root[i] * v[i][c]);
	}
	return true;
}

/*
 * Solve a x = b for a symmetric, upper triangle given, destroyed; b becomes x; both padded to ld by the identity and
 * zeros.  Cholesky a = U^T U by blocks of 16 rows: the blocks above are taken away (stripe), the block on the diagonal
 * is factorised, and its inverse, kept in w (ld / 16 blocks), makes products of the substitutions:
 *   right of the diagonal   U12 = w a12
 *   U^T z = b               z1 = w (b1 - sum of the blocks above, U01^T z0)
 *   U x = z                 x1 = w^T (z1 - U12 x2)
 * A pivot that is not above least[i] (what rounding leaves of a zero) ends it with false.
 */
TARGET static bool
KERNEL(solve)(float *a, float *b, int ld, const float *least, float *w)
{
	for (int at = 0; at < ld; at += 16)
	{
		float *stripe = a + (size_t) at * ld;
		float *inverse = w + (size_t) at * 16;

		for (int i = at; i < at + 16 && at > 0; i += LANES)
			KERNEL(stripe)(a, a, a, ld, at, i, -1, NULL);
		for (int j = at; j < at + 16; j += LANES)
		{
			VEC sum[2] = {LOAD(b + j), {0}};

			for (int t = 0; t < at; t += 2)
			{
				sum[0] -= b[t] * LOAD(a + (size_t) t * ld + j);
				sum[1] -= b[t + 1] * LOAD(a + (size_t) (t + 1) * ld + j);
			}
			STORE(b + j, sum[0] + sum[1]);
		}
		if (!KERNEL(block)(stripe + at, ld, least + at, inverse, b + at))
			return false;
		for (int j = at + 16; j < ld; j += LANES)
		{
			VEC v[16];

#pragma GCC unroll 16
			for (int t = 0; t < 16; t++)
				v[t] = LOAD(stripe + (size_t) t * ld + j);
#pragma GCC unroll 16
			for (int i = 15; i >= 0; i--)
			{
				VEC sum = inverse[i * 16] * v[0];

#pragma GCC unroll 16
				for (int t = 1; t <= i; t++)
					sum += inverse[i * 16 + t] * v[t];
				STORE(stripe + (size_t) i * ld + j, sum);
			}
		}
	}
	for (int at = ld - 16; at >= 0; at -= 16)
	{
		float z[16];

		for (int i = 0; i < 16; i++)
			z[i] = b[at + i] - KERNEL(dot)(a + (size_t) (at + i) * ld + at + 16, b + at + 16, ld - at - 16);
		for (int j = 0; j < 16; j += LANES)
		{
			VEC sum[2] = {{0}, {0}};

#pragma GCC unroll 8
			for (int t = 0; t < 16; t += 2)
			{
				sum[0] += z[t] * LOAD(w + (size_t) (at + t) * 16 + j);
				sum[1] += z[t + 1] * LOAD(w + (size_t) (at + t + 1) * 16 + j);
			}
			STORE(b + at + j, sum[0] + sum[1]);
		}
	}
	return true;
}
