#include "tests/golden/fixture.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what, const char *name)
{
    fprintf(stderr, "fixture: %s: %s\n", what, name);
    exit(1);
}

static unsigned char *file_read(const char *path, size_t *length)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        die("cannot open", path);
    fseek(file, 0, SEEK_END);
    *length = (size_t)ftell(file);
    rewind(file);
    unsigned char *bytes = malloc(*length);
    if (bytes == NULL || fread(bytes, 1, *length, file) != *length)
        die("cannot read", path);
    fclose(file);
    return bytes;
}

/* Data of a tensor, and its first dimension. Header lengths of the fixtures keep 4-byte alignment.
 */
static const void *tensor(const struct fixture *f, const char *name, size_t *bytes, int *first)
{
    json_t *entry = json_object_get(f->header, name);
    if (entry == NULL)
        return NULL;
    json_t *offsets = json_object_get(entry, "data_offsets");
    size_t begin = (size_t)json_integer_value(json_array_get(offsets, 0));
    size_t end = (size_t)json_integer_value(json_array_get(offsets, 1));
    *bytes = end - begin;
    *first = (int)json_integer_value(json_array_get(json_object_get(entry, "shape"), 0));
    return f->bytes + f->data + begin;
}

static void row_logprobs(const float *row, int vocab, double *out)
{
    double most = row[0], sum = 0;
    for (int i = 1; i < vocab; i++)
        most = row[i] > most ? row[i] : most;
    for (int i = 0; i < vocab; i++)
        sum += exp(row[i] - most);
    for (int i = 0; i < vocab; i++)
        out[i] = row[i] - most - log(sum);
}

struct fixture *fixture_open(const char *folder)
{
    struct fixture *f = calloc(1, sizeof *f);
    char path[600];
    size_t length = 0, bytes = 0;
    uint64_t header = 0;
    if (f == NULL)
        die("out of memory", folder);
    snprintf(f->folder, sizeof f->folder, "%s", folder);
    snprintf(path, sizeof path, "%s/expected.safetensors", folder);
    f->bytes = file_read(path, &length);
    memcpy(&header, f->bytes, sizeof header);
    f->data = 8 + (size_t)header;
    f->header = json_loadb((const char *)f->bytes + 8, (size_t)header, 0, NULL);
    if (f->header == NULL || f->data % 4 != 0)
        die("bad header", path);
    f->prompt = tensor(f, "prompt_ids", &bytes, &f->prompt_count);
    f->greedy = tensor(f, "greedy_ids", &bytes, &f->greedy_count);
    int rows = 0;
    f->logits = tensor(f, "logits", &bytes, &rows);
    if (f->prompt == NULL || f->greedy == NULL || f->logits == NULL || rows != f->prompt_count)
        die("tensors missing", path);
    f->vocab = (int)(bytes / sizeof(float) / (size_t)rows);
    f->logprobs = malloc((size_t)rows * (size_t)f->vocab * sizeof *f->logprobs);
    if (f->logprobs == NULL)
        die("out of memory", path);
    for (int i = 0; i < rows; i++)
        row_logprobs(f->logits + (size_t)i * (size_t)f->vocab, f->vocab,
                     f->logprobs + (size_t)i * (size_t)f->vocab);
    return f;
}

void fixture_close(struct fixture *f)
{
    json_decref(f->header);
    free(f->bytes);
    free(f->logprobs);
    free(f);
}

const float *fixture_tensor(const struct fixture *f, const char *name, size_t *count)
{
    size_t bytes = 0;
    int first;
    const float *data = tensor(f, name, &bytes, &first);
    *count = bytes / sizeof(float);
    return data;
}

double fixture_logprob(const struct fixture *f, int position, int id)
{
    return f->logprobs[(size_t)position * (size_t)f->vocab + (size_t)id];
}
