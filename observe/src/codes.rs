//! Codes of samples as a picture: projected to two dimensions by PCA or t-SNE, and drawn as a scatter plot coloured by label.
//! Knows nothing of networks: a code is a row of values, wherever it comes from.

mod pca;
mod scatter;
mod tsne;

pub use pca::{Pca, pca};
pub use scatter::{HEIGHT, Labels, Scatter, WIDTH};
pub use tsne::tsne;

/// Fewest codes that a picture is made of.
pub const CODES_MIN: usize = 3;

/// Codes of several samples, all of the same length and finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Codes<'a> {
    values: &'a [f32], // [codes, values of a code]
    n_values: usize,
}

impl<'a> Codes<'a> {
    /// Codes that lie one after the other: `values` is [codes, `n_values`], the last axis closest together.
    ///
    /// # Errors
    /// If there are fewer than [`CODES_MIN`] codes, the last one is cut off, or a value is not finite.
    ///
    /// # Panics
    /// If `n_values` is 0.
    pub fn new(values: &'a [f32], n_values: usize) -> Result<Self, CodesError> {
        assert!(n_values > 0, "a code has at least one value");
        if !values.len().is_multiple_of(n_values) {
            return Err(CodesError::Length { n_values, found: values.len() });
        }
        let codes = Self { values, n_values };
        if codes.len() < CODES_MIN {
            return Err(CodesError::TooFew { expected: CODES_MIN, found: codes.len() });
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(place) => Err(CodesError::NotFinite { code: place / n_values, found: values[place] }),
            None => Ok(codes),
        }
    }

    /// Number of codes, at least [`CODES_MIN`].
    #[expect(clippy::len_without_is_empty, reason = "there are always at least three")]
    pub fn len(&self) -> usize {
        self.values.len() / self.n_values
    }

    /// Values of each code.
    pub fn n_values(&self) -> usize {
        self.n_values
    }

    /// Each code in turn.
    pub(crate) fn rows(&self) -> std::slice::ChunksExact<'a, f32> {
        self.values.chunks_exact(self.n_values)
    }
}

/// How codes become points.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Method {
    /// The two directions in which the codes vary most: see [`pca`].
    Pca,
    /// Neighbours among the codes stay neighbours: see [`tsne`].
    Tsne {
        /// About how many neighbours of a code count.
        perplexity: f64,
    },
}

/// Codes as points in the plane.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeMap {
    /// One point for each code, in order.
    pub points: Vec<[f64; 2]>,
    /// Labels of the x and the y axis.
    pub axes: [String; 2],
    /// How the points were made, in a phrase, such as `PCA, 2 components hold 38 % of the variance`.
    pub description: String,
    /// Whether an axis means the same the other way around.
    is_turnable: bool,
}

impl CodeMap {
    /// Projects codes to the plane. Codes of one value need no projection: x is the value, and y only keeps points apart.
    ///
    /// # Errors
    /// As [`tsne`] if that is the method.
    pub fn new(codes: Codes, method: Method) -> Result<Self, CodesError> {
        if codes.n_values == 1 {
            return Ok(Self {
                points: codes.values.iter().enumerate().map(|(i, &value)| [value.into(), spread(i)[0]]).collect(),
                axes: ["value of the code".to_owned(), "spread to keep points apart".to_owned()],
                description: "drawn as they are".to_owned(),
                is_turnable: false,
            });
        }
        match method {
            Method::Pca => {
                let Pca { points, variance_shares } = pca(codes);
                let percent = |share: f64| format!("{:.0} % of the variance", 100.0 * share);
                let axis = |i: usize| format!("component {} ({})", i + 1, percent(variance_shares[i]));
                let both = percent(variance_shares.iter().sum());
                let description = format!("PCA, 2 components hold {both}");
                Ok(Self { points, axes: [axis(0), axis(1)], description, is_turnable: true })
            }
            Method::Tsne { perplexity } => Ok(Self {
                points: tsne(codes, perplexity)?,
                axes: ["t-SNE 1".to_owned(), "t-SNE 2".to_owned()],
                description: format!("t-SNE, perplexity {perplexity}"),
                is_turnable: true,
            }),
        }
    }
}

impl CodeMap {
    /// Turns axes around where that brings the points closer to those of an earlier map of the same samples: which way a principal
    /// component points is arbitrary, and may change from one epoch to the next. Maps of other samples, and codes that are drawn
    /// as they are, stay as they are.
    pub fn align(&mut self, earlier: &Self) {
        if !self.is_turnable || self.points.len() != earlier.points.len() {
            return;
        }
        for axis in 0..2 {
            let product: f64 = self.points.iter().zip(&earlier.points).map(|(new, old)| new[axis] * old[axis]).sum();
            if product < 0.0 {
                self.points.iter_mut().for_each(|point| point[axis] = -point[axis]);
            }
        }
    }
}

/// Codes that no picture can be made of.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CodesError {
    /// The last code is cut off.
    #[error("expected codes of {n_values} values each, found {found} values, which is no multiple")]
    Length {
        /// Values of each code.
        n_values: usize,
        /// Values of all.
        found: usize,
    },
    /// Too few for a picture.
    #[error("expected at least {expected} codes, found {found}")]
    TooFew {
        /// The fewest that will do.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("expected finite codes, found {found} in code {code}")]
    NotFinite {
        /// The first code with such a value, counted from 0.
        code: usize,
        /// The value.
        found: f32,
    },
    /// A perplexity that t-SNE cannot reach with so few codes.
    #[error("expected a perplexity from 1 to {max:.1}, a third of the other codes, for {n_codes} codes, found {found}")]
    Perplexity {
        /// How many codes there are.
        n_codes: usize,
        /// The highest that will do.
        max: f64,
        /// The perplexity asked for.
        found: f64,
    },
    /// The system gives no thread.
    #[error("expected a thread for t-SNE, found none: the system's limit is reached")]
    NoThread,
}

/// Evenly spread places in a square of side 1 around the origin, the same for the same `i`. Successive ones lie far apart:
/// the R2 sequence of Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences" (2018).
fn spread(i: usize) -> [f64; 2] {
    const PLASTIC: f64 = 1.324_717_957_244_746; // the real root of x³ = x + 1
    let i = as_f64(i);
    [1.0 / PLASTIC, 1.0 / (PLASTIC * PLASTIC)].map(|step| (i * step).fract() - 0.5)
}

#[expect(clippy::cast_precision_loss, reason = "counts in memory are far below 2^53")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests;
