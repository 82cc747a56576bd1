//! The graph's edges: who depends on whom, in which order, and whether that is a task at all.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::{Component, Path, PathBuf};

use petgraph::graph::{Graph, NodeIndex};
use petgraph::visit::Dfs;
use petgraph::{Directed, Direction};

use super::fields::Context;
use super::graph::RawNode;
use crate::diagnostic::{Code, Diagnostic, Severity, Span, Spanned, did_you_mean, quoted};

/// Longer circles are shown by their first nodes.
const CYCLE_SHOWN: usize = 6;

/// An input of a node: what another node outputs, or the n-th entry of its `input` as a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The output of the raw node with this index.
    Node(u32),
    File(u32),
}

/// The linked graph. Indices are those of the raw nodes.
#[derive(Debug)]
pub(super) struct Links {
    /// Topological; ties in the container's order.
    pub(super) order: Vec<u32>,
    /// Per raw node, sorted.
    pub(super) depends_on: Vec<Vec<u32>>,
    /// Per raw node, in the order of `input`, else of `depends_on`.
    pub(super) sources: Vec<Vec<Source>>,
}

type Edges = Graph<(), (), Directed, u32>;

fn index(n: usize) -> u32 {
    u32::try_from(n).expect("a graph has at most 2^20 nodes")
}

/// None when a finding makes the graph no graph.
pub(super) fn link(
    context: &mut Context<'_>,
    nodes: &[RawNode],
    entry: Option<&Spanned<String>>,
    graph_span: Span,
) -> Option<Links> {
    let errors_before = context.sink.errors();
    let by_id: HashMap<&str, u32> = nodes
        .iter()
        .zip(0..)
        .map(|(node, n)| (node.id.value.as_str(), n))
        .collect();
    let producers = producers(context, nodes);
    let mut depends_on = Vec::with_capacity(nodes.len());
    let mut sources = Vec::with_capacity(nodes.len());
    for (n, node) in nodes.iter().enumerate() {
        let named = named_dependencies(context, node, nodes, &by_id);
        let from = node_sources(context, node, nodes, &producers, &named);
        let mut all = named;
        all.extend(from.iter().filter_map(|source| match source {
            Source::Node(producer) => Some(*producer),
            Source::File(_) => None,
        }));
        all.sort_unstable();
        all.dedup();
        if all.contains(&index(n)) {
            let span = self_loop_span(node);
            let message = format!("the node {} depends on itself", quoted(&node.id.value));
            context.error(Code::Cycle, message, span, "it can never start");
        }
        depends_on.push(all);
        sources.push(from);
    }
    if context.sink.errors() > errors_before {
        return None;
    }
    let mut edges = Edges::with_capacity(nodes.len(), depends_on.iter().map(Vec::len).sum());
    for _ in nodes {
        edges.add_node(());
    }
    for (n, before) in depends_on.iter().enumerate() {
        for &b in before {
            edges.add_edge(NodeIndex::new(b as usize), NodeIndex::new(n), ());
        }
    }
    let order = topological(&edges);
    if order.len() < nodes.len() {
        report_cycle(context, nodes, &depends_on, &order);
        return None;
    }
    check_entry(
        context,
        nodes,
        &edges,
        &depends_on,
        entry,
        &by_id,
        graph_span,
    );
    (context.sink.errors() == errors_before).then_some(Links {
        order,
        depends_on,
        sources,
    })
}

/// A name as the path that it may be: `./a` is `a`.
fn place(name: &str) -> PathBuf {
    let parts = Path::new(name).components();
    parts.filter(|part| *part != Component::CurDir).collect()
}

/// The node that outputs each name.
fn producers(context: &mut Context<'_>, nodes: &[RawNode]) -> HashMap<PathBuf, u32> {
    let mut producers = HashMap::new();
    for (node, n) in nodes.iter().zip(0..) {
        let Some(output) = &node.output else { continue };
        if let Some(first) = producers.insert(place(&output.value), n) {
            let first = nodes[first as usize]
                .output
                .as_ref()
                .map_or(output.span, |first| first.span);
            context.sink.push_with(Severity::Error, || {
                Diagnostic::error(
                    Code::ArtefactConflict,
                    format!("two nodes output {}", quoted(&output.value)),
                )
                .at(context.source, output.span, "again here")
                .label(context.source, first, "first here")
            });
        }
    }
    producers
}

fn named_dependencies(
    context: &mut Context<'_>,
    node: &RawNode,
    nodes: &[RawNode],
    by_id: &HashMap<&str, u32>,
) -> Vec<u32> {
    let mut found = Vec::with_capacity(node.depends_on.len());
    for name in &node.depends_on {
        match by_id.get(name.value.as_str()) {
            Some(&n) => found.push(n),
            None => dangling(context, name, nodes),
        }
    }
    found
}

fn dangling(context: &mut Context<'_>, name: &Spanned<String>, nodes: &[RawNode]) {
    context.sink.push_with(Severity::Error, || {
        let near = did_you_mean(&name.value, nodes.iter().map(|node| node.id.value.as_str()));
        Diagnostic::error(
            Code::DanglingName,
            format!("there is no node {}", quoted(&name.value)),
        )
        .at(context.source, name.span, "")
        .help_if(near.map(|near| format!("did you mean {}?", quoted(near))))
    });
}

/// Where a node's inputs come from. A name that no node outputs is a file, and only some nodes
/// read files.
fn node_sources(
    context: &mut Context<'_>,
    node: &RawNode,
    nodes: &[RawNode],
    producers: &HashMap<PathBuf, u32>,
    named: &[u32],
) -> Vec<Source> {
    let Some(inputs) = &node.inputs else {
        let mut seen = HashSet::new();
        return named
            .iter()
            .filter(|&&n| seen.insert(n))
            .map(|&n| Source::Node(n))
            .collect();
    };
    let mut sources = Vec::with_capacity(inputs.len());
    for (input, n) in inputs.iter().zip(0..) {
        let name = &input.path.value;
        match producers.get(&place(name)) {
            Some(&producer) => sources.push(Source::Node(producer)),
            None if node.node_type.value.reads_files() || named.is_empty() => {
                sources.push(Source::File(n))
            }
            None => {
                let outputs = named
                    .iter()
                    .filter_map(|&n| nodes[n as usize].output.as_ref());
                let near = did_you_mean(name, outputs.map(|output| output.value.as_str()));
                let message = format!("no node outputs {}", quoted(name));
                context.sink.push_with(Severity::Error, || {
                    Diagnostic::error(Code::DanglingName, message)
                        .at(context.source, input.path.span, "")
                        .help(match near {
                            Some(near) => format!("did you mean {}?", quoted(near)),
                            None => {
                                "leave `input` out to take what the nodes of `depends_on` output"
                                    .to_owned()
                            }
                        })
                });
            }
        }
    }
    sources
}

/// Kahn's algorithm with the smallest ready index first. Shorter than the graph if that has a
/// circle.
fn topological(edges: &Edges) -> Vec<u32> {
    let mut waiting: Vec<usize> = edges
        .node_indices()
        .map(|n| edges.neighbors_directed(n, Direction::Incoming).count())
        .collect();
    let mut ready: BinaryHeap<Reverse<u32>> = waiting
        .iter()
        .zip(0..)
        .filter(|(count, _)| **count == 0)
        .map(|(_, n)| Reverse(n))
        .collect();
    let mut order = Vec::with_capacity(waiting.len());
    while let Some(Reverse(n)) = ready.pop() {
        order.push(n);
        for next in edges.neighbors(NodeIndex::new(n as usize)) {
            waiting[next.index()] -= 1;
            if waiting[next.index()] == 0 {
                ready.push(Reverse(index(next.index())));
            }
        }
    }
    order
}

/// The place where a node names itself.
fn self_loop_span(node: &RawNode) -> Span {
    let by_id = node
        .depends_on
        .iter()
        .find(|name| name.value == node.id.value);
    by_id.map_or(node.id.span, |name| name.span)
}

/// Reports one circle among the nodes that have no place in the order.
fn report_cycle(
    context: &mut Context<'_>,
    nodes: &[RawNode],
    depends_on: &[Vec<u32>],
    order: &[u32],
) {
    let mut placed = vec![false; nodes.len()];
    for &n in order {
        placed[n as usize] = true;
    }
    let left = |n: u32| !placed[n as usize];
    let Some(start) = (0..index(nodes.len())).find(|&n| left(n)) else {
        return;
    };
    // Every node left waits for another one left, so walking back must come round.
    let mut position: HashMap<u32, usize> = HashMap::new();
    let mut path = Vec::new();
    let mut at = start;
    while !position.contains_key(&at) {
        position.insert(at, path.len());
        path.push(at);
        at = depends_on[at as usize]
            .iter()
            .copied()
            .find(|&n| left(n))
            .expect("a node left waits for one left");
    }
    let mut cycle = path.split_off(position[&at]);
    // From its first node in the container's order, so that the message does not depend on the walk.
    let first = cycle
        .iter()
        .enumerate()
        .min_by_key(|(_, n)| **n)
        .map_or(0, |(i, _)| i);
    cycle.rotate_left(first);
    let name = |n: u32| quoted(&nodes[n as usize].id.value);
    let mut names: Vec<String> = cycle.iter().take(CYCLE_SHOWN).map(|&n| name(n)).collect();
    if cycle.len() > CYCLE_SHOWN {
        names.push(format!("{} more", cycle.len() - CYCLE_SHOWN));
    }
    names.push(name(cycle[0]));
    let message = format!("{} nodes depend on each other in a circle", cycle.len());
    let mut diagnostic = Diagnostic::error(Code::Cycle, message)
        .at(
            context.source,
            nodes[cycle[0] as usize].id.span,
            "it waits for itself",
        )
        .note(format!("each waits for the next: {}", names.join(" -> ")))
        .help("remove one of these from a `depends_on` or an `input`");
    for &n in cycle.iter().skip(1).take(CYCLE_SHOWN - 1) {
        diagnostic = diagnostic.label(context.source, nodes[n as usize].id.span, "in the circle");
    }
    context.sink.push(diagnostic);
}

fn check_entry(
    context: &mut Context<'_>,
    nodes: &[RawNode],
    edges: &Edges,
    depends_on: &[Vec<u32>],
    entry: Option<&Spanned<String>>,
    by_id: &HashMap<&str, u32>,
    graph_span: Span,
) {
    let Some(entry) = entry else {
        let help = format!("the first node that depends on nothing: {}", {
            let root = depends_on.iter().position(Vec::is_empty).unwrap_or(0);
            quoted(&nodes[root].id.value)
        });
        context.sink.push(
            Diagnostic::error(Code::MissingField, "`execution_graph` has no `entry_node`")
                .at(
                    context.source,
                    Span::new(graph_span.start, graph_span.start + 1),
                    "this object",
                )
                .help(help),
        );
        return;
    };
    let Some(&root) = by_id.get(entry.value.as_str()) else {
        dangling(context, entry, nodes);
        return;
    };
    if let Some(&before) = depends_on[root as usize].first() {
        let before = &nodes[before as usize];
        context.sink.push(
            Diagnostic::error(
                Code::EntryNode,
                format!("the entry node {} is not a root", quoted(&entry.value)),
            )
            .at(context.source, entry.span, "the task cannot start here")
            .label(
                context.source,
                nodes[root as usize].id.span,
                format!("it depends on {}", quoted(&before.id.value)),
            ),
        );
        return;
    }
    let mut reached = vec![false; nodes.len()];
    let mut walk = Dfs::new(edges, NodeIndex::<u32>::new(root as usize));
    while let Some(n) = walk.next(edges) {
        reached[n.index()] = true;
    }
    for (node, _) in nodes.iter().zip(&reached).filter(|(_, reached)| !**reached) {
        context.sink.push_with(Severity::Error, || {
            let message = format!(
                "the node {} cannot be reached from the entry node",
                quoted(&node.id.value)
            );
            Diagnostic::error(Code::Unreachable, message)
                .at(context.source, node.id.span, "")
                .label(context.source, entry.span, "the entry node")
                .help("let it depend on a node that is reached, or remove it")
        });
    }
}
