/* Weights from file dtypes to the dtypes that the back ends compute in. */
#ifndef JETD_PARTITION_CONVERT_H
#define JETD_PARTITION_CONVERT_H

#include <stddef.h>
#include <stdint.h>

#include "kernels/bf16.h"
#include "kernels/kernels.h"

float f32_from_f16(uint16_t bits);

/* Converts `count` elements; `to` is DTYPE_F32 or DTYPE_BF16. Both arrays are aligned to their
 * element. Returns the first element that is NaN or Inf (in `to`, so a finite f32 that bf16 cannot
 * hold counts), or `count` when there is none. */
size_t convert_elements(enum dtype from, const void *in, enum dtype to, void *out, size_t count);

#endif
