//! A file of lines that grows while it is read, and may be longer than there is time to read.

use std::fs::{File, Metadata};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes at most of a line; longer ones are left out.
pub const LINE_BYTES_MAX: u64 = 1 << 20;
/// Bytes that are read whole: of more there are samples, or the newest.
pub const WHOLE_BYTES_MAX: u64 = 4 << 20;

/// Lines that are read of what is too long, evenly spaced.
const SAMPLES_MAX: u64 = 2048;
/// Bytes at the end that are read whole, where the rest is sampled.
const END_BYTES: u64 = 256 << 10;
/// Bytes that are read at a time for lines in order.
const BLOCK_BYTES: usize = 256 << 10;
/// Bytes at most of a line that is a sample, and of what is before it: of what is no text, no more is read.
const SAMPLE_LINE_BYTES_MAX: u64 = 64 << 10;
/// Bytes that are read at a time for a sample.
const SAMPLE_BYTES: usize = 8 << 10;
/// Bytes before the position that say whether the file is still the one that was read.
const MARK_BYTES: u64 = 64;

/// What is read of a file that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excerpt {
    /// Evenly spaced lines, and all at the end.
    Samples,
    /// The last so many bytes.
    Newest(u64),
}

/// What is found in a file.
#[derive(Debug)]
pub enum Found<'a> {
    /// It was cut short or replaced: what was read of it before is void, and all is read anew.
    Restart,
    /// A whole line, without its end, and the bytes after it that are there by now.
    Line(&'a [u8], u64),
}

/// A file of lines, and how far it was read. Reads only whole lines: what was begun by its writer is read when it is whole.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    excerpt: Excerpt,
    stamp: Option<Stamp>,
    /// Where the next line begins.
    position: u64,
    /// The bytes before it.
    mark: Vec<u8>,
    /// Whether a line that is too long was begun.
    is_skipping: bool,
}

/// By which a changed file is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    n_bytes: u64,
    modified: (i64, i64),
}

impl Stamp {
    /// From what the system says of a file.
    pub fn new(metadata: &Metadata) -> Self {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Self { device: metadata.dev(), inode: metadata.ino(), n_bytes: metadata.len(), modified }
    }
}

impl Lines {
    /// A file that may not be there yet.
    pub fn new(path: &Path, excerpt: Excerpt) -> Self {
        let path = path.to_owned();
        Self { path, excerpt, stamp: None, position: 0, mark: Vec::new(), is_skipping: false }
    }

    /// Reads what was added since the last time. A file that is not there has no lines.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read_new(&mut self, mut each: impl FnMut(Found<'_>)) -> io::Result<()> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let stamp = Stamp::new(&file.metadata()?);
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        if !self.is_same(&file, stamp)? {
            (self.position, self.is_skipping) = (0, false);
            self.mark.clear();
            each(Found::Restart);
        }
        let end = stamp.n_bytes;
        if end - self.position > WHOLE_BYTES_MAX {
            match self.excerpt {
                Excerpt::Samples => self.sample(&file, end - END_BYTES, end, &mut each)?,
                Excerpt::Newest(n_bytes) if end - self.position > n_bytes => {
                    let mut reader = BufReader::new(&file);
                    self.position = line_start(&mut reader, self.position, end - n_bytes, LINE_BYTES_MAX)?;
                }
                Excerpt::Newest(_) => {}
            }
        }
        self.read_all(&file, end, &mut each)?;
        self.set_mark(&file)?;
        self.stamp = Some(stamp);
        Ok(())
    }

    /// Whether what was read is still there.
    fn is_same(&self, file: &File, stamp: Stamp) -> io::Result<bool> {
        let Some(before) = self.stamp else { return Ok(true) };
        if (before.device, before.inode) != (stamp.device, stamp.inode) || stamp.n_bytes < self.position {
            return Ok(false);
        }
        let mut mark = vec![0; self.mark.len()];
        match file.read_exact_at(&mut mark, self.position - self.mark.len() as u64) {
            Ok(()) => Ok(mark == self.mark),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn set_mark(&mut self, file: &File) -> io::Result<()> {
        let begin = self.position.saturating_sub(MARK_BYTES);
        let n_bytes = usize::try_from(self.position - begin).expect("a few bytes");
        self.mark.resize(n_bytes, 0);
        file.read_exact_at(&mut self.mark, begin)
    }

    /// Reads lines at evenly spaced places before `sampled_end`, and goes to the first line after it.
    fn sample(&mut self, file: &File, sampled_end: u64, end: u64, each: &mut impl FnMut(Found<'_>)) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(SAMPLE_BYTES, file);
        let (begin, mut line) = (self.position, Vec::new());
        let mut read_to = begin;
        for sample in 0..SAMPLES_MAX {
            let place = begin + (sampled_end - begin) / SAMPLES_MAX * sample;
            // A line that is longer than the distance was read already.
            let place = place.max(read_to);
            let start = line_start(&mut reader, begin, place, SAMPLE_LINE_BYTES_MAX)?;
            if start >= place + SAMPLE_LINE_BYTES_MAX - 1 {
                continue;
            }
            line.clear();
            let n_bytes = (&mut reader).take(SAMPLE_LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
            if line.pop_if(|last| *last == b'\n').is_some() && start + n_bytes <= sampled_end {
                read_to = start + n_bytes;
                each(Found::Line(&line, end - read_to));
            }
        }
        self.position = line_start(&mut reader, begin, sampled_end.max(read_to), LINE_BYTES_MAX)?;
        self.is_skipping = false;
        Ok(())
    }

    /// Reads all lines up to `end`.
    fn read_all(&mut self, mut file: &File, end: u64, each: &mut impl FnMut(Found<'_>)) -> io::Result<()> {
        file.seek(SeekFrom::Start(self.position))?;
        let mut reader = BufReader::with_capacity(BLOCK_BYTES, file).take(end - self.position);
        let mut line = Vec::new();
        // Ends: each turn takes bytes of a bounded number, or returns.
        loop {
            line.clear();
            let n_bytes = (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)? as u64;
            if line.pop_if(|last| *last == b'\n').is_some() {
                self.position += n_bytes;
                if !std::mem::take(&mut self.is_skipping) {
                    each(Found::Line(&line, end - self.position));
                }
            } else if n_bytes == LINE_BYTES_MAX {
                self.position += n_bytes;
                self.is_skipping = true;
            } else {
                return Ok(());
            }
        }
    }
}

/// Goes to the first line that begins at a place or after it, and says where that is; `begin` is where one does. Where the next
/// end of a line is more than `n_bytes_max` away, goes so far.
fn line_start(reader: &mut BufReader<&File>, begin: u64, place: u64, n_bytes_max: u64) -> io::Result<u64> {
    if place <= begin {
        return reader.seek(SeekFrom::Start(begin));
    }
    // If the byte before is the end of a line, only that is skipped.
    reader.seek(SeekFrom::Start(place - 1))?;
    let n_skipped = reader.take(n_bytes_max).skip_until(b'\n')?;
    Ok(place - 1 + n_skipped as u64)
}
