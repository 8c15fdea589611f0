//! What NVIDIA's libraries are told by the environment, which they read when they are loaded.

/// Kernels of ranks that share a GPU wait for each other: so each rank's queue must have one of the GPU's, and no kernel may be loaded
/// while another waits. NCCL must not read other GPUs' tensors in place: they are of memory pools, which other GPUs don't see.
const FOR_RANKS: [(&str, &str); 3] = [
    ("CUDA_DEVICE_MAX_CONNECTIONS", "32"),
    ("CUDA_MODULE_LOADING", "EAGER"),
    ("NCCL_P2P_DIRECT_DISABLE", "1"),
];

/// Sets the variables that ranks on GPUs need, where they are not set: at the start of a program, as long as it has one thread. It does
/// nothing where that can't be seen.
pub fn set_variables() {
    if std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count) != 1 {
        return;
    }
    for (name, value) in FOR_RANKS {
        if std::env::var_os(name).is_none() {
            // SAFETY: this is the only thread.
            unsafe { std::env::set_var(name, value) };
        }
    }
}
