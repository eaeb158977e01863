//! The program as its users run it, for a few steps.

use testdir::TestDir;

/// The goal: sequences of any length are learned, and any number of workers gives the same bits.
#[test]
fn series_of_unequal_length_have_same_bits_on_any_number_of_workers() {
    let dir = TestDir::new(env!("CARGO_BIN_EXE_series"));
    let flags = "--shards 4 --max-steps 60";
    let alone = dir.end(&format!("train {flags} --run-dir alone"));
    let last = &alone["last_epoch"];
    let figure = |name: &str| last[name].as_f64().expect(name);
    // Readings that are all 0.5 are off by 0.023 in the mean square.
    assert!(figure("val_loss") < 0.015, "{alone}");
    // The mean of distances is at most the root of the mean of their squares, here with as much weight for each reading.
    assert!((0.01..0.15).contains(&figure("val_absolute_error")), "{alone}");
    for n_workers in [2, 3] {
        let cluster = dir.end(&format!("coordinator {flags} --workers {n_workers} --run-dir {n_workers}"));
        assert_eq!(cluster["params_blake3"], alone["params_blake3"], "{n_workers} workers");
        assert_eq!(cluster["last_epoch"]["val_absolute_error"], last["val_absolute_error"], "{n_workers} workers");
    }
}
