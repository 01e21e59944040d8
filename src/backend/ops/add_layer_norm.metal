// A residual added and the sum layer-normed, in one launch. The sum is held in the output until it is replaced, so that what is normed is
// the sum in the dtype of the tensors.

template <typename T>
inline void add_layer_norm(
    device const T* x, device const T* residual, device const T* weight, device const T* bias, device T* y, uint width,
    float epsilon, threadgroup float* partial, Member member) {
    x += member.row * width;
    residual += member.row * width;
    y += member.row * width;
    float total = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        T added = T(float(x[i]) + float(residual[i]));
        y[i] = added;
        total += float(added);
    }
    float mean = threadgroup_sum(total, partial, member) / float(width);
    // Each thread reads back only what it wrote itself.
    float squares = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        float v = float(y[i]) - mean;
        squares += v * v;
    }
    float inverse = 1.0f / sqrt(threadgroup_sum(squares, partial, member) / float(width) + epsilon);
    for (uint i = member.index; i < width; i += member.count) {
        y[i] = T((float(y[i]) - mean) * inverse * float(weight[i]) + float(bias[i]));
    }
}

kernel void add_layer_norm_f32(
    device const float* x [[buffer(0)]],
    device const float* residual [[buffer(1)]],
    device const float* weight [[buffer(2)]],
    device const float* bias [[buffer(3)]],
    device float* y [[buffer(4)]],
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
    add_layer_norm(x, residual, weight, bias, y, width, epsilon, partial, member);
}

kernel void add_layer_norm_f16(
    device const half* x [[buffer(0)]],
    device const half* residual [[buffer(1)]],
    device const half* weight [[buffer(2)]],
    device const half* bias [[buffer(3)]],
    device half* y [[buffer(4)]],
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
    add_layer_norm(x, residual, weight, bias, y, width, epsilon, partial, member);
}
