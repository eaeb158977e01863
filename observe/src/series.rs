//! A curve of any length in little memory.

use std::mem;

/// Points of a curve, at most so many. Where there are more values, each point stands for several that follow one another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    points: Vec<Point>,
    /// Values that each point stands for.
    n_values: Vec<u64>,
    /// Values that a point stands for at most, unless a single one stands for more.
    n_per_point: u64,
}

/// Some values that follow one another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where the last of them is, such as a step.
    pub x: f64,
    /// Their mean.
    pub mean: f64,
    /// The lowest.
    pub min: f64,
    /// The highest.
    pub max: f64,
}

/// Points that a curve has at most: more than a page has pixels for.
pub const POINTS_MAX: usize = 1024;

impl Series {
    /// Adds a value; one that is not finite is left out. When there would be more than [`POINTS_MAX`] points, neighbours become
    /// one.
    pub fn push(&mut self, x: f64, value: f64) {
        self.push_for(x, value, 1);
    }

    /// Adds a value that stands for `n_values`, as where a long file is only sampled: it takes as much of the points as they would.
    pub fn push_for(&mut self, x: f64, value: f64, n_values: u64) {
        if !value.is_finite() {
            return;
        }
        self.n_per_point = self.n_per_point.max(1);
        self.add(Point { x, mean: value, min: value, max: value }, n_values.max(1));
        if self.points.len() > POINTS_MAX {
            self.merge();
        }
    }

    /// Adds a point, to the last one if that has room.
    fn add(&mut self, point: Point, n_values: u64) {
        if let (Some(last), Some(n_last)) = (self.points.last_mut(), self.n_values.last_mut())
            && n_last.saturating_add(n_values) <= self.n_per_point
        {
            *n_last += n_values;
            last.x = point.x;
            last.mean += (point.mean - last.mean) * share(n_values, *n_last);
            last.min = last.min.min(point.min);
            last.max = last.max.max(point.max);
            return;
        }
        self.points.push(point);
        self.n_values.push(n_values);
    }

    /// Makes points stand for more values, until there are clearly fewer.
    fn merge(&mut self) {
        // Ends: when a point may stand for all values, there is one.
        while self.points.len() > POINTS_MAX / 4 * 3 {
            self.n_per_point = self.n_per_point.saturating_mul(2);
            let (points, n_values) = (mem::take(&mut self.points), mem::take(&mut self.n_values));
            for (point, n_values) in points.into_iter().zip(n_values) {
                self.add(point, n_values);
            }
        }
    }

    /// The points, in order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Forgets what comes after `x`, as when a run is resumed from there.
    pub fn truncate_after(&mut self, x: f64) {
        let n_points = self.points.partition_point(|point| point.x <= x);
        self.points.truncate(n_points);
        self.n_values.truncate(n_points);
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share of a mean, which nobody sees in its last bits")]
fn share(n: u64, n_all: u64) -> f64 {
    n as f64 / n_all as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_series_keeps_extremes_and_mean_in_bounded_points() {
        let mut series = Series::default();
        let n_values = 100_000;
        for i in 0..n_values {
            series.push(f64::from(i), if i == 54_321 { 7.0 } else { f64::from(i % 2) });
        }
        let points = series.points();
        assert!(points.len() <= POINTS_MAX && points.len() > POINTS_MAX / 3, "{} points", points.len());
        assert!(points.windows(2).all(|pair| pair[0].x < pair[1].x));
        assert_eq!(points.last().map(|point| point.x), Some(f64::from(n_values - 1)));
        assert_eq!(points.iter().map(|point| point.max).max_by(f64::total_cmp), Some(7.0));
        assert!(points.iter().filter(|point| point.max < 7.0).all(|point| (point.mean - 0.5).abs() < 0.01));
    }

    /// The goal: what is added live to the curve of a sampled file gets no more points than its share.
    #[test]
    fn sampled_values_weigh_as_many_as_they_stand_for() {
        let mut series = Series::default();
        for i in 1..=2_000 {
            series.push_for(f64::from(i) * 1000.0, 1.0, 1000); // 2,000 * 1,000 = 2,000,000 steps
        }
        for i in 1..=100_000 {
            series.push(2e6 + f64::from(i), 2.0);
        }
        let n_live = series.points().iter().filter(|point| point.x > 2e6).count();
        let n_points = series.points().len();
        assert!((15..=60).contains(&n_live) && n_points > POINTS_MAX / 3, "{n_live} of {n_points} points"); // 1 in 21
        assert!(series.points().windows(2).all(|pair| pair[0].x < pair[1].x));
    }

    #[test]
    fn gap_in_values_leaves_points_as_fine_as_they_were() {
        let mut series = Series::default();
        series.push(1.0, 1.0);
        series.push_for(5_000.0, 3.0, 4_999);
        for i in 1..=500 {
            series.push(5_000.0 + f64::from(i), 2.0);
        }
        assert_eq!(series.points().len(), 502);
        assert_eq!(series.points()[1], Point { x: 5_000.0, mean: 3.0, min: 3.0, max: 3.0 });
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let mut series = Series::default();
        series.push(1.0, f64::NAN);
        series.push(2.0, 0.5);
        series.push(3.0, f64::INFINITY);
        assert_eq!(series.points(), [Point { x: 2.0, mean: 0.5, min: 0.5, max: 0.5 }]);
    }

    #[test]
    fn truncated_series_goes_on_with_new_points() {
        let mut series = Series::default();
        for i in 0..10 {
            series.push(f64::from(i), 1.0);
        }
        series.truncate_after(4.0);
        series.push(5.0, 2.0);
        assert_eq!(series.points().last(), Some(&Point { x: 5.0, mean: 2.0, min: 2.0, max: 2.0 }));
    }
}
