//! Computes queries of attention.

use omex_kernels::KernelSpec;
use omex_kernels::attention::Queries;
use omex_kernels::lanes::Lanes;
use omex_kernels::output;
use omex_kernels::reference::{AttentionHead, HeadTransform, KvHead, NonFinite};

use super::bytes::{RingPart, output_mut, rope_table};
use crate::exec::machine::Machine;
use crate::exec::operand::Call;
use crate::exec::pass::Pass;
use crate::exec::tile::QueryTile;

impl Machine {
    /// Computes queries, of each key-value head as many as can be together.
    ///
    /// # Safety
    /// As for [`Machine::compute`].
    #[inline(always)]
    pub(super) unsafe fn attention<V: Lanes>(
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
}
