//! The user's folders for data sets: for downloads, and for copies by their fingerprints.

use std::path::PathBuf;

/// Digits of a fingerprint: blake3 in hexadecimal.
const FINGERPRINT_DIGITS: usize = 64;
/// Digits of it that a folder's name has.
const FOLDER_DIGITS: usize = 16;

/// The user's folder for the downloaded data set, if the system has such folders.
pub fn cache_folder() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("telar").join("fashion-mnist"))
}

/// The user's folder for a copy of the data set with this [fingerprint](engine::data::Dataset::fingerprint). None if the system has no such
/// folders, or what is given is no fingerprint: it may come from another machine, and becomes part of a path.
pub fn plain_cache_folder(fingerprint: &str) -> Option<PathBuf> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let is_fingerprint = fingerprint.len() == FINGERPRINT_DIGITS && fingerprint.bytes().all(is_digit);
    let name = is_fingerprint.then(|| &fingerprint[..FOLDER_DIGITS])?;
    plain_cache().map(|folder| folder.join(name))
}

/// The user's folder for all such copies. Only this program writes there, and only by renaming what is whole.
pub(super) fn plain_cache() -> Option<PathBuf> {
    dirs::cache_dir().map(|folder| folder.join("telar").join("datasets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_fingerprint_has_no_cache_folder() {
        let fingerprint = "0123456789abcdef".repeat(4);
        if let Some(folder) = plain_cache_folder(&fingerprint) {
            assert!(folder.ends_with("telar/datasets/0123456789abcdef"), "{}", folder.display());
        }
        for other in ["", "../../etc", &"../".repeat(30), &"é".repeat(32), &fingerprint.to_uppercase()] {
            assert_eq!(plain_cache_folder(other), None, "{other}");
        }
    }
}
