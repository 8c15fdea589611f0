//! Code that is loaded on a GPU, and its kernels.

use std::collections::HashMap;
use std::ffi::{CString, c_int};
use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUfunction_attribute, CUmodule};

use super::api::check;
use super::gpu::Function;
use crate::driver::{Fault, Kernel};

/// What comes before a kernel's name in code: the name of its section in a cubin, its declaration in PTX.
const BEFORE_NAMES: [&[u8]; 2] = [b".text.", b".entry "];

/// A file's code on the current GPU, and the kernels of it that are ready.
pub(super) struct Module {
    module: CUmodule,
    /// Of a kernel that asks for all of it.
    shared_bytes: u32,
    functions: HashMap<String, Function>,
}

// SAFETY: modules may be used from any thread of the process.
unsafe impl Send for Module {}

impl Module {
    /// Loads code whose blocks may have so much shared memory. All its kernels are then ready: to make one ready may wait for all that
    /// runs, and at its first launch another rank's kernel may already wait for this one.
    ///
    /// # Errors
    /// It is nothing for this driver.
    pub fn load(code: &[u8], shared_bytes: u32) -> Result<Self, Fault> {
        let mut raw = null_mut();
        // SAFETY: the code is whole; PTX ends in a zero.
        check(unsafe { sys::cuModuleLoadData(&mut raw, code.as_ptr().cast()) })?;
        let mut module = Module { module: raw, shared_bytes, functions: HashMap::new() };
        for name in names(code) {
            // Other functions have sections too; a kernel that fails here does so again for whoever asks for it.
            module.ready(&name).ok();
        }
        Ok(module)
    }

    /// A kernel. The GPU is current.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn function(&mut self, kernel: Kernel) -> Result<Function, Fault> {
        match self.functions.get(kernel.name) {
            Some(function) => Ok(*function),
            None => self.ready(kernel.name).map_err(|Fault(error)| {
                Fault(format!("no kernel {} in {}.cu: {error}", kernel.name, kernel.file))
            }),
        }
    }

    /// Gives a kernel all the shared memory that there is. More than 48 KB must be asked for. It binds nothing: a launch says what it
    /// takes.
    fn ready(&mut self, name: &str) -> Result<Function, Fault> {
        let text = CString::new(name).map_err(|_| Fault("a name with a zero".into()))?;
        let (mut function, mut own) = (null_mut(), 0);
        // SAFETY: it writes one pointer; the module is loaded and the name ends in a zero.
        check(unsafe { sys::cuModuleGetFunction(&mut function, self.module, text.as_ptr()) })?;
        let own_bytes = CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: it writes one number.
        check(unsafe { sys::cuFuncGetAttribute(&mut own, own_bytes, function) })?;
        let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function is loaded.
        check(unsafe { sys::cuFuncSetAttribute(function, most, self.shared_bytes as c_int - own) })?;
        self.functions.insert(name.to_owned(), Function(function));
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: it was loaded and is unloaded once; nothing runs any more that is of it.
        unsafe { sys::cuModuleUnload(self.module) };
    }
}

/// Names that code has for its kernels, and maybe for other functions.
fn names(code: &[u8]) -> Vec<String> {
    let is_of_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
    let places = BEFORE_NAMES.iter().flat_map(|before| {
        let begins = |at: &usize| code[*at..].starts_with(before);
        (0..code.len()).filter(begins).map(|at| at + before.len())
    });
    let name = |at: usize| -> Vec<u8> { code[at..].iter().take_while(is_of_name).copied().collect() };
    let mut names: Vec<String> = places.filter_map(|at| String::from_utf8(name(at)).ok()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_found_in_cubins_and_in_ptx() {
        let cubin = b"\x7fELF\0.shstrtab\0.text.norm_rows\0.nv.info.norm_rows\0.text.gemm_half_experts\0.text.\0.text.norm_rows";
        assert_eq!(names(cubin), ["gemm_half_experts", "norm_rows"]);
        let ptx = b".version 8.0\n.visible .entry add(\n.param .u64 add_0)\n.visible .entry scale (";
        assert_eq!(names(ptx), ["add", "scale"]);
    }
}
