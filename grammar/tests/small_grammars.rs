//! References, quantities and quantization names: what is read, and how wrong ones are refused.

use omex_grammar::quantity::{parse_bytes, parse_milliseconds};
use omex_grammar::quantization::Quantization;
use omex_grammar::reference::Reference;

/// Every reference, read and printed, or refused with the bytes at fault.
#[test]
fn references() {
    let texts = [
        "zsei://models/slm-code-v1?q8",
        "zsei://models/org/model-1.5b?Q4_K_M",
        "zsei://models/llama3.2:3b",
        "zsei://frameworks/code-analysis",
        "local://models/mistral-int4.omex",
        "local://../up.gguf",
        "/abs/olute.gguf",
        "models/ünï code.gguf",
        "C:\\model.gguf",
        "a?q8",
        "",
        "zsei://",
        "zsei://models/",
        "zsei://model/x",
        "zsei://models/../x",
        "zsei://models/a b",
        "zsei://models/x?",
        "zsei://models/x?q7",
        "zsei://models/x?q8&y",
        "zsei://frameworks/x?q8",
        "local://",
        "https://example.org/x.gguf",
        "a\0b",
    ];
    let report: Vec<String> = texts
        .iter()
        .map(|text| match Reference::parse(text) {
            Ok(Reference::Model(model)) => {
                assert_eq!(
                    Reference::parse(&model.to_string()),
                    Ok(Reference::Model(model.clone()))
                );
                format!("{text:?} -> {model:?}")
            }
            Ok(Reference::Framework(framework)) => format!("{text:?} -> {framework:?}"),
            Err(error) => {
                assert!(error.span.start <= error.span.end && error.span.end <= text.len());
                format!("{text:?} -> {:?} {error}", error.span)
            }
        })
        .collect();
    insta::assert_snapshot!(report.join("\n"));
    assert!(Reference::parse(&"x".repeat(1 << 20)).is_err());
}

#[test]
fn quantities() {
    const MIB: u64 = 1 << 20;
    for (text, bytes) in [
        ("4096", 4096),
        ("0", 0),
        ("1200MiB", 1200 * MIB),
        ("1200 MB", 1200 * MIB),
        ("1200M", 1200 * MIB),
        ("1.5GiB", 1536 * MIB),
        ("0.1KiB", 102),
        ("0002kb", 2048),
        ("18446744073709551615", u64::MAX),
        ("16777215.999999TiB", 18446744073708452104),
    ] {
        assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
    }
    for (text, milliseconds) in [
        ("60min", 3_600_000),
        ("2s", 2000),
        ("1.5h", 5_400_000),
        ("7", 7),
        ("3m", 180_000),
        ("1d", 86_400_000),
    ] {
        assert_eq!(parse_milliseconds(text), Ok(milliseconds), "{text}");
    }
    let wrong = [
        "",
        " ",
        "MiB",
        "-1",
        "+1",
        "1e3",
        "1.",
        ".5",
        "1.5",
        "1,5GiB",
        "1 2",
        "1GiB1",
        "12XB",
        "2s",
        "0x10",
        "18446744073709551616",
        "16777216TiB",
        "99999999999999999999999999999999999999999",
        "0.0000000000000000000000001KiB",
        "١MiB",
    ];
    let report: Vec<String> = wrong
        .iter()
        .map(|text| {
            let error = parse_bytes(text).expect_err(text);
            assert!(
                error.span.start <= error.span.end && error.span.end <= text.len(),
                "{text}"
            );
            format!("{text:?} -> {:?} {error}", error.span)
        })
        .collect();
    insta::assert_snapshot!(report.join("\n"));
    assert!(parse_milliseconds("1MiB").is_err());
}

#[test]
fn quantizations() {
    for (text, name, bits) in [
        ("int4", "q4", 4),
        ("INT8", "q8", 8),
        ("q8", "q8", 8),
        ("4bit", "q4", 4),
        ("8-bit", "q8", 8),
        ("q4_0", "q4_0", 4),
        ("Q4_K_M", "q4_k_m", 4),
        ("bf16", "bf16", 16),
        ("mxfp4", "mxfp4", 4),
    ] {
        let quantization = Quantization::parse(text).expect(text);
        assert_eq!(
            (quantization.to_string().as_str(), quantization.bits()),
            (name, bits)
        );
    }
    for text in [
        "",
        "q",
        "int",
        "int7",
        "q0",
        "q999999999999",
        "q4_9",
        "4",
        "q4 ",
        "é",
    ] {
        assert!(Quantization::parse(text).is_err(), "{text}");
    }
}
