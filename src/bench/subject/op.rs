//! Ops on tensors made of `expected::values`, the ones that models call.

use std::ops::Range;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Int, Shape, Slice, Tensor, TensorData, TensorMetadata, TensorPrimitive};
use firebrick_backend::KernelBackend;
use firebrick_backend::ops::attention::{AttentionLayout, Span, attention};
use firebrick_backend::ops::cross_entropy::{self, Targets};
use firebrick_backend::ops::embedding::embedding;
use firebrick_backend::ops::gelu::{self, gelu};
use firebrick_backend::ops::layer_norm::{self, layer_norm};
use firebrick_backend::ops::linear::linear;
use firebrick_backend::ops::linears::linears;
use firebrick_backend::ops::lora_linear::lora_linear;
use firebrick_backend::ops::rms_norm::{self, rms_norm};
use firebrick_backend::ops::rope::rope;
use firebrick_backend::ops::softmax::{self, softmax};
use firebrick_backend::ops::swiglu::{self, swiglu};
use firebrick_backend::ops::{add_layer_norm, add_rms_norm};
use firebrick_backend::roof::Kept;

use super::super::expected::{self, INPUTS, LAYER_NORM_EPSILON, MLP_SCALE, RMS_NORM_EPSILON, THETA};
use super::super::measure::Subject;
use super::super::workload::{Kind, RowOp, Workload, qwen};

type Call<B> = Box<dyn Fn(usize) -> FloatTensor<B> + Send + Sync>;

/// An op under the clock.
pub(super) struct Op<B: KernelBackend> {
    call: Call<B>,
    kept: Kept<B>,
    /// Whether a result is computed when the call returns.
    eager: bool,
}

impl<B: KernelBackend> Op<B> {
    pub(super) fn new(device: &B::Device, eager: bool, call: Call<B>) -> Self {
        Self { call, kept: Kept::new(device), eager }
    }
}

impl<B: KernelBackend> Subject for Op<B> {
    fn call(&mut self, inputs: Range<usize>) {
        let Self { call, kept, eager } = self;
        if !*eager {
            inputs.for_each(|input| kept.keep(std::hint::black_box(call(input))));
            return;
        }
        // As in a model, whose ops are called from inside the pool; each result is dropped, so that the next may have its memory.
        let last = B::concurrently(vec![inputs], |inputs| {
            inputs.fold(None, |before, input| {
                drop(before);
                Some(std::hint::black_box(call(input)))
            })
        });
        last.into_iter().flatten().for_each(|last| kept.keep(last));
    }

    fn finish(&mut self) -> Result<(), String> {
        self.kept.finish()
    }

    fn read(&mut self) -> Vec<f64> {
        let Some(last) = self.kept.last().cloned() else { return Vec::new() };
        let shape = last.shape();
        let width = shape[shape.num_dims() - 1];
        let rows = shape.num_elements() / width;
        let matrix = B::float_reshape(last, Shape::from([rows, width]));
        let four = |row: usize| {
            let part = B::float_slice(matrix.clone(), &[Slice::from(row..row + 1), Slice::from(0..width.min(4))]);
            let part: Tensor<B, 2> = Tensor::from_primitive(TensorPrimitive::Float(part));
            part.into_data().iter::<f64>().collect::<Vec<f64>>()
        };
        [four(0), four(rows - 1)].concat()
    }
}

/// What `values` gives, on the device.
struct Make<'d, B: KernelBackend>(&'d B::Device);

impl<B: KernelBackend> Make<'_, B> {
    fn tensor<const D: usize>(&self, shape: [usize; D], seed: usize) -> Tensor<B, D> {
        self.scaled(shape, seed, 1.0)
    }

    fn scaled<const D: usize>(&self, shape: [usize; D], seed: usize, scale: f32) -> Tensor<B, D> {
        let values: Vec<f32> =
            expected::values(shape.iter().product(), seed).into_iter().map(|value| value * scale).collect();
        Tensor::from_data(TensorData::new(values, shape), (self.0, DType::F32))
    }

    fn inputs<const D: usize>(&self, shape: [usize; D], offset: usize) -> Vec<Tensor<B, D>> {
        (0..INPUTS).map(|input| self.tensor(shape, expected::seed(input) + offset)).collect()
    }
}

fn primitive<B: KernelBackend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// The op of a workload.
///
/// # Panics
/// If the workload is not an op.
pub(super) fn op<B: KernelBackend>(workload: &Workload, device: &B::Device, eager: bool) -> Op<B> {
    let make = Make::<B>(device);
    let dtype = workload.dtype;
    let call: Call<B> = match workload.kind {
        Kind::Rows { op, shape, reference } => rows(&make, op, shape, reference),
        Kind::Matmul { sizes: [rows, inputs, outputs] } => {
            let (x, weight) = (make.inputs([rows, inputs], 0), make.tensor([outputs, inputs], 2).cast(dtype));
            Box::new(move |input| primitive(linear(x[input % INPUTS].clone(), weight.clone(), None)))
        }
        Kind::LoraForward { sizes: [rows, features, rank] } => {
            let (x, weight) = (make.inputs([rows, features], 0), make.tensor([features, features], 2).cast(dtype));
            let adapter = [make.tensor([rank, features], 3), make.tensor([features, rank], 4)];
            Box::new(move |input| {
                let x = x[input % INPUTS].clone();
                primitive(lora_linear(x, None, weight.clone(), None, adapter.clone(), expected::LORA_SCALE))
            })
        }
        Kind::Attention { tokens: keys } | Kind::DecodeAttention { keys } => {
            let [heads, kv_heads, dim] = qwen::HEADS;
            let queries = if matches!(workload.kind, Kind::Attention { .. }) { keys } else { 1 };
            let q = make.inputs([queries, heads, dim], 0);
            let [k, v] = [2, 3].map(|seed| make.tensor([keys, kv_heads, dim], seed));
            let span = Span { query_start: 0, query_len: queries, key_start: 0, key_len: keys };
            let scale = 1.0 / (dim as f64).sqrt();
            let layout = AttentionLayout { spans: [span].into(), causal: true, window: None, scale };
            Box::new(move |input| primitive(attention(q[input % INPUTS].clone(), k.clone(), v.clone(), &layout)))
        }
        Kind::Embedding { tokens } => {
            let table = make.tensor([qwen::VOCABULARY, qwen::HIDDEN], 2);
            let ids = |input| {
                let ids: Vec<i64> = expected::ids(tokens, qwen::VOCABULARY, input).into_iter().map(i64::from).collect();
                Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [tokens]), device)
            };
            let ids: Vec<_> = (0..INPUTS).map(ids).collect();
            Box::new(move |input| primitive(embedding(table.clone(), ids[input % INPUTS].clone())))
        }
        Kind::Rope { tokens } => {
            let [heads, _, dim] = qwen::HEADS;
            let x = make.inputs([tokens, heads, dim], 0);
            let angle = |at: usize| (at / (dim / 2)) as f64 * THETA.powf(-2.0 * (at % (dim / 2)) as f64 / dim as f64);
            let table = |of: fn(f64) -> f64| {
                let values: Vec<f32> = (0..tokens * dim / 2).map(|at| of(angle(at)) as f32).collect();
                Tensor::<B, 2>::from_data(TensorData::new(values, [tokens, dim / 2]), (device, DType::F32))
            };
            let (cos, sin) = (table(f64::cos), table(f64::sin));
            Box::new(move |input| primitive(rope(x[input % INPUTS].clone(), cos.clone(), sin.clone())))
        }
        Kind::Mlp { tokens } => {
            let (hidden, wide) = (qwen::HIDDEN, qwen::INTERMEDIATE);
            let x = make.inputs([tokens, hidden], 0);
            let [gate, up] = [2, 3].map(|seed| make.scaled([wide, hidden], seed, MLP_SCALE).cast(dtype));
            let down = make.scaled([hidden, wide], 4, MLP_SCALE).cast(dtype);
            Box::new(move |input| {
                let x = x[input % INPUTS].clone();
                let [gate, up] = linears(x, [(gate.clone(), None), (up.clone(), None)]);
                primitive(linear(swiglu(gate, up), down.clone(), None))
            })
        }
        Kind::HeadLoss { tokens, at_once } => {
            let (hidden, vocabulary) = (qwen::HIDDEN, qwen::VOCABULARY);
            let x = make.inputs([tokens, hidden], 0);
            let head = make.scaled([vocabulary, hidden], 2, MLP_SCALE).cast(dtype);
            let targets = |input| Targets::new(expected::ids(tokens, vocabulary, input), vec![1.0; tokens]);
            let targets: Vec<Targets> = (0..INPUTS).map(targets).collect();
            let chunk = if at_once { tokens } else { cross_entropy::rows_of_chunk(vocabulary) };
            Box::new(move |input| {
                let (x, targets) = (x[input % INPUTS].clone(), &targets[input % INPUTS]);
                primitive(cross_entropy::loss_and_gradient(x, head.clone(), targets, chunk).1)
            })
        }
        other => unreachable!("{other:?} is not an op"),
    };
    Op::new(device, eager, call)
}

fn rows<B: KernelBackend>(make: &Make<'_, B>, op: RowOp, shape: [usize; 2], reference: bool) -> Call<B> {
    let (x, y) = (make.inputs(shape, 0), make.inputs(shape, 5));
    let (weight, bias) = (make.tensor([shape[1]], 2), make.tensor([shape[1]], 3));
    let (rms, layer) = (RMS_NORM_EPSILON, LAYER_NORM_EPSILON);
    Box::new(move |input| {
        let (x, y) = (x[input % INPUTS].clone(), y[input % INPUTS].clone());
        let (w, b) = (weight.clone(), bias.clone());
        if reference {
            let (x, y, w, b) = (primitive(x), primitive(y), primitive(w), primitive(b));
            return match op {
                RowOp::Copy => B::float_mul_scalar(x, 1.0.into()),
                RowOp::Softmax => softmax::reference::<B>(x, 1.0, None),
                RowOp::LayerNorm => layer_norm::reference::<B>(x, w, b, layer),
                RowOp::RmsNorm => rms_norm::reference::<B>(x, w, rms),
                RowOp::AddRmsNorm => add_rms_norm::reference::<B>(x, y, w, rms).1,
                RowOp::AddLayerNorm => add_layer_norm::reference::<B>(x, y, w, b, layer),
                RowOp::Swiglu => swiglu::reference::<B>(x, y),
                RowOp::Gelu => gelu::reference::<B>(x, Some(b)),
            };
        }
        match op {
            RowOp::Copy => B::copied(primitive(x)),
            RowOp::Softmax => primitive(softmax(x, 1.0, None)),
            RowOp::LayerNorm => primitive(layer_norm(x, w, b, layer)),
            RowOp::RmsNorm => primitive(rms_norm(x, w, rms)),
            RowOp::AddRmsNorm => primitive(add_rms_norm::add_rms_norm(x, y, w, rms).1),
            RowOp::AddLayerNorm => primitive(add_layer_norm::add_layer_norm(x, y, w, b, layer)),
            RowOp::Swiglu => primitive(swiglu(x, y)),
            RowOp::Gelu => primitive(gelu(x, Some(b))),
        }
    })
}
