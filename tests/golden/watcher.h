/* The cpu table as a device that is shown its products before the first step (gemm_prepare), fuses
 * those of few rows, and counts the others that a step asks for without their having been shown.
 * For ranks on any threads. */
#ifndef JETD_TESTS_GOLDEN_WATCHER_H
#define JETD_TESTS_GOLDEN_WATCHER_H

#include "kernels/kernels.h"

/* Since watcher_open(). */
struct watcher {
    int plain;   /* products shown, with one row already */
    int partly;  /* and those whose few rows are always fused */
    int coarse;  /* gate_up and jet_mixer shown */
    int unshown; /* asked for all the same */
    int fused;   /* asked for with a norm or addition */
};

extern struct watcher watcher;

/* Products of up to `rows` rows take a norm and an addition. One user at a time. */
const struct backend *watcher_open(int rows);

#endif
