// What linear.cuh and gemm.cuh share: how weights and activations lie, and how a tile of them is multiplied.
//
// Weights are the left operand (16 outputs by 16 or 32 inputs), activations the right one (as many inputs by 8 rows), so one
// row costs what eight cost, and any number of rows is summed in the same order: inputs of an item ascending, from +0; items
// merged as the program says.
//
// Weights lie in panels of 16 outputs, in those in tiles of inputs, a lane's numbers together; so do activations, in groups of
// 8 rows. Where a tile's inputs are fewer than it has room for, there are zeros.
#ifndef LINEAR_FORMATS_CUH
#define LINEAR_FORMATS_CUH

// Which number of a tile of activations a lane has: row of eight, and the first of two inputs.
DEVICE u32 lane_row() { return thread() % 32 / 4; }
DEVICE u32 lane_pair() { return thread() % 4 * 2; }

struct Item {
  // Its tiles; how often the top two are merged after it; whether then the only one waits for nothing here: it is left to the block.
  u32 first, end, merges, leaves;
};

// What a layer is given, besides its program.
struct Operands {
  // Elements of weights, their scales and zero points by [panel][tile][16]; the same of activations by [group][tile][8], with
  // sums instead of zero points. Where tiles share scales those are by [scale][panel][16], and instead of zero points
  // it is said which of them a tile has, by [tile].
  const u8 *weights, *weight_scales, *weight_zeros, *inputs, *input_scales, *input_sums;
  u32 tiles;
};

// The weights of an expert: elements, scales, zero points.
struct Expert { const u8 *elements, *scales, *zeros; };

// Which rows: how many, the first of them in the result, how many that has per node, and their first group of activations.
struct Rows { u32 count, first, all, first_group; };

// Parts of a tile of weights or of activations.
struct Tile { const u8 *elements, *scales, *more; };

// Where a tile is read from: memory that is read once, several tiles before they are needed, or memory of the block.
struct Streamed {
  template <class T> DEVICE_IN T load(const u8 *from, u32 at) { return load_ahead(reinterpret_cast<const T *>(from) + at); }
};
struct Near {
  template <class T> DEVICE_IN T load(const u8 *from, u32 at) { return reinterpret_cast<const T *>(from)[at]; }
};

// Bytes of a tile's elements, scales and zero points or sums; whether tiles share scales.
struct Sizes { u32 elements, scales, more; bool is_shared; };

// The scales of a tile that it shares with others.
DEVICE const u8 *shared_scales(const Operands &of, u32 panels, u32 panel, u32 tile) {
  u32 scale = reinterpret_cast<const u32 *>(of.weight_zeros)[tile];
  return of.weight_scales + (u64(scale) * panels + panel) * 64;
}

// A tile of a panel of weights.
template <class Format> DEVICE Tile weight_tile(const Operands &of, u32 panels, u32 panel, u32 tile) {
  u64 place = u64(panel) * of.tiles + tile;
  constexpr Sizes LEFT = Format::LEFT;
  const u8 *elements = of.weights + place * LEFT.elements;
  if constexpr (LEFT.is_shared) return Tile{elements, shared_scales(of, panels, panel, tile), nullptr};
  else return Tile{elements, of.weight_scales + place * LEFT.scales, of.weight_zeros + place * LEFT.more};
}

// Formats: `Left` is what a lane has of a tile of 16 outputs, `Right` of 8 rows.
template <bool IS_HALF> struct Sixteen {
  typedef Vec4 Left;
  typedef Vec2 Right;
  static constexpr Sizes LEFT{512, 0, 0}, RIGHT{256, 0, 0};
  // Tiles that a block of gemm.cuh copies at a time.
  static constexpr u32 TILES = 2;
  template <class From> DEVICE_IN Left left(Tile tile) { return From::template load<Vec4>(tile.elements, thread() % 32); }
  DEVICE_IN Right right(Tile tile) { return Near::load<Vec2>(tile.elements, thread() % 32); }
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
  static constexpr Sizes LEFT{512, 16, 0}, RIGHT{512, 0, 0};
  static constexpr u32 TILES = 1;
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
  template <class From> DEVICE_IN Left left(Tile tile) {
    Vec4 four = From::template load<Vec4>(tile.elements, thread() % 32);
    const u8 *scales = tile.scales + lane_row();
    float lower = float_of(u32(scales[0]) << 23), upper = float_of(u32(scales[8]) << 23);
    Left left;
    // Of each sixteen inputs: the lower row's two pairs, then the upper's.
    widen(four.x, lower, left.a[0][0], left.a[0][2]);
    widen(four.y, upper, left.a[0][1], left.a[0][3]);
    widen(four.z, lower, left.a[1][0], left.a[1][2]);
    widen(four.w, upper, left.a[1][1], left.a[1][3]);
    return left;
  }
  DEVICE_IN Right right(Tile tile) {
    return Right{{Near::load<Vec2>(tile.elements, thread() % 32), Near::load<Vec2>(tile.elements, 32 + thread() % 32)}};
  }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    UNROLL for (u32 half = 0; half < 2; half++) {
      u32 b[2] = {right.b[half].x, right.b[half].y};
      mma_bfloat(d, left.a[half], b);
    }
  }
};

// e4m3 with scales in f32, of which an output has one, or one per some inputs. A tile's products are those of e4m3 itself, widened
// exactly to bfloat16; then its sum is multiplied by its scale.
struct Scaled {
  struct Left { Vec4 elements; float scales[2]; };
  typedef Eight::Right Right;
  static constexpr Sizes LEFT{512, 64, 0, true}, RIGHT = Eight::RIGHT;
  static constexpr u32 TILES = 1;
  // The first two of four numbers, or the last two, as bfloat16. At the lower end of its exponent they are 2^-120 of what they are.
  DEVICE_IN u32 widen(u32 four, u32 half) {
    u32 apart = half ? (four >> 16 & 0xff) << 8 | (four & 0xff000000u) : (four & 0xff) << 8 | (four & 0xff00) << 16;
    return bfloats_times((apart >> 4 & 0x07f007f0u) | (apart & 0x80008000u), 0x7b807b80u);
  }
  template <class From> DEVICE_IN Left left(Tile tile) {
    Vec4 elements = From::template load<Vec4>(tile.elements, thread() % 32);
    return Left{elements, {Near::load<float>(tile.scales, lane_row()), Near::load<float>(tile.scales, 8 + lane_row())}};
  }
  DEVICE_IN Right right(Tile tile) { return Eight::right(tile); }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    u32 fours[4] = {left.elements.x, left.elements.y, left.elements.z, left.elements.w};
    float sums[4] = {};
    UNROLL for (u32 half = 0; half < 2; half++) {
      u32 lower = fours[2 * half], upper = fours[2 * half + 1];
      u32 a[4] = {widen(lower, 0), widen(upper, 0), widen(lower, 1), widen(upper, 1)}, b[2] = {right.b[half].x, right.b[half].y};
      mma_bfloat(sums, a, b);
    }
    UNROLL for (u32 i = 0; i < 4; i++) d[i] = fused(sums[i], left.scales[i / 2], d[i]);
  }
};

// Whole numbers with a scale per group of 32 inputs, times activations that are quantised likewise: exact within a group.
template <bool IS_FOUR> struct Whole {
  struct Left { u32 a[4]; float scales[2]; int zeros[2]; };
  struct Right { u32 b[2]; float scales[2]; int sums[2]; };
  static constexpr Sizes LEFT{IS_FOUR ? 256 : 512, 32, IS_FOUR ? 16 : 0}, RIGHT{256, 32, IS_FOUR ? 32 : 0};
  static constexpr u32 TILES = 2;
  template <class From> DEVICE_IN Left left(Tile tile) {
    Left left;
    if (IS_FOUR) {
      // The lower halves of eight bytes are the first sixteen inputs' numbers.
      Vec2 v = From::template load<Vec2>(tile.elements, thread() % 32);
      left.a[0] = v.x & 0x0f0f0f0f, left.a[1] = v.y & 0x0f0f0f0f;
      left.a[2] = v.x >> 4 & 0x0f0f0f0f, left.a[3] = v.y >> 4 & 0x0f0f0f0f;
    } else {
      Vec4 v = From::template load<Vec4>(tile.elements, thread() % 32);
      left.a[0] = v.x, left.a[1] = v.y, left.a[2] = v.z, left.a[3] = v.w;
    }
    UNROLL for (u32 i = 0; i < 2; i++) {
      left.scales[i] = float_of(u32(Near::load<u16>(tile.scales, lane_row() + 8 * i)) << 16);
      left.zeros[i] = IS_FOUR ? tile.more[lane_row() + 8 * i] : 0;
    }
    return left;
  }
  DEVICE_IN Right right(Tile tile) {
    Vec2 v = Near::load<Vec2>(tile.elements, thread() % 32);
    Right right{{v.x, v.y}, {}, {}};
    UNROLL for (u32 i = 0; i < 2; i++) {
      right.scales[i] = Near::load<float>(tile.scales, lane_pair() + i);
      right.sums[i] = IS_FOUR ? Near::load<int>(tile.more, lane_pair() + i) : 0;
    }
    return right;
  }
  // A group's sums, without scales.
  DEVICE_IN void products(int (&sums)[4], const Left &left, const Right &right) {
    UNROLL for (u32 i = 0; i < 4; i++) sums[i] = 0;
    mma_bytes(sums, left.a, right.b);
    if (IS_FOUR) UNROLL for (u32 i = 0; i < 4; i++) sums[i] = 16 * sums[i] - left.zeros[i / 2] * right.sums[i % 2];
  }
  DEVICE_IN void multiply(float (&d)[4], const Left &left, const Right &right) {
    int sums[4];
    products(sums, left, right);
    UNROLL for (u32 i = 0; i < 4; i++) d[i] = fused(float(sums[i]), left.scales[i / 2] * right.scales[i % 2], d[i]);
  }
};

#endif
