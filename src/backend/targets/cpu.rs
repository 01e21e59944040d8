//! The CPU, whoever owns the memory: rows of a tensor and vectorised arithmetic on them. The ops' `cpu` modules are written over these.

pub(crate) mod functions;
mod instructions;
pub(crate) mod lanes;
mod rows;
pub(crate) mod vector;

pub(crate) use instructions::{ByteProducts, InstructionSet};
pub(crate) use rows::{Ahead, RowTensor, Rows, copied, zeros};
