//! The options of training: on the command line, in a TOML file under the same names, and their defaults.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use firebrick::Error;
use firebrick::core::train::adamw::AdamWConfig;
use firebrick::core::train::checkpoint::DEFAULT_KEEP_LAST;
use firebrick::core::train::contrastive::DEFAULT_TEMPERATURE;
use firebrick::core::train::data::{BadRows, OverLong};
use firebrick::core::train::schedule::{LearningRate, Schedule};
use firebrick::models::Role;
use firebrick::prelude::*;
use serde::Deserialize;

use crate::cli::data::{bad_rows, one_of, over_long};

/// Every option is absent until somebody says it, so that the command line can go before the file and the file before the defaults.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[command(next_help_heading = "Training")]
#[serde(deny_unknown_fields)]
pub struct TrainOptions {
    /// Rank of the update [default: 8]
    #[arg(long, value_name = "N")]
    rank: Option<usize>,
    /// Numerator of the scale alpha / rank [default: 16]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    alpha: Option<f64>,
    /// Probability of dropping an input of the update [default: 0]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    dropout: Option<f64>,
    /// Linears to adapt: names separated by commas, a regular expression, or all-linear [default: q_proj,v_proj; of an encoder query,value]
    #[arg(long, value_name = "LINEARS")]
    target: Option<String>,
    /// Scale by alpha / √rank
    #[arg(long)]
    #[serde(default)]
    rslora: bool,
    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    learning_rate: Option<f64>,
    /// How the learning rate goes on after the warmup [default: cosine]
    #[arg(long, value_name = "NAME", value_parser = one_of::<Schedule>(&["constant", "linear", "cosine"]))]
    schedule: Option<Schedule>,
    /// Steps over which the learning rate rises [default: 0]
    #[arg(long, value_name = "N")]
    warmup_steps: Option<usize>,
    /// AdamW's weight decay [default: 0.01]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    weight_decay: Option<f64>,
    /// Rows in a forward pass, or auto: as many of the 4 · gradient-accumulation rows of a step as memory allows [default: 4; of an encoder 32, since each row learns from the others]
    #[arg(long, value_name = "N|auto")]
    batch_size: Option<BatchSize>,
    /// Forward passes for each step [default: 1]
    #[arg(long, value_name = "N")]
    gradient_accumulation: Option<usize>,
    /// Put whole rows together up to max-seq-len tokens, which then count as one row of the batch; none sees another
    #[arg(long)]
    #[serde(default)]
    pack: bool,
    /// Keep each layer's input alone and compute the layer again on the way back: less memory, more time
    #[arg(long)]
    #[serde(default)]
    gradient_checkpointing: bool,
    /// Tokens of a row at most, of an encoder of each text [default: 2048, or the model's context]
    #[arg(long, value_name = "N")]
    max_seq_len: Option<usize>,
    /// Optimizer steps
    #[arg(long, value_name = "N", conflicts_with = "epochs")]
    steps: Option<usize>,
    /// Times through the data [default: 1]
    #[arg(long, value_name = "N")]
    epochs: Option<usize>,
    /// Train on completions, or the last assistant turn, alone
    #[arg(long)]
    #[serde(default)]
    mask_prompt: bool,
    /// Norm the whole gradient is clipped to; 0 for no clipping [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    max_grad_norm: Option<f64>,
    /// Seed of initial weights, order and dropout [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Validate each so many steps, besides before the first and after the last
    #[arg(long, value_name = "N")]
    eval_every: Option<usize>,
    /// Steps between two checkpoints [default: 100, or ten minutes if that is less]
    #[arg(long, value_name = "N")]
    checkpoint_every: Option<usize>,
    /// Checkpoints kept, besides the one of the lowest validation loss [default: 2]
    #[arg(long, value_name = "N")]
    keep_last: Option<usize>,
    /// Steps in a row that may have no finite loss or gradient; they are passed over, one more ends the run [default: 3]
    #[arg(long, value_name = "N")]
    max_skipped_steps: Option<usize>,
    /// What to do with rows that cannot be used [default: fail]
    #[arg(long, value_name = "POLICY", value_parser = bad_rows())]
    bad_rows: Option<BadRows>,
    /// What to do with over-long rows [default: truncate]
    #[arg(long, value_name = "POLICY", value_parser = over_long())]
    over_long: Option<OverLong>,
    /// Encoders: cosines are divided by it [default: 0.05]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Encoders: passages look for their queries too
    #[arg(long)]
    #[serde(default)]
    symmetric: bool,
}

/// How many rows a forward pass has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "toml::Value")]
pub enum BatchSize {
    /// As many as memory allows.
    Auto,
    /// So many.
    Rows(usize),
}

impl FromStr for BatchSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Rows).map_err(|_| "neither a whole number nor auto".into()),
        }
    }
}

impl TryFrom<toml::Value> for BatchSize {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::String(text) => text.parse(),
            number => number.to_string().parse(),
        }
    }
}

/// Every choice made.
pub struct Settings {
    pub lora: LoraConfig,
    pub train: TrainConfig,
    pub data: DataOptions,
    /// Rows of a pass are chosen by memory, out of those of a step.
    pub auto_batch: bool,
    /// Cosines of an encoder are divided by it.
    pub temperature: f64,
    /// Whether passages look for their queries too.
    pub symmetric: bool,
    /// Steps between two checkpoints, where somebody said.
    pub checkpoint_every: Option<usize>,
    /// Checkpoints kept besides the best.
    pub keep_last: usize,
}

impl TrainOptions {
    /// What this command line leaves open, from a file.
    pub fn over_file(self, path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else { return Ok(self) };
        let place = || path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(place)?;
        let file: Self = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            let said = text.lines().nth(line).unwrap_or_default().trim();
            anyhow!("{}:{}: `{said}`: {}", path.display(), line + 1, error.message())
        })?;
        if file.steps.is_some() && file.epochs.is_some() {
            bail!("{}: `steps` and `epochs` exclude each other", path.display());
        }
        // A length said here replaces the other kind of length said there.
        let length =
            if self.steps.or(self.epochs).is_some() { (self.steps, self.epochs) } else { (file.steps, file.epochs) };
        Ok(Self {
            rank: self.rank.or(file.rank),
            alpha: self.alpha.or(file.alpha),
            dropout: self.dropout.or(file.dropout),
            target: self.target.or(file.target),
            rslora: self.rslora || file.rslora,
            learning_rate: self.learning_rate.or(file.learning_rate),
            schedule: self.schedule.or(file.schedule),
            warmup_steps: self.warmup_steps.or(file.warmup_steps),
            weight_decay: self.weight_decay.or(file.weight_decay),
            batch_size: self.batch_size.or(file.batch_size),
            gradient_accumulation: self.gradient_accumulation.or(file.gradient_accumulation),
            pack: self.pack || file.pack,
            gradient_checkpointing: self.gradient_checkpointing || file.gradient_checkpointing,
            max_seq_len: self.max_seq_len.or(file.max_seq_len),
            steps: length.0,
            epochs: length.1,
            mask_prompt: self.mask_prompt || file.mask_prompt,
            max_grad_norm: self.max_grad_norm.or(file.max_grad_norm),
            seed: self.seed.or(file.seed),
            eval_every: self.eval_every.or(file.eval_every),
            checkpoint_every: self.checkpoint_every.or(file.checkpoint_every),
            keep_last: self.keep_last.or(file.keep_last),
            max_skipped_steps: self.max_skipped_steps.or(file.max_skipped_steps),
            bad_rows: self.bad_rows.or(file.bad_rows),
            over_long: self.over_long.or(file.over_long),
            temperature: self.temperature.or(file.temperature),
            symmetric: self.symmetric || file.symmetric,
        })
    }

    /// Bounds that can be checked before anything is loaded.
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("rank", self.rank, 1..=65_536),
            ("batch_size", self.rows(), 1..=1 << 20),
            ("gradient_accumulation", self.gradient_accumulation, 1..=1 << 20),
            ("max_seq_len", self.max_seq_len, 2..=usize::MAX),
            ("steps", self.steps, 1..=1 << 40),
            ("epochs", self.epochs, 1..=1 << 20),
            ("eval_every", self.eval_every, 1..=usize::MAX),
            ("checkpoint_every", self.checkpoint_every, 1..=usize::MAX),
            ("keep_last", self.keep_last, 1..=usize::MAX),
        ];
        for (name, value, allowed) in counts {
            if let Some(value) = value.filter(|value| !allowed.contains(value)) {
                let bounds = match *allowed.end() {
                    usize::MAX => format!("at least {}", allowed.start()),
                    end => format!("from {} to {end}", allowed.start()),
                };
                return Err(Error::OutOfBounds { name, value: value.to_string(), bounds }.into());
            }
        }
        type Number = (&'static str, Option<f64>, fn(f64) -> bool, &'static str);
        let numbers: [Number; 6] = [
            ("alpha", self.alpha, |alpha| alpha > 0.0 && alpha.is_finite(), "above 0"),
            ("dropout", self.dropout, |dropout| (0.0..1.0).contains(&dropout), "from 0 to below 1"),
            ("learning_rate", self.learning_rate, |rate| (0.0..=1000.0).contains(&rate), "from 0 to 1000"),
            ("weight_decay", self.weight_decay, |decay| (0.0..=1000.0).contains(&decay), "from 0 to 1000"),
            ("temperature", self.temperature, |value| (1e-4..=100.0).contains(&value), "from 0.0001 to 100"),
            ("max_grad_norm", self.max_grad_norm, |norm| norm >= 0.0, "at least 0, which switches clipping off"),
        ];
        for (name, value, allowed, bounds) in numbers {
            if let Some(value) = value.filter(|value| !allowed(*value)) {
                return Err(Error::OutOfBounds { name, value: value.to_string(), bounds: bounds.into() }.into());
            }
        }
        Ok(())
    }

    /// The batch size, where it is a number.
    fn rows(&self) -> Option<usize> {
        match self.batch_size? {
            BatchSize::Rows(rows) => Some(rows),
            BatchSize::Auto => None,
        }
    }

    /// Refuses what an adapter that is continued has decided already.
    pub fn check_init_adapter(&self) -> Result<()> {
        let decided = [
            ("rank", self.rank.is_some()),
            ("alpha", self.alpha.is_some()),
            ("dropout", self.dropout.is_some()),
            ("target", self.target.is_some()),
            ("rslora", self.rslora),
        ];
        match decided.into_iter().find(|(_, said)| *said) {
            Some((name, _)) => bail!("--init-adapter brings its own {name}; leave {name} out"),
            None => Ok(()),
        }
    }

    /// Refuses what a model of this kind has no use for.
    pub fn check_role(&self, role: Role) -> Result<()> {
        let (kind, useless) = match role {
            Role::CausalLm => {
                ("a decoder", vec![("temperature", self.temperature.is_some()), ("symmetric", self.symmetric)])
            }
            Role::Encoder => {
                let cut_otherwise = self.over_long.is_some_and(|policy| policy != OverLong::Truncate);
                // Each row learns from the others of its pass: how many there are is part of what is learned.
                let auto = self.batch_size == Some(BatchSize::Auto);
                let useless = [
                    ("mask_prompt", self.mask_prompt),
                    ("over_long other than truncate", cut_otherwise),
                    ("pack", self.pack),
                    ("batch_size auto", auto),
                ];
                ("an encoder", useless.to_vec())
            }
        };
        match useless.into_iter().find(|(_, said)| *said) {
            Some((name, _)) => bail!("the model is {kind}, whose training has no {name}; leave it out"),
            None => Ok(()),
        }
    }

    /// The defaults for what nobody said.
    pub fn settle(self, role: Role) -> Result<Settings> {
        self.check()?;
        let rows = self.rows();
        let (mut lora, mut train, data) = (LoraConfig::default(), TrainConfig::default(), DataOptions::default());
        if role == Role::Encoder {
            lora = LoraConfig::encoder();
            train.batch_size = 32;
        }
        Ok(Settings {
            lora: LoraConfig {
                rank: self.rank.unwrap_or(lora.rank),
                alpha: self.alpha.unwrap_or(lora.alpha),
                dropout: self.dropout.unwrap_or(lora.dropout),
                targets: self.target.map_or(lora.targets, |text| Targets::parse(&text)),
                rslora: self.rslora,
            },
            data: DataOptions {
                mask_prompt: self.mask_prompt,
                max_tokens: self.max_seq_len.unwrap_or(data.max_tokens),
                bad_rows: self.bad_rows.unwrap_or(data.bad_rows),
                over_long: self.over_long.unwrap_or(data.over_long),
            },
            train: TrainConfig {
                learning_rate: LearningRate {
                    peak: self.learning_rate.unwrap_or(train.learning_rate.peak),
                    schedule: self.schedule.unwrap_or(train.learning_rate.schedule),
                    warmup_steps: self.warmup_steps.unwrap_or(0),
                    final_fraction: None,
                },
                adamw: AdamWConfig {
                    weight_decay: self.weight_decay.unwrap_or(train.adamw.weight_decay),
                    ..train.adamw
                },
                batch_size: rows.unwrap_or(train.batch_size),
                gradient_accumulation: self.gradient_accumulation.unwrap_or(train.gradient_accumulation),
                pack: self.pack.then(|| self.max_seq_len.unwrap_or(data.max_tokens)),
                gradient_checkpointing: self.gradient_checkpointing,
                duration: match self.steps {
                    Some(steps) => Duration::Steps(steps),
                    None => Duration::Epochs(self.epochs.unwrap_or(1)),
                },
                max_grad_norm: self.max_grad_norm.map_or(train.max_grad_norm, |norm| (norm != 0.0).then_some(norm)),
                eval_every: self.eval_every,
                max_skipped_steps: self.max_skipped_steps.unwrap_or(train.max_skipped_steps),
                seed: self.seed.unwrap_or(0),
            },
            auto_batch: self.batch_size == Some(BatchSize::Auto),
            temperature: self.temperature.unwrap_or(DEFAULT_TEMPERATURE),
            symmetric: self.symmetric,
            checkpoint_every: self.checkpoint_every,
            keep_last: self.keep_last.unwrap_or(DEFAULT_KEEP_LAST),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file_and_the_file_before_the_defaults() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "rank = 4\nalpha = 8\nepochs = 3\ntarget = \"all-linear\"\nschedule = \"linear\"").unwrap();
        let options = TrainOptions { rank: Some(2), steps: Some(7), ..TrainOptions::default() };
        let settings = options.over_file(Some(file.path())).unwrap().settle(Role::CausalLm).unwrap();
        assert_eq!((settings.lora.rank, settings.lora.alpha), (2, 8.0));
        assert_eq!(settings.lora.targets, Targets::AllLinear);
        assert_eq!(settings.train.duration, Duration::Steps(7));
        assert_eq!(settings.train.learning_rate.schedule, Schedule::Linear);
        assert_eq!(settings.train.batch_size, 4);
    }

    #[test]
    fn an_unknown_key_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        write!(file, "rnak = 4").unwrap();
        let error = format!("{:#}", TrainOptions::default().over_file(Some(file.path())).unwrap_err());
        assert!(error.contains("rnak"), "{error}");
    }
}
