//! The layers of the three networks in Keras' meaning, where Burn has none of it: parameters in the published layout,
//! one bias per LSTM, the cropped transposed convolution, noise on the input. Each knows its initialisers.

mod conv;
mod crop;
mod dense;
#[cfg(feature = "flex")]
pub mod fused;
mod initializer;
mod lstm;
mod noise;
mod selu;

pub use conv::{Conv, ConvTranspose, channel_axis};
pub use crop::Crop;
pub use dense::Dense;
pub use initializer::Initializer;
pub use lstm::{Lstm, Sequence};
pub use noise::{Noise, NoiseError};
pub use selu::selu;
