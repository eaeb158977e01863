//! Where gradients of parameters go: straight into the flat vector that leaves the process, if a place was announced, and
//! else into tensors of their own as for any other operation.

use std::cell::RefCell;
use std::ops::Range;

use burn::backend::Flex;
use burn::backend::autodiff::NodeId;
use burn::backend::autodiff::grads::Gradients;

use super::{buffers::Buffer, tensor};

/// The flat vector of the pass at hand, and which parameter's gradient goes where.
struct Destination {
    start: *mut f32,
    n_values: usize,
    places: Vec<Place>,
}

struct Place {
    node: NodeId,
    range: Range<usize>,
    is_written: bool,
}

thread_local! {
    static DESTINATION: RefCell<Option<Destination>> = const { RefCell::new(None) };
}

/// Runs `work`, and has fused operations write the gradients of parameters that are announced in it into `values`. Gives
/// which ranges they have written.
pub fn with_destination<R>(values: &mut [f32], work: impl FnOnce() -> R) -> (R, Vec<Range<usize>>) {
    /// Forgets the pointer, however `work` ends. What was there before is there again: a thread that waits for others may
    /// begin another pass in the middle of one, and ends it first.
    struct Guard(Option<Destination>);
    impl Drop for Guard {
        fn drop(&mut self) {
            DESTINATION.set(self.0.take());
        }
    }
    let destination = Destination { start: values.as_mut_ptr(), n_values: values.len(), places: Vec::new() };
    let guard = Guard(DESTINATION.replace(Some(destination)));
    let result = work();
    let places = DESTINATION.take().map_or_else(Vec::new, |destination| destination.places);
    drop(guard);
    (result, places.into_iter().filter(|place| place.is_written).map(|place| place.range).collect())
}

/// Says where the gradient of a parameter belongs.
///
/// # Panics
/// If that is beyond the vector's end.
pub(super) fn announce(node: NodeId, range: Range<usize>) {
    DESTINATION.with_borrow_mut(|destination| {
        if let Some(destination) = destination {
            assert!(range.end <= destination.n_values, "a gradient belongs into the vector");
            destination.places.push(Place { node, range, is_written: false });
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
    let mut destination = DESTINATION.take();
    let place = destination.as_mut().and_then(|destination| {
        let place = destination.places.iter_mut().find(|place| place.node == node && !place.is_written)?;
        place.is_written = true;
        Some((destination.start, place.range.clone()))
    });
    if let Some((start, range)) = place {
        assert_eq!(range.len(), n_values, "a gradient has the shape of its parameter");
        #[expect(unsafe_code, reason = "the borrow of the vector is held by `with_destination`")]
        // SAFETY: `with_destination` holds the only borrow of the vector while its `work` runs, on this thread, and has the
        // pointer forgotten afterwards; the range is within the vector, and each is written once.
        write(unsafe { std::slice::from_raw_parts_mut(start.add(range.start), n_values) });
        DESTINATION.set(destination);
        return;
    }
    DESTINATION.set(destination);
    let mut values = Buffer::new(n_values);
    write(&mut values);
    gradients.register::<Flex>(node, tensor(values, shape));
}
