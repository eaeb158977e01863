//! Writing files that are whole or not there, and folders that are a process' own.

#[cfg(unix)]
mod private;

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};

#[cfg(unix)]
pub use private::{PrivateFolder, restrict};

/// How the names begin of files that are not whole yet.
const UNFINISHED_PREFIX: &str = ".telar-";

/// A file or folder that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}; name another place, or make this one writable and make room", path.display())]
pub struct WriteError {
    /// The file or folder.
    pub path: PathBuf,
    /// What the system says.
    pub source: Error,
}

impl WriteError {
    /// For use with `map_err`.
    pub fn at(path: &Path) -> impl FnOnce(Error) -> Self + use<> {
        let path = path.to_owned();
        |source| Self { path, source }
    }
}

/// Reads a file of at most `n_bytes_max` bytes.
///
/// # Errors
/// If it cannot be read, or is larger: then nothing of it is kept.
pub fn read_bounded(path: &Path, n_bytes_max: u64) -> Result<Vec<u8>, Error> {
    let file = File::open(path)?;
    let n_expected = file.metadata()?.len().min(n_bytes_max);
    let mut bytes = Vec::with_capacity(usize::try_from(n_expected).unwrap_or(0));
    let n_read = file.take(n_bytes_max + 1).read_to_end(&mut bytes)?;
    if n_read as u64 > n_bytes_max {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("it has more than {n_bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Writes a file under another name beside it, brings it to the disk, and only then gives it its name; what was there
/// before stays until then. Through a link, its target is written; a pipe or a device is refused.
///
/// # Errors
/// If the folder cannot be written; nothing is left behind then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    write_parts_whole(path, &[bytes])
}

/// As [`write_whole`], for a content that lies in several places.
///
/// # Errors
/// As [`write_whole`].
pub fn write_parts_whole(path: &Path, parts: &[&[u8]]) -> Result<(), WriteError> {
    let write = || {
        // What is not there yet has no other name than the one given.
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if path.exists() && !path.is_file() {
            return Err(Error::new(ErrorKind::InvalidInput, "it is there and is no ordinary file"));
        }
        let folder = parent(&path);
        let mut file =
            with_usual_permissions(tempfile::Builder::new().prefix(UNFINISHED_PREFIX)).tempfile_in(folder)?;
        for part in parts {
            file.write_all(part)?;
        }
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        // The name is in the folder, so the folder has to reach the disk too.
        sync_folder(folder)
    };
    write().map_err(WriteError::at(path))
}

/// Makes a folder, and those above it that are missing, and brings their names to the disk.
///
/// # Errors
/// If it cannot be made.
pub fn create_folder(path: &Path) -> Result<(), WriteError> {
    let changed = folders_to_change(path);
    let create = || {
        std::fs::create_dir_all(path)?;
        changed.iter().try_for_each(|folder| sync_folder(folder))
    };
    create().map_err(WriteError::at(path))
}

/// The folders that have another name in them when a folder and those above it are there.
fn folders_to_change(path: &Path) -> Vec<PathBuf> {
    let missing = path.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    missing.map(|folder| parent(folder).to_owned()).collect()
}

/// Brings the names in a folder to the disk.
///
/// # Errors
/// If the system cannot.
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    match File::open(folder) {
        // A folder may be writable, and say nothing of what is in it.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// The folder that a name is in.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes from a folder, if there is one, the unfinished files of a process that was killed while it wrote. No other process
/// may use the folder.
///
/// # Errors
/// If the folder cannot be read, or a file not be removed.
pub fn remove_unfinished(folder: &Path) -> Result<(), WriteError> {
    let remove_all = || -> Result<(), Error> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED_PREFIX) && entry.file_type()?.is_file() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    match remove_all() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(WriteError::at(folder)),
    }
}

/// Temporary files are private by default; the result gets the permissions that the user's umask allows.
#[cfg(unix)]
fn with_usual_permissions<'a, 'b>(builder: &'a mut tempfile::Builder<'b, 'b>) -> &'a mut tempfile::Builder<'b, 'b> {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(std::fs::Permissions::from_mode(0o666))
}

#[cfg(not(unix))]
fn with_usual_permissions<'a, 'b>(builder: &'a mut tempfile::Builder<'b, 'b>) -> &'a mut tempfile::Builder<'b, 'b> {
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let taken = folder.path().join("taken");
        std::fs::create_dir_all(taken.join("inside")).expect("a folder");
        let error = write_whole(&taken, b"x").expect_err("a full folder cannot be replaced");
        assert!(error.to_string().starts_with(&format!("cannot write {}", taken.display())), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }

    #[test]
    fn folders_with_new_entries_are_synced() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let changed = folders_to_change(&path("runs/conv-001/reconstructions"));
        assert_eq!(changed, [path("runs/conv-001"), path("runs"), folder.path().to_owned()]);
        create_folder(&path("runs/conv-001/reconstructions")).expect("the folder can be written");
        assert!(folders_to_change(&path("runs/conv-001/reconstructions")).is_empty());
        assert_eq!(folders_to_change(Path::new("nowhere/below")), [Path::new("nowhere"), Path::new(".")]);
        let error = create_folder(Path::new("/proc/nowhere")).expect_err("nothing can be made there");
        assert!(error.to_string().starts_with("cannot write /proc/nowhere: "), "{error}");
    }

    #[test]
    fn unfinished_files_are_removed_and_others_kept() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let names = || {
            let entries = std::fs::read_dir(folder.path()).expect("the folder");
            let mut names: Vec<_> = entries.map(|entry| entry.expect("a file").file_name()).collect();
            names.sort_unstable();
            names
        };
        for name in [".lock", ".telar-4fHk2Q", ".telar-A", "step-00000005.safetensors"] {
            std::fs::write(folder.path().join(name), b"x").expect("a file");
        }
        std::fs::create_dir(folder.path().join(".telar-folder")).expect("a folder");
        remove_unfinished(folder.path()).expect("the folder can be written");
        assert_eq!(names(), [".lock", ".telar-folder", "step-00000005.safetensors"]);
        remove_unfinished(&folder.path().join("nowhere")).expect("nothing is there");
    }

    #[test]
    fn write_replaces_file_completely() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("file");
        for content in [&b"first"[..], b"second"] {
            write_whole(&path, content).expect("the folder can be written");
            assert_eq!(std::fs::read(&path).expect("the file"), content);
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("the folder").count(), 1);
    }
}
