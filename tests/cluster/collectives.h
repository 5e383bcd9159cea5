/* What every fabric must do, checked by each rank on its own end. */
#ifndef JETD_TESTS_COLLECTIVES_H
#define JETD_TESTS_COLLECTIVES_H

#include "cluster/cluster.h"

/* All checks, in the same order on every rank. False: a line on stderr says which failed. */
bool collectives_check(struct fabric *fabric);
/* All-reduce, send and receive on memory that the host cannot read as it is. */
bool staging_check(struct fabric *fabric);

#endif
