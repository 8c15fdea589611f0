// Linear layers of 1 to 8 rows on CUDA cores, in an order of their own (--reduction fast): y[node, t, n] = Σ x[t, k] · w[n, k] over
// the inputs of a node.
//
// Limited by the bytes of the weights, of which each is read once, in the order in which they lie: should reach 85 % of what a copy
// does. So that memory always has something to do a lane has eight loads of sixteen bytes under way (eight bytes of int4). Up to 8
// rows what is done with them takes less time than they: per 1 kB of weights some 20 clocks of a multiprocessor, to which memory
// brings some 15 to 20 bytes per clock.
//
// Weights lie as tensor cores take them (linear_formats.cuh): a lane has four inputs of each 16 of two outputs. A block's eight
// warps have two panels together and an eighth of a node's tiles each; lanes, then warps, are added at the end. Activations of weights
// of 16 and 8 bits are read as they are, in f32; those of whole numbers are quantised as everywhere.
#ifndef GEMV_CUH
#define GEMV_CUH

namespace gemv {

constexpr u32 WARPS = 8, PANELS = 2, AT_ONCE = 4;

// Four inputs of each 16 inputs, from the first of these on.
struct Four { float x[4]; };
DEVICE Four four_of(const float *x) {
  const Vec2 *at = reinterpret_cast<const Vec2 *>(x) + thread() % 4;
  Vec2 low = at[0], high = at[4];
  return Four{{float_of(low.x), float_of(low.y), float_of(high.x), float_of(high.y)}};
}

// What is known of a layer's rows.
struct Inputs { const u8 *elements, *scales; u32 rows, k; };

// A format: `Left` is what a lane has of a panel's tile, which is multiplied with one row after the other.
template <bool IS_HALF> struct Sixteen {
  typedef Vec4 Left;
  static constexpr Sizes LEFT{512, 0, 0};
  DEVICE_IN Left load(Tile tile) { return Streamed::load<Vec4>(tile.elements, thread() % 32); }
  DEVICE_IN float low(u32 two) { return IS_HALF ? half_to_float(u16(two)) : float_of(two << 16); }
  DEVICE_IN float high(u32 two) { return IS_HALF ? half_to_float(u16(two >> 16)) : float_of(two & 0xffff0000u); }
  template <u32 ROWS>
  DEVICE_IN void multiply(float (&sums)[PANELS][2][ROWS], const Left (&left)[PANELS], const Inputs &inputs, u32 tile) {
    const float *x = reinterpret_cast<const float *>(inputs.elements) + tile * 16;
    UNROLL for (u32 t = 0; t < ROWS; t++) {
      Four v = four_of(x + u64(t < inputs.rows ? t : 0) * inputs.k);
      UNROLL for (u32 p = 0; p < PANELS; p++) {
        u32 words[4] = {left[p].x, left[p].y, left[p].z, left[p].w};
        UNROLL for (u32 i = 0; i < 4; i++) {
          float &sum = sums[p][i % 2][t];
          sum = fused(low(words[i]), v.x[i / 2 * 2], sum);
          sum = fused(high(words[i]), v.x[i / 2 * 2 + 1], sum);
        }
      }
    }
  }
};

struct Eight {
  struct Left { Vec4 elements; float scales[2]; };
  static constexpr Sizes LEFT{512, 16, 0};
  DEVICE_IN Left load(Tile tile) {
    const u8 *scales = tile.scales + lane_row();
    return Left{Streamed::load<Vec4>(tile.elements, thread() % 32),
                {float_of(u32(scales[0]) << 23), float_of(u32(scales[8]) << 23)}};
  }
  DEVICE_IN float number(u32 four, u32 i) {
    u32 x = four >> 8 * i & 0xff;
    return float_of((x & 0x7f) << 20 | (x & 0x80) << 24) * 0x1p120f;
  }
  template <u32 ROWS>
  DEVICE_IN void multiply(float (&sums)[PANELS][2][ROWS], const Left (&left)[PANELS], const Inputs &inputs, u32 tile) {
    const float *x = reinterpret_cast<const float *>(inputs.elements) + tile * 32;
    UNROLL for (u32 p = 0; p < PANELS; p++) {
      u32 words[4] = {left[p].elements.x, left[p].elements.y, left[p].elements.z, left[p].elements.w};
      float numbers[4][4];
      UNROLL for (u32 w = 0; w < 4; w++) UNROLL for (u32 i = 0; i < 4; i++) numbers[w][i] = number(words[w], i);
      UNROLL for (u32 t = 0; t < ROWS; t++) {
        const float *row = x + u64(t < inputs.rows ? t : 0) * inputs.k;
        Four v[2] = {four_of(row), four_of(row + 16)};
        UNROLL for (u32 output = 0; output < 2; output++) {
          float sum = 0.0f;
          UNROLL for (u32 half = 0; half < 2; half++) UNROLL for (u32 i = 0; i < 4; i++)
            sum = fused(numbers[2 * half + output][i], v[half].x[i], sum);
          sums[p][output][t] = fused(sum, left[p].scales[output], sums[p][output][t]);
        }
      }
    }
  }
};

// The same with other scales.
struct Scaled : Eight {
  static constexpr Sizes LEFT = ::Scaled::LEFT;
  DEVICE_IN Left load(Tile tile) {
    ::Scaled::Left left = ::Scaled::left<Streamed>(tile);
    return Left{left.elements, {left.scales[0], left.scales[1]}};
  }
};

template <bool IS_FOUR> struct Whole {
  struct Left { u32 a[4]; float scales[2]; int zeros[2]; };
  static constexpr Sizes LEFT = ::Whole<IS_FOUR>::LEFT;
  DEVICE_IN Left load(Tile tile) {
    typename ::Whole<IS_FOUR>::Left left = ::Whole<IS_FOUR>::template left<Streamed>(tile);
    return Left{{left.a[0], left.a[1], left.a[2], left.a[3]},
                {left.scales[0], left.scales[1]},
                {left.zeros[0], left.zeros[1]}};
  }
  template <u32 ROWS>
  DEVICE_IN void multiply(float (&sums)[PANELS][2][ROWS], const Left (&left)[PANELS], const Inputs &inputs, u32 tile) {
    const Vec2 *x = reinterpret_cast<const Vec2 *>(inputs.elements) + u64(tile) * 32 + thread() % 4;
    const float *scales = reinterpret_cast<const float *>(inputs.scales) + u64(tile) * 8;
    UNROLL for (u32 t = 0; t < ROWS; t++) {
      Vec2 v = x[t * 4];
      float scale = scales[t];
      int all = IS_FOUR ? dot_bytes(v.y, 0x01010101u, dot_bytes(v.x, 0x01010101u, 0)) : 0;
      UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 i = 0; i < 2; i++) {
        int sum = dot_bytes(left[p].a[2 + i], v.y, dot_bytes(left[p].a[i], v.x, 0));
        if (IS_FOUR) sum = 16 * sum - left[p].zeros[i] * all;
        sums[p][i][t] = fused(float(sum), left[p].scales[i] * scale, sums[p][i][t]);
      }
    }
  }
};

// The inputs of node block_y() are the tiles from nodes[block_y()] on.
template <class Format, u32 ROWS>
DEVICE void multiply(float *y, const Operands &of, u32 rows, u32 k, u32 n, const u32 *nodes, const float *bias, u32 gate) {
  SHARED float left_over[WARPS][ROWS][16 * PANELS];
  u32 lane = thread() % 32, warp = thread() / 32, panels = (n + 15) / 16, node = block_y();
  u32 panel[PANELS];
  UNROLL for (u32 p = 0; p < PANELS; p++) {
    u32 wanted = gate ? block_x() + p * (panels / 2) : block_x() * PANELS + p;
    panel[p] = wanted < panels ? wanted : panels - 1;
  }
  u32 start = nodes[node], tiles = nodes[node + 1] - start;
  u32 first = start + u32(u64(tiles) * warp / WARPS), end = start + u32(u64(tiles) * (warp + 1) / WARPS);
  Inputs inputs{of.inputs, of.input_scales, rows, k};
  auto load = [&](typename Format::Left(&left)[PANELS], u32 tile) {
    UNROLL for (u32 p = 0; p < PANELS; p++) left[p] = Format::load(weight_tile<Format>(of, panels, panel[p], tile));
  };
  float sums[PANELS][2][ROWS] = {};
  for (u32 tile = first; tile < end; tile += AT_ONCE) {
    typename Format::Left left[AT_ONCE][PANELS];
    UNROLL for (u32 i = 0; i < AT_ONCE; i++)
      if (tile + i < end) load(left[i], tile + i);
    sync_warp();
    UNROLL for (u32 i = 0; i < AT_ONCE; i++)
      if (tile + i < end) Format::template multiply<ROWS>(sums, left[i], inputs, tile + i);
  }

  UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 i = 0; i < 2; i++) UNROLL for (u32 t = 0; t < ROWS; t++) {
    float sum = sums[p][i][t];
    sum = sum + shuffle_xor(sum, 1);
    sum = sum + shuffle_xor(sum, 2);
    if (lane % 4 == 0) left_over[warp][t][p * 16 + i * 8 + lane / 4] = sum;
  }
  sync_block();
  u32 outputs = gate ? n / 2 : n, own = gate ? 16 : 16 * PANELS;
  for (u32 at = thread(); at < ROWS * own; at += threads()) {
    u32 t = at / own, inner = at % own, output = block_x() * own + inner;
    if (t >= rows || output >= outputs) continue;
    auto sum_of = [&](u32 place, u32 of_bias) {
      float sum = left_over[0][t][place];
      UNROLL for (u32 w = 1; w < WARPS; w++) sum = sum + left_over[w][t][place];
      return bias ? sum + bias[of_bias] : sum;
    };
    float sum = sum_of(inner, output);
    if (gate) sum = activation(gate - 1, sum) * sum_of(16 + inner, outputs + output);
    y[(u64(node) * rows + t) * outputs + output] = sum;
  }
}

} // namespace gemv

// Inputs: x [rows, k], or what linear_quantize makes of it.
#define GEMV_OF(name, format, most)                                                                                    \
  KERNEL_OF(256, name)                                                                                                 \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const u8 *input_scales, u32 tiles, u32 rows, u32 k, u32 n, const u32 *nodes, const float *bias, u32 gate) {         \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, nullptr, tiles};                           \
    gemv::multiply<format, most>(y, of, rows, k, n, nodes, bias, gate);                                                \
  }                                                                                                                    \
  EXPORT(name)

#define GEMV(name, ...)                                                                                                \
  typedef gemv::__VA_ARGS__ name##_format;                                                                             \
  GEMV_OF(name##_1, name##_format, 1)                                                                                  \
  GEMV_OF(name##_2, name##_format, 2)                                                                                  \
  GEMV_OF(name##_4, name##_format, 4)                                                                                  \
  GEMV_OF(name##_8, name##_format, 8)

#endif
