/* model.safetensors.index.json: which file holds which tensor. */
#ifndef JETD_PARTITION_SHARDS_H
#define JETD_PARTITION_SHARDS_H

#include "daemon/base/json.h"
#include "partition/checkpoint_parts.h"

struct shards {
    char *path;            /* of the index, owned */
    struct document *json; /* owned; names below point into it */
    const char *name[SHARDS_MAX];
    int count;
};

/* Reads and checks the index and lists its files: plain names in the same folder only.
 * STATUS_NOT_FOUND when there is no such file. */
enum status shards_open(const char *folder, struct shards *shards, struct error *error);
void shards_close(struct shards *shards);
/* The tensors of `file`, which is shard `name`, are those that the index puts there. */
enum status shards_check_file(const struct shards *shards, const struct safetensors *file,
                              const char *name, struct error *error);
/* Every tensor of the index is among `entry`, which is sorted by name. */
enum status shards_check_found(const struct shards *shards, const struct checkpoint *checkpoint,
                               struct error *error);

#endif
