//! `omex bench`: tokens per second, measured and printed as `llama-bench` does.

mod kernels;
mod output;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use omex_codegen::ceiling::Memory;
use omex_plan::Plan;
use omex_runtime::exec::Engine;
use omex_runtime::os::process;
use omex_runtime::{RunError, Session};

use super::evaluate::{Numbers, PlanArgs, PlanPath, Unopened, numbers};
use super::output::{Failure, Output};

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// GGUF files or plans
    #[arg(short, long, required = true, value_delimiter = ',')]
    model: Vec<PathBuf>,
    /// Tokens of the prompt tests; 0 is no test
    #[arg(short = 'p', long, default_value = "512", value_parser = numbers)]
    n_prompt: Vec<Numbers>,
    /// Tokens of the generation tests; 0 is no test
    #[arg(short = 'n', long, default_value = "128", value_parser = numbers)]
    n_gen: Vec<Numbers>,
    /// Prompt and generation timed together (-pg)
    #[arg(long = "pg", value_name = "P,N", value_parser = pair)]
    pairs: Vec<(u32, u32)>,
    /// Tokens in the context before each test
    #[arg(short = 'd', long, default_value = "0", value_parser = numbers)]
    n_depth: Vec<Numbers>,
    /// Runs of each test, after one that only warms up and generates one token at most
    #[arg(short, long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
    /// Threads; all cores without it
    #[arg(short, long, value_parser = numbers)]
    threads: Vec<Numbers>,
    /// Time the first run too
    #[arg(long)]
    no_warmup: bool,
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    output: Format,
    /// Time each kernel of the plan, beside what the machine's memory and arithmetic can do
    #[arg(long)]
    kernels: bool,
    /// Read memory after every generated token, and say what share of that speed weights were
    /// read at
    #[arg(long)]
    reads: bool,
    #[command(flatten)]
    plan: PlanArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Md,
    Csv,
    Json,
    Jsonl,
}

fn pair(text: &str) -> Result<(u32, u32), String> {
    match numbers(text)?.0[..] {
        [prompt, generation] => Ok((prompt, generation)),
        _ => Err("takes two numbers: prompt and generation".to_owned()),
    }
}

/// What one row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Test {
    n_prompt: u32,
    n_gen: u32,
    n_depth: u32,
}

impl Test {
    fn context(self) -> u32 {
        self.n_prompt
            .saturating_add(self.n_gen)
            .saturating_add(self.n_depth)
    }
}

/// One row of the result.
struct Row<'a> {
    plan: &'a Plan,
    model: &'a PathBuf,
    test: Test,
    threads: u32,
    test_time: u64,
    samples_ns: Vec<u64>,
    reads: Option<Reads>,
    rss_peak_bytes: u64,
}

pub fn bench(args: &BenchArgs, output: &Output) -> ExitCode {
    match run(args, output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Unopened::Exit(code)) => code,
        Err(Unopened::Failure(failure)) => output.fail(failure),
    }
}

fn run(args: &BenchArgs, speaker: &Output) -> Result<(), Unopened> {
    let flat =
        |lists: &[Numbers]| -> Vec<u32> { lists.iter().flat_map(|list| list.0.clone()).collect() };
    let mut tests = Vec::new();
    for &n_depth in &flat(&args.n_depth) {
        let test = |(n_prompt, n_gen)| Test {
            n_prompt,
            n_gen,
            n_depth,
        };
        let prompts = flat(&args.n_prompt).into_iter().map(|p| (p, 0));
        let generations = flat(&args.n_gen).into_iter().map(|n| (0, n));
        let all = prompts.chain(generations).chain(args.pairs.iter().copied());
        tests.extend(all.filter(|&pair| pair != (0, 0)).map(test));
    }
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    let threads = match flat(&args.threads) {
        list if list.is_empty() => vec![cores],
        list => list,
    };
    if threads.contains(&0) {
        let usage = RunError::Usage("a run has at least 1 thread".to_owned());
        return Err(usage.into());
    }
    let context = tests.iter().map(|t| t.context()).max().unwrap_or(0).max(64);
    let most = threads.iter().copied().max().unwrap_or(1);
    let mut printer = output::Printer::new(args.output, args.reads);
    for model in &args.model {
        let plan = args.plan.plan(model, context, most, speaker)?;
        if args.kernels {
            for &threads in &threads {
                let mut session = plan.load(Some(threads))?;
                kernels::print(&mut session, args.repetitions)?;
            }
            continue;
        }
        measure(args, &plan, model, &tests, &threads, &mut printer)?;
    }
    printer.finish()?;
    Ok(())
}

fn measure(
    args: &BenchArgs,
    path: &PlanPath,
    model: &PathBuf,
    tests: &[Test],
    threads: &[u32],
    printer: &mut output::Printer,
) -> Result<(), Failure> {
    for &threads in threads {
        let mut session = path.load(Some(threads))?;
        let shared = session.engine().shared_plan();
        let plan = shared.plan();
        for &test in tests {
            if test.context() > plan.model.context {
                return Err(RunError::Usage(format!(
                    "the test needs {} positions, the plan has {}",
                    test.context(),
                    plan.model.context
                ))
                .into());
            }
            let test_time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |t| t.as_secs());
            let generates = test.n_prompt == 0 && test.n_gen > 0;
            let mut reads = (args.reads && generates).then(|| Reads::new(threads));
            let samples_ns = samples(&mut session, test, args, &mut reads)?;
            printer.row(&Row {
                plan,
                model,
                test,
                threads,
                test_time,
                samples_ns,
                reads,
                rss_peak_bytes: process::rss_peak_bytes(),
            })?;
        }
    }
    Ok(())
}

/// Random tokens of a fixed sequence (xorshift64*, Vigna 2016).
struct Tokens {
    state: u64,
    vocabulary: u32,
}

impl Tokens {
    fn new(vocabulary: u32) -> Tokens {
        Tokens {
            state: 0x9E37_79B9_7F4A_7C15,
            vocabulary,
        }
    }

    fn next(&mut self) -> u32 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let high = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (high % u64::from(self.vocabulary)) as u32
    }
}

/// Reads of memory between tokens: what others leave of its speed changes from moment to
/// moment.
struct Reads {
    memory: Memory,
    threads: u32,
    /// With which reading is fastest.
    prefetch_pages: u32,
    seconds: f64,
    bytes: u64,
    /// What [`Reads::measure`] took, which no test's time contains.
    spent: Duration,
}

impl Reads {
    fn new(threads: u32) -> Reads {
        let memory = Memory::new();
        let (_, prefetch_pages) = memory.bytes_per_second(threads);
        Reads {
            memory,
            threads,
            prefetch_pages,
            seconds: 0.0,
            bytes: 0,
            spent: Duration::ZERO,
        }
    }

    fn measure(&mut self) {
        let began = Instant::now();
        let (seconds, bytes) = self.memory.read(self.threads, self.prefetch_pages);
        self.seconds += seconds;
        self.bytes += bytes as u64;
        self.spent += began.elapsed();
    }

    fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds
    }
}

fn samples(
    session: &mut Session,
    test: Test,
    args: &BenchArgs,
    reads: &mut Option<Reads>,
) -> Result<Vec<u64>, RunError> {
    let tokenizer = session.tokenizer();
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
    let engine = session.engine();
    let mut tokens = Tokens::new(engine.plan().model.vocabulary);
    let mut pass = Vec::with_capacity(engine.plan().columns_max as usize);
    if !args.no_warmup {
        let warm_up = Test {
            n_gen: test.n_gen.min(1),
            n_depth: 0,
            ..test
        };
        one(engine, warm_up, bos, &mut tokens, &mut pass, &mut None)?;
    }
    if test.n_depth > 0 {
        prompt(engine, 0, test.n_depth, bos, &mut tokens, &mut pass)?;
    }
    (0..args.repetitions)
        .map(|_| {
            let spent = |reads: &Option<Reads>| reads.as_ref().map_or(Duration::ZERO, |r| r.spent);
            let (began, before) = (Instant::now(), spent(reads));
            one(engine, test, bos, &mut tokens, &mut pass, reads)?;
            let elapsed = began.elapsed() - (spent(reads) - before);
            Ok(elapsed.as_nanos() as u64)
        })
        .collect()
}

fn one(
    engine: &mut Engine,
    test: Test,
    bos: Option<u32>,
    tokens: &mut Tokens,
    pass: &mut Vec<u32>,
    reads: &mut Option<Reads>,
) -> Result<(), RunError> {
    let start = test.n_depth;
    if test.n_prompt > 0 {
        prompt(engine, start, test.n_prompt, bos, tokens, pass)?;
    }
    let mut token = bos.unwrap_or_else(|| tokens.next());
    for position in start + test.n_prompt..test.context() {
        engine.forward(&[token], position)?;
        engine.logits(0)?;
        token = tokens.next();
        if let Some(reads) = reads {
            reads.measure();
        }
    }
    Ok(())
}

/// Evaluates `count` random tokens and the last one's logits.
fn prompt(
    engine: &mut Engine,
    start: u32,
    count: u32,
    bos: Option<u32>,
    tokens: &mut Tokens,
    pass: &mut Vec<u32>,
) -> Result<(), RunError> {
    let columns_max = engine.plan().columns_max;
    let mut done = 0;
    while done < count {
        let columns = columns_max.min(count - done);
        pass.clear();
        pass.extend((0..columns).map(|_| tokens.next()));
        if let (Some(bos), 0) = (bos, done) {
            pass[0] = bos;
        }
        engine.forward(pass, start + done)?;
        done += columns;
        if done == count {
            engine.logits(columns - 1)?;
        }
    }
    Ok(())
}
