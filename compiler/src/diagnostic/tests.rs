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
    insta::assert_snapshot!(rendered("{\n  \"é\": -1\n}\n", Span::new(10, 12)), @r#"
    error[OMX0012]: wrong \u{1b}[31mvalue
     --> t.json:2:8
      |
    2 |   "é": -1
      |        ^^ here
      |
      = note: a \u{9b}note
      = help: do that
    "#);
}

#[test]
fn files_are_named_with_their_byte() {
    let error = Diagnostic::error(Code::ModelTruncated, "the header ends too early")
        .in_file("m\x1bodel.gguf", Some(4097))
        .render(&RenderOptions::default());
    insta::assert_snapshot!(error, @r"
    error[OMX0101]: the header ends too early
    --> m\u{1b}odel.gguf at byte 4097 (0x1001)
    ");
}

#[test]
fn labels_of_several_sources_and_long_lines() {
    let long = format!("[{}-1]", "1,".repeat(100_000));
    let one = Arc::new(Source::new("one.json", long));
    let two = Arc::new(Source::new("two.toml", "a = 1\nb = 2\n"));
    let error = Diagnostic::warning(Code::LimitsDiffer, "two limits")
        .at(&one, Span::new(200_001, 200_003), "this one wins")
        .label(&two, Span::new(10, 11), "this one does not")
        .render(&RenderOptions::default());
    insta::assert_snapshot!(error, @r"
    warning[OMX0028]: two limits
     --> one.json:1:200002
      |
    1 | ...1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,-1]
      |                                                                ^^ this one wins
      |
     ::: two.toml:2:5
      |
    2 | b = 2
      |     - this one does not
    ");
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
