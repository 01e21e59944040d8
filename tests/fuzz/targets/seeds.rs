//! Writes the seeds: `seeds FOLDER` makes a folder for each target in it.

use firebrick_fuzz::seeds;

fn main() -> std::io::Result<()> {
    let folder = std::path::PathBuf::from(std::env::args_os().nth(1).expect("a folder to write to"));
    let targets = [
        ("checkpoint", seeds::checkpoint()),
        ("gguf", seeds::gguf()),
        ("adapter", seeds::adapter()),
        ("config", seeds::config()),
        ("tokenizer", seeds::tokenizer()),
        ("template", seeds::template()),
        ("dataset", seeds::dataset()),
        ("arguments", seeds::arguments()),
    ];
    for (target, seeds) in targets {
        let folder = folder.join(target);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number:02}")), seed)?;
        }
    }
    Ok(())
}
