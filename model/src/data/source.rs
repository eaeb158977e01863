//! Where a data set is looked for, and what happens where it is not found.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use engine::data::{DataSource, Dataset};

use super::cache::{cache_folder, plain_cache};
use super::fetch::{FILES, FetchProgress, MIRRORS, fetch};
use super::idx::{Access, Pixels, read_images, read_labels};
use super::{DataError, Garments, Labelled, synthetic};
use crate::arch::N_PIXELS;
#[cfg(unix)]
use engine::files::PrivateFolder;

/// The environment variable that names the data set for `auto` and `fashion-mnist`.
const VARIABLE: &str = "TELAR_DATA";
/// The project's own folder for data, looked at from where the program is started.
const LOCAL_FOLDER: &str = "data";

/// [`Dataset::name`] of the garments that the program draws itself.
const GARMENTS: &str = "synthetic garments";

/// [`Dataset::fingerprint`] of Fashion-MNIST.
const FASHION_MNIST_FINGERPRINT: &str = "319dd7f74074e4b97c7a5f0093ca1678ee5378f839ac640d036896edfa00f870";

/// Which data set is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataChoice {
    /// Fashion-MNIST wherever it is found, else downloaded, else synthetic garments.
    Auto,
    /// Fashion-MNIST wherever it is found, else downloaded.
    FashionMnist,
    /// Garments that the program draws itself.
    Synthetic,
    /// The files in a folder.
    Folder(PathBuf),
}

impl DataChoice {
    /// What is meant where a run goes on that was begun on the data set of this [name](Garments::name): with `auto`, garments
    /// for garments, and never garments for anything else.
    #[must_use]
    pub fn as_in_run(&self, name: &str) -> Self {
        match self {
            Self::Auto if name == GARMENTS => Self::Synthetic,
            Self::Auto => Self::FashionMnist,
            choice => choice.clone(),
        }
    }
}

impl From<&DataSource> for DataChoice {
    fn from(source: &DataSource) -> Self {
        let Ok(choice) = source.as_str().parse();
        choice
    }
}

impl FromStr for DataChoice {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "" | "auto" => Self::Auto,
            "fashion-mnist" => Self::FashionMnist,
            "synthetic" => Self::Synthetic,
            folder => Self::Folder(PathBuf::from(folder)),
        })
    }
}

impl fmt::Display for DataChoice {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => out.write_str("auto"),
            Self::FashionMnist => out.write_str("fashion-mnist"),
            Self::Synthetic => out.write_str("synthetic"),
            Self::Folder(folder) => folder.display().fmt(out),
        }
    }
}

/// Opens the data set asked for; downloads it if that is allowed and needed.
///
/// # Errors
/// If files are missing, damaged or do not go together, or the download fails. `auto` falls back to synthetic garments
/// only where there is no network; a damaged file is always an error.
pub fn open(choice: &DataChoice, progress: &mut dyn FetchProgress) -> Result<Garments, DataError> {
    match choice {
        DataChoice::Folder(folder) => open_folder(folder),
        DataChoice::Synthetic => Ok(synthetic_garments()),
        DataChoice::FashionMnist => open_fashion_mnist(progress),
        DataChoice::Auto if is_variable_synthetic() => Ok(synthetic_garments()),
        DataChoice::Auto => open_fashion_mnist(progress).or_else(|error| match error {
            DataError::Fetch(error) if error.is_offline() => {
                tracing::warn!("NOT FASHION-MNIST: it is in neither ${VARIABLE}, {LOCAL_FOLDER}/ nor the cache");
                tracing::warn!(%error, "and there is no network to download it");
                tracing::warn!("going on with SYNTHETIC garments; no figure compares with the book's");
                Ok(synthetic_garments())
            }
            error => Err(error),
        }),
    }
}

fn open_fashion_mnist(progress: &mut dyn FetchProgress) -> Result<Garments, DataError> {
    // Who names a folder means it: nothing else is tried, and whatever it holds is taken.
    if let Some(folder) = folder_of_variable() {
        return open_folder(&folder);
    }
    let cache = cache_folder();
    let places = [Some(PathBuf::from(LOCAL_FOLDER)), cache.clone()];
    if let Some(folder) = places.into_iter().flatten().find(|folder| is_whole(folder)) {
        return check_is_fashion_mnist(open_folder(&folder)?);
    }
    let folder = cache.ok_or(DataError::NoCacheFolder)?;
    fetch(&folder, &FILES, &MIRRORS.map(str::to_owned), progress)?;
    open_folder(&folder)
}

/// The folder that the environment names, if it names one.
fn folder_of_variable() -> Option<PathBuf> {
    let is_folder = |value: &OsString| !["", "auto", "fashion-mnist", "synthetic"].iter().any(|word| value == word);
    std::env::var_os(VARIABLE).filter(is_folder).map(PathBuf::from)
}

/// Whether the environment names the synthetic garments.
fn is_variable_synthetic() -> bool {
    std::env::var_os(VARIABLE).is_some_and(|value| value == "synthetic")
}

/// All that [`open`] might open without a download, in its order; the garments only where they are asked for by name.
pub(super) fn local_choices() -> Vec<DataChoice> {
    let garments = is_variable_synthetic().then_some(DataChoice::Synthetic);
    let folders = [folder_of_variable(), Some(PathBuf::from(LOCAL_FOLDER)), cache_folder()];
    garments.into_iter().chain(folders.into_iter().flatten().map(DataChoice::Folder)).collect()
}

/// Opens a data set that is on this machine, and nothing else.
pub(super) fn open_local(choice: &DataChoice) -> Option<Result<Garments, DataError>> {
    match choice {
        DataChoice::Folder(folder) => Some(open_folder(folder)),
        DataChoice::Synthetic => Some(Ok(synthetic_garments())),
        DataChoice::Auto | DataChoice::FashionMnist => None, // looked for place by place
    }
}

/// What was found without being named may be another data set under the same names, such as MNIST's digits.
fn check_is_fashion_mnist(data: Garments) -> Result<Garments, DataError> {
    match data.fingerprint() {
        found if found.as_str() == FASHION_MNIST_FINGERPRINT => Ok(data),
        found => Err(DataError::OtherData { folder: data.name, found: found.to_string() }),
    }
}

/// Whether labels mean what they mean in Fashion-MNIST.
pub(super) fn has_fashion_labels(data: &Garments) -> bool {
    data.name == GARMENTS || data.fingerprint().as_str() == FASHION_MNIST_FINGERPRINT
}

fn synthetic_garments() -> Garments {
    const SEED: u64 = 0; // one data set, always the same
    let (n_training, n_test) = (60_000, 10_000); // as many as Fashion-MNIST has
    let (mut pixels, mut labels) = synthetic::garments(SEED, n_training + n_test);
    let test_file = Labelled {
        pixels: Pixels::from_vec(pixels.split_off(n_training * N_PIXELS)),
        labels: labels.split_off(n_training),
    };
    let training_file = Labelled { pixels: Pixels::from_vec(pixels), labels };
    Garments { name: GARMENTS.to_owned(), training_file, test_file }
}

/// The files' names where they are not compressed: images and labels for training, images and labels for the test.
pub const PLAIN_NAMES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// The same in pairs.
const NAMES: [[&str; 2]; 2] = [[PLAIN_NAMES[0], PLAIN_NAMES[1]], [PLAIN_NAMES[2], PLAIN_NAMES[3]]];

fn is_whole(folder: &Path) -> bool {
    PLAIN_NAMES.iter().all(|name| find(folder, name).is_some())
}

/// The file itself if it is there, else its compressed form.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    [name.to_owned(), format!("{name}.gz")].iter().map(|name| folder.join(name)).find(|path| path.is_file())
}

pub(super) fn open_folder(folder: &Path) -> Result<Garments, DataError> {
    let access = access(folder);
    let open = |names, n_images_min| open_pair(folder, names, n_images_min, access);
    let [training_file, test_file] = [open(NAMES[0], 12)?, open(NAMES[1], 1)?];
    Ok(Garments { name: folder.display().to_string(), training_file, test_file })
}

/// Only what this program alone writes to, whole file by whole file, is read where it lies.
fn access(folder: &Path) -> Access {
    let parent = folder.canonicalize().ok().and_then(|folder| folder.parent().map(Path::to_owned));
    let is_cached = parent.is_some() && parent == plain_cache().and_then(|cache| cache.canonicalize().ok());
    if is_cached || is_private(folder) { Access::Mapped } else { Access::Copied }
}

#[cfg(unix)]
fn is_private(folder: &Path) -> bool {
    PrivateFolder::holds(folder)
}

#[cfg(not(unix))]
fn is_private(_folder: &Path) -> bool {
    false
}

fn open_pair(
    folder: &Path,
    [images, labels]: [&'static str; 2],
    n_images_min: usize,
    access: Access,
) -> Result<Labelled, DataError> {
    let place = |name| find(folder, name).ok_or_else(|| DataError::Missing { name, folder: folder.to_owned() });
    let (images, labels) = (place(images)?, place(labels)?);
    let file = Labelled { pixels: read_images(&images, access)?, labels: read_labels(&labels)? };
    let n_images = file.pixels.as_slice().len() / N_PIXELS;
    let n_labels = file.labels.len();
    if n_images != n_labels {
        return Err(DataError::Counts { images, labels, n_images, n_labels });
    }
    if n_images < n_images_min {
        return Err(DataError::TooFew { path: images, n_images });
    }
    Ok(file)
}

#[cfg(test)]
pub(super) mod tests {
    use engine::data::Split;

    use super::*;

    /// The smallest data set there can be: one validation image.
    pub(in super::super) fn write_small(folder: &Path) {
        for (names, n_images) in NAMES.iter().zip([12_u32, 1]) {
            let pixels = vec![9; n_images as usize * N_PIXELS];
            let header = [0x803, n_images, 28, 28].map(u32::to_be_bytes).concat();
            std::fs::write(folder.join(names[0]), [header, pixels].concat()).expect("the folder can be written");
            let header = [0x801, n_images].map(u32::to_be_bytes).concat();
            let labels = vec![4; n_images as usize];
            std::fs::write(folder.join(names[1]), [header, labels].concat()).expect("the folder can be written");
        }
    }

    #[test]
    fn plain_files_are_split_and_read_by_index() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write_small(folder.path());
        let data = open_folder(folder.path()).expect("a whole data set");
        let counts = [Split::Train, Split::Valid, Split::Test].map(|split| data.len(split));
        assert_eq!(counts, [11, 1, 1]);
        let images = data.images(Split::Train, &[3, 0]);
        assert_eq!(images.shape, [2, 28, 28]);
        assert!(images.values.iter().all(|&value| (value - 9.0 / 255.0).abs() < 1e-9));
        assert_eq!(data.labels(Split::Test), [4]);
    }

    /// The goal: only files that no other user writes to are memory-mapped, since a truncation would SIGBUS this process.
    #[cfg(target_os = "linux")]
    #[test]
    fn only_files_in_private_folder_are_memory_mapped() {
        let maps = || std::fs::read_to_string("/proc/self/maps").expect("Linux tells what is mapped");
        let named = tempfile::tempdir().expect("a temporary folder");
        write_small(named.path());
        let data = open_folder(named.path()).expect("a whole data set");
        let fingerprint = data.fingerprint();
        assert!(!maps().contains(&named.path().display().to_string()));
        for name in PLAIN_NAMES {
            std::fs::File::create(named.path().join(name)).expect("a file that is empty now");
        }
        assert_eq!(data.fingerprint(), fingerprint);

        let private = PrivateFolder::create(&std::env::temp_dir(), "telar-test-").expect("a temporary folder");
        let folder = private.path().join("data");
        std::fs::create_dir(&folder).expect("a folder");
        write_small(&folder);
        let data = open_folder(&folder).expect("a whole data set");
        assert!(maps().contains(&folder.display().to_string()));
        drop(private);
        assert_eq!(data.fingerprint(), fingerprint);
    }

    #[test]
    fn inconsistent_dataset_is_refused_with_reason() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let check = |part: &str| {
            let text = open_folder(folder.path()).expect_err("something is wrong").to_string();
            assert!(text.contains(part), "`{text}` does not say `{part}`");
        };
        check("expected `train-images-idx3-ubyte` or `train-images-idx3-ubyte.gz`");
        write_small(folder.path());
        std::fs::copy(folder.path().join(NAMES[1][1]), folder.path().join(NAMES[0][1])).expect("a copy");
        check("found 12 images");
        std::fs::copy(folder.path().join(NAMES[1][0]), folder.path().join(NAMES[0][0])).expect("a copy");
        check("expected at least 12 images");
    }

    #[test]
    fn auto_dataset_choice_is_kept_on_resume() {
        let folder = DataChoice::Folder(PathBuf::from("elsewhere"));
        let check = |choice: &DataChoice, name: &str, expected| assert_eq!(choice.as_in_run(name), expected);
        check(&DataChoice::Auto, &synthetic_garments().name(), DataChoice::Synthetic);
        check(&DataChoice::Auto, "/cache/fashion-mnist", DataChoice::FashionMnist);
        check(&DataChoice::FashionMnist, GARMENTS, DataChoice::FashionMnist);
        check(&folder, GARMENTS, folder.clone());
    }

    #[test]
    fn synthetic_dataset_has_fashion_mnist_split_sizes() {
        let data = synthetic_garments();
        let counts = [Split::Train, Split::Valid, Split::Test].map(|split| data.len(split));
        assert_eq!(counts, [55_000, 5_000, 10_000]);
    }
}
