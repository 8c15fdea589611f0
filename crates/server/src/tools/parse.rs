//! Calls in a completion's text, as it comes. However the text is cut, the same comes of it.

use std::sync::Arc;

use serde_json::Value;

use super::format::{Format, Way};
use super::scan::{Begun, Brackets, Found, blanks, call, mark};
use super::{python, scan, xml};

/// What is told of a completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Content(String),
    /// A call of a function begins.
    Call(String),
    /// Further arguments of the last call: JSON text.
    Arguments(String),
}

/// Reads one completion.
#[derive(Debug)]
pub struct Parser {
    format: &'static Format,
    /// Functions that there are, with their parameters; others are text.
    functions: Arc<[(String, Value)]>,
    /// Whether the completion is nothing but calls, so that what is no part of one is none of the text either.
    is_forced: bool,
    state: State,
    /// Text that nothing was told of.
    held: String,
    has_called: bool,
}

/// How long it may take a call to show that it is one, and white space what it stands before: what is held is read again
/// with each token.
const HELD_MAX: usize = 16 << 10;

#[derive(Debug)]
enum State {
    /// Before any text.
    Start,
    Text,
    /// At `held`'s first byte behind white space, an opener or a separator, of so many bytes in all; then a call, the first
    /// of its block or not.
    Opened(usize, bool),
    /// In a call whose arguments come one by one.
    Each {
        way: Way,
        /// Its place among the functions.
        function: usize,
        /// Arguments that were told.
        told: usize,
        /// Before so much is held it is of no use to look for the next.
        enough: usize,
    },
    /// In a call's arguments.
    Arguments(Brackets, Way),
    /// Behind them, in the call.
    Rest(Brackets),
    /// Behind a call.
    Closed,
}

impl Parser {
    /// At the beginning of a completion that may call these functions; or must, and is held to that: then it has no content,
    /// wherever it is cut off.
    pub fn new(format: &'static Format, functions: Arc<[(String, Value)]>, is_forced: bool) -> Self {
        Parser { format, functions, is_forced, state: State::Start, held: String::new(), has_called: false }
    }

    /// Takes text.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        self.told(pieces)
    }

    /// The completion is over: what was held back.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        if self.is_forced {
            pieces.extend(self.cut_call().map(Piece::Call));
            return pieces;
        }
        if let State::Each { enough, .. } = &mut self.state {
            *enough = 0;
            while self.step(&mut pieces) {}
        }
        // What began like a call and is none is text, in which one may begin.
        while matches!(self.state, State::Opened(..)) {
            self.is_text(&mut pieces);
            while self.step(&mut pieces) {}
        }
        let rest = std::mem::take(&mut self.held);
        // White space behind a call is no answer.
        let is_text = matches!(self.state, State::Start | State::Text | State::Closed);
        if is_text && !(self.has_called && blanks(&rest) == rest.len()) {
            add(&mut pieces, Piece::Content(rest));
        }
        pieces
    }

    /// Pieces without what is none of the text.
    fn told(&self, mut pieces: Vec<Piece>) -> Vec<Piece> {
        pieces.retain(|piece| !self.is_forced || !matches!(piece, Piece::Content(_)));
        pieces
    }

    /// The function of a call that was cut off before its arguments, if it is known. What must be a call is JSON.
    fn cut_call(&self) -> Option<String> {
        let State::Opened(opener, is_first) = self.state else { return None };
        let call = &self.held[opener..];
        let begin = if is_first { self.format.begin } else { "" };
        let Found::Yes((), at) = mark(call, begin) else { return None };
        let name = scan::cut_name(&call[at..])?;
        self.functions.iter().any(|(known, _)| *known == name).then_some(name)
    }

    /// Goes on as far as is sure; whether there may be more to do.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match &mut self.state {
            State::Start => {
                let bare = self.format.bare();
                match bare.map_or(Found::No, |bare| within(0, mark(&self.held, bare), &self.held)) {
                    Found::Open => return false,
                    Found::Yes((), at) => self.state = State::Opened(at - 1, true),
                    Found::No => self.state = State::Text,
                }
                true
            }
            State::Text => self.text(pieces),
            State::Opened(opener, is_first) => {
                let (opener, is_first) = (*opener, *is_first);
                self.opened(opener, is_first, pieces)
            }
            State::Each { way, function, told, enough } => {
                let (way, function, told, enough) = (*way, *function, *told, *enough);
                self.held.len() >= enough && self.each(way, function, told, pieces)
            }
            State::Arguments(brackets, way) => {
                let way = *way;
                let end = brackets.read(&self.held);
                let rest = self.held.split_off(end.unwrap_or(self.held.len()));
                let arguments = std::mem::replace(&mut self.held, rest);
                add(pieces, Piece::Arguments(arguments));
                if end.is_some() {
                    self.state = match way {
                        Way::Json => State::Rest(Brackets::inside()),
                        _ => State::Closed,
                    };
                }
                end.is_some()
            }
            State::Rest(brackets) => {
                let end = brackets.read(&self.held);
                self.held.drain(..end.unwrap_or(self.held.len()));
                if end.is_some() {
                    self.state = State::Closed;
                }
                end.is_some()
            }
            State::Closed => self.closed(),
        }
    }

    /// Tells text up to an opener, or to what may become one. White space before an opener is none of the text.
    fn text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let opener = self.format.opener;
        if let Some(at) = self.held.find(opener) {
            let text = without_blanks(&self.held[..at]);
            let before: String = self.held.drain(..text).collect();
            add(pieces, Piece::Content(before));
            self.state = State::Opened(at - text + opener.len(), true);
            return true;
        }
        let is_begun = |length: &usize| self.held.ends_with(&opener[..*length]);
        let begun = (1..opener.len()).rev().find(is_begun).unwrap_or(0);
        let sure = without_blanks(&self.held[..self.held.len() - begun]);
        add(pieces, Piece::Content(self.held.drain(..sure).collect()));
        false
    }

    fn opened(&mut self, opener: usize, is_first: bool, pieces: &mut Vec<Piece>) -> bool {
        let mut is_open = false;
        for &way in self.format.ways {
            match within(opener, self.begun(way, &self.held[opener..], is_first), &self.held) {
                Found::Yes(begun, taken) => {
                    let (Begun::Named(name) | Begun::Each(name) | Begun::Whole(name, _)) = &begun;
                    let Some(function) = self.functions.iter().position(|(known, _)| known == name) else {
                        return self.is_text(pieces);
                    };
                    pieces.push(Piece::Call(name.clone()));
                    self.has_called = true;
                    self.state = match begun {
                        Begun::Named(_) => State::Arguments(Brackets::default(), way),
                        Begun::Each(_) => State::Each { way, function, told: 0, enough: 0 },
                        Begun::Whole(_, arguments) => {
                            add(pieces, Piece::Arguments(arguments));
                            State::Closed
                        }
                    };
                    self.held.drain(..opener + taken);
                    return true;
                }
                Found::Open => is_open = true,
                Found::No => {}
            }
        }
        !is_open && self.is_text(pieces)
    }

    /// How a call begins, if it is written that way.
    fn begun(&self, way: Way, text: &str, is_first: bool) -> Found<Begun> {
        let begin = match way {
            Way::Json | Way::Python if is_first => self.format.begin,
            _ => "",
        };
        let at = match mark(text, begin) {
            Found::Yes((), at) => at,
            Found::Open => return Found::Open,
            Found::No => return Found::No,
        };
        let rest = &text[at..];
        let begun = match way {
            Way::Json => call(rest, self.format.arguments),
            Way::Named if is_first => scan::named(rest).map(Begun::Named),
            Way::Named => Found::No,
            Way::Xml => xml::call(rest).map(Begun::Each),
            Way::Python => python::call(rest).map(Begun::Each),
        };
        match begun {
            Found::Yes(begun, taken) => Found::Yes(begun, at + taken),
            other => other,
        }
    }

    /// Tells a call's next argument.
    fn each(&mut self, way: Way, function: usize, told: usize, pieces: &mut Vec<Piece>) -> bool {
        let found = match way {
            Way::Xml => xml::argument(&self.held, &self.functions[function].1),
            _ => python::argument(&self.held),
        };
        let ends = if told == 0 { "{}" } else { "}" };
        match found {
            Found::Yes(Some((key, value)), taken) => {
                let before = if told == 0 { "{" } else { ", " };
                let argument = format!("{before}{}: {value}", Value::from(key));
                add(pieces, Piece::Arguments(argument));
                self.held.drain(..taken);
                self.state = State::Each { way, function, told: told + 1, enough: 0 };
            }
            Found::Yes(None, taken) => {
                add(pieces, Piece::Arguments(ends.into()));
                self.held.drain(..taken);
                self.state = State::Closed;
            }
            // A long argument is not read again with each token.
            Found::Open => {
                let enough = self.held.len() + self.held.len() / 16 + 1;
                self.state = State::Each { way, function, told, enough };
                return false;
            }
            // What is no argument ends the call.
            Found::No => {
                add(pieces, Piece::Arguments(ends.into()));
                self.state = State::Text;
            }
        }
        true
    }

    /// What looked like an opener was text.
    fn is_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if let State::Opened(opener, _) = self.state {
            let opener = opener.max(self.held.chars().next().map_or(0, char::len_utf8));
            add(pieces, Piece::Content(self.held.drain(..opener).collect()));
        }
        self.state = State::Text;
        true
    }

    fn closed(&mut self) -> bool {
        let is_next = |text| within(0, mark(&self.held, text), &self.held);
        let separator = self.format.separator.map_or(Found::No, is_next);
        let end = match self.format.end {
            "" => Found::No,
            end => is_next(end),
        };
        match (separator, end) {
            (Found::Yes((), taken), _) => self.state = State::Opened(taken, false),
            (_, Found::Yes((), taken)) => {
                self.held.drain(..taken);
                self.state = State::Text;
            }
            (Found::Open, _) | (_, Found::Open) => return false,
            // The end is missing.
            (Found::No, Found::No) => self.state = State::Text,
        }
        true
    }
}

/// What was found behind `before` bytes; what is not whole within [`HELD_MAX`] bytes is not there.
fn within<T>(before: usize, found: Found<T>, held: &str) -> Found<T> {
    match found {
        Found::Open if held.len() > HELD_MAX => Found::No,
        Found::Yes(_, taken) if before + taken > HELD_MAX => Found::No,
        found => found,
    }
}

/// How long a text is without the white space at its end, of which [`HELD_MAX`] bytes at most are left out.
fn without_blanks(text: &str) -> usize {
    let mut longest = text.len().saturating_sub(HELD_MAX);
    while !text.is_char_boundary(longest) {
        longest -= 1;
    }
    text.trim_end().len().max(longest)
}

/// Adds a piece that is not empty to the one before, if that is of its kind.
fn add(pieces: &mut Vec<Piece>, piece: Piece) {
    match (pieces.last_mut(), piece) {
        (_, Piece::Content(text) | Piece::Arguments(text)) if text.is_empty() => {}
        (Some(Piece::Content(before)), Piece::Content(text))
        | (Some(Piece::Arguments(before)), Piece::Arguments(text)) => before.push_str(&text),
        (_, piece) => pieces.push(piece),
    }
}

/// What pieces come to: content, and calls with their arguments.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Text outside of calls.
    pub content: String,
    /// Names and arguments.
    pub calls: Vec<(String, String)>,
}

impl Parsed {
    /// Adds a piece.
    pub fn add(&mut self, piece: Piece) {
        match piece {
            Piece::Content(text) => self.content.push_str(&text),
            Piece::Call(name) => self.calls.push((name, String::new())),
            Piece::Arguments(text) => {
                if let Some((_, arguments)) = self.calls.last_mut() {
                    arguments.push_str(&text);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
