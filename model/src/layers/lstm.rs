//! The long short-term memory layer with one bias per gate, over sequences of any length.

use burn::module::{Module, Param};
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::{Device, Tensor, module::linear};

use super::Initializer;
#[cfg(feature = "flex")]
use super::fused::{self, LstmMode};

/// A sequence, step by step: `n_steps` tensors [batch, values]. Layers hand each other the steps as they are, since
/// cutting one big tensor apart would cost, in the backward pass, a tensor of its whole size for every step.
pub type Sequence = Vec<Tensor<2>>;

/// An LSTM: `i, f, g, o` from `W_ih x + W_hh h + b`; `c = σ(f) c + σ(i) tanh(g)`; `h = σ(o) tanh(c)`; both start at 0.
#[derive(Module, Debug)]
pub struct Lstm {
    weight_ih: Param<Tensor<2>>, // [4 hidden, in], gates in the order i, f, g, o
    weight_hh: Param<Tensor<2>>, // [4 hidden, hidden]
    bias: Param<Tensor<1>>,      // [4 hidden]
}

impl Lstm {
    /// A layer from `n_in` to `n_hidden` values a step: kernel Glorot-uniform, recurrent kernel orthogonal, bias 0,
    /// but 1 for the forget gate.
    pub fn new(n_in: usize, n_hidden: usize, initializer: &mut Initializer) -> Self {
        Self {
            weight_ih: initializer.glorot_uniform([4 * n_hidden, n_in]),
            weight_hh: initializer.orthogonal(4 * n_hidden, n_hidden),
            bias: initializer.forget_gate_one(n_hidden),
        }
    }

    /// The whole layer at once: [steps, batch, in] → [steps, batch, hidden], or as `mode` says.
    #[cfg(feature = "flex")]
    pub fn fused(&self, x: Tensor<3>, mode: LstmMode) -> Tensor<3> {
        fused::lstm(x, [self.weight_ih.val(), self.weight_hh.val()], self.bias.val(), mode)
    }

    /// Steps [batch, in] → as many steps [batch, hidden].
    pub fn forward(&self, steps: &[Tensor<2>]) -> Sequence {
        let inputs = steps.iter().map(|x| self.project(x.clone()));
        self.unroll(inputs)
    }

    /// One value [batch, in] given at each of `n_steps` steps → `n_steps` steps [batch, hidden]. The input is
    /// projected once, not once a step.
    pub fn forward_repeated(&self, x: Tensor<2>, n_steps: usize) -> Sequence {
        let projected = self.project(x);
        self.unroll(std::iter::repeat_n(projected, n_steps))
    }

    /// [batch, in] → the input's share of all four gates, with the bias: [batch, 4 hidden].
    fn project(&self, x: Tensor<2>) -> Tensor<2> {
        linear(x, self.weight_ih.val().transpose(), Some(self.bias.val()))
    }

    fn unroll(&self, inputs: impl Iterator<Item = Tensor<2>>) -> Sequence {
        let recurrent = self.weight_hh.val().transpose(); // [hidden, 4 hidden]
        let [n_hidden, _] = recurrent.dims();
        let mut state: Option<State> = None;
        let mut outputs = Vec::with_capacity(inputs.size_hint().0);
        for input in inputs {
            let next = match state {
                None => State::first(input, n_hidden),
                Some(State { h, c }) => State::after(input + h.matmul(recurrent.clone()), c, n_hidden),
            };
            outputs.push(next.h.clone());
            state = Some(next);
        }
        outputs
    }
}

/// What an LSTM carries from step to step.
struct State {
    h: Tensor<2>, // [batch, hidden]
    c: Tensor<2>, // [batch, hidden]
}

impl State {
    fn first(gates: Tensor<2>, n_hidden: usize) -> Self {
        let [n_samples, _] = gates.dims();
        let device: Device = gates.device();
        Self::after(gates, Tensor::zeros([n_samples, n_hidden], &device), n_hidden)
    }

    #[expect(clippy::many_single_char_names, reason = "the letters of the formula")]
    /// The state after a step whose gates, before their functions, are [batch, 4 hidden].
    fn after(gates: Tensor<2>, c: Tensor<2>, n_hidden: usize) -> Self {
        let gate = |position: usize| gates.clone().narrow(1, position * n_hidden, n_hidden); // [batch, hidden]
        let [i, f, g, o] = [0, 1, 2, 3].map(gate);
        let c = sigmoid(f) * c + sigmoid(i) * tanh(g);
        let h = sigmoid(o) * tanh(c.clone());
        Self { h, c }
    }
}
