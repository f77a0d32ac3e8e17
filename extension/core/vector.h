/*
 * vector.h: vectors of floats, of every width: what the loops of kernel.h and kmeans_kernel.h are written with.  Each of
 * these includes it with KERNEL(name), TARGET and LANES as kernel.h says.
 */

#undef LOWER
#undef UPPER
typedef float KERNEL(Vec) __attribute__((vector_size(LANES * 4)));
typedef float KERNEL(Loose) __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t KERNEL(Ints) __attribute__((vector_size(LANES * 4)));
#define VEC KERNEL(Vec)
#define INTS KERNEL(Ints)
#define LOAD(p) ((VEC) * (const KERNEL(Loose) *) (p))
#define STORE(p, v) (*(KERNEL(Loose) *) (p) = (KERNEL(Loose))(v))
#define INLINE TARGET static inline __attribute__((always_inline))
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#else
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#endif
#if defined(__clang__)
#define ZIP_LOW(a, b) __builtin_shufflevector(a, b, LOWER)
#define ZIP_HIGH(a, b) __builtin_shufflevector(a, b, UPPER)
#else
#define ZIP_LOW(a, b) __builtin_shuffle(a, b, (INTS){LOWER})
#define ZIP_HIGH(a, b) __builtin_shuffle(a, b, (INTS){UPPER})
#endif

/* Sum of the lanes, by halves. */
INLINE float
KERNEL(sum)(VEC v)
{
	typedef float Four __attribute__((vector_size(16)));
#if LANES >= 8
	typedef float Eight __attribute__((vector_size(32)));
#endif
#if LANES == 16
	union
	{
		VEC whole;
		Eight half[2];
	} sixteen = {v};
	union
	{
		Eight whole;
		Four half[2];
	} eight = {sixteen.half[0] + sixteen.half[1]};
#elif LANES == 8
	union
	{
		Eight whole;
		Four half[2];
	} eight = {v};
#endif
#if LANES >= 8
	Four four = eight.half[0] + eight.half[1];
#else
	Four four = v;
#endif

	return (four[0] + four[2]) + (four[1] + four[3]);
}

/* to (cols x rows) = from (rows x cols) transposed; both multiples of 16.  Blocks, by rounds of a perfect shuffle. */
TARGET static void
KERNEL(turn)(float *to, const float *from, int rows, int cols)
{
	for (int i = 0; i < rows; i += LANES)
		for (int j = 0; j < cols; j += LANES)
		{
			VEC v[2][LANES];
			int side = 0;

#pragma GCC unroll 16
			for (int r = 0; r < LANES; r++)
				v[0][r] = LOAD(from + (size_t) (i + r) * cols + j);
#pragma GCC unroll 4
			for (int round = 1; round < LANES; round *= 2, side = 1 - side)
#pragma GCC unroll 8
				for (int r = 0; r < LANES / 2; r++)
				{
					v[1 - side][2 * r] = ZIP_LOW(v[side][r], v[side][r + LANES / 2]);
					v[1 - side][2 * r + 1] = ZIP_HIGH(v[side][r], v[side][r + LANES / 2]);
				}
#pragma GCC unroll 16
			for (int r = 0; r < LANES; r++)
				STORE(to + (size_t) (j + r) * rows + i, v[side][r]);
		}
}
