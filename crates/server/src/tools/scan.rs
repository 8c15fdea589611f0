//! JSON as it comes: where a value ends, and what a call's first keys are.

use serde_json::Value;

/// Follows one JSON object or list to its end, by brackets and strings.
#[derive(Debug, Clone, Default)]
pub struct Brackets {
    depth: usize,
    in_text: bool,
    escaped: bool,
}

impl Brackets {
    /// Inside of an object.
    pub fn inside() -> Self {
        Brackets { depth: 1, ..Brackets::default() }
    }

    /// Reads on; how many bytes there are to the value's end, if it is in this text.
    pub fn read(&mut self, text: &str) -> Option<usize> {
        for (i, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(i + 1);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// What a text begins with.
#[derive(Debug, PartialEq)]
pub enum Found<T> {
    /// More of it must come.
    Open,
    /// Something else.
    No,
    /// It; and the bytes that it took.
    Yes(T, usize),
}

impl<T> Found<T> {
    /// The same of what was found.
    pub fn map<U>(self, make: impl FnOnce(T) -> U) -> Found<U> {
        match self {
            Found::Open => Found::Open,
            Found::No => Found::No,
            Found::Yes(found, taken) => Found::Yes(make(found), taken),
        }
    }
}

/// How a call begins.
#[derive(Debug, PartialEq)]
pub enum Begun {
    /// With its name; its arguments, an object, begin here.
    Named(String),
    /// With its name; its arguments come one by one.
    Each(String),
    /// The call is complete: keys in another order, or arguments that are no object.
    Whole(String, String),
}

/// White space that JSON allows.
pub fn blanks(text: &str) -> usize {
    text.len() - text.trim_start_matches([' ', '\n', '\t', '\r']).len()
}

/// Whether a text begins with `mark`, behind white space.
pub fn mark(text: &str, mark: &str) -> Found<()> {
    let skipped = blanks(text);
    let rest = &text[skipped..];
    match () {
        () if rest.starts_with(mark) => Found::Yes((), skipped + mark.len()),
        () if mark.starts_with(rest) => Found::Open,
        () => Found::No,
    }
}

/// Reads the beginning of a call, `{"name": "f", "arguments": {`, up to before the last bracket. Other keys may be between.
pub fn call(text: &str, arguments: &str) -> Found<Begun> {
    let mut name = None;
    let mut at = match mark(text, "{") {
        Found::Yes((), at) => at,
        Found::Open => return Found::Open,
        Found::No => return Found::No,
    };
    let start = at - 1;
    loop {
        let (key, value) = match key(&text[at..]) {
            Found::Yes(key, taken) => (key, at + taken),
            Found::Open => return Found::Open,
            // An object without a key, say.
            Found::No => return Found::No,
        };
        let value = value + blanks(&text[value..]);
        match text[value..].chars().next() {
            None => return Found::Open,
            Some('{') if key == arguments => {
                if let Some(name) = name {
                    return Found::Yes(Begun::Named(name), value);
                }
                return whole(text, start, arguments);
            }
            Some('"') if key != arguments => match string(&text[value..]) {
                Found::Yes(text, taken) => {
                    if key == "name" {
                        name = Some(text);
                    }
                    at = value + taken;
                }
                Found::Open => return Found::Open,
                Found::No => return Found::No,
            },
            Some(_) => return whole(text, start, arguments),
        }
        match mark(&text[at..], ",") {
            Found::Yes((), taken) => at += taken,
            Found::Open => return Found::Open,
            Found::No => return whole(text, start, arguments),
        }
    }
}

/// The name of a call whose beginning is cut off, if that comes first and is whole.
pub fn cut_name(text: &str) -> Option<String> {
    let Found::Yes((), at) = mark(text, "{") else { return None };
    let value = match key(&text[at..]) {
        Found::Yes(key, taken) if key == "name" => at + taken,
        _ => return None,
    };
    match string(&text[value + blanks(&text[value..])..]) {
        Found::Yes(name, _) => Some(name),
        Found::Open | Found::No => None,
    }
}

/// Reads `NAME[CALL_ID]…[ARGS]`, of which the marks may be missing, up to before the arguments' bracket.
pub fn named(text: &str) -> Found<String> {
    let start = blanks(text);
    let is_part = |char: char| char.is_alphanumeric() || "_.-".contains(char);
    let Some(length) = text[start..].find(|char| !is_part(char)) else { return Found::Open };
    let behind = start + length;
    let rest = &text[behind..];
    let begun = ["{", "[ARGS]", "[CALL_ID]"].map(|begin| mark(rest, begin));
    let is_named = length > 0 && begun.iter().any(|begun| matches!(begun, Found::Yes(..)));
    match rest.find('{').filter(|_| is_named) {
        Some(bracket) => Found::Yes(text[start..behind].to_owned(), behind + bracket),
        None if is_named || (length > 0 && begun.contains(&Found::Open)) => Found::Open,
        None => Found::No,
    }
}

/// A call that is read once its object is complete.
fn whole(text: &str, start: usize, arguments: &str) -> Found<Begun> {
    let Some(length) = Brackets::default().read(&text[start..]) else { return Found::Open };
    let Ok(Value::Object(call)) = serde_json::from_str(&text[start..start + length]) else {
        return Found::No;
    };
    let Some(Value::String(name)) = call.get("name") else { return Found::No };
    let arguments = match call.get(arguments) {
        None | Some(Value::Null) => "{}".to_owned(),
        // Some models write the object as a text.
        Some(Value::String(text)) => text.clone(),
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(_) => return Found::No,
    };
    Found::Yes(Begun::Whole(name.clone(), arguments), start + length)
}

/// A key, with its colon.
fn key(text: &str) -> Found<String> {
    let start = blanks(text);
    match string(&text[start..]) {
        Found::Yes(key, taken) => match mark(&text[start + taken..], ":") {
            Found::Yes((), colon) => Found::Yes(key, start + taken + colon),
            Found::Open => Found::Open,
            Found::No => Found::No,
        },
        other => other,
    }
}

fn string(text: &str) -> Found<String> {
    if text.is_empty() {
        return Found::Open;
    }
    if !text.starts_with('"') {
        return Found::No;
    }
    let mut escaped = false;
    for (i, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => {
                return match serde_json::from_str(&text[..=i]) {
                    Ok(text) => Found::Yes(text, i + 1),
                    Err(_) => Found::No,
                };
            }
            _ => {}
        }
    }
    Found::Open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calls_beginning_is_known_as_soon_as_it_can_be() {
        let named = |text: &str| call(text, "arguments");
        let text = r#" {"name": "f", "arguments": {"a": 1}}"#;
        let begun = text.find("{\"a").unwrap();
        for end in 0..=begun {
            assert_eq!(named(&text[..end]), Found::Open, "{}", &text[..end]);
        }
        assert_eq!(named(&text[..=begun]), Found::Yes(Begun::Named("f".into()), begun));
        let turned = r#"{"arguments": {"a": "}"}, "name": "f"} x"#;
        assert_eq!(
            named(turned),
            Found::Yes(Begun::Whole("f".into(), r#"{"a":"}"}"#.into()), turned.len() - 2)
        );
        assert_eq!(named(r#"{"name": "f"}"#), Found::Yes(Begun::Whole("f".into(), "{}".into()), 13));
        for none in ["x", "{1", "{}", r#"{"name" 1"#, r#"{"a": 1}"#, r#"{"name": "f", "arguments": 3}"#] {
            assert_eq!(named(none), Found::No, "{none}");
        }
    }
}
