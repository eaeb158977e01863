use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapRaw;

use super::*;

/// Sizes around those of a word, of a block and of a page.
const SIZES: [usize; 9] = [1, 2, 3, 1023, 1024, 1025, 2048, 4097, 46_529];

/// How long it may take until two threads have met often enough.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Values that differ from place to place, and from one start to another.
fn values(n_values: usize, start: u16) -> Vec<f32> {
    (0..u16::MAX).cycle().take(n_values).map(|place| f32::from(start) + f32::from(place).sin()).collect()
}

fn results(n_values: usize) -> (Results, ResultSlots, RegionHandle) {
    let (results, handle) = Results::create(n_values).expect("shared memory");
    let slots = ResultSlots::open(std::process::id(), &handle.message(), n_values).expect("a region");
    (results, slots, handle)
}

fn updates(n_values: usize) -> (Updates, UpdateSlots) {
    let updates = Updates::create(n_values).expect("shared memory");
    let slots = UpdateSlots::open(std::process::id(), &updates.message(), n_values).expect("a region");
    (updates, slots)
}

fn fill(slots: &ResultSlots, values: &[f32]) -> u32 {
    let mut free = slots.free().expect("a free slot");
    free.values().copy_from_slice(values);
    free.fill()
}

fn read(slots: &UpdateSlots, slot: u32, step: u64, n_values: usize) -> Result<Vec<f32>, SlotError> {
    let mut found = vec![0.0; n_values];
    slots.read(slot, step, |start, block| found[start..start + block.len()].copy_from_slice(block))?;
    Ok(found)
}

#[test]
fn result_slot_round_trips_values() {
    for n_values in SIZES {
        let (results, slots, _offer) = results(n_values);
        for start in 0..5 {
            let expected = values(n_values, start);
            let slot = fill(&slots, &expected);
            let mut found = vec![0.0; n_values];
            results.take(slot, &mut found).expect("a full slot");
            assert_eq!(found, expected, "{n_values} values");
        }
    }
}

#[test]
fn update_is_readable_until_overwritten() {
    for n_values in SIZES {
        let (mut updates, slots) = updates(n_values);
        let n_steps = u64::from(2 * UPDATE_SLOTS);
        let gradient = |step| values(n_values, u16::try_from(step).expect("few steps"));
        let placed: Vec<u32> = (1..=n_steps).map(|step| updates.write(step, &gradient(step))).collect();
        for (step, slot) in (1..).zip(placed) {
            let expected = if step + u64::from(UPDATE_SLOTS) > n_steps {
                Ok(gradient(step))
            } else {
                Err(SlotError::Overwritten { slot, step })
            };
            assert_eq!(read(&slots, slot, step, n_values), expected, "step {step}, {n_values} values");
        }
    }
}

/// The goal: whatever a reader has got by then, it learns that it is of no use.
#[test]
fn update_overwritten_during_read_is_refused() {
    let (mut updates, slots) = updates(5_000);
    let slot = updates.write(1, &values(5_000, 1));
    let later = 1 + u64::from(UPDATE_SLOTS);
    let mut n_blocks = 0;
    let ended = slots.read(slot, 1, |_, _| {
        n_blocks += 1;
        if n_blocks == 2 {
            assert_eq!(updates.write(later, &values(5_000, 9)), slot);
        }
    });
    assert_eq!(ended, Err(SlotError::Overwritten { slot, step: 1 }));
    assert_eq!(read(&slots, slot, later, 5_000), Ok(values(5_000, 9)));
}

/// The goal: what a reader takes for an update is one, also while the next ones are written.
#[test]
fn concurrent_update_reads_are_never_mixed() {
    let n_values = 20_000;
    let (mut updates, slots) = updates(n_values);
    let (written, to_read) = mpsc::channel();
    let writer = thread::spawn(move || {
        for step in 1..=2_000_u16 {
            let slot = updates.write(step.into(), &vec![f32::from(step); n_values]);
            written.send((step, slot)).expect("the reader is there");
        }
        updates
    });
    let mut n_read = 0;
    for (step, slot) in to_read {
        match read(&slots, slot, step.into(), n_values) {
            Ok(found) => {
                assert_eq!(found, vec![f32::from(step); n_values], "values of another step");
                n_read += 1;
            }
            Err(error) => assert_eq!(error, SlotError::Overwritten { slot, step: step.into() }),
        }
    }
    writer.join().expect("it writes to its end");
    assert!(n_read >= UPDATE_SLOTS, "the last ones stay: {n_read}");
}

#[test]
fn slot_has_one_owner_until_read() {
    let (results, slots, _offer) = results(10);
    let mut claimed: Vec<_> = std::iter::from_fn(|| slots.free()).collect();
    assert_eq!(claimed.len(), RESULT_SLOTS as usize);
    let (first, second) = (claimed.remove(0), claimed.remove(0));
    let mut found = [0.0; 10];
    assert_eq!(results.take(0, &mut found), Err(SlotError::NotFull { slot: 0 }));
    assert_eq!(first.fill(), 0);
    drop(second);
    assert_eq!(fill(&slots, &values(10, 7)), 1, "what was dropped is free, what is full is not");
    assert!(slots.free().is_none());
    results.take(1, &mut found).expect("a full slot");
    assert_eq!(found[..], values(10, 7));
    assert_eq!(results.take(1, &mut found), Err(SlotError::NotFull { slot: 1 }));
    assert_eq!(fill(&slots, &values(10, 8)), 1);
}

#[test]
fn unknown_slot_number_is_refused() {
    let (results, _results_slots, _offer) = results(3);
    let (_updates, slots) = updates(3);
    for found in [RESULT_SLOTS.max(UPDATE_SLOTS), u32::MAX] {
        let error = |n_slots| Err(SlotError::Unknown { n_slots, found });
        assert_eq!(results.take(found, &mut [0.0; 3]).map(drop), error(RESULT_SLOTS));
        assert_eq!(slots.read(found, 1, |_, _| ()), error(UPDATE_SLOTS));
    }
}

#[test]
fn non_finite_value_is_reported_by_position_and_frees_slot() {
    let (results, slots, _offer) = results(5_001);
    for position in [0, 1_024, 2_047, 5_000] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut gradient = values(5_001, 1);
            gradient[position] = value;
            let slot = fill(&slots, &gradient);
            let error = SlotError::Values(ValuesError::NotFinite { position });
            assert_eq!(results.take(slot, &mut vec![0.0; 5_001]), Err(error));
            assert_eq!(slots.free().map(FreeSlot::fill), Some(slot), "it is free");
            results.take(slot, &mut vec![0.0; 5_001]).expect_err("the same values");
        }
    }
}

/// The goal: a worker that goes on writing gives no value that was not looked at, since each is read once.
#[test]
fn values_taken_during_concurrent_writes_were_checked() {
    const N_MIN: usize = 10_000;
    let (results, slots, _offer) = results(5_000);
    let is_over = AtomicBool::new(false);
    let [mut n_taken, mut n_refused, mut n_spoiled] = [0_usize; 3];
    let begun = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let word = &slots.region.slot(0)[1_234];
            while !is_over.load(Ordering::Relaxed) {
                for value in [1.0, f32::NAN] {
                    word.store(bytemuck::cast([value; WORD_VALUES]), Ordering::Relaxed);
                }
            }
        });
        let mut values = vec![0.0; 5_000];
        while n_taken.min(n_refused) < N_MIN && begun.elapsed() < WAIT_MAX {
            slots.region.mark(0).store(FULL, Ordering::Release);
            let is_taken = results.take(0, &mut values).is_ok();
            n_taken += usize::from(is_taken);
            n_refused += usize::from(!is_taken);
            n_spoiled += usize::from(is_taken && values.iter().any(|value| !value.is_finite()));
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(n_taken >= N_MIN && n_refused >= N_MIN, "taken {n_taken} times, refused {n_refused} times");
    assert_eq!(n_spoiled, 0, "taken with values that are not finite");
}

/// The goal: what was looked at is what is used, whatever is written to the slot afterwards.
#[test]
fn taken_values_do_not_change_with_slot() {
    let (results, slots, _offer) = results(2_000);
    let expected = values(2_000, 3);
    let slot = fill(&slots, &expected);
    let mut found = vec![0.0; 2_000];
    results.take(slot, &mut found).expect("a full slot");
    slots.free().expect("a free slot").values().fill(f32::NAN);
    assert_eq!(found, expected);
}

/// The file of a region, as others find it.
fn path(region: &v1::Region) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), region.descriptor)
}

/// The goal: no process can end another one by making a file smaller under its eyes.
#[test]
fn region_size_is_sealed() {
    let (_results, _slots, handle) = results(2_000);
    let (updates, _slots) = updates(2_000);
    for region in [handle.message(), updates.message()] {
        let file = File::options().write(true).open(path(&region)).expect("this process' own file");
        let n_bytes = file.metadata().expect("a file").len();
        for n_bytes in [0, n_bytes - 1, n_bytes + 1] {
            let error = file.set_len(n_bytes).expect_err("a seal");
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }
}

#[test]
fn update_reader_cannot_write() {
    let (mut updates, slots) = updates(2_000);
    let slot = updates.write(1, &values(2_000, 1));
    let mut file = File::options().read(true).write(true).open(path(&updates.message())).expect("an own file");
    let is_refused = |error: io::Error| assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    is_refused(file.write_all(&[255; 5_000]).expect_err("a seal"));
    is_refused(MmapRaw::map_raw(&file).expect_err("a seal"));
    assert_eq!(read(&slots, slot, 1, 2_000), Ok(values(2_000, 1)));
    // The one that has made it goes on.
    let slot = updates.write(2, &values(2_000, 2));
    assert_eq!(read(&slots, slot, 2, 2_000), Ok(values(2_000, 2)));
}

fn check_closed(sent: &v1::Region, n_values: usize, part: &str) {
    let error = ResultSlots::open(std::process::id(), sent, n_values).expect_err(part).to_string();
    assert!(error.contains(part), "`{error}` does not say `{part}`");
}

#[test]
fn invalid_region_is_not_opened() {
    let (_results, _slots, handle) = results(2_000);
    let sent = handle.message();
    check_closed(&v1::Region { token: vec![7; 16].into(), ..sent.clone() }, 2_000, "found another one");
    check_closed(&v1::Region { token: vec![].into(), ..sent.clone() }, 2_000, "found another one");
    check_closed(&sent, 4_000, "expected a file of 69632 bytes"); // 4096 + 4 * 16384
    check_closed(&v1::Region { descriptor: u32::MAX, ..sent.clone() }, 2_000, "cannot open /proc/");
    let of = |file: &File| v1::Region { descriptor: u32::try_from(file.as_raw_fd()).expect("a file"), ..sent.clone() };
    check_closed(&of(&File::open("/dev/null").expect("a device")), 2_000, "found something else");
    let plain = tempfile::tempfile().expect("a file");
    plain.set_len(4_096 + 4 * 8_192).expect("some room");
    check_closed(&of(&plain), 2_000, "nobody can make smaller");
}

#[test]
fn withdrawn_region_stays_open_for_current_users() {
    let (results, slots, handle) = results(2_000);
    let sent = handle.message();
    drop(handle);
    // The number may be that of another file by now.
    ResultSlots::open(std::process::id(), &sent, 2_000).expect_err("it is closed");
    let slot = fill(&slots, &values(2_000, 1));
    drop(slots);
    let mut found = vec![0.0; 2_000];
    results.take(slot, &mut found).expect("a full slot");
    assert_eq!(found, values(2_000, 1));
}
