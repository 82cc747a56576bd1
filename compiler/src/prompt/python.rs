//! Python's methods on strings, mappings and lists, as chat templates use them.

use omex_plan::prompt::is_space;

use super::arguments::Arguments;
use super::braces::braces;
use super::value::{Budget, Result, SLOT, Value, failure};

pub(super) fn method(
    value: &Value,
    name: &str,
    mut args: Arguments<'_>,
    budget: &Budget,
) -> Result<Value> {
    let result = match value {
        Value::Str(text) => {
            // Every method reads its text, and most make one of about its size.
            budget.pay_len(text.len(), 4)?;
            string(text, name, &mut args, budget)?
        }
        Value::Map(_) => mapping(value, name, &mut args, budget)?,
        Value::Seq(_) => sequence(value, name, &mut args, budget)?,
        Value::Loop(iteration) => iteration.method(name, &mut args)?,
        Value::Undefined
        | Value::None
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Float(_)
        | Value::Namespace(_)
        | Value::Macro(_)
        | Value::Function(_) => None,
    };
    let no_method = || failure(format!("{} has no method `{name}`", value.type_name()));
    let result = result.ok_or_else(no_method)?;
    args.end(name)?;
    Ok(result)
}

/// `str.strip` and its like.
pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(strips)
    } else {
        text
    };
    if right {
        text.trim_end_matches(strips)
    } else {
        text
    }
}

/// Methods of Python's strings, which a template may ask for without calling them.
pub(super) const STRING_METHODS: [&str; 47] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
    "zfill",
];

fn string(
    text: &str,
    name: &str,
    args: &mut Arguments<'_>,
    budget: &Budget,
) -> Result<Option<Value>> {
    let all = |holds: fn(char) -> bool| (!text.is_empty() && text.chars().all(holds)).into();
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let chars = args.optional_text("chars")?;
            if let Some(chars) = &chars {
                budget.pay_len(text.len(), chars.len() as u64)?;
            }
            strip(text, chars.as_deref(), name != "rstrip", name != "lstrip").into()
        }
        "upper" => text.to_uppercase().into(),
        "lower" => text.to_lowercase().into(),
        "title" => title(text).into(),
        "capitalize" => capitalize(text).into(),
        "startswith" => affix(&args.need("prefix")?, budget, |p| text.starts_with(p))?,
        "endswith" => affix(&args.need("suffix")?, budget, |s| text.ends_with(s))?,
        "removeprefix" => {
            let prefix = args.text("prefix")?;
            text.strip_prefix(&*prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let suffix = args.text("suffix")?;
            text.strip_suffix(&*suffix).unwrap_or(text).into()
        }
        "replace" => {
            let (from, to) = (args.text("old")?, args.text("new")?);
            let count = args.optional_int("count")?;
            replace(text, &from, &to, count, budget)?
        }
        "split" | "rsplit" => {
            let separator = args.optional_text("sep")?;
            let limit = args.optional_int("maxsplit")?;
            let limit = limit.and_then(|n| usize::try_from(n).ok());
            let parts = split(text, separator.as_deref(), limit, name == "rsplit")?;
            list(&parts, false, budget)?
        }
        "splitlines" => {
            let keep = args.take("keepends").is_some_and(|v| v.is_true());
            list(&lines(text, keep), false, budget)?
        }
        "partition" | "rpartition" => {
            let separator = args.text("sep")?;
            if separator.is_empty() {
                return Err(failure("empty separator"));
            }
            let found = if name == "partition" {
                text.split_once(&*separator)
            } else {
                text.rsplit_once(&*separator)
            };
            let parts = match (found, name) {
                (Some((left, right)), _) => [left, &separator, right],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            };
            list(&parts, true, budget)?
        }
        "join" => {
            let items = args.need("iterable")?.iterate(budget)?;
            for item in &items {
                if item.as_str().is_none() {
                    return Err(failure(format!("join has {}", item.type_name())));
                }
            }
            join(&items, text, budget)?
        }
        "format" => braces(text, args, budget)?,
        "find" | "rfind" | "index" | "rindex" => {
            let part = args.text("sub")?;
            let place = if name.starts_with('r') {
                text.rfind(&*part)
            } else {
                text.find(&*part)
            };
            match place {
                Some(place) => text[..place].chars().count().into(),
                None if name.ends_with("find") => Value::Int(-1),
                None => return Err(failure("substring not found")),
            }
        }
        "count" => occurrences(text, &args.text("sub")?).into(),
        "isspace" => all(is_space),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isalpha" => all(char::is_alphabetic),
        "isalnum" => all(char::is_alphanumeric),
        "isupper" => (text.to_uppercase() == text && text.to_lowercase() != text).into(),
        "islower" => (text.to_lowercase() == text && text.to_uppercase() != text).into(),
        _ => return Ok(None),
    }))
}

/// Python takes one affix or a tuple of alternatives.
fn affix(value: &Value, budget: &Budget, holds: impl Fn(&str) -> bool) -> Result<Value> {
    budget.pay(value.weight())?;
    match value {
        Value::Str(affix) => Ok(holds(affix).into()),
        Value::Seq(seq) if seq.is_tuple => {
            let any = seq.items.iter().any(|v| v.as_str().is_some_and(&holds));
            Ok(any.into())
        }
        other => Err(failure(format!("{} is no affix", other.type_name()))),
    }
}

fn occurrences(text: &str, part: &str) -> usize {
    match part {
        "" => text.chars().count() + 1,
        part => text.matches(part).count(),
    }
}

/// `str.replace`; a negative count is no limit.
pub(super) fn replace(
    text: &str,
    from: &str,
    to: &str,
    count: Option<i64>,
    budget: &Budget,
) -> Result<Value> {
    budget.pay_len(text.len(), 2)?;
    let count = count.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
    budget.pay_len(occurrences(text, from).min(count), to.len() as u64)?;
    Ok(text.replacen(from, to, count).into())
}

/// The texts of `items` with `separator` between them.
pub(super) fn join(items: &[Value], separator: &str, budget: &Budget) -> Result<Value> {
    let mut joined = String::new();
    for (i, item) in items.iter().enumerate() {
        let item = item.text(budget)?;
        budget.pay((separator.len() + item.len()) as u64)?;
        if i > 0 {
            joined.push_str(separator);
        }
        joined.push_str(&item);
    }
    Ok(joined.into())
}

pub(super) fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    let first: String = chars
        .next()
        .into_iter()
        .flat_map(char::to_uppercase)
        .collect();
    first + &chars.as_str().to_lowercase()
}

/// `str.title`: a letter after a letter is lower case.
fn title(text: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if after_letter {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        after_letter = c.is_alphabetic();
    }
    out
}

fn list(parts: &[&str], is_tuple: bool, budget: &Budget) -> Result<Value> {
    budget.pay_len(parts.len(), SLOT)?;
    let items = parts.iter().map(|&part| part.into()).collect();
    Value::sequence(items, is_tuple, budget)
}

fn split<'a>(
    text: &'a str,
    separator: Option<&str>,
    limit: Option<usize>,
    from_right: bool,
) -> Result<Vec<&'a str>> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    match (separator, from_right) {
        (Some(""), _) => return Err(failure("empty separator")),
        (Some(separator), false) => {
            parts.extend(text.splitn(limit.saturating_add(1), separator));
        }
        (Some(separator), true) => {
            parts.extend(text.rsplitn(limit.saturating_add(1), separator));
            parts.reverse();
        }
        // Without a separator, runs of white space separate and the ends are stripped.
        (None, false) => {
            rest = rest.trim_start_matches(is_space);
            while !rest.is_empty() {
                match rest.find(is_space).filter(|_| parts.len() < limit) {
                    Some(end) => {
                        parts.push(&rest[..end]);
                        rest = rest[end..].trim_start_matches(is_space);
                    }
                    None => {
                        parts.push(rest);
                        break;
                    }
                }
            }
        }
        (None, true) => {
            rest = rest.trim_end_matches(is_space);
            while !rest.is_empty() {
                match rest.rfind(is_space).filter(|_| parts.len() < limit) {
                    Some(space) => {
                        let start = space + rest[space..].chars().next().map_or(0, char::len_utf8);
                        parts.push(&rest[start..]);
                        rest = rest[..start].trim_end_matches(is_space);
                    }
                    None => {
                        parts.push(rest);
                        break;
                    }
                }
            }
            parts.reverse();
        }
    }
    Ok(parts)
}

/// `str.splitlines`.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(end) = rest.find(is_end) {
        let len = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        parts.push(&rest[..if keep_ends { end + len } else { end }]);
        rest = &rest[end + len..];
    }
    if !rest.is_empty() {
        parts.push(rest);
    }
    parts
}

fn mapping(
    value: &Value,
    name: &str,
    args: &mut Arguments<'_>,
    budget: &Budget,
) -> Result<Option<Value>> {
    let Value::Map(map) = value else {
        return Ok(None);
    };
    Ok(Some(match name {
        "get" => {
            let key = args.need("key")?;
            let default = args.take("default").unwrap_or(Value::None);
            map.get(&key, budget)?.cloned().unwrap_or(default)
        }
        "keys" => Value::list(value.iterate(budget)?, budget)?,
        "values" => {
            budget.pay_len(map.entries.len(), SLOT)?;
            let values = map.entries.iter().map(|(_, v)| v.clone()).collect();
            Value::list(values, budget)?
        }
        "items" => items(value, budget)?,
        _ => return Ok(None),
    }))
}

/// The entries of a mapping as pairs.
pub(super) fn items(value: &Value, budget: &Budget) -> Result<Value> {
    match value {
        Value::Map(map) => {
            let pairs: Result<Vec<Value>> = map
                .entries
                .iter()
                .map(|(k, v)| Value::sequence(vec![k.clone(), v.clone()], true, budget))
                .collect();
            Value::list(pairs?, budget)
        }
        Value::Undefined => Value::list(Vec::new(), budget),
        other => Err(failure(format!("{} has no items", other.type_name()))),
    }
}

fn sequence(
    value: &Value,
    name: &str,
    args: &mut Arguments<'_>,
    budget: &Budget,
) -> Result<Option<Value>> {
    let Value::Seq(seq) = value else {
        return Ok(None);
    };
    if !matches!(name, "index" | "count") {
        return Ok(None);
    }
    let wanted = args.need("value")?;
    let mut places = Vec::new();
    for (i, item) in seq.items.iter().enumerate() {
        if item.equals(&wanted, budget)? {
            places.push(i);
        }
    }
    match (name, places.first()) {
        ("count", _) => Ok(Some(places.len().into())),
        (_, Some(&place)) => Ok(Some(place.into())),
        (_, None) => Err(failure("the item is not in the list")),
    }
}
