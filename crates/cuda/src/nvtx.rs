//! Named ranges of a thread for NVIDIA's tools, as NVTX 3 has them.
//!
//! A tool (nsys, ncu) names a library in the environment. The program loads it and hands it tables of places for functions; the tool
//! writes its own there. Without a tool nothing is loaded and no range costs anything. There is nothing of a toolkit in this: what the
//! headers of NVTX do is this handshake.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::null;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::libraries;

/// Where a tool says which library is its own.
const VARIABLE: &str = "NVTX_INJECTION64_PATH";
/// What that library begins with. It gets a function that finds tables by their numbers.
const BEGIN: &str = "InitializeInjectionNvtx2";

/// Numbers of tables.
const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;
/// Of NVTX.
const VERSION: u32 = 3;

/// Modules of functions by their numbers, and how many places each has, the first of which is none's.
const MODULES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
/// The module of ranges, and in it what opens one and closes the last.
const CORE: usize = 1;
const PUSH: usize = 9;
const POP: usize = 11;

type Place = AtomicPtr<c_void>;
type Push = unsafe extern "C" fn(*const c_char) -> c_int;
type Pop = unsafe extern "C" fn() -> c_int;

/// What a tool wants to know.
#[derive(Clone, Copy)]
pub(crate) struct Ranges {
    push: Push,
    pop: Pop,
}

impl Ranges {
    /// `None` if no tool is attached to the process.
    pub fn of_process() -> Option<Self> {
        static RANGES: OnceLock<Option<Ranges>> = OnceLock::new();
        *RANGES.get_or_init(|| attach(Path::new(&std::env::var_os(VARIABLE)?)))
    }

    /// Opens a range on this thread.
    pub fn push(self, name: &str) {
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: a tool put it there for this; it gets a text that ends in a zero and stays until it returns.
        unsafe { (self.push)(name.as_ptr()) };
    }

    /// Has a range around some work, if a tool is attached.
    pub fn around<T>(ranges: Option<Self>, name: impl FnOnce() -> String, work: impl FnOnce() -> T) -> T {
        let Some(ranges) = ranges else { return work() };
        ranges.push(&name());
        let done = work();
        ranges.pop();
        done
    }

    /// Closes the one that was opened last.
    pub fn pop(self) {
        // SAFETY: see above.
        unsafe { (self.pop)() };
    }
}

/// A tool that can't be attached is none: the program runs as without.
fn attach(path: &Path) -> Option<Ranges> {
    let library = libraries::open(path).ok()?;
    type Begin = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: that is what NVTX says of a function of this name.
    let begin = *unsafe { library.get::<Begin>(BEGIN) }.ok()?;
    // SAFETY: see above; the tables stay.
    let began = unsafe { begin(table) };
    // It stays, as far as it wants to be called.
    std::mem::forget(library);
    let place = |index: usize| places()[CORE][index].load(Ordering::Acquire);
    let (push, pop) = (place(PUSH), place(POP));
    if began == 0 || push.is_null() || pop.is_null() {
        return None;
    }
    // SAFETY: what a tool writes to these places has these types.
    Some(unsafe {
        Ranges {
            push: std::mem::transmute::<*mut c_void, Push>(push),
            pop: std::mem::transmute::<*mut c_void, Pop>(pop),
        }
    })
}

/// For each module the places of its functions.
fn places() -> &'static [Vec<Place>; MODULES.len()] {
    static PLACES: OnceLock<[Vec<Place>; MODULES.len()]> = OnceLock::new();
    PLACES.get_or_init(|| MODULES.map(|count| (0..count).map(|_| Place::default()).collect()))
}

/// For each module a list of those places, between two that are none.
fn lists() -> &'static [Vec<Option<&'static Place>>; MODULES.len()] {
    static LISTS: OnceLock<[Vec<Option<&'static Place>>; MODULES.len()]> = OnceLock::new();
    let list = |places: &'static Vec<Place>| {
        std::iter::once(None).chain(places.iter().skip(1).map(Some)).chain([None]).collect()
    };
    LISTS.get_or_init(|| places().each_ref().map(list))
}

#[repr(C)]
struct Callbacks {
    bytes: usize,
    list_of: extern "C" fn(c_uint, *mut *const Option<&'static Place>, *mut c_uint) -> c_int,
}

#[repr(C)]
struct VersionInfo {
    bytes: usize,
    version: u32,
    reserved: u32,
    set: extern "C" fn(u32),
}

/// A table by its number; nothing if there is none.
extern "C" fn table(number: u32) -> *const c_void {
    static TABLE: Callbacks = Callbacks { bytes: size_of::<Callbacks>(), list_of };
    static INFO: VersionInfo =
        VersionInfo { bytes: size_of::<VersionInfo>(), version: VERSION, reserved: 0, set: of_version };
    match number {
        CALLBACKS => (&raw const TABLE).cast(),
        VERSION_INFO => (&raw const INFO).cast(),
        _ => null(),
    }
}

/// Whichever version a tool is of, it has had these functions from the first.
extern "C" fn of_version(_: u32) {}

/// A module's list and how long it is; 0 if there is no such module.
extern "C" fn list_of(module: c_uint, list: *mut *const Option<&'static Place>, count: *mut c_uint) -> c_int {
    let Some(found) = lists().get(module as usize).filter(|_| module > 0) else { return 0 };
    if !list.is_null() {
        // SAFETY: a tool says where it wants it.
        unsafe { list.write(found.as_ptr()) };
    }
    if !count.is_null() {
        // SAFETY: see above.
        unsafe { count.write(found.len() as c_uint - 1) };
    }
    1
}
