//! The tiny model evaluated one token at a time, with vectors and loops.

use omex_kernels::reference::{
    self, AttentionHead, KvHead, Q8Blocks, Q8BlocksMut, matmul_panel_f32, matmul_panel_q8,
};
use omex_kernels::spec::GateFunction;
use omex_kernels::{WeightFormat, panel};
use omex_plan::packed::PackedLayout;

use super::{CONTEXT, EPS, HEAD_DIM, HEADS, KV_HEADS, LAYERS, ROPE, Tiny};

pub(crate) struct Naive<'a> {
    tiny: &'a Tiny,
    keys: Vec<Vec<u16>>,
    values: Vec<Vec<u16>>,
    position: u32,
}

impl<'a> Naive<'a> {
    pub(crate) fn new(tiny: &'a Tiny) -> Naive<'a> {
        let ring = (KV_HEADS * HEAD_DIM * CONTEXT) as usize;
        Naive {
            tiny,
            keys: vec![vec![0; ring]; LAYERS as usize],
            values: vec![vec![0; ring]; LAYERS as usize],
            position: 0,
        }
    }

    /// Units of a tensor, put together from its pages.
    fn bytes(&self, name: &str) -> (&omex_plan::packed::Tensor, Vec<u8>) {
        let weights = &self.tiny.plan.weights;
        let tensor = weights.tensors.iter().find(|t| t.name == name).unwrap();
        let (_, unit) = tensor.unit().unwrap();
        let mut bytes = Vec::new();
        for piece in &tensor.pieces {
            let at = weights.pages[piece.page.index()].file_offset + piece.offset;
            bytes.extend(&self.tiny.packed[at as usize..][..(piece.units as u64 * unit) as usize]);
        }
        (tensor, bytes)
    }

    fn matmul(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let (tensor, bytes) = self.bytes(name);
        let format = tensor.format.get().unwrap();
        let k = tensor.k;
        let n = k as usize / 32;
        let (mut codes, mut scales) = (vec![0; 32 * n], vec![0.0; n]);
        let (mut scaled_sums, mut sums) = (vec![0.0; n], vec![0; 2 * n]);
        if format.takes_q8() {
            let out = Q8BlocksMut {
                codes: &mut codes,
                scales: &mut scales,
                scaled_sums: &mut scaled_sums,
                sums: &mut sums,
            };
            reference::quantize(x, out).unwrap();
        }
        let blocks = Q8Blocks {
            codes: &codes,
            scales: &scales,
            scaled_sums: &scaled_sums,
            sums: &sums,
        };
        let panels = bytes.chunks(format.panel_bytes(k) as usize);
        let mut out: Vec<f32> = panels
            .flat_map(|panel| match format.takes_q8() {
                true => matmul_panel_q8(format, k, panel, blocks),
                false => matmul_panel_f32(format, k, panel, x),
            })
            .collect();
        out.truncate(tensor.rows as usize);
        out
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let (_, bytes) = self.bytes(name);
        let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        let weight: Vec<f32> = bytes.chunks(4).map(float).collect();
        let mut out = vec![0.0; x.len()];
        reference::rms_norm(x, &weight[..x.len()], EPS, &mut out).unwrap();
        out
    }

    fn embedding(&self, token: u32) -> Vec<f32> {
        let (tensor, bytes) = self.bytes("embedding");
        let format = tensor.format.get().unwrap();
        let mut row = vec![0.0; tensor.k as usize];
        match tensor.layout {
            PackedLayout::Panels => {
                let size = format.panel_bytes(tensor.k) as usize;
                let panel = &bytes[(token / 16) as usize * size..][..size];
                panel::dequantize_lane(format, panel, (token % 16) as usize, &mut row);
            }
            PackedLayout::Rows => {
                assert_eq!(format, WeightFormat::F32);
                let at = token as usize * tensor.k as usize * 4;
                for (x, b) in row.iter_mut().zip(bytes[at..].chunks(4)) {
                    *x = f32::from_le_bytes(b.try_into().unwrap());
                }
            }
            PackedLayout::Vector => unreachable!(),
        }
        row.iter().map(|x| x * 1.5).collect()
    }

    /// Logits behind the next token.
    pub(crate) fn push(&mut self, token: u32) -> Vec<f32> {
        let dim = HEAD_DIM as usize;
        let mut x = self.embedding(token);
        let mut table = vec![0.0; 2 * ROPE.pairs as usize];
        reference::rope_table(self.position, &self.tiny.plan.constants, &mut table);
        for layer in 0..LAYERS as usize {
            let named = |name: &str| format!("{layer}.{name}");
            let xn = self.norm(&named("norm1"), &x);
            let q = self.matmul(&named("q"), &xn);
            let k = self.matmul(&named("k"), &xn);
            let v = self.matmul(&named("v"), &xn);
            let per_head = dim * CONTEXT as usize;
            for head in 0..KV_HEADS as usize {
                reference::kv_store(
                    &k[head * dim..],
                    &v[head * dim..],
                    dim,
                    dim,
                    1,
                    self.position,
                    Some((ROPE, &table, table.len())),
                    &mut self.keys[layer][head * per_head..][..per_head],
                    &mut self.values[layer][head * per_head..][..per_head],
                )
                .unwrap();
            }
            let mut attended = Vec::new();
            for head in 0..HEADS as usize {
                let mut q = q[head * dim..][..dim].to_vec();
                reference::rotate_head(ROPE, &table, &mut q);
                let kv_head = head * KV_HEADS as usize / HEADS as usize;
                let kv = KvHead {
                    keys: &self.keys[layer][kv_head * per_head..][..per_head],
                    values: &self.values[layer][kv_head * per_head..][..per_head],
                };
                let query = AttentionHead {
                    position: self.position,
                    first: 0,
                    scale: 0.18,
                };
                let mut out = vec![0.0; dim];
                reference::attend(query, &q, kv, &mut out).unwrap();
                attended.extend(out);
            }
            let o = self.matmul(&named("o"), &attended);
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            let xn = self.norm(&named("norm2"), &x);
            let gate = self.matmul(&named("gate"), &xn);
            let up = self.matmul(&named("up"), &xn);
            let mut gated = vec![0.0; gate.len()];
            reference::gate(GateFunction::Silu, &gate, &up, &mut gated);
            let down = self.matmul(&named("down"), &gated);
            x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
        }
        self.position += 1;
        let hn = self.norm("norm", &x);
        let tensors = &self.tiny.plan.weights.tensors;
        let untied = tensors.iter().any(|t| t.name == "head");
        self.matmul(if untied { "head" } else { "embedding" }, &hn)
    }
}
