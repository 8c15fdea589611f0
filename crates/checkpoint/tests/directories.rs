//! Which files of a directory are opened, and what an index may not do.

mod common;

use checkpoint::{Checkpoint, CheckpointError, config_file, generation_config_file, json_bytes, json_file};
use common::{dir_of, f32_file};

const INDEX: &str = "model.safetensors.index.json";
const FIRST: &str = "model-00001-of-00002.safetensors";
const SECOND: &str = "model-00002-of-00002.safetensors";

fn index(map: &[(&str, &str)]) -> Vec<u8> {
    let entries: Vec<String> = map.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, entries.join(",")).into_bytes()
}

fn says(files: &[(&str, &[u8])], parts: &[&str]) {
    let dir = dir_of(files);
    let error = Checkpoint::open(dir.path()).unwrap_err();
    let line = error.to_string();
    assert!(error.is_usage() && !line.contains('\n'), "{line}");
    for part in parts {
        assert!(line.contains(part), "{line}\nshould say {part}");
    }
}

#[test]
fn shards_of_an_index_are_one_checkpoint() {
    let (a, b) = (f32_file(&[("a", &[1], &[1.0])]), f32_file(&[("b", &[1], &[2.0])]));
    let dir = dir_of(&[(INDEX, &index(&[("a", FIRST), ("b", SECOND)])), (FIRST, &a), (SECOND, &b)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(checkpoint.vector("b", 1).unwrap(), [2.0]);
    assert_eq!(checkpoint.stored_bytes(), 8);
    let wrong = checkpoint.vector("b", 2).unwrap_err().to_string();
    assert_eq!(wrong, format!(r#"tensor "b": expected [2], found [1] in {SECOND}"#));
}

#[test]
fn an_index_may_only_name_files_beside_it() {
    let outside =
        ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", "x.bin", "..", ""];
    for shard in outside {
        let index = index(&[("a", shard)]);
        says(&[(INDEX, &index)], &[INDEX, &format!("{shard:?}"), "not a plain *.safetensors file name"]);
    }
}

#[cfg(unix)]
#[test]
fn files_may_be_links_as_in_the_hubs_cache() {
    let blobs = dir_of(&[("0123abcd", &f32_file(&[("a", &[1], &[3.0])]))]);
    let dir = dir_of(&[]);
    std::os::unix::fs::symlink(blobs.path().join("0123abcd"), dir.path().join("model.safetensors")).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().vector("a", 1).unwrap(), [3.0]);
}

#[test]
fn a_missing_shard_is_named() {
    let index = index(&[("a", FIRST), ("b", SECOND)]);
    let a = f32_file(&[("a", &[1], &[1.0])]);
    says(&[(INDEX, &index), (FIRST, &a)], &[INDEX, SECOND, "one of 1 missing of 2"]);
}

#[test]
fn a_tensor_that_its_shard_lacks_is_named() {
    let a = f32_file(&[("a", &[1], &[1.0])]);
    let index = index(&[("a", FIRST), ("b", FIRST)]);
    says(&[(INDEX, &index), (FIRST, &a)], &[r#"tensor "b" should be in"#, FIRST]);
}

#[test]
fn a_tensor_in_two_shards_is_an_error() {
    let a = f32_file(&[("a", &[1], &[1.0])]);
    let ab = f32_file(&[("a", &[1], &[1.0]), ("b", &[1], &[1.0])]);
    let index = index(&[("a", FIRST), ("b", SECOND)]);
    says(&[(INDEX, &index), (FIRST, &a), (SECOND, &ab)], &[r#"tensor "a": found twice"#, FIRST, SECOND]);
}

#[test]
fn a_broken_index_says_what_is_wrong() {
    says(&[(INDEX, b"{")], &[INDEX, "not valid JSON", "line 1 column"]);
    says(&[(INDEX, b"[]")], &[INDEX, "expected a JSON object, found an array"]);
    says(&[(INDEX, b"{}")], &[INDEX, "weight_map"]);
    says(&[(INDEX, br#"{"weight_map":{}}"#)], &[INDEX, "empty"]);
    says(&[(INDEX, br#"{"weight_map":{"a":1}}"#)], &[INDEX, r#"the shard of "a" is not a string"#]);
}

#[test]
fn a_single_file_of_any_name_will_do() {
    let a = f32_file(&[("a", &[1], &[1.0])]);
    let dir = dir_of(&[("weights.safetensors", &a), ("pytorch_model.bin", b"")]);
    assert!(Checkpoint::open(dir.path()).unwrap().contains("a"));
    says(&[("x.safetensors", &a), ("y.safetensors", &a)], &["there are 2", "x.safetensors", INDEX]);
}

#[test]
fn other_formats_are_named_with_what_is_needed() {
    says(&[("pytorch_model.bin", b"")], &["pytorch_model.bin", "safetensors files are needed"]);
    says(&[("model.Q4_K_M.gguf", b"")], &["model.Q4_K_M.gguf", "GGUF", "safetensors"]);
    says(&[], &["model.safetensors, or model.safetensors.index.json with its shards, is needed"]);
}

#[test]
fn a_path_that_is_no_directory_says_so() {
    let dir = dir_of(&[("file", b"")]);
    let missing = Checkpoint::open(&dir.path().join("nowhere")).unwrap_err();
    assert!(missing.to_string().contains("nowhere: it does not exist"), "{missing}");
    let file = Checkpoint::open(&dir.path().join("file")).unwrap_err();
    assert!(file.to_string().contains("it is a file"), "{file}");
    let inner = dir_of(&[]);
    std::fs::create_dir(inner.path().join("model.safetensors")).unwrap();
    let not_a_file = Checkpoint::open(inner.path()).unwrap_err();
    assert!(not_a_file.to_string().contains("not a regular file"), "{not_a_file}");
    assert!(missing.is_usage() && file.is_usage() && not_a_file.is_usage());
}

#[test]
fn configs_are_objects_of_reasonable_size() {
    let dir = dir_of(&[("config.json", br#"{"hidden_size": 64}"#)]);
    assert_eq!(config_file(dir.path()).unwrap()["hidden_size"], 64);
    assert!(generation_config_file(dir.path()).unwrap().is_none());

    common::write(dir.path(), "generation_config.json", b"{\n \"top_k\": }");
    let broken = generation_config_file(dir.path()).unwrap_err().to_string();
    assert!(
        broken.contains("generation_config.json: not valid JSON") && broken.contains("line 2"),
        "{broken}"
    );

    let file = std::fs::File::create(dir.path().join("config.json")).unwrap();
    file.set_len(17 << 20).unwrap();
    let large = config_file(dir.path()).unwrap_err().to_string();
    assert!(large.ends_with("config.json: 17825792 bytes, the limit is 16777216"), "{large}");

    let missing = json_file(&dir.path().join("tokenizer.json")).unwrap_err();
    assert!(missing.to_string().contains("tokenizer.json") && missing.is_usage(), "{missing}");
    let bomb = "[".repeat(1 << 20);
    for (bytes, kind) in
        [(b"null".as_slice(), "null"), (b"3", "a number"), (bomb.as_bytes(), "recursion limit")]
    {
        let error = json_bytes("config.json", bytes).unwrap_err();
        assert!(
            matches!(error, CheckpointError::BadJson { .. }) && error.to_string().contains(kind),
            "{error}"
        );
    }
}
