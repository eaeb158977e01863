//! A curve of any length in little memory.

/// Points of a curve, at most so many. Where there are more values, each point stands for several that follow one another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    points: Vec<Point>,
    /// Values that a whole point stands for: a power of two.
    n_per_point: u32,
    /// Values of the last point so far.
    n_last: u32,
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
    /// Adds a value; one that is not finite is left out. When there would be more than [`POINTS_MAX`] points, each two
    /// neighbours become one.
    pub fn push(&mut self, x: f64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let n_per_point = self.n_per_point.max(1);
        self.n_per_point = n_per_point;
        if let Some(last) = self.points.last_mut().filter(|_| self.n_last < n_per_point) {
            self.n_last += 1;
            last.x = x;
            last.mean += (value - last.mean) / f64::from(self.n_last);
            last.min = last.min.min(value);
            last.max = last.max.max(value);
            return;
        }
        if self.points.len() == POINTS_MAX {
            self.halve();
            return self.push(x, value);
        }
        self.points.push(Point { x, mean: value, min: value, max: value });
        self.n_last = 1;
    }

    fn halve(&mut self) {
        let merged = self.points.chunks(2).map(|pair| match *pair {
            [first, second] => Point {
                x: second.x,
                mean: f64::midpoint(first.mean, second.mean),
                min: first.min.min(second.min),
                max: first.max.max(second.max),
            },
            [only] => only,
            _ => unreachable!("chunks of two"),
        });
        self.points = merged.collect();
        self.n_per_point *= 2;
        self.n_last = self.n_per_point;
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
        self.points.retain(|point| point.x <= x);
        self.n_last = self.n_per_point;
    }
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
        assert_eq!(points.iter().map(|point| point.max).fold(0.0, f64::max), 7.0);
        assert!(points.iter().filter(|point| point.max < 7.0).all(|point| (point.mean - 0.5).abs() < 0.01));
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
