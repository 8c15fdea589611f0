// Linear layers of weights in f32: the order of NUMERICS.md's rule 1, so that they have the bits of every other device.
//
// Limited by the latency of additions, one after the other: such weights are for comparing, not for speed. One thread per
// output and eight rows; neighbours read neighbouring weights: w [k][n].

KERNEL(linear_exact)
(float *y, const float *w, const float *x, u32 rows, u32 n, u32 k, u32 items, const u32 *ends, const u32 *merges,
 const float *bias) {
  constexpr u32 ROWS = 8, STACK = 12;
  u32 output = block_x() * threads() + thread(), first_row = block_y() * ROWS;
  if (output >= n) return;
  u32 count = rows - first_row < ROWS ? rows - first_row : ROWS;
  float stack[STACK][ROWS];
  u32 height = 0, input = 0;
  for (u32 item = 0; item < items; item++) {
    float sum[ROWS] = {};
    for (; input < ends[item]; input++) {
      float weight = w[u64(input) * n + output];
      for (u32 row = 0; row < count; row++)
        sum[row] = fused(x[u64(first_row + row) * k + input], weight, sum[row]);
    }
    for (u32 m = 0; m < merges[item]; m++) {
      height--;
      for (u32 row = 0; row < count; row++) sum[row] = stack[height][row] + sum[row];
    }
    for (u32 row = 0; row < count; row++) stack[height][row] = sum[row];
    height++;
  }
  for (u32 node = 0; node < height; node++)
    for (u32 row = 0; row < count; row++) {
      float sum = stack[node][row];
      y[(u64(node) * rows + first_row + row) * n + output] = bias ? sum + bias[output] : sum;
    }
}
EXPORT(linear_exact)
