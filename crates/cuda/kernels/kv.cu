// The KV cache: rows' keys and values are written to their blocks, and blocks are copied.
//
// Limited by the sectors that are written: a row's keys of a head fall to pieces of 64 bytes, its values to pieces of 2 in
// sectors of 32, so some 5 KB per head of 128 and row, which the second cache collects: a few microseconds for a batch of
// decode, and in prefill little beside attention. Copies are limited by memory, read and written once.

namespace attention {

// Where an element of a position lies in its tile, in numbers. Keys: a column of the operand is a position. Values: an element.
DEVICE u32 place_in_tile(u32 column, u32 inner) {
  u32 lane = column % 8 * 4 + inner % 8 / 2;
  return lane * 8 + column / 8 * 4 + inner / 8 * 2 + inner % 2;
}
// Of fp8, whose operands are the odd bytes of four, then the even ones.
DEVICE u32 byte_in_tile(u32 column, u32 inner) {
  u32 lane = column % 8 * 4 + inner % 8 / 2;
  return lane * 8 + column / 8 * 4 + inner % 2 * 2 + 1 - inner / 8;
}

// As crates/tensor/src/fp8.rs does both.
DEVICE float fp8_scale(u32 largest_bits) {
  if (largest_bits >= 0x7f800000u) return float_of(0x7fc00000u);
  u32 exponent = (largest_bits + 0x1fffffu) >> 23;
  exponent = exponent > 8 ? exponent - 8 : 0;
  return float_of((exponent > 1 ? exponent : 1) << 23);
}
DEVICE u32 fp8_of(float x) {
  float size = magnitude(x);
  u32 bits = bits_of(size), rounded = (bits + 0x7ffffu + (bits >> 20 & 1)) >> 20, code;
  if (size < 1.0f / 64.0f) code = bits_of(size + 16384.0f) - bits_of(16384.0f);
  else code = rounded > 120 * 8 ? rounded - 120 * 8 : 0;
  return (code < 0x7e ? code : 0x7e) | (bits_of(x) >> 24 & 0x80);
}

// Where a row's keys and values go, if it is there and its block is here: the record of its first head, and its place in the block.
struct Target {
  u32 block, slot;
};
DEVICE Target target_of(u32 row, const u32 *positions, const u32 *table_of_row, const u32 *tables, Share share) {
  u32 position = positions[row];
  if (table_of_row[row] == NONE) return {NONE, 0};
  return {local_block(tables[table_of_row[row] + position / KV_BLOCK], share), position % KV_BLOCK};
}

// One warp per row and KV head.
template <Kind KIND>
DEVICE void store(u8 *kv, const float *qkv, u32 rows, u32 cols, const u32 *positions, const u32 *table_of_row,
                  const u32 *tables, u32 num_heads, u32 num_kv_heads, u32 head_dim, Share share) {
  u32 warp = block_x() * (threads() / 32) + thread() / 32, lane = thread() % 32;
  if (warp >= rows * num_kv_heads) return;
  u32 row = warp / num_kv_heads, head = warp % num_kv_heads, tiles = (head_dim + 15) / 16;
  Target to = target_of(row, positions, table_of_row, tables, share);
  if (to.block == NONE) return;
  u8 *record = kv + (u64(to.block) * num_kv_heads + head) * record_bytes<KIND>(tiles);
  for (u32 is_value = 0; is_value < 2; is_value++) {
    const float *from = qkv + u64(row) * cols + (num_heads + is_value * num_kv_heads + head) * head_dim;
    u8 *part = record + is_value * tiles * tile_bytes<KIND>();
    float scale = 1.0f;
    if (KIND == FP8) {
      u32 largest = 0;
      for (u32 i = lane; i < head_dim; i += 32) {
        u32 bits = bits_of(magnitude(from[i]));
        largest = bits > largest ? bits : largest;
      }
      for (u32 step = 16; step > 0; step /= 2) {
        u32 other = shuffle_xor(largest, step);
        largest = other > largest ? other : largest;
      }
      scale = fp8_scale(largest);
      u16 *scales = reinterpret_cast<u16 *>(record + 2 * tiles * tile_bytes<KIND>());
      if (lane == 0) scales[is_value * KV_BLOCK + to.slot] = u16(bits_of(scale) >> 16);
    }
    for (u32 i = lane; i < tiles * 16; i += 32) {
      float x = i < head_dim ? from[i] : 0.0f;
      u32 column = is_value ? i % 16 : to.slot, inner = is_value ? to.slot : i % 16;
      u8 *tile = part + i / 16 * tile_bytes<KIND>();
      if (KIND == FP8)
        // A scale that is NaN says all, and no element has to.
        tile[byte_in_tile(column, inner)] = u8(scale == scale ? fp8_of(x / scale) : 0);
      else
        reinterpret_cast<u16 *>(tile)[place_in_tile(column, inner)] = u16(two<KIND>(x, x));
    }
  }
}

#define STORE(name, kind)                                                                                              \
  KERNEL(name)                                                                                                         \
  (u8 *kv, const float *qkv, u32 rows, u32 cols, const u32 *positions, const u32 *table_of_row, const u32 *tables,     \
   u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 owners, u32 owner) {                                             \
    attention::store<attention::kind>(kv, qkv, rows, cols, positions, table_of_row, tables, num_heads, num_kv_heads,   \
                                      head_dim, {owners, owner});                                                      \
  }                                                                                                                    \
  EXPORT(name)

} // namespace attention

STORE(store_bfloat, BFLOAT)
STORE(store_half, HALF)
STORE(store_fp8, FP8)

// Of f32, for CUDA cores: a record is keys [head_dim][16 positions] and values [16 positions][head_dim]. A thread per element.
KERNEL(store_exact)
(float *kv, const float *qkv, u32 rows, u32 cols, const u32 *positions, const u32 *table_of_row, const u32 *tables,
 u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 owners, u32 owner) {
  using namespace attention;
  u64 at = u64(block_x()) * threads() + thread();
  u32 width = num_kv_heads * head_dim;
  if (at >= u64(rows) * 2 * width) return;
  u32 row = at / (2 * width), col = at % (2 * width), is_value = col / width, head = col % width / head_dim, i = col % head_dim;
  Target to = target_of(row, positions, table_of_row, tables, {owners, owner});
  if (to.block == NONE) return;
  float *record = kv + (u64(to.block) * num_kv_heads + head) * 2 * KV_BLOCK * head_dim;
  record[is_value ? (KV_BLOCK + to.slot) * head_dim + i : i * KV_BLOCK + to.slot] = qkv[u64(row) * cols + num_heads * head_dim + col];
}
EXPORT(store_exact)

// Copies blocks of `count` sixteens of bytes: from pairs[2 b] to pairs[2 b + 1].
KERNEL(copy_blocks)(Vec4 *kv, const u32 *pairs, u64 count, u32 per_pair) {
  u32 pair = block_x() / per_pair;
  const Vec4 *from = kv + pairs[2 * pair] * count;
  Vec4 *to = kv + pairs[2 * pair + 1] * count;
  for (u64 at = block_x() % per_pair * threads() + thread(); at < count; at += per_pair * threads()) to[at] = from[at];
}
EXPORT(copy_blocks)
