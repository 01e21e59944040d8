// The norm of each head and its rotation by halves: a threadgroup for each head, which is read twice; sums in f32.

template <typename T>
inline void norm_rope(
    device const T* x, device const T* weight, device const T* cos, device const T* sin, device T* y, uint width, float epsilon,
    uint heads, threadgroup float* partial, Member member) {
    x += member.row * width;
    y += member.row * width;
    float squares = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        float v = float(x[i]);
        squares += v * v;
    }
    float inverse = 1.0f / sqrt(threadgroup_sum(squares, partial, member) / float(width) + epsilon);
    uint half_width = width / 2;
    cos += (member.row / heads) * half_width;
    sin += (member.row / heads) * half_width;
    for (uint i = member.index; i < half_width; i += member.count) {
        float a = float(x[i]) * inverse * float(weight[i]);
        float b = float(x[i + half_width]) * inverse * float(weight[i + half_width]);
        float c = float(cos[i]);
        float s = float(sin[i]);
        y[i] = T(a * c - b * s);
        y[i + half_width] = T(b * c + a * s);
    }
}

kernel void norm_rope_f32(
    device const float* x [[buffer(0)]],
    device const float* weight [[buffer(1)]],
    device const float* cos [[buffer(2)]],
    device const float* sin [[buffer(3)]],
    device float* y [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant float& epsilon [[buffer(6)]],
    constant uint& heads [[buffer(7)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    norm_rope(x, weight, cos, sin, y, width, epsilon, heads, partial, member);
}

kernel void norm_rope_f16(
    device const half* x [[buffer(0)]],
    device const half* weight [[buffer(1)]],
    device const half* cos [[buffer(2)]],
    device const half* sin [[buffer(3)]],
    device half* y [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant float& epsilon [[buffer(6)]],
    constant uint& heads [[buffer(7)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    norm_rope(x, weight, cos, sin, y, width, epsilon, heads, partial, member);
}
