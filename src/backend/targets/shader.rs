//! The hand-written Metal shaders: which function of which file an op runs, its constants, and how many threads. Nothing here needs Metal:
//! a Mac binds and launches exactly what the tests execute on the CPU.

/// What every shader of rows begins with.
const THREADGROUP: &str = include_str!("threadgroup.metal");

/// The files, by the op that each is for.
#[rustfmt::skip]
pub(crate) const SOURCES: [(&str, &str); 9] = [
    ("rms_norm", include_str!("../ops/rms_norm.metal")),
    ("add_rms_norm", include_str!("../ops/add_rms_norm.metal")),
    ("layer_norm", include_str!("../ops/layer_norm.metal")),
    ("add_layer_norm", include_str!("../ops/add_layer_norm.metal")),
    ("softmax", include_str!("../ops/softmax.metal")),
    ("rope", include_str!("../ops/rope.metal")),
    ("norm_rope", include_str!("../ops/norm_rope.metal")),
    ("swiglu", include_str!("../ops/swiglu.metal")),
    ("gelu", include_str!("../ops/gelu.metal")),
];

/// The largest threadgroup of a row: eight simdgroups. Shorter rows take as many simdgroups as they fill.
const ROW_THREADS: usize = 256;

/// The threadgroup of a shader that has a thread for each element.
const ELEMENT_THREADS: usize = 256;

/// A number that a shader takes as `constant uint&` or `constant float&`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Constant {
    /// A length or a count.
    Unsigned(u32),
    /// An epsilon or a scale.
    Float(f32),
}

impl Constant {
    /// As Metal reads it.
    pub(crate) fn bytes(self) -> [u8; 4] {
        match self {
            Self::Unsigned(value) => value.to_ne_bytes(),
            Self::Float(value) => value.to_ne_bytes(),
        }
    }
}

/// One launch. Its buffers are the inputs in order, the outputs in order, then the constants.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Launch {
    /// The op, which names the file.
    pub(crate) op: &'static str,
    /// The function without its dtype.
    pub(crate) function: &'static str,
    /// How many outputs, each of the first input's size.
    pub(crate) outputs: usize,
    /// After the outputs.
    pub(crate) constants: Vec<Constant>,
    /// Threadgroups of the grid.
    pub(crate) threadgroups: usize,
    /// Threads of each.
    pub(crate) threads: usize,
}

impl Launch {
    /// A threadgroup for each row.
    fn rows(op: &'static str, rows: usize, width: usize, rest: &[Constant]) -> Self {
        let mut constants = vec![unsigned(width)];
        constants.extend_from_slice(rest);
        let threads = width.next_multiple_of(32).clamp(32, ROW_THREADS);
        Self { op, function: op, outputs: 1, constants, threadgroups: rows, threads }
    }

    /// A thread for each of `elements`, which is the first constant.
    fn elements(op: &'static str, elements: usize, rest: &[Constant]) -> Self {
        let mut constants = vec![unsigned(elements)];
        constants.extend_from_slice(rest);
        let threadgroups = elements.div_ceil(ELEMENT_THREADS);
        Self { op, function: op, outputs: 1, constants, threadgroups, threads: ELEMENT_THREADS }
    }
}

fn unsigned(value: usize) -> Constant {
    // Positions in a Metal grid are 32 bits wide; a tensor of more elements than that is above any device's memory.
    Constant::Unsigned(u32::try_from(value).expect("a Metal launch counts in 32 bits"))
}

/// The whole text of an op's library.
///
/// # Panics
/// If no file is for that op.
pub(crate) fn source(op: &str) -> String {
    let found = SOURCES.iter().find(|(name, _)| *name == op);
    let (_, text) = found.unwrap_or_else(|| panic!("no shader for {op}"));
    format!("{THREADGROUP}\n{text}")
}

/// Inputs `x`, `weight`.
pub(crate) fn rms_norm(rows: usize, width: usize, epsilon: f64) -> Launch {
    Launch::rows("rms_norm", rows, width, &[Constant::Float(epsilon as f32)])
}

/// Inputs `x`, `residual`, `weight`; outputs their sum and its norm.
pub(crate) fn add_rms_norm(rows: usize, width: usize, epsilon: f64) -> Launch {
    Launch { outputs: 2, ..Launch::rows("add_rms_norm", rows, width, &[Constant::Float(epsilon as f32)]) }
}

/// Inputs `x`, `weight`, `bias`.
pub(crate) fn layer_norm(rows: usize, width: usize, epsilon: f64) -> Launch {
    Launch::rows("layer_norm", rows, width, &[Constant::Float(epsilon as f32)])
}

/// Inputs `x`, `residual`, `weight`, `bias`.
pub(crate) fn add_layer_norm(rows: usize, width: usize, epsilon: f64) -> Launch {
    Launch::rows("add_layer_norm", rows, width, &[Constant::Float(epsilon as f32)])
}

/// Inputs `x` and, where it has rows, `mask`.
pub(crate) fn softmax(rows: usize, width: usize, scale: f64, mask_rows: Option<usize>) -> Launch {
    let scale = Constant::Float(scale as f32);
    match mask_rows {
        None => Launch::rows("softmax", rows, width, &[scale]),
        Some(mask_rows) => {
            Launch { function: "softmax_mask", ..Launch::rows("softmax", rows, width, &[scale, unsigned(mask_rows)]) }
        }
    }
}

/// Inputs `x` `[tokens, heads, dim]`, `cos`, `sin`.
pub(crate) fn rope(tokens: usize, heads: usize, dim: usize) -> Launch {
    Launch::elements("rope", tokens * heads * (dim / 2), &[unsigned(heads), unsigned(dim / 2)])
}

/// Inputs `x` `[tokens, heads, dim]`, `weight`, `cos`, `sin`.
pub(crate) fn norm_rope(tokens: usize, heads: usize, dim: usize, epsilon: f64) -> Launch {
    Launch::rows("norm_rope", tokens * heads, dim, &[Constant::Float(epsilon as f32), unsigned(heads)])
}

/// Inputs `gate`, `up`.
pub(crate) fn swiglu(elements: usize) -> Launch {
    Launch::elements("swiglu", elements, &[])
}

/// Inputs `x` and, where rows have that width, `bias`.
pub(crate) fn gelu(elements: usize, bias_width: Option<usize>) -> Launch {
    match bias_width {
        None => Launch::elements("gelu", elements, &[]),
        Some(width) => Launch { function: "gelu_bias", ..Launch::elements("gelu", elements, &[unsigned(width)]) },
    }
}
