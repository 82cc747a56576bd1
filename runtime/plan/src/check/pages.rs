//! The checks of a page plan: no use before arrival, no slot reused while its
//! pages are used or still in flight.

use super::{CheckError, DIRECT_ALIGN, buffer, ensure};
use crate::frames::{FRAME_ALIGN, frames_start};
use crate::ids::BufferId;
use crate::paging::{DEPTH_MAX, PagePlan, PageRead, gather_bytes, gathered_unit_bytes, step_pages};
use crate::plan::{BufferKind, Plan, WeightSource};

/// Checks that a page has a buffer of its own that holds it.
pub(super) fn check_resident(
    plan: &Plan,
    page: usize,
    slot: BufferId,
    seen: &mut [bool],
) -> Result<(), CheckError> {
    let buffer = buffer(plan, slot)?;
    let bytes = plan.weights.pages[page].bytes;
    ensure!(
        buffer.kind == BufferKind::ResidentPage
            && buffer.bytes >= bytes.next_multiple_of(DIRECT_ALIGN)
            && buffer.offset.is_multiple_of(DIRECT_ALIGN)
            && !std::mem::replace(&mut seen[slot.index()], true),
        "page {page} has no slot of its own that holds it"
    );
    Ok(())
}

/// Where a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Resident,
    Read(usize),
}

/// Checks places, slots and moments; whether they serve the steps is for
/// [`check_uses`] to say. Buffers may not be checked yet.
pub(super) fn check_reads(plan: &Plan, paged: &PagePlan) -> Result<(), CheckError> {
    let pages = plan.weights.pages.len();
    ensure!(
        paged.resident.len() == pages,
        "{} resident buffers for {pages} pages",
        paged.resident.len()
    );
    ensure!(
        (1..=DEPTH_MAX).contains(&paged.depth),
        "{} reads in flight, not 1..={DEPTH_MAX}",
        paged.depth
    );
    let mut seen = vec![false; plan.buffers.len()];
    for (page, slot) in paged.resident.iter().enumerate() {
        if let Some(slot) = *slot {
            check_resident(plan, page, slot, &mut seen)?;
        }
    }
    let stage_bytes = check_frames(plan, paged)?;
    let phases = plan.phases.len() as i64;
    let body = plan.body_phases;
    let mut before: Option<&PageRead> = None;
    // Per buffer: the first and the latest read into it.
    let mut first = vec![None; plan.buffers.len()];
    let mut latest: Vec<Option<&PageRead>> = vec![None; plan.buffers.len()];
    for (i, read) in paged.reads.iter().enumerate() {
        let end = read.first_page.0.checked_add(read.pages);
        ensure!(
            read.pages > 0 && end.is_some_and(|e| e as usize <= pages),
            "read {i} leaves the pages"
        );
        let slot = buffer(plan, read.slot)?;
        let bytes = PagePlan::read_bytes(plan, read).next_multiple_of(DIRECT_ALIGN);
        ensure!(
            slot.kind == BufferKind::PageSlot
                && slot.offset.is_multiple_of(DIRECT_ALIGN)
                && bytes <= slot.bytes,
            "read {i} of {bytes} bytes does not fit its slot {}",
            slot.name
        );
        if read.compressed {
            let frames = paged.frames.get(read.first_page.index()..);
            let frames = frames.and_then(|f| f.get(..read.pages as usize));
            ensure!(
                frames.is_some_and(|frames| frames.iter().all(|f| f.exists()))
                    && paged
                        .stored_bytes(plan, read)
                        .next_multiple_of(DIRECT_ALIGN)
                        <= stage_bytes,
                "read {i} has no frames that its stage holds"
            );
        }
        let (from, until) = (read.first_phase, read.end_phase);
        let start = i64::from(read.start_phase);
        ensure!(
            from < until
                && i64::from(until) <= phases
                && (until <= body || from >= body)
                && (-phases..=i64::from(from)).contains(&start),
            "read {i} starts in phase {start} for phases {from}..{until} of {phases}"
        );
        ensure!(
            before.is_none_or(|b| b.first_phase <= from),
            "read {i} comes behind one that is needed later"
        );
        before = Some(read);
        match latest[read.slot.index()] {
            Some(last) => ensure!(
                start >= i64::from(last.end_phase),
                "read {i} starts in phase {start}, but its slot is in use until {}",
                last.end_phase
            ),
            None => first[read.slot.index()] = Some(i),
        }
        latest[read.slot.index()] = Some(read);
    }
    // The first read into a slot follows the last one of the pass before.
    for (i, read) in paged.reads.iter().enumerate() {
        if let Some(last) =
            latest[read.slot.index()].filter(|_| first[read.slot.index()] == Some(i))
        {
            ensure!(
                i64::from(read.start_phase) >= i64::from(last.end_phase) - phases,
                "read {i} starts in phase {}, but its slot is in use until {} of the pass before",
                read.start_phase,
                last.end_phase
            );
        }
    }
    Ok(())
}

/// Checks that frames lie in their file one behind the other; returns the bytes
/// of a stage.
fn check_frames(plan: &Plan, paged: &PagePlan) -> Result<u64, CheckError> {
    let count = paged.frames.len();
    ensure!(
        count == 0 || count == plan.weights.pages.len(),
        "{count} frames for {} pages",
        plan.weights.pages.len()
    );
    let mut end = frames_start(count);
    for (page, frame) in paged.frames.iter().enumerate() {
        if !frame.exists() {
            continue;
        }
        let until = frame.file_offset.checked_add(frame.bytes);
        ensure!(
            frame.file_offset >= end
                && frame.file_offset.is_multiple_of(FRAME_ALIGN)
                && until.is_some_and(|until| until <= paged.frames_file_bytes)
                && frame.bytes < plan.weights.pages[page].bytes,
            "the frame of page {page} is out of place"
        );
        end = frame.file_offset + frame.bytes;
    }
    let Some(id) = paged.stages else {
        return Ok(0);
    };
    let stages = buffer(plan, id)?;
    let stage = stages.bytes / u64::from(paged.depth);
    ensure!(
        stages.kind == BufferKind::PageSlot
            && stages.offset.is_multiple_of(DIRECT_ALIGN)
            && stage.is_multiple_of(DIRECT_ALIGN)
            && Some(id) != paged.gather
            && paged.reads.iter().all(|read| read.slot != id),
        "buffer {} does not hold a stage for each read in flight",
        stages.name
    );
    Ok(stage)
}

/// Checks that every page is where a step needs it when it needs it. Steps,
/// tensors and buffers are checked already.
pub(super) fn check_uses(plan: &Plan) -> Result<(), CheckError> {
    let WeightSource::Paged(paged) = &plan.weights.source else {
        return Ok(());
    };
    if let Some(id) = paged.gather {
        let gather = buffer(plan, id)?;
        let unit = gathered_unit_bytes(plan).unwrap_or(0);
        ensure!(
            gather.kind == BufferKind::PageSlot
                && gather.offset.is_multiple_of(DIRECT_ALIGN)
                && gather.bytes >= gather_bytes(unit, plan.threads_max)
                && paged.reads.iter().all(|read| read.slot != id),
            "buffer {} does not hold what is gathered",
            gather.name
        );
    }
    let mut places: Vec<Place> = Vec::with_capacity(paged.resident.len());
    places.extend(paged.resident.iter().map(|slot| match slot {
        Some(_) => Place::Resident,
        None => Place::Nowhere,
    }));
    for (i, read) in paged.reads.iter().enumerate() {
        for page in read.page_ids() {
            let place = &mut places[page.index()];
            ensure!(
                *place == Place::Nowhere,
                "page {} of read {i} has a place already",
                page.0
            );
            *place = Place::Read(i);
        }
    }
    for (p, phase) in plan.phases.iter().enumerate() {
        let p = p as u32;
        for step in phase.first_step..phase.first_step + phase.steps {
            let (pages, gathers) = step_pages(plan, step as usize);
            if gathers && paged.gather.is_some() {
                continue;
            }
            for page in pages {
                let there = match places[page.index()] {
                    Place::Nowhere => false,
                    Place::Resident => true,
                    Place::Read(i) => {
                        let read = &paged.reads[i];
                        (read.first_phase..read.end_phase).contains(&p)
                    }
                };
                ensure!(
                    there,
                    "step {} uses page {} in phase {p}, where it is not in memory",
                    plan.steps[step as usize].name,
                    page.0
                );
            }
        }
    }
    Ok(())
}
