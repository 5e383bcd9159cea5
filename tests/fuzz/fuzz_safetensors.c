/* The bytes are the start of a safetensors file; what is accepted must lie within it. */
#include <stdlib.h>
#include <string.h>

#include "partition/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The promises of an accepted header, computed again from scratch. */
static void check(const struct safetensors *file, uint64_t size)
{
    uint64_t covered = file->data_start;
    for (size_t i = 0; i < file->count; i++) {
        const struct tensor_entry *tensor = &file->entry[i];
        __uint128_t bytes = dtype_size(tensor->dtype);
        if (tensor->dims < 0 || tensor->dims > TENSOR_DIMS_MAX)
            abort();
        for (int d = 0; d < tensor->dims; d++)
            bytes *= tensor->shape[d];
        if (bytes != tensor->bytes || tensor->offset != covered || strlen(tensor->name) > size)
            abort();
        covered += tensor->bytes;
    }
    if (covered != size)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char path[] = "fuzz.safetensors";
    struct error error = {0};
    uint64_t length = 0;
    /* As if zeros followed up to where the last header byte says: data is never looked at. */
    uint64_t whole = size < 9 ? size : size - 1 + data[size - 1];
    size_t got = size < 32 ? size : 32;
    if (safetensors_prefix(path, data, got, whole, &length, &error) != STATUS_OK ||
        length > size - SAFETENSORS_PREFIX)
        return 0;
    struct safetensors file = {.path = path,
                               .fd = -1,
                               .arena = arena_create(length + (1 << 20)),
                               .data_start = SAFETENSORS_PREFIX + length};
    char *text = malloc(length + 1); /* exact, so that one byte too far is seen */
    if (file.arena == NULL || text == NULL)
        abort();
    memcpy(text, data + SAFETENSORS_PREFIX, length);
    enum status status = safetensors_header(&file, text, length, whole, &error);
    if (status == STATUS_OK)
        check(&file, whole);
    else if (error.status != status || error.text[0] == '\0')
        abort();
    free(text);
    free(file.entry);
    arena_destroy(file.arena);
    return 0;
}
