//! A small data set, for tests that compute little.

use std::path::Path;

use model::data::{DataChoice, Dataset, PLAIN_NAMES, open};
use model::report::DownloadBar;

/// Images of the small data set that are trained on: those of the file without its last twelfth.
pub const N_TRAIN: u32 = 110;

/// A data set of 120 images for training and validation, and 10 for the test.
///
/// # Panics
/// If it cannot be written.
pub fn data_set() -> Dataset {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_data_set(folder.path());
    // It is in memory, whatever becomes of the files.
    open(&DataChoice::Folder(folder.path().to_owned()), &mut DownloadBar::default()).expect("a whole data set")
}

/// Writes its four files.
///
/// # Panics
/// If they cannot be written.
pub fn write_data_set(folder: &Path) {
    for (names, n_images) in [&PLAIN_NAMES[..2], &PLAIN_NAMES[2..]].into_iter().zip([120_u32, 10]) {
        let pixel = |place: u32| u8::try_from(place * place / 7 % 256).expect("below 256");
        let images = (0..n_images * 784).map(pixel);
        let header = [0x803, n_images, 28, 28].map(u32::to_be_bytes).concat();
        std::fs::write(folder.join(names[0]), header.into_iter().chain(images).collect::<Vec<u8>>()).expect("a file");
        let header = [0x801, n_images].map(u32::to_be_bytes).concat();
        std::fs::write(folder.join(names[1]), [header, vec![3; n_images as usize]].concat()).expect("a file");
    }
}
