//! `json.dumps(value, ensure_ascii=False, ...)`, as `transformers` defines the filter.

use super::arguments::Arguments;
use super::value::{Budget, Result, SLOT, Value, failure, float};

/// Widest indentation, and longest separators: anything wider only makes text.
const INDENT_MAX: i64 = 64;

pub(super) fn to_json(value: &Value, mut args: Arguments<'_>, budget: &Budget) -> Result<Value> {
    // In the order of transformers' own filter, not of Jinja's.
    let ascii = args.take("ensure_ascii").is_some_and(|v| v.is_true());
    let indent = match args.take("indent") {
        None | Some(Value::None) => None,
        Some(indent) => match indent.as_int() {
            Some(n) if n <= INDENT_MAX => Some(n.max(0) as usize),
            _ => return Err(failure("tojson indents by a small number")),
        },
    };
    let separators = args.take("separators");
    let sort_keys = args.take("sort_keys").is_some_and(|v| v.is_true());
    args.end("tojson")?;
    let (item, key) = match separators {
        None | Some(Value::None) if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None | Some(Value::None) => (", ".to_owned(), ": ".to_owned()),
        Some(Value::Seq(pair)) => match &pair.items[..] {
            [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
            _ => return Err(failure("separators are a pair of strings")),
        },
        Some(_) => return Err(failure("separators are a pair of strings")),
    };
    // Escapes make at most six characters of one; each place has its indentation.
    budget.pay(value.weight().saturating_mul(8))?;
    let style = Json {
        indent,
        item,
        key,
        sort_keys,
        ascii,
        budget,
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out.into())
}

struct Json<'a> {
    indent: Option<usize>,
    item: String,
    key: String,
    sort_keys: bool,
    ascii: bool,
    budget: &'a Budget,
}

impl Json<'_> {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => out.push_str(&n.to_string()),
            Value::Float(x) => out.push_str(&float(*x)),
            Value::Str(text) => self.string(text, out),
            Value::Seq(seq) => self.list(['[', ']'], &seq.items, depth, out, |item, out| {
                self.write(item, depth + 1, out)
            })?,
            Value::Map(map) => {
                let mut entries: Vec<&(Value, Value)> = map.entries.iter().collect();
                if self.sort_keys {
                    self.budget.pay_len(entries.len(), 16 * SLOT)?;
                    entries.sort_by(|(a, _), (b, _)| a.as_str().cmp(&b.as_str()));
                }
                self.list(['{', '}'], &entries, depth, out, |(key, value), out| {
                    match key {
                        Value::Str(text) => self.string(text, out),
                        key => {
                            let mut text = String::new();
                            self.write(key, depth + 1, &mut text)?;
                            self.string(&text, out);
                        }
                    }
                    out.push_str(&self.key);
                    self.write(value, depth + 1, out)
                })?;
            }
            Value::Undefined
            | Value::Loop(..)
            | Value::Namespace(_)
            | Value::Macro(_)
            | Value::Function(_) => {
                return Err(failure(format!(
                    "{} is not JSON serializable",
                    value.type_name()
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
        mut write: impl FnMut(&T, &mut String) -> Result<()>,
    ) -> Result<()> {
        let line = |depth: usize, out: &mut String| {
            if let Some(indent) = self.indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * depth));
            }
        };
        let margin = self.item.len() + self.key.len() + self.indent.unwrap_or(0) * (depth + 2);
        self.budget.pay_len(items.len() + 1, margin as u64)?;
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
