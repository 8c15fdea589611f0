//! A terminal of rank 0's own, where the launcher's stderr is one: so that progress bars are drawn, although the launcher
//! reads along.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::OwnedFd;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

/// What a rank writes to, and what the launcher reads.
pub struct Terminal {
    pub writer: OwnedFd,
    pub reader: File,
}

impl Terminal {
    /// One that is as wide as stderr; none if stderr is no terminal.
    pub fn like_stderr() -> io::Result<Option<Self>> {
        let stderr = io::stderr();
        if !stderr.is_terminal() {
            return Ok(None);
        }
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags)?;
        unlockpt(&master)?;
        let writer = ioctl_tiocgptpeer(&master, flags)?;
        // The bytes are the rank's own; the terminal that shows them makes lines of them.
        let mut modes = tcgetattr(&writer)?;
        modes.output_modes.remove(OutputModes::OPOST);
        tcsetattr(&writer, OptionalActions::Now, &modes)?;
        tcsetwinsize(&writer, tcgetwinsize(&stderr)?)?;
        Ok(Some(Terminal { writer, reader: master.into() }))
    }
}
