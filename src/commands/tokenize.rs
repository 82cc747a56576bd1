//! `omex tokenize`: text to ids and back.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use omex_compiler::diagnostic::{Code, Diagnostic, clean};
use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::tokenizer::{Vocabulary, compile};
use omex_plan::file::{PLAN_MAGIC, SectionKind};
use omex_runtime::tokenizer::{Scratch, SpecialText, Tokenizer};

use super::output::Failure;
use super::plan_file::PlanFile;

#[derive(Debug, Args)]
pub struct TokenizeArgs {
    /// A GGUF model (the vocabulary is enough) or a plan
    model: PathBuf,
    /// The text; standard input without it
    #[arg(short, long)]
    prompt: Option<String>,
    /// A file with the text
    #[arg(short, long, conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// Print the ids alone, separated by spaces
    #[arg(long, conflicts_with = "decode")]
    ids: bool,
    /// Read ids, print their text
    #[arg(long)]
    decode: bool,
    /// Text that spells a special token is that token
    #[arg(long, conflicts_with = "decode")]
    parse_special: bool,
    /// Begin with the beginning-of-text token if the model wants one
    #[arg(long, conflicts_with = "decode")]
    bos: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let tables = tables(&args.model)?;
    let tokenizer = Tokenizer::from_bytes(&tables).map_err(|e| {
        let message = format!("the tokenizer's tables are damaged: {e}");
        Diagnostic::error(Code::PlanInvalid, message).in_file(args.model.to_string_lossy(), None)
    })?;
    let text = text(args)?;
    let mut stdout = std::io::stdout().lock();
    if args.decode {
        let ids = parse_ids(&text, &tokenizer)?;
        let bytes = tokenizer.decode_all(&ids);
        if args.json {
            let text = String::from_utf8_lossy(&bytes);
            writeln!(
                stdout,
                "{}",
                serde_json::json!({"schema_version": 1, "text": text})
            )?;
        } else {
            stdout.write_all(&bytes)?;
        }
        return Ok(());
    }
    let special = if args.parse_special {
        SpecialText::Parse
    } else {
        SpecialText::Literal
    };
    let mut ids: Vec<u32> = Vec::new();
    ids.extend(tokenizer.bos().filter(|_| args.bos && tokenizer.adds_bos()));
    tokenizer.encode(&text, special, &mut Scratch::new(), &mut ids);
    if args.json {
        let object = serde_json::json!({"schema_version": 1, "ids": ids});
        writeln!(stdout, "{object}")?;
    } else if args.ids {
        let words: Vec<String> = ids.iter().map(u32::to_string).collect();
        writeln!(stdout, "{}", words.join(" "))?;
    } else {
        for &id in &ids {
            let piece = tokenizer.decode(id).unwrap_or_default();
            let piece = String::from_utf8_lossy(piece);
            writeln!(stdout, "{id:>8}  {:?}", clean(&piece))?;
        }
    }
    Ok(())
}

/// The compiled tables: of a plan as they are, of a model compiled now.
fn tables(path: &Path) -> Result<Vec<u8>, Failure> {
    let file = MappedFile::open(path)?;
    if file.starts_with(&PLAN_MAGIC) {
        drop(file);
        let plan = PlanFile::open(path)?;
        return Ok(plan.section(SectionKind::Tokenizer).to_vec());
    }
    let gguf = Gguf::parse(&file).map_err(|e| e.in_file(path))?;
    let vocabulary = Vocabulary::from_gguf(&gguf).map_err(|e| e.in_file(path))?;
    Ok(compile(&vocabulary).map_err(|e| e.in_file(path))?)
}

fn text(args: &TokenizeArgs) -> Result<Vec<u8>, Failure> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.as_bytes().to_vec());
    }
    let cannot = |path: &Path, e: std::io::Error| {
        let message = format!("the text cannot be read: {e}");
        Diagnostic::error(Code::FileRead, message).in_file(path.to_string_lossy(), None)
    };
    if let Some(path) = args.file.as_deref().filter(|p| p.as_os_str() != "-") {
        return Ok(std::fs::read(path).map_err(|e| cannot(path, e))?);
    }
    let mut stdin = std::io::stdin().lock();
    if stdin.is_terminal() {
        let message = "no text: standard input is a terminal";
        return Err(Diagnostic::error(Code::Usage, message)
            .help("give -p TEXT or -f FILE, or pipe the text in")
            .into());
    }
    let mut text = Vec::new();
    stdin
        .read_to_end(&mut text)
        .map_err(|e| cannot(Path::new("-"), e))?;
    Ok(text)
}

/// Ids separated by anything but digits, so that `[1, 2]` works too.
fn parse_ids(text: &[u8], tokenizer: &Tokenizer<'_>) -> Result<Vec<u32>, Failure> {
    let text = String::from_utf8_lossy(text);
    let words = text.split(|c: char| !c.is_ascii_digit());
    let mut ids = Vec::new();
    for word in words.filter(|w| !w.is_empty()) {
        let id = word.parse().ok();
        match id.filter(|&id| id < tokenizer.vocabulary_size()) {
            Some(id) => ids.push(id),
            None => {
                let size = tokenizer.vocabulary_size();
                let message = format!("{word} is no token: the vocabulary has {size}");
                return Err(Diagnostic::error(Code::InvalidValue, message).into());
            }
        }
    }
    Ok(ids)
}
