//! How ranks find out whether all of them can do something: whatever one of them can't, all hear of it.

use collective::{CollectiveError, Group};

use crate::driver::Fault;

/// Why ranks can't do something, and which one says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub rank: usize,
    pub why: String,
}

/// What all ranks say, or the first error, the same on all of them.
///
/// # Errors
/// A rank is missing or has failed.
pub(crate) fn agreed(
    group: &dyn Group,
    own: Result<Vec<u8>, Fault>,
) -> Result<Result<Vec<Vec<u8>>, Refusal>, CollectiveError> {
    let said = match own {
        Ok(said) => [&[1], &said[..]].concat(),
        Err(Fault(why)) => [&[0], why.as_bytes()].concat(),
    };
    let all = group.all_to_all_host(&vec![said; group.size()])?;
    let said = |(rank, said): (usize, Vec<u8>)| match said.split_first() {
        Some((1, said)) => Ok(said.to_vec()),
        Some((_, why)) => Err(Refusal { rank, why: String::from_utf8_lossy(why).into_owned() }),
        None => Err(Refusal { rank, why: "it says nothing: it is of another version".into() }),
    };
    Ok(all.into_iter().enumerate().map(said).collect())
}
