/*
 * scratch.h: how a caller's scratch is divided: the same calls measure it, base being NULL, and give out its pieces.
 */
#ifndef MRC_SCRATCH_H
#define MRC_SCRATCH_H

#include <stddef.h>

typedef struct Layout
{
	char *base; /* aligned to 64; NULL to measure */
	size_t n_bytes;
} Layout;

/* Aligned to 64. */
static inline void *
take(Layout *layout, size_t n_bytes)
{
	void *taken = layout->base ? layout->base + layout->n_bytes : NULL;

	layout->n_bytes += (n_bytes + 63) / 64 * 64;
	return taken;
}

static inline float *
take_floats(Layout *layout, size_t n)
{
	return take(layout, n * sizeof(float));
}

static inline double *
take_doubles(Layout *layout, size_t n)
{
	return take(layout, n * sizeof(double));
}

#endif
