//! A tiny model, made by hand: two layers with random weights, its plan, its
//! packed model, and a naive evaluation of it.
#![allow(dead_code)]

pub(crate) mod naive;

use std::path::{Path, PathBuf};

use omex_compiler::tokenizer::{self, Vocabulary};
use omex_kernels::math::{f32_to_f16, inverse_frequency};
use omex_kernels::panel::pack_panel;
use omex_kernels::spec::{
    Activation, F32, GateFunction, KvFormat, NormKind, Rope, RopePairing, TableLayout,
};
use omex_kernels::{KernelSpec, WeightFormat, pad_to_panel};
use omex_plan::file::{self, Arch};
use omex_plan::memory::MemoryContract;
use omex_plan::packed::{
    FormatCode, PACKED_HEADER_BYTES, PAGE_ALIGN, PackedIndex, PackedLayout, Page, Piece, Tensor,
    packed_header,
};
use omex_plan::prompt::PromptTemplate;
use omex_plan::session::{SessionBuffers, SessionBytes};
use omex_plan::task::{Input, Node, NodeKind, Program, Sampling, Window};
use omex_plan::{
    Arg, Buffer, BufferId, BufferKind, InputId, Kernel, KernelId, Model, NodeId, PageId, Phase,
    Plan, Step, Target, TensorId, WeightSource, Weights,
};
use omex_runtime::tokenizer::TokenKind;
use omex_runtime::{LoadOptions, packed_file_name};

pub(crate) const HIDDEN: u32 = 64;
pub(crate) const HEADS: u32 = 2;
pub(crate) const KV_HEADS: u32 = 1;
pub(crate) const HEAD_DIM: u32 = 32;
pub(crate) const FFN: u32 = 96;
pub(crate) const LAYERS: u32 = 2;
pub(crate) const CONTEXT: u32 = 160;
pub(crate) const EPS: f32 = 1e-5;
pub(crate) const ROPE: Rope = Rope {
    pairs: HEAD_DIM / 2,
    pairing: RopePairing::Halves,
};
pub(crate) const ROPE_SCALE: f32 = 1.25;
/// What the layers of [`Style::Capped`] see.
pub(crate) const WINDOW: u32 = 20;
pub(crate) const SCORE_CAP: f32 = 0.5;
pub(crate) const LOGIT_CAP: f32 = 3.0;
/// Pages are this large at most, so that every matrix has several.
const PAGE_BYTES: usize = 6 << 10;

pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
    /// In -1..1.
    pub(crate) fn float(&mut self) -> f32 {
        (self.next() & 0xffff) as f32 / 32768.0 - 1.0
    }
}

/// Bytes of one row as a model file has them.
fn random_row(random: &mut Random, format: WeightFormat, k: u32) -> Vec<u8> {
    let mut row = Vec::new();
    match format {
        WeightFormat::F32 => {
            for _ in 0..k {
                row.extend((random.float() * 0.3).to_le_bytes());
            }
        }
        WeightFormat::Q8_0 => {
            for _ in 0..k / 32 {
                row.extend(f32_to_f16(0.002 + 0.001 * random.float()).to_le_bytes());
                row.extend((0..32).map(|_| random.next() as u8));
            }
        }
        other => panic!("no random {} rows", other.name()),
    }
    row
}

/// A vocabulary of bytes, letters and some pairs, SentencePiece style.
pub(crate) fn vocabulary() -> Vocabulary {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    let mut kinds = vec![TokenKind::Unknown, TokenKind::Control, TokenKind::Control];
    for byte in 0..=255u32 {
        tokens.push(format!("<0x{byte:02X}>"));
        kinds.push(TokenKind::Byte);
    }
    for c in "\u{2581}abcdefghijklmnopqrstuvwxyz".chars() {
        tokens.push(c.to_string());
    }
    for pair in ["th", "he", "in", "er", "the", "ing", "\u{2581}the"] {
        tokens.push(pair.to_owned());
    }
    kinds.resize(tokens.len(), TokenKind::Normal);
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    Vocabulary {
        model: tokenizer::Model::Scores(scores),
        tokens,
        kinds,
        bos: Some(1),
        eos: Some(2),
        eot: None,
        eom: None,
        unknown: Some(0),
        padding: None,
        add_bos: true,
        add_eos: false,
        add_space_prefix: false,
        strip_right: false,
        strip_left: None,
        chat_template: None,
    }
}

/// Which operations the model is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Norms before the parts of a layer, SiLU, full attention.
    Plain,
    /// Norms before and behind them and of the heads, GELU, capped scores and
    /// logits, a sliding window in the first layer, a LayerNorm at the end.
    Capped,
}

impl Style {
    pub(crate) fn window(self, layer: u32) -> u32 {
        match self {
            Style::Capped if layer == 0 => WINDOW,
            Style::Plain | Style::Capped => 0,
        }
    }

    pub(crate) fn head_norm(self) -> bool {
        self == Style::Capped
    }

    pub(crate) fn gate(self) -> GateFunction {
        match self {
            Style::Plain => GateFunction::Silu,
            Style::Capped => GateFunction::GeluTanh,
        }
    }
}

/// What varies between the tests' plans.
#[derive(Clone, Copy)]
pub(crate) struct Options {
    pub(crate) format: WeightFormat,
    /// The embedding table is the output head.
    pub(crate) tied: bool,
    pub(crate) read: bool,
    pub(crate) columns_max: u32,
    pub(crate) seed: u64,
    /// Columns of the head.
    pub(crate) head_columns: u32,
    pub(crate) sequences: u32,
    pub(crate) style: Style,
    pub(crate) kv: KvFormat,
    /// A token whose row of an untied F32 embedding table is NaN.
    pub(crate) nan_token: Option<u32>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            format: WeightFormat::Q8_0,
            tied: true,
            read: false,
            columns_max: 64,
            seed: 7,
            head_columns: 1,
            sequences: 1,
            style: Style::Plain,
            kv: KvFormat::F16,
            nan_token: None,
        }
    }
}

/// A plan and everything beside it.
pub(crate) struct Tiny {
    pub(crate) plan: Plan,
    pub(crate) packed: Vec<u8>,
    pub(crate) tokenizer: Vec<u8>,
    pub(crate) style: Style,
    pub(crate) kv: KvFormat,
}

#[derive(Default)]
struct Pages {
    pages: Vec<Vec<u8>>,
    tensors: Vec<Tensor>,
}

impl Pages {
    /// Adds units of equal size, cutting pieces at page ends.
    fn tensor(
        &mut self,
        name: &str,
        format: WeightFormat,
        layout: PackedLayout,
        (rows, k): (u32, u32),
        units: &[Vec<u8>],
    ) -> Arg {
        let mut pieces: Vec<Piece> = Vec::new();
        for (index, unit) in units.iter().enumerate() {
            let full = |page: &Vec<u8>| page.len() + unit.len() > PAGE_BYTES;
            let new_page = self.pages.last().is_none_or(full);
            if new_page {
                self.pages.push(Vec::new());
            }
            let page = self.pages.last_mut().unwrap();
            if index == 0 {
                page.resize(page.len().next_multiple_of(64), 0);
            }
            if index == 0 || new_page {
                pieces.push(Piece {
                    page: PageId::from(self.pages.len() - 1),
                    offset: self.pages.last().unwrap().len() as u64,
                    first_unit: index as u32,
                    units: 0,
                });
            }
            pieces.last_mut().unwrap().units += 1;
            self.pages.last_mut().unwrap().extend_from_slice(unit);
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            format: FormatCode::new(format),
            layout,
            rows,
            k,
            pieces,
        });
        Arg::Tensor(TensorId::from(self.tensors.len() - 1))
    }

    fn matrix(
        &mut self,
        random: &mut Random,
        name: &str,
        format: WeightFormat,
        rows: u32,
        k: u32,
    ) -> Arg {
        let all: Vec<Vec<u8>> = (0..rows).map(|_| random_row(random, format, k)).collect();
        let panels: Vec<Vec<u8>> = all
            .chunks(16)
            .map(|rows| {
                let mut panel = vec![0; format.panel_bytes(k) as usize];
                pack_panel(format, k, &rows.concat(), &mut panel).unwrap();
                panel
            })
            .collect();
        self.tensor(name, format, PackedLayout::Panels, (rows, k), &panels)
    }

    fn table(
        &mut self,
        random: &mut Random,
        name: &str,
        nan_row: Option<u32>,
        rows: u32,
        k: u32,
    ) -> Arg {
        let format = WeightFormat::F32;
        let mut rows_bytes: Vec<_> = (0..rows).map(|_| random_row(random, format, k)).collect();
        if let Some(row) = nan_row {
            rows_bytes[row as usize][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        self.tensor(name, format, PackedLayout::Rows, (rows, k), &rows_bytes)
    }

    fn vector(&mut self, random: &mut Random, name: &str, k: u32) -> Arg {
        let mut bytes: Vec<u8> = (0..k)
            .flat_map(|_| (1.0 + 0.2 * random.float()).to_le_bytes())
            .collect();
        bytes.resize(pad_to_panel(k) as usize * 4, 0);
        self.tensor(
            name,
            WeightFormat::F32,
            PackedLayout::Vector,
            (1, k),
            &[bytes],
        )
    }
}

#[derive(Default)]
struct Draft {
    kernels: Vec<Kernel>,
    buffers: Vec<Buffer>,
    steps: Vec<Step>,
    phases: Vec<Phase>,
    columns_max: u32,
    layer: Option<u32>,
}

impl Draft {
    fn buffer(&mut self, name: &str, kind: BufferKind, bytes: u64) -> BufferId {
        let end = self
            .buffers
            .last()
            .map_or(0, |b: &Buffer| b.offset + b.bytes);
        let align = if kind == BufferKind::ResidentPage {
            4096
        } else {
            64
        };
        self.buffers.push(Buffer {
            name: name.to_owned(),
            kind,
            offset: end.next_multiple_of(align),
            bytes: bytes.next_multiple_of(align),
            first_phase: 0,
            end_phase: 0,
        });
        BufferId::from(self.buffers.len() - 1)
    }

    fn columns(&mut self, name: &str, activation: Activation, len: u32) -> BufferId {
        let bytes = self.columns_max as u64 * activation.stride_bytes(len);
        self.buffer(name, BufferKind::Activation, bytes)
    }

    fn phase(&mut self, steps: Vec<(&str, KernelSpec, Vec<Arg>)>) {
        self.phases.push(Phase {
            first_step: self.steps.len() as u32,
            steps: steps.len() as u32,
        });
        for (name, spec, args) in steps {
            let known = self.kernels.iter().position(|k| *k.spec() == spec);
            let kernel = known.unwrap_or_else(|| {
                self.kernels.push(Kernel::new(spec, None));
                self.kernels.len() - 1
            });
            self.steps.push(Step {
                kernel: KernelId::from(kernel),
                args,
                panels: None,
                name: name.to_owned(),
                layer: self.layer,
            });
        }
    }
}

pub(crate) fn matmul(format: WeightFormat, rows: u32, k: u32, residual: bool) -> KernelSpec {
    KernelSpec::Matmul {
        format,
        rows,
        k,
        bias: false,
        residual,
    }
}

impl Tiny {
    pub(crate) fn new(options: Options) -> Tiny {
        let Options {
            format,
            tied,
            columns_max,
            seed,
            style,
            kv: kv_format,
            head_columns,
            sequences,
            ..
        } = options;
        let capped = style == Style::Capped;
        let random = &mut Random(seed);
        let vocabulary = vocabulary().tokens.len() as u32;
        let x_format = Activation::for_weights(format);
        let mut pages = Pages::default();
        let mut d = Draft {
            columns_max,
            ..Draft::default()
        };
        use Arg::Buffer as B;

        let tokens = d.buffer("tokens", BufferKind::Tokens, columns_max as u64 * 4);
        let x = d.columns("x", Activation::F32, HIDDEN);
        let xn = d.columns("xn", x_format, HIDDEN);
        let rope = d.columns("rope", Activation::F32, 2 * ROPE.pairs);
        let q = d.columns("q", Activation::F32, HEADS * HEAD_DIM);
        let k = d.columns("k", Activation::F32, KV_HEADS * HEAD_DIM);
        let v = d.columns("v", Activation::F32, KV_HEADS * HEAD_DIM);
        let attended = d.columns("attended", x_format, HEADS * HEAD_DIM);
        let gate = d.columns("gate", Activation::F32, FFN);
        let up = d.columns("up", Activation::F32, FFN);
        let gated = d.columns("gated", x_format, FFN);
        let hn = d.buffer(
            "hn",
            BufferKind::Activation,
            u64::from(head_columns) * x_format.stride_bytes(HIDDEN),
        );
        let (x2, branch) = if capped {
            let x2 = d.columns("x2", Activation::F32, HIDDEN);
            (x2, d.columns("branch", Activation::F32, HIDDEN))
        } else {
            (x, x)
        };
        let raw_logits = capped.then(|| {
            let bytes = u64::from(head_columns) * Activation::F32.stride_bytes(vocabulary);
            d.buffer("raw_logits", BufferKind::Activation, bytes)
        });
        let logits = d.buffer(
            "logits",
            BufferKind::Logits,
            u64::from(head_columns * pad_to_panel(vocabulary)) * 4,
        );

        let (embedding, layout, embedding_format) = if tied {
            let arg = pages.matrix(random, "embedding", format, vocabulary, HIDDEN);
            (arg, TableLayout::Panels, format)
        } else {
            let nan = options.nan_token;
            let arg = pages.table(random, "embedding", nan, vocabulary, HIDDEN);
            (arg, TableLayout::Rows, WeightFormat::F32)
        };
        let embed = KernelSpec::Embed {
            format: embedding_format,
            layout,
            rows: vocabulary,
            k: HIDDEN,
            scale: F32::new(1.5),
        };
        let frequencies = Arg::Constants {
            first: 0,
            count: ROPE.pairs,
        };
        d.phase(vec![
            ("embed", embed, vec![B(tokens), embedding, B(x)]),
            (
                "rope",
                KernelSpec::RopeTable {
                    pairs: ROPE.pairs,
                    scale: F32::new(ROPE_SCALE),
                },
                vec![frequencies, B(rope)],
            ),
        ]);
        let norm = |kind, residual, output| KernelSpec::Norm {
            kind,
            len: HIDDEN,
            eps: F32::new(EPS),
            bias: kind == NormKind::Layer,
            residual,
            output,
        };
        let plain_norm = norm(NormKind::Rms, false, x_format);
        let behind = norm(NormKind::Rms, true, Activation::F32);
        let head_eps = style.head_norm().then_some(F32::new(EPS));
        for layer in 0..LAYERS {
            let window = style.window(layer);
            let ring = match window {
                0 => CONTEXT,
                window => (window + columns_max - 1).next_multiple_of(16),
            };
            let ring_bytes = u64::from(sequences)
                * omex_kernels::spec::ring_bytes(kv_format, KV_HEADS, HEAD_DIM, ring);
            d.layer = Some(layer);
            let keys = d.buffer(&format!("keys{layer}"), BufferKind::KvRing, ring_bytes);
            let values = d.buffer(&format!("values{layer}"), BufferKind::KvRing, ring_bytes);
            let named = |name: &str| format!("{layer}.{name}");
            let norm1 = pages.vector(random, &named("norm1"), HIDDEN);
            let kv = KV_HEADS * HEAD_DIM;
            let mut matrix =
                |name: &str, rows, k| pages.matrix(random, &named(name), format, rows, k);
            let wq = matrix("q", HEADS * HEAD_DIM, HIDDEN);
            let wk = matrix("k", kv, HIDDEN);
            let wv = matrix("v", kv, HIDDEN);
            let wo = matrix("o", HIDDEN, HEADS * HEAD_DIM);
            let wgate = matrix("gate", FFN, HIDDEN);
            let wup = matrix("up", FFN, HIDDEN);
            let wdown = matrix("down", HIDDEN, FFN);
            let norm2 = pages.vector(random, &named("norm2"), HIDDEN);
            let mut vector = |name: &str, len| pages.vector(random, &named(name), len);
            let extra = capped.then(|| {
                let heads = [vector("q_norm", HEAD_DIM), vector("k_norm", HEAD_DIM)];
                (heads, [vector("post1", HIDDEN), vector("post2", HIDDEN)])
            });
            let head_norm = |i: usize| extra.iter().map(move |(heads, _)| heads[i]);
            d.phase(vec![("attn_norm", plain_norm, vec![B(x), norm1, B(xn)])]);
            let q_spec = matmul(format, HEADS * HEAD_DIM, HIDDEN, false);
            let kv_spec = matmul(format, kv, HIDDEN, false);
            d.phase(vec![
                ("q", q_spec, vec![wq, B(xn), B(q)]),
                ("k", kv_spec, vec![wk, B(xn), B(k)]),
                ("v", kv_spec, vec![wv, B(xn), B(v)]),
            ]);
            let store = KernelSpec::KvStore {
                kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                ring,
                format: kv_format,
                norm: head_eps,
                rope: Some(ROPE),
            };
            let mut store_args = vec![B(k), B(v)];
            store_args.extend(head_norm(1));
            store_args.extend([B(rope), B(keys), B(values)]);
            d.phase(vec![("kv_store", store, store_args)]);
            let attention = KernelSpec::Attention {
                heads: HEADS,
                kv_heads: KV_HEADS,
                head_dim: HEAD_DIM,
                ring,
                format: kv_format,
                window,
                scale: F32::new(0.18),
                softcap: capped.then_some(F32::new(SCORE_CAP)),
                norm: head_eps,
                rope: Some(ROPE),
                output: x_format,
            };
            let mut attention_args = vec![B(q)];
            attention_args.extend(head_norm(0));
            attention_args.extend([B(rope), B(keys), B(values), B(attended)]);
            d.phase(vec![("attention", attention, attention_args)]);
            let o_spec = matmul(format, HIDDEN, HEADS * HEAD_DIM, !capped);
            let down_spec = matmul(format, HIDDEN, FFN, !capped);
            match extra {
                None => {
                    d.phase(vec![("o", o_spec, vec![wo, B(attended), B(x), B(x)])]);
                    d.phase(vec![("ffn_norm", plain_norm, vec![B(x), norm2, B(xn)])]);
                }
                Some((_, [post1, _])) => {
                    d.phase(vec![("o", o_spec, vec![wo, B(attended), B(branch)])]);
                    let next = KernelSpec::NormAddNorm {
                        len: HIDDEN,
                        eps: F32::new(EPS),
                        output: x_format,
                    };
                    let next_args = vec![B(branch), post1, B(x), norm2, B(xn)];
                    d.phase(vec![
                        ("post1", behind, vec![B(branch), post1, B(x), B(x2)]),
                        ("ffn_norm", next, next_args),
                    ]);
                }
            }
            let ffn_spec = matmul(format, FFN, HIDDEN, false);
            d.phase(vec![
                ("gate", ffn_spec, vec![wgate, B(xn), B(gate)]),
                ("up", ffn_spec, vec![wup, B(xn), B(up)]),
            ]);
            let gate_spec = KernelSpec::Gate {
                function: style.gate(),
                len: FFN,
                output: x_format,
            };
            d.phase(vec![("act", gate_spec, vec![B(gate), B(up), B(gated)])]);
            match extra {
                None => d.phase(vec![("down", down_spec, vec![wdown, B(gated), B(x), B(x)])]),
                Some((_, [_, post2])) => {
                    d.phase(vec![("down", down_spec, vec![wdown, B(gated), B(branch)])]);
                    d.phase(vec![("post2", behind, vec![B(branch), post2, B(x2), B(x)])]);
                }
            }
        }
        d.layer = None;
        let body_phases = d.phases.len() as u32;
        let norm_weight = pages.vector(random, "norm", HIDDEN);
        let head = if tied {
            embedding
        } else {
            pages.matrix(random, "head", format, vocabulary, HIDDEN)
        };
        let mut head_norm_args = vec![Arg::SelectedColumn(x), norm_weight];
        let mut head_norm = plain_norm;
        if capped {
            head_norm_args.push(pages.vector(random, "norm_bias", HIDDEN));
            head_norm = norm(NormKind::Layer, false, x_format);
        }
        head_norm_args.push(B(hn));
        d.phase(vec![("norm", head_norm, head_norm_args)]);
        let head_spec = matmul(format, vocabulary, HIDDEN, false);
        let head_out = raw_logits.unwrap_or(logits);
        d.phase(vec![("head", head_spec, vec![head, B(hn), B(head_out)])]);
        if let Some(raw) = raw_logits {
            let softcap = KernelSpec::Softcap {
                len: vocabulary,
                cap: F32::new(LOGIT_CAP),
            };
            d.phase(vec![("softcap", softcap, vec![B(raw), B(logits)])]);
        }

        d.plan(pages, options, vocabulary, (tokens, logits), body_phases)
    }

    /// A model of one norm of `len` elements between an embedding table and a head,
    /// the normed vector being its own residual where `spec` has one. Rows of the table
    /// are ordinary, huge, denormal, constant, or far from zero.
    pub(crate) fn of_norm(spec: KernelSpec, options: Options) -> Tiny {
        use Arg::Buffer as B;
        let KernelSpec::Norm {
            len,
            bias,
            residual,
            output,
            ..
        } = spec
        else {
            panic!("not a norm")
        };
        let random = &mut Random(options.seed);
        let vocabulary = vocabulary().tokens.len() as u32;
        let mut pages = Pages::default();
        let mut d = Draft {
            columns_max: options.columns_max,
            ..Draft::default()
        };
        let tokens = d.buffer("tokens", BufferKind::Tokens, options.columns_max as u64 * 4);
        let x = d.columns("x", Activation::F32, len);
        let normed = d.columns("normed", output, len);
        let logits = d.buffer(
            "logits",
            BufferKind::Logits,
            u64::from(pad_to_panel(vocabulary)) * 4,
        );
        let rows: Vec<Vec<u8>> = (0..vocabulary)
            .map(|token| {
                let mut value = || match token % 6 {
                    0 | 1 => random.float(),
                    2 => random.float() * 1e17,
                    3 => f32::from_bits(random.next() & 0x8000_0fff),
                    4 => -7.5,
                    _ => 3e4 + random.float(),
                };
                (0..len).flat_map(|_| value().to_le_bytes()).collect()
            })
            .collect();
        let table = pages.tensor(
            "embedding",
            WeightFormat::F32,
            PackedLayout::Rows,
            (vocabulary, len),
            &rows,
        );
        let embed = KernelSpec::Embed {
            format: WeightFormat::F32,
            layout: TableLayout::Rows,
            rows: vocabulary,
            k: len,
            scale: F32::new(1.0),
        };
        d.phase(vec![("embed", embed, vec![B(tokens), table, B(x)])]);
        let mut args = vec![B(x), pages.vector(random, "norm", len)];
        if bias {
            args.push(pages.vector(random, "norm_bias", len));
        }
        if residual {
            args.push(B(x));
        }
        args.push(B(normed));
        d.phase(vec![("norm", spec, args)]);
        let body_phases = d.phases.len() as u32;
        let head = pages.matrix(random, "head", options.format, vocabulary, len);
        let head_spec = matmul(options.format, vocabulary, len, false);
        d.phase(vec![(
            "head",
            head_spec,
            vec![head, Arg::SelectedColumn(normed), B(logits)],
        )]);
        d.plan(pages, options, vocabulary, (tokens, logits), body_phases)
    }

    /// Writes plan and packed model into a folder; returns the plan's path.
    pub(crate) fn write(&self, folder: &Path) -> PathBuf {
        let digest = &self.plan.weights.packed_digest;
        std::fs::write(folder.join(packed_file_name(digest)), &self.packed).unwrap();
        self.write_plan(folder, &[])
    }

    pub(crate) fn write_plan(&self, folder: &Path, code: &[u8]) -> PathBuf {
        let image = file::encode(&self.plan, arch(), code, &self.tokenizer, None);
        let path = folder.join("plan.bin");
        std::fs::write(&path, image.bytes).unwrap();
        path
    }
}

impl Draft {
    /// The plan of these steps, with its pages in slots of their own when `options` says so.
    fn plan(
        mut self,
        pages: Pages,
        options: Options,
        vocabulary: u32,
        (tokens, logits): (BufferId, BufferId),
        body_phases: u32,
    ) -> Tiny {
        let d = &mut self;
        let slots: Vec<BufferId> = if options.read {
            let slot = |(i, page): (usize, &Vec<u8>)| {
                d.buffer(
                    &format!("page{i}"),
                    BufferKind::ResidentPage,
                    page.len() as u64,
                )
            };
            pages.pages.iter().enumerate().map(slot).collect()
        } else {
            Vec::new()
        };
        let program = program();
        let needed = SessionBytes::new(&program, CONTEXT, vocabulary, options.sequences);
        let session = SessionBuffers {
            text: d.buffer("text", BufferKind::Session, needed.text),
            history: d.buffer("history", BufferKind::Session, needed.history),
            tokenizer: d.buffer("tokenizer", BufferKind::Scratch, needed.tokenizer),
            sampler: d.buffer("sampler", BufferKind::Scratch, needed.sampler),
        };
        let phases = d.phases.len() as u32;
        for buffer in &mut d.buffers {
            let life = match buffer.kind {
                BufferKind::Tokens | BufferKind::Activation => 0..phases,
                BufferKind::Logits => 0..phases + 1,
                BufferKind::KvRing => 0..phases + if options.sequences > 1 { 2 } else { 1 },
                BufferKind::Scratch => phases..phases + 2,
                BufferKind::ResidentPage | BufferKind::PageSlot | BufferKind::Session => {
                    0..phases + 2
                }
            };
            (buffer.first_phase, buffer.end_phase) = (life.start, life.end);
        }

        let (packed, index, digest) = pack(&pages);
        let arena_bytes = d.buffers.last().map_or(0, |b| b.offset + b.bytes);
        let plan = Plan {
            target: Target {
                name: "test".to_owned(),
                arch: std::env::consts::ARCH.to_owned(),
                features: vec![],
                l2_bytes: 1 << 20,
                memory_bytes_per_s: 20_000_000_000,
                memory_latency_ns: 100,
                prefetch_pages: 0,
            },
            model: Model {
                name: "tiny".to_owned(),
                architecture: "llama".to_owned(),
                vocabulary,
                layers: LAYERS,
                context: CONTEXT,
                end_tokens: vec![2],
            },
            weights: Weights {
                packed_digest: digest,
                packed_file_bytes: packed.len() as u64,
                source: if options.read {
                    WeightSource::Read { slots }
                } else {
                    WeightSource::Mapped
                },
                pages: index.pages,
                tensors: index.tensors,
            },
            constants: (0..ROPE.pairs)
                .map(|i| inverse_frequency(10000.0, i, 2 * ROPE.pairs))
                .collect(),
            kernels: self.kernels,
            buffers: self.buffers,
            arena_bytes,
            steps: self.steps,
            phases: self.phases,
            body_phases,
            tokens_buffer: tokens,
            logits_buffer: logits,
            session,
            columns_max: options.columns_max,
            head_columns_max: options.head_columns,
            sequences_max: options.sequences,
            threads_max: 4,
            program,
            memory: MemoryContract { items: vec![] },
            result_id: [3; 32],
        };
        Tiny {
            plan,
            packed,
            tokenizer: tokenizer::compile(&self::vocabulary()).unwrap(),
            style: options.style,
            kv: options.kv,
        }
    }
}

/// The features of targets between which the runtime's own kernels differ, as far as this
/// CPU has them; no feature is the baseline.
pub(crate) fn feature_sets() -> Vec<Vec<String>> {
    let mut sets = vec![vec![]];
    #[cfg(target_arch = "x86_64")]
    {
        let avx2 = ["ssse3", "sse4.1", "sse4.2", "avx", "avx2", "f16c"];
        let avx512 = ["avx512f", "avx512bw", "avx512vl"];
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            sets.push(avx2.map(String::from).to_vec());
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                sets.push(
                    avx2.iter()
                        .chain(&avx512)
                        .copied()
                        .map(String::from)
                        .collect(),
                );
            }
        }
    }
    sets
}

pub(crate) fn arch() -> Arch {
    if cfg!(target_arch = "x86_64") {
        Arch::X86_64
    } else {
        Arch::Aarch64
    }
}

/// One input, windows of 40 tokens, a prompt around each, joined on stdout.
fn program() -> Program {
    Program {
        task_id: "test".to_owned(),
        inputs: vec![Input {
            name: "text".to_owned(),
            path: "text.txt".to_owned(),
            anywhere: true,
        }],
        nodes: vec![
            Node {
                id: "chunks".to_owned(),
                depends_on: vec![],
                kind: NodeKind::Parse {
                    inputs: vec![InputId(0)],
                    window: Window {
                        size: 40,
                        stride: 30,
                    },
                },
            },
            Node {
                id: "answers".to_owned(),
                depends_on: vec![NodeId(0)],
                kind: NodeKind::Infer {
                    prompt: PromptTemplate {
                        prefix_tokens: vec![1],
                        prefix_text: "say ".to_owned(),
                        suffix_text: " end".to_owned(),
                        ..PromptTemplate::default()
                    },
                    tokens_max: 12,
                    sampling: Sampling::GREEDY,
                    stop: vec![],
                },
            },
            Node {
                id: "join".to_owned(),
                depends_on: vec![NodeId(1)],
                kind: NodeKind::Merge { outputs: vec![] },
            },
        ],
    }
}

fn pack(pages: &Pages) -> (Vec<u8>, PackedIndex, [u8; 32]) {
    let mut index = PackedIndex {
        source_digest: [1; 32],
        model_name: "tiny.gguf".to_owned(),
        pages: pages
            .pages
            .iter()
            .map(|bytes| Page {
                file_offset: 0,
                bytes: bytes.len() as u64,
                digest: *blake3::hash(bytes).as_bytes(),
            })
            .collect(),
        tensors: pages.tensors.clone(),
    };
    let mut end = (PACKED_HEADER_BYTES + index.encode().len() as u64).next_multiple_of(PAGE_ALIGN);
    for page in &mut index.pages {
        page.file_offset = end;
        end = (end + page.bytes).next_multiple_of(PAGE_ALIGN);
    }
    let encoded = index.encode();
    let header = packed_header(&encoded, end);
    let mut file = header.to_vec();
    file.extend(&encoded);
    file.resize(end as usize, 0);
    for (page, bytes) in index.pages.iter().zip(&pages.pages) {
        file[page.file_offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }
    let digest = header[32..64].try_into().unwrap();
    (file, index, digest)
}

/// A folder of one test, removed with the value.
pub(crate) struct Folder(pub PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("omex-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn threads(threads: u32) -> LoadOptions {
    LoadOptions {
        threads: Some(threads),
        ..LoadOptions::default()
    }
}
