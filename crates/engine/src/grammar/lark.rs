//! A grammar in Lark's notation, as far as its limits need to know it.

use std::collections::HashMap;

use serde_json::Value;

/// What a grammar has.
#[derive(Default)]
pub struct Lark<'a> {
    /// How often it says `&` and `~`.
    pub joins: usize,
    /// The schemas in it.
    pub schemas: Vec<Value>,
    /// What each name stands for.
    pub definitions: HashMap<&'a str, Definition<'a>>,
}

/// What a name stands for. If it is defined twice, as in grammars within grammars, both count.
#[derive(Default)]
pub struct Definition<'a> {
    /// How deep its brackets nest.
    pub brackets: usize,
    /// Names that it uses, and how many brackets are open there.
    pub uses: Vec<(&'a str, usize)>,
}

impl<'a> Lark<'a> {
    /// Reads a text as the library does. What is wrong with one is for the library to say.
    pub fn of(text: &'a str) -> Self {
        let mut lark = Lark::default();
        let mut tokens = Tokens { rest: text };
        let (mut name, mut open) = ("", 0_usize);
        // The last name outside brackets: what a colon defines.
        let mut last = "";
        let mut begins_inner = false;
        while let Some(token) = tokens.next() {
            let definition = lark.definitions.entry(name).or_default();
            match token {
                Token::Name(used) => {
                    definition.uses.push((used, open));
                    last = if open == 0 { used } else { last };
                }
                Token::Colon if open == 0 => {
                    // Attributes may stand between the name and its colon.
                    let at = definition.uses.iter().rposition(|used| *used == (last, 0));
                    let own = at.map_or(Vec::new(), |at| definition.uses.split_off(at));
                    name = last;
                    lark.definitions.entry(name).or_default().uses.extend(own.into_iter().skip(1));
                }
                Token::Open if begins_inner => (open, begins_inner) = (0, false),
                Token::Open => {
                    open += 1;
                    definition.brackets = definition.brackets.max(open);
                }
                Token::Close => open = open.saturating_sub(1),
                Token::Inner => begins_inner = true,
                Token::Join => lark.joins += 1,
                Token::Json(schema) => lark.schemas.push(schema),
                Token::Colon | Token::Other => {}
            }
        }
        lark
    }
}

enum Token<'a> {
    /// Of a rule or a token.
    Name(&'a str),
    Open,
    Close,
    /// Of a definition.
    Colon,
    /// `&` or `~`.
    Join,
    Json(Value),
    /// A grammar within follows, in brackets.
    Inner,
    /// What has no meaning here.
    Other,
}

struct Tokens<'a> {
    rest: &'a str,
}

impl<'a> Tokens<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        let first = self.rest.chars().next()?;
        let token = match first {
            '(' | '[' | '{' => Token::Open,
            ')' | ']' | '}' => Token::Close,
            '&' | '~' => Token::Join,
            ':' if !self.rest.starts_with("::") => Token::Colon,
            '%' => return Some(self.keyword()),
            '_' | 'a'..='z' | 'A'..='Z' => return Some(self.name()),
            _ => {
                self.skip(first);
                return Some(Token::Other);
            }
        };
        self.rest = &self.rest[1..];
        Some(token)
    }

    /// A name is of small letters or of capital ones; what follows may be the next one.
    fn name(&mut self) -> Token<'a> {
        let letters = self.rest.strip_prefix('_').unwrap_or(self.rest);
        let is_capital = letters.starts_with(|char: char| char.is_ascii_uppercase());
        let is_letter = |char: char| match is_capital {
            true => char.is_ascii_uppercase(),
            false => char.is_ascii_lowercase(),
        };
        match self.take_while(|char| is_letter(char) || char.is_ascii_digit() || matches!(char, '_' | '-')) {
            "_" => Token::Other,
            name => Token::Name(name),
        }
    }

    fn keyword(&mut self) -> Token<'a> {
        const WITH_VALUE: [&str; 3] = ["%json", "%regex", "%llguidance"];
        const OTHERS: [&str; 5] = ["%declare", "%ignore", "%import", "%override", "%if"];
        let text = self.rest;
        if let Some(rest) = text.strip_prefix("%lark") {
            self.rest = rest;
            return Token::Inner;
        }
        let Some(rest) = WITH_VALUE.iter().find_map(|word| text.strip_prefix(word)) else {
            let rest = OTHERS.iter().find_map(|word| text.strip_prefix(word));
            self.rest = rest.unwrap_or(&text[1..]);
            return Token::Other;
        };
        let mut values = serde_json::Deserializer::from_str(rest).into_iter();
        match values.next() {
            Some(Ok(value)) => {
                self.rest = &rest[values.byte_offset()..];
                if text.starts_with("%json") { Token::Json(value) } else { Token::Other }
            }
            // The library reads no further, either.
            _ => {
                self.rest = "";
                Token::Other
            }
        }
    }

    /// What may have anything in it, or is nothing.
    fn skip(&mut self, first: char) {
        match first {
            '"' => {
                self.skip_quoted('"');
                self.rest = self.rest.strip_prefix('i').unwrap_or(self.rest);
            }
            '#' => _ = self.take_while(|char| char != '\n'),
            '/' if self.rest.starts_with("//") => _ = self.take_while(|char| char != '\n'),
            '/' => {
                self.skip_quoted('/');
                self.take_while(|char| "imslux".contains(char));
            }
            // The name of a special token.
            '<' => _ = self.take_while(|char| char != '>'),
            '@' => {
                self.rest = &self.rest[1..];
                self.take_while(|char| char.is_ascii_alphanumeric() || matches!(char, '_' | '-'));
            }
            '0' if self.rest.starts_with("0x") || self.rest.starts_with("0X") => {
                self.rest = &self.rest[2..];
                self.take_while(|char| char.is_ascii_hexdigit());
            }
            ':' => self.rest = &self.rest[2..],
            other => self.rest = &self.rest[other.len_utf8()..],
        }
    }

    /// To the end of what is between two of a character. A backslash hides what follows it.
    fn skip_quoted(&mut self, end: char) {
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, char)) = chars.next() {
            if char == '\\' {
                chars.next();
            } else if char == end {
                self.rest = &self.rest[at + char.len_utf8()..];
                return;
            }
        }
        self.rest = "";
    }

    fn take_while(&mut self, is_in: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) =
            self.rest.split_at(self.rest.find(|char| !is_in(char)).unwrap_or(self.rest.len()));
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_where_they_are_used_and_nowhere_else() {
        let text = r##"
            start: "a b"i c /d \/ & e/ixF // g & h
                | (I [_j]) <[k&l]> "\"m" @n::o # "p
            %import common.INT -> R s[stop="~" U]: T~2 &/u/
            V.2: %json {"w": [{"&": "x:"}]}
            y::_: z::incr(_) %if and(eq([0:3],0xffq), true) %llguidance {"r": 1} a: b
            c: (%lark {
                start: d
                d: ((e)) } f)
        "##;
        let lark = Lark::of(text);
        let uses = |name: &str| -> Vec<(&str, usize)> { lark.definitions[name].uses.clone() };
        assert_eq!(uses("start")[..5], [("c", 0), ("F", 0), ("I", 1), ("_j", 2), ("o", 0)]);
        assert!(uses("start")[5..].iter().all(|(name, _)| ["common", "INT", "R", "d"].contains(name)));
        assert_eq!(uses("s"), [("stop", 1), ("U", 1), ("T", 0)]);
        assert_eq!(uses("V"), []);
        assert!(uses("y").contains(&("q", 2)) && uses("y").contains(&("z", 0)));
        assert_eq!(uses("a"), [("b", 0)]);
        assert_eq!(uses("d")[..1], [("e", 2)]);
        assert_eq!((lark.definitions["start"].brackets, lark.definitions["y"].brackets), (2, 3));
        assert_eq!((lark.joins, &lark.schemas[..]), (2, &[serde_json::json!({"w": [{"&": "x:"}]})][..]));
    }
}
