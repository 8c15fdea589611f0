// An all-reduce in one shot whose sum is added to the residual stream, which is then normed, in one kernel.
//
// Limited by latency, as both are: it saves a launch, and the sums' way to memory and back. A block per row, so that it pays for as
// many rows as there are blocks; more go through both kernels.

// x += post(the tree over all ranks' nodes), or without `post` the sum itself; y = norm(x). nodes [num_nodes, rows, cols], x and
// y [rows, cols]
template <class Number>
DEVICE void one_shot_norm(float *y, ranks::Call call, const float *nodes, u32 num_nodes, u32 rows, u32 cols, float *x,
                          const tree::Item *items, u32 num_items, const Norm &norm, const Norm &post) {
  DYNAMIC_SHARED(float, row);
  if (!ranks::begin(call)) return;
  u64 elements = u64(rows) * cols;
  float *own = ranks::slot(call.peers, call.peers->rank, call.epoch);
  for (u32 r = block_x(); r < rows; r += blocks_x())
    for (u32 i = thread() * Number::COUNT; i < cols; i += threads() * Number::COUNT)
      for (u32 node = 0; node < num_nodes; node++) {
        u64 at = node * elements + u64(r) * cols + i;
        Number number;
        tree::load(nodes + at, number);
        tree::store(own + at, number);
      }
  if (!ranks::meet(call, 0)) return;
  for (u32 r = block_x(); r < rows; r += blocks_x()) {
    u64 first = u64(r) * cols;
    for (u32 i = thread() * Number::COUNT; i < cols; i += threads() * Number::COUNT) {
      auto take = [&](tree::Item item, Number &to) {
        tree::load(ranks::slot(call.peers, item.rank, call.epoch) + item.node * elements + first + i, to);
      };
      tree::store(row + i, tree::finish<Number>(items, num_items, take));
    }
    sync_block();
    if (post.weight) norm_row(row, cols, post);
    // Each thread goes on with what it wrote itself.
    for (u32 i = thread(); i < cols; i += threads()) x[first + i] = row[i] = x[first + i] + row[i];
    norm_row(row, cols, norm);
    for (u32 i = thread(); i < cols; i += threads()) y[first + i] = row[i];
    // The next row lies in the same place.
    sync_block();
  }
  ranks::end(call);
}

#define ONE_SHOT_NORM(name, Number)                                                                                    \
  KERNEL_OF(512, name)                                                                                                 \
  (float *y, const ranks::Peers *peers, u32 op, const float *nodes, u32 num_nodes, u32 rows, u32 cols, float *x,       \
   const tree::Item *items, u32 num_items, const float *weight, const float *bias, u32 is_layer, float offset,         \
   float eps, const float *post_weight, const float *post_bias, u32 post_is_layer, float post_offset,                  \
   float post_eps) {                                                                                                   \
    Norm norm{weight, bias, is_layer, offset, eps};                                                                    \
    Norm post{post_weight, post_bias, post_is_layer, post_offset, post_eps};                                           \
    one_shot_norm<Number>(y, ranks::Call{peers, op, 0}, nodes, num_nodes, rows, cols, x, items, num_items, norm, post); \
  }                                                                                                                    \
  EXPORT(name)

ONE_SHOT_NORM(one_shot_norm_ones, tree::One)
// Where rows are a multiple of four elements.
ONE_SHOT_NORM(one_shot_norm_fours, tree::Four)
