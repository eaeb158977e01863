//! Reconstructions as a picture: originals over reconstructions, as in the book; noisy inputs between them, if there are
//! any. Dark on white.

use std::io::Cursor;

use image::{GrayImage, ImageFormat, Luma};

use engine::data::{Dataset, Split};
use engine::random::Stream;

use crate::arch::N_PIXELS;
use crate::data::Garments;
use crate::layers::Noise;
use crate::trained::Trained;

/// Pixels of the picture for each pixel of an image, and white between images.
const SCALE: u32 = 4;
const GAP: u32 = 8;
const SIDE: u32 = 28;

/// Originals, noisy inputs if there is noise, and reconstructions of a split's first images, as PNG.
pub fn split_picture(
    trained: &Trained,
    data: &Garments,
    split: Split,
    n_images: u32,
    noise: Noise,
    seed: u64,
) -> Vec<u8> {
    let n_images = n_images.min(u32::try_from(data.len(split)).unwrap_or(u32::MAX));
    let places: Vec<u32> = (0..n_images).collect();
    let originals = data.images(split, &places);
    let mut inputs = originals.clone();
    noise.apply(&mut inputs.values, seed, Stream::Picture);
    let reconstructions = trained.reconstruct(inputs.clone());
    let mut rows: Vec<&[f32]> = vec![&originals.values];
    if noise != Noise::None {
        rows.push(&inputs.values);
    }
    rows.push(&reconstructions);
    reconstruction_picture(&rows)
}

/// A PNG of rows of images. Each row holds images [n, 28, 28] with values from 0 (shown white) to 1 (shown black); values
/// beyond are shown as the nearest of these.
///
/// # Panics
/// If there is no row, or the rows differ in length or hold a part of an image.
pub fn reconstruction_picture(rows: &[&[f32]]) -> Vec<u8> {
    let n_values = rows.first().expect("a picture has a row").len();
    assert!(n_values.is_multiple_of(N_PIXELS), "a row holds whole images");
    assert!(rows.iter().all(|row| row.len() == n_values), "rows are of one length");
    let count = |n: usize| u32::try_from(n).expect("a picture has fewer than 2^32 images");
    let extent = |n: usize| GAP + count(n) * (SCALE * SIDE + GAP);
    let mut picture = GrayImage::from_pixel(extent(n_values / N_PIXELS), extent(rows.len()), Luma([255]));
    for (row, images) in (0..).zip(rows) {
        for (column, image) in (0..).zip(images.chunks_exact(N_PIXELS)) {
            let place = |position: u32| GAP + position * (SCALE * SIDE + GAP);
            draw(&mut picture, image, place(column), place(row));
        }
    }
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).expect("a grey picture in memory can be written as PNG");
    png.into_inner()
}

fn draw(picture: &mut GrayImage, image: &[f32], left: u32, top: u32) {
    for (place, &value) in (0..).zip(image) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is from 0 to 255")]
        let grey = (255.0 * (1.0 - value.clamp(0.0, 1.0))).round() as u8;
        let (x, y) = (left + SCALE * (place % SIDE), top + SCALE * (place / SIDE));
        for dy in 0..SCALE {
            for dx in 0..SCALE {
                picture.put_pixel(x + dx, y + dy, Luma([grey]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picture_rows_are_stacked_vertically() {
        let (white, black) = (vec![0.0; 2 * N_PIXELS], [vec![0.0; N_PIXELS], vec![2.0; N_PIXELS]].concat());
        let png = reconstruction_picture(&[&white, &black]);
        let picture = image::load_from_memory_with_format(&png, ImageFormat::Png).expect("a PNG").into_luma8();
        assert_eq!(picture.dimensions(), (248, 248)); // 8 + 2 * (4 * 28 + 8)
        let greys = [(9, 9), (129, 9), (9, 129), (129, 129)].map(|(x, y)| picture.get_pixel(x, y).0[0]);
        assert_eq!(greys, [255, 255, 255, 0]);
    }
}
