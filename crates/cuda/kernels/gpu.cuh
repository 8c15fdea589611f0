// What kernels are written in, on a GPU: the words that CUDA C++ and PTX have and C++ has not. emulated.h has the same for
// a processor. No header of the toolkit is included, so that NVRTC alone compiles this.

#define DEVICE __device__ __forceinline__
// Within a struct.
#define DEVICE_IN static __device__ __forceinline__
// A kernel: KERNEL(name)(arguments) { … }, and EXPORT(name) behind it.
#define KERNEL(name) extern "C" __global__ void name
// One whose blocks have at most so many threads.
#define KERNEL_OF(threads, name) extern "C" __global__ void __launch_bounds__(threads) name
#define EXPORT(name)
#define SHARED __shared__
// The block's memory whose size is said at launch.
#define DYNAMIC_SHARED(type, name)                                                                                     \
  extern __shared__ __align__(16) unsigned char dynamic_shared[];                                                      \
  type *name = reinterpret_cast<type *>(dynamic_shared)
#define UNROLL _Pragma("unroll")
#define UNROLL_BY(n) UNROLL_PRAGMA(unroll n)
#define UNROLL_PRAGMA(words) _Pragma(#words)

typedef unsigned char u8;
typedef signed char i8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

DEVICE u32 thread() { return threadIdx.x; }
DEVICE u32 threads() { return blockDim.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 blocks_x() { return gridDim.x; }
DEVICE void sync_block() { __syncthreads(); }
DEVICE void sync_warp() { __syncwarp(); }

DEVICE u32 bits_of(float x) { return __float_as_uint(x); }
DEVICE float float_of(u32 bits) { return __uint_as_float(bits); }
DEVICE u64 bits_of(double x) { return __double_as_longlong(x); }
DEVICE double double_of(u64 bits) { return __longlong_as_double(bits); }

// + − · / are rounded once each and never contracted (--fmad=false): what stands in a kernel is what is computed.
DEVICE float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
DEVICE double fused(double a, double b, double c) { return __fma_rn(a, b, c); }
DEVICE float root(float x) { return __fsqrt_rn(x); }
// 2 to the power x as GPUs approximate it, to 2 units of the last place; below the normal numbers it is 0.
DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// To the nearest whole number, ties to even.
DEVICE float whole(float x) { return rintf(x); }
DEVICE double whole(double x) { return rint(x); }

// A value of the lane whose number differs in these bits; of that lane.
template <class T> DEVICE T shuffle_xor(T value, u32 bits) { return __shfl_xor_sync(0xffffffffu, value, bits); }
template <class T> DEVICE T shuffle(T value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
// A bit per lane.
DEVICE u32 ballot(bool is) { return __ballot_sync(0xffffffffu, is); }
// A bit per lane that has the same value.
DEVICE u32 alike(u32 value) { return __match_any_sync(0xffffffffu, value); }
DEVICE u32 count_bits(u32 x) { return __popc(x); }

DEVICE float half_to_float(u16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
  return y;
}
DEVICE u16 float_to_half(float x) {
  u16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
  return y;
}
// Two numbers in a register, the first in the low half.
DEVICE u32 two_bfloats(float low, float high) {
  u32 y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
DEVICE u32 two_halfs(float low, float high) {
  u32 y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
// Two bfloat16 times two others, each rounded once; − 0 is added, which changes nothing.
DEVICE u32 bfloats_times(u32 two, u32 others) {
  u32 y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(two), "r"(others), "r"(0x80008000u));
  return y;
}

// d += a · b, a [16, 16], b [16, 8], d [16, 8] in a warp's registers. With g = lane / 4 and t = lane % 4, two numbers per
// register: a is rows g, g + 8, g, g + 8 and columns 2 t (twice), 2 t + 8 (twice); b is rows 2 t, 2 t + 8 of column g;
// d is rows g, g, g + 8, g + 8 and columns 2 t, 2 t + 1, twice (PTX ISA, mma.m16n8k16).
DEVICE void mma_bfloat(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
DEVICE void mma_half(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same of bytes with signs, a [16, 32], b [32, 8], four numbers per register: a is rows g, g + 8, g, g + 8 and columns 4 t
// (twice), 4 t + 16 (twice); b is rows 4 t, 4 t + 16 of column g. Exact.
DEVICE void mma_bytes(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four bytes with signs times four of b, added to a sum.
DEVICE int dot_bytes(u32 a, u32 b, int sum) {
  int d;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(sum));
  return d;
}

struct __align__(8) Vec2 { u32 x, y; };
struct __align__(16) Vec4 { u32 x, y, z, w; };

// Sixteen bytes that are read once and need not stay in the first cache. No kernel that runs writes there, so the compiler
// may load them as early as it likes.
DEVICE Vec4 load_stream(const Vec4 *from) {
  Vec4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(from));
  return v;
}

// The same where several are to be under way at once. The compiler puts loads that it may move right before their use, so that one
// waits for the other; these it leaves before the sync_warp that follows them.
DEVICE Vec4 load_ahead(const Vec4 *from) {
  Vec4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}
DEVICE Vec2 load_ahead(const Vec2 *from) {
  Vec2 v;
  asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
  return v;
}

// Sixteen bytes on their way to shared memory; a group of such is waited for by its number from the newest. What is read or
// written there must not move across ("memory").
DEVICE void copy_async(void *to_shared, const void *from) {
  u32 to = u32(__cvta_generic_to_shared(to_shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" : : "r"(to), "l"(from) : "memory");
}
// The same, or zeros, without reading anything.
DEVICE void copy_async_if(bool is_there, void *to_shared, const void *from) {
  u32 to = u32(__cvta_generic_to_shared(to_shared)), bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" : : "r"(to), "l"(from), "r"(bytes) : "memory");
}
DEVICE void copies_end() { asm volatile("cp.async.commit_group;" : : : "memory"); }
template <int N> DEVICE void copies_wait() { asm volatile("cp.async.wait_group %0;" : : "n"(N) : "memory"); }

DEVICE u32 atomic_add(u32 *to, u32 by) { return atomicAdd(to, by); }
// What was written before by this thread is seen by whoever sees what it writes after.
DEVICE void fence() { __threadfence(); }
// Between devices, and between kernels that run at the same time.
DEVICE u32 load_acquire(const u32 *from) {
  u32 v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
DEVICE void store_release(u32 *to, u32 v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" : : "l"(to), "r"(v) : "memory");
}
// Nanoseconds, for deadlines.
DEVICE u64 clock_ns() {
  u64 t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}
DEVICE void relax() { asm volatile("nanosleep.u32 40;"); }
