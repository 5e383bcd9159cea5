#include "partition/shards.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct document_limits index_limits = {
    .bytes = 16 << 20, .depth = 8, .values = 2 * SAFETENSORS_TENSORS_MAX};

static struct field weight_map(const struct shards *shards)
{
    return field_member(document_root(shards->json), "weight_map");
}

/* A shard is a file beside the index: a name that could lead elsewhere is an attack or a mistake.
 */
static enum status check_name(const char *index, const char *tensor, const char *name,
                              struct error *error)
{
    static const char suffix[] = ".safetensors";
    size_t length = strlen(name);
    if (strchr(name, '/') != NULL || strstr(name, "..") != NULL)
        return error_set(error, STATUS_CORRUPT,
                         "%s: tensor %.120s: shard \"%.80s\" is not a plain file name", index,
                         tensor, name);
    if (length >= 256 || length < sizeof suffix ||
        strcmp(name + length - (sizeof suffix - 1), suffix) != 0)
        return error_set(error, STATUS_CORRUPT,
                         "%s: tensor %.120s: shard \"%.80s\" is not named *.safetensors", index,
                         tensor, name);
    return STATUS_OK;
}

static enum status add_shard(void *context, const char *tensor, struct field at,
                             struct error *error)
{
    struct shards *shards = context;
    const char *name = NULL;
    if (field_string(at, &name, NULL) != STATUS_OK)
        return error_set(error, STATUS_CORRUPT, "%s: %s is not a file name", at.file, at.path);
    enum status status = check_name(at.file, tensor, name, error);
    if (status != STATUS_OK)
        return status;
    for (int i = shards->count - 1; i >= 0; i--) /* most often the one named last */
        if (strcmp(shards->name[i], name) == 0)
            return STATUS_OK;
    if (shards->count == SHARDS_MAX)
        return error_set(error, STATUS_CORRUPT, "%s: names more than %d shards", at.file,
                         SHARDS_MAX);
    shards->name[shards->count++] = name;
    return STATUS_OK;
}

enum status shards_open(const char *folder, struct shards *shards, struct error *error)
{
    *shards = (struct shards){0};
    if (asprintf(&shards->path, "%s/model.safetensors.index.json", folder) < 0) {
        shards->path = NULL;
        return error_set(error, STATUS_NO_MEMORY, "no memory for a path");
    }
    enum status status = document_load(shards->path, index_limits, &shards->json, error);
    if (status != STATUS_OK)
        goto close;
    if (!field_is_object(weight_map(shards)) || field_size(weight_map(shards)) == 0) {
        status = error_set(error, STATUS_CORRUPT, "%s: weight_map is missing, empty or no object",
                           shards->path);
        goto close;
    }
    status = field_each(weight_map(shards), add_shard, shards, error);
    if (status == STATUS_OK)
        return STATUS_OK;
close:
    shards_close(shards);
    return status;
}

void shards_close(struct shards *shards)
{
    document_free(shards->json);
    free(shards->path);
    *shards = (struct shards){0};
}

enum status shards_check_file(const struct shards *shards, const struct safetensors *file,
                              const char *name, struct error *error)
{
    for (size_t i = 0; i < file->count; i++) {
        const struct tensor_entry *tensor = &file->entry[i];
        const char *wanted = NULL;
        field_string(field_member(weight_map(shards), tensor->name), &wanted, NULL);
        if (wanted == NULL)
            return error_set(error, STATUS_CORRUPT,
                             "%s: tensor %.160s at offset %llu is not in the index", file->path,
                             tensor->name, (unsigned long long)tensor->offset);
        if (strcmp(wanted, name) != 0)
            return error_set(error, STATUS_CORRUPT,
                             "%s: tensor %.160s at offset %llu: the index puts it in %.80s",
                             file->path, tensor->name, (unsigned long long)tensor->offset, wanted);
    }
    return STATUS_OK;
}

static enum status check_found(void *context, const char *tensor, struct field at,
                               struct error *error)
{
    const char *name = "";
    if (checkpoint_find(context, tensor) != NULL)
        return STATUS_OK;
    field_string(at, &name, NULL);
    return error_set(error, STATUS_CORRUPT, "%s: tensor %.160s is not in shard %.80s", at.file,
                     tensor, name);
}

enum status shards_check_found(const struct shards *shards, const struct checkpoint *checkpoint,
                               struct error *error)
{
    return field_each(weight_map(shards), check_found, (void *)checkpoint, error);
}
