//! NVIDIA's library of matrix products, found at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{from_ref, null_mut};
use std::rc::Rc;

use crate::driver::{Address, Fault};
use crate::libraries::{Search, functions, package_folders, variable};

type Opaque = *mut c_void;

functions! {
    /// As cublasLt.h of CUDA 12 and 13 has them.
    struct Functions {
        cublasLtCreate: fn(*mut Opaque) -> c_int,
        cublasLtDestroy: fn(Opaque) -> c_int,
        cublasLtGetStatusString: fn(c_int) -> *const c_char,
        cublasLtMatmul: fn(
            Opaque, Opaque, *const f32, Address, Opaque, Address, Opaque, *const f32, Address, Opaque, Address, Opaque,
            *const Algorithm, Address, usize, Opaque
        ) -> c_int,
        cublasLtMatmulDescCreate: fn(*mut Opaque, c_int, c_int) -> c_int,
        cublasLtMatmulDescSetAttribute: fn(Opaque, c_int, *const c_void, usize) -> c_int,
        cublasLtMatmulDescDestroy: fn(Opaque) -> c_int,
        cublasLtMatrixLayoutCreate: fn(*mut Opaque, c_int, u64, u64, i64) -> c_int,
        cublasLtMatrixLayoutDestroy: fn(Opaque) -> c_int,
        cublasLtMatmulPreferenceCreate: fn(*mut Opaque) -> c_int,
        cublasLtMatmulPreferenceSetAttribute: fn(Opaque, c_int, *const c_void, usize) -> c_int,
        cublasLtMatmulPreferenceDestroy: fn(Opaque) -> c_int,
        cublasLtMatmulAlgoGetHeuristic: fn(
            Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Heuristic, *mut c_int
        ) -> c_int,
    }
}

// Of the library's enumerations, the same in all these versions.
const R_32F: c_int = 0;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
const R_8F_E4M3: c_int = 28;
const COMPUTE_32F: c_int = 68;
const DESC_TRANSA: c_int = 3;
const OP_T: c_int = 1;
const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
const PREF_MIN_ALIGNMENT: [c_int; 4] = [5, 6, 7, 8];

/// How the library computes a product: its own business.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Algorithm([u64; 8]);

#[repr(C)]
struct Heuristic {
    algorithm: Algorithm,
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// The library, ready to work on the GPU of the thread that opened it.
pub(super) struct CublasLt {
    functions: Functions,
    handle: Opaque,
}

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    Half,
    Bfloat,
    /// On GPUs of which [`crate::Driver::multiplies_fp8`] says so; the library wants sizes of matrices that are multiples of 16.
    Fp8,
}

impl Element {
    pub fn bytes(self) -> usize {
        match self {
            Element::Half | Element::Bfloat => 2,
            Element::Fp8 => 1,
        }
    }

    /// Its number in the library.
    pub fn number(self) -> c_int {
        match self {
            Element::Half => R_16F,
            Element::Bfloat => R_16BF,
            Element::Fp8 => R_8F_E4M3,
        }
    }
}

/// `y [rows, n] = x [rows, k] · wᵀ [n, k]`, row by row, summed in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub element: Element,
    pub rows: usize,
    pub n: usize,
    pub k: usize,
    /// Elements from one row to the next, of inputs of both, and of outputs.
    pub input_stride: usize,
    pub output_stride: usize,
}

/// The newest major version whose functions are known, and the oldest.
const NEWEST: u32 = 13;
const OLDEST: u32 = 12;

/// The newest that there is, of those that a driver of this major version of CUDA runs.
fn search(driver: Option<u32>) -> Search {
    let newest = driver.map_or(NEWEST, |major| major.clamp(OLDEST, NEWEST));
    let names = (OLDEST..=newest).rev().map(|major| format!("libcublasLt.so.{major}")).collect();
    let toolkits = [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into())];
    let mut folders: Vec<_> = toolkits.into_iter().flatten().map(|kit| kit.join("lib64")).collect();
    folders.extend(package_folders(|name| name == "cublas" || name.starts_with("cu1")));
    Search { names, folders }
}

impl CublasLt {
    /// The newest that there is, of those that a driver of this major version of CUDA runs. The GPU is that of the calling thread.
    ///
    /// # Errors
    /// What was looked for, or why it does not work here.
    pub fn open(driver: Option<u32>) -> Result<Rc<Self>, Fault> {
        let (library, path) =
            search(driver).open().map_err(|not_found| Fault(format!("no libcublasLt: {not_found}")))?;
        // SAFETY: these are cublasLt.h's types, the same in all these versions.
        let functions = unsafe { Functions::of(library) }
            .map_err(|lacks| Fault(format!("{} has no {lacks}: it is too old", path.display())))?;
        let mut handle = null_mut();
        // SAFETY: it writes one pointer.
        let status = unsafe { (functions.cublasLtCreate)(&mut handle) };
        let library = CublasLt { functions, handle };
        library.check(status).map_err(|Fault(why)| Fault(format!("{}: {why}", path.display())))?;
        Ok(Rc::new(library))
    }

    fn check(&self, status: c_int) -> Result<(), Fault> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: it gives a text that stays, for any number.
        let text = unsafe { CStr::from_ptr((self.functions.cublasLtGetStatusString)(status)) };
        Err(Fault(format!("libcublasLt: {}", text.to_string_lossy())))
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: it was created and is destroyed once.
            unsafe { (self.functions.cublasLtDestroy)(self.handle) };
        }
    }
}

/// A product as the library knows it.
pub(super) struct Described {
    of: Rc<CublasLt>,
    operation: Opaque,
    /// Of w, x and y, column by column as the library has it.
    layouts: [Opaque; 3],
}

impl Described {
    pub fn new(of: &Rc<CublasLt>, product: Product) -> Result<Self, Fault> {
        let f = &of.functions;
        let mut new = Described { of: of.clone(), operation: null_mut(), layouts: [null_mut(); 3] };
        // SAFETY: it writes one pointer.
        of.check(unsafe { (f.cublasLtMatmulDescCreate)(&mut new.operation, COMPUTE_32F, R_32F) })?;
        let transposed = OP_T;
        // SAFETY: the attribute is one number of this size.
        of.check(unsafe {
            (f.cublasLtMatmulDescSetAttribute)(new.operation, DESC_TRANSA, from_ref(&transposed).cast(), 4)
        })?;
        let Product { element, rows, n, k, input_stride, output_stride } = product;
        let inputs = element.number();
        // What lies row by row is, column by column, the transpose.
        let shapes =
            [(inputs, k, n, input_stride), (inputs, k, rows, input_stride), (R_32F, n, rows, output_stride)];
        for (layout, (kind, height, width, stride)) in new.layouts.iter_mut().zip(shapes) {
            // SAFETY: it writes one pointer.
            of.check(unsafe {
                (f.cublasLtMatrixLayoutCreate)(layout, kind, height as u64, width as u64, stride as i64)
            })?;
        }
        Ok(new)
    }

    /// The algorithm that the library thinks best, for operands at multiples of so many bytes: w, x and y.
    pub fn algorithm(&self, alignments: [u32; 3], workspace: usize) -> Result<Algorithm, Fault> {
        let f = &self.of.functions;
        let mut preference = Preference { of: &self.of, preference: null_mut() };
        // SAFETY: it writes one pointer.
        self.of.check(unsafe { (f.cublasLtMatmulPreferenceCreate)(&mut preference.preference) })?;
        let set = |which, value: *const c_void, bytes| {
            // SAFETY: the attribute is one number of so many bytes.
            self.of.check(unsafe {
                (f.cublasLtMatmulPreferenceSetAttribute)(preference.preference, which, value, bytes)
            })
        };
        set(PREF_MAX_WORKSPACE_BYTES, from_ref(&workspace).cast(), size_of::<usize>())?;
        let [w, x, y] = alignments;
        for (which, bytes) in PREF_MIN_ALIGNMENT.into_iter().zip([w, x, y, y]) {
            set(which, from_ref(&bytes).cast(), size_of::<u32>())?;
        }
        let mut best =
            Heuristic { algorithm: Algorithm([0; 8]), workspace: 0, state: 0, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        let [w, x, y] = self.layouts;
        // SAFETY: there is room for one, and one is asked for.
        self.of.check(unsafe {
            (f.cublasLtMatmulAlgoGetHeuristic)(
                self.of.handle,
                self.operation,
                w,
                x,
                y,
                y,
                preference.preference,
                1,
                &mut best,
                &mut count,
            )
        })?;
        match count {
            0 => Err(Fault("libcublasLt knows no way to multiply this".into())),
            _ => self.of.check(best.state).map(|()| best.algorithm),
        }
    }

    /// Puts the product into a stream.
    pub fn multiply(
        &self,
        [w, x, y]: [Address; 3],
        algorithm: &Algorithm,
        (workspace, bytes): (Address, usize),
        stream: *mut c_void,
    ) -> Result<(), Fault> {
        let [of_w, of_x, of_y] = self.layouts;
        let (one, zero) = (1.0, 0.0);
        // SAFETY: whoever asked for it says that matrices of these layouts lie there, and as much workspace.
        self.of.check(unsafe {
            (self.of.functions.cublasLtMatmul)(
                self.of.handle,
                self.operation,
                &one,
                w,
                of_w,
                x,
                of_x,
                &zero,
                y,
                of_y,
                y,
                of_y,
                algorithm,
                workspace,
                bytes,
                stream,
            )
        })
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        let f = &self.of.functions;
        if !self.operation.is_null() {
            // SAFETY: it was created and is destroyed once.
            unsafe { (f.cublasLtMatmulDescDestroy)(self.operation) };
        }
        for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
            // SAFETY: see above.
            unsafe { (f.cublasLtMatrixLayoutDestroy)(layout) };
        }
    }
}

/// What is asked of an algorithm.
struct Preference<'a> {
    of: &'a CublasLt,
    preference: Opaque,
}

impl Drop for Preference<'_> {
    fn drop(&mut self) {
        if !self.preference.is_null() {
            // SAFETY: it was created and is destroyed once.
            unsafe { (self.of.functions.cublasLtMatmulPreferenceDestroy)(self.preference) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_gets_no_library_that_is_newer_than_itself() {
        let names = |driver| search(driver).names;
        let [new, old] = ["libcublasLt.so.13", "libcublasLt.so.12"].map(String::from);
        assert_eq!(names(Some(12)), std::slice::from_ref(&old));
        for newer in [None, Some(13), Some(14)] {
            assert_eq!(names(newer), [new.clone(), old.clone()]);
        }
    }
}
