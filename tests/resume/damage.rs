//! A checkpoint that is not as it was written is passed over, whatever was done to it.

use std::fs;

use firebrick::core::lora::{Adapter, LoraConfig};
use firebrick::core::train::checkpoint::Checkpoints;
use firebrick::core::train::run::Trainer;

use crate::{Cpu, config, files, model, scratch, train, trainer};

#[test]
fn each_damaged_file_is_noticed_and_the_checkpoint_before_is_taken() {
    let model = model::<Cpu>(&Default::default());
    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoints::open(folder.path()).unwrap().every(Some(2));
    let whole = train(&mut trainer(&*model, config(6)), open(), |_| true).unwrap();
    let last = folder.path().join("step-6");
    let kept = files(&last);
    assert_eq!(kept.len(), 5, "{:?}", kept.keys());
    let newest = || open().newest().unwrap();
    assert_eq!(newest().saved.unwrap().state().cursor.step, 6);
    let mut changes = 0;
    for (name, bytes) in &kept {
        let path = last.join(name);
        let mut damaged = |what: &str, content: Option<&[u8]>| {
            match content {
                Some(content) => fs::write(&path, content).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let found = newest();
            assert_eq!(found.saved.map(|saved| saved.state().cursor.step), Some(4), "{name}: {what}");
            let told = found.damaged[0].1.to_string();
            assert!(told.contains("step-6"), "{told}");
            fs::write(&path, bytes).unwrap();
            changes += 1;
        };
        damaged("absent", None);
        damaged("empty", Some(b""));
        damaged("cut", Some(&bytes[..bytes.len() - 1]));
        damaged("longer", Some(&[&bytes[..], b" x"].concat()));
        // The manifest is text, in which another character may mean the same; of it the digits of a hash are changed.
        let hex = |at: &usize| name != "manifest.json" || bytes[*at].is_ascii_digit();
        for at in (0..bytes.len()).step_by(bytes.len().div_ceil(40)).filter(hex) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            damaged(&format!("bit at {at}"), Some(&flipped));
        }
    }
    println!("{changes} changes to a checkpoint, each noticed");
    // The damaged one is set aside, and the run goes on from the one before.
    fs::write(last.join("state.json"), "{}").unwrap();
    let lines = train(&mut trainer(&*model, config(6)), open(), |_| true).unwrap();
    assert_eq!(lines, whole[whole.len() - lines.len()..]);
    assert!(folder.path().join("step-6.damaged").is_dir() && files(&last) == kept);
}

#[test]
fn what_is_no_checkpoint_is_left_alone_and_what_was_never_finished_is_removed() {
    let model = model::<Cpu>(&Default::default());
    let folder = tempfile::tempdir().unwrap();
    for name in ["step-", "step-x", "step-007", "steps-3", "step-3.tmp", "notes.tmp"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let open = || Checkpoints::open(folder.path()).unwrap();
    assert!(open().newest().unwrap().saved.is_none());
    train(&mut trainer(&*model, config(1)), open(), |_| true).unwrap();
    for name in ["step-", "step-x", "step-007", "steps-3", "notes.tmp"] {
        assert!(folder.path().join(name).is_dir(), "{name}");
    }
    assert!(!folder.path().join("step-3.tmp").exists());
}

#[test]
fn every_truncation_of_an_adapter_and_a_hundred_thousand_flipped_bits_are_noticed() {
    let model = model::<Cpu>(&Default::default());
    let folder = scratch();
    let open = || Checkpoints::open(folder.path()).unwrap();
    // Some 20 KB.
    let adapter = Adapter::create(&*model.valid(), &LoraConfig::default(), 0).unwrap();
    train(&mut Trainer::new(&*model, adapter, config(1)).unwrap(), open(), |_| true).unwrap();
    let (checkpoints, path) = (open(), folder.path().join("step-1/adapter_model.safetensors"));
    let bytes = fs::read(&path).unwrap();
    let noticed = |what: &dyn std::fmt::Display| {
        let found = checkpoints.newest().unwrap();
        assert!(found.saved.is_none(), "{what}");
        let told = found.damaged[0].1.to_string();
        assert!(told.contains("adapter_model.safetensors"), "{what}: {told}");
    };
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        noticed(&format_args!("the first {length} bytes"));
    }
    let mut random = 1u64;
    let mut changed = bytes.clone();
    for _ in 0..100_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bit = (random >> 33) as usize % (8 * bytes.len());
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        noticed(&format_args!("bit {bit}"));
        changed[bit / 8] ^= 1 << (bit % 8);
    }
    println!("an adapter of {} bytes: each truncation and 100,000 flipped bits noticed", bytes.len());
}
