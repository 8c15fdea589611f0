//! Compiles every kernel, which needs libnvrtc and no GPU, and tells what each needs: `cuda_kernels [ARCHITECTURE…]`.
//!
//! What was compiled before is taken from the cache of the user.
//!
//! Exit status: 1 if a kernel does not compile, is not rounded as NUMERICS.md says or has more stack than ranks of a GPU are given, 2 if there is no compiler.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cuda::compile::{Compiler, Target, in_parallel};
use cuda::kernels::FILES;
use cuda::nvrtc::Nvrtc;
use cuda::resources::{KernelResources, MOST_STACK, loosely_rounded};
use cuda::{CubinCache, Fault};

/// One of each generation with tensor cores that know bf16, and of the last a card for desks.
const ARCHITECTURES: &[&str] = &["sm_80", "sm_90a", "sm_100a", "sm_120"];
/// What the driver compiles further: the rounding of every operation can be read there.
const PTX: &str = "compute_80";

fn main() -> ExitCode {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let defaults = || ARCHITECTURES.iter().map(|name| name.to_string()).collect();
    let named = if named.is_empty() { defaults() } else { named };
    let targets: Result<Vec<Target>, _> = named.iter().map(|name| Target::named(name)).collect();
    match targets.and_then(|targets| Ok((targets, Nvrtc::find(None)?))) {
        Ok((targets, nvrtc)) => check(Arc::new(nvrtc), &targets),
        Err(fault) => {
            eprintln!("error: {fault}");
            ExitCode::from(2)
        }
    }
}

fn check(nvrtc: Arc<Nvrtc>, targets: &[Target]) -> ExitCode {
    println!("NVRTC {}.{}, {}", nvrtc.version.0, nvrtc.version.1, nvrtc.path.display());
    let start = Instant::now();
    let ptx = Target::named(PTX).expect("a known target");
    let all = targets.iter().chain([&ptx]);
    let jobs: Vec<_> = all.flat_map(|target| FILES.iter().map(move |(file, _)| (*file, *target))).collect();
    let outcomes = in_parallel(&jobs, |&(file, target)| outcome(&nvrtc, file, target));

    // By file and kernel, what each target says.
    let mut table: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    let mut errors = 0;
    for (&(file, _), outcome) in jobs.iter().zip(outcomes) {
        match outcome {
            Ok(kernels) => kernels.into_iter().for_each(|kernel| {
                table.entry((file, kernel.name.clone())).or_default().push(cell(&kernel));
            }),
            Err(error) => {
                eprintln!("error: {error}");
                errors += 1;
            }
        }
    }
    let cells = |cells: &[String]| cells.iter().map(|cell| format!("  {cell:<22}")).collect::<String>();
    let line = |name: &str, row: &[String]| println!("{}", format!("{name:<34}{}", cells(row)).trim_end());
    println!("registers of a thread; bytes of its stack, of the block's shared memory, !spilled");
    line("", &targets.iter().map(Target::to_string).collect::<Vec<_>>());
    for ((file, kernel), row) in &table {
        line(&format!("{file}.cu {kernel}"), row);
    }
    let (kernels, seconds) = (table.len(), start.elapsed().as_secs_f32());
    println!("{kernels} kernels, {} targets, {errors} errors ({seconds:.1} s)", targets.len());
    if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn outcome(nvrtc: &Arc<Nvrtc>, file: &str, target: Target) -> Result<Vec<KernelResources>, Fault> {
    let compiler = Compiler::new(nvrtc.clone(), target, CubinCache::of_user());
    if target.name != PTX {
        let kernels = compiler.resources(file)?;
        let has_more = |kernel: &&KernelResources| kernel.stack_bytes as usize > MOST_STACK;
        return match kernels.iter().find(has_more) {
            None => Ok(kernels),
            Some(KernelResources { name, stack_bytes, .. }) => Err(Fault(format!(
                "{file}.cu: {name} has {stack_bytes} bytes of stack for {target}; ranks of a GPU are given {MOST_STACK} (resources.rs)"
            ))),
        };
    }
    let ptx = compiler.code(file)?;
    match loosely_rounded(&String::from_utf8_lossy(&ptx)).first() {
        None => Ok(Vec::new()),
        Some(operation) => Err(Fault(format!(
            "{file}.cu: {operation} is not rounded to nearest, or flushes subnormal numbers"
        ))),
    }
}

fn cell(kernel: &KernelResources) -> String {
    let KernelResources { registers, stack_bytes, shared_bytes, spill_bytes, .. } = kernel;
    let mut cell = registers.to_string();
    for (bytes, sign, what) in
        [(stack_bytes, "", " stack"), (shared_bytes, "", " shared"), (spill_bytes, "!", "")]
    {
        if *bytes > 0 {
            cell += &format!("; {sign}{bytes}{what}");
        }
    }
    cell
}
