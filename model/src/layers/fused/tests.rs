//! Every operation against its plain twin and against differences of its outputs, on shapes of all kinds.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{Gradients, Tensor, TensorData};
use proptest::prelude::*;

use super::product::{Accumulate, Dots, Outer, Panels, Right, Rows, rows};
use super::*;
use crate::layers::{self, ConvTranspose, Dense, Initializer, Lstm, Sequence};
use engine::backend::{ComputeDevice, Operations, reference_device};
use engine::random::{ShardKey, Stream, generator, unit_f32};

/// Numbers from -1 to 1, another list for each seed. Those on a grid are eighths: sums of their products are exact, so that
/// two ways of adding them up cannot differ, and equal ones are frequent.
fn numbers(seed: u64, n: usize, is_on_grid: bool) -> Vec<f32> {
    let mut generator = generator(seed, Stream::Shard(ShardKey { epoch: 0, step: 0, shard: 0 }));
    let number = |_| 2.0 * unit_f32(&mut generator) - 1.0;
    let on_grid = |number: f32| if is_on_grid { (8.0 * number).round() / 8.0 } else { number };
    (0..n).map(number).map(on_grid).collect()
}

/// Sets all parameters of a layer, biases too.
struct Fill {
    seed: u64,
    /// The largest.
    scale: f32,
    is_on_grid: bool,
    device: ComputeDevice,
}

impl ModuleMapper for Fill {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.seed += 1;
        let shape = param.shape();
        let mut values = numbers(self.seed, shape.num_elements(), self.is_on_grid);
        for value in &mut values {
            *value *= self.scale;
        }
        Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), &*self.device))
    }
}

/// Moves all parameters of a layer along a direction of numbers.
struct Move {
    seed: u64,
    distance: f32,
}

impl ModuleMapper for Move {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        self.seed += 1;
        let direction = TensorData::new(numbers(self.seed, param.shape().num_elements(), false), param.shape());
        let direction = Tensor::from_data(direction, &param.device());
        Param::from_tensor((param.val() + direction.mul_scalar(self.distance)).detach())
    }
}

/// The gradients of all parameters.
struct Collect<'a> {
    gradients: &'a Gradients,
    found: Vec<Vec<f32>>,
}

impl ModuleVisitor for Collect<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let n_values = param.shape().num_elements();
        let gradient = param.val().grad(self.gradients);
        self.found.push(gradient.map_or_else(|| vec![0.0; n_values], list));
    }
}

fn list<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The loss that stands behind a layer here: its outputs weighed with numbers.
fn pull<const D: usize>(y: Tensor<D>) -> Tensor<1> {
    let shape = y.shape();
    let weights = TensorData::new(numbers(99, shape.num_elements(), false), shape);
    let weights = Tensor::from_data(weights, &y.device());
    (y * weights).sum()
}

/// Which numbers a layer gets.
enum InputKind {
    Smooth,
    /// See [`numbers`].
    OnGrid,
    /// Small ones, so that a difference does not grow from step to step.
    Recurrent,
}

/// A layer with parameters of its own, and an input for it.
struct Subject<M, const D: usize> {
    layer: M,
    x: Vec<f32>,
    shape: [usize; D],
    seed: u64,
}

/// How a layer is called: fused or plain, on an input and to an output in the order of the fused ones.
type Call<'a, M, const D: usize, const E: usize> = &'a dyn Fn(&M, Tensor<D>, Operations) -> Tensor<E>;

impl<M: Module, const D: usize> Subject<M, D> {
    fn new(make: impl FnOnce(&mut Initializer) -> M, shape: [usize; D], seed: u64, kind: InputKind) -> Self {
        let (scale, is_on_grid) = match kind {
            InputKind::Smooth => (1.0, false),
            InputKind::OnGrid => (1.0, true),
            InputKind::Recurrent => (0.25, false),
        };
        let device = reference_device().autodiff();
        let mut fill = Fill { seed, scale, is_on_grid, device: device.clone() };
        let layer = make(&mut Initializer::new(seed, &device)).map(&mut fill);
        Self { layer, x: numbers(seed, shape.iter().product(), is_on_grid), shape, seed }
    }

    fn input(&self, distance: f32) -> Tensor<D> {
        let direction = numbers(self.seed + 100, self.x.len(), false);
        let values: Vec<f32> = self.x.iter().zip(direction).map(|(x, direction)| x + distance * direction).collect();
        Tensor::from_data(TensorData::new(values, self.shape), &*reference_device().autodiff())
    }

    /// Outputs, the gradient at the input, and those at the parameters.
    fn pass<const E: usize>(&self, call: Call<M, D, E>, operations: Operations) -> Vec<Vec<f32>> {
        let x = self.input(0.0).require_grad();
        let y = call(&self.layer, x.clone(), operations);
        let gradients = pull(y.clone()).backward();
        let mut collect = Collect { gradients: &gradients, found: vec![] };
        self.layer.visit(&mut collect);
        let at_input = list(x.grad(&gradients).expect("the input takes part"));
        [list(y), at_input].into_iter().chain(collect.found).collect()
    }

    /// The goal: the fused operation is its twin to 1e-5 of the largest value, in its outputs and in each gradient.
    fn check_twins<const E: usize>(&self, call: Call<M, D, E>) {
        let [fused, plain] = [Operations::Fused, Operations::Plain].map(|operations| self.pass(call, operations));
        assert_eq!(fused.len(), plain.len());
        for (place, (fused, plain)) in fused.iter().zip(&plain).enumerate() {
            let largest = plain.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            assert_eq!(fused.len(), plain.len());
            for (fused, plain) in fused.iter().zip(plain) {
                assert!(
                    (fused - plain).abs() <= 1e-5 * largest + 1e-9,
                    "list {place}: {fused} is not {plain} of {largest}"
                );
            }
        }
        assert_eq!(fused, self.pass(call, Operations::Fused), "two runs give the same bits");
    }

    /// The goal: the handwritten gradient is the slope of the outputs along some direction.
    fn check_slope<const E: usize>(&self, call: Call<M, D, E>) {
        let at = |distance: f32| {
            let layer = self.layer.clone().map(&mut Move { seed: self.seed + 200, distance });
            f64::from(list(pull(call(&layer, self.input(distance), Operations::Fused)))[0])
        };
        let found = self.pass(call, Operations::Fused);
        let mut directions = vec![numbers(self.seed + 100, self.x.len(), false)];
        directions
            .extend((1..).zip(&found[2..]).map(|(place, list)| numbers(self.seed + 200 + place, list.len(), false)));
        let products =
            directions.iter().zip(&found[1..]).flat_map(|(direction, gradient)| direction.iter().zip(gradient));
        let (expected, size) = products.fold((0.0, 0.0), |(sum, size): (f64, f64), (direction, gradient)| {
            let product = f64::from(*direction) * f64::from(*gradient);
            (sum + product, size + product.powi(2))
        });
        let slope = (at(2e-4) - at(-2e-4)) / 4e-4;
        // f32 keeps seven digits of sums of some tens; the difference of two is divided by 4e-4.
        assert!(
            (slope - expected).abs() <= 0.02 * size.sqrt() + 0.02,
            "the slope is {slope}, the gradient says {expected}"
        );
    }
}

fn call_dense(layer: &Dense, x: Tensor<2>, operations: Operations) -> Tensor<2> {
    layer.forward(x, operations)
}

fn call_dense_selu(layer: &Dense, x: Tensor<2>, operations: Operations) -> Tensor<2> {
    layer.selu(x, operations)
}

/// [steps, batch, values] → steps [batch, values], and back.
fn to_steps(x: Tensor<3>) -> Sequence {
    let [n_steps, n_samples, n_values] = x.dims();
    let step = |step| x.clone().narrow(0, step, 1).reshape([n_samples, n_values]);
    (0..n_steps).map(step).collect()
}

fn from_steps(steps: Sequence) -> Tensor<3> {
    Tensor::stack::<3>(steps, 0)
}

fn call_lstm(layer: &Lstm, x: Tensor<3>, operations: Operations) -> Tensor<3> {
    match operations {
        Operations::Fused => layer.fused(x, LstmMode::Sequence),
        Operations::Plain => from_steps(layer.forward(&to_steps(x))),
    }
}

fn call_lstm_last(layer: &Lstm, x: Tensor<3>, operations: Operations) -> Tensor<3> {
    match operations {
        Operations::Fused => layer.fused(x, LstmMode::Last),
        Operations::Plain => from_steps(vec![layer.forward(&to_steps(x)).pop().expect("there is a step")]),
    }
}

/// Channels last, whichever way.
fn call_conv(layer: &layers::Conv, x: Tensor<4>, operations: Operations) -> Tensor<4> {
    match operations {
        Operations::Fused => layer.max_pool_selu(x, operations),
        Operations::Plain => layer.max_pool_selu(x.permute([0, 3, 1, 2]), operations).permute([0, 2, 3, 1]),
    }
}

fn call_transposed(
    layer: &ConvTranspose,
    x: Tensor<4>,
    operations: Operations,
    crop: Crop,
    has_selu: bool,
) -> Tensor<4> {
    let forward = if has_selu { ConvTranspose::selu } else { ConvTranspose::forward };
    match operations {
        Operations::Fused => forward(layer, x, crop, operations),
        Operations::Plain => forward(layer, x.permute([0, 3, 1, 2]), crop, operations).permute([0, 2, 3, 1]),
    }
}

fn dense_subject(n_in: usize, n_out: usize, n_samples: usize, seed: u64) -> Subject<Dense, 2> {
    Subject::new(|initializer| Dense::new(n_in, n_out, initializer), [n_samples, n_in], seed, InputKind::Smooth)
}

fn lstm_subject(n_in: usize, n_hidden: usize, n_steps: usize, n_samples: usize, seed: u64) -> Subject<Lstm, 3> {
    Subject::new(
        |initializer| Lstm::new(n_in, n_hidden, initializer),
        [n_steps, n_samples, n_in],
        seed,
        InputKind::Recurrent,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn fused_dense_matches_plain_operations(n_in in 1_usize..300, n_out in 1_usize..70, n_samples in 1_usize..40, seed in 0..u64::MAX / 2) {
        let subject = dense_subject(n_in, n_out, n_samples, seed);
        subject.check_twins(&call_dense);
        subject.check_twins(&call_dense_selu);
    }

    #[test]
    fn fused_lstm_matches_plain_operations(
        n_in in 1_usize..20, n_hidden in 1_usize..35, n_steps in 1_usize..=40, n_samples in 1_usize..20, seed in 0..u64::MAX / 2,
    ) {
        lstm_subject(n_in, n_hidden, n_steps, n_samples, seed).check_twins(&call_lstm);
    }

    #[test]
    fn fused_lstm_last_output_matches_plain_operations(
        n_in in 1_usize..20, n_hidden in 1_usize..35, n_steps in 1_usize..=40, n_samples in 1_usize..20, seed in 0..u64::MAX / 2,
    ) {
        lstm_subject(n_in, n_hidden, n_steps, n_samples, seed).check_twins(&call_lstm_last);
    }

    #[test]
    fn fused_lstm_repeated_input_matches_plain_operations(
        n_in in 1_usize..20, n_hidden in 1_usize..35, n_steps in 1_usize..=40, n_samples in 1_usize..20, seed in 0..u64::MAX / 2,
    ) {
        let call = |layer: &Lstm, x: Tensor<3>, operations| match operations {
            Operations::Fused => layer.fused(x, LstmMode::RepeatInput(n_steps)),
            Operations::Plain => from_steps(layer.forward_repeated(to_steps(x).remove(0), n_steps)),
        };
        lstm_subject(n_in, n_hidden, 1, n_samples, seed).check_twins(&call);
    }

    #[test]
    fn fused_conv_matches_plain_operations(
        n_in in 1_usize..20, n_out in 1_usize..40, height in 2_usize..12, width in 2_usize..12, n_samples in 1_usize..4,
        seed in 0..u64::MAX / 2,
    ) {
        let make = |initializer: &mut Initializer| layers::Conv::new(n_in, n_out, initializer);
        Subject::new(make, [n_samples, height, width, n_in], seed, InputKind::OnGrid).check_twins(&call_conv);
    }

    #[test]
    fn fused_conv_transpose_matches_plain_operations(
        n_in in 1_usize..40, n_out in 1_usize..20, height in 1_usize..9, width in 1_usize..9, n_samples in 1_usize..4,
        is_cropped in any::<bool>(), has_selu in any::<bool>(), seed in 0..u64::MAX / 2,
    ) {
        let make = |initializer: &mut Initializer| ConvTranspose::new(n_in, n_out, initializer);
        let crop = if is_cropped { Crop::Same } else { Crop::Valid };
        let call = |layer: &ConvTranspose, x, operations| call_transposed(layer, x, operations, crop, has_selu);
        Subject::new(make, [n_samples, height, width, n_in], seed, InputKind::OnGrid).check_twins(&call);
    }

    #[test]
    fn fused_loss_matches_plain_operations(n_samples in 1_usize..5, n_rows in 1_usize..40, n_columns in 1_usize..30, scale in 0.01_f32..60.0, seed in 0..u64::MAX / 2) {
        let device = reference_device();
        let shape = [n_samples, n_rows, n_columns];
        let n_values = n_samples * n_rows * n_columns;
        let logits = numbers(seed, n_values, false).into_iter().map(|number| scale * number).collect();
        let targets = numbers(seed + 1, n_values, false).into_iter().map(f32::abs).collect();
        let [logits, targets] = [logits, targets].map(|values| Tensor::<3>::from_data(TensorData::new::<f32, _>(values, shape), &*device));
        let plain = crate::loss::binary_cross_entropy(logits.clone(), targets.clone());
        let (fused, _) = binary_cross_entropy(logits.clone(), targets.clone());
        prop_assert!((fused.loss_sum / plain.sums.loss_sum - 1.0).abs() <= 1e-5, "{fused:?} {:?}", plain.sums);
        prop_assert_eq!((fused.counts, fused.n_samples), (plain.sums.counts, plain.sums.n_samples));

        let logits = Tensor::<3>::from_data(logits.into_data(), &*device.clone().autodiff()).require_grad();
        let targets = Tensor::from_data(targets.into_data(), &*device.autodiff());
        let gradients = binary_cross_entropy(logits.clone(), targets).1.backward();
        let (found, expected) = (list(logits.grad(&gradients).expect("the logits take part")), list(plain.logits_gradient));
        let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
        prop_assert!(found.iter().zip(&expected).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));
    }

    /// In vectors of both widths, with and without packing, in one block of places and in several.
    #[test]
    fn matrix_products_match_definition(m in 1_usize..90, k in 1_usize..300, n in 1_usize..110, seed in 0..u64::MAX / 2) {
        let (a, b, before) = (numbers(seed, m * k, true), numbers(seed + 1, k * n, true), numbers(seed + 2, m * n, true));
        let transposed = |values: &[f32], n_rows, n_columns| {
            let mut transposed = vec![0.0; values.len()];
            transpose::transpose(values, n_rows, n_columns, &mut transposed);
            transposed
        };
        let (a_columns, b_columns) = (transposed(&a, m, k), transposed(&b, k, n));
        let value = |place: usize| -> f32 { (0..k).map(|inner| a[place / n * k + inner] * b[inner * n + place % n]).sum() };
        let product: Vec<f32> = (0..m * n).map(value).collect();
        for (takes_half_vectors, accumulate) in [false, true].into_iter().flat_map(|half| [(half, Accumulate::Overwrite), (half, Accumulate::Add)]) {
            HALF_VECTORS.set(takes_half_vectors);
            let expected: Vec<f32> = match accumulate {
                Accumulate::Overwrite => product.clone(),
                Accumulate::Add => product.iter().zip(&before).map(|(product, before)| product + before).collect(),
            };
            for b in [Right::Matrix(&b, n), Right::Panels(&Panels::new(&b, n))] {
                let mut c = before.clone();
                Rows { a: &a, a_rows: &rows(m, k), a_runs: &[0], run: k, b, c: &mut c, c_rows: &rows(m, n), accumulate }.compute();
                prop_assert_eq!(&c, &expected);
            }
            let mut c = before.clone();
            Outer { a: &a_columns, a_rows: &rows(k, m), m, b: &b, b_rows: &rows(k, n), n, c: &mut c, c_stride: n, accumulate }.compute();
            prop_assert_eq!(&c, &expected);
            let mut c = before.clone();
            Dots { a: &a, a_stride: k, m, b: &b_columns, b_stride: k, n, k, c: &mut c, c_stride: n }.compute();
            prop_assert_eq!(&c, &product);
        }
    }
}

/// The goal: every handwritten backward pass is right by itself, not only beside its twin. Where SELU or pooling has a kink, a
/// difference across it is no slope; with these numbers none is that near.
#[test]
fn gradients_match_finite_differences() {
    for seed in 0..30_u64 {
        let size =
            |place: u64, largest: u64| usize::try_from(1 + (7 * seed + 3 * place) % largest).expect("a small number");
        let (n_in, n_out, n, n_samples) = (size(0, 11), size(1, 13), size(2, 8), size(3, 5));
        dense_subject(n_in, n_out, n_samples, seed).check_slope(&call_dense);
        dense_subject(30 * n_in, n_out, n_samples, seed).check_slope(&call_dense);
        dense_subject(n_in, n_out, n_samples, seed).check_slope(&call_dense_selu);
        lstm_subject(n_in, n_out, n, n_samples, seed).check_slope(&call_lstm);
        lstm_subject(n_in, n_out, n, n_samples, seed).check_slope(&call_lstm_last);
        let repeated = |layer: &Lstm, x: Tensor<3>, _| layer.fused(x, LstmMode::RepeatInput(n));
        lstm_subject(n_in, n_out, 1, n_samples, seed).check_slope(&repeated);
        let conv = |initializer: &mut Initializer| layers::Conv::new(n_in, n_out, initializer);
        Subject::new(conv, [1, n + 1, 3, n_in], seed, InputKind::Smooth).check_slope(&call_conv);
        for crop in [Crop::Valid, Crop::Same] {
            let make = |initializer: &mut Initializer| ConvTranspose::new(n_in, n_out, initializer);
            let call =
                |layer: &ConvTranspose, x: Tensor<4>, operations| call_transposed(layer, x, operations, crop, false);
            Subject::new(make, [n_samples, n, 3, n_in], seed, InputKind::Smooth).check_slope(&call);
        }
    }
}

#[test]
#[should_panic(expected = "B holds its rows")]
fn product_with_short_operand_panics() {
    Rows {
        a: &[0.0; 6],
        a_rows: &rows(2, 3),
        a_runs: &[0],
        run: 3,
        b: Right::Matrix(&[0.0; 5], 2),
        c: &mut [0.0; 4],
        c_rows: &rows(2, 2),
        accumulate: Accumulate::Overwrite,
    }
    .compute();
}

/// The goal: a gradient goes to its registered target, once; what was not registered, or is there already, is not lost.
#[test]
fn gradient_is_written_to_registered_target_once() {
    let device = reference_device().autodiff();
    let leaf = |seed, shape: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(numbers(seed, shape[0] * shape[1], true), shape), &*device)
            .require_grad()
    };
    let (x, weight) = (leaf(1, [2, 3]), leaf(2, [3, 3]));
    let bias = Tensor::<1>::from_data(TensorData::new(numbers(3, 3, true), [3]), &*device).require_grad();
    let twice = |x: Tensor<2>| {
        dense(dense(x, weight.clone(), bias.clone(), Activation::None), weight.clone(), bias.clone(), Activation::None)
    };
    let expected = pull(twice(x.clone())).backward();
    let mut values = vec![7.0; 20];
    let (found, written) = with_grad_targets(&mut values, || {
        register_grad_target(weight.clone(), 1);
        pull(twice(x.clone())).backward()
    });
    assert_eq!((written.len(), written[0].clone()), (1, 1..10));
    let second = list(weight.grad(&found).expect("the second use of the weights has no target"));
    let sum: Vec<f32> = values[1..10].iter().zip(second).map(|(first, second)| first + second).collect();
    let total = list(weight.grad(&expected).expect("the weights take part"));
    assert!(sum.iter().zip(&total).all(|(a, b)| (a - b).abs() < 1e-5), "{sum:?} {total:?}");
    assert_eq!(list(bias.grad(&found).expect("not registered")), list(bias.grad(&expected).expect("the same")));
    let is_untouched = |value: &f32| value.to_bits() == 7.0_f32.to_bits();
    assert!(is_untouched(&values[0]) && values[10..].iter().all(is_untouched), "nothing else is touched");
}
