//! A new model folder, which appears whole or not at all: what `merge` and `quantize` write.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use firebrick::core::checkpoint::write_atomic;
use firebrick::core::disk::System;
use firebrick::core::embed::EmbedConfig;
use firebrick::models::{Role, family};
use firebrick::prelude::*;
use serde_json::{Value, json};

/// Lets `write` fill a folder beside `output` and moves it there once it is complete. If it fails, nothing is left.
pub fn write_whole(output: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let building = sibling(output)?;
    let place = || output.display().to_string();
    let created: Vec<&Path> = building.ancestors().take_while(|folder| !folder.exists()).collect();
    let parents = building.parent().map_or(Ok(()), std::fs::create_dir_all);
    let written = parents.and_then(|()| std::fs::create_dir(&building)).with_context(place).and_then(|()| {
        write(&building)?;
        let _ = std::fs::remove_dir(output);
        std::fs::rename(&building, output).with_context(place)
    });
    if written.is_err() {
        let _ = std::fs::remove_dir_all(&building);
        created.into_iter().for_each(|folder| drop(std::fs::remove_dir(folder)));
    }
    written
}

fn sibling(folder: &Path) -> Result<PathBuf> {
    let name = folder.file_name().with_context(|| format!("{}: not a folder name", folder.display()))?;
    // A process that was killed may have had this number before, and left its folder.
    let numbered = |count: usize| format!(".{}.{}-{count}", name.to_string_lossy(), std::process::id());
    let free = (0..).map(|count| folder.with_file_name(numbered(count))).find(|path| !path.exists());
    free.with_context(|| format!("{}: no name is left", folder.display()))
}

/// Copies config, tokenizer and templates as they are, or as the one file that the model is holds them; then the config as `changed` leaves it.
pub fn copy_rest(checkpoint: &Checkpoint, folder: &Path, changed: impl FnOnce(&mut Value)) -> Result<()> {
    let held = checkpoint.files().held();
    let is_folder = held.is_none();
    for (name, bytes) in held.into_iter().flatten() {
        write_atomic(&System, &folder.join(name), bytes)?;
    }
    if is_folder {
        copy_files(checkpoint.folder(), folder)?;
    }
    if family(checkpoint).is_some_and(|family| family.role == Role::Encoder) {
        write_prompts(checkpoint, folder)?;
    }
    let mut config = checkpoint.config().clone();
    changed(&mut config);
    if is_folder && config == *checkpoint.config() {
        return Ok(());
    }
    Ok(write_atomic(&System, &folder.join("config.json"), serde_json::to_string_pretty(&config)?.as_bytes())?)
}

/// Everything but weights, as it is.
fn copy_files(source: &Path, folder: &Path) -> Result<()> {
    for entry in source.read_dir().with_context(|| source.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = [".json", ".jinja", ".txt", ".model"].iter().any(|end| name.ends_with(end));
        if wanted && path.is_file() && !name.ends_with(".index.json") {
            std::fs::copy(&path, folder.join(&name)).with_context(|| path.display().to_string())?;
        }
    }
    copy_modules(source, folder)
}

/// The prompts of an encoder whose files do not name them, as E5's: it would be told by its folder's name, which is another now.
fn write_prompts(checkpoint: &Checkpoint, folder: &Path) -> Result<()> {
    // What cannot be embedded with here can be merged all the same.
    let Some(config) = EmbedConfig::read(checkpoint).ok().filter(|config| config.by_name) else { return Ok(()) };
    let path = folder.join("config_sentence_transformers.json");
    let mut file = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| path.display().to_string())?,
        Err(_) => json!({}),
    };
    file["prompts"] =
        json!({"query": config.query_prefix, "passage": config.passage_prefix, "document": config.passage_prefix});
    Ok(write_atomic(&System, &path, serde_json::to_string_pretty(&file)?.as_bytes())?)
}

/// The configs of an encoder's modules, such as `1_Pooling/config.json`, without which it would pool otherwise.
fn copy_modules(source: &Path, folder: &Path) -> Result<()> {
    if !source.join("modules.json").is_file() {
        return Ok(());
    }
    for entry in source.read_dir().with_context(|| source.display().to_string())? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        let config = path.join("config.json");
        if path.is_dir() && config.is_file() {
            let to = folder.join(name);
            std::fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
            std::fs::copy(&config, to.join("config.json")).with_context(|| config.display().to_string())?;
        }
    }
    Ok(())
}
