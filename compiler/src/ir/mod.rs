//! The intermediate representation: one graph of operations, from the model's
//! layers (semantic operations) down to kernel calls.
//!
//! A node is an operation with at most one result, an edge a use of it; the
//! edge's weight is the operand's number. Everything that is emitted follows
//! [`Graph::order`], which depends on the graph's shape alone.

pub(crate) mod attribute;
pub mod op;
pub mod text;
pub mod verify;

use std::collections::BTreeMap;

use petgraph::Direction;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;

pub use op::{Frequencies, Op, Type};
pub use verify::{Stage, verify};

/// The result of an operation, and the operation itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(NodeIndex);

/// Where an operation comes from, for reports and errors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `None` outside the layers.
    pub layer: Option<u32>,
    /// E.g. `ffn_down`.
    pub name: String,
}

impl Site {
    pub fn new(layer: Option<u32>, name: &str) -> Site {
        Site {
            layer,
            name: name.to_owned(),
        }
    }
}

/// `blk.3.ffn_down` or, outside the layers, the name alone.
impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.layer {
            Some(layer) => write!(f, "blk.{layer}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub op: Op,
    pub ty: Type,
    pub site: Site,
}

/// A graph with one result: the logits.
#[derive(Clone, Debug)]
pub struct Graph {
    nodes: StableDiGraph<Node, u32>,
    result: Option<ValueId>,
}

impl Default for Graph {
    fn default() -> Graph {
        Graph::new()
    }
}

impl Graph {
    pub fn new() -> Graph {
        Graph {
            nodes: StableDiGraph::new(),
            result: None,
        }
    }

    /// Adds an operation.
    ///
    /// # Errors
    ///
    /// The operands do not fit the operation.
    pub fn try_add(&mut self, op: Op, operands: &[ValueId], site: Site) -> Result<ValueId, String> {
        let types: Vec<Type> = operands.iter().map(|&v| self.node(v).ty).collect();
        let ty = op.infer(&types)?;
        let id = self.nodes.add_node(Node { op, ty, site });
        for (i, operand) in (0..).zip(operands) {
            self.nodes.add_edge(operand.0, id, i);
        }
        Ok(ValueId(id))
    }

    /// As [`Graph::try_add`], for operands that are known to fit; panics otherwise.
    pub fn add(&mut self, op: Op, operands: &[ValueId], site: Site) -> ValueId {
        let what = format!("{op:?} at {site}");
        match self.try_add(op, operands, site) {
            Ok(id) => id,
            Err(e) => panic!("{what}: {e}"),
        }
    }

    pub fn set_result(&mut self, result: ValueId) {
        self.result = Some(result);
    }

    /// Panics while the graph is being built and has no result yet.
    pub fn result(&self) -> ValueId {
        self.result.expect("the graph has a result")
    }

    pub fn node(&self, id: ValueId) -> &Node {
        &self.nodes[id.0]
    }

    /// Operands in order.
    pub fn operands(&self, id: ValueId) -> Vec<ValueId> {
        let mut operands: Vec<(u32, ValueId)> = self
            .nodes
            .edges_directed(id.0, Direction::Incoming)
            .map(|e| (*e.weight(), ValueId(e.source())))
            .collect();
        operands.sort_unstable();
        operands.into_iter().map(|(_, v)| v).collect()
    }

    /// The operations that use a value, each once, sorted.
    pub fn users(&self, id: ValueId) -> Vec<ValueId> {
        let mut users: Vec<ValueId> = self
            .nodes
            .neighbors_directed(id.0, Direction::Outgoing)
            .map(ValueId)
            .collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// True when `user` is the only operation that uses `id`, and uses it once.
    pub fn only_use(&self, id: ValueId, user: ValueId) -> bool {
        let mut uses = self.nodes.edges_directed(id.0, Direction::Outgoing);
        self.result != Some(id)
            && uses.next().is_some_and(|e| e.target() == user.0)
            && uses.next().is_none()
    }

    /// Replaces an operation in place; its users stay. Panics when the new
    /// operands do not fit.
    pub fn replace(&mut self, id: ValueId, op: Op, operands: &[ValueId]) {
        let types: Vec<Type> = operands.iter().map(|&v| self.node(v).ty).collect();
        let site = self.node(id).site.clone();
        let ty = op
            .infer(&types)
            .unwrap_or_else(|e| panic!("{op:?} at {site}: {e}"));
        let old: Vec<_> = self
            .nodes
            .edges_directed(id.0, Direction::Incoming)
            .map(|e| e.id())
            .collect();
        for edge in old {
            self.nodes.remove_edge(edge);
        }
        for (i, operand) in (0..).zip(operands) {
            self.nodes.add_edge(operand.0, id.0, i);
        }
        self.nodes[id.0] = Node { op, ty, site };
    }

    pub fn set_site(&mut self, id: ValueId, site: Site) {
        self.nodes[id.0].site = site;
    }

    /// Lets every use of `old` use `new` instead.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId) {
        let uses: Vec<_> = self
            .nodes
            .edges_directed(old.0, Direction::Outgoing)
            .map(|e| (e.id(), e.target(), *e.weight()))
            .collect();
        for (edge, user, operand) in uses {
            self.nodes.remove_edge(edge);
            self.nodes.add_edge(new.0, user, operand);
        }
        if self.result == Some(old) {
            self.result = Some(new);
        }
    }

    /// Removes an operation that nothing uses.
    pub fn remove(&mut self, id: ValueId) {
        assert!(self.users(id).is_empty(), "a used value is removed");
        self.nodes.remove_node(id.0);
    }

    pub fn contains(&self, id: ValueId) -> bool {
        self.nodes.contains_node(id.0)
    }

    /// All operations, each behind its operands: depth first from the result,
    /// computed operands before sources, so that a weight stands right before
    /// its use. Operations that the result does not need come last. In a cyclic
    /// graph some operand stands behind its user.
    pub fn order(&self) -> Vec<ValueId> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            Open,
            Done,
        }
        let mut marks: BTreeMap<ValueId, Mark> = BTreeMap::new();
        let mut order = Vec::with_capacity(self.nodes.node_count());
        let mut stack = Vec::new();
        let roots = self
            .result
            .into_iter()
            .chain(self.nodes.node_indices().map(ValueId));
        for root in roots {
            stack.push(root);
            while let Some(&id) = stack.last() {
                match marks.get(&id) {
                    Some(Mark::Done) => {
                        stack.pop();
                    }
                    Some(Mark::Open) => {
                        marks.insert(id, Mark::Done);
                        order.push(id);
                        stack.pop();
                    }
                    None => {
                        marks.insert(id, Mark::Open);
                        let operands = self.operands(id);
                        let (sources, computed): (Vec<_>, Vec<_>) = operands
                            .into_iter()
                            .partition(|&v| self.node(v).op.is_source());
                        let next = computed.into_iter().chain(sources).rev();
                        stack.extend(next.filter(|v| !marks.contains_key(v)));
                    }
                }
            }
        }
        order
    }

    pub fn is_cyclic(&self) -> bool {
        petgraph::algo::is_cyclic_directed(&self.nodes)
    }
}
