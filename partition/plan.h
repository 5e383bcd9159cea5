/* Private parts of the plan: pipeline cuts (plan_cost.c) and its digest (plan_digest.c). */
#ifndef JETD_PARTITION_PLAN_H
#define JETD_PARTITION_PLAN_H

#include "partition/partition.h"

/* Cuts layers into mesh.pipeline runs so that the dearest stage is as cheap as can be:
 * stage s is [cuts[s], cuts[s + 1]); costs[s] is its modelled cost over all tensor ranks. */
enum status plan_balance(const struct plan *plan, int *cuts, double *costs);
/* Over every field that ranks must agree on. */
uint64_t plan_digest(const struct plan *plan);

#endif
