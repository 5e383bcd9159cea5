#include "kernels/kernels.h"

size_t dtype_size(enum dtype dtype)
{
    return dtype == DTYPE_F32 ? 4 : 2;
}

const char *dtype_name(enum dtype dtype)
{
    static const char *const names[] = {"f32", "bf16", "f16"};
    return names[dtype];
}
