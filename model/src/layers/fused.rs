//! Operations of a whole layer at once, with handwritten gradients, for the CPU backend that is pure Rust. Each has its plain
//! twin beside it in the layer that uses it, made of Burn's own operations, and is tested against it.
//!
//! Here is how they join Burn's graph: what each keeps for its way back, and where its gradients go. The arithmetic is in
//! the files below, on slices, and knows nothing of tensors.

mod activation;
mod buffers;
mod conv;
mod dense;
mod destination;
mod loss;
mod lstm;
mod product;
#[cfg(test)]
mod tests;
mod transpose;

use std::sync::{Arc, OnceLock};

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
use burn::tensor::{DType, Shape, Tensor, TensorData};

pub use activation::Activation;
pub use destination::with_destination;

use self::buffers::Buffer;
use self::conv::{Pooled, PooledGradient, Size, Transposed};
use self::destination::put;
use self::lstm::{Extent, Input, OutputGradient, Parameters, Unrolled};
use super::conv::Crop;
use crate::loss::LossSums;

/// What an LSTM is given, and what of it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// Another value at each step, and each step's output.
    Steps,
    /// Another value at each step, and the last output alone.
    Last,
    /// One value at so many steps, and each step's output.
    Repeated(usize),
}

/// Where the sums of a loss go.
pub type SumsPlace = Arc<OnceLock<LossSums>>;

/// The operations. Shapes are those that the slices have in the files below.
#[backend_extension(Flex, Autodiff)]
pub trait FusedOperations: Backend {
    /// See [`dense()`].
    fn fused_dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self>;
    /// See [`project`].
    fn fused_project(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self>;
    /// See [`lstm()`].
    fn fused_lstm(
        x: FloatTensor<Self>,
        weight_ih: FloatTensor<Self>,
        weight_hh: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        course: Course,
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
    fn fused_loss(logits: FloatTensor<Self>, targets: FloatTensor<Self>, sums: SumsPlace) -> FloatTensor<Self>;
    /// See [`announce`].
    fn fused_announce(parameter: FloatTensor<Self>, start: usize) -> FloatTensor<Self>;
}

/// `act(x Wᵀ + b)`: x [batch, in], W [out, in], b [out] → [batch, out].
pub fn dense(x: Tensor<2>, weight: Tensor<2>, bias: Tensor<1>, activation: Activation) -> Tensor<2> {
    let [x, weight, bias] = [x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_dense(x, weight, bias, activation))
}

/// `W x + b` at each step: x [in, steps, batch], W [out, in], b [out] → [out, steps, batch].
pub fn project(x: Tensor<3>, weight: Tensor<2>, bias: Tensor<1>) -> Tensor<3> {
    Tensor::from_dispatch(Dispatch::fused_project(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// A whole LSTM: x [in, steps, batch], or [in, 1, batch] if it is repeated; kernels [4 hidden, in] and [4 hidden, hidden],
/// bias [4 hidden] → [hidden, steps, batch], or [hidden, 1, batch] if the last output is asked for.
pub fn lstm(x: Tensor<3>, [weight_ih, weight_hh]: [Tensor<2>; 2], bias: Tensor<1>, course: Course) -> Tensor<3> {
    let [x, weight_ih] = [x.into_dispatch(), weight_ih.into_dispatch()];
    let [weight_hh, bias] = [weight_hh.into_dispatch(), bias.into_dispatch()];
    Tensor::from_dispatch(Dispatch::fused_lstm(x, weight_ih, weight_hh, bias, course))
}

/// 3x3 convolution, *same* padding, bias, SELU and 2x2 max pooling: x [batch, height, width, in], W [out, in, 3, 3],
/// b [out] → [batch, height / 2, width / 2, out].
pub fn conv_pooled(x: Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::fused_conv_pooled(x.into_dispatch(), weight.into_dispatch(), bias.into_dispatch()))
}

/// 3x3 transposed convolution, stride 2, bias and activation: x [batch, n, m, in], W [in, out, 3, 3], b [out] →
/// [batch, 2n, 2m, out], or one row and column more for [`Crop::Valid`].
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

/// Binary cross-entropy of logits and targets, both [batch, rows, columns]: its sums, and a scalar whose way back is the
/// gradient of the loss's sum over the batch.
pub fn binary_cross_entropy(logits: Tensor<3>, targets: Tensor<3>) -> (LossSums, Tensor<1>) {
    let sums = SumsPlace::default();
    let loss = Dispatch::fused_loss(logits.into_dispatch(), targets.into_dispatch(), Arc::clone(&sums));
    (*sums.get().expect("the loss has its sums"), Tensor::from_dispatch(loss))
}

/// Says that the gradient of a parameter belongs to `start` in the vector of [`with_destination`].
pub fn announce<const D: usize>(parameter: Tensor<D>, start: usize) {
    Dispatch::fused_announce(parameter.into_dispatch(), start);
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

fn project_forward(x: &Primitive, weight: &Primitive, bias: &Primitive) -> Primitive {
    let ([_, n_steps, n_samples], [n_out]) = (shape_of(x), shape_of(bias));
    let y = lstm::project(values(x), values(weight), values(bias), n_steps * n_samples);
    tensor(y, &[n_out, n_steps, n_samples])
}

fn lstm_forward(x: &Primitive, parameters: Parameters, course: Course) -> (Primitive, Unrolled) {
    let [_, n_steps, n_samples] = shape_of(x);
    let n_hidden = parameters.weight_hh.len() / parameters.bias.len();
    let (input, n_steps) = match course {
        Course::Steps | Course::Last => (Input::Steps(values(x)), n_steps),
        Course::Repeated(n_steps) => (Input::Repeated(values(x)), n_steps),
    };
    let unrolled = lstm::forward(input, parameters, Extent { n_steps, n_samples });
    let y = match course {
        Course::Last => tensor(unrolled.last(), &[n_hidden, 1, n_samples]),
        Course::Steps | Course::Repeated(_) => {
            let mut hidden = Buffer::new(unrolled.hidden.len());
            hidden.copy_from_slice(&unrolled.hidden);
            tensor(hidden, &[n_hidden, n_steps, n_samples])
        }
    };
    (y, unrolled)
}

fn conv_forward(x: &Primitive, weight: &Primitive, bias: &Primitive) -> (Pooled, [usize; 4]) {
    let ([n_samples, height, width, _], [n_out]) = (shape_of(x), shape_of(bias));
    let pooled = conv::forward_pooled(values(x), values(weight), values(bias), Size { height, width });
    (pooled, [n_samples, height / 2, width / 2, n_out])
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

    fn shape(self, n_samples: usize) -> [usize; 4] {
        [n_samples, self.out_size.height, self.out_size.width, self.n_out]
    }
}

fn loss_forward(logits: &Primitive, targets: &Primitive, sums: &SumsPlace) -> (Primitive, Primitive) {
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

    fn fused_project(x: Primitive, weight: Primitive, bias: Primitive) -> Primitive {
        project_forward(&in_order(x), &weight, &bias)
    }

    fn fused_lstm(
        x: Primitive,
        weight_ih: Primitive,
        weight_hh: Primitive,
        bias: Primitive,
        course: Course,
    ) -> Primitive {
        let parameters =
            Parameters { weight_ih: values(&weight_ih), weight_hh: values(&weight_hh), bias: values(&bias) };
        lstm_forward(&in_order(x), parameters, course).0
    }

    fn fused_conv_pooled(x: Primitive, weight: Primitive, bias: Primitive) -> Primitive {
        let (pooled, shape) = conv_forward(&in_order(x), &weight, &bias);
        tensor(pooled.y, &shape)
    }

    fn fused_conv_transposed(
        x: Primitive,
        weight: Primitive,
        bias: Primitive,
        crop: Crop,
        activation: Activation,
    ) -> Primitive {
        let (x, sizes) = (in_order(x.clone()), TransposedSizes::new(&x, &bias, crop));
        let [n_samples, ..]: [usize; 4] = shape_of(&x);
        tensor(sizes.of(&x, &weight).forward(values(&bias), activation), &sizes.shape(n_samples))
    }

    fn fused_loss(logits: Primitive, targets: Primitive, sums: SumsPlace) -> Primitive {
        loss_forward(&in_order(logits), &in_order(targets), &sums).0
    }

    fn fused_announce(parameter: Primitive, _start: usize) -> Primitive {
        parameter
    }
}

/// Prepares an operation, and finishes it with the state that its way back needs, where that is ever gone.
macro_rules! join_graph {
    ($step:expr, [$($input:ident),+], $output:expr, $state:expr) => {{
        let output = $output;
        match $step.prepare::<C>([$($input.node()),+]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => prepared.finish($state, output),
            OpsKind::UnTracked(prepared) => prepared.finish(output),
        }
    }};
}

impl<C: CheckpointStrategy> FusedOperations for Autodiff<Flex, C> {
    fn fused_dense(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let kept = [in_order(x.primitive().clone()), weight.primitive().clone()];
        let y = dense_forward(&kept[0], &kept[1], bias.primitive(), activation);
        join_graph!(
            DenseStep,
            [x, weight, bias],
            y.clone(),
            DenseKept { x: kept[0].clone(), weight: kept[1].clone(), y, activation }
        )
    }

    fn fused_project(x: FloatTensor<Self>, weight: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        let kept = [in_order(x.primitive().clone()), weight.primitive().clone()];
        let y = project_forward(&kept[0], &kept[1], bias.primitive());
        join_graph!(ProjectStep, [x, weight, bias], y, kept)
    }

    fn fused_lstm(
        x: FloatTensor<Self>,
        weight_ih: FloatTensor<Self>,
        weight_hh: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        course: Course,
    ) -> FloatTensor<Self> {
        let given = in_order(x.primitive().clone());
        let [ih, hh] = [weight_ih.primitive().clone(), weight_hh.primitive().clone()];
        let parameters = Parameters { weight_ih: values(&ih), weight_hh: values(&hh), bias: values(bias.primitive()) };
        let (y, unrolled) = lstm_forward(&given, parameters, course);
        let kept = LstmKept { x: given, weight_ih: ih, weight_hh: hh, unrolled: Arc::new(unrolled), course };
        join_graph!(LstmStep, [x, weight_ih, weight_hh, bias], y, kept)
    }

    fn fused_conv_pooled(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let kept = [in_order(x.primitive().clone()), weight.primitive().clone()];
        let (pooled, shape) = conv_forward(&kept[0], &kept[1], bias.primitive());
        let mut y = Buffer::new(pooled.y.len());
        y.copy_from_slice(&pooled.y);
        let [given, kernel] = kept;
        let kept = ConvKept { x: given, weight: kernel, pooled: Arc::new(pooled) };
        join_graph!(ConvStep, [x, weight, bias], tensor(y, &shape), kept)
    }

    fn fused_conv_transposed(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        crop: Crop,
        activation: Activation,
    ) -> FloatTensor<Self> {
        let (given, kernel) = (in_order(x.primitive().clone()), weight.primitive().clone());
        let sizes = TransposedSizes::new(&given, bias.primitive(), crop);
        let [n_samples, ..]: [usize; 4] = shape_of(&given);
        let y = sizes.of(&given, &kernel).forward(values(bias.primitive()), activation);
        let y = tensor(y, &sizes.shape(n_samples));
        let kept = TransposedKept { x: given, weight: kernel, y: y.clone(), sizes, activation };
        join_graph!(TransposedStep, [x, weight, bias], y, kept)
    }

    fn fused_loss(logits: FloatTensor<Self>, targets: FloatTensor<Self>, sums: SumsPlace) -> FloatTensor<Self> {
        let [given, wanted] = [&logits, &targets].map(|tensor| in_order(tensor.primitive().clone()));
        let (loss, gradient) = loss_forward(&given, &wanted, &sums);
        join_graph!(LossStep, [logits], loss, gradient)
    }

    fn fused_announce(parameter: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
        let n_values = parameter.primitive().shape().num_elements();
        destination::announce(parameter.id(), start..start + n_values);
        parameter
    }
}

#[derive(Debug)]
struct DenseStep;

#[derive(Clone, Debug)]
struct DenseKept {
    x: Primitive,
    weight: Primitive,
    y: Primitive,
    activation: Activation,
}

impl Backward<Flex, 3> for DenseStep {
    type State = DenseKept;

    fn backward(self, ops: Ops<DenseKept, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let DenseKept { x, weight, y, activation } = ops.state;
        let ([n_samples, n_in], [_, n_out]) = (shape_of(&x), shape_of(&y));
        let dz = dense::before_activation(values(&y), values(&dy), activation);
        let [x_node, weight_node, bias_node] = ops.parents;
        put(bias_node.map(|node| node.id), &[n_out], gradients, |into| activation::sum_rows(&dz, into));
        put(weight_node.map(|node| node.id), &[n_out, n_in], gradients, |into| {
            dense::weight_gradient(&dz, values(&x), n_samples, into);
        });
        if let Some(node) = x_node {
            let dx = dense::input_gradient(&dz, values(&weight), n_out);
            gradients.register::<Flex>(node.id, tensor(dx, &[n_samples, n_in]));
        }
    }
}

#[derive(Debug)]
struct ProjectStep;

impl Backward<Flex, 3> for ProjectStep {
    type State = [Primitive; 2];

    fn backward(self, ops: Ops<[Primitive; 2], 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let [x, weight] = ops.state;
        let [n_in, n_steps, n_samples] = shape_of(&x);
        let [n_out, ..]: [usize; 3] = shape_of(&dy);
        let n = n_steps * n_samples;
        let [x_node, weight_node, bias_node] = ops.parents;
        put(bias_node.map(|node| node.id), &[n_out], gradients, |into| {
            lstm::project_bias_gradient(values(&dy), n, into);
        });
        put(weight_node.map(|node| node.id), &[n_out, n_in], gradients, |into| {
            lstm::project_weight_gradient(values(&dy), values(&x), n, into);
        });
        if let Some(node) = x_node {
            let dx = lstm::project_input_gradient(values(&dy), values(&weight), n);
            gradients.register::<Flex>(node.id, tensor(dx, &[n_in, n_steps, n_samples]));
        }
    }
}

#[derive(Debug)]
struct LstmStep;

#[derive(Clone, Debug)]
struct LstmKept {
    x: Primitive,
    weight_ih: Primitive,
    weight_hh: Primitive,
    unrolled: Arc<Unrolled>,
    course: Course,
}

impl Backward<Flex, 4> for LstmStep {
    type State = LstmKept;

    fn backward(self, ops: Ops<LstmKept, 4>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let LstmKept { x, weight_ih, weight_hh, unrolled, course } = ops.state;
        let ([n_gates, n_hidden], [n_in, n_steps, n_samples]) = (shape_of(&weight_hh), shape_of(&x));
        let dh = match course {
            Course::Last => OutputGradient::Last(values(&dy)),
            Course::Steps | Course::Repeated(_) => OutputGradient::Steps(values(&dy)),
        };
        let dgates = lstm::gates_gradient(&unrolled, values(&weight_hh), dh);
        let [x_node, ih_node, hh_node, bias_node] = ops.parents;
        put(hh_node.map(|node| node.id), &[n_gates, n_hidden], gradients, |into| {
            lstm::recurrent_gradient(&unrolled, &dgates, into);
        });
        let is_repeated = matches!(course, Course::Repeated(_));
        let (dprojected, n) = lstm::projected_gradient(is_repeated, dgates, unrolled.extent());
        put(bias_node.map(|node| node.id), &[n_gates], gradients, |into| {
            lstm::project_bias_gradient(&dprojected, n, into);
        });
        put(ih_node.map(|node| node.id), &[n_gates, n_in], gradients, |into| {
            lstm::project_weight_gradient(&dprojected, values(&x), n, into);
        });
        if let Some(node) = x_node {
            let dx = lstm::project_input_gradient(&dprojected, values(&weight_ih), n);
            gradients.register::<Flex>(node.id, tensor(dx, &[n_in, n_steps, n_samples]));
        }
    }
}

#[derive(Debug)]
struct ConvStep;

#[derive(Clone, Debug)]
struct ConvKept {
    x: Primitive,
    weight: Primitive,
    pooled: Arc<Pooled>,
}

impl Backward<Flex, 3> for ConvStep {
    type State = ConvKept;

    fn backward(self, ops: Ops<ConvKept, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let ConvKept { x, weight, pooled } = ops.state;
        let [_, height, width, _]: [usize; 4] = shape_of(&x);
        let weight_shape: [usize; 4] = shape_of(&weight);
        let size = Size { height, width };
        let gradient =
            PooledGradient { x: values(&x), weight: values(&weight), pooled: &pooled, dy: values(&dy), size };
        let [x_node, weight_node, bias_node] = ops.parents;
        let mut dbias = Buffer::new(weight_shape[0]);
        let mut dweight = Buffer::new(values(&weight).len());
        let dx = gradient.compute(&mut dweight, &mut dbias, x_node.is_some());
        put(bias_node.map(|node| node.id), &[weight_shape[0]], gradients, |into| into.copy_from_slice(&dbias));
        put(weight_node.map(|node| node.id), &weight_shape, gradients, |into| into.copy_from_slice(&dweight));
        if let (Some(node), Some(dx)) = (x_node, dx) {
            gradients.register::<Flex>(node.id, tensor(dx, &shape_of::<4>(&x)));
        }
    }
}

#[derive(Debug)]
struct TransposedStep;

#[derive(Clone, Debug)]
struct TransposedKept {
    x: Primitive,
    weight: Primitive,
    y: Primitive,
    sizes: TransposedSizes,
    activation: Activation,
}

impl Backward<Flex, 3> for TransposedStep {
    type State = TransposedKept;

    fn backward(self, ops: Ops<TransposedKept, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let TransposedKept { x, weight, y, sizes, activation } = ops.state;
        let dz = dense::before_activation(values(&y), values(&dy), activation);
        let [x_node, weight_node, bias_node] = ops.parents;
        put(bias_node.map(|node| node.id), &[sizes.n_out], gradients, |into| activation::sum_rows(&dz, into));
        let mut dweight = Buffer::new(values(&weight).len());
        let dx = sizes.of(&x, &weight).gradient(&dz, &mut dweight, x_node.is_some());
        put(weight_node.map(|node| node.id), &shape_of::<4>(&weight), gradients, |into| into.copy_from_slice(&dweight));
        if let (Some(node), Some(dx)) = (x_node, dx) {
            gradients.register::<Flex>(node.id, tensor(dx, &shape_of::<4>(&x)));
        }
    }
}

#[derive(Debug)]
struct LossStep;

impl Backward<Flex, 1> for LossStep {
    type State = Primitive;

    fn backward(self, ops: Ops<Primitive, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        // The loss is where the way back begins: its own gradient is 1.
        gradients.consume::<Flex>(&ops.node);
        let [logits_node] = ops.parents;
        if let Some(node) = logits_node {
            gradients.register::<Flex>(node.id, ops.state);
        }
    }
}
