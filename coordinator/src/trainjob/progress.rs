//! What is posted: how far a run is, how long it will take, and its newest metrics. A function of records and of time given
//! as an argument; knows no server.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use events::{EpochRecord, StepRecord};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The steps by which the rate is estimated are those of the last minute.
const WINDOW: Duration = Duration::from_mins(1);
/// Least time between two marks in the window, which bounds their number by 61; and the least time that says something.
const MARK_INTERVAL: Duration = Duration::from_secs(1);
/// Percentage of a run with all steps done that is not completed: its validation, or its files, are outstanding.
const UNFINISHED_MAX: u64 = 99;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// As the recipe says, with all files written.
    Completed,
    /// Stopped, or failed.
    Unfinished,
}

/// The body of a post, as `trainerStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TrainerStatus {
    /// From 0 to 100; 100 if and only if the run is completed.
    pub progress_percentage: u32,
    /// At the rate of the last minute; None if that is unknown. At most `i32::MAX`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_remaining_seconds: Option<u32>,
    /// The newest values.
    pub metrics: Vec<TrainerMetric>,
    /// When this was so: RFC 3339, in UTC.
    pub last_updated_time: String,
}

/// A metric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TrainerMetric {
    /// Its name.
    pub name: String,
    /// Its value, never empty.
    pub value: String,
}

/// How far a run is.
#[derive(Debug)]
pub struct Progress {
    /// The name of the metric that says how fast it is.
    pace_name: String,
    n_steps: u64,
    n_epochs: u32,
    step: u64,
    last_step: Option<StepRecord>,
    last_epoch: Option<EpochRecord>,
    recent: RecentSteps,
}

impl Progress {
    /// A run of so many steps and epochs on samples that are called so, counted from its very beginning, that has done `step` of them.
    pub fn new(samples: &str, n_steps: u64, n_epochs: u32, step: u64) -> Self {
        let pace_name = format!("{samples}_per_second");
        Self { pace_name, n_steps, n_epochs, step, last_step: None, last_epoch: None, recent: RecentSteps::default() }
    }

    /// Adds a step that ended at `now`.
    pub fn add_step(&mut self, record: &StepRecord, now: Instant) {
        self.step = record.step;
        self.recent.add(record, now);
        self.last_step = Some(record.clone());
    }

    /// Adds an epoch's validation.
    pub fn add_epoch(&mut self, record: &EpochRecord) {
        self.last_epoch = Some(record.clone());
    }

    /// What to post.
    pub fn status(&self, end: Option<RunEnd>, now: SystemTime) -> TrainerStatus {
        let done = (100 * self.step).checked_div(self.n_steps).unwrap_or(0).min(UNFINISHED_MAX);
        let (percentage, remaining) = match end {
            None => (done, self.recent.seconds_for(self.n_steps.saturating_sub(self.step))),
            Some(RunEnd::Completed) => (100, Some(0)),
            // Training has stopped, so the remaining time is unknown.
            Some(RunEnd::Unfinished) => (done, None),
        };
        TrainerStatus {
            progress_percentage: u32::try_from(percentage).expect("at most 100"),
            estimated_remaining_seconds: remaining,
            metrics: self.metrics(),
            last_updated_time: rfc3339(now),
        }
    }

    /// The metrics that are known, under the names of `steps.jsonl` and `history.jsonl` where they are in these.
    fn metrics(&self) -> Vec<TrainerMetric> {
        let count = |name: &str, value: u64| TrainerMetric { name: name.to_owned(), value: value.to_string() };
        let mut metrics = vec![count("current_step", self.step), count("total_steps", self.n_steps)];
        if let Some(record) = &self.last_step {
            metrics.push(count("current_epoch", record.epoch.into()));
        }
        metrics.push(count("total_epochs", self.n_epochs.into()));
        let last_step = self.last_step.iter().flat_map(StepRecord::figures);
        let rate = self.recent.samples_per_second().map(|rate| (self.pace_name.clone(), (10.0 * rate).round() / 10.0));
        let last_epoch = self.last_epoch.iter().flat_map(EpochRecord::figures);
        // A number that is not finite ends the run with an error that says more than a metric.
        let figures = last_step.chain(last_epoch).chain(rate).filter(|(_, value)| value.is_finite());
        metrics.extend(figures.map(|(name, value)| TrainerMetric { name, value: value.to_string() }));
        metrics
    }
}

/// The figures of a record that are posted, with the names that they have in the record.
trait Posted {
    fn figures(&self) -> Vec<(String, f64)>;
}

impl Posted for StepRecord {
    fn figures(&self) -> Vec<(String, f64)> {
        std::iter::once(("loss".to_owned(), self.loss)).chain(self.metrics.0.clone()).collect()
    }
}

impl Posted for EpochRecord {
    fn figures(&self) -> Vec<(String, f64)> {
        std::iter::once(("val_loss".to_owned(), self.val_loss)).chain(self.val_metrics.0.clone()).collect()
    }
}

/// The steps of the last minute, as sums at some of their ends.
#[derive(Debug, Default)]
struct RecentSteps {
    marks: VecDeque<Mark>,
    newest: Option<Mark>,
}

/// Sums over this process' steps up to a moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    n_steps: u64,
    n_samples: u64,
    training_seconds: f64,
}

impl RecentSteps {
    fn add(&mut self, record: &StepRecord, now: Instant) {
        let (n_steps, n_samples, seconds) =
            self.newest.map_or((0, 0, 0.0), |last| (last.n_steps, last.n_samples, last.training_seconds));
        let mark = Mark {
            at: now,
            n_steps: n_steps + 1,
            n_samples: n_samples + record.n_samples,
            training_seconds: seconds + 1e-3 * record.milliseconds,
        };
        self.newest = Some(mark);
        while self.marks.front().is_some_and(|oldest| now.duration_since(oldest.at) > WINDOW) {
            self.marks.pop_front();
        }
        if self.marks.back().is_none_or(|last| now.duration_since(last.at) >= MARK_INTERVAL) {
            self.marks.push_back(mark);
        }
    }

    /// The first and the last mark of the window, if they are far enough apart to say something.
    fn span(&self) -> Option<(Mark, Mark)> {
        let (oldest, newest) = (*self.marks.front()?, self.newest?);
        (newest.at.duration_since(oldest.at) >= MARK_INTERVAL).then_some((oldest, newest))
    }

    /// Seconds that so many steps take, with the validations and pauses between them, rounded up; None if unknown.
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^53 steps")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to i32::MAX")]
    fn seconds_for(&self, n_steps: u64) -> Option<u32> {
        let (oldest, newest) = self.span()?;
        let seconds_per_step =
            newest.at.duration_since(oldest.at).as_secs_f64() / (newest.n_steps - oldest.n_steps) as f64;
        Some((n_steps as f64 * seconds_per_step).ceil().min(f64::from(i32::MAX)) as u32)
    }

    /// Training images per second of training, as in `history.jsonl`; None if unknown.
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer than 2^53 images")]
    fn samples_per_second(&self) -> Option<f64> {
        let (oldest, newest) = self.span()?;
        Some((newest.n_samples - oldest.n_samples) as f64 / (newest.training_seconds - oldest.training_seconds))
    }
}

/// A moment as Kubernetes writes it: whole seconds, in UTC.
fn rfc3339(moment: SystemTime) -> String {
    let moment = OffsetDateTime::from(moment).replace_nanosecond(0).expect("0 is less than 10^9");
    moment.format(&Rfc3339).expect("the year has four digits")
}

#[cfg(test)]
mod tests {
    use engine::report::epoch_record;
    use events::Figures;
    use model::arch::Architecture;
    use model::task::book_task;

    use super::*;

    fn step(step: u64) -> StepRecord {
        StepRecord {
            step,
            epoch: 1,
            loss: 0.25,
            metrics: Figures(vec![("rounded_accuracy".to_owned(), 0.875)]),
            n_samples: 32,
            milliseconds: 100.0,
            params_blake3: None,
        }
    }

    /// A run of 200 steps in which one step ends at each of the times, in milliseconds from its start.
    fn progress(times: impl IntoIterator<Item = u64>) -> Progress {
        let begun = Instant::now();
        let mut progress = Progress::new("images", 200, 2, 0);
        for (number, time) in (1..).zip(times) {
            progress.add_step(&step(number), begun + Duration::from_millis(time));
        }
        progress
    }

    fn value(status: &TrainerStatus, name: &str) -> Option<String> {
        status.metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value.clone())
    }

    #[test]
    fn percentage_rounds_down_and_is_100_only_when_completed() {
        let check = |n_steps, step, end, expected| {
            let status = Progress::new("images", n_steps, 1, step).status(end, SystemTime::UNIX_EPOCH);
            assert_eq!(status.progress_percentage, expected, "{step} of {n_steps}, {end:?}");
        };
        check(200, 0, None, 0);
        check(200, 1, None, 0);
        check(200, 91, None, 45);
        check(200, 199, None, 99);
        check(200, 200, None, 99);
        check(200, 200, Some(RunEnd::Unfinished), 99);
        check(200, 91, Some(RunEnd::Unfinished), 45);
        check(200, 200, Some(RunEnd::Completed), 100);
        check(0, 0, None, 0);
    }

    #[test]
    fn remaining_time_uses_rate_of_last_minute() {
        let check = |times: Vec<u64>, end, expected| {
            let what = format!("{} steps, {end:?}", times.len());
            let status = progress(times).status(end, SystemTime::UNIX_EPOCH);
            assert_eq!(status.estimated_remaining_seconds, expected, "{what}");
        };
        check(vec![], None, None);
        // Too short to say something.
        check(vec![0, 900], None, None);
        // 50 steps in 5 s: 10 a second, and 149 are left.
        check((0..=50).map(|number| 100 * number).collect(), None, Some(15));
        // 10 slow ones, and a minute later 120 at 2 a second: 70 are left.
        check(
            (0..10).map(|number| 10_000 * number).chain((0..120).map(|n| 200_000 + 500 * n)).collect(),
            None,
            Some(35),
        );
        // After a pause of an hour nothing is known until there are new steps.
        check(vec![0, 1000, 3_601_000], None, None);
        check((0..=50).map(|number| 100 * number).collect(), Some(RunEnd::Unfinished), None);
        check((0..200).map(|number| 100 * number).collect(), Some(RunEnd::Completed), Some(0));
    }

    #[test]
    fn remaining_time_of_endless_run_is_capped_at_i32_max() {
        let mut progress = progress([0, 10_000]);
        progress.n_steps = u64::MAX / 200;
        let status = progress.status(None, SystemTime::UNIX_EPOCH);
        assert_eq!(status.estimated_remaining_seconds, Some(2_147_483_647));
    }

    #[test]
    fn rate_marks_are_bounded() {
        let progress = progress((0..100_000).map(|number| 10 * number));
        assert!(progress.recent.marks.len() <= 61, "{}", progress.recent.marks.len());
    }

    #[test]
    fn status_contains_only_known_metrics() {
        let start = Progress::new("images", 200, 2, 0).status(None, SystemTime::UNIX_EPOCH);
        let names: Vec<&str> = start.metrics.iter().map(|metric| metric.name.as_str()).collect();
        assert_eq!(names, ["current_step", "total_steps", "total_epochs"]);

        let mut progress = progress((0..=50).map(|number| 100 * number));
        let task = book_task(Architecture::Denoising);
        let (spec, sums) = (task.spec(), engine::sums::Sums::default());
        let mut epoch = epoch_record(spec, 51, 1, &sums, &sums, Duration::from_secs(5));
        epoch.val_loss = f64::NAN;
        epoch.val_metrics.0[0].1 = 0.5;
        progress.add_epoch(&epoch);
        let status = progress.status(None, SystemTime::UNIX_EPOCH);
        let check = |name, expected: Option<&str>| assert_eq!(value(&status, name).as_deref(), expected, "{name}");
        check("current_step", Some("51"));
        check("total_steps", Some("200"));
        check("current_epoch", Some("1"));
        check("total_epochs", Some("2"));
        check("loss", Some("0.25"));
        check("rounded_accuracy", Some("0.875"));
        check("val_loss", None);
        check("val_rounded_accuracy", Some("0.5"));
        // 32 images in 100 ms.
        check("images_per_second", Some("320"));
    }

    #[test]
    fn status_body_uses_protocol_field_names() {
        let mut status = Progress::new("images", 200, 2, 0).status(None, SystemTime::UNIX_EPOCH);
        status.metrics.truncate(1);
        let json = serde_json::to_string(&status).expect("JSON");
        let metrics = r#"[{"name":"current_step","value":"0"}]"#;
        let time = "1970-01-01T00:00:00Z";
        assert_eq!(json, format!(r#"{{"progressPercentage":0,"metrics":{metrics},"lastUpdatedTime":"{time}"}}"#));
    }

    #[test]
    fn timestamp_is_utc_in_whole_seconds() {
        let check = |milliseconds, expected| {
            assert_eq!(rfc3339(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds)), expected);
        };
        check(999, "1970-01-01T00:00:00Z");
        check(1_709_251_199_000, "2024-02-29T23:59:59Z");
        check(1_737_628_245_500, "2025-01-23T10:30:45Z");
    }
}
