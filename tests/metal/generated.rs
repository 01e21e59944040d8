//! The Metal source that CubeCL makes of each of our kernels, made here by the compiler it uses on a Mac, and executed on the CPU.

use std::collections::BTreeSet;

use cubecl::ir::features::{Plane, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceProperties, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties, StorageType,
    TargetProperties, UIntKind,
};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use cubecl::zspace::{Shape, Strides};
use cubecl::{Compiler, ExecutionMode, InfoBuilder, KernelSettings};
use cubecl_cpp::{MslCompiler, shared::CompilationOptions};
use half::f16;

use crate::metal::{Buffer, Run, Workbench, files};
use crate::ops::linear::cube::row_times_weight;
use crate::ops::oracle::Array;

/// A kernel and the cases it must pass: a line for each function under `#[cube(launch)]`.
const KERNELS: &[(&str, Cases)] = &[("row_times_weight", row_times_weight_cases)];

/// A kernel made wrong on purpose: in its source, for that, by which it must be noticed.
const MUTATIONS: &[(&str, &str, &str, &str)] = &[
    ("row_times_weight", "threadgroup_barrier(mem_flags::mem_threadgroup);", "", "threadgroup memory"),
    ("row_times_weight", "/ uint(2);", "/ uint(4);", "instead of"),
];

/// Makes the cases of a kernel.
type Cases = fn() -> Vec<Case>;

/// A generated source with what it is launched on.
struct Case {
    what: String,
    source: String,
    run: Run,
    /// What must be in the buffers that are written, in f32.
    expected: Vec<Vec<f64>>,
    tolerance: f64,
}

/// What cubecl-wgpu says of Apple's processors (its `backend/metal.rs`).
fn apple() -> DeviceProperties {
    let hardware = HardwareProperties {
        load_width: 128,
        plane_size_min: 32,
        plane_size_max: 32,
        max_bindings: 30,
        max_shared_memory_size: 32768,
        max_cube_count: (65535, 65535, 65535),
        max_units_per_cube: 1024,
        max_cube_dim: (1024, 1024, 1024),
        num_streaming_multiprocessors: None,
        num_cpu_cores: None,
        num_tensor_cores: None,
        min_tensor_cores_dim: Some(8),
        max_vector_size: 4,
    };
    let memory = MemoryDeviceProperties { max_page_size: 1 << 30, alignment: 32 };
    let mut properties = DeviceProperties::new(Default::default(), memory, hardware, TimingMethod::System);
    properties.register_address_type(AddressType::U32);
    properties.register_address_type(AddressType::U64);
    let floats = [FloatKind::F16, FloatKind::F32].map(ElemType::Float);
    for kind in floats.into_iter().chain([ElemType::UInt(UIntKind::U32), ElemType::Bool]) {
        properties.register_type_usage(kind, TypeUsage::all());
    }
    properties.features.plane.insert(Plane::Ops);
    properties
}

/// The arguments of a kernel, as CubeCL binds them: buffers in order, then one with the scalars and the shapes.
struct Arguments {
    builder: KernelBuilder,
    info: InfoBuilder,
    buffers: Vec<Buffer>,
}

impl Arguments {
    fn new() -> Self {
        let mut builder = KernelBuilder::default();
        builder.runtime_properties(TargetProperties::default());
        builder.device_properties(&apple());
        AddressType::U32.register(&mut builder.scope);
        Self { builder, info: InfoBuilder::default(), buffers: Vec::new() }
    }

    fn describe(&mut self, shape: &[usize], vector: usize) {
        let elements = shape.iter().product::<usize>() / vector;
        let strides: Vec<usize> = (0..shape.len()).map(|axis| shape[axis + 1..].iter().product()).collect();
        self.info.metadata.register_tensor(
            shape.len() as u64,
            elements as u64,
            elements as u64,
            Shape::from(shape.to_vec()),
            Strides::from(strides),
            AddressType::U32,
        );
    }

    /// A tensor that is read, of vectors of that many elements.
    fn input<T: LaunchArg<CompilationArg = TensorCompilationArg>>(
        &mut self,
        shape: &[usize],
        vector: usize,
        bytes: Vec<u8>,
    ) -> <T as CubeType>::ExpandType {
        self.describe(shape, vector);
        self.buffers.push(Buffer::input(bytes));
        T::expand(&TensorCompilationArg { inplace: None }, &mut self.builder)
    }

    /// A tensor in f32 that is written.
    fn output<T: LaunchArg<CompilationArg = TensorCompilationArg>>(
        &mut self,
        shape: &[usize],
        vector: usize,
    ) -> <T as CubeType>::ExpandType {
        self.describe(shape, vector);
        self.buffers.push(Buffer::output(4 * shape.iter().product::<usize>()));
        T::expand_output(&TensorCompilationArg { inplace: None }, &mut self.builder)
    }

    fn unsigned(&mut self, value: usize) -> <u32 as CubeType>::ExpandType {
        self.info.scalars.push(value as u32);
        <u32 as LaunchArg>::expand(&(), &mut self.builder)
    }

    /// The source and the launch, once the kernel has been expanded into the builder.
    fn finish(mut self, name: &str, grid: [u32; 3], units: u32) -> (String, Run) {
        let settings = KernelSettings::default().cube_dim(CubeDim::new_1d(units)).address_type(AddressType::U32);
        let definition = self.builder.build(settings.kernel_name(name));
        let address = AddressType::U32.unsigned_type();
        let compiled =
            MslCompiler::default().compile(definition, &CompilationOptions::default(), ExecutionMode::Checked, address);
        let source = compiled.unwrap_or_else(|error| panic!("{name}: {error:?}")).to_string();
        let info = self.info.finish(AddressType::U32).data;
        self.buffers.push(Buffer::input(info.iter().flat_map(|word| word.to_le_bytes()).collect()));
        let run = Run { function: name.to_owned(), grid, threadgroup: [units, 1, 1], buffers: self.buffers };
        (source, run)
    }
}

fn f32_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|&v| (v as f32).to_le_bytes()).collect()
}

fn f16_bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|&v| f16::from_f64(v).to_le_bytes()).collect()
}

fn row_times_weight_cases() -> Vec<Case> {
    fn case<N: Size>(vector: usize, [rows, inputs, outputs]: [usize; 3]) -> Case {
        let mut x = Array::random(1, &[rows, inputs]).values;
        if rows == 3 {
            x[inputs] = f64::NAN;
        }
        let weight = Array::random(2, &[outputs, inputs]).values;
        let weight: Vec<f64> = weight.into_iter().map(|v| f16::from_f64(v).to_f64()).collect();
        let product = |row: &[f64], column: &[f64]| row.iter().zip(column).map(|(x, w)| x * w).sum::<f64>();
        let expected = x.chunks_exact(inputs).flat_map(|row| weight.chunks_exact(inputs).map(move |w| product(row, w)));
        let expected = expected.collect();
        let mut arguments = Arguments::new();
        let x = arguments.input::<Tensor<Vector<f32, N>>>(&[rows, inputs], vector, f32_bytes(&x));
        let weight = arguments.input::<Tensor<Vector<f16, N>>>(&[outputs, inputs], vector, f16_bytes(&weight));
        let y = arguments.output::<Tensor<f32>>(&[rows, outputs], 1);
        let (vectors, columns) = (arguments.unsigned(inputs / vector), arguments.unsigned(outputs));
        let dtype: StorageType = ElemType::Float(FloatKind::F16).into();
        let scope = &mut arguments.builder.scope;
        row_times_weight::expand::<f16, N>(scope, vector, x, weight, y, vectors, columns, 64, dtype);
        // Two cubes more than there are outputs, in a second layer, as for a vocabulary longer than one axis.
        let grid = [outputs.div_ceil(2) as u32 + 1, rows as u32, 2];
        let (source, run) = arguments.finish("row_times_weight", grid, 64);
        let what = format!("{rows} rows of {inputs} in vectors of {vector} times {outputs}");
        Case { what, source, run, expected: vec![expected], tolerance: 1e-5 }
    }
    let mut cases =
        vec![case::<Const<1>>(1, [1, 1, 1]), case::<Const<1>>(1, [3, 31, 5]), case::<Const<1>>(1, [2, 65, 7])];
    cases.push(case::<Const<2>>(2, [2, 130, 3]));
    cases.extend([[1, 4, 1], [3, 896, 9], [8, 256, 4]].map(|shape| case::<Const<4>>(4, shape)));
    cases
}

/// Runs a case on this text of its source; says what went wrong.
fn check(workbench: &Workbench, case: &Case, source: &str) -> Result<(), String> {
    let outputs = workbench.compile_generated(source)?.run(std::slice::from_ref(&case.run)).remove(0)?;
    for (bytes, expected) in outputs.iter().zip(&case.expected) {
        let actual = bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
        for (at, (actual, &expected)) in actual.zip(expected).enumerate() {
            let same = actual.is_nan() && expected.is_nan();
            let close = (actual - expected).abs() <= case.tolerance * expected.abs().max(1.0);
            if !same && !close {
                return Err(format!("element {at} is {actual} instead of {expected}"));
            }
        }
    }
    Ok(())
}

#[test]
fn every_kernel_is_in_the_registry() {
    let mut kernels = BTreeSet::new();
    for path in files("src/backend", ".rs") {
        let text = std::fs::read_to_string(&path).unwrap();
        for kernel in text.split("\n#[cube(launch").skip(1) {
            let name = kernel.split_once("fn ").unwrap().1;
            kernels.insert(name[..name.find(['<', '(']).unwrap()].to_owned());
        }
    }
    let registered: BTreeSet<String> = KERNELS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mutated: BTreeSet<String> = MUTATIONS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert!(!kernels.is_empty());
    assert_eq!(kernels, registered);
    assert_eq!(kernels, mutated, "every kernel has a mutation that must be caught");
}

#[test]
#[ignore = "needs clang-19"]
fn every_generated_kernel_agrees_with_the_oracle() {
    let workbench = Workbench::new();
    for (name, cases) in KERNELS {
        for case in cases() {
            check(&workbench, &case, &case.source).unwrap_or_else(|wrong| panic!("{name}, {}: {wrong}", case.what));
            println!("{name}, {}: passed", case.what);
        }
    }
}

#[test]
#[ignore = "needs clang-19"]
fn every_mutation_of_a_generated_kernel_is_caught() {
    let workbench = Workbench::new();
    for (kernel, from, to, caught_by) in MUTATIONS {
        let (_, cases) = KERNELS.iter().find(|(name, _)| name == kernel).expect("a registered kernel");
        let caught = cases().iter().any(|case| {
            assert!(case.source.contains(from), "{kernel} no longer contains `{from}`:\n{}", case.source);
            check(&workbench, case, &case.source.replacen(from, to, 1)).is_err_and(|wrong| wrong.contains(caught_by))
        });
        assert!(caught, "{kernel}: nobody noticed `{to}` for `{from}` by `{caught_by}`");
    }
}
