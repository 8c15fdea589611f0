/// Who wants to know how a download goes.
pub trait Progress {
    /// A file of `bytes` is about to come.
    fn start(&mut self, file: &str, bytes: u64);
    /// `bytes` more of it are there (those of an earlier, broken download included).
    fn advance(&mut self, bytes: u64);
    /// All of it is there.
    fn finish(&mut self);
}

/// Nobody.
pub struct Silent;

impl Progress for Silent {
    fn start(&mut self, _file: &str, _bytes: u64) {}
    fn advance(&mut self, _bytes: u64) {}
    fn finish(&mut self) {}
}

/// Turns the reports of several attempts at one file into the story of one download.
pub(super) struct Meter<'a> {
    file: &'a str,
    progress: &'a mut dyn Progress,
    started: bool,
    /// Bytes the file will have.
    pub size: u64,
    /// Where the present attempt stands.
    at: u64,
    /// Bytes reported so far: the furthest that any attempt came.
    pub done: u64,
}

impl<'a> Meter<'a> {
    pub fn new(file: &'a str, progress: &'a mut dyn Progress) -> Self {
        Meter { file, progress, started: false, size: 0, at: 0, done: 0 }
    }

    /// An attempt begins.
    pub fn begin(&mut self, size: u64) {
        (self.size, self.at) = (size, 0);
        if !std::mem::replace(&mut self.started, true) {
            self.progress.start(self.file, size);
        }
    }

    /// The attempt has `bytes` more.
    pub fn advance(&mut self, bytes: u64) {
        self.at += bytes;
        if self.at > self.done {
            self.progress.advance(self.at - self.done);
            self.done = self.at;
        }
    }

    pub fn finish(self) {
        if self.started {
            self.progress.finish();
        }
    }
}
