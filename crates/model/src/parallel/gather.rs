//! Outputs that ranks computed in parts, put side by side again.

use tensor::{Device, Part};

use super::{Layout, Module, Rank};
use crate::ModelError;

/// Where each column of the whole is.
pub(super) struct ColumnGather {
    /// Columns of each rank's part, padding included.
    pub(super) width: usize,
    /// For each column of the whole, its rank and its column there.
    columns: Vec<(u32, u32)>,
}

impl ColumnGather {
    /// For modules whose rows are held in parts and lie one under the other on every rank.
    pub(super) fn new(layout: &Layout, modules: &[Module], layer: usize) -> Self {
        let mut at = vec![0u32; layout.ranks()];
        let mut columns = Vec::new();
        for &module in modules {
            let spec = layout.spec(module, layer);
            for (rank, at) in at.iter_mut().enumerate() {
                let rows = layout.held(spec.part, &spec.shape, rank).num_rows() as u32;
                columns.extend((*at..*at + rows).map(|c| (rank as u32, c)));
                *at += rows;
            }
        }
        ColumnGather { width: at.into_iter().max().unwrap_or(0) as usize, columns }
    }

    /// `part [t, width]` → `[t, n]`
    pub(super) fn run<D: Device>(&self, rank: Rank<D>, part: &D::Tensor) -> Result<D::Tensor, ModelError> {
        let rows = rank.dev.shape(part)[0];
        let parts = rank.calls(Part::Exchange).all_gather_alike(part)?;
        Ok(rank.dev.regroup(&parts, rows, &self.columns)?)
    }
}
