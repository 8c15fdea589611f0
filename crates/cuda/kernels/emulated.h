// What kernels are written in, on a processor: gpu.cuh's words in C++, so that every kernel runs where there is no GPU. One
// block at a time, its threads as fibers of one thread of the system that take turns. The order of blocks, of a block's warps
// and of a warp's lanes follows from `turn`, and a warp runs on until nothing but other warps can help it: so in one order one
// warp is as far ahead of another as barriers let it be, in another one as far behind, and a kernel that lacks a barrier gives
// another result.

#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <sched.h>
#include <tuple>
#include <ucontext.h>
#include <utility>
#include <vector>

#define DEVICE static inline
#define DEVICE_IN static inline
// Without bounds a thread may have 255 registers, and a multiprocessor 65,536: so many threads always fit.
#define KERNEL(name) KERNEL_OF(256, name)
#define KERNEL_OF(threads, name)                                                                                       \
  constexpr uint32_t most_threads_of_##name = threads;                                                                 \
  static void name
#define EXPORT(name)                                                                                                   \
  extern "C" uint32_t arguments_of_##name() { return emulated::count_arguments(name); }                                \
  extern "C" uint32_t threads_of_##name() { return most_threads_of_##name; }                                           \
  extern "C" void emulate_##name(const uint32_t *grid, uint32_t threads, uint32_t shared, void **arguments,             \
                                 uint32_t turn) {                                                                      \
    if (threads > most_threads_of_##name) emulated::fail(#name ": more threads than its blocks may have");              \
    emulated::launch(name, grid, threads, shared, arguments, turn);                                                    \
  }
#define SHARED static thread_local
#define DYNAMIC_SHARED(type, name) type *name = reinterpret_cast<type *>(emulated::block().shared.data())
#define UNROLL
#define UNROLL_BY(n)

typedef uint8_t u8;
typedef int8_t i8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

namespace emulated {

constexpr u32 WARP = 32;
constexpr size_t STACK = 64 << 10;

struct alignas(16) Sixteen { u8 bytes[16]; };

// What copy_async is told, until it is waited for; from nowhere come zeros.
struct Copy { void *to; const void *from; };

struct Fiber {
  std::vector<std::vector<Copy>> copies;
  ucontext_t start;
  jmp_buf at;
  std::vector<u8> stack = std::vector<u8>(STACK);
  bool has_begun, is_done;
  // The meetings that it waits for, and how many there were when it came.
  const u64 *waits_for;
  u64 since;
};

// Lanes meet here: each leaves what others want to know, and goes on when all are there.
struct Warp {
  u64 meetings;
  u32 arrived;
  u8 left[2][WARP][64];
};

struct Block {
  u32 x, y, z, grid[3], threads, thread, running;
  u64 meetings;
  u32 arrived;
  // Whether a thread got on; whether one waits for what no thread of the block does.
  bool moved, relaxed;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Sixteen> shared;
  jmp_buf home;
  void (*body)(void *);
  void *context;
};

inline Block &block() {
  static thread_local Block block;
  return block;
}

[[noreturn]] inline void fail(const char *why) {
  fprintf(stderr, "emulated kernel: %s\n", why);
  abort();
}

// Lets the next thread of the block run.
inline void yield() {
  Block &b = block();
  Fiber &fiber = b.fibers[b.thread];
  if (_setjmp(fiber.at) == 0) _longjmp(b.home, 1);
}

inline void enter() {
  Block &b = block();
  b.body(b.context);
  b.fibers[b.thread].is_done = true;
  b.moved = true;
  _longjmp(b.home, 1);
}

inline void resume(u32 thread) {
  Block &b = block();
  b.thread = thread;
  Fiber &fiber = b.fibers[thread];
  if (_setjmp(b.home) != 0) return;
  if (fiber.has_begun) _longjmp(fiber.at, 1);
  fiber.has_begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.data();
  fiber.start.uc_stack.ss_size = fiber.stack.size();
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, enter, 0);
  setcontext(&fiber.start);
}

// Returns when `count` threads have come.
inline void meet(u64 &meetings, u32 &arrived, u32 count) {
  Block &b = block();
  b.moved = true;
  u64 own = meetings;
  if (++arrived == count) {
    arrived = 0;
    meetings++;
    return;
  }
  Fiber &fiber = b.fibers[b.thread];
  fiber.waits_for = &meetings;
  fiber.since = own;
  while (meetings == own) yield();
  fiber.waits_for = nullptr;
}

inline void sync_block() { meet(block().meetings, block().arrived, block().threads); }

// Leaves `value` for the other lanes and gives what each of them left.
template <class T> inline const u8 (*meet_lanes(const T &value))[64] {
  static_assert(sizeof(T) <= 64, "more than lanes can leave");
  Block &b = block();
  Warp &warp = b.warps[b.thread / WARP];
  u32 lanes = std::min(WARP, b.threads - b.thread / WARP * WARP);
  // Two places, because a lane may come to the next meeting before another has read what was left here.
  u32 parity = warp.meetings & 1;
  memcpy(warp.left[parity][b.thread % WARP], &value, sizeof(T));
  meet(warp.meetings, warp.arrived, lanes);
  return warp.left[parity];
}

// The i-th of `count` in an order.
inline u32 in_turn(u32 i, u32 count, u32 turn) {
  if (turn < 2) return turn == 0 ? i : count - 1 - i;
  // A permutation only where the factor has no common divisor with the number, which a power of two has not.
  bool is_power = (count & (count - 1)) == 0;
  return u32((u64(i) * (is_power ? 0x9e3779b1u : 1) + turn) % count);
}

// Lets a warp's threads run until each waits for others, or one says that it waits for what no other does. How many are left.
inline u32 run_warp(u32 warp, u32 turn) {
  Block &b = block();
  u32 lanes = std::min(WARP, b.threads - warp * WARP), left;
  b.relaxed = false;
  for (bool ran = true; ran && !b.relaxed;) {
    ran = false;
    left = 0;
    for (u32 i = 0; i < lanes; i++) {
      u32 thread = warp * WARP + in_turn(i, lanes, turn);
      Fiber &fiber = b.fibers[thread];
      if (fiber.is_done) continue;
      // Others have not come yet: it would only find that out.
      if (fiber.waits_for && *fiber.waits_for == fiber.since) {
        left++;
        continue;
      }
      resume(thread);
      ran = true;
      left += !b.fibers[thread].is_done;
    }
  }
  return left;
}

inline void run_block(u32 turn) {
  Block &b = block();
  b.meetings = b.arrived = 0;
  for (Fiber &fiber : b.fibers) {
    fiber.has_begun = fiber.is_done = false;
    // The group that is open.
    fiber.copies.assign(1, {});
    fiber.waits_for = nullptr;
  }
  for (Warp &warp : b.warps) warp.meetings = warp.arrived = 0;
  u32 warps = u32(b.warps.size());
  for (u32 left = b.threads; left > 0;) {
    b.moved = false;
    left = 0;
    for (u32 i = 0; i < warps; i++) left += run_warp(in_turn(i, warps, turn), turn);
    if (left > 0 && !b.moved) fail("some threads wait at a barrier to which others never come");
  }
}

template <class... A> constexpr u32 count_arguments(void (*)(A...)) { return sizeof...(A); }

// An argument in the first bytes of its slot of eight; the others must be zero, or the kernel takes less than it is given.
template <class A> A argument(const void *slot) {
  u8 bytes[8];
  memcpy(bytes, slot, sizeof bytes);
  for (size_t i = sizeof(A); i < sizeof bytes; i++)
    if (bytes[i] != 0) fail("an argument has more bits than the kernel takes");
  A value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(argument<A>(arguments[I])...);
}

template <class... A>
void launch(void (*kernel)(A...), const u32 *grid, u32 threads, u32 shared, void **arguments, u32 turn) {
  // What GPUs take (CUDA C++ Programming Guide, technical specifications per compute capability).
  if (grid[0] - 1 >= 0x7fffffff || grid[1] - 1 >= 65535 || grid[2] - 1 >= 65535) fail("no grid that GPUs have");
  Block &b = block();
  std::copy(grid, grid + 3, b.grid);
  b.threads = threads;
  if (b.fibers.size() != threads) b.fibers.resize(threads);
  b.warps.resize((threads + WARP - 1) / WARP);
  auto body = [&] { call(kernel, arguments, std::index_sequence_for<A...>()); };
  b.context = &body;
  b.body = [](void *context) { (*static_cast<decltype(&body)>(context))(); };
  u64 blocks = u64(grid[0]) * grid[1] * grid[2];
  for (u64 i = 0; i < blocks; i++) {
    u64 at = turn % 2 ? blocks - 1 - i : i;
    b.x = u32(at % grid[0]), b.y = u32(at / grid[0] % grid[1]), b.z = u32(at / grid[0] / grid[1]);
    // What an earlier block left there must not matter.
    b.shared.assign((shared + 15) / 16, Sixteen{{0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff,
                                                 0x7f, 0xff, 0xff, 0xff, 0x7f}});
    run_block(turn);
  }
}

} // namespace emulated

DEVICE u32 thread() { return emulated::block().thread; }
DEVICE u32 threads() { return emulated::block().threads; }
DEVICE u32 block_x() { return emulated::block().x; }
DEVICE u32 block_y() { return emulated::block().y; }
DEVICE u32 block_z() { return emulated::block().z; }
DEVICE u32 blocks_x() { return emulated::block().grid[0]; }
DEVICE void sync_block() { emulated::sync_block(); }
DEVICE void sync_warp() { emulated::meet_lanes(0); }

template <class To, class From> DEVICE To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
DEVICE u32 bits_of(float x) { return same_bits<u32>(x); }
DEVICE float float_of(u32 bits) { return same_bits<float>(bits); }
DEVICE u64 bits_of(double x) { return same_bits<u64>(x); }
DEVICE double double_of(u64 bits) { return same_bits<double>(bits); }

DEVICE float fused(float a, float b, float c) { return std::fma(a, b, c); }
DEVICE double fused(double a, double b, double c) { return std::fma(a, b, c); }
DEVICE float root(float x) { return std::sqrt(x); }
DEVICE float exp2_fast(float x) {
  float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}
DEVICE float whole(float x) { return std::rint(x); }
DEVICE double whole(double x) { return std::rint(x); }

template <class T> DEVICE T lane_value(const u8 (*left)[64], u32 lane) {
  T value;
  memcpy(&value, left[lane], sizeof value);
  return value;
}
template <class T> DEVICE T shuffle(T value, u32 lane) {
  return lane_value<T>(emulated::meet_lanes(value), lane % emulated::WARP);
}
template <class T> DEVICE T shuffle_xor(T value, u32 bits) { return shuffle(value, (thread() % emulated::WARP) ^ bits); }
DEVICE u32 ballot(bool is) {
  const u8(*left)[64] = emulated::meet_lanes(is);
  u32 bits = 0;
  for (u32 lane = 0; lane < emulated::WARP; lane++) bits |= u32(lane_value<bool>(left, lane)) << lane;
  return bits;
}
DEVICE u32 alike(u32 value) {
  const u8(*left)[64] = emulated::meet_lanes(value);
  u32 bits = 0;
  for (u32 lane = 0; lane < emulated::WARP; lane++) bits |= u32(lane_value<u32>(left, lane) == value) << lane;
  return bits;
}
DEVICE u32 count_bits(u32 x) { return u32(__builtin_popcount(x)); }

DEVICE float half_to_float(u16 x) { return float(same_bits<_Float16>(x)); }
DEVICE u16 float_to_half(float x) { return same_bits<u16>(_Float16(x)); }
DEVICE u32 two_halfs(float low, float high) { return float_to_half(low) | u32(float_to_half(high)) << 16; }
DEVICE u16 float_to_bfloat(float x) {
  u32 bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
DEVICE u32 two_bfloats(float low, float high) { return float_to_bfloat(low) | u32(float_to_bfloat(high)) << 16; }
DEVICE u32 bfloats_times(u32 two, u32 others) {
  float low = float_of(two << 16) * float_of(others << 16);
  return two_bfloats(low, float_of(two & 0xffff0000u) * float_of(others & 0xffff0000u));
}

// What a GPU adds in an order of its own is added here exactly, almost, and rounded once.
struct Fragments { u32 a[4], b[2]; };
template <float widen(u16)> DEVICE void emulated_mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  Fragments own;
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  const u8(*left)[64] = emulated::meet_lanes(own);
  u32 lane = thread() % emulated::WARP, g = lane / 4, t = lane % 4;
  // Two rows of a and two columns of b.
  double x[2][16], y[2][16];
  for (u32 of = 0; of < 4; of++)
    for (u32 i = 0; i < 2; i++) {
      Fragments row = lane_value<Fragments>(left, g * 4 + of), col = lane_value<Fragments>(left, (2 * t + i) * 4 + of);
      for (u32 half = 0; half < 2; half++)
        for (u32 k = 0; k < 2; k++) {
          x[i][half * 8 + of * 2 + k] = widen(u16(row.a[i + 2 * half] >> (16 * k)));
          y[i][half * 8 + of * 2 + k] = widen(u16(col.b[half] >> (16 * k)));
        }
    }
  for (u32 i = 0; i < 4; i++) {
    double sum = d[i];
    for (u32 k = 0; k < 16; k++) sum += x[i / 2][k] * y[i % 2][k];
    d[i] = float(sum);
  }
}
DEVICE float widen_bfloat(u16 x) { return float_of(u32(x) << 16); }
DEVICE float widen_half(u16 x) { return half_to_float(x); }
DEVICE void mma_bfloat(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulated_mma<widen_bfloat>(d, a, b); }
DEVICE void mma_half(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { emulated_mma<widen_half>(d, a, b); }

DEVICE void mma_bytes(int (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  Fragments own;
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  const u8(*left)[64] = emulated::meet_lanes(own);
  u32 lane = thread() % emulated::WARP, g = lane / 4, t = lane % 4;
  for (u32 i = 0; i < 4; i++) {
    u32 row = g + i / 2 * 8, col = 2 * t + i % 2;
    for (u32 k = 0; k < 32; k++) {
      u32 of = k % 16 / 4, half = k / 16, shift = k % 4 * 8;
      i8 x = i8(lane_value<Fragments>(left, row % 8 * 4 + of).a[row / 8 + 2 * half] >> shift);
      i8 y = i8(lane_value<Fragments>(left, col * 4 + of).b[half] >> shift);
      d[i] += int(x) * int(y);
    }
  }
}

DEVICE int dot_bytes(u32 a, u32 b, int sum) {
  for (u32 i = 0; i < 4; i++) sum += int(i8(a >> 8 * i)) * int(i8(b >> 8 * i));
  return sum;
}

struct alignas(8) Vec2 { u32 x, y; };
struct alignas(16) Vec4 { u32 x, y, z, w; };
DEVICE Vec4 load_stream(const Vec4 *from) { return *from; }
DEVICE Vec4 load_ahead(const Vec4 *from) { return *from; }
DEVICE Vec2 load_ahead(const Vec2 *from) { return *from; }

// Copies are done as late as they may be: who reads before it waits reads something else.
DEVICE std::vector<std::vector<emulated::Copy>> &own_copies() { return emulated::block().fibers[thread()].copies; }
DEVICE void copy_async(void *to_shared, const void *from) { own_copies().back().push_back({to_shared, from}); }
DEVICE void copy_async_if(bool is_there, void *to_shared, const void *from) { copy_async(to_shared, is_there ? from : nullptr); }
DEVICE void copies_end() { own_copies().emplace_back(); }
template <int N> DEVICE void copies_wait() {
  auto &groups = own_copies();
  for (; groups.size() > N + 1; groups.erase(groups.begin()))
    for (const emulated::Copy &copy : groups.front()) {
      if (copy.from) memcpy(copy.to, copy.from, 16);
      else memset(copy.to, 0, 16);
    }
}

DEVICE u32 atomic_add(u32 *to, u32 by) { return __atomic_fetch_add(to, by, __ATOMIC_SEQ_CST); }
DEVICE void fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
DEVICE u32 load_acquire(const u32 *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
DEVICE void store_release(u32 *to, u32 v) { __atomic_store_n(to, v, __ATOMIC_RELEASE); }
DEVICE u64 clock_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return u64(t.tv_sec) * 1000000000ull + t.tv_nsec;
}
DEVICE void relax() {
  emulated::block().moved = emulated::block().relaxed = true;
  emulated::yield();
  sched_yield();
}
