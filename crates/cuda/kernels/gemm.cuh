// Linear layers for many rows: what linear.cuh computes, in the same order, and so with the same bits.
//
// Weights of 16 bits are limited by the tensor cores, of whose rate mma.sync reaches some 60 % on Hopper, those of 8 bits by
// widening too (with scales of checkpoints also by a fused operation per sum and tile), whole numbers by what is done to each
// group's sums beside the product (a conversion, a multiplication, a fused one: about twice its time). Where a tree's leaves are
// short, all are limited by the local memory in which sums wait for others (NUMERICS.md, rule 2). Weights of 16 bits should reach
// 55 % of the rate of a library.
//
// A block has 128 outputs and 128 rows, each of its four warps a quarter, 64 by 64, of which a step of 16 inputs reads 4 kB of
// shared memory for 32 products of 16 by 8 by 16. Operands lie in memory as lanes want them, so they are copied as they are,
// three stages ahead. Of gate and up (`gate`: 1 + the activation) half of a warp's outputs are of each.
#ifndef GEMM_CUH
#define GEMM_CUH

namespace gemm {

constexpr u32 PANELS = 4, GROUPS = 8, WARPS_ALONG = 2, THREADS = 128, STACK = 12, STAGES = 4, NONE = 0xffffffffu;
constexpr u32 BLOCK_PANELS = PANELS * WARPS_ALONG, BLOCK_GROUPS = GROUPS * WARPS_ALONG;

#define EACH(p, g, i)                                                                                                  \
  UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)

// Where the parts of a stage begin: of each its units (panels or groups), of each unit its tiles.
template <class Format> struct Stage {
  static constexpr u32 TILES = Format::TILES, LEFT = BLOCK_PANELS * TILES, RIGHT = BLOCK_GROUPS * TILES;
  static constexpr u32 WEIGHT_SCALES = LEFT * Format::LEFT.elements, WEIGHT_ZEROS = WEIGHT_SCALES + LEFT * Format::LEFT.scales;
  static constexpr u32 INPUTS = WEIGHT_ZEROS + LEFT * Format::LEFT.more;
  static constexpr u32 INPUT_SCALES = INPUTS + RIGHT * Format::RIGHT.elements;
  static constexpr u32 INPUT_SUMS = INPUT_SCALES + RIGHT * Format::RIGHT.scales, BYTES = INPUT_SUMS + RIGHT * Format::RIGHT.more;
};

// Some tiles of units, each of so many bytes, from the first one on; zeros where there are none.
template <u32 UNITS, u32 TILES, u32 TILE_BYTES, class Unit>
DEVICE void fetch(u8 *to, const u8 *from, u32 tile, u32 tiles, const Unit &unit_of) {
  if constexpr (TILE_BYTES > 0) {
    constexpr u32 UNIT_BYTES = TILES * TILE_BYTES;
    UNROLL for (u32 at = thread() * 16; at < UNITS * UNIT_BYTES; at += THREADS * 16) {
      u32 unit = unit_of(at / UNIT_BYTES), inner = at % UNIT_BYTES;
      if (unit != NONE && tile + inner / TILE_BYTES < tiles)
        copy_async(to + at, from + (u64(unit) * tiles + tile) * TILE_BYTES + inner);
      else *reinterpret_cast<Vec4 *>(to + at) = Vec4{0, 0, 0, 0};
    }
  }
}

// The scales of a tile of panels that share them with other tiles.
template <u32 UNITS, class Unit>
DEVICE void fetch_shared(u8 *to, const Operands &of, u32 panels, u32 tile, const Unit &panel_of) {
  static_assert(UNITS * 4 <= THREADS, "a thread copies once");
  u32 at = thread();
  if (at < UNITS * 4) {
    u32 panel = panel_of(at / 4);
    if (panel != NONE) copy_async(to + at * 16, shared_scales(of, panels, panel, tile) + at % 4 * 16);
    else reinterpret_cast<Vec4 *>(to)[at] = Vec4{0, 0, 0, 0};
  }
}

// 128 rows of one weight from the group of this number on, and 128 outputs, or 64 of gate and up.
template <class Format>
DEVICE void multiply(float *y, const Operands &of, Rows rows, u32 block_group, u32 n, const Item *items, u32 num_items,
                     const float *bias, u32 gate) {
  typedef gemm::Stage<Format> Stage;
  constexpr u32 TILES = Format::TILES;
  DYNAMIC_SHARED(u8, shared);
  u32 lane = thread() % 32, warp = thread() / 32, panels = (n + 15) / 16, groups = (rows.count + 7) / 8;
  u32 own_panel = warp % WARPS_ALONG * PANELS, own_group = warp / WARPS_ALONG * GROUPS;

  // A warp's first panels are gates, the others what they are for.
  auto panel_of = [&](u32 unit) {
    u32 pair = (block_x() * BLOCK_PANELS + unit) / PANELS * (PANELS / 2) + unit % (PANELS / 2);
    u32 half = unit % PANELS / (PANELS / 2), panel = gate ? pair + half * (panels / 2) : block_x() * BLOCK_PANELS + unit;
    return (gate ? pair < panels / 2 : panel < panels) ? panel : NONE;
  };
  auto group_of = [&](u32 unit) { return block_group + unit < groups ? rows.first_group + block_group + unit : NONE; };
  auto fetch_stage = [&](u32 stage) {
    u8 *here = shared + stage % STAGES * Stage::BYTES;
    u32 tile = stage * TILES, tiles = of.tiles;
    if (tile < tiles) {
      constexpr Sizes LEFT = Format::LEFT, RIGHT = Format::RIGHT;
      fetch<BLOCK_PANELS, TILES, LEFT.elements>(here, of.weights, tile, tiles, panel_of);
      u8 *scales = here + Stage::WEIGHT_SCALES;
      if constexpr (LEFT.is_shared) fetch_shared<BLOCK_PANELS>(scales, of, panels, tile, panel_of);
      else fetch<BLOCK_PANELS, TILES, LEFT.scales>(scales, of.weight_scales, tile, tiles, panel_of);
      fetch<BLOCK_PANELS, TILES, LEFT.more>(here + Stage::WEIGHT_ZEROS, of.weight_zeros, tile, tiles, panel_of);
      fetch<BLOCK_GROUPS, TILES, RIGHT.elements>(here + Stage::INPUTS, of.inputs, tile, tiles, group_of);
      fetch<BLOCK_GROUPS, TILES, RIGHT.scales>(here + Stage::INPUT_SCALES, of.input_scales, tile, tiles, group_of);
      fetch<BLOCK_GROUPS, TILES, RIGHT.more>(here + Stage::INPUT_SUMS, of.input_sums, tile, tiles, group_of);
    }
    copies_end();
  };
  for (u32 stage = 0; stage < STAGES - 1; stage++) fetch_stage(stage);

  float stack[STACK][PANELS][GROUPS][4];
  u32 height = 0, tile = 0;
  for (u32 at = 0; at < num_items; at++) {
    Item item = items[at];
    float d[PANELS][GROUPS][4] = {};
    for (; tile < item.end; tile++) {
      if (tile % TILES == 0) {
        copies_wait<STAGES - 2>();
        // All have what they copied, and nobody reads what is written next.
        sync_block();
        fetch_stage(tile / TILES + STAGES - 1);
      }
      const u8 *here = shared + tile / TILES % STAGES * Stage::BYTES;
      typename Format::Left left[PANELS];
      UNROLL for (u32 p = 0; p < PANELS; p++) {
        u32 place = (own_panel + p) * TILES + tile % TILES;
        left[p] = Format::template left<Near>(Tile{here + place * Format::LEFT.elements,
                                                   here + Stage::WEIGHT_SCALES + place * Format::LEFT.scales,
                                                   here + Stage::WEIGHT_ZEROS + place * Format::LEFT.more});
      }
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        u32 place = (own_group + g) * TILES + tile % TILES;
        typename Format::Right right = Format::right(Tile{here + Stage::INPUTS + place * Format::RIGHT.elements,
                                                          here + Stage::INPUT_SCALES + place * Format::RIGHT.scales,
                                                          here + Stage::INPUT_SUMS + place * Format::RIGHT.more});
        UNROLL for (u32 p = 0; p < PANELS; p++) Format::multiply(d[p][g], left[p], right);
      }
    }
    for (u32 m = 0; m < item.merges; m++) {
      height--;
      EACH(p, g, i) d[p][g][i] = stack[height][p][g][i] + d[p][g][i];
    }
    EACH(p, g, i) stack[height][p][g][i] = d[p][g][i];
    height++;
  }

  u32 outputs = gate ? n / 2 : n, first = block_x() * BLOCK_PANELS + own_panel;
  u32 kept = gate ? PANELS / 2 : PANELS;
  for (u32 node = 0; node < height; node++) {
    // Sums lie in local memory anyway, and this is too much code to have it for each of them.
    UNROLL_BY(1) for (u32 at = 0; at < kept * GROUPS * 4; at++) {
      u32 p = at / (GROUPS * 4), g = at / 4 % GROUPS, i = at % 4;
      u32 panel = gate ? first / 2 + p : first + p, output = panel * 16 + lane / 4 + i / 2 * 8;
      u32 row = (block_group + own_group + g) * 8 + lane_pair() + i % 2;
      if (output >= outputs || row >= rows.count) continue;
      float sum = stack[node][p][g][i];
      if (bias) sum = sum + bias[output];
      if (gate) {
        float other = stack[node][(p + PANELS / 2) % PANELS][g][i];
        sum = activation(gate - 1, sum) * (bias ? other + bias[outputs + output] : other);
      }
      y[(u64(node) * rows.all + rows.first + row) * outputs + output] = sum;
    }
  }
}

// The expert whose rows a block has, of those whose blocks begin at block_first[e]; `experts` where there is none.
DEVICE u32 expert_of(u32 block, const u32 *block_first, u32 experts) {
  if (block >= block_first[experts]) return experts;
  u32 expert = 0;
  for (u32 end = experts; end - expert > 1;) {
    u32 middle = (expert + end) / 2;
    if (block_first[middle] <= block) expert = middle;
    else end = middle;
  }
  return expert;
}

#undef EACH

} // namespace gemm

// Of one weight, and of those of experts: as in linear.cuh, but that a block looks up whose rows it has.
#define GEMM(name, ...)                                                                                                \
  typedef __VA_ARGS__ name##_format;                                                                                   \
  KERNEL_OF(128, name)                                                                                                 \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 rows, u32 n, const Item *items, u32 num_items,         \
   const float *bias, u32 gate) {                                                                                      \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, input_sums, tiles};                        \
    u32 group = block_y() * gemm::BLOCK_GROUPS;                                                                        \
    gemm::multiply<name##_format>(y, of, Rows{rows, 0, rows, 0}, group, n, items, num_items, bias, gate);              \
  }                                                                                                                    \
  EXPORT(name)                                                                                                         \
  KERNEL_OF(128, name##_experts)                                                                                       \
  (float *y, const Expert *experts, const u32 *offsets, const u32 *group_first, const u32 *block_first,                \
   u32 num_experts, const u8 *inputs, const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 pairs, u32 n,       \
   const Item *items, u32 num_items, u32 gate) {                                                                       \
    u32 e = gemm::expert_of(block_y(), block_first, num_experts);                                                      \
    if (e == num_experts) return;                                                                                      \
    Operands of{experts[e].elements, experts[e].scales, experts[e].zeros, inputs, input_scales, input_sums, tiles};    \
    Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, group_first[e]};                                         \
    u32 group = (block_y() - block_first[e]) * gemm::BLOCK_GROUPS;                                                     \
    gemm::multiply<name##_format>(y, of, rows, group, n, items, num_items, nullptr, gate);                             \
  }                                                                                                                    \
  EXPORT(name##_experts)

#endif
