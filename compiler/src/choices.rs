//! The sizes that a plan is built for: context, prefill chunk, threads, budget.

use omex_kernels::spec::{CONTEXT_MAX, KvFormat};
use omex_plan::task::{Node, NodeKind, Program};
use omex_plan::{NodeId, SEQUENCES_MAX};

use crate::container::{RamLimit, RamOrigin, Task};
use crate::diagnostic::{Code, Diagnostic};

/// Positions of a task that states no context and reads inputs whole.
const CONTEXT_DEFAULT: u32 = 4096;
/// Prefill chunks that are tried where none is asked for, largest first.
const COLUMNS: [u32; 10] = [512, 256, 128, 64, 32, 16, 8, 4, 2, 1];
/// Windows at a time that are tried where none are asked for, most first: with
/// more of them, passes cost about as much more as they compute more.
const SEQUENCES: [u32; 4] = [8, 4, 2, 1];
/// Threads that every plan admits, so that results can be compared on any machine.
const THREADS_MIN: u32 = 3;
/// Elements of a head that share a scale in an int8 cache.
const KV_BLOCK: u32 = 32;
/// Positions of a KV ring are a multiple of this.
const RING_MULTIPLE: u32 = omex_kernels::spec::KV_GROUP;

/// Positions of the KV ring of a layer for a context and passes of at most
/// `columns` tokens, which are stored before the first of them is attended: all
/// of them, or what the window of the first and the others need.
pub fn ring(context: u32, window: Option<u32>, columns: u32) -> u32 {
    let all = context.next_multiple_of(RING_MULTIPLE);
    let Some(window) = window else {
        return all;
    };
    // A window below a group of slots would let a pass meet itself.
    let needed = u64::from(window.max(RING_MULTIPLE)) + u64::from(columns) - 1;
    let ring = needed.next_multiple_of(u64::from(RING_MULTIPLE));
    u32::try_from(ring).map_or(all, |ring| ring.min(all))
}

/// Checks that heads of `head_len` elements can be kept in `format`.
///
/// # Errors
///
/// Heads of which int8 blocks are no whole part.
pub fn check_cache(format: KvFormat, head_len: u32) -> Result<(), Diagnostic> {
    match format {
        KvFormat::Q8 if !head_len.is_multiple_of(KV_BLOCK) => Err(Diagnostic::error(
            Code::ModelUnsupported,
            format!(
                "keys and values are kept in q8 by blocks of {KV_BLOCK} elements, and the model's heads have {head_len}"
            ),
        )
        .help("leave out --kv q8")),
        KvFormat::F16 | KvFormat::Q8 => Ok(()),
    }
}

/// The number of threads that a plan admits.
pub fn threads_max(cores: u32, asked: Option<u32>) -> u32 {
    asked.unwrap_or(cores.max(THREADS_MIN)).max(1)
}

/// Prefill chunks to try, the best first.
pub fn columns(context: u32, asked: Option<u32>) -> Vec<u32> {
    match asked {
        Some(columns) => vec![columns.clamp(1, context)],
        None => {
            let fitting = COLUMNS.into_iter().filter(|&c| c <= context);
            fitting.collect()
        }
    }
}

/// Prefill chunks of plans that read weights in every pass: a longer chunk
/// reads them less often.
pub fn paged_columns(context: u32, asked: Option<u32>) -> Vec<u32> {
    let mut columns = columns(context, asked);
    if asked.is_none() {
        let longer = [4096, 2048, 1024].into_iter().filter(|&c| c <= context);
        columns.splice(0..0, longer);
    }
    columns
}

/// Numbers of windows to try that go through each layer together, the most
/// first. Only texts that are cut have many.
pub fn sequences(program: &Program, asked: Option<u32>) -> Vec<u32> {
    let is_cut = |id: &NodeId| {
        let kind = &program.nodes[id.index()].kind;
        matches!(kind, NodeKind::Parse { window, .. } if window.size < u32::MAX)
    };
    let infers = |node: &&Node| matches!(node.kind, NodeKind::Infer { .. });
    let mut inferring = program.nodes.iter().filter(infers);
    match asked {
        Some(sequences) => vec![sequences.clamp(1, SEQUENCES_MAX)],
        None if inferring.any(|node| node.depends_on.iter().any(is_cut)) => SEQUENCES.to_vec(),
        None => vec![1],
    }
}

/// Prompt tokens and generated tokens of the longest generation of each node.
pub fn runs(program: &Program, context: u32) -> Vec<(u64, u64)> {
    let needs = needs(program);
    let tokens = program.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::Infer { tokens_max, .. } => Some(u64::from(*tokens_max)),
        NodeKind::Parse { .. } | NodeKind::Merge { .. } => None,
    });
    let runs = needs.iter().zip(tokens).map(|(need, tokens)| {
        let most = need.most.unwrap_or(u64::MAX).min(context.into());
        (most.saturating_sub(tokens).max(1), tokens)
    });
    runs.collect()
}

/// What a generation needs of the context: tokens that are certain, and an
/// upper bound where the input is cut into windows.
struct Need {
    node: String,
    least: u64,
    most: Option<u64>,
}

fn needs(program: &Program) -> Vec<Need> {
    let infer = program.nodes.iter().filter_map(|node| match &node.kind {
        NodeKind::Infer {
            prompt, tokens_max, ..
        } => Some((node, prompt, tokens_max)),
        NodeKind::Parse { .. } | NodeKind::Merge { .. } => None,
    });
    infer
        .map(|(node, prompt, tokens_max)| {
            let fixed = prompt.prefix_tokens.len() + prompt.suffix_tokens.len();
            // A byte gives at most one token, and a text a leading space.
            let text = prompt.prefix_text.len() + prompt.suffix_text.len() + 1;
            let tokens_max = u64::from(*tokens_max);
            let windows = node
                .depends_on
                .iter()
                .map(|id| match &program.nodes[id.index()].kind {
                    NodeKind::Parse { window, .. } if window.size < u32::MAX => {
                        Some(u64::from(window.size))
                    }
                    NodeKind::Parse { .. } | NodeKind::Infer { .. } | NodeKind::Merge { .. } => {
                        None
                    }
                });
            let window: Option<Vec<u64>> = windows.collect();
            let window = window.map(|w| w.into_iter().max().unwrap_or(0));
            Need {
                node: node.id.clone(),
                least: fixed as u64 + window.unwrap_or(0) + tokens_max + 1,
                most: window.map(|w| (fixed + text) as u64 + w + tokens_max),
            }
        })
        .collect()
}

/// The shortest context that the program's prompts and generations fit, as far
/// as inputs are cut to windows.
pub fn context_min(program: &Program) -> u64 {
    let needs = needs(program);
    needs.iter().map(|n| n.least).max().unwrap_or(1)
}

/// The number of positions that the KV cache holds: what is asked for, else
/// what the windows need, else the model's, up to a default.
///
/// # Errors
///
/// A context above the model's or [`CONTEXT_MAX`], or too short for a prompt, a window and the
/// tokens to generate.
pub fn context(
    task: &Task,
    program: &Program,
    model_context: u32,
    asked: Option<u32>,
) -> Result<u32, Diagnostic> {
    let stated = task.model.context_tokens.as_ref();
    let wanted = asked.or(stated.map(|c| c.value));
    // A caret only where the container's own number is at fault.
    let place = |diagnostic: Diagnostic| match (asked, stated) {
        (None, Some(stated)) => diagnostic.at(&task.source, stated.span, ""),
        _ => diagnostic,
    };
    if let Some(wanted) = wanted
        && wanted > model_context
    {
        return Err(place(Diagnostic::error(
            Code::ContextTooLong,
            format!("a context of {wanted} tokens is asked for; the model was trained for {model_context}"),
        ))
        .help(format!("ask for at most {model_context}")));
    }
    if let Some(wanted) = wanted
        && wanted > CONTEXT_MAX
    {
        return Err(place(Diagnostic::error(
            Code::ContextTooLong,
            format!("a context of {wanted} tokens is asked for; plans have at most {CONTEXT_MAX}"),
        )));
    }
    let needs = needs(program);
    let context = wanted.unwrap_or_else(|| {
        let windows: Option<Vec<u64>> = needs.iter().map(|n| n.most).collect();
        let least = needs.iter().map(|n| n.least).max().unwrap_or(0);
        let most = windows.and_then(|w| w.into_iter().max());
        let most = most.unwrap_or(least.max(u64::from(CONTEXT_DEFAULT)));
        let rounded = most.next_multiple_of(u64::from(RING_MULTIPLE));
        let most = model_context.min(CONTEXT_MAX);
        u32::try_from(rounded).map_or(most, |c| c.min(most))
    });
    match needs.iter().find(|n| n.least > u64::from(context)) {
        None => Ok(context),
        Some(need) => Err(place(Diagnostic::error(
            Code::PromptTooLong,
            format!(
                "node `{}` needs at least {} tokens of context: prompt, window and tokens to generate; there are {context}",
                need.node, need.least
            ),
        ))
        .help("shorten the window, generate fewer tokens, or raise the context")),
    }
}

/// The RAM budget, and a finding when the limits that people stated differ.
pub fn budget(task: &Task, more: &[RamLimit]) -> (Option<RamLimit>, Option<Diagnostic>) {
    let least = |origin: RamOrigin| {
        let limits = more.iter().filter(|l| l.origin == origin);
        limits.map(|l| l.bytes).min()
    };
    task.ram_budget(least(RamOrigin::Flag), least(RamOrigin::Target))
}

/// Where the container states a limit.
pub fn span(limit: &RamLimit) -> Option<crate::diagnostic::Span> {
    match limit.origin {
        RamOrigin::ContextMemoryLimit(span) | RamOrigin::MemoryProfile(span) => Some(span),
        RamOrigin::Flag | RamOrigin::Target => None,
    }
}

#[cfg(test)]
mod tests {
    use super::ring;
    use omex_kernels::spec::kv_groups;

    #[test]
    fn rings_hold_a_window_and_a_pass() {
        assert_eq!(ring(100, None, 7), 112);
        assert_eq!(ring(100, Some(512), 64), 112);
        assert_eq!(ring(4096, Some(512), 1), 512);
        assert_eq!(ring(4096, Some(512), 2), 528);
        assert_eq!(ring(4096, Some(u32::MAX), 512), 4096);
        for window in 1..40 {
            for columns in 1..70 {
                let ring = ring(1 << 20, Some(window), columns);
                assert!(ring >= window + columns - 1 && ring / 16 >= kv_groups(columns));
            }
        }
    }
}
