//! Chooses the kernel of every operation.
//!
//! Requires: stage `Fused`.
//! Ensures: stage `Selected`: sources, views and kernels only.
//! Breaks: nothing.
//!
//! An operation without a kernel, or with a shape that its kernel does not
//! take, is the model's: a diagnostic names it.

use omex_kernels::KernelSpec;
use omex_kernels::spec::{EXTENT_MAX, HEAD_DIM_MAX};

use crate::diagnostic::{Code, Diagnostic};
use crate::ir::op::OpClass;
use crate::ir::{Graph, Op, Type};

/// # Errors
///
/// Every operation that no kernel computes.
pub fn select(mut graph: Graph) -> Result<Graph, Vec<Diagnostic>> {
    let mut faults = Vec::new();
    for id in graph.order() {
        let node = graph.node(id);
        if node.op.class() != OpClass::Semantic {
            continue;
        }
        let operands = graph.operands(id);
        let types: Vec<Type> = operands.iter().map(|&v| graph.node(v).ty).collect();
        let site = &node.site;
        let unsupported =
            |what: &str| Diagnostic::error(Code::ModelUnsupported, format!("`{site}`: {what}"));
        match kernel(&node.op, &types, node.ty) {
            None => faults.push(unsupported("no kernel computes this operation")),
            Some(spec) => match spec.validate() {
                Ok(()) => graph.replace(id, Op::Kernel(spec), &operands),
                Err(rule) => faults.push(
                    unsupported(rule)
                        .note(format!("the kernel would be {}", crate::ir::text::spec_text(&spec)))
                        .note(format!(
                            "extents are at most {EXTENT_MAX}, heads at most {HEAD_DIM_MAX} elements"
                        )),
                ),
            },
        }
    }
    if faults.is_empty() {
        Ok(graph)
    } else {
        Err(faults)
    }
}

fn len(ty: Type) -> Option<u32> {
    match ty {
        Type::Columns { activation: _, len } => Some(len),
        Type::Tokens
        | Type::Matrix { .. }
        | Type::Vector { .. }
        | Type::Frequencies { .. }
        | Type::Kv { .. } => None,
    }
}

/// The kernel of an operation on operands of these types, with this result.
fn kernel(op: &Op, types: &[Type], result: Type) -> Option<KernelSpec> {
    match (op, types, result) {
        (
            Op::Embed { scale },
            [
                _,
                Type::Matrix {
                    format,
                    layout,
                    rows,
                    k,
                },
            ],
            _,
        ) => Some(KernelSpec::Embed {
            format: *format,
            layout: *layout,
            rows: *rows,
            k: *k,
            scale: *scale,
        }),
        (Op::RopeTable { scale }, [Type::Frequencies { pairs }], _) => {
            Some(KernelSpec::RopeTable {
                pairs: *pairs,
                scale: *scale,
            })
        }
        (
            Op::Norm {
                kind,
                eps,
                bias,
                residual,
                output,
            },
            _,
            _,
        ) => Some(KernelSpec::Norm {
            kind: *kind,
            len: len(result)?,
            eps: *eps,
            bias: *bias,
            residual: *residual,
            output: *output,
        }),
        (Op::NormAddNorm { eps, output }, _, _) => Some(KernelSpec::NormAddNorm {
            len: len(result)?,
            eps: *eps,
            output: *output,
        }),
        (Op::Quantize, _, _) => Some(KernelSpec::Quantize { len: len(result)? }),
        (
            Op::Matmul { bias, residual },
            [
                Type::Matrix {
                    format, rows, k, ..
                },
                ..,
            ],
            _,
        ) => Some(KernelSpec::Matmul {
            format: *format,
            rows: *rows,
            k: *k,
            bias: *bias,
            residual: *residual,
        }),
        (
            Op::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            },
            _,
            _,
        ) => Some(KernelSpec::KvStore {
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            ring: *ring,
            format: *format,
            norm: *norm,
            rope: *rope,
        }),
        (
            Op::Attention {
                heads,
                window,
                scale,
                softcap,
                norm,
                rope,
                output,
            },
            [
                ..,
                Type::Kv {
                    kv_heads,
                    head_dim,
                    ring,
                    format,
                },
            ],
            _,
        ) => Some(KernelSpec::Attention {
            heads: *heads,
            kv_heads: *kv_heads,
            head_dim: *head_dim,
            ring: *ring,
            format: *format,
            window: *window,
            scale: *scale,
            softcap: *softcap,
            norm: *norm,
            rope: *rope,
            output: *output,
        }),
        (Op::Gate { function, output }, _, _) => Some(KernelSpec::Gate {
            function: *function,
            len: len(result)?,
            output: *output,
        }),
        (Op::Softcap { cap }, _, _) => Some(KernelSpec::Softcap {
            len: len(result)?,
            cap: *cap,
        }),
        _ => None,
    }
}
