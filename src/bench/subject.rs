//! Our side of each workload: an op or a model on a backend, ready to be called on numbered inputs.

mod model;
mod op;
mod texts;

use std::marker::PhantomData;
use std::path::PathBuf;
use std::time::Instant;

use firebrick_backend::roof::Reading;
use firebrick_backend::{KernelBackend, TrainBackend};

pub(super) use model::decoder;
pub use texts::texts;

use super::measure::{Runner, Sample, Timed};
use super::workload::{Kind, Workload};

/// The folders that peers load too; without them weights are random, of the same shape.
#[derive(Clone, Debug, Default)]
pub struct Models {
    /// Of Qwen2.5-0.5B's shape.
    pub qwen: Option<PathBuf>,
    /// Of E5-small-v2's shape.
    pub e5: Option<PathBuf>,
}

/// The workload on a backend, with inputs and weights in its memory; `eager` says that this backend computes within each call.
///
/// # Errors
/// Why this backend cannot do it.
pub fn runner<B: TrainBackend>(
    workload: &Workload,
    models: &Models,
    device: &B::Device,
    eager: bool,
) -> Result<Box<dyn Runner + Send>, String> {
    if !B::supports_dtype(device, workload.dtype) && !B::InnerBackend::reads_weights(device, workload.dtype) {
        return Err(format!("the device has no {:?}", workload.dtype));
    }
    Ok(match workload.kind {
        Kind::Rows { .. }
        | Kind::Matmul { .. }
        | Kind::LoraForward { .. }
        | Kind::Attention { .. }
        | Kind::DecodeAttention { .. }
        | Kind::Embedding { .. }
        | Kind::Rope { .. }
        | Kind::Mlp { .. }
        | Kind::HeadLoss { .. } => Box::new(Timed(op::op::<B::InnerBackend>(workload, device, eager))),
        Kind::Layer { .. } => Box::new(Timed(model::layer::<B::InnerBackend>(workload, device, eager)?)),
        Kind::Prefill { tokens } => {
            Box::new(Timed(model::prefill::<B::InnerBackend>(workload, tokens, models, device)?))
        }
        Kind::Generate { prompt, tokens } => {
            Box::new(Timed(model::generate::<B::InnerBackend>(workload, prompt, tokens, models, device)?))
        }
        Kind::NextToken { after, cached: false } => {
            Box::new(Timed(model::prefill::<B::InnerBackend>(workload, after + 1, models, device)?))
        }
        Kind::NextToken { after, cached: true } => {
            Box::new(Timed(model::next_token::<B::InnerBackend>(workload, after, models, device)?))
        }
        Kind::Sampling => Box::new(Timed(model::sampling()?)),
        Kind::LoraStep { tokens, rank, half, passes } => {
            Box::new(Timed(model::lora_step::<B>(workload, [tokens, rank], half, passes, models, device)?))
        }
        Kind::Embed { texts, mixed } => {
            Box::new(Timed(model::embed::<B::InnerBackend>(workload, texts, mixed, models, device)?))
        }
    })
}

/// Seconds of reading memory for which it is timed, beside a call that may take longer.
const READING_SECONDS: f64 = 0.3;

/// Reading so many bytes of memory, on the threads that this backend computes on.
pub fn reading<B: KernelBackend>(bytes: usize) -> Box<dyn Runner + Send> {
    struct Reader<B>(Reading, PhantomData<fn(B)>);

    impl<B: KernelBackend> Runner for Reader<B> {
        fn sample(&mut self, calls: usize, _: usize) -> Result<Sample, String> {
            // Once before the clock runs: the tables of its pages are in no cache after other work.
            let (value, begun) = (self.0.read::<B>(), Instant::now());
            let mut passes = 0;
            while passes == 0 || begun.elapsed().as_secs_f64() < READING_SECONDS {
                std::hint::black_box(self.0.read::<B>());
                passes += 1;
            }
            let seconds = begun.elapsed().as_secs_f64() / f64::from(passes) * calls as f64;
            Ok(Sample { seconds, values: vec![f64::from(value)], ..Sample::default() })
        }
    }
    Box::new(Reader(Reading::new(bytes), PhantomData::<fn(B)>))
}
