//! Methods of Python's strings, lists and dicts that templates call.

use minijinja::value::{Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::template_budget::with_budget;
use super::template_builtins::{charge_format, join, replace};

/// What minijinja calls for a method that it does not know: all of Python's.
///
/// Most are minijinja-contrib's. The ones here either would make more than they are given, or are missing or differ
/// there: its `count` never ends on an empty string, and its `find` counts bytes.
pub(super) fn call_method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    with_budget(state, |budget| {
        budget.charge_shallow(value)?;
        args.iter().try_for_each(|arg| budget.charge_scan(arg))
    })?;
    match value.as_str() {
        Some(text) => string_method(state, value, text, name, args),
        None if value.kind() == ValueKind::Seq && name == "index" => {
            let (item,): (&Value,) = from_args(args)?;
            let index = value.try_iter()?.position(|other| other == *item);
            index.map(Value::from).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "not in the list"))
        }
        None => unknown_method_callback(state, value, name, args),
    }
}

fn string_method(
    state: &State,
    value: &Value,
    text: &str,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    Ok(match name {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            with_budget(state, |budget| replace(budget, text, old, new, count))?.into()
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            with_budget(state, |budget| join(budget, values, text, None))?.into()
        }
        "format" => {
            with_budget(state, |budget| charge_format(budget, value, args))?;
            unknown_method_callback(state, value, name, args)?
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            text.matches(what).count().into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let byte = if name.starts_with('r') { text.rfind(what) } else { text.find(what) };
            match byte {
                Some(byte) => text[..byte].chars().count().into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(Error::new(ErrorKind::InvalidOperation, "substring not found")),
            }
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "split" if args.first().and_then(Value::as_str) == Some("") => {
            return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
        }
        "split" | "splitlines" => {
            with_budget(state, |budget| budget.charge(2 * text.len() as u64))?;
            let pieces = unknown_method_callback(state, value, name, args)?;
            with_budget(state, |budget| budget.charge_shallow(&pieces))?;
            pieces
        }
        "rsplit" => {
            let (separator, count): (&str, Option<usize>) = from_args(args)?;
            if separator.is_empty() {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            let mut pieces: Vec<&str> = match count {
                Some(count) => text.rsplitn(count.saturating_add(1), separator).collect(),
                None => text.rsplit(separator).collect(),
            };
            pieces.reverse();
            pieces.into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (pair, none) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = match pair {
                Some((before, after)) => [before, separator, after],
                None => none,
            };
            parts.into_iter().map(Value::from).collect()
        }
        _ => unknown_method_callback(state, value, name, args)?,
    })
}
