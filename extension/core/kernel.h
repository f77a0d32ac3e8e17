/*
 * kernel.h: the inner loops, written once for every width of vector.  als.c includes it several times with
 *   KERNEL(name)  the name with the instruction set's suffix
 *   TARGET        the function attribute that allows the instructions
 *   LANES         floats of a vector: 4, 8 or 16
 *   COLS          vectors of a tile: 4 x COLS accumulators must fit the registers
 * No include guard, and nothing here may be called without the check in kernels() of als.c.
 *
 * Matrices of a row's system are padded to ld columns, a multiple of 16; only the upper triangle is kept.
 */

typedef float KERNEL(Vec) __attribute__((vector_size(LANES * 4)));
typedef float KERNEL(Loose) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
#define VEC KERNEL(Vec)
#define LOAD(p) ((VEC) * (const KERNEL(Loose) *) (p))
#define STORE(p, v) (*(KERNEL(Loose) *) (p) = (KERNEL(Loose))(v))

/* a[i … i + 3][j … j + cols * LANES - 1] += sign * sum over t < n of p[t][i …] p[t][j …] */
TARGET static inline __attribute__((always_inline)) void
KERNEL(tile)(float *a, const float *p, int ld, int n, int i, int j, float sign, const int cols)
{
	VEC acc[4][COLS];
	const float *left = p + i;
	const float *right = p + j;

#pragma GCC unroll 4
	for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
			acc[r][c] = (VEC){0};
	for (int t = 0; t < n; t++, left += ld, right += ld)
	{
		VEC y[COLS];

#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
			y[c] = LOAD(right + c * LANES);
#pragma GCC unroll 4
		for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
			for (int c = 0; c < cols; c++)
				acc[r][c] += left[r] * y[c];
	}
#pragma GCC unroll 4
	for (int r = 0; r < 4; r++)
#pragma GCC unroll 4
		for (int c = 0; c < cols; c++)
		{
			float *out = a + (size_t) (i + r) * ld + j + c * LANES;

			STORE(out, LOAD(out) + sign * acc[r][c]);
		}
}

/* Upper triangle of a (ld x ld), rows lo and on, += sign * p^T p, p being n x ld.  lo: a multiple of 16. */
TARGET static void
KERNEL(syrk)(float *a, const float *p, int ld, int n, int lo, float sign)
{
	for (int i = lo; i < ld; i += 4)
	{
		int j = i / LANES * LANES;

		for (; j + COLS * LANES <= ld; j += COLS * LANES)
			KERNEL(tile)(a, p, ld, n, i, j, sign, COLS);
		switch ((ld - j) / LANES)
		{
#if COLS > 3
			case 3:
				KERNEL(tile)(a, p, ld, n, i, j, sign, 3);
				break;
#endif
#if COLS > 2
			case 2:
				KERNEL(tile)(a, p, ld, n, i, j, sign, 2);
				break;
#endif
			case 1:
				KERNEL(tile)(a, p, ld, n, i, j, sign, 1);
				break;
			default:
				break;
		}
	}
}

/* to[0 … rank) = scale * from, zeros up to ld; sum += weight * from. */
TARGET static void
KERNEL(gather)(float *to, const float *from, int rank, int ld, float scale, float *sum, float weight)
{
	int j = 0;

	for (; j + LANES <= rank; j += LANES)
	{
		VEC y = LOAD(from + j);

		STORE(to + j, scale * y);
		STORE(sum + j, LOAD(sum + j) + weight * y);
	}
	for (; j < rank; j++)
	{
		to[j] = scale * from[j];
		sum[j] += weight * from[j];
	}
	for (; j < ld; j++)
		to[j] = 0;
}

TARGET static inline __attribute__((always_inline)) float
KERNEL(dot)(const float *a, const float *b, int n)
{
	VEC acc[2] = {{0}, {0}};
	float sum = 0;
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
	acc[0] += acc[1];
	for (int lane = 0; lane < LANES; lane++)
		sum += acc[0][lane];
	for (; j < n; j++)
		sum += a[j] * b[j];
	return sum;
}

/* out[i] = inner product of x with row i of y (n x rank). */
TARGET static void
KERNEL(dots)(const float *x, const float *y, int64_t n, int rank, float *out)
{
	for (int64_t i = 0; i < n; i++)
		out[i] = KERNEL(dot)(x, y + i * rank, rank);
}

/*
 * Solve a x = b for a symmetric, upper triangle given, destroyed; b becomes x.  Cholesky a = U^T U by blocks of 16
 * rows: within a block row by row, then the rest is updated by syrk.  A pivot that is not above least[i] (what
 * rounding leaves of a zero) ends it with false.
 */
TARGET static bool
KERNEL(solve)(float *a, float *b, int ld, int rank, const float *least)
{
	for (int block = 0; block < rank; block += 16)
	{
		int end = block + 16 < rank ? block + 16 : rank;

		for (int i = block; i < end; i++)
		{
			float *row = a + (size_t) i * ld;
			int from = i / LANES * LANES;

			for (int q = block; q < i; q++)
			{
				const float *done = a + (size_t) q * ld;

				for (int j = from; j < ld; j += LANES)
					STORE(row + j, LOAD(row + j) - done[i] * LOAD(done + j));
			}
			if (!(row[i] > least[i]) || row[i] > FLT_MAX)
				return false;

			float inverse = 1 / sqrtf(row[i]);

			for (int j = from; j < ld; j += LANES)
				STORE(row + j, LOAD(row + j) * inverse);
		}
		if (end < rank)
			KERNEL(syrk)(a, a + (size_t) block * ld, ld, end - block, block + 16, -1);
	}
	for (int i = 0; i < rank; i++)
	{
		const float *row = a + (size_t) i * ld;

		b[i] /= row[i];
		for (int j = i + 1; j < rank; j++)
			b[j] -= b[i] * row[j];
	}
	for (int i = rank - 1; i >= 0; i--)
	{
		const float *row = a + (size_t) i * ld;

		b[i] = (b[i] - KERNEL(dot)(row + i + 1, b + i + 1, rank - i - 1)) / row[i];
	}
	return true;
}

#undef VEC
#undef LOAD
#undef STORE
