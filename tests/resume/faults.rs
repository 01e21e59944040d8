//! Whatever the disk does while a checkpoint is written, an older one that is whole remains, and the run continues from it.

use std::path::Path;
use std::sync::Arc;

use firebrick::core::train::checkpoint::Checkpoints;

use crate::disks::{Fault, Faulty, PowerCut, Recording, after_power_cut};
use crate::{Cpu, config, model, scratch, train, trainer};

/// Checkpoints after steps 2, 4 and 6, of which two are kept.
const STEPS: usize = 6;

fn open(folder: &Path) -> Checkpoints {
    Checkpoints::open(folder).unwrap().every(Some(2))
}

/// The step of the newest checkpoint that is whole.
fn newest(folder: &Path) -> Option<usize> {
    open(folder).newest().unwrap().saved.map(|saved| saved.state().cursor.step)
}

#[test]
fn whichever_operation_fails_an_older_checkpoint_remains_and_the_run_continues() {
    let model = model::<Cpu>(&Default::default());
    let folder = scratch();
    let disk = Faulty::new(usize::MAX, Fault::Full);
    let count = disk.count();
    let whole = train(&mut trainer(&*model, config(STEPS)), open(folder.path()).on(Arc::new(disk)), |_| true).unwrap();
    let operations = *count.lock().unwrap();
    let mut tried = 0;
    for fault in [Fault::Full, Fault::Broken, Fault::Short, Fault::Lost] {
        for at in 0..operations {
            let folder = scratch();
            let disk = Faulty::new(at, fault);
            let outcome = train(&mut trainer(&*model, config(STEPS)), open(folder.path()).on(Arc::new(disk)), |_| true);
            match (&outcome, fault) {
                // A run whose writes vanish cannot know.
                (Ok(lines), Fault::Lost) => assert_eq!(lines, &whole, "{fault:?} at {at}"),
                (Err(problem), Fault::Full | Fault::Broken | Fault::Short) => {
                    let told = problem.to_string();
                    assert!(told.contains(folder.path().to_str().unwrap()), "{fault:?} at {at}: {told}");
                }
                (outcome, _) => panic!("{fault:?} at {at}: {outcome:?}"),
            }
            let found = newest(folder.path());
            // The first checkpoint takes a third of the operations; after it there always is one.
            assert!(found.is_some() || at * 3 < operations + 6, "{fault:?} at {at} of {operations}: nothing is left");
            // From what is left, on a disk that works, the run ends as it would have.
            let lines = train(&mut trainer(&*model, config(STEPS)), open(folder.path()), |_| true).unwrap();
            let rest = &whole[whole.len() - lines.len()..];
            assert_eq!(lines, rest, "{fault:?} at {at}: continued from {found:?}");
            assert_eq!(newest(folder.path()), Some(STEPS));
            tried += 1;
        }
    }
    println!("{tried} faults at {operations} operations: the run continued from a whole checkpoint after each");
}

#[test]
fn a_power_cut_at_any_moment_leaves_a_whole_checkpoint() {
    let model = model::<Cpu>(&Default::default());
    let folder = scratch();
    let disk = Recording::default();
    let operations = disk.operations.clone();
    train(&mut trainer(&*model, config(STEPS)), open(folder.path()).on(Arc::new(disk)), |_| true).unwrap();
    let operations = operations.lock().unwrap();
    for cut in [PowerCut::ForgetsAll, PowerCut::KeepsNames] {
        let mut steps = Vec::new();
        for done in 0..=operations.len() {
            let left = scratch();
            after_power_cut(&operations[..done], cut, folder.path(), left.path());
            steps.push(newest(left.path()).unwrap_or(0));
        }
        // It only ever goes forward, by one checkpoint at a time.
        assert!(steps.windows(2).all(|pair| pair[1] == pair[0] || pair[1] == pair[0] + 2), "{cut:?}: {steps:?}");
        assert_eq!((steps[0], steps[operations.len()]), (0, STEPS), "{cut:?}");
        println!("{cut:?}: {} moments, the newest whole checkpoint after each: {steps:?}", steps.len());
    }
}
