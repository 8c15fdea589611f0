// Mixtures of experts: choosing, sorting by expert, and the weighted sum of what experts gave (NUMERICS.md, rule 7).
//
// Choosing is limited by latency: a softmax's sum is one chain of an addition per expert, half a microsecond of 128. Sorting
// by latency too, some microseconds; every block reads all choices, which come from the second cache. The sum is limited by
// the bytes of the experts' outputs, each read once: 85 % of what a copy reaches in prefill.

namespace moe {

// The id in a place of a routing that its token does not use (crates/cuda/src/moe.rs).
constexpr u32 NOBODY = 0xffffffffu;

// Quotients are not below 0, so the sign says whether an expert was chosen.
DEVICE bool is_chosen(float p) { return bits_of(p) >> 31; }
DEVICE float chosen(float p) { return float_of(bits_of(p) | 0x80000000u); }

// Sums up over the block; `of_warps` has a place per warp. Ends with a barrier.
DEVICE u32 sum_of_block(u32 own, u32 *of_warps) {
  for (u32 step = 16; step > 0; step /= 2) own += shuffle_xor(own, step);
  if (thread() % 32 == 0) of_warps[thread() / 32] = own;
  sync_block();
  u32 sum = 0;
  for (u32 warp = 0; warp < threads() / 32; warp++) sum += of_warps[warp];
  sync_block();
  return sum;
}

// A pair of a token, by the expert's place in the range.
struct Choice { u32 expert, pair; };
// A summand of a token, and how often the top two are added after it.
struct Step { u32 pair, merges; };

} // namespace moe

// Softmax, the `top_k` largest, ties to the lower id. A block of one warp per token. logits [tokens, experts] → ids and
// weights [tokens, top_k], by ascending id. Tokens that are not there choose nobody.
KERNEL_OF(32, moe_route)
(u32 *ids, float *weights, const float *logits, const u32 *tokens, u32 experts, u32 top_k, u32 is_normalized) {
  using namespace moe;
  DYNAMIC_SHARED(float, p);
  float *found = p + experts;
  u32 lane = thread();
  u64 token = block_x();
  logits += token * experts;
  ids += token * top_k;
  weights += token * top_k;
  if (token >= *tokens) {
    for (u32 i = lane; i < top_k; i += 32) ids[i] = NOBODY;
    return;
  }

  float max = float_of(0xff800000u);
  for (u32 e = lane; e < experts; e += 32) max = larger(max, logits[e]);
  for (u32 step = 16; step > 0; step /= 2) max = larger(max, shuffle_xor(max, step));
  for (u32 e = lane; e < experts; e += 32) p[e] = exponential(logits[e] - max);
  sync_warp();
  float sum = 0.0f;
  UNROLL_BY(8) for (u32 e = 0; e < experts; e++) sum += p[e];
  sync_warp();
  // Either all are numbers or none is, whose sign then says nothing yet.
  for (u32 e = lane; e < experts; e += 32) p[e] = magnitude(p[e] / sum);

  for (u32 i = 0; i < top_k; i++) {
    // Larger quotients first, then lower ids; 0 where there is none. What isn't a number is equal.
    u64 best = 0;
    for (u32 e = lane; e < experts; e += 32) {
      u32 size = p[e] >= 0.0f ? bits_of(p[e]) + 1 : 0;
      u64 key = is_chosen(p[e]) ? 0 : u64(size) << 32 | u32(~e);
      if (key > best) best = key;
    }
    for (u32 step = 16; step > 0; step /= 2) {
      u64 other = shuffle_xor(best, step);
      if (other > best) best = other;
    }
    u32 winner = ~u32(best);
    if (winner % 32 == lane) p[winner] = chosen(p[winner]);
  }

  u32 count = 0;
  for (u32 first = 0; first < experts; first += 32) {
    u32 e = first + lane;
    bool is = e < experts && is_chosen(p[e]);
    u32 all = ballot(is), place = count + count_bits(all & ((1u << lane) - 1));
    if (is) {
      ids[place] = e;
      found[place] = magnitude(p[e]);
    }
    count += count_bits(all);
  }
  sync_warp();
  float of_found = 0.0f;
  for (u32 i = 0; i < top_k; i++) of_found += found[i];
  for (u32 i = lane; i < top_k; i += 32) weights[i] = is_normalized ? found[i] / of_found : found[i];
}
EXPORT(moe_route)

// The pairs of `experts` from id `start` on, by expert, then by token; a block per expert. ids and weights [tokens, places] →
// offsets [experts + 1], token and weight of each pair, and of each token its choices [places] and how many there are.
KERNEL_OF(1024, moe_assign)
(u32 *offsets, u32 *pair_token, float *pair_weight, moe::Choice *choices, u32 *choices_of_token, const u32 *ids,
 const float *weights, u32 tokens, u32 places, u32 start, u32 experts) {
  using namespace moe;
  SHARED u32 of_warps[32];
  u32 expert = block_x(), lane = thread() % 32, warp = thread() / 32;
  u32 before = 0, own = 0;
  for (u32 token = thread(); token < tokens; token += threads()) {
    u32 count = 0;
    for (u32 i = 0; i < places; i++) {
      // Ids below the range become very large ones.
      u32 id = ids[u64(token) * places + i], in_range = id == NOBODY ? NOBODY : id - start;
      before += in_range < expert;
      own += in_range == expert;
      count += in_range < experts;
    }
    if (expert == 0) choices_of_token[token] = count;
  }
  u32 pair = sum_of_block(before, of_warps);
  own = sum_of_block(own, of_warps);
  if (thread() == 0) {
    offsets[expert] = pair;
    if (expert == experts - 1) offsets[experts] = pair + own;
  }

  // As many tokens at a time as there are threads, so that lower ones come first.
  for (u32 first = 0; first < tokens; first += threads()) {
    u32 token = first + thread(), of_token = 0, place = NOBODY;
    for (u32 i = 0; token < tokens && i < places; i++) {
      u32 id = ids[u64(token) * places + i];
      if (id == NOBODY || id - start > expert) continue;
      if (id - start == expert) place = i;
      else of_token++;
    }
    bool is = place != NOBODY;
    u32 all = ballot(is);
    if (lane == 0) of_warps[warp] = count_bits(all);
    sync_block();
    u32 here = pair + count_bits(all & ((1u << lane) - 1));
    for (u32 i = 0; i < threads() / 32; i++) {
      if (i < warp) here += of_warps[i];
      pair += of_warps[i];
    }
    sync_block();
    if (!is) continue;
    pair_token[here] = token;
    pair_weight[here] = weights[u64(token) * places + place];
    choices[u64(token) * places + of_token] = Choice{expert, here};
  }
}
EXPORT(moe_assign)

// counts[expert] += how many of `places` ids it is; a block per expert.
KERNEL_OF(256, moe_count)(float *counts, const u32 *ids, u32 places) {
  SHARED u32 of_warps[32];
  u32 own = 0;
  for (u32 place = thread(); place < places; place += threads()) own += ids[place] == block_x();
  own = moe::sum_of_block(own, of_warps);
  if (thread() == 0) counts[block_x()] += float(own);
}
EXPORT(moe_count)

// out [nodes, tokens, n]: the program over `experts` items, of which those that a token did not choose add nothing. A block
// per token and 256 columns, and those that follow at `stride`. y [pairs, n]; heights [experts] of the program's stack after
// each item.
KERNEL_OF(256, moe_combine)
(float *out, const float *y, const float *pair_weight, const moe::Choice *choices, const u32 *choices_of_token,
 const u32 *heights, u32 tokens, u32 places, u32 experts, u32 nodes, u32 n, u32 stride) {
  using namespace moe;
  // Sums that wait to be merged (crates/cuda/src/moe.rs); loads that are on their way together.
  constexpr u32 STACK = 34, AT_ONCE = 8;
  // Of each choice its step, and the height to which the stack falls before the next one.
  DYNAMIC_SHARED(Step, steps);
  SHARED u32 slots[STACK], left;
  u32 token = block_x(), count = choices_of_token[token];
  u32 *falls = reinterpret_cast<u32 *>(steps + places);
  choices += u64(token) * places;
  for (u32 i = thread(); i < count; i += threads()) {
    u32 end = i + 1 < count ? choices[i + 1].expert : experts, fall = NOBODY;
    for (u32 e = choices[i].expert; e < end; e++) fall = heights[e] < fall ? heights[e] : fall;
    falls[i] = fall;
  }
  sync_block();
  // What the program does with the choices alone: of the stack, the slots in which some choice is. When it falls to a height,
  // all from the last slot on become one.
  if (thread() == 0) {
    u32 height = 0;
    for (u32 i = 0; i < count; i++) {
      u32 expert = choices[i].expert, last = falls[i] - 1, merges = 0;
      slots[height++] = expert > 0 ? heights[expert - 1] : 0;
      for (; height > 1 && slots[height - 2] >= last; merges++) height--;
      if (slots[height - 1] > last) slots[height - 1] = last;
      steps[i] = Step{choices[i].pair, merges};
    }
    left = height;
  }
  sync_block();

  for (u32 col = block_y() * threads() + thread(); col < n; col += stride) {
    float stack[STACK];
    u32 height = 0;
    for (u32 first = 0; first < count; first += AT_ONCE) {
      float parts[AT_ONCE];
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        if (first + i >= count) continue;
        u32 pair = steps[first + i].pair;
        parts[i] = pair_weight[pair] * y[u64(pair) * n + col];
      }
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        if (first + i >= count) continue;
        float sum = parts[i];
        for (u32 m = 0; m < steps[first + i].merges; m++) sum = stack[--height] + sum;
        stack[height++] = sum;
      }
    }
    u32 next = 0;
    for (u32 node = 0; node < nodes; node++) {
      bool is = next < left && slots[next] == node;
      out[(u64(node) * tokens + token) * n + col] = is ? stack[next] : -0.0f;
      next += is;
    }
  }
}
EXPORT(moe_combine)
