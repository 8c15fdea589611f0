//! Puts payments into the source of a template, so that no single instruction can do unbounded work.
//!
//! ```text
//! {{ a ~ b|upper }}          becomes   {{ a|_text ~ b|_text|upper|_text }}
//! {% set ns.x = [y] + z %}   becomes   {% set ns.x = (([y]|_copy)|_shallow + z|_shallow|_store) %}
//! ```
//!
//! The payments are filters that give back what they are given (see `template_budget`), and a filter binds tighter
//! than any operator, so the template renders as it did. Also here, because it is a change of the source: the
//! `generation` tag of Hugging Face, which marks what a training run learns from, becomes the scope that it opens.

use super::TextError;
use super::template_tags::{Kind, Tag, find_endraw, find_tag};

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

/// Copies a part of a text or a list.
pub(super) const SLICE: &str = "_slice";
const SLICE_FROM: &str = "|_slice(";
const SLICE_FROM_START: &str = "|_slice(none";
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
/// Filters that take any value for its text.
const TEXT_FILTERS: [&str; 9] =
    ["upper", "lower", "title", "capitalize", "trim", "safe", "escape", "e", "lines"];
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

impl<'a> Tag<'a> {
    fn rewrite(&mut self) -> Result<(), &'static str> {
        if self.is_block && self.tokens.len() == 1 {
            self.tokens[0].instead = match self.text(0) {
                "generation" => Some("with"),
                "endgeneration" => Some("endwith"),
                _ => None,
            };
        }
        let mut loop_in = (self.is_block && self.text(0) == "for").then_some(());
        let mut operators = 0;
        for index in 0..self.tokens.len() {
            match self.text(index) {
                "[" if self.ends_operand(index.wrapping_sub(1)) => self.pay_slice(index)?,
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
                        let right = self.operand_end(index + 1);
                        // What a test looks at must keep its kind.
                        let is_tested = self.text(right + 1) == "is";
                        self.pay(right, if is_tested && price == TEXT { COPY } else { price });
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
                if !matches!(self.text(index), ")" | "]" | "}") {
                    return None;
                }
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
        } else if TEXT_FILTERS.contains(&name) {
            TEXT
        } else {
            COPY
        };
        if self.ends_operand(pipe.wrapping_sub(1)) {
            self.pay(pipe - 1, price);
        }
    }

    /// `x[a:b]` becomes `(x|_slice(a,b))`: it pays for its copy, and minijinja's own panics on an empty text.
    fn pay_slice(&mut self, open: usize) -> Result<(), &'static str> {
        let close = self.tokens[open].partner;
        let mut colons = Vec::new();
        let mut index = open + 1;
        while index < close {
            match self.text(index) {
                ":" => colons.push(index),
                "(" | "[" | "{" => index = self.tokens[index].partner,
                _ => {}
            }
            index += 1;
        }
        if colons.is_empty() {
            return Ok(());
        }
        let start = self.operand_start(open - 1).ok_or("a slice of what is no name, text or bracket")?;
        let is_missing = |index: usize| index == close || colons.contains(&index);
        self.tokens[open].instead = Some(if is_missing(open + 1) { SLICE_FROM_START } else { SLICE_FROM });
        for &colon in &colons {
            self.tokens[colon].instead = Some(if is_missing(colon + 1) { ",none" } else { "," });
        }
        self.tokens[start].before.push('(');
        self.tokens[close].instead = Some("))");
        Ok(())
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
