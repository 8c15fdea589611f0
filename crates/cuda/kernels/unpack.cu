// What libraries multiply (--reduction fast): weights row by row, and activations in as many bits.
//
// Limited by the bytes that are read and written. A slice of a weight that is unpacked is small enough to be read by the library
// from the second cache.

// Rows first .. first + rows of a weight in tiles (crates/cuda/src/linear/tiles.rs), to [rows][stride]; zeros from k on. Formats: 0 f16,
// 1 bf16, 2 e4m3 with a power of two per tile, 3 e4m3 whose tiles share scales, which become bf16. A thread for eight inputs, of
// which a tile's halves have two places: neighbours write neighbouring bytes.
KERNEL(unpack_weight)
(Vec4 *out, const u8 *elements, const u8 *scales, const u32 *scale_of, u32 first, u32 rows, u32 k, u32 tiles, u32 panels,
 u32 stride, u32 format) {
  u64 at = u64(block_x()) * threads() + thread();
  u32 eights = stride / 8, output = first + u32(at / eights), input = u32(at % eights) * 8;
  if (at >= u64(rows) * eights) return;
  u32 row = output % 16, lane = row % 8 * 4, upper = row / 8, half = input % 16 / 8, words[4] = {};
  if (input < k) {
    u32 width = format < 2 ? 16 : 32, tile = input / width;
    u64 of = u64(output / 16) * tiles + tile;
    UNROLL for (u32 i = 0; i < 4; i++) {
      // Of each lane of a row a pair of inputs.
      if (format < 2) {
        words[i] = reinterpret_cast<const u32 *>(elements)[(of * 32 + lane + i) * 4 + upper + 2 * half];
      } else {
        u32 four = reinterpret_cast<const u32 *>(elements)[(of * 32 + lane + i) * 4 + upper + 2 * (input % 32 / 16)];
        float v[2], scale = format == 2 ? float_of(u32(scales[of * 16 + row]) << 23)
                                        : reinterpret_cast<const float *>(
                                              scales)[(u64(scale_of[tile]) * panels + output / 16) * 16 + row];
        UNROLL for (u32 j = 0; j < 2; j++) {
          u32 x = four >> 8 * (j + 2 * half) & 0xff;
          v[j] = float_of((x & 0x7f) << 20 | (x & 0x80) << 24) * 0x1p120f * scale;
        }
        words[i] = two_bfloats(v[0], v[1]);
      }
    }
  }
  out[at] = Vec4{words[0], words[1], words[2], words[3]};
}
EXPORT(unpack_weight)

// e4m3 as it is, to [rows][stride] bytes; zeros from k on. A thread for a tile's half of a row.
KERNEL(unpack_bytes)(Vec4 *out, const u8 *elements, u32 first, u32 rows, u32 k, u32 tiles, u32 stride) {
  u64 at = u64(block_x()) * threads() + thread();
  u32 halves = stride / 16, output = first + u32(at / halves), half = u32(at % halves), words[4] = {};
  if (at >= u64(rows) * halves) return;
  if (half * 16 < k) {
    u64 of = u64(output / 16) * tiles + half / 2;
    u32 pairs[8];
    UNROLL for (u32 i = 0; i < 4; i++) {
      // Inputs 2 i, 2 i + 1, and those 8 behind them.
      u32 four = reinterpret_cast<const u32 *>(elements)[(of * 32 + output % 8 * 4 + i) * 4 + output % 16 / 8 + 2 * (half % 2)];
      pairs[i] = four & 0xffff;
      pairs[4 + i] = four >> 16;
    }
    UNROLL for (u32 i = 0; i < 4; i++) words[i] = pairs[2 * i] | pairs[2 * i + 1] << 16;
  }
  out[at] = Vec4{words[0], words[1], words[2], words[3]};
}
EXPORT(unpack_bytes)

// x [rows, k] to [rows][stride] in e4m3, zeros from k on, and what each row was divided by: its largest number becomes the largest
// there is. A row with a number that is not finite has NaN. A block per row.
KERNEL_OF(256, quantize_rows)(u32 *out, float *scales, const float *x, u32 k, u32 stride) {
  SHARED u32 largest[8];
  u32 row = block_x(), most = 0;
  const float *from = x + u64(row) * k;
  for (u32 at = thread(); at < k; at += threads()) {
    u32 bits = bits_of(from[at]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  UNROLL for (u32 step = 1; step < 32; step *= 2) {
    u32 other = shuffle_xor(most, step);
    most = other > most ? other : most;
  }
  if (thread() % 32 == 0) largest[thread() / 32] = most;
  sync_block();
  UNROLL for (u32 warp = 0; warp < 8; warp++) most = largest[warp] > most ? largest[warp] : most;
  float scale = 0.0f, inverse = 0.0f;
  if (most >= 0x7f800000u) scale = float_of(0x7fc00000u);
  else if (float_of(most) > float_of(17u << 23)) scale = float_of(most) / 448.0f, inverse = 448.0f / float_of(most); // 2^-110
  if (thread() == 0) scales[row] = scale;
  for (u32 at = thread(); at < stride / 4; at += threads()) {
    u32 word = 0;
    UNROLL for (u32 i = 0; i < 4; i++)
      if (4 * at + i < k && inverse != 0.0f) word |= fp8_of(from[4 * at + i] * inverse) << 8 * i;
    out[u64(row) * (stride / 4) + at] = word;
  }
}
EXPORT(quantize_rows)

// y [nodes · rows, n] of products of e4m3, times the scales of rows and of outputs. A thread per element.
KERNEL(scale_products)
(float *y, const float *row_scales, const float *output_scales, u64 count, u32 rows, u32 n, const float *bias) {
  u64 at = u64(block_x()) * threads() + thread();
  if (at >= count) return;
  u32 output = u32(at % n), row = u32(at / n % rows);
  float sum = y[at] * (row_scales[row] * output_scales[output]);
  y[at] = bias ? sum + bias[output] : sum;
}
EXPORT(scale_products)

// x [rows, k] to [rows][stride] in bf16, or f16; zeros from k on. A thread for two inputs.
KERNEL(round_rows)(u32 *out, const float *x, u32 rows, u32 k, u32 stride, u32 is_half) {
  u64 at = u64(block_x()) * threads() + thread();
  u32 pairs = stride / 2, row = u32(at / pairs), input = u32(at % pairs) * 2;
  if (at >= u64(rows) * pairs) return;
  float low = input < k ? x[u64(row) * k + input] : 0.0f, high = input + 1 < k ? x[u64(row) * k + input + 1] : 0.0f;
  out[at] = is_half ? two_halfs(low, high) : two_bfloats(low, high);
}
EXPORT(round_rows)
