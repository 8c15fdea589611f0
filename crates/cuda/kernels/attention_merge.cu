// Segments of attention that were summed on their own are merged, in ascending order (NUMERICS.md, rule 4).
//
// Limited by latency: a few rows of head_dim numbers are read per row and head, from the second cache. One warp per row and
// head, a lane has every 32nd element.

// Rows are those of `list`, or those from `first_row` on. parts [places][m, l, o of head_dim]: a segment's is in `places`, or
// where the kernels of attention put it. `segments`: how many of a row's there can be.
KERNEL(attention_merge)
(float *out, const float *parts, const u32 *positions, const u32 *list, u32 count, u32 num_heads, u32 head_dim, u32 window,
 u32 segments, const attention::Place *places, u32 first_row) {
  using namespace attention;
  constexpr u32 MOST = 8;
  u32 warp = block_x() * (threads() / 32) + thread() / 32, lane = thread() % 32;
  if (warp >= count * num_heads) return;
  u32 slot = warp / num_heads, head = warp % num_heads, row = list ? list[slot] : first_row + slot;
  if (row == NONE) return;
  Range seen = seen_from(positions[row], window);
  u32 first = seen.first / SEGMENT, end = (seen.end + SEGMENT - 1) / SEGMENT;
  float m = lowest(), l = 0.0f, o[MOST] = {};
  for (u32 segment = first; segment < end; segment++) {
    u32 at = slot * segments + segment % segments;
    Place place = places ? places[at] : Place{at * num_heads, 1};
    const float *part = parts + (place.index + u64(head) * place.per_head) * (2 + head_dim);
    Join by = join(m, part[0]);
    bool is_first = segment == first;
    m = is_first ? part[0] : by.m;
    l = is_first ? part[1] : joined(by, l, part[1]);
    UNROLL for (u32 i = 0; i < MOST; i++)
      if (i * 32 + lane < head_dim) {
        float x = part[2 + i * 32 + lane];
        o[i] = is_first ? x : joined(by, o[i], x);
      }
  }
  float *to = out + (u64(row) * num_heads + head) * head_dim;
  UNROLL for (u32 i = 0; i < MOST; i++)
    if (i * 32 + lane < head_dim) to[i * 32 + lane] = o[i] / l;
}
EXPORT(attention_merge)
