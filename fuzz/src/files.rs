//! Files that are short in a corpus: their bytes, and how many zeros follow.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Zeros at most.
const N_ZEROS_MAX: usize = 4 << 20;
const N_HEADER: usize = 4;

/// The content of the file that an input stands for.
pub fn content(input: &[u8]) -> Option<Vec<u8>> {
    let (n_zeros, bytes) = input.split_first_chunk::<N_HEADER>()?;
    let n_zeros = u32::from_le_bytes(*n_zeros) as usize;
    (n_zeros <= N_ZEROS_MAX).then(|| [bytes, &vec![0; n_zeros]].concat())
}

/// A folder in memory, where there is one, for the files of this thread.
pub fn folder() -> PathBuf {
    thread_local! {
        static FOLDER: TempDir = {
            let memory = Path::new("/dev/shm");
            let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
            folder.expect("a temporary folder")
        };
    }
    FOLDER.with(|folder| folder.path().to_owned())
}

/// Writes the file that an input stands for.
pub fn write(input: &[u8], name: &str) -> Option<PathBuf> {
    let path = folder().join(name);
    std::fs::write(&path, content(input)?).expect("the folder can be written");
    Some(path)
}
