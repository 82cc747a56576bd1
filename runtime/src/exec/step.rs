//! Computes the work of a step on the arena and the pages.
//!
//! The only file that turns addresses into slices. Two facts make its slices
//! sound. Bounds: every slice is checked against the size of its slot, tensor
//! piece or constant range. Aliasing: a [`CheckedPlan`](omex_plan::CheckedPlan)
//! proved that what a step writes overlaps neither what it reads (the residual
//! of a matmul apart, which is copied before it is overwritten) nor anything
//! that another step of its phase touches, and the units of one step write
//! disjoint ranges by their definition in `omex_kernels::spec`.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use omex_kernels::KernelSpec;
use omex_kernels::abi::MatmulArgs;
use omex_kernels::activation::Q8Layout;
use omex_kernels::attention::Queries;
use omex_kernels::elementwise;
use omex_kernels::lanes::{LANES, Lanes};
use omex_kernels::output::{self, Gated, Normalized, NormalizedTwice, Output};
use omex_kernels::reference::{
    self, AttentionHead, HeadTransform, KvHead, KvRing, KvRingMut, NonFinite, Q8Blocks, Q8BlocksMut,
};
use omex_kernels::spec::{Activation, GATE_UNIT, KV_GROUP, KvFormat, NormKind, Rope, TableLayout};
use omex_plan::packed::{PackedLayout, Tensor};
use omex_plan::{Arg, BufferId, PageId, Phase, TensorId};

use super::ahead::{Ahead, COLUMNS_AHEAD};
use super::machine::{Machine, Vectors};
use super::operand::Call;
use super::pass::Pass;
use super::tile::{PanelTile, QueryTile, Tiles, Work};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};
use crate::pool::{Member, Pool};

// SAFETY: a machine is addresses of memory that it owns and plain data. Its
// safe methods read and write that memory only through `&mut Machine` or
// through `Machine::compute`, whose contract excludes conflicts.
unsafe impl Send for Machine {}
// SAFETY: see above.
unsafe impl Sync for Machine {}

/// Elements that any bit pattern is valid for.
pub(super) trait Plain: Copy {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for i16 {}
impl Plain for f32 {}

/// Bytes of one argument of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    start: *mut u8,
    len: usize,
}

impl Bytes {
    pub(super) fn len(self) -> usize {
        self.len
    }

    /// What matrices and constants have, which are not read as a slice.
    pub(super) const NONE: Bytes = Bytes {
        start: std::ptr::null_mut(),
        len: 0,
    };

    pub(super) fn address_of_start(self) -> usize {
        self.start.addr()
    }

    /// All but the first `bytes` bytes, checked.
    pub(super) fn skip(self, bytes: usize) -> Bytes {
        assert!(bytes <= self.len, "selected column outside its buffer");
        Bytes {
            start: self.start.wrapping_add(bytes),
            len: self.len - bytes,
        }
    }

    /// Address of `count` elements at byte `offset`, checked.
    fn address<T: Plain>(self, offset: usize, count: usize) -> *mut T {
        let end = count
            .checked_mul(size_of::<T>())
            .and_then(|bytes| bytes.checked_add(offset));
        assert!(
            end.is_some_and(|end| end <= self.len),
            "slice outside its slot"
        );
        let address = self.start.wrapping_add(offset).cast::<T>();
        assert!(address.is_aligned(), "slice misaligned in its slot");
        address
    }

    /// The part number `index` of parts of `bytes` bytes each, checked.
    fn part(self, index: u32, bytes: u64) -> Bytes {
        let start = u64::from(index).checked_mul(bytes);
        let end = start.and_then(|start| start.checked_add(bytes));
        assert!(
            end.is_some_and(|end| end <= self.len as u64),
            "part outside its slot"
        );
        let start = start.unwrap_or(0) as usize;
        Bytes {
            start: self.start.wrapping_add(start),
            len: bytes as usize,
        }
    }

    /// # Safety
    /// Nothing writes these elements while the slice lives.
    unsafe fn slice<'a, T: Plain>(self, offset: usize, count: usize) -> &'a [T] {
        let address = self.address(offset, count);
        // SAFETY: in bounds and aligned by the checks of `address`, initialised
        // (arena and pages are zeroed or read), unwritten by the contract.
        unsafe { std::slice::from_raw_parts(address, count) }
    }

    /// # Safety
    /// Nothing else reads or writes these elements while the slice lives, and
    /// they are not part of weights.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice_mut<'a, T: Plain>(self, offset: usize, count: usize) -> &'a mut [T] {
        let address = self.address(offset, count);
        // SAFETY: in bounds and aligned by the checks of `address`, initialised,
        // exclusive by the contract.
        unsafe { std::slice::from_raw_parts_mut(address, count) }
    }
}

impl Machine {
    /// Bytes of a buffer.
    pub(super) fn buffer(&self, id: BufferId) -> Bytes {
        let buffer = &self.plan().buffers[id.index()];
        let end = buffer.offset.checked_add(buffer.bytes);
        assert!(
            end.is_some_and(|end| end <= self.arena.len() as u64),
            "buffer outside the arena"
        );
        Bytes {
            start: self.arena.base().wrapping_add(buffer.offset as usize),
            len: buffer.bytes as usize,
        }
    }

    /// The page of units `unit..unit + count` of a tensor, which lie in one
    /// piece, and their offset in it.
    fn place(&self, tensor: &Tensor, unit: u32, count: u32, unit_bytes: u64) -> (PageId, u64) {
        let index = tensor
            .pieces
            .partition_point(|piece| piece.first_unit + piece.units <= unit);
        let piece = &tensor.pieces[index];
        assert!(
            piece.first_unit <= unit && unit + count <= piece.first_unit + piece.units,
            "units outside their piece"
        );
        let offset = piece.offset + (unit - piece.first_unit) as u64 * unit_bytes;
        let bytes = count as u64 * unit_bytes;
        let page = &self.plan().weights.pages[piece.page.index()];
        assert!(offset + bytes <= page.bytes, "piece outside its page");
        (piece.page, offset)
    }

    /// Bytes of units `unit..unit + count` of a tensor, which lie in one piece
    /// of a page that is in memory.
    fn units(&self, tensor: &Tensor, unit: u32, count: u32, unit_bytes: u64) -> Bytes {
        let (page, offset) = self.place(tensor, unit, count, unit_bytes);
        Bytes {
            start: self
                .pages
                .start(page)
                .wrapping_add(offset as usize)
                .cast_mut(),
            len: (count as u64 * unit_bytes) as usize,
        }
    }

    /// Bytes of `bytes` bytes of panels from a tile's first on, which lie in its
    /// page, as [`Tiles::new`] has checked, and that page is in memory.
    fn panels(&self, tile: PanelTile, bytes: u64) -> Bytes {
        let start = self.pages.start(tile.page);
        Bytes {
            start: start.wrapping_add(tile.offset as usize).cast_mut(),
            len: bytes as usize,
        }
    }

    fn tensor(&self, id: TensorId) -> &Tensor {
        &self.plan().weights.tensors[id.index()]
    }

    /// Bytes of an argument, without what the pass selects of it.
    pub(super) fn operand_bytes(&self, arg: Arg) -> Bytes {
        match arg {
            Arg::Buffer(id) | Arg::SelectedColumn(id) => self.buffer(id),
            Arg::Tensor(id) if self.tensor(id).layout == PackedLayout::Vector => {
                let tensor = self.tensor(id);
                let (_, bytes) = tensor.unit().expect("the plan's tensors are checked");
                self.units(tensor, 0, 1, bytes)
            }
            Arg::Tensor(_) | Arg::Constants { .. } => Bytes::NONE,
        }
    }

    fn call(&self, step: usize) -> Call<'_> {
        self.operands.call(&self.plan().steps[step], step)
    }

    fn constants(&self, arg: Arg) -> &[f64] {
        match arg {
            Arg::Constants { first, count } => {
                &self.plan().constants[first as usize..][..count as usize]
            }
            Arg::Buffer(_) | Arg::SelectedColumn(_) | Arg::Tensor(_) => {
                unreachable!("the plan's argument classes are checked")
            }
        }
    }

    fn matrix(&self, arg: Arg) -> &Tensor {
        match arg {
            Arg::Tensor(id) => self.tensor(id),
            Arg::Buffer(_) | Arg::SelectedColumn(_) | Arg::Constants { .. } => {
                unreachable!("the plan's argument classes are checked")
            }
        }
    }

    /// Writes the tokens of a pass.
    pub(super) fn put_tokens(&mut self, tokens: &[u32]) {
        let buffer = self.buffer(self.plan().tokens_buffer);
        // SAFETY: `&mut self` excludes a running pass, and no slice outlives one.
        unsafe { buffer.slice_mut(0, tokens.len()) }.copy_from_slice(tokens);
    }

    /// The logits of the vocabulary's tokens, without padding rows, for one of
    /// the columns that the head computed.
    pub(super) fn logits_mut(&mut self, column: u32) -> &mut [f32] {
        let vocabulary = self.plan().model.vocabulary;
        let stride = omex_kernels::pad_to_panel(vocabulary) as usize * 4;
        let buffer = self.buffer(self.plan().logits_buffer);
        // SAFETY: `&mut self` excludes passes and other slices while it lives.
        unsafe { buffer.slice_mut(column as usize * stride, vocabulary as usize) }
    }

    /// Runs `phases`, which are the plan's from phase `first` on or parts of
    /// them, on the pool. Returns the earliest step that met a value that is
    /// NaN or infinite, if one did; later phases are then left out, as they are
    /// when pages cannot be brought.
    pub(super) fn run(
        &mut self,
        pool: &mut Pool,
        tiles: &Tiles,
        first: usize,
        phases: &[Phase],
        pass: Pass<'_>,
    ) -> Option<usize> {
        const NONE: u32 = u32::MAX;
        let machine = &*self;
        let plan = machine.plan();
        // All work of a phase is done even when some of it fails, so which step
        // is the earliest does not depend on the threads.
        let failed = AtomicU32::new(NONE);
        pool.run(&|team| {
            let (mut number, mut rest) = (first, phases);
            let mut ahead = Ahead::default();
            // Not in the cell itself, where moving them would take stack twice.
            let mut queries = Queries::default();
            let queries = RefCell::new(&mut queries);
            while let [phase, behind @ ..] = rest {
                let run = plan.phases_of_barrier(rest, pass.columns);
                let (small, next) = behind.split_at(run - 1);
                if pass.columns <= COLUMNS_AHEAD {
                    machine.operands.prefetch(plan, small, next);
                }
                let count = |phase| tiles.of_phase(plan, phase, pass);
                let compute = |number: usize, phase: Phase, tile: u32| {
                    if !machine.pages.enter(number, tile == 0) {
                        return false;
                    }
                    let (index, work) = tiles.find(plan, phase, pass, tile);
                    // SAFETY: a tile is claimed by one thread, or all are computed
                    // by one between two phases; a barrier lies between phases that
                    // threads share, and `&mut self` excludes other passes.
                    let result = unsafe {
                        machine.compute(machine.call(index), work, pass, *queries.borrow_mut())
                    };
                    if result.is_err() {
                        failed.fetch_min(index as u32, Ordering::Relaxed);
                    }
                    result.is_ok()
                };
                let small = || {
                    (number + 1..).zip(small).all(|(number, &phase)| {
                        let tiles = 0..count(phase);
                        tiles.fold(true, |ok, tile| compute(number, phase, tile) & ok)
                    })
                };
                let tile = |tile| compute(number, *phase, tile);
                let mut aimed = false;
                let idle = || {
                    if !aimed {
                        aimed = true;
                        machine.aim(&mut ahead, team, tiles, number + run, next, pass);
                    }
                    ahead.fetch()
                };
                if !team.phase_then(count(*phase), tile, small, idle) {
                    break;
                }
                (number, rest) = (number + run, next);
            }
        });
        Some(failed.into_inner())
            .filter(|&step| step != NONE)
            .map(|step| step as usize)
    }

    /// Aims at the panels that a thread begins with in the first of `phases`, the
    /// plan's from phase `first` on, that has any, when reading them bounds the
    /// phase and they are in memory.
    fn aim(
        &self,
        ahead: &mut Ahead,
        member: &Member,
        tiles: &Tiles,
        first: usize,
        phases: &[Phase],
        pass: Pass,
    ) {
        if pass.columns > COLUMNS_AHEAD {
            return;
        }
        let plan = self.plan();
        for (number, &phase) in (first..).zip(phases) {
            let share = member.share(tiles.of_phase(plan, phase, pass));
            let of_tile = |tile| tiles.find(plan, phase, pass, tile);
            if share.is_empty() {
                continue;
            }
            let (index, Work::Panels(first)) = of_tile(share.start) else {
                continue;
            };
            if !self.pages.is_ready(number) {
                return;
            }
            let panels = match of_tile(share.end - 1) {
                (step, Work::Panels(last)) if step == index && last.page == first.page => {
                    last.first_panel + last.panels - first.first_panel
                }
                _ => first.panels,
            };
            let step = &plan.steps[index];
            let spec = plan.kernels[step.kernel.index()].spec();
            let &KernelSpec::Matmul { format, k, .. } = spec else {
                unreachable!("panel tiles belong to matmuls")
            };
            let bytes = u64::from(panels) * format.panel_bytes(k);
            let weights = self.panels(first, bytes);
            ahead.aim(index, weights.start.addr(), weights.len);
            return;
        }
    }

    /// Computes a part of a step's work.
    ///
    /// # Safety
    /// Only work of one phase of a checked plan runs at the same time, and no
    /// work is computed twice at once.
    unsafe fn compute(
        &self,
        call: Call<'_>,
        work: Work,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        match work {
            Work::Panels(tile) => {
                // SAFETY: this function's contract.
                unsafe { self.matmul(call, tile, pass) };
                Ok(())
            }
            Work::Units { .. } | Work::Queries(_) => {
                // SAFETY: this function's contract.
                unsafe { self.compute_vectors(call, work, pass, queries) }
            }
        }
    }

    /// Computes units or queries with the widest vectors that the plan was built for.
    ///
    /// The bodies are the same Rust code, compiled for wider registers: lanes
    /// are independent and nothing is contracted, so the bits are the same.
    ///
    /// # Safety
    /// As for [`Machine::compute`].
    unsafe fn compute_vectors(
        &self,
        call: Call<'_>,
        work: Work,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        match self.vectors {
            // SAFETY: this function's contract.
            Vectors::Baseline => unsafe {
                self.vectors_inlined::<[f32; LANES]>(call, work, pass, queries)
            },
            // SAFETY: this function's contract; loading checked that the CPU
            // has every feature of the plan's target.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx2 => unsafe { self.vectors_avx2(call, work, pass, queries) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Vectors::Avx512 => unsafe { self.vectors_avx512(call, work, pass, queries) },
        }
    }

    /// # Safety
    /// As for [`Machine::compute`], on a CPU with AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn vectors_avx2(
        &self,
        call: Call<'_>,
        work: Work,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        // SAFETY: this function's contract.
        unsafe { self.vectors_inlined::<Avx2>(call, work, pass, queries) }
    }

    /// # Safety
    /// As for [`Machine::compute`], on a CPU with AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,f16c,avx512f,avx512bw,avx512vl")]
    unsafe fn vectors_avx512(
        &self,
        call: Call<'_>,
        work: Work,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        // SAFETY: this function's contract.
        unsafe { self.vectors_inlined::<Avx512>(call, work, pass, queries) }
    }

    /// # Safety
    /// As for [`Machine::compute`].
    #[inline(always)]
    unsafe fn vectors_inlined<V: Lanes>(
        &self,
        call: Call<'_>,
        work: Work,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        let units = match work {
            Work::Units { first, end } => first..end,
            // SAFETY: this function's contract.
            Work::Queries(tile) => unsafe {
                return self.attention::<V>(call, tile, pass, queries);
            },
            Work::Panels(_) => unreachable!("panels belong to matmuls"),
        };
        let mut result = Ok(());
        for unit in units {
            // SAFETY: this function's contract; units write disjoint ranges.
            let unit_result = unsafe { self.compute_unit::<V>(call, unit, pass) };
            result = result.and(unit_result);
        }
        result
    }

    /// Computes queries, of each key-value head as many as can be together.
    ///
    /// # Safety
    /// As for [`Machine::compute`].
    #[inline(always)]
    unsafe fn attention<V: Lanes>(
        &self,
        call: Call<'_>,
        tile: QueryTile,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        let spec = self.plan().kernels[call.step.kernel.index()].spec();
        let &KernelSpec::Attention {
            heads,
            kv_heads,
            head_dim,
            ..
        } = spec
        else {
            unreachable!("queries belong to attention")
        };
        let of_head = tile.span.columns * (heads / kv_heads);
        let mut result = Ok(());
        let mut some = tile;
        while some.first < tile.end {
            let head_end = (some.first / of_head + 1) * of_head;
            let left = tile.end.min(head_end) - some.first;
            let count = Queries::at_once::<V>(left as usize, head_dim as usize);
            queries.begin::<V>(count, head_dim as usize);
            some.end = some.first + count as u32;
            // SAFETY: this function's contract; queries write disjoint ranges.
            result = result.and(unsafe { self.attend::<V>(call, some, pass, queries) });
            some.first = some.end;
        }
        result
    }

    /// Computes queries of one key-value head that were begun.
    ///
    /// # Safety
    /// As for [`Machine::compute`].
    #[inline(always)]
    unsafe fn attend<V: Lanes>(
        &self,
        call: Call<'_>,
        tile: QueryTile,
        pass: Pass<'_>,
        queries: &mut Queries,
    ) -> Result<(), NonFinite> {
        let spec = self.plan().kernels[call.step.kernel.index()].spec();
        let &KernelSpec::Attention {
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
        } = spec
        else {
            unreachable!("the caller's spec is attention")
        };
        let QueryTile {
            span, first_column, ..
        } = tile;
        let group = heads / kv_heads;
        let of_head = span.columns * group;
        let kv_head = tile.first / of_head;
        // Columns of the span, and heads.
        let places = (tile.first..tile.end).map(|query| {
            let query = query % of_head;
            (query / group, kv_head * group + query % group)
        });
        let one = spec.operands(1);
        let stride = |i: usize| one.as_slice()[i].bytes as usize;
        let arg = |i: usize| call.operand(i, pass, one.as_slice()[i].bytes);
        let ring_of = |i: usize| arg(i).part(span.sequence, one.as_slice()[i].bytes);
        let dim = head_dim as usize;
        let norm_arg = 1;
        let rope_arg = norm_arg + norm.is_some() as usize;
        let rings = rope_arg + rope.is_some() as usize;
        for (column, head) in places.clone() {
            let position = span.position + column;
            let query = AttentionHead {
                position,
                first: match window {
                    0 => 0,
                    window => (position + 1).saturating_sub(window),
                },
                scale: scale.get(),
                softcap: softcap.map(|cap| cap.get()),
            };
            let (column, head) = ((first_column + column) as usize, head as usize);
            // SAFETY: reads of ranges that no step of the phase writes.
            let (transform, x) = unsafe {
                let transform = HeadTransform {
                    norm: norm.map(|eps| (arg(norm_arg).slice(0, dim), eps.get())),
                    rope: rope
                        .map(|r| (r, rope_table(r, arg(rope_arg), column * stride(rope_arg)))),
                };
                let x = arg(0).slice(column * stride(0) + head * dim * 4, dim);
                (transform, x)
            };
            queries.push(query, |q| transform.apply(x, q))?;
        }
        let part = RingPart {
            format,
            head: kv_head as usize,
            dim,
            ring: ring as usize,
            slots: 0..ring as usize,
        };
        // SAFETY: as above.
        let kv = unsafe {
            KvHead {
                keys: part.slice(ring_of(rings)),
                values: part.slice(ring_of(rings + 1)),
            }
        };
        queries.attend::<V>(kv)?;
        let out = arg(rings + 2);
        for ((column, head), values) in places.zip(queries.results()) {
            let at = (first_column + column) as usize * stride(rings + 2);
            let (len, first) = (heads * head_dim, head as usize * dim);
            // SAFETY: each query writes its own head of its own column.
            let out = unsafe { output_mut(out, at, output, len, first, dim) };
            output::write::<V>(values, out)?;
        }
        Ok(())
    }

    /// # Safety
    /// As for [`Machine::compute`].
    unsafe fn matmul(&self, call: Call<'_>, tile: PanelTile, pass: Pass<'_>) {
        let &KernelSpec::Matmul {
            format,
            rows,
            k,
            bias,
            residual,
        } = self.plan().kernels[call.step.kernel.index()].spec()
        else {
            unreachable!("panel tiles belong to matmuls")
        };
        let columns = pass.columns as usize;
        let column_in = Activation::for_weights(format).stride_bytes(k);
        let column_out = Activation::F32.stride_bytes(rows);
        let panel_bytes = format.panel_bytes(k);
        let mut index = 0;
        let mut next = |column_bytes: u64| {
            index += 1;
            call.operand(index, pass, column_bytes)
        };
        let activations = next(column_in);
        let bias = bias.then(|| next(0));
        let residual = residual.then(|| next(column_out));
        let out = next(column_out);
        let weights = self.panels(tile, u64::from(tile.panels) * panel_bytes);

        if let Some(entry) = self.entry(call.step.kernel) {
            // The first row's byte within a column; `reach` ends the tile's
            // rows in the last column.
            let row = tile.first_panel as usize * 64;
            let reach = (columns - 1) * column_out as usize + tile.panels as usize * 64;
            let rows_of = |bytes: Bytes, reach: usize| bytes.address::<f32>(row, reach / 4);
            let call = MatmulArgs {
                weights: weights.start,
                activations: activations.address::<u8>(0, columns * column_in as usize),
                out: rows_of(out, reach),
                bias: bias.map_or(std::ptr::null(), |b| rows_of(b, tile.panels as usize * 64)),
                residual: residual.map_or(std::ptr::null(), |r| rows_of(r, reach)),
                panels: tile.panels as u64,
                columns: columns as u64,
            };
            // SAFETY: the code is trusted to implement its spec under this
            // convention, and every range that the spec lets it touch was
            // checked against its slot above.
            unsafe {
                let kernel: extern "C" fn(*const MatmulArgs) = std::mem::transmute(entry);
                kernel(&raw const call);
            }
            return;
        }
        for panel in 0..tile.panels as usize {
            let row = (tile.first_panel as usize + panel) * 64;
            // SAFETY: weights and biases are never written.
            let panel: &[u8] =
                unsafe { weights.slice(panel * panel_bytes as usize, panel_bytes as usize) };
            // SAFETY: as above.
            let bias = bias.map(|b| unsafe { lanes(b, row) });
            for column in 0..columns {
                let at = column * column_in as usize;
                let acc = if format.takes_q8() {
                    // SAFETY: no step of the phase writes what this one reads.
                    let blocks = unsafe { q8(activations, at, k, 0, k as usize) };
                    reference::matmul_panel_q8(format, k, panel, blocks)
                } else {
                    // SAFETY: as above.
                    let x = unsafe { activations.slice(at, k as usize) };
                    reference::matmul_panel_f32(format, k, panel, x)
                };
                let at = column * column_out as usize + row;
                // SAFETY: the residual may be the output itself, whose rows
                // belong to this panel alone; they are copied before the write.
                let residual = residual.map(|r| unsafe { lanes(r, at) });
                let result = reference::epilogue(acc, bias.as_ref(), residual.as_ref());
                // SAFETY: this panel's rows of the output are this work's alone.
                unsafe { out.slice_mut(at, 16) }.copy_from_slice(&result);
            }
        }
    }

    /// # Safety
    /// As for [`Machine::compute`].
    #[allow(
        clippy::undocumented_unsafe_blocks,
        reason = "one reason holds for every arm and stands in front of the match"
    )]
    #[inline(always)]
    unsafe fn compute_unit<V: Lanes>(
        &self,
        call: Call<'_>,
        unit: u32,
        pass: Pass<'_>,
    ) -> Result<(), NonFinite> {
        let spec = self.plan().kernels[call.step.kernel.index()].spec();
        // Strides of selected columns: an operand of one column is its stride.
        let one = spec.operands(1);
        let arg = |i: usize| call.operand(i, pass, one.as_slice()[i].bytes);
        let stride = |i: usize| one.as_slice()[i].bytes as usize;
        let column = unit as usize;
        // SAFETY, for the whole match: reads are of ranges that no step of the
        // phase writes, writes are of the unit's own range.
        match *spec {
            KernelSpec::Embed {
                format,
                layout,
                rows: _,
                k,
                scale,
            } => unsafe {
                let token = arg(0).slice::<u32>(column * 4, 1)[0];
                let out = arg(2).slice_mut::<f32>(column * stride(2), k as usize);
                let table = self.matrix(call.step.args[1]);
                let (unit, bytes) = match layout {
                    TableLayout::Rows => (token, format.row_bytes(k)),
                    TableLayout::Panels => (token / 16, format.panel_bytes(k)),
                };
                let (page, offset) = self.place(table, unit, 1, bytes);
                let gathered = match self.pages.gather(page, offset, bytes as usize) {
                    // The engine asks for the pager's fault first.
                    Some(None) => return Err(NonFinite),
                    Some(Some(gathered)) => Some(gathered),
                    None => None,
                };
                let bytes = match &gathered {
                    Some(gathered) => gathered.bytes(),
                    None => self.units(table, unit, 1, bytes).slice(0, bytes as usize),
                };
                match layout {
                    TableLayout::Rows => {
                        reference::embed_rows(format, bytes, 0, scale.get(), out);
                    }
                    TableLayout::Panels => {
                        reference::embed_panels(format, bytes, token % 16, scale.get(), out);
                    }
                }
                Ok(())
            },
            KernelSpec::RopeTable { pairs, scale } => unsafe {
                let out = arg(1).slice_mut(column * stride(1), 2 * pairs as usize);
                let frequencies = self.constants(call.step.args[0]);
                reference::rope_table(pass.position(unit), frequencies, scale.get(), out);
                Ok(())
            },
            KernelSpec::Norm {
                kind,
                len,
                eps,
                bias,
                residual,
                output,
            } => unsafe {
                let n = len as usize;
                let x = arg(0).slice::<f32>(column * stride(0), n);
                let weight = arg(1).slice::<f32>(0, n);
                let bias = bias.then(|| arg(2).slice::<f32>(0, n));
                let residual = residual.then(|| {
                    let at = 2 + bias.is_some() as usize;
                    arg(at).slice::<f32>(column * stride(at), n)
                });
                let last = 2 + bias.is_some() as usize + residual.is_some() as usize;
                let out = output_mut(arg(last), column * stride(last), output, len, 0, n);
                let (mean, r) = match kind {
                    NormKind::Rms => (None, elementwise::rms_reciprocal::<V>(x, eps.get())?),
                    NormKind::Layer => {
                        let (mean, r) = reference::layer_moments(x, eps.get())?;
                        (Some(mean), r)
                    }
                };
                let elements = Normalized {
                    x,
                    mean,
                    r,
                    weight,
                    bias,
                    residual,
                };
                output::write::<V>(elements, out)
            },
            KernelSpec::NormAddNorm { len, eps, output } => unsafe {
                let n = len as usize;
                let x = arg(0).slice::<f32>(column * stride(0), n);
                let inner = Normalized {
                    x,
                    mean: None,
                    r: elementwise::rms_reciprocal::<V>(x, eps.get())?,
                    weight: arg(1).slice::<f32>(0, n),
                    bias: None,
                    residual: Some(arg(2).slice::<f32>(column * stride(2), n)),
                };
                let elements = NormalizedTwice {
                    r: inner.rms_reciprocal::<V>(eps.get())?,
                    inner,
                    weight: arg(3).slice::<f32>(0, n),
                };
                let out = output_mut(arg(4), column * stride(4), output, len, 0, n);
                output::write::<V>(elements, out)
            },
            KernelSpec::Quantize { len } => unsafe {
                let x = arg(0).slice::<f32>(column * stride(0), len as usize);
                let out = q8_mut(arg(1), column * stride(1), len, 0, len as usize);
                elementwise::quantize::<V>(x, out)
            },
            KernelSpec::Matmul { .. } => unreachable!("matmuls are cut into panel tiles"),
            KernelSpec::KvStore {
                kv_heads,
                head_dim,
                ring,
                format,
                norm,
                rope,
            } => unsafe {
                let dim = head_dim as usize;
                let (first_column, span, head, group) = pass.kv_unit(unit, kv_heads);
                // The positions of the span that lie in this unit's slots.
                let first = span.position / KV_GROUP * KV_GROUP + group * KV_GROUP;
                let begin = first.max(span.position);
                let end = (first + KV_GROUP).min(span.position + span.columns);
                if begin >= end {
                    return Ok(());
                }
                let norm_arg = 2;
                let rope_arg = norm_arg + norm.is_some() as usize;
                let rings = rope_arg + rope.is_some() as usize;
                let norm = norm.map(|eps| (arg(norm_arg).slice::<f32>(0, dim), eps.get()));
                let slot = (first % ring) as usize;
                let ring = RingPart {
                    format,
                    head: head as usize,
                    dim,
                    ring: ring as usize,
                    slots: slot..slot + KV_GROUP as usize,
                };
                let ring_of = |i: usize| arg(i).part(span.sequence, one.as_slice()[i].bytes);
                let (mut keys, mut values) = (
                    ring.slice_mut(ring_of(rings)),
                    ring.slice_mut(ring_of(rings + 1)),
                );
                let mut result = Ok(());
                for position in begin..end {
                    let column = (first_column + position - span.position) as usize;
                    let at = |i: usize| column * stride(i) + head as usize * dim * 4;
                    let transform = HeadTransform {
                        norm,
                        rope: rope
                            .map(|r| (r, rope_table(r, arg(rope_arg), column * stride(rope_arg)))),
                    };
                    let k = arg(0).slice::<f32>(at(0), dim);
                    let v = arg(1).slice::<f32>(at(1), dim);
                    let stored = elementwise::kv_store::<V>(
                        k,
                        v,
                        transform,
                        position,
                        &mut keys,
                        &mut values,
                    );
                    result = result.and(stored);
                }
                result
            },
            KernelSpec::Attention { .. } => unreachable!("queries are computed together"),
            KernelSpec::Softcap { len, cap } => unsafe {
                let per_column = len.div_ceil(GATE_UNIT);
                let column = (unit / per_column) as usize;
                let first = (unit % per_column * GATE_UNIT) as usize;
                let count = (len as usize - first).min(GATE_UNIT as usize);
                let x = arg(0).slice::<f32>(column * stride(0) + first * 4, count);
                let out = arg(1).slice_mut::<f32>(column * stride(1) + first * 4, count);
                elementwise::softcap_all::<V>(x, cap.get(), out)
            },
            KernelSpec::Gate {
                function,
                len,
                output,
            } => unsafe {
                let per_column = len.div_ceil(GATE_UNIT);
                let column = (unit / per_column) as usize;
                let first = (unit % per_column * GATE_UNIT) as usize;
                let count = (len as usize - first).min(GATE_UNIT as usize);
                let gate = arg(0).slice::<f32>(column * stride(0) + first * 4, count);
                let up = arg(1).slice::<f32>(column * stride(1) + first * 4, count);
                let out = output_mut(arg(2), column * stride(2), output, len, first, count);
                output::write::<V>(Gated { function, gate, up }, out)
            },
        }
    }
}

/// Elements `first..first + count` of the column of `len` elements at byte `at`,
/// in the form that `kind` says.
///
/// # Safety
/// As for [`Bytes::slice_mut`].
#[inline(always)]
unsafe fn output_mut<'a>(
    out: Bytes,
    at: usize,
    kind: Activation,
    len: u32,
    first: usize,
    count: usize,
) -> Output<'a> {
    // SAFETY: this function's contract.
    unsafe {
        match kind {
            Activation::F32 => Output::F32(out.slice_mut(at + first * 4, count)),
            Activation::Q8 => Output::Q8(q8_mut(out, at, len, first, count)),
        }
    }
}

/// # Safety
/// As for [`Bytes::slice`], for one panel's rows at byte `at`.
#[inline(always)]
unsafe fn lanes(bytes: Bytes, at: usize) -> [f32; 16] {
    // SAFETY: this function's contract.
    let slice = unsafe { bytes.slice::<f32>(at, 16) };
    std::array::from_fn(|lane| slice[lane])
}

/// The RoPE table of the column at byte `at`.
///
/// # Safety
/// As for [`Bytes::slice`].
#[inline(always)]
unsafe fn rope_table<'a>(rope: Rope, bytes: Bytes, at: usize) -> &'a [f32] {
    // SAFETY: this function's contract.
    unsafe { bytes.slice(at, 2 * rope.pairs as usize) }
}

/// Slots `slots`, whose ends are multiples of 16, of one head's ring of keys
/// or values. A head's scales follow its codes.
struct RingPart {
    format: KvFormat,
    head: usize,
    dim: usize,
    ring: usize,
    slots: Range<usize>,
}

impl RingPart {
    /// Byte of the head's first element.
    fn start(&self) -> usize {
        self.head * self.ring * self.format.head_bytes(self.dim as u32) as usize
    }

    /// Byte of the head's first scale.
    fn scales_start(&self) -> usize {
        self.start() + self.ring * self.dim
    }

    /// # Safety
    /// As for [`Bytes::slice`].
    #[inline(always)]
    unsafe fn slice<'a>(&self, bytes: Bytes) -> KvRing<'a> {
        let (first, count) = (self.slots.start, self.slots.len());
        let blocks = self.dim / 32;
        // SAFETY: this function's contract.
        unsafe {
            match self.format {
                KvFormat::F16 => {
                    KvRing::F16(bytes.slice(self.start() + first * self.dim * 2, count * self.dim))
                }
                KvFormat::Q8 => KvRing::Q8 {
                    codes: bytes.slice(self.start() + first * self.dim, count * self.dim),
                    scales: bytes.slice(self.scales_start() + first * blocks * 4, count * blocks),
                },
            }
        }
    }

    /// # Safety
    /// As for [`Bytes::slice_mut`].
    #[inline(always)]
    unsafe fn slice_mut<'a>(&self, bytes: Bytes) -> KvRingMut<'a> {
        let (first, count) = (self.slots.start, self.slots.len());
        let blocks = self.dim / 32;
        // SAFETY: this function's contract; codes and scales are disjoint.
        unsafe {
            match self.format {
                KvFormat::F16 => KvRingMut::F16(
                    bytes.slice_mut(self.start() + first * self.dim * 2, count * self.dim),
                ),
                KvFormat::Q8 => KvRingMut::Q8 {
                    codes: bytes.slice_mut(self.start() + first * self.dim, count * self.dim),
                    scales: bytes
                        .slice_mut(self.scales_start() + first * blocks * 4, count * blocks),
                },
            }
        }
    }
}

/// Elements `first..first + count`, multiples of 32, of the int8 column of `k`
/// elements at byte `at`.
///
/// # Safety
/// As for [`Bytes::slice`].
#[inline(always)]
unsafe fn q8<'a>(bytes: Bytes, at: usize, k: u32, first: usize, count: usize) -> Q8Blocks<'a> {
    let layout = Q8Layout::new(k);
    let (block, blocks) = (first / 32, count / 32);
    // SAFETY: this function's contract.
    unsafe {
        Q8Blocks {
            codes: bytes.slice(at + first, count),
            scales: bytes.slice(at + layout.scales_offset as usize + 4 * block, blocks),
            scaled_sums: bytes.slice(at + layout.scaled_sums_offset as usize + 4 * block, blocks),
            sums: bytes.slice(at + layout.sums_offset as usize + 4 * block, 2 * blocks),
        }
    }
}

/// As [`q8`], to be written.
///
/// # Safety
/// As for [`Bytes::slice_mut`].
#[inline(always)]
unsafe fn q8_mut<'a>(
    bytes: Bytes,
    at: usize,
    k: u32,
    first: usize,
    count: usize,
) -> Q8BlocksMut<'a> {
    let layout = Q8Layout::new(k);
    let (block, blocks) = (first / 32, count / 32);
    // SAFETY: this function's contract; the four ranges are disjoint.
    unsafe {
        Q8BlocksMut {
            codes: bytes.slice_mut(at + first, count),
            scales: bytes.slice_mut(at + layout.scales_offset as usize + 4 * block, blocks),
            scaled_sums: bytes
                .slice_mut(at + layout.scaled_sums_offset as usize + 4 * block, blocks),
            sums: bytes.slice_mut(at + layout.sums_offset as usize + 4 * block, 2 * blocks),
        }
    }
}
