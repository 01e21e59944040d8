//! An axis: which numbers it spans, where they lie in the picture, and which round ones are written beside it.

/// Values closer together than this are drawn as equal: no arithmetic here reaches subnormal numbers.
const SMALLEST_RANGE: f64 = 1e-90;

/// A straight map from numbers to pixels, with ticks at round numbers.
pub(super) struct Axis {
    low: f64,
    high: f64,
    tick: f64,
    start: f64,
    end: f64,
    of_steps: bool,
}

impl Axis {
    /// From the first to the last step, with whole ticks.
    pub(super) fn of_steps(steps: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (mut low, mut high) = span(steps);
        if low == high {
            (low, high) = (low - 1.0, high + 1.0);
        }
        Self { low, high, tick: round((high - low) / 10.0).max(1.0), start, end, of_steps: true }
    }

    /// From a round number below the values to one above.
    pub(super) fn of_values(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (least, most) = span(values);
        let size = most.abs().max(least.abs());
        let margin = match most - least {
            range if range > (size * 1e-9).max(SMALLEST_RANGE) => range * 0.02,
            _ if size > SMALLEST_RANGE => size * 0.1,
            _ => 1.0,
        };
        // Room below the least value, but no loss below zero is suggested where there is none.
        let low = if least >= 0.0 { (least - margin).max(0.0) } else { least - margin };
        let high = most + margin;
        let tick = round((high - low) / 8.0);
        Self { low: (low / tick).floor() * tick, high: (high / tick).ceil() * tick, tick, start, end, of_steps: false }
    }

    /// Where a number lies; beyond the ends for numbers outside, but not by more than the picture's own size.
    pub(super) fn place(&self, value: f64) -> f64 {
        self.start + ((value - self.low) / (self.high - self.low)).clamp(-1.0, 2.0) * (self.end - self.start)
    }

    /// The place and the label of every tick.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let first = (self.low / self.tick - 1e-6).ceil();
        let last = (self.high / self.tick + 1e-6).floor();
        // Multiplied, not summed, so that the last is as round as the first; + 0 turns -0 into 0.
        let values = (0..=(last - first) as usize).map(|index| (first + index as f64) * self.tick + 0.0);
        let shown = values.filter(|value| !self.of_steps || *value >= 0.0);
        shown.map(|value| (self.place(value), self.label(value))).collect()
    }

    fn label(&self, value: f64) -> String {
        if self.of_steps {
            return count(value);
        }
        let largest = self.low.abs().max(self.high.abs());
        let exponent = |value: f64| value.abs().log10().floor() as i32;
        if !(1e-3..1e5).contains(&largest) {
            let digits = (exponent(value.abs().max(self.tick)) - exponent(self.tick * 1.000_001)).max(0) as usize;
            return if value == 0.0 { "0".to_owned() } else { format!("{value:.digits$e}") };
        }
        let decimals = (-exponent(self.tick * 1.000_001)).clamp(0, 12) as usize;
        format!("{value:.decimals$}")
    }
}

/// A whole number with its thousands set apart.
pub(super) fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A loss to about four digits.
pub(super) fn loss(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size if size < 100.0 => format!("{value:.3}"),
        _ => format!("{value:.0}"),
    }
}

/// The least of 1, 2 and 5 times a power of ten that is not below `distance`.
fn round(distance: f64) -> f64 {
    let power = 10f64.powf(distance.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| factor * power >= distance * 0.999_999);
    factor.unwrap_or(10.0) * power
}

fn span(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn ticks_are_round_numbers_that_contain_the_values() {
        let values = |low, high| labels(&Axis::of_values([low, high].into_iter(), 0.0, 1.0));
        assert_eq!(values(1.32, 3.91), ["1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0"]);
        assert_eq!(values(0.0, 12.1), ["0", "2", "4", "6", "8", "10", "12", "14"]);
        assert_eq!(values(2.0, 2.0), ["1.80", "1.85", "1.90", "1.95", "2.00", "2.05", "2.10", "2.15", "2.20"]);
        assert_eq!(values(0.0, 0.0).first().unwrap(), "0.0");
        assert_eq!(values(-0.4, 0.4), ["-0.6", "-0.4", "-0.2", "0.0", "0.2", "0.4", "0.6"]);
        assert_eq!(
            values(2e-7, 9e-7),
            ["1e-7", "2e-7", "3e-7", "4e-7", "5e-7", "6e-7", "7e-7", "8e-7", "9e-7", "1.0e-6"]
        );
    }

    #[test]
    fn steps_have_whole_ticks() {
        let steps = |low, high| labels(&Axis::of_steps([low, high].into_iter(), 0.0, 1.0));
        assert_eq!(steps(0.0, 4.0), ["0", "1", "2", "3", "4"]);
        assert_eq!(steps(1.0, 99.0), ["10", "20", "30", "40", "50", "60", "70", "80", "90"]);
        assert_eq!(steps(0.0, 1e6).last().unwrap(), "1,000,000");
        assert_eq!(steps(0.0, 0.0), ["0", "1"]);
    }

    #[test]
    fn few_ticks_at_every_scale() {
        for low in [0.0, 1e-320, 1e-100, 1e-9, 0.3, 1e9, -1e100] {
            for range in [0.0, 1e-320, 1e-12, 1.0, 3.7, 1e30, 1e100] {
                let axis = Axis::of_values([low, low + range].into_iter(), 0.0, 100.0);
                let ticks = axis.ticks();
                assert!((2..=12).contains(&ticks.len()), "{low} {range}: {} ticks", ticks.len());
                assert!(ticks.iter().all(|tick| (-1e-3..=100.001).contains(&tick.0)), "{low} {range}");
            }
        }
    }

    #[test]
    fn numbers_are_written_for_reading() {
        assert_eq!([0.0, 999.0, 1000.0, 1234567.0].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([0.0, 2.34567, 312.4, 1e6, 1e-5].map(loss), ["0", "2.346", "312", "1.00e6", "1.00e-5"]);
    }
}
