/* The forms of the matrix product; gemm.cu chooses. */
#ifndef JETD_KERNELS_CUDA_GEMM_H
#define JETD_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/device.h"

enum status gemm_own(struct device *device, const struct gemm_op *op);
enum status gemm_bias(struct device *device, const struct gemm_op *op);

/* gemv.cu: products of few rows, in one of its forms. */
enum { GEMV_FORMS = 2 };
bool gemv_fits(const struct gemm_op *op);
enum status gemv_run(struct device *device, const struct gemm_op *op, int form);

#endif
