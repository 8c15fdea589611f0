// How a block norms a row that lies in shared memory (NUMERICS.md, rule 5).
#ifndef NORM_CUH
#define NORM_CUH

// Every 16th number of a row, from that of the lane on, in order. Sixteen of them lie in fixed places, so that they are read ahead of what
// is done with them one after the other.
template <class Use> DEVICE void each_of_lane(const float *row, u32 cols, const Use &use) {
  u32 i = thread() % 16;
  for (; i + 240 < cols; i += 256) {
    const float *own = row + i;
    UNROLL for (u32 k = 0; k < 16; k++) use(own[16 * k]);
  }
  UNROLL_BY(1) for (; i < cols; i += 16) use(row[i]);
}

// A row of `cols` numbers that all threads of the block put into `row`; gives 1 / root(mean square + eps) of it to all.
DEVICE float inverse_root(const float *row, u32 cols, float eps) {
  SHARED float result;
  sync_block();
  if (thread() < 32) {
    float sum = 0.0f;
    each_of_lane(row, cols, [&](float x) { sum = fused(x, x, sum); });
    sum = sum_by_halves(sum);
    if (thread() == 0) result = 1.0f / root(sum / float(cols) + eps);
  }
  sync_block();
  return result;
}

// The mean of a row, likewise.
DEVICE float mean_of(const float *row, u32 cols) {
  SHARED float result;
  sync_block();
  if (thread() < 32) {
    float sum = 0.0f;
    each_of_lane(row, cols, [&](float x) { sum += x; });
    sum = sum_by_halves(sum);
    if (thread() == 0) result = sum / float(cols);
  }
  sync_block();
  return result;
}

// How a norm is told: of which kind (0 RMS, 1 layer), and its numbers.
struct Norm {
  const float *weight, *bias;
  u32 is_layer;
  float offset, eps;
};

// Norms `row` in place, in shared memory.
DEVICE void norm_row(float *row, u32 cols, Norm norm) {
  if (norm.is_layer) {
    float mean = mean_of(row, cols);
    for (u32 i = thread(); i < cols; i += threads()) row[i] -= mean;
  }
  float r = inverse_root(row, cols, norm.eps);
  for (u32 i = thread(); i < cols; i += threads()) {
    if (norm.is_layer)
      row[i] = fused(row[i] * r, norm.weight[i], norm.bias ? norm.bias[i] : 0.0f);
    else
      row[i] = row[i] * r * (norm.weight[i] + norm.offset);
  }
  sync_block();
}

#endif
