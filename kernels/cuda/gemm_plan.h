/* How products are computed, by class: gemm.cu makes plans, gemm_prepare.cu has them made before
 * the first step and remembers them between runs. */
#ifndef JETD_KERNELS_CUDA_GEMM_PLAN_H
#define JETD_KERNELS_CUDA_GEMM_PLAN_H

#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemv.h"
#include "kernels/cuda/lt.h"
#include "kernels/picks.h"

enum { PLANS = 512 };

struct plan {
    int columns, depth, row_class;
    bool float_out, bias;
    bool usable, fused_bias;
    bool timed;    /* the fastest of its candidates, not the library's first word */
    bool replaced; /* the first choice refused a row count of the class */
    bool lost;     /* so did the second: said once */
    int form;      /* one of our own, numbered in gemm.cu; -1: the library's algorithm */
    cublasLtMatmulAlgo_t algorithm;
};

struct gemm_context {
    struct lt lt;
    cublasLtHandle_t handle;
    void *workspace;
    char *cold; /* stand-in weights */
    cudaEvent_t begin, end;
    bool hurried;        /* choose without timing */
    struct picks *picks; /* choices of earlier runs; NULL: none */
    int plans;
    struct plan plan[PLANS];
};

/* The largest row count of the class that `rows` belongs to: powers of two, with one step between
 * from 64 on. */
int row_class_of(int rows);
/* The plan of op's class, made now if there is none; NULL: no room. *made is set if it was. */
struct plan *plan_for(struct device *device, const struct gemm_op *op, bool *made);
/* The plan as it is kept between runs. */
struct pick pick_of(const struct plan *plan);
/* Whether the library's alignment rules hold: else, and on a batch-invariant device, products take
 * our own kernel and need no plan. */
bool library_fits(const struct device *device, const struct gemm_op *op);

#endif
