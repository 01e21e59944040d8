//! What a kernel is launched on, bound as CubeCL binds it, and the Metal source that CubeCL makes of the kernel.

use cubecl::ir::features::{Plane, TypeUsage};
use cubecl::ir::{
    AddressType, DeviceProperties, ElemType, FloatKind, HardwareProperties, MemoryDeviceProperties, StorageType,
    TargetProperties, UIntKind,
};
use cubecl::prelude::*;
use cubecl::profile::TimingMethod;
use cubecl::zspace::{Shape, Strides};
use cubecl::{Compiler, ExecutionMode, InfoBuilder, KernelSettings, define_scalar, define_size};
use cubecl_cpp::{MslCompiler, shared::CompilationOptions};

use crate::metal::{Buffer, Dtype, Run};

// The format of a kernel's tensors, that of a weight, the elements of a vector, and of a vector of a matrix.
define_scalar!(pub(super) F);
define_scalar!(pub(super) W);
define_size!(pub(super) N);
define_size!(pub(super) M);

/// A tensor of vectors in the format of the kernel.
pub(super) type Wide = Tensor<Vector<F, N>>;
/// A tensor of vectors in the format of a weight.
pub(super) type Weight = Tensor<Vector<W, N>>;
/// A weight that a kernel multiplies by.
pub(super) type Matrix = Tensor<Vector<W, M>>;
/// A tensor as a kernel sees it.
pub(super) type Bound<T> = <T as CubeType>::ExpandType;

/// A generated source with what it is launched on.
pub(super) struct Case {
    pub(super) what: String,
    pub(super) source: String,
    pub(super) run: Run,
    /// What must be in the buffers that are written, and their format.
    pub(super) expected: Vec<(Dtype, Vec<f64>)>,
    /// That of f32.
    pub(super) tolerance: f64,
}

/// What cubecl-wgpu says of Apple's processors (its `backend/metal.rs`).
pub(super) fn apple() -> DeviceProperties {
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

/// A format, as CubeCL calls it.
pub(super) fn storage(format: Dtype) -> StorageType {
    let kind = match format {
        Dtype::F32 => FloatKind::F32,
        Dtype::F16 => FloatKind::F16,
    };
    ElemType::Float(kind).into()
}

/// The format of the words of a packed weight.
pub(super) fn word() -> StorageType {
    ElemType::UInt(UIntKind::U32).into()
}

fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The arguments of a kernel, as CubeCL binds them: buffers in order, then one with the scalars and the shapes.
pub(super) struct Arguments {
    pub(super) builder: KernelBuilder,
    info: InfoBuilder,
    buffers: Vec<Buffer>,
    expected: Vec<(Dtype, Vec<f64>)>,
    width: usize,
    formats: [Dtype; 2],
}

impl Arguments {
    /// Of a kernel of vectors of `width`, its tensors in the first format and its weights in the second one.
    pub(super) fn new(width: usize, formats: [Dtype; 2]) -> Self {
        let mut builder = KernelBuilder::default();
        builder.runtime_properties(TargetProperties::default());
        builder.device_properties(&apple());
        builder.scope.register_type::<F>(storage(formats[0]));
        builder.scope.register_type::<W>(storage(formats[1]));
        builder.scope.register_size::<N>(width);
        builder.scope.register_size::<M>(width);
        AddressType::U32.register(&mut builder.scope);
        Self { builder, info: InfoBuilder::default(), buffers: Vec::new(), expected: Vec::new(), width, formats }
    }

    /// Of a kernel whose weights are packed.
    pub(super) fn with_words(width: usize) -> Self {
        let mut arguments = Self::new(width, [Dtype::F32; 2]);
        arguments.builder.scope.register_type::<W>(word());
        arguments.builder.scope.register_size::<M>(1);
        arguments
    }

    fn describe(&mut self, elements: usize, width: usize) {
        let vectors = (elements / width) as u64;
        let (shape, strides) = (Shape::from(vec![elements]), Strides::from(vec![1]));
        self.info.metadata.register_tensor(1, vectors, vectors, shape, strides, AddressType::U32);
    }

    fn input<T>(&mut self, bytes: Vec<u8>, elements: usize, width: usize) -> Bound<T>
    where
        T: LaunchArg<CompilationArg = TensorCompilationArg>,
    {
        self.describe(elements, width);
        self.buffers.push(Buffer::input(bytes));
        T::expand(&TensorCompilationArg { inplace: None }, &mut self.builder)
    }

    fn output<T>(&mut self, format: Dtype, expected: Vec<f64>, width: usize) -> Bound<T>
    where
        T: LaunchArg<CompilationArg = TensorCompilationArg>,
    {
        self.describe(expected.len(), width);
        self.buffers.push(Buffer::output(format.size() * expected.len()));
        self.expected.push((format, expected));
        T::expand_output(&TensorCompilationArg { inplace: None }, &mut self.builder)
    }

    /// A tensor that is read.
    pub(super) fn wide(&mut self, values: &[f64]) -> Bound<Wide> {
        self.input::<Wide>(self.formats[0].bytes(values), values.len(), self.width)
    }

    /// A weight.
    pub(super) fn weight(&mut self, values: &[f64]) -> Bound<Weight> {
        self.input::<Weight>(self.formats[1].bytes(values), values.len(), self.width)
    }

    /// A weight that is multiplied by, value by value.
    pub(super) fn matrix(&mut self, values: &[f64]) -> Bound<Matrix> {
        self.input::<Matrix>(self.formats[1].bytes(values), values.len(), self.width)
    }

    /// A packed weight.
    pub(super) fn words<T>(&mut self, words: &[u32]) -> Bound<T>
    where
        T: LaunchArg<CompilationArg = TensorCompilationArg>,
    {
        self.input::<T>(bytes_of(words), words.len(), 1)
    }

    /// A tensor of vectors in f32, whatever the kernel's format.
    pub(super) fn floats(&mut self, values: &[f64]) -> Bound<Tensor<Vector<f32, N>>> {
        self.input::<Tensor<Vector<f32, N>>>(Dtype::F32.bytes(values), values.len(), self.width)
    }

    /// A tensor of single elements in f32.
    pub(super) fn plain(&mut self, values: &[f64]) -> Bound<Tensor<f32>> {
        self.input::<Tensor<f32>>(Dtype::F32.bytes(values), values.len(), 1)
    }

    /// A tensor of numbers.
    pub(super) fn numbers(&mut self, values: &[u32]) -> Bound<Tensor<u32>> {
        self.input::<Tensor<u32>>(bytes_of(values), values.len(), 1)
    }

    /// A tensor of signed numbers.
    pub(super) fn ids(&mut self, values: &[i32]) -> Bound<Tensor<i32>> {
        self.input::<Tensor<i32>>(values.iter().flat_map(|value| value.to_le_bytes()).collect(), values.len(), 1)
    }

    /// A tensor that is written, and what must be in it then.
    pub(super) fn wide_output(&mut self, expected: Vec<f64>) -> Bound<Wide> {
        self.output::<Wide>(self.formats[0], expected, self.width)
    }

    /// A tensor of single elements in the kernel's format that is written.
    pub(super) fn output_of_elements(&mut self, expected: Vec<f64>) -> Bound<Tensor<F>> {
        self.output::<Tensor<F>>(self.formats[0], expected, 1)
    }

    /// A tensor of single elements in f32 that is written.
    pub(super) fn plain_output(&mut self, expected: Vec<f64>) -> Bound<Tensor<f32>> {
        self.output::<Tensor<f32>>(Dtype::F32, expected, 1)
    }

    /// A tensor of single elements in the kernel's format.
    pub(super) fn elements(&mut self, values: &[f64]) -> Bound<Tensor<F>> {
        self.input::<Tensor<F>>(self.formats[0].bytes(values), values.len(), 1)
    }

    /// A number of the launch.
    pub(super) fn unsigned(&mut self, value: usize) -> Bound<u32> {
        self.info.scalars.push(value as u32);
        <u32 as LaunchArg>::expand(&(), &mut self.builder)
    }

    /// A number of the launch, in f32.
    pub(super) fn float(&mut self, value: f64) -> Bound<f32> {
        self.info.scalars.push(value as f32);
        <f32 as LaunchArg>::expand(&(), &mut self.builder)
    }

    /// Elements of a vector.
    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// The formats, as a kernel is told them.
    pub(super) fn dtypes(&self) -> [StorageType; 2] {
        self.formats.map(storage)
    }

    /// The source and the launch, once the kernel has been expanded into the builder.
    pub(super) fn finish(mut self, name: &str, what: String, grid: [u32; 3], units: u32) -> Case {
        let settings = KernelSettings::default().cube_dim(CubeDim::new_1d(units)).address_type(AddressType::U32);
        let definition = self.builder.build(settings.kernel_name(name));
        let address = AddressType::U32.unsigned_type();
        let compiled =
            MslCompiler::default().compile(definition, &CompilationOptions::default(), ExecutionMode::Checked, address);
        let source = compiled.unwrap_or_else(|error| panic!("{name}: {error:?}")).to_string();
        let info = self.info.finish(AddressType::U32).data;
        self.buffers.push(Buffer::input(info.iter().flat_map(|word| word.to_le_bytes()).collect()));
        let run = Run { function: name.to_owned(), grid, threadgroup: [units, 1, 1], buffers: self.buffers };
        Case { what, source, run, expected: self.expected, tolerance: 2e-6 }
    }
}
