//! Functions of one or two elements, and copies of rows and columns.

use tensor::lanes::Lanes;
use tensor::{Activation, math};

use super::{Exec, grain};
use crate::pack::CpuWeight;
use crate::simd::{F32x16, Kernel, LANES};

/// A function of two elements.
trait Function: Copy + Sync {
    /// How many plain additions it costs, roughly.
    const COST: usize;
    fn apply<L: Lanes>(self, x: L, y: L) -> L;
}

macro_rules! function {
    ($name:ident $(($field:ty))?, $cost:literal, |$self:ident, $x:ident, $y:ident| $body:expr) => {
        #[derive(Clone, Copy)]
        struct $name $(($field))?;
        impl Function for $name {
            const COST: usize = $cost;
            #[inline(always)]
            fn apply<L: Lanes>($self, $x: L, $y: L) -> L {
                $body
            }
        }
    };
}

function!(Silu, 16, |self, x, _y| math::silu(x));
function!(GeluTanh, 24, |self, x, _y| math::gelu_tanh(x));
function!(GeluErf, 24, |self, x, _y| math::gelu_erf(x));
function!(Relu, 1, |self, x, _y| math::relu(x));
function!(Add, 1, |self, x, y| x.add(y));
function!(Scale(f32), 1, |self, x, _y| x.mul(L::splat(self.0)));
function!(SoftCap(f32), 24, |self, x, _y| soft_cap(x, self.0));

/// `cap · tanh(x / cap)`.
#[inline(always)]
pub(crate) fn soft_cap<L: Lanes>(x: L, cap: f32) -> L {
    L::splat(cap).mul(math::tanh(x.div(L::splat(cap))))
}

/// A function, then a product with a second element.
#[derive(Clone, Copy)]
struct Gate<F>(F);
impl<F: Function> Function for Gate<F> {
    const COST: usize = F::COST + 1;
    #[inline(always)]
    fn apply<L: Lanes>(self, x: L, y: L) -> L {
        self.0.apply(x, y).mul(y)
    }
}

/// `x = f(x, y)`; `y` has the length of `x`, or may be `x`'s equal where `f` reads one element only.
struct InPlace<'a, F> {
    f: F,
    x: &'a mut [f32],
    y: Option<&'a [f32]>,
}

impl<F: Function> Kernel for InPlace<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let f = self.f;
        let (x, x_tail) = self.x.as_chunks_mut::<LANES>();
        if let Some(y) = self.y {
            let (y, y_tail) = y.as_chunks::<LANES>();
            for (x, y) in x.iter_mut().zip(y) {
                f.apply(V::load(x), V::load(y)).store(x);
            }
            for (x, y) in x_tail.iter_mut().zip(y_tail) {
                *x = f.apply(*x, *y);
            }
        } else {
            for x in x.iter_mut() {
                let v = V::load(x);
                f.apply(v, v).store(x);
            }
            for x in x_tail {
                *x = f.apply(*x, *x);
            }
        }
    }
}

/// `x = f(x)` over a whole matrix.
fn map(exec: &Exec, x: &mut [f32], f: impl Function) {
    let isa = exec.isa;
    exec.pool.split_mut(x, LANES, grain(LANES * cost(f)), |_, x| isa.run(InPlace { f, x, y: None }));
}

fn cost<F: Function>(_: F) -> usize {
    F::COST
}

/// Runs `$go` with the function of an activation.
macro_rules! with_activation {
    ($activation:expr, $f:ident => $go:expr) => {
        match $activation {
            Activation::Silu => {
                let $f = Silu;
                $go
            }
            Activation::GeluTanh => {
                let $f = GeluTanh;
                $go
            }
            Activation::GeluErf => {
                let $f = GeluErf;
                $go
            }
            Activation::Relu => {
                let $f = Relu;
                $go
            }
        }
    };
}

/// `x = activation(x)`.
pub(crate) fn activate(exec: &Exec, x: &mut [f32], activation: Activation) {
    with_activation!(activation, f => map(exec, x, f));
}

/// `x = x · by`.
pub(crate) fn scale(exec: &Exec, x: &mut [f32], by: f32) {
    map(exec, x, Scale(by));
}

/// `x = cap · tanh(x / cap)`.
pub(crate) fn softcap(exec: &Exec, x: &mut [f32], cap: f32) {
    map(exec, x, SoftCap(cap));
}

/// `x = x + y`.
pub(crate) fn add(exec: &Exec, x: &mut [f32], y: &[f32]) {
    let isa = exec.isa;
    exec.pool.split_mut(x, LANES, grain(LANES), |first, x| {
        let y = Some(&y[first * LANES..][..x.len()]);
        isa.run(InPlace { f: Add, x, y });
    });
}

/// Adds `bias` to every row of `x`.
pub(crate) fn add_bias(exec: &Exec, x: &mut [f32], bias: &[f32]) {
    let isa = exec.isa;
    exec.pool.split_mut(x, bias.len(), grain(bias.len()), |_, rows| {
        for x in rows.chunks_exact_mut(bias.len()) {
            isa.run(InPlace { f: Add, x, y: Some(bias) });
        }
    });
}

/// `out = f(gate, up)`, all of the same length.
struct Gated<'a, F> {
    f: F,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl<F: Function> Kernel for Gated<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let f = self.f;
        let (gate, gate_tail) = self.gate.as_chunks::<LANES>();
        let (up, up_tail) = self.up.as_chunks::<LANES>();
        let (out, out_tail) = self.out.as_chunks_mut::<LANES>();
        for ((gate, up), out) in gate.iter().zip(up).zip(out) {
            f.apply(V::load(gate), V::load(up)).store(out);
        }
        for ((gate, up), out) in gate_tail.iter().zip(up_tail).zip(out_tail) {
            *out = f.apply(*gate, *up);
        }
    }
}

/// `out [t, f] = activation(x[t, i]) · x[t, f + i]`, with `x [t, 2 f]`, in one pass that threads share.
pub(crate) fn gated(exec: &Exec, x: &[f32], width: usize, activation: Activation, out: &mut [f32]) {
    let isa = exec.isa;
    with_activation!(activation, f => {
        let f = Gate(f);
        exec.pool.split_mut(out, LANES, grain(LANES * cost(f)), |first, mut out| {
            // A thread's part may begin and end inside a row.
            let mut at = first * LANES;
            while !out.is_empty() {
                let (row, col) = (at / width, at % width);
                let len = out.len().min(width - col);
                let (part, rest) = out.split_at_mut(len);
                let row = &x[row * 2 * width..][..2 * width];
                let (gate, up) = (&row[col..][..len], &row[width + col..][..len]);
                isa.run(Gated { f, gate, up, out: part });
                (out, at) = (rest, at + len);
            }
        });
    });
}

/// Rows of a matrix.
pub(crate) fn gather_rows(exec: &Exec, x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    exec.pool.split_mut(out, cols, grain(cols), |first, out| {
        for (out, &row) in out.chunks_exact_mut(cols).zip(&rows[first..]) {
            out.copy_from_slice(&x[row as usize * cols..][..cols]);
        }
    });
}

/// Columns `first..` of a matrix, as many as `out` has.
pub(crate) fn gather_cols(
    exec: &Exec,
    x: &[f32],
    cols: usize,
    first_col: usize,
    out_cols: usize,
    out: &mut [f32],
) {
    exec.pool.split_mut(out, out_cols, grain(out_cols), |first, out| {
        for (row, out) in out.chunks_exact_mut(out_cols).enumerate() {
            out.copy_from_slice(&x[(first + row) * cols + first_col..][..out_cols]);
        }
    });
}

/// Parts of rows put side by side: `parts` lie one under the other, `rows` of `cols` each; `out [rows, columns.len()]`.
pub(crate) fn regroup(
    exec: &Exec,
    parts: &[f32],
    [rows, cols]: [usize; 2],
    columns: &[(u32, u32)],
    out: &mut [f32],
) {
    exec.pool.split_mut(out, columns.len(), grain(2 * columns.len()), |first, out| {
        for (row, out) in out.chunks_exact_mut(columns.len()).enumerate() {
            for (out, &(part, col)) in out.iter_mut().zip(columns) {
                *out = parts[(part as usize * rows + first + row) * cols + col as usize];
            }
        }
    });
}

/// Rows of a packed weight, widened.
pub(crate) fn embed(exec: &Exec, w: &CpuWeight, rows: &[u32], out: &mut [f32]) {
    exec.pool.split_mut(out, w.k, grain(8 * w.k), |first, out| {
        for (out, &row) in out.chunks_exact_mut(w.k).zip(&rows[first..]) {
            w.read_row(row as usize, out);
        }
    });
}
