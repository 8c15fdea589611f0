use std::path::Path;

use super::*;
use crate::Opened;

const EOS: u32 = 1;

fn grammars() -> (Grammars, Arc<Tokenizer>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cli/demo");
    let tokenizer = Arc::new(Tokenizer::from_dir(dir).unwrap());
    (Grammars::new(tokenizer.clone(), 2048, vec![EOS, 3]), tokenizer)
}

fn opened(repeats: bool) -> Grammar {
    let schema = r#"{"type": "object", "properties": {"n": {"enum": [1, 22, 333]}}, "required": ["n"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}}"#;
    Grammar::Opened(Box::new(Opened {
        openers: vec!["<tool_call>".into(), "<|user|>".into()],
        first_openers: vec!["{\"n\"".into()],
        grammar: format!(
            "start: (\"<tool_call>\" \"\\n\"? | <|user|>)? args \"</tool_call>\"?\nargs: %json {schema}"
        ),
        repeats,
    }))
}

/// Takes a text's tokens; whether the next token is held to the grammar.
fn take(conforming: &mut Conforming, tokenizer: &Tokenizer, text: &str) -> bool {
    for token in tokenizer.encode(text, false).unwrap() {
        assert_eq!(conforming.take(token), Ok(false), "{text}");
    }
    conforming.mask().unwrap().is_some()
}

/// What the grammar allows, chosen by `pick`, until the end or until all is allowed again.
fn go_on(conforming: &mut Conforming, tokenizer: &Tokenizer, pick: usize) -> (String, bool) {
    let mut tokens = Vec::new();
    while let Some(words) = conforming.mask().unwrap() {
        let is_allowed = |&id: &u32| words[id as usize / 32] >> (id % 32) & 1 == 1;
        let allowed: Vec<u32> = (0..2048).filter(is_allowed).collect();
        let token = allowed[(pick * 7919 + tokens.len()) % allowed.len()];
        tokens.push(token);
        if conforming.take(token).unwrap() {
            return (tokenizer.decode(&tokens, true).unwrap(), true);
        }
    }
    (tokenizer.decode(&tokens, true).unwrap(), false)
}

#[test]
fn text_is_free_until_an_opener_and_conforms_from_there() {
    let (grammars, tokenizer) = grammars();
    for (text, rest) in [
        ("Well <tool_call>", ""),
        ("<tool_call>\n", ""),
        ("a <tool_cal <tool_call>{\"n\"", "{\"n\""),
        (" {\"n\"", "{\"n\""),
        ("Some <|user|>", ""),
    ] {
        for pick in 0..20 {
            let mut conforming = grammars.start(&opened(true)).unwrap().0;
            assert!(conforming.mask().unwrap().is_none());
            assert!(take(&mut conforming, &tokenizer, text), "{text}");
            let (said, _) = go_on(&mut conforming, &tokenizer, pick);
            let all = format!("{rest}{said}");
            let call = all.trim().trim_end_matches("</tool_call>").trim();
            let value: Value = serde_json::from_str(call).unwrap_or_else(|e| panic!("{e}: {text} {said}"));
            assert!([1, 22, 333].contains(&value["n"].as_i64().unwrap()), "{said}");
        }
    }
}

#[test]
fn what_only_looks_like_an_opener_is_text() {
    let (grammars, tokenizer) = grammars();
    for text in ["<tool_calls> <tool_call", "<tool_call", "so {\"n\": 4", "{\"name\": 1", "{ }", "plain"] {
        let mut conforming = grammars.start(&opened(true)).unwrap().0;
        assert!(!take(&mut conforming, &tokenizer, text), "{text}");
    }
}

#[test]
fn behind_a_call_text_is_free_again_or_the_completion_is_over() {
    let (grammars, tokenizer) = grammars();
    let call = "<tool_call>{\"n\": 22}</tool_call>";
    let tokens = tokenizer.encode(call, false).unwrap();
    let (last, before) = tokens.split_last().unwrap();
    for repeats in [true, false] {
        let mut conforming = grammars.start(&opened(repeats)).unwrap().0;
        before.iter().for_each(|&token| assert_eq!(conforming.take(token), Ok(false)));
        assert!(conforming.mask().unwrap().is_some());
        assert_eq!(conforming.take(*last), Ok(!repeats));
        if repeats {
            assert!(conforming.mask().unwrap().is_none());
            assert!(take(&mut conforming, &tokenizer, " and <tool_call>"), "a second one");
        }
    }
}

#[test]
fn a_grammar_that_leaves_nothing_to_choose_is_an_error() {
    let (grammars, _) = grammars();
    for text in ["start: /a/ & /b/", "start: <[9999]>"] {
        let error = grammars.check(&Grammar::Lark(text.into()));
        assert!(error.is_err(), "{text}");
    }
}

/// A schema of definitions that each refer to the next, in some place.
fn chain(links: usize, place: impl Fn(Value) -> Value) -> Value {
    let next = |i: usize| json!({"$ref": format!("#/$defs/a{i}")});
    let mut defs: serde_json::Map<_, _> = (0..links).map(|i| (format!("a{i}"), place(next(i + 1)))).collect();
    defs.insert(format!("a{links}"), json!({"type": "string"}));
    json!({"$ref": "#/$defs/a0", "$defs": defs})
}

fn names(links: usize, rule: impl Fn(String, String) -> String) -> String {
    (0..links).map(|i| rule(format!("{i}"), format!("{}", i + 1)) + "\n").collect()
}

#[test]
fn what_nests_too_deep_is_refused_however_it_does() {
    let (grammars, _) = grammars();
    let odd =
        chain(300, |next| json!({"items": next})).to_string().replace("\"a", "\"~1").replace("/a", "/~1");
    let schemas = [
        chain(250, |next| json!({"properties": {"x": next}})),
        chain(
            250,
            |next| json!({"type": "object", "properties": {"x": next}, "additionalProperties": false}),
        ),
        chain(300, |next| json!({"items": next})),
        chain(300, |next| json!({"additionalProperties": next})),
        chain(300, |next| json!({"anyOf": [next, {"type": "null"}]})),
        chain(300, |next| json!({"allOf": [next, {"minLength": 1}]})),
        chain(450, |next| next),
        chain(450, |next| json!({"$ref": next["$ref"], "type": "string"})),
        // A JSON pointer would read this otherwise than the library does.
        serde_json::from_str(&odd).unwrap(),
    ];
    let mut wrong: Vec<Grammar> = schemas.iter().map(|s| Grammar::JsonSchema(s.to_string())).collect();
    wrong.extend(schemas.iter().map(|s| Grammar::Lark(format!("start: x\nx: %json {s}\n"))));
    let larks = [
        format!("start: r0\n{}r700: \"b\"", names(700, |i, next| format!("r{i}: r{next} \"a\""))),
        format!("start: T0\n{}T850: \"b\"", names(850, |i, next| format!("T{i}: T{next} \"a\""))),
        format!("start: r0\n{}r99: \"b\"", names(99, |i, next| format!("r{i}: [[[[r{next}]]]] \"a\""))),
        format!(
            "start: %lark {{\nstart: r0\n{}r700: \"b\"\n}}",
            names(700, |i, next| format!("r{i}: r{next}"))
        ),
        format!("start: a::0\na::_: \"x\" %if {}true{}", "not(".repeat(9000), ")".repeat(9000)),
        format!("start: {}x{}", "a{".repeat(9000), "}".repeat(9000)),
    ];
    wrong.extend(larks.into_iter().map(Grammar::Lark));
    for grammar in &wrong {
        let why = grammars.check(grammar).unwrap_err().to_string();
        assert!(why.contains("256 levels deep"), "{why}");
    }
    for text in ["(".repeat(9000) + "a" + &")".repeat(9000), "[b".repeat(9000) + &"]".repeat(9000)] {
        assert!(grammars.check(&Grammar::Regex(text.clone())).is_err());
        let schema = json!({"type": "string", "pattern": text});
        assert!(grammars.check(&Grammar::JsonSchema(schema.to_string())).is_err());
    }
}

#[test]
fn what_refers_to_itself_or_nests_as_people_nest_can_be_used() {
    let (grammars, _) = grammars();
    let tree = json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
        "type": "object",
        "properties": {"left": {"$ref": "#/$defs/tree"}, "list": {"items": {"$ref": "#"}}, "n": {"type": "integer"}},
    }}});
    // Many kinds that each may hold each.
    let kind = |i: usize| {
        (format!("k{i}"), json!({"type": "object", "properties": {"in": {"$ref": "#/$defs/any"}}}))
    };
    let mut kinds: serde_json::Map<_, _> = (0..100).map(kind).collect();
    let any: Vec<Value> = (0..100).map(|i| json!({"$ref": format!("#/$defs/k{i}")})).collect();
    kinds.insert("any".into(), json!({"anyOf": any}));
    for schema in [
        tree,
        json!({"$ref": "#/$defs/any", "$defs": kinds}),
        chain(60, |next| json!({"type": "object", "properties": {"x": next}})),
        (0..60).fold(json!({"type": "null"}), |inner, _| json!({"properties": {"x": inner}})),
    ] {
        grammars.check(&Grammar::JsonSchema(schema.to_string())).unwrap();
    }
    let expressions = format!(
        "start: r0\n{}r40: \"(\" r0 \")\" | /[0-9]+/\n",
        names(40, |i, next| format!("r{i}: (r{next} \"op{i}\")* r{next}"))
    );
    grammars.check(&Grammar::Lark(expressions)).unwrap();
    // One after the other, and none within another.
    let parts = names(300, |i, _| format!("r{i}[capture]: \"x\""));
    grammars.check(&Grammar::Lark(format!("start: r0 r1\n{parts}"))).unwrap();
}

#[test]
fn a_grammar_is_made_ready_whatever_the_stack_of_who_asks() {
    let (grammars, _) = grammars();
    let schema = chain(84, |next| json!({"properties": {"x": next}}));
    let check = move || grammars.check(&Grammar::JsonSchema(schema.to_string()));
    let small = std::thread::Builder::new().stack_size(256 << 10).spawn(check).unwrap();
    small.join().unwrap().unwrap();
}

#[test]
fn a_grammar_that_cannot_be_used_is_told_of_in_words_for_whoever_wrote_it() {
    let (grammars, _) = grammars();
    let why = |grammar: Grammar| grammars.check(&grammar).unwrap_err().to_string();
    assert_eq!(
        why(Grammar::JsonSchema(r##"{"$ref": "#"}"##.into())),
        "the JSON schema can't be used: no text conforms to it; what refers to itself needs an alternative that ends"
    );
    for (text, place) in
        [("root ::= \"a\" | \"b\"", "line 1, column 7: "), ("start: \"a\"\nb = \"c\"", "line 2, column ")]
    {
        let why = why(Grammar::Lark(text.into()));
        assert!(why.starts_with(&format!("the grammar can't be used: {place}")), "{why}");
        assert!(
            why.contains("Lark") && why.contains("not GBNF or EBNF") && !why.contains("non-verbose"),
            "{why}"
        );
    }
}
