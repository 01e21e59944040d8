//! Disks that fail: an operation refused, everything after an operation lost, and a power cut that loses what was not brought to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use firebrick::core::disk::{Disk, DiskFile, System};

/// What happens at the n-th operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The disk is full.
    Full,
    /// The disk is broken.
    Broken,
    /// Half of what was to be written is, then the disk is full. Other operations fail.
    Short,
    /// This and everything after it is said to be done and is not.
    Lost,
}

/// A disk that counts its operations and fails at one.
pub struct Faulty {
    at: usize,
    fault: Fault,
    count: Arc<Mutex<usize>>,
}

impl Faulty {
    /// At operation `at`, from 0; beyond the last one nothing fails.
    pub fn new(at: usize, fault: Fault) -> Self {
        Self { at, fault, count: Arc::default() }
    }

    /// Counts the operations asked for.
    pub fn count(&self) -> Arc<Mutex<usize>> {
        self.count.clone()
    }

    fn gate(&self) -> Gate {
        Gate { at: self.at, fault: self.fault, count: self.count.clone() }
    }
}

#[derive(Clone)]
struct Gate {
    at: usize,
    fault: Fault,
    count: Arc<Mutex<usize>>,
}

impl Gate {
    /// `None` if the operation is to be done.
    fn pass<T>(&self, lost: impl FnOnce() -> T) -> Option<io::Result<T>> {
        let mut count = self.count.lock().unwrap();
        let now = *count;
        *count += 1;
        match self.fault {
            Fault::Lost if now >= self.at => Some(Ok(lost())),
            Fault::Full | Fault::Short if now == self.at => Some(Err(io::ErrorKind::StorageFull.into())),
            // EIO
            Fault::Broken if now == self.at => Some(Err(io::Error::from_raw_os_error(5))),
            _ => None,
        }
    }
}

/// A file, or what became of one: nothing.
struct FaultyFile {
    file: Option<Box<dyn DiskFile>>,
    gate: Gate,
}

impl Disk for Faulty {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(|| ()).unwrap_or_else(|| System.create_folder(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = match self.gate().pass(|| ()) {
            Some(refused) => refused.map(|()| None)?,
            None => Some(System.create(path)?),
        };
        Ok(Box::new(FaultyFile { file, gate: self.gate() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.gate().pass(|| ()).unwrap_or_else(|| System.rename(from, to))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(|| ()).unwrap_or_else(|| System.sync_folder(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(|| ()).unwrap_or_else(|| System.remove_file(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.gate().pass(|| ()).unwrap_or_else(|| System.remove_folder(path))
    }
}

impl Write for FaultyFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else {
            *self.gate.count.lock().unwrap() += 1;
            return Ok(bytes.len());
        };
        match self.gate.pass(|| bytes.len()) {
            Some(Err(problem)) if self.gate.fault == Fault::Short => {
                file.write_all(&bytes[..bytes.len() / 2])?;
                Err(problem)
            }
            Some(refused) => refused,
            None => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn sync(&mut self) -> io::Result<()> {
        let refused = self.gate.pass(|| ());
        match (refused, &mut self.file) {
            (Some(refused), _) => refused,
            (None, Some(file)) => file.sync(),
            (None, None) => Ok(()),
        }
    }
}

/// One operation, as it was asked for.
#[derive(Clone, Debug)]
pub enum Operation {
    CreateFolder(PathBuf),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    Rename(PathBuf, PathBuf),
    SyncFolder(PathBuf),
    RemoveFile(PathBuf),
    RemoveFolder(PathBuf),
}

/// A disk that does everything and keeps a list of it.
#[derive(Clone, Default)]
pub struct Recording {
    pub operations: Arc<Mutex<Vec<Operation>>>,
}

struct RecordedFile {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    disk: Recording,
}

impl Recording {
    fn note(&self, operation: Operation) {
        self.operations.lock().unwrap().push(operation);
    }
}

impl Disk for Recording {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.note(Operation::CreateFolder(path.into()));
        System.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.note(Operation::Create(path.into()));
        Ok(Box::new(RecordedFile { file: System.create(path)?, path: path.into(), disk: self.clone() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(Operation::Rename(from.into(), to.into()));
        System.rename(from, to)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.note(Operation::SyncFolder(path.into()));
        System.sync_folder(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.note(Operation::RemoveFile(path.into()));
        System.remove_file(path)
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.note(Operation::RemoveFolder(path.into()));
        System.remove_folder(path)
    }
}

impl Write for RecordedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.disk.note(Operation::Write(self.path.clone(), bytes[..written].to_vec()));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl DiskFile for RecordedFile {
    fn sync(&mut self) -> io::Result<()> {
        self.disk.note(Operation::SyncFile(self.path.clone()));
        self.file.sync()
    }
}

/// How a disk treats what was not brought to it before the power went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PowerCut {
    /// Names and contents that were not synced are gone.
    ForgetsAll,
    /// Names are as they were last, contents only as far as they were synced: what a journal of names alone leaves.
    KeepsNames,
}

/// What a power cut after `operations` leaves of `root`, made anew in `target`.
pub fn after_power_cut(operations: &[Operation], cut: PowerCut, root: &Path, target: &Path) {
    // A file or folder is a number; a folder's names are those in memory and those on disk.
    let mut model = Model { nodes: vec![Node::default()], root: root.into() };
    model.nodes[0].is_folder = true;
    for operation in operations {
        model.apply(operation);
    }
    model.write(0, target, cut);
}

#[derive(Clone, Default)]
struct Node {
    is_folder: bool,
    contents: Vec<u8>,
    synced: usize,
    names: BTreeMap<String, usize>,
    names_on_disk: BTreeMap<String, usize>,
}

struct Model {
    nodes: Vec<Node>,
    root: PathBuf,
}

impl Model {
    fn find(&self, path: &Path) -> usize {
        let inside = path.strip_prefix(&self.root).unwrap();
        inside.iter().fold(0, |node, name| self.nodes[node].names[name.to_str().unwrap()])
    }

    fn parent(&mut self, path: &Path) -> (&mut BTreeMap<String, usize>, String) {
        let parent = self.find(path.parent().unwrap());
        (&mut self.nodes[parent].names, path.file_name().unwrap().to_string_lossy().into_owned())
    }

    fn add(&mut self, path: &Path, is_folder: bool) {
        self.nodes.push(Node { is_folder, ..Node::default() });
        let node = self.nodes.len() - 1;
        let (names, name) = self.parent(path);
        names.insert(name, node);
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::CreateFolder(path) => self.add(path, true),
            Operation::Create(path) => self.add(path, false),
            Operation::Write(path, bytes) => {
                let node = self.find(path);
                self.nodes[node].contents.extend_from_slice(bytes);
            }
            Operation::SyncFile(path) => {
                let node = self.find(path);
                self.nodes[node].synced = self.nodes[node].contents.len();
            }
            Operation::Rename(from, to) => {
                let (names, name) = self.parent(from);
                let node = names.remove(&name).unwrap();
                let (names, name) = self.parent(to);
                names.insert(name, node);
            }
            Operation::SyncFolder(path) => {
                let node = self.find(path);
                self.nodes[node].names_on_disk = self.nodes[node].names.clone();
            }
            Operation::RemoveFile(path) | Operation::RemoveFolder(path) => {
                let (names, name) = self.parent(path);
                names.remove(&name).unwrap();
            }
        }
    }

    fn write(&self, node: usize, target: &Path, cut: PowerCut) {
        let Node { is_folder, contents, synced, names, names_on_disk } = &self.nodes[node];
        if !is_folder {
            return std::fs::write(target, &contents[..*synced]).unwrap();
        }
        std::fs::create_dir_all(target).unwrap();
        let names = if cut == PowerCut::KeepsNames { names } else { names_on_disk };
        let distinct: BTreeSet<_> = names.values().collect();
        assert_eq!(distinct.len(), names.len());
        for (name, node) in names {
            self.write(*node, &target.join(name), cut);
        }
    }
}
