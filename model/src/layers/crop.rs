//! How a transposed convolution is cropped: for the layer, and for its fused operation.

/// What of a transposed convolution's full output of 2n + 1 rows and columns is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crop {
    /// All of it (Keras' *valid*): n → 2n + 1.
    Valid,
    /// The first 2n rows and columns (Keras' *same*): n → 2n. It is not the same as a padding of 1 with an output
    /// padding of 1, which keeps the last 2n.
    Same,
}
