//! Where gradients of parameters go: straight into the flat vector that leaves the process, if a target was registered, and
//! else into tensors of their own as for any other operation.

use std::cell::RefCell;
use std::ops::Range;

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;

use super::{buffers::Buffer, tensor};

/// The flat vector of the pass at hand, and which parameter's gradient goes where.
struct GradTargets {
    start: *mut f32,
    n_values: usize,
    entries: Vec<GradTarget>,
}

struct GradTarget {
    node: NodeId,
    range: Range<usize>,
    is_written: bool,
}

thread_local! {
    static GRAD_TARGETS: RefCell<Option<GradTargets>> = const { RefCell::new(None) };
}

/// Runs `work`, and has fused operations write the gradients of parameters that are registered in it into `values`. Gives
/// which ranges they have written.
pub fn with_grad_targets<R>(values: &mut [f32], work: impl FnOnce() -> R) -> (R, Vec<Range<usize>>) {
    /// Drops the pointer, however `work` ends. What was there before is there again: a thread that waits for others may
    /// begin another pass in the middle of one, and ends it first.
    struct Guard(Option<GradTargets>);
    impl Drop for Guard {
        fn drop(&mut self) {
            GRAD_TARGETS.set(self.0.take());
        }
    }
    let targets = GradTargets { start: values.as_mut_ptr(), n_values: values.len(), entries: Vec::new() };
    let guard = Guard(GRAD_TARGETS.replace(Some(targets)));
    let result = work();
    let entries = GRAD_TARGETS.take().map_or_else(Vec::new, |targets| targets.entries);
    drop(guard);
    (result, entries.into_iter().filter(|target| target.is_written).map(|target| target.range).collect())
}

/// Registers where the gradient of a parameter goes.
///
/// # Panics
/// If that is beyond the vector's end.
pub(super) fn register_grad_target(node: NodeId, range: Range<usize>) {
    GRAD_TARGETS.with_borrow_mut(|targets| {
        if let Some(targets) = targets {
            assert!(range.end <= targets.n_values, "a gradient belongs into the vector");
            targets.entries.push(GradTarget { node, range, is_written: false });
        }
    });
}

/// Has a parameter's gradient written to where it belongs, if it is wanted at all. `write` fills a slice of the shape's size.
pub(super) fn put(
    parameter: Option<NodeId>,
    shape: &[usize],
    gradients: &mut Gradients,
    write: impl FnOnce(&mut [f32]),
) {
    let Some(node) = parameter else { return };
    let n_values: usize = shape.iter().product();
    // Taken away meanwhile, so that nothing else can write there.
    let mut targets = GRAD_TARGETS.take();
    let target = targets.as_mut().and_then(|targets| {
        let target = targets.entries.iter_mut().find(|target| target.node == node && !target.is_written)?;
        target.is_written = true;
        Some((targets.start, target.range.clone()))
    });
    if let Some((start, range)) = target {
        assert_eq!(range.len(), n_values, "a gradient has the shape of its parameter");
        #[expect(unsafe_code, reason = "the borrow of the vector is held by `with_grad_targets`")]
        // SAFETY: `with_grad_targets` holds the only borrow of the vector while its `work` runs, on this thread, and has the
        // pointer forgotten afterwards; the range is within the vector, and each is written once.
        write(unsafe { std::slice::from_raw_parts_mut(start.add(range.start), n_values) });
        GRAD_TARGETS.set(targets);
        return;
    }
    GRAD_TARGETS.set(targets);
    let mut values = Buffer::new(n_values);
    write(&mut values);
    gradients.register::<Flex>(node, tensor(values, shape));
}
