//! What every record says of where it was made.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use firebrick_backend::device::{DeviceInfo, DeviceKind};
use firebrick_backend::process::{cpu_name, instructions_label, memory_bytes, os_name, threads};

use super::record::{Device, Kind, Machine};

/// The computer, as far as it is used: with fewer threads than cores, or other instructions than AVX-512, it counts as another
/// one, with figures of its own.
pub fn machine() -> Machine {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let used = match threads() {
        all if all == cores => String::new(),
        1 => "-1-thread".to_owned(),
        some => format!("-{some}-threads"),
    };
    let instructions = instructions_label().map_or(String::new(), |name| format!("-{name}"));
    Machine {
        name: format!("{}-{cores}-cores{instructions}{used}", std::env::consts::OS),
        cpu: cpu_name(),
        cores,
        memory_bytes: memory_bytes().unwrap_or(0),
        os: os_name(),
    }
}

/// A device as records have it.
pub fn device(info: &DeviceInfo) -> Device {
    let kind = match info.kind {
        DeviceKind::DiscreteGpu => Kind::DiscreteGpu,
        DeviceKind::IntegratedGpu => Kind::IntegratedGpu,
        DeviceKind::VirtualGpu => Kind::VirtualGpu,
        DeviceKind::Software => Kind::Software,
        _ => Kind::Cpu,
    };
    Device { name: info.name.clone(), driver: info.driver.clone(), kind }
}

/// The commit of the sources in the current folder and whether they are unchanged; of a binary that runs elsewhere, nothing.
pub fn commit() -> (String, bool) {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    if !Path::new("src/bench/machine.rs").exists() {
        return (String::new(), false);
    }
    let commit = git(&["rev-parse", "--short", "HEAD"]).unwrap_or_default();
    // Records that this run adds are no change of what was measured.
    let clean =
        git(&["status", "--porcelain", "--", ".", ":!benches/records"]).is_some_and(|changes| changes.is_empty());
    (commit, clean)
}

/// Our version and those of the libraries that compute for us, as they are pinned.
pub fn versions() -> BTreeMap<String, String> {
    let pinned = |name: &str| {
        let text = include_str!("../../Cargo.lock");
        let at = text.find(&format!("name = \"{name}\"\nversion = \""))?;
        text[at..].split('"').nth(3).map(str::to_owned)
    };
    let mut versions: BTreeMap<String, String> = ["burn", "burn-candle", "candle-core", "cubecl", "wgpu"]
        .into_iter()
        .filter_map(|name| Some((name.to_owned(), pinned(name)?)))
        .collect();
    versions.insert("firebrick".into(), env!("CARGO_PKG_VERSION").into());
    versions
}

/// Now, as `2026-11-21T13:40:00Z`.
pub fn now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Civil from days (Hinnant 2013), for days after 1970.
    let z = days + 719_468;
    let era = z / 146_097;
    let of_era = z % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest % 3600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_say_where_they_come_from() {
        let machine = machine();
        assert!(machine.cores > 0 && !machine.cpu.is_empty() && !machine.os.is_empty(), "{machine:?}");
        let versions = versions();
        assert_eq!(versions["burn"], "0.21.0");
        let now = now();
        assert!(now.len() == 20 && now.as_str() > "2026-01-01" && now.as_str() < "2200", "{now}");
    }
}
