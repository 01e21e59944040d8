// Layer norm with an affine map: a threadgroup for each row. The variance is taken about the mean, in a pass of its own: squares alone
// lose digits where the mean is large.

template <typename T>
inline void layer_norm(
    device const T* x, device const T* weight, device const T* bias, device T* y, uint width, float epsilon,
    threadgroup float* partial, Member member) {
    x += member.row * width;
    y += member.row * width;
    float total = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        total += float(x[i]);
    }
    float mean = threadgroup_sum(total, partial, member) / float(width);
    float squares = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        float v = float(x[i]) - mean;
        squares += v * v;
    }
    float inverse = 1.0f / sqrt(threadgroup_sum(squares, partial, member) / float(width) + epsilon);
    for (uint i = member.index; i < width; i += member.count) {
        y[i] = T((float(x[i]) - mean) * inverse * float(weight[i]) + float(bias[i]));
    }
}

kernel void layer_norm_f32(
    device const float* x [[buffer(0)]],
    device const float* weight [[buffer(1)]],
    device const float* bias [[buffer(2)]],
    device float* y [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    constant float& epsilon [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    layer_norm(x, weight, bias, y, width, epsilon, partial, member);
}

kernel void layer_norm_f16(
    device const half* x [[buffer(0)]],
    device const half* weight [[buffer(1)]],
    device const half* bias [[buffer(2)]],
    device half* y [[buffer(3)]],
    constant uint& width [[buffer(4)]],
    constant float& epsilon [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    layer_norm(x, weight, bias, y, width, epsilon, partial, member);
}
