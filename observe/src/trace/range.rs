//! Which steps are traced.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// Steps that a trace has at most; fewer where it is full before: with four shards a step, at some 67,000.
pub const STEPS_MAX: u64 = 100_000;

/// Steps to be traced, counted from 1, both ends included. As text `100..200`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepRange(RangeInclusive<u64>);

/// Why a range of steps is none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StepRangeError {
    /// It is no range.
    #[error("expected FIRST..LAST with two whole numbers, such as 100..200, found `{0}`")]
    Form(String),
    /// It begins before the first step.
    #[error("expected steps from 1, found 0")]
    Zero,
    /// It ends before it begins.
    #[error("expected the first step before the last one, found {first}..{last}")]
    Reversed {
        /// Its first step.
        first: u64,
        /// Its last.
        last: u64,
    },
    /// It is too long.
    #[error("expected at most {STEPS_MAX} steps, found {first}..{last}")]
    Length {
        /// Its first step.
        first: u64,
        /// Its last.
        last: u64,
    },
}

impl StepRange {
    /// The steps from `first` to `last`.
    ///
    /// # Errors
    /// A range that begins at 0, is reversed, or has more than [`STEPS_MAX`] steps.
    pub fn new(steps: RangeInclusive<u64>) -> Result<Self, StepRangeError> {
        let (first, last) = (*steps.start(), *steps.end());
        if first == 0 {
            return Err(StepRangeError::Zero);
        }
        if last < first {
            return Err(StepRangeError::Reversed { first, last });
        }
        if last - first >= STEPS_MAX {
            return Err(StepRangeError::Length { first, last });
        }
        Ok(Self(steps))
    }

    /// The first step.
    pub fn first(&self) -> u64 {
        *self.0.start()
    }

    /// The last step.
    pub fn last(&self) -> u64 {
        *self.0.end()
    }
}

impl FromStr for StepRange {
    type Err = StepRangeError;

    fn from_str(text: &str) -> Result<Self, StepRangeError> {
        let ends = text.split_once("..").and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        let (first, last) = ends.ok_or_else(|| StepRangeError::Form(text.to_owned()))?;
        Self::new(first..=last)
    }
}

impl fmt::Display for StepRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}..{}", self.first(), self.last())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_has_both_ends_and_clear_errors() {
        let parse = |text: &str| text.parse::<StepRange>();
        let range = parse("100..200").expect("a range");
        assert_eq!((range.first(), range.last(), range.to_string()), (100, 200, "100..200".to_owned()));
        assert_eq!(parse("7..7").map(|range| range.last()), Ok(7));
        for text in ["a..b", "100", "100..", "..200", "1..2..3", "-1..4", "1.5..2", "1..=2", ""] {
            assert_eq!(parse(text), Err(StepRangeError::Form(text.to_owned())));
        }
        assert_eq!(parse("0..5"), Err(StepRangeError::Zero));
        assert_eq!(parse("9..5"), Err(StepRangeError::Reversed { first: 9, last: 5 }));
        assert_eq!(parse("1..100000").map(|range| range.last()), Ok(STEPS_MAX));
        assert_eq!(parse("1..100001"), Err(StepRangeError::Length { first: 1, last: 100_001 }));
        assert_eq!(
            parse("a..b").expect_err("no range").to_string(),
            "expected FIRST..LAST with two whole numbers, such as 100..200, found `a..b`"
        );
    }
}
