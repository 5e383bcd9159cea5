/* Rank 0: the rank that has clients. */
#ifndef JETD_DAEMON_COORDINATOR_H
#define JETD_DAEMON_COORDINATOR_H

#include "daemon/rank.h"

/* Serves until a signal or the Drain call ends it. STATUS_OK: drained. */
enum status coordinator_run(const struct settings *settings, struct rank *rank,
                            struct error *error);

#endif
