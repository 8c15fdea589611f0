//! From the kernels' sources to what a GPU runs.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::cubin_cache::{CubinCache, Key};
use crate::driver::Fault;
use crate::kernels;
use crate::nvrtc::{Nvrtc, Output};
use crate::resources::{KernelResources, VERBOSE, resources};

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

/// Compiles files of kernels for one target, and keeps what came of it.
pub struct Compiler {
    nvrtc: Arc<Nvrtc>,
    target: Target,
    cache: CubinCache,
}

impl Compiler {
    /// With what an earlier one kept.
    pub fn new(nvrtc: Arc<Nvrtc>, target: Target, cache: CubinCache) -> Self {
        Compiler { nvrtc, target, cache }
    }

    /// A file's code: a cubin, or PTX for a target that is not real.
    ///
    /// # Errors
    /// All that the compiler says, with files and lines.
    pub fn code(&self, file: &str) -> Result<Vec<u8>, Fault> {
        self.kept(file, &[], |output| output.code)
    }

    /// What the compiler says that a file's kernels need.
    ///
    /// # Errors
    /// See [`Compiler::code`].
    pub fn resources(&self, file: &str) -> Result<Vec<KernelResources>, Fault> {
        let log = self.kept(file, VERBOSE, |output| output.log.into_bytes())?;
        Ok(resources(&String::from_utf8_lossy(&log)))
    }

    fn kept(&self, file: &str, more: &[&str], part: fn(Output) -> Vec<u8>) -> Result<Vec<u8>, Fault> {
        let source =
            kernels::for_gpu(file).ok_or_else(|| Fault(format!("no file of kernels is called {file}")))?;
        let architecture = format!("--gpu-architecture={}", self.target);
        let options = [&[architecture.as_str()], OPTIONS, more].concat();
        let (major, minor) = self.nvrtc.version;
        let key = Key::of(&[&source, &options.join(" "), &format!("{major}.{minor}")]);
        if let Some(kept) = self.cache.get(key) {
            return Ok(kept);
        }
        let output = self.nvrtc.compile(&source, &options, self.target.is_real());
        let made = output
            .map(part)
            .map_err(|Fault(error)| Fault(format!("{file}.cu, compiled for {}: {error}", self.target)))?;
        self.cache.put(key, &made);
        Ok(made)
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.nvrtc.version;
        write!(f, "for {} by NVRTC {major}.{minor}", self.target)
    }
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
