//! The order in which a pass reads the weights.

use omex_plan::packed::PackedLayout;

use super::{Linear, Matrix, Output, Vector, Weights};
use crate::import::pack::Part;

impl Weights {
    /// Every weight once, in the order of its (main) use, with the layout in
    /// which it is packed.
    ///
    /// A tied embedding is packed as the output head and stands at the head's
    /// place; the embedding kernel gathers its rows from the panels.
    pub fn in_schedule_order(&self) -> Vec<Part> {
        let mut order = Vec::new();
        match self.output {
            Output::Tied => {}
            Output::Untied(_) => order.push(matrix(&self.token_embedding, PackedLayout::Rows)),
        }
        for layer in &self.layers {
            order.push(vector(&layer.attention_norm));
            for linear in [&layer.query, &layer.key, &layer.value] {
                push_linear(&mut order, linear);
            }
            let norms = [&layer.key_norm, &layer.query_norm];
            order.extend(norms.into_iter().flatten().map(vector));
            push_linear(&mut order, &layer.attention_output);
            order.extend(layer.attention_post_norm.iter().map(vector));
            order.push(vector(&layer.feed_forward_norm));
            for linear in [&layer.gate, &layer.up, &layer.down] {
                push_linear(&mut order, linear);
            }
            order.extend(layer.feed_forward_post_norm.iter().map(vector));
        }
        order.push(vector(&self.output_norm));
        match &self.output {
            Output::Tied => order.push(matrix(&self.token_embedding, PackedLayout::Panels)),
            Output::Untied(head) => push_linear(&mut order, head),
        }
        order
    }
}

fn matrix(matrix: &Matrix, layout: PackedLayout) -> Part {
    Part {
        name: matrix.name.clone(),
        tensor: matrix.tensor,
        layout,
        first: matrix.first_row,
        count: matrix.rows,
    }
}

fn vector(vector: &Vector) -> Part {
    Part {
        name: vector.name.clone(),
        tensor: vector.tensor,
        layout: PackedLayout::Vector,
        first: vector.first,
        count: vector.len,
    }
}

fn push_linear(order: &mut Vec<Part>, linear: &Linear) {
    order.push(matrix(&linear.weight, PackedLayout::Panels));
    order.extend(linear.bias.iter().map(vector));
}
