//! Puts payments into the source of a template, so that no single instruction can do unbounded work.
//!
//! ```text
//! {{ a ~ b|upper }}          becomes   {{ a|_text ~ b|_copy|upper|_text }}
//! {% set ns.x = [y] + z %}   becomes   {% set ns.x = (([y]|_copy)|_shallow + z|_shallow|_store) %}
//! ```
//!
//! The payments are filters that give back what they are given (see `template_budget`), and a filter binds tighter
//! than any operator, so the template renders as it did. Also here, because it is a change of the source: the
//! `generation` tag of Hugging Face, which marks what a training run learns from, becomes the scope that it opens.

use super::TextError;

/// Pays for a copy that shares its parts.
pub(super) const SHALLOW: &str = "_shallow";
/// Pays for looking through a value.
pub(super) const SCAN: &str = "_scan";
/// The same, for what is stored in a namespace.
pub(super) const STORE: &str = "_store";
/// Pays for a whole copy.
pub(super) const COPY: &str = "_copy";
/// Pays for a value as text, and turns a list or a dict into that.
pub(super) const TEXT: &str = "_text";
/// Pays for an operand of `*`.
pub(super) const FACTOR: &str = "_factor";
/// Pays for the template's own text.
pub(super) const RAW: &str = "_raw";

/// Filters whose cost does not grow with the size of the items.
const SHALLOW_FILTERS: [&str; 17] = [
    "length", "count", "list", "first", "last", "reverse", "items", "default", "d", "batch", "slice",
    "tojson", "join", "string", "replace", "indent", "format",
];
/// Filters that look through the items.
const SCAN_FILTERS: [&str; 11] = [
    "select",
    "reject",
    "selectattr",
    "rejectattr",
    "sort",
    "unique",
    "groupby",
    "dictsort",
    "min",
    "max",
    "sum",
];
/// Names that are no operand.
const KEYWORDS: [&str; 10] = ["and", "or", "not", "in", "is", "if", "else", "recursive", "ignore", "import"];
const SOURCE_BYTES_MAX: usize = 1 << 18;
const OPERATORS_MAX: usize = 256;
/// The parser calls itself for each of these, so their number is bounded: names, dots, filters and the like of one
/// tag, and branches of the template.
const TOKENS_MAX: usize = 4096;
const BRANCHES_MAX: usize = 1024;
/// How much of the template's own text goes out between two payments.
const RAW_BYTES: usize = 1024;
const BLANK_BYTES_MAX: usize = 8192;

/// The template with its payments.
pub(super) fn guard(source: &str) -> Result<String, TextError> {
    if source.len() > SOURCE_BYTES_MAX {
        return Err(TextError::TooLarge {
            name: "the chat template".to_string(),
            bytes: source.len() as u64,
            bytes_max: SOURCE_BYTES_MAX as u64,
        });
    }
    let mut out = String::with_capacity(2 * source.len());
    let mut rest = source;
    let mut branches = 0;
    while let Some(start) = find_tag(rest) {
        push_raw(&mut out, &rest[..start]).map_err(|reason| syntax(source, rest, reason))?;
        rest = &rest[start..];
        if rest.starts_with("{#") {
            let end =
                rest[2..].find("#}").ok_or_else(|| syntax(source, rest, "a comment without an end"))? + 4;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
            continue;
        }
        let is_block = rest.starts_with("{%");
        let mut tag = Tag::read(rest, is_block).map_err(|reason| syntax(source, rest, reason))?;
        let end = tag.end;
        let is_raw = is_block && tag.tokens.len() == 1 && tag.text(0) == "raw";
        branches += usize::from(is_block && tag.text(0) == "elif");
        if tag.tokens.len() > TOKENS_MAX || branches > BRANCHES_MAX {
            return Err(syntax(source, rest, "a tag of more than 4096 words, or more than 1024 branches"));
        }
        if !is_raw {
            tag.rewrite().map_err(|reason| syntax(source, rest, reason))?;
        }
        tag.write(&mut out);
        rest = &rest[end..];
        if is_raw {
            let end = find_endraw(rest).ok_or_else(|| syntax(source, rest, "a raw block without an end"))?;
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    push_raw(&mut out, rest).map_err(|reason| syntax(source, rest, reason))?;
    Ok(out)
}

fn syntax(source: &str, rest: &str, reason: &str) -> TextError {
    let line = source[..source.len() - rest.len()].matches('\n').count() + 1;
    TextError::TemplateSyntax { reason: format!("{reason} (line {line})") }
}

fn find_tag(text: &str) -> Option<usize> {
    text.as_bytes().windows(2).position(|pair| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#'))
}

/// The place just before `{% endraw %}`.
fn find_endraw(text: &str) -> Option<usize> {
    text.match_indices("{%").map(|(index, _)| index).find(|&index| {
        let tag = &text[index + 2..];
        let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
        tag.strip_prefix("endraw").is_some_and(|tag| {
            let tag = tag.trim_start();
            tag.strip_prefix(['-', '+']).unwrap_or(tag).starts_with("%}")
        })
    })
}

/// Copies the template's own text. A payment goes between two characters that are not blank, where it changes nothing
/// of how blanks around tags are trimmed.
fn push_raw(out: &mut String, text: &str) -> Result<(), &'static str> {
    let (mut written, mut previous) = (0, ' ');
    for (index, char) in text.char_indices() {
        if index - written > RAW_BYTES {
            if !previous.is_whitespace() && !char.is_whitespace() && previous != '{' && char != '}' {
                out.push_str(&text[written..index]);
                out.push_str(&format!("{{{{{}|{RAW}}}}}", index - written));
                written = index;
            } else if index - written > BLANK_BYTES_MAX {
                return Err("a run of more than 8192 blanks");
            }
        }
        previous = char;
    }
    out.push_str(&text[written..]);
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Name,
    Number,
    Text,
    Punctuation,
}

struct Token {
    kind: Kind,
    start: usize,
    end: usize,
    /// The other bracket of a pair.
    partner: usize,
    before: String,
    after: String,
}

/// One `{{ … }}` or `{% … %}`, from the start of `source`.
struct Tag<'a> {
    source: &'a str,
    end: usize,
    is_block: bool,
    tokens: Vec<Token>,
}

impl<'a> Tag<'a> {
    fn read(source: &'a str, is_block: bool) -> Result<Self, &'static str> {
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
            tag.tokens.push(Token { kind, start: at, end: at + len, partner, before, after });
            at += len;
        }
    }

    fn text(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.source[token.start..token.end])
    }

    fn write(&self, out: &mut String) {
        let mut at = 0;
        for (index, token) in self.tokens.iter().enumerate() {
            out.push_str(&self.source[at..token.start]);
            out.push_str(&token.before);
            out.push_str(match (self.is_block && self.tokens.len() == 1, self.text(index)) {
                (true, "generation") => "with",
                (true, "endgeneration") => "endwith",
                (_, text) => text,
            });
            out.push_str(&token.after);
            at = token.end;
        }
        out.push_str(&self.source[at..self.end]);
    }

    fn rewrite(&mut self) -> Result<(), &'static str> {
        let mut loop_in = (self.is_block && self.text(0) == "for").then_some(());
        let mut operators = 0;
        for index in 0..self.tokens.len() {
            match self.text(index) {
                "[" if self.ends_operand(index.wrapping_sub(1)) => self.pay_slice(index),
                "[" | "{" => {
                    self.tokens[index].before.push('(');
                    let close = self.tokens[index].partner;
                    self.tokens[close].after.push_str(&format!("|{COPY})"));
                }
                "|" => self.pay_filter(index),
                "in" if loop_in.take().is_some() => {}
                operator => {
                    let Some(price) = price(operator) else { continue };
                    let left = match (operator, self.text(index.wrapping_sub(1))) {
                        ("in", "not") => index.wrapping_sub(2),
                        _ => index.wrapping_sub(1),
                    };
                    if self.ends_operand(left) {
                        operators += 1;
                        self.pay(left, price);
                        self.pay(self.operand_end(index + 1), price);
                    }
                }
            }
        }
        self.pay_store();
        if operators > OPERATORS_MAX { Err("a tag with more than 256 operators") } else { Ok(()) }
    }

    /// Whether an operand can end with this token.
    fn ends_operand(&self, index: usize) -> bool {
        let Some(token) = self.tokens.get(index) else { return false };
        match token.kind {
            Kind::Name if index == 0 => !self.is_block,
            Kind::Name => !KEYWORDS.contains(&self.text(index)) || self.text(index - 1) == ".",
            Kind::Number | Kind::Text => true,
            Kind::Punctuation => matches!(self.text(index), ")" | "]" | "}"),
        }
    }

    /// The last token of the operand that begins here: what is a filter's left side and its filters.
    fn operand_end(&self, mut index: usize) -> usize {
        while matches!(self.text(index), "-" | "+" | "not") {
            index += 1;
        }
        let closed = |index: usize| match self.text(index) {
            "(" | "[" | "{" => self.tokens[index].partner,
            _ => index,
        };
        index = closed(index);
        loop {
            index = match self.text(index + 1) {
                "(" | "[" => closed(index + 1),
                "." | "|" => index + 2,
                _ => return index,
            };
        }
    }

    /// The first token of the operand that ends here, filters aside.
    fn operand_start(&self, mut index: usize) -> Option<usize> {
        loop {
            if self.tokens[index].kind == Kind::Punctuation {
                index = self.tokens[index].partner;
                if !self.ends_operand(index.wrapping_sub(1)) {
                    return Some(index);
                }
                index -= 1;
                continue;
            }
            match self.text(index.wrapping_sub(1)) {
                "." if index >= 2 => index -= 2,
                "|" | "is" => return None,
                _ => return Some(index),
            }
        }
    }

    /// Appends a payment to an operand, unless it is a short text or a number of the template itself.
    fn pay(&mut self, index: usize, price: &str) {
        let Some(token) = self.tokens.get_mut(index) else { return };
        let is_short = match token.kind {
            Kind::Number => price != FACTOR,
            Kind::Text => token.end - token.start < 256 && price != FACTOR,
            _ => false,
        };
        let payment = format!("|{price}");
        if !is_short && !token.after.ends_with(&payment) {
            token.after.push_str(&payment);
        }
    }

    fn pay_filter(&mut self, pipe: usize) {
        let name = self.text(pipe + 1);
        let price = if SHALLOW_FILTERS.contains(&name) {
            SHALLOW
        } else if SCAN_FILTERS.contains(&name) {
            SCAN
        } else {
            COPY
        };
        if self.ends_operand(pipe.wrapping_sub(1)) {
            self.pay(pipe - 1, price);
        }
    }

    /// `x[a:b]` copies; the brackets keep what follows it on the outside.
    fn pay_slice(&mut self, open: usize) {
        let close = self.tokens[open].partner;
        let mut index = open + 1;
        let mut is_slice = false;
        while index < close {
            is_slice |= self.text(index) == ":";
            index =
                if matches!(self.text(index), "(" | "[" | "{") { self.tokens[index].partner } else { index }
                    + 1;
        }
        if let Some(start) = self.operand_start(open - 1).filter(|_| is_slice) {
            self.tokens[start].before.push('(');
            self.tokens[close].after.push_str(&format!("|{SHALLOW})"));
        }
    }

    /// `{% set ns.x = … %}`: a namespace outlives the scope, so it must not come to contain itself.
    fn pay_store(&mut self) {
        if !self.is_block || self.text(0) != "set" {
            return;
        }
        let Some(assign) = (0..self.tokens.len()).find(|&index| self.text(index) == "=") else { return };
        let is_attribute = (0..assign).any(|index| self.text(index) == ".");
        let last = self.tokens.len() - 1;
        if is_attribute && assign < last {
            self.tokens[assign + 1].before.insert(0, '(');
            self.tokens[last].after.push_str(&format!(")|{STORE}"));
        }
    }
}

/// What the operands of an operator pay.
fn price(operator: &str) -> Option<&'static str> {
    Some(match operator {
        "~" => TEXT,
        "+" => SHALLOW,
        "*" => FACTOR,
        "==" | "!=" | "<" | ">" | "<=" | ">=" | "in" => SCAN,
        _ => return None,
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
