//! What a page plan costs, predicted from the bandwidths of its target.

use std::ops::Range;

use omex_kernels::{KernelSpec, PANEL_ROWS};
use omex_plan::paging::PagePlan;
use omex_plan::{Plan, WeightSource};

use crate::diagnostic::{Code, Diagnostic};

/// Most drafted tokens of a pass.
const DRAFTS_MAX: u32 = 15;
/// What kernels reach of the multiply-adds that the cores are capable of.
const MACS_SHARE: f64 = 0.5;
/// Tokens that take longer are worth a warning.
const SLOW_TOKEN_S: f64 = 2.0;

/// The predicted cost of passes: reads and computing overlap, so the slower of
/// the two counts. The first column of a pass waits for weights to come from
/// memory, each further one for arithmetic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Weights that passes use, embedding rows not counted.
    pub weights_bytes: u64,
    /// Of these, what stays in memory.
    pub resident_bytes: u64,
    /// What comes and goes, and what of it is read compressed.
    pub streamed_bytes: u64,
    pub framed_bytes: u64,
    /// Read for every token that is generated.
    pub token_bytes: u64,
    pub token_s: f64,
    /// What of it reads and computing take, which overlap.
    pub reading_s: f64,
    pub computing_s: f64,
    /// What computing takes longer with one column more: of body and head, and of
    /// the body alone.
    pub column_s: f64,
    pub body_column_s: f64,
    /// Read for every chunk of a prompt but the last.
    pub chunk_bytes: u64,
    pub chunk_s: f64,
    /// Tokens of a chunk.
    pub chunk_tokens: u32,
}

impl Cost {
    /// `None` for plans whose weights all stay.
    pub fn of(plan: &Plan) -> Option<Cost> {
        let WeightSource::Paged(paged) = &plan.weights.source else {
            return None;
        };
        let stays = plan.weights.pages.iter().zip(&paged.resident);
        let stays = stays.filter(|(_, slot)| slot.is_some());
        let resident_bytes: u64 = stays.map(|(page, _)| page.bytes).sum();
        let token_bytes = paged.pass_bytes(plan);
        let chunk_bytes = paged.body_bytes(plan);
        let streamed = paged
            .reads
            .iter()
            .map(|read| PagePlan::read_bytes(plan, read));
        let streamed_bytes: u64 = streamed.sum();
        let weights_bytes = resident_bytes + streamed_bytes;
        let seconds = |bytes: u64, per_s: u64| bytes as f64 / per_s.max(1) as f64;
        let framed = paged.reads.iter().filter(|read| read.compressed);
        let framed: u64 = framed.map(|read| PagePlan::read_bytes(plan, read)).sum();
        let computing = seconds(weights_bytes, paged.memory_bytes_per_s)
            + seconds(framed, paged.zstd_bytes_per_s);
        let reading = |bytes: u64| seconds(bytes, paged.storage_bytes_per_s);
        let arithmetic = |macs: u64| seconds(macs, paged.macs_per_s) / MACS_SHARE;
        let body_column_s = arithmetic(macs(plan, 0..plan.body_phases as usize));
        let chunk_tokens = plan.columns_max;
        let further_s = f64::from(chunk_tokens - 1) * body_column_s;
        Some(Cost {
            weights_bytes,
            resident_bytes,
            streamed_bytes,
            framed_bytes: framed,
            token_bytes,
            token_s: reading(token_bytes).max(computing),
            reading_s: reading(token_bytes),
            computing_s: computing,
            column_s: arithmetic(macs(plan, 0..plan.phases.len())),
            body_column_s,
            chunk_bytes,
            chunk_s: reading(chunk_bytes).max(computing + further_s),
            chunk_tokens,
        })
    }

    /// Seconds of a pass with logits over `columns` tokens, each of which takes
    /// `column_s` beside the first.
    fn pass_s(&self, columns: u64, column_s: f64) -> f64 {
        let further_s = columns.saturating_sub(1) as f64 * column_s;
        self.reading_s.max(self.computing_s + further_s)
    }

    /// Tokens that a pass can verify beside one of each of `sequences` while it
    /// waits for reads.
    pub fn drafts(&self, sequences: u32) -> u32 {
        let column_s = self.column_s.max(f64::MIN_POSITIVE);
        let spare = (self.reading_s - self.computing_s) / column_s + 1.0;
        // Between 0 and the most that runtimes draft.
        (spare.floor() - f64::from(sequences)).clamp(0.0, f64::from(DRAFTS_MAX)) as u32
    }

    /// Passes over the model that a prompt of `tokens` tokens costs.
    pub fn prompt_reads(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.chunk_tokens.into()).max(1)
    }

    /// Seconds for a prompt and what is generated behind it, of each of
    /// `sequences` that take their passes together.
    pub fn run_s(&self, prompt_tokens: u64, tokens: u64, sequences: u32) -> f64 {
        let prompt_tokens = prompt_tokens * u64::from(sequences);
        let full = self.prompt_reads(prompt_tokens) - 1;
        let rest = prompt_tokens - full * u64::from(self.chunk_tokens);
        let prompts_s = full as f64 * self.chunk_s + self.pass_s(rest, self.body_column_s);
        let tokens_s = tokens as f64 * self.pass_s(sequences.into(), self.column_s);
        (prompts_s + tokens_s) / f64::from(sequences)
    }
}

/// Multiply-adds of one column of a plan's matmuls in these phases.
fn macs(plan: &Plan, phases: Range<usize>) -> u64 {
    let steps = plan.phases[phases]
        .iter()
        .flat_map(|phase| &plan.steps[phase.first_step as usize..][..phase.steps as usize]);
    let macs = steps.filter_map(|step| {
        let &KernelSpec::Matmul { rows, k, .. } = plan.kernels[step.kernel.index()].spec() else {
            return None;
        };
        let part = step.panels.map(|panels| panels.count * PANEL_ROWS);
        Some(u64::from(part.unwrap_or(rows).min(rows)) * u64::from(k))
    });
    macs.sum()
}

/// A warning in words where tokens will be slow, with a better choice.
pub fn slow_plan(plan: &Plan) -> Option<Diagnostic> {
    let cost = Cost::of(plan).filter(|cost| cost.token_s > SLOW_TOKEN_S)?;
    let WeightSource::Paged(paged) = &plan.weights.source else {
        return None;
    };
    let gb = |bytes: u64| bytes as f64 / 1e9;
    let memory = plan
        .memory
        .rss_peak_bytes()
        .max(plan.memory.charge_peak_bytes());
    let whole = crate::report::mib(memory + cost.streamed_bytes);
    Some(
        Diagnostic::warning(
            Code::SlowPlan,
            format!(
                "every token will take about {:.0} s: {:.1} GB of the model do not fit and are read for each, at {:.2} GB/s",
                cost.token_s,
                gb(cost.token_bytes),
                gb(paged.storage_bytes_per_s),
            ),
        )
        .help(format!("with {whole} nothing is read: --ram {}", whole.replace(' ', "")))
        .help("a model of coarser quantization or fewer parameters reads less; faster storage reads sooner"),
    )
}
