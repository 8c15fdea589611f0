//! Files that are there whole or not at all.

use std::fs::{File, Permissions};
use std::io::{self, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

/// As readable as any new file, within the umask.
const MODE: u32 = 0o666;

/// The directory of a file.
pub fn directory(file: &Path) -> &Path {
    file.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file, or in place of one; `fill` writes what is in it. Until that is done the file has no name, so that nothing is
/// left of it however the process ends. (Where a file system knows only files with names, and for a moment where something is
/// replaced, a process that is killed leaves one that begins with `.tmp`.)
///
/// # Errors
/// Those of `fill`, or the file can't be written. What was there is as it was.
pub fn write(file: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    // What a link leads to is replaced, not the link, unless it leads nowhere.
    let to = file.canonicalize().unwrap_or_else(|_| file.to_owned());
    let Ok(mut whole) = nameless(directory(&to)) else { return write_named(&to, fill) };
    fill(&mut whole)?;
    // Some file systems make such files, but give them no names.
    give_name(&whole, &to).or_else(|_| {
        whole.rewind()?;
        write_named(&to, |named| io::copy(&mut whole, named).map(drop))
    })
}

/// By way of a file that has a name.
fn write_named(to: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut named =
        tempfile::Builder::new().permissions(Permissions::from_mode(MODE)).tempfile_in(directory(to))?;
    fill(named.as_file_mut())?;
    named.persist(to)?;
    Ok(())
}

fn nameless(directory: &Path) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(open(directory, flags, Mode::from_raw_mode(MODE))?.into())
}

fn give_name(whole: &File, to: &Path) -> io::Result<()> {
    let nameless = format!("/proc/self/fd/{}", whole.as_raw_fd());
    let link =
        |name: &Path| -> io::Result<()> { Ok(linkat(CWD, &nameless, CWD, name, AtFlags::SYMLINK_FOLLOW)?) };
    match link(to) {
        // Only what has a name can take the place of something.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            tempfile::Builder::new().make_in(directory(to), link)?.persist(to)?;
            Ok(())
        }
        linked => linked,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Names and contents.
    fn files(dir: &Path) -> Vec<(String, String)> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let read = |path| std::fs::read_to_string(path).unwrap();
        entries.map(|entry| (entry.file_name().into_string().unwrap(), read(entry.path()))).collect()
    }

    fn file(name: &str, text: &str) -> (String, String) {
        (name.into(), text.into())
    }

    #[test]
    fn a_file_is_there_once_it_is_whole_and_nothing_of_it_before() {
        let dir = tempfile::tempdir().unwrap();
        if nameless(dir.path()).is_err() {
            return job::say!("skipped: this file system has no files without names");
        }
        let to = dir.path().join("a");
        for (before, text) in [(vec![], "one"), (vec![file("a", "one")], "two")] {
            let fill = |whole: &mut File| {
                write!(whole, "{text}")?;
                assert_eq!(files(dir.path()), before);
                Ok(())
            };
            write(&to, fill).unwrap();
            assert_eq!(files(dir.path()), [file("a", text)]);
        }
    }

    #[test]
    fn a_file_that_cannot_be_finished_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("a");
        std::fs::write(&to, "before").unwrap();
        let full = write(&to, |whole| {
            write!(whole, "half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(files(dir.path()), [file("a", "before")]);
    }

    #[test]
    fn what_a_link_leads_to_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (to, link) = (dir.path().join("a"), dir.path().join("link"));
        std::fs::write(&to, "before").unwrap();
        std::os::unix::fs::symlink(&to, &link).unwrap();
        write(&link, |whole| write!(whole, "after")).unwrap();
        assert!(link.is_symlink() && std::fs::read_to_string(&to).unwrap() == "after");
    }
}
