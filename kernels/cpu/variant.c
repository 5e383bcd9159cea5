#include "kernels/cpu/variant.h"

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)

const struct variant VARIANT(variant) = {
    .name = TEXT(CPU_VARIANT),
    .gemm = VARIANT(gemm),
    .attention = VARIANT(attention),
    .convolution = VARIANT(convolution),
    .delta_recurrent = VARIANT(delta_recurrent),
    .delta_chunked = VARIANT(delta_chunked),
};
