//! The order in which a pass reads the weights.

use omex_plan::packed::PackedLayout;

use super::{Linear, Output, Weights};
use crate::import::gguf::TensorId;

impl Weights {
    /// Every weight once, in the order of its (main) use, with the layout in
    /// which it is packed.
    ///
    /// A tied embedding is packed as the output head and stands at the head's
    /// place; the embedding kernel gathers its rows from the panels.
    pub fn in_schedule_order(&self) -> Vec<(TensorId, PackedLayout)> {
        let mut order = Vec::new();
        match self.output {
            Output::Tied => {}
            Output::Untied(_) => order.push((self.token_embedding.tensor, PackedLayout::Rows)),
        }
        for layer in &self.layers {
            order.push((layer.attention_norm.tensor, PackedLayout::Vector));
            for linear in [
                &layer.query,
                &layer.key,
                &layer.value,
                &layer.attention_output,
            ] {
                push_linear(&mut order, linear);
            }
            order.push((layer.feed_forward_norm.tensor, PackedLayout::Vector));
            for linear in [&layer.gate, &layer.up, &layer.down] {
                push_linear(&mut order, linear);
            }
        }
        order.push((self.output_norm.tensor, PackedLayout::Vector));
        match &self.output {
            Output::Tied => order.push((self.token_embedding.tensor, PackedLayout::Panels)),
            Output::Untied(head) => push_linear(&mut order, head),
        }
        order
    }
}

fn push_linear(order: &mut Vec<(TensorId, PackedLayout)>, linear: &Linear) {
    order.push((linear.weight.tensor, PackedLayout::Panels));
    if let Some(bias) = &linear.bias {
        order.push((bias.tensor, PackedLayout::Vector));
    }
}
