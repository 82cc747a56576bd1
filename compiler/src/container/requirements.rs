//! `model_requirements`, held against a model.

use omex_grammar::quantization::Quantization;

use super::task::Task;
use crate::diagnostic::{Code, Diagnostic, quoted};

/// What a model file says about itself.
#[derive(Clone, Copy, Debug)]
pub struct ModelFacts<'a> {
    /// `general.architecture`, such as `llama`.
    pub architecture: &'a str,
    /// `general.name`, or empty.
    pub name: &'a str,
    /// Bits per weight of the bulk of the tensors, without scales: 4 for Q4_1 and Q4_K.
    pub weight_bits: u8,
    pub layers: u32,
}

/// Letters and digits only, in lower case: "Qwen2.5" and "qwen2_5" are one family.
fn plain(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

impl Task {
    /// Compares what the container requires with the model that was found. `asked` is the
    /// quantization of the model reference, `?q8`.
    pub fn check_model(
        &self,
        model: &ModelFacts<'_>,
        asked: Option<Quantization>,
    ) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        if let Some(family) = &self.model.family {
            let wanted = plain(&family.value);
            let fits = [model.architecture, model.name]
                .iter()
                .any(|name| plain(name).contains(&wanted));
            if !fits {
                let message = format!(
                    "the container asks for the family {}, and the model is {} of architecture {}",
                    quoted(&family.value),
                    quoted(model.name),
                    quoted(model.architecture),
                );
                found.push(
                    Diagnostic::error(Code::ModelFamily, message)
                        .at(&self.source, family.span, "")
                        .help("name another model, or remove `model_family`"),
                );
            }
        }
        let beyond = self.model.load_layers.filter(|l| l.value.1 > model.layers);
        if let Some(beyond) = beyond {
            let message = format!("the model has {} layers", model.layers);
            found.push(
                Diagnostic::error(Code::InvalidValue, message)
                    .at(&self.source, beyond.span, "some of these are not there")
                    .help("the range is half-open: [0, 10] are the layers 0 to 9"),
            );
        }
        let required = self.model.quantization.map(|q| (q.value, Some(q.span)));
        for (wanted, span) in required.into_iter().chain(asked.map(|q| (q, None))) {
            found.extend(self.check_quantization(wanted, span, model.weight_bits));
        }
        found
    }

    fn check_quantization(
        &self,
        wanted: Quantization,
        span: Option<crate::diagnostic::Span>,
        weight_bits: u8,
    ) -> Option<Diagnostic> {
        let message = |rest: &str| {
            format!(
                "the container asks for {wanted}, and the model's weights have {weight_bits} bits{rest}"
            )
        };
        let diagnostic = match weight_bits.cmp(&wanted.bits()) {
            std::cmp::Ordering::Equal => return None,
            std::cmp::Ordering::Greater => Diagnostic::error(
                Code::NotSupported,
                message(": requantizing is not supported yet"),
            )
            .help("name a model file that is quantized already"),
            std::cmp::Ordering::Less => Diagnostic::note_only(Code::NoEffect, message(""))
                .note("a coarser model is used as it is: bits that are lost do not come back"),
        };
        Some(match span {
            Some(span) => diagnostic.at(&self.source, span, ""),
            None => diagnostic,
        })
    }
}
