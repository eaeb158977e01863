//! The picture: points in the plane, coloured by label.

use kuva::plot::legend::{LegendEntry, LegendShape};
use kuva::plot::scatter::ScatterPlot;
use kuva::render::layout::Layout;
use kuva::render::plots::Plot;

/// Width of the picture in pixels.
pub const WIDTH: u32 = 1000;
/// Height of the picture in pixels.
pub const HEIGHT: u32 = 800;

/// A colour for each label, in turn: Matplotlib's `tab10`, two of them darkened for a white ground. Shapes would help readers
/// who cannot tell all colours apart, but `kuva` makes circles transparent and no other shape.
const COLORS: [&str; 10] =
    ["#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#444444", "#a5a616", "#17becf"];

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
        let (plots, layout) = self.chart();
        kuva::render_to_svg(plots, layout)
    }

    /// The picture as PNG, its text in the font that `kuva` brings.
    ///
    /// # Panics
    /// As [`Scatter::svg`].
    pub fn png(&self) -> Vec<u8> {
        let (plots, layout) = self.chart();
        kuva::render_to_raster(plots, layout, 1.0).expect("a picture in memory can be written as PNG")
    }

    fn chart(&self) -> (Vec<Plot>, Layout) {
        assert!(self.points.iter().flatten().all(|value| value.is_finite()), "points of a picture are finite");
        let (plots, legend) = match self.labels {
            Some(labels) => (self.labelled(labels), legend(labels)),
            None => (vec![self.plot(self.points.iter(), 0).into()], vec![]),
        };
        let layout = Layout::auto_from_plots(&plots)
            .with_title(self.title)
            .with_x_label(self.axes[0])
            .with_y_label(self.axes[1])
            .with_width(f64::from(WIDTH))
            .with_height(f64::from(HEIGHT));
        (plots, if legend.is_empty() { layout } else { layout.with_legend_entries(legend) })
    }

    /// A series for each label in each part of the points.
    fn labelled(&self, labels: Labels) -> Vec<Plot> {
        assert_eq!(labels.numbers.len(), self.points.len(), "each point has a label");
        let is_named = |&number: &u8| usize::from(number) < labels.names.len();
        assert!(labels.numbers.iter().all(is_named), "each label has a name");
        let n_part = self.points.len().div_ceil(N_PARTS).max(1);
        let parts = self.points.chunks(n_part).zip(labels.numbers.chunks(n_part));
        let series = parts.flat_map(|(points, numbers)| {
            (0..labels.names.len()).map(move |number| {
                let labelled = points.iter().zip(numbers).filter(move |&(_, &label)| usize::from(label) == number);
                self.plot(labelled.map(|(point, _)| point), number)
            })
        });
        series.filter(|plot| !plot.data.is_empty()).map(Plot::from).collect()
    }

    /// Some of the points in the colour of a label. Fewer points are drawn larger.
    fn plot<'p>(&self, points: impl Iterator<Item = &'p [f64; 2]>, number: usize) -> ScatterPlot {
        let radius = if self.points.len() > 1000 { 3.0 } else { 4.5 };
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
        label: name.to_owned(),
        color: color(number).to_owned(),
        shape: LegendShape::Circle,
        dasharray: None,
    });
    entries.collect()
}

fn color(number: usize) -> &'static str {
    COLORS[number % COLORS.len()]
}
