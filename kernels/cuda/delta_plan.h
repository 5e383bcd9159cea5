/* Into how many segments the delta rule's chain over chunks is cut, so that a few long sequences
 * fill the device. A pure function: tests/kernels/test_delta_plan.c prints and checks it. */
#ifndef JETD_KERNELS_CUDA_DELTA_PLAN_H
#define JETD_KERNELS_CUDA_DELTA_PLAN_H

#include <stdint.h>

enum { DELTA_SEGMENTS_MAX = 16, DELTA_SEGMENT_CHUNKS = 8 /* the least that pays */ };

struct delta_load {
    int chains;          /* of one sequence: heads x slabs of d_v */
    int across;          /* heads x slabs of d_k: what a segment's A adds */
    int64_t chunks;      /* of all sequences */
    int longest;         /* chunks of the longest sequence */
    int multiprocessors; /* each holds two chains, of one block */
};

/* Nanoseconds that so many chains of `chunks` chunks take, in waves of two a multiprocessor, where
 * a chunk takes `alone` on a multiprocessor of its own and `shared` with a neighbour. */
static inline double delta_chain_time(double chains, int chunks, int multiprocessors, double alone,
                                      double shared)
{
    int waves = (int)(chains / (2.0 * multiprocessors));
    double rest = chains - waves * 2.0 * multiprocessors;
    double last = rest <= 0.0 ? 0.0 : rest <= multiprocessors ? alone : shared;
    return chunks * (waves * shared + last);
}

/* Chunks a segment for sequences as even as `load` lets them be: load->longest, or fewer when two
 * passes over shorter chains take less time than one over whole ones, whatever the decays. The
 * times are an H100's at d_k 128. */
static inline int delta_segment_chunks(const struct delta_load *load)
{
    enum { ALONE = 1520, SHARED = 2360, STATE_ALONE = 1000, STATE_SHARED = 1500, COMBINE = 8000 };
    const int sm = load->multiprocessors;
    /* Sequences that are as long as the longest. */
    const double sequences = load->longest > 0 ? (double)load->chunks / load->longest : 0.0;
    const double chains = sequences * load->chains;
    int best = load->longest;
    double least = 0.9 * delta_chain_time(chains, load->longest, sm, ALONE, SHARED);
    for (int n = 2; n <= DELTA_SEGMENTS_MAX; n++) {
        int chunks = (load->longest + n - 1) / n;
        if (chunks < DELTA_SEGMENT_CHUNKS)
            break;
        double states = (n - 1) * chains + (n - 2) * sequences * load->across;
        double time = delta_chain_time(states, chunks, sm, STATE_ALONE, STATE_SHARED) +
                      delta_chain_time(n * chains, chunks, sm, ALONE, SHARED) +
                      COMBINE * (n > 2 ? n - 1 : 1);
        if (time < least) {
            least = time;
            best = chunks;
        }
    }
    return best;
}

#endif
