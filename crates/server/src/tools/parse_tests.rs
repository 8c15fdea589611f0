use super::super::format::FORMATS;
use super::*;

fn functions() -> Arc<[(String, Value)]> {
    let parameters = serde_json::json!({"properties": {
        "a": {"type": "string"}, "n": {"type": "integer"}, "é": {"type": "array"},
    }});
    [("f".into(), parameters), ("get_weather".into(), Value::Null)].into()
}

/// What a text comes to; the same, however it is cut.
fn parsed(name: &str, text: &str) -> Parsed {
    let format = Format::named(name).unwrap();
    let read = |parts: &[&str]| {
        let mut parser = Parser::new(format, functions(), false);
        let mut parsed = Parsed::default();
        for part in parts {
            parser.push(part).into_iter().for_each(|piece| parsed.add(piece));
        }
        parser.finish().into_iter().for_each(|piece| parsed.add(piece));
        parsed
    };
    let whole = read(&[text]);
    let cuts: Vec<usize> = text.char_indices().map(|(i, _)| i).collect();
    for (i, &first) in cuts.iter().enumerate() {
        assert_eq!(read(&[&text[..first], &text[first..]]), whole, "{name}: {text:?} cut at {first}");
        for &second in cuts[i..].iter().step_by(3) {
            let parts = [&text[..first], &text[first..second], &text[second..]];
            assert_eq!(read(&parts), whole, "{name}: {text:?} cut at {first} and {second}");
        }
    }
    let mut buffer = [0; 4];
    let chars: Vec<String> = text.chars().map(|char| char.encode_utf8(&mut buffer).to_owned()).collect();
    assert_eq!(
        read(&chars.iter().map(String::as_str).collect::<Vec<_>>()),
        whole,
        "{name}: {text:?} by characters"
    );
    whole
}

fn calls(content: &str, calls: &[(&str, &str)]) -> Parsed {
    let calls = calls.iter().map(|(name, arguments)| (name.to_string(), arguments.to_string()));
    Parsed { content: content.into(), calls: calls.collect() }
}

const A: &str = r#"{"a": "}</tool_call>\" [TOOL_CALLS]", "é": [{"b": {}}, 2]}"#;

#[test]
fn each_format_is_read_however_its_text_is_cut() {
    let two = [("f", A), ("get_weather", "{}")];
    for (name, text) in [
        (
            "hermes",
            format!(
                "<tool_call>\n{{\"name\": \"f\", \"arguments\": {A}}}\n</tool_call>\n<tool_call>{{\"name\": \"get_weather\", \"arguments\": {{}}}}</tool_call>\n"
            ),
        ),
        (
            "mistral",
            format!(
                "[TOOL_CALLS] [{{\"name\": \"f\", \"arguments\": {A}}}, {{\"name\": \"get_weather\", \"arguments\": {{}}}}]"
            ),
        ),
        (
            "llama3_json",
            format!(
                "<|python_tag|>{{\"name\": \"f\", \"parameters\": {A}}}; {{\"name\": \"get_weather\", \"parameters\": {{}}}}"
            ),
        ),
        (
            "llama3_json",
            format!(
                "\n{{\"type\": \"function\", \"name\": \"f\", \"parameters\": {A}}};{{\"name\": \"get_weather\"}}"
            ),
        ),
    ] {
        assert_eq!(parsed(name, &text), calls("", &two), "{text}");
    }
}

#[test]
fn calls_that_are_no_json_come_out_as_json() {
    let two = [("f", r#"{"a": "x\n y", "n": 5, "é": [1,{"b":2}]}"#), ("get_weather", "{}")];
    for (name, text) in [
        (
            "qwen3_coder",
            "<tool_call>\n<function=f>\n<parameter=a>\nx\n y\n</parameter>\n<parameter=n>\n5\n</parameter>\n<parameter=é>\n[1, {\"b\": 2}]\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n</function>\n</tool_call>\n",
        ),
        ("pythonic", "[f(a='x\\n y', n=5, é=[1, {\"b\": 2}]), get_weather()]"),
        ("pythonic", "<|python_start|>[f(a=\"x\\n y\", n = 5, é=[1, {'b': 2}],),get_weather( )]"),
    ] {
        assert_eq!(parsed(name, text), calls("", &two), "{text}");
    }
    let two = [("f", A), ("get_weather", "{}")];
    let newer = format!("[TOOL_CALLS]f[ARGS]{A}[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{{}}");
    assert_eq!(parsed("mistral", &newer), calls("", &two));
    // What must be a call is written as JSON in every format.
    for (name, begin, end) in [
        ("qwen3_coder", "<tool_call>\n", "\n</tool_call>"),
        ("pythonic", "[", "]"),
        ("mistral", "[TOOL_CALLS][", "]"),
    ] {
        let text = format!("{begin}{{\"name\": \"f\", \"arguments\": {A}}}{end}");
        assert_eq!(parsed(name, &text), calls("", &two[..1]), "{text}");
    }
}

#[test]
fn a_long_argument_is_whole_and_prose_that_looks_like_calls_is_text() {
    let long = "def g(x):\n    return '<' + x\n".repeat(2000);
    let text = format!("<tool_call><function=f><parameter=a>\n{long}\n</parameter></function></tool_call>");
    let mut parser = Parser::new(Format::named("qwen3_coder").unwrap(), functions(), false);
    let mut told = Parsed::default();
    text.as_bytes().chunks(5).for_each(|part| {
        parser.push(str::from_utf8(part).unwrap()).into_iter().for_each(|piece| told.add(piece));
    });
    parser.finish().into_iter().for_each(|piece| told.add(piece));
    assert_eq!(told, calls("", &[("f", &format!("{{\"a\": {}}}", Value::from(long)))]));
    for (name, text) in [
        ("pythonic", "[1] is a source, [f] another, and f(a=1) a call."),
        ("pythonic", "[unknown(a=1)]"),
        ("qwen3_coder", "<tool_call> is how <function=f> begins"),
        ("qwen3_coder", "<tool_call><function=unknown></function></tool_call>"),
        ("mistral", "[TOOL_CALLS] is its mark"),
        ("mistral", "[TOOL_CALLS]unknown[ARGS]{}"),
    ] {
        assert_eq!(parsed(name, text), calls(text, &[]));
    }
    // Calls that end early keep the arguments that were whole.
    let early = "<tool_call><function=f><parameter=n>5</parameter><parameter=a>x";
    assert_eq!(parsed("qwen3_coder", early), calls("", &[("f", "{\"n\": 5")]));
    assert_eq!(parsed("pythonic", "[f(n=5, a='x"), calls("", &[("f", "{\"n\": 5")]));
}

#[test]
fn text_stays_text_before_calls_and_behind_them() {
    let one = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>";
    assert_eq!(
        parsed("hermes", &format!("Let me see. <\n\n{one}\nSo.")),
        calls("Let me see. <\nSo.", &[("f", "{\"a\": 1}")])
    );
    for format in FORMATS {
        for text in [
            "",
            " \n",
            "Just text.\n",
            "a < b {\"name\": 1} [",
            "<tool",
            "[TOOL_CALLS",
            "<|python",
            "<tool_call>",
            "{",
        ] {
            assert_eq!(parsed(format.name, text), calls(text, &[]), "{}", format.name);
        }
    }
}

#[test]
fn what_only_looks_like_a_call_is_text_and_nothing_of_it_is_lost() {
    for text in [
        "Write <tool_call> before it.",
        "<tool_call>{\"name\": \"unknown\", \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": 3}</tool_call>",
        "<tool_call>{\"name\": \"f\" \"arguments\": {}}</tool_call>",
        "<tool_call>{name: f}</tool_call> and more",
        "<tool_call>\n{\"name\": \"f\", \"argu",
        "<tool_call> <tool_call> <",
    ] {
        assert_eq!(parsed("hermes", text), calls(text, &[]));
    }
    let json = "{\"name\": \"Ada\", \"age\": 36}\n";
    assert_eq!(parsed("llama3_json", json), calls(json, &[]));
    // One in a word that looks like one.
    let text = "<tool_call> is <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    assert_eq!(parsed("hermes", text), calls("<tool_call> is", &[("f", "{}")]));
    let long = format!("<tool_call>{{\"name\": \"{}", "x".repeat(2 * HELD_MAX));
    let mut parser = Parser::new(Format::named("hermes").unwrap(), functions(), false);
    let mut told = Parsed::default();
    long.as_bytes().chunks(1000).for_each(|part| {
        parser.push(str::from_utf8(part).unwrap()).into_iter().for_each(|piece| told.add(piece));
    });
    parser.finish().into_iter().for_each(|piece| told.add(piece));
    assert_eq!(told, calls(&long, &[]));
}

#[test]
fn white_space_is_not_held_for_ever_wherever_it_stands() {
    let blanks = "\n ".repeat(HELD_MAX);
    for (name, before, behind) in [
        ("llama3_json", "", "{\"name\": \"f\", \"parameters\": {}}"),
        ("hermes", "So.", "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"),
        ("mistral", "[TOOL_CALLS]", "[{\"name\": \"f\", \"arguments\": {}}]"),
        (
            "mistral",
            "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {}}",
            ", {\"name\": \"f\", \"arguments\": {}}]",
        ),
    ] {
        let read = |step: usize| {
            let mut parser = Parser::new(Format::named(name).unwrap(), functions(), false);
            let (mut parsed, mut held) = (Parsed::default(), 0);
            let text = format!("{before}{blanks}");
            let parts = text.as_bytes().chunks(step).chain(behind.as_bytes().chunks(step));
            parts.for_each(|part| {
                parser.push(str::from_utf8(part).unwrap()).into_iter().for_each(|piece| parsed.add(piece));
                held = held.max(parser.held.len());
            });
            parser.finish().into_iter().for_each(|piece| parsed.add(piece));
            (parsed, held)
        };
        let (streamed, held) = read(7);
        assert!(held <= HELD_MAX + 16, "{name}: {held} bytes were held");
        assert_eq!(streamed, read(1 << 20).0, "{name}: however it is cut");
        assert!(streamed.content.len() >= HELD_MAX, "{name}");
    }
}

#[test]
fn calls_that_end_early_keep_what_came_of_their_arguments() {
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, ";
    assert_eq!(parsed("hermes", text), calls("", &[("f", "{\"a\": [1, ")]));
    let unclosed =
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}\n<tool_call>{\"name\": \"f\", \"arguments\": {}";
    assert_eq!(parsed("hermes", unclosed), calls("", &[("f", "{}"), ("f", "{}")]));
}

#[test]
fn keys_in_another_order_and_arguments_as_text_are_read_too() {
    let turned = "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\", \"id\": 7}</tool_call>";
    assert_eq!(parsed("hermes", turned), calls("", &[("f", "{\"a\":1}")]));
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>";
    assert_eq!(parsed("hermes", text), calls("", &[("f", "{\"a\": 1}")]));
}

#[test]
fn what_must_be_calls_has_no_content_wherever_it_is_cut_off() {
    for format in FORMATS {
        let call = format!("{{\"name\": \"f\", \"{}\": {A}}}", format.arguments);
        let text = format!("{} {}{call} {}", format.opener, format.begin, format.end);
        let named = text.find("\"f\"").unwrap() + 3;
        let (begun, over) = (text.find(A).unwrap(), text.find(A).unwrap() + A.len());
        for (cut, _) in text.char_indices().chain([(text.len(), ' ')]) {
            let read = |parts: &mut dyn Iterator<Item = &str>| {
                let mut parser = Parser::new(format, functions(), true);
                let mut parsed = Parsed::default();
                parts.for_each(|part| parser.push(part).into_iter().for_each(|piece| parsed.add(piece)));
                parser.finish().into_iter().for_each(|piece| parsed.add(piece));
                parsed
            };
            let whole = read(&mut std::iter::once(&text[..cut]));
            assert_eq!(
                read(&mut text[..cut].split_inclusive(|_: char| true)),
                whole,
                "{}: {cut}",
                format.name
            );
            let expected = match cut {
                cut if cut < named => calls("", &[]),
                cut => calls("", &[("f", &text[begun..cut.clamp(begun, over)])]),
            };
            assert_eq!(whole, expected, "{}: {:?}", format.name, &text[..cut]);
        }
    }
}
