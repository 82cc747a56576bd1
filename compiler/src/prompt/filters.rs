//! Jinja's filters and tests.

use super::arguments::Arguments;
use super::format::percent;
use super::json::to_json;
use super::python::{self, capitalize, join, replace, strip};
use super::value::{Budget, Result, SLOT, Value, failure};

/// What the evaluator does for filters that call filters and tests.
pub(super) trait Calls {
    fn attribute(&self, value: &Value, path: &Value) -> Result<Value>;
    fn budget(&self) -> &Budget;
}

pub(super) fn filter(
    calls: &dyn Calls,
    name: &str,
    value: &Value,
    mut args: Arguments<'_>,
) -> Result<Value> {
    let budget = calls.budget();
    let result = match name {
        "tojson" => return to_json(value, args, budget),
        "map" => return map(calls, value, args),
        "select" | "reject" | "selectattr" | "rejectattr" => {
            return select(calls, name, value, args);
        }
        "format" => {
            let text = value.text(budget)?;
            let positional = args.positional();
            let named = args.rest();
            let rest = if named.is_empty() {
                Value::sequence(positional, true, budget)?
            } else {
                let named = named.into_iter().map(|(k, v)| (k.into(), v)).collect();
                Value::map(named, budget)?
            };
            percent(&text, &rest, budget)?
        }
        "trim" => {
            let text = value.text(budget)?;
            let chars = args.optional_text("chars")?;
            budget.pay_len(text.len(), 1 + chars.as_ref().map_or(0, |c| c.len() as u64))?;
            strip(&text, chars.as_deref(), true, true).into()
        }
        "upper" | "lower" | "title" | "capitalize" => {
            let text = value.text(budget)?;
            budget.pay_len(text.len(), 4)?;
            match name {
                "upper" => text.to_uppercase(),
                "lower" => text.to_lowercase(),
                "title" => title(&text),
                _ => capitalize(&text),
            }
            .into()
        }
        "replace" => {
            let text = value.text(budget)?;
            let (from, to) = (args.text("old")?, args.text("new")?);
            replace(&text, &from, &to, args.optional_int("count")?, budget)?
        }
        "escape" | "e" | "forceescape" => escape(&value.text(budget)?, budget)?,
        "safe" | "string" => value.text(budget)?.into(),
        "center" => {
            let text = value.text(budget)?;
            let width = args.optional_int("width")?.unwrap_or(80);
            center(&text, usize::try_from(width).unwrap_or(0), budget)?
        }
        "indent" => {
            let text = value.text(budget)?;
            let margin = match args.take("width") {
                None => " ".repeat(4),
                Some(Value::Str(margin)) => margin.to_string(),
                Some(width) => {
                    let width = width.as_int().and_then(|n| usize::try_from(n.max(0)).ok());
                    let width = width.ok_or_else(|| failure("indent has no such width"))?;
                    budget.pay(width as u64)?;
                    " ".repeat(width)
                }
            };
            let first = args.take("first").is_some_and(|v| v.is_true());
            let blank = args.take("blank").is_some_and(|v| v.is_true());
            indent(&text, &margin, first, blank, budget)?
        }
        "wordcount" => {
            let text = value.text(budget)?;
            budget.pay(text.len() as u64)?;
            text.split(omex_plan::prompt::is_space)
                .filter(|word| !word.is_empty())
                .count()
                .into()
        }
        "length" | "count" => value.len(budget)?.into(),
        "default" | "d" => {
            let default = args.take("default_value").unwrap_or_else(|| "".into());
            let falsy_too = args.take("boolean").is_some_and(|v| v.is_true());
            if matches!(value, Value::Undefined) || (falsy_too && !value.is_true()) {
                default
            } else {
                value.clone()
            }
        }
        "first" => value
            .iterate(budget)?
            .first()
            .cloned()
            .unwrap_or(Value::Undefined),
        "last" => value.iterate(budget)?.pop().unwrap_or(Value::Undefined),
        "list" => Value::list(value.iterate(budget)?, budget)?,
        "items" => python::items(value, budget)?,
        "reverse" => match value {
            Value::Str(text) => {
                budget.pay(text.len() as u64)?;
                text.chars().rev().collect::<String>().into()
            }
            value => {
                let mut items = value.iterate(budget)?;
                items.reverse();
                Value::list(items, budget)?
            }
        },
        "join" => {
            let separator = args.optional_text("d")?;
            let attribute = args.take("attribute");
            let mut items = value.iterate(budget)?;
            if let Some(attribute) = attribute {
                for item in &mut items {
                    *item = calls.attribute(item, &attribute)?;
                }
            }
            join(&items, separator.as_deref().unwrap_or(""), budget)?
        }
        "unique" => {
            let case_sensitive = args.take("case_sensitive").is_some_and(|v| v.is_true());
            let attribute = args.take("attribute");
            let mut found: Vec<(Value, Value)> = Vec::new();
            'items: for item in value.iterate(budget)? {
                let key = sort_key(calls, &item, attribute.as_ref(), case_sensitive)?;
                for (known, _) in &found {
                    if known.equals(&key, budget)? {
                        continue 'items;
                    }
                }
                found.push((key, item));
            }
            Value::list(found.into_iter().map(|(_, item)| item).collect(), budget)?
        }
        "sort" => {
            let reverse = args.take("reverse").is_some_and(|v| v.is_true());
            let case_sensitive = args.take("case_sensitive").is_some_and(|v| v.is_true());
            let attribute = args.take("attribute");
            let items = value.iterate(budget)?;
            sorted(calls, items, attribute, case_sensitive, reverse)?
        }
        "dictsort" => {
            let case_sensitive = args.take("case_sensitive").is_some_and(|v| v.is_true());
            let by = args.optional_text("by")?;
            let reverse = args.take("reverse").is_some_and(|v| v.is_true());
            let place = match by.as_deref() {
                None | Some("key") => 0,
                Some("value") => 1,
                Some(_) => return Err(failure("dictsort sorts by key or value")),
            };
            let pairs = python::items(value, budget)?.iterate(budget)?;
            sorted(
                calls,
                pairs,
                Some(Value::Int(place)),
                case_sensitive,
                reverse,
            )?
        }
        "min" | "max" => {
            let mut best: Option<Value> = None;
            for item in value.iterate(budget)? {
                let better = match &best {
                    None => true,
                    Some(best) => {
                        let order = item.compare(best, budget)?;
                        order
                            == if name == "min" {
                                std::cmp::Ordering::Less
                            } else {
                                std::cmp::Ordering::Greater
                            }
                    }
                };
                if better {
                    best = Some(item);
                }
            }
            best.unwrap_or(Value::Undefined)
        }
        "sum" => {
            let attribute = args.take("attribute");
            let mut total = args.take("start").unwrap_or(Value::Int(0));
            for mut item in value.iterate(budget)? {
                if let Some(attribute) = &attribute {
                    item = calls.attribute(&item, attribute)?;
                }
                total = match (total.as_int(), item.as_int()) {
                    (Some(a), Some(b)) => a
                        .checked_add(b)
                        .map(Value::Int)
                        .ok_or_else(|| failure("the sum is too large"))?,
                    _ => match (total.as_float(), item.as_float()) {
                        (Some(a), Some(b)) => Value::Float(a + b),
                        _ => return Err(failure(format!("{} has no sum", item.type_name()))),
                    },
                };
            }
            total
        }
        "abs" => match value {
            Value::Float(x) => Value::Float(x.abs()),
            value => match value.as_int().and_then(i64::checked_abs) {
                Some(n) => Value::Int(n),
                None => return Err(failure(format!("{} has no abs", value.type_name()))),
            },
        },
        "int" => {
            let default = args.take("default").unwrap_or(Value::Int(0));
            match value {
                Value::Float(x) if x.abs() < 9e18 => Value::Int(*x as i64),
                Value::Str(text) => {
                    let text = text.trim();
                    if text.contains('_') {
                        return Err(failure("numbers with `_` are not supported"));
                    }
                    match text.parse::<i64>() {
                        Ok(n) => Value::Int(n),
                        Err(_) => match text.parse::<f64>() {
                            Ok(x) if x.abs() < 9e18 => Value::Int(x as i64),
                            Ok(_) | Err(_) => default,
                        },
                    }
                }
                value => value.as_int().map_or(default, Value::Int),
            }
        }
        "float" => {
            let default = args.take("default").unwrap_or(Value::Float(0.0));
            match value {
                Value::Str(text) => text.trim().parse().map_or(default, Value::Float),
                value => value.as_float().map_or(default, Value::Float),
            }
        }
        "round" => {
            let places = args.optional_int("precision")?.unwrap_or(0).clamp(0, 15);
            let method = args.optional_text("method")?;
            let x = value
                .as_float()
                .ok_or_else(|| failure("round takes a number"))?;
            let scale = (0..places).fold(1.0_f64, |scale, _| scale * 10.0);
            let scaled = x * scale;
            Value::Float(
                match method.as_deref() {
                    None | Some("common") => scaled.round_ties_even(),
                    Some("ceil") => scaled.ceil(),
                    Some("floor") => scaled.floor(),
                    Some(_) => return Err(failure("round is common, ceil or floor")),
                } / scale,
            )
        }
        _ => return Err(failure(format!("the filter `{name}` is not supported"))),
    };
    args.end(name)?;
    Ok(result)
}

/// Jinja's own `title`: a word ends at white space, `-` and opening brackets.
fn title(text: &str) -> String {
    let mut first = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        let separates = omex_plan::prompt::is_space(c) || "-({[<".contains(c);
        if first {
            out.extend(c.to_uppercase());
        } else {
            out.extend(c.to_lowercase());
        }
        first = separates;
    }
    out
}

fn escape(text: &str, budget: &Budget) -> Result<Value> {
    budget.pay_len(text.len(), 5)?;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '\'' => out.push_str("&#39;"),
            '"' => out.push_str("&#34;"),
            c => out.push(c),
        }
    }
    Ok(out.into())
}

/// `str.center`, which puts the odd space left of texts of odd width.
fn center(text: &str, width: usize, budget: &Budget) -> Result<Value> {
    budget.pay((text.len() + width) as u64)?;
    let missing = width.saturating_sub(text.chars().count());
    let left = missing / 2 + (missing & width & 1);
    Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)).into())
}

fn indent(text: &str, margin: &str, first: bool, blank: bool, budget: &Budget) -> Result<Value> {
    budget.pay(text.len() as u64)?;
    budget.pay_len(text.matches('\n').count() + 1, margin.len() as u64)?;
    let mut out = String::new();
    for (i, line) in text.split('\n').enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let indents = if i == 0 {
            first
        } else {
            blank || !line.is_empty()
        };
        if indents {
            out.push_str(margin);
        }
        out.push_str(line);
    }
    Ok(out.into())
}

/// What an item is ordered by, or told apart from others.
fn sort_key(
    calls: &dyn Calls,
    item: &Value,
    attribute: Option<&Value>,
    case_sensitive: bool,
) -> Result<Value> {
    let key = match attribute {
        None | Some(Value::None) => item.clone(),
        Some(attribute) => calls.attribute(item, attribute)?,
    };
    match &key {
        Value::Str(text) if !case_sensitive => {
            calls.budget().pay(text.len() as u64)?;
            Ok(text.to_lowercase().into())
        }
        _ => Ok(key),
    }
}

fn sorted(
    calls: &dyn Calls,
    items: Vec<Value>,
    attribute: Option<Value>,
    case_sensitive: bool,
    reverse: bool,
) -> Result<Value> {
    let budget = calls.budget();
    let mut keyed: Vec<(Value, Value)> = Vec::with_capacity(items.len());
    for item in items {
        let key = sort_key(calls, &item, attribute.as_ref(), case_sensitive)?;
        keyed.push((key, item));
    }
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.compare(b, budget).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            std::cmp::Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    match failed {
        Some(error) => Err(error),
        None => Value::list(keyed.into_iter().map(|(_, item)| item).collect(), budget),
    }
}

/// What `map`, `select` and their like go through: nothing of what is false.
fn items(value: &Value, budget: &Budget) -> Result<Vec<Value>> {
    match value.is_true() {
        true => value.iterate(budget),
        false => Ok(Vec::new()),
    }
}

fn map(calls: &dyn Calls, value: &Value, mut args: Arguments<'_>) -> Result<Value> {
    let budget = calls.budget();
    let mut mapped = Vec::new();
    if let Some(attribute) = args.named("attribute") {
        let default = args.named("default");
        args.end("map")?;
        for item in items(value, budget)? {
            let found = calls.attribute(&item, &attribute)?;
            mapped.push(match (&found, &default) {
                (Value::Undefined, Some(default)) => default.clone(),
                _ => found,
            });
        }
    } else {
        let name = args.text("filter")?;
        let (positional, named) = (args.positional(), args.rest());
        for item in items(value, budget)? {
            budget.pay_len(positional.len() + named.len() + 2, SLOT)?;
            let args = Arguments::new(positional.clone(), named.clone());
            mapped.push(filter(calls, &name, &item, args)?);
        }
    }
    Value::list(mapped, budget)
}

fn select(calls: &dyn Calls, name: &str, value: &Value, mut args: Arguments<'_>) -> Result<Value> {
    let budget = calls.budget();
    let attribute = if name.ends_with("attr") {
        Some(args.need("attribute")?)
    } else {
        None
    };
    let test_name = args.optional_text("test")?;
    let (positional, named) = (args.positional(), args.rest());
    let mut kept = Vec::new();
    for item in items(value, budget)? {
        let subject = match &attribute {
            Some(attribute) => calls.attribute(&item, attribute)?,
            None => item.clone(),
        };
        budget.pay_len(positional.len() + named.len() + 2, SLOT)?;
        let holds = match &test_name {
            Some(name) => {
                let args = Arguments::new(positional.clone(), named.clone());
                test(name, &subject, args, budget)?
            }
            None => subject.is_true(),
        };
        if holds != name.starts_with("reject") {
            kept.push(item);
        }
    }
    Value::list(kept, budget)
}

pub(super) fn test(
    name: &str,
    value: &Value,
    mut args: Arguments<'_>,
    budget: &Budget,
) -> Result<bool> {
    let int = |what: Option<i64>| what.ok_or_else(|| failure(format!("`{name}` tests an integer")));
    let holds = match name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "boolean" => matches!(value, Value::Bool(_)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Bool(_) | Value::Int(_) | Value::Float(_)),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Map(_)),
        "sequence" => matches!(
            value,
            Value::Undefined | Value::Str(_) | Value::Seq(_) | Value::Map(_)
        ),
        "iterable" => matches!(
            value,
            Value::Undefined | Value::Str(_) | Value::Seq(_) | Value::Map(_) | Value::Loop(..)
        ),
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_)),
        "odd" => int(value.as_int())? % 2 != 0,
        "even" => int(value.as_int())? % 2 == 0,
        "divisibleby" => {
            let by = int(args.need("num")?.as_int())?;
            int(value.as_int())?
                .checked_rem(by)
                .ok_or_else(|| failure("nothing is divisible by that"))?
                == 0
        }
        "lower" | "upper" => {
            let text = value.text(budget)?;
            budget.pay_len(text.len(), 4)?;
            let (lower, upper) = (text.to_lowercase(), text.to_uppercase());
            lower != upper && *text == *if name == "lower" { lower } else { upper }
        }
        "sameas" => match value {
            Value::Str(_) | Value::Seq(_) | Value::Map(_) | Value::Float(_) => {
                let what = value.type_name();
                return Err(failure(format!("`sameas` is not supported for {what}")));
            }
            value => value.equals(&args.need("other")?, budget)?,
        },
        "eq" | "equalto" | "==" => value.equals(&args.need("other")?, budget)?,
        "ne" | "!=" => !value.equals(&args.need("other")?, budget)?,
        "lt" | "lessthan" | "<" => value.compare(&args.need("other")?, budget)?.is_lt(),
        "le" | "<=" => value.compare(&args.need("other")?, budget)?.is_le(),
        "gt" | "greaterthan" | ">" => value.compare(&args.need("other")?, budget)?.is_gt(),
        "ge" | ">=" => value.compare(&args.need("other")?, budget)?.is_ge(),
        "in" => args.need("seq")?.contains(value, budget)?,
        _ => return Err(failure(format!("the test `{name}` is not supported"))),
    };
    args.end(name)?;
    Ok(holds)
}
