//! How the learning rate moves over a run: warm-up, then constant, linear or cosine. The optimizer that uses it lives elsewhere.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

/// The course of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// Stays at the peak.
    Constant,
    /// Falls in a straight line.
    Linear,
    /// Falls along half a cosine: slow, fast, slow.
    #[default]
    Cosine,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 3] = [Self::Constant, Self::Linear, Self::Cosine];

    /// The name in configurations and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Constant => "constant",
            Self::Linear => "linear",
            Self::Cosine => "cosine",
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.name())
    }
}

impl FromStr for Schedule {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|schedule| schedule.name() == text).ok_or_else(|| Error::OutOfBounds {
            name: "schedule",
            value: text.to_owned(),
            bounds: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// The learning rate of every step of a run.
///
/// Source: transformers' `get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup`, and
/// with a final fraction `get_cosine_with_min_lr_schedule_with_warmup`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LearningRate {
    /// The highest rate, reached at the end of the warm-up.
    pub peak: f64,
    /// What follows the warm-up.
    pub schedule: Schedule,
    /// Steps over which the rate rises from 0 to the peak. With any warm-up, the rate of step 0 is 0.
    #[serde(default)]
    pub warmup_steps: usize,
    /// The fraction of the peak towards which the rate falls; 0 if absent. A constant rate has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_fraction: Option<f64>,
}

impl LearningRate {
    /// The rate of `step`, counted from 0, in a run of `total` steps. At `total` and beyond it stays at the final value.
    pub fn at(&self, step: usize, total: usize) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step as f64 / self.warmup_steps as f64);
        }
        let decay_steps = total.saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / decay_steps as f64).min(1.0);
        let factor = match self.schedule {
            Schedule::Constant => return self.peak,
            Schedule::Linear => 1.0 - progress,
            Schedule::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        let last = self.final_fraction.unwrap_or(0.0);
        self.peak * (factor * (1.0 - last) + last)
    }

    /// Checks every field.
    ///
    /// Errors: [`Error::OutOfBounds`] with the field's name, value and bounds.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..=1000.0).contains(&self.peak) {
            return Err(out_of_bounds("learning_rate", self.peak, "from 0 to 1000"));
        }
        match self.final_fraction {
            Some(fraction) if !(0.0..=1.0).contains(&fraction) => {
                Err(out_of_bounds("final_fraction", fraction, "from 0 to 1"))
            }
            Some(fraction) if self.schedule == Schedule::Constant => {
                Err(out_of_bounds("final_fraction", fraction, "none with the constant schedule, which never falls"))
            }
            _ => Ok(()),
        }
    }
}

fn out_of_bounds(name: &'static str, value: f64, bounds: &str) -> Error {
    Error::OutOfBounds { name, value: value.to_string(), bounds: bounds.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(schedule: Schedule, warmup_steps: usize, final_fraction: Option<f64>, total: usize) -> Vec<f64> {
        let rate = LearningRate { peak: 10.0, schedule, warmup_steps, final_fraction };
        rate.validate().unwrap();
        (0..total).map(|step| rate.at(step, total)).collect()
    }

    fn assert_close(ours: &[f64], theirs: &[f64]) {
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert!((ours - theirs).abs() < 1e-9, "{ours} {theirs}");
        }
    }

    // The next three tests have the settings of transformers' own test of its schedules, and values computed with its formulas.

    #[test]
    fn constant_equals_transformers() {
        let expected = [0.0, 2.5, 5.0, 7.5, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0];
        assert_close(&rates(Schedule::Constant, 4, None, 10), &expected);
        assert_close(&rates(Schedule::Constant, 0, None, 3), &[10.0; 3]);
    }

    #[test]
    fn linear_equals_transformers() {
        let expected = [0.0, 5.0, 10.0, 8.75, 7.5, 6.25, 5.0, 3.75, 2.5, 1.25];
        assert_close(&rates(Schedule::Linear, 2, None, 10), &expected);
    }

    #[test]
    fn cosine_equals_transformers() {
        let expected = [
            0.0,
            5.0,
            10.0,
            9.619397662556434,
            8.535533905932738,
            6.913417161825449,
            5.0,
            3.086582838174551,
            1.4644660940672627,
            0.3806023374435663,
        ];
        assert_close(&rates(Schedule::Cosine, 2, None, 10), &expected);
    }

    #[test]
    fn a_final_fraction_lifts_the_end() {
        let rate = |schedule| LearningRate { peak: 2.0, schedule, warmup_steps: 5, final_fraction: Some(0.1) };
        for schedule in [Schedule::Linear, Schedule::Cosine] {
            assert_eq!(rate(schedule).at(5, 25), 2.0);
            assert!((rate(schedule).at(15, 25) - 1.1).abs() < 1e-12);
            for step in [25, 26, 1000] {
                assert!((rate(schedule).at(step, 25) - 0.2).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn degenerate_runs_have_finite_rates() {
        for schedule in Schedule::ALL {
            let rate = LearningRate { peak: 1.0, schedule, warmup_steps: 8, final_fraction: None };
            assert_eq!(rate.at(4, 3), 0.5, "a run shorter than its warm-up");
            for (step, total) in [(0, 0), (8, 8), (9, 3), (usize::MAX, usize::MAX)] {
                assert!((0.0..=1.0).contains(&rate.at(step, total)), "{schedule} {step} {total}");
            }
        }
    }

    #[test]
    fn names_are_read_as_written() {
        for schedule in Schedule::ALL {
            assert_eq!(schedule.to_string().parse::<Schedule>().unwrap(), schedule);
            let json = serde_json::to_string(&schedule).unwrap();
            assert_eq!(json, format!("\"{schedule}\""));
            assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
        }
        let message = "Cosine".parse::<Schedule>().unwrap_err().to_string();
        assert_eq!(message, "schedule = Cosine is out of bounds: constant, linear, cosine");
    }

    #[test]
    fn values_out_of_bounds_are_refused_by_name() {
        let good = LearningRate { peak: 1e-4, schedule: Schedule::Linear, warmup_steps: 0, final_fraction: Some(0.1) };
        good.validate().unwrap();
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1001.0] {
            let message = LearningRate { peak: bad, ..good }.validate().unwrap_err().to_string();
            assert!(message.starts_with("learning_rate"), "{message}");
            let message = LearningRate { final_fraction: Some(bad), ..good }.validate().unwrap_err().to_string();
            assert!(message.starts_with("final_fraction"), "{message}");
        }
        assert!(LearningRate { schedule: Schedule::Constant, ..good }.validate().is_err());
    }
}
