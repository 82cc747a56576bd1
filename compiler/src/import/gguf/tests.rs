use super::write::HeaderWriter;
use super::*;
use Code::*;

/// A small sound file with every kind of value and three tensors.
fn sound() -> Vec<u8> {
    let mut w = HeaderWriter::default();
    w.str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u64("llama.context_length", 1 << 20)
        .i32("llama.negative", -1)
        .f32("llama.rope.freq_base", 1e4)
        .bool("tokenizer.ggml.add_bos_token", true)
        .array_str("tokenizer.ggml.tokens", ["<s>", "", "é"].iter())
        .array_i32("tokenizer.ggml.token_type", [3, 1, 1].into_iter())
        .array_f32("tokenizer.ggml.scores", [0.0, -1.5, f32::NAN].into_iter())
        .scalar("odd.f64", ValueType::F64, &0.5f64.to_le_bytes())
        .scalar("odd.i8", ValueType::I8, &[0xFF])
        .tensor("a.weight", GgmlType::F32, &[4, 3])
        .tensor("b.weight", GgmlType::Q4_1, &[64, 2])
        .tensor("c.weight", GgmlType::Q6_K, &[256]);
    with_data(&w)
}

fn with_data(w: &HeaderWriter) -> Vec<u8> {
    let mut bytes = w.to_bytes();
    let data = bytes.len();
    bytes.resize(data + w.data_bytes() as usize, 0);
    for (i, byte) in bytes[data..].iter_mut().enumerate() {
        *byte = i as u8;
    }
    bytes
}

fn parse_error(bytes: &[u8]) -> ImportError {
    Gguf::parse(bytes).expect_err("the file is not sound")
}

#[test]
fn sound_files_of_both_versions_read_back() {
    for version in [2u8, 3] {
        let mut bytes = sound();
        bytes[4] = version;
        let gguf = Gguf::parse(&bytes).unwrap();
        assert_eq!(gguf.version, u32::from(version));
        assert_eq!(gguf.get_str("general.architecture").unwrap(), Some("llama"));
        assert_eq!(gguf.get_u32("llama.block_count").unwrap(), Some(2));
        assert_eq!(gguf.get_u64("llama.block_count").unwrap(), Some(2));
        assert_eq!(gguf.get_u32("llama.context_length").unwrap(), Some(1 << 20));
        assert_eq!(gguf.get_f32("llama.rope.freq_base").unwrap(), Some(1e4));
        assert_eq!(gguf.get_f32("odd.f64").unwrap(), Some(0.5));
        assert_eq!(
            gguf.get_bool("tokenizer.ggml.add_bos_token").unwrap(),
            Some(true)
        );
        assert_eq!(gguf.get("odd.i8").unwrap(), Value::I8(-1));
        assert_eq!(gguf.get_u32("absent").unwrap(), None);
        let tokens = gguf
            .get_array_str("tokenizer.ggml.tokens")
            .unwrap()
            .unwrap();
        assert_eq!(tokens.len(), 3);
        assert_eq!(tokens.iter().collect::<Vec<_>>(), ["<s>", "", "é"]);
        let types = gguf
            .get_array_integer("tokenizer.ggml.token_type")
            .unwrap()
            .unwrap();
        assert_eq!(types.collect::<Vec<_>>(), [3, 1, 1]);
        let scores = gguf
            .get_array_f32("tokenizer.ggml.scores")
            .unwrap()
            .unwrap();
        assert_eq!(scores.len(), 3);
        assert!(scores.last().unwrap().is_nan());

        let sizes: Vec<_> = gguf
            .tensors()
            .iter()
            .map(|t| (t.name, t.size_bytes()))
            .collect();
        assert_eq!(
            sizes,
            [("a.weight", 48), ("b.weight", 80), ("c.weight", 210)]
        );
        let b = gguf.tensor("b.weight").unwrap();
        assert_eq!(b.dims(), [64, 2]);
        assert_eq!((b.row_elements(), b.rows(), b.row_bytes()), (64, 2, 40));
        assert_eq!(gguf.data(b)[0], 64, "it follows 48 bytes padded to 64");
        assert_eq!(gguf.tensor("c.weight").unwrap().rows(), 1);
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = sound();
    let end = Gguf::parse(&bytes)
        .unwrap()
        .tensor("c.weight")
        .unwrap()
        .range
        .end as usize;
    for len in 0..end {
        let error = parse_error(&bytes[..len]);
        let offset = error.offset_bytes.expect("a byte offset");
        assert!(offset <= len as u64, "cut at {len}: {error}");
        assert!(
            matches!(error.code, ModelTruncated | ModelInvalid),
            "cut at {len}: {error}"
        );
    }
    // The padding behind the last tensor may be missing.
    Gguf::parse(&bytes[..end]).unwrap();
}

#[test]
fn flipped_bits_never_panic() {
    let bytes = sound();
    let header = Gguf::parse(&bytes).unwrap().tensors()[0].range.start as usize;
    let mut refused = 0;
    for byte in 0..header {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[byte] ^= 1 << bit;
            match Gguf::parse(&flipped) {
                Ok(gguf) => {
                    // Whatever it became, reading all of it is safe.
                    for tensor in gguf.tensors() {
                        assert_eq!(gguf.data(tensor).len() as u64, tensor.size_bytes());
                    }
                    for entry in gguf.metadata() {
                        let _ = gguf.get_array_str(entry.key);
                        if let Value::Array(array) = entry.value {
                            assert_eq!(array.iter().count() as u64, array.len);
                        }
                    }
                }
                Err(error) => {
                    assert!(error.offset_bytes.is_some(), "{error}");
                    refused += 1;
                }
            }
        }
    }
    assert!(
        refused > header,
        "only {refused} of {} flips were refused",
        header * 8
    );
}

/// Faults in the fixed header and in the metadata.
#[test]
fn faulty_headers_are_named() {
    let patched = |at: usize, patch: &[u8]| {
        let mut bytes = sound();
        bytes[at..at + patch.len()].copy_from_slice(patch);
        bytes
    };
    let metadata = |build: &dyn Fn(&mut HeaderWriter)| {
        let mut w = HeaderWriter::default();
        build(&mut w);
        w.to_bytes()
    };
    let alignment = |v: u32| {
        metadata(&|w| {
            w.u32("general.alignment", v);
        })
    };
    let raw_array = |element: u32, len: u64, rest: &[u8]| {
        let mut value = element.to_le_bytes().to_vec();
        value.extend(len.to_le_bytes());
        value.extend(rest);
        metadata(&|w| {
            w.scalar("k", ValueType::Array, &value);
        })
    };
    let cases: &[(&str, Vec<u8>, Code, u64, &str)] = &[
        (
            "empty",
            vec![],
            ModelTruncated,
            0,
            "4 bytes needed, 0 there",
        ),
        (
            "magic",
            patched(0, b"GGUX"),
            ModelInvalid,
            0,
            "begins with \"GGUX\"",
        ),
        (
            "old magic",
            patched(0, b"tjgg"),
            ModelInvalid,
            0,
            "from before GGUF",
        ),
        (
            "zip",
            patched(0, b"PK\x03\x04"),
            ModelInvalid,
            0,
            "zip archive",
        ),
        (
            "swapped magic",
            patched(0, b"FUGG"),
            ModelInvalid,
            0,
            "big-endian",
        ),
        (
            "big-endian",
            patched(4, &3u32.to_be_bytes()),
            ModelInvalid,
            4,
            "big-endian",
        ),
        (
            "version 0",
            patched(4, &[0]),
            ModelInvalid,
            4,
            "GGUF version 0",
        ),
        (
            "version 1",
            patched(4, &[1]),
            ModelInvalid,
            4,
            "GGUF version 1",
        ),
        (
            "version 4",
            patched(4, &[4]),
            ModelInvalid,
            4,
            "GGUF version 4",
        ),
        (
            "tensors 2^63",
            patched(8, &(1u64 << 63).to_le_bytes()),
            ModelInvalid,
            8,
            "9223372036854775808",
        ),
        (
            "tensors -1",
            patched(8, &[0xFF; 8]),
            ModelInvalid,
            8,
            "number of tensors",
        ),
        (
            "keys 2^63",
            patched(16, &(1u64 << 63).to_le_bytes()),
            ModelInvalid,
            16,
            "metadata keys",
        ),
        (
            "key of 2^64-1 bytes",
            patched(24, &[0xFF; 8]),
            ModelInvalid,
            24,
            "18446744073709551615",
        ),
        (
            "key that is no UTF-8",
            patched(32, &[0xFF]),
            ModelInvalid,
            24,
            "not UTF-8",
        ),
        (
            "empty key",
            metadata(&|w| {
                w.u32("", 0);
            }),
            ModelInvalid,
            24,
            "0 bytes long",
        ),
        (
            "duplicate key",
            metadata(&|w| {
                w.u32("k", 0).u32("k", 0);
            }),
            ModelMetadata,
            41,
            "twice, first at byte 24",
        ),
        (
            "value type 13",
            metadata(&|w| {
                w.scalar("k", ValueType::U8, &[0]);
            })
            .tap(|b| b[33] = 13),
            ModelMetadata,
            33,
            "value type 13",
        ),
        (
            "bool 2",
            metadata(&|w| {
                w.scalar("k", ValueType::Bool, &[2]);
            }),
            ModelMetadata,
            37,
            "bool of value 2",
        ),
        (
            "bool 2 in an array",
            raw_array(7, 3, &[0, 1, 2]),
            ModelMetadata,
            51,
            "bool of value 2",
        ),
        (
            "string 2^64-1",
            metadata(&|w| {
                w.scalar("k", ValueType::String, &[0xFF; 8]);
            }),
            ModelInvalid,
            37,
            "bytes long",
        ),
        (
            "array 2^63",
            raw_array(4, 1 << 63, &[]),
            ModelInvalid,
            41,
            "length of array `k`",
        ),
        (
            "array whose bytes wrap",
            raw_array(10, (1 << 61) + 1, &[0; 64]),
            ModelInvalid,
            41,
            "at most",
        ),
        (
            "strings 2^60",
            raw_array(8, 1 << 60, &[0; 64]),
            ModelInvalid,
            41,
            "at most",
        ),
        (
            "string in an array",
            raw_array(8, 1, &[0xFF; 8]),
            ModelInvalid,
            49,
            "a string of array `k`",
        ),
        (
            "array of arrays",
            raw_array(9, 1, &[0; 16]),
            ModelUnsupported,
            37,
            "array of arrays",
        ),
        (
            "array of type 255",
            raw_array(255, 1, &[0; 16]),
            ModelMetadata,
            37,
            "value type 255",
        ),
        (
            "alignment 0",
            alignment(0),
            ModelMetadata,
            24,
            "general.alignment is 0",
        ),
        (
            "alignment 3",
            alignment(3),
            ModelMetadata,
            24,
            "general.alignment is 3",
        ),
        (
            "alignment 4",
            alignment(4),
            ModelMetadata,
            24,
            "general.alignment is 4",
        ),
        (
            "alignment 2^31",
            alignment(1 << 31),
            ModelMetadata,
            24,
            "general.alignment is 2147483648",
        ),
        (
            "alignment as text",
            metadata(&|w| {
                w.str("general.alignment", "32");
            }),
            ModelMetadata,
            24,
            "(string)",
        ),
    ];
    for (name, bytes, fault, offset, message) in cases {
        check(name, bytes, *fault, *offset, message);
    }
}

#[test]
fn faulty_tensors_are_named() {
    type Info = (&'static str, &'static [u64], u32, u64);
    let cases: &[(&str, &[Info], Code, &str)] = &[
        (
            "no dimensions",
            &[("t", &[], 0, 0)],
            ModelInvalid,
            "has 0 dimensions",
        ),
        (
            "5 dimensions",
            &[("t", &[1; 5], 0, 0)],
            ModelInvalid,
            "has 5 dimensions",
        ),
        (
            "dimension 0",
            &[("t", &[4, 0], 0, 0)],
            ModelInvalid,
            "dimension of 0: [4, 0]",
        ),
        (
            "product wraps",
            &[("t", &[1 << 32, 1 << 32, 2], 0, 0)],
            ModelInvalid,
            "more than 2^64",
        ),
        (
            "product wraps to 0 and back",
            &[("t", &[1 << 32, 1 << 32, 0], 0, 0)],
            ModelInvalid,
            "dimension of 0",
        ),
        (
            "bytes wrap",
            &[("t", &[1 << 62], 0, 0)],
            ModelInvalid,
            "more than 2^64",
        ),
        (
            "end wraps",
            &[("t", &[1 << 61], 0, 1 << 63)],
            ModelInvalid,
            "ends beyond 2^64",
        ),
        (
            "end wraps with the header",
            &[("t", &[8], 0, u64::MAX - 31)],
            ModelInvalid,
            "ends beyond 2^64",
        ),
        (
            "offset 2^63",
            &[("t", &[8], 0, 1 << 63)],
            ModelTruncated,
            "the file ends at byte",
        ),
        (
            "type 255",
            &[("t", &[4], 255, 0)],
            ModelTensor,
            "type 255, which ggml does not know",
        ),
        (
            "removed type",
            &[("t", &[32], 4, 0)],
            ModelUnsupported,
            "type 4 (Q4_2)",
        ),
        (
            "partial block",
            &[("t", &[33, 2], 3, 0)],
            ModelTensor,
            "rows of 33 elements",
        ),
        (
            "misaligned",
            &[("t", &[4], 0, 8)],
            ModelTensor,
            "offset 8, not a multiple of the alignment 32",
        ),
        (
            "past the end",
            &[("t", &[1 << 20], 0, 0)],
            ModelTruncated,
            "needs bytes 0 to 4194304",
        ),
        (
            "duplicate",
            &[("t", &[4], 0, 0), ("t", &[4], 0, 32)],
            ModelTensor,
            "`t` is there twice",
        ),
        (
            "overlap",
            &[("a", &[16], 0, 0), ("b", &[4], 0, 32)],
            ModelTensor,
            "`b` (bytes 128 to 144) overlaps tensor `a` (bytes 96 to 160)",
        ),
        (
            "same place",
            &[("a", &[4], 0, 0), ("b", &[4], 0, 0)],
            ModelTensor,
            "overlaps",
        ),
        (
            "empty name",
            &[("", &[4], 0, 0)],
            ModelInvalid,
            "0 bytes long",
        ),
    ];
    for (name, infos, fault, message) in cases {
        let mut w = HeaderWriter::default();
        for (tensor, dims, ty, offset) in *infos {
            w.tensor_info(tensor, dims, *ty, *offset);
        }
        let mut bytes = w.to_bytes();
        bytes.extend([0; 128]);
        let error = parse_error(&bytes);
        assert_eq!(error.code, *fault, "{name}: {error}");
        assert!(error.to_string().contains(message), "{name}: {error}");
        assert!(
            error.offset_bytes.is_some_and(|at| at >= 24),
            "{name}: {error}"
        );
    }
}

#[test]
fn tensors_may_leave_gaps_and_come_in_any_order() {
    let mut w = HeaderWriter::default();
    w.tensor_info("a", &[4], 0, 96).tensor_info("b", &[4], 0, 0);
    let mut bytes = w.to_bytes();
    bytes.extend([0; 112]);
    let gguf = Gguf::parse(&bytes).unwrap();
    assert!(gguf.tensors()[0].range.start > gguf.tensors()[1].range.end);
}

#[test]
fn lookups_name_key_expected_and_found_type() {
    let mut w = HeaderWriter::default();
    w.str("s", "x")
        .i32("i", -1)
        .u64("big", 1 << 40)
        .array_str("names", ["a"].iter());
    w.scalar("bad", ValueType::String, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF]);
    w.scalar(
        "bads",
        ValueType::Array,
        &[
            8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xFF,
        ],
    );
    let bytes = w.to_bytes();
    let gguf = Gguf::parse(&bytes).unwrap();
    let cases = [
        (
            gguf.get_u32("s").unwrap_err(),
            "`s` is `x` (string); an integer",
        ),
        (
            gguf.get_u32("i").unwrap_err(),
            "`i` is -1 (int32); an integer from 0",
        ),
        (
            gguf.get_u32("big").unwrap_err(),
            "`big` is 1099511627776 (uint64); an integer from 0 to 4294967295",
        ),
        (gguf.get_f32("i").unwrap_err(), "a float32 is needed"),
        (gguf.get_bool("i").unwrap_err(), "a bool is needed"),
        (gguf.get_str("bad").unwrap_err(), "a UTF-8 string is needed"),
        (
            gguf.get_array_str("bads").unwrap_err(),
            "string 0 of `bads` is not UTF-8",
        ),
        (
            gguf.get_array_str("s").unwrap_err(),
            "an array of string is needed",
        ),
        (
            gguf.get_array_f32("names").map(|_| ()).unwrap_err(),
            "`names` is 1 x string (array of string); an array of float32 is needed",
        ),
        (
            gguf.required("absent", Gguf::get_u32).unwrap_err(),
            "`absent` is missing",
        ),
    ];
    for (error, message) in cases {
        assert_eq!(error.code, ModelMetadata);
        assert!(error.to_string().contains(message), "{error}");
    }
}

/// Random files made of the writer's pieces in random order, then damaged:
/// the parser returns in all cases.
#[test]
fn damaged_files_never_panic() {
    let seed = 0x5EED;
    let mut state: u64 = seed;
    let mut random = move |bound: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % bound
    };
    let base = sound();
    for round in 0..20_000 {
        let mut bytes = base.clone();
        for _ in 0..=random(4) {
            let at = random(bytes.len() as u64 - 8) as usize;
            let value = match random(5) {
                0 => u64::MAX,
                1 => 1 << random(64),
                2 => random(300),
                3 => (bytes.len() as u64).wrapping_sub(random(64)),
                _ => 0,
            };
            let width = 1 << random(4);
            bytes[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
        bytes.truncate(bytes.len() - random(64) as usize);
        let outcome = std::panic::catch_unwind(|| drop(Gguf::parse(&bytes)));
        assert!(outcome.is_ok(), "seed {seed:#x}, round {round}");
    }
}

fn check(name: &str, bytes: &[u8], fault: Code, offset: u64, message: &str) {
    let error = parse_error(bytes);
    assert_eq!(error.code, fault, "{name}: {error}");
    assert_eq!(error.offset_bytes, Some(offset), "{name}: {error}");
    assert!(error.to_string().contains(message), "{name}: {error}");
}

trait Tap: Sized {
    fn tap(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

impl Tap for Vec<u8> {}
