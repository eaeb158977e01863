//! Vectors the length of the parameters, used again and again: between the sessions that fill them with gradients and the
//! driver that empties them.

use std::sync::{Mutex, PoisonError};

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
}
