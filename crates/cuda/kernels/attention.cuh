// What kernels of attention share: where keys and values lie, what a row sees, and a tile's operations on tensor cores
// (NUMERICS.md, rule 4).
//
// A KV block of a head is a record: its 16 positions' keys, their values, and in fp8 their scales. In caches of 8 and 16 bits,
// keys and values lie in tiles of 16 positions by 16 elements, as the right operand of mma_half and mma_bfloat wants them, each
// lane's numbers together; head_dim is filled up with zeros to whole tiles. So what a warp loads is one piece of memory, and
// goes to tensor cores as it comes.
#ifndef ATTENTION_CUH
#define ATTENTION_CUH

namespace attention {

constexpr u32 TILE = 64, SEGMENT = 1024, KV_BLOCK = 16, TILE_BLOCKS = TILE / KV_BLOCK, NONE = 0xffffffffu;
constexpr float LOG2_E = 1.44269504088896340736f;
DEVICE float lowest() { return float_of(0xff800000u); }

enum Kind { BFLOAT, HALF, FP8 };

// Which block of the cache a number of a block table is, if it is here.
struct Share {
  u32 owners, owner;
};
DEVICE u32 local_block(u32 block, Share share) {
  if (share.owners == 1) return block;
  return block % share.owners == share.owner ? block / share.owners : NONE;
}

// A sequence's rows of the step, the position of the first, and where its block table begins.
struct Sequence {
  u32 first_row, rows, start, table;
};

// Positions.
struct Range {
  u32 first, end;
};
DEVICE Range seen_from(u32 position, u32 window) {
  u32 end = position + 1;
  return {end > window ? end - window : 0, end};
}
DEVICE bool overlap(Range a, Range b) { return a.first < b.end && b.first < a.end; }
DEVICE bool holds(Range outer, Range inner) { return outer.first <= inner.first && inner.end <= outer.end; }
DEVICE Range tile_of(u32 tile) { return {tile * TILE, tile * TILE + TILE}; }
DEVICE Range segment_of(u32 segment) { return {segment * SEGMENT, segment * SEGMENT + SEGMENT}; }

// Of the segments from that of `first` on, the one whose number, modulo their count, is `slot`.
DEVICE u32 segment_at(u32 slot, u32 first, u32 segments) {
  u32 base = first / SEGMENT;
  return base + (slot + segments - base % segments) % segments;
}

// The query heads on this rank that read a KV head.
struct Heads {
  u32 first, count;
};
DEVICE Heads heads_of(u32 kv_head, u32 num_heads, u32 group, u32 first_in_group) {
  u32 begin = kv_head * group, end = begin + group - first_in_group;
  begin = begin > first_in_group ? begin - first_in_group : 0;
  end = end < num_heads ? end : num_heads;
  return {begin, begin < end ? end - begin : 0};
}

// Rows of a product: each of some tokens of a sequence with each of the heads that read a KV head, token after token.
struct Packed {
  Sequence sequence;
  Heads heads;
  // The first token's row of the step.
  u32 first_row, count, window;
};
// Those of a sequence's rows that are among `rows` of the step.
DEVICE Packed packed_rows(Sequence sequence, Range rows, Heads heads, u32 window) {
  u32 first = sequence.first_row, end = first + sequence.rows;
  first = first > rows.first ? first : rows.first;
  end = end < rows.end ? end : rows.end;
  return {sequence, heads, first, first < end ? (end - first) * heads.count : 0, window};
}
struct PackedRow {
  u32 row, head;
  Range seen;
};
// One of them. What is not there sees nothing.
DEVICE PackedRow row_at(const Packed &of, u32 index) {
  if (index >= of.count) return {NONE, 0, {0, 0}};
  u32 row = of.first_row + index / of.heads.count;
  u32 position = of.sequence.start + row - of.sequence.first_row;
  return {row, of.heads.first + index % of.heads.count, seen_from(position, of.window)};
}
// What any of the rows from `first` to before `end` sees; what all that are there see.
DEVICE Range seen_by_any(const Packed &of, u32 first, u32 end) {
  end = end < of.count ? end : of.count;
  return first < end ? Range{row_at(of, first).seen.first, row_at(of, end - 1).seen.end} : Range{0, 0};
}
DEVICE Range seen_by_all(const Packed &of, u32 first, u32 end) {
  end = end < of.count ? end : of.count;
  return first < end ? Range{row_at(of, end - 1).seen.first, row_at(of, first).seen.end} : Range{0, 0};
}

// Which segment lies where among the parts that are to be merged: `index + head · per_head`.
struct Place {
  u32 index, per_head;
};

// Bytes of a tile of 16 by 16, of a lane's numbers of it, of a record.
template <Kind KIND> DEVICE constexpr u32 tile_bytes() { return KIND == FP8 ? 256 : 512; }
template <Kind KIND> DEVICE u32 record_bytes(u32 tiles) { return 2 * tiles * tile_bytes<KIND>() + (KIND == FP8 ? 64 : 0); }

template <Kind KIND> struct Lane { typedef Vec4 Numbers; };
template <> struct Lane<FP8> { typedef Vec2 Numbers; };

DEVICE Vec4 nothing_of(const Vec4 *) { return {0, 0, 0, 0}; }
DEVICE Vec2 nothing_of(const Vec2 *) { return {0, 0}; }

// Right operands of the tile's first eight columns and of its others.
struct Operands {
  u32 columns[2][2];
};
DEVICE Operands operands_of(Vec4 v) { return {{{v.x, v.y}, {v.z, v.w}}}; }
// e4m3 as halfs of 1/256 of its value, exactly: exponent and mantissa are moved to where a half has them.
DEVICE u32 odd_bytes(u32 x) { return ((x & 0x7f007f00u) >> 1) | (x & 0x80008000u); }
DEVICE Operands operands_of(Vec2 v) {
  return {{{odd_bytes(v.x), odd_bytes(v.x << 8)}, {odd_bytes(v.y), odd_bytes(v.y << 8)}}};
}
constexpr float FP8_UNIT = 256.0f;

template <Kind KIND> DEVICE void multiply(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
  if (KIND == BFLOAT) mma_bfloat(d, a, b);
  else mma_half(d, a, b);
}
template <Kind KIND> DEVICE u32 two(float low, float high) {
  return KIND == BFLOAT ? two_bfloats(low, high) : two_halfs(low, high);
}

// Queries as the left operand: 16 elements from `first` on of the rows that this lane has, +0 where there is none.
template <Kind KIND>
DEVICE Vec4 query_operand(const float *low, const float *high, u32 first, u32 head_dim) {
  u32 at = first + thread() % 4 * 2;
  auto number = [&](const float *row, u32 i) { return row && i < head_dim ? row[i] : 0.0f; };
  return {two<KIND>(number(low, at), number(low, at + 1)), two<KIND>(number(high, at), number(high, at + 1)),
          two<KIND>(number(low, at + 8), number(low, at + 9)), two<KIND>(number(high, at + 8), number(high, at + 9))};
}

struct Scoring {
  float scale, softcap;
};

// Of fp8 alone: where the scales of each of the tile's blocks lie.
struct Scales {
  const u16 *of[TILE_BLOCKS];
};
DEVICE float scale_at(const Scales &scales, u32 in_tile) {
  return float_of(u32(scales.of[in_tile / KV_BLOCK][in_tile % KV_BLOCK]) << 16);
}

// The lane's two rows of a tile's scores: column 8 j + 2 (lane % 4) + e of row lane / 4 is s[j][e], of eight rows later
// s[j][2 + e]. What a row does not see, or whose block is not read, is −∞.
// `scales` are the keys'; there is none of a block that nobody sees.
template <Kind KIND>
DEVICE void finish_scores(float (&s)[8][4], const Scales &scales, Range low, Range high, u32 start,
                          bool whole, Scoring how) {
  // One thing after the other for all scores, so that a tile has two branches and not two for each of them.
  UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 e = 0; e < 2; e++) {
    u32 in_tile = 8 * j + thread() % 4 * 2 + e;
    float unit = KIND == FP8 && scales.of[in_tile / KV_BLOCK] ? scale_at(scales, in_tile) : 0.0f;
    UNROLL for (u32 r = 0; r < 2; r++) {
      float &x = s[j][2 * r + e];
      if (KIND == FP8) x = x * FP8_UNIT * unit;
      x = x * how.scale;
    }
  }
  if (how.softcap > 0.0f)
    UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 i = 0; i < 4; i++)
      s[j][i] = how.softcap * hyperbolic_tangent(s[j][i] / how.softcap);
  if (!whole)
    UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 i = 0; i < 4; i++) {
      u32 position = start + 8 * j + thread() % 4 * 2 + i % 2;
      Range seen = i / 2 ? high : low;
      bool is_seen = seen.first <= position && position < seen.end;
      s[j][i] = is_seen ? s[j][i] : lowest();
    }
}

// The largest, or the sum, over the four lanes that share a row: the same in all of them.
DEVICE float largest_of_quad(float x) {
  x = larger(shuffle_xor(x, 1), x);
  return larger(shuffle_xor(x, 2), x);
}
DEVICE float sum_of_quad(float x) {
  x = x + shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// The largest score of the lane's row `r` (0 or 1). What is not a number is passed over.
DEVICE float largest_score(const float (&s)[8][4], u32 r) {
  float most = lowest();
  UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 e = 0; e < 2; e++) most = larger(s[j][2 * r + e], most);
  return largest_of_quad(most);
}

// What a running sum is multiplied with when the maximum becomes `to`.
DEVICE float kept(float from, float to) { return from == lowest() ? 0.0f : exp2_fast((from - to) * LOG2_E); }

// Weights of a row: `s` becomes exp(s − m). The sum of them.
DEVICE float weights(float (&s)[8][4], u32 r, float m) {
  float sum = 0.0f;
  UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 e = 0; e < 2; e++) {
    float w = exp2_fast((s[j][2 * r + e] - m) * LOG2_E);
    s[j][2 * r + e] = w;
    sum += w;
  }
  return sum_of_quad(sum);
}

// Weights of a row meet the values' scales: those are brought to 1 at most, by what is returned, which the sum of weighted
// values is to be multiplied with.
DEVICE float scaled_weights(float (&s)[8][4], u32 r, const Scales &scales, Range seen, u32 start) {
  float most = 0.0f;
  auto scale_of = [&](u32 j, u32 e) {
    u32 in_tile = 8 * j + thread() % 4 * 2 + e, position = start + in_tile;
    bool is_seen = seen.first <= position && position < seen.end;
    return is_seen ? scale_at(scales, in_tile) : 0.0f;
  };
  UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 e = 0; e < 2; e++) most = larger(scale_of(j, e), most);
  most = largest_of_quad(most);
  // A power of two, or 0 where there is nothing to scale or all is NaN.
  float inverse = most > 0.0f ? float_of(0x7f000000u - bits_of(most)) : 1.0f;
  UNROLL for (u32 j = 0; j < 8; j++) UNROLL for (u32 e = 0; e < 2; e++)
    s[j][2 * r + e] = s[j][2 * r + e] * (scale_of(j, e) * inverse);
  return most * FP8_UNIT;
}

// Weights as the left operand, of each of the tile's blocks.
template <Kind KIND> DEVICE void weight_operands(u32 (&p)[TILE_BLOCKS][4], const float (&s)[8][4]) {
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) UNROLL for (u32 half = 0; half < 2; half++) {
    const float(&of)[4] = s[2 * i + half];
    p[i][2 * half] = two<KIND>(of[0], of[1]);
    p[i][2 * half + 1] = two<KIND>(of[2], of[3]);
  }
}

// Which halves of a value's operand belong to positions of a range: two positions from `first` on.
DEVICE u32 mask_of(u32 first, Range range) {
  bool low = range.first <= first && first < range.end, high = range.first <= first + 1 && first + 1 < range.end;
  return (low ? 0xffffu : 0) | (high ? 0xffff0000u : 0);
}
DEVICE Operands within(Operands v, u32 block, u32 start, Range range) {
  UNROLL for (u32 half = 0; half < 2; half++) {
    u32 mask = mask_of(start + block * KV_BLOCK + half * 8 + thread() % 4 * 2, range);
    v.columns[0][half] &= mask;
    v.columns[1][half] &= mask;
  }
  return v;
}
// Whether one of two numbers is infinite or NaN.
template <Kind KIND> DEVICE bool is_endless(u32 x) {
  constexpr u32 exponent = KIND == BFLOAT ? 0x7f80u : 0x7c00u;
  return (x & exponent) == exponent || (x >> 16 & exponent) == exponent;
}

// Weighted values of a tile, 16 elements of each: d = p · v, from +0. Positions that a row does not see have a weight of 0,
// which only hides numbers. So what no row of the warp sees, where anything may lie, is taken out of the values; and where
// what is left is infinite or NaN, each row meets what it sees alone.
template <Kind KIND>
DEVICE void weigh(float (&d)[2][4], const u32 (&p)[TILE_BLOCKS][4], const typename Lane<KIND>::Numbers (&v)[TILE_BLOCKS],
                  u32 start, bool whole, Range any, Range low, Range high) {
  UNROLL for (u32 c = 0; c < 2; c++) UNROLL for (u32 i = 0; i < 4; i++) d[c][i] = 0.0f;
  if (whole) {
    UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
      Operands of = operands_of(v[i]);
      UNROLL for (u32 c = 0; c < 2; c++) multiply<KIND>(d[c], p[i], of.columns[c]);
    }
    return;
  }
  bool endless = false;
  UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
    Operands of = within(operands_of(v[i]), i, start, any);
    if (KIND != FP8)
      UNROLL for (u32 c = 0; c < 2; c++) UNROLL for (u32 h = 0; h < 2; h++) endless |= is_endless<KIND>(of.columns[c][h]);
    UNROLL for (u32 c = 0; c < 2; c++) multiply<KIND>(d[c], p[i], of.columns[c]);
  }
  bool apart = KIND != FP8 && ballot(endless);
  for (u32 row = 0; apart && row < 16; row++) {
    Range own = row < 8 ? low : high;
    Range seen = {shuffle(own.first, row % 8 * 4), shuffle(own.end, row % 8 * 4)};
    float alone[2][4] = {};
    UNROLL for (u32 i = 0; i < TILE_BLOCKS; i++) {
      Operands of = within(operands_of(v[i]), i, start, seen);
      UNROLL for (u32 c = 0; c < 2; c++) multiply<KIND>(alone[c], p[i], of.columns[c]);
    }
    if (thread() % 32 / 4 == row % 8)
      UNROLL for (u32 c = 0; c < 2; c++) UNROLL for (u32 e = 0; e < 2; e++) {
        if (row < 8) d[c][e] = alone[c][e];
        else d[c][2 + e] = alone[c][2 + e];
      }
  }
}

// Of two segments the earlier one is [m1, l1, o1]: what both are multiplied with.
struct Join {
  float m, first, second;
};
DEVICE Join join(float m1, float m2) {
  float m = larger(m1, m2);
  return {m, exponential(m1 - m), exponential(m2 - m)};
}
DEVICE float joined(Join by, float first, float second) { return fused(first, by.first, second * by.second); }

// A row's segments of a head, in ascending order: `part_of` says where [m, l, o of head_dim] of a segment lies. The result goes
// to `to`. A warp's work, of which each lane has every 32nd element.
template <class PartOf> DEVICE void merge_segments(float *to, Range seen, u32 head_dim, PartOf part_of) {
  constexpr u32 MOST = 8;
  u32 lane = thread() % 32, first = seen.first / SEGMENT, end = (seen.end + SEGMENT - 1) / SEGMENT;
  float m = lowest(), l = 0.0f, o[MOST] = {};
  for (u32 segment = first; segment < end; segment++) {
    const float *part = part_of(segment);
    Join by = join(m, part[0]);
    bool is_first = segment == first;
    m = is_first ? part[0] : by.m;
    l = is_first ? part[1] : joined(by, l, part[1]);
    UNROLL for (u32 i = 0; i < MOST; i++)
      if (i * 32 + lane < head_dim) {
        float x = part[2 + i * 32 + lane];
        o[i] = is_first ? x : joined(by, o[i], x);
      }
  }
  UNROLL for (u32 i = 0; i < MOST; i++)
    if (i * 32 + lane < head_dim) to[i * 32 + lane] = o[i] / l;
}

} // namespace attention
#endif
