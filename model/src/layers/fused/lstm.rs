//! A whole LSTM layer over a sequence, forward and through time backward. Values lie step after step, sample after sample:
//! [steps, batch, features]. So the input is projected at all steps at once, each step's output is where the next one reads it,
//! and the way back and the weights' gradients take weights and values as they lie. Forward takes copies of the kernels that
//! are turned round, made once a pass: with a few samples a worker, products along the features are twice to three times as
//! fast as those along the samples, which need no copy.

use pulp::{Arch, Simd};
use pulp_macro::with_simd;

use super::buffers::Buffer;
use super::dense::{multiply, turned};
use super::product::Onto;
use crate::arithmetic::{sigmoid, tanh};
use crate::reduce::add_into;

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

/// What a layer went through, kept for the way back.
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
    multiply(x, &turned(weight_ih, n_in), n_in, Onto::Values, projected);
    if let Input::Repeated(_) = input {
        let (first, others) = gates.split_at_mut(n_step);
        others.chunks_exact_mut(n_step).for_each(|step| step.copy_from_slice(first));
    }

    let recurrent = turned(weight_hh, n_hidden);
    let [mut cells, mut cell_tanhs, mut hidden] = [(); 3].map(|()| Buffer::new(extent.n_steps * n_state));
    let zeros = Buffer::zeros(n_state);
    for (step, gates) in gates.chunks_exact_mut(n_step).enumerate() {
        let (outputs_before, outputs) = hidden.split_at_mut(step * n_state);
        let (cells_before, cells) = cells.split_at_mut(step * n_state);
        let before = match step.checked_sub(1) {
            None => &zeros,
            Some(before) => {
                multiply(part(outputs_before, before, n_state), &recurrent, n_hidden, Onto::Values, gates);
                part(cells_before, before, n_state)
            }
        };
        let outputs = &mut outputs[..n_state];
        advance(Advance { n_hidden, gates, before, cells, cell_tanhs: &mut cell_tanhs[step * n_state..], outputs });
    }
    (hidden, Unrolled { extent, gates, cells, cell_tanhs })
}

/// Part number `place` of so many values.
fn part(values: &[f32], place: usize, n_values: usize) -> &[f32] {
    &values[place * n_values..][..n_values]
}

/// What a step changes, and what from. Each is [batch, hidden] or begins so; the gates are [batch, 4 hidden].
struct Advance<'a> {
    n_hidden: usize,
    /// Before their functions, and then after.
    gates: &'a mut [f32],
    /// The cells of the step before.
    before: &'a [f32],
    cells: &'a mut [f32],
    cell_tanhs: &'a mut [f32],
    outputs: &'a mut [f32],
}

/// Values that are computed at once: a vector of the widest.
const N_LANES: usize = 16;

/// So many values of each gate of a sample.
type Lanes = [f32; N_LANES];

#[with_simd(advance = Arch::new())]
#[inline(always)]
fn advance_with_simd<S: Simd>(_simd: S, change: Advance<'_>) {
    let Advance { n_hidden, gates, before, cells, cell_tanhs, outputs } = change;
    for (sample, gates) in gates.chunks_exact_mut(N_GATES * n_hidden).enumerate() {
        for first in (0..n_hidden).step_by(N_LANES) {
            let n = N_LANES.min(n_hidden - first);
            let place = sample * n_hidden + first;
            let [i, f, g, o] = [0, 1, 2, 3].map(|gate| read(&gates[gate * n_hidden + first..][..n]));
            let before = read(&before[place..][..n]);
            let [mut input, mut forget, mut value, mut output] = [[0.0; N_LANES]; N_GATES];
            let [mut cell, mut cell_tanh, mut out] = [[0.0; N_LANES]; 3];
            for lane in 0..N_LANES {
                (input[lane], forget[lane]) = (sigmoid(i[lane]), sigmoid(f[lane]));
                (value[lane], output[lane]) = (tanh(g[lane]), sigmoid(o[lane]));
                cell[lane] = forget[lane] * before[lane] + input[lane] * value[lane];
                cell_tanh[lane] = tanh(cell[lane]);
                out[lane] = output[lane] * cell_tanh[lane];
            }
            write(&input, &mut gates[first..][..n]);
            write(&forget, &mut gates[n_hidden + first..][..n]);
            write(&value, &mut gates[2 * n_hidden + first..][..n]);
            write(&output, &mut gates[3 * n_hidden + first..][..n]);
            write(&cell, &mut cells[place..][..n]);
            write(&cell_tanh, &mut cell_tanhs[place..][..n]);
            write(&out, &mut outputs[place..][..n]);
        }
    }
}

/// As many values as there are, zeros beyond them.
#[inline(always)]
fn read(values: &[f32]) -> Lanes {
    if let Some(lanes) = values.first_chunk() {
        return *lanes;
    }
    let mut lanes = [0.0; N_LANES];
    lanes[..values.len()].copy_from_slice(values);
    lanes
}

#[inline(always)]
fn write(lanes: &Lanes, values: &mut [f32]) {
    match values.first_chunk_mut() {
        Some(values) => *values = *lanes,
        None => values.copy_from_slice(&lanes[..values.len()]),
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
            let onto = if given.is_some() { Onto::Values } else { Onto::Nothing };
            multiply(&dlater[..n_step], weight_hh, N_GATES * n_hidden, onto, &mut dstate);
        }
        retreat(Retreat {
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

/// What a step on the way back changes, and what from. Each is [batch, hidden]; gates are [batch, 4 hidden].
struct Retreat<'a> {
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

#[with_simd(retreat = Arch::new())]
#[inline(always)]
fn retreat_with_simd<S: Simd>(_simd: S, change: Retreat<'_>) {
    let Retreat { n_hidden, gates, before, cell_tanhs, dstate, dcells, dgates } = change;
    let n_gates = N_GATES * n_hidden;
    let samples = gates.chunks_exact(n_gates).zip(dgates.chunks_exact_mut(n_gates));
    for (sample, (gates, dgates)) in samples.enumerate() {
        for first in (0..n_hidden).step_by(N_LANES) {
            let n = N_LANES.min(n_hidden - first);
            let place = sample * n_hidden + first;
            let [i, f, g, o] = [0, 1, 2, 3].map(|gate| read(&gates[gate * n_hidden + first..][..n]));
            let [before, cell_tanh, dh, dlater] =
                [before, cell_tanhs, dstate, &*dcells].map(|values| read(&values[place..][..n]));
            let [mut di, mut df, mut dg, mut d_o, mut dearlier] = [[0.0; N_LANES]; 5];
            for lane in 0..N_LANES {
                let (input, forget, value, output) = (i[lane], f[lane], g[lane], o[lane]);
                let dcell = dlater[lane] + dh[lane] * output * (1.0 - cell_tanh[lane] * cell_tanh[lane]);
                di[lane] = dcell * value * input * (1.0 - input);
                df[lane] = dcell * before[lane] * forget * (1.0 - forget);
                dg[lane] = dcell * input * (1.0 - value * value);
                d_o[lane] = dh[lane] * cell_tanh[lane] * output * (1.0 - output);
                dearlier[lane] = dcell * forget;
            }
            write(&di, &mut dgates[first..][..n]);
            write(&df, &mut dgates[n_hidden + first..][..n]);
            write(&dg, &mut dgates[2 * n_hidden + first..][..n]);
            write(&d_o, &mut dgates[3 * n_hidden + first..][..n]);
            write(&dearlier, &mut dcells[place..][..n]);
        }
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
