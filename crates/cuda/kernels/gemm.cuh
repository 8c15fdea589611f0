// Linear layers for many rows: what linear.cuh computes, in the same order, and so with the same bits.
//
// Weights of 16 bits are limited by the tensor cores, of whose rate mma.sync reaches some 60 % on Hopper: a product of 16 by 8 by 16
// then takes a multiprocessor 1.6 clocks, in which shared memory gives 205 bytes and the second cache 40 to 50. A warp has 64 outputs
// and 64 rows: a step of 16 inputs reads 4 kB of shared memory for 32 products, 128 bytes for each. A block of 256 outputs and 128 rows
// brings 48 bytes for each, one of 128 outputs 64; that is for layers that would leave multiprocessors without work. Blocks that
// run at the same time share both operands (`part_of`): else the weights of large layers came from memory again for each 128 rows.
// Weights of 8 bits are limited by widening too (with scales of checkpoints also by a fused operation per sum and tile), whole
// numbers by what is done to each group's sums beside the product (a conversion, a multiplication, a fused one: about twice its
// time). Weights of 16 bits should reach 55 % of the rate of a library.
//
// Operands lie in memory as lanes want them (16 bytes of a panel, 8 of a group of rows, no two lanes in one bank), so they are
// copied as they are, three stages ahead, and ldmatrix would do nothing for them. A stage has one barrier and, of 16 bits, 64 products of a
// warp, between which the copies are begun. Of gate and up (`gate`: 1 + the activation) half of a warp's outputs are of each.
//
// Items of a program (NUMERICS.md, rules 2 and 11) are summed in registers. Sums that wait for others lie in slots, one for each level of
// the tree: the first in shared memory where there is room for it, others in memory that the layer brings. An item writes and reads one,
// which is 1 kB for 16 by 8 sums: as many bytes as operands take in o_proj with heads of 128, a quarter of that where items are longer. So
// that slots are few, there are no more blocks than run at a time, and each goes on to another part of the result.
#ifndef GEMM_CUH
#define GEMM_CUH

namespace gemm {

constexpr u32 PANELS = 4, GROUPS = 8, WARPS_DOWN = 2, STAGES = 4, NONE = 0xffffffffu;
constexpr u32 BLOCK_GROUPS = GROUPS * WARPS_DOWN;
// Blocks of rows that use the same weights at about the same time.
constexpr u32 SWATH = 16;

// Of a block with so many warps along its outputs: where the parts of a stage begin, of each its units (panels or groups), of each
// unit its tiles.
template <class Format, u32 ALONG> struct Shape {
  static constexpr u32 THREADS = 32 * ALONG * WARPS_DOWN, BLOCK_PANELS = PANELS * ALONG;
  static constexpr u32 TILES = Format::TILES, LEFT = BLOCK_PANELS * TILES, RIGHT = BLOCK_GROUPS * TILES;
  static constexpr u32 WEIGHT_SCALES = LEFT * Format::LEFT.elements, WEIGHT_ZEROS = WEIGHT_SCALES + LEFT * Format::LEFT.scales;
  static constexpr u32 INPUTS = WEIGHT_ZEROS + LEFT * Format::LEFT.more;
  static constexpr u32 INPUT_SCALES = INPUTS + RIGHT * Format::RIGHT.elements;
  static constexpr u32 INPUT_SUMS = INPUT_SCALES + RIGHT * Format::RIGHT.scales, BYTES = INPUT_SUMS + RIGHT * Format::RIGHT.more;
  // Of a slot: four sums of each of a thread's products.
  static constexpr u32 SLOT = PANELS * GROUPS * THREADS;
};

// Where sums wait: in the block's memory, from `near` on, the first slot; if that is NONE it lies in `far` with the others, of which each
// block has `each`. A program of one item has none that wait: its slot may lie where stages were.
struct Slots {
  u32 near;
  Vec4 *far;
  u32 each;
};

// Of a slot, of one product.
struct Sums { float v[4]; };
DEVICE Sums sums_of(const Vec4 &bits) { return {{float_of(bits.x), float_of(bits.y), float_of(bits.z), float_of(bits.w)}}; }

// A part of the result, in blocks.
struct Part {
  u32 outputs, rows;
};
// Parts in the order in which they are worked on: rows first, so that what runs at the same time has few weights and few inputs.
DEVICE Part part_of(u32 index, u32 along, u32 down) {
  u32 first = index / (SWATH * along) * SWATH, rows = down - first < SWATH ? down - first : SWATH, inner = index - first * along;
  return {inner / rows, first + inner % rows};
}

// A tile of each unit, of so many bytes, to its place in a stage; zeros where there is none.
template <u32 THREADS, u32 UNITS, u32 TILES, u32 TILE_BYTES, class Unit>
DEVICE void fetch(u8 *stage, const u8 *from, u32 tile, u32 tiles, const Unit &unit_of) {
  if constexpr (TILE_BYTES > 0) {
    // Of 16 bytes; units that all threads copy together.
    constexpr u32 PIECES = UNITS * TILE_BYTES / 16, AT_ONCE = THREADS * 16 / TILE_BYTES;
    static_assert(THREADS * 16 % TILE_BYTES == 0, "a thread has the same part of each unit that it copies");
    u32 own = thread() * 16 / TILE_BYTES, inner = thread() * 16 % TILE_BYTES;
    u8 *to = stage + (own * TILES + tile % TILES) * TILE_BYTES + inner;
    UNROLL for (u32 first = 0; first < UNITS; first += AT_ONCE) {
      if (PIECES < THREADS && thread() >= PIECES) break;
      u32 unit = unit_of(first + own);
      bool is_there = unit != NONE && tile < tiles;
      copy_async_if(is_there, to + first * TILES * TILE_BYTES,
                    is_there ? from + u64(unit * tiles + tile) * TILE_BYTES + inner : from);
    }
  }
}

// The same of scales that tiles share.
template <u32 THREADS, u32 UNITS, u32 TILES, class Unit>
DEVICE void fetch_shared(u8 *stage, const Operands &of, u32 panels, u32 tile, const Unit &panel_of) {
  static_assert(UNITS * 4 <= THREADS && TILES == 1, "a thread copies once, and a stage has a tile of each unit");
  if (thread() >= UNITS * 4) return;
  u32 panel = panel_of(thread() / 4);
  bool is_there = panel != NONE && tile < of.tiles;
  const u8 *from = is_there ? shared_scales(of, panels, panel, tile) + thread() % 4 * 16 : of.weight_scales;
  copy_async_if(is_there, stage + thread() * 16, from);
}

// So many tiles further.
DEVICE Tile further(Tile of, Sizes sizes, u32 tiles) {
  return {of.elements + tiles * sizes.elements, of.scales + tiles * sizes.scales, of.more + tiles * sizes.more};
}

// Some rows of one weight, from the group of this number on, and some outputs; of gate and up half as many.
template <class Format, u32 ALONG>
DEVICE void multiply(float *y, const Operands &of, Rows rows, u32 block_group, u32 block_outputs, u32 n, const Item *items,
                     u32 num_items, const float *bias, u32 gate, Slots slots) {
  typedef gemm::Shape<Format, ALONG> Shape;
  constexpr u32 TILES = Format::TILES, THREADS = Shape::THREADS, BLOCK_PANELS = Shape::BLOCK_PANELS;
  DYNAMIC_SHARED(u8, shared);
  u32 lane = thread() % 32, warp = thread() / 32, panels = (n + 15) / 16, groups = (rows.count + 7) / 8;
  u32 own_panel = warp % ALONG * PANELS, own_group = warp / ALONG * GROUPS;

  // A warp's first panels are gates, the others what they are for.
  auto panel_of = [&](u32 unit) {
    u32 pair = (block_outputs * BLOCK_PANELS + unit) / PANELS * (PANELS / 2) + unit % (PANELS / 2);
    u32 half = unit % PANELS / (PANELS / 2), panel = gate ? pair + half * (panels / 2) : block_outputs * BLOCK_PANELS + unit;
    return (gate ? pair < panels / 2 : panel < panels) ? panel : NONE;
  };
  auto group_of = [&](u32 unit) { return block_group + unit < groups ? rows.first_group + block_group + unit : NONE; };
  auto fetch_tile = [&](u32 tile) {
    u8 *here = shared + tile / TILES % STAGES * Shape::BYTES;
    u32 tiles = of.tiles;
    constexpr Sizes LEFT = Format::LEFT, RIGHT = Format::RIGHT;
    fetch<THREADS, BLOCK_PANELS, TILES, LEFT.elements>(here, of.weights, tile, tiles, panel_of);
    u8 *scales = here + Shape::WEIGHT_SCALES;
    if constexpr (LEFT.is_shared) fetch_shared<THREADS, BLOCK_PANELS, TILES>(scales, of, panels, tile, panel_of);
    else fetch<THREADS, BLOCK_PANELS, TILES, LEFT.scales>(scales, of.weight_scales, tile, tiles, panel_of);
    fetch<THREADS, BLOCK_PANELS, TILES, LEFT.more>(here + Shape::WEIGHT_ZEROS, of.weight_zeros, tile, tiles, panel_of);
    fetch<THREADS, BLOCK_GROUPS, TILES, RIGHT.elements>(here + Shape::INPUTS, of.inputs, tile, tiles, group_of);
    fetch<THREADS, BLOCK_GROUPS, TILES, RIGHT.scales>(here + Shape::INPUT_SCALES, of.input_scales, tile, tiles, group_of);
    fetch<THREADS, BLOCK_GROUPS, TILES, RIGHT.more>(here + Shape::INPUT_SUMS, of.input_sums, tile, tiles, group_of);
    copies_end();
  };
  constexpr u32 AHEAD = (STAGES - 1) * TILES;
  for (u32 tile = 0; tile < AHEAD; tile++) fetch_tile(tile);

  // Only the thread that wrote there reads it.
  auto slot_of = [&](u32 height) {
    bool is_near = slots.near != NONE;
    Vec4 *far = slots.far + (u64(block_x()) * slots.each + height - is_near) * Shape::SLOT;
    return (is_near && height == 0 ? reinterpret_cast<Vec4 *>(shared + slots.near) : far) + thread();
  };
  // A node that nothing here is added to any more.
  auto finish = [&](u32 node) {
    const Vec4 *from = slot_of(0);
    u32 outputs = gate ? n / 2 : n, first = block_outputs * BLOCK_PANELS + own_panel, kept = gate ? PANELS / 2 : PANELS;
    // From memory, since it is too much code to have it for each register.
    UNROLL_BY(1) for (u32 at = 0; at < kept * GROUPS; at++) {
      u32 p = at / GROUPS, g = at % GROUPS, panel = gate ? first / 2 + p : first + p;
      Sums own = sums_of(from[at * THREADS]), other = {};
      if (gate) other = sums_of(from[(at + PANELS / 2 * GROUPS) * THREADS]);
      UNROLL for (u32 i = 0; i < 4; i++) {
        u32 output = panel * 16 + lane / 4 + i / 2 * 8, row = (block_group + own_group + g) * 8 + lane_pair() + i % 2;
        if (output >= outputs || row >= rows.count) continue;
        float sum = bias ? own.v[i] + bias[output] : own.v[i];
        if (gate) sum = activation(gate - 1, sum) * (bias ? other.v[i] + bias[outputs + output] : other.v[i]);
        y[(u64(node) * rows.all + rows.first + row) * outputs + output] = sum;
      }
    }
  };

  u32 height = 0, node = 0, tile = 0;
  for (u32 at = 0; at < num_items; at++) {
    Item item = items[at];
    float d[PANELS][GROUPS][4] = {};
    for (; tile < item.end; tile++) {
      if (tile % TILES == 0) {
        copies_wait<AHEAD - TILES>();
        // All have what they copied, and nobody reads what is written next.
        sync_block();
      }
      const u8 *here = shared + tile / TILES % STAGES * Shape::BYTES;
      // Of the warp's first panel and of its first group; others lie in fixed distances.
      constexpr Sizes LEFT = Format::LEFT, RIGHT = Format::RIGHT;
      u32 of_panel = own_panel * TILES + tile % TILES, of_group = own_group * TILES + tile % TILES;
      Tile weights{here + of_panel * LEFT.elements, here + Shape::WEIGHT_SCALES + of_panel * LEFT.scales,
                   here + Shape::WEIGHT_ZEROS + of_panel * LEFT.more};
      Tile inputs{here + Shape::INPUTS + of_group * RIGHT.elements, here + Shape::INPUT_SCALES + of_group * RIGHT.scales,
                  here + Shape::INPUT_SUMS + of_group * RIGHT.more};
      typename Format::Left left[PANELS];
      UNROLL for (u32 p = 0; p < PANELS; p++)
        left[p] = Format::template left<Near>(further(weights, LEFT, p * TILES));
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        typename Format::Right right = Format::right(further(inputs, RIGHT, g * TILES));
        UNROLL for (u32 p = 0; p < PANELS; p++) Format::multiply(d[p][g], left[p], right);
        // Between products, so that tensor cores don't wait for the addresses.
        if (g == 1) fetch_tile(tile + AHEAD);
      }
    }
    for (u32 m = 0; m < item.merges; m++) {
      const Vec4 *from = slot_of(--height);
      UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) {
        Sums before = sums_of(from[(p * GROUPS + g) * THREADS]);
        UNROLL for (u32 i = 0; i < 4; i++) d[p][g][i] = before.v[i] + d[p][g][i];
      }
    }
    // Stages may lie where the slot is. Copies of tiles that there are not may still be under way.
    if (num_items == 1) {
      copies_wait<0>();
      sync_block();
    }
    Vec4 *to = slot_of(height);
    UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) {
      const float(&v)[4] = d[p][g];
      to[(p * GROUPS + g) * THREADS] = Vec4{bits_of(v[0]), bits_of(v[1]), bits_of(v[2]), bits_of(v[3])};
    }
    // What was left before lies below, and waits for nothing: so this is the only one.
    if (item.leaves) finish(node++);
    else height++;
  }
  // Stages are neither read nor written any more.
  copies_wait<0>();
  sync_block();
}

// All parts of a layer that fall to this block; of each `multiply_rows` is told the block of rows and that of outputs.
template <u32 ALONG, class Multiply> DEVICE void each_part(u32 n, u32 down, const Multiply &multiply_rows) {
  u32 along = (n + 16 * PANELS * ALONG - 1) / (16 * PANELS * ALONG);
  for (u32 index = block_x(); index < along * down; index += blocks_x()) {
    Part part = part_of(index, along, down);
    multiply_rows(part.rows, part.outputs);
  }
}

} // namespace gemm

// Of one weight, in blocks of 128 or 256 outputs, and of those of experts, as in linear.cuh.
#define GEMM_OF(name, format, along)                                                                                   \
  KERNEL_OF(64 * along, name)                                                                                          \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 rows, u32 n, const Item *items, u32 num_items,         \
   u32 near, Vec4 *far, u32 slots, const float *bias, u32 gate) {                                                      \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, input_sums, tiles};                        \
    u32 down = (rows + 8 * gemm::BLOCK_GROUPS - 1) / (8 * gemm::BLOCK_GROUPS);                                         \
    gemm::each_part<along>(n, down, [&](u32 block_rows, u32 block_outputs) {                                           \
      gemm::multiply<format, along>(y, of, Rows{rows, 0, rows, 0}, block_rows * gemm::BLOCK_GROUPS, block_outputs, n,  \
                                    items, num_items, bias, gate, gemm::Slots{near, far, slots});                      \
    });                                                                                                                \
  }                                                                                                                    \
  EXPORT(name)

#define GEMM(name, ...)                                                                                                \
  typedef __VA_ARGS__ name##_format;                                                                                   \
  GEMM_OF(name, name##_format, 2)                                                                                      \
  GEMM_OF(name##_wide, name##_format, 4)                                                                               \
  KERNEL_OF(128, name##_experts)                                                                                       \
  (float *y, const Expert *experts, const u32 *offsets, const u32 *group_first, const u32 *block_first,                \
   u32 num_experts, const u8 *inputs, const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 pairs, u32 n,       \
   const Item *items, u32 num_items, u32 near, Vec4 *far, u32 slots, u32 gate) {                                       \
    gemm::each_part<2>(n, block_first[num_experts], [&](u32 block_rows, u32 block_outputs) {                           \
      u32 e = expert_of(block_rows, block_first, num_experts);                                                         \
      Operands of{experts[e].elements, experts[e].scales, experts[e].zeros, inputs, input_scales, input_sums, tiles};  \
      Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, group_first[e]};                                       \
      u32 group = (block_rows - block_first[e]) * gemm::BLOCK_GROUPS;                                                  \
      gemm::multiply<name##_format, 2>(y, of, rows, group, block_outputs, n, items, num_items, nullptr, gate,          \
                                       gemm::Slots{near, far, slots});                                                 \
    });                                                                                                                \
  }                                                                                                                    \
  EXPORT(name##_experts)

#endif
