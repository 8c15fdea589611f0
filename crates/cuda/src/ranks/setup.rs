//! How ranks find out whether they can use each other's memory.
//!
//! Each tells the others who it is; where all can, all map what they need ([`map`]), try it with data, and agree ([`tried`]). Whatever a
//! rank can't do or does not find as it should be, all ranks take another way: NCCL, or the host.
//!
//! The second part comes when ranks of all groups are through the first: while kernels of some wait for each other, a driver that others ask
//! for memory of the same GPU may wait for those kernels, and hold up the rank that they wait for.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use collective::{CollectiveError, Group};

use super::agreed::{Refusal, agreed};
use super::crossover;
use super::meeting;
use super::peers::{FIRST_SLOT, MOST_BLOCKS, Peers};
use super::registry::{Listed, find, process};
use super::rings::{RING_BYTES, Rings};
use super::turns::lets_kernels_wait;
use super::words::{MOST_RANKS, WORDS_BYTES, Words};
use crate::driver::{Fault, SharedMemory};
use crate::tensor::Queue;

/// Words of each pattern that is tried, where slots have room for as many.
const TRIED: usize = 1024;

/// What ranks need to know of each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rank {
    /// Which process it is in.
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
    /// Whether kernels of several processes run there at the same time.
    together: u64,
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
        let of_gpu = [self.gpu, self.multiprocessors, self.sharing, self.shared_bytes, self.together];
        let of_process = [self.process, self.host, self.ordinal, self.region, self.words, self.slot];
        of_gpu.into_iter().chain(of_process).flat_map(u64::to_le_bytes).collect()
    }

    /// `None`: it says something else.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.as_chunks::<8>();
        let numbers: Vec<u64> = numbers.iter().map(|n| u64::from_le_bytes(*n)).collect();
        let [gpu, multiprocessors, sharing, shared_bytes, together, of_process @ ..] = &numbers[..] else {
            return None;
        };
        let [process, host, ordinal, region, words, slot] = *of_process else { return None };
        let [gpu, multiprocessors, sharing] = [*gpu, *multiprocessors, *sharing];
        let (shared_bytes, together) = (*shared_bytes, *together);
        let of_gpu = Rank { gpu, multiprocessors, sharing, shared_bytes, together, ..Rank::default() };
        rest.is_empty().then_some(Rank { process, host, ordinal, region, words, slot, ..of_gpu })
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
        lets_kernels_wait(&**driver)?;
        let ordinal = driver.ordinal().ok_or_else(|| Fault("its GPU's memory can't be shared".into()))?;
        let region = driver.shared(FIRST_SLOT + 2 * slot_bytes + RING_BYTES)?;
        Ok(Own { region, words: driver.shared_of_host(WORDS_BYTES)?, ordinal })
    }
}

/// The ranks' memory, if all have mapped all of it, or why not. All ranks call it and get the same answer. `numbers`: what they are
/// called.
///
/// # Errors
/// A rank is missing or has failed.
pub(super) fn map(
    group: &impl Group,
    numbers: &[usize],
    queue: &Queue,
    slot_bytes: usize,
    timeout: Duration,
) -> Result<Result<Peers, Refusal>, CollectiveError> {
    let own = match group.size() {
        ..=MOST_RANKS => Own::new(queue, slot_bytes),
        ranks => Err(Fault(format!("{ranks} ranks are more than the {MOST_RANKS} that one group can have"))),
    };
    let told = own.map(|own| {
        let listed = [Listed::new(own.region.clone()), Listed::new(own.words.clone())];
        let driver = &queue.0.driver;
        let rank = Rank {
            process: process(),
            host: host(),
            ordinal: u64::from(own.ordinal),
            gpu: driver.gpu_number(),
            multiprocessors: driver.multiprocessors() as u64,
            sharing: driver.ranks_on_gpu() as u64,
            shared_bytes: driver.shared_bytes() as u64,
            together: u64::from(driver.runs_processes_together()),
            region: listed[0].0,
            words: listed[1].0,
            slot: slot_bytes as u64 / 4,
            handle: Vec::new(),
        };
        (own, listed, rank)
    });
    let said = told.as_ref().map(|(.., rank)| rank.to_bytes()).map_err(Clone::clone);
    let (all, own, listed) = match (agreed(group, said)?, told) {
        (Ok(all), Ok((own, listed, _))) => (all, own, listed),
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(_), Err(_)) => unreachable!("all ranks said that they have it"),
    };
    let mut ranks = Vec::new();
    for (rank, said) in all.iter().enumerate() {
        match Rank::from_bytes(said) {
            Some(of) => ranks.push(of),
            None => return Ok(Err(Refusal { rank, why: "it is of another version".into() })),
        }
    }
    if let Some(refusal) = by_turns(&ranks, numbers) {
        return Ok(Err(refusal));
    }
    let is_elsewhere =
        |of: &Rank| of.process != ranks[0].process && (of.host != ranks[0].host || of.host == 0);
    if let Some(rank) = ranks.iter().position(is_elsewhere) {
        let why = format!("rank {} is on another host", numbers[0]);
        return Ok(Err(Refusal { rank, why }));
    }
    if ranks.iter().any(|of| of.process != ranks[0].process) {
        // What other processes were told of is never given back, so they are told as late as possible.
        let handles = match agreed(group, own.region.handle())? {
            Ok(handles) => handles,
            Err(refusal) => return Ok(Err(refusal)),
        };
        ranks.iter_mut().zip(handles).for_each(|(of, handle)| of.handle = handle);
    }
    let found = found(queue, group.rank(), &ranks, numbers, timeout);
    // Until all have found it, it stays in the list.
    let peers = match (agreed(group, outcome(&found))?, found) {
        (Ok(_), Ok(peers)) => peers,
        (Err(refusal), _) => return Ok(Err(refusal)),
        (Ok(_), Err(_)) => unreachable!("all ranks said that they found it"),
    };
    drop(listed);
    Ok(Ok(peers))
}

/// The same, if data gets where it should and kernels of all ranks run at the same time; how fast is measured as well. All ranks call
/// it and get the same answer.
///
/// # Errors
/// A rank is missing or has failed.
pub(super) fn tried(
    group: &impl Group,
    numbers: &[usize],
    queue: &Queue,
    peers: Peers,
) -> Result<Result<Peers, Refusal>, CollectiveError> {
    if let Err(refusal) = try_memory(group, numbers, queue, &peers)? {
        return Ok(Err(refusal));
    }
    if let Err(refusal) = meeting::tried(group, numbers, queue, &peers)? {
        return Ok(Err(refusal));
    }
    if queue.0.driver.has_speed() {
        peers.one_shot_bytes.set(crossover::measured(group, queue, &peers)?);
        // Kernels that could not meet there would not meet later.
        let met = peers.report().map_or(Ok(Vec::new()), |report| Err(report.fault(numbers)));
        if let Err(refusal) = agreed(group, met)? {
            return Ok(Err(refusal));
        }
    }
    Ok(Ok(peers))
}

fn outcome<T>(found: &Result<T, Fault>) -> Result<Vec<u8>, Fault> {
    found.as_ref().map(|_| Vec::new()).map_err(Clone::clone)
}

/// The first rank whose kernels would wait for those of another process on its GPU, where the two run by turns, also if nobody said
/// that it has several: each would wait until its time is up, again and again.
fn by_turns(ranks: &[Rank], numbers: &[usize]) -> Option<Refusal> {
    let waits = |(at, of): (usize, &Rank)| {
        let is = |other: &Rank| other.gpu == of.gpu && other.host == of.host && other.process != of.process;
        let other = ranks[..at].iter().position(is).filter(|_| of.together == 0)?;
        let why = format!(
            "its process and rank {}'s have the same GPU, on which their kernels run by turns: NVIDIA's MPS would let them run \
             together",
            numbers[other]
        );
        Some(Refusal { rank: at, why })
    };
    ranks.iter().enumerate().find_map(waits)
}

/// All that the ranks share, mapped.
fn found(
    queue: &Queue,
    rank: usize,
    ranks: &[Rank],
    numbers: &[usize],
    timeout: Duration,
) -> Result<Peers, Fault> {
    let own = &ranks[rank];
    if let Some(other) = ranks.iter().position(|of| of.slot != own.slot) {
        return Err(Fault(format!("rank {} has other slots", numbers[other])));
    }
    let listed =
        |number: u64| find(number).ok_or_else(|| Fault("a rank's memory is not there any more".into()));
    let region = |of: &Rank| match of.process == own.process {
        true if of.ordinal == own.ordinal => listed(of.region),
        true => queue.0.driver.reach(of.ordinal as u32).and_then(|()| listed(of.region)),
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
fn try_memory(
    group: &impl Group,
    numbers: &[usize],
    queue: &Queue,
    peers: &Peers,
) -> Result<Result<(), Refusal>, CollectiveError> {
    let (rank, ranks) = (peers.rank, group.size());
    let tried = TRIED.min(2 * peers.slot / ranks);
    let pattern = |from: usize, to: usize| -> Vec<u32> {
        let seed = (from * MOST_RANKS + to) as u32 + 1;
        (0..tried as u32).map(|i| (i ^ seed << 16).wrapping_mul(0x9E37_79B9)).collect()
    };
    // Each writes to each, and reads what all wrote to all.
    (0..ranks).for_each(|to| peers.write_to(queue, to, rank * tried, &pattern(rank, to)));
    let written = queue.read_numbers(peers.own_slots(), 1);
    if let Err(refusal) = agreed(group, outcome(&written))? {
        return Ok(Err(refusal));
    }
    let expected = |of: usize| (0..ranks).flat_map(|from| pattern(from, of)).collect::<Vec<_>>();
    let read = |of: usize| match peers.read_of(queue, of, ranks * tried)? {
        words if words == expected(of) => Ok(()),
        _ => {
            let of = numbers[of];
            Err(Fault(format!("its GPU finds other numbers in rank {of}'s memory than ranks wrote there")))
        }
    };
    Ok(agreed(group, outcome(&(0..ranks).try_for_each(read)))?.map(drop))
}
