//! What is asked and what is answered.

/// A buffer: `bytes` bytes, live in the half-open range `lower..upper`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub lower: u32,
    pub upper: u32,
    pub bytes: u64,
    /// A power of two; the offset is a multiple.
    pub align: u64,
}

impl Item {
    pub const fn overlaps(&self, other: &Item) -> bool {
        self.lower < other.upper && other.lower < self.upper
    }

    /// Bytes that no other item can use: the rest of the last aligned unit is
    /// given up, so that offsets stay aligned without being rounded.
    pub const fn padded_bytes(&self) -> u64 {
        self.bytes.next_multiple_of(self.align)
    }
}

/// Buffers to place. Lifetimes are not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problem {
    pub items: Vec<Item>,
}

impl Problem {
    /// The largest sum of bytes that are live at one time: no layout is lower.
    pub fn load_bytes(&self) -> u64 {
        self.loads()
            .into_iter()
            .map(|(_, bytes)| bytes)
            .max()
            .unwrap_or(0)
    }

    /// Each time at which an item starts, with the bytes live from it on, in
    /// ascending order.
    pub fn loads(&self) -> Vec<(u32, u64)> {
        let mut starts: Vec<u32> = self.items.iter().map(|i| i.lower).collect();
        starts.sort_unstable();
        starts.dedup();
        let mut ends: Vec<&Item> = self.items.iter().collect();
        let mut begins = ends.clone();
        ends.sort_unstable_by_key(|i| i.upper);
        begins.sort_unstable_by_key(|i| i.lower);
        let (mut ends, mut begins) = (ends.into_iter().peekable(), begins.into_iter().peekable());
        let mut live = 0;
        starts
            .into_iter()
            .map(|time| {
                while let Some(item) = begins.next_if(|i| i.lower <= time) {
                    live += item.padded_bytes();
                }
                while let Some(item) = ends.next_if(|i| i.upper <= time) {
                    live -= item.padded_bytes();
                }
                (time, live)
            })
            .collect()
    }
}

/// An offset for every item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub offsets: Vec<u64>,
    /// The largest end of an item.
    pub bytes: u64,
    /// [`Problem::load_bytes`].
    pub load_bytes: u64,
    /// No layout is lower: the load, or more where the search has proved it.
    pub bound_bytes: u64,
    /// Nodes of the search that were visited; 0 when first fit met the load.
    pub search_nodes: u64,
}

impl Layout {
    /// True when it is known that no lower layout exists.
    pub const fn is_optimal(&self) -> bool {
        self.bytes == self.bound_bytes
    }

    /// Bytes above the load.
    pub const fn gap_bytes(&self) -> u64 {
        self.bytes - self.load_bytes
    }
}
