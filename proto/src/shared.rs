//! Memory that a coordinator shares with workers of its machine, so that gradients need not go through a socket: for each
//! worker a region for its results, and one for averaged gradients that all workers read. What lies there was written by
//! another process, which may write on while it is read: it is copied out once, and checked in the copy.

mod file;
mod region;
#[cfg(all(test, target_os = "linux"))]
mod tests;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering, fence};

pub use region::RegionHandle;

use file::Access;
use region::{Claimed, FREE, FULL, Layout, Region, WORD_VALUES};

use crate::limits::{RESULT_SLOTS, UPDATE_SLOTS};
use crate::v1;
use crate::values::{BLOCK_VALUES, ValuesError, square_sum};

const BLOCK_WORDS: usize = BLOCK_VALUES / WORD_VALUES;

/// Another process' memory that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not there, or not for this process.
    #[error("cannot open {path}: {source}")]
    Open {
        /// Where it should be.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// Something else is there.
    #[error("expected a file of {expected} bytes at {path}, found something else, of {found} bytes")]
    Other {
        /// Where it should be.
        path: String,
        /// Bytes of the region.
        expected: usize,
        /// Bytes found.
        found: u64,
    },
    /// Something else of the same size is there.
    #[error("expected a file at {path} that nobody can make smaller, found one without a seal")]
    NotSealed {
        /// Where it should be.
        path: String,
    },
    /// A region of somebody else is there.
    #[error("expected the token that was told, found another one")]
    Token,
    /// It cannot be mapped.
    #[error("cannot map it: {0}")]
    Map(io::Error),
}

/// A slot that does not hold what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// There is no such slot.
    #[error("expected a slot below {n_slots}, found {found}")]
    Unknown {
        /// Slots that there are.
        n_slots: u32,
        /// The number found.
        found: u32,
    },
    /// The slot is not full.
    #[error("expected slot {slot} to be full, found that it is not")]
    NotFull {
        /// Which.
        slot: u32,
    },
    /// Something else is in it by now.
    #[error("expected the update to step {step} in slot {slot}, found a later one")]
    Overwritten {
        /// Which.
        slot: u32,
        /// What should be there.
        step: u64,
    },
    /// Its values are none.
    #[error("{0}")]
    Values(#[from] ValuesError),
}

/// A coordinator's end of the region for a worker's results. It trusts nothing in it.
#[derive(Debug)]
pub struct Results {
    region: Region,
}

impl Results {
    /// A region for gradients of so many values.
    ///
    /// # Errors
    /// If the system has no such memory.
    pub fn create(n_values: usize) -> io::Result<(Self, RegionHandle)> {
        let (region, handle) = Region::create(Layout::new(RESULT_SLOTS, n_values), Access::ReadAndWrite)?;
        Ok((Self { region }, handle))
    }

    /// Copies a gradient out of a slot that is full, and frees the slot; gives the sum of its squares. The slot is read once:
    /// the values that were checked are the ones in `values`, even if another process writes to the slot meanwhile.
    ///
    /// # Errors
    /// If there is no such slot, it is not full, or a value is not finite; what is in `values` then is of no use.
    ///
    /// # Panics
    /// If there are places for more values or fewer.
    pub fn take(&self, slot: u32, values: &mut [f32]) -> Result<f64, SlotError> {
        check_slot(slot, self.region.n_slots())?;
        assert_eq!(values.len(), self.region.n_values(), "a gradient has as many values as its slot");
        if self.region.mark(slot).load(Ordering::Acquire) != FULL {
            return Err(SlotError::NotFull { slot });
        }
        let taken = load_finite(self.region.slot(slot), values);
        self.region.mark(slot).store(FREE, Ordering::Release);
        Ok(taken?)
    }
}

/// A worker's end of the region for its results.
#[derive(Debug)]
pub struct ResultSlots {
    region: Region,
}

impl ResultSlots {
    /// Opens the region that the coordinator sent, for gradients of so many values.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(process: u32, region: &v1::Region, n_values: usize) -> Result<Self, OpenError> {
        let layout = Layout::new(RESULT_SLOTS, n_values);
        Ok(Self { region: Region::open(process, region, layout, Access::ReadAndWrite)? })
    }

    /// A slot to write to, if one is free.
    pub fn free(&self) -> Option<FreeSlot<'_>> {
        self.region.claim().map(|claimed| FreeSlot { claimed })
    }
}

/// A slot to write a gradient to; free again when it is dropped.
#[derive(Debug)]
pub struct FreeSlot<'a> {
    claimed: Claimed<'a>,
}

impl FreeSlot<'_> {
    /// The places, whatever they hold.
    pub fn values(&mut self) -> &mut [f32] {
        self.claimed.values()
    }

    /// Marks the slot as full, for the coordinator to read; returns its number, which the worker has to send.
    pub fn fill(self) -> u32 {
        self.claimed.fill()
    }
}

/// A coordinator's end of the region for averaged gradients: the only one that writes to it.
#[derive(Debug)]
pub struct Updates {
    region: Region,
    handle: RegionHandle,
}

impl Updates {
    /// A region for gradients of so many values.
    ///
    /// # Errors
    /// If the system has no such memory.
    pub fn create(n_values: usize) -> io::Result<Self> {
        let (region, handle) = Region::create(Layout::new(UPDATE_SLOTS, n_values), Access::Read)?;
        Ok(Self { region, handle })
    }

    /// Where it is found.
    pub fn message(&self) -> v1::Region {
        self.handle.message()
    }

    /// Puts the gradient in a slot that leads to a step above 0, in place of one that lies some steps back.
    ///
    /// # Panics
    /// If there are more values or fewer.
    pub fn write(&mut self, step: u64, gradient: &[f32]) -> u32 {
        assert_eq!(gradient.len(), self.region.n_values(), "a gradient has as many values as its slot");
        let slot = u32::try_from(step % u64::from(self.region.n_slots())).expect("below a number of slots");
        let mark = self.region.mark(slot);
        // Who reads a value that is stored after this sees the mark at 0, or at what is stored last.
        mark.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        store(gradient, self.region.slot(slot));
        mark.store(step, Ordering::Release);
        slot
    }
}

/// A worker's end of the region for averaged gradients.
#[derive(Debug)]
pub struct UpdateSlots {
    region: Region,
}

impl UpdateSlots {
    /// Opens the region that the coordinator sent, for gradients of so many values.
    ///
    /// # Errors
    /// If it is not there.
    pub fn open(process: u32, region: &v1::Region, n_values: usize) -> Result<Self, OpenError> {
        let layout = Layout::new(UPDATE_SLOTS, n_values);
        Ok(Self { region: Region::open(process, region, layout, Access::Read)? })
    }

    /// Copies the gradient that leads to a step out of a slot, block by block: `take` is given the position of the first value
    /// of each, and the values, all finite.
    ///
    /// # Errors
    /// If there is no such slot, it holds another gradient or came to hold one, or a value is not finite. Then some blocks may
    /// have been given that are of no use.
    pub fn read(&self, slot: u32, step: u64, mut take: impl FnMut(usize, &[f32])) -> Result<(), SlotError> {
        check_slot(slot, self.region.n_slots())?;
        let mark = self.region.mark(slot);
        // Loads of memory that may only be read have no order by themselves; the fences give it.
        let is_there = || mark.load(Ordering::Relaxed) == step;
        if !is_there() {
            return Err(SlotError::Overwritten { slot, step });
        }
        fence(Ordering::Acquire);
        let mut block = [0.0; BLOCK_VALUES];
        let places = self.region.slot(slot).chunks(BLOCK_WORDS).zip((0..self.region.n_values()).step_by(BLOCK_VALUES));
        for (words, start) in places {
            let block = &mut block[..BLOCK_VALUES.min(self.region.n_values() - start)];
            load_finite(words, block).map_err(|error| error.after(start))?;
            take(start, block);
        }
        fence(Ordering::Acquire);
        if is_there() { Ok(()) } else { Err(SlotError::Overwritten { slot, step }) }
    }
}

fn check_slot(found: u32, n_slots: u32) -> Result<(), SlotError> {
    if found < n_slots { Ok(()) } else { Err(SlotError::Unknown { n_slots, found }) }
}

/// Copies values out of words that others may write to at any moment, and looks at what it has copied; gives the sum of the
/// squares.
fn load_finite(words: &[AtomicU64], values: &mut [f32]) -> Result<f64, ValuesError> {
    let mut sum = 0.0;
    for ((words, values), start) in
        words.chunks(BLOCK_WORDS).zip(values.chunks_mut(BLOCK_VALUES)).zip((0..).step_by(BLOCK_VALUES))
    {
        load(words, values);
        sum += square_sum(values).map_err(|error| error.after(start))?;
    }
    Ok(sum)
}

/// Copies values out of words, two in each.
fn load(words: &[AtomicU64], values: &mut [f32]) {
    let (pairs, last) = values.as_chunks_mut::<WORD_VALUES>();
    for (pair, word) in pairs.iter_mut().zip(words) {
        *pair = bytemuck::cast(word.load(Ordering::Relaxed));
    }
    if let ([value], Some(word)) = (last, words.last()) {
        [*value, _] = bytemuck::cast(word.load(Ordering::Relaxed));
    }
}

fn store(values: &[f32], words: &[AtomicU64]) {
    let (pairs, last) = values.as_chunks::<WORD_VALUES>();
    for (&pair, word) in pairs.iter().zip(words) {
        word.store(bytemuck::cast(pair), Ordering::Relaxed);
    }
    if let (&[value], Some(word)) = (last, words.last()) {
        word.store(bytemuck::cast([value, 0.0]), Ordering::Relaxed);
    }
}
