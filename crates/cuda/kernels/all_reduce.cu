// Reductions and gathers over memory that all ranks of a group see.
//
// Small ones are limited by latency: a write to the other GPUs and a read from them, 2.5 to 5 microseconds where NVLink is between
// them, and the more blocks the more flags; large ones by the bytes that come over the link. One shot brings all nodes to every
// rank; two shots bring each rank its slice of them, and the sums of the other slices: for p ranks with a node each p − 1 against
// 2 (p − 1) / p times the bytes.

namespace all_reduce {
using namespace ranks;

// A piece of a matrix of `stride` elements of which this rank has `nodes`: `count` elements from `first` on.
struct Piece {
  const float *nodes;
  u32 num_nodes;
  u64 stride, first, count;
};

// One block's share of so many elements: it begins there, and goes on in steps.
template <class Number> DEVICE u64 own_first() { return (u64(block_x()) * threads() + thread()) * Number::COUNT; }
template <class Number> DEVICE u64 own_step() { return u64(blocks_x()) * threads() * Number::COUNT; }

// This rank's nodes, to where others read them: node by node from `to` on.
template <class Number> DEVICE void leave_nodes(const Piece &piece, float *to, u64 at) {
  for (u32 node = 0; node < piece.num_nodes; node++) {
    Number number;
    tree::load(piece.nodes + node * piece.stride + piece.first + at, number);
    tree::store(to + node * piece.count + at, number);
  }
}

// The tree's sum of an element, out of all ranks' slots; nodes begin there at `behind`.
template <class Number>
DEVICE Number sum_of(const Call &call, const Piece &piece, const tree::Item *items, u32 num_items, u64 behind, u64 at) {
  auto take = [&](tree::Item item, Number &to) {
    tree::load(slot(call.peers, item.rank, call.epoch) + behind + item.node * piece.count + at, to);
  };
  return tree::finish<Number>(items, num_items, take);
}

// out[i − wanted[0]] = the sum of element i of the matrix, for those of the piece that are from wanted[0] to wanted[1]; without
// `wanted` for all.
template <class Number>
DEVICE void one_shot(float *out, Call call, Piece piece, const u64 *wanted, const tree::Item *items, u32 num_items) {
  u64 from = wanted ? wanted[0] : 0, end = wanted ? wanted[1] : piece.stride;
  if (!begin(call)) return;
  float *own = slot(call.peers, call.peers->rank, call.epoch);
  for (u64 at = own_first<Number>(); at < piece.count; at += own_step<Number>()) leave_nodes<Number>(piece, own, at);
  if (!meet(call, 0)) return;
  for (u64 at = own_first<Number>(); at < piece.count; at += own_step<Number>()) {
    u64 i = piece.first + at;
    if (i >= from && i < end) tree::store(out + (i - from), sum_of<Number>(call, piece, items, num_items, 0, at));
  }
  ranks::end(call);
}

// out[i] = the sum of element i, of the piece's. Each rank sums `slice` elements, the last may have fewer.
template <class Number>
DEVICE void two_shot(float *out, Call call, Piece piece, u64 slice, const tree::Item *items, u32 num_items) {
  if (!begin(call)) return;
  u32 rank = call.peers->rank, ranks = call.peers->ranks;
  // Sums, then nodes. A block has the same share of every slice, so that it waits for the same blocks in both phases.
  float *own = slot(call.peers, rank, call.epoch);
  for (u64 j = own_first<Number>(); j < slice; j += own_step<Number>())
    for (u32 of = 0; of < ranks; of++)
      if (of * slice + j < piece.count) leave_nodes<Number>(piece, own + slice, of * slice + j);
  if (!meet(call, 0)) return;
  for (u64 j = own_first<Number>(); j < slice && rank * slice + j < piece.count; j += own_step<Number>()) {
    Number sum = sum_of<Number>(call, piece, items, num_items, slice, rank * slice + j);
    tree::store(own + j, sum);
    tree::store(out + piece.first + rank * slice + j, sum);
  }
  if (!meet(call, 1)) return;
  for (u64 j = own_first<Number>(); j < slice; j += own_step<Number>())
    for (u32 i = 1; i < ranks; i++) {
      u32 of = (rank + i) % ranks;
      if (of * slice + j >= piece.count) continue;
      Number sum;
      tree::load(slot(call.peers, of, call.epoch) + j, sum);
      tree::store(out + piece.first + of * slice + j, sum);
    }
  end(call);
}

// All ranks' words, one rank's behind the other's. `words[r]` is how many rank r has; `first` of them came in earlier pieces, at
// most `most` come in this one.
template <class Number>
DEVICE void gather(float *out, Call call, const float *part, const u64 *words, u64 first, u64 most) {
  if (!begin(call)) return;
  u32 rank = call.peers->rank, ranks = call.peers->ranks;
  float *own = slot(call.peers, rank, call.epoch);
  for (u64 j = own_first<Number>(); j < most && first + j < words[rank]; j += own_step<Number>()) {
    Number number;
    tree::load(part + first + j, number);
    tree::store(own + j, number);
  }
  if (!meet(call, 0)) return;
  u64 before = first;
  for (u32 of = 0; of < ranks; before += words[of++])
    for (u64 j = own_first<Number>(); j < most && first + j < words[of]; j += own_step<Number>()) {
      Number number;
      tree::load(slot(call.peers, of, call.epoch) + j, number);
      tree::store(out + before + j, number);
    }
  end(call);
}

} // namespace all_reduce

#define REDUCTIONS(ending, Number)                                                                                     \
  KERNEL_OF(512, one_shot_##ending)                                                                                    \
  (float *out, const ranks::Peers *peers, u32 op, const float *nodes, u32 num_nodes, u64 stride, u64 first, u64 count, \
   const u64 *wanted, const tree::Item *items, u32 num_items) {                                                        \
    all_reduce::Piece piece{nodes, num_nodes, stride, first, count};                                                   \
    all_reduce::one_shot<Number>(out, ranks::Call{peers, op, 0}, piece, wanted, items, num_items);                     \
  }                                                                                                                    \
  EXPORT(one_shot_##ending)                                                                                            \
  KERNEL_OF(512, two_shot_##ending)                                                                                    \
  (float *out, const ranks::Peers *peers, u32 op, const float *nodes, u32 num_nodes, u64 stride, u64 first, u64 count, \
   u64 slice, const tree::Item *items, u32 num_items) {                                                                \
    all_reduce::Piece piece{nodes, num_nodes, stride, first, count};                                                   \
    all_reduce::two_shot<Number>(out, ranks::Call{peers, op, 0}, piece, slice, items, num_items);                      \
  }                                                                                                                    \
  EXPORT(two_shot_##ending)                                                                                            \
  KERNEL_OF(512, gather_##ending)                                                                                      \
  (float *out, const ranks::Peers *peers, u32 op, const float *part, const u64 *words, u64 first, u64 most) {          \
    all_reduce::gather<Number>(out, ranks::Call{peers, op, 0}, part, words, first, most);                              \
  }                                                                                                                    \
  EXPORT(gather_##ending)

REDUCTIONS(ones, tree::One)
// Where all numbers of elements and all places are multiples of four.
REDUCTIONS(fours, tree::Four)

// Numbers as this GPU reads them, from wherever they lie: whether memory of another GPU is what it seems is tried with it.
KERNEL(copy_words)(u32 *to, const u32 *from, u64 count) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    to[at] = load_acquire(from + at);
}
EXPORT(copy_words)
