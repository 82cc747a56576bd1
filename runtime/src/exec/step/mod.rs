//! Computes the work of a step on the arena and the pages.
//!
//! The only module that turns addresses into slices. Two facts make its slices
//! sound. Bounds: every slice is checked against the size of its slot, tensor
//! piece or constant range. Aliasing: a [`CheckedPlan`](omex_plan::CheckedPlan)
//! proved that what a step writes overlaps neither what it reads (the residual
//! of a matmul apart, which is copied before it is overwritten) nor anything
//! that another step of its phase touches, and the units of one step write
//! disjoint ranges by their definition in `omex_kernels::spec`.
#![allow(unsafe_code)]

mod attention;
mod bytes;
mod phases;

use omex_kernels::KernelSpec;
use omex_kernels::abi::MatmulArgs;
use omex_kernels::attention::Queries;
use omex_kernels::elementwise;
use omex_kernels::lanes::{LANES, Lanes};
use omex_kernels::output::{self, Gated, Normalized, NormalizedTwice};
use omex_kernels::reference::{self, HeadTransform, NonFinite};
use omex_kernels::spec::{Activation, GATE_UNIT, KV_GROUP, NormKind, TableLayout};
use omex_plan::packed::{PackedLayout, Tensor};
use omex_plan::{Arg, BufferId, PageId, TensorId};

pub(super) use bytes::Bytes;
use bytes::{RingPart, lanes, output_mut, q8, q8_mut, rope_table};

use super::machine::{Machine, Vectors};
use super::operand::Call;
use super::pass::Pass;
use super::tile::{PanelTile, Work};
#[cfg(target_arch = "x86_64")]
use super::vector::{Avx2, Avx512};

// SAFETY: a machine is addresses of memory that it owns and plain data. Its
// safe methods read and write that memory only through `&mut Machine` or
// through `Machine::compute`, whose contract excludes conflicts.
unsafe impl Send for Machine {}
// SAFETY: see above.
unsafe impl Sync for Machine {}

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
