/* Private to kernels/ and its tests. */
#ifndef JETD_KERNELS_COMPOSE_H
#define JETD_KERNELS_COMPOSE_H

#include "kernels/kernels.h"

enum { COMPOSE_CHUNK = 64 };

/* Which form of the delta rule the composed mixer takes: 0 is the recurrence, else tokens a chunk.
 * The cpu always takes the recurrence: its bits do not depend on where a sequence is cut. Elsewhere
 * the recurrence serves batches in which every sequence has one token. */
int compose_delta_chunk(const struct backend *backend, const struct ragged *batch);

#endif
