//! Python's `str.format`.

use super::arguments::Arguments;
use super::format::number;
use super::value::{Budget, Result, Value, failure};

/// `format.format(*args)`: fields `{}`, `{0}` and `{name}`, each with a conversion (`!s`,
/// `!r`) and a specification, see Python's "Format Specification Mini-Language". Fields
/// within fields, attributes and items of values, and the types e, g, n and c are refused.
pub(super) fn braces(format: &str, args: &mut Arguments<'_>, budget: &Budget) -> Result<Value> {
    budget.pay(format.len() as u64)?;
    let (positional, named) = (args.positional(), args.rest());
    let mut numbered = 0;
    let mut named_by_number = false;
    let mut out = String::new();
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        let brace = &rest[at..=at];
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            out.push_str(brace);
            rest = after;
            continue;
        }
        let (field, after) = match rest.split_once('}') {
            Some(parts) if brace == "{" => parts,
            _ => return Err(failure("a brace of the format stands alone")),
        };
        rest = after;
        let (target, spec) = field.split_once(':').unwrap_or((field, ""));
        let (name, conversion) = match target.split_once('!') {
            Some((name, conversion)) => (name, Some(conversion)),
            None => (target, None),
        };
        if field.contains(['{', '[']) || name.contains('.') {
            return Err(failure(format!(
                "the format's field `{field}` is not supported"
            )));
        }
        let value = if name.is_empty() {
            numbered += 1;
            positional.get(numbered - 1)
        } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
            named_by_number = true;
            name.parse()
                .ok()
                .and_then(|index: usize| positional.get(index))
        } else {
            let known = named.iter().find(|(known, _)| *known == name);
            known.map(|(_, value)| value)
        };
        if numbered > 0 && named_by_number {
            return Err(failure("only some fields of the format have numbers"));
        }
        let value = value.ok_or_else(|| failure("a field of the format has no value"))?;
        let value = match conversion {
            None => value.clone(),
            Some("s") => value.text(budget)?.as_ref().into(),
            Some("r") if matches!(value, Value::Undefined) => "Undefined".into(),
            Some("r") => value.repr(budget)?.into(),
            Some(other) => {
                return Err(failure(format!("the conversion !{other} is not supported")));
            }
        };
        let text = match spec {
            "" => value.text(budget)?.to_string(),
            spec => Spec::parse(spec)?.apply(&value, budget)?,
        };
        out.push_str(&text);
    }
    out.push_str(rest);
    Ok(out.into())
}

/// `[[fill]align][sign][0][width][grouping][.precision][type]`.
#[derive(Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    /// Zeros stand before digits, and behind text.
    zeros: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

impl Spec {
    fn parse(text: &str) -> Result<Spec> {
        let mut spec = Spec::default();
        let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
        let mut rest = text;
        let take = |wanted: &dyn Fn(char) -> bool, rest: &mut &str| {
            let first = rest.chars().next().filter(|&c| wanted(c))?;
            *rest = &rest[first.len_utf8()..];
            Some(first)
        };
        let mut start = text.chars();
        if let (Some(fill), Some(align)) = (start.next(), start.next().filter(|&c| is_align(c))) {
            (spec.fill, spec.align) = (Some(fill), Some(align));
            rest = start.as_str();
        } else {
            spec.align = take(&is_align, &mut rest);
        }
        spec.sign = take(&|c| matches!(c, '+' | '-' | ' '), &mut rest);
        if take(&|c| c == '0', &mut rest).is_some() {
            spec.zeros = true;
        }
        (spec.width, rest) = number(rest)?;
        spec.grouping = take(&|c| matches!(c, ',' | '_'), &mut rest);
        if let Some(after) = rest.strip_prefix('.') {
            let (precision, behind) = number(after)?;
            if behind.len() == after.len() {
                return Err(failure("a format has no precision behind its point"));
            }
            (spec.precision, rest) = (Some(precision), behind);
        }
        spec.kind = take(&|c| "sdfFxXob%".contains(c), &mut rest);
        if rest.is_empty() {
            Ok(spec)
        } else {
            Err(failure(format!("the format `{text}` is not supported")))
        }
    }

    fn apply(&self, value: &Value, budget: &Budget) -> Result<String> {
        budget.pay(self.width as u64 + 64)?;
        let wrong = || {
            let kind = self.kind.map(String::from).unwrap_or_default();
            failure(format!("{} has no format `{kind}`", value.type_name()))
        };
        let (negative, digits) = match (value, self.kind) {
            (Value::Str(text), None | Some('s')) => {
                let is_of_numbers =
                    self.sign.is_some() || self.grouping.is_some() || self.align == Some('=');
                if is_of_numbers {
                    return Err(wrong());
                }
                let kept = text.chars().take(self.precision.unwrap_or(usize::MAX));
                return self.padded("", &kept.collect::<String>(), '<', budget);
            }
            (Value::Float(x), None) if self.precision.is_none() => {
                (x.is_sign_negative(), super::value::float(x.abs()))
            }
            (_, Some('f' | 'F' | '%')) => {
                let x = value.as_float().filter(|x| x.is_finite());
                let x = x.ok_or_else(wrong)?;
                let places = self.precision.unwrap_or(6);
                let percent = self.kind == Some('%');
                let scaled = if percent { x * 100.0 } else { x };
                let text = format!("{:.places$}", scaled.abs());
                let text = if percent { text + "%" } else { text };
                (x.is_sign_negative(), text)
            }
            (Value::Int(_) | Value::Bool(_), _) if self.precision.is_none() => {
                let n = value.as_int().ok_or_else(wrong)?;
                let size = n.unsigned_abs();
                let digits = match self.kind {
                    None | Some('d') => size.to_string(),
                    Some('x') => format!("{size:x}"),
                    Some('X') => format!("{size:X}"),
                    Some('o') => format!("{size:o}"),
                    Some('b') => format!("{size:b}"),
                    Some(_) => return Err(wrong()),
                };
                (n < 0, digits)
            }
            _ => return Err(wrong()),
        };
        let sign = match (negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            (false, _) => "",
        };
        let align = if self.zeros { '=' } else { '>' };
        self.padded(sign, &self.grouped(&digits)?, align, budget)
    }

    /// Digits before the point in groups: of three in decimal, of four in others.
    fn grouped(&self, digits: &str) -> Result<String> {
        let Some(separator) = self.grouping else {
            return Ok(digits.to_owned());
        };
        let is_decimal = !matches!(self.kind, Some('x' | 'X' | 'o' | 'b'));
        if separator == ',' && !is_decimal {
            return Err(failure(
                "a format has commas between digits that are not decimal",
            ));
        }
        let size = if is_decimal { 3 } else { 4 };
        let is_digit = |c: char| c.is_digit(if is_decimal { 10 } else { 16 });
        let whole = digits.find(|c: char| !is_digit(c));
        let (whole, rest) = digits.split_at(whole.unwrap_or(digits.len()));
        let mut out = String::new();
        for (i, digit) in whole.chars().enumerate() {
            if i > 0 && (whole.len() - i).is_multiple_of(size) {
                out.push(separator);
            }
            out.push(digit);
        }
        Ok(out + rest)
    }

    fn padded(&self, sign: &str, text: &str, align: char, budget: &Budget) -> Result<String> {
        let missing = (self.width).saturating_sub(sign.len() + text.chars().count());
        budget.pay((text.len() + 4 * missing) as u64)?;
        let zero = if self.zeros { '0' } else { ' ' };
        let filling = self.fill.unwrap_or(zero);
        let fill = |count| String::from(filling).repeat(count);
        let align = self.align.unwrap_or(align);
        if (filling, align) == ('0', '=') && self.grouping.is_some() && missing > 0 {
            return Err(failure("a format has zeros before grouped digits"));
        }
        Ok(match align {
            '<' => format!("{sign}{text}{}", fill(missing)),
            '^' => {
                let left = missing / 2;
                format!("{}{sign}{text}{}", fill(left), fill(missing - left))
            }
            '=' => format!("{sign}{}{text}", fill(missing)),
            _ => format!("{}{sign}{text}", fill(missing)),
        })
    }
}
