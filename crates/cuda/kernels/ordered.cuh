// Linear layers of whole numbers without a tree, for few rows: their groups are summed one after the other (NUMERICS.md, rule 10), so
// that warps cannot share them as linear.cuh does.
//
// Limited by the bytes of the weights, like linear.cuh. What takes the time is exact in any order: a block's eight warps multiply two
// tiles each of two panels, and leave whole numbers in shared memory; there each of its threads adds up one output of one row, group
// after group, while the next tiles are on their way. Per 16 tiles that is some 300 clocks, in which memory brings less than
// the 16 kB that they have.
#ifndef ORDERED_CUH
#define ORDERED_CUH

namespace ordered {

constexpr u32 WARPS = 8, PANELS = 2, OUTPUTS = 16 * PANELS, EACH_WARP = 2, AT_ONCE = WARPS * EACH_WARP;
// Numbers from one row to the next: lanes of a warp write eight outputs of four rows to banks of their own.
constexpr u32 STRIDE = OUTPUTS + 4;

struct Sums {
  float numbers[AT_ONCE][8 * STRIDE], weight_scales[AT_ONCE][OUTPUTS], input_scales[AT_ONCE][8];
};

template <class Format>
DEVICE void multiply(float *y, const Operands &of, Rows rows, u32 first_row, u32 n, const float *bias, u32 gate) {
  SHARED Sums all[2];
  u32 lane = thread() % 32, warp = thread() / 32, panels = (n + 15) / 16;
  u32 panel[PANELS];
  UNROLL for (u32 p = 0; p < PANELS; p++) {
    u32 wanted = gate ? block_x() + p * (panels / 2) : block_x() * PANELS + p;
    panel[p] = wanted < panels ? wanted : panels - 1;
  }
  typename Format::Left left[EACH_WARP][PANELS];
  typename Format::Right right[EACH_WARP];
  auto load = [&](u32 first) {
    UNROLL for (u32 i = 0; i < EACH_WARP; i++) {
      u32 wanted = first + warp * EACH_WARP + i, tile = wanted < of.tiles ? wanted : of.tiles - 1;
      UNROLL for (u32 p = 0; p < PANELS; p++) {
        u64 place = u64(panel[p]) * of.tiles + tile;
        left[i][p] = Format::template left<Streamed>(Tile{of.weights + place * Format::LEFT.elements,
                                                          of.weight_scales + place * Format::LEFT.scales,
                                                          of.weight_zeros + place * Format::LEFT.more});
      }
      u64 place = u64(rows.first_group + first_row / 8) * of.tiles + tile;
      right[i] = Format::right(Tile{of.inputs + place * Format::RIGHT.elements, of.input_scales + place * Format::RIGHT.scales,
                                    of.input_sums + place * Format::RIGHT.more});
    }
  };

  u32 own_output = thread() % OUTPUTS, own_row = thread() / OUTPUTS;
  float sum = 0.0f;
  if (of.tiles > 0) load(0);
  for (u32 first = 0, turn = 0; first < of.tiles; first += AT_ONCE, turn = 1 - turn) {
    Sums &here = all[turn];
    UNROLL for (u32 i = 0; i < EACH_WARP; i++) {
      u32 at = warp * EACH_WARP + i, output = lane / 4, row = lane_pair();
      UNROLL for (u32 p = 0; p < PANELS; p++) {
        int sums[4];
        Format::products(sums, left[i][p], right[i]);
        UNROLL for (u32 j = 0; j < 4; j++)
          here.numbers[at][(row + j % 2) * STRIDE + p * 16 + j / 2 * 8 + output] = float(sums[j]);
        if (lane % 4 == 0) {
          here.weight_scales[at][p * 16 + output] = left[i][p].scales[0];
          here.weight_scales[at][p * 16 + 8 + output] = left[i][p].scales[1];
        }
      }
      if (lane < 4) {
        here.input_scales[at][row] = right[i].scales[0];
        here.input_scales[at][row + 1] = right[i].scales[1];
      }
    }
    if (first + AT_ONCE < of.tiles) load(first + AT_ONCE);
    // The other one is written next: whoever comes here has read it.
    sync_block();
    u32 count = of.tiles - first < AT_ONCE ? of.tiles - first : AT_ONCE;
    for (u32 at = 0; at < count; at++)
      sum = fused(here.numbers[at][own_row * STRIDE + own_output],
                  here.weight_scales[at][own_output] * here.input_scales[at][own_row], sum);
  }

  u32 outputs = gate ? n / 2 : n, output = block_x() * (gate ? 16 : OUTPUTS) + own_output, row = first_row + own_row;
  // Of a row's two panels the upper one has what gates are for.
  u32 of_bias = gate && own_output >= 16 ? output - 16 + outputs : output;
  if (bias && of_bias < n) sum = sum + bias[of_bias];
  if (gate) {
    float other = shuffle_xor(sum, 16);
    sum = activation(gate - 1, sum) * other;
    if (own_output >= 16) return;
  }
  if (row < rows.count && output < outputs) y[u64(rows.first + row) * outputs + output] = sum;
}

} // namespace ordered

// Of one weight, and of those of experts: as in linear.cuh.
#define ORDERED(name, ...)                                                                                             \
  typedef __VA_ARGS__ name##_format;                                                                                   \
  KERNEL_OF(256, name)                                                                                                 \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 rows, u32 n, const float *bias, u32 gate) {            \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, input_sums, tiles};                        \
    ordered::multiply<name##_format>(y, of, Rows{rows, 0, rows, 0}, block_y() * 8, n, bias, gate);                     \
  }                                                                                                                    \
  EXPORT(name)                                                                                                         \
  KERNEL_OF(256, name##_experts)                                                                                       \
  (float *y, const Expert *experts, const u32 *offsets, const u32 *group_first, const u32 *block_first,                \
   u32 num_experts, const u8 *inputs, const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 pairs, u32 n,       \
   u32 gate) {                                                                                                         \
    if (block_y() >= block_first[num_experts]) return;                                                                 \
    u32 e = expert_of(block_y(), block_first, num_experts);                                                            \
    Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, group_first[e]};                                         \
    Operands of{experts[e].elements, experts[e].scales, experts[e].zeros, inputs, input_scales, input_sums, tiles};    \
    ordered::multiply<name##_format>(y, of, rows, (block_y() - block_first[e]) * 8, n, nullptr, gate);                 \
  }                                                                                                                    \
  EXPORT(name##_experts)

#endif
