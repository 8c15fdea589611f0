//! What the experts of a layer move between ranks.

use tensor::ReductionTree;

use crate::parallel::Layout;

/// Bytes that the experts of one layer move from rank to rank in a step, of all ranks together, with reductions that
/// scatter and then gather.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertBytes {
    /// If every expert is sliced: each chosen expert's output is reduced.
    pub sliced: u64,
    /// If ranks have whole experts and sums are reduced, which takes consecutive experts.
    pub whole_reduced: Option<u64>,
    /// If ranks have whole experts and tokens travel to them and back; for choices that are spread evenly.
    pub whole_exchanged: u64,
}

/// What each form of a layer's experts would move in a step of `tokens`; nothing if the layer has none.
pub fn expert_bytes(layout: &Layout, layer: usize, tokens: usize) -> Option<ExpertBytes> {
    let traffic = Traffic::new(layout, layer)?;
    let bytes = |per_token: f64| (per_token * tokens as f64).round() as u64;
    Some(ExpertBytes {
        sliced: bytes(traffic.sliced),
        whole_reduced: traffic.reduced.map(bytes),
        whole_exchanged: bytes(traffic.exchanged),
    })
}

/// What a rank could have sent in the time that one collective more takes to begin and to end.
const CALL_BYTES: f64 = 16384.0;

/// Bytes per token.
#[derive(Clone, Debug)]
pub(super) struct Traffic {
    ranks: f64,
    sliced: f64,
    reduced: Option<f64>,
    exchanged: f64,
    /// Collectives that an exchange takes more than a reduction.
    more_calls: f64,
}

impl Traffic {
    pub(super) fn new(layout: &Layout, layer: usize) -> Option<Self> {
        let (moe, split) = (layout.config.moe?, layout.split.experts.as_ref()?);
        let rank_of = split.placement.ranks_of(layer);
        if rank_of.is_empty() {
            return None;
        }
        let ranks = layout.ranks() as f64;
        // Of what is spread evenly, as much is not where it must go; and each row that all need goes to all others.
        let (away, gather) = ((ranks - 1.0) / ranks, ranks - 1.0);
        let nodes = |plan: collective::ReducePlan| plan.nodes_of_rank.iter().sum::<usize>() as f64;
        let sliced = moe.top_k as f64 * (nodes(split.sliced.reduce_plan()) * away + gather);
        let reduced = split.placement.reduction(layer).map(|ids| nodes(ids.reduce_plan()) * away);
        let rows = Rows::expected(rank_of, layout.ranks(), moe.top_k);
        let exchanged = (rows.sent + rows.returned) * away;
        let entries = moe.top_k as f64 * away * super::exchange::ENTRY as f64;
        // All rows are gathered before or behind the experts, but for an exchange of a stream that is split.
        let before = if layout.sequence_parallel { gather } else { 0.0 };
        let behind = gather - before;
        let bytes = |rows: f64| rows * (layout.config.hidden_size * size_of::<f32>()) as f64;
        Some(Traffic {
            ranks,
            sliced: bytes(before + sliced),
            reduced: reduced.map(|rows| bytes(gather + rows)),
            exchanged: bytes(behind + exchanged) + entries,
            more_calls: if layout.sequence_parallel { 1.0 } else { 3.0 },
        })
    }

    pub(super) fn exchange_is_cheaper(&self, tokens: usize) -> bool {
        let per_rank = |per_token: f64| per_token * tokens as f64 / self.ranks;
        let exchanged = per_rank(self.exchanged) + self.more_calls * CALL_BYTES;
        self.reduced.is_none_or(|reduced| exchanged < per_rank(reduced))
    }
}

/// Rows per token that are sent to ranks and that come back, a token's own rank included, if all choices are as likely.
pub(super) struct Rows {
    pub(super) sent: f64,
    pub(super) returned: f64,
}

impl Rows {
    pub(super) fn expected(rank_of: &[usize], ranks: usize, top_k: usize) -> Self {
        let experts = rank_of.len();
        // How likely it is that a token chooses none of so many experts.
        let none = |of: usize| -> f64 {
            (0..top_k).map(|i| experts.saturating_sub(of + i) as f64 / (experts - i) as f64).product()
        };
        let tree = ReductionTree::over_ids(experts);
        let mut rows = Rows { sent: 0.0, returned: 0.0 };
        for rank in 0..ranks {
            let own = |node| {
                let leaves = tree.leaves_of(node);
                let own = rank_of[leaves.clone()].iter().filter(|of| **of == rank).count();
                (own, leaves.len() - own)
            };
            let (all, others) = own(0);
            rows.sent += 1.0 - none(all);
            // A run is all that was chosen under a node, if that is this rank's alone and under its parent it is not.
            rows.returned += none(others) - none(others + all);
            for (node, parent) in tree.nodes_and_parents() {
                let ((here, foreign), (_, above)) = (own(node), own(parent));
                let alone = none(foreign) - none(foreign + here);
                rows.returned += alone - (none(above) - none(above + here));
            }
        }
        rows
    }
}
