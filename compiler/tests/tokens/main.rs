//! Tokenizer and prompts against Hugging Face's answers (committed as hashes), against
//! naive references on random vocabularies, and against damaged tables.

mod corpus;
mod gemma;
mod golden;
mod hostile;
mod merges;
mod prompts;
mod vocabularies;
