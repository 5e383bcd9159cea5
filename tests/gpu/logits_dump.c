/* logits_dump FOLDER TOKENS:ROWS [...] -- [jetd options]: the raw logits that a stage computes for
 * a prompt, for oracle.py. One rank; the model, its weights and the device are chosen as for jetd.
 *
 * For each TOKENS:ROWS a prompt of so many made-up ids is run in several ways, and the logits of
 * its last ROWS positions go to FOLDER/TOKENS.WAY.f32 ([rows, vocab]): whole    in one step again
 * the same in another slot; only the hash ragged   in steps of many sizes        decoded   two
 * thirds in one step, then token by token replayed as decoded, from recordings; only the
 * log-probabilities, bit by bit with decoded's A line a way: its name and the XXH3 of its logits.
 * Exit code 77: the device is not there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "daemon/base/checked.h"
#include "daemon/base/clock.h"
#include "daemon/base/log.h"
#include "daemon/rank.h"
#include "partition/stage.h"

enum { TOKENS_MAX = 1 << 16, SLOTS = 2, SKIPPED = 77 };

struct dump {
    const char *folder;
    struct rank rank;
    struct step_builder *builder;
    struct sample_result *results; /* of a step */
    float *logits;                 /* of a tile */
    FILE *file;                    /* NULL: the hash alone */
    XXH3_state_t *hash;
    long rows; /* hashed */
    int32_t *prompt;
    int tokens, kept; /* logits of the last `kept` are wanted */
};

static struct dump dump;
static const struct backend *real; /* what the spy stands before */

static void need(bool right, const char *what, const struct error *error)
{
    if (right)
        return;
    fprintf(stderr, "logits_dump: %s: %s\n", what, error != NULL ? error->text : "failed");
    exit(1);
}

/* The head alone writes f32: a spy behind the backend's table sees every row of logits. */
static enum status spied_gemm(struct device *device, const struct gemm_op *op)
{
    enum status status = real->gemm(device, op);
    if (status != STATUS_OK || !op->float_out)
        return status;
    size_t bytes = (size_t)op->rows * (size_t)op->columns * sizeof(float);
    status = real->download(device, dump.logits, op->out, bytes);
    XXH3_64bits_update(dump.hash, dump.logits, bytes);
    dump.rows += op->rows;
    if (dump.file != NULL)
        need(fwrite(dump.logits, 1, bytes, dump.file) == bytes, "write", NULL);
    return status;
}

/* ---- steps -------------------------------------------------------------------------------- */

/* The next `count` tokens of the prompt to `slot`; results [rows of the step] in dump.results. */
static int feed(int slot, int at, int count)
{
    struct error error = {0};
    const struct plan *plan = dump.rank.plan;
    int block = plan->limits.block_tokens, first = (int)divide_up((uint64_t)at, (uint64_t)block);
    int end = (int)divide_up((uint64_t)(at + count), (uint64_t)block), rows = 0;
    int32_t blocks[TOKENS_MAX / 16];
    for (int i = first; i < end; i++)
        blocks[i - first] = i * SLOTS + slot;
    struct step_sequence sequence = {
        .slot = slot, .tokens = count, .context = at, .new_blocks = end - first};
    step_begin(dump.builder, 1);
    need(step_add_sequence(dump.builder, &sequence, dump.prompt + at, blocks) == STATUS_OK,
         "a step has no room", NULL);
    for (int t = 0; t < count; t++) {
        if (at + t < dump.tokens - dump.kept)
            continue;
        bool last = at + t + 1 == dump.tokens;
        struct step_row row = {.token = t,
                               .sample = {.slot = slot,
                                          .target = last ? -1 : dump.prompt[at + t + 1],
                                          .top_p = 1,
                                          .repetition = 1}};
        need(step_add_row(dump.builder, row, NULL, NULL) == STATUS_OK, "no room for a row", NULL);
        rows++;
    }
    size_t length;
    struct step step;
    const void *bytes = step_finish(dump.builder, &length);
    need(step_decode(&dump.rank.shape, bytes, length, &step, &error) == STATUS_OK, "step", &error);
    need(stage_run(dump.rank.stage, &step, dump.results, &error) == STATUS_OK, "run", &error);
    return rows;
}

/* Log-probabilities of the kept rows, in order. */
static int run(int slot, const int *sizes, int count, float *logprobs)
{
    int done = 0;
    for (int at = 0, i = 0; at < dump.tokens; i++) {
        int size = sizes[i < count ? i : count - 1];
        size = size < dump.tokens - at ? size : dump.tokens - at;
        int rows = feed(slot, at, size);
        for (int r = 0; r < rows; r++)
            logprobs[done++] = dump.results[r].logprob;
        at += size;
    }
    return done;
}

static void way_run(const char *way, bool kept, int slot, const int *sizes, int count,
                    float *logprobs)
{
    char path[1024];
    int64_t start = clock_now();
    snprintf(path, sizeof path, "%s/%d.%s.f32", dump.folder, dump.tokens, way);
    dump.file = kept ? fopen(path, "wb") : NULL;
    need(!kept || dump.file != NULL, path, NULL);
    XXH3_64bits_reset(dump.hash);
    dump.rows = 0;
    int rows = run(slot, sizes, count, logprobs);
    need(rows == dump.kept, "rows are missing", NULL);
    if (dump.file != NULL)
        fclose(dump.file);
    printf("%d tokens %-8s logits %016llx of %ld rows, log-probabilities %016llx, %.2f s\n",
           dump.tokens, way, (unsigned long long)XXH3_64bits_digest(dump.hash), dump.rows,
           (unsigned long long)XXH3_64bits(logprobs, (size_t)rows * sizeof *logprobs),
           clock_seconds(clock_now() - start));
    fflush(stdout);
}

/* ---- a prompt ----------------------------------------------------------------------------- */

/* Any ids will do; the same on every machine. */
static void prompt_make(void)
{
    char path[1024];
    uint64_t x = 88172645463325252u + (uint64_t)dump.tokens;
    for (int i = 0; i < dump.tokens; i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        dump.prompt[i] = (int32_t)(x % (uint64_t)dump.rank.model.vocab);
    }
    snprintf(path, sizeof path, "%s/%d.prompt.i32", dump.folder, dump.tokens);
    FILE *file = fopen(path, "wb");
    need(file != NULL, path, NULL);
    fwrite(dump.prompt, sizeof *dump.prompt, (size_t)dump.tokens, file);
    fclose(file);
}

static int differences(const float *a, const float *b)
{
    int count = 0;
    for (int i = 0; i < dump.kept; i++)
        count += memcmp(&a[i], &b[i], sizeof a[i]) != 0;
    return count;
}

static int prompt_run(void)
{
    static const int ragged[] = {1, 2, 3, 7, 64, 1, 90, 129, 33, 65, 2, 31, 128, 40};
    struct stage *stage = dump.rank.stage;
    int whole = dump.tokens, decoded[] = {dump.tokens * 2 / 3, 1};
    float *first = calloc((size_t)dump.kept * 3, sizeof *first);
    float *second = first + dump.kept, *third = second + dump.kept;
    need(first != NULL, "memory", NULL);
    prompt_make();
    struct backend spy = *real;
    struct replays *replays = stage->replays;
    spy.gemm = spied_gemm;
    stage->backend = &spy;
    stage->replays = NULL; /* a recording cannot be spied on */
    way_run("whole", true, 0, &whole, 1, first);
    way_run("again", false, 1, &whole, 1, second);
    int failures = differences(first, second) > 0;
    way_run("ragged", true, 0, ragged, sizeof ragged / sizeof *ragged, second);
    way_run("decoded", true, 0, decoded, 2, second);
    stage->backend = real;
    stage->replays = replays;
    way_run("replayed", false, 1, decoded, 2, third);
    int differ = differences(second, third);
    printf("%d tokens: again %s whole; %d of %d replayed log-probabilities differ from decoded's\n",
           dump.tokens, failures ? "differs from" : "is", differ, dump.kept);
    free(first);
    return failures + (differ > 0);
}

/* ---- the program -------------------------------------------------------------------------- */

static struct option_store *open_rank(int count, char **options, int tokens)
{
    struct settings settings;
    struct option_store *store;
    struct error error = {0};
    char text[32], *argv[64];
    snprintf(text, sizeof text, "%d", tokens);
    const char *own[] = {"logits_dump", "--max-num-batched-tokens", text, "--max-model-len",
                         text,          "--max-num-seqs",           "2"};
    int used = 0;
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        argv[used++] = (char *)own[i];
    for (int i = 0; i < count && used < 64; i++)
        argv[used++] = options[i];
    need(option_load(&settings_table, used, argv, &settings, &store, &error) == STATUS_OK,
         "options", &error);
    const struct backend *backend = backend_find(settings.device);
    if (backend != NULL && backend->devices != NULL && backend->devices() == 0) {
        fprintf(stderr, "logits_dump: no GPU: skipped\n");
        exit(SKIPPED);
    }
    need(rank_open(&settings, NULL, &dump.rank, &error) == STATUS_OK, "open", &error);
    return store;
}

int main(int argc, char **argv)
{
    int split = 2, most = 0, failures = 0;
    while (split < argc && strcmp(argv[split], "--") != 0)
        split++;
    if (argc < 3) {
        fprintf(stderr, "usage: logits_dump FOLDER TOKENS:ROWS [...] -- [jetd options]\n");
        return 2;
    }
    dump.folder = argv[1];
    log_configure(LOG_WARNING, -1, false);
    for (int i = 2; i < split; i++) {
        int tokens = atoi(argv[i]);
        need(tokens > 0 && tokens <= TOKENS_MAX / 16, argv[i], NULL);
        most = tokens > most ? tokens : most;
    }
    struct option_store *store = open_rank(argc - split - 1, argv + split + 1, most);
    real = dump.rank.backend;
    dump.builder = step_builder_create(&dump.rank.shape);
    dump.results = calloc((size_t)dump.rank.shape.max_rows, sizeof *dump.results);
    dump.logits = malloc((size_t)layout_sample_tile(dump.rank.plan) *
                         (size_t)dump.rank.model.vocab * sizeof *dump.logits);
    dump.prompt = calloc((size_t)most, sizeof *dump.prompt);
    dump.hash = XXH3_createState();
    need(dump.builder && dump.results && dump.logits && dump.prompt && dump.hash, "memory", NULL);
    for (int i = 2; i < split; i++) {
        const char *rows = strchr(argv[i], ':');
        dump.tokens = atoi(argv[i]);
        dump.kept = rows != NULL ? atoi(rows + 1) : dump.tokens;
        need(dump.kept > 0 && dump.kept <= dump.tokens, argv[i], NULL);
        failures += prompt_run();
    }
    step_builder_destroy(dump.builder);
    free(dump.results);
    free(dump.logits);
    free(dump.prompt);
    XXH3_freeState(dump.hash);
    rank_close(&dump.rank);
    option_free(store);
    return failures == 0 ? 0 : 1;
}
