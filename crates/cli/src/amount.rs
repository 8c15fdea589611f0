//! Amounts, as vLLM's flags read them: 1k is 1000, 1K is 1024, and so on with m, g and t.

/// A whole number, or one with a unit; with a decimal one, as in 25.6k, it may have a point.
///
/// # Errors
/// It is none, or too large.
pub fn amount(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("give a whole number up to {}, or one such as 1k (1000), 1K (1024), 10G", u64::MAX);
    let text = text.trim();
    let power = |unit: char| "kmgt".find(unit.to_ascii_lowercase()).map(|place| place as u32 + 1);
    let Some((unit, power)) = text.chars().last().and_then(|unit| Some((unit, power(unit)?))) else {
        return text.parse().map_err(|_| wrong());
    };
    let base: u64 = if unit.is_ascii_lowercase() { 1000 } else { 1024 };
    let number = &text[..text.len() - 1];
    let (whole, part) = match number.split_once('.') {
        Some((whole, part)) if base == 1000 && !part.is_empty() => (whole, part),
        Some(_) => return Err(wrong()),
        None => (number, ""),
    };
    // As many digits behind the point as the unit has zeros.
    let zeros = 3 * power as usize;
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > zeros || !is_number(whole) || !is_number(part) {
        return Err(wrong());
    }
    let rest = match part {
        "" => 0,
        part => format!("{part:0<zeros$}").parse().map_err(|_| wrong())?,
    };
    let whole = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(base.pow(power)));
    whole.and_then(|n| n.checked_add(rest)).ok_or_else(wrong)
}

/// The same of a number of tokens.
///
/// # Errors
/// As [`amount`].
pub fn tokens(text: &str) -> Result<usize, String> {
    amount(text)
        .and_then(|n| usize::try_from(n).map_err(|_| format!("{n} tokens are more than there can be")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_as_vllm_reads_them() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1000),
            ("1K", 1024),
            ("25.6k", 25_600),
            ("3m", 3_000_000),
            ("2M", 2 << 20),
            ("10G", 10 << 30),
            ("1.5g", 1_500_000_000),
            ("1T", 1 << 40),
        ];
        for (text, n) in cases {
            assert_eq!(amount(text), Ok(n), "{text}");
        }
        for text in
            ["", "k", "-1", "1.5", "1.5K", "1.k", ".5k", "1x", "1kB", "+1k", "1e3", "99999999T", "1.0001k"]
        {
            assert!(amount(text).unwrap_err().contains("1K (1024)"), "{text}");
        }
    }
}
