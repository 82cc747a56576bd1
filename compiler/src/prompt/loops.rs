//! `for` loops, and the `loop` that their bodies see.

use std::rc::Rc;

use minijinja::machinery::ast::ForLoop;

use super::arguments::Arguments;
use super::eval::{Flow, Machine, Scope};
use super::value::{Result, SLOT, STEP, Seq, Value, failure};

/// The `loop` of one iteration.
#[derive(Debug)]
pub(super) struct Iteration {
    pub(super) items: Rc<Seq>,
    pub(super) index: usize,
    /// How many loops of the same recursion are around this one.
    depth: usize,
    /// Number of the loop in the evaluator's table, when it is recursive.
    recursion: Option<usize>,
}

/// A loop that its body can call.
pub(super) struct Recursion<'t> {
    tree: &'t ForLoop<'t>,
    /// What the body sees of what is around the loop.
    surroundings: Scope<'t>,
}

impl Iteration {
    pub(super) fn attribute(&self, name: &str) -> Result<Value> {
        let (i, items) = (self.index, &self.items.items);
        Ok(match name {
            "index" => (i + 1).into(),
            "index0" => i.into(),
            "revindex" => (items.len() - i).into(),
            "revindex0" => (items.len() - i - 1).into(),
            "first" => (i == 0).into(),
            "last" => (i + 1 == items.len()).into(),
            "length" => items.len().into(),
            "depth" => (self.depth + 1).into(),
            "depth0" => self.depth.into(),
            "previtem" if i > 0 => items[i - 1].clone(),
            "nextitem" if i + 1 < items.len() => items[i + 1].clone(),
            "previtem" | "nextitem" => Value::Undefined,
            other => {
                return Err(failure(format!("`loop.{other}` is not supported")));
            }
        })
    }

    pub(super) fn method(&self, name: &str, args: &mut Arguments<'_>) -> Result<Option<Value>> {
        if name != "cycle" {
            return Ok(None);
        }
        let choices = args.positional();
        match choices.len() {
            0 => Err(failure("cycle has nothing to choose from")),
            n => Ok(Some(choices[self.index % n].clone())),
        }
    }
}

impl<'t> Machine<'t> {
    pub(super) fn for_loop(&mut self, tree: &'t ForLoop<'t>, out: &mut String) -> Result<Flow> {
        let items = self.expression(&tree.iter)?;
        let mut recursion = None;
        if tree.recursive {
            let surroundings = self.surroundings()?;
            recursion = Some(self.recursions.len());
            self.recursions.push(Recursion { tree, surroundings });
        }
        self.iterate(tree, &items, (0, recursion), out)
    }

    /// The text of the loop around `current`, over other items.
    pub(super) fn recurse(
        &mut self,
        current: &Iteration,
        mut args: Arguments<'_>,
    ) -> Result<Value> {
        let Some(id) = current.recursion else {
            return Err(failure("only a recursive loop can be called"));
        };
        let items = args.need("iterable")?;
        args.end("loop")?;
        let Recursion { tree, surroundings } = &self.recursions[id];
        self.budget.pay_len(surroundings.len(), SLOT)?;
        let (tree, surroundings) = (*tree, surroundings.clone());
        let mut text = String::new();
        self.within(surroundings, |machine| {
            machine.iterate(tree, &items, (current.depth + 1, Some(id)), &mut text)
        })?;
        Ok(text.into())
    }

    fn iterate(
        &mut self,
        tree: &'t ForLoop<'t>,
        items: &Value,
        (depth, recursion): (usize, Option<usize>),
        out: &mut String,
    ) -> Result<Flow> {
        let mut items = items.iterate(self.budget)?;
        if let Some(filter) = &tree.filter_expr {
            let mut kept = Vec::new();
            for item in items {
                self.scopes.push(Scope::new());
                let holds = self
                    .assign(&tree.target, item.clone())
                    .and_then(|()| self.expression(filter));
                self.scopes.pop();
                if holds?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        let Value::Seq(items) = Value::list(items, self.budget)? else {
            unreachable!("a list is a sequence");
        };
        // As Jinja has it, `else` is for loops none of whose iterations came to its end.
        let mut is_done = false;
        for (index, item) in items.items.iter().enumerate() {
            self.budget.pay(STEP)?;
            let iteration = Iteration {
                items: Rc::clone(&items),
                index,
                depth,
                recursion,
            };
            self.scopes
                .push([("loop", Value::Loop(Rc::new(iteration)))].into());
            let flow = self
                .assign(&tree.target, item.clone())
                .and_then(|()| self.body(&tree.body, out));
            self.scopes.pop();
            match flow? {
                Flow::Next => is_done = true,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        match is_done {
            true => Ok(Flow::Next),
            false => self.scoped(Scope::new(), &tree.else_body, out),
        }
    }
}
