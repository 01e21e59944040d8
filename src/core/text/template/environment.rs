//! The engine set up as transformers sets up jinja2, within bounds: no files, bounded work, depth and output.

use std::io::{self, Write};

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};

use super::{failure, python};
use crate::error::{Error, Result};

/// Instructions one rendering may run.
const FUEL: u64 = 1_000_000;
/// Macros and recursive loops within one another.
const DEPTH: usize = 64;
/// Most bytes of a rendered chat.
const OUTPUT_LIMIT: usize = 4 << 20;
/// The template's name in error messages.
const NAME: &str = "chat template";

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
    environment.add_template_owned(NAME, source).map_err(|error| failure(&error))?;
    Ok(environment)
}

/// The template's text with these variables.
pub(super) fn render(environment: &Environment<'static>, variables: Value) -> Result<String> {
    let template = environment.get_template(NAME).map_err(|error| failure(&error))?;
    let mut output = Bounded::default();
    match template.render_captured_to(variables, &mut output) {
        Ok(_) => String::from_utf8(output.bytes).map_err(|_| Error::Template("it wrote what is not text".into())),
        Err(_) if output.full => Err(Error::Template(format!("it writes more than {OUTPUT_LIMIT} bytes"))),
        Err(error) if error.kind() == ErrorKind::OutOfFuel => {
            Err(Error::Template(format!("it runs more than {FUEL} instructions")))
        }
        Err(error) => Err(failure(&error)),
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
