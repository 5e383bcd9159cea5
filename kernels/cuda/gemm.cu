/* Matrix products: cuBLASLt where its alignment rules allow, or gemv.cu or gemm_stream.cu for few
 * rows, whichever of their algorithms is fastest for a shape class when timed: before the first
 * step (gemm_prepare.cu), or at its first use. A class is the weight's shape, the output's type and
 * a range of row counts. */
#include "kernels/cuda/gemm_plan.h"

#include <stdlib.h>
#include <string.h>

#include "kernels/cuda/gemm_tile.h"

enum { CANDIDATES = 8, CANDIDATES_FEW = 24, ROUNDS = 3, WORKSPACE = 32 << 20 };
/* Few rows: the product is a stream of weights, and choices differ by how they cover its start and
 * end. */
enum { ROWS_FEW = 128, ROUNDS_COLD = 6 };
static const size_t COLD = 192 << 20; /* bytes of stand-in weights, more than any cache holds */

/* One product, described to the library: column-major, so out^T = W x^T. */
struct problem {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t weight, x, out;
};

int row_class_of(int rows)
{
    int upper = 1;
    while (upper < rows && upper < 1 << 16)
        upper *= 2;
    return upper > 64 && rows <= upper / 4 * 3 ? upper / 4 * 3 : upper;
}

static bool problem_describe(const struct lt *lt, const struct gemm_op *op, bool bias,
                             struct problem *problem)
{
    const cublasOperation_t transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    const cudaDataType_t bias_type = CUDA_R_32F;
    cudaDataType_t out_type = op->float_out ? CUDA_R_32F : CUDA_R_16BF;
    size_t layout = sizeof(cublasLtMatrixLayoutOpaque_t);
    bool right =
        lt->desc_init(&problem->desc, sizeof(problem->desc), CUBLAS_COMPUTE_32F, CUDA_R_32F) == 0 &&
        lt->desc_set(&problem->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                     sizeof(transposed)) == 0 &&
        lt->desc_set(&problem->desc, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof(plain)) == 0 &&
        lt->layout_init(&problem->weight, layout, CUDA_R_16BF, op->depth, op->columns, op->depth) ==
            0 &&
        lt->layout_init(&problem->x, layout, CUDA_R_16BF, op->depth, op->rows, op->ld_x) == 0 &&
        lt->layout_init(&problem->out, layout, out_type, op->columns, op->rows, op->ld_out) == 0;
    if (right && bias)
        right = lt->desc_set(&problem->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                             sizeof(epilogue)) == 0 &&
                lt->desc_set(&problem->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type,
                             sizeof(bias_type)) == 0 &&
                lt->desc_set(&problem->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &op->bias,
                             sizeof(op->bias)) == 0;
    return right;
}

static bool problem_run(struct device *device, const struct gemm_op *op, struct problem *problem,
                        const cublasLtMatmulAlgo_t *algorithm)
{
    const float one = 1.0f, zero = 0.0f;
    struct gemm_context *gemm = device->gemm;
    return gemm->lt.matmul(gemm->handle, &problem->desc, &one, op->weight, &problem->weight, op->x,
                           &problem->x, &zero, op->out, &problem->out, op->out, &problem->out,
                           algorithm, gemm->workspace, WORKSPACE, device->stream) == 0;
}

static int candidates_find(struct gemm_context *gemm, struct problem *problem,
                           cublasLtMatmulHeuristicResult_t *results, int most)
{
    cublasLtMatmulPreferenceOpaque_t preference;
    const uint64_t workspace = WORKSPACE;
    const uint32_t alignment = 16;
    int found = 0;
    const struct lt *lt = &gemm->lt;
    bool right = lt->preference_init(&preference, sizeof(preference)) == 0 &&
                 lt->preference_set(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                    &workspace, sizeof(workspace)) == 0;
    const cublasLtMatmulPreferenceAttributes_t sides[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4 && right; i++)
        right = lt->preference_set(&preference, sides[i], &alignment, sizeof(alignment)) == 0;
    if (!right ||
        lt->heuristic(gemm->handle, &problem->desc, &problem->weight, &problem->x, &problem->out,
                      &problem->out, &preference, most, results, &found) != 0)
        return 0;
    return found;
}

/* ---- our own forms: gemv.cu's, then gemm_stream.cu's ---------------------------------------- */

enum { FORMS = GEMV_FORMS + STREAM_FORMS };

static bool form_fits(const struct device *device, const struct gemm_op *op, int form)
{
    return form < GEMV_FORMS ? gemv_fits(op, form)
                             : form < FORMS && stream_fits(device, op, form - GEMV_FORMS);
}

static enum status form_run(struct device *device, const struct gemm_op *op, int form)
{
    return form < GEMV_FORMS ? gemv_run(device, op, form)
                             : stream_run(device, op, form - GEMV_FORMS);
}

/* ---- timing -------------------------------------------------------------------------------- */

struct candidate {
    struct device *device;
    const struct gemm_op *op;
    struct problem *problem;
    const cublasLtMatmulAlgo_t *algorithm;
    int form; /* -1: the algorithm */
};

static bool candidate_run(const struct candidate *c)
{
    return c->form >= 0 ? form_run(c->device, c->op, c->form) == STATUS_OK
                        : problem_run(c->device, c->op, c->problem, c->algorithm);
}

/* Microseconds of `runs` runs in a row, or a negative number when the candidate refuses. */
static float runs_time(const struct candidate *c, int runs)
{
    struct gemm_context *gemm = c->device->gemm;
    float milliseconds = -1.0f;
    if (cudaEventRecord(gemm->begin, c->device->stream) != cudaSuccess)
        return -1.0f;
    for (int run = 0; run < runs; run++)
        if (!candidate_run(c))
            return -1.0f;
    if (cudaEventRecord(gemm->end, c->device->stream) != cudaSuccess ||
        cudaEventSynchronize(gemm->end) != cudaSuccess ||
        cudaEventElapsedTime(&milliseconds, gemm->begin, gemm->end) != cudaSuccess)
        return -1.0f;
    return milliseconds * 1000.0f / (float)runs;
}

/* A graph of runs that each find their weights in memory: they walk through the context's stand-in
 * for weights, where two products' fit it. */
static bool chain_record(const struct candidate *c, cudaGraphExec_t *out)
{
    size_t bytes = (size_t)c->op->columns * (size_t)c->op->depth * 2, at = 0;
    struct gemm_op op = *c->op;
    struct candidate run = *c;
    cudaGraph_t graph = NULL;
    bool right = true;
    run.op = &op;
    if (cudaStreamBeginCapture(c->device->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess)
        return false;
    for (int i = 0; i < ROUNDS_COLD && right; i++) {
        at = at + bytes > COLD ? 0 : at;
        if (2 * bytes <= COLD)
            op.weight = c->device->gemm->cold + at;
        at += bytes;
        right = candidate_run(&run);
    }
    right = cudaStreamEndCapture(c->device->stream, &graph) == cudaSuccess && right;
    right = right && cudaGraphInstantiate(out, graph, 0) == cudaSuccess;
    if (graph != NULL)
        (void)cudaGraphDestroy(graph);
    if (!right)
        (void)cudaGetLastError(); /* an algorithm that no recording takes is no failure */
    return right;
}

static float chain_time(const struct candidate *c)
{
    struct gemm_context *gemm = c->device->gemm;
    cudaGraphExec_t graph;
    float best = -1.0f;
    if (!chain_record(c, &graph))
        return -1.0f;
    for (int i = 0; i < ROUNDS; i++) {
        float milliseconds;
        if (cudaEventRecord(gemm->begin, c->device->stream) != cudaSuccess ||
            cudaGraphLaunch(graph, c->device->stream) != cudaSuccess ||
            cudaEventRecord(gemm->end, c->device->stream) != cudaSuccess ||
            cudaEventSynchronize(gemm->end) != cudaSuccess ||
            cudaEventElapsedTime(&milliseconds, gemm->begin, gemm->end) != cudaSuccess)
            break;
        if (best < 0.0f || milliseconds < best)
            best = milliseconds;
    }
    (void)cudaGraphExecDestroy(graph);
    return best * 1000.0f / ROUNDS_COLD;
}

/* Few rows: as part of a recorded step, where one product may start while another ends. */
static float candidate_time(const struct candidate *c)
{
    if (runs_time(c, 1) < 0.0f)
        return -1.0f;
    float time = c->op->rows > ROWS_FEW ? runs_time(c, ROUNDS) : chain_time(c);
    /* Between norms and mixers an early start is worth more than between products alike. */
    return c->form >= 0 ? time * 0.97f : time;
}

/* ---- plans --------------------------------------------------------------------------------- */

static void plan_offer(const struct candidate *c, struct plan *plan, float *best)
{
    float time = candidate_time(c);
    if (time < 0.0f || (plan->usable && time >= *best))
        return;
    plan->usable = true;
    plan->form = c->form;
    if (c->algorithm != NULL)
        plan->algorithm = *c->algorithm;
    *best = time;
}

struct pick pick_of(const struct plan *plan)
{
    struct pick pick = {};
    pick.columns = plan->columns;
    pick.depth = plan->depth;
    pick.row_class = plan->row_class;
    pick.float_out = plan->float_out;
    pick.bias = plan->bias;
    pick.form = plan->form;
    if (plan->form < 0)
        memcpy(pick.algorithm, &plan->algorithm, PICK_BYTES);
    return pick;
}

/* What an earlier run chose, if it is one of today's candidates: a file is never trusted to
 * describe an algorithm, only to point at one that the library has just offered. */
static bool plan_recall(const struct device *device, const struct gemm_op *op, struct plan *plan,
                        const cublasLtMatmulHeuristicResult_t *results, int found)
{
    static_assert(sizeof(cublasLtMatmulAlgo_t) == PICK_BYTES, "an algorithm is 64 bytes");
    const struct picks *picks = device->gemm->picks;
    const struct pick like = pick_of(plan);
    const struct pick *pick = picks != NULL ? picks_find(picks, &like) : NULL;
    if (pick == NULL || plan->replaced)
        return false;
    plan->form = pick->form;
    if (pick->form >= 0)
        return plan->usable = form_fits(device, op, pick->form);
    for (int i = 0; i < found && !plan->usable; i++)
        if (memcmp(&results[i].algo, pick->algorithm, PICK_BYTES) == 0) {
            plan->usable = true;
            plan->algorithm = results[i].algo;
        }
    return plan->usable;
}

/* Where nothing can be timed: the first choice. */
static void plan_guess(const struct gemm_op *op, struct plan *plan,
                       const cublasLtMatmulHeuristicResult_t *results, int found)
{
    plan->usable = found > 0 || gemv_fits(op, 0);
    plan->form = gemv_fits(op, 0) ? 0 : -1;
    if (found > 0)
        plan->algorithm = results[0].algo;
}

static void plan_time(struct device *device, const struct gemm_op *op, struct plan *plan,
                      struct problem *problem, const cublasLtMatmulHeuristicResult_t *results,
                      int found)
{
    float best = 0.0f;
    for (int i = 0; i < found; i++) {
        struct candidate candidate = {device, op, problem, &results[i].algo, -1};
        plan_offer(&candidate, plan, &best);
    }
    float best_library = best;
    for (int form = 0; form < FORMS; form++) {
        if (!form_fits(device, op, form))
            continue;
        struct candidate candidate = {device, op, problem, NULL, form};
        plan_offer(&candidate, plan, &best);
    }
    (void)cudaGetLastError(); /* a candidate's refusal is no failure */
    plan->timed = plan->usable;
    log_debug("cuda: gemm %d x %d x %d: %d candidates, %.1f us; form %d, %.1f us%s", op->rows,
              op->columns, op->depth, found, (double)best_library, plan->form, (double)best,
              plan->usable ? "" : ", own kernel");
}

static void plan_make(struct device *device, const struct gemm_op *op, struct plan *plan)
{
    cublasLtMatmulHeuristicResult_t results[CANDIDATES_FEW];
    struct problem problem;
    int found = 0, most = op->rows <= ROWS_FEW ? CANDIDATES_FEW : CANDIDATES;
    plan->form = -1;
    plan->usable = plan->timed = false;
    plan->fused_bias = op->bias != NULL;
    if (problem_describe(&device->gemm->lt, op, plan->fused_bias, &problem))
        found = candidates_find(device->gemm, &problem, results, most);
    if (found == 0 && plan->fused_bias) {
        plan->fused_bias = false;
        if (problem_describe(&device->gemm->lt, op, false, &problem))
            found = candidates_find(device->gemm, &problem, results, most);
    }
    if (plan_recall(device, op, plan, results, found))
        return;
    plan->form = -1;
    if (device->recording || device->gemm->hurried)
        plan_guess(op, plan, results, found);
    else
        plan_time(device, op, plan, &problem, results, found);
}

struct plan *plan_for(struct device *device, const struct gemm_op *op, bool *made)
{
    struct gemm_context *gemm = device->gemm;
    int row_class = row_class_of(op->rows);
    *made = false;
    for (int i = 0; i < gemm->plans; i++) {
        struct plan *plan = &gemm->plan[i];
        if (plan->columns == op->columns && plan->depth == op->depth &&
            plan->row_class == row_class && plan->float_out == op->float_out &&
            plan->bias == (op->bias != NULL))
            return plan;
    }
    if (gemm->plans == PLANS)
        return NULL;
    struct plan *plan = &gemm->plan[gemm->plans++];
    plan->columns = op->columns;
    plan->depth = op->depth;
    plan->row_class = row_class;
    plan->float_out = op->float_out;
    plan->bias = op->bias != NULL;
    plan_make(device, op, plan);
    *made = true;
    return plan;
}

bool library_fits(const struct device *device, const struct gemm_op *op)
{
    int unit = op->float_out ? 4 : 8;
    return !device->options.batch_invariant && op->depth % 8 == 0 && op->ld_x % 8 == 0 &&
           op->columns % 8 == 0 && op->ld_out % unit == 0 && aligned16(op->x) &&
           aligned16(op->weight) && aligned16(op->out);
}

/* *ran: false when the plan has nothing that takes these rows. */
static enum status plan_run(struct device *device, const struct gemm_op *op,
                            const struct plan *plan, bool *ran)
{
    struct problem problem;
    *ran = plan->usable && plan->form >= 0 && form_fits(device, op, plan->form);
    if (*ran)
        return form_run(device, op, plan->form);
    *ran = plan->usable && plan->form < 0 &&
           problem_describe(&device->gemm->lt, op, plan->fused_bias, &problem) &&
           problem_run(device, op, &problem, &plan->algorithm);
    if (*ran && op->bias != NULL && !plan->fused_bias)
        return gemm_bias(device, op);
    return *ran ? launch_check("gemm") : STATUS_OK;
}

/* An algorithm may refuse row counts other than the one it was chosen with. The class then gets
 * another, once; when that refuses too, our own kernel serves. */
static bool plan_replace(struct device *device, const struct gemm_op *op, struct plan *plan)
{
    if (!plan->usable || plan->lost)
        return false;
    (void)cudaGetLastError(); /* the refusal's */
    plan->lost = plan->replaced;
    plan->replaced = true;
    log_warning("cuda: gemm %d x %d x %d: the choice for up to %d rows refused: %s", op->rows,
                op->columns, op->depth, plan->row_class,
                plan->lost ? "the general kernel serves, slowly" : "choosing again");
    if (!plan->lost)
        plan_make(device, op, plan);
    return !plan->lost;
}

bool cuda_gemm_fuses(struct device *device, const struct gemm_op *op)
{
    return !device->options.batch_invariant && gemv_fused_fits(op);
}

enum status cuda_gemm(struct device *device, const struct gemm_op *op)
{
    enum status status = device_enter(device);
    if (status != STATUS_OK || op->rows == 0 || op->columns == 0)
        return status;
    if (op->norm != NULL || op->add)
        return cuda_gemm_fuses(device, op) ? gemv_fused(device, op) : STATUS_INTERNAL;
    if (!library_fits(device, op))
        return gemm_tile_fits(op) ? gemm_tile(device, op) : gemm_own(device, op);
    bool made, ran = false;
    struct plan *plan = plan_for(device, op, &made);
    if (plan != NULL)
        status = plan_run(device, op, plan, &ran);
    if (status == STATUS_OK && !ran && plan != NULL && plan_replace(device, op, plan))
        status = plan_run(device, op, plan, &ran);
    return ran || status != STATUS_OK ? status : gemm_own(device, op);
}

enum status gemm_open(struct device *device, struct error *error)
{
    struct gemm_context *gemm = (struct gemm_context *)calloc(1, sizeof(*gemm));
    if (gemm == NULL)
        return error_set(error, STATUS_NO_MEMORY, "cuda: out of host memory");
    device->gemm = gemm;
    enum status status = lt_load(&gemm->lt, error);
    if (status != STATUS_OK)
        return status;
    if (gemm->lt.create(&gemm->handle) != 0)
        return error_set(error, STATUS_DEVICE, "cuda: device %d: cuBLASLt does not start",
                         device->ordinal);
    cudaError_t result = cudaMalloc(&gemm->workspace, WORKSPACE);
    if (result == cudaSuccess)
        result = cudaMalloc(&gemm->cold, COLD);
    if (result == cudaSuccess)
        result = cudaMemsetAsync(gemm->cold, 0x3c, COLD, device->stream);
    if (result == cudaSuccess)
        result = cudaEventCreate(&gemm->begin);
    if (result == cudaSuccess)
        result = cudaEventCreate(&gemm->end);
    return device_opened(device, result, "memory for products", error);
}

void gemm_close(struct device *device)
{
    struct gemm_context *gemm = device->gemm;
    if (gemm == NULL)
        return;
    if (gemm->begin != NULL)
        (void)cudaEventDestroy(gemm->begin);
    if (gemm->end != NULL)
        (void)cudaEventDestroy(gemm->end);
    (void)cudaFree(gemm->workspace);
    (void)cudaFree(gemm->cold);
    if (gemm->handle != NULL)
        (void)gemm->lt.destroy(gemm->handle);
    free(gemm->picks);
    free(gemm);
    device->gemm = NULL;
}
