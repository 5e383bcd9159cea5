/* cuBLASLt, loaded when the first device opens, so that a build with CUDA starts on hosts that
 * have neither a GPU nor the library. */
#ifndef JETD_KERNELS_CUDA_LT_H
#define JETD_KERNELS_CUDA_LT_H

#include <cublasLt.h>

#include "kernels/cuda/device.h"

struct lt {
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtGetVersion) version;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescInit_internal) desc_init;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutInit_internal) layout_init;
    decltype(&cublasLtMatmulPreferenceInit_internal) preference_init;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
};

enum status lt_load(struct lt *lt, struct error *error);

#endif
