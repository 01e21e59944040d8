// Softmax of `x · scale + mask` over rows: a threadgroup for each. A mask has whole rows too, which repeat when there are fewer of them.
// NaN need not survive the maximum: its exponential spoils the sum. A row of −∞ alone becomes NaN.

template <typename T>
inline float scaled(device const T* x, device const T* mask, bool masked, float scale, uint i) {
    float v = float(x[i]) * scale;
    return masked ? v + float(mask[i]) : v;
}

template <typename T>
inline void softmax(
    device const T* x, device const T* mask, bool masked, device T* y, uint width, float scale, threadgroup float* partial,
    Member member) {
    x += member.row * width;
    y += member.row * width;
    float largest = -INFINITY;
    for (uint i = member.index; i < width; i += member.count) {
        largest = max(largest, scaled(x, mask, masked, scale, i));
    }
    largest = threadgroup_max(largest, partial, member);
    float total = 0.0f;
    for (uint i = member.index; i < width; i += member.count) {
        total += exp(scaled(x, mask, masked, scale, i) - largest);
    }
    total = threadgroup_sum(total, partial, member);
    for (uint i = member.index; i < width; i += member.count) {
        y[i] = T(exp(scaled(x, mask, masked, scale, i) - largest) / total);
    }
}

kernel void softmax_f32(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    constant uint& width [[buffer(2)]],
    constant float& scale [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    softmax(x, x, false, y, width, scale, partial, member);
}

kernel void softmax_mask_f32(
    device const float* x [[buffer(0)]],
    device const float* mask [[buffer(1)]],
    device float* y [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant float& scale [[buffer(4)]],
    constant uint& mask_rows [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    softmax(x, mask + ulong(row % mask_rows) * width, true, y, width, scale, partial, member);
}

kernel void softmax_f16(
    device const half* x [[buffer(0)]],
    device half* y [[buffer(1)]],
    constant uint& width [[buffer(2)]],
    constant float& scale [[buffer(3)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    softmax(x, x, false, y, width, scale, partial, member);
}

kernel void softmax_mask_f16(
    device const half* x [[buffer(0)]],
    device const half* mask [[buffer(1)]],
    device half* y [[buffer(2)]],
    constant uint& width [[buffer(3)]],
    constant float& scale [[buffer(4)]],
    constant uint& mask_rows [[buffer(5)]],
    uint row [[threadgroup_position_in_grid]],
    uint index [[thread_position_in_threadgroup]],
    uint count [[threads_per_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint simdgroups [[simdgroups_per_threadgroup]]) {
    threadgroup float partial[32];
    Member member{row, index, count, lane, simdgroup, simdgroups};
    softmax(x, mask + ulong(row % mask_rows) * width, true, y, width, scale, partial, member);
}
