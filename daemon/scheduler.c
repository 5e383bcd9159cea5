#include "daemon/scheduler.h"

#include <stdlib.h>

/* By priority, then arrival. The first of each priority is linked to the first of the next higher
 * and the next lower one, so that a place is found in as many steps as there are priorities:
 * entries of one request come by the hundred, and requests of the highest priority wait behind few.
 */
struct queue {
    struct entry *first, *last;
    struct entry *lowest; /* the first one of the lowest priority */
    int count;
};

struct scheduler {
    struct step_shape shape;
    struct blocks *blocks;
    struct queue waiting, running;
    int capacity; /* running sequences: each can have a token and a row a step */
    int unit;
    int biases, bans; /* set aside by running and removed entries */
    int groups, turn; /* turn: the group of the next step */
    int members[SCHEDULER_GROUPS_MAX];
};

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* ---- queues ------------------------------------------------------------------------------- */

static bool entry_before(const struct entry *a, const struct entry *b)
{
    if (a->priority != b->priority)
        return a->priority > b->priority;
    return a->arrival < b->arrival;
}

/* What the entry comes right after, NULL: nothing. New ones come last of their priority. */
static struct entry *place_find(const struct queue *queue, const struct entry *entry)
{
    struct entry *previous = queue->last;
    for (const struct entry *level = queue->lowest;
         level != NULL && level->priority < entry->priority; level = level->higher)
        previous = level->previous;
    while (previous != NULL && entry_before(entry, previous))
        previous = previous->previous;
    return previous;
}

static bool same_priority(const struct entry *a, const struct entry *b)
{
    return a != NULL && b != NULL && a->priority == b->priority;
}

/* Between its neighbours already: where it is the first of its priority now, the levels say so. */
static void level_join(struct queue *queue, struct entry *entry)
{
    struct entry *next = entry->next;
    if (same_priority(entry->previous, entry))
        return;
    entry->higher = next != NULL ? next->higher : queue->lowest;
    entry->lower = same_priority(next, entry) ? next->lower : next;
    *(entry->lower != NULL ? &entry->lower->higher : &queue->lowest) = entry;
    if (entry->higher != NULL)
        entry->higher->lower = entry;
}

/* Between its neighbours still. */
static void level_leave(struct queue *queue, struct entry *entry)
{
    if (same_priority(entry->previous, entry))
        return;
    struct entry *heir = same_priority(entry, entry->next) ? entry->next : NULL;
    if (heir != NULL) {
        heir->higher = entry->higher;
        heir->lower = entry->lower;
    }
    *(entry->lower != NULL ? &entry->lower->higher : &queue->lowest) =
        heir != NULL ? heir : entry->higher;
    if (entry->higher != NULL)
        entry->higher->lower = heir != NULL ? heir : entry->lower;
}

static void queue_insert(struct queue *queue, struct entry *entry)
{
    struct entry *previous = place_find(queue, entry);
    entry->previous = previous;
    entry->next = previous == NULL ? queue->first : previous->next;
    level_join(queue, entry);
    *(previous == NULL ? &queue->first : &previous->next) = entry;
    *(entry->next == NULL ? &queue->last : &entry->next->previous) = entry;
    queue->count++;
}

static void queue_remove(struct queue *queue, struct entry *entry)
{
    level_leave(queue, entry);
    *(entry->previous == NULL ? &queue->first : &entry->previous->next) = entry->next;
    *(entry->next == NULL ? &queue->last : &entry->next->previous) = entry->previous;
    entry->previous = entry->next = NULL;
    queue->count--;
}

/* ---- life --------------------------------------------------------------------------------- */

/* Room for one unit and the token that may not be left alone must stay when every other slot
 * decodes, or a prompt could wait for ever. */
static int unit_of(const struct step_shape *shape, int capacity)
{
    int room = least(shape->max_tokens, shape->max_rows) - capacity;
    int unit = SCHEDULER_UNIT_MAX;
    while (unit > 1 && unit > room)
        unit /= 2;
    return unit;
}

enum status scheduler_create(const struct step_shape *shape, struct scheduler **scheduler,
                             struct error *error)
{
    int capacity =
        least(least(shape->slots, shape->max_sequences), least(shape->max_tokens, shape->max_rows));
    if (capacity < 1 || shape->block_tokens < 1 || shape->max_model_len < 1)
        return error_set(error, STATUS_CONFIG, "step shape: no sequence fits into a step");
    int most_blocks = least(shape->kv_blocks, capacity + shape->max_tokens / shape->block_tokens);
    if (shape->max_blocks < most_blocks)
        return error_set(error, STATUS_CONFIG,
                         "step shape: max_blocks %d is too small for %d sequences and %d tokens",
                         shape->max_blocks, capacity, shape->max_tokens);
    struct scheduler *s = calloc(1, sizeof *s);
    struct blocks *blocks = blocks_create(shape->slots, shape->kv_blocks, shape->block_tokens);
    if (s == NULL || blocks == NULL) {
        free(s);
        blocks_destroy(blocks);
        return error_set(error, STATUS_NO_MEMORY, "scheduler: out of memory");
    }
    *s = (struct scheduler){.shape = *shape,
                            .blocks = blocks,
                            .capacity = capacity,
                            .unit = unit_of(shape, capacity),
                            .groups = 1};
    *scheduler = s;
    return STATUS_OK;
}

void scheduler_destroy(struct scheduler *s)
{
    if (s == NULL)
        return;
    blocks_destroy(s->blocks);
    free(s);
}

void scheduler_set_groups(struct scheduler *s, int groups)
{
    s->groups = least(groups < 1 ? 1 : groups, SCHEDULER_GROUPS_MAX);
}

struct batch *batch_create(const struct step_shape *shape)
{
    struct batch *batch = calloc(1, sizeof *batch);
    if (batch == NULL)
        return NULL;
    batch->item = calloc((size_t)shape->max_sequences + 1, sizeof *batch->item);
    batch->block = calloc((size_t)shape->max_blocks + 1, sizeof *batch->block);
    if (batch->item == NULL || batch->block == NULL) {
        batch_destroy(batch);
        return NULL;
    }
    return batch;
}

void batch_destroy(struct batch *batch)
{
    if (batch == NULL)
        return;
    free(batch->item);
    free(batch->block);
    free(batch);
}

/* ---- admission ---------------------------------------------------------------------------- */

static int64_t entry_length(const struct entry *entry)
{
    return (int64_t)entry->inputs + entry->samples;
}

bool scheduler_fits(const struct scheduler *s, const struct entry *entry)
{
    return entry->inputs >= 1 && entry_length(entry) <= s->shape.max_model_len &&
           blocks_needed(s->blocks, entry_length(entry)) <= s->shape.kv_blocks &&
           entry->biases <= s->shape.max_biases && entry->bans <= s->shape.max_bans;
}

void scheduler_add(struct scheduler *s, struct entry *entry)
{
    entry->state = ENTRY_WAITING;
    entry->slot = -1;
    entry->done = entry->sampled = 0;
    queue_insert(&s->waiting, entry);
}

static bool entry_admit(struct scheduler *s, struct entry *entry)
{
    int blocks = blocks_needed(s->blocks, entry_length(entry));
    if (s->running.count >= s->capacity || entry->biases > s->shape.max_biases - s->biases ||
        entry->bans > s->shape.max_bans - s->bans ||
        !blocks_reserve(s->blocks, blocks, &entry->slot))
        return false;
    s->biases += entry->biases;
    s->bans += entry->bans;
    queue_remove(&s->waiting, entry);
    entry->state = ENTRY_RUNNING;
    entry->group = 0;
    for (int group = 1; group < s->groups; group++)
        if (s->members[group] < s->members[entry->group])
            entry->group = group;
    s->members[entry->group]++;
    queue_insert(&s->running, entry);
    return true;
}

/* In order; a paused entry lets others pass, one that does not fit yet does not. */
static void waiting_admit(struct scheduler *s)
{
    for (struct entry *entry = s->waiting.first, *next; entry != NULL; entry = next) {
        next = entry->next;
        if (!entry->paused && !entry_admit(s, entry))
            return;
    }
}

void scheduler_remove(struct scheduler *s, struct entry *entry)
{
    if (entry->state == ENTRY_WAITING) {
        queue_remove(&s->waiting, entry);
    } else if (entry->state == ENTRY_RUNNING) {
        queue_remove(&s->running, entry);
        s->members[entry->group]--;
    }
    entry->state = ENTRY_REMOVED;
}

void scheduler_release(struct scheduler *s, struct entry *entry)
{
    scheduler_remove(s, entry);
    if (entry->slot >= 0) {
        blocks_release(s->blocks, entry->slot);
        s->biases -= entry->biases;
        s->bans -= entry->bans;
    }
    entry->slot = -1;
    entry->state = ENTRY_NEW;
}

/* ---- composition -------------------------------------------------------------------------- */

/* Items of one token stay ahead of longer ones: a late one trades places with the first longer. */
static void batch_add(struct batch *batch, struct batch_item item, int *singles)
{
    int at = batch->items++;
    if (item.tokens == 1) {
        batch->item[at] = batch->item[*singles];
        at = (*singles)++;
    }
    batch->item[at] = item;
    batch->tokens += item.tokens;
    batch->rows += item.scored + (item.sample >= 0);
}

static void group_add(struct scheduler *s, struct batch *batch, int group, int *singles)
{
    for (struct entry *entry = s->running.first; entry != NULL; entry = entry->next) {
        if (entry->group != group || entry->paused || entry->done < entry->inputs ||
            entry->sampled >= entry->samples)
            continue;
        struct batch_item item = {
            .entry = entry, .context = entry->done, .tokens = 1, .sample = entry->sampled};
        batch_add(batch, item, singles);
    }
}

/* The group whose turn it is, or the next that has something to do. */
static void decodes_add(struct scheduler *s, struct batch *batch, int *singles)
{
    for (int i = 0; i < s->groups && batch->items == 0; i++) {
        group_add(s, batch, s->turn, singles);
        s->turn = (s->turn + 1) % s->groups;
    }
}

/* Rows that `tokens` more prompt tokens of the entry need. */
static int rows_scored(const struct entry *entry, int tokens)
{
    int left = entry->scored - entry->done;
    return left > 0 ? least(left, tokens) : 0;
}

static bool chunk_fits(const struct entry *entry, int tokens, int room, int rows)
{
    bool samples = entry->samples > 0 && tokens == entry->inputs - entry->done;
    return tokens <= room && rows_scored(entry, tokens) + samples <= rows;
}

/* The longest chunk that may be cut here, 0: none. */
static int chunk_tokens(const struct scheduler *s, const struct entry *entry, int room, int rows)
{
    int left = entry->inputs - entry->done;
    if (chunk_fits(entry, left, room, rows))
        return left;
    int most = least(least(left, room), entry->done < entry->scored ? rows : room);
    int end = (entry->done + most) / s->unit * s->unit;
    if (end == entry->inputs) /* all of it, but there is no row for the sample */
        end -= s->unit;
    if (s->unit > 1 && end == entry->inputs - 1)
        end -= s->unit;
    return end > entry->done ? end - entry->done : 0;
}

static void prompts_add(struct scheduler *s, struct batch *batch, int *singles)
{
    for (struct entry *entry = s->running.first; entry != NULL; entry = entry->next) {
        int room = s->shape.max_tokens - batch->tokens, rows = s->shape.max_rows - batch->rows;
        if (room == 0)
            return;
        if (entry->paused || entry->done >= entry->inputs)
            continue;
        int tokens = chunk_tokens(s, entry, room, rows);
        if (tokens == 0)
            continue;
        bool ends = entry->done + tokens == entry->inputs;
        struct batch_item item = {.entry = entry,
                                  .context = entry->done,
                                  .tokens = tokens,
                                  .scored = rows_scored(entry, tokens),
                                  .sample = ends && entry->samples > 0 ? 0 : -1};
        batch_add(batch, item, singles);
    }
}

enum status scheduler_compose(struct scheduler *s, struct batch *batch)
{
    int singles = 0;
    batch->items = batch->tokens = batch->rows = batch->new_blocks = 0;
    waiting_admit(s);
    decodes_add(s, batch, &singles);
    prompts_add(s, batch, &singles);
    for (int i = 0; i < batch->items; i++) {
        struct batch_item *item = &batch->item[i];
        struct entry *entry = item->entry;
        entry->done += item->tokens;
        entry->sampled += item->sample >= 0;
        item->new_blocks =
            blocks_grow(s->blocks, entry->slot, entry->done, batch->block + batch->new_blocks);
        if (item->new_blocks < 0)
            return STATUS_INTERNAL;
        batch->new_blocks += item->new_blocks;
    }
    return STATUS_OK;
}

int scheduler_waiting(const struct scheduler *s)
{
    return s->waiting.count;
}

int scheduler_running(const struct scheduler *s)
{
    return s->running.count;
}

int scheduler_unit(const struct scheduler *s)
{
    return s->unit;
}

void scheduler_usage(const struct scheduler *s, struct blocks_usage *usage)
{
    blocks_usage(s->blocks, usage);
}
