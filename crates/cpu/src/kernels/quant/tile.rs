//! The micro-kernel: some rows times one panel, in registers.

use tensor::Groups;

use super::format::Format;
use super::rows::TileRows;
use crate::kernels::tile::{Steps, Target, write};
use crate::pack::Panel;
use crate::simd::LANES;
use crate::simd::int::{ProductKernel, Products};

/// One tile. Rows and panel must have all groups of the program, the stack room for R vectors of its deepest stack,
/// and the tile's part of the output must belong to this thread.
pub(super) struct Tile<'a, F: Format, const R: usize> {
    pub(super) x: TileRows,
    pub(super) panel: Panel,
    /// The panel that will be read next, if it is still to be fetched.
    pub(super) ahead: Option<Panel>,
    pub(super) groups: Groups,
    pub(super) steps: Steps<'a>,
    pub(super) stack: *mut [f32; LANES],
    pub(super) to: Target<'a>,
    pub(super) format: std::marker::PhantomData<F>,
}

impl<F: Format, const R: usize> ProductKernel for Tile<'_, F, R> {
    #[inline(always)]
    fn run<V: Products>(self) {
        let Tile { x, panel, ahead, groups, steps, stack, to, .. } = self;
        let mut depth = 0;
        let last = steps.inputs.len().wrapping_sub(1);
        for (item, (inputs, &merges)) in steps.inputs.iter().zip(steps.merges).enumerate() {
            let mut sums = [V::splat(0.0); R];
            // SAFETY: `Steps` keeps to the inputs, of which rows and panel have all groups.
            unsafe { F::add(&mut sums, x, panel, ahead, groups, groups.of(inputs.clone())) };
            for _ in 0..merges {
                depth -= 1;
                for r in 0..R {
                    // SAFETY: `Steps` says that so much was pushed, and there is room for it.
                    sums[r] = V::load(unsafe { &*stack.add(depth * R + r) }).add(sums[r]);
                }
            }
            if item < last {
                for r in 0..R {
                    // SAFETY: there is room for the deepest stack.
                    sums[r].store(unsafe { &mut *stack.add(depth * R + r) });
                }
                depth += 1;
                continue;
            }
            for node in 0..depth {
                let mut pushed = [[V::splat(0.0)]; R];
                for r in 0..R {
                    // SAFETY: this was pushed.
                    pushed[r] = [V::load(unsafe { &*stack.add(node * R + r) })];
                }
                // SAFETY: the target is writable for R rows of every node.
                unsafe { write(&pushed, node, to) };
            }
            // SAFETY: as above.
            unsafe { write(&sums.map(|sum| [sum]), depth, to) };
        }
    }
}
