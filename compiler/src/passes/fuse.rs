//! Fuses neighbours into the forms that one kernel computes.
//!
//! Requires: stage `Normalized`.
//! Ensures: stage `Fused`: bias and residual are epilogues of their matmul or
//! norm, a norm of a sum with another norm is one operation, RoPE and head
//! norms are part of `kv_store` and `attention`, an activation function and its
//! product are a gate, and every matmul of a quantized format takes int8
//! columns, quantized by their producer where that is possible.
//! Breaks: nothing; an operation that fits no kernel is left for `select` to name.
//!
//! Each saves a pass over a buffer or a barrier and computes nothing twice, but for the
//! norm of a sum, which repeats a row's norm to save a barrier. That pays on every CPU,
//! so nothing here depends on the target.

use omex_kernels::spec::{Activation, GateFunction, NormKind};

use super::normalize::remove_unused;
use crate::ir::{Graph, Op, Type, ValueId};

pub fn fuse(mut graph: Graph) -> Graph {
    for id in graph.order() {
        if graph.contains(id) {
            epilogue(&mut graph, id);
            gate(&mut graph, id);
            rope(&mut graph, id);
            head_norm(&mut graph, id);
            norm_add_norm(&mut graph, id);
        }
    }
    quantize(&mut graph);
    remove_unused(&mut graph);
    graph
}

/// `x * w + bias`, `residual + x * w` and `residual + norm(x)`: the sum takes
/// its producer's place, so that values keep the order of the layers.
fn epilogue(graph: &mut Graph, id: ValueId) {
    let operands = graph.operands(id);
    let (producer, extra, is_bias) = match graph.node(id).op {
        Op::AddBias => (operands[0], operands[1], true),
        Op::Add => (operands[1], operands[0], false),
        _ => return,
    };
    // The kernels add the bias before the residual, and each once.
    let op = match graph.node(producer).op {
        Op::Matmul {
            bias,
            residual: false,
        } if !bias || !is_bias => Op::Matmul {
            bias: bias || is_bias,
            residual: !is_bias,
        },
        Op::Norm {
            kind,
            eps,
            bias,
            residual: false,
            output: output @ Activation::F32,
        } if !is_bias => Op::Norm {
            kind,
            eps,
            bias,
            residual: true,
            output,
        },
        _ => return,
    };
    if !graph.only_use(producer, id) {
        return;
    }
    let mut operands = graph.operands(producer);
    operands.push(extra);
    let site = graph.node(producer).site.clone();
    graph.replace(id, op, &operands);
    graph.set_site(id, site);
    graph.remove(producer);
}

/// The norm of a norm plus a residual computes both, so that it need not wait
/// for the sum, which is computed beside it for its other uses.
fn norm_add_norm(graph: &mut Graph, id: ValueId) {
    let Op::Norm {
        kind: NormKind::Rms,
        eps,
        bias: false,
        residual: false,
        output,
    } = graph.node(id).op
    else {
        return;
    };
    let [sum, next_weight] = graph.operands(id)[..] else {
        unreachable!("a plain norm has two operands");
    };
    let inner = Op::Norm {
        kind: NormKind::Rms,
        eps,
        bias: false,
        residual: true,
        output: Activation::F32,
    };
    if graph.node(sum).op == inner {
        let [x, weight, residual] = graph.operands(sum)[..] else {
            unreachable!("a norm with a residual has three operands");
        };
        let op = Op::NormAddNorm { eps, output };
        graph.replace(id, op, &[x, weight, residual, next_weight]);
    }
}

fn gate(graph: &mut Graph, id: ValueId) {
    let operands = graph.operands(id);
    let (Op::Mul, [active, up]) = (&graph.node(id).op, &operands[..]) else {
        return;
    };
    let function = match graph.node(*active).op {
        Op::Silu => GateFunction::Silu,
        Op::GeluTanh => GateFunction::GeluTanh,
        _ => return,
    };
    if graph.only_use(*active, id) {
        let op = Op::Gate {
            function,
            output: Activation::F32,
        };
        let gate = graph.operands(*active)[0];
        graph.replace(id, op, &[gate, *up]);
        graph.remove(*active);
    }
}

/// A rotation has to end in the cache or in one attention.
fn rope(graph: &mut Graph, id: ValueId) {
    let operands = graph.operands(id);
    let Some(&rotated) = operands.first() else {
        return;
    };
    let Op::Rope { rope, head_dim } = graph.node(rotated).op else {
        return;
    };
    let fused = match graph.node(id).op.clone() {
        Op::KvStore {
            kv_heads,
            head_dim: width,
            ring,
            format,
            norm: None,
            rope: None,
        } if width == head_dim => Op::KvStore {
            kv_heads,
            head_dim,
            ring,
            format,
            norm: None,
            rope: Some(rope),
        },
        Op::Attention {
            heads,
            window,
            scale,
            softcap,
            norm: None,
            rope: None,
            output,
        } if kv_head_dim(graph, operands[1]) == Some(head_dim) => Op::Attention {
            heads,
            window,
            scale,
            softcap,
            norm: None,
            rope: Some(rope),
            output,
        },
        _ => return,
    };
    if !graph.only_use(rotated, id) {
        return;
    }
    let [x, table] = graph.operands(rotated)[..] else {
        unreachable!("rope has two operands");
    };
    let operands = match fused {
        Op::KvStore { .. } => [x, operands[1], table],
        _ => [x, table, operands[1]],
    };
    graph.replace(id, fused, &operands);
    graph.remove(rotated);
}

/// A norm of heads has to end where their rotation does, and before it.
fn head_norm(graph: &mut Graph, id: ValueId) {
    let mut operands = graph.operands(id);
    let Some(&normed) = operands.first() else {
        return;
    };
    let Op::HeadNorm { eps, head_dim } = graph.node(normed).op else {
        return;
    };
    let (fused, weight_at) = match graph.node(id).op.clone() {
        Op::KvStore {
            kv_heads,
            head_dim: width,
            ring,
            format,
            norm: None,
            rope,
        } if width == head_dim => {
            let op = Op::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm: Some(eps),
                rope,
            };
            (op, 2)
        }
        Op::Attention {
            heads,
            window,
            scale,
            softcap,
            norm: None,
            rope,
            output,
        } if kv_head_dim(graph, operands[operands.len() - 1]) == Some(head_dim) => {
            let op = Op::Attention {
                heads,
                window,
                scale,
                softcap,
                norm: Some(eps),
                rope,
                output,
            };
            (op, 1)
        }
        _ => return,
    };
    if !graph.only_use(normed, id) {
        return;
    }
    let [x, weight] = graph.operands(normed)[..] else {
        unreachable!("a head norm has two operands");
    };
    operands[0] = x;
    operands.insert(weight_at, weight);
    graph.replace(id, fused, &operands);
    graph.remove(normed);
}

fn kv_head_dim(graph: &Graph, id: ValueId) -> Option<u32> {
    match graph.node(id).ty {
        Type::Kv { head_dim, .. } => Some(head_dim),
        Type::Tokens
        | Type::Columns { .. }
        | Type::Matrix { .. }
        | Type::Vector { .. }
        | Type::Frequencies { .. } => None,
    }
}

/// Gives every matmul of a quantized format int8 columns.
fn quantize(graph: &mut Graph) {
    for id in graph.order() {
        let users: Vec<ValueId> = graph
            .users(id)
            .into_iter()
            .filter(|&user| takes_q8(graph, user) && graph.operands(user)[1] == id)
            .collect();
        let is_f32 = matches!(
            graph.node(id).ty,
            Type::Columns {
                activation: Activation::F32,
                ..
            }
        );
        if users.is_empty() || !is_f32 {
            continue;
        }
        let quantized = quantized(graph, id);
        for user in users {
            let mut operands = graph.operands(user);
            operands[1] = quantized;
            let op = graph.node(user).op.clone();
            graph.replace(user, op, &operands);
        }
    }
}

fn takes_q8(graph: &Graph, id: ValueId) -> bool {
    let Op::Matmul { .. } = graph.node(id).op else {
        return false;
    };
    match graph.node(graph.operands(id)[0]).ty {
        Type::Matrix { format, .. } => Activation::for_weights(format) == Activation::Q8,
        _ => false,
    }
}

/// The int8 version of `id`: from its producer where that can quantize, else
/// from a separate operation. A norm that is needed in f32 as well is computed
/// twice, which is cheaper than a barrier; other producers are not.
fn quantized(graph: &mut Graph, id: ValueId) -> ValueId {
    let output = Activation::Q8;
    let node = graph.node(id).clone();
    let only_q8 = graph.users(id).iter().all(|&user| {
        let others = graph.operands(user);
        takes_q8(graph, user) && others.iter().filter(|&&v| v == id).count() == 1
    }) && graph.result() != id;
    let fused = match node.op {
        Op::Norm {
            kind,
            eps,
            bias,
            residual,
            output: _,
        } => Some(Op::Norm {
            kind,
            eps,
            bias,
            residual,
            output,
        }),
        Op::NormAddNorm { eps, output: _ } => Some(Op::NormAddNorm { eps, output }),
        Op::Gate {
            function,
            output: _,
        } if only_q8 => Some(Op::Gate { function, output }),
        Op::Attention {
            heads,
            window,
            scale,
            softcap,
            norm,
            rope,
            output: _,
        } if only_q8 => Some(Op::Attention {
            heads,
            window,
            scale,
            softcap,
            norm,
            rope,
            output,
        }),
        _ => None,
    };
    let operands = graph.operands(id);
    let fused = fused.and_then(|op| graph.try_add(op, &operands, node.site.clone()).ok());
    fused.unwrap_or_else(|| graph.add(Op::Quantize, &[id], node.site))
}
