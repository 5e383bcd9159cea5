/* jetbench kernels as a program that needs neither gRPC nor MPI. */
#include "tests/perf/bench.h"

int main(int argc, char **argv)
{
    return bench_kernels(argc, argv, argc);
}
