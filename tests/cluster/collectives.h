/* What every fabric must do, checked by each rank on its own end. */
#ifndef JETD_TESTS_COLLECTIVES_H
#define JETD_TESTS_COLLECTIVES_H

#include "cluster/cluster.h"

/* Where device collectives find their numbers: `room` bytes of device memory. NULL: host memory. */
struct collectives_device {
    struct fabric_memory memory;
    void *data;
    size_t room;
};
extern const struct collectives_device *collectives_device;

/* All checks, in the same order on every rank. False: a line on stderr says which failed. */
bool collectives_check(struct fabric *fabric);
/* All-reduce, send and receive on memory that the host cannot read as it is. */
bool staging_check(struct fabric *fabric);
/* An all-reduce recorded once and replayed: each replay sums anew. On a device. */
bool recording_check(struct fabric *fabric);

#endif
