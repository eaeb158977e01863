//! eˣ and its kin for single values, without branches and calls, so that a compiler turns loops over them into vector
//! instructions. The bounds are relative to the true value, over every finite f32; the tests go through all of a range.

use std::f32::consts::LOG2_E;

/// ln 2 in two parts: the first has so few digits that its product with a whole number up to 128 is exact.
const LN_2_HIGH: f32 = 0.693_359_4; // 355 / 512
const LN_2_LOW: f32 = -2.121_944_4e-4; // ln 2 - 355 / 512
/// 1.5 · 2²³: added to a small number, it leaves that number's whole part in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// eˣ as 2ⁿ (1 + q): gives 2ⁿ and q = eʳ − 1 with |r| ≤ ln 2 / 2, where the Taylor series ends at r⁷ / 5040 with an error
/// below 2⁻²⁶ of r. `x` is bounded so that 2ⁿ is a normal number; NaN stays NaN.
#[inline(always)]
fn scaled_expm1(x: f32) -> (f32, f32) {
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let rounded = x.mul_add(LOG2_E, ROUNDER);
    let n = rounded - ROUNDER;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()));
    let mut series = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        series = r.mul_add(series, factor);
    }
    (power, (r * r).mul_add(series, r))
}

/// eˣ within 2 units in the last place, from e⁻⁸⁷ to e⁸⁸; beyond, those.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (power, q) = scaled_expm1(x);
    power.mul_add(q, power)
}

/// eˣ − 1 within 3 units in the last place, from e⁻⁸⁷ − 1 to e⁸⁸ − 1; beyond, those.
#[inline(always)]
pub fn expm1(x: f32) -> f32 {
    let (power, q) = scaled_expm1(x);
    power.mul_add(q, power - 1.0)
}

/// tanh x within 4 units in the last place.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = expm1(2.0 * if x > 20.0 { 20.0 } else { x });
    e / (e + 2.0)
}

/// The logistic function 1 / (1 + e⁻ˣ) within 4 units in the last place, for x from −87.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// ln(1 + u) for u from 0 to 1, within 4 units in the last place: 2 artanh(s) with s = u / (2 + u) ≤ 1/3, whose series ends
/// at s¹⁵ / 15 with an error below 2⁻²⁸ of s.
#[inline(always)]
pub fn ln_1p_of_unit(u: f32) -> f32 {
    let s = u / (2.0 + u);
    let square = s * s;
    let mut series = 1.0 / 15.0;
    for factor in [1.0 / 13.0, 1.0 / 11.0, 1.0 / 9.0, 1.0 / 7.0, 0.2, 1.0 / 3.0] {
        series = square.mul_add(series, factor);
    }
    let twice = 2.0 * s;
    (twice * square).mul_add(series, twice)
}

/// ln u for u above 0, normal, within 4 units in the last place or 2⁻²³, whichever is more: 2 artanh(s) with
/// |s| ≤ 0.172, whose series ends at s⁹ / 9 with an error below 2⁻²⁷ of s.
#[inline(always)]
pub fn ln(u: f32) -> f32 {
    const HALF_ROOT: u32 = 0x3F35_04F3; // √½
    let bits = u.to_bits().wrapping_sub(HALF_ROOT);
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "an exponent, from -126 to 127")]
    let exponent = ((bits as i32) >> 23) as f32;
    let mantissa = f32::from_bits((bits & 0x007F_FFFF).wrapping_add(HALF_ROOT)); // from √½ to √2
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut series = 1.0 / 9.0;
    for factor in [1.0 / 7.0, 0.2, 1.0 / 3.0] {
        series = square.mul_add(series, factor);
    }
    let twice = 2.0 * s;
    exponent.mul_add(std::f32::consts::LN_2, (twice * square).mul_add(series, twice))
}

/// sin and cos of `turns` full turns, from 0 to 1, within 2⁻²³: Taylor series over an eighth of a turn to either side of
/// the nearest quarter.
#[inline(always)]
pub fn sin_cos_of_turns(turns: f32) -> (f32, f32) {
    let rounded = 4.0_f32.mul_add(turns, ROUNDER);
    let quarter = rounded.to_bits(); // in its lowest two bits
    let angle = 4.0_f32.mul_add(turns, -(rounded - ROUNDER)) * std::f32::consts::FRAC_PI_2;
    let square = angle * angle;
    let mut sin = 1.0 / 362_880.0;
    for factor in [-1.0 / 5040.0, 1.0 / 120.0, -1.0 / 6.0] {
        sin = square.mul_add(sin, factor);
    }
    let sin = (angle * square).mul_add(sin, angle);
    let mut cos = 1.0 / 40_320.0;
    for factor in [-1.0 / 720.0, 1.0 / 24.0, -0.5, 1.0] {
        cos = square.mul_add(cos, factor);
    }
    let is_odd = quarter & 1 != 0;
    let (first, second) = (if is_odd { cos } else { sin }, if is_odd { sin } else { cos });
    let sign = |value: f32, quarter: u32| f32::from_bits(value.to_bits() ^ ((quarter & 2) << 30));
    (sign(first, quarter), sign(second, quarter.wrapping_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest distance from the true value, in units in the last place, over numbers from a range that lie close together.
    fn check(bound: f64, range: (f32, f32), function: fn(f32) -> f32, exact: fn(f64) -> f64) {
        let (start, end) = range;
        let n_steps: u32 = 2_000_000;
        for step in 0..=n_steps {
            let share = f64::from(step) / f64::from(n_steps);
            #[expect(clippy::cast_possible_truncation, reason = "a number of the range")]
            let x = (f64::from(start) + share * (f64::from(end) - f64::from(start))) as f32;
            let expected = exact(f64::from(x));
            #[expect(clippy::cast_possible_truncation, reason = "to know how close numbers lie there")]
            let unit = f64::from(
                ((expected as f32).abs().max(f32::MIN_POSITIVE)).next_up()
                    - (expected as f32).abs().max(f32::MIN_POSITIVE),
            );
            let apart = (f64::from(function(x)) - expected).abs() / unit;
            assert!(apart <= bound, "at {x:e}: {:e} is {apart} units from {expected:e}", function(x));
        }
    }

    #[test]
    fn elementary_functions_are_within_error_bounds() {
        for range in [(-87.0, 88.0), (-1.0, 1.0), (-1e-3, 1e-3)] {
            check(2.0, range, exp, f64::exp);
            check(3.0, range, expm1, f64::exp_m1);
            check(4.0, range, tanh, f64::tanh);
            check(4.0, range, sigmoid, |x| 1.0 / (1.0 + (-x).exp()));
        }
        for range in [(0.0, 1.0), (0.0, 1e-3)] {
            check(4.0, range, ln_1p_of_unit, f64::ln_1p);
        }
    }

    #[test]
    fn ln_and_sin_cos_are_within_error_bounds() {
        let unit = 2.0_f64.powi(-23);
        for step in 1..=2_000_000_u32 {
            let share = f64::from(step) / 2e6;
            #[expect(clippy::cast_possible_truncation, reason = "a number from 0 to 1")]
            let x = share as f32;
            let x_exactly = f64::from(x);
            let apart = (f64::from(ln(x)) - x_exactly.ln()).abs();
            assert!(apart <= unit * (4.0 * x_exactly.ln().abs()).max(1.0), "ln {x}: {}", ln(x));
            let angle = x_exactly * std::f64::consts::TAU;
            let (sin, cos) = sin_cos_of_turns(x);
            assert!(
                (f64::from(sin) - angle.sin()).abs() <= unit && (f64::from(cos) - angle.cos()).abs() <= unit,
                "{x}"
            );
        }
    }

    #[test]
    fn extreme_inputs_give_finite_values_and_nan_stays_nan() {
        let functions: [fn(f32) -> f32; 4] = [exp, expm1, tanh, sigmoid];
        for function in functions {
            assert!(function(f32::NAN).is_nan());
            for x in [f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(function(x).is_finite());
            }
        }
        assert_eq!((tanh(1e9), tanh(-1e9), sigmoid(1e9)), (1.0, -1.0, 1.0));
    }
}
