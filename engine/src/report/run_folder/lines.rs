//! Files of lines: lines are added at the end, and those of steps that a resumed run does anew are cut off.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Bytes at most of a line. The longest are those of steps, with a number for each shard.
pub const LINE_BYTES_MAX: u64 = 1 << 20;

/// What every line has, whatever else.
#[derive(Deserialize)]
struct Numbered {
    step: u64,
}

/// Opens a file to add lines after its last whole one of at most a step: what follows goes. Makes an empty one if there is
/// none.
pub(super) fn open_lines(path: &Path, step: u64) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let n_bytes = file.metadata()?.len();
    let end = lines_end(&mut file, n_bytes, step)?;
    if end < n_bytes {
        file.set_len(end)?;
    }
    if end > 0 {
        let mut last = [0];
        file.seek(SeekFrom::Start(end - 1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    file.sync_all()?;
    Ok(file)
}

/// Opens a file to add lines after its last whole one: what follows goes. Makes an empty one if there is none.
pub(super) fn open_whole_lines(path: &Path) -> std::io::Result<File> {
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let n_bytes = file.metadata()?.len();
    let (mut end, mut block) = (n_bytes, Vec::new());
    // Ends: each block ends where the one after it began.
    while end > 0 {
        let begin = end.saturating_sub(LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(begin))?;
        block.resize(usize::try_from(end - begin).expect("a block fits into memory"), 0);
        file.read_exact(&mut block)?;
        end = begin;
        if let Some(place) = block.iter().rposition(|&byte| byte == b'\n') {
            end = begin + place as u64 + 1;
            break;
        }
    }
    if end < n_bytes {
        file.set_len(end)?;
    }
    Ok(file)
}

/// Where the last line ends that is whole and of at most a step; 0 if there is none. Lines are in the order of their steps, so
/// that it is looked for from the end, and no more is read than what goes, and a block.
fn lines_end(file: &mut (impl Read + Seek), n_bytes: u64, step: u64) -> std::io::Result<u64> {
    let is_kept = |line: &[u8]| serde_json::from_slice(line).is_ok_and(|Numbered { step: at }| at <= step);
    let mut block = Vec::new();
    let mut end = n_bytes;
    // Ends: each block ends before the one after it began, or with the line that was cut by its beginning.
    while end > 0 {
        let begin = end.saturating_sub(LINE_BYTES_MAX);
        file.seek(SeekFrom::Start(begin))?;
        block.resize(usize::try_from(end - begin).expect("a block fits into memory"), 0);
        file.read_exact(&mut block)?;
        let mut rest = &block[..];
        while let Some(start) = last_line(rest, begin) {
            if is_kept(&rest[start..]) {
                return Ok(begin + rest.len() as u64);
            }
            rest = &rest[..start];
        }
        // So many bytes without an end of a line are none.
        end = if rest.len() == block.len() { begin } else { begin + rest.len() as u64 };
    }
    Ok(0)
}

/// Where the last line of a block begins, if that is in it.
fn last_line(block: &[u8], begin: u64) -> Option<usize> {
    let (_, before_last) = block.split_last()?;
    let end_of_previous = before_last.iter().rposition(|&byte| byte == b'\n');
    end_of_previous.map(|place| place + 1).or_else(|| (begin == 0).then_some(0))
}

pub(super) fn add_line(file: &mut BufWriter<File>, record: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    // In one piece, which the buffer keeps together: whatever ends the program, the file ends with a whole line.
    file.write_all(&line)
}

pub(super) fn bring_to_disk(file: &mut BufWriter<File>) -> std::io::Result<()> {
    file.flush()?;
    file.get_ref().sync_data()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::RunFolder;
    use super::*;

    /// A file that counts what is read of it.
    struct Counted {
        file: File,
        n_read: u64,
    }

    impl Read for Counted {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let n_read = self.file.read(into)?;
            self.n_read += n_read as u64;
            Ok(n_read)
        }
    }

    impl Seek for Counted {
        fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
            self.file.seek(to)
        }
    }

    /// The goal: a run of any length can be resumed, at the cost of what it does anew.
    #[test]
    fn long_line_file_is_read_from_end() {
        const HOLE_BYTES: u64 = 5 << 30;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("steps.jsonl");
        let lines: Vec<String> = (1..=20_000).map(|step| format!("{{\"step\":{step},\"loss\":0.25}}\n")).collect();
        let mut file = File::create(&path).expect("a file");
        file.set_len(HOLE_BYTES).expect("a file system with sparse files");
        file.seek(SeekFrom::End(0)).expect("a file");
        file.write_all(format!("\n{}", lines.concat()).as_bytes()).expect("a file");
        let n_bytes = file.metadata().expect("a file").len();
        for step in [20_000, 19_999, 10_000, 1] {
            let n_later: u64 = lines[step..].iter().map(|line| line.len() as u64).sum();
            let mut counted = Counted { file: File::open(&path).expect("a file"), n_read: 0 };
            assert_eq!(lines_end(&mut counted, n_bytes, step as u64).expect("a file"), n_bytes - n_later);
            assert!(counted.n_read <= n_later + 2 * LINE_BYTES_MAX, "{} bytes read for step {step}", counted.n_read);
        }
        let mut run = RunFolder::reopen(folder.path(), 19_999, 0).expect("the folder can be written");
        assert_eq!(fs::metadata(&path).expect("a file").len(), n_bytes - lines[19_999].len() as u64);
        run.add_step(&serde_json::json!({ "step": 20_000 })).expect("the folder can be written");
        run.sync_lines().expect("the folder can be written");
        let mut end = [0; 15];
        let mut file = File::open(&path).expect("a file");
        file.seek(SeekFrom::End(-15)).and_then(|_| file.read_exact(&mut end)).expect("a file");
        assert_eq!(end, *b"{\"step\":20000}\n");
    }
}
