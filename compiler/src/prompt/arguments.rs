//! The arguments of a call: by position, then by name.

use super::value::{Result, Value, failure};

#[derive(Default)]
pub(super) struct Arguments<'a> {
    positional: std::collections::VecDeque<Value>,
    named: Vec<(&'a str, Value)>,
}

impl<'a> Arguments<'a> {
    pub(super) fn new(positional: Vec<Value>, named: Vec<(&'a str, Value)>) -> Self {
        Self {
            positional: positional.into(),
            named,
        }
    }

    /// The next argument by position, or else the one of this name.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.positional.pop_front().or_else(|| self.named(name))
    }

    pub(super) fn named(&mut self, name: &str) -> Option<Value> {
        let place = self.named.iter().position(|(n, _)| *n == name)?;
        Some(self.named.remove(place).1)
    }

    pub(super) fn need(&mut self, name: &str) -> Result<Value> {
        self.take(name)
            .ok_or_else(|| failure(format!("the argument `{name}` is missing")))
    }

    /// A string that has to be there.
    pub(super) fn text(&mut self, name: &str) -> Result<std::rc::Rc<str>> {
        match self.need(name)? {
            Value::Str(text) => Ok(text),
            other => Err(failure(format!(
                "`{name}` is {}, not a string",
                other.type_name()
            ))),
        }
    }

    /// A string that may be left out or be `none`.
    pub(super) fn optional_text(&mut self, name: &str) -> Result<Option<std::rc::Rc<str>>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(Value::Str(text)) => Ok(Some(text)),
            Some(other) => Err(failure(format!(
                "`{name}` is {}, not a string",
                other.type_name()
            ))),
        }
    }

    pub(super) fn optional_int(&mut self, name: &str) -> Result<Option<i64>> {
        match self.take(name) {
            None | Some(Value::None) => Ok(None),
            Some(value) => value.as_int().map(Some).ok_or_else(|| {
                failure(format!("`{name}` is {}, not an integer", value.type_name()))
            }),
        }
    }

    /// The rest by name, for functions that take any.
    pub(super) fn rest(&mut self) -> Vec<(&'a str, Value)> {
        std::mem::take(&mut self.named)
    }

    pub(super) fn positional(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.positional).into()
    }

    pub(super) fn end(self, what: &str) -> Result<()> {
        match (self.positional.len(), self.named.first()) {
            (0, None) => Ok(()),
            (0, Some((name, _))) => Err(failure(format!("`{what}` has no argument `{name}`"))),
            (n, _) => Err(failure(format!("`{what}` has {n} arguments too many"))),
        }
    }
}
