/* The operations that are built once per instruction set. Each works on the units begin .. end - 1
 * of its operation, so that a team of threads can share it; units never exchange anything. */
#ifndef JETD_KERNELS_CPU_VARIANT_H
#define JETD_KERNELS_CPU_VARIANT_H

#include "kernels/kernels.h"

struct variant {
    const char *name;
    void (*gemm)(const void *gemm_op, int begin, int end);               /* columns */
    void (*attention)(const void *attention_op, int begin, int end);     /* tokens */
    void (*convolution)(const void *convolution_op, int begin, int end); /* channels */
    void (*delta_recurrent)(const void *delta_op, int begin, int end);   /* heads */
    void (*delta_chunked)(const void *delta_op, int begin, int end);     /* heads */
};

extern const struct variant variant_plain, variant_avx2, variant_avx512;

#define VARIANT_JOIN(name, variant) name##_##variant
#define VARIANT_NAME(name, variant) VARIANT_JOIN(name, variant)
#define VARIANT(name) VARIANT_NAME(name, CPU_VARIANT)

#ifdef CPU_VARIANT
void VARIANT(gemm)(const void *gemm_op, int begin, int end);
void VARIANT(attention)(const void *attention_op, int begin, int end);
void VARIANT(convolution)(const void *convolution_op, int begin, int end);
void VARIANT(delta_recurrent)(const void *delta_op, int begin, int end);
void VARIANT(delta_chunked)(const void *delta_op, int begin, int end);
#endif

#endif
