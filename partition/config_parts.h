/* Pieces of config.json reading that are files of their own; used by config.c and its tests. */
#ifndef JETD_PARTITION_CONFIG_PARTS_H
#define JETD_PARTITION_CONFIG_PARTS_H

#include "daemon/base/json.h"
#include "partition/partition.h"

/* rope_theta and rope_scaling, or rope_parameters (their name since transformers 5), of the whole
 * file; all may be absent: the default rope. Needs config->max_position and head_dim. */
enum status config_rope_read(struct field root, struct model_config *config, struct error *error);
/* Sizes that only together are impossible: divisibility, products. `file` stands in errors. */
enum status config_sizes_check(const char *file, const struct model_config *config,
                               struct error *error);
/* A number or a list of them; absent leaves config as it is. */
enum status config_eos_read(struct field at, struct model_config *config, struct error *error);
/* generation_config.json from text, on top of a checked config.json. */
enum status model_generation_parse(const char *name, const char *text, size_t length,
                                   struct model_config *config, struct error *error);
enum status model_generation_load(const char *path, struct model_config *config,
                                  struct error *error);

#endif
