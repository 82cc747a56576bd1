//! What a page plan costs, predicted from the bandwidths of its target.

use omex_plan::{Plan, WeightSource};

use crate::diagnostic::{Code, Diagnostic};

/// Most drafted tokens of a pass.
const DRAFTS_MAX: u32 = 15;
/// Tokens that take longer are worth a warning.
const SLOW_TOKEN_S: f64 = 2.0;

/// The predicted cost of passes: reads and computing overlap, so the slower of
/// the two counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Weights that passes use, embedding rows not counted.
    pub weights_bytes: u64,
    /// Of these, what stays in memory.
    pub resident_bytes: u64,
    /// Read for every token that is generated.
    pub token_bytes: u64,
    pub token_s: f64,
    /// What of it reads and computing take, which overlap.
    pub reading_s: f64,
    pub computing_s: f64,
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
        let weights_bytes = resident_bytes + token_bytes;
        let seconds = |bytes: u64, per_s: u64| bytes as f64 / per_s.max(1) as f64;
        let computing = seconds(weights_bytes, paged.memory_bytes_per_s);
        let reading = |bytes: u64| seconds(bytes, paged.storage_bytes_per_s);
        Some(Cost {
            weights_bytes,
            resident_bytes,
            token_bytes,
            token_s: reading(token_bytes).max(computing),
            reading_s: reading(token_bytes),
            computing_s: computing,
            chunk_bytes,
            chunk_s: reading(chunk_bytes).max(computing),
            chunk_tokens: plan.columns_max,
        })
    }

    /// Tokens that a pass can verify beside its own while it waits for reads:
    /// each is taken to compute for as long as a pass of one token, which is
    /// more than it does.
    pub fn drafts(&self) -> u32 {
        let spare = self.reading_s / self.computing_s.max(f64::MIN_POSITIVE);
        // Between 0 and the most that runtimes draft.
        spare.floor().min(f64::from(DRAFTS_MAX)) as u32
    }

    /// Passes over the model that a prompt of `tokens` tokens costs.
    pub fn prompt_reads(&self, tokens: u64) -> u64 {
        tokens.div_ceil(self.chunk_tokens.into()).max(1)
    }

    /// Seconds for a prompt and what is generated behind it.
    pub fn run_s(&self, prompt_tokens: u64, tokens: u64) -> f64 {
        let chunks = self.prompt_reads(prompt_tokens);
        (chunks - 1) as f64 * self.chunk_s + (1 + tokens) as f64 * self.token_s
    }
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
    let whole = crate::report::mib(memory + cost.token_bytes);
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
