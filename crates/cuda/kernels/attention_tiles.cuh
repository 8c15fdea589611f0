// Attention of many rows of a sequence over caches of 8 and 16 bits: prefill.
//
// Limited by the tensor cores, and by shared memory, from which every operand of keys and values is read once per warp: with 32
// rows per warp (heads of 64, but over fp8) a load of 512 bytes feeds four products, 128 bytes for each, with 16 two, 256 bytes: at
// 128 bytes per clock that is 2 clocks for a product that takes Hopper's mma.sync 1.6. More rows of larger heads would not fit in registers.
// Should reach half of the tensor cores' rate. Exponentials cost about a third of the products' time and run beside those of other
// warps.
//
// Keys and values lie in the cache as lanes take them (kv.cu), 16 bytes of each of a warp's lanes in a row: one load brings as many bytes as
// ldmatrix would, also of values, without a conflict between banks. Weights go from the registers of scores to those of the
// left operand as they are.
//
// A block has 4 or 8 warps, each with 16 or 32 rows (a row is a token with one of the heads that read the KV head), and goes
// through the positions that they see in tiles of 64. The next tile is on its way to shared memory while this one is worked on, and a tile has
// one barrier. Of heads above 128 there is room for one tile: keys of the next are on their way while values meet weights,
// values while keys meet queries. What a segment summed joins what those before it summed in `out`, where each thread finds
// again what it wrote.

#ifndef ATTENTION_TILES_CUH
#define ATTENTION_TILES_CUH

namespace attention {

// What a block reads, and where it puts it.
struct Copies {
  const u8 *kv;
  const u32 *table;
  u64 bytes;
  u32 num_kv_heads, kv_head;
  Share share;
  Range seen;
};

// The tile's blocks that are seen, as the block table has them.
struct Blocks {
  u32 of[TILE_BLOCKS];
};
DEVICE Blocks blocks_of(const Copies &from, u32 tile) {
  Blocks blocks;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
    u32 index = tile * TILE_BLOCKS + i;
    bool is_seen = overlap({index * KV_BLOCK, index * KV_BLOCK + KV_BLOCK}, from.seen);
    blocks.of[i] = is_seen ? from.table[index] : NONE;
  }
  return blocks;
}

// Bytes of each block's record go to `to`, those of one block behind those of another.
DEVICE void copy_part(u8 *to, const Copies &from, Blocks blocks, u32 offset, u32 bytes) {
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
    if (blocks.of[i] == NONE) continue;
    u64 record = u64(local_block(blocks.of[i], from.share)) * from.num_kv_heads + from.kv_head;
    const u8 *at = from.kv + record * from.bytes + offset;
    for (u32 byte = thread() * 16; byte < bytes; byte += threads() * 16) copy_async(to + i * bytes + byte, at + byte);
  }
}

DEVICE Scales scales_in(const u8 *at) {
  Scales scales;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) scales.of[i] = reinterpret_cast<const u16 *>(at) + i * KV_BLOCK;
  return scales;
}

// Sums of a lane's rows: [r][half] is row lane / 4 + 8 half of the warp's sixteen number r. The lane has columns
// 8 c + 2 (lane % 4) and the next of o[…][c], of the upper row first.
template <u32 TILES, u32 SIXTEENS> struct Running {
  float m[SIXTEENS][2], l[SIXTEENS][2], o[SIXTEENS][2 * TILES][4];
};

// Of a row's segments so far.
struct Before {
  float m, l;
};

// TILES: of 16 elements of a head, at most, or with EXACT just so many.
template <Kind KIND, u32 TILES, u32 WARPS, u32 SIXTEENS, bool EXACT>
DEVICE void tiles(float *out, const float *queries, u32 cols, Copies from, Packed packed, u32 first, u32 num_heads,
                  u32 head_dim, Scoring scoring, u32 slot, u32 segments, const u32 *places, u32 first_row, u32 per_head) {
  typedef typename Lane<KIND>::Numbers Numbers;
  // Of keys and values of a tile: of larger heads there is no room for two (attention/tiles.rs).
  constexpr u32 ROWS = WARPS * SIXTEENS * 16, BUFFERS = TILES <= 8 ? 2 : 1;
  u32 count = EXACT ? TILES : (head_dim + 15) / 16, lane = thread() % 32, warp = thread() / 32;
  from.seen = seen_by_any(packed, first, first + ROWS);
  Range here = from.seen;
  u32 segment = here.first / SEGMENT;
  if (places) {
    segment = segment_at(slot, here.first, segments);
    Range in = segment_of(segment);
    if (!overlap(in, here)) return;
    here = {here.first > in.first ? here.first : in.first, here.end < in.end ? here.end : in.end};
    if (local_block(from.table[here.first / KV_BLOCK], from.share) == NONE) return;
  }
  u32 own = first + warp * SIXTEENS * 16;
  Range any = seen_by_any(packed, own, own + SIXTEENS * 16), all = seen_by_all(packed, own, own + SIXTEENS * 16);
  auto row_of = [&](u32 r, u32 half) { return row_at(packed, own + r * 16 + half * 8 + lane / 4); };
  Range seen[SIXTEENS][2];
  UNROLL for (u32 r = 0; r < SIXTEENS; r++) UNROLL for (u32 half = 0; half < 2; half++) seen[r][half] = row_of(r, half).seen;

  DYNAMIC_SHARED(u8, memory);
  u32 part_bytes = count * tile_bytes<KIND>(), tile_part = TILE_BLOCKS * part_bytes;
  u32 buffer = 2 * tile_part + (KIND == FP8 ? 256 : 0);
  u8 *keys = memory, *values = keys + tile_part, *key_scales = values + tile_part, *value_scales = key_scales + 128;
  Vec4 *query = reinterpret_cast<Vec4 *>(memory + BUFFERS * buffer) + warp * SIXTEENS * count * 32 + lane;
  // To the buffer that is `ahead` bytes behind the one that is read.
  auto copy_keys = [&](Blocks blocks, int ahead) {
    copy_part(keys + ahead, from, blocks, 0, part_bytes);
    if (KIND == FP8) copy_part(key_scales + ahead, from, blocks, 2 * part_bytes, 32);
    copies_end();
  };
  auto copy_values = [&](Blocks blocks, int ahead) {
    copy_part(values + ahead, from, blocks, part_bytes, part_bytes);
    if (KIND == FP8) copy_part(value_scales + ahead, from, blocks, 2 * part_bytes + 32, 32);
    copies_end();
  };
  u32 tile = here.first / TILE, end = (here.end + TILE - 1) / TILE;
  int ahead = int(buffer);
  Blocks blocks = blocks_of(from, tile);
  copy_keys(blocks, 0);
  if (BUFFERS == 2) copy_values(blocks, 0);

  auto query_of = [&](PackedRow of) {
    return of.row == NONE ? nullptr : queries + u64(of.row) * cols + of.head * head_dim;
  };
  UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
    const float *low = query_of(row_of(r, 0)), *high = query_of(row_of(r, 1));
    // Read by the lane that writes it.
    for (u32 i = 0; i < count; i++) query[(r * count + i) * 32] = query_operand<KIND>(low, high, i * 16, head_dim);
  }

  Running<TILES, SIXTEENS> sums;
  Before before[SIXTEENS][2] = {};
  auto clear = [&] {
    UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
      UNROLL for (u32 half = 0; half < 2; half++) {
        sums.m[r][half] = lowest();
        sums.l[r][half] = 0.0f;
      }
      UNROLL for (u32 c = 0; c < 2 * TILES; c++) UNROLL for (u32 i = 0; i < 4; i++) sums.o[r][c][i] = 0.0f;
    }
  };
  clear();

  for (; tile < end; tile++) {
    if (BUFFERS == 1) copy_values(blocks, 0);
    Blocks next = blocks_of(from, tile + 1);
    copies_wait<BUFFERS == 1 ? 1 : 0>();
    // All have what they copied, and nobody reads the other buffer.
    sync_block();
    if (BUFFERS == 2 && tile + 1 < end) {
      copy_keys(next, ahead);
      copy_values(next, ahead);
    }
    Range in = tile_of(tile);
    bool is_active = overlap(in, any), whole = holds(all, in);
    float s[SIXTEENS][8][4] = {};
    if (is_active)
      UNROLL for (u32 i = 0; i < TILES; i++) {
        if (!EXACT && i >= count) break;
        u32 of_rows[SIXTEENS][4];
        UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
          Vec4 q = query[(r * count + i) * 32];
          of_rows[r][0] = q.x, of_rows[r][1] = q.y, of_rows[r][2] = q.z, of_rows[r][3] = q.w;
        }
        UNROLL for (u32 b = 0; b < TILE_BLOCKS; b++) {
          const u8 *at = keys + b * part_bytes + i * tile_bytes<KIND>();
          Operands of = operands_of(reinterpret_cast<const Numbers *>(at)[lane]);
          UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
            multiply<KIND>(s[r][2 * b], of_rows[r], of.columns[0]);
            multiply<KIND>(s[r][2 * b + 1], of_rows[r], of.columns[1]);
          }
        }
      }
    u32 p[SIXTEENS][TILE_BLOCKS][4];
    float keep[SIXTEENS][2], unit[SIXTEENS][2];
    // Whether a row sees something of the tile.
    bool takes[SIXTEENS][2];
    UNROLL for (u32 r = 0; r < SIXTEENS; r++) UNROLL for (u32 half = 0; half < 2; half++)
      takes[r][half] = overlap(in, seen[r][half]);
    // With one buffer the next copy writes where scales of keys are.
    if (is_active)
      UNROLL for (u32 r = 0; r < SIXTEENS; r++)
        finish_scores<KIND>(s[r], scales_in(key_scales), seen[r][0], seen[r][1], tile * TILE, whole, scoring);
    if (BUFFERS == 1) {
      sync_block();
      if (tile + 1 < end) copy_keys(next, 0);
      else copies_end();
    }
    if (is_active)
      UNROLL for (u32 r = 0; r < SIXTEENS; r++) UNROLL for (u32 half = 0; half < 2; half++) {
        float m = sums.m[r][half], to = larger(largest_score(s[r], half), m);
        keep[r][half] = kept(m, to);
        float sum = weights(s[r], half, to);
        if (takes[r][half]) {
          sums.m[r][half] = to;
          sums.l[r][half] = fused(sums.l[r][half], keep[r][half], sum);
        }
      }
    if (BUFFERS == 1) {
      copies_wait<1>();
      sync_block();
    }
    if (is_active) {
      UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
        UNROLL for (u32 half = 0; half < 2; half++)
          unit[r][half] =
              KIND == FP8 ? scaled_weights(s[r], half, scales_in(value_scales), seen[r][half], tile * TILE) : 1.0f;
        weight_operands<KIND>(p[r], s[r]);
      }
      UNROLL for (u32 i = 0; i < TILES; i++) {
        if (!EXACT && i >= count) break;
        Numbers v[TILE_BLOCKS];
        UNROLL for (u32 b = 0; b < TILE_BLOCKS; b++)
          v[b] = reinterpret_cast<const Numbers *>(values + b * part_bytes + i * tile_bytes<KIND>())[lane];
        UNROLL for (u32 r = 0; r < SIXTEENS; r++) {
          float d[2][4];
          weigh<KIND>(d, p[r], v, tile * TILE, whole, any, seen[r][0], seen[r][1]);
          UNROLL for (u32 c = 0; c < 2; c++) UNROLL for (u32 half = 0; half < 2; half++) UNROLL for (u32 e = 0; e < 2; e++) {
            float &o = sums.o[r][2 * i + c][2 * half + e], d_o = d[c][2 * half + e];
            float next = fused(o, keep[r][half], KIND == FP8 ? d_o * unit[r][half] : d_o);
            o = takes[r][half] ? next : o;
          }
        }
      }
    }
    if (BUFFERS == 1) {
      sync_block();
      blocks = next;
    } else {
      keys += ahead, values += ahead, key_scales += ahead, value_scales += ahead;
      ahead = -ahead;
    }
    if (tile % (SEGMENT / TILE) != SEGMENT / TILE - 1 && tile + 1 < end) continue;

    // The end of a segment.
    Range in_segment = segment_of(tile * TILE / SEGMENT);
    UNROLL for (u32 r = 0; r < SIXTEENS; r++) UNROLL for (u32 half = 0; half < 2; half++) {
      PackedRow row = row_of(r, half);
      if (row.row == NONE || !overlap(in_segment, row.seen)) continue;
      float m = sums.m[r][half], l = sums.l[r][half];
      bool is_first = places || row.seen.first >= in_segment.first, is_last = !places && row.seen.end <= in_segment.end;
      float *to = out + (u64(row.row) * num_heads + row.head) * head_dim;
      if (places) {
        u32 index = (row.row - first_row) * segments + in_segment.first / SEGMENT % segments;
        to = out + (places[index] + u64(row.head) * per_head) * (2 + head_dim) + 2;
        if (lane % 4 == 0) {
          to[-2] = m;
          to[-1] = l;
        }
      }
      Join by = join(before[r][half].m, m);
      before[r][half] = is_first ? Before{m, l} : Before{by.m, joined(by, before[r][half].l, l)};
      UNROLL for (u32 c = 0; c < 2 * TILES; c++) UNROLL for (u32 e = 0; e < 2; e++) {
        u32 col = c * 8 + lane % 4 * 2 + e;
        if (col >= head_dim) continue;
        float o = sums.o[r][c][2 * half + e];
        if (!is_first) o = joined(by, to[col], o);
        to[col] = is_last ? o / before[r][half].l : o;
      }
    }
    clear();
  }
}

} // namespace attention

// Sequences are those of `list`; of their rows, the ones from `first_row` to before `end_row`. Grid x: rows, the last first,
// which see most; y: a KV head; z: a sequence, and with `places` which segment, modulo `segments`. What is written is the
// result, or at `places`, of which each head has `per_head`, parts.
#define TILES(name, kind, most, warps, sixteens, exact)                                                                \
  KERNEL_OF(32 * warps, name)                                                                                          \
  (float *out, const float *queries, u32 cols, const u8 *kv, const attention::Sequence *sequences, const u32 *tables,  \
   const u32 *list, u32 num_heads, u32 num_kv_heads, u32 group, u32 first_in_group, u32 head_dim, float scale,         \
   float softcap, u32 window, u32 segments, const u32 *places, u32 first_row, u32 end_row, u32 per_head, u32 owners,   \
   u32 owner) {                                                                                                        \
    using namespace attention;                                                                                         \
    u32 item = places ? block_z() / segments : block_z(), slot = places ? block_z() % segments : 0;                    \
    Sequence sequence = sequences[list[item]];                                                                         \
    Heads heads = heads_of(block_y(), num_heads, group, first_in_group);                                               \
    Packed packed = packed_rows(sequence, {first_row, end_row}, heads, window);                                        \
    u32 first = (blocks_x() - 1 - block_x()) * warps * sixteens * 16;                                                  \
    if (first >= packed.count) return;                                                                                 \
    u64 bytes = record_bytes<kind>((head_dim + 15) / 16);                                                              \
    Copies from = {kv, tables + sequence.table, bytes, num_kv_heads, block_y(), {owners, owner}, {0, 0}};              \
    attention::tiles<kind, most, warps, sixteens, exact>(out, queries, cols, from, packed, first, num_heads, head_dim, \
                                                  {scale, softcap}, slot, segments, places, first_row, per_head);      \
  }                                                                                                                    \
  EXPORT(name)

#endif
