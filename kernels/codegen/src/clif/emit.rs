//! Instructions and loops on top of cranelift's builder.

use crate::Arch;
use cranelift_codegen::ir::immediates::V128Imm;
use cranelift_codegen::ir::types::{F32, F32X4, I8X16, I16X8, I32, I32X4, I64};
use cranelift_codegen::ir::{
    BlockArg, ConstantData, Endianness, InstBuilder, MemFlagsData, StackSlotData, StackSlotKind,
    Type, Value,
};
use cranelift_codegen::isa::TargetFrontendConfig;
use cranelift_frontend::FunctionBuilder;
use std::cmp::Ordering;

/// An address: a pointer and a constant displacement in bytes.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) base: Value,
    pub(super) offset: i32,
}

impl Address {
    pub(super) fn new(base: Value) -> Address {
        Address { base, offset: 0 }
    }

    pub(super) fn plus(self, bytes: u32) -> Address {
        let offset = self.offset + i32::try_from(bytes).expect("a displacement");
        Address { offset, ..self }
    }
}

pub(super) struct Emit<'a> {
    pub(super) b: FunctionBuilder<'a>,
    pub(super) arch: Arch,
    /// The function's argument.
    pub(super) args: Value,
}

fn block_args(values: &[Value]) -> Vec<BlockArg> {
    values.iter().copied().map(BlockArg::Value).collect()
}

impl<'a> Emit<'a> {
    pub(super) fn new(mut b: FunctionBuilder<'a>, arch: Arch) -> Emit<'a> {
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let args = b.block_params(entry)[0];
        Emit { b, arch, args }
    }

    pub(super) fn finish(mut self, frontend: TargetFrontendConfig) {
        self.b.ins().return_(&[]);
        self.b.seal_all_blocks();
        self.b.finalize(frontend);
    }

    // Memory.

    pub(super) fn load(&mut self, ty: Type, at: Address) -> Value {
        let flags = MemFlagsData::new().with_notrap();
        self.b.ins().load(ty, flags, at.base, at.offset)
    }

    pub(super) fn store(&mut self, value: Value, at: Address) {
        let flags = MemFlagsData::new().with_notrap();
        self.b.ins().store(flags, value, at.base, at.offset);
    }

    /// A 16-bit element, sign-extended to 32.
    pub(super) fn load_i16(&mut self, at: Address) -> Value {
        let flags = MemFlagsData::new().with_notrap();
        self.b.ins().sload16(I32, flags, at.base, at.offset)
    }

    /// Four sign-extended 16-bit elements.
    pub(super) fn load_i16x4(&mut self, at: Address) -> Value {
        let flags = MemFlagsData::new().with_notrap();
        self.b.ins().sload16x4(flags, at.base, at.offset)
    }

    /// One 32-bit element in all four lanes of `ty`. Loaded as a float, which
    /// keeps it out of the general registers: cranelift cannot merge a load
    /// into a broadcast that is used more than once.
    pub(super) fn load_splat(&mut self, ty: Type, at: Address) -> Value {
        let lane = self.load(F32, at);
        let splat = self.b.ins().splat(F32X4, lane);
        self.cast(ty, splat)
    }

    /// Element `index` of four in all lanes.
    pub(super) fn splat_lane(&mut self, value: Value, index: u32) -> Value {
        let bytes = self.cast(I8X16, value);
        let lanes = std::array::from_fn::<u8, 16, _>(|i| (4 * index + i as u32 % 4) as u8);
        let lanes = self
            .b
            .func
            .dfg
            .immediates
            .push(ConstantData::from(&lanes[..]));
        self.b.ins().shuffle(bytes, bytes, lanes)
    }

    /// The address of `bytes` bytes of the stack frame.
    pub(super) fn stack(&mut self, bytes: u32) -> Value {
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 6);
        let slot = self.b.create_sized_stack_slot(data);
        self.b.ins().stack_addr(I64, slot, 0)
    }

    pub(super) fn advance(&mut self, pointer: Value, bytes: u64) -> Value {
        if bytes == 0 {
            return pointer;
        }
        let bytes = i64::try_from(bytes).expect("a stride");
        self.b.ins().iadd_imm_s(pointer, bytes)
    }

    // Constants.

    pub(super) fn int(&mut self, value: i64) -> Value {
        self.b.ins().iconst(I64, value)
    }

    pub(super) fn bytes(&mut self, bytes: [u8; 16]) -> Value {
        self.vector(I8X16, bytes)
    }

    pub(super) fn u32s(&mut self, value: u32) -> Value {
        self.vector(I32X4, splat_bytes(value))
    }

    pub(super) fn f32s(&mut self, value: f32) -> Value {
        self.vector(F32X4, splat_bytes(value.to_bits()))
    }

    pub(super) fn vector(&mut self, ty: Type, bytes: [u8; 16]) -> Value {
        let constant = self
            .b
            .func
            .dfg
            .constants
            .insert(ConstantData::from(V128Imm(bytes)));
        self.b.ins().vconst(ty, constant)
    }

    // Vector operations.

    /// Reinterprets the 16 bytes.
    pub(super) fn cast(&mut self, ty: Type, value: Value) -> Value {
        if self.b.func.dfg.value_type(value) == ty {
            return value;
        }
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.b.ins().bitcast(ty, flags, value)
    }

    fn amount(&mut self, bits: u32) -> Value {
        self.b.ins().iconst(I32, bits as i64)
    }

    pub(super) fn shift_left(&mut self, value: Value, bits: u32) -> Value {
        let amount = self.amount(bits);
        self.b.ins().ishl(value, amount)
    }

    pub(super) fn shift_right(&mut self, value: Value, bits: u32) -> Value {
        let amount = self.amount(bits);
        self.b.ins().ushr(value, amount)
    }

    pub(super) fn shift_right_signed(&mut self, value: Value, bits: u32) -> Value {
        let amount = self.amount(bits);
        self.b.ins().sshr(value, amount)
    }

    /// The `width` bits at bit `from` of every byte moved to bit `to`, all other
    /// bits zero. `mask` holds `width` ones at bit `to` of every byte.
    ///
    /// x86 has no shifts of bytes: wider lanes are shifted and the mask removes
    /// what came from the neighbour.
    pub(super) fn byte_field(
        &mut self,
        value: Value,
        width: u32,
        from: u32,
        to: u32,
        mask: Value,
    ) -> Value {
        let lanes = match self.arch {
            Arch::X86_64 => I16X8,
            Arch::Aarch64 => I8X16,
        };
        let lanes_value = self.cast(lanes, value);
        let shifted = match from.cmp(&to) {
            Ordering::Equal => lanes_value,
            Ordering::Greater => self.shift_right(lanes_value, from - to),
            Ordering::Less => self.shift_left(lanes_value, to - from),
        };
        let shifted = self.cast(I8X16, shifted);
        if self.arch == Arch::Aarch64 && to == 0 && from + width == 8 {
            return shifted;
        }
        self.b.ins().band(mask, shifted)
    }

    /// Sixteen bytes as four vectors of i32.
    pub(super) fn widen_bytes(&mut self, value: Value, signed: bool) -> [Value; 4] {
        let mut halves = |v: Value| {
            if signed {
                [self.b.ins().swiden_low(v), self.b.ins().swiden_high(v)]
            } else {
                [self.b.ins().uwiden_low(v), self.b.ins().uwiden_high(v)]
            }
        };
        let [low, high] = halves(value);
        let ([a, b], [c, d]) = (halves(low), halves(high));
        [a, b, c, d]
    }

    pub(super) fn f32_from_int(&mut self, value: Value) -> Value {
        self.b.ins().fcvt_from_sint(F32X4, value)
    }

    /// `accumulator + a * b`, rounded twice.
    pub(super) fn mul_add(&mut self, accumulator: Value, a: Value, b: Value) -> Value {
        let product = self.b.ins().fmul(a, b);
        self.b.ins().fadd(accumulator, product)
    }

    // Control.

    /// Executes `body` `count` times, feeding its results back.
    pub(super) fn repeat(
        &mut self,
        count: u32,
        carried: &[Value],
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        if count == 1 {
            return body(self, carried);
        }
        let count = self.int(count as i64);
        self.repeat_dynamic(count, carried, body)
    }

    /// The same for a count that is known when the kernel executes.
    ///
    /// The test stands at the top, so that every result of `body` has one use:
    /// cranelift merges loads only into expressions that are used once.
    pub(super) fn repeat_dynamic(
        &mut self,
        count: Value,
        carried: &[Value],
        body: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let (head, again, exit) = (
            self.b.create_block(),
            self.b.create_block(),
            self.b.create_block(),
        );
        let mut enter = vec![count];
        enter.extend(carried);
        for &value in &enter {
            let ty = self.b.func.dfg.value_type(value);
            self.b.append_block_param(head, ty);
        }
        self.b.ins().jump(head, &block_args(&enter));
        self.b.switch_to_block(head);
        let params = self.b.block_params(head).to_vec();
        self.b.ins().brif(params[0], again, &[], exit, &[]);
        self.b.switch_to_block(again);
        let results = body(self, &params[1..]);
        let mut next = vec![self.b.ins().iadd_imm_s(params[0], -1)];
        next.extend(results);
        self.b.ins().jump(head, &block_args(&next));
        self.b.switch_to_block(exit);
        params[1..].to_vec()
    }
}

fn splat_bytes(value: u32) -> [u8; 16] {
    let b = value.to_le_bytes();
    std::array::from_fn(|i| b[i % 4])
}
