#include "fake_executor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/clock.h"

struct fake_slot {
    bool alive;
    int tokens, blocks, sampled;
    uint64_t seen;
    int32_t newest;
    bool not_finite;
    uint64_t last_step; /* that mentioned it, + 1 */
};

struct flight {
    uint64_t number;
    int rows;
    struct sample_result *result;
};

struct executor {
    struct fake_options options;
    struct fake_slot *slot;
    int *owner; /* [kv_blocks] slot, -1: none */
    struct flight flight[STAGE_DEPTH];
    uint64_t submitted, collected;
    _Atomic int64_t hold_step;
    int deepest;
    struct fake_drawn drawn;
    uint64_t *copy; /* aligned */
    char violation[256];
};

uint64_t fake_seen(uint64_t seen, int32_t id)
{
    seen ^= (uint64_t)id + UINT64_C(0x9e3779b97f4a7c15) + (seen << 6) + (seen >> 2);
    seen *= UINT64_C(0xbf58476d1ce4e5b9);
    return seen ^ seen >> 29;
}

static bool is_banned(int32_t id, const int32_t *bans, int count)
{
    for (int i = 0; i < count; i++) {
        if (bans[i] == id)
            return true;
    }
    return false;
}

int32_t fake_draw(uint64_t seen, uint64_t seed, uint64_t draw, bool eos, const int32_t *bans,
                  int ban_count)
{
    uint64_t hash = fake_seen(fake_seen(seen, (int32_t)seed), (int32_t)draw);
    for (;; hash = fake_seen(hash, 1)) {
        int32_t id = FAKE_FIRST + (int32_t)(hash % FAKE_RANGE);
        if (eos && hash >> 32 & 1 && hash >> 33 & 1 && hash >> 34 & 1 && hash >> 35 & 1)
            id = FAKE_EOS;
        if (!is_banned(id, bans, ban_count))
            return id;
    }
}

float fake_logprob(uint64_t seen, int32_t id)
{
    return -(float)(fake_seen(seen, id) % 1000) / 64;
}

struct executor *fake_executor_create(const struct fake_options *options)
{
    struct executor *e = calloc(1, sizeof *e);
    if (e == NULL)
        abort();
    e->options = *options;
    e->hold_step = options->hold_step;
    e->slot = calloc((size_t)options->shape.slots, sizeof *e->slot);
    e->owner = calloc((size_t)options->shape.kv_blocks + 1, sizeof *e->owner);
    e->copy = malloc(step_bytes_max(&options->shape));
    for (int i = 0; i < options->shape.kv_blocks; i++)
        e->owner[i] = -1;
    for (int i = 0; i < STAGE_DEPTH; i++)
        e->flight[i].result = calloc((size_t)options->shape.max_rows, sizeof *e->flight[i].result);
    return e;
}

void fake_executor_destroy(struct executor *e)
{
    for (int i = 0; i < STAGE_DEPTH; i++)
        free(e->flight[i].result);
    free(e->slot);
    free(e->owner);
    free(e->copy);
    free(e);
}

void fake_executor_release(struct executor *e, int64_t next)
{
    e->hold_step = next;
}

static void held_wait(const struct executor *e, const struct flight *flight)
{
    while (e->hold_step >= 0 && flight->number >= (uint64_t)e->hold_step)
        clock_sleep(CLOCK_SECOND / 10000);
}

const char *fake_executor_violation(const struct executor *e)
{
    return e->violation;
}

uint64_t fake_executor_steps(const struct executor *e)
{
    return e->submitted;
}

const struct fake_drawn *fake_executor_drawn(const struct executor *e)
{
    return &e->drawn;
}

int fake_executor_deepest(const struct executor *e)
{
    return e->deepest;
}

#define CHECK(e, condition)                                                                        \
    do {                                                                                           \
        if (!(condition) && (e)->violation[0] == '\0')                                             \
            snprintf((e)->violation, sizeof(e)->violation, "step %llu: %s",                        \
                     (unsigned long long)(e)->submitted, #condition);                              \
    } while (0)

/* Whether no step under way mentions the slot. */
static bool slot_is_quiet(const struct executor *e, const struct fake_slot *slot)
{
    return slot->last_step <= e->collected;
}

static void blocks_take(struct executor *e, int slot, const int32_t *block, int count)
{
    for (int i = 0; i < count; i++) {
        int owner = e->owner[block[i]];
        CHECK(e, owner != slot);
        if (owner >= 0) { /* it was given back: its slot must not be heard of again */
            CHECK(e, slot_is_quiet(e, &e->slot[owner]));
            e->slot[owner].alive = false;
        }
        e->owner[block[i]] = slot;
    }
}

static void slot_start(struct executor *e, int index)
{
    struct fake_slot *slot = &e->slot[index];
    CHECK(e, slot_is_quiet(e, slot));
    for (int i = 0; i < e->options.shape.kv_blocks; i++)
        e->owner[i] = e->owner[i] == index ? -1 : e->owner[i];
    *slot = (struct fake_slot){.alive = true};
}

/* seen [tokens]: the hash after each of the sequence's tokens. */
static void sequence_run(struct executor *e, const struct step_sequence *s, const int32_t *token,
                         const int32_t *block, uint64_t *seen)
{
    const struct step_shape *shape = &e->options.shape;
    struct fake_slot *slot = &e->slot[s->slot];
    if (s->context == 0)
        slot_start(e, s->slot);
    CHECK(e, slot->alive);
    CHECK(e, slot->tokens == s->context);
    blocks_take(e, s->slot, block, s->new_blocks);
    slot->tokens += s->tokens;
    slot->blocks += s->new_blocks;
    int needed = (slot->tokens + shape->block_tokens - 1) / shape->block_tokens;
    CHECK(e, shape->kv_blocks == 0 || slot->blocks == needed);
    for (int i = 0; i < s->tokens; i++) {
        int32_t id = token[i];
        if (id < 0) {
            CHECK(e, id == -1 - s->slot);
            CHECK(e, s->tokens == 1);
            CHECK(e, slot->sampled > 0);
            id = slot->newest;
        } else {
            CHECK(e, slot->sampled == 0); /* literal ids are the prompt's */
        }
        slot->not_finite = slot->not_finite || id == FAKE_NOT_FINITE;
        slot->seen = fake_seen(slot->seen, id);
        seen[i] = slot->seen;
    }
    slot->last_step = e->submitted + 1;
}

static struct sample_result row_run(struct executor *e, const struct step *step,
                                    const struct step_row *row, uint64_t seen, bool is_last)
{
    const struct sample_row *sample = &row->sample;
    struct fake_slot *slot = &e->slot[sample->slot];
    struct sample_result result = {.token = sample->target, .tops = sample->tops};
    if (sample->target < 0) {
        CHECK(e, is_last);
        CHECK(e, sample->draw == (uint64_t)slot->sampled);
        result.token = fake_draw(seen, sample->seed, sample->draw, e->options.eos,
                                 step->ban + sample->ban_begin, sample->ban_count);
        slot->newest = result.token;
        slot->sampled++;
        e->drawn.row = *sample;
        CHECK(e, sample->bias_count <= REQUEST_BIASES_MAX);
        memcpy(e->drawn.bias, step->bias + sample->bias_begin,
               (size_t)sample->bias_count * sizeof *step->bias);
    }
    result.logprob = fake_logprob(seen, result.token);
    result.is_argmax = result.token % 2;
    for (int i = 0; i < sample->tops; i++)
        result.top[i] = (struct logit_candidate){.value = -1 - (float)i, .id = result.token + i};
    if (slot->not_finite)
        result.token = -1;
    return result;
}

static void step_run(struct executor *e, const struct step *step, struct flight *flight)
{
    uint64_t *seen = calloc((size_t)step->tokens + 1, sizeof *seen);
    const int32_t *block = step->block;
    int token = 0, row = 0;
    for (int i = 0; i < step->sequences; i++) {
        const struct step_sequence *s = &step->sequence[i];
        sequence_run(e, s, step->token + token, block, seen + token);
        int end = token + s->tokens;
        e->drawn.counted = s->counted;
        for (; row < step->rows && step->row[row].token < end; row++) {
            CHECK(e, step->row[row].token >= token);
            CHECK(e, step->row[row].sample.slot == s->slot);
            flight->result[row] = row_run(e, step, &step->row[row], seen[step->row[row].token],
                                          step->row[row].token == end - 1);
        }
        token = end;
        block += s->new_blocks;
    }
    CHECK(e, row == step->rows);
    flight->rows = step->rows;
    free(seen);
}

enum status executor_submit(struct executor *e, const void *bytes, size_t length)
{
    struct step step;
    struct error error = {0};
    CHECK(e, e->submitted - e->collected < (uint64_t)e->options.shape.depth);
    memcpy(e->copy, bytes, length);
    if (step_decode(&e->options.shape, e->copy, length, &step, &error) != STATUS_OK) {
        if (e->violation[0] == '\0')
            snprintf(e->violation, sizeof e->violation, "%.200s", error.text);
        return error.status;
    }
    CHECK(e, step.number == e->submitted);
    CHECK(e, step.sequences > 0);
    struct flight *flight = &e->flight[e->submitted % STAGE_DEPTH];
    flight->number = step.number;
    step_run(e, &step, flight);
    e->submitted++;
    if ((int)(e->submitted - e->collected) > e->deepest)
        e->deepest = (int)(e->submitted - e->collected);
    return STATUS_OK;
}

enum status executor_collect(struct executor *e, struct sample_result *results, int room, int *rows,
                             struct error *error)
{
    CHECK(e, e->collected < e->submitted);
    struct flight *flight = &e->flight[e->collected % STAGE_DEPTH];
    if (e->options.delay_us > 0)
        clock_sleep((int64_t)e->options.delay_us * 1000);
    held_wait(e, flight);
    if (e->violation[0] != '\0')
        return error_set(error, STATUS_INTERNAL, "%s", e->violation);
    if (e->options.fail_step >= 0 && flight->number == (uint64_t)e->options.fail_step)
        return error_set(error, STATUS_PEER_LOST, "rank 1 was lost in step %llu",
                         (unsigned long long)flight->number);
    CHECK(e, flight->rows <= room);
    if (flight->rows > 0)
        memcpy(results, flight->result, (size_t)flight->rows * sizeof *results);
    *rows = flight->rows;
    e->collected++;
    return STATUS_OK;
}
