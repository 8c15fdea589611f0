// How a reduction tree is finished from the nodes of all ranks (crates/collective/src/lib.rs, ReducePlan): element by element, items
// in the order of ranks, the top two sums merged as often as the plan says. The same sums in the same order wherever it runs.
#ifndef TREE_CUH
#define TREE_CUH

namespace tree {

// Sums that wait for their right side; numbers that are on their way at a time, since each may come from another GPU.
constexpr u32 DEPTH = 32, AHEAD = 8;

// A node: whose it is, which of that rank's, and how often the top two sums are merged behind it.
struct Item { u32 rank, node, merges; };

// One element, or four that lie in a row.
struct One {
  float v;
  static constexpr u32 COUNT = 1;
};
struct Four {
  float v[4];
  static constexpr u32 COUNT = 4;
};
DEVICE One sum(One a, One b) { return One{a.v + b.v}; }
DEVICE Four sum(const Four &a, const Four &b) {
  return Four{{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}};
}
DEVICE void load(const float *from, One &to) { to.v = *from; }
DEVICE void load(const float *from, Four &to) {
  Vec4 bits = *reinterpret_cast<const Vec4 *>(from);
  to = Four{{float_of(bits.x), float_of(bits.y), float_of(bits.z), float_of(bits.w)}};
}
DEVICE void store(float *to, One from) { *to = from.v; }
DEVICE void store(float *to, const Four &from) {
  *reinterpret_cast<Vec4 *>(to) = Vec4{bits_of(from.v[0]), bits_of(from.v[1]), bits_of(from.v[2]), bits_of(from.v[3])};
}

// The sum of `count` items, each of which `take` loads.
template <class Number, class Take> DEVICE Number finish(const Item *items, u32 count, Take take) {
  Number stack[DEPTH];
  u32 height = 0;
  for (u32 first = 0; first < count; first += AHEAD) {
    Number came[AHEAD];
    UNROLL for (u32 i = 0; i < AHEAD; i++)
      if (first + i < count) take(items[first + i], came[i]);
    UNROLL for (u32 i = 0; i < AHEAD; i++) {
      if (first + i >= count) break;
      Number merged = came[i];
      for (u32 m = items[first + i].merges; m > 0; m--) merged = sum(stack[--height], merged);
      stack[height++] = merged;
    }
  }
  return stack[0];
}

} // namespace tree
#endif
