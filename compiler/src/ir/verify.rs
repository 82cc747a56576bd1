//! The invariants of a graph, checked after every pass, in release too.
//!
//! Of every stage:
//! 1. The graph is acyclic and has a result of f32 columns.
//! 2. Every operation's operands fit it, and its type is the one they imply.
//! 3. A ring is written by one operation (a `kv_store`) and used by operations
//!    that follow it.
//! 4. A selected column is used by operations only that reach the result and
//!    nothing else: no ring is written in the head.
//!
//! Of `Built`: no fused form and no kernel. Of `Normalized` in addition:
//! nothing that the result does not need, no two equal operations. Of `Fused`:
//! every matmul of a quantized format takes int8 columns, one of a float format
//! f32 columns; no kernel. Of `Selected`: sources, views and kernels only, and
//! every kernel's spec is valid.

use std::collections::BTreeSet;

use omex_kernels::spec::Activation;

use super::op::OpClass;
use super::{Graph, Op, Type, ValueId};

/// Where in the pipeline a graph is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Built,
    Normalized,
    Fused,
    Selected,
}

impl Stage {
    pub const ALL: [Stage; 4] = [
        Stage::Built,
        Stage::Normalized,
        Stage::Fused,
        Stage::Selected,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Stage::Built => "built",
            Stage::Normalized => "normalized",
            Stage::Fused => "fused",
            Stage::Selected => "selected",
        }
    }
}

/// # Errors
///
/// The first violated invariant, with the operation.
pub fn verify(stage: Stage, graph: &Graph) -> Result<(), String> {
    if graph.is_cyclic() {
        return Err("the graph has a cycle".to_owned());
    }
    let order = graph.order();
    for &id in &order {
        let node = graph.node(id);
        let fault = |message: String| format!("{} ({:?}): {message}", node.site, node.op);
        let operands = graph.operands(id);
        let types: Vec<Type> = operands.iter().map(|&v| graph.node(v).ty).collect();
        let ty = node.op.infer(&types).map_err(fault)?;
        if ty != node.ty {
            return Err(fault(format!("its type is {ty}, not {}", node.ty)));
        }
        of_stage(stage, &node.op, &types).map_err(fault)?;
    }
    let result = graph.node(graph.result());
    let is_logits = matches!(
        result.ty,
        Type::Columns {
            activation: Activation::F32,
            ..
        }
    );
    if !is_logits {
        return Err(format!("the result is {}, not logits", result.ty));
    }
    head(graph, &order)?;
    if stage >= Stage::Normalized {
        minimal(graph, &order)?;
    }
    Ok(())
}

fn of_stage(stage: Stage, op: &Op, types: &[Type]) -> Result<(), String> {
    let unfused = match *op {
        Op::Matmul { bias, residual } => !bias && !residual,
        Op::Norm {
            residual, output, ..
        } => !residual && output == Activation::F32,
        Op::KvStore { norm, rope, .. } => norm.is_none() && rope.is_none(),
        Op::Attention {
            norm, rope, output, ..
        } => norm.is_none() && rope.is_none() && output == Activation::F32,
        Op::Gate { .. } | Op::Quantize | Op::NormAddNorm { .. } => false,
        Op::Tokens
        | Op::Matrix { .. }
        | Op::Vector { .. }
        | Op::Frequencies(_)
        | Op::SelectColumn
        | Op::Embed { .. }
        | Op::RopeTable { .. }
        | Op::HeadNorm { .. }
        | Op::Softcap { .. }
        | Op::AddBias
        | Op::Rope { .. }
        | Op::Add
        | Op::Mul
        | Op::Silu
        | Op::GeluTanh
        | Op::Kernel(_) => true,
    };
    match (stage, op.class()) {
        (Stage::Built | Stage::Normalized, OpClass::Semantic) if !unfused => {
            Err("a fused form before fusion".to_owned())
        }
        (Stage::Built | Stage::Normalized | Stage::Fused, OpClass::Kernel) => {
            Err("a kernel before selection".to_owned())
        }
        (Stage::Fused, OpClass::Semantic) => match (op, types) {
            (Op::Matmul { .. }, [Type::Matrix { format, .. }, x, ..]) => match x {
                Type::Columns { activation, .. }
                    if *activation == Activation::for_weights(*format) =>
                {
                    Ok(())
                }
                _ => Err(format!("a matmul of {} takes {x}", format.name())),
            },
            _ => Ok(()),
        },
        (Stage::Selected, OpClass::Semantic) => {
            Err("a semantic operation after selection".to_owned())
        }
        (Stage::Selected, OpClass::Kernel) => match op {
            Op::Kernel(spec) => spec.validate().map_err(str::to_owned),
            _ => Ok(()),
        },
        (_, OpClass::Source | OpClass::View) => Ok(()),
        (Stage::Built | Stage::Normalized, OpClass::Semantic) => Ok(()),
    }
}

/// What depends on the selected column.
pub(crate) fn head_nodes(graph: &Graph, order: &[ValueId]) -> BTreeSet<ValueId> {
    let mut head = BTreeSet::new();
    for &id in order {
        let selected = graph.node(id).op == Op::SelectColumn;
        if selected || graph.operands(id).iter().any(|v| head.contains(v)) {
            head.insert(id);
        }
    }
    head
}

fn head(graph: &Graph, order: &[ValueId]) -> Result<(), String> {
    for &id in &head_nodes(graph, order) {
        let node = graph.node(id);
        if matches!(node.ty, Type::Kv { .. }) {
            return Err(format!("{}: the head writes a ring", node.site));
        }
        let reads_ring = graph
            .operands(id)
            .iter()
            .any(|&v| matches!(graph.node(v).ty, Type::Kv { .. }));
        if reads_ring {
            return Err(format!("{}: the head reads a ring", node.site));
        }
    }
    Ok(())
}

fn minimal(graph: &Graph, order: &[ValueId]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    for &id in order {
        let node = graph.node(id);
        if id != graph.result() && graph.users(id).is_empty() {
            return Err(format!("{}: nothing needs it", node.site));
        }
        let writes = matches!(node.ty, Type::Kv { .. });
        if !seen.insert((node.op.clone(), graph.operands(id))) && !writes {
            return Err(format!("{}: it is computed twice", node.site));
        }
    }
    Ok(())
}
