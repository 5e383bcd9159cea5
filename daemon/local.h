/* All ranks in one process, a thread each, over the threads fabric: for tests and for trying a mesh
 * on a laptop. */
#ifndef JETD_DAEMON_LOCAL_H
#define JETD_DAEMON_LOCAL_H

#include "daemon/settings.h"

/* The whole life of the mesh that the settings name; rank 0 is the calling thread. */
enum status local_run(const struct settings *settings, struct error *error);

#endif
