// Activations as tensor cores take them: in tiles of 8 rows, a lane's numbers together, rounded to 16 bits or quantised.
//
// Limited by latency: in decode some kilobytes.

// Where a tile's inputs are: tiles follow each other within periods of inputs, each of which is filled up to whole tiles.
struct Tiles {
  u32 k, period, width;
  // How many inputs of a tile there are, and the first.
  DEVICE_IN u32 count(Tiles of, u32 tile, u32 &first) {
    u32 per_period = (of.period + of.width - 1) / of.width, start = tile / per_period * of.period;
    u32 inner = tile % per_period * of.width, end = start + of.period < of.k ? start + of.period : of.k;
    first = start + inner;
    return end - first < of.width ? end - first : of.width;
  }
};

// Which rows of x groups of 8 have: one after the other, or those of experts (crates/cuda/src/linear/experts.rs).
struct Source {
  u32 rows, experts;
  // The first row and the first group of each expert, and all of them; which row of x is a row of theirs, if it is another.
  const u32 *offsets, *group_first, *tokens;
  // The row of x; `rows` where there is none. False behind the last group.
  DEVICE_IN bool find(const Source &of, u32 group, u32 in_group, u32 &row) {
    if (!of.experts) {
      row = group * 8 + in_group < of.rows ? group * 8 + in_group : of.rows;
      return group * 8 < of.rows;
    }
    if (group >= of.group_first[of.experts]) return false;
    u32 expert = 0;
    for (u32 end = of.experts; end - expert > 1;) {
      u32 middle = (expert + end) / 2;
      if (of.group_first[middle] <= group) expert = middle;
      else end = middle;
    }
    u32 pair = of.offsets[expert] + (group - of.group_first[expert]) * 8 + in_group;
    if (pair >= of.offsets[expert + 1]) row = of.rows;
    else row = of.tokens ? of.tokens[pair] : pair;
    return true;
  }
};

// The first group of each expert's rows, and the number of groups: of groups of 8 rows, then of groups of as many as blocks of a
// kernel have. first [2, experts + 1]; two blocks.
KERNEL_OF(1024, linear_group_first)(u32 *first, const u32 *offsets, u32 experts, u32 rows_of_block) {
  DYNAMIC_SHARED(u32, sums);
  u32 rows = block_x() == 0 ? 8 : rows_of_block;
  first += block_x() * (experts + 1);
  // Sums of ever more neighbours, in turns between two halves.
  for (u32 e = thread(); e < experts; e += threads()) sums[e] = (offsets[e + 1] - offsets[e] + rows - 1) / rows;
  u32 from = 0;
  for (u32 step = 1; step < experts; step *= 2) {
    sync_block();
    for (u32 e = thread(); e < experts; e += threads())
      sums[(1 - from) * experts + e] = sums[from * experts + e] + (e >= step ? sums[from * experts + e - step] : 0);
    from = 1 - from;
  }
  sync_block();
  for (u32 e = thread(); e < experts; e += threads()) first[e + 1] = sums[from * experts + e];
  if (thread() == 0) first[0] = 0;
}
EXPORT(linear_group_first)

// x [rows, k] to out [groups of 8 rows][tiles of 16 inputs][lane]: inputs 2 t, 2 t + 1 and those 8 behind them. A thread per
// lane. `width` is 32 where two such tiles are one of the weights'.
KERNEL(linear_round)
(Vec2 *out, const float *x, u32 rows, u32 k, u32 period, u32 width, u32 tiles, u32 is_half, u32 experts,
 const u32 *offsets, const u32 *group_first, const u32 *tokens) {
  u32 at = block_x() * threads() + thread(), tile = at / 32 % tiles, group = at / 32 / tiles, lane = at % 32, row;
  if (!Source::find(Source{rows, experts, offsets, group_first, tokens}, group, lane / 4, row)) return;
  u32 per_tile = width / 16, first, count = Tiles::count(Tiles{k, period, width}, tile / per_tile, first);
  float v[4];
  UNROLL for (u32 i = 0; i < 4; i++) {
    u32 inner = tile % per_tile * 16 + lane % 4 * 2 + i % 2 + i / 2 * 8;
    v[i] = row < rows && inner < count ? x[u64(row) * k + first + inner] : 0.0f;
  }
  out[at] = is_half ? Vec2{two_halfs(v[0], v[1]), two_halfs(v[2], v[3])}
                    : Vec2{two_bfloats(v[0], v[1]), two_bfloats(v[2], v[3])};
}
EXPORT(linear_round)

// x [rows, k] to bytes [groups of 8 rows][tiles of 32 inputs][lane]: inputs 4 t .. 4 t + 3 and those 16 behind them; scales
// and sums [groups of 8 rows][tiles][8] (tensor::ActivationGroup). A thread per row and tile.
KERNEL(linear_quantize)
(u32 *out, float *scales, int *sums, const float *x, u32 rows, u32 k, u32 period, u32 tiles, u32 experts,
 const u32 *offsets, const u32 *group_first, const u32 *tokens) {
  u32 at = block_x() * threads() + thread(), tile = at / 8 % tiles, group = at / 8 / tiles, row;
  if (!Source::find(Source{rows, experts, offsets, group_first, tokens}, group, at % 8, row)) return;
  u32 first, count = Tiles::count(Tiles{k, period, 32}, tile, first), most = 0;
  const float *here = x + u64(row < rows ? row : 0) * k + first;
  if (row >= rows) count = 0;
  for (u32 i = 0; i < count; i++) {
    u32 bits = bits_of(here[i]) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  float largest = float_of(most), scale = 0.0f, inverse = 0.0f;
  if (most >= 0x7f800000u) scale = float_of(0x7fc00000u);
  else if (largest > float_of(17u << 23)) scale = largest / 127.0f, inverse = 127.0f / largest; // 2^-110
  scales[at] = scale;
  int sum = 0;
  for (u32 word = 0; word < 8; word++) {
    u32 bytes = 0;
    for (u32 i = 0; i < 4; i++) {
      u32 input = 4 * word + i;
      int q = input < count && inverse != 0.0f ? int(whole(here[input] * inverse)) : 0;
      sum += q;
      bytes |= u32(q & 0xff) << 8 * i;
    }
    out[((u64(group) * tiles + tile) * 32 + at % 8 * 4 + word % 4) * 2 + word / 4] = bytes;
  }
  sums[at] = sum;
}
EXPORT(linear_quantize)
