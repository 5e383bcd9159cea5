/* The forms of the matrix product; gemm.cu chooses. */
#ifndef JETD_KERNELS_CUDA_GEMM_H
#define JETD_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/device.h"

enum status gemm_own(struct device *device, const struct gemm_op *op);
enum status gemm_bias(struct device *device, const struct gemm_op *op);

/* gemm_stream.cu: products of 17 to 128 rows, in one of its forms. */
enum { STREAM_FORMS = 4 };
bool stream_fits(const struct device *device, const struct gemm_op *op, int form);
enum status stream_run(struct device *device, const struct gemm_op *op, int form);
/* Gate and up in one pass, for 17 to 128 rows. */
bool stream_gate_up_fits(const struct device *device, const struct gate_up_op *op);
enum status stream_gate_up(struct device *device, const struct gate_up_op *op);

#endif
