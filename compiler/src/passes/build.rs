//! Builds the graph of a llama-family model: one column of logits from the
//! tokens of a pass.
//!
//! Requires: a checked [`ModelConfig`].
//! Ensures: a graph of stage `Built`; tensors bear their names in the model file.
//! Breaks: nothing.

use omex_kernels::spec::{Activation, F32, KvFormat, NormKind, Rope, TableLayout};

use crate::import::llama::{Layer, Linear, Matrix, ModelConfig, Output, Vector};
use crate::ir::{Frequencies, Graph, Op, Site, ValueId};

/// `ring` is the number of positions of every KV ring, a multiple of 16.
pub fn build(config: &ModelConfig, ring: u32) -> Graph {
    let mut builder = Builder {
        graph: Graph::new(),
        config,
        ring,
        layer: None,
    };
    let logits = builder.model();
    builder.graph.set_result(logits);
    builder.graph
}

struct Builder<'a> {
    graph: Graph,
    config: &'a ModelConfig,
    ring: u32,
    /// The layer that is being built.
    layer: Option<u32>,
}

impl Builder<'_> {
    fn add(&mut self, op: Op, operands: &[ValueId], name: &str) -> ValueId {
        self.graph.add(op, operands, Site::new(self.layer, name))
    }

    /// The name of a tensor of the current layer, or of the model.
    fn tensor(&self, name: &str, suffix: &str) -> String {
        format!("{}.{suffix}", Site::new(self.layer, name))
    }

    fn matrix(&mut self, matrix: Matrix, layout: TableLayout, name: &str) -> ValueId {
        let op = Op::Matrix {
            tensor: self.tensor(name, "weight"),
            format: matrix.format,
            layout,
            rows: matrix.rows,
            k: matrix.columns,
        };
        self.add(op, &[], name)
    }

    fn vector(&mut self, vector: Vector, name: &str, suffix: &str) -> ValueId {
        let op = Op::Vector {
            tensor: self.tensor(name, suffix),
            len: vector.len,
        };
        self.add(op, &[], name)
    }

    fn norm(&mut self, x: ValueId, weight: Vector, name: &str) -> ValueId {
        let weight = self.vector(weight, name, "weight");
        let op = Op::Norm {
            kind: NormKind::Rms,
            eps: F32::new(self.config.hyperparameters.rms_epsilon),
            bias: false,
            residual: false,
            output: Activation::F32,
        };
        self.add(op, &[x, weight], name)
    }

    fn linear(&mut self, x: ValueId, linear: Linear, name: &str) -> ValueId {
        let weight = self.matrix(linear.weight, TableLayout::Panels, name);
        let op = Op::Matmul {
            bias: false,
            residual: false,
        };
        let out = self.add(op, &[weight, x], name);
        match linear.bias {
            None => out,
            Some(bias) => {
                let bias = self.vector(bias, name, "bias");
                self.add(Op::AddBias, &[out, bias], name)
            }
        }
    }

    fn rope(&self) -> Rope {
        let rope = &self.config.hyperparameters.rope;
        Rope {
            pairs: rope.dimension_count / 2,
            pairing: rope.pairing,
        }
    }

    fn model(&mut self) -> ValueId {
        let config = self.config;
        let h = &config.hyperparameters;
        let tokens = self.add(Op::Tokens, &[], "tokens");
        // A tied table is packed as the output head; a row's gather reads its lane.
        let layout = match config.weights.output {
            Output::Tied => TableLayout::Panels,
            Output::Untied(_) => TableLayout::Rows,
        };
        let table = self.matrix(config.weights.token_embedding, layout, "token_embd");
        let scale = F32::new(1.0);
        let mut x = self.add(Op::Embed { scale }, &[tokens, table], "token_embd");

        let factors = h.rope.factors.iter().flatten();
        let frequencies = Op::Frequencies(Frequencies {
            base: F32::new(h.rope.base),
            divisor: F32::new(h.rope.position_divisor),
            width: h.rope.dimension_count,
            factors: factors.map(|&f| F32::new(f)).collect(),
        });
        let frequencies = self.add(frequencies, &[], "rope");
        let scale = F32::new(1.0);
        let rope_table = self.add(Op::RopeTable { scale }, &[frequencies], "rope");

        for (i, layer) in (0..).zip(&config.weights.layers) {
            self.layer = Some(i);
            x = self.layer(x, rope_table, layer);
        }
        self.layer = None;

        let x = self.add(Op::SelectColumn, &[x], "output");
        let x = self.norm(x, config.weights.output_norm, "output_norm");
        match config.weights.output {
            Output::Untied(output) => self.linear(x, output, "output"),
            Output::Tied => {
                let op = Op::Matmul {
                    bias: false,
                    residual: false,
                };
                self.add(op, &[table, x], "output")
            }
        }
    }

    fn layer(&mut self, x: ValueId, rope_table: ValueId, layer: &Layer) -> ValueId {
        let h = &self.config.hyperparameters;
        let rope = Op::Rope {
            rope: self.rope(),
            head_dim: h.head_len,
        };
        let norm = self.norm(x, layer.attention_norm, "attn_norm");
        let q = self.linear(norm, layer.query, "attn_q");
        let k = self.linear(norm, layer.key, "attn_k");
        let v = self.linear(norm, layer.value, "attn_v");
        let q = self.add(rope.clone(), &[q, rope_table], "attn_q_rope");
        let k = self.add(rope, &[k, rope_table], "attn_k_rope");
        let kv = Op::KvStore {
            kv_heads: h.kv_head_count,
            head_dim: h.head_len,
            ring: self.ring,
            format: KvFormat::F16,
            norm: None,
            rope: None,
        };
        let kv = self.add(kv, &[k, v], "kv");
        let attention = Op::Attention {
            heads: h.head_count,
            window: 0,
            scale: F32::new(1.0 / omex_kernels::math::sqrt(h.head_len as f32)),
            softcap: None,
            norm: None,
            rope: None,
            output: Activation::F32,
        };
        let attention = self.add(attention, &[q, kv], "attn");
        let out = self.linear(attention, layer.attention_output, "attn_output");
        let x = self.add(Op::Add, &[x, out], "attn_residual");

        let norm = self.norm(x, layer.feed_forward_norm, "ffn_norm");
        let gate = self.linear(norm, layer.gate, "ffn_gate");
        let up = self.linear(norm, layer.up, "ffn_up");
        let gate = self.add(Op::Silu, &[gate], "ffn_silu");
        let gated = self.add(Op::Mul, &[gate, up], "ffn_gated");
        let down = self.linear(gated, layer.down, "ffn_down");
        self.add(Op::Add, &[x, down], "ffn_residual")
    }
}
