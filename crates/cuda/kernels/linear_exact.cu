// Linear layers of weights in f32: the order of NUMERICS.md's rule 1, so that they have the bits of every other device.
//
// Limited by the latency of additions, one after the other: such weights are for comparing, not for speed. One thread per
// output and eight rows; neighbours read neighbouring weights: w [k][n].

namespace exact {

// Rows of one weight: how many, the first of them in the result, and how many that has per node; `tokens`: which row of x each
// is, if it is another.
struct Rows { u32 count, first, all; const u32 *tokens; };
struct Program { u32 items; const u32 *ends, *merges; };

// Rows of a block (crates/cuda/src/linear/blocks.rs).
constexpr u32 ROWS = 8;

DEVICE void linear(float *y, const float *w, const float *x, Rows rows, u32 first_row, u32 n, u32 k, Program program,
                   const float *bias) {
  constexpr u32 STACK = 12;
  u32 output = block_x() * threads() + thread();
  if (output >= n || first_row >= rows.count) return;
  u32 count = rows.count - first_row < ROWS ? rows.count - first_row : ROWS;
  const float *inputs[ROWS];
  for (u32 row = 0; row < count; row++) {
    u32 place = rows.first + first_row + row;
    inputs[row] = x + u64(rows.tokens ? rows.tokens[place] : place) * k;
  }
  float stack[STACK][ROWS];
  u32 height = 0, input = 0;
  for (u32 item = 0; item < program.items; item++) {
    float sum[ROWS] = {};
    for (; input < program.ends[item]; input++) {
      float weight = w[u64(input) * n + output];
      for (u32 row = 0; row < count; row++) sum[row] = fused(inputs[row][input], weight, sum[row]);
    }
    for (u32 m = 0; m < program.merges[item]; m++) {
      height--;
      for (u32 row = 0; row < count; row++) sum[row] = stack[height][row] + sum[row];
    }
    for (u32 row = 0; row < count; row++) stack[height][row] = sum[row];
    height++;
  }
  for (u32 node = 0; node < height; node++)
    for (u32 row = 0; row < count; row++) {
      float sum = stack[node][row];
      y[(u64(node) * rows.all + rows.first + first_row + row) * n + output] = bias ? sum + bias[output] : sum;
    }
}

} // namespace exact

KERNEL(linear_exact)
(float *y, const float *w, const float *x, u32 rows, u32 n, u32 k, u32 items, const u32 *ends, const u32 *merges,
 const float *bias) {
  exact::Rows all{rows, 0, rows, nullptr};
  exact::linear(y, w, x, all, block_y() * exact::ROWS, n, k, exact::Program{items, ends, merges}, bias);
}
EXPORT(linear_exact)

// Of experts: the rows of expert e begin at offsets[e], its blocks of rows at block_first[e]; three addresses of each, the first that
// of its elements.
KERNEL(linear_exact_experts)
(float *y, const u64 *experts, const u32 *offsets, const u32 *block_first, u32 num_experts, const u32 *tokens, const float *x,
 u32 pairs, u32 n, u32 k, u32 items, const u32 *ends, const u32 *merges) {
  if (block_y() >= block_first[num_experts]) return;
  u32 e = expert_of(block_y(), block_first, num_experts), first_row = (block_y() - block_first[e]) * exact::ROWS;
  exact::Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, tokens};
  const float *w = reinterpret_cast<const float *>(experts[3 * e]);
  exact::linear(y, w, x, rows, first_row, n, k, exact::Program{items, ends, merges}, nullptr);
}
EXPORT(linear_exact_experts)
