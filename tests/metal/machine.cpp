// A machine that executes Metal kernels on the CPU and watches every load and store of them.
//
// A thread of a threadgroup is a fiber, 32 of them are a simdgroup; one OS thread runs them in turn, and switches only at barriers and
// simdgroup operations. The shader is a shared object in which clang calls `__sanitizer_cov_load…` and `__sanitizer_cov_store…` before each
// access (-fsanitize-coverage=trace-loads,trace-stores). A launch fails at the first
//  - access outside the buffers that are bound, the threadgroup arrays and the thread's own stack, and each store to a read-only buffer;
//  - read of threadgroup memory that no thread of the threadgroup has written;
//  - race: two threads at one byte, one of them writing, with no barrier for that memory in between (threadgroups are never in order);
//  - barrier or simdgroup operation that some threads of the group do not come to.
//
//   machine SHADER.so <REQUESTS >ANSWERS    all numbers little-endian; the driver is machine.rs
// Request: length and name of the function, u32 grid[3], u32 threadgroup[3], u32 buffers, for each: u32 writable, u64 bytes, contents.
// Answer:  u32 length and text of what went wrong (0: nothing), then each writable buffer's contents.
#include "machine.hpp"
#include <algorithm>
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <ucontext.h>
#include <unistd.h>
#include <vector>

namespace {
constexpr uint32_t SIMDGROUP = 32;
constexpr size_t STACK = 128 << 10;

enum class State { Ready, Barrier, Exchange, Done };
struct Fiber {
    ucontext_t context;
    char* stack;
    State state;
    uint32_t waiting_for; // the barrier's flags or the operation
    MetalThread self;
};
// The values that the lanes of a simdgroup have brought. Two in turn: a fast lane may come to the next operation before a slow one has read.
struct Simdgroup {
    uint64_t values[2][SIMDGROUP];
    uint32_t turn;
};
// Who touched a byte last. A thread's number is one more than its index in the grid; zero is nobody.
struct Cell {
    uint64_t writer, reader;
    uint32_t write_epoch, read_epoch;
    bool read_by_others, read_by_groups;
};
struct Region {
    uintptr_t begin, end;
    bool writable;
    std::vector<Cell> cells;
    const char* contents() const { return reinterpret_cast<const char*>(begin); }
};

std::vector<Fiber> fibers;
std::vector<Simdgroup> simdgroups;
std::vector<Region> buffers;
Region threadgroup_memory;
std::vector<unsigned char> forbidden; // guards between the threadgroup arrays
std::vector<std::pair<uintptr_t, uintptr_t>> constants;
ucontext_t scheduler;
uint32_t current, threads;
uint64_t group;
uint32_t device_epoch, threadgroup_epoch;
bool running;
std::string fault;
typedef void (*Kernel)(void* const* buffers, const MetalThread* self);
Kernel entry;
std::vector<void*> bound;

void to_scheduler() { swapcontext(&fibers[current].context, &scheduler); }

// Ends the launch: the scheduler stops at the first fault, and this fiber never runs again.
void fail(std::string what) {
    const MetalPosition& at = fibers[current].self.thread_position_in_threadgroup;
    const MetalPosition& row = fibers[current].self.threadgroup_position_in_grid;
    char where[160];
    snprintf(where, sizeof where, " (thread %u,%u,%u of threadgroup %u,%u,%u)", at.x, at.y, at.z, row.x, row.y, row.z);
    fault = what + where;
    running = false;
    to_scheduler();
    abort();
}

void touch_shared(Cell& cell, uint64_t me, bool write) {
    bool written_now = cell.writer && cell.write_epoch == threadgroup_epoch && cell.writer != me;
    bool read_now = cell.reader && cell.read_epoch == threadgroup_epoch && (cell.reader != me || cell.read_by_others);
    if (written_now) fail(write ? "race: two threads write a threadgroup cell" : "race: a threadgroup cell is read while another thread writes it");
    if (write && read_now) fail("race: a threadgroup cell is written while another thread reads it");
    if (!write && !cell.writer) fail("read of threadgroup memory that was never written");
    if (write) {
        cell.writer = me;
        cell.write_epoch = threadgroup_epoch;
    } else if (!cell.reader || cell.read_epoch != threadgroup_epoch) {
        cell.reader = me;
        cell.read_epoch = threadgroup_epoch;
        cell.read_by_others = false;
    } else if (cell.reader != me) {
        cell.read_by_others = true;
    }
}

void touch_device(Cell& cell, uint64_t me, bool write) {
    auto unordered = [&](uint64_t other, uint32_t epoch) {
        return other && other != me && ((other - 1) / threads != (me - 1) / threads || epoch == device_epoch);
    };
    if (unordered(cell.writer, cell.write_epoch))
        fail(write ? "race: two threads write an element of a buffer" : "race: an element of a buffer is read while another thread writes it");
    bool others = cell.reader && cell.read_by_others && cell.read_epoch == device_epoch;
    if (write && (cell.read_by_groups || others || unordered(cell.reader, cell.read_epoch)))
        fail("race: an element of a buffer is written while another thread reads it");
    if (write) {
        cell.writer = me;
        cell.write_epoch = device_epoch;
        return;
    }
    if (cell.reader && (cell.reader - 1) / threads != (me - 1) / threads) cell.read_by_groups = true;
    if (cell.reader != me && cell.read_epoch == device_epoch) cell.read_by_others = cell.reader != 0;
    if (cell.read_epoch != device_epoch) cell.read_by_others = false;
    cell.reader = me;
    cell.read_epoch = device_epoch;
}

void access(uintptr_t address, uintptr_t size, bool write) {
    if (!running) return;
    uintptr_t stack = reinterpret_cast<uintptr_t>(fibers[current].stack);
    if (address >= stack && address + size <= stack + STACK) return;
    uint64_t me = group * threads + current + 1;
    if (address >= threadgroup_memory.begin && address < threadgroup_memory.end) {
        uintptr_t offset = address - threadgroup_memory.begin;
        if (offset + size > forbidden.size()) fail("access behind a threadgroup array");
        for (uintptr_t i = offset; i < offset + size; i++) {
            if (forbidden[i]) fail("access behind a threadgroup array");
            touch_shared(threadgroup_memory.cells[i], me, write);
        }
        return;
    }
    for (size_t index = 0; index < buffers.size(); index++) {
        Region& buffer = buffers[index];
        if (address < buffer.begin || address >= buffer.end) continue;
        if (address + size > buffer.end) fail("access over the end of buffer " + std::to_string(index));
        if (write && !buffer.writable) fail("store to the read-only buffer " + std::to_string(index));
        if (buffer.writable)
            for (uintptr_t i = address - buffer.begin; i < address - buffer.begin + size; i++) touch_device(buffer.cells[i], me, write);
        return;
    }
    for (auto [begin, end] : constants)
        if (!write && address >= begin && address + size <= end) return;
    fail(write ? "store outside every buffer" : "load outside every buffer");
}

void start() {
    uint32_t me = current;
    entry(bound.data(), &fibers[me].self);
    fibers[me].state = State::Done;
    to_scheduler();
}

// Lets a simdgroup go on whose threads have all come to the same operation, or says that they never will.
bool finish_exchanges() {
    bool progress = false;
    for (uint32_t first = 0; first < threads; first += SIMDGROUP) {
        uint32_t last = std::min(first + SIMDGROUP, threads), waiting = 0, operation = 0;
        bool same = true;
        for (uint32_t i = first; i < last; i++) {
            if (fibers[i].state != State::Exchange) continue;
            same = same && (waiting == 0 || fibers[i].waiting_for == operation);
            operation = fibers[i].waiting_for;
            waiting++;
        }
        if (waiting == 0) continue;
        current = first;
        if (waiting != last - first || !same) {
            fault = "a simdgroup operation that not every thread of the simdgroup comes to";
            return false;
        }
        for (uint32_t i = first; i < last; i++) fibers[i].state = State::Ready;
        simdgroups[first / SIMDGROUP].turn ^= 1;
        progress = true;
    }
    return progress;
}

bool finish_barrier() {
    for (auto& fiber : fibers)
        if (fiber.state != State::Barrier || fiber.waiting_for != fibers[0].waiting_for) {
            fault = "a barrier that not every thread of the threadgroup comes to";
            return false;
        }
    if (fibers[0].waiting_for & 1) device_epoch++;
    if (fibers[0].waiting_for & 2) threadgroup_epoch++;
    for (auto& fiber : fibers) fiber.state = State::Ready;
    return true;
}

void run_threadgroup() {
    device_epoch++;
    threadgroup_epoch++;
    threadgroup_memory.cells.assign(threadgroup_memory.end - threadgroup_memory.begin, Cell{});
    for (size_t i = 0; i < forbidden.size(); i++)
        if (!forbidden[i]) reinterpret_cast<unsigned char*>(threadgroup_memory.begin)[i] = 0xFF;
    for (auto& simdgroup : simdgroups) simdgroup.turn = 0;
    for (uint32_t i = 0; i < threads; i++) {
        getcontext(&fibers[i].context);
        fibers[i].context.uc_stack.ss_sp = fibers[i].stack;
        fibers[i].context.uc_stack.ss_size = STACK;
        fibers[i].context.uc_link = nullptr;
        makecontext(&fibers[i].context, start, 0);
        fibers[i].state = State::Ready;
    }
    running = true;
    for (;;) {
        bool progress = false, done = true;
        for (uint32_t i = 0; i < threads; i++) {
            while (fibers[i].state == State::Ready) {
                current = i;
                swapcontext(&scheduler, &fibers[i].context);
                if (!fault.empty()) return;
                progress = true;
            }
            done = done && fibers[i].state == State::Done;
        }
        if (done) return;
        if (progress) continue;
        // Nobody can go on alone: simdgroups first, then the whole threadgroup.
        if (finish_exchanges()) continue;
        if (!fault.empty() || !finish_barrier()) return;
    }
}

int find_segments(dl_phdr_info* info, size_t, void* name) {
    if (strcmp(info->dlpi_name, static_cast<const char*>(name)) != 0) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& segment = info->dlpi_phdr[i];
        if (segment.p_type != PT_LOAD || segment.p_flags & PF_W) continue;
        constants.push_back({info->dlpi_addr + segment.p_vaddr, info->dlpi_addr + segment.p_vaddr + segment.p_memsz});
    }
    return 1;
}

bool read_all(void* into, size_t bytes) { return bytes == 0 || fread(into, 1, bytes, stdin) == bytes; }
uint32_t read_u32() {
    uint32_t value;
    if (!read_all(&value, 4)) exit(2);
    return value;
}
} // namespace

extern "C" {
void metal_barrier(uint32_t flags) {
    fibers[current].state = State::Barrier;
    fibers[current].waiting_for = flags;
    to_scheduler();
}
const uint64_t* metal_exchange(uint32_t operation, uint64_t value) {
    Simdgroup& simdgroup = simdgroups[current / SIMDGROUP];
    uint32_t turn = simdgroup.turn;
    simdgroup.values[turn][current % SIMDGROUP] = value;
    fibers[current].state = State::Exchange;
    fibers[current].waiting_for = operation;
    to_scheduler();
    return simdgroup.values[turn];
}
uint32_t metal_lane() { return current % SIMDGROUP; }
uint32_t metal_lanes() { return std::min(SIMDGROUP, threads - current / SIMDGROUP * SIMDGROUP); }
#define WATCH(SIZE)                                                                                                                    \
    void __sanitizer_cov_load##SIZE(void* address) { access(reinterpret_cast<uintptr_t>(address), SIZE, false); }                      \
    void __sanitizer_cov_store##SIZE(void* address) { access(reinterpret_cast<uintptr_t>(address), SIZE, true); }
WATCH(1) WATCH(2) WATCH(4) WATCH(8) WATCH(16)
}

int main(int, char** arguments) {
    alarm(300);
    void* shader = dlopen(arguments[1], RTLD_NOW);
    if (!shader) {
        fprintf(stderr, "%s\n", dlerror());
        return 2;
    }
    dl_iterate_phdr(find_segments, arguments[1]);
    auto symbol = [&](const char* name) { return reinterpret_cast<uintptr_t>(dlsym(shader, name)); };
    if (auto begin = reinterpret_cast<uintptr_t* (*)()>(symbol("metal_threadgroup_memory"))) {
        threadgroup_memory.begin = begin()[0];
        threadgroup_memory.end = begin()[1];
    }
    auto bytes = reinterpret_cast<unsigned char*>(threadgroup_memory.begin);
    for (uintptr_t i = 0; i < threadgroup_memory.end - threadgroup_memory.begin; i++) forbidden.push_back(bytes[i] == METAL_GUARD);
    uint32_t length;
    while (fread(&length, 4, 1, stdin) == 1) {
        std::string name(length, ' ');
        if (!read_all(name.data(), length)) return 2;
        MetalPosition grid{read_u32(), read_u32(), read_u32()}, size{read_u32(), read_u32(), read_u32()};
        entry = reinterpret_cast<Kernel>(symbol(("metal_enter_" + name).c_str()));
        if (!entry) {
            fprintf(stderr, "no function %s\n", name.c_str());
            return 2;
        }
        // Each buffer lies alone between bytes that belong to none.
        std::vector<std::vector<char>> storage(read_u32());
        buffers.clear();
        bound.clear();
        for (auto& bytes : storage) {
            bool writable = read_u32() != 0;
            uint64_t count;
            if (!read_all(&count, 8)) return 2;
            bytes.assign(count + 512, char(0xFF));
            char* begin = bytes.data() + 256 - reinterpret_cast<uintptr_t>(bytes.data()) % 64;
            if (!read_all(begin, count)) return 2;
            uintptr_t at = reinterpret_cast<uintptr_t>(begin);
            buffers.push_back({at, at + count, writable, std::vector<Cell>(writable ? count : 0)});
            bound.push_back(begin);
        }
        threads = size.x * size.y * size.z;
        for (auto& fiber : fibers) free(fiber.stack);
        fibers.assign(threads, Fiber{});
        for (auto& fiber : fibers) fiber.stack = static_cast<char*>(malloc(STACK));
        simdgroups.assign((threads + SIMDGROUP - 1) / SIMDGROUP, Simdgroup{});
        fault.clear();
        group = 0;
        for (uint32_t z = 0; z < grid.z && fault.empty(); z++)
            for (uint32_t y = 0; y < grid.y && fault.empty(); y++)
                for (uint32_t x = 0; x < grid.x && fault.empty(); x++, group++) {
                    for (uint32_t i = 0; i < threads; i++) {
                        MetalThread& self = fibers[i].self;
                        MetalPosition place{i % size.x, i / size.x % size.y, i / size.x / size.y};
                        self.thread_position_in_threadgroup = place;
                        self.threadgroup_position_in_grid = {x, y, z};
                        self.thread_position_in_grid = {x * size.x + place.x, y * size.y + place.y, z * size.z + place.z};
                        self.threads_per_threadgroup = size;
                        self.threadgroups_per_grid = grid;
                        self.threads_per_grid = {grid.x * size.x, grid.y * size.y, grid.z * size.z};
                        self.thread_index_in_threadgroup = i;
                        self.thread_index_in_simdgroup = i % SIMDGROUP;
                        self.simdgroup_index_in_threadgroup = i / SIMDGROUP;
                        self.simdgroups_per_threadgroup = uint32_t(simdgroups.size());
                        self.threads_per_simdgroup = SIMDGROUP;
                    }
                    run_threadgroup();
                }
        running = false;
        uint32_t said = uint32_t(fault.size());
        fwrite(&said, 4, 1, stdout);
        fwrite(fault.data(), 1, said, stdout);
        for (auto& buffer : buffers)
            if (buffer.writable) fwrite(buffer.contents(), 1, buffer.end - buffer.begin, stdout);
    }
    return 0;
}
