//! What a run does: nodes over artefacts, compiled from the container.

use crate::ids::{InputId, NodeId};
use crate::prompt::PromptTemplate;
use crate::wire::{Decode, Encode};

/// The task of a plan. Nodes are in topological order.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Program {
    pub task_id: String,
    pub inputs: Vec<Input>,
    pub nodes: Vec<Node>,
}

/// A text that is bound at run time; `path` is what the container names.
#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Input {
    pub name: String,
    pub path: String,
    /// Links may lead out of the folder that the path is looked for in.
    pub anywhere: bool,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub struct Node {
    pub id: String,
    pub depends_on: Vec<NodeId>,
    pub kind: NodeKind,
}

#[derive(Clone, Debug, PartialEq, Encode, Decode)]
pub enum NodeKind {
    /// Reads texts and cuts them into windows.
    Parse {
        inputs: Vec<InputId>,
        window: Window,
    },
    /// Generates for each window of the nodes it depends on.
    Infer {
        prompt: PromptTemplate,
        tokens_max: u32,
        sampling: Sampling,
        /// Texts that end a generation; they are not part of the result.
        stop: Vec<String>,
    },
    /// Joins the results of the nodes it depends on, in order.
    Merge {
        /// Files that receive the text, which streams to standard output as well.
        outputs: Vec<String>,
    },
}

/// Window of a text in tokens: `0 < stride <= size`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Window {
    pub size: u32,
    pub stride: u32,
}

/// How the next token is chosen. Greedy is `temperature == 0`.
///
/// Order of the steps: repeat penalty, top-k, top-p, min-p, temperature, draw.
#[derive(Clone, Copy, Debug, PartialEq, Encode, Decode)]
pub struct Sampling {
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 1 changes nothing.
    pub repeat_penalty: f32,
    /// Tokens that the repeat penalty looks back on.
    pub repeat_last: u32,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Sampling = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        repeat_last: 64,
        seed: 0,
    };
}
