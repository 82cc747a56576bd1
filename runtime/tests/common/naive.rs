//! The tiny model evaluated one token at a time, with vectors and loops.

use omex_kernels::reference::{
    self, AttentionHead, HeadTransform, KvHead, KvRing, KvRingMut, Q8Blocks, Q8BlocksMut,
    matmul_panel_f32, matmul_panel_q8,
};
use omex_kernels::spec::{KvFormat, NormKind};
use omex_kernels::{KernelSpec, WeightFormat, panel};
use omex_plan::packed::PackedLayout;

use super::{
    CONTEXT, EPS, HEAD_DIM, HEADS, KV_HEADS, LAYERS, LOGIT_CAP, ROPE, ROPE_SCALE, SCORE_CAP, Style,
    Tiny,
};

/// Keys or values of all positions of one layer, head by head, in both formats.
struct Ring {
    halves: Vec<u16>,
    codes: Vec<i8>,
    scales: Vec<f32>,
}

impl Ring {
    fn new() -> Ring {
        let elements = (KV_HEADS * HEAD_DIM * CONTEXT) as usize;
        Ring {
            halves: vec![0; elements],
            codes: vec![0; elements],
            scales: vec![0.0; elements / 32],
        }
    }

    /// The group of 16 slots that a position lies in.
    fn group(&mut self, format: KvFormat, head: usize, position: u32) -> KvRingMut<'_> {
        let dim = HEAD_DIM as usize;
        let first = head * CONTEXT as usize + position as usize / 16 * 16;
        match format {
            KvFormat::F16 => KvRingMut::F16(&mut self.halves[first * dim..][..16 * dim]),
            KvFormat::Q8 => KvRingMut::Q8 {
                codes: &mut self.codes[first * dim..][..16 * dim],
                scales: &mut self.scales[first * dim / 32..][..dim / 2],
            },
        }
    }

    fn of_head(&self, format: KvFormat, head: usize) -> KvRing<'_> {
        let len = (HEAD_DIM * CONTEXT) as usize;
        match format {
            KvFormat::F16 => KvRing::F16(&self.halves[head * len..][..len]),
            KvFormat::Q8 => KvRing::Q8 {
                codes: &self.codes[head * len..][..len],
                scales: &self.scales[head * len / 32..][..len / 32],
            },
        }
    }
}

pub(crate) struct Naive<'a> {
    tiny: &'a Tiny,
    keys: Vec<Ring>,
    values: Vec<Ring>,
    position: u32,
}

impl<'a> Naive<'a> {
    pub(crate) fn new(tiny: &'a Tiny) -> Naive<'a> {
        let rings = || (0..LAYERS).map(|_| Ring::new()).collect();
        Naive {
            tiny,
            keys: rings(),
            values: rings(),
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

    fn vector(&self, name: &str) -> Vec<f32> {
        let (tensor, bytes) = self.bytes(name);
        let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        let k = tensor.k as usize;
        bytes.chunks(4).take(k).map(float).collect()
    }

    fn norm(&self, name: &str, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        reference::rms_norm(x, &self.vector(name), EPS, &mut out).unwrap();
        out
    }

    fn final_norm(&self, x: &[f32]) -> Vec<f32> {
        match self.tiny.style {
            Style::Plain => self.norm("norm", x),
            Style::Capped => {
                let (mean, r) = reference::layer_moments(x, EPS).unwrap();
                let weight = self
                    .vector("norm")
                    .into_iter()
                    .zip(self.vector("norm_bias"));
                x.iter()
                    .zip(weight)
                    .map(|(x, (w, b))| ((x - mean) * r) * w + b)
                    .collect()
            }
        }
    }

    /// What a part of a layer adds to the stream.
    fn behind(&self, name: &str, x: Vec<f32>) -> Vec<f32> {
        match self.tiny.style {
            Style::Plain => x,
            Style::Capped => self.norm(name, &x),
        }
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

    /// Logits of a token in a model of [`Tiny::of_norm`]. The norm's own formulas stand
    /// here again, with the sums of `kernels/NUMERICS.md`.
    pub(crate) fn logits_of_norm(&self, token: u32, spec: KernelSpec) -> Vec<f32> {
        let KernelSpec::Norm {
            kind,
            len,
            eps,
            bias,
            residual,
            ..
        } = spec
        else {
            panic!("not a norm")
        };
        let sum = |terms: &dyn Fn(usize) -> f32| {
            let mut lanes = [0.0f32; 16];
            for i in 0..len as usize {
                lanes[i % 16] += terms(i);
            }
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    lanes[i] += lanes[i + half];
                }
            }
            lanes[0]
        };
        let (_, table) = self.bytes("embedding");
        let row = &table[token as usize * len as usize * 4..][..len as usize * 4];
        let float = |b: &[u8]| f32::from_le_bytes(b.try_into().unwrap());
        let x: Vec<f32> = row.chunks(4).map(float).collect();
        let mean = match kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => sum(&|i| x[i]) / len as f32,
        };
        let centred = |i: usize| match kind {
            NormKind::Rms => x[i],
            NormKind::Layer => x[i] - mean,
        };
        let r = 1.0 / (sum(&|i| centred(i) * centred(i)) / len as f32 + eps.get()).sqrt();
        let weight = self.vector("norm");
        let bias = bias.then(|| self.vector("norm_bias"));
        let normed: Vec<f32> = (0..len as usize)
            .map(|i| {
                let mut value = centred(i) * r * weight[i];
                if let Some(bias) = &bias {
                    value += bias[i];
                }
                if residual { value + x[i] } else { value }
            })
            .collect();
        self.matmul("head", &normed)
    }

    /// Logits behind the next token.
    pub(crate) fn push(&mut self, token: u32) -> Vec<f32> {
        let dim = HEAD_DIM as usize;
        let (style, format) = (self.tiny.style, self.tiny.kv);
        let mut x = self.embedding(token);
        let mut table = vec![0.0; 2 * ROPE.pairs as usize];
        reference::rope_table(
            self.position,
            &self.tiny.plan.constants,
            ROPE_SCALE,
            &mut table,
        );
        for layer in 0..LAYERS {
            let named = |name: &str| format!("{layer}.{name}");
            let head_norm = |name: &str| style.head_norm().then(|| self.vector(&named(name)));
            let (q_norm, k_norm) = (head_norm("q_norm"), head_norm("k_norm"));
            let xn = self.norm(&named("norm1"), &x);
            let q = self.matmul(&named("q"), &xn);
            let k = self.matmul(&named("k"), &xn);
            let v = self.matmul(&named("v"), &xn);
            fn transform<'a>(norm: &'a Option<Vec<f32>>, table: &'a [f32]) -> HeadTransform<'a> {
                HeadTransform {
                    norm: norm.as_ref().map(|w| (&w[..], EPS)),
                    rope: Some((ROPE, table)),
                }
            }
            let l = layer as usize;
            for head in 0..KV_HEADS as usize {
                reference::kv_store(
                    &k[head * dim..][..dim],
                    &v[head * dim..][..dim],
                    transform(&k_norm, &table),
                    self.position,
                    &mut self.keys[l].group(format, head, self.position),
                    &mut self.values[l].group(format, head, self.position),
                )
                .unwrap();
            }
            let mut attended = Vec::new();
            for head in 0..HEADS as usize {
                let mut rotated = vec![0.0; dim];
                let q = &q[head * dim..][..dim];
                transform(&q_norm, &table).apply(q, &mut rotated).unwrap();
                let kv_head = head * KV_HEADS as usize / HEADS as usize;
                let kv = KvHead {
                    keys: self.keys[l].of_head(format, kv_head),
                    values: self.values[l].of_head(format, kv_head),
                };
                let query = AttentionHead {
                    position: self.position,
                    first: match style.window(layer) {
                        0 => 0,
                        window => (self.position + 1).saturating_sub(window),
                    },
                    scale: 0.18,
                    softcap: (style == Style::Capped).then_some(SCORE_CAP),
                };
                let mut out = vec![0.0; dim];
                reference::attend(query, &rotated, kv, &mut out).unwrap();
                attended.extend(out);
            }
            let o = self.behind(&named("post1"), self.matmul(&named("o"), &attended));
            x.iter_mut().zip(o).for_each(|(x, o)| *x += o);
            let xn = self.norm(&named("norm2"), &x);
            let gate = self.matmul(&named("gate"), &xn);
            let up = self.matmul(&named("up"), &xn);
            let mut gated = vec![0.0; gate.len()];
            reference::gate(style.gate(), &gate, &up, &mut gated);
            let down = self.behind(&named("post2"), self.matmul(&named("down"), &gated));
            x.iter_mut().zip(down).for_each(|(x, d)| *x += d);
        }
        self.position += 1;
        let hn = self.final_norm(&x);
        let tensors = &self.tiny.plan.weights.tensors;
        let untied = tensors.iter().any(|t| t.name == "head");
        let logits = self.matmul(if untied { "head" } else { "embedding" }, &hn);
        match style {
            Style::Plain => logits,
            Style::Capped => {
                let mut capped = vec![0.0; logits.len()];
                reference::softcap_all(&logits, LOGIT_CAP, &mut capped).unwrap();
                capped
            }
        }
    }
}
