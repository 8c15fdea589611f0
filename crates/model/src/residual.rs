use tensor::{Device, Part};

use crate::norm::Norm;

/// The residual stream `x [t, hidden_size]`. What a block adds to it is added when the next block norms it, so that a device
/// can do both in one operation.
pub struct Residual<'a, D: Device> {
    x: D::Tensor,
    pending: Option<Pending<'a, D>>,
}

/// What a block gave, and the norm behind the block where the architecture has one.
struct Pending<'a, D: Device> {
    y: D::Tensor,
    post: Option<&'a Norm<D>>,
}

impl<'a, D: Device> Residual<'a, D> {
    /// A stream to which nothing is to be added yet.
    pub fn new(x: D::Tensor) -> Self {
        Residual { x, pending: None }
    }

    /// The stream, normed for the next block.
    pub fn normed(&mut self, dev: &D, norm: &Norm<D>) -> D::Tensor {
        match self.pending.take() {
            Some(Pending { y, post }) => dev
                .span(Part::Norm, || dev.add_norm(&mut self.x, &y, post.map(Norm::of_rows), norm.of_rows())),
            None => norm.forward(dev, &self.x),
        }
    }

    /// `x += y`, or `x += post(y)`.
    ///
    /// # Panics
    /// If the stream was not normed since the last time.
    pub fn add(&mut self, y: D::Tensor, post: Option<&'a Norm<D>>) {
        let before = self.pending.replace(Pending { y, post });
        assert!(before.is_none(), "a block reads the stream before it adds to it");
    }

    /// The stream with all that was added.
    pub fn into_sum(mut self, dev: &D) -> D::Tensor {
        if let Some(Pending { y, post }) = self.pending {
            dev.span(Part::Norm, || match post {
                Some(post) => dev.add(&mut self.x, &post.forward(dev, &y)),
                None => dev.add(&mut self.x, &y),
            });
        }
        self.x
    }
}
