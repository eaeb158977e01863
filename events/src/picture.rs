//! The pictures of a run's epochs, as files: `NAME/epoch-NN.png` in the run folder.

use std::fmt;
use std::io;
use std::path::Path;

use thiserror::Error;

/// Pictures of one epoch that a task may make.
pub const PICTURES_MAX: usize = 8;
/// Bytes of a picture at most.
pub const PICTURE_BYTES_MAX: u64 = 1 << 24;

/// Bytes of a name at most.
const NAME_BYTES_MAX: usize = 32;
/// Other folders that a run folder has, which no picture of a task may be named after.
const RESERVED: [&str; 4] = ["checkpoints", "codes", "journal", "tensorboard"];
/// Folders in a run folder that are looked at; others than a task's may have names that a picture could have.
const FOLDERS_MAX: usize = 32 * PICTURES_MAX;

/// The name of a picture, which is its folder's too: lower-case letters, digits and dashes, thus never a path.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PictureName([u8; NAME_BYTES_MAX]); // zeros after the name

/// A picture of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PictureFile {
    /// Which of the epoch's pictures.
    pub name: PictureName,
    /// The epoch, counted from 1.
    pub epoch: u32,
}

/// A name that a picture cannot have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PictureNameError {
    /// It is no name.
    #[error(
        "expected a picture's name of 1 to {NAME_BYTES_MAX} lower-case letters, digits and dashes, found {found:?}; give \
         it another name"
    )]
    Malformed {
        /// The name, cut where it is long.
        found: String,
    },
    /// It is another folder's.
    #[error("expected a picture's name other than {}, which the run folder has already, found `{found}`; give it another name", RESERVED.join(", "))]
    Reserved {
        /// The name.
        found: String,
    },
}

impl PictureName {
    /// The code space, which the coordinator draws.
    pub const CODES: Self = Self::padded("codes");

    /// The name of a task's picture.
    ///
    /// # Errors
    /// If it is malformed, or names another folder of the run folder.
    pub fn new(name: &str) -> Result<Self, PictureNameError> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(is_plain) {
            return Err(PictureNameError::Malformed { found: name.chars().take(2 * NAME_BYTES_MAX).collect() });
        }
        if RESERVED.contains(&name) {
            return Err(PictureNameError::Reserved { found: name.to_owned() });
        }
        Ok(Self::padded(name))
    }

    /// The name of a folder in a run folder, if that may hold pictures: a task's, or the code space.
    pub fn of_folder(name: &str) -> Option<Self> {
        if name == Self::CODES.as_str() { Some(Self::CODES) } else { Self::new(name).ok() }
    }

    /// The folders of a run folder that may hold pictures, in order; of very many the first.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn all_in(run_folder: &Path) -> io::Result<Vec<Self>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(run_folder)? {
            let entry = entry?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                names.extend(entry.file_name().to_str().and_then(Self::of_folder));
            }
        }
        names.sort_unstable();
        names.truncate(FOLDERS_MAX);
        Ok(names)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|&byte| byte == 0).unwrap_or(NAME_BYTES_MAX);
        std::str::from_utf8(&self.0[..end]).expect("a name is ASCII")
    }

    /// The name as a heading for people: `Attention maps` for `attention-maps`.
    pub fn title(&self) -> String {
        if *self == Self::CODES {
            return "Code space".to_owned();
        }
        let mut title = self.as_str().replace('-', " ");
        title[..1].make_ascii_uppercase();
        title
    }

    const fn padded(name: &str) -> Self {
        let (name, mut bytes) = (name.as_bytes(), [0; NAME_BYTES_MAX]);
        let mut place = 0;
        while place < name.len() {
            bytes[place] = name[place];
            place += 1;
        }
        Self(bytes)
    }
}

impl fmt::Display for PictureName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.as_str())
    }
}

impl fmt::Debug for PictureName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), out)
    }
}

impl PictureFile {
    /// The file's name in its folder.
    pub fn file_name(self) -> String {
        format!("epoch-{:02}.png", self.epoch)
    }

    /// The path in the run folder, with slashes.
    pub fn path(self) -> String {
        format!("{}/{}", self.name, self.file_name())
    }

    /// The picture of a folder and a file in it; nothing if it is not written exactly as [`PictureFile::path`] writes it.
    pub fn of(folder: &str, file_name: &str) -> Option<Self> {
        let name = PictureName::of_folder(folder)?;
        let epoch = file_name.strip_prefix("epoch-")?.strip_suffix(".png")?.parse().ok()?;
        // A number can be written in several ways, and a picture has one name.
        Some(Self { name, epoch }).filter(|file| file.file_name() == file_name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> PictureName {
        PictureName::new(text).expect("a name")
    }

    #[test]
    fn malformed_and_reserved_names_are_refused_with_a_sentence() {
        let long = "a".repeat(33);
        for found in ["", ".", "..", "a/b", "../run", "Maps", "a b", "a_b", "a.png", "ä", "a\0", &long] {
            let error = PictureName::new(found).expect_err(found).to_string();
            assert!(error.starts_with("expected a picture's name of 1 to 32 lower-case letters"), "{error}");
            assert_eq!(PictureName::of_folder(found), None, "{found}");
        }
        for found in RESERVED {
            let error = PictureName::new(found).expect_err(found).to_string();
            assert!(error.contains("which the run folder has already") && error.contains(found), "{error}");
        }
        assert_eq!(PictureName::of_folder("codes"), Some(PictureName::CODES));
        assert_eq!(PictureName::of_folder("checkpoints"), None);
    }

    #[test]
    fn names_are_ordered_as_text_and_have_titles() {
        let mut names = ["b", "a-b", "a", "reconstructions", &"z".repeat(32)].map(name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0].as_str() < pair[1].as_str()), "{names:?}");
        assert_eq!(
            ["attention-maps", "reconstructions", "3d"].map(|text| name(text).title()),
            ["Attention maps", "Reconstructions", "3d"]
        );
        assert_eq!(PictureName::CODES.title(), "Code space");
    }

    #[test]
    fn picture_has_one_path() {
        let file = PictureFile { name: name("maps"), epoch: 7 };
        assert_eq!(file.path(), "maps/epoch-07.png");
        for epoch in [1, 7, 99, 100, 12_345, u32::MAX] {
            let file = PictureFile { epoch, ..file };
            assert_eq!(PictureFile::of("maps", &file.file_name()), Some(file));
        }
        let codes = PictureFile { name: PictureName::CODES, epoch: 7 };
        assert_eq!(PictureFile::of("codes", "epoch-07.png"), Some(codes));
        for file_name in ["epoch-7.png", "epoch-007.png", "epoch-+7.png", "epoch-07.svg", "07.png", "epoch-07.png/", ""]
        {
            assert_eq!(PictureFile::of("maps", file_name), None, "{file_name}");
        }
        for folder in ["..", "journal", "Maps", ""] {
            assert_eq!(PictureFile::of(folder, "epoch-07.png"), None, "{folder}");
        }
    }

    #[test]
    fn only_folders_that_may_hold_pictures_are_listed() {
        let folder = std::env::temp_dir().join(format!("telar-pictures-{}", std::process::id()));
        for inside in ["reconstructions", "codes", "checkpoints", "journal", "tensorboard", "Notes", "maps"] {
            std::fs::create_dir_all(folder.join(inside)).expect("a folder");
        }
        std::fs::write(folder.join("file"), "").expect("a file");
        let found = PictureName::all_in(&folder).expect("a folder");
        std::fs::remove_dir_all(&folder).expect("a folder");
        assert_eq!(found, [PictureName::CODES, name("maps"), name("reconstructions")]);
        assert!(PictureName::all_in(&folder).is_err());
    }
}
