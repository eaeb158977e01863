//! The network: a decoder-only transformer with pre-layer normalisation, as in GPT-2. The token embedding is used twice: for the
//! input, and transposed for the output.

use burn::module::{Initializer, Module};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::transformer::{PositionWiseFeedForward, PositionWiseFeedForwardConfig};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};

use crate::Language;
use crate::data::{BOUNDARY, N_TOKENS, TokenBatch};

/// Initial weights as in GPT-2: small, so that the blocks do not drown the embedding, which is the output's weight too.
const INITIALIZER: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

/// Tokens → the logits of the tokens that follow them.
#[derive(Module, Debug)]
pub struct Transformer {
    /// [tokens, width]
    tokens: Embedding,
    /// [context, width]
    positions: Embedding,
    dropout: Dropout,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

/// Attention and a feed-forward network, each with layer normalisation before it and a residual connection around it.
#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: MultiHeadAttention,
    feed_forward_norm: LayerNorm,
    feed_forward: PositionWiseFeedForward,
    dropout: Dropout,
}

/// How well the network predicts a batch.
#[derive(Debug)]
pub struct Scores {
    /// Of each sample, the mean of its tokens' losses in bits.
    pub bits: Tensor<1>,
    /// Tokens that were the most probable ones.
    pub n_right: u64,
    /// Tokens that were to be predicted.
    pub n_tokens: u64,
}

impl Block {
    fn new(settings: &Language, device: &Device) -> Self {
        let Language { width, heads, dropout, .. } = *settings;
        Self {
            attention_norm: LayerNormConfig::new(width).init(device),
            // Dropout of attention weights would draw heads × length² numbers per sample, most of a step's random numbers.
            attention: MultiHeadAttentionConfig::new(width, heads)
                .with_dropout(0.0)
                .with_initializer(INITIALIZER)
                .init(device),
            feed_forward_norm: LayerNormConfig::new(width).init(device),
            feed_forward: PositionWiseFeedForwardConfig::new(width, 4 * width)
                .with_dropout(dropout)
                .with_initializer(INITIALIZER)
                .init(device),
            dropout: DropoutConfig::new(dropout).init(),
        }
    }

    /// [batch, length, width] → the same.
    fn forward(&self, x: Tensor<3>, mask: Tensor<3, Bool>) -> Tensor<3> {
        let input = MhaInput::self_attn(self.attention_norm.forward(x.clone())).mask_attn(mask);
        let x = x + self.dropout.forward(self.attention.forward(input).context);
        let update = self.feed_forward.forward(self.feed_forward_norm.forward(x.clone()));
        x + self.dropout.forward(update)
    }
}

impl Transformer {
    /// With initial values from Burn's generator.
    pub fn new(settings: &Language, device: &Device) -> Self {
        let Language { layers, width, context, dropout, .. } = *settings;
        let embedding = |n| EmbeddingConfig::new(n, width).with_initializer(INITIALIZER).init(device);
        Self {
            tokens: embedding(N_TOKENS),
            positions: embedding(context),
            dropout: DropoutConfig::new(dropout).init(),
            blocks: (0..layers).map(|_| Block::new(settings, device)).collect(),
            norm: LayerNormConfig::new(width).init(device),
        }
    }

    /// [batch, length] → [batch, length, tokens]. The logits at a position depend on the tokens up to it.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let ([n_samples, length], device) = (tokens.dims(), tokens.device());
        let positions = Tensor::arange(0..length.cast_signed() as i64, &device).unsqueeze::<2>(); // [1, length]
        let x = self.tokens.forward(tokens) + self.positions.forward(positions);
        let mask = generate_autoregressive_mask(n_samples, length, &device);
        let x = self.blocks.iter().fold(self.dropout.forward(x), |x, block| block.forward(x, mask.clone()));
        let x = self.norm.forward(x); // [batch, length, width]
        let [_, _, width] = x.dims();
        let logits = x.reshape([n_samples * length, width]).matmul(self.tokens.weight.val().transpose());
        logits.reshape([n_samples, length, N_TOKENS])
    }

    /// Predicts each token of each sample from those before it. Samples are padded to the longest one. Padding needs no mask in
    /// the attention, since it comes last and no token sees those after it; its losses have the weight 0.
    #[expect(clippy::cast_precision_loss, reason = "a sample has at most 1024 tokens")]
    pub fn score(&self, batch: &TokenBatch, device: &Device) -> Scores {
        let n_samples = batch.samples.len();
        let length = batch.samples.iter().map(|sample| sample.len() - 1).max().unwrap_or(0);
        let (mut inputs, mut targets) = (Vec::new(), Vec::new());
        let mut weights = Vec::with_capacity(n_samples * length);
        for sample in &batch.samples {
            let n_targets = sample.len() - 1;
            let padding = || std::iter::repeat_n(i64::from(BOUNDARY), length - n_targets);
            inputs.extend(sample[..n_targets].iter().copied().map(i64::from).chain(padding()));
            targets.extend(sample[1..].iter().copied().map(i64::from).chain(padding()));
            weights.extend(std::iter::repeat_n(1.0 / n_targets as f32, n_targets));
            weights.resize(targets.len(), 0.0);
        }
        let shape = [n_samples, length];
        let inputs = Tensor::<2, Int>::from_data(TensorData::new(inputs, shape), device);
        let targets = Tensor::<2, Int>::from_data(TensorData::new(targets, shape), device);
        let weights = Tensor::<2>::from_data(TensorData::new(weights, shape), device);

        let logits = self.forward(inputs);
        let is_right = logits.clone().argmax(2).reshape(shape).equal(targets.clone());
        let is_right = is_right.bool_and(weights.clone().greater_elem(0.0));
        let log_probabilities = log_softmax(logits, 2).gather(2, targets.unsqueeze_dim(2)).reshape(shape);
        let bits = log_probabilities.mul_scalar(-std::f32::consts::LOG2_E) * weights; // [batch, length]
        Scores {
            bits: bits.sum_dim(1).reshape([n_samples]),
            n_right: is_right.int().sum().into_data().iter::<u64>().sum(),
            n_tokens: batch.samples.iter().map(|sample| sample.len() as u64 - 1).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::tokens_of;

    fn transformer(device: &Device) -> Transformer {
        let settings = Language { layers: 2, width: 16, heads: 4, context: 64, dropout: 0.5 };
        Transformer::new(&settings, device)
    }

    fn logits(network: &Transformer, text: &[u8], device: &Device) -> Vec<f32> {
        let tokens: Vec<i64> = text.iter().copied().map(i64::from).collect();
        let shape = [1, tokens.len()];
        let tokens = Tensor::from_data(TensorData::new(tokens, shape), device);
        network.forward(tokens).into_data().iter::<f32>().collect()
    }

    fn bits(network: &Transformer, texts: &[&[u8]], device: &Device) -> (Vec<f32>, u64, u64) {
        let batch = TokenBatch { samples: texts.iter().copied().map(tokens_of).collect() };
        let Scores { bits, n_right, n_tokens } = network.score(&batch, device);
        (bits.into_data().iter::<f32>().collect(), n_right, n_tokens)
    }

    /// The goal: the network cannot see what it has to predict.
    #[test]
    fn later_token_does_not_change_earlier_logits() {
        let device = Device::default();
        let network = transformer(&device);
        let one = logits(&network, b"the quick brown fox", &device);
        let other = logits(&network, b"the quick brown dog", &device);
        let n_equal = b"the quick brown ".len() * N_TOKENS;
        assert_eq!(one[..n_equal], other[..n_equal]);
        assert_ne!(one[n_equal..n_equal + N_TOKENS], other[n_equal..n_equal + N_TOKENS]);
    }

    /// The goal: the loss of a sample does not depend on which samples it is computed with.
    #[test]
    fn padding_does_not_change_loss_of_sample() {
        let device = Device::default();
        let network = transformer(&device);
        let texts: [&[u8]; 3] = [b"a short sample", b"a sample that is longer by some thirty bytes", b"a third"];
        let (together, n_right, n_tokens) = bits(&network, &texts, &device);
        let (mut n_right_alone, mut n_tokens_alone) = (0, 0);
        for (text, together) in texts.into_iter().zip(together) {
            let (alone, n_right, n_tokens) = bits(&network, &[text], &device);
            assert!((alone[0] - together).abs() < 1e-5, "{} alone, {together} in a batch", alone[0]);
            // An untrained network guesses among 257 tokens.
            assert!((alone[0] - 257_f32.log2()).abs() < 0.5, "{}", alone[0]);
            (n_right_alone, n_tokens_alone) = (n_right_alone + n_right, n_tokens_alone + n_tokens);
        }
        assert_eq!((n_right, n_tokens), (n_right_alone, n_tokens_alone));
    }
}
