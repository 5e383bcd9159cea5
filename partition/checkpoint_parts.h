/* What is behind `struct checkpoint`; shared by checkpoint.c, checkpoint_read.c and dummy.c. */
#ifndef JETD_PARTITION_CHECKPOINT_PARTS_H
#define JETD_PARTITION_CHECKPOINT_PARTS_H

#include "partition/safetensors.h"
#include "partition/weights.h"

enum { SHARDS_MAX = 512 };

/* Where a dummy's tensor starts in its random numbers, and how it is spread. */
struct dummy_tensor {
    uint64_t key;
    enum weight_kind kind;
};

struct checkpoint {
    struct safetensors *file; /* [files]; none: a dummy */
    int files;
    struct tensor_entry *entry; /* [count], by name, only what the model uses */
    size_t count;
    struct dummy_tensor *dummy; /* [count], beside `entry`; NULL: files */
    struct arena *arena;        /* names of a dummy */
    uint64_t digest;
};

/* Sorts the entries by name and computes the digest. */
void checkpoint_finish(struct checkpoint *checkpoint, uint64_t seed);
/* `count` elements from `first` of a dummy's tensor, rounded to bf16. */
void dummy_elements(const struct dummy_tensor *tensor, uint64_t first, size_t count, float *out);

#endif
