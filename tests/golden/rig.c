#include "tests/golden/rig.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { COMMAND_STOP = -1 }; /* a message of one int32: stop, or the slot to check */

const struct backend *rig_backend;
int rig_ordinal;
bool rig_nccl;
bool rig_invariant;
double rig_slack = 1;

void rig_fail(struct rig *rig, const char *format, ...)
{
    if (rig->failures++ > 10)
        return;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "mesh %dx%d rank %d: ", rig->plan->mesh.tensor, rig->plan->mesh.pipeline,
            rig->fabric->rank);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
}

static void need(enum status status, const struct error *error, const char *what)
{
    if (status == STATUS_OK)
        return;
    fprintf(stderr, "%s: %s: %s\n", what, status_name(status), error ? error->text : "");
    exit(1);
}

struct rig *rig_open(struct fixture *fixture, struct mesh mesh, struct fabric *fabric)
{
    struct rig *rig = calloc(1, sizeof *rig);
    struct error error = {0};
    struct model_config config;
    struct checkpoint *checkpoint;
    /* odd sizes on purpose: blocks that chunks straddle, fewer slots than tokens, no whole number
     * of batch-size classes */
    struct limits limits = {.max_model_len = 400,
                            .max_num_seqs = RIG_SLOTS,
                            .max_num_batched_tokens = 320,
                            .block_tokens = 16};
    rig->fixture = fixture;
    rig->fabric = fabric;
    rig->backend = rig_backend != NULL ? rig_backend : backend_find("cpu");
    need(model_config_load(fixture->folder, &config, &error), &error, "config");
    need(plan_make(&config, mesh, limits, rig->backend->activation, &rig->plan, &error), &error,
         "plan");
    need(checkpoint_open(fixture->folder, &config, &checkpoint, &error), &error, "checkpoint");
    struct device_options device = {.ordinal = rig_ordinal,
                                    .threads = 1,
                                    .max_tokens = limits.max_num_batched_tokens,
                                    .max_sequences = RIG_SLOTS,
                                    .batch_invariant = rig_invariant};
    need(rig->backend->open(&device, &rig->device, &error), &error, "device");
    struct fabric_memory memory = {rig->backend, rig->device};
    if (rig_nccl)
        need(fabric_open_nccl(fabric, &memory, &fabric, &error), &error, "nccl");
    else
        need(fabric_attach(fabric, &memory), NULL, "attach");
    rig->fabric = fabric;
    need(fabric_agree(fabric, &rig->plan->digest, sizeof rig->plan->digest, "plan", &error), &error,
         "agree");
    struct stage_options options = {.plan = rig->plan,
                                    .checkpoint = checkpoint,
                                    .backend = rig->backend,
                                    .device = rig->device,
                                    .fabric = fabric,
                                    .limit = config.vocab};
    int choices;
    need(stage_open(&options, &rig->stage, &error), &error, "stage");
    need(stage_prepare(rig->stage, &choices, &error), &error, "prepare");
    for (bool more = true; more;)
        need(stage_record(rig->stage, &more, &error), &error, "record");
    checkpoint_close(checkpoint);
    plan_step_shape(rig->plan, &rig->shape);
    rig->builder = step_builder_create(&rig->shape);
    rig->results = calloc((size_t)rig->shape.max_rows, sizeof *rig->results);
    rig->bytes = malloc(step_bytes_max(&rig->shape));
    return rig;
}

void rig_close(struct rig *rig)
{
    stage_close(rig->stage);
    if (rig_nccl)
        fabric_close(rig->fabric);
    rig->backend->close(rig->device);
    plan_free(rig->plan);
    step_builder_destroy(rig->builder);
    free(rig->results);
    free(rig->bytes);
    free(rig);
}

static void step_take(struct rig *rig, const void *bytes, size_t length)
{
    struct error error = {0};
    struct step step;
    need(step_decode(&rig->shape, bytes, length, &step, &error), &error, "decode");
    need(stage_run(rig->stage, &step, rig->results, &error), &error, "run");
}

void rig_begin(struct rig *rig)
{
    step_begin(rig->builder, ++rig->number);
}

void rig_run(struct rig *rig)
{
    size_t length;
    const void *bytes = step_finish(rig->builder, &length);
    if (rig->plan->ranks > 1)
        need(rig->fabric->ops->publish(rig->fabric, bytes, length), NULL, "publish");
    step_take(rig, bytes, length);
}

/* Relative Frobenius error of this rank's heads of one state tensor: ours [rows, width] against the
 * fixture's `name` [all_rows, all_width], of which ours is the part at (row, column). */
struct patch {
    int rows, width, row, column, all_width;
};

static void compare(struct rig *rig, const char *name, const float *ours, struct patch at)
{
    size_t count;
    const float *expected = fixture_tensor(rig->fixture, name, &count);
    double difference = 0, norm = 0;
    if (expected == NULL) {
        rig_fail(rig, "%s is not in the fixture", name);
        return;
    }
    for (int r = 0; r < at.rows; r++) {
        for (int c = 0; c < at.width; c++) {
            double e = expected[(size_t)(at.row + r) * (size_t)at.all_width + at.column + c];
            double d = ours[(size_t)r * (size_t)at.width + c] - e;
            difference += d * d;
            norm += e * e;
        }
    }
    if (!(sqrt(difference / norm) <= 1e-4 * rig_slack))
        rig_fail(rig, "%s: relative error %g", name, sqrt(difference / norm));
}

static size_t export(struct rig *rig, int slot, int layer, enum state_kind kind, float *out)
{
    struct error error = {0};
    size_t count = 0;
    need(stage_export(rig->stage, slot, layer, kind, rig->fixture->prompt_count, out, 1 << 20,
                      &count, &error),
         &error, "export");
    return count;
}

static void check_jet(struct rig *rig, int slot, int layer, float *ours, float *turned)
{
    const struct model_config *m = &rig->plan->model;
    struct span heads = rig->plan->rank[rig->fabric->rank].jet_heads;
    char name[64];
    snprintf(name, sizeof name, "layers.%d.recurrent", layer);
    export(rig, slot, layer, STATE_RECURRENT, ours);
    int per_head = m->jet_d_k * m->jet_d_v;
    compare(rig, name, ours, (struct patch){span_size(heads), per_head, heads.begin, 0, per_head});
    /* the fixture has [channels, 4] with one row more, the oldest, than is carried */
    snprintf(name, sizeof name, "layers.%d.conv", layer);
    int kept = m->conv_taps - 1, channels = span_size(heads) * m->jet_d_v;
    export(rig, slot, layer, STATE_CONV, ours);
    for (int c = 0; c < channels; c++)
        for (int w = 0; w < kept; w++)
            turned[c * kept + w] = ours[w * channels + c];
    compare(rig, name, turned,
            (struct patch){channels, kept, heads.begin * m->jet_d_v, 1, m->conv_taps});
}

static void check_keys(struct rig *rig, int slot, int layer, float *ours)
{
    const struct model_config *m = &rig->plan->model;
    struct span heads = rig->plan->rank[rig->fabric->rank].kv_heads;
    int width = span_size(heads) * m->head_dim;
    for (int part = 0; part < 2; part++) {
        char name[64];
        snprintf(name, sizeof name, "layers.%d.%c", layer, part ? 'v' : 'k');
        int kept = (int)(export(rig, slot, layer, part ? STATE_V : STATE_K, ours) / (size_t)width);
        int expected = m->layer[layer] == LAYER_SWA ? m->window : rig->fixture->prompt_count;
        if (kept != expected)
            rig_fail(rig, "%s: %d tokens kept, not %d", name, kept, expected);
        compare(rig, name, ours,
                (struct patch){kept, width, rig->fixture->prompt_count - kept,
                               heads.begin * m->head_dim, m->kv_heads * m->head_dim});
    }
}

static void check_state(struct rig *rig, int slot)
{
    struct span layers = rig->plan->rank[rig->fabric->rank].layers;
    float *ours = malloc(2 * sizeof(float) << 20), *turned = ours + (1 << 20);
    for (int layer = layers.begin; layer < layers.end; layer++) {
        if (rig->plan->model.layer[layer] == LAYER_JET)
            check_jet(rig, slot, layer, ours, turned);
        else
            check_keys(rig, slot, layer, ours);
    }
    free(ours);
}

static void command(struct rig *rig, int32_t what)
{
    if (rig->plan->ranks > 1)
        need(rig->fabric->ops->publish(rig->fabric, &what, sizeof what), NULL, "publish");
}

void rig_check_state(struct rig *rig, int slot)
{
    command(rig, slot);
    check_state(rig, slot);
}

void rig_stop(struct rig *rig)
{
    command(rig, COMMAND_STOP);
}

void rig_serve(struct rig *rig)
{
    for (;;) {
        size_t length = 0;
        need(rig->fabric->ops->await(rig->fabric, rig->bytes, step_bytes_max(&rig->shape), &length),
             NULL, "await");
        int32_t what;
        if (length != sizeof what) {
            step_take(rig, rig->bytes, length);
            continue;
        }
        memcpy(&what, rig->bytes, sizeof what);
        if (what == COMMAND_STOP)
            return;
        check_state(rig, what);
    }
}

int rig_scenario(struct fixture *fixture, struct mesh mesh, struct fabric *fabric,
                 void (*scenario)(struct rig *rig, void *context), void *context)
{
    struct rig *rig = rig_open(fixture, mesh, fabric);
    if (rig->fabric->rank == 0) {
        scenario(rig, context);
        rig_stop(rig);
    } else {
        rig_serve(rig);
    }
    int failures = rig->failures;
    rig_close(rig);
    return failures;
}

struct rank_thread {
    pthread_t thread;
    struct fixture *fixture;
    struct mesh mesh;
    struct fabric *fabric;
    void (*scenario)(struct rig *rig, void *context);
    void *context;
    int failures;
};

static void *rank_run(void *argument)
{
    struct rank_thread *t = argument;
    t->failures = rig_scenario(t->fixture, t->mesh, t->fabric, t->scenario, t->context);
    return NULL;
}

int rig_threads(struct fixture *fixture, struct mesh mesh,
                void (*scenario)(struct rig *rig, void *context), void *context)
{
    enum { RANKS_MOST = 16 };
    struct fabric *fabrics[RANKS_MOST];
    struct rank_thread threads[RANKS_MOST];
    struct fabric_options options = {.mesh = mesh, .heartbeat_timeout = 60, .step_timeout = 120};
    struct error error = {0};
    int ranks = mesh_size(mesh), failures = 0;
    need(ranks == 1 ? fabric_open_self(&options, fabrics, &error)
                    : fabric_open_threads(&options, fabrics, &error),
         &error, "fabric");
    for (int i = 0; i < ranks; i++) {
        threads[i] = (struct rank_thread){.fixture = fixture,
                                          .mesh = mesh,
                                          .fabric = fabrics[i],
                                          .scenario = scenario,
                                          .context = context};
        pthread_create(&threads[i].thread, NULL, rank_run, &threads[i]);
    }
    for (int i = 0; i < ranks; i++) {
        pthread_join(threads[i].thread, NULL);
        failures += threads[i].failures;
    }
    for (int i = 0; i < ranks; i++)
        fabric_close(fabrics[i]);
    return failures;
}
