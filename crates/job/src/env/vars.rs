//! Environment variables with errors that name them.

use crate::JobError;

/// Looks variables up; an empty one counts as unset.
pub(super) struct Vars<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Vars<'_> {
    pub fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    pub fn has(&self, name: &str) -> bool {
        self.text(name).is_some()
    }

    pub fn number(&self, name: &str) -> Result<Option<usize>, JobError> {
        let parse = |value: String| value.parse().map_err(|_| self.bad(name, "a number from 0"));
        self.text(name).map(parse).transpose()
    }

    pub fn port(&self, name: &str) -> Result<Option<u16>, JobError> {
        let parse = |value: String| match value.parse() {
            Ok(0) | Err(_) => Err(self.bad(name, "a port, 1 to 65535")),
            Ok(port) => Ok(port),
        };
        self.text(name).map(parse).transpose()
    }

    /// A number that must be there because `other` is.
    pub fn required(&self, name: &str, other: &str) -> Result<usize, JobError> {
        self.number(name)?.ok_or_else(|| self.half(other, name))
    }

    /// A number of ranks, at least 1, that must be there because `other` is.
    pub fn size(&self, name: &str, other: &str) -> Result<usize, JobError> {
        match self.required(name, other)? {
            0 => Err(self.bad(name, "a number from 1")),
            size => Ok(size),
        }
    }

    pub fn bad(&self, name: &str, expected: &str) -> JobError {
        let value = self.text(name).unwrap_or_default();
        JobError::env(format!("{name} is {value:?}: expected {expected}"))
    }

    pub fn half(&self, set: &str, missing: &str) -> JobError {
        JobError::env(format!("{set} is set but {missing} is not: set both, or neither to run alone"))
    }
}
