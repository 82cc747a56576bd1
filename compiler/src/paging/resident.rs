//! Which pages stay in memory.

use std::ops::Range;

use omex_plan::packed::Page;

use super::{Uses, slot_bytes};

/// Consecutive pages that one read brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) pages: Range<usize>,
    /// From the first page's start to the last one's end in the file.
    pub(super) bytes: u64,
}

/// Joins consecutive pages that may be streamed into units of at most
/// `bytes_max` bytes. Pages of the body and the head do not share one.
pub(super) fn units(pages: &[Page], uses: &[Uses], pinned: &[bool], bytes_max: u64) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::new();
    for (i, page) in pages.iter().enumerate() {
        if !uses[i].any() || pinned[i] {
            continue;
        }
        let end = page.file_offset + page.bytes;
        match units.last_mut() {
            Some(last)
                if last.pages.end == i
                    && uses[i - 1].head == uses[i].head
                    && end - pages[last.pages.start].file_offset <= bytes_max =>
            {
                last.pages.end = i + 1;
                last.bytes = end - pages[last.pages.start].file_offset;
            }
            _ => units.push(Unit {
                pages: i..i + 1,
                bytes: page.bytes,
            }),
        }
    }
    units
}

/// Makes units resident that take `spare` bytes together, and returns those
/// that are streamed. Layers that come first are taken first; of the others an
/// equal share stays everywhere.
pub(super) fn choose(
    pages: &[Page],
    uses: &[Uses],
    units: Vec<Unit>,
    mut spare: u64,
    resident: &mut [bool],
) -> Vec<Unit> {
    let cost = |unit: &Unit| {
        pages[unit.pages.clone()]
            .iter()
            .map(slot_bytes)
            .sum::<u64>()
    };
    let mut rest = Vec::with_capacity(units.len());
    for unit in units {
        let first = unit.pages.clone().any(|page| uses[page].first_layers);
        if first && cost(&unit) <= spare {
            spare -= cost(&unit);
            resident[unit.pages].fill(true);
        } else {
            rest.push(unit);
        }
    }
    let total: u64 = rest.iter().map(cost).sum();
    let to_stream = total.saturating_sub(spare);
    let (mut seen, mut streamed) = (0u64, 0u64);
    let mut streaming = Vec::new();
    for unit in rest {
        seen += cost(&unit);
        // The share of what was seen that has to be streamed; never less is.
        let share = (u128::from(seen) * u128::from(to_stream)).div_ceil(total.max(1).into());
        if u128::from(streamed) < share {
            streamed += cost(&unit);
            streaming.push(unit);
        } else {
            resident[unit.pages].fill(true);
        }
    }
    // Whole units rarely fill the budget: single pages may.
    let mut left = streamed - to_stream;
    for unit in streaming.iter_mut().rev() {
        while unit.pages.len() > 1 && slot_bytes(&pages[unit.pages.end - 1]) <= left {
            unit.pages.end -= 1;
            let last = &pages[unit.pages.end];
            left -= slot_bytes(last);
            resident[unit.pages.end] = true;
            let last = &pages[unit.pages.end - 1];
            unit.bytes = last.file_offset + last.bytes - pages[unit.pages.start].file_offset;
        }
    }
    streaming
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(count: usize) -> Vec<Page> {
        let page = |i: usize| Page {
            file_offset: (i as u64 + 1) << 20,
            bytes: (1 << 20) - 4096,
            digest: [0; 32],
        };
        (0..count).map(page).collect()
    }

    #[test]
    fn what_stays_fills_the_budget_and_is_spread_evenly() {
        let pages = pages(400);
        let body = Uses {
            body: true,
            ..Uses::default()
        };
        let uses = vec![body; 400];
        let units = units(&pages, &uses, &[false; 400], 4 << 20);
        assert!(units.iter().all(|u| u.pages.len() == 4), "{units:?}");
        for budget in (0..=400).step_by(7) {
            let mut resident = vec![false; 400];
            let spare = budget * slot_bytes(&pages[0]);
            let streaming = choose(&pages, &uses, units.clone(), spare, &mut resident);
            let stay = resident.iter().filter(|r| **r).count() as u64;
            assert_eq!(stay, budget, "the whole budget is used");
            let streamed: usize = streaming.iter().map(|u| u.pages.len()).sum();
            assert_eq!(stay as usize + streamed, 400);
            for quarter in resident.chunks(100) {
                let stay = quarter.iter().filter(|r| **r).count() as i64;
                let even = budget as i64 / 4;
                assert!((stay - even).abs() <= 5, "{stay} of {even} with {budget}");
            }
        }
    }

    #[test]
    fn units_do_not_join_what_is_apart() {
        let pages = pages(6);
        let of = |body, head| Uses {
            body,
            head,
            first_layers: false,
        };
        let (body, head, none) = (of(true, false), of(false, true), of(false, false));
        let uses = [none, body, body, body, head, head];
        let pinned = [false, false, true, false, false, false];
        let units = units(&pages, &uses, &pinned, 4 << 20);
        let ranges: Vec<_> = units.iter().map(|u| u.pages.clone()).collect();
        assert_eq!(ranges, [1..2, 3..4, 4..6]);
    }
}
