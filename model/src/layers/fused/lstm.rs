//! A whole LSTM layer over a sequence, forward and through time backward. Values lie step after step, sample after sample:
//! [steps, batch, features]. So the input is projected at all steps at once, each step's output is where the next one reads it,
//! and the weights' gradients take values as they lie. Forward takes transposed copies of the kernels, made once a
//! pass: with a few samples a worker, products along the features are twice to three times as fast as those along the samples,
//! which need no copy. What is taken at every step is packed once a pass as well.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::buffers::Buffer;
use super::dense::{multiply, transposed};
use super::product::{Accumulate, Panels, Right};
use crate::arithmetic::{sigmoid, tanh};
use engine::reduce::add_into;

/// Gates: i, f, g, o.
const N_GATES: usize = 4;

/// The parameters of a layer.
#[derive(Clone, Copy, Debug)]
pub struct Parameters<'a> {
    /// [4 hidden, in].
    pub weight_ih: &'a [f32],
    /// [4 hidden, hidden].
    pub weight_hh: &'a [f32],
    /// [4 hidden].
    pub bias: &'a [f32],
}

/// How many steps of how many sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Steps, from 1.
    pub n_steps: usize,
    /// Sequences, from 1.
    pub n_samples: usize,
}

/// What a layer is given.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Another value at each step: [steps, batch, in].
    Steps(&'a [f32]),
    /// One value at all of them: [batch, in].
    Repeated(&'a [f32]),
}

/// What a layer went through, saved for the backward pass.
#[derive(Debug)]
pub struct Unrolled {
    extent: Extent,
    /// After their functions: [steps, batch, 4 hidden].
    gates: Buffer,
    /// [steps, batch, hidden].
    cells: Buffer,
    /// Their hyperbolic tangents: [steps, batch, hidden].
    cell_tanhs: Buffer,
}

impl Unrolled {
    /// Steps and sequences.
    pub fn extent(&self) -> Extent {
        self.extent
    }
}

/// Goes through the sequence from a state of zeros; gives each step's output, [steps, batch, hidden], too.
pub fn forward(input: Input, parameters: Parameters, extent: Extent) -> (Buffer, Unrolled) {
    let Parameters { weight_ih, weight_hh, bias } = parameters;
    let n_gates = bias.len();
    let (n_in, n_hidden) = (weight_ih.len() / n_gates, n_gates / N_GATES);
    let [n_state, n_step] = [n_hidden, n_gates].map(|n_values| extent.n_samples * n_values);
    let mut gates = Buffer::new(extent.n_steps * n_step);
    // The input's share, with the bias.
    let (x, projected) = match input {
        Input::Steps(x) => (x, &mut gates[..]),
        Input::Repeated(x) => (x, &mut gates[..n_step]),
    };
    projected.chunks_exact_mut(n_gates).for_each(|row| row.copy_from_slice(bias));
    multiply(x, Right::Matrix(&transposed(weight_ih, n_in), n_gates), n_in, Accumulate::Add, projected);
    if let Input::Repeated(_) = input {
        let (first, others) = gates.split_at_mut(n_step);
        others.chunks_exact_mut(n_step).for_each(|step| step.copy_from_slice(first));
    }

    let recurrent = Panels::new(&transposed(weight_hh, n_hidden), n_gates);
    let [mut cells, mut cell_tanhs, mut hidden] = [(); 3].map(|()| Buffer::new(extent.n_steps * n_state));
    let zeros = Buffer::zeros(n_state);
    for (step, gates) in gates.chunks_exact_mut(n_step).enumerate() {
        let (outputs_before, outputs) = hidden.split_at_mut(step * n_state);
        let (cells_before, cells) = cells.split_at_mut(step * n_state);
        let before = match step.checked_sub(1) {
            None => &zeros,
            Some(before) => {
                let outputs = part(outputs_before, before, n_state);
                multiply(outputs, Right::Panels(&recurrent), n_hidden, Accumulate::Add, gates);
                part(cells_before, before, n_state)
            }
        };
        let outputs = &mut outputs[..n_state];
        forward_step(ForwardStep {
            n_hidden,
            gates,
            before,
            cells,
            cell_tanhs: &mut cell_tanhs[step * n_state..],
            outputs,
        });
    }
    (hidden, Unrolled { extent, gates, cells, cell_tanhs })
}

/// Part number `place` of so many values.
fn part(values: &[f32], place: usize, n_values: usize) -> &[f32] {
    &values[place * n_values..][..n_values]
}

/// What a forward step changes, and what from. Each is [batch, hidden] or begins so; the gates are [batch, 4 hidden].
struct ForwardStep<'a> {
    n_hidden: usize,
    /// Before their functions, and then after.
    gates: &'a mut [f32],
    /// The cells of the step before.
    before: &'a [f32],
    cells: &'a mut [f32],
    cell_tanhs: &'a mut [f32],
    outputs: &'a mut [f32],
}

/// Something that is done to each sample's values, some at once. Their number is known when it is compiled, so that they lie
/// in vectors, and the rest beyond the last whole one in smaller ones.
trait Blocks {
    /// Takes `N` values of each gate of a sample, from `first` on.
    fn take<const N: usize>(&mut self, sample: usize, first: usize);

    #[inline(always)]
    fn take_all(&mut self, n_samples: usize, n_hidden: usize) {
        let n_whole = n_hidden / 16 * 16;
        for sample in 0..n_samples {
            for first in (0..n_whole).step_by(16) {
                self.take::<16>(sample, first);
            }
            let mut first = n_whole;
            if n_hidden - first >= 8 {
                self.take::<8>(sample, first);
                first += 8;
            }
            if n_hidden - first >= 4 {
                self.take::<4>(sample, first);
                first += 4;
            }
            if n_hidden - first >= 2 {
                self.take::<2>(sample, first);
                first += 2;
            }
            if n_hidden > first {
                self.take::<1>(sample, first);
            }
        }
    }
}

/// Where a block of each gate begins in [batch, 4 hidden].
#[inline(always)]
fn gate_places(n_hidden: usize, sample: usize, first: usize) -> [usize; N_GATES] {
    let start = sample * N_GATES * n_hidden + first;
    [start, start + n_hidden, start + 2 * n_hidden, start + 3 * n_hidden]
}

#[inline(always)]
fn read<const N: usize>(values: &[f32], first: usize) -> [f32; N] {
    *values[first..].first_chunk().expect("a block lies within its slice")
}

#[inline(always)]
fn write<const N: usize>(block: [f32; N], values: &mut [f32], first: usize) {
    *values[first..].first_chunk_mut().expect("a block lies within its slice") = block;
}

#[with_simd(forward_step = Arch::new())]
#[inline(always)]
fn forward_step_with_simd<S: Simd>(_simd: S, mut change: ForwardStep<'_>) {
    let n_hidden = change.n_hidden;
    change.take_all(change.before.len() / n_hidden, n_hidden);
}

impl Blocks for ForwardStep<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self, sample: usize, first: usize) {
        let [at_i, at_f, at_g, at_o] = gate_places(self.n_hidden, sample, first);
        let place = sample * self.n_hidden + first;
        let mut i: [f32; N] = read(self.gates, at_i);
        let mut f: [f32; N] = read(self.gates, at_f);
        let mut g: [f32; N] = read(self.gates, at_g);
        let mut o: [f32; N] = read(self.gates, at_o);
        let before: [f32; N] = read(self.before, place);
        let (mut cell, mut cell_tanh, mut output) = ([0.0; N], [0.0; N], [0.0; N]);
        for lane in 0..N {
            (i[lane], f[lane], g[lane], o[lane]) =
                (sigmoid(i[lane]), sigmoid(f[lane]), tanh(g[lane]), sigmoid(o[lane]));
            cell[lane] = f[lane] * before[lane] + i[lane] * g[lane];
            cell_tanh[lane] = tanh(cell[lane]);
            output[lane] = o[lane] * cell_tanh[lane];
        }
        write(i, self.gates, at_i);
        write(f, self.gates, at_f);
        write(g, self.gates, at_g);
        write(o, self.gates, at_o);
        write(cell, self.cells, place);
        write(cell_tanh, self.cell_tanhs, place);
        write(output, self.outputs, place);
    }
}

/// The gradient at a layer's outputs.
#[derive(Clone, Copy, Debug)]
pub enum OutputGradient<'a> {
    /// At each step: [steps, batch, hidden].
    Steps(&'a [f32]),
    /// At the last one, and none at the others: [batch, hidden].
    Last(&'a [f32]),
}

/// The gradient at the gates, before their functions: [steps, batch, 4 hidden].
pub fn gates_gradient(unrolled: &Unrolled, weight_hh: &[f32], dh: OutputGradient) -> Buffer {
    let Extent { n_steps, n_samples } = unrolled.extent;
    let n_state = unrolled.cells.len() / n_steps;
    let (n_hidden, n_step) = (n_state / n_samples, N_GATES * n_state);
    let recurrent = Panels::new(weight_hh, n_hidden);
    let mut dgates = Buffer::new(n_steps * n_step);
    // What goes on to the step before: [batch, hidden] each.
    let mut dstate = Buffer::new(n_state);
    let mut dcells = Buffer::zeros(n_state);
    let zeros = Buffer::zeros(n_state);
    for step in (0..n_steps).rev() {
        let given = match dh {
            OutputGradient::Steps(values) => Some(part(values, step, n_state)),
            OutputGradient::Last(values) => (step + 1 == n_steps).then_some(values),
        };
        if let Some(given) = given {
            dstate.copy_from_slice(given);
        }
        let (dstep, dlater) = dgates[step * n_step..].split_at_mut(n_step);
        if step + 1 < n_steps {
            let accumulate = if given.is_some() { Accumulate::Add } else { Accumulate::Overwrite };
            multiply(&dlater[..n_step], Right::Panels(&recurrent), N_GATES * n_hidden, accumulate, &mut dstate);
        }
        backward_step(BackwardStep {
            n_hidden,
            gates: part(&unrolled.gates, step, n_step),
            before: if step == 0 { &zeros } else { part(&unrolled.cells, step - 1, n_state) },
            cell_tanhs: part(&unrolled.cell_tanhs, step, n_state),
            dstate: &dstate,
            dcells: &mut dcells,
            dgates: dstep,
        });
    }
    dgates
}

/// What a step of the backward pass changes, and what from. Each is [batch, hidden]; gates are [batch, 4 hidden].
struct BackwardStep<'a> {
    n_hidden: usize,
    /// After their functions.
    gates: &'a [f32],
    /// The cells of the step before.
    before: &'a [f32],
    cell_tanhs: &'a [f32],
    /// Gradient at the outputs.
    dstate: &'a [f32],
    /// Gradient at the cells from the steps after it, and then at those of the step before.
    dcells: &'a mut [f32],
    /// Gradient at the gates before their functions.
    dgates: &'a mut [f32],
}

#[with_simd(backward_step = Arch::new())]
#[inline(always)]
fn backward_step_with_simd<S: Simd>(_simd: S, mut change: BackwardStep<'_>) {
    let n_hidden = change.n_hidden;
    change.take_all(change.before.len() / n_hidden, n_hidden);
}

impl Blocks for BackwardStep<'_> {
    #[inline(always)]
    fn take<const N: usize>(&mut self, sample: usize, first: usize) {
        let [at_i, at_f, at_g, at_o] = gate_places(self.n_hidden, sample, first);
        let place = sample * self.n_hidden + first;
        let i: [f32; N] = read(self.gates, at_i);
        let f: [f32; N] = read(self.gates, at_f);
        let g: [f32; N] = read(self.gates, at_g);
        let o: [f32; N] = read(self.gates, at_o);
        let before: [f32; N] = read(self.before, place);
        let cell_tanh: [f32; N] = read(self.cell_tanhs, place);
        let dh: [f32; N] = read(self.dstate, place);
        let mut dcell: [f32; N] = read(self.dcells, place);
        let (mut di, mut df, mut dg, mut d_o) = ([0.0; N], [0.0; N], [0.0; N], [0.0; N]);
        for lane in 0..N {
            let (input, forget, value, output) = (i[lane], f[lane], g[lane], o[lane]);
            let dcell_here = dcell[lane] + dh[lane] * output * (1.0 - cell_tanh[lane] * cell_tanh[lane]);
            di[lane] = dcell_here * value * input * (1.0 - input);
            df[lane] = dcell_here * before[lane] * forget * (1.0 - forget);
            dg[lane] = dcell_here * input * (1.0 - value * value);
            d_o[lane] = dh[lane] * cell_tanh[lane] * output * (1.0 - output);
            dcell[lane] = dcell_here * forget;
        }
        write(di, self.dgates, at_i);
        write(df, self.dgates, at_f);
        write(dg, self.dgates, at_g);
        write(d_o, self.dgates, at_o);
        write(dcell, self.dcells, place);
    }
}

/// The gates' gradient as the input sees it: of a repeated one, the sum over the steps. [steps or 1, batch, 4 hidden].
pub fn projected_gradient(is_repeated: bool, dgates: Buffer, extent: Extent) -> Buffer {
    if !is_repeated {
        return dgates;
    }
    let mut sums = Buffer::zeros(dgates.len() / extent.n_steps);
    let n_step = sums.len();
    for step in dgates.chunks_exact(n_step) {
        add_into(&mut sums, step);
    }
    sums
}
