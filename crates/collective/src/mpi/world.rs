//! MPI itself: started once per process, called by one thread at a time, and transfers that own their bytes.
//!
//! MPI reads and writes the bytes of a transfer until it is over, and one to a rank that is lost may never be. So bytes
//! belong to their transfer, and a transfer that nobody waits for any more lives on in the world.

use std::ffi::{CStr, c_char, c_int};
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi_sys as ffi;

use crate::CollectiveError;

/// What MPI reads or writes, and its own name for doing so.
struct Moving {
    request: ffi::MPI_Request,
    bytes: Vec<u8>,
}

/// What is used under the lock only.
#[derive(Default)]
struct Locked {
    /// Transfers for which nobody waits.
    orphans: Vec<Moving>,
    /// The group that ended last had failed.
    failed: bool,
    /// MPI has ended.
    over: bool,
}

/// This process's place among those that were started together.
pub(super) struct World {
    comm: ffi::MPI_Comm,
    pub rank: usize,
    pub size: usize,
    locked: Mutex<Locked>,
}

// SAFETY: a communicator's handle may be used by any thread, since MPI_THREAD_SERIALIZED was asked for and given, and
// only under the lock.
unsafe impl Send for World {}
// SAFETY: as above.
unsafe impl Sync for World {}
// SAFETY: a request's handle too; its bytes are on the heap and move with it.
unsafe impl Send for Moving {}

/// How long a process that has failed waits for the others at its end.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Any rank, as a source.
pub(super) const ANYBODY: Option<usize> = None;

impl World {
    /// Starts MPI.
    ///
    /// # Errors
    /// It runs already, or cannot be used as it has to be.
    pub fn start() -> Result<Self, CollectiveError> {
        let (mut initialized, mut finalized, mut provided) = (0, 0, 0);
        // SAFETY: these two may be called at any time; MPI_Init_thread once, before anything else.
        let wanted = unsafe {
            ffi::MPI_Initialized(&mut initialized);
            ffi::MPI_Finalized(&mut finalized);
            if initialized != 0 || finalized != 0 {
                return Err(CollectiveError::Mpi("it can be started only once per process".into()));
            }
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            succeed("MPI_Init_thread", ffi::MPI_Init_thread(null_mut(), null_mut(), wanted, &mut provided))?;
            wanted
        };
        if provided < wanted {
            return Err(CollectiveError::Mpi("it was built without MPI_THREAD_SERIALIZED".into()));
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: MPI has been started; what is pointed to lives until the calls return. All processes make this call.
        let comm = unsafe {
            let mut comm = ffi::RSMPI_COMM_NULL;
            succeed("MPI_Comm_dup", ffi::MPI_Comm_dup(ffi::RSMPI_COMM_WORLD, &mut comm))?;
            let returned = ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN);
            succeed("MPI_Comm_set_errhandler", returned)?;
            succeed("MPI_Comm_rank", ffi::MPI_Comm_rank(comm, &mut rank))?;
            succeed("MPI_Comm_size", ffi::MPI_Comm_size(comm, &mut size))?;
            comm
        };
        Ok(World { comm, rank: rank as usize, size: size as usize, locked: Mutex::default() })
    }

    fn lock(&self) -> Result<MutexGuard<'_, Locked>, CollectiveError> {
        let locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        match locked.over {
            false => Ok(locked),
            true => Err(CollectiveError::Mpi("it has ended".into())),
        }
    }

    /// Sends bytes.
    pub fn send(self: &Arc<Self>, bytes: Vec<u8>, to: usize, tag: i32) -> Result<Transfer, CollectiveError> {
        let _locked = self.lock()?;
        // SAFETY: the bytes live as long as the request, see `Transfer`; only we use MPI now.
        let request = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let (data, len) = (bytes.as_ptr().cast(), count(&bytes));
            let byte = ffi::RSMPI_UINT8_T;
            let sent = ffi::MPI_Isend(data, len, byte, to as c_int, tag, self.comm, &mut request);
            succeed("MPI_Isend", sent)?;
            request
        };
        Ok(Transfer { world: self.clone(), moving: Some(Moving { request, bytes }) })
    }

    /// Begins to receive the next bytes of a rank, if there are any: whose they are, and they themselves. `buffer` is
    /// where they will be.
    pub fn receive(
        self: &Arc<Self>,
        from: Option<usize>,
        tag: i32,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(usize, Transfer)>, CollectiveError> {
        let _locked = self.lock()?;
        let moving = self.probe(from, Some(tag), buffer)?;
        Ok(moving.map(|(from, moving)| (from, Transfer { world: self.clone(), moving: Some(moving) })))
    }

    /// The same, by whoever holds the lock. Without a tag: of any.
    fn probe(
        &self,
        from: Option<usize>,
        tag: Option<i32>,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<(usize, Moving)>, CollectiveError> {
        // SAFETY: only we use MPI now; what is pointed to lives until the calls return, and the bytes as long as the
        // request. A status that MPI has filled is initialised.
        unsafe {
            let mut there = 0;
            let mut message = ffi::RSMPI_MESSAGE_NULL;
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |from| from as c_int);
            let tag = tag.unwrap_or(ffi::RSMPI_ANY_TAG);
            let found = ffi::MPI_Improbe(from, tag, self.comm, &mut there, &mut message, &mut status);
            succeed("MPI_Improbe", found)?;
            if there == 0 {
                return Ok(None);
            }
            let mut len = 0;
            succeed("MPI_Get_count", ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut len))?;
            let mut bytes = std::mem::take(buffer);
            bytes.resize(len as usize, 0);
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let data = bytes.as_mut_ptr().cast();
            let begun = ffi::MPI_Imrecv(data, len, ffi::RSMPI_UINT8_T, &mut message, &mut request);
            succeed("MPI_Imrecv", begun)?;
            Ok(Some((status.MPI_SOURCE as usize, Moving { request, bytes })))
        }
    }

    /// Whether MPI is done with a transfer. By whoever holds the lock.
    fn is_over(&self, moving: &mut Moving) -> Result<bool, CollectiveError> {
        let mut over = 0;
        // SAFETY: the request is one that MPI gave, or its null request once it was over.
        let tested = unsafe { ffi::MPI_Test(&mut moving.request, &mut over, ffi::RSMPI_STATUS_IGNORE) };
        succeed("MPI_Test", tested).map(|()| over != 0)
    }

    /// A group of this process has ended, well or not.
    pub fn note_end(&self, failed: bool) {
        if let Ok(mut locked) = self.lock() {
            locked.failed = failed;
        }
    }

    /// Ends MPI, once all processes are here: what nobody wants is received and thrown away, so that nobody's
    /// transfers stay under way. Who waits in vain leaves MPI as it is, and the launcher to clear up.
    pub fn end(&self, deadline: Duration) {
        let Ok(mut locked) = self.lock() else { return };
        locked.over = true;
        // After a failure processes are missing, and notices are all that is still to be sent.
        let deadline = if locked.failed { deadline.min(AFTER_FAILURE) } else { deadline };
        if self.clear(&mut locked, deadline).is_ok() {
            // SAFETY: no transfer is under way, and nothing is called after `over`.
            unsafe { ffi::MPI_Finalize() };
        } else {
            // Their bytes are MPI's for ever.
            std::mem::forget(std::mem::take(&mut locked.orphans));
        }
    }

    /// Brings all transfers of all processes to an end.
    fn clear(&self, locked: &mut Locked, deadline: Duration) -> Result<(), CollectiveError> {
        let until = Instant::now() + deadline;
        let mut barrier: Option<Moving> = None;
        loop {
            while let Some((_, moving)) = self.probe(ANYBODY, None, &mut Vec::new())? {
                locked.orphans.push(moving);
            }
            self.test_orphans(locked)?;
            if let Some(barrier) = &mut barrier
                && self.is_over(barrier)?
            {
                return Ok(());
            }
            // Before, others may still have to be rid of what they sent to us.
            if barrier.is_none() && locked.orphans.is_empty() {
                // SAFETY: all processes come here once; the request is tested until it is over, or left to MPI.
                let request = unsafe {
                    let mut request = ffi::RSMPI_REQUEST_NULL;
                    succeed("MPI_Ibarrier", ffi::MPI_Ibarrier(self.comm, &mut request))?;
                    request
                };
                barrier = Some(Moving { request, bytes: Vec::new() });
            }
            if Instant::now() > until {
                return Err(CollectiveError::Mpi("processes are missing at its end".into()));
            }
            std::thread::yield_now();
        }
    }

    fn test_orphans(&self, locked: &mut Locked) -> Result<(), CollectiveError> {
        let mut at = 0;
        while at < locked.orphans.len() {
            match self.is_over(&mut locked.orphans[at])? {
                true => drop(locked.orphans.swap_remove(at)),
                false => at += 1,
            }
        }
        Ok(())
    }
}

/// Bytes under way. When it is dropped before it is over, it goes on by itself.
pub(super) struct Transfer {
    world: Arc<World>,
    /// `None` once it is over.
    moving: Option<Moving>,
}

impl Transfer {
    /// Its bytes, once it is over; only once.
    pub fn poll(&mut self) -> Result<Option<Vec<u8>>, CollectiveError> {
        let Some(moving) = &mut self.moving else { return Ok(None) };
        let locked = self.world.lock()?;
        let over = self.world.is_over(moving)?;
        drop(locked);
        Ok(if over { self.moving.take().map(|moving| moving.bytes) } else { None })
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(moving) = self.moving.take() else { return };
        match self.world.lock() {
            Ok(mut locked) => locked.orphans.push(moving),
            // MPI was left as it is: its bytes are MPI's for ever.
            Err(_) => std::mem::forget(moving),
        }
    }
}

/// Bytes of a transfer, which are few enough.
fn count(bytes: &[u8]) -> c_int {
    c_int::try_from(bytes.len()).expect("transfers are pieces")
}

/// What MPI says of a call that failed.
fn succeed(call: &str, code: c_int) -> Result<(), CollectiveError> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as c_char; ffi::MPI_MAX_ERROR_STRING as usize + 1];
    let mut len = 0;
    // SAFETY: there is room for the longest text and a zero.
    let told = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut len) };
    let text = match told == ffi::MPI_SUCCESS as c_int {
        // SAFETY: MPI has written a text that ends with zero, and so does the array.
        true => unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().replace('\n', " "),
        false => format!("error {code}"),
    };
    Err(CollectiveError::Mpi(format!("{call}: {text}")))
}
