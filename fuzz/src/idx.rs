//! Files of a data set: the first byte says which of the four it is, and whether it is compressed.

use std::path::Path;

use engine::data::Dataset;
use model::data::{DataChoice, DownloadBar, PLAIN_NAMES, open};

use super::files;

/// Images of each file, as few as there may be for training.
const N_IMAGES: [u32; 4] = [12, 12, 1, 1];
const N_PIXELS: usize = 28 * 28;

/// The bits of an input's first byte that say which file it is, of [`PLAIN_NAMES`].
const WHICH: u8 = 3;
/// The bit of it that says that the file is compressed.
pub const COMPRESSED: u8 = 4;

/// The file of this place among [`PLAIN_NAMES`] as it should be: black images of the class 0.
pub fn whole(which: usize) -> Vec<u8> {
    let n_images = N_IMAGES[which];
    if which.is_multiple_of(2) {
        let header = [0x0000_0803, n_images, 28, 28].map(u32::to_be_bytes).concat();
        [header, vec![0; n_images as usize * N_PIXELS]].concat()
    } else {
        let header = [0x0000_0801, n_images].map(u32::to_be_bytes).concat();
        [header, vec![0; n_images as usize]].concat()
    }
}

/// Whether a data set can be opened in which one file is this one.
///
/// # Panics
/// If it can be opened and is none.
pub fn take(input: &[u8]) -> bool {
    let Some((&kind, input)) = input.split_first() else { return false };
    let (which, is_compressed) = (usize::from(kind & WHICH), kind & COMPRESSED != 0);
    let folder = files::folder().join("data");
    std::fs::create_dir_all(&folder).expect("the folder can be written");
    for (place, name) in PLAIN_NAMES.iter().enumerate() {
        let path = folder.join(name);
        if place == which {
            let _ = std::fs::remove_file(&path);
        } else if !path.exists() {
            std::fs::write(path, whole(place)).expect("the folder can be written");
        }
    }
    let suffix = if is_compressed { ".gz" } else { "" };
    let Some(path) = files::write(input, &format!("data/{}{suffix}", PLAIN_NAMES[which])) else { return false };
    let is_whole = is_whole(&folder);
    std::fs::remove_file(path).expect("the folder can be written");
    is_whole
}

fn is_whole(folder: &Path) -> bool {
    let Ok(data) = open(&DataChoice::Folder(folder.to_owned()), &mut DownloadBar::default()) else { return false };
    assert_eq!(data.fingerprint().as_str().len(), 64);
    true
}
