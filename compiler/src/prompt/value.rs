//! The values of a template, and the budget that bounds what one can do.
//!
//! Every container knows how deep it nests and what its whole tree weighs, shared parts
//! counted at each place, so that walking one is paid for before it starts: a list that
//! doubles itself ninety times costs nothing to hold and cannot be printed.

use std::cell::Cell;
use std::rc::Rc;

use super::loops::Iteration;

/// Why an evaluation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) line: Option<usize>,
    pub(super) what: String,
    /// The template itself ended it, by `raise_exception`.
    pub(super) is_raised: bool,
}

pub(super) type Result<T> = std::result::Result<T, Failure>;

pub(super) fn failure(what: impl Into<String>) -> Failure {
    Failure {
        line: None,
        what: what.into(),
        is_raised: false,
    }
}

/// What may still be spent: a byte of text costs 1, a step of the evaluation or a place in
/// a list [`STEP`] or [`SLOT`].
pub(super) struct Budget {
    left: Cell<u64>,
}

pub(super) const STEP: u64 = 64;
pub(super) const SLOT: u64 = 32;

impl Budget {
    pub(super) fn new(units: u64) -> Self {
        Self {
            left: Cell::new(units),
        }
    }

    pub(super) fn left(&self) -> u64 {
        self.left.get()
    }

    /// Pays before the work is done.
    ///
    /// # Errors
    /// When the budget does not reach; nothing can be paid after that.
    pub(super) fn pay(&self, units: u64) -> Result<()> {
        match self.left.get().checked_sub(units) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(failure("it runs too long or makes too much text"))
            }
        }
    }

    pub(super) fn pay_len(&self, len: usize, each: u64) -> Result<()> {
        self.pay((len as u64).saturating_mul(each))
    }
}

/// Deepest nesting of lists and mappings.
const DEPTH_MAX: u32 = 48;

#[derive(Clone, Debug)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<str>),
    /// A list, or a tuple, which prints differently.
    Seq(Rc<Seq>),
    Map(Rc<Map>),
    /// The `loop` of one iteration.
    Loop(Rc<Iteration>),
    /// Numbers of the evaluator's own tables.
    Namespace(usize),
    Macro(usize),
    Function(&'static str),
}

#[derive(Debug)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    pub(super) is_tuple: bool,
    extent: Extent,
}

/// Entries in the order of their insertion, keys once.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) entries: Vec<(Value, Value)>,
    extent: Extent,
}

/// The size of a tree.
#[derive(Clone, Copy, Debug)]
struct Extent {
    weight: u64,
    depth: u32,
}

impl Extent {
    fn of<'a>(children: impl Iterator<Item = &'a Value>) -> Result<Self> {
        let mut extent = Self {
            weight: SLOT,
            depth: 0,
        };
        for child in children {
            let child = child.extent();
            extent.weight = extent.weight.saturating_add(child.weight);
            extent.depth = extent.depth.max(child.depth);
        }
        extent.depth += 1;
        if extent.depth > DEPTH_MAX {
            return Err(failure(format!("values nest deeper than {DEPTH_MAX}")));
        }
        Ok(extent)
    }
}

impl Value {
    pub(super) fn list(items: Vec<Value>, budget: &Budget) -> Result<Self> {
        Self::sequence(items, false, budget)
    }

    pub(super) fn sequence(items: Vec<Value>, is_tuple: bool, budget: &Budget) -> Result<Self> {
        budget.pay_len(items.len(), SLOT)?;
        let extent = Extent::of(items.iter())?;
        Ok(Self::Seq(Rc::new(Seq {
            items,
            is_tuple,
            extent,
        })))
    }

    /// A later entry replaces an earlier one of the same key.
    pub(super) fn map(pairs: Vec<(Value, Value)>, budget: &Budget) -> Result<Self> {
        let mut entries: Vec<(Value, Value)> = Vec::new();
        for (key, value) in pairs {
            budget.pay(2 * SLOT)?;
            let mut place = None;
            for (i, (known, _)) in entries.iter().enumerate() {
                if known.equals(&key, budget)? {
                    place = Some(i);
                }
            }
            match place {
                Some(i) => entries[i].1 = value,
                None => entries.push((key, value)),
            }
        }
        let extent = Extent::of(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Map(Rc::new(Map { entries, extent })))
    }

    fn extent(&self) -> Extent {
        match self {
            Self::Str(text) => Extent {
                weight: SLOT + text.len() as u64,
                depth: 0,
            },
            Self::Seq(seq) => seq.extent,
            Self::Loop(iteration) => iteration.items.extent,
            Self::Map(map) => map.extent,
            Self::Undefined
            | Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Namespace(_)
            | Self::Macro(_)
            | Self::Function(_) => Extent {
                weight: SLOT,
                depth: 0,
            },
        }
    }

    /// A bound on the bytes that the value prints as, up to a small factor.
    pub(super) fn weight(&self) -> u64 {
        self.extent().weight
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self {
            Some(text)
        } else {
            None
        }
    }

    /// The number that arithmetic sees: `True` is 1.
    pub(super) fn as_int(&self) -> Option<i64> {
        if let Self::Bool(b) = self {
            Some((*b).into())
        } else if let Self::Int(n) = self {
            Some(*n)
        } else {
            None
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        if let Self::Float(x) = self {
            Some(*x)
        } else {
            self.as_int().map(|n| n as f64)
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::Seq(seq) => !seq.items.is_empty(),
            Self::Map(map) => !map.entries.is_empty(),
            Self::Loop(..) | Self::Namespace(_) | Self::Macro(_) | Self::Function(_) => true,
        }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined => "an undefined value",
            Self::None => "None",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a string",
            Self::Seq(seq) if seq.is_tuple => "a tuple",
            Self::Seq(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Loop(..) => "a loop",
            Self::Namespace(_) => "a namespace",
            Self::Macro(_) => "a macro",
            Self::Function(_) => "a function",
        }
    }

    pub(super) fn equals(&self, other: &Self, budget: &Budget) -> Result<bool> {
        budget.pay(SLOT / 2)?;
        Ok(match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => {
                if a.len() == b.len() {
                    budget.pay(a.len() as u64)?;
                }
                a == b
            }
            (Self::Seq(a), Self::Seq(b)) => {
                if a.is_tuple != b.is_tuple || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Map(a), Self::Map(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match b.get(key, budget)? {
                        Some(other) if value.equals(other, budget)? => {}
                        Some(_) | None => return Ok(false),
                    }
                }
                true
            }
            (Self::Namespace(a), Self::Namespace(b)) | (Self::Macro(a), Self::Macro(b)) => a == b,
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                },
            },
        })
    }

    /// Python's `<`, which only like things have.
    pub(super) fn compare(&self, other: &Self, budget: &Budget) -> Result<std::cmp::Ordering> {
        budget.pay(SLOT / 2)?;
        let unordered = || {
            failure(format!(
                "{} and {} have no order",
                self.type_name(),
                other.type_name()
            ))
        };
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => {
                budget.pay(a.len().min(b.len()) as u64)?;
                Ok(a.cmp(b))
            }
            (Self::Seq(a), Self::Seq(b)) if a.is_tuple == b.is_tuple => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return a.compare(b, budget);
                    }
                }
                Ok(a.items.len().cmp(&b.items.len()))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => Ok(a.cmp(&b)),
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a.partial_cmp(&b).ok_or_else(unordered),
                    _ => Err(unordered()),
                },
            },
        }
    }

    /// What a loop over the value goes through.
    pub(super) fn iterate(&self, budget: &Budget) -> Result<Vec<Value>> {
        match self {
            Self::Undefined => Ok(Vec::new()),
            Self::Str(text) => {
                budget.pay_len(text.len(), SLOT)?;
                Ok(text.chars().map(|c| c.to_string().into()).collect())
            }
            Self::Seq(seq) => {
                budget.pay_len(seq.items.len(), SLOT)?;
                Ok(seq.items.clone())
            }
            Self::Map(map) => {
                budget.pay_len(map.entries.len(), SLOT)?;
                Ok(map.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Loop(..)
            | Self::Namespace(_)
            | Self::Macro(_)
            | Self::Function(_) => Err(failure(format!("{} has no items", self.type_name()))),
        }
    }

    pub(super) fn len(&self, budget: &Budget) -> Result<usize> {
        match self {
            Self::Undefined => Ok(0),
            Self::Str(text) => {
                budget.pay(text.len() as u64)?;
                Ok(text.chars().count())
            }
            Self::Seq(seq) => Ok(seq.items.len()),
            Self::Map(map) => Ok(map.entries.len()),
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Loop(..)
            | Self::Namespace(_)
            | Self::Macro(_)
            | Self::Function(_) => Err(failure(format!("{} has no length", self.type_name()))),
        }
    }

    /// `needle in self`.
    pub(super) fn contains(&self, needle: &Self, budget: &Budget) -> Result<bool> {
        match self {
            Self::Undefined => Ok(false),
            Self::Str(text) => {
                let Some(needle) = needle.as_str() else {
                    return Err(failure(format!(
                        "{} cannot be in a string",
                        needle.type_name()
                    )));
                };
                budget.pay((text.len() + needle.len()) as u64)?;
                Ok(text.contains(needle))
            }
            Self::Seq(seq) => {
                for item in &seq.items {
                    if item.equals(needle, budget)? {
                        return Ok(true);
                    }
                }
                Ok(false)
            }
            Self::Map(map) => Ok(map.get(needle, budget)?.is_some()),
            Self::None
            | Self::Bool(_)
            | Self::Int(_)
            | Self::Float(_)
            | Self::Loop(..)
            | Self::Namespace(_)
            | Self::Macro(_)
            | Self::Function(_) => Err(failure(format!("{} has no items", self.type_name()))),
        }
    }

    /// `str(self)`.
    pub(super) fn text(&self, budget: &Budget) -> Result<Rc<str>> {
        if let Self::Str(text) = self {
            Ok(Rc::clone(text))
        } else {
            self.repr(budget).map(Rc::from)
        }
    }

    /// `repr(self)`, in which escapes make at most four characters of one.
    pub(super) fn repr(&self, budget: &Budget) -> Result<String> {
        budget.pay(self.weight().saturating_mul(10))?;
        let mut out = String::new();
        self.print(&mut out);
        Ok(out)
    }

    fn print(&self, out: &mut String) {
        match self {
            Self::Undefined => {}
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(n) => out.push_str(&n.to_string()),
            Self::Float(x) => out.push_str(&float(*x)),
            Self::Str(text) => quote(text, out),
            Self::Seq(seq) => {
                out.push(if seq.is_tuple { '(' } else { '[' });
                for (i, item) in seq.items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    item.print(out);
                }
                if seq.is_tuple && seq.items.len() == 1 {
                    out.push(',');
                }
                out.push(if seq.is_tuple { ')' } else { ']' });
            }
            Self::Map(map) => {
                out.push('{');
                for (i, (key, value)) in map.entries.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    key.print(out);
                    out.push_str(": ");
                    value.print(out);
                }
                out.push('}');
            }
            Self::Loop(iteration) => {
                let (index, len) = (iteration.index, iteration.items.items.len());
                out.push_str(&format!("<LoopContext {}/{len}>", index + 1));
            }
            Self::Namespace(_) => out.push_str("<Namespace>"),
            Self::Macro(_) => out.push_str("<Macro>"),
            Self::Function(name) => out.push_str(&format!("<function {name}>")),
        }
    }
}

impl Map {
    pub(super) fn get(&self, key: &Value, budget: &Budget) -> Result<Option<&Value>> {
        for (known, value) in &self.entries {
            if known.equals(key, budget)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<Rc<str>> for Value {
    fn from(text: Rc<str>) -> Self {
        Self::Str(text)
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Int(n as i64)
    }
}

/// Python's `repr` of a float: the shortest digits that read back.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".to_owned();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("{:e} writes an exponent");
    let exponent: i32 = exponent.parse().expect("{:e} writes a number");
    if (-4..16).contains(&exponent) || x == 0.0 {
        format!("{x:?}")
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// Python's `repr` of a string.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if c < ' ' || ('\x7f'..='\u{a0}').contains(&c) || c == '\u{ad}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push(quote);
}
