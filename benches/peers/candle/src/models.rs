//! The workloads of a whole model: candle-transformers' Qwen2 and BERT, from the folders of `benches/peers/models.py`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::{D, DType, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config as BertConfig};
use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
use serde_json::Value;
use tokenizers::{PaddingParams, Tokenizer, TruncationParams};

use crate::work::{CPU, Fail, Output, VOCABULARY, Work, dtype, size, text, token_ids};

fn folder(w: &Value) -> Result<(PathBuf, String, VarBuilder<'static>), Fail> {
    if dtype(w)? != DType::F32 {
        return Err("candle's models compute in one dtype, and their rotary angles are wrong in f16".into());
    }
    let folder = Path::new(text(w, "model")?);
    let weights = candle_core::safetensors::load(folder.join("model.safetensors"), &CPU)?;
    let config = std::fs::read_to_string(folder.join("config.json"))?;
    Ok((folder.to_owned(), config, VarBuilder::from_tensors(weights, DType::F32, &CPU)))
}

fn qwen(w: &Value, count: usize) -> Result<(ModelForCausalLM, Vec<Tensor>), Fail> {
    let (_, config, weights) = folder(w)?;
    let model = ModelForCausalLM::new(&serde_json::from_str::<Config>(&config)?, weights)?;
    let ids = token_ids(count, VOCABULARY).into_iter().map(|row| Tensor::from_vec(row, (1, count), &CPU));
    Ok((model, ids.collect::<candle_core::Result<_>>()?))
}

pub fn prefill(w: &Value) -> Result<Work, Fail> {
    let (mut model, ids) = qwen(w, size(w, "tokens")?)?;
    Ok(Work::new(move |i, _| {
        model.clear_kv_cache();
        Ok(Output::First(model.forward(&ids[i], 0)?))
    }))
}

pub fn generate(w: &Value) -> Result<Work, Fail> {
    let (prompt, tokens) = (size(w, "prompt")?, size(w, "tokens")?);
    let (mut model, ids) = qwen(w, prompt)?;
    Ok(Work::new(move |i, parts| {
        let greedy = |logits: Tensor| logits.flatten_all()?.argmax(D::Minus1)?.to_scalar::<u32>();
        let begun = Instant::now();
        model.clear_kv_cache();
        let mut made = vec![greedy(model.forward(&ids[i], 0)?)?];
        let first = Instant::now();
        while made.len() < tokens {
            let last = Tensor::from_slice(&made[made.len() - 1..], (1, 1), &CPU)?;
            made.push(greedy(model.forward(&last, prompt + made.len() - 1)?)?);
        }
        parts.insert("first_token", (first - begun).as_secs_f64());
        if tokens > 1 {
            parts.insert("per_token", first.elapsed().as_secs_f64() / (tokens - 1) as f64);
        }
        Ok(Output::Ids(made))
    }))
}

/// All texts in one batch, padded to the longest; tokenizing, mean pooling and normalising included.
pub fn embed(w: &Value) -> Result<Work, Fail> {
    let (folder, config, weights) = folder(w)?;
    let model = BertModel::load(weights, &serde_json::from_str::<BertConfig>(&config)?)?;
    let texts: Vec<Vec<String>> = serde_json::from_value(w["texts"].clone())?;
    let mut tokenizer = Tokenizer::from_file(folder.join("tokenizer.json")).map_err(|error| error.to_string())?;
    tokenizer.with_padding(Some(PaddingParams::default()));
    let truncation = TruncationParams { max_length: 512, ..Default::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|error| error.to_string())?;
    Ok(Work::new(move |i, _| {
        let encoded = tokenizer.encode_batch(texts[i].clone(), true).map_err(|error| error.to_string())?;
        let stacked = |part: fn(&tokenizers::Encoding) -> &[u32]| {
            let rows = encoded.iter().map(|row| Tensor::new(part(row), &CPU));
            Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)
        };
        let (ids, mask) = (stacked(|row| row.get_ids())?, stacked(|row| row.get_attention_mask())?);
        let hidden = model.forward(&ids, &ids.zeros_like()?, Some(&mask))?;
        let weights = mask.to_dtype(DType::F32)?.unsqueeze(2)?;
        let mean = hidden.broadcast_mul(&weights)?.sum(1)?.broadcast_div(&weights.sum(1)?)?;
        Ok(Output::First(mean.broadcast_div(&mean.sqr()?.sum_keepdim(1)?.sqrt()?)?))
    }))
}
