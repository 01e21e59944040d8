// Between a shader and the machine that executes it on the CPU: what a thread knows about itself, and what it asks of the others.
// The machine's side is machine.cpp; the shader's side is the stand-in for <metal_stdlib> beside this file.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct MetalPosition {
    uint32_t x, y, z;
};

// The built-in arguments of a kernel.
struct MetalThread {
    MetalPosition thread_position_in_threadgroup, threadgroup_position_in_grid, thread_position_in_grid;
    MetalPosition threads_per_threadgroup, threadgroups_per_grid, threads_per_grid;
    uint32_t thread_index_in_threadgroup, thread_index_in_simdgroup, simdgroup_index_in_threadgroup;
    uint32_t simdgroups_per_threadgroup, threads_per_simdgroup;
};

// Threadgroup memory lies in a section of its own, so that the machine finds it. Behind each array come bytes that nobody may touch:
// the section is zero wherever it may be used.
constexpr unsigned char METAL_GUARD = 0xA5;
template <class T, size_t N> struct alignas(64) MetalThreadgroupArray {
    T cells[N];
    unsigned char guard[64 + (64 - sizeof(T) * N % 64) % 64];
    constexpr MetalThreadgroupArray() : cells{}, guard{} {
        for (auto& byte : guard) byte = METAL_GUARD;
    }
};
// Other threads write the array while this one waits, which the optimiser must believe.
template <class T, size_t N> inline T (&metal_shared(MetalThreadgroupArray<T, N>& array))[N] {
    MetalThreadgroupArray<T, N>* pointer = &array;
    asm volatile("" : "+r"(pointer) : : "memory");
    return pointer->cells;
}

extern "C" {
// Waits for every thread of the threadgroup. The flags say which memory is in order afterwards: 1 device, 2 threadgroup.
__attribute__((convergent)) void metal_barrier(uint32_t flags);
// Waits for every thread of the simdgroup to come to the same operation with its value; the values of all of them, by lane.
__attribute__((convergent)) const uint64_t* metal_exchange(uint32_t operation, uint64_t value);
uint32_t metal_lane();
uint32_t metal_lanes();
}
