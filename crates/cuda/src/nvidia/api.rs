//! The driver's functions: where they are found, and what their errors say.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::ptr::null;

use cudarc::driver::sys::{self, CUresult};
use libloading::Library;

use super::events::Elapsed;
use crate::driver::Fault;
use crate::libraries::Search;

/// All that is called of it. cudarc panics at the first call of one that is missing.
const FUNCTIONS: &[&str] = &[
    "cuCtxEnablePeerAccess",
    "cuCtxGetLimit",
    "cuCtxSetCurrent",
    "cuCtxSetLimit",
    "cuDeviceCanAccessPeer",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetDefaultMemPool",
    "cuDeviceGetName",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventRecord",
    "cuEventRecordWithFlags",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuIpcCloseMemHandle",
    "cuIpcGetMemHandle",
    "cuIpcOpenMemHandle_v2",
    "cuLaunchKernel",
    "cuMemAllocAsync",
    "cuMemAlloc_v2",
    "cuMemFreeAsync",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemPoolSetAttribute",
    "cuMemcpyDtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8_v2",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamQuery",
    "cuStreamSynchronize",
];

/// The time between two events, as drivers of CUDA 12.8 and all others call it.
const ELAPSED: [&str; 2] = ["cuEventElapsedTime_v2", "cuEventElapsedTime"];

/// Of CUDA 12: what CUDA 11 had no longer matters.
const OLDEST: u32 = 12;

/// Where containers, WSL and NixOS put it without telling the system.
const FOLDERS: &[&str] = &["/usr/local/nvidia/lib64", "/usr/lib/wsl/lib", "/run/opengl-driver/lib"];

/// The driver, ready to be called. Only who has it calls the functions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Api {
    /// CUDA's major version that the driver is of.
    pub version: (u32, u32),
    pub(super) elapsed: Elapsed,
}

impl Api {
    /// Loads the driver, once for the whole process.
    ///
    /// # Errors
    /// There is none, with what was looked for; or there is no GPU.
    pub fn load() -> Result<Self, Fault> {
        Api::from(FOLDERS.iter().map(PathBuf::from).collect())
    }

    /// What is wrong with a driver that is there; `None` if it works, or finds no GPU.
    pub fn broken() -> Option<Fault> {
        let (library, _) = search(FOLDERS.iter().map(PathBuf::from).collect()).open().ok()?;
        let fault = Api::load().err()?;
        // SAFETY: the function of this name has this type, and may be called any number of times.
        let said = unsafe { library.get::<unsafe extern "C" fn(u32) -> u32>("cuInit").map(|init| init(0)) };
        (said.ok() != Some(CUresult::CUDA_ERROR_NO_DEVICE as u32)).then_some(fault)
    }

    /// Likewise, also from these folders.
    pub fn from(folders: Vec<PathBuf>) -> Result<Self, Fault> {
        let search = search(folders);
        let (library, path) =
            search.open().map_err(|not_found| Fault(format!("no NVIDIA driver: {not_found}")))?;
        // It stays, so that whoever looks for it by its name finds it, wherever it came from.
        let library: &Library = Box::leak(Box::new(library));
        // SAFETY: it was loaded already.
        if !unsafe { sys::is_culib_present() } {
            return Err(Fault(format!("{} is not a library that calls itself libcuda", path.display())));
        }
        // All calls go there, which may be another file: of another name, or a copy.
        // SAFETY: see above.
        let called = unsafe { sys::culib() };
        let is_other = address(library, "cuInit") != address(called, "cuInit");
        let of_other = |Fault(error): Fault| match is_other {
            true => Fault(format!(
                "libcuda.so is another library than {}: {error}; if it is a toolkit's, for those who have no driver, take its folder \
                 `stubs` out of LD_LIBRARY_PATH",
                path.display()
            )),
            false => Fault(error),
        };
        Api::of(called, &path).map_err(of_other)
    }

    /// A library's, which was found here.
    fn of(library: &Library, path: &Path) -> Result<Self, Fault> {
        let lacks = |name: &&&str| address(library, name).is_none();
        if let Some(name) = FUNCTIONS.iter().find(lacks) {
            return Err(Fault(format!(
                "{} has no {name}: a driver of CUDA {OLDEST} is needed",
                path.display()
            )));
        }
        let elapsed = ELAPSED.iter().find_map(|name| {
            // SAFETY: the functions of these names have this type.
            unsafe { library.get::<Elapsed>(*name) }.ok().map(|function| *function)
        });
        let elapsed = elapsed.ok_or_else(|| {
            Fault(format!("{} has no {}: a driver of CUDA {OLDEST} is needed", path.display(), ELAPSED[1]))
        })?;
        let mut version = 0;
        // SAFETY: it writes one number.
        check(unsafe { sys::cuDriverGetVersion(&mut version) })?;
        let version = (version as u32 / 1000, version as u32 % 1000 / 10);
        if version.0 < OLDEST {
            let (major, minor) = version;
            return Err(Fault(format!("NVIDIA's driver is of CUDA {major}.{minor}; {OLDEST}.0 is needed")));
        }
        // SAFETY: it may be called any number of times.
        check(unsafe { sys::cuInit(0) }).map_err(|Fault(error)| {
            Fault(format!("NVIDIA's driver, {}, finds no GPU: {error}", path.display()))
        })?;
        Ok(Api { version, elapsed })
    }
}

/// Where a library has a function.
fn address(library: &Library, name: &str) -> Option<usize> {
    // SAFETY: the function is only looked up.
    unsafe { library.get::<unsafe extern "C" fn()>(name) }.ok().map(|function| *function as usize)
}

fn search(folders: Vec<PathBuf>) -> Search {
    Search { names: ["libcuda.so.1", "libcuda.so"].map(String::from).to_vec(), folders }
}

/// What a function says of itself, in one line.
pub(crate) fn check(result: CUresult) -> Result<(), Fault> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text = |of: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
        let mut text = null();
        // SAFETY: it writes one pointer, to a text that stays, or null.
        unsafe { of(result, &mut text) };
        // SAFETY: see above.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("error {}", result as u32));
    Err(Fault(text(sys::cuGetErrorString).map_or(name.clone(), |words| format!("{words} ({name})"))))
}
