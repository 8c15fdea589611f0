//! The environment of a chat template: what Hugging Face's has beside Jinja's own, and the filters that had to pay.

use minijinja::value::{Kwargs, Rest, Value, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, filters, functions};

use super::template_budget::{Budget, with_budget};
use super::template_guard::{COPY, FACTOR, RAW, SCAN, SHALLOW, SLICE, STORE, TEXT};
use super::template_methods::call_method;
use super::template_python::{JsonStyle, json_dumps, python_str};
use super::template_time::strftime;

/// No real template indents or groups by more.
const WIDTH_MAX: usize = 1024;

/// Everything but the template itself.
pub(super) fn environment() -> Environment<'static> {
    let mut env = Environment::new();
    env.set_trim_blocks(true);
    env.set_lstrip_blocks(true);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(call_method);
    env.set_formatter(|out, state, value| {
        with_budget(state, |budget| match value.as_str() {
            Some(text) => {
                budget.charge(text.len() as u64)?;
                out.write_str(text).map_err(Error::from)
            }
            None => out.write_str(&python_str(value, budget)?).map_err(Error::from),
        })
    });

    env.add_function("raise_exception", |state: &State, message: Value| -> Result<Value, Error> {
        with_budget(state, |budget| Err(budget.raise(python_str(&message, budget)?)))
    });
    env.add_function("strftime_now", |state: &State, format: &str| {
        with_budget(state, |budget| {
            budget.charge(8 * format.len() as u64)?;
            Ok(strftime(format, budget.now_unix_s))
        })
    });
    env.add_function("namespace", |state: &State, args: Rest<Value>| {
        with_budget(state, |budget| args.iter().try_for_each(|arg| budget.charge_scan(arg)))?;
        functions::namespace(args.first().cloned())
    });
    env.add_function("dict", |state: &State, args: Rest<Value>| {
        with_budget(state, |budget| args.iter().try_for_each(|arg| budget.charge_scan(arg)))?;
        let (value, update_with): (Option<Value>, Kwargs) = from_args(&args)?;
        functions::dict(value, update_with)
    });
    // None of these is Jinja's; each makes more than it is given.
    env.remove_global("debug");
    ["chain", "zip", "pprint"].iter().for_each(|name| env.remove_filter(name));

    add_payments(&mut env);
    add_filters(&mut env);
    add_tests(&mut env);
    env
}

/// The filters that `template_guard` puts into the template. They give back what they are given.
fn add_payments(env: &mut Environment<'static>) {
    type Charge = fn(&Budget, &Value) -> Result<(), Error>;
    let payments: [(&'static str, Charge); 5] = [
        (SHALLOW, Budget::charge_shallow),
        (SCAN, Budget::charge_scan),
        (STORE, Budget::charge_scan),
        (COPY, Budget::charge_text),
        (FACTOR, Budget::charge_factor),
    ];
    for (name, charge) in payments {
        env.add_filter(name, move |state: &State, value: Value| {
            with_budget(state, |budget| charge(budget, &value)).map(|()| value)
        });
    }
    env.add_filter(TEXT, |state: &State, value: Value| {
        with_budget(state, |budget| match value.kind() {
            ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
                python_str(&value, budget).map(Value::from)
            }
            // A number stays one: in `a * b ~ c`, this is b.
            _ => budget.charge_text(&value).map(|()| value),
        })
    });
    env.add_filter(SLICE, slice);
    env.add_filter(RAW, |state: &State, bytes: u64| {
        with_budget(state, |budget| budget.charge(bytes)).map(|()| "")
    });
}

fn add_filters(env: &mut Environment<'static>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |state: &State, value: Value| {
        with_budget(state, |budget| python_str(&value, budget))
    });
    env.add_filter("join", |state: &State, value: Value, separator: Option<&str>, kwargs: Kwargs| {
        let attribute: Option<Value> = kwargs.get("attribute")?;
        kwargs.assert_all_used()?;
        with_budget(state, |budget| join(budget, &value, separator.unwrap_or(""), attribute.as_ref()))
    });
    env.add_filter("replace", |state: &State, text: Value, old: Value, new: Value, count: Option<i64>| {
        with_budget(state, |budget| {
            let (text, old) = (python_str(&text, budget)?, python_str(&old, budget)?);
            replace(budget, &text, &old, &python_str(&new, budget)?, count)
        })
    });
    env.add_filter("indent", indent);
    env.add_filter("batch", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::batch(state, value, narrow(state, count)?, fill)
    });
    env.add_filter("slice", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        filters::slice(state, value, narrow(state, count)?, fill)
    });
    env.add_filter("format", |state: &State, format: Value, args: Rest<Value>| {
        with_budget(state, |budget| charge_format(budget, &format, &args))?;
        filters::format(state, &format, args)
    });
}

/// Jinja's tests of kinds, which are Python's: a string is a sequence, and a boolean is a number.
fn add_tests(env: &mut Environment<'static>) {
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("iterable", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), Seq | String | Map | Iterable | Undefined)
    });
    env.add_test("number", |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool));
}

fn tojson(state: &State, value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = kwargs.get("indent")?;
    let separators: Option<Value> = kwargs.get("separators")?;
    let style = JsonStyle {
        indent: match indent.filter(|indent| !indent.is_none()) {
            None => None,
            Some(indent) => Some(match indent.as_str() {
                Some(text) => text.to_string(),
                None => " ".repeat(narrow(state, usize::try_from(indent).unwrap_or(0))?),
            }),
        },
        separators: match separators.filter(|separators| !separators.is_none()) {
            None => None,
            Some(pair) => {
                Some((pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()))
            }
        },
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "an undefined value cannot be written as JSON"));
    }
    with_budget(state, |budget| json_dumps(&value, &style, budget))
}

/// Python's `value[start:stop:step]`.
fn slice(
    state: &State,
    value: Value,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<Value, Error> {
    with_budget(state, |budget| budget.charge_shallow(&value))?;
    match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            let chars: Vec<char> = text.chars().collect();
            Ok(slice_indices(chars.len(), start, stop, step)?
                .map(|index| chars[index])
                .collect::<String>()
                .into())
        }
        (None, ValueKind::Seq | ValueKind::Iterable) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            Ok(slice_indices(items.len(), start, stop, step)?.map(|index| items[index].clone()).collect())
        }
        (None, ValueKind::Undefined) => Err(ErrorKind::UndefinedError.into()),
        (None, kind) => {
            Err(Error::new(ErrorKind::InvalidOperation, format!("a value of the kind {kind} has no parts")))
        }
    }
}

/// The indices of a slice of so many items: bounds count from the end if negative, and are moved to the nearest end.
fn slice_indices(
    len: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: Option<i64>,
) -> Result<impl Iterator<Item = usize>, Error> {
    let (len, step) = (len as i64, step.unwrap_or(1));
    if step == 0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "slice step cannot be zero"));
    }
    let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |bound: Option<i64>, missing: i64| {
        bound.map_or(missing, |at| if at < 0 { at.saturating_add(len) } else { at }.clamp(lowest, highest))
    };
    let (first, last) = if step > 0 { (lowest, highest) } else { (highest, lowest) };
    let (start, stop) = (bound(start, first), bound(stop, last));
    let indices = std::iter::successors(Some(start), move |index| index.checked_add(step));
    Ok(indices
        .take_while(move |&index| if step > 0 { index < stop } else { index > stop })
        .map(|index| index as usize))
}

/// Python's `separator.join(value)`, of any values as Jinja's filter has it.
pub(super) fn join(
    budget: &Budget,
    value: &Value,
    separator: &str,
    attribute: Option<&Value>,
) -> Result<String, Error> {
    let mut out = String::new();
    for (index, item) in value.try_iter()?.enumerate() {
        if index > 0 {
            budget.charge(separator.len() as u64)?;
            out.push_str(separator);
        }
        let item = match attribute {
            Some(name) => item.get_item(name)?,
            None => item,
        };
        out.push_str(&python_str(&item, budget)?);
    }
    Ok(out)
}

/// Python's `text.replace(old, new, count)`.
pub(super) fn replace(
    budget: &Budget,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<String, Error> {
    let count = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let matches = text.matches(old).take(count).count() as u64;
    budget.charge((new.len() as u64).saturating_mul(matches).saturating_add(text.len() as u64))?;
    Ok(text.replacen(old, new, count))
}

/// Jinja's `indent(width=4, first=False, blank=False)`; the width may be the text itself.
fn indent(state: &State, value: Value, args: Rest<Value>) -> Result<String, Error> {
    type Args = (Option<Value>, Option<bool>, Option<bool>, Kwargs);
    let (width, first, blank, kwargs): Args = from_args(&args)?;
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indent = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_string(),
            None => " ".repeat(narrow(state, usize::try_from(width)?)?),
        },
    };
    let text = with_budget(state, |budget| python_str(&value, budget))?;
    let mut out = String::new();
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            out.push('\n');
        }
        if if index == 0 { first } else { blank || !line.is_empty() } {
            with_budget(state, |budget| budget.charge(indent.len() as u64))?;
            out.push_str(&indent);
        }
        out.push_str(line);
    }
    Ok(out)
}

/// `%s` and `{}` name widths, so their digits say how much they can make.
pub(super) fn charge_format(budget: &Budget, format: &Value, args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| budget.charge_text(arg))?;
    let text = format.as_str().unwrap_or_default();
    budget.charge(text.len() as u64)?;
    let mut digits = 0;
    for byte in text.bytes() {
        digits = if byte.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 || byte == b'*' {
            return Err(budget.exhaust("a format asks for a width of more than 999"));
        }
        budget.charge(if byte == b'%' || byte == b'{' { 1000 } else { 0 })?;
    }
    Ok(())
}

fn narrow(state: &State, count: usize) -> Result<usize, Error> {
    match count <= WIDTH_MAX {
        true => Ok(count),
        false => with_budget(state, |budget| Err(budget.exhaust("it asks for a width of more than 1024"))),
    }
}
