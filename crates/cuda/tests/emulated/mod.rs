//! Kernels without a GPU: all of them compiled as C++ for this machine, and a driver that runs them at once in host memory.

use std::alloc::{Layout, alloc, dealloc};
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::HashMap;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use cuda::{Address, Arguments, Driver, Fault, Grid, Kernel, SharedMemory, kernels};
use libloading::Library;

#[path = "../once/mod.rs"]
mod once;

/// Of each kernel, by its name: how often it ran, and in how many blocks at most.
pub type Launches = Rc<RefCell<HashMap<&'static str, [u32; 2]>>>;

type Run = unsafe extern "C" fn(*const u32, u32, u32, *const *const c_void, u32);
type Takes = unsafe extern "C" fn() -> u32;

/// The kernels of this machine. `None` where there is no C++ compiler.
fn library() -> Option<&'static Library> {
    static LIBRARY: OnceLock<Option<Library>> = OnceLock::new();
    LIBRARY.get_or_init(load).as_ref()
}

fn load() -> Option<Library> {
    const OPTIONS: &[&str] = &[
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wno-unused-function",
        // Where a GPU does otherwise than this processor: addresses that are no multiples, shifts by too much. A kernel ends there.
        "-fsanitize=alignment,shift",
        "-fsanitize-undefined-trap-on-error",
    ];
    let folder = once::compiled("kernels", &[("kernels.so", &kernels::emulated(), OPTIONS)])?;
    // SAFETY: the library has no initialisers; it was made of our own sources.
    Some(unsafe { Library::new(folder.join("kernels.so")) }.expect("the kernels can be loaded"))
}

/// Memory of the host, and kernels that run when they are launched.
pub struct Emulated {
    library: &'static Library,
    /// In which order the threads of a block take turns.
    turn: Cell<u32>,
    sizes: RefCell<HashMap<Address, usize>>,
    /// What ranks share, in the order in which it was made.
    pub shared: Rc<RefCell<Vec<Arc<Shared>>>>,
    /// Which of the process's GPUs this is; nobody shares memory with one that has no number.
    pub ordinal: Option<u32>,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// The most bytes of shared memory that a block can have.
    pub shared_bytes: usize,
    /// A kernel that does nothing, as if what it writes got lost.
    pub lost: Option<&'static str>,
    /// What ran.
    pub launches: Launches,
    /// How often something was read.
    pub reads: Rc<Cell<usize>>,
}

/// Memory that is shared.
pub struct Shared {
    words: Box<[UnsafeCell<u64>]>,
}

// SAFETY: whoever shares it does not write what others read at the same time, but for words that are atomic.
unsafe impl Send for Shared {}
// SAFETY: see above.
unsafe impl Sync for Shared {}

impl SharedMemory for Shared {
    fn at(&self) -> Address {
        // As a GPU's, it begins at a multiple of 256.
        (self.words.as_ptr() as Address).next_multiple_of(256)
    }
}

/// What lies behind each allocation.
const GUARD: [u8; 1024] = [0x5a; 1024];

impl Emulated {
    /// `None`, and a word about it, where there is no C++ compiler.
    pub fn new(turn: u32) -> Option<Self> {
        let library = library();
        if library.is_none() {
            eprintln!("skipped: no C++ compiler, so no kernel can be emulated");
        }
        let (turn, sizes, shared) = (Cell::new(turn), RefCell::default(), Rc::default());
        let (multiprocessors, shared_bytes) = (2, 227 << 10);
        Some(Emulated {
            library: library?,
            turn,
            sizes,
            shared,
            ordinal: Some(0),
            multiprocessors,
            shared_bytes,
            lost: None,
            launches: Launches::default(),
            reads: Rc::default(),
        })
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + GUARD.len(), 256).expect("a size")
    }

    /// Gives an allocation back, behind which nobody has written.
    fn give_back(at: Address, bytes: usize) {
        // SAFETY: it was allocated with this layout, its end was written then, and it is given back once.
        let end = unsafe { std::slice::from_raw_parts((at as *const u8).add(bytes), GUARD.len()) };
        assert!(end == GUARD, "a kernel wrote behind an allocation of {bytes} bytes");
        // SAFETY: see above.
        unsafe { dealloc(at as *mut u8, Self::layout(bytes)) };
    }

    /// The bytes from an address on must be of one allocation.
    fn check(&self, at: Address, bytes: usize) {
        let fits =
            |(&start, &size): (&Address, &usize)| start <= at && at + bytes as u64 <= start + size as u64;
        let is_shared = |shared: &Arc<Shared>| fits((&shared.at(), &(8 * shared.words.len() - 256)));
        let is_ours = self.sizes.borrow().iter().any(fits) || self.shared.borrow().iter().any(is_shared);
        assert!(is_ours, "{bytes} bytes at {at:#x} are not the device's");
    }
}

impl Driver for Emulated {
    fn name(&self) -> String {
        "emulated".into()
    }

    fn multiprocessors(&self) -> usize {
        self.multiprocessors
    }

    fn shared_bytes(&self) -> usize {
        self.shared_bytes
    }

    fn alloc(&self, bytes: usize) -> Result<Address, Fault> {
        // SAFETY: the size is not 0.
        let at = unsafe { alloc(Self::layout(bytes)) };
        assert!(!at.is_null(), "no memory");
        // SAFETY: these bytes were allocated just now. NaN is what nobody must rely on.
        unsafe { at.write_bytes(0xff, bytes) };
        // SAFETY: there is room for it.
        unsafe { at.add(bytes).copy_from_nonoverlapping(GUARD.as_ptr(), GUARD.len()) };
        self.sizes.borrow_mut().insert(at as Address, bytes);
        Ok(at as Address)
    }

    fn free(&self, at: Address) {
        let bytes = self.sizes.borrow_mut().remove(&at).expect("what is freed was allocated");
        Self::give_back(at, bytes);
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Fault> {
        self.check(to, bytes.len());
        // SAFETY: checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Fault> {
        self.reads.set(self.reads.get() + 1);
        self.check(from, bytes.len());
        // SAFETY: checked.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.check(from, bytes);
        self.check(to, bytes);
        // SAFETY: checked.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn ordinal(&self) -> Option<u32> {
        self.ordinal
    }

    fn shared(&self, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
        let words = (0..bytes.div_ceil(8) + 32).map(|_| UnsafeCell::new(0)).collect();
        let shared = Arc::new(Shared { words });
        self.shared.borrow_mut().push(shared.clone());
        Ok(shared)
    }

    fn reach(&self, _: u32) -> Result<(), Fault> {
        Ok(())
    }

    fn launch(&self, kernel: Kernel, grid: Grid, arguments: &Arguments) -> Result<(), Fault> {
        assert!(kernels::for_gpu(kernel.file).is_some(), "no file of kernels is called {}", kernel.file);
        if self.lost == Some(kernel.name) {
            return Ok(());
        }
        assert!(
            grid.shared as usize <= self.shared_bytes,
            "{kernel} has {} bytes of shared memory",
            grid.shared
        );
        let blocks: u32 = grid.blocks.iter().product();
        let mut launches = self.launches.borrow_mut();
        let [times, most] = launches.entry(kernel.name).or_default();
        (*times, *most) = (*times + 1, blocks.max(*most));
        drop(launches);
        let symbol = format!("emulate_{}", kernel.name);
        // SAFETY: this is the signature of what EXPORT makes.
        let run = unsafe { self.library.get::<Run>(symbol.as_bytes()) }.expect("the kernel is exported");
        // SAFETY: so does this.
        let takes = unsafe { self.library.get::<Takes>(format!("arguments_of_{}", kernel.name).as_bytes()) };
        // SAFETY: it only returns a number.
        let takes = unsafe { takes.expect("the kernel says what it takes")() };
        assert_eq!(
            arguments.slots().len(),
            takes as usize,
            "{kernel}: arguments that it is given, and that it takes"
        );
        let pointers: Vec<*const c_void> =
            arguments.slots().iter().map(|slot| slot as *const u64 as *const c_void).collect();
        // SAFETY: the arguments are as many as the kernel takes, and each slot has all the bytes that any type takes. What
        // they point to is the device's.
        unsafe { run(grid.blocks.as_ptr(), grid.threads, grid.shared, pointers.as_ptr(), self.turn.get()) };
        Ok(())
    }
}

impl Drop for Emulated {
    fn drop(&mut self) {
        for (at, bytes) in std::mem::take(&mut *self.sizes.borrow_mut()) {
            Self::give_back(at, bytes);
        }
    }
}
