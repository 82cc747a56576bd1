//! Fills prompts for `tests/oracle/prompts.py`.
//!
//! `prompt_lines MODEL.gguf` reads a JSON object per line of standard input: `template`
//! (null for the model's own, "" for none), `system` (or null), `message`, `date` and
//! `inputs`. It writes a JSON object per line: `ids`, a list for each input, or `error`.

use std::error::Error;
use std::io::BufRead as _;
use std::path::Path;

use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::prompt::{Date, Request};
use omex_compiler::{prompt, tokenizer};
use omex_runtime::tokenizer::{Scratch, Tokenizer};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args()
        .nth(1)
        .ok_or("usage: prompt_lines MODEL.gguf")?;
    let file = MappedFile::open(Path::new(&path))?;
    let vocabulary = tokenizer::Vocabulary::from_gguf(&Gguf::parse(&file)?)?;
    let table = tokenizer::compile(&vocabulary)?;
    let tokenizer = Tokenizer::from_bytes(&table)?;
    let mut scratch = Scratch::new();
    for line in std::io::stdin().lock().lines() {
        let job: Value = serde_json::from_str(&line?)?;
        let request = Request {
            chat_template: match job["template"].as_str() {
                Some("") => None,
                Some(source) => Some(source),
                None => vocabulary.chat_template.as_deref(),
            },
            system: job["system"].as_str(),
            message: job["message"].as_str().ok_or("no message")?,
            date: job["date"].as_str().and_then(Date::parse),
        };
        let answer = match prompt::compile(&vocabulary, &tokenizer, &request) {
            Err(error) => json!({ "error": error.to_string() }),
            Ok(template) => {
                let inputs = job["inputs"].as_array().ok_or("no inputs")?;
                let fill = |input: &Value| {
                    let (input, mut ids) = (input.as_str().unwrap_or_default(), Vec::new());
                    tokenizer.encode_prompt(&template, input.as_bytes(), &mut scratch, &mut ids);
                    ids
                };
                json!({ "ids": inputs.iter().map(fill).collect::<Vec<_>>() })
            }
        };
        println!("{answer}");
    }
    Ok(())
}
