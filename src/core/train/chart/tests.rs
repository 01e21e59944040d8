//! What must be in the picture whatever the run looked like.

use super::*;

fn run(steps: usize) -> Vec<(usize, f64)> {
    (0..steps)
        .map(|step| (step, 2.0 + 3.0 * (-(step as f64) / 30.0).exp() + ((step * 7919) % 101) as f64 * 0.004))
        .collect()
}

/// The points of every line drawn.
fn polylines(svg: &str) -> Vec<Vec<Point>> {
    let starts = svg.split("<polyline points=\"").skip(1);
    let points = starts.map(|rest| rest.split('"').next().unwrap().split(' '));
    let pair = |text: &str| {
        let (x, y) = text.split_once(',').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    points.map(|points| points.map(pair).collect()).collect()
}

fn assert_well_formed(svg: &str) {
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    for wrong in ["NaN", "inf", "href", "script"] {
        assert!(!svg.contains(wrong), "{wrong} in {svg:.3000}");
    }
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap();
        let name = tag.split_whitespace().next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(name);
        }
    }
    assert!(open.is_empty());
}

#[test]
fn a_run_has_raw_smoothed_and_validation_lines_with_their_names() {
    let svg = loss_curve_svg(&run(200), &[(0, 5.2), (100, 2.4), (199, 2.5)]);
    assert_well_formed(&svg);
    let lines = polylines(&svg);
    assert_eq!(lines.iter().map(Vec::len).collect::<Vec<_>>(), [200, 200, 3]);
    assert_eq!(svg.matches("<circle").count(), 3);
    for text in [
        "Loss by training step",
        ">step<",
        ">loss<",
        ">training<",
        "smoothed (last 2.",
        "validation (last 2.500), lowest 2.400 at step 100",
    ] {
        assert!(svg.contains(text), "{text}");
    }
    assert!(!svg.contains("edge") && !svg.contains("left out"));
    let inside = |&(x, y): &Point| (LEFT..=RIGHT).contains(&x) && (TOP..=BOTTOM).contains(&y);
    assert!(lines.iter().flatten().all(inside));
}

#[test]
fn one_point_none_and_one_side_are_drawn_too() {
    for (train, valid) in [(run(1), vec![]), (vec![], vec![(7, 1.5)]), (run(1), vec![(0, 1.5)])] {
        let svg = loss_curve_svg(&train, &valid);
        assert_well_formed(&svg);
        assert_eq!(svg.matches("<circle").count(), train.len() + valid.len());
    }
    let empty = loss_curve_svg(&[], &[]);
    assert_well_formed(&empty);
    assert!(empty.contains("no losses to draw"));
    let nothing_finite = loss_curve_svg(&[(0, f64::NAN)], &[]);
    assert!(nothing_finite.contains("no losses to draw") && nothing_finite.contains("not finite, left out: 1"));
}

#[test]
fn what_is_not_finite_is_left_out_and_counted() {
    let mut train = run(100);
    train[3].1 = f64::NAN;
    train[50].1 = f64::INFINITY;
    let svg = loss_curve_svg(&train, &[(1, f64::NEG_INFINITY), (2, 2.0)]);
    assert_well_formed(&svg);
    assert!(svg.contains("not finite, left out: 3"));
    assert_eq!(polylines(&svg)[0].len(), 98);
}

#[test]
fn a_long_run_is_thinned_but_keeps_its_extremes() {
    let mut train = run(100_000);
    train[70_000].1 = 5.5;
    let svg = loss_curve_svg(&train, &[]);
    assert_well_formed(&svg);
    assert!(svg.len() < 150_000, "{} bytes", svg.len());
    let raw = &polylines(&svg)[0];
    assert!(raw.len() < 4000);
    let highest = raw.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert!((highest.0 - (LEFT + 0.7 * (RIGHT - LEFT))).abs() < 1.5, "{highest:?}");
    assert!(raw.is_sorted_by(|a, b| a.0 <= b.0));
}

#[test]
fn a_spike_is_cut_off_and_mentioned_but_validation_never() {
    let mut train = run(1000);
    train[400].1 = 1e9;
    let svg = loss_curve_svg(&train, &[(0, 40.0), (999, 2.0)]);
    assert_well_formed(&svg);
    assert!(svg.contains("above the edge: 1 training (highest 1.00e9)"));
    let valid = polylines(&svg).pop().unwrap();
    assert!((TOP..=BOTTOM).contains(&valid[0].1));
    assert!(valid[0].1 < TOP + 0.5 * (BOTTOM - TOP), "the spike does not flatten the rest");
}

#[test]
fn points_in_any_order_give_the_same_picture() {
    let mut shuffled = run(64);
    shuffled.reverse();
    assert_eq!(loss_curve_svg(&shuffled, &[(9, 3.0), (5, 4.0)]), loss_curve_svg(&run(64), &[(5, 4.0), (9, 3.0)]));
}

#[test]
fn extreme_losses_and_steps_are_well_formed() {
    for losses in [[f64::MAX, f64::MIN, 0.0], [5e-324, 0.0, 0.0], [-1.0, -2.0, -3.0], [7.0; 3]] {
        let train: Vec<(usize, f64)> =
            losses.into_iter().zip([0, 1, usize::MAX]).map(|(loss, step)| (step, loss)).collect();
        assert_well_formed(&loss_curve_svg(&train, &train));
    }
}

#[test]
fn smoothing_keeps_a_constant_and_follows_a_line() {
    let line: Vec<Point> = (0..100).map(|step| (step as f64, 10.0 - step as f64 * 0.1)).collect();
    for (smooth, raw) in smoothed(&line, f64::INFINITY).iter().zip(&line).take(97) {
        assert!((smooth.1 - raw.1).abs() < 1e-9);
    }
    assert!(smoothed(&[(0.0, 3.0), (1.0, 3.0)], f64::INFINITY).iter().all(|point| point.1 == 3.0));
}
