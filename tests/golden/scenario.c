#include "tests/golden/scenario.h"

#include <math.h>
#include <string.h>

/* A sequence that is fed to a slot: the fixture's prompt, then what was sampled. */
struct feed {
    int slot, position, blocks;
    bool counted;
    struct sample_row sample; /* of its draws */
    int next_block;           /* blocks are taken from here upwards */
};

static struct feed feed_make(int slot)
{
    return (struct feed){
        .slot = slot,
        .sample = {.slot = slot, .target = -1, .top_p = 1, .repetition = 1, .tops = 5},
        .next_block = slot * 25};
}

static void add_sequence(struct rig *rig, struct feed *feed, int tokens, const int32_t *ids)
{
    int32_t blocks[64];
    int fresh = 0, end = feed->position + tokens;
    for (; (feed->blocks + fresh) * rig->shape.block_tokens < end; fresh++)
        blocks[fresh] = feed->next_block + feed->blocks + fresh;
    struct step_sequence sequence = {.slot = feed->slot,
                                     .tokens = tokens,
                                     .context = feed->position,
                                     .new_blocks = fresh,
                                     .counted = feed->counted};
    if (step_add_sequence(rig->builder, &sequence, ids, blocks) != STATUS_OK)
        rig_fail(rig, "no room for a sequence");
    feed->position = end;
    feed->blocks += fresh;
}

static void add_row(struct rig *rig, int token, struct sample_row sample)
{
    struct step_row row = {.token = token, .sample = sample};
    if (step_add_row(rig->builder, row, NULL, NULL) != STATUS_OK)
        rig_fail(rig, "no room for a row");
}

/* The next `tokens` of the prompt; scored where the following token is known, sampled at its end.
 */
static void add_prompt(struct rig *rig, struct feed *feed, int tokens, bool scored)
{
    const struct fixture *f = rig->fixture;
    int first = step_tokens(rig->builder), begin = feed->position;
    add_sequence(rig, feed, tokens, f->prompt + begin);
    for (int i = 0; i < tokens; i++) {
        struct sample_row sample = feed->sample;
        bool last = begin + i + 1 == f->prompt_count;
        if (!last && !scored)
            continue;
        if (!last)
            sample.target = f->prompt[begin + i + 1];
        add_row(rig, first + i, sample);
    }
}

static void add_decode(struct rig *rig, struct feed *feed)
{
    int32_t newest = -1 - feed->slot;
    int token = step_tokens(rig->builder);
    add_sequence(rig, feed, 1, &newest);
    feed->sample.draw++;
    add_row(rig, token, feed->sample);
}

static void trace_add(struct trace *trace, const struct sample_result *result)
{
    trace->token[trace->rows] = result->token;
    trace->logprob[trace->rows++] = result->logprob;
}

/* ---- against the fixture ------------------------------------------------------------------ */

static bool near(struct rig *rig, double value, double expected)
{
    double error = value - expected, most = 2e-4 * rig_slack * (rig_slack > 1 ? 5 : 1);
    rig->error_squares += error * error;
    rig->errors++;
    return fabs(error) <= most;
}

static void check_errors(struct rig *rig)
{
    double mean = rig->errors > 0 ? sqrt(rig->error_squares / rig->errors) : 0;
    if (!(mean <= 2e-4 * rig_slack))
        rig_fail(rig, "log-probabilities: root mean square error %g", mean);
    if (rig_slack > 1)
        fprintf(stderr, "log-probabilities: root mean square error %.4f of %d\n", mean,
                rig->errors);
}

static void check_row(struct rig *rig, int position, const struct sample_result *result)
{
    const struct fixture *f = rig->fixture;
    double expected = fixture_logprob(f, position, result->token);
    if (!near(rig, result->logprob, expected))
        rig_fail(rig, "position %d: log-probability %g, expected %g", position,
                 (double)result->logprob, expected);
    if (result->tops != 5)
        rig_fail(rig, "position %d: %d tops", position, result->tops);
    for (int i = 0; i < result->tops; i++) {
        double top = fixture_logprob(f, position, result->top[i].id);
        int better = 0;
        for (int id = 0; id < f->vocab; id++)
            better +=
                fixture_logprob(f, position, id) > top + 4e-4 * rig_slack * (rig_slack > 1 ? 5 : 1);
        if (!near(rig, result->top[i].value, top) || better > i)
            rig_fail(rig, "position %d, top %d: id %d with %g, expected %g; %d are better",
                     position, i, result->top[i].id, (double)result->top[i].value, top, better);
    }
    if (result->is_argmax != (result->tops > 0 && result->top[0].id == result->token))
        rig_fail(rig, "position %d: is_argmax is %d", position, result->is_argmax);
}

/* The whole prompt in chunks; every result is kept in order when a trace is given. */
static void run_prompt(struct rig *rig, struct feed *feed, const struct chunks *chunks, bool check,
                       struct trace *trace)
{
    int total = rig->fixture->prompt_count;
    for (int i = 0; feed->position < total; i++) {
        int left = total - feed->position, begin = feed->position;
        int size = chunks != NULL && chunks->size[i] > 0 ? chunks->size[i] : left;
        size = size < left ? size : left;
        rig_begin(rig);
        add_prompt(rig, feed, size, true);
        rig_run(rig);
        for (int t = 0; t < size; t++) {
            if (check)
                check_row(rig, begin + t, &rig->results[t]);
            if (trace != NULL)
                trace_add(trace, &rig->results[t]);
        }
    }
}

/* Greedy decoding from the token drawn at the prompt's end, `first`. */
static void run_greedy(struct rig *rig, struct feed *feed, int32_t first)
{
    const struct fixture *f = rig->fixture;
    size_t count;
    const float *margin = fixture_tensor(f, "greedy_margin", &count);
    int32_t token = first;
    for (int i = 0; i < f->greedy_count; i++) {
        bool close = rig_slack > 1 && margin[i] < 2 * 2e-4 * rig_slack;
        if (token != f->greedy[i] && close)
            return; /* rounding may choose the other of two; what follows has other words */
        if (token != f->greedy[i])
            rig_fail(rig, "greedy token %d is %d, expected %d", i, token, f->greedy[i]);
        if (i + 1 == f->greedy_count)
            return;
        rig_begin(rig);
        add_decode(rig, feed);
        rig_run(rig);
        token = rig->results[0].token;
    }
}

static int32_t newest_token(const struct trace *trace)
{
    return trace->token[trace->rows - 1];
}

void scenario_golden(struct rig *rig, void *chunks)
{
    struct feed feed = feed_make(3);
    struct trace trace = {.rows = 0};
    run_prompt(rig, &feed, chunks, true, &trace);
    check_errors(rig);
    rig_check_state(rig, feed.slot);
    run_greedy(rig, &feed, newest_token(&trace));
}

/* ---- the same bits ------------------------------------------------------------------------- */

enum { DECODES = 12 };

static void trace_compare(struct rig *rig, const char *what, const struct trace *a,
                          const struct trace *b)
{
    if (a->rows != b->rows)
        rig_fail(rig, "%s: %d rows, not %d", what, b->rows, a->rows);
    for (int i = 0; i < a->rows && i < b->rows; i++) {
        if (a->token[i] != b->token[i] ||
            memcmp(&a->logprob[i], &b->logprob[i], sizeof a->logprob[i]) != 0) {
            rig_fail(rig, "%s: row %d is token %d (%a), alone it was %d (%a)", what, i, b->token[i],
                     (double)b->logprob[i], a->token[i], (double)a->logprob[i]);
            return;
        }
    }
}

static void run_alone(struct rig *rig, int slot, const struct chunks *chunks, struct trace *trace)
{
    struct feed feed = feed_make(slot);
    trace->rows = 0;
    run_prompt(rig, &feed, chunks, false, trace);
    for (int i = 0; i < DECODES; i++) {
        rig_begin(rig);
        add_decode(rig, &feed);
        rig_run(rig);
        trace_add(trace, &rig->results[0]);
    }
}

static struct feed feed_counted(int slot)
{
    struct feed feed = feed_make(slot);
    feed.counted = true;
    feed.sample.flags = SAMPLE_COUNTED;
    feed.sample.presence = feed.sample.frequency = 1.5f;
    return feed;
}

/* Greedy tokens under penalties, which must know nothing of who had the slot before. */
static void run_counted(struct rig *rig, struct trace *trace)
{
    struct feed feed = feed_counted(3);
    trace->rows = 0;
    run_prompt(rig, &feed, NULL, false, trace);
    for (int i = 0; i < DECODES; i++) {
        rig_begin(rig);
        add_decode(rig, &feed);
        rig_run(rig);
        trace_add(trace, &rig->results[0]);
    }
    for (int i = 1; i <= DECODES; i++) { /* the penalty is strong: few tokens come twice */
        int again = 0;
        for (int j = 1; j <= DECODES; j++)
            again += trace->token[trace->rows - i] == trace->token[trace->rows - j];
        if (again > 3)
            rig_fail(rig, "a penalised token came %d times", again);
    }
}

/* The sequence of slot 2 in ragged chunks, while slots 0 and 5 decode and slots 1 and 4 prefill
 * beside it in pieces of other sizes. */
static void run_among_others(struct rig *rig, struct trace *trace)
{
    int total = rig->fixture->prompt_count;
    struct feed a = feed_make(0), b = feed_make(5), c = feed_make(1), d = feed_make(4);
    struct feed subject = feed_make(2);
    run_prompt(rig, &a, NULL, false, NULL);
    run_prompt(rig, &b, NULL, false, NULL);
    trace->rows = 0;
    for (int turn = 0; subject.position < total + DECODES; turn++) {
        bool decoding = subject.position >= total;
        int left = total - subject.position, size = 2 + turn * 7 % 31;
        size = left - size >= 2 ? size : left;
        rig_begin(rig);
        add_decode(rig, &a);
        if (decoding)
            add_decode(rig, &subject);
        add_decode(rig, &b);
        int row = decoding ? 1 : 2;
        if (c.position + 17 < total) {
            add_prompt(rig, &c, 17, true);
            row += decoding ? 0 : 17;
        }
        if (!decoding)
            add_prompt(rig, &subject, size, true);
        if (d.position + 5 < total)
            add_prompt(rig, &d, 5, false);
        rig_run(rig);
        for (int i = 0; i < (decoding ? 1 : size); i++)
            trace_add(trace, &rig->results[row + i]);
    }
}

void scenario_invariance(struct rig *rig, void *unused)
{
    static const struct chunks cuts[] = {
        {{1, 2, 3, 7, 64, 1, 1, 40, 2}},
        {{64, 64}},
        {{5, 11, 16, 16, 17, 31, 3, 39, 41, 1}},
    };
    struct trace whole, other;
    (void)unused;
    run_alone(rig, 0, NULL, &whole);
    for (size_t i = 0; i < sizeof cuts / sizeof *cuts; i++) {
        run_alone(rig, 2, &cuts[i], &other); /* a used slot from the second time on */
        trace_compare(rig, "in chunks", &whole, &other);
    }
    run_among_others(rig, &other);
    trace_compare(rig, "among others", &whole, &other);
    run_counted(rig, &whole);
    run_counted(rig, &other);
    trace_compare(rig, "in a slot with old counts", &whole, &other);
}

/* ---- batch-size classes ---------------------------------------------------------------------- */

/* A step in which the first `size` feeds decode, each against the trace of one that was alone. */
static void run_size(struct rig *rig, struct feed *feeds, int size, const struct trace *plain,
                     const struct trace *counted)
{
    enum { UNTOUCHED = -77 };
    int first = rig->fixture->prompt_count;
    rig_begin(rig);
    for (int i = 0; i < size; i++)
        add_decode(rig, &feeds[i]);
    rig->results[size].token = UNTOUCHED;
    rig_run(rig);
    for (int i = 0; i < size; i++) {
        const struct trace *alone = feeds[i].counted ? counted : plain;
        const struct sample_result *result = &rig->results[i];
        int row = feeds[i].position - 1;
        if (result->token != alone->token[row] || result->tops != 5 ||
            memcmp(&result->logprob, &alone->logprob[row], sizeof result->logprob) != 0)
            rig_fail(rig, "%d decode, %d after the prompt: slot %d gave %d (%a), alone %d (%a)",
                     size, row - first, i, result->token, (double)result->logprob,
                     alone->token[row], (double)alone->logprob[row]);
    }
    if (rig->results[size].token != UNTOUCHED)
        rig_fail(rig, "%d decode: a row more came", size);
}

void scenario_classes(struct rig *rig, void *unused)
{
    static const int sizes[DECODES] = {9, 17, 19, 3, 12, 10, 18, 9, 1, 19, 9, 17};
    struct trace plain, counted;
    struct feed feeds[RIG_SLOTS];
    (void)unused;
    run_alone(rig, 7, NULL, &plain);
    run_counted(rig, &counted);
    for (int i = 0; i < RIG_SLOTS; i++) {
        feeds[i] = i % 2 ? feed_counted(i) : feed_make(i);
        run_prompt(rig, &feeds[i], NULL, false, NULL);
    }
    for (int i = 0; i < DECODES; i++)
        run_size(rig, feeds, sizes[i], &plain, &counted);
}

void scenario_shapes(struct rig *rig, void *unused)
{
    struct feed feeds[9];
    struct trace plain;
    (void)unused;
    run_alone(rig, 11, NULL, &plain);
    for (int rows = 1; rows <= 80; rows += rows < 8 ? 1 : 8) {
        for (int how = 0; how < 2 * 9; how++) {
            int size = how / 2 + 1;
            rig_begin(rig);
            for (int i = 0; i < size; i++) {
                feeds[i] = feed_make(i); /* anew: one token, whatever the slot held */
                add_sequence(rig, &feeds[i], 1, rig->fixture->prompt);
            }
            for (int i = 0; i < rows; i++) {
                struct sample_row sample = feeds[0].sample;
                sample.target = rig->fixture->prompt[1];
                sample.tops = how % 2;
                add_row(rig, 0, sample);
            }
            rig_run(rig);
            for (int i = 0; i < rows; i++)
                if (memcmp(&rig->results[i].logprob, &plain.logprob[0], sizeof(float)) != 0)
                    rig_fail(rig, "%d decode, %d rows: row %d is %a, alone it was %a", size, rows,
                             i, (double)rig->results[i].logprob, (double)plain.logprob[0]);
        }
    }
}

/* ---- sampling ------------------------------------------------------------------------------- */

void scenario_sampling(struct rig *rig, void *trace)
{
    static const struct sample_row how[] = {
        {.temperature = 1.0f, .top_p = 1, .repetition = 1},
        {.temperature = 1.5f, .top_p = 0.9f, .repetition = 1},
        {.temperature = 2.0f, .top_p = 1, .top_k = 7, .repetition = 1},
        {.temperature = 1.2f, .top_p = 0.95f, .top_k = 40, .min_p = 0.02f, .repetition = 1},
        {.temperature = 0.0f, .top_p = 1, .repetition = 1.3f, .presence = 0.5f, .frequency = 0.2f},
        {.temperature = 0.9f, .top_p = 0.8f, .repetition = 1.1f, .frequency = 0.4f},
    };
    enum { FEEDS = sizeof how / sizeof *how };
    struct feed feeds[FEEDS];
    ((struct trace *)trace)->rows = 0;
    for (int i = 0; i < FEEDS; i++) {
        feeds[i] = feed_make(i);
        feeds[i].sample = how[i];
        feeds[i].sample.slot = i;
        feeds[i].sample.target = -1;
        feeds[i].sample.seed = UINT64_C(77) + (uint64_t)i;
        feeds[i].counted = how[i].repetition != 1;
        feeds[i].sample.flags = feeds[i].counted ? SAMPLE_COUNTED : 0;
        rig_begin(rig);
        add_prompt(rig, &feeds[i], rig->fixture->prompt_count, false);
        rig_run(rig);
        trace_add(trace, &rig->results[0]);
    }
    for (int step = 0; step < 24; step++) {
        rig_begin(rig);
        for (int i = 0; i < FEEDS; i++)
            add_decode(rig, &feeds[i]);
        rig_run(rig);
        for (int i = 0; i < FEEDS; i++)
            trace_add(trace, &rig->results[i]);
    }
}

/* ---- one distribution, drawn from often ------------------------------------------------------ */

enum { DRAWS = 300 };

/* Tokens of the prompt by count, and the token that biases and bans are about. */
struct adjusted {
    double logit[2048];
};

/* The formulas, plainly: penalties over the prompt, bias, ban, temperature. */
static void adjust_plainly(const struct fixture *f, const struct sample_row *how, int biased,
                           float bias, int banned, struct adjusted *out)
{
    const float *row = f->logits + (size_t)(f->prompt_count - 1) * (size_t)f->vocab;
    for (int id = 0; id < f->vocab; id++) {
        double logit = row[id] + (id == biased ? bias : 0);
        bool seen = false;
        for (int i = 0; i < f->prompt_count; i++)
            seen |= f->prompt[i] == id;
        if (seen && (how->flags & SAMPLE_COUNTED))
            logit = logit > 0 ? logit / how->repetition : logit * how->repetition;
        if (id == banned)
            logit = -INFINITY;
        out->logit[id] = how->temperature > 0 ? logit / how->temperature : logit;
    }
}

/* Probabilities after top-k, then top-p of what is left, then min-p. */
static void cut_plainly(const struct fixture *f, const struct sample_row *how,
                        const struct adjusted *adjusted, double *probability)
{
    int order[2048] = {0}, kept = f->vocab;
    double most = -INFINITY, sum = 0, reached = 0;
    for (int i = 0; i < f->vocab; i++) {
        int at = i;
        for (; at > 0 && adjusted->logit[order[at - 1]] < adjusted->logit[i]; at--)
            order[at] = order[at - 1];
        order[at] = i;
        probability[i] = 0;
    }
    most = adjusted->logit[order[0]];
    if (how->top_k > 0 && how->top_k < kept)
        kept = how->top_k;
    for (int i = 0; i < kept; i++)
        sum += exp(adjusted->logit[order[i]] - most);
    for (int i = 0; i < kept; i++) {
        if (reached >= how->top_p * sum && how->top_p < 1)
            kept = i;
        reached += exp(adjusted->logit[order[i]] - most);
    }
    while (kept > 1 && exp(adjusted->logit[order[kept - 1]] - most) < how->min_p)
        kept--;
    sum = 0;
    for (int i = 0; i < kept; i++)
        sum += exp(adjusted->logit[order[i]] - most);
    for (int i = 0; i < kept; i++)
        probability[order[i]] = exp(adjusted->logit[order[i]] - most) / sum;
}

/* Total variation between what was drawn and what should be, over groups of ids where there are
 * many, each with at least `least` of the probability. */
static double distance_of(const int *drawn, const double *probability, int vocab, double least,
                          int *groups)
{
    double distance = 0, mass = 0;
    int hits = 0;
    *groups = 0;
    for (int id = 0; id < vocab; id++) {
        mass += probability[id];
        hits += drawn[id];
        if (mass <= least && id + 1 < vocab)
            continue;
        distance += 0.5 * fabs(hits / (double)DRAWS - mass);
        *groups += mass > 0;
        mass = 0;
        hits = 0;
    }
    return distance;
}

/* What was drawn against what should be; how many lay outside. */
static void check_draws(struct rig *rig, int which, const double *probability, int vocab)
{
    int drawn[2048] = {0}, outside = 0, support = 0, groups;
    for (int i = 0; i < DRAWS; i++) {
        int32_t token = rig->results[i].token;
        if (token < 0 || token >= vocab || probability[token] == 0)
            outside++;
        else
            drawn[token]++;
        double expected =
            token < 0 ? 0 : fixture_logprob(rig->fixture, rig->fixture->prompt_count - 1, token);
        if (!(fabs(rig->results[i].logprob - expected) <= 2e-4))
            rig_fail(rig, "draws %d: log-probability %g of %d, raw %g", which,
                     (double)rig->results[i].logprob, token, expected);
    }
    for (int id = 0; id < vocab; id++)
        support += probability[id] > 0;
    double distance = distance_of(drawn, probability, vocab, support <= 60 ? 0 : 0.025, &groups);
    /* expected distance of an honest sample: about sqrt(groups / (2 pi draws)) */
    double bound = 1.4 * sqrt(groups / (6.28 * DRAWS));
    if (outside > 0 || distance > bound)
        rig_fail(rig, "draws %d: %d outside, distance %g over %d groups, bound %g", which, outside,
                 distance, groups, bound);
}

void scenario_draws(struct rig *rig, void *unused)
{
    const struct fixture *f = rig->fixture;
    static const struct sample_row how[] = {
        {.temperature = 1.0f, .top_p = 1, .repetition = 1},
        {.temperature = 0.7f, .top_p = 1, .repetition = 1, .top_k = 5},
        {.temperature = 1.5f, .top_p = 0.6f, .repetition = 1},
        {.temperature = 1.0f, .top_p = 0.8f, .repetition = 1, .top_k = 12},
        {.temperature = 1.0f, .top_p = 1, .repetition = 1, .min_p = 0.25f},
        {.temperature = 0.8f,
         .top_p = 0.9f,
         .repetition = 1.5f,
         .top_k = 30,
         .min_p = 0.05f,
         .flags = SAMPLE_COUNTED},
        {.temperature = 0, .top_p = 1, .repetition = 3.0f, .flags = SAMPLE_COUNTED},
        {.temperature = 1.0f, .top_p = 1, .repetition = 1, .top_k = 1},
    };
    const int32_t banned = f->greedy[0];
    const struct logit_bias bias = {.id = f->prompt[3], .value = 3.5f};
    struct adjusted adjusted;
    double probability[2048];
    (void)unused;
    for (int i = 0; i < (int)(sizeof how / sizeof *how); i++) {
        struct feed feed = feed_make(i % 6);
        bool special = i % 2 == 1;
        feed.counted = how[i].flags != 0;
        rig_begin(rig);
        add_sequence(rig, &feed, f->prompt_count, f->prompt);
        for (int d = 0; d < DRAWS; d++) {
            struct step_row row = {.token = f->prompt_count - 1, .sample = how[i]};
            row.sample.slot = feed.slot;
            row.sample.target = -1;
            row.sample.seed = 1234567 + (uint64_t)i;
            row.sample.draw = (uint64_t)d;
            row.sample.bias_count = row.sample.ban_count = special;
            if (step_add_row(rig->builder, row, &bias, &banned) != STATUS_OK)
                rig_fail(rig, "no room for a row");
        }
        rig_run(rig);
        adjust_plainly(f, &how[i], special ? bias.id : -1, bias.value, special ? banned : -1,
                       &adjusted);
        if (how[i].temperature == 0) {
            struct sample_row greedy = {.top_p = 1, .top_k = 1};
            cut_plainly(f, &greedy, &adjusted, probability);
        } else {
            cut_plainly(f, &how[i], &adjusted, probability);
        }
        check_draws(rig, i, probability, f->vocab);
    }
}

/* ---- logits that are not finite -------------------------------------------------------------- */

void scenario_poisoned(struct rig *rig, void *unused)
{
    const struct fixture *f = rig->fixture;
    struct feed sick = feed_make(0), well = feed_make(1);
    (void)unused;
    for (int half = 0; half < 2; half++) { /* the prompts are too long for one step */
        rig_begin(rig);
        add_prompt(rig, &sick, f->prompt_count / 2, false);
        add_prompt(rig, &well, f->prompt_count / 2, false);
        rig_run(rig);
    }
    if (rig->results[0].token != -1 || rig->results[0].tops != 0)
        rig_fail(rig, "poisoned row gave token %d", rig->results[0].token);
    if (rig->results[1].token != f->greedy[0])
        rig_fail(rig, "its neighbour gave %d, expected %d", rig->results[1].token, f->greedy[0]);
    check_row(rig, f->prompt_count - 1, &rig->results[1]);
    for (int i = 1; i < 4; i++) {
        rig_begin(rig);
        add_decode(rig, &sick);
        add_decode(rig, &well);
        rig_run(rig);
        if (rig->results[1].token != f->greedy[i])
            rig_fail(rig, "greedy token %d beside a poisoned row is %d", i, rig->results[1].token);
    }
}
