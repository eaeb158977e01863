//! A shard in parts of a fixed size, as many side by side as there are threads. The parts' results are added in order, so
//! that the number of threads changes no bit.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::module::{ModuleMapper, ModuleVisitor, Param};
use burn::tensor::Tensor;
use rayon::prelude::*;

use super::{Flattener, Images};
use crate::arch::{Architecture, Network};
use crate::backend::ComputeDevice;
use crate::layers::fused::{announce, binary_cross_entropy, with_destination};
use crate::loss::LossSums;
use crate::reduce::add_into;

pub(super) fn shard_result(
    network: &Network,
    inputs: Images,
    targets: Images,
    gradient_sum: &mut [f32],
    device: &ComputeDevice,
) -> LossSums {
    let mut parts = ranges(network.architecture(), inputs.shape[0]);
    let Some(rest) = parts.get(1..).filter(|rest| !rest.is_empty()) else {
        return pass(network, inputs, targets, gradient_sum, device);
    };
    let mut total = pass(network, inputs.part(&parts[0]), targets.part(&parts[0]), gradient_sum, device);
    let n_threads = rayon::current_num_threads();
    let mut vectors = vec![vec![0.0; gradient_sum.len()]; n_threads.min(rest.len())];
    for parts in parts.split_off(1).chunks(n_threads) {
        let work = |(vector, part): (&mut Vec<f32>, &Range<usize>)| {
            pass(&network.clone().map(&mut Rooted), inputs.part(part), targets.part(part), vector, device)
        };
        let sums: Vec<LossSums> = if n_threads == 1 {
            vectors.iter_mut().zip(parts).map(work).collect()
        } else {
            vectors.par_iter_mut().zip(parts).map(work).collect()
        };
        for (vector, sums) in vectors.iter().zip(sums) {
            add_into(gradient_sum, vector);
            total.add(sums);
        }
    }
    total
}

pub(super) fn evaluate(network: &Network, images: Images, device: &ComputeDevice) -> LossSums {
    let parts = ranges(network.architecture(), images.shape[0]);
    let work = |part: &Range<usize>| {
        let images = images.part(part).into_tensor(device);
        binary_cross_entropy(network.logits(images.clone()), images).0
    };
    let sums: Vec<LossSums> = if rayon::current_num_threads() == 1 {
        parts.iter().map(work).collect()
    } else {
        parts.par_iter().map(work).collect()
    };
    let mut total = LossSums::default();
    for sums in sums {
        total.add(sums);
    }
    total
}

/// The parts of so many images.
fn ranges(architecture: Architecture, n_images: usize) -> Vec<Range<usize>> {
    let part = architecture.part();
    (0..n_images).step_by(part).map(|start| start..(start + part).min(n_images)).collect()
}

/// Forward and backward through the network.
fn pass(
    network: &Network,
    inputs: Images,
    targets: Images,
    gradient_sum: &mut [f32],
    device: &ComputeDevice,
) -> LossSums {
    let ((sums, mut gradients), written) = with_destination(gradient_sum, || {
        network.visit(&mut Announcer { start: 0 });
        let (sums, loss) =
            binary_cross_entropy(network.logits(inputs.into_tensor(device)), targets.into_tensor(device));
        (sums, loss.backward())
    });
    let written: BTreeSet<usize> = written.into_iter().map(|range| range.start).collect();
    Flattener::collect(network, &mut gradients, gradient_sum, |start| written.contains(&start));
    sums
}

/// Says of each parameter where its gradient belongs.
struct Announcer {
    start: usize,
}

impl ModuleVisitor for Announcer {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        announce(param.val(), self.start);
        self.start += param.shape().num_elements();
    }
}

/// Gives each parameter a root of its own in the graph, with the same values: graphs that share one are walked as one.
struct Rooted;

impl ModuleMapper for Rooted {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        Param::from_tensor(Tensor::from_inner(param.val().inner()))
    }
}

impl Images {
    /// Some of the images.
    fn part(&self, range: &Range<usize>) -> Self {
        let [_, n_rows, n_columns] = self.shape;
        let image = n_rows * n_columns;
        let values = self.values[range.start * image..range.end * image].to_vec();
        Self { values, shape: [range.len(), n_rows, n_columns] }
    }
}
