//! How large the KV cache is: for one call, or for all requests that a server will ever get.

use tensor::KV_BLOCK;

use crate::data_parallel::ToReplica;
use crate::dispatch::Dispatch;
use crate::kv_size::{KvRoom, KvSize};
use crate::places::Place;
use crate::replica::{MICRO_BATCH_ROWS, Prepare};
use crate::worker::Command;
use crate::{Engine, EngineError, GenerateRequest};

/// What a server's requests share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PoolOptions {
    /// Bytes of each rank's KV cache; `None`: a share of the memory that is left.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Whether requests use keys and values of prompts before them.
    pub prefix_caching: bool,
    /// The most tokens of a step; `None`: what can be done in a time that running streams don't notice.
    pub max_num_batched_tokens: Option<usize>,
}

/// What a place has not.
struct Lack {
    ranks: usize,
    /// That its ranks would take.
    bytes: u64,
    /// That there are.
    there: u64,
}

impl Engine {
    /// Sets the replicas up for requests that come and go ([`Engine::submit`]), until the engine ends. Sequences that
    /// would not fit in the cache alone are too long from here on: see [`Engine::max_model_len`].
    ///
    /// # Errors
    /// There is no room for a single block; a rank fails.
    pub fn open(&mut self, pool: &PoolOptions) -> Result<(), EngineError> {
        self.profile()?;
        let (mesh, context) = (self.plan.mesh, self.plan.context());
        let room = KvRoom {
            blocks: match pool.kv_cache_memory_bytes {
                Some(bytes) => self.blocks_of_bytes(bytes),
                None => self.affordable_blocks(),
            },
            block_bytes: self.needs.token * KV_BLOCK as u64,
            asked_bytes: pool.kv_cache_memory_bytes,
            stages: mesh.pp,
            max_num_seqs: self.max_num_seqs,
            max_model_len: self.max_model_len,
            context,
        };
        let KvSize { lanes, blocks_per_lane, max_model_len, warnings } = room.divide()?;
        if let Some(asked) = pool.kv_cache_memory_bytes {
            self.check_memory(asked, lanes * blocks_per_lane)?;
        }
        self.max_model_len = max_model_len;
        self.kv_cache_warnings = warnings;
        self.kv_cache_tokens = mesh.dp * lanes * blocks_per_lane * KV_BLOCK;
        let max_num_batched_tokens = pool.max_num_batched_tokens.unwrap_or(self.max_num_batched_tokens);
        self.set_up(Prepare {
            lanes,
            blocks_per_lane,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens,
            follows_time: pool.max_num_batched_tokens.is_none(),
            prefix_caching: pool.prefix_caching,
            stages: mesh.pp,
            context: context.ranks,
        })
    }

    /// Bytes that were asked for must be there, as far as they are used.
    fn check_memory(&self, asked: u64, blocks: usize) -> Result<(), EngineError> {
        let Some(Lack { ranks, bytes, there }) = self.lack(blocks) else { return Ok(()) };
        let caches = match ranks {
            1 => "the KV cache of this host's rank".to_owned(),
            ranks => format!("the KV caches of this host's {ranks} ranks"),
        };
        Err(EngineError::Request(format!(
            "--kv-cache-memory-bytes {asked}: {caches} would take {bytes} bytes, and there are {there} bytes of \
             memory left; give less, or a smaller --max-model-len or --max-num-seqs{}",
            self.of_activations()
        )))
    }

    /// What else takes memory of a GPU, and what to do about it; nothing on the processor, where activations are small.
    fn of_activations(&self) -> String {
        match self.is_on_gpus() {
            true => format!(
                ". Steps of {} tokens take {} bytes of a GPU: fewer --max-num-batched-tokens leave more",
                self.max_num_batched_tokens, self.needs.activations
            ),
            false => String::new(),
        }
    }

    /// The first place that has no room for the caches of its ranks, of so many blocks each.
    fn lack(&self, blocks: usize) -> Option<Lack> {
        self.places.iter().find_map(|place| {
            let bytes = self.kv_bytes(place).saturating_mul((blocks * KV_BLOCK) as u64);
            let there = place.at_most(self.memory_share, self.needs)?;
            (bytes > there).then_some(Lack { ranks: place.ranks, bytes, there })
        })
    }

    /// Sets the replicas up for one call.
    pub(crate) fn prepare(&mut self, requests: &[GenerateRequest]) -> Result<(), EngineError> {
        let mesh = self.plan.mesh;
        let context = self.plan.context();
        let needed = |r: &GenerateRequest| context.blocks_that_fit(r.work().div_ceil(KV_BLOCK));
        let blocks: Vec<usize> = requests.iter().map(needed).collect();
        // Enough for as many of the largest as may run at a time, and no more than all need or memory has.
        let largest = blocks.iter().max().copied().unwrap_or(0);
        let wanted = blocks.iter().sum::<usize>().min(largest.saturating_mul(self.max_num_seqs));
        let wanted = wanted.min(self.affordable_blocks()).max(largest);
        let lanes = mesh.pp.min(requests.len()).max(1);
        // Every lane begins with a block of the context group's first rank.
        let blocks_per_lane = wanted.div_ceil(lanes).max(largest).next_multiple_of(context.ranks);
        let prompt_tokens = requests.iter().map(|r| r.prompt.len()).sum();
        self.set_up(Prepare {
            lanes,
            blocks_per_lane,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.step_tokens(prompt_tokens),
            follows_time: false,
            prefix_caching: false,
            stages: mesh.pp,
            context: context.ranks,
        })
    }

    /// Sets all replicas up. What an earlier call left behind, because a rank failed, is forgotten.
    fn set_up(&mut self, prepare: Prepare) -> Result<(), EngineError> {
        let blocks = self.allocate(prepare.lanes * prepare.blocks_per_lane)?;
        self.peers.command(&mut *self.leader, &ToReplica::Prepare { prepare, blocks })?;
        self.dispatch = Dispatch::new(self.plan.mesh.dp);
        self.replica.prepare(prepare);
        Ok(())
    }

    /// The most tokens of a step. A pipeline takes prompts in more and smaller steps, so that no stage waits long.
    pub(crate) fn step_tokens(&self, prompt_tokens: usize) -> usize {
        match self.plan.mesh.pp {
            1 => self.max_num_batched_tokens,
            pp => {
                let rows = prompt_tokens.div_ceil(4 * pp).max(MICRO_BATCH_ROWS);
                rows.min(self.max_num_batched_tokens)
            }
        }
    }

    /// KV blocks that take so many bytes on each rank, or less.
    fn blocks_of_bytes(&self, bytes: u64) -> usize {
        (bytes / (self.needs.token * KV_BLOCK as u64).max(1)) as usize
    }

    /// Bytes that one token takes in the caches of all ranks of a place, if those of a host are like the others.
    fn kv_bytes(&self, place: &Place) -> u64 {
        if place.is_gpu() {
            return self.needs.token * place.ranks as u64;
        }
        let of_all = self.kv_bytes_per_token * self.plan.mesh.dp as u64;
        (of_all * self.ranks_here as u64).div_ceil(self.plan.mesh.size() as u64)
    }

    /// KV blocks of each replica that there is room for.
    pub(crate) fn affordable_blocks(&self) -> usize {
        let of = |place: &Place| {
            let bytes = place.for_caches(self.memory_share, self.needs)?;
            Some((bytes / (self.kv_bytes(place) * KV_BLOCK as u64).max(1)) as usize)
        };
        self.places.iter().filter_map(of).min().unwrap_or(usize::MAX / KV_BLOCK)
    }

    /// Sees to it that the caches have room, and begins to count the time at work. The size of a new cache, if one had
    /// to be made.
    pub(crate) fn allocate(&mut self, blocks: usize) -> Result<Option<usize>, EngineError> {
        let more = blocks > self.blocks;
        if more {
            if let Some(Lack { bytes, .. }) = self.lack(blocks) {
                return Err(EngineError::Request(format!(
                    "keys and values of {} tokens need {bytes} bytes, more than the memory that is left; shorten the \
                     prompt or --max-tokens, or use --kv-cache-dtype bfloat16 or fp8{}",
                    blocks * KV_BLOCK,
                    self.of_activations()
                )));
            }
            self.leader.issue(&Command::AllocateKv { blocks })?;
            self.blocks = blocks;
        }
        self.leader.issue(&Command::Mark)?;
        Ok(more.then_some(blocks))
    }
}
