//! What templates take from Python: how values print, `tojson`, `raise_exception`, `strftime_now` and the methods of
//! strings and dictionaries. Bounds on a template's work live in the environment.

mod clock;
mod json;
mod print;

use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

/// Adds all of it to `environment`.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_formatter(|output, _, value| {
        print::write(output, value).map_err(|_| Error::new(ErrorKind::WriteFailure, "the output cannot be written"))
    });
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |value: Value| print::to_string(&value));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", clock::strftime_now);
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Python's methods, without the one input the library's version never returns from.
fn method(state: &State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let (ValueKind::String, "count", [pattern]) = (value.kind(), name, args)
        && pattern.as_str() == Some("")
    {
        // Python finds the empty string around every character.
        return Ok(Value::from(value.as_str().map_or(0, |text| text.chars().count() + 1)));
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}
