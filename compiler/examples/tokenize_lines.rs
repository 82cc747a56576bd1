//! Tokenizes lines for `tests/oracle/tokenizer.py`.
//!
//! `tokenize_lines MODEL.gguf [PRE]` reads a GGUF file, its pre-tokenizer replaced by PRE
//! when that is given. Each line of standard input is a mode and hexadecimal bytes: `L`
//! takes special-token text literally, `P` parses it. Each line of output has the ids, a
//! tab, the number of bytes without a token, a tab, and the ends of the tokens' spans.
//! For mode `S` it has the ends of the pieces that the pre-tokenizer makes instead.

use std::error::Error;
use std::io::{BufRead as _, BufWriter, Write as _};
use std::path::Path;

use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::tokenizer::{Model, Vocabulary, compile, pre};
use omex_runtime::tokenizer::{Scratch, SpecialText, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args
        .next()
        .ok_or("usage: tokenize_lines MODEL.gguf [PRE]")?;
    let file = MappedFile::open(Path::new(&path))?;
    let mut vocabulary = Vocabulary::from_gguf(&Gguf::parse(&file)?)?;
    if let (Some(name), Model::ByteLevel { splitting, .. }) = (args.next(), &mut vocabulary.model) {
        *splitting = pre::splitting(&name)?;
    }
    let table = compile(&vocabulary)?;
    eprintln!(
        "{} tokens, {} bytes of tables",
        vocabulary.tokens.len(),
        table.len()
    );
    let tokenizer = Tokenizer::from_bytes(&table)?;

    let mut scratch = Scratch::new();
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (mode, hex) = line.split_at(1);
        let text = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16))
            .collect::<Result<Vec<u8>, _>>()?;
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        let special = match mode {
            "L" => SpecialText::Literal,
            "P" => SpecialText::Parse,
            "S" => {
                tokenizer.pieces(&text, &mut |piece| ends.push(piece.end.to_string()));
                writeln!(out, "{}", ends.join(" "))?;
                continue;
            }
            _ => return Err(format!("unknown mode in {line:?}").into()),
        };
        let lost = tokenizer.encode_spans(&text, special, &mut scratch, &mut |id, span| {
            ids.push(id.to_string());
            ends.push(span.end.to_string());
        });
        writeln!(out, "{}\t{lost}\t{}", ids.join(" "), ends.join(" "))?;
    }
    out.flush()?;
    Ok(())
}
