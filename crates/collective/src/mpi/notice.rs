//! What ranks tell each other beside their messages: that one has failed, or ended.

/// Tags of a group: one for each lane, one for notices.
pub(super) const TAGS: i32 = 4;
/// The tag of notices among them.
pub(super) const NOTICES: i32 = 2;

/// Bytes of an error's text that travel.
const TEXT_MAX: usize = 4000;

/// A notice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// The group has failed on account of a rank.
    Failed { rank: usize, message: String },
    /// The sender has ended, after so many messages to the receiver in each lane.
    Ended { sent: [u64; 2] },
}

impl Notice {
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Notice::Failed { rank, message } => {
                let mut end = message.len().min(TEXT_MAX);
                while !message.is_char_boundary(end) {
                    end -= 1;
                }
                [&[0], &(*rank as u64).to_le_bytes()[..], &message.as_bytes()[..end]].concat()
            }
            Notice::Ended { sent: [a, b] } => [&[1], &a.to_le_bytes()[..], &b.to_le_bytes()].concat(),
        }
    }

    /// `None`: these bytes are no notice.
    pub fn parse(bytes: &[u8]) -> Option<Notice> {
        let (kind, rest) = bytes.split_first()?;
        let (first, rest) = rest.split_first_chunk()?;
        let first = u64::from_le_bytes(*first);
        match (kind, rest.first_chunk()) {
            (0, _) => Some(Notice::Failed {
                rank: first as usize,
                message: String::from_utf8_lossy(rest).into_owned(),
            }),
            (1, Some(second)) => Some(Notice::Ended { sent: [first, u64::from_le_bytes(*second)] }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_and_long_ones_are_cut_between_characters() {
        let failed = |message: String| Notice::Failed { rank: 3, message };
        for notice in [failed("größer".into()), failed(String::new()), Notice::Ended { sent: [0, 1 << 40] }]
        {
            assert_eq!(Notice::parse(&notice.to_bytes()), Some(notice));
        }
        let Some(Notice::Failed { message, .. }) = Notice::parse(&failed("xü".repeat(3000)).to_bytes())
        else {
            panic!("a failure stays one");
        };
        assert!("xü".repeat(3000).starts_with(&message) && message.len() > TEXT_MAX - 4);
    }

    #[test]
    fn other_bytes_are_none() {
        for bytes in [&[][..], &[0], &[0, 1, 2], &[1; 9], &[2; 40]] {
            assert_eq!(Notice::parse(bytes), None);
        }
    }
}
