// What libraries multiply (--reduction fast): weights row by row, and activations in as many bits.
//
// Limited by the bytes that are read and written. A slice of a weight that is unpacked is small enough to be read by the library
// from the second cache.

// Rows first .. first + rows of a weight in tiles (crates/cuda/src/linear/tiles.rs), to [rows][stride]; zeros from k on. Formats: 0 f16,
// 1 bf16, 2 e4m3 with a power of two per tile, which becomes bf16. A thread for eight inputs, of which a tile's halves have two
// places: neighbours write neighbouring bytes.
KERNEL(unpack_weight)
(Vec4 *out, const u8 *elements, const u8 *scales, u32 first, u32 rows, u32 k, u32 tiles, u32 stride, u32 format) {
  u64 at = u64(block_x()) * threads() + thread();
  u32 eights = stride / 8, output = first + u32(at / eights), input = u32(at % eights) * 8;
  if (at >= u64(rows) * eights) return;
  u32 row = output % 16, lane = row % 8 * 4, upper = row / 8, half = input % 16 / 8, words[4] = {};
  if (input < k) {
    u32 width = format == 2 ? 32 : 16, tile = input / width;
    u64 of = u64(output / 16) * tiles + tile;
    UNROLL for (u32 i = 0; i < 4; i++) {
      // Of each lane of a row a pair of inputs.
      if (format < 2) {
        words[i] = reinterpret_cast<const u32 *>(elements)[(of * 32 + lane + i) * 4 + upper + 2 * half];
      } else {
        u32 four = reinterpret_cast<const u32 *>(elements)[(of * 32 + lane + i) * 4 + upper + 2 * (input % 32 / 16)];
        float scale = float_of(u32(scales[of * 16 + row]) << 23), v[2];
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

// x [rows, k] to [rows][stride] in bf16, or f16; zeros from k on. A thread for two inputs.
KERNEL(round_rows)(u32 *out, const float *x, u32 rows, u32 k, u32 stride, u32 is_half) {
  u64 at = u64(block_x()) * threads() + thread();
  u32 pairs = stride / 2, row = u32(at / pairs), input = u32(at % pairs) * 2;
  if (at >= u64(rows) * pairs) return;
  float low = input < k ? x[u64(row) * k + input] : 0.0f, high = input + 1 < k ? x[u64(row) * k + input + 1] : 0.0f;
  out[at] = is_half ? two_halfs(low, high) : two_bfloats(low, high);
}
EXPORT(round_rows)
