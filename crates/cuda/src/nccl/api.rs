//! NVIDIA's library of collectives: where it is found, its functions, and what its errors say.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use libloading::Library;

use crate::driver::{Address, Fault};
use crate::libraries::{Search, functions, package_folders};
use crate::nvidia::BLOCKS;

/// A communicator as the library knows it.
pub(super) type Handle = *mut c_void;
type Stream = *mut c_void;

/// How many bytes an id of a communicator has.
pub(super) const ID_BYTES: usize = 128;

/// What the ranks of a communicator find each other by.
#[repr(C)]
#[derive(Clone, Copy)]
struct Id([u8; ID_BYTES]);

/// How a communicator is to be, as nccl.h had it in 2.17. The library takes what later versions added from its defaults.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
}

const MAGIC: c_uint = 0xcafe_beef;
const CONFIG_VERSION: c_uint = 21_700;
/// What the library is to choose itself.
const UNDEFINED: c_int = c_int::MIN;

const SUCCESS: c_int = 0;
const IN_PROGRESS: c_int = 7;
/// `ncclFloat32`, `ncclUint8` and `ncclSum`.
const FLOAT: c_int = 7;
const BYTE: c_int = 1;
const SUM: c_int = 0;

functions! {
    /// As nccl.h has them since 2.18.
    struct Functions {
        ncclGetUniqueId: fn(*mut Id) -> c_int,
        ncclCommInitRankConfig: fn(*mut Handle, c_int, Id, c_int, *mut Config) -> c_int,
        ncclCommGetAsyncError: fn(Handle, *mut c_int) -> c_int,
        ncclCommFinalize: fn(Handle) -> c_int,
        ncclCommDestroy: fn(Handle) -> c_int,
        ncclCommAbort: fn(Handle) -> c_int,
        ncclGetErrorString: fn(c_int) -> *const c_char,
        ncclGetLastError: fn(Handle) -> *const c_char,
        ncclGroupStart: fn() -> c_int,
        ncclGroupEnd: fn() -> c_int,
        ncclAllReduce: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
        ncclReduceScatter: fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
        ncclAllGather: fn(*const c_void, *mut c_void, usize, c_int, Handle, Stream) -> c_int,
        ncclSend: fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
        ncclRecv: fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    }
}

/// The library.
pub struct Nccl {
    functions: Functions,
    /// Which one it is: major, minor and patch.
    pub version: (u32, u32, u32),
    /// Where it was found.
    pub path: PathBuf,
}

/// The oldest version that is known to end what is aborted.
const OLDEST: (u32, u32) = (2, 18);

/// What a rank asks of the others, on memory of its GPU. Sums are added in whatever order the library likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// Everybody gets the sum of all, `count` floats.
    AllReduce {
        /// Where this rank's are.
        from: Address,
        /// Where the sums go; may be the same.
        to: Address,
        /// Floats.
        count: usize,
    },
    /// Everybody gets a part of the sum, of `count` floats.
    ReduceScatter {
        /// As many floats as ranks · `count`.
        from: Address,
        /// Where this rank's part of the sums goes.
        to: Address,
        /// Floats of a part.
        count: usize,
    },
    /// Everybody gets everybody's `count` floats.
    AllGather {
        /// This rank's.
        from: Address,
        /// Where ranks · `count` floats go.
        to: Address,
        /// Floats of a rank.
        count: usize,
    },
    /// Bytes for another rank.
    Send {
        /// Where they are.
        from: Address,
        /// Bytes.
        bytes: usize,
        /// Whose they will be.
        peer: usize,
    },
    /// Bytes of another rank.
    Recv {
        /// Where they go.
        to: Address,
        /// Bytes.
        bytes: usize,
        /// Whose they are.
        peer: usize,
    },
}

/// How far something is that the library does at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    UnderWay,
}

impl Nccl {
    /// The first that is found: where the system looks, or where pip and conda put it.
    ///
    /// # Errors
    /// What was looked for; or what is there is too old, with its version; or the environment has it wait by itself.
    pub fn find() -> Result<Arc<Self>, Fault> {
        if let Ok(blocks) = std::env::var(BLOCKS)
            && blocks != "0"
        {
            return Err(Fault(format!("{BLOCKS} is {blocks}, by which nobody could give NCCL up: unset it")));
        }
        let names = ["libnccl.so.2", "libnccl.so"].map(String::from).to_vec();
        let search = Search { names, folders: package_folders(|name| name == "nccl") };
        let (library, path) = search.open().map_err(|not_found| {
            Fault(format!(
                "no libnccl, by which GPUs exchange: {not_found}; `pip install nvidia-nccl-cu13`, or nvidia-nccl-cu12 for a driver of CUDA 12, \
                 brings it"
            ))
        })?;
        let version = version(&library)
            .ok_or_else(|| Fault(format!("{} does not say which NCCL it is", path.display())))?;
        let (major, minor, patch) = version;
        let needed = || {
            let (least, than) = OLDEST;
            format!("NCCL {least}.{than} or newer is needed")
        };
        if major != OLDEST.0 || (major, minor) < OLDEST {
            return Err(Fault(format!("{} is NCCL {major}.{minor}.{patch}; {}", path.display(), needed())));
        }
        // SAFETY: these are nccl.h's types, the same in all versions of this number from that one on.
        let functions = unsafe { Functions::of(library) }.map_err(|lacks| {
            let what = format!("{}, NCCL {major}.{minor}.{patch}", path.display());
            Fault(format!("{what}, has no {lacks}; {}", needed()))
        })?;
        Ok(Arc::new(Nccl { functions, version, path }))
    }

    /// An id for a new communicator, which all its ranks get.
    pub(super) fn unique_id(&self) -> Result<[u8; ID_BYTES], Fault> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: it writes the id.
        self.check(unsafe { (self.functions.ncclGetUniqueId)(&mut id) }, null_mut())?;
        Ok(id.0)
    }

    /// Begins to make a rank's communicator on the GPU of the calling thread. It is there once it has
    /// [progressed](Nccl::progress) as far.
    pub(super) fn begin(&self, id: [u8; ID_BYTES], rank: usize, ranks: usize) -> Result<Handle, Fault> {
        let mut config = Config {
            size: size_of::<Config>(),
            magic: MAGIC,
            version: CONFIG_VERSION,
            // Calls return at once, so that whoever waits for one can give up.
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: null(),
        };
        let mut handle = null_mut();
        let (rank, ranks) = (number(rank), number(ranks));
        // SAFETY: it writes one pointer; id and configuration are read before it returns.
        let begun =
            unsafe { (self.functions.ncclCommInitRankConfig)(&mut handle, ranks, Id(id), rank, &mut config) };
        match begun {
            SUCCESS | IN_PROGRESS if !handle.is_null() => Ok(handle),
            _ => Err(self.error(begun, handle)),
        }
    }

    /// How far a communicator is with what was begun last.
    ///
    /// # Errors
    /// What the library met on its way, on this rank or another.
    ///
    /// # Safety
    /// The communicator is there.
    pub(super) unsafe fn progress(&self, handle: Handle) -> Result<Progress, Fault> {
        let mut state = SUCCESS;
        // SAFETY: it writes one number; the caller says that the communicator is there.
        self.check(unsafe { (self.functions.ncclCommGetAsyncError)(handle, &mut state) }, handle)?;
        match state {
            IN_PROGRESS => Ok(Progress::UnderWay),
            _ => self.check(state, handle).map(|()| Progress::Done),
        }
    }

    /// Begins to put transfers into a stream, together, so that none of them waits for another.
    ///
    /// # Safety
    /// The communicator is there and makes progress with nothing; the addresses are its GPU's, and stay until the work is done.
    pub(super) unsafe fn enqueue(
        &self,
        handle: Handle,
        transfers: &[Transfer],
        stream: Stream,
    ) -> Result<(), Fault> {
        let f = &self.functions;
        // SAFETY: what is begun is ended.
        self.check(unsafe { (f.ncclGroupStart)() }, handle)?;
        let begin = |transfer: &Transfer| {
            let (from, to) = (|at: Address| at as *const c_void, |at: Address| at as *mut c_void);
            // SAFETY: the caller promises it.
            let begun = unsafe {
                match *transfer {
                    Transfer::AllReduce { from: x, to: y, count } => {
                        (f.ncclAllReduce)(from(x), to(y), count, FLOAT, SUM, handle, stream)
                    }
                    Transfer::ReduceScatter { from: x, to: y, count } => {
                        (f.ncclReduceScatter)(from(x), to(y), count, FLOAT, SUM, handle, stream)
                    }
                    Transfer::AllGather { from: x, to: y, count } => {
                        (f.ncclAllGather)(from(x), to(y), count, FLOAT, handle, stream)
                    }
                    Transfer::Send { from: x, bytes, peer } => {
                        (f.ncclSend)(from(x), bytes, BYTE, number(peer), handle, stream)
                    }
                    Transfer::Recv { to: y, bytes, peer } => {
                        (f.ncclRecv)(to(y), bytes, BYTE, number(peer), handle, stream)
                    }
                }
            };
            self.check_begun(begun, handle)
        };
        let begun = transfers.iter().try_for_each(begin);
        // SAFETY: it was begun.
        let ended = unsafe { (f.ncclGroupEnd)() };
        begun.and_then(|()| self.check_begun(ended, handle))
    }

    /// Begins to bring all work of a communicator to its end, together with the other ranks.
    ///
    /// # Safety
    /// The communicator is there.
    pub(super) unsafe fn finalize(&self, handle: Handle) -> Result<(), Fault> {
        // SAFETY: the caller promises it.
        self.check_begun(unsafe { (self.functions.ncclCommFinalize)(handle) }, handle)
    }

    /// Gives a finalised communicator back.
    ///
    /// # Safety
    /// It is used no more.
    pub(super) unsafe fn destroy(&self, handle: Handle) {
        // SAFETY: the caller promises it.
        unsafe { (self.functions.ncclCommDestroy)(handle) };
    }

    /// Ends all work of a communicator and gives it back. It may take its time.
    ///
    /// # Safety
    /// It is used no more.
    pub(super) unsafe fn abort(&self, handle: Handle) {
        // SAFETY: the caller promises it.
        unsafe { (self.functions.ncclCommAbort)(handle) };
    }

    fn check(&self, status: c_int, handle: Handle) -> Result<(), Fault> {
        if status == SUCCESS { Ok(()) } else { Err(self.error(status, handle)) }
    }

    fn check_begun(&self, status: c_int, handle: Handle) -> Result<(), Fault> {
        if status == IN_PROGRESS { Ok(()) } else { self.check(status, handle) }
    }

    /// An error in the library's words, in one line.
    fn error(&self, status: c_int, handle: Handle) -> Fault {
        let text = |text: *const c_char| {
            // SAFETY: the library's texts end in zeros and stay.
            let text = (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy());
            text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        // SAFETY: it takes any number.
        let what = text(unsafe { (self.functions.ncclGetErrorString)(status) });
        // SAFETY: a communicator that is there, or none.
        let why = text(unsafe { (self.functions.ncclGetLastError)(handle) });
        let (major, minor, patch) = self.version;
        let why = if why.is_empty() { why } else { format!(" ({why})") };
        Fault(format!("NCCL {major}.{minor}.{patch}: {what}{why}"))
    }
}

/// Which NCCL a library is, if it is one.
fn version(library: &Library) -> Option<(u32, u32, u32)> {
    let mut code = 0;
    // SAFETY: in every version of NCCL it writes one number.
    let status = unsafe {
        let get =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(c"ncclGetVersion".to_bytes_with_nul());
        get.ok()?(&mut code)
    };
    (status == SUCCESS).then(|| parts(code as u32))
}

/// Up to 2.8 two digits less were between the numbers.
fn parts(code: u32) -> (u32, u32, u32) {
    let of_major = if code < 10_000 { 1000 } else { 10_000 };
    (code / of_major, code % of_major / 100, code % 100)
}

fn number(x: usize) -> c_int {
    c_int::try_from(x).expect("a number of ranks")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_old_and_new_are_read() {
        assert_eq!(parts(2708), (2, 7, 8));
        assert_eq!(parts(21805), (2, 18, 5));
        assert_eq!(parts(23203), (2, 32, 3));
    }

    #[test]
    fn the_configuration_is_that_of_nccl_h() {
        assert_eq!((size_of::<Config>(), align_of::<Config>()), (40, 8));
        assert_eq!(std::mem::offset_of!(Config, blocking), 16);
        assert_eq!(std::mem::offset_of!(Config, net_name), 32);
        assert_eq!(size_of::<Id>(), ID_BYTES);
    }
}
