//! The strings of the SSH protocols: four bytes of length, big-endian, and the bytes.

/// The longest string that is read, in bytes.
const MAX_STRING_BYTES: usize = 64 << 10;

/// Appends a string.
pub(super) fn put_string(buffer: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    buffer.extend_from_slice(&length.to_be_bytes());
    buffer.extend_from_slice(bytes);
}

/// Takes a big-endian number from the front of `bytes`.
pub(super) fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    let (number, rest) = bytes.split_first_chunk::<4>()?;
    *bytes = rest;
    Some(u32::from_be_bytes(*number))
}

/// Takes a string from the front of `bytes`.
pub(super) fn take_string<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = take_u32(bytes)? as usize;
    if length > MAX_STRING_BYTES {
        return None;
    }
    let (string, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_read_back_and_truncation_is_seen() {
        let mut bytes = Vec::new();
        put_string(&mut bytes, b"abc");
        put_string(&mut bytes, b"");
        let mut rest = &bytes[..];
        assert_eq!(take_string(&mut rest), Some(&b"abc"[..]));
        assert_eq!(take_string(&mut rest), Some(&b""[..]));
        assert_eq!(take_string(&mut rest), None);
        assert_eq!(take_string(&mut &bytes[..6]), None);
        assert_eq!(take_string(&mut &[0xff, 0xff, 0xff, 0xff, 0][..]), None);
    }
}
