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

enum status tensor_map_rows(CUtensorMap *map, const void *data, int64_t rows, int columns,
                            int64_t pitch, int box_rows)
{
    static const encode_function encode = encode_find();
    if (encode == NULL) {
        log_error("cuda: the driver lacks cuTensorMapEncodeTiled");
        return STATUS_DEVICE;
    }
    /* The row count only bounds coordinates; INT32_MAX admits all that a coordinate can name. */
    const cuuint64_t extents[2] = {(cuuint64_t)columns, (cuuint64_t)(rows < 0 ? INT32_MAX : rows)};
    const cuuint64_t pitches[1] = {(cuuint64_t)pitch * 2};
    const cuuint32_t box[2] = {64, (cuuint32_t)box_rows};
    const cuuint32_t strides[2] = {1, 1};
    CUresult result =
        encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)data, extents, pitches, box,
               strides, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
               CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
        log_error("cuda: cuTensorMapEncodeTiled failed with %d", (int)result);
        return STATUS_DEVICE;
    }
    return STATUS_OK;
}
