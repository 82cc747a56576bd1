//! Text from tokens, one token at a time: incomplete UTF-8 waits for its other bytes.

/// Holds back the bytes of a character until all of them are there.
///
/// At most three bytes wait at any time; bytes that can no longer become a character
/// are given out as they are, so the output's bytes are exactly the input's.
#[derive(Clone, Debug, Default)]
pub struct Utf8Hold {
    held: [u8; 3],
    held_len: usize,
}

impl Utf8Hold {
    /// Takes the next bytes and gives everything that is complete to `sink`, in order.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut impl FnMut(&[u8])) {
        while self.held_len > 0 {
            let Some((&first, rest)) = bytes.split_first() else {
                return;
            };
            let mut character = [0; 4];
            character[..self.held_len].copy_from_slice(&self.held[..self.held_len]);
            character[self.held_len] = first;
            let candidate = &character[..=self.held_len];
            match std::str::from_utf8(candidate) {
                Ok(_) => {
                    sink(candidate);
                    self.held_len = 0;
                    bytes = rest;
                }
                Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => {
                    self.held[self.held_len] = first;
                    self.held_len += 1;
                    bytes = rest;
                }
                Err(_) => self.finish(sink),
            }
        }
        let split = bytes.len() - incomplete_suffix_len(bytes);
        let (complete, held) = bytes.split_at(split);
        if !complete.is_empty() {
            sink(complete);
        }
        self.held[..held.len()].copy_from_slice(held);
        self.held_len = held.len();
    }

    /// Gives out what still waits: the text ends here.
    pub fn finish(&mut self, sink: &mut impl FnMut(&[u8])) {
        if self.held_len > 0 {
            sink(&self.held[..self.held_len]);
            self.held_len = 0;
        }
    }
}

/// Length of the start of a character, at most three bytes, at the end of `bytes`.
fn incomplete_suffix_len(bytes: &[u8]) -> usize {
    (1..=bytes.len().min(3))
        .find(|&len| {
            let tail = &bytes[bytes.len() - len..];
            matches!(std::str::from_utf8(tail), Err(e) if e.valid_up_to() == 0 && e.error_len().is_none())
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pushes `bytes` in pieces of every size and collects what comes out.
    fn check(bytes: &[u8]) {
        for size in 1..=bytes.len().max(1) {
            let (mut hold, mut out, mut parts) = (Utf8Hold::default(), Vec::new(), Vec::new());
            let mut sink = |part: &[u8]| {
                out.extend_from_slice(part);
                parts.push(part.to_vec());
            };
            for piece in bytes.chunks(size) {
                hold.push(piece, &mut sink);
            }
            hold.finish(&mut sink);
            assert_eq!(out, bytes, "pieces of {size}");
            if std::str::from_utf8(bytes).is_ok() {
                for part in parts {
                    assert!(std::str::from_utf8(&part).is_ok(), "split at {part:?}");
                }
            }
        }
    }

    #[test]
    fn gives_out_whole_characters_and_every_byte() {
        check("".as_bytes());
        check("a é 漢 😀 👩‍👩‍👧 end".as_bytes());
        check(b"\xff\xe6\xbc\xff\xf0\x9f\x98a\xf0\x9f\x98\x80\xc3");
        check(b"\xed\xa0\x80\xc0\x80\xf4\x90\x80\x80\xe6\xbc");
    }
}
