//! What NVIDIA's libraries are told by the environment, which they read when they are loaded.

/// Kernels of ranks that share a GPU wait for each other: so each rank's queue must have one of the GPU's, and no kernel may be loaded
/// while another waits; and a queue must have room for a step, or the thread that fills it waits for kernels that wait for another's.
/// NCCL must not read other GPUs' tensors in place: they are of memory pools, which other GPUs don't see.
const FOR_RANKS: [(&str, &str); 4] = [
    ("CUDA_DEVICE_MAX_CONNECTIONS", "32"),
    ("CUDA_MODULE_LOADING", "EAGER"),
    ("CUDA_SCALE_LAUNCH_QUEUES", "4x"),
    ("NCCL_P2P_DIRECT_DISABLE", "1"),
];

/// With it calls of NCCL return when they are done, whatever they were asked: nobody could give up who waits for one.
pub(crate) const BLOCKS: &str = "NCCL_COMM_BLOCKING";

/// What makes kernels of ranks wait for each other in vain, as far as the environment says so: the first two, and one that makes every
/// launch wait, if they are set to something else.
pub(crate) fn told_otherwise() -> Vec<String> {
    otherwise(|name| std::env::var(name).ok())
}

fn otherwise(variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let together = FOR_RANKS[..2].iter();
    let wanted = together.copied().chain([("CUDA_LAUNCH_BLOCKING", "0")]);
    let said = |(name, value): (&str, &str)| {
        let set = variable(name).filter(|set| set != value)?;
        Some(format!("{name} is {set}, and ranks need {value}"))
    };
    wanted.filter_map(said).collect()
}

/// Sets the variables that ranks on GPUs need, where they are not set, and takes away what they can't live with: at the start of a
/// program, as long as it has one thread. It does nothing where that can't be seen.
pub fn set_variables() {
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return;
    }
    // SAFETY: this is the only thread.
    unsafe { std::env::remove_var(BLOCKS) };
    for (name, value) in FOR_RANKS {
        if std::env::var_os(name).is_none() {
            // SAFETY: this is the only thread.
            unsafe { std::env::set_var(name, value) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_kernels_apart_is_told() {
        let set = |name: &str| match name {
            "CUDA_DEVICE_MAX_CONNECTIONS" => Some("1".to_owned()),
            "CUDA_MODULE_LOADING" => Some("EAGER".to_owned()),
            "NCCL_P2P_DIRECT_DISABLE" => Some("0".to_owned()),
            _ => None,
        };
        assert_eq!(otherwise(set), ["CUDA_DEVICE_MAX_CONNECTIONS is 1, and ranks need 32"]);
        assert!(otherwise(|_| None).is_empty());
    }
}
