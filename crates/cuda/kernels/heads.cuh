// What is done to a head of a row before attention, by a warp (NUMERICS.md, rule 5).
#ifndef HEADS_CUH
#define HEADS_CUH

// How heads are normed; not at all without a weight.
struct HeadNorm {
  const float *weight;
  u32 is_layer;
  float offset, eps;
};

// In place. What other lanes wrote to `head` before they have written when this begins.
DEVICE void norm_head(float *head, u32 head_dim, HeadNorm norm) {
  u32 lane = thread() % 32;
  if (norm.is_layer) {
    float sum = 0.0f;
    for (u32 i = lane % 16; i < head_dim; i += 16) sum += head[i];
    float mean = sum_by_halves(sum) / float(head_dim);
    sync_warp();
    for (u32 i = lane; i < head_dim; i += 32) head[i] -= mean;
    sync_warp();
  }
  float sum = 0.0f;
  for (u32 i = lane % 16; i < head_dim; i += 16) sum = fused(head[i], head[i], sum);
  float r = 1.0f / root(sum_by_halves(sum) / float(head_dim) + norm.eps);
  sync_warp();
  for (u32 i = lane; i < head_dim; i += 32)
    head[i] = norm.is_layer ? fused(head[i] * r, norm.weight[i], 0.0f) : head[i] * r * (norm.weight[i] + norm.offset);
}

// One pair of a head; `row` of the table has as many cosines, then sines, as there are pairs.
DEVICE void rotate_pair(float *head, const float *row, u32 pair, u32 pairs) {
  float cosine = row[pair], sine = row[pairs + pair], a = head[pair], b = head[pair + pairs];
  head[pair] = fused(a, cosine, -(b * sine));
  head[pair + pairs] = fused(b, cosine, a * sine);
}
#endif
