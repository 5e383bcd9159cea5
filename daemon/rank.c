#include "daemon/rank.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/capacity.h"
#include "daemon/signals.h"
#include "kernels/picks.h"

/* ---- model -------------------------------------------------------------------------------- */

/* The demo model stands beside the program: in an installed tree under share/, in a build tree
 * under ops/ of the sources. */
static bool find_demo(char *path, size_t room)
{
    char program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0)
        return false;
    program[length] = '\0';
    for (int up = 0; up < 6; up++) {
        char *slash = strrchr(program, '/');
        if (slash == NULL)
            return false;
        *slash = '\0';
        static const char *const places[] = {"share/jetd/demo-model", "ops/demo-model"};
        for (int i = 0; i < 2; i++) {
            int used = snprintf(path, room, "%s/%s", program, places[i]);
            if (used > 0 && (size_t)used < room && access(path, R_OK) == 0)
                return true;
        }
    }
    return false;
}

static enum status open_model(const struct settings *settings, struct rank *rank,
                              struct error *error)
{
    if (settings->max_model_len == 1)
        return error_set(error, STATUS_CONFIG,
                         "--max-model-len: 1 has no room for a prompt and a new token");
    if (settings->model_config[0] != '\0') {
        if (settings->model[0] != '\0')
            return error_set(error, STATUS_CONFIG, "--model and --model-config exclude each other");
        return model_config_builtin(settings->model_config, &rank->model, error);
    }
    rank->folder = settings->model;
    if (settings->model[0] == '\0') {
        if (!find_demo(rank->found, sizeof rank->found))
            return error_set(error, STATUS_CONFIG,
                             "no --model was given and the demo model was not found");
        rank->folder = rank->found;
    }
    return model_config_load(rank->folder, &rank->model, error);
}

static enum status open_checkpoint(const struct settings *settings, struct rank *rank,
                                   struct error *error)
{
    if (strcmp(settings->load_format, "dummy") == 0)
        return checkpoint_dummy(&rank->model, settings->seed, &rank->checkpoint, error);
    if (rank->folder == NULL)
        return error_set(error, STATUS_CONFIG,
                         "--model-config has no weights: it needs --load-format dummy");
    return checkpoint_open(rank->folder, &rank->model, &rank->checkpoint, error);
}

/* Jet-Nemotron's 151936 rows are Qwen2.5's padded vocabulary: from 151665 on no token exists, also
 * where the folder has no tokenizer.json to say so. */
enum { PADDED_VOCAB = 151936, PADDED_VOCAB_TOKENS = 151665 };

/* Rank 0 alone reads the tokenizer; the others learn the one number they need. */
static enum status open_tokenizer(const struct settings *settings, struct rank *rank,
                                  struct error *error)
{
    int32_t limit = rank->model.vocab == PADDED_VOCAB ? PADDED_VOCAB_TOKENS : rank->model.vocab;
    if (rank->fabric->rank == 0) {
        const char *folder = settings->tokenizer[0] != '\0' ? settings->tokenizer : rank->folder;
        enum status status =
            folder ? tokenizer_load(folder, &rank->tokenizer, error) : STATUS_NOT_FOUND;
        if (status == STATUS_NOT_FOUND && settings->tokenizer[0] == '\0') {
            error_clear(error);
            log_warning("no tokenizer.json: this model is served by token ids alone");
        } else if (status != STATUS_OK) {
            return status;
        } else if (tokenizer_size(rank->tokenizer) <= rank->model.vocab) {
            limit = tokenizer_size(rank->tokenizer);
        } else {
            return error_set(error, STATUS_CONFIG,
                             "tokenizer.json has ids up to %d, but the model's vocab_size is %d",
                             tokenizer_size(rank->tokenizer) - 1, rank->model.vocab);
        }
    }
    size_t length = 0;
    enum status status =
        rank->fabric->rank == 0
            ? rank->fabric->ops->publish(rank->fabric, &limit, sizeof limit)
            : rank->fabric->ops->await(rank->fabric, &limit, sizeof limit, &length);
    if (status != STATUS_OK)
        return error_set(error, status, "the ranks could not agree on a vocabulary");
    rank->limit = limit;
    return STATUS_OK;
}

/* ---- plan --------------------------------------------------------------------------------- */

static bool on_cuda(const struct rank *rank)
{
    return strcmp(rank->backend->name, "cuda") == 0;
}

/* Served all the same: the published weights degrade there, others may not. */
static void warn_length(const struct plan *plan)
{
    if (plan->limits.max_model_len > plan->model.max_position)
        log_warning(
            "max-model-len %d is beyond the model's max_position_embeddings %d: the quality "
            "of answers is not promised there",
            plan->limits.max_model_len, plan->model.max_position);
}

/* Whether --device means cuda on this machine, without opening a device. */
static bool means_cuda(const struct settings *settings)
{
    const struct backend *cuda = backend_find("cuda");
    if (strcmp(settings->device, "auto") == 0)
        return cuda != NULL && cuda->devices != NULL && cuda->devices() > 0;
    return strcmp(settings->device, "cuda") == 0;
}

/* A full step of the 4B takes a second or two on GPUs that reach each other, a minute or two where
 * sums go through host memory or on one core of a cpu, and grows with its tokens. */
static double step_timeout_of(const struct settings *settings, const struct rank *rank)
{
    if (settings->step_timeout > 0)
        return settings->step_timeout;
    bool cuda = on_cuda(rank);
    int tokens = capacity_limits(settings, cuda, 0).max_num_batched_tokens;
    double share = tokens / (cuda ? 8192.0 : 512.0);
    return (cuda && rank->fabric->streamed ? 30 : 300) * (share > 1 ? share : 1);
}

/* Whether ranks of this mesh would meet over NCCL, when each has a GPU. */
static bool means_nccl(const struct settings *settings, struct mesh mesh)
{
    return strcmp(settings->fabric, "nccl") == 0 ||
           (strcmp(settings->fabric, "auto") == 0 && mesh_size(mesh) > 1);
}

enum status rank_print_plan(const struct settings *settings, struct error *error)
{
    struct rank rank = {0};
    struct mesh mesh = {.tensor = settings->tensor > 0 ? settings->tensor : 1,
                        .context = settings->context,
                        .pipeline = settings->pipeline};
    bool cuda = means_cuda(settings);
    struct capacity_place place = {
        .cuda = cuda, .nccl = cuda && means_nccl(settings, mesh), .tensor = mesh.tensor};
    enum status status = open_model(settings, &rank, error);
    place.head_dim = rank.model.head_dim;
    if (status == STATUS_OK)
        status = capacity_check(settings, &place, error);
    if (status == STATUS_OK)
        status = plan_make(&rank.model, mesh, capacity_limits(settings, cuda, settings->memory),
                           cuda ? DTYPE_BF16 : DTYPE_F32, &rank.plan, error);
    if (status != STATUS_OK)
        return status;
    warn_length(rank.plan);
    plan_print(rank.plan, stdout);
    plan_free(rank.plan);
    return STATUS_OK;
}

/* What ranks must agree on before a token is served. */
struct agreement {
    uint64_t plan, checkpoint;
    int32_t limit, batch_invariant;
    char version[16];
};

static enum status agree(const struct settings *settings, const struct rank *rank,
                         struct error *error)
{
    struct agreement own = {
        .plan = rank->plan->digest,
        .checkpoint = checkpoint_digest(rank->checkpoint),
        .limit = rank->limit,
        .batch_invariant = settings->batch_invariant,
    };
    strncpy(own.version, JETD_VERSION, sizeof own.version - 1);
    return fabric_agree(rank->fabric, &own, sizeof own, "model, plan, --batch-invariant or version",
                        error);
}

/* ---- fabric and device -------------------------------------------------------------------- */

struct fabric_options rank_fabric_options(const struct settings *settings)
{
    return (struct fabric_options){
        .heartbeat_timeout = settings->heartbeat_timeout,
        .step_timeout = settings->step_timeout,
        .load_timeout = settings->load_timeout,
    };
}

static enum status open_fabric(const struct settings *settings, struct rank *rank,
                               struct error *error)
{
    int size, own, local;
    launcher_world(&size, &own, &local);
    struct fabric_options options = rank_fabric_options(settings);
    enum status status = capacity_mesh(settings, size, &options.mesh, error);
    if (status != STATUS_OK)
        return status;
    bool alone = strcmp(settings->fabric, "self") == 0 ||
                 (strcmp(settings->fabric, "auto") == 0 && size == 1);
    if (alone && size > 1)
        return error_set(error, STATUS_CONFIG, "--fabric self has one rank, but %d were started",
                         size);
    return alone ? fabric_open_self(&options, &rank->fabric, error)
                 : fabric_open_mpi(&options, &rank->fabric, error);
}

/* A file a rank: their products differ. */
static const char *choices_file(const struct settings *settings, struct rank *rank)
{
    char place[sizeof rank->choices];
    const char *file = strcmp(settings->gemm_cache, "auto") == 0 ? picks_place(place, sizeof place)
                                                                 : settings->gemm_cache;
    if (file == NULL || file[0] == '\0')
        return NULL;
    int used = snprintf(rank->choices, sizeof rank->choices, "%s.%d", file, rank->fabric->rank);
    return used > 0 && (size_t)used < sizeof rank->choices ? rank->choices : NULL;
}

static enum status open_device(const struct settings *settings, struct rank *rank,
                               struct error *error)
{
    int size, own, local;
    launcher_world(&size, &own, &local);
    bool automatic = strcmp(settings->device, "auto") == 0;
    rank->backend = backend_find(automatic ? "cuda" : settings->device);
    struct limits limits = capacity_limits(settings, on_cuda(rank), 0);
    struct device_options options = {
        .threads = settings->threads,
        .max_tokens = limits.max_num_batched_tokens,
        .max_sequences = limits.max_num_seqs,
        .batch_invariant = settings->batch_invariant,
    };
    int devices = rank->backend->devices != NULL ? rank->backend->devices() : 0;
    options.ordinal = devices > 0 ? local % devices : 0; /* more ranks than GPUs share them */
    options.gemm_cache = devices > 0 ? choices_file(settings, rank) : NULL;
    enum status status = rank->backend->open(&options, &rank->device, error);
    if (status == STATUS_CONFIG && automatic) {
        log_info("no usable GPU (%s): running on the cpu", error->text);
        error_clear(error);
        rank->backend = backend_find("cpu");
        limits = capacity_limits(settings, false, 0);
        options.max_tokens = limits.max_num_batched_tokens;
        options.max_sequences = limits.max_num_seqs;
        status = rank->backend->open(&options, &rank->device, error);
    }
    return status;
}

/* Device collectives over NCCL where every rank has a GPU of its own, else through host memory. All
 * ranks come to the same answer. */
static enum status attach_fabric(const struct settings *settings, struct rank *rank,
                                 struct error *error)
{
    struct fabric_memory memory = {.backend = rank->backend, .device = rank->device};
    bool nccl = strcmp(settings->fabric, "nccl") == 0;
    if (strcmp(settings->fabric, "auto") == 0 && mesh_size(rank->fabric->mesh) > 1) {
        enum status status = fabric_devices_distinct(rank->fabric, &memory, &nccl);
        if (status != STATUS_OK)
            return error_set(error, status, "the ranks could not compare their devices");
        if (!nccl && strcmp(rank->backend->name, "cuda") == 0 && rank->fabric->rank == 0)
            log_warning("some ranks share a GPU: they meet through host memory, which is slow");
    }
    return nccl ? fabric_open_nccl(rank->fabric, &memory, &rank->fabric, error)
                : fabric_attach(rank->fabric, &memory);
}

static enum status check_place(const struct settings *settings, struct rank *rank,
                               struct error *error)
{
    struct capacity_place place = {.cuda = on_cuda(rank),
                                   .nccl = strcmp(rank->fabric->ops->name, "nccl") == 0,
                                   .tensor = rank->fabric->mesh.tensor,
                                   .head_dim = rank->model.head_dim};
    return capacity_check(settings, &place, error);
}

/* What this rank may take: its part of its GPU; on the cpu half of the host, shared by all ranks.
 */
static enum status own_limit(const struct settings *settings, struct rank *rank, int sharers,
                             uint64_t *memory)
{
    size_t available, total;
    *memory = settings->memory;
    if (*memory != 0)
        return STATUS_OK;
    enum status status = rank->backend->memory(rank->device, &available, &total);
    if (status != STATUS_OK)
        return status;
    *memory = on_cuda(rank) ? capacity_gpu_share(settings, total, available, sharers)
                            : total / 2 / (uint64_t)mesh_size(rank->fabric->mesh);
    return STATUS_OK;
}

/* The least of all ranks' limits: every rank must come to the same plan. */
static enum status memory_limit(const struct settings *settings, struct rank *rank,
                                uint64_t *memory, struct error *error)
{
    int ranks = mesh_size(rank->fabric->mesh), sharers = 1;
    struct fabric_memory own = {.backend = rank->backend, .device = rank->device};
    enum status status = fabric_device_sharers(rank->fabric, &own, &sharers);
    if (status == STATUS_OK)
        status = own_limit(settings, rank, sharers, memory);
    if (status != STATUS_OK || ranks == 1)
        return status;
    uint64_t *all = calloc((size_t)ranks, sizeof *all);
    if (all == NULL)
        return error_set(error, STATUS_NO_MEMORY, "out of memory");
    status = rank->fabric->ops->all_gather(rank->fabric, AXIS_WORLD, memory, all, sizeof *all);
    for (int i = 0; status == STATUS_OK && i < ranks; i++)
        *memory = all[i] < *memory ? all[i] : *memory;
    free(all);
    return status;
}

/* ---- all of it ---------------------------------------------------------------------------- */

struct progress {
    struct fabric *fabric;
    int64_t next; /* when to log */
};

/* A mark for the watch, and a line every few seconds while weights are read. */
static void report_progress(void *context, uint64_t done, uint64_t total)
{
    struct progress *progress = context;
    fabric_load_mark(progress->fabric);
    signals_obey();
    if (clock_now() < progress->next)
        return;
    progress->next = clock_now() + 2 * CLOCK_SECOND;
    log_info("loading: %.1f of %.1f GB (%.0f %%)", (double)done * 1e-9, (double)total * 1e-9,
             total ? 100.0 * (double)done / (double)total : 100.0);
}

static enum status prepare_stage(struct rank *rank, struct error *error)
{
    int64_t started = clock_now();
    int choices;
    enum status status = stage_prepare(rank->stage, &choices, error);
    if (status == STATUS_OK && choices > 0)
        log_info("chose %d products in %.1f s", choices, clock_seconds(clock_now() - started));
    return status;
}

/* Decode steps of all sizes, so that none has to be recorded while requests wait: as many as a
 * little time allows, the small ones first. */
static enum status record_steps(struct rank *rank, struct error *error)
{
    const int64_t started = clock_now();
    size_t before, after, total;
    bool more = true;
    int steps = 0;
    enum status status = rank->backend->memory(rank->device, &before, &total);
    for (; status == STATUS_OK && more && clock_now() < started + 4 * CLOCK_SECOND; steps += more)
        status = stage_record(rank->stage, &more, error);
    if (status == STATUS_OK)
        status = rank->backend->memory(rank->device, &after, &total);
    if (status == STATUS_OK && steps > 0)
        log_info("recorded %d decode steps in %.1f s and %.1f MiB%s", steps,
                 clock_seconds(clock_now() - started), ((double)before - (double)after) / (1 << 20),
                 more ? "; others when they come" : "");
    return status;
}

static enum status open_stage(const struct settings *settings, struct rank *rank,
                              struct error *error)
{
    (void)settings; /* a part like the others */
    int64_t started = clock_now();
    struct progress progress = {rank->fabric, started + CLOCK_SECOND};
    struct stage_options options = {
        .plan = rank->plan,
        .checkpoint = rank->checkpoint,
        .backend = rank->backend,
        .device = rank->device,
        .fabric = rank->fabric,
        .limit = rank->limit,
        .progress = report_progress,
        .progress_context = &progress,
    };
    enum status status = stage_open(&options, &rank->stage, error);
    if (status == STATUS_OK)
        log_info("loaded %.2f GB of weights in %.1f s",
                 (double)rank->plan->rank[rank->fabric->rank].weight_bytes * 1e-9,
                 clock_seconds(clock_now() - started));
    checkpoint_close(rank->checkpoint); /* its files need not stay open */
    rank->checkpoint = NULL;
    if (status == STATUS_OK)
        status = prepare_stage(rank, error);
    return status == STATUS_OK ? record_steps(rank, error) : status;
}

/* The least limit of all ranks makes the plan, and all agree on it. */
static enum status open_plan(const struct settings *settings, struct rank *rank,
                             struct error *error)
{
    uint64_t memory = 0;
    enum status status = memory_limit(settings, rank, &memory, error);
    if (status == STATUS_OK)
        status = plan_make(&rank->model, rank->fabric->mesh,
                           capacity_limits(settings, on_cuda(rank), memory),
                           rank->backend->activation, &rank->plan, error);
    if (status != STATUS_OK)
        return status;
    if (rank->fabric->rank == 0)
        warn_length(rank->plan);
    plan_step_shape(rank->plan, &rank->shape);
    return agree(settings, rank, error);
}

/* Each is progress to the watch, which names a rank that makes none. */
static enum status open_parts(const struct settings *settings, struct rank *rank,
                              struct error *error)
{
    typedef enum status open_part(const struct settings *, struct rank *, struct error *);
    /* Files before the device: a bad one is known before anything is taken from a GPU. */
    static open_part *const parts[] = {open_model,    open_checkpoint, open_tokenizer, open_device,
                                       attach_fabric, check_place,     open_plan,      open_stage};
    enum status status = STATUS_OK;
    if (rank->fabric == NULL)
        status = open_fabric(settings, rank, error);
    for (size_t i = 0; i < sizeof parts / sizeof *parts && status == STATUS_OK; i++) {
        fabric_load_mark(rank->fabric);
        signals_obey();
        status = parts[i](settings, rank, error);
    }
    if (status != STATUS_OK)
        return status;
    if (rank->fabric->ops->barrier(rank->fabric) != STATUS_OK)
        return error_set(error, STATUS_PEER_LOST, "a rank was lost while loading");
    rank->step_seconds = step_timeout_of(settings, rank);
    log_debug("a step of more than %.0f s is a stall", rank->step_seconds);
    fabric_limit_steps(rank->fabric, rank->step_seconds);
    fabric_load_end(rank->fabric);
    return STATUS_OK;
}

enum status rank_open(const struct settings *settings, struct fabric *fabric, struct rank *rank,
                      struct error *error)
{
    *rank = (struct rank){.fabric = fabric};
    enum status status = open_parts(settings, rank, error);
    if (status == STATUS_OK)
        return STATUS_OK;
    error_set(error, status, "%s", status_name(status)); /* keeps a text that is there */
    if (rank->fabric != NULL && mesh_size(rank->fabric->mesh) > 1)
        rank->fabric->ops->abort(rank->fabric, status, error->text);
    rank_close(rank);
    return status;
}

void rank_close(struct rank *rank)
{
    if (rank->stage != NULL)
        stage_close(rank->stage);
    plan_free(rank->plan);
    if (rank->checkpoint != NULL)
        checkpoint_close(rank->checkpoint);
    if (rank->tokenizer != NULL)
        tokenizer_free(rank->tokenizer);
    fabric_close(rank->fabric);
    if (rank->device != NULL)
        rank->backend->close(rank->device);
    *rank = (struct rank){0};
}
