//! From the kernels' sources to what a GPU runs.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::cubin_cache::{CubinCache, Key};
use crate::driver::Fault;
use crate::kernels;
use crate::nvrtc::{Nvrtc, Output};

/// What kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// As the compiler calls it.
    pub name: &'static str,
    /// 10 · major + minor, as the compiler counts its architectures.
    number: u32,
}

/// Architectures by compute capability. Those with an `a` have instructions that no other chip has, and their cubins run on no
/// other chip.
const TARGETS: &[Target] = &[
    Target { name: "sm_80", number: 80 },
    Target { name: "sm_86", number: 86 },
    Target { name: "sm_87", number: 87 },
    Target { name: "sm_89", number: 89 },
    Target { name: "sm_90a", number: 90 },
    Target { name: "sm_100a", number: 100 },
    Target { name: "sm_103a", number: 103 },
    Target { name: "sm_110a", number: 110 },
    Target { name: "sm_120", number: 120 },
    Target { name: "sm_121", number: 121 },
];

/// What the driver compiles further, for chips that the table or the compiler does not know.
const FALLBACK: Target = Target { name: "compute_80", number: 80 };

/// The oldest that has the kernels' instructions (`mma` of bf16, `cp.async`).
const OLDEST: (u32, u32) = (8, 0);

/// How all files are compiled. Every operation is rounded as IEEE 754 says, and none is fused with another unless it is written so.
const OPTIONS: &[&str] =
    &["-std=c++17", "-default-device", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

impl Target {
    /// For a GPU of a compute capability.
    ///
    /// # Errors
    /// The kernels need a newer one.
    pub fn of(capability: (u32, u32), nvrtc: &Nvrtc) -> Result<Self, Fault> {
        if capability < OLDEST {
            let ((major, minor), (least, _)) = (capability, OLDEST);
            return Err(Fault(format!(
                "its compute capability is {major}.{minor}; the kernels need {least}.0"
            )));
        }
        let number = 10 * capability.0 + capability.1;
        let own = TARGETS.iter().find(|target| target.number == number);
        let own = own.filter(|target| nvrtc.architectures.contains(&target.number));
        Ok(own.copied().unwrap_or(FALLBACK))
    }

    /// By the compiler's name.
    ///
    /// # Errors
    /// The names that there are.
    pub fn named(name: &str) -> Result<Self, Fault> {
        let mut all = TARGETS.iter().chain([&FALLBACK]);
        let names = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>().join(", ");
        let unknown = || Fault(format!("{name:?} is none of {}, {}", names(), FALLBACK.name));
        all.find(|target| target.name == name).copied().ok_or_else(unknown)
    }

    /// Whether code for it runs as it is: else it is PTX.
    fn is_real(self) -> bool {
        self.name.starts_with("sm_")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Compiles a file of kernels, with more options than all have.
///
/// # Errors
/// All that the compiler says, with files and lines.
pub fn compile(nvrtc: &Nvrtc, file: &str, target: Target, more: &[&str]) -> Result<Output, Fault> {
    let source =
        kernels::for_gpu(file).ok_or_else(|| Fault(format!("no file of kernels is called {file}")))?;
    let architecture = format!("--gpu-architecture={target}");
    let options = [&[architecture.as_str()], OPTIONS, more].concat();
    let compiled = nvrtc.compile(&source, &options, target.is_real());
    compiled.map_err(|Fault(error)| Fault(format!("{file}.cu, compiled for {target}: {error}")))
}

/// The code of every file, in their order: what was kept from an earlier start, or else compiled now, by all processors.
///
/// # Errors
/// Of the first file that can't be compiled.
pub fn compile_all(nvrtc: &Nvrtc, target: Target, cache: &CubinCache) -> Result<Vec<Vec<u8>>, Fault> {
    in_parallel(kernels::FILES, |(file, _)| cached(nvrtc, file, target, cache)).into_iter().collect()
}

/// `work` of every item, in their order, by all processors.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let mut all: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker")).collect()
    });
    all.sort_by_key(|(index, _)| *index);
    all.into_iter().map(|(_, result)| result).collect()
}

fn cached(nvrtc: &Nvrtc, file: &str, target: Target, cache: &CubinCache) -> Result<Vec<u8>, Fault> {
    let source = kernels::for_gpu(file).expect("a file of the list");
    let version = format!("{}.{}", nvrtc.version.0, nvrtc.version.1);
    let key = Key::of(&[&source, &OPTIONS.join(" "), target.name, &version]);
    if let Some(code) = cache.get(key) {
        return Ok(code);
    }
    let Output { code, .. } = compile(nvrtc, file, target, &[])?;
    cache.put(key, &code);
    Ok(code)
}
