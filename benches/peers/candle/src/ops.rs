//! The workloads of one op or a few, by candle's own kernels.

use candle_core::{DType, Module, Tensor};
use candle_nn::Linear;
use candle_nn::ops::{layer_norm, rms_norm, silu, softmax_last_dim};
use serde_json::Value;

use crate::work::{CPU, Fail, Work, constant, dtype, inputs, size, token_ids};

pub fn prepare(name: &str, w: &Value) -> Result<Work, Fail> {
    match name {
        "softmax" | "layer_norm" | "rms_norm" | "copy" => row_op(name, w),
        "matmul" => matmul(w),
        "lora_forward" => lora_forward(w),
        "attention" => attention(w),
        "embedding" => embedding(w),
        "rope" => rope(w),
        "mlp" => mlp(w),
        _ => Err(format!("{name} has no counterpart here").into()),
    }
}

fn row_op(name: &str, w: &Value) -> Result<Work, Fail> {
    let (width, dtype) = (size(w, "width")?, dtype(w)?);
    let x = inputs(&[size(w, "rows")?, width], dtype)?;
    let (weight, bias) = (constant(&[width], 2, dtype)?, constant(&[width], 3, dtype)?);
    Ok(match name {
        "softmax" => Work::rows(move |i| softmax_last_dim(&x[i])),
        "layer_norm" => Work::rows(move |i| layer_norm(&x[i], &weight, &bias, 1e-5)),
        "rms_norm" => Work::rows(move |i| rms_norm(&x[i], &weight, 1e-6)),
        _ => Work::rows(move |i| x[i].copy()),
    })
}

/// A weight without bias.
fn linear(shape: [usize; 2], seed: usize, dtype: DType) -> candle_core::Result<Linear> {
    Ok(Linear::new(constant(&shape, seed, dtype)?, None))
}

fn matmul(w: &Value) -> Result<Work, Fail> {
    let (rows, width, outputs, dtype) = (size(w, "rows")?, size(w, "inputs")?, size(w, "outputs")?, dtype(w)?);
    let (x, weight) = (inputs(&[rows, width], dtype)?, linear([outputs, width], 2, dtype)?);
    Ok(Work::rows(move |i| weight.forward(&x[i])))
}

fn lora_forward(w: &Value) -> Result<Work, Fail> {
    let (features, rank, dtype) = (size(w, "features")?, size(w, "rank")?, dtype(w)?);
    let x = inputs(&[size(w, "rows")?, features], dtype)?;
    let weight = linear([features, features], 2, dtype)?;
    let (a, b) = (linear([rank, features], 3, dtype)?, linear([features, rank], 4, dtype)?);
    Ok(Work::rows(move |i| weight.forward(&x[i])? + (b.forward(&a.forward(&x[i])?)? * 2.0)?))
}

/// As candle's decoders compute it: key and value heads repeated, then two products and a softmax. (candle-nn's fused attention for the
/// CPU took three to four times as long for 128 and 512 tokens.)
fn attention(w: &Value) -> Result<Work, Fail> {
    let (tokens, heads, kv_heads, dim) = (size(w, "tokens")?, size(w, "heads")?, size(w, "kv_heads")?, size(w, "dim")?);
    let dtype = dtype(w)?;
    let q = inputs(&[tokens, heads, dim], dtype)?;
    let (k, v) = (constant(&[tokens, kv_heads, dim], 2, dtype)?, constant(&[tokens, kv_heads, dim], 3, dtype)?);
    let mask = (0..tokens * tokens).map(|at| if at % tokens > at / tokens { f32::NEG_INFINITY } else { 0.0 });
    let mask = Tensor::from_vec(mask.collect(), (tokens, tokens), &CPU)?.to_dtype(dtype)?;
    let heads_first = |x: &Tensor| x.transpose(0, 1)?.unsqueeze(0)?.contiguous();
    Ok(Work::rows(move |i| {
        let repeated = |x| candle_transformers::utils::repeat_kv(x, heads / kv_heads)?.contiguous();
        let (k, v) = (repeated(heads_first(&k)?)?, repeated(heads_first(&v)?)?);
        let scores = (heads_first(&q[i])?.matmul(&k.transpose(2, 3)?)? * (dim as f64).powf(-0.5))?;
        softmax_last_dim(&scores.broadcast_add(&mask)?)?.matmul(&v)?.squeeze(0)?.transpose(0, 1)
    }))
}

fn embedding(w: &Value) -> Result<Work, Fail> {
    let (tokens, vocabulary) = (size(w, "tokens")?, size(w, "vocabulary")?);
    let table = constant(&[vocabulary, size(w, "hidden")?], 2, dtype(w)?)?;
    let ids = token_ids(tokens, vocabulary).into_iter().map(|row| Tensor::from_vec(row, tokens, &CPU));
    let ids = ids.collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Work::rows(move |i| table.embedding(&ids[i])))
}

fn rope(w: &Value) -> Result<Work, Fail> {
    let (tokens, heads, dim, dtype) = (size(w, "tokens")?, size(w, "heads")?, size(w, "dim")?, dtype(w)?);
    let x = inputs(&[1, tokens, heads, dim], dtype)?;
    let half = dim / 2;
    let angles = (0..tokens * half).map(|at| (at / half) as f64 * 1e6f64.powf(-((at % half) as f64) / half as f64));
    let angles = Tensor::from_vec(angles.collect(), (tokens, half), &CPU)?;
    let (cos, sin) = (angles.cos()?.to_dtype(dtype)?, angles.sin()?.to_dtype(dtype)?);
    Ok(Work::rows(move |i| candle_nn::rotary_emb::rope_thd(&x[i], &cos, &sin)))
}

fn mlp(w: &Value) -> Result<Work, Fail> {
    let (hidden, wide, dtype) = (size(w, "hidden")?, size(w, "intermediate")?, dtype(w)?);
    let x = inputs(&[size(w, "tokens")?, hidden], dtype)?;
    let scaled = |shape, seed| -> candle_core::Result<_> {
        let weight = constant(shape, seed, DType::F32)?.affine(0.05, 0.0)?;
        Ok(Linear::new(weight.to_dtype(dtype)?, None))
    };
    let (gate, up, down) = (scaled(&[wide, hidden], 2)?, scaled(&[wide, hidden], 3)?, scaled(&[hidden, wide], 4)?);
    Ok(Work::rows(move |i| down.forward(&(silu(&gate.forward(&x[i])?)? * up.forward(&x[i])?)?)))
}
