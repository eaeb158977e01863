//! The IDX format of the MNIST family, plain or gzipped: 28x28 images as bytes, and labels below 10.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::bufread::GzDecoder;
use memmap2::Mmap;

use super::DataError;
use crate::arch::N_PIXELS;
use engine::files::read_bounded;

const IMAGES_MAGIC: u32 = 0x0000_0803;
const LABELS_MAGIC: u32 = 0x0000_0801;
const IMAGES_HEADER_BYTES: usize = 16; // magic, count, rows, columns
const LABELS_HEADER_BYTES: usize = 8; // magic, count
const N_CLASSES: u8 = 10;

/// The largest file of the family has 60,000 images; ten times that is no data set but an attack on the memory.
const UNPACKED_BYTES_MAX: u64 = 10 * (IMAGES_HEADER_BYTES as u64 + 60_000 * N_PIXELS as u64);

const SIDE: u32 = 28; // rows and columns

/// The pixels of a file of images, one byte each: [images, 28, 28].
#[derive(Debug)]
pub struct Pixels {
    bytes: FileBytes,
    n_header: usize,
}

impl Pixels {
    /// All pixels, image after image, row after row.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes.as_slice()[self.n_header..]
    }

    /// Pixels that never were in a file.
    pub(super) fn from_vec(pixels: Vec<u8>) -> Self {
        Self { bytes: FileBytes::Owned(pixels), n_header: 0 }
    }
}

/// What a plain file of so many images begins with.
pub(super) fn images_header(n_images: u32) -> Vec<u8> {
    [IMAGES_MAGIC, n_images, SIDE, SIDE].map(u32::to_be_bytes).concat()
}

/// What a plain file of so many labels begins with.
pub(super) fn labels_header(n_labels: u32) -> Vec<u8> {
    [LABELS_MAGIC, n_labels].map(u32::to_be_bytes).concat()
}

/// How a plain file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Memory-mapped, so that processes share it. For files that no process writes to: a truncation would SIGBUS every process
    /// that reads it.
    Mapped,
    /// Into memory.
    Copied,
}

/// A file's content.
#[derive(Debug)]
enum FileBytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

impl FileBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }

    fn read(path: &Path, access: Access) -> Result<Self, DataError> {
        let error = |source| DataError::Read { path: path.to_owned(), source };
        let idx_error = |source| DataError::Idx { path: path.to_owned(), source };
        let is_plain = path.extension().is_none_or(|extension| extension != "gz");
        let is_too_large = is_plain && path.metadata().map_err(error)?.len() > UNPACKED_BYTES_MAX;
        if is_too_large {
            return Err(idx_error(IdxError::TooLarge { max: UNPACKED_BYTES_MAX }));
        }
        if is_plain && access == Access::Mapped {
            return File::open(path).and_then(|file| map(&file)).map(Self::Mapped).map_err(error);
        }
        let bytes = read_bounded(path, UNPACKED_BYTES_MAX).map_err(error)?;
        if is_plain { Ok(Self::Owned(bytes)) } else { unpack(&bytes).map(Self::Owned).map_err(idx_error) }
    }
}

#[expect(unsafe_code, reason = "mapping a file is sound as long as nobody shortens it; see `Access`")]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is only read; the files are renamed into place whole and never changed after that.
    unsafe { Mmap::map(file) }
}

/// Unpacks a gzip member that is the whole of its file.
fn unpack(compressed: &[u8]) -> Result<Vec<u8>, IdxError> {
    let mut decoder = GzDecoder::new(compressed);
    let mut bytes = Vec::new();
    let n_read = decoder.by_ref().take(UNPACKED_BYTES_MAX + 1).read_to_end(&mut bytes);
    let n_read = n_read.map_err(|error| IdxError::Gzip { reason: error.to_string() })?;
    if n_read as u64 > UNPACKED_BYTES_MAX {
        return Err(IdxError::TooLarge { max: UNPACKED_BYTES_MAX });
    }
    let n_trailing = decoder.into_inner().len();
    if n_trailing > 0 {
        return Err(IdxError::GzipTrailing { n_trailing });
    }
    Ok(bytes)
}

/// Reads a file of 28x28 images, plain or, if its name ends in `.gz`, compressed.
pub(super) fn read_images(path: &Path, access: Access) -> Result<Pixels, DataError> {
    let bytes = FileBytes::read(path, access)?;
    check_images(bytes.as_slice()).map_err(|source| DataError::Idx { path: path.to_owned(), source })?;
    Ok(Pixels { bytes, n_header: IMAGES_HEADER_BYTES })
}

/// Reads a file of labels, plain or compressed.
pub(super) fn read_labels(path: &Path) -> Result<Vec<u8>, DataError> {
    let bytes = FileBytes::read(path, Access::Copied)?;
    check_labels(bytes.as_slice()).map_err(|source| DataError::Idx { path: path.to_owned(), source })?;
    Ok(bytes.as_slice()[LABELS_HEADER_BYTES..].to_vec())
}

/// A content that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdxError {
    /// Not even a header.
    #[error("expected a header of {expected} bytes, found {found} bytes in all")]
    NoHeader {
        /// Bytes of a header.
        expected: usize,
        /// Bytes of the file.
        found: usize,
    },
    /// The first four bytes say something else.
    #[error("expected magic number 0x{expected:08x} for {what}, found 0x{found:08x}")]
    Magic {
        /// What the file should hold.
        what: &'static str,
        /// Its magic number.
        expected: u32,
        /// The number found.
        found: u32,
    },
    /// Images of another size.
    #[error("expected images of 28x28 pixels, found {rows}x{columns}")]
    Shape {
        /// Rows found.
        rows: u32,
        /// Columns found.
        columns: u32,
    },
    /// The end is missing.
    #[error("expected {expected} bytes by its header, found {found}: the file is cut off; fetch it again")]
    Truncated {
        /// Bytes by the header.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// There is more than the header says.
    #[error("expected {expected} bytes by its header, found {found}: bytes trail the content; fetch it again")]
    Trailing {
        /// Bytes by the header.
        expected: u64,
        /// Bytes found.
        found: u64,
    },
    /// A label that is no class.
    #[error("expected labels below 10, found {label} at position {position}")]
    Label {
        /// The label found.
        label: u8,
        /// Which label, counted from 0.
        position: usize,
    },
    /// The compressed stream is damaged.
    #[error("expected a whole gzip stream, found damage: {reason}; fetch the file again")]
    Gzip {
        /// What the decompressor says.
        reason: String,
    },
    /// Something follows the compressed stream.
    #[error("expected one gzip stream, found {n_trailing} bytes trailing it; fetch the file again")]
    GzipTrailing {
        /// Bytes after the stream.
        n_trailing: usize,
    },
    /// The content would fill the memory.
    #[error("expected at most {max} bytes of content, found more")]
    TooLarge {
        /// Bytes at most.
        max: u64,
    },
}

/// Big-endian number at a place within the header, whose presence was checked.
fn number(header: &[u8], place: usize) -> u32 {
    header[place..place + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn check_images(bytes: &[u8]) -> Result<(), IdxError> {
    check_header(bytes, IMAGES_HEADER_BYTES, "images", IMAGES_MAGIC)?;
    let [n_images, rows, columns] = [4, 8, 12].map(|place| number(bytes, place));
    if [rows, columns] != [SIDE; 2] {
        return Err(IdxError::Shape { rows, columns });
    }
    check_length(bytes, IMAGES_HEADER_BYTES as u64 + u64::from(n_images) * N_PIXELS as u64)
}

fn check_labels(bytes: &[u8]) -> Result<(), IdxError> {
    check_header(bytes, LABELS_HEADER_BYTES, "labels", LABELS_MAGIC)?;
    check_length(bytes, LABELS_HEADER_BYTES as u64 + u64::from(number(bytes, 4)))?;
    let labels = &bytes[LABELS_HEADER_BYTES..];
    match labels.iter().position(|&label| label >= N_CLASSES) {
        Some(position) => Err(IdxError::Label { label: labels[position], position }),
        None => Ok(()),
    }
}

fn check_header(bytes: &[u8], n_header: usize, what: &'static str, magic: u32) -> Result<(), IdxError> {
    if bytes.len() < n_header {
        return Err(IdxError::NoHeader { expected: n_header, found: bytes.len() });
    }
    match number(bytes, 0) {
        found if found != magic => Err(IdxError::Magic { what, expected: magic, found }),
        _ => Ok(()),
    }
}

fn check_length(bytes: &[u8], expected: u64) -> Result<(), IdxError> {
    let found = bytes.len() as u64;
    match found.cmp(&expected) {
        std::cmp::Ordering::Less => Err(IdxError::Truncated { expected, found }),
        std::cmp::Ordering::Greater => Err(IdxError::Trailing { expected, found }),
        std::cmp::Ordering::Equal => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;

    use super::*;

    fn images(magic: u32, n_images: u32, rows: u32, columns: u32, n_pixels: usize) -> Vec<u8> {
        let header = [magic, n_images, rows, columns].map(u32::to_be_bytes).concat();
        [header, vec![7; n_pixels]].concat()
    }

    fn labels(n_labels: u32, labels: &[u8]) -> Vec<u8> {
        [&LABELS_MAGIC.to_be_bytes()[..], &n_labels.to_be_bytes()[..], labels].concat()
    }

    fn pack(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).expect("a vector takes all");
        encoder.finish().expect("a vector takes all")
    }

    #[test]
    fn each_image_file_fault_has_its_own_error() {
        let check = |bytes: Vec<u8>, expected| assert_eq!(check_images(&bytes), expected);
        check(images(IMAGES_MAGIC, 2, 28, 28, 1_568), Ok(()));
        check(vec![0; 15], Err(IdxError::NoHeader { expected: 16, found: 15 }));
        check(
            images(LABELS_MAGIC, 2, 28, 28, 1_568),
            Err(IdxError::Magic { what: "images", expected: IMAGES_MAGIC, found: LABELS_MAGIC }),
        );
        check(images(IMAGES_MAGIC, 2, 28, 27, 1_568), Err(IdxError::Shape { rows: 28, columns: 27 }));
        check(images(IMAGES_MAGIC, 2, 28, 28, 1_567), Err(IdxError::Truncated { expected: 1_584, found: 1_583 }));
        check(images(IMAGES_MAGIC, 2, 28, 28, 1_569), Err(IdxError::Trailing { expected: 1_584, found: 1_585 }));
        let expected = 16 + u64::from(u32::MAX) * 784;
        check(images(IMAGES_MAGIC, u32::MAX, 28, 28, 0), Err(IdxError::Truncated { expected, found: 16 }));
    }

    #[test]
    fn each_label_file_fault_has_its_own_error() {
        let check = |bytes: Vec<u8>, expected| assert_eq!(check_labels(&bytes), expected);
        check(labels(3, &[0, 9, 5]), Ok(()));
        check(labels(3, &[0, 10, 5]), Err(IdxError::Label { label: 10, position: 1 }));
        check(labels(3, &[0, 9]), Err(IdxError::Truncated { expected: 11, found: 10 }));
        check(labels(3, &[0, 9, 1, 1]), Err(IdxError::Trailing { expected: 11, found: 12 }));
    }

    #[test]
    fn gzip_file_must_be_one_complete_stream() {
        let packed = pack(&labels(1, &[3]));
        assert_eq!(unpack(&packed), Ok(labels(1, &[3])));
        assert_eq!(unpack(&[&packed[..], b"xy"].concat()), Err(IdxError::GzipTrailing { n_trailing: 2 }));
        assert!(matches!(unpack(&packed[..packed.len() - 3]), Err(IdxError::Gzip { .. })));
        let mut damaged = packed;
        let middle = damaged.len() - 8; // the checksum
        damaged[middle] ^= 1;
        assert!(matches!(unpack(&damaged), Err(IdxError::Gzip { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // As they are, after the right magic number, and packed, so that they get past the first checks.
            for bytes in [bytes.clone(), [&IMAGES_MAGIC.to_be_bytes()[..], &bytes[..]].concat()] {
                let _ = check_images(&bytes);
            }
            for bytes in [bytes.clone(), [&LABELS_MAGIC.to_be_bytes()[..], &bytes[..]].concat()] {
                let _ = check_labels(&bytes);
            }
            let _ = unpack(&bytes);
            let mut packed = pack(&bytes);
            prop_assert_eq!(unpack(&packed), Ok(bytes.clone()));
            if let (Some(&place), Some(&flipped)) = (bytes.first(), bytes.get(1)) {
                let place = usize::from(place) % packed.len();
                packed[place] ^= flipped;
                let _ = unpack(&packed);
            }
        }

        #[test]
        fn image_header_is_accepted_only_if_size_matches(n_images in 0_u32..4, n_pixels in 0_usize..3_200) {
            let bytes = images(IMAGES_MAGIC, n_images, 28, 28, n_pixels);
            prop_assert_eq!(check_images(&bytes).is_ok(), n_pixels == 784 * n_images as usize);
        }
    }
}
