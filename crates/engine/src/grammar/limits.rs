//! What a grammar may be, before the library sees it. Its own limits bound most of the time; these are for what they don't.

use llguidance::api::ParserLimits;
use serde_json::Value;

use super::depth;
use super::lark::Lark;

/// Bytes of a regular expression and of a grammar: a KiB of the worst takes a millisecond.
const REGEX_BYTES_MAX: usize = 64 << 10;
const LARK_BYTES_MAX: usize = 128 << 10;
/// Bytes of a schema, most of which are descriptions where there are many.
const SCHEMA_BYTES_MAX: usize = 1 << 20;
/// Values of a schema.
const VALUES_MAX: usize = 10_000;
/// Properties of an object, each of which may follow each: the time is their square.
const PROPERTIES_MAX: usize = 500;
/// Texts that may have to conform to several patterns at once: to so many, or with so many `&`.
const JOINED_MAX: usize = 8;
/// A `multipleOf` counts as so many: its states multiply.
const MULTIPLE: usize = 5;
/// The largest `multipleOf`, without the zeros at its ends: each has as many states.
const MULTIPLE_MAX: u64 = 1000;
/// Steps of the search for what is joined.
const VISITS_MAX: usize = 100_000;

/// Sets the library's own limits.
pub fn set(limits: &mut ParserLimits) {
    limits.initial_lexer_fuel = 150_000;
    limits.max_grammar_size = 20_000;
    // Per step: a few milliseconds.
    limits.step_lexer_fuel = 50_000;
    limits.step_max_items = 20_000;
    // Some 1.5 KB each.
    limits.max_lexer_states = 32_000;
    limits.verbose_errors = false;
}

/// # Errors
/// Too long.
pub fn check_regex(regex: &str) -> Result<(), String> {
    check_bytes(regex, REGEX_BYTES_MAX)
}

/// # Errors
/// Too long, or it has something that takes too long or nests too deep.
pub fn check_lark(text: &str) -> Result<(), String> {
    check_bytes(text, LARK_BYTES_MAX)?;
    let lark = Lark::of(text);
    if lark.joins > JOINED_MAX {
        return Err(format!("it has {} of & and ~, more than the {JOINED_MAX} allowed", lark.joins));
    }
    lark.schemas.iter().try_for_each(check_schema)?;
    depth::check_lark(&lark)
}

/// # Errors
/// It has something that takes too long or nests too deep.
pub fn check_schema(schema: &Value) -> Result<(), String> {
    let mut count = Count { root: schema, values: 0, visits: 0 };
    count.walk(schema)?;
    depth::check_schema(schema)
}

/// # Errors
/// Too long.
pub fn check_schema_text(text: &str) -> Result<(), String> {
    check_bytes(text, SCHEMA_BYTES_MAX)
}

fn check_bytes(text: &str, max: usize) -> Result<(), String> {
    match text.len() <= max {
        true => Ok(()),
        false => Err(format!("it has {} bytes, more than the {max} allowed", text.len())),
    }
}

struct Count<'a> {
    root: &'a Value,
    values: usize,
    visits: usize,
}

impl<'a> Count<'a> {
    fn walk(&mut self, value: &'a Value) -> Result<(), String> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(format!("it has more than the {VALUES_MAX} values allowed"));
        }
        match value {
            Value::Array(items) => items.iter().try_for_each(|item| self.walk(item)),
            Value::Object(fields) => {
                if fields.len() > PROPERTIES_MAX {
                    return Err(format!("it has an object of more than {PROPERTIES_MAX} properties"));
                }
                if let Some(number) = fields.get("multipleOf").filter(|number| !is_small(number)) {
                    return Err(format!("multipleOf is {number}; {MULTIPLE_MAX} at most is supported"));
                }
                let joined = self.joined(value, 0);
                if joined > JOINED_MAX {
                    return Err(format!(
                        "more than {JOINED_MAX} patterns, formats and multiples hold for one value"
                    ));
                }
                fields.values().try_for_each(|field| self.walk(field))
            }
            _ => Ok(()),
        }
    }

    /// How many patterns hold for one value, multiples among them.
    fn joined(&mut self, schema: &'a Value, levels: usize) -> usize {
        self.visits += 1;
        let Some(fields) = schema.as_object() else { return 0 };
        if levels > 64 || self.visits > VISITS_MAX {
            // References in a circle hold for nothing but themselves; the library says so.
            return if self.visits > VISITS_MAX { JOINED_MAX + 1 } else { 0 };
        }
        let mut joined = 0;
        for (key, value) in fields {
            let each = value.as_array().map_or(&[][..], Vec::as_slice);
            joined += match key.as_str() {
                "pattern" | "format" if value.is_string() => 1,
                "multipleOf" => MULTIPLE,
                "$ref" => {
                    let at = value.as_str().and_then(|at| depth::resolve(self.root, at));
                    at.map_or(0, |at| self.joined(at, levels + 1))
                }
                "allOf" => each.iter().map(|one| self.joined(one, levels + 1)).sum(),
                "anyOf" | "oneOf" => each.iter().map(|one| self.joined(one, levels + 1)).max().unwrap_or(0),
                _ => 0,
            };
        }
        joined
    }
}

/// Whether a number has few digits between the zeros at its ends.
fn is_small(number: &Value) -> bool {
    let digits: String =
        number.to_string().to_lowercase().split('e').next().unwrap_or_default().replace(['.', '-'], "");
    digits.trim_matches('0').parse::<u64>().is_ok_and(|digits| digits <= MULTIPLE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_takes_too_long_is_refused_before_the_library_sees_it() {
        let pattern = |i: usize| json!({"type": "string", "pattern": format!("(a|b)*a(a|b){{{i}}}")});
        let all = json!({"allOf": (0..20).map(pattern).collect::<Vec<_>>()});
        let chain =
            (0..20).fold(pattern(0), |inner, i| json!({"pattern": format!("a{{{i}}}"), "anyOf": [inner]}));
        let names =
            |n: usize| (0..n).map(|i| (format!("a{i}"), json!({}))).collect::<serde_json::Map<_, _>>();
        let fan = (0..40).map(|i| {
            let next = json!({"$ref": format!("#/$defs/a{}", i + 1)});
            (format!("a{i}"), json!({"allOf": [next, next]}))
        });
        let fan: serde_json::Map<_, _> = fan.chain([("a40".into(), pattern(1))]).collect();
        for wrong in [
            all,
            chain,
            json!({"$ref": "#/$defs/a0", "$defs": fan}),
            json!({"multipleOf": 999_983}),
            json!({"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}),
            json!({"properties": names(2000)}),
            json!({"enum": (0..20_000).collect::<Vec<_>>()}),
        ] {
            assert!(check_schema(&wrong).is_err(), "{wrong}");
            assert!(check_lark(&format!("start: x\nx: %json {wrong}\n")).is_err());
        }
        assert!(check_lark(&format!("start: X\nX: {}", ["/a.*/"; 20].join(" & "))).is_err());
        assert!(check_regex(&"ab?".repeat(1 << 16)).is_err());
    }

    #[test]
    fn what_people_ask_for_is_not_refused() {
        for fine in [
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}}),
            json!({"type": "number", "multipleOf": 0.01}),
            json!({"type": "integer", "multipleOf": 86_400_000}),
            json!({"enum": (0..5000).map(|i| format!("value {i}")).collect::<Vec<_>>(), "description": "x".repeat(1 << 18)}),
            json!({"properties": {"at": {"type": "string", "format": "date-time", "pattern": "Z$"}}}),
        ] {
            assert_eq!(check_schema(&fine), Ok(()));
        }
        let ampersands = json!({"description": "& & & & & & & & & & &", "type": "object"});
        assert_eq!(check_lark(&format!("start: x\nx: %json {ampersands}\n")), Ok(()));
    }
}
