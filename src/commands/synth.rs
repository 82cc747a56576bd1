//! `omexc synth`: models with random weights, of any shape and mix of formats.

use std::io::{BufWriter, Write};
use std::path::PathBuf;

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic, quoted};
use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::import::synth::{self, Family, Mix, PRESETS, Shape, VOCABULARY_LEN_MIN};
use omex_runtime::os::file::{AtomicFile, is_same};

use super::output::{Failure, Progress, bytes, cannot_write};

#[derive(Debug, Args)]
pub struct SynthArgs {
    /// A published model's shape, which the other flags change: llama-3.2-1b, qwen2-1.5b, ...
    #[arg(long, default_value = "tiny", value_parser = shape)]
    shape: Shape,
    /// Where the model goes
    #[arg(short, long)]
    output: PathBuf,
    /// Formats of the weights, as llama-quantize names them: Q4_K_M, Q8_0, F16, ...
    #[arg(long = "type", default_value = "Q4_K_M", value_name = "TYPE")]
    file_type: String,
    /// One format in all layers, where the type names one
    #[arg(long)]
    pure: bool,
    /// Architecture: llama or qwen2
    #[arg(long, value_parser = family)]
    arch: Option<Family>,
    #[arg(long)]
    layers: Option<u32>,
    /// Width of the residual stream
    #[arg(long)]
    embedding: Option<u32>,
    #[arg(long)]
    heads: Option<u32>,
    #[arg(long)]
    kv_heads: Option<u32>,
    /// Elements of a head
    #[arg(long)]
    head: Option<u32>,
    /// Width of the feed-forward part
    #[arg(long)]
    feed_forward: Option<u32>,
    /// Tokens
    #[arg(long)]
    vocabulary: Option<u32>,
    /// Copy the tokenizer of a GGUF file
    #[arg(long, value_name = "FILE", conflicts_with = "vocabulary")]
    vocabulary_from: Option<PathBuf>,
    /// Positions that the model claims to be trained for
    #[arg(short, long)]
    ctx_size: Option<u32>,
    /// Base of RoPE's frequencies
    #[arg(long)]
    rope_base: Option<f32>,
    /// The embedding is the output head too
    #[arg(long)]
    tied: Option<bool>,
    /// Biases in the attention
    #[arg(long)]
    biases: Option<bool>,
    /// Seed of the weights
    #[arg(short, long, default_value_t = 0)]
    seed: u64,
}

fn shape(name: &str) -> Result<Shape, String> {
    Shape::preset(name).ok_or_else(|| format!("known: {}", PRESETS.join(", ")))
}

fn family(name: &str) -> Result<Family, String> {
    let found = Family::ALL.into_iter().find(|family| family.name() == name);
    found.ok_or_else(|| "known: llama, qwen2".to_owned())
}

pub fn synth(args: &SynthArgs) -> Result<(), Failure> {
    let usage = |what: String| -> Failure { Diagnostic::error(Code::Usage, what).into() };
    let mix = Mix::of_file_type(&args.file_type, args.pure)
        .map_err(|e| usage(format!("--type {}: {e}", quoted(&args.file_type))))?;
    let mut shape = args.shape.clone();
    for (extent, flag) in [
        (&mut shape.layers, args.layers),
        (&mut shape.embedding_len, args.embedding),
        (&mut shape.heads, args.heads),
        (&mut shape.kv_heads, args.kv_heads),
        (&mut shape.head_len, args.head),
        (&mut shape.feed_forward_len, args.feed_forward),
        (&mut shape.vocabulary_len, args.vocabulary),
        (&mut shape.context_len, args.ctx_size),
    ] {
        *extent = flag.unwrap_or(*extent);
    }
    shape.family = args.arch.unwrap_or(shape.family);
    shape.rope_base = args.rope_base.unwrap_or(shape.rope_base);
    shape.tied = args.tied.unwrap_or(shape.tied);
    shape.biases = args.biases.unwrap_or(shape.biases);

    let vocabulary_file = match &args.vocabulary_from {
        Some(path) => Some(MappedFile::open(path)?),
        None => None,
    };
    if let Some(path) = &args.vocabulary_from
        && is_same(path, &args.output)
    {
        return Err(usage("the model would replace the vocabulary's".to_owned()));
    }
    let vocabulary = match &vocabulary_file {
        Some(file) => Some(Gguf::parse(file).map_err(|e| e.in_file(file.path()))?),
        None => None,
    };
    match &vocabulary {
        Some(gguf) => {
            let tokens = gguf.required("tokenizer.ggml.tokens", Gguf::get_array_str)?;
            shape.vocabulary_len = u32::try_from(tokens.len())
                .map_err(|_| usage("the vocabulary is too large".to_owned()))?;
        }
        None if shape.vocabulary_len < VOCABULARY_LEN_MIN => {
            return Err(usage(format!(
                "a made-up vocabulary has at least {VOCABULARY_LEN_MIN} tokens"
            )));
        }
        None => {}
    }
    shape.check().map_err(usage)?;

    let cannot = |e| cannot_write("model", &args.output, e);
    let file = AtomicFile::create(&args.output).map_err(cannot)?;
    let mut counted = Counted {
        file: BufWriter::with_capacity(1 << 20, file),
        done_bytes: 0,
        total_bytes: synth::tensor_bytes(&shape, mix),
        progress: Progress::new(),
    };
    synth::write_model(&mut counted, &shape, mix, args.seed, vocabulary.as_ref())
        .map_err(cannot)?;
    counted.progress.clear();
    let written = counted.done_bytes;
    let file = counted.file.into_inner();
    file.map_err(|e| e.into_error())
        .and_then(AtomicFile::finish)
        .map_err(cannot)?;
    crate::tell!(
        "{}: {} of random weights",
        quoted(&args.output.to_string_lossy()),
        bytes(written)
    );
    Ok(())
}

/// Shows how much has been written.
struct Counted<W: Write> {
    file: BufWriter<W>,
    done_bytes: u64,
    total_bytes: u64,
    progress: Progress,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(data)?;
        self.done_bytes += written as u64;
        self.progress.show(|| {
            format!(
                "writing random weights: {} of {}",
                bytes(self.done_bytes),
                bytes(self.total_bytes)
            )
        });
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}
