//! Diagnostics as text for people and as JSON for programs.

use annotate_snippets::renderer::DEFAULT_TERM_WIDTH;
use annotate_snippets::{AnnotationKind, Element, Group, Level, Origin, Renderer, Snippet};
use serde_json::{Value, json};

use super::quote::clean_in_place;
use super::{Diagnostic, Label, Place, Severity, Source, Span, clean};

/// A line longer than this is shown around its span only: containers may be one line of many megabytes.
const LINE_BYTES_MAX: usize = 200;
/// Bytes of a long line that are kept before and after its span.
const MARGIN_BYTES: usize = 60;
/// A span longer than this is shown by its start.
const SPAN_BYTES_MAX: usize = 120;
const LABELS_MAX: usize = 16;

/// How diagnostics look. The terminal is the caller's affair: colour only if it is one, and `NO_COLOR` is not set.
#[derive(Clone, Copy, Debug)]
pub struct RenderOptions {
    pub colour: bool,
    /// In columns.
    pub width: usize,
}

impl Default for RenderOptions {
    fn default() -> RenderOptions {
        RenderOptions {
            colour: false,
            width: DEFAULT_TERM_WIDTH,
        }
    }
}

/// The lines around a span, short enough to print, and the span within them.
struct Excerpt {
    text: String,
    line: u32,
    span: std::ops::Range<usize>,
}

fn excerpt(source: &Source, span: Span) -> Excerpt {
    let text = source.text();
    let start = text.floor_char_boundary(span.range().start.min(text.len()));
    let line = source.line_of(start);
    let line_start = source.line_start(line);
    let line_end = text[line_start..]
        .find('\n')
        .map_or(text.len(), |n| line_start + n);
    let line_end = line_start + text[line_start..line_end].trim_end_matches('\r').len();
    // A span over several lines is shown by its first one, which is where the reader has to look.
    let end = text
        .ceil_char_boundary(span.range().end.min(start + SPAN_BYTES_MAX))
        .clamp(start, line_end.max(start));
    let (from, to) = if line_end - line_start <= LINE_BYTES_MAX {
        (line_start, line_end)
    } else {
        let from = text
            .floor_char_boundary(start.saturating_sub(MARGIN_BYTES))
            .max(line_start);
        (
            from,
            text.ceil_char_boundary((end + MARGIN_BYTES).min(line_end)),
        )
    };
    let (before, after) = (
        if from > line_start { "..." } else { "" },
        if to < line_end { "..." } else { "" },
    );
    let shown = clean_in_place(&text[from..to.max(from)]).replace('\t', " ");
    Excerpt {
        text: format!("{before}{shown}{after}"),
        line: source.position(span.start).line,
        span: start - from + before.len()..end.max(start) - from + before.len(),
    }
}

/// Stands for "path:line:column" until the report is laid out: only the whole source knows the column of a long line,
/// of which the report sees an excerpt. [`clean`] lets no private-use character of the user through.
const ORIGIN_MARK: char = '\u{e000}';

fn snippet<'a>(label: &Label, kind: AnnotationKind) -> Element<'a> {
    let excerpt = excerpt(&label.source, label.span);
    let text = (!label.text.is_empty()).then(|| clean(&label.text));
    Snippet::source(excerpt.text)
        .path(ORIGIN_MARK.to_string())
        .line_start(excerpt.line as usize)
        .fold(false)
        .annotation(kind.span(excerpt.span).label(text))
        .into()
}

fn place_origins<'a>(report: &str, labels: impl Iterator<Item = &'a Label>) -> String {
    let mut parts = report.split(ORIGIN_MARK);
    let mut out = String::from(parts.next().unwrap_or(""));
    for (part, label) in parts.zip(labels) {
        let position = label.source.position(label.span.start);
        let name = clean(label.source.name());
        out.push_str(&format!("{name}:{}:{}", position.line, position.column));
        out.push_str(part.trim_start_matches(|c: char| c == ':' || c.is_ascii_digit()));
    }
    out
}

pub(super) fn render(diagnostic: &Diagnostic, options: &RenderOptions) -> String {
    let level = match diagnostic.severity() {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let title = level
        .primary_title(clean(diagnostic.message()))
        .id(diagnostic.code().to_string());
    let mut group = Group::with_title(title);
    match diagnostic.place() {
        Place::Nowhere => {}
        Place::Text(label) => group = group.element(snippet(label, AnnotationKind::Primary)),
        Place::File {
            path,
            offset_bytes: None,
        } => group = group.element(Origin::path(clean(path))),
        Place::File {
            path,
            offset_bytes: Some(offset),
        } => {
            group = group.element(Origin::path(format!(
                "{} at byte {offset} ({offset:#x})",
                clean(path)
            )));
        }
    }
    let labels = &diagnostic.labels()[..diagnostic.labels().len().min(LABELS_MAX)];
    for label in labels {
        group = group.element(snippet(label, AnnotationKind::Context));
    }
    for note in diagnostic.notes() {
        group = group.element(Level::NOTE.message(clean(note)));
    }
    for help in diagnostic.helps() {
        group = group.element(Level::HELP.message(clean(help)));
    }
    let renderer = if options.colour {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    let report = renderer.term_width(options.width).render(&[group]);
    let primary = match diagnostic.place() {
        Place::Text(label) => Some(label),
        Place::Nowhere | Place::File { .. } => None,
    };
    place_origins(&report, primary.into_iter().chain(labels))
}

fn label_json(label: &Label) -> Value {
    let position = label.source.position(label.span.start);
    json!({
        "path": label.source.name(),
        "line": position.line,
        "column": position.column,
        "byte_start": label.span.start,
        "byte_end": label.span.end,
        "text": label.text,
    })
}

/// One line of JSON, for `--message-format json`. `rendered` is the text form without colour.
pub fn render_json(diagnostic: &Diagnostic) -> String {
    let place = match diagnostic.place() {
        Place::Nowhere => Value::Null,
        Place::Text(label) => label_json(label),
        Place::File { path, offset_bytes } => json!({"path": path, "byte_start": offset_bytes}),
    };
    json!({
        "schema_version": 1,
        "code": diagnostic.code().to_string(),
        "severity": diagnostic.severity().as_str(),
        "message": diagnostic.message(),
        "place": place,
        "labels": diagnostic.labels().iter().map(label_json).collect::<Vec<_>>(),
        "notes": diagnostic.notes(),
        "help": diagnostic.helps(),
        "exit_status": diagnostic.exit_status().as_u8(),
        "rendered": diagnostic.render(&RenderOptions::default()),
    })
    .to_string()
}
