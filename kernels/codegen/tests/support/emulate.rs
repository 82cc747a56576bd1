//! An interpreter of the instructions that the wide back end uses, so that levels
//! which the CPU at hand lacks are computed too. Written from the operation
//! sections of Intel's manual (SDM volume 2), without a look at the generator.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};
use omex_kernels::abi::MatmulArgs;
use omex_kernels::math::f16_to_f32;
use std::mem::offset_of;
use std::ops::Range;

const CODE_AT: u64 = 0x10_0000;
const DATA_AT: u64 = 0x4000_0000;
const STACK_BYTES: usize = 256 << 10;
/// Between two arguments, so that what leaves one is not in the next.
const GAP_BYTES: usize = 64 << 10;
/// Where the caller continues.
const RETURN_AT: u64 = 0xdead_0000;

type Bytes = [u8; 64];

struct Machine<'c> {
    code: &'c [u8],
    memory: Vec<u8>,
    /// What of it accesses may touch: the arguments, each alone.
    placed: Vec<Range<usize>>,
    general: [u64; 16],
    vectors: [Bytes; 32],
    masks: [u64; 8],
    /// `None` while no tiles are configured.
    tiles: Option<[Tile; 8]>,
    zero: bool,
    carry: bool,
}

/// An AMX register: rows of `row_bytes` bytes.
#[derive(Clone, Copy)]
struct Tile {
    row_bytes: usize,
    rows: usize,
    bytes: [Bytes; 16],
}

#[allow(clippy::too_many_arguments, reason = "the arguments of the ABI")]
/// Runs a matmul's code on copies of its arguments; returns the output.
pub(crate) fn matmul(
    code: &[u8],
    out_len: usize,
    panels: u64,
    columns: u64,
    weights: &[u8],
    activations: &[u8],
    bias: &[f32],
    residual: &[f32],
) -> Vec<f32> {
    let mut memory = Vec::new();
    let mut placed = Vec::new();
    let mut place = |bytes: &[u8]| {
        memory.resize((memory.len() + GAP_BYTES).next_multiple_of(64), 0xa5);
        let at = memory.len();
        memory.extend(bytes);
        placed.push(at..memory.len());
        DATA_AT + at as u64
    };
    let floats = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let weights = place(weights);
    let activations = place(activations);
    let bias = place(&floats(bias));
    let residual = place(&floats(residual));
    let out = place(&vec![0xff; 4 * out_len]);
    let mut args = [0u8; size_of::<MatmulArgs>()];
    for (offset, value) in [
        (offset_of!(MatmulArgs, weights), weights),
        (offset_of!(MatmulArgs, activations), activations),
        (offset_of!(MatmulArgs, out), out),
        (offset_of!(MatmulArgs, bias), bias),
        (offset_of!(MatmulArgs, residual), residual),
        (offset_of!(MatmulArgs, panels), panels),
        (offset_of!(MatmulArgs, columns), columns),
    ] {
        args[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    let args = place(&args);
    let stack = place(&vec![0x5a; STACK_BYTES]) + STACK_BYTES as u64;
    let mut machine = Machine {
        code,
        memory,
        placed,
        general: std::array::from_fn(|i| 0x1111_1111 * i as u64),
        vectors: [[0x77; 64]; 32],
        masks: [0x33; 8],
        tiles: None,
        zero: false,
        carry: false,
    };
    machine.general[7] = args;
    // A call leaves the stack 8 bytes off a multiple of 16.
    machine.general[4] = stack - 72;
    machine.write(stack - 72, &RETURN_AT.to_le_bytes());
    let saved = machine.general;
    machine.run();
    for register in [3, 5, 12, 13, 14, 15] {
        assert_eq!(
            machine.general[register], saved[register],
            "register {register}"
        );
    }
    assert_eq!(machine.general[4], saved[4] + 8, "the stack pointer");
    assert!(machine.tiles.is_none(), "tiles are left configured");
    let at = (out - DATA_AT) as usize;
    let out = machine.memory[at..at + 4 * out_len].chunks_exact(4);
    out.map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn map<const N: usize, const M: usize>(a: &Bytes, f: impl Fn([u8; N]) -> [u8; M]) -> Bytes {
    let mut to = [0; 64];
    for (a, to) in a.chunks_exact(N).zip(to.chunks_exact_mut(M)) {
        to.copy_from_slice(&f(a.try_into().unwrap()));
    }
    to
}

fn zip<const N: usize>(a: &Bytes, b: &Bytes, f: impl Fn([u8; N], [u8; N]) -> [u8; N]) -> Bytes {
    let mut to = [0; 64];
    let pairs = a.chunks_exact(N).zip(b.chunks_exact(N));
    for ((a, b), to) in pairs.zip(to.chunks_exact_mut(N)) {
        to.copy_from_slice(&f(a.try_into().unwrap(), b.try_into().unwrap()));
    }
    to
}

fn floats(a: &Bytes, b: &Bytes, f: impl Fn(f32, f32) -> f32) -> Bytes {
    zip(a, b, |a, b| {
        f(f32::from_le_bytes(a), f32::from_le_bytes(b)).to_le_bytes()
    })
}

fn words(a: [u8; 4]) -> [i32; 2] {
    [[a[0], a[1]], [a[2], a[3]]].map(|w| i16::from_le_bytes(w) as i32)
}

impl Machine<'_> {
    fn run(&mut self) {
        let mut ip = CODE_AT;
        let mut decoded: Vec<Option<Instruction>> = vec![None; self.code.len()];
        while ip != RETURN_AT {
            let at = (ip - CODE_AT) as usize;
            let code = self.code;
            let instruction = decoded[at].get_or_insert_with(|| {
                Decoder::with_ip(64, &code[at..], ip, DecoderOptions::NONE).decode()
            });
            ip = self.step(instruction);
        }
    }

    fn memory_at(&mut self, at: u64, len: usize) -> &mut [u8] {
        let from = at.checked_sub(DATA_AT).expect("an address below the data") as usize;
        let within = |range: &Range<usize>| range.start <= from && from + len <= range.end;
        assert!(
            self.placed.iter().any(within),
            "{len} bytes outside of arguments"
        );
        &mut self.memory[from..from + len]
    }

    fn read(&mut self, at: u64, len: usize) -> Bytes {
        let mut bytes = [0; 64];
        match at.checked_sub(CODE_AT) {
            Some(from) if (from as usize) < self.code.len() => {
                bytes[..len].copy_from_slice(&self.code[from as usize..][..len]);
            }
            Some(_) | None => bytes[..len].copy_from_slice(self.memory_at(at, len)),
        }
        bytes
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        self.memory_at(at, bytes.len()).copy_from_slice(bytes);
    }

    fn address(&self, i: &Instruction) -> u64 {
        if i.memory_base() == Register::RIP {
            return i.ip_rel_memory_address();
        }
        let value = |r: Register| match r {
            Register::None => 0,
            r => self.general[r.number()],
        };
        let index = value(i.memory_index()).wrapping_mul(i.memory_index_scale() as u64);
        value(i.memory_base())
            .wrapping_add(index)
            .wrapping_add(i.memory_displacement64())
    }

    /// `len` bytes of an operand.
    fn source(&mut self, i: &Instruction, operand: u32, len: usize) -> Bytes {
        match i.op_kind(operand) {
            OpKind::Memory if i.is_broadcast() => {
                let at = self.address(i);
                let mut bytes = repeat(&self.read(at, 4)[..4]);
                bytes[len..].fill(0);
                bytes
            }
            OpKind::Memory => {
                let at = self.address(i);
                self.read(at, len)
            }
            OpKind::Register => {
                let mut bytes = self.vectors[i.op_register(operand).number()];
                bytes[len..].fill(0);
                bytes
            }
            other => panic!("{other:?} in {i}"),
        }
    }

    fn general_source(&mut self, i: &Instruction, operand: u32) -> u64 {
        match i.op_kind(operand) {
            OpKind::Register => self.general[i.op_register(operand).number()],
            OpKind::Memory => {
                let at = self.address(i);
                u64::from_le_bytes(self.read(at, 8)[..8].try_into().unwrap())
            }
            OpKind::Immediate8to64 | OpKind::Immediate32to64 => i.immediate(operand),
            other => panic!("{other:?} in {i}"),
        }
    }

    fn set_general(&mut self, i: &Instruction, value: u64) {
        match i.op0_kind() {
            OpKind::Register => self.general[i.op0_register().number()] = value,
            OpKind::Memory => {
                let at = self.address(i);
                self.write(at, &value.to_le_bytes());
            }
            other => panic!("{other:?} in {i}"),
        }
    }

    fn step(&mut self, i: &Instruction) -> u64 {
        let next = i.next_ip();
        match i.mnemonic() {
            Mnemonic::Prefetcht0 | Mnemonic::Prefetcht1 => {}
            Mnemonic::Vzeroupper => self.vectors[..16].iter_mut().for_each(|v| v[16..].fill(0)),
            Mnemonic::Push => {
                let value = self.general_source(i, 0);
                self.general[4] -= 8;
                self.write(self.general[4], &value.to_le_bytes());
            }
            Mnemonic::Pop => {
                let at = self.general[4];
                let value = u64::from_le_bytes(self.read(at, 8)[..8].try_into().unwrap());
                self.general[4] += 8;
                self.set_general(i, value);
            }
            Mnemonic::Ret => {
                let at = self.general[4];
                self.general[4] += 8;
                return u64::from_le_bytes(self.read(at, 8)[..8].try_into().unwrap());
            }
            Mnemonic::Mov => {
                let value = self.general_source(i, 1);
                self.set_general(i, value);
            }
            Mnemonic::Lea => {
                let value = self.address(i);
                self.set_general(i, value);
            }
            Mnemonic::Add | Mnemonic::And | Mnemonic::Test | Mnemonic::Sub | Mnemonic::Cmp => {
                let (a, b) = (self.general_source(i, 0), self.general_source(i, 1));
                let (value, carry) = match i.mnemonic() {
                    Mnemonic::Add => a.overflowing_add(b),
                    Mnemonic::And | Mnemonic::Test => (a & b, false),
                    _ => a.overflowing_sub(b),
                };
                (self.zero, self.carry) = (value == 0, carry);
                if !matches!(i.mnemonic(), Mnemonic::Cmp | Mnemonic::Test) {
                    self.set_general(i, value);
                }
            }
            Mnemonic::Dec => {
                let value = self.general_source(i, 0).wrapping_sub(1);
                self.zero = value == 0;
                self.set_general(i, value);
            }
            Mnemonic::Neg => {
                let value = self.general_source(i, 0).wrapping_neg();
                (self.zero, self.carry) = (value == 0, value != 0);
                self.set_general(i, value);
            }
            Mnemonic::Shr => {
                let value = self.general_source(i, 0) >> i.immediate8();
                self.zero = value == 0;
                self.set_general(i, value);
            }
            Mnemonic::Imul => {
                let (a, b) = (self.general_source(i, 1), self.general_source(i, 2));
                self.set_general(i, a.wrapping_mul(b));
            }
            Mnemonic::Cmova => {
                let value = self.general_source(i, 1);
                if !self.zero && !self.carry {
                    self.set_general(i, value);
                }
            }
            Mnemonic::Jmp => return i.near_branch_target(),
            Mnemonic::Je | Mnemonic::Jne | Mnemonic::Jb | Mnemonic::Jae => {
                let taken = match i.mnemonic() {
                    Mnemonic::Je => self.zero,
                    Mnemonic::Jne => !self.zero,
                    Mnemonic::Jae => !self.carry,
                    _ => self.carry,
                };
                if taken {
                    return i.near_branch_target();
                }
            }
            Mnemonic::Vpmovb2m => {
                let a = self.source(i, 1, 64);
                let bits = a.iter().enumerate().map(|(n, b)| (*b as u64 >> 7) << n);
                self.masks[i.op0_register().number()] = bits.sum();
            }
            Mnemonic::Ldtilecfg => {
                let at = self.address(i);
                let configuration = self.read(at, 64);
                let reserved = configuration[1..16].iter().chain(&configuration[32..48]);
                assert!(
                    configuration[0] == 1 && reserved.chain(&configuration[56..]).all(|b| *b == 0)
                );
                self.tiles = Some(std::array::from_fn(|n| {
                    let row_bytes = [configuration[16 + 2 * n], configuration[17 + 2 * n]];
                    let row_bytes = u16::from_le_bytes(row_bytes) as usize;
                    let rows = configuration[48 + n] as usize;
                    assert!(row_bytes <= 64 && rows <= 16 && (row_bytes == 0) == (rows == 0));
                    Tile {
                        row_bytes,
                        rows,
                        bytes: [[0; 64]; 16],
                    }
                }));
            }
            Mnemonic::Tilerelease => self.tiles = None,
            Mnemonic::Tilezero => self.tile(i.op0_register()).bytes = [[0; 64]; 16],
            Mnemonic::Tileloadd => {
                let (at, stride) = self.rows_of(i);
                let Tile {
                    row_bytes, rows, ..
                } = *self.tile(i.op0_register());
                for row in 0..rows {
                    let bytes = self.read(at + row as u64 * stride, row_bytes);
                    self.tile(i.op0_register()).bytes[row] = bytes;
                }
            }
            Mnemonic::Tilestored => {
                let (at, stride) = self.rows_of(i);
                let tile = *self.tile(i.op1_register());
                for (row, bytes) in tile.bytes[..tile.rows].iter().enumerate() {
                    self.write(at + row as u64 * stride, &bytes[..tile.row_bytes]);
                }
            }
            Mnemonic::Tdpbssd => {
                let a = *self.tile(i.op1_register());
                let b = *self.tile(i.op2_register());
                let to = self.tile(i.op0_register());
                assert_eq!(
                    (a.rows, a.row_bytes, b.row_bytes),
                    (to.rows, 4 * b.rows, to.row_bytes)
                );
                for (to, a) in to.bytes[..to.rows].iter_mut().zip(&a.bytes) {
                    for (fours, a) in b.bytes[..b.rows].iter().zip(a.chunks_exact(4)) {
                        for (to, b) in to.chunks_exact_mut(4).zip(fours.chunks_exact(4)) {
                            let sum: i32 = a
                                .iter()
                                .zip(b)
                                .map(|(a, b)| *a as i8 as i32 * *b as i8 as i32)
                                .sum();
                            let before = i32::from_le_bytes(to.try_into().unwrap());
                            to.copy_from_slice(&before.wrapping_add(sum).to_le_bytes());
                        }
                    }
                }
            }
            _ => self.vector(i),
        }
        next
    }

    fn tile(&mut self, register: Register) -> &mut Tile {
        let tiles = self.tiles.as_mut().expect("tiles are configured");
        let tile = &mut tiles[register.number()];
        assert!(tile.rows > 0, "{register:?} is not configured");
        tile
    }

    /// Address of the first row, and bytes from a row to the next.
    fn rows_of(&self, i: &Instruction) -> (u64, u64) {
        let value = |r: Register| self.general[r.number()];
        let at = value(i.memory_base()).wrapping_add(i.memory_displacement64());
        let stride = value(i.memory_index()) * i.memory_index_scale() as u64;
        (at, stride)
    }

    /// Instructions whose first operand is a vector or memory that one is
    /// stored to.
    fn vector(&mut self, i: &Instruction) {
        if i.op0_kind() == OpKind::Memory {
            assert_eq!(i.mnemonic(), Mnemonic::Vmovups);
            let register = i.op1_register();
            let (at, bytes) = (self.address(i), self.vectors[register.number()]);
            return self.write(at, &bytes[..register.size()]);
        }
        let to = i.op0_register();
        let size = to.size();
        let a = |m: &mut Self, len: usize| m.source(i, 1, len);
        let b = |m: &mut Self, len: usize| m.source(i, 2, len);
        let both = |m: &mut Self| (a(m, size), b(m, size));
        let shift = || i.immediate(2) as u32;
        let dword = |x: [u8; 4]| i32::from_le_bytes(x);
        let mut result = match i.mnemonic() {
            Mnemonic::Vmovups | Mnemonic::Vmovdqu | Mnemonic::Vmovdqa32 => a(self, size),
            Mnemonic::Vpxor | Mnemonic::Vpxord => {
                let (a, b) = both(self);
                zip(&a, &b, |[a], [b]| [a ^ b])
            }
            Mnemonic::Vpand | Mnemonic::Vpandd => {
                let (a, b) = both(self);
                zip(&a, &b, |[a], [b]| [a & b])
            }
            Mnemonic::Vpor | Mnemonic::Vpord => {
                let (a, b) = both(self);
                zip(&a, &b, |[a], [b]| [a | b])
            }
            Mnemonic::Vpsubb => {
                let (a, b) = both(self);
                zip(&a, &b, |[a], [b]| [a.wrapping_sub(b)])
            }
            Mnemonic::Vpaddw => {
                let (a, b) = both(self);
                zip(&a, &b, |a, b| {
                    u16::from_le_bytes(a)
                        .wrapping_add(u16::from_le_bytes(b))
                        .to_le_bytes()
                })
            }
            Mnemonic::Vpaddd => {
                let (a, b) = both(self);
                zip(&a, &b, |a, b| dword(a).wrapping_add(dword(b)).to_le_bytes())
            }
            Mnemonic::Vpsubd => {
                let (a, b) = both(self);
                zip(&a, &b, |a, b| dword(a).wrapping_sub(dword(b)).to_le_bytes())
            }
            Mnemonic::Vpmaxsd => {
                let (a, b) = both(self);
                zip(&a, &b, |a, b| dword(a).max(dword(b)).to_le_bytes())
            }
            Mnemonic::Vpmullw => {
                let (a, b) = both(self);
                zip(&a, &b, |a: [u8; 2], b: [u8; 2]| {
                    u16::from_le_bytes(a)
                        .wrapping_mul(u16::from_le_bytes(b))
                        .to_le_bytes()
                })
            }
            Mnemonic::Vpmulld => {
                let (a, b) = both(self);
                zip(&a, &b, |a, b| dword(a).wrapping_mul(dword(b)).to_le_bytes())
            }
            Mnemonic::Vpsignb => {
                let (a, b) = both(self);
                zip(&a, &b, |[a], [b]| {
                    [(a as i8).wrapping_mul((b as i8).signum()) as u8]
                })
            }
            Mnemonic::Vpmaddubsw => {
                let (a, b) = both(self);
                zip(&a, &b, |a: [u8; 2], b: [u8; 2]| {
                    let product = |n: usize| a[n] as i32 * b[n] as i8 as i32;
                    let sum = product(0) + product(1);
                    (sum.clamp(i16::MIN as i32, i16::MAX as i32) as i16).to_le_bytes()
                })
            }
            Mnemonic::Vpmaddwd | Mnemonic::Vpdpwssd => {
                let (a, b) = both(self);
                let before = match i.mnemonic() {
                    Mnemonic::Vpdpwssd => self.vectors[to.number()],
                    _ => [0; 64],
                };
                let products = zip(&a, &b, |a, b| {
                    let ([a0, a1], [b0, b1]) = (words(a), words(b));
                    (a0 * b0).wrapping_add(a1 * b1).to_le_bytes()
                });
                zip(&before, &products, |a, b| {
                    dword(a).wrapping_add(dword(b)).to_le_bytes()
                })
            }
            Mnemonic::Vpternlogd => {
                let (a, b) = both(self);
                let before = self.vectors[to.number()];
                let table = i.immediate8();
                let mut to = [0; 64];
                for (n, to) in to[..size].iter_mut().enumerate() {
                    for bit in 0..8 {
                        let of = |x: u8| x >> bit & 1;
                        let entry = of(before[n]) << 2 | of(a[n]) << 1 | of(b[n]);
                        *to |= (table >> entry & 1) << bit;
                    }
                }
                to
            }
            Mnemonic::Vpdpbusd => {
                let (a, b) = both(self);
                let products = zip(&a, &b, |a: [u8; 4], b: [u8; 4]| {
                    let sum: i32 = (0..4).map(|n| a[n] as i32 * b[n] as i8 as i32).sum();
                    sum.to_le_bytes()
                });
                let before = self.vectors[to.number()];
                zip(&before, &products, |a, b| {
                    dword(a).wrapping_add(dword(b)).to_le_bytes()
                })
            }
            Mnemonic::Vpshufb => {
                let (a, b) = both(self);
                let mut to = [0; 64];
                for (n, to) in to.iter_mut().enumerate() {
                    if b[n] < 0x80 {
                        *to = a[n / 16 * 16 + (b[n] & 15) as usize];
                    }
                }
                to
            }
            Mnemonic::Vpunpcklbw | Mnemonic::Vpunpckhbw => {
                assert_eq!(size, 16);
                let (a, b) = both(self);
                let from = 8 * (i.mnemonic() == Mnemonic::Vpunpckhbw) as usize;
                let mut to = [0; 64];
                for n in 0..8 {
                    (to[2 * n], to[2 * n + 1]) = (a[from + n], b[from + n]);
                }
                to
            }
            Mnemonic::Vaddps => {
                let (a, b) = both(self);
                floats(&a, &b, |a, b| a + b)
            }
            Mnemonic::Vsubps => {
                let (a, b) = both(self);
                floats(&a, &b, |a, b| a - b)
            }
            Mnemonic::Vmulps => {
                let (a, b) = both(self);
                floats(&a, &b, |a, b| a * b)
            }
            Mnemonic::Vcvtdq2ps => map(&a(self, size), |a| (dword(a) as f32).to_le_bytes()),
            Mnemonic::Vcvtph2ps => map(&a(self, size / 2), |a: [u8; 2]| {
                f16_to_f32(u16::from_le_bytes(a)).to_le_bytes()
            }),
            Mnemonic::Vpabsb => map(&a(self, size), |[a]| [(a as i8).unsigned_abs()]),
            Mnemonic::Vpsllw => map(&a(self, size), |a| {
                (u16::from_le_bytes(a) << shift()).to_le_bytes()
            }),
            Mnemonic::Vpsrlw => map(&a(self, size), |a| {
                (u16::from_le_bytes(a) >> shift()).to_le_bytes()
            }),
            Mnemonic::Vpslld => map(&a(self, size), |a| {
                (u32::from_le_bytes(a) << shift()).to_le_bytes()
            }),
            Mnemonic::Vpsrld => map(&a(self, size), |a| {
                (u32::from_le_bytes(a) >> shift()).to_le_bytes()
            }),
            Mnemonic::Vpsrldq => {
                assert_eq!(size, 16);
                let a = a(self, 16);
                let mut to = [0; 64];
                let count = 16 - shift() as usize;
                to[..count].copy_from_slice(&a[16 - count..16]);
                to
            }
            Mnemonic::Vpbroadcastd => repeat(&a(self, 4)[..4]),
            Mnemonic::Vbroadcasti128 | Mnemonic::Vbroadcasti32x4 => repeat(&a(self, 16)[..16]),
            Mnemonic::Vpmovzxbd => map(&a(self, size / 4), |[a]| (a as u32).to_le_bytes()),
            Mnemonic::Vpmovsxbd => map(&a(self, size / 4), |[a]| (a as i8 as i32).to_le_bytes()),
            Mnemonic::Vpmovzxbw => map(&a(self, size / 2), |[a]| (a as u16).to_le_bytes()),
            Mnemonic::Vpmovsxbw => map(&a(self, size / 2), |[a]| (a as i8 as i16).to_le_bytes()),
            Mnemonic::Vpmovzxbq => map(&a(self, size / 8), |[a]| (a as u64).to_le_bytes()),
            Mnemonic::Vpermq => {
                let (from, order): (Bytes, Vec<usize>) = match i.op2_kind() {
                    OpKind::Immediate8 => {
                        let order = (0..4).map(|n| (i.immediate8() >> (2 * n) & 3) as usize);
                        (a(self, size), order.collect())
                    }
                    _ => {
                        let (order, from) = both(self);
                        let order = order.chunks_exact(8).map(|o| (o[0] & 7) as usize);
                        (from, order.collect())
                    }
                };
                let mut to = [0; 64];
                for (to, q) in to[..size].chunks_exact_mut(8).zip(order) {
                    to.copy_from_slice(&from[8 * q..8 * q + 8]);
                }
                to
            }
            Mnemonic::Vextracti128 | Mnemonic::Vextracti64x4 => {
                let from = a(self, 2 * size);
                let at = size * i.immediate8() as usize;
                let mut to = [0; 64];
                to[..size].copy_from_slice(&from[at..at + size]);
                to
            }
            Mnemonic::Vinserti128 => {
                let (mut to, part) = (a(self, 32), b(self, 16));
                let at = 16 * i.immediate8() as usize;
                to[at..at + 16].copy_from_slice(&part[..16]);
                to
            }
            other => panic!("no emulation of {other:?}: {i}"),
        };
        if i.op_mask() != Register::None {
            assert!(i.merging_masking() && i.mnemonic() == Mnemonic::Vpsubb);
            let mask = self.masks[i.op_mask().number()];
            let before = self.vectors[to.number()];
            for (n, result) in result.iter_mut().enumerate() {
                if mask >> n & 1 == 0 {
                    *result = before[n];
                }
            }
        }
        result[size..].fill(0);
        self.vectors[to.number()] = result;
    }
}

fn repeat(part: &[u8]) -> Bytes {
    std::array::from_fn(|i| part[i % part.len()])
}
