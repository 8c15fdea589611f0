//! Lines on stderr. Never a prompt, a completion or a key.

use crate::config::LogLevel;

/// Writes what is as important as asked for.
#[derive(Debug, Clone, Copy)]
pub struct Log(pub LogLevel);

impl Log {
    /// Start and end of the server and its worker.
    pub fn info(self, line: &str) {
        self.write(LogLevel::Info, line);
    }

    /// What went wrong.
    pub fn error(self, line: &str) {
        self.write(LogLevel::Error, &format!("error: {line}"));
    }

    /// One line per request.
    pub fn debug(self, line: impl FnOnce() -> String) {
        if self.0 >= LogLevel::Debug {
            self.write(LogLevel::Debug, &line());
        }
    }

    fn write(self, level: LogLevel, line: &str) {
        use std::io::Write;
        if self.0 >= level {
            // Who closed stderr wants no lines.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}
