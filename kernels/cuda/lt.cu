/* Finding cuBLASLt at run time. */
#include "kernels/cuda/lt.h"

#include <dlfcn.h>

template <typename Function>
static bool lt_find(void *library, const char *name, Function *function)
{
    *function = (Function)dlsym(library, name);
    return *function != NULL;
}

enum status lt_load(struct lt *lt, struct error *error)
{
    static const char *const names[] = {"libcublasLt.so.13", "libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so.13"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]) && library == NULL; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return error_set(error, STATUS_CONFIG, "cuda: %s could not be loaded: %s", names[0],
                         dlerror());
    bool found = lt_find(library, "cublasLtCreate", &lt->create) &&
                 lt_find(library, "cublasLtDestroy", &lt->destroy) &&
                 lt_find(library, "cublasLtGetVersion", &lt->version) &&
                 lt_find(library, "cublasLtMatmul", &lt->matmul) &&
                 lt_find(library, "cublasLtMatmulDescInit_internal", &lt->desc_init) &&
                 lt_find(library, "cublasLtMatmulDescSetAttribute", &lt->desc_set) &&
                 lt_find(library, "cublasLtMatrixLayoutInit_internal", &lt->layout_init) &&
                 lt_find(library, "cublasLtMatmulPreferenceInit_internal", &lt->preference_init) &&
                 lt_find(library, "cublasLtMatmulPreferenceSetAttribute", &lt->preference_set) &&
                 lt_find(library, "cublasLtMatmulAlgoGetHeuristic", &lt->heuristic);
    if (!found)
        return error_set(error, STATUS_CONFIG, "cuda: %s lacks an entry: %s", names[0], dlerror());
    return STATUS_OK;
}
