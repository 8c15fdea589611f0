// The largest logits of each row, by logit descending, then column ascending.
//
// Limited by the bytes of the logits, which are read once; for one row by latency, some ten microseconds. A logit and its
// column are one key, and no two keys are equal, so the order in which they are found changes nothing.
//
// One: blocks find the largest of their part of a row, the host takes the largest of these. Up to a thousand or so: a row's
// columns are cut into groups of 32, and the largest of each group is found. The `wanted` largest logits lie in the `wanted`
// groups with the largest such, since each group that is left out has that many larger logits before it. One block per row
// chooses these groups, then their logits, and sorts them. More: all are sorted, in tiles that are then merged two by two.

namespace logits_top {

constexpr u32 THREADS = 256, GROUP = 32, TILE = THREADS * GROUP;
// Keys that a block sorts (crates/cuda/src/logits/top.rs).
constexpr u32 SORTED = 2048;

// Zeros are equal, a NaN is below all numbers, and 0 is below all keys.
DEVICE u64 key_of(float x, u32 col) {
  u32 bits = bits_of(x + 0.0f);
  u32 ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  if ((bits & 0x7fffffffu) > 0x7f800000u) ordered = 0;
  return u64(ordered) << 32 | u32(~col);
}
DEVICE u32 col_of(u64 key) { return ~u32(key); }
// What the host gets of a key.
DEVICE Vec2 found_of(u64 key, const float *row) { return Vec2{bits_of(row[col_of(key)]), col_of(key)}; }

DEVICE u64 larger_key(u64 a, u64 b) { return a > b ? a : b; }

// The least of the `wanted` largest of keys that are different, or something between it and the next: exactly that many are
// not below it. Zeros are no keys. Digit by digit from the highest: the keys that have the known digits are counted by the
// next one.
template <class Key> DEVICE u64 least_of_largest(u32 count, u32 wanted, Key key) {
  // Loads that are on their way together.
  constexpr u32 DIGITS = 256, AT_ONCE = 4;
  SHARED u32 counts[DIGITS];
  SHARED u32 digit, wanted_of_digit;
  SHARED bool is_enough;
  u64 known = 0, mask = 0;
  for (u32 shift = 56;; shift -= 8) {
    for (u32 i = thread(); i < DIGITS; i += threads()) counts[i] = 0;
    sync_block();
    for (u32 first = 0; first < count; first += AT_ONCE * threads()) {
      u64 own[AT_ONCE];
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        u32 at = first + i * threads() + thread();
        own[i] = at < count ? key(at) : 0;
      }
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        bool is_counted = own[i] && (own[i] & mask) == known;
        u32 bin = is_counted ? u32(own[i] >> shift) % DIGITS : DIGITS;
        // Most logits have the same first digits: one lane counts for all that have.
        u32 same = alike(bin);
        if (is_counted && !(same & ((1u << thread() % 32) - 1))) atomic_add(&counts[bin], count_bits(same));
      }
    }
    sync_block();
    if (thread() < 32) {
      constexpr u32 EACH = DIGITS / 32;
      u32 lane = thread(), own = 0;
      for (u32 i = 0; i < EACH; i++) own += counts[lane * EACH + i];
      u32 from_here = own;
      for (u32 step = 1; step < 32; step *= 2) {
        u32 other = shuffle(from_here, lane + step);
        if (lane + step < 32) from_here += other;
      }
      u32 above = from_here - own;
      if (above < wanted && wanted <= from_here) {
        u32 bin = lane * EACH + EACH - 1;
        for (; above + counts[bin] < wanted; bin--) above += counts[bin];
        digit = bin;
        wanted_of_digit = wanted - above;
        is_enough = counts[bin] == wanted_of_digit;
      }
    }
    sync_block();
    wanted = wanted_of_digit;
    known |= u64(digit) << shift;
    mask |= u64(DIGITS - 1) << shift;
    if (is_enough || shift == 0) return larger_key(known, 1);
  }
}

// Sorts keys of the block's memory, of which there are a power of two. Begins and ends with a barrier.
DEVICE void sort_descending(u64 *keys, u32 count) {
  sync_block();
  for (u32 size = 2; size <= count; size *= 2)
    for (u32 stride = size / 2; stride > 0; stride /= 2) {
      for (u32 i = thread(); i < count / 2; i += threads()) {
        u32 at = 2 * i - i % stride;
        u64 a = keys[at], b = keys[at + stride];
        bool is_descending = (at & size) == 0;
        if ((a < b) == is_descending) {
          keys[at] = b;
          keys[at + stride] = a;
        }
      }
      sync_block();
    }
}

} // namespace logits_top

// found [rows, parts]: the largest of `width` columns of a row, per block.
KERNEL_OF(256, logits_largest)(Vec2 *found, const float *x, u32 cols, u32 width, u32 parts) {
  using namespace logits_top;
  SHARED u64 of_warps[THREADS / 32];
  u64 row = block_x(), largest = 0;
  // Loads that are on their way together.
  constexpr u32 AT_ONCE = 8;
  u32 first = block_y() * width, end = first + width < cols ? first + width : cols;
  x += row * cols;
  for (u32 col = first + thread(); col < end; col += AT_ONCE * THREADS) {
    float own[AT_ONCE];
    UNROLL for (u32 i = 0; i < AT_ONCE; i++) own[i] = col + i * THREADS < end ? x[col + i * THREADS] : 0.0f;
    UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
      u64 key = key_of(own[i], col + i * THREADS);
      largest = larger_key(largest, col + i * THREADS < end ? key : 0);
    }
  }
  for (u32 step = 16; step > 0; step /= 2) largest = larger_key(largest, shuffle_xor(largest, step));
  if (thread() % 32 == 0) of_warps[thread() / 32] = largest;
  sync_block();
  if (thread() > 0) return;
  for (u32 warp = 1; warp < THREADS / 32; warp++) largest = larger_key(largest, of_warps[warp]);
  found[row * parts + block_y()] = found_of(largest, x);
}
EXPORT(logits_largest)

// largest [rows, groups]. A thread's group is every 256th column of the block's tile; groups without columns come last.
KERNEL_OF(256, logits_groups)(u64 *largest, const float *x, u32 cols, u32 groups) {
  using namespace logits_top;
  u64 row = block_x(), own = 0;
  u32 first = block_y() * TILE + thread(), group = block_y() * THREADS + thread();
  x += row * cols;
  UNROLL_BY(8) for (u32 i = 0; i < GROUP; i++) {
    u32 col = first + i * THREADS;
    if (col < cols) own = larger_key(own, key_of(x[col], col));
  }
  if (group < groups) largest[row * groups + group] = own;
}
EXPORT(logits_groups)

// found [rows, wanted − skip], of what logits_groups gave; a block per row. Its memory is keys [sorted], which are a power of
// two, and groups [min(wanted, groups)].
KERNEL_OF(1024, logits_top_k)
(Vec2 *found, const float *x, const u64 *largest, u32 cols, u32 groups, u32 skip, u32 wanted, u32 sorted) {
  using namespace logits_top;
  DYNAMIC_SHARED(u64, keys);
  SHARED u32 collected;
  u32 *chosen = reinterpret_cast<u32 *>(keys + sorted);
  u64 row = block_x();
  x += row * cols;
  largest += row * groups;

  u32 choose = wanted < groups ? wanted : groups;
  if (thread() == 0) collected = 0;
  u64 least = choose < groups ? least_of_largest(groups, wanted, [&](u32 i) { return largest[i]; }) : 1;
  sync_block();
  for (u32 group = thread(); group < groups; group += threads())
    if (largest[group] >= least) chosen[atomic_add(&collected, 1)] = group;
  for (u32 i = thread(); i < sorted; i += threads()) keys[i] = 0;
  sync_block();

  auto key = [&](u32 i) -> u64 {
    u32 group = chosen[i / GROUP], col = group / THREADS * TILE + i % GROUP * THREADS + group % THREADS;
    return col < cols ? key_of(x[col], col) : 0;
  };
  if (thread() == 0) collected = 0;
  least = least_of_largest(choose * GROUP, wanted, key);
  for (u32 i = thread(); i < choose * GROUP; i += threads()) {
    u64 own = key(i);
    if (own >= least) keys[atomic_add(&collected, 1)] = own;
  }
  sort_descending(keys, sorted);
  for (u32 i = skip + thread(); i < wanted; i += threads())
    found[row * (wanted - skip) + i - skip] = found_of(keys[i], x);
}
EXPORT(logits_top_k)

// keys [rows, tiles · SORTED], each tile sorted; a block per row and tile.
KERNEL_OF(1024, logits_sort_tiles)(u64 *keys, const float *x, u32 cols, u32 tiles) {
  using namespace logits_top;
  SHARED u64 own[SORTED];
  u64 row = block_x();
  u32 first = block_y() * SORTED;
  for (u32 i = thread(); i < SORTED; i += threads())
    own[i] = first + i < cols ? key_of(x[row * cols + first + i], first + i) : 0;
  sort_descending(own, SORTED);
  for (u32 i = thread(); i < SORTED; i += threads()) keys[(row * tiles + block_y()) * SORTED + i] = own[i];
}
EXPORT(logits_sort_tiles)

// merged [rows, count]: runs of `length` keys become runs of twice as many. A key goes behind those of its own run and those
// of the other one that are larger.
KERNEL(logits_merge_runs)(u64 *merged, const u64 *keys, u32 count, u32 length) {
  u32 at = block_y() * threads() + thread();
  if (at >= count) return;
  keys += u64(block_x()) * count;
  merged += u64(block_x()) * count;
  u32 run = at / length, other = (run ^ 1) * length;
  u32 low = other, high = other + length < count ? other + length : count;
  u64 own = keys[at];
  while (low < high) {
    u32 middle = (low + high) / 2;
    if (keys[middle] > own) low = middle + 1;
    else high = middle;
  }
  merged[run / 2 * 2 * length + at % length + (low - other)] = own;
}
EXPORT(logits_merge_runs)

// found [rows, k] of keys [rows, count], from the `skip`-th on.
KERNEL(logits_found)(Vec2 *found, const float *x, const u64 *keys, u32 cols, u32 count, u32 skip, u32 k) {
  u32 at = block_y() * threads() + thread();
  if (at >= k) return;
  u64 row = block_x();
  found[row * k + at] = logits_top::found_of(keys[row * count + skip + at], x + row * cols);
}
EXPORT(logits_found)
