//! A data set on its way to another machine: as four plain files, and found again by its fingerprint. Downloads nothing.

use super::idx::{images_header, labels_header};
use super::source::{local_choices, open_local};
use super::{DataChoice, DataError, DownloadBar, Garments, Labelled, PLAIN_NAMES, open, plain_cache_folder};
use engine::data::{DataFile, Dataset};

impl Garments {
    /// The data set as uncompressed IDX files, named as in [`PLAIN_NAMES`].
    pub fn plain_files(&self) -> [DataFile<'_>; 4] {
        let [train_images, train_labels, test_images, test_labels] = PLAIN_NAMES;
        let [train, test] = [&self.training_file, &self.test_file];
        [
            images_file(train_images, train),
            labels_file(train_labels, train),
            images_file(test_images, test),
            labels_file(test_labels, test),
        ]
    }
}

fn images_file<'a>(name: &'static str, file: &'a Labelled) -> DataFile<'a> {
    DataFile { name, header: images_header(n_images(file)), content: file.pixels.as_slice() }
}

fn labels_file<'a>(name: &'static str, file: &'a Labelled) -> DataFile<'a> {
    DataFile { name, header: labels_header(n_images(file)), content: &file.labels }
}

fn n_images(file: &Labelled) -> u32 {
    u32::try_from(file.labels.len()).expect("an IDX file counts images in u32")
}

/// The data set of this fingerprint, if the user's folder has a copy, which all processes share in memory.
pub fn open_cached(fingerprint: &str) -> Option<Garments> {
    first_of(fingerprint, plain_cache_folder(fingerprint).map(DataChoice::Folder).into_iter())
}

/// The data set of this fingerprint, if this machine has it: as an earlier copy, where `extra` says, in `$TELAR_DATA`,
/// `data/`, or the user's cache folder. What is damaged or another data set is passed over.
pub fn open_copy(fingerprint: &str, extra: Option<&DataChoice>) -> Option<Garments> {
    open_cached(fingerprint).or_else(|| first_of(fingerprint, extra.cloned().into_iter().chain(local_choices())))
}

/// This machine's own copy of the data set of this fingerprint, where the choice names a folder above all there.
///
/// # Errors
/// If a folder that the choice names holds no data set.
pub fn open_own(choice: &DataChoice, fingerprint: &str) -> Result<Option<Garments>, DataError> {
    let extra = match choice {
        DataChoice::Folder(folder) => {
            // A folder that is named explicitly is opened first, and warned about if it holds another data set.
            let data = open(choice, &mut DownloadBar::default())?;
            let found = data.fingerprint();
            if found.as_str() == fingerprint {
                // With a copy in the cache, memory holds the images once for all workers of this machine.
                let is_cached = plain_cache_folder(fingerprint).as_ref() == Some(folder);
                let cached = if is_cached { None } else { open_cached(fingerprint) };
                return Ok(Some(cached.unwrap_or(data)));
            }
            tracing::warn!(folder = %folder.display(), expected = fingerprint, %found, "--data is not the run's data set, and is not used");
            None
        }
        DataChoice::Synthetic => Some(choice),
        DataChoice::Auto | DataChoice::FashionMnist => None,
    };
    Ok(open_copy(fingerprint, extra))
}

fn first_of(fingerprint: &str, choices: impl Iterator<Item = DataChoice>) -> Option<Garments> {
    choices.filter_map(|choice| open_local(&choice).map(|opened| (choice, opened))).find_map(|(choice, opened)| {
        let data = opened.inspect_err(|error| tracing::debug!(%choice, %error, "no copy of the data set here")).ok()?;
        let found = data.fingerprint();
        if found.as_str() != fingerprint {
            tracing::debug!(%choice, expected = fingerprint, %found, "another data set than the one looked for");
            return None;
        }
        Some(data)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::data::write_files;

    use super::super::source::open_folder;
    use super::super::source::tests::write_small;
    use super::*;

    /// A data set, and where it lies.
    fn small() -> (tempfile::TempDir, Garments) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_small(folder.path());
        let data = open_folder(folder.path()).expect("a whole data set");
        (folder, data)
    }

    #[test]
    fn stored_dataset_copy_is_byte_identical() {
        let (folder, data) = small();
        let copy = folder.path().join("a/copy");
        write_files(&data.plain_files(), &copy).expect("the folder can be written");
        assert_eq!(open_folder(&copy).expect("a whole data set").fingerprint(), data.fingerprint());
        for name in PLAIN_NAMES {
            let read = |folder: &Path| std::fs::read(folder.join(name)).expect("a file");
            assert_eq!(read(&copy), read(folder.path()), "{name}");
        }
        // Onto itself.
        write_files(&data.plain_files(), folder.path()).expect("the folder can be written");
        assert_eq!(open_folder(folder.path()).expect("a whole data set").fingerprint(), data.fingerprint());
    }

    #[test]
    fn dataset_copy_is_found_only_by_fingerprint() {
        let (folder, data) = small();
        let choice = DataChoice::Folder(folder.path().to_owned());
        let fingerprint = data.fingerprint();
        let copy = open_copy(fingerprint.as_str(), Some(&choice)).expect("the copy");
        assert_eq!(copy.fingerprint(), fingerprint);
        let other = format!("{}{}", &fingerprint.as_str()[1..], &fingerprint.as_str()[..1]);
        assert!(open_copy(&other, Some(&choice)).is_none());
        assert!(open_copy("", Some(&choice)).is_none());
    }

    #[test]
    fn damaged_and_missing_dataset_copies_are_skipped() {
        let (folder, data) = small();
        let damaged = folder.path().join("damaged");
        write_files(&data.plain_files(), &damaged).expect("the folder can be written");
        std::fs::write(damaged.join(PLAIN_NAMES[1]), b"torn").expect("a file");
        let folders = [folder.path().join("nowhere"), damaged, folder.path().to_owned()].map(DataChoice::Folder);
        let find = |folders: &[DataChoice]| first_of(data.fingerprint().as_str(), folders.iter().cloned());
        assert!(find(&folders[..2]).is_none());
        assert_eq!(find(&folders).expect("the last one").name(), folder.path().display().to_string());
    }
}
