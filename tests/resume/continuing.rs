//! A run stopped after any step ends as the run that was not.

use firebrick::core::train::checkpoint::Checkpoints;
use firebrick::core::train::run::TrainConfig;

use crate::{Cpu, config, contract, files, model, rows, train, trainer};

const STEPS: usize = 20;

contract! {
    fn a_run_stopped_after_any_step_ends_bit_for_bit_like_one_that_was_not<B>(device) {
        let model = model::<B>(&device);
        let whole = tempfile::tempdir().unwrap();
        let open = |folder: &std::path::Path| Checkpoints::open(folder).unwrap().every(Some(7));
        let expected = train(&mut trainer(&*model, config(STEPS)), open(whole.path()), |_| true).unwrap();
        assert_eq!(expected.len(), STEPS + 5, "steps, and validations before the first and after each fifth");
        for stop in 1..=STEPS {
            let folder = tempfile::tempdir().unwrap();
            let mut lines = train(&mut trainer(&*model, config(STEPS)), open(folder.path()), |step| step < stop).unwrap();
            lines.extend(train(&mut trainer(&*model, config(STEPS)), open(folder.path()), |_| true).unwrap());
            assert_eq!(lines, expected, "stopped after step {stop}");
            let last = format!("step-{STEPS}");
            assert!(files(&folder.path().join(&last)) == files(&whole.path().join(&last)), "stopped after step {stop}");
        }
        println!("{STEPS} stop points: adapter, optimizer and state equal to the last byte");
    }
}

#[test]
fn the_newest_and_the_best_are_kept_and_others_removed() {
    let model = model::<Cpu>(&Default::default());
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoints::open(folder.path()).unwrap().every(Some(1)).keep_last(3);
    let lines = train(&mut trainer(&*model, config(12)), open(), |_| true).unwrap();
    let losses = lines.iter().filter_map(|line| {
        let (step, loss) = line.split_once(" valid ")?;
        Some((step.parse::<usize>().unwrap(), loss.parse::<f64>().unwrap()))
    });
    let best = losses.filter(|(step, _)| *step > 0).min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let mut kept: Vec<usize> = vec![10, 11, 12];
    if !kept.contains(&best) {
        kept.insert(0, best);
    }
    let names = folder.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<usize> = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    found.sort_unstable();
    assert_eq!(found, kept);
}

#[test]
fn other_settings_or_other_data_do_not_continue_a_run() {
    let model = model::<Cpu>(&Default::default());
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoints::open(folder.path()).unwrap();
    train(&mut trainer(&*model, config(8)), open(), |step| step < 3).unwrap();
    let refused = |config: TrainConfig| train(&mut trainer(&*model, config), open(), |_| true).unwrap_err().to_string();
    let told = refused(TrainConfig { batch_size: 3, seed: 5, ..config(8) });
    assert!(told.contains("batch_size was 2 and is now 3; seed was 0 and is now 5"), "{told}");
    let checkpoints = open();
    let saved = checkpoints.newest().unwrap().saved.unwrap();
    let fewer = firebrick::core::train::data::Dataset::from_examples(rows().examples()[1..].to_vec());
    let told = trainer(&*model, config(8)).keep(checkpoints, Some(&saved), &fewer).unwrap_err().to_string();
    assert!(told.contains("step-3") && told.contains("data was "), "{told}");
    // A longer run is the same run, for longer.
    train(&mut trainer(&*model, config(9)), open(), |_| true).unwrap();
    assert!(folder.path().join("step-9").is_dir());
}

#[test]
fn two_runs_do_not_write_into_one_folder() {
    let folder = tempfile::tempdir().unwrap();
    let first = Checkpoints::open(folder.path()).unwrap();
    let told = Checkpoints::open(folder.path()).err().unwrap().to_string();
    assert!(told.contains("another run") && told.contains(folder.path().to_str().unwrap()), "{told}");
    drop(first);
    Checkpoints::open(folder.path()).unwrap();
}
