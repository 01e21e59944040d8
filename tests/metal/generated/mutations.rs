//! Kernels made wrong on purpose, each by one change of the source that CubeCL makes of it, and by what that must be noticed.

const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";
const MEMORY: &str = "threadgroup memory that was never written";
const RACE: &str = "race: two threads write";
const VALUE: &str = "instead of";
/// The second row of cubes does what the first one does.
const CUBE: (&str, &str) = ("threadgroup_pos_in_grid.y * threadgroups_per_grid.x", "threadgroup_pos_in_grid.z");
/// The tree leaves half of the units out.
const TREE: (&str, &str) = ("total_thread_in_threadgroup / uint(2);", "total_thread_in_threadgroup / uint(4);");
/// Two planes write one cell.
const PLANE: (&str, &str) = ("thread_index_in_threadgroup / uint(32);", "thread_index_in_threadgroup / uint(64);");
/// Each plane's largest value for its sum.
const SUM: (&str, &str) = ("simd_sum(", "simd_max(");

/// In a kernel's source, for that, by which it must be noticed.
pub(super) const MUTATIONS: &[(&str, &str, &str, &str)] = &[
    ("rms_norm::norm", BARRIER, "", MEMORY),
    ("rms_norm::norm", PLANE.0, PLANE.1, RACE),
    ("rms_norm::norm", TREE.0, TREE.1, VALUE),
    ("rms_norm::norm", CUBE.0, CUBE.1, RACE),
    ("rms_norm::norm_backward", BARRIER, "", MEMORY),
    ("rms_norm::norm_backward", SUM.0, SUM.1, VALUE),
    ("add_rms_norm::add_norm", BARRIER, "", MEMORY),
    ("add_rms_norm::add_norm", "sqrt(", "exp(", VALUE),
    ("layer_norm::norm", BARRIER, "", MEMORY),
    ("layer_norm::norm", SUM.0, SUM.1, VALUE),
    ("layer_norm::norm_backward", BARRIER, "", MEMORY),
    ("layer_norm::norm_backward", TREE.0, TREE.1, VALUE),
    ("add_layer_norm::add_norm", PLANE.0, PLANE.1, RACE),
    ("add_layer_norm::add_norm", "sqrt(", "exp(", VALUE),
    ("softmax::exponentials", BARRIER, "", MEMORY),
    ("softmax::exponentials", "exp(", "sqrt(", VALUE),
    ("softmax::exponentials", "% info.scalars_uint[2]", "% info.scalars_uint[0]", VALUE),
    ("softmax::exponentials_backward", BARRIER, "", MEMORY),
    ("softmax::exponentials_backward", SUM.0, SUM.1, VALUE),
    ("linear::rows_times_weight", BARRIER, "", MEMORY),
    ("linear::rows_times_weight", TREE.0, TREE.1, VALUE),
    ("linears::rows_times_weights", BARRIER, "", MEMORY),
    ("linears::rows_times_weights", TREE.0, TREE.1, VALUE),
    ("linears::rows_times_weights", "info.scalars_uint[4] + ", "", RACE),
    // A scale in f16 that is smaller than the normal ones.
    ("linear::rows_times_weight", "< uint(1024)", "< uint(0)", VALUE),
    ("embedding::unpack_rows", "< uint(1024)", "< uint(0)", VALUE),
    ("attention::attend", BARRIER, "", MEMORY),
    ("attention::attend", "exp(", "sqrt(", VALUE),
    ("attention::attend", "threadgroup_pos_in_grid.y * uint(2)", "threadgroup_pos_in_grid.y * uint(1)", VALUE),
    ("rope::turn_pairs", "l_15 - l_16", "l_15 + l_16", VALUE),
    ("rope::turn_pairs", "info.scalars_uint[3] + ", "", VALUE),
    ("norm_rope::norm_and_turn", BARRIER, "", MEMORY),
    ("norm_rope::norm_and_turn", "sqrt(", "exp(", VALUE),
    ("norm_rope::norm_and_turn", CUBE.0, CUBE.1, RACE),
    ("write_rows::place_values", "info.scalars_uint[1] + ", "", VALUE),
    ("write_rows::place_values", ">= info.scalars_uint[0]", "> info.scalars_uint[0]", VALUE),
    ("swiglu::gated", "exp(", "sqrt(", VALUE),
    ("swiglu::gated", CUBE.0, CUBE.1, RACE),
    ("swiglu::gated_backward", "exp(", "sqrt(", VALUE),
    ("swiglu::gated_backward", CUBE.0, CUBE.1, RACE),
    ("gelu::activated", "% info.scalars_uint[1]", "/ info.scalars_uint[1]", VALUE),
    ("gelu::activated", "float(0.7071067690849304)", "float(0.7075)", VALUE),
    ("gelu::activated_backward", "exp(", "sqrt(", VALUE),
    ("gelu::activated_backward", "float(0.7071067690849304)", "float(0.7075)", VALUE),
];
