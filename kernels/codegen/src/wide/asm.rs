//! Instructions, registers, constants and loops on top of iced-x86's encoder.
//!
//! One method emits the VEX form at 256 bits and the EVEX form at 512 bits.

use super::level::Level;
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, MemoryOperand, Register,
};

/// A vector register of the level's width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Vector(u32);

/// `base + index * scale + displacement`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    base: Register,
    index: Register,
    scale: u32,
    displacement: i64,
}

impl Address {
    pub(super) fn new(base: Register) -> Address {
        Address {
            base,
            index: Register::None,
            scale: 1,
            displacement: 0,
        }
    }

    pub(super) fn index(self, index: Register, scale: u32) -> Address {
        Address {
            index,
            scale,
            ..self
        }
    }

    pub(super) fn plus(self, bytes: u32) -> Address {
        Address {
            displacement: self.displacement + bytes as i64,
            ..self
        }
    }

    fn operand(self) -> MemoryOperand {
        // Size 1 lets the encoder choose the shortest displacement.
        let size = (self.displacement != 0) as u32;
        MemoryOperand::new(
            self.base,
            self.index,
            self.scale,
            self.displacement,
            size,
            false,
            Register::None,
        )
    }

    fn broadcast_operand(self) -> MemoryOperand {
        MemoryOperand {
            is_broadcast: true,
            ..self.operand()
        }
    }
}

/// The last operand of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    Vector(Vector),
    Memory(Address),
    /// The 32 bits there in every lane: EVEX forms of instructions on dwords only.
    Broadcast(Address),
}

impl From<Vector> for Source {
    fn from(v: Vector) -> Source {
        Source::Vector(v)
    }
}

impl From<Address> for Source {
    fn from(a: Address) -> Source {
        Source::Memory(a)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Label(u64);

pub(super) struct Asm {
    pub(super) level: Level,
    instructions: Vec<Instruction>,
    labels: u64,
    constants: Vec<(Label, Vec<u8>)>,
    /// Vector registers that hold nothing.
    free: Vec<Vector>,
}

/// Whether a conditional jump is taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    Equal,
    NotEqual,
    Below,
    AboveOrEqual,
}

fn built(instruction: Result<Instruction, iced_x86::IcedError>) -> Instruction {
    instruction.unwrap_or_else(|e| panic!("operands that fit no form of the instruction: {e}"))
}

/// The operands of an operation whose order does not matter.
fn one_in_register(x: Source, y: Source) -> (Vector, Source) {
    match (x, y) {
        (Source::Vector(x), y) | (y, Source::Vector(x)) => (x, y),
        (x, y) => panic!("{x:?} and {y:?} are both in memory"),
    }
}

macro_rules! three_operands {
    ($($(#[$doc:meta])* $name:ident $vex:ident $evex:ident;)*) => {
        impl Asm {
            $($(#[$doc])* pub(super) fn $name(&mut self, to: Vector, a: Vector, b: impl Into<Source>) {
                let code = self.level.pick(Code::$vex, Code::$evex);
                self.three(code, self.register(to), self.register(a), b.into());
            })*
        }
    };
}

three_operands! {
    add_words VEX_Vpaddw_ymm_ymm_ymmm256 EVEX_Vpaddw_zmm_k1z_zmm_zmmm512;
    add_dwords VEX_Vpaddd_ymm_ymm_ymmm256 EVEX_Vpaddd_zmm_k1z_zmm_zmmm512b32;
    sub_bytes VEX_Vpsubb_ymm_ymm_ymmm256 EVEX_Vpsubb_zmm_k1z_zmm_zmmm512;
    sub_dwords VEX_Vpsubd_ymm_ymm_ymmm256 EVEX_Vpsubd_zmm_k1z_zmm_zmmm512b32;
    max_dwords VEX_Vpmaxsd_ymm_ymm_ymmm256 EVEX_Vpmaxsd_zmm_k1z_zmm_zmmm512b32;
    mul_dwords VEX_Vpmulld_ymm_ymm_ymmm256 EVEX_Vpmulld_zmm_k1z_zmm_zmmm512b32;
    and VEX_Vpand_ymm_ymm_ymmm256 EVEX_Vpandd_zmm_k1z_zmm_zmmm512b32;
    or VEX_Vpor_ymm_ymm_ymmm256 EVEX_Vpord_zmm_k1z_zmm_zmmm512b32;
    xor VEX_Vpxor_ymm_ymm_ymmm256 EVEX_Vpxord_zmm_k1z_zmm_zmmm512b32;
    /// `b[a]` within 16 bytes: `to = shuffle(table, indices)`.
    shuffle_bytes VEX_Vpshufb_ymm_ymm_ymmm256 EVEX_Vpshufb_zmm_k1z_zmm_zmmm512;
    /// Pairs of unsigned bytes of `a` and signed bytes of `b`, into saturated words.
    mul_add_bytes VEX_Vpmaddubsw_ymm_ymm_ymmm256 EVEX_Vpmaddubsw_zmm_k1z_zmm_zmmm512;
    mul_add_words VEX_Vpmaddwd_ymm_ymm_ymmm256 EVEX_Vpmaddwd_zmm_k1z_zmm_zmmm512;
    mul_words VEX_Vpmullw_ymm_ymm_ymmm256 EVEX_Vpmullw_zmm_k1z_zmm_zmmm512;
    mul VEX_Vmulps_ymm_ymm_ymmm256 EVEX_Vmulps_zmm_k1z_zmm_zmmm512b32_er;
    add VEX_Vaddps_ymm_ymm_ymmm256 EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er;
    sub VEX_Vsubps_ymm_ymm_ymmm256 EVEX_Vsubps_zmm_k1z_zmm_zmmm512b32_er;
}

macro_rules! two_operands {
    ($($name:ident $vex:ident $evex:ident;)*) => {
        impl Asm {
            $(pub(super) fn $name(&mut self, to: Vector, from: impl Into<Source>) {
                let code = self.level.pick(Code::$vex, Code::$evex);
                self.two(code, self.register(to), from.into());
            })*
        }
    };
}

two_operands! {
    load VEX_Vmovups_ymm_ymmm256 EVEX_Vmovups_zmm_k1z_zmmm512;
    abs_bytes VEX_Vpabsb_ymm_ymmm256 EVEX_Vpabsb_zmm_k1z_zmmm512;
    f32_from_i32 VEX_Vcvtdq2ps_ymm_ymmm256 EVEX_Vcvtdq2ps_zmm_k1z_zmmm512b32_er;
}

macro_rules! shifts {
    ($($name:ident $vex:ident $evex:ident;)*) => {
        impl Asm {
            $(pub(super) fn $name(&mut self, to: Vector, from: Vector, bits: u32) {
                let code = self.level.pick(Code::$vex, Code::$evex);
                self.push(Instruction::with3(code, self.register(to), self.register(from), bits));
            })*
        }
    };
}

shifts! {
    shift_words_left VEX_Vpsllw_ymm_ymm_imm8 EVEX_Vpsllw_zmm_k1z_zmmm512_imm8;
    shift_words_right VEX_Vpsrlw_ymm_ymm_imm8 EVEX_Vpsrlw_zmm_k1z_zmmm512_imm8;
    shift_dwords_left VEX_Vpslld_ymm_ymm_imm8 EVEX_Vpslld_zmm_k1z_zmmm512b32_imm8;
    shift_dwords_right VEX_Vpsrld_ymm_ymm_imm8 EVEX_Vpsrld_zmm_k1z_zmmm512b32_imm8;
}

impl Asm {
    pub(super) fn new(level: Level) -> Asm {
        Asm {
            level,
            instructions: Vec::new(),
            labels: 0,
            constants: Vec::new(),
            free: (0..level.registers()).rev().map(Vector).collect(),
        }
    }

    /// The bytes of the code and the constants behind it.
    pub(super) fn finish(mut self) -> Vec<u8> {
        for (label, bytes) in std::mem::take(&mut self.constants) {
            // The encoder takes at most 16 bytes at once.
            for (i, part) in bytes.chunks(16).enumerate() {
                let mut data = built(Instruction::with_declare_byte(part));
                if i == 0 {
                    data.set_ip(label.0);
                }
                self.instructions.push(data);
            }
        }
        let block = InstructionBlock::new(&self.instructions, 0);
        BlockEncoder::encode(64, block, BlockEncoderOptions::NONE)
            .unwrap_or_else(|e| panic!("instructions that cannot be encoded: {e}"))
            .code_buffer
    }

    fn push(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) {
        self.instructions.push(built(instruction));
    }

    // Vector registers.

    pub(super) fn take(&mut self) -> Vector {
        self.free.pop().expect("a vector register is free")
    }

    pub(super) fn take_many(&mut self, count: usize) -> Vec<Vector> {
        (0..count).map(|_| self.take()).collect()
    }

    pub(super) fn give(&mut self, v: Vector) {
        assert!(!self.free.contains(&v), "{v:?} is given twice");
        self.free.push(v);
        // The lowest register first: only the first 16 have VEX forms.
        self.free.sort_unstable_by(|a, b| b.cmp(a));
    }

    pub(super) fn give_many(&mut self, vectors: impl IntoIterator<Item = Vector>) {
        vectors.into_iter().for_each(|v| self.give(v));
    }

    fn register(&self, v: Vector) -> Register {
        self.level.pick(Register::YMM0, Register::ZMM0) + v.0
    }

    /// The low 128 bits.
    fn low(&self, v: Vector) -> Register {
        assert!(v.0 < 16, "{v:?} has no VEX form");
        Register::XMM0 + v.0
    }

    /// The low half.
    fn half(&self, v: Vector) -> Register {
        self.level.pick(Register::XMM0, Register::YMM0) + v.0
    }

    // Instruction forms.

    fn three(&mut self, code: Code, to: Register, a: Register, b: Source) {
        let instruction = match b {
            Source::Vector(b) => {
                let b = self.like(to, b);
                Instruction::with3(code, to, a, b)
            }
            Source::Memory(b) => Instruction::with3(code, to, a, b.operand()),
            Source::Broadcast(b) => Instruction::with3(code, to, a, b.broadcast_operand()),
        };
        self.push(instruction);
    }

    fn two(&mut self, code: Code, to: Register, from: Source) {
        let instruction = match from {
            Source::Vector(from) => {
                let from = self.like(to, from);
                Instruction::with2(code, to, from)
            }
            Source::Memory(from) => Instruction::with2(code, to, from.operand()),
            Source::Broadcast(from) => Instruction::with2(code, to, from.broadcast_operand()),
        };
        self.push(instruction);
    }

    /// `v` at the width of `register`.
    fn like(&self, register: Register, v: Vector) -> Register {
        if register.is_xmm() {
            self.low(v)
        } else {
            self.register(v)
        }
    }

    /// `x * y`, one of which is in a register.
    pub(super) fn product(&mut self, to: Vector, x: impl Into<Source>, y: impl Into<Source>) {
        let (x, y) = one_in_register(x.into(), y.into());
        self.mul(to, x, y);
    }

    pub(super) fn store(&mut self, to: Address, from: Vector) {
        let code = self.level.pick(
            Code::VEX_Vmovups_ymmm256_ymm,
            Code::EVEX_Vmovups_zmmm512_k1z_zmm,
        );
        self.push(Instruction::with2(code, to.operand(), self.register(from)));
    }

    pub(super) fn zero(&mut self, v: Vector) {
        // The VEX form clears the whole register.
        if v.0 < 16 {
            let low = self.low(v);
            self.push(Instruction::with3(
                Code::VEX_Vpxor_xmm_xmm_xmmm128,
                low,
                low,
                low,
            ));
        } else {
            self.xor(v, v, v);
        }
    }

    /// The 32 bits at `from` in every lane.
    pub(super) fn broadcast_dword(&mut self, to: Vector, from: Address) {
        let code = self.level.pick(
            Code::VEX_Vpbroadcastd_ymm_xmmm32,
            Code::EVEX_Vpbroadcastd_zmm_k1z_xmmm32,
        );
        self.push(Instruction::with2(code, self.register(to), from.operand()));
    }

    /// `to |= from & mask`. `other` may be `from`; it is lost.
    pub(super) fn or_masked(&mut self, to: Vector, from: Vector, mask: Vector, other: Vector) {
        match self.level.ternary_logic() {
            None => {
                self.and(other, from, mask);
                self.or(to, to, other);
            }
            Some(code) => {
                // Bit `4 to + 2 from + mask` of the table is what those bits give.
                const TABLE: u32 = 0b1111_1000;
                let [to, from, mask] = [to, from, mask].map(|v| self.register(v));
                self.push(Instruction::with4(code, to, from, mask, TABLE));
            }
        }
    }

    /// `to += a . b` per lane: four unsigned bytes of `a`, four signed ones of `b`.
    pub(super) fn dot_bytes(&mut self, to: Vector, a: Vector, b: impl Into<Source>) {
        let code = self.level.dot_bytes();
        self.three(code, self.register(to), self.register(a), b.into());
    }

    /// `to += x . y` per lane of two signed words; one of `x` and `y` is in a register.
    /// `other` is lost.
    pub(super) fn dot_words(
        &mut self,
        to: Vector,
        x: impl Into<Source>,
        y: impl Into<Source>,
        other: Vector,
    ) {
        let (x, y) = one_in_register(x.into(), y.into());
        match self.level.dot_words() {
            Some(code) => self.three(code, self.register(to), self.register(x), y),
            None => {
                self.mul_add_words(other, x, y);
                self.add_dwords(to, to, other);
            }
        }
    }

    /// `to = b < 0 ? -a : a` per byte, where `to` is neither; 0 may become
    /// anything where `b` is 0.
    pub(super) fn apply_sign(&mut self, to: Vector, a: Vector, b: Vector, zero: Option<Vector>) {
        match zero {
            None => {
                let [to, a, b] = [to, a, b].map(|v| self.register(v));
                self.push(Instruction::with3(
                    Code::VEX_Vpsignb_ymm_ymm_ymmm256,
                    to,
                    a,
                    b,
                ));
            }
            Some(zero) => {
                let [to, a, b, zero] = [to, a, b, zero].map(|v| self.register(v));
                self.push(Instruction::with2(
                    Code::EVEX_Vpmovb2m_kr_zmm,
                    Register::K1,
                    b,
                ));
                self.push(Instruction::with2(
                    Code::EVEX_Vmovdqa32_zmm_k1z_zmmm512,
                    to,
                    a,
                ));
                let mut negate = built(Instruction::with3(
                    Code::EVEX_Vpsubb_zmm_k1z_zmm_zmmm512,
                    to,
                    zero,
                    a,
                ));
                negate.set_op_mask(Register::K1);
                self.instructions.push(negate);
            }
        }
    }

    /// Halves at `from` as f32, exactly; half as many bytes as a vector.
    pub(super) fn f32_from_f16(&mut self, to: Vector, from: Address) {
        let code = self.level.f32_from_f16();
        self.push(Instruction::with2(code, self.register(to), from.operand()));
    }

    /// The same of the low half of `from`.
    pub(super) fn f32_from_f16_low(&mut self, to: Vector, from: Vector) {
        let code = self.level.f32_from_f16();
        self.push(Instruction::with2(code, self.register(to), self.half(from)));
    }

    /// Qwords 0, 2, 4 .. of `from`, then 1, 3, 5 ..
    pub(super) fn even_then_odd_qwords(&mut self, to: Vector, from: Vector, order: Vector) {
        let (to, from, order) = (self.register(to), self.register(from), self.register(order));
        match self.level.lanes() {
            8 => self.push(Instruction::with3(
                Code::VEX_Vpermq_ymm_ymmm256_imm8,
                to,
                from,
                0b11_01_10_00u32,
            )),
            _ => self.push(Instruction::with3(
                Code::EVEX_Vpermq_zmm_k1z_zmm_zmmm512b64,
                to,
                order,
                from,
            )),
        }
    }

    /// The high half of `from` in the low one of `to`.
    pub(super) fn high_half(&mut self, to: Vector, from: Vector) {
        let code = self.level.pick(
            Code::VEX_Vextracti128_xmmm128_ymm_imm8,
            Code::EVEX_Vextracti64x4_ymmm256_k1z_zmm_imm8,
        );
        self.push(Instruction::with3(
            code,
            self.half(to),
            self.register(from),
            1u32,
        ));
    }

    /// Into the second-level cache.
    pub(super) fn prefetch(&mut self, at: Address) {
        self.push(Instruction::with1(Code::Prefetcht1_m8, at.operand()));
    }

    // AMX tiles.

    /// Gives every tile its shape, and the value zero.
    pub(super) fn configure_tiles(&mut self, configuration: &[u8; 64]) {
        let at = self.constant(configuration);
        self.push(Instruction::with1(Code::VEX_Ldtilecfg_m512, at.operand()));
    }

    pub(super) fn release_tiles(&mut self) {
        self.instructions
            .push(Instruction::with(Code::VEX_Tilerelease));
    }

    pub(super) fn zero_tile(&mut self, tile: Register) {
        self.push(Instruction::with1(Code::VEX_Tilezero_tmm, tile));
    }

    /// Rows that are `stride` bytes apart.
    pub(super) fn load_tile(&mut self, tile: Register, from: Address, stride: Register) {
        let from = from.index(stride, 1).operand();
        self.push(Instruction::with2(
            Code::VEX_Tileloadd_tmm_sibmem,
            tile,
            from,
        ));
    }

    /// Rows that are `stride` bytes apart.
    pub(super) fn store_tile(&mut self, to: Address, stride: Register, tile: Register) {
        let to = to.index(stride, 1).operand();
        self.push(Instruction::with2(
            Code::VEX_Tilestored_sibmem_tmm,
            to,
            tile,
        ));
    }

    /// Adds the products of `a` and `b`, signed bytes, of which fours of rows are
    /// interleaved in `b`, to the dwords of `to`.
    pub(super) fn multiply_tiles(&mut self, to: Register, a: Register, b: Register) {
        self.push(Instruction::with3(Code::VEX_Tdpbssd_tmm_tmm_tmm, to, a, b));
    }

    // 16 bytes, one per row of a panel, in the low part of a register.

    pub(super) fn load_rows(&mut self, to: Vector, from: Address) {
        let low = self.low(to);
        self.two(Code::VEX_Vmovdqu_xmm_xmmm128, low, from.into());
    }

    pub(super) fn and_rows(&mut self, to: Vector, a: Vector, b: Vector) {
        let [to, a] = [to, a].map(|v| self.low(v));
        self.three(Code::VEX_Vpand_xmm_xmm_xmmm128, to, a, b.into());
    }

    pub(super) fn or_rows(&mut self, to: Vector, a: Vector, b: Vector) {
        let [to, a] = [to, a].map(|v| self.low(v));
        self.three(Code::VEX_Vpor_xmm_xmm_xmmm128, to, a, b.into());
    }

    pub(super) fn sub_rows(&mut self, to: Vector, a: Vector, b: Vector) {
        let [to, a] = [to, a].map(|v| self.low(v));
        self.three(Code::VEX_Vpsubb_xmm_xmm_xmmm128, to, a, b.into());
    }

    /// Shifts pairs of bytes: left by positive `bits`, right by negative ones.
    pub(super) fn shift_rows(&mut self, v: Vector, bits: i32) {
        let code = match bits {
            0 => return,
            1.. => Code::VEX_Vpsllw_xmm_xmm_imm8,
            ..0 => Code::VEX_Vpsrlw_xmm_xmm_imm8,
        };
        let low = self.low(v);
        self.push(Instruction::with3(code, low, low, bits.unsigned_abs()));
    }

    /// One i32 per row, in as many vectors as 16 rows take. `rows` is lost.
    pub(super) fn widen_rows(&mut self, rows: Vector, signed: bool) -> Vec<Vector> {
        let (vex, evex) = if signed {
            (
                Code::VEX_Vpmovsxbd_ymm_xmmm64,
                Code::EVEX_Vpmovsxbd_zmm_k1z_xmmm128,
            )
        } else {
            (
                Code::VEX_Vpmovzxbd_ymm_xmmm64,
                Code::EVEX_Vpmovzxbd_zmm_k1z_xmmm128,
            )
        };
        let code = self.level.pick(vex, evex);
        let wide = self.take_many(self.level.parts());
        let low = self.low(rows);
        for (i, &to) in wide.iter().enumerate() {
            if i > 0 {
                self.push(Instruction::with3(
                    Code::VEX_Vpsrldq_xmm_xmm_imm8,
                    low,
                    low,
                    8u32,
                ));
            }
            self.push(Instruction::with2(code, self.register(to), low));
        }
        wide
    }

    /// The words (`a[row]`, `b[row]`) per row.
    pub(super) fn pair_rows(&mut self, a: Vector, b: Vector, signed: bool) -> Vec<Vector> {
        let (vex, evex) = if signed {
            (
                Code::VEX_Vpmovsxbw_ymm_xmmm128,
                Code::EVEX_Vpmovsxbw_zmm_k1z_ymmm256,
            )
        } else {
            (
                Code::VEX_Vpmovzxbw_ymm_xmmm128,
                Code::EVEX_Vpmovzxbw_zmm_k1z_ymmm256,
            )
        };
        let widen = self.level.pick(vex, evex);
        let halves = self.take_many(2);
        let [a, b] = [a, b].map(|v| self.low(v));
        for (code, &to) in [
            Code::VEX_Vpunpcklbw_xmm_xmm_xmmm128,
            Code::VEX_Vpunpckhbw_xmm_xmm_xmmm128,
        ]
        .into_iter()
        .zip(&halves)
        {
            self.push(Instruction::with3(code, self.low(to), a, b));
        }
        if self.level.parts() == 2 {
            for &v in &halves {
                self.push(Instruction::with2(widen, self.register(v), self.low(v)));
            }
            return halves;
        }
        let (first, second) = (halves[0], halves[1]);
        let whole = Register::YMM0 + first.0;
        self.push(Instruction::with4(
            Code::VEX_Vinserti128_ymm_ymm_xmmm128_imm8,
            whole,
            whole,
            self.low(second),
            1u32,
        ));
        self.push(Instruction::with2(widen, self.register(first), whole));
        self.give(second);
        vec![first]
    }

    // Constants.

    fn constant(&mut self, bytes: &[u8]) -> Address {
        let found = self.constants.iter().find(|(_, b)| b == bytes);
        let label = match found {
            Some((label, _)) => *label,
            None => {
                let label = self.label();
                self.constants.push((label, bytes.to_vec()));
                label
            }
        };
        Address {
            displacement: label.0 as i64,
            ..Address::new(Register::RIP)
        }
    }

    pub(super) fn set_dwords(&mut self, to: Vector, value: u32) {
        let at = self.constant(&value.to_le_bytes());
        self.broadcast_dword(to, at);
    }

    pub(super) fn set_bytes(&mut self, to: Vector, value: u8) {
        self.set_dwords(to, u32::from_le_bytes([value; 4]));
    }

    /// The same 16 bytes in every 128 bits.
    pub(super) fn set_table(&mut self, to: Vector, bytes: &[u8; 16]) {
        let at = self.constant(bytes);
        let code = self.level.pick(
            Code::VEX_Vbroadcasti128_ymm_m128,
            Code::EVEX_Vbroadcasti32x4_zmm_k1z_m128,
        );
        self.push(Instruction::with2(code, self.register(to), at.operand()));
    }

    /// These bytes as qwords.
    pub(super) fn set_qwords(&mut self, to: Vector, values: [u8; 8]) {
        let at = self.constant(&values);
        let code = Code::EVEX_Vpmovzxbq_zmm_k1z_xmmm64;
        self.push(Instruction::with2(code, self.register(to), at.operand()));
    }

    // General registers.

    pub(super) fn push_register(&mut self, r: Register) {
        self.push(Instruction::with1(Code::Push_r64, r));
    }

    pub(super) fn pop_register(&mut self, r: Register) {
        self.push(Instruction::with1(Code::Pop_r64, r));
    }

    pub(super) fn mov(&mut self, to: Register, from: Register) {
        self.push(Instruction::with2(Code::Mov_r64_rm64, to, from));
    }

    pub(super) fn mov_from(&mut self, to: Register, from: Address) {
        self.push(Instruction::with2(Code::Mov_r64_rm64, to, from.operand()));
    }

    pub(super) fn mov_to(&mut self, to: Address, from: Register) {
        self.push(Instruction::with2(Code::Mov_rm64_r64, to.operand(), from));
    }

    pub(super) fn set(&mut self, to: Register, value: u32) {
        let value = i32::try_from(value).expect("an immediate");
        self.push(Instruction::with2(Code::Mov_rm64_imm32, to, value));
    }

    pub(super) fn address(&mut self, to: Register, of: Address) {
        self.push(Instruction::with2(Code::Lea_r64_m, to, of.operand()));
    }

    pub(super) fn advance(&mut self, r: Register, bytes: u32) {
        let bytes = i32::try_from(bytes).expect("an immediate");
        self.push(Instruction::with2(Code::Add_rm64_imm32, r, bytes));
    }

    pub(super) fn retreat(&mut self, r: Register, bytes: u32) {
        let bytes = i32::try_from(bytes).expect("an immediate");
        self.push(Instruction::with2(Code::Sub_rm64_imm32, r, bytes));
    }

    pub(super) fn advance_by(&mut self, r: Register, by: Register) {
        self.push(Instruction::with2(Code::Add_r64_rm64, r, by));
    }

    pub(super) fn retreat_by(&mut self, r: Register, by: Register) {
        self.push(Instruction::with2(Code::Sub_r64_rm64, r, by));
    }

    pub(super) fn advance_at(&mut self, at: Address, bytes: u32) {
        let bytes = i32::try_from(bytes).expect("an immediate");
        self.push(Instruction::with2(
            Code::Add_rm64_imm32,
            at.operand(),
            bytes,
        ));
    }

    pub(super) fn retreat_at(&mut self, at: Address, by: Register) {
        self.push(Instruction::with2(Code::Sub_rm64_r64, at.operand(), by));
    }

    pub(super) fn advance_at_by(&mut self, at: Address, by: Register) {
        self.push(Instruction::with2(Code::Add_rm64_r64, at.operand(), by));
    }

    pub(super) fn multiply(&mut self, to: Register, a: Register, b: u32) {
        let b = i32::try_from(b).expect("an immediate");
        self.push(Instruction::with3(Code::Imul_r64_rm64_imm32, to, a, b));
    }

    /// `r &= bits`
    pub(super) fn mask(&mut self, r: Register, bits: u32) {
        let bits = i32::try_from(bits).expect("an immediate");
        self.push(Instruction::with2(Code::And_rm64_imm32, r, bits));
    }

    pub(super) fn shift_right(&mut self, r: Register, bits: u32) {
        self.push(Instruction::with2(Code::Shr_rm64_imm8, r, bits));
    }

    pub(super) fn negate(&mut self, r: Register) {
        self.push(Instruction::with1(Code::Neg_rm64, r));
    }

    pub(super) fn align_down(&mut self, r: Register, to: i32) {
        self.push(Instruction::with2(Code::And_rm64_imm32, r, -to));
    }

    /// `r = min(r, limit)`, both below 2^31. `other` is lost.
    pub(super) fn at_most(&mut self, r: Register, limit: u32, other: Register) {
        self.set(other, limit);
        self.push(Instruction::with2(Code::Cmp_r64_rm64, r, other));
        self.push(Instruction::with2(Code::Cmova_r64_rm64, r, other));
    }

    pub(super) fn compare(&mut self, a: Register, b: Register) {
        self.push(Instruction::with2(Code::Cmp_r64_rm64, a, b));
    }

    pub(super) fn compare_at(&mut self, a: Register, b: Address) {
        self.push(Instruction::with2(Code::Cmp_r64_rm64, a, b.operand()));
    }

    pub(super) fn compare_with(&mut self, a: Register, b: u32) {
        let b = i32::try_from(b).expect("an immediate");
        self.push(Instruction::with2(Code::Cmp_rm64_imm32, a, b));
    }

    /// Compares `r & bits` with zero.
    pub(super) fn test(&mut self, r: Register, bits: u32) {
        let bits = i32::try_from(bits).expect("an immediate");
        self.push(Instruction::with2(Code::Test_rm64_imm32, r, bits));
    }

    pub(super) fn decrement(&mut self, r: Register) {
        self.push(Instruction::with1(Code::Dec_rm64, r));
    }

    // Control.

    pub(super) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    pub(super) fn bind(&mut self, label: Label) {
        let mut here = Instruction::with(Code::Zero_bytes);
        here.set_ip(label.0);
        self.instructions.push(here);
    }

    pub(super) fn jump_to(&mut self, label: Label) {
        self.push(Instruction::with_branch(Code::Jmp_rel32_64, label.0));
    }

    pub(super) fn jump(&mut self, when: When, label: Label) {
        let code = match when {
            When::Equal => Code::Je_rel32_64,
            When::NotEqual => Code::Jne_rel32_64,
            When::Below => Code::Jb_rel32_64,
            When::AboveOrEqual => Code::Jae_rel32_64,
        };
        self.push(Instruction::with_branch(code, label.0));
    }

    pub(super) fn end(&mut self) {
        self.instructions
            .push(Instruction::with(Code::VEX_Vzeroupper));
    }

    pub(super) fn ret(&mut self) {
        self.instructions.push(Instruction::with(Code::Retnq));
    }

    /// Executes `body` with `counter` counting down to 1; at least once.
    pub(super) fn repeat(&mut self, counter: Register, body: impl FnOnce(&mut Asm)) {
        let again = self.label();
        self.bind(again);
        body(self);
        self.decrement(counter);
        self.jump(When::NotEqual, again);
    }
}
