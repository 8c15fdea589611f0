// All-reduces whose values travel as bfloat16, e4m3 or whole numbers (NUMERICS.md, rule 9): what crates/collective/src/compressed
// computes, with the same bits.
//
// Limited by the bytes that come over the link, a half of those of f32 or a bit more than a quarter; for that they are cut into two
// shots whatever their size. Each warp has a group of 64 values, a lane two neighbours of it; 32 values share a scale.

namespace compressed {
using namespace ranks;

constexpr u32 GROUP = 64;
enum Type { BFLOAT, FP8, INT8 };
template <Type TYPE> constexpr u32 group_words() { return TYPE == BFLOAT ? GROUP / 2 : GROUP / 4 + 1; }

struct Two { float v[2]; };
DEVICE Two sum(const Two &a, const Two &b) { return Two{{a.v[0] + b.v[0], a.v[1] + b.v[1]}}; }

// To bfloat16, ties to even, NaN to NaN.
DEVICE u32 bfloat_of(float x) {
  u32 bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16 | 0x40) & 0xffff;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}

// To e4m3 and back, as crates/tensor/src/fp8.rs.
DEVICE u32 fp8_of(float x) {
  float size = magnitude(x);
  u32 bits = bits_of(size), rounded = (bits + 0x7ffffu + (bits >> 20 & 1)) >> 20, code;
  if (bits > 0x7f800000u) code = 0x7f;
  else if (size < 1.0f / 64.0f) code = bits_of(size + 16384.0f) - bits_of(16384.0f);
  else code = rounded - 120 * 8 < 0x7e ? rounded - 120 * 8 : 0x7e;
  return code | (bits_of(x) >> 24 & 0x80);
}
DEVICE float of_fp8(u32 code) {
  float size = (code & 0x7f) == 0x7f ? float_of(0x7fc00000u) : float_of((code & 0x7f) << 20) * 0x1p120f;
  return float_of(bits_of(size) | (code & 0x80) << 24);
}

// The bfloat16 by which values are divided whose largest has these bits.
DEVICE u32 scale_of(u32 most, float largest) {
  if (most == 0) return 0x3f80;
  if (most >= 0x7f800000u) return 0x7fc0;
  u32 bits = bits_of(float_of(most) / largest);
  return ((bits > 1 ? bits : 1) + 0xffffu) >> 16;
}

// A warp writes a group; what is beyond the last value is 0.
template <Type TYPE> DEVICE void encode(const Two &values, u32 *words) {
  u32 lane = thread() % 32;
  if (TYPE == BFLOAT) {
    words[lane] = bfloat_of(values.v[0]) | bfloat_of(values.v[1]) << 16;
    return;
  }
  u32 first = bits_of(values.v[0]) & 0x7fffffffu, second = bits_of(values.v[1]) & 0x7fffffffu;
  u32 most = first > second ? first : second;
  for (u32 step = 8; step > 0; step /= 2) {
    u32 other = shuffle_xor(most, step);
    most = other > most ? other : most;
  }
  u32 scale_bits = scale_of(most, TYPE == FP8 ? 448.0f : 127.0f);
  float scale = float_of(scale_bits << 16);
  u32 codes = 0;
  for (u32 i = 0; i < 2; i++) {
    float x = values.v[i] / scale;
    // Steps of numbers around the one that is added are 1.
    codes |= (TYPE == FP8 ? fp8_of(x) : bits_of(x + 12582912.0f) & 0xff) << 8 * i;
  }
  u32 beside = shuffle_xor(codes, 1), upper_scale = shuffle(scale_bits, 16);
  if (lane % 2 == 0) words[1 + lane / 2] = codes | beside << 16;
  if (lane == 0) words[0] = scale_bits | upper_scale << 16;
}

template <Type TYPE> DEVICE Two decode(const u32 *words) {
  u32 lane = thread() % 32;
  if (TYPE == BFLOAT) return Two{{float_of(words[lane] << 16), float_of(words[lane] & 0xffff0000u)}};
  float scale = float_of(words[0] >> lane / 16 * 16 << 16);
  u32 codes = words[1 + lane / 2] >> lane % 2 * 16;
  Two values;
  for (u32 i = 0; i < 2; i++) {
    u32 code = codes >> 8 * i & 0xff;
    values.v[i] = (TYPE == FP8 ? of_fp8(code) : float(i8(code))) * scale;
  }
  return values;
}

// A lane's two values of a group of which `left` values are left.
DEVICE Two load(const float *from, u64 left) {
  u32 i = thread() % 32 * 2;
  return Two{{i < left ? from[i] : 0.0f, i + 1 < left ? from[i + 1] : 0.0f}};
}
DEVICE void store(float *to, u64 left, const Two &values) {
  u32 i = thread() % 32 * 2;
  if (i < left) to[i] = values.v[0];
  if (i + 1 < left) to[i + 1] = values.v[1];
}

// The elements that a rank sums.
struct Slice { u64 start, end; };

// Groups of each slice from `first` on, at most `most` of them. out[i − from] = the sum of element i: of this rank's slice, and with
// `shares` of all. A slot has the groups of a slice's sums, then those of its rank's nodes, by slice and node.
template <Type TYPE>
DEVICE void reduce(float *out, Call call, const float *nodes, u32 num_nodes, u32 most_nodes, u64 stride, const Slice *slices,
                   u64 first, u64 most, u64 from, u32 shares, const tree::Item *items, u32 num_items) {
  constexpr u32 WORDS = group_words<TYPE>();
  if (!begin(call)) return;
  const Peers *peers = call.peers;
  u32 rank = peers->rank, ranks = peers->ranks, warps = threads() / 32;
  u64 own_first = u64(block_x()) * warps + thread() / 32, step = u64(blocks_x()) * warps;
  auto words_of = [&](u32 of) { return reinterpret_cast<u32 *>(slot(peers, of, call.epoch)); };
  auto node_at = [&](u32 slice, u32 node, u64 g) { return (most + (u64(slice) * most_nodes + node) * most + g) * WORDS; };
  // Where a group of a slice begins; whether there is such a group.
  auto begins = [&](u32 of, u64 g) { return slices[of].start + (first + g) * GROUP; };

  for (u64 g = own_first; g < most; g += step)
    for (u32 of = 0; of < ranks; of++) {
      u64 at = begins(of, g);
      if (of == rank || at >= slices[of].end) continue;
      for (u32 node = 0; node < num_nodes; node++)
        encode<TYPE>(load(nodes + node * stride + at, slices[of].end - at), words_of(rank) + node_at(of, node, g));
    }
  if (!meet(call, 0)) return;
  for (u64 g = own_first; g < most && begins(rank, g) < slices[rank].end; g += step) {
    u64 at = begins(rank, g), left = slices[rank].end - at;
    // This rank's own nodes did not travel.
    auto take = [&](tree::Item item, Two &to) {
      if (item.rank == rank) to = load(nodes + item.node * stride + at, left);
      else to = decode<TYPE>(words_of(item.rank) + node_at(rank, item.node, g));
    };
    Two value = tree::finish<Two>(items, num_items, take);
    if (shares) encode<TYPE>(value, words_of(rank) + g * WORDS);
    else store(out + (at - from), left, value);
  }
  if (shares) {
    if (!meet(call, 1)) return;
    for (u64 g = own_first; g < most; g += step)
      for (u32 i = 0; i < ranks; i++) {
        u32 of = (rank + i) % ranks;
        u64 at = begins(of, g);
        // Of this rank's slice too, so that all ranks go on with the same bits.
        if (at < slices[of].end) store(out + (at - from), slices[of].end - at, decode<TYPE>(words_of(of) + g * WORDS));
      }
  }
  end(call);
}

} // namespace compressed

#define COMPRESSED(name, type)                                                                                         \
  KERNEL_OF(512, name)                                                                                                 \
  (float *out, const ranks::Peers *peers, u32 op, const float *nodes, u32 num_nodes, u32 most_nodes, u64 stride,       \
   const compressed::Slice *slices, u64 first, u64 most, u64 from, u32 shares, const tree::Item *items,                \
   u32 num_items) {                                                                                                    \
    compressed::reduce<compressed::type>(out, ranks::Call{peers, op, 0}, nodes, num_nodes, most_nodes, stride, slices, \
                                         first, most, from, shares, items, num_items);                                 \
  }                                                                                                                    \
  EXPORT(name)

COMPRESSED(compressed_bfloat, BFLOAT)
COMPRESSED(compressed_fp8, FP8)
COMPRESSED(compressed_int8, INT8)
