/* Keys and values into the cache, and attention over them: paged and ring. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/kernels/harness.h"
#include "tests/kernels/reference.h"

/* A model's attention over some sequences, whose keys and values are known from position 0. */
struct scene {
    int heads, group, group_offset, kv_heads, dim, window;
    int ring, block_tokens, slots; /* ring 0: paged */
    int sequences;
    double sharpness; /* standard deviation of scores; 0: 1.5 */
    const struct sequence *sequence;
    struct ragged *batch;
    float **k, **v; /* by sequence: [context + tokens, kv_heads, dim] */
    float *q;       /* [tokens, heads, dim] */
    int32_t *table; /* [slots, ld_table], shuffled */
    int ld_table, blocks;
};

static void scene_make(struct scene *c)
{
    int longest = 0, stride = c->kv_heads * c->dim;

    c->batch = make_batch(c->sequence, c->sequences, c->slots);
    c->k = host_memory((size_t)c->sequences, sizeof(float *));
    c->v = host_memory((size_t)c->sequences, sizeof(float *));
    for (int s = 0; s < c->sequences; s++) {
        int total = c->sequence[s].context + c->sequence[s].tokens;
        longest = total > longest ? total : longest;
        c->k[s] = random_activations((size_t)(total * stride), 1.0);
        c->v[s] = random_activations((size_t)(total * stride), 1.0);
    }
    c->q = random_activations((size_t)(c->batch->tokens * c->heads * c->dim),
                              c->sharpness > 0.0 ? c->sharpness : 1.5);
    if (c->ring > 0)
        return;
    c->ld_table = (longest + c->block_tokens - 1) / c->block_tokens + 2;
    c->blocks = c->slots * c->ld_table;
    c->table = host_memory((size_t)c->blocks, 4);
    for (int i = 0; i < c->blocks; i++)
        c->table[i] = i;
    random_shuffle(c->table, c->blocks);
}

static size_t cache_count(const struct scene *c)
{
    int units = c->ring > 0 ? c->slots : c->blocks;
    int extent = c->ring > 0 ? c->ring : c->block_tokens;

    return (size_t)(units * 2 * c->kv_heads * extent * c->dim);
}

/* Writes what a cache must hold of the context, and of the new tokens if `with_new`, as kernels.h
 * lays it out; the rest keeps its value. */
static void fill_cache(const struct scene *c, float *data, bool with_new)
{
    int extent = c->ring > 0 ? c->ring : c->block_tokens;

    for (int s = 0; s < c->sequences; s++) {
        int slot = c->batch->host_slots[s];
        int end = c->sequence[s].context + (with_new ? c->sequence[s].tokens : 0);
        int begin = c->ring > 0 && end > c->ring ? end - c->ring : 0;
        for (int p = begin; p < end; p++) {
            int unit = c->ring > 0 ? slot : c->table[slot * c->ld_table + p / extent];
            for (int head = 0; head < c->kv_heads; head++) {
                for (int i = 0; i < c->dim; i++) {
                    int from = (p * c->kv_heads + head) * c->dim + i;
                    int to = (head * extent + p % extent) * c->dim + i;
                    int half = c->kv_heads * extent * c->dim;
                    data[unit * 2 * half + to] = c->k[s][from];
                    data[unit * 2 * half + half + to] = c->v[s][from];
                }
            }
        }
    }
}

/* A cache full of NaN but for the positions that are there. */
static struct kv_cache make_cache(const struct scene *c, bool with_new)
{
    size_t count = cache_count(c);
    float *data = host_memory(count, sizeof(float));

    for (size_t i = 0; i < count; i++)
        data[i] = NAN;
    fill_cache(c, data, with_new);
    return (struct kv_cache){.data = put(data, count),
                             .kv_heads = c->kv_heads,
                             .head_dim = c->dim,
                             .block_tokens = c->block_tokens,
                             .table = c->ring > 0 ? NULL : put_ints(c->table, (size_t)c->blocks),
                             .ld_table = c->ld_table,
                             .ring = c->ring};
}

/* New keys (or values) packed by token with a gap between rows. */
static void *put_new(const struct scene *c, float **from, int ld)
{
    int stride = c->kv_heads * c->dim;
    float *rows = host_memory((size_t)(c->batch->tokens * ld), sizeof(float));

    for (int s = 0; s < c->sequences; s++)
        for (int i = 0; i < c->sequence[s].tokens; i++)
            memcpy(rows + (c->batch->host_starts[s] + i) * ld,
                   from[s] + (c->sequence[s].context + i) * stride, (size_t)stride * sizeof(float));
    return put(rows, (size_t)(c->batch->tokens * ld));
}

struct result {
    float *out, *lse;
};

static struct result scene_run(const struct scene *c, const struct kv_cache *cache)
{
    int tokens = c->batch->tokens, ld_kv = c->kv_heads * c->dim + 8;
    size_t count = (size_t)(tokens * c->heads * c->dim), rows = (size_t)(tokens * c->heads);
    void *out = poison(count);
    float *lse = poison_raw(rows * sizeof(float));

    MUST(h.backend->attention(h.device, &(struct attention_op){.batch = c->batch,
                                                               .heads = c->heads,
                                                               .group = c->group,
                                                               .group_offset = c->group_offset,
                                                               .ld_q = c->heads * c->dim,
                                                               .ld_kv = ld_kv,
                                                               .scale = 1.0f / sqrtf((float)c->dim),
                                                               .window = c->window,
                                                               .q = put(c->q, count),
                                                               .k = put_new(c, c->k, ld_kv),
                                                               .v = put_new(c, c->v, ld_kv),
                                                               .cache = *cache,
                                                               .out = out,
                                                               .lse = lse}));
    return (struct result){get(out, count), get_floats(lse, rows)};
}

static void scene_check(const struct scene *c, const struct result *got)
{
    int stride = c->kv_heads * c->dim;
    size_t rows = (size_t)(c->batch->tokens * c->heads), row = 0;
    double *want = host_memory(rows * (size_t)c->dim, sizeof(double));
    double *lse = host_memory(rows, sizeof(double));

    for (int s = 0; s < c->sequences; s++) {
        for (int i = 0; i < c->sequence[s].tokens; i++) {
            int end = c->sequence[s].context + i + 1;
            int begin = c->window > 0 && end > c->window ? end - c->window : 0;
            for (int head = 0; head < c->heads; head++, row++) {
                int kv = (c->group_offset + head) / c->group;
                ref_attend(c->q + row * (size_t)c->dim, c->k[s] + kv * c->dim,
                           c->v[s] + kv * c->dim, (size_t)stride, begin, end, c->dim,
                           1.0 / sqrt(c->dim), want + row * (size_t)c->dim, lse + row);
            }
        }
    }
    /* A score of some hundred carries an error that its exponential makes relative. */
    assert_close("attention", got->out, want, rows * (size_t)c->dim,
                 c->sharpness > 0.0 ? 1e-3 : 2e-6, 1e-2);
    assert_close("log-sum-exp", got->lse, lse, rows, 1e-6, 1e-3);
}

static void scene_test(struct scene *c, bool with_new)
{
    scene_make(c);
    struct kv_cache cache = make_cache(c, with_new);
    struct result got = scene_run(c, &cache);
    scene_check(c, &got);
}

static const struct sequence ragged_sequences[] = {{0, 1},  {1, 1},  {63, 1}, {64, 1}, {130, 1},
                                                   {0, 33}, {17, 2}, {5, 70}, {0, 130}};
enum { RAGGED = sizeof(ragged_sequences) / sizeof(ragged_sequences[0]) };

static void paged_attention_agrees_with_float64(void **state)
{
    static const int dims[] = {16, 32, 128}, windows[] = {0, 1, 40};

    (void)state;
    for (int i = 0; i < 3; i++) {
        struct scene c = {.heads = 6,
                          .group = 3,
                          .kv_heads = 2,
                          .dim = dims[i],
                          .window = windows[i],
                          .block_tokens = 16 << i,
                          .slots = RAGGED + 3,
                          .sequences = RAGGED,
                          .sequence = ragged_sequences};
        scene_test(&c, true);
        harness_sweep(NULL);
    }
}

static void ring_attention_agrees_with_float64(void **state)
{
    static const int rings[] = {5, 32, 63, 64}, windows[] = {5, 20, 63, 64};

    (void)state;
    for (int i = 0; i < 4; i++) {
        struct scene c = {.heads = 4,
                          .group = 2,
                          .kv_heads = 2,
                          .dim = 32,
                          .window = windows[i],
                          .ring = rings[i],
                          .slots = RAGGED + 2,
                          .sequences = RAGGED,
                          .sequence = ragged_sequences};
        scene_test(&c, false);
        harness_sweep(NULL);
    }
}

/* A rank whose query heads straddle kv heads: three query heads a kv head in the model, this rank
 * begins with the third of a kv head. */
static void a_rank_may_begin_inside_a_group(void **state)
{
    const struct sequence sequence[] = {{20, 1}, {0, 9}};
    struct scene c = {.heads = 3,
                      .group = 3,
                      .group_offset = 2,
                      .kv_heads = 2,
                      .dim = 16,
                      .block_tokens = 4,
                      .slots = 2,
                      .sequences = 2,
                      .sequence = sequence};

    (void)state;
    scene_test(&c, true);
}

/* kv_store gives what kernels.h lays out, and touches nothing else. */
static void check_store(struct scene *c)
{
    int ld = c->kv_heads * c->dim + 8;

    scene_make(c);
    struct kv_cache cache = make_cache(c, false);
    size_t count = cache_count(c);
    float *want = get(cache.data, count);
    fill_cache(c, want, true);
    MUST(h.backend->kv_store(h.device, &(struct kv_store_op){.batch = c->batch,
                                                             .ld_kv = ld,
                                                             .k = put_new(c, c->k, ld),
                                                             .v = put_new(c, c->v, ld),
                                                             .cache = cache}));
    float *got = get(cache.data, count);
    for (size_t i = 0; i < count; i++)
        assert_true(got[i] == want[i] || (isnan(got[i]) && isnan(want[i])));
}

static void store_writes_pages(void **state)
{
    struct scene c = {.heads = 1,
                      .group = 1,
                      .kv_heads = 2,
                      .dim = 8,
                      .block_tokens = 16,
                      .slots = RAGGED,
                      .sequences = RAGGED,
                      .sequence = ragged_sequences};

    (void)state;
    check_store(&c);
}

static void store_wraps_around_the_ring(void **state)
{
    struct scene c = {.heads = 1,
                      .group = 1,
                      .kv_heads = 2,
                      .dim = 8,
                      .ring = 24,
                      .slots = RAGGED,
                      .sequences = RAGGED,
                      .sequence = ragged_sequences};

    (void)state;
    check_store(&c);
}

/* What rope and kv_store do one after the other, bit for bit. */
static void check_rope_store(struct scene *c)
{
    int columns = (c->heads + 2 * c->kv_heads) * c->dim, ld = columns + 8;
    size_t count = (size_t)(c->sequences * ld);
    float *frequencies = random_floats((size_t)c->dim / 2, 0.0);
    float *projected = random_activations(count, 1.0);
    void *stream[2];
    struct kv_cache cache[2];

    for (int i = 0; i < c->dim / 2; i++)
        frequencies[i] = (float)pow(1e4, -2.0 * i / c->dim);
    scene_make(c);
    for (int side = 0; side < 2; side++) {
        cache[side] = make_cache(c, true);
        stream[side] = put(projected, count);
        struct rope_store_op op = {
            .rope = {.tokens = c->sequences,
                     .heads = c->heads + c->kv_heads,
                     .head_dim = c->dim,
                     .ld_x = ld,
                     .positions = c->batch->token_position,
                     .frequencies = put_floats(frequencies, (size_t)c->dim / 2),
                     .scale = 1.1f,
                     .x = stream[side]},
            .store = {.batch = c->batch, .ld_kv = ld, .cache = cache[side]}};
        size_t element = dtype_size(h.backend->activation);
        op.store.k = (char *)stream[side] + (size_t)(c->heads * c->dim) * element;
        op.store.v = (char *)stream[side] + (size_t)((c->heads + c->kv_heads) * c->dim) * element;
        if (side == 0) {
            MUST(h.backend->rope(h.device, &op.rope));
            MUST(h.backend->kv_store(h.device, &op.store));
        } else {
            MUST(h.backend->rope_store(h.device, &op));
        }
    }
    assert_same_bits(get(stream[0], count), get(stream[1], count), count);
    assert_same_bits(get(cache[0].data, cache_count(c)), get(cache[1].data, cache_count(c)),
                     cache_count(c));
}

static void rope_store_is_rope_and_store(void **state)
{
    static const struct sequence decodes[] = {{0, 1}, {5, 1}, {23, 1}, {24, 1}, {100, 1}};
    static const int dims[] = {8, 96, 128, 160};

    (void)state;
    if (h.backend->rope_store == NULL)
        skip();
    for (int i = 0; i < 8; i++) {
        struct scene c = {.heads = 1 + i,
                          .group = 1 + i,
                          .kv_heads = i % 3 == 0 ? 2 : 1,
                          .dim = dims[i % 4],
                          .block_tokens = i < 4 ? 16 : 0,
                          .ring = i < 4 ? 0 : 24,
                          .slots = 5,
                          .sequences = 5,
                          .sequence = decodes};
        check_rope_store(&c);
        harness_sweep(NULL);
    }
}

/* One sequence in pieces through attention and kv_store, as steps would do it; returns all rows. */
static float *run_cut(const struct scene *whole, const int *pieces, int count)
{
    int width = whole->heads * whole->dim, total = whole->sequence[0].tokens, done = 0;
    float *all = host_memory((size_t)(total * width), sizeof(float));
    const struct sequence nothing = {0, total};
    struct scene piece = *whole;
    int ld = piece.kv_heads * piece.dim;
    struct kv_cache cache;

    piece.sequence = &nothing; /* an empty cache */
    cache = make_cache(&piece, false);
    for (int i = 0; i < count; i++) {
        struct sequence now = {done, pieces[i]};
        piece.sequence = &now;
        piece.batch = make_batch_at(&now, 1, whole->batch->host_slots);
        piece.q = whole->q + done * width;
        struct kv_store_op store = {.batch = piece.batch,
                                    .ld_kv = ld,
                                    .k = put_new(&piece, piece.k, ld),
                                    .v = put_new(&piece, piece.v, ld),
                                    .cache = cache};
        if (piece.ring == 0)
            MUST(h.backend->kv_store(h.device, &store));
        struct result got = scene_run(&piece, &cache);
        if (piece.ring > 0)
            MUST(h.backend->kv_store(h.device, &store));
        memcpy(all + done * width, got.out, (size_t)(pieces[i] * width) * sizeof(float));
        done += pieces[i];
    }
    assert_int_equal(done, total);
    return all;
}

static void a_cut_sequence_has_the_same_bits(void **state)
{
    enum { TOTAL = 150 };
    static const int whole[] = {TOTAL}, cuts[] = {1, 2, 3, 60, 1, 1, 64, 18};
    const struct sequence sequence = {0, TOTAL};
    float *one, *other;

    (void)state;
    for (int ring = 0; ring <= 40; ring += 40) {
        struct scene c = {.heads = 2,
                          .group = 2,
                          .kv_heads = 1,
                          .dim = 32,
                          .window = ring,
                          .ring = ring,
                          .block_tokens = 16,
                          .slots = 2,
                          .sequences = 1,
                          .sequence = &sequence};
        scene_make(&c);
        one = run_cut(&c, whole, 1);
        other = run_cut(&c, cuts, 8);
        if (h.exact) {
            assert_same_bits(one, other, TOTAL * 2 * 32);
        } else {
            double *want = host_memory(TOTAL * 2 * 32, sizeof(double));
            for (int i = 0; i < TOTAL * 2 * 32; i++)
                want[i] = one[i];
            assert_close("cut", other, want, TOTAL * 2 * 32, 0.0, 1e-2);
        }
        harness_sweep(NULL);
    }
}

/* Sequence s of the scene alone gives the bits that it has among the others. */
static void check_alone(const struct scene *c, int s, const struct kv_cache *cache,
                        const struct result *all)
{
    struct scene alone = *c;
    int start = c->batch->host_starts[s], width = c->heads * c->dim;

    alone.sequences = 1;
    alone.sequence = c->sequence + s;
    alone.k = c->k + s;
    alone.v = c->v + s;
    alone.q = c->q + start * width;
    alone.batch = make_batch_at(alone.sequence, 1, c->batch->host_slots + s);
    struct result got = scene_run(&alone, cache);
    assert_same_bits(got.out, all->out + start * width, (size_t)(alone.batch->tokens * width));
    assert_same_bits(got.lse, all->lse + start * c->heads,
                     (size_t)(alone.batch->tokens * c->heads));
}

static void a_sequence_has_the_same_bits_in_any_batch(void **state)
{
    struct scene c = {.heads = 4,
                      .group = 2,
                      .kv_heads = 2,
                      .dim = 16,
                      .window = 30,
                      .ring = 30,
                      .slots = RAGGED,
                      .sequences = RAGGED,
                      .sequence = ragged_sequences};

    (void)state;
    if (!h.exact)
        skip();
    scene_make(&c);
    struct kv_cache cache = make_cache(&c, false);
    struct result all = scene_run(&c, &cache);
    for (int s = 0; s < RAGGED; s++)
        check_alone(&c, s, &cache, &all);
}

/* Shapes that a back end may give its fast form: head_dim 128, several tiles of keys, tiles that
 * the context, the window, the ring or the sequence's end cuts. The last is a ring that no sequence
 * fills, shorter than its window: as long as a sequence may become. */
static const struct sequence tiled_sequences[] = {{300, 1}, {0, 130},   {100, 60}, {256, 200},
                                                  {64, 64}, {383, 129}, {700, 3}};
enum { TILED = sizeof(tiled_sequences) / sizeof(tiled_sequences[0]) };

static const struct {
    int window, ring;
} tiled_forms[] = {{0, 0}, {150, 0}, {200, 256}, {100, 100}, {2000, 768}};
enum { TILED_FORMS = sizeof(tiled_forms) / sizeof(tiled_forms[0]) };

static struct scene tiled_scene(int form)
{
    return (struct scene){.heads = 5,
                          .group = 3,
                          .group_offset = 1,
                          .kv_heads = 2,
                          .dim = 128,
                          .window = tiled_forms[form].window,
                          .ring = tiled_forms[form].ring,
                          .block_tokens = 64,
                          .slots = TILED + 1,
                          .sequences = TILED,
                          .sequence = tiled_sequences};
}

static void tiled_attention_agrees_with_float64(void **state)
{
    (void)state;
    for (int form = 0; form < TILED_FORMS; form++) {
        struct scene c = tiled_scene(form);
        scene_test(&c, c.ring == 0);
        harness_sweep(NULL);
    }
}

/* A back end cuts the keys of a long context among many blocks, and joins what they found. */
static void long_contexts_agree_with_float64(void **state)
{
    static const struct sequence sequence[] = {{12000, 1}, {1023, 1}, {5000, 1}, {4095, 66}};
    struct scene c = {.heads = 2,
                      .group = 2,
                      .kv_heads = 1,
                      .dim = 128,
                      .block_tokens = 64,
                      .slots = 4,
                      .sequences = 4,
                      .sharpness = 2.5, /* else nearly nothing is left of so many values */
                      .sequence = sequence};

    (void)state;
    scene_test(&c, true);
}

/* Scores that grow by far more than a float's exponent holds, from the newest key to older ones and
 * the other way. */
static void large_scores_agree_with_float64(void **state)
{
    (void)state;
    for (int form = 0; form < TILED_FORMS - 1; form++) {
        struct scene c = tiled_scene(form);
        c.sharpness = form % 2 == 0 ? 150.0 : 30.0;
        scene_test(&c, c.ring == 0);
        harness_sweep(NULL);
    }
}

/* On any back end: alone as in a batch, and whole as in pieces (of more than one token). */
static void tiled_attention_has_the_same_bits(void **state)
{
    enum { TOTAL = 420 };
    static const int whole[] = {TOTAL}, cuts[] = {130, 2, 60, 200, 28};
    const struct sequence sequence = {0, TOTAL};

    (void)state;
    for (int form = 0; form < TILED_FORMS; form++) {
        struct scene c = tiled_scene(form);
        scene_make(&c);
        struct kv_cache cache = make_cache(&c, c.ring == 0);
        struct result all = scene_run(&c, &cache);
        for (int s = 0; s < TILED; s++)
            check_alone(&c, s, &cache, &all);
        harness_sweep(NULL);

        c.sequences = 1;
        c.sequence = &sequence;
        scene_make(&c);
        float *one = run_cut(&c, whole, 1), *other = run_cut(&c, cuts, 5);
        assert_same_bits(one, other, (size_t)(TOTAL * c.heads * c.dim));
        harness_sweep(NULL);
    }
}

#define TEST(name) cmocka_unit_test_teardown(name, harness_sweep)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(paged_attention_agrees_with_float64), TEST(ring_attention_agrees_with_float64),
        TEST(a_rank_may_begin_inside_a_group),     TEST(store_writes_pages),
        TEST(store_wraps_around_the_ring),         TEST(rope_store_is_rope_and_store),
        TEST(a_cut_sequence_has_the_same_bits),    TEST(a_sequence_has_the_same_bits_in_any_batch),
        TEST(tiled_attention_agrees_with_float64), TEST(long_contexts_agree_with_float64),
        TEST(large_scores_agree_with_float64),     TEST(tiled_attention_has_the_same_bits),
    };

    return harness_run(tests);
}
