//! Where a model or a prompt framework comes from.

use std::fmt;

use pest::Parser;
use pest_derive::Parser;

use crate::quantization::Quantization;
use crate::{SyntaxError, quantization};

/// References longer than this are refused: paths are bounded by the operating system anyway.
const REFERENCE_BYTES_MAX: usize = 4096;

#[derive(Parser)]
#[grammar = "reference.pest"]
struct ReferenceParser;

/// `zsei://models/NAME?q8`, `local://PATH` or a plain path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelReference {
    /// An entry of a registry.
    Registry {
        name: String,
        quantization: Option<Quantization>,
    },
    /// `local://` and a path.
    Local(String),
    Path(String),
}

/// `zsei://frameworks/NAME`: guidance, from which prompts come.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameworkReference {
    pub name: String,
}

/// Any reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Model(ModelReference),
    Framework(FrameworkReference),
}

fn rule_name(rule: &Rule) -> Option<&'static str> {
    match rule {
        Rule::model => Some("`models/NAME`"),
        Rule::framework => Some("`frameworks/NAME`"),
        Rule::name => Some("a name of letters, digits, `-`, `_` and `.`"),
        Rule::quantization => Some("a quantization such as `q8`"),
        Rule::file_path => Some("a path"),
        Rule::EOI => Some("the end"),
        Rule::local => Some("`local://`"),
        Rule::reference | Rule::zsei | Rule::path | Rule::segment | Rule::scheme => None,
    }
}

impl Reference {
    /// # Errors
    ///
    /// The text is none of the forms, or its quantization is unknown.
    pub fn parse(text: &str) -> Result<Reference, SyntaxError> {
        if text.is_empty() {
            return Err(SyntaxError::new(0..0, "the reference is empty"));
        }
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(SyntaxError::new(
                0..text.len(),
                format!("a reference has at most {REFERENCE_BYTES_MAX} bytes"),
            ));
        }
        if let Some(nul) = text.find('\0') {
            return Err(SyntaxError::new(nul..nul + 1, "a path holds no NUL"));
        }
        if let Some((scheme, _)) = text.split_once("://")
            && !matches!(scheme, "zsei" | "local")
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        {
            return Err(SyntaxError::new(
                0..scheme.len() + 3,
                "the scheme of a reference is `zsei://` or `local://`",
            ));
        }
        let mut pairs = ReferenceParser::parse(Rule::reference, text)
            .map_err(|error| SyntaxError::from_pest(error, rule_name))?;
        let pair = pairs
            .next()
            .and_then(|reference| reference.into_inner().next())
            .expect("a parsed reference holds one of its forms");
        let rule = pair.as_rule();
        let mut parts = pair.into_inner();
        let first = parts.next().expect("each form has a name or a path");
        let value = first.as_str().to_owned();
        Ok(match rule {
            Rule::model => Reference::Model(ModelReference::Registry {
                name: value,
                quantization: match parts.next() {
                    None => None,
                    Some(part) => Some(quantization::parse_at(
                        part.as_str(),
                        part.as_span().start(),
                    )?),
                },
            }),
            Rule::framework => Reference::Framework(FrameworkReference { name: value }),
            Rule::local => Reference::Model(ModelReference::Local(value)),
            Rule::path => Reference::Model(ModelReference::Path(value)),
            Rule::reference
            | Rule::zsei
            | Rule::name
            | Rule::segment
            | Rule::quantization
            | Rule::file_path
            | Rule::scheme
            | Rule::EOI => unreachable!("{rule:?} is not a form of a reference"),
        })
    }
}

impl ModelReference {
    /// # Errors
    ///
    /// As [`Reference::parse`], or the reference names a framework.
    pub fn parse(text: &str) -> Result<ModelReference, SyntaxError> {
        match Reference::parse(text)? {
            Reference::Model(model) => Ok(model),
            Reference::Framework(_) => Err(SyntaxError::new(
                0..text.len(),
                "this names a framework where a model belongs",
            )),
        }
    }

    /// The path of a reference to a file.
    pub fn path(&self) -> Option<&str> {
        match self {
            ModelReference::Registry { .. } => None,
            ModelReference::Local(path) | ModelReference::Path(path) => Some(path),
        }
    }
}

impl FrameworkReference {
    /// # Errors
    ///
    /// As [`Reference::parse`], or the reference names a model or a file.
    pub fn parse(text: &str) -> Result<FrameworkReference, SyntaxError> {
        match Reference::parse(text)? {
            Reference::Framework(framework) => Ok(framework),
            Reference::Model(_) => Err(SyntaxError::new(
                0..text.len(),
                "guidance is named as `zsei://frameworks/NAME`",
            )),
        }
    }
}

impl fmt::Display for ModelReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelReference::Registry {
                name,
                quantization: None,
            } => write!(f, "zsei://models/{name}"),
            ModelReference::Registry {
                name,
                quantization: Some(q),
            } => {
                write!(f, "zsei://models/{name}?{q}")
            }
            ModelReference::Local(path) => write!(f, "local://{path}"),
            ModelReference::Path(path) => f.write_str(path),
        }
    }
}

impl fmt::Display for FrameworkReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zsei://frameworks/{}", self.name)
    }
}
