//! How names of tensors and files appear in messages.

/// Names longer than this are cut in messages.
const SHOWN: usize = 160;

/// `name` between quotes, on one line: control characters escaped, a very long name cut.
pub(crate) fn quote(name: &str) -> String {
    match name.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &name[..end]),
        None => format!("{name:?}"),
    }
}

/// `names` quoted and separated by commas.
pub(crate) fn list<S: AsRef<str>>(names: &[S]) -> String {
    names.iter().map(|name| quote(name.as_ref())).collect::<Vec<_>>().join(", ")
}

/// The `count` names that are nearest to `wanted`, nearest first.
pub(crate) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>, count: usize) -> Vec<String> {
    let wanted: Vec<char> = wanted.chars().take(SHOWN).collect();
    let mut best: Vec<(usize, &str)> = Vec::with_capacity(count + 1);
    for name in names {
        let limit = if best.len() < count { usize::MAX } else { best[count - 1].0 };
        let distance = edits(&wanted, name);
        if distance < limit {
            let place = best.partition_point(|&(other, _)| other <= distance);
            best.insert(place, (distance, name));
            best.truncate(count);
        }
    }
    best.into_iter().map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein's distance.
fn edits(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, y) in b.chars().take(SHOWN).enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &x) in a.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_come_first() {
        let names = ["lm_head.weight", "model.norm.weight", "model.norm.bias", "model.embed_tokens.weight"];
        let near = nearest("norm.weight", names.into_iter(), 2);
        assert_eq!(near, ["model.norm.weight", "lm_head.weight"]);
    }

    #[test]
    fn a_name_from_a_file_cannot_break_the_line() {
        assert_eq!(quote("a\nb\u{1b}[31m"), r#""a\nb\u{1b}[31m""#);
        assert!(quote(&"x".repeat(1 << 20)).len() < 200);
    }
}
