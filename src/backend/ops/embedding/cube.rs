//! wgpu and CUDA: rows of a packed table, those that are asked for or all of them, a unit for each word.

use burn::tensor::{DType, Shape, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

use crate::packed::Format;
use crate::targets::cube::packed::{Plan, RUN, as_words, unpack_run, vector_of_run};

const UNITS: u32 = 64;

/// Whether [`forward`] takes this table, and numbers of rows in that format.
pub(crate) fn takes(weight: DType, ids: DType) -> bool {
    Format::of(weight).is_some() && ids == DType::I32
}

/// The rows `ids` of a packed table, or all of them, in f32.
pub(crate) fn forward<R: CubeRuntime>(weight: CubeTensor<R>, ids: Option<CubeTensor<R>>) -> CubeTensor<R> {
    let plan = Plan::of(&weight).expect("a packed weight");
    let (outputs, inputs, client) = (weight.shape()[0], weight.shape()[1], weight.client.clone());
    let rows = ids.as_ref().map_or(outputs, |ids| ids.shape()[0]);
    let y = empty_device_contiguous_dtype(
        client.clone(),
        weight.device.clone(),
        Shape::from(vec![rows, inputs]),
        DType::F32,
    );
    let of_row = inputs / (RUN * plan.runs());
    if rows * of_row == 0 {
        return y;
    }
    let units = CubeDim::new_1d(UNITS.min(client.properties().hardware.max_units_per_cube));
    unpack_rows::launch::<R>(
        &client,
        calculate_cube_count_elemwise(&client, rows * of_row, units),
        units,
        1,
        as_words(weight).into_tensor_arg(),
        ids.map(|ids| into_contiguous(ids).into_tensor_arg()).into(),
        y.clone().into_tensor_arg(),
        rows as u32,
        of_row as u32,
        outputs as u32,
        plan,
    );
    y
}

#[cube(launch)]
pub(crate) fn unpack_rows<M: Size>(
    weight: &Tensor<Vector<u32, M>>,
    ids: &ComptimeOption<Tensor<i32>>,
    y: &mut Tensor<f32>,
    rows: u32,
    of_row: u32,
    outputs: u32,
    #[comptime] plan: Plan,
) {
    let at = ABSOLUTE_POS as u32;
    if at >= rows * of_row {
        terminate!();
    }
    let row = RuntimeCell::<u32>::new(at / of_row);
    #[comptime]
    if let ComptimeOption::Some(ids) = ids {
        let asked = u32::cast_from(ids[row.read() as usize]);
        row.store(asked);
    }
    let word = row.consume() * of_row + at % of_row;
    let start = (at / of_row * of_row) as usize * comptime!(RUN * plan.runs());
    let mut values = Array::<f32>::new(comptime!(RUN));
    #[unroll]
    for run in 0..comptime!(plan.runs()) {
        unpack_run::<u32, M>(weight, word, run, outputs * of_row, &mut values, plan);
        let vector = vector_of_run(at % of_row, run, plan);
        #[unroll]
        for lane in 0..comptime!(RUN) {
            y[start + vector as usize * comptime!(RUN) + lane] = values[lane];
        }
    }
}
