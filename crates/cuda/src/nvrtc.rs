//! NVIDIA's compiler as a library. It needs no GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::{null, null_mut};

use crate::driver::Fault;
use crate::libraries::{Search, functions, open, package_folders, variable};

type Program = *mut c_void;
type Text = *const c_char;

functions! {
    /// As nvrtc.h of CUDA 12 and 13 has them.
    struct Functions {
        nvrtcVersion: fn(*mut c_int, *mut c_int) -> c_int,
        nvrtcGetNumSupportedArchs: fn(*mut c_int) -> c_int,
        nvrtcGetSupportedArchs: fn(*mut c_int) -> c_int,
        nvrtcGetErrorString: fn(c_int) -> Text,
        nvrtcCreateProgram: fn(*mut Program, Text, Text, c_int, *const Text, *const Text) -> c_int,
        nvrtcCompileProgram: fn(Program, c_int, *const Text) -> c_int,
        nvrtcGetCUBINSize: fn(Program, *mut usize) -> c_int,
        nvrtcGetCUBIN: fn(Program, *mut c_char) -> c_int,
        nvrtcGetPTXSize: fn(Program, *mut usize) -> c_int,
        nvrtcGetPTX: fn(Program, *mut c_char) -> c_int,
        nvrtcGetProgramLogSize: fn(Program, *mut usize) -> c_int,
        nvrtcGetProgramLog: fn(Program, *mut c_char) -> c_int,
        nvrtcDestroyProgram: fn(*mut Program) -> c_int,
    }
}

/// The compiler.
pub struct Nvrtc {
    functions: Functions,
    /// Which one it is: major and minor.
    pub version: (u32, u32),
    /// Real architectures that it compiles for: 90 is sm_90.
    pub architectures: Vec<u32>,
    /// Where it was found.
    pub path: PathBuf,
}

/// What the compiler made of a source.
#[derive(Debug)]
pub struct Output {
    /// A cubin; or PTX, which ends in a zero, of a virtual architecture.
    pub code: Vec<u8>,
    /// What the compiler said about it.
    pub log: String,
}

/// The newest major version whose functions are known.
const NEWEST: u32 = 13;
const OLDEST: u32 = 12;

impl Nvrtc {
    /// The newest that there is, at most of this major version: a driver loads no cubin of a newer one than its own.
    ///
    /// # Errors
    /// What was looked for.
    pub fn find(at_most: Option<u32>) -> Result<Self, Fault> {
        let newest = at_most.map_or(NEWEST, |most| most.clamp(OLDEST, NEWEST));
        let names = (OLDEST..=newest).rev().map(|major| format!("libnvrtc.so.{major}")).collect();
        let search = Search { names, folders: folders() };
        let (library, path) = search.open().map_err(|not_found| {
            let hint = format!("`pip install 'nvidia-cuda-nvrtc<{}'` brings it", newest + 1);
            let hint =
                if newest == OLDEST { "`pip install nvidia-cuda-nvrtc-cu12` brings it".into() } else { hint };
            Fault(format!("no libnvrtc, which compiles the kernels: {not_found}; {hint}"))
        })?;
        // SAFETY: these are nvrtc.h's types, the same in all these versions.
        let functions = unsafe { Functions::of(library) }
            .map_err(|lacks| Fault(format!("{} has no {lacks}: it is too old", path.display())))?;
        Nvrtc::of(functions, path)
    }

    fn of(functions: Functions, path: PathBuf) -> Result<Self, Fault> {
        let nvrtc = Nvrtc { functions, version: (0, 0), architectures: Vec::new(), path };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: each writes one number.
        nvrtc.check(unsafe { (nvrtc.functions.nvrtcVersion)(&mut major, &mut minor) })?;
        // Where the compiler was found in a folder of its own, the system does not find what it loads itself, unless that is
        // there already.
        if let Some(folder) = nvrtc.path.parent().filter(|folder| folder.is_absolute()) {
            // It stays loaded. Without it, compiling says what is missing.
            open(&folder.join(format!("libnvrtc-builtins.so.{major}.{minor}"))).map(std::mem::forget).ok();
        }
        // SAFETY: it writes one number.
        nvrtc.check(unsafe { (nvrtc.functions.nvrtcGetNumSupportedArchs)(&mut count) })?;
        let mut architectures = vec![0; count as usize];
        // SAFETY: there is room for as many numbers as it said.
        nvrtc.check(unsafe { (nvrtc.functions.nvrtcGetSupportedArchs)(architectures.as_mut_ptr()) })?;
        let architectures = architectures.into_iter().map(|a| a as u32).collect();
        Ok(Nvrtc { version: (major as u32, minor as u32), architectures, ..nvrtc })
    }

    /// Compiles a source to a cubin, if the options name a real architecture, or else to PTX. Threads may do it at the same
    /// time.
    ///
    /// # Errors
    /// All that the compiler says, over several lines.
    ///
    /// # Panics
    /// If a text has a zero in it.
    pub fn compile(&self, source: &str, options: &[&str], is_cubin: bool) -> Result<Output, Fault> {
        let text = |text: &str| CString::new(text).expect("no zeros in sources and options");
        let source = text(source);
        let options: Vec<CString> = options.iter().map(|option| text(option)).collect();
        let pointers: Vec<Text> = options.iter().map(|option| option.as_ptr()).collect();
        let f = &self.functions;
        let mut program = Owned { program: null_mut(), of: self };
        let name = c"kernels.cu";
        // SAFETY: all texts end in zeros and outlive the program; there are no headers.
        self.check(unsafe {
            (f.nvrtcCreateProgram)(&mut program.program, source.as_ptr(), name.as_ptr(), 0, null(), null())
        })?;
        // SAFETY: as many options as there are.
        let status =
            unsafe { (f.nvrtcCompileProgram)(program.program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.bytes(&program, f.nvrtcGetProgramLogSize, f.nvrtcGetProgramLog)?;
        let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim_end().to_string();
        self.check(status).map_err(|Fault(error)| Fault(format!("{error}\n{log}")))?;
        let code = match is_cubin {
            true => self.bytes(&program, f.nvrtcGetCUBINSize, f.nvrtcGetCUBIN)?,
            false => self.bytes(&program, f.nvrtcGetPTXSize, f.nvrtcGetPTX)?,
        };
        Ok(Output { code, log })
    }

    fn bytes(
        &self,
        program: &Owned,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<Vec<u8>, Fault> {
        let mut count = 0;
        // SAFETY: it writes one number.
        self.check(unsafe { size(program.program, &mut count) })?;
        let mut bytes = vec![0u8; count];
        // SAFETY: there is room for as many bytes as it said.
        self.check(unsafe { get(program.program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, status: c_int) -> Result<(), Fault> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a text that stays, for any number.
        let text = unsafe { CStr::from_ptr((self.functions.nvrtcGetErrorString)(status)) };
        Err(Fault(format!("libnvrtc: {}", text.to_string_lossy())))
    }
}

/// A program that is destroyed in the end.
struct Owned<'a> {
    program: Program,
    of: &'a Nvrtc,
}

impl Drop for Owned<'_> {
    fn drop(&mut self) {
        if !self.program.is_null() {
            // SAFETY: it was created and is destroyed once.
            unsafe { (self.of.functions.nvrtcDestroyProgram)(&mut self.program) };
        }
    }
}

/// Where toolkits and pip put it.
fn folders() -> Vec<PathBuf> {
    let toolkits = [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into())];
    let mut folders: Vec<PathBuf> = toolkits.into_iter().flatten().map(|kit| kit.join("lib64")).collect();
    folders.extend(package_folders(|name| name == "cuda_nvrtc" || name.starts_with("cu1")));
    folders
}
