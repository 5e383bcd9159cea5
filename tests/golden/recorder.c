#include "tests/golden/recorder.h"

#include <stddef.h>
#include <string.h>

/* All memory is here: a step may allocate nothing. */
enum { RECORDINGS_MAX = 320, CALLS_MAX = 96, OP_MAX = 256 };

struct call {
    enum status (*run)(struct device *device, const void *op);
    bool batched;
    struct ragged batch; /* as it was: launches take it by value */
    _Alignas(16) unsigned char op[OP_MAX];
};

struct recording {
    bool taken;
    int count;
    struct call call[CALLS_MAX];
};

struct recorder recorder;
static struct recording pool[RECORDINGS_MAX];
static struct recording *under_way; /* NULL: entries run */
static struct backend table;

static const struct backend *cpu(void)
{
    return backend_find("cpu");
}

static enum status keep(enum status (*run)(struct device *, const void *), const void *op,
                        size_t size, const struct ragged *batch)
{
    if (under_way->count == CALLS_MAX || size > OP_MAX)
        return STATUS_INTERNAL;
    struct call *call = &under_way->call[under_way->count++];
    call->run = run;
    call->batched = batch != NULL;
    if (batch != NULL)
        call->batch = *batch;
    memcpy(call->op, op, size);
    return STATUS_OK;
}

#define ENTRY(name, batch)                                                                         \
    static enum status name##_again(struct device *device, const void *op)                         \
    {                                                                                              \
        return cpu()->name(device, op);                                                            \
    }                                                                                              \
    static enum status name##_entry(struct device *device, const struct name##_op *op)             \
    {                                                                                              \
        return under_way != NULL ? keep(name##_again, op, sizeof *op, batch)                       \
                                 : cpu()->name(device, op);                                        \
    }
ENTRY(resolve, NULL)
ENTRY(embed, NULL)
ENTRY(rms_norm, NULL)
ENTRY(gemm, NULL)
ENTRY(gate_up, NULL)
ENTRY(rope, NULL)
ENTRY(kv_store, op->batch)
ENTRY(attention, op->batch)
ENTRY(jet_mixer, op->batch)
#undef ENTRY

_Static_assert(offsetof(struct kv_store_op, batch) == 0 &&
                   offsetof(struct attention_op, batch) == 0 &&
                   offsetof(struct jet_mixer_op, batch) == 0,
               "call_run points the first field to the batch that was kept");

static enum status call_run(struct device *device, const struct call *kept)
{
    struct call call = *kept;
    const struct ragged *batch = &call.batch;
    if (call.batched)
        memcpy(call.op, &batch, sizeof batch);
    return call.run(device, call.op);
}

static enum status record_begin(struct device *device)
{
    (void)device;
    int free = 0;
    while (free < RECORDINGS_MAX && pool[free].taken)
        free++;
    if (free == RECORDINGS_MAX)
        return STATUS_NO_MEMORY;
    under_way = &pool[free];
    under_way->taken = true;
    under_way->count = 0;
    return STATUS_OK;
}

static enum status record_end(struct device *device, struct recording **recording)
{
    (void)device;
    *recording = under_way;
    under_way = NULL;
    recorder.recorded++;
    return STATUS_OK;
}

static enum status replay(struct device *device, const struct recording *recording)
{
    enum status status = recording->taken ? STATUS_OK : STATUS_INTERNAL;
    for (int i = 0; i < recording->count && status == STATUS_OK; i++)
        status = call_run(device, &recording->call[i]);
    recorder.replayed++;
    return status;
}

static void recording_free(struct device *device, struct recording *recording)
{
    (void)device;
    if (recording == NULL)
        return;
    recorder.freed++;
    recording->taken = false;
}

static enum status gemm_prepare(struct device *device, const struct prepare_op *ops, int count,
                                int *choices)
{
    (void)device, (void)ops, (void)count;
    *choices = 0;
    return STATUS_OK;
}

const struct backend *recorder_open(bool prepares)
{
    recorder = (struct recorder){0};
    table = *cpu();
    table.resolve = resolve_entry;
    table.embed = embed_entry;
    table.rms_norm = rms_norm_entry;
    table.gemm = gemm_entry;
    table.gate_up = gate_up_entry;
    table.rope = rope_entry;
    table.kv_store = kv_store_entry;
    table.attention = attention_entry;
    table.jet_mixer = jet_mixer_entry;
    table.record_begin = record_begin;
    table.record_end = record_end;
    table.replay = replay;
    table.recording_free = recording_free;
    if (prepares)
        table.gemm_prepare = gemm_prepare;
    return &table;
}
