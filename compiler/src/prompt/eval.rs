//! Evaluates a template's syntax tree, as Jinja2 does with `transformers`' settings.

use std::collections::HashMap;
use std::rc::Rc;

use minijinja::machinery::ast::{
    BinOpKind, Call, CallArg, CallBlock, CompareOpKind, Expr, Macro, Set, Slice, Spanned, Stmt,
    UnaryOpKind,
};
use minijinja::value::ValueKind;

use super::arguments::Arguments;
use super::date::Date;
use super::filters::{self, Calls};
use super::loops::Recursion;
use super::operators::{binary, subscript};
use super::value::{Budget, Failure, Result, SLOT, STEP, Value, failure};
use super::{operators, python};

/// Deepest nesting of statements, expressions and macro calls.
const DEPTH_MAX: usize = 256;

/// Most arguments of a call.
const ARGUMENTS_MAX: usize = 255;

/// What every template can call.
const FUNCTIONS: [&str; 7] = [
    "range",
    "dict",
    "namespace",
    "raise_exception",
    "cycler",
    "joiner",
    "lipsum",
];

pub(super) type Scope<'t> = HashMap<&'t str, Value>;

struct MacroDefinition<'t> {
    tree: &'t Macro<'t>,
    /// Variables around the definition that are not the template's own.
    captured: Scope<'t>,
}

pub(super) struct Machine<'t> {
    pub(super) budget: &'t Budget,
    date: Option<Date>,
    /// From the template's own variables to the innermost.
    pub(super) scopes: Vec<Scope<'t>>,
    namespaces: Vec<HashMap<Rc<str>, Value>>,
    macros: Vec<MacroDefinition<'t>>,
    pub(super) recursions: Vec<Recursion<'t>>,
    /// What a filter without a subject filters.
    piped: Value,
    depth: usize,
}

pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

impl Calls for Machine<'_> {
    fn attribute(&self, value: &Value, path: &Value) -> Result<Value> {
        let Some(path) = path.as_str() else {
            return subscript(value, path, self.budget);
        };
        self.budget.pay_len(path.len(), STEP)?;
        let mut value = value.clone();
        for name in path.split('.') {
            value = match name.parse::<i64>() {
                Ok(index) => subscript(&value, &Value::Int(index), self.budget)?,
                Err(_) => self.get_attribute(&value, name)?,
            };
        }
        Ok(value)
    }

    fn budget(&self) -> &Budget {
        self.budget
    }
}

impl<'t> Machine<'t> {
    pub(super) fn new(
        budget: &'t Budget,
        date: Option<Date>,
        variables: impl IntoIterator<Item = (&'t str, Value)>,
    ) -> Self {
        let mut globals: Scope<'t> = FUNCTIONS.map(|name| (name, Value::Function(name))).into();
        if date.is_some() {
            globals.insert("strftime_now", Value::Function("strftime_now"));
        }
        globals.extend(variables);
        Self {
            budget,
            date,
            scopes: vec![globals],
            namespaces: Vec::new(),
            macros: Vec::new(),
            recursions: Vec::new(),
            piped: Value::Undefined,
            depth: 0,
        }
    }

    pub(super) fn run(&mut self, tree: &'t Stmt<'t>) -> Result<String> {
        let mut out = String::new();
        self.statement(tree, &mut out)?;
        Ok(out)
    }

    /// One step deeper, for `inner`.
    fn deeper<T>(&mut self, inner: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.budget.pay(STEP)?;
        if self.depth == DEPTH_MAX {
            return Err(failure("it nests too deep"));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    fn emit(&self, text: &str, out: &mut String) -> Result<()> {
        self.budget.pay(text.len() as u64)?;
        out.push_str(text);
        Ok(())
    }

    pub(super) fn body(&mut self, body: &'t [Stmt<'t>], out: &mut String) -> Result<Flow> {
        for statement in body {
            match self.deeper(|machine| machine.statement(statement, out))? {
                Flow::Next => {}
                flow @ (Flow::Break | Flow::Continue) => return Ok(flow),
            }
        }
        Ok(Flow::Next)
    }

    /// `body` in a scope of its own.
    pub(super) fn scoped(
        &mut self,
        scope: Scope<'t>,
        body: &'t [Stmt<'t>],
        out: &mut String,
    ) -> Result<Flow> {
        self.scopes.push(scope);
        let flow = self.body(body, out);
        self.scopes.pop();
        flow
    }

    fn statement(&mut self, statement: &'t Stmt<'t>, out: &mut String) -> Result<Flow> {
        let (line, result) = match statement {
            Stmt::Template(s) => (None, self.body(&s.children, out)),
            Stmt::EmitRaw(s) => (None, self.emit(s.raw, out).map(|()| Flow::Next)),
            Stmt::EmitExpr(s) => (Some(s.span()), self.emit_value(&s.expr, out)),
            Stmt::ForLoop(s) => (Some(s.span()), self.for_loop(s, out)),
            Stmt::IfCond(s) => (
                Some(s.span()),
                self.expression(&s.expr).and_then(|condition| {
                    let body = if condition.is_true() {
                        &s.true_body
                    } else {
                        &s.false_body
                    };
                    self.body(body, out)
                }),
            ),
            Stmt::WithBlock(s) => (Some(s.span()), self.with(&s.assignments, &s.body, out)),
            Stmt::Set(s) => (Some(s.span()), self.set(s)),
            Stmt::SetBlock(s) => {
                let value = self.capture(&s.body, s.filter.as_ref());
                let set = value.and_then(|value| self.assign(&s.target, value));
                (Some(s.span()), set.map(|()| Flow::Next))
            }
            Stmt::FilterBlock(s) => {
                let value = self.capture(&s.body, Some(&s.filter));
                let emitted = value
                    .and_then(|value| value.text(self.budget))
                    .and_then(|text| self.emit(&text, out));
                (Some(s.span()), emitted.map(|()| Flow::Next))
            }
            Stmt::AutoEscape(s) => (Some(s.span()), self.body(&s.body, out)),
            Stmt::Macro(s) => (Some(s.span()), self.define(s)),
            Stmt::CallBlock(s) => (Some(s.span()), self.call_block(s, out)),
            Stmt::Do(s) => (Some(s.span()), self.call(&s.call, None).map(|_| Flow::Next)),
            Stmt::Continue(_) => (None, Ok(Flow::Continue)),
            Stmt::Break(_) => (None, Ok(Flow::Break)),
        };
        result.map_err(|error| Failure {
            line: error
                .line
                .or_else(|| line.map(|span| span.start_line.into())),
            ..error
        })
    }

    fn emit_value(&mut self, expression: &'t Expr<'t>, out: &mut String) -> Result<Flow> {
        let text = self.expression(expression)?.text(self.budget)?;
        self.emit(&text, out)?;
        Ok(Flow::Next)
    }

    fn with(
        &mut self,
        assignments: &'t [(Expr<'t>, Expr<'t>)],
        body: &'t [Stmt<'t>],
        out: &mut String,
    ) -> Result<Flow> {
        let mut values = Vec::new();
        for (target, expression) in assignments {
            values.push((target, self.expression(expression)?));
        }
        self.scopes.push(Scope::new());
        let assigned = values
            .into_iter()
            .try_for_each(|(target, value)| self.assign(target, value));
        let flow = assigned.and_then(|()| self.body(body, out));
        self.scopes.pop();
        flow
    }

    fn set(&mut self, set: &'t Set<'t>) -> Result<Flow> {
        let value = self.expression(&set.expr)?;
        self.assign(&set.target, value)?;
        Ok(Flow::Next)
    }

    fn capture(&mut self, body: &'t [Stmt<'t>], filter: Option<&'t Expr<'t>>) -> Result<Value> {
        let mut text = String::new();
        self.scoped(Scope::new(), body, &mut text)?;
        let Some(filter) = filter else {
            return Ok(text.into());
        };
        let outer = std::mem::replace(&mut self.piped, text.into());
        let value = self.expression(filter);
        self.piped = outer;
        value
    }

    pub(super) fn assign(&mut self, target: &'t Expr<'t>, value: Value) -> Result<()> {
        self.budget.pay(STEP)?;
        match target {
            Expr::Var(var) => {
                let scope = self.scopes.last_mut().expect("there is a scope");
                scope.insert(var.id, value);
                Ok(())
            }
            Expr::Tuple(tuple) => self.assign_each(&tuple.items, &value),
            Expr::List(list) => self.assign_each(&list.items, &value),
            Expr::GetAttr(attribute) => match self.expression(&attribute.expr)? {
                Value::Namespace(id) => {
                    self.namespaces[id].insert(attribute.name.into(), value);
                    Ok(())
                }
                other => Err(failure(format!(
                    "an attribute of {} cannot be set",
                    other.type_name()
                ))),
            },
            Expr::Const(_)
            | Expr::Slice(_)
            | Expr::UnaryOp(_)
            | Expr::BinOp(_)
            | Expr::Compare(_)
            | Expr::IfExpr(_)
            | Expr::Filter(_)
            | Expr::Test(_)
            | Expr::GetItem(_)
            | Expr::Call(_)
            | Expr::Map(_) => Err(failure("only a variable can be set")),
        }
    }

    fn assign_each(&mut self, targets: &'t [Expr<'t>], value: &Value) -> Result<()> {
        let values = value.iterate(self.budget)?;
        if values.len() != targets.len() {
            return Err(failure(format!(
                "{} values are given to {} variables",
                values.len(),
                targets.len()
            )));
        }
        targets
            .iter()
            .zip(values)
            .try_for_each(|(target, value)| self.deeper(|machine| machine.assign(target, value)))
    }

    fn define(&mut self, tree: &'t Macro<'t>) -> Result<Flow> {
        let defined = self.macro_of(tree)?;
        let scope = self.scopes.last_mut().expect("there is a scope");
        scope.insert(tree.name, defined);
        Ok(Flow::Next)
    }

    /// What is around a definition, without the template's own variables.
    pub(super) fn surroundings(&self) -> Result<Scope<'t>> {
        let mut captured = Scope::new();
        for scope in &self.scopes[1..] {
            self.budget.pay_len(scope.len(), SLOT)?;
            captured.extend(scope.iter().map(|(&name, value)| (name, value.clone())));
        }
        Ok(captured)
    }

    /// `work` among what was around a definition, instead of what is around its call.
    pub(super) fn within<T>(
        &mut self,
        surroundings: Scope<'t>,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let outer = self.scopes.split_off(1);
        self.scopes.push(surroundings);
        let result = work(self);
        self.scopes.truncate(1);
        self.scopes.extend(outer);
        result
    }

    fn macro_of(&mut self, tree: &'t Macro<'t>) -> Result<Value> {
        let captured = self.surroundings()?;
        self.macros.push(MacroDefinition { tree, captured });
        Ok(Value::Macro(self.macros.len() - 1))
    }

    /// Calls a macro, which can call the block as `caller`.
    fn call_block(&mut self, block: &'t CallBlock<'t>, out: &mut String) -> Result<Flow> {
        let caller = self.macro_of(&block.macro_decl)?;
        let text = self.call(&block.call, Some(caller))?.text(self.budget)?;
        self.emit(&text, out)?;
        Ok(Flow::Next)
    }

    fn call_macro(
        &mut self,
        id: usize,
        mut args: Arguments<'_>,
        caller: Option<Value>,
    ) -> Result<Value> {
        let tree = self.macros[id].tree;
        self.budget.pay_len(self.macros[id].captured.len(), SLOT)?;
        let captured = self.macros[id].captured.clone();
        let caller = caller.or_else(|| args.named("caller"));
        let result = self.within(captured, |machine| {
            // Every macro has a caller of its own, or none.
            let own = caller.clone().unwrap_or(Value::Undefined);
            machine.scopes.push([("caller", own)].into());
            machine.run_macro(tree, &mut args, caller)
        });
        args.end(tree.name)?;
        result
    }

    fn run_macro(
        &mut self,
        tree: &'t Macro<'t>,
        args: &mut Arguments<'_>,
        mut caller: Option<Value>,
    ) -> Result<Value> {
        let required = tree.args.len() - tree.defaults.len();
        for (i, parameter) in tree.args.iter().enumerate() {
            let Expr::Var(name) = parameter else {
                return Err(failure("a macro's parameter is no name"));
            };
            let given = match name.id {
                "caller" => caller.take(),
                name => args.take(name),
            };
            let value = match given {
                Some(value) => value,
                None if i >= required => self.expression(&tree.defaults[i - required])?,
                None => Value::Undefined,
            };
            self.assign(parameter, value)?;
        }
        let mut out = String::new();
        self.body(&tree.body, &mut out)?;
        Ok(out.into())
    }

    fn lookup(&self, name: &str) -> Value {
        self.scopes
            .iter()
            .rev()
            .find_map(|scope| scope.get(name))
            .cloned()
            .unwrap_or(Value::Undefined)
    }

    pub(super) fn expression(&mut self, expression: &'t Expr<'t>) -> Result<Value> {
        self.deeper(|machine| machine.evaluate(expression))
    }

    fn evaluate(&mut self, expression: &'t Expr<'t>) -> Result<Value> {
        match expression {
            Expr::Var(var) => {
                self.budget.pay_len(self.scopes.len(), STEP)?;
                Ok(self.lookup(var.id))
            }
            Expr::Const(constant) => self.constant(&constant.value),
            Expr::Slice(slice) => self.slice(slice),
            Expr::UnaryOp(unary) => {
                let value = self.expression(&unary.expr)?;
                match unary.op {
                    UnaryOpKind::Not => Ok((!value.is_true()).into()),
                    UnaryOpKind::Neg => operators::negate(&value),
                }
            }
            Expr::BinOp(_) => self.operators(expression),
            Expr::Compare(compare) => {
                let mut left = self.expression(&compare.expr)?;
                for step in &compare.ops {
                    let right = self.expression(&step.expr)?;
                    if !self.compares(step.op, &left, &right)? {
                        return Ok(false.into());
                    }
                    left = right;
                }
                Ok(true.into())
            }
            Expr::IfExpr(choice) => {
                if self.expression(&choice.test_expr)?.is_true() {
                    self.expression(&choice.true_expr)
                } else {
                    match &choice.false_expr {
                        Some(expression) => self.expression(expression),
                        None => Ok(Value::Undefined),
                    }
                }
            }
            Expr::Filter(filter) => {
                let value = match &filter.expr {
                    Some(expression) => self.expression(expression)?,
                    None => self.piped.clone(),
                };
                let args = self.arguments(&filter.args)?;
                filters::filter(self, filter.name, &value, args)
            }
            Expr::Test(test) => {
                let value = self.expression(&test.expr)?;
                let args = self.arguments(&test.args)?;
                filters::test(test.name, &value, args, self.budget).map(Value::from)
            }
            Expr::GetAttr(get) => {
                let value = self.expression(&get.expr)?;
                self.get_attribute(&value, get.name)
                    .map_err(|error| match &get.expr {
                        Expr::Var(var) if matches!(value, Value::Undefined) => {
                            failure(format!("`{}` is undefined", var.id))
                        }
                        _ => error,
                    })
            }
            Expr::GetItem(get) => {
                let value = self.expression(&get.expr)?;
                let key = self.expression(&get.subscript_expr)?;
                match (&value, key.as_str()) {
                    (Value::Namespace(_) | Value::Loop(..), Some(name)) => {
                        self.get_attribute(&value, name)
                    }
                    _ => subscript(&value, &key, self.budget),
                }
            }
            Expr::Call(call) => self.call(call, None),
            Expr::List(list) => {
                let items = self.each(&list.items)?;
                Value::list(items, self.budget)
            }
            Expr::Tuple(tuple) => {
                let items = self.each(&tuple.items)?;
                Value::sequence(items, true, self.budget)
            }
            Expr::Map(map) => {
                let keys = self.each(&map.keys)?;
                let values = self.each(&map.values)?;
                Value::map(keys.into_iter().zip(values).collect(), self.budget)
            }
        }
    }

    fn each(&mut self, expressions: &'t [Expr<'t>]) -> Result<Vec<Value>> {
        expressions.iter().map(|e| self.expression(e)).collect()
    }

    fn constant(&self, value: &minijinja::Value) -> Result<Value> {
        Ok(match value.kind() {
            ValueKind::Undefined => Value::Undefined,
            ValueKind::None => Value::None,
            ValueKind::Bool => value.is_true().into(),
            ValueKind::Number if value.is_integer() => Value::Int(
                i64::try_from(value.clone())
                    .map_err(|_| failure(format!("the number {value} is too large")))?,
            ),
            ValueKind::Number => Value::Float(
                f64::try_from(value.clone())
                    .map_err(|_| failure(format!("the number {value} is none")))?,
            ),
            ValueKind::String => {
                let text = value.as_str().unwrap_or_default();
                self.budget.pay(text.len() as u64)?;
                text.into()
            }
            kind => return Err(failure(format!("a constant {kind} is not supported"))),
        })
    }

    /// A chain of left-associative operators, which may be long, without recursion.
    fn operators(&mut self, expression: &'t Expr<'t>) -> Result<Value> {
        let mut chain = Vec::new();
        let mut first = expression;
        while let Expr::BinOp(operation) = first {
            chain.push(operation);
            first = &operation.left;
        }
        let mut left = self.expression(first)?;
        for operation in chain.into_iter().rev() {
            let decided = match operation.op {
                BinOpKind::ScAnd => !left.is_true(),
                BinOpKind::ScOr => left.is_true(),
                _ => false,
            };
            if decided {
                continue;
            }
            let right = self.expression(&operation.right)?;
            left = match operation.op {
                BinOpKind::ScAnd | BinOpKind::ScOr => right,
                BinOpKind::Eq => self.compares(CompareOpKind::Eq, &left, &right)?.into(),
                BinOpKind::Ne => self.compares(CompareOpKind::Ne, &left, &right)?.into(),
                BinOpKind::Lt => self.compares(CompareOpKind::Lt, &left, &right)?.into(),
                BinOpKind::Lte => self.compares(CompareOpKind::Lte, &left, &right)?.into(),
                BinOpKind::Gt => self.compares(CompareOpKind::Gt, &left, &right)?.into(),
                BinOpKind::Gte => self.compares(CompareOpKind::Gte, &left, &right)?.into(),
                BinOpKind::In => self.compares(CompareOpKind::In, &left, &right)?.into(),
                op @ (BinOpKind::Add
                | BinOpKind::Sub
                | BinOpKind::Mul
                | BinOpKind::Div
                | BinOpKind::FloorDiv
                | BinOpKind::Rem
                | BinOpKind::Pow
                | BinOpKind::Concat) => binary(op, &left, &right, self.budget)?,
            };
        }
        Ok(left)
    }

    fn compares(&self, op: CompareOpKind, left: &Value, right: &Value) -> Result<bool> {
        let budget = self.budget;
        Ok(match op {
            CompareOpKind::Eq => left.equals(right, budget)?,
            CompareOpKind::Ne => !left.equals(right, budget)?,
            CompareOpKind::Lt => left.compare(right, budget)?.is_lt(),
            CompareOpKind::Lte => left.compare(right, budget)?.is_le(),
            CompareOpKind::Gt => left.compare(right, budget)?.is_gt(),
            CompareOpKind::Gte => left.compare(right, budget)?.is_ge(),
            CompareOpKind::In => right.contains(left, budget)?,
            CompareOpKind::NotIn => !right.contains(left, budget)?,
        })
    }

    fn slice(&mut self, slice: &'t Slice<'t>) -> Result<Value> {
        let value = self.expression(&slice.expr)?;
        let mut bounds = [None; 3];
        let expressions = [&slice.start, &slice.stop, &slice.step];
        for (bound, expression) in bounds.iter_mut().zip(expressions) {
            let Some(expression) = expression else {
                continue;
            };
            *bound = match self.expression(expression)? {
                Value::None => None,
                bound => Some(bound.as_int().ok_or_else(|| {
                    failure(format!("{} cannot bound a slice", bound.type_name()))
                })?),
            };
        }
        operators::slice(&value, bounds, self.budget)
    }

    fn get_attribute(&self, value: &Value, name: &str) -> Result<Value> {
        Ok(match value {
            Value::Undefined => {
                return Err(failure(format!("an undefined value has no `{name}`")));
            }
            Value::Map(map) => map
                .get(&name.into(), self.budget)?
                .cloned()
                .unwrap_or(Value::Undefined),
            Value::Namespace(id) => self.namespaces[*id]
                .get(name)
                .cloned()
                .unwrap_or(Value::Undefined),
            Value::Loop(iteration) => iteration.attribute(name)?,
            Value::Macro(id) => match name {
                "name" => self.macros[*id].tree.name.into(),
                other => {
                    return Err(failure(format!("`{other}` of a macro is not supported")));
                }
            },
            Value::Str(_) if python::STRING_METHODS.contains(&name) => {
                return Err(failure(format!("`{name}` is not called")));
            }
            Value::None
            | Value::Bool(_)
            | Value::Int(_)
            | Value::Float(_)
            | Value::Str(_)
            | Value::Seq(_)
            | Value::Function(_) => Value::Undefined,
        })
    }

    fn arguments(&mut self, args: &'t [CallArg<'t>]) -> Result<Arguments<'t>> {
        let (mut positional, mut named) = (Vec::new(), Vec::new());
        for arg in args {
            match arg {
                CallArg::Pos(expression) => positional.push(self.expression(expression)?),
                CallArg::Kwarg(name, expression) => {
                    named.push((*name, self.expression(expression)?));
                }
                CallArg::PosSplat(expression) => {
                    positional.extend(self.expression(expression)?.iterate(self.budget)?);
                }
                CallArg::KwargSplat(_) => {
                    return Err(failure("`**` arguments are not supported"));
                }
            }
        }
        // Filters such as `map` take others as arguments, one within the other.
        if positional.len() + named.len() > ARGUMENTS_MAX {
            return Err(failure(format!(
                "a call has more than {ARGUMENTS_MAX} arguments"
            )));
        }
        Ok(Arguments::new(positional, named))
    }

    /// `caller` is what a `call` block gives to a macro.
    fn call(&mut self, call: &'t Spanned<Call<'t>>, caller: Option<Value>) -> Result<Value> {
        let callee = match &call.expr {
            Expr::GetAttr(get) => {
                let value = self.expression(&get.expr)?;
                let own = match &value {
                    Value::Map(_) => match get.name {
                        "get" | "keys" | "values" | "items" => Value::Undefined,
                        name => self.get_attribute(&value, name)?,
                    },
                    Value::Namespace(_) => self.get_attribute(&value, get.name)?,
                    Value::Undefined
                    | Value::None
                    | Value::Bool(_)
                    | Value::Int(_)
                    | Value::Float(_)
                    | Value::Str(_)
                    | Value::Seq(_)
                    | Value::Loop(..)
                    | Value::Macro(_)
                    | Value::Function(_) => Value::Undefined,
                };
                if matches!(own, Value::Undefined) {
                    require_no_block(caller.as_ref())?;
                    let args = self.arguments(&call.args)?;
                    return python::method(&value, get.name, args, self.budget);
                }
                own
            }
            Expr::Var(var) => match self.lookup(var.id) {
                Value::Undefined => {
                    return Err(failure(format!("there is no function `{}`", var.id)));
                }
                callee => callee,
            },
            expression => self.expression(expression)?,
        };
        let args = self.arguments(&call.args)?;
        if let Value::Macro(id) = callee {
            return self.deeper(|machine| machine.call_macro(id, args, caller));
        }
        require_no_block(caller.as_ref())?;
        match callee {
            Value::Loop(current) => self.deeper(|machine| machine.recurse(&current, args)),
            Value::Function(name) => self.call_function(name, args),
            other => Err(failure(format!("{} cannot be called", other.type_name()))),
        }
    }

    fn call_function(&mut self, name: &'static str, mut args: Arguments<'_>) -> Result<Value> {
        let result = match name {
            "range" => {
                let mut bounds = Vec::new();
                for value in args.positional() {
                    bounds.push(value.as_int().ok_or_else(|| {
                        failure(format!("{} cannot bound a range", value.type_name()))
                    })?);
                }
                operators::range(&bounds, self.budget)?
            }
            "dict" => {
                let named = args.rest();
                let pairs = named.into_iter().map(|(k, v)| (k.into(), v)).collect();
                Value::map(pairs, self.budget)?
            }
            "namespace" => {
                let named = args.rest();
                self.budget.pay_len(named.len() + 1, 2 * STEP)?;
                self.namespaces
                    .push(named.into_iter().map(|(k, v)| (k.into(), v)).collect());
                Value::Namespace(self.namespaces.len() - 1)
            }
            "raise_exception" => {
                let message = args.need("message")?.text(self.budget)?;
                return Err(Failure {
                    is_raised: true,
                    ..failure(&*message)
                });
            }
            "strftime_now" => {
                let format = args.text("format")?;
                self.budget.pay_len(format.len(), STEP)?;
                let date = self.date.expect("the function is there for a date");
                date.format(&format)?.into()
            }
            _ => return Err(failure(format!("the function `{name}` is not supported"))),
        };
        args.end(name)?;
        Ok(result)
    }
}

fn require_no_block(caller: Option<&Value>) -> Result<()> {
    match caller {
        Some(_) => Err(failure("a `call` block calls what is no macro")),
        None => Ok(()),
    }
}
