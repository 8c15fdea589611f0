//! How ranks find out whether the library connects their GPUs: whatever one of them can't do, all hear of it, and none is held up.

use std::sync::Arc;
use std::time::Duration;

use collective::{CollectiveError, Group};

use super::api::{ID_BYTES, Nccl};
use super::communicator::Communicator;
use crate::driver::Fault;
use crate::ranks::{Refusal, agreed, lets_kernels_wait};
use crate::tensor::Queue;

/// A communicator of all ranks, or why there is none, the same on all of them.
///
/// # Errors
/// A rank is missing or has failed.
pub(super) fn communicator(
    queue: &Queue,
    group: &dyn Group,
    deadline: Duration,
) -> Result<Result<Communicator, Refusal>, CollectiveError> {
    let driver = &queue.0.driver;
    let found = lets_kernels_wait(&**driver).and_then(|()| Nccl::find());
    let found = found.and_then(|nccl| driver.bind().map(|()| nccl));
    let own = found.as_ref().map_err(Clone::clone).and_then(|nccl| {
        // Whose id it is, all ranks get.
        let id = if group.rank() == 0 { nccl.unique_id()?.to_vec() } else { Vec::new() };
        let (major, minor, patch) = nccl.version;
        Ok([major, minor, patch].into_iter().flat_map(u32::to_le_bytes).chain(id).collect())
    });
    let joined = match (agreed(group, own)?.and_then(|all| id_of(&all)), found) {
        (Ok(id), Ok(nccl)) => join(nccl, group, id, deadline),
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(_), Err(_)) => unreachable!("all ranks said that they have it"),
    };
    let own = joined.as_ref().map(|_| Vec::new()).map_err(Clone::clone);
    let refused = |Fault(why)| Refusal { rank: group.rank(), why };
    Ok(agreed(group, own)?.and_then(|_| joined.map_err(refused)))
}

/// The id, if all ranks have the same version of the library.
fn id_of(all: &[Vec<u8>]) -> Result<[u8; ID_BYTES], Refusal> {
    let version = |said: &Vec<u8>| -> Vec<u32> {
        let words = said.chunks_exact(4).take(3);
        words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
    };
    let text = |said: &Vec<u8>| version(said).iter().map(u32::to_string).collect::<Vec<_>>().join(".");
    if let Some(other) = all.iter().position(|said| version(said) != version(&all[0])) {
        let why = format!(
            "it has NCCL {}, and the first rank of its group {}: they must have the same",
            text(&all[other]),
            text(&all[0])
        );
        return Err(Refusal { rank: other, why });
    }
    let id = all[0].get(12..).and_then(|id| id.try_into().ok());
    let why = "it says something else than an id: it is of another version";
    id.ok_or_else(|| Refusal { rank: 0, why: why.into() })
}

fn join(
    nccl: Arc<Nccl>,
    group: &dyn Group,
    id: [u8; ID_BYTES],
    deadline: Duration,
) -> Result<Communicator, Fault> {
    // Some of the group's patience is left to tell the others of a failure.
    let patience = deadline * 3 / 4;
    Communicator::new(nccl, id, (group.rank(), group.size()), group.watched(), deadline, patience)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(version: [u32; 3], id: &[u8]) -> Vec<u8> {
        version.into_iter().flat_map(u32::to_le_bytes).chain(id.iter().copied()).collect()
    }

    #[test]
    fn all_ranks_need_the_same_library() {
        let id = [7; ID_BYTES];
        let all = [said([2, 27, 3], &id), said([2, 27, 3], &[])];
        assert_eq!(id_of(&all), Ok(id));
        let all = [said([2, 27, 3], &id), said([2, 27, 3], &[]), said([2, 21, 5], &[])];
        let why = "it has NCCL 2.21.5, and the first rank of its group 2.27.3: they must have the same";
        assert_eq!(id_of(&all), Err(Refusal { rank: 2, why: why.into() }));
        assert!(id_of(&[said([2, 27, 3], &[1, 2])]).is_err());
    }
}
