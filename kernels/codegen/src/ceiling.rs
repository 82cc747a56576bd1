//! What the machine can do at best: the roof of a roofline.
//!
//! The instructions of the arithmetic ceiling are those that 8-bit dot products are made
//! of, on registers alone; the loop of the read ceiling only adds what it loads. The
//! latency is that of a single read, whose address nothing can know before.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

use crate::isa::PREFETCH_PAGES;
use memmap2::MmapMut;

/// Larger than any last-level cache share of one thread.
const READ_BYTES: usize = 192 << 20;
const MEASUREMENTS: usize = 10;
const PAGE_BYTES: usize = 4096;

/// Memory to measure reads with: in huge pages where the system has them, as weights
/// are.
pub struct Memory {
    bytes: MmapMut,
}

impl Memory {
    /// Allocates and touches it.
    ///
    /// Panics: the system refuses the memory.
    #[allow(clippy::new_without_default, reason = "it takes time and memory")]
    pub fn new() -> Memory {
        let mut bytes = MmapMut::map_anon(READ_BYTES).expect("memory to read");
        #[cfg(target_os = "linux")]
        let _ = bytes.advise(memmap2::Advice::HugePage);
        bytes.fill(1);
        Memory { bytes }
    }

    /// Seconds in which `threads` threads read it all together, each its own share,
    /// and its bytes, with the start of each 4 KiB asked for so many of them ahead.
    /// Starting the threads does not count.
    pub fn read(&self, threads: u32, prefetch_pages: u32) -> (f64, usize) {
        let (words, _) = self.bytes.as_chunks();
        let parts = words.chunks(words.len().div_ceil(threads.max(1) as usize));
        let start = Barrier::new(parts.len());
        let seconds = std::thread::scope(|scope| {
            let readers: Vec<_> = parts
                .map(|part| {
                    scope.spawn(|| {
                        start.wait();
                        let began = Instant::now();
                        black_box(sum(part, prefetch_pages as usize));
                        began.elapsed().as_secs_f64()
                    })
                })
                .collect();
            let done = readers.into_iter().map(|reader| reader.join());
            done.map(|seconds| seconds.expect("reading does not panic"))
                .fold(0.0, f64::max)
        });
        (seconds, READ_BYTES)
    }

    /// Bytes per second that `threads` threads read together, each its own share, and how
    /// many pages ahead each page is begun to read so fast: the best of some measurements.
    /// Beginning them has to gain something.
    pub fn bytes_per_second(&self, threads: u32) -> (f64, u32) {
        let mut best = [0.0; 2];
        for _ in 0..MEASUREMENTS {
            for (best, pages) in best.iter_mut().zip([0, PREFETCH_PAGES]) {
                let (seconds, bytes) = self.read(threads, pages);
                *best = f64::max(*best, bytes as f64 / seconds);
            }
        }
        let [in_order, begun] = best;
        if begun > in_order * 1.05 {
            (begun, PREFETCH_PAGES)
        } else {
            (in_order, 0)
        }
    }
}

/// 8-bit multiply-adds into 32-bit sums that `threads` threads do per second.
pub fn macs_per_second(threads: u32) -> f64 {
    const ROUNDS: u64 = 4_000_000;
    best(|| {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| scope.spawn(|| multiply_adds(ROUNDS)))
                .collect();
            let done = workers.into_iter().map(|worker| worker.join());
            done.map(|macs| macs.expect("arithmetic does not panic") as f64)
                .sum()
        })
    })
}

/// Nanoseconds from asking memory for a cache line to having it: reads of which each
/// needs the one before for its address; the best of some measurements.
///
/// The places of a window are visited in random order, so that no hardware fetches
/// them ahead, and windows one after the other, so that address translation costs
/// hardly more than it does a kernel.
pub fn latency_ns() -> f64 {
    // Two lines, because some hardware fetches pairs.
    const PLACE_BYTES: usize = 128;
    const PLACE_WORDS: usize = PLACE_BYTES / size_of::<u32>();
    const WINDOW_BYTES: usize = 1 << 20;
    let order = visits(READ_BYTES / PLACE_BYTES, WINDOW_BYTES / PLACE_BYTES);
    // The first word of each place is the next place.
    let mut next = vec![0u32; order.len() * PLACE_WORDS];
    for pair in order.windows(2) {
        next[pair[0] as usize * PLACE_WORDS] = pair[1];
    }
    // Each measurement has places of its own, which no cache holds any more.
    let count = order.len() / MEASUREMENTS;
    let mut parts = order.chunks_exact(count);
    let per_second = best(|| {
        let mut place = parts.next().expect("a part for each measurement")[0];
        for _ in 0..count {
            place = next[place as usize * PLACE_WORDS];
        }
        black_box(place);
        count as f64
    });
    1e9 / per_second
}

/// The numbers of all places, window after window, in random order within each.
fn visits(places: usize, window: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..places as u32).collect();
    let mut state = 1u64;
    for window in order.chunks_mut(window) {
        for last in (1..window.len()).rev() {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            window.swap(last, (state >> 33) as usize % (last + 1));
        }
    }
    order
}

/// The best rate of work per second; `measure` returns the work.
fn best(mut measure: impl FnMut() -> f64) -> f64 {
    (0..MEASUREMENTS)
        .map(|_| {
            let began = Instant::now();
            let work = measure();
            work / began.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}

/// Wide independent sums, which compile to vector loads and additions.
fn sum(words: &[[u8; 8]], prefetch_pages: usize) -> u64 {
    let mut sums = [0u64; 32];
    for chunk in words.chunks_exact(32) {
        if prefetch_pages > 0 {
            let at = chunk.as_ptr().addr();
            // The first quarter of a page, line by line.
            let line = at / PAGE_BYTES * PAGE_BYTES + at % PAGE_BYTES / 4;
            prefetch(line + prefetch_pages * PAGE_BYTES);
        }
        for (sum, word) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

/// Asks for a line of memory where that has an instruction; any address will do.
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: the instruction is a hint that accesses nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address as *const i8) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Multiply-adds done in `rounds` rounds.
fn multiply_adds(rounds: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512f") {
            // SAFETY: the CPU has the features.
            return unsafe { multiply_adds_vnni512(rounds) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the CPU has the feature.
            return unsafe { multiply_adds_avx2(rounds) };
        }
    }
    multiply_adds_portable(rounds)
}

/// # Safety
/// The CPU has AVX-512 F and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn multiply_adds_vnni512(rounds: u64) -> u64 {
    use std::arch::x86_64::*;
    let (a, b) = (
        black_box(_mm512_set1_epi8(1)),
        black_box(_mm512_set1_epi8(2)),
    );
    let mut sums = [_mm512_setzero_si512(); 12];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    black_box(sums);
    rounds * 12 * 64
}

/// `vpmaddubsw`, `vpmaddwd`, `vpaddd`: 32 products of bytes.
///
/// # Safety
/// The CPU has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn multiply_adds_avx2(rounds: u64) -> u64 {
    use std::arch::x86_64::*;
    let (mut a, b) = (_mm256_set1_epi8(1), _mm256_set1_epi8(2));
    let ones = _mm256_set1_epi16(1);
    let mut sums = [_mm256_setzero_si256(); 8];
    for _ in 0..rounds {
        // The products are the same every time, which the compiler must not see.
        a = black_box(a);
        for sum in &mut sums {
            let pairs = _mm256_maddubs_epi16(a, b);
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
        }
    }
    black_box(sums);
    rounds * 8 * 32
}

fn multiply_adds_portable(rounds: u64) -> u64 {
    let (mut a, b) = ([1i8; 64], black_box([2i8; 64]));
    let mut sums = [0i32; 64];
    for _ in 0..rounds {
        a = black_box(a);
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = sum.wrapping_add(i32::from(a) * i32::from(b));
        }
    }
    black_box(sums);
    rounds * 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_loop_does_work_that_it_counts() {
        assert_eq!(
            [0, 4].map(|pages| sum(&[3u64.to_ne_bytes(); 64], pages)),
            [192; 2]
        );
        assert_eq!(multiply_adds_portable(2), 128);
        assert!(multiply_adds(2) >= 128);
    }

    #[test]
    fn places_are_visited_once_in_an_order_of_their_own() {
        let order = visits(1000, 64);
        let mut neighbours = 0;
        for (number, window) in order.chunks(64).enumerate() {
            neighbours += window.windows(2).filter(|w| w[0] + 1 == w[1]).count();
            let mut sorted = window.to_vec();
            sorted.sort_unstable();
            assert!(
                sorted
                    .iter()
                    .enumerate()
                    .all(|(i, &p)| p as usize == 64 * number + i)
            );
        }
        assert!(neighbours < 100);
    }
}
