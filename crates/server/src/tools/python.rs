//! Calls as Python: `[f(a=1, b="x"), g()]`, whose arguments are literals with names.

use serde_json::Value;

use super::scan::{Found, blanks, mark};

/// Lists in lists and so on.
const DEPTH_MAX: usize = 64;

/// Reads the beginning of a call, `NAME(`.
pub fn call(text: &str) -> Found<String> {
    named(text, "(")
}

/// Reads a call's next argument, as its key and JSON; none at the call's end.
pub fn argument(text: &str) -> Found<Option<(String, String)>> {
    match mark(text, ")") {
        Found::Yes((), taken) => return Found::Yes(None, taken),
        Found::Open => return Found::Open,
        Found::No => {}
    }
    let (key, start) = match named(text, "=") {
        Found::Yes(key, start) => (key, start),
        Found::Open => return Found::Open,
        Found::No => return Found::No,
    };
    let mut reader = Reader { text, at: start };
    let value = match reader.value(0) {
        Ok(value) => value.to_string(),
        Err(Stop::Open) => return Found::Open,
        Err(Stop::No) => return Found::No,
    };
    match (mark(&text[reader.at..], ","), mark(&text[reader.at..], ")")) {
        (Found::Yes((), taken), _) => Found::Yes(Some((key, value)), reader.at + taken),
        (_, Found::Yes(..)) => Found::Yes(Some((key, value)), reader.at),
        (Found::Open, _) | (_, Found::Open) => Found::Open,
        (Found::No, Found::No) => Found::No,
    }
}

/// A name, and `end` behind it.
fn named(text: &str, end: &str) -> Found<String> {
    let start = blanks(text);
    let is_part = |char: char| char.is_alphanumeric() || "_.-".contains(char);
    let length = text[start..].find(|char| !is_part(char)).unwrap_or(text.len() - start);
    let behind = start + length;
    match mark(&text[behind..], end) {
        _ if length == 0 && behind < text.len() => Found::No,
        Found::Yes((), taken) if length > 0 => Found::Yes(text[start..behind].to_owned(), behind + taken),
        Found::Open => Found::Open,
        _ => Found::No,
    }
}

/// Why there is no value.
enum Stop {
    /// More must come.
    Open,
    /// It is none.
    No,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, Stop> {
        match self.next()? {
            _ if depth > DEPTH_MAX => Err(Stop::No),
            quote @ ('"' | '\'') => self.string(quote).map(Value::String),
            '[' => self.items(']', depth).map(Value::Array),
            '(' => self.items(')', depth).map(Value::Array),
            '{' => self.object(depth),
            _ => self.word(),
        }
    }

    /// The next character behind white space.
    fn next(&mut self) -> Result<char, Stop> {
        self.at += blanks(&self.text[self.at..]);
        self.text[self.at..].chars().next().ok_or(Stop::Open)
    }

    fn items(&mut self, end: char, depth: usize) -> Result<Vec<Value>, Stop> {
        self.at += 1;
        let mut items = Vec::new();
        while self.next()? != end {
            items.push(self.value(depth + 1)?);
            self.comma(end)?;
        }
        self.at += 1;
        Ok(items)
    }

    fn object(&mut self, depth: usize) -> Result<Value, Stop> {
        self.at += 1;
        let mut object = serde_json::Map::new();
        while self.next()? != '}' {
            let key = match self.value(depth + 1)? {
                Value::String(key) => key,
                other => other.to_string(),
            };
            if self.next()? != ':' {
                return Err(Stop::No);
            }
            self.at += 1;
            object.insert(key, self.value(depth + 1)?);
            self.comma('}')?;
        }
        self.at += 1;
        Ok(object.into())
    }

    /// Between items.
    fn comma(&mut self, end: char) -> Result<(), Stop> {
        match self.next()? {
            ',' => self.at += 1,
            next if next == end => {}
            _ => return Err(Stop::No),
        }
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<String, Stop> {
        let mut chars = self.text[self.at + 1..].char_indices();
        let mut string = String::new();
        while let Some((i, char)) = chars.next() {
            match char {
                char if char == quote => {
                    self.at += 1 + i + 1;
                    return Ok(string);
                }
                '\\' => match chars.next().ok_or(Stop::Open)?.1 {
                    'n' => string.push('\n'),
                    't' => string.push('\t'),
                    'r' => string.push('\r'),
                    '\n' => {}
                    kind @ ('x' | 'u') => {
                        let digits: String = chars
                            .by_ref()
                            .take(if kind == 'x' { 2 } else { 4 })
                            .map(|(_, digit)| digit)
                            .collect();
                        if digits.len() < if kind == 'x' { 2 } else { 4 } {
                            return Err(Stop::Open);
                        }
                        let code = u32::from_str_radix(&digits, 16).map_err(|_| Stop::No)?;
                        string.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    }
                    char @ ('\\' | '\'' | '"') => string.push(char),
                    // Python keeps what it doesn't know.
                    char => string.extend(['\\', char]),
                },
                char => string.push(char),
            }
        }
        Err(Stop::Open)
    }

    /// A number, a truth value or nothing. Its end is known by what follows.
    fn word(&mut self) -> Result<Value, Stop> {
        let rest = &self.text[self.at..];
        let is_part = |char: char| char.is_ascii_alphanumeric() || "+-._".contains(char);
        let length = rest.find(|char| !is_part(char)).ok_or(Stop::Open)?;
        let word = &rest[..length];
        self.at += length;
        Ok(match word {
            "True" | "true" => true.into(),
            "False" | "false" => false.into(),
            "None" | "null" => Value::Null,
            word => {
                let number = word.replace('_', "");
                let is_number =
                    number.starts_with(|char: char| char.is_ascii_digit() || "+-.".contains(char));
                match serde_json::from_str(&number) {
                    Ok(Value::Number(number)) => number.into(),
                    _ => number
                        .parse::<f64>()
                        .ok()
                        .filter(|n| is_number && n.is_finite())
                        .ok_or(Stop::No)?
                        .into(),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_the_json_that_they_mean() {
        for (literal, json) in [
            ("1", "1"),
            ("-2.5e3", "-2500.0"),
            (".5", "0.5"),
            ("1_000", "1000"),
            ("'it''s'", ""),
            ("'it\\'s \"so\"\\n\\u00e9\\x41'", "\"it's \\\"so\\\"\\néA\""),
            ("[1, (2, 'a'), ]", "[1,[2,\"a\"]]"),
            ("{'a': None, 2: True, 'b': {}}", "{\"a\":null,\"2\":true,\"b\":{}}"),
            ("x", ""),
            ("nan", ""),
            ("{1}", ""),
        ] {
            let text = format!("a = {literal})");
            let expected = match json {
                "" => Found::No,
                json => Found::Yes(Some(("a".into(), json.into())), text.len() - 1),
            };
            assert_eq!(argument(&text), expected, "{literal}");
            for end in (0..text.len()).filter(|&end| !json.is_empty() && text.is_char_boundary(end)) {
                assert_eq!(argument(&text[..end]), Found::Open, "{}", &text[..end]);
            }
        }
        let deep = format!("a={}", "[".repeat(100));
        assert_eq!(argument(&deep), Found::No);
    }
}
