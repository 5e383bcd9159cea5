/* Private to cluster/. The one place where numbers of several ranks meet. */
#ifndef JETD_CLUSTER_SUM_H
#define JETD_CLUSTER_SUM_H

#include <stddef.h>

#include "kernels/kernels.h"

/* out[e] = pieces[0][e] + pieces[1][e] + ..., in that order, in fp32, rounded once at the end.
 * `out` may be one of the pieces. dtype: f32 or bf16. */
void sum_in_order(enum dtype dtype, const void *const *pieces, int members, size_t count,
                  void *out);

#endif
