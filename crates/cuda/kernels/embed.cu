// Rows of a weight, widened: y[t] = w[ids[t]], whatever the weight's layout is (crates/cuda/src/linear/tiles.rs).
//
// Limited by latency: a row is some kilobytes.

// w [k][n] in f32. A thread per element.
KERNEL(embed_exact)(float *y, const u32 *ids, u32 rows, u32 k, const float *w, u32 n) {
  u64 at = u64(block_x()) * threads() + thread();
  if (at < u64(rows) * k) y[at] = w[at % k * n + ids[at / k]];
}
EXPORT(embed_exact)

// Formats: 0 f16, 1 bf16, 2 e4m3, 3 int8, 4 int4, 5 e4m3 whose tiles share scales (linear_formats.cuh).
KERNEL(embed_tiles)
(float *y, const u32 *ids, u32 rows, u32 k, const u8 *elements, const u8 *scales, const u8 *zeros, u32 tiles, u32 panels,
 u32 period, u32 width, u32 format) {
  u64 at = u64(block_x()) * threads() + thread();
  if (at >= u64(rows) * k) return;
  u32 output = ids[at / k], input = at % k;
  u32 tile = input / period * ((period + width - 1) / width) + input % period / width, inner = input % period % width;
  u32 row = output % 16, lower = row % 8, upper = row / 8;
  u64 of = u64(output / 16) * tiles + tile;
  u32 half = inner / 16, in_half = inner % 16;
  float value;
  if (format < 2) {
    u32 index = in_half % 2 + 2 * (upper + 2 * (in_half / 8));
    u16 bits = reinterpret_cast<const u16 *>(elements)[of * 256 + (lower * 4 + in_half % 8 / 2) * 8 + index];
    value = format == 0 ? half_to_float(bits) : float_of(u32(bits) << 16);
  } else if (format == 2 || format == 5) {
    u32 index = 4 * (upper + 2 * half) + in_half % 2 + 2 * (in_half / 8);
    u32 x = elements[of * 512 + (lower * 4 + in_half % 8 / 2) * 16 + index];
    float scale;
    if (format == 2) {
      scale = float_of(u32(scales[of * 16 + row]) << 23);
    } else {
      u32 shared = reinterpret_cast<const u32 *>(zeros)[tile];
      scale = reinterpret_cast<const float *>(scales)[(u64(shared) * panels + output / 16) * 16 + row];
    }
    value = float_of((x & 0x7f) << 20 | (x & 0x80) << 24) * 0x1p120f * scale;
  } else {
    u32 lane = lower * 4 + in_half / 4;
    float scale = float_of(u32(reinterpret_cast<const u16 *>(scales)[of * 16 + row]) << 16);
    if (format == 3) {
      value = scale * float(i8(elements[of * 512 + lane * 16 + (upper + 2 * half) * 4 + in_half % 4]));
    } else {
      u32 two = elements[of * 256 + lane * 8 + upper * 4 + in_half % 4];
      value = scale * (16.0f * float(two >> 4 * half & 0xf) - float(zeros[of * 16 + row]));
    }
  }
  y[at] = value;
}
EXPORT(embed_tiles)
