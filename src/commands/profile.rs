//! `omex profile`: measures this machine and writes a profile that `--target` takes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use omex_codegen::ceiling::{self, Memory};
use omex_compiler::diagnostic::{Code, Diagnostic};
use omex_compiler::paging;
use omex_compiler::target::{Figure, Profile, profile_toml};
use omex_runtime::os::file::{UncachedFile, require_writable, unnamed, write_atomic};
use omex_runtime::os::memory::Region;
use omex_runtime::os::process;

use super::output::{Failure, Progress, cannot_write};
use super::{places, targets};

/// Sizes of the reads that storage is measured with.
const READ_SIZES: [u64; 4] = [128 << 10, 512 << 10, paging::READ_BYTES_MAX, 8 << 20];
/// Reads in flight.
const DEPTHS: [u32; 3] = [1, 2, paging::DEPTH];
/// How long each combination is measured.
const READ_TIME: Duration = Duration::from_millis(700);

#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Where the profile goes; standard output without it
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Name of the profile
    #[arg(long, default_value = "this-machine")]
    name: String,
    /// Folder on the storage to measure; the cache without it
    #[arg(long, value_name = "DIR")]
    storage: Option<PathBuf>,
    /// Size of the file that storage is measured with
    #[arg(long, default_value = "512MiB", value_parser = file_bytes)]
    storage_size: u64,
}

fn file_bytes(text: &str) -> Result<u64, String> {
    let bytes = omex_grammar::quantity::parse_bytes(text).map_err(|e| e.to_string())?;
    let least = READ_SIZES[READ_SIZES.len() - 1];
    if bytes < least {
        return Err(format!("at least {least} bytes are needed for the reads"));
    }
    Ok(bytes)
}

pub fn profile(args: &ProfileArgs) -> Result<(), Failure> {
    let cannot = |path: &Path, e| cannot_write("profile", path, e);
    if let Some(path) = &args.output {
        require_writable(path).map_err(|e| cannot(path, e))?;
    }
    let line = Progress::new();
    let mut notes = vec!["Measured by `omex profile`; `--target FILE` takes it.".to_owned()];
    let mut profile = Profile {
        name: args.name.clone(),
        description: "measured by omex profile".to_owned(),
        ..targets::host()
    };
    memory(&mut profile, &mut notes, &line);
    let folder = match &args.storage {
        Some(folder) => folder.clone(),
        None => places()?.cache,
    };
    storage(&folder, args.storage_size, &mut profile, &mut notes, &line).map_err(|e| {
        let message = format!("storage cannot be measured: {e}");
        let help = "`--storage DIR` names another folder, `--storage-size` a smaller file";
        Diagnostic::error(Code::FileWrite, message)
            .in_file(folder.to_string_lossy(), None)
            .help(help)
    })?;
    if let Some(available) = process::memory_available_bytes() {
        let available = available.min(profile.ram_total_bytes.value);
        profile.ram_app_bytes = Figure::known(available, "available when it was measured");
    }
    line.clear();
    let text = profile_toml(&profile, &notes);
    match &args.output {
        None => std::io::stdout().write_all(text.as_bytes())?,
        Some(path) => write_atomic(path, text.as_bytes()).map_err(|e| cannot(path, e))?,
    }
    Ok(())
}

/// Memory reads and multiply-adds for each number of threads.
fn memory(profile: &mut Profile, notes: &mut Vec<String>, line: &Progress) {
    let memory = Memory::new();
    let mut best = (0.0, 1, 0);
    let mut most_macs = 0.0f64;
    for threads in 1..=profile.cores.value {
        line.show(|| format!("measuring memory and arithmetic on {threads} threads"));
        let (read, pages) = memory.bytes_per_second(threads);
        let macs = ceiling::macs_per_second(threads);
        notes.push(format!(
            "{threads} threads: memory reads {:.1} GB/s, 8-bit multiply-adds {:.0} Gmac/s",
            read / 1e9,
            macs / 1e9
        ));
        if macs > most_macs {
            most_macs = macs;
        }
        // More threads have to gain something.
        if read > best.0 * 1.05 {
            best = (read, threads, pages);
        }
    }
    // The next measurement has memory of its own.
    drop(memory);
    let latency = ceiling::latency_ns();
    notes.push(format!("memory latency {latency:.0} ns"));
    let latency = (latency.round() as u32).max(1);
    profile.memory_latency_ns = Figure::known(latency, "measured: reads that wait for each other");
    let (read, threads, pages) = best;
    let source = "measured: reads with and without pages begun early".to_owned();
    profile.prefetch_pages = Figure::known(pages, source);
    let source = format!("measured: reads on {threads} threads");
    profile.memory_bytes_per_s = Figure::known(read as u64, source);
    profile.macs_per_s = Figure::known(most_macs as u64, "measured: sums of 8-bit products");
    line.show(|| "measuring decompression".to_owned());
    let zstd = zstd_rate();
    profile.zstd_bytes_per_s = Figure::known(zstd as u64, "measured: 16-bit floats on one thread");
    profile.threads = Figure::known(threads, "measured: where memory reads are fastest");
}

/// Bytes per second of what one thread decompresses: numbers as in weights, in
/// 16-bit floats.
fn zstd_rate() -> f64 {
    const WORDS: u32 = 1 << 19;
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let words = (0..WORDS).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 0.02);
    let page: Vec<u8> = words
        .flat_map(|weight| ((weight.to_bits() >> 16) as u16).to_le_bytes())
        .collect();
    let frame = zstd::bulk::compress(&page, 3).expect("memory holds a page");
    let mut context = zstd::bulk::Decompressor::new().expect("memory holds a context");
    let mut out = vec![0; page.len()];
    let (began, mut done) = (Instant::now(), 0);
    while began.elapsed() < READ_TIME {
        done += context
            .decompress_to_buffer(&frame, &mut out)
            .expect("the frame is whole");
    }
    done as f64 / began.elapsed().as_secs_f64()
}

/// Reads past the page cache, of several sizes and numbers in flight.
fn storage(
    folder: &Path,
    bytes: u64,
    profile: &mut Profile,
    notes: &mut Vec<String>,
    line: &Progress,
) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut file = unnamed(folder)?;
    // Bytes that no storage can compress: a counter-based generator's.
    let mut block = vec![0u8; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut written = 0;
    while written < bytes {
        for word in block.chunks_exact_mut(8) {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
        }
        let count = block.len().min((bytes - written) as usize);
        file.write_all(&block[..count])?;
        written += count as u64;
        line.show(|| {
            format!(
                "writing a file to read: {} of {} MiB",
                written >> 20,
                bytes >> 20
            )
        });
    }
    file.sync_all()?;
    let file = UncachedFile::new(file)?;
    for size in READ_SIZES {
        let mut row = format!("storage reads of {} KiB:", size >> 10);
        for depth in DEPTHS {
            line.show(|| format!("reading {} KiB, {depth} at a time", size >> 10));
            let rate = read_rate(&file, bytes, size, depth)?;
            row += &format!(" {:.0} MB/s with {depth} in flight;", rate / 1e6);
            if (size, depth) == (paging::READ_BYTES_MAX, paging::DEPTH) {
                let source = format!("measured: {} KiB, {depth} in flight", size >> 10);
                profile.storage_bytes_per_s = Figure::known(rate as u64, source);
            }
        }
        notes.push(row.trim_end_matches(';').to_owned());
    }
    Ok(())
}

/// Bytes per second of reads of `size` bytes by `depth` threads.
fn read_rate(file: &UncachedFile, bytes: u64, size: u64, depth: u32) -> std::io::Result<f64> {
    let next = AtomicU64::new(0);
    let began = Instant::now();
    let work = || -> std::io::Result<u64> {
        let mut region = Region::zeroed(size as usize)?;
        let mut done = 0;
        while began.elapsed() < READ_TIME {
            let index = next.fetch_add(1, Ordering::Relaxed) % (bytes / size);
            file.read_at(region.bytes_mut(), size as usize, index * size)?;
            done += size;
        }
        Ok(done)
    };
    let done = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..depth).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.sum::<std::io::Result<u64>>()
    })?;
    Ok(done as f64 / began.elapsed().as_secs_f64())
}
