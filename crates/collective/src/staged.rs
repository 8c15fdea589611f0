//! Groups of devices whose tensors are not host memory, over groups of those whose tensors are: what ranks exchange goes through
//! the host. Any device can use any transport that way, at the price of waiting for the device in each call.

use std::time::Duration;

use tensor::{Device, Reference, ReferenceTensor};

use crate::{Collective, CollectiveError, CollectiveStats, Group, ReducePlan};

/// A group over `C`, which sees matrices of the host.
#[derive(Debug)]
pub struct Staged<C>(pub C);

impl<C: Group> Staged<C> {
    /// A matrix, on the host. If the device can't give it, all ranks hear why.
    fn down<D: Device>(&self, dev: &D, x: &D::Tensor) -> Result<ReferenceTensor, CollectiveError> {
        let [rows, cols] = dev.shape(x);
        match dev.download(x) {
            Ok(data) => Ok(Reference.upload(&data, rows, cols)),
            Err(error) => {
                let message = error.to_string();
                self.0.fail(&message);
                Err(CollectiveError::Failed { rank: self.0.rank(), message })
            }
        }
    }
}

fn up<D: Device>(dev: &D, x: ReferenceTensor) -> D::Tensor {
    let [rows, cols] = Reference.shape(&x);
    dev.upload(&x.data, rows, cols)
}

impl<C: Group> Group for Staged<C> {
    crate::delegated::delegated!(own => own.0);

    fn stats(&self) -> CollectiveStats {
        self.0.stats()
    }
}

impl<D: Device, C: Collective<Reference>> Collective<D> for Staged<C> {
    fn all_reduce(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        Ok(up(dev, self.0.all_reduce(&Reference, self.down(dev, &partial)?, rows, plan)?))
    }

    fn reduce_scatter(
        &self,
        dev: &D,
        partial: D::Tensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> Result<D::Tensor, CollectiveError> {
        Ok(up(dev, self.0.reduce_scatter(&Reference, self.down(dev, &partial)?, rows_of_rank, plan)?))
    }

    fn all_gather(
        &self,
        dev: &D,
        part: &D::Tensor,
        rows_of_rank: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        Ok(up(dev, self.0.all_gather(&Reference, &self.down(dev, part)?, rows_of_rank)?))
    }

    fn all_to_all(
        &self,
        dev: &D,
        x: &D::Tensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> Result<D::Tensor, CollectiveError> {
        Ok(up(dev, self.0.all_to_all(&Reference, &self.down(dev, x)?, rows_to, rows_from)?))
    }

    fn send(&self, dev: &D, x: &D::Tensor, to: usize) -> Result<(), CollectiveError> {
        self.0.send(&Reference, &self.down(dev, x)?, to)
    }

    fn recv(
        &self,
        dev: &D,
        from: usize,
        rows: usize,
        cols: usize,
        deadline: Option<Duration>,
    ) -> Result<D::Tensor, CollectiveError> {
        // The sender may wait for something that this rank is to do first.
        dev.flush();
        Ok(up(dev, self.0.recv(&Reference, from, rows, cols, deadline)?))
    }
}
