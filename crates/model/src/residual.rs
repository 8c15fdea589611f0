use collective::ReducePlan;
use tensor::{Device, Part};

use crate::ModelError;
use crate::norm::Norm;
use crate::parallel::Rank;

/// The residual stream `x [t, hidden_size]`. What a block adds to it is added when the next block norms it, so that a device
/// can do both in one operation.
pub struct Residual<'a, D: Device> {
    x: D::Tensor,
    pending: Option<Pending<'a, D>>,
}

/// What a block gives.
pub enum Addend<'a, D: Device> {
    /// Its result.
    Sum(D::Tensor),
    /// This rank's nodes of the tree whose sum it is, where a group sums, adds and norms in one operation.
    Nodes(D::Tensor, &'a ReducePlan),
}

/// What a block gave, and the norm behind the block where the architecture has one.
struct Pending<'a, D: Device> {
    y: Addend<'a, D>,
    post: Option<&'a Norm<D>>,
}

impl<'a, D: Device> Residual<'a, D> {
    /// A stream to which nothing is to be added yet.
    pub fn new(x: D::Tensor) -> Self {
        Residual { x, pending: None }
    }

    /// The stream, normed for the next block.
    pub fn normed(&mut self, rank: Rank<D>, norm: &Norm<D>) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let Some(Pending { y, post }) = self.pending.take() else { return Ok(norm.forward(dev, &self.x)) };
        let post = post.map(Norm::of_rows);
        match y {
            Addend::Sum(y) => {
                Ok(dev.span(Part::Norm, || dev.add_norm(&mut self.x, &y, post, norm.of_rows())))
            }
            Addend::Nodes(nodes, plan) => {
                rank.reduce_add_norm(nodes, plan, &mut self.x, post, norm.of_rows())
            }
        }
    }

    /// `x += y`, or `x += post(y)`.
    ///
    /// # Panics
    /// If the stream was not normed since the last time.
    pub fn add(&mut self, y: Addend<'a, D>, post: Option<&'a Norm<D>>) {
        let before = self.pending.replace(Pending { y, post });
        assert!(before.is_none(), "a block reads the stream before it adds to it");
    }

    /// The stream with all that was added.
    pub fn into_sum(mut self, rank: Rank<D>) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        if let Some(Pending { y, post }) = self.pending {
            let y = match y {
                Addend::Sum(y) => y,
                Addend::Nodes(nodes, plan) => rank.reduce(nodes, dev.shape(&self.x)[0], plan)?,
            };
            dev.span(Part::Norm, || match post {
                Some(post) => dev.add(&mut self.x, &post.forward(dev, &y)),
                None => dev.add(&mut self.x, &y),
            });
        }
        Ok(self.x)
    }
}
