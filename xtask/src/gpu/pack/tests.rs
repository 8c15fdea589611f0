use super::*;

fn files(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    sizes(folder, folder, &mut all);
    let mut names: Vec<String> = all.into_iter().map(|(_, name)| name).collect();
    names.sort();
    names
}

#[test]
fn files_and_folders_are_where_they_are_said_to_be_and_old_ones_are_gone() {
    let from = tempfile::tempdir().expect("a folder");
    let path = |name: &str| from.path().join(name);
    fs::create_dir_all(path("golden/llama")).expect("folders");
    for name in ["libx.so.1", "golden/README.md", "golden/llama/config.json"] {
        fs::write(path(name), name).expect("a file");
    }
    let out = from.path().join("out");
    write(&out.join("old"), "").expect("a file of before");
    put(&[(path("libx.so.1"), "lib/libx.so.1".into()), (path("golden"), "golden".into())], &out)
        .expect("a folder");
    assert_eq!(files(&out), ["golden/llama/config.json", "lib/libx.so.1"]);
    let missing = put(&[(path("nobody"), "nobody".into())], &out).expect_err("there is no such file");
    assert!(missing.starts_with(&format!("gpu: {}", path("nobody").display())), "{missing}");
}

#[test]
fn an_archive_says_its_size_and_one_that_is_too_large_is_none() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("packed");
    // Bytes that don't become less.
    let mut x = 1u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 56) as u8
    })
    .take(3 << 20)
    .collect();
    fs::create_dir_all(folder.join("lib")).expect("a folder");
    fs::write(folder.join("lib/large"), &random).expect("a file");
    fs::write(folder.join("run"), RUN).expect("a file");
    let refused = archive(&folder, 2 << 20).expect_err("it is too large");
    assert!(
        refused.starts_with("gpu: 3.0 MiB packed are more than 2 MiB, beside which a working tree has room;")
            && refused.contains("; the largest: lib/large 3.0 MiB, run"),
        "{refused}"
    );
    assert_eq!(files(parent.path()), ["packed/lib/large", "packed/run"]);
    let made = archive(&folder, 4 << 20).expect("an archive");
    assert!(made.contains("packed.tar.xz (3.0 MiB; at most 4 MiB)"), "{made}");
    let unpacked = tempfile::tempdir().expect("a folder");
    let tar = Command::new("tar")
        .arg("-xJf")
        .arg(parent.path().join("packed.tar.xz"))
        .arg("-C")
        .arg(unpacked.path())
        .status();
    assert!(tar.expect("tar").success());
    assert_eq!(fs::read(unpacked.path().join("packed/lib/large")).expect("the file"), random);
}

#[test]
fn programs_are_those_that_cargo_tells_of() {
    let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
                    {\"reason\":\"compiler-artifact\",\"executable\":\"/t/deps/gpu-1f\"}\nnot JSON\n\
                    {\"reason\":\"build-finished\",\"success\":true}";
    assert_eq!(executables(messages), [PathBuf::from("/t/deps/gpu-1f")]);
}
