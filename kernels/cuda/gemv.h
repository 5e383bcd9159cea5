/* Products of few rows, bound by reading the weights once; gemm.cu, gate_up.cu and mixer.cu choose.
 */
#ifndef JETD_KERNELS_CUDA_GEMV_H
#define JETD_KERNELS_CUDA_GEMV_H

#include "kernels/cuda/device.h"

/* gemv.cu: a product of up to 16 rows, in one of its forms; at many depths there is only form 0. */
enum { GEMV_FORMS = 2 };
bool gemv_fits(const struct gemm_op *op, int form);
enum status gemv_run(struct device *device, const struct gemm_op *op, int form);

/* gemv_fused.cu: with what lies around it, of up to so many rows: with 8 the products of gemv.cu
 * and passes between them are faster. */
enum { GEMV_FUSED_ROWS = 4 };
/* With gemm_op's norm or add. */
bool gemv_fused_fits(const struct gemm_op *op);
enum status gemv_fused(struct device *device, const struct gemm_op *op);
/* Of silu(x). */
bool gemv_silu_fits(const struct gemm_op *op);
enum status gemv_silu(struct device *device, const struct gemm_op *op);
/* Gate and up side by side; no scratch. */
bool gemv_gate_up_fits(const struct gate_up_op *op);
enum status gemv_gate_up(struct device *device, const struct gate_up_op *op);

/* gemv_add.cu: any depth, without a norm. */
enum status gemv_add(struct device *device, const struct gemm_op *op);

#endif
