// A residual added and the sum normed by its root mean square, in one launch: both come out. What is normed is the sum as it is stored.

template <typename T>
inline void add_rms_norm(
    device const T* x, device const T* residual, device const T* weight, device T* sum, device T* normed, uint width, float epsilon,
    threadgroup float* partial, Member member) {
    x += member.row * width;
    residual += member.row * width;
    sum += member.row * width;
    normed += member.row * width;
    float squares = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        T added = T(float(x[i]) + float(residual[i]));
        sum[i] = added;
        squares += float(added) * float(added);
    }
    float inverse = 1.0f / sqrt(threadgroup_sum(squares, partial, member) / float(width) + epsilon);
    // Each thread reads back only what it wrote itself.
    for (uint i = member.index; i < width; i += member.count) {
        normed[i] = T(float(sum[i]) * inverse * float(weight[i]));
    }
}

kernel void add_rms_norm_f32(
    device const float* x [[buffer(0)]],
    device const float* residual [[buffer(1)]],
    device const float* weight [[buffer(2)]],
    device float* sum [[buffer(3)]],
    device float* normed [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant float& epsilon [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    add_rms_norm(x, residual, weight, sum, normed, width, epsilon, partial, member);
}

kernel void add_rms_norm_f16(
    device const half* x [[buffer(0)]],
    device const half* residual [[buffer(1)]],
    device const half* weight [[buffer(2)]],
    device half* sum [[buffer(3)]],
    device half* normed [[buffer(4)]],
    constant uint& width [[buffer(5)]],
    constant float& epsilon [[buffer(6)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    add_rms_norm(x, residual, weight, sum, normed, width, epsilon, partial, member);
}
