//! Files of weights of any of the networks, identified by their tensors.

use std::path::Path;

use engine::weights::{Weights, WeightsError, WeightsFile};

use crate::arch::Architecture;
use crate::task::book_task;

/// Reads a file of any of the networks. The tensors identify the network, so that a file written by another program, without
/// metadata, is as good.
///
/// # Errors
/// If the file is not there, damaged, of no network, or holds other shapes, other types, or values that are not finite.
pub fn read_any(path: &Path) -> Result<(Architecture, Weights), WeightsError> {
    recognized(&WeightsFile::read(path)?)
}

/// The weights in a file, of the network that has most names in common with it.
///
/// # Errors
/// As [`read_any`].
pub fn recognized(file: &WeightsFile) -> Result<(Architecture, Weights), WeightsError> {
    let names = file.names();
    let candidates = Architecture::ALL.map(|architecture| {
        let layout = book_task(architecture).spec().layout.clone();
        let n_common = layout.entries().iter().filter(|entry| names.contains(&entry.name)).count();
        (n_common, architecture, layout)
    });
    let nearest = candidates.into_iter().max_by_key(|(n_common, ..)| *n_common).filter(|(n_common, ..)| *n_common > 0);
    let (_, architecture, layout) = nearest.ok_or_else(|| WeightsError::UnknownNetwork {
        path: file.path().to_owned(),
        expected: "conv, recurrent or denoising".to_owned(),
        found: if names.is_empty() { "no tensor".to_owned() } else { names[..names.len().min(5)].join(", ") },
    })?;
    let weights = file.weights(architecture.name(), &layout)?;
    match file.task() {
        Some(metadata) if metadata != architecture.name() => Err(WeightsError::Contradiction {
            path: file.path().to_owned(),
            tensors: architecture.to_string(),
            metadata: metadata.to_owned(),
        }),
        Some(_) | None => Ok((architecture, weights)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::task::initial_params;

    fn weights(architecture: Architecture) -> Weights {
        Weights::new(book_task(architecture).spec(), initial_params(architecture, 1))
    }

    fn read(bytes: &[u8]) -> Result<Weights, String> {
        let file = WeightsFile::from_bytes(Path::new("w.safetensors"), bytes.to_vec());
        file.and_then(|file| recognized(&file)).map(|(_, weights)| weights).map_err(|error| error.to_string())
    }

    #[test]
    fn weights_and_network_name_round_trip() {
        for architecture in Architecture::ALL {
            let written = weights(architecture);
            assert_eq!(read(&written.to_bytes()), Ok(written));
        }
    }

    fn check(bytes: &[u8], part: &str) {
        let text = read(bytes).expect_err(part);
        assert!(text.contains(part), "`{text}` does not say `{part}`");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_refused_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(read(&bytes).is_err());
        }

        #[test]
        fn changed_byte_is_detected(place in 0_usize..190_000, flipped in 1_u8..) {
            let written = weights(Architecture::Conv);
            let mut bytes = written.to_bytes();
            let place = place % bytes.len();
            bytes[place] ^= flipped;
            // A change in unused metadata leaves the weights unchanged.
            if let Ok(found) = read(&bytes) {
                // One that hides the key of the settings takes them away, and changes none.
                let settings = found.settings.clone().or(written.settings.clone());
                prop_assert_eq!(Weights { settings, ..found }, written);
            }
        }
    }

    #[test]
    fn damaged_file_is_refused_with_reason() {
        let whole = weights(Architecture::Denoising).to_bytes();
        check(b"no weights at all", "expected a safetensors file");
        check(&whole[..whole.len() - 1], "expected a safetensors file");
        check(&[&whole[..], b"x"].concat(), "expected a safetensors file");
        let mut changed = whole.clone();
        let last = changed.len() - 3;
        changed[last] ^= 1;
        check(&changed, "the file is damaged");
    }

    #[test]
    fn non_finite_value_is_named_in_error() {
        let mut broken = weights(Architecture::Denoising);
        broken.params[78_400 + 3] = f32::NAN; // 100 * 784 weights before the bias
        check(&broken.to_bytes(), "found NaN in encoder.dense1.bias, value 3");
    }

    #[test]
    fn tensors_that_contradict_metadata_are_refused() {
        let whole = weights(Architecture::Recurrent).to_bytes();
        let named: &[u8] = b"\"task\":\"recurrent\"";
        let place = whole.windows(named.len()).position(|bytes| bytes == named).expect("the metadata names the task");
        let mut changed = whole;
        changed[place..place + named.len()].copy_from_slice(b"\"task\":\"denoising\"");
        check(&changed, "found recurrent by its tensors and `denoising` by its metadata");
    }

    #[test]
    fn unexpected_tensors_are_named_in_error() {
        let zeros = [0_u8; 16];
        let file = |name: &str, dtype, shape| {
            let view = TensorView::new(dtype, shape, &zeros).expect("16 bytes");
            safetensors::serialize([(name, view)], None).expect("one tensor")
        };
        check(&file("head.weight", Dtype::F32, vec![4]), "found head.weight");
        check(
            &file("encoder.dense1.weight", Dtype::F32, vec![2, 2]),
            "expected encoder.dense1.weight as F32 [100, 784], found F32 [2, 2]",
        );
        check(&file("encoder.dense1.weight", Dtype::F64, vec![2]), "found F64 [2]");
        check(
            &file("encoder.dense2.weight", Dtype::F32, vec![4]),
            "encoder.dense1.weight as F32 [100, 784], found no such",
        );
    }
}
