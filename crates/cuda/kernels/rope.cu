// Rotary positions (NUMERICS.md, rule 5).
//
// The table is computed once per step and is limited by arithmetic in f64, of which it is a few thousand; rotating is limited
// by latency in decode and by the second cache in prefill.

// table [rows, 2 · pairs]: cosines, then sines, of `position · inverse frequency`.
KERNEL(rope_table)(float *table, const u32 *positions, const float *frequencies, u32 rows, u32 pairs) {
  u32 at = block_x() * threads() + thread();
  if (at >= rows * pairs) return;
  u32 row = at / pairs, pair = at % pairs;
  float angle = float(positions[row]) * frequencies[pair];
  SineCosine of = sine_cosine(double(angle));
  table[u64(row) * 2 * pairs + pair] = float(of.cosine);
  table[u64(row) * 2 * pairs + pairs + pair] = float(of.sine);
}
EXPORT(rope_table)

// Rotates heads in place. x [rows, stride], heads from column `first` on.
KERNEL(rope_rotate)
(float *x, const float *table, u32 rows, u32 stride, u32 first, u32 heads, u32 head_dim, u32 pairs) {
  u32 at = block_x() * threads() + thread();
  if (at >= rows * heads * pairs) return;
  u32 pair = at % pairs, head = at / pairs % heads, row = at / pairs / heads;
  rotate_pair(x + u64(row) * stride + first + head * head_dim, table + u64(row) * 2 * pairs, pair, pairs);
}
EXPORT(rope_rotate)
