//! The corpus of `tests/oracle/tokenizer.py`, made by the same generator.

use std::path::{Path, PathBuf};

use omex_compiler::import::MappedFile;
use omex_compiler::import::gguf::Gguf;
use omex_compiler::tokenizer::{Vocabulary, compile};
use serde_json::Value;

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

pub(crate) fn json(path: &str) -> Value {
    let path = root().join(path);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A real model's vocabulary and its table: `variable` names its file, or `fetch` puts
/// `name` into target/models.
pub(crate) fn model(variable: &str, name: &str, fetch: &str) -> (Vocabulary, Vec<u8>) {
    let path = match std::env::var_os(variable) {
        Some(path) => PathBuf::from(path),
        None => root().join("target/models").join(name),
    };
    let file = MappedFile::open(&path)
        .unwrap_or_else(|e| panic!("{e}: run {fetch}, or name the file in {variable}"));
    let vocabulary = Vocabulary::from_gguf(&Gguf::parse(&file).unwrap()).unwrap();
    let table = compile(&vocabulary).unwrap();
    (vocabulary, table)
}

pub(crate) fn smollm2() -> (Vocabulary, Vec<u8>) {
    model(
        "OMEX_TEST_MODEL_SMOLLM2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "examples/fetch_model.sh",
    )
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    pub(crate) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// FNV-1a over little-endian u32 with `u32::MAX` after each list, as the oracle's.
pub(crate) struct Digest {
    strings: u64,
    tokens: u64,
    hash: u64,
}

impl Digest {
    pub(crate) fn new() -> Self {
        Self {
            strings: 0,
            tokens: 0,
            hash: 0xcbf2_9ce4_8422_2325,
        }
    }

    pub(crate) fn add(&mut self, ids: &[u32]) {
        self.strings += 1;
        self.tokens += ids.len() as u64;
        for word in ids.iter().chain([&u32::MAX]) {
            for byte in word.to_le_bytes() {
                self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
            }
        }
    }

    pub(crate) fn summary(&self) -> Value {
        serde_json::json!({
            "strings": self.strings,
            "tokens": self.tokens,
            "hash": format!("{:016x}", self.hash),
        })
    }
}

pub(crate) fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().expect("a list");
    items
        .iter()
        .map(|item| item.as_str().expect("a string").to_owned())
        .collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().expect("a number") as usize
}

/// Strings of one to `atoms_max` atoms each.
pub(crate) fn joined<T: AsRef<[u8]>>(
    count: usize,
    spec: &Value,
    mut atom: impl FnMut(&mut Random) -> T,
) -> Vec<String> {
    let atoms_max = number(&spec["atoms_max"]);
    let mut rng = Random(count as u64);
    (0..count)
        .map(|_| {
            let atoms = 1 + rng.below(atoms_max);
            let mut bytes = Vec::new();
            for _ in 0..atoms {
                bytes.extend_from_slice(atom(&mut rng).as_ref());
            }
            String::from_utf8_lossy(&bytes).into_owned()
        })
        .collect()
}

pub(crate) fn section_strings(section: &Value, count: usize) -> Vec<String> {
    let atoms = strings(&section["atoms"]);
    joined(count, section, |rng| rng.pick(&atoms).clone())
}

/// The sections by name, in the oracle's order.
pub(crate) fn corpus(tokens: &[&[u8]]) -> Vec<(String, Vec<String>)> {
    let spec = json("tests/oracle/corpus.json");
    let mut sections = vec![("characters".to_owned(), characters(&spec["characters"]))];
    for section in spec["sections"].as_array().expect("sections") {
        let name = section["name"].as_str().expect("a name").to_owned();
        sections.push((name, section_strings(section, number(&section["count"]))));
    }
    let random = &spec["random_characters"];
    let count = number(&random["count"]);
    sections.push((
        "random characters".to_owned(),
        joined(count, random, |rng| random_character(rng).to_string()),
    ));
    let vocabulary = &spec["vocabulary"];
    let count = number(&vocabulary["count"]);
    sections.push((
        "vocabulary".to_owned(),
        joined(count, vocabulary, |rng| *rng.pick(tokens)),
    ));
    let mut runs = Vec::new();
    for atom in strings(&spec["runs"]["atoms"]) {
        for length in spec["runs"]["lengths"].as_array().expect("lengths") {
            let run = atom.repeat(number(length));
            runs.extend([run.clone(), format!("x{run}")]);
        }
    }
    sections.push(("runs".to_owned(), runs));
    sections
}

fn characters(spec: &Value) -> Vec<String> {
    let [below, step, group] =
        ["all_below", "step_above", "group"].map(|key| number(&spec[key]) as u32);
    let chars: Vec<char> = (0..below)
        .chain((below..0x11_0000).step_by(step as usize))
        .filter_map(char::from_u32)
        .collect();
    chars
        .chunks(group as usize)
        .map(|group| group.iter().map(|c| format!("a{c}1{c} ")).collect())
        .collect()
}

pub(crate) fn random_character(rng: &mut Random) -> char {
    loop {
        let plane = [0x300, 0x3000, 0x2_0000, 0x11_0000][rng.below(4)];
        if let Some(c) = char::from_u32(rng.below(plane) as u32) {
            return c;
        }
    }
}
