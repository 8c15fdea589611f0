//! A GPU of this machine, and the kernels that are loaded on it. All ranks of a process that share it share this.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fmt;
use std::ptr::{self, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUfunction, CUlimit, CUmemPool_attribute, CUstream,
};

use super::api::{Api, check};
use super::driver::NvidiaDriver;
use super::modules::Module;
use crate::compile::{Compiler, Target, in_parallel};
use crate::cubin_cache::CubinCache;
use crate::driver::{Arguments, Fault, Grid, Kernel};
use crate::limits::{self, GpuLimits};
use crate::nvrtc::Nvrtc;
use crate::resources::MOST_STACK;

/// What a GPU is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number, from 0, among those that the process may use (`CUDA_VISIBLE_DEVICES`).
    pub ordinal: u32,
    /// As NVIDIA calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// All its memory.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// The most bytes of shared memory that a block can have.
    pub shared_bytes: u32,
}

impl fmt::Display for GpuInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GpuInfo { ordinal, name, capability: (major, minor), .. } = self;
        let gigabytes = self.memory_bytes as f64 / 1e9;
        write!(f, "GPU {ordinal}: {name}, {gigabytes:.0} GB, compute capability {major}.{minor}")?;
        write!(f, ", {} multiprocessors", self.multiprocessors)
    }
}

/// The GPUs of this machine, at least one.
///
/// # Errors
/// There is no driver or no GPU, in one line, with what was looked for.
pub fn probe() -> Result<Vec<GpuInfo>, Fault> {
    gpus(Api::load()?)
}

/// What of this machine runs models.
#[derive(Clone, Debug)]
pub struct Usable {
    /// GPUs that have what it takes, at least one. Ranks get these, in this order.
    pub gpus: Vec<GpuInfo>,
    /// What is said of the others, a line each.
    pub passed_over: Vec<String>,
}

/// The GPUs of this machine that have what it takes to run models: an old card beside them does not matter.
///
/// # Errors
/// Those of [`probe`]; there is no compiler for kernels, or not for any of the GPUs, with what the first lacks.
pub fn usable() -> Result<Usable, Fault> {
    let api = Api::load()?;
    let found = gpus(api)?;
    let nvrtc = Nvrtc::find(Some(api.version.0))?;
    let (mut usable, mut first) = (Usable { gpus: Vec::new(), passed_over: Vec::new() }, None);
    for info in found {
        match target_of(&info, &nvrtc) {
            Ok(_) => usable.gpus.push(info),
            Err(fault) => {
                usable.passed_over.push(format!("GPU {} is passed over: {fault}", info.ordinal));
                first.get_or_insert(fault);
            }
        }
    }
    match first {
        Some(fault) if usable.gpus.is_empty() => Err(fault),
        _ => compiles(&nvrtc).map(|()| usable),
    }
}

/// Whether the compiler does its work: one that was copied without what it loads is found, and fails at the first kernel. It
/// is tried once, and takes some 20 ms.
fn compiles(nvrtc: &Nvrtc) -> Result<(), Fault> {
    static TRIED: OnceLock<Result<(), Fault>> = OnceLock::new();
    let try_out = || {
        let tried = nvrtc.compile("extern \"C\" __global__ void nothing() {}", &[], false);
        // What it says goes over several lines.
        let in_line = |Fault(why)| -> String { why.split_whitespace().collect::<Vec<_>>().join(" ") };
        tried.map(drop).map_err(|fault| {
            Fault(format!(
                "{}, which compiles the kernels, does not work: {}",
                nvrtc.path.display(),
                in_line(fault)
            ))
        })
    };
    TRIED.get_or_init(try_out).clone()
}

/// What is wrong with a driver that is there and can't be used; `None` if nothing is, or if all there is to say is that there is no
/// driver or no GPU.
pub fn broken_driver() -> Option<Fault> {
    Api::broken()
}

fn target_of(info: &GpuInfo, nvrtc: &Nvrtc) -> Result<Target, Fault> {
    Target::of(info.capability, nvrtc)
        .map_err(|Fault(error)| Fault(format!("{} cannot be used: {error}", info.name)))
}

fn gpus(_: Api) -> Result<Vec<GpuInfo>, Fault> {
    let mut count = 0;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if count == 0 {
        return Err(Fault("NVIDIA's driver finds no GPU".into()));
    }
    (0..count).map(info).collect()
}

fn info(ordinal: c_int) -> Result<GpuInfo, Fault> {
    use CUdevice_attribute::*;
    let device = device(ordinal)?;
    let attribute = |which| -> Result<u32, Fault> {
        let mut value = 0;
        // SAFETY: it writes one number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
        Ok(value as u32)
    };
    let (mut name, mut memory_bytes) = ([0u8; 256], 0usize);
    // SAFETY: there is room for as many bytes as it is told.
    check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) })?;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut memory_bytes, device) })?;
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(GpuInfo {
        ordinal: ordinal as u32,
        name: String::from_utf8_lossy(name).into_owned(),
        capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory_bytes: memory_bytes as u64,
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
    })
}

fn device(ordinal: c_int) -> Result<CUdevice, Fault> {
    let mut device = 0;
    // SAFETY: it writes one number.
    check(unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
    Ok(device)
}

/// A GPU, and the kernels that are loaded on it.
pub struct Gpu {
    /// What it is.
    pub info: GpuInfo,
    device: CUdevice,
    /// The one that all of the process share.
    context: CUcontext,
    pub(super) api: Api,
    compiler: Compiler,
    /// By file.
    loaded: Mutex<Modules>,
    /// How many ranks of this host have it.
    pub(super) ranks: AtomicUsize,
    /// How many processes those are.
    pub(super) processes: AtomicUsize,
    /// Once somebody asked for them.
    limits: Mutex<Option<GpuLimits>>,
}

type Modules = HashMap<&'static str, Module>;

/// A kernel as the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Function(pub CUfunction);

impl Function {
    /// Runs it in a stream.
    pub fn start(self, grid: &Grid, arguments: &Arguments, stream: CUstream) -> Result<(), Fault> {
        let mut pointers = arguments.all_slots().each_ref().map(|slot| ptr::from_ref(slot).cast_mut().cast());
        let ([x, y, z], to) = (grid.blocks, pointers.as_mut_ptr());
        // SAFETY: there are as many arguments as the kernel takes, each in a slot that has all the bytes of any type, which are
        // copied before this returns. What they point to is the device's.
        check(unsafe {
            sys::cuLaunchKernel(self.0, x, y, z, grid.threads, 1, 1, grid.shared, stream, to, null_mut())
        })
    }
}

// SAFETY: contexts, modules and functions may be used from any thread of the process.
unsafe impl Send for Gpu {}
// SAFETY: see above; what changes is behind a lock.
unsafe impl Sync for Gpu {}
// SAFETY: see above.
unsafe impl Send for Function {}

impl Gpu {
    /// A GPU by its number. Kernels are compiled, or taken from the cache, as they are needed or [loaded](Gpu::load).
    ///
    /// # Errors
    /// There is no such GPU, no compiler, or they don't go together.
    pub fn open(ordinal: u32, cache: &CubinCache) -> Result<Arc<Self>, Fault> {
        let api = Api::load()?;
        let infos = gpus(api)?;
        let info = infos.get(ordinal as usize).cloned().ok_or_else(|| {
            Fault(format!("there is no GPU {ordinal}: this process may use {}, from 0", infos.len()))
        })?;
        let nvrtc = Nvrtc::find(Some(api.version.0))?;
        let target = target_of(&info, &nvrtc)?;
        let compiler = Compiler::new(Arc::new(nvrtc), target, cache.clone());
        let device = device(ordinal as c_int)?;
        let mut context = null_mut();
        // SAFETY: it writes one pointer.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })
            .map_err(|Fault(error)| Fault(format!("{info}: {error}")))?;
        Ok(Arc::new(Gpu {
            info,
            device,
            context,
            api,
            compiler,
            loaded: Mutex::default(),
            ranks: AtomicUsize::new(1),
            processes: AtomicUsize::new(1),
            limits: Mutex::default(),
        }))
    }

    /// Loads files of kernels; those that have to be compiled are compiled at the same time, by all processors. What is loaded
    /// before the first step does not hold a step up, nor other ranks' kernels that wait.
    ///
    /// # Errors
    /// All that the compiler says of the first that does not compile, or the driver of one that it can't load.
    pub fn load(&self, files: &[&'static str]) -> Result<(), Fault> {
        self.bind()?;
        self.load_to(&mut self.loaded.lock().unwrap_or_else(PoisonError::into_inner), files)
    }

    fn load_to(&self, loaded: &mut Modules, files: &[&'static str]) -> Result<(), Fault> {
        let new: Vec<&'static str> =
            files.iter().copied().filter(|file| !loaded.contains_key(file)).collect();
        for (file, code) in new.iter().zip(in_parallel(&new, |file| self.compiler.code(file))) {
            let module = Module::load(&code?, self.info.shared_bytes).map_err(|Fault(error)| {
                let (major, minor) = self.api.version;
                let what = format!("{file}.cu, compiled {}", self.compiler);
                Fault(format!("{what}, is nothing for a driver of CUDA {major}.{minor}: {error}"))
            })?;
            loaded.insert(file, module);
        }
        Ok(())
    }

    /// Says how many ranks of this host have it, in how many processes: their kernels may have to run at the same time.
    ///
    /// # Errors
    /// Whatever the driver says.
    pub fn shared_by(&self, ranks: usize, processes: usize) -> Result<(), Fault> {
        self.ranks.store(ranks.max(1), Ordering::Relaxed);
        self.processes.store(processes.max(1), Ordering::Relaxed);
        if ranks < 2 {
            return Ok(());
        }
        self.bind()?;
        // The first kernel that needs more than there was may wait for all that run, also for those of ranks that wait for it.
        let (mut there, which) = (0, CUlimit::CU_LIMIT_STACK_SIZE);
        // SAFETY: it writes one number.
        check(unsafe { sys::cuCtxGetLimit(&mut there, which) })?;
        if there >= MOST_STACK {
            return Ok(());
        }
        // SAFETY: it is a number of the current context.
        check(unsafe { sys::cuCtxSetLimit(which, MOST_STACK) })
    }

    /// A queue of its own, for the rank of this thread.
    ///
    /// # Errors
    /// Whatever the driver says.
    pub fn driver(self: &Arc<Self>, enforce_eager: bool) -> Result<NvidiaDriver, Fault> {
        NvidiaDriver::new(self.clone(), enforce_eager)
    }

    /// What it does at best: measured the first time, in less than a second. Whatever else runs on it then makes that less.
    ///
    /// # Errors
    /// Whatever the driver says.
    pub fn limits(self: &Arc<Self>) -> Result<GpuLimits, Fault> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        if limits.is_none() {
            *limits = Some(limits::measure(&self.driver(true)?, &self.driver(false)?)?);
        }
        Ok(limits.expect("they were measured"))
    }

    /// A number that no other GPU has, in any process; of one that has none, its ordinal.
    pub fn number(&self) -> u64 {
        let mut uuid = sys::CUuuid { bytes: [0; 16] };
        // SAFETY: it writes sixteen bytes.
        match check(unsafe { sys::cuDeviceGetUuid_v2(&mut uuid, self.device) }) {
            Ok(()) => xxhash_rust::xxh3::xxh3_64(&uuid.bytes.map(|byte| byte as u8)),
            Err(_) => u64::from(self.info.ordinal),
        }
    }

    /// Whether kernels of several processes run on it at the same time.
    pub(super) fn runs_processes_together(&self) -> bool {
        let (mut has, which) = (0, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MPS_ENABLED);
        // A driver that does not know of it has said so.
        // SAFETY: it writes one number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut has, which, self.device) }).is_ok() && has != 0
    }

    /// Whether kernels that run for seconds are ended, so that a display goes on.
    pub(super) fn ends_long_kernels(&self) -> bool {
        let (mut has, which) = (0, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_KERNEL_EXEC_TIMEOUT);
        // SAFETY: it writes one number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut has, which, self.device) }).is_ok() && has != 0
    }

    /// Whether memory can be had in the order of a stream.
    pub(super) fn has_pool(&self) -> Result<bool, Fault> {
        let (mut has, which) = (0, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED);
        // SAFETY: it writes one number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut has, which, self.device) })?;
        if has != 0 {
            let (mut pool, mut no) = (null_mut(), 0 as c_int);
            // Ranks of a process share it. What one gave back behind work that waits for another must not hold that one up.
            let which = CUmemPool_attribute::CU_MEMPOOL_ATTR_REUSE_ALLOW_INTERNAL_DEPENDENCIES;
            // SAFETY: it writes one pointer.
            check(unsafe { sys::cuDeviceGetDefaultMemPool(&mut pool, self.device) })?;
            // SAFETY: the pool is there, and the attribute is of this type.
            check(unsafe { sys::cuMemPoolSetAttribute(pool, which, (&raw mut no).cast()) })?;
        }
        Ok(has != 0)
    }

    /// The one that all of the process share.
    pub(super) fn context(&self) -> CUcontext {
        self.context
    }

    /// As the driver calls it.
    pub(super) fn device(&self) -> CUdevice {
        self.device
    }

    /// Makes this the GPU of the calling thread. It costs nothing if it is already.
    pub(crate) fn bind(&self) -> Result<(), Fault> {
        // SAFETY: the context is retained until the end.
        check(unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    /// A kernel. The context is current.
    pub(crate) fn function(&self, kernel: Kernel) -> Result<Function, Fault> {
        let loaded = &mut *self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        self.load_to(loaded, &[kernel.file])?;
        loaded.get_mut(kernel.file).expect("it was loaded").function(kernel)
    }

    /// Bytes of its memory that nobody has.
    ///
    /// # Errors
    /// Whatever the driver says.
    pub fn free_bytes(&self) -> Result<u64, Fault> {
        self.bind()?;
        self.memory().map(|(free, _)| free as u64)
    }

    /// Bytes that are free, and all.
    pub(crate) fn memory(&self) -> Result<(usize, usize), Fault> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: it writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What can't be given back is gone with the process.
        self.bind().ok();
        self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        // SAFETY: it was retained once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
