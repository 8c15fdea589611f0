// Linear layers on tensor cores: y[node, t, n] = the program's nodes over Σ x[t, k] · w[n, k].
//
// Limited by the bytes of the weights for up to some 32 rows: each is read once, sixteen bytes per lane, in the order in which
// they lie, in loads of which a lane has eight under way. 85 % of what a copy reaches is to be had. Above that by the tensor cores.
//
// A warp has two panels of outputs and some of the items; items are dealt out to warps as a tree's leaves are to ranks: each
// merges what it has, what is left over is merged in shared memory. Of gate and up (`gate`: 1 + the activation) the two panels
// are one of each, and the result is what they give together.
#ifndef LINEAR_CUH
#define LINEAR_CUH

// How a program is dealt out to the warps of a block (crates/cuda/src/linear/deal.rs).
// Sums of a warp that wait for others at a time, and of a block: enough for 256 heads (plan.rs asks for no more).
constexpr u32 WARPS = 8, PANELS = 2, WAITING = 5, NODES = 16, AT_ONCE = 4;
struct Deal {
  // Warps that share items; nodes that they leave together.
  u32 sharing, left;
  // The first item of each of them and the end, and the first node that each leaves.
  u32 first_item[WARPS + 1], first_left[WARPS];
};

#define EACH(p, g, i)                                                                                                  \
  UNROLL for (u32 p = 0; p < PANELS; p++) UNROLL for (u32 g = 0; g < GROUPS; g++) UNROLL for (u32 i = 0; i < 4; i++)

// A block's rows of one weight, at most 8 · GROUPS from `first_row` on, and 32 outputs for each team of warps.
template <class Format, u32 GROUPS>
DEVICE void linear(float *y, const Operands &of, Rows rows, u32 first_row, u32 n, const Deal *deal, const Item *items,
                   const u32 *merges, const float *bias, u32 gate) {
  constexpr u32 OUTPUTS = 16 * PANELS, ROWS = 8 * GROUPS, PLACES = OUTPUTS * ROWS;
  DYNAMIC_SHARED(float, left_over);
  u32 lane = thread() % 32, warp = thread() / 32, sharing = deal->sharing, part = warp % sharing, team = warp / sharing;
  u32 teams = threads() / 32 / sharing, nodes_left = deal->left, panels = (n + 15) / 16;
  // A team beyond the last panel does what the last one does, and tells nobody.
  u32 panel[PANELS];
  UNROLL for (u32 p = 0; p < PANELS; p++) {
    u32 own = block_x() * teams + team, wanted = gate ? own + p * (panels / 2) : own * PANELS + p;
    panel[p] = wanted < panels ? wanted : panels - 1;
  }

  float stack[WAITING][PANELS][GROUPS][4];
  u32 height = 0, slot = team * nodes_left + deal->first_left[part];
  auto left_of = [&](u32 panel, u32 tile) {
    return Format::template left<Streamed>(weight_tile<Format>(of, panels, panel, tile));
  };
  auto right_of = [&](u32 group, u32 tile) {
    u64 place = u64(rows.first_group + first_row / 8 + group) * of.tiles + tile;
    return Format::right(Tile{of.inputs + place * Format::RIGHT.elements, of.input_scales + place * Format::RIGHT.scales,
                              of.input_sums + place * Format::RIGHT.more});
  };
  for (u32 at = deal->first_item[part]; at < deal->first_item[part + 1]; at++) {
    Item item = items[at];
    float d[PANELS][GROUPS][4] = {};
    for (u32 tile = item.first; tile < item.end; tile += AT_ONCE) {
      typename Format::Left left[AT_ONCE][PANELS];
      typename Format::Right right[AT_ONCE];
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        if (tile + i >= item.end) break;
        UNROLL for (u32 p = 0; p < PANELS; p++) left[i][p] = left_of(panel[p], tile + i);
        if (GROUPS == 1) right[i] = right_of(0, tile + i);
      }
      sync_warp();
      UNROLL for (u32 i = 0; i < AT_ONCE; i++) {
        if (tile + i >= item.end) break;
        UNROLL for (u32 g = 0; g < GROUPS; g++) {
          if (first_row + g * 8 >= rows.count) break;
          if (GROUPS > 1) right[i] = right_of(g, tile + i);
          UNROLL for (u32 p = 0; p < PANELS; p++) Format::multiply(d[p][g], left[i][p], right[i]);
        }
      }
    }
    for (u32 m = 0; m < item.merges; m++) {
      height--;
      EACH(p, g, i) d[p][g][i] = stack[height][p][g][i] + d[p][g][i];
    }
    if (item.leaves) {
      EACH(p, g, i) {
        u32 output = p * 16 + lane / 4 + i / 2 * 8, row = g * 8 + lane_pair() + i % 2;
        left_over[slot * PLACES + row * OUTPUTS + output] = d[p][g][i];
      }
      slot++;
    } else {
      EACH(p, g, i) stack[height][p][g][i] = d[p][g][i];
      height++;
    }
  }
  sync_block();

  auto merged = [&](float (&sums)[NODES], u32 team, u32 place) {
    u32 count = 0;
    for (u32 i = 0; i < nodes_left; i++) {
      float sum = left_over[(team * nodes_left + i) * PLACES + place];
      for (u32 m = 0; m < merges[i]; m++) sum = sums[--count] + sum;
      sums[count++] = sum;
    }
    return count;
  };
  for (u32 at = thread(); at < teams * PLACES; at += threads()) {
    u32 team = at / PLACES, place = at % PLACES, row = first_row + place / OUTPUTS, inner = place % OUTPUTS;
    u32 output = (block_x() * teams + team) * (gate ? 16 : OUTPUTS) + inner, outputs = gate ? n / 2 : n;
    if (row >= rows.count || output >= outputs || (gate && inner >= 16)) continue;
    float sums[NODES];
    u32 count = merged(sums, team, place);
    float *to = y + u64(rows.first + row) * outputs + output;
    if (gate) {
      float gated = bias ? sums[0] + bias[output] : sums[0];
      merged(sums, team, place + 16);
      to[0] = activation(gate - 1, gated) * (bias ? sums[0] + bias[outputs + output] : sums[0]);
      continue;
    }
    for (u32 node = 0; node < count; node++) to[u64(node) * rows.all * n] = bias ? sums[node] + bias[output] : sums[node];
  }
}

#undef EACH

// Of one weight, and of those of experts: rows of expert e, of which there are offsets[e + 1] - offsets[e], begin at offsets[e]
// in the result, at group group_first[e] of the activations, and at block_first[e] of the grid's second axis.
#define LINEAR_OF(name, format, groups)                                                                                \
  KERNEL_OF(256, name)                                                                                                 \
  (float *y, const u8 *weights, const u8 *weight_scales, const u8 *weight_zeros, const u8 *inputs,                     \
   const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 rows, u32 n, const Deal *deal, const Item *items,      \
   const u32 *merges, const float *bias, u32 gate) {                                                                   \
    Operands of{weights, weight_scales, weight_zeros, inputs, input_scales, input_sums, tiles};                        \
    Rows all{rows, 0, rows, 0};                                                                                        \
    linear<format, groups>(y, of, all, block_y() * 8 * groups, n, deal, items, merges, bias, gate);                    \
  }                                                                                                                    \
  EXPORT(name)                                                                                                         \
  KERNEL_OF(256, name##_experts)                                                                                       \
  (float *y, const Expert *experts, const u32 *offsets, const u32 *group_first, const u32 *block_first,                \
   u32 num_experts, const u8 *inputs, const u8 *input_scales, const u8 *input_sums, u32 tiles, u32 pairs, u32 n,       \
   const Deal *deal, const Item *items, const u32 *merges, u32 gate) {                                                 \
    if (block_y() >= block_first[num_experts]) return;                                                                 \
    u32 e = expert_of(block_y(), block_first, num_experts);                                                            \
    Rows rows{offsets[e + 1] - offsets[e], offsets[e], pairs, group_first[e]};                                         \
    u32 first_row = (block_y() - block_first[e]) * 8 * groups;                                                         \
    Operands of{experts[e].elements, experts[e].scales, experts[e].zeros, inputs, input_scales, input_sums, tiles};    \
    linear<format, groups>(y, of, rows, first_row, n, deal, items, merges, nullptr, gate);                             \
  }                                                                                                                    \
  EXPORT(name##_experts)

// Blocks of up to 8, 16 and 32 rows.
#define LINEAR(name, ...)                                                                                              \
  typedef __VA_ARGS__ name##_format;                                                                                   \
  LINEAR_OF(name##_8, name##_format, 1)                                                                                \
  LINEAR_OF(name##_16, name##_format, 2)                                                                               \
  LINEAR_OF(name##_32, name##_format, 4)

#endif
