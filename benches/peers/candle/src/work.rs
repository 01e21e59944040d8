//! A prepared workload, its inputs, and the values of what it computed.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

pub type Fail = Box<dyn std::error::Error>;
/// Seconds of parts of the last call.
pub type Parts = BTreeMap<&'static str, f64>;
type Call = Box<dyn FnMut(usize, &mut Parts) -> Result<Output, Fail>>;

/// Distinct inputs of a workload, used in turn.
pub const INPUTS: usize = 4;
/// Ids of model workloads stay below this.
pub const VOCABULARY: usize = 4000;
pub const CPU: Device = Device::Cpu;

pub enum Output {
    /// Values: four of the first row, four of the last; a row is the last axis.
    Rows(Tensor),
    /// Values: the first eight.
    First(Tensor),
    Ids(Vec<u32>),
}

impl Output {
    pub fn values(&self) -> Result<Value, Fail> {
        let floats = |tensor: Tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>();
        Ok(match self {
            Self::Rows(tensor) => {
                let (mut first, mut last) = (tensor.clone(), tensor.clone());
                while first.rank() > 1 {
                    (first, last) = (first.get(0)?, last.get(last.dim(0)? - 1)?);
                }
                Value::from([floats(first.narrow(0, 0, 4)?)?, floats(last.narrow(0, 0, 4)?)?].concat())
            }
            Self::First(tensor) => Value::from(floats(tensor.flatten_all()?.narrow(0, 0, 8)?)?),
            Self::Ids(ids) => Value::from(&ids[..ids.len().min(8)]),
        })
    }
}

pub struct Work {
    pub call: Call,
    pub parts: Parts,
}

impl Work {
    pub fn new(call: impl FnMut(usize, &mut Parts) -> Result<Output, Fail> + 'static) -> Self {
        Self { call: Box::new(call), parts: Parts::new() }
    }

    /// A workload whose result is rows.
    pub fn rows(mut compute: impl FnMut(usize) -> candle_core::Result<Tensor> + 'static) -> Self {
        Self::new(move |input, _| Ok(Output::Rows(compute(input)?)))
    }
}

pub fn size(request: &Value, key: &str) -> Result<usize, Fail> {
    Ok(request[key].as_u64().ok_or_else(|| format!("{key} is missing"))? as usize)
}

pub fn text<'a>(request: &'a Value, key: &str) -> Result<&'a str, Fail> {
    Ok(request[key].as_str().ok_or_else(|| format!("{key} is missing"))?)
}

pub fn dtype(request: &Value) -> Result<DType, Fail> {
    match request["dtype"].as_str() {
        None | Some("f32") => Ok(DType::F32),
        Some("f16") => Ok(DType::F16),
        Some(other) => Err(format!("dtype {other}").into()),
    }
}

pub fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect()
}

pub fn constant(shape: &[usize], seed: usize, dtype: DType) -> candle_core::Result<Tensor> {
    Tensor::from_vec(values(shape.iter().product(), seed), shape, &CPU)?.to_dtype(dtype)
}

pub fn inputs(shape: &[usize], dtype: DType) -> candle_core::Result<Vec<Tensor>> {
    (0..INPUTS).map(|number| constant(shape, 1 + 17 * number, dtype)).collect()
}

/// Those of each input.
pub fn token_ids(count: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    (0..INPUTS).map(|number| (0..count).map(|at| ((at * 7919 + 31 * number) % vocabulary) as u32).collect()).collect()
}
