//! Several adapters by name, for a model that is loaded once.

use std::collections::BTreeMap;

use firebrick_backend::KernelBackend;

use super::Adapter;
use crate::error::{Error, Result};
use crate::model::Handle;

/// Adapters by name.
#[derive(Clone, Debug, Default)]
pub struct Adapters<B: KernelBackend> {
    adapters: BTreeMap<String, Adapter<B>>,
}

impl<B: KernelBackend> Adapters<B> {
    /// An empty registry.
    pub fn new() -> Self {
        Self { adapters: BTreeMap::new() }
    }

    /// Adds an adapter, giving back the one that had the name before.
    pub fn insert(&mut self, name: impl Into<String>, adapter: Adapter<B>) -> Option<Adapter<B>> {
        self.adapters.insert(name.into(), adapter)
    }

    /// Takes an adapter out.
    pub fn remove(&mut self, name: &str) -> Option<Adapter<B>> {
        self.adapters.remove(name)
    }

    /// The adapter of this name.
    pub fn get(&self, name: &str) -> Option<&Adapter<B>> {
        self.adapters.get(name)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.adapters.keys().map(String::as_str)
    }

    /// A handle to `model` with the named adapter attached.
    ///
    /// # Errors
    /// If there is no such adapter, or it does not fit the model.
    pub fn attach<M: Handle<B> + ?Sized>(&self, name: &str, model: &M) -> Result<Box<M>> {
        let adapter = self.get(name).ok_or_else(|| Error::AdapterMismatch {
            adapter: format!("`{name}`"),
            problems: vec![format!("it is not registered; there are {}", self.names().collect::<Vec<_>>().join(", "))],
        })?;
        adapter.attach(model)
    }
}
