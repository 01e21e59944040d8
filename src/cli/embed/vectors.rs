//! Where vectors go: lines of JSON, an npy matrix or a Parquet file, each written as the vectors come. A file has its name only once it is
//! whole.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use firebrick::prelude::*;
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{BoolType, FloatType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde::Serialize;

use crate::cli::output::{Destination, named};
use crate::cli::wrong_usage;

/// The form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// `{"index","tokens","truncated","embedding"}`, a line each
    Jsonl,
    /// A matrix of f32 for numpy, a row for each row of the input
    Npy,
    /// Columns index, tokens, truncated and embedding
    Parquet,
}

/// An open output.
pub enum Vectors {
    Jsonl { out: Box<dyn Write>, file: Option<Temporary> },
    Npy { out: BufWriter<File>, file: Temporary, rows: u64, width: usize },
    Parquet { out: Option<SerializedFileWriter<File>>, file: Temporary },
}

#[derive(Serialize)]
struct Line<'a> {
    index: usize,
    tokens: usize,
    truncated: bool,
    embedding: &'a [f32],
}

impl Vectors {
    /// Opens the output; without a path it is stdout.
    pub fn create(path: Option<&Path>, format: Format, width: usize) -> Result<Self> {
        let Some(path) = path else {
            let out = Box::new(BufWriter::new(std::io::stdout()));
            return Ok(Self::Jsonl { out, file: None });
        };
        let path = match Destination::of(path)? {
            Destination::File(path) => path,
            // A device or a pipe, which is written to as it is.
            Destination::Stream if format == Format::Jsonl => {
                let open = File::options().write(true).open(path).with_context(|| named(path))?;
                return Ok(Self::Jsonl { out: Box::new(BufWriter::new(open)), file: None });
            }
            Destination::Stream => bail!("{}: is no file, and this format needs one; jsonl does not", named(path)),
        };
        let (file, open) = Temporary::create(&path)?;
        Ok(match format {
            Format::Jsonl => Self::Jsonl { out: Box::new(BufWriter::new(open)), file: Some(file) },
            Format::Npy => {
                let mut out = BufWriter::new(open);
                out.write_all(&npy_header(0, width))?;
                Self::Npy { out, file, rows: 0, width }
            }
            Format::Parquet => {
                let schema = Arc::new(parquet_schema()?);
                // Two floats are seldom equal: a dictionary of them would only be in the way.
                let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
                let out = SerializedFileWriter::new(open, schema, Arc::new(properties))?;
                Self::Parquet { out: Some(out), file }
            }
        })
    }

    /// The file in the making, of an output that is one.
    pub fn unfinished(&self) -> Option<&Path> {
        let file = match self {
            Self::Jsonl { file, .. } => file.as_ref(),
            Self::Npy { file, .. } | Self::Parquet { file, .. } => Some(file),
        };
        file.map(|file| &*file.path)
    }

    /// Writes rows, by their number. One without a vector is left out, but in a matrix it is a row of zeros, so that the others keep
    /// their numbers.
    pub fn write(&mut self, rows: &[(usize, Option<Embedding>)]) -> Result<()> {
        match self {
            Self::Jsonl { out, .. } => {
                for (index, embedding) in rows {
                    let Some(Embedding { vector, tokens, truncated }) = embedding else { continue };
                    let line = Line { index: *index, tokens: *tokens, truncated: *truncated, embedding: vector };
                    serde_json::to_writer(&mut *out, &line)?;
                    out.write_all(b"\n")?;
                }
                out.flush()?;
            }
            Self::Npy { out, rows: count, width, .. } => {
                for (_, embedding) in rows {
                    let zeros = vec![0.0; if embedding.is_some() { 0 } else { *width }];
                    let vector = embedding.as_ref().map_or(&zeros, |embedding| &embedding.vector);
                    for value in vector {
                        out.write_all(&value.to_le_bytes())?;
                    }
                    *count += 1;
                }
            }
            Self::Parquet { out: Some(out), .. } => write_row_group(out, rows)?,
            Self::Parquet { out: None, .. } => {}
        }
        Ok(())
    }

    /// Gives the file its name.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Jsonl { mut out, file } => {
                out.flush()?;
                drop(out);
                file.map_or(Ok(()), Temporary::keep)
            }
            Self::Npy { mut out, file, rows, width } => {
                out.flush()?;
                out.seek(SeekFrom::Start(0))?;
                out.write_all(&npy_header(rows, width))?;
                out.flush()?;
                drop(out);
                file.keep()
            }
            Self::Parquet { out, file } => {
                if let Some(out) = out {
                    out.close()?;
                }
                file.keep()
            }
        }
    }
}

/// The header of version 1.0 of the format, as long for any number of rows.
fn npy_header(rows: u64, width: usize) -> Vec<u8> {
    const LENGTH: usize = 128;
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((LENGTH - 10) as u16).to_le_bytes());
    header.extend(format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {width}), }}").bytes());
    header.resize(LENGTH - 1, b' ');
    header.push(b'\n');
    header
}

fn parquet_schema() -> Result<Type> {
    let required = |name: &str, physical| {
        let column = Type::primitive_type_builder(name, physical).with_repetition(Repetition::REQUIRED).build();
        column.map(Arc::new)
    };
    let list = Type::group_type_builder("list")
        .with_repetition(Repetition::REPEATED)
        .with_fields(vec![required("element", Physical::FLOAT)?])
        .build()?;
    let embedding = Type::group_type_builder("embedding")
        .with_repetition(Repetition::REQUIRED)
        .with_logical_type(Some(LogicalType::List))
        .with_fields(vec![Arc::new(list)])
        .build()?;
    let columns = vec![
        required("index", Physical::INT64)?,
        required("tokens", Physical::INT64)?,
        required("truncated", Physical::BOOLEAN)?,
        Arc::new(embedding),
    ];
    Ok(Type::group_type_builder("embeddings").with_fields(columns).build()?)
}

fn write_row_group(out: &mut SerializedFileWriter<File>, rows: &[(usize, Option<Embedding>)]) -> Result<()> {
    let rows: Vec<(usize, &Embedding)> =
        rows.iter().filter_map(|(index, embedding)| Some((*index, embedding.as_ref()?))).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let mut group = out.next_row_group()?;
    let mut number = 0;
    while let Some(mut column) = group.next_column()? {
        let integers =
            |of: fn(&(usize, &Embedding)) -> usize| rows.iter().map(|row| of(row) as i64).collect::<Vec<_>>();
        match number {
            0 => {
                column.typed::<Int64Type>().write_batch(&integers(|(index, _)| *index), None, None)?;
            }
            1 => {
                column.typed::<Int64Type>().write_batch(&integers(|(_, e)| e.tokens), None, None)?;
            }
            2 => {
                let truncated: Vec<bool> = rows.iter().map(|(_, embedding)| embedding.truncated).collect();
                column.typed::<BoolType>().write_batch(&truncated, None, None)?;
            }
            _ => {
                let values: Vec<f32> = rows.iter().flat_map(|(_, e)| e.vector.iter().copied()).collect();
                // Dremel's levels: every element is there, and a vector's first one begins a new row.
                let defined = vec![1; values.len()];
                let repeated: Vec<i16> =
                    rows.iter().flat_map(|(_, e)| (0..e.vector.len()).map(|at| i16::from(at > 0))).collect();
                column.typed::<FloatType>().write_batch(&values, Some(&defined), Some(&repeated))?;
            }
        }
        column.close()?;
        number += 1;
    }
    group.close()?;
    Ok(())
}

/// A file in the making, removed unless it is kept.
pub struct Temporary {
    path: PathBuf,
    wanted: PathBuf,
    kept: bool,
}

impl Temporary {
    fn create(wanted: &Path) -> Result<(Self, File)> {
        let Some(file_name) = wanted.file_name() else { wrong_usage!("{}: is not the name of a file", named(wanted)) };
        // A process that was killed may have had this number before, and left its file.
        let mut count = 0;
        let (path, open) = loop {
            let name = format!(".{}.{}-{count}.tmp", file_name.to_string_lossy(), std::process::id());
            let path = wanted.with_file_name(name);
            match File::create_new(&path) {
                Err(problem) if problem.kind() == std::io::ErrorKind::AlreadyExists => count += 1,
                created => break (path, created.with_context(|| named(wanted))?),
            }
        };
        Ok((Self { path, wanted: wanted.into(), kept: false }, open))
    }

    fn keep(mut self) -> Result<()> {
        let name = || named(&self.wanted);
        std::fs::File::open(&self.path).and_then(|file| file.sync_all()).with_context(name)?;
        std::fs::rename(&self.path, &self.wanted).with_context(name)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            // What made the writing fail is being reported already.
            drop(std::fs::remove_file(&self.path));
        }
    }
}
