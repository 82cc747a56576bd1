//! A task as text, for `--emit task` and for tests.

use std::fmt::{self, Display, Formatter};

use super::task::{
    Action, ArtefactKind, Inference, InputPath, MemoryLevel, MergeMode, NodeInput, Prompt,
    RamOrigin, Task, TaskType, Version,
};

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V0_1 => "0.1",
            Version::V0_2 => "0.2",
            Version::V0_3 => "0.3",
        })
    }
}

impl Display for TaskType {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TaskType::CodeGeneration => "code_generation",
            TaskType::CodeAnalysis => "code_analysis",
            TaskType::Summarization => "summarization",
            TaskType::QuestionAnswering => "question_answering",
            TaskType::Chat => "chat",
            TaskType::Completion => "completion",
            TaskType::Other(name) => name,
        })
    }
}

fn merge_name(mode: MergeMode) -> &'static str {
    match mode {
        MergeMode::Concat => "concat",
        MergeMode::Overlap => "overlap",
        MergeMode::Last => "last",
        MergeMode::Reduce => "reduce",
    }
}

fn kind_name(kind: ArtefactKind) -> &'static str {
    match kind {
        ArtefactKind::Chunks => "chunks",
        ArtefactKind::Generations => "generations",
        ArtefactKind::Text => "text",
    }
}

fn memory_name(memory: MemoryLevel) -> &'static str {
    match memory {
        MemoryLevel::Low => "low",
        MemoryLevel::Adaptive => "adaptive",
        MemoryLevel::High => "high",
    }
}

fn write_prompt(f: &mut Formatter<'_>, prompt: &Prompt) -> fmt::Result {
    if let Some(system) = &prompt.system {
        writeln!(f, "    system {system:?}")?;
    }
    let raw = if prompt.raw { " raw" } else { "" };
    writeln!(
        f,
        "    prompt{raw} {:?} .. {:?}",
        prompt.before, prompt.after
    )
}

fn write_inference(f: &mut Formatter<'_>, inference: &Inference) -> fmt::Result {
    match &inference.model {
        Some(model) => writeln!(f, "    model {}", model.value)?,
        None => writeln!(f, "    model default")?,
    }
    write_prompt(f, &inference.prompt)?;
    writeln!(f, "    max_tokens {}", inference.max_tokens)?;
    let s = &inference.sampling;
    if s.is_greedy() {
        write!(f, "    greedy")?;
    } else {
        write!(
            f,
            "    sample temperature {} top_k {} top_p {} min_p {} seed {}",
            s.temperature, s.top_k, s.top_p, s.min_p, s.seed
        )?;
    }
    if s.repeat_penalty != 1.0 {
        write!(
            f,
            " repeat_penalty {} over {}",
            s.repeat_penalty, s.repeat_last_n
        )?;
    }
    writeln!(f)?;
    for stop in &inference.stop {
        writeln!(f, "    stop {:?}", stop.value)?;
    }
    Ok(())
}

impl Display for Task {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "task {:?} version {} type {}",
            self.id.value, self.version, self.task_type.value
        )?;
        if let Some(device) = &self.device_profile {
            writeln!(f, "device {}", device.value)?;
        }
        for limit in &self.limits.ram {
            let origin = match limit.origin {
                RamOrigin::ContextMemoryLimit(_) => "context",
                RamOrigin::MemoryProfile(_) => "memory_profile",
                RamOrigin::Flag => "flag",
                RamOrigin::Target => "target",
            };
            writeln!(f, "ram {origin} {} bytes", limit.bytes)?;
        }
        if let Some(family) = &self.model.family {
            writeln!(f, "family {:?}", family.value)?;
        }
        if let Some(quantization) = &self.model.quantization {
            writeln!(f, "quantization {}", quantization.value)?;
        }
        if let Some(context) = &self.model.context_tokens {
            writeln!(f, "context {} tokens", context.value)?;
        }
        if let Some(date) = self.date {
            writeln!(f, "date {date}")?;
        }
        for input in &self.inputs {
            let (kind, path) = match &input.path {
                InputPath::Stdin => ("stdin", "-"),
                InputPath::Path(path) => ("file", path.as_str()),
                InputPath::Glob(pattern) => ("glob", pattern.as_str()),
            };
            writeln!(f, "input {:?} {kind} {path:?}", input.name)?;
        }
        for node in &self.nodes {
            let action = match &node.action {
                Action::Chunk { .. } => "token_chunk_parse",
                Action::Infer(_) => "inference_slices",
                Action::Merge { .. } => "output_merge_and_decode",
                Action::ParseCodebase => "parse_codebase",
                Action::SemanticAnalysis(_) => "semantic_analysis",
                Action::SummaryGeneration(_) => "summary_generation",
            };
            write!(f, "node {:?} {action}", node.id.value)?;
            for input in &node.inputs {
                match input {
                    NodeInput::Input(id) => write!(f, " <- file {:?}", self.input(*id).name)?,
                    NodeInput::Artefact(id) => write!(f, " <- {:?}", self.artefact(*id).name)?,
                }
            }
            let output = self.artefact(node.output);
            writeln!(f, " -> {} {:?}", kind_name(output.kind), output.name)?;
            if !node.depends_on.is_empty() {
                let names: Vec<&str> = node
                    .depends_on
                    .iter()
                    .map(|id| self.node(*id).id.value.as_str())
                    .collect();
                writeln!(f, "    after {names:?}")?;
            }
            if let Some(memory) = node.memory {
                writeln!(f, "    memory {}", memory_name(memory.value))?;
            }
            match &node.action {
                Action::Chunk {
                    window: Some(window),
                } => {
                    let window = window.value;
                    writeln!(
                        f,
                        "    window {} stride {}",
                        window.size_tokens, window.stride_tokens
                    )?;
                }
                Action::Chunk { window: None } | Action::ParseCodebase => {}
                Action::Merge { mode } => writeln!(f, "    merge {}", merge_name(mode.value))?,
                Action::Infer(inference)
                | Action::SemanticAnalysis(inference)
                | Action::SummaryGeneration(inference) => write_inference(f, inference)?,
            }
        }
        for output in &self.outputs {
            let name = &self.artefact(output.artefact).name;
            match &output.file {
                Some(file) => writeln!(f, "output {name:?} to stdout and file {:?}", file.value)?,
                None => writeln!(f, "output {name:?} to stdout")?,
            }
        }
        Ok(())
    }
}
