//! Time cut to sections: the sets of items that live together and are part of
//! no larger such set.

use std::ops::Range;

use super::Item;

/// The sections in which each item lives, in ascending order of time. Items
/// overlap in time exactly when they share a section, and what holds in every
/// section holds at every time.
pub(super) struct Sections {
    pub(super) count: usize,
    pub(super) spans: Vec<Range<u32>>,
}

impl Sections {
    pub(super) fn new(items: &[Item]) -> Sections {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        enum Event {
            // Lifetimes are half-open: at one time, ends come first.
            End,
            Start,
        }
        let mut events: Vec<(u32, Event, usize)> = (items.iter().enumerate())
            .flat_map(|(i, item)| [(item.lower, Event::Start, i), (item.upper, Event::End, i)])
            .collect();
        events.sort_unstable();
        let mut spans = vec![0..0; items.len()];
        // What lives is a section when items ended after others had started.
        let mut section = 0;
        let mut started = false;
        for (_, event, i) in events {
            match event {
                Event::Start => {
                    spans[i].start = section;
                    started = true;
                }
                Event::End => {
                    section += u32::from(started);
                    started = false;
                    spans[i].end = section;
                }
            }
        }
        Sections {
            count: section as usize,
            spans,
        }
    }
}
