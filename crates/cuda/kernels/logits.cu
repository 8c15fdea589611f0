// Sums of exponentials of logits, counts and single logits.
//
// Limited by the bytes of the logits, of which each is read once; a row is worked on by many blocks, so that one row of 256k
// columns, a megabyte that still lies in the second cache, takes some microseconds. What blocks leave is merged by the host,
// which waits for it anyway: some dozen numbers per row.

namespace logits {

constexpr u32 THREADS = 256;

// A subtree over panels of 16 columns: the panels, and the levels of its merges, leaves' first.
struct Subtree { u32 first, end, first_level, end_level; };
// The most panels of one (crates/cuda/src/logits/tree.rs).
constexpr u32 MOST_PANELS = 512;

// 16 registers of 32 lanes are two panels each. Lanes add by halves, and each lane keeps one of two registers as it does, so
// that in the end each has one sum: that of panel `panel_of_lane`.
DEVICE float sum_of_panel(float (&x)[16]) {
  u32 lane = thread() % 32;
  UNROLL for (u32 step = 8; step > 0; step /= 2) {
    bool is_upper = lane & step;
    UNROLL for (u32 i = 0; i < step; i++) {
      float kept = is_upper ? x[2 * i + 1] : x[2 * i], given = is_upper ? x[2 * i] : x[2 * i + 1];
      x[i] = kept + shuffle_xor(given, step);
    }
  }
  return x[0];
}
DEVICE u32 panel_of_lane() {
  u32 lane = thread() % 32;
  return (lane & 1) << 4 | (lane & 2) << 2 | (lane & 4) | (lane & 8) >> 2 | lane >> 4;
}

// The same in all threads.
DEVICE float largest_of_parts(const Vec2 *found, u32 parts) {
  float largest = float_of(0xff800000u);
  for (u32 i = 0; i < parts; i++) {
    float here = float_of(found[i].x);
    largest = here > largest ? here : largest;
  }
  return largest == float_of(0xff800000u) ? 0.0f : largest;
}

} // namespace logits

// sums [rows, subtrees] of exp(x − max), x [rows, cols]; a block per row and subtree. Levels are their first merges: each is the
// places of a left and a right sum, counted from the subtree's first panel. max [rows]; or, with `parts`, what logits_largest
// found [rows, parts], and 0 for a row where that is −∞ (tensor::Survey::base).
KERNEL_OF(256, logits_exp_sums)
(float *sums, const float *x, const float *max, const Vec2 *found, u32 parts, u32 cols, u32 subtrees,
 const logits::Subtree *of, const u32 *levels, const u32 *merges) {
  using namespace logits;
  SHARED float panels[MOST_PANELS];
  u64 row = block_x();
  Subtree own = of[block_y()];
  u32 lane = thread() % 32, end = own.end * 16 < cols ? own.end * 16 : cols;
  float largest = parts ? largest_of_parts(found + row * parts, parts) : max[row];
  x += row * cols;
  for (u32 panel = own.first + thread() / 32 * 32; panel < own.end; panel += THREADS) {
    float of_columns[16];
    // First the loads, so that they are on their way together.
    UNROLL for (u32 i = 0; i < 16; i++) {
      u32 col = panel * 16 + i * 32 + lane;
      of_columns[i] = col < end ? x[col] : 0.0f;
    }
    UNROLL for (u32 i = 0; i < 16; i++) {
      u32 col = panel * 16 + i * 32 + lane;
      of_columns[i] = col < end ? exponential(of_columns[i] - largest) : 0.0f;
    }
    float sum = sum_of_panel(of_columns);
    u32 place = panel + panel_of_lane();
    if (place < own.end) panels[place - own.first] = sum;
  }
  sync_block();
  for (u32 level = own.first_level; level < own.end_level; level++) {
    for (u32 at = levels[level] + thread(); at < levels[level + 1]; at += THREADS) {
      u32 left = merges[at] & 0xffff, right = merges[at] >> 16;
      panels[left] = panels[left] + panels[right];
    }
    sync_block();
  }
  if (thread() == 0) sums[row * subtrees + block_y()] = panels[0];
}
EXPORT(logits_exp_sums)

// counts [rows, parts] of what comes before a place, which is (bits of a logit, column); a block per row and `width` columns.
KERNEL_OF(256, logits_count_before)
(u32 *counts, const float *x, const Vec2 *places, u32 cols, u32 width, u32 parts) {
  SHARED u32 of_warps[logits::THREADS / 32];
  u64 row = block_x();
  u32 first = block_y() * width, end = first + width < cols ? first + width : cols;
  float logit = float_of(places[row].x);
  u32 place = places[row].y, count = 0;
  x += row * cols;
  // Loads that are on their way together.
  constexpr u32 AT_ONCE = 8, STEP = logits::THREADS;
  for (u32 col = first + thread(); col < end; col += AT_ONCE * STEP) {
    float own[AT_ONCE];
    UNROLL for (u32 i = 0; i < AT_ONCE; i++) own[i] = col + i * STEP < end ? x[col + i * STEP] : 0.0f;
    UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
      u32 at = col + i * STEP;
      count += at < end && (own[i] > logit || (own[i] == logit && at < place));
    }
  }
  for (u32 step = 16; step > 0; step /= 2) count += shuffle_xor(count, step);
  if (thread() % 32 == 0) of_warps[thread() / 32] = count;
  sync_block();
  if (thread() > 0) return;
  u32 sum = 0;
  for (u32 warp = 0; warp < logits::THREADS / 32; warp++) sum += of_warps[warp];
  counts[row * parts + block_y()] = sum;
}
EXPORT(logits_count_before)

// picked[i] = x[row, column]; at [count] of (row, column)
KERNEL(logits_pick)(float *picked, const float *x, const Vec2 *at, u32 count, u32 cols) {
  u32 i = block_x() * threads() + thread();
  if (i < count) picked[i] = x[u64(at[i].x) * cols + at[i].y];
}
EXPORT(logits_pick)
