//! What the fuzz targets begin with, and what they have found, with the stable compiler.

use std::path::{Path, PathBuf};

mod seeds;
#[path = "../fuzz/src/lib.rs"]
mod targets;

use targets::TARGETS;

/// The folder of a target's inputs in the repository.
fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target)
}

/// What is in it.
fn inputs(target: &str) -> Vec<PathBuf> {
    let folder = folder(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

/// Each input whose name begins with `whole` is taken for what it should be, the others are not; all without a panic.
#[test]
fn fuzz_inputs_are_accepted_as_their_names_say() {
    for (target, take) in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "expected inputs of {target}, found none");
        for path in inputs {
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            let is_taken = take(&std::fs::read(&path).expect("a file"));
            assert_eq!(
                is_taken,
                name.starts_with("whole"),
                "{target}/{name}; `just fuzz-seeds` writes those anew that are whole"
            );
        }
    }
}

/// Inputs with one byte changed, cut off, or doubled are taken or not, without a panic.
#[test]
fn damaged_fuzz_seeds_cause_no_panic() {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    let mut chance = ChaCha8Rng::seed_from_u64(1);
    for (target, take) in TARGETS {
        for path in inputs(target) {
            let seed = std::fs::read(&path).expect("a file");
            for _ in 0..100 {
                let place = usize::try_from(chance.next_u32()).expect("an index") % seed.len();
                let mut input = seed.clone();
                match chance.next_u32() % 4 {
                    0 => input.truncate(place),
                    1 => input.extend_from_slice(&seed[place..]),
                    2 => input[place] ^= 1 << (chance.next_u32() % 8),
                    _ => input[place] = chance.next_u32().to_le_bytes()[0],
                }
                take(&input);
            }
        }
    }
}

#[test]
#[ignore = "writes to the repository"]
fn write_seeds() {
    seeds::write_all(|target, name, input| {
        let folder = folder(target);
        std::fs::create_dir_all(&folder).expect("a folder in the repository");
        std::fs::write(folder.join(format!("whole-{name}.bin")), input).expect("a file in the repository");
    });
}
