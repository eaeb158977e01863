//! Procedural stand-ins for Fashion-MNIST: ten kinds of grey garments on black, drawn from a seed.
//!
//! They keep training, tests and demonstrations going where the real images cannot be had. Only
//! the drawing is here: no files, no downloads, no split into training and test images. A score
//! reached on these drawings says nothing about the score on the real data.
//!
//! All arithmetic is `+ - * /` and square roots, which IEEE 754 rounds alike everywhere, so that
//! one seed gives the same bytes on every machine.

use std::array::from_fn;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Width and height of an image in pixels.
const SIDE: usize = 28;
/// Number of pixels in one image.
const PIXELS: usize = SIDE * SIDE;
/// The horizontal middle of an image in pixels, about which garments are mirrored.
const MIDDLE: f32 = 14.0;
/// The five places, in pixels along a side, between which warp and light change evenly.
const KNOTS: [f32; 5] = [0.0, 7.0, 14.0, 21.0, 28.0];
/// How to draw each class, placed by label in the order of Fashion-MNIST.
const CLASSES: [fn(&mut Sketch); 10] =
    [t_shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle_boot];

/// Pixels and labels of `n` synthetic garments.
///
/// The pixels are `[n, 28, 28]`, row-major, from 0 for the black background to 255 for white. The
/// labels are `[n]`; image `i` is of class `i % 10`. Image `i` depends on `seed` and `i` alone, so
/// that fewer images are always a prefix of more.
pub fn garments(seed: u64, n: usize) -> (Vec<u8>, Vec<u8>) {
    let key = ChaCha8Rng::seed_from_u64(seed);
    let mut pixels = vec![0; n * PIXELS];
    let images = pixels.chunks_exact_mut(PIXELS);
    for ((number, image), draw) in (0..).zip(images).zip(CLASSES.iter().cycle()) {
        let mut dice = key.clone();
        dice.set_stream(number);
        let mut sketch = Sketch::new(dice);
        draw(&mut sketch);
        sketch.develop(image);
    }
    (pixels, (0..10).cycle().take(n).collect())
}

/// A place in the image as `[right, down]`, in pixels from the upper left corner.
type Point = [f32; 2];

/// Draws with a method of a sketch; points are written as `right down, right down, ...`.
macro_rules! draw {
    ($sketch:ident.$method:ident($($pen:expr),*): $($right:tt $down:tt),*) => {
        $sketch.$method($($pen,)* &[$([$right, $down]),*])
    };
}

/// Chooses measures for a sketch, each written as `name lowest highest`.
macro_rules! vary {
    ($sketch:ident: $($name:ident $low:literal $high:literal),*) => {
        $(let $name = $sketch.between($low, $high);)*
    };
}

/// One garment while it is being drawn.
///
/// Its methods take points as they lie before the garment's own warp.
struct Sketch {
    dice: ChaCha8Rng,
    /// How much of each pixel is cloth, 0 to 1, row-major.
    cover: [f32; PIXELS],
    /// The brightness of the cloth in each pixel, row-major, where 1 is plain cloth.
    tone: [f32; PIXELS],
    /// The brightness of plain cloth, 0 to 1.
    base: f32,
    /// The tone of details, far enough from 1 to be seen on this cloth.
    accent: f32,
    /// Whether all that is drawn is drawn again on the other side of the middle.
    mirror: bool,
    /// By what factor the garment is widened at the height of each knot.
    widths: [f32; 5],
    /// How many pixels the garment is moved down at the height of each knot.
    drops: [f32; 5],
}

impl Sketch {
    /// An empty image whose cloth and warp are chosen.
    fn new(dice: ChaCha8Rng) -> Self {
        let mut sketch = Self {
            dice,
            cover: [0.0; PIXELS],
            tone: [1.0; PIXELS],
            base: 0.0,
            accent: 0.0,
            mirror: true,
            widths: [0.0; 5],
            drops: [0.0; 5],
        };
        let darkest = if sketch.chance(0.15) { 0.25 } else { 0.57 };
        sketch.base = sketch.between(darkest, darkest + 0.4);
        // Bright cloth has no room above it, so that its details can only be darker.
        let darker = sketch.base > 0.7 || sketch.chance(0.4);
        let lowest = if darker { 0.45 } else { 1.4 };
        sketch.accent = sketch.between(lowest, lowest + 0.25);
        let (width, drop) = (sketch.between(0.93, 1.03), sketch.between(-0.5, 0.5));
        sketch.widths = from_fn(|_| width + sketch.between(-0.05, 0.05));
        sketch.drops = from_fn(|_| drop + sketch.between(-0.9, 0.9));
        sketch
    }

    /// A number spread evenly from `low` to `high`.
    fn between(&mut self, low: f32, high: f32) -> f32 {
        let [.., lesser, greater] = self.dice.next_u32().to_le_bytes();
        low + (high - low) * f32::from(u16::from_le_bytes([lesser, greater])) / f32::from(u16::MAX)
    }

    /// True with the given probability.
    fn chance(&mut self, probability: f32) -> bool {
        self.between(0.0, 1.0) < probability
    }

    /// Gives the inside of an outline a tone and, where `cloth` is set, makes it cloth.
    fn fill(&mut self, tone: f32, outline: &[Point], cloth: bool) {
        let sides: &[f32] = if self.mirror { &[1.0, -1.0] } else { &[1.0] };
        for side in sides {
            let warp = |&[x, y]: &Point| {
                let width = side * blend(&self.widths, y);
                [MIDDLE + (x - MIDDLE) * width, y + blend(&self.drops, y)]
            };
            let outline: Vec<Point> = outline.iter().map(warp).collect();
            let covers = self.cover.chunks_exact_mut(SIDE);
            let rows = covers.zip(self.tone.chunks_exact_mut(SIDE));
            for (top, (covers, tones)) in steps(28, 0.0, 1.0).zip(rows) {
                let Some(shares) = shares_inside(&outline, top) else {
                    continue;
                };
                for ((cover, old), share) in covers.iter_mut().zip(tones).zip(shares) {
                    *old += (tone - *old) * share;
                    *cover += if cloth { (1.0 - *cover) * share } else { 0.0 };
                }
            }
        }
    }

    /// Lays a piece of cloth with rounded corners over what is there.
    fn cloth(&mut self, tone: f32, outline: &[Point]) {
        self.fill(tone, &chamfered(&chamfered(outline, 1.0), 0.4), true);
    }

    /// Lays a band of cloth along a path, `width` pixels wide.
    fn strap(&mut self, width: f32, tone: f32, path: &[Point]) {
        for outline in bars(path, width) {
            self.fill(tone, &outline, true);
        }
    }

    /// Colours what cloth there is along a path, `width` pixels wide.
    fn line(&mut self, width: f32, tone: f32, path: &[Point]) {
        for outline in bars(path, width) {
            self.fill(tone, &outline, false);
        }
    }

    /// Colours horizontal bands of cloth with the given probability.
    fn stripes(&mut self, probability: f32) {
        let (gap, tone) = (self.between(2.5, 5.0), self.accent);
        let count = if self.chance(probability) { 7 } else { 0 };
        for y in steps(count, 2.0 * gap, gap) {
            draw!(self.line(gap * 0.4, tone): 13.0 y, 30.0 y);
        }
    }

    /// The light on each pixel, about 1: a slope over the image and soft wrinkles.
    fn light(&mut self) -> Vec<f32> {
        let (across, along) = (self.between(-0.01, 0.01), self.between(-0.012, 0.006));
        let depth = self.between(0.03, 0.14);
        let columns = KNOTS.map(|x| {
            let slope = 1.0 + across * (x - MIDDLE);
            KNOTS.map(|y| slope + along * (y - MIDDLE) + self.between(-depth, depth))
        });
        let mut light = Vec::with_capacity(PIXELS);
        for y in steps(28, 0.5, 1.0) {
            let row = columns.map(|column| blend(&column, y));
            light.extend(steps(28, 0.5, 1.0).map(|x| blend(&row, x)));
        }
        light
    }

    /// Turns the sketch into grey bytes, with light, weave and darker edges.
    fn develop(mut self, image: &mut [u8]) {
        let light = self.light();
        let (weave, rim) = (self.between(0.01, 0.07), self.between(0.2, 0.55));
        let mut noise = [0; PIXELS];
        self.dice.fill_bytes(&mut noise);
        let inside = averaged(&averaged(&self.cover, 1), SIDE);
        let cloth = self.cover.iter().zip(&self.tone).zip(&inside);
        for ((pixel, ((cover, tone), inside)), (light, noise)) in
            image.iter_mut().zip(cloth).zip(light.iter().zip(&noise))
        {
            let grain = 1.0 + weave * (f32::from(*noise) / 127.5 - 1.0);
            let edge = 1.0 - rim * (1.0 - inside);
            *pixel = to_byte(self.base * cover * tone * light * grain * edge);
        }
    }
}

/// A brightness from 0 to 1 as a byte; what lies outside is clamped.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the value is from 0 to 255")]
fn to_byte(brightness: f32) -> u8 {
    (brightness * 255.0) as u8
}

/// As many numbers as `count`, `gap` apart.
fn steps(count: u8, first: f32, gap: f32) -> impl Iterator<Item = f32> {
    (0..count).map(move |step| first + gap * f32::from(step))
}

/// The value at a place in pixels, from the values at the five knots, with straight lines between.
fn blend(values: &[f32; 5], place: f32) -> f32 {
    let near = |knot: f32| (1.0 - (place - knot).abs() / 7.0).max(0.0);
    let part = |(knot, value): (&f32, &f32)| near(*knot) * value;
    KNOTS.iter().zip(values).map(part).sum()
}

/// The share of each pixel in the row below `top` that lies inside a closed outline, or nothing
/// where the outline misses the row.
///
/// Each edge adds its height to all that lies right of it, falling edges with one sign and rising
/// edges with the other, so that only the inside is left.
fn shares_inside(outline: &[Point], top: f32) -> Option<[f32; SIDE]> {
    let mut shares = [0.0_f32; SIDE];
    let mut reached = false;
    let mut previous = *outline.last()?;
    for &next in outline {
        let (from, to) = (previous, next);
        previous = next;
        let (start, end) = (from[1].clamp(top, top + 1.0), to[1].clamp(top, top + 1.0));
        let height = end - start;
        if height == 0.0 {
            continue;
        }
        reached = true;
        let slope = (to[0] - from[0]) / (to[1] - from[1]);
        let crossing = from[0] + slope * ((start + end) * 0.5 - from[1]);
        let sharpness = 1.0 / (1.0 + (slope * height).abs());
        for (middle, share) in steps(28, 0.5, 1.0).zip(&mut shares) {
            let beyond = (middle - crossing) * sharpness + 0.5;
            *share += height * beyond.clamp(0.0, 1.0);
        }
    }
    reached.then(|| shares.map(|share| share.abs().min(1.0)))
}

/// The mean of each number, the one `step` before it and the one `step` after it.
fn averaged(field: &[f32; PIXELS], step: usize) -> [f32; PIXELS] {
    from_fn(|i| {
        let before = field.get(i.wrapping_sub(step)).unwrap_or(&0.0);
        (before + field[i] + field.get(i + step).unwrap_or(&0.0)) / 3.0
    })
}

/// The outlines of straight bars along a path, `width` pixels wide, with square ends.
fn bars(path: &[Point], width: f32) -> impl Iterator<Item = [Point; 4]> {
    let ends = path.iter().zip(path.iter().skip(1));
    ends.map(move |(&[x, y], &[to_x, to_y])| {
        let (right, down) = (to_x - x, to_y - y);
        let half = width * 0.5 / (right * right + down * down).sqrt();
        let (a, b) = (-down * half, right * half);
        [[x + a, y + b], [to_x + a, to_y + b], [to_x - a, to_y - b], [x - a, y - b]]
    })
}

/// The outline with each corner replaced by a straight cut that starts `size` pixels before it.
fn chamfered(outline: &[Point], size: f32) -> Vec<Point> {
    let edges = outline.iter().zip(outline.iter().cycle().skip(1));
    let cut = |(&[x, y], &[to_x, to_y]): (&Point, &Point)| {
        let (right, down) = (to_x - x, to_y - y);
        let share = (size / (right * right + down * down).sqrt()).min(0.3);
        let (a, b) = (right * share, down * share);
        [[x + a, y + b], [to_x - a, to_y - b]]
    };
    edges.flat_map(cut).collect()
}

/// Draws the body and the sleeves of a garment for the upper body, with the seams between them.
fn top(sketch: &mut Sketch, long: bool, neck: f32, hem: f32) {
    vary!(sketch: side 20.2 22.0, reach 25.8 27.0);
    if long {
        draw!(sketch.cloth(0.95): 18.0 1.8, 22.0 2.8, 25.0 6.5, reach 23.0, 23.2 24.0, 20.0 9.0);
    } else {
        draw!(sketch.cloth(0.95): 18.0 1.8, 22.0 2.8, reach 9.0, 22.8 11.0, 20.0 9.0);
    }
    draw!(sketch.cloth(1.0): 12.5 neck, 17.2 1.0, 21.2 2.4, side 10.0, side hem, 12.5 hem);
    draw!(sketch.line(0.8, 0.7): 21.0 2.6, side 11.5);
}

/// Label 0: short sleeves, a wide neck, sometimes stripes or a print.
fn t_shirt(sketch: &mut Sketch) {
    vary!(sketch: neck 2.5 5.5, hem 24.5 27.0, right 15.5 18.5, height 2.0 7.0, choice 0.0 1.0);
    top(sketch, false, neck, hem);
    if choice < 0.35 {
        draw!(sketch.line(height, sketch.accent): 13.0 12.0, right 12.0);
    } else {
        sketch.stripes(0.45);
    }
}

/// Label 1: two legs with a gap between them, a waistband, a fly, pockets and creases.
fn trouser(sketch: &mut Sketch) {
    vary!(sketch: hip 19.2 20.4, outer 19.0 21.8, inner 14.9 16.2, crotch 8.5 10.5);
    vary!(sketch: crease 0.75 1.2);
    draw!(sketch.cloth(1.0): 12.5 0.8, 18.8 0.8, hip 8.0, 19.0 crotch, 12.5 crotch);
    draw!(sketch.cloth(1.0): 13.8 7.0, hip 7.0, outer 27.0, inner 27.0, 13.8 crotch);
    draw!(sketch.line(1.2, 0.7): 13.0 1.8, 22.0 1.8);
    draw!(sketch.line(0.5, 0.5): 14.0 2.0, 14.0 crotch);
    draw!(sketch.line(0.7, 0.65): 19.5 5.5, 17.0 3.0);
    draw!(sketch.line(1.3, crease): 16.8 8.0, (inner * 0.5 + outer * 0.5) 27.5);
}

/// Label 2: long sleeves, a round collar, ribbed cuffs and hem, sometimes stripes.
fn pullover(sketch: &mut Sketch) {
    vary!(sketch: neck 2.0 3.0);
    top(sketch, true, neck, 25.0);
    sketch.stripes(0.35);
    draw!(sketch.line(1.2, sketch.accent): 17.6 1.4, 15.4 (neck + 0.8), 13.0 (neck + 0.8));
    draw!(sketch.line(0.9, sketch.accent): 13.0 23.2, 22.4 23.2);
    draw!(sketch.line(0.9, sketch.accent): 22.6 22.2, 28.0 21.4);
}

/// Label 3: a narrow waist and a skirt that widens to the hem, with or without sleeves.
fn dress(sketch: &mut Sketch) {
    vary!(sketch: waist 17.2 18.4, hem 19.5 25.5, middle 9.5 12.5, cuff -4.0 16.0, neck 2.5 5.5);
    vary!(sketch: pleat 0.6 0.9);
    if cuff > 6.0 {
        draw!(sketch.cloth(0.9): 17.0 1.4, 19.0 2.0, 22.4 cuff, 19.8 cuff, 17.0 7.0);
    }
    draw!(sketch.cloth(1.0): 12.5 neck, 16.4 0.8, 18.8 1.6, 18.2 6.0, waist middle, 12.5 13.0);
    draw!(sketch.cloth(1.0): 12.5 9.0, waist middle, hem 27.2, 12.5 27.2);
    sketch.stripes(0.25);
    draw!(sketch.line(0.9, pleat): 15.0 middle, (hem * 0.3 + 9.8) 27.5);
    draw!(sketch.line(0.9, pleat): 16.4 middle, (hem * 0.7 + 4.2) 27.5);
    draw!(sketch.line(1.3, sketch.accent): 13.0 middle, 20.0 middle);
}

/// Label 4: long sleeves and a long body that opens in front, with lapels, buttons and pockets.
fn coat(sketch: &mut Sketch) {
    vary!(sketch: depth 8.0 14.0, pocket 17.0 20.0);
    top(sketch, true, 1.2, 27.4);
    draw!(sketch.line(2.6, 0.4): 14.0 1.0, 14.0 depth);
    draw!(sketch.cloth(1.2): 17.0 0.8, 19.0 4.0, 14.4 depth, 14.2 (depth - 1.0));
    draw!(sketch.line(0.8, 0.55): 19.0 4.0, 14.6 (depth + 0.4));
    draw!(sketch.line(0.8, 0.3): 14.0 depth, 14.0 28.0);
    draw!(sketch.line(0.9, 0.6): 17.2 pocket, 20.2 (pocket - 0.8));
    for y in steps(3, depth + 1.5, 4.0) {
        draw!(sketch.line(1.2, 0.5): 15.4 y, 16.6 y);
    }
}

/// Label 5: a thin sole with straps and bare gaps, flat or on a high heel, toe to the left.
fn sandal(sketch: &mut Sketch) {
    sketch.mirror = false;
    vary!(sketch: width 1.9 3.2, tone 0.9 1.3, lift -6.0 7.0, toe 14.5 17.0, ankle 7.0 9.0);
    let (heel, thong) = (20.5 - lift.max(0.0), sketch.chance(0.5));
    let ankle = heel - ankle;
    let (x, y) = if thong { (7.5, toe) } else { (19.5, heel) };
    draw!(sketch.strap(width, tone): 3.0 21.5, 6.0 toe, 8.0 toe, 12.5 20.5);
    draw!(sketch.strap(width, tone): 25.6 heel, 24.4 ankle, 16.5 (ankle + 1.4));
    draw!(sketch.strap(width, tone): 17.0 (ankle + 1.2), x (y + 0.7));
    draw!(sketch.cloth(0.8): 22.4 heel, 26.6 heel, 26.4 23.5, 24.0 23.5);
    draw!(sketch.strap(2.4, 0.95): 1.0 22.2, 10.0 22.2, 18.5 (heel + 1.4), 27.0 (heel + 0.4));
}

/// Label 6: a collar, a buttoned front, sleeves of either length, often stripes or checks.
fn shirt(sketch: &mut Sketch) {
    vary!(sketch: hem 25.0 27.0, choice 0.0 1.0);
    let (long, faint) = (sketch.chance(0.65), 0.5 + 0.5 * sketch.accent);
    top(sketch, long, 3.0, hem);
    for x in steps(if choice < 0.5 { 5 } else { 0 }, 16.4, 2.4) {
        draw!(sketch.line(0.9, faint): x 0.0, x 28.0);
    }
    sketch.stripes(0.3);
    draw!(sketch.line(1.4, 1.1): 14.7 3.0, 14.7 28.0);
    draw!(sketch.line(0.6, 0.65): 15.6 4.0, 15.6 28.0);
    for y in steps(5, 7.5, 4.0) {
        draw!(sketch.line(1.3, 0.35): 13.4 y, 14.6 y);
    }
    draw!(sketch.cloth(1.2): 16.4 0.2, 18.6 3.0, 16.4 6.4, 14.0 3.4);
    draw!(sketch.line(0.8, 0.5): 18.8 3.0, 16.4 6.8, 14.0 3.8);
}

/// Label 7: a low shoe with laces and a sole of another tone, toe to the left.
fn sneaker(sketch: &mut Sketch) {
    sketch.mirror = false;
    vary!(sketch: mouth 10.5 12.5, tongue 8.5 10.5, tip 4.5 7.0, mark 13.0 18.0, thick 1.6 2.8);
    draw!(sketch.cloth(1.0): 1.0 21.0, 1.4 18.0, tip 16.5, 15.0 tongue, 17.5 tongue, 19.5 mouth,
        26.0 mouth, 27.0 21.0);
    for x in steps(3, mark, 2.4) {
        draw!(sketch.line(1.1, sketch.accent): x 20.0, (x + 2.0) 14.0);
    }
    for share in steps(4, 0.2, 0.2) {
        let (x, y) = (tip + (14.5 - tip) * share, 16.5 + (tongue - 16.5) * share);
        draw!(sketch.line(0.8, 0.45): x (y - 1.5), (x + 1.4) (y + 2.4));
    }
    draw!(sketch.line(1.3, 0.6): 18.5 (mouth + 0.6), 27.0 (mouth + 0.6));
    draw!(sketch.strap(thick, sketch.accent): 0.8 21.2, 27.2 21.2);
}

/// Label 8: a wide box with a handle over it, closed by a flap with a clasp or held by two belts.
fn bag(sketch: &mut Sketch) {
    vary!(sketch: upper 8.0 12.0, lower 24.5 27.0, wide 25.0 27.2, narrow 24.0 27.0);
    vary!(sketch: reach 18.5 22.0, peak 1.5 4.5, width 1.4 2.4, flap 4.0 7.5, choice 0.0 1.0);
    let (flap, brim) = (upper + flap, upper + 1.6);
    draw!(sketch.strap(width, 0.85): 13.0 peak, (reach - 2.4) peak, reach (peak + 3.0), reach 13.0);
    draw!(sketch.cloth(1.0): 12.5 upper, narrow upper, wide lower, 12.5 lower);
    if choice < 0.6 {
        draw!(sketch.line(0.9, 0.6): 13.0 flap, 28.0 flap);
        draw!(sketch.line(2.8, sketch.accent): 13.0 flap, 15.2 flap);
    } else {
        draw!(sketch.line(1.0, sketch.accent): 13.0 brim, 28.0 brim);
        draw!(sketch.line(1.2, sketch.accent): reach upper, reach lower);
    }
}

/// Label 9: a shaft above the ankle on a heel, toe to the left, with a zip or seams.
fn ankle_boot(sketch: &mut Sketch) {
    sketch.mirror = false;
    vary!(sketch: front 11.0 14.0, back 24.5 26.5, shaft 1.5 6.0, instep 14.0 16.5);
    vary!(sketch: heel 22.5 25.0, choice 0.0 1.0);
    draw!(sketch.cloth(1.0): 1.4 25.4, 2.0 21.5, 6.5 19.0, front instep, front shaft, back shaft,
        back 16.0, 26.8 heel, 17.0 25.4);
    draw!(sketch.cloth(0.55): 19.5 (heel - 0.5), 27.0 (heel - 0.5), 26.6 27.2, 20.2 27.2);
    draw!(sketch.strap(1.3, 0.55): 1.2 25.9, 15.0 25.9, 20.0 (heel + 0.4));
    draw!(sketch.line(1.2, 0.7): 10.0 (shaft + 1.4), 28.0 (shaft + 1.4));
    if choice < 0.5 {
        draw!(sketch.line(1.1, sketch.accent): 19.0 shaft, 19.5 21.5);
    } else {
        draw!(sketch.line(0.8, 0.65): 7.0 25.0, 10.0 20.0, (front + 3.0) instep);
        draw!(sketch.line(0.8, 0.65): (back - 3.0) 14.0, (back - 2.0) heel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks whether the first twenty images of two drawings, each a seed and a number, agree.
    fn check(one: (u64, usize), other: (u64, usize), agree: bool) {
        let first = |(seed, n)| garments(seed, n).0[..20 * PIXELS].to_vec();
        assert_eq!(first(one) == first(other), agree, "{one:?} and {other:?}");
    }

    #[test]
    fn image_depends_only_on_seed_and_index() {
        check((1, 20), (1, 20), true);
        check((1, 20), (1, 50), true);
        check((1, 20), (2, 20), false);
    }

    #[test]
    fn synthetic_images_resemble_fashion_mnist_statistics() {
        let (pixels, labels) = garments(7, 1000);
        let mut counts = [0; 10];
        for label in labels {
            counts[usize::from(label)] += 1;
        }
        let light: u32 = pixels.iter().map(|&pixel| u32::from(pixel)).sum();
        let mean = f64::from(light) / 255.0 / 784_000.0;
        let corners = [0, SIDE - 1, PIXELS - SIDE, PIXELS - 1];
        let black = |image: &&[u8]| corners.iter().all(|&corner| image[corner] == 0);
        let framed = pixels.chunks_exact(PIXELS).filter(black).count();
        assert_eq!((pixels.len(), counts), (784_000, [100; 10]));
        assert!((0.26..0.32).contains(&mean), "the mean brightness is {mean}");
        assert!(framed > 950, "only {framed} images have black corners");
    }

    /// Notices every change of the drawing, by the 64-bit FNV-1a hash of a hundred images. Whoever
    /// means the change pins the new hash; results reached on the old images no longer compare.
    #[test]
    fn synthetic_images_match_golden_hash() {
        let fold = |hash: u64, &byte: &u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let hash = garments(1, 100).0.iter().fold(0xcbf2_9ce4_8422_2325, fold);
        assert_eq!(hash, 0x7237_db7e_9a51_2f2b);
    }
}
