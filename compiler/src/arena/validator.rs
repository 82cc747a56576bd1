//! The naive check of a layout: every pair of items, no code of the solver.

use super::{Layout, Problem};

/// # Errors
///
/// The first rule that the layout violates.
pub fn validate(problem: &Problem, layout: &Layout) -> Result<(), String> {
    let items = &problem.items;
    if items.len() != layout.offsets.len() {
        return Err(format!(
            "{} offsets for {} items",
            layout.offsets.len(),
            items.len()
        ));
    }
    for i in 0..items.len() {
        let (a, start) = (items[i], layout.offsets[i]);
        let Some(end) = start.checked_add(a.bytes) else {
            return Err(format!("item {i} wraps around"));
        };
        if start % a.align != 0 {
            return Err(format!("item {i} at {start} is not aligned to {}", a.align));
        }
        if end > layout.bytes {
            return Err(format!("item {i} ends at {end} of {}", layout.bytes));
        }
        for (j, b) in items[..i].iter().enumerate() {
            let other = layout.offsets[j];
            let apart_in_time = a.upper <= b.lower || b.upper <= a.lower;
            let apart_in_space = end <= other || other + b.bytes <= start;
            if !apart_in_time && !apart_in_space {
                return Err(format!("items {j} and {i} overlap"));
            }
        }
    }
    Ok(())
}
