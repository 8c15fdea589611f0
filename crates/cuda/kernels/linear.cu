// Linear layers on tensor cores: y[node, t, n] = the program's nodes over Σ x[t, k] · w[n, k].
//
// Limited by the bytes of the weights for up to some 32 rows: each is read once, sixteen bytes per lane, in the order in which
// they lie. 85 % of what a copy reaches is to be had. Above that by the tensor cores.
//
// Weights are the left operand (16 outputs by 16 or 32 inputs), activations the right one (as many inputs by 8 rows), so one
// row costs what eight cost, and any number of rows is summed in the same order: inputs of an item ascending, from +0; items
// merged as the program says. A warp has two panels of outputs and some of the items; items are dealt out to warps as a
// tree's leaves are to ranks: each merges what it has, what is left over is merged in shared memory.
//
// Weights lie in panels of 16 outputs, in those in tiles of inputs, a lane's numbers together; so do activations, in groups of
// 8 rows. Where a tile's inputs are fewer than it has room for, there are zeros.

// Which number of a tile of activations a lane has: row of eight, and the first of two inputs.
DEVICE u32 lane_row() { return thread() % 32 / 4; }
DEVICE u32 lane_pair() { return thread() % 4 * 2; }

// How a program is dealt out to the warps of a block (crates/cuda/src/linear/deal.rs).
constexpr u32 WARPS = 8, PANELS = 2, STACK = 12;
struct Deal {
  // Warps that share items; nodes that they leave together.
  u32 sharing, left;
  // The first item of each of them and the end, and the first node that each leaves.
  u32 first_item[WARPS + 1], first_left[WARPS];
};
struct Item {
  // Its tiles; how often the top two are merged after it; whether then the only one is left to the block.
  u32 first, end, merges, leaves;
};

// What a layer is given, besides its program.
struct Operands {
  // Elements of weights, their scales and zero points by [panel][tile][16]; the same of activations by [group][tile][8], with
  // sums instead of zero points.
  const u8 *weights, *weight_scales, *weight_zeros, *inputs;
  const float *input_scales;
  const int *input_sums;
  u32 tiles;
};

// Formats: `Left` is what a lane has of a tile of 16 outputs, `Right` of 8 rows.
template <bool IS_HALF> struct Sixteen {
  typedef Vec4 Left;
  typedef Vec2 Right;
  DEVICE_IN Left left(const Operands &of, u32 panel, u32 tile) {
    return load_stream(reinterpret_cast<const Vec4 *>(of.weights) + (u64(panel) * of.tiles + tile) * 32 + thread() % 32);
  }
  DEVICE_IN Right right(const Operands &of, u32 group, u32 tile) {
    return reinterpret_cast<const Vec2 *>(of.inputs)[(u64(group) * of.tiles + tile) * 32 + thread() % 32];
  }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    u32 a[4] = {left.x, left.y, left.z, left.w}, b[2] = {right.x, right.y};
    if (IS_HALF) mma_half(d, a, b);
    else mma_bfloat(d, a, b);
  }
};

// e4m3 with a power of two per group of 32 inputs, widened exactly to bfloat16. A tile is a group.
struct Eight {
  struct Left { u32 a[2][4]; };
  struct Right { Vec2 b[2]; };
  // Four numbers as two pairs of bfloat16. Put at the lower end of a float's exponent they are 2^-120 of what they are.
  DEVICE_IN void widen(u32 four, float scale, u32 &low, u32 &high) {
    float v[4];
    UNROLL for (u32 i = 0; i < 4; i++) {
      u32 x = four >> 8 * i & 0xff;
      v[i] = float_of((x & 0x7f) << 20 | (x & 0x80) << 24) * 0x1p120f * scale;
    }
    low = two_bfloats(v[0], v[1]);
    high = two_bfloats(v[2], v[3]);
  }
  DEVICE_IN Left left(const Operands &of, u32 panel, u32 tile) {
    u64 at = u64(panel) * of.tiles + tile;
    Vec4 four = load_stream(reinterpret_cast<const Vec4 *>(of.weights) + at * 32 + thread() % 32);
    const u8 *scales = of.weight_scales + at * 16 + lane_row();
    float lower = float_of(u32(scales[0]) << 23), upper = float_of(u32(scales[8]) << 23);
    Left left;
    // Of each sixteen inputs: the lower row's two pairs, then the upper's.
    widen(four.x, lower, left.a[0][0], left.a[0][2]);
    widen(four.y, upper, left.a[0][1], left.a[0][3]);
    widen(four.z, lower, left.a[1][0], left.a[1][2]);
    widen(four.w, upper, left.a[1][1], left.a[1][3]);
    return left;
  }
  DEVICE_IN Right right(const Operands &of, u32 group, u32 tile) {
    const Vec2 *at = reinterpret_cast<const Vec2 *>(of.inputs) + (u64(group) * of.tiles + tile) * 64 + thread() % 32;
    return Right{{at[0], at[32]}};
  }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    UNROLL for (u32 half = 0; half < 2; half++) {
      u32 b[2] = {right.b[half].x, right.b[half].y};
      mma_bfloat(d, left.a[half], b);
    }
  }
};

// Whole numbers with a scale per group of 32 inputs, times activations that are quantised likewise: exact within a group.
template <bool IS_FOUR> struct Whole {
  struct Left { u32 a[4]; float scales[2]; int zeros[2]; };
  struct Right { u32 b[2]; float scales[2]; int sums[2]; };
  DEVICE_IN Left left(const Operands &of, u32 panel, u32 tile) {
    u64 at = u64(panel) * of.tiles + tile;
    Left left;
    if (IS_FOUR) {
      // The lower halves of eight bytes are the first sixteen inputs' numbers.
      Vec2 v = reinterpret_cast<const Vec2 *>(of.weights)[at * 32 + thread() % 32];
      left.a[0] = v.x & 0x0f0f0f0f, left.a[1] = v.y & 0x0f0f0f0f;
      left.a[2] = v.x >> 4 & 0x0f0f0f0f, left.a[3] = v.y >> 4 & 0x0f0f0f0f;
    } else {
      Vec4 v = load_stream(reinterpret_cast<const Vec4 *>(of.weights) + at * 32 + thread() % 32);
      left.a[0] = v.x, left.a[1] = v.y, left.a[2] = v.z, left.a[3] = v.w;
    }
    const u16 *scales = reinterpret_cast<const u16 *>(of.weight_scales) + at * 16 + lane_row();
    UNROLL for (u32 i = 0; i < 2; i++) {
      left.scales[i] = float_of(u32(scales[8 * i]) << 16);
      left.zeros[i] = IS_FOUR ? of.weight_zeros[at * 16 + lane_row() + 8 * i] : 0;
    }
    return left;
  }
  DEVICE_IN Right right(const Operands &of, u32 group, u32 tile) {
    u64 at = u64(group) * of.tiles + tile;
    Vec2 v = reinterpret_cast<const Vec2 *>(of.inputs)[at * 32 + thread() % 32];
    Right right{{v.x, v.y}, {}, {}};
    UNROLL for (u32 i = 0; i < 2; i++) {
      right.scales[i] = of.input_scales[at * 8 + lane_pair() + i];
      right.sums[i] = IS_FOUR ? of.input_sums[at * 8 + lane_pair() + i] : 0;
    }
    return right;
  }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    int sums[4] = {};
    mma_bytes(sums, left.a, right.b);
    UNROLL for (u32 i = 0; i < 4; i++) {
      u32 row = i / 2, col = i % 2;
      int sum = IS_FOUR ? 16 * sums[i] - left.zeros[row] * right.sums[col] : sums[i];
      d[i] = fused(float(sum), left.scales[row] * right.scales[col], d[i]);
    }
  }
};

#define EACH(p, g, i)                                                                                                  \
  UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)

// Which rows: how many, the first of them in the result, how many that has per node, and their first group of activations.
struct Rows { u32 count, first, all, first_group; };

// A block's rows of one weight, at most 8 · GROUPS, and 32 outputs for each team of warps.
template <class Format, u32 GROUPS>
DEVICE void linear(float *y, const Operands &of, Rows rows, u32 n, const Deal *deal, const Item *items, const u32 *merges,
                   const float *bias) {
  constexpr u32 OUTPUTS = 16 * PANELS, ROWS = 8 * GROUPS, PLACES = OUTPUTS * ROWS;
  DYNAMIC_SHARED(float, left_over);
  u32 lane = thread() % 32, warp = thread() / 32, sharing = deal->sharing, part = warp % sharing, team = warp / sharing;
  u32 teams = WARPS / sharing, nodes_left = deal->left, panels = (n + 15) / 16;
  u32 first_panel = (block_x() * teams + team) * PANELS, first_row = block_y() * ROWS;
  // A team beyond the last panel does what the last one does, and tells nobody.
  u32 panel[PANELS];
  UNROLL for (u32 p = 0; p < PANELS; p++) panel[p] = first_panel + p < panels ? first_panel + p : panels - 1;

  float stack[STACK][PANELS][GROUPS][4];
  u32 height = 0, slot = team * nodes_left + deal->first_left[part];
  auto leave = [&](u32 from) {
    EACH(p, g, i) {
      u32 output = p * 16 + lane / 4 + i / 2 * 8, row = g * 8 + lane_pair() + i % 2;
      left_over[slot * PLACES + row * OUTPUTS + output] = stack[from][p][g][i];
    }
    slot++;
  };
  for (u32 at = deal->first_item[part]; at < deal->first_item[part + 1]; at++) {
    Item item = items[at];
    float d[PANELS][GROUPS][4] = {};
    UNROLL_BY(4) for (u32 tile = item.first; tile < item.end; tile++) {
      typename Format::Left left[PANELS];
      UNROLL for (u32 p = 0; p < PANELS; p++) left[p] = Format::left(of, panel[p], tile);
      UNROLL for (u32 g = 0; g < GROUPS; g++) {
        if (first_row + g * 8 >= rows.count) break;
        typename Format::Right right = Format::right(of, rows.first_group + first_row / 8 + g, tile);
        UNROLL for (u32 p = 0; p < PANELS; p++) Format::multiply(d[p][g], left[p], right);
      }
    }
    for (u32 m = 0; m < item.merges; m++) {
      height--;
      EACH(p, g, i) d[p][g][i] = stack[height][p][g][i] + d[p][g][i];
    }
    EACH(p, g, i) stack[height][p][g][i] = d[p][g][i];
    height++;
    if (item.leaves) leave(--height);
  }
  for (u32 i = 0; i < height; i++) leave(i);
  sync_block();

  for (u32 at = thread(); at < teams * PLACES; at += threads()) {
    u32 team = at / PLACES, place = at % PLACES, row = first_row + place / OUTPUTS;
    u32 output = (block_x() * teams + team) * OUTPUTS + place % OUTPUTS;
    if (row >= rows.count || output >= n) continue;
    float sums[STACK];
    u32 count = 0;
    for (u32 i = 0; i < nodes_left; i++) {
      float sum = left_over[(team * nodes_left + i) * PLACES + place];
      for (u32 m = 0; m < merges[i]; m++) sum = sums[--count] + sum;
      sums[count++] = sum;
    }
    for (u32 node = 0; node < count; node++)
      y[(u64(node) * rows.all + rows.first + row) * n + output] = bias ? sums[node] + bias[output] : sums[node];
  }
}

// The weights of an expert: elements, scales, zero points.
struct Expert { const u8 *elements, *scales, *zeros; };

// Of one weight, and of those of experts: rows of expert e, of which there are offsets[e + 1] - offsets[e], begin at offsets[e]
// in the result and at group group_first[e] of the activations.
#define LINEAR(name, format, groups)                                                                                   \
  KERNEL_OF(256, name)                                                                                                 \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const float *input_scales, const int *input_sums, u32 tiles, u32 rows, u32 n, const Deal *deal, const Item *items,  \
   const u32 *merges, const float *bias) {                                                                             \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, input_sums, tiles};                        \
    linear<format, groups>(y, of, Rows{rows, 0, rows, 0}, n, deal, items, merges, bias);                               \
  }                                                                                                                    \
  EXPORT(name)                                                                                                         \
  KERNEL_OF(256, name##_experts)                                                                                       \
  (float *y, const Expert *experts, const u32 *offsets, const u32 *group_first, const u8 *inputs,                      \
   const float *input_scales, const int *input_sums, u32 tiles, u32 pairs, u32 n, const Deal *deal, const Item *items, \
   const u32 *merges) {                                                                                                \
    u32 e = block_z();                                                                                                 \
    Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, group_first[e]};                                         \
    if (block_y() * 8 * groups >= rows.count) return;                                                                  \
    Operands of{experts[e].elements, experts[e].scales, experts[e].zeros, inputs, input_scales, input_sums, tiles};    \
    linear<format, groups>(y, of, rows, n, deal, items, merges, nullptr);                                              \
  }                                                                                                                    \
  EXPORT(name##_experts)

LINEAR(linear_bfloat_8, Sixteen<false>, 1)
LINEAR(linear_bfloat_16, Sixteen<false>, 2)
LINEAR(linear_bfloat_32, Sixteen<false>, 4)
LINEAR(linear_half_8, Sixteen<true>, 1)
LINEAR(linear_half_16, Sixteen<true>, 2)
LINEAR(linear_half_32, Sixteen<true>, 4)
LINEAR(linear_fp8_8, Eight, 1)
LINEAR(linear_fp8_16, Eight, 2)
LINEAR(linear_fp8_32, Eight, 4)
LINEAR(linear_int8_8, Whole<false>, 1)
LINEAR(linear_int8_16, Whole<false>, 2)
LINEAR(linear_int8_32, Whole<false>, 4)
LINEAR(linear_int4_8, Whole<true>, 1)
LINEAR(linear_int4_16, Whole<true>, 2)
LINEAR(linear_int4_32, Whole<true>, 4)
