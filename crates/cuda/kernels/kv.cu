// The KV cache: rows' keys and values are written to their blocks, normed and rotated before if need be, and blocks are copied.
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

// As crates/tensor/src/fp8.rs does it.
DEVICE float fp8_scale(u32 largest_bits) {
  if (largest_bits >= 0x7f800000u) return float_of(0x7fc00000u);
  u32 exponent = (largest_bits + 0x1fffffu) >> 23;
  exponent = exponent > 8 ? exponent - 8 : 0;
  return float_of((exponent > 1 ? exponent : 1) << 23);
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

// A head's keys or values of a row, by a warp: to place `slot` of a record.
template <Kind KIND> DEVICE void store_head(u8 *record, u32 slot, const float *from, u32 is_value, u32 head_dim) {
  u32 lane = thread() % 32, tiles = (head_dim + 15) / 16;
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
    if (lane == 0) scales[is_value * KV_BLOCK + slot] = u16(bits_of(scale) >> 16);
  }
  for (u32 i = lane; i < tiles * 16; i += 32) {
    float x = i < head_dim ? from[i] : 0.0f;
    u32 column = is_value ? i % 16 : slot, inner = is_value ? slot : i % 16;
    u8 *tile = part + i / 16 * tile_bytes<KIND>();
    if (KIND == FP8)
      // A scale that is NaN says all, and no element has to.
      tile[byte_in_tile(column, inner)] = u8(scale == scale ? fp8_of(x / scale) : 0);
    else
      reinterpret_cast<u16 *>(tile)[place_in_tile(column, inner)] = u16(two<KIND>(x, x));
  }
}

// The same of f32, for CUDA cores: a record is keys [head_dim][16 positions] and values [16 positions][head_dim].
struct Exact {
  DEVICE_IN void store(u8 *kv, u64 record, u32 slot, const float *from, u32 is_value, u32 head_dim) {
    float *to = reinterpret_cast<float *>(kv) + record * 2 * KV_BLOCK * head_dim;
    for (u32 i = thread() % 32; i < head_dim; i += 32)
      to[is_value ? (KV_BLOCK + slot) * head_dim + i : i * KV_BLOCK + slot] = from[i];
  }
};
template <Kind KIND> struct Rounded {
  DEVICE_IN void store(u8 *kv, u64 record, u32 slot, const float *from, u32 is_value, u32 head_dim) {
    store_head<KIND>(kv + record * record_bytes<KIND>((head_dim + 15) / 16), slot, from, is_value, head_dim);
  }
};

// What a cache is told of a step's rows and their heads.
struct Store {
  u8 *kv;
  u32 rows, cols;
  const u32 *positions, *table_of_row, *tables;
  u32 num_heads, num_kv_heads, head_dim;
  Share share;
};

// One warp per row and head, of keys, then of values.
template <class As> DEVICE void store(Store of, const float *qkv) {
  u32 warp = block_x() * (threads() / 32) + thread() / 32, heads = 2 * of.num_kv_heads;
  if (warp >= of.rows * heads) return;
  u32 row = warp / heads, head = warp % heads;
  Target to = target_of(row, of.positions, of.table_of_row, of.tables, of.share);
  if (to.block == NONE) return;
  As::store(of.kv, u64(to.block) * of.num_kv_heads + head % of.num_kv_heads, to.slot,
            qkv + u64(row) * of.cols + (of.num_heads + head) * of.head_dim, head / of.num_kv_heads, of.head_dim);
}

// Heads are normed and rotated before: one warp per row and head, of queries, which go back to where they were, of keys, and of
// values. The block's memory is a head for each warp.
template <class As>
DEVICE void rotate_store(Store of, float *qkv, HeadNorm q_norm, HeadNorm k_norm, const float *table, u32 pairs) {
  DYNAMIC_SHARED(float, memory);
  u32 warp = block_x() * (threads() / 32) + thread() / 32, lane = thread() % 32;
  u32 heads = of.num_heads + 2 * of.num_kv_heads;
  if (warp >= of.rows * heads) return;
  u32 row = warp / heads, head = warp % heads, of_values = of.num_heads + of.num_kv_heads;
  Target to = {0, 0};
  if (head >= of.num_heads) to = target_of(row, of.positions, of.table_of_row, of.tables, of.share);
  if (to.block == NONE) return;
  float *at = qkv + u64(row) * of.cols + head * of.head_dim, *own = memory + thread() / 32 * of.head_dim;
  for (u32 i = lane; i < of.head_dim; i += 32) own[i] = at[i];
  sync_warp();
  if (head < of_values) {
    HeadNorm norm = head < of.num_heads ? q_norm : k_norm;
    if (norm.weight) norm_head(own, of.head_dim, norm);
    sync_warp();
    for (u32 pair = lane; pair < pairs; pair += 32) rotate_pair(own, table + u64(row) * 2 * pairs, pair, pairs);
    sync_warp();
  }
  if (head < of.num_heads) {
    for (u32 i = lane; i < of.head_dim; i += 32) at[i] = own[i];
    return;
  }
  u32 kv_head = (head - of.num_heads) % of.num_kv_heads;
  As::store(of.kv, u64(to.block) * of.num_kv_heads + kv_head, to.slot, own, head >= of_values, of.head_dim);
}

} // namespace attention

#define STORE(type, as)                                                                                                \
  KERNEL(store_##type)                                                                                                 \
  (u8 *kv, float *qkv, u32 rows, u32 cols, const u32 *positions, const u32 *table_of_row, const u32 *tables,           \
   u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 owners, u32 owner) {                                             \
    using namespace attention;                                                                                         \
    store<as>(Store{kv, rows, cols, positions, table_of_row, tables, num_heads, num_kv_heads, head_dim,                \
                    {owners, owner}},                                                                                  \
              qkv);                                                                                                    \
  }                                                                                                                    \
  EXPORT(store_##type)                                                                                                 \
  KERNEL(rotate_store_##type)                                                                                          \
  (u8 *kv, float *qkv, u32 rows, u32 cols, const u32 *positions, const u32 *table_of_row, const u32 *tables,           \
   u32 num_heads, u32 num_kv_heads, u32 head_dim, u32 owners, u32 owner, const float *q_weight, const float *k_weight, \
   u32 is_layer, float offset, float eps, const float *table, u32 pairs) {                                             \
    using namespace attention;                                                                                         \
    rotate_store<as>(Store{kv, rows, cols, positions, table_of_row, tables, num_heads, num_kv_heads, head_dim,         \
                           {owners, owner}},                                                                           \
                     qkv, {q_weight, is_layer, offset, eps}, {k_weight, is_layer, offset, eps}, table, pairs);         \
  }                                                                                                                    \
  EXPORT(rotate_store_##type)

STORE(exact, Exact)
STORE(bfloat, Rounded<BFLOAT>)
STORE(half, Rounded<HALF>)
STORE(fp8, Rounded<FP8>)

// Copies blocks of `count` sixteens of bytes: from pairs[2 b] to pairs[2 b + 1].
KERNEL(copy_blocks)(Vec4 *kv, const u32 *pairs, u64 count, u32 per_pair) {
  u32 pair = block_x() / per_pair;
  const Vec4 *from = kv + pairs[2 * pair] * count;
  Vec4 *to = kv + pairs[2 * pair + 1] * count;
  for (u64 at = block_x() % per_pair * threads() + thread(); at < count; at += per_pair * threads()) to[at] = from[at];
}
EXPORT(copy_blocks)
