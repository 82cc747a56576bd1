//! Filled prompts against `apply_chat_template` of transformers.

use omex_compiler::prompt::{Date, Request, compile};
use omex_runtime::tokenizer::{Scratch, Tokenizer};
use serde_json::Value;

use crate::corpus::{Digest, Random, json, root, section_strings, smollm2, strings};

/// The contents that `tests/oracle/prompts.py` makes.
fn contents(spec: &Value) -> Vec<String> {
    let prompts = &spec["prompts"];
    let (mut bodies, pads) = (strings(&prompts["bodies"]), strings(&prompts["pads"]));
    for name in strings(&prompts["sections"]) {
        let mut sections = spec["sections"].as_array().unwrap().iter();
        let section = sections.find(|s| s["name"] == name.as_str()).unwrap();
        bodies.extend(section_strings(
            section,
            prompts["section_count"].as_u64().unwrap() as usize,
        ));
    }
    let mut rng = Random(7);
    let mut inputs: Vec<String> = bodies
        .iter()
        .flat_map(|body| pads.iter().map(move |pad| format!("{pad}{body}{pad}")))
        .collect();
    for body in &bodies {
        for _ in 0..4 {
            let left = rng.pick(&pads);
            inputs.push(format!("{left}{body}{}", rng.pick(&pads)));
        }
    }
    inputs
}

#[test]
fn prompts_are_those_of_transformers() {
    let (vocabulary, table) = smollm2();
    let tokenizer = Tokenizer::from_bytes(&table).unwrap();
    let spec = json("tests/oracle/corpus.json");
    let inputs = contents(&spec);
    assert!(inputs.len() >= 1000);
    let golden = json("tests/golden/smollm2-prompts.json");
    let golden = golden.as_object().unwrap();
    assert!(golden.len() >= 10);
    let mut scratch = Scratch::new();
    for (name, expected) in golden {
        let source = match name.as_str() {
            "own" => vocabulary.chat_template.clone().unwrap(),
            name => {
                std::fs::read_to_string(root().join(format!("tests/oracle/templates/{name}.jinja")))
                    .unwrap()
            }
        };
        let mut digest = Digest::new();
        for system in spec["prompts"]["systems"].as_array().unwrap() {
            for message in strings(&spec["prompts"]["messages"]) {
                let request = Request {
                    chat_template: Some(&source),
                    system: system.as_str(),
                    message: &message,
                    date: spec["prompts"]["date"].as_str().and_then(Date::parse),
                };
                let template = compile(&vocabulary, &tokenizer, &request).unwrap();
                for input in &inputs {
                    let mut ids = Vec::new();
                    tokenizer.encode_prompt(&template, input.as_bytes(), &mut scratch, &mut ids);
                    digest.add(&ids);
                }
            }
        }
        assert_eq!(&digest.summary(), expected, "template {name}");
    }
}
