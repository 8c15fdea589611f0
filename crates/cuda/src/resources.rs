//! What kernels need of a multiprocessor, as the compiler tells it.

/// Of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelResources {
    /// The kernel.
    pub name: String,
    /// Registers per thread, of 255 at most; 65,536 are shared by all threads of a multiprocessor.
    pub registers: u32,
    /// Shared memory per block that the kernel says itself.
    pub shared_bytes: u32,
    /// Memory per thread for arrays that are not in registers.
    pub stack_bytes: u32,
    /// Bytes per thread that are written because registers did not suffice, and read again.
    pub spill_bytes: u32,
}

/// The most bytes of stack that a kernel has: `linear.cuh` has sums of a tree there. Ranks that share a GPU are given as much before
/// their kernels wait for each other.
pub const MOST_STACK: usize = 832;

/// The options that make the compiler tell it.
pub(crate) const VERBOSE: &[&str] = &["--ptxas-options=-v"];

/// Of all kernels in a log, by name.
pub(crate) fn resources(log: &str) -> Vec<KernelResources> {
    let mut kernels: Vec<KernelResources> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_string();
            kernels.push(KernelResources { name, ..Default::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        let number = |what: &str| number_before(line, what);
        kernel.registers = number(" registers").unwrap_or(kernel.registers);
        kernel.shared_bytes = number(" bytes smem").unwrap_or(kernel.shared_bytes);
        kernel.stack_bytes = number(" bytes stack frame").unwrap_or(kernel.stack_bytes);
        kernel.spill_bytes += number(" bytes spill stores").unwrap_or(0);
        kernel.spill_bytes += number(" bytes spill loads").unwrap_or(0);
    }
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    kernels
}

fn number_before(line: &str, what: &str) -> Option<u32> {
    let before = &line[..line.find(what)?];
    let digits = before.len() - before.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    before[before.len() - digits..].parse().ok()
}

/// Operations in PTX whose rounding is left to whoever compiles it further: such code has other bits on other chips.
pub fn loosely_rounded(ptx: &str) -> Vec<&str> {
    let operations = ptx.lines().filter_map(|line| line.split_whitespace().next());
    operations.filter(|operation| is_loose(operation)).collect()
}

fn is_loose(operation: &str) -> bool {
    let mut parts = operation.split('.');
    let of_floats = matches!(parts.clone().next_back(), Some("f32" | "f64"));
    let rounds = matches!(parts.next(), Some("add" | "sub" | "mul" | "mad" | "fma" | "div" | "sqrt" | "rcp"));
    of_floats && rounds && (operation.contains(".ftz") || !operation.contains(".rn."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_words_are_understood() {
        let log = "ptxas info    : 8 bytes gmem, 16 bytes cmem[4]
ptxas info    : Compiling entry function 'linear_half_32' for 'sm_80'
ptxas info    : Function properties for linear_half_32
ptxas         .     1584 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 80 registers, used 1 barriers, 1584 bytes cumulative stack size, 424 bytes cmem[0]
ptxas info    : Compiling entry function 'add' for 'sm_80'
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 1 barriers, 16 bytes smem, 444 bytes cmem[0], 8 bytes cmem[2]";
        let add =
            KernelResources { name: "add".into(), registers: 18, shared_bytes: 16, ..Default::default() };
        let linear = KernelResources {
            name: "linear_half_32".into(),
            registers: 80,
            shared_bytes: 0,
            stack_bytes: 1584,
            spill_bytes: 16,
        };
        assert_eq!(resources(log), [add, linear]);
    }

    #[test]
    fn what_is_rounded_otherwise_is_found() {
        let good = "add.rn.f32 \t%f1, %f2, %f3;\nfma.rn.f64 a;\nneg.f32 b;\nadd.s32 c;\nsqrt.rn.f32 d;\nmul.wide.u32 e;";
        assert!(loosely_rounded(good).is_empty());
        let bad = "add.f32 \t%f1, %f2, %f3;\n mul.rn.ftz.f32 a;\ndiv.full.f32 b;\nrcp.approx.ftz.f32 c;";
        assert_eq!(loosely_rounded(bad).len(), 4);
    }
}
