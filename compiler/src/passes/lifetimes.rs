//! Gives every value its storage: which values share a slot, how large it is
//! and in which phases it is live.
//!
//! Requires: stage `Selected` and its schedule.
//! Ensures: every computed value has a slot, live from the phase that writes it
//! to the last that reads it, or to the pass's end where the head reads it,
//! because the head may run for several columns of one pass; rings are live
//! throughout a generation, logits until a token is chosen. What the runtime
//! works with between passes has slots too. A matmul's residual and output share
//! one slot where the residual dies there.
//! Breaks: nothing.

use std::collections::BTreeMap;

use omex_kernels::KernelSpec;
use omex_kernels::spec::{Access, Operand, OperandClass};
use omex_plan::BufferKind;
use omex_plan::session::SessionBytes;

use super::schedule::{PhaseId, Schedule};
use crate::ir::op::OpClass;
use crate::ir::{Graph, Op, Type, ValueId};

/// Index into [`Storage::slots`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub u32);

/// A place in the arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    pub name: String,
    pub kind: BufferKind,
    pub bytes: u64,
    /// Half-open range of moments: phases, sampling, tokenizing.
    pub first_phase: u32,
    pub end_phase: u32,
}

/// Slots that no step touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSlots {
    pub text: SlotId,
    pub history: SlotId,
    pub tokenizer: SlotId,
    pub sampler: SlotId,
}

/// Where a computed value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Slot(SlotId),
    /// One column of a slot.
    SelectedColumn(SlotId),
    /// The key and the value ring.
    Rings {
        keys: SlotId,
        values: SlotId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Storage {
    pub slots: Vec<Slot>,
    pub session: SessionSlots,
    places: BTreeMap<ValueId, Place>,
}

impl Storage {
    /// Panics for a value that is not computed: a source without storage.
    pub fn place(&self, id: ValueId) -> Place {
        self.places[&id]
    }
}

/// `columns_max` is the number of columns of the largest pass,
/// `head_columns_max` of those that the head computes at once, `sequences_max` of
/// sequences that have rings.
pub fn lifetimes(
    graph: &Graph,
    schedule: &Schedule,
    columns_max: u32,
    head_columns_max: u32,
    sequences_max: u32,
    session: SessionBytes,
) -> Storage {
    let sample = schedule.phases.len() as u32;
    let (text, end) = (sample + 1, sample + 2);
    let mut slots = Vec::new();
    let mut push = |name: &str, kind, bytes, first_phase, end_phase| {
        slots.push(Slot {
            name: name.to_owned(),
            kind,
            bytes,
            first_phase,
            end_phase,
        });
        SlotId(slots.len() as u32 - 1)
    };
    let session = SessionSlots {
        text: push("text", BufferKind::Session, session.text, 0, end),
        history: push("history", BufferKind::Session, session.history, 0, end),
        tokenizer: push(
            "tokenizer",
            BufferKind::Scratch,
            session.tokenizer,
            text,
            end,
        ),
        sampler: push(
            "sampler",
            BufferKind::Scratch,
            session.sampler,
            sample,
            text,
        ),
    };
    let mut builder = Builder {
        graph,
        schedule,
        phases: sample,
        sequences_max: sequences_max.into(),
        storage: Storage {
            slots,
            session,
            places: BTreeMap::new(),
        },
    };
    for id in graph.order() {
        let node = graph.node(id);
        match &node.op {
            Op::Tokens => {
                // The runtime writes it before the first phase.
                let bytes = u64::from(columns_max) * 4;
                let slot = builder.push(Slot {
                    name: "tokens".to_owned(),
                    kind: BufferKind::Tokens,
                    bytes,
                    first_phase: 0,
                    end_phase: sample,
                });
                builder.storage.places.insert(id, Place::Slot(slot));
            }
            Op::SelectColumn => {
                let place = match builder.storage.place(graph.operands(id)[0]) {
                    Place::Slot(slot) | Place::SelectedColumn(slot) => Place::SelectedColumn(slot),
                    Place::Rings { .. } => unreachable!("columns are selected, not rings"),
                };
                builder.storage.places.insert(id, place);
            }
            Op::Kernel(spec) => {
                let phase = schedule.phase(id).expect("kernels are scheduled");
                let columns = if phase.0 < schedule.body_phases {
                    columns_max
                } else {
                    head_columns_max
                };
                builder.kernel(id, spec, phase, columns);
            }
            _ => assert!(node.op.class() == OpClass::Source, "{:?}", node.op),
        }
    }
    builder.storage
}

struct Builder<'a> {
    graph: &'a Graph,
    schedule: &'a Schedule,
    phases: u32,
    sequences_max: u64,
    storage: Storage,
}

impl Builder<'_> {
    fn push(&mut self, slot: Slot) -> SlotId {
        self.storage.slots.push(slot);
        SlotId(self.storage.slots.len() as u32 - 1)
    }

    fn kernel(&mut self, id: ValueId, spec: &KernelSpec, phase: PhaseId, columns: u32) {
        let name = self.graph.node(id).site.to_string();
        let operands = spec.operands(columns);
        let written: Vec<_> = operands
            .as_slice()
            .iter()
            .filter(|o| o.access == Access::Write)
            .collect();
        let place = match written[..] {
            [keys, values] if keys.class == OperandClass::KvRing => {
                // Where several sequences are on their way, text becomes tokens
                // while others have rings.
                let end_phase = self.phases + if self.sequences_max > 1 { 2 } else { 1 };
                let mut rings = |ring: &Operand| {
                    self.push(Slot {
                        name: format!("{name}.{}", ring.name),
                        kind: BufferKind::KvRing,
                        bytes: ring.bytes * self.sequences_max,
                        first_phase: 0,
                        end_phase,
                    })
                };
                Place::Rings {
                    keys: rings(keys),
                    values: rings(values),
                }
            }
            [out] if id == self.graph.result() => Place::Slot(self.push(Slot {
                name,
                kind: BufferKind::Logits,
                bytes: out.bytes,
                first_phase: phase.0,
                end_phase: self.phases + 1,
            })),
            [out] => {
                let end_phase = self.end(id, phase);
                let slot = match self.dying_residual(id, spec, phase) {
                    Some(slot) => {
                        let shared = &mut self.storage.slots[slot.0 as usize];
                        assert_eq!(shared.bytes, out.bytes, "in-place values have one size");
                        shared.end_phase = end_phase;
                        slot
                    }
                    None => self.push(Slot {
                        name,
                        kind: BufferKind::Activation,
                        bytes: out.bytes,
                        first_phase: phase.0,
                        end_phase,
                    }),
                };
                Place::Slot(slot)
            }
            _ => unreachable!("a kernel writes one value"),
        };
        self.storage.places.insert(id, place);
    }

    /// Users of a value's bytes: through views as well.
    fn readers(&self, id: ValueId) -> Vec<ValueId> {
        let mut readers = Vec::new();
        let mut pending = self.graph.users(id);
        while let Some(user) = pending.pop() {
            if self.graph.node(user).op.class() == OpClass::View {
                pending.extend(self.graph.users(user));
            } else {
                readers.push(user);
            }
        }
        readers
    }

    /// The phase from which on nobody reads a value that is written in `phase`.
    fn end(&self, id: ValueId, phase: PhaseId) -> u32 {
        let read_in = |&user: &ValueId| self.schedule.phase(user).expect("users are kernels").0;
        let last = self.readers(id).iter().map(read_in).max();
        let last = last.expect("every value but the result is used");
        let body = self.schedule.body_phases;
        if phase.0 < body && last >= body {
            self.phases
        } else {
            last + 1
        }
    }

    /// The slot of a matmul's residual, when nobody else reads it in this phase
    /// or later: then the output may replace it.
    fn dying_residual(&self, id: ValueId, spec: &KernelSpec, phase: PhaseId) -> Option<SlotId> {
        let KernelSpec::Matmul { residual: true, .. } = spec else {
            return None;
        };
        let operands = self.graph.operands(id);
        let residual = *operands.last()?;
        let Type::Columns { .. } = self.graph.node(residual).ty else {
            return None;
        };
        let Place::Slot(slot) = self.storage.place(residual) else {
            return None;
        };
        let read_here = operands.iter().filter(|&&v| v == residual).count();
        let readers = self.readers(residual);
        let dies = readers
            .iter()
            .all(|&r| r == id || self.schedule.phase(r).is_some_and(|p| p < phase));
        let is_activation = self.storage.slots[slot.0 as usize].kind == BufferKind::Activation;
        (read_here == 1 && dies && is_activation).then_some(slot)
    }
}
