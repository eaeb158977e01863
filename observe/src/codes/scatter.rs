//! The picture: points in the plane, coloured by label.

use kuva::plot::legend::{LegendEntry, LegendShape};
use kuva::plot::scatter::ScatterPlot;
use kuva::render::layout::Layout;
use kuva::render::plots::Plot;
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg;

/// Width of the picture in pixels.
pub const WIDTH: u32 = 1000;
/// Height of the picture in pixels.
pub const HEIGHT: u32 = 800;

/// A colour for each label, in turn: Matplotlib's `tab10`, two of them darkened for a white ground. Shapes would help readers
/// who cannot tell all colours apart, but `kuva` makes circles transparent and no other shape.
const COLORS: [&str; 10] =
    ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#444444", "#a5a616", "#17becf"];

/// How a compact picture is drawn, and by how much it is enlarged then, text and all.
const COMPACT_SIZE: (f64, f64) = (640.0, 512.0);
const COMPACT_SCALE: f32 = 1.5;

/// How much of what is below a point it covers: where many lie, the colour is deeper.
const OPACITY: f64 = 0.6;

/// The points are drawn in so many parts, each with all labels in turn, so that the last label does not cover the others.
const N_PARTS: usize = 32;

/// Labels of points, and what they mean.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// One number for each point, an index of `names`.
    pub numbers: &'a [u8],
    /// The name of each number.
    pub names: &'a [&'a str],
}

/// How large text and points are beside the picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Full,
    Compact,
}

/// A scatter plot of [`WIDTH`] x [`HEIGHT`] pixels. With more than ten labels, colours repeat.
#[derive(Clone, Copy, Debug)]
pub struct Scatter<'a> {
    /// What is shown, in a line above.
    pub title: &'a str,
    /// Labels of the x and the y axis.
    pub axes: [&'a str; 2],
    /// The points, all finite.
    pub points: &'a [[f64; 2]],
    /// Their labels, for colours and a legend; without, all points are of one colour.
    pub labels: Option<Labels<'a>>,
}

impl Scatter<'_> {
    /// The picture as SVG.
    ///
    /// # Panics
    /// If there are not as many labels as points, a label has no name, or a point is not finite.
    pub fn svg(&self) -> String {
        let (plots, layout) = self.chart(Form::Full);
        kuva::render_to_svg(plots, layout)
    }

    /// The picture as PNG, its text in the font that this crate brings: the same bytes on any machine.
    ///
    /// # Panics
    /// As [`Scatter::svg`].
    pub fn png(&self) -> Vec<u8> {
        self.raster(Form::Full)
    }

    /// The picture as PNG with larger text, which can be read where the picture is shown smaller than it is.
    ///
    /// # Panics
    /// As [`Scatter::svg`].
    pub fn compact_png(&self) -> Vec<u8> {
        self.raster(Form::Compact)
    }

    fn raster(&self, form: Form) -> Vec<u8> {
        let (plots, layout) = self.chart(form);
        let svg = usvg::Tree::from_str(&kuva::render_to_svg(plots, layout), &font()).expect("kuva writes SVG");
        let scale = match form {
            Form::Full => 1.0,
            Form::Compact => COMPACT_SCALE,
        };
        let size = svg.size().to_int_size().scale_by(scale).expect("a picture has a size");
        let mut picture = Pixmap::new(size.width(), size.height()).expect("a picture has pixels");
        resvg::render(&svg, Transform::from_scale(scale, scale), &mut picture.as_mut());
        picture.encode_png().expect("a picture in memory can be written as PNG")
    }

    fn chart(&self, form: Form) -> (Vec<Plot>, Layout) {
        assert!(self.points.iter().flatten().all(|value| value.is_finite()), "points of a picture are finite");
        let (plots, legend) = match self.labels {
            Some(labels) => (self.labelled(labels, form), legend(labels)),
            None => (vec![self.plot(self.points.iter(), 0, form).into()], vec![]),
        };
        let (width, height) = match form {
            Form::Full => (f64::from(WIDTH), f64::from(HEIGHT)),
            Form::Compact => COMPACT_SIZE,
        };
        let layout = Layout::auto_from_plots(&plots)
            .with_title(as_xml(self.title))
            .with_x_label(as_xml(self.axes[0]))
            .with_y_label(as_xml(self.axes[1]))
            .with_width(width)
            .with_height(height);
        (plots, if legend.is_empty() { layout } else { layout.with_legend_entries(legend) })
    }

    /// A series for each label in each part of the points.
    fn labelled(&self, labels: Labels, form: Form) -> Vec<Plot> {
        assert_eq!(labels.numbers.len(), self.points.len(), "each point has a label");
        let is_named = |&number: &u8| usize::from(number) < labels.names.len();
        assert!(labels.numbers.iter().all(is_named), "each label has a name");
        let n_part = self.points.len().div_ceil(N_PARTS).max(1);
        let parts = self.points.chunks(n_part).zip(labels.numbers.chunks(n_part));
        let series = parts.flat_map(|(points, numbers)| {
            (0..labels.names.len()).map(move |number| {
                let labelled = points.iter().zip(numbers).filter(move |&(_, &label)| usize::from(label) == number);
                self.plot(labelled.map(|(point, _)| point), number, form)
            })
        });
        series.filter(|plot| !plot.data.is_empty()).map(Plot::from).collect()
    }

    /// Some of the points in the colour of a label. Fewer points are drawn larger.
    fn plot<'p>(&self, points: impl Iterator<Item = &'p [f64; 2]>, number: usize, form: Form) -> ScatterPlot {
        let radius = if self.points.len() > 1000 || form == Form::Compact { 3.0 } else { 4.5 };
        ScatterPlot::new()
            .with_data(points.map(|&[x, y]| (x, y)))
            .with_color(color(number))
            .with_size(radius)
            .with_marker_opacity(OPACITY)
    }
}

/// The labels that a point has, in the order of their numbers.
fn legend(labels: Labels) -> Vec<LegendEntry> {
    let is_used = |number: usize| labels.numbers.iter().any(|&label| usize::from(label) == number);
    let used = labels.names.iter().enumerate().filter(|&(number, _)| is_used(number));
    let entries = used.map(|(number, &name)| LegendEntry {
        label: as_xml(name),
        color: color(number).to_owned(),
        shape: LegendShape::Circle,
        dasharray: None,
    });
    entries.collect()
}

/// A text without what may not stand in XML ([Char](https://www.w3.org/TR/xml/#charsets)).
fn as_xml(text: &str) -> String {
    let may_stand = |letter: char| !letter.is_control() && !matches!(letter, '\u{FFFE}' | '\u{FFFF}');
    text.chars().map(|letter| if may_stand(letter) { letter } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Text in `DejaVu Sans`, whatever the machine has.
fn font() -> usvg::Options<'static> {
    const FAMILY: &str = "DejaVu Sans";
    // Latin, Greek and Cyrillic letters of version 2.37, without hints.
    const FILE: &[u8] = include_bytes!("../../assets/DejaVuSans.ttf");
    let mut options = usvg::Options { font_family: FAMILY.to_owned(), ..usvg::Options::default() };
    let fonts = options.fontdb_mut();
    fonts.load_font_data(FILE.to_vec());
    fonts.set_sans_serif_family(FAMILY);
    options
}

fn color(number: usize) -> &'static str {
    COLORS[number % COLORS.len()]
}
