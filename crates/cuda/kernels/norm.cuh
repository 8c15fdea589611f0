// How a block norms a row that lies in shared memory (NUMERICS.md, rule 5).
#ifndef NORM_CUH
#define NORM_CUH

// A row of `cols` numbers that all threads of the block put into `row`; gives 1 / root(mean square + eps) of it to all.
DEVICE float inverse_root(const float *row, u32 cols, float eps) {
  SHARED float result;
  sync_block();
  if (thread() < 32) {
    u32 lane = thread() % 16;
    float sum = 0.0f;
    for (u32 i = lane; i < cols; i += 16) sum = fused(row[i], row[i], sum);
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
    u32 lane = thread() % 16;
    float sum = 0.0f;
    for (u32 i = lane; i < cols; i += 16) sum += row[i];
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
