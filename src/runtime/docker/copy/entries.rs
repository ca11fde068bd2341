//! The entries of a tar archive, as it passes.

/// The size of a block of an archive, in bytes.
const BLOCK: usize = 512;
/// The longest name of an entry that is read, in bytes.
const MAX_NAME_BYTES: u64 = 64 << 10;
/// The number of empty blocks at the end of an archive.
const END_BLOCKS: usize = 2;

/// The bytes are not those of an uncompressed tar archive.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotTar;

/// Reads the names of the entries of an archive that passes in parts of any size.
#[derive(Debug, Default)]
pub(super) struct Entries {
    /// The header or the extended header that is being read.
    buffer: Vec<u8>,
    /// The number of bytes to skip: content, and padding.
    skip: u64,
    /// The type and size of the extended header that is being read.
    extension: Option<(u8, usize)>,
    /// The size of the content after the extensions of a sparse file.
    sparse: Option<u64>,
    /// The values that replace those of the next header.
    next: Replaced,
    /// The number of empty blocks in place of the last headers.
    empty_blocks: usize,
}

#[derive(Debug, Default)]
struct Replaced {
    name: Option<String>,
    size: Option<u64>,
}

impl Entries {
    /// Returns the names of the entries that begin in `part`. Directories end with `/`.
    pub(super) fn push(&mut self, mut part: &[u8]) -> Result<Vec<String>, NotTar> {
        let mut names = Vec::new();
        while !part.is_empty() && !self.has_ended() {
            if self.skip > 0 {
                let skipped = self.skip.min(part.len() as u64);
                self.skip -= skipped;
                part = &part[skipped as usize..];
                continue;
            }
            let wanted = self.extension.map_or(BLOCK, |(_, size)| size);
            let taken = (wanted - self.buffer.len()).min(part.len());
            self.buffer.extend_from_slice(&part[..taken]);
            part = &part[taken..];
            if self.buffer.len() == wanted {
                let buffer = std::mem::take(&mut self.buffer);
                match (self.extension.take(), self.sparse.take()) {
                    (Some((kind, _)), _) => self.end_extension(kind, &buffer),
                    (None, Some(size)) => self.skip_sparse(size, buffer[504] != 0),
                    (None, None) => names.extend(self.header(&buffer)?),
                }
            }
        }
        Ok(names)
    }

    /// Returns true after the blocks that end an archive. Bytes after them are ignored.
    pub(super) fn has_ended(&self) -> bool {
        self.empty_blocks >= END_BLOCKS
    }

    fn end_extension(&mut self, kind: u8, data: &[u8]) {
        self.skip = padding(data.len() as u64);
        match kind {
            b'L' => self.next.name = Some(text(data)),
            _ => self.next.read_pax(data),
        }
    }

    /// Skips the content of a sparse file, or reads another block of its map first.
    fn skip_sparse(&mut self, size: u64, has_more: bool) {
        match has_more {
            true => self.sparse = Some(size),
            false => self.skip = size.saturating_add(padding(size)),
        }
    }

    /// Returns the name of an entry. An extended header has none.
    fn header(&mut self, block: &[u8]) -> Result<Option<String>, NotTar> {
        if block.iter().all(|&byte| byte == 0) {
            self.empty_blocks += 1;
            return Ok(None);
        }
        self.empty_blocks = 0;
        if !has_checksum(block) {
            return Err(NotTar);
        }
        let (kind, mut size) = (block[156], number(&block[124..136]));
        if matches!(kind, b'L' | b'x') && (1..=MAX_NAME_BYTES).contains(&size) {
            self.extension = Some((kind, size as usize));
            return Ok(None);
        }
        // The target of a link, defaults for all entries, and an extended header of no use.
        if matches!(kind, b'K' | b'g' | b'L' | b'x') {
            self.skip = size.saturating_add(padding(size));
            return Ok(None);
        }
        let next = std::mem::take(&mut self.next);
        size = next.size.unwrap_or(size);
        match kind {
            // Links, devices and directories have no content, whatever their size says.
            b'1'..=b'6' => {}
            b'S' => self.skip_sparse(size, block[482] != 0),
            _ => self.skip = size.saturating_add(padding(size)),
        }
        let mut name = next.name.unwrap_or_else(|| name(block));
        if kind == b'5' && !name.ends_with('/') {
            name.push('/');
        }
        Ok(Some(name))
    }
}

impl Replaced {
    /// Reads pax records, each of which is `LENGTH KEY=VALUE` and a line break.
    fn read_pax(&mut self, mut rest: &[u8]) {
        while let Some((record, after)) = pax_record(rest) {
            let sparse_name = record.strip_prefix(b"GNU.sparse.name=");
            if let Some(path) = sparse_name.or(record.strip_prefix(b"path=")) {
                self.name = Some(String::from_utf8_lossy(path).into_owned());
            }
            if let Some(size) = record.strip_prefix(b"size=") {
                self.size = String::from_utf8_lossy(size).parse().ok();
            }
            rest = after;
        }
    }
}

/// Returns the first pax record, without its length and line break, and the bytes after it.
fn pax_record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = memchr::memchr(b' ', data)?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..length.checked_sub(1)?)?;
    Some((record, data.get(length..)?))
}

/// Returns true if the block has the checksum of a header: the sum of its bytes, with or without
/// their signs, and with spaces in place of the checksum.
fn has_checksum(block: &[u8]) -> bool {
    let mut block = block.to_vec();
    let expected = number(&block[148..156]);
    block[148..156].fill(b' ');
    let unsigned: u64 = block.iter().map(|&byte| u64::from(byte)).sum();
    let signed: i64 = block.iter().map(|&byte| i64::from(byte as i8)).sum();
    expected == unsigned || i64::try_from(expected) == Ok(signed)
}

/// Returns the name in a header.
fn name(block: &[u8]) -> String {
    let is_ustar = &block[257..262] == b"ustar" && block[262] == 0;
    let prefix = if is_ustar {
        text(&block[345..500])
    } else {
        String::new()
    };
    let name = text(&block[..100]);
    match prefix.is_empty() {
        true => name,
        false => format!("{prefix}/{name}"),
    }
}

/// Returns the number of bytes that fill the last block.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// Returns the text up to the first NUL byte.
fn text(field: &[u8]) -> String {
    let end = memchr::memchr(0, field).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Parses a number: octal digits, or binary if the first bit is set.
fn number(field: &[u8]) -> u64 {
    if field[0] & 0x80 != 0 {
        let bytes = &field[field.len().saturating_sub(8)..];
        return bytes
            .iter()
            .fold(0, |number, byte| number << 8 | u64::from(*byte));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> (Vec<u8>, Vec<String>) {
        let mut builder = tar::Builder::new(Vec::new());
        let long = format!("{}/file", "long".repeat(40));
        let names = ["a", "d/", "d/b", &long, "d/c"];
        for (number, name) in names.iter().enumerate() {
            let content = vec![b'x'; number * 511];
            let mut header = match number % 2 {
                0 => tar::Header::new_gnu(),
                _ => tar::Header::new_ustar(),
            };
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                builder.append_data(&mut header, name, &[][..]).unwrap();
                continue;
            }
            if *name == long {
                let path = [("path", name.as_bytes())];
                builder.append_pax_extensions(path).unwrap();
                header.set_path("short").unwrap();
                header.set_size(content.len() as u64);
                header.set_cksum();
                builder.append(&header, &content[..]).unwrap();
                continue;
            }
            header.set_size(content.len() as u64);
            builder
                .append_data(&mut header, name, &content[..])
                .unwrap();
        }
        let gnu_long = format!("gnu/{}", "x".repeat(200));
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        builder
            .append_data(&mut header, &gnu_long, &b"abc"[..])
            .unwrap();
        let names = names.iter().map(|name| name.to_string());
        (
            builder.into_inner().unwrap(),
            names.chain([gnu_long]).collect(),
        )
    }

    #[test]
    fn names_are_found_in_parts_of_any_size() {
        let (archive, names) = archive();
        for size in [1, 7, 511, 512, 513, archive.len()] {
            let mut entries = Entries::default();
            let found: Vec<_> = archive
                .chunks(size)
                .flat_map(|part| entries.push(part).unwrap())
                .collect();
            assert_eq!(found, names, "parts of {size} bytes");
            assert!(entries.has_ended());
        }
    }

    #[test]
    fn damaged_archives_do_not_panic() {
        let (archive, _) = archive();
        let mut random = 1_u64;
        for _ in 0..2000 {
            let mut damaged = archive.clone();
            for _ in 0..20 {
                random = random
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                let at = (random >> 33) as usize % damaged.len();
                damaged[at] = (random >> 20) as u8;
            }
            let _ = Entries::default().push(&damaged);
        }
        let mut replaced = Replaced::default();
        for data in [
            "12 path=a/b",
            "",
            "5",
            "1 a",
            "0 ",
            "99 path=a\n",
            "-1 a",
            " ",
        ] {
            replaced.read_pax(data.as_bytes());
        }
        assert_eq!(replaced.name, None);
    }

    #[test]
    fn other_formats_are_no_archive() {
        let gzip = [&[0x1f, 0x8b, 8][..], &[7; 600]].concat();
        assert_eq!(Entries::default().push(&gzip), Err(NotTar));
        let mut entries = Entries::default();
        assert_eq!(entries.push(&[0; 1024]), Ok(Vec::new()));
        assert!(entries.has_ended());
    }

    #[test]
    fn a_pax_size_replaces_that_of_the_header() {
        let mut builder = tar::Builder::new(Vec::new());
        let size = [("size", &b"1024"[..])];
        builder.append_pax_extensions(size).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("large").unwrap();
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).unwrap();
        let mut archive = builder.into_inner().unwrap();
        // Content that looks like the header of another entry.
        let content = archive[1024..1536].to_vec();
        archive.splice(1536..1536, [content.clone(), content].concat());
        let mut entries = Entries::default();
        assert_eq!(entries.push(&archive), Ok(vec!["large".to_owned()]));
        assert!(entries.has_ended());
    }
}
