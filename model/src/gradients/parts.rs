//! A shard in parts of a fixed size, as many side by side as there are threads. The parts' results are added in order, so
//! that the number of threads changes no bit.

use std::collections::BTreeSet;
use std::ops::Range;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Device, Tensor, TensorData};
use rayon::prelude::*;

use crate::arch::{Architecture, Network};
use crate::images::Images;
use crate::layers::fused::{Buffer, binary_cross_entropy, register_grad_target, with_grad_targets};
use engine::backend::ComputeDevice;
use engine::gradients::collect_gradients;
use engine::reduce::add_into;
use engine::sums::Sums;

pub(super) fn shard_result(
    network: &Network,
    inputs: &Images,
    targets: &Images,
    gradient_sum: &mut [f32],
    device: &ComputeDevice,
) -> Sums {
    let parts = ranges(network.architecture(), inputs.shape[0]);
    let n_threads = rayon::current_num_threads().min(parts.len());
    let passes = Passes { network, inputs, targets, device };
    if n_threads == 1 {
        return passes.one_by_one(&parts, gradient_sum);
    }
    // All of it on threads of the pool: a thread from elsewhere would wait, and wake them up, again and again.
    rayon::scope(|_| passes.side_by_side(&parts, n_threads, gradient_sum))
}

/// Forward and backward through a network for parts of a shard.
struct Passes<'a> {
    network: &'a Network,
    inputs: &'a Images,
    targets: &'a Images,
    device: &'a ComputeDevice,
}

impl Passes<'_> {
    fn one_by_one(&self, parts: &[Range<usize>], gradient_sum: &mut [f32]) -> Sums {
        let mut total = pass(self.network, self.part(&parts[0]), gradient_sum);
        let mut vector = Buffer::new(if parts.len() > 1 { gradient_sum.len() } else { 0 });
        for part in &parts[1..] {
            total.add(pass(self.network, self.part(part), &mut vector));
            add_into(gradient_sum, &vector);
        }
        total
    }

    fn side_by_side(&self, parts: &[Range<usize>], n_threads: usize, gradient_sum: &mut [f32]) -> Sums {
        let mut total = Sums::default();
        let mut vectors: Vec<Buffer> = (0..n_threads).map(|_| Buffer::new(gradient_sum.len())).collect();
        for (round, parts) in parts.chunks(n_threads).enumerate() {
            let work = |(vector, part): (&mut Buffer, &Range<usize>)| {
                pass(&self.network.clone().map(&mut Rooted), self.part(part), vector)
            };
            let sums: Vec<Sums> = vectors.par_iter_mut().zip(parts).map(work).collect();
            for sums in sums {
                total.add(sums);
            }
            // Each thread a slice, and each slice in the order of the parts.
            let n_slice = gradient_sum.len().div_ceil(n_threads).max(1);
            gradient_sum.par_chunks_mut(n_slice).enumerate().for_each(|(slice, sum)| {
                let values = slice * n_slice..slice * n_slice + sum.len();
                let mut vectors = vectors[..parts.len()].iter().map(|vector| &vector[values.clone()]);
                if round == 0 {
                    sum.copy_from_slice(vectors.next().expect("a round has a part"));
                }
                vectors.for_each(|vector| add_into(sum, vector));
            });
        }
        total
    }

    /// Inputs and targets.
    fn part(&self, range: &Range<usize>) -> [Tensor<3>; 2] {
        [self.inputs, self.targets].map(|images| images.part(range, self.device))
    }
}

pub(super) fn evaluate(network: &Network, images: &Images, device: &ComputeDevice) -> Sums {
    let parts = ranges(network.architecture(), images.shape[0]);
    let work = |part: &Range<usize>| {
        let images = images.part(part, device);
        binary_cross_entropy(network.logits(images.clone()), images).0
    };
    let sums: Vec<Sums> = if rayon::current_num_threads() == 1 {
        parts.iter().map(work).collect()
    } else {
        parts.par_iter().map(work).collect()
    };
    let mut total = Sums::default();
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

fn pass(network: &Network, [inputs, targets]: [Tensor<3>; 2], gradient_sum: &mut [f32]) -> Sums {
    let ((sums, mut gradients), written) = with_grad_targets(gradient_sum, || {
        network.visit(&mut GradTargetRegistrar { start: 0 });
        let (sums, loss) = binary_cross_entropy(network.logits(inputs), targets);
        (sums, loss.backward())
    });
    let written: BTreeSet<usize> = written.into_iter().map(|range| range.start).collect();
    collect_gradients(network, &mut gradients, gradient_sum, |start| written.contains(&start));
    sums
}

/// Registers for each parameter where its gradient goes.
struct GradTargetRegistrar {
    start: usize,
}

impl ModuleVisitor for GradTargetRegistrar {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        register_grad_target(param.val(), self.start);
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
    /// Some of the images, on a device: [samples, rows, columns].
    fn part(&self, range: &Range<usize>, device: &Device) -> Tensor<3> {
        let [_, n_rows, n_columns] = self.shape;
        let image = n_rows * n_columns;
        let mut values = Buffer::new(range.len() * image);
        values.copy_from_slice(&self.values[range.start * image..range.end * image]);
        let shape = [range.len(), n_rows, n_columns];
        Tensor::from_data(TensorData::from_bytes(values.into_bytes(), shape, DType::F32), device)
    }
}
