/* A folder of safetensors files as one set of tensors, compared with what the model needs. */
#include "partition/partition.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "daemon/base/checked.h"
#include "partition/checkpoint_parts.h"
#include "partition/shards.h"

/* ---- order and digest --------------------------------------------------------------------- */

static int by_name(const void *a, const void *b)
{
    const struct tensor_entry *x = a, *y = b;
    return strcmp(x->name, y->name);
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

static uint64_t digest_number(uint64_t digest, uint64_t number)
{
    return XXH3_64bits_withSeed(&number, sizeof number, digest);
}

static uint64_t digest_text(uint64_t digest, const char *text)
{
    return XXH3_64bits_withSeed(text, strlen(text), digest);
}

/* A chain of hashes over the sorted entries. Not of the weights themselves, which would mean
 * reading them all, nor of the folder, which may differ between hosts. */
static uint64_t digest_entries(const struct checkpoint *checkpoint, uint64_t digest)
{
    for (size_t i = 0; i < checkpoint->count; i++) {
        const struct tensor_entry *tensor = &checkpoint->entry[i];
        digest = digest_text(digest, tensor->name);
        digest = digest_text(digest, base_name(tensor->file));
        digest = digest_number(digest, (uint64_t)tensor->dtype);
        digest = digest_number(digest, (uint64_t)tensor->dims);
        for (int d = 0; d < tensor->dims; d++)
            digest = digest_number(digest, tensor->shape[d]);
        digest = digest_number(digest, tensor->offset);
        digest = digest_number(digest, tensor->bytes);
    }
    return digest;
}

void checkpoint_finish(struct checkpoint *checkpoint, uint64_t seed)
{
    qsort(checkpoint->entry, checkpoint->count, sizeof *checkpoint->entry, by_name);
    checkpoint->digest = digest_entries(checkpoint, seed);
}

uint64_t checkpoint_digest(const struct checkpoint *checkpoint)
{
    return checkpoint->digest;
}

const struct tensor_entry *checkpoint_find(const struct checkpoint *checkpoint, const char *name)
{
    struct tensor_entry key = {.name = name};
    return bsearch(&key, checkpoint->entry, checkpoint->count, sizeof key, by_name);
}

/* ---- open --------------------------------------------------------------------------------- */

/* Copies the files' entries into one sorted array; a name may occur once. */
static enum status merge_entries(struct checkpoint *c, struct error *error)
{
    size_t count = 0;
    for (int i = 0; i < c->files; i++)
        count += c->file[i].count;
    if (count == 0)
        return error_set(error, STATUS_CORRUPT, "%s: no tensors", c->file[0].path);
    if (count > SAFETENSORS_TENSORS_MAX)
        return error_set(error, STATUS_CORRUPT,
                         "%s: %zu tensors in all shards, over the %d allowed", c->file[0].path,
                         count, SAFETENSORS_TENSORS_MAX);
    c->entry = calloc(count, sizeof *c->entry);
    if (c->entry == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory for %zu tensors", c->file[0].path,
                         count);
    for (int i = 0; i < c->files; i++)
        for (size_t k = 0; k < c->file[i].count; k++)
            c->entry[c->count++] = c->file[i].entry[k];
    qsort(c->entry, c->count, sizeof *c->entry, by_name);
    for (size_t i = 1; i < count; i++)
        if (strcmp(c->entry[i - 1].name, c->entry[i].name) == 0)
            return error_set(error, STATUS_CORRUPT,
                             "%s: tensor %.160s at offset %llu is also in %s", c->entry[i].file,
                             c->entry[i].name, (unsigned long long)c->entry[i].offset,
                             c->entry[i - 1].file);
    return STATUS_OK;
}

static enum status open_single(struct checkpoint *c, const char *path, struct error *error)
{
    c->file = calloc(1, sizeof *c->file);
    if (c->file == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory", path);
    enum status status = safetensors_open(path, 0, c->file, error);
    if (status != STATUS_OK)
        return status;
    c->files = 1;
    return merge_entries(c, error);
}

static enum status open_shard(struct checkpoint *c, const struct shards *shards, const char *folder,
                              struct error *error)
{
    char path[4096];
    const char *name = shards->name[c->files];
    if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path)
        return error_set(error, STATUS_CONFIG, "model folder: path is too long");
    struct safetensors *file = &c->file[c->files];
    enum status status = safetensors_open(path, c->files, file, error);
    if (status != STATUS_OK)
        return status;
    c->files++;
    return shards_check_file(shards, file, name, error);
}

static enum status open_shards(struct checkpoint *c, const char *folder, struct error *error)
{
    struct shards shards;
    enum status status = shards_open(folder, &shards, error);
    if (status != STATUS_OK)
        return status;
    c->file = calloc((size_t)shards.count, sizeof *c->file);
    if (c->file == NULL)
        status = error_set(error, STATUS_NO_MEMORY, "%s: no memory", folder);
    while (status == STATUS_OK && c->files < shards.count)
        status = open_shard(c, &shards, folder, error);
    if (status == STATUS_OK)
        status = merge_entries(c, error);
    if (status == STATUS_OK)
        status = shards_check_found(&shards, c, error);
    shards_close(&shards);
    return status;
}

static enum status open_files(struct checkpoint *c, const char *folder, struct error *error)
{
    char path[4096];
    if (snprintf(path, sizeof path, "%s/model.safetensors", folder) >= (int)sizeof path)
        return error_set(error, STATUS_CONFIG, "model folder: path is too long");
    if (access(path, F_OK) == 0)
        return open_single(c, path, error);
    struct error cause = {0};
    enum status status = open_shards(c, folder, &cause);
    if (status == STATUS_NOT_FOUND)
        return error_set(error, STATUS_IO,
                         "%s: neither model.safetensors nor model.safetensors.index.json", folder);
    return status == STATUS_OK ? status : error_set(error, status, "%s", cause.text);
}

/* ---- compare with the model --------------------------------------------------------------- */

static void print_shape(char *text, size_t room, int dims, const uint64_t *shape)
{
    size_t used = (size_t)snprintf(text, room, "[");
    for (int i = 0; i < dims && used < room; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%llu", i ? ", " : "",
                                 (unsigned long long)shape[i]);
    if (used < room)
        snprintf(text + used, room - used, "]");
}

static enum status check_shape(const struct tensor_entry *tensor, const struct weight *weight,
                               struct error *error)
{
    if (tensor->dims == weight->dims &&
        memcmp(tensor->shape, weight->shape, (size_t)weight->dims * sizeof *weight->shape) == 0)
        return STATUS_OK;
    char found[192], needed[64];
    print_shape(found, sizeof found, tensor->dims, tensor->shape);
    print_shape(needed, sizeof needed, weight->dims, weight->shape);
    return error_set(error, STATUS_CORRUPT,
                     "%s: tensor %.160s at offset %llu has shape %s, config.json needs %s",
                     tensor->file, tensor->name, (unsigned long long)tensor->offset, found, needed);
}

/* Every needed tensor is there in its shape; used[i] tells which entries were asked for. */
static enum status check_needed(const struct checkpoint *c, const struct model_config *config,
                                const char *folder, bool *used, struct error *error)
{
    struct weights weights = weights_begin(config);
    struct weight weight;
    while (weights_next(&weights, &weight)) {
        const struct tensor_entry *tensor = checkpoint_find(c, weight.name);
        if (tensor == NULL && weight.ignored)
            continue;
        if (tensor == NULL)
            return error_set(error, STATUS_CORRUPT, "%s: tensor %s is missing", folder,
                             weight.name);
        enum status status = check_shape(tensor, &weight, error);
        if (status != STATUS_OK)
            return status;
        used[tensor - c->entry] = true;
    }
    return STATUS_OK;
}

static enum status check_extra(const struct checkpoint *c, const bool *used, struct error *error)
{
    for (size_t i = 0; i < c->count; i++)
        if (!used[i])
            return error_set(error, STATUS_CORRUPT,
                             "%s: tensor %.160s at offset %llu is none that config.json needs",
                             c->entry[i].file, c->entry[i].name,
                             (unsigned long long)c->entry[i].offset);
    return STATUS_OK;
}

/* Takes out lm_head.weight of a tied model, so that nobody finds it. */
static void drop_ignored(struct checkpoint *c, const struct model_config *config)
{
    struct tensor_entry *head =
        config->tied ? (struct tensor_entry *)checkpoint_find(c, "lm_head.weight") : NULL;
    if (head == NULL)
        return;
    size_t after = (size_t)(c->entry + c->count - head) - 1;
    memmove(head, head + 1, after * sizeof *head);
    c->count--;
}

static enum status check_model(struct checkpoint *c, const struct model_config *config,
                               const char *folder, struct error *error)
{
    bool *used = calloc(c->count, sizeof *used);
    if (used == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory", folder);
    enum status status = check_needed(c, config, folder, used, error);
    if (status == STATUS_OK)
        status = check_extra(c, used, error);
    free(used);
    if (status == STATUS_OK)
        drop_ignored(c, config);
    return status;
}

enum status checkpoint_open(const char *folder, const struct model_config *config,
                            struct checkpoint **checkpoint, struct error *error)
{
    struct checkpoint *c = calloc(1, sizeof *c);
    if (c == NULL)
        return error_set(error, STATUS_NO_MEMORY, "%s: no memory", folder);
    enum status status = open_files(c, folder, error);
    if (status == STATUS_OK)
        status = check_model(c, config, folder, error);
    if (status != STATUS_OK) {
        checkpoint_close(c);
        return status;
    }
    checkpoint_finish(c, 0);
    *checkpoint = c;
    return STATUS_OK;
}

void checkpoint_close(struct checkpoint *checkpoint)
{
    if (checkpoint == NULL)
        return;
    for (int i = 0; i < checkpoint->files; i++)
        safetensors_close(&checkpoint->file[i]);
    free(checkpoint->file);
    free(checkpoint->entry);
    free(checkpoint->dummy);
    arena_destroy(checkpoint->arena);
    free(checkpoint);
}
