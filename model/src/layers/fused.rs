//! Operations of a whole layer at once, with handwritten gradients, for the CPU backend that is pure Rust. Each has its plain
//! twin beside it in the layer that uses it, made of Burn's own operations, and is tested against it.
//!
//! Here is what they are to Burn: a backend extension, forward. `graph` has the backward pass. The arithmetic is in the other
//! files, on slices, and knows nothing of tensors.

mod activation;
mod buffers;
mod conv;
mod dense;
mod grad_targets;
mod graph;
mod loss;
mod lstm;
mod product;
#[cfg(test)]
mod tests;
mod transpose;

use std::sync::{Arc, OnceLock};

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor, TensorData};

pub use activation::Activation;
pub use buffers::Buffer;
pub use grad_targets::with_grad_targets;
#[cfg(test)]
pub use product::HALF_VECTORS;

use self::conv::{Size, Transposed};
use self::lstm::{Extent, Input, Parameters, Unrolled};
use super::crop::Crop;
use engine::sums::Sums;

/// What an LSTM is given, and what of it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LstmMode {
    /// Another value at each step, and each step's output.
    Sequence,
    /// Another value at each step, and the last output alone.
    Last,
    /// One value at so many steps, and each step's output.
    RepeatInput(usize),
}

/// Where the sums of a loss go.
pub type SumsCell = Arc<OnceLock<Sums>>;

/// The operations. Shapes are those of the slices in the files below.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOperations: Backend {
    /// See [`dense()`].
    fn fused_dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    /// See [`lstm()`].
    fn fused_lstm(
        x: FloatTensor<Self>,
        weight_ih: FloatTensor<Self>,
        weight_hh: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mode: LstmMode,
    ) -> FloatTensor<Self>;
    /// See [`conv_pooled`].
    fn fused_conv_pooled(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>)
    -> FloatTensor<Self>;
    /// See [`conv_transposed`].
    fn fused_conv_transposed(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        crop: Crop,
        activation: Activation,
    ) -> FloatTensor<Self>;
    /// See [`binary_cross_entropy`].
    fn fused_loss(logits: FloatTensor<Self>, targets: FloatTensor<Self>, sums: SumsCell) -> FloatTensor<Self>;
    /// See [`register_grad_target`].
    fn fused_register_grad_target(parameter: FloatTensor<Self>, start: usize) -> FloatTensor<Self>;
}

/// `act(x Wᵀ + b)`: `x [batch, in]`, `W [out, in]`, `b [out]` → `[batch, out]`.
pub fn dense(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, activation: Activation) -> Tensor<2> {
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_dense(x, weight, bias, activation))
}

/// A whole LSTM: x [steps, batch, in], or [1, batch, in] if it is repeated; kernels [4 hidden, in] and [4 hidden, hidden],
/// bias [4 hidden] → [steps, batch, hidden], or [1, batch, hidden] if the last output is asked for.
pub fn lstm(x: Tensor<3>, [weight_ih, weight_hh]: [Tensor<2>; 2], bias: Tensor<1>, mode: LstmMode) -> Tensor<3> {
    let [x, weight_ih] = [x.into_dispatch(), weight_ih.into_dispatch()];
    let [weight_hh, bias] = [weight_hh.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_lstm(x, weight_ih, weight_hh, bias, mode))
}

/// 3x3 convolution, *same* padding, bias, SELU and 2x2 max pooling: `x [batch, height, width, in]`, `W [out, in, 3, 3]`,
/// `b [out]` → `[batch, height / 2, width / 2, out]`.
pub fn conv_pooled(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::fused_conv_pooled(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// 3x3 transposed convolution, stride 2, bias and activation: `x [batch, n, m, in]`, `W [in, out, 3, 3]`, `b [out]` →
/// `[batch, 2n, 2m, out]`, or one row and column more for [`Crop::Valid`].
pub fn conv_transposed(
    x: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    crop: Crop,
    activation: Activation,
) -> Tensor<4> {
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_conv_transposed(x, weight, bias, crop, activation))
}

/// Binary cross-entropy of logits and targets, both [batch, rows, columns]: its sums, and a scalar whose backward pass gives
/// the gradient of the loss's sum over the batch.
pub fn binary_cross_entropy(logits: Tensor<3>, targets: Tensor<3>) -> (Sums, Tensor<1>) {
    let sums = SumsCell::default();
    let loss = Dispatch::fused_loss(logits.into_dispatch(), targets.into_dispatch(), Arc::clone(&sums));
    (*sums.get().expect("the loss has its sums"), Tensor::from_dispatch(loss))
}

/// Registers that the gradient of a parameter goes to `start` in the vector of [`with_grad_targets`].
pub fn register_grad_target<const D: usize>(parameter: Tensor<D>, start: usize) {
    Dispatch::fused_register_grad_target(parameter.into_dispatch(), start);
}

type Primitive = FloatTensor<Flex>;

/// A tensor of values in the order of its shape.
fn tensor(values: Buffer, shape: &[usize]) -> Primitive {
    let shape = Shape::from(shape.to_vec());
    assert_eq!(values.len(), shape.num_elements(), "a tensor has the values of its shape");
    Primitive::from_data(TensorData::from_bytes(values.into_bytes(), shape, DType::F32))
}

/// The same values in the order of the shape.
fn in_order(tensor: Primitive) -> Primitive {
    if tensor.is_contiguous() { tensor } else { tensor.to_contiguous() }
}

/// The values of a tensor that is in order.
fn values(tensor: &Primitive) -> &[f32] {
    tensor.as_slice().expect("values of 32 bits, in order")
}

fn shape_of<const D: usize>(tensor: &Primitive) -> [usize; D] {
    tensor.shape().dims()
}

fn dense_forward(x: &Primitive, weight: &Primitive, bias: &Primitive, activation: Activation) -> Primitive {
    let ([n_samples, _], [n_out]) = (shape_of(x), shape_of(bias));
    tensor(dense::forward(values(x), values(weight), values(bias), activation), &[n_samples, n_out])
}

/// What a whole LSTM gives.
struct LstmOutput {
    /// What was asked for.
    y: Primitive,
    /// Each step's output: [steps, batch, hidden].
    hidden: Primitive,
    /// For the backward pass.
    unrolled: Unrolled,
}

fn lstm_forward(x: &Primitive, parameters: Parameters, mode: LstmMode) -> LstmOutput {
    let [n_steps, n_samples, _] = shape_of(x);
    let n_hidden = parameters.weight_hh.len() / parameters.bias.len();
    let (input, n_steps) = match mode {
        LstmMode::Sequence | LstmMode::Last => (Input::Steps(values(x)), n_steps),
        LstmMode::RepeatInput(n_steps) => (Input::Repeated(values(x)), n_steps),
    };
    let extent = Extent { n_steps, n_samples };
    let (hidden, unrolled) = lstm::forward(input, parameters, extent);
    let hidden = tensor(hidden, &[n_steps, n_samples, n_hidden]);
    let y = match mode {
        LstmMode::Last => {
            let mut last = Buffer::new(n_samples * n_hidden);
            last.copy_from_slice(&values(&hidden)[(n_steps - 1) * n_samples * n_hidden..]);
            tensor(last, &[1, n_samples, n_hidden])
        }
        LstmMode::Sequence | LstmMode::RepeatInput(_) => hidden.clone(),
    };
    LstmOutput { y, hidden, unrolled }
}

/// Outputs, and which pixel of each window won.
fn conv_forward(x: &Primitive, weight: &Primitive, bias: &Primitive) -> (Primitive, Vec<u8>) {
    let ([n_samples, height, width, _], [n_out]) = (shape_of(x), shape_of(bias));
    let (y, winners) = conv::forward_pooled(values(x), values(weight), values(bias), Size { height, width });
    (tensor(y, &[n_samples, height / 2, width / 2, n_out]), winners)
}

/// The sizes of a transposed convolution.
#[derive(Clone, Copy, Debug)]
struct TransposedSizes {
    size: Size,
    out_size: Size,
    n_out: usize,
}

impl TransposedSizes {
    fn new(x: &Primitive, bias: &Primitive, crop: Crop) -> Self {
        let ([_, height, width, _], [n_out]) = (shape_of(x), shape_of(bias));
        let n_more = usize::from(crop == Crop::Valid);
        let out_size = Size { height: 2 * height + n_more, width: 2 * width + n_more };
        Self { size: Size { height, width }, out_size, n_out }
    }

    fn of<'a>(self, x: &'a Primitive, weight: &'a Primitive) -> Transposed<'a> {
        let Self { size, out_size, n_out } = self;
        Transposed { x: values(x), weight: values(weight), size, out_size, n_out }
    }
}

fn transposed_forward(
    x: &Primitive,
    weight: &Primitive,
    bias: &Primitive,
    sizes: TransposedSizes,
    activation: Activation,
) -> Primitive {
    let [n_samples, ..]: [usize; 4] = shape_of(x);
    let y = sizes.of(x, weight).forward(values(bias), activation);
    tensor(y, &[n_samples, sizes.out_size.height, sizes.out_size.width, sizes.n_out])
}

fn loss_forward(logits: &Primitive, targets: &Primitive, sums: &SumsCell) -> (Primitive, Primitive) {
    let shape: [usize; 3] = shape_of(logits);
    let (found, gradient) = loss::binary_cross_entropy(values(logits), values(targets), shape[1] * shape[2]);
    let mut loss = Buffer::new(1);
    #[expect(clippy::cast_possible_truncation, reason = "nobody reads it; the sums have all digits")]
    loss.fill(found.loss_sum as f32);
    assert!(sums.set(found).is_ok(), "a loss is computed once");
    (tensor(loss, &[1]), tensor(gradient, &shape))
}

impl FusedOperations for Flex {
    fn fused_dense(x: Primitive, weight: Primitive, bias: Primitive, activation: Activation) -> Primitive {
        dense_forward(&in_order(x), &weight, &bias, activation)
    }

    fn fused_lstm(
        x: Primitive,
        weight_ih: Primitive,
        weight_hh: Primitive,
        bias: Primitive,
        mode: LstmMode,
    ) -> Primitive {
        let parameters =
            Parameters { weight_ih: values(&weight_ih), weight_hh: values(&weight_hh), bias: values(&bias) };
        lstm_forward(&in_order(x), parameters, mode).y
    }

    fn fused_conv_pooled(x: Primitive, weight: Primitive, bias: Primitive) -> Primitive {
        conv_forward(&in_order(x), &weight, &bias).0
    }

    fn fused_conv_transposed(
        x: Primitive,
        weight: Primitive,
        bias: Primitive,
        crop: Crop,
        activation: Activation,
    ) -> Primitive {
        let x = in_order(x);
        transposed_forward(&x, &weight, &bias, TransposedSizes::new(&x, &bias, crop), activation)
    }

    fn fused_loss(logits: Primitive, targets: Primitive, sums: SumsCell) -> Primitive {
        loss_forward(&in_order(logits), &in_order(targets), &sums).0
    }

    fn fused_register_grad_target(parameter: Primitive, _start: usize) -> Primitive {
        parameter
    }
}
