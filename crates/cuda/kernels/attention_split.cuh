// Attention of a few rows of each sequence over caches of 8 and 16 bits: decode. A block has one segment of 1,024 positions of
// one KV head; of the blocks of the same rows, the one that is done last joins what all of them have left.
//
// Limited by the bytes of keys and values, each read once per 16 rows (a row is a token with one of the heads that read the KV
// head), straight into the registers that tensor cores take: 16 loads per lane are under way at a time, of 16 bytes (fp8: 8), 64 kB
// of a block, which is alone on a multiprocessor. Should reach 80 % of what a copy reaches once some 130 segments are read side by side, and is limited
// by latency below that: a segment is the least that two blocks can share without another order of sums (NUMERICS.md, rule 4).
//
// The order of operations is that of attention_tiles. What makes it so although eight warps work on eight tiles at a time: the
// largest score so far follows from the tiles' largest, which the warps tell each other before they weigh; the weighted values
// of each tile are summed on their own, and join the running sums in the tiles' order.

#ifndef ATTENTION_SPLIT_CUH
#define ATTENTION_SPLIT_CUH

namespace attention {

constexpr u32 SPLIT_WARPS = 8, SPLIT_ROWS = 16, SLICE = 4, SLICE_COLS = SLICE * 16, SLICE_STRIDE = SLICE_COLS + 8;

// Shared memory, behind it the queries [tiles][lane] and the sums [row][tiles · 16].
struct SplitShared {
  float part[SPLIT_WARPS][SPLIT_ROWS][SLICE_STRIDE];
  float largest[SPLIT_WARPS][SPLIT_ROWS], keep[SPLIT_WARPS][SPLIT_ROWS], sum[SPLIT_WARPS][SPLIT_ROWS];
  float m[SPLIT_ROWS], l[SPLIT_ROWS];
  PackedRow rows[SPLIT_ROWS];
  // One, filled up: what lies behind are pieces of 16 bytes.
  u32 is_last[4];
};

// Whether all other blocks of `count` have come here, so that what they wrote before is there to be read.
DEVICE bool comes_last(u32 *arrived, u32 count, u32 &is_last) {
  fence();
  sync_block();
  if (thread() == 0) {
    is_last = atomic_add(arrived, 1) == count - 1;
    // For the next kernel.
    if (is_last) *arrived = 0;
    fence();
  }
  sync_block();
  return is_last;
}

// A tile's blocks in the cache; nothing for those that no row of the warp sees.
struct Records {
  const u8 *at[TILE_BLOCKS];
};
DEVICE Records records_of(const u8 *kv, u64 bytes, u32 num_kv_heads, u32 kv_head, const u32 *table, u32 tile, Range seen,
                          Share share) {
  Records records;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
    u32 index = tile * TILE_BLOCKS + i;
    bool is_read = overlap({index * KV_BLOCK, index * KV_BLOCK + KV_BLOCK}, seen);
    records.at[i] = is_read ? kv + (u64(local_block(table[index], share)) * num_kv_heads + kv_head) * bytes : nullptr;
  }
  return records;
}

DEVICE Scales scales_of(const Records &records, u32 offset) {
  Scales scales;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++)
    scales.of[i] = records.at[i] ? reinterpret_cast<const u16 *>(records.at[i] + offset) : nullptr;
  return scales;
}

// The lane's numbers of a slice of tiles of 16 by 16, of each block, from tile `first` of `tiles` on, which begin `offset` bytes into its
// record. All are under way before the first is used.
template <Kind KIND> struct Slice {
  typename Lane<KIND>::Numbers of[SLICE][TILE_BLOCKS];
};
template <Kind KIND> DEVICE Slice<KIND> load_slice(const Records &records, u32 offset, u32 first, u32 tiles) {
  typedef typename Lane<KIND>::Numbers Numbers;
  Slice<KIND> slice;
  UNROLL for (u32 i = 0; i < SLICE; i++) {
    if (first + i >= tiles) break;
    UNROLL for (u32 b = 0; b < TILE_BLOCKS; b++) {
      const u8 *tile = records.at[b] + offset + (first + i) * tile_bytes<KIND>();
      const Numbers *at = reinterpret_cast<const Numbers *>(tile) + thread() % 32;
      slice.of[i][b] = records.at[b] ? load_ahead(at) : nothing_of(at);
    }
  }
  sync_warp();
  return slice;
}

template <Kind KIND>
DEVICE void split(float *out, const float *queries, u32 cols, const u8 *kv, Sequence sequence, const u32 *tables, u32 item,
                  u32 pack, u32 num_heads, u32 num_kv_heads, u32 group, u32 first_in_group, u32 head_dim, Scoring scoring,
                  u32 window, u32 segments, const u32 *places, Range rows, u32 per_head, Share share, u32 most_rows,
                  float *parts, u32 *arrived) {
  u32 kv_head = block_y(), tiles = (head_dim + 15) / 16, lane = thread() % 32, warp = thread() / 32, quad = lane / 4;
  Packed packed = packed_rows(sequence, rows, heads_of(kv_head, num_heads, group, first_in_group), window);
  u32 first = pack * SPLIT_ROWS;
  Range any = seen_by_any(packed, first, first + SPLIT_ROWS), all = seen_by_all(packed, first, first + SPLIT_ROWS);
  if (any.end == 0) return;
  u32 segment = segment_at(block_z(), any.first, segments);
  Range here = segment_of(segment);
  if (!overlap(here, any)) return;
  const u32 *table = tables + sequence.table;
  here = {here.first > any.first ? here.first : any.first, here.end < any.end ? here.end : any.end};
  if (local_block(table[here.first / KV_BLOCK], share) == NONE) return;

  DYNAMIC_SHARED(u8, memory);
  SplitShared &shared = *reinterpret_cast<SplitShared *>(memory);
  Vec4 *query = reinterpret_cast<Vec4 *>(memory + sizeof(SplitShared));
  float *sums = reinterpret_cast<float *>(query + tiles * 32);
  PackedRow low = row_at(packed, first + quad), high = row_at(packed, first + quad + 8);
  auto query_of = [&](PackedRow of) {
    return of.row == NONE ? nullptr : queries + u64(of.row) * cols + of.head * head_dim;
  };
  for (u32 tile = warp; tile < tiles; tile += SPLIT_WARPS)
    query[tile * 32 + lane] = query_operand<KIND>(query_of(low), query_of(high), tile * 16, head_dim);
  for (u32 i = thread(); i < SPLIT_ROWS * tiles * 16; i += threads()) sums[i] = 0.0f;
  if (thread() < SPLIT_ROWS) {
    shared.m[thread()] = lowest();
    shared.l[thread()] = 0.0f;
    shared.rows[thread()] = row_at(packed, first + thread());
  }
  sync_block();

  u64 bytes = record_bytes<KIND>(tiles);
  u32 part_bytes = tiles * tile_bytes<KIND>(), end_tile = (here.end + TILE - 1) / TILE;
  for (u32 round = here.first / TILE; round < end_tile; round += SPLIT_WARPS) {
    u32 tile = round + warp, count = end_tile - round < SPLIT_WARPS ? end_tile - round : SPLIT_WARPS;
    bool is_active = warp < count, whole = holds(all, tile_of(tile));
    Records records;
    float s[8][4] = {};
    if (is_active) {
      records = records_of(kv, bytes, num_kv_heads, kv_head, table, tile, any, share);
      for (u32 slice = 0; slice < tiles; slice += SLICE) {
        Slice<KIND> keys = load_slice<KIND>(records, 0, slice, tiles);
        UNROLL for (u32 i = 0; i < SLICE; i++) {
          if (slice + i >= tiles) break;
          Vec4 q = query[(slice + i) * 32 + lane];
          u32 of_rows[4] = {q.x, q.y, q.z, q.w};
          UNROLL for (u32 b = 0; b < TILE_BLOCKS; b++) {
            Operands of = operands_of(keys.of[i][b]);
            multiply<KIND>(s[2 * b], of_rows, of.columns[0]);
            multiply<KIND>(s[2 * b + 1], of_rows, of.columns[1]);
          }
        }
      }
      finish_scores<KIND>(s, scales_of(records, 2 * part_bytes), low.seen, high.seen, tile * TILE, whole, scoring);
      float largest[2] = {largest_score(s, 0), largest_score(s, 1)};
      if (lane % 4 == 0) UNROLL for (u32 r = 0; r < 2; r++) shared.largest[warp][quad + 8 * r] = largest[r];
    }
    sync_block();
    u32 p[TILE_BLOCKS][4];
    float unit[2] = {1.0f, 1.0f};
    if (is_active) {
      UNROLL for (u32 r = 0; r < 2; r++) {
        u32 row = quad + 8 * r;
        float m = shared.m[row];
        for (u32 before = 0; before < warp; before++) m = larger(shared.largest[before][row], m);
        float to = larger(shared.largest[warp][row], m), sum = weights(s, r, to);
        if (KIND == FP8)
          unit[r] = scaled_weights(s, r, scales_of(records, 2 * part_bytes + 32), r ? high.seen : low.seen, tile * TILE);
        if (lane % 4 == 0) {
          shared.keep[warp][row] = kept(m, to);
          shared.sum[warp][row] = sum;
        }
      }
      weight_operands<KIND>(p, s);
    }
    for (u32 slice = 0; slice < tiles; slice += SLICE) {
      if (is_active) {
        Slice<KIND> values = load_slice<KIND>(records, part_bytes, slice, tiles);
        UNROLL for (u32 i = 0; i < SLICE; i++) {
          if (slice + i >= tiles) break;
          float d[2][4];
          weigh<KIND>(d, p, values.of[i], tile * TILE, whole, any, low.seen, high.seen);
          UNROLL for (u32 c = 0; c < 2; c++) UNROLL for (u32 r = 0; r < 2; r++) UNROLL for (u32 e = 0; e < 2; e++)
            shared.part[warp][quad + 8 * r][i * 16 + c * 8 + lane % 4 * 2 + e] = d[c][2 * r + e] * unit[r];
        }
      }
      sync_block();
      for (u32 at = thread(); at < SPLIT_ROWS * SLICE_COLS; at += threads()) {
        u32 row = at / SLICE_COLS, col = at % SLICE_COLS;
        if (slice * 16 + col >= tiles * 16) continue;
        float &o = sums[row * tiles * 16 + slice * 16 + col];
        Range seen = shared.rows[row].seen;
        for (u32 w = 0; w < count; w++)
          if (overlap(tile_of(round + w), seen)) o = fused(o, shared.keep[w][row], shared.part[w][row][col]);
      }
      // The next slice's parts go where these were; the next round's, behind the barrier below.
      if (slice + SLICE < tiles) sync_block();
    }
    if (thread() < SPLIT_ROWS) {
      u32 row = thread();
      for (u32 w = 0; w < count; w++)
        if (overlap(tile_of(round + w), shared.rows[row].seen)) {
          shared.m[row] = larger(shared.largest[w][row], shared.m[row]);
          shared.l[row] = fused(shared.l[row], shared.keep[w][row], shared.sum[w][row]);
        }
    }
    // The next round writes `largest`, `keep` and `sum`, which were read just now, and reads `m`; what follows reads the sums.
    sync_block();
  }

  u32 of_rows = (any.end - 1) / SEGMENT - any.first / SEGMENT + 1;
  auto part_of = [&](PackedRow of, u32 segment) {
    u32 slot = places ? of.row - rows.first : item * most_rows + of.row - sequence.first_row;
    u32 index = slot * segments + segment % segments;
    u64 place = places ? places[index] + u64(of.head) * per_head : u64(index) * num_heads + of.head;
    return (places ? out : parts) + place * (2 + head_dim);
  };
  auto result_of = [&](PackedRow of) { return out + (u64(of.row) * num_heads + of.head) * head_dim; };
  for (u32 at = thread(); at < SPLIT_ROWS * head_dim; at += threads()) {
    u32 i = at / head_dim, col = at % head_dim;
    PackedRow of = shared.rows[i];
    // A row does not see every segment that one of the others sees.
    if (of.row == NONE || !overlap(segment_of(segment), of.seen)) continue;
    float m = shared.m[i], l = shared.l[i], o = sums[i * tiles * 16 + col];
    if (!places && of_rows == 1) {
      result_of(of)[col] = o / l;
      continue;
    }
    float *to = part_of(of, segment);
    if (col == 0) {
      to[0] = m;
      to[1] = l;
    }
    to[2 + col] = o;
  }
  if (places || of_rows == 1 || !comes_last(arrived + block_x() * num_kv_heads + kv_head, of_rows, shared.is_last[0])) return;
  for (u32 i = warp; i < SPLIT_ROWS; i += SPLIT_WARPS) {
    PackedRow of = shared.rows[i];
    if (of.row == NONE) continue;
    merge_segments(result_of(of), of.seen, head_dim, [&](u32 segment) { return part_of(of, segment); });
  }
}

} // namespace attention

// Sequences are those of `list` (none where it is NONE), with at most `most_rows` rows; of those rows, the ones from `first_row` to before `end_row`.
// Grid x: a sequence and 16 of its rows with their heads; y: a KV head; z: which segment, modulo `segments`. What is written is
// the result; or, at `places`, of which each head has `per_head`, parts. Without places `parts` is where blocks leave theirs, and
// `arrived` has a zero for each x and y, and again when all is done.
#define SPLIT(name, kind)                                                                                              \
  KERNEL_OF(256, name)                                                                                                 \
  (float *out, const float *queries, u32 cols, const u8 *kv, const attention::Sequence *sequences, const u32 *tables,  \
   const u32 *list, u32 num_heads, u32 num_kv_heads, u32 group, u32 first_in_group, u32 head_dim, float scale,         \
   float softcap, u32 window, u32 segments, const u32 *places, u32 first_row, u32 end_row, u32 per_head, u32 owners,   \
   u32 owner, u32 most_rows, float *parts, u32 *arrived) {                                                             \
    u32 most_heads = group < num_heads ? group : num_heads;                                                            \
    u32 packs = (most_rows * most_heads + attention::SPLIT_ROWS - 1) / attention::SPLIT_ROWS, item = block_x() / packs;\
    if (list[item] == attention::NONE) return;                                                                         \
    attention::split<attention::kind>(out, queries, cols, kv, sequences[list[item]], tables, item, block_x() % packs,  \
                                      num_heads, num_kv_heads, group, first_in_group, head_dim, {scale, softcap},      \
                                      window, segments, places, {first_row, end_row}, per_head, {owners, owner},       \
                                      most_rows, parts, arrived);                                                      \
  }                                                                                                                    \
  EXPORT(name)

#endif
