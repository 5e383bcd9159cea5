/* A request's running form: what lasts as long as it does is allocated here, in the submitting
 * thread. Deltas are made as they come; one that finds no memory ends its choice. */
#include <math.h>
#include <stdlib.h>

#include "daemon/engine_private.h"

/* ---- checks ------------------------------------------------------------------------------- */
/* Front ends check too and name their own fields; these keep a wrong caller from failing a step on
 * every rank. */

static enum status ids_check(const char *field, const int32_t *ids, int count, int vocab,
                             struct error *error)
{
    for (int i = 0; i < count; i++) {
        if (ids[i] < 0 || ids[i] >= vocab)
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s[%d]: %d is not below %d", field, i,
                             ids[i], vocab);
    }
    return STATUS_OK;
}

static enum status sampling_check(const struct sampling *s, int vocab, struct error *error)
{
    const struct {
        const char *field;
        float value;
        bool good;
    } numbers[] = {
        {"temperature", s->temperature, s->temperature >= 0},
        {"top_p", s->top_p, s->top_p > 0 && s->top_p <= 1},
        {"min_p", s->min_p, s->min_p >= 0 && s->min_p <= 1},
        {"top_k", (float)s->top_k, s->top_k >= 0},
        {"repetition_penalty", s->repetition, s->repetition > 0},
        {"presence_penalty", s->presence, true},
        {"frequency_penalty", s->frequency, true},
        {"logit_bias", (float)s->biases, s->biases >= 0 && s->biases <= REQUEST_BIASES_MAX},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        if (!isfinite(numbers[i].value) || !numbers[i].good)
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s: %g is out of range",
                             numbers[i].field, (double)numbers[i].value);
    }
    for (int i = 0; i < s->biases; i++) {
        if (s->bias[i].id < 0 || s->bias[i].id >= vocab || !isfinite(s->bias[i].value))
            return error_set(error, STATUS_INVALID_ARGUMENT, "logit_bias[%d]: id %d, value %g", i,
                             s->bias[i].id, (double)s->bias[i].value);
    }
    return STATUS_OK;
}

static enum status counts_check(const struct request_spec *spec, struct error *error)
{
    bool generate = spec->kind == REQUEST_GENERATE;
    const struct {
        const char *field;
        int value, least, most;
    } counts[] = {
        {"prompt", spec->prompt_tokens, 1, INT32_MAX},
        {"max_new_tokens", spec->max_new_tokens, generate ? 1 : 0, INT32_MAX},
        {"min_new_tokens", spec->min_new_tokens, 0, generate ? spec->max_new_tokens : INT32_MAX},
        {"n", spec->choices, generate ? 1 : 0, generate ? REQUEST_CHOICES_MAX : 1},
        {"logprobs", spec->logprobs, -1, SAMPLE_TOP_MAX},
        {"stop", spec->stop_count, 0, REQUEST_STOPS_MAX},
        {"stop_token_ids", spec->stop_id_count, 0, REQUEST_STOP_IDS_MAX},
    };
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        if (counts[i].value < counts[i].least || counts[i].value > counts[i].most)
            return error_set(error, STATUS_INVALID_ARGUMENT, "%s: %d is not within %d .. %d",
                             counts[i].field, counts[i].value, counts[i].least, counts[i].most);
    }
    return STATUS_OK;
}

static enum status spec_check(const struct engine *engine, const struct request_spec *spec,
                              struct error *error)
{
    int vocab = engine->shape.vocab;
    enum status status = counts_check(spec, error);
    if (status == STATUS_OK)
        status = ids_check("prompt", spec->prompt, spec->prompt_tokens, vocab, error);
    if (status == STATUS_OK && spec->kind == REQUEST_GENERATE)
        status = sampling_check(&spec->sampling, vocab, error);
    if (status == STATUS_OK)
        status = ids_check("stop_token_ids", spec->stop_ids, spec->stop_id_count, vocab, error);
    for (int i = 0; status == STATUS_OK && i < spec->stop_count; i++) {
        if (spec->stops[i].length > REQUEST_STOP_BYTES_MAX)
            status = error_set(error, STATUS_INVALID_ARGUMENT, "stop[%d]: %zu bytes, at most %d", i,
                               spec->stops[i].length, REQUEST_STOP_BYTES_MAX);
    }
    if (status == STATUS_OK && (spec->text || spec->stop_count > 0) &&
        engine->options.tokenizer == NULL)
        status = error_set(error, STATUS_FAILED_PRECONDITION, "%s: the model has no tokenizer",
                           spec->text ? "text" : "stop");
    return status;
}

/* ---- parts -------------------------------------------------------------------------------- */

bool job_stops_at(const struct job *job, int32_t id)
{
    for (int i = 0; i < job->stop_ids; i++) {
        if (job->stop_id[i] == id)
            return true;
    }
    return false;
}

static void job_stop_add(struct job *job, int32_t id, int vocab)
{
    if (id >= 0 && id < vocab && !job_stops_at(job, id))
        job->stop_id[job->stop_ids++] = id;
}

static bool job_stops_fill(struct job *job, const struct engine *engine)
{
    const struct request_spec *spec = job->spec;
    if (spec->stop_count > 0 && (job->stops = stops_create(spec->stops, spec->stop_count)) == NULL)
        return false;
    const struct model_config *model = &engine->options.plan->model;
    job->stop_id =
        calloc((size_t)(spec->stop_id_count + model->eos_count) + 1, sizeof *job->stop_id);
    if (job->stop_id == NULL)
        return false;
    for (int i = 0; i < spec->stop_id_count; i++)
        job_stop_add(job, spec->stop_ids[i], engine->shape.vocab);
    for (int i = 0; i < model->eos_count && !spec->ignore_eos; i++)
        job_stop_add(job, model->eos[i], engine->shape.vocab);
    return true;
}

static int least(int a, int b)
{
    return a < b ? a : b;
}

/* Both kinds as inputs, rows and samples. The last prompt token of SCORE predicts nothing. */
static void entry_fill(struct entry *entry, const struct job *job)
{
    const struct request_spec *spec = job->spec;
    bool score = spec->kind == REQUEST_SCORE;
    bool rows = score || (spec->echo && spec->logprobs >= 0);
    *entry = (struct entry){
        .priority = spec->priority,
        .inputs = score ? spec->prompt_tokens - 1 : spec->prompt_tokens,
        .scored = rows ? spec->prompt_tokens - 1 : 0,
        .samples = score ? 0 : spec->max_new_tokens,
        .biases = score ? 0 : spec->sampling.biases,
        .bans = score ? 0 : least(spec->min_new_tokens, 1) * job->stop_ids,
        .slot = -1,
    };
}

static bool streams_open(struct sequence *sequence, const struct engine *engine)
{
    const struct request_spec *spec = sequence->job->spec;
    if (spec->kind == REQUEST_SCORE || (!spec->text && spec->stop_count == 0))
        return true;
    struct stream_options options = {.tokenizer = engine->options.tokenizer,
                                     .stops = sequence->job->stops,
                                     .include_stop = spec->include_stop,
                                     .min_tokens = spec->min_new_tokens};
    sequence->stream = stream_create(&options);
    if (sequence->stream == NULL)
        return false;
    sequence->echo_stream = sequence->stream;
    if (!spec->echo || !spec->text || spec->stop_count == 0)
        return true;
    options.stops = NULL; /* stop strings are looked for in the output only */
    sequence->echo_stream = stream_create(&options);
    return sequence->echo_stream != NULL;
}

static size_t stops_longest(const struct request_spec *spec)
{
    size_t longest = 0;
    for (int i = 0; i < spec->stop_count; i++)
        longest = spec->stops[i].length > longest ? spec->stops[i].length : longest;
    return longest;
}

static bool sequence_open(struct sequence *sequence, struct job *job, int index,
                          const struct engine *engine)
{
    const struct request_spec *spec = job->spec;
    sequence->job = job;
    sequence->index = index;
    sequence->seed = spec->sampling.seed + (uint64_t)index;
    entry_fill(&sequence->entry, job);
    struct event_room room = {.text = stops_longest(spec)};
    sequence->finished = event_create(EVENT_FINISHED, index, room);
    return sequence->finished != NULL && streams_open(sequence, engine);
}

static bool events_open(struct job *job)
{
    const struct request_spec *spec = job->spec;
    job->prompt = event_create(EVENT_PROMPT, 0, (struct event_room){0});
    if (job->prompt == NULL)
        return false;
    job->prompt->prompt_tokens = spec->prompt_tokens;
    job->prompt->seed = spec->sampling.seed;
    if (spec->kind != REQUEST_SCORE)
        return true;
    struct event_room room = {.ids = (size_t)spec->prompt_tokens,
                              .logprobs = (size_t)spec->prompt_tokens - 1,
                              .tops = spec->logprobs > 0 ? (size_t)spec->logprobs : 0};
    job->score = event_create(EVENT_SCORE, 0, room);
    if (job->score != NULL)
        event_add_ids(job->score, spec->prompt, spec->prompt_tokens);
    return job->score != NULL;
}

/* ---- life --------------------------------------------------------------------------------- */

static enum status fits_check(const struct engine *engine, const struct job *job,
                              struct error *error)
{
    const struct request_spec *spec = job->spec;
    const struct step_shape *shape = &engine->shape;
    const struct entry *entry = &job->sequence[0].entry;
    if (entry->inputs == 0 || scheduler_fits(engine->scheduler, entry))
        return STATUS_OK;
    return error_set(error, STATUS_INVALID_ARGUMENT,
                     "prompt of %d tokens and max_new_tokens %d can never fit: a sequence has at "
                     "most %d tokens, %d blocks of %d tokens exist",
                     spec->prompt_tokens, spec->max_new_tokens, shape->max_model_len,
                     shape->kv_blocks, shape->block_tokens);
}

enum status job_create(const struct engine *engine, struct request *request, struct job **out,
                       struct error *error)
{
    const struct request_spec *spec = &request->spec;
    enum status status = spec_check(engine, spec, error);
    if (status != STATUS_OK)
        return status;
    int choices = spec->kind == REQUEST_SCORE ? 1 : spec->choices;
    struct job *job = calloc(1, sizeof *job);
    if (job == NULL)
        return error_set(error, STATUS_RESOURCE_EXHAUSTED, "out of memory");
    const struct sampling *s = &spec->sampling;
    job->request = request;
    job->spec = spec;
    job->arrival = spec->arrival != 0 ? spec->arrival : clock_now();
    job->counted = spec->kind == REQUEST_GENERATE &&
                   (s->repetition != 1 || s->presence != 0 || s->frequency != 0);
    job->sequence = calloc((size_t)choices, sizeof *job->sequence);
    bool good = job->sequence != NULL && job_stops_fill(job, engine) && events_open(job);
    for (int i = 0; i < choices && good; i++) {
        job->choices = i + 1;
        good = sequence_open(&job->sequence[i], job, i, engine);
        if (good && i == 0)
            status = fits_check(engine, job, error);
        if (status != STATUS_OK)
            good = false;
    }
    if (good) {
        *out = job;
        return STATUS_OK;
    }
    job_destroy(job);
    return error_set(error, status != STATUS_OK ? status : STATUS_RESOURCE_EXHAUSTED,
                     "out of memory");
}

static void sequence_close(struct sequence *sequence)
{
    if (sequence->echo_stream != NULL && sequence->echo_stream != sequence->stream)
        stream_destroy(sequence->echo_stream);
    if (sequence->stream != NULL)
        stream_destroy(sequence->stream);
    event_free(sequence->finished);
}

void job_destroy(struct job *job)
{
    if (job == NULL)
        return;
    for (int i = 0; i < job->choices; i++)
        sequence_close(&job->sequence[i]);
    free(job->sequence);
    free(job->stop_id);
    stops_destroy(job->stops);
    event_free(job->prompt);
    event_free(job->score);
    free(job);
}
