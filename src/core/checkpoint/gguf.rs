//! GGUF, the format of llama.cpp: one file with metadata, tokenizer and weights. Its header becomes what a Hugging Face folder says: tensors
//! by their names there (`model.rs`), `config.json` and the tokenizer's files (`files.rs`); its blocks become packed matrices
//! (`blocks.rs`).
//!
//! Source: the specification in ggml's repository, `docs/gguf.md`, versions 2 and 3.

mod blocks;
mod files;
mod model;

use std::collections::BTreeMap;
use std::ops::Range;

pub(super) use blocks::BlockType;
pub(super) use files::files;
pub(super) use model::{Named, named};

use super::header::shown;

/// How much a header may claim before it is refused: vocabularies of millions of tokens are far below.
const MAX_HEADER_BYTES: usize = 64 << 20;
const MAX_TENSORS: u64 = 100_000;
const MAX_KEYS: u64 = 10_000;
/// In all lists together: a vocabulary of 256 thousand tokens has as many texts, types and scores, and twice as many merges.
const MAX_ITEMS: u64 = 3 << 19;
const MAX_RANK: u32 = 4;

/// How much of a file is looked at first: most headers end before.
pub(super) const FIRST_BYTES: usize = 4 << 20;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Integers(Vec<i64>),
    /// A list of floats or of lists, which nobody asks for.
    Other,
}

/// A tensor as the header describes it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// `[out, in]`: outermost first, other than in the file.
    pub shape: Vec<usize>,
    pub stored: BlockType,
    /// Bytes from the start of the file.
    pub range: Range<usize>,
}

/// A header that kept the rules.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: BTreeMap<String, Tensor>,
}

impl Header {
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.metadata.get(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        match self.metadata.get(key)? {
            Value::Integer(integer) => Some(*integer),
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.metadata.get(key)? {
            Value::Float(float) => Some(*float),
            Value::Integer(integer) => Some(*integer as f64),
            _ => None,
        }
    }

    pub(super) fn boolean(&self, key: &str) -> Option<bool> {
        match self.metadata.get(key)? {
            Value::Bool(value) => Some(*value),
            _ => None,
        }
    }

    pub(super) fn texts(&self, key: &str) -> Option<&[String]> {
        match self.metadata.get(key)? {
            Value::Texts(texts) => Some(texts),
            _ => None,
        }
    }

    pub(super) fn integers(&self, key: &str) -> Option<&[i64]> {
        match self.metadata.get(key)? {
            Value::Integers(integers) => Some(integers),
            _ => None,
        }
    }
}

/// Reads the header of a file that begins with these bytes and has `whole` of them; none if more of them are needed.
///
/// # Errors
/// What is wrong with it.
pub(super) fn parse(bytes: &[u8], whole: usize) -> Result<Option<Header>, String> {
    let mut reader = Reader { bytes: &bytes[..bytes.len().min(MAX_HEADER_BYTES)], at: 0, ended: false, items: 0 };
    match header(&mut reader, whole) {
        Err(_) if reader.ended && bytes.len() < whole.min(MAX_HEADER_BYTES) => Ok(None),
        Err(_) if reader.ended && whole > MAX_HEADER_BYTES => {
            Err(format!("its header has more than {MAX_HEADER_BYTES} bytes"))
        }
        read => read.map(Some),
    }
}

fn header(reader: &mut Reader, whole: usize) -> Result<Header, String> {
    if reader.take(4)? != b"GGUF" {
        return Err("this is not a GGUF file".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF of version {version} is not read; 2 and 3 are"));
    }
    let (tensors, keys) = (reader.u64()?, reader.u64()?);
    if tensors > MAX_TENSORS || keys > MAX_KEYS {
        return Err(format!("its header claims {tensors} tensors and {keys} keys"));
    }
    let mut metadata = BTreeMap::new();
    for _ in 0..keys {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader.value(kind, true).map_err(|problem| format!("its key {}: {problem}", shown(&key)))?;
        if metadata.insert(key.clone(), value).is_some() {
            return Err(format!("its key {} appears twice", shown(&key)));
        }
    }
    let mut raw = Vec::new();
    for _ in 0..tensors {
        let name = reader.text()?;
        let rank = reader.u32()?;
        if rank == 0 || rank > MAX_RANK {
            return Err(format!("tensor {} has {rank} dimensions", shown(&name)));
        }
        let mut shape = (0..rank).map(|_| reader.u64()).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        raw.push((name, shape, reader.u32()?, reader.u64()?));
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(alignment)) if (8..=1 << 16).contains(alignment) => *alignment as usize,
        Some(_) => return Err("its alignment is not a number from 8 to 65,536".into()),
    };
    let data = reader.at.next_multiple_of(alignment);
    let mut placed = BTreeMap::new();
    for (name, shape, kind, offset) in raw {
        let tensor =
            place(&shape, kind, offset, data, whole).map_err(|problem| format!("tensor {} {problem}", shown(&name)))?;
        if placed.insert(name.clone(), tensor).is_some() {
            return Err(format!("tensor {} appears twice", shown(&name)));
        }
    }
    covered(&placed, data, whole, alignment)?;
    Ok(Header { metadata, tensors: placed })
}

fn place(shape: &[u64], kind: u32, offset: u64, data: usize, file: usize) -> Result<Tensor, String> {
    let stored = BlockType::of(kind).ok_or_else(|| {
        format!("is stored as type {kind} of ggml, which is not read; {} are", BlockType::NAMES.join(", "))
    })?;
    let shape: Option<Vec<usize>> = shape.iter().map(|&extent| usize::try_from(extent).ok()).collect();
    let elements =
        shape.as_ref().and_then(|shape| shape.iter().try_fold(1usize, |all, &extent| all.checked_mul(extent)));
    let (Some(shape), Some(elements)) = (shape, elements) else {
        return Err("is larger than any memory".into());
    };
    let (values, bytes) = stored.block();
    if !shape.last().copied().unwrap_or(1).is_multiple_of(values) {
        return Err(format!("has rows of {shape:?} that are not whole blocks of {values}"));
    }
    let length = (elements / values).checked_mul(bytes);
    let start = usize::try_from(offset).ok().and_then(|offset| data.checked_add(offset));
    let end = start.zip(length).and_then(|(start, length)| start.checked_add(length));
    match (start, end) {
        (Some(start), Some(end)) if end <= file => Ok(Tensor { shape, stored, range: start..end }),
        _ => Err(format!("lies behind the end of the file, which has {file} bytes: truncated")),
    }
}

/// No overlap; and between tensors, and behind the last, no more than aligns the next.
fn covered(tensors: &BTreeMap<String, Tensor>, data: usize, whole: usize, alignment: usize) -> Result<(), String> {
    let mut ranges: Vec<_> =
        tensors.iter().map(|(name, tensor)| (tensor.range.start, tensor.range.end, name)).collect();
    ranges.sort_unstable();
    let mut end = data;
    for (start, next, name) in ranges {
        if start < end {
            return Err(format!("tensor {} overlaps the tensor before it", shown(name)));
        }
        if start - end >= alignment {
            return Err(format!("tensor {} follows a hole of {} bytes", shown(name), start - end));
        }
        end = next;
    }
    match whole.saturating_sub(end) {
        behind if behind >= alignment => Err(format!("{behind} bytes follow the last tensor")),
        _ => Ok(()),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Whether more was asked for than there is.
    ended: bool,
    /// In the lists so far.
    items: u64,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            self.ended = true;
            return Err("the file ends inside its header: truncated".into());
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(std::array::from_fn({
            let taken = self.take(N)?;
            |at| taken[at]
        }))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<String, String> {
        let length = usize::try_from(self.u64()?).unwrap_or(usize::MAX);
        let bytes = self.take(length)?;
        // Tokens are bytes of UTF-8 in a disguise of their own; names and templates are UTF-8.
        String::from_utf8(bytes.to_vec()).map_err(|_| "a text in its header is not UTF-8".into())
    }

    fn value(&mut self, kind: u32, outermost: bool) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(i64::from(self.array::<1>()?[0])),
            1 => Value::Integer(i64::from(self.array::<1>()?[0] as i8)),
            2 => Value::Integer(i64::from(u16::from_le_bytes(self.array()?))),
            3 => Value::Integer(i64::from(i16::from_le_bytes(self.array()?))),
            4 => Value::Integer(i64::from(self.u32()?)),
            5 => Value::Integer(i64::from(i32::from_le_bytes(self.array()?))),
            6 => Value::Float(short(f32::from_le_bytes(self.array()?))),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 if outermost => self.list()?,
            10 => Value::Integer(i64::try_from(self.u64()?).map_err(|_| "a number beyond 2⁶³".to_owned())?),
            11 => Value::Integer(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of type {other} is not known here")),
        })
    }

    fn list(&mut self) -> Result<Value, String> {
        let (kind, count) = (self.u32()?, self.u64()?);
        self.items = self.items.saturating_add(count);
        if self.items > MAX_ITEMS {
            return Err(format!("a list of {count} items; {MAX_ITEMS} are allowed in all lists together"));
        }
        // An item has a byte at least, a text its length: what is reserved for the list is a few times the file at most.
        let least = if kind == 8 { 8 } else { 1 };
        if count > ((self.bytes.len() - self.at) / least) as u64 {
            self.ended = true;
            return Err("the file ends inside a list: truncated".into());
        }
        let mut items = (0..count).map(|_| self.value(kind, false));
        Ok(match kind {
            8 => {
                let mut texts = Vec::with_capacity(count as usize);
                items.try_for_each(|item| match item? {
                    Value::Text(text) => {
                        texts.push(text);
                        Ok(())
                    }
                    _ => Err("a list of texts holds something else".to_owned()),
                })?;
                Value::Texts(texts)
            }
            0..=5 | 10 | 11 => {
                let mut integers = Vec::with_capacity(count as usize);
                items.try_for_each(|item| match item? {
                    Value::Integer(integer) => {
                        integers.push(integer);
                        Ok(())
                    }
                    _ => Err("a list of integers holds something else".to_owned()),
                })?;
                Value::Integers(integers)
            }
            _ => {
                items.try_for_each(|item| item.map(drop))?;
                Value::Other
            }
        })
    }
}

/// The number that was meant by an f32: 1e-5, where the nearest f64 would be 9.999999747378752e-6.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Header, String> {
        super::parse(bytes, bytes.len()).map(|header| header.expect("all of it was given"))
    }

    /// A file of these keys and tensors: name, shape from the innermost, type, bytes.
    fn file(keys: &[(&str, u32, Vec<u8>)], tensors: &[(&str, &[u64], u32, Vec<u8>)]) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((tensors.len() as u64).to_le_bytes());
        out.extend((keys.len() as u64).to_le_bytes());
        for (key, kind, value) in keys {
            out.extend(text(key));
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        let mut data = Vec::new();
        for (name, shape, kind, bytes) in tensors {
            out.extend(text(name));
            out.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|extent| out.extend(extent.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    fn small() -> Vec<u8> {
        let keys = [("a.count", 4, 7u32.to_le_bytes().to_vec()), ("a.epsilon", 6, 1e-5f32.to_le_bytes().to_vec())];
        file(&keys, &[("x", &[32, 2], 8, vec![1; 68]), ("y", &[3], 0, vec![0; 12])])
    }

    #[test]
    fn a_header_is_read() {
        let bytes = small();
        let header = parse(&bytes).unwrap();
        assert_eq!((header.integer("a.count"), header.float("a.epsilon")), (Some(7), Some(1e-5)));
        let x = &header.tensors["x"];
        assert_eq!((&x.shape[..], x.stored, x.range.len()), (&[2, 32][..], BlockType::Q8_0, 68));
        assert_eq!(header.tensors["y"].range.end, bytes.len() - 20);
    }

    #[test]
    fn a_longer_header_is_asked_for() {
        let bytes = small();
        let first = (0..bytes.len()).find(|&length| super::parse(&bytes[..length], bytes.len()).unwrap().is_some());
        let data = parse(&bytes).unwrap().tensors["x"].range.start;
        // Behind the last number of the header comes only what aligns the data.
        assert!(first.is_some_and(|length| length <= data && data - length < 32), "{first:?} {data}");
    }

    #[test]
    fn lists_have_a_limit_together() {
        let half = [4u32.to_le_bytes().to_vec(), (MAX_ITEMS / 2).to_le_bytes().to_vec(), vec![0; 3 << 20]].concat();
        let two = [("a", 9, half.clone()), ("b", 9, half.clone())];
        assert!(parse(&file(&two, &[])).is_ok());
        let one_more = [4u32.to_le_bytes().to_vec(), 1u64.to_le_bytes().to_vec(), vec![0; 4]].concat();
        let three = [("a", 9, half.clone()), ("b", 9, half), ("c", 9, one_more)];
        assert!(parse(&file(&three, &[])).unwrap_err().contains("in all lists together"));
    }

    #[test]
    fn a_file_cut_anywhere_is_refused() {
        let bytes = small();
        for length in 0..bytes.len() - 20 {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn no_byte_changed_makes_it_panic() {
        let bytes = small();
        for at in 0..bytes.len() {
            for change in [1u8, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] ^= change;
                let _ = parse(&damaged);
            }
        }
    }

    #[test]
    fn what_the_rules_forbid_is_refused() {
        let refused = |bytes: &[u8], why: &str| {
            let problem = parse(bytes).unwrap_err();
            assert!(problem.contains(why), "{problem}");
        };
        refused(b"safetensors and more", "not a GGUF");
        refused(&file(&[], &[("x", &[32], 8, vec![0; 34]), ("x", &[32], 8, vec![0; 34])]), "twice");
        refused(&file(&[], &[("x", &[], 0, vec![0; 4])]), "0 dimensions");
        refused(&file(&[], &[("x", &[33], 8, vec![0; 34])]), "whole blocks");
        refused(&file(&[], &[("x", &[256], 10, vec![0; 84])]), "type 10");
        refused(&file(&[], &[("x", &[1 << 40, 1 << 40], 0, vec![])]), "larger");
        refused(&file(&[], &[("x", &[3], 0, vec![0; 44])]), "52 bytes follow the last tensor");
        refused(
            &file(&[], &[("x", &[3], 0, vec![0; 44]), ("y", &[1], 0, vec![0; 4])]),
            "`y` follows a hole of 52 bytes",
        );
        refused(&file(&[], &[("x", &[9], 0, vec![0; 4]), ("y", &[1], 0, vec![0; 4])]), "`y` overlaps");
        refused(&[&file(&[], &[])[..], &[0; 32]].concat(), "follow the last tensor");
        refused(
            &file(&[("k", 9, [8u32.to_le_bytes().to_vec(), u64::MAX.to_le_bytes().to_vec()].concat())], &[]),
            "a list",
        );
    }
}
