//! Fills a compiled prompt with an input.

use omex_plan::prompt::PromptTemplate;

use super::{Scratch, SpecialText, Tokenizer};

impl Tokenizer<'_> {
    /// Appends the tokens of `template` with `input` in its place to `out`, and returns
    /// how many bytes no token stands for. Special tokens that the input spells are text.
    pub fn encode_prompt(
        &self,
        template: &PromptTemplate,
        input: &[u8],
        scratch: &mut Scratch,
        out: &mut Vec<u32>,
    ) -> usize {
        let input = template.trim.apply(input);
        if let (true, Some(tokens)) = (input.is_empty(), &template.empty_tokens) {
            out.extend_from_slice(tokens);
            return 0;
        }
        out.extend_from_slice(&template.prefix_tokens);
        let text = [
            template.prefix_text.as_bytes(),
            input,
            template.suffix_text.as_bytes(),
        ]
        .concat();
        let lost = self.encode(&text, SpecialText::Literal, scratch, out);
        out.extend_from_slice(&template.suffix_tokens);
        lost
    }
}
