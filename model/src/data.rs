//! The images that are trained on: where they come from, and how they are split.

mod cache;
mod copy;
mod download_bar;
mod fetch;
mod idx;
mod source;
mod synthetic;

use std::path::PathBuf;

use engine::data::{Dataset, Fingerprint, Split};

pub use cache::{cache_folder, plain_cache_folder};
pub use copy::{open_cached, open_copy, open_own};
pub use download_bar::DownloadBar;
pub use fetch::{FILES, FetchError, FetchProgress, FetchReport, MIRRORS, RemoteFile, fetch};
pub use idx::{IdxError, Pixels};
pub use source::{DataChoice, PLAIN_NAMES, open};

use crate::arch::{IMAGE_SIDE, N_PIXELS};
use crate::images::Images;

/// What Fashion-MNIST's labels mean, from <https://github.com/zalandoresearch/fashion-mnist>.
const FASHION_LABELS: [&str; 10] =
    ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"];
/// The labels of other data sets, of which only the number is known.
const NUMBERS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];

/// Images and labels of one file pair.
#[derive(Debug)]
struct Labelled {
    pixels: Pixels,
    labels: Vec<u8>,
}

/// Fashion-MNIST, or what has its form, in memory: pixels as bytes, mapped from the file where this program alone writes to that.
/// The last twelfth of the training file is for validation: of Fashion-MNIST's 60,000 images 5,000, and 10,000 for the test.
#[derive(Debug)]
pub struct Garments {
    name: String,
    training_file: Labelled,
    test_file: Labelled,
}

/// Images that go through a network at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What it should give back.
    pub images: Images,
    /// What it is shown, if that is something else.
    pub noisy: Option<Images>,
}

impl Dataset for Garments {
    type Batch = Batch;

    fn name(&self) -> String {
        self.name.clone()
    }

    fn len(&self, split: Split) -> usize {
        self.labels(split).len()
    }

    fn gather(&self, split: Split, samples: &[u32]) -> Batch {
        Batch { images: self.images(split, samples), noisy: None }
    }

    fn fingerprint(&self) -> Fingerprint {
        let files = [&self.training_file, &self.test_file];
        Fingerprint::of(files.into_iter().flat_map(|file| [file.pixels.as_slice(), &file.labels]))
    }
}

impl Garments {
    /// The labels of a split, each below 10.
    pub fn labels(&self, split: Split) -> &[u8] {
        let (file, range) = self.place(split);
        &file.labels[range]
    }

    /// What the labels mean, by number: Fashion-MNIST's classes if the data set is that, or was drawn after it. What the labels of
    /// other files in the same form mean is not known; of those, the numbers.
    pub fn label_names(&self) -> [&'static str; 10] {
        if source::has_fashion_labels(self) { FASHION_LABELS } else { NUMBERS }
    }

    /// The pixels of a split: [images, 28, 28].
    pub fn pixels(&self, split: Split) -> &[u8] {
        let (file, range) = self.place(split);
        &file.pixels.as_slice()[range.start * N_PIXELS..range.end * N_PIXELS]
    }

    /// Images by their positions in the split, as values from 0 to 1.
    ///
    /// # Panics
    /// If a position is not below [`Dataset::len`].
    pub fn images(&self, split: Split, samples: &[u32]) -> Images {
        let pixels = self.pixels(split);
        let mut values = Vec::with_capacity(samples.len() * N_PIXELS);
        for &sample in samples {
            let start = sample as usize * N_PIXELS;
            values.extend(pixels[start..start + N_PIXELS].iter().map(|&pixel| f32::from(pixel) / 255.0));
        }
        Images { values, shape: [samples.len(), IMAGE_SIDE, IMAGE_SIDE] }
    }

    fn place(&self, split: Split) -> (&Labelled, std::ops::Range<usize>) {
        let n_file = self.training_file.labels.len();
        let n_train = n_file - n_file / 12; // 60,000 - 5,000 = 55,000
        match split {
            Split::Train => (&self.training_file, 0..n_train),
            Split::Valid => (&self.training_file, n_train..n_file),
            Split::Test => (&self.test_file, 0..self.test_file.labels.len()),
        }
    }
}

/// Data that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file is not there.
    #[error(
        "expected `{name}` or `{name}.gz` in {folder}, found neither; run `autoencoder data fetch --dir {folder}`, or \
         name another folder with `--data`", folder = folder.display()
    )]
    Missing {
        /// The file's name, uncompressed.
        name: &'static str,
        /// Where it was looked for.
        folder: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{}: {source}", path.display())]
    Idx {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: IdxError,
    },
    /// Images and labels do not go together.
    #[error("expected as many labels as images, found {n_images} images in {} and {n_labels} labels in {}", images.display(), labels.display())]
    Counts {
        /// The file of images.
        images: PathBuf,
        /// The file of labels.
        labels: PathBuf,
        /// Images found.
        n_images: usize,
        /// Labels found.
        n_labels: usize,
    },
    /// Too few images to train, validate and test.
    #[error("expected at least 12 images for training and 1 for the test, found {n_images} in {}", path.display())]
    TooFew {
        /// The file of images.
        path: PathBuf,
        /// Images found.
        n_images: usize,
    },
    /// The files are another data set's.
    #[error(
        "expected Fashion-MNIST in {folder}, found another data set (blake3 {found}); name it with `--data {folder}` if it \
         is meant"
    )]
    OtherData {
        /// Where it was found.
        folder: String,
        /// Its fingerprint.
        found: String,
    },
    /// The data set could not be downloaded.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// There is nowhere to download to.
    #[error(
        "this user has no cache folder to download to; name one with `--data DIR` after `autoencoder data fetch --dir DIR`"
    )]
    NoCacheFolder,
}
