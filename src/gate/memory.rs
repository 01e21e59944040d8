//! Verdicts that are remembered: a file for each device, driver and version in the cache folder, so that a run on a device that failed
//! can say so.

use std::path::PathBuf;

use firebrick_backend::device::DeviceInfo;
use firebrick_core::checkpoint::write_atomic;
use firebrick_core::disk::System;

use super::{Report, blank, hash};

/// Keeps a report for runs to come.
///
/// # Errors
/// If there is no cache folder or it cannot be written.
pub fn remember(device: &DeviceInfo, report: &Report) -> std::io::Result<PathBuf> {
    let path = file(device).ok_or_else(|| {
        std::io::Error::other("no cache folder, since none of FIREBRICK_CACHE, XDG_CACHE_HOME and HOME is set")
    })?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_vec_pretty(report)?;
    write_atomic(&System, &path, &text).map_err(std::io::Error::other)?;
    Ok(path)
}

/// What is known of a device, as driven by this build; nothing where its driver or Firebrick changed since, or the file is damaged.
pub fn remembered(device: &DeviceInfo) -> Option<Report> {
    let report: Report = serde_json::from_slice(&std::fs::read(file(device)?).ok()?).ok()?;
    // The file's name is a hash; the facts in it decide.
    let same = Report { findings: Vec::new(), ..report.clone() } == blank(device);
    same.then_some(report)
}

/// The folder for what may be made again: `FIREBRICK_CACHE`, else `firebrick` in the user's cache; nothing where no variable names one.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("FIREBRICK_CACHE")
        .or_else(|| Some(variable("XDG_CACHE_HOME")?.join("firebrick")))
        .or_else(|| Some(variable("HOME").or_else(|| variable("USERPROFILE"))?.join(".cache/firebrick")))
}

fn file(device: &DeviceInfo) -> Option<PathBuf> {
    let folder = cache_folder()?;
    let report = blank(device);
    let facts = [&report.backend, &report.device, &report.driver, &report.version];
    let readable: String = facts[..2].iter().flat_map(|text| text.chars()).map(keep).collect();
    // Over every fact: another driver or version is another file.
    let hash = hash(facts.iter().flat_map(|text| text.bytes().chain([0])).chain([u8::from(report.autotune)]));
    Some(folder.join("doctor").join(format!("{readable}-{hash:016x}.json")))
}

fn keep(c: char) -> char {
    if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }
}
