//! What can go wrong in the framework, as facts with their data. Printing and exit codes belong to the binary.

use std::path::PathBuf;

/// Everything core and the model families return on failure. A variant names the thing, the place and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file operation.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file is not what its name or header promises.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A checkpoint in a format that can execute code when it is read.
    #[error(
        "{}: a pickle file can run code when it is read and is refused; convert it with `transformers` (save_pretrained writes safetensors)",
        path.display()
    )]
    Pickle {
        /// The refused file.
        path: PathBuf,
    },
    /// The checkpoint's tensors and the model's do not match; everything found is listed at once.
    #[error("{}: the checkpoint does not fit the model{}", path.display(), mismatch_lines(missing, surplus, misshapen))]
    TensorMismatch {
        /// The checkpoint folder or file.
        path: PathBuf,
        /// Tensors the model needs and the checkpoint lacks.
        missing: Vec<String>,
        /// Tensors the checkpoint has and the model does not know.
        surplus: Vec<String>,
        /// Tensors of the wrong shape or dtype: name, expected, found.
        misshapen: Vec<(String, String, String)>,
    },
    /// `config.json` asks for mathematics that is not implemented.
    #[error("{}: `{key}` = {value} is not supported: {reason}", path.display())]
    UnsupportedConfig {
        /// The config file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Its value, as JSON.
        value: String,
        /// What is supported instead.
        reason: String,
    },
    /// No family reads this `model_type`.
    #[error("{}: model_type `{model_type}` is not supported; supported are {}", path.display(), supported.join(", "))]
    UnknownModelType {
        /// The config file.
        path: PathBuf,
        /// The type found there.
        model_type: String,
        /// Every type a family reads.
        supported: Vec<String>,
    },
    /// A model that is not of the kind the work needs.
    #[error("{}: model_type `{model_type}` is {is}; this needs {wanted}", path.display())]
    WrongRole {
        /// The config file.
        path: PathBuf,
        /// The type found there.
        model_type: String,
        /// What such a model is.
        is: &'static str,
        /// What was needed.
        wanted: &'static str,
    },
    /// An adapter that cannot be read, or asks for something not implemented.
    #[error("adapter {}: {problem}", path.display())]
    Adapter {
        /// The adapter folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// An adapter made for another base model.
    #[error("adapter {adapter} does not fit this model: {}", problems.join("; "))]
    AdapterMismatch {
        /// The adapter's name or folder.
        adapter: String,
        /// Each module that does not fit, and why.
        problems: Vec<String>,
    },
    /// LoRA targets that select no linear.
    #[error("LoRA target {targets} matches no linear of the model; there are {}", available.join(", "))]
    NoSuchTarget {
        /// The targets as given.
        targets: String,
        /// The linear names that exist.
        available: Vec<String>,
    },
    /// A value outside its bounds.
    #[error("{name} = {value} is out of bounds: {bounds}")]
    OutOfBounds {
        /// The parameter.
        name: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        bounds: String,
    },
    /// Nothing to work on.
    #[error("the prompt is empty: at least one token is needed")]
    EmptyPrompt,
    /// A text without a token.
    #[error("the text has no token to embed")]
    EmptyText,
    /// A text among several that cannot be used.
    #[error("text {row}: {source}")]
    Text {
        /// Its number among them, from 0.
        row: usize,
        /// What is wrong with it.
        #[source]
        source: Box<Error>,
    },
    /// More tokens than the model has positions for.
    #[error("the prompt has {tokens} tokens but the model's context ends at {limit}")]
    PromptTooLong {
        /// Tokens given.
        tokens: usize,
        /// Positions the model has.
        limit: usize,
    },
    /// A cache in a dtype that the backend does not read.
    #[error("a cache in {dtype} is not supported on {backend}; leave the cache's dtype out for f32")]
    CacheDType {
        /// The dtype.
        dtype: String,
        /// The backend.
        backend: String,
    },
    /// A token id the model has no embedding for.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Rows of the embedding table.
        vocabulary: usize,
    },
    /// The tokenizer failed.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template failed, or there is none.
    #[error("chat template: {0}")]
    Template(String),
    /// A row of a data file that cannot be used.
    #[error("{}:{line}: {problem}", path.display())]
    BadRow {
        /// The data file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong with the row.
        problem: String,
    },
    /// A data set that cannot be trained on.
    #[error("{}: {problem}", path.display())]
    Data {
        /// The data file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A folder that another training run writes into.
    #[error("{}: another run is training into this folder", folder.display())]
    Locked {
        /// The folder.
        folder: PathBuf,
    },
    /// A run cannot continue under other settings than it began with.
    #[error("{} was saved by a run with other settings: {}", folder.display(), setting_list(differing))]
    Settings {
        /// The checkpoint.
        folder: PathBuf,
        /// Setting, its value in the checkpoint, its value now.
        differing: Vec<(String, String, String)>,
    },
    /// A number that is not one.
    #[error("{what} is not finite{}", place.as_deref().map(|p| format!(" in {p}")).unwrap_or_default())]
    NotFinite {
        /// The loss, a gradient, logits.
        what: &'static str,
        /// The layer or step, where known.
        place: Option<String>,
    },
    /// A dtype was asked for that the device does not compute with.
    #[error("{device} has no {dtype}; leave the dtype to the device (auto), or take f32")]
    DTypeOfDevice {
        /// The dtype's name.
        dtype: &'static str,
        /// The backend and its device.
        device: String,
    },
    /// The device failed.
    #[error("the device failed: {0}")]
    Device(String),
    /// An adapter module that received no gradient.
    #[error("no gradient reached {module}: {reason}")]
    NoGradient {
        /// The module's path.
        module: String,
        /// What was seen.
        reason: String,
    },
}

/// The result of a fallible operation in core.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// For `map_err` after a file operation on `path`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// A file at `path` that is not what it should be.
    pub fn malformed(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Malformed { path: path.into(), problem: problem.into() }
    }
}

fn setting_list(differing: &[(String, String, String)]) -> String {
    let one = |(name, before, now): &(String, String, String)| format!("{name} was {before} and is now {now}");
    differing.iter().map(one).collect::<Vec<_>>().join("; ")
}

/// Lines of each kind in the message; a hostile file has a hundred thousand to tell. The error itself holds all of them.
const MISMATCHES_SHOWN: usize = 500;

fn mismatch_lines(missing: &[String], surplus: &[String], misshapen: &[(String, String, String)]) -> String {
    let mut lines = String::new();
    let mut list = |what: &str, all: usize, shown: &mut dyn Iterator<Item = String>| {
        for line in shown.take(MISMATCHES_SHOWN) {
            lines += &format!("\n  {what:<9}  {line}");
        }
        if all > MISMATCHES_SHOWN {
            lines += &format!("\n  {what:<9}  … and {} more", all - MISMATCHES_SHOWN);
        }
    };
    list("missing", missing.len(), &mut missing.iter().cloned());
    list("surplus", surplus.len(), &mut surplus.iter().cloned());
    let describe =
        |(name, expected, found): &(String, String, String)| format!("{name}: expected {expected}, found {found}");
    list("misshapen", misshapen.len(), &mut misshapen.iter().map(describe));
    lines
}
