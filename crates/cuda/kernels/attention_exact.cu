// Attention over caches of f32, with the bits of every other device (NUMERICS.md, rule 4).
//
// Limited by the latency of head_dim additions, one after the other, per tile of 64 positions; such caches are for comparing,
// not for speed. One warp per row and head. Scores: a lane has two positions. Values: a lane has every 32nd element.

namespace attention {

constexpr u32 MOST_PER_LANE = 8;

// A row's segment of a head.
struct Sums {
  float m, l, o[MOST_PER_LANE];
};

DEVICE void clear(Sums &sums) {
  sums.m = lowest();
  sums.l = 0.0f;
  UNROLL for (u32 i = 0; i < MOST_PER_LANE; i++) sums.o[i] = 0.0f;
}

DEVICE void add_tile(Sums &sums, const float *q, const float *const (&records)[TILE_BLOCKS], Range seen, u32 head_dim,
                     float scale, float softcap) {
  u32 lane = thread() % 32, start = seen.first / TILE * TILE;
  float s[2], w[2], most = lowest();
  UNROLL for (u32 half = 0; half < 2; half++) {
    u32 in_tile = half * 32 + lane, position = start + in_tile;
    bool is_seen = seen.first <= position && position < seen.end;
    float x = 0.0f;
    if (is_seen) {
      const float *key = records[in_tile / KV_BLOCK] + in_tile % KV_BLOCK;
      for (u32 i = 0; i < head_dim; i++) x = fused(q[i], key[i * KV_BLOCK], x);
      x = x * scale;
      if (softcap > 0.0f) x = softcap * hyperbolic_tangent(x / softcap);
    }
    s[half] = is_seen ? x : lowest();
    most = larger(s[half], most);
  }
  for (u32 step = 16; step > 0; step /= 2) most = larger(shuffle_xor(most, step), most);
  float m = larger(sums.m, most), c = sums.m == lowest() ? 0.0f : exponential(sums.m - m);
  UNROLL for (u32 half = 0; half < 2; half++) {
    u32 position = start + half * 32 + lane;
    w[half] = seen.first <= position && position < seen.end ? exponential(s[half] - m) : 0.0f;
  }
  float sum = 0.0f;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) sum += shuffle(w[i / 2], i % 2 * 16 + lane % 16);
  sums.m = m;
  sums.l = fused(sums.l, c, sum_by_halves(sum));
  UNROLL for (u32 i = 0; i < MOST_PER_LANE; i++) sums.o[i] = sums.o[i] * c;
  for (u32 position = seen.first; position < seen.end; position++) {
    u32 in_tile = position - start;
    float weight = shuffle(in_tile < 32 ? w[0] : w[1], in_tile);
    const float *value = records[in_tile / KV_BLOCK] + (KV_BLOCK + in_tile % KV_BLOCK) * head_dim;
    UNROLL for (u32 i = 0; i < MOST_PER_LANE; i++)
      if (i * 32 + lane < head_dim) sums.o[i] = fused(weight, value[i * 32 + lane], sums.o[i]);
  }
}

} // namespace attention

// Rows are those of `list`, or those from `first_row` on. With `segments`, grid z is which of them, modulo their count, and
// what is written are parts (at `places`, of which each head has `per_head`; or as attention_merge finds them); without, all
// of a row's segments one after the other, and the result.
KERNEL(attention_exact)
(float *out, const float *queries, u32 cols, const float *kv, const u32 *positions, const u32 *table_of_row,
 const u32 *tables, const u32 *list, u32 count, u32 num_heads, u32 num_kv_heads, u32 group, u32 first_in_group,
 u32 head_dim, float scale, float softcap, u32 window, u32 segments, const u32 *places, u32 first_row, u32 per_head,
 u32 owners, u32 owner) {
  using namespace attention;
  u32 warp = block_x() * (threads() / 32) + thread() / 32, lane = thread() % 32;
  if (warp >= count * num_heads) return;
  u32 slot = warp / num_heads, head = warp % num_heads, row = list ? list[slot] : first_row + slot;
  if (row == NONE) return;
  Range seen = seen_from(positions[row], window);
  u32 segment = seen.first / SEGMENT, end = (seen.end + SEGMENT - 1) / SEGMENT;
  if (segments) {
    segment = segment_at(block_z(), seen.first, segments);
    end = segment + 1;
    if (!overlap(segment_of(segment), seen)) return;
  }
  u32 at = segments ? slot * segments + segment % segments : 0;
  u64 place = places ? places[at] + u64(head) * per_head : u64(at) * num_heads + head;
  if (places && places[at] == NONE) return;

  const float *q = queries + u64(row) * cols + head * head_dim;
  u32 kv_head = (head + first_in_group) / group;
  const u32 *table = tables + table_of_row[row];
  Sums sums, total;
  clear(total);
  bool is_first = true;
  for (; segment < end; segment++) {
    clear(sums);
    Range in = segment_of(segment);
    in = {in.first > seen.first ? in.first : seen.first, in.end < seen.end ? in.end : seen.end};
    for (u32 tile = in.first / TILE; tile * TILE < in.end; tile++) {
      Range here = {tile * TILE > in.first ? tile * TILE : in.first, tile * TILE + TILE < in.end ? tile * TILE + TILE : in.end};
      const float *records[TILE_BLOCKS];
      UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
        u32 index = tile * TILE_BLOCKS + i;
        bool is_read = overlap({index * KV_BLOCK, index * KV_BLOCK + KV_BLOCK}, here);
        u32 block = is_read ? local_block(table[index], {owners, owner}) : 0;
        records[i] = kv + (u64(block) * num_kv_heads + kv_head) * 2 * KV_BLOCK * head_dim;
      }
      add_tile(sums, q, records, here, head_dim, scale, softcap);
    }
    if (is_first) total = sums;
    else {
      Join by = join(total.m, sums.m);
      total.m = by.m;
      total.l = joined(by, total.l, sums.l);
      UNROLL for (u32 i = 0; i < MOST_PER_LANE; i++) total.o[i] = joined(by, total.o[i], sums.o[i]);
    }
    is_first = false;
  }
  float *to = segments ? out + place * (2 + head_dim) + 2 : out + (u64(row) * num_heads + head) * head_dim;
  if (segments && lane == 0) {
    to[-2] = total.m;
    to[-1] = total.l;
  }
  UNROLL for (u32 i = 0; i < MOST_PER_LANE; i++)
    if (i * 32 + lane < head_dim) to[i * 32 + lane] = segments ? total.o[i] : total.o[i] / total.l;
}
EXPORT(attention_exact)
