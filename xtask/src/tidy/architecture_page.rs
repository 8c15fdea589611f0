//! The page of the architecture stays short enough to be read.

use super::Violation;
use super::repo::Repo;

const PAGE: &str = "ARCHITECTURE.md";
const MAX_LINES: usize = 300;

pub fn check(repo: &Repo) -> Vec<Violation> {
    let lines = repo.text(PAGE).map_or(0, |text| text.lines().count());
    let advice = format!("{lines} lines, {MAX_LINES} are allowed: move details to the crates' own pages");
    if lines > MAX_LINES { vec![Violation::new(PAGE, MAX_LINES + 1, advice)] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn a_long_page_is_found() {
        assert_eq!(places(check, &[("ARCHITECTURE.md", &"\n".repeat(301))]), ["ARCHITECTURE.md:301"]);
    }

    #[test]
    fn a_short_one_or_none_is_fine() {
        assert!(places(check, &[("ARCHITECTURE.md", &"\n".repeat(300))]).is_empty());
        assert!(places(check, &[]).is_empty());
    }
}
