//! Vectors that are used again and again: what one step's operations give back, the next step's take. A new vector of this
//! size would be filled with zeros first, and often be new to the processor's caches. Each begins at a cache line: a vector of
//! 64 bytes that lies across two of them takes two reads.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};

use aligned_vec::{AVec, avec};
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};

/// Values that are kept per thread, at most: those of a pass through the largest network, many times over.
const KEPT_VALUES_MAX: usize = 8 << 20; // 8 Mi values * 4 = 32 MiB

/// The free vectors of a thread, by length.
#[derive(Default)]
struct Free {
    vectors: HashMap<usize, Vec<AVec<f32>>>,
    n_values: usize,
}

thread_local! {
    static FREE: RefCell<Free> = RefCell::default();
}

/// A vector that goes back to the free ones of its thread.
#[derive(Debug)]
pub struct Buffer(AVec<f32>);

impl Buffer {
    /// A vector of a length, whatever it holds.
    pub fn new(n_values: usize) -> Self {
        let kept = FREE.with_borrow_mut(|free| {
            let kept = free.vectors.get_mut(&n_values)?.pop()?;
            free.n_values -= n_values;
            Some(kept)
        });
        Self(kept.unwrap_or_else(|| avec![0.0; n_values]))
    }

    /// A vector of zeros.
    pub fn zeros(n_values: usize) -> Self {
        let mut buffer = Self::new(n_values);
        buffer.fill(0.0);
        buffer
    }

    /// The bytes of a tensor, which give the vector back when the tensor is gone.
    #[expect(unsafe_code, reason = "Burn asks for the length of what is initialised")]
    pub fn into_bytes(self) -> Bytes {
        let n_bytes = size_of_val(self.as_slice());
        // SAFETY: all of the vector is initialised.
        unsafe { Bytes::from_controller(Box::new(self), n_bytes) }
    }

    fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let vector = std::mem::replace(&mut self.0, avec![]);
        // A thread that ends has no use for it any more.
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if !vector.is_empty() && free.n_values + vector.len() <= KEPT_VALUES_MAX {
                free.n_values += vector.len();
                free.vectors.entry(vector.len()).or_default().push(vector);
            }
        });
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

impl AllocationController for Buffer {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    #[expect(unsafe_code, reason = "Burn names bytes that may not be initialised so; these are")]
    unsafe fn memory_mut(&mut self, _policy: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(self);
        // SAFETY: the layouts are equal, and the caller promises to write nothing that is not initialised.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }

    #[expect(unsafe_code, reason = "Burn names bytes that may not be initialised so; these are")]
    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = bytemuck::cast_slice(self);
        // SAFETY: the layouts are equal, and initialised bytes may be looked at as if they were not.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_buffer_is_reused() {
        let first = Buffer::new(1000);
        let place = first.as_ptr();
        drop(first);
        assert_eq!(Buffer::new(1000).as_ptr(), place);
        let mut second = Buffer::new(1000);
        second.fill(1.5);
        let bytes = second.into_bytes();
        assert_eq!((bytes.len(), bytemuck::cast_slice::<u8, f32>(&bytes)[999]), (4000, 1.5));
        assert_ne!(Buffer::new(1000).as_ptr(), bytes.as_ptr().cast());
        drop(bytes);
        assert!(Buffer::zeros(1000).iter().all(|&value| value == 0.0));
    }

    #[test]
    fn kept_buffers_are_bounded() {
        drop((0..5).map(|_| Buffer::new(KEPT_VALUES_MAX / 3)).collect::<Vec<_>>());
        FREE.with_borrow(|free| assert!(free.n_values <= KEPT_VALUES_MAX));
    }
}
