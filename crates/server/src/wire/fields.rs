//! A request's parameters as a table: what is checked, and what `/openapi.json` says, are the same lines.
//!
//! A parameter that the table does not have is an error that names it. `null` is the same as nothing, as clients of typed
//! languages send it for what was not set.

use serde_json::{Map, Value, json};

use super::errors::{ApiError, kind_of};

/// One parameter of an endpoint.
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: Kind,
    /// What it does, in one line.
    pub help: &'static str,
}

/// What a parameter may be.
pub enum Kind {
    /// True or false.
    Bool,
    /// A whole number in a range.
    Int(i64, i64),
    /// Any 64-bit whole number, signed or not.
    Seed,
    /// A number in a range.
    Number(f64, f64),
    /// The same without its lower end.
    Above(f64, f64),
    /// Text.
    Text,
    /// An object of any content.
    Object,
    /// A list of whole numbers from 0 to 2³² − 1, this many at most.
    Ids(usize),
    /// Checked by whoever reads it; its JSON Schema.
    Custom(fn() -> Value),
    /// Has no effect on the answer, whatever it is.
    Ignored,
    /// Known, but only this value of it can be served: the one without effect.
    Only(fn() -> Value),
}

/// A parameter.
pub const fn field(name: &'static str, kind: Kind, help: &'static str) -> Field {
    Field { name, kind, help }
}

/// A body whose fields are known and have the right types.
#[derive(Debug)]
pub struct Checked(Map<String, Value>);

impl Checked {
    /// Checks a body against the tables of its endpoint.
    ///
    /// # Errors
    /// 400 that names the first field that is unknown, wrong, or missing though required.
    pub fn new(body: Value, tables: &[&[Field]], required: &[&str]) -> Result<Self, ApiError> {
        let Value::Object(fields) = body else {
            return Err(ApiError::bad(format!("the body must be a JSON object, but is {}", kind_of(&body))));
        };
        // Whatever null is of, it is not set.
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            let known = tables.iter().flat_map(|table| table.iter()).find(|field| field.name == name);
            let Some(field) = known else {
                let name = shortened(name);
                let message = format!("unknown parameter {name:?}: this server does not support it");
                return Err(ApiError::param(name, message).code("unknown_parameter"));
            };
            field.check(value)?;
        }
        for name in required {
            if fields.get(*name).is_none_or(Value::is_null) {
                let message = format!("missing required parameter {name:?}");
                return Err(ApiError::param(*name, message).code("missing_required_parameter"));
            }
        }
        Ok(Checked(fields))
    }

    /// A field's value, unless it is not there or null.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    /// Takes a field's value out.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.0.get_mut(name).map(Value::take).filter(|value| !value.is_null())
    }

    /// A flag.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name)?.as_bool()
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<f32> {
        self.get(name)?.as_f64().map(|number| number as f32)
    }

    /// A whole number; checked to be in its range.
    pub fn int(&self, name: &str) -> Option<i64> {
        whole(self.get(name)?)
    }

    /// The same where the range has no negative ones.
    pub fn count(&self, name: &str) -> Option<usize> {
        self.int(name).and_then(|n| usize::try_from(n).ok())
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// A list of ids.
    pub fn ids(&self, name: &str) -> Option<Vec<u32>> {
        self.get(name)?.as_array().map(|ids| ids.iter().filter_map(id).collect())
    }
}

impl Field {
    fn check(&self, value: &Value) -> Result<(), ApiError> {
        let wrong = |expected: &str| Err(ApiError::wrong_type(self.name, expected, value));
        let outside = |range: String| {
            let message = format!("{} is {}; it must be {range}", self.name, kind_of(value));
            Err(ApiError::param(self.name, message).code("invalid_value"))
        };
        match &self.kind {
            Kind::Bool if !value.is_boolean() => wrong("true or false"),
            Kind::Int(min, max) => match whole(value) {
                Some(n) if (*min..=*max).contains(&n) => Ok(()),
                Some(_) => outside(range_of(*min, *max)),
                None if value.is_number() && value.as_f64().is_some_and(|n| n.fract() == 0.0) => {
                    outside(range_of(*min, *max))
                }
                None => wrong("an integer"),
            },
            Kind::Seed if !value.is_i64() && !value.is_u64() => wrong("a 64-bit integer"),
            Kind::Number(min, max) => match value.as_f64() {
                Some(n) if (*min..=*max).contains(&n) => Ok(()),
                Some(_) => outside(format!("from {min} to {max}")),
                None => wrong("a number"),
            },
            Kind::Above(min, max) => match value.as_f64() {
                Some(n) if n > *min && n <= *max => Ok(()),
                Some(_) => outside(format!("above {min} and at most {max}")),
                None => wrong("a number"),
            },
            Kind::Text if !value.is_string() => wrong("a string"),
            Kind::Object if !value.is_object() => wrong("an object"),
            Kind::Ids(max) => {
                let Some(items) = value.as_array() else { return wrong("a list of token ids") };
                if items.len() > *max {
                    return outside(format!("a list of {max} at most"));
                }
                match items.iter().position(|item| id(item).is_none()) {
                    Some(i) => {
                        let at = format!("{}[{i}]", self.name);
                        Err(ApiError::wrong_type(at, "a token id", &items[i]))
                    }
                    None => Ok(()),
                }
            }
            Kind::Only(only) if !is_same(value, &only()) => {
                let message = format!("{} is {}; only {} is supported", self.name, kind_of(value), only());
                Err(ApiError::param(self.name, message).code("unsupported_value"))
            }
            _ => Ok(()),
        }
    }

    /// Its JSON Schema.
    pub fn schema(&self) -> Value {
        let mut schema = match &self.kind {
            Kind::Bool => json!({"type": ["boolean", "null"]}),
            Kind::Int(min, max) => json!({"type": ["integer", "null"], "minimum": min, "maximum": max}),
            Kind::Seed => json!({"type": ["integer", "null"], "minimum": i64::MIN, "maximum": u64::MAX}),
            Kind::Number(min, max) => json!({"type": ["number", "null"], "minimum": min, "maximum": max}),
            Kind::Above(min, max) => {
                json!({"type": ["number", "null"], "exclusiveMinimum": min, "maximum": max})
            }
            Kind::Text => json!({"type": ["string", "null"]}),
            Kind::Object => json!({"type": ["object", "null"]}),
            Kind::Ids(max) => json!({
                "type": ["array", "null"], "maxItems": max,
                "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX},
            }),
            Kind::Custom(schema) => schema(),
            Kind::Ignored => json!({}),
            Kind::Only(only) => json!({"enum": [only(), null]}),
        };
        schema["description"] = self.help.into();
        schema
    }
}

fn range_of(min: i64, max: i64) -> String {
    match max {
        i64::MAX => format!("an integer of at least {min}"),
        _ => format!("an integer from {min} to {max}"),
    }
}

/// A whole number, `2.0` too: JSON has one kind of numbers.
fn whole(value: &Value) -> Option<i64> {
    let exact = |n: &f64| n.fract() == 0.0 && n.abs() <= 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| value.as_f64().filter(exact).map(|n| n as i64))
}

/// Whether two values are the same; numbers however they are written.
fn is_same(a: &Value, b: &Value) -> bool {
    a == b || a.as_f64().zip(b.as_f64()).is_some_and(|(a, b)| a == b)
}

/// A token id.
pub fn id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A name to quote in an error.
pub fn shortened(name: &str) -> String {
    name.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Field] = &[
        field("n", Kind::Int(1, 128), "how many"),
        field("t", Kind::Number(0.0, 2.0), "how far"),
        field("p", Kind::Above(0.0, 1.0), "how many"),
        field("user", Kind::Ignored, "who"),
        field("store", Kind::Only(|| json!(false)), "kept"),
        field("stop_token_ids", Kind::Ids(4), "ends"),
    ];

    fn check(body: Value) -> Result<Checked, ApiError> {
        Checked::new(body, &[TABLE], &[])
    }

    #[test]
    fn what_is_wrong_is_named_with_what_was_expected_and_found() {
        for (body, param, parts) in [
            (json!({"n": "1"}), "n", ["an integer", "the string \"1\""]),
            (json!({"n": 1.5}), "n", ["an integer", "1.5"]),
            (json!({"n": 1e300}), "n", ["from 1 to 128", "1e+300"]),
            (json!({"n": 129}), "n", ["from 1 to 128", "129"]),
            (json!({"t": -0.1}), "t", ["from 0 to 2", "-0.1"]),
            (json!({"t": []}), "t", ["a number", "a list of 0"]),
            (json!({"p": 0}), "p", ["above 0 and at most 1", "is 0"]),
            (json!({"p": 1.5}), "p", ["at most 1", "1.5"]),
            (json!({"frobnicate": 1}), "frobnicate", ["unknown", "frobnicate"]),
            (json!({"store": true}), "store", ["only false", "true"]),
            (json!({"stop_token_ids": [1, -1]}), "stop_token_ids[1]", ["a token id", "-1"]),
        ] {
            let error = check(body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
            assert!(parts.iter().all(|part| error.message.contains(part)), "{}", error.message);
        }
        assert!(check(json!([])).unwrap_err().message.contains("object"));
    }

    #[test]
    fn null_is_as_nothing_and_what_has_no_effect_may_be_anything() {
        let checked =
            check(json!({"n": null, "user": {"a": 1}, "store": false, "t": 1, "frobnicate": null})).unwrap();
        assert_eq!((checked.count("n"), checked.number("t")), (None, Some(1.0)));
        let error = Checked::new(json!({"n": null}), &[TABLE], &["n"]).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"));
    }
}
