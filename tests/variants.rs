//! Every option of the family's `config.json` means what it means in transformers, in the form of transformers 5 and in the older one.
//! The folders are made by `tests/python/make_variants.py`, which checks that each option shows in its logits.

mod support;

use std::path::Path;

use support::{Golden, Inner, assert_golden, cached_logits, load, logits, repository};

const FOLDER: &str = "tests/goldens/variants";

/// The folder with its `old_config.json` in place of its config.
fn with_old_config(folder: &Path) -> tempfile::TempDir {
    let old = tempfile::tempdir().unwrap();
    for (from, to) in [("old_config.json", "config.json"), ("model.safetensors", "model.safetensors")] {
        std::fs::copy(folder.join(from), old.path().join(to)).unwrap();
    }
    old
}

contract! {
    fn every_config_option_gives_the_logits_of_transformers<B>(device) {
        let mut compared = 0;
        for entry in std::fs::read_dir(repository(FOLDER)).unwrap() {
            let folder = entry.unwrap().path();
            let golden = Golden::tensors(&folder);
            let ids = golden.rows("input_ids");
            let (expected, _) = golden.floats("logits");
            let name = folder.file_name().unwrap().to_string_lossy();
            let model = load::<Inner<B>>(&folder, &device);
            assert_golden(&logits(&*model, &ids), &expected, &name);
            for chunk in [1, 5] {
                assert_golden(&cached_logits(&*model, &ids[0], chunk), &expected, &format!("{name}, cached by {chunk}"));
            }
            let old = with_old_config(&folder);
            assert_golden(&logits(&*load::<Inner<B>>(old.path(), &device), &ids), &expected, &format!("{name}, old form"));
            compared += 1;
        }
        assert_eq!(compared, 8);
    }
}
