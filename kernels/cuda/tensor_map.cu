/* The driver's entry is looked up at run time: a build with CUDA starts on hosts without a
 * driver. */
#include "kernels/cuda/tensor_map.h"

typedef decltype(&cuTensorMapEncodeTiled) encode_function;

static encode_function encode_find()
{
    void *entry = NULL;
    enum cudaDriverEntryPointQueryResult found;
    cudaError_t result = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                          cudaEnableDefault, &found);
    return result == cudaSuccess && found == cudaDriverEntryPointSuccess ? (encode_function)entry
                                                                         : NULL;
}

enum status tensor_map_make(CUtensorMap *map, const void *data, const struct tensor_shape *shape)
{
    static const encode_function encode = encode_find();
    const cuuint32_t strides[5] = {1, 1, 1, 1, 1};
    if (encode == NULL) {
        log_error("cuda: the driver lacks cuTensorMapEncodeTiled");
        return STATUS_DEVICE;
    }
    CUresult result =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)shape->rank, (void *)data,
               shape->extents, shape->pitches, shape->box, strides, CU_TENSOR_MAP_INTERLEAVE_NONE,
               shape->swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        log_error("cuda: cuTensorMapEncodeTiled failed with %d", (int)result);
        return STATUS_DEVICE;
    }
    return STATUS_OK;
}

enum status tensor_map_rows(CUtensorMap *map, const void *data, int64_t rows, int columns,
                            int64_t pitch, int box_rows)
{
    /* The row count only bounds coordinates; INT32_MAX admits all that a coordinate can name. */
    const struct tensor_shape shape = {
        2,
        {(cuuint64_t)columns, (cuuint64_t)(rows < 0 ? INT32_MAX : rows)},
        {(cuuint64_t)pitch * 2},
        {64, (cuuint32_t)box_rows},
        true};
    return tensor_map_make(map, data, &shape);
}
