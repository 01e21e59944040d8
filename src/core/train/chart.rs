//! The loss curve as an SVG text that stands alone: no scripts, no fonts or files from elsewhere. Where the numbers come from and
//! where the text is written is the caller's affair.

mod axis;
#[cfg(test)]
mod tests;

use axis::Axis;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 540.0;
/// The edges of the plot inside the picture.
const LEFT: f64 = 76.0;
const RIGHT: f64 = WIDTH - 32.0;
const TOP: f64 = 88.0;
const BOTTOM: f64 = HEIGHT - 60.0;

const TRAIN: &str = "#2563eb";
const TRAIN_RAW: &str = "#a8c4f8";
const VALID: &str = "#ea580c";
const INK: &str = "#1f2937";
const FAINT_INK: &str = "#6b7280";
const GRID: &str = "#e5e7eb";

/// Fewer training points than this are drawn as they are.
const SMOOTHED_POINTS: usize = 12;
/// More validation points than this get no dots.
const DOTTED_POINTS: usize = 80;
/// Losses beyond ± this are drawn as this, so that no arithmetic on them overflows.
const LARGEST_LOSS: f64 = 1e100;

type Point = (f64, f64);

/// Draws training and validation loss by step.
///
/// Points may come in any order. Those that are not finite are left out, and the picture says how many; so it does when rare spikes
/// reach beyond its upper edge. A long run is thinned to what the picture can resolve, keeping every extreme.
pub fn loss_curve_svg(train: &[(usize, f64)], valid: &[(usize, f64)]) -> String {
    let (train, valid) = (finite(train), finite(valid));
    let left_out = train.left_out + valid.left_out;
    let (train, valid) = (train.points, valid.points);
    let mut svg = opening();
    if train.is_empty() && valid.is_empty() {
        svg += &text((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0, "middle", 16, FAINT_INK, "no losses to draw");
        svg += &remarks(left_out, 0, 0.0);
        return svg + "</svg>\n";
    }
    let ceiling = ceiling(&train, &valid);
    let steps = || train.iter().chain(&valid).map(|point| point.0);
    let losses = || train.iter().chain(&valid).map(|point| point.1.min(ceiling));
    let x = Axis::of_steps(steps(), LEFT, RIGHT);
    let y = Axis::of_values(losses(), BOTTOM, TOP);
    svg += &grid(&x, &y);

    let place = |points: &[Point]| -> Vec<Point> {
        points.iter().map(|&(step, loss)| (x.place(step), y.place(loss))).collect()
    };
    let mut legend = Vec::new();
    svg += "<g clip-path=\"url(#plot)\" fill=\"none\" stroke-linejoin=\"round\" stroke-linecap=\"round\">\n";
    if train.len() >= SMOOTHED_POINTS {
        let smooth = smoothed(&train, ceiling);
        svg += &line(&thinned(&place(&train)), TRAIN_RAW, 1.2);
        svg += &line(&thinned(&place(&smooth)), TRAIN, 2.4);
        legend.push((TRAIN_RAW, "training".to_owned()));
        legend.push((TRAIN, format!("training, smoothed{}", last(&smooth))));
    } else if !train.is_empty() {
        svg += &line(&place(&train), TRAIN, 2.0);
        svg += &dots(&place(&train), TRAIN);
        legend.push((TRAIN, format!("training{}", last(&train))));
    }
    if !valid.is_empty() {
        let placed = place(&valid);
        svg += &line(&thinned(&placed), VALID, 2.2);
        if valid.len() <= DOTTED_POINTS {
            svg += &dots(&placed, VALID);
        }
        legend.push((VALID, format!("validation{}{}", last(&valid), lowest(&valid))));
    }
    svg += "</g>\n";
    svg += &legend_row(&legend);
    let above = train.iter().filter(|point| point.1 > ceiling).count();
    let highest = train.iter().map(|point| point.1).fold(f64::NEG_INFINITY, f64::max);
    svg += &remarks(left_out, above, highest);
    svg + "</svg>\n"
}

struct Finite {
    points: Vec<Point>,
    left_out: usize,
}

/// The points that can be drawn, by step.
fn finite(points: &[(usize, f64)]) -> Finite {
    let drawable = points.iter().filter(|point| point.1.is_finite());
    let bounded = |&(step, loss): &(usize, f64)| (step as f64, loss.clamp(-LARGEST_LOSS, LARGEST_LOSS));
    let mut drawn: Vec<Point> = drawable.map(bounded).collect();
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    Finite { left_out: points.len() - drawn.len(), points: drawn }
}

/// The loss above which training points are cut off, so that a rare spike does not flatten everything else: the highest that is not
/// far beyond 99 in a hundred of the others. Validation is never cut off.
fn ceiling(train: &[Point], valid: &[Point]) -> f64 {
    let mut losses: Vec<f64> = train.iter().map(|point| point.1).collect();
    if losses.len() < 50 {
        return f64::INFINITY;
    }
    losses.sort_by(f64::total_cmp);
    let (low, high) = (losses[losses.len() / 100], losses[(losses.len() - 1) * 99 / 100]);
    let limit = high + 3.0 * (high - low);
    match losses.partition_point(|&loss| loss <= limit) {
        within if within == losses.len() => f64::INFINITY,
        within => valid.iter().map(|point| point.1).fold(losses[within - 1], f64::max),
    }
}

/// The mean over a window of a twentieth of the run around each point. It narrows towards the start, where the loss falls steeply.
fn smoothed(points: &[Point], ceiling: f64) -> Vec<Point> {
    let half = (points.len() / 40).max(2);
    let mut sums = vec![0.0];
    for &(_, loss) in points {
        sums.push(sums[sums.len() - 1] + loss.min(ceiling));
    }
    let mean = |i: usize| {
        let half = half.min(i);
        let end = (i + half + 1).min(points.len());
        (sums[end] - sums[i - half]) / (end - (i - half)) as f64
    };
    points.iter().enumerate().map(|(i, point)| (point.0, mean(i))).collect()
}

/// At most four points for each column of pixels: the first, the extremes and the last, which draw the same picture.
fn thinned(placed: &[Point]) -> Vec<Point> {
    if placed.len() as f64 <= 2.0 * (RIGHT - LEFT) {
        return placed.to_vec();
    }
    let mut kept = Vec::new();
    for column in placed.chunk_by(|a, b| a.0.floor() == b.0.floor()) {
        let by_height = |a: &usize, b: &usize| column[*a].1.total_cmp(&column[*b].1);
        let highest = (0..column.len()).min_by(by_height).unwrap_or_default();
        let lowest = (0..column.len()).max_by(by_height).unwrap_or_default();
        let mut picks = [0, highest.min(lowest), highest.max(lowest), column.len() - 1].to_vec();
        picks.dedup();
        kept.extend(picks.into_iter().map(|pick| column[pick]));
    }
    kept
}

fn opening() -> String {
    let (plot_width, plot_height) = (RIGHT - LEFT, BOTTOM - TOP);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', sans-serif">
<title>Loss by training step</title>
<defs><clipPath id="plot"><rect x="{x}" y="{y}" width="{width}" height="{height}"/></clipPath></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>
<rect x="{LEFT}" y="{TOP}" width="{plot_width}" height="{plot_height}" fill="#fafafa"/>
"##,
        // Room for the dots and strokes of points on the edge.
        x = LEFT - 6.0,
        y = TOP - 6.0,
        width = plot_width + 12.0,
        height = plot_height + 12.0,
    ) + &text(LEFT, 38.0, "start", 20, INK, "Loss by training step")
}

fn grid(x: &Axis, y: &Axis) -> String {
    let mut svg = String::new();
    for (place, label) in y.ticks() {
        svg += &format!("<path d=\"M{LEFT} {place:.1}H{RIGHT}\" stroke=\"{GRID}\"/>\n");
        svg += &text(LEFT - 10.0, place + 4.5, "end", 13, FAINT_INK, &label);
    }
    for (place, label) in x.ticks() {
        svg += &format!("<path d=\"M{place:.1} {TOP}V{BOTTOM}\" stroke=\"{GRID}\"/>\n");
        svg += &text(place, BOTTOM + 20.0, "middle", 13, FAINT_INK, &label);
    }
    svg += &format!("<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#9ca3af\"/>\n");
    svg += &text((LEFT + RIGHT) / 2.0, BOTTOM + 44.0, "middle", 14, INK, "step");
    let middle = (TOP + BOTTOM) / 2.0;
    let upright = text(0.0, 0.0, "middle", 14, INK, "loss");
    svg + &format!("<g transform=\"translate(20 {middle}) rotate(-90)\">{}</g>\n", upright.trim_end())
}

fn line(placed: &[Point], color: &str, width: f64) -> String {
    if placed.len() < 2 {
        return String::new();
    }
    let points: Vec<String> = placed.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    format!("<polyline points=\"{}\" stroke=\"{color}\" stroke-width=\"{width}\"/>\n", points.join(" "))
}

fn dots(placed: &[Point], color: &str) -> String {
    let dot = |(x, y): &Point| {
        format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.6\" fill=\"{color}\" stroke=\"#ffffff\" stroke-width=\"1.2\"/>\n"
        )
    };
    placed.iter().map(dot).collect()
}

fn legend_row(entries: &[(&str, String)]) -> String {
    let mut svg = String::new();
    let mut x = LEFT;
    for (color, label) in entries {
        svg += &format!(
            "<path d=\"M{x:.1} 62h22\" stroke=\"{color}\" stroke-width=\"3.5\" stroke-linecap=\"round\"/>\n{}",
            text(x + 30.0, 66.5, "start", 13, INK, label)
        );
        // A generous guess at the width of a character.
        x += 30.0 + label.chars().count() as f64 * 7.6 + 24.0;
    }
    svg
}

fn remarks(left_out: usize, above: usize, highest: f64) -> String {
    let mut remarks = Vec::new();
    if above > 0 {
        remarks.push(format!("above the edge: {above} training (highest {})", axis::loss(highest)));
    }
    if left_out > 0 {
        remarks.push(format!("not finite, left out: {left_out}"));
    }
    if remarks.is_empty() {
        return String::new();
    }
    text(RIGHT, BOTTOM + 44.0, "end", 12, FAINT_INK, &remarks.join("; "))
}

fn last(points: &[Point]) -> String {
    points.last().map(|point| format!(" (last {})", axis::loss(point.1))).unwrap_or_default()
}

fn lowest(points: &[Point]) -> String {
    let lowest = points.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    lowest
        .map(|(step, loss)| format!(", lowest {} at step {}", axis::loss(*loss), axis::count(*step)))
        .unwrap_or_default()
}

fn text(x: f64, y: f64, anchor: &str, size: u32, color: &str, content: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" fill=\"{color}\">{content}</text>\n"
    )
}
