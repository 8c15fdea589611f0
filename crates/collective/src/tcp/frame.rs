//! Frames: what goes over a connection once both sides have proved themselves.
//!
//! ```text
//!  0      2    3     4         8                 16                24
//!  group  kind first length    tag               total             length bytes …
//! ```
//!
//! Numbers are little-endian. A message is a first frame, which says its tag and total length, and as many further ones as
//! it takes; frames of other messages may come in between, of the same group and kind not.

/// Bytes of a header.
pub const HEADER: usize = 24;
/// The most bytes of a frame: others wait for the connection that long.
pub const MAX_FRAME: usize = 1 << 20;
/// The most bytes of a message. Nobody means a longer one.
const MAX_MESSAGE: u64 = 1 << 36;
/// The most bytes of a rank's last words.
pub const MAX_WORDS: usize = 4096;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A part of a collective.
    Collective = 1,
    /// A message between two ranks.
    Message = 2,
    /// The group has failed: the rank (4 bytes), then its words.
    Fail = 3,
    /// The sender makes no more calls in this group.
    End = 4,
}

/// What precedes a frame's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub group: u16,
    pub kind: Kind,
    /// Whether a message begins.
    pub first: bool,
    /// Bytes that follow.
    pub len: usize,
    /// What the call is; 0 but in a first frame.
    pub tag: u64,
    /// Bytes of the whole message; 0 but in a first frame.
    pub total: u64,
}

impl Header {
    /// A frame that is complete in itself.
    pub fn whole(group: u16, kind: Kind, len: usize) -> Self {
        Header { group, kind, first: true, len, tag: 0, total: len as u64 }
    }

    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&self.group.to_le_bytes());
        bytes[2] = self.kind as u8;
        bytes[3] = self.first as u8;
        bytes[4..8].copy_from_slice(&(self.len as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.tag.to_le_bytes());
        bytes[16..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    /// # Errors
    /// No rank sends such a frame; the text says what is wrong with it.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Self, String> {
        let number = |range: std::ops::Range<usize>| {
            bytes[range].iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let kind = match bytes[2] {
            1 => Kind::Collective,
            2 => Kind::Message,
            3 => Kind::Fail,
            4 => Kind::End,
            other => return Err(format!("a frame of kind {other}, which does not exist")),
        };
        let (first, len, total) = (bytes[3] == 1, number(4..8), number(16..24));
        let most = match kind {
            Kind::Collective | Kind::Message => MAX_FRAME,
            Kind::Fail => 4 + MAX_WORDS,
            Kind::End => 0,
        };
        if len > most as u64 {
            return Err(format!("a frame of {len} bytes, and {most} are the most"));
        }
        let fits = match (bytes[3], kind) {
            (0, Kind::Collective | Kind::Message) => total == 0,
            (1, Kind::Collective | Kind::Message) => len <= total && total <= MAX_MESSAGE,
            (1, _) => len == total,
            _ => false,
        };
        if !fits {
            return Err(format!("a frame of {len} bytes that says its message has {total}"));
        }
        Ok(Header { group: number(0..2) as u16, kind, first, len: len as usize, tag: number(8..16), total })
    }
}

/// The words of a rank that failed, as a frame.
pub fn fail(group: u16, rank: usize, message: &str) -> Vec<u8> {
    let end = message.floor_char_boundary(MAX_WORDS);
    let mut bytes = Header::whole(group, Kind::Fail, 4 + end).encode().to_vec();
    bytes.extend((rank as u32).to_le_bytes());
    bytes.extend(&message.as_bytes()[..end]);
    bytes
}

/// The end of a rank, as a frame.
pub fn end(group: u16) -> Vec<u8> {
    Header::whole(group, Kind::End, 0).encode().to_vec()
}

/// The failed rank and its words.
pub fn read_fail(bytes: &[u8]) -> Result<(usize, String), String> {
    let (rank, words) = bytes.split_first_chunk::<4>().ok_or("a failure of nobody")?;
    Ok((u32::from_le_bytes(*rank) as usize, String::from_utf8_lossy(words).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_header_survives(group: u16, message: bool, first: bool, len in 0..=MAX_FRAME, more in 0..1u64 << 35, tag: u64) {
            let kind = if message { Kind::Message } else { Kind::Collective };
            let total = if first { len as u64 + more } else { 0 };
            let header = Header { group, kind, first, len, tag, total };
            prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn whatever_is_accepted_is_within_the_caps(bytes: [u8; HEADER]) {
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(header.len <= MAX_FRAME && header.total <= MAX_MESSAGE);
            }
        }
    }

    #[test]
    fn long_words_are_cut_between_letters() {
        let bytes = fail(7, 3, &"ü".repeat(3000));
        let header = Header::decode(bytes[..HEADER].try_into().expect("a header")).expect("a frame");
        assert_eq!((header.kind, header.len), (Kind::Fail, bytes.len() - HEADER));
        assert_eq!(read_fail(&bytes[HEADER..]), Ok((3, "ü".repeat(MAX_WORDS / 2))));
    }
}
