//! Generated code equals the scalar reference bit for bit, for every back end at
//! every ISA level that this CPU can execute, and in emulation at all levels of
//! the wide back end.

mod support;

use omex_codegen::{Arch, BackEnd, CodeBlob, Feature, Isa};
use omex_kernels::{KernelSpec, WeightFormat, pad_to_panel};
use support::exec::Executable;
use support::{Data, Random, pack, random_q8, random_rows};

/// The levels between which generated code differs, and what generates it.
fn targets() -> Vec<(BackEnd, Isa)> {
    use Feature::*;
    let Some(host) = Isa::host() else {
        return Vec::new();
    };
    if host.arch != Arch::X86_64 {
        return vec![(BackEnd::Cranelift, host)];
    }
    let sse = Isa::new(Arch::X86_64, [Ssse3, Sse41]);
    let levels = [sse].into_iter().chain(wide_levels());
    let levels = levels.filter(|isa| isa.features.without(host.features).is_empty());
    levels
        .flat_map(|isa| {
            let wide = BackEnd::for_isa(&isa) == BackEnd::Wide;
            // A cache that holds few columns cuts them into other rounds.
            let small = Isa {
                l2_bytes: 4096,
                prefetch_pages: 4,
                ..isa
            };
            let wide = wide.then_some([(BackEnd::Wide, isa), (BackEnd::Wide, small)]);
            [(BackEnd::Cranelift, isa)]
                .into_iter()
                .chain(wide.into_iter().flatten())
        })
        .collect()
}

/// The levels of the wide back end.
fn wide_levels() -> [Isa; 6] {
    use Feature::*;
    let avx2: &[Feature] = &[Ssse3, Sse41, Sse42, Avx, Avx2, F16c];
    let more: [&[Feature]; 6] = [
        &[],
        &[AvxVnni],
        &[Avx512F, Avx512Vl, Avx512Vnni],
        &[Avx512F, Avx512Bw],
        &[Avx512F, Avx512Bw, Avx512Vl, Avx512Vnni],
        &[Avx512F, Avx512Bw, Avx512Vl, Avx512Vnni, AmxInt8],
    ];
    more.map(|more| Isa::new(Arch::X86_64, avx2.iter().chain(more).copied()))
}

struct Case {
    format: WeightFormat,
    rows: u32,
    k: u32,
    columns: u32,
    bias: bool,
    residual: bool,
    data: Data,
    seed: u64,
}

struct Inputs {
    weights: Vec<u8>,
    activations: Vec<u8>,
    bias: Vec<f32>,
    residual: Vec<f32>,
}

impl Case {
    fn spec(&self) -> KernelSpec {
        let Case {
            format,
            rows,
            k,
            bias,
            residual,
            ..
        } = *self;
        KernelSpec::Matmul {
            format,
            rows,
            k,
            bias,
            residual,
        }
    }

    fn inputs(&self) -> Inputs {
        let mut r = Random(self.seed);
        let rows = random_rows(&mut r, self.format, self.rows, self.k, self.data);
        let stride = pad_to_panel(self.rows);
        let mut floats = |n: u32| -> Vec<f32> {
            (0..n)
                .map(|_| r.below(4000) as f32 / 1000.0 - 2.0)
                .collect()
        };
        let bias = if self.bias {
            floats(stride)
        } else {
            Vec::new()
        };
        let residual = if self.residual {
            floats(stride * self.columns)
        } else {
            Vec::new()
        };
        let activations = if self.format.takes_q8() {
            random_q8(&mut r, self.k, self.columns, self.data)
        } else {
            floats(pad_to_panel(self.k) * self.columns)
                .iter()
                .flat_map(|x| x.to_le_bytes())
                .collect()
        };
        Inputs {
            weights: pack(self.format, self.rows, self.k, &rows),
            activations,
            bias,
            residual,
        }
    }

    /// The reference's results, over the padded rows too.
    fn expected(&self, i: &Inputs) -> Vec<f32> {
        reference::matmul(
            &self.spec(),
            self.columns,
            &i.weights,
            &i.activations,
            &i.bias,
            &i.residual,
        )
    }

    fn check(&self, target: (BackEnd, Isa), blob: &CodeBlob, inputs: &Inputs, expected: &[f32]) {
        let got = Executable::new(blob).matmul(
            &self.spec(),
            self.columns,
            &inputs.weights,
            &inputs.activations,
            &inputs.bias,
            &inputs.residual,
        );
        self.compare(target, &got, expected);
    }

    /// The same in emulation.
    fn emulate(&self, isa: Isa) {
        let inputs = self.inputs();
        let expected = self.expected(&inputs);
        let blob = BackEnd::Wide.compile(&self.spec(), &isa).unwrap();
        let got = support::emulate::matmul(
            &blob.code,
            expected.len(),
            self.rows.div_ceil(16) as u64,
            self.columns as u64,
            &inputs.weights,
            &inputs.activations,
            &inputs.bias,
            &inputs.residual,
        );
        self.compare((BackEnd::Wide, isa), &got, &expected);
    }

    fn compare(&self, (back_end, isa): (BackEnd, Isa), got: &[f32], expected: &[f32]) {
        for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
            let (c, r) = (
                at as u32 / pad_to_panel(self.rows),
                at as u32 % pad_to_panel(self.rows),
            );
            assert!(
                expected.is_finite() && got.to_bits() == expected.to_bits(),
                "{:?}, {} columns, {:?}, seed {}, {} {:?}: row {r}, column {c} is {got:e}, not {expected:e}",
                self.spec(),
                self.columns,
                self.data,
                self.seed,
                back_end.name(),
                isa.features.iter().map(Feature::name).collect::<Vec<_>>(),
            );
        }
    }
}

mod reference {
    use omex_kernels::KernelSpec;
    use omex_kernels::activation::Q8Layout;
    use omex_kernels::pad_to_panel;
    use omex_kernels::reference::{Q8Blocks, epilogue, matmul_panel_f32, matmul_panel_q8};

    fn words<const N: usize, T>(bytes: &[u8], f: fn([u8; N]) -> T) -> Vec<T> {
        bytes
            .chunks_exact(N)
            .map(|b| f(b.try_into().unwrap()))
            .collect()
    }

    pub(crate) fn matmul(
        spec: &KernelSpec,
        columns: u32,
        weights: &[u8],
        activations: &[u8],
        bias: &[f32],
        residual: &[f32],
    ) -> Vec<f32> {
        let KernelSpec::Matmul {
            format, rows, k, ..
        } = *spec
        else {
            panic!("not a matmul")
        };
        let stride = pad_to_panel(rows) as usize;
        let mut out = vec![0.0f32; stride * columns as usize];
        for c in 0..columns as usize {
            for (p, panel) in weights
                .chunks_exact(format.panel_bytes(k) as usize)
                .enumerate()
            {
                let acc = if format.takes_q8() {
                    let l = Q8Layout::new(k);
                    let record = &activations[c * l.stride as usize..(c + 1) * l.stride as usize];
                    let part = |at: u32, len: u32| &record[at as usize..(at + len) as usize];
                    let codes: Vec<i8> = part(0, k).iter().map(|&b| b as i8).collect();
                    let scales = words(part(l.scales_offset, k / 8), f32::from_le_bytes);
                    let sums: Vec<i16> = part(l.sums_offset, k / 8)
                        .as_chunks()
                        .0
                        .iter()
                        .map(|&b| i16::from_le_bytes(b))
                        .collect();
                    let scaled_sums = words(part(l.scaled_sums_offset, k / 8), f32::from_le_bytes);
                    let blocks = Q8Blocks {
                        codes: &codes,
                        scales: &scales,
                        scaled_sums: &scaled_sums,
                        sums: &sums,
                    };
                    matmul_panel_q8(format, k, panel, blocks)
                } else {
                    let column = pad_to_panel(k) as usize * 4;
                    let a = words(
                        &activations[c * column..(c + 1) * column],
                        f32::from_le_bytes,
                    );
                    matmul_panel_f32(format, k, panel, &a)
                };
                let at = c * stride + 16 * p;
                let bias = bias.get(16 * p..16 * p + 16).map(|b| b.try_into().unwrap());
                let residual = residual.get(at..at + 16).map(|r| r.try_into().unwrap());
                out[at..at + 16].copy_from_slice(&epilogue(acc, bias, residual));
            }
        }
        out
    }
}

fn check_all(cases: &[Case]) {
    let targets = targets();
    assert!(!targets.is_empty(), "no ISA level is executable here");
    for case in cases {
        let inputs = case.inputs();
        let expected = case.expected(&inputs);
        for &(back_end, isa) in &targets {
            let blob = back_end.compile(&case.spec(), &isa).unwrap();
            case.check((back_end, isa), &blob, &inputs, &expected);
        }
    }
}

/// Smallest k's of the format: both whole and partial chunks.
fn ks(format: WeightFormat) -> [u32; 4] {
    match format.k_multiple() {
        256 => [256, 512, 768, 1280],
        32 => [32, 64, 224, 576],
        m => [m, 6 * m, 7 * m, 64 * m],
    }
}

#[test]
fn small_shapes() {
    for format in WeightFormat::ALL {
        let mut cases = Vec::new();
        for rows in [1, 15, 16, 17, 33, 40] {
            for (i, k) in ks(format).into_iter().enumerate() {
                for columns in [1 + i as u32, 9 - i as u32] {
                    cases.push(Case {
                        format,
                        rows,
                        k,
                        columns,
                        bias: rows % 2 == 1,
                        residual: columns % 2 == 1,
                        data: Data::Usual,
                        seed: 1 + rows as u64 * 1000 + k as u64 * 10 + columns as u64,
                    });
                }
            }
        }
        check_all(&cases);
    }
}

#[test]
fn extremes() {
    for format in WeightFormat::ALL {
        let cases: Vec<Case> = (0..40)
            .map(|i| Case {
                format,
                rows: 16,
                k: ks(format)[i % 4],
                columns: [1, 4, 5, 6][i / 4 % 4],
                bias: false,
                residual: false,
                data: Data::Extreme,
                seed: 77 + i as u64,
            })
            .collect();
        check_all(&cases);
    }
}

#[test]
fn large_random() {
    let mut r = Random(42);
    for format in WeightFormat::ALL {
        let unit = format.k_multiple().max(32);
        let cases: Vec<Case> = (0..3)
            .map(|_| Case {
                format,
                rows: 1 + r.below(200) as u32,
                k: unit * (1 + r.below(4096 / unit as u64) as u32),
                columns: 1 + r.below(20) as u32,
                bias: r.below(2) == 0,
                residual: r.below(2) == 0,
                data: Data::Usual,
                seed: r.next() | 1,
            })
            .collect();
        check_all(&cases);
    }
}

/// Checks every count of columns up to `columns_max` with one compilation per target.
fn check_columns(case: &Case, columns_max: u32) {
    let blobs: Vec<_> = targets()
        .into_iter()
        .map(|(back_end, isa)| {
            (
                back_end.compile(&case.spec(), &isa).unwrap(),
                (back_end, isa),
            )
        })
        .collect();
    for columns in 1..=columns_max {
        let case = Case { columns, ..*case };
        let inputs = case.inputs();
        let expected = case.expected(&inputs);
        for (blob, target) in &blobs {
            case.check(*target, blob, &inputs, &expected);
        }
    }
}

/// The padded rows are computed too, so rows differ by panels, of which four are every
/// remainder of the kernels' tiles.
#[test]
fn every_row_and_column_count() {
    for format in WeightFormat::ALL {
        for rows in [1, 16, 17, 31, 32, 33, 47, 48, 49, 64] {
            let case = Case {
                format,
                rows,
                k: format.k_multiple().max(64),
                columns: 0,
                bias: rows % 2 == 1,
                residual: rows % 3 != 0,
                data: [Data::Usual, Data::Extreme][rows as usize % 2],
                seed: u64::from(1 + rows * 10),
            };
            check_columns(&case, 13);
        }
    }
}

/// Every k that a format allows up to five of the largest blocks, or 40 of its own.
#[test]
fn every_k() {
    for format in WeightFormat::ALL {
        let unit = format.k_multiple();
        for k in (unit..=(40 * unit).min(1280)).step_by(unit as usize) {
            for data in [Data::Usual, Data::Extreme] {
                let case = Case {
                    format,
                    rows: 21,
                    k,
                    columns: 0,
                    bias: false,
                    residual: true,
                    data,
                    seed: u64::from(3 + k),
                };
                check_columns(&case, 2);
            }
        }
    }
}

/// The largest magnitudes that codes, scales and activations have: integer sums are at
/// their extremes, and nothing saturates.
#[test]
fn largest_magnitudes() {
    for format in WeightFormat::ALL {
        for columns in [1, 7, 16] {
            let case = |byte, seed| Case {
                format,
                rows: 32,
                k: 512,
                columns,
                bias: false,
                residual: false,
                data: Data::Largest { byte },
                seed,
            };
            // Every byte of the codes the same: all of their values, and all sub-scales.
            let cases: Vec<Case> = (0..=255)
                .map(|byte| case(byte, 1 + u64::from(byte)))
                .collect();
            let targets = targets();
            let blobs: Vec<_> = targets
                .iter()
                .map(|(back_end, isa)| back_end.compile(&cases[0].spec(), isa).unwrap())
                .collect();
            for case in &cases {
                let inputs = case.inputs();
                let expected = case.expected(&inputs);
                for (target, blob) in targets.iter().zip(&blobs) {
                    case.check(*target, blob, &inputs, &expected);
                }
            }
        }
    }
}

/// Weights per row of several sections.
const LONG_K: u32 = 2048;

#[test]
fn long_panels() {
    for format in WeightFormat::ALL {
        for panels in 1..=5 {
            for (bias, residual) in [(false, false), (true, true), (panels % 2 == 0, true)] {
                let case = Case {
                    format,
                    rows: 16 * panels - 3,
                    k: LONG_K,
                    columns: 1,
                    bias,
                    residual,
                    data: Data::Usual,
                    seed: panels as u64,
                };
                let inputs = case.inputs();
                let expected = case.expected(&inputs);
                for (back_end, isa) in targets() {
                    let blob = back_end.compile(&case.spec(), &isa).unwrap();
                    case.check((back_end, isa), &blob, &inputs, &expected);
                }
            }
        }
    }
}

/// Instructions that this CPU may lack: usual and extreme data, one column and few, all
/// tile sizes, several rounds of columns and a partial chunk.
#[test]
fn all_wide_levels_in_emulation() {
    for isa in wide_levels() {
        for format in WeightFormat::ALL {
            for (i, (rows, k, columns, data)) in [
                (17, 512, 1, Data::Usual),
                (40, LONG_K, 1, Data::Usual),
                (17, 768, 7, Data::Extreme),
                (17, format.k_multiple().max(32) * 9, 3, Data::Usual),
                (17, 256, 22, Data::Extreme),
                (17, 768, 37, Data::Usual),
                (17, format.k_multiple().max(32) * 9, 1, Data::Extreme),
                (17, format.k_multiple().max(32), 109, Data::Usual),
            ]
            .into_iter()
            .enumerate()
            {
                let isa = Isa {
                    prefetch_pages: 4 * (i as u32 % 2),
                    ..isa
                };
                let case = Case {
                    format,
                    rows,
                    k,
                    columns,
                    bias: true,
                    residual: columns > 1,
                    data,
                    seed: 11 + k as u64 + columns as u64,
                };
                case.emulate(isa);
            }
        }
    }
}

/// Tiles by AMX compute columns before their own: every count of columns around the
/// largest tile, in one round and in several.
#[test]
fn remainders_by_amx_in_emulation() {
    let [.., amx] = wide_levels();
    let small = Isa {
        l2_bytes: 4096,
        ..amx
    };
    for format in [WeightFormat::Q4_1, WeightFormat::Q6K] {
        for columns in 13..=34 {
            for isa in [amx, small] {
                let case = Case {
                    format,
                    rows: 17,
                    k: 256,
                    columns,
                    bias: false,
                    residual: true,
                    data: Data::Usual,
                    seed: 5 + u64::from(columns),
                };
                case.emulate(isa);
            }
        }
    }
}

/// Kernels made in the process compute the same bits, over the residual too.
#[cfg(feature = "jit")]
#[test]
fn jit_of_all_formats() {
    let cases: Vec<Case> = WeightFormat::ALL
        .into_iter()
        .map(|format| Case {
            format,
            rows: 40,
            k: 768,
            columns: 6,
            bias: true,
            residual: true,
            data: Data::Usual,
            seed: 5 + format.ggml_type() as u64,
        })
        .collect();
    let specs: Vec<KernelSpec> = cases.iter().map(Case::spec).collect();
    let code = omex_codegen::jit::compile_all(&specs, &Isa::host().unwrap()).unwrap();
    for (case, entry) in cases.iter().zip(code.entries()) {
        let i = case.inputs();
        let expected = case.expected(&i);
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for call in [support::exec::call, support::exec::call_in_place] {
            let got = call(
                *entry,
                &case.spec(),
                6,
                &i.weights,
                &i.activations,
                &i.bias,
                &i.residual,
            );
            assert_eq!(bits(&got), bits(&expected), "{}", case.format.name());
        }
    }
}
