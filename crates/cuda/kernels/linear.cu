// Linear layers of weights of 16 bits, on tensor cores: y[node, t, n] = the program's nodes over Σ x[t, k] · w[n, k].
//
// Limited by the bytes of the weights for up to some 32 rows, each read once, 16 at a time per lane, in the order in which
// they lie: 85 % of what a copy reaches. Above that by the tensor cores.
//
// Weights are the left operand (16 outputs by 16 inputs), activations the right one (16 inputs by 8 rows), so one row costs
// what eight cost, and any number of rows is summed in the same order: inputs of an item ascending, 16 at a time, from +0;
// items merged as the program says. Items are dealt out to the warps of a block as the tree's leaves are to ranks: each merges
// what it has, what is left over is merged in shared memory.
//
// Weights lie in tiles of 16 by 16, a lane's eight numbers together: w [panels of 16 outputs][tiles][lane][8]. So do
// activations, in tiles of 8 rows: x [groups of 8 rows][tiles][lane][4].

// Which number of a tile of activations a lane has: row of eight, and the first of two inputs; of the second pair, 8 more.
DEVICE u32 lane_row() { return thread() % 32 / 4; }
DEVICE u32 lane_pair() { return thread() % 4 * 2; }

// x [rows, k] in f32 to tiles of 16 bits. A period of inputs is filled up to whole tiles with zeros; one thread per lane.
KERNEL(linear_tiles)(Vec2 *out, const float *x, u32 rows, u32 k, u32 period, u32 tiles, u32 is_half) {
  u32 at = block_x() * threads() + thread(), tile = at / 32 % tiles, group = at / 32 / tiles;
  u32 row = group * 8 + lane_row(), per_period = (period + 15) / 16;
  if (group * 8 >= rows) return;
  u32 first = tile / per_period * period, inner = tile % per_period * 16 + lane_pair();
  float v[4];
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 in_period = inner + i % 2 + i / 2 * 8, input = first + in_period;
    v[i] = row < rows && in_period < period && input < k ? x[u64(row) * k + input] : 0.0f;
  }
  out[at] = is_half ? Vec2{two_halfs(v[0], v[1]), two_halfs(v[2], v[3])}
                    : Vec2{two_bfloats(v[0], v[1]), two_bfloats(v[2], v[3])};
}
EXPORT(linear_tiles)

// How a program is dealt out to the warps of a block (crates/cuda/src/linear/deal.rs).
constexpr u32 WARPS = 8, STACK = 12;
struct Deal {
  // Nodes that warps leave, and what is left of them in the end.
  u32 left, nodes;
  // The first item of each warp and the end, and the first node that each leaves.
  u32 first_item[WARPS + 1], first_left[WARPS];
};
struct Item {
  // Its tiles; how often the top two are merged after it; whether then the only one is left to the block.
  u32 first, end, merges, leaves;
};

// Of 8 · GROUPS rows and 32 outputs per block.
template <u32 GROUPS, bool IS_HALF>
DEVICE void linear(float *y, const Vec4 *w, const Vec2 *x, u32 rows, u32 n, u32 tiles, const Deal *deal,
                   const Item *items, const u32 *merges, const float *bias, u64 panel_stride) {
  constexpr u32 PANELS = 2, OUTPUTS = 16 * PANELS, ROWS = 8 * GROUPS;
  DYNAMIC_SHARED(float, left);
  u32 lane = thread() % 32, warp = thread() / 32;
  u32 first_panel = block_x() * PANELS, panels = (n + 15) / 16, first_row = block_y() * ROWS;
  const Vec4 *weights[PANELS];
  UNROLL for (u32 p = 0; p < PANELS; p++) {
    u32 panel = first_panel + p < panels ? first_panel + p : panels - 1;
    weights[p] = w + panel * panel_stride + lane;
  }
  const Vec2 *inputs = x + u64(first_row / 8) * tiles * 32 + lane;

  float stack[STACK][PANELS][GROUPS][4];
  u32 height = 0, slot = deal->first_left[warp];
  auto leave = [&](u32 from) {
    UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++) {
      u32 output = p * 16 + lane / 4 + i / 2 * 8, row = g * 8 + lane_pair() + i % 2;
      left[(slot * ROWS + row) * OUTPUTS + output] = stack[from][p][g][i];
    }
    slot++;
  };
  for (u32 item = deal->first_item[warp]; item < deal->first_item[warp + 1]; item++) {
    Item of = items[item];
    float d[PANELS][GROUPS][4] = {};
    UNROLL_BY(4) for (u32 tile = of.first; tile < of.end; tile++) {
      Vec4 a[PANELS];
      UNROLL for (u32 p = 0; p < PANELS; p++) a[p] = load_stream(weights[p] + u64(tile) * 32);
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        // Rows that are not there are not read.
        bool is_there = first_row + g * 8 + lane_row() < rows;
        Vec2 v = is_there ? inputs[(u64(g) * tiles + tile) * 32] : Vec2{0, 0};
        u32 b[2] = {v.x, v.y};
        UNROLL for (u32 p = 0; p < PANELS; p++) {
          u32 of_panel[4] = {a[p].x, a[p].y, a[p].z, a[p].w};
          if (IS_HALF) mma_half(d[p][g], of_panel, b);
          else mma_bfloat(d[p][g], of_panel, b);
        }
      }
    }
    for (u32 m = 0; m < of.merges; m++) {
      height--;
      UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)
        d[p][g][i] = stack[height][p][g][i] + d[p][g][i];
    }
    UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)
      stack[height][p][g][i] = d[p][g][i];
    height++;
    if (of.leaves) leave(--height);
  }
  for (u32 i = 0; i < height; i++) leave(i);
  sync_block();

  for (u32 at = thread(); at < ROWS * OUTPUTS; at += threads()) {
    u32 row = first_row + at / OUTPUTS, output = first_panel * 16 + at % OUTPUTS;
    if (row >= rows || output >= n) continue;
    float sums[STACK];
    u32 count = 0;
    for (u32 i = 0; i < deal->left; i++) {
      float sum = left[i * ROWS * OUTPUTS + at];
      for (u32 m = 0; m < merges[i]; m++) sum = sums[--count] + sum;
      sums[count++] = sum;
    }
    for (u32 node = 0; node < count; node++)
      y[(u64(node) * rows + row) * n + output] = bias ? sums[node] + bias[output] : sums[node];
  }
}

#define LINEAR(name, groups, is_half)                                                                                  \
  KERNEL_OF(256, name)                                                                                                 \
  (float *y, const Vec4 *w, const Vec2 *x, u32 rows, u32 n, u32 tiles, const Deal *deal, const Item *items,            \
   const u32 *merges, const float *bias){                                                              \
    linear<groups, is_half>(y, w, x, rows, n, tiles, deal, items, merges, bias, u64(tiles) * 32);                      \
  }                                                                                                                    \
  EXPORT(name)

LINEAR(linear_bfloat_8, 1, false)
LINEAR(linear_bfloat_16, 2, false)
LINEAR(linear_bfloat_32, 4, false)
LINEAR(linear_half_8, 1, true)
LINEAR(linear_half_16, 2, true)
LINEAR(linear_half_32, 4, true)
