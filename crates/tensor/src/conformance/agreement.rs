use super::{Case, Found, check};
use crate::{AttentionSpec, DType, Device, KvDType, Reference};

/// How a device's attention over caches of a type agrees with the reference's. Whatever it is, a device has to agree with
/// itself bit by bit: chunks of a prompt with the whole, several owners with one, copies with originals.
#[derive(Clone, Copy, Debug)]
pub enum Agreement {
    /// Bit by bit.
    Bits,
    /// The device multiplies queries and weights in a type of fewer bits.
    Near {
        /// The type. Queries are rounded to it before they are given to either, so that only weights differ.
        multiplies: DType,
        /// By how much a number may differ, relative to the largest number of its row.
        tolerance: f32,
    },
}

/// The agreement for each type of cache.
pub type Agreements<'a> = &'a dyn Fn(KvDType) -> Agreement;

pub(super) const ALL_BITS: Agreements<'_> = &|_| Agreement::Bits;

impl Agreement {
    pub(super) fn check(self, dev: &impl Device, case: &impl Case) {
        match self {
            Agreement::Bits => check(dev, case),
            Agreement::Near { tolerance, .. } => {
                let (found, expected) = (case.run(dev), case.run(&Reference));
                assert_eq!(found.len(), expected.len(), "{}: {case:?}: number of results", dev.name());
                for (found, expected) in found.iter().zip(&expected) {
                    let op = found.op;
                    assert_eq!(
                        found.shape,
                        expected.shape,
                        "{}: {op}: shape of the result of {case:?}",
                        dev.name()
                    );
                    if let Some(differs) = difference(found, expected, tolerance) {
                        panic!("{}: {op}: {differs}, in {case:?}", dev.name());
                    }
                }
            }
        }
    }

    /// Rows of `[q heads | k heads | v heads]` whose queries lose nothing.
    pub(super) fn round_queries(self, mut rows: Vec<f32>, spec: &AttentionSpec) -> Vec<f32> {
        if let Agreement::Near { multiplies, .. } = self {
            let queries = spec.num_heads * spec.head_dim;
            for row in rows.chunks_mut(spec.qkv_cols().max(1)) {
                row[..queries].iter_mut().for_each(|x| *x = multiplies.round(*x));
            }
        }
        rows
    }
}

/// The first element that is too far off. What is not finite is as near as anything else that is not.
fn difference(found: &Found, expected: &Found, tolerance: f32) -> Option<String> {
    let cols = found.shape[1].max(1);
    found.data.chunks(cols).zip(expected.data.chunks(cols)).enumerate().find_map(
        |(row, (found, expected))| {
            let finite = expected.iter().filter(|x| x.is_finite());
            let allowed = tolerance * finite.fold(0f32, |most, x| most.max(x.abs()));
            let is_off = |(a, b): (&f32, &f32)| match a.is_finite() && b.is_finite() {
                true => (a - b).abs() > allowed,
                false => a.is_finite() != b.is_finite(),
            };
            let col = found.iter().zip(expected).position(is_off)?;
            let [a, b] = [found[col], expected[col]];
            Some(format!("element [{row}, {col}] is {a:e}, should be {b:e} or off by {allowed:e}"))
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_may_be_off_by_a_part_of_the_largest_of_its_row() {
        let found = |data: [f32; 4]| Found { op: "attention", shape: [2, 2], data: data.into() };
        let expected = found([8.0, 1.0, 1.0, f32::NAN]);
        let off = |data| difference(&found(data), &expected, 0.125);
        assert_eq!(off([8.9, 0.1, 1.1, f32::INFINITY]), None);
        let message = "element [1, 0] is 1.25e0, should be 1e0 or off by 1.25e-1";
        assert_eq!(off([8.0, 1.0, 1.25, f32::NAN]).as_deref(), Some(message));
        assert!(off([8.0, f32::NAN, 1.0, f32::NAN]).is_some());
        assert!(off([8.0, 1.0, 1.0, 1.0]).is_some());
    }

    #[test]
    fn queries_are_rounded_and_nothing_else() {
        let spec = crate::AttentionSpec {
            num_heads: 1,
            num_kv_heads: 1,
            group: 1,
            first_in_group: 0,
            head_dim: 1,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        let near = Agreement::Near { multiplies: DType::BF16, tolerance: 0.1 };
        let row = vec![1.001, 1.001, 1.001, 2.001, 1.0, 1.0];
        assert_eq!(near.round_queries(row.clone(), &spec), [1.0, 1.001, 1.001, 2.0, 1.0, 1.0]);
        assert_eq!(Agreement::Bits.round_queries(row.clone(), &spec), row);
    }
}
