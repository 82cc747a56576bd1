//! String literals of a template, whose escapes are Python's.

/// A literal, quotes included, that minijinja reads as Python reads `literal`: escapes
/// that mean characters are these characters, the others stay two characters. See
/// "String and Bytes literals" in Python's reference. `None` for escapes that are none,
/// and for names of characters (`\N{...}`).
pub(super) fn with_plain_escapes(literal: &str) -> Option<String> {
    let quote = literal.chars().next()?;
    let mut out = String::from(quote);
    let mut rest = literal.strip_prefix(quote)?.strip_suffix(quote)?;
    let push = |c: char, out: &mut String| {
        if c == '\\' || c == quote {
            out.push('\\');
        }
        out.push(c);
    };
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let mut after = rest[at + 1..].chars();
        let escape = after.next()?;
        let mut code = |digits: usize| hexadecimal(&mut after, digits);
        let character = match escape {
            '\n' => None,
            '\\' | '\'' | '"' => Some(escape),
            'a' => Some('\u{7}'),
            'b' => Some('\u{8}'),
            'f' => Some('\u{c}'),
            'n' => Some('\n'),
            'r' => Some('\r'),
            't' => Some('\t'),
            'v' => Some('\u{b}'),
            'x' => Some(char::from_u32(code(2)?)?),
            'u' => {
                let first = code(4)?;
                let pair = |high: u32, low: u32| 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00);
                if (0xd800..0xdc00).contains(&first) {
                    // Halves of one character.
                    let mut low = after.as_str().strip_prefix("\\u")?.chars();
                    let second =
                        hexadecimal(&mut low, 4).filter(|c| (0xdc00..0xe000).contains(c))?;
                    after = low;
                    Some(char::from_u32(pair(first, second))?)
                } else {
                    Some(char::from_u32(first)?)
                }
            }
            'U' => Some(char::from_u32(code(8)?)?),
            '0'..='7' => {
                let digits = rest[at + 1..].chars().take(3);
                let digits: String = digits.take_while(|c| c.is_digit(8)).collect();
                after = rest[at + 1 + digits.len()..].chars();
                Some(char::from_u32(u32::from_str_radix(&digits, 8).ok()?)?)
            }
            'N' => return None,
            // Jinja escapes these itself before it reads escapes.
            other if !other.is_ascii() => {
                let code = u32::from(other);
                let escaped = match code {
                    ..0x100 => format!("x{code:02x}"),
                    0x100..0x10000 => format!("u{code:04x}"),
                    0x10000.. => format!("U{code:08x}"),
                };
                push('\\', &mut out);
                out.push_str(&escaped);
                None
            }
            other => {
                push('\\', &mut out);
                Some(other)
            }
        };
        if let Some(character) = character {
            push(character, &mut out);
        }
        rest = after.as_str();
    }
    out.push_str(rest);
    out.push(quote);
    Some(out)
}

/// The number of exactly so many digits.
fn hexadecimal(text: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    let number = text.as_str().get(..digits)?;
    *text = text.as_str()[digits..].chars();
    let all = number.bytes().all(|byte| byte.is_ascii_hexdigit());
    all.then(|| u32::from_str_radix(number, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::with_plain_escapes;

    #[test]
    fn escapes_are_pythons() {
        for (literal, plain) in [
            (r#""a\tb""#, "\"a\tb\""),
            (r"'\U0001F600\u00e9\xe9\101'", "'😀éé\u{41}'"),
            (r"'\ud83d\ude00'", "'😀'"),
            (r"'\'\\\/\d'", r"'\'\\\\/\\d'"),
            (r#"'\"'"#, "'\"'"),
            ("'a\\\nb'", "'ab'"),
            (r"'\0\0123'", "'\0\n3'"),
            (r"'\é\漢\😀'", r"'\\xe9\\u6f22\\U0001f600'"),
        ] {
            assert_eq!(
                with_plain_escapes(literal).as_deref(),
                Some(plain),
                "{literal}"
            );
        }
        for wrong in [
            r"'\x4'",
            r"'\u12'",
            r"'\U00110000'",
            r"'\ud83d'",
            r"'\N{DIGIT ONE}'",
        ] {
            assert_eq!(with_plain_escapes(wrong), None, "{wrong}");
        }
    }
}
