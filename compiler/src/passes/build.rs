//! Builds the graph of a model: one column of logits from the tokens of a pass.
//!
//! Requires: a checked [`ModelConfig`].
//! Ensures: a graph of stage `Built`; tensors bear their names in the packed model.
//! Breaks: nothing.

use omex_kernels::spec::{self, Activation, F32, GateFunction, KvFormat, NormKind, TableLayout};

use crate::choices;
use crate::import::family::{Layer, Linear, Matrix, ModelConfig, Output, Rope, Vector};
use crate::ir::{Graph, Op, Site, ValueId};

/// The key-value cache of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Positions that are kept.
    pub context: u32,
    /// Tokens of the largest pass.
    pub columns: u32,
    pub format: KvFormat,
}

pub fn build(config: &ModelConfig, cache: Cache) -> Graph {
    let mut builder = Builder {
        graph: Graph::new(),
        config,
        cache,
        rope_tables: Vec::new(),
        layer: None,
    };
    let logits = builder.model();
    builder.graph.set_result(logits);
    builder.graph
}

struct Builder<'a> {
    graph: Graph,
    config: &'a ModelConfig,
    cache: Cache,
    /// The table of every rotation so far.
    rope_tables: Vec<(&'a Rope, ValueId)>,
    /// The layer that is being built.
    layer: Option<u32>,
}

impl<'a> Builder<'a> {
    fn add(&mut self, op: Op, operands: &[ValueId], name: &str) -> ValueId {
        self.graph.add(op, operands, Site::new(self.layer, name))
    }

    fn matrix(&mut self, matrix: &Matrix, layout: TableLayout, name: &str) -> ValueId {
        let op = Op::Matrix {
            tensor: matrix.name.clone(),
            format: matrix.format,
            layout,
            rows: matrix.rows,
            k: matrix.columns,
        };
        self.add(op, &[], name)
    }

    fn vector(&mut self, vector: &Vector, name: &str) -> ValueId {
        let op = Op::Vector {
            tensor: vector.name.clone(),
            len: vector.len,
        };
        self.add(op, &[], name)
    }

    fn eps(&self) -> F32 {
        F32::new(self.config.hyperparameters.rms_epsilon)
    }

    fn norm(&mut self, x: ValueId, weight: &Vector, name: &str) -> ValueId {
        let weight = self.vector(weight, name);
        let op = Op::Norm {
            kind: NormKind::Rms,
            eps: self.eps(),
            bias: false,
            residual: false,
            output: Activation::F32,
        };
        self.add(op, &[x, weight], name)
    }

    /// The stream plus what a part of a layer adds to it, normalized first
    /// where the family does that.
    fn residual(
        &mut self,
        stream: ValueId,
        part: ValueId,
        post_norm: &Option<Vector>,
        [norm_name, name]: [&str; 2],
    ) -> ValueId {
        let part = match post_norm {
            Some(weight) => self.norm(part, weight, norm_name),
            None => part,
        };
        self.add(Op::Add, &[stream, part], name)
    }

    fn linear(&mut self, x: ValueId, linear: &Linear, name: &str) -> ValueId {
        let weight = self.matrix(&linear.weight, TableLayout::Panels, name);
        let op = Op::Matmul {
            bias: false,
            residual: false,
        };
        let out = self.add(op, &[weight, x], name);
        match &linear.bias {
            None => out,
            Some(bias) => {
                let bias = self.vector(bias, name);
                self.add(Op::AddBias, &[out, bias], name)
            }
        }
    }

    /// The table of a rotation, one for all layers that share it.
    fn rope_table(&mut self, rope: &'a Rope) -> ValueId {
        if let Some((_, table)) = self.rope_tables.iter().find(|(r, _)| *r == rope) {
            return *table;
        }
        let layer = self.layer.take();
        let frequencies = Op::Frequencies(rope.frequencies(self.cache.context));
        let frequencies = self.add(frequencies, &[], "rope");
        let scale = F32::new(rope.scale);
        let table = self.add(Op::RopeTable { scale }, &[frequencies], "rope");
        self.layer = layer;
        self.rope_tables.push((rope, table));
        table
    }

    /// A projection's heads, normalized and rotated where the model does that.
    fn heads(
        &mut self,
        x: ValueId,
        norm: &Option<Vector>,
        rope: Option<&'a Rope>,
        name: &str,
    ) -> ValueId {
        let head_dim = self.config.hyperparameters.head_len;
        let normed = match norm {
            None => x,
            Some(weight) => {
                let name = format!("{name}_norm");
                let weight = self.vector(weight, &name);
                let op = Op::HeadNorm {
                    eps: self.eps(),
                    head_dim,
                };
                self.add(op, &[x, weight], &name)
            }
        };
        match rope {
            None => normed,
            Some(rope) => {
                let table = self.rope_table(rope);
                let op = Op::Rope {
                    rope: spec::Rope {
                        pairs: rope.pairs(),
                        pairing: rope.pairing,
                    },
                    head_dim,
                };
                self.add(op, &[normed, table], &format!("{name}_rope"))
            }
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
        let table = self.matrix(&config.weights.token_embedding, layout, "token_embd");
        let scale = F32::new(h.embedding_scale);
        let mut x = self.add(Op::Embed { scale }, &[tokens, table], "token_embd");
        for (i, layer) in (0..).zip(&config.weights.layers) {
            self.layer = Some(i);
            x = self.layer(x, i, layer);
        }
        self.layer = None;

        let x = self.add(Op::SelectColumn, &[x], "output");
        let x = self.norm(x, &config.weights.output_norm, "output_norm");
        let logits = match &config.weights.output {
            Output::Untied(output) => self.linear(x, output, "output"),
            Output::Tied => {
                let op = Op::Matmul {
                    bias: false,
                    residual: false,
                };
                self.add(op, &[table, x], "output")
            }
        };
        match h.output_softcap {
            None => logits,
            Some(cap) => {
                let cap = F32::new(cap);
                self.add(Op::Softcap { cap }, &[logits], "output_softcap")
            }
        }
    }

    fn layer(&mut self, x: ValueId, index: u32, layer: &'a Layer) -> ValueId {
        let h = &self.config.hyperparameters;
        let seen = h.attention(index);
        let norm = self.norm(x, &layer.attention_norm, "attn_norm");
        let q = self.linear(norm, &layer.query, "attn_q");
        let k = self.linear(norm, &layer.key, "attn_k");
        let v = self.linear(norm, &layer.value, "attn_v");
        let q = self.heads(q, &layer.query_norm, seen.rope, "attn_q");
        let k = self.heads(k, &layer.key_norm, seen.rope, "attn_k");
        let Cache {
            context,
            columns,
            format,
        } = self.cache;
        // A window that is never left is none.
        let window = seen.window.filter(|&window| window < context);
        let kv = Op::KvStore {
            kv_heads: h.kv_head_count,
            head_dim: h.head_len,
            ring: choices::ring(context, window, columns),
            format,
            norm: None,
            rope: None,
        };
        let kv = self.add(kv, &[k, v], "kv");
        let attention = Op::Attention {
            heads: h.head_count,
            window: window.unwrap_or(0),
            scale: F32::new(h.attention_scale),
            softcap: h.attention_softcap.map(F32::new),
            norm: None,
            rope: None,
            output: Activation::F32,
        };
        let attention = self.add(attention, &[q, kv], "attn");
        let out = self.linear(attention, &layer.attention_output, "attn_output");
        let names = ["attn_post_norm", "attn_residual"];
        let x = self.residual(x, out, &layer.attention_post_norm, names);

        let norm = self.norm(x, &layer.feed_forward_norm, "ffn_norm");
        let gate = self.linear(norm, &layer.gate, "ffn_gate");
        let up = self.linear(norm, &layer.up, "ffn_up");
        let (function, name) = match h.gate {
            GateFunction::Silu => (Op::Silu, "ffn_silu"),
            GateFunction::GeluTanh => (Op::GeluTanh, "ffn_gelu"),
        };
        let gate = self.add(function, &[gate], name);
        let gated = self.add(Op::Mul, &[gate, up], "ffn_gated");
        let down = self.linear(gated, &layer.down, "ffn_down");
        let names = ["ffn_post_norm", "ffn_residual"];
        self.residual(x, down, &layer.feed_forward_post_norm, names)
    }
}
