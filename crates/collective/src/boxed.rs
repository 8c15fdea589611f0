//! A box of a group is a group: whoever is generic over groups also takes one that was chosen at run time.

use std::time::Duration;

use tensor::{Device, RowNorm};

use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan};

impl<G: Group + ?Sized> Group for Box<G> {
    crate::delegated::delegated!(own => **own);

    fn stats(&self) -> CollectiveStats {
        (**self).stats()
    }
}

impl<D: Device, C: Collective<D> + ?Sized> Collective<D> for Box<C> {
    fn share(&self, dev: &D) -> Result<(), CollectiveError> {
        (**self).share(dev)
    }

    fn prepare(&self, dev: &D) -> Result<Option<String>, CollectiveError> {
        (**self).prepare(dev)
    }

    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).all_reduce(dev, partial, rows, plan)
    }

    fn fuses_norm(&self) -> bool {
        (**self).fuses_norm()
    }

    fn all_reduce_add_norm(
        &self,
        dev: &D,
        partial: D::Tensor,
        plan: &ReducePlan,
        x: &mut D::Tensor,
        post: Option<RowNorm<'_, D::Tensor>>,
        norm: RowNorm<'_, D::Tensor>,
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).all_reduce_add_norm(dev, partial, plan, x, post, norm)
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).reduce_scatter(dev, partial, rows_of_rank, plan)
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).all_gather(dev, part, rows_of_rank)
    }

    fn all_gather_alike(&self, dev: &D, part: &D::Tensor) -> Result<D::Tensor, CollectiveError> {
        (**self).all_gather_alike(dev, part)
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).all_to_all(dev, x, rows_to, rows_from)
    }

    fn sizes_by_numbers(&self) -> bool {
        (**self).sizes_by_numbers()
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        (**self).send(dev, x, to)
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        (**self).recv(dev, from, rows, cols, deadline)
    }
}
