//! Plans whose pages come and go give the bits of plans whose pages stay,
//! whatever the slots and the sizes of reads; faults of the file are errors.

mod common;

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::{Folder, Options, Random, Tiny, threads};
use omex_compiler::paging::{Frames, Request, page, paging_text};
use omex_kernels::WeightFormat;
use omex_plan::frames::{FRAME_ALIGN, Frame, frames_start};
use omex_plan::paging::PagePlan;
use omex_plan::{BufferId, PageId, PanelRange, Plan, Step, WeightSource, check};
use omex_runtime::events::Collector;
use omex_runtime::os::uring::Ring;
use omex_runtime::{Bindings, LoadOptions, RunError, RunOptions, SamplingChanges, Session};
use serde_json::Value;

/// `weights_bytes_max` beyond the least that is possible.
fn paged(plan: &Plan, spare: u64, slots_bytes_max: u64, read_bytes_max: u64, depth: u32) -> Plan {
    let request = |weights_bytes_max| Request {
        weights_bytes_max,
        slots_bytes_max,
        read_bytes_max,
        depth,
        first_layers: 0..0,
        storage_bytes_per_s: 1,
        memory_bytes_per_s: 1,
        macs_per_s: 1,
        frames: Frames::default(),
    };
    let least = page(plan, &request(0)).unwrap_err().weights_bytes_min;
    page(plan, &request(least + spare)).unwrap()
}

fn tokens(tiny: &Tiny, count: usize) -> Vec<u32> {
    let random = &mut Random(5);
    let vocabulary = tiny.plan.model.vocabulary;
    (0..count).map(|_| random.next() % vocabulary).collect()
}

/// Pages read by io_uring, where the system allows it, and by threads.
fn readers(thread_count: u32) -> [LoadOptions; 2] {
    [true, false].map(|io_uring| LoadOptions {
        io_uring,
        ..threads(thread_count)
    })
}

/// The bits of the logits at every position.
fn logits(plan: &Path, load: &LoadOptions, chunk: usize, tokens: &[u32]) -> Vec<Vec<u32>> {
    let mut session = Session::load(plan, load).unwrap();
    let engine = session.engine();
    let mut all = Vec::new();
    for (i, chunk_tokens) in tokens.chunks(chunk).enumerate() {
        let position = (i * chunk) as u32;
        // Logits are asked for whether they were announced or not.
        if i % 2 == 0 {
            engine.forward(chunk_tokens, position).unwrap();
        } else {
            engine.forward_only(chunk_tokens, position).unwrap();
        }
        for column in 0..chunk_tokens.len() as u32 {
            // The head runs again for the same column, and is left out for some.
            if chunk == 1 && i % 3 == 2 {
                all.push(Vec::new());
                continue;
            }
            let logits = engine.logits(column).unwrap();
            all.push(logits.iter().map(|x| x.to_bits()).collect());
        }
    }
    all
}

#[test]
fn paged_plans_give_the_bits_of_unpaged_ones() {
    for (format, tied) in [(WeightFormat::Q8_0, true), (WeightFormat::F32, false)] {
        let tiny = Tiny::new(Options {
            format,
            tied,
            ..Options::default()
        });
        let tokens = tokens(&tiny, 40);
        let folder = Folder::new(&format!("paged-{}", format.name()));
        let whole = tiny.write(&folder.0);
        let mut cut = 0;
        for (spare, slots, read, depth) in [
            (0, 1, 1, 1),
            (0, 40 << 10, 1, 2),
            (0, 200 << 10, 40 << 10, 4),
            (30_000, 64 << 10, 32 << 10, 3),
            (u64::MAX / 2, 1, 1, 1),
        ] {
            let plan = paged(&tiny.plan, spare, slots, read, depth);
            cut += (plan.phases.len() > tiny.plan.phases.len()) as u32;
            let described = paging_text(&plan);
            let small = Tiny {
                plan,
                packed: tiny.packed.clone(),
                tokenizer: tiny.tokenizer.clone(),
                ..tiny
            };
            for (thread_count, chunk) in [(1, 1), (2, 7), (3, 40)] {
                let wanted = logits(&whole, &threads(thread_count), chunk, &tokens);
                let folder = Folder::new(&format!("paged-{}-small", format.name()));
                let path = small.write(&folder.0);
                for load in readers(thread_count) {
                    let got = logits(&path, &load, chunk, &tokens);
                    assert!(
                        got == wanted,
                        "{thread_count} threads, chunks of {chunk}, {load:?}\n{described}"
                    );
                }
            }
        }
        assert!(cut >= 3, "phases are cut in {cut} plans");
    }
}

/// Has the system refuse rings with `errno`, as containers do, to this thread
/// and to those that it starts.
#[allow(unsafe_code)]
fn refuse_rings(errno: i32) {
    use libc::{BPF_ABS, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let call = libc::SYS_io_uring_setup as u32;
    let mut steps = [
        // A call's number comes first in what filters look at.
        step(BPF_LD | BPF_W | BPF_ABS, 0, 0),
        step(BPF_JMP | BPF_JEQ | BPF_K, call, 1),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32, 0),
        step(BPF_RET | BPF_K, libc::SECCOMP_RET_ALLOW, 0),
    ];
    let filter = libc::sock_fprog {
        len: steps.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: both calls change what this thread may do. The second reads the
    // filter, which points at `steps`, before it returns.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter);
    }
}

#[test]
fn threads_read_where_rings_are_refused() {
    let tiny = Tiny::new(Options::default());
    let tokens = tokens(&tiny, 12);
    let whole = Folder::new("paged-refused-whole");
    let wanted = logits(&tiny.write(&whole.0), &threads(2), 1, &tokens);
    let plan = paged(&tiny.plan, 0, 64 << 10, 1, 2);
    let small = Tiny { plan, ..tiny };
    let folder = Folder::new("paged-refused");
    let path = small.write(&folder.0);
    for errno in [libc::EPERM, libc::ENOSYS] {
        std::thread::scope(|s| {
            s.spawn(|| {
                refuse_rings(errno);
                assert!(Ring::new(2).is_err());
                let [load, _] = readers(2);
                assert!(logits(&path, &load, 1, &tokens) == wanted);
            });
        });
    }
}

/// A session over a paged plan, and its packed model's path.
fn session(folder: &Folder, tied: bool, load: &LoadOptions) -> (Session, std::path::PathBuf, Plan) {
    let tiny = Tiny::new(Options {
        tied,
        ..Options::default()
    });
    let plan = paged(&tiny.plan, 0, 1, 1, 2);
    let small = Tiny { plan, ..tiny };
    let path = small.write(&folder.0);
    let name = omex_runtime::packed_file_name(&small.plan.weights.packed_digest);
    let session = Session::load(&path, load).unwrap();
    (session, folder.0.join(name), small.plan)
}

fn pass(session: &mut Session, position: u32) -> Result<(), RunError> {
    session.engine().forward(&[3], position)?;
    session.engine().logits(0).map(|_| ())
}

#[test]
fn a_file_that_is_truncated_ends_the_run() {
    for load in readers(2) {
        let folder = Folder::new("paged-truncated");
        let (mut session, packed, _) = session(&folder, true, &load);
        pass(&mut session, 0).unwrap();
        let file = OpenOptions::new().write(true).open(packed).unwrap();
        file.set_len(20_000).unwrap();
        let error = pass(&mut session, 1).and_then(|()| pass(&mut session, 2));
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("truncated"), "{error}");
        // It stays an error.
        assert_eq!(pass(&mut session, 2).unwrap_err().exit_code(), 6);
    }
}

#[test]
fn a_file_that_is_overwritten_ends_the_run() {
    for load in readers(2) {
        let folder = Folder::new("paged-changed");
        let (mut session, packed, _) = session(&folder, false, &load);
        pass(&mut session, 0).unwrap();
        let mut file = OpenOptions::new().write(true).open(packed).unwrap();
        file.seek(SeekFrom::Start(20_000)).unwrap();
        file.write_all(&[1; 100]).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH)
            .unwrap();
        let error = pass(&mut session, 1).and_then(|()| pass(&mut session, 2));
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 6);
        assert!(error.to_string().contains("changed"), "{error}");
    }
}

#[test]
fn a_file_that_is_replaced_does_not_matter() {
    let folder = Folder::new("paged-replaced");
    let (mut session, packed, _) = session(&folder, true, &threads(2));
    std::fs::remove_file(&packed).unwrap();
    std::fs::write(&packed, b"another").unwrap();
    for position in 0..3 {
        pass(&mut session, position).unwrap();
    }
}

#[test]
fn a_broken_page_ends_the_run_at_its_first_read() {
    // Streamed pages, and pages of a table that rows are gathered from.
    for (tied, tensor) in [(true, "1.up"), (false, "embedding")] {
        let tiny = Tiny::new(Options {
            tied,
            ..Options::default()
        });
        let plan = paged(&tiny.plan, 0, 1, 1, 2);
        let WeightSource::Paged(page_plan) = &plan.weights.source else {
            panic!("not paged");
        };
        let tensors = plan.weights.tensors.iter();
        let pieces = tensors.filter(|t| t.name == tensor).flat_map(|t| &t.pieces);
        let page = pieces
            .map(|piece| piece.page)
            .find(|page| page_plan.resident[page.index()].is_none())
            .unwrap();
        let at = plan.weights.pages[page.index()].file_offset as usize;
        let mut small = Tiny { plan, ..tiny };
        small.packed[at + 5] ^= 1;
        let folder = Folder::new(&format!("paged-broken-{tied}"));
        let path = small.write(&folder.0);
        for load in readers(2) {
            let mut session = Session::load(&path, &load).unwrap();
            let error = pass(&mut session, 0).unwrap_err();
            assert_eq!(error.exit_code(), 6, "{error}");
            let message = error.to_string();
            let named = format!("byte {at}: page {}", page.0);
            assert!(message.contains(&named), "{message}");
        }
    }
}

type Spoil = fn(&mut Plan, &mut PagePlan);

/// What is spoiled, and a word of the error.
const SPOILED: &[(Spoil, &str)] = &[
    (|_, p| p.resident.truncate(3), "resident buffers"),
    (|_, p| p.depth = 0, "in flight"),
    (|_, p| p.depth = 17, "in flight"),
    (|_, p| p.reads[3].pages = 0, "leaves the pages"),
    (|_, p| p.reads[3].pages = u32::MAX, "leaves the pages"),
    (
        |_, p| p.reads[3].first_page = PageId(1 << 20),
        "leaves the pages",
    ),
    (|_, p| p.reads[3].pages += 4, "does not fit its slot"),
    (
        |_, p| p.reads[3].slot = BufferId(0),
        "does not fit its slot",
    ),
    (|_, p| p.reads[3].slot = BufferId(1 << 20), "does not exist"),
    (|_, p| p.reads[3].start_phase -= 1, "in use until"),
    (|_, p| p.reads[0].start_phase -= 1, "of the pass before"),
    (|_, p| p.reads[0].start_phase = i32::MIN, "starts in phase"),
    (
        |_, p| p.reads[0].start_phase = p.reads[0].first_phase as i32 + 1,
        "starts in phase",
    ),
    (
        |_, p| p.reads[3].end_phase = p.reads[3].first_phase,
        "starts in phase",
    ),
    (
        |_, p| p.reads.last_mut().unwrap().end_phase += 9,
        "starts in phase",
    ),
    (|_, p| p.reads.swap(2, 6), "needed later"),
    (|_, p| p.reads.truncate(p.reads.len() - 1), "not in memory"),
    (
        |_, p| {
            let last = p.reads.len() - 1;
            let (a, b) = (p.reads[last - 1], p.reads[last]);
            (p.reads[last - 1].first_page, p.reads[last].first_page) = (b.first_page, a.first_page);
        },
        "not in memory",
    ),
    (|_, p| p.gather = None, "not in memory"),
    (|_, p| p.gather = Some(p.reads[0].slot), "what is gathered"),
    (
        |plan, p| plan.buffers[p.gather.unwrap().index()].bytes -= 4096,
        "what is gathered",
    ),
    (
        |plan, p| plan.buffers[p.reads[0].slot.index()].offset += 64,
        "does not fit its slot",
    ),
    (
        |_, p| {
            let first = p.reads[0].first_page;
            let stays = p.resident.iter().flatten().next().copied();
            p.resident[first.index()] = stays;
        },
        "slot of its own",
    ),
    (
        |_, p| {
            let (from, to) = (p.reads[2], p.reads[3]);
            p.reads[3].first_page = from.first_page;
            p.reads[3].pages = from.pages.min(to.pages);
        },
        "has a place already",
    ),
    (
        |plan, _| part(plan, 1).panels.as_mut().unwrap().first = 0,
        "panels",
    ),
    (
        |plan, _| part(plan, 1).panels.as_mut().unwrap().count += 1,
        "panels",
    ),
    (
        |plan, _| part(plan, 0).panels.as_mut().unwrap().count = 0,
        "panels",
    ),
    (|plan, _| part(plan, 0).panels = None, "panels"),
    (|plan, _| part(plan, 1).args.swap(0, 1), "comes between"),
    (
        |plan, _| {
            let other = plan.steps.iter().position(|s| s.name == "attn_norm");
            plan.steps[other.unwrap()].panels = Some(PanelRange { first: 0, count: 1 });
        },
        "no panels",
    ),
];

/// The first or second step of the first matmul that has several.
fn part(plan: &mut Plan, index: usize) -> &mut Step {
    let first = plan.steps.iter().position(|s| s.panels.is_some()).unwrap();
    &mut plan.steps[first + index]
}

/// Asserts that a sound plan is refused once it is spoiled, each time with the
/// word of what was.
fn assert_caught(plan: &Plan, spoiled: &[(Spoil, &str)]) {
    check(plan.clone(), 0).unwrap();
    let mut missed = Vec::new();
    for (i, (spoil, word)) in spoiled.iter().enumerate() {
        let mut plan = plan.clone();
        let WeightSource::Paged(mut page_plan) = plan.weights.source.clone() else {
            panic!("not paged");
        };
        spoil(&mut plan, &mut page_plan);
        plan.weights.source = WeightSource::Paged(page_plan);
        match check(plan, 0) {
            Err(e) if e.0.contains(word) => {}
            other => missed.push((i, word, other.map(|_| ()))),
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn every_violation_of_a_page_plan_is_caught() {
    let tiny = Tiny::new(Options::default());
    let plan = paged(&tiny.plan, 0, 1, 1, 2);
    assert_caught(&plan, SPOILED);
}

/// Made-up frames of half the bytes of each page.
fn frames(plan: &Plan) -> Frames {
    let mut end = frames_start(plan.weights.pages.len());
    let of_pages = plan.weights.pages.iter().map(|page| {
        let (file_offset, bytes) = (end, page.bytes / 2);
        end = (end + bytes).next_multiple_of(FRAME_ALIGN);
        Frame { file_offset, bytes }
    });
    Frames {
        of_pages: of_pages.collect(),
        file_bytes: end,
        pages_bytes_per_s: u64::MAX,
    }
}

/// What is spoiled of a plan with frames, and a word of the error.
const SPOILED_FRAMES: &[(Spoil, &str)] = &[
    (|_, p| p.frames.truncate(2), "frames for"),
    (|_, p| p.frames.clear(), "no frames"),
    (|_, p| p.frames[2].file_offset += 1, "out of place"),
    (
        |_, p| p.frames[2].file_offset -= FRAME_ALIGN,
        "out of place",
    ),
    (
        |_, p| p.frames[2].file_offset = u64::MAX - 4095,
        "out of place",
    ),
    (|_, p| p.frames[0].file_offset = 0, "out of place"),
    (
        |plan, p| p.frames[2].bytes = plan.weights.pages[2].bytes,
        "out of place",
    ),
    (|_, p| p.frames_file_bytes -= FRAME_ALIGN, "out of place"),
    (
        |_, p| {
            let read = p.reads.iter().find(|read| read.compressed).unwrap();
            p.frames[read.first_page.index()] = Frame::default();
        },
        "no frames",
    ),
    (|_, p| p.stages = None, "no frames"),
    (|_, p| p.stages = Some(BufferId(1 << 20)), "does not exist"),
    (|_, p| p.stages = Some(p.reads[0].slot), "a stage for each"),
    (|_, p| p.stages = p.gather, "a stage for each"),
    (
        |plan, p| plan.buffers[p.stages.unwrap().index()].bytes -= 4096,
        "a stage for each",
    ),
    (
        |plan, p| plan.buffers[p.stages.unwrap().index()].bytes -= 8192,
        "its stage holds",
    ),
];

#[test]
fn every_violation_of_frames_is_caught() {
    let tiny = Tiny::new(Options::default());
    let mut request = Request {
        weights_bytes_max: 0,
        slots_bytes_max: 1 << 20,
        read_bytes_max: 1,
        depth: 2,
        first_layers: 0..0,
        storage_bytes_per_s: 1,
        memory_bytes_per_s: 1,
        macs_per_s: 1,
        frames: frames(&tiny.plan),
    };
    let least = page(&tiny.plan, &request).unwrap_err().weights_bytes_min;
    // There is no memory for stages, so the pages themselves are read.
    request.weights_bytes_max = least;
    let plan = page(&tiny.plan, &request).unwrap();
    let WeightSource::Paged(page_plan) = &plan.weights.source else {
        panic!("not paged");
    };
    assert_eq!(page_plan.stages, None);
    request.weights_bytes_max = least + (32 << 10);
    let plan = page(&tiny.plan, &request).unwrap();
    assert_caught(&plan, SPOILED_FRAMES);
}

/// What a run of the task gives: its text, and tokens drafted and accepted.
fn generated(plan: &Path, no_speculation: bool, temperature: f32) -> (Vec<u8>, u64, u64) {
    let mut session = Session::load(plan, &threads(2)).unwrap();
    let mut collector = Collector::default();
    let options = RunOptions {
        bindings: Bindings {
            prompt: Some("the thing in the thing in the ring in the thing in the".to_owned()),
            ..Bindings::default()
        },
        predict: Some(60),
        sampling: SamplingChanges {
            temperature: Some(temperature),
            top_k: Some(2),
            repeat_penalty: Some(1.1),
            ..SamplingChanges::default()
        },
        no_speculation,
        ..RunOptions::default()
    };
    let report = session.run(&options, &mut collector).unwrap();
    let text = format!("{:?}", collector.token_ids);
    (
        text.into_bytes(),
        report.drafted_tokens,
        report.accepted_tokens,
    )
}

#[test]
fn traces_show_reads_waits_and_computing_in_lanes() {
    let tiny = Tiny::new(Options::default());
    let plan = paged(&tiny.plan, 0, 64 << 10, 1, 2);
    let reads = match &plan.weights.source {
        WeightSource::Paged(paged) => paged.reads.len(),
        WeightSource::Mapped | WeightSource::Read { .. } => 0,
    };
    let small = Tiny { plan, ..tiny };
    let folder = Folder::new("paged-trace");
    let path = small.write(&folder.0);
    let file = folder.0.join("trace.json");
    let [by_ring, by_threads] = readers(2).map(|load| LoadOptions {
        trace: true,
        ..load
    });
    for load in [&by_ring, &by_threads] {
        let mut session = Session::load(&path, load).unwrap();
        const PASSES: usize = 4;
        for position in 0..PASSES as u32 {
            pass(&mut session, position).unwrap();
        }
        session.write_trace(&file).unwrap();
        let trace: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(trace["otherData"]["dropped_events"], 0);
        let is_ring = load.io_uring && Ring::new(2).is_ok();
        let reader = if is_ring { "io_uring" } else { "threads" };
        assert_eq!(trace["otherData"]["reader"], reader);
        let events = trace["traceEvents"].as_array().unwrap();
        let mut lanes = BTreeMap::<u64, Vec<(f64, f64)>>::new();
        let mut kinds = BTreeMap::<&str, usize>::new();
        for event in events.iter().filter(|e| e["ph"] == "X") {
            let number = |key: &str| event[key].as_f64().unwrap();
            let (from, until) = (number("ts"), number("ts") + number("dur"));
            assert!(from >= 0.0 && until >= from, "{event}");
            let lane = event["tid"].as_u64().unwrap();
            lanes.entry(lane).or_default().push((from, until));
            let kind = event["cat"].as_str().unwrap();
            *kinds.entry(kind).or_default() += 1;
            assert_eq!(kind == "disk", event["args"]["bytes"].as_u64().unwrap() > 0);
        }
        // Reads of the pass that did not come may have started.
        assert!((PASSES * reads..=(PASSES + 1) * reads).contains(&kinds["disk"]));
        assert!(kinds["compute"] >= PASSES * 4, "{kinds:?}");
        // What is in a lane never overlaps; times are rounded to nanoseconds.
        for (lane, slices) in &mut lanes {
            slices.sort_by(|a, b| a.0.total_cmp(&b.0));
            let overlap = slices.windows(2).find(|w| w[1].0 < w[0].1 - 0.001);
            assert_eq!(overlap, None, "lane {lane}");
            let named = |e: &&Value| e["ph"] == "M" && e["tid"] == *lane;
            assert!(events.iter().any(|e| named(&e)), "lane {lane} has no name");
        }
    }
    let whole = Folder::new("unpaged-trace");
    let path = Tiny::new(Options::default()).write(&whole.0);
    assert_eq!(Session::load(&path, &by_ring).unwrap_err().exit_code(), 2);
    let session = Session::load(&path, &threads(2)).unwrap();
    assert_eq!(session.write_trace(&file).unwrap_err().exit_code(), 2);
}

#[test]
fn speculation_changes_no_token() {
    let (mut drafted, mut accepted) = (0, 0);
    for seed in 0..6 {
        let tiny = Tiny::new(Options {
            head_columns: 6,
            seed,
            ..Options::default()
        });
        let plan = paged(&tiny.plan, 0, 64 << 10, 1, 2);
        let small = Tiny { plan, ..tiny };
        let folder = Folder::new(&format!("paged-speculation-{seed}"));
        let path = small.write(&folder.0);
        for temperature in [0.0, 0.3] {
            let (wanted, none, _) = generated(&path, true, temperature);
            assert_eq!(none, 0);
            let (got, run_drafted, run_accepted) = generated(&path, false, temperature);
            assert_eq!(got, wanted, "seed {seed}, temperature {temperature}");
            drafted += run_drafted;
            accepted += run_accepted;
        }
    }
    assert!(
        accepted > 0 && accepted < drafted,
        "{accepted} of {drafted} drafted tokens were accepted"
    );
}
