//! A disk that only a test's own programs see: small, to be filled, or to be made read-only in the middle of a run.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Process, Stream, TestDir};

/// A file system in memory at `disk` in a test's folder, as long as this is there.
pub struct SmallDisk {
    /// The process that keeps the mounts by being there.
    keeper: Process,
    folder: PathBuf,
}

impl SmallDisk {
    /// A disk of so many KiB; None, with a message, where the system does not allow mounting one.
    pub fn new(dir: &TestDir, n_kibibytes: u32) -> Option<Self> {
        let folder = dir.path("disk");
        fs::create_dir(&folder).expect("a folder");
        let script = format!("mount -t tmpfs -o size={n_kibibytes}k tmpfs disk && echo mounted && exec sleep 1000");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script]).current_dir(dir.path(""));
        let keeper = dir.start("small disk", command);
        if keeper.line_if_any(Stream::Out, "mounted", 1).is_some() {
            return Some(Self { keeper, folder });
        }
        keeper.wait_exit();
        eprintln!("skipped: no file system of its own here: {}", keeper.lines(Stream::Err, "").join(" "));
        None
    }

    /// Where this process finds a file of the disk.
    pub fn path(&self, name: &str) -> PathBuf {
        let folder = self.folder.strip_prefix("/").expect("a test's folder has an absolute path");
        Path::new("/proc").join(self.keeper.id().to_string()).join("root").join(folder).join(name)
    }

    /// A command, as one whose program finds the disk.
    pub fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        let keeper = self.keeper.id().to_string();
        inside.args(["--target", &keeper, "--user", "--preserve-credentials", "--mount"]);
        // Who enters stands in the root folder.
        inside.args(["sh", "-c", r#"cd "$0" && exec "$@""#]);
        inside.arg(self.folder.parent().expect("a test's folder")).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Takes all the room that is left, and what becomes free, until something `is_over`; that may wait a little.
    pub fn fill_until(&self, is_over: impl Fn() -> bool) {
        let mut filler = File::create(self.path("filler")).expect("a file");
        // Ends: the disk is small, and so is what is written to it meanwhile.
        loop {
            if let Err(error) = filler.write_all(&[0; 1024]) {
                assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
                if is_over() {
                    return;
                }
            }
        }
    }

    /// Makes a folder read-only, whatever is open in it.
    pub fn make_read_only(&self, name: &str) {
        let folder = self.folder.join(name).display().to_string();
        for flags in ["--bind", "-o remount,bind,ro"] {
            let mut command = Command::new("mount");
            command.args(flags.split(' ')).args([&folder, &folder]).current_dir("/");
            let status = self.inside(&command).status().expect("`nsenter` is there");
            assert!(status.success(), "mount {flags} {folder}: {status}");
        }
    }

    /// Copies a folder of the disk to where all see it.
    pub fn copy(&self, name: &str, to: &Path) {
        let status = Command::new("cp").arg("-R").args([&self.path(name), to]).status().expect("`cp` is there");
        assert!(status.success(), "cp: {status}");
    }
}
