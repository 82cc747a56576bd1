//! Kernel specifications: one operation with every shape and constant that its
//! code may depend on.
//!
//! A spec says which arguments the kernel takes and the exact bytes that it
//! reads and writes of each, so that a plan can be proved to stay inside its
//! slots without running it.

use crate::activation::Q8Layout;
use crate::format::WeightFormat;
use crate::pad_to_panel;

/// Positions of one attention split; splits start at absolute multiples.
pub const ATTENTION_SPLIT: u32 = 128;
/// Ring slots whose keys are interleaved: see `reference::KvRing`.
pub const KV_GROUP: u32 = 16;
/// Elements of one work unit of a gate: a multiple of 32.
pub const GATE_UNIT: u32 = 256;
/// Largest head dimension: attention keeps one head's accumulators on the stack.
pub const HEAD_DIM_MAX: u32 = 512;
/// Largest extent of any dimension, so that no size below overflows u64.
pub const EXTENT_MAX: u32 = 1 << 24;
/// Most positions of a context: beyond them rotations are not exact
/// ([`crate::math::cos_sin`]).
pub const CONTEXT_MAX: u32 = 1 << 20;

/// An f32 constant, compared and hashed by its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct F32(pub u32);

impl F32 {
    pub const fn new(value: f32) -> F32 {
        F32(value.to_bits())
    }
    pub const fn get(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// How a column buffer of `len` elements is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activation {
    /// f32, stride `pad_to_panel(len)` elements.
    F32,
    /// int8 records of [`Q8Layout`]; `len` is a multiple of 32.
    Q8,
}

impl Activation {
    /// What a matmul of `format` reads.
    pub const fn for_weights(format: WeightFormat) -> Activation {
        if format.takes_q8() {
            Activation::Q8
        } else {
            Activation::F32
        }
    }

    /// Bytes of one column.
    pub const fn stride_bytes(self, len: u32) -> u64 {
        match self {
            Activation::F32 => pad_to_panel(len) as u64 * 4,
            Activation::Q8 => Q8Layout::new(len).stride as u64,
        }
    }
}

/// How an embedding table is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TableLayout {
    /// Row-major in the file's own bytes.
    Rows,
    /// 16-row panels: the table is the output head as well.
    Panels,
}

/// Which elements RoPE rotates together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RopePairing {
    /// (2i, 2i + 1), llama's GGUF order.
    Adjacent,
    /// (i, i + n / 2), the NeoX order.
    Halves,
}

/// Rotation of the first `2 * pairs` elements of each head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Rope {
    pub pairs: u32,
    pub pairing: RopePairing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GateFunction {
    /// `silu(gate) * up`
    Silu,
    /// `gelu_tanh(gate) * up`
    GeluTanh,
}

/// How a norm measures its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormKind {
    /// By its root mean square (Zhang and Sennrich, arXiv 1910.07467).
    Rms,
    /// By its standard deviation, after its mean is taken off (Ba et al.,
    /// arXiv 1607.06450).
    Layer,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KvFormat {
    #[default]
    F16,
    /// Blocks of 32 int8 codes of one position with an f32 scale.
    Q8,
}

impl KvFormat {
    /// Bytes of one key or value of `head_dim` elements.
    pub const fn head_bytes(self, head_dim: u32) -> u64 {
        match self {
            KvFormat::F16 => head_dim as u64 * 2,
            KvFormat::Q8 => head_dim as u64 + head_dim as u64 / 32 * 4,
        }
    }
}

/// One kernel. `columns`, the number of tokens of a pass, is the only extent
/// that is not part of a spec.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KernelSpec {
    /// `out[c] = scale * table[tokens[c]]`, dequantized.
    /// Args: tokens (u32), table, out (f32, k).
    Embed {
        format: WeightFormat,
        layout: TableLayout,
        rows: u32,
        k: u32,
        scale: F32,
    },
    /// `scale` times cos and sin of `position * inverse_frequency[i]` for the
    /// pass's positions.
    /// Args: inverse frequencies (f64, pairs), out (f32: `pairs` cosines, then
    /// `pairs` sines per column, padded).
    RopeTable { pairs: u32, scale: F32 },
    /// `out = norm(x) * weight`, then `+ bias`, then `residual +`.
    /// Args: x (f32, len), weight (f32, len), [bias (f32, len)],
    /// [residual (f32, len)], out (len).
    Norm {
        kind: NormKind,
        len: u32,
        eps: F32,
        bias: bool,
        residual: bool,
        output: Activation,
    },
    /// `out = rms(residual + rms(x) * weight) * next_weight`: the norm behind a
    /// part of a layer and the one before the next, without a barrier between.
    /// Args: x (f32, len), weight (f32, len), residual (f32, len), next weight
    /// (f32, len), out (len).
    NormAddNorm {
        len: u32,
        eps: F32,
        output: Activation,
    },
    /// f32 to int8 activations. Args: x (f32, len), out (Q8, len).
    Quantize { len: u32 },
    /// `out = weights * activations`, then `+ bias`, then `residual +`.
    /// Args: weights, activations, [bias (f32, rows)], [residual (f32, rows)], out (f32, rows).
    Matmul {
        format: WeightFormat,
        rows: u32,
        k: u32,
        bias: bool,
        residual: bool,
    },
    /// Normalizes each key head (RMS, `norm` being eps) and rotates it, and
    /// writes keys and values at their ring slots.
    /// Args: k (f32), v (f32), [norm weight (f32, head_dim)], [rope table], key
    /// ring, value ring.
    KvStore {
        kv_heads: u32,
        head_dim: u32,
        ring: u32,
        format: KvFormat,
        norm: Option<F32>,
        rope: Option<Rope>,
    },
    /// Causal attention of the pass's columns over the ring, each query head
    /// being normalized (RMS, `norm` being eps) and rotated first; `window` 0
    /// is unlimited, otherwise a query sees itself and `window - 1` before it.
    /// With `softcap` c, a scaled score s becomes `c * tanh(s / c)`.
    /// Args: q (f32), [norm weight (f32, head_dim)], [rope table], key ring,
    /// value ring, out.
    Attention {
        heads: u32,
        kv_heads: u32,
        head_dim: u32,
        ring: u32,
        format: KvFormat,
        window: u32,
        scale: F32,
        softcap: Option<F32>,
        norm: Option<F32>,
        rope: Option<Rope>,
        output: Activation,
    },
    /// `function(gate) * up`. Args: gate (f32, len), up (f32, len), out (len).
    Gate {
        function: GateFunction,
        len: u32,
        output: Activation,
    },
    /// `out = cap * tanh(x / cap)`. Args: x (f32, len), out (f32, len).
    Softcap { len: u32, cap: F32 },
}

/// What an argument is, which decides where a plan may place it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperandClass {
    /// An arena slot whose contents live for part of a pass.
    Buffer,
    /// A packed tensor.
    Weights,
    /// An arena slot that persists across passes.
    KvRing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    Read,
    Write,
}

/// One argument: its bytes from the start of its slot or tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    pub name: &'static str,
    pub class: OperandClass,
    pub access: Access,
    pub bytes: u64,
}

/// The arguments of a kernel in order.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    items: [Operand; Operands::MAX],
    len: usize,
}

impl Operands {
    pub const MAX: usize = 6;

    fn new() -> Operands {
        let none = Operand {
            name: "",
            class: OperandClass::Buffer,
            access: Access::Read,
            bytes: 0,
        };
        Operands {
            items: [none; Operands::MAX],
            len: 0,
        }
    }

    fn push(mut self, name: &'static str, class: OperandClass, access: Access, bytes: u64) -> Self {
        self.items[self.len] = Operand {
            name,
            class,
            access,
            bytes,
        };
        self.len += 1;
        self
    }

    fn read(self, name: &'static str, bytes: u64) -> Self {
        self.push(name, OperandClass::Buffer, Access::Read, bytes)
    }

    fn write(self, name: &'static str, bytes: u64) -> Self {
        self.push(name, OperandClass::Buffer, Access::Write, bytes)
    }

    fn weights(self, name: &'static str, bytes: u64) -> Self {
        self.push(name, OperandClass::Weights, Access::Read, bytes)
    }

    fn ring(self, name: &'static str, access: Access, bytes: u64) -> Self {
        self.push(name, OperandClass::KvRing, access, bytes)
    }

    fn when(self, condition: bool, f: impl FnOnce(Self) -> Self) -> Self {
        if condition { f(self) } else { self }
    }

    pub fn as_slice(&self) -> &[Operand] {
        &self.items[..self.len]
    }
}

/// Groups of 16 ring slots, from that of the first position on, that `columns`
/// consecutive positions can touch. A group's keys and values are contiguous.
pub const fn kv_groups(columns: u32) -> u32 {
    (columns + KV_GROUP - 2) / KV_GROUP + 1
}

/// Bytes of one ring of `ring` positions (a multiple of 16).
pub const fn ring_bytes(format: KvFormat, kv_heads: u32, head_dim: u32, ring: u32) -> u64 {
    kv_heads as u64 * ring as u64 * format.head_bytes(head_dim)
}

/// Bytes of a packed matrix of `rows` rows.
pub const fn matrix_bytes(format: WeightFormat, layout: TableLayout, rows: u32, k: u32) -> u64 {
    match layout {
        TableLayout::Rows => rows as u64 * format.row_bytes(k),
        TableLayout::Panels => (rows as u64).div_ceil(16) * format.panel_bytes(k),
    }
}

impl KernelSpec {
    /// The arguments for `columns` columns.
    ///
    /// Requires a spec that [`KernelSpec::validate`] accepted.
    pub fn operands(&self, columns: u32) -> Operands {
        use Access::{Read, Write};
        let c = columns as u64;
        let f32s = |len: u32| c * Activation::F32.stride_bytes(len);
        let vector = |len: u32| len as u64 * 4;
        let table = |rope: Option<Rope>| rope.map_or(0, |r| f32s(2 * r.pairs));
        let list = Operands::new();
        match *self {
            KernelSpec::Embed {
                format,
                layout,
                rows,
                k,
                scale: _,
            } => list
                .read("tokens", c * 4)
                .weights("table", matrix_bytes(format, layout, rows, k))
                .write("out", f32s(k)),
            KernelSpec::RopeTable { pairs, scale: _ } => list
                .weights("inverse_frequencies", pairs as u64 * 8)
                .write("out", f32s(2 * pairs)),
            KernelSpec::Norm {
                len,
                bias,
                residual,
                output,
                ..
            } => list
                .read("x", f32s(len))
                .weights("weight", vector(len))
                .when(bias, |l| l.weights("bias", vector(len)))
                .when(residual, |l| l.read("residual", f32s(len)))
                .write("out", c * output.stride_bytes(len)),
            KernelSpec::NormAddNorm { len, output, .. } => list
                .read("x", f32s(len))
                .weights("weight", vector(len))
                .read("residual", f32s(len))
                .weights("next_weight", vector(len))
                .write("out", c * output.stride_bytes(len)),
            KernelSpec::Quantize { len } => list
                .read("x", f32s(len))
                .write("out", c * Activation::Q8.stride_bytes(len)),
            KernelSpec::Matmul {
                format,
                rows,
                k,
                bias,
                residual,
            } => list
                .weights(
                    "weights",
                    matrix_bytes(format, TableLayout::Panels, rows, k),
                )
                .read(
                    "activations",
                    c * Activation::for_weights(format).stride_bytes(k),
                )
                .when(bias, |l| l.weights("bias", pad_to_panel(rows) as u64 * 4))
                .when(residual, |l| l.read("residual", f32s(rows)))
                .write("out", f32s(rows)),
            KernelSpec::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            } => list
                .read("k", f32s(kv_heads * head_dim))
                .read("v", f32s(kv_heads * head_dim))
                .when(norm.is_some(), |l| l.weights("norm", vector(head_dim)))
                .when(rope.is_some(), |l| l.read("rope", table(rope)))
                .ring("keys", Write, ring_bytes(format, kv_heads, head_dim, ring))
                .ring(
                    "values",
                    Write,
                    ring_bytes(format, kv_heads, head_dim, ring),
                ),
            KernelSpec::Attention {
                heads,
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
                output,
                ..
            } => list
                .read("q", f32s(heads * head_dim))
                .when(norm.is_some(), |l| l.weights("norm", vector(head_dim)))
                .when(rope.is_some(), |l| l.read("rope", table(rope)))
                .ring("keys", Read, ring_bytes(format, kv_heads, head_dim, ring))
                .ring("values", Read, ring_bytes(format, kv_heads, head_dim, ring))
                .write("out", c * output.stride_bytes(heads * head_dim)),
            KernelSpec::Gate { len, output, .. } => list
                .read("gate", f32s(len))
                .read("up", f32s(len))
                .write("out", c * output.stride_bytes(len)),
            KernelSpec::Softcap { len, cap: _ } => {
                list.read("x", f32s(len)).write("out", f32s(len))
            }
        }
    }

    /// Checks every extent; a spec that passes has operands that fit in u64
    /// and kernels that stay inside them.
    ///
    /// Errors: a sentence that names the violated rule.
    pub fn validate(&self) -> Result<(), &'static str> {
        let extent = |n: u32| (1..=EXTENT_MAX).contains(&n);
        let activation = |a: Activation, len: u32| match a {
            Activation::F32 => true,
            Activation::Q8 => len.is_multiple_of(32),
        };
        let rope_ok = |r: Option<Rope>, head_dim: u32| {
            r.is_none_or(|r| r.pairs > 0 && r.pairs <= head_dim / 2)
        };
        let heads_ok = |heads: u32, kv_heads: u32, head_dim: u32, ring: u32, kv: KvFormat| {
            let head_multiple = match kv {
                KvFormat::F16 => 2,
                KvFormat::Q8 => 32,
            };
            (1..=HEAD_DIM_MAX).contains(&head_dim)
                && head_dim.is_multiple_of(head_multiple)
                && (1..=4096).contains(&kv_heads)
                && (1..=4096).contains(&heads)
                && heads.is_multiple_of(kv_heads)
                && extent(heads * head_dim)
                && extent(ring)
                && ring.is_multiple_of(16)
        };
        let finite = |x: F32| x.get().is_finite();
        let eps_ok = |eps: F32| finite(eps) && eps.get() >= 0.0;
        let cap_ok = |cap: F32| finite(cap) && cap.get() > 0.0;
        let ok = match *self {
            KernelSpec::Embed {
                format,
                rows,
                k,
                scale,
                ..
            } => {
                extent(rows) && extent(k) && k.is_multiple_of(format.k_multiple()) && finite(scale)
            }
            KernelSpec::RopeTable { pairs, scale } => {
                pairs > 0 && pairs <= HEAD_DIM_MAX / 2 && finite(scale)
            }
            KernelSpec::Norm {
                len, eps, output, ..
            }
            | KernelSpec::NormAddNorm { len, eps, output } => {
                extent(len) && eps_ok(eps) && activation(output, len)
            }
            KernelSpec::Quantize { len } => extent(len) && len.is_multiple_of(32),
            KernelSpec::Matmul {
                format, rows, k, ..
            } => extent(rows) && extent(k) && k.is_multiple_of(format.k_multiple()),
            KernelSpec::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            } => {
                heads_ok(kv_heads, kv_heads, head_dim, ring, format)
                    && norm.is_none_or(eps_ok)
                    && rope_ok(rope, head_dim)
            }
            KernelSpec::Attention {
                heads,
                kv_heads,
                head_dim,
                ring,
                format,
                window: _,
                scale,
                softcap,
                norm,
                rope,
                output,
            } => {
                heads_ok(heads, kv_heads, head_dim, ring, format)
                    && norm.is_none_or(eps_ok)
                    && rope_ok(rope, head_dim)
                    && finite(scale)
                    && softcap.is_none_or(cap_ok)
                    && activation(output, head_dim)
            }
            KernelSpec::Gate { len, output, .. } => extent(len) && activation(output, len),
            KernelSpec::Softcap { len, cap } => extent(len) && cap_ok(cap),
        };
        if ok {
            Ok(())
        } else {
            Err("a shape or constant of the kernel is outside its limits")
        }
    }

    /// Elements that a pass over `columns` columns computes one by one; `None` for
    /// operations whose cost is another: the products of a matmul or the depth of
    /// attention.
    pub fn elements(&self, columns: u32) -> Option<u64> {
        let per_column = match *self {
            KernelSpec::Embed { k, .. } => k,
            KernelSpec::RopeTable { pairs, .. } => 2 * pairs,
            KernelSpec::Norm { len, .. }
            | KernelSpec::Quantize { len }
            | KernelSpec::Gate { len, .. }
            | KernelSpec::Softcap { len, .. } => len,
            KernelSpec::NormAddNorm { len, .. } => 2 * len,
            KernelSpec::KvStore {
                kv_heads, head_dim, ..
            } => 2 * kv_heads * head_dim,
            KernelSpec::Matmul { .. } | KernelSpec::Attention { .. } => return None,
        };
        Some(columns as u64 * per_column as u64)
    }

    /// Independent work units of a pass over `columns` columns; any thread may
    /// compute any unit. Matmul units are panels.
    pub fn units(&self, columns: u32) -> u32 {
        match *self {
            KernelSpec::Embed { .. }
            | KernelSpec::RopeTable { .. }
            | KernelSpec::Norm { .. }
            | KernelSpec::NormAddNorm { .. }
            | KernelSpec::Quantize { .. } => columns,
            KernelSpec::KvStore { kv_heads, .. } => kv_heads * kv_groups(columns),
            KernelSpec::Gate { len, .. } | KernelSpec::Softcap { len, .. } => {
                columns * len.div_ceil(GATE_UNIT)
            }
            KernelSpec::Matmul { rows, .. } => rows.div_ceil(16),
            KernelSpec::Attention { heads, .. } => columns * heads,
        }
    }
}

/// The word of an absent constant: a NaN, which no valid spec holds.
const NO_F32: u32 = u32::MAX;
/// Words of an encoded spec.
pub const SPEC_WORDS: usize = 16;

impl KernelSpec {
    /// A stable encoding: the variant's number, then its fields in order.
    /// Part of the plan format; changing it changes the plan version.
    pub fn to_words(&self) -> [u32; SPEC_WORDS] {
        let mut words = [0; SPEC_WORDS];
        let mut len = 0;
        let mut put = |word: u32| {
            words[len] = word;
            len += 1;
        };
        fn rope_words(rope: Option<Rope>) -> [u32; 2] {
            rope.map_or([0, 0], |r| [r.pairs, r.pairing as u32])
        }
        let option = |x: Option<F32>| x.map_or(NO_F32, |x| x.0);
        match *self {
            KernelSpec::Embed {
                format,
                layout,
                rows,
                k,
                scale,
            } => [0, format as u32, layout as u32, rows, k, scale.0]
                .into_iter()
                .for_each(put),
            KernelSpec::RopeTable { pairs, scale } => [1, pairs, scale.0].into_iter().for_each(put),
            KernelSpec::Norm {
                kind,
                len,
                eps,
                bias,
                residual,
                output,
            } => [
                2,
                kind as u32,
                len,
                eps.0,
                bias as u32,
                residual as u32,
                output as u32,
            ]
            .into_iter()
            .for_each(put),
            KernelSpec::Quantize { len } => [3, len].into_iter().for_each(put),
            KernelSpec::Matmul {
                format,
                rows,
                k,
                bias,
                residual,
            } => [4, format as u32, rows, k, bias as u32, residual as u32]
                .into_iter()
                .for_each(put),
            KernelSpec::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            } => [5, kv_heads, head_dim, ring, format as u32, option(norm)]
                .into_iter()
                .chain(rope_words(rope))
                .for_each(put),
            KernelSpec::Attention {
                heads,
                kv_heads,
                head_dim,
                ring,
                format,
                window,
                scale,
                softcap,
                norm,
                rope,
                output,
            } => [6, heads, kv_heads, head_dim, ring, format as u32]
                .into_iter()
                .chain([window, scale.0, option(softcap), option(norm)])
                .chain(rope_words(rope))
                .chain([output as u32])
                .for_each(put),
            KernelSpec::Gate {
                function,
                len,
                output,
            } => {
                put(7);
                [function as u32, len, output as u32]
                    .into_iter()
                    .for_each(put)
            }
            KernelSpec::NormAddNorm { len, eps, output } => {
                [8, len, eps.0, output as u32].into_iter().for_each(put)
            }
            KernelSpec::Softcap { len, cap } => [9, len, cap.0].into_iter().for_each(put),
        }
        words
    }

    /// The spec that [`KernelSpec::to_words`] encoded, or `None` for words
    /// that are no spec's, including non-zero words behind the last field.
    pub fn from_words(words: &[u32; SPEC_WORDS]) -> Option<KernelSpec> {
        let [kind, a, b, c, d, e, f, g, ..] = *words;
        let format = |n: u32| WeightFormat::ALL.into_iter().find(|x| *x as u32 == n);
        let flag = |n: u32| [false, true].get(n as usize).copied();
        let activation = |n: u32| [Activation::F32, Activation::Q8].get(n as usize).copied();
        let rope = |pairs: u32, pairing: u32| {
            let pairing = *[RopePairing::Adjacent, RopePairing::Halves].get(pairing as usize)?;
            Some((pairs > 0).then_some(Rope { pairs, pairing }))
        };
        let option = |n: u32| (n != NO_F32).then_some(F32(n));
        let kv_format = |n: u32| [KvFormat::F16, KvFormat::Q8].get(n as usize).copied();
        let spec = match kind {
            0 => KernelSpec::Embed {
                format: format(a)?,
                layout: *[TableLayout::Rows, TableLayout::Panels].get(b as usize)?,
                rows: c,
                k: d,
                scale: F32(e),
            },
            1 => KernelSpec::RopeTable {
                pairs: a,
                scale: F32(b),
            },
            2 => KernelSpec::Norm {
                kind: *[NormKind::Rms, NormKind::Layer].get(a as usize)?,
                len: b,
                eps: F32(c),
                bias: flag(d)?,
                residual: flag(e)?,
                output: activation(f)?,
            },
            3 => KernelSpec::Quantize { len: a },
            4 => KernelSpec::Matmul {
                format: format(a)?,
                rows: b,
                k: c,
                bias: flag(d)?,
                residual: flag(e)?,
            },
            5 => KernelSpec::KvStore {
                kv_heads: a,
                head_dim: b,
                ring: c,
                format: kv_format(d)?,
                norm: option(e),
                rope: rope(f, g)?,
            },
            6 => KernelSpec::Attention {
                heads: a,
                kv_heads: b,
                head_dim: c,
                ring: d,
                format: kv_format(e)?,
                window: f,
                scale: F32(g),
                softcap: option(words[8]),
                norm: option(words[9]),
                rope: rope(words[10], words[11])?,
                output: activation(words[12])?,
            },
            7 => KernelSpec::Gate {
                function: *[GateFunction::Silu, GateFunction::GeluTanh].get(a as usize)?,
                len: b,
                output: activation(c)?,
            },
            8 => KernelSpec::NormAddNorm {
                len: a,
                eps: F32(b),
                output: activation(c)?,
            },
            9 => KernelSpec::Softcap {
                len: a,
                cap: F32(b),
            },
            _ => return None,
        };
        (spec.to_words() == *words).then_some(spec)
    }
}
