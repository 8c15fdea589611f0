// Segments of attention that were summed on their own, by several ranks or over caches of f32, are merged (NUMERICS.md, rule 4).
//
// Limited by latency: a few rows of head_dim numbers are read per row and head, from the second cache. One warp per row and head.

// Rows are those of `list`, or those from `first_row` on. parts [places][m, l, o of head_dim]: a segment's is in `places`, or
// where attention_exact put it. `segments`: how many of a row's there can be.
KERNEL(attention_merge)
(float *out, const float *parts, const u32 *positions, const u32 *list, u32 count, u32 num_heads, u32 head_dim, u32 window,
 u32 segments, const attention::Place *places, u32 first_row) {
  using namespace attention;
  u32 warp = block_x() * (threads() / 32) + thread() / 32;
  if (warp >= count * num_heads) return;
  u32 slot = warp / num_heads, head = warp % num_heads, row = list ? list[slot] : first_row + slot;
  if (row == NONE) return;
  merge_segments(out + (u64(row) * num_heads + head) * head_dim, seen_from(positions[row], window), head_dim, [&](u32 segment) {
    u32 at = slot * segments + segment % segments;
    Place place = places ? places[at] : Place{at * num_heads, 1};
    return parts + (place.index + u64(head) * place.per_head) * (2 + head_dim);
  });
}
EXPORT(attention_merge)
