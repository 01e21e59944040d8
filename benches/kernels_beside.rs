//! Our side of `kernels_beside.py`, which times peers and us in turns: a request is a line of JSON on stdin, an op, its rows, their width
//! and how many calls; the answer the seconds of a call and some of its results. Without `KERNELS_BESIDE` there is nothing to do.

use std::io::{BufRead, Write};
use std::time::Instant;

use burn::tensor::{Tensor, TensorData};
use firebrick::KernelBackend;
use firebrick::backend::ops::{layer_norm::layer_norm, rms_norm::rms_norm, softmax::softmax};
use firebrick::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Request {
    op: String,
    rows: usize,
    width: usize,
    calls: usize,
}

/// Calls before the clock starts.
const WARM_UP: usize = 3;

struct Serve;

/// As `kernels_beside.py` makes them: every value different, all small.
fn values(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|at| ((at * 7919 + seed) % 2003) as f32 / 1001.0 - 1.0).collect()
}

fn answer<B: KernelBackend>(request: &Request, device: &B::Device) -> (f64, Vec<f32>) {
    let Request { op, rows, width, calls } = request;
    let matrix = TensorData::new(values(rows * width, 1), [*rows, *width]);
    let x = Tensor::<B, 2>::from_data(matrix, device);
    let vector = |seed| Tensor::<B, 1>::from_data(TensorData::new(values(*width, seed), [*width]), device);
    let (weight, bias) = (vector(2), vector(3));
    let compute = || match op.as_str() {
        "softmax" => softmax(x.clone(), 1.0, None),
        "layer_norm" => layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5),
        "rms_norm" => rms_norm(x.clone(), weight.clone(), 1e-6),
        other => panic!("no op {other}"),
    };
    // What is allocated for the first time is not what is timed.
    let mut result = compute();
    (0..WARM_UP).for_each(|_| drop(compute()));
    let begun = Instant::now();
    for _ in 0..*calls {
        result = compute();
    }
    B::sync(device).expect("the device finishes");
    let seconds = begun.elapsed().as_secs_f64() / *calls as f64;
    (seconds, result.slice([0..1, 0..4]).into_data().iter::<f32>().collect())
}

impl Job for Serve {
    type Output = Result<(), Box<dyn std::error::Error>>;

    fn run<B: TrainBackend>(self, device: B::Device) -> Self::Output {
        for line in std::io::stdin().lock().lines() {
            let request: Request = serde_json::from_str(&line?)?;
            let answers = B::InnerBackend::concurrently(vec![()], |()| answer::<B::InnerBackend>(&request, &device));
            let (seconds, first) = &answers[0];
            writeln!(std::io::stdout(), "{}", serde_json::json!({"seconds": seconds, "first": first}))?;
        }
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::var_os("KERNELS_BESIDE") {
        Some(_) => dispatch(BackendName::named("flex")?, Serve)?,
        None => Ok(()),
    }
}
