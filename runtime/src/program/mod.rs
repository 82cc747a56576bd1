//! Runs a plan's program: nodes over texts, with one engine.

mod draft;
mod flow;
mod generate;
mod history;
mod inputs;
mod lanes;
mod pattern;
mod stops;
mod text;
mod walk;

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Instant;

use omex_plan::session::{WHOLE, text_bytes};
use omex_plan::task::{NodeKind, Sampling, Window};
use omex_plan::{InputId, NodeId, Plan, WeightSource};

use crate::error::RunError;
use crate::events::{Event, Finish, Sink};
use crate::exec::{Engine, SessionMemory};
use crate::os::file::{AtomicFile, is_same, waiting_folder};
use crate::tokenizer::{Scratch, SpecialText, Tokenizer};

use flow::Flow;
pub use flow::WRITE_BUFFER_BYTES;
use generate::{Columns, Counts, Generator, LogitsFile, Receiver, Request};
pub use inputs::Bindings;
use inputs::{Source, replaces};
pub(crate) use lanes::LANE_BYTES;
use lanes::Lanes;
use text::Text;
pub use walk::WALK_BYTES;

/// Buffer of the logits file.
pub const LOGITS_BUFFER_BYTES: usize = 64 << 10;
/// Room for the longest stop text and token before they are held back.
pub const STOP_BUFFER_BYTES: usize = 4096;

/// Changes to the plan's sampling.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingChanges {
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last: Option<u32>,
    pub seed: Option<u64>,
}

impl SamplingChanges {
    fn apply(&self, planned: Sampling) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(planned.temperature),
            top_k: self.top_k.unwrap_or(planned.top_k),
            top_p: self.top_p.unwrap_or(planned.top_p),
            min_p: self.min_p.unwrap_or(planned.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(planned.repeat_penalty),
            repeat_last: self.repeat_last.unwrap_or(planned.repeat_last),
            seed: self.seed.unwrap_or(planned.seed),
        }
    }

    /// Errors: a value outside its range.
    fn check(&self) -> Result<(), RunError> {
        let range = |name: &str, value: Option<f32>, low: f32, high: f32| match value {
            Some(value) if !(low..=high).contains(&value) => Err(RunError::Usage(format!(
                "{name} is {value}, not between {low} and {high}"
            ))),
            Some(_) | None => Ok(()),
        };
        range("the temperature", self.temperature, 0.0, 1e6)?;
        range("top-p", self.top_p, 0.0, 1.0)?;
        range("min-p", self.min_p, 0.0, 1.0)?;
        range("the repeat penalty", self.repeat_penalty, 1e-6, 1e6)
    }
}

/// Generates until the model ends or the context is full.
pub const TO_THE_END: u32 = u32::MAX;

/// What one run does differently from its plan.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    pub bindings: Bindings,
    /// Evaluate texts as they are, without prompts.
    pub raw: bool,
    /// Tokens to generate per window; [`TO_THE_END`]: as many as the context holds behind
    /// the prompt.
    pub predict: Option<u32>,
    pub sampling: SamplingChanges,
    /// Tokens of a prefill pass, at most the plan's `columns_max`.
    pub prefill_chunk: Option<u32>,
    /// Generate one token a pass even where the plan has room to verify drafts.
    pub no_speculation: bool,
    /// Windows that passes take together, at most the plan's `sequences_max`.
    pub parallel: Option<u32>,
    /// Receives the logits of every evaluated position.
    pub dump_logits: Option<PathBuf>,
    /// Files that no output may replace, such as the plan.
    pub kept: Vec<PathBuf>,
    /// Where the task's outputs go; empty is the working directory.
    pub output_folder: PathBuf,
    /// Where texts wait for later nodes; empty is [`waiting_folder`].
    pub waiting_folder: PathBuf,
}

/// What a run was and how fast.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub prompt_tokens: u64,
    pub generated_tokens: u64,
    pub drafted_tokens: u64,
    pub accepted_tokens: u64,
    /// Evaluated in passes over prompts alone, which took `prefill_seconds`.
    pub prefill_tokens: u64,
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
    pub first_token_seconds: f64,
    pub result_id: [u8; 32],
}

/// Digest of everything that decides the result's bits.
struct ResultId(blake3::Hasher);

impl ResultId {
    fn new(plan: &Plan, options: &RunOptions) -> ResultId {
        let mut id = ResultId(blake3::Hasher::new());
        id.0.update(&plan.result_id);
        let s = &options.sampling;
        let bits = |value: Option<f32>| value.map(|v| v.to_bits() as u64);
        for choice in [
            Some(options.raw as u64),
            options.predict.map(u64::from),
            bits(s.temperature),
            s.top_k.map(u64::from),
            bits(s.top_p),
            bits(s.min_p),
            bits(s.repeat_penalty),
            s.repeat_last.map(u64::from),
            s.seed,
        ] {
            id.0.update(&[choice.is_some() as u8]);
            id.0.update(&choice.unwrap_or(0).to_le_bytes());
        }
        id
    }

    fn input(&mut self, digest: [u8; 32]) {
        self.0.update(&digest);
    }
}

struct Run<'a> {
    plan: &'a Plan,
    options: &'a RunOptions,
    generator: Generator<'a>,
    flow: Flow<'a>,
    /// Where the task's outputs go.
    outputs: Vec<PathBuf>,
    /// Text that is cut into windows; taken while a text is open.
    text: &'a mut [u8],
    lanes: Lanes<'a>,
    columns: Columns,
    result_id: ResultId,
}

/// Runs the program of `plan`, which is the engine's.
pub(crate) fn run(
    plan: &Plan,
    engine: &mut Engine,
    tokenizer: &Tokenizer<'_>,
    memory: &mut SessionMemory,
    options: &RunOptions,
    sink: &mut dyn Sink,
) -> Result<Outcome, RunError> {
    let started = Instant::now();
    options.sampling.check()?;
    options.bindings.check(&plan.program)?;
    let chunk = options.prefill_chunk.unwrap_or(plan.columns_max);
    if !(1..=plan.columns_max).contains(&chunk) {
        return Err(RunError::Usage(format!(
            "a prefill chunk of {chunk} tokens, but the plan has memory for 1 to {}",
            plan.columns_max
        )));
    }
    let parallel = options.parallel.unwrap_or(plan.sequences_max);
    if !(1..=plan.sequences_max).contains(&parallel) {
        return Err(RunError::Usage(format!(
            "{parallel} windows at a time, but the plan has memory for 1 to {}",
            plan.sequences_max
        )));
    }
    let outputs = plan.program.nodes.iter().flat_map(|node| match &node.kind {
        NodeKind::Merge { outputs } => outputs.as_slice(),
        NodeKind::Parse { .. } | NodeKind::Infer { .. } => &[],
    });
    let outputs: Vec<_> = outputs
        .map(|name| options.output_folder.join(name))
        .collect();
    for output in outputs.iter().chain(&options.dump_logits) {
        options.bindings.require_apart(&plan.program, output)?;
        if let Some(kept) = options.kept.iter().find(|kept| is_same(kept, output)) {
            return Err(replaces(output, &kept.to_string_lossy()));
        }
    }
    if let Some(logits) = &options.dump_logits
        && outputs.iter().any(|o| o == logits || is_same(o, logits))
    {
        return Err(replaces(logits, "output of the task"));
    }
    // A run of hours must not find at its end that an input is missing.
    for input in 0..plan.program.inputs.len() {
        options
            .bindings
            .sources(&plan.program, InputId::from(input))?;
    }
    let logits_file = match &options.dump_logits {
        None => None,
        Some(path) => {
            let file = AtomicFile::create(path);
            let file = file.map_err(RunError::io("create the logits file", path))?;
            Some(LogitsFile {
                path,
                file: BufWriter::with_capacity(LOGITS_BUFFER_BYTES, file),
            })
        }
    };
    let system_folder = waiting_folder();
    let waiting_folder = match options.waiting_folder.as_os_str().is_empty() {
        true => system_folder.as_path(),
        false => options.waiting_folder.as_path(),
    };
    let flow = Flow::new(&plan.program, &options.output_folder, waiting_folder, sink)?;
    let (text, history) = memory.split();
    // The logits file has those of the positions in order.
    let windows_max = match logits_file {
        Some(_) => 1,
        None => parallel as usize,
    };
    let mut run = Run {
        plan,
        options,
        generator: Generator {
            engine,
            tokenizer,
            chunk: chunk as usize,
            // Columns cost nothing where passes wait for pages.
            drafts: matches!(plan.weights.source, WeightSource::Paged(_))
                && !options.no_speculation
                && logits_file.is_none(),
            logits_file,
            counts: Counts::default(),
            started,
        },
        flow,
        outputs,
        text,
        lanes: Lanes::new(history, windows_max, plan.model.context as usize),
        columns: Columns::new(plan.columns_max as usize, windows_max),
        result_id: ResultId::new(plan, options),
    };
    for (index, node) in plan.program.nodes.iter().enumerate() {
        run.flow.event(&Event::NodeStart { node: &node.id })?;
        run.node(NodeId::from(index))?;
        run.flow.event(&Event::NodeEnd { node: &node.id })?;
    }
    if let Some(LogitsFile { path, file }) = run.generator.logits_file.take() {
        let file = file.into_inner().map_err(|e| e.into_error());
        file.and_then(AtomicFile::finish)
            .map_err(RunError::io("write the logits", path))?;
    }
    let counts = run.generator.counts;
    Ok(Outcome {
        prompt_tokens: counts.prompt_tokens,
        generated_tokens: counts.generated_tokens,
        drafted_tokens: counts.drafted_tokens,
        accepted_tokens: counts.accepted_tokens,
        prefill_tokens: counts.prefill_tokens,
        prefill_seconds: counts.prefill.as_secs_f64(),
        decode_seconds: counts.decode.as_secs_f64(),
        first_token_seconds: counts.first_token.unwrap_or_default().as_secs_f64(),
        result_id: *run.result_id.0.finalize().as_bytes(),
    })
}

impl Run<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), RunError> {
        let plan = self.plan;
        let node = &plan.program.nodes[id.index()];
        match &node.kind {
            NodeKind::Parse { .. } => {
                if self.flow.is_text_wanted(id) {
                    self.each_window(id, &mut |run, text| {
                        let scratch = Scratch::given(run.generator.engine.tokenizer_memory());
                        let cut = text.cut(run.generator.tokenizer, scratch, u32::MAX);
                        run.flow.write(id, &text.bytes()[..cut.bytes])?;
                        Ok(cut)
                    })?;
                }
                self.flow.complete(id)
            }
            NodeKind::Infer { .. } => {
                self.infer(id)?;
                self.flow.complete(id)
            }
            // Its text has passed through while its sources were written.
            NodeKind::Merge { .. } => Ok(()),
        }
    }

    /// Calls `take` with each window of a parse node; it says where it cut.
    fn each_window(
        &mut self,
        parse: NodeId,
        take: &mut dyn FnMut(&mut Self, &Text<'_>) -> Result<text::Cut, RunError>,
    ) -> Result<(), RunError> {
        let plan = self.plan;
        let NodeKind::Parse { inputs, window } = &plan.program.nodes[parse.index()].kind else {
            unreachable!("windows are cut by parse nodes")
        };
        let buffer = std::mem::take(&mut self.text);
        let mut texts = 0u64;
        for &input in inputs {
            let options = self.options;
            let mut sources = options.bindings.sources(&plan.program, input)?;
            while let Some(source) = sources.next()? {
                if let Source::Found(path) = source
                    && let Some(output) = self.outputs.iter().find(|o| is_same(o, path))
                {
                    let what = "input that a folder or pattern led to; give it another name, or \
                                the input a narrower pattern";
                    return Err(replaces(output, what));
                }
                let context = plan.model.context;
                let Some(mut text) = Text::open(source, *window, context, buffer)? else {
                    let (path, why) = match source {
                        Source::Found(path) => (path, "empty or not text"),
                        Source::Other(path) => (path, "a link or no file"),
                        Source::File(_) | Source::StandardInput | Source::Text(_) => {
                            unreachable!("what was named is never passed over")
                        }
                    };
                    let what = format!("{} is {why} and is passed over", path.display());
                    self.flow.event(&Event::Note { what: &what })?;
                    continue;
                };
                texts += 1;
                while text.fill()? {
                    let cut = take(self, &text)?;
                    text.advance(cut);
                }
                let digest = text.digest();
                self.result_id.input(digest);
            }
        }
        self.text = buffer;
        if texts == 0 && !inputs.is_empty() {
            return Err(RunError::Usage(format!(
                "none of the files of node {} is text",
                plan.program.nodes[parse.index()].id
            )));
        }
        Ok(())
    }

    fn infer(&mut self, id: NodeId) -> Result<(), RunError> {
        let plan = self.plan;
        let node = &plan.program.nodes[id.index()];
        let NodeKind::Infer {
            sampling,
            tokens_max,
            stop,
            ..
        } = &node.kind
        else {
            unreachable!("only inferences infer")
        };
        let sampling = self.options.sampling.apply(*sampling);
        let mut inference = Inference {
            node: id,
            tokens_max: self.options.predict.unwrap_or(*tokens_max),
            request: Request {
                stop,
                sampling,
                alone: false,
            },
        };
        let tokens_max = inference.room();
        if tokens_max >= plan.model.context {
            return Err(RunError::Context {
                prompt_tokens: 0,
                and_more: true,
                tokens_max: tokens_max.into(),
                context: plan.model.context.into(),
            });
        }
        self.lanes.reset();
        for &source in &node.depends_on {
            match &plan.program.nodes[source.index()].kind {
                NodeKind::Parse { .. } => self.each_window(source, &mut |run, text| {
                    run.infer_window(&mut inference, text)
                })?,
                NodeKind::Infer { .. } | NodeKind::Merge { .. } => {
                    let Some(mut items) = self.flow.items(id, source)? else {
                        continue;
                    };
                    let whole = Window {
                        size: WHOLE,
                        stride: WHOLE,
                    };
                    let room = text_bytes(whole, plan.model.context) as usize;
                    let buffer = std::mem::take(&mut self.text);
                    let name = &plan.program.nodes[source.index()].id;
                    let context = u64::from(plan.model.context);
                    let failed = |e: std::io::Error| match e.kind() {
                        std::io::ErrorKind::InvalidData => RunError::Context {
                            prompt_tokens: context,
                            and_more: true,
                            tokens_max: tokens_max.into(),
                            context,
                        },
                        _ => RunError::io("read a text back", Path::new(name))(e),
                    };
                    while let Some(len) = items.next(&mut buffer[..room]).map_err(failed)? {
                        let fits = self.render(id, &buffer[..len], tokens_max);
                        fits.map_err(|needed| self.too_long(needed, tokens_max))?;
                        self.start(&mut inference, name)?;
                    }
                    self.text = buffer;
                }
            }
        }
        while !self.lanes.is_empty() {
            self.step(&mut inference)?;
        }
        Ok(())
    }

    /// Starts the window that fits the context, and says where it ends. Only a
    /// window of a longer text is cut shorter.
    fn infer_window(
        &mut self,
        inference: &mut Inference<'_>,
        text: &Text<'_>,
    ) -> Result<text::Cut, RunError> {
        let generated_max = inference.room();
        let mut tokens_max = u32::MAX;
        loop {
            let tokenizer = self.generator.tokenizer;
            let scratch = Scratch::given(self.generator.engine.tokenizer_memory());
            let mut cut = text.cut(tokenizer, scratch, tokens_max);
            let must_be_whole = text.is_whole_wanted();
            if must_be_whole && !cut.is_last {
                cut.tokens = cut.tokens.max(self.plan.model.context);
                return Err(RunError::Context {
                    prompt_tokens: cut.tokens.into(),
                    and_more: true,
                    tokens_max: generated_max.into(),
                    context: self.plan.model.context.into(),
                });
            }
            let window = &text.bytes()[..cut.bytes];
            match self.render(inference.node, window, generated_max) {
                Ok(()) => {
                    let source = text.path().to_string_lossy();
                    self.start(inference, &source)?;
                    return Ok(cut);
                }
                Err(needed) => {
                    let room = self.plan.model.context as u64 - generated_max as u64;
                    let excess = (needed - room).min(u32::MAX as u64) as u32;
                    if cut.is_whole || must_be_whole || cut.tokens <= excess {
                        return Err(self.too_long(needed, generated_max));
                    }
                    tokens_max = cut.tokens - excess;
                }
            }
        }
    }

    /// Makes the prompt for a text in the tokens of the next window's lane.
    ///
    /// Errors: the number of tokens that the prompt would have, when it and
    /// the tokens to generate do not fit the context.
    fn render(&mut self, infer: NodeId, text: &[u8], tokens_max: u32) -> Result<(), u64> {
        let NodeKind::Infer { prompt, .. } = &self.plan.program.nodes[infer.index()].kind else {
            unreachable!("only inferences have prompts")
        };
        let tokenizer = self.generator.tokenizer;
        let scratch = &mut Scratch::given(self.generator.engine.tokenizer_memory());
        let tokens = self.lanes.free_tokens();
        tokens.clear();
        if self.options.raw {
            if let Some(bos) = tokenizer.bos().filter(|_| tokenizer.adds_bos()) {
                tokens.push(bos);
            }
            tokenizer.encode(text, SpecialText::Literal, scratch, tokens);
        } else {
            tokenizer.encode_prompt(prompt, text, scratch, tokens);
        }
        let needed = tokens.count() as u64;
        if needed + tokens_max as u64 <= self.plan.model.context as u64 {
            Ok(())
        } else {
            Err(needed)
        }
    }

    fn too_long(&self, prompt_tokens: u64, tokens_max: u32) -> RunError {
        RunError::Context {
            prompt_tokens,
            and_more: false,
            tokens_max: tokens_max.into(),
            context: self.plan.model.context.into(),
        }
    }

    /// Starts the window whose prompt was rendered, and computes until there is
    /// room for the next.
    fn start(&mut self, inference: &mut Inference<'_>, source: &str) -> Result<(), RunError> {
        let plan = self.plan;
        let lanes = &mut self.lanes;
        let prompt_tokens = lanes.free_tokens().len();
        if prompt_tokens == 0 {
            return Err(RunError::Usage(format!(
                "the prompt from {source} is empty: there is nothing to continue"
            )));
        }
        let left = plan.model.context as usize - prompt_tokens;
        let tokens_max = left.min(inference.tokens_max as usize);
        let window = lanes.start(tokens_max, self.generator.tokenizer);
        self.generator.counts.prompt_tokens += prompt_tokens as u64;
        self.flow.event(&Event::Prompt {
            node: &plan.program.nodes[inference.node.index()].id,
            window,
            source,
            prompt_tokens: prompt_tokens as u32,
        })?;
        while self.lanes.is_full() {
            self.step(inference)?;
        }
        Ok(())
    }

    /// One pass over the windows on their way.
    fn step(&mut self, inference: &mut Inference<'_>) -> Result<(), RunError> {
        let (lanes, columns) = (&mut self.lanes, &mut self.columns);
        let mut out = NodeReceiver {
            flow: &mut self.flow,
            node: inference.node,
            name: &self.plan.program.nodes[inference.node.index()].id,
        };
        self.generator
            .step(lanes, &mut inference.request, columns, &mut out)
    }
}

/// The state of one inferring node.
struct Inference<'a> {
    node: NodeId,
    /// To generate for each window, or [`TO_THE_END`].
    tokens_max: u32,
    request: Request<'a>,
}

impl Inference<'_> {
    /// Positions that prompts leave free.
    fn room(&self) -> u32 {
        match self.tokens_max {
            TO_THE_END => 1,
            tokens_max => tokens_max,
        }
    }
}

struct NodeReceiver<'a, 'b> {
    flow: &'a mut Flow<'b>,
    node: NodeId,
    name: &'a str,
}

impl Receiver for NodeReceiver<'_, '_> {
    fn text(&mut self, bytes: &[u8]) -> Result<(), RunError> {
        self.flow.write(self.node, bytes)
    }

    fn end(&mut self, window: u64, tokens: u32, finish: Finish) -> Result<(), RunError> {
        self.flow.end_item(self.node)?;
        self.flow.event(&Event::WindowEnd {
            node: self.name,
            window,
            generated_tokens: tokens,
            finish,
        })
    }

    fn sink(&mut self) -> &mut dyn Sink {
        self.flow.sink()
    }
}

impl Flow<'_> {
    fn event(&mut self, event: &Event<'_>) -> Result<(), RunError> {
        let failed = RunError::io("report progress", Path::new("the event stream"));
        self.sink().event(event).map_err(failed)
    }
}
