//! What a pass is over: columns, the sequences that they belong to, and their
//! positions there.

use omex_kernels::KernelSpec;
use omex_kernels::spec::kv_groups;

/// Consecutive positions of one sequence, which take consecutive columns of a
/// pass. Sequences know nothing of each other: each has its own key-value rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Below the plan's `sequences_max`.
    pub sequence: u32,
    /// Position of the first column.
    pub position: u32,
    pub columns: u32,
}

/// What a pass computes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass<'a> {
    /// In the order of their columns, from column 0 on.
    pub(super) spans: &'a [Span],
    /// Columns of this run: those of the spans, or the head's.
    pub(super) columns: u32,
    /// The first column that the head computes.
    pub(super) selected: u32,
}

impl Pass<'_> {
    /// A pass over all columns of the spans.
    pub(super) fn body(spans: &[Span]) -> Pass<'_> {
        Pass {
            spans,
            columns: columns(spans),
            selected: 0,
        }
    }

    /// The spans, each with its first column.
    pub(super) fn placed_spans(self) -> impl Iterator<Item = (u32, Span)> {
        self.spans.iter().scan(0, |next, span| {
            let first = *next;
            *next += span.columns;
            Some((first, *span))
        })
    }

    /// The position of a column of this run.
    pub(super) fn position(&self, column: u32) -> u32 {
        let column = self.selected + column;
        let mut placed = self.placed_spans();
        let found = placed.find(|(first, span)| column < first + span.columns);
        let (first, span) = found.expect("a column of the pass");
        span.position + (column - first)
    }

    /// Work units of a kernel, as [`KernelSpec::units`] counts them; those of
    /// a ring's groups span by span.
    pub(super) fn units(&self, spec: &KernelSpec) -> u32 {
        match spec {
            KernelSpec::KvStore { .. } => self.spans.iter().map(|s| spec.units(s.columns)).sum(),
            KernelSpec::Embed { .. }
            | KernelSpec::RopeTable { .. }
            | KernelSpec::Norm { .. }
            | KernelSpec::NormAddNorm { .. }
            | KernelSpec::Quantize { .. }
            | KernelSpec::Matmul { .. }
            | KernelSpec::Attention { .. }
            | KernelSpec::Gate { .. }
            | KernelSpec::Softcap { .. } => spec.units(self.columns),
        }
    }

    /// The span, its first column, the head and the group of ring slots that a
    /// unit of a store writes.
    pub(super) fn kv_unit(&self, mut unit: u32, kv_heads: u32) -> (u32, Span, u32, u32) {
        for (first, span) in self.placed_spans() {
            let groups = kv_groups(span.columns);
            if unit < kv_heads * groups {
                return (first, span, unit / groups, unit % groups);
            }
            unit -= kv_heads * groups;
        }
        unreachable!("a unit outside the pass")
    }
}

/// Columns that these spans take.
pub(super) fn columns(spans: &[Span]) -> u32 {
    spans.iter().map(|s| s.columns).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use omex_kernels::spec::KvFormat;

    #[test]
    fn units_of_stores_follow_the_spans() {
        let span = |sequence, position, columns| Span {
            sequence,
            position,
            columns,
        };
        let spans = [span(2, 5, 1), span(0, 30, 40), span(1, 0, 17)];
        let pass = Pass::body(&spans);
        assert_eq!(pass.columns, 58);
        assert_eq!(
            [0, 1, 40, 41, 57].map(|c| pass.position(c)),
            [5, 30, 69, 0, 16]
        );
        let store = KernelSpec::KvStore {
            kv_heads: 3,
            head_dim: 64,
            ring: 128,
            format: KvFormat::F16,
            norm: None,
            rope: None,
        };
        let mut seen = Vec::new();
        for unit in 0..pass.units(&store) {
            let (first, span, head, group) = pass.kv_unit(unit, 3);
            assert!(head < 3 && group < kv_groups(span.columns));
            seen.push((first, head, group));
        }
        let groups: u32 = spans.iter().map(|s| kv_groups(s.columns)).sum();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() as u32, 3 * groups);
    }
}
