//! The codes of a split's first images, with their labels.

use engine::data::{Dataset, Split};
use engine::task::Codes;

use crate::data::Garments;
use crate::trained::Trained;

/// Codes of at most `n_images` images of a split, the first ones.
pub fn split_codes(trained: &Trained, data: &Garments, split: Split, n_images: usize) -> Codes {
    let n_images = data.len(split).min(n_images);
    let values = trained.encode_first(data, split, n_images);
    let n_values = values.len() / n_images; // every split has an image
    Codes::new(values, n_values).labelled(&data.labels(split)[..n_images], data.label_names())
}
