//! Fashion-MNIST with few labels: draws the training images from the first eleven twelfths of the training file (55,000 of 60,000
//! images), and validates on the last twelfth.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use telar::rand_chacha::ChaCha8Rng;
use telar::rand_chacha::rand_core::{Rng, SeedableRng};
use telar::{BoxError, DataFile, DataSource, Dataset, Fingerprint, Split};

/// Pixels in a row and in a column of an image.
pub const SIDE: usize = 28;
/// Classes of garments.
pub const N_CLASSES: usize = 10;
/// Images and labels for training, images and labels for the test.
pub const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

const NO_FOLDER: &str = "expected the folder with the four files of Fashion-MNIST, found none; write for example `--data \
    fashion-mnist` after `autoencoder data fetch --dir fashion-mnist`";
const N_PIXELS: usize = SIDE * SIDE;
/// Magic number, count, rows, columns.
const IMAGES_HEADER_BYTES: usize = 16;
/// Magic number, count.
const LABELS_HEADER_BYTES: usize = 8;
/// Bounds what a compressed file unpacks to; the largest file of the data set has 47 MB.
const FILE_BYTES_MAX: u64 = 100_000_000;

/// The data set in memory.
pub struct Garments {
    folder: String,
    training: FilePair,
    test: FilePair,
    /// Positions of the labelled images in the training file.
    labelled: Vec<u32>,
    n_valid_max: usize,
}

/// A file of images and the file of their labels, uncompressed, with their headers.
struct FilePair {
    images: Vec<u8>,
    labels: Vec<u8>,
}

/// Which images are used.
pub struct Selection {
    /// Training images, the same number of each class.
    pub n_labels: usize,
    /// Seed of the draw of training images.
    pub subset: u64,
    /// Validation images at most.
    pub n_valid_max: usize,
}

/// Images, and their classes.
pub struct LabelledImages {
    /// `[images, 28, 28]`, from 0 to 1.
    pub pixels: Vec<f32>,
    /// `[images]`, each below 10.
    pub labels: Vec<i64>,
}

impl Garments {
    /// Reads the files, and draws the training images.
    pub fn open(source: &DataSource, selection: &Selection) -> Result<Self, BoxError> {
        if source.is_auto() {
            return Err(NO_FOLDER.into());
        }
        let [train_images, train_labels, test_images, test_labels] = FILES;
        let training = FilePair::read(source.path(), train_images, train_labels)?;
        let test = FilePair::read(source.path(), test_images, test_labels)?;
        let &Selection { n_labels, subset, n_valid_max } = selection;
        let labelled = draw(&training.labels()[..training.n_pool()], n_labels / N_CLASSES, subset)?;
        Ok(Self { folder: source.to_string(), training, test, labelled, n_valid_max })
    }

    /// The files as [`Garments::open`] reads them, for workers that have none.
    pub fn files(&self) -> Vec<DataFile<'_>> {
        let files = FILES.into_iter().zip(self.contents()).map(|(name, bytes)| {
            let (header, content) = bytes.split_at(LABELS_HEADER_BYTES);
            DataFile { name, header: header.to_vec(), content }
        });
        files.collect()
    }

    fn contents(&self) -> [&[u8]; 4] {
        [&self.training.images, &self.training.labels, &self.test.images, &self.test.labels]
    }
}

impl Dataset for Garments {
    type Batch = LabelledImages;

    fn name(&self) -> String {
        self.folder.clone()
    }

    fn len(&self, split: Split) -> usize {
        match split {
            Split::Train => self.labelled.len(),
            Split::Valid => (self.training.labels().len() - self.training.n_pool()).min(self.n_valid_max),
            Split::Test => self.test.labels().len(),
        }
    }

    fn gather(&self, split: Split, samples: &[u32]) -> LabelledImages {
        let mut batch = LabelledImages { pixels: Vec::with_capacity(samples.len() * N_PIXELS), labels: Vec::new() };
        for &sample in samples {
            let (file, position) = match split {
                Split::Train => (&self.training, self.labelled[sample as usize] as usize),
                Split::Valid => (&self.training, self.training.n_pool() + sample as usize),
                Split::Test => (&self.test, sample as usize),
            };
            batch.pixels.extend(file.image(position).iter().map(|&pixel| f32::from(pixel) / 255.0));
            batch.labels.push(i64::from(file.labels()[position]));
        }
        batch
    }

    fn fingerprint(&self) -> Fingerprint {
        let labelled: Vec<u8> = self.labelled.iter().flat_map(|position| position.to_le_bytes()).collect();
        Fingerprint::of(self.contents().into_iter().chain([&labelled[..]]))
    }
}

impl FilePair {
    fn read(folder: &Path, images: &str, labels: &str) -> Result<Self, BoxError> {
        let pair = Self { images: read(folder, images, &[SIDE, SIDE])?, labels: read(folder, labels, &[])? };
        let (n_images, n_labels) = ((pair.images.len() - IMAGES_HEADER_BYTES) / N_PIXELS, pair.labels().len());
        if n_images != n_labels {
            return Err(
                format!("expected a label for each image, found {n_images} {images} and {n_labels} {labels}").into()
            );
        }
        match pair.labels().iter().find(|&&label| usize::from(label) >= N_CLASSES) {
            Some(label) => Err(format!("expected labels below {N_CLASSES}, found {label} in {labels}").into()),
            None => Ok(pair),
        }
    }

    /// Images that are not for validation, if this is the training file.
    fn n_pool(&self) -> usize {
        let n_images = self.labels().len();
        n_images - n_images / 12
    }

    fn labels(&self) -> &[u8] {
        &self.labels[LABELS_HEADER_BYTES..]
    }

    fn image(&self, position: usize) -> &[u8] {
        &self.images[IMAGES_HEADER_BYTES + position * N_PIXELS..][..N_PIXELS]
    }
}

/// Draws the positions of `n_each` images of each class. A larger draw of the same subset contains the smaller one.
fn draw(labels: &[u8], n_each: usize, subset: u64) -> Result<Vec<u32>, BoxError> {
    let mut random = ChaCha8Rng::seed_from_u64(subset);
    let mut order: Vec<(u64, u32)> = (0_u32..).zip(labels).map(|(position, _)| (random.next_u64(), position)).collect();
    order.sort_unstable();
    let mut n_drawn = [0; N_CLASSES];
    let is_drawn = |&position: &u32| {
        let n_drawn = &mut n_drawn[usize::from(labels[position as usize])];
        *n_drawn += 1;
        *n_drawn <= n_each
    };
    let drawn: Vec<u32> = order.into_iter().map(|(_, position)| position).filter(is_drawn).collect();
    match n_drawn.iter().min() {
        Some(&found) if found < n_each => {
            Err(format!("expected {n_each} training images of each class, found {found}; write a lower --labels")
                .into())
        }
        _ => Ok(drawn),
    }
}

/// Reads an IDX file of bytes, plain or compressed, and checks its header.
fn read(folder: &Path, name: &str, sides: &[usize]) -> Result<Vec<u8>, BoxError> {
    let (plain, compressed) = (folder.join(name), folder.join(format!("{name}.gz")));
    let mut bytes = Vec::new();
    if plain.is_file() {
        File::open(plain)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    } else {
        let file = File::open(&compressed).map_err(|error| {
            format!(
                "cannot read {}: {error}; name the folder with the four files of Fashion-MNIST with --data",
                compressed.display()
            )
        })?;
        GzDecoder::new(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    }
    // The type (8: bytes) and the number of axes, then the length of each axis.
    let (numbers, _) = bytes.as_chunks::<4>();
    let header: Vec<usize> =
        numbers.iter().take(2 + sides.len()).map(|&number| u32::from_be_bytes(number) as usize).collect();
    let is_whole = match header[..] {
        [magic, n_samples, ref found_sides @ ..] => {
            let n_content = n_samples.saturating_mul(sides.iter().product());
            magic == 0x801 + sides.len() && found_sides == sides && bytes.len() - 4 * header.len() == n_content
        }
        _ => false,
    };
    if is_whole {
        Ok(bytes)
    } else {
        Err(format!("expected a whole file of Fashion-MNIST, found another one or a part: {name}").into())
    }
}
