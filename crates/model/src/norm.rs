use tensor::{Device, NormSpec, Part, RowNorm};

/// A norm of rows or of heads.
pub struct Norm<D: Device> {
    pub(crate) weight: D::Tensor,
    pub(crate) bias: Option<D::Tensor>,
    pub(crate) spec: NormSpec,
}

impl<D: Device> Norm<D> {
    /// `x [t, hidden_size]` → the same shape.
    pub fn forward(&self, dev: &D, x: &D::Tensor) -> D::Tensor {
        dev.span(Part::Norm, || dev.norm(x, &self.weight, self.bias.as_ref(), self.spec))
    }

    /// It, for an operation that does more besides.
    pub fn of_rows(&self) -> RowNorm<'_, D::Tensor> {
        RowNorm { weight: &self.weight, bias: self.bias.as_ref(), spec: self.spec }
    }
}
