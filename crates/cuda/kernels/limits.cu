// What a GPU does at best, for other kernels' speed to be compared with.
//
// Limited by one thing each: limits_copy by memory both ways, limits_read by reading it, limits_mma by the tensor cores, as fast as
// mma.sync drives them (on chips of compute capability 9.0 and 10.0 other instructions are faster, which no kernel here uses: what
// those give is measured by NVIDIA's library, linear/fast/rate.rs),
// limits_nothing by what it takes to start a kernel.

// Sixteen bytes each. Four are under way at a time per thread.
KERNEL(limits_copy)(Vec4 *to, const Vec4 *from, u64 count) {
  u64 stride = u64(blocks_x()) * threads(), at = u64(block_x()) * threads() + thread();
  for (; at + 3 * stride < count; at += 4 * stride) {
    Vec4 some[4];
    UNROLL
    for (u32 i = 0; i < 4; i++) some[i] = load_stream(from + at + i * stride);
    UNROLL
    for (u32 i = 0; i < 4; i++) to[at + i * stride] = some[i];
  }
  for (; at < count; at += stride) to[at] = load_stream(from + at);
}
EXPORT(limits_copy)

// What nobody expects is written, so that all is read.
KERNEL(limits_read)(u32 *to, const Vec4 *from, u64 count, u32 unexpected) {
  u64 stride = u64(blocks_x()) * threads(), at = u64(block_x()) * threads() + thread();
  u32 sum = 0;
  for (; at + 7 * stride < count; at += 8 * stride) {
    Vec4 some[8];
    UNROLL
    for (u32 i = 0; i < 8; i++) some[i] = load_stream(from + at + i * stride);
    UNROLL
    for (u32 i = 0; i < 8; i++) sum += some[i].x ^ some[i].y ^ some[i].z ^ some[i].w;
  }
  for (; at < count; at += stride) {
    Vec4 one = load_stream(from + at);
    sum += one.x ^ one.y ^ one.z ^ one.w;
  }
  if (sum == unexpected) to[0] = sum;
}
EXPORT(limits_read)

// Products of a warp in a step, which don't wait for each other: limits.rs counts them.
constexpr u32 LIMITS_PRODUCTS = 16;

// Of numbers near 1, as different from lane to lane as those of models: zeros would take less power and a higher clock.
KERNEL(limits_mma)(float *to, u32 steps, float unexpected) {
  float d[LIMITS_PRODUCTS][4] = {};
  u32 a[4], b[2], seed = thread() * 2654435761u + 1;
  UNROLL
  for (u32 i = 0; i < 4; i++) a[i] = 0x3f803f80u ^ ((seed >> i) & 0x803f803fu);
  UNROLL
  for (u32 i = 0; i < 2; i++) b[i] = 0x3f803f80u ^ ((seed >> (i + 4)) & 0x803f803fu);
  for (u32 step = 0; step < steps; step++) {
    UNROLL
    for (u32 i = 0; i < LIMITS_PRODUCTS; i++) mma_bfloat(d[i], a, b);
  }
  float sum = 0.0f;
  UNROLL
  for (u32 i = 0; i < LIMITS_PRODUCTS; i++) sum += d[i][0] + d[i][1] + d[i][2] + d[i][3];
  if (sum == unexpected) to[0] = sum;
}
EXPORT(limits_mma)

KERNEL(limits_nothing)(u32 *) {}
EXPORT(limits_nothing)
