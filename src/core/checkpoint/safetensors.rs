//! One safetensors file: opened, its header checked, its tensors copied out one by one. Folders, shards and configs are in
//! `checkpoint.rs`; an adapter is a single such file and is read through [`TensorFile`] directly.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, TensorData};

use super::elements::{self, Elements};
use super::header::{self, Entry, Header, Limits};
use crate::error::{Error, Result};
use crate::file::RangeFile;

/// What a file says about one of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype as stored.
    pub dtype: DType,
    /// The shape as stored.
    pub shape: Vec<usize>,
}

/// An opened safetensors file whose header kept all the rules. Its tensors are read when they are asked for.
#[derive(Debug)]
pub struct TensorFile {
    file: RangeFile,
    header: Header,
}

impl TensorFile {
    /// Opens the file at `path` and checks its header; reads no tensor.
    ///
    /// # Errors
    /// [`Error::Pickle`] for a pickle by its name or its first bytes, [`Error::Malformed`] for a header that breaks a rule
    /// or a limit, [`Error::Io`] for what the system refuses.
    pub fn open(path: &Path, limits: &Limits) -> Result<Self> {
        refuse_pickle_name(path)?;
        let file = RangeFile::open(path).map_err(Error::io(path))?;
        let malformed = |problem: String| Error::malformed(path, problem);
        let first = file.copy(0..file.len().min(9)).map_err(Error::io(path))?;
        if is_pickle(&first) {
            return Err(Error::Pickle { path: path.to_path_buf() });
        }
        let Some(prefix) = first.first_chunk::<8>() else {
            return Err(malformed(format!("{} bytes are too few for a safetensors file: truncated", file.len())));
        };
        if prefix == b"version " {
            return Err(malformed("this is a Git LFS pointer, not the weights; `git lfs pull` fetches them".into()));
        }
        let length = header::length(*prefix, file.len(), limits).map_err(malformed)?;
        let json = file.copy(8..8 + length).map_err(Error::io(path))?;
        let header = header::parse(&json, file.len(), limits).map_err(malformed)?;
        Ok(Self { file, header })
    }

    /// The tensors of a file of another format.
    pub(super) fn of(file: RangeFile, tensors: BTreeMap<String, Entry>) -> Self {
        Self { file, header: Header { metadata: BTreeMap::new(), tensors } }
    }

    /// The path given to [`TensorFile::open`].
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The file's own notes, `format` mostly.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.header.metadata
    }

    /// Dtype and shape of the tensor `name`, if there is one.
    pub fn info(&self, name: &str) -> Option<TensorInfo> {
        self.header.tensors.get(name).map(|entry| TensorInfo { dtype: entry.dtype, shape: entry.shape.clone() })
    }

    /// The tensor `name` in its stored dtype, copied once.
    ///
    /// # Errors
    /// [`Error::TensorMismatch`] for a name that is not there or a dtype that is not F64, F32, F16 or BF16; [`Error::Io`] when
    /// the file changed or cannot be read.
    pub fn data(&self, name: &str) -> Result<TensorData> {
        Ok(self.copy(name, None)?.data)
    }

    /// The bytes of the tensor `name`, of any dtype, copied once; none if there is no such tensor.
    pub(super) fn bytes(&self, name: &str) -> Result<Vec<u8>> {
        let Some(entry) = self.header.tensors.get(name) else { return Ok(Vec::new()) };
        let mut bytes = self.file.copy(entry.range.clone()).map_err(Error::io(self.path()))?;
        halves_together(&mut bytes, entry);
        Ok(bytes)
    }

    /// Bytes of all tensors as stored.
    pub fn total_bytes(&self) -> u64 {
        self.header.tensors.values().map(|entry| entry.range.len() as u64).sum()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.header.tensors.iter()
    }

    /// The tensor `name`, converted when `wanted` says so.
    pub(super) fn copy(&self, name: &str, wanted: Option<DType>) -> Result<Elements> {
        let elements = self.convert(name, wanted)?;
        if elements.overflowed == 0 {
            return Ok(elements);
        }
        let name_of = |dtype| header::dtype_name(dtype).unwrap_or("this dtype");
        let stored = self.header.tensors.get(name).map_or("stored", |entry| name_of(entry.dtype));
        let problem = format!(
            "tensor `{name}` has {} values too large for {}; load it as {stored} or as f32",
            elements.overflowed,
            name_of(elements.data.dtype),
        );
        Err(Error::malformed(self.path(), problem))
    }

    /// As [`copy`](Self::copy), with values that do not fit counted and infinite.
    pub(super) fn convert(&self, name: &str, wanted: Option<DType>) -> Result<Elements> {
        let mismatch = |missing: Vec<String>, misshapen: Vec<_>| Error::TensorMismatch {
            path: self.path().to_path_buf(),
            missing,
            surplus: Vec::new(),
            misshapen,
        };
        let Some(entry) = self.header.tensors.get(name) else {
            return Err(mismatch(vec![name.to_owned()], Vec::new()));
        };
        if !elements::is_float(entry.dtype) {
            let found = header::describe(entry.dtype, &entry.shape);
            return Err(mismatch(Vec::new(), vec![(name.to_owned(), "F64, F32, F16 or BF16".to_owned(), found)]));
        }
        let start = entry.range.start;
        let wanted = wanted.unwrap_or(entry.dtype);
        let fetch = |offset: usize, target: &mut [u8]| self.file.copy_into(start + offset, target);
        let mut elements = elements::copy(entry.dtype, wanted, &entry.shape, fetch).map_err(Error::io(self.path()))?;
        halves_together(&mut elements.data.bytes, entry);
        Ok(elements)
    }
}

/// Puts the rows of each head in the order of Hugging Face: its first half, then its second.
fn halves_together(bytes: &mut [u8], entry: &Entry) {
    let Some(heads) = entry.interleaved else { return };
    let rows = entry.shape.first().copied().unwrap_or_default();
    let (row, half) = (bytes.len() / rows.max(1), rows / heads.max(1) / 2);
    if row == 0 || half == 0 {
        return;
    }
    for head in bytes.chunks_exact_mut(2 * half * row) {
        let old = head.to_vec();
        for (at, row_bytes) in head.chunks_exact_mut(row).enumerate() {
            let from = 2 * (at % half) + at / half;
            row_bytes.copy_from_slice(&old[from * row..(from + 1) * row]);
        }
    }
}

/// The endings that PyTorch's pickles go by.
const PICKLE_ENDINGS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle"];

/// Whether a file of this name is a pickle by convention.
pub(super) fn has_pickle_name(path: &Path) -> bool {
    let ending = path.extension().map(|ending| ending.to_string_lossy().to_ascii_lowercase());
    ending.is_some_and(|ending| PICKLE_ENDINGS.contains(&ending.as_str()))
}

pub(super) fn refuse_pickle_name(path: &Path) -> Result<()> {
    if has_pickle_name(path) { Err(Error::Pickle { path: PathBuf::from(path) }) } else { Ok(()) }
}

/// Whether a file that begins with `first` is PyTorch's zip, or a bare pickle of protocol 2 to 5.
fn is_pickle(first: &[u8]) -> bool {
    match first {
        [b'P', b'K', 3, 4, ..] => true,
        // 80 02 00 00 00 00 00 00 is also the length of a header of 640 bytes; then an object follows.
        [0x80, 2..=5, _, 0, 0, 0, 0, 0, b'{', ..] => false,
        [0x80, 2..=5, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    /// A file's bytes: length, header, data.
    fn raw(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn open(bytes: &[u8]) -> Result<TensorFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        // The opened file stays readable after the folder is gone; only its name is not there any more.
        TensorFile::open(&path, &Limits::MODEL)
    }

    fn entry(name: &str, dtype: &str, shape: &str, begin: usize, end: usize) -> String {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    }

    fn good() -> Vec<u8> {
        let (a, b) = (entry("a", "F32", "[2,1]", 0, 8), entry("b.é", "F16", "[3]", 8, 14));
        raw(
            &format!(r#"{{"__metadata__":{{"format":"pt"}},{a},{b},{}}}"#, entry("none", "F64", "[0,5]", 14, 14)),
            &[1; 14],
        )
    }

    #[test]
    fn a_good_file_says_what_it_holds() {
        let file = open(&good()).unwrap();
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b.é", "none"]);
        assert_eq!(file.info("b.é"), Some(TensorInfo { dtype: DType::F16, shape: vec![3] }));
        assert_eq!((file.info("c"), file.total_bytes()), (None, 14));
        assert_eq!(file.metadata()["format"], "pt");
        assert_eq!(file.data("b.é").unwrap().as_bytes(), [1; 6]);
        assert_eq!(file.data("none").unwrap().num_elements(), 0);
        assert!(matches!(file.data("c"), Err(Error::TensorMismatch { missing, .. }) if missing == ["c"]));
    }

    #[test]
    fn a_file_truncated_at_any_byte_is_an_error() {
        let good = good();
        for length in 0..good.len() {
            let error = open(&good[..length]).unwrap_err();
            assert!(matches!(error, Error::Malformed { .. }), "{length}: {error}");
        }
        open(&good).unwrap();
    }

    #[test]
    fn flipped_bits_never_panic_and_what_is_accepted_the_reference_accepts() {
        let good = good();
        let length = u64::from_le_bytes(*good.first_chunk().unwrap()) as usize;
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut accepted = 0;
        for _ in 0..10_000 {
            let mut bytes = good.clone();
            for _ in 0..random.random_range(1..4) {
                bytes[random.random_range(0..8 + length)] ^= 1 << random.random_range(0..8);
            }
            let prefix = *bytes.first_chunk().unwrap();
            let parsed = header::length(prefix, bytes.len(), &Limits::MODEL)
                .and_then(|length| header::parse(&bytes[8..8 + length], bytes.len(), &Limits::MODEL));
            if let Ok(header) = parsed {
                accepted += 1;
                let reference = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
                for (name, entry) in &header.tensors {
                    assert_eq!(reference.tensor(name).unwrap().data(), &bytes[entry.range.clone()]);
                }
            }
        }
        // Flips inside names leave a valid header: the loop has seen both outcomes.
        assert!(accepted > 0 && accepted < 5_000, "{accepted}");
    }

    #[test]
    fn every_broken_rule_is_told() {
        let (a, b) = (entry("a", "F32", "[2]", 0, 8), entry("b", "F32", "[1]", 8, 12));
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        let cases: Vec<(String, usize, &str)> = vec![
            (format!("{{{a},{}}}", entry("b", "F32", "[1]", 4, 8)), 8, "overlaps"),
            (format!("{{{a},{}}}", entry("b", "F32", "[2]", 0, 8)), 8, "overlaps"),
            (format!("{{{a},{}}}", entry("b", "F32", "[1]", 12, 16)), 16, "hole"),
            (format!("{{{}}}", entry("a", "F32", "[1]", 4, 8)), 8, "hole"),
            (format!("{{{a}}}"), 9, "1 bytes follow the last tensor"),
            ("{}".into(), 3, "3 bytes follow"),
            (format!("{{{a},{a}}}"), 8, "tensor `a` appears twice"),
            (format!("{{{a},{}}}", b.replace("\"b\"", "\"\\u0061\"")), 12, "tensor `a` appears twice"),
            (format!("{{{a},{b}}}").replace(r#""shape":[1]"#, r#""shape":[1],"shape":[1]"#), 12, "duplicate field"),
            (format!("{{{a},{b}}}").replace(r#""shape":[1]"#, r#""shape":[1],"stride":1"#), 12, "unknown field"),
            (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "`__metadata__` appears twice"),
            (r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(), 0, "`k` appears twice"),
            (r#"{"__metadata__":{"k":1}}"#.into(), 0, "expected a string"),
            (format!("{{{}}}", entry("a", "F32", "[3]", 0, 8)), 8, "is F32 [3], which takes 12 bytes, but has 8"),
            (format!("{{{}}}", entry("a", "F32", "[2]", 0, 12)), 8, "lies at bytes 0..12 of 8"),
            (format!("{{{}}}", entry("a", "F32", "[2]", 8, 0)), 8, "lies at bytes 8..0"),
            (format!("{{{}}}", entry("a", "F8_E4M3", "[8]", 0, 8)), 8, "tensor `a` has dtype `F8_E4M3`"),
            (format!("{{{}}}", entry("a", "Q\\n7", "[8]", 0, 8)), 8, "has dtype `Q\\n7`"),
            (format!("{{{}}}", entry("\\u001b[2J", "F32", "[2]", 0, 8)), 8, "a name of control characters"),
            (format!("{{{}}}", entry(&"n".repeat(1_001), "F32", "[2]", 0, 8)), 8, "more than 1000 bytes"),
            (format!("{{{}}}", entry("a", "F32", "[4294967296,4294967296,2]", 0, 8)), 8, "larger than any memory"),
            (format!("{{{}}}", entry("a", "F64", "[2305843009213693952]", 0, 8)), 8, "larger than any memory"),
            (format!("{{{}}}", entry("a", "F32", "[-1]", 0, 8)), 8, "cannot be read"),
            (format!("{{{}}}", entry("a", "F32", "[1.5]", 0, 8)), 8, "cannot be read"),
            (
                format!("{{{}}}", entry("a", "F32", &format!("[2{}]", ",1".repeat(16)), 0, 8)),
                8,
                "more than 16 dimensions",
            ),
            (format!("{{{a}}} x"), 8, "cannot be read"),
            (format!(" {{{a}}}"), 8, "not a JSON object"),
            ("[]".into(), 0, "not a JSON object"),
            (String::new(), 0, "not a JSON object"),
            (deep, 0, "cannot be read"),
        ];
        for (header, data, expected) in cases {
            let error = open(&raw(&header, &vec![0; data])).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::Malformed { .. }) && message.contains(expected), "{expected}: {message}");
            assert!(message.contains("model.safetensors") && message.len() < 500, "{message}");
        }
        let mut bytes = raw(&format!("{{{a}}}"), &[0; 8]);
        bytes[10] = 0xff;
        assert!(open(&bytes).unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn header_bombs_are_refused() {
        for length in [1u64 << 63, u64::MAX, 16_000_001] {
            let bytes = [&length.to_le_bytes()[..], b"{}"].concat();
            assert!(open(&bytes).unwrap_err().to_string().contains(&format!("claims {length} bytes")));
        }
        let large = raw(&format!("{{}}{}", " ".repeat(17_000_000)), &[]);
        assert!(open(&large).unwrap_err().to_string().contains("16000000 are allowed"));
        let many: Vec<String> = (0..100_001).map(|i| entry(&format!("{i}"), "F32", "[0]", 0, 0)).collect();
        assert!(
            open(&raw(&format!("{{{}}}", many.join(",")), &[])).unwrap_err().to_string().contains("more than 100000")
        );
        open(&raw(&format!("{{{}}}", many[1..].join(",")), &[])).unwrap();
    }

    #[test]
    fn pickles_are_refused_by_their_first_bytes() {
        let mut first: Vec<Vec<u8>> = vec![b"PK\x03\x04rest of a zip".to_vec()];
        first.extend((2..=5).map(|protocol| [&[0x80, protocol, 0x8a, 0x0a][..], &[0x6c; 40]].concat()));
        for bytes in first {
            assert!(matches!(open(&bytes), Err(Error::Pickle { .. })), "{bytes:?}");
        }
        // A header of 640 bytes begins like a pickle of protocol 2, and is none.
        let header = format!("{{{}}}", entry("a", "F32", "[1]", 0, 4));
        open(&raw(&format!("{header:640}"), &[0; 4])).unwrap();
        for name in ["pytorch_model.bin", "x.pt", "x.PTH", "a.ckpt"] {
            assert!(matches!(TensorFile::open(Path::new(name), &Limits::MODEL), Err(Error::Pickle { .. })), "{name}");
        }
    }

    #[test]
    fn a_git_lfs_pointer_is_called_by_its_name() {
        let error = open(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap_err();
        assert!(error.to_string().contains("Git LFS pointer"));
    }

    #[test]
    fn integers_are_tolerated_until_they_are_read() {
        let file = open(&raw(&format!("{{{}}}", entry("ids", "I64", "[1]", 0, 8)), &[0; 8])).unwrap();
        assert_eq!(file.info("ids").unwrap().dtype, DType::I64);
        let error = file.data("ids").unwrap_err().to_string();
        assert!(error.contains("ids: expected F64, F32, F16 or BF16, found I64 [1]"), "{error}");
    }

    #[test]
    fn a_file_truncated_after_opening_is_an_error_for_every_tensor() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let elements = 100_000;
        let header = format!("{{{}}}", entry("a", "F32", "[100000]", 0, elements * 4));
        std::fs::write(&path, raw(&header, &vec![0; elements * 4])).unwrap();
        let file = TensorFile::open(&path, &Limits::MODEL).unwrap();
        file.data("a").unwrap();
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(200).unwrap();
        let error = file.data("a").unwrap_err();
        assert!(matches!(&error, Error::Io { path: named, .. } if *named == path), "{error}");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("changed while it was in use"));
    }
}
