//! Launches the hand-written shaders on candle's Metal device. What is launched was decided in `targets/shader.rs`.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use candle_core::backend::BackendStorage;
use candle_core::{DType, MetalDevice, MetalError, MetalStorage, Result, Storage, Tensor};
use candle_metal_kernels::metal::ComputePipeline;
use objc2_metal::{MTLCompileOptions, MTLResourceUsage, MTLSize};

use crate::targets::shader::{self, Launch};

/// What was compiled, by device and function: candle would compile a library anew each time.
static PIPELINES: LazyLock<Mutex<HashMap<(u64, String), ComputePipeline>>> = LazyLock::new(Mutex::default);

/// The function on this device, compiled the first time it is asked for.
fn pipeline(device: &MetalDevice, op: &str, function: String) -> Result<ComputePipeline> {
    // Identifies the processor; several devices of candle on one share what was compiled for it.
    let key = (device.metal_device().registry_id(), function);
    let mut pipelines = PIPELINES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pipeline) = pipelines.get(&key) {
        return Ok(pipeline.clone());
    }
    let options = MTLCompileOptions::new();
    // Fast mathematics may assume that nothing is NaN or infinite. Newer systems prefer `mathMode`, older ones do not have it.
    #[allow(deprecated)]
    options.setFastMathEnabled(false);
    let metal = device.metal_device();
    let library = metal.new_library_with_source(&shader::source(op), Some(&options)).map_err(MetalError::from)?;
    let compiled = library.get_function(&key.1, None).map_err(MetalError::from)?;
    let pipeline = metal.new_compute_pipeline_state_with_function(&compiled).map_err(MetalError::from)?;
    pipelines.insert(key, pipeline.clone());
    Ok(pipeline)
}

/// Runs the launch on contiguous inputs of one dtype; its outputs of so many elements lie one behind the other.
pub(super) fn forward(name: &str, inputs: &[Tensor], launch: &Launch, elements: usize) -> Result<MetalStorage> {
    let held: Vec<_> = inputs.iter().map(Tensor::storage_and_layout).collect();
    let mut buffers = Vec::with_capacity(held.len());
    for (storage, layout) in &held {
        let Storage::Metal(storage) = &**storage else {
            candle_core::bail!("{name}: the inputs are on different devices")
        };
        buffers.push((storage, layout.start_offset() * storage.dtype().size_in_bytes()));
    }
    let Some(&(first, _)) = buffers.first() else { candle_core::bail!("{name}: no inputs") };
    let (device, dtype) = (first.device(), first.dtype());
    let suffix = match dtype {
        DType::F32 => "f32",
        DType::F16 => "f16",
        other => candle_core::bail!("{name}: no shader for {other:?}"),
    };
    let pipeline = pipeline(device, launch.op, format!("{}_{suffix}", launch.function))?;
    if pipeline.max_total_threads_per_threadgroup() < launch.threads {
        candle_core::bail!("{name}: this device has no threadgroups of {}", launch.threads);
    }
    let output = device.new_buffer(elements * launch.outputs, dtype, name)?;
    let encoder = device.command_encoder()?;
    encoder.set_compute_pipeline_state(&pipeline);
    let mut index = 0;
    for (storage, offset) in buffers {
        encoder.set_buffer(index, Some(storage.buffer()), offset);
        encoder.use_resource(storage.buffer(), MTLResourceUsage::Read);
        index += 1;
    }
    for number in 0..launch.outputs {
        encoder.set_buffer(index, Some(&output), number * elements * dtype.size_in_bytes());
        index += 1;
    }
    // Read too: some shaders read back what they wrote.
    encoder.use_resource(&*output, MTLResourceUsage::Read | MTLResourceUsage::Write);
    for constant in &launch.constants {
        encoder.set_bytes(index, &constant.bytes());
        index += 1;
    }
    encoder.dispatch_thread_groups(
        MTLSize { width: launch.threadgroups, height: 1, depth: 1 },
        MTLSize { width: launch.threads, height: 1, depth: 1 },
    );
    Ok(MetalStorage::new(output, device.clone(), elements * launch.outputs, dtype))
}
