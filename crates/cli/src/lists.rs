//! Elements of flags that take lists: blanks around them, as in `4, 8`, are no part of them.

use std::ffi::OsStr;
use std::fmt::Display;
use std::str::FromStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::Error;
use clap::{Arg, Command};

/// Reads an element by another parser, without the blanks around it.
#[derive(Clone)]
pub struct Element<P>(pub P);

impl<P: TypedValueParser> TypedValueParser for Element<P> {
    type Value = P::Value;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<P::Value, Error> {
        // What is no text is for the other parser to refuse.
        let value = value.to_str().map_or(value, |text| OsStr::new(text.trim()));
        self.0.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// Numbers.
pub fn numbers<T>() -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Display> + Clone + Send + Sync + 'static,
{
    Element(|text: &str| match text {
        "" => Err("a number is missing; give one, or several with commas between them".to_owned()),
        text => text
            .parse()
            .map_err(|e: T::Err| format!("{e}; give a number, or several with commas between them")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_around_numbers_are_no_part_of_them() {
        let arg = Arg::new("n").long("n").value_delimiter(',').value_parser(numbers::<usize>());
        let parse = |text: &str| Command::new("x").arg(arg.clone()).try_get_matches_from(["x", "--n", text]);
        let read = |text| parse(text).unwrap().get_many::<usize>("n").unwrap().copied().collect::<Vec<_>>();
        assert_eq!(read("4, 8"), [4, 8]);
        assert_eq!(read(" 4 ,8\t"), [4, 8]);
        for missing in ["", " ", "4,", "4,,8", "4, ,8"] {
            assert!(parse(missing).unwrap_err().to_string().contains("a number is missing"), "{missing:?}");
        }
        assert!(parse("4 8").unwrap_err().to_string().contains("invalid digit"));
    }
}
