//! How deep a grammar nests, with what its names and references stand for: so deep the library calls itself.

use std::collections::HashMap;

use serde_json::Value;

use super::lark::{Definition, Lark};

/// Levels of a schema's JSON, or names and brackets of a grammar. JSON itself has at most 128, references apart.
const LEVELS_MAX: usize = 256;
/// Values that are looked at: each again for each different reference that leads to it.
const VISITS_MAX: usize = 100_000;

/// # Errors
/// It nests too deep, as far as its references lead. One in a circle counts once.
pub fn check_schema(root: &Value) -> Result<(), String> {
    let mut schema = Schema { root, visits: 0, referred: HashMap::new() };
    schema.levels(root, 0).map(drop)
}

/// # Errors
/// The same for names, which stand for what they are defined as.
pub fn check_lark(lark: &Lark) -> Result<(), String> {
    let mut names = Names { definitions: &lark.definitions, known: HashMap::new() };
    // As the library does, so that each is reached on the same way.
    names.levels("start", 0)?;
    lark.definitions.keys().try_for_each(|name| names.levels(name, 0).map(drop))
}

fn check(levels: usize) -> Result<(), String> {
    match levels <= LEVELS_MAX {
        true => Ok(()),
        false => {
            Err(format!("it nests more than {LEVELS_MAX} levels deep, with what its references stand for"))
        }
    }
}

struct Schema<'a> {
    root: &'a Value,
    visits: usize,
    /// The levels of what references lead to; 0 while they are counted.
    referred: HashMap<&'a str, usize>,
}

impl<'a> Schema<'a> {
    /// The levels from a value on, which has some above it.
    fn levels(&mut self, value: &'a Value, above: usize) -> Result<usize, String> {
        check(above)?;
        self.visits += 1;
        if self.visits > VISITS_MAX {
            return Err(format!("its references lead to more than {VISITS_MAX} values"));
        }
        let mut below = 0;
        match value {
            Value::Array(items) => {
                for item in items {
                    below = below.max(self.levels(item, above + 1)?);
                }
            }
            Value::Object(fields) => {
                for (key, field) in fields {
                    below = below.max(match (key.as_str(), field) {
                        ("$ref", Value::String(at)) => self.levels_at(at, above + 1)?,
                        // What nothing leads to is not used.
                        ("$defs" | "definitions", _) => 0,
                        _ => self.levels(field, above + 1)?,
                    });
                }
            }
            _ => return Ok(0),
        }
        Ok(below + 1)
    }

    fn levels_at(&mut self, at: &'a str, above: usize) -> Result<usize, String> {
        if let Some(&levels) = self.referred.get(at) {
            return check(above + levels).map(|()| levels);
        }
        let Some(value) = resolve(self.root, at) else { return Ok(0) };
        self.referred.insert(at, 0);
        let levels = self.levels(value, above)?;
        self.referred.insert(at, levels);
        Ok(levels)
    }
}

/// What a reference leads to, as the library reads it: which is not quite a JSON pointer.
pub fn resolve<'a>(root: &'a Value, at: &str) -> Option<&'a Value> {
    if at == "#" || at == "#/" {
        return Some(root);
    }
    at.strip_prefix("#/")?.split('/').try_fold(root, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        _ => value.get(name),
    })
}

struct Names<'a> {
    definitions: &'a HashMap<&'a str, Definition<'a>>,
    /// The levels of those that were counted; 0 while they are.
    known: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn levels(&mut self, name: &str, above: usize) -> Result<usize, String> {
        let Some((&name, definition)) = self.definitions.get_key_value(name) else { return Ok(0) };
        if let Some(&levels) = self.known.get(name) {
            return check(above + levels).map(|()| levels);
        }
        self.known.insert(name, 0);
        let mut below = definition.brackets;
        check(above + 1 + below)?;
        for (used, brackets) in &definition.uses {
            below = below.max(brackets + self.levels(used, above + 1 + brackets)?);
        }
        self.known.insert(name, below + 1);
        Ok(below + 1)
    }
}
