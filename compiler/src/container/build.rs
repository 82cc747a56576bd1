//! From linked raw nodes to a [`Task`]: defaults filled in, kinds checked, nodes numbered.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::fields::Context;
use super::flow::{Flow, RawInput, StagePlace};
use super::graph::{NodeType, RawNode};
use super::inference::{InferenceSettings, SamplingSettings};
use super::link::{Links, Source};
use super::prompt;
use super::task::{
    Action, Artefact, ArtefactId, ArtefactKind, Inference, Input, InputId, MergeMode, Node, NodeId,
    NodeInput, Output, Prompt, Unsupported,
};
use crate::diagnostic::{Code, Diagnostic, Severity, Span, Spanned, quoted};

const MAX_TOKENS_DEFAULT: u32 = 256;

/// What nodes fall back on.
pub(super) struct Defaults {
    pub(super) flow: Flow,
    pub(super) top: InferenceSettings,
    pub(super) merge: Option<Spanned<MergeMode>>,
    /// None for a task type without one.
    pub(super) prompt: Option<Arc<Prompt>>,
    /// As written.
    pub(super) task_type: Spanned<String>,
}

/// The parts of a [`super::Task`] that nodes make up.
#[derive(Default)]
pub(super) struct Program {
    pub(super) inputs: Vec<Input>,
    pub(super) artefacts: Vec<Artefact>,
    pub(super) nodes: Vec<Node>,
    pub(super) outputs: Vec<Output>,
}

fn id32(n: usize) -> u32 {
    u32::try_from(n).expect("nodes and inputs are fewer than 2^32")
}

fn implied(
    id: Spanned<String>,
    span: Span,
    node_type: NodeType,
    inputs: Option<Vec<RawInput>>,
) -> RawNode {
    RawNode {
        node_type: Spanned::new(node_type, id.span),
        id,
        span,
        depends_on: Vec::new(),
        inputs,
        output: None,
        memory: None,
        window: None,
        merge: None,
        settings: None,
    }
}

/// The three nodes that a flow without a graph stands for.
pub(super) fn nodes_of_flow(flow: &Flow) -> Option<(Vec<RawNode>, Links)> {
    let node = |place: &Option<StagePlace>, node_type, inputs| {
        let place = place.clone()?;
        Some(implied(place.id, place.span, node_type, inputs))
    };
    let nodes = vec![
        node(&flow.tokenize, NodeType::Chunk, Some(flow.inputs.clone()))?,
        node(&flow.forward, NodeType::Infer, None)?,
        node(&flow.decode, NodeType::Merge, None)?,
    ];
    let files = (0..id32(flow.inputs.len())).map(Source::File).collect();
    let links = Links {
        order: vec![0, 1, 2],
        depends_on: vec![vec![], vec![0], vec![1]],
        sources: vec![files, vec![Source::Node(0)], vec![Source::Node(1)]],
    };
    Some((nodes, links))
}

/// Adds the nodes that a short graph leaves out: an inferring node that reads files gets a node
/// that cuts them, and one whose results nobody takes gets a node that decodes them.
pub(super) fn add_implied_nodes(nodes: &mut Vec<RawNode>, links: &mut Links) {
    let written = nodes.len();
    let mut consumed = vec![false; written];
    for sources in &links.sources {
        for source in sources {
            if let Source::Node(n) = source {
                consumed[*n as usize] = true;
            }
        }
    }
    let mut order = Vec::with_capacity(links.order.len());
    let mut last = Vec::new();
    for &n in &links.order {
        let node = &nodes[n as usize];
        let infers = node.node_type.value.infers();
        let place = (node.id.clone(), node.span);
        let is_file = |source: &Source| matches!(source, Source::File(_));
        if infers && links.sources[n as usize].iter().any(is_file) {
            let id = place.0.clone().map(|id| format!("{id}.chunks"));
            let chunk = implied(id, place.1, NodeType::Chunk, node.inputs.clone());
            let new = id32(nodes.len());
            let (files, mut rest): (Vec<_>, Vec<_>) =
                links.sources[n as usize].iter().copied().partition(is_file);
            rest.insert(0, Source::Node(new));
            links.sources[n as usize] = rest;
            links.depends_on[n as usize].push(new);
            nodes.push(chunk);
            links.sources.push(files);
            links.depends_on.push(Vec::new());
            order.push(new);
        }
        order.push(n);
        let generates = infers && nodes[n as usize].node_type.value != NodeType::SummaryGeneration;
        if generates && !consumed[n as usize] {
            let id = place.0.map(|id| format!("{id}.text"));
            let new = id32(nodes.len());
            nodes.push(implied(id, place.1, NodeType::Merge, None));
            links.sources.push(vec![Source::Node(n)]);
            links.depends_on.push(vec![n]);
            last.push(new);
        }
    }
    order.extend(last);
    links.order = order;
}

fn output_kind(node_type: NodeType) -> ArtefactKind {
    match node_type {
        NodeType::Chunk | NodeType::ParseCodebase => ArtefactKind::Chunks,
        NodeType::Infer | NodeType::SemanticAnalysis => ArtefactKind::Generations,
        NodeType::SummaryGeneration | NodeType::Merge => ArtefactKind::Text,
    }
}

fn accepts(node_type: NodeType, kind: ArtefactKind) -> bool {
    match node_type {
        NodeType::Chunk => kind == ArtefactKind::Text,
        NodeType::ParseCodebase => false,
        NodeType::Infer => kind == ArtefactKind::Chunks,
        NodeType::SemanticAnalysis | NodeType::SummaryGeneration => true,
        NodeType::Merge => kind == ArtefactKind::Generations,
    }
}

fn kind_name(kind: ArtefactKind) -> &'static str {
    match kind {
        ArtefactKind::Chunks => "chunks of tokens",
        ArtefactKind::Generations => "generated tokens",
        ArtefactKind::Text => "text",
    }
}

/// What a node of this type takes, and how to give it.
fn expected_input(node_type: NodeType) -> &'static str {
    match node_type {
        NodeType::Chunk => "it takes files: name one in `input`, or `-` for the standard input",
        NodeType::ParseCodebase => "it takes a source tree: name its folder in `input`",
        NodeType::Infer => {
            "it takes chunks: let it depend on a `token_chunk_parse`, or name a file in `input`"
        }
        NodeType::SemanticAnalysis => {
            "it takes chunks or text of other nodes, or files: name them in `input` or `depends_on`"
        }
        NodeType::SummaryGeneration => {
            "it takes chunks or text of other nodes: name them in `depends_on`"
        }
        NodeType::Merge => "it takes generated tokens: let it depend on an `inference_slices`",
    }
}

pub(super) struct Builder<'c, 'a> {
    pub(super) context: &'c mut Context<'a>,
    pub(super) defaults: &'c Defaults,
    pub(super) unsupported: &'c mut Vec<Unsupported>,
    pub(super) program: Program,
    pub(super) input_ids: HashMap<String, InputId>,
}

impl Builder<'_, '_> {
    /// Numbers the nodes by their order. Findings tell what was wrong.
    pub(super) fn build(mut self, nodes: Vec<RawNode>, links: &Links) -> Program {
        let mut number = vec![NodeId(0); nodes.len()];
        for (&raw, n) in links.order.iter().zip(0..) {
            number[raw as usize] = NodeId(n);
        }
        for &raw in &links.order {
            let node = &nodes[raw as usize];
            let producer = number[raw as usize];
            self.program.artefacts.push(Artefact {
                name: node
                    .output
                    .as_ref()
                    .map_or_else(|| node.id.value.clone(), |output| output.value.clone()),
                span: node.output.as_ref().map(|output| output.span),
                kind: output_kind(node.node_type.value),
                producer,
                consumers: Vec::new(),
            });
        }
        let mut nodes: Vec<Option<RawNode>> = nodes.into_iter().map(Some).collect();
        for &raw in &links.order {
            let node = nodes[raw as usize]
                .take()
                .expect("the order names each node once");
            let mut depends_on: Vec<NodeId> = links.depends_on[raw as usize]
                .iter()
                .map(|&n| number[n as usize])
                .collect();
            depends_on.sort_unstable();
            self.node(
                node,
                number[raw as usize],
                depends_on,
                &links.sources[raw as usize],
                &number,
            );
        }
        self.outputs();
        self.program
    }

    fn node(
        &mut self,
        node: RawNode,
        id: NodeId,
        depends_on: Vec<NodeId>,
        sources: &[Source],
        number: &[NodeId],
    ) {
        let node_type = node.node_type;
        let mut inputs = Vec::with_capacity(sources.len());
        let mut producers = HashSet::new();
        for &source in sources {
            if let Source::Node(producer) = source
                && !producers.insert(producer)
            {
                self.context.sink.push_with(Severity::Warning, || {
                    let message = format!(
                        "the node {} names the output of another twice",
                        quoted(&node.id.value)
                    );
                    Diagnostic::warning(Code::DuplicateId, message).at(
                        self.context.source,
                        node.id.span,
                        "it is taken once",
                    )
                });
                continue;
            }
            let input = match source {
                // A node has one output, numbered like the node.
                Source::Node(producer) => {
                    let artefact = ArtefactId(number[producer as usize].0);
                    self.take(&node, id, artefact)
                        .then_some(NodeInput::Artefact(artefact))
                }
                Source::File(n) => {
                    let file = &node.inputs.as_ref().expect("files come from `input`")[n as usize];
                    self.file(&node, file).map(NodeInput::Input)
                }
            };
            inputs.extend(input);
        }
        if sources.is_empty() {
            self.context.sink.push_with(Severity::Error, || {
                let message = format!("the node {} has no input", quoted(&node.id.value));
                Diagnostic::error(Code::MissingField, message)
                    .at(self.context.source, node.id.span, "this node")
                    .help(expected_input(node_type.value))
            });
        }
        let action = match node_type.value {
            NodeType::Chunk => Action::Chunk {
                window: node.window.or(self.defaults.flow.window),
            },
            NodeType::Merge => {
                let default = Spanned::new(MergeMode::Concat, node.id.span);
                let mode = node.merge.or(self.defaults.merge).unwrap_or(default);
                if mode.value != MergeMode::Concat {
                    self.unsupported("merging other than `concat`", mode.span);
                }
                Action::Merge { mode }
            }
            NodeType::ParseCodebase => Action::ParseCodebase,
            NodeType::Infer => Action::Infer(Box::new(self.inference(&node))),
            NodeType::SemanticAnalysis => Action::SemanticAnalysis(Box::new(self.inference(&node))),
            NodeType::SummaryGeneration => {
                Action::SummaryGeneration(Box::new(self.inference(&node)))
            }
        };
        if matches!(
            node_type.value,
            NodeType::ParseCodebase | NodeType::SummaryGeneration
        ) {
            self.unsupported(
                &format!("the node type `{}`", node_type.value.name()),
                node_type.span,
            );
        }
        self.program.nodes.push(Node {
            id: node.id,
            span: node.span,
            action,
            depends_on,
            inputs,
            output: ArtefactId(id.0),
            memory: node.memory,
        });
    }

    fn unsupported(&mut self, what: &str, span: Span) {
        self.unsupported.push(Unsupported {
            what: what.to_owned(),
            span,
            needed: true,
        });
    }

    /// Connects a node to another's output, if it can use that.
    fn take(&mut self, node: &RawNode, consumer: NodeId, artefact: ArtefactId) -> bool {
        let node_type = node.node_type.value;
        let taken = &mut self.program.artefacts[artefact.0 as usize];
        if !accepts(node_type, taken.kind) {
            let (name, kind) = (quoted(&taken.name), kind_name(taken.kind));
            self.context.sink.push_with(Severity::Error, || {
                let message = format!(
                    "a node of type `{}` cannot use {name}, which is {kind}",
                    node_type.name()
                );
                Diagnostic::error(Code::StageOrder, message)
                    .at(self.context.source, node.id.span, "this node")
                    .help(expected_input(node_type))
            });
            return false;
        }
        if taken.consumers.last() != Some(&consumer) {
            taken.consumers.push(consumer);
        }
        if node_type == NodeType::Chunk {
            self.unsupported("cutting the text of another node", node.node_type.span);
        }
        true
    }

    fn file(&mut self, node: &RawNode, file: &RawInput) -> Option<InputId> {
        if !node.node_type.value.reads_files() {
            let message = format!("no node outputs {}", quoted(&file.path.value));
            self.context.sink.push_with(Severity::Error, || {
                Diagnostic::error(Code::DanglingName, message)
                    .at(self.context.source, file.path.span, "")
                    .help(expected_input(node.node_type.value))
            });
            return None;
        }
        let path = file.file(self.context)?;
        if let Some(&known) = self.input_ids.get(&file.name) {
            let first = &self.program.inputs[known.0 as usize];
            if first.path != path {
                let message = format!("two inputs have the name {}", quoted(&file.name));
                self.context.sink.push(
                    Diagnostic::error(Code::DuplicateId, message)
                        .at(self.context.source, file.path.span, "again here")
                        .label(self.context.source, first.span, "first here"),
                );
            }
            return Some(known);
        }
        let id = InputId(id32(self.program.inputs.len()));
        self.input_ids.insert(file.name.clone(), id);
        self.program.inputs.push(Input {
            name: file.name.clone(),
            path,
            span: file.path.span,
        });
        Some(id)
    }

    fn inference(&mut self, node: &RawNode) -> Inference {
        let none = InferenceSettings::default();
        let own = node.settings.as_deref().unwrap_or(&none);
        let (flow, top) = (&self.defaults.flow, &self.defaults.top);
        if let (Some(own), Some(of_flow)) = (&own.model, &flow.model)
            && own.value != of_flow.value
        {
            self.context.sink.push_with(Severity::Warning, || {
                let message = format!(
                    "the node {} and the flow name different models",
                    quoted(&node.id.value)
                );
                Diagnostic::warning(Code::ModelsDiffer, message)
                    .at(self.context.source, own.span, "this one is used")
                    .label(self.context.source, of_flow.span, "this one is not")
            });
        }
        // A `greedy_sample` stage is a temperature of 0, unless the node itself says otherwise.
        let of_flow = match flow.greedy {
            Some(span) => SamplingSettings {
                temperature: Some(Spanned::new(0.0, span)),
                ..SamplingSettings::default()
            },
            None => flow.sampling.clone(),
        };
        let sampling = own
            .sampling
            .clone()
            .or(&of_flow)
            .or(&top.sampling)
            .resolve(flow.sampled);
        let max_tokens = own.max_tokens.or(flow.max_tokens).or(top.max_tokens);
        let stop = own
            .stop
            .clone()
            .or_else(|| flow.stop.clone())
            .or_else(|| top.stop.clone());
        Inference {
            model: own.model.clone().or_else(|| flow.model.clone()),
            prompt: self.prompt(own),
            sampling,
            max_tokens: max_tokens.map_or(MAX_TOKENS_DEFAULT, |n| n.value),
            max_tokens_span: max_tokens
                .map_or(Span::new(node.span.start, node.span.start), |n| n.span),
            stop: stop.unwrap_or_default(),
        }
    }

    fn prompt(&mut self, own: &InferenceSettings) -> Arc<Prompt> {
        if let Some(prompt) = own.prompt.as_ref().or(self.defaults.top.prompt.as_ref()) {
            return prompt.clone();
        }
        if let Some(guidance) = &own.guidance
            && let Some(prompt) = prompt::of_framework(self.context, guidance)
        {
            return prompt;
        }
        match &self.defaults.prompt {
            Some(prompt) => prompt.clone(),
            None => {
                if !self.context.sink.has_errors() {
                    let task_type = &self.defaults.task_type;
                    prompt::missing_prompt(self.context, task_type, task_type.span);
                }
                Arc::default()
            }
        }
    }

    /// What no node consumes is what the task leaves behind.
    fn outputs(&mut self) {
        for (artefact, id) in self.program.artefacts.iter().zip(0..) {
            if !artefact.consumers.is_empty() {
                continue;
            }
            if artefact.kind != ArtefactKind::Text {
                let node = &self.program.nodes[artefact.producer.0 as usize];
                self.unsupported.push(Unsupported {
                    what: format!("a task that ends in {}", kind_name(artefact.kind)),
                    span: node.id.span,
                    needed: true,
                });
            }
            let file = artefact
                .span
                .map(|span| Spanned::new(artefact.name.clone(), span));
            self.program.outputs.push(Output {
                artefact: ArtefactId(id),
                file,
            });
        }
    }
}
