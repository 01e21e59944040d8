//! Rows on wgpu and CUDA: a cube of units for each row, which its units read once, as vectors, and keep in registers. What a row adds up to
//! is reduced by planes where the device has them, in a tree in shared memory where not; always in f32 and always in the same order.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::features::Plane;
use cubecl::ir::{DeviceProperties, HardwareProperties};
use cubecl::prelude::*;

/// The longest row whose values fit the registers of a cube of 256 units, 64 for each. Longer ones run the reference.
const LONGEST: usize = 16_384;

/// Vectors of a row for each unit: enough loads in flight to hide some of each other's wait. More only where a cube has no more units.
const TURNS: usize = 4;

/// Units of a cube at least, a plane of most devices, and at most.
const UNITS: [usize; 2] = [32, 1024];

/// Cubes along one axis of a launch, by WebGPU's limits.
const MAX_CUBES: usize = 65_535;

/// Whether the kernels that sum up rows take these tensors: `rows` in one dtype, of the first's shape, and `vectors` of a row's length.
pub(crate) fn takes<T: TensorMetadata>(rows: &[&T], vectors: &[&T]) -> bool {
    rows[0].shape().last().is_some_and(|&length| length <= LONGEST) && takes_elements(rows, vectors)
}

/// As [`takes`], of kernels that compute each element by itself.
pub(crate) fn takes_elements<T: TensorMetadata>(rows: &[&T], vectors: &[&T]) -> bool {
    let in_one_dtype = |tensors: &[&T]| {
        tensors.iter().all(|tensor| {
            let dtype = tensor.dtype();
            matches!(dtype, DType::F32 | DType::F16 | DType::BF16) && dtype == tensors[0].dtype()
        })
    };
    in_one_dtype(rows) && in_one_dtype(vectors)
}

/// How the units of a cube share a row; each value compiles a kernel of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Plan {
    /// Units of a cube, a power of two.
    pub(crate) units: usize,
    /// Vectors of a row for each unit.
    pub(crate) turns: usize,
    /// Units of a plane; 0 where the device has no planes, or of several sizes.
    pub(crate) plane: usize,
}

/// A launch with a cube for each row.
pub(crate) struct Rows {
    pub(crate) cubes: CubeCount,
    pub(crate) units: CubeDim,
    /// Elements of a vector.
    pub(crate) width: usize,
    /// How many rows there are.
    pub(crate) count: u32,
    /// Vectors of a row.
    pub(crate) vectors: u32,
    pub(crate) plan: Plan,
}

impl Rows {
    /// For rows like those of `x`, together with `vectors` of a row's length in another dtype, perhaps. `None` where there are no rows.
    pub(crate) fn of<R: CubeRuntime>(x: &CubeTensor<R>, vectors: DType) -> Option<Self> {
        Self::on(x.client.properties(), &x.shape(), x.dtype.size().max(vectors.size()))
    }

    /// For rows of this shape on such a device, of elements of `size` bytes.
    pub(crate) fn on(device: &DeviceProperties, shape: &[usize], size: usize) -> Option<Self> {
        let elements: usize = shape.iter().product();
        let length = shape.last().copied().filter(|_| elements > 0)?;
        let count = elements / length;
        let hardware = &device.hardware;
        let width = width(hardware, length, size);
        let vectors = length / width;
        let most = (hardware.max_units_per_cube as usize).clamp(1, UNITS[1]);
        let most = most.next_power_of_two() >> usize::from(!most.is_power_of_two());
        let units = vectors.div_ceil(TURNS).next_power_of_two().max(UNITS[0]).min(most);
        let has_planes = device.features.plane.contains(Plane::Ops);
        let plane = hardware.plane_size_max as usize;
        let one_size = plane > 1 && hardware.plane_size_min as usize == plane && units.is_multiple_of(plane);
        let plan =
            Plan { units, turns: vectors.div_ceil(units), plane: if has_planes && one_size { plane } else { 0 } };
        let (cubes, units) = (cubes(count), CubeDim::new_1d(units as u32));
        Some(Self { cubes, units, width, count: count as u32, vectors: vectors as u32, plan })
    }
}

/// A launch with a unit for each vector, of ops without a reduction.
pub(crate) struct Elements {
    pub(crate) cubes: CubeCount,
    pub(crate) units: CubeDim,
    /// Elements of a vector, of which a row has a whole number.
    pub(crate) width: usize,
    /// Vectors in all.
    pub(crate) vectors: u32,
}

impl Elements {
    /// For each element of `x`, together with a row in another dtype, perhaps. `None` where there are none.
    pub(crate) fn of<R: CubeRuntime>(x: &CubeTensor<R>, vectors: DType) -> Option<Self> {
        Self::on(x.client.properties(), &x.shape(), x.dtype.size().max(vectors.size()))
    }

    /// For each element of rows of this shape on such a device, of `size` bytes.
    pub(crate) fn on(device: &DeviceProperties, shape: &[usize], size: usize) -> Option<Self> {
        let elements: usize = shape.iter().product();
        let length = shape.last().copied().filter(|_| elements > 0)?;
        let width = width(&device.hardware, length, size);
        let units = device.hardware.max_units_per_cube.min(256);
        let vectors = elements / width;
        let (cubes, units) = (cubes(vectors.div_ceil(units as usize)), CubeDim::new_1d(units));
        Some(Self { cubes, units, width, vectors: vectors as u32 })
    }
}

/// Elements of `size` bytes that are read at once, of rows of this length: the largest power of two that the device takes and that
/// divides it.
fn width(hardware: &HardwareProperties, length: usize, size: usize) -> usize {
    let most = hardware.max_vector_size.min(hardware.load_width as usize / (8 * size)).max(1);
    1 << most.trailing_zeros().min(length.trailing_zeros())
}

/// So many cubes, perhaps a few more, along two axes.
fn cubes(count: usize) -> CubeCount {
    let columns = count.min(MAX_CUBES);
    CubeCount::Static(columns as u32, count.div_ceil(columns) as u32, 1)
}

/// An uninitialised tensor of `like`'s shape and dtype, its rows right behind each other.
pub(crate) fn empty_like<R: CubeRuntime>(like: &CubeTensor<R>) -> CubeTensor<R> {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), like.shape(), like.dtype)
}

/// The number of this cube along both axes.
#[cube]
pub(crate) fn cube_index() -> u32 {
    CUBE_POS_Y * CUBE_COUNT_X + CUBE_POS_X
}

/// Vector `at` of the row that starts at `start`, in f32; zeros behind its end.
#[cube]
pub(crate) fn load<F: Float, N: Size>(
    from: &Tensor<Vector<F, N>>,
    start: usize,
    at: u32,
    vectors: u32,
) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::empty().fill(0.0);
    if at < vectors {
        values = Vector::<f32, N>::cast_from(from[start + at as usize]);
    }
    values
}

/// The sum of every unit's vector, for every unit.
#[cube]
pub(crate) fn sum<N: Size>(values: Vector<f32, N>, #[comptime] plan: Plan) -> f32 {
    let part = RuntimeCell::<f32>::new(0.0);
    #[unroll]
    for lane in 0..N::value() {
        let next = part.read() + values[lane];
        part.store(next);
    }
    let total = RuntimeCell::<f32>::new(0.0);
    if comptime!(plan.plane == plan.units) {
        total.store(plane_sum(part.consume()));
    } else if comptime!(plan.plane > 0) {
        let planes = comptime!(plan.units / plan.plane);
        let mut shared = SharedMemory::<f32>::new(planes);
        let of_plane = plane_sum(part.consume());
        if UNIT_POS_PLANE == 0 {
            shared[(UNIT_POS / comptime!(plan.plane as u32)) as usize] = of_plane;
        }
        sync_cube();
        #[unroll]
        for plane in 0..planes {
            let next = total.read() + shared[plane];
            total.store(next);
        }
    } else {
        let mut shared = SharedMemory::<f32>::new(comptime!(plan.units));
        shared[UNIT_POS as usize] = part.consume();
        sync_cube();
        let mut active = CUBE_DIM / 2;
        while active > 0 {
            if UNIT_POS < active {
                let other = shared[(UNIT_POS + active) as usize];
                shared[UNIT_POS as usize] += other;
            }
            sync_cube();
            active /= 2;
        }
        total.store(shared[0]);
    }
    total.consume()
}

/// The largest of every unit's values, for every unit. NaN may be passed over.
#[cube]
pub(crate) fn largest(value: f32, #[comptime] plan: Plan) -> f32 {
    let most = RuntimeCell::<f32>::new(value);
    if comptime!(plan.plane == plan.units) {
        most.store(plane_max(value));
    } else if comptime!(plan.plane > 0) {
        let planes = comptime!(plan.units / plan.plane);
        let mut shared = SharedMemory::<f32>::new(planes);
        let of_plane = plane_max(value);
        if UNIT_POS_PLANE == 0 {
            shared[(UNIT_POS / comptime!(plan.plane as u32)) as usize] = of_plane;
        }
        sync_cube();
        most.store(shared[0]);
        #[unroll]
        for plane in 1..planes {
            let next = max(most.read(), shared[plane]);
            most.store(next);
        }
    } else {
        let mut shared = SharedMemory::<f32>::new(comptime!(plan.units));
        shared[UNIT_POS as usize] = value;
        sync_cube();
        let mut active = CUBE_DIM / 2;
        while active > 0 {
            if UNIT_POS < active {
                let other = max(shared[UNIT_POS as usize], shared[(UNIT_POS + active) as usize]);
                shared[UNIT_POS as usize] = other;
            }
            sync_cube();
            active /= 2;
        }
        most.store(shared[0]);
    }
    most.consume()
}

#[cfg(all(test, feature = "wgpu"))]
mod tests {
    use burn::tensor::Shape;
    use burn_wgpu::{WgpuDevice, WgpuRuntime};

    use super::*;

    #[cube(launch)]
    fn reductions(values: &Array<f32>, sums: &mut Array<f32>, most: &mut Array<f32>, #[comptime] plan: Plan) {
        let value = values[UNIT_POS as usize];
        sums[UNIT_POS as usize] = sum::<Const<1>>(Vector::<f32, Const<1>>::cast_from(value), plan);
        most[UNIT_POS as usize] = largest(value, plan);
    }

    /// What each unit is given as sum and as maximum of the numbers from 1 to `plan.units`, negative where odd.
    fn reduced(plan: Plan) -> [Vec<f32>; 2] {
        let device = WgpuDevice::default();
        let client = WgpuRuntime::client(&device);
        let values: Vec<f32> = (1..=plan.units).map(|i| if i % 2 == 1 { -(i as f32) } else { i as f32 }).collect();
        let bytes = |values: &[f32]| client.create_from_slice(f32::as_bytes(values));
        let (input, sums, most) = (bytes(&values), bytes(&values), bytes(&values));
        // SAFETY: each handle is a buffer of `units` values.
        let argument = |handle| unsafe { ArrayArg::from_raw_parts(handle, plan.units) };
        reductions::launch::<WgpuRuntime>(
            &client,
            CubeCount::new_single(),
            CubeDim::new_1d(plan.units as u32),
            argument(input),
            argument(sums.clone()),
            argument(most.clone()),
            plan,
        );
        [sums, most].map(|handle| f32::from_bytes(&client.read_one(handle).unwrap()).to_vec())
    }

    #[test]
    fn planes_and_the_tree_reduce_to_the_same_for_every_unit() {
        let client = WgpuRuntime::client(&WgpuDevice::default());
        let plane = client.properties().hardware.plane_size_max as usize;
        // Software devices hide that they have planes; their instructions work.
        assert!(plane > 1, "planes of {plane}");
        for (units, plane) in [(32, 0), (256, 0), (plane, plane), (4 * plane, plane), (32 * plane, plane)] {
            let [sums, most] = reduced(Plan { units, turns: 1, plane });
            assert_eq!(sums, vec![units as f32 / 2.0; units], "{units} units, planes of {plane}");
            assert_eq!(most, vec![units as f32; units], "{units} units, planes of {plane}");
        }
    }

    #[test]
    fn a_row_has_units_enough_and_no_more_than_a_cube() {
        let device = WgpuDevice::default();
        let client = WgpuRuntime::client(&device);
        for length in [1, 2, 31, 33, 896, 1025, 4096, 16_384] {
            let shape = Shape::from(vec![3, length]);
            let x: CubeTensor<WgpuRuntime> =
                empty_device_contiguous_dtype(client.clone(), device.clone(), shape, DType::F32);
            let rows = Rows::of(&x, DType::F32).unwrap();
            assert_eq!((rows.count as usize, rows.vectors as usize * rows.width), (3, length));
            assert!(rows.plan.units.is_power_of_two() && rows.plan.units * rows.plan.turns >= rows.vectors as usize);
            assert!(rows.plan.turns * rows.width <= 64, "{length}: {:?}", rows.plan);
        }
    }
}
