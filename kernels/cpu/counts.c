/* How often each id occurred, per slot, and each slot's newest token. */
#include <string.h>

#include "kernels/cpu/cpu.h"

enum status cpu_count(struct device *device, const struct count_op *op)
{
    (void)device;
    for (int i = 0; i < op->resets; i++)
        memset(op->counts + (ptrdiff_t)op->reset[i] * op->columns, 0,
               (size_t)op->columns * sizeof(*op->counts));
    for (int i = 0; i < op->entries; i++) {
        const struct count_entry *entry = &op->entry[i];
        int32_t id = entry->id >= 0 ? entry->id : op->last[-1 - entry->id];
        int64_t column = (int64_t)id - op->first;
        if (id < 0 || column < 0 || column >= op->columns)
            continue;
        uint32_t *count = op->counts + (ptrdiff_t)entry->slot * op->columns + column;
        *count = entry->prompt ? *count | COUNT_SEEN_IN_PROMPT : *count + 1;
    }
    return STATUS_OK;
}

enum status cpu_remember(struct device *device, const struct remember_op *op)
{
    (void)device;
    for (int r = 0; r < op->rows; r++)
        op->last[op->slots[r]] = op->tokens[r];
    return STATUS_OK;
}
