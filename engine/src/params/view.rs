//! Parameters that a network reads where they lie. A tensor on the CPU that is pure Rust can be a view of the flat vector, so
//! that a network that is loaded before each step copies nothing.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;

use aligned_vec::AVec;
use burn_std::{AccessError, AccessPolicy, AllocationController, AllocationProperty, Bytes};

/// Some of the values of a vector, as a tensor's bytes. They are copied before a write.
#[derive(Debug)]
struct View {
    values: Arc<AVec<f32>>,
    range: Range<usize>,
    own: Option<Vec<f32>>,
}

/// The bytes of some values. The vector cannot be changed as long as they are there.
///
/// # Panics
/// If the vector is shorter.
#[expect(unsafe_code, reason = "Burn asks for the length of what is initialised")]
pub(super) fn bytes_of(values: &Arc<AVec<f32>>, range: Range<usize>) -> Bytes {
    let n_bytes = size_of_val(&values[range.clone()]);
    // SAFETY: all of the values are initialised.
    unsafe { Bytes::from_controller(Box::new(View { values: Arc::clone(values), range, own: None }), n_bytes) }
}

impl AllocationController for View {
    fn alloc_align(&self) -> usize {
        align_of::<f32>()
    }

    fn property(&self) -> AllocationProperty {
        AllocationProperty::Native
    }

    #[expect(unsafe_code, reason = "Burn names bytes that may not be initialised so; these are")]
    unsafe fn memory_mut(&mut self, policy: AccessPolicy) -> Result<&mut [MaybeUninit<u8>], AccessError> {
        if self.own.is_none() && !policy.copy_allowed() {
            return Err(AccessError::WouldCopy);
        }
        let own = self.own.get_or_insert_with(|| self.values[self.range.clone()].to_vec());
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(own);
        // SAFETY: the layouts are equal, and the caller promises to write nothing that is not initialised.
        Ok(unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), bytes.len()) })
    }

    #[expect(unsafe_code, reason = "Burn names bytes that may not be initialised so; these are")]
    fn memory(&self, _policy: AccessPolicy) -> Result<&[MaybeUninit<u8>], AccessError> {
        let bytes: &[u8] = match &self.own {
            Some(own) => bytemuck::cast_slice(own),
            None => bytemuck::cast_slice(&self.values[self.range.clone()]),
        };
        // SAFETY: the layouts are equal, and initialised bytes may be looked at as if they were not.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len()) })
    }
}

#[cfg(test)]
mod tests {
    use aligned_vec::avec;

    use super::*;

    #[test]
    fn view_shares_memory_until_written() {
        let values = Arc::new(avec![1.0_f32, 2.0, 3.0, 4.0]);
        let mut view = bytes_of(&values, 1..3);
        assert_eq!(view.as_ptr(), values[1..].as_ptr().cast());
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&view), [2.0, 3.0]);
        bytemuck::cast_slice_mut::<u8, f32>(&mut view)[0] = 7.0;
        assert_eq!(bytemuck::cast_slice::<u8, f32>(&view), [7.0, 3.0]);
        assert_eq!(values[..], [1.0, 2.0, 3.0, 4.0]);
    }
}
