//! Several byte strings as one. Packed strings one after the other are packed strings.

/// Lengths and bytes.
pub fn pack<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut all = Vec::new();
    for part in parts {
        all.extend((part.len() as u64).to_le_bytes());
        all.extend(part);
    }
    all
}

/// The strings again; `None` if the bytes are not `count` of them.
pub fn unpack(mut bytes: &[u8], count: usize) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    for _ in 0..count {
        let (len, rest) = bytes.split_first_chunk::<8>()?;
        let (part, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*len)).ok()?)?;
        parts.push(part);
        bytes = rest;
    }
    bytes.is_empty().then_some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_comes_out_and_nothing_else() {
        let parts: [&[u8]; 3] = [b"ab", b"", b"cde"];
        let bytes = [pack(parts[..1].iter().copied()), pack(parts[1..].iter().copied())].concat();
        assert_eq!(unpack(&bytes, 3).as_deref(), Some(&parts[..]));
        assert_eq!(unpack(&bytes, 2), None, "bytes are left");
        assert_eq!(unpack(&bytes[..bytes.len() - 1], 3), None, "bytes are missing");
        assert_eq!(unpack(&[255; 8], 1), None);
    }
}
