//! A region of shared memory: a token, a mark for each slot, and slots of f32. The one place that turns addresses into
//! values; what it gives out can be used in any way.
//!
//! ```text
//! 0        16        64       128               4096             4096 + a slot's bytes
//! | token  |         | mark 0 | mark 1 | …      | slot 0         | slot 1 …
//! ```

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::OpenError;
use super::file::{self, Access};
use crate::limits::PARAMS_MAX;
use crate::v1;

/// What slots begin at a multiple of.
const PAGE_BYTES: usize = 4096;
/// Marks are so far apart that no two share a line of a cache.
const MARK_BYTES: usize = 64;
const WORD_BYTES: usize = size_of::<AtomicU64>();
/// Values of a word.
pub(super) const WORD_VALUES: usize = WORD_BYTES / size_of::<f32>();

/// The mark of a free slot.
pub(super) const FREE: u64 = 0;
/// The mark of a slot that has an owner, in one of the processes.
const CLAIMED: u64 = 1;
/// The mark of a slot that holds what its owner wants to be read.
pub(super) const FULL: u64 = 2;

/// How a region is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    n_slots: u32,
    n_values: usize,
}

impl Layout {
    pub fn new(n_slots: u32, n_values: usize) -> Self {
        assert!((n_slots as usize) < PAGE_BYTES / MARK_BYTES, "the marks fit before the slots");
        assert!(n_values <= PARAMS_MAX, "a gradient is within the bounds of the wire");
        Self { n_slots, n_values }
    }

    fn slot_bytes(self) -> usize {
        (self.n_values * size_of::<f32>()).next_multiple_of(PAGE_BYTES)
    }

    fn n_bytes(self) -> usize {
        PAGE_BYTES + self.n_slots as usize * self.slot_bytes()
    }
}

/// What other processes need to open a region, which they can as long as this exists.
#[derive(Debug)]
pub struct RegionHandle {
    file: File,
    token: [u8; 16],
}

impl RegionHandle {
    /// The message that offers the region to another process.
    pub fn message(&self) -> v1::Region {
        let descriptor = u32::try_from(self.file.as_raw_fd()).expect("an open file has a number from 0");
        v1::Region { descriptor, token: self.token.to_vec().into() }
    }
}

/// A region, mapped.
#[derive(Debug)]
pub(super) struct Region {
    map: MmapRaw,
    layout: Layout,
}

impl Region {
    /// A new one, all zeros, mapped for reading and writing.
    pub fn create(layout: Layout, access: Access) -> io::Result<(Self, RegionHandle)> {
        let file = file::create(layout.n_bytes())?;
        let region = Self { map: MmapOptions::new().len(layout.n_bytes()).map_raw(&file)?, layout };
        file::seal(&file, access)?;
        let token = file::token()?;
        for (word, bytes) in region.words(0, 2).iter().zip(token.as_chunks::<WORD_BYTES>().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Relaxed);
        }
        Ok((region, RegionHandle { file, token }))
    }

    /// That of another process.
    pub fn open(process: u32, region: &v1::Region, layout: Layout, access: Access) -> Result<Self, OpenError> {
        let n_bytes = layout.n_bytes();
        let file = file::open(process, region.descriptor, n_bytes, access)?;
        let mut token = [0; 16];
        file.read_exact_at(&mut token, 0).map_err(OpenError::Map)?;
        if token != *region.token {
            return Err(OpenError::Token);
        }
        let options = MmapOptions::new().len(n_bytes).clone();
        let map = match access {
            Access::ReadAndWrite => options.map_raw(&file),
            Access::Read => options.map_raw_read_only(&file),
        };
        Ok(Self { map: map.map_err(OpenError::Map)?, layout })
    }

    pub fn n_slots(&self) -> u32 {
        self.layout.n_slots
    }

    pub fn n_values(&self) -> usize {
        self.layout.n_values
    }

    /// A slot's mark, which says what is in it. In a region that may only be read, it may only be loaded, without order.
    pub fn mark(&self, slot: u32) -> &AtomicU64 {
        assert!(slot < self.layout.n_slots, "a slot is checked before it is used");
        &self.words(MARK_BYTES * (1 + slot as usize), 1)[0]
    }

    /// A slot's values, two in a word, for reading and writing while others do.
    pub fn slot(&self, slot: u32) -> &[AtomicU64] {
        self.words(self.slot_start(slot), self.layout.n_values.div_ceil(WORD_VALUES))
    }

    /// Takes a slot that is free, for its values to be written as a plain slice.
    pub fn claim(&self) -> Option<Claimed<'_>> {
        let is_claimed = |&slot: &u32| {
            // Acquire: after the reads of the process that freed it.
            self.mark(slot).compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let slot = (0..self.layout.n_slots).find(is_claimed)?;
        Some(Claimed { region: self, slot, mark_then: FREE })
    }

    fn slot_start(&self, slot: u32) -> usize {
        assert!(slot < self.layout.n_slots, "a slot is checked before it is used");
        PAGE_BYTES + slot as usize * self.layout.slot_bytes()
    }

    fn words(&self, start: usize, n_words: usize) -> &[AtomicU64] {
        assert!(start.is_multiple_of(WORD_BYTES) && start + n_words * WORD_BYTES <= self.map.len());
        #[expect(unsafe_code, reason = "memory that other processes write to can be read in no other way")]
        // SAFETY: a mapping begins at a page, so that the words are aligned; they lie inside of it, and stay there as long as
        // it is borrowed, since seals keep the file from shrinking; every pattern of bits is a word. This process accesses
        // them only through atomics, except for claimed slots, by their claimant; other processes follow the same protocol,
        // and one that does not can only change what is loaded here.
        unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(start).cast(), n_words)
        }
    }
}

/// A slot that has an owner, until that is dropped.
#[derive(Debug)]
pub(super) struct Claimed<'a> {
    region: &'a Region,
    slot: u32,
    /// What its mark says when this is dropped.
    mark_then: u64,
}

impl Claimed<'_> {
    /// Its values, whatever they are.
    pub fn values(&mut self) -> &mut [f32] {
        let (start, n_values) = (self.region.slot_start(self.slot), self.region.layout.n_values);
        assert!(start + n_values * size_of::<f32>() <= self.region.map.len());
        #[expect(unsafe_code, reason = "a gradient is written where it is to lie, and not copied there")]
        // SAFETY: aligned, within the mapping and of any bits, as in `Region::words`. The mark gives the slot to one owner, who
        // is borrowed here, until it says that the slot is full: before that no thread of this process looks at it, and the
        // process that has made the region, whose orders this one follows in everything, only ever reads slots.
        unsafe {
            std::slice::from_raw_parts_mut(self.region.map.as_mut_ptr().add(start).cast(), n_values)
        }
    }

    /// Leaves what was written for the other process to read; which slot it is in.
    pub fn fill(mut self) -> u32 {
        self.mark_then = FULL;
        self.slot
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        // Release: a process that sees the mark sees what was written before it.
        self.region.mark(self.slot).store(self.mark_then, Ordering::Release);
    }
}
