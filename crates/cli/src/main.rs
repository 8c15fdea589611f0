//! The anysplit command.
fn main() {}
