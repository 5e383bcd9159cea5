/* The PTX that these kernels use, wrapped once. sm_90a. */
#ifndef JETD_KERNELS_CUDA_PTX_CUH
#define JETD_KERNELS_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <stdint.h>

__device__ static inline uint32_t shared_address(const void *pointer)
{
    return (uint32_t)__cvta_generic_to_shared(pointer);
}

/* ---- asynchronous copies of 16 bytes into shared memory ------------------------------------ */

/* `bytes` 16, or 0 to write zeros. */
__device__ static inline void copy16_async(uint32_t to, const void *from, int bytes = 16)
{
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;\n" ::"r"(to), "l"(from),
                 "r"(bytes)
                 : "memory");
}

__device__ static inline void copy_commit()
{
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

/* Waits until at most PENDING groups are under way. */
template <int PENDING>
__device__ static inline void copy_wait()
{
    asm volatile("cp.async.wait_group %0;\n" ::"n"(PENDING) : "memory");
}

/* ---- mma.sync ------------------------------------------------------------------------------ */

__device__ static inline void load_matrices(uint32_t *tile, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                 : "r"(address)
                 : "memory");
}

__device__ static inline void load_matrices_transposed(uint32_t *tile, uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                 : "=r"(tile[0]), "=r"(tile[1]), "=r"(tile[2]), "=r"(tile[3])
                 : "r"(address)
                 : "memory");
}

__device__ static inline void store_matrices_transposed(uint32_t address, const uint32_t *tile)
{
    asm volatile(
        "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
        "r"(tile[0]), "r"(tile[1]), "r"(tile[2]), "r"(tile[3])
        : "memory");
}

__device__ static inline void store_matrices(uint32_t address, const uint32_t *tile)
{
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};\n" ::"r"(address),
                 "r"(tile[0]), "r"(tile[1]), "r"(tile[2]), "r"(tile[3])
                 : "memory");
}

/* An 8 x 8 block of b16: thread t holds row t / 4, columns 2 (t % 4) + {0, 1}. */
__device__ static inline uint32_t transpose8(uint32_t matrix)
{
    uint32_t turned;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;\n" : "=r"(turned) : "r"(matrix));
    return turned;
}

/* c [16, 8] += a [16, 16] b [16, 8], fp32 accumulation. */
__device__ static inline void mma_bf16(float *c, const uint32_t *a, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static inline uint32_t pack_bf16(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&pair;
}

__device__ static inline float power_of_two(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
    return y;
}

/* ---- state: read once, written once; first to leave the caches ----------------------------- */

__device__ static inline float4 load_once(const float *from)
{
    return __ldcs((const float4 *)from);
}

__device__ static inline void store_once(float *to, float4 value)
{
    __stcs((float4 *)to, value);
}

/* Ordinary writes to shared memory, before wgmma or the copy engine reads them. */
__device__ static inline void proxy_fence()
{
    asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory");
}

/* ---- mbarriers and the copy engine --------------------------------------------------------- */

__device__ static inline void barrier_init(uint32_t barrier, int arrivals)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;\n" ::"r"(barrier), "r"(arrivals)
                 : "memory");
}

/* After the last init, before the block's barrier. */
__device__ static inline void barrier_init_done()
{
    asm volatile("fence.mbarrier_init.release.cluster;\n"
                 "fence.proxy.async.shared::cta;\n" ::
                     : "memory");
}

__device__ static inline void barrier_arrive(uint32_t barrier)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];\n" ::"r"(barrier) : "memory");
}

/* Arrives, and makes the phase wait for `bytes` from the copy engine. */
__device__ static inline void barrier_expect(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;\n" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

/* Only makes the phase wait for them. */
__device__ static inline void barrier_expect_only(uint32_t barrier, int bytes)
{
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;\n" ::"r"(barrier),
                 "r"(bytes)
                 : "memory");
}

__device__ static inline void barrier_wait(uint32_t barrier, int parity)
{
    uint32_t done = 0;
    while (!done)
        asm volatile("{\n.reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, done;\n}\n"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
}

/* A box of a tensor map at (x, y), x contiguous, into shared memory. */
__device__ static inline void copy_box(uint32_t to, const void *map, int x, int y, uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier)
                 : "memory");
}

/* ---- roles -------------------------------------------------------------------------------- */

template <int COUNT>
__device__ static inline void registers_release()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

template <int COUNT>
__device__ static inline void registers_claim()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;\n" ::"n"(COUNT));
}

__device__ static inline void threads_sync(int barrier, int threads)
{
    asm volatile("bar.sync %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ static inline void threads_arrive(int barrier, int threads)
{
    asm volatile("bar.arrive %0, %1;\n" ::"r"(barrier), "r"(threads) : "memory");
}

/* ---- the copy engine on plain rows --------------------------------------------------------- */

/* For data that is used once. */
__device__ static inline uint64_t policy_evict_first()
{
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;\n" : "=l"(policy));
    return policy;
}

/* copy_box of data that is used once: `policy` is policy_evict_first(). */
__device__ static inline void copy_box_once(uint32_t to, const void *map, int x, int y,
                                            uint32_t barrier, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier), "l"(policy)
                 : "memory");
}

/* `bytes` (a multiple of 16) into shared memory; the barrier counts them. */
__device__ static inline void copy_in(uint32_t to, const void *from, int bytes, uint32_t barrier)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1], %2, [%3];\n" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier)
                 : "memory");
}

__device__ static inline void copy_in(uint32_t to, const void *from, int bytes, uint32_t barrier,
                                      uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;\n" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
                 : "memory");
}

/* `bytes` (a multiple of 16) from shared memory, after proxy_fence() and a barrier. */
__device__ static inline void copy_out(void *to, uint32_t from, int bytes)
{
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;\n"
                 "cp.async.bulk.commit_group;\n" ::"l"(to),
                 "r"(from), "r"(bytes)
                 : "memory");
}

/* Until the copies that this thread began have read their shared memory. */
__device__ static inline void copy_out_wait()
{
    asm volatile("cp.async.bulk.wait_group.read 0;\n" ::: "memory");
}

/* ---- clusters: blocks that share boxes ----------------------------------------------------- */

__device__ static inline int cluster_rank()
{
    uint32_t rank;
    asm("mov.u32 %0, %%cluster_ctarank;\n" : "=r"(rank));
    return (int)rank;
}

/* Every thread of every block of the cluster. */
__device__ static inline void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;\n" ::: "memory");
}

/* Arrives at block `rank`'s barrier of the same address. Of no wider scope than the block: enough
 * for what this thread has read, and a wider one would wait for all its writes to be seen. */
__device__ static inline void barrier_arrive_at(uint32_t barrier, int rank)
{
    asm volatile("{\n.reg .b32 there;\n"
                 "mapa.shared::cluster.u32 there, %0, %1;\n"
                 "mbarrier.arrive.shared::cluster.b64 _, [there];\n}\n" ::"r"(barrier),
                 "r"(rank)
                 : "memory");
}

/* copy_box into the same place of every block in `mask`; each one's barrier counts it. */
__device__ static inline void copy_box_shared(uint32_t to, const void *map, int x, int y,
                                              uint32_t barrier, int mask)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(barrier), "h"((uint16_t)mask)
                 : "memory");
}

/* Boxes of a map of five dimensions at (x, 0, y, 0, 0). */
__device__ static inline void copy_box5_shared(uint32_t to, const void *map, int x, int y,
                                               uint32_t barrier, int mask)
{
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".multicast::cluster [%0], [%1, {%2, %3, %4, %3, %3}], [%5], %6;\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(0), "r"(y), "r"(barrier), "h"((uint16_t)mask)
                 : "memory");
}

/* A box of a map of three dimensions. */
__device__ static inline void copy_box3(uint32_t to, const void *map, int x, int y, int z,
                                        uint32_t barrier)
{
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];\n" ::"r"(to),
                 "l"(map), "r"(x), "r"(y), "r"(z), "r"(barrier)
                 : "memory");
}

#endif
