// Rotation by halves: a thread for each pair of elements of a head. The angles are a token's, shared by its heads.

template <typename T>
inline void rope(
    device const T* x, device const T* cos, device const T* sin, device T* y, uint pairs, uint heads, uint half_width, uint index) {
    if (index >= pairs) {
        return;
    }
    uint head = index / half_width;
    uint at = index % half_width;
    ulong angle = ulong(head / heads) * half_width + at;
    ulong low = ulong(head) * half_width * 2 + at;
    ulong high = low + half_width;
    float a = float(x[low]);
    float b = float(x[high]);
    float c = float(cos[angle]);
    float s = float(sin[angle]);
    y[low] = T(a * c - b * s);
    y[high] = T(b * c + a * s);
}

kernel void rope_f32(
    device const float* x [[buffer(0)]],
    device const float* cos [[buffer(1)]],
    device const float* sin [[buffer(2)]],
    device float* y [[buffer(3)]],
    constant uint& pairs [[buffer(4)]],
    constant uint& heads [[buffer(5)]],
    constant uint& half_width [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    rope(x, cos, sin, y, pairs, heads, half_width, index);
}

kernel void rope_f16(
    device const half* x [[buffer(0)]],
    device const half* cos [[buffer(1)]],
    device const half* sin [[buffer(2)]],
    device half* y [[buffer(3)]],
    constant uint& pairs [[buffer(4)]],
    constant uint& heads [[buffer(5)]],
    constant uint& half_width [[buffer(6)]],
    uint index [[thread_position_in_grid]]) {
    rope(x, cos, sin, y, pairs, heads, half_width, index);
}
