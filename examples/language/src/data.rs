//! The data set: paragraphs of text files, as tokens. One token per byte, and one for the boundary before and after a paragraph.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;

use telar::{BoxError, Dataset, Fingerprint, Split};

/// The text if no `--data` is given: Debian's package `fortunes`.
pub const FORTUNES: &str = "/usr/share/games/fortunes";

/// The file that workers without a copy of the text fetch from the coordinator.
pub const FILE: &str = "paragraphs.txt";

/// The token before the first and after the last byte of a paragraph. Bytes are the tokens 0 to 255.
pub const BOUNDARY: u16 = 256;

/// Number of different tokens.
pub const N_TOKENS: usize = 257;

/// Shorter paragraphs, such as headings, are left out.
const BYTES_MIN: usize = 16;

/// Every 20th paragraph is a validation sample, and so is every 20th a test sample.
const SPLIT_PERIOD: usize = 20;

/// Paragraphs in alphabetical order, each once: neither the names nor the order of files matter.
#[derive(Debug)]
pub struct Paragraphs {
    name: String,
    /// Paragraphs with blank lines between them.
    text: Vec<u8>,
    train: Vec<Range<usize>>,
    valid: Vec<Range<usize>>,
    test: Vec<Range<usize>>,
}

/// Samples of unequal length.
#[derive(Clone, Debug, Default)]
pub struct TokenBatch {
    /// Each from its first boundary token to its last one.
    pub samples: Vec<Vec<u16>>,
}

impl Paragraphs {
    /// Reads a file, or all text files below a folder. Paragraphs of more than `bytes_max` bytes are split between words.
    ///
    /// # Errors
    /// If the path cannot be read, or there is no paragraph.
    pub fn read(path: &Path, bytes_max: usize) -> Result<Self, BoxError> {
        let mut found = BTreeSet::new();
        let shown = path.display();
        add_path(path, bytes_max, &mut found).map_err(|error| {
            format!(
                "cannot read text from {shown}: {error}; install Debian's package fortunes, or name a text file or a folder with \
                 --data, such as --data docs"
            )
        })?;
        if found.is_empty() {
            return Err(format!(
                "expected text in {shown}, found no paragraph of at least {BYTES_MIN} bytes in .txt and .md files and files \
                 without an extension; name another file or folder with --data"
            )
            .into());
        }
        Ok(Self::new(shown.to_string(), &found))
    }

    fn new(name: String, paragraphs: &BTreeSet<String>) -> Self {
        let mut data = Self { name, text: Vec::new(), train: Vec::new(), valid: Vec::new(), test: Vec::new() };
        for (position, paragraph) in paragraphs.iter().enumerate() {
            let start = data.text.len();
            data.text.extend_from_slice(paragraph.as_bytes());
            let split = match position % SPLIT_PERIOD {
                9 => &mut data.test,
                19 => &mut data.valid,
                _ => &mut data.train,
            };
            split.push(start..data.text.len());
            data.text.extend_from_slice(b"\n\n");
        }
        data
    }

    /// The content of [`FILE`]: reading it gives the same paragraphs.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    fn samples(&self, split: Split) -> &[Range<usize>] {
        match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        }
    }
}

impl Dataset for Paragraphs {
    type Batch = TokenBatch;

    fn name(&self) -> String {
        format!("{} ({} kB of text)", self.name, self.text.len().div_ceil(1000))
    }

    fn len(&self, split: Split) -> usize {
        self.samples(split).len()
    }

    fn gather(&self, split: Split, samples: &[u32]) -> TokenBatch {
        let ranges = self.samples(split);
        let tokens = |&sample: &u32| tokens_of(&self.text[ranges[sample as usize].clone()]);
        TokenBatch { samples: samples.iter().map(tokens).collect() }
    }

    fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of([&self.text])
    }
}

/// The boundary, the bytes, and the boundary again.
pub fn tokens_of(paragraph: &[u8]) -> Vec<u16> {
    let bytes = paragraph.iter().map(|&byte| u16::from(byte));
    std::iter::once(BOUNDARY).chain(bytes).chain([BOUNDARY]).collect()
}

/// Adds the paragraphs of a file, or of the text files below a folder. Hidden files and symbolic links in folders are skipped.
fn add_path(path: &Path, bytes_max: usize, found: &mut BTreeSet<String>) -> std::io::Result<()> {
    if !path.is_dir() {
        add_paragraphs(&String::from_utf8_lossy(&fs::read(path)?), bytes_max, found);
        return Ok(());
    }
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        let is_text = path.extension().is_none_or(|extension| extension == "txt" || extension == "md");
        if !is_hidden && (kind.is_dir() || kind.is_file() && is_text) {
            add_path(&path, bytes_max, found)?;
        }
    }
    Ok(())
}

/// Paragraphs end at blank lines, and at lines of a percent sign, which separate fortunes. White space becomes single spaces. Words
/// of more than `bytes_max` bytes are left out.
fn add_paragraphs(text: &str, bytes_max: usize, found: &mut BTreeSet<String>) {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    for paragraph in lines.split(|line| line.is_empty() || *line == "%") {
        let words = paragraph.iter().flat_map(|line| line.split_whitespace());
        let mut piece = String::new();
        let mut pieces = Vec::new();
        for word in words.filter(|word| word.len() <= bytes_max) {
            if !piece.is_empty() && piece.len() + 1 + word.len() > bytes_max {
                pieces.push(std::mem::take(&mut piece));
            }
            if !piece.is_empty() {
                piece.push(' ');
            }
            piece.push_str(word);
        }
        pieces.push(piece);
        found.extend(pieces.into_iter().filter(|piece| piece.len() >= BYTES_MIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8], bytes_max: usize) -> Paragraphs {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("text");
        fs::write(&path, text).expect("a file");
        Paragraphs::read(&path, bytes_max).expect("text")
    }

    #[test]
    fn paragraphs_are_split_at_blank_lines_percent_signs_and_limit() {
        let text =
            "One paragraph\n  on two lines.\n\nToo short\n\nfortune cookies say\n%\nlonger than thirty bytes, so split";
        let mut found = BTreeSet::new();
        add_paragraphs(text, 30, &mut found);
        let expected = ["One paragraph on two lines.", "fortune cookies say", "longer than thirty bytes, so"];
        assert_eq!(found.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn sample_is_bytes_between_boundaries() {
        let data = read(b"abcdefghijklmnop", 100);
        let batch = data.gather(Split::Train, &[0]);
        assert_eq!(batch.samples[0][..3], [BOUNDARY, 97, 98]);
        assert_eq!(batch.samples[0][16..], [112, BOUNDARY]);
    }

    #[test]
    fn splits_are_every_twentieth_and_disjoint() {
        let text: String = (100..200).map(|number| format!("paragraph number {number}\n\n")).collect();
        let data = read(text.as_bytes(), 100);
        assert_eq!([Split::Train, Split::Valid, Split::Test].map(|split| data.len(split)), [90, 5, 5]);
        let all: BTreeSet<usize> =
            [&data.train, &data.valid, &data.test].into_iter().flatten().map(|range| range.start).collect();
        assert_eq!(all.len(), 100);
    }

    #[test]
    fn fetched_file_has_fingerprint_of_its_origin() {
        let text = "many words of which lines are made\n%\n".repeat(2)
            + "% other words, % signs and lines\n\n\nand a third one of them";
        let data = read(text.as_bytes(), 24);
        assert_eq!(data.len(Split::Train), 3);
        assert_eq!(read(data.text(), 24).fingerprint(), data.fingerprint());
    }
}
