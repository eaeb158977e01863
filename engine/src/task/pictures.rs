//! What a task shows people after each epoch: pictures, and the codes of some samples. What cannot be shown is refused here, so
//! that later code need not check.

use std::collections::BTreeSet;

use events::{PICTURE_BYTES_MAX, PICTURES_MAX, PictureName, PictureNameError};
use thiserror::Error;

/// Samples of [`Codes`] at most.
pub const CODES_MAX: usize = 2_000;
/// Values of each code at most: the time of a projection grows with their square.
pub const CODE_VALUES_MAX: usize = 1_024;

/// What a PNG begins with.
const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// A picture that a task makes after an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    name: String,
    png: Vec<u8>,
}

impl Picture {
    /// A picture (PNG) of this name: lower-case letters, digits and dashes, another one for each of a task's pictures, the same
    /// in each epoch. The run folder has it as `NAME/epoch-NN.png`; its title on the page is made from the name.
    pub fn new(name: impl Into<String>, png: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), png: png.into() }
    }
}

/// A picture that can be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPicture {
    /// Its name.
    pub name: PictureName,
    /// Its bytes.
    pub png: Vec<u8>,
}

/// A picture that is left out.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PictureError {
    /// Its name is none that a picture can have.
    #[error("{0}")]
    Name(#[from] PictureNameError),
    /// Another one has the name.
    #[error("expected one picture named `{0}` an epoch, found another; give it another name")]
    Twice(PictureName),
    /// There are too many.
    #[error("expected at most {PICTURES_MAX} pictures an epoch, found {found}; the first are shown")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// It is in another format.
    #[error("expected picture `{0}` as PNG, found bytes without a PNG's signature; encode it as PNG")]
    NotPng(PictureName),
    /// It is too large.
    #[error("expected at most {PICTURE_BYTES_MAX} bytes of picture `{name}`, found {found}; make it smaller")]
    TooLarge {
        /// Its name.
        name: PictureName,
        /// Its bytes.
        found: usize,
    },
}

/// The pictures that can be shown, and why the others cannot.
pub(super) fn checked(pictures: Vec<Picture>) -> (Vec<NamedPicture>, Vec<PictureError>) {
    let (mut shown, mut refused, mut names) = (Vec::new(), Vec::new(), BTreeSet::new());
    if pictures.len() > PICTURES_MAX {
        refused.push(PictureError::TooMany { found: pictures.len() });
    }
    for picture in pictures.into_iter().take(PICTURES_MAX) {
        match named(picture) {
            Ok(picture) if names.insert(picture.name) => shown.push(picture),
            Ok(picture) => refused.push(PictureError::Twice(picture.name)),
            Err(error) => refused.push(error),
        }
    }
    (shown, refused)
}

fn named(Picture { name, png }: Picture) -> Result<NamedPicture, PictureError> {
    let name = PictureName::new(&name)?;
    if !png.starts_with(PNG_SIGNATURE) {
        return Err(PictureError::NotPng(name));
    }
    if png.len() as u64 > PICTURE_BYTES_MAX {
        return Err(PictureError::TooLarge { name, found: png.len() });
    }
    Ok(NamedPicture { name, png })
}

/// Codes of samples: what a network makes of each on its way, such as the activations of its narrowest layer. The coordinator
/// draws them in the plane after each epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct Codes {
    values: Vec<f32>, // [codes, values of a code]
    n_values: usize,
    labels: Vec<u8>,
    label_names: Vec<String>,
}

/// Codes that cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CodesError {
    /// A code has no values, or too many.
    #[error("expected codes of 1 to {CODE_VALUES_MAX} values each, found {found}; choose some of the values")]
    Values {
        /// Values of a code.
        found: usize,
    },
    /// The last code is cut off.
    #[error("expected codes of {n_values} values each, found {found} values, which is no multiple")]
    Length {
        /// Values of a code.
        n_values: usize,
        /// Values of all.
        found: usize,
    },
    /// There are too many.
    #[error("expected codes of at most {CODES_MAX} samples, found {found}; choose some of them")]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// Some codes have no label.
    #[error("expected no labels or one for each of {n_codes} codes, found {found}")]
    Labels {
        /// How many codes there are.
        n_codes: usize,
        /// How many labels.
        found: usize,
    },
    /// A label has no name.
    #[error("expected labels below {n_names}, the number of their names, found {found}")]
    Unnamed {
        /// How many names there are.
        n_names: usize,
        /// The label.
        found: u8,
    },
}

impl Codes {
    /// Codes that lie one after the other, each of `n_values`: at most [`CODES_MAX`] of up to [`CODE_VALUES_MAX`] values. They
    /// should be of the same samples in each epoch.
    pub fn new(values: Vec<f32>, n_values: usize) -> Self {
        Self { values, n_values, labels: Vec::new(), label_names: Vec::new() }
    }

    /// With a label for each code, which its colour is chosen by, and the name of each label.
    #[must_use]
    pub fn labelled<N: Into<String>>(self, labels: impl Into<Vec<u8>>, names: impl IntoIterator<Item = N>) -> Self {
        Self { labels: labels.into(), label_names: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// All values, code after code.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Values of each code.
    pub fn n_values(&self) -> usize {
        self.n_values
    }

    /// The label of each code; empty if they have none.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// The name of each label.
    pub fn label_names(&self) -> &[String] {
        &self.label_names
    }

    /// These codes, if they are whole and within the bounds. Their values may still be anything.
    pub(super) fn checked(self) -> Result<Self, CodesError> {
        let Self { values, n_values, labels, label_names } = &self;
        if !(1..=CODE_VALUES_MAX).contains(n_values) {
            return Err(CodesError::Values { found: *n_values });
        }
        if !values.len().is_multiple_of(*n_values) {
            return Err(CodesError::Length { n_values: *n_values, found: values.len() });
        }
        let n_codes = values.len() / n_values;
        if n_codes > CODES_MAX {
            return Err(CodesError::TooMany { found: n_codes });
        }
        if !labels.is_empty() && labels.len() != n_codes {
            return Err(CodesError::Labels { n_codes, found: labels.len() });
        }
        match labels.iter().find(|&&label| usize::from(label) >= label_names.len()) {
            Some(&found) => Err(CodesError::Unnamed { n_names: label_names.len(), found }),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(name: &str) -> Picture {
        Picture::new(name, PNG_SIGNATURE)
    }

    #[test]
    fn pictures_that_cannot_be_shown_are_refused_one_by_one() {
        let large = [PNG_SIGNATURE, &vec![0; 1 << 24]].concat();
        let pictures = vec![
            png("maps"),
            png("../maps"),
            png("codes"),
            png("checkpoints"),
            png("maps"),
            Picture::new("gif", "GIF89a"),
            Picture::new("large", large),
            png("attention-2"),
        ];
        let (shown, refused) = checked(pictures);
        let names: Vec<&str> = shown.iter().map(|picture| picture.name.as_str()).collect();
        assert_eq!(names, ["maps", "attention-2"]);
        let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
        for (text, part) in refused.iter().zip([
            "lower-case letters, digits and dashes, found \"../maps\"",
            "which the run folder has already, found `codes`",
            "which the run folder has already, found `checkpoints`",
            "expected one picture named `maps` an epoch",
            "expected picture `gif` as PNG",
            "expected at most 16777216 bytes of picture `large`, found 16777224",
        ]) {
            assert!(text.contains(part), "`{text}` does not contain `{part}`");
        }
        assert_eq!(refused.len(), 6);
    }

    #[test]
    fn only_first_eight_pictures_are_shown() {
        let (shown, refused) = checked((0..9).map(|number| png(&format!("picture-{number}"))).collect());
        assert_eq!((shown.len(), refused), (8, vec![PictureError::TooMany { found: 9 }]));
        assert_eq!(shown[7].name.as_str(), "picture-7");
    }

    #[test]
    fn codes_out_of_bounds_are_refused_with_reason() {
        let refused = |codes: Codes| codes.checked().expect_err("unusable").to_string();
        assert!(refused(Codes::new(vec![], 0)).contains("1 to 1024 values each, found 0"));
        assert!(refused(Codes::new(vec![0.0; 1025], 1025)).contains("found 1025"));
        assert!(refused(Codes::new(vec![0.0; 7], 2)).contains("found 7 values, which is no multiple"));
        assert!(refused(Codes::new(vec![0.0; 2001], 1)).contains("at most 2000 samples, found 2001"));
        let three = || Codes::new(vec![0.0; 6], 2);
        assert!(refused(three().labelled([0, 1], ["a", "b"])).contains("one for each of 3 codes, found 2"));
        assert!(refused(three().labelled([0, 1, 2], ["a", "b"])).contains("expected labels below 2"));
        assert_eq!(three().checked(), Ok(three()));
        let labelled = three().labelled([0, 1, 1], ["a", "b"]);
        assert_eq!(labelled.clone().checked(), Ok(labelled));
    }
}
