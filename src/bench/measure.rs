//! Timing that cannot lie: work is done before the clock stops, answers are right, inputs differ, more work takes longer, and nothing is
//! faster than the device. What fails one of these is refused, with the reason in place of a figure.

use std::collections::BTreeMap;
use std::ops::DerefMut;
use std::time::{Duration, Instant};

use super::record::Spread;

/// One timed stretch of calls.
#[derive(Clone, Debug, Default)]
pub struct Sample {
    /// Seconds that all calls took together, everything computed.
    pub seconds: f64,
    /// Seconds that reading the last call's answer then took.
    pub after: f64,
    /// A few values of that answer.
    pub values: Vec<f64>,
    /// Seconds of parts of the last call, by name.
    pub parts: BTreeMap<String, f64>,
}

/// Something that does a workload when it is asked to: ours in this process, a peer's in another.
pub trait Runner {
    /// Does the work `calls` times, the first time on input number `input`, then on those that follow.
    ///
    /// # Errors
    /// What went wrong, in a line.
    fn sample(&mut self, calls: usize, input: usize) -> Result<Sample, String>;
}

/// Work in this process, on a device that may run behind the caller.
pub trait Subject {
    /// Enqueues the work once for each of these input numbers.
    fn call(&mut self, inputs: std::ops::Range<usize>);
    /// Waits until all of it is done.
    ///
    /// # Errors
    /// If the device fails.
    fn finish(&mut self) -> Result<(), String>;
    /// A few values of the last answer.
    fn read(&mut self) -> Vec<f64>;
    /// Seconds of parts of the last call, by name.
    fn parts(&self) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }
}

/// A subject under the clock of this process.
pub struct Timed<S>(pub S);

impl<S: Subject> Runner for Timed<S> {
    fn sample(&mut self, calls: usize, input: usize) -> Result<Sample, String> {
        let begun = Instant::now();
        self.0.call(input..input + calls);
        self.0.finish()?;
        let seconds = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        let values = self.0.read();
        Ok(Sample { seconds, after: begun.elapsed().as_secs_f64(), values, parts: self.0.parts() })
    }
}

/// Something and what it is held against, in turns, so that whatever else the machine does at the time falls on both.
pub struct Beside<R, S> {
    /// What is measured.
    pub subject: R,
    /// What it is held against.
    pub yardstick: S,
    /// What the seconds of a call of that are called among the parts of a sample.
    pub name: &'static str,
}

impl<R: DerefMut<Target: Runner>, S: DerefMut<Target: Runner>> Runner for Beside<R, S> {
    fn sample(&mut self, calls: usize, input: usize) -> Result<Sample, String> {
        let mut sample = self.subject.sample(calls, input)?;
        if calls > 0 {
            let yardstick = self.yardstick.sample(calls, input)?;
            sample.parts.insert(self.name.to_owned(), yardstick.seconds / calls as f64);
        }
        Ok(sample)
    }
}

/// Why there is no figure.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The library or the device cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// One call takes too long to be repeated.
    #[error("one call takes {seconds:.0} s, too long to be repeated")]
    TooLong {
        /// Seconds of that call.
        seconds: f64,
    },
    /// It failed while it was timed.
    #[error("it failed: {0}")]
    Failed(String),
    /// Reading the answer took so long that it cannot have been ready.
    #[error(
        "the clock stopped before the work was done: the answer came {:.3} ms later, of {:.3} ms timed",
        after * 1e3,
        seconds * 1e3
    )]
    Unfinished {
        /// Seconds that were timed.
        seconds: f64,
        /// Seconds until the answer was there.
        after: f64,
    },
    /// It does not compute what the others compute.
    #[error("wrong answer for input {input}: {actual:?} instead of {expected:?}")]
    Wrong {
        /// The input's number.
        input: usize,
        /// What it answered.
        actual: Vec<f64>,
        /// The right answer.
        expected: Vec<f64>,
    },
    /// Different inputs have the same answer.
    #[error("inputs {0} and {1} have the same answer: a result is kept and not computed")]
    Kept(usize, usize),
    /// A quarter of the work takes more than half of the time.
    #[error(
        "the time does not grow with the work: {:.4} ms, and {:.4} ms for a quarter of it",
        whole * 1e3,
        quarter * 1e3
    )]
    NotGrowing {
        /// Seconds of the whole work.
        whole: f64,
        /// Seconds of a quarter.
        quarter: f64,
    },
    /// Four times as many calls take less than twice the time.
    #[error(
        "not every call is computed: {calls} take {:.4} ms, and a quarter as many {:.4} ms",
        all * 1e3,
        quarter * 1e3
    )]
    Skipped {
        /// How many calls.
        calls: usize,
        /// Seconds of all of them.
        all: f64,
        /// Seconds of a quarter.
        quarter: f64,
    },
    /// More than the device can do.
    #[error("{:.0} % of what this device did at most in the same run", share * 100.0)]
    AboveRoof {
        /// Share of the roof.
        share: f64,
    },
}

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Samples of each contender, in turns.
    pub rounds: usize,
    /// Calls are added until a sample takes so many seconds.
    pub sample_seconds: f64,
}

/// One who does the workload.
pub struct Contender<'r> {
    /// Does the work.
    pub runner: Box<dyn Runner + 'r>,
    /// Does a quarter of it.
    pub quarter: Option<Box<dyn Runner + 'r>>,
    /// Seconds below which a quarter of the work may cost as much: what it costs to begin at all.
    pub floor: f64,
    /// Seconds that one call may take at least on this device, by what it moves and computes; measured again on each call.
    pub least_seconds: Box<dyn FnMut() -> Option<f64> + 'r>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Calls before the first sample.
    pub warm_up: usize,
    /// Calls of a sample.
    pub calls: usize,
    /// Seconds of the first call.
    pub cold_seconds: f64,
    /// Seconds of a call, by round.
    pub samples: Vec<f64>,
    /// Medians of the parts, in seconds.
    pub parts: BTreeMap<String, f64>,
    /// Share of the roof, where one is known.
    pub of_roof: Option<f64>,
}

/// The inputs that are looked at before anything is timed.
const CHECKED: [usize; 2] = [0, 1];
/// Seconds beyond which a call is not repeated.
const TOO_LONG: f64 = 90.0;
/// Some libraries' threads spin on for a while when they are done, which the next in turn must not pay for.
const PAUSE: Duration = Duration::from_millis(30);
/// How often a result above the roof is measured again.
const RETRIES: usize = 3;
/// Calls of a sample at most.
const MOST_CALLS: usize = 1 << 20;

/// What is known of a contender while it is measured.
struct State {
    idle_read: f64,
    cold_seconds: f64,
    warm_up: usize,
    calls: usize,
    samples: Vec<f64>,
    parts: Vec<BTreeMap<String, f64>>,
}

/// Measures contenders for one workload in turns, so that whatever else the machine does falls on all of them. `expected` gives the right
/// answer for an input, where it is known; else it is the first contender's. `agree` compares an answer with the right one.
pub fn interleaved(
    contenders: &mut [Contender<'_>],
    plan: &Plan,
    expected: impl Fn(usize) -> Option<Vec<f64>>,
    agree: &dyn Fn(&[f64], &[f64]) -> bool,
) -> Vec<Result<Measured, Refusal>> {
    let mut right = CHECKED.map(expected);
    let mut states: Vec<Result<State, Refusal>> =
        contenders.iter_mut().map(|contender| examine(contender, plan, &mut right, agree)).collect();
    for round in 0..plan.rounds {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            if contenders.len() > 1 {
                std::thread::sleep(PAUSE);
            }
            if let Ok(state) = &mut states[at]
                && let Err(refusal) = one_round(&mut *contenders[at].runner, state, round)
            {
                states[at] = Err(refusal);
            }
        }
    }
    let finished = contenders.iter_mut().zip(states).map(|(contender, state)| conclude(contender, state?, plan));
    finished.collect()
}

/// Looks at the answers, and finds how many calls make a sample.
fn examine(
    contender: &mut Contender<'_>,
    plan: &Plan,
    right: &mut [Option<Vec<f64>>; CHECKED.len()],
    agree: &dyn Fn(&[f64], &[f64]) -> bool,
) -> Result<State, Refusal> {
    let cold = contender.runner.sample(1, CHECKED[0]).map_err(Refusal::Unsupported)?;
    let (cold_seconds, mut seconds) = (cold.seconds, cold.seconds);
    if cold_seconds > TOO_LONG {
        return Err(Refusal::TooLong { seconds: cold_seconds });
    }
    let mut answers = Vec::new();
    let mut idle_read = f64::INFINITY;
    for (input, right) in CHECKED.into_iter().zip(right.iter_mut()) {
        let values = if input == CHECKED[0] {
            cold.values.clone()
        } else {
            let sample = run(&mut *contender.runner, 1, input)?;
            seconds = sample.seconds;
            sample.values
        };
        let right = right.get_or_insert_with(|| values.clone());
        if !agree(&values, right) {
            return Err(Refusal::Wrong { input, actual: values, expected: right.clone() });
        }
        answers.push(values);
        // Nothing to do leaves nothing to wait for: this is what reading costs.
        idle_read = idle_read.min(run(&mut *contender.runner, 0, input)?.after);
    }
    if answers[0] == answers[1] {
        return Err(Refusal::Kept(CHECKED[0], CHECKED[1]));
    }
    let (mut calls, mut warm_up) = (1, CHECKED.len());
    while seconds < plan.sample_seconds && calls < MOST_CALLS {
        // A step of more than eightfold would rest on a measurement too short to be trusted.
        let wanted = plan.sample_seconds / seconds.max(1e-9) * calls as f64 * 1.1;
        calls = (wanted.ceil() as usize).clamp(calls + 1, calls * 8).min(MOST_CALLS);
        seconds = run(&mut *contender.runner, calls, 0)?.seconds;
        warm_up += calls;
    }
    if calls >= 8 {
        every_call_counts(&mut *contender.runner, calls, seconds)?;
    }
    if let Some(quarter) = &mut contender.quarter {
        let whole = seconds / calls as f64;
        if whole > contender.floor {
            grows(&mut *contender.runner, &mut **quarter, whole, calls)?;
        }
    }
    Ok(State { idle_read, cold_seconds, warm_up, calls, samples: Vec::new(), parts: Vec::new() })
}

fn run(runner: &mut dyn Runner, calls: usize, input: usize) -> Result<Sample, Refusal> {
    runner.sample(calls, input).map_err(Refusal::Failed)
}

/// Whether two answers are one but for rounding: within this share of the largest value.
pub fn close(actual: &[f64], expected: &[f64], tolerance: f64) -> bool {
    let scale = expected.iter().fold(1.0f64, |largest, value| largest.max(value.abs()));
    actual.len() == expected.len() && actual.iter().zip(expected).all(|(a, e)| (a - e).abs() <= tolerance * scale)
}

/// Refuses what computes some calls only.
fn every_call_counts(runner: &mut dyn Runner, calls: usize, seconds: f64) -> Result<(), Refusal> {
    let (mut all, mut quarter) = (seconds, run(runner, calls / 4, 0)?.seconds);
    for _ in 0..2 {
        if all >= 2.0 * quarter {
            return Ok(());
        }
        (all, quarter) = (all.max(run(runner, calls, 0)?.seconds), quarter.min(run(runner, calls / 4, 0)?.seconds));
    }
    if all < 2.0 * quarter { Err(Refusal::Skipped { calls, all, quarter }) } else { Ok(()) }
}

/// Refuses what takes as long for a quarter of the work.
fn grows(runner: &mut dyn Runner, quarter: &mut dyn Runner, whole: f64, calls: usize) -> Result<(), Refusal> {
    let timed = |runner: &mut dyn Runner| Ok(run(runner, calls, 0)?.seconds / calls as f64);
    run(quarter, 1, 0)?;
    let (mut whole, mut least) = (whole, timed(quarter)?);
    // The machine may have been busy just then; a lie is consistent.
    for _ in 0..2 {
        if whole >= 2.0 * least {
            return Ok(());
        }
        (whole, least) = (whole.max(timed(runner)?), least.min(timed(quarter)?));
    }
    if whole < 2.0 * least { Err(Refusal::NotGrowing { whole, quarter: least }) } else { Ok(()) }
}

fn one_round(runner: &mut dyn Runner, state: &mut State, round: usize) -> Result<(), Refusal> {
    if state.calls > 1 {
        // After another's turn, caches and sleeping threads are as that one left them.
        let again = state.calls.div_ceil(4);
        run(runner, again, round * state.calls)?;
        state.warm_up += again;
    }
    let sample = run(runner, state.calls, round * state.calls)?;
    let Sample { seconds, after, .. } = sample;
    // Reading may be slow now and then; an answer that was not there takes about as long as the work.
    let (lateness, per_call) = (after - 4.0 * state.idle_read - 1e-3, seconds / state.calls as f64);
    if lateness > 0.25 * seconds || (lateness > 0.0 && lateness > 2.0 * per_call && state.calls > 1) {
        return Err(Refusal::Unfinished { seconds, after });
    }
    state.samples.push(per_call);
    state.parts.push(sample.parts);
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values).map_or(f64::NAN, |spread| spread.median)
}

fn conclude(contender: &mut Contender<'_>, mut state: State, plan: &Plan) -> Result<Measured, Refusal> {
    let mut of_roof = (contender.least_seconds)().map(|least| least / median(&state.samples));
    for _ in 0..RETRIES {
        if of_roof.is_none_or(|share| share <= 1.0) {
            break;
        }
        // The machine may have been busy while its roof was measured, and only then: once more, both.
        state.samples.clear();
        state.parts.clear();
        for round in 0..plan.rounds {
            one_round(&mut *contender.runner, &mut state, round)?;
        }
        of_roof = (contender.least_seconds)().map(|least| least / median(&state.samples));
    }
    if let Some(share) = of_roof.filter(|share| *share > 1.0) {
        return Err(Refusal::AboveRoof { share });
    }
    let names: Vec<String> = state.parts.first().into_iter().flat_map(|parts| parts.keys().cloned()).collect();
    let part =
        |name: &String| median(&state.parts.iter().filter_map(|parts| parts.get(name).copied()).collect::<Vec<f64>>());
    Ok(Measured {
        warm_up: state.warm_up,
        calls: state.calls,
        cold_seconds: state.cold_seconds,
        parts: names.iter().map(|name| (name.clone(), part(name))).collect(),
        samples: state.samples,
        of_roof,
    })
}

#[cfg(test)]
mod tests;
