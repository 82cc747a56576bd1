//! Merging: the pair of neighbours with the lowest rank becomes one, leftmost first, until
//! no pair has a rank.

use std::ops::Range;

use omex_plan::session::{CANDIDATE_WORDS, SYMBOL_WORDS, merge_words};

use super::scan::character;
use super::table::{self, Model, NONE, option};
use super::{Field, Tokenizer};
use crate::os::memory::bytes_of_words;

/// Up to this many symbols, looking at all of them beats a heap.
const SHORT_MAX: usize = 32;

/// A run of a piece's bytes that is (on its way to) one token.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    /// Token of these bytes, or [`NONE`].
    id: u32,
    /// First byte, within the piece; the symbol ends where the next one starts.
    start: u32,
    previous: u32,
    next: u32,
}

/// Working memory of the encoder, reused from piece to piece. What it takes
/// depends on the longest piece that cannot be split, not on the text.
#[derive(Debug)]
pub struct Scratch<'a>(Memory<'a>);

#[derive(Debug)]
enum Memory<'a> {
    /// Grows with the longest piece.
    Owned(Vec<u32>),
    /// Enough for every text of its user.
    Given(&'a mut [u32]),
}

impl Default for Scratch<'_> {
    fn default() -> Self {
        Scratch(Memory::Owned(Vec::new()))
    }
}

impl<'a> Scratch<'a> {
    /// Allocates what it needs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses `words` alone, which have [`omex_plan::session::tokenizer_bytes`]
    /// for the longest text and the prompt around it.
    pub fn given(words: &'a mut [u32]) -> Self {
        Scratch(Memory::Given(words))
    }

    fn words(&mut self, count: usize) -> &mut [u32] {
        match &mut self.0 {
            Memory::Owned(words) => {
                if words.len() < count {
                    words.resize(count, 0);
                }
                &mut words[..count]
            }
            Memory::Given(words) => &mut words[..count],
        }
    }

    /// A place for a text of `bytes` bytes, and the rest to encode it with.
    pub(super) fn split(&mut self, bytes: usize) -> (&mut [u8], Scratch<'_>) {
        let text_words = bytes.div_ceil(4);
        let all = text_words + merge_words(bytes + 1);
        let (text, rest) = self.words(all).split_at_mut(text_words);
        (&mut bytes_of_words(text)[..bytes], Scratch::given(rest))
    }

    /// For a piece of at most so many symbols, which spell as many bytes at
    /// least.
    fn piece(&mut self, symbols: usize) -> Piece<'_> {
        let words = self.words(merge_words(symbols));
        let (symbol_words, rest) = words.split_at_mut(symbols * SYMBOL_WORDS);
        let (candidate_words, bytes) = rest.split_at_mut(2 * symbols * CANDIDATE_WORDS);
        Piece {
            symbols: Symbols {
                words: symbol_words.as_chunks_mut().0,
                len: 0,
            },
            candidates: Candidates {
                words: candidate_words.as_chunks_mut().0,
                len: 0,
            },
            bytes: bytes_of_words(bytes),
            bytes_len: 0,
        }
    }
}

/// Symbols in their order.
struct Symbols<'a> {
    words: &'a mut [[u32; SYMBOL_WORDS]],
    len: usize,
}

impl Symbols<'_> {
    fn at(&self, index: usize) -> Symbol {
        let [id, start, previous, next] = self.words[..self.len][index];
        Symbol {
            id,
            start,
            previous,
            next,
        }
    }

    fn get(&self, index: usize) -> Option<Symbol> {
        (index < self.len).then(|| self.at(index))
    }

    fn set(&mut self, index: usize, symbol: Symbol) {
        let Symbol {
            id,
            start,
            previous,
            next,
        } = symbol;
        self.words[..self.len][index] = [id, start, previous, next];
    }

    fn push(&mut self, id: u32, start: usize) {
        let at = self.len as u32;
        self.len += 1;
        let symbol = Symbol {
            id,
            start: start as u32,
            previous: at.wrapping_sub(1),
            next: at + 1,
        };
        self.set(at as usize, symbol);
    }

    fn remove(&mut self, index: usize) {
        self.words[..self.len].copy_within(index + 1.., index);
        self.len -= 1;
    }

    /// Each symbol with the byte at which it ends, in a piece of `len` bytes.
    fn spans(&self, len: usize) -> impl Iterator<Item = (Symbol, usize)> {
        (0..self.len).map(move |at| {
            let end = self.get(at + 1).map_or(len, |s| s.start as usize);
            (self.at(at), end)
        })
    }
}

/// Pairs by rank, then place, the lowest first: a binary heap. A pair that no
/// longer holds is passed over. Every merge takes one out and puts two in at
/// most, so twice the symbols suffice.
struct Candidates<'a> {
    words: &'a mut [[u32; CANDIDATE_WORDS]],
    len: usize,
}

impl Candidates<'_> {
    fn push(&mut self, rank: u32, place: u32) {
        let mut at = self.len;
        self.len += 1;
        let heap = &mut self.words[..self.len];
        heap[at] = [rank, place];
        while at > 0 && heap[at] < heap[(at - 1) / 2] {
            heap.swap(at, (at - 1) / 2);
            at = (at - 1) / 2;
        }
    }

    fn pop(&mut self) -> Option<(u32, u32)> {
        self.len = self.len.checked_sub(1)?;
        self.words.swap(0, self.len);
        let heap = &mut self.words[..self.len];
        let mut at = 0;
        while 2 * at + 1 < heap.len() {
            let left = 2 * at + 1;
            let lower = left + usize::from(left + 1 < heap.len() && heap[left + 1] < heap[left]);
            if heap[at] <= heap[lower] {
                break;
            }
            heap.swap(at, lower);
            at = lower;
        }
        let [rank, place] = self.words[self.len];
        Some((rank, place))
    }
}

/// What two neighbouring symbols become: rank and token.
type Merge = Option<(u32, u32)>;

/// A piece that is being merged.
struct Piece<'a> {
    symbols: Symbols<'a>,
    candidates: Candidates<'a>,
    /// The piece as the vocabulary spells it, for characters.
    bytes: &'a mut [u8],
    bytes_len: usize,
}

impl Piece<'_> {
    /// Appends a symbol, which the vocabulary spells so.
    fn push_spelled(&mut self, id: u32, spelled: &[u8]) {
        self.symbols.push(id, self.bytes_len);
        self.bytes[self.bytes_len..][..spelled.len()].copy_from_slice(spelled);
        self.bytes_len += spelled.len();
    }
}

/// Merges the symbols of a piece of `len` bytes. `pair` gives what two
/// neighbours become: of two symbols, with the range of bytes that both span.
fn merge(
    symbols: &mut Symbols<'_>,
    candidates: &mut Candidates<'_>,
    len: usize,
    pair: impl Fn(u32, u32, Range<usize>) -> Merge,
) {
    if symbols.len <= SHORT_MAX {
        merge_short(symbols, len, pair);
    } else {
        merge_long(symbols, candidates, len, pair);
    }
}

/// Removes merged symbols from the list, which stays dense.
fn merge_short(
    symbols: &mut Symbols<'_>,
    len: usize,
    pair: impl Fn(u32, u32, Range<usize>) -> Merge,
) {
    let merge_at = |symbols: &Symbols<'_>, at: usize| {
        let (left, right) = (symbols.get(at)?, symbols.get(at + 1)?);
        let end = symbols.get(at + 2).map_or(len, |s| s.start as usize);
        pair(left.id, right.id, left.start as usize..end)
    };
    let rank = |symbols: &Symbols<'_>, at| merge_at(symbols, at).map_or(NONE, |(rank, _)| rank);
    let mut ranks = [NONE; SHORT_MAX];
    for (at, slot) in ranks[..symbols.len].iter_mut().enumerate() {
        *slot = rank(symbols, at);
    }
    while let Some((at, &lowest)) =
        (ranks[..symbols.len].iter().enumerate()).min_by_key(|&(_, r)| r)
    {
        if lowest == NONE {
            break;
        }
        let (_, id) = merge_at(symbols, at).expect("a pair with a rank has a merge");
        symbols.set(
            at,
            Symbol {
                id,
                ..symbols.at(at)
            },
        );
        ranks[..symbols.len].copy_within(at + 2.., at + 1);
        symbols.remove(at + 1);
        ranks[at] = rank(symbols, at);
        if let Some(before) = at.checked_sub(1) {
            ranks[before] = rank(symbols, before);
        }
    }
}

/// Links symbols by index and finds the lowest rank with a heap: O(n log n).
fn merge_long(
    symbols: &mut Symbols<'_>,
    candidates: &mut Candidates<'_>,
    len: usize,
    pair: impl Fn(u32, u32, Range<usize>) -> Merge,
) {
    let count = symbols.len as u32;
    // A symbol that was merged into its left neighbour is its own next.
    let merge_at = |symbols: &Symbols<'_>, at: u32| -> Merge {
        let left = symbols.at(at as usize);
        if left.next == at || left.next >= count {
            return None;
        }
        let right = symbols.at(left.next as usize);
        let end = symbols.get(right.next as usize);
        let end = end.map_or(len, |s| s.start as usize);
        pair(left.id, right.id, left.start as usize..end)
    };
    for at in 0..count {
        if let Some((rank, _)) = merge_at(symbols, at) {
            candidates.push(rank, at);
        }
    }
    while let Some((rank, at)) = candidates.pop() {
        let Some((_, id)) = merge_at(symbols, at).filter(|&(now, _)| now == rank) else {
            continue;
        };
        let left = symbols.at(at as usize);
        let right = symbols.at(left.next as usize);
        let next = right.next;
        let merged_away = Symbol {
            next: left.next,
            ..right
        };
        symbols.set(left.next as usize, merged_away);
        symbols.set(at as usize, Symbol { id, next, ..left });
        if let Some(behind) = symbols.get(next as usize) {
            let behind = Symbol {
                previous: at,
                ..behind
            };
            symbols.set(next as usize, behind);
        }
        for changed in [left.previous, at] {
            if changed < count
                && let Some((rank, _)) = merge_at(symbols, changed)
            {
                candidates.push(rank, changed);
            }
        }
    }
    let mut kept = 0;
    for at in 0..symbols.len {
        let symbol = symbols.at(at);
        if symbol.next != at as u32 {
            symbols.set(kept, symbol);
            kept += 1;
        }
    }
    symbols.len = kept;
}

impl Tokenizer<'_> {
    /// Encodes one piece with the merge list; returns the bytes without a token. A byte
    /// without a token is left out before merging, so its neighbours can merge.
    pub(super) fn merge_bytes(
        &self,
        text: &[u8],
        piece: Range<usize>,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let bytes = &text[piece.clone()];
        if self.option(option::IGNORE_MERGES)
            && let Some(id) = self.find_text(bytes)
        {
            sink(id, piece);
            return 0;
        }
        let Piece {
            mut symbols,
            mut candidates,
            ..
        } = scratch.piece(bytes.len());
        let mut lost = 0;
        for (start, &byte) in bytes.iter().enumerate() {
            match self.tables.byte_ids.at(usize::from(byte)) {
                NONE => lost += 1,
                id => symbols.push(id, start),
            }
        }
        merge(
            &mut symbols,
            &mut candidates,
            bytes.len(),
            |left, right, _| self.find_merge(left, right),
        );
        for (symbol, end) in symbols.spans(bytes.len()) {
            let start = symbol.start as usize;
            sink(symbol.id, piece.start + start..piece.start + end);
        }
        lost
    }

    fn find_merge(&self, left: u32, right: u32) -> Merge {
        let (index, merges) = (self.tables.merge_index, self.tables.merges);
        let mask = index.len() - 1;
        let mut slot = table::hash_pair(left, right) as usize & mask;
        loop {
            let rank = index.at(slot);
            if rank == NONE {
                return None;
            }
            let entry = rank as usize * 3;
            if merges.at(entry) == left && merges.at(entry + 1) == right {
                return Some((rank, merges.at(entry + 2)));
            }
            slot = (slot + 1) & mask;
        }
    }

    /// Encodes the characters of a text; returns the bytes without a token.
    ///
    /// U+2581 and the space are one character to the vocabulary; tables spell it as a
    /// space. Between two characters that meet in no token the text is cut, which
    /// changes no merge and keeps the pieces short.
    pub(super) fn merge_characters(
        &self,
        text: &[u8],
        range: Range<usize>,
        prefix: bool,
        scratch: &mut Scratch,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let text = &text[..range.end];
        let mut lost = 0;
        let mut start = range.start;
        let mut prefix = prefix;
        let mut unknown_before = false;
        while start < text.len() {
            let end = self.piece_end(text, start, prefix);
            let mut piece = scratch.piece(end - start + usize::from(prefix));
            if prefix {
                piece.push_spelled(self.find_text(b" ").unwrap_or(NONE), b" ");
            }
            let mut at = start;
            while at < end {
                let (spelled, len) = self.spelled_character(text, at);
                piece.push_spelled(self.find_text(spelled).unwrap_or(NONE), spelled);
                at += len;
            }
            lost += self.merge_piece(text, start, prefix, piece, &mut unknown_before, sink);
            prefix = false;
            start = end;
        }
        lost
    }

    /// The character at `at` as the vocabulary spells it, and its length in the text.
    fn spelled_character<'t>(&self, text: &'t [u8], at: usize) -> (&'t [u8], usize) {
        let (_, len) = character(text, at);
        match self.spelled(text, at) {
            (b' ', _) => (b" ", len),
            _ => (&text[at..at + len], len),
        }
    }

    /// Where the text from `start` on, behind a space if `prefix`, is cut.
    fn piece_end(&self, text: &[u8], start: usize, prefix: bool) -> usize {
        let mut before = prefix.then_some(b' ');
        let mut at = start;
        while at < text.len() {
            let (spelled, len) = self.spelled_character(text, at);
            if before.is_some_and(|before| !self.meet(before, spelled[0])) {
                break;
            }
            before = spelled.last().copied();
            at += len;
        }
        at
    }

    fn meet(&self, left: u8, right: u8) -> bool {
        let bit = usize::from(left) * 256 + usize::from(right);
        self.tables.joints[bit / 8] & (1 << (bit % 8)) != 0
    }

    /// Merges the symbols of `piece` and gives the tokens; it is at `start` in `text`, in
    /// which a space may have three bytes and a prefix has none. `unknown_before` says, and
    /// is told, whether the last token is the unknown one.
    fn merge_piece(
        &self,
        text: &[u8],
        start: usize,
        prefix: bool,
        mut piece: Piece<'_>,
        unknown_before: &mut bool,
        sink: &mut dyn FnMut(u32, Range<usize>),
    ) -> usize {
        let longest = self.tables.field(Field::TokenBytesMax) as usize;
        let spelled = &piece.bytes[..piece.bytes_len];
        let pair = |_, _, span: Range<usize>| {
            let bytes = (span.len() <= longest).then(|| &spelled[span])?;
            let id = self.find_text(bytes)?;
            let rank = self.tables.ranks.at(id as usize);
            (rank != NONE).then_some((rank, id))
        };
        let (symbols, candidates) = (&mut piece.symbols, &mut piece.candidates);
        if self.model() == Model::Scores {
            merge(symbols, candidates, spelled.len(), pair);
        } else {
            merge(symbols, candidates, spelled.len(), |left, right, _| {
                self.find_merge(left, right)
            });
        }
        let mut lost = 0;
        let mut from = start;
        for (symbol, end) in symbols.spans(spelled.len()) {
            let start = symbol.start as usize;
            if symbol.id != NONE {
                let mut to = from;
                for &byte in &spelled[start + usize::from(prefix && start == 0)..end] {
                    to += if byte == b' ' && text[to] != b' ' {
                        3
                    } else {
                        1
                    };
                }
                sink(symbol.id, from..to);
                from = to;
                *unknown_before = false;
                continue;
            }
            if prefix && start == 0 {
                // The prefix itself has no token: it stands for no text.
                continue;
            }
            let bytes = &spelled[start..end];
            let byte_ids = self.tables.byte_ids;
            let all = bytes
                .iter()
                .all(|&byte| byte_ids.at(usize::from(byte)) != NONE);
            if all {
                for &byte in bytes {
                    // A space that is no token is spelled as its own byte.
                    let len = if byte == b' ' && text[from] != b' ' {
                        3
                    } else {
                        1
                    };
                    sink(byte_ids.at(usize::from(byte)), from..from + len);
                    from += len;
                }
            } else {
                let len = if bytes == b" " && text[from] != b' ' {
                    3
                } else {
                    bytes.len()
                };
                lost += len;
                // Neighbouring unknown characters are one unknown token.
                if let Some(id) = self.unknown().filter(|_| !*unknown_before) {
                    sink(id, from..from + len);
                }
                from += len;
            }
            *unknown_before = !all;
        }
        lost
    }
}
