//! Python's `%` operator on strings.

use super::value::{Budget, Result, Value, failure};

/// Widest field; Python knows no limit.
const WIDTH_MAX: usize = 4096;

/// `format % values`, where `values` is one value, a tuple of them, or a mapping.
pub(super) fn percent(format: &str, values: &Value, budget: &Budget) -> Result<Value> {
    budget.pay(format.len() as u64)?;
    let single = std::slice::from_ref(values);
    let positional = match values {
        Value::Seq(seq) if seq.is_tuple => &seq.items,
        _ => single,
    };
    let mut positional = positional.iter();
    let mut by_name = false;
    let mut out = String::new();
    let mut rest = format;
    while let Some(start) = rest.find('%') {
        out.push_str(&rest[..start]);
        rest = &rest[start + 1..];
        let mut value = None;
        if let Some(named) = rest.strip_prefix('(') {
            let (key, after) = named
                .split_once(')')
                .ok_or_else(|| failure("a format's name has no end"))?;
            let Value::Map(map) = values else {
                return Err(failure("the format wants a mapping"));
            };
            value = map.get(&key.into(), budget)?;
            if value.is_none() {
                return Err(failure("a name of the format has no value"));
            }
            by_name = true;
            rest = after;
        }
        let flags_len = rest
            .find(|c| !matches!(c, '-' | '0' | '+' | ' ' | '#'))
            .unwrap_or(rest.len());
        let (flags, after) = rest.split_at(flags_len);
        let (width, after) = number(after)?;
        let (precision, after) = match after.strip_prefix('.') {
            Some(after) => {
                let (precision, after) = number(after)?;
                (Some(precision), after)
            }
            None => (None, after),
        };
        let conversion = after
            .chars()
            .next()
            .ok_or_else(|| failure("the format ends within a field"))?;
        rest = &after[conversion.len_utf8()..];
        if conversion == '%' {
            out.push('%');
            continue;
        }
        let value = match value.or_else(|| positional.next()) {
            Some(value) => value,
            None => return Err(failure("the format has more fields than values")),
        };
        budget.pay(width as u64 + 64)?;
        let number = || {
            value
                .as_float()
                .ok_or_else(|| failure(format!("{} is no number", value.type_name())))
        };
        let signed = |text: String, negative: bool| match (negative, flags) {
            (false, flags) if flags.contains('+') => format!("+{text}"),
            (false, flags) if flags.contains(' ') => format!(" {text}"),
            _ => text,
        };
        let (text, numeric) = match conversion {
            's' | 'r' => {
                let text = match conversion {
                    's' => value.text(budget)?.to_string(),
                    _ => value.repr(budget)?,
                };
                let kept = match precision {
                    Some(precision) => text.chars().take(precision).collect(),
                    None => text,
                };
                (kept, false)
            }
            'd' | 'i' | 'u' => {
                let n = number()?;
                let text = match value.as_int() {
                    Some(n) => n.to_string(),
                    None => format!("{:.0}", n.trunc()),
                };
                (signed(text, n < 0.0), true)
            }
            'f' | 'F' => {
                let n = number()?;
                let text = format!("{n:.*}", precision.unwrap_or(6));
                (signed(text, n < 0.0), true)
            }
            'x' | 'X' | 'o' => {
                let n = value
                    .as_int()
                    .ok_or_else(|| failure(format!("{} is no integer", value.type_name())))?;
                let digits = match conversion {
                    'x' => format!("{:x}", n.unsigned_abs()),
                    'X' => format!("{:X}", n.unsigned_abs()),
                    _ => format!("{:o}", n.unsigned_abs()),
                };
                let sign = if n < 0 { "-" } else { "" };
                (signed(format!("{sign}{digits}"), n < 0), true)
            }
            other => return Err(failure(format!("the format %{other} is not supported"))),
        };
        let missing = width.saturating_sub(text.chars().count());
        budget.pay((text.len() + missing) as u64)?;
        if flags.contains('-') {
            out.push_str(&text);
            out.extend(std::iter::repeat_n(' ', missing));
        } else if numeric && flags.contains('0') {
            let sign_len = text.len() - text.trim_start_matches(['+', '-', ' ']).len();
            out.push_str(&text[..sign_len]);
            out.extend(std::iter::repeat_n('0', missing));
            out.push_str(&text[sign_len..]);
        } else {
            out.extend(std::iter::repeat_n(' ', missing));
            out.push_str(&text);
        }
    }
    out.push_str(rest);
    if !by_name && !matches!(values, Value::Map(_)) && positional.next().is_some() {
        return Err(failure("the format has fewer fields than values"));
    }
    Ok(out.into())
}

/// Leading decimal digits; none are 0.
pub(super) fn number(text: &str) -> Result<(usize, &str)> {
    let len = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let value = match &text[..len] {
        "" => 0,
        digits => digits.parse().unwrap_or(usize::MAX),
    };
    if value > WIDTH_MAX {
        return Err(failure(format!("a format is wider than {WIDTH_MAX}")));
    }
    Ok((value, &text[len..]))
}
