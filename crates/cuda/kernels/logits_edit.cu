// Changes of logits before a token is chosen: biases, masks of grammars, penalties, temperatures, in the order given.
//
// Limited by the bytes of the rows that are divided or masked, read and written; lists of columns cost what they touch. Blocks
// have their own columns of a row and go through all of its edits, so what one edit wrote the next one finds in the first
// cache.

namespace logits_edit {

constexpr u32 THREADS = 256;
// Loads that are on their way at the same time.
constexpr u32 TOGETHER = 4;

// In the order of crates/cuda/src/logits/edits.rs.
enum Kind { ADD, REPETITION, ALLOW, DIVIDE };

// `count` columns, ascending and different, and as many numbers for ADD; or words of a mask.
struct Edit { u32 kind, first_word, count, by; };
// The edits of a row.
struct Row { u32 row, first_edit, end_edit; };

// The first of some ascending columns that isn't below `col`.
DEVICE u32 first_from(const u32 *cols, u32 count, u32 col) {
  u32 low = 0, high = count;
  while (low < high) {
    u32 middle = (low + high) / 2;
    if (cols[middle] < col) low = middle + 1;
    else high = middle;
  }
  return low;
}

} // namespace logits_edit

// A block per edited row and `width` columns. x [.., cols]
KERNEL_OF(256, logits_edit_rows)
(float *x, const logits_edit::Row *rows, const logits_edit::Edit *edits, const u32 *words, u32 cols, u32 width) {
  using namespace logits_edit;
  Row of = rows[block_x()];
  u32 first = block_y() * width, end = first + width < cols ? first + width : cols;
  x += u64(of.row) * cols;
  for (u32 at = of.first_edit; at < of.end_edit; at++) {
    Edit edit = edits[at];
    const u32 *list = words + edit.first_word;
    float by = float_of(edit.by);
    switch (edit.kind) {
    case ADD:
      for (u32 i = first_from(list, edit.count, first) + thread(); i < edit.count && list[i] < end; i += THREADS)
        x[list[i]] = x[list[i]] + float_of(list[edit.count + i]);
      break;
    case REPETITION:
      for (u32 i = first_from(list, edit.count, first) + thread(); i < edit.count && list[i] < end; i += THREADS) {
        float logit = x[list[i]];
        x[list[i]] = logit > 0.0f ? logit / by : logit * by;
      }
      break;
    case ALLOW:
      for (u32 col = first + thread(); col < end; col += TOGETHER * THREADS) {
        u32 masks[TOGETHER];
        UNROLL for (u32 i = 0; i < TOGETHER; i++) {
          u32 word = (col + i * THREADS) / 32;
          masks[i] = word < edit.count ? list[word] : 0;
        }
        UNROLL for (u32 i = 0; i < TOGETHER; i++) {
          u32 own = col + i * THREADS;
          if (own < end && !(masks[i] >> own % 32 & 1)) x[own] = float_of(0xff800000u);
        }
      }
      break;
    case DIVIDE:
      for (u32 col = first + thread(); col < end; col += TOGETHER * THREADS) {
        float logits[TOGETHER];
        UNROLL for (u32 i = 0; i < TOGETHER; i++) logits[i] = col + i * THREADS < end ? x[col + i * THREADS] : 0.0f;
        UNROLL for (u32 i = 0; i < TOGETHER; i++)
          if (col + i * THREADS < end) x[col + i * THREADS] = logits[i] / by;
      }
    }
    // The next edit may have another thread change what this one has.
    sync_block();
  }
}
EXPORT(logits_edit_rows)
