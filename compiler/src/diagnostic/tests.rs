use std::sync::Arc;

use super::*;

fn rendered(text: &str, span: Span) -> String {
    let source = Arc::new(Source::new("t.json", text));
    Diagnostic::error(Code::InvalidValue, "wrong \x1b[31mvalue")
        .at(&source, span, "here")
        .note("a \u{9b}note")
        .help("do that")
        .render(&RenderOptions::default())
}

#[test]
fn carets_point_into_the_text() {
    insta::assert_snapshot!(rendered("{\n  \"é\": -1\n}\n", Span::new(10, 12)), @"");
}

#[test]
fn files_are_named_with_their_byte() {
    let error = Diagnostic::error(Code::ModelTruncated, "the header ends too early")
        .in_file("m\x1bodel.gguf", Some(4097))
        .render(&RenderOptions::default());
    insta::assert_snapshot!(error, @"");
}

/// Whatever the span, rendering ends, is short, and lets no escape through.
#[test]
fn any_span_of_any_text_renders() {
    let long = format!(
        "{}\x1b\u{9b}\u{202e}é{}",
        "x".repeat(300_000),
        "é".repeat(300_000)
    );
    for text in ["", "\n", "a", "\r\n\r\n", "é\u{202e}\té\nb", long.as_str()] {
        let length = u32::try_from(text.len()).unwrap();
        for start in [
            0,
            1,
            2,
            3,
            length / 2,
            length.saturating_sub(1),
            length,
            length + 5,
        ] {
            for end in [0, start, start + 1, length, u32::MAX] {
                let out = rendered(text, Span::new(start, end));
                assert!(
                    out.len() < 2000,
                    "{start}..{end} of {length} bytes gives {} bytes",
                    out.len()
                );
                assert!(!out.contains(['\x1b', '\u{9b}', '\u{202e}']), "{out}");
            }
        }
    }
}

#[test]
fn json_form_holds_the_same_facts() {
    let source = Arc::new(Source::new("t.json", "[1,\n  2]"));
    let error = Diagnostic::warning(Code::NoEffect, "m")
        .at(&source, Span::new(6, 7), "l")
        .help("h");
    let value: serde_json::Value = serde_json::from_str(&render_json(&error)).unwrap();
    assert_eq!(value["code"], "OMX0036");
    assert_eq!(value["severity"], "warning");
    assert_eq!(value["place"]["line"], 2);
    assert_eq!(value["place"]["column"], 3);
    assert_eq!(value["help"][0], "h");
    assert!(!render_json(&error).contains('\n'));
}

#[test]
fn a_full_sink_counts_the_rest() {
    let mut sink = Sink::new();
    for _ in 0..1000 {
        sink.push(Diagnostic::warning(Code::UnknownField, "w"));
    }
    sink.push(Diagnostic::error(Code::Cycle, "e"));
    assert!(sink.has_errors());
    let kept = sink.into_vec();
    assert_eq!(kept.len(), 51);
    assert!(kept[50].is_error());
    assert_eq!(kept[50].notes(), ["and 950 more like these"]);
    assert_eq!(exit_status(&kept), ExitStatus::InvalidInput);
}
