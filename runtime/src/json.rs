//! Just enough JSON to report: values are appended to a string.

use std::fmt::{Display, Write};

/// One JSON object, written field by field.
#[derive(Debug)]
pub struct Object {
    text: String,
}

impl Default for Object {
    fn default() -> Object {
        Object::new()
    }
}

impl Object {
    pub fn new() -> Object {
        Object::reusing(String::new())
    }

    /// Writes to a string that earlier objects were written to.
    pub fn reusing(mut text: String) -> Object {
        text.clear();
        text.push('{');
        Object { text }
    }

    fn key(&mut self, key: &str) {
        if self.text.len() > 1 {
            self.text.push(',');
        }
        push_string(&mut self.text, key);
        self.text.push(':');
    }

    pub fn string(mut self, key: &str, value: &str) -> Object {
        self.key(key);
        push_string(&mut self.text, value);
        self
    }

    /// Numbers that cannot be written (NaN, infinities) become null.
    pub fn float(mut self, key: &str, value: f64) -> Object {
        self.key(key);
        if value.is_finite() {
            push(&mut self.text, value);
        } else {
            self.text.push_str("null");
        }
        self
    }

    /// A value that is JSON already.
    pub fn raw(mut self, key: &str, json: &str) -> Object {
        self.key(key);
        self.text.push_str(json);
        self
    }

    pub fn integer(mut self, key: &str, value: u64) -> Object {
        self.key(key);
        push(&mut self.text, value);
        self
    }

    /// The object's text on one line.
    pub fn finish(mut self) -> String {
        self.text.push('}');
        self.text
    }
}

fn push(text: &mut String, value: impl Display) {
    write!(text, "{value}").expect("writing to a string succeeds");
}

/// Appends `value` as a JSON string (RFC 8259, section 7).
fn push_string(text: &mut String, value: &str) {
    text.push('"');
    write_escaped(text, value).expect("writing to a string succeeds");
    text.push('"');
}

/// Writes what stands between the quotes of a JSON string.
pub(crate) fn write_escaped(out: &mut impl Write, value: &str) -> std::fmt::Result {
    value.chars().try_for_each(|c| match c {
        '"' => out.write_str("\\\""),
        '\\' => out.write_str("\\\\"),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        // DEL and C1 controls are legal in JSON but move terminals.
        c if c.is_control() => write!(out, "\\u{:04x}", c as u32),
        c => out.write_char(c),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_every_kind_of_value() {
        let text = Object::new()
            .string("a\"", "é\u{1}\u{9b}\n\\")
            .float("b", 1.5)
            .float("c", f64::NAN)
            .integer("d", u64::MAX)
            .finish();
        assert_eq!(
            text,
            "{\"a\\\"\":\"é\\u0001\\u009b\\n\\\\\",\"b\":1.5,\"c\":null,\
             \"d\":18446744073709551615}"
        );
        assert_eq!(Object::new().finish(), "{}");
    }
}
