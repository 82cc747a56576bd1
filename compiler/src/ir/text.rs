//! Graphs as text that parses back to the same graph.
//!
//! Values are numbered in [`Graph::order`], so that equal graphs have equal
//! texts whatever passes made them.

use std::collections::BTreeMap;
use std::fmt::Write;

use omex_grammar::SyntaxError;
use omex_grammar::ir::{Literal, Statement, parse_graph};
use omex_kernels::KernelSpec;

use super::attribute::{Attribute, Attributes, Braces, Word};
use super::{Frequencies, Graph, Op, Site, Type, ValueId};

impl std::fmt::Display for Type {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Type::Tokens => f.write_str("tokens"),
            Type::Columns { activation, len } => write!(f, "{}[{len}]", activation.word()),
            Type::Matrix {
                format,
                layout,
                rows,
                k,
            } => write!(f, "{}[{rows}, {k}, {}]", format.word(), layout.word()),
            Type::Vector { len } => write!(f, "vector[{len}]"),
            Type::Frequencies { pairs } => write!(f, "frequencies[{pairs}]"),
            Type::Kv {
                kv_heads,
                head_dim,
                ring,
                format,
            } => write!(f, "kv[{kv_heads}, {head_dim}, {ring}, {}]", format.word()),
        }
    }
}

/// Declares how each operation is written: its word and its fields. One table
/// serves printing and parsing.
macro_rules! operations {
    ($($word:literal => $($path:ident)::+ { $($field:ident),* };)*) => {
        fn op_parts(op: &Op) -> (&'static str, Vec<(&'static str, Literal)>) {
            match op {
                $(operations!(@pattern $($path)::+ { $($field),* }) => (
                    $word,
                    vec![$((stringify!($field), Attribute::literal($field))),*],
                ),)*
                Op::Frequencies(Frequencies { base, divisor, width, factors }) => (
                    "frequencies",
                    vec![
                        ("base", base.literal()),
                        ("divisor", divisor.literal()),
                        ("width", width.literal()),
                        ("factors", factors.literal()),
                    ],
                ),
            }
        }

        fn op_from_parts(word: &str, attributes: &mut Attributes<'_>) -> Result<Op, String> {
            Ok(match word {
                $($word => {
                    $(let $field = attributes.take(stringify!($field))?;)*
                    operations!(@value $($path)::+ { $($field),* })
                })*
                "frequencies" => Op::Frequencies(Frequencies {
                    base: attributes.take("base")?,
                    divisor: attributes.take("divisor")?,
                    width: attributes.take("width")?,
                    factors: attributes.take("factors")?,
                }),
                _ => return Err(format!("`{word}` is no operation")),
            })
        }
    };
    (@pattern Op::$name:ident { $($field:ident),* }) => { Op::$name { $($field),* } };
    (@pattern KernelSpec::$name:ident { $($field:ident),* }) => {
        Op::Kernel(KernelSpec::$name { $($field),* })
    };
    (@value Op::$name:ident { $($field:ident),* }) => { Op::$name { $($field),* } };
    (@value KernelSpec::$name:ident { $($field:ident),* }) => {
        Op::Kernel(KernelSpec::$name { $($field),* })
    };
}

operations! {
    "tokens" => Op::Tokens {};
    "matrix" => Op::Matrix { tensor, format, layout, rows, k };
    "vector" => Op::Vector { tensor, len };
    "select_column" => Op::SelectColumn {};
    "embed" => Op::Embed { scale };
    "rope_table" => Op::RopeTable { scale };
    "norm" => Op::Norm { kind, eps, bias, residual, output };
    "norm_add_norm" => Op::NormAddNorm { eps, output };
    "head_norm" => Op::HeadNorm { eps, head_dim };
    "quantize" => Op::Quantize {};
    "matmul" => Op::Matmul { bias, residual };
    "add_bias" => Op::AddBias {};
    "rope" => Op::Rope { rope, head_dim };
    "kv_store" => Op::KvStore { kv_heads, head_dim, ring, format, norm, rope };
    "attention" => Op::Attention { heads, window, scale, softcap, norm, rope, output };
    "add" => Op::Add {};
    "mul" => Op::Mul {};
    "silu" => Op::Silu {};
    "gelu_tanh" => Op::GeluTanh {};
    "gate" => Op::Gate { function, output };
    "softcap" => Op::Softcap { cap };
    "kernel.embed" => KernelSpec::Embed { format, layout, rows, k, scale };
    "kernel.rope_table" => KernelSpec::RopeTable { pairs, scale };
    "kernel.norm" => KernelSpec::Norm { kind, len, eps, bias, residual, output };
    "kernel.norm_add_norm" => KernelSpec::NormAddNorm { len, eps, output };
    "kernel.quantize" => KernelSpec::Quantize { len };
    "kernel.matmul" => KernelSpec::Matmul { format, rows, k, bias, residual };
    "kernel.kv_store" => KernelSpec::KvStore { kv_heads, head_dim, ring, format, norm, rope };
    "kernel.attention" => KernelSpec::Attention { heads, kv_heads, head_dim, ring, format, window, scale, softcap, norm, rope, output };
    "kernel.gate" => KernelSpec::Gate { function, len, output };
    "kernel.softcap" => KernelSpec::Softcap { len, cap };
}

/// A spec in one line, as graphs and plans print it: `matmul{format=q4_1, ...}`.
pub fn spec_text(spec: &KernelSpec) -> String {
    let (word, attributes) = op_parts(&Op::Kernel(*spec));
    let word = word.trim_start_matches("kernel.");
    format!("{word}{}", Braces(&attributes))
}

/// The attributes of a spec, with the word of its kind; see [`spec_from_parts`].
pub fn spec_parts(spec: &KernelSpec) -> (&'static str, Vec<(&'static str, Literal)>) {
    op_parts(&Op::Kernel(*spec))
}

/// The spec that [`spec_parts`] took apart.
///
/// # Errors
///
/// A missing, unknown or wrong attribute.
pub fn spec_from_parts(word: &str, attributes: &[(String, Literal)]) -> Result<KernelSpec, String> {
    let mut attributes = Attributes::new(attributes);
    let op = op_from_parts(word, &mut attributes)?;
    attributes.finish()?;
    match op {
        Op::Kernel(spec) => Ok(spec),
        _ => Err(format!("`{word}` is no kernel")),
    }
}

impl std::fmt::Display for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let order = self.order();
        let numbers: BTreeMap<ValueId, usize> =
            order.iter().enumerate().map(|(i, &id)| (id, i)).collect();
        for (i, &id) in order.iter().enumerate() {
            let node = self.node(id);
            let (word, attributes) = op_parts(&node.op);
            let mut operands = String::new();
            for (j, operand) in self.operands(id).iter().enumerate() {
                let separator = if j == 0 { "" } else { ", " };
                write!(operands, "{separator}%{}", numbers[operand])?;
            }
            writeln!(
                f,
                "%{i} = {word}{}({operands}) : {} @{}",
                Braces(&attributes),
                node.ty,
                node.site
            )?;
        }
        writeln!(f, "return %{}", numbers[&self.result()])
    }
}

/// Reads the text of a graph. Values are defined before they are used.
///
/// # Errors
///
/// The first statement that is wrong.
pub fn parse(text: &str) -> Result<Graph, TextError> {
    let parsed = parse_graph(text)?;
    let mut graph = Graph::new();
    let mut values = BTreeMap::new();
    let unknown = |n: u32| format!("%{n} is not defined above");
    for statement in &parsed.statements {
        let id = add(&mut graph, &values, statement)
            .map_err(|message| TextError::at(statement.span.start, message))?;
        if values.insert(statement.value, id).is_some() {
            let message = format!("%{} is defined twice", statement.value);
            return Err(TextError::at(statement.span.start, message));
        }
    }
    let result = values
        .get(&parsed.result)
        .ok_or_else(|| TextError::at(text.len(), unknown(parsed.result)))?;
    graph.set_result(*result);
    Ok(graph)
}

/// What is wrong with a text, and from which byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    pub offset_bytes: usize,
    pub message: String,
}

impl TextError {
    pub(crate) fn at(offset_bytes: usize, message: impl Into<String>) -> TextError {
        TextError {
            offset_bytes,
            message: message.into(),
        }
    }
}

impl From<SyntaxError> for TextError {
    fn from(error: SyntaxError) -> TextError {
        TextError::at(error.span.start, error.message)
    }
}

impl std::fmt::Display for TextError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "byte {}: {}", self.offset_bytes, self.message)
    }
}

fn add(
    graph: &mut Graph,
    values: &BTreeMap<u32, ValueId>,
    statement: &Statement,
) -> Result<ValueId, String> {
    let mut attributes = Attributes::new(&statement.attributes);
    let op = op_from_parts(&statement.op, &mut attributes)?;
    attributes.finish()?;
    let operands: Vec<ValueId> = statement
        .operands
        .iter()
        .map(|n| {
            let value = values.get(n).copied();
            value.ok_or_else(|| format!("%{n} is not defined above"))
        })
        .collect::<Result<_, _>>()?;
    let id = graph.try_add(op, &operands, parse_site(&statement.site)?)?;
    let ty = graph.node(id).ty.to_string();
    if ty.replace(' ', "") == statement.ty.replace(' ', "") {
        Ok(id)
    } else {
        Err(format!("the result is {ty}, not {}", statement.ty))
    }
}

fn parse_site(text: &str) -> Result<Site, String> {
    let Some(rest) = text.strip_prefix("blk.") else {
        return Ok(Site::new(None, text));
    };
    let (layer, name) = rest
        .split_once('.')
        .ok_or_else(|| format!("`{text}` is no place"))?;
    let layer = layer
        .parse()
        .map_err(|_| format!("`{layer}` is no layer"))?;
    Ok(Site::new(Some(layer), name))
}
