//! Whatever is wrong with a safetensors file is one line that names the file.

mod common;

use checkpoint::{Checkpoint, CheckpointError};
use common::{dir_of, f32_file, file_of};

const NAME: &str = "model.safetensors";

fn error_of(bytes: &[u8]) -> String {
    let dir = dir_of(&[(NAME, bytes)]);
    let error = Checkpoint::open(dir.path()).unwrap_err();
    one_line(&error);
    error.to_string()
}

fn one_line(error: &CheckpointError) {
    let line = error.to_string();
    assert!(!line.contains(|c: char| c.is_control()) && line.len() < 700, "{line:?}");
    assert!(error.is_usage(), "{line}");
}

fn says(bytes: &[u8], parts: &[&str]) {
    let line = error_of(bytes);
    for part in parts {
        assert!(line.contains(part), "{line}\nshould say {part}");
    }
    assert!(line.contains(NAME), "{line}");
}

/// One tensor with this entry, and eight bytes of data.
fn entry(json: &str) -> Vec<u8> {
    file_of(&format!(r#"{{"w":{json}}}"#), &[0; 8])
}

#[test]
fn a_file_cut_at_any_byte_is_an_error() {
    let whole = f32_file(&[("a", &[2, 3], &[1.0; 6]), ("b", &[4], &[2.0; 4])]);
    let dir = dir_of(&[]);
    for length in 0..whole.len() {
        common::write(dir.path(), NAME, &whole[..length]);
        let error = Checkpoint::open(dir.path()).unwrap_err();
        one_line(&error);
        let line = error.to_string();
        assert!(line.contains(NAME) && line.contains("the download is incomplete"), "{length}: {line}");
        assert!(line.contains(&length.to_string()), "{length}: {line}");
    }
    common::write(dir.path(), NAME, &whole);
    assert!(Checkpoint::open(dir.path()).is_ok());
}

#[test]
fn a_byte_changed_anywhere_in_the_header_never_panics() {
    let whole = f32_file(&[("a", &[2, 3], &[1.0; 6]), ("b", &[4], &[2.0; 4])]);
    for place in 0..whole.len() - 40 {
        for change in [0x01, 0x02, 0x10, 0x20, 0x80, 0xff] {
            let mut damaged = whole.clone();
            damaged[place] ^= change;
            if let Err(error) = Checkpoint::from_bytes(NAME, damaged.leak()) {
                one_line(&error);
            }
        }
    }
}

#[test]
fn a_header_length_is_not_believed() {
    says(&file_with_length(1 << 40), &["a header of 1099511627776 bytes", "the limit is 100000000"]);
    says(&file_with_length(u64::MAX), &["18446744073709551615"]);
    says(&file_with_length(99_999_999), &["its header alone needs 100000007"]);
}

fn file_with_length(length: u64) -> Vec<u8> {
    let mut file = length.to_le_bytes().to_vec();
    file.extend(b"{}");
    file
}

#[test]
fn a_header_that_is_no_json_says_where() {
    says(&file_of("{\"w\": nonsense}", &[]), &["bad header", "line 1 column"]);
    says(&file_of("[]", &[]), &["bad header", "an object of tensors"]);
    says(&file_of("{} {}", &[]), &["bad header", "trailing characters"]);
    says(&file_of(r#"{"w":{"dtype":"F32","shape":[2]}}"#, &[0; 8]), &["missing field `data_offsets`"]);
    says(&file_of(r#"{"__metadata__":{"format":7}}"#, &[]), &["bad header"]);
    let mut invalid = file_of("{    }", &[]);
    invalid[9] = 0xff;
    says(&invalid, &["bad header", "utf-8"]);
    let deep = format!("{{\"w\":{}", "[".repeat(100_000));
    says(&file_of(&deep, &[]), &["bad header"]);
}

#[test]
fn a_shape_of_negative_or_broken_numbers_is_an_error() {
    for shape in ["[-1]", "[1.5]", "[18446744073709551616]", "\"2\"", "[[2]]"] {
        let json = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}"#);
        says(&entry(&json), &["bad header", "line 1 column"]);
    }
}

#[test]
fn offsets_that_do_not_fit_are_named() {
    let overflow = r#"{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,8]}"#;
    says(&entry(overflow), &[r#"tensor "w""#, "larger than any file"]);
    says(&entry(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#), &["run backwards"]);
    says(
        &entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
        &["F32 [3] takes 12 bytes", "hold 8"],
    );
    says(&entry(r#"{"dtype":"F4","shape":[15],"data_offsets":[0,8]}"#), &["bad header"]);
    says(&entry(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,12]}"#), &["a file of", "incomplete"]);
    says(&entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#), &["a file of", "damaged"]);
    says(&entry(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#), &["leave bytes 0 to 4 unused"]);
    let far = r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#;
    says(&entry(far), &["tensor \"w\""]);
}

#[test]
fn overlapping_tensors_are_both_named() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                     "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    says(&file_of(header, &[0; 12]), &[r#"tensor "b""#, r#"overlap tensor "a""#]);
}

#[test]
fn a_tensor_twice_in_one_header_is_an_error() {
    let header = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                     "a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    says(&file_of(header, &[0; 4]), &[r#"tensor "a": found twice"#]);
}

#[test]
fn an_unknown_type_is_named_with_those_that_work() {
    let unknown = r#"{"dtype":"F8\n","shape":[8],"data_offsets":[0,8]}"#;
    says(&entry(unknown), &[r#"tensor "w": unsupported type "F8\n""#, "F32, F16 and BF16"]);
}

#[test]
fn a_known_type_that_is_not_read_matters_only_when_asked_for() {
    let dir = dir_of(&[(NAME, &entry(r#"{"dtype":"I64","shape":[1],"data_offsets":[0,8]}"#))]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = checkpoint.vector("w", 1).unwrap_err();
    one_line(&error);
    assert_eq!(
        error.to_string(),
        r#"tensor "w": unsupported type "I64" in model.safetensors; F32, F16 and BF16 are supported"#
    );
}

#[test]
fn a_git_lfs_pointer_is_recognised() {
    says(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", &["git lfs pull"]);
}

#[test]
fn a_wrong_shape_and_a_missing_tensor_say_what_is_there() {
    let file = f32_file(&[("model.norm.weight", &[2, 3], &[1.0; 6]), ("lm_head.weight", &[2], &[1.0; 2])]);
    let dir = dir_of(&[(NAME, &file)]);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let shape = checkpoint.matrix("model.norm.weight", [3, 2]).err().unwrap();
    assert_eq!(
        shape.to_string(),
        r#"tensor "model.norm.weight": expected [3, 2], found [2, 3] in model.safetensors"#
    );
    assert!(checkpoint.vector("model.norm.weight", 6).is_err());
    let missing = checkpoint.vector("norm.weight", 2).unwrap_err().to_string();
    let nearest = r#"the nearest names are "model.norm.weight", "lm_head.weight""#;
    assert!(missing.starts_with(r#"no tensor "norm.weight" in "#) && missing.ends_with(nearest), "{missing}");
}
