//! Every refusal, each provoked by a subject that lies in its own way; and an honest one that none of them catches.

use std::ops::Range;
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;

/// What an honest subject answers.
fn answer(input: usize) -> Vec<f64> {
    vec![input as f64, 1.0]
}

/// Sleeps as long as its work takes.
struct Honest {
    milliseconds: f64,
    last: usize,
}

fn sleep(milliseconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(milliseconds / 1e3));
}

impl Subject for Honest {
    fn call(&mut self, inputs: Range<usize>) {
        for input in inputs {
            sleep(self.milliseconds);
            self.last = input;
        }
    }
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn read(&mut self) -> Vec<f64> {
        answer(self.last)
    }
    fn parts(&self) -> BTreeMap<String, f64> {
        BTreeMap::from([("half".into(), self.milliseconds / 2e3)])
    }
}

fn honest(milliseconds: f64) -> Timed<Honest> {
    Timed(Honest { milliseconds, last: 0 })
}

/// Works behind the caller, whom it tells that it has finished at once.
struct Unsynchronised(Option<JoinHandle<()>>, usize);

impl Subject for Unsynchronised {
    fn call(&mut self, inputs: Range<usize>) {
        for input in inputs {
            let before = self.0.take();
            self.0 = Some(std::thread::spawn(move || {
                before.map(JoinHandle::join);
                sleep(5.0);
            }));
            self.1 = input;
        }
    }
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn read(&mut self) -> Vec<f64> {
        self.0.take().map(JoinHandle::join);
        answer(self.1)
    }
}

/// Computes the first answer it is asked for, and gives it to everybody.
struct Kept(Option<Vec<f64>>);

impl Subject for Kept {
    fn call(&mut self, inputs: Range<usize>) {
        if self.0.is_none() {
            sleep(5.0);
            self.0 = Some(answer(inputs.start));
        }
    }
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn read(&mut self) -> Vec<f64> {
        self.0.clone().unwrap_or_default()
    }
}

/// Computes the last of its calls only, as a device does that never gets round to results which nobody waits for.
struct Skipping(usize);

impl Subject for Skipping {
    fn call(&mut self, inputs: Range<usize>) {
        if let Some(last) = inputs.last() {
            // Long beside what a busy machine oversleeps.
            sleep(20.0);
            self.0 = last;
        }
    }
    fn finish(&mut self) -> Result<(), String> {
        Ok(())
    }
    fn read(&mut self) -> Vec<f64> {
        answer(self.0)
    }
}

#[test]
fn a_yardstick_is_timed_beside_the_subject_and_counts_for_nothing_else() {
    let (subject, yardstick) = (Box::new(honest(2.0)), Box::new(honest(6.0)));
    let mut beside = Beside { subject, yardstick, name: "copy" };
    let sample = beside.sample(3, 5).unwrap();
    assert!((0.006..0.016).contains(&sample.seconds), "{sample:?}");
    assert!(sample.parts["copy"] >= 0.006 && sample.parts.contains_key("half"), "{sample:?}");
    assert_eq!(sample.values, answer(7));
    assert!(!beside.sample(0, 0).unwrap().parts.contains_key("copy"));
}

const PLAN: Plan = Plan { rounds: 3, sample_seconds: 0.004 };

fn same(actual: &[f64], expected: &[f64]) -> bool {
    close(actual, expected, 1e-3)
}

fn contender<'r>(runner: impl Runner + 'r) -> Contender<'r> {
    Contender { runner: Box::new(runner), quarter: None, floor: 0.0005, least_seconds: Box::new(|| None) }
}

fn measure(contender: Contender<'_>) -> Result<Measured, Refusal> {
    measure_by(&PLAN, contender)
}

fn measure_by(plan: &Plan, contender: Contender<'_>) -> Result<Measured, Refusal> {
    interleaved(&mut [contender], plan, |input| Some(answer(input)), &same).remove(0)
}

#[test]
fn honest_work_is_measured() {
    let mut contender = contender(honest(4.0));
    contender.quarter = Some(Box::new(honest(1.0)));
    contender.least_seconds = Box::new(|| Some(0.002));
    let measured = measure(contender).unwrap();
    assert_eq!(measured.samples.len(), PLAN.rounds);
    assert!(measured.samples.iter().all(|seconds| (0.004..0.1).contains(seconds)), "{measured:?}");
    assert!((0.02..=0.5).contains(&measured.of_roof.unwrap()), "{measured:?}");
    assert_eq!(measured.parts["half"], 0.002);
    assert!(measured.warm_up >= 2 && measured.cold_seconds >= 0.004, "{measured:?}");
}

#[test]
fn short_work_is_called_until_it_can_be_timed() {
    let measured = measure(contender(honest(0.2))).unwrap();
    assert!((2..=64).contains(&measured.calls), "{measured:?}");
    assert!(measured.samples.iter().all(|seconds| *seconds >= 0.0002), "{measured:?}");
}

#[test]
fn work_that_goes_on_after_the_clock_is_refused() {
    let refusal = measure(contender(Timed(Unsynchronised(None, 0)))).unwrap_err();
    assert!(matches!(refusal, Refusal::Unfinished { .. }), "{refusal}");
}

#[test]
fn an_answer_that_was_kept_is_refused() {
    // Right for the first input, and therefore wrong for the next.
    let refusal = measure(contender(Timed(Kept(None)))).unwrap_err();
    assert!(matches!(refusal, Refusal::Wrong { input: 1, .. }), "{refusal}");
    // And if nobody knows what is right.
    let refusal = interleaved(&mut [contender(Timed(Kept(None)))], &PLAN, |_| None, &same).remove(0).unwrap_err();
    assert_eq!(refusal, Refusal::Kept(0, 1));
}

#[test]
fn calls_that_are_not_computed_are_refused() {
    let plan = Plan { sample_seconds: 0.5, ..PLAN };
    let refusal = measure_by(&plan, contender(Timed(Skipping(0)))).unwrap_err();
    assert!(matches!(refusal, Refusal::Skipped { .. }), "{refusal}");
}

#[test]
fn a_wrong_answer_is_refused_and_the_others_are_measured() {
    struct Wrong;
    impl Subject for Wrong {
        fn call(&mut self, _: Range<usize>) {}
        fn finish(&mut self) -> Result<(), String> {
            Ok(())
        }
        fn read(&mut self) -> Vec<f64> {
            vec![f64::NAN, 1.0]
        }
    }
    let mut contenders = [contender(Timed(Wrong)), contender(honest(1.0))];
    let results = interleaved(&mut contenders, &PLAN, |input| Some(answer(input)), &same);
    assert!(matches!(results[0], Err(Refusal::Wrong { input: 0, .. })), "{results:?}");
    assert!(results[1].is_ok(), "{results:?}");
}

#[test]
fn time_that_does_not_grow_with_the_work_is_refused_above_the_floor() {
    let with = |milliseconds: f64| {
        let mut contender = contender(honest(milliseconds));
        contender.quarter = Some(Box::new(honest(milliseconds)));
        measure(contender)
    };
    let refusal = with(12.0).unwrap_err();
    assert!(matches!(refusal, Refusal::NotGrowing { .. }), "{refusal}");
    assert!(with(0.1).is_ok(), "below the floor");
}

#[test]
fn more_than_the_device_can_do_is_refused_unless_the_roof_was_measured_badly() {
    let with = |roofs: &'static [f64]| {
        let mut contender = contender(honest(2.0));
        let mut at = 0;
        contender.least_seconds = Box::new(move || {
            at += 1;
            Some(roofs[at - 1])
        });
        measure(contender)
    };
    let refusal = with(&[10.0; RETRIES + 1]).unwrap_err();
    assert!(matches!(refusal, Refusal::AboveRoof { .. }), "{refusal}");
    assert!(with(&[10.0, 0.001]).is_ok(), "measured again");
}

#[test]
fn what_fails_is_told() {
    struct Failing;
    impl Runner for Failing {
        fn sample(&mut self, _: usize, _: usize) -> Result<Sample, String> {
            Err("no such device".into())
        }
    }
    assert_eq!(measure(contender(Failing)).unwrap_err(), Refusal::Unsupported("no such device".into()));
}
