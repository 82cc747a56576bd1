//! Brings a graph into the one form that the later passes look for.
//!
//! Requires: stage `Built`.
//! Ensures: stage `Normalized`: equal operations are one, nothing is unused;
//! the activation function is the first operand of a product, the residual
//! stream the first of a sum.
//! Breaks: nothing.

use std::collections::BTreeMap;

use crate::ir::{Graph, Op, Type, ValueId};

pub fn normalize(mut graph: Graph) -> Graph {
    for id in graph.order() {
        let operands = graph.operands(id);
        if let [a, b] = operands[..]
            && is_misordered(&graph, &graph.node(id).op, a, b)
        {
            let op = graph.node(id).op.clone();
            graph.replace(id, op, &[b, a]);
        }
    }
    merge_equal(&mut graph);
    remove_unused(&mut graph);
    graph
}

fn is_misordered(graph: &Graph, op: &Op, a: ValueId, b: ValueId) -> bool {
    let is = |id: ValueId, test: fn(&Op) -> bool| test(&graph.node(id).op);
    let function = |op: &Op| matches!(op, Op::Silu | Op::GeluTanh);
    // What can take the residual stream as an epilogue.
    let branch = |op: &Op| matches!(op, Op::Matmul { .. } | Op::AddBias | Op::Norm { .. });
    match op {
        Op::Mul => is(b, function) && !is(a, function),
        Op::Add => is(a, branch) && !is(b, branch),
        _ => false,
    }
}

/// Operations stand behind their operands, so one sweep sees equal operands as
/// one value already. Ring writes are effects and never equal.
fn merge_equal(graph: &mut Graph) {
    let mut seen: BTreeMap<(Op, Vec<ValueId>), ValueId> = BTreeMap::new();
    for id in graph.order() {
        if matches!(graph.node(id).ty, Type::Kv { .. }) {
            continue;
        }
        let key = (graph.node(id).op.clone(), graph.operands(id));
        match seen.get(&key) {
            Some(&first) => graph.replace_uses(id, first),
            None => {
                seen.insert(key, id);
            }
        }
    }
}

/// Removes what the result does not need, users before operands.
pub(crate) fn remove_unused(graph: &mut Graph) {
    for id in graph.order().into_iter().rev() {
        if id != graph.result() && graph.users(id).is_empty() {
            graph.remove(id);
        }
    }
}
