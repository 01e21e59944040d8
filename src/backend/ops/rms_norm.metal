// Root mean square norm: a threadgroup for each row, which is read twice; sums in f32.

template <typename T>
inline void rms_norm(
    device const T* x, device const T* weight, device T* y, uint width, float epsilon, threadgroup float* partial, Member member) {
    x += member.row * width;
    y += member.row * width;
    float squares = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        float v = float(x[i]);
        squares += v * v;
    }
    float inverse = 1.0f / sqrt(threadgroup_sum(squares, partial, member) / float(width) + epsilon);
    for (uint i = member.index; i < width; i += member.count) {
        y[i] = T(float(x[i]) * inverse * float(weight[i]));
    }
}

kernel void rms_norm_f32(
    device const float* x [[buffer(0)]],
    device const float* weight [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant float& epsilon [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    rms_norm(x, weight, y, width, epsilon, partial, member);
}

kernel void rms_norm_f16(
    device const half* x [[buffer(0)]],
    device const half* weight [[buffer(1)]],
    device half* y [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant float& epsilon [[buffer(4)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    rms_norm(x, weight, y, width, epsilon, partial, member);
}
