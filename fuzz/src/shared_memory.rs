//! Memory that another process writes to: what it begins with, and what lies in its slots.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process;

use proto::limits::{RESULT_SLOTS, UPDATE_SLOTS};
use proto::shared::{ResultSlots, Results, UpdateSlots};
use proto::v1::Region;

/// Values of a gradient.
const N_VALUES: usize = 1024;
const _: () = assert!(RESULT_SLOTS == UPDATE_SLOTS, "a region of results is as long as one of updates");

/// Bytes of the token. An input begins with the token, slot and step that are sent; the rest is the content of the memory.
const N_TOKEN: usize = 16;

/// Opens memory with arbitrary content as a worker does when a coordinator offers it; returns whether that succeeded. Reading a
/// slot gives finite values, or none.
///
/// # Panics
/// If this is not so.
pub fn take(input: &[u8]) -> bool {
    let Some((token, input)) = input.split_at_checked(N_TOKEN) else { return false };
    let Some((&[slot, step], memory)) = input.split_first_chunk::<2>() else { return false };
    let (results, handle) = Results::create(N_VALUES).expect("the system has such memory");
    let Region { descriptor, .. } = handle.message();
    let file = File::options().write(true).open(format!("/proc/self/fd/{descriptor}")).expect("the offer's file");
    // What is beyond the end cannot be written.
    let n_written = memory.len().min(16 << 10);
    file.write_all_at(&memory[..n_written], 0).expect("memory can be written");

    let sent = Region { descriptor, token: token.to_vec().into() };
    let slot = u32::from(slot);
    let is_finite = |values: &[f32]| values.iter().all(|value| value.is_finite());
    let mut is_open = false;
    if let Ok(updates) = UpdateSlots::open(process::id(), &sent, N_VALUES) {
        is_open = true;
        let _ = updates.read(slot, step.into(), |_, values| assert!(is_finite(values)));
    }
    if let Ok(slots) = ResultSlots::open(process::id(), &sent, N_VALUES)
        && let Some(mut free) = slots.free()
    {
        free.values().fill(1.0);
        assert!(free.fill() < RESULT_SLOTS);
    }
    let mut values = vec![0.0; N_VALUES];
    for slot in [slot, 0, 1] {
        if let Ok(square_sum) = results.take(slot, &mut values) {
            assert!(is_finite(&values) && square_sum.is_finite());
            assert!(results.take(slot, &mut values).is_err(), "a slot is free once it was read");
        }
    }
    is_open
}
