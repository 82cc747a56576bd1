//! A small valid plan, and every way to spoil it.

use omex_kernels::abi::ABI_VERSION;
use omex_kernels::spec::{Activation, F32, KvFormat, NormKind, Rope, RopePairing, TableLayout};
use omex_kernels::{KernelSpec, NUMERICS_VERSION, WeightFormat};
use omex_plan::file::{self, Arch, FileError, HEADER_BYTES, Header, SectionKind};
use omex_plan::memory::MemoryContract;
use omex_plan::packed::{FormatCode, PackedLayout, Page, Piece, Tensor};
use omex_plan::prompt::{PromptTemplate, Trim};
use omex_plan::session::SessionBuffers;
use omex_plan::task::{Input, Node, NodeKind, Program, Sampling, Window};
use omex_plan::*;

const COLUMNS: u32 = 4;

fn vector(name: &str, k: u32, offset: u64) -> Tensor {
    Tensor {
        name: name.into(),
        format: FormatCode::new(WeightFormat::F32),
        layout: PackedLayout::Vector,
        rows: 1,
        k,
        pieces: vec![Piece {
            page: PageId(0),
            offset,
            first_unit: 0,
            units: 1,
        }],
    }
}

/// Embedding, one attention over K = V = Q, a residual matmul, head; 32 wide.
fn tiny() -> Plan {
    let rope = Some(Rope {
        pairs: 16,
        pairing: RopePairing::Halves,
    });
    let panels = |name: &str, first: u64| Tensor {
        name: name.into(),
        format: FormatCode::new(WeightFormat::F32),
        layout: PackedLayout::Panels,
        rows: 32,
        k: 32,
        pieces: (0..2)
            .map(|i| Piece {
                page: PageId(1 + i),
                offset: first,
                first_unit: i,
                units: 1,
            })
            .collect(),
    };
    let kernel = |spec| Kernel {
        spec: omex_plan::SpecWire(spec),
        code: None,
    };
    let matmul = |residual| KernelSpec::Matmul {
        format: WeightFormat::F32,
        rows: 32,
        k: 32,
        bias: false,
        residual,
    };
    let norm = KernelSpec::Norm {
        kind: NormKind::Rms,
        len: 32,
        eps: F32::new(1e-5),
        bias: false,
        residual: false,
        output: Activation::F32,
    };
    let kernels = vec![
        kernel(KernelSpec::Embed {
            format: WeightFormat::F32,
            layout: TableLayout::Panels,
            rows: 32,
            k: 32,
            scale: F32::new(1.0),
        }),
        kernel(KernelSpec::RopeTable {
            pairs: 16,
            scale: F32::new(1.0),
        }),
        kernel(KernelSpec::KvStore {
            kv_heads: 1,
            head_dim: 32,
            ring: 16,
            format: KvFormat::F16,
            norm: None,
            rope,
        }),
        kernel(KernelSpec::Attention {
            heads: 1,
            kv_heads: 1,
            head_dim: 32,
            ring: 16,
            format: KvFormat::F16,
            window: 0,
            scale: F32::new(0.125),
            softcap: None,
            norm: None,
            rope,
            output: Activation::F32,
        }),
        kernel(matmul(true)),
        kernel(norm),
        kernel(matmul(false)),
    ];
    let mut offset = 0;
    let mut buffer = |name: &str, kind, bytes: u64, first_phase, end_phase| {
        let at = offset;
        offset += bytes.next_multiple_of(64);
        Buffer {
            name: name.into(),
            kind,
            offset: at,
            bytes,
            first_phase,
            end_phase,
        }
    };
    let column = 128 * COLUMNS as u64;
    let buffers = vec![
        buffer("tokens", BufferKind::Tokens, 4 * COLUMNS as u64, 0, 6),
        buffer("x", BufferKind::Activation, column, 0, 6),
        buffer("rope", BufferKind::Activation, column, 0, 3),
        buffer("keys", BufferKind::KvRing, 1024, 0, 7),
        buffer("values", BufferKind::KvRing, 1024, 0, 7),
        buffer("attended", BufferKind::Activation, column, 2, 4),
        buffer("normed", BufferKind::Activation, 128, 4, 6),
        buffer("logits", BufferKind::Logits, 128, 5, 7),
        buffer("text", BufferKind::Session, 2048, 0, 8),
        buffer("history", BufferKind::Session, 64, 0, 8),
        buffer("tokenizer", BufferKind::Scratch, 35_940, 7, 8),
        buffer("sampler", BufferKind::Scratch, 124, 6, 7),
    ];
    let b = |i: u32| Arg::Buffer(BufferId(i));
    let t = |i: u32| Arg::Tensor(TensorId(i));
    let step = |kernel: u32, name: &str, args: Vec<Arg>| Step {
        kernel: KernelId(kernel),
        args,
        panels: None,
        name: name.into(),
        layer: None,
    };
    let constants = Arg::Constants {
        first: 0,
        count: 16,
    };
    Plan {
        target: Target {
            name: "host".into(),
            arch: "x86_64".into(),
            features: vec![],
            l2_bytes: 1 << 20,
            memory_bytes_per_s: 20_000_000_000,
            memory_latency_ns: 100,
            prefetch_pages: 0,
        },
        model: Model {
            name: "tiny".into(),
            architecture: "llama".into(),
            vocabulary: 30,
            layers: 1,
            context: 16,
            end_tokens: vec![2],
        },
        weights: Weights {
            packed_digest: [7; 32],
            packed_file_bytes: 4 * 16384,
            source: WeightSource::Mapped,
            pages: [(1, 256), (2, 4096), (3, 4096)]
                .map(|(i, bytes)| Page {
                    file_offset: i * 16384,
                    bytes,
                    digest: [i as u8; 32],
                })
                .to_vec(),
            tensors: vec![
                panels("table", 0),
                vector("norm", 32, 0),
                panels("wo", 2048),
            ],
        },
        constants: vec![1.0; 16],
        kernels,
        buffers,
        arena_bytes: offset,
        steps: vec![
            step(0, "embed", vec![b(0), t(0), b(1)]),
            step(1, "rope", vec![constants, b(2)]),
            step(2, "store", vec![b(1), b(1), b(2), b(3), b(4)]),
            step(3, "attention", vec![b(1), b(2), b(3), b(4), b(5)]),
            step(4, "wo", vec![t(2), b(5), b(1), b(1)]),
            step(
                5,
                "norm",
                vec![Arg::SelectedColumn(BufferId(1)), t(1), b(6)],
            ),
            step(6, "head", vec![t(0), b(6), b(7)]),
        ],
        phases: [(0, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1)]
            .map(|(first_step, steps)| Phase { first_step, steps })
            .to_vec(),
        body_phases: 4,
        tokens_buffer: BufferId(0),
        logits_buffer: BufferId(7),
        session: SessionBuffers {
            text: BufferId(8),
            history: BufferId(9),
            tokenizer: BufferId(10),
            sampler: BufferId(11),
        },
        columns_max: COLUMNS,
        head_columns_max: 1,
        sequences_max: 1,
        threads_max: 2,
        program: Program {
            task_id: "t".into(),
            inputs: vec![Input {
                name: "in".into(),
                path: "in.txt".into(),
                anywhere: false,
            }],
            nodes: vec![
                Node {
                    id: "parse".into(),
                    depends_on: vec![],
                    kind: NodeKind::Parse {
                        inputs: vec![InputId(0)],
                        window: Window { size: 4, stride: 4 },
                    },
                },
                Node {
                    id: "infer".into(),
                    depends_on: vec![NodeId(0)],
                    kind: NodeKind::Infer {
                        prompt: PromptTemplate {
                            prefix_tokens: vec![1],
                            prefix_text: String::new(),
                            trim: Trim::None,
                            suffix_text: String::new(),
                            suffix_tokens: vec![],
                            empty_tokens: None,
                        },
                        tokens_max: 4,
                        sampling: Sampling::GREEDY,
                        stop: vec![],
                    },
                },
            ],
        },
        memory: MemoryContract { items: vec![] },
        result_id: [0; 32],
    }
}

#[test]
fn the_small_plan_is_valid() {
    check(tiny(), 0).unwrap();
}

type Spoil = fn(&mut Plan);

/// What is spoiled, and a word of the error.
const SPOILED: &[(Spoil, &str)] = &[
    (|p| p.columns_max = 0, "columns_max"),
    (|p| p.columns_max = 5, "token buffer"),
    (|p| p.head_columns_max = 0, "head_columns_max"),
    (|p| p.head_columns_max = 5, "head_columns_max"),
    (|p| p.head_columns_max = 2, "logits buffer"),
    (|p| p.threads_max = 1 << 20, "threads_max"),
    (|p| p.model.vocabulary = 33, "embedding table"),
    (|p| p.model.context = 17, "ring"),
    // Positions 15 and 16 of one pass would share the only group of slots.
    (
        |p| {
            let KernelSpec::Attention { window, .. } = &mut p.kernels[3].spec.0 else {
                panic!("not an attention");
            };
            *window = 1;
            p.model.context = 17;
        },
        "ring of kernel 2",
    ),
    (|p| p.model.end_tokens = vec![30], "end tokens"),
    (|p| p.model.end_tokens = vec![3, 2], "end tokens"),
    (|p| p.weights.pages[1].file_offset += 64, "page 1"),
    (|p| p.weights.pages[1].file_offset = 16384, "page 1"),
    (|p| p.weights.pages[2].bytes = 1 << 40, "page 2"),
    (|p| p.weights.pages[2].bytes = u64::MAX, "page 2"),
    (|p| p.weights.pages[2].bytes = 4032, "leaves its page"),
    (
        |p| p.weights.tensors[0].pieces[1].offset += 32,
        "leaves its page",
    ),
    (
        |p| p.weights.tensors[0].pieces[1].offset = u64::MAX - 63,
        "leaves its page",
    ),
    (
        |p| p.weights.tensors[0].pieces[1].page = PageId(9),
        "leaves its page",
    ),
    (
        |p| p.weights.tensors[0].pieces[1].first_unit = 0,
        "leaves its page",
    ),
    (
        |p| p.weights.tensors[0].pieces[1].units = 2,
        "leaves its page",
    ),
    (|p| p.weights.tensors[0].pieces.truncate(1), "1 of 2 units"),
    (|p| p.weights.tensors[0].rows = 0, "impossible shape"),
    (
        |p| p.weights.tensors[0].format = FormatCode(255),
        "impossible shape",
    ),
    (|p| p.weights.tensors[1].rows = 2, "impossible shape"),
    (
        |p| p.weights.source = WeightSource::Read { slots: vec![] },
        "slots",
    ),
    (
        |p| {
            p.weights.source = WeightSource::Read {
                slots: vec![BufferId(3); 3],
            }
        },
        "slot of its own",
    ),
    (
        |p| {
            p.kernels[0].code = Some(CodeRange {
                offset: 0,
                bytes: 1,
            })
        },
        "calling convention",
    ),
    (
        |p| {
            p.kernels[6].code = Some(CodeRange {
                offset: 0,
                bytes: 65,
            })
        },
        "leaves the code",
    ),
    (
        |p| {
            p.kernels[6].code = Some(CodeRange {
                offset: 64,
                bytes: u64::MAX,
            })
        },
        "leaves the code",
    ),
    (
        |p| {
            p.kernels[4].spec = SpecWire(KernelSpec::Matmul {
                format: WeightFormat::F32,
                rows: u32::MAX,
                k: 32,
                bias: false,
                residual: true,
            })
        },
        "limits",
    ),
    (|p| p.arena_bytes -= 64, "leaves the arena"),
    (|p| p.buffers[1].offset = u64::MAX - 63, "leaves the arena"),
    (|p| p.buffers[1].offset += 8, "leaves the arena"),
    (|p| p.buffers[1].offset -= 64, "overlap"),
    (|p| p.buffers[5].offset = p.buffers[2].offset, "overlap"),
    (|p| p.buffers[9].offset = p.buffers[8].offset, "overlap"),
    (|p| p.buffers[0].end_phase = 7, "tokens is live"),
    (|p| p.buffers[1].end_phase = 7, "x is live"),
    (|p| p.buffers[1].first_phase = 6, "x is live"),
    (|p| p.buffers[3].end_phase = 6, "keys is live"),
    (|p| p.buffers[7].end_phase = 6, "logits is live"),
    (|p| p.buffers[7].first_phase = 6, "not live"),
    (|p| p.buffers[8].end_phase = 7, "text is live"),
    (|p| p.buffers[9].first_phase = 1, "history is live"),
    (|p| p.buffers[10].first_phase = 5, "tokenizer is live"),
    (|p| p.buffers[10].end_phase = 9, "tokenizer is live"),
    // The sampler's memory may lie under the tokenizer's, not under logits.
    (|p| p.buffers[11].offset = p.buffers[7].offset, "overlap"),
    (|p| p.session.text = BufferId(10), "works with"),
    (|p| p.session.history = BufferId(99), "does not exist"),
    (|p| p.session.history = BufferId(8), "same buffer"),
    (|p| p.session.sampler = BufferId(10), "works with"),
    (|p| p.buffers[8].bytes = 1055, "works with"),
    (|p| p.buffers[9].bytes = 63, "works with"),
    (|p| p.buffers[10].bytes = 35_939, "works with"),
    (|p| p.buffers[11].bytes = 123, "works with"),
    (
        |p| p.steps[6].args[2] = Arg::Buffer(BufferId(8)),
        "another kind",
    ),
    (|p| p.buffers[1].end_phase = 5, "dies before"),
    (|p| p.buffers[5].end_phase = 3, "not live"),
    (|p| p.buffers[5].bytes -= 1, "needs"),
    (|p| p.buffers[7].bytes = 64, "vocabulary"),
    (|p| p.tokens_buffer = BufferId(1), "token buffer"),
    (|p| p.tokens_buffer = BufferId(99), "does not exist"),
    (|p| p.logits_buffer = BufferId(1), "logits buffer"),
    (|p| p.body_phases = 6, "body phases"),
    (|p| p.body_phases = 0, "body phases"),
    (|p| p.phases[1].first_step = 1, "does not continue"),
    (|p| p.phases[5].steps = 2, "does not continue"),
    (
        |p| {
            p.phases.pop();
            p.buffers.iter_mut().for_each(|b| {
                b.first_phase -= (b.first_phase > 5) as u32;
                b.end_phase -= (b.end_phase > 5) as u32;
            });
        },
        "behind the last phase",
    ),
    (|p| p.steps[4].kernel = KernelId(9), "no kernel"),
    (
        |p| {
            p.steps[4].args.pop();
        },
        "arguments",
    ),
    (
        |p| p.steps[4].args[0] = Arg::Buffer(BufferId(1)),
        "wrong class",
    ),
    (
        |p| p.steps[4].args[1] = Arg::Tensor(TensorId(0)),
        "wrong class",
    ),
    (
        |p| p.steps[4].args[0] = Arg::Tensor(TensorId(9)),
        "no tensor",
    ),
    (
        |p| p.steps[4].args[0] = Arg::Tensor(TensorId(1)),
        "not what step",
    ),
    (
        |p| p.steps[4].args[1] = Arg::SelectedColumn(BufferId(5)),
        "outside the head",
    ),
    (
        |p| p.steps[4].args[1] = Arg::Buffer(BufferId(1)),
        "overwrites its own",
    ),
    (
        |p| p.steps[3].args[4] = Arg::Buffer(BufferId(1)),
        "overwrites its own",
    ),
    (
        |p| p.steps[2].args[4] = Arg::Buffer(BufferId(3)),
        "overwrites its own",
    ),
    (
        |p| p.steps[2].args[3] = Arg::Buffer(BufferId(1)),
        "another kind",
    ),
    (
        |p| p.steps[3].args[0] = Arg::Buffer(BufferId(3)),
        "another kind",
    ),
    (
        |p| p.steps[0].args[0] = Arg::Buffer(BufferId(1)),
        "another kind",
    ),
    (
        |p| {
            p.steps[2].args[0] = Arg::Buffer(BufferId(5));
            p.buffers[5].first_phase = 1;
        },
        "before it is written",
    ),
    (
        |p| {
            p.steps[1].args[0] = Arg::Constants {
                first: 1,
                count: 16,
            }
        },
        "constants",
    ),
    (
        |p| {
            p.steps[1].args[0] = Arg::Constants {
                first: 0,
                count: 15,
            }
        },
        "constants",
    ),
    (
        |p| {
            p.phases[2].steps = 2;
            p.phases.remove(3);
            p.body_phases = 3;
            for b in &mut p.buffers {
                b.end_phase -= (b.end_phase > 3) as u32;
                b.first_phase -= (b.first_phase > 3) as u32;
            }
        },
        "written",
    ),
    (
        |p| p.steps[6].args[2] = Arg::Buffer(BufferId(1)),
        "overwrites x",
    ),
    (
        |p| p.program.nodes[0].depends_on = vec![NodeId(0)],
        "later one",
    ),
    (
        |p| {
            p.program.inputs.clear();
        },
        "missing input",
    ),
    (
        |p| {
            if let NodeKind::Parse { window, .. } = &mut p.program.nodes[0].kind {
                window.stride = 5;
            }
        },
        "empty stride",
    ),
    (
        |p| {
            if let NodeKind::Infer { prompt, .. } = &mut p.program.nodes[1].kind {
                prompt.prefix_tokens = vec![30];
            }
        },
        "prompt",
    ),
    (
        |p| {
            if let NodeKind::Infer { sampling, .. } = &mut p.program.nodes[1].kind {
                sampling.temperature = f32::NAN;
            }
        },
        "sampler",
    ),
];

#[test]
fn every_violation_is_caught() {
    let mut missed = Vec::new();
    for (i, (spoil, word)) in SPOILED.iter().enumerate() {
        let mut plan = tiny();
        spoil(&mut plan);
        match check(plan, 64) {
            Err(e) if e.0.contains(word) => {}
            other => missed.push((i, word, other.map(|_| ()))),
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

fn encoded() -> Vec<u8> {
    let image = file::encode(&tiny(), Arch::X86_64, &[0xc3; 100], b"tokenizer", None);
    assert_eq!(image.bytes.len() as u64, image.pages_offset);
    image.bytes
}

fn decode(bytes: &[u8]) -> Result<Plan, FileError> {
    let header = Header::parse(bytes, bytes.len() as u64)?;
    for kind in SectionKind::ALL {
        let s = header.section(kind);
        header.verify(
            kind,
            &bytes[s.offset as usize..(s.offset + s.bytes) as usize],
        )?;
    }
    let s = header.section(SectionKind::Metadata);
    file::decode_metadata(&bytes[s.offset as usize..(s.offset + s.bytes) as usize])
}

#[test]
fn a_plan_survives_the_file() {
    let bytes = encoded();
    assert_eq!(decode(&bytes).unwrap(), tiny());
    assert_eq!(bytes, encoded(), "equal plans have equal bytes");
}

/// Gaps between sections are not covered by a digest, but no reader looks there.
#[test]
fn every_flipped_bit_and_every_truncation_is_refused() {
    let bytes = encoded();
    let header = Header::parse(&bytes, bytes.len() as u64).unwrap();
    let covered = |at: usize| {
        at < HEADER_BYTES
            || SectionKind::ALL.iter().any(|&kind| {
                let s = header.section(kind);
                (s.offset..s.offset + s.bytes).contains(&(at as u64))
            })
    };
    for at in (0..bytes.len()).filter(|&at| covered(at)) {
        let mut spoiled = bytes.clone();
        spoiled[at] ^= 1 << (at % 8);
        assert!(decode(&spoiled).is_err(), "bit of byte {at}");
    }
    for len in (0..bytes.len()).step_by(7) {
        assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert!(decode(&longer).is_err());
}

#[test]
fn other_versions_are_refused_by_name() {
    for (at, what) in [
        (8, "plan"),
        (12, "numerics"),
        (16, "packed-model"),
        (20, "ABI"),
    ] {
        let mut bytes = encoded();
        bytes[at] += 1;
        let message = decode(&bytes).unwrap_err().to_string();
        assert!(
            message.contains(what) && message.contains("omexc build"),
            "{message}"
        );
    }
    assert_eq!((NUMERICS_VERSION, ABI_VERSION), (2, 2));
}

/// Metadata with valid digests but hostile contents: no panic, no large allocation.
#[test]
fn hostile_metadata_is_an_error() {
    let good = file::encode_metadata(&tiny());
    let mut state = 1u64;
    for round in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + round % 4 {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            let at = (state >> 33) as usize % bytes.len();
            bytes[at] = if round % 2 == 0 {
                0xff
            } else {
                (state >> 20) as u8
            };
        }
        if let Ok(plan) = file::decode_metadata(&bytes) {
            // Whatever still decodes must be checked without a panic.
            let _ = check(plan, 64);
        }
    }
    assert!(file::decode_metadata(&[0xff; 64]).is_err());
    assert!(file::decode_metadata(&[]).is_err());
}
