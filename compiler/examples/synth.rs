//! Writes a GGUF file of the llama family with random weights.
//!
//! `cargo run --release -p omex-compiler --example synth -- --layers 32 --d-model 4096 --quant q4_k_m --out model.gguf`
//!
//! The weights are streamed, so RAM does not grow with the model; the same
//! options give the same bytes.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::import::synth::{Mix, Shape, write_model};

const USAGE: &str = "\
usage: synth --out FILE [options]
  --arch llama          architecture
  --layers N            layers (4)
  --d-model N           width of the residual stream (256)
  --heads N             query heads (4)
  --kv-heads N          key-value heads (--heads)
  --head-dim N          elements of a head (--d-model / --heads)
  --ff N                width of the feed-forward part (4 x --d-model)
  --vocab N             tokens (4096)
  --ctx N               positions (2048)
  --rope-base X         base of RoPE's frequencies (10000)
  --quant MIX           f32, f16, bf16, q4_0, q4_1, ..., mxfp4 or q4_k_m (q4_1)
  --untied              an output head of its own
  --biases              biases in the attention
  --seed N              seed of the weights (0)
  --vocab-from FILE     copy the tokenizer of a GGUF file";

const SWITCHES: [&str; 2] = ["untied", "biases"];

fn main() {
    if let Err(error) = run() {
        eprintln!("synth: {error}");
        std::process::exit(2);
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut options = parse_arguments(std::env::args().skip(1))?;
    let mut take = |name: &str| options.remove(name);
    let Some(out) = take("out") else {
        return Err(USAGE.into());
    };
    let arch = take("arch").unwrap_or_else(|| "llama".to_owned());
    if arch != "llama" {
        return Err(format!("--arch {arch}: only llama is known").into());
    }
    let vocabulary_file = match take("vocab-from") {
        Some(path) => Some(MappedFile::open(Path::new(&path))?),
        None => None,
    };
    let vocabulary = match &vocabulary_file {
        Some(file) => Some(Gguf::parse(file).map_err(|e| e.in_file(file.path()))?),
        None => None,
    };
    let mut number = |name: &str, default: u32| -> Result<u32, Box<dyn Error>> {
        let value = match take(name) {
            Some(text) => text.parse().map_err(|e| format!("--{name} {text}: {e}"))?,
            None => default,
        };
        if value == 0 {
            return Err(format!("--{name} must be at least 1").into());
        }
        Ok(value)
    };
    let embedding_len = number("d-model", 256)?;
    let heads = number("heads", 4)?;
    let vocabulary_len = match &vocabulary {
        Some(gguf) => {
            let tokens = gguf.required("tokenizer.ggml.tokens", Gguf::get_array_str)?;
            u32::try_from(tokens.len())?
        }
        None => number("vocab", 4096)?,
    };
    let shape = Shape {
        layers: number("layers", 4)?,
        embedding_len,
        heads,
        kv_heads: number("kv-heads", heads)?,
        head_len: number("head-dim", embedding_len / heads)?,
        feed_forward_len: number("ff", 4 * embedding_len)?,
        vocabulary_len,
        context_len: number("ctx", 2048)?,
        rope_base: take("rope-base").map_or(Ok(1e4), |text| text.parse())?,
        tied: take("untied").is_none(),
        biases: take("biases").is_some(),
    };
    let mix: Mix = take("quant").as_deref().unwrap_or("q4_1").parse()?;
    let seed = take("seed").map_or(Ok(0), |text| text.parse())?;
    if let Some(name) = options.keys().next() {
        return Err(format!("unknown option --{name}\n{USAGE}").into());
    }
    let mut file = BufWriter::new(File::create(&out)?);
    write_model(&mut file, &shape, mix, seed, vocabulary.as_ref())?;
    file.flush()?;
    Ok(())
}

/// `--name value` pairs, and switches without a value.
fn parse_arguments(
    arguments: impl Iterator<Item = String>,
) -> Result<BTreeMap<String, String>, Box<dyn Error>> {
    let mut options = BTreeMap::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        let name = argument
            .strip_prefix("--")
            .ok_or_else(|| format!("unexpected argument {argument}\n{USAGE}"))?;
        let value = if SWITCHES.contains(&name) {
            String::new()
        } else {
            arguments
                .next()
                .ok_or_else(|| format!("--{name} needs a value\n{USAGE}"))?
        };
        options.insert(name.to_owned(), value);
    }
    Ok(options)
}
