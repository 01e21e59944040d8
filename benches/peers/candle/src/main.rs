//! Answers as `benches/kernels_beside.rs` does, with candle's own kernels.

use std::io::BufRead;
use std::time::Instant;

use candle_core::{Device, Tensor};
use candle_nn::ops::{layer_norm, rms_norm, softmax_last_dim};

fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for line in std::io::stdin().lock().lines() {
        let request: serde_json::Value = serde_json::from_str(&line?)?;
        let size = |key: &str| request[key].as_u64().map(|value| value as usize).ok_or("a size is missing");
        let (rows, width, calls) = (size("rows")?, size("width")?, size("calls")?);
        let x = Tensor::from_vec(values(rows * width, 1), (rows, width), &Device::Cpu)?;
        let vector = |seed| Tensor::from_vec(values(width, seed), width, &Device::Cpu);
        let (weight, bias) = (vector(2)?, vector(3)?);
        let compute = || match request["op"].as_str() {
            Some("softmax") => softmax_last_dim(&x),
            Some("layer_norm") => layer_norm(&x, &weight, &bias, 1e-5),
            Some("rms_norm") => rms_norm(&x, &weight, 1e-6),
            other => panic!("no op {other:?}"),
        };
        let mut result = compute()?;
        for _ in 0..3 {
            compute()?;
        }
        let begun = Instant::now();
        for _ in 0..calls {
            result = compute()?;
        }
        let seconds = begun.elapsed().as_secs_f64() / calls as f64;
        let first: Vec<f32> = result.narrow(0, 0, 1)?.narrow(1, 0, 4)?.flatten_all()?.to_vec1()?;
        println!("{}", serde_json::json!({"seconds": seconds, "first": first}));
    }
    Ok(())
}
