// Linear layers of weights of 16 bits for many rows: what linear.cu computes, in the same order, and so with the same bits.
//
// Limited by the tensor cores, of whose rate mma.sync reaches some 60 % on Hopper; and where a tree's leaves are short, by
// the local memory in which sums wait for others (NUMERICS.md, rule 2). Should reach 55 % of the rate of a library.
//
// A block has 128 outputs and 128 rows, each of its four warps a quarter, 64 by 64, of which a step of 16 inputs reads 4 kB of
// shared memory for 32 products of 16 by 8 by 16. Both operands lie in memory as lanes want them, so they are copied as
// they are, four steps ahead.

namespace gemm {

constexpr u32 PANELS = 4, GROUPS = 8, WARPS_ALONG = 2, THREADS = 128, STACK = 12;
constexpr u32 BLOCK_PANELS = PANELS * WARPS_ALONG, BLOCK_GROUPS = GROUPS * WARPS_ALONG;
// Tiles of a stage, and stages.
constexpr u32 TILES = 2, STAGES = 4;
constexpr u32 LEFT_BYTES = BLOCK_PANELS * TILES * 512, STAGE_BYTES = LEFT_BYTES + BLOCK_GROUPS * TILES * 256;

struct Item { u32 first, end, merges, leaves; };

#define EACH(p, g, i)                                                                                                  \
  UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)

// Sixteen bytes of an operand, of which a unit (panel or group) has `tile_bytes` per tile.
DEVICE void fetch(u8 *to, const u8 *from, u32 unit, u32 units, u32 tile, u32 tiles, u32 tile_bytes, u32 at) {
  if (unit < units && tile + at / tile_bytes < tiles) copy_async(to, from + (u64(unit) * tiles + tile) * tile_bytes + at);
  else *reinterpret_cast<Vec4 *>(to) = Vec4{0, 0, 0, 0};
}

template <bool IS_HALF>
DEVICE void multiply(float *y, const u8 *weights, const u8 *inputs, u32 tiles, u32 rows, u32 n, const Item *items,
                     u32 num_items, const float *bias) {
  DYNAMIC_SHARED(u8, shared);
  u32 lane = thread() % 32, warp = thread() / 32, panels = (n + 15) / 16, groups = (rows + 7) / 8;
  u32 block_panel = block_x() * BLOCK_PANELS, block_group = block_y() * BLOCK_GROUPS;
  u32 own_panel = warp % WARPS_ALONG * PANELS, own_group = warp / WARPS_ALONG * GROUPS;

  auto fetch_stage = [&](u32 stage) {
    u8 *here = shared + stage % STAGES * STAGE_BYTES;
    u32 tile = stage * TILES;
    if (tile < tiles) {
      for (u32 at = thread() * 16; at < LEFT_BYTES; at += THREADS * 16)
        fetch(here + at, weights, block_panel + at / (TILES * 512), panels, tile, tiles, 512, at % (TILES * 512));
      for (u32 at = thread() * 16; at < STAGE_BYTES - LEFT_BYTES; at += THREADS * 16)
        fetch(here + LEFT_BYTES + at, inputs, block_group + at / (TILES * 256), groups, tile, tiles, 256, at % (TILES * 256));
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
      const u8 *here = shared + tile / TILES % STAGES * STAGE_BYTES;
      u32 a[PANELS][4], b[GROUPS][2];
      UNROLL for (u32 p = 0; p < PANELS; p++) {
        Vec4 v = reinterpret_cast<const Vec4 *>(here + ((own_panel + p) * TILES + tile % TILES) * 512)[lane];
        a[p][0] = v.x, a[p][1] = v.y, a[p][2] = v.z, a[p][3] = v.w;
      }
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        const u8 *of = here + LEFT_BYTES + ((own_group + g) * TILES + tile % TILES) * 256;
        Vec2 v = reinterpret_cast<const Vec2 *>(of)[lane];
        b[g][0] = v.x, b[g][1] = v.y;
      }
      UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) {
        if (IS_HALF) mma_half(d[p][g], a[p], b[g]);
        else mma_bfloat(d[p][g], a[p], b[g]);
      }
    }
    for (u32 m = 0; m < item.merges; m++) {
      height--;
      EACH(p, g, i) d[p][g][i] = stack[height][p][g][i] + d[p][g][i];
    }
    EACH(p, g, i) stack[height][p][g][i] = d[p][g][i];
    height++;
  }
  for (u32 node = 0; node < height; node++) {
    EACH(p, g, i) {
      u32 output = (block_panel + own_panel + p) * 16 + lane / 4 + i / 2 * 8;
      u32 row = (block_group + own_group + g) * 8 + lane % 4 * 2 + i % 2;
      if (output < n && row < rows) {
        float sum = stack[node][p][g][i];
        y[(u64(node) * rows + row) * n + output] = bias ? sum + bias[output] : sum;
      }
    }
  }
}

#undef EACH

} // namespace gemm

KERNEL_OF(128, gemm_bfloat)
(float *y, const u8 *weights, const u8 *inputs, u32 tiles, u32 rows, u32 n, const gemm::Item *items, u32 num_items,
 const float *bias) {
  gemm::multiply<false>(y, weights, inputs, tiles, rows, n, items, num_items, bias);
}
EXPORT(gemm_bfloat)

KERNEL_OF(128, gemm_half)
(float *y, const u8 *weights, const u8 *inputs, u32 tiles, u32 rows, u32 n, const gemm::Item *items, u32 num_items,
 const float *bias) {
  gemm::multiply<true>(y, weights, inputs, tiles, rows, n, items, num_items, bias);
}
EXPORT(gemm_half)
