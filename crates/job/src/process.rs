//! What the kernel says of a process.

/// The letter of a process's state: T if it is stopped; none if there is no such process.
pub fn process_state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may have any character, brackets too.
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}
