//! Images on the host, and how they come to a device.

use burn::tensor::{Device, Tensor, TensorData};

/// Images as the network takes them, values from 0 to 1 if there is no noise on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Images {
    /// [samples, rows, columns], the last axis closest together.
    pub values: Vec<f32>,
    /// Samples, rows, columns.
    pub shape: [usize; 3],
}

impl Images {
    /// Puts the images on a device: [samples, rows, columns].
    pub fn into_tensor(self, device: &Device) -> Tensor<3> {
        Tensor::from_data(TensorData::new(self.values, self.shape), device)
    }
}
