// `x · Φ(x)`, exactly, of `x` or of `x + bias`; a thread for each element. Metal has no error function: this one is the rational
// approximation, odd over even polynomial, that Eigen and XLA use, within 4·10⁻⁷.

inline float error_function(float x) {
    x = clamp(x, -4.0f, 4.0f);
    float square = x * x;
    float p = -2.7261423e-10f;
    p = p * square + 2.7706814e-8f;
    p = p * square - 2.101024e-6f;
    p = p * square - 5.6925065e-5f;
    p = p * square - 7.349906e-4f;
    p = p * square - 2.9546e-3f;
    p = p * square - 1.6096033e-2f;
    float q = -1.4566072e-5f;
    q = q * square - 2.1337406e-4f;
    q = q * square - 1.682827e-3f;
    q = q * square - 7.373329e-3f;
    q = q * square - 1.4264739e-2f;
    return x * p / q;
}

inline float gelu(float x) {
    // `clamp` may lose NaN, which is then still in the product.
    float distribution = 0.5f + 0.5f * error_function(x * 0.70710678f);
    // Beyond these an f32 of `1 ± erf` is exactly 2 or 0, while the approximation is off by a rounding that a large `x` would multiply.
    distribution = x > 5.65f ? 1.0f : distribution;
    distribution = x < -5.65f ? 0.0f : distribution;
    return x * distribution;
}

kernel void gelu_f32(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant uint& elements [[buffer(2)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= elements) {
        return;
    }
    y[index] = float(gelu(float(x[index])));
}

kernel void gelu_bias_f32(
    device const float* x [[buffer(0)]],
    device const float* bias [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& elements [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= elements) {
        return;
    }
    y[index] = float(gelu(float(x[index]) + float(bias[index % width])));
}

kernel void gelu_f16(
    device const half* x [[buffer(0)]],
    device half* y [[buffer(1)]],
    constant uint& elements [[buffer(2)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= elements) {
        return;
    }
    y[index] = half(gelu(float(x[index])));
}

kernel void gelu_bias_f16(
    device const half* x [[buffer(0)]],
    device const half* bias [[buffer(1)]],
    device half* y [[buffer(2)]],
    constant uint& elements [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    uint index [[thread_position_in_grid]]) {
    if (index >= elements) {
        return;
    }
    y[index] = half(gelu(float(x[index]) + float(bias[index % width])));
}
