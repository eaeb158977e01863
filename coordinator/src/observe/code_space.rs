//! The code space after an epoch: a task's codes in the plane, as a picture. It is made by the thread that writes the run folder;
//! of very short epochs some are skipped, so that this thread keeps up with the steps.

use std::time::{Duration, Instant};

use engine::task::{Codes, Evaluator};
use observe::codes::{CodeMap, CodesError, Labels, Method, Scatter};
use tracing::{debug, warn};

/// The least time between two pictures, in the time that the last one took.
const PAUSE_FACTOR: u32 = 9;

/// What is drawn of each epoch.
#[derive(Debug, Default)]
pub struct CodeSpace {
    /// The points of the last picture, which the next one is aligned with.
    last: Option<CodeMap>,
    next: Option<Instant>,
}

/// Whether an epoch's codes may be skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// If the last ones were drawn a moment ago.
    IfRecent,
    /// In no case, as those of a run's last epoch.
    Never,
}

impl CodeSpace {
    /// The codes of an epoch and their picture (PNG), if the task has any that can be drawn; what is wrong with others is logged.
    pub fn draw(&mut self, epoch: u32, skip: Skip, evaluator: &dyn Evaluator, seed: u64) -> Option<(Codes, Vec<u8>)> {
        let begun = Instant::now();
        if skip == Skip::IfRecent && self.next.is_some_and(|next| begun < next) {
            return None;
        }
        let codes = evaluator.codes(seed)?;
        let drawn = self.png(epoch, &codes);
        let elapsed = begun.elapsed();
        self.next = Some(begun + elapsed + PAUSE_FACTOR * elapsed.min(Duration::from_mins(1)));
        match drawn {
            Ok(png) => {
                debug!(epoch, milliseconds = 1e3 * elapsed.as_secs_f64(), "codes drawn");
                Some((codes, png))
            }
            Err(error) => {
                warn!(epoch, %error, "no picture of the codes; the run goes on");
                None
            }
        }
    }

    fn png(&mut self, epoch: u32, codes: &Codes) -> Result<Vec<u8>, CodesError> {
        let plain = plain(codes)?;
        let mut map = CodeMap::new(plain, Method::Pca)?;
        if let Some(last) = &self.last {
            map.align(last);
        }
        let names: Vec<&str> = codes.label_names().iter().map(String::as_str).collect();
        let scatter = Scatter {
            title: &format!("Codes of {} samples after epoch {epoch}", plain.len()),
            axes: [&map.axes[0], &map.axes[1]],
            points: &map.points,
            labels: labels(codes, &names),
        };
        let png = scatter.compact_png();
        self.last = Some(map);
        Ok(png)
    }
}

/// A task's codes as they are projected and drawn.
///
/// # Errors
/// If they are too few, or not finite.
pub fn plain(codes: &Codes) -> Result<observe::codes::Codes<'_>, CodesError> {
    observe::codes::Codes::new(codes.values(), codes.n_values())
}

/// The labels of a task's codes, if they have any; `names` are those of the labels.
pub fn labels<'a>(codes: &'a Codes, names: &'a [&'a str]) -> Option<Labels<'a>> {
    (!codes.labels().is_empty()).then_some(Labels { numbers: codes.labels(), names })
}

#[cfg(test)]
mod tests {
    use engine::data::Split;
    use engine::sums::Sums;
    use engine::task::NamedPicture;

    use super::*;

    /// Shows these codes, whatever was trained.
    #[derive(Debug)]
    struct Fixed(Option<Codes>);

    impl Evaluator for Fixed {
        fn evaluate_batch(&self, _: Split, _: u32) -> Sums {
            Sums::default()
        }

        fn pictures(&self, _: u64) -> Vec<NamedPicture> {
            Vec::new()
        }

        fn codes(&self, _: u64) -> Option<Codes> {
            self.0.clone()
        }
    }

    fn codes(sign: f32) -> Codes {
        let values = (0..40_u16).flat_map(|i| [sign * f32::from(i), sign * f32::from(i % 7), 0.5]).collect();
        Codes::new(values, 3).labelled([0, 1, 2, 3].repeat(10), ["a", "b", "c <&>", "d\u{0}\t"])
    }

    #[test]
    fn codes_are_drawn_and_axes_keep_their_signs() {
        let mut space = CodeSpace::default();
        let (found, first) = space.draw(1, Skip::Never, &Fixed(Some(codes(1.0))), 7).expect("a picture");
        assert_eq!(found, codes(1.0));
        assert!(first.starts_with(b"\x89PNG"));
        let points = space.last.clone().expect("points").points;
        // Components point the way of their largest entry, so that these points would be the same, turned around.
        space.draw(2, Skip::Never, &Fixed(Some(codes(-1.0))), 7).expect("a picture");
        let again = &space.last.as_ref().expect("points").points;
        for (point, before) in again.iter().zip(&points) {
            assert!((point[0] - before[0]).abs() < 0.1 && (point[1] - before[1]).abs() < 0.1, "{point:?} {before:?}");
        }
    }

    #[test]
    fn codes_that_cannot_be_drawn_are_left_out() {
        let mut space = CodeSpace::default();
        let mut values = codes(1.0).values().to_vec();
        values[31] = f32::NAN;
        for codes in [Codes::new(values, 3), Codes::new(vec![1.0; 6], 3), Codes::new(Vec::new(), 3)] {
            assert_eq!(space.draw(1, Skip::Never, &Fixed(Some(codes)), 7), None);
        }
        assert_eq!(space.draw(1, Skip::Never, &Fixed(None), 7), None);
        assert!(space.last.is_none());
    }

    #[test]
    fn codes_of_very_short_epochs_are_skipped_but_for_the_last() {
        let mut space = CodeSpace::default();
        let task = Fixed(Some(codes(1.0)));
        assert!(space.draw(1, Skip::IfRecent, &task, 7).is_some());
        space.next = Some(Instant::now() + Duration::from_mins(1));
        assert_eq!(space.draw(2, Skip::IfRecent, &task, 7), None);
        assert!(space.draw(3, Skip::Never, &task, 7).is_some());
        space.next = Some(Instant::now());
        assert!(space.draw(4, Skip::IfRecent, &task, 7).is_some());
    }
}
