//! Values as Python writes them: `str`, `repr` and `json.dumps`, because templates were written against those.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use super::template_budget::Budget;

/// Python's `str(value)`. The budget pays for it, so that a value that shares its parts cannot unfold without end.
pub(super) fn python_str(value: &Value, budget: &Budget) -> Result<String, Error> {
    budget.charge_text(value)?;
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => write_repr(&mut out, value),
    }
    Ok(out)
}

/// Python's `repr`, of a value whose depth was checked.
fn write_repr(out: &mut String, value: &Value) {
    match value.kind() {
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number => write_number(out, value),
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Map => {
            out.push('{');
            for (index, (key, item)) in pairs(value).into_iter().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &key);
                out.push_str(": ");
                write_repr(out, &item);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (index, item) in value.try_iter().into_iter().flatten().enumerate() {
                out.push_str(if index > 0 { ", " } else { "" });
                write_repr(out, &item);
            }
            out.push(']');
        }
        _ => out.push_str(&value.to_string()),
    }
}

fn write_quoted(out: &mut String, text: &str) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for char in text.chars() {
        match char {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            char if char == quote => out.extend(['\\', quote]),
            char if char.is_control() => out.push_str(&format!("\\x{:02x}", char as u32)),
            char => out.push(char),
        }
    }
    out.push(quote);
}

fn write_number(out: &mut String, value: &Value) {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => out.push_str(&float_repr(number)),
        _ => out.push_str(&value.to_string()),
    }
}

/// Python's shortest `repr` of a float: an exponent below 1e-4 and from 1e16 on, and always a fraction otherwise.
pub(super) fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_string();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_string();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the format has an exponent");
    let exponent: i32 = exponent.parse().expect("the exponent is a number");
    if number != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = number.to_string();
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// The options of Python's `json.dumps`.
#[derive(Debug, Default)]
pub(super) struct JsonStyle {
    /// What one level is indented by; `None` puts everything on one line.
    pub indent: Option<String>,
    /// Between items, and between a key and its value; `None` is Python's own choice.
    pub separators: Option<(String, String)>,
    pub sort_keys: bool,
    pub ensure_ascii: bool,
}

/// Python's `json.dumps`.
pub(super) fn json_dumps(value: &Value, style: &JsonStyle, budget: &Budget) -> Result<String, Error> {
    budget.charge_text(value)?;
    let (item, key) = match &style.separators {
        Some((item, key)) => (item.as_str(), key.as_str()),
        None => (if style.indent.is_some() { "," } else { ", " }, ": "),
    };
    let mut writer = JsonWriter { out: String::new(), style, item, key, budget, charged: 0 };
    writer.write(value, 0)?;
    Ok(writer.out)
}

struct JsonWriter<'a> {
    out: String,
    style: &'a JsonStyle,
    item: &'a str,
    key: &'a str,
    budget: &'a Budget,
    charged: usize,
}

impl JsonWriter<'_> {
    fn write(&mut self, value: &Value, level: usize) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.write_number(value),
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.collect::<Vec<_>>();
                self.write_items(('[', ']'), &items, level, |writer, item| writer.write(item, level + 1))?;
            }
            ValueKind::Map => {
                let mut entries = pairs(value);
                if self.style.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.write_items(('{', '}'), &entries, level, |writer, (key, item)| {
                    match key.as_str() {
                        Some(text) => writer.write_string(text),
                        None => writer.write_string(&json_key(key)),
                    }
                    writer.out.push_str(writer.key);
                    writer.write(item, level + 1)
                })?;
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::BadSerialization,
                    format!("a value of the kind {kind} cannot be written as JSON"),
                ));
            }
        }
        Ok(())
    }

    fn write_items<T>(
        &mut self,
        (open, close): (char, char),
        items: &[T],
        level: usize,
        write: impl Fn(&mut Self, &T) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.out.push(open);
        for (index, item) in items.iter().enumerate() {
            self.out.push_str(if index > 0 { self.item } else { "" });
            self.new_line(level + 1)?;
            write(self, item)?;
        }
        if !items.is_empty() {
            self.new_line(level)?;
        }
        self.out.push(close);
        Ok(())
    }

    /// Also where the budget pays for what was written since: indents and escapes are not in the value's size.
    fn new_line(&mut self, level: usize) -> Result<(), Error> {
        if let Some(indent) = &self.style.indent {
            self.out.push('\n');
            self.out.extend(std::iter::repeat_n(indent.as_str(), level));
        }
        self.budget.charge((self.out.len() - self.charged) as u64)?;
        self.charged = self.out.len();
        Ok(())
    }

    fn write_number(&mut self, value: &Value) {
        match f64::try_from(value.clone()) {
            Ok(number) if !value.is_integer() => match number {
                number if number.is_nan() => self.out.push_str("NaN"),
                f64::INFINITY => self.out.push_str("Infinity"),
                f64::NEG_INFINITY => self.out.push_str("-Infinity"),
                number => self.out.push_str(&float_repr(number)),
            },
            _ => self.out.push_str(&value.to_string()),
        }
    }

    fn write_string(&mut self, text: &str) {
        self.out.push('"');
        for char in text.chars() {
            match char {
                '"' => self.out.push_str("\\\""),
                '\\' => self.out.push_str("\\\\"),
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\u{8}' => self.out.push_str("\\b"),
                '\u{c}' => self.out.push_str("\\f"),
                '\0'..='\u{1f}' => self.out.push_str(&format!("\\u{:04x}", char as u32)),
                char if self.style.ensure_ascii && !char.is_ascii() => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        self.out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                char => self.out.push(char),
            }
        }
        self.out.push('"');
    }
}

/// A key that is no string, as `json.dumps` writes it.
fn json_key(key: &Value) -> String {
    match key.kind() {
        ValueKind::None => "null".to_string(),
        ValueKind::Bool => if key.is_true() { "true" } else { "false" }.to_string(),
        _ => {
            let mut out = String::new();
            write_repr(&mut out, key);
            out
        }
    }
}

fn pairs(map: &Value) -> Vec<(Value, Value)> {
    let object = map.as_object();
    object.and_then(|object| object.try_iter_pairs().map(Iterator::collect)).unwrap_or_default()
}
