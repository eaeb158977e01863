//! Files of weights.

use model::weights::read_any;

use super::files;

/// Whether a file holds the weights of a network. What was read is written as what is read from that.
///
/// # Panics
/// If this is not so.
pub fn take(input: &[u8]) -> bool {
    let Some(path) = files::write(input, "weights.safetensors") else { return false };
    let Ok((architecture, weights)) = read_any(&path) else { return false };
    assert!(weights.params.iter().all(|value| value.is_finite()));
    weights.write(&path).expect("the folder can be written");
    assert_eq!(read_any(&path).expect("what was written"), (architecture, weights));
    true
}
