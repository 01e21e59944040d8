//! wgpu and CUDA: each element read once, the bias added on the way. The error function is our own: devices differ in theirs, or have none.

use burn_cubecl::CubeRuntime;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use crate::targets::cube::rows::{Elements, cube_index, empty_like};

/// As [`gelu`](super::gelu).
pub(crate) fn forward<R: CubeRuntime>(x: CubeTensor<R>, bias: Option<CubeTensor<R>>) -> CubeTensor<R> {
    let x = into_contiguous(x);
    let y = empty_like(&x);
    // Without a bias the kernel is given `x` in its place, and does not read it.
    let has_bias = bias.is_some();
    let bias = bias.map_or_else(|| x.clone(), into_contiguous);
    let Some(elements) = Elements::of(&x, bias.dtype) else { return y };
    let row = (bias.meta.num_elements() / elements.width) as u32;
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), bias.dtype.into()]);
    activated::launch::<R>(
        &client,
        elements.cubes,
        elements.units,
        elements.width,
        x.into_tensor_arg(),
        bias.into_tensor_arg(),
        y.clone().into_tensor_arg(),
        elements.vectors,
        row,
        has_bias,
        dtypes,
    );
    y
}

/// The gradient with respect to `x`.
pub(crate) fn backward<R: CubeRuntime>(
    x: CubeTensor<R>,
    bias: Option<CubeTensor<R>>,
    grad: CubeTensor<R>,
) -> CubeTensor<R> {
    let (x, grad) = (into_contiguous(x), into_contiguous(grad));
    let gradient = empty_like(&x);
    let has_bias = bias.is_some();
    let bias = bias.map_or_else(|| x.clone(), into_contiguous);
    let Some(elements) = Elements::of(&x, bias.dtype) else { return gradient };
    let row = (bias.meta.num_elements() / elements.width) as u32;
    let (client, dtypes) = (x.client.clone(), [x.dtype.into(), bias.dtype.into()]);
    activated_backward::launch::<R>(
        &client,
        elements.cubes,
        elements.units,
        elements.width,
        x.into_tensor_arg(),
        bias.into_tensor_arg(),
        grad.into_tensor_arg(),
        gradient.clone().into_tensor_arg(),
        elements.vectors,
        row,
        has_bias,
        dtypes,
    );
    gradient
}

/// `Φ(x)`, to a few units of an f32's last place: exactly 0 or 1 from where it rounds to that, since a large `x` is multiplied by it.
///
/// Source: the rational approximation of erf that Eigen and XLA use, odd over even polynomial.
#[cube]
fn distribution(x: f32) -> f32 {
    let scaled = x * 0.707_106_77;
    let inside = max(min(scaled, 4.0), -4.0);
    let square = inside * inside;
    let p = -2.726_142_3e-10 * square + 2.770_681_4e-8;
    let p = p * square - 2.101_024e-6;
    let p = p * square - 5.692_506_5e-5;
    let p = p * square - 7.349_906e-4;
    let p = p * square - 2.954_6e-3;
    let p = p * square - 1.609_603_3e-2;
    let q = -1.456_607_2e-5 * square - 2.133_740_6e-4;
    let q = q * square - 1.682_827e-3;
    let q = q * square - 7.373_329e-3;
    let q = q * square - 1.426_473_9e-2;
    let between = 0.5 + 0.5 * (inside * p / q);
    let above = select(x > 5.65, 1.0, between);
    select(x < -5.65, 0.0, above)
}

#[cube]
fn input<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<W, N>>,
    at: u32,
    row: u32,
    #[comptime] has_bias: bool,
) -> Vector<f32, N> {
    let mut values = Vector::<f32, N>::cast_from(x[at as usize]);
    if comptime!(has_bias) {
        values += Vector::<f32, N>::cast_from(bias[(at % row) as usize]);
    }
    values
}

#[cube(launch)]
pub(crate) fn activated<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<W, N>>,
    y: &mut Tensor<Vector<F, N>>,
    vectors: u32,
    row: u32,
    #[comptime] has_bias: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let at = cube_index() * CUBE_DIM + UNIT_POS;
    if at >= vectors {
        terminate!();
    }
    let values = input::<F, W, N>(x, bias, at, row, has_bias);
    let mut results = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for lane in 0..N::value() {
        results[lane] = values[lane] * distribution(values[lane]);
    }
    y[at as usize] = Vector::<F, N>::cast_from(results);
}

/// `gelu'(x) = Φ(x) + x·φ(x)`. Where the density is zero so is the product with a finite `x`.
#[cube(launch)]
pub(crate) fn activated_backward<F: Float, W: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    bias: &Tensor<Vector<W, N>>,
    grad: &Tensor<Vector<F, N>>,
    gradient: &mut Tensor<Vector<F, N>>,
    vectors: u32,
    row: u32,
    #[comptime] has_bias: bool,
    #[define(F, W)] _dtypes: [StorageType; 2],
) {
    let at = cube_index() * CUBE_DIM + UNIT_POS;
    if at >= vectors {
        terminate!();
    }
    let values = input::<F, W, N>(x, bias, at, row, has_bias);
    let mut slopes = Vector::<f32, N>::empty().fill(0.0);
    #[unroll]
    for lane in 0..N::value() {
        let value = values[lane];
        let density = f32::exp(-0.5 * value * value) * 0.398_942_3;
        slopes[lane] = distribution(value) + value * density;
    }
    gradient[at as usize] = Vector::<F, N>::cast_from(slopes * Vector::<f32, N>::cast_from(grad[at as usize]));
}
