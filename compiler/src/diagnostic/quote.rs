//! User text inside messages: harmless for a terminal, and short.

const QUOTED_CHARS_MAX: usize = 80;

/// Control characters, terminal escapes and invisible direction marks, which could rewrite what the terminal shows.
fn is_hostile(c: char) -> bool {
    (c.is_control() && c != '\n' && c != '\t')
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}')
}

/// The text with hostile characters written as `\u{1b}`. Newlines and tabs stay.
pub fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The text with each hostile character replaced by another of equal UTF-8 length, so that spans keep their offsets.
pub(super) fn clean_in_place(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            c if !is_hostile(c) => c,
            c if c.len_utf8() == 1 => '?',
            c if c.len_utf8() == 2 => '¿',
            _ => char::REPLACEMENT_CHARACTER,
        })
        .collect()
}

/// User text for a message: cleaned, on one line, at most 80 characters, between backticks.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("`");
    for (n, c) in text.chars().enumerate() {
        if n == QUOTED_CHARS_MAX {
            out.push('…');
            break;
        }
        match c {
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if is_hostile(c) => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out.push('`');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_escapes_become_text() {
        assert_eq!(
            quoted("\x1b[2J\u{9b}31mred\r\n"),
            "`\\u{1b}[2J\\u{9b}31mred\\u{d}\\n`"
        );
        assert_eq!(clean("a\tb\n\u{202e}"), "a\tb\n\\u{202e}");
        for c in ['\x1b', '\u{9b}', '\u{202e}', '\u{feff}'] {
            let text = format!("a{c}b");
            let cleaned = clean_in_place(&text);
            assert_eq!(cleaned.len(), text.len());
            assert!(!cleaned.contains(c));
        }
    }

    #[test]
    fn long_text_is_cut() {
        let cut = quoted(&"é".repeat(1000));
        assert_eq!(cut.chars().count(), QUOTED_CHARS_MAX + 3);
    }
}
