// Element by element: activations, sums, and rows and columns that are put elsewhere.
//
// Limited by the bytes that are read and written, which in decode are a few kilobytes and so by the launch.

// y[t, i] = activation(x[t, i]) · x[t, width + i]. x [rows, 2 · width]
KERNEL(gated)(float *y, const float *x, u64 count, u32 width, u32 which) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads()) {
    u64 row = at / width, i = at % width;
    y[at] = activation(which, x[row * 2 * width + i]) * x[row * 2 * width + width + i];
  }
}
EXPORT(gated)

KERNEL(activate)(float *x, u64 count, u32 which) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    x[at] = activation(which, x[at]);
}
EXPORT(activate)

// x += y, of which there are `period` numbers, over and over.
KERNEL(add)(float *x, const float *y, u64 count, u64 period) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    x[at] = x[at] + y[at % period];
}
EXPORT(add)

KERNEL(scale)(float *x, u64 count, float by) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads()) x[at] = x[at] * by;
}
EXPORT(scale)

KERNEL(softcap)(float *x, u64 count, float cap) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    x[at] = cap * hyperbolic_tangent(x[at] / cap);
}
EXPORT(softcap)

// y[r] = x[rows[r]], of rows of `cols` numbers; count = rows · cols
KERNEL(gather_rows)(float *y, const float *x, const u32 *rows, u64 count, u32 cols) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    y[at] = x[u64(rows[at / cols]) * cols + at % cols];
}
EXPORT(gather_rows)

// y[t] = x[t, first .. first + cols]; count = rows · cols
KERNEL(gather_cols)(float *y, const float *x, u64 count, u32 cols, u32 width, u32 first) {
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads())
    y[at] = x[at / cols * width + first + at % cols];
}
EXPORT(gather_cols)

// y[row, j] = x[first_j + row, col_j]; columns: the last row that is there, then (first, col) of each column
KERNEL(regroup)(float *y, const float *x, const u32 *columns, u64 count, u32 cols, u32 width) {
  u32 last = columns[0];
  for (u64 at = u64(block_x()) * threads() + thread(); at < count; at += u64(blocks_x()) * threads()) {
    u64 j = at % cols;
    u32 row = u32(at / cols) < last ? u32(at / cols) : last;
    y[at] = x[(u64(columns[1 + 2 * j]) + row) * width + columns[2 + 2 * j]];
  }
}
EXPORT(regroup)
