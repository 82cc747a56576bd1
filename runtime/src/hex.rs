//! Bytes as lower-case hexadecimal text.

/// Two digits per byte.
pub fn encode(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n as u32, 16).unwrap_or('?');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// The bytes of exactly `N` pairs of digits in either case.
pub fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |c: u8| (c as char).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn decodes_what_it_encodes_and_nothing_else() {
        assert_eq!(super::encode(&[0, 0x9f, 255]), "009fff");
        assert_eq!(super::decode("009fFF"), Some([0, 0x9f, 255]));
        assert_eq!(super::decode::<2>("12345"), None);
        assert_eq!(super::decode::<2>("12g4"), None);
    }
}
