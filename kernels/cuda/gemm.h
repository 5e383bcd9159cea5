/* The forms of the matrix product; gemm.cu chooses. */
#ifndef JETD_KERNELS_CUDA_GEMM_H
#define JETD_KERNELS_CUDA_GEMM_H

#include "kernels/cuda/device.h"

/* Gate's half of the product, which says all that the other needs. */
static inline struct gemm_op gate_up_product(const struct gate_up_op *op)
{
    struct gemm_op product = {};
    product.rows = op->rows;
    product.columns = product.ld_out = op->columns;
    product.depth = op->depth;
    product.ld_x = op->ld_x;
    product.x = op->x;
    product.weight = op->weight;
    product.out = op->out;
    product.norm = op->norm;
    product.epsilon = op->epsilon;
    return product;
}

/* gate_up.cu: no fused form takes op; it is composed, of the library's product among others. */
bool gate_up_composes(const struct device *device, const struct gate_up_op *op);

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
