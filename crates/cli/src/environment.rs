//! The command line before the environment: a flag is not refused because of a variable that it can't go with. The
//! variable is left out, as that of the flag itself is.

use clap::builder::Resettable;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Id};

/// Parses what this process was called with.
pub fn parse(command: Command) -> Result<ArgMatches, clap::Error> {
    // First only to see what was typed. What is wrong with it is told by the second time.
    match without_errors(command.clone()).try_get_matches() {
        Ok(typed) => without_overruled(command, &typed).try_get_matches(),
        Err(_) => command.try_get_matches(),
    }
}

fn without_errors(command: Command) -> Command {
    command.ignore_errors(true).mut_subcommands(without_errors)
}

/// The command, deaf to variables of arguments that conflict with one that was typed.
fn without_overruled(command: Command, typed: &ArgMatches) -> Command {
    let is_typed = |arg: &&Arg| typed.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let conflict =
        |a: &Arg, b: &Arg| command.get_arg_conflicts_with(a).iter().any(|c| c.get_id() == b.get_id());
    let is_overruled = |arg: &&Arg| {
        let mut all_typed = command.get_arguments().filter(is_typed);
        !is_typed(arg) && all_typed.any(|other| conflict(arg, other) || conflict(other, arg))
    };
    let overruled: Vec<Id> =
        command.get_arguments().filter(is_overruled).map(|arg| arg.get_id().clone()).collect();
    let command = command.mut_args(|arg| match overruled.contains(arg.get_id()) {
        true => arg.env(Resettable::Reset),
        false => arg,
    });
    match typed.subcommand() {
        Some((name, typed)) => command.mut_subcommand(name, |command| without_overruled(command, typed)),
        None => command,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `one` and `two` exclude each other, `three` goes with both.
    fn command() -> Command {
        let arg = |name: &'static str| Arg::new(name).long(name);
        let inner = Command::new("inner").args([
            arg("one").conflicts_with("two").env("ENVIRONMENT_TEST_ONE"),
            arg("two").env("ENVIRONMENT_TEST_TWO"),
            arg("three").env("ENVIRONMENT_TEST_THREE"),
        ]);
        Command::new("outer").subcommand(inner)
    }

    /// The arguments that still heed the environment when these are typed.
    fn heard(line: &[&str]) -> Vec<String> {
        let words = ["outer", "inner"].iter().chain(line);
        let typed = without_errors(command()).try_get_matches_from(words).unwrap();
        let command = without_overruled(command(), &typed);
        let inner = command.find_subcommand("inner").unwrap();
        inner
            .get_arguments()
            .filter(|arg| arg.get_env().is_some())
            .map(|arg| arg.get_id().to_string())
            .collect()
    }

    #[test]
    fn who_is_typed_overrules_the_variables_of_those_that_it_excludes() {
        assert_eq!(heard(&[]), ["one", "two", "three"]);
        assert_eq!(heard(&["--one", "1"]), ["one", "three"]);
        assert_eq!(heard(&["--two", "2"]), ["two", "three"]);
        assert_eq!(heard(&["--three", "3"]), ["one", "two", "three"]);
        // Both are typed: that is told to be wrong, whatever the environment says.
        assert_eq!(heard(&["--one", "1", "--two", "2"]), ["one", "two", "three"]);
        // What can't be parsed is told the second time.
        assert_eq!(heard(&["--one", "1", "--four"]), ["one", "three"]);
    }
}
