/* A fixed group of threads that shares the units of one operation. */
#ifndef JETD_KERNELS_CPU_TEAM_H
#define JETD_KERNELS_CPU_TEAM_H

#include "daemon/base/status.h"

struct team;

typedef void team_work(const void *op, int begin, int end);

/* `threads` >= 2, the caller's own among them. */
enum status team_create(int threads, struct team **team, struct error *error);
void team_destroy(struct team *team); /* NULL is fine */

/* Splits [0, units) into runs of a multiple of `grain` and returns when all are done. NULL team:
 * the caller does all. Only the thread that owns the device may call. */
void team_run(struct team *team, team_work *work, const void *op, int units, int grain);

#endif
