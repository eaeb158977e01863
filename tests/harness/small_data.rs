//! The images that most tests train on: enough for steps to differ, few enough for many runs.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use engine::data::Split;
use model::data::{Garments, PLAIN_NAMES};

use crate::common;

/// The small data set: 2,400 images for training and validation, 100 for the test.
pub static SMALL_DATA: LazyLock<SmallData> = LazyLock::new(SmallData::new);

/// Four files in memory, in the order of their names.
pub struct SmallData {
    files: [Vec<u8>; 4],
    /// Whether these are Fashion-MNIST's images, and not garments drawn in their stead.
    pub is_real: bool,
}

impl SmallData {
    fn new() -> Self {
        let real = common::fashion_mnist();
        let is_real = real.is_some();
        let data = real.unwrap_or_else(common::garments);
        let [train_images, train_labels] = first_images(&data, Split::Train, 2_400);
        let [test_images, test_labels] = first_images(&data, Split::Test, 100);
        Self { files: [train_images, train_labels, test_images, test_labels], is_real }
    }

    /// Writes the files into a folder.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("a folder");
        for (name, content) in PLAIN_NAMES.iter().zip(&self.files) {
            fs::write(folder.join(name), content).expect("a file");
        }
    }
}

/// The first images of a split and their labels, as files.
fn first_images(data: &Garments, split: Split, n_images: u32) -> [Vec<u8>; 2] {
    let images = [0x803, n_images, 28, 28].map(u32::to_be_bytes).concat();
    let labels = [0x801, n_images].map(u32::to_be_bytes).concat();
    let n_images = n_images as usize;
    [
        [images, data.pixels(split)[..n_images * 784].to_vec()].concat(),
        [labels, data.labels(split)[..n_images].to_vec()].concat(),
    ]
}
