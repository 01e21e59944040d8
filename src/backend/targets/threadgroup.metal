// What the shaders of rows share: who a thread is, and reductions over its threadgroup. Put before each of them when it is compiled.
#include <metal_stdlib>
using namespace metal;

// A thread in its threadgroup, which has one row.
struct Member {
    ulong row;
    uint index;
    uint count;
    uint lane;
    uint simdgroup;
    uint simdgroups;
};

// Sum of a value over the threadgroup, in the same order in every thread. `partial` has one element for each simdgroup.
inline float threadgroup_sum(float value, threadgroup float* partial, Member member) {
    value = simd_sum(value);
    if (member.lane == 0) {
        partial[member.simdgroup] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float total = 0.0f;
    for (uint i = 0; i < member.simdgroups; i++) {
        total += partial[i];
    }
    // `partial` may be written again as soon as this returns.
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return total;
}

// The largest value in the threadgroup; a NaN may get lost.
inline float threadgroup_max(float value, threadgroup float* partial, Member member) {
    value = simd_max(value);
    if (member.lane == 0) {
        partial[member.simdgroup] = value;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float largest = partial[0];
    for (uint i = 1; i < member.simdgroups; i++) {
        largest = max(largest, partial[i]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return largest;
}
