//! The tags of a template and their tokens: as much of Jinja's syntax as `template_guard` needs, and no more than
//! minijinja's own lexer takes for the same.

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Name,
    Number,
    Text,
    Punctuation,
}

pub(super) struct Token {
    pub kind: Kind,
    pub start: usize,
    pub end: usize,
    /// The other bracket of a pair.
    pub partner: usize,
    /// What it is written as, if not as it was.
    pub instead: Option<&'static str>,
    pub before: String,
    pub after: String,
}

/// One `{{ … }}` or `{% … %}`, from the start of `source`.
pub(super) struct Tag<'a> {
    source: &'a str,
    pub end: usize,
    pub is_block: bool,
    pub tokens: Vec<Token>,
}

impl<'a> Tag<'a> {
    pub fn read(source: &'a str, is_block: bool) -> Result<Self, &'static str> {
        let close = if is_block { "%}" } else { "}}" };
        let mut tag = Self { source, end: 0, is_block, tokens: Vec::new() };
        let mut open = Vec::new();
        let mut at = 2;
        if matches!(source.as_bytes().get(2), Some(b'-' | b'+')) {
            at += 1;
        }
        loop {
            let rest = &source[at..];
            let Some(first) = rest.chars().next() else { return Err("a tag without an end") };
            if first.is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let unmarked = rest.strip_prefix(['-', '+']).unwrap_or(rest);
            if open.is_empty() && unmarked.starts_with(close) {
                tag.end = source.len() - unmarked.len() + close.len();
                return Ok(tag);
            }
            let (kind, len) = token(rest, first)?;
            let index = tag.tokens.len();
            let mut partner = usize::MAX;
            match first {
                '(' | '[' | '{' => open.push(index),
                ')' | ']' | '}' => {
                    partner = open.pop().ok_or("a bracket that was not opened")?;
                    tag.tokens[partner].partner = index;
                }
                _ => {}
            }
            let (before, after) = (String::new(), String::new());
            tag.tokens.push(Token { kind, start: at, end: at + len, partner, instead: None, before, after });
            at += len;
        }
    }

    pub fn text(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.source[token.start..token.end])
    }

    pub fn write(&self, out: &mut String) {
        let mut at = 0;
        for (index, token) in self.tokens.iter().enumerate() {
            out.push_str(&self.source[at..token.start]);
            out.push_str(&token.before);
            out.push_str(token.instead.unwrap_or_else(|| self.text(index)));
            out.push_str(&token.after);
            at = token.end;
        }
        out.push_str(&self.source[at..self.end]);
    }
}

pub(super) fn find_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The place just before `{% endraw %}`.
pub(super) fn find_endraw(text: &str) -> Option<usize> {
    text.match_indices("{%").map(|(index, _)| index).find(|&index| {
        let tag = &text[index + 2..];
        let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
        tag.strip_prefix("endraw").is_some_and(|tag| {
            let tag = tag.trim_start();
            tag.strip_prefix(['-', '+']).unwrap_or(tag).starts_with("%}")
        })
    })
}

/// The kind and the length of the token that `text` begins with.
fn token(text: &str, first: char) -> Result<(Kind, usize), &'static str> {
    let bytes = text.as_bytes();
    let run = |is_in: fn(&u8) -> bool| bytes.iter().take_while(|byte| is_in(byte)).count();
    Ok(match first {
        'a'..='z' | 'A'..='Z' | '_' => {
            (Kind::Name, run(|byte| byte.is_ascii_alphanumeric() || *byte == b'_'))
        }
        '0'..='9' => (Kind::Number, number(bytes)),
        '\'' | '"' => {
            let mut at = 1;
            while let Some(&byte) = bytes.get(at) {
                match byte {
                    b'\\' => at += 2,
                    byte if byte == first as u8 => return Ok((Kind::Text, at + 1)),
                    _ => at += 1,
                }
            }
            return Err("a text without an end");
        }
        _ if ["==", "!=", "<=", ">=", "**", "//"].iter().any(|pair| text.starts_with(pair)) => {
            (Kind::Punctuation, 2)
        }
        _ if first.is_ascii_punctuation() => (Kind::Punctuation, 1),
        _ => return Err("a character that is in no expression"),
    })
}

/// The length of `12`, `1_000`, `0x1f`, `1.5` or `1e-5`. The dot of `x.0.y` begins no fraction.
fn number(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let is_fraction = byte == b'.' && bytes.get(at + 1).is_some_and(u8::is_ascii_digit);
        let is_sign = matches!(byte, b'+' | b'-') && matches!(bytes[at - 1], b'e' | b'E') && bytes[1] != b'x';
        if !(byte.is_ascii_alphanumeric() || byte == b'_' || is_fraction || is_sign) {
            break;
        }
        at += 1;
    }
    at
}
