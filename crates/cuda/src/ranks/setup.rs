//! How ranks find out whether they can use each other's memory.
//!
//! Each tells the others who it is; where all can, all map what they need, try it with data, and agree. Whatever a rank can't do or
//! does not find as it should be, all ranks take another way: NCCL, or the host.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use collective::{CollectiveError, Group};

use super::crossover;
use super::peers::{FIRST_SLOT, MOST_BLOCKS, Peers};
use super::registry::{Listed, find, process};
use super::rings::{RING_BYTES, Rings};
use super::words::{MOST_RANKS, WORDS_BYTES, Words};
use crate::driver::{Fault, SharedMemory};
use crate::tensor::Queue;

/// Words of each pattern that is tried, where slots have room for as many.
const TRIED: usize = 1024;

/// What ranks need to know of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rank {
    /// Which process it is in; 0 if it can't share memory.
    process: u64,
    /// Which host that is on, as long as it runs; 0 if it can't be told.
    host: u64,
    /// Its GPU, in its process and on its host.
    ordinal: u64,
    gpu: u64,
    multiprocessors: u64,
    /// How many ranks have that GPU, of any group.
    sharing: u64,
    shared_bytes: u64,
    /// Under which numbers its memory is found in its process.
    region: u64,
    words: u64,
    /// How much there is for each slot, as f32 numbers.
    slot: u64,
    /// By what other processes open its region.
    handle: Vec<u8>,
}

impl Rank {
    /// All but the handle, which is told by itself.
    fn to_bytes(&self) -> Vec<u8> {
        let of_gpu = [self.gpu, self.multiprocessors, self.sharing, self.shared_bytes];
        let of_process = [self.process, self.host, self.ordinal, self.region, self.words, self.slot];
        of_gpu.into_iter().chain(of_process).flat_map(u64::to_le_bytes).collect()
    }

    /// Of a rank that says something else there is no way.
    fn from_bytes(bytes: &[u8]) -> Self {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = numbers.iter().map(|n| u64::from_le_bytes(*n)).collect();
        let [gpu, multiprocessors, sharing, shared_bytes, of_process @ ..] = &numbers[..] else {
            return Rank::default();
        };
        let [process, host, ordinal, region, words, slot] = *of_process else { return Rank::default() };
        if !rest.is_empty() {
            return Rank::default();
        }
        let (multiprocessors, sharing, shared_bytes) = (*multiprocessors, *sharing, *shared_bytes);
        let gpu = Rank { gpu: *gpu, multiprocessors, sharing, shared_bytes, ..Rank::default() };
        Rank { process, host, ordinal, region, words, slot, ..gpu }
    }
}

/// A number that processes of a running host have in common.
fn host() -> u64 {
    let id = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if id.is_empty() { 0 } else { xxhash_rust::xxh3::xxh3_64(&id) }
}

/// What a rank shares.
struct Own {
    region: Arc<dyn SharedMemory>,
    words: Arc<dyn SharedMemory>,
    ordinal: u32,
}

impl Own {
    fn new(queue: &Queue, slot_bytes: usize) -> Result<Self, Fault> {
        let driver = &queue.0.driver;
        let ordinal = driver.ordinal().ok_or_else(|| Fault("its GPU's memory can't be shared".into()))?;
        let region = driver.shared(FIRST_SLOT + 2 * slot_bytes + RING_BYTES)?;
        Ok(Own { region, words: driver.shared_of_host(WORDS_BYTES)?, ordinal })
    }
}

/// The ranks' memory, if all can use all of it. All ranks call it and get the same answer.
///
/// # Errors
/// A rank is missing or has failed.
pub(super) fn peers(
    group: &impl Group,
    queue: &Queue,
    slot_bytes: usize,
    timeout: Duration,
) -> Result<Option<Peers>, CollectiveError> {
    // Before anything is allocated, since another rank's kernels may wait as soon as that has all it needs.
    let own = if group.size() > MOST_RANKS { None } else { Own::new(queue, slot_bytes).ok() };
    let listed = own.as_ref().map(|own| [Listed::new(own.region.clone()), Listed::new(own.words.clone())]);
    let told = match (&own, &listed) {
        (Some(own), Some([region, words])) => Rank {
            process: process(),
            host: host(),
            ordinal: u64::from(own.ordinal),
            gpu: queue.0.driver.gpu_number(),
            multiprocessors: queue.0.driver.multiprocessors() as u64,
            sharing: queue.0.driver.ranks_on_gpu() as u64,
            shared_bytes: queue.0.driver.shared_bytes() as u64,
            region: region.0,
            words: words.0,
            slot: slot_bytes as u64 / 4,
            handle: Vec::new(),
        },
        _ => Rank::default(),
    };
    let mut ranks: Vec<Rank> =
        all_tell(group, &told.to_bytes())?.iter().map(|bytes| Rank::from_bytes(bytes)).collect();
    if ranks.iter().any(|of| of.process != ranks[0].process) {
        // What other processes were told of is never given back, so nobody is told in vain.
        let handle = own.as_ref().and_then(|own| own.region.handle()).unwrap_or_default();
        let handles = all_tell(group, &handle)?;
        ranks.iter_mut().zip(handles).for_each(|(of, handle)| of.handle = handle);
    }
    let found = found(queue, group.rank(), &ranks, timeout);
    // Until all have found it, it stays in the list.
    if !all_agree(group, found.is_ok())? {
        return Ok(None);
    }
    let Ok(peers) = found else { return Ok(None) };
    drop(listed);
    peers.tell_kernels(queue);
    let is_good = try_memory(group, queue, &peers)?;
    if !all_agree(group, is_good)? {
        return Ok(None);
    }
    if queue.0.driver.has_speed() {
        peers.one_shot_bytes.set(crossover::measured(group, queue, &peers)?);
        // Kernels that could not meet there would not meet later.
        if !all_agree(group, peers.report().is_none())? {
            return Ok(None);
        }
    }
    Ok(Some(peers))
}

/// Each rank's bytes, of every rank.
fn all_tell(group: &impl Group, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CollectiveError> {
    group.all_to_all_host(&vec![bytes.to_vec(); group.size()])
}

/// Whether all say yes.
fn all_agree(group: &impl Group, yes: bool) -> Result<bool, CollectiveError> {
    Ok(all_tell(group, &[u8::from(yes)])?.iter().all(|said| said == &[1]))
}

/// All that the ranks share, mapped.
fn found(queue: &Queue, rank: usize, ranks: &[Rank], timeout: Duration) -> Result<Peers, Fault> {
    let no = |why: &str| Fault(format!("rank {rank}: {why}"));
    let own = &ranks[rank];
    if ranks.iter().any(|of| of.process == 0 || of.slot != own.slot) {
        return Err(no("not all ranks have memory to share, and as much"));
    }
    let listed = |number: u64| find(number).ok_or_else(|| no("a rank's memory is not there any more"));
    let region = |of: &Rank| match of.process == own.process {
        true if of.ordinal == own.ordinal => listed(of.region),
        true => queue.0.driver.reach(of.ordinal as u32).and_then(|()| listed(of.region)),
        false if of.host != own.host || own.host == 0 => Err(no("a rank is on another host")),
        false => queue.0.driver.open_shared(&of.handle),
    };
    // What hosts of other processes have to say comes by their groups.
    let words = |of: &Rank| match of.process == own.process {
        true => listed(of.words).map(|words| Some(Words::new(words))),
        false => Ok(None),
    };
    // Kernels that wait for each other must all have room at the same time, those of other groups too, on the GPU that has the least
    // for each.
    let share = |of: &Rank| {
        let beside = ranks.iter().filter(|other| other.gpu == of.gpu).count();
        (of.multiprocessors as usize / beside.max(of.sharing as usize)).clamp(1, MOST_BLOCKS)
    };
    let blocks = ranks.iter().map(share).min().unwrap_or(1);
    Ok(Peers {
        rank,
        regions: ranks.iter().map(region).collect::<Result<_, _>>()?,
        words: ranks.iter().map(words).collect::<Result<_, Fault>>()?,
        blocks,
        shared_bytes: ranks.iter().map(|of| of.shared_bytes as usize).min().unwrap_or(0),
        slot: own.slot as usize,
        timeout,
        one_shot_bytes: Cell::new(crossover::by_rule(ranks.len())),
        calls: Cell::new(0),
        rings: Rings::new(ranks.len(), blocks),
    })
}

/// Whether this rank's GPU reads what the others have, and they have what it writes. Memory of other GPUs that can be reached but
/// gives other numbers is known to occur where the host's address translation is set up badly.
fn try_memory(group: &impl Group, queue: &Queue, peers: &Peers) -> Result<bool, CollectiveError> {
    let (rank, ranks) = (peers.rank, group.size());
    let tried = TRIED.min(2 * peers.slot / ranks);
    let pattern = |from: usize, to: usize| -> Vec<u32> {
        let seed = (from * MOST_RANKS + to) as u32 + 1;
        (0..tried as u32).map(|i| (i ^ seed << 16).wrapping_mul(0x9E37_79B9)).collect()
    };
    // Each writes to each, and reads what all wrote to all.
    (0..ranks).for_each(|to| peers.write_to(queue, to, rank * tried, &pattern(rank, to)));
    let written = queue.read_numbers(peers.own_slots(), 1).is_ok();
    if !all_agree(group, written)? {
        return Ok(false);
    }
    let expected = |of: usize| (0..ranks).flat_map(|from| pattern(from, of)).collect::<Vec<_>>();
    let is_good =
        |of: usize| peers.read_of(queue, of, ranks * tried).is_ok_and(|words| words == expected(of));
    Ok((0..ranks).all(is_good))
}
