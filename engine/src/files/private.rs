//! Folders of one process: only its user can read them, and they are removed when it ends, or, if it was killed, by the next
//! process that makes one beside them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Error, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use tempfile::TempDir;

use super::{WriteError, read_bounded};

/// The file in a folder that its process holds locked. Only [`PrivateFolder`] creates it.
const OWNER_LOCK: &str = ".owner-lock";
/// What others than its owner may do with a file.
const OTHERS_MODE: u32 = 0o077;
/// Its name until it is locked, so that no folder looks as if its process were gone.
const OWNER_LOCK_NEW: &str = ".owner-lock-new";
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
const BOOT_ID_BYTES_MAX: u64 = 64;

/// A folder of this process, which goes when this is dropped.
#[derive(Debug)]
pub struct PrivateFolder {
    folder: TempDir,
    /// Locked until the process ends, however it ends.
    _owner: File,
}

impl PrivateFolder {
    /// Makes a folder in `parent` whose name begins with a prefix, and removes those of the same user and prefix there whose
    /// processes are gone.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(parent: &Path, prefix: &str) -> Result<Self, WriteError> {
        Self::make(parent, prefix).map_err(WriteError::at(parent))
    }

    fn make(parent: &Path, prefix: &str) -> Result<Self, Error> {
        let mode = Permissions::from_mode(FOLDER_MODE);
        let folder = tempfile::Builder::new().prefix(prefix).permissions(mode).tempdir_in(parent)?;
        // Once more, whatever the process' mask has taken away.
        set_mode(folder.path(), FOLDER_MODE)?;
        let new = folder.path().join(OWNER_LOCK_NEW);
        let mut owner = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&new)?;
        set_mode(&new, FILE_MODE)?;
        owner.lock()?;
        owner.write_all(boot_id().as_bytes())?;
        fs::rename(&new, folder.path().join(OWNER_LOCK))?;
        let user = fs::metadata(folder.path())?.uid();
        for entry in fs::read_dir(parent)?.flatten() {
            let is_other = entry.file_name() != folder.path().file_name().unwrap_or_default();
            if is_other && entry.file_name().to_string_lossy().starts_with(prefix) {
                remove_if_abandoned(&entry.path(), user);
            }
        }
        Ok(Self { folder, _owner: owner })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether a folder lies in one that a process of this program and of its user has made, so that no other user writes there.
    pub fn holds(folder: &Path) -> bool {
        let Some(parent) = folder.parent() else { return false };
        let owners = [parent.to_owned(), parent.join(OWNER_LOCK), folder.to_owned()].map(fs::symlink_metadata);
        let [Ok(parent), Ok(lock), Ok(folder)] = owners else { return false };
        let is_private = parent.mode() & OTHERS_MODE == 0 && lock.is_file() && folder.is_dir();
        is_private && parent.uid() == lock.uid() && parent.uid() == folder.uid()
    }
}

/// Keeps other users from a file, or from a folder and all that is in it.
///
/// # Errors
/// If a mode cannot be changed.
pub fn restrict(path: &Path) -> Result<(), WriteError> {
    let set = || {
        let kind = fs::symlink_metadata(path)?.file_type();
        if !kind.is_dir() {
            return if kind.is_symlink() { Ok(vec![]) } else { set_mode(path, FILE_MODE).map(|()| vec![]) };
        }
        set_mode(path, FOLDER_MODE)?;
        fs::read_dir(path)?.collect()
    };
    let entries: Vec<fs::DirEntry> = set().map_err(WriteError::at(path))?;
    entries.iter().try_for_each(|entry| restrict(&entry.path()))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// Removes a folder of this kind whose process is gone, and nothing else. Another process may be at it too.
fn remove_if_abandoned(folder: &Path, user: u32) {
    let is_own = fs::symlink_metadata(folder).is_ok_and(|found| found.is_dir() && found.uid() == user);
    if !is_own {
        return;
    }
    let lock = folder.join(OWNER_LOCK);
    let is_of_this_boot = read_bounded(&lock, BOOT_ID_BYTES_MAX).is_ok_and(|found| found == boot_id().as_bytes());
    let Ok(owner) = OpenOptions::new().write(true).open(lock) else { return };
    if !is_of_this_boot || owner.try_lock().is_err() {
        return; // its process is there, or may be there on another machine
    }
    match fs::remove_dir_all(folder) {
        Ok(()) => tracing::debug!(folder = %folder.display(), "removed: its process was killed"),
        Err(error) => tracing::debug!(folder = %folder.display(), %error, "not removed"),
    }
}

/// Names the machine and its start: locks may not be seen from other machines that share a file system. Empty where the system
/// does not tell.
fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("it is there").mode() & 0o777
    }

    fn parent() -> TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    fn create(parent: &Path) -> PrivateFolder {
        PrivateFolder::create(parent, "telar-").expect("the folder can be written")
    }

    #[test]
    fn private_folder_is_owner_only_and_removed_on_drop() {
        let parent = parent();
        let folder = create(parent.path());
        fs::create_dir(folder.path().join("data")).expect("a folder");
        fs::write(folder.path().join("data/file"), b"x").expect("a file");
        fs::set_permissions(folder.path().join("data/file"), Permissions::from_mode(0o644)).expect("a file");
        restrict(folder.path()).expect("the folder can be changed");
        let found = ["", OWNER_LOCK, "data", "data/file"].map(|name| mode(&folder.path().join(name)));
        assert_eq!(found, [0o700, 0o600, 0o700, 0o600]);
        let path = folder.path().to_owned();
        drop(folder);
        assert!(!path.exists());
    }

    /// What a killed process leaves: all that its folder held, and no lock.
    fn abandon(folder: PrivateFolder) -> std::path::PathBuf {
        let PrivateFolder { folder, _owner } = folder;
        fs::write(folder.path().join("socket"), b"x").expect("a file");
        folder.keep()
    }

    #[test]
    fn only_abandoned_private_folders_are_removed() {
        let parent = parent();
        let path = |name: &str| parent.path().join(name);
        let live = create(parent.path());
        let abandoned = abandon(create(parent.path()));
        // Another program's, another prefix, one whose process has not come to its lock, and a link to an abandoned one.
        fs::create_dir_all(path("telar-notes")).expect("a folder");
        let kept = [abandon(PrivateFolder::create(parent.path(), "other-").expect("a folder")), path("telar-notes")];
        let beginning = create(parent.path());
        let (at, new) = (beginning.path().join(OWNER_LOCK), beginning.path().join(OWNER_LOCK_NEW));
        fs::rename(at, new).expect("a file");
        let beginning = abandon(beginning);
        let elsewhere = abandon(create(parent.path()));
        fs::write(elsewhere.join(OWNER_LOCK), b"another boot").expect("a file");
        std::os::unix::fs::symlink(&kept[0], path("telar-link")).expect("a link");

        let own = create(parent.path());
        assert!(!abandoned.exists());
        for path in kept.iter().map(std::path::PathBuf::as_path).chain([
            live.path(),
            own.path(),
            &beginning,
            &elsewhere,
            &path("telar-link"),
        ]) {
            assert!(path.exists(), "{} is gone", path.display());
        }
    }

    #[test]
    fn holds_is_true_only_inside_private_folder() {
        let parent = parent();
        let folder = create(parent.path());
        let data = folder.path().join("data");
        assert!(!PrivateFolder::holds(&data), "nothing is there");
        fs::create_dir(&data).expect("a folder");
        assert!(PrivateFolder::holds(&data));
        assert!(!PrivateFolder::holds(folder.path()));
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).expect("the folder can be changed");
        assert!(!PrivateFolder::holds(&data));
        assert!(!PrivateFolder::holds(Path::new("/")));
    }
}
