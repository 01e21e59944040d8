// `silu(gate) · up`, a thread for each element.

template <typename T>
inline void swiglu(device const T* gate, device const T* up, device T* y, uint elements, uint index) {
    if (index >= elements) {
        return;
    }
    float g = float(gate[index]);
    // In this order: `g · up` may overflow where the result does not.
    y[index] = T(g / (1.0f + exp(-g)) * float(up[index]));
}

kernel void swiglu_f32(
    device const float* gate [[buffer(0)]],
    device const float* up [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& elements [[buffer(3)]],
    uint index [[thread_position_in_grid]]) {
    swiglu(gate, up, y, elements, index);
}

kernel void swiglu_f16(
    device const half* gate [[buffer(0)]],
    device const half* up [[buffer(1)]],
    device half* y [[buffer(2)]],
    constant uint& elements [[buffer(3)]],
    uint index [[thread_position_in_grid]]) {
    swiglu(gate, up, y, elements, index);
}
