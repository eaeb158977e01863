//! How fused operations join Burn's graph: what each saves for its backward pass, and where its gradients go.

use std::sync::Arc;

use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Flex, TensorMetadata};

use super::activation::sum_rows;
use super::buffers::Buffer;
use super::conv::{PooledGradient, Size, unpack};
use super::grad_targets::{self, put};
use super::lstm::{OutputGradient, Parameters, Unrolled};
use super::{
    Activation, Crop, FusedOperations, LstmMode, LstmOutput, Primitive, SumsCell, TransposedSizes, conv_forward, dense,
    dense_forward, in_order, loss_forward, lstm, lstm_forward, shape_of, tensor, transposed_forward, values,
};

/// Hands the gradient at an operation's input on, if it is wanted.
fn register_input_gradient(
    input: Option<NodeId>,
    shape: &[usize],
    gradients: &mut Gradients,
    gradient: impl FnOnce() -> Buffer,
) {
    if let Some(node) = input {
        gradients.register::<Flex>(node, tensor(gradient(), shape));
    }
}

/// Prepares an operation, and finishes it with the state that its backward pass needs, if there is one.
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
        let (given, kernel) = (in_order(x.primitive().clone()), weight.primitive().clone());
        let y = dense_forward(&given, &kernel, bias.primitive(), activation);
        let saved = SavedDense { x: given, weight: kernel, y: y.clone(), activation };
        join_graph!(DenseStep, [x, weight, bias], y, saved)
    }

    fn fused_lstm(
        x: FloatTensor<Self>,
        weight_ih: FloatTensor<Self>,
        weight_hh: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        mode: LstmMode,
    ) -> FloatTensor<Self> {
        let given = in_order(x.primitive().clone());
        let [ih, hh] = [weight_ih.primitive().clone(), weight_hh.primitive().clone()];
        let parameters = Parameters { weight_ih: values(&ih), weight_hh: values(&hh), bias: values(bias.primitive()) };
        let LstmOutput { y, hidden, unrolled } = lstm_forward(&given, parameters, mode);
        let saved = SavedLstm { x: given, weight_ih: ih, weight_hh: hh, hidden, unrolled: Arc::new(unrolled), mode };
        join_graph!(LstmStep, [x, weight_ih, weight_hh, bias], y, saved)
    }

    fn fused_conv_pooled(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let (given, kernel) = (in_order(x.primitive().clone()), weight.primitive().clone());
        let (y, winners) = conv_forward(&given, &kernel, bias.primitive());
        let saved = SavedConv { x: given, weight: kernel, y: y.clone(), winners: Arc::new(winners) };
        join_graph!(ConvStep, [x, weight, bias], y, saved)
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
        let y = transposed_forward(&given, &kernel, bias.primitive(), sizes, activation);
        let saved = SavedTransposed { x: given, weight: kernel, y: y.clone(), sizes, activation };
        join_graph!(TransposedStep, [x, weight, bias], y, saved)
    }

    fn fused_loss(logits: FloatTensor<Self>, targets: FloatTensor<Self>, sums: SumsCell) -> FloatTensor<Self> {
        let [given, wanted] = [&logits, &targets].map(|tensor| in_order(tensor.primitive().clone()));
        let (loss, gradient) = loss_forward(&given, &wanted, &sums);
        join_graph!(LossStep, [logits], loss, gradient)
    }

    fn fused_register_grad_target(parameter: FloatTensor<Self>, start: usize) -> FloatTensor<Self> {
        let n_values = parameter.primitive().shape().num_elements();
        grad_targets::register_grad_target(parameter.id(), start..start + n_values);
        parameter
    }
}

#[derive(Debug)]
struct DenseStep;

#[derive(Clone, Debug)]
struct SavedDense {
    x: Primitive,
    weight: Primitive,
    y: Primitive,
    activation: Activation,
}

impl Backward<Flex, 3> for DenseStep {
    type State = SavedDense;

    fn backward(self, ops: Ops<SavedDense, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let SavedDense { x, weight, y, activation } = ops.state;
        let ([n_samples, n_in], [_, n_out]) = (shape_of(&x), shape_of(&y));
        let dz = dense::before_activation(values(&y), values(&dy), activation);
        let [x_id, weight_id, bias_id] = ops.parents.map(|node| node.map(|node| node.id));
        put(bias_id, &[n_out], gradients, |into| sum_rows(&dz, into));
        put(weight_id, &[n_out, n_in], gradients, |into| {
            dense::weight_gradient(&dz, values(&x), n_samples, [n_out, n_in], into);
        });
        register_input_gradient(x_id, &[n_samples, n_in], gradients, || {
            dense::input_gradient(&dz, values(&weight), n_out)
        });
    }
}

#[derive(Debug)]
struct LstmStep;

#[derive(Clone, Debug)]
struct SavedLstm {
    x: Primitive,
    weight_ih: Primitive,
    weight_hh: Primitive,
    /// Each step's output: [steps, batch, hidden].
    hidden: Primitive,
    unrolled: Arc<Unrolled>,
    mode: LstmMode,
}

impl Backward<Flex, 4> for LstmStep {
    type State = SavedLstm;

    fn backward(self, ops: Ops<SavedLstm, 4>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let SavedLstm { x, weight_ih, weight_hh, hidden, unrolled, mode } = ops.state;
        let ([n_gates, n_hidden], x_shape): ([usize; 2], [usize; 3]) = (shape_of(&weight_hh), shape_of(&x));
        let [n_steps, n_samples, n_in] = x_shape;
        let dh = match mode {
            LstmMode::Last => OutputGradient::Last(values(&dy)),
            LstmMode::Sequence | LstmMode::RepeatInput(_) => OutputGradient::Steps(values(&dy)),
        };
        let dgates = lstm::gates_gradient(&unrolled, values(&weight_hh), dh);
        let extent = unrolled.extent();
        let [x_id, ih_id, hh_id, bias_id] = ops.parents.map(|node| node.map(|node| node.id));
        put(hh_id, &[n_gates, n_hidden], gradients, |into| {
            // Each step's gates with the outputs of the step before.
            let n_later = (extent.n_steps - 1) * n_samples;
            let (dlater, earlier) = (&dgates[n_samples * n_gates..], &values(&hidden)[..n_later * n_hidden]);
            dense::weight_gradient(dlater, earlier, n_later, [n_gates, n_hidden], into);
        });
        let is_repeated = matches!(mode, LstmMode::RepeatInput(_));
        let dprojected = lstm::projected_gradient(is_repeated, dgates, extent);
        put(bias_id, &[n_gates], gradients, |into| sum_rows(&dprojected, into));
        put(ih_id, &[n_gates, n_in], gradients, |into| {
            dense::weight_gradient(&dprojected, values(&x), n_steps * n_samples, [n_gates, n_in], into);
        });
        register_input_gradient(x_id, &x_shape, gradients, || {
            dense::input_gradient(&dprojected, values(&weight_ih), n_gates)
        });
    }
}

#[derive(Debug)]
struct ConvStep;

#[derive(Clone, Debug)]
struct SavedConv {
    x: Primitive,
    weight: Primitive,
    y: Primitive,
    winners: Arc<Vec<u8>>,
}

impl Backward<Flex, 3> for ConvStep {
    type State = SavedConv;

    fn backward(self, ops: Ops<SavedConv, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let SavedConv { x, weight, y, winners } = ops.state;
        let (weight_shape, [_, height, width, _]): ([usize; 4], [usize; 4]) = (shape_of(&weight), shape_of(&x));
        let [n_out, n_in, ..] = weight_shape;
        let dz = dense::before_activation(values(&y), values(&dy), Activation::Selu);
        let [x_id, weight_id, bias_id] = ops.parents.map(|node| node.map(|node| node.id));
        put(bias_id, &[n_out], gradients, |into| sum_rows(&dz, into));
        let size = Size { height, width };
        let pooled = PooledGradient { x: values(&x), weight: values(&weight), winners: &winners, dz: &dz, size, n_out };
        let (dkernel, dx) = pooled.compute(x_id.is_some());
        put(weight_id, &weight_shape, gradients, |into| unpack(&dkernel, [n_out, n_in], into));
        if let Some(dx) = dx {
            register_input_gradient(x_id, &shape_of::<4>(&x), gradients, || dx);
        }
    }
}

#[derive(Debug)]
struct TransposedStep;

#[derive(Clone, Debug)]
struct SavedTransposed {
    x: Primitive,
    weight: Primitive,
    y: Primitive,
    sizes: TransposedSizes,
    activation: Activation,
}

impl Backward<Flex, 3> for TransposedStep {
    type State = SavedTransposed;

    fn backward(self, ops: Ops<SavedTransposed, 3>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        let dy = in_order(gradients.consume::<Flex>(&ops.node));
        let SavedTransposed { x, weight, y, sizes, activation } = ops.state;
        let dz = dense::before_activation(values(&y), values(&dy), activation);
        let [x_id, weight_id, bias_id] = ops.parents.map(|node| node.map(|node| node.id));
        put(bias_id, &[sizes.n_out], gradients, |into| sum_rows(&dz, into));
        let (dkernel, dx) = sizes.of(&x, &weight).gradient(&dz, x_id.is_some());
        let weight_shape: [usize; 4] = shape_of(&weight);
        let [n_in, n_out, ..] = weight_shape;
        put(weight_id, &weight_shape, gradients, |into| unpack(&dkernel, [n_in, n_out], into));
        if let Some(dx) = dx {
            register_input_gradient(x_id, &shape_of::<4>(&x), gradients, || dx);
        }
    }
}

#[derive(Debug)]
struct LossStep;

impl Backward<Flex, 1> for LossStep {
    type State = Primitive;

    fn backward(self, ops: Ops<Primitive, 1>, gradients: &mut Gradients, _checkpointer: &mut Checkpointer) {
        // The loss is where the backward pass begins: its own gradient is 1.
        gradients.consume::<Flex>(&ops.node);
        let [logits_node] = ops.parents;
        if let Some(node) = logits_node {
            gradients.register::<Flex>(node.id, ops.state);
        }
    }
}
