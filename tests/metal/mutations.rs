//! Shaders made wrong on purpose, each by one change of its text, and by what that must be noticed.

/// One change.
#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) op: &'static str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    /// Part of what the check says.
    pub(super) caught_by: &'static str,
}

impl Mutation {
    /// The text with the first place changed.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn apply(&self, source: &str) -> String {
        assert!(source.contains(self.from), "{} no longer contains `{}`", self.op, self.from);
        source.replacen(self.from, self.to, 1)
    }
}

const fn mutation(op: &'static str, from: &'static str, to: &'static str, caught_by: &'static str) -> Mutation {
    Mutation { op, from, to, caught_by }
}

const BARRIER: &str = "threadgroup_barrier(mem_flags::mem_threadgroup);";
/// That of a sum keeps the next reduction from writing what is still read.
const SECOND_BARRIER: &str = "    // `partial` may be written again as soon as this returns.\n    threadgroup_barrier(mem_flags::mem_threadgroup);";
const RACE: &str = "race: a threadgroup cell";
const VALUE: &str = "instead of";
const BOUNDS: &str = "outside every buffer";

#[rustfmt::skip]
pub(super) const MUTATIONS: &[Mutation] = &[
    mutation("rms_norm", BARRIER, "", "threadgroup"),
    mutation("rms_norm", BARRIER, "threadgroup_barrier(mem_flags::mem_none);", "threadgroup"),
mutation("rms_norm", SECOND_BARRIER, "    if (member.index < 128) { threadgroup_barrier(mem_flags::mem_threadgroup); }", "a barrier that not every thread"),
    mutation("rms_norm", "+ epsilon", "", VALUE),
    mutation("rms_norm", "i < width", "i <= width", "buffer"),
    mutation("rms_norm", "i += member.count", "i += 32", VALUE),
    mutation("rms_norm", "x += member.row * width", "x += member.row * (width + 1)", "buffer"),
    mutation("rms_norm", "constant uint& width [[buffer(3)]]", "constant uint& width [[buffer(4)]]", "buffer"),
    mutation("rms_norm", "i < member.simdgroups", "i < 8", "never written"),
    mutation("add_rms_norm", BARRIER, "", "threadgroup"),
    mutation("add_rms_norm", "float(sum[i]) * inverse", "float(x[i]) * inverse", VALUE),
    mutation("add_rms_norm", "normed[i] = T(float(sum[i])", "normed[i] = T(float(sum[width - 1 - i])", "race: an element of a buffer"),
    mutation("add_rms_norm", "+ epsilon", "+ 1e-3f", VALUE),
    mutation("layer_norm", SECOND_BARRIER, "", RACE),
    mutation("layer_norm", " - mean;", ";", VALUE),
    mutation("layer_norm", "float(bias[i])", "float(bias[i + 1])", BOUNDS),
    mutation("add_layer_norm", SECOND_BARRIER, "", RACE),
    mutation("add_layer_norm", "T added = T(float(x[i]) + float(residual[i]));", "T added = T(float(x[i]) - float(residual[i]));", VALUE),
    mutation("softmax", "float largest = partial[0];", "float largest = value;", VALUE),
    mutation("softmax", "value = simd_max(value);", "value = simd_sum(value);", VALUE),
    mutation("softmax", "largest = max(largest, partial[i]);\n    }\n    threadgroup_barrier(mem_flags::mem_threadgroup);", "largest = max(largest, partial[i]);\n    }", RACE),
    mutation("softmax", "row % mask_rows", "row", BOUNDS),
    mutation("softmax", "v + float(mask[i])", "v", VALUE),
    mutation("softmax", "float(x[i]) * scale", "float(x[i])", VALUE),
    mutation("rope", "index >= pairs", "index > pairs", "buffer"),
    mutation("rope", "a * c - b * s", "a * c + b * s", VALUE),
    mutation("rope", "head / heads", "head", "buffer"),
    mutation("norm_rope", BARRIER, "", "threadgroup"),
    mutation("norm_rope", "y[i] = T(a * c - b * s);", "y[i] = T(a * c + b * s);", VALUE),
    mutation("norm_rope", "cos += (member.row / heads)", "cos += member.row", "buffer"),
    mutation("norm_rope", "weight[i + half_width]", "weight[i]", VALUE),
    mutation("swiglu", "index >= elements", "index > elements", "buffer"),
    mutation("swiglu", "exp(-g)", "exp(g)", VALUE),
    mutation("swiglu", "g / (1.0f + exp(-g)) * float(up[index])", "g * float(up[index]) / (1.0f + exp(-g)) * 1.001f", VALUE),
    mutation("gelu", "index >= elements", "index > elements", "buffer"),
    mutation("gelu", "0.70710678f", "0.7075f", VALUE),
    mutation("gelu", "x < -5.65f ? 0.0f", "x < -5.65f ? 1.0f", VALUE),
    mutation("gelu", "index % width", "index", BOUNDS),
];
