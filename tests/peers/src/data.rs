//! A small data set, for tests that compute little.

use std::path::Path;

use std::sync::Arc;

use engine::data::DataSource;
use engine::recipe::Recipe;
use engine::task::OpenTask;
use model::arch::Architecture;
use model::data::{DataChoice, DownloadBar, Garments, PLAIN_NAMES, open};
use model::layers::Noise;
use model::task::{task_on, tasks};

/// Images of the small data set that are trained on: those of the file without its last twelfth.
pub const N_TRAIN: u32 = 110;

/// A data set of 120 images for training and validation, and 10 for the test.
///
/// # Panics
/// If it cannot be written.
pub fn data_set() -> Garments {
    let folder = tempfile::tempdir().expect("a temporary folder");
    write_data_set(folder.path());
    // It is in memory, whatever becomes of the files.
    open(&DataChoice::Folder(folder.path().to_owned()), &mut DownloadBar::default()).expect("a whole data set")
}

/// The task of [`welcome`](crate::welcome) on it: `denoising` with the book's noise.
///
/// # Panics
/// If it cannot be written.
pub fn task() -> Arc<dyn OpenTask> {
    let noise = Noise::Gaussian { deviation: 0.2 };
    task_on(Architecture::Denoising, Some(noise), Arc::new(data_set())).expect("a data set with images")
}

/// What a recipe of an autoencoder trains, on the data set in a folder.
///
/// # Panics
/// If there is none, or the recipe is no autoencoder's.
pub fn task_of(recipe: &Recipe, folder: &Path) -> Arc<dyn OpenTask> {
    let task = tasks().build(&recipe.task, &recipe.settings).expect("an autoencoder");
    task.open(&DataSource::at(folder)).expect("a whole data set")
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
