//! Python's operators on a template's values.

use minijinja::machinery::ast::BinOpKind;

use super::format::percent;
use super::value::{Budget, Result, SLOT, Value, failure};

pub(super) fn negate(value: &Value) -> Result<Value> {
    match value {
        Value::Float(x) => Ok(Value::Float(-x)),
        value => match value.as_int().map(i64::checked_neg) {
            Some(Some(n)) => Ok(Value::Int(n)),
            Some(None) => Err(too_large()),
            None => Err(failure(format!("{} has no negative", value.type_name()))),
        },
    }
}

fn too_large() -> super::value::Failure {
    failure("a number is too large")
}

/// Arithmetic, `~` and what Python's operators do to strings and lists. Comparisons and
/// the logical operators are the evaluator's.
pub(super) fn binary(op: BinOpKind, left: &Value, right: &Value, budget: &Budget) -> Result<Value> {
    match (op, left, right) {
        (BinOpKind::Concat, _, _) => {
            let (left, right) = (left.text(budget)?, right.text(budget)?);
            return concat(&left, &right, budget);
        }
        (BinOpKind::Add, Value::Str(a), Value::Str(b)) => return concat(a, b, budget),
        (BinOpKind::Add, Value::Seq(a), Value::Seq(b)) if a.is_tuple == b.is_tuple => {
            budget.pay_len(a.items.len() + b.items.len(), SLOT)?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            return Value::sequence(items, a.is_tuple, budget);
        }
        (BinOpKind::Mul, Value::Str(_) | Value::Seq(_), _) if right.as_int().is_some() => {
            return repeat(left, right, budget);
        }
        (BinOpKind::Mul, _, Value::Str(_) | Value::Seq(_)) if left.as_int().is_some() => {
            return repeat(right, left, budget);
        }
        (BinOpKind::Rem, Value::Str(format), _) => return percent(format, right, budget),
        _ => {}
    }
    let impossible = || {
        failure(format!(
            "the operator {} is not for {} and {}",
            symbol(op),
            left.type_name(),
            right.type_name()
        ))
    };
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        let exact = match op {
            BinOpKind::Add => a.checked_add(b),
            BinOpKind::Sub => a.checked_sub(b),
            BinOpKind::Mul => a.checked_mul(b),
            BinOpKind::FloorDiv | BinOpKind::Rem | BinOpKind::Div if b == 0 => {
                return Err(failure("division by zero"));
            }
            BinOpKind::Div => return Ok(Value::Float(a as f64 / b as f64)),
            BinOpKind::FloorDiv => a
                .checked_div(b)
                .map(|q| q - i64::from(a % b != 0 && (a < 0) != (b < 0))),
            BinOpKind::Rem => a.checked_rem(b).map(|r| {
                if r != 0 && (r < 0) != (b < 0) {
                    r + b
                } else {
                    r
                }
            }),
            BinOpKind::Pow => match u32::try_from(b) {
                Ok(b) => a.checked_pow(b),
                Err(_) => return Err(impossible()),
            },
            _ => return Err(impossible()),
        };
        return exact.map(Value::Int).ok_or_else(too_large);
    }
    let (Some(a), Some(b)) = (left.as_float(), right.as_float()) else {
        return Err(impossible());
    };
    Ok(Value::Float(match op {
        BinOpKind::Add => a + b,
        BinOpKind::Sub => a - b,
        BinOpKind::Mul => a * b,
        BinOpKind::FloorDiv | BinOpKind::Rem | BinOpKind::Div if b == 0.0 => {
            return Err(failure("division by zero"));
        }
        BinOpKind::Div => a / b,
        BinOpKind::FloorDiv => (a / b).floor(),
        BinOpKind::Rem => {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) {
                r + b
            } else {
                r
            }
        }
        _ => return Err(impossible()),
    }))
}

fn symbol(op: BinOpKind) -> &'static str {
    match op {
        BinOpKind::Eq => "==",
        BinOpKind::Ne => "!=",
        BinOpKind::Lt => "<",
        BinOpKind::Lte => "<=",
        BinOpKind::Gt => ">",
        BinOpKind::Gte => ">=",
        BinOpKind::ScAnd => "and",
        BinOpKind::ScOr => "or",
        BinOpKind::Add => "+",
        BinOpKind::Sub => "-",
        BinOpKind::Mul => "*",
        BinOpKind::Div => "/",
        BinOpKind::FloorDiv => "//",
        BinOpKind::Rem => "%",
        BinOpKind::Pow => "**",
        BinOpKind::Concat => "~",
        BinOpKind::In => "in",
    }
}

fn concat(left: &str, right: &str, budget: &Budget) -> Result<Value> {
    budget.pay((left.len() + right.len()) as u64)?;
    Ok([left, right].concat().into())
}

/// A negative count is none.
fn repeat(value: &Value, count: &Value, budget: &Budget) -> Result<Value> {
    let count = count.as_int().unwrap_or(0).max(0) as u64;
    match value {
        Value::Str(text) => {
            budget.pay(count.saturating_mul(text.len() as u64))?;
            Ok(text.repeat(count as usize).into())
        }
        Value::Seq(seq) => {
            budget.pay(count.saturating_mul(seq.items.len() as u64 * SLOT))?;
            let len = seq.items.len() * count as usize;
            let items = seq.items.iter().cycle().take(len).cloned().collect();
            Value::sequence(items, seq.is_tuple, budget)
        }
        other => Err(failure(format!("{} has no multiple", other.type_name()))),
    }
}

/// `value[key]`; what is not there is undefined.
pub(super) fn subscript(value: &Value, key: &Value, budget: &Budget) -> Result<Value> {
    let place = |len: usize| {
        let index = key.as_int()?;
        let index = if index < 0 { index + len as i64 } else { index };
        usize::try_from(index).ok().filter(|&i| i < len)
    };
    Ok(match value {
        Value::Map(map) => map.get(key, budget)?.cloned().unwrap_or(Value::Undefined),
        Value::Seq(seq) => {
            place(seq.items.len()).map_or(Value::Undefined, |i| seq.items[i].clone())
        }
        Value::Str(text) => {
            let len = value.len(budget)?;
            match place(len).and_then(|i| text.chars().nth(i)) {
                Some(c) => c.to_string().into(),
                None => Value::Undefined,
            }
        }
        Value::Undefined => return Err(failure("an undefined value has no items")),
        Value::None
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::Loop(..)
        | Value::Namespace(_)
        | Value::Macro(_)
        | Value::Function(_) => Value::Undefined,
    })
}

/// `value[start:stop:step]`.
pub(super) fn slice(
    value: &Value,
    [start, stop, step]: [Option<i64>; 3],
    budget: &Budget,
) -> Result<Value> {
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(failure("a slice's step is zero"));
    }
    let places = |len: usize| {
        let len = len as i64;
        let (lowest, highest) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let clamp = |bound: i64| {
            let bound = if bound < 0 {
                bound.saturating_add(len)
            } else {
                bound
            };
            bound.clamp(lowest, highest)
        };
        let (first, end) = if step > 0 { (0, len) } else { (len - 1, -1) };
        let start = start.map_or(first, clamp);
        let stop = stop.map_or(end, clamp);
        let mut place = start;
        std::iter::from_fn(move || {
            let more = if step > 0 { place < stop } else { place > stop };
            let this = place;
            place = place.saturating_add(step);
            more.then_some(this as usize)
        })
    };
    match value {
        Value::Str(text) => {
            budget.pay_len(text.len(), 8)?;
            let chars: Vec<char> = text.chars().collect();
            Ok(places(chars.len())
                .map(|i| chars[i])
                .collect::<String>()
                .into())
        }
        Value::Seq(seq) => {
            budget.pay_len(seq.items.len(), SLOT)?;
            let items = places(seq.items.len())
                .map(|i| seq.items[i].clone())
                .collect();
            Value::sequence(items, seq.is_tuple, budget)
        }
        other => Err(failure(format!("{} cannot be sliced", other.type_name()))),
    }
}

/// `range(stop)`, `range(start, stop)` or `range(start, stop, step)` as a list.
pub(super) fn range(bounds: &[i64], budget: &Budget) -> Result<Value> {
    let (start, stop, step) = match *bounds {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] if step != 0 => (start, stop, step),
        _ => return Err(failure("range takes one to three numbers")),
    };
    let distance = if step > 0 {
        i128::from(stop) - i128::from(start)
    } else {
        i128::from(start) - i128::from(stop)
    };
    let step_len = i128::from(step).unsigned_abs();
    let len = u128::try_from(distance).map_or(0, |distance| distance.div_ceil(step_len));
    budget.pay(u64::try_from(len).unwrap_or(u64::MAX).saturating_mul(SLOT))?;
    // `i * step` may not fit 64 bits where the item does.
    let item = |i| i128::from(start) + i128::from(step) * i;
    let items = (0..len as i128)
        .map(|i| Value::Int(item(i) as i64))
        .collect();
    Value::list(items, budget)
}
