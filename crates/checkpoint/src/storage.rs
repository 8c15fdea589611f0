use std::fs::File;
use std::path::Path;

use memmap2::{Advice, Mmap, UncheckedAdvice};

use crate::CheckpointError;

/// The bytes of one file.
pub(crate) enum Storage {
    /// A file's pages, read when they are touched.
    Mapped(Mmap),
    /// Bytes that are part of the program.
    Static(&'static [u8]),
}

impl Storage {
    /// Maps a regular file.
    pub(crate) fn map(path: &Path) -> Result<Self, CheckpointError> {
        // Asked before opening: opening a pipe would wait for its writer.
        let found = std::fs::metadata(path).map_err(CheckpointError::read(path))?;
        if !found.is_file() {
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(CheckpointError::Read { path: path.to_owned(), source });
        }
        let file = File::open(path).map_err(CheckpointError::read(path))?;
        // SAFETY: the map is private and only read, as bytes, which have no invalid values. Another process that
        // writes to the file changes weights, not memory safety; one that truncates it while it is in use ends
        // this process with SIGBUS, as with every mapped checkpoint.
        let map = unsafe { Mmap::map(&file) }.map_err(CheckpointError::read(path))?;
        Ok(Storage::Mapped(map))
    }

    /// Says whether only bytes here and there are read from now on: then none around them are fetched with them.
    pub(crate) fn expect_samples(&self, samples: bool) {
        if let Storage::Mapped(map) = self {
            // A hint, whatever comes of it.
            let _ = map.advise(if samples { Advice::Random } else { Advice::Normal });
        }
    }

    /// Gives back the memory of some bytes that will hardly be read again. If they are, they come from the file.
    pub(crate) fn release(&self, bytes: &[u8]) {
        const PAGE: usize = 4096;
        let Storage::Mapped(map) = self else { return };
        let first = bytes.as_ptr().addr() - map.as_ptr().addr();
        let pages = first.next_multiple_of(PAGE)..(first + bytes.len()) / PAGE * PAGE;
        if pages.start < pages.end {
            // SAFETY: the pages are a file's that is only read: whoever reads them again finds the same bytes there.
            let _ =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, pages.start, pages.len()) };
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Storage::Mapped(map) => map,
            Storage::Static(bytes) => bytes,
        }
    }
}
