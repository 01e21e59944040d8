//! The engine set up as transformers sets up jinja2, within bounds: no files, bounded work, depth and output, and a panic is an error.
//!
//! Not bounded is the memory of what a template computes and does not write: the engine counts instructions, and each may double a text.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, State, UndefinedBehavior, filters};

use super::{failure, python};
use crate::error::{Error, Result};

/// Instructions one rendering may run.
const FUEL: u64 = 1_000_000;
/// Macros and recursive loops within one another.
const DEPTH: usize = 64;
/// Most bytes of a rendered chat.
const OUTPUT_LIMIT: usize = 4 << 20;
/// The largest number that a filter may make so many spaces or lists of.
const COUNT_LIMIT: i64 = 10_000;
/// The template's name in error messages.
const NAME: &str = "chat template";

/// What the engine gives back.
type Engine<T> = std::result::Result<T, minijinja::Error>;

/// An environment that holds `source`, compiled.
pub(super) fn with_template(source: String) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_keep_trailing_newline(false);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(DEPTH);
    // Templates name no other template: `include`, `import` and `extends` find nothing.
    environment.set_path_join_callback(|_, _| "".into());
    environment.remove_global("debug");
    python::install(&mut environment);
    for (name, filter) in [
        ("indent", Value::from_function(filters::indent)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
    ] {
        environment.add_filter(name, move |state: &State<'_, '_>, args: Rest<Value>| {
            counts(&args)?;
            filter.call(state, &args)
        });
    }
    guarded(|| environment.add_template_owned(NAME, source))?;
    Ok(environment)
}

/// Whether the numbers among these arguments, named ones too, are small enough.
fn counts(args: &[Value]) -> Engine<()> {
    for value in args.iter().skip(1) {
        if value.as_i64().is_none_or(|count| count > COUNT_LIMIT) && value.kind() == ValueKind::Number {
            let problem = format!("{value} is more than the {COUNT_LIMIT} that this filter takes");
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, problem));
        }
        if value.is_kwargs() {
            for name in value.try_iter()? {
                counts(&[Value::UNDEFINED, value.get_item(&name)?])?;
            }
        }
    }
    Ok(())
}

/// What the engine says, or that it panicked.
fn guarded<T>(work: impl FnOnce() -> Engine<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| failure(&error)),
        Err(_) => Err(Error::Template("it made the template engine panic".into())),
    }
}

/// The template's text with these variables.
pub(super) fn render(environment: &Environment<'static>, variables: Value) -> Result<String> {
    let template = environment.get_template(NAME).map_err(|error| failure(&error))?;
    let (mut output, mut out_of_fuel) = (Bounded::default(), false);
    let rendered = guarded(|| {
        let rendered = template.render_captured_to(variables, &mut output);
        out_of_fuel = rendered.as_ref().is_err_and(|error| error.kind() == ErrorKind::OutOfFuel);
        rendered.map(drop)
    });
    match rendered {
        Ok(()) => String::from_utf8(output.bytes).map_err(|_| Error::Template("it wrote what is not text".into())),
        Err(_) if output.full => Err(Error::Template(format!("it writes more than {OUTPUT_LIMIT} bytes"))),
        Err(_) if out_of_fuel => Err(Error::Template(format!("it runs more than {FUEL} instructions"))),
        Err(error) => Err(error),
    }
}

/// A buffer that refuses what goes past the limit.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_LIMIT {
            self.full = true;
            return Err(io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
