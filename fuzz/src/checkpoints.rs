//! Checkpoints.

use coordinator::checkpoint::Checkpoint;

use super::files;

/// Whether a file is a checkpoint. What was read is written as what is read from that.
///
/// # Panics
/// If this is not so.
pub fn take(input: &[u8]) -> bool {
    let Some(path) = files::write(input, "checkpoint.safetensors") else { return false };
    let Ok(checkpoint) = Checkpoint::read(&path) else { return false };
    let content = checkpoint.to_parts().slices().concat();
    std::fs::write(&path, content).expect("the folder can be written");
    let again = Checkpoint::read(&path).expect("what was written");
    // NaN is no equal of itself.
    assert_eq!(format!("{again:?}"), format!("{checkpoint:?}"));
    true
}
