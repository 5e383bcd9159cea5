/* The "cuda" table of a build without CUDA: it can be found, but not opened. */
#include "kernels/kernels.h"

extern const struct backend backend_cuda;

static enum status none_open(const struct device_options *options, struct device **device,
                             struct error *error)
{
    (void)options;
    (void)device;
    return error_set(error, STATUS_CONFIG,
                     "device cuda: this build has no CUDA back end (configure with JETD_CUDA=ON "
                     "where nvcc is installed)");
}

static int none_devices(void)
{
    return 0;
}

const struct backend backend_cuda = {
    .name = "cuda",
    .activation = DTYPE_BF16,
    .open = none_open,
    .devices = none_devices,
};
