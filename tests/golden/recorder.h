/* The cpu table with entries that record: what a step enqueues on the device is kept as calls, and
 * replayed from there. So what is done with recordings can be tested without an accelerator. */
#ifndef JETD_TESTS_GOLDEN_RECORDER_H
#define JETD_TESTS_GOLDEN_RECORDER_H

#include "kernels/kernels.h"

/* Since recorder_open(). */
struct recorder {
    int recorded, replayed, freed;
};

extern struct recorder recorder;

/* `prepares`: with a gemm_prepare, which has nothing to choose. One user at a time. */
const struct backend *recorder_open(bool prepares);

#endif
