//! How a server's KV cache is divided, and what there is to know of its size.

use scheduler::ContextParallel;
use tensor::KV_BLOCK;

use crate::EngineError;

/// What a cache is to be divided for.
#[derive(Clone, Copy)]
pub(crate) struct KvRoom {
    /// Blocks of each replica that there is memory for.
    pub blocks: usize,
    /// Bytes that one takes on the rank on which it takes most.
    pub block_bytes: u64,
    /// Bytes that were asked for on each rank, if they were.
    pub asked_bytes: Option<u64>,
    /// Stages of the pipeline.
    pub stages: usize,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
    /// Longest sequence, if there is room.
    pub max_model_len: usize,
    pub context: ContextParallel,
}

/// A cache that is divided.
#[derive(Debug, PartialEq)]
pub(crate) struct KvSize {
    pub lanes: usize,
    pub blocks_per_lane: usize,
    /// Longest sequence.
    pub max_model_len: usize,
    /// What came out other than one may have wanted. One line each.
    pub warnings: Vec<String>,
}

impl KvRoom {
    /// As many lanes as the pipeline has stages, if a sequence of the longest fits in each: a sequence stays in its lane.
    ///
    /// # Errors
    /// There is no room for a single block.
    pub fn divide(&self) -> Result<KvSize, EngineError> {
        let KvRoom { blocks, block_bytes, context, .. } = *self;
        let of_sequence = context.blocks_that_fit(self.max_model_len.div_ceil(KV_BLOCK));
        // A lane without a sequence would do nothing.
        let useful_lanes = self.stages.min(self.max_num_seqs);
        let lanes = (blocks / of_sequence.max(1)).clamp(1, useful_lanes);
        // More than all sequences can fill would never be used. Every lane begins with a block of the context group's
        // first rank.
        let most = of_sequence.saturating_mul(self.max_num_seqs.div_ceil(lanes));
        let affordable = blocks / lanes / context.ranks * context.ranks;
        let blocks_per_lane = affordable.min(most);
        let positions = context.longest(blocks_per_lane).saturating_mul(KV_BLOCK);
        if positions == 0 {
            let bytes = block_bytes * context.ranks as u64;
            return Err(EngineError::Request(format!(
                "the KV cache has no room for {KV_BLOCK} tokens: that needs {bytes} bytes on each rank; give \
                 --kv-cache-memory-bytes at least so many, or use --kv-cache-dtype fp8"
            )));
        }
        let mut warnings = Vec::new();
        let wanted = self.max_model_len;
        let bytes_of = |blocks: usize| block_bytes.saturating_mul(blocks as u64);
        if positions < wanted {
            warnings.push(format!(
                "the KV cache has room for {positions} tokens, so requests have at most {positions}, not {wanted}; \
                 --kv-cache-memory-bytes {} would hold one full sequence",
                bytes_of(of_sequence)
            ));
        }
        if lanes < useful_lanes {
            warnings.push(format!(
                "the KV cache has no room for {useful_lanes} sequences of {wanted} tokens, so only {lanes} of {} stages \
                 can decode at a time; --kv-cache-memory-bytes {} or a smaller --max-model-len would let more",
                self.stages,
                bytes_of(of_sequence.saturating_mul(useful_lanes))
            ));
        }
        if let Some(asked) = self.asked_bytes
            && affordable > most
        {
            warnings.push(format!(
                "{} sequences of {wanted} tokens never use more than {} bytes of KV cache on each rank: no more are \
                 taken of --kv-cache-memory-bytes {asked}",
                self.max_num_seqs,
                bytes_of(lanes * most)
            ));
        }
        Ok(KvSize { lanes, blocks_per_lane, max_model_len: wanted.min(positions), warnings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For 2,048 positions: 128 blocks of 1,000 bytes.
    fn room(blocks: usize, stages: usize, max_num_seqs: usize) -> KvSize {
        let (asked_bytes, context) = (Some(1_000 * blocks as u64), ContextParallel::OFF);
        KvRoom { blocks, block_bytes: 1_000, asked_bytes, stages, max_num_seqs, max_model_len: 2048, context }
            .divide()
            .unwrap()
    }

    #[test]
    fn a_pipeline_has_as_many_lanes_as_can_be_used_and_hold_a_full_sequence() {
        let lanes = |blocks, stages, seqs| {
            let size = room(blocks, stages, seqs);
            assert_eq!(size.warnings.len(), usize::from(size.lanes < stages.min(seqs)), "{size:?}");
            (size.lanes, size.blocks_per_lane, size.max_model_len)
        };
        assert_eq!(lanes(256, 2, 8), (2, 128, 2048));
        assert_eq!(lanes(255, 2, 8), (1, 255, 2048));
        assert_eq!(lanes(300, 3, 8), (2, 150, 2048));
        assert_eq!(lanes(128, 2, 1), (1, 128, 2048));
        assert_eq!(lanes(512, 4, 4), (4, 128, 2048));
    }

    #[test]
    fn who_gets_shorter_sequences_is_told_what_full_ones_take() {
        let size = room(60, 2, 8);
        assert_eq!((size.lanes, size.blocks_per_lane, size.max_model_len), (1, 60, 960));
        assert_eq!(
            size.warnings,
            [
                "the KV cache has room for 960 tokens, so requests have at most 960, not 2048; \
                 --kv-cache-memory-bytes 128000 would hold one full sequence",
                "the KV cache has no room for 2 sequences of 2048 tokens, so only 1 of 2 stages can decode at a time; \
                 --kv-cache-memory-bytes 256000 or a smaller --max-model-len would let more"
            ]
        );
        assert_eq!(room(128, 1, 8).warnings, [""; 0]);
    }

    #[test]
    fn who_asks_for_more_than_can_be_used_is_told_what_can() {
        let size = room(1_000_000, 1, 8);
        assert_eq!((size.blocks_per_lane, size.max_model_len), (8 * 128, 2048));
        let told = "8 sequences of 2048 tokens never use more than 1024000 bytes of KV cache on each rank: no more are \
                    taken of --kv-cache-memory-bytes 1000000000";
        assert_eq!(size.warnings, [told]);
        assert_eq!(room(8 * 128, 1, 8).warnings, [""; 0]);
    }
}
