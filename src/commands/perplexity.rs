//! `omex perplexity`: how well a model predicts a text, as `llama-perplexity` measures it.
//!
//! The text's tokens are cut into chunks of the context's length, each chunk is evaluated
//! alone, and its second half is scored, so that every scored token has at least half a
//! context before it.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_runtime::tokenizer::{Scratch, SpecialText};
use omex_runtime::{RunError, Session};

use super::evaluate::{PlanArgs, Unopened};
use super::output::{Output, Progress};

#[derive(Debug, Args)]
pub struct PerplexityArgs {
    /// A GGUF file or a plan
    #[arg(short, long)]
    model: PathBuf,
    /// The text
    #[arg(short, long)]
    file: PathBuf,
    /// Tokens of a chunk
    #[arg(short, long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(4..))]
    ctx_size: u32,
    /// Chunks to evaluate; all of the text's without it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Threads; all cores, or the plan's most, without it
    #[arg(short, long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Print one JSON object instead of the text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    plan: PlanArgs,
}

pub fn perplexity(args: &PerplexityArgs, output: &Output) -> ExitCode {
    match run(args, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Unopened::Exit(code)) => code,
        Err(Unopened::Failure(failure)) => output.fail(failure),
    }
}

fn run(args: &PerplexityArgs, output: &Output) -> Result<(), Unopened> {
    let mut text = std::fs::read(&args.file).map_err(|e| {
        let message = format!("the text cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(args.file.to_string_lossy(), None)
    })?;
    // llama-perplexity leaves out the newline that ends the file.
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = args.threads.unwrap_or(cores);
    let plan = args
        .plan
        .plan(&args.model, args.ctx_size, threads, output)?;
    let mut session = plan.load(args.threads)?;
    let context = args.ctx_size;
    let available = session.plan().model.context;
    if context > available {
        let usage = format!("a chunk of {context} tokens, but the plan has {available} positions");
        return Err(RunError::Usage(usage).into());
    }
    let tokens = tokenize(&session, &text);
    let chunks_max = tokens.len() as u64 / u64::from(context);
    if chunks_max < 2 {
        let usage = format!(
            "the text has {} tokens; chunks of {context} need at least {}",
            tokens.len(),
            2 * u64::from(context)
        );
        return Err(RunError::Usage(usage).into());
    }
    let chunks = args
        .chunks
        .map_or(chunks_max, |n| u64::from(n).min(chunks_max));
    if !args.json {
        crate::tell!("{chunks} chunks of {context} tokens");
    }
    let began = Instant::now();
    let mut scores = Scores::default();
    let progress = Progress::new();
    let all = tokens.chunks_exact(context as usize);
    for (number, chunk) in (1..=chunks).zip(all) {
        score(&mut session, chunk, &mut scores)?;
        if args.json {
            progress.show(|| format!("{number} of {chunks} chunks"));
        } else {
            let mut stdout = std::io::stdout().lock();
            write!(stdout, "[{number}]{:.4},", scores.perplexity().0)?;
            stdout.flush()?;
        }
    }
    progress.clear();
    let (perplexity, error) = scores.perplexity();
    let mut stdout = std::io::stdout().lock();
    if args.json {
        let object = serde_json::json!({
            "schema_version": 1,
            "perplexity": perplexity,
            "error": error,
            "chunks": chunks,
            "context": context,
            "tokens_scored": scores.count,
            "seconds": began.elapsed().as_secs_f64(),
        });
        writeln!(stdout, "{object}")?;
    } else {
        writeln!(
            stdout,
            "\nFinal estimate: PPL = {perplexity:.4} +/- {error:.5}"
        )?;
    }
    Ok(())
}

/// Special-token text is plain text here; BOS comes first where the model wants it.
fn tokenize(session: &Session, text: &[u8]) -> Vec<u32> {
    let tokenizer = session.tokenizer();
    let mut tokens = Vec::new();
    tokens.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
    tokenizer.encode(text, SpecialText::Literal, &mut Scratch::new(), &mut tokens);
    tokens
}

/// Sums over the scored tokens.
#[derive(Debug, Default)]
struct Scores {
    count: u64,
    /// Negative log likelihoods, and their squares.
    nll: f64,
    nll_squares: f64,
}

impl Scores {
    #[expect(
        clippy::disallowed_methods,
        reason = "a measurement of results, not part of them"
    )]
    fn add(&mut self, logits: &[f32], token: u32) {
        let highest = logits
            .iter()
            .copied()
            .fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let sum: f64 = logits
            .iter()
            .map(|&logit| f64::from(logit - highest).exp())
            .sum();
        let nll = sum.ln() - f64::from(logits[token as usize] - highest);
        self.count += 1;
        self.nll += nll;
        self.nll_squares += nll * nll;
    }

    /// exp of the mean, and the error that the standard error of the mean makes of it.
    #[expect(
        clippy::disallowed_methods,
        reason = "a measurement of results, not part of them"
    )]
    fn perplexity(&self) -> (f64, f64) {
        let count = self.count as f64;
        let mean = self.nll / count;
        let variance = self.nll_squares / count - mean * mean;
        let error = if variance > 0.0 && self.count > 1 {
            (variance / (count - 1.0)).sqrt()
        } else {
            0.0
        };
        (mean.exp(), error * mean.exp())
    }
}

/// Evaluates one chunk and scores the tokens of its second half.
fn score(session: &mut Session, chunk: &[u32], scores: &mut Scores) -> Result<(), RunError> {
    let tokenizer = session.tokenizer();
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let engine = session.engine();
    let columns_max = engine.plan().columns_max as usize;
    let first_scored = chunk.len() / 2;
    let mut input = chunk.to_vec();
    if let Some(bos) = bos {
        input[0] = bos;
    }
    for (index, pass) in input.chunks(columns_max).enumerate() {
        let start = index * columns_max;
        engine.forward(pass, start as u32)?;
        for column in 0..pass.len() {
            let position = start + column;
            if position >= first_scored && position + 1 < chunk.len() {
                let logits = engine.logits(column as u32)?;
                scores.add(logits, chunk[position + 1]);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::Scores;

    #[test]
    fn uniform_predictions_have_the_perplexity_of_the_vocabulary() {
        let mut scores = Scores::default();
        for token in 0..8 {
            scores.add(&[3.25; 8], token);
        }
        let (perplexity, error) = scores.perplexity();
        assert!((perplexity - 8.0).abs() < 1e-9, "{perplexity}");
        assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn the_error_grows_with_the_spread() {
        let mut scores = Scores::default();
        // Likelihoods of 1/2 and 1/8: the mean of the logs is that of 1/4.
        let half = [0.0, 0.0];
        let eighth = [0.0; 8];
        for _ in 0..50 {
            scores.add(&half, 0);
            scores.add(&eighth, 0);
        }
        let (perplexity, error) = scores.perplexity();
        assert!((perplexity - 4.0).abs() < 1e-9, "{perplexity}");
        // The logs lie ln 2 from their mean, 100 of them.
        let expected = 4.0 * std::f64::consts::LN_2 / 99f64.sqrt();
        assert!((error - expected).abs() < 1e-9, "{error}");
    }
}
