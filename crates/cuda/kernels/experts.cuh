// Which blocks of a layer of experts have whose rows: only the GPU knows how many rows an expert has, so a grid is as large as the most
// blocks that so many rows can need (crates/cuda/src/linear/blocks.rs), and each looks up what it is.
#ifndef EXPERTS_CUH
#define EXPERTS_CUH

// The expert whose rows a block has, of those whose blocks begin at block_first[e]. Lanes look together, so that one of up to 1,024 takes
// two reads one after the other: in decode blocks do little more than wait for memory.
DEVICE u32 expert_of(u32 block, const u32 *block_first, u32 experts) {
  u32 first = 0;
  for (u32 count = experts; count > 1;) {
    u32 step = (count + 31) / 32, at = thread() % 32 * step;
    // Firsts ascend, so those that are not behind the block come before all others; the first of them is one.
    u32 before = (count_bits(ballot(at < count && block_first[first + at] <= block)) - 1) * step;
    first += before;
    count = count - before < step ? count - before : step;
  }
  return first;
}

#endif
