//! Numbers as they lie in a message's bytes, both ways.

use prost::bytes::Bytes;

use crate::v1::Encoding;

/// Bytes that do not hold the numbers they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValuesError {
    /// Another number of values.
    #[error("expected {expected} bytes, found {found}")]
    Length {
        /// Bytes of all values.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("expected finite values, found one that is not, at position {position}")]
    NotFinite {
        /// Which value, counted from 0.
        position: usize,
    },
}

impl ValuesError {
    /// The same of values that lie after so many others.
    pub(crate) fn after(self, n_before: usize) -> Self {
        match self {
            Self::NotFinite { position } => Self::NotFinite { position: n_before + position },
            Self::Length { .. } => self,
        }
    }
}

impl Encoding {
    /// Bytes of one value.
    ///
    /// # Panics
    /// If the encoding is unspecified.
    pub fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
            Self::Unspecified => panic!("an encoding is chosen before numbers are written"),
        }
    }
}

/// Values that are read and looked at together: few enough to stay in a first cache.
pub(crate) const BLOCK_VALUES: usize = 1024;

const _: () = assert!(cfg!(target_endian = "little"), "an f32 lies in memory as it travels");

/// Values as bytes. In bf16 each is rounded to nearest, ties to even.
///
/// # Panics
/// If the encoding is unspecified.
pub fn encode(encoding: Encoding, values: &[f32]) -> Bytes {
    if encoding == Encoding::F32 {
        return Bytes::copy_from_slice(bytemuck::cast_slice(values));
    }
    let mut bytes = vec![0_u8; encoding.value_bytes() * values.len()];
    for (place, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
        *place = half::bf16::from_f32(*value).to_le_bytes();
    }
    bytes.into()
}

/// The same, without a copy where values lie in memory as they travel: they are dropped with the last handle to the bytes.
///
/// # Panics
/// If the encoding is unspecified.
pub fn encode_owned(encoding: Encoding, values: impl AsRef<[f32]> + Send + 'static) -> Bytes {
    match encoding {
        Encoding::F32 => Bytes::from_owner(AsBytes(values)),
        Encoding::Bf16 | Encoding::Unspecified => encode(encoding, values.as_ref()),
    }
}

struct AsBytes<V>(V);

impl<V: AsRef<[f32]>> AsRef<[u8]> for AsBytes<V> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(self.0.as_ref())
    }
}

/// Reads as many values as `values` has places, each finite; gives the sum of their squares.
///
/// # Errors
/// If there are more bytes or fewer, or a value is not finite; what is in `values` then is of no use.
///
/// # Panics
/// If the encoding is unspecified.
pub fn decode(encoding: Encoding, bytes: &[u8], values: &mut [f32]) -> Result<f64, ValuesError> {
    let blocks = blocks(encoding, bytes, values.len())?;
    let mut square_sum = 0.0;
    for ((start, bytes), values) in blocks.zip(values.chunks_mut(BLOCK_VALUES)) {
        square_sum += read(encoding, bytes, values).map_err(|error| error.after(start))?;
    }
    Ok(square_sum)
}

/// Reads so many values, block by block: `take` is given the position of the first value of each, and the values, all finite.
///
/// # Errors
/// If there are more bytes or fewer, or a value is not finite. Then some blocks may have been given that are of no use.
///
/// # Panics
/// If the encoding is unspecified.
pub fn decode_blocks(
    encoding: Encoding,
    bytes: &[u8],
    n_values: usize,
    mut take: impl FnMut(usize, &[f32]),
) -> Result<(), ValuesError> {
    let mut block = [0.0; BLOCK_VALUES];
    for (start, bytes) in blocks(encoding, bytes, n_values)? {
        let block = &mut block[..BLOCK_VALUES.min(n_values - start)];
        read(encoding, bytes, block).map_err(|error| error.after(start))?;
        take(start, block);
    }
    Ok(())
}

/// The bytes of each block, with the position of its first value.
fn blocks(
    encoding: Encoding,
    bytes: &[u8],
    n_values: usize,
) -> Result<impl Iterator<Item = (usize, &[u8])>, ValuesError> {
    let expected = encoding.value_bytes() * n_values;
    if bytes.len() != expected {
        return Err(ValuesError::Length { expected, found: bytes.len() });
    }
    Ok((0..).step_by(BLOCK_VALUES).zip(bytes.chunks(BLOCK_VALUES * encoding.value_bytes())))
}

fn read(encoding: Encoding, bytes: &[u8], values: &mut [f32]) -> Result<f64, ValuesError> {
    if encoding == Encoding::F32 {
        for (value, place) in values.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *value = f32::from_le_bytes(*place);
        }
    } else {
        for (value, place) in values.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *value = half::bf16::from_le_bytes(*place).to_f32();
        }
    }
    square_sum(values)
}

/// Squares that are added side by side, so that a compiler can make vector instructions of it.
const N_LANES: usize = 16;

/// The sum of a block's squares. One pass checks the values too: squares and sums of NaN or infinity are not finite either.
pub(crate) fn square_sum(block: &[f32]) -> Result<f64, ValuesError> {
    let mut lanes = [0.0_f32; N_LANES];
    let (chunks, rest) = block.as_chunks::<N_LANES>();
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane += value * value;
        }
    }
    let sum = lanes.iter().sum::<f32>() + rest.iter().map(|value| value * value).sum::<f32>();
    if sum.is_finite() {
        return Ok(sum.into());
    }
    match block.iter().position(|value| !value.is_finite()) {
        Some(position) => Err(ValuesError::NotFinite { position }),
        // Finite values whose squares are too large for f32.
        None => Ok(block.iter().map(|&value| f64::from(value).powi(2)).sum()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bf16_encoding_rounds_to_nearest_even() {
        let check = |value: f32, expected: f32| {
            let mut found = [0.0];
            decode(Encoding::Bf16, &encode(Encoding::Bf16, &[value]), &mut found).expect("a finite value");
            assert_eq!(found[0].to_bits(), expected.to_bits(), "{value}");
        };
        check(1.0, 1.0);
        check(f32::from_bits(0x3F80_8000), 1.0); // half way: to the even one
        check(f32::from_bits(0x3F81_8000), f32::from_bits(0x3F82_0000));
        check(f32::from_bits(0x3F80_8001), f32::from_bits(0x3F81_0000));
        check(-0.0, -0.0);
    }

    #[test]
    fn square_sum_is_correct_beyond_f32_range() {
        let check = |values: &[f32]| {
            let expected: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
            let found = decode(Encoding::F32, &encode(Encoding::F32, values), &mut vec![0.0; values.len()]);
            let found = found.expect("finite values");
            assert!((found - expected).abs() <= 1e-6 * expected, "expected {expected}, found {found}");
        };
        check(&[]);
        check(&[3.0, -4.0]);
        check(&[0.25; 2_500]);
        check(&[[1.0; 1_024].as_slice(), &[-3e38]].concat());
        check(&[f32::MAX; 40]);
    }

    #[test]
    fn wrong_byte_length_is_refused() {
        let mut values = [0.0; 3];
        let check = |bytes: usize, values: &mut [f32]| {
            let error = decode(Encoding::F32, &vec![0; bytes], values);
            assert_eq!(error, Err(ValuesError::Length { expected: 12, found: bytes }));
        };
        check(11, &mut values);
        check(13, &mut values);
        check(0, &mut values);
    }

    proptest! {
        #[test]
        fn finite_f32_round_trip_is_bit_exact(bits in prop::collection::vec(any::<u32>(), 0..3_000)) {
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            let bytes = encode(Encoding::F32, &values);
            let mut found = vec![0.0; values.len()];
            let decoded = decode(Encoding::F32, &bytes, &mut found).map(drop);
            let mut in_blocks = vec![0.0; values.len()];
            let taken = decode_blocks(Encoding::F32, &bytes, values.len(), |start, block| {
                in_blocks[start..start + block.len()].copy_from_slice(block);
            });
            prop_assert_eq!(taken, decoded);
            prop_assert_eq!(encode_owned(Encoding::F32, values.clone()), bytes);
            match values.iter().position(|value| !value.is_finite()) {
                Some(position) => prop_assert_eq!(decoded, Err(ValuesError::NotFinite { position })),
                None => for found in [found, in_blocks] {
                    prop_assert!(found.iter().zip(&bits).all(|(value, bits)| value.to_bits() == *bits));
                },
            }
        }

        #[test]
        fn length_error_iff_wrong_length(bytes in prop::collection::vec(any::<u8>(), 0..64), n_values in 0_usize..32) {
            for encoding in [Encoding::F32, Encoding::Bf16] {
                let decoded = decode(encoding, &bytes, &mut vec![0.0; n_values]);
                let has_length = bytes.len() == n_values * encoding.value_bytes();
                let is_refused = matches!(decoded, Err(ValuesError::Length { .. }));
                prop_assert_ne!(has_length, is_refused);
            }
        }
    }
}
