//! Vectors the length of the parameters, used again and again, for gradients that come and go.

use std::sync::{Arc, Mutex, PoisonError};

/// Vectors that are free.
#[derive(Debug)]
pub struct Buffers {
    free: Mutex<Vec<Vec<f32>>>,
    n_params: usize,
    n_free_max: usize,
}

impl Buffers {
    /// Vectors of `n_params` values, of which at most `n_free_max` are kept.
    pub fn new(n_params: usize, n_free_max: usize) -> Self {
        Self { free: Mutex::new(Vec::new()), n_params, n_free_max }
    }

    /// Length of each.
    pub fn n_params(&self) -> usize {
        self.n_params
    }

    /// A vector, whatever it holds.
    pub fn take(&self) -> Vec<f32> {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| vec![0.0; self.n_params])
    }

    /// Gives vectors back.
    pub fn give_back(&self, spent: impl IntoIterator<Item = Vec<f32>>) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.extend(spent.into_iter().filter(|vector| vector.len() == self.n_params));
        free.truncate(self.n_free_max);
    }

    /// Wraps a vector in a guard that gives it back when dropped.
    pub fn lend(self: &Arc<Self>, values: Vec<f32>) -> BufferGuard {
        BufferGuard { values, buffers: Arc::clone(self) }
    }
}

/// A vector that is in use; given back when dropped.
#[derive(Debug)]
pub struct BufferGuard {
    values: Vec<f32>,
    buffers: Arc<Buffers>,
}

impl AsRef<[f32]> for BufferGuard {
    fn as_ref(&self) -> &[f32] {
        &self.values
    }
}

impl Drop for BufferGuard {
    fn drop(&mut self) {
        self.buffers.give_back([std::mem::take(&mut self.values)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::Encoding;
    use crate::values;

    #[test]
    fn buffer_returns_to_pool_when_last_handle_is_dropped() {
        let buffers = Arc::new(Buffers::new(2, 2));
        let values = vec![1.0, -2.5];
        let place = values.as_ptr();
        let bytes = values::encode_owned(Encoding::F32, buffers.lend(values));
        let other = bytes.clone();
        assert_eq!(bytes.as_ptr(), place.cast(), "what is sent is where it was");
        drop(bytes);
        let taken = buffers.take();
        assert_ne!(taken.as_ptr(), place, "a worker is still to be sent it");
        assert_eq!(other[..], [1.0_f32.to_le_bytes(), (-2.5_f32).to_le_bytes()].concat());
        drop(other);
        assert_eq!(buffers.take(), [1.0, -2.5]);
    }
}
