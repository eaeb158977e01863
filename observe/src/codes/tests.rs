use image::{ImageFormat, Rgb};
use rayon::ThreadPoolBuilder;

use super::*;

/// Codes in `n_labels` clusters, and the cluster of each: the same on every machine.
fn clusters(n_codes: usize, n_values: usize, n_labels: usize) -> (Vec<f32>, Vec<u8>) {
    let mut state = 1_u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f32::from(u16::try_from(state >> 48).expect("16 bits")) / 65_536.0 - 0.5
    };
    let centers: Vec<f32> = (0..n_labels * n_values).map(|_| 10.0 * uniform()).collect();
    let labels: Vec<u8> = (0..n_codes).map(|i| u8::try_from(i % n_labels).expect("few labels")).collect();
    let center = |label: u8| &centers[usize::from(label) * n_values..][..n_values];
    let values = labels.iter().flat_map(|&label| center(label)).map(|value| value + uniform());
    (values.collect(), labels)
}

fn codes(values: &[f32], n_values: usize) -> Codes<'_> {
    Codes::new(values, n_values).expect("whole, finite codes")
}

/// The share of points whose nearest point has their label.
fn neighbor_agreement(points: &[[f64; 2]], labels: &[u8]) -> f64 {
    let distance = |i: usize, j: usize| (points[i][0] - points[j][0]).hypot(points[i][1] - points[j][1]);
    let nearest = |i: usize| {
        (0..points.len())
            .filter(|&j| j != i)
            .min_by(|&a, &b| distance(i, a).total_cmp(&distance(i, b)))
            .expect("others")
    };
    as_f64((0..points.len()).filter(|&i| labels[nearest(i)] == labels[i]).count()) / as_f64(points.len())
}

#[test]
fn pca_matches_numpy() {
    // The same codes in NumPy 2.4.6, in f64:
    //   rows = (numpy.arange(12)[:, None] * numpy.array([7, 5, 3, 11]) + numpy.arange(4)) % 13 / 13
    //   rows = (rows.astype("f4").astype("f8") * [1, 2, 3, 4]).astype("f4").astype("f8")
    //   centered = rows - rows.mean(0)
    //   _, s, vt = numpy.linalg.svd(centered, full_matrices=False)
    //   signs = numpy.sign(vt[numpy.arange(4), abs(vt).argmax(1)])
    //   print((s**2 / (s**2).sum())[:2], (centered @ (vt.T * signs))[:, :2])
    let expected_shares = [0.635_337_788_8, 0.229_803_857_1];
    let expected_points = [
        [-1.304_068_026_0, -0.594_843_377_5],
        [-1.469_738_121_9, 0.437_257_992_8],
        [2.031_285_778_5, -0.036_427_544_7],
        [1.400_924_491_6, 0.728_854_862_3],
        [0.305_273_919_7, -1.155_270_208_2],
        [-0.325_087_475_7, -0.389_987_739_0],
        [-0.523_897_066_4, 0.480_628_629_3],
        [-0.689_567_204_7, 1.512_729_954_4],
        [-2.249_909_033_2, -0.638_213_969_7],
        [1.284_254_409_0, -0.950_414_577_5],
        [1.085_444_804_9, -0.079_798_214_8],
        [0.455_083_524_2, 0.685_484_192_6],
    ];
    let (factors, scales) = ([7_u16, 5, 3, 11], [1.0_f32, 2.0, 3.0, 4.0]);
    let value = |i: u16, j: u16| f32::from((i * factors[usize::from(j)] + j) % 13) / 13.0 * scales[usize::from(j)];
    let values: Vec<f32> = (0..12).flat_map(|i| (0..4).map(move |j| value(i, j))).collect();
    let Pca { points, variance_shares } = pca(codes(&values, 4));
    let found = points.iter().flatten().chain(&variance_shares);
    for (found, expected) in found.zip(expected_points.iter().flatten().chain(&expected_shares)) {
        assert!((found - expected).abs() < 1e-6, "{points:?} {variance_shares:?}");
    }
}

#[test]
fn component_without_variance_gives_zeros() {
    let line = pca(codes(&[0.0, 0.0, 1.0, 2.0, 2.0, 4.0, 4.0, 8.0], 2)); // four codes on y = 2x
    assert!((line.variance_shares[0] - 1.0).abs() < 1e-12 && line.variance_shares[1] == 0.0, "{line:?}");
    assert!(line.points.iter().all(|point| point[1] == 0.0), "{line:?}");
    let same = pca(codes(&[0.5; 12], 3));
    assert_eq!(same, Pca { points: vec![[0.0; 2]; 4], variance_shares: [0.0; 2] });
}

#[test]
fn dominant_component_is_found_though_another_value_varies_most() {
    // Values 0 and 1 vary together, by 1.8 in all along their diagonal; value 2 alone varies by 1.
    let values = [0.95, 0.95, 0.0, -0.95, -0.95, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, -1.0];
    let Pca { points, variance_shares } = pca(codes(&values, 3));
    assert!((variance_shares[0] - 1.805 / 2.805).abs() < 1e-6, "{variance_shares:?}");
    assert!((points[0][0] - 0.95 * 2.0_f64.sqrt()).abs() < 1e-6, "{points:?}");
}

#[test]
fn tsne_is_bit_identical_on_any_number_of_threads() {
    let (values, labels) = clusters(120, 8, 5);
    let points = tsne(codes(&values, 8), 20.0).expect("enough codes");
    assert_eq!(tsne(codes(&values, 8), 20.0).expect("enough codes"), points);
    for n_threads in [1, 2] {
        let pool = ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
        assert_eq!(
            pool.install(|| tsne(codes(&values, 8), 20.0)).expect("enough codes"),
            points,
            "{n_threads} threads"
        );
    }
    let agreement = neighbor_agreement(&points, &labels);
    assert!(agreement > 0.95, "only {agreement} of the points lie beside one of their label");
}

#[test]
fn tsne_of_equal_huge_or_tiny_codes_is_finite_and_repeatable() {
    let (values, labels) = clusters(60, 4, 3);
    for scale in [0.0, 1e-30, 1e37] {
        let values: Vec<f32> = values.iter().map(|value| value * scale).collect();
        let points = tsne(codes(&values, 4), 10.0).expect("enough codes");
        assert!(points.iter().flatten().all(|value| value.is_finite()), "{points:?}");
        assert!(scale == 0.0 || neighbor_agreement(&points, &labels) > 0.95, "{points:?}");
    }
    // Codes of few values each, many of them equal or equally far from one another.
    let coarse: Vec<f32> = values.iter().map(|value| value.signum()).collect();
    let points = tsne(codes(&coarse, 4), 5.0).expect("enough codes");
    for _ in 0..3 {
        assert_eq!(tsne(codes(&coarse, 4), 5.0).expect("enough codes"), points);
    }
    // Each code twice.
    let doubled = [values.clone(), values].concat();
    assert_eq!(tsne(codes(&doubled, 4), 10.0).expect("enough codes").len(), 120);
}

#[test]
fn unusable_codes_are_refused_with_reason() {
    let refused = |values: &[f32], n_values| Codes::new(values, n_values).expect_err("unusable").to_string();
    assert_eq!(refused(&[0.0; 4], 2), "expected at least 3 codes, found 2");
    assert_eq!(refused(&[], 2), "expected at least 3 codes, found 0");
    assert_eq!(refused(&[0.0; 7], 2), "expected codes of 2 values each, found 7 values, which is no multiple");
    assert_eq!(refused(&[0.0, 1.0, 2.0, f32::NAN, 0.0, 0.0], 2), "expected finite codes, found NaN in code 1");

    let refused = |n_codes: usize, perplexity| {
        let values: Vec<f32> = clusters(n_codes, 2, 2).0;
        tsne(codes(&values, 2), perplexity).expect_err("unusable").to_string()
    };
    assert_eq!(refused(3, 1.0), "expected at least 4 codes, found 3");
    let expected = "expected a perplexity from 1 to 3.0, a third of the other codes, for 10 codes, found 30";
    assert_eq!(refused(10, 30.0), expected);
    assert!(refused(10, 0.5).ends_with("found 0.5"));
    assert!(refused(10, f64::NAN).ends_with("found NaN"));
}

#[test]
fn map_names_axes_and_describes_method() {
    let (values, _) = clusters(50, 6, 3);
    let map = |n_values, method| CodeMap::new(codes(&values, n_values), method).expect("enough codes");
    let by_pca = map(6, Method::Pca);
    assert!(by_pca.axes[1].starts_with("component 2 (") && by_pca.axes[1].ends_with(" % of the variance)"));
    assert!(by_pca.description.starts_with("PCA, 2 components hold "), "{}", by_pca.description);
    let by_tsne = map(6, Method::Tsne { perplexity: 10.0 });
    assert_eq!((by_tsne.points.len(), by_tsne.description.as_str()), (50, "t-SNE, perplexity 10"));

    // Codes of one value are drawn as they are.
    let single = map(1, Method::Tsne { perplexity: 10.0 });
    let drawn: Vec<f64> = single.points.iter().map(|point| point[0]).collect();
    assert_eq!(drawn, values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>());
    assert!(single.points.iter().all(|point| point[1].abs() <= 0.5));
}

/// The goal: from one epoch to the next the points can be followed.
#[test]
fn aligned_map_keeps_signs_of_earlier_one() {
    let (values, _) = clusters(50, 6, 3);
    let map = |values: &[f32], n_values| CodeMap::new(codes(values, n_values), Method::Pca).expect("enough codes");
    let earlier = map(&values, 6);
    for axes in [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]] {
        let mut turned = earlier.clone();
        turned.points.iter_mut().for_each(|point| *point = [axes[0] * point[0], axes[1] * point[1]]);
        turned.align(&earlier);
        assert_eq!(turned, earlier, "{axes:?}");
    }
    // Other samples, and values that mean something by themselves.
    let negative: Vec<f32> = values.iter().map(|value| -value).collect();
    let (mut fewer, mut single) = (map(&negative[..60], 6), map(&negative, 1));
    let (before, before_single) = (fewer.clone(), single.clone());
    fewer.align(&earlier);
    single.align(&map(&values, 1));
    assert_eq!((fewer, single), (before, before_single));
}

#[test]
fn scatter_has_fixed_size_text_and_a_color_per_label() {
    let points: Vec<[f64; 2]> = (0..100).map(|i| spread(i).map(|place| 10.0 * place)).collect();
    let numbers: Vec<u8> = (0..100).map(|i| [0, 1, 3][i % 3]).collect();
    let names = ["T-shirt/top", "Trouser\u{0}\u{FFFF}\t", "Pullover", "Dress <&>"];
    let labels = Some(Labels { numbers: &numbers, names: &names });
    let scatter = Scatter { title: "codes & more", axes: ["across", "up"], points: &points, labels };
    let svg = scatter.svg();
    for part in
        ["width=\"1000\"", "height=\"800\"", "codes &amp; more", "across", "up", "Trouser", "Dress &lt;&amp;&gt;"]
    {
        assert!(svg.contains(part), "`{part}` is not in {svg}");
    }
    assert!(!svg.contains("Pullover"), "no point has that label");

    let png = scatter.png();
    assert_eq!(png, scatter.png());
    let picture = image::load_from_memory_with_format(&png, ImageFormat::Png).expect("a PNG").into_rgb8();
    assert_eq!(picture.dimensions(), (WIDTH, HEIGHT));
    // The dots of the legend are opaque.
    for color in [[0x1f, 0x77, 0xb4], [0xff, 0x7f, 0x0e], [0xd6, 0x27, 0x28]] {
        assert!(picture.pixels().any(|pixel| *pixel == Rgb(color)), "{color:?} is missing");
    }
    let compact = image::load_from_memory_with_format(&scatter.compact_png(), ImageFormat::Png).expect("a PNG");
    assert_eq!((compact.width(), compact.height()), (960, 768)); // 1.5 * 640, 1.5 * 512
    let is_dark = |x, y| picture.get_pixel(x, y).0.iter().all(|&value| value < 100);
    let n_dark = (0..WIDTH).flat_map(|x| (0..40).map(move |y| (x, y))).filter(|&(x, y)| is_dark(x, y)).count();
    assert!(n_dark > 100, "the title is drawn: {n_dark} dark pixels");
}

#[test]
fn scatter_of_one_point_or_without_labels_is_drawn() {
    for points in [vec![], vec![[2.0, 2.0]; 3], vec![[-1e9, 1e-9], [1e9, 0.0], [0.0, -1e-9]]] {
        let scatter = Scatter { title: "codes", axes: ["x", "y"], points: &points, labels: None };
        assert!(scatter.svg().contains("codes") && !scatter.png().is_empty());
    }
}
