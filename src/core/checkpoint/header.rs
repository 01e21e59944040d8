//! The header of a safetensors file: scanned and held to limits before anything of the size it claims is allocated. Where
//! the bytes come from, and what becomes of the tensors, is in `safetensors.rs`.
//!
//! A scan of our own, because the header decides which bytes become which tensor and a doubled name or key leaves that to
//! the reader's taste: here it is an error, as are overlaps, holes and bytes behind the last tensor.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use burn::tensor::{BoolStore, DType};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The most dimensions a tensor of a checkpoint may have.
const MAX_RANK: usize = 16;
/// The most bytes of a tensor's name; messages show it whole.
const MAX_NAME: usize = 1_000;

/// How much a header may claim before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the JSON header.
    pub header_bytes: usize,
    /// Tensors listed in it.
    pub tensors: usize,
}

impl Limits {
    /// For the weights of a model: 16 MB and 100,000 tensors.
    pub const MODEL: Self = Self { header_bytes: 16_000_000, tensors: 100_000 };
    /// For an adapter: 1 MB and 10,000 tensors.
    pub const ADAPTER: Self = Self { header_bytes: 1_000_000, tensors: 10_000 };
}

/// One tensor as the header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub dtype: DType,
    pub shape: Vec<usize>,
    /// Bytes from the start of the file.
    pub range: Range<usize>,
    /// The heads that the rows belong to, where each has its two halves interleaved: row `2i` the `i`th, row `2i + 1` the `i`th of the second.
    pub interleaved: Option<usize>,
}

/// A header that kept all the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, String>,
    pub tensors: BTreeMap<String, Entry>,
}

/// The dtypes that both the format and Burn know, with the format's names for them.
const DTYPES: [(&str, DType); 13] = [
    ("F64", DType::F64),
    ("F32", DType::F32),
    ("F16", DType::F16),
    ("BF16", DType::BF16),
    ("I64", DType::I64),
    ("I32", DType::I32),
    ("I16", DType::I16),
    ("I8", DType::I8),
    ("U64", DType::U64),
    ("U32", DType::U32),
    ("U16", DType::U16),
    ("U8", DType::U8),
    ("BOOL", DType::Bool(BoolStore::Native)),
];

/// The name that safetensors gives to `dtype`; none for those it has no name for.
pub(super) fn dtype_name(dtype: DType) -> Option<&'static str> {
    DTYPES.iter().find(|(_, known)| *known == dtype).map(|(name, _)| *name)
}

/// `F16 [2, 3]`: how messages show a tensor.
pub(super) fn describe(dtype: DType, shape: &[usize]) -> String {
    format!("{} {shape:?}", dtype_name(dtype).unwrap_or("unknown"))
}

/// The header's length as the first eight bytes give it, checked against the file and the limits.
pub(super) fn length(first: [u8; 8], file_bytes: usize, limits: &Limits) -> Result<usize, String> {
    let claimed = u64::from_le_bytes(first);
    let length = usize::try_from(claimed).unwrap_or(usize::MAX);
    if length > limits.header_bytes {
        return Err(format!("its header claims {claimed} bytes; {} are allowed", limits.header_bytes));
    }
    if length > file_bytes.saturating_sub(8) {
        return Err(format!("its header claims {claimed} bytes but the file has {file_bytes}: truncated"));
    }
    Ok(length)
}

/// Reads the JSON of a header from `json`; `file_bytes` is the whole file's length.
pub(super) fn parse(json: &[u8], file_bytes: usize, limits: &Limits) -> Result<Header, String> {
    if json.first() != Some(&b'{') {
        return Err("its header is not a JSON object".into());
    }
    let text = std::str::from_utf8(json).map_err(|error| format!("its header is not UTF-8: {error}"))?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let raw = reader
        .deserialize_map(HeaderVisitor { limits: *limits })
        .and_then(|raw| reader.end().map(|()| raw))
        .map_err(|error| format!("its header cannot be read: {error}"))?;

    let data_start = 8 + json.len();
    let data_bytes = file_bytes.checked_sub(data_start).ok_or("the file ends inside its header")?;
    let entry = |(name, tensor): (String, RawTensor)| match checked(tensor, data_start, data_bytes) {
        Ok(entry) => Ok((name, entry)),
        Err(problem) => Err(format!("tensor `{name}` {problem}")),
    };
    let tensors = raw.tensors.into_iter().map(entry).collect::<Result<BTreeMap<_, _>, _>>()?;
    covered(&tensors, data_start, file_bytes)?;
    Ok(Header { metadata: raw.metadata, tensors })
}

fn checked(tensor: RawTensor, data_start: usize, data_bytes: usize) -> Result<Entry, String> {
    let known = DTYPES.iter().find(|(name, _)| *name == tensor.dtype);
    let Some((_, dtype)) = known else {
        return Err(format!("has dtype {}, which is not supported", shown(&tensor.dtype)));
    };
    let elements = tensor.shape.0.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent));
    let bytes = elements.and_then(|elements| elements.checked_mul(dtype.size()));
    let Some(bytes) = bytes else {
        return Err(format!("of shape {:?} is larger than any memory", tensor.shape.0));
    };
    let [begin, end] = tensor.data_offsets;
    if begin > end || end > data_bytes {
        return Err(format!("lies at bytes {begin}..{end} of {data_bytes} bytes of data"));
    }
    if end - begin != bytes {
        let description = describe(*dtype, &tensor.shape.0);
        return Err(format!("is {description}, which takes {bytes} bytes, but has {}", end - begin));
    }
    Ok(Entry { dtype: *dtype, shape: tensor.shape.0, range: data_start + begin..data_start + end, interleaved: None })
}

/// No overlap, no hole, nothing behind the last tensor.
fn covered(tensors: &BTreeMap<String, Entry>, data_start: usize, file_bytes: usize) -> Result<(), String> {
    let mut ranges: Vec<_> = tensors.iter().map(|(name, entry)| (entry.range.start, entry.range.end, name)).collect();
    ranges.sort_unstable();
    let mut end = data_start;
    for (start, next, name) in ranges {
        if start != end {
            let what = if start < end { "overlaps the tensor before it" } else { "follows a hole" };
            return Err(format!("tensor `{name}` {what} at byte {}", start - data_start));
        }
        end = next;
    }
    if end != file_bytes {
        return Err(format!("{} bytes follow the last tensor", file_bytes - end));
    }
    Ok(())
}

/// A foreign string, short enough for a message.
pub(super) fn shown(text: &str) -> String {
    let short: String = text.chars().take(40).collect();
    format!("`{}`", short.escape_debug())
}

struct RawHeader {
    metadata: BTreeMap<String, String>,
    /// By name, each once.
    tensors: Vec<(String, RawTensor)>,
}

// A repeated or unknown key inside a tensor's description is an error of the derived code.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: RawShape,
    data_offsets: [usize; 2],
}

struct RawShape(Vec<usize>);

impl<'de> Deserialize<'de> for RawShape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = RawShape;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "a shape of at most {MAX_RANK} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<RawShape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = sequence.next_element()? {
                    if shape.len() == MAX_RANK {
                        return Err(A::Error::custom(format!("a shape has more than {MAX_RANK} dimensions")));
                    }
                    shape.push(extent);
                }
                Ok(RawShape(shape))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct HeaderVisitor {
    limits: Limits,
}

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a safetensors header")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut metadata = None;
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                let UniqueMap(strings) = map.next_value()?;
                if metadata.replace(strings).is_some() {
                    return Err(A::Error::custom("`__metadata__` appears twice"));
                }
                continue;
            }
            if name.len() > MAX_NAME || name.contains(char::is_control) {
                let problem =
                    format!("tensor {} has a name of control characters or more than {MAX_NAME} bytes", shown(&name));
                return Err(A::Error::custom(problem));
            }
            if tensors.len() == self.limits.tensors {
                return Err(A::Error::custom(format!("it lists more than {} tensors", self.limits.tensors)));
            }
            tensors.push((name, map.next_value::<RawTensor>()?));
        }
        tensors.sort_by(|(one, _), (other, _)| one.cmp(other));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(A::Error::custom(format!("tensor {} appears twice", shown(&pair[0].0))));
        }
        Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
    }
}

/// A JSON object of strings in which no key appears twice, of as many as a model may have tensors.
pub(super) struct UniqueMap(pub BTreeMap<String, String>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = UniqueMap;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut strings = BTreeMap::new();
                while let Some(key) = map.next_key::<String>()? {
                    if strings.contains_key(&key) {
                        // The rest is read only so that the message can give the place of the first repetition.
                        map.next_value::<IgnoredAny>()?;
                        return Err(A::Error::custom(format!("{} appears twice", shown(&key))));
                    }
                    if strings.len() == Limits::MODEL.tensors {
                        return Err(A::Error::custom(format!("it has more than {} entries", Limits::MODEL.tensors)));
                    }
                    strings.insert(key, map.next_value()?);
                }
                Ok(UniqueMap(strings))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}
