// Norms of rows and of heads, and the residual add before them (NUMERICS.md, rule 5).
//
// Limited by latency: a row's sum is 16 chains of n / 16 additions of four clocks each, 256 of them for 4,096 columns; with the reads
// of shared memory before each 16 that is some 1,600 clocks, about a microsecond. What is read and written is a few kilobytes
// per row and comes from the second cache. One block per row: all its threads bring the row into shared memory, one half of a
// warp adds it up.

// y = norm(x), or with `residual` x += residual and y = norm(x), or with `post` x += post(residual).
// x [blocks, cols], residual [blocks, cols], y [blocks, cols]
KERNEL(norm_rows)
(float *x, const float *residual, float *y, u32 cols, const float *weight, const float *bias, u32 is_layer, float offset,
 float eps, const float *post_weight, const float *post_bias, u32 post_is_layer, float post_offset, float post_eps) {
  DYNAMIC_SHARED(float, row);
  u64 at = u64(block_x()) * cols;
  if (residual) {
    for (u32 i = thread(); i < cols; i += threads()) row[i] = residual[at + i];
    if (post_weight) norm_row(row, cols, Norm{post_weight, post_bias, post_is_layer, post_offset, post_eps});
    // Each thread goes on with what it wrote itself.
    for (u32 i = thread(); i < cols; i += threads()) x[at + i] = row[i] = x[at + i] + row[i];
  } else {
    for (u32 i = thread(); i < cols; i += threads()) row[i] = x[at + i];
  }
  norm_row(row, cols, Norm{weight, bias, is_layer, offset, eps});
  for (u32 i = thread(); i < cols; i += threads()) y[at + i] = row[i];
}
EXPORT(norm_rows)

// Norms each head of each row, in place. One warp per head: x [rows, stride], heads from column `first` on.
KERNEL(norm_heads)
(float *x, u32 rows, u32 stride, u32 first, u32 heads, u32 head_dim, const float *weight, u32 is_layer, float offset,
 float eps) {
  u32 warp = block_x() * (threads() / 32) + thread() / 32;
  // Whole warps, which alone meet in what follows.
  if (warp >= rows * heads) return;
  norm_head(x + u64(warp / heads) * stride + first + (warp % heads) * head_dim, head_dim, {weight, is_layer, offset, eps});
}
EXPORT(norm_heads)
