//! Operations and the types of their results.
//!
//! Sources stand for what a pass reads without computing it. Semantic
//! operations say what a layer does; their fused forms (`bias`, `rope`,
//! `output`, ...) are what [`crate::passes::fuse`] makes of neighbours. After
//! [`crate::passes::select`] every computation is a [`KernelSpec`]. Operands
//! stand in the order in which the kernel of the same name takes them.

use omex_kernels::spec::{Activation, F32, GateFunction, KvFormat, NormKind, Rope, TableLayout};
use omex_kernels::{KernelSpec, WeightFormat};

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// Token ids of the pass's columns.
    Tokens,
    /// One vector of `len` elements per column.
    Columns { activation: Activation, len: u32 },
    /// A packed matrix.
    Matrix {
        format: WeightFormat,
        layout: TableLayout,
        rows: u32,
        k: u32,
    },
    /// A packed f32 vector.
    Vector { len: u32 },
    /// f64 constants, one per rotated pair.
    Frequencies { pairs: u32 },
    /// The key and value rings of a layer after the pass's positions are stored.
    Kv {
        kv_heads: u32,
        head_dim: u32,
        ring: u32,
        format: KvFormat,
    },
}

/// RoPE's inverse frequencies: pair `i` has
/// `base^(-2 i / width) / divisor / factors[i]`, factors being 1 when empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frequencies {
    pub base: F32,
    pub divisor: F32,
    /// Elements that are rotated; even.
    pub width: u32,
    /// Empty, or `width / 2`.
    pub factors: Vec<F32>,
}

impl Frequencies {
    /// The values, by the fixed f64 sequence of the numeric contract.
    pub fn values(&self) -> Vec<f64> {
        let base = f64::from(self.base.get());
        let divisor = f64::from(self.divisor.get());
        (0..self.width / 2)
            .map(|i| {
                let frequency = omex_kernels::math::inverse_frequency(base, i, self.width);
                let factor = self
                    .factors
                    .get(i as usize)
                    .map_or(1.0, |f| f64::from(f.get()));
                frequency / divisor / factor
            })
            .collect()
    }
}

/// What an operation does in a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpClass {
    /// What a pass reads without computing it.
    Source,
    /// Another look at its operand.
    View,
    /// What `select` turns into kernels.
    Semantic,
    Kernel,
}

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    // Sources.
    Tokens,
    /// A matrix of the packed model.
    Matrix {
        tensor: String,
        format: WeightFormat,
        layout: TableLayout,
        rows: u32,
        k: u32,
    },
    /// A vector of the packed model.
    Vector {
        tensor: String,
        len: u32,
    },
    Frequencies(Frequencies),

    /// (x): the column whose logits are wanted. A view: it computes nothing.
    /// What depends on it is the head, the rest is the body.
    SelectColumn,

    // Semantic operations.
    /// (tokens, table)
    Embed {
        scale: F32,
    },
    /// (frequencies): cosines and sines of the pass's positions, times `scale`.
    RopeTable {
        scale: F32,
    },
    /// (x, weight, bias if `bias`, residual if `residual`)
    Norm {
        kind: NormKind,
        eps: F32,
        bias: bool,
        residual: bool,
        output: Activation,
    },
    /// (x, weight, residual, next weight): an RMSNorm of `residual` plus the
    /// RMSNorm of x.
    NormAddNorm {
        eps: F32,
        output: Activation,
    },
    /// (x, weight): RMSNorm of every head of `head_dim` elements.
    HeadNorm {
        eps: F32,
        head_dim: u32,
    },
    /// (x): f32 to int8.
    Quantize,
    /// (weights, x, bias if `bias`, residual if `residual`)
    Matmul {
        bias: bool,
        residual: bool,
    },
    /// (x, bias)
    AddBias,
    /// (x, table): rotates every head of `head_dim` elements.
    Rope {
        rope: Rope,
        head_dim: u32,
    },
    /// (k, v, norm weight if `norm`, table if `rope`)
    KvStore {
        kv_heads: u32,
        head_dim: u32,
        ring: u32,
        format: KvFormat,
        norm: Option<F32>,
        rope: Option<Rope>,
    },
    /// (q, norm weight if `norm`, table if `rope`, kv)
    Attention {
        heads: u32,
        window: u32,
        scale: F32,
        softcap: Option<F32>,
        norm: Option<F32>,
        rope: Option<Rope>,
        output: Activation,
    },
    /// (a, b)
    Add,
    /// (a, b)
    Mul,
    Silu,
    GeluTanh,
    /// (gate, up)
    Gate {
        function: GateFunction,
        output: Activation,
    },
    /// (x): `cap * tanh(x / cap)`
    Softcap {
        cap: F32,
    },

    /// The operands are the kernel's arguments in order, without its output;
    /// the two rings are one operand or result.
    Kernel(KernelSpec),
}

const fn f32s(len: u32) -> Type {
    Type::Columns {
        activation: Activation::F32,
        len,
    }
}

/// The length of f32 columns.
fn f32_len(ty: Type) -> Result<u32, String> {
    match ty {
        Type::Columns {
            activation: Activation::F32,
            len,
        } => Ok(len),
        Type::Tokens
        | Type::Columns { .. }
        | Type::Matrix { .. }
        | Type::Vector { .. }
        | Type::Frequencies { .. }
        | Type::Kv { .. } => Err(format!("expected f32 columns, found {ty}")),
    }
}

fn expect(found: Type, wanted: Type) -> Result<(), String> {
    if found == wanted {
        Ok(())
    } else {
        Err(format!("expected {wanted}, found {found}"))
    }
}

fn arity<const N: usize>(types: &[Type]) -> Result<[Type; N], String> {
    types
        .try_into()
        .map_err(|_| format!("expected {N} operands, found {}", types.len()))
}

fn quantizable(output: Activation, len: u32) -> Result<Type, String> {
    match output {
        Activation::Q8 if !len.is_multiple_of(32) => {
            Err(format!("{len} elements are no whole blocks of 32"))
        }
        activation @ (Activation::F32 | Activation::Q8) => Ok(Type::Columns { activation, len }),
    }
}

impl Op {
    pub fn class(&self) -> OpClass {
        match self {
            Op::Tokens | Op::Matrix { .. } | Op::Vector { .. } | Op::Frequencies(_) => {
                OpClass::Source
            }
            Op::SelectColumn => OpClass::View,
            Op::Embed { .. }
            | Op::RopeTable { .. }
            | Op::Norm { .. }
            | Op::NormAddNorm { .. }
            | Op::HeadNorm { .. }
            | Op::Quantize
            | Op::Matmul { .. }
            | Op::AddBias
            | Op::Rope { .. }
            | Op::KvStore { .. }
            | Op::Attention { .. }
            | Op::Add
            | Op::Mul
            | Op::Silu
            | Op::GeluTanh
            | Op::Gate { .. }
            | Op::Softcap { .. } => OpClass::Semantic,
            Op::Kernel(_) => OpClass::Kernel,
        }
    }

    /// True for what a pass reads without computing it.
    pub fn is_source(&self) -> bool {
        self.class() == OpClass::Source
    }

    /// The type of the result for operands of these types.
    ///
    /// # Errors
    ///
    /// A sentence about the operand that does not fit.
    pub fn infer(&self, types: &[Type]) -> Result<Type, String> {
        match *self {
            Op::Tokens => arity::<0>(types).map(|[]| Type::Tokens),
            Op::Matrix {
                tensor: _,
                format,
                layout,
                rows,
                k,
            } => arity::<0>(types).map(|[]| Type::Matrix {
                format,
                layout,
                rows,
                k,
            }),
            Op::Vector { tensor: _, len } => arity::<0>(types).map(|[]| Type::Vector { len }),
            Op::Frequencies(ref f) => {
                let [] = arity(types)?;
                let pairs = f.width / 2;
                if !f.width.is_multiple_of(2)
                    || !(f.factors.is_empty() || f.factors.len() == pairs as usize)
                {
                    return Err("width is odd or the factors are not one per pair".to_owned());
                }
                Ok(Type::Frequencies { pairs })
            }
            Op::SelectColumn => {
                let [x] = arity(types)?;
                f32_len(x).map(f32s)
            }
            Op::Embed { scale: _ } => {
                let [tokens, table] = arity(types)?;
                expect(tokens, Type::Tokens)?;
                let (_, _, k) = matrix(table, None)?;
                Ok(f32s(k))
            }
            Op::RopeTable { scale: _ } => {
                let [frequencies] = arity(types)?;
                match frequencies {
                    Type::Frequencies { pairs } => Ok(f32s(pairs.saturating_mul(2))),
                    Type::Tokens
                    | Type::Columns { .. }
                    | Type::Matrix { .. }
                    | Type::Vector { .. }
                    | Type::Kv { .. } => Err(format!("expected frequencies, found {frequencies}")),
                }
            }
            Op::Norm {
                kind: _,
                eps: _,
                bias,
                residual,
                output,
            } => {
                let len = f32_len(*types.first().ok_or("expected columns")?)?;
                let vector = Type::Vector { len };
                let mut expected = vec![f32s(len), vector];
                expected.extend(bias.then_some(vector));
                expected.extend(residual.then_some(f32s(len)));
                expect_all(types, &expected)?;
                quantizable(output, len)
            }
            Op::NormAddNorm { eps: _, output } => {
                let [x, weight, residual, next] = arity(types)?;
                let len = f32_len(x)?;
                expect(weight, Type::Vector { len })?;
                expect(residual, x)?;
                expect(next, weight)?;
                quantizable(output, len)
            }
            Op::HeadNorm { eps: _, head_dim } => {
                let [x, weight] = arity(types)?;
                expect(weight, Type::Vector { len: head_dim })?;
                let len = f32_len(x)?;
                if head_dim == 0 || !len.is_multiple_of(head_dim) {
                    return Err(format!("{len} elements are no heads of {head_dim}"));
                }
                Ok(x)
            }
            Op::Quantize => {
                let [x] = arity(types)?;
                quantizable(Activation::Q8, f32_len(x)?)
            }
            Op::Matmul { bias, residual } => {
                let count = 2 + usize::from(bias) + usize::from(residual);
                if types.len() != count {
                    return Err(format!("expected {count} operands, found {}", types.len()));
                }
                let (_, rows, k) = matrix(types[0], Some(TableLayout::Panels))?;
                match types[1] {
                    Type::Columns { activation: _, len } if len == k => {}
                    Type::Columns { .. }
                    | Type::Tokens
                    | Type::Matrix { .. }
                    | Type::Vector { .. }
                    | Type::Frequencies { .. }
                    | Type::Kv { .. } => {
                        return Err(format!("expected columns of {k}, found {}", types[1]));
                    }
                }
                if bias {
                    expect(types[2], Type::Vector { len: rows })?;
                }
                if residual {
                    expect(types[count - 1], f32s(rows))?;
                }
                Ok(f32s(rows))
            }
            Op::AddBias => {
                let [x, bias] = arity(types)?;
                let len = f32_len(x)?;
                expect(bias, Type::Vector { len })?;
                Ok(x)
            }
            Op::Rope { rope, head_dim } => {
                let [x, table] = arity(types)?;
                let len = f32_len(x)?;
                expect(table, f32s(rope.pairs.saturating_mul(2)))?;
                if head_dim == 0
                    || !len.is_multiple_of(head_dim)
                    || rope.pairs.saturating_mul(2) > head_dim
                {
                    return Err(format!("{len} elements are no heads of {head_dim}"));
                }
                Ok(x)
            }
            Op::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            } => {
                let (expected, kv) = kv_store_types(kv_heads, head_dim, ring, format, norm, rope);
                expect_all(types, &expected)?;
                Ok(kv)
            }
            Op::Attention {
                heads,
                norm,
                rope,
                output,
                ..
            } => {
                let [q, .., kv] = types else {
                    return Err("expected a query and a ring".to_owned());
                };
                let Type::Kv { head_dim, .. } = *kv else {
                    return Err(format!("expected a ring, found {kv}"));
                };
                let mut expected = vec![f32s(heads.saturating_mul(head_dim))];
                expected.extend(norm.map(|_| Type::Vector { len: head_dim }));
                expected.extend(rope.map(|r| f32s(r.pairs.saturating_mul(2))));
                expected.push(*kv);
                expect_all(types, &expected)?;
                // Each head is quantized by itself.
                quantizable(output, head_dim)?;
                expect(*q, f32s(heads.saturating_mul(head_dim)))?;
                Ok(Type::Columns {
                    activation: output,
                    len: heads.saturating_mul(head_dim),
                })
            }
            Op::Add | Op::Mul => {
                let [a, b] = arity(types)?;
                expect(b, f32s(f32_len(a)?))?;
                Ok(a)
            }
            Op::Silu | Op::GeluTanh | Op::Softcap { cap: _ } => {
                let [x] = arity(types)?;
                f32_len(x).map(f32s)
            }
            Op::Gate {
                function: _,
                output,
            } => {
                let [gate, up] = arity(types)?;
                let len = f32_len(gate)?;
                expect(up, gate)?;
                quantizable(output, len)
            }
            Op::Kernel(spec) => {
                let (expected, result) = kernel_types(&spec);
                expect_all(types, &expected)?;
                Ok(result)
            }
        }
    }
}

fn expect_all(found: &[Type], expected: &[Type]) -> Result<(), String> {
    if found.len() != expected.len() {
        return Err(format!(
            "expected {} operands, found {}",
            expected.len(),
            found.len()
        ));
    }
    found
        .iter()
        .zip(expected)
        .try_for_each(|(f, e)| expect(*f, *e))
}

fn matrix(ty: Type, wanted: Option<TableLayout>) -> Result<(WeightFormat, u32, u32), String> {
    match ty {
        Type::Matrix {
            format,
            layout,
            rows,
            k,
        } if wanted.is_none_or(|w| w == layout) => Ok((format, rows, k)),
        Type::Matrix { .. }
        | Type::Tokens
        | Type::Columns { .. }
        | Type::Vector { .. }
        | Type::Frequencies { .. }
        | Type::Kv { .. } => Err(format!("expected a matrix, found {ty}")),
    }
}

/// The types that a kernel takes, and that of its result.
fn kernel_types(spec: &KernelSpec) -> (Vec<Type>, Type) {
    let columns = |activation, len| Type::Columns { activation, len };
    match *spec {
        KernelSpec::Embed {
            format,
            layout,
            rows,
            k,
            scale: _,
        } => {
            let table = Type::Matrix {
                format,
                layout,
                rows,
                k,
            };
            (vec![Type::Tokens, table], f32s(k))
        }
        KernelSpec::RopeTable { pairs, scale: _ } => (
            vec![Type::Frequencies { pairs }],
            f32s(pairs.saturating_mul(2)),
        ),
        KernelSpec::Norm {
            kind: _,
            len,
            eps: _,
            bias,
            residual,
            output,
        } => {
            let vector = Type::Vector { len };
            let mut types = vec![f32s(len), vector];
            types.extend(bias.then_some(vector));
            types.extend(residual.then_some(f32s(len)));
            (types, columns(output, len))
        }
        KernelSpec::NormAddNorm {
            len,
            eps: _,
            output,
        } => {
            let vector = Type::Vector { len };
            let types = vec![f32s(len), vector, f32s(len), vector];
            (types, columns(output, len))
        }
        KernelSpec::Quantize { len } => (vec![f32s(len)], columns(Activation::Q8, len)),
        KernelSpec::Matmul {
            format,
            rows,
            k,
            bias,
            residual,
        } => {
            let weights = Type::Matrix {
                format,
                layout: TableLayout::Panels,
                rows,
                k,
            };
            let mut types = vec![weights, columns(Activation::for_weights(format), k)];
            types.extend(bias.then_some(Type::Vector { len: rows }));
            types.extend(residual.then_some(f32s(rows)));
            (types, f32s(rows))
        }
        KernelSpec::KvStore {
            kv_heads,
            head_dim,
            ring,
            format,
            norm,
            rope,
        } => kv_store_types(kv_heads, head_dim, ring, format, norm, rope),
        KernelSpec::Attention {
            heads,
            kv_heads,
            head_dim,
            ring,
            format,
            window: _,
            scale: _,
            softcap: _,
            norm,
            rope,
            output,
        } => {
            let len = heads.saturating_mul(head_dim);
            let mut types = vec![f32s(len)];
            types.extend(norm.map(|_| Type::Vector { len: head_dim }));
            types.extend(rope.map(|r| f32s(r.pairs.saturating_mul(2))));
            types.push(Type::Kv {
                kv_heads,
                head_dim,
                ring,
                format,
            });
            (types, columns(output, len))
        }
        KernelSpec::Softcap { len, cap: _ } => (vec![f32s(len)], f32s(len)),
        KernelSpec::Gate {
            function: _,
            len,
            output,
        } => (vec![f32s(len), f32s(len)], columns(output, len)),
    }
}

/// What a key-value store takes, and its rings.
fn kv_store_types(
    kv_heads: u32,
    head_dim: u32,
    ring: u32,
    format: KvFormat,
    norm: Option<F32>,
    rope: Option<Rope>,
) -> (Vec<Type>, Type) {
    let x = f32s(kv_heads.saturating_mul(head_dim));
    let mut types = vec![x, x];
    types.extend(norm.map(|_| Type::Vector { len: head_dim }));
    types.extend(rope.map(|r| f32s(r.pairs.saturating_mul(2))));
    let kv = Type::Kv {
        kv_heads,
        head_dim,
        ring,
        format,
    };
    (types, kv)
}
