// Finishes a reduction tree whose nodes have all come here.
//
// Limited by the bytes of the nodes, each of which is read once, and of the sums. 85 % of what a copy reaches is to be had, from some
// megabytes on; below that by the launch.

// out[i] = the tree over nodes of `count` elements each; parts[r] is where rank r's begin, one behind the other.
template <class Number>
DEVICE void finish_nodes(float *out, const u64 *parts, const tree::Item *items, u32 num_items, u64 count) {
  u64 step = u64(blocks_x()) * threads() * Number::COUNT;
  for (u64 at = (u64(block_x()) * threads() + thread()) * Number::COUNT; at < count; at += step) {
    auto take = [&](tree::Item item, Number &to) {
      tree::load(reinterpret_cast<const float *>(parts[item.rank]) + item.node * count + at, to);
    };
    tree::store(out + at, tree::finish<Number>(items, num_items, take));
  }
}

KERNEL_OF(256, finish_ones)(float *out, const u64 *parts, const tree::Item *items, u32 num_items, u64 count) {
  finish_nodes<tree::One>(out, parts, items, num_items, count);
}
EXPORT(finish_ones)

// Of a multiple of four elements that begin at multiples of 16 bytes.
KERNEL_OF(256, finish_fours)(float *out, const u64 *parts, const tree::Item *items, u32 num_items, u64 count) {
  finish_nodes<tree::Four>(out, parts, items, num_items, count);
}
EXPORT(finish_fours)
