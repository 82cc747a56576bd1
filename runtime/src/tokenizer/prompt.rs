//! Fills a compiled prompt with an input.

use omex_plan::prompt::PromptTemplate;

use super::{Scratch, SpecialText, Tokenizer};

impl Tokenizer<'_> {
    /// Appends the tokens of `template` with `input` in its place to `out`, and returns
    /// how many bytes no token stands for. Special tokens that the input spells are text.
    /// What is tokenized together is put together in `scratch`.
    pub fn encode_prompt(
        &self,
        template: &PromptTemplate,
        input: &[u8],
        scratch: &mut Scratch,
        out: &mut impl Extend<u32>,
    ) -> usize {
        let input = template.trim.apply(input);
        if let (true, Some(tokens)) = (input.is_empty(), &template.empty_tokens) {
            out.extend(tokens.iter().copied());
            return 0;
        }
        out.extend(template.prefix_tokens.iter().copied());
        let parts = [
            template.prefix_text.as_bytes(),
            input,
            template.suffix_text.as_bytes(),
        ];
        let (text, mut scratch) = scratch.split(parts.iter().map(|part| part.len()).sum());
        let mut rest = &mut *text;
        for part in parts {
            let (here, behind) = rest.split_at_mut(part.len());
            here.copy_from_slice(part);
            rest = behind;
        }
        let lost = self.encode(text, SpecialText::Literal, &mut scratch, out);
        out.extend(template.suffix_tokens.iter().copied());
        lost
    }
}
