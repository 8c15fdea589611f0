//! Rust as the rules see it: code, strings and comments told apart, and tests told from the rest.

/// One line of a Rust file.
#[derive(Clone, Debug, Default)]
pub struct Line {
    /// Without comments, strings empty.
    pub code: String,
    /// Without comments.
    pub code_and_strings: String,
    /// Comments only.
    pub comment: String,
    /// Whether it belongs to a test.
    pub is_test: bool,
}

/// What a character belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Part {
    Code,
    Text,
    Comment,
}

/// The lines of the file at `path`.
pub fn scan(path: &str, source: &str) -> Vec<Line> {
    let mut lines = vec![Line::default()];
    for (part, c) in parts(source) {
        if c == '\n' {
            lines.push(Line::default());
            continue;
        }
        let line = lines.last_mut().expect("there is always one");
        match part {
            Part::Code => {
                line.code.push(c);
                line.code_and_strings.push(c);
            }
            Part::Text => line.code_and_strings.push(c),
            Part::Comment => line.comment.push(c),
        }
    }
    mark_tests(path, &mut lines);
    lines
}

/// Every character of a source with what it belongs to. Quotes count as code.
fn parts(source: &str) -> Vec<(Part, char)> {
    let chars: Vec<char> = source.chars().collect();
    let mut out = Vec::with_capacity(chars.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let after_word = at > 0 && is_word(chars[at - 1]);
        let (part, len) = if rest.starts_with(&['/', '/']) {
            (Part::Comment, rest.iter().position(|&c| c == '\n').unwrap_or(rest.len()))
        } else if rest.starts_with(&['/', '*']) {
            (Part::Comment, block_comment_len(rest))
        } else if let Some(hashes) = raw_string_hashes(rest).filter(|_| !after_word) {
            (Part::Text, raw_string_len(rest, hashes))
        } else if rest[0] == '"' {
            (Part::Text, quoted_len(rest, '"'))
        } else if rest[0] == '\'' && is_char_literal(rest) {
            (Part::Text, quoted_len(rest, '\''))
        } else {
            (Part::Code, 1)
        };
        out.extend(rest[..len].iter().map(|&c| (part, c)));
        if part == Part::Text {
            // The quotes stay in the code, so that `f("…")` still reads as a call.
            let start = out.len() - len;
            out[start].0 = Part::Code;
            out.last_mut().expect("not empty").0 = Part::Code;
        }
        at += len;
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment_len(chars: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < chars.len() {
        let step = if chars[at..].starts_with(&['/', '*']) {
            depth += 1;
            2
        } else if chars[at..].starts_with(&['*', '/']) {
            depth -= 1;
            2
        } else {
            1
        };
        at += step;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Hashes of a raw string that starts here: `r"`, `r#"`, `br##"`, ….
fn raw_string_hashes(chars: &[char]) -> Option<usize> {
    let prefix = match chars {
        ['r', ..] => 1,
        ['b' | 'c', 'r', ..] => 2,
        _ => return None,
    };
    let hashes = chars[prefix..].iter().take_while(|&&c| c == '#').count();
    (chars.get(prefix + hashes) == Some(&'"')).then_some(hashes)
}

fn raw_string_len(chars: &[char], hashes: usize) -> usize {
    let open = chars.iter().position(|&c| c == '"').expect("checked by raw_string_hashes") + 1;
    let end: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    chars[open..].windows(end.len()).position(|w| w == end).map_or(chars.len(), |i| open + i + end.len())
}

fn quoted_len(chars: &[char], quote: char) -> usize {
    let mut at = 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn is_char_literal(chars: &[char]) -> bool {
    chars.get(1) == Some(&'\\') || chars.get(2) == Some(&'\'')
}

/// Whether a whole file is tests: in a folder of tests or benches, or a module of that name.
pub fn is_test_file(path: &str) -> bool {
    path.split('/').any(|part| matches!(part, "tests" | "benches" | "tests.rs"))
}

/// Marks the items under `#[cfg(test)]` and `#[test]`, or everything in a test file.
fn mark_tests(path: &str, lines: &mut [Line]) {
    if is_test_file(path) {
        lines.iter_mut().for_each(|line| line.is_test = true);
        return;
    }
    let mut at = 0;
    while at < lines.len() {
        let code = &lines[at].code;
        if !(code.contains("#[cfg(test)]") || code.contains("#[test]")) {
            at += 1;
            continue;
        }
        let end = item_end(lines, at);
        lines[at..=end].iter_mut().for_each(|line| line.is_test = true);
        at = end + 1;
    }
}

/// The last line of the item that starts at line `start`: where its braces close, or its `;`.
fn item_end(lines: &[Line], start: usize) -> usize {
    let (mut depth, mut brackets) = (0i32, 0i32);
    for (i, line) in lines.iter().enumerate().skip(start) {
        for c in line.code.chars() {
            match c {
                '[' | '(' => brackets += 1,
                ']' | ')' => brackets -= 1,
                '{' => depth += 1,
                '}' if depth == 1 => return i,
                '}' => depth -= 1,
                ';' if depth == 0 && brackets == 0 => return i,
                _ => {}
            }
        }
    }
    lines.len() - 1
}

/// Whether `word` is in `code`, not as a part of a longer word.
pub fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = code[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}

/// Whether `code` calls the method or function `name`: `.name(` or `::name(`, also with a turbofish.
pub fn calls(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], &code[at + name.len()..]);
        (before.ends_with('.') || before.ends_with("::"))
            && (after.starts_with('(') || after.starts_with("::<"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(source: &str) -> String {
        scan("a.rs", source).into_iter().map(|l| l.code).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        assert_eq!(code("a(\"b\"); // c"), "a(\"\"); ");
        assert_eq!(code(r##"a(r#"b " c"#, "\"d", 'e', '\'', b"f");"##), "a(r#, \"\", '', '', b\"\");");
        assert_eq!(code("a /* b /* c */ d */ e"), "a  e");
        assert_eq!(code("fn a<'b>(c: &'b str) {}"), "fn a<'b>(c: &'b str) {}");
        assert_eq!(code("a(\"b\nc\"); d"), "a(\"\n\"); d");
        let line = &scan("a.rs", "a(\"b\"); // c")[0];
        assert_eq!((line.code_and_strings.as_str(), line.comment.as_str()), ("a(\"b\"); ", "// c"));
    }

    #[test]
    fn tests_are_told_from_the_rest() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { }\n}\nfn c() {}\n#[cfg(test)]\nuse d;\nfn e() {}";
        let is_test: Vec<bool> = scan("a.rs", source).iter().map(|l| l.is_test).collect();
        assert_eq!(is_test, [false, true, true, true, true, false, true, true, false]);
        assert!(scan("crates/a/tests/b.rs", "fn a() {}")[0].is_test);
        assert!(scan("crates/a/src/tests.rs", "fn a() {}")[0].is_test);
    }

    #[test]
    fn words_and_calls_are_whole() {
        assert!(has_word("unsafe {", "unsafe") && !has_word("unsafe_code", "unsafe"));
        assert!(calls("g.all_reduce(x)", "all_reduce") && calls("C::all_reduce::<T>(x)", "all_reduce"));
        assert!(!calls("fn all_reduce(x)", "all_reduce") && !calls("g.all_reduce_s", "all_reduce"));
    }
}
