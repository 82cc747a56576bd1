//! The textual IR: what a graph or a plan looks like as text, before anyone
//! asks whether it makes sense.

use std::fmt;
use std::ops::Range;

use pest::Parser;
use pest::iterators::Pair;
use pest_derive::Parser;

use crate::SyntaxError;

#[derive(Parser)]
#[grammar = "ir.pest"]
struct IrParser;

/// `%0 = embed{scale=1.0}(%1, %2) : f32[576] @token_embd`, ..., `return %0`.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    pub statements: Vec<Statement>,
    pub result: u32,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Statement {
    pub span: Range<usize>,
    /// The value that the statement defines.
    pub value: u32,
    pub op: String,
    pub attributes: Vec<(String, Literal)>,
    pub operands: Vec<u32>,
    pub ty: String,
    pub site: String,
}

/// `kernel{spec="...", code=(0, 640)}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub span: Range<usize>,
    pub name: String,
    pub attributes: Vec<(String, Literal)>,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Literal {
    /// As written: the reader knows its type.
    Number(String),
    Text(String),
    Word(String),
    Tuple(Vec<Literal>),
    List(Vec<Literal>),
}

impl Literal {
    pub fn number(value: impl fmt::Display) -> Literal {
        Literal::Number(value.to_string())
    }
    pub fn word(value: impl fmt::Display) -> Literal {
        Literal::Word(value.to_string())
    }
    pub fn text(value: impl Into<String>) -> Literal {
        Literal::Text(value.into())
    }
}

struct Separated<'a>(&'a [Literal]);

impl fmt::Display for Separated<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{item}")?;
        }
        Ok(())
    }
}

/// The text that parses back to the same literal.
impl fmt::Display for Literal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Number(text) | Literal::Word(text) => f.write_str(text),
            Literal::Text(text) => write!(f, "{text:?}"),
            Literal::Tuple(items) => write!(f, "({})", Separated(items)),
            Literal::List(items) => write!(f, "[{}]", Separated(items)),
        }
    }
}

fn rule_name(rule: &Rule) -> Option<&'static str> {
    match rule {
        Rule::value => Some("a value (%0)"),
        Rule::word | Rule::index => Some("a name"),
        Rule::number => Some("a number"),
        Rule::text => Some("a text"),
        Rule::ty => Some("a type"),
        Rule::site => Some("a place"),
        Rule::result => Some("`return`"),
        Rule::list => Some("a list"),
        Rule::tuple => Some("a tuple"),
        Rule::EOI => Some("the end"),
        Rule::graph
        | Rule::statement
        | Rule::operands
        | Rule::records
        | Rule::record
        | Rule::attributes
        | Rule::attribute
        | Rule::literal
        | Rule::item
        | Rule::atom
        | Rule::inner
        | Rule::WHITESPACE
        | Rule::COMMENT => None,
    }
}

fn range(pair: &Pair<'_, Rule>) -> Range<usize> {
    pair.as_span().start()..pair.as_span().end()
}

/// Parses the text of a graph.
///
/// # Errors
///
/// The first place where the text is no graph.
pub fn parse_graph(text: &str) -> Result<Graph, SyntaxError> {
    let mut pairs = IrParser::parse(Rule::graph, text)
        .map_err(|error| SyntaxError::from_pest(error, rule_name))?;
    let mut statements = Vec::new();
    let mut result = 0;
    for pair in pairs.next().expect("one graph was parsed").into_inner() {
        if pair.as_rule() == Rule::statement {
            statements.push(statement(pair)?);
        } else if pair.as_rule() == Rule::result {
            result = value(pair.into_inner().next().expect("a result has a value"));
        }
    }
    Ok(Graph { statements, result })
}

/// Parses a sequence of records.
///
/// # Errors
///
/// The first place where the text is no record.
pub fn parse_records(text: &str) -> Result<Vec<Record>, SyntaxError> {
    let mut pairs = IrParser::parse(Rule::records, text)
        .map_err(|error| SyntaxError::from_pest(error, rule_name))?;
    let pairs = pairs.next().expect("records were parsed").into_inner();
    pairs
        .filter(|pair| pair.as_rule() == Rule::record)
        .map(|pair| {
            let span = range(&pair);
            let mut parts = pair.into_inner();
            let name = parts.next().expect("a record has a name");
            Ok(Record {
                span,
                name: name.as_str().to_owned(),
                attributes: attributes(parts.next().expect("a record has attributes"))?,
            })
        })
        .collect()
}

fn value(pair: Pair<'_, Rule>) -> u32 {
    let digits = &pair.as_str()[1..];
    digits.parse().expect("nine digits fit 32 bits")
}

fn statement(pair: Pair<'_, Rule>) -> Result<Statement, SyntaxError> {
    let span = range(&pair);
    let mut parts = pair.into_inner();
    let mut next = || parts.next().expect("a statement has six parts");
    Ok(Statement {
        span,
        value: value(next()),
        op: next().as_str().to_owned(),
        attributes: attributes(next())?,
        operands: next().into_inner().map(value).collect(),
        ty: next().as_str().to_owned(),
        site: next().as_str().to_owned(),
    })
}

fn attributes(pair: Pair<'_, Rule>) -> Result<Vec<(String, Literal)>, SyntaxError> {
    pair.into_inner()
        .map(|attribute| {
            let mut parts = attribute.into_inner();
            let name = parts.next().expect("an attribute has a name");
            let literal = literal(parts.next().expect("an attribute has a value"))?;
            Ok((name.as_str().to_owned(), literal))
        })
        .collect()
}

fn literal(pair: Pair<'_, Rule>) -> Result<Literal, SyntaxError> {
    let span = range(&pair);
    let items = |pair: Pair<'_, Rule>| {
        let items = pair.into_inner().map(literal);
        items.collect::<Result<Vec<Literal>, SyntaxError>>()
    };
    match pair.as_rule() {
        Rule::number => Ok(Literal::Number(pair.as_str().to_owned())),
        Rule::word => Ok(Literal::Word(pair.as_str().to_owned())),
        Rule::text => {
            let inner = pair.into_inner().next().expect("a text has an inside");
            unescape(inner.as_str())
                .map(Literal::Text)
                .ok_or_else(|| SyntaxError::new(span, "an escape sequence is wrong"))
        }
        Rule::tuple => items(pair).map(Literal::Tuple),
        Rule::list => items(pair).map(Literal::List),
        other => unreachable!("{other:?} is no literal"),
    }
}

/// Undoes `str`'s `Debug` escapes.
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        out.push(match chars.next()? {
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            '0' => '\0',
            c @ ('\\' | '"' | '\'') => c,
            'u' => {
                let digits = chars.as_str().strip_prefix('{')?;
                let digits = &digits[..digits.find('}')?];
                if digits.len() > 6 {
                    return None;
                }
                let c = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
                // Both braces and the digits, all of one byte.
                chars = chars.as_str()[digits.len() + 2..].chars();
                c
            }
            _ => return None,
        });
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_parse_back() {
        let literals = vec![
            Literal::number(-1.5e-7),
            Literal::number(u64::MAX),
            Literal::text("a \"b\" \\ \n \u{0} \u{1f600} \u{202e} ünï 'x'"),
            Literal::word("q4_1"),
            Literal::List(vec![Literal::Tuple(vec![
                Literal::number(1),
                Literal::text("}"),
            ])]),
            Literal::List(Vec::new()),
        ];
        let record = |literal: &Literal| format!("r{{x={literal}}}");
        for literal in literals {
            let records = parse_records(&record(&literal)).unwrap();
            assert_eq!(records[0].attributes, [("x".to_owned(), literal)]);
        }
    }

    #[test]
    fn graphs_are_read_and_faults_are_placed() {
        let text = "; a comment\n%0 = tokens() : tokens @in\n%1 = f{a=1.0}(%0, %0) : f32[3] @blk.0.x\nreturn %1\n";
        let graph = parse_graph(text).unwrap();
        assert_eq!(graph.result, 1);
        assert_eq!(graph.statements[1].operands, [0, 0]);
        assert_eq!(graph.statements[1].ty, "f32[3]");
        for (text, at) in [
            ("", 0),
            ("%0 = ", 5),
            ("return %9999999999", 17),
            ("%0 = f{a=[[1]]}() : t @x\nreturn %0", 10),
            ("return %0 x", 10),
        ] {
            let error = parse_graph(text).expect_err(text);
            assert_eq!(error.span.start, at, "{text}: {error}");
        }
        assert!(parse_records(r#"r{x="\q"}"#).is_err());
        assert!(parse_records(r#"r{x="\u{110000}"}"#).is_err());
        assert!(parse_graph(&"[".repeat(100_000)).is_err());
    }
}
