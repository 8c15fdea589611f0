//! What is said on stderr.

/// A line on stderr. Unlike with `eprintln!` it is no panic if nobody can have it: where stderr is a file on a full disk,
/// whatever says something there goes on.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = ::std::io::Write::write_fmt(
            &mut ::std::io::stderr(),
            ::std::format_args!("{}\n", ::std::format_args!($($text)*)),
        );
    }};
}
