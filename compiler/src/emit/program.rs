//! The plan's program: the container's nodes as the runtime executes them.

use std::collections::BTreeMap;

use omex_plan::prompt::PromptTemplate;
use omex_plan::task::{Input, Node, NodeKind, Program, Sampling, Window};
use omex_plan::{InputId, NodeId};

use crate::container::{self, Action, ArtefactKind, InputPath, MergeMode, NodeInput, Task};
use crate::diagnostic::{Code, Diagnostic, Span};

/// A window that takes any input whole.
const WHOLE: Window = Window {
    size: u32::MAX,
    stride: u32::MAX,
};

/// # Errors
///
/// Every node that asks for something that the runtime cannot do.
pub fn program(
    task: &Task,
    prompts: &BTreeMap<container::NodeId, PromptTemplate>,
) -> Result<Program, Vec<Diagnostic>> {
    let mut builder = Builder {
        task,
        prompts,
        nodes: Vec::new(),
        results: BTreeMap::new(),
        faults: Vec::new(),
    };
    for (id, node) in (0..).map(container::NodeId).zip(&task.nodes) {
        builder.node(id, node);
    }
    if !builder.faults.is_empty() {
        return Err(builder.faults);
    }
    let inputs = task.inputs.iter().map(|input| Input {
        name: input.name.clone(),
        path: match &input.path {
            InputPath::Stdin => "-".to_owned(),
            InputPath::Path(path) | InputPath::Glob(path) => path.clone(),
        },
        anywhere: task.any_path,
    });
    Ok(Program {
        task_id: task.id.value.clone(),
        inputs: inputs.collect(),
        nodes: builder.nodes,
    })
}

struct Builder<'a> {
    task: &'a Task,
    prompts: &'a BTreeMap<container::NodeId, PromptTemplate>,
    nodes: Vec<Node>,
    /// The plan's node of each node of the task.
    results: BTreeMap<container::NodeId, NodeId>,
    faults: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn push(&mut self, id: String, depends_on: Vec<NodeId>, kind: NodeKind) -> NodeId {
        self.nodes.push(Node {
            id,
            depends_on,
            kind,
        });
        NodeId::from(self.nodes.len() - 1)
    }

    fn unsupported(&mut self, span: Span, what: &str) {
        self.faults
            .push(Diagnostic::error(Code::NotSupported, what).at(&self.task.source, span, ""));
    }

    fn node(&mut self, id: container::NodeId, node: &container::Node) {
        let result = match &node.action {
            Action::Chunk { window } => self.parse(node, window.as_ref().map(|w| w.value)),
            Action::Infer(inference) | Action::SemanticAnalysis(inference) => {
                self.infer(id, node, inference)
            }
            Action::Merge { mode } => match mode.value {
                MergeMode::Concat => self.merge(node),
                MergeMode::Overlap | MergeMode::Last | MergeMode::Reduce => {
                    self.unsupported(mode.span, "this way of merging is not built yet");
                    None
                }
            },
            Action::ParseCodebase | Action::SummaryGeneration(_) => {
                self.unsupported(node.span, "nodes of this type are not built yet");
                None
            }
        };
        if let Some(result) = result {
            self.results.insert(id, result);
        }
    }

    fn parse(
        &mut self,
        node: &container::Node,
        window: Option<container::Window>,
    ) -> Option<NodeId> {
        let mut inputs = Vec::new();
        for input in &node.inputs {
            match input {
                NodeInput::Input(id) => inputs.push(InputId(id.0)),
                NodeInput::Artefact(_) => {
                    self.unsupported(
                        node.span,
                        "windows over the result of another node are not built yet",
                    );
                    return None;
                }
            }
        }
        let window = window.map_or(WHOLE, |w| Window {
            size: w.size_tokens,
            stride: w.stride_tokens,
        });
        let kind = NodeKind::Parse { inputs, window };
        Some(self.push(node.id.value.clone(), Vec::new(), kind))
    }

    fn infer(
        &mut self,
        id: container::NodeId,
        node: &container::Node,
        inference: &container::Inference,
    ) -> Option<NodeId> {
        let depends_on = self.windows(node)?;
        let prompt = self.prompts.get(&id).cloned();
        let prompt = prompt.unwrap_or_else(|| panic!("node {} has no prompt", node.id.value));
        let s = &inference.sampling;
        let kind = NodeKind::Infer {
            prompt,
            tokens_max: inference.max_tokens,
            sampling: Sampling {
                temperature: s.temperature,
                top_k: s.top_k,
                top_p: s.top_p,
                min_p: s.min_p,
                repeat_penalty: s.repeat_penalty,
                repeat_last: s.repeat_last_n,
                seed: s.seed,
            },
            stop: inference.stop.iter().map(|s| s.value.clone()).collect(),
        };
        let result = self.push(node.id.value.clone(), depends_on, kind);
        // Generations that no merge takes are printed as text.
        if self.task.artefact(node.output).consumers.is_empty() {
            let outputs = self.files(node);
            let name = format!("{}.text", node.id.value);
            self.push(name, vec![result], NodeKind::Merge { outputs });
        }
        Some(result)
    }

    /// The nodes whose windows or texts an inferring node takes. Inputs that it names
    /// directly are read whole by a node of their own.
    fn windows(&mut self, node: &container::Node) -> Option<Vec<NodeId>> {
        let mut depends_on = Vec::new();
        for (i, input) in node.inputs.iter().enumerate() {
            match *input {
                NodeInput::Input(id) => {
                    let kind = NodeKind::Parse {
                        inputs: vec![InputId(id.0)],
                        window: WHOLE,
                    };
                    let name = format!("{}.input{i}", node.id.value);
                    depends_on.push(self.push(name, Vec::new(), kind));
                }
                NodeInput::Artefact(id) => self.depend(&mut depends_on, id),
            }
        }
        Some(depends_on)
    }

    /// Adds the producer of an artefact, which may be named twice.
    fn depend(&self, on: &mut Vec<NodeId>, artefact: container::ArtefactId) {
        let producer = self.task.artefact(artefact).producer;
        let known = self.results.get(&producer);
        if let Some(&known) = known.filter(|known| !on.contains(known)) {
            on.push(known);
        }
    }

    fn merge(&mut self, node: &container::Node) -> Option<NodeId> {
        let mut depends_on = Vec::new();
        for input in &node.inputs {
            let NodeInput::Artefact(id) = *input else {
                self.unsupported(node.span, "merging an input is not built yet");
                return None;
            };
            let artefact = self.task.artefact(id);
            match artefact.kind {
                ArtefactKind::Generations => {
                    self.depend(&mut depends_on, id);
                }
                ArtefactKind::Chunks | ArtefactKind::Text => {
                    self.unsupported(
                        node.span,
                        "merging anything but generations is not built yet",
                    );
                    return None;
                }
            }
        }
        let outputs = self.files(node);
        Some(self.push(
            node.id.value.clone(),
            depends_on,
            NodeKind::Merge { outputs },
        ))
    }

    /// The file that a node names for its text, whether another node takes it or not;
    /// without one a text that no node takes goes to standard output.
    fn files(&self, node: &container::Node) -> Vec<String> {
        let artefact = self.task.artefact(node.output);
        let is_file = artefact.span.is_some() && artefact.name != "-";
        is_file.then(|| artefact.name.clone()).into_iter().collect()
    }
}
