//! wgpu and CUDA: a few queries over the keys of a cache, in one launch for all heads and sequences. Scores exist for a tile of keys at a
//! time, so that a cache may have any length.
//!
//! A cube of units answers one query of one head. For each tile of as many keys as there are units, a unit takes the score of one key;
//! a tree finds the highest; then the units share out the columns of the values, and where there are more units than columns, the keys.
//! What was mixed before is scaled down whenever a higher score appears (Milakov & Gimelshein 2018).

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::AttentionLayout;

/// Queries of a sequence up to which each goes through the keys by itself.
pub(crate) const FEW_QUERIES: usize = 8;

/// Keys of a tile: a power of two, for the trees.
const UNITS: u32 = 128;

/// The widest head: what a unit holds of the mixed values is a few registers.
const MAX_DIM: usize = 256;

/// Queries and heads at most, by WebGPU's limit on the cubes of one axis.
const MAX_CUBES: usize = 65_535;

/// Whether [`forward`] takes this: `q`'s shape, and the formats of `q`, `k` and `v`.
pub(crate) fn takes(q: &Shape, formats: [DType; 3], layout: &AttentionLayout) -> bool {
    let sizes = (1..=MAX_CUBES).contains(&q[0]) && (1..=MAX_CUBES).contains(&q[1]) && (1..=MAX_DIM).contains(&q[2]);
    let few = layout.spans.iter().all(|span| span.query_len <= FEW_QUERIES);
    sizes && few && formats.iter().all(|&dtype| dtype == DType::F32)
}

/// `q` `[rows, heads, dim]`, `k` and `v` `[key rows, kv heads, dim]` → `[rows, heads, dim]`, all f32.
pub(crate) fn forward<R: CubeRuntime>(
    q: CubeTensor<R>,
    k: CubeTensor<R>,
    v: CubeTensor<R>,
    layout: &AttentionLayout,
) -> CubeTensor<R> {
    let (rows, heads, dim, kv_heads) = (q.shape()[0], q.shape()[1], q.shape()[2], k.shape()[1]);
    let client = q.client.clone();
    // For each query its first key row and how many it sees.
    let sees = |span: &super::Span, query| {
        let keys = layout.visible(span, query);
        [(span.key_start + keys.start) as u32, keys.len() as u32]
    };
    let seen: Vec<[u32; 2]> =
        layout.spans.iter().flat_map(|span| (0..span.query_len).map(move |query| sees(span, query))).collect();
    // One query's are numbers of the launch; those of several are a small tensor.
    let several = (rows > 1).then(|| {
        let bytes: Vec<u8> = seen.as_flattened().iter().flat_map(|number| number.to_ne_bytes()).collect();
        let (handle, shape) = (client.create_from_slice(&bytes), Shape::from(vec![rows * 2]));
        CubeTensor::new_contiguous(client.clone(), q.device.clone(), shape, handle, DType::U32).into_tensor_arg()
    });
    let y = empty_device_contiguous_dtype(client.clone(), q.device.clone(), q.shape(), DType::F32);
    let widths = client.io_optimized_vector_sizes(size_of::<f32>());
    let width = widths.filter(|&width| dim.is_multiple_of(width) && width <= 4).max().unwrap_or(1);
    let units = UNITS.min(client.properties().hardware.max_units_per_cube) as usize;
    let lanes = dim.next_power_of_two().min(units);
    let argument = |tensor: CubeTensor<R>| into_contiguous(tensor).into_tensor_arg();
    attend::launch::<R>(
        &client,
        CubeCount::Static(heads as u32, rows as u32, 1),
        CubeDim::new_1d(units as u32),
        width,
        argument(q),
        argument(k),
        argument(v),
        several.into(),
        y.clone().into_tensor_arg(),
        seen[0][0],
        seen[0][1],
        layout.scale as f32,
        (heads / kv_heads) as u32,
        kv_heads as u32,
        dim,
        dim / width,
        units,
        lanes,
    );
    y
}

/// `dim` columns of values go to `lanes` units, and each tile's keys to `units / lanes` parts of the cube.
#[cube(launch)]
#[allow(clippy::too_many_arguments)] // A kernel is given its tensors one by one.
pub(crate) fn attend<N: Size>(
    q: &Tensor<Vector<f32, N>>,
    k: &Tensor<Vector<f32, N>>,
    v: &Tensor<f32>,
    several: &ComptimeOption<Tensor<u32>>,
    y: &mut Tensor<f32>,
    first: u32,
    count: u32,
    scale: f32,
    group: u32,
    kv_heads: u32,
    #[comptime] dim: usize,
    #[comptime] vectors: usize,
    #[comptime] units: usize,
    #[comptime] lanes: usize,
) {
    let columns = comptime!(dim.div_ceil(lanes));
    let parts = comptime!((units / lanes) as u32);
    let unit = UNIT_POS;
    let head = CUBE_POS_X;
    let row = CUBE_POS_Y;
    let heads = CUBE_COUNT_X;
    let kv_head = head / group;
    let mut first = first;
    let mut count = count;
    #[comptime]
    if let ComptimeOption::Some(several) = several {
        first = several[(row * 2) as usize];
        count = several[(row * 2 + 1) as usize];
    }

    let mut query = SharedMemory::<Vector<f32, N>>::new(vectors);
    let mut scratch = SharedMemory::<f32>::new(units);
    let mut powers = SharedMemory::<f32>::new(units);
    let query_start = ((row * heads + head) as usize) * vectors;
    let mut at = unit;
    while at < vectors as u32 {
        query[at as usize] = q[query_start + at as usize];
        at += units as u32;
    }
    sync_cube();

    // The least finite number: below every score, and its distance to any is a number.
    let mut peak = f32::new(-3.402_823_4e38);
    let mut total = f32::new(0.0);
    let mut mixed = Array::<f32>::new(columns);
    #[unroll]
    for column in 0..columns {
        mixed[column] = f32::new(0.0);
    }
    let lane = unit % lanes as u32;
    let part = unit / lanes as u32;

    let mut tile = 0u32;
    while tile < count {
        let key = tile + unit;
        let mut score = f32::new(-3.402_823_4e38);
        if key < count {
            let key_start = ((first + key) * kv_heads + kv_head) as usize * vectors;
            let mut sums = Vector::<f32, N>::empty().fill(0.0);
            for i in 0..vectors {
                sums += query[i] * k[key_start + i];
            }
            let sum = RuntimeCell::<f32>::new(0.0);
            #[unroll]
            for lane in 0..N::value() {
                let next = sums[lane] + sum.read();
                sum.store(next);
            }
            score = sum.consume() * scale;
        }
        scratch[unit as usize] = score;
        sync_cube();
        let mut active = comptime!(units as u32 / 2).runtime();
        while active > 0 {
            if unit < active {
                let other = scratch[(unit + active) as usize];
                if other > scratch[unit as usize] {
                    scratch[unit as usize] = other;
                }
            }
            sync_cube();
            active /= 2;
        }
        let tile_peak = scratch[0];
        let mut next_peak = peak;
        if tile_peak > peak {
            next_peak = tile_peak;
        }
        let shrink = f32::exp(peak - next_peak);
        let mut power = f32::new(0.0);
        if key < count {
            power = f32::exp(score - next_peak);
        }
        powers[unit as usize] = power;
        total = total * shrink + power;
        peak = next_peak;
        #[unroll]
        for column in 0..columns {
            mixed[column] = mixed[column] * shrink;
        }
        sync_cube();

        let mut keys = count - tile;
        if keys > units as u32 {
            keys = comptime!(units as u32).runtime();
        }
        let mut at = part;
        while at < keys {
            let power = powers[at as usize];
            let value_start = ((first + tile + at) * kv_heads + kv_head) as usize * dim;
            #[unroll]
            for column in 0..columns {
                let place = lane as usize + column * lanes;
                if place < dim {
                    mixed[column] = mixed[column] + power * v[value_start + place];
                }
            }
            at += parts;
        }
        // The next tile writes over the powers and the scores.
        sync_cube();
        tile += units as u32;
    }

    scratch[unit as usize] = total;
    sync_cube();
    let mut active = comptime!(units as u32 / 2).runtime();
    while active > 0 {
        if unit < active {
            let other = scratch[(unit + active) as usize];
            scratch[unit as usize] += other;
        }
        sync_cube();
        active /= 2;
    }
    let total = scratch[0];
    let row_start = (row * heads + head) as usize * dim;
    #[unroll]
    for column in 0..columns {
        powers[unit as usize] = mixed[column];
        sync_cube();
        let place = lane as usize + column * lanes;
        if part == 0 && place < dim {
            let sum = RuntimeCell::<f32>::new(0.0);
            let mut at = lane;
            while at < units as u32 {
                let next = sum.read() + powers[at as usize];
                sum.store(next);
                at += lanes as u32;
            }
            y[row_start + place] = sum.consume() / total;
        }
        sync_cube();
    }
}
