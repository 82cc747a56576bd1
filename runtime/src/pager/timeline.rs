//! What the disk and computing did when, as a trace for Perfetto.
//!
//! One lane for each read in flight, one for computing and one for the time that
//! computing waits for pages. Recording allocates nothing: what happens after
//! the last place is taken is counted, not kept.

use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Instant;

use omex_plan::Plan;
use omex_plan::paging::PagePlan;

use super::lock;
use crate::json::Object;

/// Things that a timeline keeps.
const EVENTS_MAX: usize = 1 << 16;

/// Bytes of a timeline.
pub const TIMELINE_BYTES: u64 = (EVENTS_MAX * size_of::<Event>()) as u64;

#[derive(Clone, Copy, Debug)]
enum What {
    /// Lane and number of a read.
    Read { lane: u32, read: u32 },
    /// The first phase that was computed.
    Compute { phase: u32 },
    /// The phase that waited.
    Wait { phase: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Event {
    what: What,
    /// Nanoseconds since the timeline began.
    from_ns: u64,
    until_ns: u64,
}

#[derive(Debug)]
pub(crate) struct Timeline {
    began: Instant,
    kept: Mutex<Kept>,
    /// Layer of each phase; phases of one layer are shown as one.
    layers: Vec<Option<u32>>,
    /// What performs the reads.
    reader: &'static str,
}

#[derive(Debug)]
struct Kept {
    events: Vec<Event>,
    /// Events without a place.
    dropped: u64,
    /// What is computed now: its first phase, and since when.
    computing: Option<(u32, u64)>,
}

impl Kept {
    fn push(&mut self, what: What, from_ns: u64, until_ns: u64) {
        if self.events.len() == self.events.capacity() {
            self.dropped += 1;
            return;
        }
        self.events.push(Event {
            what,
            from_ns,
            until_ns,
        });
    }

    fn end_computing(&mut self, at_ns: u64) {
        if let Some((phase, from_ns)) = self.computing.take() {
            self.push(What::Compute { phase }, from_ns, at_ns);
        }
    }
}

impl Timeline {
    pub(crate) fn new(plan: &Plan, reader: &'static str) -> Timeline {
        let layer = |phase: &omex_plan::Phase| plan.steps[phase.first_step as usize].layer;
        Timeline {
            began: Instant::now(),
            kept: Mutex::new(Kept {
                events: Vec::with_capacity(EVENTS_MAX),
                dropped: 0,
                computing: None,
            }),
            layers: plan.phases.iter().map(layer).collect(),
            reader,
        }
    }

    /// Nanoseconds since the beginning.
    pub(super) fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    pub(super) fn read(&self, lane: u32, read: usize, from_ns: u64) {
        let until_ns = self.now_ns();
        let read = read as u32;
        lock(&self.kept).push(What::Read { lane, read }, from_ns, until_ns);
    }

    /// A phase begins, after it `waited` since `from_ns` or not.
    pub(super) fn phase(&self, phase: usize, from_ns: u64, waited: bool) {
        let now_ns = self.now_ns();
        let layer = |phase: u32| self.layers[phase as usize];
        let mut kept = lock(&self.kept);
        let phase = phase as u32;
        let same = kept
            .computing
            .is_some_and(|(first, _)| layer(first) == layer(phase) && first <= phase);
        if waited {
            kept.end_computing(from_ns);
            kept.push(What::Wait { phase }, from_ns, now_ns);
        } else if !same {
            kept.end_computing(now_ns);
        }
        kept.computing.get_or_insert((phase, now_ns));
    }

    /// The phases of a pass, or of its head, are over.
    pub(super) fn end(&self) {
        let now_ns = self.now_ns();
        lock(&self.kept).end_computing(now_ns);
    }

    /// Writes the trace in the Trace Event Format.
    pub(crate) fn write(
        &self,
        plan: &Plan,
        paged: &PagePlan,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        const COMPUTING: u32 = 1;
        const WAITING: u32 = 2;
        const DISK: u32 = 3;
        let kept = lock(&self.kept);
        out.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
        let mut separator: &[u8] = b"";
        let mut put = |out: &mut dyn Write, object: String| {
            out.write_all(std::mem::replace(&mut separator, b",\n"))?;
            out.write_all(object.as_bytes())
        };
        let named = |kind: &str, thread: u32, name: &str| {
            let name = Object::new().string("name", name).finish();
            Object::new()
                .string("ph", "M")
                .string("name", kind)
                .integer("pid", 1)
                .integer("tid", thread.into())
                .raw("args", &name)
                .finish()
        };
        put(out, named("process_name", 0, &plan.program.task_id))?;
        put(out, named("thread_name", COMPUTING, "computing"))?;
        put(out, named("thread_name", WAITING, "waiting for pages"))?;
        for lane in 0..paged.depth {
            let name = format!("disk {lane}");
            put(out, named("thread_name", DISK + lane, &name))?;
        }
        let place = |phase: u32| match self.layers[phase as usize] {
            Some(layer) => format!("layer {layer}"),
            None if phase < plan.body_phases => "embedding".to_owned(),
            None => "head".to_owned(),
        };
        for event in &kept.events {
            let (thread, kind, name, bytes) = match event.what {
                What::Read { lane, read } => {
                    let read = &paged.reads[read as usize];
                    let first = read.first_page.0;
                    let name = format!("pages {first}..{}", first + read.pages);
                    let bytes = PagePlan::read_bytes(plan, read);
                    (DISK + lane, "disk", name, bytes)
                }
                What::Compute { phase } => (COMPUTING, "compute", place(phase), 0),
                What::Wait { phase } => (WAITING, "wait", format!("wait of {}", place(phase)), 0),
            };
            let micros = |ns: u64| ns as f64 / 1e3;
            let bytes = Object::new().integer("bytes", bytes).finish();
            let object = Object::new()
                .string("ph", "X")
                .string("cat", kind)
                .string("name", &name)
                .integer("pid", 1)
                .integer("tid", thread.into())
                .float("ts", micros(event.from_ns))
                .float("dur", micros(event.until_ns - event.from_ns))
                .raw("args", &bytes);
            put(out, object.finish())?;
        }
        let rest = Object::new()
            .string("reader", self.reader)
            .integer("dropped_events", kept.dropped);
        write!(out, "\n],\"otherData\":{}}}\n", rest.finish())
    }
}
