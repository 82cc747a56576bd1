//! Python's methods and filters on Jinja's values, as chat templates use them.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use omex_plan::prompt::is_space;

use super::jinja::invalid;

/// The methods of strings, mappings and lists that minijinja does not have.
pub(super) fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            // The engine charges for what a method returns, but not for what it reads.
            state.consume_fuel(text.len() as u64 / 64)?;
            string(state, text, name, args)
        }
        ValueKind::Map => mapping(state, value, name, args),
        ValueKind::Seq => sequence(value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// `str.strip` and Jinja's `trim` filter.
pub(super) fn trim(value: &str, chars: Option<&str>) -> String {
    strip(value, chars, true, true).to_owned()
}

fn strip<'a>(text: &'a str, chars: Option<&str>, left: bool, right: bool) -> &'a str {
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

fn string(state: &State<'_, '_>, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let starts_or_ends = |value: &Value, holds: &dyn Fn(&str) -> bool| -> Result<bool, Error> {
        match value.as_str() {
            Some(affix) => Ok(holds(affix)),
            // Python takes a tuple of alternatives.
            None => Ok(value.try_iter()?.any(|v| v.as_str().is_some_and(holds))),
        }
    };
    Ok(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            strip(text, chars, name != "rstrip", name != "lstrip").into()
        }
        "upper" => no_args(args, text.to_uppercase())?,
        "lower" => no_args(args, text.to_lowercase())?,
        "title" => no_args(args, title(text))?,
        "capitalize" => {
            let mut chars = text.chars();
            let first: String = chars
                .next()
                .into_iter()
                .flat_map(char::to_uppercase)
                .collect();
            no_args(args, first + &chars.as_str().to_lowercase())?
        }
        "startswith" => {
            let (prefix,): (&Value,) = from_args(args)?;
            starts_or_ends(prefix, &|p| text.starts_with(p))?.into()
        }
        "endswith" => {
            let (suffix,): (&Value,) = from_args(args)?;
            starts_or_ends(suffix, &|s| text.ends_with(s))?.into()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            text.strip_prefix(prefix).unwrap_or(text).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            text.strip_suffix(suffix).unwrap_or(text).into()
        }
        "replace" => {
            let (from, to, count): (&str, &str, Option<i64>) = from_args(args)?;
            match count.map(usize::try_from) {
                Some(Ok(count)) => replace(state, text, from, to, count)?,
                None | Some(Err(_)) => replace(state, text, from, to, usize::MAX)?,
            }
        }
        "split" | "rsplit" => {
            let (separator, limit, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
            let separator = separator.or(kwargs.get("sep")?);
            let limit = limit
                .or(kwargs.get("maxsplit")?)
                .and_then(|n| usize::try_from(n).ok());
            kwargs.assert_all_used()?;
            split(text, separator, limit, name == "rsplit")?
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            lines(text, keep == Some(true))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let found = if name == "partition" {
                text.split_once(separator)
            } else {
                text.rsplit_once(separator)
            };
            list(&match (found, name) {
                (Some((left, right)), _) => [left, separator, right],
                (None, "partition") => [text, "", ""],
                (None, _) => ["", "", text],
            })
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut joined = String::new();
            for (i, item) in items.try_iter()?.enumerate() {
                let item = item.to_string();
                state.consume_fuel(1 + (text.len() + item.len()) as u64 / 64)?;
                if i > 0 {
                    joined.push_str(text);
                }
                joined.push_str(&item);
            }
            joined.into()
        }
        "find" | "rfind" | "index" | "rindex" => {
            let (part,): (&str,) = from_args(args)?;
            let place = if name.starts_with('r') {
                text.rfind(part)
            } else {
                text.find(part)
            };
            match place {
                Some(place) => (text[..place].chars().count() as i64).into(),
                None if name.ends_with("find") => (-1).into(),
                None => return Err(invalid("substring not found")),
            }
        }
        "count" => {
            let (part,): (&str,) = from_args(args)?;
            match part {
                "" => text.chars().count() + 1,
                part => text.matches(part).count(),
            }
            .into()
        }
        "isspace" => no_args(args, !text.is_empty() && text.chars().all(is_space))?,
        "isdigit" | "isdecimal" | "isnumeric" => {
            no_args(args, !text.is_empty() && text.chars().all(char::is_numeric))?
        }
        "isalpha" => no_args(
            args,
            !text.is_empty() && text.chars().all(char::is_alphabetic),
        )?,
        "isalnum" => no_args(
            args,
            !text.is_empty() && text.chars().all(char::is_alphanumeric),
        )?,
        "isupper" => no_args(
            args,
            text.to_uppercase() == text && text.to_lowercase() != text,
        )?,
        "islower" => no_args(
            args,
            text.to_lowercase() == text && text.to_uppercase() != text,
        )?,
        _ => return Err(Error::from(ErrorKind::UnknownMethod)),
    })
}

fn no_args(args: &[Value], result: impl Into<Value>) -> Result<Value, Error> {
    from_args::<()>(args).map(|()| result.into())
}

/// `str.replace`, paid for before it is made.
fn replace(
    state: &State<'_, '_>,
    text: &str,
    from: &str,
    to: &str,
    count: usize,
) -> Result<Value, Error> {
    let matches = match from {
        "" => text.chars().count() + 1,
        from => text.matches(from).count(),
    };
    state.consume_fuel(matches.min(count).saturating_mul(to.len()) as u64 / 64)?;
    Ok(text.replacen(from, to, count).into())
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

fn split(
    text: &str,
    separator: Option<&str>,
    limit: Option<usize>,
    from_right: bool,
) -> Result<Value, Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    match (separator, from_right) {
        (Some(""), _) => return Err(invalid("empty separator")),
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
                        parts.push(if parts.len() < limit {
                            rest.trim_end_matches(is_space)
                        } else {
                            rest
                        });
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
    Ok(list(&parts))
}

fn list(parts: &[&str]) -> Value {
    parts.iter().map(|&part| Value::from(part)).collect()
}

/// `str.splitlines`.
fn lines(text: &str, keep_ends: bool) -> Value {
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
    list(&parts)
}

fn mapping(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match name {
        "get" => {
            let (key, default): (&Value, Option<Value>) = from_args(args)?;
            let found = value.get_item(key)?;
            Ok(if found.is_undefined() {
                default.unwrap_or(Value::from(()))
            } else {
                found
            })
        }
        "keys" => no_args(args, value.try_iter()?.collect::<Vec<_>>()),
        "values" => {
            let values: Result<Vec<Value>, Error> =
                value.try_iter()?.map(|key| value.get_item(&key)).collect();
            no_args(args, values?)
        }
        "items" => {
            from_args::<()>(args)?;
            state.apply_filter("items", std::slice::from_ref(value))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn sequence(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "index" => {
            let (item,): (&Value,) = from_args(args)?;
            match value.try_iter()?.position(|v| v == *item) {
                Some(place) => Ok(place.into()),
                None => Err(invalid("the item is not in the list")),
            }
        }
        "count" => {
            let (item,): (&Value,) = from_args(args)?;
            Ok(value.try_iter()?.filter(|v| v == item).count().into())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// `json.dumps(value, ensure_ascii=False, ...)`, as `transformers` defines the filter.
pub(super) fn to_json(value: &Value, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let separators: Option<Vec<String>> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    let ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators are a pair")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Json {
        indent,
        item,
        key,
        sort_keys: sort_keys == Some(true),
        ascii: ascii == Some(true),
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

struct Json {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
}

impl Json {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 64 || out.len() > 1 << 24 {
            return Err(Error::from(ErrorKind::OutOfFuel));
        }
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => out.push_str(&value.to_string()),
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.list(['[', ']'], &items, depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut entries: Vec<(String, Value)> = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key.to_string(), value.get_item(&key)?));
                }
                if self.sort_keys {
                    let sorted: BTreeMap<String, Value> = entries.into_iter().collect();
                    entries = sorted.into_iter().collect();
                }
                self.list(['{', '}'], &entries, depth, out, |(key, value), out| {
                    self.string(key, out);
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out)
                })?;
            }
            ValueKind::Undefined | ValueKind::Bytes | ValueKind::Plain | ValueKind::Invalid | _ => {
                return Err(invalid(format!(
                    "{} is not JSON serializable",
                    value.kind()
                )));
            }
        }
        Ok(())
    }

    fn list<T>(
        &self,
        [open, close]: [char; 2],
        items: &[T],
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(&T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent.min(64) * depth));
            }
        };
        out.push(open);
        for (i, item) in items.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            line(depth + 1, out);
            write(item, out)?;
        }
        if !items.is_empty() {
            line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if c < ' ' || (self.ascii && !c.is_ascii()) => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}
