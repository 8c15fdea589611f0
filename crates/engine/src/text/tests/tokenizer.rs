use std::fs;
use std::path::PathBuf;

use serde_json::{Map, json};

use super::tokenizers_small::{byte_fallback, byte_level, metaspace, truncating};
use crate::text::{Message, TextError, Tokenizer};

fn with_config(config: serde_json::Value) -> Tokenizer {
    let config = serde_json::to_vec(&config).unwrap();
    Tokenizer::from_bytes(&byte_fallback(true), Some(&config), None).unwrap()
}

/// A folder of this test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("anysplit-text-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_folder_without_a_tokenizer_says_what_works() {
    let folder = Folder::new("empty");
    let error = Tokenizer::from_dir(&folder.0).unwrap_err();
    assert_eq!(error, TextError::MissingTokenizer { dir: folder.0.clone() });
    assert!(error.to_string().contains("--prompt-ids"), "{error}");
}

#[test]
fn a_folder_is_read_and_its_template_file_wins() {
    let folder = Folder::new("whole");
    fs::write(folder.0.join("tokenizer.json"), byte_level()).unwrap();
    fs::write(folder.0.join("tokenizer_config.json"), r#"{"chat_template": "config", "eos_token": "</s>"}"#)
        .unwrap();
    let chat = |tokenizer: &Tokenizer| {
        tokenizer.chat_template(false).unwrap().render(&[], false, &Map::new()).unwrap()
    };
    let tokenizer = Tokenizer::from_dir(&folder.0).unwrap();
    assert_eq!(chat(&tokenizer), "config");
    assert_eq!(tokenizer.eos_token_id(), Some(2));
    assert_eq!(tokenizer.bos_token_id(), None);
    fs::write(folder.0.join("chat_template.jinja"), "file").unwrap();
    assert_eq!(chat(&Tokenizer::from_dir(&folder.0).unwrap()), "file");
    fs::write(folder.0.join("chat_template.jinja"), [0xff]).unwrap();
    assert!(matches!(Tokenizer::from_dir(&folder.0), Err(TextError::Malformed { .. })));
    fs::write(folder.0.join("chat_template.jinja"), vec![b' '; 2 << 20]).unwrap();
    assert!(matches!(Tokenizer::from_dir(&folder.0), Err(TextError::TooLarge { bytes: 2_097_152, .. })));
}

#[test]
fn malformed_files_are_errors_of_one_line() {
    let bytes = byte_level();
    let huge_id = String::from_utf8(bytes.clone()).unwrap().replacen("\"id\":1", "\"id\":99999999", 1);
    let files: [&[u8]; 7] = [
        b"",
        b"{",
        b"[]",
        b"{\"version\":\"1.0\"}",
        b"\xff\xfe",
        &bytes[..bytes.len() / 2],
        b"{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[\"a b c\"]}}",
    ];
    for file in files {
        let error = Tokenizer::from_bytes(file, None, None).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json is malformed: ") && !error.contains('\n'), "{error}");
    }
    let _ = Tokenizer::from_bytes(huge_id.as_bytes(), None, None);
    for config in [
        "",
        "[]",
        r#"{"bos_token": 1}"#,
        r#"{"eos_token": {}}"#,
        r#"{"chat_template": [{"name": 1}]}"#,
        r#"{"add_bos_token": 3}"#,
    ] {
        let error = Tokenizer::from_bytes(&bytes, Some(config.as_bytes()), None).unwrap_err().to_string();
        assert!(
            error.starts_with("tokenizer_config.json is malformed: ") && !error.contains('\n'),
            "{error}"
        );
    }
}

#[test]
fn the_post_processor_says_whether_a_prompt_gets_its_first_token() {
    let tokenizer = Tokenizer::from_bytes(&byte_fallback(true), None, None).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap()[0], 1);
    assert_ne!(tokenizer.encode("a", false).unwrap()[0], 1);
    // A rendered chat spells its tokens out, and has the first one already.
    assert_eq!(tokenizer.encode("<s>a", false).unwrap()[0], 1);
    let plain = Tokenizer::from_bytes(&byte_fallback(false), None, None).unwrap();
    assert_eq!(plain.encode("a", true).unwrap(), plain.encode("a", false).unwrap());
}

#[test]
fn the_config_can_overrule_the_post_processor() {
    let ends = |config: serde_json::Value| {
        let ids = with_config(config).encode("a", true).unwrap();
        (ids[0] == 1, ids[ids.len() - 1] == 2)
    };
    assert_eq!(ends(json!({"bos_token": "<s>"})), (true, false));
    assert_eq!(ends(json!({"bos_token": "<s>", "add_bos_token": true})), (true, false));
    assert_eq!(ends(json!({"bos_token": "<s>", "add_bos_token": false})), (false, false));
    assert_eq!(
        ends(json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_eos_token": true})),
        (true, true)
    );
    assert_eq!(
        ends(json!({"eos_token": "</s>", "add_bos_token": null, "add_eos_token": false, "bos_token": null})),
        (true, false)
    );
    assert_eq!(ends(json!({"eos_token": "<nowhere>", "add_eos_token": true})), (true, false));
}

#[test]
fn special_tokens_are_strings_or_objects() {
    let tokenizer = with_config(
        json!({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null}),
    );
    assert_eq!(
        tokenizer.special_tokens().iter().collect::<Vec<_>>(),
        [("bos_token", "<s>"), ("eos_token", "</s>")]
    );
    assert_eq!((tokenizer.bos_token_id(), tokenizer.eos_token_id()), (Some(1), Some(2)));
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(40));
    assert_eq!(tokenizer.id_to_token(2).as_deref(), Some("</s>"));
}

#[test]
fn templates_have_names() {
    let templates =
        json!([{"name": "default", "template": "{{ bos_token }}d"}, {"name": "tool_use", "template": "t"}]);
    let tokenizer = with_config(json!({"bos_token": "<s>", "chat_template": templates}));
    let messages = [Message::new("user", "x")];
    let render = |with_tools| {
        tokenizer.chat_template(with_tools).unwrap().render(&messages, true, &Map::new()).unwrap()
    };
    assert_eq!((render(false).as_str(), render(true).as_str()), ("<s>d", "t"));
    let one = with_config(json!({"chat_template": "one"}));
    assert_eq!(one.chat_template(true).unwrap().render(&messages, true, &Map::new()).unwrap(), "one");
    assert_eq!(with_config(json!({})).chat_template(false).unwrap_err(), TextError::NoChatTemplate);
}

#[test]
fn a_broken_template_breaks_only_chats() {
    let tokenizer = with_config(json!({"chat_template": "{% if %}"}));
    assert!(tokenizer.encode("a", true).is_ok());
    assert!(matches!(tokenizer.chat_template(false), Err(TextError::TemplateSyntax { .. })));
}

#[test]
fn truncation_left_over_from_training_cuts_no_prompt() {
    let tokenizer = Tokenizer::from_bytes(&truncating(), None, None).unwrap();
    assert_eq!(tokenizer.encode("abababab", true).unwrap().len(), 8);
}

#[test]
fn decoding_takes_any_ids() {
    for json in [byte_level(), byte_fallback(true), metaspace()] {
        let tokenizer = Tokenizer::from_bytes(&json, None, None).unwrap();
        assert_eq!(tokenizer.decode(&[], true).unwrap(), "");
        assert_eq!(tokenizer.decode(&[u32::MAX, 1_000_000], true).unwrap(), "");
        assert_eq!(tokenizer.decode(&[1, 2], true).unwrap(), "");
        assert_ne!(tokenizer.decode(&[1], false).unwrap(), "");
        assert!(tokenizer.vocab_size() >= 15);
    }
}
